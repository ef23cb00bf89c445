"""Whether a report about somebody holds every entry about her: the log is asked twice, in two ways.

A report finds entries by the search columns, which a Merkle proof does not cover (AUDIT.md). So all bodies are searched
as well for the person's ids; what is found there is parsed, its columns are derived anew, its body is held against its
leaf, and the indexes must have no gap. What this cannot see is the job of `hie audit verify`: entries cut off at the
end, and a body that was exchanged for one that names somebody else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import orjson
import sqlalchemy as sa

from hie.audit import words
from hie.audit.columns import columns
from hie.audit.entry import Entry, commitment, leaf_bytes
from hie.audit.merkle import leaf_hash
from hie.audit.query import ENTRY, entry_of
from hie.audit.tables import entries
from hie.core.clock import instant

_KEPT_PROBLEMS = 20


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

    @property
    def complete(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        if self.problems:
            return f"NOT complete: {' '.join(self.problems)}"
        kept = f", {self.archived:,} of them archived" if self.archived else ""
        return (
            f"Complete: the bodies of all {self.entries:,} entries of the log were searched, and the {self.by_body:,} "
            f"about this report's people are those that the index gives{kept}."
        )


def entries_about(connection: sa.Connection, person_ids: Collection[str]) -> tuple[list[Entry], Completeness]:
    """Every entry about these people by column or by body, in the order of the log, and what was found out."""
    wanted = frozenset(person_ids)
    by_column = {entry.index: entry for entry in _select(connection, entries.c.person_id.in_(wanted))}
    named = sa.or_(sa.false(), *(_contains(connection, person_id) for person_id in sorted(wanted)))
    by_body = {entry.index: entry for entry in _select(connection, named) if _person_of(entry) in wanted}
    archived = [index for index, entry in by_column.items() if entry.archived]
    held = {**by_column, **by_body}
    count, gaps = _gaps(connection)
    problems = [
        *gaps,
        *(_elsewhere(index) for index in sorted(by_body.keys() - by_column.keys())),
        *(_named_wrongly(index) for index in sorted(by_column.keys() - by_body.keys() - set(archived))),
        *(mistake for index in sorted(held) for mistake in _mistakes(held[index])),
    ]
    if len(problems) > _KEPT_PROBLEMS:
        problems = [*problems[:_KEPT_PROBLEMS], f"There are {len(problems) - _KEPT_PROBLEMS} more such entries."]
    found = [held[index] for index in sorted(held)]
    return found, Completeness(count, len(by_body), len(by_column) - len(archived), len(archived), tuple(problems))


def _select(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Entry]:
    return [entry_of(row) for row in connection.execute(sa.select(*ENTRY).where(condition))]


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


def _gaps(connection: sa.Connection) -> tuple[int, list[str]]:
    index = entries.c.entry_index
    count, newest = connection.execute(sa.select(sa.func.count(), sa.func.coalesce(sa.func.max(index), -1))).one()
    missing = newest + 1 - count
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
