"""Rows of what was decided: decisions per record, events that can be undone, review tasks, separations. SQL, no rules.

Every function works inside the transaction that a service opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any

import sqlalchemy as sa

from hie.core.fhir import Resource
from hie.core.ids import new_id
from hie.mpi.index import MatchDecision, Scored
from hie.mpi.people import EventKind, LinkDecision, LinkEvent, ReviewTask, SourceRecord, TaskKind
from hie.mpi.tables import link_decisions, link_events, review_tasks, separations, source_records

FALSE_LINK = 10.0
"""How many missed links one false link is worth, for the order of the queue (law L4)."""
_LIKELY = 0.9
"""The probability of a member's own word that two of its ids are one patient."""


# -- decisions per record


def add_decision(
    connection: sa.Connection,
    record: SourceRecord,
    event: str,
    actor: str,
    now: datetime,
    *,
    person_before: str | None,
    decision: MatchDecision | None = None,
    reasons: Resource | None = None,
    event_id: str | None = None,
) -> str:
    """Keep why `record` is where it is now, and where it was."""
    decision_id = new_id()
    row = {
        "id": decision_id,
        "record_id": record.id,
        "at": now,
        "event": event,
        "actor": actor,
        "verdict": decision.verdict.value if decision else None,
        "probability": decision.best.probability if decision and decision.best else None,
        "reasons": _reasons(decision) if decision else (reasons or {}),
        "model_version": decision.model_version if decision else None,
        "person_before": person_before,
        "person_after": record.person_id,
        "event_id": event_id,
    }
    connection.execute(_ADD_DECISION, row)
    return decision_id


_ADD_DECISION = sa.insert(link_decisions)


def _reasons(decision: MatchDecision) -> Resource:
    scored = ([decision.best] if decision.best else []) + [c for c in decision.candidates if c != decision.best]
    return {"candidates": [_scored(candidate) for candidate in scored]}


def _scored(candidate: Scored) -> Resource:
    return {
        "record": candidate.record_id,
        "person": candidate.person_id,
        "probability": candidate.probability,
        "weight": candidate.weight,
        "agreements": [{"trait": a.trait, "level": a.level, "weight": a.weight} for a in candidate.agreements],
    }


def decision_by_id(connection: sa.Connection, decision_id: str) -> LinkDecision | None:
    rows = connection.execute(sa.select(link_decisions).where(link_decisions.c.id == decision_id))
    return next(map(_decision_row, rows), None)


def decisions_about(connection: sa.Connection, person_ids: Collection[str]) -> list[LinkDecision]:
    """Every decision that brought a record to one of these people, took it away or left it there, oldest first."""
    columns = (link_decisions.c.person_before, link_decisions.c.person_after)
    halves = [sa.select(link_decisions.c.id).where(column.in_(person_ids)) for column in columns]
    query = sa.select(link_decisions).where(link_decisions.c.id.in_(sa.union(*halves)))
    return [_decision_row(row) for row in connection.execute(query.order_by(link_decisions.c.at, link_decisions.c.id))]


def decisions_of(connection: sa.Connection, record_ids: Collection[str]) -> list[LinkDecision]:
    """Every decision on these records, oldest first."""
    query = sa.select(link_decisions).where(link_decisions.c.record_id.in_(record_ids))
    return [_decision_row(row) for row in connection.execute(query.order_by(link_decisions.c.at, link_decisions.c.id))]


def moved_since(connection: sa.Connection, since: datetime, limit: int) -> list[LinkDecision]:
    """Decisions after `since` that gave a record another person than before, oldest first."""
    moved = link_decisions.c.person_before.is_distinct_from(link_decisions.c.person_after)
    query = (
        sa.select(link_decisions)
        .where(link_decisions.c.at > since, moved)
        .order_by(link_decisions.c.at, link_decisions.c.id)
        .limit(limit)
    )
    return [_decision_row(row) for row in connection.execute(query)]


def _decision_row(row: Any) -> LinkDecision:
    return LinkDecision(
        id=row.id,
        record_id=row.record_id,
        at=row.at,
        event=row.event,
        actor=row.actor,
        verdict=row.verdict,
        probability=row.probability,
        reasons=row.reasons,
        model_version=row.model_version,
        person_before=row.person_before,
        person_after=row.person_after,
        event_id=row.event_id,
    )


