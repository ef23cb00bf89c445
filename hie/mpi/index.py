"""Online matching: candidates through indexed keys in the database, scored against people, and the decision.

A person is all her records. Her score is that of her closest record, but a hard conflict with any record of hers
forbids linking (law L4). Blocks are read in key order and at most `BLOCK` rows each; of the people found, those are
compared who share the most telling keys, `CANDIDATES` at most, so that a popular key (a front desk's telephone) costs
no more than any other. Works the same on SQLite and PostgreSQL; the caller's transaction is used throughout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import sqlalchemy as sa

from hie.core.bulk import insert
from hie.mpi.blocking import keys, lookup_keys
from hie.mpi.comparison import compare, hard_conflict, identity_digest
from hie.mpi.demographics import Traits
from hie.mpi.model import Model, probability
from hie.mpi.tables_match import match_keys, match_traits

BLOCK = 100
CANDIDATES = 60
RECORDS = 2000
"""Most records of candidates that are compared: a person has a handful, and nobody makes a lookup slower than this."""
SHOWN = 20
"""People a decision keeps for review."""
MAX_JOINED, MAX_PAIRS = 4, 400
"""Most people that one record joins, and most pairs of their records that are looked at for it."""
WORTH_SHOWING = 0.01
KEPT_APART = "a steward said that they are two people"


class Verdict(StrEnum):
    """What to do with a record."""

    LINK = "link"
    REVIEW = "review"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one trait agrees and what that is worth, in bits (log2) for or against the same person."""

    trait: str
    level: str
    weight: float


@dataclass(frozen=True, slots=True)
class Scored:
    """A person as a candidate, by the closest of her records; `conflict` says why she may not be linked unseen."""

    record_id: str
    person_id: str
    probability: float
    weight: float
    agreements: tuple[Agreement, ...]
    conflict: str | None = None
    same_as: str = ""
    """The kind of match it looks like (a class of the model)."""
    rival: str = ""
    """The likeliest other explanation."""


@dataclass(frozen=True, slots=True)
class MatchDecision:
    """The verdict; `person_id` is set for LINK only. `candidates` has one entry per person, best first."""

    verdict: Verdict
    person_id: str | None
    best: Scored | None
    candidates: tuple[Scored, ...]
    model_version: str
    joins: tuple[str, ...] = ()
    """Further people who are one with `person_id`: the record fits them all, and they fit each other."""


@dataclass(frozen=True, slots=True)
class _Near:
    weight: float
    record_id: str
    person_id: str
    traits: Traits
    conflict: str | None


