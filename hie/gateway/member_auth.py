"""How the exchange authenticates to a member: none, basic (RFC 7617), bearer (RFC 6750), or SMART Backend Services.

For the last, the exchange is the client: client_credentials with `private_key_jwt` (RFC 7523), signed by the key of
`hie.gateway.keys`. Nothing here does I/O; who sends the token request is `transport` or `capability`. A token that a
caller of the exchange holds is never passed on to a member.
"""

from __future__ import annotations

import base64
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from joserfc import jwt
from joserfc.jwk import ECKey

from hie.gateway.keys import ALGORITHM

if TYPE_CHECKING:
    from hie.gateway.directory import Auth

SigningKey = Callable[[], ECKey]

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_SECONDS = 240
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_DEFAULT_LIFE_SECONDS = 60.0
_LONGEST_LIFE_SECONDS = 3600.0
_SAFETY_SECONDS = 15.0


class AuthIncomplete(Exception):
    """The member's auth settings lack what their type needs; the message says what."""


class TokenUnusable(Exception):
    """The token endpoint's answer is not a bearer token."""


@dataclass(frozen=True)
class Token:
    """An access token of a member, and how many seconds it may be used."""

    value: str
    life: float


def static_authorization(auth: Auth) -> str | None:
    """The Authorization header for basic and bearer; None where none is sent (none) or a token is needed (oauth2)."""
    if auth.type == "basic":
        if auth.username is None or auth.password is None:
            raise AuthIncomplete("basic needs username and password")
        pair = f"{auth.username}:{auth.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")
    if auth.type == "bearer":
        if auth.token is None or not _TOKEN.fullmatch(auth.token):
            raise AuthIncomplete("bearer needs a token (RFC 6750)")
        return f"Bearer {auth.token}"
    return None


def token_request(auth: Auth, key: SigningKey | None) -> tuple[str, dict[str, str]]:
    """The token endpoint's address and the form to post there."""
    if auth.token_url is None or auth.client_id is None:
        raise AuthIncomplete("oauth2 needs token_url and client_id")
    if key is None:
        raise AuthIncomplete("oauth2 needs the exchange's signing key")
    form = {
        "grant_type": "client_credentials",
        "client_assertion_type": _ASSERTION_TYPE,
        "client_assertion": _assertion(auth.client_id, auth.token_url, key()),
    }
    if auth.scope:
        form["scope"] = auth.scope
    return auth.token_url, form


def _assertion(client_id: str, token_url: str, key: ECKey) -> str:
    now = int(time.time())  # the member's clock judges it, so the real time, whatever clock the services use
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": token_url,
        "iat": now,
        "exp": now + _ASSERTION_SECONDS,
        "jti": str(uuid.uuid4()),
    }
    header = {"alg": ALGORITHM, "kid": key.kid, "typ": "JWT"}
    return jwt.encode(header, claims, key, algorithms=[ALGORITHM])


def parse_token(raw: bytes) -> Token:
    """The token of a token response (RFC 6749 section 5.1); raises TokenUnusable."""
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise TokenUnusable("the token response is not JSON") from None
    if not isinstance(body, dict):
        raise TokenUnusable("the token response is not an object")
    value, kind, life = body.get("access_token"), body.get("token_type"), body.get("expires_in")
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise TokenUnusable("the token response holds no access_token")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise TokenUnusable("the token_type is not bearer")
    seconds = float(life) if isinstance(life, int | float) else _DEFAULT_LIFE_SECONDS
    return Token(value, max(0.0, min(seconds, _LONGEST_LIFE_SECONDS) - _SAFETY_SECONDS))
