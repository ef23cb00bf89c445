"""The emergency search form: what was typed -> a FHIR Patient to look for, or a sentence at the field. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date

from hie.core.fhir import Resource

_LONGEST = 60
_EARLIEST_YEAR = 1880


@dataclass(frozen=True)
class Search:
    """The form as typed, trimmed."""

    given: str = ""
    family: str = ""
    month: str = ""
    day: str = ""
    year: str = ""
    phone: str = ""

    @classmethod
    def of(cls, form: Mapping[str, str]) -> Search:
        return cls(**{f.name: _tidy(form.get(f.name, "")) for f in fields(cls)})

    @property
    def birth_date(self) -> str:
        """FHIR date, as partial as was given; meaningful once `mistakes` is empty."""
        return "-".join(f"{int(part):02d}" for part in (self.year, self.month, self.day) if part)

    def patient(self) -> Resource:
        """The FHIR Patient that the index compares people with."""
        patient: Resource = {"resourceType": "Patient"}
        human_name: Resource = {"family": self.family} if self.family else {}
        if self.given:
            human_name["given"] = self.given.split()
        if human_name:
            patient["name"] = [human_name]
        if self.birth_date:
            patient["birthDate"] = self.birth_date
        if self.phone:
            patient["telecom"] = [{"system": "phone", "value": self.phone}]
        return patient


def mistakes(search: Search, today: date) -> dict[str, str]:
    """Field -> sentence that says what to do; empty when the search can be made."""
    found = {}
    if (search.given or search.family) and not any(c.isalpha() for c in search.given + search.family):
        found["family"] = "The name holds no letters."
    elif not _enough(search):
        found["family"] = "Give both names, or one name and the full birth date, or a phone number."
    if search.phone and sum(character.isdigit() for character in search.phone) < 7:
        found["phone"] = "Give at least seven digits of the phone number, or leave it empty."
    if sentence := _birth_date_mistake(search, today):
        found["birth_date"] = sentence
    return found


def _enough(search: Search) -> bool:
    """Whether there is something to find people by (`hie.mpi.blocking`): one name alone would fit a whole city."""
    one_name, both_names = bool(search.given or search.family), bool(search.given and search.family)
    return bool(search.phone) or both_names or (one_name and bool(search.day and search.month and search.year))


def _birth_date_mistake(search: Search, today: date) -> str:
    if not (search.year or search.month or search.day):
        return ""
    if not _whole(search.year, _EARLIEST_YEAR, today.year):
        return f"Give the year of birth in four digits, {_EARLIEST_YEAR} to {today.year}. The year alone is enough."
    if search.month and not _whole(search.month, 1, 12):
        return "Give the month as a number, 1 to 12, or leave month and day empty."
    if search.day and not search.month:
        return "Give the month as well, or leave the day empty."
    if not search.day:
        return ""
    try:
        born = date(int(search.year), int(search.month), int(search.day))
    except ValueError:
        return "There is no such day in that month. Check the day, or leave it empty."
    return "The birth date lies in the future." if born > today else ""


def _tidy(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LONGEST]


def _whole(text: str, lowest: int, highest: int) -> bool:
    return text.isascii() and text.isdigit() and lowest <= int(text) <= highest
