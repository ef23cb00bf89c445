"""Counts over the log for charts, by the search columns: what happened per day, at whose hands, and what for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import sqlalchemy as sa

from hie.audit.query import AuditQuery, conditions
from hie.audit.tables import entries, purposes
from hie.core.database import Database

_MOST = 8


@dataclass(frozen=True)
class Statistics:
    """Entries that a query finds, counted. Days are UTC; only days with entries are there."""

    per_day: Mapping[date, Counter[str]]
    """Day -> kind -> entries; break-glass disclosures count as `break-glass`."""
    organizations: tuple[tuple[str, int], ...]
    """The busiest first."""
    purposes: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(kinds.total() for kinds in self.per_day.values())


class LogStatistics:
    """Counts what is in the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, query: AuditQuery) -> Statistics:
        """The counts of everything that `query` finds, whatever its page."""
        with self._database.read() as connection:
            return Statistics(
                _per_day(connection, query), _organizations(connection, query), _purposes(connection, query)
            )


def _per_day(connection: sa.Connection, query: AuditQuery) -> dict[date, Counter[str]]:
    glass = entries.c.entry_index.in_(sa.select(purposes.c.entry_index).where(purposes.c.code == "BTG"))
    kind = sa.case((sa.and_(entries.c.kind == "disclosure", glass), "break-glass"), else_=entries.c.kind)
    found = sa.select(_day(connection).label("day"), kind.label("kind")).where(*conditions(query)).subquery()
    counted = sa.select(found.c.day, found.c.kind, sa.func.count()).group_by(found.c.day, found.c.kind)
    per_day: dict[date, Counter[str]] = {}
    for day, name, number in connection.execute(counted.order_by(found.c.day)):
        per_day.setdefault(date.fromisoformat(day), Counter())[name] += number
    return per_day


def _organizations(connection: sa.Connection, query: AuditQuery) -> tuple[tuple[str, int], ...]:
    number = sa.func.count()
    rows = connection.execute(
        sa.select(entries.c.organization, number)
        .where(*conditions(query), entries.c.organization.is_not(None))
        .group_by(entries.c.organization)
        .order_by(number.desc(), entries.c.organization)
        .limit(_MOST)
    )
    return tuple((str(name), int(n)) for name, n in rows)


def _purposes(connection: sa.Connection, query: AuditQuery) -> tuple[tuple[str, int], ...]:
    number = sa.func.count()
    rows = connection.execute(
        sa.select(purposes.c.code, number)
        .join(entries, entries.c.entry_index == purposes.c.entry_index)
        .where(*conditions(query))
        .group_by(purposes.c.code)
        .order_by(number.desc(), purposes.c.code)
    )
    return tuple((str(code), int(n)) for code, n in rows)


def _day(connection: sa.Connection) -> sa.ColumnElement[str]:
    """The UTC day as text."""
    if connection.dialect.name == "sqlite":
        return sa.func.substr(entries.c.recorded, 1, 10, type_=sa.String())
    return sa.func.to_char(sa.func.timezone("UTC", entries.c.recorded), "YYYY-MM-DD", type_=sa.String())
