"""FHIR R4 Consent (IHE PCF profiles) to policy: `compile_consent`, once per stored version.

Whatever the evaluator cannot honour (an element or extension inside a provision that it does not know, an actor that
cannot be resolved, a value in a foreign code system) makes permits narrower and denials wider, and is said in
`Compiled.warnings`, which the filer gets back (CONSENT.md section 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from hie.consent.policy import (
    EVERYTHING,
    PART2_LABEL,
    Actors,
    Compiled,
    Data,
    Effect,
    Node,
    Span,
    Tri,
    Values,
    actor_key,
)
from hie.consent.vocabulary import (
    ACT_CODE,
    ACT_REASON,
    CONFIDENTIALITY,
    CONSENT_ACTION,
    PARTICIPATION,
    PURPOSES,
    RANK,
    RESOURCE_TYPES,
    SENSITIVITIES,
    label_key,
    label_of,
    system_of,
)
from hie.core.caller import EXCHANGE
from hie.core.errors import Unprocessable
from hie.core.fhir import Resource, local_reference, walk

MAX_PROVISIONS = 500

_SCOPES = ("patient-privacy", "research")
_ELEMENTS = frozenset(
    {
        "id",
        "type",
        "period",
        "actor",
        "action",
        "securityLabel",
        "purpose",
        "class",
        "code",
        "dataPeriod",
        "data",
        "provision",
    }
)
_RELEASING = frozenset({"access", "disclose", "use"})
_PART2_POLICY = re.compile(r"42[\W_]*cfr[\W_]*(part)?[\W_]*2\b|title-42\b.*\bpart-2\b", re.IGNORECASE)
_DATE_TIME = re.compile(
    r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:T(\d{2}):(\d{2})(?::(\d{2})(?:\.(\d+))?)?(Z|[+-]\d{2}:\d{2})?)?)?)?"
)
_MICROSECOND = timedelta(microseconds=1)


def compile_consent(resource: Resource, version: int, person_id: str) -> Compiled:
    """The consent as the evaluator reads it. Never fails: what cannot be read never widens what is released."""
    notes: list[str] = []
    scope = _scope(resource)
    if scope is None:
        notes.append("Neither scope nor category says patient-privacy or research: the consent has no effect.")
    custodians, all_resolved = _custodians(resource)
    if not all_resolved:
        notes.append("An organization cannot be resolved: the consent's denials count everywhere, its permits nowhere.")
    verified = not any(v.get("verified") is False for v in _dicts(resource.get("verification")))
    if not verified:
        notes.append(
            "The consent is not verified: its permits do not count, its denials do, and it takes the place of no other."
        )
    return Compiled(
        id=str(resource.get("id", "")),
        version=version,
        person_id=person_id,
        active=resource.get("status") == "active",
        scope=scope,
        custodians=custodians,
        dated=span(resource.get("dateTime")) or span(_dict(resource.get("meta")).get("lastUpdated")),
        root=_root(resource, notes),
        verified=verified and all_resolved,
        covers_part2=_covers_part2(resource),
        warnings=tuple(dict.fromkeys(notes)),
    )


def check_consent(resource: Resource) -> None:
    """What the exchange asks of a Consent beyond FHIR R4; raises Unprocessable with a sentence."""
    if span(resource.get("dateTime")) is None:
        raise Unprocessable("Consent.dateTime: is required, since the newest consent counts.", code="required")
    nested = (node.get("provision") for node in walk(resource.get("provision")))
    if sum(len(_list(children)) for children in nested) > MAX_PROVISIONS:
        raise Unprocessable(f"Consent.provision: has more than {MAX_PROVISIONS} provisions.", code="too-costly")


def relative(resource: Resource, base: str) -> Resource:
    """A copy in which references under `base`, the exchange's own address, are relative."""
    prefix = base.rstrip("/") + "/"

    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: trim(v) if k == "reference" else copy(v) for k, v in value.items()}
        return [copy(item) for item in value] if isinstance(value, list) else value

    def trim(value: Any) -> Any:
        return value.removeprefix(prefix) if isinstance(value, str) else copy(value)

    made: Resource = copy(resource)
    return made


def organizations(resource: Resource) -> list[str | None]:
    """The governed custodians that `Consent.organization` names: organization ids, None for one that names none."""
    named = []
    for reference in _dicts(resource.get("organization")):
        target = target_of(reference.get("reference"))
        named.append(target.removeprefix("Organization/") if target and target.startswith("Organization/") else None)
    return named


def target_of(literal: object) -> str | None:
    """`Type/id` of a relative literal reference, without its version; None for anything the exchange cannot follow."""
    if not isinstance(literal, str) or "://" in literal:
        return None
    parts = literal.split("/_history/")[0].split("/")
    return literal.split("/_history/")[0] if len(parts) == 2 and local_reference(literal) else None


