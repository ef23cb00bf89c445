"""Whom members treat, as they tell it: encounters, admissions, referrals and panels, which explain accesses.

A relation belongs to the member that told it, under an identifier of the member's choice, and to its record of the
patient: links, unlinks and merges take it along. Nothing clinical is kept. Messages are idempotent, and one that is
older than what is held changes nothing (law L7); so a relation that was taken back keeps its row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hie.audit.relations import Contact, Relation
from hie.core import stamps
from hie.core.clock import Clock
from hie.core.database import Database
from hie.core.errors import PreconditionFailed, Unprocessable
from hie.core.fhir import Resource
from hie.gateway.care_messages import Message, Standing, read
from hie.gateway.directory import Member
from hie.gateway.tables_care import care_relations
from hie.mpi import registry
from hie.mpi.identity import Also, Identifier, SourceRecord, check_identifier
from hie.mpi.registrations import by_survivor
from hie.mpi.tables import source_records

_WHO = (
    "Name the patient in subject.identifier by your own patient id (your patient_id_system and the number that you fed "
    "by PUT Patient), or in subject.reference as Patient/<person id> of a person whom you feed. The exchange must hold "
    "a current record of yours."
)
_STATED = ("record_id", "relation", "standing", "starts", "ends", "practitioners")


@dataclass(frozen=True)
class CareResult:
    """What a message did. Not `changed`: nothing new in what is kept, or older than what is held (`stale`)."""

    person_id: str
    version: int
    created: bool
    changed: bool
    stale: bool = False


class CareService:
    """What members tell of whom they treat."""

    def __init__(self, database: Database, clock: Clock, fhir_base: str) -> None:
        self._database = database
        self._clock = clock
        self._base = f"{fhir_base}/"

    def tell(
        self,
        member: Member,
        identifier: Identifier,
        resource: Resource,
        *,
        expected_version: int | None = None,
        also: Also[CareResult] = None,
    ) -> CareResult:
        """Keep what a checked Encounter, ServiceRequest or CareTeam says of a relation. Idempotent.

        Raises Unprocessable for what cannot be kept and for a patient of whom the member has no current record (the
        same whether or not others know the patient), PreconditionFailed.
        """
        check_identifier(identifier)
        message = read(resource)
        key = {"member_id": member.id, "type": resource["resourceType"], **vars(identifier)}
        with self._database.write() as connection:
            registry.lock_identifiers(connection, [identifier])
            record = self._record_of(connection, member, resource.get("subject") or {})
            held = _find(connection, key)
            if expected_version is not None and (held is None or held.version != expected_version):
                raise PreconditionFailed("The relation is not at the version that If-Match names.")
            result = self._settle(connection, key, message, record, held)
            if also is not None:
                also(connection, result)
        return result

    def _settle(
        self,
        connection: sa.Connection,
        key: dict[str, str],
        message: Message,
        record: SourceRecord,
        held: sa.Row[Any] | None,
    ) -> CareResult:
        if held is not None and _is_stale(message, held):
            return CareResult(record.person_id, held.version, created=False, changed=False, stale=True)
        now = self._clock()
        created = held is None or held.standing == Standing.DELETED
        stated = _stated(message, record, None if created else held, now)
        stamp = stamps.newest(message.stamped, held.source_updated if held else None, now)
        if held is None:
            row = {**key, **stated, "version": 1, "received": now, "source_updated": stamp}
            connection.execute(sa.insert(care_relations), row)
            return CareResult(record.person_id, 1, created=True, changed=True)
        changed = any(getattr(held, name) != stated[name] for name in _STATED)
        version = held.version + changed
        if changed:
            row = {**stated, "version": version, "received": now, "source_updated": stamp}
            connection.execute(sa.update(care_relations).where(_is(key)).values(row))
        elif stamp != held.source_updated:
            connection.execute(sa.update(care_relations).where(_is(key)).values(source_updated=stamp))
        return CareResult(record.person_id, version, created=created, changed=changed)

    def _record_of(self, connection: sa.Connection, member: Member, subject: Resource) -> SourceRecord:
        """The member's current record of the patient; one that was merged away stands for the one that replaced it."""
        named = subject.get("identifier") or {}
        if named.get("system") == member.patient_id_system and named.get("value"):
            held = registry.find(connection, Identifier(named["system"], named["value"]))
            end = registry.survivor_of(connection, held) if held is not None else None
            own = [end.record] if end is not None else []
        else:
            person_id = self._person_id(subject.get("reference") or "")
            person = registry.person(connection, person_id) if person_id else None
            own = registry.active_records(connection, [person.id])[person.id] if person else []
        record = next((record for record in own if record.member_id == member.id), None)
        if record is None:
            raise Unprocessable(_WHO, code="not-found")
        return record

    def _person_id(self, reference: str) -> str:
        """Of `Patient/<person id>`, relative or at this exchange; empty for anything else."""
        kind, _, person_id = reference.removeprefix(self._base).partition("/")
        return person_id if kind == "Patient" else ""

    def withdraw(
        self, member: Member, resource_type: str, identifier: Identifier, *, also: Also[str | None] = None
    ) -> bool:
        """End a relation; False when there was none. `also` gets the person it was about, or None."""
        key = {"member_id": member.id, "type": resource_type, **vars(identifier)}
        with self._database.write() as connection:
            registry.lock_identifiers(connection, [identifier])
            held = _find(connection, key)
            gone = held if held is not None and held.standing != Standing.DELETED else None
            if gone is not None:
                row = {"standing": Standing.DELETED, "version": gone.version + 1, "received": self._clock()}
                connection.execute(sa.update(care_relations).where(_is(key)).values(row))
            if also is not None:
                also(connection, gone.person_id if gone is not None else None)
        return gone is not None


