"""A black-box world: member FHIR servers with faults, and an exchange that the `hie` command starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from joserfc import jwt
from joserfc.jwk import ECKey

HIE = str(Path(sys.executable).with_name("hie"))
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
REASON = "urn:oid:2.16.840.1.113883.5.8#"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class StubMember:
    """A member's FHIR server whose behaviour a test sets: `mode` is ok or a fault."""

    slug: str
    system: str
    resources: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    latency: float = 0.0
    mode: str = "ok"
    asked: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)

    def start(self) -> StubMember:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                stub.answer(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A connection that the exchange closed is no news."""

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/fhir"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        parts = [part for part in url.path.split("/") if part][1:]
        if parts == ["metadata"]:
            return self._send(handler, 200, self._metadata())
        self.asked.append((url.path, parse_qs(url.query)))
        time.sleep(self.latency)
        fault = getattr(self, f"_{self.mode}", None)
        if fault is not None:
            return fault(handler)
        held = self.resources.get(parts[0], [])
        if len(parts) == 2:
            found = [r for r in held if r["id"] == parts[1]]
            return self._send(handler, 200, found[0]) if found else self._send(handler, 404, {"resourceType": "X"})
        wanted = parse_qs(url.query).get("patient", [])
        found = [r for r in held if _patient_of(r) in wanted]
        if self.mode == "ignores_patient":
            found = held
        return self._send(handler, 200, _searchset(found))

    def _metadata(self) -> dict[str, Any]:
        resource = [
            {"type": kind, "interaction": [{"code": "read"}, {"code": "search-type"}]}
            | {"searchParam": [{"name": "patient", "type": "reference"}]}
            for kind in self.resources
        ]
        return {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": "2026-01-01",
            "kind": "instance",
            "fhirVersion": "4.0.1",
            "format": ["json"],
            "rest": [{"mode": "server", "resource": resource}],
        }

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, body: Any, kind: str = "application/fhir+json") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    # faults

    def _hang(self, handler: BaseHTTPRequestHandler) -> None:
        handler.connection.settimeout(30)
        handler.connection.recv(1)  # until the other side gives up
        handler.close_connection = True

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        self._endless(handler, b" ", 1_000_000, 0.05)

    def _huge(self, handler: BaseHTTPRequestHandler) -> None:
        self._endless(handler, b" " * (1 << 20), 1 << 31, 0)

    def _endless(self, handler: BaseHTTPRequestHandler, piece: bytes, length: int, pause: float) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/fhir+json")
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.close_connection = True
        try:
            for _ in range(length // len(piece)):
                handler.wfile.write(piece)
                time.sleep(pause)
        except OSError:
            pass

    def _reset(self, handler: BaseHTTPRequestHandler) -> None:
        handler.connection.close()
        handler.close_connection = True

    def _html(self, handler: BaseHTTPRequestHandler) -> None:
        self._send(handler, 200, b"<html>SECRET-PAGE</html>", "text/html")

    def _garbage(self, handler: BaseHTTPRequestHandler) -> None:
        self._send(handler, 200, b'{"resourceType": "Bundle", SECRET-GARBAGE')

    def _error(self, handler: BaseHTTPRequestHandler) -> None:
        issue = {"severity": "fatal", "code": "exception", "diagnostics": "SECRET-STACKTRACE"}
        self._send(handler, 500, {"resourceType": "OperationOutcome", "issue": [issue]})


def _patient_of(resource: dict[str, Any]) -> str:
    named = resource.get("patient") or resource.get("subject") or resource.get("beneficiary") or {}
    return str(named.get("reference"))


def _searchset(found: list[dict[str, Any]]) -> dict[str, Any]:
    entries = [{"resource": resource, "search": {"mode": "match"}} for resource in found]
    return {"resourceType": "Bundle", "type": "searchset", "total": len(found), "entry": entries}


OWN_CLIENTS = {"privacy": "privacy-office", "portal": "patients-app"}
"""Clients of the exchange itself by the names of their keys."""


class Exchange:
    """One exchange with its members and clients, in a folder of its own."""

    def __init__(
        self,
        home: Path,
        members: list[StubMember],
        *,
        database_url: str = "",
        env: dict[str, str] | None = None,
        manifest: dict[str, Any] | None = None,
    ) -> None:
        self.home = home
        self.members = {member.slug: member for member in members}
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.keys = {
            name: ECKey.generate_key("P-384", parameters={"use": "sig", "alg": "ES384", "kid": name})
            for name in [*self.members, *OWN_CLIENTS]
        }
        self.env = {
            **os.environ,
            "HIE_HOME": str(home),
            "HIE_ENV": "development",
            "HIE_BASE_URL": self.base,
            "HIE_DATABASE_URL": database_url,
            "HIE_QUERY_DEADLINE_MS": "1500",
            **(env or {}),
        }
        self.extra = manifest or {}
        self.process: subprocess.Popen[bytes] | None = None

    def manifest(self) -> dict[str, Any]:
        members = [
            {
                "id": member.slug,
                "name": f"{member.slug.title()} Hospital",
                "patient_id_system": member.system,
                "endpoint": {"url": member.url, "auth": {"type": "none"}},
                "clients": [
                    {
                        "id": f"{member.slug}-ehr",
                        "jwks": {"keys": [self.keys[member.slug].as_dict(private=False)]},
                        "scopes": ["system/*.cruds"],
                    }
                ],
                **self.extra.get(member.slug, {}),
            }
            for member in self.members.values()
        ]
        own = [
            {
                "id": OWN_CLIENTS[name],
                "role": role,
                "jwks": {"keys": [self.keys[name].as_dict(private=False)]},
                "scopes": scopes,
            }
            for name, role, scopes in (
                ("privacy", "privacy-officer", ["system/AuditEvent.rs", "system/Consent.cruds"]),
                ("portal", "patient", ["system/*.rs"]),
            )
        ]
        return {"members": members, "clients": own, "users": self.extra.get("users", [])}

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [HIE, *args], cwd=self.home, env=self.env, capture_output=True, text=True, timeout=120, check=check
        )

    def start(self) -> Exchange:
        path = self.home / "manifest.json"
        path.write_text(json.dumps(self.manifest()))
        self.run("db", "upgrade")
        self.run("apply", str(path))
        return self.serve()

    def serve(self) -> Exchange:
        with (self.home / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [HIE, "serve", "--port", str(self.port), "--workers", "2"],
                cwd=self.home,
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if requests.get(f"{self.base}/readyz", timeout=2).status_code == 200:
                    return self
            except requests.RequestException:
                pass
            time.sleep(0.05)
        raise AssertionError("hie serve is not ready: " + (self.home / "serve.log").read_text()[-2000:])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, how)
            self.process.wait(30)

    def log_text(self) -> str:
        return (self.home / "serve.log").read_text()

    # -- a client

    def assertion(self, slug: str, purposes: list[str], claims: dict[str, Any] | None = None, **b2b: Any) -> str:
        client = OWN_CLIENTS.get(slug, f"{slug}-ehr")
        organization = "exchange" if slug in OWN_CLIENTS else slug
        now = int(time.time())
        payload = {
            "iss": client,
            "sub": client,
            "aud": f"{self.base}/oauth2/token",
            "iat": now,
            "exp": now + 240,
            "jti": uuid.uuid4().hex,
            "extensions": {
                "hl7-b2b": {
                    "version": "1",
                    "subject_name": "Dr Rosa Ortiz",
                    "subject_id": "urn:oid:2.16.840.1.113883.4.6#1234567893",
                    "subject_role": "urn:oid:2.16.840.1.113883.6.96#112247003",
                    "organization_id": f"{self.base}/fhir/Organization/{organization}",
                    "purpose_of_use": [REASON + purpose for purpose in purposes],
                    **b2b,
                }
            },
        } | (claims or {})
        return jwt.encode({"alg": "ES384", "kid": slug, "typ": "JWT"}, payload, self.keys[slug], algorithms=["ES384"])

    def token_reply(self, assertion: str, scope: str = "system/*.rs") -> requests.Response:
        form = {"grant_type": "client_credentials", "scope": scope}
        form |= {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}
        return requests.post(f"{self.base}/oauth2/token", data=form, timeout=20)

    def token(
        self, slug: str, scope: str = "system/*.rs", purpose: str = "TREAT", reason: str | None = None, **b2b: Any
    ) -> str:
        assertion = self.assertion(slug, [purpose], **b2b)
        if reason is not None:
            extensions = jwt.decode(assertion, self.keys[slug], algorithms=["ES384"]).claims["extensions"]
            extensions["hie-break-glass"] = {"version": "1", "reason": reason}
            assertion = self.assertion(slug, [purpose], {"extensions": extensions})
        reply = self.token_reply(assertion, scope)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["access_token"])

    def call(self, method: str, path: str, token: str | None = None, **options: Any) -> requests.Response:
        headers = {"Accept": "application/fhir+json"} | options.pop("headers", {})
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if "resource" in options:
            options["data"] = json.dumps(options.pop("resource"))
            headers["Content-Type"] = "application/fhir+json"
        return requests.request(method, self.base + path, headers=headers, timeout=30, **options)

    def feed(self, slug: str, local_id: str, patient: dict[str, Any]) -> requests.Response:
        system = self.members[slug].system
        body = {"resourceType": "Patient", **patient}
        body["identifier"] = [{"system": system, "value": local_id}, *patient.get("identifier", [])]
        token = self.token(slug, "system/Patient.cruds", "HOPERAT")
        return self.call("PUT", "/fhir/Patient", token, params={"identifier": f"{system}|{local_id}"}, resource=body)

    def person(self, slug: str, local_id: str) -> str:
        params = {"sourceIdentifier": f"{self.members[slug].system}|{local_id}"}
        reply = self.call("GET", "/fhir/Patient/$ihe-pix", self.token(slug), params=params)
        assert reply.status_code == 200, reply.text
        references = [p["valueReference"]["reference"] for p in reply.json()["parameter"] if p["name"] == "targetId"]
        return str(references[0]).removeprefix("Patient/")

    def records(self, slug: str, kind: str, local_id: str, **options: Any) -> requests.Response:
        token = options.pop("token", None) or self.token(slug)
        params = {"patient.identifier": f"{self.members[slug].system}|{local_id}", **options.pop("params", {})}
        return self.call("GET", f"/fhir/{kind}", token, params=params, **options)


def matches(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    """The clinical resources of a searchset."""
    return [e["resource"] for e in bundle.get("entry", []) if e["search"]["mode"] == "match"]


def issues(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The issues of a searchset's OperationOutcome, or of an OperationOutcome."""
    if answer["resourceType"] == "OperationOutcome":
        return list(answer["issue"])
    return [i for e in answer.get("entry", []) if e["search"]["mode"] == "outcome" for i in e["resource"]["issue"]]


def source_codes(answer: dict[str, Any]) -> dict[str, str]:
    """Source-status code -> sentence, of every source that fell short."""
    return {i["details"]["coding"][0]["code"]: i["diagnostics"] for i in issues(answer) if "coding" in i["details"]}
