"""`/fhir/AuditEvent` as a privacy officer's client sees it, and a patient's app."""

import base64
import copy
import json
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from fhir.resources.R4B.bundle import Bundle
from flask import Flask

from hie.audit.accounting import Accounting
from hie.audit.checkpoint import Proof, SignedCheckpoint
from hie.audit.entry import canonical, commitment
from hie.audit.event import Kind, Outcome
from hie.audit.merkle import leaf_hash, verify_inclusion
from hie.audit.note import COSIGNATURE, Note, SigningKey
from hie.audit.query import AuditQuery
from hie.audit.suspensions import Suspension, suspend
from hie.audit.tables import cosignatures
from hie.core.caller import Role
from hie.core.errors import AuditUnavailable, Unauthorized
from hie.core.scopes import Scopes
from hie.gateway.api import audit, context, problems
from hie.gateway.api import log as log_routes
from tests.audit.samples import BASE, START, Clock, caller, disclosure

CALLERS = {
    "officer": caller(
        organization="exchange",
        organization_name="The exchange",
        role=Role.PRIVACY_OFFICER,
        client_id="privacy-office",
        purposes=frozenset({"HOPERAT"}),
        scopes=Scopes.parse("system/AuditEvent.rs"),
    ),
    "searcher": caller(role=Role.PRIVACY_OFFICER, scopes=Scopes.parse("system/AuditEvent.s")),
    "patient": caller(
        organization="exchange",
        role=Role.PATIENT,
        client_id="portal",
        user_id="marta@mail.example",
        purposes=frozenset({"PATRQT"}),
        scopes=Scopes.parse("system/AuditEvent.rs"),
    ),
    "nobody": caller(
        organization="exchange",
        role=Role.PATIENT,
        client_id="portal",
        subject_id=None,
        scopes=Scopes.parse("system/AuditEvent.rs"),
    ),
    "unbound": caller(
        organization="exchange",
        role=Role.PATIENT,
        user_id="new@mail.example",
        scopes=Scopes.parse("system/AuditEvent.rs"),
    ),
    "member": caller(scopes=Scopes.parse("system/*.cruds")),
}


@dataclass(frozen=True)
class Record:
    person_id: str


class Authority:
    def caller(self, authorization, *, address):
        name = authorization.removeprefix("Bearer ")
        if name not in CALLERS:
            raise Unauthorized("A token is needed.")
        return CALLERS[name]


class Identity:
    """One person who was merged: `person-old` is now `person-1`, known at Lakeside as m-1."""

    def person(self, person_id):
        return SimpleNamespace(id="person-1", resource={}) if person_id in ("person-1", "person-old") else None

    def person_ids(self, person_id):
        return ("person-1", "person-old")

    def source_record(self, identifier):
        return Record("person-1") if (identifier.system, identifier.value) == ("urn:oid:2.999.1.1", "m-1") else None


@pytest.fixture
def client(log, database):
    app = Flask("test")
    settings = SimpleNamespace(fhir_base=BASE, base_url=BASE.removesuffix("/fhir"))
    accounting = Accounting(database, Clock())
    app.extensions["hie"] = SimpleNamespace(
        settings=settings,
        authority=Authority(),
        identity=Identity(),
        audit=log,
        accounting=accounting,
        own_person={"marta@mail.example": "person-1"}.get,
    )
    context.install(app)
    problems.install(app)
    app.register_blueprint(audit.blueprint)
    app.register_blueprint(log_routes.blueprint)
    return app.test_client()


def get(client, address, name="officer", **headers):
    return client.get(address, headers={"Authorization": f"Bearer {name}", **headers})


def links(bundle):
    return {link["relation"]: link["url"] for link in bundle["link"]}


def ids(bundle):
    return [entry["resource"]["id"] for entry in bundle.get("entry", [])]


def test_a_search_gives_a_valid_searchset_newest_first(client, log):
    receipts = log.record(disclosure("person-1"), disclosure("person-2"))
    response = get(client, "/fhir/AuditEvent")
    assert response.status_code == 200
    assert response.mimetype == "application/fhir+json"
    assert response.headers["Cache-Control"] == "no-store"
    bundle = response.json
    Bundle.model_validate(bundle)
    assert (bundle["type"], bundle["total"]) == ("searchset", 2)
    assert ids(bundle) == [receipts[1].entry_id, receipts[0].entry_id]
    assert bundle["entry"][0]["fullUrl"] == f"{BASE}/AuditEvent/{receipts[1].entry_id}"
    assert bundle["entry"][0]["search"] == {"mode": "match"}
    assert links(bundle) == {"self": f"{BASE}/AuditEvent"}


@pytest.mark.parametrize(
    "asked", ["patient=Patient/person-1", "patient=person-old", "patient.identifier=urn:oid:2.999.1.1%7Cm-1"]
)
def test_a_patient_search_covers_merged_identities(client, log, asked):
    log.record(disclosure("person-1"), disclosure("person-2"), disclosure("person-old"))
    assert get(client, f"/fhir/AuditEvent?{asked}").json["total"] == 2


