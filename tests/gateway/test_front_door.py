"""The application as a whole: what it says of itself, health, metrics, errors, and no road around the door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from fhir.resources.R4B.capabilitystatement import CapabilityStatement
from flask.testing import FlaskClient

from hie.app import create_app
from hie.core import schema
from hie.core.fhir import CLINICAL_TYPES
from tests.audit.attack import attacking
from tests.audit.samples import disclosure
from tests.gateway.outside import BASE, manifest, settings


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    app = create_app(settings(tmp_path))
    schema.upgrade(app.extensions["hie"].database)
    app.extensions["hie"].directory.apply(manifest())
    return app.test_client()


def test_the_statement_is_valid_and_lists_routes_that_exist(client: FlaskClient) -> None:
    statement = client.get("/fhir/metadata").get_json()
    CapabilityStatement.model_validate(statement)
    resources = {resource["type"]: resource for resource in statement["rest"][0]["resource"]}
    assert set(CLINICAL_TYPES) < set(resources)
    assert resources["Patient"]["conditionalUpdate"] is True
    assert resources["Patient"]["conditionalDelete"] == "single"
    assert [operation["name"] for operation in statement["rest"][0]["operation"]] == ["process-message"]
    assert client.post("/fhir/$process-message").status_code == 401
    told = {"Encounter", "ServiceRequest", "CareTeam"}
    assert {name for name, resource in resources.items() if resource.get("conditionalUpdate")} == {"Patient", *told}
    for resource_type, resource in resources.items():
        # 401, since no token is sent: the route is there.
        can = {interaction["code"] for interaction in resource["interaction"]}
        if "read" in can:
            assert client.get(f"/fhir/{resource_type}/x").status_code == 401
            assert client.get(f"/fhir/{resource_type}?patient=x").status_code == 401
        if resource.get("conditionalUpdate"):
            assert client.put(f"/fhir/{resource_type}?identifier=x|y").status_code == 401
            assert client.delete(f"/fhir/{resource_type}?identifier=x|y").status_code == 401


def test_discovery_tells_absolute_addresses(client: FlaskClient) -> None:
    document = client.get("/.well-known/smart-configuration").get_json()
    assert document["token_endpoint"] == f"{BASE}/oauth2/token"
    keys = client.get(document["jwks_uri"].removeprefix(BASE)).get_json()["keys"]
    assert [key["kty"] for key in keys] == ["EC"]
    assert "d" not in keys[0]


def test_every_request_has_an_id(client: FlaskClient) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
    for odd in ("", "with space", "x" * 65, "a\u00e9"):
        given = client.get("/healthz", headers={"X-Request-Id": odd}).headers["X-Request-Id"]
        assert given not in ("", odd)


def test_ready_only_with_a_current_schema(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path))
    reply = app.test_client().get("/readyz")
    assert reply.status_code == 503
    assert "hie db upgrade" in reply.get_json()["reason"]
    assert app.test_client().get("/healthz").status_code == 200


def test_metrics_name_routes_and_never_addresses(client: FlaskClient) -> None:
    client.get("/fhir/AllergyIntolerance/some-secret-id")
    text = client.get("/metrics").get_data(as_text=True)
    assert "hie_requests_total" in text
    assert "some-secret-id" not in text


@pytest.mark.parametrize("method", ["put", "patch", "delete"])
def test_a_method_that_is_not_there_gets_an_outcome(client: FlaskClient, method: str) -> None:
    reply = getattr(client, method)("/fhir/Condition/1")
    assert reply.status_code == 405
    assert reply.get_json()["resourceType"] == "OperationOutcome"
    assert "GET" in reply.headers["Allow"]


def test_a_defect_shows_nothing_of_itself(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    services = client.application.extensions["hie"]

    def broken(*_args: object, **_named: object) -> None:
        raise RuntimeError("Lindqvist 1949-11-02")

    monkeypatch.setattr(services.authority, "caller", broken)
    reply = client.get("/fhir/Condition?patient=x")
    assert reply.status_code == 500
    assert "Lindqvist" not in reply.get_data(as_text=True) + json.dumps(dict(reply.headers))
    logged = " ".join(str(vars(record)) for record in caplog.records)
    assert "RuntimeError" in logged
    assert "Lindqvist" not in logged


def test_a_database_that_is_gone_is_503(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_args: object, **_named: object) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("Lindqvist"))

    monkeypatch.setattr(client.application.extensions["hie"].authority, "caller", gone)
    reply = client.get("/fhir/Condition?patient=x")
    assert reply.status_code == 503
    assert reply.headers["Retry-After"]
    assert "Lindqvist" not in reply.get_data(as_text=True)


def test_a_refusal_that_cannot_be_logged_is_503(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    services = client.application.extensions["hie"]
    services.audit.close()
    reply = client.get("/fhir/Condition?patient=x", headers={"Authorization": "Bearer forged"})
    assert reply.status_code == 503


def test_views_and_pages_hold_no_road_to_members(client: FlaskClient) -> None:
    """import-linter forbids the import; this forbids the object."""
    services = vars(client.application.extensions["hie"])
    assert len(services) > 5
    assert [name for name, service in services.items() if hasattr(service, "ask")] == []


def test_not_ready_where_the_log_is_not_the_one_that_was_signed(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path))
    services = app.extensions["hie"]
    schema.upgrade(services.database)
    services.audit.record(disclosure())
    assert app.test_client().get("/readyz").status_code == 200
    with attacking(services.database) as connection:
        connection.execute(sa.text("DELETE FROM audit_checkpoints"))
    again = create_app(settings(tmp_path))
    for running in (app, again):
        reply = running.test_client().get("/readyz")
        assert reply.status_code == 503
        assert "not the one that was signed" in reply.get_json()["reason"]
        assert running.test_client().get("/healthz").status_code == 200
