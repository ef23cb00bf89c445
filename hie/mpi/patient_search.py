"""ITI-78 Patient search: parameters -> criteria -> SQL over the token table (pure but for the tables it names).

FHIR R4 search rules: a repeated parameter is AND, a comma is OR, `\\` escapes; strings match from the start of any word
without case, accents or punctuation, `:exact` as written; dates compare as ranges. Parameters not listed in `SUPPORTED`
are left out, and so from the self link; a modifier that is not understood is refused, since ignoring it would widen
the answer.
"""

from __future__ import annotations

import base64
import binascii
import re
from calendar import monthrange
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa

from hie.core.errors import BadRequest
from hie.core.fhir import Resource
from hie.mpi.golden import MOTHERS_MAIDEN_NAME
from hie.mpi.people import Person
from hie.mpi.tables import people, person_tokens
from hie.mpi.text import digits_or_text, normalised

DEFAULT_COUNT = 20
MAX_COUNT = 100
MAX_VALUES = 100
"""Most alternatives in all of one query; more is no question that a person asks."""

_ADDRESS_KINDS = ("address-line", "address-city", "address-state", "address-postalcode", "address-country")
_STRINGS: dict[str, tuple[str, ...]] = {
    "family": ("family",),
    "given": ("given",),
    "mothersMaidenName": ("mothers-name",),
    "address": _ADDRESS_KINDS,
    **{kind: (kind,) for kind in _ADDRESS_KINDS if kind != "address-line"},
}
SUPPORTED = frozenset({*_STRINGS, "_id", "_lastUpdated", "active", "birthdate", "gender", "identifier", "telecom"})
_MAX_TOKEN = 255
_MAX_WORDS = 6
_LAST = "\U0010ffff"
_PREFIXED = re.compile(r"(eq|ne|gt|lt|ge|le|sa|eb|ap)?(.+)", re.DOTALL)
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?")
_SEPARATOR = re.compile(r"(?<!\\)((?:\\\\)*),")


@dataclass(frozen=True)
class Criterion:
    """One parameter of the query: any of `values` must match."""

    name: str
    exact: bool
    values: tuple[str, ...]


@dataclass(frozen=True)
class PatientQuery:
    """What is asked. All criteria must match; `after` is the last person id of the page before."""

    criteria: tuple[Criterion, ...]
    domains: frozenset[str] = frozenset()
    """Identifier systems to be returned; all when empty (ITI-78 2:3.78.4.1.2.3)."""
    limit: int = DEFAULT_COUNT
    after: str | None = None
    honoured: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """The parameters as given, for the self link; without the cursor."""


@dataclass(frozen=True)
class PatientPage:
    """One page. `replaced` pairs an asked id that was merged away with the person it stands for now."""

    people: tuple[Person, ...]
    replaced: tuple[tuple[str, Person], ...]
    included: frozenset[str]
    """Ids in `people` that are there only for `replaced`."""
    total: int
    cursor: str | None


def parse_query(parameters: Iterable[tuple[str, str]], *, strict: bool = False) -> PatientQuery:
    """The query of decoded (name, value) pairs; raises BadRequest.

    `strict` refuses unknown parameters (`Prefer: handling=strict`). A query without any criterion is refused: the
    exchange does not list everybody.
    """
    criteria: list[Criterion] = []
    honoured: list[tuple[str, str]] = []
    limit, after = DEFAULT_COUNT, None
    for name, value in parameters:
        base, _, modifier = name.partition(":")
        if base == "_count":
            limit = _count(value)
        elif base == "_cursor":
            after = read_cursor(value)
            continue
        elif base in SUPPORTED:
            if value.strip():
                criteria.append(_criterion(base, modifier, value))
        elif base != "_format":
            if strict and base != "_pretty":
                raise BadRequest("The search holds a parameter that is not supported here.", code="not-supported")
            continue
        if value.strip():
            honoured.append((name, value))
    if not criteria:
        raise BadRequest("Name whom to look for: give at least one search parameter, such as family and birthdate.")
    if sum(len(criterion.values) for criterion in criteria) > MAX_VALUES:
        raise BadRequest(f"The search holds more than {MAX_VALUES} values.", code="too-costly")
    return PatientQuery(tuple(criteria), _domains(criteria), limit, after, tuple(honoured))


