"""Invented people as the members' Patients, and what the index says of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from hie.core.database import Database
from hie.core.fhir import Resource
from hie.mpi.comparison import compare, hard_conflict
from hie.mpi.demographics import Traits, traits_of
from hie.mpi.index import MatchDecision, MatchIndex, Verdict
from hie.mpi.model import Model, probability

MODEL = Model.load()

ROBERT: Resource = {
    "resourceType": "Patient",
    "name": [{"family": "Kowalczyk", "given": ["Robert", "Alan"]}],
    "birthDate": "1961-04-23",
    "gender": "male",
    "telecom": [{"system": "phone", "value": "617-555-0142"}],
    "address": [{"line": ["18 Larch Road"], "city": "Norwood", "state": "MA", "postalCode": "02062"}],
}


def patient(base: Resource = ROBERT, **changes: Any) -> Resource:
    """`base` with elements replaced; None removes one. given, middle, family, phone and ssn are short forms."""
    made = copy.deepcopy(base)
    name = made["name"][0]
    for key, value in changes.items():
        match key:
            case "given":
                name["given"] = [value, *name["given"][1:]]
            case "middle":
                name["given"] = [name["given"][0], *([value] if value else [])]
            case "family":
                name["family"] = value
            case "suffix":
                name["suffix"] = [value]
            case "phone":
                made["telecom"] = [{"system": "phone", "value": value}] if value else []
            case "ssn":
                made["identifier"] = [{"system": "http://hl7.org/fhir/sid/us-ssn", "value": value}]
            case _ if value is None:
                made.pop(key, None)
            case _:
                made[key] = value
    return made


def elsewhere() -> list[Resource]:
    """An address in another town."""
    return [{"line": ["702 Vine Street Apt 4"], "city": "Wexford", "state": "MA", "postalCode": "02155"}]


def verdict(database: Database, known: Sequence[Resource], new: Resource) -> MatchDecision:
    """The decision on `new` when each of `known` is a person of its own."""
    index = MatchIndex(MODEL, database.is_sqlite)
    with database.write() as connection:
        for number, resource in enumerate(known):
            index.store(connection, f"r{number}", f"p{number}", traits_of(resource))
        return index.decide(connection, traits_of(new))


def feed(connection: sa.Connection, index: MatchIndex, records: Iterable[tuple[str, Traits]]) -> dict[str, str]:
    """Feeds the records in turn; record id -> person id."""
    people: dict[str, str] = {}
    for record_id, traits in records:
        decision = index.decide(connection, traits)
        people[record_id] = decision.person_id or f"of-{record_id}"
        for gone in decision.joins:
            moved = [r for r, person_id in people.items() if person_id == gone]
            index.move(connection, moved, people[record_id])
            people.update(dict.fromkeys(moved, people[record_id]))
        index.store(connection, record_id, people[record_id], traits)
    return people


def brute_force(known: Sequence[tuple[str, str, Traits]], traits: Traits) -> tuple[Verdict, list[str]]:
    """The obvious matcher: compares with every record there is and follows the rules of the model's thresholds.

    With LINK the person it is of, and those whom it joins to her.
    """
    weights: dict[str, float] = {}
    conflicts: set[str] = set()
    for _, person_id, other in known:
        weights[person_id] = max(weights.get(person_id, -1e9), MODEL.weight(compare(traits, other)))
        if hard_conflict(traits, other):
            conflicts.add(person_id)
    limits = MODEL.thresholds
    ranked = sorted(weights, key=lambda person: -weights[person])
    if not ranked or probability(weights[ranked[0]]) < limits.review:
        return Verdict.NEW, []
    linkable = [p for p in ranked if p not in conflicts and probability(weights[p]) >= limits.link]
    if not linkable or linkable[0] != ranked[0]:
        return Verdict.REVIEW, []
    one = linkable[:1]
    for person in linkable[1:4]:
        if all(_are_one(known, weights, person, p) for p in one):
            one.append(person)
    if any(weights[ranked[0]] - weights[p] < limits.margin for p in linkable if p not in one):
        return Verdict.REVIEW, []
    return Verdict.LINK, one


def _are_one(known: Sequence[tuple[str, str, Traits]], weights: Mapping[str, float], one: str, other: str) -> bool:
    pairs = [(a, b) for _, p, a in known if p == one for _, q, b in known if q == other]
    alike = max(probability(MODEL.weight(compare(a, b))) for a, b in pairs)
    wrong = (2 - probability(weights[one]) - probability(weights[other])) * (1 - alike) / alike
    return alike >= 0.2 and wrong <= 0.001 and not any(hard_conflict(a, b) for a, b in pairs)