def span(text: object) -> Span | None:
    """The range of a FHIR date, dateTime or instant, partial or not, in UTC where no offset is given."""
    return _span(text) if isinstance(text, str) else None


@lru_cache(maxsize=16384)
def _span(text: str) -> Span | None:
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        start = datetime(
            int(year),
            int(month or 1),
            int(day or 1),
            int(hour or 0),
            int(minute or 0),
            min(int(second or 0), 59),
            0,
            UTC,
        )
        if offset and offset != "Z":
            start = datetime.fromisoformat(start.strftime("%Y-%m-%dT%H:%M:%S") + offset).astimezone(UTC)
        if fraction:
            start += timedelta(microseconds=int(fraction[:6].ljust(6, "0")))
        return Span(start, _end(start, month, day, hour, second, fraction))
    except (ValueError, OverflowError):
        return None


def period(value: object) -> Span | None:
    """The range of a FHIR Period, end inclusive; None when it has no end or one that cannot be read."""
    given = _dict(value)
    start, end = span(given.get("start")), span(given.get("end"))
    if (start is None and end is None) or ("start" in given and start is None) or ("end" in given and end is None):
        return None
    return Span(start.start if start else None, end.end if end else None)


def _end(
    start: datetime, month: str | None, day: str | None, hour: str | None, second: str | None, fraction: str | None
) -> datetime:
    """The last microsecond of what is written."""
    if month is None:
        return (
            start.replace(year=start.year + 1) - _MICROSECOND if start.year < 9999 else datetime.max.replace(tzinfo=UTC)
        )
    if day is None:
        return (start + timedelta(days=31)).replace(day=1) - _MICROSECOND
    if hour is None:
        return start + timedelta(days=1) - _MICROSECOND
    if second is None:
        return start + timedelta(minutes=1) - _MICROSECOND
    if fraction is None:
        return start + timedelta(seconds=1) - _MICROSECOND
    return start + timedelta(microseconds=max(0, 10 ** (6 - len(fraction[:6])) - 1))


# -- the consent as a whole


def _scope(resource: Resource) -> str | None:
    codes = {code for _, code in _codings([resource.get("scope"), *_list(resource.get("category"))])}
    return next((scope for scope in _SCOPES if scope in codes), None)


def _custodians(resource: Resource) -> tuple[frozenset[str], bool]:
    named = organizations(resource)
    resolved = frozenset(EVERYTHING if name == EXCHANGE else name for name in named if name is not None)
    if None in named:
        return resolved | {EVERYTHING}, False
    return resolved or frozenset({EVERYTHING}), True


def _covers_part2(resource: Resource) -> bool:
    concepts = [resource.get("scope"), resource.get("policyRule"), *_list(resource.get("category"))]
    if any(code == PART2_LABEL for _, code in _codings(concepts)):
        return True
    addresses = [p.get(k) for p in _dicts(resource.get("policy")) for k in ("uri", "authority")]
    return any(isinstance(a, str) and _PART2_POLICY.search(a) for a in addresses)


def _root(resource: Resource, notes: list[str]) -> Node | None:
    provision = _dict(resource.get("provision"))
    effect, emergency_only = _effect(provision.get("type")), False
    if effect is None:
        effect, emergency_only = _policy_rule(resource.get("policyRule"))
    if effect is None:
        notes.append("Neither provision.type nor policyRule says permit or deny: the consent has no effect.")
        return None
    opaque = "modifierExtension" in resource or "implicitRules" in resource
    if opaque:
        notes.append("modifierExtension and implicitRules are not understood: nothing is permitted by this consent.")
    root = _node(provision, effect, (), Node(effect, opaque=opaque), notes)
    if not emergency_only:
        return root
    purposes = frozenset({"BTG"})
    emergency = replace(
        root,
        effect=Effect.PERMIT,
        path=(len(root.children),),
        purposes=Values(purposes),
        purposes_here=purposes,
        children=(),
    )
    return replace(root, children=(*root.children, emergency))


def _policy_rule(rule: object) -> tuple[Effect | None, bool]:
    """The root's effect by `policyRule`, and whether a break-glass request is permitted nevertheless."""
    codes = [code for system, code in _codings([rule]) if system in (ACT_CODE, "")]
    if any(code.startswith("OPTOUT") or code == "NOCONSENT" for code in codes):
        return Effect.DENY, False
    if "EMRGONLY" in codes:
        return Effect.DENY, True
    return (Effect.PERMIT if any(code.startswith("OPTIN") for code in codes) else None), False


