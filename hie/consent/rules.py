"""What an exchange decides once and for everybody, read from one JSON file (CONSENT.md section 5).

`HIE_CONSENT_RULES` names the file; without it `consent-rules.json` in `HIE_HOME` counts, where there is one. All of it
is optional:

    {
      "legal_bases": [{"id": "105-CMR-300", "purpose": "PUBHLTH", "types": ["Condition", "Observation"]}],
      "payer_types": ["Coverage", "ExplanationOfBenefit", "Procedure"],
      "break_glass": "consent-only",
      "minors": {"default_state": "MA", "states": {"MA": {"majority": 18, "ages": {"SEX": 0, "ETH": 12}}}},
      "representatives": [{"person": "<person id>", "actor": "j.doe@mail.example", "until": "2027-06-30"}]
    }

A legal basis lets a purpose have the listed types whatever consents say; every such disclosure names the basis' id in
the audit. `ages` gives, for a sensitivity code, the age in whole years from which a minor is treated on the minor's own
consent, so that a representative does not see it. The file is read at the start; what is wrong in it stops the start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from hie.consent.policy import PAYER_TYPES, LegalBasis, Minor
from hie.consent.vocabulary import PURPOSES, SENSITIVITIES
from hie.core.errors import ConfigurationError

FILE_NAME = "consent-rules.json"

_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ID = re.compile(r"[A-Za-z0-9 ._:/()-]{1,100}")


@dataclass(frozen=True)
class State:
    """A state's law on minors: the age of majority, and sensitivity -> age of own consent, in whole years."""

    majority: int
    ages: Mapping[str, int]


@dataclass(frozen=True)
class Representative:
    """Somebody recorded as acting for a person, until a day or without end."""

    person_id: str
    actor: str
    until: date | None = None


@dataclass(frozen=True)
class Rules:
    """The exchange's own rules."""

    legal_bases: tuple[LegalBasis, ...] = ()
    payer_types: frozenset[str] = PAYER_TYPES
    strict_break_glass: bool = False
    default_state: str | None = None
    states: Mapping[str, State] = field(default_factory=dict)
    representatives: tuple[Representative, ...] = ()

    def minor(self, birth_date: str | None, state: str | None, today: date) -> Minor | None:
        """What a representative of the person does not see; None for an adult, or where nothing is configured.

        A birth date that is partial is taken as the latest that it may be: rather too young for a while.
        """
        law = self.states.get((state or "").upper()) or self.states.get(self.default_state or "")
        born = _latest(birth_date)
        if law is None or born is None or _years(born, today) >= law.majority:
            return None
        return Minor(born, law.majority, law.ages)

    def acting_for(self, person_ids: frozenset[str], today: date) -> frozenset[str]:
        """The actors who may act for a person today."""
        return frozenset(
            one.actor
            for one in self.representatives
            if one.person_id in person_ids and (one.until is None or today <= one.until)
        )


