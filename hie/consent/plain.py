"""Consents in plain words: what one permits and denies, to whom, what for, and what to watch out for (pure).

The words follow the provisions as the evaluator reads them (`fhir.py`): a child without a type is its parent's
opposite, a permit that names records means "nothing but these", what is not understood never widens. Codes that have no
words here are shown as codes, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hie.consent.fhir import compile_consent, organizations, period, span, target_of
from hie.consent.policy import Compiled, Decision, Effect, Node, PersonPolicy, Span
from hie.consent.vocabulary import CONFIDENTIALITY, label_of
from hie.core.caller import EXCHANGE
from hie.core.fhir import Resource

Names = Callable[[str], str | None]
"""`Organization/<id>` and the like -> a name; None for what has none."""

PURPOSES: Mapping[str, str] = {
    "TREAT": "treatment",
    "ETREAT": "emergency treatment",
    "BTG": "emergencies in which a clinician breaks the glass",
    "CAREMGT": "care management",
    "COC": "coordination of care",
    "HPAYMT": "payment",
    "HOPERAT": "the running of health care organizations",
    "HRESCH": "research",
    "CLINTRCH": "clinical trials",
    "PATRQT": "requests by the patient",
    "FAMRQT": "requests by the family",
    "PUBHLTH": "public health",
    "HMARKT": "marketing",
}
SENSITIVITIES: Mapping[str, str] = {
    "ETH": "substance use",
    "ETHUD": "alcohol use",
    "OPIOIDUD": "opioid use",
    "SUD": "substance use disorders",
    "42CFRPart2": "substance use treatment under 42 CFR Part 2",
    "HIV": "HIV",
    "STD": "sexually transmitted infections and HIV",
    "PSY": "mental health",
    "MH": "mental health",
    "BH": "behavioral health",
    "PSYTHPN": "psychotherapy notes",
    "SEX": "sexual and reproductive health",
    "PREGNANT": "pregnancy",
    "GDIS": "genetic conditions",
    "SICKLE": "sickle cell disease",
    "SDV": "violence and abuse",
    "ADOL": "what a minor was treated for alone",
    "VIP": "persons of public interest",
}
_CONFIDENTIALITIES = {
    "U": "unrestricted",
    "L": "low",
    "M": "moderate",
    "N": "normal",
    "R": "restricted",
    "V": "very restricted",
}
CLASSES = {
    "AllergyIntolerance": "allergies",
    "Condition": "conditions",
    "MedicationRequest": "prescriptions",
    "MedicationStatement": "medications taken",
    "Immunization": "immunizations",
    "Observation": "results and observations",
    "DiagnosticReport": "diagnostic reports",
    "Procedure": "procedures",
    "Encounter": "visits and stays",
    "DocumentReference": "documents",
    "CarePlan": "care plans",
    "Coverage": "insurance coverage",
    "ExplanationOfBenefit": "claims",
}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NO_EFFECT = "It has no effect"


@dataclass(frozen=True)
class Line:
    """One provision in words. `depth` 0 is the consent itself; a deeper line is an exception to the one above it."""

    depth: int
    permits: bool
    sentence: str


@dataclass(frozen=True)
class Summary:
    """A consent in words."""

    about: str
    """Whose records it governs."""
    in_force: bool
    standing: str
    """Whether it counts, and why not."""
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it as one paragraph, for a Consent's reader in a hurry."""
        exceptions = [("Except: " if line.depth else "") + line.sentence for line in self.lines]
        return " ".join([self.about, *exceptions, self.standing])


def summary(consent: Resource, now: datetime, names: Names) -> Summary:
    """What a consent means for its reader; `names` says how organizations and people are called."""
    compiled = compile_consent(consent, 1, "")
    standing = _standing(compiled, now)
    lines: list[Line] = []
    if compiled.root is not None:
        provision = consent.get("provision")
        _add(lines, compiled.root, provision if isinstance(provision, dict) else {}, 0, names)
    return Summary(
        _about(consent, names), standing is None, standing or "It is in force.", tuple(lines), compiled.warnings
    )


