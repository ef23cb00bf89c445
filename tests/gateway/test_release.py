"""The one door, with real identity, consent and log, and members whose answers a test writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from hie.audit.query import AuditQuery
from hie.core import schema
from hie.core.caller import Caller, Role
from hie.core.errors import AuditUnavailable, Forbidden, HieError, NotFound
from hie.core.scopes import Scopes
from hie.gateway.gateway_ids import GatewayIds
from hie.gateway.release import ChartAnswer, Release, SourcesFailed
from hie.gateway.services import Services
from hie.gateway.transport import Failure, MemberAnswer, MemberQuery
from hie.mpi.identity import Identifier
from tests.gateway.outside import manifest, manifest_dict, settings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PATIENT = {
    "resourceType": "Patient",
    "name": [{"family": "Lindqvist", "given": ["Marta"]}],
    "birthDate": "1949-11-02",
}
LAKESIDE, MEADOW = Identifier("urn:oid:2.999.1.1", "l-1"), Identifier("urn:oid:2.999.1.2", "m-1")


class Members:
    """Stands in for the transport: `held` by (member, path), `failing` by member."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.failing: dict[str, str] = {}
        self.asked: list[MemberQuery] = []

    def ask(self, queries: list[MemberQuery], deadline_at: float) -> list[MemberAnswer]:
        assert deadline_at - time.monotonic() < 10
        return [self.read(query, deadline_at) for query in queries]

    def read(self, query: MemberQuery, _deadline_at: float) -> MemberAnswer:
        self.asked.append(query)
        status = self.failing.get(query.member_id)
        found = () if status else tuple(self.held.get((query.member_id, query.path), ()))
        return MemberAnswer(query.member_id, found, Failure(status) if status else None, 1.0)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    from hie.app import build_services

    built = build_services(settings(tmp_path), lambda: NOW)
    schema.upgrade(built.database)
    community = manifest_dict()
    community["members"][1]["part2"] = False
    built.directory.apply(manifest(community))
    for member, identifier in (("lakeside", LAKESIDE), ("meadow", MEADOW)):
        named = {"identifier": [{"system": identifier.system, "value": identifier.value}]}
        built.identity.record(
            member, identifier, PATIENT | named | {"telecom": [{"system": "phone", "value": "617-555-0107"}]}
        )
    return built


@pytest.fixture
def members() -> Members:
    return Members()


@pytest.fixture
def make(services: Services, members: Members) -> Callable[..., Release]:
    def build(**instead: Any) -> Release:
        parts: dict[str, Any] = {
            "fhir_base": services.settings.fhir_base,
            "query_deadline": 2.0,
            "clock": lambda: NOW,
            "directory": services.directory,
            "identity": services.identity,
            "consents": services.consents,
            "audit": services.audit,
            "transport": members,
            "gateway_ids": GatewayIds(services.database, b"k" * 32),
        }
        return Release(**parts | instead)

    return build


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


def kinds(services: Services) -> list[str]:
    page = services.audit.search(AuditQuery(request_ids=(("r-1",),)))
    return [entry.kind for entry in page.entries]


def test_what_is_released_is_in_the_log_with_its_digest(
    services: Services, members: Members, make: Callable[..., Release]
) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [
        allergy("a1"),
        allergy("strangers", "l-2"),
        {**allergy("x"), "patient": 7},
    ]
    answer = chart(make())
    assert [entry.resource["code"]["text"] for entry in answer.entries] == ["a1"]
    assert {source.member_id: source.status for source in answer.sources} == {"lakeside": "invalid", "meadow": "ok"}
    (entry,) = services.audit.search(AuditQuery(request_ids=(("r-1",),))).entries
    assert answer.entries[0].sha256 in entry.body.decode()
    assert kinds(services) == ["disclosure"]


def test_without_a_durable_entry_nothing_is_released(members: Members, make: Callable[..., Release]) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("a1")]

    def broken(*_events: object) -> None:
        raise AuditUnavailable

    with pytest.raises(AuditUnavailable):
        chart(make(audit=SimpleNamespace(record=broken)))


def test_without_the_consents_nothing_is_released(members: Members, make: Callable[..., Release]) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("a1")]

    def broken(_person_ids: object) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("gone"))

    with pytest.raises((HieError, sa.exc.SQLAlchemyError)):
        chart(make(consents=SimpleNamespace(policy=broken)))
    assert members.asked == []


