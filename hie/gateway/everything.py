"""`Patient/$everything`: its parameters, and what of the released resources they keep (FHIR R4; pure).

`start` and `end` are care dates. A resource without any date of its own is kept: an allergy must not be lost because
nobody wrote down when it was found. `_since` looks at `meta.lastUpdated`, and keeps what does not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hie.core.errors import BadRequest
from hie.core.fhir import CLINICAL_TYPES, Resource
from hie.gateway.record_search import BEGINNING, DATES, END, MAX_COUNT, Range, count_of, date_range, ranges

PATIENT = "Patient"


@dataclass(frozen=True)
class Everything:
    """One `$everything`, understood."""

    types: tuple[str, ...]
    """Clinical types that are wanted."""
    named: bool
    """Whether the caller named the types."""
    with_patient: bool
    care: Range | None
    since: Range | None
    count: int
    cursor: str | None
    honoured: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]

    def keep(self, resource: Resource) -> bool:
        """Whether a released resource is part of the answer."""
        return self._in_care(resource) and self._is_new(resource)

    def _in_care(self, resource: Resource) -> bool:
        if self.care is None:
            return True
        elements = [element for names in DATES[resource["resourceType"]].values() for element in names]
        dated = list(ranges(resource, tuple(elements)))
        low, high = self.care
        return not dated or any(start < high and low < end for start, end in dated)

    def _is_new(self, resource: Resource) -> bool:
        if self.since is None:
            return True
        updated = date_range((resource.get("meta") or {}).get("lastUpdated"))
        return updated is None or updated[1] > self.since[0]


def parse(parameters: Iterable[tuple[str, str]]) -> Everything:
    """Understand the parameters; raises BadRequest with a sentence."""
    given: dict[str, list[str]] = {}
    for name, value in parameters:
        given.setdefault(name, []).append(value)
    cursor = _single(given, "_cursor")
    given.pop("_format", None)
    start, end = _date(given, "start"), _date(given, "end")
    since = _date(given, "_since")
    counted = _single(given, "_count")
    asked = [kind for value in given.get("_type", ()) for kind in value.split(",") if kind]
    known = [kind for kind in CLINICAL_TYPES if kind in asked] if asked else list(CLINICAL_TYPES)
    strange = sorted({kind for kind in asked if kind not in CLINICAL_TYPES and kind != PATIENT})
    unknown = sorted(set(given) - {"start", "end", "_since", "_type", "_count", "_cursor"})
    honoured = tuple((name, v) for name, values in given.items() if name not in (*unknown, "_cursor") for v in values)
    return Everything(
        types=tuple(known),
        named=bool(asked),
        with_patient=not asked or PATIENT in asked,
        care=_care(start, end),
        since=since,
        count=min(count_of(counted), MAX_COUNT) if counted is not None else MAX_COUNT,
        cursor=cursor,
        honoured=honoured,
        ignored=(*unknown, *(f"_type={kind}" for kind in strange)),
    )


def from_body(body: Resource) -> list[tuple[str, str]]:
    """The parameters of a Parameters resource; raises BadRequest for one that is no simple value."""
    found = []
    for parameter in body.get("parameter") or []:
        values = [value for key, value in parameter.items() if re.fullmatch(r"value[A-Z]\w*", key)]
        if len(values) != 1 or not isinstance(values[0], str | int) or isinstance(values[0], bool):
            raise BadRequest("Each parameter must have one simple value.", code="value")
        found.append((str(parameter.get("name")), str(values[0])))
    return found


def _care(start: Range | None, end: Range | None) -> Range | None:
    if start is None and end is None:
        return None
    return (start[0] if start else BEGINNING, end[1] if end else END)


def _single(given: Mapping[str, list[str]], name: str) -> str | None:
    values = given.get(name, [])
    if len(values) > 1:
        raise BadRequest(f"{name} may be given once.", code="value")
    return values[0] if values else None


def _date(given: Mapping[str, list[str]], name: str) -> Range | None:
    text = _single(given, name)
    if text is None:
        return None
    found = date_range(text.replace(" ", "+"))  # a plus sign in an address arrives as a space
    if found is None:
        raise BadRequest(f"{name} must be a date or an instant.", code="value")
    return found
