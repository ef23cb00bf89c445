"""Bad input and bad callers through the front door: a clear refusal, never a stack trace, nothing changed."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from tests.journeys.conftest import MARTA
from tests.journeys.world import REASON, Exchange, issues

SYSTEM = "urn:oid:2.999.3.1"


def _put(world: Exchange, body: bytes, value: str = "bad-1", system: str = SYSTEM) -> Any:
    token = world.token("harbor", "system/Patient.cruds", "HOPERAT")
    return world.call(
        "PUT",
        "/fhir/Patient",
        token,
        params={"identifier": f"{system}|{value}"},
        data=body,
        headers={"Content-Type": "application/fhir+json"},
    )


def _patient(more: str) -> bytes:
    return f'{{"resourceType":"Patient","identifier":[{{"system":"{SYSTEM}","value":"bad-1"}}]{more}}}'.encode()


NAME = ',"name":[{"family":"Lind","given":["Eva"]}]'


@pytest.mark.parametrize(
    "body",
    [
        b"{not json",
        b"",
        b"null",
        b"[1,2]",
        b"\xff\xfe\x00",
        b'{"resourceType":"Observation","status":"final"}',
        b'{"resourceType":"Patient","x":' + b"[" * 490_000 + b"]" * 490_000 + b"}",
        _patient(""),
        _patient(NAME + ',"birthDate":"2024-02-30"'),
        _patient(NAME.replace("Eva", "E\\u0000va")),
        _patient(NAME + ',"gender":"femail"'),
        _patient(NAME + ',"name":[{"family":"Twice"}]'),
        _patient(NAME + ',"birthDate":19800101'),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_bad_patient_is_refused_and_nothing_is_stored(world: Exchange, body: bytes) -> None:
    reply = _put(world, body)
    assert 400 <= reply.status_code < 500
    _is_clear(reply)
    pix = world.call(
        "GET", "/fhir/Patient/$ihe-pix", world.token("harbor"), params={"sourceIdentifier": f"{SYSTEM}|bad-1"}
    )
    assert pix.status_code == 404


def test_a_body_over_the_limit_is_refused(world: Exchange) -> None:
    reply = _put(world, _patient(NAME + ',"text":{"status":"empty","div":"' + "x" * 1_200_000 + '"}'))
    assert reply.status_code == 413
    _is_clear(reply)


def test_nobody_feeds_for_another_member(world: Exchange) -> None:
    meadow = "urn:oid:2.999.3.2"
    body = _patient(NAME).replace(SYSTEM.encode(), meadow.encode())
    reply = _put(world, body, system=meadow)
    assert reply.status_code == 403
    _is_clear(reply)


def test_an_unknown_search_parameter_is_told_and_in_strict_handling_refused(world: Exchange) -> None:
    reply = world.records("harbor", "AllergyIntolerance", "h-1", params={"colour": "red"})
    assert reply.status_code == 200
    assert any("colour" in issue["diagnostics"] for issue in issues(reply.json()))
    assert "colour" not in reply.json()["link"][0]["url"]
    strict = world.records(
        "harbor", "AllergyIntolerance", "h-1", params={"colour": "red"}, headers={"Prefer": "handling=strict"}
    )
    assert strict.status_code == 400
    _is_clear(strict)


@pytest.mark.parametrize(
    "path",
    [
        "/fhir/AllergyIntolerance",
        "/fhir/AllergyIntolerance?patient=a&patient=b",
        "/fhir/AllergyIntolerance?patient=%00",
        "/fhir/AllergyIntolerance?patient=nobody",
        "/fhir/AllergyIntolerance?patient.identifier=urn:oid:2.999.3.1%7Cnobody",
        "/fhir/AllergyIntolerance/nothing",
        "/fhir/AllergyIntolerance/..%2f..%2fetc",
        "/fhir/Patient/nothing",
        "/fhir/Unheard",
        "/fhir/Appointment?patient=x",
        "/nowhere",
    ],
)
def test_odd_addresses_get_an_outcome(world: Exchange, path: str) -> None:
    reply = world.call("GET", path, world.token("harbor"))
    assert 400 <= reply.status_code < 500
    _is_clear(reply)


def test_nothing_is_given_without_a_token(world: Exchange) -> None:
    for path in ("/fhir/AllergyIntolerance?patient=x", "/fhir/Patient/x", "/fhir/AuditEvent", "/fhir/Consent"):
        reply = world.call("GET", path)
        assert reply.status_code == 401
        assert reply.headers["WWW-Authenticate"].startswith("Bearer")
        _is_clear(reply)
    assert world.call("GET", "/fhir/Patient/x", "forged.token.here").status_code == 401


def _claims(**claims: Any) -> Any:
    return lambda world: world.assertion("harbor", ["TREAT"], claims)


def _with_key(key: ECKey) -> Any:
    def make(world: Exchange) -> str:
        honest = jwt.decode(world.assertion("harbor", ["TREAT"]), world.keys["harbor"], algorithms=["ES384"])
        return jwt.encode({"alg": "ES384", "kid": "harbor"}, honest.claims, key, algorithms=["ES384"])

    return make


NOW = int(time.time())

REFUSED_ASSERTIONS = {
    "forged": _with_key(ECKey.generate_key("P-384")),
    "expired": _claims(exp=NOW - 60, iat=NOW - 120),
    "misdirected": _claims(aud="https://elsewhere.example/oauth2/token"),
    "lives over five minutes": lambda world: world.assertion("harbor", ["TREAT"], {"exp": int(time.time()) + 600}),
    "of an unknown client": _claims(iss="ghost", sub="ghost"),
    "iss is not sub": _claims(sub="meadow-ehr"),
    "without jti": _claims(jti=""),
    "not a token": lambda _world: "garbage",
    "names another organization": lambda world: world.assertion(
        "harbor", ["TREAT"], organization_id=f"{world.base}/fhir/Organization/meadow"
    ),
    "a purpose not held": lambda world: world.assertion("harbor", ["HPAYMT"]),
    "an unknown purpose": lambda world: world.assertion("harbor", ["CURIOSITY"]),
    "without purpose": lambda world: world.assertion("harbor", []),
    "break-glass without a reason": lambda world: world.assertion("harbor", ["BTG"]),
    "break-glass with a short reason": lambda world: world.assertion(
        "harbor",
        ["BTG"],
        {"extensions": _extensions(world) | {"hie-break-glass": {"version": "1", "reason": "urgent"}}},
    ),
}


def _extensions(world: Exchange) -> dict[str, Any]:
    decoded = jwt.decode(world.assertion("harbor", ["BTG"]), world.keys["harbor"], algorithms=["ES384"])
    extensions: dict[str, Any] = decoded.claims["extensions"]
    assert extensions["hl7-b2b"]["purpose_of_use"] == [REASON + "BTG"]
    return extensions


@pytest.mark.parametrize("how", REFUSED_ASSERTIONS)
def test_a_bad_assertion_gets_no_token(world: Exchange, how: str) -> None:
    reply = world.token_reply(REFUSED_ASSERTIONS[how](world))
    assert reply.status_code in (400, 401)
    assert reply.json()["error"] in ("invalid_client", "invalid_grant", "invalid_request")
    assert reply.json()["error_description"]
    assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("scope", ["", "system/Patient.sr", "user/*.rs", "system/Nothing", "openid"])
def test_a_scope_not_held_or_not_understood_gets_no_token(world: Exchange, scope: str) -> None:
    reply = world.token_reply(world.assertion("harbor", ["TREAT"]), scope)
    assert reply.status_code == 400
    assert reply.json()["error"] == "invalid_scope"


def test_the_privacy_office_reads_no_charts_whatever_it_asks_for(world: Exchange) -> None:
    reply = world.token_reply(world.assertion("privacy", ["HOPERAT"]), "system/AllergyIntolerance.rs")
    assert reply.json()["error"] == "invalid_scope"
    office = world.token("privacy", "system/AuditEvent.rs", "HOPERAT")
    assert world.call("GET", "/fhir/AllergyIntolerance?patient=x", office).status_code == 403


def test_a_scope_for_one_type_opens_no_other(world: Exchange) -> None:
    token = world.token("harbor", "system/Condition.rs")
    assert world.records("harbor", "AllergyIntolerance", "h-1", token=token).status_code == 403
    assert world.records("harbor", "Condition", "h-1", token=token).status_code == 200
    assert (
        world.call("PUT", f"/fhir/Patient?identifier={SYSTEM}|{uuid.uuid4()}", token, resource=MARTA).status_code == 403
    )


def _is_clear(reply: Any) -> None:
    body = reply.json()
    assert body["resourceType"] == "OperationOutcome"
    assert all(issue["diagnostics"] for issue in body["issue"])
    for trace in ("Traceback", 'File "', ".py", "sqlalchemy", "pydantic"):
        assert trace not in reply.text
