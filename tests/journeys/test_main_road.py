"""The main job through the contract alone: processes that talk HTTP, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.journeys.conftest import MARTA, running
from tests.journeys.world import Exchange, issues, matches, source_codes


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("new_postgres_database")()
    with running(tmp_path_factory.mktemp("road"), database_url=url) as exchange:
        yield exchange


def test_the_er_gets_the_allergy_that_the_family_practice_holds(road: Exchange) -> None:
    answer = road.records("harbor", "AllergyIntolerance", "h-1")
    assert answer.status_code == 200
    bundle = answer.json()
    (allergy,) = matches(bundle)
    person = road.person("harbor", "h-1")
    assert allergy["code"]["text"] == "Penicillin"
    assert allergy["patient"]["reference"] == f"Patient/{person}"
    assert allergy["meta"]["source"] == f"{road.base}/fhir/Organization/meadow"
    assert bundle["total"] == 1
    assert issues(bundle) == []
    (entry,) = bundle["entry"]
    again = road.call("GET", entry["fullUrl"].removeprefix(road.base), road.token("harbor"))
    assert again.status_code == 200
    assert again.json() == allergy


def test_the_members_are_asked_with_their_own_ids(road: Exchange) -> None:
    road.records("harbor", "Condition", "h-1")
    for slug, local_id in (("harbor", "h-1"), ("meadow", "m-77"), ("summit", "s-5")):
        path, params = road.members[slug].asked[-1]
        assert (path, params["patient"]) == ("/fhir/Condition", [f"Patient/{local_id}"])


def test_every_form_of_the_question_gets_the_same_answer(road: Exchange) -> None:
    token = road.token("harbor")
    person = road.person("harbor", "h-1")
    form = {"patient": f"Patient/{person}", "clinical-status": "active"}
    answers = [
        road.records("harbor", "AllergyIntolerance", "h-1"),
        road.call("GET", "/fhir/AllergyIntolerance", token, params={"patient": person}),
        road.call("POST", "/fhir/AllergyIntolerance/_search", token, data=form),
    ]
    assert len({json.dumps(matches(answer.json())) for answer in answers}) == 1


def test_who_did_not_answer_is_named(road: Exchange) -> None:
    road.members["summit"].mode = "error"
    try:
        bundle = road.records("harbor", "AllergyIntolerance", "h-1").json()
    finally:
        road.members["summit"].mode = "ok"
    assert len(matches(bundle)) == 1
    assert "total" not in bundle
    (code,) = source_codes(bundle)
    assert code == "error"
    assert "summit" in source_codes(bundle)[code]


def test_each_answer_and_each_refusal_is_in_the_log(road: Exchange) -> None:
    person = road.person("harbor", "h-1")
    answer = road.records("harbor", "AllergyIntolerance", "h-1", headers={"X-Request-Id": "the-er-query"})
    assert answer.headers["X-Request-Id"] == "the-er-query"
    refused = road.call("GET", "/fhir/AuditEvent", road.token("harbor"))
    assert refused.status_code == 403
    office = road.token("privacy", "system/AuditEvent.rs", "HOPERAT")
    log = road.call("GET", "/fhir/AuditEvent", office, params={"patient": f"Patient/{person}", "_count": "200"})
    assert log.status_code == 200, log.text
    entries = matches(log.json())
    (mine,) = [entry for entry in entries if "the-er-query" in json.dumps(entry)]
    text = json.dumps(mine)
    (allergy,) = matches(answer.json())
    assert allergy["id"] in text
    assert "TREAT" in text
    assert "harbor" in text
    assert mine["outcome"] == "0"


def test_what_consent_denies_does_not_leave_and_break_glass_opens_it(road: Exchange) -> None:
    for slug, local_id in (("meadow", "m-90"), ("harbor", "h-90")):
        road.feed(
            slug, local_id, MARTA | {"name": [{"family": "Okafor", "given": ["Ngozi"]}], "birthDate": "1971-05-06"}
        )
    practice = road.members["meadow"].resources["AllergyIntolerance"]
    practice.append(practice[0] | {"id": "al-90", "patient": {"reference": "Patient/m-90"}})
    person = road.person("harbor", "h-90")
    assert len(matches(road.records("harbor", "AllergyIntolerance", "h-90").json())) == 1
    filed = road.call(
        "POST",
        "/fhir/Consent",
        road.token("privacy", "system/Consent.cruds", "HOPERAT"),
        resource={
            "resourceType": "Consent",
            "status": "active",
            "scope": {"coding": [_CONSENT_SCOPE]},
            "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
            "patient": {"reference": f"Patient/{person}"},
            "dateTime": "2026-01-01",
            "policyRule": {"coding": [{"system": _ACT_CODE, "code": "OPTOUT"}]},
            "provision": {"type": "deny"},
        },
    )
    assert filed.status_code == 201, filed.text
    denied = road.records("harbor", "AllergyIntolerance", "h-90")
    assert denied.status_code == 200
    assert matches(denied.json()) == []
    assert [issue["code"] for issue in issues(denied.json())] == ["suppressed"]
    assert "meadow" not in denied.text
    glass = road.token("harbor", purpose="BTG", reason="Unconscious, anaphylaxis suspected")
    opened = road.records("harbor", "AllergyIntolerance", "h-90", token=glass)
    assert len(matches(opened.json())) == 1


_CONSENT_SCOPE = {"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}
_ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"


def test_a_replayed_assertion_is_refused_whichever_worker_reads_it(road: Exchange) -> None:
    assertion = road.assertion("harbor", ["TREAT"])
    replies = [road.token_reply(assertion) for _ in range(12)]
    assert [reply.status_code for reply in replies].count(200) == 1
    assert {reply.json()["error"] for reply in replies if reply.status_code != 200} == {"invalid_client"}


def test_without_a_log_there_is_no_data(road: Exchange) -> None:
    """Law L1, from outside: somebody takes the log's table away while the exchange runs."""
    token = road.token("harbor")
    engine = sa.create_engine(road.env["HIE_DATABASE_URL"] or f"sqlite:///{road.home / 'hie.sqlite'}")
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE audit_entries RENAME TO audit_hidden"))
    try:
        answer = road.records("harbor", "AllergyIntolerance", "h-1", token=token)
        refused = road.call("GET", "/fhir/AuditEvent", token)
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE audit_hidden RENAME TO audit_entries"))
        engine.dispose()
    assert (answer.status_code, refused.status_code) == (503, 503)
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert "Penicillin" not in answer.text
    assert len(matches(road.records("harbor", "AllergyIntolerance", "h-1", token=token).json())) == 1


