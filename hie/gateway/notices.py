"""What a member is told of at once: that the glass was broken for one of its patients (CONSENT.md section 5 point 7).

One notice per custodian, patient and token or session, written before anything leaves; asking again under the same
token adds to it. It names who, of which organization, and the reason given, and the patient by the custodian's own id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hie.core.caller import Caller
from hie.core.clock import Clock
from hie.core.database import Database
from hie.gateway.tables_portal import member_notices

BREAK_GLASS = "break-glass"


@dataclass(frozen=True)
class Notice:
    """One entry of a member's inbox."""

    id: str
    at: datetime
    last: datetime
    patient: str
    organization: str
    who: str
    reason: str
    resources: int
    request_id: str
    seen: datetime | None
    seen_by: str | None


class Notices:
    """The inboxes of the members."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def glass_broken(self, caller: Caller, released: Mapping[tuple[str, str], int], request_id: str) -> None:
        """Tell each custodian; `released`: (member, its own patient id) -> how many of its resources leave."""
        now = self._clock()
        rows = [
            {
                "id": _key(member_id, patient, caller.session),
                "member_id": member_id,
                "kind": BREAK_GLASS,
                "at": now,
                "last": now,
                "patient": patient,
                "organization": caller.organization_name[:200] or caller.organization,
                "who": (caller.subject_name or caller.user_id or caller.client_id or "not named")[:254],
                "reason": (caller.break_glass_reason or "")[:400],
                "resources": count,
                "request_id": request_id,
            }
            for (member_id, patient), count in sorted(released.items())
        ]
        insert = sqlite.insert if self._database.is_sqlite else postgresql.insert
        statement = insert(member_notices)
        more = sa.case(
            (statement.excluded.resources > member_notices.c.resources, statement.excluded.resources),
            else_=member_notices.c.resources,
        )
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={"last": statement.excluded.last, "resources": more}
        )
        with self._database.write() as connection:
            connection.execute(statement, rows)

    def inbox(self, member_id: str, limit: int = 50) -> list[Notice]:
        """What a member was told, newest first."""
        query = (
            sa.select(member_notices)
            .where(member_notices.c.member_id == member_id)
            .order_by(member_notices.c.at.desc(), member_notices.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [
                Notice(
                    row.id,
                    row.at,
                    row.last,
                    row.patient,
                    row.organization,
                    row.who,
                    row.reason,
                    row.resources,
                    row.request_id,
                    row.seen,
                    row.seen_by,
                )
                for row in connection.execute(query)
            ]

    def mark_seen(self, member_id: str, notice_id: str, by: str) -> None:
        """Somebody at the member has read it; the first reader stands."""
        notice = member_notices.c
        where = sa.and_(notice.id == notice_id, notice.member_id == member_id, notice.seen.is_(None))
        with self._database.write() as connection:
            connection.execute(sa.update(member_notices).where(where).values(seen=self._clock(), seen_by=by))


def _key(member_id: str, patient: str, session: str) -> str:
    return hashlib.sha256("\x00".join((member_id, patient, session)).encode()).hexdigest()[:32]
