"""The live check of a member's server (`hie member check`, the Members page): can the exchange work with it?

Three steps, each with findings in plain words and how to mend them: sign in (oauth2 only), read `/metadata` (FHIR R4
`capabilities`), and ask one search for a patient that does not exist, which shows whether the sign-in is accepted
and whether the server heeds `patient=` at all (some do not, and would hand out other people's records). It never raises
for a broken member, never repeats the member's own text, and ends within ten seconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hie.core.errors import BadRequest
from hie.core.fhir import CLINICAL_TYPES, FHIR_JSON
from hie.gateway import member_pages
from hie.gateway.guard import Fetched, FetchFailed, FetchProblem, Lookup, SafeSession, system_lookup
from hie.gateway.member_auth import (
    AuthIncomplete,
    SigningKey,
    TokenUnusable,
    parse_token,
    static_authorization,
    token_request,
)
from hie.gateway.member_pages import JSON_TYPES, Unusable

if TYPE_CHECKING:
    from hie.gateway.directory import Endpoint, Member

DEADLINE_SECONDS = 10.0
PROBE_PATIENT = "hie-check-no-such-patient"
SLOW_SECONDS = 2.0

_VERSION = re.compile(r"[0-9]{1,2}(\.[0-9]{1,3}){0,2}")
_MAX_METADATA_BYTES = 5_000_000


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `mend` is empty where nothing needs mending."""

    level: str
    """ok | warning | error"""
    subject: str
    text: str
    mend: str = ""


@dataclass(frozen=True)
class CapabilityReport:
    """`ok` when the exchange can ask this member; there may be warnings all the same."""

    ok: bool
    findings: tuple[Finding, ...]


class _Stop(Exception):
    """Going on would show nothing more."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.subject)
        self.finding = finding


def check(
    member: Member,
    *,
    development: bool,
    signing_key: SigningKey | None = None,
    lookup: Lookup = system_lookup,
    deadline: float = DEADLINE_SECONDS,
) -> CapabilityReport:
    """Call the member's server and say what works. `signing_key` is needed for oauth2; `deadline` in seconds."""
    findings: list[Finding] = []
    try:
        if member.endpoint is None:
            raise _Stop(
                _error("endpoint", "The member has no endpoint.", "Register the base address of its FHIR server.")
            )
        visit = _Visit(member.endpoint, SafeSession(development=development, lookup=lookup), signing_key, deadline)
        for finding in visit.findings():
            findings.append(finding)
    except _Stop as stop:
        findings.append(stop.finding)
    return CapabilityReport(all(finding.level != "error" for finding in findings), tuple(findings))


