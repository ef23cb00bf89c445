"""The token endpoint, SMART discovery and the mCSD directory over HTTP, as an outside client sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from hie.app import create_app
from hie.audit.query import AuditQuery
from hie.core.config import Settings
from hie.core.database import metadata
from hie.gateway.authority import ASSERTION_TYPE
from hie.gateway.services import Services
from tests.gateway.outside import BASE, PURPOSE, TOKEN_URL, Clock, Exchange, manifest, manifest_dict

JSON = {"Content-Type": "application/fhir+json"}
AUTH_ORG_ID = "https://profiles.ihe.net/ITI/mCSD/CodeSystem/MCSDOrganizationIdentifierTypes"


class World:
    """The application, and an outside client that signs its assertions."""

    def __init__(self, app: Flask, outside: Exchange) -> None:
        self.http: FlaskClient = app.test_client()
        self.services: Services = app.extensions["hie"]
        self.outside = outside
        self._tokens: dict[tuple[str, str], str] = {}

    def form(self, client: str = "lakeside-ehr", scope: str = "system/*.rs", purpose: str = "TREAT") -> dict[str, str]:
        return {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": self.outside.assertion(client, b2b={"purpose_of_use": [PURPOSE + purpose]}),
            "scope": scope,
        }

    def headers(
        self, client: str = "lakeside-ehr", scope: str = "system/*.rs", purpose: str = "TREAT"
    ) -> dict[str, str]:
        if (client, scope) not in self._tokens:
            answer = self.http.post("/oauth2/token", data=self.form(client, scope, purpose))
            self._tokens[client, scope] = answer.json["access_token"]  # type: ignore[index]
        return {"Authorization": f"Bearer {self._tokens[client, scope]}"}

    def get(self, path: str) -> TestResponse:
        return self.http.get(path, headers=self.headers())

    def put_endpoint(self, address: str, client: str = "lakeside-ehr", member: str = "lakeside", **changes: Any) -> Any:
        body = self.get(f"/fhir/Endpoint/{member}").json
        assert body is not None
        headers = self.headers(client, "system/Endpoint.ru") | JSON
        return self.http.put(f"/fhir/Endpoint/{member}", json=body | {"address": address} | changes, headers=headers)

    def log(self) -> list[dict[str, Any]]:
        return [entry.resource for entry in self.services.audit.search(AuditQuery()).entries]


@contextmanager
def _world(database_url: str, tmp_path: Path) -> Iterator[World]:
    settings = Settings(home=tmp_path, base_url=BASE, database_url=database_url)
    clock = Clock()
    app = create_app(settings, clock)
    services: Services = app.extensions["hie"]
    metadata.create_all(services.database.engine)
    services.directory.apply(manifest())
    yield World(app, Exchange(services.database, tmp_path, clock))
    services.audit.close()
    services.database.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with _world(f"sqlite:///{tmp_path / 'hie.sqlite'}", tmp_path) as made:
        yield made


@pytest.fixture
def either_world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """On SQLite and on PostgreSQL, for what writes."""
    with _world(database_url, tmp_path) as made:
        yield made


def ids(answer: TestResponse, mode: str = "match") -> list[str]:
    assert answer.status_code == 200, answer.text
    bundle = answer.json
    assert bundle is not None
    return [e["resource"]["id"] for e in bundle.get("entry", []) if e["search"]["mode"] == mode]


# -- tokens


def test_a_token_over_http(either_world: World) -> None:
    answer = either_world.http.post("/oauth2/token", data=either_world.form())
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json is not None
    assert {**answer.json, "access_token": ""} == {
        "access_token": "",
        "token_type": "bearer",
        "expires_in": 300,
        "scope": "system/*.rs",
    }


def test_a_refusal_over_http(either_world: World) -> None:
    form = either_world.form()
    either_world.http.post("/oauth2/token", data=form)
    answer = either_world.http.post("/oauth2/token", data=form)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (401, "no-store")
    assert answer.json == {
        "error": "invalid_client",
        "error_description": "This assertion was used before (jti); make a new one for every request.",
    }
    assert [entry["outcome"] for entry in either_world.log()] == ["4", "0"]


def test_token_requests_that_are_no_proper_form(world: World) -> None:
    form = world.form()
    twice = [*form.items(), ("client_assertion", form["client_assertion"])]
    body = "&".join(f"{name}={value}" for name, value in twice)
    for answer in (
        world.http.post("/oauth2/token", data=json.dumps(form), content_type="application/json"),
        world.http.post("/oauth2/token", data=form, content_type="multipart/form-data"),
        world.http.post("/oauth2/token", data=body, content_type="application/x-www-form-urlencoded"),
        world.http.post("/oauth2/token", data=form, headers={"Authorization": "Basic bGFrZXNpZGU6eA=="}),
        world.http.post("/oauth2/token"),
    ):
        assert answer.status_code == 400
        assert answer.json is not None
        assert answer.json["error"] == "invalid_request"
    assert world.http.get("/oauth2/token").status_code == 405


@pytest.mark.parametrize("path", ["/.well-known/smart-configuration", "/fhir/.well-known/smart-configuration"])
def test_smart_discovery(world: World, path: str) -> None:
    answer = world.http.get(path, headers={"Accept": "text/html"})
    assert answer.content_type == "application/json"
    found = answer.json
    assert found is not None
    assert found["token_endpoint"] == TOKEN_URL
    assert found["grant_types_supported"] == ["client_credentials"]
    assert found["token_endpoint_auth_methods_supported"] == ["private_key_jwt"]
    assert found["token_endpoint_auth_signing_alg_values_supported"] == ["RS384", "ES384"]
    assert found["code_challenge_methods_supported"] == ["S256"]
    assert {"client-confidential-asymmetric", "permission-v2"} <= set(found["capabilities"])
    assert world.http.post("/oauth2/token", data=world.form(scope=found["scopes_supported"][0])).status_code == 200


# -- the directory


def test_an_organization_as_mcsd_shows_it(world: World) -> None:
    shown = world.get("/fhir/Organization/meadow").json
    assert shown is not None
    assert (shown["name"], shown["active"]) == ("Meadow Practice", True)
    own, authority = shown["identifier"]
    assert own["type"]["coding"] == [{"system": AUTH_ORG_ID, "code": "AuthOrgId"}]
    assert own["value"] == f"{BASE}/fhir/Organization/meadow"
    assert authority["value"] == "urn:oid:2.999.1.2"
    assert shown["endpoint"] == [{"reference": "Endpoint/meadow"}]
    assert shown["address"] == [{"use": "work", "text": "7 Meadow Lane, Springfield, MA 01101"}]
    assert [e["valueCodeableConcept"]["coding"][0]["code"] for e in shown["extension"]] == ["TREAT"]


def test_an_endpoint_as_mcsd_shows_it_without_credentials(world: World) -> None:
    answer = world.get("/fhir/Endpoint/meadow")
    shown = answer.json
    assert shown is not None
    assert shown["address"] == "https://meadow.example/fhir"
    assert shown["connectionType"]["code"] == "hl7-fhir-rest"
    assert shown["managingOrganization"]["reference"] == "Organization/meadow"
    assert shown["payloadMimeType"] == ["application/fhir+json"]
    assert shown["payloadType"]
    everything = answer.text + world.get("/fhir/Endpoint").text + world.get("/fhir/Organization").text
    assert "meadow-secret" not in everything
    assert "basic" not in everything


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("Organization", ["exchange", "harvest", "lakeside", "meadow"]),
        ("Organization?_id=meadow,lakeside", ["lakeside", "meadow"]),
        ("Organization?name=lake", ["lakeside"]),
        ("Organization?name=hospital", []),
        ("Organization?name:contains=hospital", ["lakeside"]),
        ("Organization?name:exact=Lakeside Hospital", ["lakeside"]),
        ("Organization?name:exact=lakeside hospital", []),
        ("Organization?active=true&name=meadow", ["meadow"]),
        ("Organization?active=false", []),
        ("Organization?type=ins", ["harvest"]),
        ("Organization?type=http://terminology.hl7.org/CodeSystem/organization-type|prov", ["lakeside", "meadow"]),
        ("Organization?identifier=urn:oid:2.999.1.1", ["lakeside"]),
        ("Organization?identifier=urn:ietf:rfc:3986|urn:oid:2.999.1.1", ["lakeside"]),
        ("Organization?identifier=urn:other|urn:oid:2.999.1.1", []),
        ("Endpoint", ["lakeside", "meadow"]),
        ("Endpoint?organization=Organization/meadow", ["meadow"]),
        (f"Endpoint?organization={BASE}/fhir/Organization/meadow", ["meadow"]),
        ("Endpoint?organization=harvest", []),
        ("Endpoint?status=active&_id=lakeside", ["lakeside"]),
        ("Endpoint?status=off", []),
        (f"Endpoint?identifier={BASE}/fhir/Endpoint/meadow", ["meadow"]),
    ],
)
def test_searching_the_directory(world: World, query: str, found: list[str]) -> None:
    assert ids(world.get(f"/fhir/{query}")) == found
    kind, _, criteria = query.partition("?")
    form = dict(pair.split("=", 1) for pair in criteria.split("&")) if criteria else {}
    assert ids(world.http.post(f"/fhir/{kind}/_search", data=form, headers=world.headers())) == found


def test_organizations_with_their_endpoints(world: World) -> None:
    answer = world.get("/fhir/Organization?_id=meadow,harvest&_include=Organization:endpoint")
    assert ids(answer) == ["harvest", "meadow"]
    assert ids(answer, "include") == ["meadow"]
    assert answer.json is not None
    assert answer.json["total"] == 2
    assert answer.json["entry"][2]["fullUrl"] == f"{BASE}/fhir/Endpoint/meadow"


def test_pages_of_the_directory(world: World) -> None:
    found, path = [], "/fhir/Organization?active=true&_count=3"
    while path:
        answer = world.get(path)
        found.append(ids(answer))
        links = {link["relation"]: link["url"] for link in answer.json["link"]}  # type: ignore[index]
        path = links.get("next", "").removeprefix(BASE)
    assert found == [["exchange", "harvest", "lakeside"], ["meadow"]]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("Organization/nobody", 404),
        ("Endpoint/harvest", 404),
        ("Organization?nmae=x", 400),
        ("Organization?_include=Organization:partof", 400),
        ("Endpoint?_include=Organization:endpoint", 400),
        ("Organization?name:missing=true", 400),
        ("Organization?active:not=true", 400),
        ("Organization?_count=ten", 400),
        ("Organization?_format=text/turtle", 400),
    ],
)
def test_directory_requests_that_are_refused(world: World, path: str, status: int) -> None:
    answer = world.get(f"/fhir/{path}")
    assert answer.status_code == status
    assert answer.json is not None
    assert answer.json["resourceType"] == "OperationOutcome"


def test_the_directory_is_for_verified_callers(world: World) -> None:
    for path in ("Organization", "Organization/lakeside", "Endpoint", "Endpoint/lakeside"):
        assert world.http.get(f"/fhir/{path}").status_code == 401
        assert world.http.get(f"/fhir/{path}", headers={"Authorization": "Bearer x"}).status_code == 401
    assert world.http.put("/fhir/Endpoint/lakeside", json={}).status_code == 401


# -- a member changes its own endpoint


def test_a_member_moves_its_own_endpoint_and_the_log_knows(either_world: World) -> None:
    answer = either_world.put_endpoint("https://fhir2.lakeside.example/r4/")
    assert answer.status_code == 200, answer.text
    assert answer.json["address"] == "https://fhir2.lakeside.example/r4"
    shown = either_world.get("/fhir/Endpoint/lakeside").json
    assert shown is not None
    assert shown["address"] == "https://fhir2.lakeside.example/r4"
    newest = json.dumps(either_world.log()[0])
    assert "member lakeside: endpoint" in newest
    assert "lakeside-ehr" in newest


def test_credentials_do_not_follow_to_another_host(either_world: World) -> None:
    content = manifest_dict()
    content["members"][1]["clients"][0]["scopes"] = ["system/Endpoint.rus"]
    either_world.services.directory.apply(manifest(content))
    moved = either_world.put_endpoint("https://elsewhere.example/fhir", "meadow-ehr", "meadow")
    assert moved.status_code == 409
    assert either_world.put_endpoint("https://meadow.example/fhir/v2", "meadow-ehr", "meadow").status_code == 200
    member = either_world.services.directory.member("meadow")
    assert member is not None
    assert member.endpoint is not None
    assert (member.endpoint.url, member.endpoint.auth.password) == ("https://meadow.example/fhir/v2", "meadow-secret")


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("https://meadow.example/fhir", 409),
        ("https://MEADOW.example:443/FHIR/", 409),
        ("https://169.254.169.254/latest", 400),
        ("http://fhir.lakeside.example/r4", 400),
        ("https://127.1/", 400),
        ("https://[", 400),
        ("", 400),
    ],
)
def test_addresses_that_are_refused(world: World, address: str, status: int) -> None:
    answer = world.put_endpoint(address)
    assert answer.status_code == status, answer.text
    member = world.services.directory.member("lakeside")
    assert member is not None
    assert member.endpoint is not None
    assert member.endpoint.url == "https://fhir.lakeside.example/r4"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"id": "meadow"}, 400),
        ({"status": "off"}, 422),
        ({"connectionType": {"code": "ihe-xca"}}, 422),
        ({"managingOrganization": {"reference": "Organization/meadow"}}, 422),
        ({"resourceType": "Organization"}, 400),
    ],
)
def test_nothing_but_the_address_changes(world: World, change: dict[str, Any], status: int) -> None:
    assert world.put_endpoint("https://fhir2.lakeside.example", **change).status_code == status


def test_who_may_not_change_an_endpoint(world: World) -> None:
    body = world.get("/fhir/Endpoint/meadow").json
    own = world.headers("lakeside-ehr", "system/*.cruds") | JSON
    reader = world.headers("lakeside-ehr", "system/Endpoint.rs") | JSON
    office = world.headers("privacy-office", "system/AuditEvent.rs", "HOPERAT") | JSON
    assert world.http.put("/fhir/Endpoint/meadow", json=body, headers=own).status_code == 403
    assert world.http.put("/fhir/Endpoint/nobody", json=body, headers=own).status_code == 403
    assert world.http.put("/fhir/Endpoint/lakeside", json=body, headers=reader).status_code == 403
    assert world.http.put("/fhir/Endpoint/lakeside", json=body, headers=office).status_code == 403
    assert [entry["outcome"] for entry in world.log()[:4]] == ["4"] * 4
    assert (
        world.http.put("/fhir/Endpoint/lakeside", data="x", headers={**own, "Content-Type": "text/plain"}).status_code
        == 415
    )
    for method in ("post", "delete"):
        assert getattr(world.http, method)("/fhir/Organization", headers=own).status_code in (404, 405)
