"""The literal reading of the rule book against the running exchange, over HTTP, on random people.

`HIE_CONSENT_PEOPLE=300 pytest tests/journeys/test_outside_oracle.py` asks about more of them.
"""

from __future__ import annotations

import copy
import os
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hie.consent.policy import Request, ResourceView, Span
from hie.core.caller import Role
from tests.consent import oracle, strategies
from tests.consent.strategies import ACT_CODE, CONFIDENTIALITY, LOINC, PROFILE
from tests.journeys.world import Exchange, StubMember, matches

PEOPLE = int(os.environ.get("HIE_CONSENT_PEOPLE", "12"))
OFFICE = ("system/Consent.cruds", "HOPERAT")
MEMBERS = ("lakeside", "meadow", "clinic")
TYPES = ("Observation", "Condition", "Encounter", "Coverage")
ASKED = (("lakeside", "TREAT"), ("lakeside", "ETREAT"), ("meadow", "HOPERAT"), ("lakeside", "BTG"), ("acme", "HPAYMT"))
SUBJECT = "r.ortiz@lakeside.example"

label_sets = st.lists(strategies.all_labels, max_size=2, unique=True)


def resources() -> st.SearchStrategy[list[dict[str, Any]]]:
    """What one member holds of a person: an encounter, and a few others that may refer to it or to one another."""
    described = st.fixed_dictionaries(
        {
            "type": st.sampled_from(TYPES[:2]),
            "labels": label_sets,
            "code": st.sampled_from(["1-8", "2-6", "3-4"]),
            "year": st.sampled_from([None, 2020, 2022, 2026]),
            "profile": st.booleans(),
            "visit": st.booleans(),
        }
    )
    return st.tuples(label_sets, label_sets, st.lists(described, min_size=1, max_size=3)).map(_chart)


