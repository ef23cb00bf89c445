"""How two records agree: one level per trait, chosen so that each kind of error has its own. Pure.

A level is a fact about two values ("one digit differs"), never a judgement; what it is worth stands in the model
(`hie.mpi.model`). None means that a side is missing, which is no evidence. Correlated evidence counts once: street,
city and zip are one trait, and an e-mail built from the person's name is a level of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from jellyfish import damerau_levenshtein_distance, jaro_winkler_similarity, metaphone

from hie.mpi.demographics import PARTICLES, Address, Traits
from hie.mpi.nicknames import are_related, is_nickname, registered_names

LEVELS: dict[str, tuple[str, ...]] = {
    "given": (
        "exact", "nickname", "typo", "initial", "middle", "swapped", "related", "similar", "different",
    ),
    "middle": ("exact", "initial", "typo", "different"),
    "family": ("exact", "part", "typo", "similar", "different"),
    "suffix": ("same", "one-sided", "conflict"),
    "birth_date": ("exact", "swapped", "digit", "two-parts", "partial", "different"),
    "sex": ("female", "male", "different"),
    "ssn": ("exact", "near", "last-four", "different"),
    "phone": ("exact", "near", "different"),
    "email": ("personal", "shared", "near", "different"),
    "address": ("same", "other-unit", "other-zip", "near", "zip", "area", "city", "different"),
    "birth_order": ("same", "different", "flagged", "unflagged"),
}  # fmt: skip
"""Every trait with its levels, closest first. The model file has exactly these."""

TRAITS = tuple(LEVELS)

_TINY = 1e-9
"""So that a similarity on the limit counts, however its sum was rounded."""

Levels = tuple[str | None, ...]
"""One level per trait in the order of `TRAITS`; None is no evidence."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two records agree, and on which common or rare values."""

    levels: Levels
    given: str = ""
    """The given name both have, for its frequency."""
    family: str = ""


def compare(a: Traits, b: Traits) -> Comparison:
    """The levels of two records; symmetric."""
    given, given_value = _given(a, b)
    family, family_value = _family(a, b)
    if given in _UNLIKE and family in _UNLIKE and _swapped(a, b):
        given, family = "swapped", None
    return Comparison(
        levels=(
            given,
            _middle(a, b),
            family,
            suffix_level(a.suffix, b.suffix),
            _birth_date(a.birth_date, b.birth_date),
            _sex(a.sex, b.sex),
            _ssn(a.ssn, b.ssn),
            _phone(a.phones, b.phones),
            _email(a, b),
            _address(a.addresses, b.addresses),
            _birth_order(a, b),
        ),
        given=given_value,
        family=family_value,
    )


def hard_conflict(a: Traits, b: Traits) -> str | None:
    """Why the two may never be linked without a person looking, whatever the score; None when they may (law L4)."""
    date_level = _birth_date(a.birth_date, b.birth_date)
    whole_ssns = len(a.ssn) == len(b.ssn) == 9
    if whole_ssns and _ssn(a.ssn, b.ssn) == "different" and date_level not in _SAME_DATE:
        return "different social security numbers and birth dates"
    if a.birth_order and b.birth_order and a.birth_order != b.birth_order and date_level in _SAME_DATE:
        return "different order of a multiple birth"
    if suffix_level(a.suffix, b.suffix) == "conflict" and not (whole_ssns and a.ssn == b.ssn):
        return "different generational suffixes"
    return None


def identity_digest(traits: Traits) -> str:
    """Of what says who somebody is, apart from where she lives and how she is reached: a steward's word holds by it."""
    said = (traits.given, traits.middle, traits.family, traits.former, traits.suffix, traits.birth_date, traits.sex)
    return hashlib.sha256(repr((*said, traits.ssn, traits.birth_order)).encode()).hexdigest()


_UNLIKE = ("different", "similar")
_SAME_DATE = (None, "exact", "swapped", "partial")


# ---------------------------------------------------------------------------------------------------------- names


def _given(a: Traits, b: Traits) -> tuple[str | None, str]:
    if not a.given or not b.given:
        return None, ""
    shared = next((name for name in a.given if name in b.given), "")
    if len(shared) > 1:
        return "exact", min(name for name in a.given if name in b.given)
    best = _closest("given", (given_level(x, y) for x in a.given for y in b.given))
    if best in ("nickname", "typo", "initial"):
        return best, ""
    if (joined := _joined(a)) and joined == _joined(b):
        return "exact", joined
    if any(len(n) > 1 and n in b.middle for n in a.given) or any(len(n) > 1 and n in a.middle for n in b.given):
        return "middle", ""
    return best, ""


def _joined(traits: Traits) -> str:
    """`mary ann` and `maryann` are one name; only meaningful where one side writes it in two."""
    return traits.given[0] + (traits.middle[0] if traits.middle and len(traits.middle[0]) > 1 else "")