class MatchIndex:
    """The index of one exchange under one model. Holds no state but the model; safe to share between threads."""

    def __init__(self, model: Model, is_sqlite: bool) -> None:
        self.model = model
        self.is_sqlite = is_sqlite

    def lock(self, connection: sa.Connection, traits: Traits) -> None:
        """Hold every key of these traits until the transaction ends, so that two feeds of one new person take turns.

        Sorted, so that two feeds never wait for each other in a ring. SQLite's writers take turns anyway.
        """
        if self.is_sqlite:
            return
        wanted = sorted(keys(traits))
        connection.execute(_LOCK, {"wanted": wanted})

    def decide(
        self,
        connection: sa.Connection,
        traits: Traits,
        *,
        exclude: Collection[str] = (),
        apart: Mapping[str, str] | None = None,
    ) -> MatchDecision:
        """What to do with a record of these traits; `exclude` are record ids that do not count, such as its own.

        `apart` (record id -> `identity_digest`) are records that a steward keeps apart from this one, as long as their
        digest is still that: their people are neither linked nor asked about again.
        """
        near = self._people(connection, traits, exclude, apart or {})
        decision = decide(self.model, traits, near)
        if len(decision.candidates) < 2:
            return decision
        fitting = _fitting(self.model, near)
        if len(fitting) < 2:
            return decision
        records: dict[str, list[Traits]] = defaultdict(list)
        for record_id, person_id, text in read_traits(connection, [n.person_id for n in fitting[:MAX_JOINED]]):
            if record_id not in exclude:
                records[person_id].append(_decoded(text))
        one = _one_person(self.model, fitting[:MAX_JOINED], records)
        others = [n.person_id for n in fitting if n not in one]
        if len(one) < 2 or not self.leads(decision, others):
            return decision
        people = [n.person_id for n in one]
        return replace(decision, verdict=Verdict.LINK, person_id=people[0], joins=tuple(people[1:]))

    def leads(self, decision: MatchDecision, others: Collection[str]) -> bool:
        """Whether the best candidate is clear of these people, who are candidates, too."""
        best, *rest = decision.candidates
        return all(best.weight - c.weight >= self.model.thresholds.margin for c in rest if c.person_id in others)

    def candidates(
        self, connection: sa.Connection, traits: Traits, limit: int, *, exclude: Collection[str] = ()
    ) -> list[Scored]:
        """One entry per person, best first, of those with a probability worth showing, `exclude` left out."""
        near = self._people(connection, traits, exclude, {})
        worth = [n for n in near[: max(0, limit)] if probability(n.weight) >= WORTH_SHOWING]
        return [_scored(self.model, traits, n) for n in worth]

    def store(
        self, connection: sa.Connection, record_id: str, person_id: str, traits: Traits, *, is_new: bool = False
    ) -> None:
        """Index a record under its person, in place of what was known of it (nothing, when it `is_new`)."""
        if not is_new:
            self.remove(connection, record_id)
        both = (*keys(traits), *lookup_keys(traits))
        insert(connection, match_keys, [(key, record_id, person_id) for key in sorted(both)])
        insert(connection, match_traits, [(record_id, person_id, traits.to_json())])

    def move(self, connection: sa.Connection, record_ids: Collection[str], person_id: str) -> None:
        """Give records to another person."""
        for table in (match_keys, match_traits):
            connection.execute(
                table.update().where(table.c.record_id.in_(sorted(record_ids))).values(person_id=person_id)
            )

    def remove(self, connection: sa.Connection, record_id: str) -> None:
        """Forget a record."""
        for table in (match_keys, match_traits):
            connection.execute(table.delete().where(table.c.record_id == record_id))

    def _people(
        self, connection: sa.Connection, traits: Traits, exclude: Collection[str], apart: Mapping[str, str]
    ) -> list[_Near]:
        """Every person that shares a key, by her closest record, best first."""
        people = self.proposed(connection, traits, exclude)
        if not people:
            return []
        rows = [row for row in read_traits(connection, people) if row[0] not in exclude]
        return closest(self.model, traits, ((r, p, _decoded(text)) for r, p, text in rows), apart)

    def proposed(self, connection: sa.Connection, traits: Traits, exclude: Collection[str] = ()) -> list[str]:
        """People who share a key, those who share the most telling ones first."""
        wanted = keys(traits)
        if not wanted:
            return []
        blocks: dict[int, list[str]] = defaultdict(list)
        for key, record_id, person_id in read_blocks(connection, wanted):
            if record_id not in exclude:
                blocks[key].append(person_id)
        told: dict[str, float] = defaultdict(float)
        for members in blocks.values():
            worth = 1 / len(members) if len(members) < BLOCK else _CROWDED
            for person_id in set(members):
                told[person_id] += worth
        return sorted(told, key=lambda person_id: (-told[person_id], person_id))[:CANDIDATES]


_LOCK = sa.text("SELECT pg_advisory_xact_lock(k) FROM unnest(CAST(:wanted AS bigint[])) AS k")


_CROWDED = 1 / (10 * BLOCK)
"""What a full block tells: other keys must say more."""


def read_blocks(connection: sa.Connection, wanted: Sequence[int]) -> list[tuple[int, str, str]]:
    """(key, record id, person id) of each block, `BLOCK` at most, in one round trip.

    Written for each database by hand: this and `read_traits` are what a lookup's time is spent on.
    """
    if connection.dialect.name == "sqlite":
        found = connection.exec_driver_sql(_sqlite_blocks(len(wanted)), tuple(wanted))
    else:
        found = connection.exec_driver_sql(POSTGRES_BLOCKS, (list(wanted),))
    return [(key, record_id, person_id) for key, record_id, person_id in found]


@lru_cache(maxsize=256)
def _sqlite_blocks(count: int) -> str:
    one = (
        "SELECT * FROM (SELECT key, record_id, person_id FROM match_keys WHERE key = ? "
        f"ORDER BY record_id LIMIT {BLOCK})"
    )
    return " UNION ALL ".join([one] * count)


POSTGRES_BLOCKS = f"""
SELECT b.key, b.record_id, b.person_id FROM unnest(%s::bigint[]) AS wanted(key), LATERAL (
    SELECT key, record_id, person_id FROM match_keys WHERE match_keys.key = wanted.key ORDER BY record_id LIMIT {BLOCK}
) AS b"""


def read_traits(connection: sa.Connection, people: Sequence[str]) -> list[tuple[str, str, str]]:
    """(record id, person id, traits) of every record of these people, `RECORDS` at most."""
    select = "SELECT record_id, person_id, traits FROM match_traits WHERE person_id "
    if connection.dialect.name == "sqlite":
        room = next(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if n >= len(people))  # few statements to prepare
        filled = (*people, *[people[0]] * (room - len(people)))
        found = connection.exec_driver_sql(f"{select} IN ({','.join('?' * room)}) LIMIT {RECORDS}", filled)
    else:
        found = connection.exec_driver_sql(f"{select} = ANY(%s) LIMIT {RECORDS}", (list(people),))
    return [(record_id, person_id, traits) for record_id, person_id, traits in found]


