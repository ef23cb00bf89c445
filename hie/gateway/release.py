"""THE DOOR: consent -> labels -> audit -> answer. Patient data leaves the exchange through here or not at all.

The order is the law (L1, L2, L3): ask consent whom to ask, fetch, decide per resource, write the audit entry and wait
until it is durable, and only then hand anything back. Search, read and the console take this one road.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NoReturn

from hie.audit.event import Event, Kind, Outcome, Released, SourceOutcome
from hie.audit.log import AuditLog
from hie.consent.labels import views
from hie.consent.policy import (
    Decision,
    PersonPolicy,
    Request,
    ResourceView,
    could_release,
    decide,
    restricts,
)
from hie.consent.service import ConsentService
from hie.core import fhir
from hie.core.caller import CHART_ROLES, Caller, Role
from hie.core.clock import Clock
from hie.core.errors import Forbidden, HieError, NotFound
from hie.core.fhir import Resource
from hie.gateway.directory import Directory, Member
from hie.gateway.federation import Federation, SourceAnswer, checked, query_of
from hie.gateway.gateway_ids import GatewayIds, LocalId
from hie.gateway.rewriting import finish, local_patient_id, references, rewrite
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
    """How one asked organization did: `status` is `ok` or a source-status code.

    `count` is of what it gave, released or not: for the log, never for the caller (law L2).
    """

    member_id: str
    member_name: str
    status: str
    elapsed_ms: float
    count: int


@dataclass(frozen=True)
class ChartEntry:
    """One released resource, in the exchange's terms."""

    resource: Resource
    member_id: str
    member_name: str
    sha256: str
    labels: tuple[str, ...]
    decision: Decision


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

    @property
    def complete(self) -> bool:
        """Whether every organization that was asked answered in full."""
        return all(source.status == "ok" for source in self.sources)

    @property
    def notices(self) -> tuple[str, ...]:
        """The sentences that go with the answer and are not about a failed source."""
        return tuple(i["diagnostics"] for i in self.issues if i["code"] == "suppressed")


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
        audit: AuditLog,
        transport: Transport,
        gateway_ids: GatewayIds,
    ) -> None:
        """`query_deadline` in seconds, for the whole fan-out."""
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
    ) -> ChartAnswer:
        """Everything of `types` that may be released of a person to this caller.

        `who` is a person id, or an identifier that a member gave her.
        `keep` is the search's filter and `page` its page, both over what is released, so that nothing withheld can be
        counted or probed for. Raises Forbidden, NotFound, SourcesFailed, AuditUnavailable; each attempt is audited.
        """
        deadline_at = time.monotonic() + self._query_deadline
        attempt = _Attempt(self._audit, caller, query, request_id)
        self._check_role(attempt, types, "s")
        person = self._find(who)
        if person is None:
            attempt.refuse(NotFound("The exchange knows no such person."))
        policy, request = self._policy(caller, person)
        answers = self._federation.ask(
            person,
            types,
            lambda member_id: could_release(policy, request, member_id),
            deadline_at=deadline_at,
            request_id=request_id,
        )
        sources = _statuses(answers)
        issues = self._issues(sources, policy, caller)
        if answers and all(answer.useless for answer in answers):
            timed_out = all(answer.failure and answer.failure.status == "timeout" for answer in answers)
            attempt.refuse(SourcesFailed(issues, all_timed_out=timed_out), person.id, sources)
        entries, denials = self._decide(answers, policy, request)
        released = page([entry for entry in entries if keep(entry.resource)])
        self._audit.record(attempt.disclosure(person.id, sources, released, denials))
        return ChartAnswer(
            person=person,
            entries=tuple(released),
            sources=sources,
            restricted=restricts(policy),
            break_glass_open=self._break_glass_open(caller),
            issues=issues,
        )

    def read(self, caller: Caller, resource_type: str, gateway_id: str, *, query: str, request_id: str) -> Resource:
        """One resource by its gateway id.

        What is withheld and what never was are the same NotFound. Raises also SourcesFailed and AuditUnavailable.
        """
        deadline_at = time.monotonic() + self._query_deadline
        attempt = _Attempt(self._audit, caller, query, request_id)
        self._check_role(attempt, [resource_type], "r")
        local = self._ids.find(resource_type, gateway_id)
        member = self._directory.member(local.member_id) if local else None
        if local is None or member is None or member.endpoint is None:
            attempt.refuse(NotFound(_NOT_FOUND))
        fetched = self._transport.read(query_of(member, f"{local.type}/{local.id}", (), request_id), deadline_at)
        record = self._record_of(fetched.resources, member.endpoint.url, member.patient_id_system)
        if fetched.failure is None and record is None:
            attempt.refuse(NotFound(_NOT_FOUND))
        if record is None:
            status = fetched.failure.status if fetched.failure else "invalid"
            sources = (SourceStatus(member.id, member.name, status, fetched.elapsed_ms, 0),)
            issues = [self._source_issue(source) for source in sources]
            attempt.refuse(SourcesFailed(issues, all_timed_out=status == "timeout"), None, sources)
        person = self._identity.person(record.person_id)
        if person is None:
            attempt.refuse(NotFound(_NOT_FOUND))
        answer = checked(member, record, resource_type, fetched)
        policy, request = self._policy(caller, person)
        entries, denials = self._decide([answer], policy, request)
        wanted = [entry for entry in entries if entry.resource["id"] == gateway_id]
        if not wanted:
            attempt.refuse(NotFound(_NOT_FOUND), person.id, denials=denials)
        self._audit.record(attempt.disclosure(person.id, _statuses([answer]), wanted, denials))
        return wanted[0].resource

    def lookup(
        self, caller: Caller, patient: Resource, limit: int, *, request_id: str, years: int = 0
    ) -> list[Candidate]:
        """People who may be the described patient, best first, for a clinician's search; audited per person shown.

        The birth year may be off by `years`.
        """
        attempt = _Attempt(self._audit, caller, "Patient lookup", request_id)
        if caller.role not in (Role.CLINICIAN, Role.MEMBER, Role.DATA_STEWARD):
            attempt.refuse(Forbidden(f"The role {caller.role.value} may not search for patients."))
        found = self._identity.candidates(patient, limit, years=years)
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

    def _find(self, who: str | Identifier) -> Person | None:
        if isinstance(who, str):
            return self._identity.person(who)
        record = self._identity.source_record(who)
        return self._identity.person(record.person_id) if record else None

    def _policy(self, caller: Caller, person: Person) -> tuple[PersonPolicy, Request]:
        actors = {f"Organization/{caller.organization}"}
        actors.update(f"Device/{i}" for i in (caller.client_id,) if i)
        actors.update(i for i in (caller.subject_id, caller.user_id) if i)
        request = Request(
            actors=frozenset(actors),
            purposes=caller.purposes,
            role=caller.role,
            organization=caller.organization,
            now=self._clock(),
            break_glass=caller.break_glass and caller.clinical,
        )
        return self._consents.policy(self._identity.person_ids(person.id)), request

    def _record_of(self, fetched: Sequence[Resource], base_url: str, system: str) -> SourceRecord | None:
        """The source record that a fetched resource belongs to, if the exchange knows its patient."""
        for resource in fetched:
            local_patient = local_patient_id(resource, base_url, system)
            if local_patient is not None:
                return self._identity.source_record(Identifier(system, local_patient))
        return None

    def _decide(
        self, answers: Sequence[SourceAnswer], policy: PersonPolicy, request: Request
    ) -> tuple[list[ChartEntry], list[Decision]]:
        """Released resources in the exchange's terms, and the decisions that withheld the others."""
        decided = [item for member in _by_member(answers) for item in self._decide_member(member, policy, request)]
        permitted = [item for item in decided if item.decision.permit]
        local_ids = {LocalId(d.member.id, d.original["resourceType"], d.original["id"]) for d in permitted}
        for item in permitted:
            named = references(item.original, item.base_url)
            local_ids.update(LocalId(item.member.id, kind, local_id) for kind, local_id in named)
        self._ids.register(local_ids)
        released = {f"{d.leaving['resourceType']}/{d.leaving['id']}" for d in permitted}
        entries = [item.entry(released) for item in permitted]
        entries.sort(key=lambda entry: (entry.member_id, entry.resource["resourceType"], entry.resource["id"]))
        return entries, [item.decision for item in decided if not item.decision.permit]

    def _decide_member(self, answers: Sequence[SourceAnswer], policy: PersonPolicy, request: Request) -> list[_Decided]:
        """One member's resources, all types together: labels follow references inside one source's answer."""
        member = answers[0].member
        source = f"{self._fhir_base}/Organization/{member.id}"
        held = [(answer.origin, resource) for answer in answers for resource in answer.resources]
        leaving = [
            rewrite(resource, origin, source, lambda kind, i: self._ids.of(LocalId(member.id, kind, i)))
            for origin, resource in held
        ]
        return [
            _Decided(member, origin.base_url, original, resource, view, decide(policy, request, view))
            for (origin, original), resource, view in zip(held, leaving, views(leaving, member.id), strict=True)
        ]

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
class _Decided:
    """One resource of one member with what was decided about it."""

    member: Member
    base_url: str
    original: Resource
    leaving: Resource
    view: ResourceView
    decision: Decision

    def entry(self, released: Collection[str]) -> ChartEntry:
        """The resource as it leaves; `released` names everything in the same answer ("Type/gateway id")."""
        finish(self.leaving, released, self.view.labels)
        return ChartEntry(
            resource=self.leaving,
            member_id=self.member.id,
            member_name=self.member.name,
            sha256=hashlib.sha256(fhir.to_bytes(self.leaving)).hexdigest(),
            labels=tuple(sorted(code for _, code in self.view.labels)),
            decision=self.decision,
        )


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
            count=sum(len(answer.resources) for answer in own),
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
        denials: Sequence[Decision] = (),
    ) -> NoReturn:
        """Record the refused or failed attempt, then raise `error`."""
        failed = isinstance(error, SourcesFailed)
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
            decisions=_trace(denials),
            withheld=len(denials),
        )
        self.audit.record(event)
        error.audited = True
        raise error

    def disclosure(
        self,
        person_id: str,
        sources: Sequence[SourceStatus],
        released: Sequence[ChartEntry],
        denials: Sequence[Decision],
    ) -> Event:
        nothing_may_leave = not released and not sources
        incomplete = any(source.status != "ok" for source in sources)
        return Event(
            kind=Kind.DENIAL if nothing_may_leave else Kind.DISCLOSURE,
            outcome=Outcome.MINOR if incomplete or nothing_may_leave else Outcome.SUCCESS,
            action="R",
            caller=self.caller,
            person_id=person_id,
            query=self.query,
            request_id=self.request_id,
            description=f"{len(released)} resources released, {len(denials)} withheld",
            sources=_source_outcomes(sources),
            released=tuple(
                Released(entry.resource["resourceType"], entry.resource["id"], entry.sha256, entry.labels)
                for entry in released
            ),
            decisions=_trace([entry.decision for entry in released] + list(denials)),
            withheld=len(denials),
        )

    def search(self, person_id: str | None) -> Event:
        return Event(
            kind=Kind.SEARCH,
            outcome=Outcome.SUCCESS,
            action="E",
            caller=self.caller,
            person_id=person_id,
            query=self.query,
            request_id=self.request_id,
            description="candidate shown" if person_id else "no candidates",
        )


def _source_outcomes(sources: Sequence[SourceStatus]) -> tuple[SourceOutcome, ...]:
    return tuple(SourceOutcome(source.member_id, source.status, source.count) for source in sources)


def _trace(decisions: Sequence[Decision]) -> tuple[dict[str, object], ...]:
    """The distinct decisions with how many resources each decided."""
    counted = Counter((d.permit, d.rule, d.consent, d.path, d.break_glass, d.reason) for d in decisions)
    return tuple(
        {
            "permit": permit,
            "rule": rule,
            "consent": consent,
            "path": list(path),
            "breakGlass": broke,
            "reason": reason,
            "count": count,
        }
        for (permit, rule, consent, path, broke, reason), count in counted.items()
    )
