"""The model of a file, learned from the file itself without labels (`hie.mpi.estimation` does the estimating)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hie.mpi import training
from hie.mpi.batch_blocks import Pairs, proposed_freely
from hie.mpi.batch_compare import Compared, Comparer, unpack
from hie.mpi.batch_score import Scorer
from hie.mpi.batch_traits import Codes, Columns
from hie.mpi.comparison import TRAITS
from hie.mpi.estimation import Estimator, Fit, Patterns, levels_of
from hie.mpi.model import WITH_FREQUENCIES, Culture, Frequencies, Model, PairClass

SAMPLED = 400_000
"""Candidate pairs that are learned from, and random pairs that anchor chance."""
FEW = 100
"""Records below which nothing is learned and the base model decides."""
BASE_NAMES = 2_000.0
"""Weight of the base model's name frequencies, in names."""


@dataclass(frozen=True)
class Learned:
    """The model of a file and how the fit went."""

    model: Model
    fit: Fit | None
    estimator: Estimator | None


def learn(columns: Columns, comparer: Comparer, pairs: Pairs, base: Model, provenance: Mapping[str, str]) -> Learned:
    """The model of these records; the base model itself, of this size, where they are too few to learn from."""
    size = len(columns)
    frequencies = frequencies_of(columns, base)
    known = replace(base, frequencies=frequencies)
    known = replace(known, culture=culture_of(columns, known))
    if size < FEW or not len(pairs):
        return Learned(
            _closed(known, known.levels, {c.name: c.pairs for c in base.classes}, size, provenance), None, None
        )
    rng = np.random.default_rng(1)
    at = np.arange(len(pairs)) if len(pairs) <= SAMPLED else np.sort(rng.choice(len(pairs), SAMPLED, replace=False))
    i, j = pairs.i[at], pairs.j[at]
    free = proposed_freely(pairs, i, j, TRAITS)
    proposed = patterns_of(comparer, known, i, j, free)
    a, b = (rng.integers(0, size, SAMPLED, dtype=np.int32) for _ in range(2))
    at_random = patterns_of(comparer, known, a[a != b], b[a != b], np.full(int((a != b).sum()), -1))
    estimator = Estimator(known, proposed, at_random, size * (size - 1) / 2, len(at) / len(pairs))
    fit = estimator.fit()
    per_record = {
        c.name: 2 * float(found) / estimator.share / size for c, found in zip(base.classes, fit.sizes, strict=True)
    }
    model = _closed(known, levels_of(fit.tables, known), per_record, size, provenance)
    return Learned(model, fit, estimator)


def _closed(
    base: Model,
    levels: Mapping[str, Mapping[str, Mapping[str, float]]],
    pairs: Mapping[str, float],
    size: int,
    provenance: Mapping[str, str],
) -> Model:
    """The model of a closed file: a stranger is one of its other records."""
    classes = tuple(
        PairClass(c.name, c.match, float(size) if c.name == "random" else max(float(f"{pairs[c.name]:.5g}"), 1e-7))
        for c in base.classes
    )
    return training.versioned(replace(base, classes=classes, levels=levels, provenance=dict(provenance)))


def patterns_of(comparer: Comparer, model: Model, i: Codes, j: Codes, free: npt.NDArray[np.int64]) -> Patterns:
    """The distinct patterns of pairs."""
    scorer = Scorer(model, comparer.columns.names)
    keys = np.empty(len(i), np.int64)

    def keep(part: slice, compared: Compared) -> None:
        keys[part] = _key(compared, scorer, free[part])

    comparer.compare_all(i, j, keep)
    rows, counts = np.unique(keys, return_counts=True)
    mask = (1 << len(TRAITS)) - 1
    learn = rows & mask
    rest = rows >> len(TRAITS)
    rarity = np.stack([(rest & 63) - 32, ((rest >> 6) & 63) - 32], axis=1).astype(float)
    levels = unpack((rest >> 12).astype(np.int32))
    return Patterns(levels, rarity, (learn[:, None] >> np.arange(len(TRAITS)) & 1).astype(bool), counts.astype(float))


