"""Who is who: feed, merge and delete source records, find people (PIXm ITI-104 and ITI-83, PDQm ITI-78).

A feed is one transaction: store the version, ask the matcher, link or open a new person, file what is unsure for a
steward, refresh the golden record. It never fails because linking is unsure, and it never re-links a record away from
a person that other records share: linking two different people is worse than missing a link (law L4). Messages are
idempotent, and one that is older than what is held changes nothing (L7). Every decision is kept with its reasons (L5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from hie.core import stamps
from hie.core.clock import Clock
from hie.core.database import Database
from hie.core.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    PreconditionFailed,
    Unprocessable,
)
from hie.core.fhir import Resource
from hie.core.ids import new_id
from hie.mpi import decisions, lookup, registry
from hie.mpi.comparison import compare, hard_conflict, identity_digest
from hie.mpi.demographics import Traits, traits_of
from hie.mpi.golden import golden
from hie.mpi.index import MatchDecision, MatchIndex, Verdict
from hie.mpi.lookup import Wanted
from hie.mpi.moving import Change, Overtaken, PeopleWriter
from hie.mpi.patient_search import (
    Criterion,
    PatientPage,
    PatientQuery,
    conditions,
    matches,
    split_token,
    unescaped,
    write_cursor,
)
from hie.mpi.people import (
    MAX_IDENTIFIER,
    Also,
    By,
    Candidate,
    EventKind,
    FeedResult,
    Grade,
    Identifier,
    Match,
    Person,
    SourceRecord,
    TaskKind,
)
from hie.mpi.registry import Held
from hie.mpi.tables import people as people_table
from hie.mpi.text import normalised

__all__ = [
    "Also",
    "Candidate",
    "FeedResult",
    "Identifier",
    "IdentityService",
    "PatientPage",
    "PatientQuery",
    "Person",
    "SourceRecord",
    "check_identifier",
]

Shown = Callable[[Person], Person | None]
"""A person as far as somebody may know; None where that is nothing."""

MAX_REVIEW_CANDIDATES = 3
"""Most people a steward is asked to compare one record with."""
MAX_DOUBTFUL = 1000
"""Most people of one search whose records have to be looked at one by one."""
_UNSTORABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
MAX_NAMED = 8
"""Most identifiers of one `$match` that are looked up."""
_JOINS = "one record fits both, and their records do not tell them apart"
_PROBABLE, _IMPOSSIBLE = 0.9, 0.01


class IdentityService(PeopleWriter):
    """People and their source records."""

    def __init__(self, database: Database, index: MatchIndex, clock: Clock) -> None:
        super().__init__(database, index, clock)
        self._names = lookup.NameBook()

    # -- feed

    def record(
        self,
        member_id: str,
        identifier: Identifier,
        patient: Resource,
        *,
        expected_version: int | None = None,
        also: Also[FeedResult] = None,
    ) -> FeedResult:
        """Store a member's patient under its own id, and link it. Idempotent.

        `patient` is a checked FHIR Patient. With `expected_version` the record must be at that version. `also` may run
        again when the database asks for the transaction to be repeated. Raises Unprocessable for an identifier that
        cannot be kept, Conflict for new content under an id that the member merged away, PreconditionFailed.
        """
        check_identifier(identifier)
        digest = registry.content_hash(patient)
        feed = _Message(member_id, identifier, patient, traits_of(patient), digest, expected_version is not None)

        def work(connection: sa.Connection) -> FeedResult:
            registry.lock_identifiers(connection, [identifier])
            held = registry.find(connection, identifier)
            if held is not None and held.record.member_id != member_id:
                raise Forbidden("Another organization feeds this identifier.")
            _expect_version(held, expected_version)
            result = self._settle(connection, feed, held)
            if also is not None:
                also(connection, result)
            return result

        return self._write(work)

    def _settle(self, connection: sa.Connection, feed: _Message, held: Held | None) -> FeedResult:
        if held is None:
            return self._create(connection, feed)
        if self._is_stale(feed, held):
            return FeedResult(held.record, created=False, changed=False, decision=None, stale=True)
        if held.deleted:
            return self._revive(connection, feed, held)
        if held.replaced_by is not None:
            if registry.has_seen(connection, held.record.id, feed.digest):
                return FeedResult(held.record, created=False, changed=False, decision=None, stale=True)
            raise Conflict("This identifier was replaced by another; feed the survivor, or delete this one first.")
        if held.content_hash == feed.digest:
            moment = self._source_updated(feed, held)
            if moment is not None and moment != held.source_updated:
                registry.set_source_updated(connection, held.record.id, moment)
            return FeedResult(held.record, created=False, changed=False, decision=None)
        if self._is_replay(connection, feed, held):
            return FeedResult(held.record, created=False, changed=False, decision=None, stale=True)
        return self._revise(connection, feed, held)

    def _create(self, connection: sa.Connection, feed: _Message) -> FeedResult:
        self._index.lock(connection, feed.traits)
        decision = self._decide(connection, feed.traits)
        now = self._clock()
        record = SourceRecord(
            id=new_id(),
            member_id=feed.member_id,
            identifier=feed.identifier,
            person_id="",
            version=1,
            active=True,
            resource=feed.patient,
            updated=now,
        )
        if decision.person_id is None:
            person_id = registry.add_person(connection, now, golden([record]))
        else:
            self._hold(connection, (), decision)
            person_id = self._landed(connection, decision, feed, now)
        record = replace(record, person_id=person_id)
        registry.add_record(connection, record, self._source_updated(feed, None))
        registry.add_version(connection, record, "feed", feed.digest)
        self._place(connection, feed, record, decision, None, _questions(decision, person_id))
        return FeedResult(record, created=True, changed=True, decision=decision)

    def _revive(self, connection: sa.Connection, feed: _Message, held: Held) -> FeedResult:
        """A deleted record comes back: its id may have been given to somebody else, so it is matched anew."""
        old = held.record
        self._index.lock(connection, feed.traits)
        apart = self._apart(connection, old.id, feed.traits)
        decision = self._decide(connection, feed.traits, [old.id], apart)
        now = self._clock()
        self._hold(connection, {old.person_id}, decision)
        self._expect_unmoved(connection, old)
        self._expect_apart(connection, old.id, feed.traits, apart)
        emptied = not registry.active_records(connection, [old.person_id])[old.person_id]
        resumes = emptied and _plainly_same(old.resource, feed.patient)
        if resumes and decision.person_id is None:
            person_id = old.person_id
        elif decision.person_id is None:
            person_id = registry.add_person(connection, now)
        else:
            person_id = self._landed(connection, decision, feed, now)
        revived = replace(old, active=True, resource=feed.patient, person_id=person_id)
        record = registry.next_version(
            connection, revived, "feed", now, feed.digest, source_updated=self._source_updated(feed, held)
        )
        event_id = None
        if resumes and person_id != old.person_id:
            event_id = self._empty_into(connection, old.person_id, record, feed.by, now)
        questions = _questions(decision, person_id)
        self._place(connection, feed, record, decision, old.person_id, questions, event_id)
        return FeedResult(record, created=True, changed=True, decision=decision)

    def _revise(self, connection: sa.Connection, feed: _Message, held: Held) -> FeedResult:
        old = held.record
        source_updated = self._source_updated(feed, held)
        if traits_of(old.resource) == feed.traits:
            self._lock(connection, {old.person_id})
            self._expect_unmoved(connection, old)
            changed = replace(old, resource=feed.patient)
            now = self._clock()
            record = registry.next_version(connection, changed, "feed", now, feed.digest, source_updated=source_updated)
            self._refresh(connection, record.person_id, now)
            return FeedResult(record, created=False, changed=True, decision=None)
        self._index.lock(connection, feed.traits)
        apart = self._apart(connection, old.id, feed.traits)
        decision = self._decide(connection, feed.traits, [old.id], apart)
        self._hold(connection, {old.person_id}, decision)
        self._expect_unmoved(connection, old)
        self._expect_apart(connection, old.id, feed.traits, apart)
        before = traits_of(old.resource)
        shared = registry.active_records(connection, [old.person_id])[old.person_id]
        others = [traits_of(record.resource) for record in shared if record.id != old.id]
        person_id = old.person_id
        now = self._clock()
        if not others and decision.person_id is not None and not self._contradicted(feed.traits, [before]):
            person_id = self._landed(connection, decision, feed, now)
        changed = replace(old, resource=feed.patient, person_id=person_id)
        record = registry.next_version(connection, changed, "feed", now, feed.digest, source_updated=source_updated)
        event_id = None
        if person_id != old.person_id:
            event_id = self._empty_into(connection, old.person_id, record, feed.by, now)
        questions = _questions(decision, person_id)
        if others and self._contradicted(feed.traits, others) and not self._contradicted(before, others):
            closest = max(self._index.model.score(compare(feed.traits, other)).probability for other in others)
            questions.append(_Question(person_id, TaskKind.CONTRADICTION, closest))
        self._place(connection, feed, record, decision, old.person_id, questions, event_id)
        return FeedResult(record, created=False, changed=True, decision=decision)

    def _place(
        self,
        connection: sa.Connection,
        feed: _Message,
        record: SourceRecord,
        decision: MatchDecision,
        person_before: str | None,
        questions: Sequence[_Question],
        event_id: str | None = None,
    ) -> None:
        """Write down where the record went and why, and make it findable there."""
        now = record.updated
        self._index.store(connection, record.id, record.person_id, feed.traits, is_new=person_before is None)
        self._names.learn(connection, feed.traits)
        decision_id = decisions.add_decision(
            connection,
            record,
            "feed",
            feed.by.actor,
            now,
            person_before=person_before,
            decision=decision,
            event_id=event_id,
        )
        if person_before is not None:
            decisions.supersede_tasks(connection, record.id, now)
        for question in questions:
            decisions.add_task(
                connection,
                record.id,
                question.person_id,
                decision_id,
                question.kind,
                question.probability,
                now,
            )
        if person_before is not None or decision.person_id is not None:
            self._refresh(connection, record.person_id, now)

    def _contradicted(self, traits: Traits, others: Sequence[Traits]) -> bool:
        """Whether traits are rather another person's than that of the `others`, or in hard conflict with one."""
        conflict = any(hard_conflict(traits, other) is not None for other in others)
        return conflict or all(self._evidence(traits, other) < 0 for other in others)

    def _evidence(self, a: Traits, b: Traits) -> float:
        """Bits for (or against) one person, leaving aside how rare a match is at all: no traits are no evidence."""
        return sum(bits for *_, bits in self._index.model.score(compare(a, b)).contributions)

    def _decide(
        self,
        connection: sa.Connection,
        traits: Traits,
        exclude: Collection[str] = (),
        apart: Mapping[str, str] | None = None,
    ) -> MatchDecision:
        """The matcher's decision; it joins nobody whom a steward keeps apart."""
        decision = self._index.decide(connection, traits, exclude=exclude, apart=apart)
        if not decision.joins or decision.person_id is None:
            return decision
        rows = registry.active_records(connection, [decision.person_id, *decision.joins])
        records = {person_id: [record.id for record in of_person] for person_id, of_person in rows.items()}
        one = [decision.person_id]
        for person_id in decision.joins:
            if not any(decisions.separations_between(connection, records[person_id], records[p]) for p in one):
                one.append(person_id)
        kept_out = set(decision.joins) - set(one)
        if not self._index.leads(decision, kept_out):
            return replace(decision, verdict=Verdict.REVIEW, person_id=None, joins=())
        return replace(decision, joins=tuple(one[1:]))

    def _landed(self, connection: sa.Connection, decision: MatchDecision, feed: _Message, now: datetime) -> str:
        """The person that a record links to, once the people whom it shows to be one are one. All are locked."""
        assert decision.person_id is not None  # noqa: S101  (the caller asked)
        if not decision.joins:
            return decision.person_id
        people = [decision.person_id, *decision.joins]
        rows = registry.people_by_id(connection, people)
        survivor, *emptied = sorted(people, key=lambda i: (rows[i].created, i))
        change = Change(connection, self._index, EventKind.JOIN, replace(feed.by, reason=_JOINS), now)
        records = registry.active_records(connection, emptied)
        for person_id in emptied:
            change.move(records[person_id], survivor)
            change.empty_into(person_id, survivor)
            self._refresh(connection, person_id, now)
        change.finish()
        return survivor

    def _is_stale(self, message: _Message | _Merge, held: Held) -> bool:
        return stamps.is_older(message.last_updated, held.source_updated)

    def _is_replay(self, connection: sa.Connection, feed: _Message, held: Held) -> bool:
        """Content of an earlier version, and nothing that says it is meant: no stamp of its own, no version named.

        A queue that is sent again must not roll back (law L7); who really means it stamps it or sends If-Match.
        """
        meant = feed.on_version or feed.last_updated is not None
        return not meant and registry.has_seen(connection, held.record.id, feed.digest)

    def _source_updated(self, message: _Message | _Merge, held: Held | None) -> datetime | None:
        known = held.source_updated if held is not None else None
        return stamps.newest(message.last_updated, known, self._clock())

    # -- merge and delete

    def merge(
        self,
        member_id: str,
        subsumed: Identifier,
        survivor: Identifier,
        *,
        patient: Resource | None = None,
        expected_version: int | None = None,
        also: Also[FeedResult] = None,
    ) -> FeedResult:
        """One member's id replaces another of its own; the survivor keeps its person. Idempotent.

        With `patient` (the message's body) a subsumed id that was never fed becomes known as the survivor's, and a
        message older than what is held changes nothing. Raises Unprocessable for a merge that has no meaning, NotFound
        for an unknown subsumed id without a body, PreconditionFailed.
        """
        check_identifier(subsumed)
        if subsumed == survivor:
            raise Unprocessable("A record cannot be replaced by itself.")
        message = _Merge(member_id, subsumed, survivor, patient)

        def work(connection: sa.Connection) -> FeedResult:
            registry.lock_identifiers(connection, [subsumed, survivor])
            held = registry.find(connection, subsumed)
            _expect_version(held, expected_version)
            result = self._merge(connection, message, held)
            if also is not None:
                also(connection, result)
            return result

        return self._write(work)

    def _merge(self, connection: sa.Connection, message: _Merge, held: Held | None) -> FeedResult:
        target = registry.find(connection, message.survivor)
        end = registry.survivor_of(connection, target) if target is not None else None
        if target is None or end is None:
            raise Unprocessable("The surviving identifier is not known; feed its patient first.", code="not-found")
        if any(found is not None and found.record.member_id != message.member_id for found in (target, held)):
            raise Forbidden("A merge is only open to the organization that feeds both identifiers.")
        if held is not None and held.record.id in _chain(connection, target):
            raise Unprocessable("The surviving identifier was itself replaced by this one.")
        if held is None:
            return self._add_alias(connection, message, target.record, end.record)
        if held.replaced_by == target.record.id or self._is_stale(message, held):
            stale = held.replaced_by != target.record.id
            return FeedResult(held.record, created=False, changed=False, decision=None, stale=stale)
        return self._subsume(connection, message, held, target.record, end.record)

    def _add_alias(
        self, connection: sa.Connection, message: _Merge, target: SourceRecord, end: SourceRecord
    ) -> FeedResult:
        if message.patient is None:
            raise NotFound("The identifier to be replaced is not known.")
        self._lock(connection, {end.person_id})
        self._expect_unmoved(connection, end)
        alias = SourceRecord(
            id=new_id(),
            member_id=message.member_id,
            identifier=message.subsumed,
            person_id=end.person_id,
            version=1,
            active=False,
            resource=message.patient,
            updated=self._clock(),
        )
        registry.add_record(connection, alias, self._source_updated(message, None))
        registry.add_version(connection, alias, "merge", message.digest)
        registry.set_replaced_by(connection, alias.id, target.id)
        self._note_merge(connection, alias, target, None)
        return FeedResult(alias, created=True, changed=True, decision=None)

    def _subsume(
        self, connection: sa.Connection, message: _Merge, held: Held, target: SourceRecord, end: SourceRecord
    ) -> FeedResult:
        old = held.record
        self._lock(connection, {old.person_id, end.person_id})
        self._expect_unmoved(connection, old, end)
        now = self._clock()
        body = message.patient if message.patient is not None else old.resource
        record = registry.next_version(
            connection,
            replace(old, active=False, person_id=end.person_id, resource=body),
            "merge",
            now,
            message.digest,
            replaced_by=target.id,
            source_updated=self._source_updated(message, held),
        )
        registry.move_records(connection, list(registry.with_aliases(connection, [record.id])), end.person_id)
        self._index.remove(connection, record.id)
        decisions.supersede_tasks(connection, record.id, now)
        decision_id = self._note_merge(connection, record, target, old.person_id)
        if old.person_id != end.person_id:
            self._leave(connection, old.person_id, end, record, decision_id, now)
        self._refresh(connection, end.person_id, now)
        return FeedResult(record, created=False, changed=True, decision=None)

    def _leave(
        self,
        connection: sa.Connection,
        left: str,
        end: SourceRecord,
        subsumed: SourceRecord,
        decision_id: str,
        now: datetime,
    ) -> None:
        """A merge took a record from a person: nobody is left there, or a steward looks whether they are one."""
        if registry.active_records(connection, [left])[left]:
            decisions.add_task(connection, end.id, left, decision_id, TaskKind.MERGE, None, now)
            self._refresh(connection, left, now)
        else:
            by = By(_actor(end.member_id), "the member merged two ids")
            self._empty_into(connection, left, subsumed, by, now, EventKind.SUBSUME)

    def _note_merge(
        self, connection: sa.Connection, record: SourceRecord, target: SourceRecord, person_before: str | None
    ) -> str:
        return decisions.add_decision(
            connection,
            record,
            "merge",
            _actor(record.member_id),
            record.updated,
            person_before=person_before,
            reasons={"replaced_by": target.id},
        )

    def delete(self, member_id: str, identifier: Identifier, *, also: Also[SourceRecord | None] = None) -> bool:
        """Take a record out of search and cross-reference; its history stays. False when there was none.

        `also` gets the record as it was, or None.
        """

        def work(connection: sa.Connection) -> bool:
            registry.lock_identifiers(connection, [identifier])
            held = registry.find(connection, identifier)
            if held is not None and held.record.member_id != member_id:
                raise Forbidden("Another organization feeds this identifier.")
            gone = held.record if held is not None and not held.deleted else None
            if gone is not None:
                self._delete(connection, gone)
            if also is not None:
                also(connection, gone)
            return gone is not None

        return self._write(work)

    def _delete(self, connection: sa.Connection, old: SourceRecord) -> None:
        self._lock(connection, {old.person_id})
        self._expect_unmoved(connection, old)
        now = self._clock()
        deleted = replace(old, active=False)
        record = registry.next_version(connection, deleted, "delete", now, replaced_by=None)
        self._index.remove(connection, record.id)
        decisions.supersede_tasks(connection, record.id, now)
        decisions.add_decision(connection, record, "delete", _actor(old.member_id), now, person_before=old.person_id)
        self._refresh(connection, old.person_id, now)

    # -- reading

    def person(self, person_id: str) -> Person | None:
        """The person, or the one it was merged into; None when unknown or without an active record."""
        if not _storable(person_id):
            return None
        with self._database.read() as connection:
            row = registry.person(connection, person_id)
            return self._people(connection, [row] if row else []).get(row.id if row else "")

    def person_ids(self, person_id: str) -> tuple[str, ...]:
        """The person's id first, then every id that now stands for it; empty when unknown."""
        if not _storable(person_id):
            return ()
        with self._database.read() as connection:
            row = registry.person(connection, person_id)
            return (row.id, *registry.merged_ids(connection, row.id)) if row else ()

    def identifiers(self, person_id: str) -> tuple[Identifier, ...]:
        """Every id that members fed of the person, deleted and replaced ones included."""
        with self._database.read() as connection:
            return registry.identifiers(connection, person_id)

    def parted_from(self, person_id: str) -> dict[str, datetime]:
        """People that this one was one with until records were taken apart -> when that last was."""
        with self._database.read() as connection:
            return registry.parted_from(connection, person_id)

    def source_record(self, identifier: Identifier) -> SourceRecord | None:
        """The active record with this id, or the one that replaced it."""
        if not _storable(identifier.system, identifier.value):
            return None
        with self._database.read() as connection:
            held = registry.find(connection, identifier)
            end = registry.survivor_of(connection, held) if held else None
            return end.record if end else None

    def known_ids(self, identifier: Identifier) -> frozenset[str] | None:
        """What this record may be called by `Patient.id`: its person's ids, and the ids its own bodies had.

        None when the record was never fed.
        """
        with self._database.read() as connection:
            held = registry.find(connection, identifier)
            if held is None:
                return None
            own = {body["id"] for body in registry.bodies_of(connection, held.record.id) if "id" in body}
            return frozenset({*own, held.record.person_id, *registry.merged_ids(connection, held.record.person_id)})

    def knows_system(self, system: str) -> bool:
        """Whether any person has an identifier of this system."""
        with self._database.read() as connection:
            return registry.knows_system(connection, system[:MAX_IDENTIFIER])

    def candidates(
        self, patient: Resource, limit: int, *, years: int = 0, shown: Shown | None = None
    ) -> list[Candidate]:
        """People who may be meant by what little is known, likeliest first, for people who search. Does not write.

        Names may be misspelt or only begun; the birth year may be off by `years`. With `shown`, records that it leaves
        out do not count: nobody is found or weighed by them.
        """
        wanted = Wanted(traits_of(patient), years)
        hidden: set[str] = set()
        with self._database.read() as connection:
            while True:
                scored = lookup.find(connection, self._index, wanted, limit, exclude=hidden)
                rows = registry.people_by_id(connection, {s.person_id for s in scored})
                people, left_out = _seen(self._people(connection, list(rows.values())), shown)
                if left_out <= hidden:
                    break
                hidden |= left_out
        return [
            Candidate(people[s.person_id], s.probability, s.weight, s.agreements)
            for s in scored
            if s.person_id in people
        ]

    def match(self, patient: Resource, *, shown: Shown | None = None) -> list[Match]:
        """People who may be the described patient, likeliest first, as a feed would judge it. Saves nothing.

        An identifier that a member assigned counts as certain where the demographics do not speak against it. With
        `shown`, records that it leaves out do not count.
        """
        traits = traits_of(patient)
        hidden: set[str] = set()
        with self._database.read() as connection:
            while True:
                decision = self._index.decide(connection, traits, exclude=hidden)
                named = self._named(connection, patient, traits, hidden)
                found = {c.person_id: c for c in decision.candidates}
                rows = registry.people_by_id(connection, found.keys() | named.keys())
                people, left_out = _seen(self._people(connection, list(rows.values())), shown)
                if left_out <= hidden:
                    break
                hidden |= left_out
        scores = named | {i: max(c.probability, named.get(i, 0.0)) for i, c in found.items()}
        sure = [i for i, probability in named.items() if probability >= self._index.model.thresholds.link]
        certain = sure[0] if len(sure) == 1 and decision.person_id in (None, sure[0]) else decision.person_id
        ranked = sorted((i for i in scores if i in people), key=lambda i: (i != certain, -scores[i], i))
        return [Match(people[i], scores[i], _grade(scores[i], i == certain and len(sure) < 2)) for i in ranked]

    def _named(
        self, connection: sa.Connection, patient: Resource, traits: Traits, hidden: Collection[str]
    ) -> dict[str, float]:
        """Person id -> probability, of whose identifiers the patient names; `hidden` are record ids left out."""
        found: dict[str, float] = {}
        for identifier in _identifiers_of(patient):
            held = registry.find(connection, identifier)
            end = registry.survivor_of(connection, held) if held else None
            if end is None or held is None or {held.record.id, end.record.id} & set(hidden):
                continue
            known = traits_of(end.record.resource)
            agrees = hard_conflict(traits, known) is None and self._evidence(traits, known) >= 0
            probability = self._index.model.thresholds.link if agrees else 0.0
            score = self._index.model.score(compare(traits, known)).probability
            found[end.record.person_id] = max(probability, score)
        return found

    def search(self, query: PatientQuery, *, shown: Shown | None = None, doubtful: Collection[str] = ()) -> PatientPage:
        """ITI-78: people that meet every criterion, in order of id.

        `shown` is asked about everybody with a record of the members `doubtful`: somebody who meets the criteria only
        by what is left out is not found. Raises BadRequest where too many would have to be looked at.
        """
        where = conditions(query)
        see = _seer(query, shown, doubtful)
        with self._database.read() as connection:
            asked = _asked_ids(query.criteria)
            if asked is not None:
                return self._search_by_id(connection, query, where, asked, see)
            if not _wants(query.criteria, "true"):
                where.append(sa.false())
            total = registry.count_people(connection, where) - self._unseen(connection, where, see, doubtful)
            people = self._seen_page(connection, query, where, see) if query.limit else []
        page = people[: query.limit]
        cursor = write_cursor(page[-1].id) if len(people) > query.limit > 0 else None
        return PatientPage(tuple(page), (), frozenset(), total, cursor)

    def _seen_page(
        self, connection: sa.Connection, query: PatientQuery, where: Sequence[sa.ColumnElement[bool]], see: Shown
    ) -> list[Person]:
        """One more person than fits, refilled past those who are not seen, so that a page has no gaps."""
        found: list[Person] = []
        after = query.after
        while len(found) <= query.limit:
            rows = registry.search_people(connection, where, after, query.limit + 1)
            found += [person for p in self._people(connection, rows).values() if (person := see(p)) is not None]
            if len(rows) <= query.limit:
                break
            after = rows[-1].id
        return found

    def _unseen(
        self,
        connection: sa.Connection,
        where: Sequence[sa.ColumnElement[bool]],
        see: Shown,
        doubtful: Collection[str],
    ) -> int:
        """How many who meet the criteria are not seen."""
        if not doubtful:
            return 0
        among = [*where, people_table.c.id.in_(registry.people_of_members(doubtful))]
        rows = registry.search_people(connection, among, None, MAX_DOUBTFUL + 1)
        if len(rows) > MAX_DOUBTFUL:
            raise BadRequest("The search is too wide; name more of the patient.", code="too-costly")
        return sum(see(person) is None for person in self._people(connection, rows).values())

    def _search_by_id(
        self,
        connection: sa.Connection,
        query: PatientQuery,
        where: Sequence[sa.ColumnElement[bool]],
        asked: Collection[str],
        see: Shown,
    ) -> PatientPage:
        """`_id`: an id that was merged away is answered with its survivor beside it (ITI-78 case 6)."""
        named = registry.people_by_id(connection, asked)
        current = {i for i, row in named.items() if row.merged_into is None and _wants(query.criteria, "true")}
        replaced = {
            i: row.merged_into for i, row in named.items() if row.merged_into and _wants(query.criteria, "false")
        }
        ids = current | set(replaced.values())
        rows = registry.search_people(connection, [*where, people_table.c.id.in_(ids)], None, len(ids))
        found = [person for p in self._people(connection, rows).values() if (person := see(p)) is not None]
        met = {person.id for person in found}
        total = len(current & met) + sum(s in met for s in replaced.values())
        rest = [person for person in found if query.after is None or person.id > query.after]
        people = {person.id: person for person in rest[: query.limit]}
        cursor = write_cursor(rest[query.limit - 1].id) if 0 < query.limit < len(rest) else None
        return PatientPage(
            people=tuple(people.values()),
            replaced=tuple((i, people[s]) for i, s in replaced.items() if s in people),
            included=frozenset(people.keys() - current),
            total=total,
            cursor=cursor,
        )

    # -- moving

    def _apart(self, connection: sa.Connection, record_id: str, traits: Traits) -> dict[str, str]:
        """Records that a steward keeps apart from this one, with their digests, while its traits are such."""
        kept = decisions.separations_of(connection, [record_id])
        if not kept:
            return {}
        own = identity_digest(traits)
        return dict(s.other(record_id) for s in kept if s.digests[record_id] == own)

    def _expect_apart(
        self, connection: sa.Connection, record_id: str, traits: Traits, apart: Mapping[str, str]
    ) -> None:
        if not self._database.is_sqlite and self._apart(connection, record_id, traits) != apart:
            raise Overtaken

    def _hold(self, connection: sa.Connection, own: Collection[str], decision: MatchDecision) -> None:
        """Lock the people; the one to link to must still have the record that matched. SQLite has one writer anyway."""
        self._lock(connection, own, _linked(decision))
        if decision.person_id is not None and not self._database.is_sqlite:
            self._expect_matched(connection, decision)

    def _expect_matched(self, connection: sa.Connection, decision: MatchDecision) -> None:
        """The record that linked is still the person's: a steward may have split it off meanwhile."""
        held = registry.find_by_id(connection, decision.best.record_id) if decision.best else None
        if held is None or held.record.person_id != decision.person_id:
            raise Overtaken

    def _empty_into(
        self,
        connection: sa.Connection,
        emptied: str,
        record: SourceRecord,
        by: By,
        now: datetime,
        kind: EventKind = EventKind.FEED,
    ) -> str:
        """Redirect a person that `record` was the last active one of to the record's; both are locked.

        Returns the id of the event.
        """
        change = Change(connection, self._index, kind, by, now)
        change.note_move(record, emptied)
        change.empty_into(emptied, record.person_id)
        self._refresh(connection, emptied, now)
        return change.finish().id


