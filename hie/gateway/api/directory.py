"""The member directory as mCSD shows it (IHE mCSD ITI-90): Organization and Endpoint, for any verified caller.

A member's own system may change the address of its own Endpoint, and nothing else: members come and go by `hie apply`.
Credentials of endpoints are never shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from urllib.parse import urlencode, urlsplit

import sqlalchemy as sa
from flask import Blueprint, Response, request

from hie.core import fhir
from hie.core.caller import EXCHANGE, Caller, Role
from hie.core.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NotAcceptable,
    NotFound,
    Unprocessable,
    UnsupportedMediaType,
)
from hie.core.fhir import Resource
from hie.core.purposes import ACT_REASON_URL, DISPLAY
from hie.gateway.api.context import caller, request_id
from hie.gateway.api.formats import answer
from hie.gateway.directory import EXCHANGE_NAME, Change, Endpoint, Member, change_event
from hie.gateway.services import current

blueprint = Blueprint("directory", __name__)

_MCSD = "https://profiles.ihe.net/ITI/mCSD"
_URI = "urn:ietf:rfc:3986"
_PURPOSE = f"{_MCSD}/StructureDefinition/IHE.mCSD.PurposeOfUse"
_IDENTIFIER_TYPE = f"{_MCSD}/CodeSystem/MCSDOrganizationIdentifierTypes"
_ORGANIZATION_TYPE = "http://terminology.hl7.org/CodeSystem/organization-type"
_TYPES = {
    "provider": ("prov", "Healthcare provider"),
    "lab": ("prov", "Laboratory"),
    "pharmacy": ("prov", "Pharmacy"),
    "payer": ("ins", "Payer"),
    "public-health": ("govt", "Public health agency"),
    "exchange": ("other", "Health information exchange"),
}
_CONNECTION = {
    "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
    "code": "hl7-fhir-rest",
}
_PAYLOAD = {"system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type", "code": "any"}
_FORM = "application/x-www-form-urlencoded"
_JSON = (fhir.FHIR_JSON, "application/json")
_FORMATS = ("json", "application/json+fhir", *_JSON)
_INCLUDE = "Organization:endpoint"
_MAX_COUNT = 500

Params = list[tuple[str, str]]
Matches = Callable[[Resource, str], bool]


# -- routes


@blueprint.get("/fhir/Organization")
def search_organizations() -> Response:
    """ITI-90 for Organization."""
    return _search("Organization", list(request.args.items(multi=True)))


@blueprint.get("/fhir/Endpoint")
def search_endpoints() -> Response:
    """ITI-90 for Endpoint."""
    return _search("Endpoint", list(request.args.items(multi=True)))


@blueprint.post("/fhir/<any(Organization,Endpoint):resource_type>/_search")
def search_by_form(resource_type: str) -> Response:
    """ITI-90 by POST; parameters of the address and the form count alike."""
    if request.content_length and request.mimetype != _FORM:
        raise UnsupportedMediaType(f"A search by POST is a form: {_FORM}.")
    return _search(resource_type, [*request.args.items(multi=True), *request.form.items(multi=True)])


@blueprint.get("/fhir/<any(Organization,Endpoint):resource_type>/<resource_id>")
def read(resource_type: str, resource_id: str) -> Response:
    """One Organization or Endpoint; both bear the member's id."""
    caller()
    _check_format(request.args.get("_format"))
    for resource in _all(resource_type):
        if resource["id"] == resource_id:
            return _respond(resource)
    raise NotFound(f"There is no such {resource_type}.")


@blueprint.put("/fhir/Endpoint/<endpoint_id>")
def update_endpoint(endpoint_id: str) -> Response:
    """A member's own system changes where the member's server is."""
    asking = caller()
    asking.require("Endpoint", "u")
    member = current().directory.member(endpoint_id)
    if asking.role not in (Role.MEMBER, Role.PAYER) or asking.organization != endpoint_id or member is None:
        raise Forbidden("Only the member's own system may change its Endpoint.")
    if request.mimetype not in _JSON:
        raise UnsupportedMediaType("The body must be application/fhir+json.")
    address = _address(fhir.parse_resource(request.get_data(), "Endpoint"), endpoint_id)
    return _respond(endpoint_resource(_move(member, address, asking)))


# -- resources


def organization_resource(member: Member) -> Resource:
    """The member as IHE.mCSD.Organization."""
    resource = _organization(member.id, member.name, member.kind)
    resource["extension"] = [_purpose(code) for code in sorted(member.purposes)]
    resource["identifier"].append(
        {
            "type": {"text": "Assigning authority of the organization's patient ids"},
            "system": _URI,
            "value": member.patient_id_system,
        }
    )
    if member.address:
        resource["address"] = [{"use": "work", "text": member.address}]
    if member.endpoint:
        resource["endpoint"] = [{"reference": f"Endpoint/{member.id}"}]
    return resource


