"""Moving records between people so that it can be taken back: transactions, locks, and changes with their reversal.

Shared by the feed (`identity`) and the stewards (`stewardship`). A `Change` writes down what it alters, before and
after; undoing it restores exactly that (law L5).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from hie.core.clock import Clock, instant
from hie.core.database import Database
from hie.core.errors import Conflict, ServiceUnavailable
from hie.core.fhir import Resource
from hie.core.ids import new_id
from hie.mpi import decisions, registry
from hie.mpi.comparison import identity_digest
from hie.mpi.decisions import TaskState
from hie.mpi.demographics import traits_of
from hie.mpi.golden import golden
from hie.mpi.index import MatchIndex
from hie.mpi.people import By, EventKind, LinkEvent, Person, SourceRecord
from hie.mpi.registry import PersonRow
from hie.mpi.tables import review_tasks

T = TypeVar("T")
_ATTEMPTS = 10
_RETRIED_SQLSTATES = frozenset({"40P01", "40001"})  # deadlock, serialisation failure


class Overtaken(Exception):
    """Another transaction moved a person between the decision and its lock: start again."""


class Change:
    """One event under way. The people it names are locked by the caller; `finish` writes it down."""

    def __init__(self, connection: sa.Connection, index: MatchIndex, kind: EventKind, by: By, now: datetime) -> None:
        self.id = new_id()
        self.kind = kind
        self._connection = connection
        self._index = index
        self._by = by
        self._now = now
        self._records: dict[str, tuple[str, str]] = {}
        self._redirects: dict[str, tuple[str | None, str | None]] = {}
        self._tasks: dict[str, tuple[TaskState, TaskState]] = {}
        self._separated: list[str] = []
        self._reconciled: list[str] = []
        self._people: dict[str, None] = {}

    def involve(self, *person_ids: str) -> None:
        """Name people whom the event is about, moved or not."""
        self._people.update(dict.fromkeys(person_ids))

    def note_move(self, record: SourceRecord, person_before: str) -> None:
        """A record whose new person is written already; its decision is the caller's."""
        self._records[record.id] = (person_before, record.person_id)
        self.involve(person_before, record.person_id)

    def move(self, records: Sequence[SourceRecord], to: str, event: str | None = None) -> None:
        """Give records, and what they replaced, to a person."""
        moving = [record for record in records if record.person_id != to]
        before = registry.with_aliases(self._connection, [record.id for record in moving])
        registry.move_records(self._connection, list(before), to)
        self._index.move(self._connection, [record.id for record in moving if record.active], to)
        self._records |= {record_id: (person_id, to) for record_id, person_id in before.items() if person_id != to}
        self.involve(*before.values(), to)
        for record in moving:
            self.decide(replace(record, person_id=to), record.person_id, event)

    def decide(self, record: SourceRecord, person_before: str, event: str | None = None) -> None:
        """Keep that the event put a record where it is, or left it there."""
        decisions.add_decision(
            self._connection,
            record,
            event or self.kind.value,
            self._by.actor,
            self._now,
            person_before=person_before,
            reasons={"reason": self._by.reason},
            event_id=self.id,
        )

    def empty_into(self, emptied: str, survivor: str) -> None:
        """Let a person without active records stand for another, with what else was there."""
        left = [held.record for held in registry.records_of(self._connection, emptied)]
        self.move(left, survivor, "move")
        self.redirect([*registry.merged_ids(self._connection, emptied), emptied], survivor)
        questions = decisions.open_tasks_on(self._connection, emptied)
        self.set_tasks({task_id: replace(state, candidate_id=survivor) for task_id, state in questions.items()})
        settled = decisions.open_tasks_between(self._connection, survivor, survivor)
        self.set_tasks({task_id: replace(state, status="superseded") for task_id, state in settled.items()})

    def redirect(self, person_ids: Sequence[str], survivor: str | None) -> None:
        """Let ids stand for `survivor`; None makes them people again."""
        rows = registry.people_by_id(self._connection, person_ids)
        self._redirects |= {i: (row.merged_into, survivor) for i, row in rows.items() if row.merged_into != survivor}
        registry.set_merged_into(self._connection, person_ids, survivor)
        self.involve(*person_ids)

    def set_tasks(self, states: Mapping[str, TaskState]) -> None:
        """Change open questions."""
        if not states:
            return
        from_tasks = decisions.task_states(self._connection, review_tasks.c.id.in_(states))
        for task_id, state in states.items():
            first = self._tasks[task_id][0] if task_id in self._tasks else from_tasks[task_id]
            self._tasks[task_id] = (first, state)
        decisions.set_tasks(self._connection, states, self._now)

    def separate(self, left: Sequence[SourceRecord], right: Sequence[SourceRecord]) -> None:
        """Never again link these two groups, as long as what identifies both is as it is now."""
        one, other = ({r.id: identity_digest(traits_of(r.resource)) for r in group} for group in (left, right))
        self._separated += decisions.add_separations(self._connection, one, other, self.id)

    def reconcile(self, left: Collection[str], right: Collection[str]) -> None:
        """Take back what was said to keep these records apart."""
        ended = [s.id for s in decisions.separations_between(self._connection, left, right)]
        decisions.set_separations_ended(self._connection, ended, self._now)
        self._reconciled += ended

    def restore(self, state: Resource) -> None:
        """Make everything as it was before the event of `state`; raises Conflict where it is not as that left it."""
        self._expect(state)
        records = registry.records_by_id(self._connection, list(state["records"]))
        homes = sorted({before for before, _ in state["records"].values()})
        for before in sorted({b or "" for b, _ in state["redirects"].values()}):
            self.redirect([i for i, (b, _) in state["redirects"].items() if (b or "") == before], before or None)
        for home in homes:
            self.move([records[i] for i, (before, _) in state["records"].items() if before == home], home)
        self.set_tasks({task_id: TaskState(**before) for task_id, (before, _) in state["tasks"].items()})
        decisions.set_separations_ended(self._connection, state["separated"], self._now)
        decisions.set_separations_ended(self._connection, state["reconciled"], None)
        self._reconciled += state["separated"]
        self._separated += state["reconciled"]
        self.involve(*state["people"])

    def _expect(self, state: Resource) -> None:
        now_at = registry.with_aliases(self._connection, list(state["records"]))
        people = registry.people_by_id(self._connection, list(state["redirects"]))
        moved = any(now_at[i] != after for i, (_, after) in state["records"].items())
        if moved or any(people[i].merged_into != after for i, (_, after) in state["redirects"].items()):
            raise Conflict("Later decisions moved these records again; undo those first.")

    def finish(self) -> LinkEvent:
        """Write the event down."""
        state = {
            "records": {i: list(pair) for i, pair in self._records.items()},
            "redirects": {i: list(pair) for i, pair in self._redirects.items()},
            "tasks": {i: [asdict(before), asdict(after)] for i, (before, after) in self._tasks.items()},
            "separated": self._separated,
            "reconciled": self._reconciled,
            "people": list(self._people),
        }
        version = self._index.model.version
        event = LinkEvent(self.id, self._now, self.kind, self._by.actor, self._by.reason, version, state)
        decisions.add_event(self._connection, event)
        return event


