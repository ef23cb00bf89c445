"""`hie mpi review`: the open questions of who is who, and their answers, for an operator without the console."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import orjson

from hie.audit.log import AuditLog
from hie.cli.opening import opened
from hie.core.clock import instant, system_clock
from hie.core.ids import new_id
from hie.gateway.stewardship import audited, record_seen
from hie.mpi import cms
from hie.mpi.demographics import traits_of
from hie.mpi.people import By, LinkEvent
from hie.mpi.stewardship import Case, Side, Stewardship

_OPERATOR = "operator"


@click.group(invoke_without_command=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Most questions listed.")
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
@click.pass_context
def review(context: click.Context, limit: int, as_json: bool) -> None:
    """List the open questions, what matters most first; or answer one with `accept` or `reject`."""
    if context.invoked_subcommand is not None:
        return

    def listed(stewards: Stewardship, audit: AuditLog) -> None:
        queue = stewards.queue(limit)
        seen = [person for case in queue.cases for person in (case.left.person_id, case.right.person_id)]
        record_seen(audit, None, seen, "hie mpi review", new_id())
        counts = {kind.value: number for kind, number in queue.counts.items()}
        if as_json:
            click.echo(orjson.dumps({"counts": counts, "questions": [_case(case) for case in queue.cases]}))
            return
        for case in queue.cases:
            click.echo(_line(case))
        click.echo(", ".join(f"{number} {kind}" for kind, number in counts.items()))

    _with_stewardship(listed)


@review.command()
@click.argument("question")
@click.option("--reason", required=True, help="Why; it is kept with the decision.")
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
def accept(question: str, reason: str, as_json: bool) -> None:
    """They are one person (or: the record belongs where it is)."""
    _answer(lambda stewards: stewards.confirm, question, reason, as_json)


@review.command()
@click.argument("question")
@click.option("--reason", required=True, help="Why; it is kept with the decision.")
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
def reject(question: str, reason: str, as_json: bool) -> None:
    """They are two people (or: the record is split off)."""
    _answer(lambda stewards: stewards.reject, question, reason, as_json)


def _answer(
    chosen: Callable[[Stewardship], Callable[..., LinkEvent]], question: str, reason: str, as_json: bool
) -> None:
    def act(stewards: Stewardship, audit: AuditLog) -> None:
        event = chosen(stewards)(question, By(_OPERATOR, reason), also=audited(audit, None, new_id()))
        if as_json:
            click.echo(orjson.dumps({"event": event.id, "kind": event.kind.value, "people": event.people}))
        else:
            click.echo(f"{event.kind.value}: event {event.id}, about {', '.join(event.people)}")

    _with_stewardship(act)


def _with_stewardship(act: Callable[[Stewardship, AuditLog], None]) -> None:
    with opened() as exchange:
        act(Stewardship(exchange.database, exchange.index, system_clock), exchange.audit)


def _line(case: Case) -> str:
    task, best = case.task, case.compared[0]
    assert task is not None  # noqa: S101  (the queue holds questions)
    likely = f"{best.score.probability:.4f}" + (f", but {best.conflict}" if best.conflict else "")
    return f"{task.id}  {task.kind.value:<14}{_who(case.left)} / {_who(case.right)}  {likely}"


def _who(side: Side) -> str:
    name = (side.resource.get("name") or [{}])[0]
    words = [*(name.get("given") or []), name.get("family") or name.get("text") or "", *(name.get("suffix") or [])]
    return f"{' '.join(word for word in words if word)} {side.resource.get('birthDate', '')}".strip()


def _case(case: Case) -> dict[str, Any]:
    task, best = case.task, case.compared[0]
    assert task is not None  # noqa: S101  (the queue holds questions)
    return {
        "question": task.id,
        "kind": task.kind.value,
        "value": task.value,
        "created": instant(task.created),
        "people": [
            {
                "person": side.person_id,
                "who": _who(side),
                "records": [
                    {"record": r.id, "system": r.identifier.system, "value": r.identifier.value} for r in side.records
                ],
            }
            for side in (case.left, case.right)
        ],
        "probability": best.score.probability,
        "conflict": best.conflict,
        "cms_rules": cms.satisfied(traits_of(best.left.resource), traits_of(best.right.resource)),
        "traits": [
            {"trait": trait, "level": level, "weight": round(bits, 3)}
            for trait, level, bits in best.score.contributions
        ],
    }
