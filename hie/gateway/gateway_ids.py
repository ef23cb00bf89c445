"""Gateway ids: opaque, stable stand-ins for members' resource ids (contract section 3, "A federated answer").

An id is a keyed digest of (member, type, local id), so it tells nothing and two members' equal ids never collide. The
table maps an id back to its source for reads, and to the patient in whose chart it was met, so that consent can be
asked before the member is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hie.core.database import Database
from hie.core.ids import derived_id
from hie.gateway.tables import gateway_ids

_CHUNK = 500
_REMEMBERED = 200_000


@dataclass(frozen=True)
class LocalId:
    """A resource at its member."""

    member_id: str
    type: str
    id: str


@dataclass(frozen=True)
class Known:
    """What an id stands for, and the member's own id of the patient in whose chart it was met, where that was noted."""

    local: LocalId
    patient: str | None


class GatewayIds:
    """Gives gateway ids and finds what they stand for."""

    def __init__(self, database: Database, key: bytes) -> None:
        self._database = database
        self.key = key
        self._registered: set[str] = set()

    def of(self, local: LocalId) -> str:
        """The gateway id of a member's resource (32 characters `[a-z2-7]`)."""
        return derived_id(self.key, local.member_id, local.type, local.id)

    def register(self, locals_: Mapping[LocalId, str]) -> None:
        """Make the ids readable: remember what they stand for, and the patients. Known ones cost nothing."""
        rows = {}
        for local, patient in locals_.items():
            gateway_id = self.of(local)
            if gateway_id not in self._registered:
                rows[gateway_id] = {
                    "id": gateway_id,
                    "member_id": local.member_id,
                    "type": local.type,
                    "local_id": local.id,
                    "patient": patient,
                }
        missing = self._missing(list(rows))
        if missing:
            insert = sqlite.insert if self._database.is_sqlite else postgresql.insert
            with self._database.write() as connection:
                connection.execute(insert(gateway_ids).on_conflict_do_nothing(), [rows[i] for i in missing])
        if len(self._registered) > _REMEMBERED:
            self._registered.clear()
        self._registered.update(rows)

    def find(self, resource_type: str, gateway_id: str) -> Known | None:
        """What an id stands for; None when it was never given out for this type."""
        query = sa.select(gateway_ids).where(gateway_ids.c.id == gateway_id, gateway_ids.c.type == resource_type)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return Known(LocalId(row.member_id, row.type, row.local_id), row.patient) if row else None

    def _missing(self, ids: list[str]) -> list[str]:
        """Those not in the table yet, in sorted order, so that two writers lock rows in the same order."""
        present: set[str] = set()
        with self._database.read() as connection:
            for start in range(0, len(ids), _CHUNK):
                chunk = ids[start : start + _CHUNK]
                present.update(connection.scalars(sa.select(gateway_ids.c.id).where(gateway_ids.c.id.in_(chunk))))
        return sorted(set(ids) - present)
