"""What an Encounter, ServiceRequest or CareTeam says of whom a member treats, and nothing else of it (pure).

| type | relation | from | until |
|---|---|---|---|
| Encounter | admission by the class codes of a stay, else encounter | period | period |
| ServiceRequest | referral | occurrence, else authoredOn | open until completed |
| CareTeam | panel | period | period; suspended or inactive, at the latest when that was received |

Codes, reasons, notes and places are read by nobody. Every element that is read was validated against the R4B model,
which knows no code of a required binding and lets text stand for a boolean: those are checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from hie.audit.relations import Relation
from hie.core import fhir, stamps
from hie.core.errors import Unprocessable
from hie.core.fhir import Resource
from hie.gateway.record_search import date_range
from hie.mpi.people import MAX_IDENTIFIER

MAX_PRACTITIONERS = 100
_STAY = frozenset({"IMP", "ACUTE", "NONAC", "OBSENC", "EMER", "SS"})
"""Codes of v3-ActEncounterCode for patients who are in the house."""
_PRACTITIONERS = frozenset({"Practitioner", "PractitionerRole"})
_INSTANT = timedelta(microseconds=1)
_FIRST, _LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


class Standing(StrEnum):
    """Whether a relation explains accesses."""

    HOLDS = "holds"
    PENDING = "pending"
    """It may come to be: drafted, proposed, or of a status that is not known."""
    WITHDRAWN = "withdrawn"
    """It never was, or came to nothing."""
    DELETED = "deleted"


@dataclass(frozen=True)
class Message:
    """What one message says. `practitioners` are `system|value`, or the value alone where there is no system."""

    relation: Relation
    standing: Standing
    starts: datetime | None
    ends: datetime | None
    over: bool
    """It has ended, also where the message does not say when."""
    practitioners: tuple[str, ...]
    stamped: datetime | None
    """The source's own `meta.lastUpdated`."""
    over_since: datetime | None = None
    """When it ended as far as the stamp tells; None for the time of receipt."""


def read(resource: Resource) -> Message:
    """What a validated resource of one of `TYPES` says; raises Unprocessable with a sentence that says what to mend."""
    kind = resource["resourceType"]
    if resource.get("implicitRules") or any(node.get("modifierExtension") for node in fhir.walk(resource)):
        raise Unprocessable(f"The exchange takes no modifierExtension or implicitRules in this {kind}.")
    return TYPES[kind](resource)


def _encounter(encounter: Resource) -> Message:
    status = _code(encounter, "status", _ENCOUNTER)
    stay = (encounter.get("class") or {}).get("code") in _STAY
    starts, ends = _period(encounter.get("period"), "Encounter.period")
    standing = _ENCOUNTER[status]
    if status == "planned":  # that somebody came is still to be told
        ends = ends or starts
        standing = standing if starts else Standing.PENDING
    stamped = stamps.last_updated(encounter)
    return Message(
        relation=Relation.ADMISSION if stay else Relation.ENCOUNTER,
        standing=standing,
        starts=starts,
        ends=ends,
        over=status == "finished",
        practitioners=_practitioners(p.get("individual") for p in encounter.get("participant") or []),
        stamped=stamped,
        over_since=stamped,
    )


def _service_request(asked: Resource) -> Message:
    status = _code(asked, "status", _SERVICE_REQUEST)
    standing = _SERVICE_REQUEST[status]
    starts, ends = _period(asked.get("occurrencePeriod"), "ServiceRequest.occurrencePeriod")
    for element in ("occurrenceDateTime", "authoredOn"):
        moment, _ = _period({"start": asked.get(element)}, f"ServiceRequest.{element}")
        starts = starts or moment
    if _code(asked, "intent", _INTENTS) == "proposal" or _is_true(asked, "doNotPerform"):
        standing = max(standing, Standing.PENDING, key=list(Standing).index)
    stamped = stamps.last_updated(asked)
    over = status == "completed"
    return Message(
        relation=Relation.REFERRAL,
        standing=standing,
        starts=starts,
        ends=ends if over else None,
        over=over,
        practitioners=_practitioners([asked.get("requester"), *(asked.get("performer") or [])]),
        stamped=stamped,
        over_since=stamped,
    )


