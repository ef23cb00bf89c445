"""Linking whole files: how well, how surely, and the same whatever the order."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fixtures.populations import generate
from hie.mpi.batch import link
from hie.mpi.batch_read import table_of
from hie.mpi.comparison import hard_conflict
from hie.mpi.demographics import traits_of_row
from hie.mpi.evaluation import evaluate
from hie.mpi.model import Model

from .people import febrl, judged, people_found, population

PERSON = {
    "given": "Robert", "family": "Kowalczyk", "birth_date": "1961-04-23", "sex": "M", "phone": "617-555-0142",
    "street": "18 Larch Road", "city": "Norwood", "state": "MA", "zip": "02062",
}  # fmt: skip


@pytest.mark.parametrize(("number", "least"), [(4, 0.999), (3, 0.99)])
def test_febrl(number: int, least: float) -> None:
    found, _ = judged(*febrl(number))
    assert found.f1 >= least


@pytest.mark.parametrize(("kind", "seed"), [("typical", 71), ("typical", 72), ("clean", 73), ("thin", 74)])
def test_households(kind: str, seed: int) -> None:
    found, _ = judged(*population(kind, 5000, seed))
    assert found.precision >= 0.995
    assert found.people_f1 >= 0.98


def test_noise_costs_recall_before_precision() -> None:
    found, _ = judged(*population("noisy", 5000, 75))
    assert found.precision >= 0.985
    assert found.people_f1 >= 0.97


@pytest.mark.parametrize(
    ("kind", "size", "least"), [("register", 5000, 0.97), ("contacts", 1000, 0.6), ("historical", 8000, 0.3)]
)
def test_files_with_few_columns(kind: str, size: int, least: float) -> None:
    found, _ = judged(*population(kind, size, 76))
    assert found.precision >= 0.95
    assert found.people_f1 >= least


def test_stated_probabilities_come_true() -> None:
    stated: list[tuple[float, bool]] = []
    for kind, seed in (("noisy", 81), ("thin", 82), ("typical", 83)):
        rows, true = population(kind, 5000, seed)
        _, made = judged(rows, true)
        found = people_found(made)
        members: dict[str, list[str]] = {}
        for record, person in found.items():
            members.setdefault(person, []).append(record)
        for record, probability in zip(found, made.probability, strict=True):
            others = [o for o in members[found[record]] if o != record]
            if others and 0.9 <= probability < 0.99:
                stated.append((float(probability), any(true[o] == true[record] for o in others)))
    mean = np.mean([p for p, _ in stated])
    share = np.mean([right for _, right in stated])
    assert len(stated) > 200
    assert abs(mean - share) <= 0.03


def test_the_order_of_the_file_changes_nothing() -> None:
    rows, _ = population("noisy", 1500, 84)
    shuffled = list(rows)
    random.Random(1).shuffle(shuffled)
    one, other = link(table_of(rows)), link(table_of(shuffled))
    assert people_found(one) == people_found(other)
    sure = dict(zip(one.record_ids.to_pylist(), one.probability, strict=True))
    for record, probability in zip(other.record_ids.to_pylist(), other.probability, strict=True):
        assert probability == pytest.approx(sure[record], abs=1e-4)


def test_hard_conflicts_never_share_a_person() -> None:
    rows, _ = population("noisy", 2500, 85)
    found = people_found(link(table_of(rows)))
    people: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        people.setdefault(found[row["record_id"]], []).append(row)
    groups = [group for group in people.values() if len(group) > 1]
    assert groups
    for group in groups:
        traits = [traits_of_row(row) for row in group]
        assert not any(hard_conflict(a, b) for k, a in enumerate(traits) for b in traits[:k])


def test_a_bridge_does_not_join_twins() -> None:
    """A record that names neither twin lies between both."""
    twins = [{**PERSON, "given": "Jayden", "ssn": "512346789"}, {**PERSON, "given": "Kayden", "ssn": "601227733"}]
    rows = [{"record_id": f"t{k}", **row} for k, row in enumerate([*twins, *twins, {**PERSON, "given": ""}])]
    found = people_found(link(table_of(rows), Model.load()))
    assert found["t0"] != found["t1"]
    assert found["t0"] == found["t2"]
    assert found["t1"] == found["t3"]


def test_a_placeholder_that_no_list_knows_is_found_by_frequency() -> None:
    rows, true = population("typical", 1500, 86)
    spoiled = [dict(row) for row in rows]
    for k, row in enumerate(spoiled):
        if k % 3 == 0:
            row["phone"], row["ssn"] = "617-867-5309", "512-12-1212"
    made = link(table_of(spoiled))
    assert made.emptied["phone"] > len(rows) / 4
    assert made.emptied["ssn"] > len(rows) / 4
    assert evaluate(people_found(made), true).precision >= 0.99


def test_a_given_model_is_used_as_it_is() -> None:
    rows, _ = population("typical", 700, 87)
    model = Model.load()
    assert link(table_of(rows), model).model is model
    learned = link(table_of(rows)).model
    assert learned.version != model.version
    assert Model.from_json(learned.to_json()).version == learned.version


@pytest.mark.parametrize("rows", [[{}], [{}, {}, {}], [PERSON], [PERSON, PERSON]])
def test_tiny_and_empty_files(rows: list[dict[str, str]]) -> None:
    made = link(table_of([{"record_id": str(k), **row} for k, row in enumerate(rows)]))
    assert len(made.probability) == len(rows)
    assert made.people == (1 if rows[0] and len(rows) > 1 else len(rows))


def test_memory_stays_within_bounds() -> None:
    """2 GB for a million records: 20,000 must not need a tenth of that beyond the libraries."""
    import tracemalloc

    rows = [vars(record) for record in generate(10_500, 88).records]
    table = table_of(rows)
    tracemalloc.start()
    link(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6
