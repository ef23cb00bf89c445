"""Review: the steward's queue, two people side by side with the weights, and one person's history. For data stewards.

Addresses hold opaque ids only. Whoever is shown is in the audit log before the page leaves (law L1), and each decision
is there in its own transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from hie.console import people, wording
from hie.core.caller import Role
from hie.core.errors import BadRequest, Conflict, NotFound, Unprocessable
from hie.gateway.api.context import request_id
from hie.gateway.services import current
from hie.gateway.stewardship import audited, record_seen
from hie.mpi import cms
from hie.mpi.comparison import TRAITS
from hie.mpi.demographics import Address, Traits, traits_of
from hie.mpi.people import By, LinkEvent, SourceRecord
from hie.mpi.stewardship import Case, Compared

PAGE = 20
FULL_BAR = 12.0
"""Bits at which a bar of the chart is full."""
_SIDE_BY_SIDE = "Compared side by side"


@dataclass(frozen=True)
class Row:
    """One line of the comparison. `width` is a share of half the chart, negative to the left (against)."""

    trait: str
    left: str
    right: str
    level: str
    bits: float | None
    width: float


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/review", endpoint="review")(show_queue)
    blueprint.get("/review/questions/<task_id>", endpoint="question")(show_question)
    blueprint.post("/review/questions/<task_id>", endpoint="settle")(answer)
    blueprint.post("/review/undo/<reference>", endpoint="undo")(undo)
    blueprint.post("/review/find", endpoint="find_person")(find_person)
    blueprint.get("/review/people/<person_id>", endpoint="history")(show_history)
    blueprint.post("/review/people/<person_id>/split", endpoint="split")(split)
    blueprint.post("/review/people/<person_id>/merge", endpoint="merge")(merge)


def show_queue() -> ResponseReturnValue:
    people.require_role(Role.DATA_STEWARD)
    page = max(0, int(request.args.get("page", "0"))) if request.args.get("page", "0").isdecimal() else 0
    queue = current().stewardship.queue(PAGE, page * PAGE)
    _seen(i for case in queue.cases for i in (case.left.person_id, case.right.person_id))
    total = sum(queue.counts.values())
    member = _members()

    def known_to(case: Case) -> list[str]:
        return sorted({member(record) for record in (*case.left.records, *case.right.records)})

    more = (page + 1) * PAGE < total
    return render_template("console/review.html", queue=queue, total=total, page=page, more=more, known_to=known_to)


def show_question(task_id: str) -> ResponseReturnValue:
    people.require_role(Role.DATA_STEWARD)
    return _question(task_id)


def answer(task_id: str) -> ResponseReturnValue:
    people.require_role(Role.DATA_STEWARD)
    acts: dict[str, Callable[..., LinkEvent]] = {
        "confirm": current().stewardship.confirm,
        "reject": current().stewardship.reject,
    }
    act = acts.get(request.form.get("answer", ""))
    if act is None:
        raise BadRequest("Choose one of the two answers.")
    try:
        event = act(task_id, _by(), also=_audited())
    except Unprocessable as mistake:
        return _question(task_id, mistake.message), 400
    except Conflict as gone:
        flash(f"Nothing was changed. {gone.message}")
        return redirect(url_for("console.review"), 303)
    following = current().stewardship.queue(1).cases
    said = "They are one person now." if event.kind.value == "confirm" else "They are kept apart."
    flash(f"{said} The person's history shows the decision, and takes it back.")
    task = following[0].task if following else None
    done = url_for("console.question", task_id=task.id, after=event.id) if task else None
    return redirect(done or url_for("console.review", after=event.id), 303)


def undo(reference: str) -> ResponseReturnValue:
    people.require_role(Role.DATA_STEWARD)
    person_id = request.form.get("person", "")
    try:
        event = current().stewardship.undo(reference, _by("Undone by the steward"), also=_audited())
    except (Conflict, NotFound) as refused:
        flash(f"Nothing was undone. {refused.message}")
    else:
        flash("The decision is undone; everything is as it was before.")
        person_id = person_id or event.people[0]
    if not person_id:
        return redirect(url_for("console.review"), 303)
    return redirect(url_for("console.history", person_id=person_id), 303)


def find_person() -> ResponseReturnValue:
    people.require_role(Role.DATA_STEWARD)
    wanted = request.form.get("person", "").strip().rsplit("/", 1)[-1]
    if not wanted or current().identity.person(wanted) is None:
        flash("There is no person with this id.")
        return redirect(url_for("console.review"), 303)
    return redirect(url_for("console.history", person_id=wanted), 303)


def show_history(person_id: str) -> ResponseReturnValue:
    people.require_role(Role.DATA_STEWARD)
    return _history(person_id)


def split(person_id: str) -> ResponseReturnValue:
    people.require_role(Role.DATA_STEWARD)
    chosen = request.form.getlist("record")
    return _changed(person_id, lambda: current().stewardship.split(person_id, chosen, _by(), also=_audited()))


def merge(person_id: str) -> ResponseReturnValue:
    people.require_role(Role.DATA_STEWARD)
    other = request.form.get("other", "").strip().rsplit("/", 1)[-1]
    return _changed(person_id, lambda: current().stewardship.merge(person_id, other, _by(), also=_audited()))


def _changed(person_id: str, act: Callable[[], LinkEvent]) -> ResponseReturnValue:
    try:
        act()
    except (Unprocessable, Conflict, NotFound) as mistake:
        return _history(person_id, mistake.message), 400
    flash("Done. The history below shows it, and takes it back.")
    return redirect(url_for("console.history", person_id=person_id), 303)


def _question(task_id: str, mistake: str = "") -> str:
    case = current().stewardship.case(task_id)
    _seen((case.left.person_id, case.right.person_id))
    asked = request.args.get("pair", "0")
    pair = int(asked) if asked.isdecimal() and int(asked) < len(case.compared) else 0
    return render_template(
        "console/question.html",
        case=case,
        compared=case.compared[pair],
        pair=pair,
        rows=rows_of(case.compared[pair]),
        cms_rules=_cms_rules(case.compared[pair]),
        sides=zip(
            ("This record", "The rest") if _is_contradiction(case) else ("One", "The other"),
            (case.left, case.right),
            strict=True,
        ),
        contradiction=_is_contradiction(case),
        mistake=mistake,
        reason=request.form.get("reason", _SIDE_BY_SIDE),
        after=request.args.get("after"),
        member=_members(),
    )


def _history(person_id: str, mistake: str = "") -> str:
    services = current()
    moments = services.stewardship.timeline(person_id)
    person = services.identity.person(person_id)
    wanted = request.args.get("at", "")
    at = _day_end(wanted)
    then = services.stewardship.person_as_of(person_id, at) if at else None
    shown = [p.id for p in (person, then) if p]
    _seen(shown or [person_id])
    return render_template(
        "console/history.html",
        person_id=person_id,
        person=person,
        moments=moments,
        then=then,
        at=at,
        wanted=wanted,
        mistake=mistake,
        member=_members(),
    )


def _day_end(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(days=1) if len(text) == 10 else None
    except ValueError:
        return None


def rows_of(compared: Compared) -> list[Row]:
    """Every trait that either side has, with what its agreement is worth."""
    left, right = (traits_of(record.resource) for record in (compared.left, compared.right))
    worth = {trait: (level, bits) for trait, level, bits in compared.score.contributions}
    rows = []
    for trait in TRAITS:
        mine, others = value_of(left, trait), value_of(right, trait)
        level, bits = worth.get(trait, ("", None))
        if mine or others:
            width = max(-1.0, min(1.0, (bits or 0.0) / FULL_BAR))
            rows.append(Row(wording.trait(trait), mine, others, wording.level(trait, level), bits, width))
    return rows


def value_of(traits: Traits, trait: str) -> str:
    """A trait's values as compared, in words; a social security number's last four digits alone."""
    if trait == "ssn":
        return f"ends in {traits.ssn[-4:]}" if traits.ssn else ""
    if trait == "birth_date":
        return wording.when(traits.birth_date) if traits.birth_date else ""
    if trait == "sex":
        return {"m": "male", "f": "female"}.get(traits.sex, "")
    if trait == "birth_order":
        return str(traits.birth_order) if traits.birth_order else "multiple birth" if traits.multiple_birth else ""
    if trait == "address":
        return "; ".join(_address(address) for address in traits.addresses)
    if trait == "phone":
        return ", ".join(_phone(number) for number in traits.phones)
    values = getattr(traits, {"email": "emails"}.get(trait, trait))
    words: Sequence[str] = (values,) if isinstance(values, str) else values
    former = [f"formerly {name}" for name in traits.former] if trait == "family" else []
    return ", ".join([*(w if "@" in w else w.title() for w in words if w), *(f.title() for f in former)])


def _cms_rules(compared: Compared) -> tuple[str, ...]:
    return cms.satisfied(*(traits_of(record.resource) for record in (compared.left, compared.right)))


def _phone(number: str) -> str:
    return f"({number[:3]}) {number[3:6]}-{number[6:]}" if len(number) == 10 else number


def _address(address: Address) -> str:
    street = " ".join(part for part in (address.number, address.street) if part).title()
    place = " ".join(part for part in (address.city.title(), address.state.upper(), address.zip) if part)
    return ", ".join(part for part in (street, address.unit and f"unit {address.unit}", place) if part)


def _is_contradiction(case: Case) -> bool:
    return case.left.person_id == case.right.person_id


def _members() -> Callable[[SourceRecord], str]:
    """The name of the organization that feeds a record."""
    names = {member.id: member.name for member in current().directory.members()}
    return lambda record: names.get(record.member_id, record.member_id)


def _by(otherwise: str = "") -> By:
    reason = " ".join(request.form.get("reason", "").split()) or otherwise
    return By(f"User/{people.the_user().email}", reason)


def _audited() -> Callable[..., None]:
    return audited(current().audit, people.caller(), request_id())


def _seen(person_ids: Iterable[str]) -> None:
    record_seen(current().audit, people.caller(), person_ids, f"console {request.url_rule}", request_id())