@lru_cache(maxsize=65536)
def given_level(a: str, b: str) -> str:
    """The level of two single given names."""
    if a == b and len(a) > 1:
        return "exact"
    if len(a) == 1 or len(b) == 1:
        return "initial" if a[0] == b[0] else "different"
    if is_nickname(a, b):
        return "nickname"
    if is_misspelling(a, b):
        return "typo"
    if are_related(a, b):
        return "related"
    return "similar" if _alike(a, b, 0.85) else "different"


def is_misspelling(a: str, b: str) -> bool:
    """One name written two ways, rather than two names that sound alike, as twins often have (Jayden, Kayden).

    Two letters transposed, one sound spelled two ways, or one letter off a common name to what is hardly a name.
    """
    if spelled(a) == spelled(b):
        return True
    if min(len(a), len(b)) < 4 or damerau_levenshtein_distance(a, b) != 1:
        return False
    if len(a) == len(b) and sorted(a) == sorted(b):
        return True
    counts = registered_names()
    rarer, commoner = sorted((counts.get(a, 0), counts.get(b, 0)))
    if a[0] != b[0] or commoner < 100 or a + "a" == b or b + "a" == a:
        return False
    return rarer == 0 or (rarer * 50 <= commoner and min(len(a), len(b)) >= 6)


def spelled(name: str) -> str:
    """The name with spellings of one sound made equal: Sara and Sarah, Steven and Stephen, Kristin and Cristin."""
    plain = name.replace("ph", "f").replace("v", "f").replace("ck", "k").replace("c", "k")
    plain = plain.replace("y", "i").replace("z", "s")
    plain = plain[0] + plain[1:].replace("h", "")
    return "".join(c for i, c in enumerate(plain) if i == 0 or c != plain[i - 1])


def _middle(a: Traits, b: Traits) -> str | None:
    if not a.middle or not b.middle:
        return None
    return _closest("middle", (_middle_level(x, y) for x in a.middle for y in b.middle))


def _middle_level(a: str, b: str) -> str:
    if len(a) == 1 or len(b) == 1:
        return "initial" if a[0] == b[0] else "different"
    if a == b:
        return "exact"
    return "typo" if _alike(a, b, 0.9) or is_nickname(a, b) else "different"


def _family(a: Traits, b: Traits) -> tuple[str | None, str]:
    if not a.family or not b.family:
        return None, ""
    left, right = {_solid(f) for f in a.family}, {_solid(f) for f in b.family}
    if shared := left & right:
        return "exact", min(shared)
    parts_a, parts_b = _parts(a), _parts(b)
    if not parts_a.isdisjoint(parts_b):
        return "part", min(parts_a & parts_b)
    return _closest("family", (_family_level(x, y) for x in sorted(left) for y in sorted(right))), ""


def _solid(name: str) -> str:
    return name.replace(" ", "")


def _parts(traits: Traits) -> set[str]:
    """Parts of compound names, past names, and a middle name that may be a maiden name; three letters and more."""
    names = [*traits.family, *traits.former]
    found = {part for name in names for part in name.split() if len(part) > 2 and part not in PARTICLES}
    return found | {_solid(name) for name in names}


@lru_cache(maxsize=65536)
def _family_level(a: str, b: str) -> str:
    if min(len(a), len(b)) >= 4 and (
        damerau_levenshtein_distance(a, b) == 1 or jaro_winkler_similarity(a, b) >= 0.93 - _TINY
    ):
        return "typo"
    return "similar" if _alike(a, b, 0.88) or _sound(a) == _sound(b) != "" else "different"


@lru_cache(maxsize=65536)
def _sound(name: str) -> str:
    return metaphone(name) if name.isascii() else ""


def _alike(a: str, b: str, at_least: float) -> bool:
    return damerau_levenshtein_distance(a, b) == 1 or jaro_winkler_similarity(a, b) >= at_least - _TINY


def _swapped(a: Traits, b: Traits) -> bool:
    """Given and family name stand in each other's field."""
    return any(len(x) > 1 and x in b.family and y in a.family for x in a.given for y in b.given if len(y) > 1)


def suffix_level(a: str, b: str) -> str | None:
    """The level of two generations, each possibly empty."""
    if not a and not b:
        return None
    if not a or not b:
        return "one-sided"
    return "same" if _GENERATION[a] == _GENERATION[b] else "conflict"


_GENERATION = {"sr": 1, "jr": 2, "ii": 2, "iii": 3, "iv": 4}
"""A junior is the second of his name."""


# ------------------------------------------------------------------------------------------------- dates and numbers


