"""The traits of a whole file as arrays of codes: what `hie.mpi.demographics` says of each row, once per distinct value.

The usual shapes (a name of one word, ten digits of telephone, `12 Maple Street Apt 3B`) are recognised by vectorised
expressions, all others by the very functions that the online index uses, so that both mean the same
(`tests/mpi/batch` holds the arrays to `traits_of_row`). Three things are known only of a whole file: numbers and dates
that too many different people share are placeholders, and an `ssn` column that is not American is some other national
number, compared as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from jellyfish import metaphone

from hie.mpi import demographics as d
from hie.mpi.batch_read import Column, Table

Codes = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.object_]

SUFFIXES = ("", "sr", "jr", "ii", "iii", "iv")
NONE = np.int32(-1)
"""The code of no evidence."""
TOKENS = 3
"""Middle names kept of one record."""


@dataclass
class Text:
    """A trait of text: `values[codes[i]]`, or no evidence where the code is -1."""

    codes: Codes
    distinct: pa.StringArray

    @cached_property
    def values(self) -> Strings:
        return _objects(self.distinct.to_pylist())

    @property
    def known(self) -> Bools:
        made: Bools = self.codes >= 0
        return made

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Letters of each value."""
        return np.asarray(pc.utf8_length(self.distinct)).astype(np.int32)

    def ends(self, letters: int) -> Codes:
        """A number for how each value ends: equal numbers, equal last letters."""
        return _numbered(pc.utf8_slice_codeunits(self.distinct, -letters))

    def heads(self, pattern: str) -> Codes:
        """The same for what `pattern` (a group `head`) finds at its start."""
        return _numbered(pc.struct_field(pc.extract_regex(self.distinct, f"^(?P<head>{pattern})"), [0]))


@dataclass
class Columns:
    """Every record's traits. All name codes index one sorted vocabulary, so that equal codes are equal names."""

    size: int
    names: Strings
    given: Codes
    middle: tuple[Codes, ...]
    """First to third middle name."""
    family: Codes
    """As written, with spaces."""
    solid: Codes
    """Without spaces."""
    parts: tuple[Codes, ...]
    """Solid family, its parts, former names and their parts; only filled beyond the first where there are any."""
    joined: Codes
    """Given and first middle name as one word."""
    suffix: npt.NDArray[np.int8]
    year: npt.NDArray[np.int16]
    month: npt.NDArray[np.int8]
    day: npt.NDArray[np.int8]
    """0 is no evidence; a year alone has month 0."""
    sex: npt.NDArray[np.int8]
    ssn: Text
    american: bool
    """Whether the ssn column holds United States social security numbers."""
    phone: Text
    email: Text
    number: Text
    street: Text
    unit: Codes
    city: Codes
    state: Codes
    zip: Text
    birth_order: npt.NDArray[np.int8]
    source: Column | None = None
    emptied: dict[str, int] = field(default_factory=dict)
    """Trait -> records whose value was taken for a placeholder because too many people share it."""

    def __len__(self) -> int:
        return self.size

    @cached_property
    def called(self) -> Codes:
        """The codes of all given and middle names."""
        return _codes_in(self.given, *self.middle)

    @cached_property
    def surnamed(self) -> Codes:
        """The codes of all family names and their parts."""
        return _codes_in(*self.parts)

    def of_names(self, codes: Codes, function: Callable[[str], int]) -> npt.NDArray[np.int64]:
        """A number for each of these names, 0 for the others."""
        made = np.zeros(len(self.names) + 1, np.int64)
        made[codes] = [function(name) for name in self.names[codes]]
        return made

    @cached_property
    def sounds(self) -> npt.NDArray[np.int64]:
        """How each family name sounds, as a number; 0 where that is not known."""
        kinds = {"": 0}
        return self.of_names(
            self.surnamed, lambda name: kinds.setdefault(metaphone(name) if name.isascii() else "", len(kinds))
        )


def _codes_in(*columns: Codes) -> Codes:
    made = np.unique(np.concatenate(columns))
    return made[made >= 0]


