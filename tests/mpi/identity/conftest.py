"""An identity service under the model that ships, and people to feed it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hie.core.database import Database
from hie.core.fhir import Resource
from hie.mpi.identity import FeedResult, Identifier, IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model

LAKESIDE, HARBOR, MEADOW = "urn:oid:2.999.1.1", "urn:oid:2.999.1.2", "urn:oid:2.999.1.3"
MEMBERS = {"lakeside": LAKESIDE, "harbor": HARBOR, "meadow": MEADOW}


class Clock:
    """A clock that a test moves; each reading is a second later."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def model() -> Model:
    return Model.load()


@pytest.fixture
def service(database: Database, clock: Clock, model: Model) -> IdentityService:
    return IdentityService(database, MatchIndex(model, database.is_sqlite), clock)


def marta(**changes: Any) -> Resource:
    """Marta Lindqvist, with enough to be known by."""
    body: Resource = {
        "resourceType": "Patient",
        "name": [{"use": "official", "family": "Lindqvist", "given": ["Marta", "Ingrid"]}],
        "birthDate": "1949-11-02",
        "gender": "female",
        "telecom": [{"system": "phone", "value": "617-555-0107"}],
        "address": [{"line": ["4 Quay Rd"], "city": "Boston", "state": "MA", "postalCode": "02110"}],
        "identifier": [{"system": "http://hl7.org/fhir/sid/us-ssn", "value": "219-09-9999"}],
    }
    return {**body, **changes}


def otto(**changes: Any) -> Resource:
    """Otto Brandt, who has nothing in common with Marta."""
    body: Resource = {
        "resourceType": "Patient",
        "name": [{"family": "Brandt", "given": ["Otto"]}],
        "birthDate": "1983-05-19",
        "gender": "male",
        "telecom": [{"system": "phone", "value": "312-555-0188"}],
        "address": [{"line": ["900 Prairie Ave"], "city": "Chicago", "state": "IL", "postalCode": "60616"}],
    }
    return {**body, **changes}


Feed = Callable[..., FeedResult]


@pytest.fixture
def feed(service: IdentityService) -> Feed:
    """`feed("lakeside", "1", marta())`: the body gets the member's identifier, as a member would send it."""

    def send(member_id: str, value: str, patient: Resource, **options: Any) -> FeedResult:
        own = {"system": MEMBERS[member_id], "value": value}
        body = {**patient, "identifier": [own, *patient.get("identifier", [])]}
        return service.record(member_id, Identifier(MEMBERS[member_id], value), body, **options)

    return send
