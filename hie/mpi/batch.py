"""Linkage of whole files (contract section 7): a CSV or Parquet file in, a person for every record out. No labels.

read -> traits -> candidate pairs -> the model learned from them (or given) -> weights -> people. Each step is a module
of its own (`batch_read`, `batch_traits`, `batch_blocks`, `batch_train`, `batch_score`, `batch_cluster`). The records
are put in the order of their ids first, so the order of the file changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hie.mpi.batch_blocks import Pairs, candidates
from hie.mpi.batch_cluster import cluster
from hie.mpi.batch_compare import Comparer
from hie.mpi.batch_read import Column, Table, read, write_links
from hie.mpi.batch_score import Scored, Scorer, score_all
from hie.mpi.batch_train import learn
from hie.mpi.batch_traits import Codes, columns_of
from hie.mpi.model import CERTAINTY_OF_FILES, Model, log_odds

Scoring = Callable[[Comparer, Scorer, Codes, Codes], Scored]
SAMPLE = 60_000
"""Records whose pairs tell how many records have no other of their person."""
FEWEST_ALONE = 0.05
"""Least share of records that are taken to have no other of their person."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Linkage:
    """Who is who in a file: per record (in the order of the file) a person and the probability that it is right."""

    record_ids: pa.Array
    person_ids: pa.Array
    probability: npt.NDArray[np.float64]
    model: Model
    pairs: int
    people: int
    emptied: dict[str, int]


def link_file(
    source: Path,
    target: Path,
    model: Model | None,
    progress: Progress = lambda _: None,
    certainty: float = CERTAINTY_OF_FILES,
    scoring: Scoring = score_all,
) -> Linkage:
    """Links the records of one file and writes the result to another."""
    progress("Reading")
    made = link(read(source), model, progress, certainty, scoring)
    progress("Writing")
    write_links(target, made.record_ids, made.person_ids, made.probability)
    progress("")
    return made


def link(
    table: Table,
    model: Model | None = None,
    progress: Progress = lambda _: None,
    certainty: float = CERTAINTY_OF_FILES,
    scoring: Scoring = score_all,
) -> Linkage:
    """Links the records of a table; the model is learned from them where none is given.

    Two clusters are one person where the mean weight of the pairs between them says so with `certainty` (0 < p < 1).
    """
    order = np.asarray(pc.sort_indices(table.record_ids)).astype(np.int64)
    progress("Normalising")
    columns = columns_of(_reordered(table, order))
    progress("Blocking")
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(Comparer, columns)
        pairs, comparer = candidates(columns), under_way.result()
    if model is None:
        progress("Learning")
        model = learn(columns, comparer, pairs, Model.load(), {"made by": "hie mpi link"}).model
    progress("Comparing")
    scorer = strangers(len(table), pairs, comparer, Scorer(model, columns.names), scoring)
    weights, conflict, _ = scoring(comparer, scorer, pairs.i, pairs.j)
    progress("Clustering")

    def score(i: Codes, j: Codes) -> Scored:
        return scoring(comparer, scorer, i, j)

    found = cluster(len(table), pairs.i, pairs.j, weights, conflict, score, log_odds(certainty), scorer.prior)
    # back to the order of the file; a person is named after her first record
    person, probability = np.empty(len(table), np.int64), np.empty(len(table))
    person[order] = order[found.person]
    probability[order] = found.probability
    return Linkage(
        table.record_ids,
        table.record_ids.take(pa.array(person)),
        probability,
        model,
        len(pairs),
        int((found.person == np.arange(len(table))).sum()),
        columns.emptied,
    )


def strangers(size: int, pairs: Pairs, comparer: Comparer, scorer: Scorer, scoring: Scoring) -> Scorer:
    """The scorer for a file in which most records have a person.

    A pair's weight takes the other records for strangers. But where nine records in ten have another of their person
    in the file, "it has none" is that much less likely. A sample of the records tells how many seem to be alone.
    """
    mixed = np.arange(size, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(1 << 32)
    chosen = mixed < np.uint64(min(1.0, SAMPLE / size) * ((1 << 32) - 1))
    at = np.flatnonzero(chosen[pairs.i] | chosen[pairs.j])
    i, j = pairs.i[at], pairs.j[at]
    weights, conflict, _ = scoring(comparer, scorer, i, j)
    likely = (weights > log_odds(CERTAINTY_OF_FILES)) & ~conflict
    linked = np.zeros(size, bool)
    linked[i[likely]] = linked[j[likely]] = True
    alone = 1.0 - float(linked[chosen].mean()) if chosen.any() else 1.0
    return scorer.among_strangers(max(FEWEST_ALONE, alone))


def _reordered(table: Table, order: npt.NDArray[np.int64]) -> Table:
    columns = {name: Column(column.codes[order], column.values) for name, column in table.columns.items()}
    return replace(table, columns=columns)
