"""What every view needs to know of its request: who asks, and the request id that is echoed and kept in the audit."""

from __future__ import annotations

import re

from flask import Blueprint, Flask, Response, g, request

from hie.core.caller import Caller
from hie.core.ids import new_id
from hie.gateway.services import current

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def install(app: Flask) -> None:
    """Give every request an id and every answer its echo."""

    @app.before_request
    def _identify() -> None:
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else new_id()

    @app.after_request
    def _echo(response: Response) -> Response:
        response.headers["X-Request-Id"] = request_id()
        return response


def keep_nothing(blueprint: Blueprint) -> None:
    """Tell whoever is between to keep no answer of these routes."""

    @blueprint.after_request
    def _do_not_keep(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        return response


def request_id() -> str:
    """The caller's `X-Request-Id` where it is a plain token of at most 64 characters, else one made for it."""
    return str(g.request_id)


def caller() -> Caller:
    """The verified caller of this request; raises Unauthorized. Verified once, then kept for the request."""
    if "caller" not in g:
        g.caller = current().authority.caller(
            request.headers.get("Authorization", ""), address=request.remote_addr or ""
        )
    verified: Caller = g.caller
    return verified