def _care_team(team: Resource) -> Message:
    status = _code(team, "status", _CARE_TEAM)
    starts, ends = _period(team.get("period"), "CareTeam.period")
    return Message(
        relation=Relation.PANEL,
        standing=_CARE_TEAM[status],
        starts=starts,
        ends=ends,
        over=status in ("suspended", "inactive"),
        practitioners=_practitioners(p.get("member") for p in team.get("participant") or []),
        stamped=stamps.last_updated(team),
    )


TYPES: Mapping[str, Callable[[Resource], Message]] = {
    "Encounter": _encounter,
    "ServiceRequest": _service_request,
    "CareTeam": _care_team,
}

# Codes of the required bindings (FHIR R4 encounter-status, request-status, request-intent, care-team-status).
_HOLDS, _PENDING, _WITHDRAWN = Standing.HOLDS, Standing.PENDING, Standing.WITHDRAWN
_ENCOUNTER = {
    **dict.fromkeys(("planned", "arrived", "triaged", "in-progress", "onleave", "finished"), _HOLDS),
    "unknown": _PENDING,
    **dict.fromkeys(("cancelled", "entered-in-error"), _WITHDRAWN),
}
_SERVICE_REQUEST = {
    **dict.fromkeys(("active", "on-hold", "completed"), _HOLDS),
    **dict.fromkeys(("draft", "unknown"), _PENDING),
    **dict.fromkeys(("revoked", "entered-in-error"), _WITHDRAWN),
}
_CARE_TEAM = {
    **dict.fromkeys(("active", "suspended", "inactive"), _HOLDS),
    "proposed": _PENDING,
    "entered-in-error": _WITHDRAWN,
}
_INTENTS = (
    "proposal",
    "plan",
    "directive",
    "order",
    "original-order",
    "reflex-order",
    "filler-order",
    "instance-order",
    "option",
)


def _code(resource: Resource, element: str, known: Iterable[str]) -> str:
    code = resource.get(element)
    if isinstance(code, str) and code in known:
        return code
    what = f"{resource['resourceType']}.{element}"
    raise Unprocessable(f"{what} is required, with one of: {', '.join(known)}.", code="code-invalid")


def _is_true(resource: Resource, element: str) -> bool:
    value = resource.get(element, False)
    if not isinstance(value, bool):
        raise Unprocessable(f"{resource['resourceType']}.{element} must be true or false.", code="value")
    return value


def _period(period: Any, where: str) -> tuple[datetime | None, datetime | None]:
    """Start and end; a date starts with the first instant of its day and ends with the last."""
    given = period or {}
    starts, ends = (_moment(given.get(edge), edge, where) for edge in ("start", "end"))
    if starts is not None and ends is not None and ends < starts:
        raise Unprocessable(f"{where} ends before it starts.", code="value")
    return starts, ends


def _moment(text: object, edge: str, where: str) -> datetime | None:
    if text is None:
        return None
    found = date_range(text)
    if found is None or not (found[0] >= _FIRST and found[1] <= _LAST):
        raise Unprocessable(
            f"{where} needs dates of the calendar from 1900 on; a time of day needs its offset, as in Z or -05:00.",
            code="value",
        )
    whole_day = "T" not in str(text)
    return found[1] - _INSTANT if edge == "end" and whole_day else found[0]


def _practitioners(references: Iterable[Resource | None]) -> tuple[str, ...]:
    found = sorted(set(_named(references)))
    if len(found) > MAX_PRACTITIONERS:
        raise Unprocessable(f"Name at most {MAX_PRACTITIONERS} practitioners.", code="too-long")
    return tuple(found)


def _named(references: Iterable[Resource | None]) -> Iterator[str]:
    """The identifiers of those who are practitioners; teams, organizations and relatives are no users."""
    for reference in references:
        identifier = (reference or {}).get("identifier") or {}
        value, system = identifier.get("value"), identifier.get("system")
        if reference is None or not value or not _may_be_practitioner(reference):
            continue
        if len(value) > MAX_IDENTIFIER or len(system or "") > MAX_IDENTIFIER:
            raise Unprocessable(f"A practitioner's identifier has more than {MAX_IDENTIFIER} characters.", code="value")
        yield f"{system}|{value}" if system else value


def _may_be_practitioner(reference: Resource) -> bool:
    literal = fhir.local_reference(reference.get("reference"))
    kinds = {reference.get("type"), literal[0] if literal else None} - {None}
    return kinds <= _PRACTITIONERS
