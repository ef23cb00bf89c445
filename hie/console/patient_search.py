"""The emergency search form: what was typed -> a FHIR Patient to look for, or a sentence at the field. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date

from hie.core.fhir import Resource

GUESSED_YEARS = 5
"""How far off a guessed year of birth may be."""
_LONGEST = 60
_EARLIEST_YEAR = 1880
NOT_ENOUGH = (
    "Give a last name (its first two letters are enough), or a first name with the year of birth, or the full birth "
    "date, or a phone number, or a house number and street."
)


@dataclass(frozen=True)
class Search:
    """The form as typed, trimmed."""

    given: str = ""
    family: str = ""
    month: str = ""
    day: str = ""
    year: str = ""
    about: str = ""
    """`yes` where the year is a guess."""
    phone: str = ""
    street: str = ""
    city: str = ""

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
        if address := self._address():
            patient["address"] = [address]
        return patient

    def _address(self) -> Resource:
        address: Resource = {"line": [self.street]} if self.street else {}
        return {**address, "city": self.city} if self.city else address

    @property
    def years(self) -> int:
        """By how much the birth year may be off."""
        return GUESSED_YEARS if self.about and self.year else 0


def mistakes(search: Search, today: date) -> dict[str, str]:
    """Field -> sentence that says what to do; empty when the search can be made."""
    found = {}
    if (search.given or search.family) and not any(c.isalpha() for c in search.given + search.family):
        found["family"] = "The name holds no letters."
    elif not _enough(search):
        found["family"] = NOT_ENOUGH
    if search.phone and sum(character.isdigit() for character in search.phone) < 7:
        found["phone"] = "Give at least seven digits of the phone number, or leave it empty."
    if sentence := _birth_date_mistake(search, today):
        found["birth_date"] = sentence
    return found


def _enough(search: Search) -> bool:
    """Whether there is something to find people by (`hie.mpi.lookup`); what is less would fit a whole city."""
    name = sum(c.isalpha() for c in search.family) >= (2 if search.family.isascii() else 1)
    house = any(c.isdigit() for c in search.street) and any(c.isalpha() for c in search.street)
    whole_date = bool(search.day and search.month and search.year)
    return name or bool(search.given and search.year) or bool(search.phone) or house or whole_date


def _birth_date_mistake(search: Search, today: date) -> str:
    if not (search.year or search.month or search.day):
        return ""
    if not _whole(search.year, _EARLIEST_YEAR, today.year):
        return f"Give the year of birth in four digits, {_EARLIEST_YEAR} to {today.year}. The year alone is enough."
    if search.month and not _whole(search.month, 1, 12):
        return "Give the month as a number, 1 to 12, or leave month and day empty."
    if search.day and not search.month:
        return "Give the month as well, or leave the day empty."
    if search.about and search.month:
        return "Give the year alone when it is a guess, or take the guess away."
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
