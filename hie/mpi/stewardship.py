"""What the model was unsure of, settled by people: review queue, confirm, reject, link, merge, split, undo; history.

Each act is one event with its actor, reason and model version, and can be undone: that restores exactly what was (law
L5). A person's id is stable: merged away, it stands for the survivor; when a merge is undone or her records are split
off again, it is hers again. What a steward took apart is not linked again by the matcher as long as what identifies
both records (names, birth date, sex, social security number) stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from hie.core.errors import Conflict, NotFound, Unprocessable
from hie.core.fhir import Resource
from hie.mpi import decisions, registry
from hie.mpi.comparison import compare, hard_conflict
from hie.mpi.decisions import TaskState
from hie.mpi.demographics import traits_of
from hie.mpi.golden import golden
from hie.mpi.model import Score
from hie.mpi.moving import Change, Overtaken, PeopleWriter
from hie.mpi.people import (
    Also,
    By,
    EventKind,
    LinkDecision,
    LinkEvent,
    Person,
    ReviewTask,
    SourceRecord,
    TaskKind,
)

SHORTEST_REASON, LONGEST_REASON = 5, 500
MAX_COMPARED = 400
"""Most pairs of records that one comparison of two people looks at."""
SETTLING = timedelta(seconds=5)
"""Changes younger than this are not told yet: one that began earlier may still commit."""
CHANGES_READ = 1000


@dataclass(frozen=True)
class Side:
    """Half of a comparison: a person, or a part of one."""

    person_id: str
    records: tuple[SourceRecord, ...]
    resource: Resource
    """The golden Patient of just these records."""


@dataclass(frozen=True)
class Compared:
    """Two records held beside each other: each trait's level and bits, and what forbids linking, if anything."""

    left: SourceRecord
    right: SourceRecord
    score: Score
    conflict: str | None


@dataclass(frozen=True)
class Case:
    """Two people (or a record and the rest of its person) side by side; `compared` are pairs, the closest first."""

    task: ReviewTask | None
    left: Side
    right: Side
    compared: tuple[Compared, ...]


@dataclass(frozen=True)
class Queue:
    """The open questions that are worth most, with both sides, and how many there are of each kind."""

    cases: tuple[Case, ...]
    counts: dict[TaskKind, int]


@dataclass(frozen=True)
class Moment:
    """One point of a person's history: an event, or a feed's decision; `records` are those it placed."""

    id: str
    at: datetime
    kind: str
    actor: str
    reason: str
    records: tuple[SourceRecord, ...]
    came_from: tuple[str, ...]
    went_to: tuple[str, ...]
    probability: float | None
    model_version: str | None
    undone: bool
    undoable: bool


@dataclass(frozen=True)
class LinkChange:
    """A person whose records changed: as she is now, or the id she is now known by."""

    at: datetime
    person_id: str
    person: Person


