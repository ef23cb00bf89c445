"""`hie db upgrade`, `hie db check`."""

from __future__ import annotations

import sys

import click
import sqlalchemy as sa

from hie.core import schema
from hie.core.config import Settings
from hie.core.database import Database, ensure_parent
from hie.core.errors import ConfigurationError


@click.group()
def db() -> None:
    """The database schema."""


@db.command()
def upgrade() -> None:
    """Bring the schema to the version this release needs."""
    database = _database()
    try:
        before = schema.current_revision(database)
        schema.upgrade(database)
    except sa.exc.OperationalError:
        raise ConfigurationError("The database of HIE_DATABASE_URL cannot be reached.") from None
    after = schema.current_revision(database)
    click.echo("schema is current" if before == after else f"schema upgraded to {after}")


@db.command()
def check() -> None:
    """Exit 1 when the schema is behind."""
    try:
        current = schema.is_current(_database())
    except sa.exc.OperationalError:
        raise ConfigurationError("The database of HIE_DATABASE_URL cannot be reached.") from None
    if not current:
        click.echo("schema is behind: run `hie db upgrade`", err=True)
        sys.exit(1)
    click.echo("schema is current")


def _database() -> Database:
    url = Settings.load().effective_database_url
    ensure_parent(url)
    return Database(url)
