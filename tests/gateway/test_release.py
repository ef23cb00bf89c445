"""The one door, with real identity, consent and log, and members whose answers a test writes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from hie.audit.query import AuditQuery
from hie.core.caller import Role
from hie.core.errors import AuditUnavailable, Forbidden, HieError, NotFound
from hie.core.scopes import Scopes
from hie.gateway.release import Release, SourcesFailed
from hie.gateway.services import Services
from hie.mpi.identity import Identifier
from tests.gateway.door import Members, allergy, caller, chart


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

    def broken(_person_ids: object, _subject: object) -> None:
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
