"""The disclosure log for the privacy officer, and for patients their own: `/fhir/AuditEvent` (IHE ITI-81).

A patient, whom a patients' app names in its token, finds who looked at her records or tried to, as on her page. Reading
the log is itself an entry, durable before the answer, and so is being refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from flask import Blueprint, Response, request

from hie.audit.accounting import Subject
from hie.audit.carried import carrying
from hie.audit.entry import Entry, canonical
from hie.audit.event import Event, Kind, Outcome
from hie.audit.iti81 import CURSOR, Asked, page_token, parse
from hie.audit.query import AuditPage, AuditQuery
from hie.core import fhir
from hie.core.caller import Caller, Role
from hie.core.errors import Forbidden, NotAcceptable, NotFound
from hie.core.fhir import Resource
from hie.gateway.api.context import caller, request_id
from hie.gateway.api.receipts import give
from hie.gateway.services import current
from hie.gateway.subjects import subject
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
    reader = _reader("r")
    _require_json()
    found = current().audit.search(reader.may_see(AuditQuery(ids=((entry_id,),)))).entries if entry_id.isalnum() else ()
    if not found:
        _record(reader.caller, Outcome.MINOR, "R", reader.about(None), "no such entry")
        raise NotFound("There is no such AuditEvent.")
    (entry,) = found
    _record(reader.caller, Outcome.SUCCESS, "R", entry.person_id, "1 entry shown", (f"AuditEvent/{entry.entry_id}",))
    return _answer(canonical(*_carrying([entry])))


def _search(parameters: list[tuple[str, str]]) -> Response:
    reader = _reader("s")
    _require_json()
    asked = parse(parameters, current().settings.fhir_base, _same_person, _person_of)
    page: AuditPage = current().audit.search(reader.may_see(asked.query))
    described = f"{len(page.entries)} of {page.total} entries shown"
    _record(reader.caller, Outcome.SUCCESS, "E", reader.about(asked.person_id), described)
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


@dataclass(frozen=True)
class _Reader:
    """Who reads the log; a patient reads of herself alone."""

    caller: Caller
    own: Subject | None

    def may_see(self, query: AuditQuery) -> AuditQuery:
        """A search as far as this reader may see what it finds."""
        return current().accounting.looks_at(self.own, query) if self.own else query

    def about(self, person_id: str | None) -> str | None:
        """Of whom the log says that this was read."""
        return self.own.person_id if self.own else person_id


def _reader(action: str) -> _Reader:
    """The caller, with the scope; a refusal is recorded first."""
    asking = caller()
    try:
        asking.require_role(Role.PRIVACY_OFFICER, Role.PATIENT)
        asking.require("AuditEvent", action)
        return _Reader(asking, _own(asking) if asking.role is Role.PATIENT else None)
    except Forbidden as refusal:
        _record(asking, Outcome.MINOR, "E", None, refusal.message, kind=Kind.DENIAL)
        refusal.audited = True
        raise


def _own(asking: Caller) -> Subject:
    person_id = current().own_person(asking.user_id) if asking.user_id else None
    if person_id is None:
        raise Forbidden("The token names no patient whose account is bound to a person (hl7-b2b.subject_id, mailto:).")
    return subject(current().identity, person_id)


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
