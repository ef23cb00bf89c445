"""THE DOOR: consent -> labels -> audit -> answer. Patient data leaves the exchange through here or not at all.

The order is the law (L1, L2, L3): ask consent whom to ask, fetch, decide per resource, write the audit entry and wait
until it is durable, and only then hand anything back. Search, read and the console take this one road.

Where consents go by labels, a member's whole chart is read for the labels that its other resources pass on; those
others are decided on by nobody and leave in no form, not even as a number.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NoReturn

from hie.audit.access import read as read_entry
from hie.audit.entry import Receipt
from hie.audit.event import Event, Kind, Outcome, Released, SourceOutcome
from hie.audit.log import AuditLog
from hie.audit.query import AuditQuery, Span
from hie.consent.labels import ValueSets, contained_view, own_labels, value_sets, views
from hie.consent.plain import scope_of
from hie.consent.policy import (
    Decision,
    PersonPolicy,
    Request,
    ResourceView,
    could_release,
    could_withhold,
    decide,
    reads_labels,
    restricts,
)
from hie.consent.service import ConsentService
from hie.core import fhir
from hie.core.caller import CHART_ROLES, Caller, Role
from hie.core.clock import Clock
from hie.core.errors import Forbidden, HieError, NotFound, ServiceUnavailable
from hie.core.fhir import Resource
from hie.gateway import trace
from hie.gateway.directory import Directory, Member
from hie.gateway.federation import Federation, Question, SourceAnswer, background_of, query_of
from hie.gateway.gateway_ids import GatewayIds, LocalId
from hie.gateway.governance import Governance
from hie.gateway.notices import Notices
from hie.gateway.pace import Pace
from hie.gateway.part2 import NOTICE, add_notice
from hie.gateway.portal import Portal
from hie.gateway.preview import Change, Preview, Recoded, Recoding, Somebody, SourcePreview, by_type, recoded
from hie.gateway.redaction import PUBLIC_TYPES, redact
from hie.gateway.replay import MOST_DISCLOSURES, Replay, replay
from hie.gateway.rewriting import Origin, finish, local_patient_id, references, rewrite
from hie.gateway.transport import Transport
from hie.mpi.identity import Candidate, Identifier, IdentityService, Person, SourceRecord

SOURCE_STATUS = "/CodeSystem/source-status"

_ISSUE_CODE = {
    "timeout": "timeout",
    "unreachable": "transient",
    "open-circuit": "transient",
    "error": "exception",
    "invalid": "exception",
    "truncated": "incomplete",
}
_SENTENCE = {
    "timeout": "did not answer in time",
    "unreachable": "could not be reached",
    "open-circuit": "was not asked, because it has not been answering",
    "error": "answered with an error",
    "invalid": "gave an answer that could not be used in full",
    "truncated": "gave only a part of what it holds",
}
_NOBODY_ASKED = "No organization could be asked for this patient's records. This is not an empty record."
_NOT_FOUND = "There is no such resource."


class SourcesFailed(HieError):
    """No source could be read, so there is no answer: 504 when all timed out, else 502 (contract section 3)."""

    def __init__(self, issues: Sequence[Resource], *, all_timed_out: bool) -> None:
        super().__init__(
            "No organization that knows this patient answered. This is not an empty record.",
            code="timeout" if all_timed_out else "transient",
            status=504 if all_timed_out else 502,
        )
        self.issues = list(issues)


@dataclass(frozen=True)
class SourceStatus:
    """How one asked organization did, for one line on a page. `status` is `ok` or a source-status code.

    `count` is what was released of what it gave; `gave`, for the audit alone, is all of what was asked for.
    """

    member_id: str
    member_name: str
    status: str
    elapsed_ms: float
    count: int
    gave: int = 0


@dataclass(frozen=True)
class ChartEntry:
    """One released resource, in the exchange's terms."""

    resource: Resource
    member_id: str
    member_name: str
    sha256: str
    labels: tuple[str, ...]
    decision: Decision
    local_patient: str = ""
    """The member's own id of the patient."""


