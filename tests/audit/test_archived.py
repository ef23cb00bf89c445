"""A log with archived bodies still verifies, and says which part of it can only be held against the archives."""

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from hie.audit.note import VerifierKey
from hie.audit.tables import entries
from hie.audit.tables_officer import archives
from hie.audit.verify import Wrong, verify
from tests.audit.attack import attacking
from tests.audit.samples import disclosure, seal
from tests.audit.test_api import client
from tests.audit.test_verify_log import run

__all__ = ["client"]

OLD = datetime(2015, 3, 1, 8, tzinfo=UTC)


@pytest.fixture
def archived(database, log, clock, tmp_path):
    """Ten entries of eleven years ago, of which an archive holds five, and ten of today."""
    now = clock.now
    clock.now = OLD
    log.record(*(disclosure(f"person-{n}") for n in range(10)))
    clock.now = now
    log.record(*(disclosure(f"person-{n}") for n in range(10)))
    row = {"id": "a", "first_index": 2, "last_index": 6, "entries": 5, "sha256": "0" * 64, "written": now}
    with database.write() as connection:
        connection.execute(archives.insert().values(row))
        within = entries.c.entry_index.between(2, 6)
        connection.execute(entries.update().where(within).values(body=b"", salt=b""))
    return log


def test_the_leaves_of_archived_entries_verify(database, archived, tmp_path):
    report = verify(database.url, seal(tmp_path).ring(), processes=1)
    assert (report.entries, report.archived) == (20, 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DELETE FROM audit_archives", "index 2: the body is gone, and no archive holds it"),
        ("UPDATE audit_entries SET kind = 'feed' WHERE entry_index = 4", "index 4: the leaf is not that of id"),
        ("UPDATE audit_entries SET salt = leaf WHERE entry_index = 4", "index 4: the leaf is not that of"),
        ("UPDATE audit_entries SET leaf_hash = salt WHERE entry_index = 4", "index 4: the stored hash is not"),
    ],
)
def test_what_is_left_of_an_archived_entry_cannot_be_changed(database, archived, tmp_path, change, said):
    with attacking(database) as connection:
        connection.execute(sa.text(change))
    with pytest.raises(Wrong) as wrong:
        verify(database.url, seal(tmp_path).ring(), processes=1)
    assert str(wrong.value).startswith(said)


def test_an_export_with_archived_entries_verifies_outside(archived, tmp_path):
    (key,) = archived.evidence.public_keys()
    assert isinstance(key, VerifierKey)
    path = tmp_path / "log.ndjson"
    path.write_bytes(b"".join(archived.evidence.export()))
    done = run(path, "--key", key)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("verified: 20 entries")


def test_an_archived_event_shows_and_proves_what_is_left_of_it(archived, client, tmp_path):
    (key,) = archived.evidence.public_keys()
    path = tmp_path / "event.json"
    headers = {"Authorization": "Bearer officer"}
    path.write_bytes(client.get(f"/fhir/AuditEvent/{archived.entry(4).entry_id}", headers=headers).data)
    done = run(path, "--key", key)
    assert (
        done.stdout == "verified: 1 AuditEvents, each the body of its entry, of 1 archived ones id and time alone: 4\n"
    )
    path.write_text(path.read_text().replace('"recorded":"2015', '"recorded":"2014'))
    assert "index 4: the event is of another entry" in run(path, "--key", key).stderr
