"""What is withheld shows nowhere: in no other resource, number, name, error or time (CONSENT.md section 6)."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from hie.audit.query import AuditQuery
from hie.consent.service import ConsentService
from hie.core.errors import NotFound, ServiceUnavailable
from hie.core.fhir import CLINICAL_TYPES
from hie.gateway.release import ChartAnswer, Release, SourcesFailed
from hie.gateway.services import Services
from hie.mpi.identity import Identifier
from tests.gateway.door import (
    LAKESIDE,
    MEADOW,
    PATIENT,
    Members,
    all_but,
    allergy,
    caller,
    coded,
    consent,
    labelled,
    of_lakeside,
)
from tests.gateway.outside import manifest, manifest_dict

ICD = "http://hl7.org/fhir/sid/icd-10-cm"
MARKER = "ZEBRA"
Make = Callable[..., Release]
HIV = of_lakeside("Condition", "hiv", code=coded(ICD, "B20", text=MARKER), encounter={"reference": "Encounter/visit"})
VISIT = of_lakeside("Encounter", "visit", status="finished", reasonCode=[{"text": "cough"}])
OTHER_VISIT = of_lakeside("Encounter", "other", status="finished")


def ask(release: Release, *types: str, **more: Any) -> ChartAnswer:
    return release.chart(more.pop("asking", caller()), LAKESIDE, types, query="GET", request_id="r-1", **more)


def ids(answer: ChartAnswer) -> list[tuple[str, str]]:
    return [(entry.resource["resourceType"], entry.resource["id"]) for entry in answer.entries]


def person(services: Services) -> str:
    record = services.identity.source_record(LAKESIDE)
    assert record is not None
    return record.person_id


def file(services: Services, provision: dict[str, Any], **elements: Any) -> str:
    stored = services.consents.create(consent(person(services), provision, **elements), person(services), caller())
    return stored.id


# -- labels come from the whole chart, whatever was asked for


def test_an_encounter_asked_for_alone_is_labelled_by_its_condition(
    services: Services, members: Members, make: Make
) -> None:
    members.held["lakeside", "Encounter"] = [VISIT, OTHER_VISIT]
    members.held["lakeside", "Condition"] = [HIV]
    release = make()
    assert len(ids(ask(release, "Encounter"))) == 2
    file(services, all_but(securityLabel=labelled("HIV")))
    alone = ask(release, "Encounter")
    together = ask(release, "Encounter", "Condition")
    assert ids(alone) == ids(together)
    assert len(ids(alone)) == 1
    assert MARKER not in json.dumps([entry.resource for entry in together.entries])


def test_an_encounter_read_by_its_id_is_labelled_by_its_condition(
    services: Services, members: Members, make: Make
) -> None:
    members.held["lakeside", "Encounter"] = [VISIT, OTHER_VISIT]
    members.held["lakeside", "Condition"] = [HIV]
    for visit in (VISIT, OTHER_VISIT):
        members.held["lakeside", f"Encounter/{visit['id']}"] = [visit]
    release = make()
    before = ask(release, "Encounter")
    file(services, all_but(securityLabel=labelled("HIV")))
    ((_, still_there),) = ids(ask(release, "Encounter"))
    for _, one in ids(before):
        if one == still_there:
            found = release.read(caller(), "Encounter", one, query="GET", request_id="r-2").resource
            assert found == next(e.resource for e in before.entries if e.resource["id"] == one)
        else:
            with pytest.raises(NotFound):
                release.read(caller(), "Encounter", one, query="GET", request_id="r-3")


def test_the_chart_is_asked_for_only_where_a_consent_goes_by_labels(
    services: Services, members: Members, make: Make
) -> None:
    release = make()
    ask(release, "Encounter")
    file(services, all_but(**{"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "Observation"}]}))
    ask(release, "Encounter")
    assert {query.path for query in members.asked} == {"Encounter"}
    members.asked.clear()
    file(services, all_but(securityLabel=labelled("HIV")), dateTime="2026-02-01")
    ask(release, "Encounter")
    assert {query.path for query in members.asked} == set(CLINICAL_TYPES) - {"Coverage"}


def test_what_was_read_for_labels_alone_leaves_no_trace(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "Condition"] = [HIV, of_lakeside("Condition", "flu", code={"text": "Influenza"})]
    file(services, all_but(securityLabel=labelled("HIV")))
    seen: list[int] = []
    answer = ask(make(), "Encounter", page=lambda entries: seen.append(len(entries)) or entries)
    assert (seen, answer.entries, answer.complete) == ([0], (), True)
    assert [source.count for source in answer.sources] == [0, 0]
    (entry,) = services.audit.search(AuditQuery(request_ids=(("r-1",),))).entries
    body = entry.body.decode()
    assert "Condition" not in body
    assert "0 resources released, 0 withheld" in body


def test_labels_that_cannot_be_read_are_taken_to_be_there_and_the_source_to_be_incomplete(
    services: Services, members: Members, make: Make
) -> None:
    members.held["lakeside", "Encounter"] = [VISIT]
    release = make()
    for provision, released in (
        (all_but(securityLabel=labelled("HIV")), 0),
        ({"type": "permit", "securityLabel": labelled("HIV")}, 0),
        (all_but(**{"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "Observation"}]}), 1),
    ):
        consent_id = file(services, provision)
        members.failing_paths = {("lakeside", "Condition"): "timeout"}
        answer = ask(release, "Encounter")
        assert len(answer.entries) == released
        assert answer.complete is bool(released)
        withdrawn = consent(person(services), provision, status="inactive")
        services.consents.update(consent_id, withdrawn, person(services), caller())


def test_a_type_that_a_member_does_not_have_carries_no_labels(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "Encounter"] = [VISIT]
    members.absent_paths = {("lakeside", "Condition")}
    file(services, all_but(securityLabel=labelled("HIV")))
    answer = ask(make(), "Encounter")
    assert (len(answer.entries), answer.complete) == (1, True)


def test_a_label_that_came_from_another_resource_is_not_shown(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "Encounter"] = [VISIT]
    members.held["lakeside", "Condition"] = [HIV]
    without_condition = {"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "Condition"}]}
    file(services, all_but(securityLabel=labelled("HIV"), **without_condition))
    ((entry,)) = ask(make(), "Encounter", "Condition").entries
    assert "HIV" not in json.dumps(entry.resource)
    assert entry.labels == ("N",)


# -- what a released resource says of others


def report(**more: Any) -> dict[str, Any]:
    return of_lakeside(
        "DiagnosticReport",
        "dr",
        status="final",
        code={"text": "Blood count"},
        text={"status": "generated", "div": f"<div>{MARKER}</div>"},
        presentedForm=[{"contentType": "application/pdf", "title": MARKER, "data": MARKER, "hash": MARKER}],
        result=[
            {"reference": "Observation/o1", "display": MARKER, "identifier": {"value": MARKER}},
            {"display": MARKER},
        ],
        performer=[{"display": "Dr. Amsel"}],
        **more,
    )


def test_narrative_attachments_and_names_stay_behind_where_something_could_be_withheld(
    services: Services, members: Members, make: Make
) -> None:
    members.held["lakeside", "DiagnosticReport"] = [report()]
    release = make()
    (open_,) = ask(release, "DiagnosticReport").entries
    assert open_.resource["text"]["div"] == f"<div>{MARKER}</div>"
    assert open_.resource["presentedForm"][0]["data"] == MARKER
    file(services, all_but(securityLabel=labelled("HIV")))
    (guarded,) = ask(release, "DiagnosticReport").entries
    assert MARKER not in json.dumps(guarded.resource)
    assert guarded.resource["presentedForm"] == [{"contentType": "application/pdf"}]
    assert guarded.resource["performer"] == [{"display": "Dr. Amsel"}]
    assert guarded.resource["result"][0]["reference"].startswith("Observation/")


def test_a_consent_for_other_callers_takes_nothing_from_this_one(
    services: Services, members: Members, make: Make
) -> None:
    members.held["lakeside", "DiagnosticReport"] = [report()]
    others = [{"reference": {"reference": "Organization/meadow"}}]
    file(services, {"type": "permit", "provision": [{"type": "deny", "actor": others}]})
    (entry,) = ask(make(), "DiagnosticReport").entries
    assert "text" in entry.resource


def test_a_contained_resource_that_is_denied_goes_with_every_reference_to_it(
    services: Services, members: Members, make: Make
) -> None:
    reason = {"resourceType": "Condition", "id": "why", "code": {"text": MARKER}}
    drug = {"resourceType": "Medication", "id": "drug", "code": {"text": "Amoxicillin"}}
    members.held["lakeside", "MedicationRequest"] = [
        of_lakeside(
            "MedicationRequest",
            "m1",
            status="active",
            contained=[reason, drug],
            medicationReference={"reference": "#drug"},
            reasonReference=[{"reference": "#why", "display": MARKER}],
        )
    ]
    release = make()
    assert MARKER in json.dumps(ask(release, "MedicationRequest").entries[0].resource)
    file(services, all_but(**{"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "Condition"}]}))
    (entry,) = ask(release, "MedicationRequest").entries
    assert MARKER not in json.dumps(entry.resource)
    assert entry.resource["contained"] == [drug]
    assert "reasonReference" not in entry.resource
    assert entry.resource["medicationReference"] == {"reference": "#drug"}


def test_a_sensitive_code_in_a_contained_resource_withholds_its_container(
    services: Services, members: Members, make: Make
) -> None:
    inside = {"resourceType": "Medication", "id": "drug", "code": coded(ICD, "B20")}
    members.held["lakeside", "MedicationRequest"] = [of_lakeside("MedicationRequest", "m1", contained=[inside])]
    file(services, all_but(securityLabel=labelled("HIV")))
    assert ask(make(), "MedicationRequest").entries == ()


# -- counts


def test_no_count_tells_of_what_is_withheld(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "Condition"] = [HIV, of_lakeside("Condition", "flu", code={"text": "Influenza"})]
    file(services, all_but(securityLabel=labelled("HIV")))
    answer = ask(make(), "Condition")
    counts = {source.member_id: (source.count, source.gave) for source in answer.sources}
    assert counts == {"lakeside": (1, 0), "meadow": (0, 0)}


# -- reading by id


def test_consent_is_asked_before_the_member_is(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("7")]
    release = make()
    ((_, known),) = ids(ask(release, "AllergyIntolerance"))
    file(services, {"type": "deny"})
    members.asked.clear()
    with pytest.raises(NotFound):
        release.read(caller(), "AllergyIntolerance", known, query="GET", request_id="r-2")
    assert members.asked == []


def test_a_resource_met_in_another_chart_is_judged_by_its_own_patient(
    services: Services, members: Members, make: Make
) -> None:
    child = PATIENT | {"name": [{"family": "Okafor", "given": ["Ngozi"]}], "birthDate": "2025-02-03"}
    named = {"identifier": [{"system": LAKESIDE.system, "value": "l-9"}]}
    services.identity.record("lakeside", Identifier(LAKESIDE.system, "l-9"), child | named)
    of_child = of_lakeside("Condition", "birth") | {"subject": {"reference": "Patient/l-9"}}
    mothers = of_lakeside("Observation", "o1", focus=[{"reference": "Condition/birth"}])
    members.held["lakeside", "Observation"] = [mothers]
    members.held["lakeside", "Condition/birth"] = [of_child]
    release = make()
    (entry,) = ask(release, "Observation").entries
    reference = entry.resource["focus"][0]["reference"].removeprefix("Condition/")
    read = release.read(caller(), "Condition", reference, query="GET", request_id="r-2").resource
    childs_person = services.identity.source_record(Identifier(LAKESIDE.system, "l-9"))
    assert childs_person is not None
    assert read["subject"] == {"reference": f"Patient/{childs_person.person_id}"}
    services.consents.create(consent(childs_person.person_id, {"type": "deny"}), childs_person.person_id, caller())
    with pytest.raises(NotFound):
        release.read(caller(), "Condition", reference, query="GET", request_id="r-3")


def test_no_such_id_takes_as_long_as_a_withheld_one(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "Encounter"] = [VISIT, OTHER_VISIT]
    members.held["lakeside", "Condition"] = [HIV]
    for visit in (VISIT, OTHER_VISIT):
        members.held["lakeside", f"Encounter/{visit['id']}"] = [visit]
    release = make()
    before = ids(ask(release, "Encounter"))
    file(services, all_but(securityLabel=labelled("HIV")))
    after = ids(ask(release, "Encounter"))
    (withheld,) = {one for _, one in before} - {one for _, one in after}
    members.latency = 0.04

    def seconds(resource_id: str) -> float:
        started = time.monotonic()
        with pytest.raises(NotFound):
            release.read(caller(), "Encounter", resource_id, query="GET", request_id="r-2")
        return time.monotonic() - started

    looked = [seconds(withheld) for _ in range(9)]
    never = [seconds(f"never{n}") for n in range(9)]
    assert statistics.median(looked) > 0.04
    assert abs(statistics.median(never) - statistics.median(looked)) < 0.02


# -- 42 CFR Part 2: the member is not named


@pytest.fixture
def part2(services: Services) -> Services:
    """meadow is a Part 2 program, and alone knows her second telephone."""
    community = manifest_dict()
    community["members"][1]["purposes"] = ["TREAT", "ETREAT", "BTG", "HOPERAT"]
    services.directory.apply(manifest(community))
    named = {"identifier": [{"system": MEADOW.system, "value": MEADOW.value}]}
    only_there = {
        "telecom": [{"system": "phone", "value": "617-555-0107"}, {"system": "phone", "value": "781-555-0199"}]
    }
    services.identity.record("meadow", MEADOW, PATIENT | named | only_there)
    return services


def test_a_part2_member_whose_data_is_withheld_is_not_named(part2: Services, members: Members, make: Make) -> None:
    members.failing["meadow"] = "timeout"
    answer = ask(make(), "AllergyIntolerance")
    assert {record.member_id for record in answer.person.records} == {"lakeside"}
    assert [source.member_id for source in answer.sources] == ["lakeside"]
    told = json.dumps([answer.person.resource, answer.issues])
    assert "meadow" not in told.lower()
    assert MEADOW.system not in told
    assert "781" not in told


def test_its_identifier_leads_nowhere(part2: Services, members: Members, make: Make) -> None:
    release = make()
    for who in (MEADOW, Identifier(MEADOW.system, "never")):
        with pytest.raises(NotFound) as nobody:
            release.chart(caller(), who, ["Encounter"], query="GET", request_id="r-1")
        assert nobody.value.message == "The exchange knows no such person."
    assert members.asked == []
    own = caller(organization="meadow", client_id="meadow-ehr")
    assert release.chart(own, MEADOW, ["Encounter"], query="GET", request_id="r-1").person.id == person(part2)


def test_nobody_is_found_by_what_it_alone_knows(part2: Services, make: Make) -> None:
    release = make()
    by_phone = {"resourceType": "Patient", "telecom": [{"system": "phone", "value": "781-555-0199"}]}
    described = PATIENT | {"telecom": by_phone["telecom"]}
    found = release.lookup(caller(), described, 5, request_id="r-1")
    (marta,) = found
    assert "phone" not in {a.trait for a in marta.agreements if a.weight > 0}
    assert {record.member_id for record in marta.person.records} == {"lakeside"}
    own = release.lookup(caller(organization="meadow"), described, 5, request_id="r-1")
    assert "phone" in {a.trait for a in own[0].agreements if a.weight > 0}


def test_with_a_consent_that_covers_part2_it_is_named_and_its_records_come_with_the_notice(
    part2: Services, members: Members, make: Make
) -> None:
    members.held["meadow", "AllergyIntolerance"] = [allergy("m", "m-1")]
    file(part2, {"type": "permit"}, organization=[{"reference": "Organization/meadow"}])
    answer = ask(make(), "AllergyIntolerance")
    assert {record.member_id for record in answer.person.records} == {"lakeside", "meadow"}
    (entry,) = answer.entries
    assert entry.decision.obligations == ("42-cfr-2.32",)


def test_a_part2_member_that_released_nothing_is_not_listed(part2: Services, members: Members, make: Make) -> None:
    only_labs = {"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "Observation"}]}
    file(part2, {"type": "permit", **only_labs}, organization=[{"reference": "Organization/meadow"}])
    members.held["meadow", "AllergyIntolerance"] = [allergy("m", "m-1")]
    answer = ask(make(), "AllergyIntolerance")
    assert [source.member_id for source in answer.sources] == ["lakeside"]


# -- the consent store


def unreadable(services: Services) -> Any:
    def broken(_person_ids: object, _subject: object) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("gone"))

    return SimpleNamespace(policy=broken, policy_unread=services.consents.policy_unread)


def test_without_the_consents_only_broken_glass_passes_flagged(
    services: Services, members: Members, make: Make
) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("a1")]
    assert isinstance(services.consents, ConsentService)
    release = make(consents=unreadable(services))
    with pytest.raises(ServiceUnavailable):
        ask(release, "AllergyIntolerance")
    assert members.asked == []
    glass = caller(
        purposes=frozenset({"TREAT", "BTG"}), break_glass_reason="unconscious after a fall", subject_role="physician"
    )
    (entry,) = ask(release, "AllergyIntolerance", asking=glass).entries
    assert (entry.decision.rule, entry.decision.break_glass) == ("break-glass", True)
    kinds = [entry.kind for entry in services.audit.search(AuditQuery(request_ids=(("r-1",),))).entries]
    assert sorted(kinds) == ["disclosure", "failure"]


def test_a_member_that_fails_a_read_is_said_to(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("7")]
    release = make()
    ((_, known),) = ids(ask(release, "AllergyIntolerance"))
    members.failing["lakeside"] = "timeout"
    with pytest.raises(SourcesFailed) as failed:
        release.read(caller(), "AllergyIntolerance", known, query="GET", request_id="r-2")
    assert failed.value.status == 504