class _Visit:
    """One check in progress."""

    def __init__(
        self, endpoint: Endpoint, session: SafeSession, signing_key: SigningKey | None, deadline: float
    ) -> None:
        self._endpoint = endpoint
        self._session = session
        self._signing_key = signing_key
        self._deadline_at = time.monotonic() + deadline
        self._authorization: str | None = None

    def findings(self) -> Iterator[Finding]:
        yield from self._sign_in()
        statement = self._metadata()
        yield Finding("ok", "connection", "The server answers at /metadata.")
        yield _version(statement)
        yield from _json_offered(statement)
        offered = searchable(statement)
        yield from _types(offered)
        yield from self._search(offered[0] if offered else CLINICAL_TYPES[0])

    def _sign_in(self) -> Iterator[Finding]:
        auth = self._endpoint.auth
        try:
            self._authorization = static_authorization(auth)
            if auth.type != "oauth2":
                return
            url, form = token_request(auth, self._signing_key)
        except AuthIncomplete as incomplete:
            raise _Stop(
                _error("authentication", f"The sign-in settings are incomplete: {incomplete}.", "Complete them.")
            ) from None
        answer = self._fetch(url, "token endpoint", form=form, accept="application/json", max_bytes=65_536)
        if answer.status != 200:
            raise _Stop(
                _error(
                    "authentication",
                    f"The token endpoint refused the exchange (status {answer.status}).",
                    "Register the exchange's public key and this client id at the member's authorization server, and"
                    " check the scope; the exchange signs with ES384.",
                )
            )
        try:
            self._authorization = f"Bearer {parse_token(answer.body).value}"
        except TokenUnusable as unusable:
            raise _Stop(
                _error(
                    "authentication",
                    f"The token endpoint's answer cannot be used: {unusable}.",
                    "The token response must be JSON with access_token and token_type bearer (RFC 6749 section 5.1).",
                )
            ) from None
        yield Finding("ok", "authentication", "The token endpoint gave a token.")

    def _metadata(self) -> dict[str, Any]:
        answer = self._fetch(f"{self._endpoint.url}/metadata", "server", max_bytes=_MAX_METADATA_BYTES)
        _require_answer(answer, "/metadata")
        _require_json(answer, "/metadata")
        try:
            statement = member_pages.parse(answer.body)
        except Unusable:
            raise _Stop(
                _error("metadata", "What /metadata answers is not usable JSON.", "Look at what stands at that address.")
            ) from None
        if not isinstance(statement, dict) or statement.get("resourceType") != "CapabilityStatement":
            raise _Stop(
                _error(
                    "metadata",
                    "What /metadata answers is not a CapabilityStatement.",
                    "The address must be the base of a FHIR R4 server, for example https://host/fhir/r4.",
                )
            )
        return statement

    def _search(self, resource_type: str) -> Iterator[Finding]:
        """Ask as a real query would, for nobody."""
        started = time.monotonic()
        url = f"{self._endpoint.url}/{resource_type}?patient=Patient/{PROBE_PATIENT}"
        answer = self._fetch(url, "server", max_bytes=_MAX_METADATA_BYTES)
        took = time.monotonic() - started
        if answer.status in (400, 404, 422):
            yield Finding(
                "ok", "search", f"A search of {resource_type} is heard; a patient it does not know is refused."
            )
            return
        _require_answer(answer, "a search")
        _require_json(answer, "a search")
        try:
            page = member_pages.page_of(member_pages.parse(answer.body))
        except Unusable:
            yield _error(
                "search",
                "A search does not answer with a searchset Bundle.",
                "Check the server's FHIR search interface.",
            )
            return
        if page.matches:
            yield _error(
                "search",
                f"A search of {resource_type} for a patient who does not exist gave records: the server does not heed"
                " the patient parameter.",
                "Until it does, the exchange discards everything of other patients and reports this source as invalid.",
            )
            return
        yield Finding("ok", "search", f"A search of {resource_type} by patient works.")
        if took > SLOW_SECONDS:
            yield Finding(
                "warning",
                "speed",
                f"The search took {took:.1f} seconds.",
                "Answers that miss the exchange's deadline are reported as missing; aim for under a second.",
            )

    def _fetch(
        self,
        url: str,
        what: str,
        *,
        form: dict[str, str] | None = None,
        accept: str = FHIR_JSON,
        max_bytes: int,
    ) -> Fetched:
        headers = {"Accept": accept}
        if self._authorization is not None and form is None:
            headers["Authorization"] = self._authorization
        try:
            return self._session.fetch(
                url,
                method="POST" if form else "GET",
                headers=headers,
                form=form,
                max_bytes=max_bytes,
                timeout_total=max(0.01, self._deadline_at - time.monotonic()),
            )
        except BadRequest as refused:
            raise _Stop(_error("address", f"The {what} is not asked. {refused}", "Register another address.")) from None
        except FetchFailed as failed:
            subject, mend = _MENDS[failed.problem]
            raise _Stop(_error(subject, f"The {what} could not be read. {failed}", mend)) from None


