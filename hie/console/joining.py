"""A patient's first visit: an invitation code from a member, a name, an e-mail and a password make an account.

The code, which the member hands over after it has seen who is there, is the proof; the e-mail is only what one signs in
with. Every bad code gets the same answer, and few may be tried.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from hie.audit.event import Event, Kind, Outcome
from hie.console.people import caller, signed_in, start_session
from hie.console.protection import limiter, one_verification
from hie.core.caller import Role
from hie.core.errors import BadRequest, Conflict
from hie.gateway.api.context import request_id
from hie.gateway.directory import User
from hie.gateway.portal import Binding
from hie.gateway.services import current

SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 1024
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}")


@dataclass(frozen=True)
class Joining:
    """The form as typed; a password is never shown again."""

    code: str = ""
    name: str = ""
    email: str = ""

    def mistakes(self, password: str) -> dict[str, str]:
        """Field -> sentence that says what to do."""
        found = {}
        if not self.code:
            found["code"] = "Enter the code that your organization gave you."
        if not 2 <= len(self.name) <= 200:
            found["name"] = "Enter your name."
        if not _EMAIL.fullmatch(self.email):
            found["email"] = "Enter an e-mail address. You will sign in with it."
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            found["password"] = f"Choose a password of at least {SHORTEST_PASSWORD} characters."
        return found


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/join", endpoint="join")(show)
    limited = limiter.limit("10/minute")(limiter.limit("40/hour")(join))
    blueprint.post("/join", endpoint="join_post")(limited)


def show() -> ResponseReturnValue:
    return redirect(url_for("console.home"), 303) if signed_in() else _form(Joining())


def join() -> ResponseReturnValue:
    given = Joining(*(" ".join(request.form.get(name, "").split()) for name in ("code", "name", "email")))
    password = request.form.get("password", "")
    mistakes = given.mistakes(password)
    if mistakes:
        return _form(given, mistakes), 400
    user = User(given.email.lower(), given.name, Role.PATIENT, None)
    try:
        with one_verification():
            hashed = current().directory.hash_password(password)
        current().portal.redeem(given.code, user.email, also=partial(_add, user, hashed))
    except BadRequest as refused:
        return _form(given, {"code": refused.message}), 400
    except Conflict as taken:
        return _form(given, {"email": taken.message}), 409
    start_session(user)
    current().audit.record(_joined())
    flash("Welcome. Here you choose who may see what.")
    return redirect(url_for("console.my_choices"), 303)


def _add(user: User, password_hash: str, connection: sa.Connection, binding: Binding) -> None:
    """The account and its binding are in the log or are not there: nobody has signed in yet."""
    current().directory.add_patient(connection, user, password_hash)
    event = Event(
        kind=Kind.DIRECTORY,
        outcome=Outcome.SUCCESS,
        action="C",
        caller=None,
        person_id=current().portal.person_of(binding),
        query="console join",
        request_id=request_id(),
        description=f"Patient's account {user.email} made and bound by a code ({binding.relation.value})",
        address=request.remote_addr or "",
    )
    current().audit.append(connection, event)


def _form(given: Joining, mistakes: dict[str, str] | None = None) -> str:
    return render_template("console/join.html", given=given, mistakes=mistakes or {})


def _joined() -> Event:
    return Event(
        kind=Kind.SIGN_IN,
        outcome=Outcome.SUCCESS,
        action="E",
        caller=caller(),
        person_id=None,
        query="console join",
        request_id=request_id(),
        description="Account made with an invitation code",
        address=request.remote_addr or "",
    )
