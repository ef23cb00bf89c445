"""The search parameters of Retrieve ATNA Audit Event (IHE RESTful ATNA, ITI-81; FHIR R4 AuditEvent) as an AuditQuery.

Pure but for the question which ids a person has. An unknown parameter is ignored, and not among those `honoured`, which
make the self link. `date` is not required, other than in ITI-81, whose log has no patient index to fall back on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hie.audit import codes
from hie.audit.query import AnyOf, AuditQuery, Cursor, Span
from hie.core.errors import BadRequest
from hie.core.purposes import ACT_REASON_OID, ACT_REASON_URL

DEFAULT_COUNT = 50
MAX_COUNT = 500
CURSOR = "_page"

Persons = Callable[[str], Sequence[str]]
"""The id of a person -> all ids that are the same person, at least the one given."""
PersonOf = Callable[[str, str], str | None]
"""Identifier system and value -> the id of the person."""

_DATE = re.compile(
    r"(?P<prefix>eq|ge|le|gt|lt|sa|eb)?"
    r"(?P<year>\d{4})(-(?P<month>\d\d)(-(?P<day>\d\d)(T(?P<hour>\d\d):(?P<minute>\d\d)"
    r"(:(?P<second>\d\d)(\.(?P<fraction>\d{1,6})\d*)?)?(?P<zone>Z|[+-]\d\d:\d\d)?)?)?)?"
)
_PAGE = re.compile(r"(\d{1,15})\.(\d{1,15})")
_TYPES = {coding.code: coding.system for coding in codes.TYPES}
_SUBTYPES = {coding.code: coding.system for coding in codes.SUBTYPES}
_OUTCOMES = dict.fromkeys(("0", "4", "8", "12"), codes.OUTCOME)
_ACTIONS = dict.fromkeys("CRUDE", codes.ACTION)


@dataclass(frozen=True)
class Asked:
    """A search as it was understood. `person_id` is the person, where the search is about just one."""

    query: AuditQuery
    honoured: tuple[tuple[str, str], ...]
    person_id: str | None


def parse(parameters: Sequence[tuple[str, str]], fhir_base: str, persons: Persons, person_of: PersonOf) -> Asked:
    """Raises BadRequest naming the parameter that has no meaning."""
    reading = _Reading(fhir_base, persons, person_of)
    for name, value in parameters:
        if name in PARAMETERS and value:
            if not value.isprintable():
                raise BadRequest(f"The parameter {name} holds a control character.")
            PARAMETERS[name](reading, name, value)
            if name != CURSOR:
                reading.honoured.append((name, value))
    asked = reading.asked
    return Asked(reading.query(), tuple(reading.honoured), asked[0] if len(asked) == 1 else None)


def page_token(cursor: Cursor) -> str:
    """The value of the page parameter."""
    return f"{cursor.through}.{cursor.before}"


def span(text: str) -> Span:
    """The recorded instants that a FHIR date search value means; a value without offset is UTC."""
    match = _DATE.fullmatch(text.replace(" ", "+"))  # an unescaped + arrives as a space
    if match is None:
        raise ValueError("not a FHIR date")
    low, high = _interval(match)
    prefix = match["prefix"] or "eq"
    start = {"eq": low, "ge": low, "gt": high, "sa": high}.get(prefix)
    end = {"eq": high, "le": high, "lt": low, "eb": low}.get(prefix)
    return Span(start, end)


@dataclass
class _Reading:
    """What has been read so far."""

    fhir_base: str
    persons: Persons
    person_of: PersonOf
    honoured: list[tuple[str, str]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    dates: list[Span] = field(default_factory=list)
    groups: defaultdict[str, list[AnyOf]] = field(default_factory=lambda: defaultdict(list))
    limit: int = DEFAULT_COUNT
    cursor: Cursor | None = None

    def about(self, person_ids: Sequence[str]) -> None:
        self.asked += [person_id for person_id in person_ids if person_id not in self.asked]
        every = (same for person_id in person_ids for same in self.persons(person_id))
        self.groups["persons"].append(tuple(dict.fromkeys(every)))

    def query(self) -> AuditQuery:
        groups = {name: tuple(found) for name, found in self.groups.items()}
        return AuditQuery(
            dates=tuple(self.dates),
            ids=groups.get("ids", ()),
            persons=groups.get("persons", ()),
            agents=groups.get("agents", ()),
            types=groups.get("types", ()),
            subtypes=groups.get("subtypes", ()),
            actions=groups.get("actions", ()),
            outcomes=groups.get("outcomes", ()),
            purposes=groups.get("purposes", ()),
            sessions=groups.get("sessions", ()),
            entities=groups.get("entities", ()),
            request_ids=groups.get("request_ids", ()),
            limit=self.limit,
            cursor=self.cursor,
        )


def _interval(match: re.Match[str]) -> tuple[datetime, datetime]:
    """First instant and the one after the last, by the precision given."""
    parts = {name: int(text) for name, text in match.groupdict().items() if text and text.isdigit()}
    fraction = match["fraction"] or ""
    zone = (match["zone"] or "Z").replace("Z", "+00:00")
    offset = datetime.strptime(zone, "%z").tzinfo or UTC
    low = datetime(
        parts["year"],
        parts.get("month", 1),
        parts.get("day", 1),
        parts.get("hour", 0),
        parts.get("minute", 0),
        parts.get("second", 0),
        int(fraction.ljust(6, "0")) if fraction else 0,
        tzinfo=offset,
    ).astimezone(UTC)
    if "month" not in parts:
        return low, low.replace(year=low.year + 1)
    if "day" not in parts:
        return low, (low + timedelta(days=31)).replace(day=1)
    if "hour" not in parts:
        return low, low + timedelta(days=1)
    if "second" not in parts:
        return low, low + timedelta(minutes=1)
    return low, low + timedelta(microseconds=10 ** (6 - len(fraction)))


def _date(reading: _Reading, name: str, value: str) -> None:
    try:
        found = span(value)
    except (ValueError, OverflowError):
        raise BadRequest(f"The parameter {name} takes one date or instant, with one of eq ge le gt lt sa eb.") from None
    reading.dates.append(found)


def _patient(reading: _Reading, _name: str, value: str) -> None:
    references = [_relative(reading, given) for given in value.split(",")]
    reading.about([reference.removeprefix("Patient/") for reference in references])


def _patient_identifier(reading: _Reading, name: str, value: str) -> None:
    found = []
    for token in value.split(","):
        system, bar, local = token.partition("|")
        if not (system and bar and local):
            raise BadRequest(f"The parameter {name} takes system|value.")
        person_id = reading.person_of(system, local)
        found += [person_id] if person_id else []
    reading.about(found)


def _reference(attribute: str) -> Callable[[_Reading, str, str], None]:
    def read(reading: _Reading, _name: str, value: str) -> None:
        reading.groups[attribute].append(tuple(_relative(reading, given) for given in value.split(",")))

    return read


def _identifier(attribute: str) -> Callable[[_Reading, str, str], None]:
    """A token of an id, of which the system is not looked at: the ids of one attribute come from one place."""

    def read(reading: _Reading, _name: str, value: str) -> None:
        reading.groups[attribute].append(tuple(token.rpartition("|")[2] for token in value.split(",")))

    return read


def _token(attribute: str, systems: Mapping[str, str]) -> Callable[[_Reading, str, str], None]:
    """A token of a code that this log writes; any other matches nothing."""

    def read(reading: _Reading, _name: str, value: str) -> None:
        group: list[str] = []
        for token in value.split(","):
            system, bar, code = token.rpartition("|")
            fitting = [known for known, of in systems.items() if not bar or of == system]
            group += [known for known in fitting if known == code or not code]
        reading.groups[attribute].append(tuple(group))

    return read


def _policy(reading: _Reading, _name: str, value: str) -> None:
    """What authorized it: a purpose of use as its URI or code, or else the token or session."""
    purposes = [given for given in value.split(",") if not given.startswith((codes.JTI, reading.fhir_base))]
    if purposes:
        _purpose(reading, _name, value)
    else:
        ids = (re.split("[:#]", given)[-1] for given in value.split(","))
        reading.groups["sessions"].append(tuple(ids))


def _purpose(reading: _Reading, _name: str, value: str) -> None:
    group = []
    for token in value.split(","):
        system, _, code = token.replace("#", "|").rpartition("|")
        group += [code] if system in ("", ACT_REASON_URL, ACT_REASON_OID) else []
    reading.groups["purposes"].append(tuple(group))


def _count(reading: _Reading, name: str, value: str) -> None:
    if not re.fullmatch(r"\d{1,9}", value):
        raise BadRequest(f"The parameter {name} takes a whole number.")
    reading.limit = min(int(value), MAX_COUNT)


def _page(reading: _Reading, name: str, value: str) -> None:
    match = _PAGE.fullmatch(value)
    if match is None:
        raise BadRequest(f"The parameter {name} is taken from a next link, unchanged.")
    reading.cursor = Cursor(int(match[1]), int(match[2]))


def _relative(reading: _Reading, reference: str) -> str:
    return reference.removeprefix(reading.fhir_base + "/")


PARAMETERS: Mapping[str, Callable[[_Reading, str, str], None]] = {
    "_id": _identifier("ids"),
    "_lastUpdated": _date,
    "date": _date,
    "patient": _patient,
    "patient:Patient": _patient,
    "patient.identifier": _patient_identifier,
    "agent": _reference("agents"),
    "agent.identifier": _identifier("agents"),
    "type": _token("types", _TYPES),
    "subtype": _token("subtypes", _SUBTYPES),
    "action": _token("actions", _ACTIONS),
    "outcome": _token("outcomes", _OUTCOMES),
    "policy": _policy,
    "purpose": _purpose,
    "entity": _reference("entities"),
    "entity.identifier": _identifier("request_ids"),
    "request-id": _identifier("request_ids"),
    "_count": _count,
    CURSOR: _page,
}
"""Every parameter that is honoured. `purpose` is R5's; `request-id` the exchange's own word for `entity.identifier`."""
