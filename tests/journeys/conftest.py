from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.world import Exchange, StubMember

PENICILLIN = {
    "resourceType": "AllergyIntolerance",
    "id": "al-1",
    "patient": {"reference": "Patient/m-77"},
    "clinicalStatus": {
        "coding": [
            {"system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical", "code": "active"},
        ]
    },
    "criticality": "high",
    "code": {
        "coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "7980"}],
        "text": "Penicillin",
    },
}
STRANGERS_LATEX = PENICILLIN | {
    "id": "al-2",
    "patient": {"reference": "Patient/m-78"},
    "code": {"text": "Latex of a stranger"},
}
MARTA = {
    "name": [{"family": "Lindqvist", "given": ["Marta", "Elin"]}],
    "birthDate": "1949-11-02",
    "gender": "female",
    "telecom": [{"system": "phone", "value": "617-555-0107"}],
    "address": [{"line": ["4 Quay Rd"], "city": "Boston", "state": "MA", "postalCode": "02110"}],
}
MARTA_AT_THE_ER = MARTA | {"name": [{"family": "Lindquist", "given": ["Marta"]}]}


@contextmanager
def running(home: Path, *, database_url: str = "", **options: Any) -> Iterator[Exchange]:
    """harbor (the ER), meadow (family practice, holds the allergy) and summit, with Marta known to all three."""
    harbor, meadow, summit = (
        StubMember(slug, f"urn:oid:2.999.3.{n}").start() for n, slug in enumerate(("harbor", "meadow", "summit"), 1)
    )
    meadow.resources = {"AllergyIntolerance": [PENICILLIN, STRANGERS_LATEX]}
    exchange = Exchange(home, [harbor, meadow, summit], database_url=database_url, **options)
    try:
        exchange.start()
        for slug, local_id, patient in (
            ("meadow", "m-77", MARTA),
            ("harbor", "h-1", MARTA_AT_THE_ER),
            ("summit", "s-5", MARTA),
        ):
            reply = exchange.feed(slug, local_id, patient)
            assert reply.status_code == 201, reply.text
        yield exchange
    finally:
        exchange.stop()
        for member in exchange.members.values():
            member.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """One exchange on SQLite for a module's tests."""
    with running(tmp_path_factory.mktemp("hie")) as exchange:
        yield exchange


@pytest.fixture
def calm_world(world: Exchange) -> Iterator[Exchange]:
    """`world`, with every member well again afterwards."""
    yield world
    for member in world.members.values():
        member.mode, member.latency = "ok", 0.0
