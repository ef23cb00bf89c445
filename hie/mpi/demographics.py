"""Who a record says the patient is: a FHIR R4 Patient (or a CSV row) becomes normalised, comparable traits. Pure.

What carries no evidence becomes empty here and nowhere else: placeholders (BABY BOY, UNKNOWN, 999-99-9999,
1900-01-01), impossible dates, numbers that everybody shares. Odd input never raises: an element of the wrong shape is
as good as absent, since a feed must not fail because linking is unsure (contract section 6).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any

import orjson
import phonenumbers

from hie.core.fhir import Resource

SSN_SYSTEMS = frozenset({"http://hl7.org/fhir/sid/us-ssn", "urn:oid:2.16.840.1.113883.4.1"})
MAX_VALUES = 4
"""Names, phones, e-mails and addresses kept of one record; more is noise, and keys and comparisons grow with it."""
MAX_TEXT = 256


def words(text: str) -> tuple[str, ...]:
    """The words of a list written as one string."""
    return tuple(text.split())


@dataclass(frozen=True, slots=True)
class Address:
    """One address; every part lower case and possibly empty."""

    number: str = ""
    street: str = ""
    unit: str = ""
    city: str = ""
    state: str = ""
    zip: str = ""


@dataclass(frozen=True, slots=True)
class Traits:
    """What the matcher knows of one record. Empty means "no evidence", never "known to be none"."""

    given: tuple[str, ...] = ()
    """First given name of each name, the official one first."""
    middle: tuple[str, ...] = ()
    """All further given names."""
    family: tuple[str, ...] = ()
    """Family names in use; parts of a compound name stand apart (`garcia lopez`)."""
    former: tuple[str, ...] = ()
    """Maiden and other past family names."""
    suffix: str = ""
    """Generation: jr, sr, ii, iii or iv."""
    birth_date: str = ""
    """YYYY, YYYY-MM or YYYY-MM-DD."""
    sex: str = ""
    """m or f."""
    ssn: str = ""
    """Nine digits, or the last four where no more is known."""
    phones: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()
    birth_order: int = 0
    """Order among the children of a multiple birth; 0 when not known."""
    multiple_birth: bool = False

    def to_json(self) -> str:
        """Compact JSON of what is not empty, for the index."""
        values = {name: value for name, value in asdict(self).items() if value}
        return orjson.dumps(values).decode()

    @classmethod
    def from_json(cls, text: str) -> Traits:
        """The traits that `to_json` wrote; fields of a later version are ignored."""
        values: dict[str, Any] = {k: v for k, v in orjson.loads(text).items() if k in _FIELDS}
        for name in _TUPLES & values.keys():
            values[name] = tuple(values[name])
        if "addresses" in values:
            values["addresses"] = tuple(Address(**address) for address in values["addresses"])
        return cls(**values)


_FIELDS = frozenset(field.name for field in fields(Traits))
_TUPLES = frozenset({"given", "middle", "family", "former", "phones", "emails"})


def traits_of(patient: Resource) -> Traits:
    """The traits of a FHIR Patient. Never raises on odd content."""
    names = [_name_of(name) for name in _dicts(patient.get("name"))]
    order = patient.get("multipleBirthInteger")
    order = order if isinstance(order, int) and not isinstance(order, bool) and 0 < order < 20 else 0
    return _build(
        names=names,
        birth_date=_text(patient.get("birthDate")),
        sex=_text(patient.get("gender")),
        ssns=_ssns_of(patient),
        phones=_telecom(patient, ("phone", "sms")),
        emails=_telecom(patient, ("email",)),
        addresses=[_address_of(address) for address in _dicts(patient.get("address"))],
        birth_order=order,
        multiple_birth=bool(order) or patient.get("multipleBirthBoolean") is True,
    )


def traits_of_row(row: Mapping[str, str]) -> Traits:
    """The traits of one row of the linkage CSV (contract section 7); `former_family` and `birth_order` are extras."""

    def cell(name: str) -> str:
        return _text(row.get(name))

    former = [_Name([], cell("former_family"), "", True)] if cell("former_family") else []
    order = int(cell("birth_order")) if re.fullmatch(r"[1-9]", cell("birth_order")) else 0
    return _build(
        names=[_Name([cell("given"), cell("middle")], cell("family"), cell("suffix"), False), *former],
        birth_date=cell("birth_date"),
        sex=cell("sex"),
        ssns=[cell("ssn")],
        phones=[cell("phone")],
        emails=[cell("email")],
        addresses=[address(cell("street"), cell("city"), cell("state"), cell("zip"))],
        birth_order=order,
        multiple_birth=bool(order),
    )


def row_of(record_id: str, traits: Traits) -> dict[str, str]:
    """The traits as a row of the linkage CSV: the first value of each, which is all that a row can hold."""
    place = traits.addresses[0] if traits.addresses else Address()
    unit = f" apt {place.unit}" if place.unit else ""
    return {
        "record_id": record_id,
        "given": "".join(traits.given[:1]),
        "middle": " ".join(traits.middle),
        "family": "".join(traits.family[:1]),
        "former_family": "".join(traits.former[:1]),
        "suffix": traits.suffix,
        "birth_date": traits.birth_date,
        "sex": traits.sex,
        "ssn": traits.ssn,
        "phone": "".join(traits.phones[:1]),
        "email": "".join(traits.emails[:1]),
        "street": f"{place.number} {place.street}{unit}".strip(),
        "city": place.city,
        "state": place.state,
        "zip": place.zip,
        "birth_order": str(traits.birth_order or ""),
    }


@dataclass(frozen=True)
class _Name:
    given: list[str]
    family: str
    suffix: str
    former: bool


def _build(
    *,
    names: list[_Name],
    birth_date: str,
    sex: str,
    ssns: Iterable[str],
    phones: Iterable[str],
    emails: Iterable[str],
    addresses: Iterable[Address | None],
    birth_order: int,
    multiple_birth: bool,
) -> Traits:
    given, middle, family, former, suffix = _names(names)
    return Traits(
        given=given,
        middle=middle,
        family=family,
        former=former,
        suffix=suffix,
        birth_date=birth_date_of(birth_date),
        sex={"male": "m", "m": "m", "female": "f", "f": "f"}.get(sex.strip().lower(), ""),
        ssn=max((ssn(value) for value in ssns), key=len, default=""),
        phones=_distinct(phone(value) for value in phones),
        emails=_distinct(email(value) for value in emails),
        addresses=tuple(dict.fromkeys(a for a in addresses if a))[:MAX_VALUES],
        birth_order=birth_order,
        multiple_birth=multiple_birth,
    )


# ---------------------------------------------------------------------------------------------------------- names

_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ı": "i", "‘": "'", "’": "'", "`": "'"}
)
_GENERATIONS = {
    "jr": "jr", "junior": "jr", "sr": "sr", "senior": "sr", "ii": "ii", "2nd": "ii", "iii": "iii", "3rd": "iii",
    "iv": "iv", "4th": "iv",
}  # fmt: skip
_TITLES = frozenset({"mr", "mrs", "ms", "miss", "dr", "prof", "rev", "md", "phd", "rn", "esq", "dds"})
_JOINED = frozenset({"mc", "mac", "o", "d", "st"})
_NO_GIVEN = frozenset(
    words(
        "unknown unk unkown none test tester testing patient baby babyboy babygirl boy girl male female infant "
        "newborn twin twina twinb bb bg nfn fnu firstname first xx xxx xxxx zz zzz deceased anonymous noname name"
    )
)
_NO_FAMILY = frozenset(
    words(
        "unknown unk unkown none test testing tester testpatient patient lastname surname nln lnu xx xxx xxxx zz "
        "zzz zztest anonymous noname babyboy babygirl deceased"
    )
)
_SPECIAL_WORDS = _NO_GIVEN | _NO_FAMILY | _TITLES | _JOINED | _GENERATIONS.keys()
PARTICLES = frozenset(words("de la del los las da dos di van von der den el al ben bin le du st san santa"))
"""Words of family names that name nobody."""
_BABY = re.compile(r"\b(baby|infant|newborn|male|female)\b.*\b(boy|girl|male|female|[abc]|infant)\b|\btwin [ab12]\b")


def fold(text: str) -> str:
    """Lower case without accents; anything but letters and digits becomes a space, apostrophes vanish."""
    decomposed = unicodedata.normalize("NFKD", text[:MAX_TEXT].casefold().translate(_LETTERS))
    kept = (c if c.isalnum() else "" if c == "'" or unicodedata.combining(c) else " " for c in decomposed)
    return " ".join("".join(kept).split())


def _names(
    names: list[_Name],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...], str]:
    given: list[str] = []
    middle: list[str] = []
    family: list[str] = []
    former: list[str] = []
    suffix = ""
    for name in names[:MAX_VALUES]:
        givens, last, generation = _tokens(name)
        suffix = suffix or generation
        given += givens[:1]
        middle += givens[1:]
        (former if name.former else family).append(last)
    if not any(family):
        family, former = former, []
    families = _distinct(family)
    return (
        _distinct(given),
        _distinct(m for m in middle if m not in given),
        families,
        tuple(f for f in _distinct(former) if f not in families),
        suffix,
    )


def _tokens(name: _Name) -> tuple[list[str], str, str]:
    """Given names, family name and generation of one name, placeholders emptied."""
    given_text, family_text = fold(" ".join(name.given)), fold(name.family)
    givens, generation = _split_generation(given_text.split())
    lasts, of_family = _split_generation(family_text.split())
    generation = _GENERATIONS.get(fold(name.suffix).replace(" ", ""), "") or of_family or generation
    if _BABY.search(given_text) or (family_text == "doe" and givens[:1] in (["john"], ["jane"])):
        givens, lasts = [], [] if family_text == "doe" else lasts
    givens = [t for t in givens if t not in _NO_GIVEN and not t.isdigit()]
    lasts = [] if "".join(lasts) in _NO_FAMILY else [t for t in _join_prefixes(lasts) if not t.isdigit()]
    return givens, " ".join(lasts), generation


def name_parts(given: str, middle: str, family: str, suffix: str) -> tuple[list[str], str, str]:
    """Given names in order, family name and generation of one written name, placeholders emptied."""
    return _tokens(_Name([given, middle], family, suffix, False))


def is_special_name(word: str) -> bool:
    """Whether a folded word of a name is more than just a name: a title, a generation, a prefix or a placeholder."""
    return word in _SPECIAL_WORDS


def generation(text: str) -> str:
    """The generation that a folded suffix means, or nothing."""
    return _GENERATIONS.get(text.replace(" ", ""), "")


def _split_generation(tokens: list[str]) -> tuple[list[str], str]:
    kept = [t for t in tokens if t not in _TITLES] or tokens
    if len(kept) > 1 and kept[-1] in _GENERATIONS:
        return kept[:-1], _GENERATIONS[kept[-1]]
    return kept, ""


def _join_prefixes(tokens: list[str]) -> list[str]:
    """`mc donald` and `o brien` are one name."""
    joined: list[str] = []
    for token in tokens:
        if joined and joined[-1] in _JOINED:
            joined[-1] += token
        else:
            joined.append(token)
    return joined


def _name_of(name: Resource) -> _Name:
    given = name.get("given")
    given = [_text(part) for part in given] if isinstance(given, list) else [_text(given)]
    family, suffix = _text(name.get("family")), " ".join(_texts(name.get("suffix")))
    if not family and not any(given):
        given, family = _from_text(_text(name.get("text")))
    return _Name(given, family, suffix, _text(name.get("use")) in ("maiden", "old"))


def _from_text(text: str) -> tuple[list[str], str]:
    """Given and family of an unparsed name: `Family, Given` or `Given Family`."""
    if "," in text:
        family, _, rest = text.partition(",")
        return [rest], family
    words = text.split()
    while len(words) > 1 and fold(words[-1]) in _GENERATIONS:
        words = [words[-1], *words[:-1]][1:]
    return [" ".join(words[:-1])], words[-1] if words else ""


# ------------------------------------------------------------------------------------------------- numbers and dates

_DATE = re.compile(r"(\d{4})(?:-?(\d{2})(?:-?(\d{2}))?)?(?:T.*)?")
_AMERICAN_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")
_DEFAULT_DATES = frozenset({"1900-01-01", "1900", "1900-01", "1901-01-01", "1911-11-11", "1899-12-30", "1899-12-31"})
EARLIEST_YEAR, LATEST_YEAR = 1880, 2100


def birth_date_of(text: str) -> str:
    """An ISO date, whole or partial; empty when impossible or a well-known default."""
    text = text.strip()
    if american := _AMERICAN_DATE.fullmatch(text):
        text = f"{american[3]}-{american[1]:0>2}-{american[2]:0>2}"
    found = _DATE.fullmatch(text)
    if not found or not EARLIEST_YEAR <= int(found[1]) <= LATEST_YEAR:
        return ""
    try:
        date(int(found[1]), int(found[2] or 1), int(found[3] or 1))
    except ValueError:
        return ""
    normal = "-".join(part for part in found.groups() if part)
    return "" if normal in _DEFAULT_DATES else normal


_NO_SSN = frozenset({"123456789", "987654321", "012345678", "078051120", "219099999", "111223333", "123121234"})


def ssn(text: str) -> str:
    """Nine digits, or the last four; empty for what the Social Security Administration never issues."""
    digits = re.sub(r"[\s.-]", "", text)
    masked = re.fullmatch(r"(?:[xX*]{5})?(\d{4})", digits)
    if masked:
        return "" if masked[1] in ("0000", "9999", "1234") else masked[1]
    if not re.fullmatch(r"\d{9}", digits) or digits in _NO_SSN or len(set(digits)) == 1:
        return ""
    return "" if digits[:3] in ("000", "666") or digits[3:5] == "00" or digits[5:] == "0000" else digits


def digit_runs() -> tuple[str, ...]:
    """Social security numbers of the right shape that are known to be nobody's."""
    return (*sorted(_NO_SSN), *(digit * 9 for digit in "0123456789"))