@lru_cache(maxsize=20_000)
def _decoded(text: str) -> Traits:
    return Traits.from_json(text)


def closest(
    model: Model,
    traits: Traits,
    records: Iterable[tuple[str, str, Traits]],
    apart: Mapping[str, str] | None = None,
) -> list[_Near]:
    """(record id, person id, traits) -> each person by her closest record, best first. Pure."""
    best: dict[str, _Near] = {}
    conflicts: dict[str, str] = {}
    for record_id, person_id, other in records:
        weight = round(model.weight(compare(traits, other)), 6)
        conflict = hard_conflict(traits, other)
        if apart and apart.get(record_id) == identity_digest(other):
            conflicts[person_id] = KEPT_APART
        elif conflict and conflicts.get(person_id) != KEPT_APART:
            conflicts[person_id] = min(conflict, conflicts.get(person_id, conflict))
        known = best.get(person_id)
        if known is None or (-weight, record_id) < (-known.weight, known.record_id):
            best[person_id] = _Near(weight, record_id, person_id, other, None)
    people = [_Near(n.weight, n.record_id, n.person_id, n.traits, conflicts.get(n.person_id)) for n in best.values()]
    return sorted(people, key=lambda n: (-n.weight, n.person_id))


def decide(model: Model, traits: Traits, people: Sequence[_Near]) -> MatchDecision:
    """The verdict on people sorted best first. Pure.

    LINK needs the link threshold, no hard conflict with any record of the person, and a clear lead over every other
    person who could be linked; whoever is in doubt goes to a steward.
    """
    limits = model.thresholds
    worth = [n for n in people if n.conflict != KEPT_APART and probability(n.weight) >= limits.review]
    shown = tuple(_scored(model, traits, n) for n in worth[:SHOWN])
    if not shown:
        return MatchDecision(Verdict.NEW, None, None, (), model.version)
    fitting = _fitting(model, people)
    if len(fitting) == 1 or (fitting and fitting[0].weight - fitting[1].weight >= limits.margin):
        return MatchDecision(Verdict.LINK, fitting[0].person_id, shown[0], shown, model.version)
    return MatchDecision(Verdict.REVIEW, None, shown[0], shown, model.version)


def _fitting(model: Model, people: Sequence[_Near]) -> list[_Near]:
    """The people any of whom would link if the others were not there, best first."""
    limits = model.thresholds
    worth = [n for n in people if n.conflict != KEPT_APART and probability(n.weight) >= limits.review]
    free = [n for n in worth if n.conflict is None and probability(n.weight) >= limits.link]
    return free if free and free[0] is worth[0] else []


def _one_person(model: Model, fitting: Sequence[_Near], records: Mapping[str, Sequence[Traits]]) -> list[_Near]:
    """Those of the people whom a record fits who are one with the best of them, herself first. Pure."""
    one = [fitting[0]]
    for n in fitting[1:]:
        if all(_are_one(model, n, known, records[n.person_id], records[known.person_id]) for known in one):
            one.append(n)
    return one


def _are_one(model: Model, a: _Near, b: _Near, records_a: Sequence[Traits], records_b: Sequence[Traits]) -> bool:
    """Whether a record that fits both people shows them to be one, given what their own records say.

    The record is of both unless they are two people, of whom it fits one by chance. That has the odds of the doubt in
    both links times those of the two people being two: it must be as seldom as a false link. No pair of their records
    may conflict, and one at least must be worth a steward's look, since a record between two people does not make them
    one.
    """
    limits = model.thresholds
    pairs = [(one, other) for one in records_a for other in records_b][:MAX_PAIRS]
    if any(hard_conflict(one, other) for one, other in pairs):
        return False
    alike = probability(max((model.weight(compare(one, other)) for one, other in pairs), default=-1000.0))
    doubt = (1 - probability(a.weight)) + (1 - probability(b.weight))
    return alike >= limits.review and doubt * (1 - alike) / alike <= 1 - limits.link


def _scored(model: Model, traits: Traits, near: _Near) -> Scored:
    score = model.score(compare(traits, near.traits))
    return Scored(
        record_id=near.record_id,
        person_id=near.person_id,
        probability=score.probability,
        weight=score.weight,
        agreements=tuple(Agreement(trait, level, round(bits, 3)) for trait, level, bits in score.contributions),
        conflict=near.conflict,
        same_as=score.match_class,
        rival=score.other_class,
    )
