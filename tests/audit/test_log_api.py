"""`/log/…` as somebody reads it who wants to check the exchange and trusts nothing but a key."""

import hashlib
import json
import struct

import pytest

from hie.audit import merkle
from hie.audit.checkpoint import Proof, SignedCheckpoint
from hie.audit.note import VerifierKey
from hie.audit.query import AuditQuery
from tests.audit.samples import disclosure
from tests.audit.test_api import client, get

__all__ = ["client"]

PRIVATE = ("person-", "Ortiz", "lakeside")


@pytest.fixture
def filled(log):
    """600 entries: two full tiles of leaves and a partial one."""
    return [receipt for _ in range(6) for receipt in log.record(*(disclosure(f"person-{n}") for n in range(100)))]


def fetch(client, address):
    """Without a token; nothing of a patient or a caller is ever in it."""
    response = client.get(address)
    assert response.status_code == 200, response.text
    assert not any(word.encode() in response.data for word in PRIVATE)
    return response


def test_a_stranger_checks_the_whole_log_from_its_tiles(client, filled):
    key = VerifierKey.parse(fetch(client, "/log/key").text.splitlines()[0])
    response = fetch(client, "/log/checkpoint")
    assert response.content_type == "text/plain; charset=utf-8"
    assert "max-age=2" in response.headers["Cache-Control"]
    signed = SignedCheckpoint.parse(response.data)
    signed.require_signer([key])
    assert (signed.checkpoint.origin, signed.size) == ("hie.example/log", 600)
    nodes = merkle.nodes_of_tiles(600, lambda tile: fetch(client, f"/log/tile/{tile.path}").data)
    assert merkle.root(600, nodes) == signed.root
    leaves = [leaf for tile in merkle.tiles(600) if tile.level == 0 for leaf in bundle(client, tile)]
    assert [merkle.leaf_hash(leaf) for leaf in leaves] == [nodes(0, index) for index in range(600)]
    assert leaves[599] == fetch(client, "/log/entry/599").data


def bundle(client, tile):
    raw = fetch(client, f"/log/tile/entries/{tile.path.removeprefix('0/')}").data
    while raw:
        (length,) = struct.unpack(">H", raw[:2])
        yield raw[2 : 2 + length]
        raw = raw[2 + length :]


def test_a_recipient_keeps_a_receipt_that_needs_nobody(client, filled):
    proof = Proof.parse(fetch(client, f"/log/receipt/{filled[300].entry_id}").data)
    proof.require_included()
    proof.signed.require_signer([VerifierKey.parse(fetch(client, "/log/key").text.strip())])
    assert proof.leaf == fetch(client, "/log/entry/300").data
    assert json.loads(proof.leaf)["id"] == filled[300].entry_id


def test_tiles_and_entries_may_be_kept_for_ever(client, filled):
    for address in ("tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/001", "entry/0"):
        response = fetch(client, f"/log/{address}")
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert len(fetch(client, "/log/tile/0/000").data) == 8192
    assert fetch(client, "/log/tile/0/000.p/7").data == fetch(client, "/log/tile/0/000").data[: 7 * 32]


@pytest.mark.parametrize(
    "address",
    [
        "tile/0/002",
        "tile/0/002.p/89",
        "tile/0/003.p/1",
        "tile/1/000",
        "tile/2/000.p/1",
        "tile/0/0",
        "tile/0/x000/001",
        "tile/64/000",
        "tile/entries/003",
        "tile/entries/1/000",
        "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
        "entry/600",
        "entry/99999999999999999999999",
        "entry/-1",
        "receipt/nobody",
        "receipt/a%00b",
    ],
)
def test_what_the_tree_does_not_have_is_not_there(client, filled, address):
    assert client.get(f"/log/{address}").status_code == 404


def test_an_empty_log_has_nothing_yet(client):
    for address in ("checkpoint", "tile/0/000", "tile/entries/000.p/1", "entry/0"):
        assert client.get(f"/log/{address}").status_code == 404


def test_the_privacy_office_reads_a_body_that_fits_its_leaf_and_that_is_recorded(client, log, filled):
    response = get(client, "/log/entry/7/body")
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    shown = response.json
    leaf = json.loads(client.get("/log/entry/7").data)
    assert leaf["commit"] == hashlib.sha256(bytes.fromhex(shown["salt"]) + shown["body"].encode()).hexdigest()
    assert (shown["index"], shown["id"], json.loads(shown["body"])["id"]) == (7, leaf["id"], leaf["id"])
    (looked,) = log.search(AuditQuery(limit=1)).entries
    assert looked.kind == "log-read"
    assert looked.person_id == "person-7"
    assert f"AuditEvent/{leaf['id']}" in looked.body.decode()
    proof = Proof.parse(client.get(response.headers["HIE-Receipt"].removeprefix("https://hie.example")).data)
    assert proof.index == looked.index == 600


def test_a_body_is_for_privacy_officers_with_the_scope_alone_and_refusals_are_recorded(client, log, filled):
    assert client.get("/log/entry/7/body").status_code == 401
    for name in ("member", "searcher"):
        assert get(client, "/log/entry/7/body", name).status_code == 403
    assert [entry.kind for entry in log.search(AuditQuery(limit=2)).entries] == ["denial", "denial"]
    assert get(client, "/log/entry/5000/body").status_code == 404
    assert log.search(AuditQuery(limit=1)).entries[0].kind == "log-read"


def test_looking_at_the_log_is_an_answer_with_a_receipt(client, filled):
    for address in ("/fhir/AuditEvent?patient=person-1", f"/fhir/AuditEvent/{filled[0].entry_id}"):
        response = get(client, address)
        given = response.headers["HIE-Receipt"]
        assert Proof.parse(client.get(given.removeprefix("https://hie.example")).data).index >= 600