@dataclass(frozen=True)
class ChartAnswer:
    """What was released of a person, from whom, and what is missing."""

    person: Person
    entries: tuple[ChartEntry, ...]
    sources: tuple[SourceStatus, ...]
    restricted: bool
    break_glass_open: bool
    issues: tuple[Resource, ...]
    """OperationOutcome issues: one per source that fell short, and the notice that records may be withheld."""
    receipts: tuple[Receipt, ...]
    """Of its entry in the disclosure log."""

    @property
    def complete(self) -> bool:
        """Whether every organization that was asked answered in full."""
        return all(source.status == "ok" for source in self.sources)

    @property
    def under_part2(self) -> bool:
        """Whether records under 42 CFR Part 2 were released, whose notice must go with them."""
        return any(NOTICE in entry.decision.obligations for entry in self.entries)

    @property
    def notices(self) -> tuple[str, ...]:
        """The sentences that go with the answer and are not about a failed source."""
        return tuple(i["diagnostics"] for i in self.issues if i["code"] == "suppressed")


@dataclass(frozen=True)
class ReadAnswer:
    """One resource that was released, and the receipt of its entry in the disclosure log."""

    resource: Resource
    receipts: tuple[Receipt, ...]


Keep = Callable[[Resource], bool]
Page = Callable[[list[ChartEntry]], list[ChartEntry]]


