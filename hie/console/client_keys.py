"""Pasted client keys: text -> a JWK Set to register, or sentences that say what to do. Pure.

What may be registered is `hie.gateway.keysets`' word; here the common slips get a sentence of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from hie.core.errors import HieError
from hie.core.fhir import parse_json
from hie.gateway.keysets import mistakes

_HOW = 'Paste a JWK Set: {"keys": [ … ]} with the public keys that your system signs with (RS384 or ES384).'


@dataclass(frozen=True)
class ShownKey:
    """One registered key, as an administrator recognises it."""

    kid: str
    kind: str
    thumbprint: str
    """RFC 7638, SHA-256."""


def read(text: str) -> tuple[dict[str, Any] | None, list[str]]:
    """(key set, []) or (None, sentences)."""
    text = text.strip()
    if not text:
        return None, [_HOW]
    if "PRIVATE KEY" in text:
        return None, [f"This is a private key, which has now been shown: make a new pair. {_HOW}"]
    if text.startswith("-----BEGIN"):
        return None, [f"This is PEM. {_HOW}"]
    if text.startswith(("https://", "http://")):
        return None, [f"This is an address. Ask the operator to register a jwks_uri, or: {_HOW}"]
    try:
        given = parse_json(text.encode())
    except HieError as error:
        return None, [f"{error.message.replace('The body', 'The text')} {_HOW}"]
    if isinstance(given, dict) and "kty" in given and "keys" not in given:
        given = {"keys": [given]}  # one bare key is plain enough
    found = [f"{_place(place)} {sentence}." for place, sentence in mistakes(given)]
    return (None, found) if found else (given, [])


def shown(jwks: dict[str, Any] | None) -> list[ShownKey]:
    """The registered keys."""
    return [_shown(key) for key in (jwks or {}).get("keys", []) if isinstance(key, dict)]


def _shown(key: dict[str, Any]) -> ShownKey:
    try:
        loaded = RSAKey.import_key(key) if key.get("kty") == "RSA" else ECKey.import_key(key)
        thumbprint = loaded.thumbprint()
    except (JoseError, ValueError, TypeError, KeyError):
        thumbprint = "unreadable; replace this key"
    kind = {"RSA": "RSA, RS384", "EC": f"EC {key.get('crv', '')}, ES384"}.get(str(key.get("kty")), "unknown kind")
    return ShownKey(str(key.get("kid", "without kid")), kind, thumbprint)


def _place(place: str) -> str:
    """`.keys[0]` -> `Key 1`."""
    number = place.removeprefix(".keys[").split("]")[0]
    return f"Key {int(number) + 1}" if number.isdigit() else "The text"
