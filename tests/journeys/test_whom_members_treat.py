"""A hospital tells whom it treats, and the officer's review leaves the visit aside that it would have asked about."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.conftest import MARTA, running
from tests.journeys.world import Exchange, matches

VISITS = "urn:oid:2.999.3.1.7"
VIP = {"meta": {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "CEL"}]}}
NO_REGISTRATIONS = {"HIE_REVIEW_REGISTRATION_DAYS": "0"}
"""As if all patients had been registered long ago: a record that is there explains nothing."""


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with running(tmp_path_factory.mktemp("treats"), env=NO_REGISTRATIONS) as exchange:
        yield exchange


def celebrity(town: Exchange, number: str, family: str) -> None:
    """Known to harbor and to meadow, which holds an allergy."""
    practice = town.members["meadow"].resources["AllergyIntolerance"]
    practice.append(practice[0] | {"id": f"al-{number}", "patient": {"reference": f"Patient/m-{number}"}})
    body = MARTA | VIP | {"name": [{"family": family, "given": ["Ngozi"]}], "birthDate": f"19{number}-05-06"}
    for slug, local_id in (("meadow", f"m-{number}"), ("harbor", f"h-{number}")):
        assert town.feed(slug, local_id, body | {"telecom": []}).status_code == 201


def admission(number: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "identifier": [{"system": VISITS, "value": f"visit-{number}"}],
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
        "subject": {"identifier": {"system": "urn:oid:2.999.3.1", "value": f"h-{number}"}},
        "period": {"start": datetime.now(UTC).isoformat(timespec="seconds")},
        "reasonCode": [{"text": "SECRET overdose"}],
        **more,
    }


def tell(town: Exchange, number: str, method: str = "PUT", **more: Any) -> Any:
    token = town.token("harbor", "system/Encounter.cud", "HOPERAT")
    params = {"identifier": f"{VISITS}|visit-{number}"}
    body = {"resource": admission(number, **more)} if method == "PUT" else {}
    return town.call(method, "/fhir/Encounter", token, params=params, **body)


def look(town: Exchange) -> list[str]:
    """What the officer's review finds, a sentence each."""
    cases = json.loads(town.run("audit", "review", "--look", "--json").stdout)
    return [item["why"] for case in cases for item in case["items"]]


def test_what_a_hospital_tells_explains_who_looked(town: Exchange) -> None:
    for number, family in (("71", "Okafor"), ("72", "Mbeki")):
        celebrity(town, number, family)

    assert len(matches(town.records("harbor", "AllergyIntolerance", "h-71").json())) == 1
    asked = "Opened the records of somebody with a VIP flag; the organization holds an old record, and no encounter or"
    (found,) = look(town)
    assert found.startswith(asked)

    answer = tell(town, "72")
    assert answer.status_code == 201, answer.text
    assert tell(town, "72").status_code == 200
    assert len(matches(town.records("harbor", "AllergyIntolerance", "h-72").json())) == 1
    assert look(town) == [found]

    assert tell(town, "72", "DELETE").status_code == 204
    assert len(look(town)) == 2  # what is taken back explains nothing any more

    events = town.call("GET", "/fhir/AuditEvent", town.token("privacy", "system/AuditEvent.rs", "HOPERAT"))
    told = [
        event["outcomeDesc"] for event in matches(events.json()) if "Encounter feed" in event.get("outcomeDesc", "")
    ]
    assert sorted(told) == ["Encounter feed: created", "Encounter feed: deleted", "Encounter feed: unchanged"]
    assert all(b"SECRET" not in file.read_bytes() for file in town.home.glob("hie.sqlite*"))
    assert "SECRET" not in town.log_text()


def test_the_guides_command_works(town: Exchange) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "member.md").read_text()
    (command,) = re.findall(r"```sh\n(curl .*?)```", guide, re.DOTALL)
    here = {"https://hie.example.org": town.base, "urn:oid:2.999.1.1": "urn:oid:2.999.3.1", "mrn-7": "h-1"}
    for there, instead in here.items():
        assert there in command
        command = command.replace(there, instead)
    token = town.token("harbor", "system/Encounter.cud", "HOPERAT")
    done = subprocess.run(
        ["bash", "-c", command.rstrip() + " -sS --fail-with-body"],
        env=os.environ | {"TOKEN": token},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert json.loads(done.stdout)["issue"][0]["diagnostics"] == "The relation was added."


def test_the_search_for_encounters_is_the_federated_one_as_before(town: Exchange) -> None:
    town.members["meadow"].resources["Encounter"] = [
        {"resourceType": "Encounter", "id": "e-1", "status": "finished", "class": {"code": "AMB"}}
        | {"subject": {"reference": "Patient/m-77"}}
    ]
    subject = {"identifier": {"system": "urn:oid:2.999.3.1", "value": "h-1"}}
    assert tell(town, "1", subject=subject).status_code == 201
    found = matches(town.records("harbor", "Encounter", "h-1").json())
    assert [encounter["status"] for encounter in found] == ["finished"]  # what was told is nobody's record
    read = town.call("GET", f"/fhir/Encounter/{found[0]['id']}", town.token("harbor"))
    assert read.status_code == 200
    refused = town.call("POST", "/fhir/Encounter", town.token("harbor"), resource=admission("1"))
    assert refused.status_code == 405