def _criterion(name: str, modifier: str, value: str) -> Criterion:
    if modifier and not (modifier == "exact" and (name in _STRINGS or name == "_id")):
        raise BadRequest(f"The parameter {name} does not take that modifier.", code="not-supported")
    criterion = Criterion(name, modifier == "exact", tuple(v for v in split_or(value) if v.strip()))
    if name in _CHECKS:
        for alternative in criterion.values:
            _CHECKS[name](alternative)
    return criterion


def _count(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise BadRequest("The parameter _count must be a whole number.", code="value")
    return min(int(value), MAX_COUNT)


def _domains(criteria: Sequence[Criterion]) -> frozenset[str]:
    """Systems of the identifier parameters that name nothing but domains."""
    found: set[str] = set()
    for criterion in criteria:
        pairs = [split_token(value) for value in criterion.values]
        if criterion.name == "identifier" and all(system and not value for system, value in pairs):
            found.update(system for system, _ in pairs if system)
    return frozenset(found)


def split_or(value: str) -> list[str]:
    """The alternatives of a parameter value, still escaped."""
    marked = _SEPARATOR.sub(lambda match: match[1] + "\x00", value)
    return marked.split("\x00")


def split_token(value: str) -> tuple[str | None, str]:
    """(system, code) of a token, unescaped; system None when there was no `|`."""
    match = re.fullmatch(r"((?:[^\\|]|\\.)*)\|(.*)", value, re.DOTALL)
    if match is None:
        return None, unescaped(value)
    return unescaped(match[1]), unescaped(match[2])


def unescaped(value: str) -> str:
    """FHIR R4 3.1.1.4.5.1: `\\,` `\\|` `\\$` `\\\\`."""
    return re.sub(r"\\([,|$\\])", r"\1", value)


def write_cursor(person_id: str) -> str:
    """The opaque place of a page's end."""
    return base64.urlsafe_b64encode(f"1:{person_id}".encode()).decode().rstrip("=")


def read_cursor(value: str) -> str:
    """The person id in a cursor; raises BadRequest."""
    try:
        text = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    match = re.fullmatch(r"1:([a-z2-7]{1,32})", text)
    if match is None:
        raise BadRequest("The page is not one that this search gave; start the search again.", code="value")
    return match[1]


# -- what a person is found by


class Token(NamedTuple):
    """One row."""

    kind: str
    value: str
    exact: str


def tokens_of(patient: Resource) -> list[Token]:
    """Rows of the token table (without person id) for a golden Patient, each once."""
    tokens: dict[Token, None] = {}

    def add(kind: str, value: str, exact: str) -> None:
        if value:
            tokens[Token(kind, value[:_MAX_TOKEN], exact[:_MAX_TOKEN])] = None

    def add_words(kind: str, text: str) -> None:
        words = normalised(text).split()
        add(kind, " ".join(words), text)
        for start in range(1, min(len(words), _MAX_WORDS)):
            add(kind, " ".join(words[start:]), "")

    for name in patient.get("name", []):
        add_words("family", name.get("family", ""))
        for given in name.get("given", []):
            add_words("given", given)
    for address in patient.get("address", []):
        for line in (*address.get("line", []), address.get("text", ""), address.get("district", "")):
            add_words("address-line", line)
        for part, kind in _ADDRESS_PARTS.items():
            add_words(kind, address.get(part, ""))
    for extension in patient.get("extension", []):
        if extension["url"] == MOTHERS_MAIDEN_NAME:
            add_words("mothers-name", extension["valueString"])
    for identifier in patient.get("identifier", []):
        add("identifier", identifier["value"], identifier["system"])
    for telecom in patient.get("telecom", []):
        add("telecom", digits_or_text(telecom["value"]), telecom.get("system", ""))
    add("gender", patient.get("gender", ""), "")
    if "birthDate" in patient:
        add("birthdate", *date_range(patient["birthDate"]))
    return list(tokens)


_ADDRESS_PARTS = {
    "city": "address-city",
    "state": "address-state",
    "postalCode": "address-postalcode",
    "country": "address-country",
}


def date_range(text: str) -> tuple[str, str]:
    """First and last day (ISO) of a FHIR date of any precision; raises BadRequest."""
    match = _DATE.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        year, month, day = (int(part) if part else None for part in match.groups())
        first = datetime(year or 0, month or 1, day or 1, tzinfo=UTC)
        last_month = month or 12
        last = first.replace(month=last_month, day=day or monthrange(first.year, last_month)[1])
    except ValueError:
        raise BadRequest("A date must be YYYY, YYYY-MM or YYYY-MM-DD, and be in the calendar.", code="value") from None
    return first.date().isoformat(), last.date().isoformat()


def instant_range(text: str) -> tuple[datetime, datetime]:
    """First instant of a FHIR date or dateTime, and the first after it; raises BadRequest."""
    try:
        if _DATE.fullmatch(text):
            first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in date_range(text))
            return first, last + timedelta(days=1)
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # an unescaped plus sign arrives as a space
        if moment.tzinfo is None:
            raise ValueError(text)
        moment = moment.astimezone(UTC)
        step = timedelta(microseconds=1) if "." in text else timedelta(seconds=1)
        return moment, moment + step
    except (ValueError, OverflowError):
        raise BadRequest("_lastUpdated must be a date, or a time with its offset.", code="value") from None


