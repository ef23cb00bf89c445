"""FHIR search over what was released: parameters, filters and pages (FHIR R4 3.1.1; pure).

Members are asked for everything of a type that they hold of the patient; the parameters are applied here, after
consent. So a parameter can never probe for what is withheld, and a member that ignores parameters does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from hie.core.errors import BadRequest
from hie.core.fhir import Resource
from hie.mpi.identity import Identifier

DEFAULT_COUNT = 100
MAX_COUNT = 500

_COMMON_TOKENS = {"_id": ("id",), "identifier": ("identifier",)}
_STATUS = {"status": ("status",)}
_CLINICAL_STATUS = {"clinical-status": ("clinicalStatus",), "verification-status": ("verificationStatus",)}
_MEDICATION = {"code": ("medicationCodeableConcept",), **_STATUS}

TOKENS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "AllergyIntolerance": {
        "code": ("code",),
        "category": ("category",),
        "criticality": ("criticality",),
        "type": ("type",),
        **_CLINICAL_STATUS,
    },
    "Condition": {"code": ("code",), "category": ("category",), "severity": ("severity",), **_CLINICAL_STATUS},
    "MedicationRequest": {"intent": ("intent",), "category": ("category",), **_MEDICATION},
    "MedicationStatement": {"category": ("category",), **_MEDICATION},
    "Immunization": {"vaccine-code": ("vaccineCode",), **_STATUS},
    "Observation": {"code": ("code",), "category": ("category",), **_STATUS},
    "DiagnosticReport": {"code": ("code",), "category": ("category",), **_STATUS},
    "Procedure": {"code": ("code",), "category": ("category",), **_STATUS},
    "Encounter": {"class": ("class",), "type": ("type",), **_STATUS},
    "DocumentReference": {"type": ("type",), "category": ("category",), **_STATUS},
    "CarePlan": {"category": ("category",), "intent": ("intent",), **_STATUS},
    "Coverage": {"type": ("type",), **_STATUS},
    "ExplanationOfBenefit": {"type": ("type",), "use": ("use",), **_STATUS},
}
"""Token parameters of each type -> the elements they look at."""

DATES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "AllergyIntolerance": {"date": ("recordedDate",)},
    "Condition": {"onset-date": ("onsetDateTime", "onsetPeriod"), "recorded-date": ("recordedDate",)},
    "MedicationRequest": {"authoredon": ("authoredOn",)},
    "MedicationStatement": {"effective": ("effectiveDateTime", "effectivePeriod")},
    "Immunization": {"date": ("occurrenceDateTime",)},
    "Observation": {"date": ("effectiveDateTime", "effectivePeriod", "effectiveInstant")},
    "DiagnosticReport": {"date": ("effectiveDateTime", "effectivePeriod"), "issued": ("issued",)},
    "Procedure": {"date": ("performedDateTime", "performedPeriod")},
    "Encounter": {"date": ("period",)},
    "DocumentReference": {"date": ("date",)},
    "CarePlan": {"date": ("period",)},
    "Coverage": {},
    "ExplanationOfBenefit": {"created": ("created",)},
}
"""Date parameters of each type -> the elements they look at."""

_PATIENT = ("patient", "subject", "beneficiary")
_PREFIX = re.compile(r"(eq|ne|gt|lt|ge|le|sa|eb)?(\d{4}.*)")
_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:T(\d{2}:\d{2})(:\d{2}(?:\.\d+)?)?(Z|[+-]\d{2}:\d{2})?)?)?)?")

Keep = Callable[[Resource], bool]


@dataclass(frozen=True)
class RecordSearch:
    """One federated search, understood."""

    type: str
    who: str | Identifier
    filters: tuple[Keep, ...]
    count: int
    count_only: bool
    cursor: str | None
    honoured: tuple[tuple[str, str], ...]
    """The parameters that had an effect, for the self link; paging left out."""
    ignored: tuple[str, ...]

    def keep(self, resource: Resource) -> bool:
        """Whether every parameter matches the resource."""
        return all(matches(resource) for matches in self.filters)


@dataclass
class Page:
    """One page of a stable order. Called with everything that is released; keeps what the links and total need."""

    count: int
    after: tuple[str, str] | None
    total: int = 0
    last: tuple[str, str] | None = field(default=None)
    """Where the next page begins; None when there is none."""

    def __call__(self, keys: Sequence[tuple[str, str]]) -> slice:
        """The slice of this page among `keys`, the sorted (source, id) of everything."""
        self.total = len(keys)
        start = 0 if self.after is None else sum(1 for key in keys if key <= self.after)
        end = start + self.count
        if 0 < end < len(keys) and self.count:
            self.last = keys[end - 1]
        return slice(start, end)


def parse(resource_type: str, params: Iterable[tuple[str, str]], fhir_base: str) -> RecordSearch:
    """Understand the parameters of one search; raises BadRequest with a sentence."""
    who: list[str | Identifier] = []
    filters: list[Keep] = []
    honoured: list[tuple[str, str]] = []
    ignored: list[str] = []
    count, count_only, cursor = DEFAULT_COUNT, False, None
    for name, value in params:
        if name in _PATIENT:
            who.append(_person_id(value, fhir_base))
        elif name in ("patient.identifier", "subject.identifier"):
            who.append(_identifier(name, value))
        elif name == "_count":
            count = count_of(value)
        elif name == "_summary" and value == "count":
            count_only = True
        elif name == "_cursor":
            cursor = value
            continue
        elif name == "_format":
            continue
        elif (matches := _filter(resource_type, name, value)) is not None:
            filters.append(matches)
        else:
            ignored.append(name)
            continue
        honoured.append((name, value))
    return RecordSearch(
        resource_type, _one(who), tuple(filters), count, count_only, cursor, tuple(honoured), tuple(ignored)
    )


def _one(who: list[str | Identifier]) -> str | Identifier:
    if not who:
        raise BadRequest(
            "Name the patient: patient=Patient/<id> or patient.identifier=<system>|<value>.", code="required"
        )
    if len(set(who)) > 1:
        raise BadRequest("A search is for one patient; this one names several.")
    return who[0]


def _person_id(value: str, fhir_base: str) -> str:
    person = value.removeprefix(f"{fhir_base}/").removeprefix("Patient/")
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,64}", person):
        raise BadRequest("patient must be Patient/<id> as this exchange gives it.", code="value")
    return person


def _identifier(name: str, value: str) -> Identifier:
    system, bar, local = value.partition("|")
    if not (system and bar and local) or "," in value:
        raise BadRequest(f"{name} must be one <system>|<value>.", code="value")
    return Identifier(system, local)


def count_of(value: str) -> int:
    """The page size of `_count`; raises BadRequest."""
    if not re.fullmatch(r"\d{1,9}", value):
        raise BadRequest("_count must be a whole number.", code="value")
    return min(int(value), MAX_COUNT)


def _filter(resource_type: str, name: str, value: str) -> Keep | None:
    """The filter of one parameter; None when it is not supported for the type."""
    token = TOKENS[resource_type].get(name) or _COMMON_TOKENS.get(name)
    if token is not None:
        wanted = [part for part in value.split(",") if part]
        return lambda resource: any(_token(resource, token, part) for part in wanted)
    date = DATES[resource_type].get(name)
    if date is not None or name == "_lastUpdated":
        tests = [_date_test(name, part) for part in value.split(",")]
        elements = ("meta",) if name == "_lastUpdated" else date or ()
        return lambda resource: any(test(found) for found in ranges(resource, elements) for test in tests)
    return None


def _token(resource: Resource, elements: tuple[str, ...], wanted: str) -> bool:
    """FHIR token matching: `code`, `system|code`, `|code`, `system|` (R4 3.1.1.4.10)."""
    system, bar, code = wanted.rpartition("|")
    for found_system, found_code in _codings([resource.get(element) for element in elements]):
        if code and found_code != code:
            continue
        if not bar or (system and found_system == system) or (not system and not found_system):
            return True
    return False


def _codings(node: Any) -> Iterable[tuple[str, str]]:
    """(system, code) of codes, Codings, CodeableConcepts and Identifiers, and lists of them."""
    if isinstance(node, str):
        yield "", node
    elif isinstance(node, list):
        for item in node:
            yield from _codings(item)
    elif isinstance(node, dict):
        if "coding" in node:
            yield from _codings(node["coding"])
        for value in ("code", "value"):
            if isinstance(node.get(value), str):
                yield str(node.get("system") or ""), node[value]


Range = tuple[datetime, datetime]
"""[start, end) of a partial date; open ends are the ends of time."""

BEGINNING, END = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def _date_test(name: str, text: str) -> Callable[[Range], bool]:
    """FHIR date prefixes over ranges (R4 3.1.1.4.7)."""
    match = _PREFIX.fullmatch(text)
    wanted = date_range(match[2]) if match else None
    if match is None or wanted is None:
        raise BadRequest(f"{name} must be a date, with or without one of eq ne gt lt ge le sa eb.", code="value")
    low, high = wanted
    tests: Mapping[str, Callable[[Range], bool]] = {
        "eq": lambda r: low <= r[0] and r[1] <= high,
        "ne": lambda r: not (low <= r[0] and r[1] <= high),
        "gt": lambda r: r[1] > high,
        "lt": lambda r: r[0] < low,
        "ge": lambda r: r[1] > high or (low <= r[0] and r[1] <= high),
        "le": lambda r: r[0] < low or (low <= r[0] and r[1] <= high),
        "sa": lambda r: r[0] >= high,
        "eb": lambda r: r[1] <= low,
    }
    return tests[match[1] or "eq"]


def ranges(resource: Resource, elements: tuple[str, ...]) -> Iterable[Range]:
    """What the date elements of a resource stand for; of `meta` it is `lastUpdated`."""
    for element in elements:
        value = resource.get(element)
        if element == "meta":
            value = value.get("lastUpdated") if isinstance(value, dict) else None
        if (single := date_range(value)) is not None:
            yield single
        elif isinstance(value, dict):
            start, end = date_range(value.get("start")), date_range(value.get("end"))
            if start or end:
                yield (start[0] if start else BEGINNING, end[1] if end else END)


def date_range(text: object) -> Range | None:
    """The [start, end) that a FHIR date, dateTime or instant stands for, in UTC; None when it is none."""
    match = _DATE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    year, month, day, minute, second, zone = match.groups()
    try:
        if minute is not None:
            moment = datetime.fromisoformat(f"{year}-{month}-{day}T{minute}{second or ':00'}{zone or 'Z'}")
            step = (
                timedelta(minutes=1) if second is None else timedelta(seconds=1) if "." not in second else timedelta(0)
            )
            return moment.astimezone(UTC), moment.astimezone(UTC) + step
        start = datetime(int(year), int(month or 1), int(day or 1), tzinfo=UTC)
        if day:
            return start, start + timedelta(days=1)
        if month:
            return start, (start + timedelta(days=32)).replace(day=1)
        return start, start.replace(year=start.year + 1)
    except (ValueError, OverflowError):
        return None