class Release:
    """The one door."""

    def __init__(
        self,
        *,
        fhir_base: str,
        query_deadline: float,
        clock: Clock,
        directory: Directory,
        identity: IdentityService,
        consents: ConsentService,
        portal: Portal,
        notices: Notices,
        audit: AuditLog,
        transport: Transport,
        gateway_ids: GatewayIds,
        codes: Callable[[], ValueSets] = value_sets,
    ) -> None:
        """`query_deadline` in seconds, for the whole fan-out; `codes` gives the value sets in force."""
        self._fhir_base = fhir_base
        self._query_deadline = query_deadline
        self._clock = clock
        self._directory = directory
        self._identity = identity
        self._consents = consents
        self._audit = audit
        self._transport = transport
        self._federation = Federation(directory, transport)
        self._ids = gateway_ids
        self._notices = notices
        self._portal = portal
        self._codes = codes
        self._governance = Governance(
            directory=directory, identity=identity, consents=consents, portal=portal, clock=clock
        )
        self._pace = Pace(gateway_ids.key)

    def chart(
        self,
        caller: Caller,
        who: str | Identifier,
        types: Sequence[str],
        *,
        query: str,
        request_id: str,
        keep: Keep = lambda _resource: True,
        page: Page = lambda entries: entries,
        with_patient: bool = False,
    ) -> ChartAnswer:
        """Everything of `types` that may be released of a person to this caller.

        `who` is a person id, or an identifier that a member gave her.
        `keep` is the search's filter and `page` its page, both over what is released, so that nothing withheld can be
        counted or probed for. `with_patient`: the caller shows the Patient too. Raises Forbidden, NotFound,
        SourcesFailed, AuditUnavailable; each attempt is audited.
        """
        deadline_at = time.monotonic() + self._query_deadline
        attempt = _Attempt(self._audit, caller, query, request_id)
        self._check_role(attempt, types, "s")
        person = self._find(caller, who)
        if person is None:
            attempt.refuse(NotFound("The exchange knows no such person."))
        policy, request = self._governed(attempt, person)
        answers = self._federation.ask(
            person,
            types,
            lambda member_id: could_release(policy, request, member_id),
            lambda member_id: reads_labels(policy, request, member_id),
            deadline_at=deadline_at,
            request_id=request_id,
        )
        sources = _statuses(answers)
        closed = trace.not_asked((record.member_id for record in person.records), policy, request)
        issues = self._issues(sources, policy, caller) if types else ()
        asked = [answer for answer in answers if not answer.background]
        if asked and all(answer.useless for answer in asked):
            timed_out = all(answer.failure and answer.failure.status == "timeout" for answer in asked)
            attempt.refuse(SourcesFailed(issues, all_timed_out=timed_out), person.id, sources, steps=closed)
        entries, denials = self._decide(answers, policy, request)
        released = page([entry for entry in entries if keep(entry.resource)])
        patient = person.resource if with_patient else None
        self._tell_custodians(attempt, released)
        steps = (*trace.decided([*(entry.decision for entry in released), *denials], policy), *closed)
        receipts = self._audit.record(attempt.disclosure(person.id, sources, released, len(denials), steps, patient))
        return ChartAnswer(
            person=person,
            entries=tuple(released),
            sources=self._shown(sources, released),
            restricted=restricts(policy),
            break_glass_open=self._break_glass_open(caller),
            issues=issues,
            receipts=receipts,
        )

    def read(self, caller: Caller, resource_type: str, gateway_id: str, *, query: str, request_id: str) -> ReadAnswer:
        """One resource by its gateway id.

        What is withheld and what never was are the same NotFound, after about the same time. Raises also SourcesFailed
        and AuditUnavailable.
        """
        started = time.monotonic()
        attempt = _Attempt(self._audit, caller, query, request_id)
        self._check_role(attempt, [resource_type], "r")
        reading = _Reading(attempt, resource_type, gateway_id, started, started + self._query_deadline)
        known = self._ids.find(resource_type, gateway_id)
        member = self._directory.member(known.local.member_id) if known else None
        if known is None or member is None or member.endpoint is None:
            self._refuse_unasked(reading)
        expected = self._record(member, known.patient)
        record = expected or self._belongs_to(reading, member, known.local)
        person, policy, request, answers = self._ask_one(reading, member, record, known.local)
        if expected and answers[0].useless and answers[0].failure and answers[0].failure.status == "invalid":
            # It was met in one chart and belongs to another.
            record = self._belongs_to(reading, member, known.local)
            person, policy, request, answers = self._ask_one(reading, member, record, known.local)
        sources = _statuses(answers)
        if answers[0].useless:
            self._refuse_failed(attempt, member, answers[0])
        entries, denials = self._decide(answers, policy, request)
        self._pace.observe(member.id, time.monotonic() - started)
        if not entries:
            attempt.refuse(NotFound(_NOT_FOUND), person.id, withheld=len(denials), steps=trace.decided(denials, policy))
        self._tell_custodians(attempt, entries)
        steps = trace.decided([*(entry.decision for entry in entries), *denials], policy)
        receipts = self._audit.record(attempt.disclosure(person.id, sources, entries, len(denials), steps))
        return ReadAnswer(entries[0].resource, receipts)

    def preview(
        self,
        caller: Caller,
        person_id: str,
        somebody: Somebody,
        types: Sequence[str],
        *,
        change: Change | None = None,
        query: str,
        request_id: str,
    ) -> Preview:
        """What `somebody` would be given of a person, and why; the caller has been found to be entitled to know.

        `change` makes the policy that of "what if". Nothing is released; the question is audited. Raises NotFound,
        ServiceUnavailable, AuditUnavailable.
        """
        supposed = self._suppose(caller, person_id, somebody, types, change, query, request_id)
        attempt, person, policy, answers = supposed.attempt, supposed.person, supposed.policy, supposed.answers
        sets = self._codes()
        decided = {
            own[0].member.id: [
                (d.view.type, d.decision) for d in self._decide_member(own, policy, supposed.request, sets)
            ]
            for own in _by_member(answers)
        }
        asked = {source.member_id: source for source in _statuses(answers)}
        sources = [
            SourcePreview(
                member.id,
                member.name,
                member.id in asked,
                asked[member.id].status if member.id in asked else "ok",
                by_type(decided.get(member.id, ())),
            )
            for member in self._directory.members()
            if any(record.member_id == member.id for record in person.records)
        ]
        self._audit.record(
            attempt.explained(person.id, supposed.steps([d for own in decided.values() for _, d in own]))
        )
        return Preview(person.id, tuple(sources), restricts(policy))

    def recode(
        self,
        caller: Caller,
        person_id: str,
        somebody: Somebody,
        types: Sequence[str],
        sets: ValueSets,
        *,
        query: str,
        request_id: str,
    ) -> Recoding:
        """What other value sets would newly hide from `somebody`, or reveal, of a person: numbers, no contents.

        The members are asked once and each resource is decided twice. Raises as `preview` does, and is audited alike.
        """
        supposed = self._suppose(caller, person_id, somebody, types, None, query, request_id)
        in_force = self._codes()
        found: list[Recoded] = []
        decisions: list[Decision] = []
        for own in _by_member(supposed.answers):
            before = self._decide_member(own, supposed.policy, supposed.request, in_force)
            after = self._decide_member(own, supposed.policy, supposed.request, sets)
            decisions += [item.decision for item in after]
            pairs = [(b.view.type, b.decision, a.decision) for b, a in zip(before, after, strict=True)]
            found += recoded(own[0].member.id, own[0].member.name, pairs)
        self._audit.record(supposed.attempt.explained(supposed.person.id, supposed.steps(decisions)))
        short = {answer.member.name for answer in supposed.answers if answer.failure}
        return Recoding(supposed.person.id, tuple(found), tuple(sorted(short)))

    def replay(
        self, caller: Caller, person_id: str, change: Change, since: datetime | None, *, query: str, request_id: str
    ) -> Replay:
        """What the person's past disclosures would be under the changed policy, asked again as if today.

        For somebody entitled to know; audited like a preview. Raises NotFound, ServiceUnavailable, AuditUnavailable.
        """
        deadline_at = time.monotonic() + self._query_deadline
        attempt = _Attempt(self._audit, caller, query, request_id)
        person = self._known(attempt, person_id)
        policy, request = self._governed(attempt, person)
        answers = self._federation.ask(
            person,
            fhir.CLINICAL_TYPES,
            lambda _member_id: True,
            lambda _member_id: False,
            deadline_at=deadline_at,
            request_id=request_id,
        )
        sets = self._codes()
        held = [item for own in _by_member(answers) for item in self._decide_member(own, policy, request, sets)]
        views_now = {(d.leaving["resourceType"], d.leaving["id"]): d.view for d in held}
        asked = AuditQuery(
            persons=(self._identity.person_ids(person.id),),
            kinds=((Kind.DISCLOSURE.value,),),
            dates=(Span(start=since),) if since else (),
            limit=MOST_DISCLOSURES,
        )
        page = self._audit.search(asked)
        changed = change(policy)
        found = tuple(
            replay(
                access,
                changed,
                views_now,
                self._holder,
                sorted(self._portal.own_people(access.user_id))
                if access.role == Role.PATIENT and access.user_id
                else [],
                self._clock(),
            )
            for access in (read_entry(entry) for entry in page.entries if not entry.archived)
        )
        self._audit.record(attempt.explained(person.id, ()))
        short = {answer.member.name for answer in answers if answer.failure}
        return Replay(person.id, found, tuple(sorted(short)), page.total - len(page.entries))

    def _holder(self, released: Released) -> str | None:
        known = self._ids.find(released.type, released.id)
        return known.local.member_id if known else None

    def _suppose(
        self,
        caller: Caller,
        person_id: str,
        somebody: Somebody,
        types: Sequence[str],
        change: Change | None,
        query: str,
        request_id: str,
    ) -> _Supposed:
        """Ask the members as for `somebody`, of whom nothing is known but what is supposed."""
        deadline_at = time.monotonic() + self._query_deadline
        attempt = _Attempt(self._audit, caller, query, request_id)
        person = self._known(attempt, person_id)
        policy, _ = self._governed(attempt, person)
        policy = change(policy) if change else policy
        request = somebody.request(self._clock)
        answers = self._federation.ask(
            person,
            types,
            lambda member_id: could_release(policy, request, member_id),
            lambda member_id: reads_labels(policy, request, member_id),
            deadline_at=deadline_at,
            request_id=request_id,
        )
        return _Supposed(attempt, person, policy, request, answers)

    def policy_for(self, caller: Caller, person: Person, *, query: str, request_id: str) -> PersonPolicy:
        """What governs a person, for somebody entitled to know; audited like a preview."""
        attempt = _Attempt(self._audit, caller, query, request_id)
        policy, _ = self._governed(attempt, person)
        self._audit.record(attempt.explained(person.id, ()))
        return policy

    def close(self) -> None:
        """Close the connections to members of this process."""
        self._transport.close()

    def lookup(
        self, caller: Caller, patient: Resource, limit: int, *, request_id: str, years: int = 0
    ) -> list[Candidate]:
        """People who may be the described patient, best first, for a clinician's search; audited per person shown.

        The birth year may be off by `years`.
        """
        attempt = _Attempt(self._audit, caller, "Patient lookup", request_id)
        if caller.role not in (Role.CLINICIAN, Role.MEMBER, Role.DATA_STEWARD, Role.PRIVACY_OFFICER):
            attempt.refuse(Forbidden(f"The role {caller.role.value} may not search for patients."))
        found = self._candidates(caller, patient, limit, years)
        self._audit.record(*(attempt.search(c.person.id) for c in found)) if found else self._audit.record(
            attempt.search(None)
        )
        return found

    # -- rules and effects of the road, in its order

    def _check_role(self, attempt: _Attempt, types: Sequence[str], action: str) -> None:
        try:
            attempt.caller.require_role(*CHART_ROLES)
            for resource_type in types:
                attempt.caller.require(resource_type, action)
        except Forbidden as refusal:
            attempt.refuse(refusal)

    def _find(self, caller: Caller, who: str | Identifier) -> Person | None:
        """The person as far as the caller may know; a record that it may not know of leads to nobody."""
        if isinstance(who, str):
            return self._governance.shown(caller, self._identity.person(who))
        record = self._identity.source_record(who)
        person = self._governance.shown(caller, self._identity.person(record.person_id)) if record else None
        if record is None or person is None or all(held.member_id != record.member_id for held in person.records):
            return None
        return person

    def _known(self, attempt: _Attempt, person_id: str) -> Person:
        """The person whole, for somebody entitled to know."""
        person = self._identity.person(person_id)
        if person is None:
            attempt.refuse(NotFound("The exchange knows no such person."))
        return person

    def _candidates(self, caller: Caller, patient: Resource, limit: int, years: int) -> list[Candidate]:
        return self._identity.candidates(
            patient, limit, years=years, shown=lambda person: self._governance.shown(caller, person)
        )

    def _governed(self, attempt: _Attempt, person: Person) -> tuple[PersonPolicy, Request]:
        request = self._governance.request(attempt.caller)
        try:
            return self._governance.policy(person, request), request
        except ServiceUnavailable as unreadable:
            attempt.refuse(unreadable, person.id)

    # -- one resource

    def _record(self, member: Member, local_patient: str | None) -> SourceRecord | None:
        if local_patient is None:
            return None
        return self._identity.source_record(Identifier(member.patient_id_system, local_patient))

    def _ask_one(
        self, reading: _Reading, member: Member, record: SourceRecord, local: LocalId
    ) -> tuple[Person, PersonPolicy, Request, list[SourceAnswer]]:
        """The resource, with the rest of its chart where labels decide; consent is asked before the member is."""
        person = self._identity.person(record.person_id)
        if person is None:
            self._refuse_unasked(reading)
        policy, request = self._governed(reading.attempt, person)
        if not could_release(policy, request, member.id):
            self._refuse_unasked(reading, person.id, trace.not_asked([member.id], policy, request))
        questions = [Question(member, record, local.type, local.id)]
        if reads_labels(policy, request, member.id):
            questions += [Question(member, record, kind, background=True) for kind in background_of(())]
        answers = self._federation.put(questions, reading.deadline_at, reading.attempt.request_id)
        first, *others = answers
        if not first.resources and first.failure is None:
            self._pace.observe(member.id, time.monotonic() - reading.started)
            reading.attempt.refuse(NotFound(_NOT_FOUND), person.id)
        others = [
            replace(o, resources=tuple(r for r in o.resources if _local(r) != (local.type, local.id))) for o in others
        ]
        return person, policy, request, [first, *others]

    def _belongs_to(self, reading: _Reading, member: Member, local: LocalId) -> SourceRecord:
        """The source record in whose chart the resource is, by its own word."""
        query = query_of(member, f"{local.type}/{local.id}", (), reading.attempt.request_id)
        fetched = self._transport.read(query, reading.deadline_at)
        if fetched.failure is not None and not fetched.resources and not member.part2:
            status = SourceStatus(member.id, member.name, fetched.failure.status, fetched.elapsed_ms, 0)
            self._refuse_sources(reading.attempt, status)
        named = [local_patient_id(r, query.base_url, member.patient_id_system) for r in fetched.resources]
        record = next((found for name in named if (found := self._record(member, name)) is not None), None)
        if record is None:
            reading.attempt.refuse(NotFound(_NOT_FOUND))
        return record

    def _refuse_unasked(
        self, reading: _Reading, person_id: str | None = None, steps: Sequence[trace.Step] = ()
    ) -> NoReturn:
        """There is nothing for this caller, and no member was asked: not sooner than if one had been."""
        self._pace.wait(reading.gateway_id, reading.started, reading.deadline_at)
        reading.attempt.refuse(NotFound(_NOT_FOUND), person_id, steps=steps)

    def _refuse_failed(self, attempt: _Attempt, member: Member, answer: SourceAnswer) -> NoReturn:
        status = answer.failure.status if answer.failure else "invalid"
        self._refuse_sources(attempt, SourceStatus(member.id, member.name, status, answer.elapsed_ms, 0))

    def _refuse_sources(self, attempt: _Attempt, source: SourceStatus) -> NoReturn:
        failed = SourcesFailed([self._source_issue(source)], all_timed_out=source.status == "timeout")
        attempt.refuse(failed, None, [source])

    # -- what leaves

    def _decide(
        self, answers: Sequence[SourceAnswer], policy: PersonPolicy, request: Request
    ) -> tuple[list[ChartEntry], list[Decision]]:
        """Released resources in the exchange's terms, and the decisions that withheld the others."""
        sets = self._codes()
        decided = [
            item for member in _by_member(answers) for item in self._decide_member(member, policy, request, sets)
        ]
        permitted = [item for item in decided if item.decision.permit]
        local_ids = {
            LocalId(d.member.id, d.original["resourceType"], d.original["id"]): d.origin.local_patient
            for d in permitted
        }
        for item in permitted:
            for kind, local_id in references(item.original, item.origin.base_url):
                local_ids.setdefault(LocalId(item.member.id, kind, local_id), item.origin.local_patient)
        self._ids.register(local_ids)
        released = {f"{d.leaving['resourceType']}/{d.leaving['id']}" for d in permitted}
        entries = [item.entry(released, self._fhir_base, policy) for item in permitted]
        entries.sort(key=lambda entry: (entry.member_id, entry.resource["resourceType"], entry.resource["id"]))
        return entries, [item.decision for item in decided if not item.decision.permit]

    def _decide_member(
        self, answers: Sequence[SourceAnswer], policy: PersonPolicy, request: Request, sets: ValueSets
    ) -> list[_Decided]:
        """One member's resources, all types together: labels follow references inside one source's chart."""
        member = answers[0].member
        source = f"{self._fhir_base}/Organization/{member.id}"
        held = [(answer, resource) for answer in answers for resource in answer.resources]
        leaving = [
            rewrite(resource, answer.origin, source, lambda kind, i: self._ids.of(LocalId(member.id, kind, i)))
            for answer, resource in held
        ]
        whole = all(answer.failure is None for answer in answers) or not reads_labels(policy, request, member.id)
        guarded = could_withhold(policy, request, member.id)
        return [
            _Decided(
                member,
                answer.origin,
                original,
                resource,
                view,
                decide(policy, request, view),
                _denied_parts(resource, view, policy, request, sets),
                guarded,
                sets,
            )
            for (answer, original), resource, view in zip(
                held, leaving, views(leaving, member.id, complete=whole, sets=sets), strict=True
            )
            if not answer.background
        ]

    def _tell_custodians(self, attempt: _Attempt, released: Sequence[ChartEntry]) -> None:
        """Break-glass: each member whose records leave because the glass was broken is told before they do."""
        broken = Counter((e.member_id, e.local_patient) for e in released if e.decision.break_glass)
        if broken:
            self._notices.glass_broken(attempt.caller, broken, attempt.request_id)

    def _shown(self, sources: Sequence[SourceStatus], released: Sequence[ChartEntry]) -> tuple[SourceStatus, ...]:
        """The sources as a reader may see them: with what was released of each. A Part 2 member of which nothing
        was released is not named, but where it failed to answer."""
        counted = Counter(entry.member_id for entry in released)
        part2 = {member.id for member in self._directory.members() if member.part2}
        return tuple(
            replace(source, count=counted[source.member_id], gave=0)
            for source in sources
            if counted[source.member_id] or source.status != "ok" or source.member_id not in part2
        )

    def _issues(self, sources: Sequence[SourceStatus], policy: PersonPolicy, caller: Caller) -> tuple[Resource, ...]:
        issues = [self._source_issue(source) for source in sources if source.status != "ok"]
        if restricts(policy):
            issues.append(_withheld_notice(self._break_glass_open(caller)))
        elif not sources:
            # Silence must not read as "no allergies" (L3).
            issues.append(fhir.issue("information", "suppressed", _NOBODY_ASKED))
        return tuple(issues)

    def _source_issue(self, source: SourceStatus) -> Resource:
        sentence = f"{source.member_name} ({source.member_id}) {_SENTENCE[source.status]}."
        return {
            "severity": "warning",
            "code": _ISSUE_CODE[source.status],
            "details": {
                "coding": [{"system": self._fhir_base + SOURCE_STATUS, "code": source.status}],
                "text": sentence,
            },
            "diagnostics": sentence,
        }

    def _break_glass_open(self, caller: Caller) -> bool:
        member = self._directory.member(caller.organization)
        return (
            not caller.break_glass
            and caller.role in (Role.MEMBER, Role.CLINICIAN)
            and member is not None
            and "BTG" in member.purposes
        )


