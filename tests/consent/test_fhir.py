"""Reading FHIR Consents: dates as ranges, what is not understood, and what the filer is told of it."""

from datetime import UTC, datetime

import pytest

from hie.consent.fhir import check_consent, compile_consent, period, relative, span
from hie.consent.policy import EVERYTHING, PersonPolicy, Request, ResourceView, decide
from hie.core.caller import Role
from hie.core.errors import Unprocessable
from tests.consent.strategies import ACT_CODE, ACT_REASON, ROLES, concept

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
EXTENSION = [{"url": "http://example.org/only-on-mondays", "valueBoolean": True}]
SOMEBODY = [{"reference": {"reference": "Organization/lakeside"}}]


def read(provision=None, **elements):
    resource = {
        "resourceType": "Consent",
        "id": "c1",
        "status": "active",
        "scope": concept("patient-privacy"),
        "dateTime": "2026-01-01",
        **({"provision": provision} if provision is not None else {}),
        **elements,
    }
    return compile_consent(resource, 1, "p1")


def released(compiled, *, default, purposes=("TREAT",), held=None):
    rules = PersonPolicy(consents=(compiled,), exchange_default=default)
    actors = frozenset({"Organization/lakeside", "r.ortiz@lakeside.example", "1234567893"})
    request = Request(actors, frozenset(purposes), Role.CLINICIAN, "lakeside", NOW)
    return decide(rules, request, held or ResourceView("Observation", "x", "meadow")).permit


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2026", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 12, 31, 23, 59, 59, 999999, UTC)),
        ("2024-02", datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 2, 29, 23, 59, 59, 999999, UTC)),
        ("2026-12-31", datetime(2026, 12, 31, tzinfo=UTC), datetime(2026, 12, 31, 23, 59, 59, 999999, UTC)),
        (
            "2026-01-01T00:30:00+02:00",
            datetime(2025, 12, 31, 22, 30, tzinfo=UTC),
            datetime(2025, 12, 31, 22, 30, 0, 999999, UTC),
        ),
        (
            "2026-01-01T00:00:00.25Z",
            datetime(2026, 1, 1, 0, 0, 0, 250000, UTC),
            datetime(2026, 1, 1, 0, 0, 0, 259999, UTC),
        ),
        ("9999", datetime(9999, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)),
    ],
)
def test_partial_dates_are_ranges(text, start, end):
    found = span(text)
    assert (found.start, found.end) == (start, end)


@pytest.mark.parametrize(
    "text", ["", "2026-02-30", "yesterday", "2026-1-1", None, 2026, "0000", "2026-01-01T25:00:00Z"]
)
def test_what_is_no_date_is_no_range(text):
    assert span(text) is None


def test_a_period_with_an_end_that_cannot_be_read_is_none():
    assert period({"start": "2026", "end": "soon"}) is None
    assert period({"start": "2026"}).end is None


@pytest.mark.parametrize(
    ("code", "purposes", "permitted"),
    [
        ("OPTIN", ["TREAT"], True),
        ("OPTINR", ["TREAT"], True),
        ("OPTOUT", ["TREAT"], False),
        ("OPTOUTE", ["TREAT"], False),
        ("NOCONSENT", ["TREAT"], False),
        ("EMRGONLY", ["TREAT"], False),
        ("EMRGONLY", ["TREAT", "BTG"], True),
    ],
)
def test_the_policy_rule_speaks_where_the_root_has_no_type(code, purposes, permitted):
    rule = {"coding": [{"system": ACT_CODE, "code": code}]}
    compiled = read(policyRule=rule)
    assert compiled.warnings == ()
    for default in ("permit", "deny"):
        assert released(compiled, default=default, purposes=purposes) is permitted


def test_a_consent_that_says_neither_has_no_effect_and_says_so():
    compiled = read({"purpose": [{"system": ACT_REASON, "code": "TREAT"}]})
    assert released(compiled, default="permit")
    assert not released(compiled, default="deny")
    assert "permit or deny" in compiled.warnings[0]


def test_a_nested_type_that_is_missing_is_the_opposite_of_its_parents():
    assert not released(read({"type": "permit", "provision": [{"actor": SOMEBODY}]}), default="permit")
    assert released(read({"type": "deny", "provision": [{"actor": SOMEBODY}]}), default="deny")


# -- what is not understood: narrower permits, wider denials, and a sentence

UNKNOWN_PARTS = {
    "an extension": {"extension": EXTENSION},
    "a modifier extension": {"modifierExtension": EXTENSION},
    "an unknown element": {"weather": "rain"},
    "an extension in a criterion": {"purpose": [{"system": ACT_REASON, "code": "TREAT", "extension": EXTENSION}]},
    "an extension of a primitive": {"_type": {"extension": EXTENSION}},
    "a contained actor": {"actor": [{"reference": {"reference": "#p"}}]},
    "an actor without reference": {"actor": [{"reference": {"display": "my cousin"}}]},
    "an actor elsewhere": {"actor": [{"reference": {"reference": "https://far.example/Practitioner/1"}}]},
    "a role of another kind": {"actor": [{**SOMEBODY[0], "role": {"coding": [{"system": ROLES, "code": "GUAR"}]}}]},
    "a purpose without code": {"purpose": [{"display": "good ones"}]},
    "a foreign purpose": {"purpose": [{"system": "http://example.org/p", "code": "TREAT"}]},
    "an action in words": {"action": [{"text": "looking"}]},
    "a code in words": {"code": [{"text": "the embarrassing ones"}]},
    "a period that cannot be read": {"period": {"start": "once"}},
    "a data period and no time": {"dataPeriod": {"start": "2020"}},
    "a reference elsewhere": {"data": [{"meaning": "instance", "reference": {"reference": "urn:uuid:1"}}]},
    "a foreign class": {"class": [{"system": "urn:ietf:bcp:13", "code": "application/pdf"}]},
}


