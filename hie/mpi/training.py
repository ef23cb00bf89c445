"""Where the model's numbers come from: unsupervised estimation from records, or counting where the truth is known.

`estimate` needs no labels. It fits the latent classes of `hie.mpi.model` by expectation-maximisation on the pairs that
blocking proposes (indexing by recordlinkage), from the parameters of a base model, which also act as a prior: a class
that the data does not support keeps its shape instead of drifting. Three things keep it honest: the class `random` is
anchored on random pairs and never learned from blocks; a trait is learned only from pairs that some rule proposed
without presuming it; value frequencies are the data's own.

`count` makes the default model from generated populations with known truth (`fixtures.populations`); the provenance in
the file says so. recordlinkage and pandas take a second to import and load here only when used.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from hie.core.errors import BadRequest, Unprocessable
from hie.mpi.blocking import RULES, rules
from hie.mpi.comparison import LEVELS, TRAITS, Comparison, compare
from hie.mpi.demographics import Traits
from hie.mpi.model import LOOKALIKES, WITH_FREQUENCIES, Culture, Frequencies, Model, PairClass, Thresholds
from hie.mpi.nicknames import registered_names

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MATCH_CLASSES = ("stable", "moved", "renamed")
OTHER_CLASSES = ("random", "household", "kin", "coresident", "twin", "namesake")
CLASSES = (*MATCH_CLASSES, *OTHER_CLASSES)
CHANCE = {
    "given": ("random", "household", "kin", "coresident", "twin"),
    "family": ("random", "coresident"),
}
"""Classes in which a shared name is coincidence, so that its frequency counts."""

POPULATION = 2_500_000
"""People among whom a stranger may resemble the patient, for a model that knows nothing of its exchange: a large
catchment area. A judgement on the careful side, and fixed: it is not the size of the index, so a decision does not
depend on how much was fed before."""
CULTURE = Culture(share=0.001, factor=8.0)
"""Common names of one culture go together: Harris County, Texas, counts far more Maria Garcias than independent names
would make. A judgement, until joint frequencies are learned."""
OTHERWISE = {"given": 1e-4, "family": 2e-5}
"""Assumed share of a name that no list has; on the careful side, since rare names cluster in communities."""
LISTED = 4000
"""Names kept in the model's frequency tables."""

FLOORS: dict[str, dict[str, dict[str, float]]] = {
    "random": {
        "ssn": {"exact": 2e-6, "near": 2e-6, "last-four": 1e-4},
        "phone": {"exact": 2e-5, "near": 2e-6},
        "email": {"personal": 2e-5, "shared": 1e-5, "near": 2e-6},
        "address": {"same": 3e-5, "other-unit": 2e-5, "other-zip": 1e-5, "near": 1e-5},
        "birth_date": {"exact": 4e-5, "swapped": 2e-5, "digit": 2e-4},
        "given": {"swapped": 1e-6, "nickname": 1e-4, "typo": 2e-4},
        "family": {"part": 1e-5, "typo": 2e-4},
    },
    "renamed": {"sex": {"male": 0.1}},
    "namesake": {"sex": {"female": 0.05}},
    "twin": {
        "given": {"nickname": 1e-4, "typo": 2e-3, "initial": 3e-2},
        "birth_order": {"unflagged": 0.7},
    },
}
"""Least shares, set by judgement where generated people are too tidy: front-desk telephones, borrowed social security
numbers, a practice's one e-mail, members that never record a multiple birth, men who change their name, and mothers
whose daughters bear theirs."""
FLOOR = 1e-6
PRIOR_PAIRS = 30.0
"""Weight of the fallback where a class has few pairs, in pairs."""


@dataclass(frozen=True)
class Truth:
    """Who a record is of, and what was true when it was typed; a row of the truth file that `count` reads."""

    record_id: str
    person_id: str
    kin_id: str
    residence_id: str
    surname: str
    multiple_id: str
    namesake_id: str


def pair_class(a: Truth, b: Truth) -> str:
    """The latent class that a pair truly belongs to."""
    if a.person_id == b.person_id:
        if a.surname != b.surname:
            return "renamed"
        return "stable" if a.residence_id == b.residence_id else "moved"
    if a.multiple_id and a.multiple_id == b.multiple_id:
        return "twin"
    if a.namesake_id and a.namesake_id == b.namesake_id:
        return "namesake"
    same_home = a.residence_id == b.residence_id
    if a.kin_id == b.kin_id:
        return "household" if same_home else "kin"
    return "coresident" if same_home else "random"


