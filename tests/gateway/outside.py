"""What an outside client of the exchange does: keys, a manifest, signed assertions. And the exchange's side of it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from hie.audit.log import AuditLog
from hie.audit.seal import Seal
from hie.core.config import Environment, Settings
from hie.core.database import Database
from hie.gateway.authority import ASSERTION_TYPE, Authority
from hie.gateway.directory import Directory
from hie.gateway.manifest import Manifest, parse

BASE = "https://exchange.example"
TOKEN_URL = f"{BASE}/oauth2/token"
SECRET = bytes(range(32))
PURPOSE = "urn:oid:2.16.840.1.113883.5.8#"
PHYSICIAN = "urn:oid:2.16.840.1.113883.6.101#207P00000X"
REASON = "unconscious, no relatives here"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@lru_cache
def ec_key(kid: str) -> ECKey:
    return ECKey.generate_key("P-384", parameters={"use": "sig", "alg": "ES384", "kid": kid})


@lru_cache
def rsa_key(kid: str, bits: int = 2048) -> RSAKey:
    return RSAKey.generate_key(bits, parameters={"use": "sig", "kid": kid})


def jwks(*keys: ECKey | RSAKey) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


def manifest_dict() -> dict[str, Any]:
    """Two hospitals and a payer, the privacy office, and two people; a fresh copy every time."""
    return {
        "members": [
            {
                "id": "lakeside",
                "name": "Lakeside Hospital",
                "patient_id_system": "urn:oid:2.999.1.1",
                "endpoint": {"url": "https://fhir.lakeside.example/r4", "auth": {"type": "none"}},
                "clients": [
                    {"id": "lakeside-ehr", "jwks": jwks(ec_key("lakeside")), "scopes": ["system/*.cruds"]},
                    {"id": "lakeside-rsa", "jwks": jwks(rsa_key("rsa")), "scopes": ["system/Patient.rs"]},
                ],
            },
            {
                "id": "meadow",
                "name": "Meadow Practice",
                "patient_id_system": "urn:oid:2.999.1.2",
                "address": "7 Meadow Lane, Springfield, MA 01101",
                "endpoint": {
                    "url": "https://meadow.example/fhir",
                    "auth": {"type": "basic", "username": "hie", "password": "meadow-secret"},
                },
                "purposes": ["TREAT"],
                "part2": True,
                "clients": [{"id": "meadow-ehr", "jwks": jwks(ec_key("meadow")), "scopes": ["system/*.rs"]}],
            },
            {
                "id": "harvest",
                "name": "Harvest Health Plan",
                "patient_id_system": "urn:oid:2.999.1.3",
                "kind": "payer",
                "purposes": ["HPAYMT", "BTG", "TREAT"],
                "clients": [{"id": "harvest-claims", "jwks": jwks(ec_key("harvest")), "scopes": ["system/*.rs"]}],
            },
        ],
        "clients": [
            {
                "id": "privacy-office",
                "role": "privacy-officer",
                "jwks": jwks(ec_key("privacy")),
                "scopes": ["system/AuditEvent.rs", "system/Consent.cruds"],
            }
        ],
        "users": [
            {
                "email": "r.ortiz@lakeside.example",
                "name": "Rosa Ortiz",
                "role": "clinician",
                "member": "lakeside",
                "password": "correct horse battery",
            },
            {"email": "steward@exchange.example", "name": "Sam Steward", "role": "data-steward"},
        ],
    }


def manifest(content: dict[str, Any] | None = None, *, development: bool = False) -> Manifest:
    return parse(content or manifest_dict(), development=development)


def settings(home: Path, *, development: bool = False) -> Settings:
    env = Environment.DEVELOPMENT if development else Environment.PRODUCTION
    return Settings(home=home, base_url=BASE, env=env)


class Exchange:
    """The directory, the token endpoint's rules and the log of one worker."""

    def __init__(
        self, database: Database, home: Path, clock: Clock | None = None, *, development: bool = False
    ) -> None:
        self.clock = clock or Clock()
        self.settings = settings(home, development=development)
        self.database = database
        self.directory = Directory(database, self.clock, self.settings)
        self.audit = AuditLog(database, self.clock, self.settings.fhir_base, Seal.of(self.settings))
        self.authority = Authority(database, self.clock, self.settings, self.directory, self.audit, lambda: SECRET)

    def assertion(
        self,
        client: str = "lakeside-ehr",
        *,
        key: ECKey | RSAKey | None = None,
        header: Mapping[str, Any] | None = None,
        b2b: Mapping[str, Any] | None = None,
        extensions: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A sound assertion of the client, but for what is given; None takes a claim away."""
        key = key or ec_key(client.split("-")[0])
        now = int(self.clock().timestamp())
        organization = "exchange" if client == "privacy-office" else client.split("-")[0]
        context = {
            "version": "1",
            "organization_id": f"{BASE}/fhir/Organization/{organization}",
            "purpose_of_use": [PURPOSE + "TREAT"],
            **(b2b or {}),
        }
        body = {
            "iss": client,
            "sub": client,
            "aud": TOKEN_URL,
            "exp": now + 240,
            "iat": now,
            "jti": uuid.uuid4().hex,
            "extensions": {"hl7-b2b": context, **(extensions or {})},
            **claims,
        }
        algorithm = "RS384" if isinstance(key, RSAKey) else "ES384"
        head = {"alg": algorithm, "kid": key.kid, "typ": "JWT", **(header or {})}
        return jwt.encode(
            {name: value for name, value in head.items() if value is not None},
            {name: value for name, value in body.items() if value is not None},
            key,
            algorithms=[str(head["alg"])],
        )

    def issue(self, assertion: str | None = None, scope: str = "system/Patient.rs", **form: str) -> dict[str, Any]:
        asked = {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion or self.assertion(),
            "scope": scope,
            **form,
        }
        return self.authority.issue(asked, "192.0.2.7", "request-1")