def _ssns_of(patient: Resource) -> Iterator[str]:
    for identifier in _dicts(patient.get("identifier")):
        kind = identifier.get("type")
        codings = _dicts(kind.get("coding")) if isinstance(kind, dict) else []
        if _text(identifier.get("system")) in SSN_SYSTEMS or any(c.get("code") == "SS" for c in codings):
            yield _text(identifier.get("value"))


def phone(text: str) -> str:
    """The national number (with the country code before it where that is not 1); empty for placeholders."""
    if not 7 <= len(text) <= 40:
        return ""
    try:
        parsed = phonenumbers.parse(text, "US")
    except phonenumbers.NumberParseException:
        return ""
    number = str(parsed.national_number)
    if len(number) < 7 or len(set(number[-7:])) == 1 or number in ("1234567890", "1234567", "2345678901"):
        return ""
    return number if parsed.country_code == 1 else f"{parsed.country_code}{number}"


_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
NO_EMAIL = frozenset(
    words(
        "none no noemail no-email na n/a unknown refused declined decline test noreply no-reply donotreply email "
        "patient notprovided nomail xxx null"
    )
)


def email(text: str) -> str:
    """The address in lower case without `+tag` (and without dots at Gmail, which ignores them)."""
    text = text.strip().lower().removeprefix("mailto:")
    if len(text) > MAX_TEXT or not _EMAIL.fullmatch(text):
        return ""
    local, _, domain = text.rpartition("@")
    local = local.split("+")[0]
    if domain in ("gmail.com", "googlemail.com"):
        local, domain = local.replace(".", ""), "gmail.com"
    return "" if not local or local in NO_EMAIL else f"{local}@{domain}"


