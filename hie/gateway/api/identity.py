"""The identity routes: feed (PIXm ITI-104), cross-reference (PIXm ITI-83), Patient search and read (PDQm ITI-78).

A member feeds ids of its own assigning authority only, by conditional update; merge and delete likewise. The feed's
audit entry commits with the feed; what a search, read or cross-reference shows is recorded before it leaves (law L1).
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

import sqlalchemy as sa
from flask import Blueprint, Response, request

from hie.audit.event import Event, Kind, Outcome
from hie.core import fhir
from hie.core.caller import Caller, Role
from hie.core.clock import instant
from hie.core.errors import BadRequest, Forbidden, HieError, NotFound, Unprocessable, UnsupportedMediaType
from hie.core.fhir import Resource
from hie.gateway.api import formats
from hie.gateway.api.context import caller, keep_nothing, request_id
from hie.gateway.api.feeding import (
    FEEDERS,
    asked_query,
    conditional_identifier,
    expected_version,
    own_member,
    refuse_control_characters,
    require_any,
)
from hie.gateway.api.formats import answer
from hie.gateway.api.receipts import give
from hie.gateway.services import current
from hie.mpi.golden import DATA_ABSENT_REASON, replaced
from hie.mpi.identity import FeedResult, Identifier, PatientPage, PatientQuery, Person, SourceRecord
from hie.mpi.index import MatchDecision
from hie.mpi.patient_search import parse_query, split_token

blueprint = Blueprint("identity", __name__)
keep_nothing(blueprint)
formats.install(blueprint)

_READERS = (*FEEDERS, Role.CLINICIAN, Role.DATA_STEWARD)
_HOW_TO_FEED = "Feed a patient by PUT Patient?identifier=system|value; the exchange gives the ids."
_CODES = {
    "gender": ("male", "female", "other", "unknown"),
    "active": (True, False),
    "deceasedBoolean": (True, False),
    "multipleBirthBoolean": (True, False),
}
_LINK_TYPES = ("replaced-by", "replaces", "refer", "seealso")


# -- feed


@blueprint.put("/fhir/Patient")
def feed() -> Response:
    """ITI-104 add, revise and resolve duplicate: 201 on first sight, 200 after."""
    asking = caller()
    system = own_member(asking, "Patient", "c", "u").patient_id_system
    identifier = conditional_identifier()
    _check_own(identifier.system, system)
    patient = formats.read_resource(request, "Patient")
    _check_patient(patient, identifier, system)
    return _fed(_store(asking, identifier, patient, _survivor(patient, system)))


def _store(asking: Caller, identifier: Identifier, patient: Resource, survivor: Identifier | None) -> FeedResult:
    services = current()

    def also(connection: sa.Connection, result: FeedResult) -> None:
        asking.require("Patient", "c" if result.created else "u")
        services.audit.append(connection, _feed_event(asking, result, survivor is not None))

    member_id, version = asking.organization, expected_version()
    if survivor is not None:
        return services.identity.merge(
            member_id, identifier, survivor, patient=patient, expected_version=version, also=also
        )
    return services.identity.record(member_id, identifier, patient, expected_version=version, also=also)


def _feed_event(asking: Caller, result: FeedResult, merged: bool) -> Event:
    described = "created" if result.created else "updated" if result.changed else "unchanged"
    return Event(
        kind=Kind.FEED,
        outcome=Outcome.SUCCESS,
        action="C" if result.created else "U",
        caller=asking,
        person_id=result.record.person_id,
        query=asked_query("PUT Patient"),
        request_id=request_id(),
        description=f"Patient identity feed: {described}{' (merge)' if merged else ''}",
        decisions=(_matched(result.decision),) if result.decision else (),
    )


def _matched(decision: MatchDecision) -> dict[str, object]:
    """Whom the matcher took the record for, by itself: link, review (it asks a steward) or new."""
    best = decision.best
    return {
        "rule": "matching",
        "verdict": decision.verdict.value,
        "probability": f"{best.probability:.6f}" if best else None,
        "conflict": best.conflict if best else None,
        "joined": list(decision.joins),
        "model": decision.model_version,
    }


def _fed(result: FeedResult) -> Response:
    record = result.record
    headers = {
        "ETag": f'W/"{record.version}"',
        "Location": f"{current().settings.fhir_base}/Patient/{record.person_id}",
    }
    status = 201 if result.created else 200
    prefer = request.headers.get("Prefer", "")
    if "return=minimal" in prefer:
        return Response(status=status, headers=headers)
    body = fhir.outcome(fhir.issue("information", "informational", _what_became(result)))
    if "return=OperationOutcome" not in prefer:
        body = _as_held(record)
    return answer(body, status, headers)


def _as_held(record: SourceRecord) -> Resource:
    """The record's current version as the exchange holds it, without narrative."""
    held = {key: value for key, value in record.resource.items() if key != "text"}
    if "contained" in held:
        held["contained"] = [{k: v for k, v in part.items() if k != "text"} for part in held["contained"] or []]
    stamped = {"versionId": str(record.version), "lastUpdated": instant(record.updated)}
    return {**held, "id": record.person_id, "meta": {**(held.get("meta") or {}), **stamped}}


