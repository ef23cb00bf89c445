"""Who is signed in, and the `Caller` that stands for them at the door.

Identity comes from the session and the directory, purpose from the page that asks (law L8): the emergency page asserts
emergency treatment. Breaking the glass is one person's chart at a time, with a reason, for four hours at most or until
the session ends, whichever is sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NoReturn

from flask import g, request, session
from flask_login import LoginManager, current_user, login_user, logout_user

from hie.console.session import ABSOLUTE_LIMIT
from hie.core.caller import EXCHANGE, Caller, Role
from hie.core.errors import Forbidden
from hie.core.ids import new_id
from hie.core.scopes import Scopes
from hie.gateway.directory import User
from hie.gateway.services import current

BREAK_GLASS_LIMIT = timedelta(hours=4)
_KEPT_GRANTS = 4  # the session is a cookie; the oldest grant gives way

_CHART_SCOPES = Scopes.parse("system/*.rs")
_PURPOSES = {Role.CLINICIAN: frozenset({"ETREAT", "TREAT"}), Role.PATIENT: frozenset({"PATRQT"})}
_OWN_HOUSE = frozenset({"HOPERAT"})

login_manager = LoginManager()
# A hospital's browsers may leave through changing addresses; the cookie is encrypted, HttpOnly and short-lived instead.
login_manager.session_protection = None


@dataclass(frozen=True)
class SignedIn:
    """A directory user in the shape that Flask-Login asks for."""

    user: User
    is_authenticated: bool = True
    is_active: bool = True
    is_anonymous: bool = False

    def get_id(self) -> str:
        return self.user.email


@dataclass(frozen=True)
class Grant:
    """Break-glass access to one person's chart."""

    reason: str
    until: datetime


def _load(email: str) -> SignedIn | None:
    started = session.get("started")
    if not isinstance(started, str) or current().clock() - datetime.fromisoformat(started) >= ABSOLUTE_LIMIT:
        return None
    user = current().directory.user(email)
    return SignedIn(user) if user else None


login_manager.user_loader(_load)


def start_session(user: User) -> None:
    """Sign `user` in with a session of its own: nothing of an earlier one is carried over (no fixation)."""
    session.clear()
    session["sid"] = new_id()
    session["started"] = current().clock().isoformat()
    login_user(SignedIn(user))


def end_session() -> None:
    """Sign out and forget everything the session held."""
    logout_user()
    session.clear()


def signed_in() -> User | None:
    """The user of this request, if any."""
    proxy: Any = current_user
    return proxy.user if proxy.is_authenticated else None


def the_user() -> User:
    """The user of a request that the gate has let through."""
    user = signed_in()
    if user is None:
        raise Forbidden("Sign in first.")
    return user


def caller(person_id: str | None = None) -> Caller:
    """The signed-in user as a caller; `person_id` is whose chart is asked for, for break-glass."""
    user = the_user()
    member = current().directory.member(user.member_id) if user.member_id else None
    purposes = _PURPOSES.get(user.role, _OWN_HOUSE)
    if member is not None:
        purposes &= member.purposes
    grant = grant_for(person_id) if person_id else None
    return Caller(
        organization=member.id if member else EXCHANGE,
        organization_name=member.name if member else "The exchange",
        role=user.role,
        purposes=purposes | {"BTG", "TREAT"} if grant else purposes,
        scopes=_CHART_SCOPES if user.role is Role.CLINICIAN else Scopes(),
        session=str(session["sid"]),
        user_id=user.email,
        subject_name=user.name,
        subject_id=user.email,
        break_glass_reason=grant.reason if grant else None,
        address=request.remote_addr or "",
    )


def require_role(*roles: Role) -> User:
    """The user, if of one of `roles`; any other is refused, and the attempt is in the audit log."""
    user = the_user()
    if user.role not in roles:
        refuse("Your role may not use this page.")
    return user


def refuse(sentence: str) -> NoReturn:
    """Raise Forbidden; `hie.gateway.api.problems` writes the attempt to the audit log, with the caller kept here."""
    g.caller = caller()
    raise Forbidden(sentence)


def grant_for(person_id: str) -> Grant | None:
    """The break-glass grant of this session for one person, while it lasts."""
    held = session.get("grants", {}).get(person_id)
    if held is None:
        return None
    until = datetime.fromisoformat(held["until"])
    return Grant(held["reason"], until) if current().clock() < until else None


def break_glass(person_id: str, reason: str) -> None:
    """Open one person's chart beyond consent, for the reason given; each reading of it is flagged in the audit log."""
    member = current().directory.member(caller().organization)
    if member is None or "BTG" not in member.purposes:
        refuse("Your organization may not break the glass.")
    until = current().clock() + BREAK_GLASS_LIMIT
    grants = {key: held for key, held in session.get("grants", {}).items() if key != person_id}
    grants[person_id] = {"reason": reason, "until": until.isoformat()}
    session["grants"] = dict(list(grants.items())[-_KEPT_GRANTS:])


def close_glass(person_id: str) -> None:
    """Give the access back before it lapses."""
    session["grants"] = {key: held for key, held in session.get("grants", {}).items() if key != person_id}
