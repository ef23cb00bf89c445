"""The routes by which members tell whom they treat: Encounter, ServiceRequest and CareTeam by conditional update.

What is kept explains accesses (`hie.gateway.care`); the records themselves stay with the member and are read by the
federated search. The log's entry commits with the relation.
"""

from __future__ import annotations

import sqlalchemy as sa
from flask import Blueprint, Response, request

from hie.audit.event import Event, Kind, Outcome
from hie.core import fhir
from hie.core.caller import Caller
from hie.core.errors import Forbidden, Unprocessable
from hie.core.fhir import Resource
from hie.gateway.api import formats
from hie.gateway.api.context import caller, request_id
from hie.gateway.api.feeding import answer, asked_query, conditional_identifier, expected_version, own_member
from hie.gateway.care import CareResult
from hie.gateway.care_messages import TYPES
from hie.gateway.directory import Member
from hie.gateway.services import current
from hie.mpi.identity import Identifier

blueprint = Blueprint("care", __name__)
formats.install(blueprint)

_TYPE = f"<any({','.join(TYPES)}):resource_type>"


@blueprint.after_request
def _do_not_keep(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.put(f"/fhir/{_TYPE}")
def tell(resource_type: str) -> Response:
    """A relation to a patient as the member's own record has it: 201 on first sight, 200 after."""
    asking = caller()
    member = own_member(asking, resource_type, "c", "u")
    identifier = conditional_identifier()
    _check_free(identifier, member)
    resource = formats.read_resource(request, resource_type)
    _check_named(resource, identifier)
    version = expected_version()

    def also(connection: sa.Connection, result: CareResult) -> None:
        asking.require(resource_type, "c" if result.created else "u")
        described = "created" if result.created else "updated" if result.changed else "unchanged"
        action = "C" if result.created else "U"
        _log(connection, asking, action, result.person_id, f"PUT {resource_type}", f"{resource_type} feed: {described}")

    return _told(current().care.tell(member, identifier, resource, expected_version=version, also=also))


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


def _told(result: CareResult) -> Response:
    status = 201 if result.created else 200
    headers = {"ETag": f'W/"{result.version}"'}
    if "return=minimal" in request.headers.get("Prefer", ""):
        return Response(status=status, headers=headers)
    return answer(fhir.outcome(fhir.issue("information", "informational", _what_became(result))), status, headers)


def _what_became(result: CareResult) -> str:
    if result.stale:
        return "The exchange holds newer data of this relation and kept it; to go back, stamp meta.lastUpdated."
    if not result.changed:
        return "The exchange holds these data already."
    return "The relation was added." if result.created else "The relation was updated."
