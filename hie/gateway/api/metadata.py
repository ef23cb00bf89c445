"""`GET /fhir/metadata`: the CapabilityStatement, which lists just what works (FHIR R4 3.1.0.8; PIXm, PDQm, SMART)."""

from __future__ import annotations

import re

from flask import Blueprint, Response, request

from hie import __version__
from hie.audit import iti81
from hie.core.errors import NotAcceptable
from hie.core.fhir import CLINICAL_TYPES, Resource
from hie.gateway.api.formats import answer
from hie.gateway.api.link_changes import DEFINITION as LINK_CHANGES
from hie.gateway.care_messages import TYPES
from hie.gateway.notifications import EVENTS
from hie.gateway.record_search import DATES, TOKENS
from hie.gateway.services import current

blueprint = Blueprint("metadata", __name__)

_PATIENT_STRINGS = (
    "family",
    "given",
    "address",
    "address-city",
    "address-country",
    "address-postalcode",
    "address-state",
    "mothersMaidenName",
)
_PATIENT_TOKENS = ("_id", "active", "identifier", "telecom", "gender")
_MOTHERS_MAIDEN_NAME = "http://hl7.org/fhir/SearchParameter/patient-extensions-Patient-mothersMaidenName"
_OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
_SECURITY_SERVICE = "http://terminology.hl7.org/CodeSystem/restful-security-service"
_AUDIT_PARAMETERS = [name for name in iti81.PARAMETERS if re.fullmatch(r"_id|[a-z-]+", name)]
_AUDIT_KINDS = {"date": "date", "patient": "reference", "agent": "reference", "entity": "reference", "policy": "uri"}
_PROCESS_MESSAGE = "http://hl7.org/fhir/OperationDefinition/MessageHeader-process-message"
_MESSAGES = f"Receives {', '.join(EVENTS)} (Da Vinci Unsolicited Notifications); answers at once."
_OPERATIONS = {
    "match": "http://hl7.org/fhir/OperationDefinition/Patient-match",
    "idi-match": "http://hl7.org/fhir/us/identity-matching/OperationDefinition/IDI-match",
    "everything": "http://hl7.org/fhir/OperationDefinition/Patient-everything",
    "ihe-pix": "https://profiles.ihe.net/ITI/PIXm/OperationDefinition/IHE.PIXm.pix",
}


@blueprint.get("/fhir/metadata")
def metadata() -> Response:
    """Anyone may ask."""
    wanted = request.args.get("_format", "json").replace(" ", "+")
    if "json" not in wanted:
        raise NotAcceptable("The capability statement is given as application/fhir+json.")
    return answer(statement())


def statement() -> Resource:
    """The statement of this exchange."""
    settings = current().settings
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-11-24",
        "publisher": "hie",
        "kind": "instance",
        "software": {"name": "hie", "version": __version__},
        "implementation": {"description": "Health information exchange", "url": settings.fhir_base},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "application/fhir+xml", "json", "xml"],
        "rest": [
            {
                "mode": "server",
                "security": _security(settings.base_url),
                "resource": [
                    _patient(),
                    *(_clinical(resource_type) for resource_type in CLINICAL_TYPES),
                    *({"type": told, **_told()} for told in TYPES if told not in CLINICAL_TYPES),
                    _consent(settings.fhir_base),
                    _audit_event(),
                    *_directory(),
                ],
                "operation": [{"name": "process-message", "definition": _PROCESS_MESSAGE, "documentation": _MESSAGES}],
            }
        ],
    }


def _security(base_url: str) -> Resource:
    return {
        "cors": False,
        "service": [{"coding": [{"system": _SECURITY_SERVICE, "code": "SMART-on-FHIR"}]}],
        "extension": [
            {"url": _OAUTH_URIS, "extension": [{"url": "token", "valueUri": f"{base_url}/oauth2/token"}]},
        ],
    }


def _patient() -> Resource:
    params = [_param(name, "string") for name in _PATIENT_STRINGS]
    params[-1]["definition"] = _MOTHERS_MAIDEN_NAME
    params += [_param(name, "token") for name in _PATIENT_TOKENS]
    params += [_param("birthdate", "date"), _param("_lastUpdated", "date")]
    return {
        "type": "Patient",
        "supportedProfile": [
            "https://profiles.ihe.net/ITI/PIXm/StructureDefinition/IHE.PIXm.Patient",
            "https://profiles.ihe.net/ITI/PDQm/StructureDefinition/IHE.PDQm.Patient",
        ],
        "interaction": [{"code": code} for code in ("read", "update", "delete", "search-type")],
        "versioning": "versioned",
        "conditionalUpdate": True,
        "conditionalDelete": "single",
        "searchParam": params,
        "operation": [
            *({"name": name, "definition": definition} for name, definition in _OPERATIONS.items()),
            {"name": "link-changes", "definition": f"{current().settings.fhir_base}{LINK_CHANGES}"},
        ],
    }


def _clinical(resource_type: str) -> Resource:
    names = {"patient": "reference", "_id": "token", "identifier": "token", "_lastUpdated": "date"}
    names |= dict.fromkeys(TOKENS[resource_type], "token") | dict.fromkeys(DATES[resource_type], "date")
    told = _told() if resource_type in TYPES else {}
    return {
        "type": resource_type,
        **told,
        "interaction": [{"code": "read"}, {"code": "search-type"}, *told.get("interaction", [])],
        "searchParam": [_param(name, kind) for name, kind in names.items()],
    }


def _told() -> Resource:
    """What members may do with the types by which they tell whom they treat."""
    return {
        "documentation": "Conditional update and delete tell whom a member treats; no more of it is kept than that.",
        "interaction": [{"code": "update"}, {"code": "delete"}],
        "conditionalUpdate": True,
        "conditionalDelete": "single",
    }


def _consent(fhir_base: str) -> Resource:
    return {
        "type": "Consent",
        "interaction": [
            {"code": code} for code in ("create", "read", "vread", "update", "history-instance", "search-type")
        ],
        "versioning": "versioned-update",
        "searchParam": [_param("patient", "reference"), _param("status", "token")],
        "operation": [{"name": "decide", "definition": f"{fhir_base}/OperationDefinition/Consent-decide"}],
    }


def _audit_event() -> Resource:
    return {
        "type": "AuditEvent",
        "interaction": [{"code": "read"}, {"code": "search-type"}],
        "searchParam": [_param(name, _AUDIT_KINDS.get(name, "token")) for name in _AUDIT_PARAMETERS],
    }


def _directory() -> list[Resource]:
    organization = {
        "type": "Organization",
        "interaction": [{"code": "read"}, {"code": "search-type"}],
        "searchInclude": ["Organization:endpoint"],
        "searchParam": [
            _param("name", "string"),
            *(_param(n, "token") for n in ("_id", "identifier", "active", "type")),
        ],
    }
    endpoint = {
        "type": "Endpoint",
        "interaction": [{"code": "read"}, {"code": "update"}, {"code": "search-type"}],
        "searchParam": [
            _param("organization", "reference"),
            *(_param(name, "token") for name in ("_id", "identifier", "status")),
        ],
    }
    return [organization, endpoint]


def _param(name: str, kind: str) -> Resource:
    return {"name": name, "type": kind}