def _chart(drawn: tuple[list[Any], list[Any], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    visit, coverage, others = drawn
    return [
        {"type": "Encounter", "labels": visit, "code": None, "year": None, "profile": False, "visit": False},
        {"type": "Coverage", "labels": coverage, "code": None, "year": None, "profile": False, "visit": False},
        *others,
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """Two hospitals, a Part 2 program and a payer."""
    members = [StubMember(slug, f"urn:oid:2.999.4.{n}").start() for n, slug in enumerate((*MEMBERS, "acme"), 1)]
    extra = {"clinic": {"part2": True}, "acme": {"kind": "payer", "purposes": ["HPAYMT"]}}
    exchange = Exchange(tmp_path_factory.mktemp("oracle"), members, manifest=extra)
    try:
        yield exchange.start()
    finally:
        exchange.stop()
        for member in members:
            member.stop()


class Somebody:
    """One random person: fed, held, consented, and what the rule book says of each of her resources."""

    def __init__(self, world: Exchange, number: int, charts: dict[str, list[dict[str, Any]]]) -> None:
        self.world = world
        self.number = number
        self.charts = charts
        letters = "".join(string.ascii_lowercase[int(digit)] for digit in f"{number:06}")
        patient = {"name": [{"family": f"Fam{letters}", "given": [f"Giv{letters[::-1]}"]}]}
        patient["birthDate"] = f"{1930 + number % 80}-{1 + number % 12:02}-{1 + number % 28:02}"  # type: ignore[assignment]
        patient["identifier"] = [{"system": "http://hl7.org/fhir/sid/us-ssn", "value": f"9{number:08}"}]  # type: ignore[dict-item]
        for slug, chart in charts.items():
            assert world.feed(slug, self.local(slug), patient).status_code == 201
            for place, described in enumerate(chart):
                held = world.members[slug].resources.setdefault(described["type"], [])
                held.append(self.resource(slug, place, described))
        self.id = world.person("lakeside", self.local("lakeside"))
        assert {world.person(slug, self.local(slug)) for slug in charts} == {self.id}

    def local(self, slug: str) -> str:
        return f"{slug[0]}{self.number}"

    def name(self, slug: str, place: int) -> str:
        return f"{self.number}-{slug}-{place}"

    def resource(self, slug: str, place: int, described: dict[str, Any]) -> dict[str, Any]:
        kind = described["type"]
        subject = "beneficiary" if kind == "Coverage" else "subject"
        made: dict[str, Any] = {
            "resourceType": kind,
            "id": self.name(slug, place),
            "identifier": [{"system": "urn:name", "value": self.name(slug, place)}],
            subject: {"reference": f"Patient/{self.local(slug)}"},
            "meta": {"security": [{"system": system, "code": code} for system, code in described["labels"]]},
        }
        if described["code"]:
            made["code"] = {"coding": [{"system": LOINC, "code": described["code"]}]}
        if described["year"]:
            made["effectiveDateTime" if kind == "Observation" else "recordedDate"] = f"{described['year']}-06-13"
        if described["profile"]:
            made["meta"]["profile"] = [PROFILE]
        if described["visit"]:
            made["encounter"] = {"reference": f"Encounter/{self.name(slug, 0)}"}
        return made

    def views(self, slug: str) -> Iterator[tuple[str, ResourceView]]:
        """Each resource as the rule book sees it; labels reach the visit and come from it."""
        chart = self.charts[slug]
        own = [labels_of(described) for described in chart]
        visitors = [place for place, described in enumerate(chart) if described["visit"]]
        for place, described in enumerate(chart):
            labels = set(own[place])
            if place == 0:
                labels |= {label for visitor in visitors for label in telling(own[visitor])}
            elif described["visit"]:
                labels |= telling(own[0])
            year = described["year"]
            yield (
                self.name(slug, place),
                ResourceView(
                    described["type"],
                    self.name(slug, place),
                    slug,
                    labels=frozenset(labels),
                    reached=frozenset(labels) - own[place],
                    codes=frozenset({(LOINC, described["code"])} if described["code"] else ()),
                    profiles=frozenset({PROFILE} if described["profile"] else ()),
                    time=day(year) if year else None,
                    references=frozenset({f"Encounter/{self.name(slug, 0)}"} if described["visit"] else ()),
                ),
            )

    def file(self, consents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """File what the exchange takes; returns it as the oracle reads it."""
        token = self.world.token("privacy", *OFFICE)
        filed = []
        for drawn in consents:
            consent = copy.deepcopy(drawn)
            body = {
                **{k: v for k, v in consent.items() if k != "id"},
                "patient": {"reference": f"Patient/{self.id}"},
                "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
            }
            reply = self.world.call("POST", "/fhir/Consent", token, resource=body)
            assert reply.status_code in (201, 422), reply.text
            if reply.status_code == 201:
                filed.append(consent | {"id": reply.json()["id"]})
        return filed

    def released(self, slug: str, purpose: str) -> set[str]:
        reason = "Found unconscious in the street" if purpose == "BTG" else None
        token = self.world.token(slug, "system/*.rs", purpose, reason, subject_id=SUBJECT)
        found: set[str] = set()
        for kind in TYPES:
            params = {"patient": f"Patient/{self.id}", "_count": "500"}
            reply = self.world.call("GET", f"/fhir/{kind}", token, params=params)
            assert reply.status_code == 200, reply.text
            bundle = reply.json()
            named = {resource["identifier"][0]["value"] for resource in matches(bundle)}
            assert bundle["total"] == len(named)
            found |= named
        return found

    def expected(self, slug: str, purpose: str, consents: list[dict[str, Any]], person_id: str) -> set[str]:
        request = Request(
            actors=frozenset({f"Organization/{slug}", f"Device/{slug}-ehr", SUBJECT}),
            purposes=frozenset({"BTG", "TREAT"} if purpose == "BTG" else {purpose}),
            role=Role.PAYER if slug == "acme" else Role.MEMBER,
            organization=slug,
            now=datetime.now(UTC),
            break_glass=purpose == "BTG",
        )
        return {
            name
            for member in self.charts
            for name, view in self.views(member)
            if oracle.decide(
                consents, request, view, default="permit", member_defaults={}, part2={"clinic"}, people={person_id}
            )[0]
        }


def labels_of(described: dict[str, Any]) -> frozenset[tuple[str, str]]:
    given = frozenset(described["labels"])
    if any(system == CONFIDENTIALITY for system, _ in given):
        return given
    carried = {code for system, code in given if system == ACT_CODE}
    default = "V" if "PSYTHPN" in carried else "R" if carried else "N"
    return given | {(CONFIDENTIALITY, default)}


def telling(labels: frozenset[tuple[str, str]]) -> set[tuple[str, str]]:
    return {label for label in labels if label[0] != CONFIDENTIALITY or label[1] in "RV"}


def day(year: int) -> Span:
    return Span(datetime(year, 6, 13, tzinfo=UTC), datetime(year, 6, 13, 23, 59, 59, 999999, UTC))


_number = iter(range(1, 1_000_000))


@settings(
    max_examples=PEOPLE,
    deadline=None,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    charts=st.fixed_dictionaries({slug: resources() for slug in MEMBERS}),
    consents=strategies.people_consents(),
)
def test_the_exchange_releases_what_the_rule_book_says(
    world: Exchange, charts: dict[str, list[dict[str, Any]]], consents: list[dict[str, Any]]
) -> None:
    somebody = Somebody(world, next(_number), charts)
    filed = somebody.file(consents)
    for slug, purpose in ASKED:
        expected = somebody.expected(slug, purpose, filed, somebody.id)
        assert somebody.released(slug, purpose) == expected, (slug, purpose)