def _prefix(value: str) -> tuple[str, str]:
    match = _PREFIXED.fullmatch(value)
    return (match[1] or "eq", match[2]) if match else ("eq", value)


# -- SQL


def conditions(query: PatientQuery) -> list[sa.ColumnElement[bool]]:
    """One condition on `people` per criterion but `_id` and `active`, which the caller settles (merged ids)."""
    return [
        sa.or_(*(_condition(criterion, value) for value in criterion.values))
        for criterion in query.criteria
        if criterion.name not in ("_id", "active")
    ]


def _condition(criterion: Criterion, value: str) -> sa.ColumnElement[bool]:
    if criterion.name in _STRINGS:
        return _string(_STRINGS[criterion.name], unescaped(value), criterion.exact)
    return _CONDITIONS[criterion.name](value)


def _has_token(*where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return people.c.id.in_(sa.select(person_tokens.c.person_id).where(*where))


def _string(kinds: Sequence[str], value: str, exact: bool) -> sa.ColumnElement[bool]:
    kind = person_tokens.c.kind.in_(kinds)
    if exact:
        return _has_token(kind, person_tokens.c.exact == value[:_MAX_TOKEN])
    start = normalised(value)[:_MAX_TOKEN]
    if not start:
        return sa.false()
    return _has_token(kind, person_tokens.c.value >= start, person_tokens.c.value < start + _LAST)


def _identifier(value: str) -> sa.ColumnElement[bool]:
    system, code = split_token(value)
    where = [person_tokens.c.kind == "identifier"]
    if code:
        where.append(person_tokens.c.value == code)
    if system is not None:
        where.append(person_tokens.c.exact == system)
    return _has_token(*where)


def _telecom(value: str) -> sa.ColumnElement[bool]:
    system, code = split_token(value)
    where = [person_tokens.c.kind == "telecom"]
    if code:
        where.append(person_tokens.c.value == digits_or_text(code))
    if system is not None:
        where.append(person_tokens.c.exact == system)
    return _has_token(*where)


def _gender(value: str) -> sa.ColumnElement[bool]:
    _, code = split_token(value)
    return _has_token(person_tokens.c.kind == "gender", person_tokens.c.value == code)


def _birthdate(value: str) -> sa.ColumnElement[bool]:
    prefix, date = _prefix(value)
    low, high = date_range(date)
    first, last = person_tokens.c.value, person_tokens.c.exact
    inside = sa.and_(first >= low, last <= high)
    compared: dict[str, sa.ColumnElement[bool]] = {
        "eq": inside,
        "ne": sa.not_(inside),
        "gt": last > high,
        "lt": first < low,
        "ge": last >= low,
        "le": first <= high,
        "sa": first > high,
        "eb": last < low,
        "ap": sa.and_(first <= high, last >= low),
    }
    return _has_token(person_tokens.c.kind == "birthdate", compared[prefix])


def _last_updated(value: str) -> sa.ColumnElement[bool]:
    prefix, text = _prefix(value)
    first, after = instant_range(text)
    updated = people.c.updated
    inside = sa.and_(updated >= first, updated < after)
    compared: dict[str, sa.ColumnElement[bool]] = {
        "eq": inside,
        "ne": sa.not_(inside),
        "gt": updated >= after,
        "lt": updated < first,
        "ge": updated >= first,
        "le": updated < after,
        "sa": updated >= after,
        "eb": updated < first,
        "ap": inside,
    }
    return compared[prefix]


_CONDITIONS: dict[str, Callable[[str], sa.ColumnElement[bool]]] = {
    "identifier": _identifier,
    "telecom": _telecom,
    "gender": _gender,
    "birthdate": _birthdate,
    "_lastUpdated": _last_updated,
}


# -- the same in memory, for people of whom the caller may know only a part


def matches(query: PatientQuery, patient: Resource) -> bool:
    """Whether a Patient meets every criterion but `_id` and `active`, as `conditions` would have it."""
    tokens = tokens_of(patient)
    return all(
        any(_meets(criterion, value, tokens, patient) for value in criterion.values)
        for criterion in query.criteria
        if criterion.name not in ("_id", "active")
    )


def _meets(criterion: Criterion, value: str, tokens: Sequence[Token], patient: Resource) -> bool:
    name = criterion.name
    if name in _STRINGS:
        found = [token for token in tokens if token.kind in _STRINGS[name]]
        if criterion.exact:
            return any(token.exact == unescaped(value)[:_MAX_TOKEN] for token in found)
        start = normalised(unescaped(value))[:_MAX_TOKEN]
        return bool(start) and any(token.value.startswith(start) for token in found)
    if name == "_lastUpdated":
        return _compares(value, instant_range, datetime.fromisoformat(patient["meta"]["lastUpdated"]))
    found = [token for token in tokens if token.kind == name]
    if name == "birthdate":
        return any(_born(value, token) for token in found)
    system, code = split_token(value)
    if name == "gender":
        return any(token.value == code for token in found)
    wanted = digits_or_text(code) if name == "telecom" else code
    return any((not code or token.value == wanted) and (system is None or token.exact == system) for token in found)


def _born(value: str, token: Token) -> bool:
    prefix, text = _prefix(value)
    low, high = date_range(text)
    first, last = token.value, token.exact
    inside = low <= first and last <= high
    return {
        "eq": inside,
        "ne": not inside,
        "gt": last > high,
        "lt": first < low,
        "ge": last >= low,
        "le": first <= high,
        "sa": first > high,
        "eb": last < low,
        "ap": first <= high and last >= low,
    }[prefix]


def _compares(value: str, range_of: Callable[[str], tuple[datetime, datetime]], moment: datetime) -> bool:
    prefix, text = _prefix(value)
    first, after = range_of(text)
    inside = first <= moment < after
    return {
        "eq": inside,
        "ne": not inside,
        "gt": moment >= after,
        "lt": moment < first,
        "ge": moment >= first,
        "le": moment < after,
        "sa": moment >= after,
        "eb": moment < first,
        "ap": inside,
    }[prefix]


def _check_boolean(value: str) -> None:
    if split_token(value)[1] not in ("true", "false"):
        raise BadRequest("The parameter active must be true or false.", code="value")


def _check_gender(value: str) -> None:
    if split_token(value)[1] not in ("male", "female", "other", "unknown"):
        raise BadRequest("The parameter gender must be male, female, other or unknown.", code="value")


def _check_identifier(value: str) -> None:
    if not any(split_token(value)):
        raise BadRequest("The parameter identifier must name a system, a value or both.", code="value")


_CHECKS: dict[str, Callable[[str], object]] = {
    "active": _check_boolean,
    "gender": _check_gender,
    "identifier": _check_identifier,
    "telecom": _check_identifier,
    "birthdate": _birthdate,
    "_lastUpdated": _last_updated,
}
