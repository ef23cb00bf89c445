"""Proofs that an entry is in the log, as a recipient keeps and checks them, with nobody to ask."""

import pytest

from hie.audit.checkpoint import Checkpoint, Proof
from hie.audit.note import COSIGNATURE, NoteError, SigningKey
from hie.audit.tables import cosignatures
from tests.audit.samples import disclosure, seal


@pytest.fixture
def receipts(log):
    return [receipt for _ in range(9) for receipt in log.record(*(disclosure(f"p{n}") for n in range(31)))]


def test_every_entry_has_a_proof_that_verifies_offline(log, receipts, tmp_path):
    key = seal(tmp_path).ring().keys[0].key
    for receipt in receipts:
        raw = bytes(log.evidence.proof(receipt.entry_id))
        proof = Proof.parse(raw)
        assert bytes(proof) == raw
        assert (proof.index, proof.signed.size) == (receipt.index, 279)
        assert proof.leaf == log.entry(receipt.index).leaf
        proof.require_included()
        proof.signed.require_signer([key])
    assert log.evidence.proof("nobody") is None


def test_a_proof_is_written_as_c2sp_says(log, receipts):
    raw = bytes(log.evidence.proof(receipts[5].entry_id))
    head, note = raw.split(b"\n\n", 1)
    lines = head.decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1].startswith("extra ")
    assert lines[2] == "index 5"
    assert note == log.evidence.checkpoint()


def test_a_changed_proof_does_not_verify(log, receipts):
    raw = bytes(log.evidence.proof(receipts[5].entry_id))
    other = bytes(log.evidence.proof(receipts[6].entry_id))
    own_lines, other_lines = raw.split(b"\n"), other.split(b"\n")
    for place in (1, 3, 4):
        changed = b"\n".join([*own_lines[:place], other_lines[place], *own_lines[place + 1 :]])
        if changed != raw:
            with pytest.raises(NoteError, match="does not lead"):
                Proof.parse(changed).require_included()
    with pytest.raises(NoteError, match="does not lead"):
        Proof.parse(raw.replace(b"index 5", b"index 4")).require_included()


@pytest.mark.parametrize(
    "change",
    [
        (b"@v1", b"@v2"),
        (b"index 5", b"index 05"),
        (b"index 5", b"index"),
        (b"extra ", b"extra"),
        (b"\nindex", b"\nindex 1\nindex"),
        (b"\n\nhie", b"\nhie"),
    ],
)
def test_other_texts_are_no_proof(log, receipts, change):
    raw = bytes(log.evidence.proof(receipts[5].entry_id))
    with pytest.raises(NoteError):
        Proof.parse(raw.replace(*change))


def test_a_proof_is_under_the_newest_cosigned_checkpoint_that_has_the_entry(database, log, receipts):
    witness = SigningKey.generate("w.example/1", COSIGNATURE)
    text = str(Checkpoint.parse(log.evidence.checkpoint().split(b"\n\n")[0].decode() + "\n"))
    line = str(witness.cosign(text, 1_700_000_000))
    with database.write() as connection:
        row = {"tree_size": 279, "witness": "w.example/1+00000000", "line": line.encode()}
        connection.execute(cosignatures.insert().values(row))
    log.record(disclosure())
    proof = log.evidence.proof(receipts[0].entry_id)
    assert proof.signed.size == 279
    assert witness.verifier in proof.signed.note.signers([witness.verifier])
    (newest,) = log.record(disclosure())
    assert log.evidence.proof(newest.entry_id).signed.size == 281
