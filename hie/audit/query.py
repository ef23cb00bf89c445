"""Finding entries: the search of ITI-81 as SQL, newest first, paged by key.

A page token carries the index that was the newest when the first page was made, so that the pages and their total do
not move while the log grows, as it does with every look at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hie.audit.columns import clip
from hie.audit.entry import Entry
from hie.audit.tables import entities, entries, purposes, subtypes

AnyOf = tuple[str, ...]
AllOf = tuple[AnyOf, ...]
"""Every group must match, each by any of its values: FHIR's repeated parameter and comma."""

ENTRY = (
    entries.c.entry_index,
    entries.c.entry_id,
    entries.c.recorded,
    entries.c.kind,
    entries.c.salt,
    entries.c.body,
    entries.c.leaf,
    entries.c.leaf_hash,
)
_AGENT_COLUMNS = {
    "Organization": entries.c.organization,
    "Device": entries.c.client_id,
    "Practitioner": entries.c.user_id,
}


@dataclass(frozen=True)
class Span:
    """Recorded at or after `start` and before `end`."""

    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True)
class Cursor:
    """Where the next page starts: entries before `before`, of those that there were up to `through`."""

    through: int
    before: int


@dataclass(frozen=True)
class AuditQuery:
    """What to look for; nothing given finds everything.

    `agents` are `Organization/x`, `Device/client`, `Practitioner/user` or a bare id of any of them; `entities` are
    `Type/id` or a bare id; `not_organizations` those whose entries are left out; all others are plain codes and ids.
    """

    dates: tuple[Span, ...] = ()
    ids: AllOf = ()
    persons: AllOf = ()
    agents: AllOf = ()
    types: AllOf = ()
    subtypes: AllOf = ()
    actions: AllOf = ()
    outcomes: AllOf = ()
    purposes: AllOf = ()
    sessions: AllOf = ()
    entities: AllOf = ()
    request_ids: AllOf = ()
    kinds: AllOf = ()
    not_organizations: AnyOf = ()
    limit: int = 50
    cursor: Cursor | None = None


@dataclass(frozen=True)
class AuditPage:
    """One page, the number of all matches, and where the next page starts (None on the last)."""

    entries: tuple[Entry, ...]
    total: int
    next: Cursor | None


def search(connection: sa.Connection, query: AuditQuery) -> AuditPage:
    """The page of `query`; a limit of 0 only counts."""
    newest = connection.scalar(sa.select(sa.func.max(entries.c.entry_index)))
    if newest is None:
        return AuditPage((), 0, None)
    through = min(query.cursor.through, newest) if query.cursor else newest
    before = query.cursor.before if query.cursor else through + 1
    found = [entry_of(row) for row in connection.execute(statement(query, before).limit(query.limit + 1))]
    more = len(found) > query.limit > 0
    page = tuple(found[: query.limit])
    return AuditPage(page, _total(connection, query, through), Cursor(through, page[-1].index) if more else None)


def statement(query: AuditQuery, before: int) -> sa.Select[*tuple[Any, ...]]:
    """Matching entries below the index `before`, newest first."""
    return (
        sa.select(*ENTRY)
        .where(entries.c.entry_index < before, *conditions(query))
        .order_by(entries.c.entry_index.desc())
    )


def by_index(connection: sa.Connection, index: int) -> Entry | None:
    """The entry at an index of the log."""
    row = connection.execute(sa.select(*ENTRY).where(entries.c.entry_index == index)).first()
    return entry_of(row) if row else None


def entry_of(row: sa.Row[*tuple[Any, ...]]) -> Entry:
    """The entry of a row of the selected columns."""
    return Entry(*row)


def _total(connection: sa.Connection, query: AuditQuery, through: int) -> int:
    asked = conditions(query)
    if not asked:
        return through + 1  # the log has no gaps
    counted = sa.select(sa.func.count()).select_from(entries)
    return connection.scalar(counted.where(entries.c.entry_index <= through, *asked)) or 0


def conditions(query: AuditQuery) -> list[sa.ColumnElement[bool]]:
    """What an entry must fulfil."""
    asked: list[sa.ColumnElement[bool]] = []
    for span in query.dates:
        if span.start is not None:
            asked.append(entries.c.recorded >= span.start)
        if span.end is not None:
            asked.append(entries.c.recorded < span.end)
    for column, groups in (
        (entries.c.entry_id, query.ids),
        (entries.c.person_id, query.persons),
        (entries.c.type, query.types),
        (entries.c.action, query.actions),
        (entries.c.outcome, query.outcomes),
        (entries.c.session, query.sessions),
        (entries.c.request_id, query.request_ids),
        (entries.c.kind, query.kinds),
    ):
        asked += [_among(column, group) for group in groups]
    for table, groups in ((subtypes, query.subtypes), (purposes, query.purposes)):
        asked += [_in_side(table, table.c.code.in_(group)) for group in groups]
    if query.not_organizations:
        by = entries.c.organization
        asked.append(sa.or_(by.is_(None), by.not_in([clip(value) for value in query.not_organizations])))
    asked += [sa.or_(sa.false(), *map(_agent, group)) for group in query.agents]
    asked += [_in_side(entities, sa.or_(sa.false(), *map(_entity, group))) for group in query.entities]
    return asked


def _among(column: sa.Column[str], group: AnyOf) -> sa.ColumnElement[bool]:
    values = [clip(value) for value in group]
    return column == values[0] if len(values) == 1 else column.in_(values)


def _in_side(table: sa.Table, condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return entries.c.entry_index.in_(sa.select(table.c.entry_index).where(condition))


def _agent(value: str) -> sa.ColumnElement[bool]:
    kind, slash, name = value.partition("/")
    if slash and kind in _AGENT_COLUMNS:
        return _AGENT_COLUMNS[kind] == clip(name)
    return sa.or_(*(column == clip(value) for column in _AGENT_COLUMNS.values()))


def _entity(value: str) -> sa.ColumnElement[bool]:
    kind, slash, name = value.split("/_history/")[0].rpartition("/")
    same_id = entities.c.resource_id == clip(name)
    return sa.and_(same_id, entities.c.resource_type == kind) if slash else same_id
