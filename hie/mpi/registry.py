"""Rows of people, source records, versions and tokens: SQL, and no rules (`decisions` has the rest).

Every function works inside the transaction that `identity.IdentityService` opened. Order of locks, which keeps feeds
from deadlocking: identifiers, then the matcher's keys, then people; each group sorted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hie.core.bulk import insert
from hie.core.fhir import Resource
from hie.core.ids import new_id
from hie.mpi.patient_search import tokens_of
from hie.mpi.people import EventKind, Identifier, SourceRecord
from hie.mpi.tables import (
    link_decisions,
    people,
    person_tokens,
    source_record_versions,
    source_records,
)


@dataclass(frozen=True)
class Held:
    """A source record with what only feeding needs to know."""

    record: SourceRecord
    replaced_by: str | None
    source_updated: datetime | None
    content_hash: str

    @property
    def deleted(self) -> bool:
        return not self.record.active and self.replaced_by is None


@dataclass(frozen=True)
class PersonRow:
    """A person without its records. `resource` is the golden Patient without id and meta."""

    id: str
    version: int
    updated: datetime
    active: bool
    resource: Resource
    merged_into: str | None
    created: datetime


_PARTING = (EventKind.SPLIT.value, EventKind.REJECT.value, EventKind.UNDO.value)
"""Acts after which records of one person are two people's."""

# -- locks


def lock_identifiers(connection: sa.Connection, identifiers: Iterable[Identifier]) -> None:
    """Wait for other feeds of the same identifiers; SQLite has one writer anyway."""
    if connection.dialect.name == "sqlite":
        return
    for key in sorted({_lock_key(identifier) for identifier in identifiers}):
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def _lock_key(identifier: Identifier) -> int:
    named = f"identifier\x00{identifier.system}\x00{identifier.value}"
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big", signed=True)


def lock_people(connection: sa.Connection, ids: Collection[str]) -> dict[str, PersonRow]:
    """The rows as they are now, held until the transaction ends."""
    return {row.id: row for row in map(_person_row, connection.execute(_LOCK_PEOPLE, {"ids": list(ids)}))}


# Statements of every feed are built once: building one costs more than running it.
_THESE_PEOPLE = sa.select(people).where(people.c.id.in_(sa.bindparam("ids", expanding=True)))
_LOCK_PEOPLE = _THESE_PEOPLE.order_by(people.c.id).with_for_update(key_share=True)


# -- people


def person(connection: sa.Connection, person_id: str) -> PersonRow | None:
    """The person, or the one it was merged into."""
    target = people.alias()
    query = (
        sa.select(people)
        .select_from(target)
        .join(people, people.c.id == sa.func.coalesce(target.c.merged_into, target.c.id))
        .where(target.c.id == person_id)
    )
    row = connection.execute(query).one_or_none()
    return _person_row(row) if row else None


def people_by_id(connection: sa.Connection, ids: Collection[str]) -> dict[str, PersonRow]:
    """The rows with these very ids, merged ones included."""
    return {row.id: row for row in map(_person_row, connection.execute(_THESE_PEOPLE, {"ids": list(ids)}))}


def people_after(connection: sa.Connection, person_id: str, limit: int) -> list[str]:
    """The next active people in the order of their ids."""
    query = sa.select(people.c.id).where(people.c.id > person_id, people.c.active).order_by(people.c.id).limit(limit)
    return list(connection.scalars(query))


def merged_ids(connection: sa.Connection, person_id: str) -> list[str]:
    """Ids that now stand for `person_id`, in order."""
    query = sa.select(people.c.id).where(people.c.merged_into == person_id).order_by(people.c.id)
    return list(connection.scalars(query))


def _person_row(row: Any) -> PersonRow:
    return PersonRow(row.id, row.version, row.updated, row.active, row.resource, row.merged_into, row.created)


