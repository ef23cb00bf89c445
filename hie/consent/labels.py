"""Sensitivity labels: what a source says, and what codes give away (CONSENT.md section 2; pure).

A source's `meta.security` is kept, its label systems brought to one spelling. Codes add sensitivity by the value-set
files in `valuesets/`; drugs are also known by ingredient name, since products have more codes than any list. Labels
follow references inside one source's answer: a resource shares the labels of what it refers to (the report of a
labelled result) and of what refers to it (the encounter of a labelled condition), as far as each chain of references
reaches; but what an encounter got from one condition it does not pass on to the next. A view keeps apart what came that
way (`reached`): consents go by all labels, the rules of section 5 by what is said of the resource itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from hie.consent.code_files import NAMES, SYSTEMS, Row, packaged
from hie.consent.fhir import period, span
from hie.consent.policy import SELF_PAY, ResourceView, Span, actor_key, default_confidentiality
from hie.consent.vocabulary import (
    ACT_CODE,
    CONFIDENTIALITY,
    ICD9CM,
    ICD10CM,
    RANK,
    label_of,
    system_of,
)
from hie.core.fhir import Resource, local_reference

Label = tuple[str, str]
Labels = frozenset[Label]

_NO_LABELS: Labels = frozenset()
_NONE = frozenset[str]()
_NESTED = (dict, list)
_RESTRICTED: Labels = frozenset({(CONFIDENTIALITY, "R")})

_MOST_LABELS = 100
"""An answer with more kinds of label than this is no chart; following each would cost its caller the deadline."""

_SHARED_BY_MANY = frozenset(
    {"Patient", "Practitioner", "PractitionerRole", "Organization", "Location", "Coverage", "CareTeam"}
)
"""Types that a labelled resource names without telling anything of them: labels do not flow on to these."""

_TIMES = (
    ("effectiveDateTime", "effectivePeriod", "effectiveInstant"),
    ("onsetDateTime", "onsetPeriod"),
    ("performedDateTime", "performedPeriod"),
    ("occurrenceDateTime",),
    ("period", "billablePeriod"),
    ("recordedDate", "recorded"),
    ("authoredOn", "dateAsserted", "date", "created"),
    ("issued",),
)
"""Elements that say when, the clinically nearest first (CONSENT.md section 1)."""

_AUTHORS = frozenset(
    {
        "author",
        "asserter",
        "recorder",
        "requester",
        "performer",
        "informationSource",
        "contributor",
        "resultsInterpreter",
        "authenticator",
        "enterer",
        "provider",
        "participant",
    }
)


@dataclass(frozen=True, eq=False)
class ValueSets:
    """The codes that give a sensitivity away."""

    exact: Mapping[tuple[str, str], frozenset[str]]
    prefixes: Mapping[tuple[str, str], frozenset[str]]
    ranges: Mapping[str, tuple[tuple[str, str, str], ...]]
    patterns: Mapping[tuple[str, str], re.Pattern[str]]
    """(system, label) -> what the codes begin like."""
    names: Mapping[str, frozenset[str]]
    words: re.Pattern[str]

    def of_code(self, system: str, code: str) -> frozenset[str]:
        """Sensitivity codes of one code; `system` in the spelling of `vocabulary`."""
        code = _spelled(system, code)
        found = set(self.exact.get((system, code), ()))
        for length in range(2, len(code) + 1):
            found.update(self.prefixes.get((system, code[:length]), ()))
        for low, high, label in self.ranges.get(system, ()):
            if low <= code[: len(low)] <= high:
                found.add(label)
        found.update(label for (of, label), wanted in self.patterns.items() if of == system and wanted.match(code))
        return frozenset(found)

    def of_name(self, text: str) -> frozenset[str]:
        """Sensitivity codes of the drug ingredients that a name or description mentions."""
        found = {match.lower() for match in self.words.findall(text)}
        return frozenset(label for name in found for label in self.names[name])


@cache
def value_sets() -> ValueSets:
    """The exchange's own value sets."""
    return build(row for file in packaged() for row in file.rows)


