"""The exchange's database as a command opens it, for one short-lived process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property

from hie.audit.log import AuditLog
from hie.audit.seal import Seal
from hie.core import schema
from hie.core.clock import system_clock
from hie.core.config import Settings
from hie.core.database import Database, ensure_parent
from hie.gateway.directory import Directory
from hie.mpi.identity import IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model


@dataclass(frozen=True)
class Opened:
    """What every command of an exchange works with; the log takes a thread only when it is written to."""

    settings: Settings
    database: Database
    audit: AuditLog

    @cached_property
    def directory(self) -> Directory:
        return Directory(self.database, system_clock, self.settings)

    @cached_property
    def index(self) -> MatchIndex:
        return MatchIndex(Model.load(self.settings.match_model), self.database.is_sqlite)

    @cached_property
    def identity(self) -> IdentityService:
        return IdentityService(self.database, self.index, system_clock)


@contextmanager
def opened() -> Iterator[Opened]:
    """Raises ConfigurationError, telling `hie db upgrade`, where the schema is behind."""
    settings = Settings.load()
    ensure_parent(settings.effective_database_url)
    with closing(Database(settings.effective_database_url)) as database:
        schema.require_current(database)
        with closing(AuditLog(database, system_clock, settings.fhir_base, Seal.of(settings))) as audit:
            yield Opened(settings, database, audit)
