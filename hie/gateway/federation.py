"""The fan-out: a person's source records -> one question per member, all at once -> answers and failures.

Who is asked is the record locator's word: every member that holds a record of the person, the caller's own too, less
those of which the caller could be told nothing. Each resource that comes back must be the asked patient's, or it is
discarded and its source reported `invalid` (one known server ignores `patient=`, contract law L6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hie.core.fhir import Resource
from hie.gateway.directory import Directory, Member
from hie.gateway.rewriting import Origin, local_patient_id
from hie.gateway.transport import Failure, MemberAnswer, MemberQuery, Transport
from hie.mpi.identity import Person, SourceRecord


@dataclass(frozen=True)
class SourceAnswer:
    """What one member gave for one of its patient ids: checked resources, and a failure where it fell short."""

    member: Member
    origin: Origin
    resources: tuple[Resource, ...]
    failure: Failure | None
    elapsed_ms: float

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
        *,
        deadline_at: float,
        request_id: str,
    ) -> list[SourceAnswer]:
        """Everything of `types` that the members hold of the person, by `deadline_at` (monotonic seconds).

        `may_ask(member id)` is consent's word on whether asking could release anything.
        """
        asked = [
            (record, member, resource_type)
            for record in person.records
            if (member := self._directory.member(record.member_id)) is not None and may_ask(member.id)
            for resource_type in types
        ]
        queries = [
            query_of(member, kind, (("patient", f"Patient/{record.identifier.value}"),), request_id)
            for record, member, kind in asked
            if member.endpoint is not None
        ]
        answers = iter(self._transport.ask(queries, deadline_at))
        return [
            checked(member, record, kind, next(answers) if member.endpoint else _no_endpoint(member))
            for record, member, kind in asked
        ]


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