@pytest.mark.parametrize(
    "asking",
    [
        {"role": Role.PRIVACY_OFFICER},
        {"role": Role.DATA_STEWARD},
        {"role": Role.OPERATOR},
        {"role": Role.MEMBER_ADMIN},
        {"scopes": Scopes.parse("system/Condition.rs")},
        {"scopes": Scopes.parse("system/AllergyIntolerance.r")},
    ],
)
def test_who_may_not_see_charts_asks_nobody_and_is_in_the_log(
    services: Services, members: Members, make: Callable[..., Release], asking: dict[str, Any]
) -> None:
    with pytest.raises(Forbidden) as caught:
        chart(make(), asking=caller(**asking))
    assert caught.value.audited
    assert members.asked == []
    assert kinds(services) == ["denial"]


def test_all_sources_failing_is_an_error_in_the_log(
    services: Services, members: Members, make: Callable[..., Release]
) -> None:
    members.failing = {"lakeside": "timeout", "meadow": "timeout"}
    with pytest.raises(SourcesFailed) as caught:
        chart(make())
    assert caught.value.status == 504
    members.failing["meadow"] = "error"
    with pytest.raises(SourcesFailed) as caught:
        chart(make())
    assert caught.value.status == 502
    assert kinds(services) == ["failure", "failure"]


def test_an_unknown_patient_is_not_an_empty_record(services: Services, make: Callable[..., Release]) -> None:
    for who in ("nobody", Identifier("urn:oid:2.999.1.1", "nobody"), Identifier("urn:nowhere", "l-1")):
        with pytest.raises(NotFound):
            chart(make(), who=who)
    assert kinds(services) == ["denial"] * 3


def test_a_filter_and_a_page_see_only_what_is_released(members: Members, make: Callable[..., Release]) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy(f"a{n}") for n in range(5)]
    seen: list[int] = []

    def page(entries: list[Any]) -> list[Any]:
        seen.append(len(entries))
        return entries[:2]

    answer = chart(make(), keep=lambda resource: resource["code"]["text"] != "a3", page=page)
    assert seen == [4]
    assert len(answer.entries) == 2


def test_equal_ids_of_two_members_stay_apart_and_read_back(members: Members, make: Callable[..., Release]) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("7")]
    members.held["meadow", "AllergyIntolerance"] = [allergy("7", "m-1") | {"code": {"text": "other"}}]
    release = make()
    entries = chart(release, asking=caller()).entries
    held = {entry.member_id: entry.resource for entry in entries}
    assert held["lakeside"]["id"] != held["meadow"]["id"]
    members.held["lakeside", "AllergyIntolerance/7"] = [allergy("7")]
    again = release.read(caller(), "AllergyIntolerance", held["lakeside"]["id"], query="GET /fhir/…", request_id="r-2")
    assert again.resource == held["lakeside"]
    for other in ("Condition", "Observation"):
        with pytest.raises(NotFound):
            release.read(caller(), other, held["lakeside"]["id"], query="GET /fhir/…", request_id="r-3")


def test_withheld_and_unheard_of_read_the_same(
    services: Services, members: Members, make: Callable[..., Release]
) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("7")]
    members.held["lakeside", "AllergyIntolerance/7"] = [allergy("7")]
    release = make()
    (entry,) = chart(release).entries
    deny = {
        "resourceType": "Consent",
        "status": "active",
        "scope": {
            "coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]
        },
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": f"Patient/{entry.resource['patient']['reference'].split('/')[1]}"},
        "dateTime": "2026-01-01",
        "policyRule": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTOUT"}]},
        "provision": {"type": "deny"},
    }
    person = deny["patient"]["reference"].removeprefix("Patient/")  # type: ignore[index]
    services.consents.create(deny, person, caller())
    with pytest.raises(NotFound) as withheld:
        release.read(caller(), "AllergyIntolerance", entry.resource["id"], query="GET …", request_id="r-4")
    with pytest.raises(NotFound) as unheard:
        release.read(caller(), "AllergyIntolerance", "never", query="GET …", request_id="r-4")
    assert (withheld.value.message, withheld.value.status) == (unheard.value.message, unheard.value.status)
    members.asked.clear()
    answer = chart(release)
    assert answer.entries == ()
    assert members.asked == []
    assert [issue["code"] for issue in answer.issues] == ["suppressed"]
