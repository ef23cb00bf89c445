"""Survivorship: many source records of one person -> the Patient resource the exchange shows (pure).

Profile: PDQm Patient (ITI-78): identifiers with system and value, a name or the reason for its absence, `active`. Only
the elements listed here leave a member's record; contacts, photos, practitioners, notes, narrative and unknown
extensions stay with the source record, and so does whatever breaks a required value set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from hie.core.fhir import Resource
from hie.mpi.people import SourceRecord
from hie.mpi.text import digits_or_text, normalised

MOTHERS_MAIDEN_NAME = "http://hl7.org/fhir/StructureDefinition/patient-mothersMaidenName"
DATA_ABSENT_REASON = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
MAX_REPEATS = 20
"""Most names, telecoms, addresses or languages shown; the best ones stay."""

T = TypeVar("T")

_GENDERS = ("male", "female", "other", "unknown")
_KEPT: dict[str, tuple[str, ...]] = {
    "identifier": ("use", "type", "system", "value", "period"),
    "name": ("use", "text", "family", "given", "prefix", "suffix", "period"),
    "telecom": ("system", "value", "use", "period"),
    "address": (
        "use",
        "type",
        "text",
        "line",
        "city",
        "district",
        "state",
        "postalCode",
        "country",
        "period",
    ),
    "period": ("start", "end"),
    "type": ("coding", "text"),
    "language": ("coding", "text"),
    "coding": ("system", "version", "code", "display"),
}
_CODES: dict[tuple[str, str], frozenset[str]] = {
    ("identifier", "use"): frozenset({"usual", "official", "temp", "secondary", "old"}),
    ("name", "use"): frozenset({"usual", "official", "temp", "nickname", "anonymous", "old", "maiden"}),
    ("telecom", "system"): frozenset({"phone", "fax", "email", "pager", "url", "sms", "other"}),
    ("telecom", "use"): frozenset({"home", "work", "temp", "old", "mobile"}),
    ("address", "use"): frozenset({"home", "work", "temp", "old", "billing"}),
    ("address", "type"): frozenset({"postal", "physical", "both"}),
}
_NAME_ORDER = ("official", "usual", None, "maiden", "nickname", "temp", "anonymous", "old")


def golden(records: Sequence[SourceRecord]) -> Resource:
    """The person's Patient without `id` and `meta`; `records` are the active ones, in any order."""
    newest_first = sorted(records, key=lambda r: (r.updated, r.id), reverse=True)
    bodies = [record.resource for record in newest_first]
    patient: Resource = {"resourceType": "Patient"}
    maiden_name = _first(_mothers_maiden_name(body) for body in bodies)
    if maiden_name:
        patient["extension"] = [{"url": MOTHERS_MAIDEN_NAME, "valueString": maiden_name}]
    patient["identifier"] = _identifiers(newest_first)
    patient["active"] = True
    patient["name"] = _names(bodies)
    patient["telecom"] = _union(bodies, "telecom", _telecom_key)
    patient["gender"] = _gender(bodies)
    patient["birthDate"] = _birth_date(bodies)
    patient.update(_deceased(bodies))
    patient["address"] = _union(bodies, "address", _address_key)
    patient.update(_multiple_birth(bodies))
    patient["communication"] = _communication(bodies)
    return {element: value for element, value in patient.items() if value not in (None, [])}


def replaced(survivor: Resource, old_id: str) -> Resource:
    """What is shown for a person id that was merged into `survivor` (ITI-78 case 6)."""
    link = {"other": {"reference": f"Patient/{survivor['id']}"}, "type": "replaced-by"}
    return {**survivor, "id": old_id, "active": False, "link": [link]}


def _identifiers(records: Sequence[SourceRecord]) -> list[Resource]:
    """Each record's own id, oldest record first, then whatever else its body names, each once.

    Values of a member's own system come from its records alone: a body cannot claim another patient's id.
    """
    own = {(r.identifier.system, r.identifier.value): _own_identifier(r) for r in reversed(records)}
    assigned = {system for system, _ in own}
    for record in records:
        for identifier in _kept_all(record.resource, "identifier"):
            key = (identifier.get("system"), identifier.get("value"))
            if all(key) and key[0] not in assigned and key not in own:
                own[(str(key[0]), str(key[1]))] = identifier
    return list(own.values())


def _own_identifier(record: SourceRecord) -> Resource:
    """The record's id as its body writes it, with the use and type it gives."""
    key = (record.identifier.system, record.identifier.value)
    for identifier in _kept_all(record.resource, "identifier"):
        if (identifier.get("system"), identifier.get("value")) == key:
            return identifier
    return {"system": key[0], "value": key[1]}


def _names(bodies: Sequence[Resource]) -> list[Resource]:
    names = [name for body in bodies for name in _kept_all(body, "name") if _spoken(name)]
    seen: Counter[tuple[str, ...]] = Counter(_name_key(name) for name in names)
    ranked = sorted(names, key=lambda n: (_use_rank(n), -_completeness(n), -seen[_name_key(n)]))
    kept: list[Resource] = []
    for name in ranked:
        if not any(_says_no_more(name, better) for better in kept):
            kept.append({"use": "usual" if kept else "official", **name})
    if not kept:
        return [{"extension": [{"url": DATA_ABSENT_REASON, "valueCode": "unknown"}]}]
    return kept[:MAX_REPEATS]


def _spoken(name: Resource) -> bool:
    return any(normalised(part) for part in (name.get("family"), name.get("text"), *name.get("given", [])) if part)


