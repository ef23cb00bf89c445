"""Section 5's order, section 4's groups, and what break-glass opens, one rule at a time."""

import time
from datetime import UTC, datetime

import pytest

from hie.consent.fhir import compile_consent
from hie.consent.policy import LegalBasis, PersonPolicy, Request, ResourceView, could_release, decide, restricts
from hie.core.caller import Role
from tests.consent.strategies import ACT_CODE, ACT_REASON, CONFIDENTIALITY, ROLES, concept

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def consent(provision, name="c1", **elements):
    resource = {
        "resourceType": "Consent",
        "id": name,
        "status": "active",
        "scope": concept("patient-privacy"),
        "dateTime": "2026-01-01",
        "provision": provision,
        **elements,
    }
    return compile_consent(resource, 3, "p1")


def policy(*consents, default="permit", **others):
    return PersonPolicy(consents=consents, exchange_default=default, person_ids=frozenset({"p1"}), as_of=NOW, **others)


def ask(*purposes, role=Role.CLINICIAN, actors=("Organization/lakeside",), glass=False):
    return Request(frozenset(actors), frozenset(purposes or {"TREAT"}), role, "lakeside", NOW, glass)


def glass(*purposes, **others):
    return ask("TREAT", "BTG", *purposes, glass=True, **others)


def view(kind="Observation", *labels, member="meadow", **others):
    return ResourceView(kind, "x1", member, frozenset((ACT_CODE, label) for label in labels), **others)


def purpose(*codes):
    return [{"system": ACT_REASON, "code": code} for code in codes]


def label(*codes):
    return [{"system": ACT_CODE, "code": code} for code in codes]


def custodian(member):
    return [{"reference": f"Organization/{member}"}]


DENY_ALL = consent({"type": "deny"})


@pytest.mark.parametrize(
    ("default", "released"),
    [
        ("permit", {"TREAT", "ETREAT", "HPAYMT", "HOPERAT"}),
        ("normal", {"TREAT", "ETREAT", "HPAYMT", "HOPERAT"}),
        ("treatment", {"TREAT", "ETREAT"}),
        ("break-glass-only", set()),
        ("deny", set()),
        ("a word nobody knows", set()),
    ],
)
def test_what_a_default_releases_without_any_consent(default, released):
    asked = ("TREAT", "ETREAT", "HPAYMT", "HOPERAT", "HRESCH", "PUBHLTH", "HMARKT")
    found = {code for code in asked if decide(policy(default=default), ask(code), view()).permit}
    assert found == released


def test_the_holding_members_default_comes_before_the_exchanges():
    rules = policy(default="deny", member_defaults={"meadow": "permit"})
    assert decide(rules, ask(), view(member="meadow")).permit
    refused = decide(rules, ask(), view(member="summit"))
    assert (refused.permit, refused.rule) == (False, "default")


def test_each_of_several_purposes_must_be_permitted_by_itself():
    assert decide(policy(), ask("TREAT", "HOPERAT"), view()).permit
    assert not decide(policy(), ask("TREAT", "HRESCH"), view()).permit


def test_without_a_purpose_nothing_is_released():
    request = Request(frozenset({"Organization/lakeside"}), frozenset(), Role.CLINICIAN, "lakeside", NOW)
    assert not decide(policy(), request, view()).permit
    assert not could_release(policy(), request, "meadow")


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.DATA_STEWARD, Role.PRIVACY_OFFICER, Role.MEMBER_ADMIN])
def test_other_roles_read_no_charts(role):
    assert decide(policy(), ask(role=role), view()).rule == "role"
    assert not could_release(policy(), ask(role=role), "meadow")


def test_a_denial_names_the_consents_version_and_provision():
    psychiatry = consent({"type": "permit", "provision": [{"type": "deny", "securityLabel": label("PSY")}]})
    refused = decide(policy(psychiatry), ask(), view("Condition", "MH"))
    assert (refused.rule, refused.consent, refused.path) == ("consent", "Consent/c1/_history/3", (0,))
    assert decide(policy(psychiatry), ask(), view("Condition", "HIV")).permit


def test_a_payer_gets_claims_and_what_is_listed_for_it():
    payer = ask("HPAYMT", role=Role.PAYER)
    assert decide(policy(), payer, view("Coverage")).permit
    assert decide(policy(), payer, view("Condition")).rule == "payer"
    listed = policy(payer_types=frozenset({"Condition"}))
    assert decide(listed, payer, view("Condition")).permit
    assert decide(policy(), ask("TREAT", role=Role.PAYER), view("Coverage")).rule == "role"


def test_what_the_patient_paid_for_alone_never_reaches_a_payer():
    paid = ResourceView("ExplanationOfBenefit", "x1", "meadow", frozenset({("urn:tags", "self-pay-restricted")}))
    assert decide(policy(), ask("HPAYMT", role=Role.PAYER), paid).rule == "self-pay"
    assert decide(policy(), ask("TREAT"), paid).permit


