"""`hie audit`, as an operator and an auditor type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from hie.audit.checkpoint import SignedCheckpoint
from hie.audit.log import AuditLog
from hie.audit.note import SigningKey, VerifierKey
from hie.audit.seal import Seal
from hie.core.clock import system_clock
from hie.core.database import Database, metadata
from tests.audit.attack import attacking, cut
from tests.audit.samples import BASE, disclosure
from tests.cli.test_apply import Hie, bare_hie, hie

__all__ = ["bare_hie", "hie"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "var"


@pytest.fixture
def database(database_url: str, hie: Hie) -> Database:
    return Database(database_url)


@pytest.fixture
def log(database: Database, home: Path) -> AuditLog:
    log = AuditLog(database, system_clock, BASE, Seal(home, "hie.example/log"))
    for _ in range(3):
        log.record(*(disclosure(f"person-{n}") for n in range(100)))
    log.close()
    return log


def test_a_sound_log_verifies_and_says_how_much_of_it(hie: Hie, log: AuditLog, home: Path) -> None:
    said = hie("audit", "verify")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        f"300 entries, root {root_of(log)}",
        "3 checkpoints signed by hie.example/log",
        "extends this host's high-water mark",
    ]
    told = json.loads(hie("audit", "verify", "--json").out)
    assert told == {
        "ok": True,
        "origin": "hie.example/log",
        "entries": 300,
        "root": root_of(log),
        "checkpoints": 3,
        "cosignatures": 0,
        "unknown_cosignatures": 0,
        "archived": 0,
    }


def root_of(log: AuditLog) -> str:
    note = log.evidence.checkpoint()
    assert note is not None
    return note.decode().split("\n")[2]


def test_an_edited_entry_is_named_in_one_line(hie: Hie, log: AuditLog, database: Database) -> None:
    with attacking(database) as connection:
        connection.execute(sa.text("UPDATE audit_entries SET person_id = 'another' WHERE entry_index = 123"))
    said = hie("audit", "verify")
    assert (said.code, said.out) == (1, "")
    line = "hie: the log does not verify: index 123: the column person_id is not what the entry says\n"
    assert said.err == line
    said = hie("audit", "verify", "--json")
    assert said.code == 1
    reason = "the column person_id is not what the entry says"
    assert json.loads(said.out) == {"ok": False, "index": 123, "reason": reason}


def test_a_kept_checkpoint_and_a_kept_receipt_find_what_was_cut_off(
    hie: Hie, log: AuditLog, database: Database, home: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text(hie("audit", "checkpoint").out)
    assert SignedCheckpoint.parse(kept.read_bytes()).size == 300
    receipt = tmp_path / "answer.tlog-proof"
    entry = log.entry(250)
    assert entry is not None
    receipt.write_bytes(bytes(log.evidence.proof(entry.entry_id) or b""))
    said = hie("audit", "verify", "--checkpoint", kept, "--checkpoint", receipt)
    assert said.code == 0
    assert "extends kept.txt of 300 entries" in said.out
    assert "extends answer.tlog-proof of 300 entries" in said.out
    with attacking(database) as connection:
        for name in ("audit_checkpoints", "audit_entries"):
            cut(connection, metadata.tables[name], 200)
        connection.execute(sa.text("DELETE FROM audit_tiles"))
    assert "index 200: the log ends here, and this host's high-water mark" in hie("audit", "verify").err
    (home / "log-high-water").unlink()
    assert hie("audit", "verify").code == 0  # nothing on this host tells any more
    for evidence in (kept, receipt):
        said = hie("audit", "verify", "--checkpoint", evidence)
        assert said.code == 1
        assert f"index 200: the log ends here, and {evidence.name} of 300 entries" in said.err


def test_an_auditor_brings_the_key(hie: Hie, log: AuditLog, home: Path, tmp_path: Path) -> None:
    public, stranger = tmp_path / "log.vkey", tmp_path / "other.vkey"
    public.write_text(f"{log.evidence.public_keys()[0]}\n")
    stranger.write_text(f"{SigningKey.generate('hie.example/log').verifier}\n")
    (home / "log-key").unlink()
    assert hie("audit", "verify", "--public-key", public).code == 0
    said = hie("audit", "verify", "--public-key", stranger)
    assert said.code == 1
    assert "index 0: the checkpoint of 100 entries is not good: no known key" in said.err
    said = hie("audit", "verify")
    assert said.code == 2
    assert "log-key is missing" in said.err
    stranger.write_text("nonsense")
    assert hie("audit", "verify", "--public-key", stranger).code == 2
    assert hie("audit", "verify", "--checkpoint", stranger, "--public-key", public).code == 2


def test_nothing_is_done_with_a_damaged_log(hie: Hie, log: AuditLog, database: Database) -> None:
    with attacking(database) as connection:
        cut(connection, metadata.tables["audit_checkpoints"], 200)
    for words in (("audit", "export"), ("audit", "rotate-key"), ("serve",)):
        said = hie(*words)
        assert said.code == 1
        assert "there are 300 entries, and the newest checkpoint is of 200" in said.err
        assert said.err.count("\n") == 1
    assert "index 200" in hie("audit", "verify").err


def test_an_empty_log_has_no_checkpoint_and_verifies(hie: Hie) -> None:
    assert hie("audit", "checkpoint").code == 1
    said = hie("audit", "export")
    assert said.code == 0
    assert [json.loads(line)["index"] for line in said.out.splitlines()[1:]] == [0]  # the export is itself an entry
    assert "1 entries" in hie("audit", "verify").out


def test_the_export_has_every_entry_with_its_proof_and_is_recorded(hie: Hie, log: AuditLog) -> None:
    said = hie("audit", "export")
    assert said.code == 0
    head, *lines = [json.loads(line) for line in said.out.splitlines()]
    assert head["format"] == "hie-log-export@v1"
    assert SignedCheckpoint.parse(head["checkpoint"].encode()).size == 301
    assert [line["index"] for line in lines] == list(range(301))
    entry = log.entry(7)
    assert entry is not None
    assert (lines[7]["body"].encode(), bytes.fromhex(lines[7]["salt"])) == (entry.body, entry.salt)
    assert "exported from the command line" in lines[300]["body"]
    said = hie("audit", "export", "--from", 300)
    assert [json.loads(line)["index"] for line in said.out.splitlines()[1:]] == [300, 301]


def test_the_key_is_changed_and_everything_still_verifies(hie: Hie, log: AuditLog, tmp_path: Path) -> None:
    before = tmp_path / "before.txt"
    before.write_text(hie("audit", "checkpoint").out)
    said = hie("audit", "rotate-key")
    assert said.code == 0
    new = VerifierKey.parse(said.out.strip())
    assert hie("audit", "verify", "--checkpoint", before).code == 0
    keys = tmp_path / "keys"
    keys.write_text("\n".join(str(key) for key in (new, *log.evidence.public_keys())))
    assert hie("audit", "verify", "--public-key", keys, "--checkpoint", before).code == 0
    keys.write_text(str(new))
    assert "index 0: the checkpoint of 100 entries" in hie("audit", "verify", "--public-key", keys).err


def test_a_key_from_the_setting_needs_a_file_for_the_next(
    hie: Hie, log: AuditLog, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIE_LOG_KEY", (home / "log-key").read_text())
    assert hie("audit", "rotate-key").code == 2
    assert hie("audit", "rotate-key", "--write", tmp_path / "next").code == 0
    assert (tmp_path / "next").stat().st_mode & 0o777 == 0o600
    assert "not signed with the log key of this host" in hie("serve").err
    monkeypatch.setenv("HIE_LOG_KEY", (tmp_path / "next").read_text())
    assert hie("audit", "verify").code == 0


@pytest.mark.parametrize("value", ["https://w.example", "https://w.example x", "ftp://w.example {}", "https://w {}"])
def test_witnesses_that_are_wrongly_set_stop_the_start(
    hie: Hie, log: AuditLog, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """No key, no key of any kind, no address, the key of a log."""
    monkeypatch.setenv("HIE_WITNESSES", value.format(log.evidence.public_keys()[0]))
    said = hie("serve")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "HIE_WITNESSES must be" in said.err


def test_without_witnesses_none_is_asked(hie: Hie) -> None:
    said = hie("audit", "cosign")
    assert said.code == 2
    assert "names no witness" in said.err
