"""Which records of a file are worth comparing: the rules of `hie.mpi.blocking` as sorted 64-bit keys, and looser ones.

Every rule makes a key per record from a few traits; records that share a key are a block. A block of more than `CAP`
records proposes nothing (a popular name and year), which is why there are many complementary rules. Where the data is
thin, the strict rules propose few pairs and looser rules are added, cheapest first, until the budget is spent; a small
file is compared whole. Each rule names the traits that it presumes to agree: training does not learn those from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from jellyfish import metaphone

from hie.mpi.batch_traits import Columns
from hie.mpi.nicknames import roots

Keys = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int64]

CAP = 100
"""Records of the largest block that is compared, for the strict rules."""
LOOSE_CAPS = (100, 300, 1000)
"""The same for the looser ones, tried one after the other."""
WHOLE = 2_000
"""Records up to which every pair is compared."""
WORKERS = max(1, min(4, len(os.sched_getaffinity(0))))
MANY = 300_000
THIN = 2.0
"""Looser rules are for files of up to `MANY` records, and for those whose strict rules propose fewer than `THIN` pairs
per record."""
BUDGET = 4_000_000
PER_RECORD = 2
"""Pairs that looser rules may add: the larger of `BUDGET` less those of the strict rules, and so many per record."""


@dataclass(frozen=True, eq=False)
class Rule:
    """A block rule: `keys` belong to the records `at`; 0 is no key."""

    name: str
    presumes: tuple[str, ...]
    at: npt.NDArray[np.intp] | None
    keys: Keys


@dataclass(frozen=True)
class Pairs:
    """Candidate pairs, i < j, without duplicates; in the order of i and j."""

    i: npt.NDArray[np.int32]
    j: npt.NDArray[np.int32]
    rules: tuple[Rule, ...]
    """The rules that proposed them; none where the file was compared whole."""

    def __len__(self) -> int:
        return len(self.i)


def candidates(columns: Columns) -> Pairs:
    """The pairs worth comparing."""
    size = len(columns)
    if size <= WHOLE:
        i, j = np.triu_indices(size, 1)
        return Pairs(i.astype(np.int32), j.astype(np.int32), ())
    parts = _Parts(columns)
    made = list(_strict(parts))
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(lambda rule: _Blocks(rule, size).pairs(1, CAP), made))
    strict = sum(map(len, found))
    if size <= MANY or strict < THIN * size:
        left = max(BUDGET - strict, PER_RECORD * size)
        rules = list(_loose(parts))
        for cost, order, low, high in sorted(_offers(rules, size)):
            if cost > left:
                break
            left -= cost
            made.append(rules[order])
            found.append(_Blocks(rules[order], size).pairs(low, high))
    ids = _distinct(np.concatenate(found)) if found else np.zeros(0, np.int64)
    i = ids // size
    return Pairs(i.astype(np.int32), (ids - i * size).astype(np.int32), tuple(dict.fromkeys(made)))


def _offers(rules: list[Rule], size: int) -> Iterator[tuple[int, int, int, int]]:
    """Of each looser rule: its pairs, its place, and the sizes of blocks that have them."""
    for order, rule in enumerate(rules):
        blocks = _Blocks(rule, size)
        for low, high in pairwise((1, *LOOSE_CAPS)):
            if cost := blocks.cost(low, high):
                yield cost, order, low, high


def _distinct(ids: Ids) -> Ids:
    ids.sort()
    keep = np.ones(len(ids), bool)
    np.not_equal(ids[1:], ids[:-1], out=keep[1:])
    return ids[keep]


class _Blocks:
    """The blocks of one rule: records ordered by key."""

    def __init__(self, rule: Rule, size: int) -> None:
        self.size = size
        bits = max(1, int(size - 1).bit_length())
        at = np.arange(size) if rule.at is None else rule.at
        real = rule.keys != 0
        mask = np.uint64((1 << 64) - (1 << bits))
        packed = (rule.keys[real] & mask) | at[real].astype(np.uint64)
        packed.sort()
        if rule.at is not None and len(packed):
            packed = packed[np.concatenate(([True], packed[1:] != packed[:-1]))]
        keys = packed & mask
        self.ordered = (packed & ~mask).astype(np.int64)
        self.starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.zeros(0, int)
        self.sizes = np.diff(np.append(self.starts, len(keys)))

    def cost(self, low: int, high: int) -> int:
        """Pairs in blocks of more than `low` and at most `high` records."""
        sizes = self.sizes[(self.sizes > low) & (self.sizes <= high)]
        return int((sizes * (sizes - 1) // 2).sum())

    def pairs(self, low: int, high: int) -> Ids:
        """i * size + j, i < j, of every pair in such blocks."""
        keep = (self.sizes > low) & (self.sizes <= high)
        starts, sizes = self.starts[keep], self.sizes[keep]
        total = int(sizes.sum())
        if not total:
            return np.zeros(0, np.int64)
        within = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        ordered = self.ordered[np.repeat(starts, sizes) + within]
        follow = np.repeat(sizes, sizes) - within - 1
        made, lag = [], 1
        at = np.flatnonzero(follow >= 1)
        while len(at):
            a, b = ordered[at], ordered[at + lag]
            made.append(np.minimum(a, b) * self.size + np.maximum(a, b))
            lag += 1
            at = at[follow[at] >= lag]
        return np.concatenate(made)


def proposed_freely(pairs: Pairs, i: npt.NDArray[np.int32], j: npt.NDArray[np.int32], traits: tuple[str, ...]) -> Ids:
    """Per pair a bit for each trait that some rule proposed it without presuming."""
    if not pairs.rules:
        return np.full(len(i), (1 << len(traits)) - 1, np.int64)
    made = np.zeros(len(i), np.int64)
    size = 1 + max(int(i.max(initial=0)), int(j.max(initial=0)))
    with ThreadPoolExecutor(WORKERS) as pool:
        for rule, shared in zip(pairs.rules, pool.map(lambda r: _share(r, i, j, size), pairs.rules), strict=True):
            made[shared] |= sum(1 << t for t, trait in enumerate(traits) if trait not in rule.presumes)
    return made


def _share(rule: Rule, i: npt.NDArray[np.int32], j: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.bool_]:
    """Whether two records share a key of the rule."""
    if rule.at is None:
        return np.asarray((rule.keys[i] == rule.keys[j]) & (rule.keys[i] != 0))
    real = (rule.keys != 0) & (rule.at < size)
    order = np.argsort(rule.at[real], kind="stable")
    at, keys = rule.at[real][order], np.append(rule.keys[real][order], np.uint64(0))
    first = np.searchsorted(at, np.arange(size + 1))
    counts = np.diff(first)
    made = np.zeros(len(i), bool)
    for a in range(int(counts.max(initial=0))):
        for b in range(a + 1):
            for x, y in ((a, b), (b, a)) if a != b else ((a, b),):
                rows = np.flatnonzero((counts[i] > x) & (counts[j] > y) & ~made)
                made[rows] = keys[first[i[rows]] + x] == keys[first[j[rows]] + y]
    return made


# ------------------------------------------------------------------------------------------------------------- rules


class _Parts:
    """What keys are made of: one number per record, 0 where it is not known."""

    def __init__(self, columns: Columns) -> None:
        c, n = columns, columns.names
        code = {name: k for k, name in enumerate(n)}
        called, surnamed = c.called, c.surnamed

        def root(name: str) -> int:
            """The commonest whole name that it may be short for."""
            return 1 + code.get(roots(name)[:2][-1], code[name])

        of_root = c.of_names(called, root)
        is_long = np.array([*(len(name) > 1 for name in n), False])
        first = np.array([*(ord(name[0]) for name in n), 0], np.int64)
        sounds: dict[str, int] = {}
        of_sound = c.of_names(surnamed, lambda name: sounds.setdefault(sound(name), len(sounds) + 1))
        self.given = np.where(is_long[c.given], c.given.astype(np.int64) + 1, 0)
        self.root = of_root[c.given]
        self.called = [self.root, np.where(is_long[c.middle[0]], of_root[c.middle[0]], 0)]
        joined = c.joined.astype(np.int64) + 1
        joined[c.joined == c.given] = 0
        self.called.append(joined)
        self.initial = first[c.given]
        self.family = c.solid.astype(np.int64) + 1
        self.sounds = [of_sound[part] for part in c.parts]
        self.sound = self.sounds[0]
        self.family1 = first[c.solid]
        self.family3 = c.of_names(surnamed, _prefix)[c.solid]
        self.given3 = c.of_names(called, _prefix)[c.given]
        year, month, day = (part.astype(np.int64) for part in (c.year, c.month, c.day))
        self.year = year
        self.month_day = np.where(
            (day > 0) & ~((day == 1) & (month == 1)), np.minimum(day, month) * 32 + np.maximum(day, month), 0
        )
        self.date = np.where((year > 0) & (self.month_day > 0), year * 1024 + self.month_day, 0)
        self.year_month = np.where(month > 0, year * 13 + month, 0)
        self.year_day = np.where(day > 0, year * 32 + day, 0)
        whole = c.ssn.lengths > 4
        self.ssn = _lookup((np.arange(len(whole)) + 1) * whole, c.ssn.codes)
        self.last_four = _lookup(c.ssn.ends(4) + 1, c.ssn.codes)
        self.phone = c.phone.codes.astype(np.int64) + 1
        self.email = c.email.codes.astype(np.int64) + 1
        self.local = _lookup(c.email.heads("[^@]*") + 1, c.email.codes)
        self.zip = c.zip.codes.astype(np.int64) + 1
        self.city = c.city.astype(np.int64) + 1
        head = _lookup(c.street.heads(".{0,6}") + 1, c.street.codes)
        self.house = np.where(head > 0, head * (len(c.number.distinct) + 2) + c.number.codes + 1, 0)
        self.street = c.street.codes.astype(np.int64) + 1
        low, high = np.minimum(self.given, self.family), np.maximum(self.given, self.family)
        self.name_pair = np.where(low > 0, low * (len(n) + 1) + high, 0)


def _lookup(of_value: npt.NDArray[Any], codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return np.append(of_value.astype(np.int64), 0)[codes]


def sound(name: str) -> str:
    """How a name sounds; the name itself where that is not known."""
    return (metaphone(name)[:6] if name.isascii() else "") or name


def _prefix(name: str) -> int:
    made = 0
    for letter in name[:3]:
        made = made * 1114112 + ord(letter)
    return made


def _one(name: str, presumes: str, *parts: npt.NDArray[np.int64]) -> Rule:
    return Rule(name, tuple(presumes.split()), None, _mix(name, parts))


def _several(name: str, presumes: str, many: list[npt.NDArray[np.int64]], *parts: npt.NDArray[np.int64]) -> Rule:
    """One key for each of the names in `many`."""
    at, keys = [], []
    for k, first in enumerate(many):
        rows = np.flatnonzero(first) if k else np.arange(len(first))
        at.append(rows)
        keys.append(_mix(name, [first[rows], *(part[rows] for part in parts)]))
    if not sum(len(rows) for rows in at[1:]):
        return Rule(name, tuple(presumes.split()), None, keys[0])
    return Rule(name, tuple(presumes.split()), np.concatenate(at), np.concatenate(keys))


def _strict(p: _Parts) -> Iterator[Rule]:
    """The rules of `hie.mpi.blocking`."""
    yield _one("ssn", "ssn", p.ssn)
    yield _one("last-four", "ssn birth_date", p.last_four, p.year)
    yield _one("last-four-name", "ssn family", p.last_four, p.sound)
    yield _one("phone", "phone", p.phone)
    yield _one("email", "email", p.email)
    yield _several("given-date", "given birth_date middle", p.called, p.date)
    yield _several("family-date", "family birth_date", p.sounds, p.date)
    yield _one("date-zip", "birth_date address", p.date, p.zip)
    yield _several("name-year", "given family birth_date", p.sounds, p.initial, p.year)
    yield _several("name-day", "given family birth_date", p.sounds, p.root, p.month_day)
    yield _several("name-zip", "given family address", p.sounds, p.root, p.zip)
    yield _several("name-street", "given address", p.called, p.house)
    yield _several("family-street", "family address", p.sounds, p.house)
    yield _one("swapped", "given family birth_date", p.name_pair, p.year)
    yield _one("name", "given family", p.root, p.family)


def _loose(p: _Parts) -> Iterator[Rule]:
    """Rules of one or two traits, for files that have few."""
    loose = (
        ("name-sound", "given family", (p.root, p.sound)),
        ("date", "birth_date", (p.date,)),
        ("given-year-month", "given birth_date", (p.root, p.year_month)),
        ("given-year-day", "given birth_date", (p.root, p.year_day)),
        ("given-day", "given birth_date", (p.root, p.month_day)),
        ("family-year-month", "family birth_date", (p.sound, p.year_month)),
        ("family-year-day", "family birth_date", (p.sound, p.year_day)),
        ("family-day", "family birth_date", (p.sound, p.month_day)),
        ("given-year", "given birth_date", (p.root, p.year)),
        ("family-year", "family birth_date", (p.sound, p.year)),
        ("initials-date", "given family birth_date", (p.initial, p.family1, p.year_month)),
        ("initials-day", "given family birth_date", (p.initial, p.family1, p.month_day)),
        ("initials-year-day", "given family birth_date", (p.initial, p.family1, p.year_day)),
        ("prefixes", "given family", (p.given3, p.family3)),
        ("prefix-date", "given birth_date", (p.given3, p.year)),
        ("family-prefix-date", "family birth_date", (p.family3, p.year)),
        ("given-zip", "given address", (p.root, p.zip)),
        ("family-zip", "family address", (p.sound, p.zip)),
        ("given-city", "given address", (p.root, p.city)),
        ("family-city", "family address", (p.sound, p.city)),
        ("family-prefix-zip", "family address", (p.family3, p.zip)),
        ("given-prefix-zip", "given address", (p.given3, p.zip)),
        ("year-zip", "birth_date address", (p.year, p.zip)),
        ("day-zip", "birth_date address", (p.month_day, p.zip)),
        ("date-city", "birth_date address", (p.date, p.city)),
        ("year-city", "birth_date address", (p.year_month, p.city)),
        ("house", "address", (p.house,)),
        ("street", "address", (p.street,)),
        ("zip", "address", (p.zip,)),
        ("local", "email", (p.local,)),
        ("given", "given", (p.given,)),
        ("family", "family", (p.family,)),
    )  # fmt: skip
    for name, presumes, parts in loose:
        yield _one(name, presumes, *parts)


_MULTIPLY = np.uint64(0x9E3779B97F4A7C15)


def _mix(name: str, parts: list[npt.NDArray[np.int64]] | tuple[npt.NDArray[np.int64], ...]) -> Keys:
    """A well-mixed key of several numbers; 0 where one of them is."""
    known = np.ones(len(parts[0]), bool)
    key = np.full(len(parts[0]), sum(map(ord, name)), np.uint64)
    for part in parts:
        known &= part != 0
        key ^= part.astype(np.uint64)
        key *= _MULTIPLY
        key ^= key >> np.uint64(29)
    key *= _MULTIPLY
    key |= np.uint64(1) << np.uint64(63)
    return np.where(known, key, np.uint64(0))