@dataclass(frozen=True)
class _Supposed:
    """The answers of the members to a question that is only supposed, and what they are decided by."""

    attempt: _Attempt
    person: Person
    policy: PersonPolicy
    request: Request
    answers: Sequence[SourceAnswer]

    def steps(self, decisions: Sequence[Decision]) -> tuple[trace.Step, ...]:
        """How it was decided, with the members that were not asked."""
        closed = trace.not_asked((record.member_id for record in self.person.records), self.policy, self.request)
        return (*trace.decided(decisions, self.policy), *closed)


@dataclass(frozen=True)
class _Reading:
    """One read while it runs."""

    attempt: _Attempt
    type: str
    gateway_id: str
    started: float
    deadline_at: float


@dataclass(frozen=True)
class _Decided:
    """One resource of one member with what was decided about it."""

    member: Member
    origin: Origin
    original: Resource
    leaving: Resource
    view: ResourceView
    decision: Decision
    denied_parts: Collection[int]
    """Places of its contained resources that may not leave with it."""
    guarded: bool
    """Something that the member holds could be withheld: what may speak of all of it stays behind."""
    sets: ValueSets

    def entry(self, released: Collection[str], fhir_base: str, policy: PersonPolicy) -> ChartEntry:
        """The resource as it leaves; `released` names everything in the same answer ("Type/gateway id").

        Its labels are what it says itself; those that came from others decided, and would tell of them.
        """
        redact(self.leaving, self.denied_parts, guarded=self.guarded)
        labels = own_labels(self.leaving, sets=self.sets) if self.denied_parts else self.view.labels - self.view.reached
        finish(self.leaving, released, labels)
        if NOTICE in self.decision.obligations:
            add_notice(self.leaving, fhir_base, self.decision.consent, scope_of(policy, self.decision))
        return ChartEntry(
            resource=self.leaving,
            member_id=self.member.id,
            member_name=self.member.name,
            sha256=_sha256(self.leaving),
            labels=tuple(sorted(code for _, code in labels)),
            decision=self.decision,
            local_patient=self.origin.local_patient,
        )