def test_required_by_law_comes_before_every_consent():
    basis = LegalBasis("notifiable-disease", "PUBHLTH", frozenset({"Condition"}))
    rules = policy(DENY_ALL, default="deny", legal_bases=(basis,))
    told = decide(rules, ask("PUBHLTH"), view("Condition"))
    assert (told.permit, told.rule) == (True, "legal-basis")
    assert "notifiable-disease" in told.reason
    assert not decide(rules, ask("PUBHLTH"), view("Observation")).permit


def test_the_patient_gets_everything_but_psychotherapy_notes():
    own = ask("PATRQT", role=Role.PATIENT, actors=("Patient/p1",))
    assert decide(policy(DENY_ALL, default="deny"), own, view("Condition", "HIV")).rule == "patient"
    assert decide(policy(), own, view("DocumentReference", "PSYTHPN")).rule == "psychotherapy-notes"


def test_a_patient_gets_nothing_of_somebody_else():
    stranger = ask("PATRQT", role=Role.PATIENT, actors=("Patient/p2",))
    assert decide(policy(), stranger, view()).rule == "role"
    assert not could_release(policy(), stranger, "meadow")


def test_a_representative_does_not_see_what_a_minor_was_treated_for_alone():
    rules = policy(representatives=frozenset({"mother@home.example"}))
    mother = ask("PATRQT", role=Role.PATIENT, actors=("mother@home.example",))
    assert decide(rules, mother, view()).permit
    assert decide(rules, mother, view("Condition", "ADOL")).rule == "representative"
    minor = ask("PATRQT", role=Role.PATIENT, actors=("Patient/p1",))
    assert decide(rules, minor, view("Condition", "ADOL")).permit


# -- explicit consent

PART2 = frozenset({"clinic"})


def part2(*consents):
    return policy(*consents, part2_members=PART2)


@pytest.mark.parametrize(
    "held", [view(member="clinic"), view("Condition", "42CFRPart2")], ids=["by member", "by label"]
)
def test_part2_records_need_more_than_a_default_or_a_general_permit(held):
    general = consent({"type": "permit", "purpose": purpose("TREAT")})
    for rules in (part2(), part2(general)):
        refused = decide(rules, ask(), held)
        assert (refused.permit, refused.rule) == (False, "part2")


@pytest.mark.parametrize(
    "covering",
    [
        consent({"type": "permit", "securityLabel": label("42CFRPart2")}),
        consent({"type": "permit"}, policy=[{"uri": "https://www.ecfr.gov/current/title-42/chapter-I/part-2"}]),
        consent({"type": "permit"}, category=[concept("42CFRPart2")]),
    ],
    ids=["names the label", "cites the rule", "is of that category"],
)
def test_a_consent_that_covers_part2_releases_with_the_notice(covering):
    released = decide(part2(covering), ask(), view("Condition", "42CFRPart2", member="clinic"))
    assert released.permit
    assert released.obligations == ("42-cfr-2.32",)


def test_a_consent_that_governs_the_part2_member_by_name_covers_it():
    named = consent({"type": "permit"}, organization=custodian("clinic"))
    assert decide(part2(named), ask(), view(member="clinic")).permit


def test_a_part2_member_without_any_permit_is_not_asked():
    assert not could_release(part2(), ask(), "clinic")
    assert could_release(part2(), ask(), "meadow")
    assert could_release(part2(), glass(), "clinic")


def test_psychotherapy_notes_need_a_permit_that_names_them():
    notes = view("DocumentReference", "PSYTHPN")
    psychiatry = consent({"type": "permit", "securityLabel": label("PSY")})
    assert decide(policy(psychiatry), ask(), notes).rule == "psychotherapy-notes"
    named = consent({"type": "permit", "securityLabel": label("PSYTHPN")})
    assert decide(policy(named), ask(), notes).permit


# -- break-glass


def test_break_glass_opens_a_consents_denial_and_an_opt_in_default():
    for rules in (policy(DENY_ALL), policy(default="deny"), policy(default="break-glass-only")):
        assert not decide(rules, ask(), view()).permit
        opened = decide(rules, glass(), view())
        assert opened.permit
        assert opened.break_glass
        assert could_release(rules, glass(), "meadow")


def test_break_glass_names_the_consent_it_broke():
    opened = decide(policy(DENY_ALL), glass(), view())
    assert (opened.rule, opened.consent) == ("break-glass", "Consent/c1/_history/3")


def test_break_glass_opens_part2_with_its_further_duties():
    opened = decide(part2(), glass(), view(member="clinic"))
    assert opened.permit
    assert opened.obligations == ("42-cfr-2.32", "42-cfr-2.51")


