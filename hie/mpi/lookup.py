"""Finding somebody by little: partial or misspelt names, a year that is a guess, a phone number, an address.

For people who search, never for linking. What was typed is widened to names that the exchange knows (by first letters,
one letter off, or sound) and to neighbouring years; each combination is one indexed key, each key gives at most a
block, and so the time is bounded however common a name is. Whoever is found is scored by the model as everybody is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import sqlalchemy as sa
from jellyfish import damerau_levenshtein_distance, jaro_winkler_similarity, metaphone
from sqlalchemy.dialects import postgresql, sqlite

from hie.core.database import after_commit
from hie.mpi.blocking import LOOKUP_PART, digest, lookup_rules
from hie.mpi.comparison import compare
from hie.mpi.demographics import Traits
from hie.mpi.index import Agreement, MatchIndex, Scored, read_blocks, read_traits
from hie.mpi.model import probability
from hie.mpi.nicknames import roots
from hie.mpi.tables_match import name_variants

SIMILAR_NAMES = 12
"""Most names that one typed name is widened to."""
MAX_KEYS, KEYS_A_QUERY = 180, 60
MAX_PEOPLE = 200
_SHORTEST_PREFIX = 2
_READ = 200
_LAST = "\U0010ffff"
_WITHIN, _OUTSIDE = 3.0, -6.0
"""Bits for a year of birth inside and outside of what was guessed: the guess spans about a tenth of a lifetime."""
_FLOOR = 0.7


@dataclass(frozen=True)
class Wanted:
    """Who is looked for; `years` is by how much the birth year of `traits` may be off."""

    traits: Traits
    years: int = 0


class NameBook:
    """Writes down how the names of records may be misspelt; remembers which ones are there already."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()

    def learn(self, connection: sa.Connection, traits: Traits) -> None:
        """Add these names; one that this process has seen in the table costs nothing."""
        named = (("family", traits.family), ("family", traits.former), ("given", traits.given))
        bears = {(kind, part) for kind, names in named for name in names for part in _parts(name)}
        new = sorted(bears - self._known)
        if not new:
            return
        there = {
            (kind, name)
            for kind, name in new
            if connection.execute(_IS_KNOWN, {"of_kind": kind, "of_name": name}).first() is not None
        }
        after_commit(connection, (self, *new), lambda: self._remember(new))
        rows = [
            {"kind": kind, "variant": variant, "name": name}
            for kind, name in new
            if (kind, name) not in there
            for variant in variants(name)
        ]
        if rows:
            connection.execute(_ADD_VARIANTS[connection.dialect.name], rows)

    def _remember(self, names: Iterable[tuple[str, str]]) -> None:
        """These are in the table for good."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        self._known.update(names)


_REMEMBERED = 200_000
_IS_KNOWN = sa.select(name_variants.c.name).where(
    name_variants.c.kind == sa.bindparam("of_kind"),
    name_variants.c.variant == sa.bindparam("of_name"),
    name_variants.c.name == sa.bindparam("of_name"),
)
_ADD_VARIANTS = {
    "postgresql": postgresql.insert(name_variants).on_conflict_do_nothing(),
    "sqlite": sqlite.insert(name_variants).on_conflict_do_nothing(),
}


def _parts(name: str) -> list[str]:
    """A name whole and its words, as `lookup_rules` makes keys of them."""
    words = [word for word in name.split() if len(word) > LOOKUP_PART]
    return list(dict.fromkeys([name.replace(" ", "")[:64], *words]))


def variants(name: str) -> list[str]:
    """What two spellings of a name have in common: itself, itself less a letter, its sound, its consonants."""
    found = {name: None}
    if len(name) > 3:
        found |= dict.fromkeys(name[:i] + name[i + 1 :] for i in range(min(len(name), 16)))
    if name.isascii() and (sound := metaphone(name)):
        found[f"~{sound}"] = None
    found[f"#{_consonants(name)}"] = None
    return list(found)


def _consonants(name: str) -> str:
    kept = name[:1] + "".join(c for c in name[1:] if c not in "aeiouyhw")
    return "".join(c for i, c in enumerate(kept) if i == 0 or c != kept[i - 1])


def similar(connection: sa.Connection, kind: str, typed: str) -> list[str]:
    """Names of the exchange that `typed` may stand for, the closest first."""
    typed = typed.replace(" ", "")
    if len(typed) < _SHORTEST_PREFIX and typed.isascii():
        return []
    shared = sa.select(name_variants.c.name).where(
        name_variants.c.kind == kind, name_variants.c.variant.in_(variants(typed))
    )
    starting = sa.select(name_variants.c.name).where(
        name_variants.c.kind == kind,
        name_variants.c.variant >= typed,
        name_variants.c.variant < typed + _LAST,
        name_variants.c.variant == name_variants.c.name,
    )
    found = {typed, *connection.scalars(shared.limit(_READ)), *connection.scalars(starting.limit(_READ))}
    if kind == "given":
        found.update(roots(typed))
    ranked = sorted(found, key=lambda name: (-_likeness(typed, name), name))
    return [name for name in ranked if _likeness(typed, name) >= _FLOOR][:SIMILAR_NAMES]


@lru_cache(maxsize=65536)
def _likeness(typed: str, name: str) -> float:
    if name == typed:
        return 2.0
    if name.startswith(typed) or name in roots(typed):
        return 1.5 - len(name) / 100
    return float(jaro_winkler_similarity(typed, name)) - 0.02 * damerau_levenshtein_distance(typed, name)


def find(
    connection: sa.Connection, index: MatchIndex, wanted: Wanted, limit: int, *, exclude: Collection[str] = ()
) -> list[Scored]:
    """People who may be meant, likeliest first; `exclude` are record ids that do not count."""
    people = index.proposed(connection, wanted.traits)
    keys = list(dict.fromkeys(digest(rule, value) for rule, value in _rules(connection, wanted)))[:MAX_KEYS]
    for start in range(0, len(keys), KEYS_A_QUERY):
        if len(people) >= MAX_PEOPLE:
            break
        rows = read_blocks(connection, keys[start : start + KEYS_A_QUERY])
        people = list(dict.fromkeys([*people, *(person_id for _, _, person_id in rows)]))
    if not people:
        return []
    best: dict[str, Scored] = {}
    for record_id, person_id, traits in read_traits(connection, people[: 2 * MAX_PEOPLE]):
        if record_id in exclude:
            continue
        scored = _scored(index, wanted, record_id, person_id, Traits.from_json(traits))
        known = best.get(person_id)
        if known is None or (-scored.weight, scored.record_id) < (-known.weight, known.record_id):
            best[person_id] = scored
    return sorted(best.values(), key=lambda s: (-s.weight, s.person_id))[:limit]


def _rules(connection: sa.Connection, wanted: Wanted) -> Iterator[tuple[str, str]]:
    """Keys to look under, the most telling first."""
    traits = wanted.traits
    families = _merged(similar(connection, "family", name) for name in traits.family[:2])
    givens = _merged(similar(connection, "given", name) for name in traits.given[:2])
    years = _years(wanted)
    yield from (("name", f"{given} {family}") for family in families for given in givens)
    yield from (("look-family-year", f"{family} {year}") for family in families[:6] for year in years)
    yield from (("look-given-year", f"{given} {year}") for given in givens[:6] for year in years)
    yield from lookup_rules(
        Traits(
            birth_date=traits.birth_date if not wanted.years else "", phones=traits.phones, addresses=traits.addresses
        )
    )
    yield from (("look-family", family) for family in families)
    yield from (("look-phone-end", ending) for number in traits.phones for ending in _one_digit_off(number[-7:]))


def _one_digit_off(digits: str) -> Iterator[str]:
    return (digits[:i] + d + digits[i + 1 :] for i in range(len(digits)) for d in "0123456789" if d != digits[i])


def _merged(groups: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _years(wanted: Wanted) -> list[str]:
    """The year, then its neighbours, the nearest first."""
    text = wanted.traits.birth_date[:4]
    if not text:
        return []
    offsets = sorted(range(-wanted.years, wanted.years + 1), key=abs)
    return [str(int(text) + offset) for offset in offsets]


def _scored(index: MatchIndex, wanted: Wanted, record_id: str, person_id: str, known: Traits) -> Scored:
    """The model's score of what was typed, with the beginnings of names and guessed years counted for what they are."""
    typed = wanted.traits
    begun = {trait: bits for trait in _WHOLE_NAME if (bits := _beginning(trait, typed, known))}
    if begun:
        typed = replace(typed, **dict.fromkeys(begun, ()))  # type: ignore[arg-type]
    extra = [Agreement(trait, "beginning", round(bits, 3)) for trait, bits in begun.items()]
    if wanted.years:
        typed = replace(typed, birth_date="")
        if known.birth_date:
            near = abs(int(known.birth_date[:4]) - int(wanted.traits.birth_date[:4])) <= wanted.years
            extra.append(Agreement("birth_date", *(("about", _WITHIN) if near else ("different", _OUTSIDE))))
    score = index.model.score(compare(typed, known))
    weight = score.weight + sum(a.weight for a in extra)
    said = [Agreement(trait, level, round(bits, 3)) for trait, level, bits in score.contributions]
    return Scored(record_id, person_id, probability(weight), weight, (*said, *extra))


def _beginning(trait: str, typed: Traits, known: Traits) -> float:
    """Bits for the beginning of a name that the record bears; 0 where a whole name was typed, or another."""
    mine, others = getattr(typed, trait), getattr(known, trait)
    if set(mine) & set(others):
        return 0.0
    pairs = [(m, o) for m in mine for o in others if len(m) >= _SHORTEST_PREFIX and o.startswith(m)]
    return max((_WHOLE_NAME[trait] * len(m) / len(o) for m, o in pairs), default=0.0)


_WHOLE_NAME = {"given": 4.0, "family": 6.0}
"""Bits that a whole name is worth about, of which its beginning gets its share."""