# -------------------------------------------------------------------------------------------------------- addresses

_STREET_WORDS = {
    "street": "st", "str": "st", "avenue": "ave", "av": "ave", "road": "rd", "drive": "dr", "lane": "ln",
    "court": "ct", "place": "pl", "boulevard": "blvd", "circle": "cir", "terrace": "ter", "highway": "hwy",
    "parkway": "pkwy", "square": "sq", "trail": "trl", "way": "wy", "north": "n", "south": "s", "east": "e",
    "west": "w", "northeast": "ne", "northwest": "nw", "southeast": "se", "southwest": "sw", "saint": "st",
    "mount": "mt", "first": "1st", "second": "2nd", "third": "3rd", "fourth": "4th", "fifth": "5th", "sixth": "6th",
    "seventh": "7th", "eighth": "8th", "ninth": "9th", "tenth": "10th",
}  # fmt: skip
_UNIT = re.compile(r"\b(?:apartment|apt|unit|suite|ste|room|rm|no|lot|floor|fl) ([a-z0-9]+(?: [a-z0-9])?)$")
_BOX = re.compile(r"\b(?:p ?o|post office) ?box ([a-z0-9]+)")
_NO_STREET = frozenset(
    {"unknown", "none", "homeless", "general delivery", "no address", "na", "n a", "test", "undomiciled"}
)
_STATES = {
    "alabama": "al", "alaska": "ak", "arizona": "az", "arkansas": "ar", "california": "ca", "colorado": "co",
    "connecticut": "ct", "delaware": "de", "florida": "fl", "georgia": "ga", "hawaii": "hi", "idaho": "id",
    "illinois": "il", "indiana": "in", "iowa": "ia", "kansas": "ks", "kentucky": "ky", "louisiana": "la",
    "maine": "me", "maryland": "md", "massachusetts": "ma", "michigan": "mi", "minnesota": "mn", "mississippi": "ms",
    "missouri": "mo", "montana": "mt", "nebraska": "ne", "nevada": "nv", "new hampshire": "nh", "new jersey": "nj",
    "new mexico": "nm", "new york": "ny", "north carolina": "nc", "north dakota": "nd", "ohio": "oh",
    "oklahoma": "ok", "oregon": "or", "pennsylvania": "pa", "rhode island": "ri", "south carolina": "sc",
    "south dakota": "sd", "tennessee": "tn", "texas": "tx", "utah": "ut", "vermont": "vt", "virginia": "va",
    "washington": "wa", "west virginia": "wv", "wisconsin": "wi", "wyoming": "wy",
}  # fmt: skip


