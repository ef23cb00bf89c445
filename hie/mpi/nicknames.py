"""Given names that stand for each other. Pure; the pairs are those of the `nicknames` package.

The package alone calls Anna and Hannah one name, and twins are called so. Which of two names is the short form is told
by how common each is as a registered name (`given_names.csv`: US births 1930 to 2016 by the Social Security
Administration, weighted to the living population): Bob is a nickname of Robert; Anna and Hannah are merely related.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

from nicknames import NickNamer

_COUNTS = Path(__file__).with_name("given_names.csv")
_SHORT_FORM = 0.35
"""A nickname is registered at most this often for each bearer of the whole name (Sue 0.2; Hannah for Anna 0.9)."""
_WRONG = frozenset({("robert", "bill"), ("robert", "billy"), ("robert", "rupert"), ("patrick", "peter")})
"""Pairs of the package that are different men's names."""
_ROOTS = 2
"""Bill may be William or Robert to the package; more roots than two are noise."""


@lru_cache(maxsize=1)
def registered_names() -> dict[str, int]:
    """Bearers per million of each name that is registered with any frequency."""
    with _COUNTS.open(encoding="utf-8", newline="") as file:
        return {row["name"]: int(row["per_million"]) for row in csv.DictReader(file)}


@lru_cache(maxsize=1)
def _forms() -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    namer = NickNamer()
    short = {name: frozenset(n for n in forms if (name, n) not in _WRONG) for name, forms in _items(namer, True)}
    whole = {name: frozenset(n for n in forms if (n, name) not in _WRONG) for name, forms in _items(namer, False)}
    return short, whole


def _items(namer: NickNamer, short: bool) -> list[tuple[str, set[str]]]:
    return list((namer.nickname_lookup if short else namer.canonical_lookup).items())


def is_nickname(a: str, b: str) -> bool:
    """Whether one is the short form of the other (Bob, Robert); both whole names of their own (Anna, Hannah) is no."""
    return _is_short_form(a, b) or _is_short_form(b, a)


def _is_short_form(short: str, whole: str) -> bool:
    if short not in _forms()[0].get(whole, ()):
        return False
    counts = registered_names()
    return counts.get(short, 0) <= _SHORT_FORM * counts.get(whole, 0)


def are_related(a: str, b: str) -> bool:
    """Whether the two may stand for one name, in either direction or through a third (Bobby, Rob)."""
    short, whole = _forms()
    if b in short.get(a, ()) or a in short.get(b, ()):
        return True
    return not whole.get(a, frozenset()).isdisjoint(whole.get(b, frozenset()))


def neighbours(name: str) -> frozenset[str]:
    """Every name that `is_nickname` or `are_related` may hold of this one."""
    short, whole = _forms()
    wholes = whole.get(name, frozenset())
    return short.get(name, frozenset()).union(wholes, *(short.get(w, frozenset()) for w in wholes)) - {name}


@lru_cache(maxsize=65536)
def roots(name: str) -> tuple[str, ...]:
    """The name itself and the commonest whole names that it may be short for; two forms of a name share one."""
    counts = registered_names()
    own = counts.get(name, 0)
    wholes = [w for w in _forms()[1].get(name, ()) if counts.get(w, 0) > own]
    wholes.sort(key=lambda w: (-counts[w], w))
    return (name, *wholes[:_ROOTS])