def _what_became(result: FeedResult) -> str:
    if result.stale:
        return "The exchange holds newer data of this patient and kept it; to go back, stamp meta.lastUpdated."
    if not result.changed:
        return "The exchange holds these data already."
    return "The patient was added." if result.created else "The patient was updated."


@blueprint.delete("/fhir/Patient")
def remove() -> Response:
    """ITI-104 remove patient (conditional delete): 204, also when nothing is there."""
    asking = caller()
    services = current()

    def also(connection: sa.Connection, gone: SourceRecord | None) -> None:
        event = Event(
            kind=Kind.FEED,
            outcome=Outcome.SUCCESS,
            action="D",
            caller=asking,
            person_id=gone.person_id if gone else None,
            query=asked_query("DELETE Patient"),
            request_id=request_id(),
            description="Patient identity feed: " + ("deleted" if gone else "nothing to delete"),
        )
        services.audit.append(connection, event)

    system = own_member(asking, "Patient", "d").patient_id_system
    identifier = conditional_identifier()
    _check_own(identifier.system, system)
    services.identity.delete(asking.organization, identifier, also=also)
    return Response(status=204)


@blueprint.route("/fhir/Patient", methods=["POST"])
def create() -> Response:
    """Not a way to feed: the identifier decides what is new."""
    return _not_allowed("GET, PUT, DELETE", _HOW_TO_FEED)


@blueprint.route("/fhir/Patient/<person_id>", methods=["PUT", "PATCH", "DELETE"])
def change(person_id: str) -> Response:
    """People are made of what members feed; nobody writes to one."""
    return _not_allowed("GET", "A person's record is made of what members feed. " + _HOW_TO_FEED)


def _not_allowed(allowed: str, sentence: str) -> Response:
    caller()
    return answer(fhir.outcome(fhir.issue("error", "not-supported", sentence)), 405, {"Allow": allowed})


def _check_own(system: str, own: str) -> None:
    if system == own:
        return
    if current().directory.member_of_system(system) is not None:
        raise Forbidden("Only the organization that assigns these identifiers may feed them.")
    raise Unprocessable("The identifier's system is not one that this exchange knows.", code="code-invalid")


def _check_patient(patient: Resource, identifier: Identifier, own: str) -> None:
    """The rules of IHE.PIXm.Patient, and of who may say what."""
    named = [(i.get("system"), i.get("value")) for i in patient.get("identifier") or []]
    if (identifier.system, identifier.value) not in named:
        raise Unprocessable("The identifier of the address must be among Patient.identifier.")
    for system, _ in named:
        if system and system != own and current().directory.member_of_system(system) is not None:
            raise Forbidden("Patient.identifier holds an identifier that another member assigns.")
    if not any(_is_named(name) for name in patient.get("name") or []):
        raise Unprocessable("Patient.name is required, with a family or given name or a text.")
    if patient.get("implicitRules") or any(node.get("modifierExtension") for node in fhir.walk(patient)):
        raise Unprocessable("The exchange takes no modifierExtension or implicitRules in a Patient.")
    for element, allowed in _CODES.items():
        value = patient.get(element, allowed[0])
        if value not in allowed or type(value) is not type(allowed[0]):
            raise Unprocessable(f"Patient.{element} has a value that FHIR does not know.", code="code-invalid")
    if any(link.get("type") not in _LINK_TYPES for link in patient.get("link") or []):
        raise Unprocessable("Patient.link.type has a value that FHIR does not know.", code="code-invalid")
    _check_id(patient.get("id"), identifier)


