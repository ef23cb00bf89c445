"""The batch engine on PySpark (extra `[spark]`, Java 17): the same model and the same numbers as `hie.mpi.batch`.

What costs most, comparing and scoring the pairs, is divided among Spark's executors; reading, blocking, learning and
clustering are the local engine's own steps on the driver, so that both engines say the same of every record
(`tests/mpi/batch/test_spark.py`, 50,000 records in `local[2]`). The traits are broadcast once. A master other than
`local[*]` is taken from the environment variable SPARK_MASTER; the `hie` package must be installed on the executors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from hie.core.errors import BadRequest
from hie.mpi.batch import Scoring
from hie.mpi.batch_compare import Comparer
from hie.mpi.batch_score import Scored, Scorer, score_all
from hie.mpi.batch_traits import Codes

LEAST = 50_000
"""Pairs below which a job of its own costs more than it saves; the driver scores them."""


@contextmanager
def scoring() -> Iterator[Scoring]:
    """A Spark session that scores the pairs of `hie.mpi.batch.link_file`; raises BadRequest with one line where PySpark
    or Java is missing."""
    session = _session()
    try:
        yield _scoring(session)
    finally:
        session.stop()


def _session() -> Any:
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise BadRequest("The engine spark needs PySpark: install the extra `hie[spark]`, and Java 17.") from None
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("hie mpi link").master(os.environ.get("SPARK_MASTER", "local[*]"))
    quiet = {"spark.ui.enabled": "false", "spark.log.level": "ERROR", "spark.driver.memory": "2g"}
    for name, value in quiet.items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception:  # noqa: BLE001  (py4j raises its own kinds, with a Java stack)
        raise BadRequest("Spark did not start; is Java 17 installed, and JAVA_HOME right?") from None


def _scoring(session: Any) -> Scoring:
    """`score_all` with its pairs divided among the executors."""
    shared: dict[int, Any] = {}

    def score(comparer: Comparer, scorer: Scorer, i: Codes, j: Codes) -> Scored:
        if len(i) < LEAST:
            return score_all(comparer, scorer, i, j)
        context = session.sparkContext
        key = id(scorer)
        if key not in shared:  # the scorer is kept, so that no other can have its id
            shared[key] = (scorer, context.broadcast((comparer.columns, scorer.model)))
        known = shared[key][1]
        parts = max(2, context.defaultParallelism) * 2
        bounds = np.linspace(0, len(i), parts + 1).astype(int)
        tasks = [(i[a:b].tobytes(), j[a:b].tobytes()) for a, b in pairwise(bounds)]

        def one(rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes, bytes]]:
            columns, model = known.value
            there, with_ = Comparer(columns), Scorer(model, columns.names)
            for left, right in rows:
                made = score_all(there, with_, np.frombuffer(left, np.int32), np.frombuffer(right, np.int32))
                yield made[0].tobytes(), made[1].tobytes(), made[2].tobytes()

        found = context.parallelize(tasks, parts).mapPartitions(one).collect()
        return (
            np.concatenate([np.frombuffer(weights, np.float32) for weights, _, _ in found]),
            np.concatenate([np.frombuffer(conflict, np.bool_) for _, conflict, _ in found]),
            np.concatenate([np.frombuffer(capacity, np.float32) for _, _, capacity in found]),
        )

    return score