@pytest.mark.parametrize("code", ["BTG", "ETREAT"])
def test_a_denial_that_names_the_emergency_stays_shut(code):
    shut = consent({"type": "deny", "purpose": purpose("TREAT", code)})
    assert decide(policy(shut), glass(), view()).rule == "consent"
    assert not could_release(policy(shut), glass(), "meadow")


def test_the_shut_consent_counts_though_part2_denied_first():
    shut = consent({"type": "deny", "purpose": purpose("BTG")})
    assert not decide(part2(shut), glass(), view(member="clinic")).permit


@pytest.mark.parametrize(
    ("request_", "held"),
    [
        (glass(), view("DocumentReference", "PSYTHPN")),
        (ask("HOPERAT", "BTG", glass=True), view()),
        (glass(role=Role.PAYER), view()),
        (ask("TREAT", "BTG", glass=False), view()),
    ],
    ids=["psychotherapy notes", "another purpose", "a payer", "undeclared"],
)
def test_what_break_glass_never_opens(request_, held):
    assert not decide(policy(DENY_ALL), request_, held).permit


def test_the_strict_reading_opens_only_what_a_consent_permits():
    dissent = consent({"type": "deny", "provision": [{"type": "permit", "purpose": purpose("BTG")}]})
    assert decide(policy(dissent, strict_break_glass=True), glass(), view()).break_glass
    assert not decide(policy(DENY_ALL, strict_break_glass=True), glass(), view()).permit


# -- all consents together


def test_the_newest_of_one_custodian_counts():
    old = consent({"type": "deny"}, "old", dateTime="2025-01-01")
    new = consent({"type": "permit"}, "new", dateTime="2025-06-01")
    assert decide(policy(old, new), ask(), view()).consent == "Consent/new/_history/3"


def test_consents_of_the_same_day_both_count_and_the_denial_wins():
    morning = consent({"type": "permit"}, "morning", dateTime="2025-06-01T09:00:00Z")
    that_day = consent({"type": "deny"}, "that-day", dateTime="2025-06-01")
    assert not decide(policy(morning, that_day), ask(), view()).permit


def test_a_consent_governs_what_its_custodian_holds():
    at_meadow = consent({"type": "deny"}, organization=custodian("meadow"))
    assert not decide(policy(at_meadow), ask(), view(member="meadow")).permit
    assert decide(policy(at_meadow), ask(), view(member="summit")).permit
    assert not could_release(policy(at_meadow), ask(), "meadow")
    assert could_release(policy(at_meadow), ask(), "summit")


@pytest.mark.parametrize("organization", [[], custodian("exchange")])
def test_without_a_custodian_or_with_the_exchange_it_governs_everything(organization):
    assert not decide(policy(consent({"type": "deny"}, organization=organization)), ask(), view(member="summit")).permit


def test_a_denial_in_one_group_outweighs_a_newer_permit_in_another():
    general = consent({"type": "permit"}, "general", dateTime="2026-04-01")
    at_meadow = consent({"type": "deny"}, "at-meadow", organization=custodian("meadow"), dateTime="2020-01-01")
    assert not decide(policy(general, at_meadow), ask(), view(member="meadow")).permit


def test_an_unverified_consents_denials_count_and_its_permits_do_not():
    doubt = {"verification": [{"verified": False}]}
    assert not decide(policy(consent({"type": "deny"}, **doubt)), ask(), view()).permit
    assert not decide(policy(consent({"type": "permit"}, **doubt), default="deny"), ask(), view()).permit


NO_EFFECT = pytest.mark.parametrize(
    "elements",
    [
        *({"status": status} for status in ("inactive", "draft", "proposed", "rejected", "entered-in-error")),
        {"scope": concept("adr")},
        {"dateTime": "2027"},
    ],
    ids=lambda elements: str(elements),
)


@NO_EFFECT
def test_consents_that_do_not_count(elements):
    assert decide(policy(consent({"type": "deny"}, **elements)), ask(), view()).rule == "default"


@NO_EFFECT
def test_what_does_not_count_takes_the_place_of_nothing(elements):
    denied = consent({"type": "deny"}, "old", dateTime="2025-01-01")
    newer = consent({"type": "permit"}, "new", **{"dateTime": "2026-04-01", **elements})
    assert decide(policy(denied, newer), ask(), view()).consent == "Consent/old/_history/3"


