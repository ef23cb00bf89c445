from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hie.mpi.blocking import keys
from hie.mpi.comparison import LEVELS, TRAITS, compare
from hie.mpi.demographics import Address, Traits, traits_of, traits_of_row


def named(**name: Any) -> Traits:
    return traits_of({"resourceType": "Patient", "name": [name]})


@pytest.mark.parametrize(
    ("name", "given_name", "middle", "family", "suffix"),
    [
        ({"family": "García-López", "given": ["José"]}, ("jose",), (), ("garcia lopez",), ""),
        ({"family": "O'Brien", "given": ["Mary Ann"]}, ("mary",), ("ann",), ("obrien",), ""),
        ({"family": "Mc Donald Jr.", "given": ["R.", "J"]}, ("r",), ("j",), ("mcdonald",), "jr"),
        ({"family": "Smith", "given": ["John"], "suffix": ["III"]}, ("john",), (), ("smith",), "iii"),
        ({"family": "Smith", "given": ["Dr. John", "Junior"]}, ("john",), (), ("smith",), "jr"),
        ({"text": "Sørensen, Åse Marie"}, ("ase",), ("marie",), ("sorensen",), ""),
        ({"text": "Åse Sørensen"}, ("ase",), (), ("sorensen",), ""),
        ({"family": "Smith", "given": ["BABY BOY"]}, (), (), ("smith",), ""),
        ({"family": "Ortiz", "given": ["Twin A"]}, (), (), ("ortiz",), ""),
        ({"family": "UNKNOWN", "given": ["Unknown"]}, (), (), (), ""),
        ({"family": "Doe", "given": ["John"]}, (), (), (), ""),
        ({"family": "Test", "given": ["Test"]}, (), (), (), ""),
    ],
)
def test_names_are_made_comparable(
    name: dict[str, Any], given_name: tuple[str, ...], middle: tuple[str, ...], family: tuple[str, ...], suffix: str
) -> None:
    found = named(**name)
    assert (found.given, found.middle, found.family, found.suffix) == (given_name, middle, family, suffix)


def test_maiden_names_stand_apart() -> None:
    found = traits_of(
        {"name": [{"family": "Novak", "given": ["Eva"]}, {"use": "maiden", "family": "Horak", "given": ["Eva"]}]}
    )
    assert (found.family, found.former, found.given) == (("novak",), ("horak",), ("eva",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1961-04-23", "1961-04-23"),
        ("1961-04", "1961-04"),
        ("1961", "1961"),
        ("2024-02-30", ""),
        ("1900-01-01", ""),
        ("0001-01-01", ""),
        ("nonsense", ""),
    ],
)
def test_impossible_and_default_dates_are_no_evidence(text: str, expected: str) -> None:
    assert traits_of({"birthDate": text}).birth_date == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("219-09-1234", "219091234"),
        ("xxx-xx-6789", "6789"),
        ("999-99-9999", ""),
        ("123-45-6789", ""),
        ("000-12-3456", ""),
        ("666121234", ""),
        ("78-051", ""),
    ],
)
def test_numbers_never_issued_are_no_evidence(text: str, expected: str) -> None:
    identifier = {"system": "http://hl7.org/fhir/sid/us-ssn", "value": text}
    assert traits_of({"identifier": [identifier]}).ssn == expected
    assert traits_of_row({"ssn": text}).ssn == expected


def test_telecoms_are_normalised_and_placeholders_dropped() -> None:
    found = traits_of(
        {
            "telecom": [
                {"system": "phone", "value": "+1 (617) 555-0142"},
                {"system": "phone", "value": "617.555.0142"},
                {"system": "phone", "value": "999-999-9999"},
                {"system": "phone", "value": "+49 30 1234567"},
                {"system": "fax", "value": "617-555-0199"},
                {"system": "email", "value": "Eva.Novak+hospital@Mail.Example"},
                {"system": "email", "value": "noemail@mail.example"},
            ]
        }
    )
    assert found.phones == ("6175550142", "49301234567")
    assert found.emails == ("eva.novak@mail.example",)


def test_addresses_are_normalised() -> None:
    element = {
        "line": ["18 North Larch Street", "Apt. 4 B"],
        "city": "Norwood",
        "state": "Massachusetts",
        "postalCode": "02062-1234",
    }
    expected = Address("18", "n larch st", "4b", "norwood", "ma", "02062")
    assert traits_of({"address": [element]}).addresses == (expected,)
    assert traits_of_row(
        {"street": "18 N Larch St #4B", "city": "NORWOOD", "state": "MA", "zip": "02062"}
    ).addresses == (expected,)


def test_traits_survive_the_index() -> None:
    full = traits_of(
        {
            "name": [{"family": "Novak", "given": ["Eva", "Ann"]}, {"use": "old", "family": "Horak"}],
            "birthDate": "1990-05-06",
            "gender": "female",
            "multipleBirthInteger": 2,
            "telecom": [{"system": "phone", "value": "617-555-0142"}],
            "address": [{"line": ["1 Elm St"], "city": "Arden"}, {"line": ["2 Elm St"], "postalCode": "02062"}],
        }
    )
    assert Traits.from_json(full.to_json()) == full
    assert Traits.from_json(Traits().to_json()) == Traits()


_ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("617-555-0142"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["family", "given", "use", "text", "suffix", "system", "value", "line", "city", "type", "coding"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
_ELEMENTS = ["name", "birthDate", "gender", "identifier", "telecom", "address", "multipleBirthInteger"]


@settings(max_examples=200, deadline=None)
@given(a=st.dictionaries(st.sampled_from(_ELEMENTS), _ODD), b=st.dictionaries(st.sampled_from(_ELEMENTS), _ODD))
def test_odd_input_never_raises_and_comparison_is_symmetric(a: dict[str, Any], b: dict[str, Any]) -> None:
    left, right = traits_of(a), traits_of(b)
    found = compare(left, right)
    assert found == compare(right, left)
    for trait, level in zip(TRAITS, found.levels, strict=True):
        assert level is None or level in LEVELS[trait]
    assert all(-(2**63) <= key < 2**63 for key in keys(left))
    assert Traits.from_json(left.to_json()) == left
