"""A member's resource in the exchange's terms: gateway ids, rewritten references, named source (pure).

PROFILES 1.8 points 7 and 8. Works on a copy of the plain JSON; unknown elements stay untouched. References to another
patient, and addresses at the member or at strangers, are taken out: the caller could not use them, and each would be a
road around the exchange. Consent is asked about the rewritten resource, since consents speak the exchange's terms;
`finish` then does what depends on the decisions.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from hie.core.fhir import Resource, local_reference, walk
from hie.gateway.redaction import PUBLIC_TYPES, attachments

_RELATIVE = re.compile(r"([A-Z][A-Za-z]{1,63})/([A-Za-z0-9.-]{1,64})(?:/_history/[A-Za-z0-9.-]{1,64})?")
_PATIENT_ELEMENT = {"Coverage": "beneficiary"}

GatewayId = Callable[[str, str], str]
"""(type, local id) -> gateway id, for one member."""


@dataclass(frozen=True)
class Origin:
    """Where a resource came from, and for whom it was asked."""

    member_id: str
    base_url: str
    patient_id_system: str
    local_patient: str
    person_id: str


def local_patient_id(resource: Resource, base_url: str, patient_id_system: str) -> str | None:
    """The member's own id of the patient; None when it points elsewhere or nowhere."""
    element = _PATIENT_ELEMENT.get(resource["resourceType"])
    reference = resource.get(element) if element else resource.get("patient", resource.get("subject"))
    if not isinstance(reference, dict):
        return None
    literal = reference.get("reference")
    if literal is None:
        identifier = reference.get("identifier")
        if isinstance(identifier, dict) and identifier.get("system") == patient_id_system:
            value = identifier.get("value")
            return value if isinstance(value, str) else None
        return None
    target = _target(literal, base_url)
    return target[1] if target and target[0] == "Patient" else None


def references(resource: Resource, base_url: str) -> set[tuple[str, str]]:
    """(type, local id) of everything at the member that the resource refers to, patients left out."""
    found = (_target(node.get("reference"), base_url) for node in walk(resource))
    return {target for target in found if target and target[0] != "Patient"}


def rewrite(resource: Resource, origin: Origin, source: str, gateway_id: GatewayId) -> Resource:
    """The resource in the exchange's terms; `source` is the address of the member's Organization."""
    leaving = copy.deepcopy(resource)
    for node in walk(leaving):
        # CarePlan.activity.reference is a Reference itself: only a literal is rewritten.
        if isinstance(node.get("reference"), str):
            _rewrite_reference(node, origin, gateway_id)
    for attachment in attachments(leaving):
        if not str(attachment.get("url", "data:")).startswith("data:"):
            del attachment["url"]
    for contained in _dicts(leaving.get("contained")):
        if isinstance(contained.get("meta"), dict):
            contained["meta"].pop("source", None)
    leaving["id"] = gateway_id(resource["resourceType"], resource["id"])
    given = resource.get("meta")
    leaving["meta"] = {k: v for k, v in given.items() if k != "versionId"} if isinstance(given, dict) else {}
    leaving["meta"]["source"] = source
    return leaving


def finish(leaving: Resource, released: Collection[str], labels: Collection[tuple[str, str]]) -> None:
    """Complete a released resource in place.

    References to what is not `released` ("Type/gateway id") in the same answer lose their display and business
    identifier, since these could name what is withheld; `labels` (system, code) are added to `meta.security`.
    """
    for node in walk(leaving):
        literal = node.get("reference")
        if isinstance(literal, str) and not literal.startswith(("#", "Patient/")) and literal not in released:
            target = local_reference(literal)
            if target is None or target[0] not in PUBLIC_TYPES:
                node.pop("display", None)
                node.pop("identifier", None)
    kept = _dicts(leaving["meta"].get("security"))
    have = {(coding.get("system"), coding.get("code")) for coding in kept}
    added = [{"system": system, "code": code} for system, code in sorted(labels) if (system, code) not in have]
    if kept or added:
        leaving["meta"]["security"] = kept + added


def _target(literal: object, base_url: str) -> tuple[str, str] | None:
    """(type, id) of a reference to something at this member: relative, or absolute under its base address."""
    if not isinstance(literal, str):
        return None
    if "://" in literal:
        base = base_url.rstrip("/") + "/"
        if not literal.startswith(base):
            return None
        literal = literal.removeprefix(base)
    match = _RELATIVE.fullmatch(literal)
    return (match[1], match[2]) if match else None


def _rewrite_reference(node: Resource, origin: Origin, gateway_id: GatewayId) -> None:
    literal = node["reference"]
    if literal.startswith("#"):
        return
    target = _target(literal, origin.base_url)
    if target is None:
        del node["reference"]
    elif target == ("Patient", origin.local_patient):
        node["reference"] = f"Patient/{origin.person_id}"
    elif target[0] == "Patient":
        node.clear()
        node["display"] = "another patient"
    else:
        node["reference"] = f"{target[0]}/{gateway_id(*target)}"


def _dicts(node: object) -> list[Resource]:
    return [item for item in node if isinstance(item, dict)] if isinstance(node, list) else []
