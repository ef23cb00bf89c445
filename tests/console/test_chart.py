"""What one reads of many organizations' records: grouped, marked, nothing dropped."""

from __future__ import annotations

from typing import Any

import pytest

from hie.console.chart import RECENT_LABS, Chart, Item, chart_of
from tests.console.fakes import CARDIOLOGY, LAKESIDE, WILLOW, allergy, answer, coded, entry, full_answer

Resource = dict[str, Any]


def status_of(code: str) -> Resource:
    return {"coding": [{"code": code}]}


def lab(name: str, taken: str, **more: Any) -> Resource:
    return {
        "resourceType": "Observation",
        "status": "final",
        "category": [status_of("laboratory")],
        "code": coded(name),
        "effectiveDateTime": taken,
        **more,
    }


def section(chart: Chart, key: str) -> tuple[list[str], list[str]]:
    """Titles that are current, and earlier ones."""
    found = next(s for s in (chart.allergies, *chart.sections) if s.key == key)
    return [i.title for i in found.current], [i.title for i in found.earlier]


def only_allergy(*entries: Any) -> Item:
    (item,) = chart_of(answer(*entries)).allergies.current
    return item


def test_statements_with_a_shared_code_stand_together_each_with_its_source() -> None:
    item = only_allergy(
        entry(LAKESIDE, allergy("Penicillin V", "764146007", recordedDate="2011-03-08")),
        entry(CARDIOLOGY, allergy("PENICILLIN", "764146007")),
        entry(WILLOW, allergy("penicillin")),
    )
    assert item.title == "Penicillin V"
    assert [(s.organization, s.recorded) for s in item.statements] == [
        ("Lakeside Family Practice", "recorded 8 Mar 2011"),
        ("Heartland Cardiology", "date not recorded"),
        ("Willow Nursing Home", "date not recorded"),
    ]


def test_two_substances_without_a_name_are_two_allergies() -> None:
    chart = chart_of(answer(entry(LAKESIDE, allergy("")), entry(WILLOW, allergy(""))))
    assert section(chart, "allergies")[0] == ["Substance not named"] * 2


def test_the_same_code_of_another_system_is_another_thing() -> None:
    first = allergy("A", "123")
    second = allergy("B", "123") | {"code": coded("B", "123", "urn:oid:2.999.7")}
    assert len(chart_of(answer(entry(LAKESIDE, first), entry(WILLOW, second))).allergies.current) == 2


def test_the_most_dangerous_allergy_comes_first() -> None:
    chart = chart_of(
        answer(
            entry(LAKESIDE, allergy("Apples")),
            entry(LAKESIDE, allergy("Latex", reaction=[{"manifestation": [coded("Shock")], "severity": "severe"}])),
            entry(LAKESIDE, allergy("Penicillin", criticality="high")),
        )
    )
    assert [(i.title, i.alarm) for i in chart.allergies.current] == [
        ("Latex", "Severe reaction"),
        ("Penicillin", "High criticality"),
        ("Apples", ""),
    ]


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"verificationStatus": status_of("refuted")}, "refuted"),
        ({"verificationStatus": status_of("entered-in-error")}, "entered in error"),
        ({"clinicalStatus": status_of("resolved")}, "resolved"),
        ({"clinicalStatus": status_of("inactive")}, "inactive"),
    ],
)
def test_what_no_longer_holds_is_shown_apart(change: Resource, remark: str) -> None:
    chart = chart_of(answer(entry(LAKESIDE, allergy("Sulfonamide", criticality="high") | change)))
    (item,) = chart.allergies.earlier
    assert chart.allergies.current == ()
    assert (item.title, item.alarm, item.statements[0].remark) == ("Sulfonamide", "", remark)


def test_where_organizations_disagree_the_allergy_stands_and_the_dissent_is_named() -> None:
    item = only_allergy(
        entry(CARDIOLOGY, allergy("Latex", verificationStatus=status_of("refuted"))),
        entry(LAKESIDE, allergy("Latex")),
    )
    assert item.disagreement == "The organizations do not agree: Heartland Cardiology recorded it as refuted."
    assert [s.current for s in item.statements] == [True, False]