def _key(compared: Compared, scorer: Scorer, free: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    key = compared.pattern.astype(np.int64)
    for trait, value in reversed((("given", compared.given), ("family", compared.family))):
        rarity = scorer.rarity[trait]
        bits = np.round(rarity[np.minimum(value, len(rarity) - 1)]).astype(np.int64)
        key = key << 6 | np.clip(np.where(value >= 0, bits, 0), -31, 31) + 32
    return key << len(TRAITS) | free & ((1 << len(TRAITS)) - 1)


def frequencies_of(columns: Columns, base: Model) -> dict[str, Frequencies]:
    """Shares of names in the file, pulled toward those of the base model where the file is small."""
    made = {}
    for trait, codes in zip(WITH_FREQUENCIES, (columns.given, columns.solid), strict=True):
        made[trait] = _frequencies(columns, codes, base.frequencies[trait])
    return made


def _frequencies(columns: Columns, codes: Codes, base: Frequencies) -> Frequencies:
    counts = np.bincount(codes[codes >= 0], minlength=len(columns.names)).astype(float)
    total = counts.sum() + BASE_NAMES
    seen = {str(columns.names[k]): counts[k] for k in np.flatnonzero(counts).tolist() if len(columns.names[k]) > 1}
    shares = {
        name: (seen.get(name, 0.0) + BASE_NAMES * base.values.get(name, 0.0)) / total
        for name in seen.keys() | base.values.keys()
    }
    listed = sorted((n for n in shares if shares[n] > base.otherwise), key=lambda n: (-shares[n], n))
    values = {name: float(f"{shares[name]:.3g}") for name in listed[: training.LISTED]}
    expected = float((np.array(list(shares.values())) ** 2).sum())
    return Frequencies(max(expected, 1e-6), base.otherwise, values)


BASE_CULTURE = 20.0
"""Weight of the base model's culture factor, in pairs expected by chance."""


def culture_of(columns: Columns, base: Model) -> Culture:
    """How much more often two strangers share a common given and a common family name than if names were independent.

    Counted on pairs of one name whose birth years and birthdays both differ: they are two people.
    """
    culture = base.culture
    common = []
    for trait, codes in zip(WITH_FREQUENCIES, (columns.given, columns.solid), strict=True):
        shares = np.array([*(base.frequencies[trait].share(name) >= culture.share for name in columns.names), False])
        common.append(shares[codes] & (codes >= 0))
    at = np.flatnonzero(common[0] & common[1] & (columns.day > 0))
    size = len(at)
    if size < 2:
        return culture
    given, family = columns.given[at].astype(np.int64), columns.solid[at].astype(np.int64)
    name = given << 32 | family
    year, day = columns.year[at].astype(np.int64), columns.month[at].astype(np.int64) * 32 + columns.day[at]
    apart = _equal_pairs(name) - _equal_pairs(name, year) - _equal_pairs(name, day) + _equal_pairs(name, year, day)
    different = 1 - _equal_pairs(year) / (size * (size - 1) / 2)
    independent = _equal_pairs(given) * _equal_pairs(family) / (size * (size - 1) / 2) * different
    factor = (apart + BASE_CULTURE * culture.factor) / (independent + BASE_CULTURE)
    return Culture(culture.share, float(f"{max(1.0, factor):.3g}"))


def _equal_pairs(*parts: npt.NDArray[np.int64]) -> float:
    """Pairs of rows that are equal in all parts."""
    key = parts[0]
    for part in parts[1:]:
        key = np.unique(key, return_inverse=True)[1] * (int(part.max()) + 1) + part
    counts = np.unique(key, return_counts=True)[1].astype(float)
    return float((counts * (counts - 1) / 2).sum())