def load(path: Path | None, home: Path) -> Rules:
    """The rules in the named file, else in the exchange's folder, else none. Raises ConfigurationError."""
    chosen = path or home / FILE_NAME
    if path is None and not chosen.exists():
        return Rules()
    try:
        content = json.loads(chosen.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigurationError(f"{chosen}: cannot be read as JSON.") from None
    return _Reader(str(chosen)).rules(content)


def _years(born: date, day: date) -> int:
    return day.year - born.year - ((day.month, day.day) < (born.month, born.day))


def _latest(birth_date: str | None) -> date | None:
    text = birth_date or ""
    try:
        if re.fullmatch(r"\d{4}", text):
            return date(int(text), 12, 31)
        if re.fullmatch(r"\d{4}-\d{2}", text):
            return date(int(text[:4]), int(text[5:]), 28)
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None


class _Reader:
    """Reads one file; the first mistake is said with its place."""

    def __init__(self, name: str) -> None:
        self._name = name

    def rules(self, content: Any) -> Rules:
        top = self._object(content, "", {"legal_bases", "payer_types", "break_glass", "minors", "representatives"})
        minors = self._object(top.get("minors", {}), "minors", {"default_state", "states"})
        states = self._states(minors.get("states", {}))
        default_state = minors.get("default_state")
        if default_state is not None and default_state not in states:
            self._wrong("minors.default_state", "must be one of the states.")
        break_glass = top.get("break_glass", "normal")
        if break_glass not in ("normal", "consent-only"):
            self._wrong("break_glass", "must be normal or consent-only.")
        payer_types = self._types(top["payer_types"], "payer_types") if "payer_types" in top else PAYER_TYPES
        return Rules(
            legal_bases=tuple(self._basis(*item) for item in self._items(top, "legal_bases")),
            payer_types=payer_types,
            strict_break_glass=break_glass == "consent-only",
            default_state=default_state,
            states=states,
            representatives=tuple(self._representative(*item) for item in self._items(top, "representatives")),
        )

    def _basis(self, node: Any, path: str) -> LegalBasis:
        given = self._object(node, path, {"id", "purpose", "types"})
        purpose = given.get("purpose")
        if purpose not in PURPOSES:
            self._wrong(f"{path}.purpose", "must be a v3 ActReason purpose, such as PUBHLTH.")
        return LegalBasis(self._text(given, path, "id"), str(purpose), self._types(given.get("types"), f"{path}.types"))

    def _representative(self, node: Any, path: str) -> Representative:
        given = self._object(node, path, {"person", "actor", "until"})
        until = given.get("until")
        try:
            ends = date.fromisoformat(until) if until is not None else None
        except (TypeError, ValueError):
            self._wrong(f"{path}.until", "must be a day, as 2027-06-30.")
        actor = given.get("actor")
        if not isinstance(actor, str) or not 0 < len(actor) <= 254:
            self._wrong(f"{path}.actor", "is required: a reference or an email address.")
        return Representative(self._text(given, path, "person"), str(actor), ends)

    def _states(self, node: Any) -> dict[str, State]:
        if not isinstance(node, dict):
            self._wrong("minors.states", "must map a state's two letters to its ages.")
        return {name: self._state(name, law) for name, law in node.items()}

    def _state(self, name: str, node: Any) -> State:
        path = f"minors.states.{name}"
        if not re.fullmatch(r"[A-Z]{2}", name):
            self._wrong(path, "must be a state's two letters.")
        law = self._object(node, path, {"majority", "ages"})
        ages = law.get("ages", {})
        if not isinstance(ages, dict) or not all(_is_age(age) for age in (*ages.values(), law.get("majority"))):
            self._wrong(path, "needs majority and ages, in whole years from 0 to 25.")
        unknown = sorted(set(ages) - SENSITIVITIES)
        if unknown:
            self._wrong(f"{path}.ages", f"{unknown[0]} is no sensitivity code that the exchange knows.")
        return State(law["majority"], ages)

    def _types(self, node: Any, path: str) -> frozenset[str]:
        if not isinstance(node, list) or not all(isinstance(t, str) and _TYPE.fullmatch(t) for t in node):
            self._wrong(path, "must be a list of resource types.")
        return frozenset(node)

    def _items(self, top: Mapping[str, Any], key: str) -> list[tuple[Any, str]]:
        found = top.get(key, [])
        if not isinstance(found, list):
            self._wrong(key, "must be a list.")
        return [(item, f"{key}[{place}]") for place, item in enumerate(found)]

    def _object(self, node: Any, path: str, known: set[str]) -> Mapping[str, Any]:
        if not isinstance(node, dict):
            self._wrong(path or "the file", "must be a JSON object.")
        unknown = sorted(set(node) - known)
        if unknown:
            self._wrong(f"{path}.{unknown[0]}".lstrip("."), f"is not known; known are {', '.join(sorted(known))}.")
        made: Mapping[str, Any] = node
        return made

    def _text(self, given: Mapping[str, Any], path: str, key: str) -> str:
        value = given.get(key)
        if not isinstance(value, str) or not _ID.fullmatch(value):
            self._wrong(f"{path}.{key}", "is required: a text of at most 100 plain characters.")
        return str(value)

    def _wrong(self, path: str, sentence: str) -> None:
        raise ConfigurationError(f"{self._name}: {path} {sentence}")


def _is_age(value: object) -> bool:
    return type(value) is int and 0 <= value <= 25
