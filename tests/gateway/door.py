"""The one door with members whose answers a test writes: what `conftest` makes fixtures of, and ways to ask."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from hie.core.caller import Caller, Role
from hie.core.scopes import Scopes
from hie.gateway.release import ChartAnswer, Release
from hie.gateway.transport import Failure, MemberAnswer, MemberQuery
from hie.mpi.identity import Identifier

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PATIENT = {
    "resourceType": "Patient",
    "name": [{"family": "Lindqvist", "given": ["Marta"]}],
    "birthDate": "1949-11-02",
}
LAKESIDE, MEADOW = Identifier("urn:oid:2.999.1.1", "l-1"), Identifier("urn:oid:2.999.1.2", "m-1")


class Members:
    """Stands in for the transport: `held` by (member, path), `failing` by member, `failing_paths` by both."""

    def __init__(self) -> None:
        self.latency = 0.0
        self.failing_paths: dict[tuple[str, str], str] = {}
        self.absent_paths: set[tuple[str, str]] = set()
        self.held: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.failing: dict[str, str] = {}
        self.asked: list[MemberQuery] = []

    def ask(self, queries: list[MemberQuery], deadline_at: float) -> list[MemberAnswer]:
        assert deadline_at - time.monotonic() < 10
        time.sleep(self.latency)
        return [self._answer(query) for query in queries]

    def read(self, query: MemberQuery, deadline_at: float) -> MemberAnswer:
        return self.ask([query], deadline_at)[0]

    def _answer(self, query: MemberQuery) -> MemberAnswer:
        self.asked.append(query)
        at = query.member_id, query.path
        if at in self.absent_paths:
            return MemberAnswer(query.member_id, (), Failure("error", absent=True), 1.0)
        status = self.failing.get(query.member_id) or self.failing_paths.get(at)
        found = () if status else tuple(self.held.get((query.member_id, query.path), ()))
        return MemberAnswer(query.member_id, found, Failure(status) if status else None, 1.0)


def caller(**more: Any) -> Caller:
    given: dict[str, Any] = {
        "organization": "lakeside",
        "organization_name": "Lakeside Hospital",
        "role": Role.MEMBER,
        "purposes": frozenset({"TREAT"}),
        "scopes": Scopes.parse("system/*.rs"),
        "session": "s-1",
        "client_id": "lakeside-ehr",
    }
    return Caller(**given | more)


def allergy(local_id: str, patient: str = "l-1") -> dict[str, Any]:
    reference = {"reference": f"Patient/{patient}"}
    return {"resourceType": "AllergyIntolerance", "id": local_id, "patient": reference, "code": {"text": local_id}}


def chart(release: Release, **more: Any) -> ChartAnswer:
    who = more.pop("who", LAKESIDE)
    asking = more.pop("asking", caller())
    return release.chart(asking, who, ["AllergyIntolerance"], query="GET /fhir/…", request_id="r-1", **more)


def of_lakeside(kind: str, local_id: str, **elements: Any) -> dict[str, Any]:
    """A resource of the patient that lakeside calls l-1."""
    subject = "patient" if kind == "AllergyIntolerance" else "subject"
    return {"resourceType": kind, "id": local_id, subject: {"reference": "Patient/l-1"}, **elements}


def coded(system: str, code: str, **more: Any) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}], **more}


def consent(person_id: str, provision: dict[str, Any], **elements: Any) -> dict[str, Any]:
    """A privacy consent that permits all but what `provision` says."""
    return {
        "resourceType": "Consent",
        "status": "active",
        "scope": coded("http://terminology.hl7.org/CodeSystem/consentscope", "patient-privacy"),
        "category": [coded("http://loinc.org", "59284-0")],
        "patient": {"reference": f"Patient/{person_id}"},
        "dateTime": "2026-01-01",
        "provision": provision,
        **elements,
    }


def all_but(**criteria: Any) -> dict[str, Any]:
    return {"type": "permit", "provision": [{"type": "deny", **criteria}]}


def labelled(*codes: str) -> list[dict[str, str]]:
    return [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": code} for code in codes]
