"""What a physician reads: a `ChartAnswer` -> sections of items, allergies first. Pure; decides nothing about release.

Several organizations often record one fact. Statements that share a code or the same words stand together under one
title, each with its organization and date, and where they do not agree the item says so. Nothing is dropped: what is
refuted, over or entered in error is shown apart, marked as such.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hie.console import wording
from hie.core.fhir import Resource
from hie.gateway.release import ChartAnswer, ChartEntry

TYPES = (
    "AllergyIntolerance",
    "MedicationRequest",
    "MedicationStatement",
    "Condition",
    "Immunization",
    "Observation",
    "Encounter",
)
"""What the page asks for, in one question to the door."""

RECENT_LABS = 12

# "No known allergy" as SNOMED CT findings, and the International Patient Summary's codes for absent information.
_NO_KNOWN_ALLERGY = frozenset({"716186003", "409137002", "429625007", "428607008", "716184000"})
_IPS_ABSENT = "http://hl7.org/fhir/uv/ips/CodeSystem/absent-unknown-uv-ips"
_NONE_KNOWN = "none known"
_NORMAL_LABELS = frozenset({"U", "L", "M", "N"})


@dataclass(frozen=True)
class Statement:
    """What one organization recorded."""

    details: tuple[tuple[str, str], ...]
    """(label, words) pairs."""
    organization: str
    recorded: str
    """When, in words, with the offset the source gave: `recorded 8 Mar 2019`; empty where the details say it."""
    current: bool
    remark: str = ""
    """`refuted`, `entered in error`, `resolved` and so on, when it is not current."""
    sensitive: bool = False
    broke_glass: bool = False


@dataclass(frozen=True)
class Item:
    """One fact, as one or more organizations recorded it."""

    title: str
    statements: tuple[Statement, ...]
    alarm: str = ""
    """Words for a red tag: high criticality, severe reaction, abnormal result."""
    disagreement: str = ""

    @property
    def current(self) -> bool:
        return any(statement.current for statement in self.statements)


@dataclass(frozen=True)
class Section:
    """One heading of the chart."""

    key: str
    title: str
    current: tuple[Item, ...]
    earlier: tuple[Item, ...]
    """No longer current, refuted or entered in error."""
    earlier_title: str


@dataclass(frozen=True)
class Chart:
    """The page's content."""

    allergies: Section
    no_known_allergy: tuple[Item, ...]
    """Statements that the patient has no known allergy, or none of a kind."""
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class _Read:
    """One resource in the page's terms, before like is put to like."""

    title: str
    statement: Statement
    keys: frozenset[str]
    order: str = ""
    alarm: str = ""
    kind: str = ""


def chart_of(answer: ChartAnswer) -> Chart:
    """The released entries as sections."""

    def read(reader: Callable[[ChartEntry], _Read], *types: str) -> list[_Read]:
        return [_read(reader, entry) for entry in answer.entries if entry.resource["resourceType"] in types]

    allergies = read(_allergy, "AllergyIntolerance")
    observations = read(_observation, "Observation")
    labs = _newest_first([r for r in observations if r.kind == "laboratory"])
    others = _newest_first([r for r in observations if r.kind != "laboratory"])
    medications = read(_medication, "MedicationRequest", "MedicationStatement")
    sections = (
        _section("medications", "Medications", _together(medications), "Past and stopped medications"),
        _section(
            "conditions", "Conditions", _together(read(_condition, "Condition")), "Resolved or refuted conditions"
        ),
        _section("immunizations", "Immunizations", _newest_first(read(_immunization, "Immunization")), "Not given"),
        Section(
            "labs",
            "Recent laboratory results",
            tuple(labs[:RECENT_LABS]),
            tuple(labs[RECENT_LABS:]),
            "Older laboratory results",
        ),
        Section("observations", "Other observations", (), tuple(others), "Vital signs and others"),
        _section("encounters", "Encounters", _newest_first(read(_encounter, "Encounter")), "Cancelled encounters"),
    )
    return Chart(
        allergies=_section(
            "allergies",
            "Allergies",
            _alarming_first(_together([r for r in allergies if r.kind != _NONE_KNOWN])),
            "Refuted or no longer active",
        ),
        no_known_allergy=tuple(_together([r for r in allergies if r.kind == _NONE_KNOWN])),
        sections=sections,
    )


def _section(key: str, title: str, items: Sequence[Item], earlier_title: str) -> Section:
    current = tuple(item for item in items if item.current)
    return Section(key, title, current, tuple(item for item in items if not item.current), earlier_title)


# -- one resource at a time


