"""A marker in every field of everything withheld comes out by no road, and nothing shows that it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hie.core.fhir import CLINICAL_TYPES
from tests.journeys.conftest import MARTA
from tests.journeys.leaks import ACT_CODE, MARK, Desk, Office, Roads, chart, drop_secrets, seen, told
from tests.journeys.world import Exchange, StubMember, matches

EMAIL, PASSWORD = "r.ortiz@harbor.example", "a password of some length"
CLINICIAN = {"email": EMAIL, "name": "Rosa Ortiz", "role": "clinician", "member": "harbor", "password": PASSWORD}
AT_RIVERSIDE = MARTA | {
    "name": [*MARTA["name"], {"use": "old", "family": f"{MARK}family", "given": [f"{MARK}given"]}],
    "telecom": [*MARTA["telecom"], {"system": "phone", "value": "781-555-0199"}],
    "address": [*MARTA["address"], {"line": [f"{MARK} street"], "city": f"{MARK}ville"}],
}
DENY_HIV = {
    "resourceType": "Consent",
    "status": "active",
    "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]},
    "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
    "dateTime": "2026-01-01",
    "provision": {
        "type": "permit",
        "provision": [{"type": "deny", "securityLabel": [{"system": ACT_CODE, "code": "HIV"}]}],
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """harbor asks; meadow holds the chart; riverside is a Part 2 program whose very name is a marker."""
    harbor, meadow, riverside = (
        StubMember(slug, f"urn:oid:2.999.3.{n}").start() for n, slug in enumerate(("harbor", "meadow", "riverside"), 1)
    )
    meadow.resources = chart("m-77")
    riverside.resources = {"Observation": [r | {"id": f"{MARK}r"} for r in chart(f"{MARK}77")["Observation"][:1]]}
    manifest = {"riverside": {"part2": True, "name": f"{MARK} Recovery"}, "users": [CLINICIAN]}
    unhurried = {"HIE_QUERY_DEADLINE_MS": "10000"}  # no answer that is compared may turn on how busy the machine is
    exchange = Exchange(tmp_path_factory.mktemp("leak"), [harbor, meadow, riverside], manifest=manifest, env=unhurried)
    try:
        exchange.start()
        for slug, local_id, patient in (
            ("meadow", "m-77", MARTA),
            ("harbor", "h-1", MARTA),
            ("riverside", f"{MARK}77", AT_RIVERSIDE),
        ):
            assert exchange.feed(slug, local_id, patient).status_code == 201
        yield exchange
    finally:
        exchange.stop()
        for member in exchange.members.values():
            member.stop()


@pytest.fixture(scope="module")
def person(world: Exchange) -> str:
    found = world.person("harbor", "h-1")
    assert world.person("meadow", "m-77") == found
    assert world.person("riverside", f"{MARK}77") == found
    return found


@pytest.fixture(scope="module")
def known(world: Exchange, person: str) -> dict[str, list[str]]:
    """What harbor was given before Marta said otherwise."""
    ids: dict[str, list[str]] = {}
    for kind in CLINICAL_TYPES:
        reply = world.records("harbor", kind, "h-1")
        assert MARK in reply.text, f"{kind}: nothing planted comes out even without a consent"
        ids[kind] = sorted(resource["id"] for resource in matches(reply.json()))
        assert len(ids[kind]) == 3
    return ids


@pytest.fixture(scope="module")
def answers(world: Exchange, person: str, known: dict[str, list[str]]) -> dict[str, Any]:
    """Every answer under the consent, with everything still at its source; then without it."""
    office = world.token("privacy", "system/Consent.cruds", "HOPERAT")
    consent = DENY_HIV | {"patient": {"reference": f"Patient/{person}"}}
    assert world.call("POST", "/fhir/Consent", office, resource=consent).status_code == 201
    mark = len(world.log_text())
    with_secrets = list(everything(world, person, known))
    office_told = dict(Office(world, person).answers())
    log = world.log_text()[mark:]
    drop_secrets(world.members["meadow"].resources)
    world.members["riverside"].resources.clear()
    without = list(everything(world, person, known))
    return {"with": with_secrets, "without": without, "log": log, "office": office_told}


def everything(world: Exchange, person: str, known: dict[str, list[str]]) -> Iterator[tuple[str, Any]]:
    yield from Roads(world, "harbor", person, known).answers()
    yield from Desk(world, EMAIL, PASSWORD).answers(person)


def where(text: str) -> str:
    place = text.index(MARK)
    return text[max(0, place - 60) : place + 60]


def difference(before: list[tuple[str, Any]], after: list[tuple[str, Any]], name: str) -> str:
    one, other = seen(dict(before)[name]), seen(dict(after)[name])
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{name}: …{one[max(0, place - 60) : place + 60]}… became …{other[max(0, place - 60) : place + 60]}…"


def test_no_marker_comes_out(answers: dict[str, Any]) -> None:
    leaks = {name: where(told(reply).lower()) for name, reply in answers["with"] if MARK in told(reply).lower()}
    assert leaks == {}
    assert len(answers["with"]) > 1000


def test_the_office_is_told_numbers_and_reasons_and_no_contents(answers: dict[str, Any]) -> None:
    told = answers["office"]
    assert "CONSENT_PERMIT" in told["card"]
    assert '"HIV"' in told["card"], "the office knows what kind is kept back"
    assert "withheld" in told["$decide"]
    assert "withheld" in told["explain"]
    names = (f"{MARK} recovery", f"{MARK}77", f"{MARK}r")
    for name, text in told.items():
        lowered = text.lower()
        for known_to_the_office in names:
            lowered = lowered.replace(known_to_the_office, "")
        assert MARK not in lowered, f"{name}: {where(lowered)}"


def test_no_marker_is_written_to_the_log(answers: dict[str, Any]) -> None:
    assert MARK not in answers["log"]


def test_what_is_released_still_comes_out(world: Exchange, answers: dict[str, Any]) -> None:
    found = dict.fromkeys(CLINICAL_TYPES, 0)
    for name, reply in answers["with"]:
        for kind in CLINICAL_TYPES:
            if name.startswith(f"POST {kind}"):
                found[kind] = len(matches(reply.json()))
    assert found == dict.fromkeys(CLINICAL_TYPES, 1)


def test_removing_what_is_withheld_at_its_source_changes_no_byte(answers: dict[str, Any]) -> None:
    before, after = answers["with"], answers["without"]
    assert [name for name, _ in before] == [name for name, _ in after]
    differing = [
        name
        for (name, one), (_, other) in zip(before, after, strict=True)
        if seen(one) != seen(other) and not name.startswith(("GET /metrics", "GET /log"))
    ]
    assert differing == [], difference(before, after, differing[0])


def test_a_withheld_id_reads_like_one_that_never_was(answers: dict[str, Any], known: dict[str, list[str]]) -> None:
    replies = {name.split(" ")[1]: reply for name, reply in answers["with"] if name.startswith("GET /fhir/")}
    for kind, ids in known.items():
        never = seen(replies[f"/fhir/{kind}/neverwas{kind.lower()}"])
        read = {resource_id: replies[f"/fhir/{kind}/{resource_id}"] for resource_id in ids}
        assert sorted(reply.status_code for reply in read.values()) == [200, 404, 404]
        assert all(seen(reply) == never for reply in read.values() if reply.status_code == 404)


def test_a_count_is_of_what_is_released(answers: dict[str, Any]) -> None:
    counted = [reply.json() for name, reply in answers["with"] if "'_summary': 'count'" in name]
    assert len(counted) == len(CLINICAL_TYPES) + 3, "by GET, and of three types by form"
    assert {bundle["total"] for bundle in counted} == {1}


def test_parameters_that_are_not_supported_are_said_to_be(answers: dict[str, Any]) -> None:
    for parameter in ("_include", "_revinclude", "_has:Observation", "subject:Patient.name", "_elements", "_sort"):
        replies = [reply.json() for name, reply in answers["with"] if f"'{parameter}" in name]
        assert replies
        for bundle in replies:
            (outcome,) = [e["resource"] for e in bundle["entry"] if e["search"]["mode"] == "outcome"]
            assert any(parameter in issue["diagnostics"] for issue in outcome["issue"])


def test_the_audit_keeps_what_the_answer_does_not_show(world: Exchange, person: str, answers: dict[str, Any]) -> None:
    office = world.token("privacy", "system/AuditEvent.rs", "HOPERAT")
    path: str | None = f"/fhir/AuditEvent?patient=Patient/{person}&_count=500"
    found = False
    while path and not found:
        page = world.call("GET", path, office).json()
        found = any('"withheld"' in str(entry).replace("'", '"') for entry in matches(page))
        path = next((one["url"].removeprefix(world.base) for one in page["link"] if one["relation"] == "next"), None)
    assert found


def test_own_records_are_still_the_part2_programs_own(world: Exchange, person: str) -> None:
    params = {"identifier": f"urn:oid:2.999.3.3|{MARK}77"}
    own = world.call("GET", "/fhir/Patient", world.token("riverside"), params=params).json()
    (patient,) = matches(own)
    assert patient["id"] == person
    assert f"{MARK}family" in str(patient)
