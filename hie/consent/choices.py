"""What a patient may choose at the console, and the FHIR Consent that says it (PCF profiles; pure).

Four choices cover what people ask for: share everything, share in emergencies only, keep some kinds of record back,
keep some organizations out; the last two go together. `choice_of` reads a Consent back where it says just one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hie.consent.vocabulary import ACT_CODE, ACT_REASON
from hie.core.clock import instant
from hie.core.fhir import Resource

SHARE_ALL, EMERGENCIES_ONLY, SHARE_SOME = "all", "emergencies", "some"

CATEGORIES: Mapping[str, str] = {
    "BH": "Mental health and substance use",
    "STD": "HIV and sexually transmitted infections",
    "SEX": "Sexual and reproductive health",
    "GDIS": "Genetic conditions",
    "SDV": "Violence and abuse",
}
"""Sensitivity codes that may be kept back, in words for the patient."""

_SCOPE = {"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}
_CATEGORY = {"system": "http://loinc.org", "code": "59284-0", "display": "Consent Document"}
_RECIPIENT = {"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "IRCP"}
_EMERGENCIES = ("ETREAT", "BTG")
_PART2 = {"system": ACT_CODE, "code": "42CFRPart2"}


@dataclass(frozen=True)
class Choice:
    """One choice. `categories` and `organizations` are what is kept back, for `some`."""

    kind: str
    categories: frozenset[str] = frozenset()
    organizations: frozenset[str] = frozenset()
    """Member ids that get nothing."""
    with_part2: bool = False
    """Whether it covers substance use treatment under 42 CFR Part 2, which no other choice shares."""

    @property
    def valid(self) -> bool:
        if self.kind == SHARE_SOME:
            return bool(self.categories or self.organizations) and self.categories <= CATEGORIES.keys()
        return self.kind in (SHARE_ALL, EMERGENCIES_ONLY) and not self.categories and not self.organizations


def consent_of(choice: Choice, person_id: str, now: datetime) -> Resource:
    """The Consent that says a choice."""
    category = [{"coding": [_CATEGORY]}]
    if choice.with_part2:
        category.append({"coding": [_PART2]})
    rule = "OPTOUT" if choice.kind == EMERGENCIES_ONLY else "OPTIN"
    return {
        "resourceType": "Consent",
        "status": "active",
        "scope": {"coding": [_SCOPE]},
        "category": category,
        "patient": {"reference": f"Patient/{person_id}"},
        "dateTime": instant(now),
        "policyRule": {"coding": [{"system": ACT_CODE, "code": rule}]},
        "provision": _provision(choice),
    }


def choice_of(consent: Resource) -> Choice | None:
    """The choice that a Consent says; None where it says something else."""
    root = consent.get("provision") or {}
    children = root.get("provision") or []
    with_part2 = {"coding": [_PART2]} in (consent.get("category") or [])
    labels = [c.get("code", "") for p in children for c in p.get("securityLabel") or []]
    actors = [
        a.get("reference", {}).get("reference", "").removeprefix("Organization/")
        for p in children
        for a in p.get("actor") or []
    ]
    kind = EMERGENCIES_ONLY if root.get("type") == "deny" else SHARE_SOME if children else SHARE_ALL
    read = Choice(kind, frozenset(labels), frozenset(actors), with_part2)
    return read if read.valid and root == _provision(read) else None


def _provision(choice: Choice) -> Resource:
    if choice.kind == EMERGENCIES_ONLY:
        purposes = [{"system": ACT_REASON, "code": code} for code in _EMERGENCIES]
        return {"type": "deny", "provision": [{"type": "permit", "purpose": purposes}]}
    kept_back: list[Resource] = []
    if choice.categories:
        labels = [{"system": ACT_CODE, "code": code} for code in sorted(choice.categories)]
        kept_back.append({"type": "deny", "securityLabel": labels})
    if choice.organizations:
        actors = [
            {"role": {"coding": [_RECIPIENT]}, "reference": {"reference": f"Organization/{member_id}"}}
            for member_id in sorted(choice.organizations)
        ]
        kept_back.append({"type": "deny", "actor": actors})
    return {"type": "permit", "provision": kept_back} if kept_back else {"type": "permit"}
