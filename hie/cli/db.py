"""`hie db upgrade`, `hie db check`, `hie db grants`."""

from __future__ import annotations

import sys

import click
import sqlalchemy as sa

from hie.audit.log import AuditLog
from hie.audit.seal import Seal
from hie.cli import grants
from hie.core import schema
from hie.core.clock import system_clock
from hie.core.config import Settings
from hie.core.database import Database, ensure_parent
from hie.core.errors import ConfigurationError, LogDamaged

BEFORE_THE_TREE = "0001"
"""The version whose log had entries and no checkpoints."""


@click.group()
def db() -> None:
    """The database schema."""


@db.command()
def upgrade() -> None:
    """Bring the schema to the version this release needs.

    Entries of the disclosure log from before it had a tree are checked, signed as they stand and counted; this is done
    in the upgrade that makes the tree's tables, and never again.
    """
    settings = Settings.load()
    database = _database()
    log = AuditLog(database, system_clock, settings.fhir_base, Seal.of(settings))
    adopted = 0

    def adopt(connection: sa.Connection, before: str | None) -> None:
        nonlocal adopted
        if before == BEFORE_THE_TREE:
            adopted = log.adopt(connection)

    try:
        before = schema.current_revision(database)
        schema.upgrade(database, also=adopt)
    except sa.exc.OperationalError:
        raise ConfigurationError("The database of HIE_DATABASE_URL cannot be reached.") from None
    except LogDamaged as damaged:
        raise ConfigurationError(f"The log was not adopted and nothing was changed: {damaged}.") from None
    after = schema.current_revision(database)
    click.echo("schema is current" if before == after else f"schema upgraded to {after}")
    if adopted:
        click.echo(f"{adopted:,} entries of the disclosure log adopted and signed as they stood")


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


@db.command(name="grants")
@click.argument("role")
@click.option("--apply", "now", is_flag=True, help="Run the statements instead of printing them.")
def grants_(role: str, now: bool) -> None:
    """What the PostgreSQL role that serves may do: in the disclosure log it can read and append, and nothing else.

    Run it as the role that owns the tables, after each `hie db upgrade`.
    """
    if not now:
        for statement in grants.statements(role):
            click.echo(f"{statement};")
        return
    database = _database()
    if database.is_sqlite:
        raise click.UsageError("SQLite has no roles.")
    grants.grant(database, role)
    click.echo(f"{role} can read and append to the disclosure log, and not change it")


def _database() -> Database:
    url = Settings.load().effective_database_url
    ensure_parent(url)
    return Database(url)
