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
Score = Callable[[npt.NDArray[np.int32], npt.NDArray[np.int32]], tuple[Weights, Bools, Weights]]

HIGH, LOW = 20.0, -20.0
"""Bits beyond which one pair says no more than another."""
ENOUGH = 3.0
"""Times the bits of the prior that two records must be able to tell before the prior counts in full: it speaks against
a pair that has nothing to compare, and that is no evidence."""
OBJECTION = 0.6
"""Share of what two clusters can tell of each other that may speak against joining them: one record between two people
does not make them one."""
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
    prior: float,
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
        inner.append(_weigh(person, members, label, score, threshold, prior))
        limit += 3.0
        keep = (counts[label[a]] > LARGEST) & (bits > limit)
        a, b, bits = a[keep], b[keep], bits[keep]
    i, j, weights, conflict = (np.concatenate(parts) for parts in zip((i, j, weights, conflict), *inner, strict=True))
    return Clusters(person, _belonging(person, i, j, weights))


def _weigh(
    person: Ids, members: Ids, label: Ids, score: Score, threshold: float, prior: float
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
    weights, conflict, capacity = score(i, j)
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
        for cluster_ in _agglomerate(n, weights[pairs], conflict[pairs], capacity[pairs], threshold, prior):
            person[group[cluster_]] = group[cluster_[0]]
    return i, j, weights, conflict


def _agglomerate(
    n: int, weights: Weights, conflict: Bools, capacity: Weights, threshold: float, prior: float
) -> list[list[int]]:
    """Clusters of `n` records; `weights` of the pairs (0, 1), (0, 2), ... (n - 2, n - 1)."""
    upper = np.triu_indices(n, 1)
    force, mass = np.zeros((n, n)), np.zeros((n, n))
    told = np.minimum(1.0, capacity / (ENOUGH * max(1.0, -prior)))
    weights = weights - np.float32(prior) * (1 - told)
    bits = np.clip(weights, LOW, HIGH) - threshold
    against = np.zeros((n, n))
    force[upper] = np.where(conflict, -np.inf, bits * capacity)
    mass[upper] = capacity
    against[upper] = np.where(bits <= 0, capacity, 0.0)
    against += against.T
    force += force.T
    mass += mass.T
    np.fill_diagonal(force, -np.inf)
    np.fill_diagonal(mass, 1.0)
    clusters = [[k] for k in range(n)]
    while True:
        mean = np.where(against > OBJECTION * mass, -np.inf, force / mass)
        best = int(mean.argmax())
        a, b = sorted(divmod(best, n))
        if not mean[a, b] > 0:
            return [sorted(c) for c in clusters if c]
        clusters[a] += clusters[b]
        clusters[b] = []
        force[a] += force[b]
        mass[a] += mass[b]
        against[a] += against[b]
        force[:, a], mass[:, a], against[:, a] = force[a], mass[a], against[a]
        force[a, a] = -np.inf
        force[b] = force[:, b] = -np.inf
        mass[b] = mass[:, b] = 1.0


def _belonging(
    person: Ids, i: npt.NDArray[np.int32], j: npt.NDArray[np.int32], weights: Weights
) -> npt.NDArray[np.float64]:
    """Per record the probability that it belongs where it is: by its closest record there, against its closest
    record elsewhere; of a record alone, that it has none."""
    inside, outside = np.full(len(person), -np.inf), np.full(len(person), -np.inf)
    together = person[i] == person[j]
    for made, chosen in ((inside, together), (outside, ~together)):
        bits = weights[chosen].astype(np.float64)
        np.maximum.at(made, i[chosen], bits)
        np.maximum.at(made, j[chosen], bits)
    odds, rival = np.exp2(np.clip(inside, -500, 500)), np.exp2(np.clip(outside, -500, 500))
    alone = np.bincount(person, minlength=len(person))[person] == 1
    made = np.where(alone, 1.0, odds) / (1.0 + odds + rival)
    return np.asarray(made)