def endpoint_resource(member: Member) -> Resource:
    """The member's server as IHE.mCSD.Endpoint; the member must have one."""
    if member.endpoint is None:
        raise ValueError(f"member {member.id} has no endpoint")
    return {
        "resourceType": "Endpoint",
        "id": member.id,
        "meta": {"profile": [f"{_MCSD}/StructureDefinition/IHE.mCSD.Endpoint"]},
        "extension": [_purpose(code) for code in sorted(member.purposes)],
        "identifier": [{"system": _URI, "value": f"{current().settings.fhir_base}/Endpoint/{member.id}"}],
        "status": "active",
        "connectionType": dict(_CONNECTION),
        "name": f"{member.name}, FHIR R4",
        "managingOrganization": {"reference": f"Organization/{member.id}", "display": member.name},
        "payloadType": [{"coding": [dict(_PAYLOAD)], "text": "FHIR R4 resources"}],
        "payloadMimeType": [fhir.FHIR_JSON],
        "address": member.endpoint.url,
    }


def _organization(id: str, name: str, kind: str) -> Resource:
    code, display = _TYPES[kind]
    return {
        "resourceType": "Organization",
        "id": id,
        "meta": {"profile": [f"{_MCSD}/StructureDefinition/IHE.mCSD.Organization"]},
        "identifier": [
            {
                "type": {"coding": [{"system": _IDENTIFIER_TYPE, "code": "AuthOrgId"}]},
                "system": _URI,
                "value": f"{current().settings.fhir_base}/Organization/{id}",
            }
        ],
        "active": True,
        "type": [{"coding": [{"system": _ORGANIZATION_TYPE, "code": code}], "text": display}],
        "name": name,
    }


def _purpose(code: str) -> Resource:
    coding = {"system": ACT_REASON_URL, "code": code, "display": DISPLAY[code]}
    return {"url": _PURPOSE, "valueCodeableConcept": {"coding": [coding]}}


def _all(resource_type: str) -> list[Resource]:
    """Every resource of the type, by id."""
    members = current().directory.members()
    if resource_type == "Endpoint":
        return [endpoint_resource(member) for member in members if member.endpoint]
    found = [organization_resource(member) for member in members]
    found.append(_organization(EXCHANGE, EXCHANGE_NAME, "exchange"))
    return sorted(found, key=lambda resource: str(resource["id"]))


# -- search


def _search(resource_type: str, params: Params) -> Response:
    caller()
    _check_format(next((value for name, value in params if name == "_format"), None))
    criteria = [(name, value) for name, value in params if name not in ("_format", "_count", "_offset")]
    included = [(name, value) for name, value in criteria if name == "_include"]
    if any(value != _INCLUDE or resource_type != "Organization" for _, value in included):
        raise BadRequest(f"_include can be {_INCLUDE} here, on Organization.", code="not-supported")
    matches = _all(resource_type)
    for name, value in criteria:
        if name != "_include":
            test = _criterion(resource_type, name)
            matches = [r for r in matches if any(test(r, one) for one in value.split(","))]
    return _respond(_bundle(resource_type, criteria, params, matches, bool(included)))


def _bundle(
    resource_type: str, criteria: Params, params: Params, matches: Sequence[Resource], include: bool
) -> Resource:
    count, offset = _number(params, "_count", _MAX_COUNT), _number(params, "_offset", 0)
    count = min(count, _MAX_COUNT)
    page = matches[offset : offset + count]
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset", "total": len(matches), "link": []}
    bundle["link"].append({"relation": "self", "url": _link(resource_type, criteria, count, offset)})
    if page and offset + count < len(matches):
        bundle["link"].append({"relation": "next", "url": _link(resource_type, criteria, count, offset + count)})
    entries = [_entry(resource, "match") for resource in page]
    if include:
        on_page = {resource["id"] for resource in page}
        entries += [_entry(resource, "include") for resource in _all("Endpoint") if resource["id"] in on_page]
    if entries:
        bundle["entry"] = entries
    return bundle


def _entry(resource: Resource, mode: str) -> Resource:
    address = f"{current().settings.fhir_base}/{resource['resourceType']}/{resource['id']}"
    return {"fullUrl": address, "resource": resource, "search": {"mode": mode}}


def _link(resource_type: str, criteria: Params, count: int, offset: int) -> str:
    query = [*criteria, ("_count", str(count)), *([("_offset", str(offset))] if offset else [])]
    return f"{current().settings.fhir_base}/{resource_type}?{urlencode(query)}"


