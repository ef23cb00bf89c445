"""Federated search and read over the clinical types (contract section 3; FHIR R4 3.1.0.3, 3.1.1)."""

from __future__ import annotations

from urllib.parse import urlencode

from flask import Blueprint, Response, request
from itsdangerous import BadSignature, URLSafeTimedSerializer

from hie.core import fhir
from hie.core.caller import Caller
from hie.core.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from hie.core.fhir import CLINICAL_TYPES, Resource
from hie.core.ids import derived_id
from hie.gateway.api.context import caller, request_id
from hie.gateway.api.receipts import give
from hie.gateway.record_search import Page, RecordSearch, parse
from hie.gateway.release import ChartAnswer, ChartEntry
from hie.gateway.services import current

blueprint = Blueprint("records", __name__)

_TYPE = f"<any({','.join(CLINICAL_TYPES)}):resource_type>"
_FORM = "application/x-www-form-urlencoded"
_CURSOR_SECONDS = 900
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
    _check_format(request.args.get("_format"))
    query = f"GET /fhir/{resource_type}/{resource_id[:64]}"
    answer = current().release.read(caller(), resource_type, resource_id, query=query, request_id=request_id())
    give(answer.receipts)
    return _respond(answer.resource)


def _search(resource_type: str, params: list[tuple[str, str]]) -> Response:
    asking = caller()
    asking.require(resource_type, "s")
    for name, value in params:
        if name == "_format":
            _check_format(value)
    asked = parse(resource_type, params, current().settings.fhir_base)
    if asked.ignored and "handling=strict" in request.headers.get("Prefer", ""):
        raise BadRequest(_not_supported(asked), code="not-supported")
    page = Page(0 if asked.count_only else asked.count, _read_cursor(asked, asking))

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
    return _respond(_bundle(asked, page, answer, asking))


def _bundle(asked: RecordSearch, page: Page, answer: ChartAnswer, asking: Caller) -> Resource:
    base = current().settings.fhir_base
    address = f"{base}/{asked.type}?{urlencode(asked.honoured)}"
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset"}
    if answer.complete:
        bundle["total"] = page.total
    bundle["link"] = [{"relation": "self", "url": address}]
    if page.last is not None:
        cursor = _serializer().dumps([_binding(asked, asking), *page.last])
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


def _not_supported(asked: RecordSearch) -> str:
    names = ", ".join(sorted({name[:64] for name in asked.ignored}))
    return f"Search parameters that {asked.type} does not support here had no effect: {names}."


def _read_cursor(asked: RecordSearch, asking: Caller) -> tuple[str, str] | None:
    if asked.cursor is None:
        return None
    try:
        binding, source, last_id = _serializer().loads(asked.cursor, max_age=_CURSOR_SECONDS)
    except (BadSignature, ValueError, TypeError):
        raise BadRequest("This page link is not valid any more; start the search again.") from None
    if binding != _binding(asked, asking):
        raise BadRequest("This page link belongs to another search or caller; start the search again.")
    return str(source), str(last_id)


def _binding(asked: RecordSearch, asking: Caller) -> str:
    """What a page link is good for: this search, by this caller, for these purposes."""
    parts = [asked.type, urlencode(asked.honoured), asking.organization, asking.client_id or "", asking.user_id or ""]
    return derived_id(current().secret, *parts, *sorted(asking.purposes))


def _serializer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(current().secret, salt="records-page")


def _check_format(value: str | None) -> None:
    # A plus sign in an address arrives as a space.
    if value is not None and value.split(";")[0].replace(" ", "+") not in _JSON_FORMATS:
        raise NotAcceptable("Clinical records are given as application/fhir+json.")


def _respond(resource: Resource) -> Response:
    response = Response(fhir.to_bytes(resource), content_type=f"{fhir.FHIR_JSON}; charset=utf-8")
    response.headers["Cache-Control"] = "no-store"
    return response
