"""FHIR codes and times in words. Pure. Templates reach these functions as `wording.…`.

Dates are written with the month's name, since 03/04 is read two ways; times keep the offset that the source gave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from hie.core.fhir import Resource

NOT_RECORDED = "date not recorded"

_NAME_RANK = {"official": 0, "usual": 1}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_FHIR_TIME = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?)?)?")

SOURCE_STATUS = {
    "timeout": "did not answer in time",
    "unreachable": "could not be reached",
    "open-circuit": "was not asked, because it has not been answering",
    "error": "answered with an error",
    "invalid": "gave an answer that could not be used in full",
    "truncated": "gave only a part of what it holds",
}
"""What became of an organization that was asked (contract section 3, source-status), after its name."""


def when(text: object) -> str:
    """A FHIR date, dateTime or instant: `12 Mar 2024, 14:05 UTC−05:00`; partial dates stay partial."""
    if not isinstance(text, str):
        return NOT_RECORDED
    match = _FHIR_TIME.fullmatch(text)
    if not match or (match[2] and not 1 <= int(match[2]) <= 12):
        return NOT_RECORDED
    year, month, day, clock, offset = match.groups()
    words = " ".join(part for part in (day and str(int(day)), month and _MONTHS[int(month) - 1], year) if part)
    return f"{words}, {clock} {_zone(offset)}" if clock else words


def moment(at: datetime) -> str:
    """An instant of the exchange's own clock: `12 Mar 2024, 14:05:09 UTC`."""
    at = at.astimezone(UTC)
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}, {at:%H:%M:%S} UTC"


