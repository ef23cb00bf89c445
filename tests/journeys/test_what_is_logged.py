"""Everything that the log is for, done by a user's road and found in the log by an officer's client.

Each step makes one kind of event; the officer then asks `/fhir/AuditEvent` for it by request id, by patient or by type,
and the entry says who, what and why, with its place in the log and its proof.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.journeys.conftest import MARTA, running
from tests.journeys.world import Exchange, matches

VERIFIER = Path(__file__).parents[2] / "tools" / "verify_log.py"
STEWARD, PASSWORD = "s.steward@hie.example", "a password of some length"
OTTO = {"name": [{"family": "Brandt", "given": ["Otto"], "suffix": ["Sr"]}], "birthDate": "1951-02-09"}
OTTO |= {key: MARTA[key] for key in ("telecom", "address")} | {"gender": "male"}
JUNIOR = OTTO | {"name": [OTTO["name"][0] | {"suffix": ["Jr"]}]}
_SCOPE = {"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("new_postgres_database")()
    steward = {"email": STEWARD, "name": "Sam Steward", "role": "data-steward", "password": PASSWORD}
    with running(tmp_path_factory.mktemp("logged"), database_url=url, manifest={"users": [steward]}) as exchange:
        yield exchange


class Officer:
    """A privacy officer's client. Each answer is verified from outside by what its events carry."""

    def __init__(self, road: Exchange, folder: Path) -> None:
        self.road, self.folder = road, folder
        self.token = road.token("privacy", "system/AuditEvent.rs system/Consent.cruds", "HOPERAT")
        self.key = folder / "log.vkey"
        self.key.write_bytes(road.call("GET", "/log/key").content)

    def find(self, **asked: str) -> list[dict[str, Any]]:
        params = {name.replace("_", "-"): value for name, value in asked.items()} | {"_count": "200"}
        answer = self.road.call("GET", "/fhir/AuditEvent", self.token, params=params)
        assert answer.status_code == 200, answer.text
        kept = self.folder / "events.json"
        kept.write_bytes(answer.content)
        command = [sys.executable, "-I", str(VERIFIER), str(kept), "--key", str(self.key)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
        assert done.returncode == 0, done.stderr
        return matches(answer.json())

    def the_one(self, **asked: str) -> dict[str, Any]:
        (event,) = self.find(**asked)
        return event


@pytest.fixture
def officer(road: Exchange, tmp_path: Path) -> Officer:
    return Officer(road, tmp_path)


def details(event: dict[str, Any]) -> list[dict[str, str]]:
    """The entities' details, one mapping each, with what the entity names as `what`."""
    return [
        {d["type"]: d["valueString"] for d in entity.get("detail", [])}
        | {"what": entity.get("what", {}).get("reference", "")}
        for entity in event.get("entity", [])
    ]


def one(found: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    (detail,) = [d for d in found if all(d.get(name) == value for name, value in wanted.items())]
    return detail


def ask(road: Exchange, name: str, local_id: str = "h-1", **options: Any) -> requests.Response:
    return road.records("harbor", "AllergyIntolerance", local_id, headers={"X-Request-Id": name}, **options)


def file_consent(road: Exchange, officer: Officer, person: str, name: str, **provision: Any) -> str:
    """The version's address."""
    consent = {
        "resourceType": "Consent",
        "status": "active",
        "scope": {"coding": [_SCOPE]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": f"Patient/{person}"},
        "dateTime": "2026-01-01",
        "policyRule": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTIN"}]},
        "provision": provision,
    }
    headers = {"X-Request-Id": name}
    filed = road.call("POST", "/fhir/Consent", officer.token, resource=consent, headers=headers)
    assert filed.status_code == 201, filed.text
    return f"Consent/{filed.json()['id']}/_history/1"


def digest(road: Exchange, officer: Officer, reference: str) -> str:
    return hashlib.sha256(road.call("GET", f"/fhir/{reference}", officer.token).content).hexdigest()


def known(road: Exchange, number: str, family: str) -> str:
    """A person of her own at harbor and meadow, who holds an allergy."""
    practice = road.members["meadow"].resources["AllergyIntolerance"]
    for slug, local_id in (("meadow", f"m-{number}"), ("harbor", f"h-{number}")):
        name = [{"family": family, "given": ["Ngozi"]}]
        road.feed(slug, local_id, MARTA | {"name": name, "birthDate": f"19{number}-05-06", "telecom": []})
    practice.append(practice[0] | {"id": f"al-{number}", "patient": {"reference": f"Patient/m-{number}"}})
    return road.person("harbor", f"h-{number}")


def test_a_disclosure_with_its_manifest_its_trace_and_a_failed_source(road: Exchange, officer: Officer) -> None:
    road.members["summit"].mode = "error"
    try:
        answer = ask(road, "logged-disclosure")
    finally:
        road.members["summit"].mode = "ok"
    (allergy,) = matches(answer.json())
    event = officer.the_one(request_id="logged-disclosure")
    found = details(event)
    assert event["meta"]["profile"][0].endswith("PrivacyDisclosure.Source")
    released = one(found, what=f"AllergyIntolerance/{allergy['id']}")
    assert released["sha256"] == hashlib.sha256(_as_it_left(answer.content)).hexdigest()
    assert one(found, rule="default")["permit"] == "true"
    assert one(found, what="Organization/summit")["status"] == "error"
    assert one(found, what="Organization/meadow") | {"status": "ok"} == one(found, what="Organization/meadow")


def _as_it_left(content: bytes) -> bytes:
    """The bytes of the only resource inside a searchset."""
    text = content.decode()
    start = text.index('{"resourceType":"AllergyIntolerance"') if '{"resourceType":"AllergyIntolerance"' in text else 0
    resource, end = json.JSONDecoder().raw_decode(text[start:] if start else text)
    if start:
        return text[start : start + end].encode()
    found = next(entry["resource"] for entry in resource["entry"] if entry["search"]["mode"] == "match")
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()


def test_no_source_that_answers(road: Exchange, officer: Officer) -> None:
    for member in road.members.values():
        member.mode = "error"
    try:
        assert ask(road, "logged-failure").status_code == 502
    finally:
        for member in road.members.values():
            member.mode = "ok"
    event = officer.the_one(request_id="logged-failure")
    assert event["outcome"] == "8"
    assert {d["status"] for d in details(event) if d["what"].startswith("Organization/")} == {"error"}


def test_a_refusal_names_who(road: Exchange, officer: Officer) -> None:
    refused = road.call("GET", "/fhir/AuditEvent", road.token("harbor"), headers={"X-Request-Id": "logged-refusal"})
    assert refused.status_code == 403
    event = officer.the_one(request_id="logged-refusal")
    assert (event["type"]["code"], event["outcome"]) == ("110113", "4")
    assert "harbor-ehr" in json.dumps(event["agent"])


def test_a_consent_its_digest_and_what_it_denies_and_permits(road: Exchange, officer: Officer) -> None:
    person = known(road, "71", "Okafor")
    permitting = file_consent(road, officer, person, "logged-consent", type="permit")
    event = officer.the_one(request_id="logged-consent")
    assert one(details(event), what=permitting, sha256=digest(road, officer, permitting))
    assert event["subtype"][0]["code"] == "create"
    assert len(matches(ask(road, "logged-permit", "h-71").json())) == 1
    step = one(details(officer.the_one(request_id="logged-permit")), what=permitting)
    assert (step["permit"], step["consentSha256"]) == ("true", digest(road, officer, permitting))

    person = known(road, "72", "Mbeki")
    allergies = [{"system": "http://hl7.org/fhir/resource-types", "code": "AllergyIntolerance"}]
    some = file_consent(
        road, officer, person, "filed-72", type="permit", provision=[{"type": "deny", "class": allergies}]
    )
    assert matches(ask(road, "logged-withheld", "h-72").json()) == []
    event = officer.the_one(request_id="logged-withheld")
    step = one(details(event), what=some, rule="consent")
    assert (step["permit"], step["count"]) == ("false", "1")
    assert step["consentSha256"] == digest(road, officer, some)

    person = known(road, "73", "Adeyemi")
    denying = file_consent(road, officer, person, "filed-73", type="deny")
    assert matches(ask(road, "logged-not-asked", "h-73").json()) == []
    event = officer.the_one(request_id="logged-not-asked")
    closed = [d for d in details(event) if d.get("rule") == "not-asked"]
    assert {d["custodian"] for d in closed} == {"harbor", "meadow"}
    assert {(d["what"], d["consentSha256"]) for d in closed} == {(denying, digest(road, officer, denying))}
    assert event["type"]["code"] == "110113"

    glass = road.token("harbor", purpose="BTG", reason="Unconscious, anaphylaxis suspected")
    assert len(matches(ask(road, "logged-glass", "h-73", token=glass).json())) == 1
    event = officer.the_one(request_id="logged-glass")
    step = one(details(event), what=denying)
    assert (step["rule"], step["breakGlass"]) == ("break-glass", "true")
    assert step["consentSha256"] == digest(road, officer, denying)
    assert one(details(event), **{"break-glass": "declared"})["reason"] == "Unconscious, anaphylaxis suspected"
    assert officer.the_one(request_id="logged-glass", purpose="BTG")["id"] == event["id"]

    report = road.run("audit", "report", "--patient", person, "--kind", "onc", "--format", "json")
    rows = [row for row in json.loads(report.stdout)["rows"] if row["request_id"] == "logged-glass"]
    assert f"{denying} (SHA-256 {digest(road, officer, denying)})" in rows[0]["decisions"]


def test_a_search_and_a_match_per_person_shown(road: Exchange, officer: Officer) -> None:
    person, token = road.person("harbor", "h-1"), road.token("harbor")
    params = {"family": "Lindqvist", "birthdate": "1949-11-02"}
    road.call("GET", "/fhir/Patient", token, params=params, headers={"X-Request-Id": "logged-search"})
    parameters = {
        "resourceType": "Parameters",
        "parameter": [{"name": "resource", "resource": {"resourceType": "Patient", **MARTA}}],
    }
    matched = road.call(
        "POST", "/fhir/Patient/$match", token, resource=parameters, headers={"X-Request-Id": "logged-match"}
    )
    assert matched.status_code == 200, matched.text
    for name in ("logged-search", "logged-match"):
        event = officer.the_one(request_id=name)
        assert one(details(event), what=f"Patient/{person}")
    asked = next(e["query"] for e in officer.the_one(request_id="logged-search")["entity"] if "query" in e)
    assert "family=Lindqvist" in base64.b64decode(asked).decode()


def test_what_the_matcher_and_a_steward_decide(road: Exchange, officer: Officer) -> None:
    assert road.feed("meadow", "m-81", OTTO).status_code == 201
    assert road.feed("harbor", "h-81", JUNIOR).status_code == 201
    senior, junior = road.person("meadow", "m-81"), road.person("harbor", "h-81")
    assert senior != junior
    assert one(details(officer.the_one(patient=junior, action="C")), rule="matching")["verdict"] == "review"
    questions = json.loads(road.run("mpi", "review", "--json").stdout)["questions"]
    (question,) = [q for q in questions if {person["person"] for person in q["people"]} == {senior, junior}]
    road.run("mpi", "review", "accept", question["question"], "--reason", "the family says so")
    linked = [e for e in officer.find(patient=senior) if "Link decision" in e.get("outcomeDesc", "")]
    assert "the family says so" in linked[0]["outcomeDesc"]
    assert "command line" in json.dumps(linked[0]["agent"])

    browser = requests.Session()
    sign_in(road, browser, PASSWORD)
    person = road.person("meadow", "m-81")
    page = browser.get(f"{road.base}/review/people/{person}", timeout=20).text
    undo = re.search(r'action="(/review/[^"]*undo[^"]*)"', page)
    assert undo, page
    done = browser.post(
        road.base + undo[1],
        data={**fields(page, undo[1]), "reason": "they are father and son"},
        timeout=20,
    )
    assert done.status_code == 200, done.text
    assert road.person("harbor", "h-81") != road.person("meadow", "m-81")
    parted = [e for e in officer.find(patient=senior, agent=STEWARD) if "Link decision" in e.get("outcomeDesc", "")]
    assert parted


def fields(page: str, action: str = "") -> dict[str, str]:
    """The hidden fields of a form."""
    form = page[page.index(f'action="{action}"') :] if action else page
    form = form[: form.index("</form>")]
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form))


def sign_in(road: Exchange, browser: requests.Session, password: str) -> requests.Response:
    form = fields(browser.get(f"{road.base}/sign-in", timeout=20).text)
    return browser.post(f"{road.base}/sign-in", data={**form, "email": STEWARD, "password": password}, timeout=20)


def test_sign_ins_and_those_that_failed(road: Exchange, officer: Officer) -> None:
    assert sign_in(road, requests.Session(), "not the password").status_code != 200
    assert sign_in(road, requests.Session(), PASSWORD).status_code == 200
    assertion = road.assertion("harbor", ["TREAT"])
    assert [road.token_reply(assertion).status_code for _ in range(2)] == [200, 401]
    told = [(e["outcome"], e["outcomeDesc"]) for e in officer.find(type="110114")]
    for outcome, begins in (("4", "Sign-in refused"), ("0", "Signed in"), ("0", "access token issued")):
        assert any(o == outcome and text.startswith(begins) for o, text in told), begins
    assert any(o == "4" and text.startswith("access token refused") for o, text in told)


def test_a_change_of_the_directory(road: Exchange, officer: Officer) -> None:
    manifest = road.manifest()
    manifest["members"][2]["name"] = "Summit Medical Center"
    path = road.home / "changed.json"
    path.write_text(json.dumps(manifest))
    road.run("apply", str(path))
    event = officer.find(entity="Organization/summit")[0]
    assert event["subtype"][0]["code"] == "update"
    assert "command line" in json.dumps(event["agent"])


def test_reading_and_exporting_the_log(road: Exchange, officer: Officer) -> None:
    person = road.person("harbor", "h-1")
    officer.find(patient=person)
    road.run("audit", "export")
    road.run("audit", "report", "--patient", person)
    told = [e["outcomeDesc"] for e in officer.find(type="110101")]
    assert any("entries shown" in text for text in told)
    assert any("The log was exported" in text for text in told)
    assert any("Accounting of disclosures" in text for text in told)
