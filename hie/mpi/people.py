"""What the identity service speaks of: people, their source records, and what became of a feed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
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


@dataclass(frozen=True)
class FeedResult:
    """What a feed did. Not `changed`: the same content again, or older than what is held (`stale`)."""

    record: SourceRecord
    created: bool
    changed: bool
    decision: MatchDecision | None
    stale: bool = False
