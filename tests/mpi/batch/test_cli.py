"""`hie mpi link`, `evaluate` and the training report, as a person runs them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from hie.cli.mpi import mpi
from hie.core.errors import BadRequest
from hie.mpi.model import Model

from .people import population, write


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(mpi, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write(tmp_path / "records.csv", population("typical", 700, 91)[0])


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    rows = [{"record_id": r, "person_id": p} for r, p in population("typical", 700, 91)[1].items()]
    return write(tmp_path / "truth.csv", rows)


def test_link_and_evaluate(records: Path, truth: Path, tmp_path: Path) -> None:
    links = tmp_path / "links.csv"
    said = run("link", records, "--output", links)
    assert "people" in said.output
    with links.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["record_id", "person_id", "match_probability"]
    assert [row["record_id"] for row in rows] == [row["record_id"] for row in population("typical", 700, 91)[0]]
    assert all(0 <= float(row["match_probability"]) <= 1 for row in rows)
    found = json.loads(run("evaluate", links, "--truth", truth, "--json").output)
    assert found["precision"] > 0.98
    assert found["people_f1"] > 0.97
    assert "over merged" in run("evaluate", links, "--truth", truth).output
    strict = json.loads(run("evaluate", links, "--truth", truth, "--at", "1", "--json").output)
    assert strict["recall"] < found["recall"]


def test_the_surer_a_link_must_be_the_more_people_there_are(records: Path, tmp_path: Path) -> None:
    output = tmp_path / "links.csv"

    def people(*arguments: str) -> int:
        done = run("link", records, "--output", output, *arguments, "--json")
        assert done.exit_code == 0, done.output
        return int(json.loads(done.output)["people"])

    assert (
        people()
        == people("--certainty", "0.6667")
        < people("--certainty", "0.999")
        < people("--certainty", "0.9999999")
    )
    for nonsense in ("1", "0", "99", "sure"):
        refused = run("link", records, "--output", output, "--certainty", nonsense)
        assert refused.exit_code == 2
        assert "--certainty" in refused.output


def test_evaluation_counts_merged_and_divided_people(tmp_path: Path) -> None:
    links = write(
        tmp_path / "l.csv", [{"record_id": r, "person_id": p} for r, p in zip("abcdef", "112233", strict=True)]
    )
    true = write(
        tmp_path / "t.csv", [{"record_id": r, "person_id": p} for r, p in zip("abcdef", "xxyzww", strict=True)]
    )
    found = json.loads(run("evaluate", links, "--truth", true, "--json").output)
    assert (found["linked_pairs"], found["true_pairs"]) == (3, 2)
    assert (found["precision"], found["recall"]) == (pytest.approx(2 / 3), 1.0)
    assert (found["over_merged"], found["under_merged"]) == (1, 0)
    assert found["people_f1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_parquet_in_and_out(records: Path, tmp_path: Path) -> None:
    import pyarrow.csv as pa_csv

    source, target = tmp_path / "records.parquet", tmp_path / "links.parquet"
    pq.write_table(pa_csv.read_csv(records), source)
    run("link", source, "--output", target)
    run("link", records, "--output", tmp_path / "links.csv")
    with (tmp_path / "links.csv").open(newline="") as file:
        of_csv = {row["record_id"]: row["person_id"] for row in csv.DictReader(file)}
    table = pq.read_table(target).to_pydict()
    assert dict(zip(table["record_id"], table["person_id"], strict=True)) == of_csv


def test_a_given_model_and_json(records: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    Model.load().save(model)
    said = json.loads(run("link", records, "--output", tmp_path / "l.csv", "--model", model, "--json").output)
    assert said["model"] == Model.load().version
    assert said["records"] == len(population("typical", 700, 91)[0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"id,given\n1,Ann\n", "no column record_id"),
        (b"record_id,given\n1,Ann\n1,Bob\n", "more than once"),
        (b"record_id,given\n1,Ann\n,Bob\n", "without a record_id"),
        (b"record_id,given\n1,\xff\xfe\n", "not UTF-8"),
        (b"record_id,given\n1,Ann,x\n", "more or fewer fields"),
        (b"record_id,given,given\n1,Ann,x\n", "twice"),
        (b"record_id\n", "no records"),
        (b"", "empty"),
        (b'record_id,given\n1,"' + b"x" * (20 << 20) + b'"\n', "longer than"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=reason) as refused:
        run("link", path, "--output", tmp_path / "links.csv")
    assert "\n" not in refused.value.message
    assert not (tmp_path / "links.csv").exists()


def test_ids_with_commas_quotes_and_line_breaks_survive(tmp_path: Path) -> None:
    odd = ['a,"b"', "c\nd", "é"]
    source = write(tmp_path / "odd.csv", [{"record_id": r, "given": "Ann", "family": "Lee"} for r in odd])
    run("link", source, "--output", tmp_path / "links.csv")
    with (tmp_path / "links.csv").open(encoding="utf-8", newline="") as file:
        assert [row["record_id"] for row in csv.DictReader(file)] == odd


def test_the_training_report_is_one_file_without_outside_references(records: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    run("train", records, "--output", tmp_path / "m.json", "--report", report)
    page = report.read_text(encoding="utf-8")
    for heading in ("Weights", "Match weights", "Expected precision and recall", "Calibration", "Data quality"):
        assert heading in page
    assert "http" not in page
    assert "Kowalczyk" not in page
    for source in ("er", "primary", "pharmacy"):
        assert f"<td>{source}</td>" in page