def _birth_date(a: str, b: str) -> str | None:
    if not a or not b:
        return None
    if len(a) < 10 or len(b) < 10:
        shorter = min(len(a), len(b))
        return "partial" if a[:shorter] == b[:shorter] else "different"
    if a[4:] == b[4:] == "-01-01" or (a[:4] == b[:4] and "-01-01" in (a[4:], b[4:])):
        # 1 January is what registrars type when they know the year only
        return "partial" if a[:4] == b[:4] else "different"
    if a == b:
        return "exact"
    if a[:4] == b[:4] and a[5:7] == b[8:] and a[8:] == b[5:7]:
        return "swapped"
    if _one_error(a.replace("-", ""), b.replace("-", "")):
        return "digit"
    same = (a[:4] == b[:4]) + (a[5:7] == b[5:7]) + (a[8:] == b[8:])
    return "two-parts" if same == 2 else "different"


def _one_error(a: str, b: str) -> bool:
    """Equal lengths, and one digit differs or two neighbours are transposed."""
    at = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if len(at) == 1:
        return True
    return len(at) == 2 and at[1] == at[0] + 1 and a[at[0]] == b[at[1]] and a[at[1]] == b[at[0]]


def _ssn(a: str, b: str) -> str | None:
    if not a or not b:
        return None
    if len(a) == len(b) == 9:
        return "exact" if a == b else "near" if _one_error(a, b) else "different"
    return "last-four" if a[-4:] == b[-4:] else "different"


def _phone(a: tuple[str, ...], b: tuple[str, ...]) -> str | None:
    if not a or not b:
        return None
    if not set(a).isdisjoint(b):
        return "exact"
    near = any(len(x) == len(y) and _one_error(x, y) for x in a for y in b)
    return "near" if near else "different"


def _email(a: Traits, b: Traits) -> str | None:
    if not a.emails or not b.emails:
        return None
    shared = [address for address in a.emails if address in b.emails]
    if shared:
        return (
            "personal"
            if any(_names_person(address, a) and _names_person(address, b) for address in shared)
            else "shared"
        )
    near = any(damerau_levenshtein_distance(x, y) <= 1 for x in a.emails for y in b.emails)
    return "near" if near else "different"


def _names_person(address: str, traits: Traits) -> bool:
    """Whether the e-mail is built from this record's own given name: its owner, not the household, reads it."""
    return any(names_its_owner(address, name) for name in traits.given)


def names_its_owner(address: str, given: str) -> bool:
    """Whether an e-mail address is built from this given name."""
    local = address.split("@")[0]
    return any(len(root) > 2 and root in local for root in (given, given[:4]))


# -------------------------------------------------------------------------------------------------------- addresses


def _address(a: tuple[Address, ...], b: tuple[Address, ...]) -> str | None:
    if not a or not b:
        return None
    return _closest("address", (_address_level(x, y) for x in a for y in b))


def _address_level(a: Address, b: Address) -> str:
    same_zip = bool(a.zip) and a.zip == b.zip
    same_city = bool(a.city) and a.city == b.city and (not a.state or not b.state or a.state == b.state)
    if not a.street or not b.street:
        return "area" if same_zip or (same_city and not (a.zip and b.zip)) else "city" if same_city else "different"
    if a.street == b.street and a.number == b.number and a.number:
        if same_zip or (same_city and not (a.zip and b.zip)):
            return "other-unit" if a.unit and b.unit and a.unit != b.unit else "same"
        return "other-zip"
    if same_zip or same_city:
        near_number = bool(a.number) and a.street == b.street and len(a.number) == len(b.number) > 1
        if near_number and _one_error(a.number, b.number):
            return "near"
        if a.number == b.number != "" and _same_street(a.street, b.street):
            return "near"
    return "zip" if same_zip else "city" if same_city else "different"


@lru_cache(maxsize=65536)
def _same_street(a: str, b: str) -> bool:
    """A misspelled street, or one with its type left out."""
    return jaro_winkler_similarity(a, b) >= 0.9 - _TINY or a.split()[0] == b.split()[0]


def _birth_order(a: Traits, b: Traits) -> str:
    """Never missing: whether a twin is to be feared is worth knowing where neither side numbers them."""
    if a.birth_order and b.birth_order:
        return "same" if a.birth_order == b.birth_order else "different"
    return "flagged" if a.multiple_birth or b.multiple_birth else "unflagged"


def _sex(a: str, b: str) -> str | None:
    """Which sex both have, too: women change their family name more often than men."""
    if not a or not b:
        return None
    return {"f": "female", "m": "male"}[a] if a == b else "different"


_RANK = {trait: {level: rank for rank, level in enumerate(levels)} for trait, levels in LEVELS.items()}


def _closest(trait: str, levels: Iterable[str]) -> str:
    return min(levels, key=_RANK[trait].__getitem__)
