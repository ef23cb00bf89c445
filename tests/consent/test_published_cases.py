"""The 48 decisions of the IHE PCF guide's examples (`cases/`), by one consent alone and through the whole order."""

import json
from pathlib import Path

import pytest

from hie.consent.fhir import compile_consent, span
from hie.consent.labels import views
from hie.consent.policy import Effect, PersonPolicy, Request, could_release, decide, evaluate, restricts
from hie.core.caller import Role
from tests.consent import oracle

FOLDER = Path(__file__).parent / "cases" / "pcf"
CASES = json.loads((FOLDER / "expected.json").read_text())
HOLDER = "ex-organization"


def load(name, folder="resources"):
    return json.loads((FOLDER / folder / f"{name}.json").read_text())


CHART = [load(path.stem) for path in sorted((FOLDER / "resources").glob("Observation-*.json"))]
ENCOUNTER = load("Encounter-ex-encounter")


def chart(case):
    derived = [load(f"Observation-{name}", "derived") for name in case["extra_resources"]]
    return [view for view in views([*CHART, *derived, ENCOUNTER], HOLDER) if view.type == "Observation"]


def request_of(case, *, break_glass=False):
    return Request(
        actors=frozenset(case["actors"]),
        purposes=frozenset(case["purposes"]),
        role=Role.CLINICIAN,
        organization="other",
        now=span(case["now"]).start,
        break_glass=break_glass,
    )


def test_all_48_are_here():
    assert len({case["id"] for case in CASES}) == len(CASES) == 48


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_consent_says_what_was_published(case):
    consent = compile_consent(load(case["consent"]), 1, "ex-patient")
    request = request_of(case)
    (group,) = request.groups
    results = {view.id: evaluate(consent, request, group, view).effect for view in chart(case)}
    assert sorted(i for i, effect in results.items() if effect is Effect.PERMIT) == sorted(case["expect_released"])
    withheld = {effect for i, effect in results.items() if i not in case["expect_released"]}
    if case["expect"] == "deny":
        assert withheld == {Effect.DENY}
    elif case["expect"] == "not-applicable":
        assert withheld == {None}
    assert consent.warnings == ()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_whole_order_releases_what_was_published(case):
    """In an opt-in exchange where break-glass opens only what a consent permits, as the guide has it."""
    consent = compile_consent(load(case["consent"]), 1, "ex-patient")
    policy = PersonPolicy(consents=(consent,), exchange_default="deny", strict_break_glass=True)
    request = request_of(case, break_glass="BTG" in case["purposes"])
    released = [view.id for view in chart(case) if decide(policy, request, view).permit]
    assert sorted(released) == sorted(case["expect_released"])
    assert could_release(policy, request, HOLDER) or not released
    assert restricts(policy)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_oracle_agrees_too(case):
    request = request_of(case)
    effects = {
        view.id: oracle.evaluate(load(case["consent"]), request, set(case["purposes"]), view)[0] for view in chart(case)
    }
    assert sorted(i for i, effect in effects.items() if effect == "permit") == sorted(case["expect_released"])