def _seer(query: PatientQuery, shown: Shown | None, doubtful: Collection[str]) -> Shown:
    """Somebody who met the criteria, if she still does with what may be known of her."""

    def see(person: Person) -> Person | None:
        if shown is None or not any(record.member_id in doubtful for record in person.records):
            return person
        seen = shown(person)
        return seen if seen is person or (seen is not None and matches(query, seen.resource)) else None

    return see


def _seen(people: Mapping[str, Person], shown: Shown | None) -> tuple[dict[str, Person], set[str]]:
    """People as far as somebody may know them, and the ids of the records left out of what is known."""
    if shown is None:
        return dict(people), set()
    seen = {person_id: shown(person) for person_id, person in people.items()}
    left_out = {i for person_id, person in people.items() for i in _left_out(person, seen[person_id])}
    return {person_id: person for person_id, person in seen.items() if person is not None}, left_out


def _left_out(person: Person, seen: Person | None) -> set[str]:
    kept = {record.id for record in seen.records} if seen is not None else set()
    return {record.id for record in person.records} - kept


@dataclass(frozen=True)
class _Message:
    """One feed message, read once."""

    member_id: str
    identifier: Identifier
    patient: Resource
    traits: Traits
    digest: str
    on_version: bool
    """The member named the version that this replaces."""

    @property
    def by(self) -> By:
        return By(_actor(self.member_id), "the member's data changed")

    @property
    def last_updated(self) -> datetime | None:
        return stamps.last_updated(self.patient)


