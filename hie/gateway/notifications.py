"""Admit, discharge and transfer notifications (HL7 Da Vinci Unsolicited Notifications, STU 1.1): the Encounter that a
message is about, with its patient and practitioners by their identifiers (pure).

The message is a Bundle: first the MessageHeader, whose focus is the Encounter; patient and practitioners are entries
that it refers to. What else is in it is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hie.core import fhir
from hie.core.errors import Unprocessable
from hie.core.fhir import Resource
from hie.mpi.identity import Identifier

EVENT_SYSTEM = "http://hl7.org/fhir/us/davinci-alerts/CodeSystem/notification-event"
EVENTS = ("notification-admit", "notification-discharge", "notification-transfer")


@dataclass(frozen=True)
class Notification:
    """What happened, to which encounter of the sender."""

    event: str
    identifier: Identifier
    encounter: Resource


def read(bundle: Resource, patient_id_system: str) -> Notification:
    """The notification of a validated Bundle; raises Unprocessable with a sentence that says what to mend.

    Its patient is named by the number that the sender assigned (`patient_id_system`), by nobody where there is not one
    such number. The Bundle's timestamp stands in for an Encounter without `meta.lastUpdated`.
    """
    entries = _Entries(bundle)
    header = entries.first
    if bundle.get("type") != "message" or header.get("resourceType") != "MessageHeader":
        raise Unprocessable("Send a Bundle of type message whose first entry is its MessageHeader.")
    fhir.validate(header, "MessageHeader")
    event = header.get("eventCoding") or {}
    if event.get("system") != EVENT_SYSTEM or event.get("code") not in EVENTS:
        raise Unprocessable(
            f"MessageHeader.eventCoding must be one of {', '.join(EVENTS)} of {EVENT_SYSTEM}.", code="not-supported"
        )
    named = [entries.find(focus) for focus in header.get("focus") or []]
    found = [resource for resource in named if resource.get("resourceType") == "Encounter"]
    if len(found) != 1:
        raise Unprocessable("MessageHeader.focus must name one Encounter that is an entry of the message.")
    fhir.validate(found[0], "Encounter")
    return Notification(
        event=event["code"],
        identifier=_identifier(found[0]),
        encounter={
            **found[0],
            "meta": {"lastUpdated": bundle.get("timestamp"), **(found[0].get("meta") or {})},
            "subject": _subject(found[0].get("subject") or {}, entries, patient_id_system),
            "participant": [
                {**participant, "individual": individual}
                for participant in found[0].get("participant") or []
                for individual in _individuals(participant.get("individual") or {}, entries)
            ],
        },
    )


class _Entries:
    """The resources of a message by what they are referred to."""

    def __init__(self, bundle: Resource) -> None:
        entries = [entry for entry in bundle.get("entry") or [] if entry.get("resource")]
        self.first: Resource = entries[0]["resource"] if entries else {}
        self._found: dict[str, Resource] = {}
        for entry in entries:
            resource = entry["resource"]
            names = {entry.get("fullUrl"), f"{resource.get('resourceType')}/{resource.get('id')}"} - {None}
            if not names.isdisjoint(self._found):
                raise Unprocessable("Two entries of the message have the same fullUrl or id.")
            self._found |= dict.fromkeys(filter(None, names), resource)

    def find(self, reference: Resource) -> Resource:
        """The entry that a reference means; empty where it is none."""
        return self._found.get(reference.get("reference") or "", {})


def _identifier(encounter: Resource) -> Identifier:
    given = [i for i in encounter.get("identifier") or [] if i.get("system") and i.get("value")]
    official = [i for i in given if i.get("use") == "official"]
    found = {Identifier(i["system"], i["value"]) for i in official or given}
    if len(found) != 1:
        raise Unprocessable(
            "Encounter.identifier needs one identifier with system and value, by which you name the encounter in all "
            "messages; of several, mark it with use official."
        )
    return found.pop()


def _subject(subject: Resource, entries: _Entries, patient_id_system: str) -> Resource:
    patient = entries.find(subject)
    if not patient:
        return subject
    fhir.validate(patient, "Patient")
    numbers = {i.get("value") for i in patient.get("identifier") or [] if i.get("system") == patient_id_system}
    return {"identifier": {"system": patient_id_system, "value": numbers.pop()}} if len(numbers) == 1 else {}


def _individuals(individual: Resource, entries: _Entries) -> Iterator[Resource]:
    """A participant by each of the identifiers of the practitioner whom it refers to, or as it is."""
    found = entries.find(individual)
    if found.get("resourceType") == "PractitionerRole":
        fhir.validate(found, "PractitionerRole")
        found = entries.find(found.get("practitioner") or {})
    if individual.get("identifier") or found.get("resourceType") != "Practitioner":
        yield individual
        return
    fhir.validate(found, "Practitioner")
    for identifier in found.get("identifier") or []:
        yield {"type": "Practitioner", "identifier": identifier}
