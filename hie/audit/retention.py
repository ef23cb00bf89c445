"""Retention: what is older than the time that the law asks for moves to an archive, unless a legal hold stands.

Documentation is kept six years at least (45 CFR 164.316 (b)(2)(i)), and an accounting reaches back as far. Nothing goes
by itself: `hie audit archive` first writes the entries to a file with their proofs (`proved.py`), reads the file again
and holds it against the log, and only then empties body and salt. Index, time, search columns and leaf stay, so the
tree verifies as ever, and an archived entry proves itself: its salt and body give the commitment in the leaf. The guard
of the log lets nothing else happen (`tables.py`): not before six years, not without an archive, not under a hold.

Every hold and archive is an entry of the log.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from hie.audit.accounting import years_before
from hie.audit.entry import Entry
from hie.audit.event import Event, Kind, Outcome
from hie.audit.log import AuditLog
from hie.audit.proved import NotProved, Prover, proved_entries
from hie.audit.query import ENTRY, entry_of
from hie.audit.review import uncollected
from hie.audit.suspensions import Suspension, suspend
from hie.audit.tables import entries
from hie.audit.tables_officer import archives, cases, holds, items
from hie.core.caller import COMMAND_LINE, Caller
from hie.core.clock import Clock
from hie.core.database import Database
from hie.core.errors import BadRequest, Conflict, NotFound
from hie.core.ids import new_id

YEARS = 6
"""The least, and the default; the guard of the log knows the same figure."""
_PAGE = 2000

T = TypeVar("T")

Persons = Callable[[str], Sequence[str]]
"""A person id -> every id that is the same person."""


@dataclass(frozen=True)
class Hold:
    """A legal hold on one person's entries."""

    id: str
    person_id: str
    reason: str
    placed: datetime
    placed_by: str


@dataclass(frozen=True)
class Archived:
    """What an archive run did. `held` entries were old enough and stay: a hold or an open case wants them."""

    entries: int
    held: int
    sha256: str


