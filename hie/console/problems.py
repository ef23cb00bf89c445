"""Errors as pages; `hie.gateway.api.problems` asks for them.

The sentences come from `hie.core.errors` and hold no patient data (contract law L10).
"""

from __future__ import annotations

from flask import Request, Response, g, make_response, render_template, request
from flask_wtf.csrf import CSRFError

from hie.core.errors import HieError
from hie.gateway.services import current

BLUEPRINT = "console"
STATIC_PATH = "/console/static/"

_MACHINE_ROOTS = frozenset({"fhir", "oauth2", ".well-known", "log", "cds-services", "healthz", "readyz", "metrics"})
_TITLES = {
    400: "The request could not be used",
    403: "This is not open to you",
    404: "There is nothing here",
    405: "There is nothing here",
    409: "Something changed in the meantime",
    413: "That is too much text",
    429: "Too many attempts",
    503: "Not available just now",
}
_SENTENCES = {
    405: "This address cannot be opened like that. Start again from the first page.",
    413: "The form was larger than the exchange reads.",
    429: "Wait a few minutes, then try again. Nobody is locked out for longer than that.",
}


def is_machine_path(path: str) -> bool:
    """Whether the path belongs to the API, whose errors are OperationOutcomes."""
    return path.split("/")[1] in _MACHINE_ROOTS if path.startswith("/") else False


def wants_page(request: Request) -> bool:
    """Whether an error of this request is for a person in a browser."""
    if is_machine_path(request.path):
        return False
    offered = ["application/fhir+json", "application/json", "text/html"]
    return request.blueprint == BLUEPRINT or request.accept_mimetypes.best_match(offered) == "text/html"


def problem_page(error: HieError) -> Response | None:
    """The page for an error, with its status and strict headers; None where a machine asked."""
    if not wants_page(request):
        return None
    g.bare = error.status >= 500  # without the user's name: the directory may be what failed
    title = _TITLES.get(error.status, "Something went wrong")
    sentence = _SENTENCES.get(error.status, error.message)
    page = make_response(render_template("console/problem.html", title=title, sentence=sentence), error.status)
    return set_headers(page)


def expired_form(_error: CSRFError) -> Response:
    """A form whose token is not this session's: left open too long, or not ours."""
    title, sentence = "This form had expired", "Nothing was saved. Start again from the first page."
    return make_response(render_template("console/problem.html", title=title, sentence=sentence), 400)


def set_headers(response: Response) -> Response:
    """Strict headers of every page: nothing from elsewhere, no frames, no referrer, nothing kept by caches."""
    response.headers["Content-Security-Policy"] = (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=()"
    response.headers["Cache-Control"] = "no-store"
    if current().settings.base_url.startswith("https://"):
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    return response
