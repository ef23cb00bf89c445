import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import hie.tables  # noqa: F401
from hie.core import schema
from hie.core.database import Database, metadata


def _guards(database):
    """Triggers by name with their text."""
    sqlite = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    postgresql = "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"
    with database.read() as connection:
        rows = connection.execute(sa.text(sqlite if database.is_sqlite else postgresql)).all()
    return dict(tuple(row) for row in rows)


def test_the_migrations_make_just_what_the_tables_say(database, tmp_path, request):
    if database.is_sqlite:
        migrated = Database(f"sqlite:///{tmp_path / 'migrated.sqlite'}")
    else:
        migrated = Database(request.getfixturevalue("new_postgres_database")())
    assert schema.current_revision(migrated) is None
    assert not schema.is_current(migrated)
    schema.upgrade(migrated)
    assert schema.is_current(migrated)
    schema.upgrade(migrated)  # nothing to do
    with migrated.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    assert _guards(migrated) == _guards(database)
    assert len(_guards(migrated)) > 10
    migrated.close()
