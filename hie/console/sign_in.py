"""The first page, signing in and out. Every attempt is in the audit log; no answer tells which part was wrong."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from flask import Blueprint, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_limiter.util import get_remote_address

from hie.audit.event import Event, Kind, Outcome
from hie.console.people import caller, end_session, signed_in, start_session
from hie.console.problems import is_machine_path
from hie.console.protection import limiter, one_verification
from hie.core.caller import Role
from hie.core.errors import ServiceUnavailable
from hie.gateway.api.context import request_id
from hie.gateway.directory import User
from hie.gateway.services import current

_LONGEST_EMAIL = 254
_LONGEST_PASSWORD = 1024
_FAILED = 401


@dataclass(frozen=True)
class PageLink:
    """An entry of the navigation and of the home page."""

    endpoint: str
    title: str
    purpose: str


_EMERGENCY = PageLink(
    "console.emergency", "Emergency lookup", "Find a patient and see allergies first, from every organization."
)
_MEMBERS = PageLink("console.members", "Members", "Endpoints, keys, checks and failures of member organizations.")
_OWN_ORGANIZATION = PageLink(
    "console.members", "My organization", "Your organization's endpoint, keys, live check and recent failures."
)
_QUESTIONS = PageLink(
    "console.questions", "Questions", "What the privacy officer asks you about records that you opened."
)
_DISCLOSURES = PageLink(
    "console.disclosures", "Disclosures", "Who saw whose records, when and why, with filters and charts."
)
_QUEUE = PageLink(
    "console.queue", "Review", "Break-glass and unusual access: take a case, ask, decide, close it by two people."
)
_REPORTS = PageLink("console.reports", "Reports", "Accountings of disclosures and other reports about patients.")
_LOG = PageLink("console.log_health", "Log", "Whether the disclosure log is whole, checked now.")
_WHO_LOOKED = PageLink("console.who_looked", "Who looked", "Who saw your records, when and why.")
_CONSENTS = PageLink(
    "console.consents", "Consents", "A patient's privacy choices in plain words, and what they let others see."
)
_CODES = PageLink("console.codes", "Codes", "Which codes make a record sensitive, and what a new one would hide.")
_MY_CHOICES = PageLink("console.my_choices", "My choices", "Who may see which of your records.")
_STEWARDSHIP = PageLink(
    "console.review", "Review", "Records that may be one person, or may have been linked by mistake."
)
_PAGES = {
    Role.DATA_STEWARD: (_STEWARDSHIP,),
    Role.CLINICIAN: (_EMERGENCY, _QUESTIONS),
    Role.MEMBER_ADMIN: (_OWN_ORGANIZATION,),
    Role.OPERATOR: (_MEMBERS,),
    Role.PRIVACY_OFFICER: (_DISCLOSURES, _QUEUE, _CONSENTS, _CODES, _REPORTS, _LOG),
    Role.PATIENT: (_MY_CHOICES, _WHO_LOOKED),
}


def pages_of(user: User | None) -> tuple[PageLink, ...]:
    """The pages that this user's role may open."""
    return _PAGES.get(user.role, ()) if user else ()


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/", endpoint="home")(home)
    blueprint.get("/sign-in", endpoint="sign_in")(show_sign_in)
    limited = limiter.limit("120/minute")(  # a whole hospital may come from one address
        limiter.limit("8/5 minutes", key_func=_address_and_email, deduct_when=_is_failure)(
            # Across addresses: high enough that a stranger cannot keep a physician out for long.
            limiter.limit("60/10 minutes", key_func=_email, deduct_when=_is_failure)(sign_in)
        )
    )
    blueprint.post("/sign-in", endpoint="sign_in_post")(limited)
    blueprint.post("/sign-out", endpoint="sign_out")(sign_out)


def home() -> ResponseReturnValue:
    """The pages of one's role, or the sign-in form."""
    return render_template("console/home.html") if signed_in() else _form()


def show_sign_in() -> ResponseReturnValue:
    if signed_in():
        return redirect(_local(request.args.get("next")), 303)
    return _form(next_path=request.args.get("next"))


def sign_in() -> ResponseReturnValue:
    email = _email()[:_LONGEST_EMAIL]
    password = request.form.get("password", "")
    user: User | None = None
    if email and 0 < len(password) <= _LONGEST_PASSWORD:
        with one_verification():
            user = current().directory.authenticate(email, password)
    if user is None:
        # What was typed is kept only if it names a user: people type passwords into the wrong field.
        known = current().directory.user(email) is not None
        current().audit.record(_event(Outcome.MINOR, "Sign-in refused", client_id=email if known else None))
        return _form(next_path=request.form.get("next"), failed=True, email=email), _FAILED
    start_session(user)
    try:
        current().audit.record(_event(Outcome.SUCCESS, "Signed in", signed=True))
    except ServiceUnavailable:
        end_session()  # nobody is in without an entry
        raise
    wanted = _local(request.form.get("next"))
    pages = pages_of(user)
    if wanted == url_for("console.home") and pages:
        return redirect(url_for(pages[0].endpoint), 303)  # nobody in a hurry needs a menu
    return redirect(wanted, 303)


def sign_out() -> ResponseReturnValue:
    event = _event(Outcome.SUCCESS, "Signed out", signed=True)
    end_session()
    current().audit.record(event)
    return redirect(url_for("console.home"), 303)


def _form(*, next_path: str | None = None, failed: bool = False, email: str = "") -> str:
    return render_template("console/sign_in.html", next_path=_local(next_path), failed=failed, email=email)


def _local(path: str | None) -> str:
    """`path` if it is a page of this console, else the first page: no redirect ever leaves the site."""
    home_path = url_for("console.home")
    if not path or not path.startswith("/") or path.startswith("//") or not path.isprintable() or "\\" in path:
        return home_path
    parts = urlsplit(path)
    if parts.scheme or parts.netloc or is_machine_path(parts.path):
        return home_path
    return parts.path


def _event(outcome: Outcome, description: str, *, signed: bool = False, client_id: str | None = None) -> Event:
    return Event(
        kind=Kind.SIGN_IN,
        outcome=outcome,
        action="E",
        caller=caller() if signed else None,
        person_id=None,
        query="console sign-in",
        request_id=request_id(),
        description=description,
        client_id=client_id,
        address=request.remote_addr or "",
    )


def _email() -> str:
    return request.form.get("email", "").strip()


def _address_and_email() -> str:
    return f"{get_remote_address()} {_email().casefold()}"


def _is_failure(response: object) -> bool:
    return getattr(response, "status_code", 0) == _FAILED
