"""Which rules of the CMS table two records satisfy: each rule by the least that meets it, and by what just does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hie.mpi.cms import RULES, satisfied
from hie.mpi.demographics import Address, Traits

HOUSE = Address(number="4", street="quay rd", city="boston", state="ma", zip="02110")
FULL = Traits(
    given=("marta",),
    family=("lindqvist",),
    birth_date="1949-11-02",
    ssn="219095821",
    phones=("6175550107",),
    emails=("m@example.org",),
    addresses=(HOUSE,),
)
NOTHING = Traits()


def only(**traits: object) -> Traits:
    return replace(NOTHING, **traits)  # type: ignore[arg-type]


def part(*names: str, **changes: object) -> Traits:
    """These traits of the full record alone, some changed."""
    return replace(only(**{name: getattr(FULL, name) for name in names}), **changes)  # type: ignore[arg-type]


NAMED = ("given", "family", "birth_date")


@pytest.mark.parametrize(
    ("record", "rules"),
    [
        (FULL, {rule.number for rule in RULES}),
        (NOTHING, set()),
        (part("given", "family"), set()),
        (part(*NAMED), set()),
        (part(*NAMED, "addresses"), {"01"}),
        (part(*NAMED, "phones"), {"02", "11", "30"}),
        (part(*NAMED, "emails"), {"03", "12"}),
        (part(*NAMED, "ssn"), {"04", "05"}),
        (part(*NAMED, ssn="5821"), {"04", "05"}),
        (part("given", "phones", "ssn"), {"13"}),
        (part("given", "emails", "ssn"), {"15"}),
        (part(*NAMED, "addresses", given=("martha",), family=("lindquist",)), {"01"}),
        (part(*NAMED, "addresses", given=("martha",), family=("lindquist",), birth_date="1949-11-03"), set()),
        (part(*NAMED, "addresses", birth_date="1949-11-03"), {"01"}),
        (part(*NAMED, "addresses", birth_date="1949-11-04"), set()),
        (part(*NAMED, "addresses", addresses=(replace(HOUSE, zip="02111"),)), set()),
        (part(*NAMED, "addresses", addresses=(replace(HOUSE, street="quai rd"),)), {"01"}),
        (part(*NAMED, "phones", given=("martha",)), {"30"}),
        (part(*NAMED, "phones", family=("lindquist",)), {"02", "11", "30"}),
        (part(*NAMED, "ssn", given=("martha",)), {"04"}),
        (part(*NAMED, "ssn", family=("lindquist",)), {"05"}),
        (part(*NAMED, "ssn", family=("lind",)), set()),
    ],
)
def test_rules_that_are_satisfied(record: Traits, rules: set[str]) -> None:
    assert set(satisfied(FULL, record)) == rules
    assert satisfied(record, FULL) == satisfied(FULL, record)


def test_a_nickname_is_the_name_and_a_short_name_forgives_nothing() -> None:
    robert, bob = (only(given=(name,), birth_date="1961-04-23", phones=("6175550142",)) for name in ("robert", "bob"))
    assert satisfied(robert, bob) == ("11",)
    ada, ida = (replace(FULL, given=(name,), phones=(), emails=(), ssn="") for name in ("ada", "ida"))
    assert satisfied(ada, ida) == ()