def test_an_unverified_consent_takes_back_no_denial_and_adds_its_own():
    doubt = {"verification": [{"verified": False}], "dateTime": "2026-04-01"}
    old_denial = consent({"type": "deny"}, "old", dateTime="2025-01-01")
    assert decide(policy(old_denial, consent({"type": "permit"}, "new", **doubt)), ask(), view()).rule == "consent"
    old_permit = consent({"type": "permit"}, "old", dateTime="2025-01-01")
    keeps_hiv = consent({"type": "permit", "provision": [{"type": "deny", "securityLabel": label("HIV")}]}, **doubt)
    assert not decide(policy(old_permit, keeps_hiv, default="deny"), ask(), view()).permit  # neither's permits count
    assert decide(policy(old_permit, keeps_hiv), ask(), view()).rule == "default"
    assert decide(policy(old_permit, keeps_hiv), ask(), view("Condition", "HIV")).rule == "consent"


def test_a_verified_consent_takes_the_place_of_an_unverified_one():
    doubt = consent({"type": "deny"}, "old", dateTime="2025-01-01", verification=[{"verified": False}])
    assert decide(policy(doubt, consent({"type": "permit"}, "new")), ask(), view()).permit


def test_a_consent_whose_organization_cannot_be_resolved_takes_back_no_denial():
    somewhere = consent({"type": "permit"}, "new", dateTime="2026-04-01", organization=[{"display": "my clinic"}])
    old_denial = consent({"type": "deny"}, "old", dateTime="2025-01-01")
    assert not decide(policy(old_denial, somewhere), ask(), view()).permit


def test_a_research_consent_speaks_of_research_only():
    research = consent({"type": "permit"}, scope=concept("research"))
    assert decide(policy(research), ask("CLINTRCH"), view()).permit
    assert decide(policy(research), ask("TREAT"), view()).rule == "default"


# -- what may be asked, and what is told


def test_a_whole_denial_is_not_asked_but_an_exception_is():
    assert not could_release(policy(DENY_ALL), ask(), "meadow")
    but_vitals = consent(
        {"type": "deny", "provision": [{"type": "permit", "code": [{"coding": [{"system": "s", "code": "1"}]}]}]}
    )
    assert could_release(policy(but_vitals), ask(), "meadow")
    assert not could_release(policy(default="deny"), ask(), "meadow")


def test_what_only_its_author_may_open_is_asked_for():
    author = {"reference": {"reference": "Practitioner/p7"}, "role": {"coding": [{"system": ROLES, "code": "AUT"}]}}
    rules = policy(consent({"type": "deny", "provision": [{"type": "permit", "actor": [author]}]}))
    assert could_release(rules, ask(), "meadow")
    assert decide(rules, ask(), view(authors=frozenset({"Practitioner/p7"}))).permit
    assert not decide(rules, ask(), view(authors=frozenset({"Practitioner/p8"}))).permit


@pytest.mark.parametrize(
    ("kind", "matching"), [("permit", {"L", "N", "R"}), ("deny", {"L", "N", "R", "V"})], ids=["permit", "deny"]
)
def test_confidentiality_reaches_down_in_a_permit_and_up_in_a_deny(kind, matching):
    named = [{"system": CONFIDENTIALITY, "code": code} for code in ("R", "L")]
    outer = {"permit": "deny", "deny": "permit"}[kind]
    rules = policy(consent({"type": outer, "provision": [{"type": kind, "securityLabel": named}]}))
    held = {code: ResourceView("Condition", "x", "meadow", frozenset({(CONFIDENTIALITY, code)})) for code in "LNRV"}
    reached = {code for code, one in held.items() if decide(rules, ask(), one).permit is (kind == "permit")}
    assert reached == matching


@pytest.mark.parametrize(
    ("rules", "restricted"),
    [
        (policy(), False),
        (policy(consent({"type": "permit"})), False),
        (policy(consent({"type": "permit", "purpose": purpose("TREAT")})), False),
        (policy(DENY_ALL), True),
        (policy(consent({"type": "permit", "provision": [{"securityLabel": label("HIV")}]})), True),
        (policy(consent({"type": "permit", "securityLabel": [{"system": CONFIDENTIALITY, "code": "N"}]})), True),
        (policy(consent({"type": "deny", "period": {"end": "2026-04-30"}})), False),
        (policy(consent({"type": "deny"}, status="inactive")), False),
        (policy(default="deny"), True),
        (policy(member_defaults={"meadow": "deny"}), True),
    ],
)
def test_who_is_told_that_records_may_be_withheld(rules, restricted):
    assert restricts(rules) is restricted


def test_a_decision_takes_microseconds():
    rules = policy(
        *(consent({"type": "permit", "provision": [{"securityLabel": label("HIV")}]}, f"c{n}") for n in range(5))
    )
    request, held = ask(), [view("Condition", "MH") for _ in range(2000)]
    best = min(_timed(rules, request, held) for _ in range(3))
    assert best < 500e-6


def _timed(rules, request, held):
    start = time.perf_counter()
    for one in held:
        decide(rules, request, one)
    return (time.perf_counter() - start) / len(held)