def _read(reader: Callable[[ChartEntry], _Read], entry: ChartEntry) -> _Read:
    """Resources are the sources' own and may break their profile; one that does must not hide the others."""
    try:
        return reader(entry)
    except (AttributeError, KeyError, TypeError, ValueError):
        details = (("Problem", "the record does not have the shape that the standard gives it; ask the organization"),)
        title = f"{_SPACED.sub(' ', entry.resource['resourceType'])} that could not be read"
        return _Read(title, _statement(entry, details), frozenset(), alarm="Unreadable", kind="laboratory")


def _allergy(entry: ChartEntry) -> _Read:
    resource = entry.resource
    reactions = [r for r in resource.get("reaction") or [] if isinstance(r, dict)]
    severe = any(r.get("severity") == "severe" for r in reactions)
    criticality = resource.get("criticality")
    verification = wording.code_of(resource.get("verificationStatus"))
    details = (
        ("Reaction", "; ".join(words for r in reactions if (words := _reaction(r))) or "not recorded"),
        ("Criticality", _CRITICALITY.get(str(criticality), "not recorded")),
        ("Certainty", {"confirmed": "", "unconfirmed": "not confirmed"}.get(verification, _plain(verification))),
        ("Kind", {"intolerance": "intolerance, not an allergy"}.get(str(resource.get("type")), "")),
        ("Since", wording.when(resource["onsetDateTime"]) if resource.get("onsetDateTime") else ""),
        ("Last reaction", wording.when(resource["lastOccurrence"]) if resource.get("lastOccurrence") else ""),
        ("Note", _notes(resource)),
    )
    substance = wording.concept(resource.get("code")) or _substance(reactions)
    return _Read(
        title=substance or "Substance not named",
        statement=_statement(entry, details, "recordedDate", over=_over(resource)),
        keys=_keys(resource.get("code"), substance),
        alarm="High criticality" if criticality == "high" else "Severe reaction" if severe else "",
        kind=_NONE_KNOWN if _says_none(resource) else "",
    )


_SPACED = re.compile(r"(?<=[a-z])(?=[A-Z])")
_CRITICALITY = {"high": "high", "low": "low", "unable-to-assess": "could not be assessed"}


def _substance(reactions: Sequence[Resource]) -> str:
    return next((words for r in reactions if (words := wording.concept(r.get("substance")))), "")


def _reaction(reaction: Resource) -> str:
    signs = [words for m in reaction.get("manifestation") or [] if (words := wording.concept(m))]
    words = wording.listing(signs) or str(reaction.get("description") or "")
    severity = reaction.get("severity")
    return f"{words} ({severity})" if words and severity else words or str(severity or "")


def _says_none(resource: Resource) -> bool:
    codings = (resource.get("code") or {}).get("coding") or []
    return any(c.get("code") in _NO_KNOWN_ALLERGY or c.get("system") == _IPS_ABSENT for c in codings)


def _medication(entry: ChartEntry) -> _Read:
    resource = entry.resource
    named = resource.get("medicationCodeableConcept") or _contained_code(resource)
    reference = resource.get("medicationReference") or {}
    title = wording.concept(named) or str(reference.get("display") or "")
    dosages = resource.get("dosageInstruction") or resource.get("dosage") or []
    status = str(resource.get("status") or "status not recorded")
    request = resource["resourceType"] == "MedicationRequest"
    details = (
        ("Dose", "; ".join(words for d in dosages if (words := _dosage(d)))),
        (
            "Status",
            {"active": "active", "on-hold": "on hold"}.get(status, status) + ("" if request else " (as reported)"),
        ),
        ("Intent", str(resource["intent"]) if request and resource.get("intent") not in ("order", None) else ""),
        ("Reason", "; ".join(words for c in resource.get("reasonCode") or [] if (words := wording.concept(c)))),
    )
    over = "" if status in ("active", "on-hold", "intended", "unknown", "status not recorded") else status
    return _Read(
        title=title or "Medication not named",
        statement=_statement(entry, details, "authoredOn", "dateAsserted", over=_plain(over)),
        keys=_keys(named, title),
    )


def _contained_code(resource: Resource) -> Resource:
    inner = [c for c in resource.get("contained") or [] if c.get("resourceType") == "Medication"]
    return next((c["code"] for c in inner if isinstance(c.get("code"), dict)), {})


def _dosage(dosage: Resource) -> str:
    if dosage.get("text"):
        return str(dosage["text"])
    doses = [words for d in dosage.get("doseAndRate") or [] if (words := wording.quantity(d.get("doseQuantity")))]
    parts = [*doses, wording.concept(dosage.get("route")), _timing(dosage.get("timing") or {})]
    return ", ".join(part for part in parts if part)


