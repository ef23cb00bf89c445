"""What agreement is worth: a Fellegi-Sunter model with several kinds of match and of non-match, and its file. Pure.

A pair of records belongs to one latent class: the same person (unchanged, moved, renamed) or two people (at random, of
one household, kin elsewhere, sharing a residence, twins, namesakes such as father and junior). Two classes alone would
call family members matches, since they share surname, address and telephone. Given the class, traits are independent;
the posterior of "same person" is the share of the match classes. After I. Fellegi and A. Sunter, "A Theory for Record
Linkage" (1969); value frequencies after W. Winkler.

The file is JSON, the same for the online index, batch and training:

    format        "hie-match-model/1"
    version       names this model in every decision
    provenance    how it was made: text values, for people
    thresholds    link: probability from which records link by themselves (0.999: fewer than 1 false in 1,000)
                  review: probability from which a steward is asked
                  margin: bits by which the best person must lead another one above `link`
    classes       [{name, match, pairs}]: `pairs` is the expected number of pairs of this class per record; for the
                  class `random` how many a stranger may be: the records learned from, or a population by judgement
    traits        {trait: {chance: [class...], levels: {level: {class: probability}}}}: traits and levels exactly those
                  of `hie.mpi.comparison.LEVELS`; over the levels of a trait each class sums to 1. In the classes under
                  `chance` agreement is coincidence, so that the value's own frequency takes part
    frequencies   {given|family: {expected, otherwise, values: {value: share}}}: `expected` is the chance that two
                  random records share a value, `otherwise` the share of a value that is not listed
    culture       {share, factor}: where given and family name agree and both are at least so common, agreeing by chance
                  is `factor` times as likely as if the names were independent
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import log2
from pathlib import Path
from typing import Any

from hie.core.errors import ConfigurationError
from hie.mpi.comparison import LEVELS, TRAITS, Comparison, Levels

FORMAT = "hie-match-model/1"
DEFAULT_PATH = Path(__file__).with_name("models") / "default.json"
WITH_FREQUENCIES = ("given", "family")
LOOKALIKES = ("twin", "namesake")
"""Classes of two people that look like one."""


@dataclass(frozen=True)
class PairClass:
    """A kind of pair; `pairs` are expected per record."""

    name: str
    match: bool
    pairs: float


@dataclass(frozen=True)
class Thresholds:
    """Probabilities from which a pair links or is reviewed, and the lead in bits over a second person."""

    link: float = 0.999
    review: float = 0.2
    margin: float = 10.0


CERTAINTY_OF_FILES = 2 / 3
"""Probability from which the records of a file are one person, unless told otherwise: linking two people is worse than
missing a link, and a file has nobody to ask."""


@dataclass(frozen=True)
class Frequencies:
    """Shares of a trait's values."""

    expected: float
    otherwise: float
    values: Mapping[str, float]

    def share(self, value: str) -> float:
        return max(self.values.get(value, 0.0), self.otherwise)


@dataclass(frozen=True)
class Culture:
    """Names that go together."""

    share: float
    factor: float


