"""The database schema: Alembic migrations, applied by `hie db upgrade`, checked by `hie db check` and at start-up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from hie.core.database import Database
from hie.core.errors import ConfigurationError

_MIGRATIONS = Path(__file__).parent / "migrations"
_VERSION = sa.table("alembic_version", sa.column("version_num", sa.String))


Also = Callable[[sa.Connection, str | None], None]
"""Called with the open transaction after an upgrade, and the version before it (None where there was nothing)."""


def upgrade(database: Database, *, to: str = "head", also: Also = lambda _connection, _before: None) -> None:
    """Bring the schema to the newest version, and the data with it, in one transaction."""
    # Imported here: a server asks for the version only, and Alembic would lengthen its start.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with database.write() as connection:
        config.attributes["connection"] = connection
        before = _revision(connection)
        command.upgrade(config, to)
        also(connection, before)


def current_revision(database: Database) -> str | None:
    """The version the database is at; None for an empty one."""
    with database.read() as connection:
        return _revision(connection)


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(_VERSION.name):
        return None
    revision: str | None = connection.scalar(sa.select(_VERSION.c.version_num))
    return revision


def newest_revision() -> str:
    """The version this release needs: revisions are numbered files in one line."""
    return max(path.stem for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def is_current(database: Database) -> bool:
    """Whether the schema is the one this release needs."""
    return current_revision(database) == newest_revision()


def require_current(database: Database) -> None:
    """Raises ConfigurationError, saying what to do, where the schema is behind (or the database cannot be reached)."""
    try:
        current = is_current(database)
    except sa.exc.DBAPIError:
        raise ConfigurationError("The database of HIE_DATABASE_URL cannot be reached.") from None
    if not current:
        raise ConfigurationError("The database schema is not current: run `hie db upgrade`.")