def _is_named(name: Resource) -> bool:
    parts = [name.get("family"), name.get("text"), *(name.get("given") or [])]
    absent = any(extension.get("url") == DATA_ABSENT_REASON for extension in name.get("extension") or [])
    return absent or any(isinstance(part, str) and part.strip() for part in parts)


def _check_id(body_id: object, identifier: Identifier) -> None:
    """FHIR conditional update: an id in the body must be the one the match is known by.

    The person's id is; so is the id that the source's own server put into its messages from the first on.
    """
    if body_id is None:
        return
    known = current().identity.known_ids(identifier)
    if known is not None and body_id not in known:
        raise BadRequest("Patient.id is not the id of the patient with this identifier; leave it out.")


def _survivor(patient: Resource, own: str) -> Identifier | None:
    """Whom a `replaced-by` link names: another patient of the same member, by its identifier."""
    links = [link for link in patient.get("link") or [] if link.get("type") == "replaced-by"]
    if not links:
        return None
    named = (links[0].get("other") or {}).get("identifier") or {}
    system, value = named.get("system"), named.get("value")
    if len(links) > 1 or not system or not value:
        raise Unprocessable("A merge needs one link of type replaced-by with the survivor's identifier in link.other.")
    _check_own(system, own)
    return Identifier(system, value)


# -- cross-reference


@blueprint.get("/fhir/Patient/$ihe-pix")
def cross_reference() -> Response:
    """ITI-83: the other identifiers of the patient that the caller knows by `sourceIdentifier`."""
    asking = caller()
    asked = asked_query("Patient/$ihe-pix")
    check_reader(asking, "r", "s")
    refuse_control_characters(request.args.items(multi=True))
    try:
        source, targets = _pix_question()
        person = _pix_person(asking, source)
    except HieError:
        record_shown(asking, asked, [])
        raise
    record_shown(asking, asked, [person.id])
    return answer(_pix_answer(person, source, targets))


def _pix_question() -> tuple[Identifier, frozenset[str]]:
    """The source identifier and the target systems (empty for all), each of a known domain."""
    given = request.args.getlist("sourceIdentifier")
    system, value = split_token(given[0]) if len(given) == 1 else (None, "")
    if not system or not value:
        raise BadRequest("Give exactly one sourceIdentifier=system|value.")
    services = current()
    if not _is_ours(system) and services.directory.member_of_system(system) is None:
        raise BadRequest("sourceIdentifier Assigning Authority not found", code="code-invalid")
    targets = frozenset(target for target in request.args.getlist("targetSystem") if target)
    if not all(_is_ours(target) or _knows_domain(target) for target in targets):
        raise HieError("targetSystem not found", code="code-invalid", status=403)
    return Identifier(system, value), targets


def _pix_person(asking: Caller, source: Identifier) -> Person:
    """The person as far as the caller may know; an identifier of a record that it may not know of is unknown."""
    identity, governance = current().identity, current().governance
    if _is_ours(source.system):
        kind, _, person_id = source.value.rpartition("/")
        person = governance.shown(asking, identity.person(person_id)) if kind in ("", "Patient") else None
    else:
        record = identity.source_record(source)
        person = governance.shown(asking, identity.person(record.person_id)) if record is not None else None
        if record is None or (person and all(held.member_id != record.member_id for held in person.records)):
            person = None
    if person is None:
        raise NotFound("sourceIdentifier Patient Identifier not found")
    return person


def _pix_answer(person: Person, source: Identifier, targets: frozenset[str]) -> Resource:
    """The person's own id counts as known wherever an identifier is; it is left out where it was the question."""
    parameters: list[Resource] = [
        {"name": "targetIdentifier", "valueIdentifier": {key: i[key] for key in ("use", "system", "value") if key in i}}
        for i in person.resource["identifier"]
        if (i["system"], i["value"]) != (source.system, source.value) and (not targets or i["system"] in targets)
    ]
    shown = not targets or bool(parameters) or any(_is_ours(target) for target in targets)
    if shown and not _is_ours(source.system):
        parameters.append({"name": "targetId", "valueReference": {"reference": f"Patient/{person.id}"}})
    answer: Resource = {"resourceType": "Parameters"}
    if parameters:
        answer["parameter"] = parameters
    return answer