def columns_of(table: Table) -> Columns:
    """The traits of every row of a table."""
    size = len(table)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(_names, table)  # half of the work, beside what is pyarrow's
        number, street, unit = _street(_get(table, "street"))
        ssn, american = _ssn(_get(table, "ssn"))
        phone, email = _phone(_get(table, "phone")), _email(_get(table, "email"))
        names = under_way.result()
    born = _by_value(_get(table, "birth_date"), _date_number)
    made = Columns(
        size=size,
        names=names.names,
        given=names.given,
        middle=names.middle,
        family=names.family,
        solid=names.solid,
        parts=names.parts,
        joined=names.joined,
        suffix=names.suffix,
        year=(born // 10000).astype(np.int16),
        month=(born // 100 % 100).astype(np.int8),
        day=(born % 100).astype(np.int8),
        sex=_by_value(_get(table, "sex"), _sex).astype(np.int8),
        ssn=ssn,
        american=american,
        phone=phone,
        email=email,
        number=number,
        street=street,
        unit=unit.codes,
        city=_text(_get(table, "city"), _city).codes,
        state=_text(_get(table, "state"), _state).codes,
        zip=_text(_get(table, "zip"), d.zip_code),
        birth_order=_by_value(_get(table, "birth_order"), _order).astype(np.int8),
        source=table.columns.get("source"),
    )
    _empty_placeholders(made)
    return made


def _get(table: Table, name: str) -> Column:
    column = table.columns.get(name)
    return column or Column(np.zeros(len(table), np.int32), pa.array([""], pa.string()))


# ------------------------------------------------------------------------------------------------------------ values


def _by_value(column: Column, function: Callable[[str], int]) -> npt.NDArray[np.int64]:
    """A number per row, computed once per distinct value."""
    made = np.fromiter((function(_cut(v)) for v in column.values.to_pylist()), np.int64, len(column.values))
    return made[column.codes]


def _text(column: Column, function: Callable[[str], str]) -> Text:
    return _coded(pa.array([function(_cut(v)) for v in column.values.to_pylist()], pa.string()), column.codes)


def _cut(value: str) -> str:
    return value[: d.MAX_TEXT]


def _coded(normal: pa.Array, codes: Codes) -> Text:
    """Codes over the distinct normal values; the empty one is no evidence."""
    encoded = normal.dictionary_encode()
    of_value = np.asarray(encoded.indices).astype(np.int32)
    empty = pc.index(encoded.dictionary, "").as_py()
    if empty >= 0:
        of_value[of_value == empty] = NONE
    return Text(of_value[codes], encoded.dictionary)


def _numbered(texts: pa.StringArray) -> Codes:
    return np.asarray(texts.dictionary_encode().indices).astype(np.int32)


def _objects(values: Sequence[str]) -> Strings:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def _sex(text: str) -> int:
    return {"male": 1, "m": 1, "female": 2, "f": 2}.get(text.strip().lower(), 0)


def _date_number(text: str) -> int:
    """YYYYMMDD with zeros for the parts that are not known; 0 for no date."""
    parts = [int(part) for part in d.birth_date_of(text).split("-") if part]
    parts += [0] * (3 - len(parts))
    return parts[0] * 10000 + parts[1] * 100 + parts[2]


def _order(text: str) -> int:
    return int(text) if len(text) == 1 and "1" <= text <= "9" else 0


def _city(text: str) -> str:
    town = d.fold(text)
    return "" if town in ("unknown", "none") else town


def _state(text: str) -> str:
    return d.state_code(text)


def _mixed(column: Column, pattern: str, quick: Callable[[pa.Array], pa.Array], slow: Callable[[str], str]) -> Text:
    """Values of the usual shape through `quick`, the others through `slow`."""
    usual = pc.match_substring_regex(column.values, pattern)
    is_usual = np.asarray(usual)
    if not is_usual.any():
        return _text(column, slow)
    rest = column.values.filter(pc.invert(usual))
    normal = pa.concat_arrays(
        [quick(column.values.filter(usual)), pa.array([slow(_cut(v)) for v in rest.to_pylist()], pa.string())]
    )
    order = np.empty(len(is_usual), np.int32)
    order[np.flatnonzero(is_usual)] = np.arange(is_usual.sum())
    order[np.flatnonzero(~is_usual)] = np.arange(is_usual.sum(), len(is_usual))
    return _coded(normal, order[column.codes])


def _digits(values: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(values, "[^0-9]", "")


_PHONE = r"^\(?[2-9]\d\d\)?[ .-]?\d\d\d[ .-]?\d\d\d\d$"


def _phone(column: Column) -> Text:
    def quick(values: pa.Array) -> pa.Array:
        digits = _digits(values)
        number = np.asarray(digits.cast(pa.int64()))
        shared = ((number % 10**7) % 1111111 == 0) | np.isin(number, (1234567890, 2345678901))
        return pc.if_else(pa.array(shared), "", digits)

    return _mixed(column, _PHONE, quick, d.phone)


_EMAIL = r"^[A-Za-z0-9._%-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$"


def _email(column: Column) -> Text:
    def quick(values: pa.Array) -> pa.Array:
        lower = pc.ascii_lower(values)
        parts = pc.extract_regex(lower, "^(?P<local>[^@]+)@(?P<domain>.+)$")
        local, domain = pc.struct_field(parts, [0]), pc.struct_field(parts, [1])
        gmail = pc.is_in(domain, pa.array(["gmail.com", "googlemail.com"]))
        local = pc.if_else(gmail, pc.replace_substring(local, ".", ""), local)
        domain = pc.if_else(gmail, "gmail.com", domain)
        nobody = pc.is_in(local, pa.array(["", *d.NO_EMAIL]))
        return pc.if_else(nobody, "", pc.binary_join_element_wise(local, domain, "@"))

    return _mixed(column, _EMAIL, quick, d.email)


_SSN = r"^\d\d\d-?\d\d-?\d\d\d\d$"


def _ssn(column: Column) -> tuple[Text, bool]:
    def quick(values: pa.Array) -> pa.Array:
        digits = _digits(values)
        odd = pc.match_substring_regex(digits, f"^(000|666)|^...00|0000$|^({'|'.join(d.digit_runs())})$")
        return pc.if_else(odd, "", digits)

    made = _mixed(column, _SSN, quick, d.ssn)
    filled = np.asarray(pc.greater(pc.binary_length(column.values), 0))[column.codes].sum()
    if filled and made.known.sum() < filled / 2:
        return _text(column, _other_number), False
    return made, True


def _other_number(text: str) -> str:
    """A national number that is not a social security number: letters and digits, no runs of one."""
    plain = d.fold(text).replace(" ", "")
    return plain if len(plain) >= 5 and len(set(plain)) > 1 else ""


# ----------------------------------------------------------------------------------------------------------- streets

_UNITS = "apartment|apt|unit|suite|ste|room|rm|no|lot|floor|fl"
_STREET = rf"^(?P<number>[0-9][a-z0-9]*) (?P<name>[a-z][a-z ]*?)(?: (?:{_UNITS}) (?P<unit>[a-z0-9]+))?$"


def _street(column: Column) -> tuple[Text, Text, Text]:
    """Number, street and unit."""
    values = column.values
    plain = pc.replace_substring(pc.ascii_lower(values), "#", " apt ")
    plain = pc.replace_substring_regex(pc.replace_substring(plain, "'", ""), "[^a-z0-9]+", " ")
    plain = pc.replace_substring(pc.utf8_trim(plain, " "), "apt apt", "apt")
    plain = pc.replace_substring(plain, "unit apt", "apt")
    plain = pc.if_else(pc.and_(pc.string_is_ascii(values), pc.less(pc.binary_length(values), d.MAX_TEXT)), plain, "")
    found = pc.extract_regex(plain, _STREET)
    name = pc.fill_null(pc.struct_field(found, [1]), "").dictionary_encode()
    parsed = [d.street_parts(f"1 {text}") for text in name.dictionary.to_pylist()]
    # "1 po box" and the like: whatever the rest of the text may change goes the slow way
    usual = [number == "1" and not unit and bool(text) for number, text, unit in parsed]
    quick = np.array(usual, bool)[np.asarray(name.indices)] if len(parsed) else np.zeros(0, bool)
    street = np.array([text for _, text, _ in parsed], object)[np.asarray(name.indices)] if len(parsed) else quick
    number = pc.fill_null(pc.struct_field(found, [0]), "").to_numpy(zero_copy_only=False)
    unit = pc.fill_null(pc.struct_field(found, [2]), "").to_numpy(zero_copy_only=False)
    for at in np.flatnonzero(~quick):
        number[at], street[at], unit[at] = d.street_parts(_cut(values[at].as_py()))
    made = [_coded(pa.array(part, pa.string()), column.codes) for part in (number, street, unit)]
    return made[0], made[1], made[2]


# ------------------------------------------------------------------------------------------------------------- names


@dataclass(frozen=True)
class _NameColumns:
    """The name columns of `Columns`."""

    names: Strings
    given: Codes
    middle: tuple[Codes, ...]
    family: Codes
    solid: Codes
    parts: tuple[Codes, ...]
    joined: Codes
    suffix: npt.NDArray[np.int8]


def _names(table: Table) -> _NameColumns:
    """Given, middle and family names and the generation, over one sorted vocabulary."""
    given, middle, family, suffix, former = (
        _get(table, name) for name in ("given", "middle", "family", "suffix", "former_family")
    )
    columns = (given, middle, family, suffix)
    usual = np.ones(len(table), bool)
    folded: list[tuple[Strings, Bools]] = []
    for column, check in zip(columns, (_usual_given, _usual_given, _usual_family, _usual_suffix), strict=True):
        texts = [d.fold(v) for v in column.values.to_pylist()]
        fine = np.array([check(text) for text in texts], bool)
        folded.append((_objects(texts), fine))
        usual &= fine[column.codes]
    usual &= (folded[0][0] != "")[given.codes] | (folded[1][0] == "")[middle.codes]
    _empty_doe(usual, given, family, folded)
    odd = _odd_names(np.flatnonzero(~usual), columns)
    formers = [d.name_parts("", "", v, "")[1] if v else "" for v in map(_cut, former.values.to_pylist())]
    words = {word for texts, fine in folded[:3] for word in texts[fine]} | {word for row in odd.names() for word in row}
    words |= set(formers)
    vocabulary = _Vocabulary(words)
    size = len(table)
    made_given = vocabulary.column(folded[0], given.codes)
    made_middle = [vocabulary.column(folded[1], middle.codes), *(np.full(size, NONE) for _ in range(TOKENS - 1))]
    made_family = vocabulary.column(folded[2], family.codes)
    generation = np.array(
        [SUFFIXES.index(d.generation(text)) if fine else 0 for text, fine in zip(*folded[3], strict=True)]
    )
    made_suffix = generation[suffix.codes].astype(np.int8)
    for at, (one, rest, last, of_name) in zip(odd.at, odd.rows, strict=True):
        made_given[at], made_family[at] = vocabulary.code(one), vocabulary.code(last)
        for k in range(TOKENS):
            made_middle[k][at] = vocabulary.code(rest[k]) if k < len(rest) else NONE
        made_suffix[at] = SUFFIXES.index(of_name)
    # a middle name that repeats the given name says nothing (a given name is compared with middle names anyway)
    for further in made_middle:
        further[further == made_given] = NONE
    made_former = vocabulary.codes(formers)[former.codes]
    made_former[(made_former == made_family)] = NONE
    nameless = (made_family < 0) & (made_former >= 0)
    made_family[nameless], made_former[nameless] = made_former[nameless], NONE
    return _NameColumns(
        names=vocabulary.values,
        given=made_given,
        middle=tuple(made_middle),
        family=made_family,
        solid=vocabulary.solid(made_family),
        parts=vocabulary.parts(made_family, made_former),
        joined=vocabulary.joined(made_given, made_middle[0]),
        suffix=made_suffix,
    )


def _usual_given(text: str) -> bool:
    """One word that no rule of `demographics` treats in a special way; or nothing."""
    return text == "" or (" " not in text and not text.isdigit() and not d.is_special_name(text))


def _usual_family(text: str) -> bool:
    return all(not word.isdigit() and not d.is_special_name(word) for word in text.split())


def _usual_suffix(text: str) -> bool:
    return text == "" or bool(d.generation(text)) or not d.is_special_name(text)


def _empty_doe(usual: Bools, given: Column, family: Column, folded: list[tuple[Strings, Bools]]) -> None:
    """John Doe goes the slow way, too."""
    usual &= ~((folded[2][0] == "doe")[family.codes] & np.isin(folded[0][0], ("john", "jane"))[given.codes])


@dataclass(frozen=True)
class _Odd:
    at: list[int]
    rows: list[tuple[str, tuple[str, ...], str, str]]

    def names(self) -> list[tuple[str, ...]]:
        return [(one, *rest, last) for one, rest, last, _ in self.rows]


def _odd_names(at: npt.NDArray[np.intp], columns: Sequence[Column]) -> _Odd:
    known: dict[tuple[int, ...], tuple[str, tuple[str, ...], str, str]] = {}
    rows = []
    for key in zip(*(column.codes[at].tolist() for column in columns), strict=True):
        if key not in known:
            texts = [_cut(column.values[code].as_py()) for column, code in zip(columns, key, strict=True)]
            givens, last, generation = d.name_parts(texts[0], texts[1], texts[2], texts[3])
            rest = tuple(dict.fromkeys(g for g in givens[1:] if g not in givens[:1]))
            known[key] = (givens[0] if givens else "", rest[: d.MAX_VALUES], last, generation)
        rows.append(known[key])
    return _Odd(at.tolist(), rows)


class _Vocabulary:
    """All name words in alphabetical order; the order of codes is that of the words."""

    def __init__(self, words: set[str]) -> None:
        joined = {word.replace(" ", "") for word in words} | {part for word in words for part in word.split()}
        self.values = _objects(sorted((words | joined) - {""}))
        self.index = {word: code for code, word in enumerate(self.values)}
        self._several = {code: word.split() for word, code in self.index.items() if " " in word}
        self._more: dict[str, int] = {}

    def code(self, word: str) -> int:
        return self.index[word] if word else -1

    def codes(self, words: Sequence[str]) -> Codes:
        return np.array([self.index.get(word, -1) for word in words], np.int32)

    def column(self, folded: tuple[Strings, Bools], codes: Codes) -> Codes:
        return self.codes([text if fine else "" for text, fine in zip(*folded, strict=True)])[codes]

    def solid(self, family: Codes) -> Codes:
        of_word = np.arange(len(self.values) + 1, dtype=np.int32)
        of_word[-1] = NONE
        for code, words in self._several.items():
            of_word[code] = self.index["".join(words)]
        return of_word[family]

    def parts(self, family: Codes, former: Codes) -> tuple[Codes, ...]:
        """Columns of everything that a record's family names may share with another's."""
        of_word = np.full((3, len(self.values) + 1), NONE)
        for code, words in self._several.items():
            telling = [word for word in words if len(word) > 2 and word not in d.PARTICLES]
            of_word[: len(telling), code] = self.codes(telling[:3])
        made = [self.solid(family)]
        for source in (family, former):
            if source is former:
                made.append(self.solid(former))
            made += [column for column in (of_part[source] for of_part in of_word) if (column >= 0).any()]
        return tuple(made)

    def joined(self, given: Codes, middle: Codes) -> Codes:
        """Codes of given + middle beyond the vocabulary where that is no word of it; only equality is asked."""
        whole = np.where(
            (middle >= 0)
            & (np.array([len(word) > 1 for word in self.values], bool)[middle] if len(self.values) else False),
            middle,
            NONE,
        )
        made = given.copy()
        both = np.flatnonzero((given >= 0) & (whole >= 0))
        pairs, inverse = np.unique(given[both].astype(np.int64) << 32 | whole[both], return_inverse=True)
        texts = [self.values[int(pair >> 32)] + self.values[int(pair & 0xFFFFFFFF)] for pair in pairs]
        codes = np.array([self._joined_code(text) for text in texts], np.int32)
        made[both] = codes[inverse] if len(codes) else made[both]
        return made

    def _joined_code(self, text: str) -> int:
        known = self.index.get(text)
        return known if known is not None else self._more.setdefault(text, len(self.values) + len(self._more))


# ------------------------------------------------------------------------------------------------------ placeholders

SHARED_BY = {"ssn": 6, "phone": 30, "email": 30}
"""Given names from which a number is a placeholder or a front desk's, not a person's or a household's."""
DATE_EXCESS = 25.0
"""Times the usual frequency of a birth date from which it is a default."""


def _empty_placeholders(columns: Columns) -> None:
    for name, limit in SHARED_BY.items():
        text: Text = getattr(columns, name)
        counts = np.bincount(text.codes[text.known], minlength=1)
        popular = np.flatnonzero(counts > limit)
        if name == "ssn":  # last fours are shared by their nature
            popular = popular[text.lengths[popular] > 4]
        if not len(popular):
            continue
        at = np.flatnonzero(text.known & np.isin(text.codes, popular))
        pairs = np.unique(text.codes[at].astype(np.int64) << 32 | (columns.given[at].astype(np.int64) & 0xFFFFFFFF))
        bearers = np.bincount(pairs >> 32, minlength=len(counts))
        empty = at[bearers[text.codes[at]] > limit]
        text.codes[empty] = NONE
        if len(empty):
            columns.emptied[name] = len(empty)
    _empty_dates(columns)


def _empty_dates(columns: Columns) -> None:
    whole = columns.day > 0
    number = columns.year.astype(np.int64) * 10000 + columns.month.astype(np.int64) * 100 + columns.day
    values, inverse, counts = np.unique(number[whole], return_inverse=True, return_counts=True)
    if len(values) < 500:
        return
    usual = np.percentile(counts, 99)
    bad = (counts > DATE_EXCESS * usual) & (counts > 50) & (values % 10000 != 101)
    if not bad.any():
        return
    at = np.flatnonzero(whole)[bad[inverse]]
    pairs = np.unique(number[at] * (len(columns.names) + 1) + columns.given[at])
    if len(pairs) < len(at) / 3:
        return
    columns.year[at] = columns.month[at] = columns.day[at] = 0
    columns.emptied["birth_date"] = len(at)