def _denied_parts(
    resource: Resource, view: ResourceView, policy: PersonPolicy, request: Request, sets: ValueSets
) -> frozenset[int]:
    """The places in `contained` of what is denied; types that say nothing of a patient are not asked about."""
    parts = resource.get("contained")
    if not isinstance(parts, list):
        return frozenset()
    return frozenset(
        place
        for place, part in enumerate(parts)
        if isinstance(part, dict)
        and part.get("resourceType") not in PUBLIC_TYPES
        and not decide(policy, request, contained_view(part, view, sets=sets)).permit
    )


def _local(resource: Resource) -> tuple[str, str]:
    return resource["resourceType"], str(resource["id"])


def _by_member(answers: Sequence[SourceAnswer]) -> list[list[SourceAnswer]]:
    groups: dict[str, list[SourceAnswer]] = {}
    for answer in answers:
        groups.setdefault(answer.member.id, []).append(answer)
    return list(groups.values())


def _withheld_notice(break_glass_open: bool) -> Resource:
    how = (
        "In an emergency you may break the glass, with a reason."
        if break_glass_open
        else "Break-glass is not open to this request."
    )
    return fhir.issue(
        "information", "suppressed", f"Records may be withheld under this patient's privacy choices. {how}"
    )


def _statuses(answers: Sequence[SourceAnswer]) -> tuple[SourceStatus, ...]:
    """One line per member: its worst failure over the questions put to it."""
    return tuple(
        SourceStatus(
            member_id=own[0].member.id,
            member_name=own[0].member.name,
            status=next((answer.failure.status for answer in own if answer.failure), "ok"),
            elapsed_ms=max(answer.elapsed_ms for answer in own),
            count=0,
            gave=sum(len(answer.resources) for answer in own if not answer.background),
        )
        for own in _by_member(answers)
    )


