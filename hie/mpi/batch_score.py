"""What the pairs of a file weigh under a model: `Model.weight` over arrays, the same numbers to rounding."""

from __future__ import annotations

from dataclasses import replace
from math import log2

import numpy as np
import numpy.typing as npt

from hie.mpi.batch_compare import Compared, Comparer, unpack
from hie.mpi.batch_traits import Strings
from hie.mpi.estimation import Floats, tables_of
from hie.mpi.model import LOOKALIKES, WITH_FREQUENCIES, Model

Weights = npt.NDArray[np.float32]
Scored = tuple[Weights, npt.NDArray[np.bool_], Weights]
"""Bits of pairs, whether a hard conflict forbids each, and how much each can tell."""
HOPELESS = -12.0
"""Bits below which a pair is not looked at again."""


class Scorer:
    """Scores compared pairs; keeps the sums of each pattern."""

    def __init__(self, model: Model, names: Strings) -> None:
        self.model = model
        self.names = names
        self.match = np.array([c.match for c in model.classes])
        self.tables = [np.log2(np.vstack([np.ones((1, t.shape[1])), t])) for t in tables_of(model)]
        match = sum(c.pairs for c in model.classes if c.match)
        self.prior = log2(match) - log2(sum(c.pairs for c in model.classes) - match)
        self.priors = np.log2([c.pairs for c in model.classes])
        self.chance = {t: np.array([c.name in model.chance[t] for c in model.classes]) for t in WITH_FREQUENCIES}
        self.rarity, self.common = {}, {}
        codes = {name: k for k, name in enumerate(names)}
        for trait in WITH_FREQUENCIES:
            table = model.frequencies[trait]
            # a name beyond the vocabulary (given and middle name as one word) is as rare as any that is not listed
            shares = np.full(len(names) + 1, table.otherwise)
            for name, share in table.values.items():
                if name in codes:
                    shares[codes[name]] = max(share, table.otherwise)
            self.rarity[trait] = np.log2(shares / table.expected)
            self.common[trait] = shares >= model.culture.share

    def among_strangers(self, alone: float) -> Scorer:
        """The same where only this share of records has no other of its person, so that others count for less.

        Twins and namesakes count in full: they are there as often as before, and look like the person.
        """
        classes = tuple(
            c if c.match or c.name in LOOKALIKES else replace(c, pairs=c.pairs * alone) for c in self.model.classes
        )
        return Scorer(replace(self.model, classes=classes), self.names)

    def capacity(self, patterns: npt.NDArray[np.int32]) -> Weights:
        """How much each pair can tell at all, in bits."""
        distinct, inverse = np.unique(patterns, return_inverse=True)
        return self._capacity(distinct)[inverse]

    def _capacity(self, patterns: npt.NDArray[np.int32]) -> Weights:
        """Bits that the traits known of both would say, on average, if the two were one person."""
        known = unpack(patterns) > 0
        match = np.array([c.pairs if c.match else 0.0 for c in self.model.classes])
        random = [c.name for c in self.model.classes].index("random")
        made = np.full(len(patterns), 0.1, np.float32)
        for t, table in enumerate(tables_of(self.model)):
            agree = table @ match / match.sum()
            made += known[:, t] * np.float32((agree * np.log2(agree / table[:, random])).sum())
        return made

    def sums(self, patterns: npt.NDArray[np.int32]) -> Floats:
        """[pattern, class]: log2 of prior and level shares."""
        level = unpack(patterns)
        made = np.tile(self.priors, (len(patterns), 1))
        for t, table in enumerate(self.tables):
            made += table[level[:, t]]
        return made

    def odds(self, sums: Floats) -> Floats:
        """log2 of match over non-match."""
        top = sums.max(axis=1, keepdims=True)
        share = np.exp2(sums - top)
        match, other = share[:, self.match].sum(axis=1), share[:, ~self.match].sum(axis=1)
        made: Floats = np.log2(np.maximum(match, 1e-300)) - np.log2(np.maximum(other, 1e-300))
        return made

    def weights(self, compared: Compared) -> Weights:
        """Bits per pair."""
        distinct, inverse = np.unique(compared.pattern, return_inverse=True)
        sums = self.sums(distinct)
        # how high the rarest names could lift each pattern: most pairs need no closer look
        rarest = sums.copy()
        for trait in WITH_FREQUENCIES:
            rarest[:, self.chance[trait]] += min(0.0, float(self.rarity[trait].min()))
        made = self.odds(rarest).astype(np.float32)[inverse]
        at = np.flatnonzero(made > HOPELESS)
        exact = sums[inverse[at]]
        given, family = compared.given[at], compared.family[at]
        for trait, value in (("given", given), ("family", family)):
            known = value >= 0
            rare = self.rarity[trait][np.minimum(value[known], len(self.rarity[trait]) - 1)]
            exact[np.ix_(known, self.chance[trait])] += rare[:, None]
        both = (given >= 0) & (family >= 0)
        both &= self.common["given"][np.minimum(given, len(self.common["given"]) - 1)]
        both &= self.common["family"][np.minimum(family, len(self.common["family"]) - 1)]
        together = self.chance["given"] & self.chance["family"]
        exact[np.ix_(both, together)] += log2(self.model.culture.factor)
        made[at] = self.odds(exact)
        return made


def score_all(comparer: Comparer, scorer: Scorer, i: npt.NDArray[np.int32], j: npt.NDArray[np.int32]) -> Scored:
    """Bits of every pair, whether a hard conflict forbids it, and how much it can tell."""
    weights = np.empty(len(i), np.float32)
    conflict = np.zeros(len(i), bool)
    capacity = np.empty(len(i), np.float32)

    def keep(part: slice, compared: Compared) -> None:
        weights[part] = scorer.weights(compared)
        capacity[part] = scorer.capacity(compared.pattern)
        near = np.flatnonzero(weights[part] > HOPELESS)
        a, b = i[part][near].astype(np.intp), j[part][near].astype(np.intp)
        conflict[part][near] = comparer.conflicts(a, b, compared.pattern[near])

    comparer.compare_all(i, j, keep)
    return weights, conflict, capacity
