"""The engine spark says of every record what the local engine says; skipped where PySpark is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fixtures.populations import generate, write
from hie.core.errors import BadRequest
from hie.mpi import batch, spark

from .test_cli import run

try:
    import pyspark
except ImportError:
    pyspark = None

needs_pyspark = pytest.mark.skipif(pyspark is None, reason="PySpark (extra spark) is not installed")


@pytest.mark.spark
@needs_pyspark
def test_equal_to_the_local_engine_on_50_000_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_MASTER", "local[2]")
    source = tmp_path / "records.csv"
    records = generate(26_000, 95).records[:50_000]
    write(records, source)
    local = batch.link_file(source, tmp_path / "local.csv", None)
    with spark.scoring() as scoring:
        sparked = batch.link_file(source, tmp_path / "spark.csv", None, scoring=scoring)
    assert len(local.record_ids) == 50_000
    assert sparked.person_ids.equals(local.person_ids)
    np.testing.assert_allclose(sparked.probability, local.probability, atol=1e-6)
    assert (tmp_path / "spark.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()


@pytest.mark.skipif(pyspark is not None, reason="PySpark is installed")
def test_without_pyspark_one_line_says_what_to_install(tmp_path: Path) -> None:
    source = tmp_path / "records.csv"
    write(generate(200, 96).records, source)
    with pytest.raises(BadRequest, match=r"install the extra `hie\[spark\]`"):
        run("link", source, "--output", tmp_path / "links.csv", "--engine", "spark")
