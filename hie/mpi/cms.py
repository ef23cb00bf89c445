"""CMS patient-matching rules beside the score: the combinations of Table 2 (proposal v3.4.0) that two records meet.

An explanation, never a decision: networks begin to ask which approved combination a match satisfies. Here are the flat
rules (category 1) on traits that the matcher keeps; rules on ITIN, Medicare beneficiary, legal and insurance numbers,
and the household rules (category 2), are not. Numbers, fields and tolerances after the proposal as the package
cms-hte-patient-matching 0.0.12 (Apache 2.0) implements it; that needs Python 3.12 and so is no dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date

from jellyfish import damerau_levenshtein_distance

from hie.mpi.demographics import Traits
from hie.mpi.nicknames import is_nickname

VERSION = "3.4.0"
SHORTEST_FUZZY = 5
"""Letters that both values need before one edit may be forgiven."""


@dataclass(frozen=True)
class Rule:
    """One approved combination: fields that must agree, which of them may be off by little, and how many at once."""

    number: str
    fields: tuple[str, ...]
    near: frozenset[str] = field(default_factory=frozenset)
    most_near: int = 0


RULES = (
    Rule("01", ("first", "last", "dob", "street"), frozenset({"first", "last", "dob", "street"}), 2),
    Rule("02", ("first", "last", "dob", "phone"), frozenset({"last", "dob"}), 1),
    Rule("03", ("first", "last", "dob", "email"), frozenset({"first", "last", "dob"}), 2),
    Rule("04", ("first", "last", "dob", "ssn4"), frozenset({"first"}), 1),
    Rule("05", ("first", "last", "dob", "ssn4"), frozenset({"last"}), 1),
    Rule("11", ("first", "dob", "phone")),
    Rule("12", ("first", "dob", "email")),
    Rule("13", ("first", "phone", "ssn4")),
    Rule("15", ("first", "email", "ssn4")),
    Rule("30", ("last", "dob", "phone"), frozenset({"last"}), 1),
)


def satisfied(a: Traits, b: Traits) -> tuple[str, ...]:
    """Numbers of the rules that two records satisfy, in order."""
    agreed = {name: how(a, b) for name, how in _FIELDS.items()}
    return tuple(rule.number for rule in RULES if _meets(rule, agreed))


def _meets(rule: Rule, agreed: Mapping[str, str]) -> bool:
    near = [name for name in rule.fields if agreed[name] == "near"]
    return all(agreed[name] for name in rule.fields) and set(near) <= rule.near and len(near) <= rule.most_near


def _first(a: Traits, b: Traits) -> str:
    pairs = [(x, y) for x in a.given for y in b.given]
    if any(x == y and len(x) > 1 for x, y in pairs) or any(is_nickname(x, y) for x, y in pairs):
        return "exact"
    return "near" if any(_one_edit(x, y) for x, y in pairs) else ""


def _last(a: Traits, b: Traits) -> str:
    pairs = [(x.replace(" ", ""), y.replace(" ", "")) for x in a.family for y in b.family]
    if any(x == y for x, y in pairs):
        return "exact"
    return "near" if any(_one_edit(x, y) for x, y in pairs) else ""


def _dob(a: Traits, b: Traits) -> str:
    if len(a.birth_date) < 10 or len(b.birth_date) < 10:
        return ""
    days = abs((date.fromisoformat(a.birth_date) - date.fromisoformat(b.birth_date)).days)
    return "exact" if days == 0 else "near" if days == 1 else ""


def _street(a: Traits, b: Traits) -> str:
    lines = [
        (f"{x.number} {x.street}", f"{y.number} {y.street}")
        for x in a.addresses
        for y in b.addresses
        if x.zip and x.zip == y.zip and x.street and y.street
    ]
    if any(x == y for x, y in lines):
        return "exact"
    return "near" if any(_one_edit(x, y) for x, y in lines) else ""


def _ssn4(a: Traits, b: Traits) -> str:
    return "exact" if a.ssn and b.ssn and a.ssn[-4:] == b.ssn[-4:] else ""


def _phone(a: Traits, b: Traits) -> str:
    return "exact" if set(a.phones) & set(b.phones) else ""


def _email(a: Traits, b: Traits) -> str:
    return "exact" if set(a.emails) & set(b.emails) else ""


def _one_edit(a: str, b: str) -> bool:
    return min(len(a), len(b)) >= SHORTEST_FUZZY and damerau_levenshtein_distance(a, b) == 1


_FIELDS: dict[str, Callable[[Traits, Traits], str]] = {
    "first": _first,
    "last": _last,
    "dob": _dob,
    "street": _street,
    "phone": _phone,
    "email": _email,
    "ssn4": _ssn4,
}
