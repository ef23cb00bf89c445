"""When which member registered a person, and what she is known as: what judging accesses asks of the index.

Every read is of many people at once; an id that was merged into another stands for the same person.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from hie.mpi.demographics import Traits, traits_of
from hie.mpi.people import SourceRecord
from hie.mpi.registry import active_records, people_by_id
from hie.mpi.tables import people, person_tokens, source_record_versions, source_records
from hie.mpi.text import normalised

_CHUNK = 500


@dataclass(frozen=True)
class Registered:
    """A member sent demographics of a person that it had not sent before."""

    person_id: str
    member_id: str
    at: datetime


@dataclass(frozen=True)
class Known:
    """A person as the index has her: the golden record's traits, and what each member wrote."""

    traits: Traits
    records: tuple[SourceRecord, ...]


def registrations(connection: sa.Connection, person_ids: Collection[str]) -> Iterator[Registered]:
    """Every version of every source record of these people, deleted ones included."""
    for asked in by_survivor(connection, person_ids):
        rows = connection.execute(
            sa.select(source_records.c.person_id, source_records.c.member_id, source_record_versions.c.received)
            .join(source_record_versions, source_record_versions.c.record_id == source_records.c.id)
            .where(source_records.c.person_id.in_(asked), source_record_versions.c.event == "feed")
        )
        for person_id, member_id, at in rows:
            yield from (Registered(same, member_id, at) for same in asked[person_id])


def known(connection: sa.Connection, person_ids: Collection[str]) -> dict[str, Known]:
    """What is known of each of these people; who is unknown is left out."""
    survivors = survivors_of(connection, person_ids)
    found: dict[str, Known] = {}
    for chunk in _chunks(sorted(set(survivors.values()))):
        records = active_records(connection, chunk)
        for person_id, row in people_by_id(connection, chunk).items():
            found[person_id] = Known(traits_of(row.resource), tuple(records[person_id]))
    return {person_id: found[survivor] for person_id, survivor in survivors.items() if survivor in found}


def by_email(connection: sa.Connection, emails: Collection[str]) -> dict[str, str]:
    """E-mail -> person, for each that just one person has."""
    lowered = {email.casefold() for email in emails}
    found: dict[str, set[str]] = {}
    for chunk in _chunks(sorted(lowered)):
        rows = connection.execute(
            sa.select(person_tokens.c.value, person_tokens.c.person_id).where(
                person_tokens.c.kind == "telecom", person_tokens.c.value.in_(chunk)
            )
        )
        for email, person_id in rows:
            found.setdefault(email, set()).add(person_id)
    return {email: ids.pop() for email, ids in found.items() if len(ids) == 1}


def family_name_share(connection: sa.Connection, family_name: str) -> float:
    """Of all people with a record, those who bear it; one for an empty index, so that no name is rare there."""
    bearers = sa.select(sa.func.count(person_tokens.c.person_id.distinct())).where(
        person_tokens.c.kind == "family", person_tokens.c.value == normalised(family_name)
    )
    everybody = connection.scalar(sa.select(sa.func.count()).where(people.c.active)) or 0
    return (connection.scalar(bearers) or 0) / everybody if everybody else 1.0


def by_survivor(connection: sa.Connection, person_ids: Collection[str]) -> Iterator[dict[str, list[str]]]:
    """Who stands for these people now -> the ids asked for, in parts short enough for one statement."""
    asked: dict[str, list[str]] = {}
    for person_id, survivor in survivors_of(connection, person_ids).items():
        asked.setdefault(survivor, []).append(person_id)
    for chunk in _chunks(sorted(asked)):
        yield {survivor: asked[survivor] for survivor in chunk}


def survivors_of(connection: sa.Connection, person_ids: Collection[str]) -> dict[str, str]:
    """Person id -> the id that stands for the person now; unknown ids are left out."""
    found: dict[str, str] = {}
    for chunk in _chunks(sorted(person_ids)):
        rows = connection.execute(sa.select(people.c.id, people.c.merged_into).where(people.c.id.in_(chunk)))
        found |= {row.id: row.merged_into or row.id for row in rows}
    return found


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Short enough for one statement."""
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))