def _effect(text: object) -> Effect | None:
    return Effect(text) if text in ("permit", "deny") else None


# -- provisions


def _node(provision: Resource, effect: Effect, path: tuple[int, ...], parent: Node, notes: list[str]) -> Node:
    """A provision whose unstated criteria are its parent's."""
    here = "provision" + "".join(f".provision[{index}]" for index in path)
    unknown = sorted(key for key in provision if key not in _ELEMENTS)
    foreign = {key for key in _ELEMENTS - {"provision"} if _foreign(provision.get(key))}
    contained = any(_is_contained(a) for a in _dicts(provision.get("actor")))
    notes += [f"{here}.{key[:64]} is not understood." for key in [*unknown, *sorted(foreign)]]
    reader = _Reader(provision, effect, here, foreign, notes)
    purposes = reader.purposes()
    actors = reader.actors()
    states_action = "action" in provision
    states_period = "period" in provision
    node = Node(
        effect=effect,
        path=path,
        opaque=parent.opaque or bool(unknown) or bool(foreign) or contained,
        actors=actors if actors is not None else parent.actors,
        purposes=purposes if purposes is not None else parent.purposes,
        purposes_here=purposes.known if purposes is not None else frozenset(),
        states_action=states_action or parent.states_action,
        action=reader.action() if states_action else parent.action,
        states_period=states_period or parent.states_period,
        period=reader.period() if states_period else parent.period,
        data=reader.data() or parent.data,
    )
    children = tuple(
        _node(child, _child_effect(child, effect, here, index, notes), (*path, index), node, notes)
        for index, child in enumerate(_dicts(provision.get("provision")))
    )
    return replace(node, children=children)


def _child_effect(child: Resource, parent: Effect, here: str, index: int, notes: list[str]) -> Effect:
    if "type" not in child:
        return Effect.DENY if parent is Effect.PERMIT else Effect.PERMIT
    effect = _effect(child["type"])
    if effect is None:
        notes.append(f"{here}.provision[{index}].type is neither permit nor deny: read as deny.")
    return effect or Effect.DENY


