"""The routes by which members tell whom they treat: Encounter, ServiceRequest and CareTeam by conditional update, and
messages of admission, discharge and transfer.

What is kept explains accesses (`hie.gateway.care`); the records themselves stay with the member and are read by the
federated search. The log's entry commits with the relation.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from flask import Blueprint, Response, request

from hie.audit.event import Event, Kind, Outcome
from hie.core import fhir
from hie.core.caller import Caller
from hie.core.errors import BadRequest, Forbidden, Unprocessable
from hie.core.fhir import Resource
from hie.gateway import notifications
from hie.gateway.api import formats
from hie.gateway.api.context import caller, keep_nothing, request_id
from hie.gateway.api.feeding import asked_query, conditional_identifier, expected_version, own_member
from hie.gateway.api.formats import answer
from hie.gateway.care import CareResult
from hie.gateway.care_messages import TYPES
from hie.gateway.directory import Member
from hie.gateway.services import current
from hie.mpi.identity import Identifier

blueprint = Blueprint("care", __name__)
keep_nothing(blueprint)
formats.install(blueprint)

_TYPE = f"<any({','.join(TYPES)}):resource_type>"


@blueprint.put(f"/fhir/{_TYPE}")
def tell(resource_type: str) -> Response:
    """A relation to a patient as the member's own record has it: 201 on first sight, 200 after."""
    asking = caller()
    member = own_member(asking, resource_type, "c", "u")
    identifier = conditional_identifier()
    _check_free(identifier, member)
    resource = formats.read_resource(request, resource_type)
    _check_named(resource, identifier)
    also = _noted(asking, resource_type, f"PUT {resource_type}")
    result = current().care.tell(member, identifier, resource, expected_version=expected_version(), also=also)
    status, headers = 201 if result.created else 200, {"ETag": f'W/"{result.version}"'}
    if "return=minimal" in request.headers.get("Prefer", ""):
        return Response(status=status, headers=headers)
    return answer(_outcome(result), status, headers)


@blueprint.post("/fhir/$process-message")
def process_message() -> Response:
    """A Da Vinci notification of an admission, discharge or transfer, as an encounter that the member tells of.

    It asks for no answer of its own (category notification): 200 with an OperationOutcome.
    """
    asking = caller()
    member = own_member(asking, "Encounter", "c", "u")
    if request.args.keys() - {"_format", "_pretty"}:
        raise BadRequest("Messages are processed at once: send no async or response-url.", code="not-supported")
    message = notifications.read(formats.read_resource(request, "Bundle"), member.patient_id_system)
    _check_free(message.identifier, member)
    also = _noted(asking, "Encounter", "POST $process-message", f" ({message.event})")
    return answer(_outcome(current().care.tell(member, message.identifier, message.encounter, also=also)))


@blueprint.delete(f"/fhir/{_TYPE}")
def withdraw(resource_type: str) -> Response:
    """A relation explains nothing any more: 204, also when nothing is there."""
    asking = caller()
    member = own_member(asking, resource_type, "d")
    identifier = conditional_identifier()
    _check_free(identifier, member)

    def also(connection: sa.Connection, person_id: str | None) -> None:
        described = "deleted" if person_id else "nothing to delete"
        _log(connection, asking, "D", person_id, f"DELETE {resource_type}", f"{resource_type} feed: {described}")

    current().care.withdraw(member, resource_type, identifier, also=also)
    return Response(status=204)


def _check_free(identifier: Identifier, member: Member) -> None:
    owner = current().directory.member_of_system(identifier.system)
    if owner is not None and owner.id != member.id:
        raise Forbidden("The identifier's system is another member's for its patients; use one of your own.")


def _check_named(resource: Resource, identifier: Identifier) -> None:
    named = [(i.get("system"), i.get("value")) for i in resource.get("identifier") or []]
    if (identifier.system, identifier.value) not in named:
        raise Unprocessable(f"The identifier of the address must be among {resource['resourceType']}.identifier.")


def _noted(
    asking: Caller, resource_type: str, path: str, event: str = ""
) -> Callable[[sa.Connection, CareResult], None]:
    """Appends the audit entry in the transaction that keeps the relation."""

    def also(connection: sa.Connection, result: CareResult) -> None:
        asking.require(resource_type, "c" if result.created else "u")
        described = "created" if result.created else "updated" if result.changed else "unchanged"
        action = "C" if result.created else "U"
        _log(connection, asking, action, result.person_id, path, f"{resource_type} feed: {described}{event}")

    return also


def _log(
    connection: sa.Connection, asking: Caller, action: str, person_id: str | None, path: str, description: str
) -> None:
    event = Event(
        kind=Kind.FEED,
        outcome=Outcome.SUCCESS,
        action=action,
        caller=asking,
        person_id=person_id,
        query=asked_query(path),
        request_id=request_id(),
        description=description,
    )
    current().audit.append(connection, event)


def _outcome(result: CareResult) -> Resource:
    return fhir.outcome(fhir.issue("information", "informational", _what_became(result)))


def _what_became(result: CareResult) -> str:
    if result.stale:
        return "The exchange holds newer data of this relation and kept it; to go back, stamp meta.lastUpdated."
    if not result.changed:
        return "The exchange holds these data already."
    return "The relation was added." if result.created else "The relation was updated."
