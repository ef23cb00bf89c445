"""Signed notes and cosignatures held to what others have published and signed."""

import pytest

from hie.audit.checkpoint import Checkpoint, SignedCheckpoint
from hie.audit.note import COSIGNATURE, Note, NoteError, Signature, SigningKey, VerifierKey

# The example of golang.org/x/mod/sumdb/note.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
GO_NOTE = f"{GO_TEXT}\n— PeterNeumann {GO_SIGNATURE}\n".encode()

# The example of c2sp.org/signed-note.
C2SP_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
C2SP_NOTE = (
    b"This is an example message.\n\n\xe2\x80\x94 example.com/foo "
    b"Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)

# A checkpoint of a certificate transparency log, cosigned by a witness of the public network.
LOG_VKEY = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f"
WITNESS_VKEY = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
COSIGNED = (
    "arche2025h1.staging.ct.transparency.dev\n1432088532\nU7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=\n\n"
    "— arche2025h1.staging.ct.transparency.dev "
    "ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=\n"
    "— remora.n621.de "
    "2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==\n"
).encode()


@pytest.mark.parametrize(("vkey", "raw"), [(GO_VKEY, GO_NOTE), (C2SP_VKEY, C2SP_NOTE)])
def test_published_notes_verify_and_are_written_the_same(vkey, raw):
    key, note = VerifierKey.parse(vkey), Note.parse(raw)
    assert str(key) == vkey
    assert bytes(note) == raw
    assert note.signers([key]) == (key,)


def test_a_published_key_signs_byte_for_byte_what_was_published():
    key = SigningKey.parse(GO_SKEY)
    assert key.secret() == GO_SKEY
    assert str(key.verifier) == GO_VKEY
    assert bytes(Note(GO_TEXT, (key.sign(GO_TEXT),))) == GO_NOTE


def test_a_real_cosigned_checkpoint_verifies():
    log, witness = VerifierKey.parse(LOG_VKEY), VerifierKey.parse(WITNESS_VKEY)
    signed = SignedCheckpoint.parse(COSIGNED)
    assert signed.note.signers([log, witness]) == (log, witness)
    signed.require_signer([log])
    assert signed.checkpoint.size == 1432088532
    assert str(signed.checkpoint) == signed.note.text
    assert signed.note.signatures[1].timestamp == 1779573024
    with pytest.raises(NoteError, match="no known key"):
        signed.require_signer([witness])


def test_a_changed_text_is_not_signed_by_a_known_key_and_an_unknown_one_is_ignored():
    for raw, vkey in ((GO_NOTE, GO_VKEY), (COSIGNED, LOG_VKEY), (COSIGNED, WITNESS_VKEY)):
        changed = Note.parse(raw.replace(b"1432088532", b"1432088533").replace(b"cryptography", b"cryptographi"))
        with pytest.raises(NoteError, match="not over this text"):
            changed.signers([VerifierKey.parse(vkey)])
    assert Note.parse(COSIGNED).signers([VerifierKey.parse(GO_VKEY)]) == ()


def test_a_cosignature_says_when_and_no_other_time():
    key = SigningKey.generate("w.example/1", COSIGNATURE)
    signature = key.cosign(GO_TEXT, 1_700_000_000)
    assert signature.timestamp == 1_700_000_000
    assert key.verifier.accepts(GO_TEXT, signature)
    later = Signature(signature.name, signature.key_id, (1_700_000_001).to_bytes(8, "big") + signature.value[8:])
    assert not key.verifier.accepts(GO_TEXT, later)
    assert not key.verifier.accepts(GO_TEXT, Signature(signature.name, signature.key_id, b"short"))


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3+",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW=",
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ],
)
def test_other_spellings_are_no_key(vkey):
    with pytest.raises(NoteError):
        VerifierKey.parse(vkey)
    with pytest.raises(NoteError) as refused:
        SigningKey.parse(f"PRIVATE+KEY+{vkey}")
    assert "ARpc2" not in str(refused.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"text\n",
        b"text\n\n",
        GO_NOTE[:-1],
        GO_NOTE + b"\n",
        GO_NOTE + b"no signature\n",
        GO_NOTE.replace(b"\xe2\x80\x94", b"-"),
        GO_NOTE.replace(b"If", b"If\x00"),
        GO_NOTE.replace(b"If", b"If\r"),
        GO_NOTE.replace(b"If", b"If\xff"),
        GO_NOTE.replace(b"nAM=", b"nAN="),
        GO_NOTE + GO_NOTE.split(b"\n\n")[1] * 64,
        GO_TEXT.encode() * 1000 + GO_NOTE,
    ],
)
def test_other_bytes_are_no_note(raw):
    with pytest.raises(NoteError):
        Note.parse(raw)


ROOT = "U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro="


@pytest.mark.parametrize(
    "text",
    [
        f"log\n1\n{ROOT}",
        f"log\n\n1\n{ROOT}\n",
        f"\n1\n{ROOT}\n",
        f"log\n01\n{ROOT}\n",
        f"log\n-1\n{ROOT}\n",
        f"log\n١\n{ROOT}\n",
        f"log\n{'9' * 20}\n{ROOT}\n",
        f"log\n1\n{ROOT[4:]}\n",
        "log\n1\n",
        f"log\n1\n{ROOT}\nextended\n\n",
    ],
)
def test_other_texts_are_no_checkpoint(text):
    with pytest.raises(NoteError):
        Checkpoint.parse(text)
    assert Checkpoint.parse(f"log\n1\n{ROOT}\nextension\n").size == 1
