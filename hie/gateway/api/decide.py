"""`POST /fhir/Consent/$decide`: what somebody would be given of a person, and why (CONSENT.md section 7).

FHIR has no operation for it; this one takes and gives Parameters (docs/consent.md). The same question in the shape of
the LEAP and SHARES consent decision services is the CDS Hook `patient-consent-consult`, answered from the policy alone.
Both are for the exchange's privacy officers, and logged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flask import Blueprint, Response, request

from hie.consent.policy import (
    PersonPolicy,
    Request,
    could_release,
    could_withhold,
    labels_denied,
)
from hie.consent.vocabulary import ACT_CODE, PURPOSES
from hie.core import fhir
from hie.core.caller import EXCHANGE, Caller, Role
from hie.core.clock import instant
from hie.core.errors import BadRequest, Forbidden, NotFound, UnsupportedMediaType
from hie.core.fhir import CLINICAL_TYPES, Resource
from hie.gateway.api.context import caller, keep_nothing, request_id
from hie.gateway.api.formats import answer
from hie.gateway.preview import Because, Preview, Somebody, may_ask, somebody
from hie.gateway.services import current
from hie.mpi.identity import Identifier, Person

blueprint = Blueprint("decide", __name__)
keep_nothing(blueprint)

_ROLES = {role.value: role for role in (Role.MEMBER, Role.CLINICIAN, Role.PAYER)}
_PARAMETERS = frozenset({"patient", "identifier", "recipient", "role", "purpose", "actor", "type", "break-glass"})


@blueprint.post("/fhir/Consent/$decide")
def decide() -> Response:
    """Per organization and type: how many would leave, how many not, and by which rule, consent and provision."""
    asking = caller()
    _check_asking(asking)
    if request.mimetype not in (fhir.FHIR_JSON, "application/json"):
        raise UnsupportedMediaType(f"Send the question as {fhir.FHIR_JSON}.")
    given = _Given(fhir.parse_resource(request.get_data(), "Parameters"))
    preview = current().release.preview(
        asking, given.person_id(), given.somebody(), given.types(), query="Consent/$decide", request_id=request_id()
    )
    return answer(answer_of(preview))


def answer_of(preview: Preview) -> Resource:
    """The answer as Parameters."""
    parameters: list[Resource] = [
        {"name": "decision", "valueCode": preview.verdict},
        {"name": "patient", "valueReference": {"reference": f"Patient/{preview.person_id}"}},
        {"name": "restricted", "valueBoolean": preview.restricted},
    ]
    for source in preview.sources:
        part: list[Resource] = [
            {
                "name": "organization",
                "valueReference": {"reference": f"Organization/{source.member_id}", "display": source.member_name},
            },
            {"name": "asked", "valueBoolean": source.asked},
            {"name": "status", "valueCode": source.status},
        ]
        for one in source.types:
            inner: list[Resource] = [
                {"name": "type", "valueCode": one.type},
                {"name": "released", "valueInteger": one.released},
                {"name": "withheld", "valueInteger": one.withheld},
                *({"name": "because", "part": list(_because(reason))} for reason in one.reasons),
            ]
            part.append({"name": "resources", "part": inner})
        parameters.append({"name": "source", "part": part})
    return {"resourceType": "Parameters", "parameter": parameters}


def _because(reason: Because) -> Iterator[Resource]:
    yield {"name": "permit", "valueBoolean": reason.permit}
    yield {"name": "rule", "valueCode": reason.rule}
    yield {"name": "reason", "valueString": reason.reason or reason.rule}
    if reason.consent is not None:
        yield {"name": "consent", "valueReference": {"reference": reason.consent}}
        yield {"name": "provision", "valueString": provision_of(reason.path)}
    if reason.break_glass:
        yield {"name": "break-glass", "valueBoolean": True}
    yield {"name": "count", "valueInteger": reason.count}


def provision_of(path: tuple[int, ...]) -> str:
    """The deciding provision as a path into the Consent."""
    return "provision" + "".join(f".provision[{index}]" for index in path)


def _check_asking(asking: Caller) -> None:
    asking.require("Consent", "r")
    if not may_ask(asking, (), ()):
        raise Forbidden("Only the exchange's privacy officers may ask what would be released.")


class _Given:
    """The parameters of one question; raises BadRequest or NotFound."""

    def __init__(self, body: Resource) -> None:
        self._values: dict[str, list[Any]] = {}
        for parameter in body.get("parameter") or []:
            values = [value for key, value in parameter.items() if key.startswith("value")]
            if parameter.get("name") not in _PARAMETERS or len(values) != 1:
                raise BadRequest(f"$decide takes {', '.join(sorted(_PARAMETERS))}, each with a value.", code="value")
            self._values.setdefault(parameter["name"], []).append(values[0])

    def person_id(self) -> str:
        """The exchange's id of the person that `patient` or `identifier` names."""
        reference, identifier = self._one("patient"), self._one("identifier")
        if (reference is None) == (identifier is None):
            raise BadRequest("Name the patient: either patient or identifier.", code="required")
        if identifier is not None:
            return _identified(identifier).id
        literal = reference.get("reference") if isinstance(reference, dict) else reference
        if not isinstance(literal, str):
            raise BadRequest("patient must be a reference to Patient/<id>.", code="value")
        return literal.removeprefix(f"{current().settings.fhir_base}/").removeprefix("Patient/")[:64]

    def somebody(self) -> Somebody:
        """The supposed caller."""
        recipient = self._one("recipient")
        literal = recipient.get("reference") if isinstance(recipient, dict) else recipient
        if not isinstance(literal, str):
            raise BadRequest("recipient must be a reference to Organization/<member id>.", code="required")
        purposes = [str(code) for code in self._values.get("purpose", ())]
        if not purposes or not set(purposes) <= PURPOSES:
            raise BadRequest("purpose must be one or more v3 ActReason codes, such as TREAT.", code="value")
        role = self._one("role")
        if role is not None and role not in _ROLES:
            raise BadRequest(f"role must be one of {', '.join(sorted(_ROLES))}.", code="value")
        supposed = somebody(
            current().directory,
            literal.removeprefix(f"{current().settings.fhir_base}/").removeprefix("Organization/"),
            purposes,
            role=_ROLES[role] if role else None,
            break_glass=self._one("break-glass") is True,
        )
        more = frozenset(str(actor) for actor in self._values.get("actor", ()))
        return Somebody(supposed.organization, supposed.role, supposed.purposes, more, supposed.break_glass)

    def types(self) -> tuple[str, ...]:
        """The types asked about, all where none is named."""
        wanted = [str(kind) for kind in self._values.get("type", ())]
        if not set(wanted) <= set(CLINICAL_TYPES):
            raise BadRequest("type must be a type that the exchange federates.", code="value")
        return tuple(kind for kind in CLINICAL_TYPES if not wanted or kind in wanted)

    def _one(self, name: str) -> Any:
        values = self._values.get(name, [])
        if len(values) > 1:
            raise BadRequest(f"{name} may be given once.", code="value")
        return values[0] if values else None


