"""The disclosure log for the privacy officer: `/fhir/AuditEvent` search and read (IHE ITI-81).

Reading the log is itself an entry, durable before the answer, and so is being refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

from flask import Blueprint, Response, request

from hie.audit.carried import carrying
from hie.audit.entry import Entry, canonical
from hie.audit.event import Event, Kind, Outcome
from hie.audit.iti81 import CURSOR, Asked, page_token, parse
from hie.audit.query import AuditPage
from hie.core import fhir
from hie.core.caller import Caller, Role
from hie.core.errors import Forbidden, NotAcceptable, NotFound
from hie.core.fhir import Resource
from hie.gateway.api.context import caller, request_id
from hie.gateway.api.receipts import give
from hie.gateway.services import current
from hie.mpi.identity import Identifier

blueprint = Blueprint("audit", __name__)

_JSON = ("application/fhir+json", "application/json", "text/json")


@blueprint.get("/fhir/AuditEvent")
def search() -> Response:
    """A page of entries, newest first."""
    return _search(list(request.args.items(multi=True)))


@blueprint.post("/fhir/AuditEvent/_search")
def search_by_form() -> Response:
    """The same with the parameters in a form, or in form and address together."""
    return _search([*request.args.items(multi=True), *request.form.items(multi=True)])


@blueprint.get("/fhir/AuditEvent/<entry_id>")
def read(entry_id: str) -> Response:
    """One entry with its proof (`hie.audit.carried`); of an archived one what is left.

    Without the extension it is, byte for byte, what the log has committed to.
    """
    asking = _officer("r")
    _require_json()
    entry = current().audit.find(entry_id) if entry_id.isalnum() else None
    if entry is None:
        _record(asking, Outcome.MINOR, "R", None, "no such entry")
        raise NotFound("There is no such AuditEvent.")
    _record(asking, Outcome.SUCCESS, "R", entry.person_id, "1 entry shown", (f"AuditEvent/{entry.entry_id}",))
    return _answer(canonical(*_carrying([entry])))


def _search(parameters: list[tuple[str, str]]) -> Response:
    asking = _officer("s")
    _require_json()
    asked = parse(parameters, current().settings.fhir_base, _same_person, _person_of)
    page: AuditPage = current().audit.search(asked.query)
    described = f"{len(page.entries)} of {page.total} entries shown"
    _record(asking, Outcome.SUCCESS, "E", asked.person_id, described)
    return _answer(fhir.to_bytes(_bundle(asked, page)))


def _carrying(entries: Sequence[Entry]) -> list[Resource]:
    """The AuditEvents of entries, each with its place in the log and the proof of that."""
    base = current().settings.fhir_base
    proofs = current().audit.evidence.proofs(entries)
    return [carrying(entry, proof, base) for entry, proof in zip(entries, proofs, strict=True)]


def _answer(body: bytes) -> Response:
    response = Response(body, content_type=fhir.FHIR_JSON)
    response.headers["Cache-Control"] = "no-store"
    return response


def _officer(action: str) -> Caller:
    """The caller, if this is a privacy officer with the scope; a refusal is recorded first."""
    asking = caller()
    try:
        asking.require_role(Role.PRIVACY_OFFICER)
        asking.require("AuditEvent", action)
    except Forbidden as refusal:
        _record(asking, Outcome.MINOR, "E", None, refusal.message, kind=Kind.DENIAL)
        refusal.audited = True
        raise
    return asking


def _record(
    asking: Caller,
    outcome: Outcome,
    action: str,
    person_id: str | None,
    description: str,
    entities: tuple[str, ...] = (),
    kind: Kind = Kind.LOG_READ,
) -> None:
    event = Event(
        kind=kind,
        outcome=outcome,
        action=action,
        caller=asking,
        person_id=person_id,
        query=_request_line(),
        request_id=request_id(),
        description=description,
        entities=entities,
    )
    give(current().audit.record(event))


def _request_line() -> str:
    """The request as BALP keeps it: method, address and, for a form, its parameters."""
    line = f"{request.method} {request.full_path.removesuffix('?')}"
    form = urlencode(list(request.form.items(multi=True)))
    return f"{line}\n\n{form}" if form else line


def _bundle(asked: Asked, page: AuditPage) -> Resource:
    base = f"{current().settings.fhir_base}/AuditEvent"
    links = [{"relation": "self", "url": _address(base, asked.honoured)}]
    if page.next:
        links.append({"relation": "next", "url": _address(base, (*asked.honoured, (CURSOR, page_token(page.next))))})
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset", "total": page.total, "link": links}
    if page.entries:
        bundle["entry"] = [
            {"fullUrl": f"{base}/{resource['id']}", "resource": resource, "search": {"mode": "match"}}
            for resource in _carrying(page.entries)
        ]
    return bundle


def _address(base: str, parameters: tuple[tuple[str, str], ...]) -> str:
    return f"{base}?{urlencode(parameters)}" if parameters else base


def _same_person(person_id: str) -> tuple[str, ...]:
    """Every id of the person, the one asked with included: entries keep the id that held when they were made."""
    identity = current().identity
    person = identity.person(person_id)
    known = identity.person_ids(person.id) if person else ()
    return (person_id, *known)


def _person_of(system: str, value: str) -> str | None:
    record = current().identity.source_record(Identifier(system, value))
    return record.person_id if record else None


def _require_json() -> None:
    """AuditEvents are given as JSON only (contract section 3)."""
    asked = request.args.get("_format") or request.form.get("_format")
    accepted = request.accept_mimetypes
    if asked:
        fits = asked.split(";")[0].strip().replace(" ", "+") in ("json", *_JSON)  # an unescaped + arrives as a space
    else:
        fits = not accepted or accepted.best_match(_JSON) is not None
    if not fits:
        raise NotAcceptable("AuditEvents are given as JSON only.")