def contacts(connection: sa.Connection, pairs: Collection[tuple[str, str]]) -> Iterator[Contact]:
    """The relations of (person id, member id) that hold, one for each practitioner; an id that was merged into another
    stands for the same person."""
    told, wanted = care_relations.c, frozenset(pairs)
    for asked in by_survivor(connection, {person_id for person_id, _ in wanted}):
        rows = connection.execute(
            sa.select(
                source_records.c.person_id, told.member_id, told.relation, told.starts, told.ends, told.practitioners
            )
            .join(source_records, source_records.c.id == told.record_id)
            .where(source_records.c.person_id.in_(asked), told.standing == Standing.HOLDS)
        )
        for row in rows:
            for pair in ((person_id, row.member_id) for person_id in asked[row.person_id]):
                for user_id in (row.practitioners or (None,)) if pair in wanted else ():
                    yield Contact(*pair, Relation(row.relation), row.starts, row.ends, user_id)


def _stated(message: Message, record: SourceRecord, held: sa.Row[Any] | None, now: datetime) -> dict[str, Any]:
    """The row's facts. What the message leaves open stays as it is held: a start, and an end that has passed."""
    starts = message.starts or (held.starts if held is not None else now)
    ends = message.ends
    if message.over and ends is None:
        passed = held is not None and held.ends is not None and held.ends <= now
        ends = held.ends if held is not None and passed else min(message.over_since or now, now)
    if ends is not None and ends < starts:  # one of them is not the message's own
        starts, ends = (starts, starts) if message.starts is not None else (ends, ends)
    return {
        "record_id": record.id,
        "relation": message.relation.value,
        "standing": message.standing.value,
        "starts": starts,
        "ends": ends,
        "practitioners": list(message.practitioners),
    }


def _is_stale(message: Message, held: sa.Row[Any]) -> bool:
    """Older than what is held; or without a stamp, where only a stamp tells it from a message sent before the end."""
    unstamped_return = (
        message.stamped is None and held.standing == Standing.WITHDRAWN and message.standing != Standing.WITHDRAWN
    )
    return unstamped_return or stamps.is_older(message.stamped, held.source_updated)


def _find(connection: sa.Connection, key: dict[str, str]) -> sa.Row[Any] | None:
    """The row with the person whom it is about now."""
    found = (
        sa.select(care_relations, source_records.c.person_id)
        .join(source_records, source_records.c.id == care_relations.c.record_id)
        .where(_is(key))
    )
    return connection.execute(found).one_or_none()


def _is(key: dict[str, str]) -> sa.ColumnElement[bool]:
    return sa.and_(*(care_relations.c[name] == value for name, value in key.items()))