def add_person(connection: sa.Connection, now: datetime, patient: Resource | None = None) -> str:
    """A person with her golden Patient; without one she has no records yet."""
    person_id = new_id()
    row = {
        "id": person_id,
        "created": now,
        "updated": now,
        "version": int(patient is not None),
        "active": patient is not None,
        "resource": patient or {"resourceType": "Patient"},
    }
    connection.execute(_ADD_PERSON, row)
    _add_tokens(connection, person_id, patient)
    return person_id


_ADD_PERSON = sa.insert(people)


def write_golden(connection: sa.Connection, person_id: str, patient: Resource | None, now: datetime) -> None:
    """Replace the person's golden Patient and tokens; None when no active record is left."""
    values: dict[str, Any] = {"of_person": person_id, "now": now, "is_active": patient is not None}
    if patient is None:
        connection.execute(_EMPTY, values)
    else:
        connection.execute(_WRITE_GOLDEN, {**values, "body": patient})
    write_tokens(connection, person_id, patient)


_EMPTY = (
    sa.update(people)
    .where(people.c.id == sa.bindparam("of_person"))
    .values(
        version=people.c.version + 1,
        updated=sa.bindparam("now", type_=people.c.updated.type),
        active=sa.bindparam("is_active", type_=sa.Boolean),
    )
)
_WRITE_GOLDEN = _EMPTY.values(resource=sa.bindparam("body", type_=sa.JSON))
_FORGET_TOKENS = sa.delete(person_tokens).where(person_tokens.c.person_id == sa.bindparam("of_person"))


def write_tokens(connection: sa.Connection, person_id: str, patient: Resource | None) -> None:
    """What searches find the person by, in place of what was there."""
    connection.execute(_FORGET_TOKENS, {"of_person": person_id})
    _add_tokens(connection, person_id, patient)


def _add_tokens(connection: sa.Connection, person_id: str, patient: Resource | None) -> None:
    insert(connection, person_tokens, [(person_id, *token) for token in tokens_of(patient or {})])


def set_merged_into(connection: sa.Connection, ids: Collection[str], survivor: str | None) -> None:
    """Let these ids stand for the survivor; with None, each for itself again."""
    connection.execute(sa.update(people).where(people.c.id.in_(ids)).values(merged_into=survivor))


# -- source records


def find(connection: sa.Connection, identifier: Identifier) -> Held | None:
    """The record with this id at its member, whatever became of it."""
    named = {"of_system": identifier.system, "of_value": identifier.value}
    return next(map(_held_row, connection.execute(_FIND, named)), None)


def find_by_id(connection: sa.Connection, record_id: str) -> Held | None:
    return next(map(_held_row, connection.execute(_FIND_BY_ID, {"of_record": record_id})), None)


def survivor_of(connection: sa.Connection, held: Held) -> Held | None:
    """The end of the chain of replacements; None when that was deleted. Merging refuses cycles, so it ends."""
    current: Held | None = held
    while current is not None and current.replaced_by is not None:
        current = find_by_id(connection, current.replaced_by)
    return current if current is not None and current.record.active else None


def active_records(connection: sa.Connection, person_ids: Collection[str]) -> dict[str, list[SourceRecord]]:
    """The active records of each person, oldest id first."""
    found: dict[str, list[SourceRecord]] = {person_id: [] for person_id in person_ids}
    for held in map(_held_row, connection.execute(_ACTIVE_RECORDS, {"ids": list(person_ids)})):
        found[held.record.person_id].append(held.record)
    return found


def identifiers(connection: sa.Connection, person_id: str) -> tuple[Identifier, ...]:
    """The ids of all of a person's records, whatever became of them."""
    columns = source_records.c
    rows = connection.execute(sa.select(columns.system, columns.value).where(columns.person_id == person_id))
    return tuple(Identifier(row.system, row.value) for row in rows)