# ------------------------------------------------------------------------------------------------------ known truth


def count(
    populations: Sequence[tuple[Sequence[Traits], Sequence[Truth]]],
    provenance: Mapping[str, str],
    *,
    random_pairs: int = 600_000,
) -> Model:
    """The model whose level probabilities are the shares counted over all pairs of each true class."""
    counts: dict[str, dict[str, Counter[str]]] = {name: {trait: Counter() for trait in TRAITS} for name in CLASSES}
    pairs: Counter[str] = Counter()
    records = 0
    for traits, truth in populations:
        records += len(traits)
        for i, j, name in _true_pairs(truth, random_pairs // len(populations)):
            pairs[name] += 1
            for trait, level in zip(TRAITS, compare(traits[i], traits[j]).levels, strict=True):
                if level is not None:
                    counts[name][trait][level] += 1
    levels = {trait: _shares(trait, {name: counts[name][trait] for name in CLASSES}) for trait in TRAITS}
    return _model(
        levels,
        {name: 2 * pairs[name] / records for name in CLASSES if name != "random"},
        _frequencies([t for traits, _ in populations for t in traits], levels, {}),
        provenance,
        Thresholds(),
        POPULATION,
    )


def _true_pairs(truth: Sequence[Truth], random_pairs: int) -> Iterable[tuple[int, int, str]]:
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, row in enumerate(truth):
        for kind in ("person_id", "kin_id", "residence_id"):
            groups[kind, getattr(row, kind)].append(i)
    related = {pair for members in groups.values() for pair in combinations(members, 2)}
    for i, j in sorted(related):
        name = pair_class(truth[i], truth[j])
        if name != "random":
            yield i, j, name
    rng = random.Random(1)  # noqa: S311  (sampling, not security)
    for _ in range(random_pairs):
        i, j = rng.sample(range(len(truth)), 2)
        if pair_class(truth[i], truth[j]) == "random":
            yield i, j, "random"


def _shares(trait: str, counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, float]]:
    """level -> class -> share; classes with few pairs lean on the pooled match pairs or on random ones."""
    at_random = _smoothed(trait, counts["random"], dict.fromkeys(LEVELS[trait], FLOOR), 1.0)
    at_random = _floored(trait, "random", at_random)
    pooled = _smoothed(trait, sum((counts[name] for name in MATCH_CLASSES), Counter()), at_random, 5.0)
    shares = {
        name: at_random
        if name == "random"
        else _smoothed(trait, counts[name], pooled if name in MATCH_CLASSES else at_random, PRIOR_PAIRS)
        for name in counts
    }
    shares = {name: _floored(trait, name, of_class) for name, of_class in shares.items()}
    return {level: {name: round(shares[name][level], 9) for name in counts} for level in LEVELS[trait]}


def _smoothed(
    trait: str, counts: Mapping[str, float], fallback: Mapping[str, float], weight: float
) -> dict[str, float]:
    total = sum(counts.values()) + weight * sum(fallback.values())
    return _normal(
        {level: max(FLOOR, (counts.get(level, 0) + weight * fallback[level]) / total) for level in LEVELS[trait]}
    )


def _floored(trait: str, name: str, shares: Mapping[str, float]) -> dict[str, float]:
    least = FLOORS.get(name, {}).get(trait, {})
    return _normal({level: max(share, least.get(level, FLOOR)) for level, share in shares.items()})


