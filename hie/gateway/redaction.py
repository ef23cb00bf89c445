"""What must not tell of what is withheld: parts of a released resource that speak of others (CONSENT.md section 6).

A contained resource is a part of its container, is decided on by itself, and goes with every reference to it. The rest
depends on the person's policy alone, never on whether anything is in fact withheld, so that nothing shows: where
something that the member holds could be withheld (`guarded`), narrative and attachments, which quote a whole chart and
cannot be segmented, stay behind, and so do names in references that no id stands for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from hie.core.fhir import Resource, walk

PUBLIC_TYPES = frozenset(
    {"Practitioner", "PractitionerRole", "Organization", "Location", "Medication", "Device", "HealthcareService"}
)
"""Types that say nothing of a patient by themselves; references to them keep their display."""

_ATTACHMENTS = frozenset({"attachment", "presentedForm", "valueAttachment", "contentAttachment", "photo", "image"})
_SAID_OF_ATTACHMENTS = ("contentType", "language", "creation")
_MASKED = {"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "masked"}

_CLINICAL_REFERENCES = frozenset(
    {
        "addresses",
        "basedOn",
        "complicationDetail",
        "condition",
        "derivedFrom",
        "diagnosisReference",
        "encounter",
        "episodeOfCare",
        "focus",
        "goal",
        "hasMember",
        "imagingStudy",
        "outcomeReference",
        "partOf",
        "priorPrescription",
        "procedureReference",
        "reasonReference",
        "related",
        "replaces",
        "report",
        "result",
        "specimen",
        "supportingInfo",
        "supportingInformation",
    }
)
"""Elements that refer to what is recorded of the patient; without an id, their words are all there is."""


def attachments(node: Any, name: str = "") -> Iterator[Resource]:
    """Every Attachment inside `node`: told by its element, or by its content type."""
    stack = [(name, node)]
    while stack:
        element, current = stack.pop()
        if isinstance(current, list):
            stack.extend((element, item) for item in current)
        elif isinstance(current, dict):
            if element in _ATTACHMENTS or "contentType" in current:
                yield current
            else:
                stack.extend(current.items())


def redact(leaving: Resource, denied_parts: Collection[int], *, guarded: bool) -> None:
    """Take out of a released resource what it says of others.

    `denied_parts`: places in `contained` that were denied.
    """
    if denied_parts:
        _remove_contained(leaving, denied_parts)
    if not guarded:
        return
    for resource in (leaving, *_contained(leaving)):
        resource.pop("text", None)
        resource.pop("_text", None)
    for attachment in list(attachments(leaving)):
        said = {key: attachment[key] for key in _SAID_OF_ATTACHMENTS if key in attachment}
        attachment.clear()
        attachment.update(said or {"extension": [dict(_MASKED)]})
    _forget_names(leaving)


def _contained(resource: Resource) -> list[Resource]:
    found = resource.get("contained")
    return [part for part in found if isinstance(part, dict)] if isinstance(found, list) else []


def _remove_contained(leaving: Resource, denied: Collection[int]) -> None:
    parts = leaving["contained"]
    gone = {f"#{parts[place].get('id')}" for place in denied}
    leaving["contained"] = [part for place, part in enumerate(parts) if place not in denied]
    kept = _without(leaving, gone)
    leaving.clear()
    leaving.update(kept)


def _without(node: Any, gone: Collection[str]) -> Any:
    """`node` without references to `gone`, and without what is empty for it."""
    if isinstance(node, dict):
        if node.get("reference") in gone:
            return None
        kept = {key: _without(value, gone) for key, value in node.items()}
        return {key: value for key, value in kept.items() if value is not None} or None
    if isinstance(node, list):
        return [kept for item in node if (kept := _without(item, gone)) is not None] or None
    return node


def _forget_names(leaving: Resource) -> None:
    for node in walk(leaving):
        for element in _CLINICAL_REFERENCES & node.keys():
            value = node[element]
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, dict) and not isinstance(reference.get("reference"), str):
                    _forget(reference)


def _forget(reference: Resource) -> None:
    """A logical reference keeps its type; one that held nothing else says that something is not said."""
    if "coding" in reference or "code" in reference:  # CarePlan.activity.detail.code and the like: no reference
        return
    named = [key for key in ("display", "identifier") if key in reference]
    for key in named:
        del reference[key]
    if named and not reference:
        reference["extension"] = [dict(_MASKED)]