@pytest.mark.parametrize("part", UNKNOWN_PARTS.values(), ids=UNKNOWN_PARTS.keys())
def test_what_cannot_be_known_never_releases(part):
    nested_permit = read({"type": "deny", "provision": [{"type": "permit", **part}]})
    assert not released(nested_permit, default="permit")
    nested_deny = read({"type": "permit", "provision": [{"type": "deny", **part}]})
    assert not released(nested_deny, default="permit")
    inherited = read({"type": "deny", **part, "provision": [{"type": "permit"}]})
    assert not released(inherited, default="permit")
    assert not released(read({"type": "permit", **part}), default="deny")


@pytest.mark.parametrize(
    "part",
    [part for name, part in UNKNOWN_PARTS.items() if name != "a data period and no time"],
    ids=[name for name in UNKNOWN_PARTS if name != "a data period and no time"],
)
def test_the_filer_is_told_what_cannot_be_honoured(part):
    told = read({"type": "permit", "provision": [part]}).warnings
    assert any(sentence.startswith("provision.provision[0].") for sentence in told)


def test_a_modifier_of_the_whole_consent_permits_nothing():
    assert not released(read({"type": "permit"}, modifierExtension=EXTENSION), default="deny")
    assert not released(read({"type": "deny"}, modifierExtension=EXTENSION), default="permit")


def test_actors_match_by_reference_version_identifier_and_email_in_any_case():
    for reference in (
        {"reference": "Organization/lakeside/_history/4"},
        {"identifier": {"system": "http://hl7.org/fhir/sid/us-npi", "value": "1234567893"}},
        {"identifier": {"value": "R.Ortiz@Lakeside.example"}},
    ):
        assert released(read({"type": "permit", "actor": [{"reference": reference}]}), default="deny")


def test_other_spellings_of_a_code_system_are_the_same():
    old = [{"system": "http://hl7.org/fhir/v3/ActReason", "code": "TREAT"}]
    oid = [{"system": "urn:oid:2.16.840.1.113883.5.8", "code": "TREAT"}]
    for purpose in (old, oid):
        assert not released(read({"type": "deny", "purpose": purpose}), default="permit")


def test_custodians_are_members_or_everything():
    assert read({"type": "deny"}).custodians == {EVERYTHING}
    assert read({"type": "deny"}, organization=[{"reference": "Organization/exchange"}]).custodians == {EVERYTHING}
    assert read({"type": "deny"}, organization=SOMEBODY_ELSE).custodians == {"meadow"}


SOMEBODY_ELSE = [{"reference": "Organization/meadow"}]


def test_an_organization_that_cannot_be_resolved_permits_nothing_and_denies_everywhere():
    elsewhere = [{"display": "the hospital by the lake"}]
    assert not released(read({"type": "deny"}, organization=elsewhere), default="permit")
    assert not released(read({"type": "permit"}, organization=elsewhere), default="deny")


def test_a_label_that_nothing_but_a_source_gives_is_pointed_out():
    told = read({"type": "deny", "securityLabel": [{"system": "http://example.org/labels", "code": "SHY"}]}).warnings
    assert any("SHY" in sentence for sentence in told)


def test_references_under_the_exchanges_address_become_relative():
    base = "https://hie.example/fhir"
    filed = {
        "patient": {"reference": f"{base}/Patient/p1"},
        "provision": {"actor": [{"reference": {"reference": f"{base}/Organization/lakeside"}}]},
        "sourceReference": {"reference": "https://hie.example.evil/fhir/Patient/p1"},
    }
    trimmed = relative(filed, base)
    assert trimmed["patient"]["reference"] == "Patient/p1"
    assert trimmed["provision"]["actor"][0]["reference"]["reference"] == "Organization/lakeside"
    assert trimmed["sourceReference"] == filed["sourceReference"]
    assert filed["patient"]["reference"].startswith(base)


def test_a_consent_without_date_or_with_too_many_provisions_is_refused():
    with pytest.raises(Unprocessable, match="dateTime"):
        check_consent({"resourceType": "Consent"})
    with pytest.raises(Unprocessable, match="500 provisions"):
        check_consent({"dateTime": "2026", "provision": {"provision": [{"type": "deny"}] * 501}})


@pytest.mark.parametrize("junk", [None, 3, "x", [], [3], {}, {"coding": 3}, [{"coding": [None]}]])
def test_compiling_never_fails_and_never_permits_by_accident(junk):
    for element in ("actor", "purpose", "action", "securityLabel", "class", "code", "data", "period", "dataPeriod"):
        compiled = read({"type": "permit", element: junk})
        assert not released(compiled, default="deny")
    for element in ("scope", "category", "organization", "verification", "policy", "meta", "policyRule"):
        read({"type": "permit"}, **{element: junk})
