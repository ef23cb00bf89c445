"""What a change of the codes would newly hide or reveal, and that it does when it is made."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from hie.consent.code_files import Row
from hie.consent.codes import CodeSets
from hie.core.caller import EXCHANGE, Role
from hie.core.errors import NotFound
from hie.gateway.recoding import Recoder
from hie.gateway.release import Release
from hie.gateway.services import Services
from tests.gateway.door import LAKESIDE, Members, all_but, caller, coded, consent, labelled, of_lakeside

Make = Callable[..., Release]
ICD10 = "http://hl7.org/fhir/sid/icd-10-cm"
ZOSTER = Row("icd10cm", "prefix", "B02", "HIV", "")


@pytest.fixture
def person(services: Services, members: Members) -> str:
    members.held["lakeside", "Condition"] = [
        of_lakeside("Condition", "zoster", code=coded(ICD10, "B02.9")),
        of_lakeside("Condition", "hiv", code=coded(ICD10, "B20")),
        of_lakeside("Condition", "flu", code=coded(ICD10, "J11.1")),
    ]
    record = services.identity.source_record(LAKESIDE)
    assert record is not None
    return record.person_id


@pytest.fixture
def codes(tmp_path: Path) -> CodeSets:
    return CodeSets(tmp_path / "value-sets")


def office() -> Any:
    return caller(role=Role.PRIVACY_OFFICER, organization=EXCHANGE, purposes=frozenset({"HOPERAT"}))


def file(services: Services, person: str) -> None:
    services.consents.create(consent(person, all_but(securityLabel=labelled("HIV"))), person, office())


def test_it_says_what_would_be_hidden_before_and_revealed_after(
    services: Services, make: Make, person: str, codes: CodeSets
) -> None:
    release = make(codes=codes.current)
    file(services, person)
    recoder = Recoder(release, services.consents, services.identity)
    found = recoder.report(office(), codes.with_row(ZOSTER), "r-1")
    assert (found.people, found.hidden, found.revealed) == (1, 1, 0)
    ((change,),) = (one.changes for one in found.changed)
    assert (change.member_id, change.type, change.hidden) == ("lakeside", "Condition", 1)
    codes.add(ZOSTER, date(2026, 11, 25))
    back = recoder.report(office(), codes.without_row(ZOSTER), "r-2")
    assert (back.hidden, back.revealed) == (0, 1)


def test_the_added_code_hides_from_the_next_question_on(
    services: Services, make: Make, person: str, codes: CodeSets
) -> None:
    release = make(codes=codes.current)
    file(services, person)

    def seen() -> set[str]:
        answer = release.chart(caller(), person, ["Condition"], query="GET /fhir/…", request_id="r-1")
        return {entry.resource["code"]["coding"][0]["code"] for entry in answer.entries}

    assert seen() == {"B02.9", "J11.1"}
    codes.add(ZOSTER, date(2026, 11, 25))
    assert seen() == {"J11.1"}


def test_nobody_without_a_consent_is_looked_at_and_an_unknown_person_is_said(
    services: Services, make: Make, person: str, codes: CodeSets
) -> None:
    recoder = Recoder(make(codes=codes.current), services.consents, services.identity)
    assert recoder.report(office(), codes.with_row(ZOSTER), "r-1").people == 0
    assert recoder.report(office(), codes.with_row(ZOSTER), "r-1", person_ids=[person]).people == 1
    with pytest.raises(NotFound):
        recoder.report(office(), codes.current(), "r-1", person_ids=["nobody"])


def test_who_is_left_out_for_number_or_time_is_counted(
    services: Services, make: Make, person: str, codes: CodeSets
) -> None:
    file(services, person)
    recoder = Recoder(make(codes=codes.current), services.consents, services.identity)
    for bound in ({"most": 0}, {"seconds": -1.0}):
        found = recoder.report(office(), codes.with_row(ZOSTER), "r-1", **bound)  # type: ignore[arg-type]
        assert (found.people, found.left_out) == (0, 1)


def test_an_organization_that_does_not_answer_is_said_to_be_missing(
    services: Services, make: Make, members: Members, person: str, codes: CodeSets
) -> None:
    file(services, person)
    members.failing["lakeside"] = "timeout"
    found = Recoder(make(codes=codes.current), services.consents, services.identity).report(
        office(), codes.with_row(ZOSTER), "r-1"
    )
    assert found.short == ("Lakeside Hospital",)
    assert found.hidden == 0
