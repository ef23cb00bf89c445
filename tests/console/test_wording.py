"""Codes and times in words."""

from __future__ import annotations

from datetime import date

import pytest

from hie.console import wording

TODAY = date(2026, 5, 4)


@pytest.mark.parametrize(
    ("fhir", "words"),
    [
        ("2019", "2019"),
        ("2019-03", "Mar 2019"),
        ("2019-03-08", "8 Mar 2019"),
        ("2019-03-08T14:05:09-05:00", "8 Mar 2019, 14:05 UTC−05:00"),
        ("2019-03-08T14:05:09.123Z", "8 Mar 2019, 14:05 UTC"),
        ("2019-03-08T14:05:09", "8 Mar 2019, 14:05 (time zone not recorded)"),
        ("2019-99-08", "date not recorded"),
        ("last spring", "date not recorded"),
        (None, "date not recorded"),
        (2019, "date not recorded"),
    ],
)
def test_times_keep_their_precision_and_offset(fhir: object, words: str) -> None:
    assert wording.when(fhir) == words


@pytest.mark.parametrize(
    ("born", "words"),
    [
        ("1949-11-02", "76 years"),
        ("1949-05-04", "77 years"),
        ("1949", "about 77 years"),
        ("2026-05-01", "3 days"),
        ("2026-05-03", "1 day"),
        ("2026-01-10", "3 months"),
        ("2024-02-30", ""),
        (None, ""),
    ],
)
def test_ages(born: object, words: str) -> None:
    assert wording.age(born, TODAY) == words


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (1.0, "Almost certain over 99 %"),
        (0.9999, "Almost certain over 99 %"),
        (0.985, "Very likely 98 %"),
        (0.5, "Possible 50 %"),
        (0.004, "Unlikely under 1 %"),
        (0.0, "Unlikely under 1 %"),
    ],
)
def test_no_probability_is_called_certain(probability: float, words: str) -> None:
    assert f"{wording.sureness(probability)} {wording.per_cent(probability)}" == words


def test_the_official_name_goes_first_and_the_others_are_kept() -> None:
    patient = {
        "name": [
            {"use": "maiden", "family": "Bergström", "given": ["Marta"]},
            {"use": "official", "family": "Lindqvist", "given": ["Marta", "Elisabet"], "suffix": ["MD"]},
            {"text": "Marta L."},
        ]
    }
    assert wording.name(patient) == "Marta Elisabet Lindqvist MD"
    assert wording.other_names(patient) == ["Marta Bergström", "Marta L."]
    assert wording.name({}) == "Name not recorded"


@pytest.mark.parametrize(
    ("names", "words"), [([], ""), (["A"], "A"), (["A", "B"], "A and B"), (["A", "B", "C"], "A, B and C")]
)
def test_listing(names: list[str], words: str) -> None:
    assert wording.listing(names) == words


@pytest.mark.parametrize(("duration", "words"), [(0.004, "under 0.01 seconds"), (0.4249, "0.42 seconds")])
def test_durations(duration: float, words: str) -> None:
    assert wording.seconds(duration) == words
