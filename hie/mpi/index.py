"""Online matching: candidates through indexed keys in the database, scored against people, and the decision.

A person is all her records. Her score is that of her closest record, but a hard conflict with any record of hers
forbids linking (law L4). Blocks are read in key order and at most `BLOCK` rows each, the rarest first up to
`CANDIDATES` people, so that a popular key (a front desk's telephone) costs no more than any other. Works the same on
SQLite and PostgreSQL; the caller's transaction is used throughout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import sqlalchemy as sa

from hie.mpi.blocking import keys
from hie.mpi.comparison import compare, hard_conflict, identity_digest
from hie.mpi.demographics import Traits
from hie.mpi.model import Model, probability
from hie.mpi.tables_match import match_keys, match_traits

BLOCK = 100
CANDIDATES = 300
SHOWN = 20
"""People a decision keeps for review."""
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
        return decide(self.model, traits, near)

    def candidates(
        self, connection: sa.Connection, traits: Traits, limit: int, *, exclude: Collection[str] = ()
    ) -> list[Scored]:
        """One entry per person, best first, of those with a probability worth showing, `exclude` left out."""
        near = self._people(connection, traits, exclude, {})
        worth = [n for n in near[: max(0, limit)] if probability(n.weight) >= WORTH_SHOWING]
        return [_scored(self.model, traits, n) for n in worth]

    def store(self, connection: sa.Connection, record_id: str, person_id: str, traits: Traits) -> None:
        """Index a record under its person, in place of what was known of it."""
        self.remove(connection, record_id)
        rows = [{"key": key, "record_id": record_id, "person_id": person_id} for key in keys(traits)]
        if rows:
            connection.execute(match_keys.insert(), rows)
        connection.execute(
            match_traits.insert(), {"record_id": record_id, "person_id": person_id, "traits": traits.to_json()}
        )

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
        people = self._proposed(connection, traits, exclude)
        if not people:
            return []
        of_people = sa.select(match_traits).where(match_traits.c.person_id.in_(people))
        rows = [
            (r.record_id, r.person_id, r.traits) for r in connection.execute(of_people) if r.record_id not in exclude
        ]
        return closest(self.model, traits, ((r, p, _decoded(text)) for r, p, text in rows), apart)

    def _proposed(self, connection: sa.Connection, traits: Traits, exclude: Collection[str]) -> list[str]:
        wanted = keys(traits)
        if not wanted:
            return []
        blocks: dict[int, list[str]] = defaultdict(list)
        for row in connection.execute(*blocks_query(wanted)):
            if row.record_id not in exclude:
                blocks[row.key].append(row.person_id)
        people: dict[str, None] = {}
        for key in sorted(blocks, key=lambda k: (len(blocks[k]), wanted.index(k))):
            if len(people) < CANDIDATES:
                people.update(dict.fromkeys(blocks[key]))
        return list(people)[:CANDIDATES]


_LOCK = sa.text("SELECT pg_advisory_xact_lock(k) FROM unnest(CAST(:wanted AS bigint[])) AS k")


def blocks_query(wanted: Sequence[int]) -> tuple[sa.CompoundSelect[tuple[int, str, str]], dict[str, int]]:
    """The rows of each block, `BLOCK` at most, in one round trip; with its parameters."""
    return _blocks_statement(len(wanted)), {f"k{i}": key for i, key in enumerate(wanted)}


@lru_cache(maxsize=64)
def _blocks_statement(count: int) -> sa.CompoundSelect[tuple[int, str, str]]:
    columns = (match_keys.c.key, match_keys.c.record_id, match_keys.c.person_id)
    parts = [
        sa.select(
            sa.select(*columns)
            .where(match_keys.c.key == sa.bindparam(f"k{i}", type_=sa.BigInteger))
            .order_by(match_keys.c.record_id)
            .limit(BLOCK)
            .subquery()
        )
        for i in range(count)
    ]
    return sa.union_all(*parts)


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
    free = [n for n in worth if n.conflict is None and probability(n.weight) >= limits.link]
    clear = len(free) == 1 or (len(free) > 1 and free[0].weight - free[1].weight >= limits.margin)
    if clear and free[0] is worth[0]:
        return MatchDecision(Verdict.LINK, free[0].person_id, shown[0], shown, model.version)
    return MatchDecision(Verdict.REVIEW, None, shown[0], shown, model.version)


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