@dataclass(frozen=True)
class Score:
    """`weight` is the log2 odds of "the same person", `contributions` a part of it per trait in bits.

    Contributions compare the likeliest match class with the likeliest other one (`match_class`, `other_class`).
    """

    weight: float
    probability: float
    match_class: str
    other_class: str
    contributions: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Model:
    """The parameters; `hie.mpi.training` makes them."""

    version: str
    provenance: Mapping[str, str]
    thresholds: Thresholds
    classes: tuple[PairClass, ...]
    levels: Mapping[str, Mapping[str, Mapping[str, float]]]
    """trait -> level -> class -> probability"""
    chance: Mapping[str, tuple[str, ...]]
    frequencies: Mapping[str, Frequencies]
    culture: Culture

    def weight(self, comparison: Comparison) -> float:
        """The log2 odds that both records are of one person."""
        return self._odds(self._sums(comparison))

    def score(self, comparison: Comparison) -> Score:
        """The weight with its reasons."""
        sums = self._sums(comparison)
        weight = self._odds(sums)
        best = max(self._matches, key=sums.__getitem__)
        rival = max(self._others, key=sums.__getitem__)
        contributions = tuple(
            (trait, level, bits[best] - bits[rival]) for trait, level, bits in self._evidence(comparison)
        )
        names = [c.name for c in self.classes]
        return Score(weight, probability(weight), names[best], names[rival], contributions)

    def _sums(self, comparison: Comparison) -> list[float]:
        sums = self._pattern(comparison.levels)
        if comparison.given:
            sums = self._adjusted(sums, "given", comparison.given)
        if comparison.family:
            sums = self._adjusted(sums, "family", comparison.family)
        return self._together(sums, comparison)

    def _evidence(self, comparison: Comparison) -> list[tuple[str, str, list[float]]]:
        found = []
        for trait, table, level in zip(TRAITS, self._tables, comparison.levels, strict=True):
            if level is None or level == "unflagged":
                continue
            bits = list(table[level])
            value = {"given": comparison.given, "family": comparison.family}.get(trait, "")
            bits = self._adjusted(bits, trait, value) if value else bits
            found.append((trait, level, self._together(bits, comparison) if trait == "family" else bits))
        return found

    def _together(self, sums: list[float], comparison: Comparison) -> list[float]:
        values = {"given": comparison.given, "family": comparison.family}
        if not all(v and self.frequencies[t].share(v) >= self.culture.share for t, v in values.items()):
            return sums
        bits = log2(self.culture.factor)
        by_chance = zip(sums, self._by_chance["given"], self._by_chance["family"], strict=True)
        return [total + bits if given and family else total for total, given, family in by_chance]

    def _adjusted(self, sums: list[float], trait: str, value: str) -> list[float]:
        """Where agreement is coincidence it is the likelier, the commoner the value."""
        bits = self._rarity[trait](value)
        return [
            total + bits if by_chance else total for total, by_chance in zip(sums, self._by_chance[trait], strict=True)
        ]

    def _odds(self, sums: list[float]) -> float:
        top = max(sums)
        match = sum(2.0 ** (sums[i] - top) for i in self._matches)
        other = sum(2.0 ** (sums[i] - top) for i in self._others)
        return log2(max(match, 1e-300)) - log2(max(other, 1e-300))

    @cached_property
    def _matches(self) -> tuple[int, ...]:
        return tuple(i for i, c in enumerate(self.classes) if c.match)

    @cached_property
    def _others(self) -> tuple[int, ...]:
        return tuple(i for i, c in enumerate(self.classes) if not c.match)

    @cached_property
    def _priors(self) -> list[float]:
        return [log2(c.pairs) for c in self.classes]

    @cached_property
    def _tables(self) -> tuple[dict[str, tuple[float, ...]], ...]:
        return tuple(
            {level: tuple(log2(shares[c.name]) for c in self.classes) for level, shares in self.levels[trait].items()}
            for trait in TRAITS
        )

    @cached_property
    def _pattern(self) -> Callable[[Levels], list[float]]:
        """Log2 of prior and level probabilities per class; few patterns stand for most pairs."""

        @lru_cache(maxsize=65536)
        def sums(levels: Levels) -> list[float]:
            known = [table[level] for table, level in zip(self._tables, levels, strict=True) if level is not None]
            return [sum(bits) for bits in zip(self._priors, *known, strict=True)]

        return sums

    @cached_property
    def _by_chance(self) -> dict[str, tuple[bool, ...]]:
        return {trait: tuple(c.name in self.chance[trait] for c in self.classes) for trait in WITH_FREQUENCIES}

    @cached_property
    def _rarity(self) -> dict[str, Callable[[str], float]]:
        def of(table: Frequencies) -> Callable[[str], float]:
            return lru_cache(maxsize=65536)(lambda value: log2(table.share(value) / table.expected))

        return {trait: of(self.frequencies[trait]) for trait in WITH_FREQUENCIES}

    # the file

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            "provenance": dict(self.provenance),
            "thresholds": vars(self.thresholds),
            "classes": [vars(c) for c in self.classes],
            "traits": {trait: {"chance": list(self.chance[trait]), "levels": self.levels[trait]} for trait in TRAITS},
            "frequencies": {
                trait: {"expected": f.expected, "otherwise": f.otherwise, "values": dict(f.values)}
                for trait, f in self.frequencies.items()
            },
            "culture": vars(self.culture),
        }

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, body: Any) -> Model:
        """Checks everything that scoring relies on; raises ConfigurationError with one line."""
        try:
            model = cls(
                version=str(body["version"]),
                provenance={str(k): str(v) for k, v in body["provenance"].items()},
                thresholds=Thresholds(**{k: float(v) for k, v in body["thresholds"].items()}),
                classes=tuple(
                    PairClass(str(c["name"]), c["match"] is True, float(c["pairs"])) for c in body["classes"]
                ),
                levels={t: {k: dict(v) for k, v in body["traits"][t]["levels"].items()} for t in TRAITS},
                chance={t: tuple(body["traits"][t]["chance"]) for t in TRAITS},
                frequencies={
                    t: Frequencies(
                        float(body["frequencies"][t]["expected"]),
                        float(body["frequencies"][t]["otherwise"]),
                        {str(k): float(v) for k, v in body["frequencies"][t]["values"].items()},
                    )
                    for t in WITH_FREQUENCIES
                },
                culture=Culture(float(body["culture"]["share"]), float(body["culture"]["factor"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"The match model lacks or misspells {error}.") from None
        if body.get("format") != FORMAT:
            raise ConfigurationError(f"The match model is not of the format {FORMAT}.")
        _check(model)
        return model

    @classmethod
    def load(cls, path: Path | None = None) -> Model:
        """The model of a file, or the one that ships; raises ConfigurationError with one line."""
        path = path or DEFAULT_PATH
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigurationError(f"{path} is not a readable JSON file.") from None
        return cls.from_json(body)


def probability(weight: float) -> float:
    """The probability of log2 odds."""
    return 1.0 / (1.0 + float(2.0 ** -max(-1000.0, min(1000.0, weight))))


def log_odds(certainty: float) -> float:
    """The log2 odds of a probability, 0 and 1 excluded."""
    return log2(certainty / (1.0 - certainty))


def _check(model: Model) -> None:
    names = [c.name for c in model.classes]
    if len(set(names)) != len(names) or not all(c.pairs > 0 for c in model.classes):
        raise ConfigurationError("The match model's classes need distinct names and positive pairs.")
    if len({c.match for c in model.classes}) != 2:
        raise ConfigurationError("The match model needs match classes and non-match classes.")
    limits = model.thresholds
    if not 0 < limits.review <= limits.link < 1 or limits.margin < 0:
        raise ConfigurationError("The match model's thresholds must be 0 < review <= link < 1 and margin >= 0.")
    for trait, levels in LEVELS.items():
        if set(model.levels[trait]) != set(levels):
            raise ConfigurationError(f"The match model's levels of {trait} must be {', '.join(levels)}.")
        for name in names:
            shares = [model.levels[trait][level].get(name, 0.0) for level in levels]
            if min(shares) <= 0 or abs(sum(shares) - 1) > 0.01:
                raise ConfigurationError(f"The match model's {trait} must be positive and sum to 1 in class {name}.")
    if model.culture.factor < 1:
        raise ConfigurationError("The match model's culture factor must be at least 1.")
    if any(f.expected <= 0 or f.otherwise <= 0 for f in model.frequencies.values()):
        raise ConfigurationError("The match model's frequencies must be positive.")