class _Reader:
    """The criteria of one provision; None where it does not state one."""

    def __init__(self, provision: Resource, effect: Effect, here: str, foreign: set[str], notes: list[str]) -> None:
        self._provision = provision
        self._permits = effect is Effect.PERMIT
        self._here = here
        self._foreign = foreign
        self._notes = notes

    def purposes(self) -> Values | None:
        if "purpose" not in self._provision:
            return None
        known, unknown = set(), "purpose" in self._foreign
        for system, code in _codings_given(self._provision["purpose"]):
            if code and (system in ("", ACT_REASON) or code not in PURPOSES):
                known.add(code)
            else:
                unknown = self._not_understood("purpose")
        return Values(frozenset(known), unknown)

    def action(self) -> Tri:
        codes = [
            code if system in ("", CONSENT_ACTION) else ""
            for concept in _dicts(self._provision["action"])
            for system, code in _codings([concept]) or [("", "")]
        ]
        if not _RELEASING.isdisjoint(codes):
            return None if "action" in self._foreign else True
        if "" in codes or "action" in self._foreign:
            self._not_understood("action")
            return None
        return False

    def period(self) -> Span | None:
        read = period(self._provision["period"])
        if read is None:
            self._not_understood("period")
        return None if "period" in self._foreign else read

    def actors(self) -> Actors | None:
        if "actor" not in self._provision:
            return None
        found: dict[str, set[str]] = {"recipients": set(), "holders": set(), "authors": set()}
        unknown = "actor" in self._foreign
        for index, actor in enumerate(_dicts(self._provision["actor"])):
            keys, kinds = _keys(actor.get("reference")), _roles(actor.get("role"))
            if not keys or None in kinds:
                unknown = self._not_understood(f"actor[{index}]", "cannot be resolved")
            for kind in kinds:
                if kind is not None:
                    found[kind].update(keys)
        return Actors(**{kind: frozenset(keys) for kind, keys in found.items()}, unknown=unknown)

    def data(self) -> Data | None:
        if not any(key in self._provision for key in ("securityLabel", "class", "code", "dataPeriod", "data")):
            return None
        labels, confidentiality = self._labels()
        instances, related, authored_by, unknown_target = self._targets()
        return Data(
            permits=self._permits,
            labels=labels,
            confidentiality=confidentiality,
            classes=self._classes(),
            codes=self._codes(),
            states_period="dataPeriod" in self._provision,
            period=self._data_period(),
            states_targets="data" in self._provision,
            instances=instances,
            related=related,
            authored_by=authored_by,
            unknown_target=unknown_target,
        )

    def _labels(self) -> tuple[Values | None, int | None]:
        if "securityLabel" not in self._provision:
            return None, None
        known, ranks, unknown = set(), [], "securityLabel" in self._foreign
        for given, code in _codings_given(self._provision["securityLabel"]):
            system, code = label_of(given, code)
            if system == CONFIDENTIALITY and code in RANK:
                ranks.append(RANK[code])
            elif code and system != CONFIDENTIALITY:
                known.add(label_key((system, code)))
                if system != ACT_CODE or code not in SENSITIVITIES:
                    self._note("securityLabel", f"{code[:32]} is known only where a source labels it so")
            else:
                unknown = self._not_understood("securityLabel")
        rank = (max(ranks) if self._permits else min(ranks)) if ranks else None
        return Values(frozenset(known), unknown), rank

    def _classes(self) -> Values | None:
        if "class" not in self._provision:
            return None
        known, unknown = set(), "class" in self._foreign
        for system, code in _codings_given(self._provision["class"]):
            if code and ("://" in code or system in ("", RESOURCE_TYPES)):
                known.add(code.split("|")[0])
            else:
                unknown = self._not_understood("class")
        return Values(frozenset(known), unknown)

    def _codes(self) -> Values | None:
        if "code" not in self._provision:
            return None
        known, unknown = set(), "code" in self._foreign
        for concept in _dicts(self._provision["code"]):
            keys = {f"{system}|{code}" for system, code in _codings([concept])}
            known |= keys
            if not keys:
                unknown = self._not_understood("code")
        return Values(frozenset(known), unknown)

    def _data_period(self) -> Span | None:
        if "dataPeriod" not in self._provision:
            return None
        read = period(self._provision["dataPeriod"])
        if read is None:
            self._not_understood("dataPeriod")
        return None if "dataPeriod" in self._foreign else read

    def _targets(self) -> tuple[frozenset[str], frozenset[str], frozenset[str], bool]:
        instances, related, authored_by = set[str](), set[str](), set[str]()
        unknown = "data" in self._foreign
        for index, item in enumerate(_dicts(self._provision.get("data"))):
            reference = _dict(item.get("reference"))
            target, meaning = target_of(reference.get("reference")), item.get("meaning")
            if meaning == "authoredby" and (keys := _keys(reference)):
                authored_by |= keys
            elif meaning == "instance" and target:
                instances.add(target)
            elif meaning in ("related", "dependents") and target:
                related.add(target)
            else:
                unknown = self._not_understood(f"data[{index}]", "cannot be resolved")
        return frozenset(instances), frozenset(related), frozenset(authored_by), unknown

    def _not_understood(self, element: str, why: str = "has a value that is not understood") -> bool:
        self._note(element, why)
        return True

    def _note(self, element: str, why: str) -> None:
        self._notes.append(f"{self._here}.{element} {why}.")


def _keys(reference: object) -> frozenset[str]:
    """What an actor is matched by: its reference as the exchange writes it, and its identifier's value."""
    given = _dict(reference)
    value = _dict(given.get("identifier")).get("value")
    keys = {target_of(given.get("reference")), value if isinstance(value, str) else None}
    return frozenset(actor_key(key) for key in keys if key)


def _is_contained(actor: Resource) -> bool:
    literal = _dict(actor.get("reference")).get("reference")
    return isinstance(literal, str) and literal.startswith("#")


def _roles(role: object) -> set[str | None]:
    """The kinds of actor that a role means; None for one that is not understood."""
    if not _dict(role):
        return {"recipients"}
    kinds = {"IRCP": "recipients", "PRCP": "recipients", "CST": "holders", "AUT": "authors"}
    return {kinds.get(code) if system in ("", PARTICIPATION) else None for system, code in _codings([role])} or {None}


def _foreign(value: object) -> bool:
    """Whether an extension, which the evaluator does not know, stands anywhere inside."""
    return any(key in ("extension", "modifierExtension") or key.startswith("_") for node in walk(value) for key in node)


# -- plain JSON


def _codings(concepts: Iterable[object]) -> list[tuple[str, str]]:
    """(system, code) of the codings of CodeableConcepts that have a code."""
    found = _codings_given([c for concept in concepts for c in _list(_dict(concept).get("coding"))])
    return [(system, code) for system, code in found if code]


def _codings_given(codings: object) -> list[tuple[str, str]]:
    """(system, code) of Codings; an absent code is the empty string."""
    return [(system_of(_text(c.get("system"))), _text(c.get("code"))) for c in _dicts(codings)]


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _dict(value: object) -> Resource:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: object) -> list[Resource]:
    return [item for item in _list(value) if isinstance(item, dict)]
