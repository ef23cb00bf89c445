"""Invented callers and events for the tests of the log."""

from datetime import UTC, datetime, timedelta

from hie.audit.event import Event, Kind, Outcome, Released, SourceOutcome
from hie.audit.seal import Seal
from hie.core.caller import Caller, Role
from hie.core.scopes import Scopes

BASE = "https://hie.example/fhir"
START = datetime(2026, 3, 1, 8, 0, 0, 250_000, tzinfo=UTC)


def seal(home):
    """The keys and the high-water mark of a log that is kept in `home`."""
    return Seal(home, "hie.example/log")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now=START):
        self.now = now

    def __call__(self):
        return self.now

    def forward(self, **duration):
        self.now += timedelta(**duration)


def caller(**changes):
    values = {
        "organization": "lakeside",
        "organization_name": "Lakeside Hospital",
        "role": Role.MEMBER,
        "purposes": frozenset({"TREAT"}),
        "scopes": Scopes.parse("system/*.rs"),
        "session": "token-1",
        "client_id": "lakeside-ehr",
        "subject_name": "Rosa Ortiz",
        "subject_id": "1234567893",
        "subject_role": "207P00000X",
        "address": "192.0.2.7",
    }
    return Caller(**(values | changes))


def disclosure(person_id="person-1", **changes):
    values = {
        "kind": Kind.DISCLOSURE,
        "outcome": Outcome.SUCCESS,
        "action": "R",
        "caller": caller(),
        "person_id": person_id,
        "query": f"GET /fhir/AllergyIntolerance?patient=Patient/{person_id}",
        "request_id": "request-1",
        "description": "1 resources released, 0 withheld",
        "sources": (SourceOutcome("meadow", "ok", 1),),
        "released": (Released("AllergyIntolerance", "gw-allergy-1", "ab" * 32, ("N",)),),
        "decisions": (
            {
                "permit": True,
                "rule": "default",
                "consent": None,
                "path": [],
                "breakGlass": False,
                "reason": "exchange default",
                "count": 1,
            },
        ),
    }
    return Event(**(values | changes))


def event(kind, action, **changes):
    values = {
        "kind": kind,
        "outcome": Outcome.SUCCESS,
        "action": action,
        "caller": caller(),
        "person_id": "person-1",
        "query": "",
        "request_id": "request-1",
        "description": "",
    }
    return Event(**(values | changes))
