"""What a client asserts of itself, checked: the signed assertion of SMART Backend Services (RFC 7523, SMART App Launch
2 "client-confidential-asymmetric") and the UDAP `hl7-b2b` extension (Security for Scalable Registration, "b2b").

Pure rules; keys, replay and the directory are `authority`'s. `consent_reference` is never fetched. Everything refused
is an OAuthError whose sentence tells the client's engineer what to change, and repeats none of the client's own text.

Break-glass (`BTG`) needs a reason and a person in a clinical role. `subject_role` is checked by its form, since an
exchange has no terminology server: `<system>#<code>` with a NUCC taxonomy code of a grouping for individuals who treat
(physicians 20, nursing 16 and 36, dental 12, emergency medical service 14, pharmacy 18, students 39, ...; not agencies,
facilities, suppliers), or a SNOMED CT concept whose check digit holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

from joserfc import jws
from joserfc.errors import JoseError

from hie.core.errors import HieError, OAuthError
from hie.core.fhir import parse_json
from hie.core.purposes import parse_purpose
from hie.gateway.keysets import KEY_TYPE

MAX_ASSERTION_CHARS = 16_384
LEEWAY_SECONDS = 5
"""For clocks that differ: in judging what is past or future, never in how long an assertion may live."""
MAX_LIFE_SECONDS = 300

_NUCC = ("urn:oid:2.16.840.1.113883.6.101", "http://nucc.org/provider-taxonomy")
_NUCC_CODE = re.compile(r"(?:1[0-68]|2[0-3]|36|39)[0-9A-Z]{7}X")
_SNOMED = ("urn:oid:2.16.840.1.113883.6.96", "http://snomed.info/sct")
_SNOMED_CODE = re.compile(r"[1-9][0-9]{5,17}")
_MIN_REASON, _MAX_REASON = 10, 300
_SUBJECT_LIMITS = {"subject_name": 100, "subject_id": 255, "subject_role": 255}


@dataclass(frozen=True)
class Assertion:
    """An assertion as it came: nothing in it is to be believed before its signature is verified."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]

    @property
    def issuer(self) -> str | None:
        """The client id that is claimed."""
        issuer = self.claims.get("iss")
        return issuer if isinstance(issuer, str) and 1 <= len(issuer) <= 64 and issuer.isprintable() else None


@dataclass(frozen=True)
class Context:
    """Who is behind the request and what for, as the client's member answers for it."""

    purposes: frozenset[str]
    subject_name: str | None
    subject_id: str | None
    subject_role: str | None
    break_glass_reason: str | None


def read(text: str) -> Assertion:
    """The assertion's two halves, unverified."""
    if len(text) > MAX_ASSERTION_CHARS:
        raise client_error("The client_assertion is too long.")
    try:
        parts = jws.extract_compact(text.encode("ascii"))
        claims = parse_json(parts.payload or b"")
    except (JoseError, ValueError, TypeError, AttributeError, RecursionError, HieError):
        raise client_error("The client_assertion is not a signed JWT (three base64url parts of JSON).") from None
    if not isinstance(claims, dict):
        raise client_error("The client_assertion's claims are not a JSON object.")
    return Assertion(parts.headers(), claims)


def check_header(header: Mapping[str, Any], jwks_uri: str | None) -> tuple[str, str]:
    """(algorithm, kid) of the key to verify with."""
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in KEY_TYPE:
        raise client_error(f"The assertion must be signed with {' or '.join(KEY_TYPE)} (header alg).")
    if not isinstance(kid, str) or not kid:
        raise client_error("The assertion's header must name its key (kid).")
    if "crit" in header:
        raise client_error("The assertion's header asks for an extension (crit) that is not known here.")
    if "jku" in header and header["jku"] != jwks_uri:
        raise client_error("The assertion's header names a key set (jku) that is not the registered jwks_uri.")
    return algorithm, kid


def check_claims(claims: Mapping[str, Any], client_id: str, token_url: str, now: datetime) -> tuple[str, datetime]:
    """(jti, expiry) of an assertion that is of this client, for this endpoint, and current."""
    if claims.get("iss") != client_id or claims.get("sub") != client_id:
        raise client_error("iss and sub of the assertion must both be the client id.")
    if claims.get("aud") not in (token_url, [token_url]):
        raise client_error(f"aud of the assertion must be {token_url} and nothing else.")
    expires = _check_times(claims, now.timestamp())
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 1 <= len(jti) <= 255 or not jti.isprintable():
        raise client_error("The assertion needs a jti of 1 to 255 printable characters.")
    return jti, datetime.fromtimestamp(expires, UTC)


