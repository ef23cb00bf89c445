"""One entry of the log, read back from its AuditEvent into the exchange's own terms (pure).

The counterpart of `balp.py`: reports, the review queue and the pages read entries through it and know no FHIR.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from hie.audit import codes
from hie.audit.columns import columns
from hie.audit.entry import Entry
from hie.audit.event import Outcome, Released, SourceOutcome
from hie.core.caller import EXCHANGE
from hie.core.fhir import Resource

PART2_LABEL = "42CFRPart2"
PART2_NOTICE = "42-cfr-2.32"
"""The obligation that goes with a record under 42 CFR Part 2 (its notice against redisclosure)."""


@dataclass(frozen=True)
class Governing:
    """A version of a consent that decided, and the SHA-256 of its text; empty in entries before that was kept."""

    reference: str
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.reference} (SHA-256 {self.sha256})" if self.sha256 else self.reference


@dataclass(frozen=True)
class Access:
    """Who did what to whose data, when and why. An archived entry has its place and time alone."""

    index: int
    entry_id: str
    at: datetime
    kind: str
    outcome: str
    action: str
    person_id: str | None
    organization: str | None
    organization_name: str
    user_id: str | None
    user_name: str | None
    role: str | None
    subject_role: str | None
    client_id: str | None
    network: str
    purposes: tuple[str, ...]
    request: str
    request_id: str | None
    session: str | None
    description: str
    break_glass: str | None
    """The reason that was declared."""
    released: tuple[Released, ...]
    sources: tuple[SourceOutcome, ...]
    consents: tuple[Governing, ...]
    """By which something was released."""
    decisions: tuple[str, ...]
    """The decision trace, a phrase each: what was decided by which rule or version of a consent, how often."""
    part2_notice: bool
    withheld: int
    archived: bool = False

    @property
    def actor(self) -> tuple[str, str]:
        """Organization and user id, or system where none is given: what incidents are grouped by."""
        return self.organization or "", self.user_id or self.client_id or ""

    @property
    def actor_name(self) -> str:
        """A person's name where one is given, else the system's or a word for nobody."""
        return self.user_name or self.user_id or self.client_id or "not identified"

    @property
    def types(self) -> Counter[str]:
        """Released resources by type."""
        return Counter(released.type for released in self.released)

    @property
    def opened(self) -> bool:
        """Records of the person were asked for, and the door answered."""
        return self.kind == "disclosure" and self.person_id is not None

    @property
    def shown(self) -> bool:
        """The person's demographics were shown in a search."""
        return self.kind == "search" and self.person_id is not None and self.outcome == Outcome.SUCCESS

    @property
    def left(self) -> bool:
        """Data of the person left the exchange for another organization or for the patient."""
        return (self.opened or self.shown) and self.organization != EXCHANGE

    @property
    def under_part2(self) -> bool:
        """What left was marked as 42 CFR Part 2, by label or by the notice that went with it."""
        return self.part2_notice or any(PART2_LABEL in released.labels for released in self.released)


def read(entry: Entry) -> Access:
    """The entry in the exchange's terms."""
    body = entry.resource
    found = columns(body)
    entities: list[Resource] = body.get("entity", [])
    user: Resource = next((agent for agent in body["agent"] if "role" in agent), {})
    decisions = [entity for entity in entities if _role(entity) == codes.SECURITY_RESOURCE.code]
    return Access(
        index=entry.index,
        entry_id=entry.entry_id,
        at=entry.recorded,
        kind=entry.kind,
        outcome=found.outcome,
        action=found.action,
        person_id=found.person_id,
        organization=found.organization,
        organization_name=_organization_name(body["agent"]) or found.organization or "",
        user_id=found.user_id,
        user_name=user.get("name") or user.get("who", {}).get("display"),
        role=next((role for entity in decisions if (role := _detail(entity, "role"))), None),
        subject_role=next((role["text"] for role in user.get("role", []) if "text" in role), None),
        client_id=found.client_id,
        network=next((a["network"]["address"] for a in body["agent"] if a.get("network", {}).get("type") == "2"), ""),
        purposes=tuple(sorted(found.purposes)),
        request=next((_decoded(entity["query"]) for entity in entities if "query" in entity), ""),
        request_id=found.request_id,
        session=found.session,
        description=body.get("outcomeDesc", ""),
        break_glass=_break_glass(decisions),
        released=tuple(_released(entities)),
        sources=tuple(_sources(entities)),
        consents=tuple(dict.fromkeys(_consents(decisions))),
        decisions=tuple(map(_phrase, (entity for entity in decisions if _detail(entity, "permit")))),
        part2_notice=any(PART2_NOTICE in d["valueString"] for e in decisions for d in e.get("detail", [])),
        withheld=int(_detail(next((e for e in entities if _role(e) == codes.PATIENT_ROLE.code), {}), "withheld") or 0),
        archived=entry.archived,
    )


def _role(entity: Resource) -> str | None:
    code: str | None = entity.get("role", {}).get("code")
    return code


def _detail(entity: Resource, kind: str) -> str | None:
    return next((d["valueString"] for d in entity.get("detail", []) if d["type"] == kind), None)


def _reference(entity: Resource) -> str:
    reference: str = entity.get("what", {}).get("reference", "")
    return reference


def _organization_name(agents: list[Resource]) -> str | None:
    for agent in agents:
        if any(coding["code"] == codes.PROVIDER.code for coding in agent["type"]["coding"]):
            name: str | None = agent["who"].get("display")
            return name
    return None


def _decoded(query: str) -> str:
    try:
        return base64.b64decode(query, validate=True).decode("utf-8", "replace")
    except binascii.Error:
        return ""


def _break_glass(decisions: list[Resource]) -> str | None:
    declared = next((entity for entity in decisions if _detail(entity, "break-glass") == "declared"), None)
    return (_detail(declared, "reason") or "no reason kept") if declared else None


def _released(entities: list[Resource]) -> Iterator[Released]:
    for entity in entities:
        digest = _detail(entity, "sha256")
        kind, _, id = _reference(entity).partition("/")
        if digest and id:
            yield Released(kind, id, digest, tuple(label["code"] for label in entity.get("securityLabel", [])))


def _sources(entities: list[Resource]) -> Iterator[SourceOutcome]:
    for entity in entities:
        if _role(entity) == codes.DATA_REPOSITORY.code:
            member_id = _reference(entity).removeprefix("Organization/")
            yield SourceOutcome(member_id, _detail(entity, "status") or "", int(_detail(entity, "count") or 0))


def _phrase(decision: Resource) -> str:
    by = _detail(decision, "rule") or ""
    if reference := _reference(decision):
        by = f"{by}, {Governing(reference, _detail(decision, 'consentSha256') or '')}"
    what = "permitted" if _detail(decision, "permit") == "true" else "withheld"
    number = _detail(decision, "count")
    custodian = _detail(decision, "custodian")
    times = f" {number}" if number else f" all of {custodian}" if custodian else ""
    return f"{what}{times} by {by}"


def _consents(decisions: list[Resource]) -> Iterator[Governing]:
    for entity in decisions:
        if _reference(entity).startswith("Consent/") and _detail(entity, "permit") == "true":
            yield Governing(_reference(entity), _detail(entity, "consentSha256") or "")