def _identified(identifier: Any) -> Person:
    given: Mapping[str, Any] = identifier if isinstance(identifier, dict) else {}
    system, value = given.get("system"), given.get("value")
    if system is None and isinstance(value, str) and value.startswith("Patient/"):
        return _known(current().identity.person(value.removeprefix("Patient/")))
    if not isinstance(system, str) or not isinstance(value, str):
        raise BadRequest("identifier must have a system and a value.", code="value")
    record = current().identity.source_record(Identifier(system, value))
    return _known(current().identity.person(record.person_id) if record else None)


def _known(person: Person | None) -> Person:
    if person is None:
        raise NotFound("The exchange knows no such person.")
    return person


def _purposes(given: object) -> frozenset[str]:
    """One purpose or several, in the hook's either form; none means treatment."""
    listed = [given] if isinstance(given, str) else given or ["TREAT"]
    if not isinstance(listed, list) or not all(isinstance(one, str) and one in PURPOSES for one in listed):
        raise BadRequest("purposeOfUse must be v3 ActReason codes, such as TREAT.", code="value")
    return frozenset(listed)


# -- the same as a CDS Hook


@blueprint.get("/cds-services")
def services() -> Response:
    """Discovery (CDS Hooks 2.0): what may be asked here."""
    service = {
        "hook": "patient-consent-consult",
        "id": "patient-consent-consult",
        "title": "Consent decision",
        "description": "Whether a patient's consents permit a use, and what must be left out. For privacy officers.",
    }
    return Response(fhir.to_bytes({"services": [service]}), content_type="application/json")


@blueprint.post("/cds-services/patient-consent-consult")
def consult() -> Response:
    """The hook of the LEAP consent decision service: one card whose extension holds decision and obligations."""
    asking = caller()
    _check_asking(asking)
    body = fhir.parse_json(request.get_data())
    context = body.get("context") if isinstance(body, dict) else None
    if not isinstance(context, dict):
        raise BadRequest("The hook needs a context.", code="required")
    patients = context.get("patientId")
    if not isinstance(patients, list) or not patients:
        raise BadRequest("The context needs patientId.", code="required")
    purposes = _purposes(context.get("purposeOfUse"))
    person = _identified(patients[0])
    actors = [a for a in context.get("actor") or () if isinstance(a, dict)]
    supposed = Somebody(
        organization=EXCHANGE,
        role=Role.MEMBER,
        purposes=purposes,
        actors=frozenset(str(a["value"]) for a in actors if isinstance(a.get("value"), str)),
    ).request(current().clock)
    policy = current().release.policy_for(asking, person, query="patient-consent-consult", request_id=request_id())
    return Response(fhir.to_bytes({"cards": [_card(policy, supposed)]}), content_type="application/json")


def _card(policy: PersonPolicy, supposed: Request) -> Resource:
    decision, obligations = _consulted(policy, supposed)
    governing = policy.governing("", supposed.now)
    extension: Resource = {"decision": decision, "dateTime": instant(supposed.now), "obligations": obligations}
    if governing:
        extension["basedOn"] = governing[0].reference
    return {
        "summary": decision,
        "detail": {
            "CONSENT_PERMIT": "The patient's consents permit it, but for what the obligations name.",
            "CONSENT_DENY": "The patient's consents deny it.",
            "NO_CONSENT": "No consent governs this; the exchange's default holds.",
        }[decision],
        "indicator": "info" if decision != "CONSENT_DENY" else "warning",
        "source": {"label": "Health information exchange", "url": current().settings.base_url},
        "extension": extension,
    }


def _consulted(policy: PersonPolicy, supposed: Request) -> tuple[str, list[Resource]]:
    if not policy.governing("", supposed.now):
        return "NO_CONSENT", []
    if not could_release(policy, supposed, ""):
        return "CONSENT_DENY", []
    codes = sorted(labels_denied(policy, supposed, ""))
    if not codes or not could_withhold(policy, supposed, ""):
        return "CONSENT_PERMIT", []
    redact = {"id": {"system": ACT_CODE, "code": "REDACT"}}
    return "CONSENT_PERMIT", [{**redact, "parameters": {"codes": [{"system": ACT_CODE, "code": c} for c in codes]}}]