def parted_from(connection: sa.Connection, person_id: str) -> dict[str, datetime]:
    """The people that this one was one with until an act of a steward took records apart, and when that last was."""
    made = link_decisions.c
    query = sa.select(made.person_before, made.person_after, made.at).where(
        made.event.in_(_PARTING),
        made.person_before != made.person_after,
        sa.or_(made.person_before == person_id, made.person_after == person_id),
    )
    found: dict[str, datetime] = {}
    for row in connection.execute(query):
        other = row.person_after if row.person_before == person_id else row.person_before
        found[other] = max(row.at, found.get(other, row.at))
    rows = people_by_id(connection, found)
    return {other: at for other, at in found.items() if other in rows and rows[other].active}


_HELD = (
    sa.select(
        source_records,
        source_record_versions.c.body,
        source_record_versions.c.content_hash,
        source_record_versions.c.received,
    )
    .join(
        source_record_versions,
        sa.and_(
            source_record_versions.c.record_id == source_records.c.id,
            source_record_versions.c.version == source_records.c.version,
        ),
    )
    .order_by(source_records.c.id)
)
_FIND = _HELD.where(
    source_records.c.system == sa.bindparam("of_system"), source_records.c.value == sa.bindparam("of_value")
)
_FIND_BY_ID = _HELD.where(source_records.c.id == sa.bindparam("of_record"))
_ACTIVE_RECORDS = _HELD.where(
    source_records.c.person_id.in_(sa.bindparam("ids", expanding=True)), source_records.c.active
)


def _held(connection: sa.Connection, where: sa.ColumnElement[bool]) -> list[Held]:
    return [_held_row(row) for row in connection.execute(_HELD.where(where))]


def _held_row(row: Any) -> Held:
    record = SourceRecord(
        id=row.id,
        member_id=row.member_id,
        identifier=Identifier(row.system, row.value),
        person_id=row.person_id,
        version=row.version,
        active=row.active,
        resource=row.body,
        updated=row.received,
    )
    return Held(record, row.replaced_by, row.source_updated, row.content_hash)


def records_at(connection: sa.Connection, record_ids: Collection[str], at: datetime) -> list[SourceRecord]:
    """These records as they were at an instant, those that were active then; `person_id` is of now."""
    versions = source_record_versions
    newest = (
        sa.select(versions.c.record_id, sa.func.max(versions.c.version).label("version"))
        .where(versions.c.record_id.in_(record_ids), versions.c.received <= at)
        .group_by(versions.c.record_id)
        .subquery()
    )
    query = (
        sa.select(source_records, versions.c.body, versions.c.content_hash, versions.c.received, versions.c.event)
        .add_columns(versions.c.version.label("version_then"))
        .join(newest, newest.c.record_id == source_records.c.id)
        .join(versions, sa.and_(versions.c.record_id == source_records.c.id, versions.c.version == newest.c.version))
        .where(versions.c.event == "feed")
        .order_by(source_records.c.id)
    )
    rows = connection.execute(query)
    return [replace(_held_row(row).record, version=row.version_then, active=True) for row in rows]


def add_record(connection: sa.Connection, record: SourceRecord, source_updated: datetime | None) -> None:
    """A record's first row; its version follows by `add_version`."""
    row = {
        "id": record.id,
        "member_id": record.member_id,
        "system": record.identifier.system,
        "value": record.identifier.value,
        "person_id": record.person_id,
        "version": record.version,
        "active": record.active,
        "source_updated": source_updated,
    }
    connection.execute(_ADD_RECORD, row)


_ADD_RECORD = sa.insert(source_records)


def add_version(connection: sa.Connection, record: SourceRecord, event: str, digest: str = "") -> None:
    """Keep what arrived. `digest` is empty where the body is not the member's own message."""
    row = {
        "record_id": record.id,
        "version": record.version,
        "event": event,
        "body": record.resource,
        "content_hash": digest,
        "received": record.updated,
    }
    connection.execute(_ADD_VERSION, row)


_ADD_VERSION = sa.insert(source_record_versions)


def next_version(
    connection: sa.Connection, record: SourceRecord, event: str, now: datetime, digest: str = "", **values: object
) -> SourceRecord:
    """Make `record` (with its new body, state and person) the current version."""
    newer = replace(record, version=record.version + 1, updated=now)
    row = {"version": newer.version, "active": newer.active, "person_id": newer.person_id, **values}
    connection.execute(sa.update(source_records).where(source_records.c.id == record.id).values(row))
    add_version(connection, newer, event, digest)
    return newer


