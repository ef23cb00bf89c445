"""The console put together: one blueprint, its gate, its headers, its limits."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flask import Blueprint, Flask, Response, g, redirect, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError

from hie.audit import words
from hie.console import (
    codes,
    consents,
    disclosures,
    emergency,
    joining,
    log_health,
    members,
    my_choices,
    questions,
    queue,
    reports,
    review,
    sign_in,
    who_looked,
    wording,
)
from hie.console.people import login_manager, signed_in
from hie.console.problems import BLUEPRINT, STATIC_PATH, expired_form, problem_page, set_headers
from hie.console.protection import csrf, limiter
from hie.console.session import SealedSessions
from hie.gateway.services import Services

__all__ = ["install", "problem_page"]

_PAGES = (
    sign_in,
    emergency,
    members,
    review,
    disclosures,
    queue,
    questions,
    reports,
    log_health,
    who_looked,
    consents,
    codes,
    my_choices,
    joining,
)
"""The modules whose routes make up the console."""

_STATIC = Path(__file__).parent / "static"
_OPEN = frozenset(
    {
        "console.home",
        "console.join",
        "console.join_post",
        "console.sign_in",
        "console.sign_in_post",
        "console.static",
    }
)
_VERSION = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(_STATIC.rglob("*.*s")))).hexdigest()[:12]


def install(app: Flask) -> None:
    """Add the pages to `app`, whose `extensions["hie"]` must hold the services already."""
    services: Services = app.extensions["hie"]
    https = services.settings.base_url.startswith("https://")
    app.secret_key = services.secret
    app.session_interface = SealedSessions(services.secret, services.clock)
    app.config.update(
        SESSION_COOKIE_NAME="__Host-hie_console" if https else "hie_console",
        SESSION_COOKIE_SECURE=https,
        SESSION_COOKIE_PATH="/",
        WTF_CSRF_CHECK_DEFAULT=False,  # the API takes bearer tokens and no cookie; the gate below checks every page
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session
        WTF_CSRF_SSL_STRICT=False,  # it wants a Referer, which our own Referrer-Policy keeps back
    )
    csrf.init_app(app)
    limiter.init_app(app)
    login_manager.init_app(app)
    app.register_blueprint(_blueprint())


def _blueprint() -> Blueprint:
    blueprint = Blueprint(
        BLUEPRINT,
        __name__,
        template_folder="templates",
        static_folder="static",
        static_url_path=STATIC_PATH.rstrip("/"),
    )
    blueprint.before_request(_gate)
    blueprint.after_request(_finish)
    blueprint.register_error_handler(CSRFError, expired_form)
    blueprint.app_context_processor(_context)
    blueprint.app_template_filter("add_one")(lambda number: number + 1)
    for module in _PAGES:
        module.register(blueprint)
    return blueprint


def _gate() -> ResponseReturnValue | None:
    """Every page but the first wants a signed-in user; every form wants its CSRF token."""
    if request.endpoint in _OPEN or signed_in() is not None:
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            csrf.protect()
        return None
    # Only a page that can be opened again is worth returning to.
    wanted = request.path if request.method == "GET" else None
    return redirect(url_for("console.sign_in", next=wanted), 303)


def _finish(response: Response) -> Response:
    set_headers(response)
    if request.endpoint == "console.static":
        response.headers["Cache-Control"] = "public, max-age=86400"
    return response


def _context() -> dict[str, object]:
    """What every template may use."""
    user = signed_in() if session.get("sid") and not g.get("bare") else None
    return {"user": user, "pages": sign_in.pages_of(user), "wording": wording, "words": words, "asset": _asset}


def _asset(name: str) -> str:
    """The address of a static file, which changes with its content."""
    return url_for("console.static", filename=name, v=_VERSION)
