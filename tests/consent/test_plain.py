"""Consents in plain words."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hie.consent.fhir import compile_consent
from hie.consent.plain import scope_of, summary
from hie.consent.policy import Decision, PersonPolicy, Request, ResourceView, decide
from hie.core.caller import Role
from tests.consent.strategies import ACT_CODE, ACT_REASON, CONFIDENTIALITY, ROLES, concept

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NAMES = {"Organization/meadow": "Meadow Practice", "Organization/lakeside": "Lakeside Hospital"}
CASES = Path(__file__).parent / "cases" / "pcf" / "resources"


def consent(provision, **elements):
    return {
        "resourceType": "Consent",
        "status": "active",
        "scope": concept("patient-privacy"),
        "dateTime": "2026-01-01",
        "provision": provision,
        **elements,
    }


def codings(system, *codes):
    return [{"system": system, "code": code} for code in codes]


def said(provision, **elements):
    found = summary(consent(provision, **elements), NOW, NAMES.get)
    return [("+" if line.permits else "-") + line.sentence for line in found.lines]


@pytest.mark.parametrize(
    ("provision", "words"),
    [
        ({"type": "permit"}, ["+Shares everything."]),
        ({"type": "deny"}, ["-Shares nothing."]),
        (
            {"type": "permit", "provision": [{"securityLabel": codings(ACT_CODE, "HIV", "PSY")}]},
            ["+Shares everything.", "-Does not share records about HIV or mental health."],
        ),
        (
            {"type": "permit", "securityLabel": codings(CONFIDENTIALITY, "N")},
            ["+Shares only records of normal confidentiality or less."],
        ),
        (
            {"type": "deny", "provision": [{"purpose": codings(ACT_REASON, "BTG")}]},
            ["-Shares nothing.", "+Shares everything for emergencies in which a clinician breaks the glass."],
        ),
        (
            {
                "type": "permit",
                "provision": [
                    {
                        "actor": [{"reference": {"reference": "Organization/lakeside"}}],
                        "class": codings("http://hl7.org/fhir/resource-types", "Observation"),
                        "period": {"end": "2026-12"},
                    }
                ],
            },
            [
                "+Shares everything.",
                "-Does not share results and observations with Lakeside Hospital, to 31 Dec 2026.",
            ],
        ),
        (
            {
                "type": "permit",
                "provision": [{"actor": [{"role": {"coding": codings(ROLES, "CST")}, "reference": {}}]}],
            },
            [
                "+Shares everything.",
                "-Shares nothing with anybody, if held by somebody who cannot be told from what is written.",
            ],
        ),
    ],
)
def test_a_provision_in_words(provision, words):
    assert said(provision) == words


def test_whose_records_and_whether_it_counts():
    named = consent({"type": "permit"}, organization=[{"reference": "Organization/meadow"}])
    assert summary(named, NOW, NAMES.get).about == "About the records of Meadow Practice alone."
    over = summary(consent({"type": "permit", "period": {"end": "2025-12-31"}}), NOW, NAMES.get)
    assert (over.in_force, over.standing) == (False, "It has no effect: it ended on 31 Dec 2025.")
    assert not summary(consent({"type": "permit"}, status="inactive"), NOW, NAMES.get).in_force
    assert summary(consent({"type": "permit"}), NOW, NAMES.get).in_force


def test_what_cannot_be_honoured_is_a_warning():
    odd = consent({"type": "permit", "extension": [{"url": "http://example.org/only-on-mondays"}]})
    found = summary(odd, NOW, NAMES.get)
    assert found.warnings == ("provision.extension is not understood.",)
    assert "not understood" in found.lines[0].sentence


@pytest.mark.parametrize("path", sorted(CASES.glob("Consent-*.json")), ids=lambda path: path.stem[11:])
def test_every_published_consent_can_be_said(path):
    found = summary(json.loads(path.read_text()), NOW, lambda _reference: None)
    assert found.lines
    assert all(line.sentence.endswith((".", ")")) for line in found.lines)


def test_the_scope_that_goes_with_part2_records_says_nothing_of_anybody_else():
    provision = {
        "type": "deny",
        "provision": [
            {"purpose": codings(ACT_REASON, "TREAT"), "period": {"end": "2026-12-31"}},
            {"purpose": codings(ACT_REASON, "HRESCH"), "actor": [{"reference": {"reference": "Organization/other"}}]},
        ],
    }
    covering = compile_consent(consent(provision, category=[concept("42CFRPart2")], id="c1"), 1, "p1")
    policy = PersonPolicy(consents=(covering,), part2_members=frozenset({"clinic"}), as_of=NOW)
    request = Request(frozenset({"Organization/lakeside"}), frozenset({"TREAT"}), Role.CLINICIAN, "lakeside", NOW)
    decision = decide(policy, request, ResourceView("Condition", "x", "clinic"))
    assert decision.permit
    assert scope_of(policy, decision) == (
        "The patient's consent permits this recipient to have and use these records for treatment until 31 Dec 2026."
    )
    assert "emergency" in scope_of(policy, Decision(True, "break-glass", break_glass=True))