def _normal(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    return {level: share / total for level, share in shares.items()}


def _frequencies(
    records: Sequence[Traits], levels: Mapping[str, Mapping[str, Mapping[str, float]]], base: Mapping[str, Frequencies]
) -> dict[str, Frequencies]:
    """Shares of names, pulled toward those of the base model (or the registered given names) where data is thin."""
    made = {}
    for trait in WITH_FREQUENCIES:
        seen = Counter(name.replace(" ", "") for record in records for name in getattr(record, trait) if len(name) > 1)
        known = dict(base[trait].values) if trait in base else _registered(trait)
        total, weight = sum(seen.values()), 20_000.0 if known else 0.0
        shares = {
            name: (seen[name] + weight * known.get(name, 0.0)) / (total + weight) for name in seen.keys() | known.keys()
        }
        listed = sorted((n for n in shares if shares[n] > OTHERWISE[trait]), key=lambda n: (-shares[n], n))[:LISTED]
        values = {name: float(f"{shares[name]:.3g}") for name in listed}
        made[trait] = Frequencies(levels[trait]["exact"]["random"], OTHERWISE[trait], values)
    return made


def _registered(trait: str) -> dict[str, float]:
    return {name: n / 1e6 for name, n in registered_names().items()} if trait == "given" else {}


def _model(
    levels: Mapping[str, Mapping[str, Mapping[str, float]]],
    pairs: Mapping[str, float],
    frequencies: Mapping[str, Frequencies],
    provenance: Mapping[str, str],
    thresholds: Thresholds,
    population: int,
) -> Model:
    classes = tuple(
        PairClass(name, name in MATCH_CLASSES, population if name == "random" else round(max(pairs[name], 1e-4), 5))
        for name in CLASSES
    )
    chance = {trait: CHANCE.get(trait, ()) for trait in TRAITS}
    model = Model("", provenance, thresholds, classes, levels, chance, frequencies, CULTURE)
    return versioned(model)


def versioned(model: Model) -> Model:
    """The model named after its content."""
    body = replace(model, version="").to_json()
    return replace(model, version=hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12])


# --------------------------------------------------------------------------------------------------------- unlabelled

MIN_RECORDS = 500
MAX_PAIRS = 400_000
BLOCK_LIMIT = 100
ROUNDS = 60
SETTLED = 1e-4
"""Largest change of any share in a round that counts as settled."""
BASE_PAIRS = 200.0
"""Weight of the base model in each class, in pairs."""


@dataclass(frozen=True)
class Trained:
    """A fitted model and what it expects of itself on the data."""

    model: Model
    records: int
    pairs: int
    rounds: int
    settled: bool
    links: float
    """Expected share of true pairs among those above the link threshold (estimated precision)."""
    found: float
    """Expected share of all true pairs among those compared that lie above it (estimated recall)."""


def estimate(
    records: Sequence[Traits],
    base: Model,
    provenance: Mapping[str, str],
    *,
    population: int | None = None,
    seed: int = 1,
) -> Trained:
    """The model of these records, without labels.

    How likely it is before any comparison that two records are of one person is learned as well: by the true pairs
    found among all pairs there are. That holds for all records of an exchange; not where all records of a few people
    were chosen, whom strangers resemble less often than they will later. `population` then says how many people
    (`POPULATION`, say) a stranger comes from.

    Raises BadRequest for too few records, Unprocessable when nothing can be learned from them.
    """
    import numpy as np

    if len(records) < MIN_RECORDS:
        raise BadRequest(f"Training needs at least {MIN_RECORDS} records, and here are {len(records)}.")
    rng = random.Random(seed)  # noqa: S311
    pairs, share = _candidate_pairs(records, rng)
    levels = _anchored(records, base, rng)
    frequencies = _frequencies(records, levels, base.frequencies)
    anchored = replace(base, levels=levels, frequencies=frequencies)
    data = _Patterns(anchored, records, pairs)
    names = [c.name for c in base.classes]
    # The number of pairs of each class in this file: at random all the pairs there are, the others to be learned.
    sizes = np.array([c.pairs * len(records) / 2 for c in base.classes]) * share
    sizes[names.index("random")] = len(records) * (len(records) - 1) / 2 * share
    tables = data.tables(levels)
    prior = [table * BASE_PAIRS for table in tables]
    settled, rounds = False, 0
    while rounds < ROUNDS and not settled:
        rounds += 1
        weights = data.responsibilities(tables, sizes)
        new = data.shares(weights, prior, tables, names.index("random"))
        learned = weights.sum(axis=0)
        learned[names.index("random")] = sizes[names.index("random")]
        sizes = learned + 1.0
        settled = max(float(np.abs(a - b).max()) for a, b in zip(new, tables, strict=True)) < SETTLED
        tables = new
    shares = _least(data.levels(tables, names), base)
    _refuse_degenerate(shares)
    per_record = {
        c.name: max(2 * float(size) / share / len(records), _fewest(c))
        for c, size in zip(base.classes, sizes, strict=True)
    }
    model = _model(shares, per_record, frequencies, provenance, base.thresholds, population or len(records))
    links, found = data.expectations(model, len(records) / 2 * share)
    return Trained(model, len(records), len(pairs), rounds, settled, links, found)


