"""What the identity service speaks of: people, their source records, and what became of a feed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

import sqlalchemy as sa

from hie.core.fhir import Resource
from hie.mpi.index import Agreement, MatchDecision

T = TypeVar("T")
Also = Callable[[sa.Connection, T], None] | None
"""Called with the open connection and the result just before commit, so that its writes share the transaction."""

MAX_IDENTIFIER = 255
"""Longest system or value of an identifier that the exchange keeps, in characters."""


@dataclass(frozen=True)
class Identifier:
    """A patient id and the authority that assigned it."""

    system: str
    value: str


@dataclass(frozen=True)
class SourceRecord:
    """One patient as one member knows it. `version` counts from 1; `updated` is when that version arrived."""

    id: str
    member_id: str
    identifier: Identifier
    person_id: str
    version: int
    active: bool
    """False once deleted, or replaced by another record of the same member."""
    resource: Resource
    updated: datetime


@dataclass(frozen=True)
class Person:
    """One human being: the active source records, and the golden Patient made of them (its id is the person's)."""

    id: str
    records: tuple[SourceRecord, ...]
    resource: Resource


@dataclass(frozen=True)
class Candidate:
    """Somebody who may be the described patient. `weight` in bits."""

    person: Person
    probability: float
    weight: float
    agreements: tuple[Agreement, ...]


class Grade(StrEnum):
    """FHIR R4 match-grade. `certain`: the matcher would link by itself, with no other person in the way."""

    CERTAIN = "certain"
    PROBABLE = "probable"
    POSSIBLE = "possible"
    CERTAINLY_NOT = "certainly-not"


@dataclass(frozen=True)
class Match:
    """Somebody who may be the patient of a `$match`. `probability` is calibrated: of 100 at 0.95, 95 are."""

    person: Person
    probability: float
    grade: Grade


@dataclass(frozen=True)
class FeedResult:
    """What a feed did. Not `changed`: the same content again, or older than what is held (`stale`)."""

    record: SourceRecord
    created: bool
    changed: bool
    decision: MatchDecision | None
    stale: bool = False


# -- stewardship


class TaskKind(StrEnum):
    """Why a steward is asked."""

    SAME_PERSON = "same-person"
    """The record may be the candidate."""
    CONTRADICTION = "contradiction"
    """The record is the candidate's, and its data now speak against it."""
    MERGE = "merge"
    """A member merged one of the candidate's records into this one."""


@dataclass(frozen=True)
class ReviewTask:
    """A question: is the record's person (`person_id`, as of now) the candidate? `value` orders the queue."""

    id: str
    kind: TaskKind
    record_id: str
    person_id: str
    candidate_id: str
    probability: float | None
    value: float
    status: str
    """open | superseded | linked | separate"""
    created: datetime


class EventKind(StrEnum):
    """What was decided about who is who. The first three go by themselves, the rest is a steward's."""

    SUBSUME = "subsume"
    """A member merged two of its ids."""
    FEED = "feed"
    """Changed data brought a record to another person."""
    JOIN = "join"
    """A record showed that two people are one."""
    CONFIRM = "confirm"
    REJECT = "reject"
    LINK = "link"
    MERGE = "merge"
    SPLIT = "split"
    UNDO = "undo"

    @property
    def automatic(self) -> bool:
        return self in (EventKind.SUBSUME, EventKind.FEED, EventKind.JOIN)


@dataclass(frozen=True)
class By:
    """Who decides, and why. `actor` is `Organization/<id>`, `User/<e-mail>` or `operator`."""

    actor: str
    reason: str


@dataclass(frozen=True)
class LinkEvent:
    """One decision, whole: `state` holds what it changed, before and after. `people` are the ids it is about."""

    id: str
    at: datetime
    kind: EventKind
    actor: str
    reason: str
    model_version: str
    state: Resource = field(repr=False)
    undone_by: str | None = None

    @property
    def people(self) -> tuple[str, ...]:
        return tuple(self.state["people"])


@dataclass(frozen=True)
class LinkDecision:
    """Where one record went, when, by whom and why; a part of an event where that moved more than one."""

    id: str
    record_id: str
    at: datetime
    event: str
    actor: str
    verdict: str | None
    probability: float | None
    reasons: Resource
    model_version: str | None
    person_before: str | None
    person_after: str
    event_id: str | None
