"""The life of one case of the review queue: who may do what next (pure).

A case is what one actor did that is to be looked at: break-glass accesses and alerts. An officer takes it, may ask the
actor for an explanation, gives a verdict; a second officer confirms and so closes it, or returns it. Nobody judges
what she did herself.

```
open -> assigned -> asked -> explained -> judged -> closed
            ^----------------------------- return --'
```
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from hie.audit.alerts import Rule
from hie.core.errors import BadRequest, Conflict, Forbidden

LONGEST_NOTE = 2000


class Status(StrEnum):
    """Where a case stands."""

    OPEN = "open"
    ASSIGNED = "assigned"
    ASKED = "asked"
    EXPLAINED = "explained"
    JUDGED = "judged"
    CLOSED = "closed"


class Step(StrEnum):
    """What somebody does about it."""

    ASSIGN = "assign"
    ASK = "ask"
    EXPLAIN = "explain"
    NOTE = "note"
    JUDGE = "judge"
    CONFIRM = "confirm"
    RETURN = "return"


class Verdict(StrEnum):
    """What the officer found."""

    APPROPRIATE = "appropriate"
    INAPPROPRIATE = "inappropriate"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True)
class Case:
    """One case. `assignee` and `verdict_by` are user ids; `version` counts the steps taken."""

    id: str
    organization: str
    organization_name: str
    actor: str
    actor_name: str
    break_glass: bool
    status: Status
    opened: datetime
    updated: datetime
    version: int
    assignee: str | None = None
    verdict: Verdict | None = None
    verdict_by: str | None = None


@dataclass(frozen=True)
class Item:
    """One thing that a case is about."""

    key: str
    rule: Rule
    at: datetime
    person_id: str | None
    sentence: str
    entries: tuple[int, ...]


@dataclass(frozen=True)
class Taken:
    """One step that was taken; `entry_index` is where the log has it."""

    number: int
    at: datetime
    by: str
    by_name: str
    step: Step
    note: str
    entry_index: int


_FROM: dict[Step, frozenset[Status]] = {
    Step.ASSIGN: frozenset(Status) - {Status.JUDGED, Status.CLOSED},
    Step.ASK: frozenset({Status.ASSIGNED, Status.EXPLAINED}),
    Step.EXPLAIN: frozenset({Status.ASKED}),
    Step.NOTE: frozenset(Status) - {Status.CLOSED},
    Step.JUDGE: frozenset({Status.ASSIGNED, Status.ASKED, Status.EXPLAINED}),
    Step.CONFIRM: frozenset({Status.JUDGED}),
    Step.RETURN: frozenset({Status.JUDGED}),
}
_TO: dict[Step, Status] = {
    Step.ASK: Status.ASKED,
    Step.EXPLAIN: Status.EXPLAINED,
    Step.JUDGE: Status.JUDGED,
    Step.CONFIRM: Status.CLOSED,
    Step.RETURN: Status.ASSIGNED,
}
_NOTED = frozenset({Step.ASK, Step.EXPLAIN, Step.NOTE, Step.JUDGE, Step.RETURN})
"""Steps that say nothing without words."""


def possible(case: Case, user_id: str, *, officer: bool) -> frozenset[Step]:
    """The steps that this user may take now."""
    steps = {step for step, states in _FROM.items() if case.status in states}
    if user_id == case.actor:
        return frozenset(steps & {Step.EXPLAIN})
    if not officer:
        return frozenset()
    if user_id == case.verdict_by:
        steps -= {Step.CONFIRM}
    return frozenset(steps)


def after(case: Case, step: Step, user_id: str, *, assignee: str | None = None, verdict: Verdict | None = None) -> Case:
    """The case after a step that `check` has let through, its version one higher."""
    values: dict[str, object] = {"status": _TO.get(step, case.status), "version": case.version + 1}
    if step is Step.ASSIGN:
        values["assignee"] = assignee or user_id
        if case.status is Status.OPEN:
            values["status"] = Status.ASSIGNED
    if step is Step.JUDGE:
        values |= {"verdict": verdict, "verdict_by": user_id}
    if step is Step.RETURN:
        values |= {"verdict": None, "verdict_by": None}
    return Case(**{**vars(case), **values})


def check(
    case: Case, step: Step, user_id: str, note: str, *, officer: bool, version: int, verdict: Verdict | None = None
) -> None:
    """Raises Conflict, Forbidden or BadRequest where the step may not be taken."""
    if version != case.version:
        raise Conflict("Somebody else has worked on this case in the meantime. Look at it again.")
    if step not in possible(case, user_id, officer=officer):
        raise Forbidden(_refusal(case, step, user_id))
    if step in _NOTED and not note.strip():
        raise BadRequest("Say it in a few words.")
    if len(note) > LONGEST_NOTE:
        raise BadRequest(f"A note has {LONGEST_NOTE:,} characters at most.")
    if step is Step.JUDGE and verdict is None:
        raise BadRequest("Choose a verdict.")


def _refusal(case: Case, step: Step, user_id: str) -> str:
    if user_id == case.actor:
        return "This case is about what you did yourself; another officer must review it."
    if step is Step.CONFIRM and user_id == case.verdict_by:
        return "A case is closed by two people: somebody else must confirm your verdict."
    return f"This cannot be done with a case that is {case.status.value}."