@pytest.mark.parametrize(
    "code",
    [
        coded("No known allergy", "716186003"),
        coded(
            "No information about allergies",
            "no-allergy-info",
            "http://hl7.org/fhir/uv/ips/CodeSystem/absent-unknown-uv-ips",
        ),
    ],
)
def test_no_known_allergy_is_a_statement_and_never_an_allergy(code: Resource) -> None:
    chart = chart_of(answer(entry(LAKESIDE, allergy("") | {"code": code}), entry(WILLOW, allergy("Latex"))))
    assert [i.title for i in chart.allergies.current] == ["Latex"]
    (said,) = chart.no_known_allergy
    assert said.statements[0].organization == "Lakeside Family Practice"


def test_an_allergy_that_breaks_its_profile_is_shown_as_unreadable_and_hides_no_other() -> None:
    broken = [
        {"resourceType": "AllergyIntolerance", "code": {"coding": ["x"]}, "reaction": [{"manifestation": 5}]},
        {"resourceType": "AllergyIntolerance", "code": 7, "reaction": "rash"},
    ]
    chart = chart_of(answer(*(entry(WILLOW, b) for b in broken), entry(LAKESIDE, allergy("Latex"))))
    titles = section(chart, "allergies")[0]
    assert "Latex" in titles
    assert titles.count("Allergy Intolerance that could not be read") >= 1
    assert len(titles) == 3


@pytest.mark.parametrize("kind", ["Condition", "MedicationRequest", "Immunization", "Observation", "Encounter"])
@pytest.mark.parametrize("junk", [5, "x", ["x"], {"coding": 3}, [[]]])
def test_no_record_can_break_the_page(kind: str, junk: object) -> None:
    names = (
        "code",
        "vaccineCode",
        "medicationCodeableConcept",
        "category",
        "type",
        "class",
        "period",
        "interpretation",
    )
    names += ("component", "dosageInstruction", "reasonCode", "note", "status", "clinicalStatus", "referenceRange")
    chart = chart_of(answer(entry(WILLOW, {"resourceType": kind} | dict.fromkeys(names, junk))))
    assert sum(len(s.current) + len(s.earlier) for s in chart.sections) == 1


@pytest.mark.parametrize(
    ("status", "current"),
    [("active", True), ("on-hold", True), ("stopped", False), ("completed", False), ("entered-in-error", False)],
)
def test_medications_that_are_over_stand_apart(status: str, current: bool) -> None:
    resource = {"resourceType": "MedicationRequest", "status": status, "medicationCodeableConcept": coded("Warfarin")}
    assert section(chart_of(answer(entry(LAKESIDE, resource))), "medications") == (
        (["Warfarin"], []) if current else ([], ["Warfarin"])
    )


def test_one_drug_with_two_doses_shows_both() -> None:
    def drug(dose: str) -> Resource:
        return {
            "resourceType": "MedicationRequest",
            "status": "active",
            "medicationCodeableConcept": coded("Warfarin"),
            "dosageInstruction": [{"text": dose}],
        }

    chart = chart_of(answer(entry(LAKESIDE, drug("5 mg")), entry(CARDIOLOGY, drug("2.5 mg"))))
    (item,) = chart.sections[0].current
    assert [dict(s.details)["Dose"] for s in item.statements] == ["5 mg", "2.5 mg"]


@pytest.mark.parametrize(
    ("dosage", "words"),
    [
        ({"text": "as directed"}, "as directed"),
        (
            {
                "doseAndRate": [{"doseQuantity": {"value": 5, "unit": "mg"}}],
                "route": coded("Oral"),
                "timing": {"repeat": {"frequency": 2, "period": 1, "periodUnit": "d"}},
            },
            "5 mg, Oral, 2 times every 1 day",
        ),
        ({"timing": {"code": coded("At bedtime")}}, "At bedtime"),
    ],
)
def test_doses_in_words(dosage: Resource, words: str) -> None:
    resource = {
        "resourceType": "MedicationStatement",
        "status": "active",
        "medicationCodeableConcept": coded("Warfarin"),
        "dosage": [dosage],
    }
    (item,) = chart_of(answer(entry(LAKESIDE, resource))).sections[0].current
    assert dict(item.statements[0].details)["Dose"] == words


