"""Errors become OperationOutcomes here and nowhere else (FHIR R4 3.1.0.1.8; RFC 6750 for 401 and 403)."""

from __future__ import annotations

import logging

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from hie.core import fhir
from hie.core.errors import Forbidden, HieError, OAuthError, ServiceUnavailable, Unauthorized

log = logging.getLogger("hie")

_CODES = {404: "not-found", 405: "not-supported", 413: "too-long", 415: "not-supported", 429: "throttled"}


def install(app: Flask) -> None:
    """Register the error handlers of the machine-facing routes."""
    app.register_error_handler(HieError, _hie_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def answer(status: int, code: str, message: str) -> Response:
    """A response of one issue; severity `error`."""
    body = fhir.outcome(fhir.issue("error", code, message))
    return Response(fhir.to_bytes(body), status, content_type=fhir.FHIR_JSON)


def _hie_error(error: HieError) -> Response:
    if isinstance(error, OAuthError):
        body = {"error": error.error, "error_description": error.message}
        response = Response(fhir.to_bytes(body), error.status, content_type="application/json")
        response.headers["Cache-Control"] = "no-store"
        return response
    response = answer(error.status, error.code, error.message)
    if isinstance(error, Unauthorized):
        error_code = ', error="invalid_token"' if request.headers.get("Authorization") else ""
        response.headers["WWW-Authenticate"] = f'Bearer realm="hie"{error_code}'
    elif isinstance(error, Forbidden):
        response.headers["WWW-Authenticate"] = 'Bearer realm="hie", error="insufficient_scope"'
    elif isinstance(error, ServiceUnavailable):
        response.headers["Retry-After"] = "5"
    return response


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    response = answer(status, _CODES.get(status, "invalid" if status < 500 else "exception"), _sentence(status))
    if status == 405 and getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(error.valid_methods)  # type: ignore[attr-defined]
    return response


def _sentence(status: int) -> str:
    return {
        404: "There is nothing at this address.",
        405: "This address does not take that method.",
        413: "The body is too large.",
        415: "The body's content type is not read here.",
        429: "Too many requests; try again later.",
    }.get(status, "The request could not be handled.")


def _unexpected(error: Exception) -> Response:
    # The type and place are enough to find a defect; the message may hold patient data and stays out of the log.
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else "unknown place"
    log.error("unexpected %s at %s", type(error).__name__, where)
    return answer(500, "exception", "The exchange could not handle the request; the operator has been told.")