class Retention:
    """Holds and archives of one log."""

    def __init__(self, database: Database, clock: Clock, audit: AuditLog, persons: Persons, years: int = YEARS) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._persons = persons
        self._years = max(years, YEARS)

    # -- holds

    def hold(self, person_id: str, reason: str, caller: Caller | None, request_id: str) -> None:
        """Keep everything about a person, under each of her ids, until the hold is lifted."""
        if not reason.strip():
            raise BadRequest("A hold needs a reason, such as the matter it is for.")
        now, by = self._clock(), _by(caller)
        person_ids = tuple(dict.fromkeys((person_id, *self._persons(person_id))))
        rows = [
            {"id": new_id(), "person_id": same, "reason": reason.strip(), "placed": now, "placed_by": by}
            for same in person_ids
        ]
        with self._database.write() as connection:
            connection.execute(sa.insert(holds), rows)
            event = _event("hold placed", {"persons": list(person_ids), "reason": reason.strip()}, caller, request_id)
            self._audit.append(connection, event)

    def lift(self, person_id: str, caller: Caller | None, request_id: str) -> None:
        """End every hold on a person; raises NotFound where there is none."""
        person_ids = tuple(dict.fromkeys((person_id, *self._persons(person_id))))
        standing = sa.and_(holds.c.person_id.in_(person_ids), holds.c.lifted.is_(None))
        with self._database.write() as connection:
            ended = connection.execute(
                sa.update(holds).where(standing).values(lifted=self._clock(), lifted_by=_by(caller))
            )
            if not ended.rowcount:
                raise NotFound("No hold stands on this person.")
            self._audit.append(connection, _event("hold lifted", {"persons": list(person_ids)}, caller, request_id))

    def holds(self) -> list[Hold]:
        """Every hold that stands, the oldest first."""
        with self._database.read() as connection:
            return _holds(connection)

    # -- suspensions

    def suspend(self, suspension: Suspension, caller: Caller | None, request_id: str) -> None:
        """File a suspension of accountings (`suspensions.py`); its entry is not among the person's own."""
        details = {
            "person": suspension.person_id,
            "organization": suspension.organization,
            "agency": suspension.agency,
            "ends": suspension.ends.isoformat(),
            "written": suspension.written,
        }
        with self._database.write() as connection:
            suspend(connection, suspension, _by(caller), self._clock())
            self._audit.append(connection, _event("accounting suspended", details, caller, request_id))

    # -- archives

    def archive(self, path: Path, caller: Caller | None, request_id: str) -> Archived:
        """Write what is past its time to `path`, check the file, and only then empty the bodies.

        Raises Conflict where the file is there already, or is not what was to be written; then nothing is emptied.
        What a run leaves over, the next one finds.
        """
        if path.exists():
            raise Conflict(f"{path} is there already; an archive is never overwritten.")
        cutoff = years_before(self._clock(), self._years)
        with self._database.read() as connection:
            kept = self._kept(connection)
            old = _old(connection, cutoff)
            due = [index for index, person_id in old if kept.lets_go(index, person_id)]
        if not due:
            return Archived(0, len(old), "")
        digest = self._write(path, due)
        self._check(path, due, digest)
        emptied = self._empty(due, digest, caller, request_id)
        return Archived(emptied, len(old) - emptied, digest)

    def check(self, path: Path) -> int:
        """The number of entries of an archive, each proved by its checkpoint and by the log; raises Conflict."""
        number = 0
        with path.open("rb") as file:
            try:
                for proved in _pages(proved_entries(file, self._audit.evidence)):
                    with self._database.read() as connection:
                        held = _leaves(connection, [one.index for one in proved])
                    for one in proved:
                        if held.get(one.index) != one.leaf_hash:
                            raise NotProved(f"has another entry {one.index} than the log")
                    number += len(proved)
            except NotProved as wrong:
                raise Conflict(f"{path} {wrong}.") from None
        return number

    def _kept(self, connection: sa.Connection) -> _Kept:
        """Who is under a hold, by every id, and which entries are still to be reviewed."""
        held = {same for hold in _holds(connection) for same in (hold.person_id, *self._persons(hold.person_id))}
        open_items = sa.select(items.c.entries).join(cases).where(cases.c.status != "closed")
        unfiled = connection.scalars(uncollected().with_only_columns(entries.c.entry_index))
        wanted = {index for row in connection.scalars(open_items) for index in row}
        return _Kept(frozenset(held), frozenset(wanted.union(unfiled)))

    def _write(self, path: Path, due: Sequence[int]) -> str:
        """The digest of the file, once it is on the disk."""
        digest = hashlib.sha256()
        prover = Prover(self._audit.evidence)
        with path.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            for block in self._blocks(prover, due):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _blocks(self, prover: Prover, due: Sequence[int]) -> Iterator[bytes]:
        yield prover.head()
        for indexes in _pages(due):
            with self._database.read() as connection:
                yield from prover.lines(connection, list(_entries(connection, indexes)))

    def _check(self, path: Path, due: Sequence[int], digest: str) -> None:
        read_again = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                read_again.update(block)
        _require(read_again.hexdigest() == digest, f"{path} does not read as it was written; nothing was archived.")
        _require(self.check(path) == len(due), f"{path} has not every entry; nothing was archived.")

    def _empty(self, due: Sequence[int], digest: str, caller: Caller | None, request_id: str) -> int:
        """The archive is in the log first; then each page of bodies goes, with the rows that let it.

        Writing the file took its time: what a hold or a case wants by now stays, although the file has it too. Who
        places a hold or opens a case meanwhile waits for the page to be done.
        """
        details = {"entries": len(due), "first": due[0], "last": due[-1], "sha256": digest}
        self._audit.record(_event("entries archived", details, caller, request_id))
        emptied = 0
        for page in _pages(due):
            with self._database.write() as connection:
                if not self._database.is_sqlite:
                    connection.exec_driver_sql(f"LOCK TABLE {holds.name}, {items.name} IN SHARE MODE")
                indexes = self._still_due(connection, page)
                if not indexes:
                    continue
                runs = [
                    {
                        "id": new_id(),
                        "first_index": first,
                        "last_index": last,
                        "entries": last - first + 1,
                        "sha256": digest,
                        "written": self._clock(),
                    }
                    for first, last in _runs(indexes)
                ]
                connection.execute(sa.insert(archives), runs)
                connection.execute(
                    sa.update(entries).where(entries.c.entry_index.in_(indexes)).values(body=b"", salt=b"")
                )
            emptied += len(indexes)
        return emptied

    def _still_due(self, connection: sa.Connection, indexes: Sequence[int]) -> list[int]:
        kept = self._kept(connection)
        found = sa.select(entries.c.entry_index, entries.c.person_id).where(entries.c.entry_index.in_(indexes))
        return [
            index
            for index, person_id in connection.execute(found.order_by(entries.c.entry_index))
            if kept.lets_go(index, person_id)
        ]


