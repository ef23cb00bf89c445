"""Federated search and read over the clinical types (contract section 3; FHIR R4 3.1.0.3, 3.1.1)."""

from __future__ import annotations

from urllib.parse import urlencode

from flask import Blueprint, Response, request

from hie.core import fhir
from hie.core.caller import Caller
from hie.core.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from hie.core.fhir import CLINICAL_TYPES, Resource
from hie.gateway.api import cursors
from hie.gateway.api.context import caller, request_id
from hie.gateway.api.formats import answer
from hie.gateway.api.receipts import give
from hie.gateway.record_search import Page, RecordSearch, parse
from hie.gateway.release import ChartAnswer, ChartEntry
from hie.gateway.services import current

blueprint = Blueprint("records", __name__)

_TYPE = f"<any({','.join(CLINICAL_TYPES)}):resource_type>"
_FORM = "application/x-www-form-urlencoded"
_JSON_FORMATS = ("json", "application/json", fhir.FHIR_JSON, "application/json+fhir")


@blueprint.get(f"/fhir/{_TYPE}")
def search(resource_type: str) -> Response:
    """`GET /fhir/{Type}?patient=`."""
    return _search(resource_type, list(request.args.items(multi=True)))


@blueprint.post(f"/fhir/{_TYPE}/_search")
def search_by_form(resource_type: str) -> Response:
    """`POST /fhir/{Type}/_search`; parameters of the address and the form count alike."""
    if request.mimetype != _FORM:
        raise UnsupportedMediaType(f"A search by POST is a form: {_FORM}.")
    return _search(resource_type, [*request.args.items(multi=True), *request.form.items(multi=True)])


@blueprint.get(f"/fhir/{_TYPE}/<resource_id>")
def read(resource_type: str, resource_id: str) -> Response:
    """`GET /fhir/{Type}/{id}` by gateway id."""
    check_format(request.args.get("_format"))
    query = f"GET /fhir/{resource_type}/{resource_id[:64]}"
    answer = current().release.read(caller(), resource_type, resource_id, query=query, request_id=request_id())
    give(answer.receipts)
    return respond(answer.resource)


def _search(resource_type: str, params: list[tuple[str, str]]) -> Response:
    asking = caller()
    asking.require(resource_type, "s")
    for name, value in params:
        if name == "_format":
            check_format(value)
    asked = parse(resource_type, params, current().settings.fhir_base)
    if asked.ignored and "handling=strict" in request.headers.get("Prefer", ""):
        raise BadRequest(_not_supported(asked), code="not-supported")
    page = Page(0 if asked.count_only else asked.count, cursors.read(_question(asked), asking, asked.cursor))

    def cut(entries: list[ChartEntry]) -> list[ChartEntry]:
        return entries[page([(entry.member_id, entry.resource["id"]) for entry in entries])]

    answer = current().release.chart(
        asking,
        asked.who,
        [resource_type],
        query=f"{request.method} {request.path}?{urlencode(asked.honoured)}",
        request_id=request_id(),
        keep=asked.keep,
        page=cut,
    )
    give(answer.receipts)
    return respond(_bundle(asked, page, answer, asking))


def _bundle(asked: RecordSearch, page: Page, answer: ChartAnswer, asking: Caller) -> Resource:
    base = current().settings.fhir_base
    address = f"{base}/{asked.type}?{urlencode(asked.honoured)}"
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset"}
    if answer.complete:
        bundle["total"] = page.total
    bundle["link"] = [{"relation": "self", "url": address}]
    if page.last is not None:
        cursor = cursors.write(_question(asked), asking, page.last)
        bundle["link"].append({"relation": "next", "url": f"{address}&{urlencode({'_cursor': cursor})}"})
    entries = [
        {
            "fullUrl": f"{base}/{entry.resource['resourceType']}/{entry.resource['id']}",
            "resource": entry.resource,
            "search": {"mode": "match"},
        }
        for entry in answer.entries
    ]
    issues = list(answer.issues)
    if asked.ignored:
        issues.append(fhir.issue("warning", "not-supported", _not_supported(asked)))
    if issues:
        entries.append({"resource": fhir.outcome(*issues), "search": {"mode": "outcome"}})
    if entries:
        bundle["entry"] = entries
    return bundle


def _question(asked: RecordSearch) -> list[str]:
    return [asked.type, urlencode(asked.honoured)]


def _not_supported(asked: RecordSearch) -> str:
    names = ", ".join(sorted({name[:64] for name in asked.ignored}))
    return f"Search parameters that {asked.type} does not support here had no effect: {names}."


def check_format(value: str | None) -> None:
    """Raises NotAcceptable where `_format` asks for anything but JSON."""
    # A plus sign in an address arrives as a space.
    if value is not None and value.split(";")[0].replace(" ", "+") not in _JSON_FORMATS:
        raise NotAcceptable("Clinical records are given as application/fhir+json.")


def respond(resource: Resource) -> Response:
    """The resource as FHIR JSON that nobody keeps."""
    return answer(resource, headers={"Cache-Control": "no-store"})