_MENDS = {
    FetchProblem.REFUSED: (
        "address",
        "In production the exchange connects to public addresses only; publish the server under one.",
    ),
    FetchProblem.DNS: ("DNS", "Check the host name for a typing mistake, and that it is in the public DNS."),
    FetchProblem.TLS: (
        "TLS",
        "Install a current certificate for this host name from an authority that is generally trusted, with its"
        " intermediate certificates.",
    ),
    FetchProblem.CONNECT: (
        "connection",
        "Check that the server runs, that the port is right, and that its firewall lets the exchange in.",
    ),
    FetchProblem.TIMEOUT: (
        "connection",
        "Check that the firewall lets the exchange in (one that drops packets looks like this) and that the server is"
        " not overloaded.",
    ),
    FetchProblem.TOO_LARGE: ("metadata", "Check that the address is the base of a FHIR server."),
    FetchProblem.PROTOCOL: ("connection", "Check that an HTTP server listens at this port (https needs TLS there)."),
}
"""Subject, and how to mend it."""


def searchable(statement: dict[str, Any]) -> list[str]:
    """The clinical types that the statement says can be searched by patient."""
    found = set()
    for resource in _server_resources(statement):
        params, interactions = resource.get("searchParam"), resource.get("interaction")
        by_patient = any(p.get("name") == "patient" for p in _objects(params))
        searches = any(i.get("code") == "search-type" for i in _objects(interactions))
        if by_patient and searches and isinstance(resource.get("type"), str):
            found.add(resource["type"])
    return [kind for kind in CLINICAL_TYPES if kind in found]


def _server_resources(statement: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for rest in _objects(statement.get("rest")):
        if rest.get("mode", "server") == "server":
            yield from _objects(rest.get("resource"))


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _version(statement: dict[str, Any]) -> Finding:
    version = statement.get("fhirVersion")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        return Finding("warning", "FHIR version", "The server does not say its FHIR version.", "It must be 4.0.1 (R4).")
    if version == "4.0" or version.startswith("4.0."):
        return Finding("ok", "FHIR version", f"FHIR {version} (R4).")
    mend = "Register the base address of its R4 (4.0.1) interface; many servers have one address per version."
    return _error("FHIR version", f"The server speaks FHIR {version}, not R4.", mend)


def _json_offered(statement: dict[str, Any]) -> Iterator[Finding]:
    formats = statement.get("format")
    if isinstance(formats, list) and formats and not any(isinstance(f, str) and "json" in f for f in formats):
        yield _error("format", "The server does not offer JSON.", "Turn on application/fhir+json.")


def _types(offered: list[str]) -> Iterator[Finding]:
    missing = [kind for kind in CLINICAL_TYPES if kind not in offered]
    if not offered:
        yield _error(
            "record types",
            "The server names no record type that can be searched by patient.",
            "Turn on search with the patient parameter, at least for AllergyIntolerance.",
        )
        return
    yield Finding("ok", "record types", f"Can be searched by patient: {', '.join(offered)}.")
    if missing:
        yield Finding(
            "warning",
            "record types",
            f"Not offered: {', '.join(missing)}.",
            "Nothing to do if the organization keeps no such records; otherwise turn their search on.",
        )


def _require_answer(answer: Fetched, what: str) -> None:
    """200, or stop with what the status means."""
    status = answer.status
    if status == 200:
        return
    if status in (401, 403):
        mend = "Check the user, password, token or client that the exchange was given, and what it may read there."
        raise _Stop(_error("authentication", f"The server refuses the exchange at {what} (status {status}).", mend))
    if 300 <= status < 400:
        mend = "Register the address that it redirects to; the exchange follows no redirects."
        raise _Stop(_error("address", f"The server redirects {what} to another address (status {status}).", mend))
    if status == 404:
        mend = "Check the path: it must be the base of the FHIR server, without /metadata at its end."
        raise _Stop(_error("address", f"There is nothing at {what} (status 404).", mend))
    mend = "Look into the server's own log." if status >= 500 else "Check the server's settings for the exchange."
    raise _Stop(_error("connection", f"The server answers {what} with status {status}.", mend))


def _require_json(answer: Fetched, what: str) -> None:
    if answer.content_type not in JSON_TYPES:
        mend = "The server must answer application/fhir+json; a sign-in page or a web site may stand at this address."
        raise _Stop(_error("format", f"What {what} answers is not marked as FHIR JSON.", mend))


def _error(subject: str, text: str, mend: str) -> Finding:
    return Finding("error", subject, text, mend)