@dataclass(frozen=True)
class _Merge:
    """One merge message; `patient` is its body, where there is one."""

    member_id: str
    subsumed: Identifier
    survivor: Identifier
    patient: Resource | None

    @property
    def digest(self) -> str:
        return registry.content_hash(self.patient) if self.patient is not None else ""

    @property
    def last_updated(self) -> datetime | None:
        return stamps.last_updated(self.patient or {})


@dataclass(frozen=True)
class _Question:
    """What a steward is to look at: is the record the candidate person?"""

    person_id: str
    kind: TaskKind
    probability: float | None


def _actor(member_id: str) -> str:
    return f"Organization/{member_id}"


def check_identifier(identifier: Identifier) -> None:
    """Raises Unprocessable for one that cannot be kept."""
    for part in (identifier.system, identifier.value):
        if not part.strip() or len(part) > MAX_IDENTIFIER or not _storable(part):
            raise Unprocessable(
                f"An identifier needs a system and a value of at most {MAX_IDENTIFIER} printable characters."
            )


def _storable(*texts: str) -> bool:
    """Free of control characters and lone surrogates, which no identifier has and not every database takes."""
    return not any(_UNSTORABLE.search(text) for text in texts)


def _expect_version(held: Held | None, expected: int | None) -> None:
    if expected is not None and (held is None or held.record.version != expected):
        raise PreconditionFailed("The record is not at the version that If-Match names; read it again.")