class Stewardship(PeopleWriter):
    """The steward's acts, and what they are decided on."""

    # -- reading

    def queue(self, limit: int = 20, offset: int = 0) -> Queue:
        """Open questions by expected value."""
        with self._database.read() as connection:
            tasks = decisions.open_tasks(connection, limit, offset)
            cases = [self._case(connection, task) for task in tasks]
            return Queue(tuple(case for case in cases if case is not None), decisions.count_open(connection))

    def case(self, task_id: str) -> Case:
        """One question with both sides; raises NotFound, and Conflict when it is settled."""
        with self._database.read() as connection:
            case = self._case(connection, self._open_task(connection, task_id))
            if case is None:
                raise Conflict("The records of this question are gone; there is nothing left to decide.")
            return case

    def compare(self, one: str, other: str) -> Case:
        """Any two people side by side."""
        with self._database.read() as connection:
            left, right = (self._side_of(connection, self._person_id(connection, i)) for i in (one, other))
            if left is None or right is None:
                raise NotFound("The exchange knows no such person.")
            return Case(None, left, right, self._compared(left, right))

    def _case(self, connection: sa.Connection, task: ReviewTask) -> Case | None:
        if task.kind is TaskKind.CONTRADICTION:
            records = registry.active_records(connection, [task.person_id])[task.person_id]
            own = [r for r in records if r.id == task.record_id]
            left, right = _side(task.person_id, own), _side(task.person_id, [r for r in records if r not in own])
        else:
            left = self._side_of(connection, task.person_id)
            right = self._side_of(connection, task.candidate_id)
        return Case(task, left, right, self._compared(left, right)) if left and right else None

    def _side_of(self, connection: sa.Connection, person_id: str) -> Side | None:
        return _side(person_id, registry.active_records(connection, [person_id])[person_id])

    def _compared(self, left: Side, right: Side) -> tuple[Compared, ...]:
        pairs = [(a, b) for a in left.records for b in right.records][:MAX_COMPARED]
        traits = {r.id: traits_of(r.resource) for r in (*left.records, *right.records)}
        model = self._index.model
        found = [
            Compared(a, b, model.score(compare(traits[a.id], traits[b.id])), hard_conflict(traits[a.id], traits[b.id]))
            for a, b in pairs
        ]
        return tuple(sorted(found, key=lambda c: (-c.score.weight, c.left.id, c.right.id)))

    def timeline(self, person_id: str) -> tuple[Moment, ...]:
        """What made this person what she is, newest first; raises NotFound."""
        with self._database.read() as connection:
            current = self._person_id(connection, person_id)
            ids = {current, *registry.merged_ids(connection, current)}
            found = decisions.decisions_about(connection, ids)
            events = decisions.events_by_id(connection, {d.event_id for d in found if d.event_id})
            records = registry.records_by_id(connection, {d.record_id for d in found})
        grouped: dict[str, list[LinkDecision]] = {}
        for decision in found:
            grouped.setdefault(decision.event_id or decision.id, []).append(decision)
        moments = [_moment(key, parts, events.get(key), records) for key, parts in grouped.items()]
        return tuple(sorted(moments, key=lambda m: (m.at, m.id), reverse=True))

    def person_as_of(self, person_id: str, at: datetime) -> Person | None:
        """The person as the exchange knew her at an instant; None when it did not, or all her records were gone.

        An id that stood for another person then is answered with that one.
        """
        with self._database.read() as connection:
            seen: set[str] = set()
            while person_id not in seen:
                seen.add(person_id)
                known = [d for d in decisions.decisions_about(connection, [person_id]) if d.at <= at]
                records = self._records_at(connection, person_id, known, at)
                if records:
                    return Person(person_id, tuple(records), {"id": person_id, **golden(records)})
                left = [d.person_after for d in known if d.person_before == person_id]
                if not left:
                    return None
                person_id = left[-1]
            return None

    def _records_at(
        self, connection: sa.Connection, person_id: str, known: Sequence[LinkDecision], at: datetime
    ) -> list[SourceRecord]:
        brought = {d.record_id for d in known if d.person_after == person_id}
        last = {d.record_id: d for d in decisions.decisions_of(connection, brought) if d.at <= at}
        there = [record_id for record_id, decision in last.items() if decision.person_after == person_id]
        return registry.records_at(connection, there, at)

    def changes_since(
        self, member_id: str, since: datetime, *, hidden: Callable[[Person], Collection[str]] = lambda _person: ()
    ) -> tuple[tuple[LinkChange, ...], datetime, bool]:
        """People of this member whose set of records changed after `since`, oldest change first.

        Returns the changes, the instant to ask from next, and whether there is more already. A person is the member's
        while she holds a record of its, or when one of its records went to or from her. What happened to records of
        the members `hidden` of a person is no change.
        """
        until = self._clock() - SETTLING
        with self._database.read() as connection:
            found = decisions.moved_since(connection, since, CHANGES_READ + 1)
            more = len(found) > CHANGES_READ
            found = [d for d in found if d.at <= until and (not more or d.at < found[-1].at)]
            rows = registry.records_by_id(connection, {d.record_id for d in found})
            now_at = {i: registry.person(connection, i) for d in found for i in _touched(d)}
            people = self._people(connection, [row for row in now_at.values() if row])
        unseen = {i: hidden(people[row.id]) for i, row in now_at.items() if row is not None and row.id in people}
        latest: dict[str, datetime] = {}
        own: set[str] = set()
        for decision in found:
            moved = rows[decision.record_id].member_id
            touched = {i for i in _touched(decision) if moved not in unseen.get(i, ())}
            latest |= dict.fromkeys(touched, decision.at)
            own |= touched if moved == member_id else set()
        changes = [
            LinkChange(latest[i], i, people[row.id])
            for i, row in now_at.items()
            if row is not None
            and i in latest
            and row.id in people
            and (i in own or any(r.member_id == member_id for r in people[row.id].records))
        ]
        return (
            tuple(sorted(changes, key=lambda c: (c.at, c.person_id))),
            max((d.at for d in found), default=since),
            more,
        )

    # -- acts

    def confirm(self, task_id: str, by: By, *, also: Also[LinkEvent] = None) -> LinkEvent:
        """Yes, they are one: the two people become one; or, for a contradiction, the record stays."""

        def act(connection: sa.Connection) -> Change:
            task, record = self._held_task(connection, task_id)
            change = self._change(connection, EventKind.CONFIRM, by)
            change.set_tasks({task.id: TaskState("linked", task.candidate_id)})
            if record.person_id == task.candidate_id:
                change.involve(record.person_id)
                change.decide(record, record.person_id)
            else:
                self._join(connection, change, record.person_id, task.candidate_id)
            return change

        return self._act(act, by, also)

    def reject(self, task_id: str, by: By, *, also: Also[LinkEvent] = None) -> LinkEvent:
        """No, they are two: they are kept apart; for a contradiction, the record gets a person of its own."""

        def act(connection: sa.Connection) -> Change:
            task, record = self._held_task(connection, task_id)
            change = self._change(connection, EventKind.REJECT, by)
            change.set_tasks({task.id: TaskState("separate", task.candidate_id)})
            if record.person_id == task.candidate_id:
                self._split(connection, change, record.person_id, [record.id])
                return change
            change.involve(record.person_id, task.candidate_id)
            both = registry.active_records(connection, [record.person_id, task.candidate_id])
            change.separate(both[record.person_id], both[task.candidate_id])
            between = decisions.open_tasks_between(connection, record.person_id, task.candidate_id)
            change.set_tasks({i: TaskState("separate", state.candidate_id) for i, state in between.items()})
            for one in (record, *both[task.candidate_id][:1]):
                change.decide(one, one.person_id)
            return change

        return self._act(act, by, also)

    def link(self, record_id: str, person_id: str, by: By, *, also: Also[LinkEvent] = None) -> LinkEvent:
        """Give one record to another person; what is left where it was stays apart from it."""

        def act(connection: sa.Connection) -> Change:
            record, target = self._record(connection, record_id), self._person_id(connection, person_id)
            left = record.person_id
            if left == target:
                raise Conflict("The record is that person's already.")
            self._lock(connection, {left, target})
            self._expect_unmoved(connection, record)
            change = self._change(connection, EventKind.LINK, by)
            both = registry.active_records(connection, [left, target])
            change.reconcile([record.id], [r.id for r in both[target]])
            change.move([record], target)
            rest = [r for r in both[left] if r.id != record.id]
            if rest:
                change.separate([record], rest)
            else:
                change.empty_into(left, target)
            settled = decisions.open_tasks_between(connection, target, target)
            change.set_tasks({i: TaskState("linked", state.candidate_id) for i, state in settled.items()})
            return change

        return self._act(act, by, also)

    def unlink(self, record_id: str, by: By, *, also: Also[LinkEvent] = None) -> LinkEvent:
        """Take one record from its person: back to the person it had before, or to one of its own."""
        with self._database.read() as connection:
            person_id = self._record(connection, record_id).person_id
        return self.split(person_id, [record_id], by, also=also)

    def merge(self, one: str, other: str, by: By, *, also: Also[LinkEvent] = None) -> LinkEvent:
        """Two people are one; the id that is known longer stays, the other stands for it."""

        def act(connection: sa.Connection) -> Change:
            left, right = (self._person_id(connection, i) for i in (one, other))
            if left == right:
                raise Conflict("They are one person already.")
            self._lock(connection, {left, right})
            if not all(registry.active_records(connection, [left, right]).values()):
                raise Conflict("One of them has no record left; there is nothing to merge.")
            change = self._change(connection, EventKind.MERGE, by)
            self._join(connection, change, left, right)
            return change

        return self._act(act, by, also)

    def split(self, person_id: str, record_ids: Collection[str], by: By, *, also: Also[LinkEvent] = None) -> LinkEvent:
        """Take records from a person, together: back to the person they had before, or to a new one."""

        def act(connection: sa.Connection) -> Change:
            current = self._person_id(connection, person_id)
            earlier = self._earlier(connection, current, record_ids)
            rows = registry.lock_people(connection, {current, earlier} if earlier else {current})
            if rows[current].merged_into is not None or (earlier and rows[earlier].merged_into != current):
                raise Overtaken
            change = self._change(connection, EventKind.SPLIT, by)
            self._split(connection, change, current, record_ids, earlier)
            return change

        return self._act(act, by, also)

    def undo(self, reference: str, by: By, *, also: Also[LinkEvent] = None) -> LinkEvent:
        """Take back an event, or a feed's decision to link: everything is as it was before.

        What the matcher had linked by itself stays apart from then on. Raises NotFound, and Conflict where later
        decisions rest on it.
        """
        with self._database.read() as connection:
            decision = decisions.decision_by_id(connection, reference)
        if decision is not None and decision.event_id is None:
            return self._undo_feed(decision, by, also)
        event_id = decision.event_id if decision is not None and decision.event_id else reference

        def act(connection: sa.Connection) -> Change:
            return self._undo(connection, event_id, by)

        return self._act(act, by, also)

    def _undo(self, connection: sa.Connection, event_id: str, by: By) -> Change:
        known = decisions.event_by_id(connection, event_id)
        if known is None:
            raise NotFound("There is no such decision.")
        registry.lock_people(connection, known.people)
        event = decisions.event_by_id(connection, event_id)
        if event is None or event.undone_by is not None:
            raise Conflict("This decision is undone already.")
        if event.kind is EventKind.SUBSUME:
            raise Conflict("The member merged these ids itself; it undoes that by feeding the id again.")
        change = self._change(connection, EventKind.UNDO, by)
        change.restore(event.state)
        decisions.set_undone(connection, event.id, change.id)
        homes = {after: before for before, after in event.state["records"].values()}
        active = registry.active_records(connection, [*homes, *homes.values()])
        rows = registry.people_by_id(connection, list(homes))
        for left, home in homes.items():
            if not active[left] and rows[left].merged_into is None:
                change.empty_into(left, home)
        if event.kind.automatic:
            moved = [r for r in active[next(iter(homes.values()))] if r.id in event.state["records"]]
            change.separate(moved, active[next(iter(homes))])
        return change

    def _undo_feed(self, decision: LinkDecision, by: By, also: Also[LinkEvent]) -> LinkEvent:
        with self._database.read() as connection:
            there = registry.active_records(connection, [decision.person_after])[decision.person_after]
        if decision.event != "feed" or len(there) < 2 or decision.record_id not in {r.id for r in there}:
            raise Conflict("There is nothing to undo: this decision left the record where it was, or it moved since.")
        return self.split(decision.person_after, [decision.record_id], by, also=also)

    # -- shared

    def _act(self, act: Callable[[sa.Connection], Change], by: By, also: Also[LinkEvent]) -> LinkEvent:
        """One act in one transaction: its event, the golden records of everybody concerned, the audit entry."""
        if not SHORTEST_REASON <= len(by.reason.strip()) <= LONGEST_REASON:
            raise Unprocessable(f"Give a reason of {SHORTEST_REASON} to {LONGEST_REASON} characters.")

        def work(connection: sa.Connection) -> LinkEvent:
            event = act(connection).finish()
            for person_id in event.people:
                self._refresh(connection, person_id, event.at)
            if also is not None:
                also(connection, event)
            return event

        return self._write(work)

    def _change(self, connection: sa.Connection, kind: EventKind, by: By) -> Change:
        return Change(connection, self._index, kind, by, self._clock())

    def _join(self, connection: sa.Connection, change: Change, one: str, other: str) -> None:
        rows = registry.people_by_id(connection, [one, other])
        survivor, emptied = sorted(rows, key=lambda i: (rows[i].created, i))
        both = registry.active_records(connection, [survivor, emptied])
        change.reconcile([r.id for r in both[survivor]], [r.id for r in both[emptied]])
        change.move(both[emptied], survivor)
        change.empty_into(emptied, survivor)

    def _split(
        self,
        connection: sa.Connection,
        change: Change,
        person_id: str,
        record_ids: Collection[str],
        earlier: str | None = None,
    ) -> None:
        records = registry.active_records(connection, [person_id])[person_id]
        moved, rest = ([r for r in records if (r.id in record_ids) is inside] for inside in (True, False))
        if len(moved) != len(set(record_ids)):
            raise Conflict("Some of these records are not this person's now; look at the person again.")
        if not moved or not rest:
            raise Unprocessable("Choose some of the person's records, and leave at least one.")
        if earlier is not None:
            change.redirect([earlier], None)
        target = earlier or registry.add_person(connection, self._clock())
        change.move(moved, target)
        change.separate(moved, rest)
        settled = decisions.contradictions_of(connection, record_ids)
        change.set_tasks({i: TaskState("separate", state.candidate_id) for i, state in settled.items()})

    def _earlier(self, connection: sa.Connection, person_id: str, record_ids: Collection[str]) -> str | None:
        """The person that all these records had before they came here, if that id stands for this one now."""
        found: dict[str, str | None] = dict.fromkeys(record_ids)
        for decision in decisions.decisions_of(connection, record_ids):
            if decision.person_after == person_id and decision.person_before != person_id:
                found[decision.record_id] = decision.person_before
        ids = set(found.values())
        earlier = ids.pop() if len(ids) == 1 else None
        rows = registry.people_by_id(connection, [earlier]) if earlier else {}
        return earlier if earlier in rows and rows[earlier].merged_into == person_id else None

    def _open_task(self, connection: sa.Connection, task_id: str) -> ReviewTask:
        task = decisions.task_by_id(connection, task_id)
        if task is None:
            raise NotFound("There is no such question.")
        if task.status != "open":
            raise Conflict("This question is settled already.")
        return task

    def _held_task(self, connection: sa.Connection, task_id: str) -> tuple[ReviewTask, SourceRecord]:
        """An open task and its record, with both people locked."""
        seen = self._open_task(connection, task_id)
        self._lock(connection, {seen.person_id, seen.candidate_id})
        task = self._open_task(connection, task_id)
        if (task.person_id, task.candidate_id) != (seen.person_id, seen.candidate_id):
            raise Overtaken
        record = self._record(connection, task.record_id)
        if record.person_id != task.person_id:
            raise Overtaken
        return task, record

    def _record(self, connection: sa.Connection, record_id: str) -> SourceRecord:
        held = registry.find_by_id(connection, record_id)
        if held is None or not held.record.active:
            raise NotFound("The exchange holds no such record now.")
        return held.record

    def _person_id(self, connection: sa.Connection, person_id: str) -> str:
        row = registry.person(connection, person_id)
        if row is None:
            raise NotFound("The exchange knows no such person.")
        return row.id


def _side(person_id: str, records: Sequence[SourceRecord]) -> Side | None:
    return Side(person_id, tuple(records), golden(records)) if records else None


def _moment(
    key: str, parts: Sequence[LinkDecision], event: LinkEvent | None, records: dict[str, SourceRecord]
) -> Moment:
    first = parts[0]
    placed = [d for d in parts if d.record_id in records]
    linked = first.event == "feed" and first.person_before is None and first.verdict == "link"
    return Moment(
        id=key,
        at=first.at,
        kind=event.kind.value if event else first.event,
        actor=event.actor if event else first.actor,
        reason=event.reason if event else "",
        records=tuple(records[d.record_id] for d in placed),
        came_from=tuple(dict.fromkeys(d.person_before for d in parts if d.person_before)),
        went_to=tuple(dict.fromkeys(d.person_after for d in parts)),
        probability=first.probability,
        model_version=event.model_version if event else first.model_version,
        undone=event is not None and event.undone_by is not None,
        undoable=(event.undone_by is None and event.kind is not EventKind.SUBSUME) if event else linked,
    )


def _touched(decision: LinkDecision) -> set[str]:
    """The people that a decision took a record from or gave it to."""
    return {decision.person_after, decision.person_before or decision.person_after}