def scope_of(policy: PersonPolicy, decision: Decision) -> str:
    """What the deciding consent permits the recipient of Part 2 records, as 42 CFR 2.32(b) wants it said."""
    compiled = next((c for c in policy.consents if c.reference == decision.consent), None)
    if decision.rule == "break-glass" or compiled is None or compiled.root is None:
        return "Given in a medical emergency (42 CFR 2.51). It is not a consent to any further use or disclosure."
    node = _at(compiled.root, decision.path)
    purposes = sorted(node.purposes.known) if node.purposes is not None else []
    what_for = f" for {_listing([PURPOSES.get(p, p) for p in purposes])}" if purposes else ""
    ends = _end(node.period) or _end(compiled.root.period)
    until = f" until {ends}" if ends else ", until it is withdrawn"
    return f"The patient's consent permits this recipient to have and use these records{what_for}{until}."


def _at(root: Node, path: Sequence[int]) -> Node:
    node = root
    for index in path:
        node = next((child for child in node.children if child.path == (*node.path, index)), node)
    return node


# -- the consent as a whole


def _about(consent: Resource, names: Names) -> str:
    named = [n for n in organizations(consent) if n is not None and n != EXCHANGE]
    if not named:
        return "About the records of every organization."
    return f"About the records of {_listing([names(f'Organization/{n}') or n for n in named])} alone."


def _standing(compiled: Compiled, now: datetime) -> str | None:
    """Why the consent does not count now; None when it does."""
    if not compiled.active:
        return f"{_NO_EFFECT}: it is not active."
    if compiled.scope is None:
        return f"{_NO_EFFECT}: it does not say that it is about privacy or research."
    if compiled.root is None:
        return f"{_NO_EFFECT}: it says neither permit nor deny."
    if compiled.dated is not None and compiled.dated.start is not None and compiled.dated.start > now:
        return f"{_NO_EFFECT} before {_day(compiled.dated.start)}."
    held = compiled.root.period
    if held is not None and not held.covers(now):
        over = held.end is not None and held.end < now
        return f"{_NO_EFFECT}: it ended on {_end(held)}." if over else f"{_NO_EFFECT} yet: it begins later."
    return None


def _add(lines: list[Line], node: Node, provision: Resource, depth: int, names: Names) -> None:
    lines.append(Line(depth, node.effect is Effect.PERMIT, _sentence(node, provision, depth, names)))
    children = [child for child in provision.get("provision") or [] if isinstance(child, dict)]
    for child in node.children:
        # An emergency that a policy rule opens has a node and no provision of its own.
        own = children[child.path[-1]] if child.path[-1] < len(children) else {"purpose": [{"code": "BTG"}]}
        _add(lines, child, own, depth + 1, names)


def _sentence(node: Node, provision: Resource, depth: int, names: Names) -> str:
    permits = node.effect is Effect.PERMIT
    what = _what(provision, permits, names)
    if what:
        begin = ("Shares only " if depth == 0 else "Shares ") if permits else "Does not share "
        what = begin + what
    elif depth == 0 or node.data is None:
        what = "Shares everything" if permits else "Shares nothing"
    else:
        what = "Shares these too" if permits else "Does not share these"
    who = _who(provision, names)
    what_for = _listing([PURPOSES.get(c, f"the purpose {c}") for c in _codes(provision.get("purpose"))], "or")
    end = "".join(
        (
            f" with {who}" if who else "",
            f" for {what_for}" if what_for else "",
            _while(provision),
        )
    )
    note = " (Holds something that is not understood: nothing is shared by it.)" if permits and node.opaque else ""
    return f"{what}{end}.{note}"


def _what(provision: Resource, permits: bool, names: Names) -> str:
    parts = []
    if labels := [_label(c, permits) for c in _dicts(provision.get("securityLabel"))]:
        parts.append(f"records about {_listing(labels, 'or')}" if not _is_level(provision) else _listing(labels, "or"))
    if classes := [CLASSES.get(c, c) for c in _codes(provision.get("class"))]:
        parts.append(_listing(classes, "and"))
    if codes := [_concept(c) for c in _dicts(provision.get("code"))]:
        parts.append(f"records with the code {_listing(codes, 'or')}")
    if (held := _span(provision.get("dataPeriod"))) is not None:
        parts.append(f"records from the time {held}")
    if data := [_datum(item, names) for item in _dicts(provision.get("data"))]:
        parts.append(_listing(data, "or"))
    return ", of these only ".join(parts)


