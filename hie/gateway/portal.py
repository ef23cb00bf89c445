"""Which user is which patient: an invitation code that a member hands over in person, redeemed at the console.

The member that knows the patient checks who is standing there and makes a code for its own patient id; whoever redeems
it is bound to that record, and through it to the person, wherever links and merges take it. A binding says `self` or
`representative`, the latter with an end where there is one. Codes are kept as hashes, work once and for two weeks.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from hie.core.clock import Clock
from hie.core.database import Database
from hie.core.errors import BadRequest
from hie.core.ids import new_id
from hie.gateway.tables_portal import invitations, portal_bindings
from hie.mpi.identity import Identifier, IdentityService

CODE_LIFE = timedelta(days=14)
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that is misread
_GROUPS, _LENGTH = 3, 4
_NO_SUCH_CODE = (
    "This code is not valid: it may be mistyped, used already or too old. Ask your organization for a new one."
)

Also = Callable[[sa.Connection], None] | None


class Relation(StrEnum):
    """What a user is to the patient."""

    SELF = "self"
    REPRESENTATIVE = "representative"


@dataclass(frozen=True)
class Binding:
    """A user may act as, or for, the patient whom a member knows by `identifier`."""

    id: str
    user_email: str
    identifier: Identifier
    relation: Relation
    since: datetime
    until: datetime | None


AlsoBound = Callable[[sa.Connection, Binding], None] | None
"""What is done in the transaction that makes or ends a binding: its audit entry."""


class Portal:
    """Invitations and bindings."""

    def __init__(self, database: Database, clock: Clock, identity: IdentityService) -> None:
        self._database = database
        self._clock = clock
        self._identity = identity

    def invite(
        self,
        member_id: str,
        identifier: Identifier,
        relation: Relation,
        invited_by: str,
        *,
        until: datetime | None = None,
        also: Also = None,
    ) -> str:
        """A new code for a member's own patient. Raises BadRequest where the member feeds no such patient."""
        record = self._identity.source_record(identifier)
        if record is None or record.member_id != member_id:
            raise BadRequest("Your organization feeds no patient with this number.")
        code = "-".join("".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH)) for _ in range(_GROUPS))
        now = self._clock()
        row = {
            "code_hash": _hash(code),
            "member_id": member_id,
            "system": identifier.system,
            "value": identifier.value,
            "relation": relation.value,
            "until": until,
            "invited_by": invited_by,
            "created": now,
            "expires": now + CODE_LIFE,
        }
        with self._database.write() as connection:
            connection.execute(sa.insert(invitations), row)
            if also is not None:
                also(connection)
        return code

    def redeem(self, code: str, user_email: str, *, also: AlsoBound = None) -> Binding:
        """Bind a user to the patient of a code, which is spent. Raises BadRequest, the same for every bad code."""
        now = self._clock()
        invited = invitations.c
        usable = sa.and_(invited.code_hash == _hash(code), invited.redeemed.is_(None), invited.expires > now)
        with self._database.write() as connection:
            row = connection.execute(sa.select(invitations).where(usable).with_for_update()).one_or_none()
            if row is None:
                raise BadRequest(_NO_SUCH_CODE)
            spent = {"redeemed": now, "redeemed_by": user_email}
            connection.execute(sa.update(invitations).where(usable).values(spent))
            binding = Binding(
                new_id(), user_email, Identifier(row.system, row.value), Relation(row.relation), now, row.until
            )
            connection.execute(
                sa.insert(portal_bindings),
                {
                    "id": binding.id,
                    "user_email": user_email,
                    "system": row.system,
                    "value": row.value,
                    "relation": row.relation,
                    "since": now,
                    "until": row.until,
                },
            )
            if also is not None:
                also(connection, binding)
        return binding

    def bindings(self, user_email: str) -> list[Binding]:
        """Whom a user may act as or for, now."""
        return self._bindings(portal_bindings.c.user_email == user_email)

    def person_of(self, binding: Binding) -> str | None:
        """The person whom a binding leads to now."""
        record = self._identity.source_record(binding.identifier)
        return record.person_id if record else None

    def own_people(self, user_email: str) -> frozenset[str]:
        """Ids of the people who a user is."""
        return self._people(b for b in self.bindings(user_email) if b.relation is Relation.SELF)

    def people_of(self, user_email: str) -> frozenset[str]:
        """Ids of the people who a user is or acts for."""
        return self._people(self.bindings(user_email))

    def _people(self, bindings: Iterable[Binding]) -> frozenset[str]:
        return frozenset(person_id for b in bindings if (person_id := self.person_of(b)) is not None)

    def representatives(self, records: Collection[tuple[str, str]]) -> frozenset[str]:
        """E-mails of those who may act for the person of these records (system, value)."""
        if not records:
            return frozenset()
        bound = portal_bindings.c
        held = (sa.and_(bound.system == system, bound.value == value) for system, value in sorted(records))
        acting = sa.and_(sa.or_(*held), bound.relation == Relation.REPRESENTATIVE.value)
        return frozenset(binding.user_email for binding in self._bindings(acting))

    def end(self, binding_id: str, member_id_system: str, *, also: AlsoBound = None) -> None:
        """A member takes back a binding to one of its patients; one that has ended stays as it is."""
        bound = portal_bindings.c
        where = sa.and_(bound.id == binding_id, bound.system == member_id_system, bound.ended.is_(None))
        with self._database.write() as connection:
            row = connection.execute(sa.select(portal_bindings).where(where).with_for_update()).one_or_none()
            if row is None:
                return
            connection.execute(sa.update(portal_bindings).where(where).values(ended=self._clock()))
            if also is not None:
                also(connection, _binding(row))

    def of_member(self, system: str) -> Sequence[Binding]:
        """Who is bound to patients of the member that assigns `system`."""
        return self._bindings(portal_bindings.c.system == system)

    def _bindings(self, where: sa.ColumnElement[bool]) -> list[Binding]:
        now = self._clock()
        bound = portal_bindings.c
        in_force = sa.and_(where, bound.ended.is_(None), sa.or_(bound.until.is_(None), bound.until > now))
        with self._database.read() as connection:
            rows = connection.execute(sa.select(portal_bindings).where(in_force).order_by(bound.since, bound.id))
            return [_binding(row) for row in rows]


def _binding(row: sa.Row[Any]) -> Binding:
    identifier = Identifier(row.system, row.value)
    return Binding(row.id, row.user_email, identifier, Relation(row.relation), row.since, row.until)


def _hash(code: str) -> str:
    """Codes are read aloud and typed: case, spaces and hyphens make no difference."""
    plain = "".join(c for c in code.lower() if c.isalnum())
    return hashlib.sha256(f"hie invitation {plain}".encode()).hexdigest()