def _fewest(base: PairClass) -> float:
    """Blocking proposes few kin and neighbours, and few files have many twins: the careful side is not to believe that
    there are none."""
    if base.match:
        return 0.0
    return base.pairs if base.name in LOOKALIKES else base.pairs / 2


def _least(
    shares: Mapping[str, Mapping[str, Mapping[str, float]]], base: Model
) -> dict[str, dict[str, dict[str, float]]]:
    """No share below its floor: a file without such people does not show that there are none.

    And who abbreviates given names does so whichever twin it is, so that the twins' share rises with the others'.
    """
    names = [c.name for c in base.classes]
    made = {}
    for trait, levels in shares.items():
        of_class = {name: {level: levels[level][name] for level in levels} for name in names}
        if trait == "given":
            habit = of_class["stable"]["initial"] / base.levels["given"]["initial"]["stable"]
            of_twins = of_class["twin"]
            of_twins["initial"] = max(of_twins["initial"], habit * base.levels["given"]["initial"]["twin"])
        of_class = {name: _floored(trait, name, of_class[name]) for name in names}
        made[trait] = {level: {name: round(of_class[name][level], 9) for name in names} for level in levels}
    return made


def _refuse_degenerate(shares: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """The classes must still mean what they are called."""
    stable = {trait: shares[trait]["exact"]["stable"] for trait in ("given", "family", "birth_date")}
    if min(stable.values()) < 0.5:
        raise Unprocessable(
            "These records do not tell people apart well enough to learn from; keep the model that is in use."
        )


def _candidate_pairs(records: Sequence[Traits], rng: random.Random) -> tuple[list[tuple[int, int, int]], float]:
    """(i, j, bits of the traits that may be learned from the pair), and the share of all candidates that was kept."""
    import pandas as pd
    import recordlinkage

    first: list[dict[str, str]] = [dict(reversed(list(rules(record)))) for record in records]
    found: dict[tuple[int, int], int] = defaultdict(int)
    for rule, presumed in RULES.items():
        column = pd.Series([values.get(rule) for values in first], dtype=object)
        sizes = column.map(column.value_counts())
        frame = pd.DataFrame({rule: column.where(sizes <= BLOCK_LIMIT)}).dropna()
        if frame.empty:
            continue
        index = recordlinkage.Index()
        index.block(rule)
        free = sum(1 << t for t, trait in enumerate(TRAITS) if trait not in presumed)
        for i, j in index.index(frame):
            found[min(i, j), max(i, j)] |= free
    pairs = sorted((i, j, free) for (i, j), free in found.items())
    if not pairs:
        raise Unprocessable("No two of these records resemble each other, so there is nothing to learn from.")
    kept = min(1.0, MAX_PAIRS / len(pairs))
    return (pairs if kept == 1.0 else sorted(rng.sample(pairs, MAX_PAIRS))), kept


def _anchored(
    records: Sequence[Traits], base: Model, rng: random.Random, samples: int = 100_000
) -> dict[str, dict[str, dict[str, float]]]:
    """The base model's levels with the class `random` from random pairs of these records."""
    counts: dict[str, Counter[str]] = {trait: Counter() for trait in TRAITS}
    for _ in range(samples):
        i, j = rng.sample(range(len(records)), 2)
        for trait, level in zip(TRAITS, compare(records[i], records[j]).levels, strict=True):
            if level is not None:
                counts[trait][level] += 1
    made = {}
    for trait in TRAITS:
        before = {level: base.levels[trait][level]["random"] for level in LEVELS[trait]}
        at_random = _smoothed(trait, counts[trait], before, 20_000.0)
        at_random = _floored(trait, "random", at_random)
        made[trait] = {level: {**base.levels[trait][level], "random": at_random[level]} for level in LEVELS[trait]}
    return made


class _Patterns:
    """Distinct agreement patterns with how many pairs show each: a fraction of the pairs, the same estimate.

    A pattern is one level per trait, the rarity of agreeing names in whole bits, and the traits that may be learned.
    """

    def __init__(self, model: Model, records: Sequence[Traits], pairs: Sequence[tuple[int, int, int]]) -> None:
        import numpy as np

        self.model = model
        self.codes = {t: {None: 0, **{level: i + 1 for i, level in enumerate(LEVELS[t])}} for t in TRAITS}
        rows = [self._row(compare(records[i], records[j]), free) for i, j, free in pairs]
        distinct, counts = np.unique(np.array(rows, dtype=np.int32), axis=0, return_counts=True)
        self.counts: Floats = counts.astype(float)
        self.given_levels = distinct[:, : len(TRAITS)]
        self.rarity = distinct[:, len(TRAITS) : len(TRAITS) + len(WITH_FREQUENCIES)].astype(float)
        free = distinct[:, -1]
        self.learnable = np.array([(free >> t) & 1 for t in range(len(TRAITS))], dtype=float).T

    def _row(self, found: Comparison, free: int) -> list[int]:
        from math import log2

        values = {"given": found.given, "family": found.family}
        rarity = []
        for trait in WITH_FREQUENCIES:
            table = self.model.frequencies[trait]
            rarity.append(round(log2(table.share(values[trait]) / table.expected)) if values[trait] else 0)
        levels = [self.codes[t][level] for t, level in zip(TRAITS, found.levels, strict=True)]
        return [*levels, *rarity, free]

    def tables(self, levels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Floats]:
        """Per trait an array [level, class]."""
        import numpy as np

        names = [c.name for c in self.model.classes]
        return [np.array([[levels[t][level][n] for n in names] for level in LEVELS[t]]) for t in TRAITS]

    def levels(self, tables: Sequence[Floats], names: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
        """The inverse of `tables`."""
        return {
            trait: {
                level: {name: round(max(FLOOR, float(table[i, k])), 9) for k, name in enumerate(names)}
                for i, level in enumerate(LEVELS[trait])
            }
            for trait, table in zip(TRAITS, tables, strict=True)
        }

    def responsibilities(self, tables: Sequence[Floats], sizes: Floats) -> Floats:
        """[pattern, class]: expected numbers of pairs."""
        import numpy as np

        bits = np.tile(np.log2(sizes), (len(self.counts), 1))
        for t, table in enumerate(tables):
            padded = np.vstack([np.ones((1, table.shape[1])), table])
            bits += np.log2(padded)[self.given_levels[:, t]]
        for k, trait in enumerate(WITH_FREQUENCIES):
            by_chance = np.array([c.name in self.model.chance[trait] for c in self.model.classes], dtype=float)
            bits += np.outer(self.rarity[:, k], by_chance)
        share = np.exp2(bits - bits.max(axis=1, keepdims=True))
        weighted: Floats = share / share.sum(axis=1, keepdims=True) * self.counts[:, None]
        return weighted

    def shares(self, weights: Floats, prior: Sequence[Floats], before: Sequence[Floats], anchored: int) -> list[Floats]:
        """The level probabilities that these responsibilities support."""
        import numpy as np

        made = []
        for t, trait in enumerate(TRAITS):
            learned = weights * self.learnable[:, t][:, None]
            sums = np.zeros((len(LEVELS[trait]) + 1, weights.shape[1]))
            np.add.at(sums, self.given_levels[:, t], learned)
            table = sums[1:] + prior[t]
            table /= table.sum(axis=0, keepdims=True)
            table[:, anchored] = before[t][:, anchored]
            made.append(table)
        return made

    def expectations(self, model: Model, scale: float) -> tuple[float, float]:
        """Estimated precision and recall of a model at its link threshold among the pairs compared; `scale` makes its
        pairs per record a number of pairs."""
        import numpy as np

        sizes = np.array([c.pairs for c in model.classes]) * scale
        weights = self.responsibilities(self.tables(model.levels), sizes)
        match = weights[:, [i for i, c in enumerate(model.classes) if c.match]].sum(axis=1)
        above = match / self.counts >= model.thresholds.link
        linked = float(self.counts[above].sum())
        return (float(match[above].sum()) / linked if linked else 1.0), float(match[above].sum() / match.sum())


def summary(trained: Trained) -> dict[str, Any]:
    """What `hie mpi train` prints."""
    return {
        "version": trained.model.version,
        "records": trained.records,
        "pairs": trained.pairs,
        "rounds": trained.rounds,
        "settled": trained.settled,
        "estimated_precision": round(trained.links, 5),
        "estimated_recall": round(trained.found, 4),
    }
