"""Expectation-maximisation of the matching model on agreement patterns, without labels.

A pattern is one level per trait, the rarity of the agreeing names, and which traits may be learned from it; a few
thousand stand for millions of pairs. Left free, latent classes drift, so most of the model is held:

- `random` is anchored on random pairs of the same records, weighted by how little they look like one person;
- what a person keeps (given and middle name, birth date, sex, number) has one error rate in all match classes, and is
  in the non-match classes what the base model says, moved as far as chance agreement moved;
- a trait is learned only from pairs that some block rule proposed without presuming it;
- the base model is a prior of `PRIOR` pairs; several starts are tried and the likeliest kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hie.mpi.comparison import LEVELS, TRAITS
from hie.mpi.model import WITH_FREQUENCIES, Model
from hie.mpi.training import FLOORS

Floats = npt.NDArray[np.float64]

ROUNDS = 60
TRIAL_ROUNDS = 6
ANCHORED = 4
"""Rounds after which chance is anchored anew."""
SETTLED = 5e-4
"""Largest change of any share in a round that counts as settled."""
PRIOR = 100.0
"""Weight of the base model in each class, in pairs."""
RANDOM_PRIOR = 2_000.0
"""Weight of the base model in the class of random pairs."""
FLOOR = 1e-6
KEPT = ("given", "middle", "suffix", "birth_date", "sex", "ssn", "birth_order")
"""Traits that a person keeps: tied across the match classes."""
HELD = ("given", "middle", "suffix", "birth_date", "ssn", "birth_order")
"""Traits not learned in the non-match classes."""
LIKE_A_MATCH = {("twin", "birth_date"), ("namesake", "given"), ("namesake", "middle"), ("namesake", "suffix")}
"""Where two people agree as if they were one; the base model's shares stay."""


@dataclass(frozen=True)
class Patterns:
    """Distinct patterns: levels [pattern, trait] (0 no evidence), rarity [pattern, 2] in bits, learnable, pairs."""

    levels: npt.NDArray[np.int8]
    rarity: Floats
    learnable: npt.NDArray[np.bool_]
    counts: Floats


@dataclass(frozen=True)
class Fit:
    """Shares per trait as arrays [level, class], the number of pairs of each class, and how the fit went."""

    tables: list[Floats]
    sizes: Floats
    rounds: int
    settled: bool
    likelihood: float


def tables_of(model: Model) -> list[Floats]:
    """The model's shares per trait as arrays [level, class]."""
    names = [c.name for c in model.classes]
    return [np.array([[model.levels[t][level][n] for n in names] for level in LEVELS[t]]) for t in TRAITS]


def levels_of(tables: Sequence[Floats], model: Model) -> dict[str, dict[str, dict[str, float]]]:
    """The inverse of `tables_of`."""
    return {
        trait: {
            level: {c.name: round(max(FLOOR, float(table[i, k])), 9) for k, c in enumerate(model.classes)}
            for i, level in enumerate(LEVELS[trait])
        }
        for trait, table in zip(TRAITS, tables, strict=True)
    }


class _Shown:
    """Patterns as 0/1 columns, one for each level of each trait, so that a round is two products of matrices."""

    def __init__(self, patterns: Patterns) -> None:
        self.counts = patterns.counts
        self.rarity = patterns.rarity * np.log(2)
        shown = [
            patterns.levels[:, t][:, None] == np.arange(1, len(LEVELS[trait]) + 1) for t, trait in enumerate(TRAITS)
        ]
        self.levels = np.concatenate(shown, axis=1).astype(np.float32)
        self.learned = np.concatenate(
            [columns & patterns.learnable[:, t][:, None] for t, columns in enumerate(shown)], axis=1
        ).astype(np.float32)


def _of_one_sex(counted: Floats, tied: Floats) -> Floats:
    """The pairs of each class with one rate of different sexes for all; how many are women is each class's own."""
    same = LEVELS["sex"].index("different")
    women_and_men = counted[:same] + (tied[:same] + 1) / (tied[:same] + 1).sum()
    share = women_and_men / women_and_men.sum(axis=0) * tied[:same].sum()
    return np.vstack([share, np.repeat(tied[same:], counted.shape[1], axis=1)])


