"""`GET` and `POST /fhir/Patient/{id}/$everything` (FHIR R4 Patient operation): one person's whole record."""

from __future__ import annotations

from urllib.parse import urlencode

from flask import Blueprint, Response, request

from hie.core import fhir
from hie.core.caller import Caller, Role
from hie.core.errors import BadRequest, Forbidden, UnsupportedMediaType
from hie.core.fhir import Resource
from hie.gateway import everything
from hie.gateway.api import cursors
from hie.gateway.api.context import caller, request_id
from hie.gateway.api.receipts import give
from hie.gateway.api.records import check_format, respond
from hie.gateway.everything import PATIENT, Everything
from hie.gateway.record_search import Page
from hie.gateway.release import ChartAnswer, ChartEntry
from hie.gateway.services import current

blueprint = Blueprint("everything", __name__)

_ROLES = (Role.MEMBER, Role.CLINICIAN, Role.PATIENT)


@blueprint.get("/fhir/Patient/<person_id>/$everything")
def by_get(person_id: str) -> Response:
    """Parameters in the address."""
    return _answer(person_id, list(request.args.items(multi=True)))


@blueprint.post("/fhir/Patient/<person_id>/$everything")
def by_post(person_id: str) -> Response:
    """Parameters in a Parameters resource, or none; those of the address count alike."""
    parameters = list(request.args.items(multi=True))
    if request.get_data():
        if request.mimetype not in (fhir.FHIR_JSON, "application/json"):
            raise UnsupportedMediaType(f"Send the parameters as {fhir.FHIR_JSON}.")
        parameters += everything.from_body(fhir.parse_resource(request.get_data(), "Parameters"))
    return _answer(person_id, parameters)


def _answer(person_id: str, parameters: list[tuple[str, str]]) -> Response:
    asking = caller()
    asking.require_role(*_ROLES)
    check_format(next((value for name, value in parameters if name == "_format"), None))
    asked = everything.parse(parameters)
    types = _types(asking, asked)
    if asked.ignored and "handling=strict" in request.headers.get("Prefer", ""):
        raise BadRequest(_not_supported(asked), code="not-supported")
    question = [f"{person_id}/$everything", urlencode(asked.honoured)]
    page = Page(asked.count, cursors.read(question, asking, asked.cursor))
    with_patient = asked.with_patient and asking.scopes.allows(PATIENT, "r")

    def cut(entries: list[ChartEntry]) -> list[ChartEntry]:
        return entries[page([_place(entry) for entry in entries])]

    answer = current().release.chart(
        asking,
        person_id,
        types,
        query=f"{request.method} Patient/{person_id[:64]}/$everything?{urlencode(asked.honoured)}",
        request_id=request_id(),
        keep=asked.keep,
        page=cut,
        with_patient=with_patient and page.after is None,
    )
    give(answer.receipts)
    link = None
    if page.last is not None:
        link = cursors.write(question, asking, page.last)
    return respond(_bundle(person_id, asked, answer, page, link, with_patient))


def _types(asking: Caller, asked: Everything) -> tuple[str, ...]:
    """The wanted types that the scopes hold; raises Forbidden where the caller named one that they do not."""
    allowed = tuple(kind for kind in asked.types if asking.scopes.allows(kind, "s"))
    if asked.named:
        for kind in asked.types:
            asking.require(kind, "s")
    if not allowed and not (asked.with_patient and asking.scopes.allows(PATIENT, "r")):
        raise Forbidden("The token holds no scope for anything of a patient's record.")
    return allowed


def _place(entry: ChartEntry) -> cursors.Place:
    return entry.member_id, f"{entry.resource['resourceType']}/{entry.resource['id']}"


def _bundle(
    person_id: str, asked: Everything, answer: ChartAnswer, page: Page, cursor: str | None, with_patient: bool
) -> Resource:
    base = current().settings.fhir_base
    address = f"{base}/Patient/{person_id}/$everything"
    own = f"{address}?{urlencode(asked.honoured)}" if asked.honoured else address
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset"}
    if answer.complete:
        bundle["total"] = page.total + with_patient
    bundle["link"] = [{"relation": "self", "url": own}]
    if cursor is not None:
        joined = urlencode([*asked.honoured, ("_cursor", cursor)])
        bundle["link"].append({"relation": "next", "url": f"{address}?{joined}"})
    resources = [entry.resource for entry in answer.entries]
    if with_patient and page.after is None:
        resources.insert(0, answer.person.resource)
    entries = [
        {"fullUrl": f"{base}/{r['resourceType']}/{r['id']}", "resource": r, "search": {"mode": "match"}}
        for r in resources
    ]
    issues = list(answer.issues)
    if asked.ignored:
        issues.append(fhir.issue("warning", "not-supported", _not_supported(asked)))
    if issues:
        entries.append({"resource": fhir.outcome(*issues), "search": {"mode": "outcome"}})
    if entries:
        bundle["entry"] = entries
    return bundle


def _not_supported(asked: Everything) -> str:
    names = ", ".join(sorted({name[:64] for name in asked.ignored}))
    return f"Parameters that $everything does not support here had no effect: {names}."
