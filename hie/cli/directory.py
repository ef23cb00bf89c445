"""The member directory as a command opens it: settings, database and services of one short-lived process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hie.audit.log import AuditLog
from hie.audit.seal import Seal
from hie.core import schema
from hie.core.clock import system_clock
from hie.core.config import Settings
from hie.core.database import Database, ensure_parent
from hie.gateway.directory import Directory


@dataclass(frozen=True)
class Opened:
    """What a command about members works with."""

    settings: Settings
    directory: Directory
    audit: AuditLog


@contextmanager
def opened() -> Iterator[Opened]:
    """Raises ConfigurationError, telling `hie db upgrade`, where the schema is behind."""
    settings = Settings.load()
    ensure_parent(settings.effective_database_url)
    database = Database(settings.effective_database_url)
    try:
        schema.require_current(database)
        audit = AuditLog(database, system_clock, settings.fhir_base, Seal.of(settings))
        yield Opened(settings, Directory(database, system_clock, settings), audit)
    finally:
        database.close()
