"""How good a linkage is, held to the truth: over pairs, and over people.

Pairs: of all pairs of records said to be one person, how many are (precision); of all pairs that are, how many are said
to be (recall). People: a person is found when a cluster holds exactly her records; people precision is the share of
clusters that are, people recall the share of people that are found, people F1 their harmonic mean. A cluster with
records of two people is over-merged; a person with records in two clusters is under-merged.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hie.core.errors import BadRequest


@dataclass(frozen=True)
class Evaluation:
    """The figures of one linkage."""

    records: int
    true_pairs: int
    linked_pairs: int
    precision: float
    recall: float
    f1: float
    people: int
    clusters: int
    people_precision: float
    people_recall: float
    people_f1: float
    over_merged: int
    """Clusters with records of several people."""
    under_merged: int
    """People with records in several clusters."""

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def evaluate(found: Mapping[str, str], true: Mapping[str, str]) -> Evaluation:
    """`found` and `true` are record id -> person; only records in the truth count."""
    clusters = {record: found.get(record, f"\x00{record}") for record in true}
    of_cluster, of_person = Counter(clusters.values()), Counter(true.values())
    both = Counter((clusters[record], person) for record, person in true.items())
    right = _pairs(both.values())
    linked, real = _pairs(of_cluster.values()), _pairs(of_person.values())
    exact = sum(1 for (cluster, person), n in both.items() if of_cluster[cluster] == n == of_person[person])
    precision, recall = right / linked if linked else 1.0, right / real if real else 1.0
    people_precision, people_recall = exact / len(of_cluster), exact / len(of_person)
    return Evaluation(
        records=len(true),
        true_pairs=real,
        linked_pairs=linked,
        precision=precision,
        recall=recall,
        f1=_f1(precision, recall),
        people=len(of_person),
        clusters=len(of_cluster),
        people_precision=people_precision,
        people_recall=people_recall,
        people_f1=_f1(people_precision, people_recall),
        over_merged=sum(n > 1 for n in Counter(cluster for cluster, _ in both).values()),
        under_merged=sum(n > 1 for n in Counter(person for _, person in both).values()),
    )


def _pairs(sizes: Iterable[int]) -> int:
    return sum(n * (n - 1) // 2 for n in sizes)


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def links(path: Path, at: float = 0.0) -> dict[str, str]:
    """record id -> person of a file that `hie mpi link` wrote; records below the probability `at` stand alone."""
    made = {}
    for row in _rows(path, ("record_id", "person_id")):
        sure = float(row.get("match_probability") or 1.0) >= at
        made[row["record_id"]] = row["person_id"] if sure else f"\x00{row['record_id']}"
    return made


def truth(path: Path) -> dict[str, str]:
    """record id -> true person (columns record_id and person_id)."""
    return {row["record_id"]: row["person_id"] for row in _rows(path, ("record_id", "person_id"))}


def _rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
                raise BadRequest(f"{path} has no column {missing[0]}.")
            rows = list(reader)
    except UnicodeDecodeError:
        raise BadRequest(f"{path} is not UTF-8.") from None
    except csv.Error as error:
        raise BadRequest(f"{path} cannot be read: {error}.") from None
    if not rows:
        raise BadRequest(f"{path} has no records.")
    return rows