def _timing(timing: Resource) -> str:
    repeat = timing.get("repeat") or {}
    if wording.concept(timing.get("code")) or not repeat.get("frequency"):
        return wording.concept(timing.get("code"))
    unit = _UNITS.get(str(repeat.get("periodUnit")), "period")
    return f"{wording.count(repeat['frequency'], 'time')} every {wording.count(repeat.get('period', 1), unit)}"


_UNITS = {"s": "second", "min": "minute", "h": "hour", "d": "day", "wk": "week", "mo": "month", "a": "year"}


def _condition(entry: ChartEntry) -> _Read:
    resource = entry.resource
    title = wording.concept(resource.get("code"))
    clinical = wording.code_of(resource.get("clinicalStatus"))
    details = (
        ("Status", _plain(clinical)),
        ("Since", wording.when(resource["onsetDateTime"]) if resource.get("onsetDateTime") else ""),
        ("Severity", wording.concept(resource.get("severity"))),
        ("Note", _notes(resource)),
    )
    statement = _statement(entry, details, "recordedDate", over=_over(resource))
    return _Read(title or "Condition not named", statement, _keys(resource.get("code"), title))


def _immunization(entry: ChartEntry) -> _Read:
    resource = entry.resource
    title = wording.concept(resource.get("vaccineCode")) or "Vaccine not named"
    given = resource.get("occurrenceDateTime")
    details = (("Given", wording.when(given) if given else str(resource.get("occurrenceString") or "")),)
    over = {"not-done": "not given"}.get(str(resource.get("status")), _in_error(resource))
    return _Read(
        title, _statement(entry, details, "recorded", "occurrenceDateTime", over=over), frozenset(), str(given or "")
    )


def _observation(entry: ChartEntry) -> _Read:
    resource = entry.resource
    title = wording.concept(resource.get("code")) or "Observation not named"
    flags = [i for i in resource.get("interpretation") or [] if wording.code_of(i) not in ("", "N", "NEG", "ND")]
    taken = resource.get("effectiveDateTime") or (resource.get("effectivePeriod") or {}).get("start")
    details = (
        ("Result", _value(resource)),
        ("Reference range", "; ".join(words for r in resource.get("referenceRange") or [] if (words := _range(r)))),
        ("Taken", wording.when(taken)),
        ("Status", _plain(str(resource.get("status") or "")) if resource.get("status") != "final" else ""),
    )
    statement = _statement(entry, details, "issued", "effectiveDateTime", over=_in_error(resource))
    alarm = "; ".join(dict.fromkeys(_flag(flag) for flag in flags))
    kind = "laboratory" if _is_lab(resource) else "other"
    return _Read(title, statement, frozenset(), str(taken or resource.get("issued") or ""), alarm, kind)


_FLAGS = {"H": "High", "HH": "Critically high", "L": "Low", "LL": "Critically low", "A": "Abnormal", "AA": "Critical"}


def _flag(interpretation: Resource) -> str:
    return _FLAGS.get(wording.code_of(interpretation)) or wording.concept(interpretation)


def _value(resource: Resource) -> str:
    """The result in words, parts of a panel named; `not given` only where the source gave none."""
    for key, words in _VALUES.items():
        if key in resource:
            return words(resource[key]) or _ELSEWHERE
    if any(key.startswith("value") for key in resource):
        return _ELSEWHERE
    parts = [c for c in resource.get("component") or [] if isinstance(c, dict)]
    listed = ", ".join(f"{wording.concept(c.get('code'))} {_value(c)}" for c in parts)
    return listed or wording.concept(resource.get("dataAbsentReason")) or "not given"


_ELSEWHERE = "recorded in a form that is not shown here; ask the organization"


def _ratio(value: Resource) -> str:
    parts = [wording.quantity(value.get(end)) for end in ("numerator", "denominator")]
    return " : ".join(parts) if all(parts) else ""


def _range(reference_range: Resource) -> str:
    if reference_range.get("text"):
        return str(reference_range["text"])
    low, high = (wording.quantity(reference_range.get(end)) for end in ("low", "high"))
    if low and high:
        return f"{low} to {high}"
    return f"at least {low}" if low else f"at most {high}" if high else ""


_VALUES: dict[str, Callable[[Any], str]] = {
    "valueQuantity": wording.quantity,
    "valueCodeableConcept": wording.concept,
    "valueString": str,
    "valueInteger": str,
    "valueBoolean": lambda value: "yes" if value else "no",
    "valueRange": _range,
    "valueRatio": _ratio,
    "valueDateTime": wording.when,
    "valueTime": str,
}


def _is_lab(resource: Resource) -> bool:
    """In the laboratory category, or in none at all: a result must not hide for want of a category."""
    codes = {wording.code_of(category) for category in resource.get("category") or []}
    return "laboratory" in codes or not codes


