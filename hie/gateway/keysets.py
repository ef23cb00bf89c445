"""Clients' public keys (RFC 7517) for RS384 and ES384 (RFC 7518): what may be registered, and which key a token names.

SMART App Launch 2, "client-confidential-asymmetric": a key is chosen by `kid` and `kty`, none or several means failure;
a key set at an address is not kept longer than its `Cache-Control` says.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from hie.core.clock import Clock
from hie.core.errors import HieError
from hie.core.fhir import parse_json
from hie.gateway.guard import FetchFailed, SafeSession

KEY_TYPE = {"RS384": "RSA", "ES384": "EC"}
"""Signature algorithm -> key type; no other algorithm is accepted."""

Jwks = dict[str, Any]
Key = RSAKey | ECKey

_ALGORITHM = {kty: alg for alg, kty in KEY_TYPE.items()}
_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
_PUBLIC = ("kty", "kid", "use", "key_ops", "alg", "n", "e", "crv", "x", "y")
_MAX_KEYS = 20
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192
_MAX_SET_BYTES = 100_000
_FETCH_SECONDS = 3.0
_LONGEST_KEPT = timedelta(minutes=5)
_KEPT_WITHOUT_WORD = timedelta(minutes=1)
_REFETCH_AFTER = timedelta(seconds=30)


def mistakes(jwks: object) -> list[tuple[str, str]]:
    """(place, sentence) of everything that keeps a key set from being registered; empty when it is fine."""
    keys = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(keys, list) or not keys:
        return [("", 'must be a JWK Set: {"keys": [...]} with at least one public key')]
    if len(keys) > _MAX_KEYS:
        return [(".keys", f"holds more than {_MAX_KEYS} keys")]
    found = [(f".keys[{n}]", sentence) for n, key in enumerate(keys) if (sentence := _mistake(key))]
    if found:
        return found
    names = [(key["kid"], key["kty"]) for key in keys]
    return [
        (f".keys[{n}].kid", "is the kid of an earlier key too; a kid must name one key")
        for n, name in enumerate(names)
        if name in names[:n]
    ]


def registered(jwks: Mapping[str, Any]) -> Jwks:
    """The part of a key set without mistakes that is kept: certificates and unknown members are dropped."""
    return {"keys": [{name: key[name] for name in _PUBLIC if name in key} for key in jwks["keys"]]}


def select(jwks: Mapping[str, Any], kid: str, algorithm: str) -> Key | None:
    """The one usable key of that `kid` for that algorithm; None when there is none, or more than one."""
    keys = jwks.get("keys")
    found = [
        key
        for key in (keys if isinstance(keys, list) else [])
        if isinstance(key, dict) and key.get("kid") == kid and key.get("kty") == KEY_TYPE[algorithm]
    ]
    if len(found) != 1 or _mistake(found[0]):
        return None
    return _load(found[0])


def _mistake(key: object) -> str | None:
    if not isinstance(key, dict):
        return "must be a JSON object (a JWK)"
    if any(name in key for name in _PRIVATE):
        return (
            "holds a private or secret key; register the public key only, and replace this one, since it has been shown"
        )
    if key.get("kty") not in _ALGORITHM:
        return "must be an RSA or EC key (kty)"
    kid = key.get("kid")
    if not isinstance(kid, str) or not 1 <= len(kid) <= 128 or not kid.isprintable():
        return "needs a kid of 1 to 128 printable characters"
    return _unfit(key) or _broken(key)


def _unfit(key: Mapping[str, Any]) -> str | None:
    algorithm = _ALGORITHM[key["kty"]]
    if key.get("alg", algorithm) != algorithm:
        return f"is an {key['kty']} key, so its alg must be {algorithm} or absent"
    operations = key.get("key_ops", ["verify"])
    if key.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return "is not a key for verifying signatures (use, key_ops)"
    if key["kty"] == "EC" and key.get("crv") != "P-384":
        return "must be on the curve P-384 (crv), which ES384 uses"
    return None


def _broken(key: Mapping[str, Any]) -> str | None:
    try:
        loaded = _load(key)
        size = loaded.raw_value.key_size
    except (JoseError, ValueError, TypeError, KeyError):
        return "is not a valid key: its numbers do not decode, or are not on the curve"
    if isinstance(loaded, RSAKey) and not _MIN_RSA_BITS <= size <= _MAX_RSA_BITS:
        return f"is an RSA key of {size} bits; use {_MIN_RSA_BITS} to {_MAX_RSA_BITS}"
    return None


def _load(key: Mapping[str, Any]) -> Key:
    kind: type[RSAKey] | type[ECKey] = RSAKey if key["kty"] == "RSA" else ECKey
    numbers = ("kty", "n", "e", "crv", "x", "y")
    return kind.import_key({name: key[name] for name in numbers if name in key})


class KeySetUnavailable(Exception):
    """The key set could not be had; the text is ours and says what to look at."""


@dataclass(frozen=True)
class _Kept:
    jwks: Jwks | None
    fetched: datetime
    expires: datetime
    problem: str = ""

    def outgrown(self, kid: str, now: datetime) -> bool:
        """It does not name the kid, and is not so new that asking again would be pointless."""
        return self.jwks is not None and not _names(self.jwks, kid) and now >= self.fetched + _REFETCH_AFTER


class KeySets:
    """Key sets at registered addresses (`jwks_uri`), kept for minutes. Safe to share between threads."""

    def __init__(self, session: SafeSession, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    def select(self, url: str, kid: str, algorithm: str) -> Key | None:
        """Like the function of that name; a kid that is not in a kept set asks again, for keys are rotated.

        Raises KeySetUnavailable.
        """
        now = self._clock()
        kept = self._kept.get(url)
        if kept is None or now >= kept.expires or kept.outgrown(kid, now):
            kept = self._fetch(url)
        if kept.jwks is None:
            raise KeySetUnavailable(kept.problem)
        return select(kept.jwks, kid, algorithm)

    def _fetch(self, url: str) -> _Kept:
        now = self._clock()
        try:
            jwks, keep = self._read(url)
            kept = _Kept(jwks, now, now + keep)
        except KeySetUnavailable as problem:
            # A failure is remembered for a moment too: whoever sends bad assertions must not make us knock each time.
            kept = _Kept(None, now, now + timedelta(seconds=5), str(problem))
        with self._lock:
            self._kept[url] = kept
        return kept

    def _read(self, url: str) -> tuple[Jwks, timedelta]:
        try:
            answer = self._session.fetch(
                url,
                headers={"Accept": "application/jwk-set+json, application/json"},
                max_bytes=_MAX_SET_BYTES,
                timeout_total=_FETCH_SECONDS,
            )
            if answer.status != 200:
                raise KeySetUnavailable(f"The jwks_uri answered with status {answer.status} instead of 200.")
            jwks = parse_json(answer.body)
        except FetchFailed as failed:
            raise KeySetUnavailable(f"The jwks_uri could not be read. {failed}") from None
        except HieError:
            raise KeySetUnavailable("The jwks_uri is not allowed or does not answer with JSON.") from None
        if not isinstance(jwks, dict):
            raise KeySetUnavailable("The jwks_uri does not answer with a JWK Set.")
        return jwks, kept_for(answer.headers.get("Cache-Control", ""))


def kept_for(cache_control: str) -> timedelta:
    """How long an answer may be kept (RFC 9111): five minutes at most, one where the answer does not say."""
    directives = [d.strip().lower() for d in cache_control.split(",")]
    if "no-store" in directives or any(d.split("=")[0] == "no-cache" for d in directives):
        return timedelta(0)
    for directive in directives:
        if match := re.fullmatch(r'max-age="?([0-9]{1,9})"?', directive):
            return min(timedelta(seconds=int(match[1])), _LONGEST_KEPT)
    return _KEPT_WITHOUT_WORD


def _names(jwks: Jwks, kid: str) -> bool:
    keys = jwks.get("keys")
    return isinstance(keys, list) and any(isinstance(key, dict) and key.get("kid") == kid for key in keys)