def age(birth_date: object, today: date) -> str:
    """`64 years`, `about 64 years` for a partial date, months or days for the youngest, empty when unknown."""
    match = re.fullmatch(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?", birth_date) if isinstance(birth_date, str) else None
    if not match:
        return ""
    if not match[3]:
        return f"about {count(today.year - int(match[1]), 'year')}"
    try:
        born = date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return ""
    months = (today.year - born.year) * 12 + today.month - born.month - (today.day < born.day)
    if months >= 24:
        return count(months // 12, "year")
    return count(months, "month") if months >= 1 else count((today - born) // timedelta(days=1), "day")


def name(patient: Resource) -> str:
    """The name in use, family name last; `Name not recorded` when there is none."""
    names = [n for n in patient.get("name") or [] if isinstance(n, dict)]
    ranked = sorted(names, key=lambda n: _NAME_RANK.get(str(n.get("use")), 2))
    return next((words for n in ranked if (words := _one_name(n))), "Name not recorded")


def other_names(patient: Resource) -> list[str]:
    """Every further name, as written."""
    shown = name(patient)
    words = [_one_name(n) for n in patient.get("name") or [] if isinstance(n, dict)]
    return [w for w in dict.fromkeys(words) if w and w != shown]


def sex(patient: Resource) -> str:
    """Administrative gender in words."""
    return str(patient.get("gender") or "sex not recorded").capitalize()


def city(patient: Resource) -> str:
    """City and state of the first address that has them."""
    for address in patient.get("address") or []:
        if isinstance(address, dict) and address.get("city"):
            return ", ".join(str(address[key]) for key in ("city", "state") if address.get(key))
    return ""


def phone(patient: Resource) -> str:
    """The first telephone number."""
    for contact in patient.get("telecom") or []:
        if isinstance(contact, dict) and contact.get("system") == "phone" and contact.get("value"):
            return str(contact["value"])
    return ""


def deceased(patient: Resource) -> str:
    """A sentence when the person is recorded as having died, else empty."""
    if patient.get("deceasedDateTime"):
        return f"Recorded as deceased on {when(patient['deceasedDateTime'])}"
    return "Recorded as deceased" if patient.get("deceasedBoolean") is True else ""


def sureness(probability: float) -> str:
    """How sure the exchange is that this is the person asked for, in words."""
    steps = ((0.99, "Almost certain"), (0.9, "Very likely"), (0.7, "Likely"), (0.3, "Possible"))
    return next((words for floor, words in steps if probability >= floor), "Unlikely")


def per_cent(probability: float) -> str:
    """Whole per cent; never 100 or 0, which would claim certainty."""
    if probability >= 0.99:
        return "over 99 %" if probability > 0.99 else "99 %"
    return "under 1 %" if probability < 0.01 else f"{int(probability * 100)} %"


def listing(names: list[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return names[0] if len(names) == 1 else " and ".join((", ".join(names[:-1]), names[-1])) if names else ""


def seconds(duration: float) -> str:
    """`0.42 seconds`; what rounds to nothing is `under 0.01 seconds`."""
    return "under 0.01 seconds" if duration < 0.01 else f"{duration:.2f} seconds"


def count(number: int, noun: str) -> str:
    """`1 record`, `2 records`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def concept(value: Any) -> str:
    """A CodeableConcept in words: its text, else a coding's display, else its code; empty when there is nothing."""
    if not isinstance(value, dict):
        return ""
    if isinstance(value.get("text"), str) and value["text"].strip():
        return str(value["text"]).strip()
    codings = [c for c in value.get("coding") or [] if isinstance(c, dict)]
    shown = next((c["display"] for c in codings if c.get("display")), None)
    return str(shown or next((c["code"] for c in codings if c.get("code")), ""))


def code_of(value: Any) -> str:
    """The first code of a CodeableConcept, such as a clinical status."""
    codings = value.get("coding") if isinstance(value, dict) else None
    return next((str(c["code"]) for c in codings or [] if isinstance(c, dict) and c.get("code")), "")


def quantity(value: Any) -> str:
    """`<5.4 mmol/L` of a Quantity; empty when there is no value."""
    if not isinstance(value, dict) or value.get("value") is None:
        return ""
    unit = value.get("unit") or value.get("code") or ""
    return f"{value.get('comparator', '')}{value['value']} {unit}".strip()


def _one_name(human_name: Resource) -> str:
    given = human_name.get("given") or []
    parts = [*given, human_name.get("family"), *(human_name.get("suffix") or [])] if isinstance(given, list) else []
    words = " ".join(str(part) for part in parts if part)
    return words or str(human_name.get("text") or "")


def _zone(offset: str | None) -> str:
    if offset is None:
        return "(time zone not recorded)"
    return "UTC" if offset in ("Z", "+00:00") else "UTC" + offset.replace("-", "−")


_TRAITS = {
    "given": "first name",
    "middle": "middle name",
    "family": "last name",
    "suffix": "name suffix",
    "birth_date": "birth date",
    "sex": "sex",
    "ssn": "social security number",
    "phone": "phone",
    "email": "e-mail",
    "address": "address",
    "birth_order": "birth order (twins)",
}
_LEVELS = {
    ("given", "nickname"): "is a short form of the same name",
    ("given", "typo"): "spelt slightly differently",
    ("given", "initial"): "same initial",
    ("given", "middle"): "used as the middle name",
    ("given", "swapped"): "first and last name swapped",
    ("given", "related"): "a related name",
    ("given", "similar"): "sounds similar",
    ("middle", "initial"): "same initial",
    ("middle", "typo"): "spelt slightly differently",
    ("given", "beginning"): "begins so",
    ("family", "beginning"): "begins so",
    ("birth_date", "about"): "near the year you guessed",
    ("address", "other-unit"): "another unit of the same house",
    ("address", "other-zip"): "the same street in another ZIP code",
    ("address", "near"): "nearly the same",
    ("address", "area"): "same area",
    ("family", "part"): "a part of it is the same",
    ("family", "typo"): "spelt slightly differently",
    ("family", "similar"): "sounds similar",
    ("birth_date", "swapped"): "day and month swapped",
    ("birth_date", "digit"): "one digit differs",
    ("birth_date", "two-parts"): "two of day, month, year are the same",
    ("birth_date", "partial"): "the part you gave is the same",
    ("phone", "near"): "one digit differs",
    ("address", "zip"): "same ZIP code",
    ("address", "city"): "same city",
}


DIFFERS = frozenset({"different", "conflict", "one-sided", "unflagged", "flagged"})
"""Levels at which two values do not agree."""


def trait(name: str) -> str:
    """A trait of the matcher in words."""
    return _TRAITS.get(name, name.replace("_", " "))


def agreement(name: str, level: str) -> str:
    """How a trait agrees: `first name (is a short form of the same name)`, or just `birth date` when it is the same."""
    how = _how(name, level)
    return f"{trait(name)} ({how})" if how else trait(name)


def level(name: str, level: str) -> str:
    """How a trait agrees, alone: `sounds similar`; empty when it is the same."""
    return _how(name, level)


def _how(name: str, level: str) -> str:
    return _LEVELS.get((name, level), "" if level in ("exact", "same", "female", "male") else level.replace("-", " "))


def bits(weight: float) -> str:
    """`+3.3`, `−7.7`, `0.0`."""
    return "0.0" if abs(weight) < 0.05 else f"{weight:+.1f}".replace("-", "−")


_CLASSES = {
    "stable": "one person, unchanged",
    "moved": "one person who moved",
    "renamed": "one person who changed names",
    "random": "two strangers",
    "household": "two people of one household",
    "kin": "relatives who live apart",
    "coresident": "two people of one residence",
    "twin": "twins",
    "namesake": "namesakes, such as father and son",
}


def classes(match: str, other: str) -> str:
    """What the weights weigh: the likeliest way to be one person against the likeliest way to be two."""
    one, two = (_CLASSES.get(name, name.replace("-", " ")) for name in (match, other))
    return f"Weighed: {one}, against {two}."


_TASKS = {
    "same-person": "Maybe one person",
    "contradiction": "Maybe a false link",
    "merge": "Merged by a member",
}
_WHY_ASKED = {
    "same-person": "The exchange found too much alike to call them two people, and too little to call them one.",
    "contradiction": "The record was linked, and its data now speak against the rest of the person's records.",
    "merge": "An organization merged two of its own ids; they lay at two people here.",
}
_EVENTS = {
    "feed": "Record received",
    "delete": "Record deleted by its organization",
    "merge": "Merged",
    "subsume": "Two ids merged by their organization",
    "move": "Moved along",
    "join": "Joined by the matcher",
    "confirm": "Confirmed as one person",
    "reject": "Kept apart",
    "link": "Record given to another person",
    "split": "Split off",
    "undo": "Undone",
}


def task(kind: str) -> str:
    """What a question of the review queue is about."""
    return _TASKS[kind]


def tasks(counts: Mapping[str, int]) -> str:
    """`2 maybe a false link, 5 maybe one person.`"""
    said = [f"{number} {_TASKS[kind].lower()}" for kind, number in counts.items() if number]
    return f"{listing(said)}." if said else ""


def why_asked(kind: str) -> str:
    """Why a steward is asked, in a sentence."""
    return _WHY_ASKED[kind]


def event(kind: str) -> str:
    """What happened to a person's records."""
    return _EVENTS.get(kind, kind)


def actor(name: str) -> str:
    """Who decided: an organization's id, a user's e-mail, or the operator."""
    return name.partition("/")[2] or name
