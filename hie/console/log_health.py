"""Whether the log is whole: its newest entry, "verify now" with progress, and what earlier verifications found."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue

from hie.console import people
from hie.console.log_reading import record
from hie.console.protection import limiter
from hie.core.caller import Role
from hie.core.errors import Conflict
from hie.gateway.services import current


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/privacy/log", endpoint="log_health")(show)
    blueprint.get("/privacy/log/progress", endpoint="log_progress")(show_progress)
    blueprint.post("/privacy/log", endpoint="log_verify")(limiter.limit("6/minute")(verify))


def show() -> ResponseReturnValue:
    people.require_role(Role.PRIVACY_OFFICER)
    health = current().health
    return render_template(
        "console/privacy/log.html", newest=health.newest(), history=health.history(), can_verify=health.can_verify
    )


def show_progress() -> ResponseReturnValue:
    """The part of the page that changes while a verification runs."""
    people.require_role(Role.PRIVACY_OFFICER)
    return render_template("console/privacy/log_progress.html", history=current().health.history())


def verify() -> ResponseReturnValue:
    user = people.require_role(Role.PRIVACY_OFFICER)
    record("log health", "a verification of the log was started")
    try:
        current().health.start(user.email)
    except Conflict as refusal:
        flash(refusal.message)
    return redirect(url_for("console.log_health"), 303)
