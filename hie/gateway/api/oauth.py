"""`POST /oauth2/token` and SMART discovery (SMART App Launch 2, "Backend Services" and "Conformance")."""

from __future__ import annotations

from flask import Blueprint, Response, request

from hie.core import fhir
from hie.core.errors import OAuthError
from hie.core.fhir import CLINICAL_TYPES, Resource
from hie.gateway.api.context import request_id
from hie.gateway.keys import public_jwks
from hie.gateway.keysets import KEY_TYPE
from hie.gateway.services import current

blueprint = Blueprint("oauth", __name__)

_FORM = "application/x-www-form-urlencoded"


@blueprint.post("/oauth2/token")
def token() -> Response:
    """An access token for a client that proves who it is."""
    issued = current().authority.issue(_form(), request.remote_addr or "", request_id())
    response = Response(fhir.to_bytes(issued), content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    response.headers["Pragma"] = "no-cache"
    return response


@blueprint.get("/.well-known/smart-configuration")
@blueprint.get("/fhir/.well-known/smart-configuration")
def smart_configuration() -> Response:
    """What a client needs to know to ask for tokens; JSON whatever is asked for."""
    return Response(fhir.to_bytes(configuration()), content_type="application/json")


@blueprint.get("/.well-known/jwks.json")
def exchange_keys() -> Response:
    """The public key with which the exchange signs in at members whose endpoint wants oauth2."""
    return Response(fhir.to_bytes(public_jwks(current().settings.home)), content_type="application/json")


def configuration() -> Resource:
    """The discovery document: all addresses absolute."""
    return {
        "issuer": current().settings.base_url,
        "jwks_uri": f"{current().settings.base_url}/.well-known/jwks.json",
        "token_endpoint": current().authority.token_url,
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": list(KEY_TYPE),
        "grant_types_supported": ["client_credentials"],
        "scopes_supported": [
            "system/*.cruds",
            "system/Patient.cruds",
            *(f"system/{resource_type}.rs" for resource_type in CLINICAL_TYPES),
            "system/Consent.crus",
            "system/AuditEvent.rs",
            "system/Organization.rs",
            "system/Endpoint.rus",
        ],
        "response_types_supported": [],
        "code_challenge_methods_supported": ["S256"],
        "capabilities": ["client-confidential-asymmetric", "permission-v1", "permission-v2"],
    }


def _form() -> dict[str, str]:
    """The form, in which no parameter may stand twice (RFC 6749 section 3.2)."""
    if request.mimetype != _FORM:
        raise OAuthError("invalid_request", f"The request must be a form: {_FORM}.")
    if request.headers.get("Authorization"):
        raise OAuthError("invalid_request", "Authenticate with client_assertion only; send no Authorization header.")
    repeated = [name for name, values in request.form.lists() if len(values) > 1]
    if repeated:
        raise OAuthError("invalid_request", "A parameter of the form is given twice.")
    return request.form.to_dict()
