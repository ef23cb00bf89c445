"""A patient's own app: it reads her records and who looked at them, and nobody else's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from hie.app import build_services
from hie.core.config import Settings
from hie.gateway.portal import Relation
from hie.mpi.identity import Identifier
from tests.journeys.conftest import MARTA, PENICILLIN, running
from tests.journeys.world import Exchange

EMAIL = "marta@mail.example"
ACCOUNTS = [
    {"email": email, "name": "A patient", "role": "patient", "password": "correct horse battery"}
    for email in (EMAIL, "nobody@mail.example")
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """Marta has an account, which she bound to her record at meadow with the code that meadow gave her."""
    with running(tmp_path_factory.mktemp("app"), manifest={"users": ACCOUNTS}) as exchange:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in exchange.env.items():
                if os.environ.get(name) != value:
                    patch.setenv(name, value)
            services = build_services(Settings.load())
        at_meadow = Identifier(exchange.members["meadow"].system, "m-77")
        code = services.portal.invite("meadow", at_meadow, Relation.SELF, "admin@meadow.example")
        services.portal.redeem(code, EMAIL)
        services.audit.close()
        somebody = {"name": [{"family": "Other", "given": ["Ann"]}], "birthDate": "1990-01-01"}
        exchange.feed("harbor", "h-9", MARTA | somebody)
        shellfish = {"id": "al-9", "patient": {"reference": "Patient/h-9"}, "code": {"text": "Shellfish"}}
        exchange.members["harbor"].resources = {"AllergyIntolerance": [PENICILLIN | shellfish]}
        yield exchange


def app(world: Exchange, account: str | None = EMAIL) -> str:
    named = {"subject_id": f"mailto:{account}" if account else None, "subject_role": None}
    return world.token("portal", "system/*.rs", "PATRQT", **named)


def person(world: Exchange, member: str, local_id: str) -> str:
    token = world.token("harbor", "system/Patient.rs")
    named = f"{world.members[member].system}|{local_id}"
    reply = world.call("GET", "/fhir/Patient/$ihe-pix", token, params={"sourceIdentifier": named})
    found = [p["valueReference"]["reference"] for p in reply.json()["parameter"] if p["name"] == "targetId"]
    return str(found[0]).rpartition("/")[2]


def resources(reply: Any) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    return [e["resource"] for e in reply.json().get("entry", []) if e["search"]["mode"] == "match"]


def test_she_reads_her_records_and_who_looked(world: Exchange) -> None:
    marta = person(world, "meadow", "m-77")
    looked = world.call("GET", "/fhir/AllergyIntolerance", world.token("harbor"), params={"patient": marta})
    assert len(resources(looked)) == 1
    own = world.call("GET", "/fhir/AllergyIntolerance", app(world), params={"patient": marta})
    assert [allergy["code"]["text"] for allergy in resources(own)] == ["Penicillin"]
    events = resources(world.call("GET", "/fhir/AuditEvent", app(world)))
    text = json.dumps(events)
    assert "Harbor Hospital" in text
    assert "Dr Rosa Ortiz" in text
    assert all(f"Patient/{marta}" in json.dumps(event) for event in events)
    one = world.call("GET", f"/fhir/AuditEvent/{events[-1]['id']}", app(world))
    assert one.json() | {"extension": []} == events[-1] | {"extension": []}  # the proof is of a longer log by now


def test_she_reads_nothing_of_others(world: Exchange) -> None:
    marta, other = person(world, "meadow", "m-77"), person(world, "harbor", "h-9")
    assert marta != other
    there = world.call("GET", "/fhir/AllergyIntolerance", world.token("harbor"), params={"patient": other})
    assert [allergy["code"]["text"] for allergy in resources(there)] == ["Shellfish"]
    assert resources(world.call("GET", "/fhir/AuditEvent", app(world), params={"patient": other})) == []
    for account, about in ((EMAIL, other), ("nobody@mail.example", marta), (None, marta)):
        reply = world.call("GET", "/fhir/AllergyIntolerance", app(world, account), params={"patient": about})
        assert resources(reply) == []


@pytest.mark.parametrize("account", ["nobody@mail.example", None])
def test_an_app_without_a_bound_patient_reads_no_log(world: Exchange, account: str | None) -> None:
    reply = world.call("GET", "/fhir/AuditEvent", app(world, account))
    assert reply.status_code == 403
    assert "hl7-b2b.subject_id" in reply.text


def test_an_app_cannot_name_whom_it_likes(world: Exchange) -> None:
    for named in ("mailto:stranger@mail.example", f"Patient/{person(world, 'meadow', 'm-77')}"):
        refused = world.token_reply(world.assertion("portal", ["PATRQT"], subject_id=named, subject_role=None))
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
