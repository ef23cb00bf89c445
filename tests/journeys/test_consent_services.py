"""`$everything`, `$decide`, the consult hook, `hie consent explain` and the Part 2 notice, as a member meets them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.journeys.conftest import MARTA
from tests.journeys.world import Exchange, StubMember, issues, matches

ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
ICD10 = "http://hl7.org/fhir/sid/icd-10-cm"
OFFICE = ("system/Consent.cruds", "HOPERAT")


def held(kind: str, local_id: str, patient: str = "m-77", **elements: Any) -> dict[str, Any]:
    subject = "patient" if kind == "AllergyIntolerance" else "subject"
    return {"resourceType": kind, "id": local_id, subject: {"reference": f"Patient/{patient}"}, **elements}


def coded(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def consent(person: str, provision: dict[str, Any], **elements: Any) -> dict[str, Any]:
    scope = coded("http://terminology.hl7.org/CodeSystem/consentscope", "patient-privacy")
    return {
        "resourceType": "Consent",
        "status": "active",
        "scope": scope,
        "category": [coded("http://loinc.org", "59284-0")],
        "patient": {"reference": f"Patient/{person}"},
        "dateTime": "2026-01-01",
        "provision": provision,
        **elements,
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """harbor asks; meadow holds a chart with one HIV condition and its visit; riverside is a Part 2 program."""
    harbor, meadow, riverside = (
        StubMember(slug, f"urn:oid:2.999.5.{n}").start() for n, slug in enumerate(("harbor", "meadow", "riverside"), 1)
    )
    meadow.resources = {
        "AllergyIntolerance": [held("AllergyIntolerance", "a1", code={"text": "Penicillin"})],
        "Condition": [
            held("Condition", "flu", code={"text": "Influenza"}, recordedDate="2019-02-01"),
            held("Condition", "hiv", code=coded(ICD10, "B20"), encounter={"reference": "Encounter/visit"}),
        ],
        "Encounter": [
            held("Encounter", "visit", status="finished", period={"start": "2024-03-01", "end": "2024-03-02"}),
            held("Encounter", "checkup", status="finished", period={"start": "2020-03-01", "end": "2020-03-01"}),
        ],
    }
    riverside.resources = {"Observation": [held("Observation", "screen", "r-9", code={"text": "Drug screen"})]}
    manifest = {"riverside": {"part2": True}}
    exchange = Exchange(tmp_path_factory.mktemp("services"), [harbor, meadow, riverside], manifest=manifest)
    try:
        exchange.start()
        for slug, local_id in (("meadow", "m-77"), ("harbor", "h-1"), ("riverside", "r-9")):
            assert exchange.feed(slug, local_id, MARTA).status_code == 201
        yield exchange
    finally:
        exchange.stop()
        for member in exchange.members.values():
            member.stop()


@pytest.fixture(scope="module")
def person(world: Exchange) -> str:
    return world.person("harbor", "h-1")


def file(world: Exchange, body: dict[str, Any]) -> str:
    reply = world.call("POST", "/fhir/Consent", world.token("privacy", *OFFICE), resource=body)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


@pytest.fixture(scope="module")
def without_hiv(world: Exchange, person: str) -> str:
    """Marta keeps HIV back."""
    denied = {"type": "deny", "securityLabel": [{"system": ACT_CODE, "code": "HIV"}]}
    return file(world, consent(person, {"type": "permit", "provision": [denied]}))


def everything(world: Exchange, person: str, **params: str) -> dict[str, Any]:
    reply = world.call("GET", f"/fhir/Patient/{person}/$everything", world.token("harbor"), params=params)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def kinds(bundle: dict[str, Any]) -> list[str]:
    return sorted(resource["resourceType"] for resource in matches(bundle))


# -- $everything


def test_everything_is_what_may_be_released_of_every_type(world: Exchange, person: str, without_hiv: str) -> None:
    bundle = everything(world, person)
    assert kinds(bundle) == ["AllergyIntolerance", "Condition", "Encounter", "Patient"]
    assert bundle["total"] == 4
    assert "B20" not in json.dumps(bundle)
    assert [issue["code"] for issue in issues(bundle)] == ["suppressed"]


def test_everything_takes_types_dates_and_pages(world: Exchange, person: str, without_hiv: str) -> None:
    assert kinds(everything(world, person, _type="Condition,Encounter")) == ["Condition", "Encounter"]
    assert kinds(everything(world, person, _type="Patient")) == ["Patient"]
    assert kinds(everything(world, person, start="2020-01-01")) == ["AllergyIntolerance", "Encounter", "Patient"]
    assert kinds(everything(world, person, end="2019-12-31")) == ["AllergyIntolerance", "Condition", "Patient"]
    first = everything(world, person, _count="2")
    (link,) = [one["url"] for one in first["link"] if one["relation"] == "next"]
    second = world.call("GET", link.removeprefix(world.base), world.token("harbor")).json()
    assert len(matches(first)) + len(matches(second)) == 4
    assert kinds(second) == ["Encounter"]


def test_everything_by_post_is_the_same(world: Exchange, person: str, without_hiv: str) -> None:
    body = {"resourceType": "Parameters", "parameter": [{"name": "_type", "valueString": "Condition"}]}
    path = f"/fhir/Patient/{person}/$everything"
    assert kinds(world.call("POST", path, world.token("harbor"), resource=body).json()) == ["Condition"]
    assert len(matches(world.call("POST", path, world.token("harbor")).json())) == 4


def test_everything_refuses_what_is_not_the_callers(world: Exchange, person: str) -> None:
    path = f"/fhir/Patient/{person}/$everything"
    narrow = world.token("harbor", "system/Condition.rs")
    assert world.call("GET", path, narrow, params={"_type": "Encounter"}).status_code == 403
    assert world.call("GET", path, world.token("privacy", *OFFICE)).status_code == 403
    assert world.call("GET", "/fhir/Patient/nobody/$everything", world.token("harbor")).status_code == 404
    assert world.call("GET", path, world.token("harbor"), params={"start": "soon"}).status_code == 400


def test_a_type_asked_for_alone_is_decided_as_in_the_whole(world: Exchange, person: str, without_hiv: str) -> None:
    whole = {resource["id"] for resource in matches(everything(world, person))}
    for kind in ("AllergyIntolerance", "Condition", "Encounter"):
        alone = world.records("harbor", kind, "h-1").json()
        assert {resource["id"] for resource in matches(alone)} == {
            resource["id"] for resource in matches(everything(world, person)) if resource["resourceType"] == kind
        }
        assert {resource["id"] for resource in matches(alone)} <= whole


# -- $decide and explain


def decided(world: Exchange, person: str, **more: Any) -> dict[str, Any]:
    parameters = [
        {"name": "patient", "valueReference": {"reference": f"Patient/{person}"}},
        {"name": "recipient", "valueReference": {"reference": "Organization/harbor"}},
        {"name": "purpose", "valueCode": "TREAT"},
        *more.get("parameters", []),
    ]
    body = {"resourceType": "Parameters", "parameter": parameters}
    token = more.get("token") or world.token("privacy", *OFFICE)
    reply = world.call("POST", "/fhir/Consent/$decide", token, resource=body)
    assert reply.status_code == more.get("status", 200), reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def parts(node: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [p for p in node.get("parameter", node.get("part", [])) if p["name"] == name]


def test_decide_says_how_many_and_why(world: Exchange, person: str, without_hiv: str) -> None:
    answer = decided(world, person)
    assert parts(answer, "decision")[0]["valueCode"] == "partial"
    by_member = {parts(s, "organization")[0]["valueReference"]["display"]: s for s in parts(answer, "source")}
    (conditions,) = [
        r for r in parts(by_member["Meadow Hospital"], "resources") if parts(r, "type")[0]["valueCode"] == "Condition"
    ]
    assert parts(conditions, "released")[0]["valueInteger"] == 1
    (withheld,) = [b for b in parts(conditions, "because") if not parts(b, "permit")[0]["valueBoolean"]]
    assert parts(withheld, "consent")[0]["valueReference"]["reference"].startswith(f"Consent/{without_hiv}/")
    assert parts(withheld, "provision")[0]["valueString"] == "provision.provision[0]"
    assert parts(by_member["Riverside Hospital"], "asked")[0]["valueBoolean"] is False
    assert "B20" not in json.dumps(answer)


def test_decide_is_for_the_privacy_office_and_logged(world: Exchange, person: str) -> None:
    decided(world, person, token=world.token("harbor"), status=403)
    decided(world, person, parameters=[{"name": "purpose", "valueCode": "FUN"}], status=400)
    decided(world, person, parameters=[{"name": "surprise", "valueCode": "x"}], status=400)
    office = world.token("privacy", "system/AuditEvent.rs", "HOPERAT")
    params = {"patient": f"Patient/{person}", "_count": "500"}
    log = world.call("GET", "/fhir/AuditEvent", office, params=params).json()
    assert "Decision explained; nothing released" in json.dumps(log)


def consulted(world: Exchange, **context: Any) -> tuple[int, dict[str, Any]]:
    body = {"hook": "patient-consent-consult", "hookInstance": "1", "context": context}
    token = world.token("privacy", *OFFICE)
    reply = world.call("POST", "/cds-services/patient-consent-consult", token, json=body)
    return reply.status_code, reply.json()


def test_the_consult_hook_answers_from_the_policy(world: Exchange, person: str, without_hiv: str) -> None:
    (service,) = world.call("GET", "/cds-services").json()["services"]
    assert service["hook"] == service["id"] == "patient-consent-consult"
    marta = [{"system": "urn:oid:2.999.5.1", "value": "h-1"}]
    status, answer = consulted(world, patientId=marta, purposeOfUse="TREAT")
    assert status == 200
    (card,) = answer["cards"]
    assert card["summary"] == card["extension"]["decision"] == "CONSENT_PERMIT"
    (obligation,) = card["extension"]["obligations"]
    assert obligation["id"] == {"system": ACT_CODE, "code": "REDACT"}
    assert obligation["parameters"]["codes"] == [{"system": ACT_CODE, "code": "HIV"}]


def test_the_consult_hook_takes_every_form_of_the_shares_schema(world: Exchange, person: str, without_hiv: str) -> None:
    marta, actor = [{"value": f"Patient/{person}"}], [{"value": "Organization/harbor"}]
    for purposes in ({}, {"purposeOfUse": []}, {"purposeOfUse": ["TREAT", "HOPERAT"]}, {"purposeOfUse": "TREAT"}):
        status, answer = consulted(world, patientId=marta, actor=actor, **purposes)
        assert (status, answer["cards"][0]["summary"]) == (200, "CONSENT_PERMIT")
    assert consulted(world, patientId=[{"value": "Patient/nobody"}], actor=actor)[0] == 404
    assert consulted(world, patientId=marta, actor=actor, purposeOfUse=["FUN"])[0] == 400
    assert consulted(world, actor=actor)[0] == 400


def test_explain_prints_it(world: Exchange, person: str, without_hiv: str) -> None:
    told = world.run("consent", "explain", "--person", person, "--caller", "harbor", "--purpose", "TREAT").stdout
    assert "a part would be released" in told
    assert "Condition: 1 released, 1 withheld" in told
    assert f"Consent/{without_hiv}/_history/1 provision.provision[0]" in told
    assert "Riverside Hospital (riverside): would not be asked" in told
    as_json = world.run(
        "consent", "explain", "--person", person, "--caller", "harbor", "--purpose", "BTG", "--json"
    ).stdout
    assert parts(json.loads(as_json), "decision")[0]["valueCode"] == "permit"
    wrong = world.run("consent", "explain", "--person", person, "--caller", "nobody", "--purpose", "TREAT", check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == "hie: There is no member nobody."


def test_what_if_replays_past_disclosures(world: Exchange, person: str, without_hiv: str, tmp_path: Any) -> None:
    assert len(matches(world.records("harbor", "Condition", "h-1").json())) == 1
    asked = ("consent", "what-if", "--person", person)
    told = world.run(*asked, "--not-to", "harbor").stdout.splitlines()
    given, kept = re.findall(r"\d+", told[0])[1:3]
    assert int(given) == int(kept) > 0
    assert any("Harbor Hospital (harbor), Dr Rosa Ortiz, TREAT: 1 of 1 kept back" in line for line in told)
    assert any("by consent, Consent/what-if/_history/1 provision.provision[0]" in line for line in told)
    assert ", 0 records of 0 disclosures" in world.run(*asked).stdout.replace("; 0", ", 0")
    file = tmp_path / "consent.json"
    file.write_text(json.dumps(consent(person, {"type": "deny"}, dateTime="2026-03-01")))
    assert world.run(*asked, "--consent", str(file), "--since", "2026-01-01").stdout.splitlines()[0] == told[0]
    wrong = world.run(*asked, "--keep-back", "ODD", check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("hie: --keep-back takes BH, STD")


# -- codes that give a sensitivity away


def test_the_officer_adds_a_code_after_seeing_what_it_hides(
    world: Exchange, person: str, without_hiv: str, tmp_path: Any
) -> None:
    def conditions() -> list[str]:
        found = matches(world.records("harbor", "Condition", "h-1").json())
        return sorted(str(c["code"].get("text", "")) for c in found)

    assert "nothing" in world.run("consent", "codes", "look-up", "icd10cm", "J11.1").stdout
    assert world.run("consent", "codes", "look-up", "icd10cm", "B20").stdout.strip() == "HIV, STD"
    pack = tmp_path / "flu.csv"
    pack.write_text(
        "# sources: made up\n# date: 2026-11-25\nsystem,kind,code,label,meaning\nname,code,influenza,HIV,for the test\n"
    )
    said = world.run("consent", "codes", "report", "--with", str(pack)).stdout
    assert "1 rows more, 0 rows less" in said
    assert "looked at 1 people with consents in force: 1 records newly hidden, 0 newly revealed" in said
    assert f"Patient/{person} Meadow Hospital (meadow) Condition: 1 hidden, 0 revealed" in said
    assert conditions() == ["Influenza"]
    row = ("--system", "name", "--code", "influenza", "--label", "HIV")
    assert "added name code influenza HIV" in world.run("consent", "codes", "add", *row).stdout
    assert conditions() == []
    listed = world.run("consent", "codes", "list").stdout
    assert "officer.csv: 1 rows" in listed
    back = world.run("consent", "codes", "report", "--without", "officer.csv", "--person", person).stdout
    assert "0 records newly hidden, 1 newly revealed" in back
    assert "took back" in world.run("consent", "codes", "take-back", *row).stdout
    assert conditions() == ["Influenza"]
    office = world.token("privacy", "system/AuditEvent.rs", "HOPERAT")
    log = world.call("GET", "/fhir/AuditEvent", office, params={"_count": "500"}).text
    assert "Sensitivity code added: name code influenza HIV" in log
    assert "Sensitivity code taken back: name code influenza HIV" in log


def test_recall_is_printed_by_category(world: Exchange) -> None:
    told = world.run("consent", "codes", "recall").stdout.splitlines()
    assert told[0].split() == ["label", "system", "codes", "by", "code", "with", "words", "list"]
    assert any(line.startswith("HIV       icd10cm") and "100%" in line for line in told)
    wrong = world.run("consent", "codes", "add", "--system", "icd11", "--code", "X1", "--label", "HIV", check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("hie: The code has a system that is none of")


# -- Part 2


def test_part2_records_come_with_the_notice_and_the_consents_scope(world: Exchange, person: str) -> None:
    assert matches(world.records("harbor", "Observation", "h-1").json()) == []
    covering = consent(
        person, {"type": "permit"}, organization=[{"reference": "Organization/riverside"}], dateTime="2026-02-01"
    )
    consent_id = file(world, covering)
    (screen,) = matches(world.records("harbor", "Observation", "h-1").json())
    codes = {coding["code"] for coding in screen["meta"]["security"]}
    assert {"42CFRPart2", "NORDSCLCD"} <= codes
    (notice,) = screen["meta"]["extension"]
    said = {part["url"]: part for part in notice["extension"]}
    assert said["notice"]["valueString"].startswith("42 CFR part 2 prohibits unauthorized use")
    assert said["consent"]["valueReference"]["reference"] == f"Consent/{consent_id}/_history/1"
    assert said["scope"]["valueString"].startswith("The patient's consent permits this recipient")
    path = f"/fhir/Observation/{screen['id']}"
    assert world.call("GET", path, world.token("harbor")).json() == screen
    office = world.token("privacy", "system/AuditEvent.rs", "HOPERAT")
    log = world.call("GET", "/fhir/AuditEvent", office, params={"patient": person, "_count": "500"}).json()
    assert "42-cfr-2.32" in json.dumps(log)
