"""`POST Patient/$match` (PDQm ITI-119; FHIR R4 Patient $match) and `Patient/$idi-match` (HL7 identity matching guide).

Who may the described patient be: likeliest first, with a calibrated score and a match-grade. Saves nothing. Nobody is
shown for a description so thin that it fits many (weights after the guide's table of patient weighted information),
and everybody who is shown is in the audit log first (law L1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flask import Blueprint, Response, request

from hie.core import fhir
from hie.core.clock import instant
from hie.core.errors import BadRequest, Unprocessable
from hie.core.fhir import Resource
from hie.core.ids import new_id
from hie.gateway.api import formats
from hie.gateway.api.context import caller, keep_nothing
from hie.gateway.api.formats import answer
from hie.gateway.api.identity import check_reader, record_shown
from hie.gateway.services import current
from hie.mpi.people import Grade, Match

blueprint = Blueprint("matching", __name__)
keep_nothing(blueprint)
formats.install(blueprint)

MATCH_GRADE = "http://hl7.org/fhir/StructureDefinition/match-grade"
MAX_MATCHES = 20
LEAST_WEIGHT = 7
"""What a description must add up to: both names and the birth date, or a name and a telephone number."""
LEAST_WEIGHT_IDI = 9
_TOO_THIN = (
    "Describe the patient better: both names with the full birth date, or a name with a phone number, e-mail, home "
    "address or identifier. A thin description would fit many people, so nobody is shown."
)
_SEVERAL = "More than one person fits, so none is shown; describe the patient better, or ask without onlySingleMatch."
_MATCH, _IDI = frozenset({"resource"}), frozenset({"resource", "patient", "IDIPatient"})


@dataclass(frozen=True)
class Question:
    """What is asked: a FHIR Patient and how much of the answer is wanted."""

    patient: Resource
    only_certain: bool = False
    only_single: bool = False
    count: int = MAX_MATCHES


@blueprint.post("/fhir/Patient/$match")
def match() -> Response:
    """ITI-119: a searchset of Patients, best first; empty when nobody fits."""
    found, _ = _ask("$match", _MATCH, LEAST_WEIGHT)
    return answer(_searchset(found))


@blueprint.post("/fhir/Patient/$idi-match")
def idi_match() -> Response:
    """The HL7 identity matching guide's operation: a searchset with the responder's Organization first."""
    found, several = _ask("$idi-match", _IDI, LEAST_WEIGHT_IDI)
    bundle = _idi_searchset(found, several)
    return answer({"resourceType": "Parameters", "parameter": [{"name": "IDIMatchBundle", "resource": bundle}]})


def _ask(operation: str, subjects: frozenset[str], least: int) -> tuple[list[Match], bool]:
    """The matches to show, recorded already; and whether some were kept back because several fit."""
    asking = caller()
    check_reader(asking, "s")
    body = formats.read_resource(request, "Parameters", "Patient")
    asked = f"Patient/{operation} {fhir.to_bytes(body).decode()}"
    try:
        question = _question(body, subjects)
        if _weight(question.patient) < least:
            raise Unprocessable(_TOO_THIN, code="incomplete", status=400)
    except (BadRequest, Unprocessable):
        record_shown(asking, asked, [])
        raise
    governance = current().governance
    fitting = current().identity.match(question.patient, shown=lambda person: governance.shown(asking, person))
    found = [m for m in fitting if m.grade is not Grade.CERTAINLY_NOT]
    shown, several = _wanted(found, question)
    record_shown(asking, asked, [m.person.id for m in shown])
    return shown, several


def _question(body: Resource, subjects: frozenset[str]) -> Question:
    if any(node.get("modifierExtension") or node.get("implicitRules") for node in fhir.walk(body)):
        raise BadRequest("The exchange knows no modifierExtension or implicitRules here; nobody was looked for.")
    if body["resourceType"] == "Patient":
        return Question(body)
    given: dict[str, Resource] = {}
    for parameter in body.get("parameter") or []:
        name = str(parameter.get("name"))
        key = "resource" if name in subjects else name
        if key in given:
            raise BadRequest(f"The parameter {key} may be given once.")
        given[key] = parameter
    single = {"onlySingleMatch"} if subjects is _IDI else set()
    if unknown := given.keys() - {"resource", "onlyCertainMatches", "count", *single}:
        raise BadRequest(f"{len(unknown)} parameter of the request is not one of this operation.", code="not-supported")
    patient = given.get("resource", {}).get("resource")
    if not isinstance(patient, dict) or patient.get("resourceType") != "Patient":
        raise BadRequest("Give the parameter resource with a Patient.", code="required")
    fhir.validate(patient, "Patient")
    count = _value(given, "count", "valueInteger", MAX_MATCHES)
    if count < 1:
        raise BadRequest("The parameter count must be at least 1.", code="value")
    return Question(
        patient,
        only_certain=bool(_value(given, "onlyCertainMatches", "valueBoolean", False)),
        only_single=bool(_value(given, "onlySingleMatch", "valueBoolean", False)),
        count=min(count, MAX_MATCHES),
    )


def _value(given: dict[str, Resource], name: str, element: str, otherwise: int) -> int:
    if name not in given:
        return otherwise
    value = given[name].get(element)
    if type(value) is not type(otherwise):
        raise BadRequest(f"The parameter {name} needs a {element}.", code="value")
    return int(value)


def _weight(patient: Resource) -> int:
    """How much the description says; 0 without any part of a name."""
    names = [name for name in patient.get("name") or [] if isinstance(name, dict)]
    family = any(str(name.get("family") or "").strip() for name in names)
    given = any(str(part or "").strip() for name in names for part in name.get("given") or [])
    if not (family or given):
        return 0
    contacts = [c for c in patient.get("telecom") or [] if c.get("value")]
    home = any(a.get("line") and (a.get("city") or a.get("postalCode")) for a in patient.get("address") or [])
    known = any(i.get("system") and i.get("value") for i in patient.get("identifier") or [])
    return sum(
        (
            5 if family and given else 3,
            9 * known,
            7 * any(c.get("system") in ("phone", "sms", "email") for c in contacts),
            5 * home,
            2 * (len(str(patient.get("birthDate") or "")) == 10),
            bool(patient.get("gender")),
        )
    )


def _wanted(found: Sequence[Match], question: Question) -> tuple[list[Match], bool]:
    """What of it may be shown; a single answer is given only where it is the only one, or certain."""
    shown = [m for m in found if m.grade is Grade.CERTAIN] if question.only_certain else list(found)
    if question.only_single and len(shown) > 1:
        shown = [m for m in shown if m.grade is Grade.CERTAIN]
        return shown, not shown
    return shown[: question.count], False


def _searchset(found: Sequence[Match]) -> Resource:
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset", "total": len(found)}
    if found:
        bundle["entry"] = [_entry(m) for m in found]
    return bundle


def _entry(found: Match) -> Resource:
    grade = [{"url": MATCH_GRADE, "valueCode": found.grade.value}]
    return {
        "fullUrl": f"{current().settings.fhir_base}/Patient/{found.person.id}",
        "resource": found.person.resource,
        "search": {"extension": grade, "mode": "match", "score": _score(found.probability)},
    }


def _score(probability: float) -> float:
    """Six digits; never 1, which would claim certainty."""
    return min(round(probability, 6), 0.999999)


def _idi_searchset(found: Sequence[Match], several: bool) -> Resource:
    settings = current().settings
    organization = {
        "resourceType": "Organization",
        "id": "exchange",
        "active": True,
        "name": "Health information exchange",
        "contact": [{"telecom": [{"system": "url", "value": settings.base_url}]}],
    }
    entries: list[Resource] = [
        {
            "fullUrl": f"{settings.fhir_base}/Organization/exchange",
            "resource": organization,
            "search": {"mode": "include"},
        },
        *(_entry(m) for m in found),
    ]
    if several:
        outcome = {**fhir.outcome(fhir.issue("information", "multiple-matches", _SEVERAL)), "id": new_id()}
        address = f"{settings.fhir_base}/OperationOutcome/{outcome['id']}"
        entries.append({"fullUrl": address, "resource": outcome, "search": {"mode": "outcome"}})
    return {
        "resourceType": "Bundle",
        "identifier": {
            "system": settings.fhir_base,
            "value": new_id(),
            "assigner": {"reference": f"{settings.fhir_base}/Organization/exchange"},
        },
        "type": "searchset",
        "timestamp": instant(current().clock()),
        "entry": entries,
    }