def check_context(claims: Mapping[str, Any], organization_id: str, held: frozenset[str]) -> Context:
    """The `hl7-b2b` context, which must be of this organization and within the purposes held."""
    extensions = claims.get("extensions")
    b2b = extensions.get("hl7-b2b") if isinstance(extensions, dict) else None
    if not isinstance(extensions, dict) or not isinstance(b2b, dict) or b2b.get("version") != "1":
        raise grant_error('The assertion needs extensions.hl7-b2b with "version": "1".')
    if b2b.get("organization_id") != organization_id:
        raise grant_error(f"hl7-b2b.organization_id must be the client's own organization, {organization_id}.")
    purposes = _purposes(b2b.get("purpose_of_use"), held)
    subject = {name: _subject(b2b, name) for name in _SUBJECT_LIMITS}
    reason = _break_glass(extensions, purposes, subject) if "BTG" in purposes else None
    return Context(purposes, break_glass_reason=reason, **subject)


def client_error(message: str) -> OAuthError:
    """The client did not prove who it is (RFC 6749 section 5.2)."""
    return OAuthError("invalid_client", message, status=401)


def grant_error(message: str) -> OAuthError:
    """The client is who it says, and what it claims with that does not hold."""
    return OAuthError("invalid_grant", message)


def is_clinical(role: str) -> bool:
    """Whether a `subject_role` has the form of a clinical occupation (see the module's docstring)."""
    system, _, code = role.partition("#")
    if system in _NUCC:
        return _NUCC_CODE.fullmatch(code) is not None
    return system in _SNOMED and _SNOMED_CODE.fullmatch(code) is not None and _verhoeff(code)


def _check_times(claims: Mapping[str, Any], now: float) -> float:
    expires, issued = claims.get("exp"), claims.get("iat")
    if not _is_number(expires):
        raise client_error("The assertion needs an expiry (exp) in seconds since 1970.")
    if expires + LEEWAY_SECONDS <= now:
        raise client_error("The assertion has expired (exp).")
    if expires - now > MAX_LIFE_SECONDS or (_is_number(issued) and expires - issued > MAX_LIFE_SECONDS):
        raise client_error("The assertion lives too long: exp may be at most 5 minutes ahead, and after iat.")
    for name in ("iat", "nbf"):
        moment = claims.get(name)
        if moment is not None and not (_is_number(moment) and moment <= now + LEEWAY_SECONDS):
            raise client_error(f"{name} of the assertion is in the future, or is not a time.")
    return float(expires)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _purposes(given: Any, held: frozenset[str]) -> frozenset[str]:
    if not isinstance(given, list) or not 1 <= len(given) <= 10 or not all(isinstance(uri, str) for uri in given):
        raise grant_error("hl7-b2b.purpose_of_use must be a list of at least one purpose URI.")
    codes = [parse_purpose(uri) for uri in given]
    known = frozenset(code for code in codes if code is not None)
    if None in codes:
        raise grant_error("hl7-b2b.purpose_of_use holds a purpose that is not known here.")
    if "BTG" in known:
        if not known <= {"BTG", "TREAT", "ETREAT"}:
            raise grant_error("Break-glass (BTG) is for treatment only; ask for another purpose with another token.")
        known |= {"TREAT"}
    if not known <= held:
        raise grant_error("This client does not hold a purpose of use that it asks for.")
    return known


def _subject(b2b: Mapping[str, Any], name: str) -> str | None:
    value = b2b.get(name)
    if value is None or value == "":
        return None
    uri = name != "subject_name"
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or len(value) > _SUBJECT_LIMITS[name]
        or (uri and not value.isascii())
    ):
        raise grant_error(f"hl7-b2b.{name} must be text of at most {_SUBJECT_LIMITS[name]} printable characters.")
    return value.strip() or None


def _break_glass(extensions: Mapping[str, Any], purposes: frozenset[str], subject: Mapping[str, str | None]) -> str:
    declared = extensions.get("hie-break-glass")
    if not isinstance(declared, dict) or declared.get("version") != "1":
        raise grant_error('Break-glass (BTG) needs extensions.hie-break-glass with "version": "1" and a reason.')
    reason = declared.get("reason")
    reason = " ".join(reason.split()) if isinstance(reason, str) else ""
    if not _MIN_REASON <= len(reason) <= _MAX_REASON or not reason.isprintable():
        raise grant_error(f"hie-break-glass.reason must say why, in {_MIN_REASON} to {_MAX_REASON} characters.")
    if not all(subject.values()):
        raise grant_error("Break-glass (BTG) needs subject_name, subject_id and subject_role in hl7-b2b.")
    if not is_clinical(subject["subject_role"] or ""):
        raise grant_error("Break-glass (BTG) needs a clinical subject_role: a NUCC or SNOMED CT occupation URI.")
    return reason


_VERHOEFF_D = [[(i + j) % 5 if j < 5 else (i + j) % 5 + 5 for j in range(10)] for i in range(5)] + [
    [(i - j) % 5 + 5 if j < 5 else (i - j) % 5 for j in range(10)] for i in range(5, 10)
]
_VERHOEFF_P = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]


def _verhoeff(digits: str) -> bool:
    """The check digit of a SNOMED CT identifier (Release File Specification 5.5)."""
    check = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(position % 8):
            value = _VERHOEFF_P[value]
        check = _VERHOEFF_D[check][value]
    return check == 0
