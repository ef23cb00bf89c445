"""The arrays mean what `traits_of_row`, `compare`, `hard_conflict` and `Model.weight` mean, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hie.mpi.batch_blocks import candidates
from hie.mpi.batch_compare import Comparer, unpack
from hie.mpi.batch_read import table_of
from hie.mpi.batch_score import HOPELESS, Scorer, score_all
from hie.mpi.batch_traits import SUFFIXES, Columns, Text, columns_of
from hie.mpi.blocking import keys
from hie.mpi.comparison import LEVELS, TRAITS, compare, hard_conflict
from hie.mpi.demographics import Traits, traits_of_row
from hie.mpi.model import Model

from .people import Rows, population

MODEL = Model.load()

NAMES = (
    "Robert", "Bob", "Rob", "ROBERT ", "R", "Anna", "Hannah", "Mary Ann", "Maryann", "Mary", "Jayden", "Kayden",
    "Stephen", "Steven", "Baby Boy", "Unknown", "José", "Jose", "Katherine", "Kathrine", "", "Dr. Ana", "Mario", "7",
)  # fmt: skip
FAMILIES = (
    "Garcia Lopez", "Garcia", "Lopez-Garcia", "O'Brien", "OBrien", "Mc Donald", "McDonald", "Smith", "Smyth", "Smiht",
    "Doe", "", "Test", "de la Cruz", "Cruz", "Müller", "Mueller", "Robert", "Jones Jr", "Nguyen",
)  # fmt: skip


def cells(*values: str) -> st.SearchStrategy[str]:
    return st.sampled_from(values)


ROW = st.fixed_dictionaries(
    {
        "given": st.sampled_from(NAMES),
        "middle": cells("", "A", "Ann", "Alan", "Robert", "Marie Rose", "Jr"),
        "family": st.sampled_from(FAMILIES),
        "former_family": cells("", "", "Garcia", "Smith", "Brown Smith"),
        "suffix": cells("", "", "Jr", "Sr.", "II", "III", "MD"),
        "birth_date": cells(
            "1961-04-03", "1961-03-04", "1961-04-08", "1961-01-01", "1961", "1961-04", "19610403", "1951-04-03",
            "1961-02-30", "1900-01-01", "04/03/1961", "", "1972-11-30", "1916-04-03",
        ),
        "sex": cells("M", "F", "male", "x", ""),
        "ssn": cells(
            "512-34-6789", "512346789", "512346798", "6789", "xxxxx6789", "999-99-9999", "123-45-6789", "",
            "078-05-1120",
        ),
        "phone": cells(
            "617-555-0142", "(617) 555-0142", "6175550124", "+1 617 555 0142", "555-0142", "617-000-0000", "",
        ),
        "email": cells(
            "bob.garcia@gmail.com", "bobgarcia@gmail.com", "BOB.garcia+x@googlemail.com", "garcias@post.example",
            "garcas@post.example", "none@none.com", "x", "",
        ),
        "street": cells(
            "18 Larch Road", "18 Larch Rd", "18 Larch Rd Apt 4", "18 LARCH ROAD #5", "13 Larch Road", "PO Box 12",
            "18 Larhc Rd", "Larch House", "Unknown", "", "12 N. 1st St Unit 4 B", "Ünter den Linden 3",
        ),
        "city": cells("Norwood", "norwood", "Salem", "", "Unknown"),
        "state": cells("MA", "Massachusetts", "NY", ""),
        "zip": cells("02062", "02062-1234", "02155", "00000", "K1A 0B1", ""),
        "birth_order": cells("", "", "1", "2", "x"),
    }
)  # fmt: skip


def numbered(rows: Sequence[dict[str, str]]) -> Rows:
    return [{"record_id": f"r{k:05d}", **row} for k, row in enumerate(rows)]


def all_pairs(size: int) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.triu_indices(size, 1)
    return i.astype(np.int32), j.astype(np.int32)


def assert_equal_to_the_reference(rows: Rows) -> None:
    """Every level, value, conflict and weight of every pair."""
    columns = columns_of(table_of(rows))
    columns.american = True
    traits = [traits_of_row(row) for row in rows]
    i, j = all_pairs(len(rows))
    comparer, scorer = Comparer(columns), Scorer(MODEL, columns.names)
    compared = comparer.compare(i.astype(np.intp), j.astype(np.intp))
    levels = unpack(compared.pattern)
    weights, conflicts, _ = score_all(comparer, scorer, i, j)
    for k, (a, b) in enumerate(combinations(range(len(rows)), 2)):
        expected = compare(traits[a], traits[b])
        found = tuple(LEVELS[t][level - 1] if level else None for t, level in zip(TRAITS, levels[k], strict=True))
        assert found == expected.levels, (rows[a], rows[b])
        weight = MODEL.weight(expected)
        if weight > HOPELESS:
            assert weights[k] == pytest.approx(weight, abs=1e-2), (rows[a], rows[b])
            assert bool(conflicts[k]) == (hard_conflict(traits[a], traits[b]) is not None)
        else:
            assert weights[k] <= HOPELESS + 1e-2


@settings(max_examples=120, deadline=None)
@given(st.lists(ROW, min_size=2, max_size=6))
def test_odd_rows_are_compared_as_one_by_one(rows: list[dict[str, str]]) -> None:
    us = {**dict.fromkeys(rows[0], ""), "ssn": "512-99-0001"}
    assert_equal_to_the_reference(numbered([*rows, *[us] * len(rows)]))


@pytest.mark.parametrize("kind", ["typical", "noisy", "thin"])
def test_generated_rows_are_compared_as_one_by_one(kind: str) -> None:
    rows, _ = population(kind, 60, 7)
    assert_equal_to_the_reference(rows)


def test_traits_of_columns_are_those_of_rows() -> None:
    rows, _ = population("noisy", 400, 8)
    columns = columns_of(table_of(rows))
    for k, row in enumerate(rows):
        expected = traits_of_row(row)
        assert _traits_at(columns, k, expected) == expected


def _traits_at(columns: Columns, k: int, like: Traits) -> Traits:
    """The traits of record k as the online index would have them; addresses and birth order as in `like`."""

    def name(codes: np.ndarray) -> str:
        return str(columns.names[codes[k]]) if codes[k] >= 0 else ""

    def text(column: Text) -> tuple[str, ...]:
        return (str(column.values[column.codes[k]]),) if column.codes[k] >= 0 else ()

    parts = [columns.year[k], columns.month[k], columns.day[k]]
    born = "-".join(f"{n:04d}" if at == 0 else f"{n:02d}" for at, n in enumerate(parts) if n)
    made = {
        "given": tuple(filter(None, [name(columns.given)])),
        "middle": tuple(filter(None, map(name, columns.middle))),
        "family": tuple(filter(None, [name(columns.family)])),
        "suffix": SUFFIXES[columns.suffix[k]],
        "birth_date": born,
        "sex": ("", "m", "f")[columns.sex[k]],
        "ssn": "".join(text(columns.ssn)),
        "phones": text(columns.phone),
        "emails": text(columns.email),
    }
    kept = {f.name: getattr(like, f.name) for f in fields(Traits) if f.name not in made}
    return Traits(**{**kept, **made})


def test_blocking_proposes_every_pair_that_the_online_index_would() -> None:
    """But for those of blocks too popular to compare; here there are none."""
    rows, _ = population("noisy", 1300, 9)
    columns = columns_of(table_of(rows))
    found = candidates(columns)
    proposed = set(zip(found.i.tolist(), found.j.tolist(), strict=True))
    blocks: dict[int, list[int]] = {}
    for k, row in enumerate(rows):
        for key in keys(traits_of_row(row)):
            blocks.setdefault(key, []).append(k)
    online = {pair for members in blocks.values() if len(members) <= 30 for pair in combinations(members, 2)}
    assert len(rows) > 2000
    assert len(online - proposed) / len(online) < 0.01