def _use_rank(name: Resource) -> int:
    return _NAME_ORDER.index(name.get("use"))


def _completeness(name: Resource) -> int:
    return sum(bool(name.get(part)) for part in ("family", "suffix")) + sum(len(g) > 1 for g in name.get("given", []))


def _name_key(name: Resource) -> tuple[str, ...]:
    given = [normalised(g) for g in name.get("given", [])]
    suffix = [normalised(s) for s in name.get("suffix", [])]
    if name.get("family") or given:
        return (normalised(name.get("family", "")), "/".join(suffix), *given)
    return ("", "", normalised(name["text"]))


def _says_no_more(name: Resource, better: Resource) -> bool:
    """The same family name and suffix, and given names that `better` begins with (`J` is covered by `Jane`)."""
    short, long = _name_key(name), _name_key(better)
    if short[0] != long[0] or short[1] not in ("", long[1]) or len(short) > len(long):
        return False
    pairs = zip(short[2:], long[2:], strict=False)
    return all(s == full or (len(s) == 1 and full.startswith(s)) for s, full in pairs)


def _gender(bodies: Sequence[Resource]) -> str | None:
    stated = [body["gender"] for body in bodies if body.get("gender") in _GENDERS]
    return _most_frequent([g for g in stated if g != "unknown"] or stated)


def _birth_date(bodies: Sequence[Resource]) -> str | None:
    """The most frequent of the most precise dates; the newest of equals."""
    dates = [body["birthDate"] for body in bodies if isinstance(body.get("birthDate"), str)]
    longest = max((len(date) for date in dates), default=0)
    return _most_frequent([date for date in dates if len(date) == longest])


def _deceased(bodies: Sequence[Resource]) -> Resource:
    """A stated death outweighs a statement of life, which many systems send by default."""
    moment = _first(b.get("deceasedDateTime") for b in bodies)
    if moment:
        return {"deceasedDateTime": moment}
    stated = [b["deceasedBoolean"] for b in bodies if isinstance(b.get("deceasedBoolean"), bool)]
    return {"deceasedBoolean": any(stated)} if stated else {}


def _multiple_birth(bodies: Sequence[Resource]) -> Resource:
    orders = [b["multipleBirthInteger"] for b in bodies if type(b.get("multipleBirthInteger")) is int]
    if orders:
        return {"multipleBirthInteger": orders[0]}
    stated = [b["multipleBirthBoolean"] for b in bodies if isinstance(b.get("multipleBirthBoolean"), bool)]
    return {"multipleBirthBoolean": any(stated)} if stated else {}


def _communication(bodies: Sequence[Resource]) -> list[Resource]:
    languages: dict[object, Resource] = {}
    for body in bodies:
        for spoken in _objects(body, "communication"):
            language = _kept("language", spoken.get("language"))
            if language:
                preferred = {"preferred": True} if spoken.get("preferred") is True else {}
                languages.setdefault(_language_key(language), {"language": language, **preferred})
    return list(languages.values())[:MAX_REPEATS]


def _language_key(language: Resource) -> object:
    codings = language.get("coding") or [{}]
    return codings[0].get("code") or normalised(language.get("text", ""))


def _union(bodies: Sequence[Resource], element: str, key: Callable[[Resource], object]) -> list[Resource]:
    """Each distinct value once, newest first, those no longer in use last."""
    kept: dict[object, Resource] = {}
    for body in bodies:
        for item in _kept_all(body, element):
            if key(item):
                kept.setdefault(key(item), item)
    return sorted(kept.values(), key=lambda item: item.get("use") == "old")[:MAX_REPEATS]


def _telecom_key(telecom: Resource) -> object:
    value = digits_or_text(telecom.get("value", ""))
    return (telecom.get("system"), value) if value else None


def _address_key(address: Resource) -> object:
    parts = [*address.get("line", []), *(address.get(k, "") for k in ("city", "state", "postalCode"))]
    return tuple(normalised(p) for p in parts if p) or normalised(address.get("text", ""))


def _mothers_maiden_name(body: Resource) -> str | None:
    for extension in _objects(body, "extension"):
        value = extension.get("valueString")
        if extension.get("url") == MOTHERS_MAIDEN_NAME and isinstance(value, str) and normalised(value):
            return value
    return None


def _kept_all(body: Resource, element: str) -> list[Resource]:
    return [kept for item in _objects(body, element) if (kept := _kept(element, item))]


def _kept(element: str, item: object) -> Resource:
    """The allowed keys of one value, nested ones likewise."""
    if not isinstance(item, Mapping):
        return {}
    kept: Resource = {}
    for key in _KEPT[element]:
        value = _kept_value(key, item.get(key))
        if value not in (None, "", [], {}) and value in _CODES.get((element, key), (value,)):
            kept[key] = value
    return kept


def _kept_value(key: str, value: Any) -> Any:
    if key in _KEPT and isinstance(value, list):
        return [kept for item in value if (kept := _kept(key, item))]
    if key in _KEPT and isinstance(value, Mapping):
        return _kept(key, value)
    if isinstance(value, list):  # holds null where only `_given` or `_line` has something to say
        return [item for item in value if isinstance(item, str)]
    return value if isinstance(value, str) else None


def _objects(body: Resource, element: str) -> list[Resource]:
    return [item for item in body.get(element) or [] if isinstance(item, dict)]


def _most_frequent(values: Sequence[T]) -> T | None:
    """The first of equals."""
    return Counter(values).most_common(1)[0][0] if values else None


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value), None)
