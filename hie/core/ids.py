"""Opaque identifiers: random for what the exchange makes, keyed digests for what it stands in for."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets


def new_id() -> str:
    """A random id of 26 characters `[a-z2-7]` (128 bits and more), a valid FHIR id."""
    return _base32(secrets.token_bytes(16))


def derived_id(key: bytes, *parts: str) -> str:
    """A stable id of 32 characters that only the holder of `key` can compute from its parts."""
    message = b"".join(len(p).to_bytes(4, "big") + p for p in (part.encode() for part in parts))
    return _base32(hmac.digest(key, message, hashlib.sha256)[:20])


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()
