from __future__ import annotations

from typing import Any

import pytest

from hie.mpi.comparison import TRAITS, compare, given_level, hard_conflict
from hie.mpi.demographics import traits_of, traits_of_row

from .people import ROBERT, patient


def level(trait: str, a: dict[str, str], b: dict[str, str]) -> str | None:
    return compare(traits_of_row(a), traits_of_row(b)).levels[TRAITS.index(trait)]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("robert", "bob", "nickname"),
        ("margaret", "maggie", "nickname"),
        ("john", "jack", "nickname"),
        ("john", "jonh", "typo"),
        ("steven", "stephen", "typo"),
        ("sara", "sarah", "typo"),
        ("robert", "rohert", "typo"),
        ("j", "john", "initial"),
        ("anna", "hanna", "similar"),
        ("anna", "hannah", "related"),
        ("jayden", "kayden", "similar"),
        ("maria", "marta", "similar"),
        ("robert", "bill", "related"),
        ("robert", "alice", "different"),
    ],
)
def test_given_names_tell_one_name_from_two(a: str, b: str, expected: str) -> None:
    assert given_level(a, b) == expected
    assert given_level(b, a) == expected


@pytest.mark.parametrize(
    ("trait", "a", "b", "expected"),
    [
        ("birth_date", "1961-04-23", "1961-04-23", "exact"),
        ("birth_date", "1961-04-08", "1961-08-04", "swapped"),
        ("birth_date", "1961-04-23", "1961-04-32", None),
        ("birth_date", "1961-04-23", "1971-04-23", "digit"),
        ("birth_date", "1961-04-12", "1961-04-21", "digit"),
        ("birth_date", "1961-04-23", "1961-04-05", "two-parts"),
        ("birth_date", "1961-04-23", "1961-01-01", "partial"),
        ("birth_date", "1961-04-23", "1961", "partial"),
        ("birth_date", "1961-04-23", "1985-09-02", "different"),
        ("ssn", "219-09-1234", "219091234", "exact"),
        ("ssn", "219-09-1234", "219091243", "near"),
        ("ssn", "219-09-1234", "xxx-xx-1235", "different"),
        ("ssn", "219-09-1236", "1236", "last-four"),
        ("ssn", "219-09-1234", "999999999", None),
        ("phone", "617-555-0142", "617-555-0143", "near"),
        ("phone", "617-555-0142", "781-222-3344", "different"),
        ("family", "Smith", "Smyth", "typo"),
        ("family", "Garcia-Lopez", "Lopez", "part"),
        ("family", "De La Cruz", "Delacruz", "exact"),
        ("family", "Smith", "Kowalczyk", "different"),
        ("suffix", "Jr", "II", "same"),
        ("suffix", "Jr", "Sr", "conflict"),
        ("suffix", "Jr", "", "one-sided"),
        ("suffix", "", "", None),
    ],
)
def test_levels_know_the_usual_errors(trait: str, a: str, b: str, expected: str | None) -> None:
    assert level(trait, {trait: a}, {trait: b}) == expected
    assert level(trait, {trait: b}, {trait: a}) == expected


HOME = {"street": "18 Larch Road", "city": "Norwood", "state": "MA", "zip": "02062"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"street": "18 LARCH RD."}, "same"),
        ({"zip": "02026"}, "other-zip"),
        ({"street": "18 Larhc Road"}, "near"),
        ({"street": "244 Elm Street"}, "zip"),
        ({"street": "81 Larch Road"}, "near"),
        ({"street": ""}, "area"),
        ({"street": "4 Elm St", "zip": "02067"}, "city"),
        ({"street": "4 Elm St", "zip": "02155", "city": "Wexford"}, "different"),
        ({"street": "", "zip": "", "city": "", "state": ""}, None),
    ],
)
def test_an_address_is_one_trait(change: dict[str, str], expected: str | None) -> None:
    assert level("address", HOME, {**HOME, **change}) == expected


def test_units_tell_neighbours_apart() -> None:
    assert (
        level("address", {**HOME, "street": "18 Larch Rd Apt 4"}, {**HOME, "street": "18 Larch Rd #5"}) == "other-unit"
    )
    assert level("address", {**HOME, "street": "18 Larch Rd Apt 4"}, HOME) == "same"


def test_an_e_mail_built_from_the_name_is_told_from_a_household_s() -> None:
    eva, jan = {"given": "Eva", "email": "eva.novak@mail.example"}, {"given": "Jan", "email": "eva.novak@mail.example"}
    assert level("email", eva, eva) == "personal"
    assert level("email", eva, jan) == "shared"
    assert level("email", eva, {"email": "eva.novac@mail.example"}) == "near"


def test_given_and_family_in_each_other_s_field_count_once() -> None:
    found = compare(
        traits_of_row({"given": "Marta", "family": "Lindqvist"}),
        traits_of_row({"given": "Lindqvist", "family": "Marta"}),
    )
    assert found.levels[TRAITS.index("given")] == "swapped"
    assert found.levels[TRAITS.index("family")] is None


@pytest.mark.parametrize(
    ("a", "b", "conflict"),
    [
        ({"ssn": "219091234"}, {"ssn": "431552267", "birthDate": "1985-09-02"}, True),
        ({"ssn": "219091234"}, {"ssn": "431552267"}, False),
        ({"ssn": "219091234"}, {"ssn": "219091234", "birthDate": "1985-09-02"}, False),
        ({"multipleBirthInteger": 1}, {"multipleBirthInteger": 2}, True),
        ({"multipleBirthInteger": 1}, {"multipleBirthInteger": 1}, False),
        ({"suffix": "Jr"}, {"suffix": "Sr"}, True),
        ({"suffix": "Jr", "ssn": "219091234"}, {"suffix": "Sr", "ssn": "219091234"}, False),
        ({}, {}, False),
    ],
)
def test_hard_conflicts(a: dict[str, Any], b: dict[str, Any], conflict: bool) -> None:
    left, right = traits_of(patient(ROBERT, **a)), traits_of(patient(ROBERT, **b))
    assert (hard_conflict(left, right) is not None) is conflict
    assert (hard_conflict(right, left) is not None) is conflict


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("F", "female", "female"), ("m", "M", "male"), ("f", "m", "different"), ("f", "", None), ("other", "f", None)],
)
def test_records_of_one_sex_tell_which(a: str, b: str, expected: str | None) -> None:
    assert level("sex", {"sex": a}, {"sex": b}) == expected
    assert level("sex", {"sex": b}, {"sex": a}) == expected