# -- events


def add_event(connection: sa.Connection, event: LinkEvent) -> None:
    row = {**vars(event), "kind": event.kind.value}
    connection.execute(sa.insert(link_events), {k: v for k, v in row.items() if k in link_events.c})


def event_by_id(connection: sa.Connection, event_id: str, *, lock: bool = False) -> LinkEvent | None:
    query = sa.select(link_events).where(link_events.c.id == event_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return _event_row(row) if row else None


def events_by_id(connection: sa.Connection, ids: Collection[str]) -> dict[str, LinkEvent]:
    rows = connection.execute(sa.select(link_events).where(link_events.c.id.in_(ids)))
    return {row.id: _event_row(row) for row in rows}


def _event_row(row: Any) -> LinkEvent:
    return LinkEvent(
        id=row.id,
        at=row.at,
        kind=EventKind(row.kind),
        actor=row.actor,
        reason=row.reason,
        model_version=row.model_version,
        state=row.state,
        undone_by=row.undone_by,
    )


def set_undone(connection: sa.Connection, event_id: str, by: str) -> None:
    connection.execute(sa.update(link_events).where(link_events.c.id == event_id).values(undone_by=by))


# -- review tasks


def add_task(
    connection: sa.Connection,
    record_id: str,
    candidate_id: str,
    decision_id: str,
    kind: TaskKind,
    probability: float | None,
    now: datetime,
) -> None:
    """A question for a steward: is this record's person the candidate?"""
    row = {
        "id": new_id(),
        "record_id": record_id,
        "candidate_id": candidate_id,
        "decision_id": decision_id,
        "kind": kind.value,
        "probability": probability,
        "value": expected_value(kind, probability),
        "status": "open",
        "created": now,
    }
    connection.execute(sa.insert(review_tasks), row)


def expected_value(kind: TaskKind, probability: float | None) -> float:
    """Links that an answer is expected to mend: a missed one counts 1, a false one `FALSE_LINK`."""
    if kind is TaskKind.CONTRADICTION:
        return FALSE_LINK * (1 - (0.5 if probability is None else probability))
    return _LIKELY if probability is None else probability


def supersede_tasks(connection: sa.Connection, record_id: str, now: datetime) -> None:
    """Open questions about a record that has a new answer, or is gone."""
    connection.execute(_SUPERSEDE, {"of_record": record_id, "now": now})


_SUPERSEDE = (
    sa.update(review_tasks)
    .where(review_tasks.c.record_id == sa.bindparam("of_record"), review_tasks.c.status == "open")
    .values(status="superseded", closed=sa.bindparam("now", type_=review_tasks.c.closed.type))
)


@dataclass(frozen=True)
class TaskState:
    """What of a task an event may change."""

    status: str
    candidate_id: str


def task_states(connection: sa.Connection, where: sa.ColumnElement[bool]) -> dict[str, TaskState]:
    query = sa.select(review_tasks.c.id, review_tasks.c.status, review_tasks.c.candidate_id).where(where)
    return {row.id: TaskState(row.status, row.candidate_id) for row in connection.execute(query)}


def open_tasks_between(connection: sa.Connection, one: str, other: str) -> dict[str, TaskState]:
    """Open questions, whichever way round, whether two people are one; for one and the same person, settled ones."""
    own = {p: sa.select(source_records.c.id).where(source_records.c.person_id == p) for p in (one, other)}
    asked = [
        sa.and_(review_tasks.c.candidate_id == a, review_tasks.c.record_id.in_(own[b]))
        for a, b in ((one, other), (other, one))
    ]
    still = (review_tasks.c.status == "open", review_tasks.c.kind != TaskKind.CONTRADICTION.value)
    return task_states(connection, sa.and_(sa.or_(*asked), *still))


def open_tasks_on(connection: sa.Connection, candidate_id: str) -> dict[str, TaskState]:
    """Open questions whether somebody is this person."""
    return task_states(
        connection, sa.and_(review_tasks.c.candidate_id == candidate_id, review_tasks.c.status == "open")
    )


def contradictions_of(connection: sa.Connection, record_ids: Collection[str]) -> dict[str, TaskState]:
    """Open questions whether these records belong where they are."""
    return task_states(
        connection,
        sa.and_(
            review_tasks.c.record_id.in_(record_ids),
            review_tasks.c.kind == TaskKind.CONTRADICTION.value,
            review_tasks.c.status == "open",
        ),
    )


def set_tasks(connection: sa.Connection, states: Mapping[str, TaskState], now: datetime) -> None:
    for task_id, state in states.items():
        closed = None if state.status == "open" else now
        values = {"status": state.status, "candidate_id": state.candidate_id, "closed": closed}
        connection.execute(sa.update(review_tasks).where(review_tasks.c.id == task_id).values(values))


def task_by_id(connection: sa.Connection, task_id: str) -> ReviewTask | None:
    return next(iter(_tasks(connection, review_tasks.c.id == task_id)), None)


def open_tasks(connection: sa.Connection, limit: int, offset: int) -> list[ReviewTask]:
    """The queue: what is worth most first, the older of equals first."""
    return _tasks(connection, review_tasks.c.status == "open", limit, offset)


def _tasks(
    connection: sa.Connection, where: sa.ColumnElement[bool], limit: int | None = None, offset: int = 0
) -> list[ReviewTask]:
    order = (review_tasks.c.value.desc(), review_tasks.c.created, review_tasks.c.id)
    chosen = sa.select(review_tasks).where(where).order_by(*order).limit(limit).offset(offset).subquery()
    query = (
        sa.select(chosen, source_records.c.person_id)
        .join(source_records, source_records.c.id == chosen.c.record_id)
        .order_by(chosen.c.value.desc(), chosen.c.created, chosen.c.id)
    )
    return [
        ReviewTask(
            id=row.id,
            kind=TaskKind(row.kind),
            record_id=row.record_id,
            person_id=row.person_id,
            candidate_id=row.candidate_id,
            probability=row.probability,
            value=row.value,
            status=row.status,
            created=row.created,
        )
        for row in connection.execute(query)
    ]


def count_open(connection: sa.Connection) -> dict[TaskKind, int]:
    query = (
        sa.select(review_tasks.c.kind, sa.func.count())
        .where(review_tasks.c.status == "open")
        .group_by(review_tasks.c.kind)
    )
    found = {TaskKind(kind): number for kind, number in connection.execute(query)}
    return {kind: found.get(kind, 0) for kind in TaskKind}


# -- separations


@dataclass(frozen=True)
class Separation:
    """Two records that a steward keeps apart while what identifies them is as it was (`digests`)."""

    id: str
    digests: Mapping[str, str]

    def other(self, record_id: str) -> tuple[str, str]:
        """The other record's id and digest."""
        return next(item for item in self.digests.items() if item[0] != record_id)


def add_separations(
    connection: sa.Connection, left: Mapping[str, str], right: Mapping[str, str], event_id: str
) -> list[str]:
    """Keep every record of `left` apart from every one of `right` (record id -> digest). Returns the new ids."""
    rows = []
    for pair in product(left.items(), right.items()):
        (a, digest_a), (b, digest_b) = sorted(pair)
        row = {"record_a": a, "record_b": b, "traits_a": digest_a, "traits_b": digest_b}
        rows.append({"id": new_id(), "event_id": event_id, **row})
    if rows:
        connection.execute(sa.insert(separations), rows)
    return [str(row["id"]) for row in rows]


def separations_of(connection: sa.Connection, record_ids: Collection[str]) -> list[Separation]:
    """What still keeps any of these records apart from another."""
    halves = [
        sa.select(separations).where(column.in_(record_ids), separations.c.ended.is_(None))
        for column in (separations.c.record_a, separations.c.record_b)
    ]
    rows = connection.execute(sa.union(*halves))
    return [Separation(r.id, {r.record_a: r.traits_a, r.record_b: r.traits_b}) for r in rows]


def separations_between(connection: sa.Connection, left: Iterable[str], right: Iterable[str]) -> Sequence[Separation]:
    one, other = set(left), set(right)
    return [s for s in separations_of(connection, one) if not other.isdisjoint(s.digests.keys() - one)]


def set_separations_ended(connection: sa.Connection, ids: Collection[str], ended: datetime | None) -> None:
    connection.execute(sa.update(separations).where(separations.c.id.in_(ids)).values(ended=ended))
