"""How pairs of records agree, for millions of pairs: the levels of `hie.mpi.comparison` over arrays of codes.

Equality is told by codes; only values that differ and are alike enough to matter (they share most letters) are compared
letter by letter, by rapidfuzz. A pattern packs the levels of all traits into one integer, so that a few tens of
thousands of patterns stand for millions of pairs. `tests/mpi/batch` holds every level to `comparison.compare`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rapidfuzz.distance import OSA, JaroWinkler
from rapidfuzz.process import cpdist

from hie.mpi import comparison as cmp
from hie.mpi.batch_traits import SUFFIXES, Bools, Codes, Columns, Strings, Text
from hie.mpi.comparison import LEVELS, TRAITS
from hie.mpi.nicknames import are_related, is_nickname, neighbours, registered_names

Ints = npt.NDArray[np.int64]
Levels = npt.NDArray[np.int8]
At = npt.NDArray[np.intp]

CODE = {trait: {level: k + 1 for k, level in enumerate(LEVELS[trait])} for trait in TRAITS}
"""Level -> its number in a pattern; 0 is no evidence."""
RADIX = tuple(len(LEVELS[trait]) + 1 for trait in TRAITS)
TINY = 1e-9
CHUNK, FIRST = 200_000, 1_000
"""Pairs that are compared in one go, and in the very first, which fills what is computed once."""
WORKERS = max(1, min(4, len(os.sched_getaffinity(0))))


@dataclass(frozen=True)
class Compared:
    """Per pair its pattern and the names that both have (codes; -1 where they do not)."""

    pattern: npt.NDArray[np.int32]
    given: Codes
    family: Codes


def unpack(patterns: npt.NDArray[np.int32]) -> npt.NDArray[np.int8]:
    """[pattern, trait]: level numbers."""
    made = np.empty((len(patterns), len(TRAITS)), np.int8)
    rest = patterns.astype(np.int64)
    for t in reversed(range(len(TRAITS))):
        made[:, t] = rest % RADIX[t]
        rest //= RADIX[t]
    return made


class Comparer:
    """Compares pairs of one file's records; keeps what is known of each distinct value. Safe to share by threads."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.names = _Names(columns)
        self.email_letters = _Letters(columns.email.values)
        self.ssn_length = np.append(columns.ssn.lengths, np.int32(0))
        self.ssn_last = np.append(columns.ssn.ends(4), np.int32(-1))
        self.numeric = {"ssn": _numbers(columns.ssn), "phone": _numbers(columns.phone)}
        complex_name = np.zeros(len(columns), bool)
        for part in columns.parts[1:]:
            complex_name |= part >= 0
        self.complex_family = complex_name
        self.several_middle = (columns.middle[1] >= 0) if len(columns.middle) > 1 else np.zeros(len(columns), bool)

    def compare_all(self, i: Codes, j: Codes, then: Callable[[slice, Compared], None]) -> None:
        """Compares in parts on all cores; `then` gets each part with its place."""

        def one(part: slice) -> None:
            then(part, self.compare(i[part].astype(np.intp), j[part].astype(np.intp)))

        if len(i):
            one(slice(0, FIRST))
        if len(i) <= FIRST:
            return
        parts = max(WORKERS, -(-(len(i) - FIRST) // CHUNK))
        limits = np.linspace(FIRST, len(i), parts + 1).astype(int).tolist()
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(one, itertools.starmap(slice, itertools.pairwise(limits))))

    def compare(self, i: At, j: At) -> Compared:
        """The patterns of the pairs."""
        given, given_value = self._given(i, j)
        family, family_value = self._family(i, j)
        self._swap(i, j, given, family)
        born = self._birth_date(i, j)
        c = self.columns
        levels = (
            given,
            self._middle(i, j),
            family,
            self._suffix(i, j),
            born,
            _sex(c.sex[i], c.sex[j]),
            self._ssn(i, j),
            self._phone(i, j),
            self._email(i, j),
            self._address(i, j),
            self._birth_order(i, j),
        )
        pattern = np.zeros(len(i), np.int32)
        for radix, level in zip(RADIX, levels, strict=True):
            pattern *= radix
            pattern += level
        return Compared(pattern, given_value, family_value)

    # names

    def _given(self, i: At, j: At) -> tuple[Levels, Codes]:
        code, c = CODE["given"], self.columns
        a, b = c.given[i], c.given[j]
        made = np.zeros(len(i), np.int8)
        value = np.full(len(i), -1, np.int32)
        both = (a >= 0) & (b >= 0)
        made[both] = code["different"]
        same = both & (a == b) & self.names.is_long[a]
        made[same], value[same] = code["exact"], a[same]
        at = np.flatnonzero(both & ~same)
        a, b = a[at], b[at]
        level = self.names.given(a, b)
        open_ = level > code["initial"]
        joined = open_ & (c.joined[i[at]] == c.joined[j[at]])
        level[joined] = code["exact"]
        # a joined name that no list has is as rare as any unlisted one; the code is beyond the vocabulary
        value[at[joined]] = c.joined[i[at[joined]]]
        called = np.zeros(len(at), bool)
        for middle in c.middle:
            called |= self.names.is_long[a] & (a == middle[j[at]])
            called |= self.names.is_long[b] & (b == middle[i[at]])
        level[open_ & ~joined & called] = code["middle"]
        made[at] = level
        return made, value

    def _middle(self, i: At, j: At) -> Levels:
        middle = self.columns.middle
        made = self.names.middle(middle[0][i], middle[0][j])
        several = np.flatnonzero(self.several_middle[i] | self.several_middle[j])
        if len(several):
            best = np.full(len(several), 99, np.int8)
            for x in middle:
                for y in middle:
                    level = self.names.middle(x[i[several]], y[j[several]])
                    best = np.where(level > 0, np.minimum(best, level), best)
            made[several] = np.where(best == 99, 0, best)
        return made

    def _family(self, i: At, j: At) -> tuple[Levels, Codes]:
        code, c = CODE["family"], self.columns
        a, b = c.solid[i], c.solid[j]
        made = np.zeros(len(i), np.int8)
        value = np.full(len(i), -1, np.int32)
        both = (a >= 0) & (b >= 0)
        same = both & (a == b)
        made[same], value[same] = code["exact"], a[same]
        at = np.flatnonzero(both & ~same)
        made[at] = self.names.family(a[at], b[at])
        complex_ = at[self.complex_family[i[at]] | self.complex_family[j[at]]]
        shared = np.full(len(complex_), np.iinfo(np.int32).max, np.int32)
        for x in c.parts:
            left = x[i[complex_]]
            for y in c.parts:
                equal = (left >= 0) & (left == y[j[complex_]])
                shared[equal] = np.minimum(shared[equal], left[equal])
        part = shared < np.iinfo(np.int32).max
        made[complex_[part]], value[complex_[part]] = code["part"], shared[part]
        return made, value

    def _swap(self, i: At, j: At, given: Levels, family: Levels) -> None:
        c = self.columns
        unlike = (given >= CODE["given"]["similar"]) & (family >= CODE["family"]["similar"])
        at = np.flatnonzero(unlike)
        a, b = i[at], j[at]
        swapped = (c.given[a] == c.family[b]) & (c.given[b] == c.family[a]) & (c.given[a] >= 0) & (c.given[b] >= 0)
        swapped &= self.names.is_long[c.given[a]] & self.names.is_long[c.given[b]]
        given[at[swapped]], family[at[swapped]] = CODE["given"]["swapped"], 0

    def _suffix(self, i: At, j: At) -> Levels:
        code, suffix = CODE["suffix"], self.columns.suffix
        table = np.zeros((len(SUFFIXES), len(SUFFIXES)), np.int8)
        for x, left in enumerate(SUFFIXES):
            for y, right in enumerate(SUFFIXES):
                level = cmp.suffix_level(left, right)
                table[x, y] = code[level] if level else 0
        return table[suffix[i], suffix[j]]

    # dates and numbers

    def _birth_date(self, i: At, j: At) -> Levels:
        code, c = CODE["birth_date"], self.columns
        a, b = (c.year[i], c.month[i], c.day[i]), (c.year[j], c.month[j], c.day[j])
        same: tuple[Bools, ...] = (a[0] == b[0], a[1] == b[1], a[2] == b[2])
        made = np.full(len(i), code["different"], np.int8)
        count = same[0].astype(np.int8) + same[1] + same[2]
        made[count == 2] = code["two-parts"]
        unlike = np.flatnonzero(count < 3)
        left, right = _date_number(a, unlike), _date_number(b, unlike)
        made[unlike[_one_digit_error(left, right)]] = code["digit"]
        made[same[0] & (a[1] == b[2]) & (a[2] == b[1])] = code["swapped"]
        made[count == 3] = code["exact"]
        first_a, first_b = (a[1] == 1) & (a[2] == 1), (b[1] == 1) & (b[2] == 1)
        default = (first_a & first_b) | (same[0] & (first_a | first_b))
        made[default] = np.where(same[0][default], code["partial"], code["different"])
        short = (a[2] == 0) | (b[2] == 0)
        month_known = (a[1] > 0) & (b[1] > 0)
        agree = same[0] & (same[1] | ~month_known)
        made[short] = np.where(agree[short], code["partial"], code["different"])
        made[(a[0] == 0) | (b[0] == 0)] = 0
        return made

    def _ssn(self, i: At, j: At) -> Levels:
        code, c = CODE["ssn"], self.columns
        a, b = c.ssn.codes[i], c.ssn.codes[j]
        made = np.zeros(len(i), np.int8)
        at = np.flatnonzero((a >= 0) & (b >= 0))
        a, b = a[at], b[at]
        level = np.full(len(at), code["different"], np.int8)
        level[self.ssn_last[a] == self.ssn_last[b]] = code["last-four"]
        whole = (self.ssn_length[a] > 4) & (self.ssn_length[b] > 4)
        level[whole] = code["different"]
        near = np.flatnonzero(whole & (a != b) & (self.ssn_length[a] == self.ssn_length[b]))
        level[near[self._near("ssn", c.ssn, a[near], b[near])]] = code["near"]
        level[whole & (a == b)] = code["exact"]
        made[at] = level
        return made

    def _phone(self, i: At, j: At) -> Levels:
        code, c = CODE["phone"], self.columns
        a, b = c.phone.codes[i], c.phone.codes[j]
        made = np.zeros(len(i), np.int8)
        both = (a >= 0) & (b >= 0)
        made[both] = code["different"]
        at = np.flatnonzero(both & (a != b))
        made[at[self._near("phone", c.phone, a[at], b[at])]] = code["near"]
        made[both & (a == b)] = code["exact"]
        return made

    def _near(self, trait: str, text: Text, a: Codes, b: Codes) -> Bools:
        """Of equal length and one digit wrong or two neighbours transposed."""
        numbers, lengths = self.numeric[trait]
        if numbers is not None:
            return np.asarray(_one_digit_error(numbers[a], numbers[b]) & (lengths[a] == lengths[b]))
        return np.asarray((lengths[a] == lengths[b]) & (_distance(text.values, a, b, 1) == 1))

    def _email(self, i: At, j: At) -> Levels:
        code, c = CODE["email"], self.columns
        a, b = c.email.codes[i], c.email.codes[j]
        made = np.zeros(len(i), np.int8)
        both = (a >= 0) & (b >= 0)
        made[both] = code["different"]
        same = np.flatnonzero(both & (a == b))
        personal = self._names_person(i[same]) & self._names_person(j[same])
        made[same] = np.where(personal, code["personal"], code["shared"])
        at = np.flatnonzero(both & (a != b))
        at = at[self.email_letters.may_be_one_off(a[at], b[at])]
        if len(at):
            made[at[_distance(c.email.values, a[at], b[at], 1) == 1]] = code["near"]
        return made

    def _names_person(self, rows: At) -> Bools:
        """`comparison.names_its_owner` of each record's e-mail and given name."""
        c = self.columns
        given = c.given[rows]
        heads, emails = self._heads[given], self._locals[c.email.codes[rows]]
        known = given >= 0
        return np.asarray(known & np.array([head in local for head, local in zip(heads, emails, strict=True)], bool))

    @cached_property
    def _locals(self) -> Strings:
        made = np.empty(len(self.columns.email.values), object)
        made[:] = [value.partition("@")[0] for value in self.columns.email.values]
        return made

    @cached_property
    def _heads(self) -> Strings:
        """The first four letters of each name, where it has three; what no e-mail address contains otherwise."""
        made = np.empty(len(self.columns.names) + 1, object)
        made[:] = [*(name[:4] if len(name) > 2 else "\n" for name in self.columns.names), "\n"]
        return made

    # addresses

    def _address(self, i: At, j: At) -> Levels:
        code, c = CODE["address"], self.columns
        street_a, street_b = c.street.codes[i], c.street.codes[j]
        zip_a, zip_b = c.zip.codes[i], c.zip.codes[j]
        city_a, city_b = c.city[i], c.city[j]
        state_a, state_b = c.state[i], c.state[j]
        same_zip = (zip_a >= 0) & (zip_a == zip_b)
        same_city = (city_a >= 0) & (city_a == city_b) & ((state_a < 0) | (state_b < 0) | (state_a == state_b))
        same_area = same_zip | (same_city & ~((zip_a >= 0) & (zip_b >= 0)))
        made = np.full(len(i), code["different"], np.int8)
        made[same_city] = code["city"]
        streets = (street_a >= 0) & (street_b >= 0)
        made[same_zip & streets] = code["zip"]
        made[same_area & ~streets] = code["area"]
        number_a, number_b = c.number.codes[i], c.number.codes[j]
        same_number = (number_a >= 0) & (number_a == number_b)
        same_street = streets & (street_a == street_b)
        near = np.flatnonzero(streets & (same_zip | same_city) & (same_street ^ same_number))
        self._near_address(near, i, j, same_street, made)
        house = same_street & same_number
        unit_a, unit_b = c.unit[i], c.unit[j]
        other_unit = (unit_a >= 0) & (unit_b >= 0) & (unit_a != unit_b)
        made[house] = code["other-zip"]
        made[house & same_area] = code["same"]
        made[house & same_area & other_unit] = code["other-unit"]
        known_a = (street_a >= 0) | (zip_a >= 0) | (city_a >= 0)
        made[~(known_a & ((street_b >= 0) | (zip_b >= 0) | (city_b >= 0)))] = 0
        return made

    def _near_address(self, at: At, i: At, j: At, same_street: Bools, made: Levels) -> None:
        """Same street with one digit of the number wrong, or same number in a street written alike."""
        c = self.columns
        of_street = at[same_street[at]]
        a, b = c.number.codes[i[of_street]], c.number.codes[j[of_street]]
        some = (a >= 0) & (b >= 0)
        of_street, a, b = of_street[some], a[some], b[some]
        near = _one_error(c.number.values, a, b)
        near &= np.array([len(c.number.values[k]) > 1 for k in a], bool) if len(a) else near
        made[of_street[near]] = CODE["address"]["near"]
        of_number = at[~same_street[at]]
        a, b = c.street.codes[i[of_number]], c.street.codes[j[of_number]]
        alike = self.street_head[a] == self.street_head[b]
        rest = np.flatnonzero(~alike)
        if len(rest):
            alike[rest] = _jaro_winkler(c.street.values, a[rest], b[rest], 0.9)
        made[of_number[alike]] = CODE["address"]["near"]

    @cached_property
    def street_head(self) -> Codes:
        """The first word of each street."""
        heads: dict[str, int] = {}
        return np.array(
            [heads.setdefault(v.partition(" ")[0], len(heads)) for v in self.columns.street.values], np.int32
        )

    def _birth_order(self, i: At, j: At) -> Levels:
        code, order = CODE["birth_order"], self.columns.birth_order
        a, b = order[i], order[j]
        made = np.full(len(i), code["unflagged"], np.int8)
        made[(a > 0) | (b > 0)] = code["flagged"]
        both = (a > 0) & (b > 0)
        made[both] = np.where(a[both] == b[both], code["same"], code["different"])
        return made

    def conflicts(self, i: At, j: At, pattern: npt.NDArray[np.int32]) -> Bools:
        """Pairs that may never link unseen (`comparison.hard_conflict`)."""
        level = unpack(pattern)
        at = {trait: level[:, t] for t, trait in enumerate(TRAITS)}
        born, c = at["birth_date"], self.columns
        same_date = np.isin(born, [0, *(CODE["birth_date"][name] for name in ("exact", "swapped", "partial"))])
        a, b = self.ssn_length[c.ssn.codes[i]] > 4, self.ssn_length[c.ssn.codes[j]] > 4
        whole = a & b & c.american
        numbers = whole & (at["ssn"] == CODE["ssn"]["different"]) & ~same_date
        orders = (at["birth_order"] == CODE["birth_order"]["different"]) & same_date
        generations = (at["suffix"] == CODE["suffix"]["conflict"]) & ~(whole & (at["ssn"] == CODE["ssn"]["exact"]))
        made: Bools = numbers | orders | generations
        return made


def _sex(a: npt.NDArray[np.int8], b: npt.NDArray[np.int8]) -> Levels:
    """Of the numbers of `batch_traits`: 0 not known, 1 male, 2 female."""
    code = CODE["sex"]
    made = np.where(a == b, np.array([0, code["male"], code["female"]], np.int8)[a], code["different"]).astype(np.int8)
    made[(a == 0) | (b == 0)] = 0
    return made


def _date_number(parts: tuple[npt.NDArray[Any], ...], at: At) -> Ints:
    year, month, day = (part[at].astype(np.int64) for part in parts)
    return year * 10000 + month * 100 + day


_POWERS = [10**k for k in range(19)]
_GAPS = np.array(sorted({k * p for p in _POWERS[:16] for k in (*range(1, 10), *range(9, 90, 9))}), np.int64)


def _one_digit_error(a: Ints, b: Ints) -> Bools:
    """One digit differs or two neighbours are transposed; for numbers of as many digits."""
    gap = np.abs(a - b)
    place = np.searchsorted(_GAPS, gap)
    at = np.flatnonzero(_GAPS[np.minimum(place, len(_GAPS) - 1)] == gap)
    made = np.zeros(len(a), bool)
    if not len(at):
        return made
    x, y = a[at].copy(), b[at].copy()
    wrong = np.zeros(len(at), np.int8)
    first = np.full(len(at), -1, np.int8)
    swap = np.zeros(len(at), bool)
    last_x, last_y = np.zeros(len(at), np.int8), np.zeros(len(at), np.int8)
    for position in range(19):
        digit_x, digit_y = (x % 10).astype(np.int8), (y % 10).astype(np.int8)
        differs = digit_x != digit_y
        swap |= differs & (wrong == 1) & (first == position - 1) & (digit_x == last_y) & (digit_y == last_x)
        first[differs & (wrong == 0)] = position
        wrong += differs
        last_x, last_y = digit_x, digit_y
        x //= 10
        y //= 10
        if not (x.any() or y.any()):
            break
    made[at] = (wrong == 1) | ((wrong == 2) & swap)
    return made


def _numbers(text: Text) -> tuple[Ints | None, Codes]:
    """The values as numbers where all of them are, and their lengths."""
    lengths = text.lengths if len(text.distinct) else np.zeros(1, np.int32)
    if lengths.max() > 18 or not pc.all(pc.match_substring_regex(text.distinct, "^[0-9]*$"), min_count=0).as_py():
        return None, lengths
    filled = pc.if_else(pc.equal(text.distinct, ""), "0", text.distinct)
    return np.asarray(filled.cast(pa.int64())) if len(filled) else np.zeros(1, np.int64), lengths


def _distance(values: Strings, a: Codes, b: Codes, cutoff: int) -> npt.NDArray[Any]:
    return cpdist(values[a], values[b], scorer=OSA.distance, score_cutoff=cutoff, dtype=np.uint8)


def _one_error(values: Strings, a: Codes, b: Codes) -> Bools:
    if not len(a):
        return np.zeros(0, bool)
    lengths = np.array([len(value) for value in values], np.int32)
    made: Bools = (lengths[a] == lengths[b]) & (_distance(values, a, b, 1) == 1)
    return made


def _jaro_winkler(values: Strings, a: Codes, b: Codes, least: float) -> Bools:
    score = cpdist(values[a], values[b], scorer=JaroWinkler.similarity, dtype=np.float64)
    made: Bools = score >= least - TINY
    return made


class _Letters:
    """Which letters each value has, to tell quickly that two values have too few in common to be alike."""

    def __init__(self, values: Strings) -> None:
        self.length = np.array([len(value) for value in values] or [0], np.int16)
        self.mask = _masks(values)
        self.rest = self.length - np.bitwise_count(self.mask).astype(np.int16)

    def common(self, a: Codes, b: Codes) -> npt.NDArray[np.int16]:
        """Letters in common, at most."""
        made: npt.NDArray[np.int16] = np.bitwise_count(self.mask[a] & self.mask[b]).astype(np.int16)
        made += np.minimum(self.rest[a], self.rest[b])
        return made

    def may_be_one_off(self, a: Codes, b: Codes) -> Bools:
        la, lb = self.length[a], self.length[b]
        made: Bools = (np.abs(la - lb) <= 1) & (self.common(a, b) >= np.maximum(la, lb) - 1)
        return made

    def may_be_alike(self, a: Codes, b: Codes, least: float) -> Bools:
        """Whether Jaro-Winkler may reach `least`: Jaro is at most (m/a + m/b + 1) / 3, and the prefix adds 0.4."""
        la, lb, m = self.length[a], self.length[b], self.common(a, b)
        jaro = (least - 0.4) / 0.6
        made: Bools = (m / la + m / lb) >= 3 * jaro - 1 - 1e-6
        made |= (np.abs(la - lb) <= 1) & (m >= np.maximum(la, lb) - 1)
        return made


LETTERS = 32
"""Letters of a value that its mask knows; those beyond are counted as if they were shared."""


def _masks(values: Strings) -> npt.NDArray[np.uint64]:
    """A bit for each letter (by its code modulo 32), and one more for a letter that is there twice."""
    if not len(values):
        return np.zeros(1, np.uint64)
    letters = values.astype(f"U{LETTERS}").view(np.uint32).reshape(len(values), LETTERS)
    made = np.zeros(len(values), np.uint64)
    for k in range(int(min(LETTERS, max(map(len, values))))):
        letter = letters[:, k].astype(np.uint64)
        bit = np.where(letter > 0, np.uint64(1) << (letter % np.uint64(32)), np.uint64(0))
        made |= np.where(made & bit > 0, bit << np.uint64(32), bit)
    return made


class _Names:
    """Levels of two different names, by their codes."""

    def __init__(self, columns: Columns) -> None:
        names = columns.names
        self.columns = columns
        self.names = names
        self.size = len(names)
        self.letters = _Letters(names)
        self.is_long = np.array([*(len(name) > 1 for name in names), False], bool)
        self.first = np.array([*(ord(name[0]) for name in names), -1], np.int32)

    @cached_property
    def _related(self) -> tuple[Ints, Ints, Bools]:
        """Sorted pair keys of nicknames, of related names, and which names have any."""
        code = {name: k for k, name in enumerate(self.names)}
        nick, related = set(), set()
        some = np.zeros(self.size + 1, bool)
        called = np.unique(np.concatenate([self.columns.given, *self.columns.middle]))
        for a in called[called >= 0].tolist():
            name = self.names[a]
            for other in neighbours(name):
                b = code.get(other)
                if b is None or b <= a:
                    continue
                some[a] = some[b] = True
                if is_nickname(name, other):
                    nick.add(a * self.size + b)
                elif are_related(name, other):
                    related.add(a * self.size + b)
        return np.array(sorted(nick), np.int64), np.array(sorted(related), np.int64), some

    @cached_property
    def _spelled(self) -> Codes:
        kinds: dict[str, int] = {}
        return self.columns.of_names(
            self.columns.called, lambda name: kinds.setdefault(cmp.spelled(name), len(kinds))
        ).astype(np.int32)

    @cached_property
    def _bearers(self) -> Codes:
        """How common each name is as a given name."""
        counts = registered_names()
        return self.columns.of_names(self.columns.called, lambda name: counts.get(name, 0)).astype(np.int32)

    @cached_property
    def _letters_sorted(self) -> Codes:
        kinds: dict[str, int] = {}
        return self.columns.of_names(
            self.columns.called, lambda name: kinds.setdefault("".join(sorted(name)), len(kinds))
        ).astype(np.int32)

    @cached_property
    def _with_a(self) -> Codes:
        """The code of the name with an a behind it (Julian, Juliana), -1 where nobody has it."""
        codes = {name: k for k, name in enumerate(self.names)}
        return self.columns.of_names(self.columns.called, lambda name: codes.get(name + "a", -1)).astype(np.int32)

    def _in(self, keys: Ints, a: Codes, b: Codes) -> Bools:
        wanted = np.minimum(a, b).astype(np.int64) * self.size + np.maximum(a, b)
        place = np.searchsorted(keys, wanted)
        made: Bools = keys[np.minimum(place, len(keys) - 1)] == wanted if len(keys) else np.zeros(len(a), bool)
        return made

    def given(self, a: Codes, b: Codes) -> Levels:
        """`comparison.given_level` of names that are not the same whole name."""
        code = CODE["given"]
        made = np.full(len(a), code["different"], np.int8)
        short = ~(self.is_long[a] & self.is_long[b])
        made[short & (self.first[a] == self.first[b])] = code["initial"]
        alike = np.flatnonzero(~short & self.letters.may_be_alike(a, b, 0.85))
        x, y = a[alike], b[alike]
        one_off = self._one_off(x, y)
        level = np.where(one_off | _jaro_winkler_some(self.names, x, y, 0.85, ~one_off), code["similar"], 99)
        made[alike] = np.minimum(made[alike], level)
        nick, related, some = self._related
        known = np.flatnonzero(~short & some[a] & some[b])
        made[known[self._in(related, a[known], b[known])]] = code["related"]
        typo = alike[self._misspelled(x, y, one_off)]
        made[typo] = code["typo"]
        spelled = ~short & (self._spelled[a] == self._spelled[b])
        made[spelled] = code["typo"]
        made[known[self._in(nick, a[known], b[known])]] = code["nickname"]
        return made

    def _misspelled(self, a: Codes, b: Codes, one_off: Bools) -> Bools:
        """`comparison.is_misspelling` of names that are spelled differently."""
        length = self.letters.length
        shorter = np.minimum(length[a], length[b])
        transposed = (length[a] == length[b]) & (self._letters_sorted[a] == self._letters_sorted[b])
        rarer = np.minimum(self._bearers[a], self._bearers[b])
        commoner = np.maximum(self._bearers[a], self._bearers[b])
        rare = (rarer == 0) | ((rarer * 50 <= commoner) & (shorter >= 6))
        rare &= (self.first[a] == self.first[b]) & (commoner >= 100)
        rare &= (self._with_a[a] != b) & (self._with_a[b] != a)
        made: Bools = one_off & (shorter >= 4) & (transposed | rare)
        return made

    def _one_off(self, a: Codes, b: Codes) -> Bools:
        made = np.zeros(len(a), bool)
        at = np.flatnonzero(self.letters.may_be_one_off(a, b))
        if len(at):
            made[at] = _distance(self.names, a[at], b[at], 1) == 1
        return made

    def middle(self, a: Codes, b: Codes) -> Levels:
        code = CODE["middle"]
        made = np.full(len(a), code["different"], np.int8)
        made[(a == b) & self.is_long[a]] = code["exact"]
        short = ~(self.is_long[a] & self.is_long[b])
        made[short & (self.first[a] == self.first[b])] = code["initial"]
        both = (a >= 0) & (b >= 0)
        at = np.flatnonzero(both & ~short & (a != b))
        at = at[self.letters.may_be_alike(a[at], b[at], 0.9)]
        one_off = self._one_off(a[at], b[at])
        made[at[one_off | _jaro_winkler_some(self.names, a[at], b[at], 0.9, ~one_off)]] = code["typo"]
        nick, _, some = self._related
        known = np.flatnonzero(both & ~short & (a != b) & some[a] & some[b])
        made[known[self._in(nick, a[known], b[known])]] = code["typo"]
        made[~both] = 0
        return made

    def family(self, a: Codes, b: Codes) -> Levels:
        """`comparison._family_level` of different names."""
        code = CODE["family"]
        made = np.full(len(a), code["different"], np.int8)
        sounds = self.columns.sounds
        made[(sounds[a] == sounds[b]) & (sounds[a] > 0)] = code["similar"]
        at = np.flatnonzero(self.letters.may_be_alike(a, b, 0.88))
        x, y = a[at], b[at]
        one_off = self._one_off(x, y)
        score = np.where(one_off, 1.0, 0.0)
        rest = np.flatnonzero(~one_off)
        if len(rest):
            score[rest] = cpdist(self.names[x[rest]], self.names[y[rest]], scorer=JaroWinkler.similarity)
        made[at[score >= 0.88 - TINY]] = code["similar"]
        long = np.minimum(self.letters.length[x], self.letters.length[y]) >= 4
        made[at[long & (score >= 0.93 - TINY)]] = code["typo"]
        return made


def _jaro_winkler_some(values: Strings, a: Codes, b: Codes, least: float, some: Bools) -> Bools:
    made = np.zeros(len(a), bool)
    at = np.flatnonzero(some)
    if len(at):
        made[at] = _jaro_winkler(values, a[at], b[at], least)
    return made