def _number(params: Iterable[tuple[str, str]], name: str, default: int) -> int:
    given = [value for key, value in params if key == name]
    if not given:
        return default
    if len(given) > 1 or not (given[0].isascii() and given[0].isdigit() and len(given[0]) <= 6):
        raise BadRequest(f"{name} must be given once, as a whole number.")
    return int(given[0])


def _criterion(resource_type: str, name: str) -> Matches:
    base, _, modifier = name.partition(":")
    found = _CRITERIA[resource_type].get(base)
    if found is None:
        known = ", ".join(sorted(_CRITERIA[resource_type]))
        raise BadRequest(f"{resource_type} can be searched by {known}.", code="not-supported")
    if base == "name":
        return _name(modifier)
    if modifier:
        raise BadRequest(f"{base} takes no modifier here.", code="not-supported")
    return found


def _name(modifier: str) -> Matches:
    tests: dict[str, Matches] = {
        "": lambda resource, value: resource["name"].casefold().startswith(value.casefold()),
        "exact": lambda resource, value: bool(resource["name"] == value),
        "contains": lambda resource, value: value.casefold() in resource["name"].casefold(),
    }
    if modifier not in tests:
        raise BadRequest("name takes the modifiers :exact and :contains.", code="not-supported")
    return tests[modifier]


def _identifier(resource: Resource, value: str) -> bool:
    system, bar, code = value.rpartition("|")
    return any((not code or i["value"] == code) and (not bar or i["system"] == system) for i in resource["identifier"])


def _type(resource: Resource, value: str) -> bool:
    system, bar, code = value.rpartition("|")
    codings = [coding for concept in resource["type"] for coding in concept["coding"]]
    return any((not code or c["code"] == code) and (not bar or c["system"] == system) for c in codings)


def _managed_by(resource: Resource, value: str) -> bool:
    short = value.removeprefix(current().settings.fhir_base + "/")
    return short in (resource["id"], resource["managingOrganization"]["reference"])


def _token(value: str) -> str:
    return value.rpartition("|")[2]


_CRITERIA: dict[str, dict[str, Matches]] = {
    "Organization": {
        "_id": lambda resource, value: bool(resource["id"] == value),
        "identifier": _identifier,
        "name": _name(""),
        "active": lambda _resource, value: _token(value) == "true",
        "type": _type,
    },
    "Endpoint": {
        "_id": lambda resource, value: bool(resource["id"] == value),
        "identifier": _identifier,
        "organization": _managed_by,
        "status": lambda resource, value: _token(value) == resource["status"],
    },
}


# -- the member's own change


def _address(body: Resource, endpoint_id: str) -> str:
    """The one thing that may change; the rest of the body must say what stands."""
    if body.get("id") != endpoint_id:
        raise BadRequest("The id of the body must be the id of the address.")
    if body.get("status") != "active":
        raise Unprocessable("status must be active; the operator takes a member's Endpoint out of service.")
    if body["connectionType"].get("code") != _CONNECTION["code"]:
        raise Unprocessable(f"connectionType must be {_CONNECTION['code']}.")
    managing = body.get("managingOrganization", {}).get("reference", f"Organization/{endpoint_id}")
    if fhir.local_reference(managing) != ("Organization", endpoint_id):
        raise Unprocessable("managingOrganization must be the member itself.")
    return str(body.get("address", ""))


def _move(member: Member, address: str, asking: Caller) -> Member:
    standing = member.endpoint
    endpoint = replace(standing, url=address) if standing else Endpoint(address)
    if standing and standing.auth.type != "none" and _origin(address) != _origin(standing.url):
        # Whoever stole a client's key could otherwise have the member's credentials sent to a server of theirs.
        raise Conflict(
            "The exchange holds credentials for the server that stands, and does not send them to another host. "
            "Change the address and the credentials together, in the console or through the operator."
        )
    change = Change("changed", "member", member.id, ("endpoint",))

    def record(connection: sa.Connection, _moved: Member) -> None:
        current().audit.append(connection, change_event(change, asking, request_id()))

    return current().directory.update_endpoint(member.id, endpoint, also=record)


def _origin(address: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(address.strip().lower())
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        raise BadRequest("The address is not a URL.") from None
    return parts.scheme, parts.hostname or "", port


# -- answers


def _check_format(wanted: str | None) -> None:
    # A plus sign in an address arrives as a space.
    if wanted is not None and wanted.split(";")[0].replace(" ", "+") not in _FORMATS:
        raise NotAcceptable("The directory is given as application/fhir+json.", status=400)


def _respond(resource: Resource) -> Response:
    return answer(resource, headers={"Cache-Control": "no-store"})