def test_the_entries_of_a_person_the_index_does_not_know_are_still_found(client, log):
    log.record(disclosure("person-9"))
    assert get(client, "/fhir/AuditEvent?patient=person-9").json["total"] == 1


def test_the_form_finds_the_same_as_the_address(client, log):
    log.record(disclosure("person-1"), disclosure("person-2"))
    response = client.post(
        "/fhir/AuditEvent/_search", data={"patient": "person-2"}, headers={"Authorization": "Bearer officer"}
    )
    assert response.json["total"] == 1
    assert links(response.json)["self"] == f"{BASE}/AuditEvent?patient=person-2"
    assert b"patient=person-2" in request_of(log.search(AuditQuery()).entries[0])


def request_of(entry):
    (query,) = [e["query"] for e in entry.resource["entity"] if "query" in e]
    return base64.b64decode(query)


def test_pages_follow_absolute_links_to_the_end(client, log):
    receipts = log.record(*(disclosure("person-1") for _ in range(5)))
    address, seen = "/fhir/AuditEvent?patient=person-1&_count=2&nonsense=1", []
    while address:
        bundle = get(client, address).json
        assert bundle["total"] == 5
        assert dict(parse_qsl(urlsplit(links(bundle)["self"]).query)) == {"patient": "person-1", "_count": "2"}
        seen += ids(bundle)
        following = links(bundle).get("next", "")
        assert following == "" or following.startswith(f"{BASE}/AuditEvent?")
        address = following.removeprefix("https://hie.example")
    assert seen == [receipt.entry_id for receipt in reversed(receipts)]


def carried(event):
    """Index, salt and proof that an AuditEvent carries, and the event without them."""
    (extension,) = event["extension"]
    assert extension["url"] == f"{BASE}/StructureDefinition/log-proof"
    parts = {part.pop("url"): next(iter(part.values())) for part in copy.deepcopy(extension["extension"])}
    salt, proof = base64.b64decode(parts["salt"]), Proof.parse(base64.b64decode(parts["proof"]))
    return parts["index"], salt, proof, {name: value for name, value in event.items() if name != "extension"}


def test_an_entry_is_given_as_the_log_committed_to_it_with_its_proof(client, log):
    *_, receipt = log.record(*(disclosure(f"person-{n}") for n in range(300)))
    response = get(client, f"/fhir/AuditEvent/{receipt.entry_id}")
    assert response.status_code == 200
    AuditEvent.model_validate(response.json)
    index, salt, proof, event = carried(response.json)
    body = log.entry(receipt.index).body
    assert canonical(event) == body
    assert index == proof.index == receipt.index
    assert json.loads(proof.leaf)["commit"] == commitment(salt, body)


def test_each_event_of_a_page_carries_its_index_and_a_proof_that_holds(client, log):
    log.record(*(disclosure(f"person-{n % 7}") for n in range(300)))
    checkpoint = SignedCheckpoint.parse(client.get("/log/checkpoint").data)
    bundle = get(client, "/fhir/AuditEvent?patient=person-3&_count=500").json
    Bundle.model_validate(bundle)
    found = [carried(entry["resource"]) for entry in bundle["entry"]]
    assert [index for index, *_ in found] == [n for n in reversed(range(300)) if n % 7 == 3]
    for index, salt, proof, event in found:
        proof.signed.require_signer(log.evidence.public_keys())
        assert proof.signed.size >= checkpoint.size
        assert verify_inclusion(leaf_hash(proof.leaf), index, proof.signed.size, proof.proof, proof.signed.root)
        assert json.loads(proof.leaf)["commit"] == commitment(salt, canonical(event))


def test_the_proof_is_under_the_cosigned_checkpoint_where_that_covers_the_entry(client, log, database):
    log.record(disclosure("person-1"))
    witness = SigningKey.generate("w.example/1", COSIGNATURE)
    line = str(witness.cosign(Note.parse(log.evidence.checkpoint()).text, 1_800_000_000)).encode()
    with database.write() as connection:
        connection.execute(cosignatures.insert().values(tree_size=1, witness="w.example/1+00000000", line=line))
    log.record(disclosure("person-1"))
    bundle = get(client, "/fhir/AuditEvent?patient=person-1").json
    found = [carried(entry["resource"])[2] for entry in bundle["entry"]]
    assert [(proof.index, len(proof.signed.note.signatures)) for proof in found] == [(1, 1), (0, 2)]


@pytest.mark.parametrize("entry_id", ["abcdefghijklmnopqrstuvwxyz", "%00", "a" * 500])
def test_an_entry_that_is_not_there_is_not_found(client, entry_id):
    response = get(client, f"/fhir/AuditEvent/{entry_id}")
    assert response.status_code == 404
    assert response.json["resourceType"] == "OperationOutcome"