def address(street: str, city: str, state: str, postal: str) -> Address | None:
    """A comparable address, or None when nothing of it is evidence. Light: words, unit and box, no gazetteer."""
    number, name, unit = street_parts(street)
    town, region = fold(city), state_code(state)
    made = Address(
        number=number,
        street=name,
        unit=unit,
        city="" if town in ("unknown", "none") else town,
        state=region,
        zip=zip_code(postal),
    )
    return made if made.street or made.zip or made.city else None


def state_code(text: str) -> str:
    """The postal code of a state where its name is known."""
    region = fold(text)
    return _STATES.get(region, region)


def street_parts(text: str) -> tuple[str, str, str]:
    """House number, street in postal abbreviations, and unit of one line."""
    plain = fold(text.replace("#", " apt "))
    if plain in _NO_STREET:
        return "", "", ""
    if box := _BOX.search(plain):
        return box[1], "po box", ""
    unit = ""
    if found := _UNIT.search(plain.replace("apt apt", "apt").replace("unit apt", "apt")):
        plain, unit = plain[: found.start()].strip(), found[1].replace(" ", "")
    words = [_STREET_WORDS.get(word, word) for word in plain.split()]
    if words and words[0][0].isdigit() and len(words) > 1:
        return words[0], " ".join(words[1:]), unit
    return "", " ".join(words), unit


def zip_code(text: str) -> str:
    """Five digits, or a foreign postal code as it is; empty where it has no digit."""
    plain = fold(text).replace(" ", "")
    if re.fullmatch(r"\d{5}(\d{4})?", plain):
        return "" if len(set(plain[:5])) == 1 else plain[:5]
    return plain[:10] if any(c.isdigit() for c in plain) else ""


def _address_of(element: Resource) -> Address | None:
    lines = ", ".join(_texts(element.get("line")))
    return address(lines, _text(element.get("city")), _text(element.get("state")), _text(element.get("postalCode")))


# ---------------------------------------------------------------------------------------------------- FHIR elements


def _telecom(patient: Resource, systems: tuple[str, ...]) -> Iterator[str]:
    for contact in _dicts(patient.get("telecom")):
        if _text(contact.get("system")) in systems:
            yield _text(contact.get("value"))


def _dicts(value: object) -> list[Resource]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))[:MAX_VALUES]
