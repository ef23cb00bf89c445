"""Whether a report about somebody holds every entry about her: the log is asked twice, in two ways.

A report finds entries by the search columns, which a Merkle proof does not cover (AUDIT.md). So a second index is asked
as well, the references that entries hold (`audit_entities`); each entry that either gives is parsed, its person derived
anew, and its body held against its leaf. This reads the entries about these people and no others, however large the
log is, so that a page may do it.

`every_body` asks in a third way, for the command line: all bodies of the log are searched for the person's ids, and its
indexes must have no gap. What even that cannot see is the job of `hie audit verify`: entries cut off at the end, and a
body that was exchanged for one that names somebody else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
import sqlalchemy as sa

from hie.audit import words
from hie.audit.columns import clip, columns
from hie.audit.entry import Entry, commitment, leaf_bytes
from hie.audit.merkle import leaf_hash
from hie.audit.query import ENTRY
from hie.audit.tables import entities, entries
from hie.audit.tables_officer import verifications
from hie.audit.tree import newest_size
from hie.core.clock import instant

_KEPT_PROBLEMS = 20
_AT_ONCE = 500
"""Rows that are held beside those that a report keeps."""


@dataclass(frozen=True)
class Completeness:
    """What the second look found. `problems` are sentences, each naming an index where there is one."""

    entries: int
    """In the whole log."""
    by_body: int
    by_column: int
    archived: int
    """Entries of these people whose body was archived after its retention."""
    problems: tuple[str, ...]
    every_body: bool
    """All bodies of the log were searched, not only those that an index gives."""
    verified: tuple[datetime, int] | None = None
    """When the whole log was last verified from a page, which holds every index against the bodies; up to what size."""

    @property
    def complete(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        if self.problems:
            return f"NOT complete: {' '.join(self.problems)}"
        kept = f", {self.archived:,} of them archived" if self.archived else ""
        if self.every_body:
            return (
                f"Complete: the bodies of all {self.entries:,} entries of the log were searched, and the "
                f"{self.by_body:,} about this report's people are those that the index gives{kept}."
            )
        return (
            f"Complete by two indexes of the log, which agree on {words.count(self.by_body, 'entry', 'entries')} about "
            f"this report's people{kept}; each was held against its leaf. {self._when_verified()}"
        )

    def _when_verified(self) -> str:
        if self.verified is None:
            return f"The log of {self.entries:,} entries as a whole has not been verified from the console yet."
        at, size = self.verified
        return f"The log as a whole was last verified on {words.day(at)}, up to {size:,} of {self.entries:,} entries."


def entries_about(
    connection: sa.Connection, person_ids: Collection[str], *, every_body: bool
) -> tuple[list[Entry], Completeness]:
    """Every entry about these people by column, reference or body, in the order of the log, and what was found out."""
    wanted = frozenset(person_ids)
    held: dict[int, Entry] = {}
    by_column: set[int] = set()
    by_body: set[int] = set()
    ways = [_indexes(wanted), *([_named(connection, wanted)] if every_body else [])]
    for entry, person_id in (found for way in ways for found in _found(connection, way)):
        if person_id in wanted:
            by_column.add(entry.index)
        if _person_of(entry) in wanted:
            by_body.add(entry.index)
        if entry.index in by_column or entry.index in by_body:
            held[entry.index] = entry
    archived = {index for index in by_column if held[index].archived}
    count, gaps = _size(connection, every_body)
    problems = [
        *gaps,
        *(_elsewhere(index) for index in sorted(by_body - by_column)),
        *(_named_wrongly(index) for index in sorted(by_column - by_body - archived)),
        *(mistake for index in sorted(held) for mistake in _mistakes(held[index])),
    ]
    if len(problems) > _KEPT_PROBLEMS:
        problems = [*problems[:_KEPT_PROBLEMS], f"There are {len(problems) - _KEPT_PROBLEMS} more such entries."]
    return [held[index] for index in sorted(held)], Completeness(
        entries=count,
        by_body=len(by_body),
        by_column=len(by_column) - len(archived),
        archived=len(archived),
        problems=tuple(problems),
        every_body=every_body,
        verified=_last_verified(connection),
    )


def _indexes(person_ids: Collection[str]) -> sa.ColumnElement[bool]:
    """Entries whose column names these people, or whose references do; a union, so that each part takes its index."""
    clipped = sorted(map(clip, person_ids))
    by_reference = sa.select(entities.c.entry_index).where(
        entities.c.resource_id.in_(clipped), entities.c.resource_type == "Patient"
    )
    by_column = sa.select(entries.c.entry_index).where(entries.c.person_id.in_(clipped))
    return entries.c.entry_index.in_(sa.union(by_column, by_reference))


def _found(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Iterator[tuple[Entry, str | None]]:
    """Entries with the person of their column, read a few at a time."""
    wanted = sa.select(*ENTRY, entries.c.person_id).where(condition)
    with connection.execute(wanted.execution_options(yield_per=_AT_ONCE)) as rows:
        for row in rows:
            *entry, person_id = row
            yield Entry(*entry), person_id


def _last_verified(connection: sa.Connection) -> tuple[datetime, int] | None:
    newest = sa.select(verifications.c.updated, verifications.c.done).where(verifications.c.ok.is_(sa.true()))
    row = connection.execute(newest.order_by(verifications.c.started.desc()).limit(1)).first()
    return (row[0], row[1]) if row else None


def _named(connection: sa.Connection, person_ids: Collection[str]) -> sa.ColumnElement[bool]:
    return sa.or_(sa.false(), *(_contains(connection, person_id) for person_id in sorted(person_ids)))


def _contains(connection: sa.Connection, person_id: str) -> sa.ColumnElement[bool]:
    """Searched by the database, so that a log of gigabytes does not travel."""
    reference = orjson.dumps(f"Patient/{person_id}")
    if connection.dialect.name == "sqlite":
        return sa.func.instr(entries.c.body, reference) > 0
    return sa.func.pg_catalog.position(entries.c.body, reference, type_=sa.Integer) > 0


def _person_of(entry: Entry) -> str | None:
    """The person that the body is about; a body that cannot be read is about nobody, and `_mistakes` says so."""
    try:
        return columns(orjson.loads(entry.body)).person_id
    except (ValueError, KeyError, TypeError, StopIteration):
        return None


def _size(connection: sa.Connection, every_body: bool) -> tuple[int, list[str]]:
    """The number of entries, and sentences about those that are missing: at the end always, in between if wanted."""
    newest = connection.scalar(sa.select(sa.func.max(entries.c.entry_index)))
    count = last = 0 if newest is None else newest + 1
    if every_body:
        count = connection.scalar(sa.select(sa.func.count()).select_from(entries)) or 0
    missing = max(last, newest_size(connection)) - count
    return count, [f"{words.count(missing, 'entry', 'entries')} missing from the log."] if missing else []


def _elsewhere(index: int) -> str:
    return f"Entry {index} is about this report's people, and the index does not say so."


def _named_wrongly(index: int) -> str:
    return f"Entry {index} stands in the index under this report's people, and its body does not name them."


def _mistakes(entry: Entry) -> Sequence[str]:
    """Body, time and kind against the leaf that the tree commits to."""
    if leaf_hash(entry.leaf) != entry.leaf_hash:
        return [f"The leaf of entry {entry.index} was changed."]
    if entry.archived:
        return []
    leaf = leaf_bytes(entry.entry_id, instant(entry.recorded), entry.kind, commitment(entry.salt, entry.body))
    return [] if leaf == entry.leaf else [f"Entry {entry.index} is not what its leaf commits to."]