class PeopleWriter:
    """What every service that changes people shares."""

    def __init__(self, database: Database, index: MatchIndex, clock: Clock) -> None:
        self._database = database
        self._index = index
        self._clock = clock

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        for _ in range(_ATTEMPTS):
            try:
                with self._database.write() as connection:
                    return work(connection)
            except Overtaken:
                continue
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", None) not in _RETRIED_SQLSTATES:
                    raise
        raise ServiceUnavailable("Other changes to the same people are in the way; try again shortly.")

    def _lock(self, connection: sa.Connection, own: Collection[str], linked: Collection[str] = ()) -> None:
        """Hold the people; each must still be one, and a `linked` one must still have active records."""
        wanted = {*own, *linked}
        rows = registry.lock_people(connection, wanted)
        gone = len(rows) < len(wanted) or any(row.merged_into is not None for row in rows.values())
        if gone or not all(rows[person_id].active for person_id in linked):
            raise Overtaken

    def _expect_unmoved(self, connection: sa.Connection, *records: SourceRecord) -> None:
        """After the people are locked: the records are where they were when this transaction first looked."""
        for record in records:
            held = registry.find_by_id(connection, record.id)
            if held is None or held.record.person_id != record.person_id:
                raise Overtaken

    def _refresh(self, connection: sa.Connection, person_id: str, now: datetime) -> None:
        """Make the golden record anew; an equal one changes nothing."""
        row = registry.people_by_id(connection, [person_id])[person_id]
        records = registry.active_records(connection, [person_id])[person_id]
        patient = golden(records) if records else None
        if row.active != bool(records) or (patient is not None and patient != row.resource):
            registry.write_golden(connection, person_id, patient, now)

    def _people(self, connection: sa.Connection, rows: Sequence[PersonRow]) -> dict[str, Person]:
        """The active people of `rows`, in their order, with records."""
        ids = [row.id for row in rows if row.active]
        records = registry.active_records(connection, ids) if ids else {}
        return {row.id: Person(row.id, tuple(records[row.id]), _with_meta(row)) for row in rows if records.get(row.id)}


def _with_meta(row: PersonRow) -> Resource:
    meta = {"versionId": str(row.version), "lastUpdated": instant(row.updated)}
    return {"resourceType": "Patient", "id": row.id, "meta": meta, **row.resource}