def _encounter(entry: ChartEntry) -> _Read:
    resource = entry.resource
    kinds = [words for t in resource.get("type") or [] if (words := wording.concept(t))]
    setting = resource.get("class") or {}
    where = _SETTINGS.get(str(setting.get("code")), str(setting.get("display") or ""))
    period = resource.get("period") or {}
    details = (
        ("Setting", where if kinds else ""),
        ("From", wording.when(period["start"]) if period.get("start") else ""),
        ("To", wording.when(period["end"]) if period.get("end") else ""),
        ("Reason", "; ".join(words for c in resource.get("reasonCode") or [] if (words := wording.concept(c)))),
        ("Status", _plain(str(resource.get("status") or "")) if resource.get("status") != "finished" else ""),
    )
    over = "cancelled" if resource.get("status") == "cancelled" else _in_error(resource)
    title = wording.listing(kinds) or where or "Encounter"
    return _Read(title, _statement(entry, details, over=over), frozenset(), str(period.get("start") or ""))


_SETTINGS = {"EMER": "Emergency", "IMP": "Inpatient", "AMB": "Outpatient", "ACUTE": "Inpatient, acute", "VR": "Virtual"}


# -- what every type shares


def _statement(entry: ChartEntry, details: Sequence[tuple[str, str]], *dated: str, over: str = "") -> Statement:
    """`dated` names the elements that say when it was recorded, best first."""
    at = next((entry.resource[name] for name in dated if entry.resource.get(name)), None)
    return Statement(
        details=tuple((label, words) for label, words in details if words),
        organization=entry.member_name,
        recorded=_recorded(at) if dated else "",
        current=not over,
        remark=over,
        sensitive=bool(set(entry.labels) - _NORMAL_LABELS),
        broke_glass=entry.decision.break_glass,
    )


def _recorded(at: object) -> str:
    words = wording.when(at)
    return words if words == wording.NOT_RECORDED else f"recorded {words}"


def _over(resource: Resource) -> str:
    """Why an allergy or a condition is not to be counted on, or empty."""
    verification = wording.code_of(resource.get("verificationStatus"))
    if verification in ("refuted", "entered-in-error"):
        return _plain(verification)
    clinical = wording.code_of(resource.get("clinicalStatus"))
    return _plain(clinical) if clinical in ("inactive", "resolved", "remission") else ""


def _in_error(resource: Resource) -> str:
    return "entered in error" if resource.get("status") == "entered-in-error" else ""


def _plain(code: str) -> str:
    return code.replace("-", " ")


def _notes(resource: Resource) -> str:
    return " ".join(str(n["text"]) for n in resource.get("note") or [] if isinstance(n, dict) and n.get("text"))


def _keys(concept: object, title: str) -> frozenset[str]:
    """What makes two statements speak of one thing: a shared code, or the same words."""
    codings = concept.get("coding") if isinstance(concept, dict) else None
    codes = {f"{c.get('system')}|{c['code']}" for c in codings or [] if isinstance(c, dict) and c.get("code")}
    return frozenset(codes | ({title.casefold()} if title else set()))


def _together(reads: Sequence[_Read]) -> list[Item]:
    """Like to like, in the order of first appearance; groups that one more statement joins become one."""
    groups: list[list[_Read]] = []
    for one in reads:
        near = [g for g in groups if any(one.keys & other.keys for other in g)]
        groups = [g for g in groups if g not in near] + [[r for g in near for r in g] + [one]]
    return [_item(group) for group in groups]


def _item(group: Sequence[_Read]) -> Item:
    statements = sorted((r.statement for r in group), key=lambda s: not s.current)
    alarms = [r.alarm for r in group if r.alarm and r.statement.current]
    return Item(
        title=next((r.title for r in group if r.statement.current), group[0].title),
        statements=tuple(statements),
        alarm=min(alarms, default=""),  # "High criticality" before "Severe reaction"
        disagreement=_disagreement(statements),
    )


def _disagreement(statements: Sequence[Statement]) -> str:
    against = [s for s in statements if not s.current]
    if not against or len(against) == len(statements):
        return ""
    said = "; ".join(f"{s.organization} recorded it as {s.remark}" for s in against)
    return f"The organizations do not agree: {said}."


def _alarming_first(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: (not item.alarm, item.title.casefold()))


def _newest_first(reads: Sequence[_Read]) -> list[Item]:
    """One item each. FHIR times sort as text well enough: dates lead, and offsets differ by hours at most."""
    ordered = sorted(reads, key=lambda r: r.order, reverse=True)
    return [Item(r.title, (r.statement,), alarm=r.alarm if r.statement.current else "") for r in ordered]
