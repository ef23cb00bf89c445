"""Real outside clients take the main road: fhirpy, fhirclient, and fhir-kit-client on Node.js."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from fhirclient.client import FHIRClient
from fhirclient.models.allergyintolerance import AllergyIntolerance
from fhirclient.models.patient import Patient
from fhirpy import SyncFHIRClient
from fhirpy.base.exceptions import ResourceNotFound

from tests.journeys.conftest import MARTA, PENICILLIN
from tests.journeys.world import Exchange

NODE = Path(__file__).parent / "node"


@pytest.fixture
def two_allergies(calm_world: Exchange) -> Exchange:
    """A second allergy of Marta's at summit, so that there is a second page."""
    latex = PENICILLIN | {"id": "al-9", "patient": {"reference": "Patient/s-5"}, "code": {"text": "Latex"}}
    calm_world.members["summit"].resources = {"AllergyIntolerance": [latex]}
    return calm_world


def test_fhirpy(two_allergies: Exchange) -> None:
    world = two_allergies
    token = world.token("harbor", "system/*.cruds")
    client = SyncFHIRClient(f"{world.base}/fhir", authorization=f"Bearer {token}")
    people = client.resources("Patient").search(family="Lindqvist", birthdate="1949-11-02").fetch_all()
    assert len(people) == 1
    allergies = client.resources("AllergyIntolerance").search(patient=people[0].id).limit(1).fetch_all()
    assert [allergy["code"]["text"] for allergy in allergies] == ["Penicillin", "Latex"]
    again = client.reference("AllergyIntolerance", allergies[0].id).to_resource()
    assert again["code"]["text"] == "Penicillin"
    with pytest.raises(ResourceNotFound):
        client.reference("AllergyIntolerance", "nothing").to_resource()


def test_fhirpy_feeds_with_a_conditional_update(world: Exchange) -> None:
    token = world.token("harbor", "system/Patient.cruds", "HOPERAT")
    client = SyncFHIRClient(f"{world.base}/fhir", authorization=f"Bearer {token}")
    system = world.members["harbor"].system
    name = [{"family": "Achterberg", "given": ["Joris"]}]
    patient = client.resource(
        "Patient",
        **MARTA | {"name": name, "birthDate": "1988-03-04", "identifier": [{"system": system, "value": "fp-1"}]},
    )
    _, created = client.resources("Patient").search(identifier=f"{system}|fp-1").update(patient)
    assert created
    _, created = client.resources("Patient").search(identifier=f"{system}|fp-1").update(patient)
    assert not created


def test_fhirclient(two_allergies: Exchange) -> None:
    world = two_allergies
    client = FHIRClient(settings={"app_id": "journey", "api_base": f"{world.base}/fhir"})
    client.prepare()  # reads /metadata
    client.server.session.headers["Authorization"] = f"Bearer {world.token('harbor')}"
    people = Patient.where({"family": "Lindqvist", "birthdate": "1949-11-02"})
    (person,) = people.perform_resources_iter(client.server)
    assert person.birthDate.isostring == "1949-11-02"
    found = AllergyIntolerance.where({"patient": person.id, "_count": "1"}).perform_resources_iter(client.server)
    allergies = [resource for resource in found if isinstance(resource, AllergyIntolerance)]
    assert [allergy.code.text for allergy in allergies] == ["Penicillin", "Latex"]
    assert AllergyIntolerance.read(allergies[0].id, client.server).code.text == "Penicillin"


@pytest.mark.node
def test_fhir_kit_client(two_allergies: Exchange) -> None:
    world = two_allergies
    done = subprocess.run(
        ["node", str(NODE / "er_query.mjs"), world.base, f"{world.members['harbor'].system}|h-1"],
        env={**os.environ, "HIE_TOKEN": world.token("harbor")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "tokenUrl": f"{world.base}/oauth2/token",
        "fhirVersion": "4.0.1",
        "pages": 2,
        "allergies": ["Penicillin", "Latex"],
        "again": "Penicillin",
        "refusal": {"status": 404, "type": "OperationOutcome"},
    }
