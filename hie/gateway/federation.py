"""The fan-out: a person's source records -> one question per member, all at once -> answers and failures.

Who is asked is the record locator's word: every member that holds a record of the person, the caller's own too, less
those of which the caller could be told nothing. Where consents go by labels, a member is asked for the rest of its
chart too (`background`): a label may come from any of it, and nothing of it leaves. Each resource that comes back must
be the asked patient's, or it is discarded and its source reported `invalid` (one known server ignores `patient=`,
contract law L6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from hie.core.fhir import CLINICAL_TYPES, Resource
from hie.gateway.directory import Directory, Member
from hie.gateway.rewriting import Origin, local_patient_id
from hie.gateway.transport import Failure, MemberAnswer, MemberQuery, Transport
from hie.mpi.identity import Person, SourceRecord

LABELLING_TYPES = tuple(kind for kind in CLINICAL_TYPES if kind != "Coverage")
"""Types that say something of a patient's health; labels do not travel over a Coverage."""


@dataclass(frozen=True)
class SourceAnswer:
    """What one member gave for one of its patient ids: checked resources, and a failure where it fell short."""

    member: Member
    origin: Origin
    resources: tuple[Resource, ...]
    failure: Failure | None
    elapsed_ms: float
    background: bool = False
    """Asked for its labels only: none of its resources is part of any answer."""

    @property
    def useless(self) -> bool:
        """Nothing was learned from this source: it failed, and nothing usable came with the failure."""
        return self.failure is not None and not self.resources


class Federation:
    """Asks members about a person."""

    def __init__(self, directory: Directory, transport: Transport) -> None:
        self._directory = directory
        self._transport = transport

    def ask(
        self,
        person: Person,
        types: Sequence[str],
        may_ask: Callable[[str], bool],
        needs_labels: Callable[[str], bool],
        *,
        deadline_at: float,
        request_id: str,
    ) -> list[SourceAnswer]:
        """Everything of `types` that the members hold of the person, by `deadline_at` (monotonic seconds).

        `may_ask(member id)` is consent's word on whether asking could release anything, `needs_labels(member id)` on
        whether labels decide, so that the whole chart is wanted.
        """
        asked = [
            Question(member, record, resource_type, background=resource_type not in types)
            for record in person.records
            if (member := self._directory.member(record.member_id)) is not None and may_ask(member.id)
            for resource_type in (*types, *(background_of(types) if types and needs_labels(member.id) else ()))
        ]
        return self.put(asked, deadline_at, request_id)

    def put(self, asked: Sequence[Question], deadline_at: float, request_id: str) -> list[SourceAnswer]:
        """The answers to these questions, in their order, all asked at once."""
        queries = [question.query(request_id) for question in asked if question.member.endpoint is not None]
        answers = iter(self._transport.ask(queries, deadline_at))
        return [
            question.checked(next(answers) if question.member.endpoint else _no_endpoint(question.member))
            for question in asked
        ]


@dataclass(frozen=True)
class Question:
    """One question to one member: everything of a type that it holds of a patient, or one resource of these."""

    member: Member
    record: SourceRecord
    type: str
    local_id: str | None = None
    background: bool = False

    def query(self, request_id: str) -> MemberQuery:
        if self.local_id is not None:
            return query_of(self.member, f"{self.type}/{self.local_id}", (), request_id)
        return query_of(self.member, self.type, (("patient", f"Patient/{self.record.identifier.value}"),), request_id)

    def checked(self, answer: MemberAnswer) -> SourceAnswer:
        found = checked(self.member, self.record, self.type, answer)
        if not self.background:
            return found
        held_nothing = found.failure is not None and found.failure.absent
        return replace(found, background=True, failure=None if held_nothing else found.failure)


def background_of(types: Sequence[str]) -> tuple[str, ...]:
    """The types whose labels may reach resources of `types`."""
    return tuple(kind for kind in LABELLING_TYPES if kind not in types)


def query_of(member: Member, path: str, params: tuple[tuple[str, str], ...], request_id: str) -> MemberQuery:
    """The question in the transport's terms; the member must have an endpoint."""
    if member.endpoint is None:
        raise ValueError(f"member {member.id} has no endpoint")
    return MemberQuery(
        member_id=member.id,
        base_url=member.endpoint.url,
        auth=member.endpoint.auth,
        path=path,
        params=params,
        request_id=request_id,
    )


def origin_of(member: Member, record: SourceRecord) -> Origin:
    """Where resources of this source record come from."""
    return Origin(
        member_id=member.id,
        base_url=member.endpoint.url if member.endpoint else "",
        patient_id_system=member.patient_id_system,
        local_patient=record.identifier.value,
        person_id=record.person_id,
    )


def checked(member: Member, record: SourceRecord, resource_type: str, answer: MemberAnswer) -> SourceAnswer:
    """The answer without what is not the asked patient's or not of the asked type."""
    origin = origin_of(member, record)
    own = [r for r in answer.resources if _is_asked(r, resource_type, origin)]
    failure = answer.failure
    if failure is None and len(own) < len(answer.resources):
        failure = Failure("invalid")
    return SourceAnswer(member, origin, tuple(_once(own)), failure, answer.elapsed_ms)


def _is_asked(resource: Resource, resource_type: str, origin: Origin) -> bool:
    return (
        resource.get("resourceType") == resource_type
        and local_patient_id(resource, origin.base_url, origin.patient_id_system) == origin.local_patient
    )


def _once(resources: Iterable[Resource]) -> list[Resource]:
    return list({str(r["id"]): r for r in resources}.values())


def _no_endpoint(member: Member) -> MemberAnswer:
    return MemberAnswer(member_id=member.id, resources=(), failure=Failure("unreachable"), elapsed_ms=0.0)