class Estimator:
    """Fits one file's patterns."""

    def __init__(self, base: Model, proposed: Patterns, at_random: Patterns, all_pairs: float, share: float) -> None:
        """`all_pairs` is the number of pairs there are in the file, `share` how much of the candidates was sampled."""
        self.base, self.proposed, self.at_random = base, _Shown(proposed), _Shown(at_random)
        names = [c.name for c in base.classes]
        self.match = np.array([c.match for c in base.classes])
        self.random = names.index("random")
        self.names = names
        self.share = share
        self.random_pairs = all_pairs * share
        self.by_chance = np.array([[c in base.chance[t] for c in names] for t in WITH_FREQUENCIES], dtype=float)
        self.before = tables_of(base)

    def fit(self) -> Fit:
        """The likeliest of several starts: each gets a few rounds, the best goes on."""
        begun = [self._run(self._begin(start), TRIAL_ROUNDS) for start in self._starts()]
        return self._run(max(begun, key=lambda fit: fit.likelihood), ROUNDS)

    def _starts(self) -> list[list[Floats]]:
        """The base model, and one that expects many more errors."""
        noisy = []
        for table in self.before:
            softer = table.copy()
            softer[:, self.match] = np.sqrt(table[:, self.match])
            noisy.append(softer / softer.sum(axis=0))
        return [self.before, noisy]

    def _begin(self, tables: list[Floats]) -> Fit:
        records = np.sqrt(2 * self.random_pairs / self.share)
        sizes = np.array([c.pairs * records / 2 for c in self.base.classes]) * self.share
        sizes[self.random] = self.random_pairs
        return Fit(self._anchor(tables, sizes), sizes, 0, False, -np.inf)

    def _run(self, fit: Fit, rounds: int) -> Fit:
        tables, sizes, settled, likelihood = fit.tables, fit.sizes, False, -np.inf
        for round_ in range(1, rounds + 1):
            weights, likelihood = self.responsibilities(self.proposed, tables, sizes)
            new = self._shares(weights, tables)
            sizes = weights.sum(axis=0) + 1.0
            sizes[self.random] = self.random_pairs
            if round_ % ANCHORED == 0:
                new = self._anchor(new, sizes)
            change = max(float(np.abs(a - b).max()) for a, b in zip(new, tables, strict=True))
            tables, settled = new, change < SETTLED
            if settled:
                break
        return Fit(self._anchor(tables, sizes), sizes, fit.rounds + round_, settled, likelihood + self._prior(tables))

    def responsibilities(self, shown: _Shown, tables: Sequence[Floats], sizes: Floats) -> tuple[Floats, float]:
        """Expected pairs [pattern, class], and the log-likelihood of all."""
        bits = np.asarray(shown.levels @ np.log(np.concatenate(tables)).astype(np.float32), float)
        bits += np.log(sizes) + shown.rarity @ self.by_chance
        top = bits.max(axis=1, keepdims=True)
        share = np.exp(bits - top)
        total = share.sum(axis=1, keepdims=True)
        likelihood = float((shown.counts * (np.log(total) + top)[:, 0]).sum() - sizes.sum())
        weights: Floats = share / total * shown.counts[:, None]
        return weights, likelihood

    def _counted(self, levels: npt.NDArray[np.float32], weights: Floats) -> list[Floats]:
        """Expected pairs per trait as arrays [level, class]."""
        sums = np.asarray(levels.T @ weights.astype(np.float32), float)
        return np.split(sums, np.cumsum([len(LEVELS[trait]) for trait in TRAITS])[:-1])

    def _anchor(self, tables: list[Floats], sizes: Floats) -> list[Floats]:
        """`random` from random pairs, as far as they are not of one person or household; the held traits follow."""
        everywhere = sizes / self.share
        everywhere[self.random] = self.random_pairs / self.share
        weights, _ = self.responsibilities(self.at_random, tables, everywhere)
        made = [table.copy() for table in tables]
        seen = self._counted(self.at_random.levels, weights[:, self.random, None])
        for t, trait in enumerate(TRAITS):
            counted = seen[t][:, 0]
            usual = self.before[t][:, self.random]
            chance = np.maximum((counted + RANDOM_PRIOR * usual) / (counted.sum() + RANDOM_PRIOR), FLOOR)
            chance = self._floored(trait, chance)
            made[t][:, self.random] = chance
            if trait not in HELD:
                continue
            for k, name in enumerate(self.names):
                if self.match[k] or k == self.random or (name, trait) in LIKE_A_MATCH:
                    continue
                moved = self.before[t][:, k] * chance / usual
                made[t][:, k] = np.maximum(moved / moved.sum(), FLOOR)
        return [table / table.sum(axis=0) for table in made]

    def _floored(self, trait: str, shares: Floats) -> Floats:
        least = FLOORS["random"].get(trait, {})
        made = np.maximum(shares, [least.get(level, FLOOR) for level in LEVELS[trait]])
        return np.asarray(made / made.sum())

    def _shares(self, weights: Floats, tables: Sequence[Floats]) -> list[Floats]:
        """The shares that these responsibilities support."""
        made = []
        for t, (trait, counted) in enumerate(zip(TRAITS, self._counted(self.proposed.learned, weights), strict=True)):
            if trait in KEPT:
                tied = counted[:, self.match].sum(axis=1, keepdims=True)
                counted[:, self.match] = tied if trait != "sex" else _of_one_sex(counted[:, self.match], tied)
            table = counted + PRIOR * self.before[t]
            table /= table.sum(axis=0, keepdims=True)
            if trait in HELD:
                table[:, ~self.match] = tables[t][:, ~self.match]
            table[:, self.random] = tables[t][:, self.random]
            made.append(np.maximum(table, FLOOR))
        return [table / table.sum(axis=0) for table in made]

    def _prior(self, tables: Sequence[Floats]) -> float:
        return float(sum((PRIOR * before * np.log(now)).sum() for before, now in zip(self.before, tables, strict=True)))
