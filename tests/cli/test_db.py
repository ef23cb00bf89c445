"""`hie db`: the schema, the adoption of entries from before the tree, and the grants of the serving role."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa

from hie.audit.entry import draft
from hie.audit.log import AuditLog
from hie.audit.rows import insert_entries
from hie.audit.seal import Seal
from hie.core import schema
from hie.core.clock import system_clock
from hie.core.database import Database
from hie.core.errors import LogDamaged
from tests.audit.attack import attacking
from tests.audit.samples import BASE, START, disclosure
from tests.cli.test_apply import Hie, bare_hie

__all__ = ["bare_hie"]


@pytest.fixture
def old(database_url: str) -> Database:
    """A database of version 0001 with 300 entries."""
    database = Database(database_url)
    schema.upgrade(database, to="0001")
    with database.write() as connection:
        insert_entries(connection, 0, [draft(disclosure(f"person-{n}"), START, BASE) for n in range(300)])
    return database


def log_of(database: Database, home: Path) -> AuditLog:
    return AuditLog(database, system_clock, BASE, Seal(home / "var", ""))


def test_entries_from_before_the_tree_are_adopted_once_with_the_upgrade(
    old: Database, bare_hie: Hie, tmp_path: Path
) -> None:
    said = bare_hie("db", "upgrade")
    assert (said.code, said.err) == (0, "")
    assert "300 entries of the disclosure log adopted" in said.out
    log = log_of(old, tmp_path)
    log.check()
    adopting = log.entry(300)
    assert adopting is not None
    assert "300 entries from before" in adopting.resource["outcomeDesc"]
    assert log.record(disclosure())[0].index == 301
    assert "adopted" not in bare_hie("db", "upgrade").out
    log.close()
    old.close()


def test_an_edited_entry_is_not_adopted(old: Database, bare_hie: Hie, tmp_path: Path) -> None:
    with attacking(old) as connection:
        connection.execute(sa.text("UPDATE audit_entries SET kind = 'feed' WHERE entry_index = 17"))
    said = bare_hie("db", "upgrade")
    assert said.code == 2
    assert "entry 17 is not what its leaf says" in said.err
    assert said.err.count("\n") == 1
    assert schema.current_revision(old) == "0001"
    old.close()


def test_a_log_that_was_signed_before_is_not_adopted_again(old: Database, bare_hie: Hie, tmp_path: Path) -> None:
    """Somebody takes away the checkpoints, to have another history signed at the next upgrade."""
    bare_hie("db", "upgrade")
    log = log_of(old, tmp_path)
    with attacking(old) as connection:
        for table in ("audit_cosignatures", "audit_checkpoints", "audit_tiles"):
            connection.execute(sa.text(f"DELETE FROM {table}"))
    with pytest.raises(LogDamaged, match="cannot be adopted again"), old.write() as connection:
        log.adopt(connection)
    log.close()
    old.close()


def test_entries_without_checkpoints_do_not_serve(old: Database, bare_hie: Hie, tmp_path: Path) -> None:
    """The migrations alone, without the command, adopt nothing."""
    schema.upgrade(old)
    said = bare_hie("serve")
    assert said.code == 1
    assert "there are 300 entries, and the newest checkpoint is of 0" in said.err
    assert said.err.count("\n") == 1
    old.close()


def test_the_granted_role_serves_and_cannot_change_the_log(database_url: str, bare_hie: Hie, tmp_path: Path) -> None:
    database, hie = Database(database_url), bare_hie
    if database.is_sqlite:
        pytest.skip("SQLite has no roles")
    assert hie("db", "upgrade").code == 0
    role = f"serving-{uuid.uuid4().hex[:8]}"
    assert "no role" in hie("db", "grants", role, "--apply").err
    with database.write() as connection:
        connection.execute(sa.text(f'CREATE ROLE "{role}" LOGIN'))
    assert hie("db", "grants", role, "--apply").code == 0
    assert hie("db", "grants", role, "--apply").code == 0
    url = sa.make_url(database.url).set(username=role).render_as_string(hide_password=False)
    serving = Database(url)
    log = AuditLog(serving, system_clock, BASE, Seal(tmp_path, "hie.example/log"))
    log.record(*(disclosure() for _ in range(300)))
    log.check()
    for statement in (
        "UPDATE audit_entries SET kind = 'feed'",
        "DELETE FROM audit_checkpoints",
        "TRUNCATE audit_tiles",
        "DROP TRIGGER audit_entries_no_change ON audit_entries",
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "UPDATE alembic_version SET version_num = '0001'",
    ):
        with pytest.raises(sa.exc.ProgrammingError, match=r"permission denied|must be owner"), serving.write() as wire:
            wire.execute(sa.text(statement))
    log.close()
    serving.close()
    assert "owns the tables" in hie("db", "grants", "postgres", "--apply").err
    database.close()


def test_the_grants_can_be_read_before_they_are_run(database_url: str, bare_hie: Hie) -> None:
    said = bare_hie("db", "grants", 'odd"role')
    assert said.code == 0
    assert 'GRANT SELECT, INSERT ON audit_entries TO "odd""role";' in said.out
    assert 'GRANT SELECT, INSERT, UPDATE, DELETE ON members TO "odd""role";' in said.out
    if "sqlite" in database_url:
        assert bare_hie("db", "grants", "role", "--apply").code == 2
