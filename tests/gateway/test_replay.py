"""What past disclosures would be under another consent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from hie.audit.query import AuditQuery
from hie.consent.fhir import compile_consent
from hie.consent.policy import PersonPolicy
from hie.core.caller import EXCHANGE, Role
from hie.core.errors import NotFound
from hie.gateway.preview import Change
from hie.gateway.release import Release
from hie.gateway.replay import Replay
from hie.gateway.services import Services
from tests.gateway.door import LAKESIDE, NOW, Members, all_but, caller, coded, consent, labelled, of_lakeside

Make = Callable[..., Release]
ICD10 = "http://hl7.org/fhir/sid/icd-10-cm"
FLU = of_lakeside("Condition", "flu", code=coded(ICD10, "J11.1"), recordedDate="2019-02-01")
HIV = of_lakeside("Condition", "hiv", code=coded(ICD10, "B20"))


@pytest.fixture
def person(services: Services, members: Members) -> str:
    members.held["lakeside", "Condition"] = [FLU, HIV]
    record = services.identity.source_record(LAKESIDE)
    assert record is not None
    return record.person_id


def under(person: str, provision: dict[str, Any], **elements: Any) -> Change:
    made = compile_consent({**consent(person, provision, **elements), "id": "what-if"}, 1, person)

    def change(policy: PersonPolicy) -> PersonPolicy:
        return replace(policy, consents=(*policy.consents, made))

    return change


def ask(release: Release, person: str, **more: Any) -> None:
    asking = caller(**more)
    answer = release.chart(asking, person, ["Condition"], query="GET /fhir/Condition", request_id="r-1")
    assert len(answer.entries) == 2


def replayed(release: Release, person: str, change: Change, **more: Any) -> Replay:
    office = caller(role=Role.PRIVACY_OFFICER, organization=EXCHANGE, purposes=frozenset({"HOPERAT"}))
    return release.replay(office, person, change, more.get("since"), query="what-if", request_id="r-2")


def test_each_disclosure_is_decided_again_for_its_own_caller_and_purpose(make: Make, person: str) -> None:
    release = make()
    ask(release, person)
    ask(release, person, organization="meadow", organization_name="Meadow Practice")
    ask(release, person, purposes=frozenset({"HOPERAT"}))
    meadow = {"role": coded("", "IRCP"), "reference": {"reference": "Organization/meadow"}}
    found = replayed(release, person, under(person, all_but(actor=[meadow])))
    assert (len(found.disclosures), found.released, found.kept_back) == (3, 6, 2)
    (one,) = found.different
    assert (one.organization, one.kept_back, one.released, one.by_log) == ("meadow", 2, 2, 0)
    assert one.reasons == (("consent", "Consent/what-if/_history/1", (0,), 2),)
    operations = [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HOPERAT"}]
    (one,) = replayed(release, person, under(person, all_but(purpose=operations))).different
    assert one.purposes == ("HOPERAT",)


def test_what_is_kept_back_is_told_by_labels_codes_and_times(make: Make, person: str) -> None:
    release = make()
    ask(release, person)
    assert replayed(release, person, under(person, all_but(securityLabel=labelled("HIV")))).kept_back == 1
    by_code = all_but(code=[coded(ICD10, "J11.1")])
    assert replayed(release, person, under(person, by_code)).kept_back == 1
    by_time = all_but(dataPeriod={"end": "2019-12-31"})
    assert replayed(release, person, under(person, by_time)).kept_back == 2, "one has no time: never released"
    assert replayed(release, person, under(person, {"type": "permit"})).kept_back == 0


def test_a_resource_that_is_gone_at_its_source_is_judged_by_the_log(make: Make, members: Members, person: str) -> None:
    release = make()
    ask(release, person)
    members.held["lakeside", "Condition"] = []
    (one,) = replayed(release, person, under(person, all_but(securityLabel=labelled("HIV")))).different
    assert (one.kept_back, one.by_log) == (2, 2), "what it carried beside is not known any more"
    (one,) = replayed(release, person, under(person, {"type": "deny"}, organization=[])).different
    assert one.kept_back == 2
    held_by_meadow = under(person, {"type": "deny"}, organization=[{"reference": "Organization/meadow"}])
    assert replayed(release, person, held_by_meadow).kept_back == 0, "the log's ids tell whose it was"


def test_since_leaves_older_ones_out_and_who_did_not_answer_is_said(
    make: Make, services: Services, members: Members, person: str
) -> None:
    release = make()
    ask(release, person)
    assert replayed(release, person, under(person, {"type": "deny"}), since=NOW + timedelta(days=1)).disclosures == ()
    members.failing["lakeside"] = "timeout"
    assert replayed(release, person, under(person, {"type": "deny"})).short == ("Lakeside Hospital",)


def test_nothing_is_released_by_it_and_the_question_is_logged(make: Make, services: Services, person: str) -> None:
    release = make()
    ask(release, person)
    before = len(replayed(release, person, under(person, {"type": "deny"})).disclosures)
    assert len(replayed(release, person, under(person, {"type": "deny"})).disclosures) == before
    kinds = [entry.kind for entry in services.audit.search(AuditQuery(persons=((person,),), limit=20)).entries]
    assert kinds.count("consent") == 2
    with pytest.raises(NotFound):
        replayed(release, "nobody", under(person, {"type": "deny"}))