def _linked(decision: MatchDecision) -> set[str]:
    return {decision.person_id, *decision.joins} if decision.person_id is not None else set()


def _questions(decision: MatchDecision, person_id: str) -> list[_Question]:
    """The people a steward should compare the record with, given where it now is."""
    doubted = decision.candidates if decision.verdict is Verdict.REVIEW else decision.candidates[:1]
    others = [c for c in doubted if c.person_id != person_id][:MAX_REVIEW_CANDIDATES]
    return [_Question(c.person_id, TaskKind.SAME_PERSON, c.probability) for c in others]


def _grade(probability: float, certain: bool) -> Grade:
    if certain:
        return Grade.CERTAIN
    steps = ((_PROBABLE, Grade.PROBABLE), (_IMPOSSIBLE, Grade.POSSIBLE))
    return next((grade for least, grade in steps if probability >= least), Grade.CERTAINLY_NOT)


def _identifiers_of(patient: Resource) -> list[Identifier]:
    named = [i for i in patient.get("identifier") or [] if isinstance(i, dict) and i.get("system") and i.get("value")]
    pairs = [Identifier(str(i["system"])[:MAX_IDENTIFIER], str(i["value"])[:MAX_IDENTIFIER]) for i in named]
    return [i for i in dict.fromkeys(pairs) if _storable(i.system, i.value)][:MAX_NAMED]


