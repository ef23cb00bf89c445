"""Suspended accountings, 45 CFR 164.528 (a)(2).

A health oversight agency or law enforcement official may ask that disclosures to it stay out of a person's accounting
for a stated time, because telling her would impede its work. An oral request holds for 30 days at most. The disclosures
themselves are logged as ever, and come back into the accounting when the time is over.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from hie.audit.tables_officer import suspensions
from hie.core.errors import BadRequest
from hie.core.ids import new_id

LONGEST_ORAL = timedelta(days=30)


@dataclass(frozen=True)
class Suspension:
    """One request, for one person and one recipient. `written`: the agency gave a written statement."""

    person_id: str
    organization: str
    starts: datetime
    ends: datetime
    agency: str
    written: bool

    def covers(self, person_id: str | None, organization: str | None) -> bool:
        return self.person_id == person_id and self.organization == organization


def standing(connection: sa.Connection, person_ids: Collection[str], now: datetime) -> list[Suspension]:
    """The suspensions of one person that hold now, for every id of hers: one may have been filed before a merge."""
    table = suspensions.c
    found = sa.select(table.organization, table.starts, table.ends, table.agency, table.written).where(
        table.person_id.in_(person_ids), table.starts <= now, table.ends > now
    )
    rows = connection.execute(found.distinct()).all()
    return [Suspension(person_id, *row) for row in rows for person_id in sorted(person_ids)]


def suspend(connection: sa.Connection, suspension: Suspension, filed_by: str, now: datetime) -> str:
    """File one; raises BadRequest for a time that the rule does not allow. The caller records it in the log."""
    if suspension.ends <= suspension.starts:
        raise BadRequest("A suspension must end after it starts.")
    if not suspension.written and suspension.ends - suspension.starts > LONGEST_ORAL:
        raise BadRequest("An oral request suspends an accounting for 30 days at most; a longer one needs a statement.")
    if not suspension.agency.strip():
        raise BadRequest("A suspension names the agency or official that asked for it.")
    suspension_id = new_id()
    row = {
        "id": suspension_id,
        "person_id": suspension.person_id,
        "organization": suspension.organization,
        "starts": suspension.starts,
        "ends": suspension.ends,
        "agency": suspension.agency.strip(),
        "written": suspension.written,
        "filed": now,
        "filed_by": filed_by,
    }
    connection.execute(sa.insert(suspensions), row)
    return suspension_id
