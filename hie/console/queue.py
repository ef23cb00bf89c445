"""The review queue for the privacy officer: cases, what each is about, and the steps to its end by two people."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from hie.audit.alerts import Rule
from hie.audit.cases import Case, Item, Status, Step, Verdict, possible
from hie.audit.review import CaseFile
from hie.audit.words import count
from hie.console import people
from hie.console.log_reading import names_of, record
from hie.console.protection import limiter
from hie.core.caller import Role
from hie.core.errors import BadRequest, Conflict, Forbidden
from hie.gateway.api.context import request_id
from hie.gateway.services import current

RULES = {
    Rule.BREAK_GLASS: "Break-glass",
    Rule.SAME_ADDRESS: "Same address",
    Rule.SAME_NAME: "Same last name",
    Rule.COLLEAGUE: "Colleague",
    Rule.VIP: "VIP",
    Rule.VOLUME: "Unusually many",
    Rule.OFF_HOURS: "Unusual hours",
    Rule.SEARCH_ONLY: "Searching around",
    Rule.SEQUENCE: "Many in a row",
    Rule.REPEATED: "Again and again",
    Rule.UNRELATED: "No relation",
}
STATUSES = {
    Status.OPEN: "New",
    Status.ASSIGNED: "In work",
    Status.ASKED: "Waiting for an explanation",
    Status.EXPLAINED: "Explained",
    Status.JUDGED: "Waits for a second person",
    Status.CLOSED: "Closed",
}
VERDICTS = {
    Verdict.APPROPRIATE: "Appropriate: there was a good reason",
    Verdict.INAPPROPRIATE: "Inappropriate: there was none",
    Verdict.UNRESOLVED: "Unresolved: it cannot be told",
}
STEPS = {
    Step.ASSIGN: "Assigned",
    Step.ASK: "Asked for an explanation",
    Step.EXPLAIN: "Explanation",
    Step.NOTE: "Note",
    Step.JUDGE: "Verdict",
    Step.CONFIRM: "Confirmed and closed",
    Step.RETURN: "Verdict returned",
}
_TABS = {
    "waiting": ("To review", (Status.OPEN, Status.ASSIGNED, Status.ASKED, Status.EXPLAINED)),
    "confirm": ("To confirm", (Status.JUDGED,)),
    "closed": ("Closed", (Status.CLOSED,)),
}


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/privacy/queue", endpoint="queue")(show)
    blueprint.post("/privacy/queue/look", endpoint="queue_look")(limiter.limit("6/minute")(look))
    blueprint.get("/privacy/cases/<case_id>", endpoint="case")(show_case)
    blueprint.post("/privacy/cases/<case_id>", endpoint="case_step")(take)


@dataclass(frozen=True)
class Row:
    """One case of the list."""

    case: Case
    counts: tuple[tuple[str, int], ...]
    """What it is about, by rule, in words."""
    people: int
    oldest: datetime


@dataclass(frozen=True)
class Group:
    """Items of one case that are one event for its reader: the same rule, person and day."""

    rule: Rule
    person_id: str | None
    first: datetime
    items: tuple[Item, ...]

    @property
    def entries(self) -> list[int]:
        return sorted({index for item in self.items for index in item.entries})


def show() -> ResponseReturnValue:
    user = people.require_role(Role.PRIVACY_OFFICER)
    review = current().review
    review.collect()
    tab = request.args.get("tab", "waiting")
    tab = tab if tab in _TABS else "waiting"
    mine = request.args.get("mine") == "yes"
    cases = review.queue(_TABS[tab][1], user.email if mine else None)
    summaries = review.summaries([case.id for case in cases])
    record("review queue", f"{count(len(cases), 'case')} shown")
    return render_template(
        "console/privacy/queue.html",
        rows=[_row(case, summaries[case.id]) for case in cases],
        counts=review.counts(),
        tab=tab,
        tabs={name: title for name, (title, _) in _TABS.items()},
        mine=mine,
        statuses=STATUSES,
        now=current().clock(),
    )


def look() -> ResponseReturnValue:
    people.require_role(Role.PRIVACY_OFFICER)
    record("review queue", "looked for unusual access")
    found = current().review.look()
    flash(f"{count(len(found), 'new alert')}." if found else "Nothing new was found.")
    return redirect(url_for("console.queue"), 303)


def show_case(case_id: str) -> ResponseReturnValue:
    people.require_role(Role.PRIVACY_OFFICER)
    file = current().review.file(case_id)
    persons = {item.person_id for item in file.items} | {access.person_id for access in file.accesses}
    only = next(iter(persons)) if len(persons) == 1 else None
    record("review case", "a case was opened", only, (f"Task/{case_id}",))
    return _page(file)


def take(case_id: str) -> ResponseReturnValue:
    """One step; what was typed stays in the form when it is refused."""
    people.require_role(Role.PRIVACY_OFFICER)
    form = request.form
    try:
        step = Step(form.get("step", ""))
        verdict = Verdict(form["verdict"]) if form.get("verdict") else None
        version = int(form.get("version", ""))
    except ValueError:
        raise BadRequest("The form was not filled in by this page.") from None
    assignee = form.get("assignee") or None
    if assignee and assignee not in _officers():
        raise BadRequest("A case can be assigned to a privacy officer only.")
    note = form.get("note", "").replace("\r\n", "\n").strip()
    try:
        current().review.take(
            case_id,
            step,
            people.caller(),
            version=version,
            note=note,
            assignee=assignee,
            verdict=verdict,
            request_id=request_id(),
        )
    except (BadRequest, Conflict, Forbidden) as refusal:
        if isinstance(refusal, Forbidden):
            people.refuse(refusal.message)
        return _page(current().review.file(case_id), mistake=refusal.message, typed=note, at=step), refusal.status
    flash(f"{STEPS[step]}.")
    return redirect(url_for("console.case", case_id=case_id), 303)


def _page(file: CaseFile, *, mistake: str = "", typed: str = "", at: Step | None = None) -> str:
    user = people.the_user()
    steps = possible(file.case, user.email, officer=True)
    return render_template(
        "console/privacy/case.html",
        file=file,
        case=file.case,
        groups=_groups(file.items),
        accesses={access.index: access for access in file.accesses},
        names=names_of([a.person_id for a in file.accesses] + [i.person_id for i in file.items]),
        officers=_officers(),
        steps=steps,
        own=file.case.actor == user.email,
        own_verdict=file.case.status is Status.JUDGED and file.case.verdict_by == user.email,
        me=user.email,
        Step=Step,
        rules=RULES,
        statuses=STATUSES,
        verdicts=VERDICTS,
        taken=STEPS,
        mistake=mistake,
        typed=typed,
        at=at,
    )


def _officers() -> dict[str, str]:
    """E-mail -> name of everybody who may review."""
    return {u.email: u.name for u in current().directory.users() if u.role is Role.PRIVACY_OFFICER}


def _row(case: Case, items: list[Item]) -> Row:
    counted: defaultdict[str, int] = defaultdict(int)
    for group in _groups(tuple(items)):
        counted[RULES[group.rule]] += 1
    persons = {item.person_id for item in items if item.person_id}
    return Row(case, tuple(counted.items()), len(persons), items[0].at if items else case.opened)


def _groups(items: tuple[Item, ...]) -> list[Group]:
    """Several requests for one person on one day are one event."""
    together: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        key = (item.rule, item.person_id or item.key, item.at.date(), item.sentence.partition("The reason")[2])
        together.setdefault(key, []).append(item)
    groups = [Group(own[0].rule, own[0].person_id, own[0].at, tuple(own)) for own in together.values()]
    return sorted(groups, key=lambda group: (group.rule is not Rule.BREAK_GLASS, group.first))