def _label(coding: Resource, permits: bool) -> str:
    system, code = label_of(_text(coding.get("system")) or None, _text(coding.get("code")))
    if system == CONFIDENTIALITY:
        end = "" if code == ("U" if permits else "V") else " or less" if permits else " or more"
        return f"records of {_CONFIDENTIALITIES.get(code, code)} confidentiality{end}"
    return SENSITIVITIES.get(code) or _text(coding.get("display")) or code


def _is_level(provision: Resource) -> bool:
    """Whether every label is a confidentiality."""
    return all(
        label_of(_text(c.get("system")) or None, _text(c.get("code")))[0] == CONFIDENTIALITY
        for c in _dicts(provision.get("securityLabel"))
    )


def _who(provision: Resource, names: Names) -> str:
    recipients, others = [], []
    for actor in _dicts(provision.get("actor")):
        reference = actor.get("reference") if isinstance(actor.get("reference"), dict) else {}
        name = _named(reference, names)
        role = next(iter(_codes([actor.get("role")] if isinstance(actor.get("role"), dict) else [])), "IRCP")
        if role == "CST":
            others.append(f"held by {name}")
        elif role == "AUT":
            others.append(f"written by {name}")
        else:
            recipients.append(name)
    said = [_listing(recipients, "or")] if recipients else ["anybody"] if others else []
    return ", if ".join([*said, *others])


def _named(reference: Any, names: Names) -> str:
    given = reference if isinstance(reference, dict) else {}
    target = target_of(given.get("reference"))
    identifier = given.get("identifier")
    value = _text(identifier.get("value")) if isinstance(identifier, dict) else ""
    return (
        (names(target) if target else None)
        or _text(given.get("display"))
        or value
        or target
        or "somebody who cannot be told from what is written"
    )


def _datum(item: Resource, names: Names) -> str:
    named = _named(item.get("reference"), names)
    return {
        "instance": f"the record {named}",
        "related": f"the record {named} and what refers to it",
        "dependents": f"the record {named} and what refers to it",
        "authoredby": f"records written by {named}",
    }.get(_text(item.get("meaning")), f"what is said of {named}")


def _while(provision: Resource) -> str:
    held = _span(provision.get("period"))
    return f", {held}" if held else ""


# -- words


def _span(value: object) -> str | None:
    """`from 1 Jan 2026 to 31 Dec 2026` of a Period."""
    read = period(value)
    if read is None:
        return None if value is None else "at a time that is not understood"
    start = f"from {_day(read.start)}" if read.start else ""
    end = f"to {_end(read)}" if read.end else ""
    return " ".join(part for part in (start, end) if part)


def _end(held: Span | None) -> str:
    return _day(held.end) if held is not None and held.end is not None else ""


def _day(moment: datetime) -> str:
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def day_of(text: object) -> str:
    """The first day that a FHIR date or dateTime stands for, in words; empty for none."""
    read = span(text)
    return _day(read.start) if read is not None and read.start is not None else ""


def _listing(words: Iterable[str], joint: str = "and") -> str:
    known = list(dict.fromkeys(words))
    return known[0] if len(known) == 1 else f" {joint} ".join((", ".join(known[:-1]), known[-1])) if known else ""


def _concept(concept: Resource) -> str:
    coding = next(iter(_dicts(concept.get("coding"))), {})
    return _text(concept.get("text")) or _text(coding.get("display")) or _text(coding.get("code")) or "not given"


def _codes(values: object) -> list[str]:
    """Codes of Codings and CodeableConcepts."""
    found = []
    for value in _dicts(values):
        codings = _dicts(value["coding"]) if "coding" in value else [value]
        found += [_text(c.get("code")) or _text(c.get("display")) or "(not given)" for c in codings]
    return found


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _dicts(value: object) -> list[Resource]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