def emptied_without_archive(connection: sa.Connection) -> list[int]:
    """Indexes of entries without a body that no archive covers: for verification, which must not pass them over."""
    covered = sa.select(archives.c.id).where(
        entries.c.entry_index.between(archives.c.first_index, archives.c.last_index)
    )
    empty = sa.or_(sa.func.length(entries.c.body) == 0, sa.func.length(entries.c.salt) == 0)
    found = sa.select(entries.c.entry_index).where(empty, ~covered.exists()).order_by(entries.c.entry_index)
    return list(connection.scalars(found))


@dataclass(frozen=True)
class _Kept:
    person_ids: frozenset[str]
    indexes: frozenset[int]

    def lets_go(self, index: int, person_id: str | None) -> bool:
        return index not in self.indexes and person_id not in self.person_ids


def _pages(values: Iterable[T]) -> Iterator[list[T]]:
    page: list[T] = []
    for value in values:
        page.append(value)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


def _runs(indexes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each unbroken run."""
    first = last = indexes[0]
    for index in indexes[1:]:
        if index != last + 1:
            yield first, last
            first = index
        last = index
    yield first, last


def _old(connection: sa.Connection, cutoff: datetime) -> list[tuple[int, str | None]]:
    found = sa.select(entries.c.entry_index, entries.c.person_id).where(
        entries.c.recorded < cutoff, sa.func.length(entries.c.body) > 0
    )
    return [(row[0], row[1]) for row in connection.execute(found.order_by(entries.c.entry_index))]


def _entries(connection: sa.Connection, indexes: Sequence[int]) -> Iterator[Entry]:
    found = sa.select(*ENTRY).where(entries.c.entry_index.in_(indexes)).order_by(entries.c.entry_index)
    return (entry_of(row) for row in connection.execute(found))


def _leaves(connection: sa.Connection, indexes: Sequence[int]) -> dict[int, bytes]:
    found = sa.select(entries.c.entry_index, entries.c.leaf_hash).where(entries.c.entry_index.in_(indexes))
    return {row[0]: row[1] for row in connection.execute(found)}


def _holds(connection: sa.Connection) -> list[Hold]:
    found = sa.select(holds).where(holds.c.lifted.is_(None)).order_by(holds.c.placed, holds.c.id)
    return [Hold(r.id, r.person_id, r.reason, r.placed, r.placed_by) for r in connection.execute(found)]


def _require(true: bool, sentence: str) -> None:
    if not true:
        raise Conflict(sentence)


def _by(caller: Caller | None) -> str:
    return (caller.user_id or caller.client_id or "") if caller else COMMAND_LINE


def _event(description: str, details: dict[str, object], caller: Caller | None, request_id: str) -> Event:
    """Without a person: who asks for her own entries must not learn of a suspension from them."""
    return Event(
        kind=Kind.RETENTION,
        outcome=Outcome.SUCCESS,
        action="E",
        caller=caller,
        person_id=None,
        query=description,
        request_id=request_id,
        description=description,
        decisions=(details,),
        client_id=None if caller else COMMAND_LINE,
    )