def _plainly_same(old: Resource, new: Resource) -> bool:
    """The same full birth date, and a name in common: enough to resume a deleted record's person."""
    born = old.get("birthDate")
    return (
        isinstance(born, str)
        and len(born) == 10
        and born == new.get("birthDate")
        and bool(_full_names(old) & _full_names(new))
    )


def _full_names(patient: Resource) -> set[tuple[str, str]]:
    names = [name for name in patient.get("name") or [] if isinstance(name, dict)]
    pairs = {
        (normalised(name.get("family") or ""), normalised(next(iter(name.get("given") or []), None) or ""))
        for name in names
    }
    return {(family, given) for family, given in pairs if family and given}


def _chain(connection: sa.Connection, held: Held) -> set[str]:
    """Ids of the records that a record was replaced by, itself included."""
    ids = {held.record.id}
    current: Held | None = held
    while current is not None and current.replaced_by is not None:
        ids.add(current.replaced_by)
        current = registry.find_by_id(connection, current.replaced_by)
    return ids


def _asked_ids(criteria: Sequence[Criterion]) -> set[str] | None:
    """The ids that satisfy every `_id` parameter; None without one."""
    sets = [{unescaped(value) for value in c.values} for c in criteria if c.name == "_id"]
    return set.intersection(*sets) if sets else None


def _wants(criteria: Sequence[Criterion], active: str) -> bool:
    """Whether people whose `active` is this may be shown."""
    return all(active in {split_token(v)[1] for v in c.values} for c in criteria if c.name == "active")