def test_the_drug_may_be_named_by_a_contained_medication_or_a_reference() -> None:
    contained = {
        "resourceType": "MedicationRequest",
        "status": "active",
        "contained": [{"resourceType": "Medication", "id": "m", "code": coded("Digoxin")}],
        "medicationReference": {"reference": "#m"},
    }
    named = {
        "resourceType": "MedicationRequest",
        "status": "active",
        "medicationReference": {"reference": "Medication/7", "display": "Amiodarone"},
    }
    chart = chart_of(answer(entry(LAKESIDE, contained), entry(LAKESIDE, named)))
    assert section(chart, "medications")[0] == ["Digoxin", "Amiodarone"]


def test_laboratory_results_are_newest_first_and_older_ones_fold_away() -> None:
    entries = [entry(LAKESIDE, lab(f"Test {day:02}", f"2026-03-{day:02}")) for day in range(1, RECENT_LABS + 4)]
    current, older = section(chart_of(answer(*entries)), "labs")
    assert (current[0], len(current)) == ("Test 15", RECENT_LABS)
    assert older == ["Test 03", "Test 02", "Test 01"]


def test_a_result_without_a_category_counts_as_laboratory_and_vital_signs_do_not() -> None:
    uncategorised = {k: v for k, v in lab("Troponin", "2026-03-01").items() if k != "category"}
    vital = lab("Pulse", "2026-03-01") | {"category": [status_of("vital-signs")]}
    chart = chart_of(answer(entry(LAKESIDE, uncategorised), entry(LAKESIDE, vital)))
    assert section(chart, "labs")[0] == ["Troponin"]
    assert section(chart, "observations")[1] == ["Pulse"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"valueQuantity": {"value": 3.80, "unit": "mmol/L", "comparator": "<"}}, "<3.8 mmol/L"),
        ({"valueQuantity": {"value": 0, "unit": "mg"}}, "0 mg"),
        ({"valueString": "trace"}, "trace"),
        ({"valueBoolean": False}, "no"),
        ({"valueCodeableConcept": coded("Positive")}, "Positive"),
        ({"component": [{"code": coded("Systolic"), "valueQuantity": {"value": 120}}]}, "Systolic 120"),
        ({"dataAbsentReason": coded("Specimen lost")}, "Specimen lost"),
        ({"valueRange": {"low": {"value": 1}, "high": {"value": 2}}}, "1 to 2"),
        ({"valueRatio": {"numerator": {"value": 1}, "denominator": {"value": 128}}}, "1 : 128"),
        ({"valueSampledData": {}}, "recorded in a form that is not shown here; ask the organization"),
        ({}, "not given"),
    ],
)
def test_results_are_shown_as_the_source_gave_them(value: Resource, words: str) -> None:
    chart = chart_of(answer(entry(LAKESIDE, lab("X", "2026-03-01", **value))))
    (item,) = next(s for s in chart.sections if s.key == "labs").current
    assert dict(item.statements[0].details)["Result"] == words


def test_a_vaccine_that_was_not_given_is_not_listed_as_given() -> None:
    resource = {"resourceType": "Immunization", "status": "not-done", "vaccineCode": coded("MMR")}
    assert section(chart_of(answer(entry(LAKESIDE, resource))), "immunizations") == ([], ["MMR"])


def test_sensitive_records_and_those_shown_by_break_glass_are_marked() -> None:
    item = only_allergy(
        entry(LAKESIDE, allergy("Latex"), labels=("R", "PSY"), break_glass=True), entry(WILLOW, allergy("Latex"))
    )
    assert [(s.sensitive, s.broke_glass) for s in item.statements] == [(True, True), (False, False)]


def test_nothing_of_an_answer_is_dropped() -> None:
    given = full_answer()
    chart = chart_of(given)
    sections = (chart.allergies, *chart.sections)
    shown = [s for section in sections for item in (*section.current, *section.earlier) for s in item.statements]
    assert len(shown) + len(chart.no_known_allergy) == len(given.entries)
