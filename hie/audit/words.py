"""Entries of the log in plain words: for the patient who asks who looked, and for the officer who reads many (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from hie.audit.access import Access
from hie.core.caller import EXCHANGE
from hie.core.purposes import DISPLAY

TYPES: Mapping[str, tuple[str, str]] = {
    "AllergyIntolerance": ("allergy", "allergies"),
    "CarePlan": ("care plan", "care plans"),
    "Condition": ("condition", "conditions"),
    "Consent": ("privacy choice", "privacy choices"),
    "Coverage": ("insurance", "insurances"),
    "DiagnosticReport": ("test report", "test reports"),
    "DocumentReference": ("document", "documents"),
    "Encounter": ("visit", "visits"),
    "ExplanationOfBenefit": ("insurance claim", "insurance claims"),
    "Immunization": ("vaccination", "vaccinations"),
    "MedicationRequest": ("prescription", "prescriptions"),
    "MedicationStatement": ("medication", "medications"),
    "Observation": ("test result or measurement", "test results and measurements"),
    "Procedure": ("procedure", "procedures"),
}
"""Resource types as a patient calls them, one and several."""

DEMOGRAPHICS = "name, birth date, sex, address, telephone and patient numbers"
NO_RECORDS = "no records"

_PURPOSES = {
    "TREAT": "treatment",
    "ETREAT": "emergency treatment",
    "BTG": "an emergency, beyond the privacy choices (break-glass)",
    "HPAYMT": "payment for care",
    "HOPERAT": "running the organization",
    "PATRQT": "the patient's own request",
    "PUBHLTH": "public health",
}
# NUCC provider taxonomy: the first characters say the group (codes of a subject_role).
_TAXONOMY = (
    ("2084", "psychiatrist or neurologist"),
    ("20", "physician"),
    ("1835", "pharmacist"),
    ("183", "pharmacist"),
    ("163W", "nurse"),
    ("164", "nurse"),
    ("363L", "nurse practitioner"),
    ("363A", "physician assistant"),
    ("146", "paramedic"),
    ("103", "psychologist"),
    ("12", "dentist"),
)
_ROLES = {"clinician": "clinician", "payer": "insurance staff", "patient": "patient", "member": "system"}
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def day(at: datetime) -> str:
    """`4 May 2026`, in UTC."""
    at = at.astimezone(UTC)
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}"


def clock(at: datetime) -> str:
    """`03:12 UTC`."""
    return f"{at.astimezone(UTC):%H:%M} UTC"


def moment(at: datetime) -> str:
    """`4 May 2026, 03:12 UTC`."""
    return f"{day(at)}, {clock(at)}"


def count(number: int, one: str, several: str | None = None) -> str:
    """`1 record`, `2 records`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def listing(parts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def capitalised(text: str) -> str:
    """The first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def resource_type(name: str, number: int = 2) -> str:
    """`allergies` of AllergyIntolerance; a type without a word of its own as it is called in FHIR."""
    return TYPES.get(name, (name, name))[number != 1]


def what(access: Access) -> str:
    """What left with an answer: `2 allergies and 1 condition`."""
    return what_of(access.types) if access.opened else DEMOGRAPHICS


def what_of(types: Mapping[str, int]) -> str:
    """Released resources by type."""
    return listing(f"{types[t]:,} {resource_type(t, types[t])}" for t in sorted(types)) if types else NO_RECORDS


def purpose(code: str) -> str:
    """One purpose of use."""
    return _PURPOSES.get(code, DISPLAY.get(code, code))


def why(access: Access) -> str:
    """The purpose that was asserted, and the reason given where the glass was broken."""
    if access.break_glass is not None:
        return f"{purpose('BTG')}; the reason given: “{access.break_glass}”"
    kept = [code for code in access.purposes if not (code == "TREAT" and "ETREAT" in access.purposes)]
    return listing(purpose(code) for code in kept) or "not stated"


def who(access: Access) -> str:
    """`Dr. Rosa Ortiz (physician) of Harbor Emergency Hospital`."""
    if access.organization is None:
        return f"An unidentified caller ({access.client_id})" if access.client_id else "An unidentified caller"
    name = access.organization_name or access.organization
    if access.organization == EXCHANGE:
        name = "the exchange"
    role = access.subject_role or access.role or ""
    role = next((word for start, word in _TAXONOMY if role.startswith(start)), _ROLES.get(role, role.replace("-", " ")))
    if access.user_name or access.user_id:
        return f"{access.user_name or access.user_id}{f' ({role})' if role else ''} of {name}"
    return f"A system of {name}"


def sentence(access: Access) -> str:
    """What happened, in one sentence for the person whose data it is."""
    if access.archived:
        return "An entry that was archived; ask the privacy officer for it."
    if access.role == "patient":
        return f"You {_did(access).replace(' you ', ' yourself ').replace('and was ', 'and were ')}."
    return f"{who(access)} {_did(access)}."


def _did(access: Access) -> str:
    if access.kind == "disclosure":
        looked = f"looked at {what(access)}" if access.released else "asked for your records and was shown none"
        held_back = f"; {count(access.withheld, 'record')} stayed hidden" if access.withheld else ""
        return f"{looked}{held_back}, for {why(access)}"
    if access.kind == "search":
        return f"found you in a patient search and saw your {DEMOGRAPHICS}, for {why(access)}"
    if access.kind == "denial":
        return f"asked for your records and was refused ({access.description.rstrip('.') or 'not allowed'})"
    if access.kind == "failure":
        return "asked for your records and got none, because no organization answered"
    if access.kind == "feed":
        done = {"C": "registered you", "D": "removed its registration of you"}.get(access.action)
        return done or "sent your registration data again"
    if access.kind == "consent":
        done = {"C": "filed a privacy choice of yours", "U": "changed a privacy choice of yours"}.get(access.action)
        return done or ("withdrew a privacy choice of yours" if access.action == "D" else "read your privacy choices")
    if access.kind == "log-read":
        return f"read this list of accesses ({access.description or 'the log'})"
    if access.kind == "review":
        return f"reviewed an access to your records: {access.description.rstrip('.')}"
    if access.kind == "link":
        return f"decided which records are yours: {access.description.rstrip('.')}"
    return access.description.rstrip(".") or access.kind
