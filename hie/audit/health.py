"""Verifying the log from a page: started by a person, run in a thread, its progress kept where every worker sees it.

What verifies is handed in (`Verify`); this only runs it and remembers how it went. A verification whose process has
ended shows as broken off.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from hie.audit.tables import entries
from hie.audit.tables_officer import verifications
from hie.core.clock import Clock
from hie.core.database import Database
from hie.core.errors import Conflict
from hie.core.ids import new_id

log = logging.getLogger("hie.audit")

Progress = Callable[[int, int], None]
"""Entries done, entries in all."""

_SECONDS_BETWEEN_NOTES = 0.5
_BROKEN_OFF = timedelta(minutes=2)


@dataclass(frozen=True)
class Found:
    """What a verification found: one sentence, which names the first bad index where there is one."""

    ok: bool
    entries: int
    sentence: str


Verify = Callable[[Progress], Found]


@dataclass(frozen=True)
class Newest:
    """The end of the log; None for an empty one."""

    index: int
    at: datetime


@dataclass(frozen=True)
class Verification:
    """One run. `ok` is None while it runs, and where it broke off."""

    id: str
    started: datetime
    started_by: str
    updated: datetime
    done: int
    total: int
    ok: bool | None
    sentence: str
    running: bool


class LogHealth:
    """The state of the log, and verifications of it."""

    def __init__(self, database: Database, clock: Clock, verify: Verify | None = None) -> None:
        """Without `verify` nothing can be started, and the command line is the way."""
        self._database = database
        self._clock = clock
        self._verify = verify

    @property
    def can_verify(self) -> bool:
        return self._verify is not None

    def newest(self) -> Newest | None:
        """The newest entry."""
        found = sa.select(entries.c.entry_index, entries.c.recorded).order_by(entries.c.entry_index.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(found).first()
        return Newest(*row) if row else None

    def history(self, limit: int = 10) -> list[Verification]:
        """The newest verifications first."""
        found = sa.select(verifications).order_by(verifications.c.started.desc()).limit(limit)
        with self._database.read() as connection:
            return [self._read(row) for row in connection.execute(found)]

    def start(self, by: str) -> threading.Thread:
        """Verify in the background; raises Conflict where that is under way, or cannot be done here."""
        if self._verify is None:
            raise Conflict("This server cannot verify by itself: run `hie audit verify`.")
        if any(verification.running for verification in self.history(1)):
            raise Conflict("The log is being verified already.")
        now, newest = self._clock(), self.newest()
        row = {
            "id": new_id(),
            "started": now,
            "started_by": by,
            "updated": now,
            "done": 0,
            "total": newest.index + 1 if newest else 0,
            "sentence": "",
        }
        with self._database.write() as connection:
            connection.execute(sa.insert(verifications), row)
        thread = threading.Thread(
            target=self._run, args=(str(row["id"]), self._verify), name="audit-verify", daemon=True
        )
        thread.start()
        return thread

    def _run(self, verification_id: str, verify: Verify) -> None:
        noted = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal noted
            if time.monotonic() - noted >= _SECONDS_BETWEEN_NOTES:
                noted = time.monotonic()
                self._note(verification_id, done=done, total=total)

        try:
            found = verify(progress)
        except Exception as error:  # noqa: BLE001  whatever went wrong, the page must say so
            log.error("a verification broke off: %s", type(error).__name__)
            self._note(verification_id, ok=False, sentence="The verification broke off with an error; see the log.")
        else:
            self._note(verification_id, ok=found.ok, done=found.entries, total=found.entries, sentence=found.sentence)

    def _note(self, verification_id: str, **values: object) -> None:
        with self._database.write() as connection:
            connection.execute(
                sa.update(verifications)
                .where(verifications.c.id == verification_id)
                .values(updated=self._clock(), **values)
            )

    def _read(self, row: sa.Row[tuple[object, ...]]) -> Verification:
        ok = None if row.ok is None else bool(row.ok)
        running = ok is None and self._clock() - row.updated < _BROKEN_OFF
        return Verification(
            row.id, row.started, row.started_by, row.updated, row.done, row.total, ok, row.sentence, running
        )
