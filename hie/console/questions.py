"""What the privacy officer asks a clinician about records that she opened, and her answer."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from hie.audit.cases import Case, Step
from hie.console import people
from hie.console.log_reading import record
from hie.console.queue import RULES
from hie.core.caller import Role
from hie.core.errors import BadRequest, NotFound
from hie.gateway.api.context import request_id
from hie.gateway.services import current


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/questions", endpoint="questions")(show)
    blueprint.post("/questions/<case_id>", endpoint="answer")(answer)


def show() -> ResponseReturnValue:
    return _page()


def answer(case_id: str) -> ResponseReturnValue:
    case = next((case for case in _asked() if case.id == case_id), None)
    if case is None:
        raise NotFound("There is no such question, or it is answered already.")
    note = request.form.get("note", "").replace("\r\n", "\n").strip()
    try:
        current().review.take(
            case.id, Step.EXPLAIN, people.caller(), version=case.version, note=note, request_id=request_id()
        )
    except BadRequest as refusal:
        return _page(mistakes={case_id: refusal.message}, typed=note), 400
    flash("Your answer is with the privacy officer.")
    return redirect(url_for("console.questions"), 303)


def _asked() -> list[Case]:
    """The cases in which the signed-in clinician is asked."""
    people.require_role(Role.CLINICIAN)
    asking = people.caller()
    return current().review.asked_of(asking.user_id or "", asking.organization)


def _page(mistakes: dict[str, str] | None = None, typed: str = "") -> str:
    review, cases = current().review, _asked()
    record("questions", f"{len(cases)} questions of the privacy officer shown")
    items = review.summaries([case.id for case in cases])
    asked = {case.id: _question(case) for case in cases}
    return render_template(
        "console/questions.html",
        cases=cases,
        items=items,
        asked=asked,
        rules=RULES,
        mistakes=mistakes or {},
        typed=typed,
    )


def _question(case: Case) -> str:
    """What the officer asked last."""
    steps = current().review.file(case.id).steps
    return next((taken.note for taken in reversed(steps) if taken.step is Step.ASK), "")