def set_source_updated(connection: sa.Connection, record_id: str, moment: datetime) -> None:
    """Remember a newer `meta.lastUpdated` of the same content."""
    connection.execute(sa.update(source_records).where(source_records.c.id == record_id).values(source_updated=moment))


def set_replaced_by(connection: sa.Connection, record_id: str, survivor_id: str) -> None:
    connection.execute(
        sa.update(source_records).where(source_records.c.id == record_id).values(replaced_by=survivor_id)
    )


def has_seen(connection: sa.Connection, record_id: str, digest: str) -> bool:
    """Whether this content was a version of the record before."""
    versions = source_record_versions
    query = sa.select(versions.c.version).where(versions.c.record_id == record_id, versions.c.content_hash == digest)
    return connection.execute(query).first() is not None


def bodies_of(connection: sa.Connection, record_id: str) -> list[Resource]:
    """Every body of a record, oldest first."""
    versions = source_record_versions
    query = sa.select(versions.c.body).where(versions.c.record_id == record_id).order_by(versions.c.version)
    return list(connection.scalars(query))


def with_aliases(connection: sa.Connection, record_ids: Collection[str]) -> dict[str, str]:
    """Record id -> person id, of these records and of all that they replaced."""
    columns = (source_records.c.id, source_records.c.person_id)
    found: dict[str, str] = {}
    where: sa.ColumnElement[bool] = source_records.c.id.in_(record_ids)
    while rows := [r for r in connection.execute(sa.select(*columns).where(where)) if r.id not in found]:
        found |= {row.id: row.person_id for row in rows}
        where = source_records.c.replaced_by.in_([row.id for row in rows])
    return found


def move_records(connection: sa.Connection, record_ids: Collection[str], person_id: str) -> None:
    """Give records to a person; what they replaced does not follow by itself."""
    where = source_records.c.id.in_(record_ids)
    connection.execute(sa.update(source_records).where(where).values(person_id=person_id))


def records_of(connection: sa.Connection, person_id: str) -> list[Held]:
    """Every record of a person, whatever became of it, oldest id first."""
    return _held(connection, source_records.c.person_id == person_id)


def records_by_id(connection: sa.Connection, record_ids: Collection[str]) -> dict[str, SourceRecord]:
    return {held.record.id: held.record for held in _held(connection, source_records.c.id.in_(record_ids))}


def content_hash(patient: Resource) -> str:
    """SHA-256 of what a Patient says, apart from ids and times that a sender's server stamps on it."""
    said = {key: value for key, value in patient.items() if key not in ("id", "meta")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


# -- what is known at all


def knows_system(connection: sa.Connection, system: str) -> bool:
    """Whether any person has an identifier of this system."""
    query = (
        sa.select(person_tokens.c.id)
        .where(person_tokens.c.kind == "identifier", person_tokens.c.exact == system)
        .limit(1)
    )
    return connection.execute(query).first() is not None


def search_people(
    connection: sa.Connection, where: Sequence[sa.ColumnElement[bool]], after: str | None, limit: int
) -> list[PersonRow]:
    """At most `limit` people in order of id, from behind `after`."""
    query = sa.select(people).where(people.c.active, *where).order_by(people.c.id).limit(limit)
    if after is not None:
        query = query.where(people.c.id > after)
    return [_person_row(row) for row in connection.execute(query)]


def people_of_members(member_ids: Collection[str]) -> sa.Select[str]:
    """Ids of the people of whom one of these members holds an active record."""
    return sa.select(source_records.c.person_id).where(
        source_records.c.member_id.in_(member_ids), source_records.c.active
    )


def count_people(connection: sa.Connection, where: Sequence[sa.ColumnElement[bool]]) -> int:
    query = sa.select(sa.func.count()).select_from(people).where(people.c.active, *where)
    return connection.execute(query).scalar_one()
