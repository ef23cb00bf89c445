"""Errors become answers here and nowhere else: OperationOutcomes (FHIR R4 3.1.0.1.8; RFC 6750 for 401 and 403), OAuth
errors (RFC 6749 5.2), and pages where a person is looking. Refused attempts that are not in the log yet are written."""

from __future__ import annotations

import logging
from collections.abc import Callable

import sqlalchemy as sa
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from hie.audit.event import Event, Kind, Outcome
from hie.core import fhir
from hie.core.errors import Forbidden, HieError, OAuthError, ServiceUnavailable, Unauthorized
from hie.gateway.api.context import request_id
from hie.gateway.services import current

log = logging.getLogger("hie")

_CODES = {404: "not-found", 405: "not-supported", 413: "too-long", 415: "not-supported", 429: "throttled"}
_SENTENCES = {
    404: "There is nothing at this address.",
    405: "This address does not take that method.",
    413: "The body is too large.",
    415: "The body's content type is not read here.",
    429: "Too many requests; try again later.",
}

Page = Callable[[HieError], Response | None]
"""Renders an error as a page where the request came from the console; None where it did not."""


def install(app: Flask, page: Page = lambda _error: None) -> None:
    """Register the error handlers of the application."""

    def render(error: HieError) -> Response:
        try:
            _audit_refusal(error)
        except ServiceUnavailable as unavailable:
            error = unavailable
        return page(error) or _outcome(error)

    def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        code = _CODES.get(status, "invalid" if status < 500 else "exception")
        sentence = _SENTENCES.get(status, "The request could not be handled.")
        response = render(HieError(sentence, code=code, status=status))
        if status == 405 and getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(error.valid_methods)  # type: ignore[attr-defined]
        return response

    def unexpected(error: Exception) -> Response:
        # The type and place are enough to find a defect; the message may hold patient data and stays out of the log.
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else "unknown place"
        log.error("unexpected", extra={"type": type(error).__name__, "where": where, "request_id": request_id()})
        return render(HieError("The exchange could not handle the request; the operator has been told."))

    def database_gone(error: sa.exc.SQLAlchemyError) -> Response:
        cause = getattr(error, "orig", None) or error
        log.error("database", extra={"type": type(cause).__name__, "request_id": request_id()})
        return render(ServiceUnavailable("The exchange cannot reach its database; nothing was released or stored."))

    app.register_error_handler(HieError, render)
    app.register_error_handler(sa.exc.OperationalError, database_gone)
    app.register_error_handler(sa.exc.TimeoutError, database_gone)  # no free connection
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, unexpected)


def _outcome(error: HieError) -> Response:
    if isinstance(error, OAuthError):
        body = {"error": error.error, "error_description": error.message}
        response = Response(fhir.to_bytes(body), error.status, content_type="application/json")
    else:
        body = fhir.outcome(fhir.issue("error", error.code, error.message), *error.issues)
        response = Response(fhir.to_bytes(body), error.status, content_type=fhir.FHIR_JSON)
    response.headers["Cache-Control"] = "no-store"
    if isinstance(error, Unauthorized):
        error_code = ', error="invalid_token"' if request.headers.get("Authorization") else ""
        response.headers["WWW-Authenticate"] = f'Bearer realm="hie"{error_code}'
    elif isinstance(error, Forbidden):
        response.headers["WWW-Authenticate"] = 'Bearer realm="hie", error="insufficient_scope"'
    elif isinstance(error, ServiceUnavailable):
        response.headers["Retry-After"] = "5"
    return response


def _audit_refusal(error: HieError) -> None:
    """Write a refusal that no service wrote. A request without any token is no attempt by anybody: not written."""
    if error.audited or not isinstance(error, Forbidden | Unauthorized):
        return
    if isinstance(error, Unauthorized) and not request.headers.get("Authorization"):
        return
    current().audit.record(
        Event(
            kind=Kind.DENIAL,
            outcome=Outcome.MINOR,
            action="E",
            caller=g.get("caller"),
            person_id=None,
            query=f"{request.method} {request.url_rule or 'unknown address'}",
            request_id=request_id(),
            description=error.message,
            address=request.remote_addr or "",
        )
    )
    error.audited = True
