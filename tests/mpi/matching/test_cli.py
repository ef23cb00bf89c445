from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from fixtures.populations import generate, write
from hie.audit.tables import entries
from hie.cli.mpi import mpi
from hie.core import schema
from hie.core.database import Database
from hie.core.errors import NotFound
from hie.mpi.demographics import traits_of
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model

from .people import MODEL, ROBERT, patient


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.csv"
    write(generate(400, 91).records, path)
    return path


def test_training_from_a_file_writes_a_model_that_loads(records: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.json"
    result = CliRunner().invoke(mpi, ["train", str(records), "--output", str(output), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    summary = json.loads(result.output)
    assert Model.load(output).version == summary["version"]
    assert summary["records"] > 500
    assert 0.9 < summary["estimated_precision"] <= 1


def test_training_is_told_how_many_people_a_stranger_may_be_one_of(records: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.json"

    def strangers(*arguments: str) -> float:
        done = CliRunner().invoke(mpi, ["train", str(records), "--output", str(output), "--json", *arguments])
        assert done.exit_code == 0, done.output
        return next(c.pairs for c in Model.load(output).classes if c.name == "random")

    with records.open(encoding="utf-8") as file:
        assert strangers() == sum(1 for _ in file) - 1
    assert strangers("--population", "800000") == 800_000
    assert Model.load(output).provenance["population"] == "800000 people, as told"


def test_explaining_two_rows_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    path.write_text(
        "record_id,given,family,birth_date,phone\n"
        "a,Robert,Kowalczyk,1961-04-23,617-555-0142\n"
        "b,Bob,Kowalczyk,1961-04-23,617-555-0142\n",
        encoding="utf-8",
    )
    plain = CliRunner().invoke(mpi, ["explain", "a", "b", "--file", str(path)], catch_exceptions=False)
    assert plain.exit_code == 0
    assert "nickname" in plain.output
    assert MODEL.version in plain.output
    told = CliRunner().invoke(mpi, ["explain", "a", "b", "--file", str(path), "--json"], catch_exceptions=False)
    assert {"trait": "given", "level": "nickname"}.items() <= json.loads(told.output)["traits"][0].items()


def test_explaining_two_records_of_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'hie.sqlite'}"
    monkeypatch.setenv("HIE_HOME", str(tmp_path))
    monkeypatch.setenv("HIE_DATABASE_URL", url)
    database = Database(url)
    schema.upgrade(database)
    with database.write() as connection:
        for name, resource in (("a", patient(suffix="Sr")), ("b", patient(suffix="Jr"))):
            MatchIndex(MODEL, True).store(connection, name, name, traits_of(resource))
    result = CliRunner().invoke(mpi, ["explain", "a", "b"], catch_exceptions=False)
    with database.read() as connection:
        logged = [(row.person_id, row.kind) for row in connection.execute(sa.select(entries))]
    database.close()
    assert logged == [("a", "search"), ("b", "search")]
    assert "never linked by itself: different generational suffixes" in result.output
    with pytest.raises(NotFound):
        CliRunner().invoke(mpi, ["explain", "a", "nobody"], catch_exceptions=False)
    assert ROBERT["name"][0]["family"] not in result.output


def test_the_index_never_loads_pandas() -> None:
    heavy = "('pandas', 'numpy', 'recordlinkage')"
    code = f"import sys, hie.mpi.index, hie.cli.mpi; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
