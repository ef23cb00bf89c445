"""A patient's choices: each says what it means, and is read back as it was made."""

from datetime import UTC, datetime

import pytest

from hie.consent.choices import CATEGORIES, EMERGENCIES_ONLY, SHARE_ALL, SHARE_SOME, Choice, choice_of, consent_of
from hie.consent.fhir import check_consent, compile_consent
from hie.consent.plain import summary
from hie.consent.policy import PersonPolicy, Request, ResourceView, decide
from hie.core import fhir
from hie.core.caller import Role
from tests.consent.strategies import ACT_CODE

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
WITHOUT = Choice(SHARE_SOME, frozenset({"BH"}), frozenset({"summit"}))
CHOICES = [
    Choice(SHARE_ALL),
    Choice(SHARE_ALL, with_part2=True),
    Choice(EMERGENCIES_ONLY),
    Choice(SHARE_SOME, frozenset(CATEGORIES)),
    Choice(SHARE_SOME, organizations=frozenset({"summit", "meadow"})),
    WITHOUT,
]


def released(choice, *labels, organization="lakeside", purpose="TREAT", glass=False, member="meadow"):
    consent = compile_consent(consent_of(choice, "p1", NOW) | {"id": "c1"}, 1, "p1")
    policy = PersonPolicy(consents=(consent,), exchange_default="deny", part2_members=frozenset({"clinic"}), as_of=NOW)
    purposes = frozenset({purpose, "BTG"} if glass else {purpose})
    request = Request(frozenset({f"Organization/{organization}"}), purposes, Role.CLINICIAN, organization, NOW, glass)
    held = ResourceView("Condition", "c", member, frozenset((ACT_CODE, label) for label in labels))
    return decide(policy, request, held).permit


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_is_a_valid_consent_that_reads_back(choice):
    assert choice.valid
    consent = consent_of(choice, "p1", NOW)
    fhir.validate(consent, "Consent")
    check_consent(consent)
    assert choice_of(consent) == choice
    told = summary(consent, NOW, lambda _reference: None)
    assert (told.in_force, told.warnings) == (True, ())


@pytest.mark.parametrize(
    "choice",
    [
        Choice(SHARE_SOME),
        Choice(SHARE_ALL, frozenset({"BH"})),
        Choice("perhaps"),
        Choice(SHARE_SOME, frozenset({"ANYTHING"})),
    ],
)
def test_what_is_no_choice(choice):
    assert not choice.valid


def test_a_consent_that_says_more_is_no_choice():
    consent = consent_of(WITHOUT, "p1", NOW)
    consent["provision"]["provision"][0]["purpose"] = [{"system": ACT_CODE, "code": "TREAT"}]
    assert choice_of(consent) is None


def test_share_all():
    assert released(Choice(SHARE_ALL), "HIV")
    assert not released(Choice(SHARE_ALL), member="clinic")
    assert released(Choice(SHARE_ALL, with_part2=True), member="clinic")


def test_emergencies_only():
    assert not released(Choice(EMERGENCIES_ONLY))
    assert released(Choice(EMERGENCIES_ONLY), purpose="ETREAT")
    assert released(Choice(EMERGENCIES_ONLY), glass=True)


def test_without_categories_and_organizations():
    assert released(WITHOUT)
    assert released(WITHOUT, "HIV")
    assert not released(WITHOUT, "MH")
    assert not released(WITHOUT, "OPIOIDUD")
    assert not released(WITHOUT, organization="summit")
