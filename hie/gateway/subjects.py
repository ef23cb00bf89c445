"""Whom a report is about: a person as somebody names her, with every id that is the same person."""

from __future__ import annotations

from hie.audit.accounting import Subject
from hie.core.errors import NotFound
from hie.core.fhir import Resource
from hie.mpi.identity import Identifier, IdentityService


def subject(identity: IdentityService, named: str) -> Subject:
    """The person of an id, `Patient/id` or `system|value`; raises NotFound where nothing is known of her."""
    system, bar, value = named.strip().partition("|")
    asked = named.strip().removeprefix("Patient/")
    if bar:
        record = identity.source_record(Identifier(system, value))
        asked = record.person_id if record else ""
    person_ids = identity.person_ids(asked) if asked else ()
    if not person_ids:
        raise NotFound("The exchange knows no such person. Give a person id, or system|value of a patient number.")
    known = identity.person(asked)  # None where every record was deleted; the log is there all the same
    return Subject(person_ids[0], person_ids, name_of(known.resource) if known else "")


def name_of(patient: Resource) -> str:
    """Given names and family name of a golden Patient; empty where it has none."""
    for name in patient.get("name", []):
        words = " ".join([*name.get("given", []), name.get("family", "")]).strip()
        if words:
            return words
    return ""
