"""Who looked at my records and why, in plain words, for the patient; and the same to take away."""

from __future__ import annotations

from itertools import groupby

from flask import Blueprint, render_template, request, url_for
from flask.typing import ResponseReturnValue

from hie.audit import words
from hie.audit.accounting import Asked, ReportKind, Subject
from hie.audit.iti81 import page_token
from hie.audit.query import Cursor
from hie.audit.report_formats import Format
from hie.console import people
from hie.console.log_reading import record
from hie.console.protection import limiter
from hie.console.reports import hand_out
from hie.core.caller import Role
from hie.core.errors import BadRequest
from hie.gateway.services import current
from hie.gateway.subjects import subject

_FORMATS = (Format.PDF, Format.CSV, Format.JSON)
_PAGE = 50


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/my-record/accesses", endpoint="who_looked")(show)
    blueprint.post("/my-record/accesses", endpoint="who_looked_file")(limiter.limit("10/minute")(take_away))


def show() -> ResponseReturnValue:
    own = _own()
    if own is None:
        return render_template("console/who_looked.html", own=None)
    everything = request.args.get("show") == "everything"
    page = current().accounting.accesses(own, everything=everything, cursor=_cursor(), limit=_PAGE)
    record("who looked", "the list of accesses was shown", own.person_id)
    days = [(day, list(accesses)) for day, accesses in groupby(page.accesses, key=lambda a: words.day(a.at))]
    return render_template(
        "console/who_looked.html",
        own=own,
        days=days,
        everything=everything,
        next=url_for("console.who_looked", page=page_token(page.next), show=request.args.get("show"))
        if page.next
        else None,
    )


def take_away() -> ResponseReturnValue:
    own = _own()
    form = next((form for form in _FORMATS if form.value == request.form.get("format")), None)
    kind = ReportKind.ACCOUNTING if request.form.get("kind") == "accounting" else ReportKind.ACCESS
    if own is None or form is None:
        raise BadRequest("Choose PDF, CSV or JSON.")
    return hand_out(current().accounting.report(Asked(kind, (own,))), form)


def _own() -> Subject | None:
    """The person whose account this is; None while the account is bound to nobody."""
    user = people.require_role(Role.PATIENT)
    person_id = current().own_person(user.email)
    return subject(current().identity, person_id) if person_id else None


def _cursor() -> Cursor | None:
    through, _, before = request.args.get("page", "").partition(".")
    plain = through.isdecimal() and before.isdecimal() and len(through) + len(before) < 30
    return Cursor(int(through), int(before)) if plain else None
