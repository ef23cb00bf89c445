"""Which records are worth comparing: complementary keys, each surviving errors that break the others. Pure.

Two records are compared when they share a key. Every usual error (nickname, misspelling, marriage, move, wrong date)
breaks some keys and leaves others; `tests/mpi/matching` holds the choice to a matcher that compares everything.
Keys are signed 64-bit integers for an indexed database column, and the same in every process and on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

from jellyfish import metaphone

from hie.mpi.demographics import Traits
from hie.mpi.nicknames import roots

MAX_KEYS = 48

Rule = tuple[str, str]
"""The name of a blocking rule and the value that two records must share."""

RULES: dict[str, tuple[str, ...]] = {
    "ssn": ("ssn",),
    "last-four": ("ssn", "birth_date"),
    "last-four-name": ("ssn", "family"),
    "phone": ("phone",),
    "email": ("email",),
    "given-date": ("given", "birth_date"),
    "family-date": ("family", "birth_date"),
    "date-zip": ("birth_date", "address"),
    "name-year": ("given", "family", "birth_date"),
    "name-day": ("given", "family", "birth_date"),
    "name-zip": ("given", "family", "address"),
    "name-street": ("given", "address"),
    "family-street": ("family", "address"),
    "swapped": ("given", "family", "birth_date"),
    "name": ("given", "family"),
}
"""Each rule with the traits it presumes to agree (training never learns a trait from its own blocks)."""


LOOKUP_PART = 2
"""Parts of a family name up to so many letters (`de`, `la`) find nobody."""


def lookup_keys(traits: Traits) -> tuple[int, ...]:
    """Keys that people who search by little are found by; they never propose a link."""
    return tuple(dict.fromkeys(digest(rule, value) for rule, value in lookup_rules(traits)))[:MAX_KEYS]


def lookup_rules(traits: Traits) -> Iterator[Rule]:
    """The rules and values behind `lookup_keys`."""
    year, families = _year(traits), _family_parts(traits)
    yield from (("look-family", family) for family in families)
    if year:
        yield from (("look-family-year", f"{family} {year}") for family in families)
        yield from (("look-given-year", f"{name} {year}") for name in _roots(traits.given))
    if day := _month_and_day(traits):
        yield "look-date", f"{year}-{day}"
    yield from (("look-phone-end", number[-7:]) for number in traits.phones)
    for place in traits.addresses:
        if place.street:
            yield "look-house", f"{place.number} {place.street[:6]}"


def keys(traits: Traits) -> tuple[int, ...]:
    """The blocking keys, the most telling rules first, without duplicates."""
    found = dict.fromkeys(digest(rule, value) for rule, value in rules(traits))
    return tuple(found)[:MAX_KEYS]


def rules(traits: Traits) -> Iterator[Rule]:
    """The rules and values behind `keys`."""
    given = _roots(traits.given)
    called = (*given, *_further_names(traits))
    sounds = tuple(dict.fromkeys(_sound(part) for part in _family_parts(traits)))
    yield from _numbers(traits, sounds)
    year, day = _year(traits), _month_and_day(traits)
    if year and day:
        date = f"{year}-{day}"
        yield from (("given-date", f"{name} {date}") for name in called)
        yield from (("family-date", f"{sound} {date}") for sound in sounds)
        yield from (("date-zip", f"{place.zip} {date}") for place in traits.addresses if place.zip)
    if year:
        initials = dict.fromkeys(name[0] for name in given)
        yield from (("name-year", f"{initial} {sound} {year}") for initial in initials for sound in sounds)
        yield from (("swapped", f"{pair} {year}") for pair in _name_pairs(traits))
    if day:
        yield from (("name-day", f"{name} {sound} {day}") for name in given for sound in sounds)
    for place in traits.addresses:
        if place.zip:
            yield from (("name-zip", f"{name} {sound} {place.zip}") for name in given for sound in sounds)
        if place.street:
            house = f"{place.number} {place.street[:6]}"
            yield from (("name-street", f"{name} {house}") for name in called)
            yield from (("family-street", f"{sound} {house}") for sound in sounds)
    yield from (("name", f"{name} {family.replace(' ', '')}") for name in given for family in traits.family)


def _numbers(traits: Traits, sounds: tuple[str, ...]) -> Iterator[Rule]:
    if len(traits.ssn) == 9:
        yield "ssn", traits.ssn
    if traits.ssn and (year := _year(traits)):
        yield "last-four", f"{traits.ssn[-4:]} {year}"
    if traits.ssn:
        yield from (("last-four-name", f"{traits.ssn[-4:]} {sound}") for sound in sounds)
    yield from (("phone", number) for number in traits.phones)
    yield from (("email", address) for address in traits.emails)


def _roots(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(root for name in names for root in roots(name)))[:6]


def _further_names(traits: Traits) -> tuple[str, ...]:
    """The middle name, by which some people go, and both written as one."""
    if not traits.given or not traits.middle or len(traits.middle[0]) == 1:
        return ()
    return (*_roots(traits.middle[:1]), traits.given[0] + traits.middle[0])


def _family_parts(traits: Traits) -> tuple[str, ...]:
    """Family names, past ones too, whole and in parts."""
    names = [*traits.family, *traits.former]
    parts = [part for name in names for part in name.split() if len(part) > 2] if any(" " in n for n in names) else []
    return tuple(dict.fromkeys([*(name.replace(" ", "") for name in names), *parts]))[:6]


def _name_pairs(traits: Traits) -> tuple[str, ...]:
    """Given and family name in alphabetical order, the same when a registrar swapped the fields."""
    pairs = (sorted((name, family.replace(" ", ""))) for name in traits.given for family in traits.family)
    return tuple(dict.fromkeys(" ".join(pair) for pair in pairs))


def _year(traits: Traits) -> str:
    return traits.birth_date[:4]


def _month_and_day(traits: Traits) -> str:
    """Month and day in ascending order, the same when they were swapped; empty for 1 January, a default."""
    if len(traits.birth_date) < 10 or traits.birth_date.endswith("-01-01"):
        return ""
    return "-".join(sorted((traits.birth_date[5:7], traits.birth_date[8:])))


@lru_cache(maxsize=65536)
def _sound(name: str) -> str:
    return (metaphone(name)[:6] if name.isascii() else "") or name


@lru_cache(maxsize=65536)
def digest(rule: str, value: str) -> int:
    """A key."""
    raw = hashlib.blake2b(f"{rule}\x1f{value}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "big", signed=True)