def test_reading_the_log_is_itself_an_entry(client, log):
    (receipt,) = log.record(disclosure("person-old"))
    get(client, "/fhir/AuditEvent?patient=person-1", **{"X-Request-Id": "look-1"})
    get(client, f"/fhir/AuditEvent/{receipt.entry_id}", **{"X-Request-Id": "look-2"})
    reading, searching, _ = log.search(AuditQuery()).entries
    assert (searching.kind, searching.person_id) == ("log-read", "person-1")
    assert request_of(searching) == b"GET /fhir/AuditEvent?patient=person-1"
    assert searching.resource["outcomeDesc"] == "1 of 1 entries shown"
    assert (reading.kind, reading.person_id) == ("log-read", "person-old")
    assert log.search(AuditQuery(request_ids=(("look-2",),))).entries == (reading,)
    assert log.search(AuditQuery(entities=((f"AuditEvent/{receipt.entry_id}",),))).entries == (reading,)


def test_a_patient_finds_who_looked_at_her_and_nothing_of_others(client, log):
    own, other, earlier, filed, failed = (
        receipt.entry_id
        for receipt in log.record(
            disclosure("person-1"),
            disclosure("person-2"),
            disclosure("person-old"),
            disclosure("person-1", kind=Kind.CONSENT),
            disclosure("person-1", kind=Kind.FAILURE, outcome=Outcome.SERIOUS),
        )
    )
    for address in ("/fhir/AuditEvent", "/fhir/AuditEvent?patient=person-1", "/fhir/AuditEvent?patient=person-old"):
        bundle = get(client, address, "patient").json
        assert (ids(bundle), bundle["total"]) == ([failed, earlier, own], 3)
    for address in (
        "/fhir/AuditEvent?patient=person-2",
        f"/fhir/AuditEvent?_id={other}",
        "/fhir/AuditEvent?date=gt2199",
    ):
        bundle = get(client, address, "patient").json
        assert (ids(bundle), bundle["total"]) == ([], 0)
    assert get(client, f"/fhir/AuditEvent/{own}", "patient").json["id"] == own
    for hidden in (other, filed, "abcdefghijklmnopqrstuvwxyz"):
        response = get(client, f"/fhir/AuditEvent/{hidden}", "patient")
        assert response.status_code == 404
    looks = log.search(AuditQuery(kinds=(("log-read",),))).entries
    assert {look.person_id for look in looks} == {"person-1"}


def test_what_is_kept_out_of_an_accounting_is_kept_from_the_patient(client, log, database):
    at_police, at_lakeside = log.record(
        disclosure("person-1", caller=caller(organization="police")), disclosure("person-1")
    )
    with database.write() as connection:
        standing = Suspension("person-old", "police", START, START + timedelta(days=5), "State police", written=True)
        suspend(connection, standing, "officer@exchange.example", START)
    bundle = get(client, "/fhir/AuditEvent", "patient").json
    assert (ids(bundle), bundle["total"]) == ([at_lakeside.entry_id], 1)
    assert get(client, f"/fhir/AuditEvent/{at_police.entry_id}", "patient").status_code == 404
    assert at_police.entry_id in ids(get(client, "/fhir/AuditEvent").json)


def test_nothing_is_shown_when_the_look_cannot_be_recorded(client, log, monkeypatch):
    (receipt,) = log.record(disclosure("person-1"))

    def fails(*_events):
        raise AuditUnavailable

    monkeypatch.setattr(log, "record", fails)
    for address in ("/fhir/AuditEvent", f"/fhir/AuditEvent/{receipt.entry_id}"):
        response = get(client, address)
        assert response.status_code == 503
        assert b"person-1" not in response.data


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("member", "/fhir/AuditEvent"),
        ("member", "/fhir/AuditEvent/abc"),
        ("searcher", "/fhir/AuditEvent/abc"),
        ("nobody", "/fhir/AuditEvent?patient=person-1"),
        ("unbound", "/fhir/AuditEvent"),
    ],
)
def test_others_are_refused_and_the_attempt_recorded_once(client, log, name, address):
    response = get(client, address, name)
    assert response.status_code == 403
    (entry,) = log.search(AuditQuery()).entries
    assert entry.kind == "denial"
    assert entry.resource["outcome"] == "4"
    assert request_of(entry) == f"GET {address}".encode()


def test_without_a_token_nothing_is_shown(client):
    response = client.get("/fhir/AuditEvent")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_parameter_without_meaning_is_refused_by_name(client):
    response = get(client, "/fhir/AuditEvent?date=yesterday")
    assert response.status_code == 400
    assert "date" in response.json["issue"][0]["diagnostics"]


@pytest.mark.parametrize(
    ("address", "accept", "status"),
    [
        ("/fhir/AuditEvent", "application/fhir+json", 200),
        ("/fhir/AuditEvent", "application/json;q=0.9, text/html;q=0.1", 200),
        ("/fhir/AuditEvent", "*/*", 200),
        ("/fhir/AuditEvent", "application/fhir+xml", 406),
        ("/fhir/AuditEvent?_format=json", "application/fhir+xml", 200),
        ("/fhir/AuditEvent?_format=application/fhir+json", "*/*", 200),
        ("/fhir/AuditEvent?_format=xml", "*/*", 406),
    ],
)
def test_entries_are_given_as_json_only(client, address, accept, status):
    assert get(client, address, Accept=accept).status_code == status