def build(rows: Iterable[Row]) -> ValueSets:
    """Value sets from rows, which have been found right."""
    exact: dict[tuple[str, str], frozenset[str]] = {}
    prefixes: dict[tuple[str, str], frozenset[str]] = {}
    ranges: dict[str, tuple[tuple[str, str, str], ...]] = {}
    patterns: dict[tuple[str, str], list[str]] = {}
    names: dict[str, frozenset[str]] = {}
    for row in rows:
        label = frozenset({row.label})
        if row.system == NAMES:
            names[row.code.lower()] = names.get(row.code.lower(), frozenset()) | label
            continue
        system = SYSTEMS[row.system]
        if row.kind == "range":
            low, high = (_spelled(system, end) for end in row.code.split(".."))
            ranges[system] = (*ranges.get(system, ()), (low, high, row.label))
        elif row.kind == "pattern":
            wanted = re.escape(_spelled(system, row.code)).replace(r"\?", ".")
            patterns.setdefault((system, row.label), []).append(wanted)
        else:
            table = {"code": exact, "prefix": prefixes}[row.kind]
            key = system, _spelled(system, row.code)
            table[key] = table.get(key, frozenset()) | label
    words = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))})\b" if names else r"(?!)", re.IGNORECASE)
    begun = {key: re.compile("|".join(wanted)) for key, wanted in patterns.items()}
    return ValueSets(exact, prefixes, ranges, begun, names, words)


def views(
    resources: Sequence[Resource], member_id: str, *, complete: bool = True, sets: ValueSets | None = None
) -> list[ResourceView]:
    """The views of one source's answer, all its resources together, in their order and the exchange's terms.

    A resource that cannot be read is labelled `R`. Not `complete`: a part of the source's chart is missing, and what
    is there may carry labels that nobody can see.
    """
    chosen = sets or value_sets()
    drafts = [_draft(resource, chosen) for resource in resources]
    labels = _spread(drafts)
    return [_view(draft, found, member_id, complete) for draft, found in zip(drafts, labels, strict=True)]


def contained_view(contained: Resource, container: ResourceView, *, sets: ValueSets | None = None) -> ResourceView:
    """The view of a contained resource: a part of its container, with all its labels, and what it says itself."""
    draft = _draft(contained, sets or value_sets())
    return replace(
        container,
        type=draft.key[0],
        id=draft.key[1],
        labels=container.labels | draft.labels,
        codes=draft.codes,
        profiles=draft.profiles,
        time=draft.time or container.time,
        references=container.references | {f"{kind}/{target}" for kind, target in draft.references},
        authors=draft.authors or container.authors,
        labels_known=container.labels_known and draft.readable,
        part_of=container.reference,
    )


def own_labels(resource: Resource, *, sets: ValueSets | None = None) -> Labels:
    """What a resource by itself is labelled: by its source, and by the codes in it."""
    return _draft(resource, sets or value_sets()).labels


@dataclass(frozen=True)
class _Draft:
    """One resource read once, in its source's terms."""

    key: tuple[str, str]
    labels: Labels = _NO_LABELS
    codes: frozenset[tuple[str, str]] = frozenset()
    profiles: frozenset[str] = frozenset()
    time: Span | None = None
    references: frozenset[tuple[str, str]] = frozenset()
    authors: frozenset[str] = frozenset()
    readable: bool = True


def _draft(resource: Resource, sets: ValueSets) -> _Draft:
    key = str(resource.get("resourceType", "")), str(resource.get("id", ""))
    try:
        return _read(resource, key, sets)
    except (AttributeError, TypeError, ValueError, KeyError, OverflowError):
        return _Draft(key, _RESTRICTED, readable=False)


def _read(resource: Resource, key: tuple[str, str], sets: ValueSets) -> _Draft:
    codes: set[tuple[str, str]] = set()
    references: set[tuple[str, str]] = set()
    sensitive: set[str] = set()
    stack: list[Any] = [resource]
    while stack:
        node = stack.pop()
        if type(node) is list:
            stack += [item for item in node if type(item) in _NESTED]
            continue
        for name, value in node.items():
            if type(value) in _NESTED:
                stack.append(value)
            elif type(value) is not str or not value:
                continue
            elif name == "code":
                system = node.get("system")
                coding = system_of(system if isinstance(system, str) else None), value
                codes.add(coding)
                sensitive |= _of_code(sets, *coding)
            elif name == "reference":
                target = _target(value)
                if target is not None:
                    references.add(target)
            elif name in ("display", "text"):
                sensitive |= _of_name(sets, value)
    meta = resource.get("meta") or {}
    profiles = meta.get("profile")
    return _Draft(
        key=key,
        labels=_labels(_given(meta), frozenset(sensitive)),
        codes=frozenset(codes),
        profiles=frozenset(profile.split("|")[0] for profile in profiles) if profiles else _NONE,
        time=_time(resource, meta),
        references=frozenset(references),
        authors=frozenset(name for author in _authors(resource) for name in _names(author)),
    )


@lru_cache(maxsize=65536)
def _target(literal: str) -> tuple[str, str] | None:
    return local_reference(literal)


