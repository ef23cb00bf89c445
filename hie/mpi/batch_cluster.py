"""From pairs to people. A person is not a connected component: two clusters join when all their records together say
so, the weight of every pair between them counted, and never across a hard conflict.

Greedy correlation clustering by average linkage: within each component of likely pairs, the two clusters with the
highest mean weight join while that mean is above the threshold. Order of the records changes nothing (ties go by
record, and records are in the order of their ids).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Score = Callable[[npt.NDArray[np.int32], npt.NDArray[np.int32]], tuple[Weights, Bools]]

HIGH, LOW = 20.0, -20.0
"""Bits beyond which one pair says no more than another."""
LARGEST = 60
"""Records of a component whose every pair is weighed; a larger one is first cut at its weaker links."""


@dataclass(frozen=True)
class Clusters:
    """Per record the first record of its person, and the probability that it belongs there."""

    person: Ids
    probability: npt.NDArray[np.float64]


def components(size: int, i: npt.NDArray[np.int32], j: npt.NDArray[np.int32]) -> Ids:
    """The smallest record of each record's connected component."""
    label = np.arange(size)
    while True:
        low = np.minimum(label[i], label[j])
        before = label.copy()
        np.minimum.at(label, label[i], low)
        np.minimum.at(label, label[j], low)
        label = label[label]
        while not np.array_equal(label, label[label]):
            label = label[label]
        if np.array_equal(label, before):
            return label


def cluster(
    size: int,
    i: npt.NDArray[np.int32],
    j: npt.NDArray[np.int32],
    weights: Weights,
    conflict: Bools,
    score: Score,
    threshold: float,
) -> Clusters:
    """The people among `size` records, from candidate pairs and their bits; `score` weighs any further pairs."""
    person = np.arange(size)
    likely = np.flatnonzero((weights > threshold) & ~conflict)
    a, b, bits = i[likely], j[likely], weights[likely]
    limit = threshold
    inner: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Weights, Bools]] = []
    while len(a):
        label = components(size, a, b)
        counts = np.bincount(label, minlength=size)
        two = counts[label] == 2
        person[two] = label[two]
        members = np.flatnonzero((counts[label] > 2) & (counts[label] <= LARGEST))
        inner.append(_weigh(person, members, label, score, threshold))
        limit += 3.0
        keep = (counts[label[a]] > LARGEST) & (bits > limit)
        a, b, bits = a[keep], b[keep], bits[keep]
    i, j, weights, conflict = (np.concatenate(parts) for parts in zip((i, j, weights, conflict), *inner, strict=True))
    return Clusters(person, _belonging(person, i, j, weights))


def _weigh(
    person: Ids, members: Ids, label: Ids, score: Score, threshold: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Weights, Bools]:
    """Settle components of three and more: all their pairs are weighed, and those not of one mind are divided."""
    members = members[np.argsort(label[members], kind="stable")]
    starts = (
        np.flatnonzero(np.concatenate(([True], label[members[1:]] != label[members[:-1]]))) if len(members) else members
    )
    sizes = np.diff(np.append(starts, len(members)))
    first = np.repeat(
        np.arange(len(members)), np.repeat(sizes, sizes) - (np.arange(len(members)) - np.repeat(starts, sizes)) - 1
    )
    begin = np.searchsorted(first, np.arange(len(members)))
    second = first + 1 + np.arange(len(first)) - begin[first]
    i, j = members[first].astype(np.int32), members[second].astype(np.int32)
    weights, conflict = score(i, j)
    if not len(i):
        return i, j, weights, conflict
    of_component = begin[starts]
    doubtful = np.minimum.reduceat(np.where(conflict, -np.inf, weights), of_component) <= threshold
    unanimous = np.repeat(~doubtful, sizes)
    person[members[unanimous]] = label[members[unanimous]]
    for k in np.flatnonzero(doubtful).tolist():
        n, at = int(sizes[k]), int(of_component[k])
        pairs = slice(at, at + n * (n - 1) // 2)
        group = members[starts[k] : starts[k] + n]
        for cluster_ in _agglomerate(n, weights[pairs], conflict[pairs], threshold):
            person[group[cluster_]] = group[cluster_[0]]
    return i, j, weights, conflict


def _agglomerate(n: int, weights: Weights, conflict: Bools, threshold: float) -> list[list[int]]:
    """Average linkage of `n` records; `weights` of the pairs (0, 1), (0, 2), ... (n - 2, n - 1)."""
    total = np.zeros((n, n))
    upper = np.triu_indices(n, 1)
    total[upper] = np.where(conflict, -np.inf, np.clip(weights, LOW, HIGH) - threshold)
    total += total.T
    clusters = [[k] for k in range(n)]
    count = np.ones(n)
    np.fill_diagonal(total, -np.inf)
    while True:
        mean = total / np.outer(count, count)
        best = int(mean.argmax())
        a, b = sorted(divmod(best, n))
        if not mean[a, b] > 0:
            return [sorted(c) for c in clusters if c]
        clusters[a] += clusters[b]
        clusters[b] = []
        total[a] += total[b]
        total[:, a] = total[a]
        total[a, a] = -np.inf
        total[b] = total[:, b] = -np.inf
        count[a] += count[b]


def _belonging(
    person: Ids, i: npt.NDArray[np.int32], j: npt.NDArray[np.int32], weights: Weights
) -> npt.NDArray[np.float64]:
    """Per record the probability that it belongs to its person: by its closest record there; alone, that none is."""
    made = np.full(len(person), -np.inf)
    together = person[i] == person[j]
    np.maximum.at(made, i[together], weights[together].astype(np.float64))
    np.maximum.at(made, j[together], weights[together].astype(np.float64))
    probability = 1 / (1 + np.exp2(-np.clip(made, -500, 500)))
    alone = np.bincount(person, minlength=len(person))[person] == 1
    rival = np.full(len(person), -np.inf)
    np.maximum.at(rival, i, weights.astype(np.float64))
    np.maximum.at(rival, j, weights.astype(np.float64))
    made = np.where(alone, 1 / (1 + np.exp2(np.clip(rival, -500, 500))), probability)
    return made
