"""The database schema: Alembic migrations, applied by `hie db upgrade`, checked by `hie db check` and at start-up."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from hie.core.database import Database
from hie.core.errors import ConfigurationError

_MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(database: Database) -> None:
    """Bring the schema to the newest version, in one transaction."""
    with database.write() as connection:
        command.upgrade(_config(connection), "head")


def current_revision(database: Database) -> str | None:
    """The version the database is at; None for an empty one."""
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """The version this release needs."""
    revision = ScriptDirectory(str(_MIGRATIONS)).get_current_head()
    if revision is None:
        raise ConfigurationError("This installation has no migrations; install hie again.")
    return revision


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


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config