@lru_cache(maxsize=4096)
def _labels(given: Labels, sensitive: frozenset[str]) -> Labels:
    """Equal labels are one object, so that comparing them is quick."""
    return _with_confidentiality(given | {(ACT_CODE, code) for code in sensitive})


def _given(meta: Resource) -> Labels:
    """The source's own labels; of its tags only the one that restricts what a payer gets."""
    if not (meta.get("security") or meta.get("tag")):
        return _NO_LABELS
    codings = [c for c in meta.get("security") or () if c.get("code")]
    codings += [c for c in meta.get("tag") or () if c.get("code") == SELF_PAY]
    return frozenset(label_of(c.get("system"), c["code"]) for c in codings)


def _with_confidentiality(labels: Labels) -> Labels:
    if any(system == CONFIDENTIALITY and code in RANK for system, code in labels):
        return labels
    return labels | {(CONFIDENTIALITY, default_confidentiality(labels))}


def _time(resource: Resource, meta: Resource) -> Span | None:
    context = resource.get("context")
    nested = context.get("period") if isinstance(context, dict) else None
    given = [resource.get(element) for elements in _TIMES for element in elements]
    for value in (nested, *given, meta.get("lastUpdated")):
        found = period(value) if isinstance(value, dict) else span(value)
        if found is not None:
            return found
    return None


def _authors(resource: Resource) -> Iterator[Resource]:
    """References to those who wrote it: directly, or as `actor`, `individual` or `provider` of an entry."""
    for element in _AUTHORS & resource.keys():
        value = resource[element]
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                nested = (item.get(role) for role in ("actor", "individual", "provider", "party", "member"))
                yield from (r for r in (item, *nested) if isinstance(r, dict))


def _names(author: Resource) -> Iterator[str]:
    """What an author may be named by in a consent: reference and identifier value."""
    target = local_reference(author.get("reference"))
    if target is not None:
        yield "/".join(target)
    identifier = author.get("identifier")
    value = identifier.get("value") if isinstance(identifier, dict) else None
    if isinstance(value, str):
        yield actor_key(value)


@lru_cache(maxsize=65536)
def _of_code(sets: ValueSets, system: str, code: str) -> frozenset[str]:
    return sets.of_code(system, code)


@lru_cache(maxsize=65536)
def _of_name(sets: ValueSets, text: str) -> frozenset[str]:
    return sets.of_name(text)


def _spelled(system: str, code: str) -> str:
    """ICD codes come with and without their dot, and in either case."""
    return code.upper().replace(".", "") if system in (ICD10CM, ICD9CM) else code.upper()


# -- labels follow references


def _spread(drafts: Sequence[_Draft]) -> list[Labels]:
    """Each resource's labels with those that reach it along references, in the one direction or the other."""
    place = {draft.key: index for index, draft in enumerate(drafts)}
    refers = [[place[key] for key in draft.references if key in place] for draft in drafts]
    referred: list[list[int]] = [[] for _ in drafts]
    for index, targets in enumerate(refers):
        for target in targets:
            referred[target].append(index)
    carriers: dict[Label, list[int]] = {}
    for index, draft in enumerate(drafts):
        for label in _telling(draft.labels):
            carriers.setdefault(label, []).append(index)
    if len(carriers) > _MOST_LABELS:
        return [draft.labels | _RESTRICTED for draft in drafts]
    found = [set(draft.labels) for draft in drafts]
    for label, start in carriers.items():
        for reached in _reach(start, referred):
            found[reached].add(label)
        for reached in _reach(start, refers):
            if drafts[reached].key[0] not in _SHARED_BY_MANY:
                found[reached].add(label)
    return [frozenset(labels) for labels in found]


def _telling(labels: Labels) -> Labels:
    """What a label tells of others: every sensitivity, and confidentiality above normal."""
    return frozenset(
        (system, code) for system, code in labels if system != CONFIDENTIALITY or RANK.get(code, 0) > RANK["N"]
    )


def _reach(start: Iterable[int], edges: Sequence[Sequence[int]]) -> set[int]:
    stack = list(start)
    seen = set(stack)
    while stack:
        for target in edges[stack.pop()]:
            if target not in seen:
                seen.add(target)
                stack.append(target)
    return seen


def _view(draft: _Draft, labels: Labels, member_id: str, complete: bool) -> ResourceView:
    return ResourceView(
        type=draft.key[0],
        id=draft.key[1],
        member_id=member_id,
        labels=labels,
        codes=draft.codes,
        profiles=draft.profiles,
        time=draft.time,
        references=frozenset(f"{kind}/{target}" for kind, target in draft.references),
        authors=draft.authors,
        reached=labels - draft.labels,
        labels_known=complete and draft.readable,
    )