def test_a_restart_loses_nothing(road: Exchange) -> None:
    before = road.records("harbor", "AllergyIntolerance", "h-1")
    token = road.token("harbor")
    road.stop()
    road.serve()
    after = road.records("harbor", "AllergyIntolerance", "h-1", token=token)
    assert matches(after.json()) == matches(before.json())


def test_what_a_caller_received_is_in_the_log_although_the_exchange_was_killed(road: Exchange) -> None:
    person = road.person("harbor", "h-1")
    token = road.token("harbor")
    received: list[str] = []

    def ask(worker: int) -> None:
        for n in range(200):
            name = f"kill-{worker}-{n}"
            try:
                answer = road.call(
                    "GET", "/fhir/Condition", token, params={"patient": person}, headers={"X-Request-Id": name}
                )
            except OSError:
                return
            if answer.status_code == 200:
                received.append(name)

    callers = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for caller in callers:
        caller.start()
    until = time.monotonic() + 20
    while len(received) < 30 and time.monotonic() < until:
        time.sleep(0.01)
    road.stop(signal.SIGKILL)
    for caller in callers:
        caller.join()
    road.serve()
    assert received
    office = road.token("privacy", "system/AuditEvent.rs", "HOPERAT")
    logged, url = "", f"{road.base}/fhir/AuditEvent?patient=Patient/{person}&_count=200"
    while url:
        page = road.call("GET", url.removeprefix(road.base), office)
        logged += page.text
        url = next((link["url"] for link in page.json()["link"] if link["relation"] == "next"), "")
    assert [name for name in received if f'"{name}"' not in logged] == []


def test_nothing_that_is_private_is_in_the_servers_log(road: Exchange) -> None:
    text = road.log_text()
    for secret in ("Lindqvist", "1949-11-02", "617-555", "Penicillin", "m-77", "eyJ", "SECRET"):
        assert secret not in text, secret
    assert Path(road.home / "master.key").stat().st_mode & 0o077 == 0