def _is_ours(system: str) -> bool:
    """The exchange itself as an assigning authority: `<base>|Patient/<id>` (ITI-83 2:3.83.4.1.2.1)."""
    settings = current().settings
    return system.rstrip("/") in (settings.fhir_base, settings.base_url)


def _knows_domain(system: str) -> bool:
    services = current()
    return services.directory.member_of_system(system) is not None or services.identity.knows_system(system)


# -- search and read


@blueprint.get("/fhir/Patient")
def search() -> Response:
    """ITI-78 by GET."""
    return _search(list(request.args.items(multi=True)))


@blueprint.post("/fhir/Patient/_search")
def search_by_form() -> Response:
    """ITI-78 by POST; parameters of the address and of the form count alike."""
    if request.mimetype != formats.FORM:
        raise UnsupportedMediaType(f"A search by POST is a form: {formats.FORM}.")
    return _search([*request.args.items(multi=True), *request.form.items(multi=True)])


def _search(parameters: list[tuple[str, str]]) -> Response:
    asking = caller()
    asked = f"Patient?{urlencode(parameters)}"
    check_reader(asking, "s")
    refuse_control_characters(parameters)
    query = parse_query(parameters, strict="handling=strict" in request.headers.get("Prefer", ""))
    if not all(_knows_domain(domain) for domain in query.domains):
        return _unknown_domain(asking, asked)
    governance = current().governance
    page = current().identity.search(
        query,
        shown=lambda person: governance.shown(asking, person),
        doubtful=governance.doubtful(asking),
    )
    shown = [person.id for person in page.people]
    record_shown(asking, asked, shown)
    return answer(_bundle(query, page))


def _unknown_domain(asking: Caller, asked: str) -> Response:
    """ITI-78 case 4."""
    record_shown(asking, asked, [])
    return answer(fhir.outcome(fhir.issue("warning", "not-found", "targetSystem not found")), 404)


def _bundle(query: PatientQuery, page: PatientPage) -> Resource:
    base = current().settings.fhir_base
    address = f"{base}/Patient?{urlencode(query.honoured)}"
    links = [{"relation": "self", "url": address}]
    if page.cursor is not None:
        links.append({"relation": "next", "url": f"{address}&{urlencode({'_cursor': page.cursor})}"})
    found = [(replaced(person.resource, old_id), "match") for old_id, person in page.replaced]
    found += [(p.resource, "include" if p.id in page.included else "match") for p in page.people]
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset", "total": page.total, "link": links}
    entries = [
        {
            "fullUrl": f"{base}/Patient/{patient['id']}",
            "resource": _of_domains(patient, query.domains),
            "search": {"mode": mode},
        }
        for patient, mode in found
    ]
    if entries:
        bundle["entry"] = entries
    return bundle


def _of_domains(patient: Resource, domains: frozenset[str]) -> Resource:
    """Only the identifiers that were asked for (ITI-78 case 2)."""
    if not domains:
        return patient
    return {**patient, "identifier": [i for i in patient["identifier"] if i["system"] in domains]}


@blueprint.get("/fhir/Patient/<person_id>")
def read(person_id: str) -> Response:
    """ITI-78 retrieve. An id that was merged away answers with the survivor's data, inactive, and the link."""
    asking = caller()
    asked = f"Patient/{person_id[:64]}"
    check_reader(asking, "r")
    refuse_control_characters([("_id", person_id)])
    person = current().governance.shown(asking, current().identity.person(person_id))
    record_shown(asking, asked, [person.id] if person else [], action="R")
    if person is None:
        raise NotFound("The exchange knows no such person.")
    patient = person.resource if person.id == person_id else replaced(person.resource, person_id)
    return answer(patient, headers={"ETag": f'W/"{person.resource["meta"]["versionId"]}"'})


# -- shared


def check_reader(asking: Caller, *actions: str) -> None:
    asking.require_role(*_READERS)
    require_any(asking, "Patient", actions)


def record_shown(asking: Caller, asked: str, person_ids: Sequence[str], action: str = "E") -> None:
    """One entry per person shown, durable before anything is; one without a person when there is none."""
    events = [
        Event(
            kind=Kind.SEARCH,
            outcome=Outcome.SUCCESS,
            action=action,
            caller=asking,
            person_id=person_id,
            query=asked,
            request_id=request_id(),
            description="Demographics shown" if person_id else "Nobody shown",
        )
        for person_id in (person_ids or (None,))
    ]
    give(current().audit.record(*events))