@dataclass(frozen=True)
class _Attempt:
    """One attempt to see something, and its audit entries."""

    audit: AuditLog
    caller: Caller
    query: str
    request_id: str

    def refuse(
        self,
        error: HieError,
        person_id: str | None = None,
        sources: Sequence[SourceStatus] = (),
        *,
        withheld: int = 0,
        steps: Sequence[trace.Step] = (),
    ) -> NoReturn:
        """Record the refused or failed attempt, then raise `error`."""
        failed = isinstance(error, SourcesFailed | ServiceUnavailable)
        event = Event(
            kind=Kind.FAILURE if failed else Kind.DENIAL,
            outcome=Outcome.SERIOUS if failed else Outcome.MINOR,
            action="R",
            caller=self.caller,
            person_id=person_id,
            query=self.query,
            request_id=self.request_id,
            description=error.message,
            sources=_source_outcomes(sources),
            decisions=tuple(steps),
            withheld=withheld,
        )
        self.audit.record(event)
        error.audited = True
        raise error

    def disclosure(
        self,
        person_id: str,
        sources: Sequence[SourceStatus],
        released: Sequence[ChartEntry],
        withheld: int,
        steps: tuple[trace.Step, ...],
        patient: Resource | None = None,
    ) -> Event:
        nothing_may_leave = not released and not sources and patient is None
        incomplete = any(source.status != "ok" for source in sources)
        return Event(
            kind=Kind.DENIAL if nothing_may_leave else Kind.DISCLOSURE,
            outcome=Outcome.MINOR if incomplete or nothing_may_leave else Outcome.SUCCESS,
            action="R",
            caller=self.caller,
            person_id=person_id,
            query=self.query,
            request_id=self.request_id,
            description=f"{len(released)} resources released, {withheld} withheld{_told(released)}",
            sources=_source_outcomes(sources),
            released=tuple(_manifest(patient, released)),
            decisions=steps,
            withheld=withheld,
        )

    def explained(self, person_id: str, steps: tuple[trace.Step, ...]) -> Event:
        return replace(self._event(Kind.CONSENT, person_id, "Decision explained; nothing released"), decisions=steps)

    def search(self, person_id: str | None) -> Event:
        return self._event(Kind.SEARCH, person_id, "candidate shown" if person_id else "no candidates")

    def _event(self, kind: Kind, person_id: str | None, description: str) -> Event:
        return Event(
            kind=kind,
            outcome=Outcome.SUCCESS,
            action="E",
            caller=self.caller,
            person_id=person_id,
            query=self.query,
            request_id=self.request_id,
            description=description,
        )


def _told(released: Sequence[ChartEntry]) -> str:
    custodians = sorted({entry.member_id for entry in released if entry.decision.break_glass})
    return f"; glass broken, told: {', '.join(custodians)}" if custodians else ""


def _manifest(patient: Resource | None, released: Sequence[ChartEntry]) -> Iterator[Released]:
    if patient is not None:
        yield Released("Patient", patient["id"], _sha256(patient), ())
    for entry in released:
        yield Released(entry.resource["resourceType"], entry.resource["id"], entry.sha256, entry.labels)


def _sha256(resource: Resource) -> str:
    return hashlib.sha256(fhir.to_bytes(resource)).hexdigest()


def _source_outcomes(sources: Sequence[SourceStatus]) -> tuple[SourceOutcome, ...]:
    return tuple(SourceOutcome(source.member_id, source.status, source.gave) for source in sources)
