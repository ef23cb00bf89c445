"""`hie mpi`: link files, hold links to the truth, train the match model, explain its scores (contract section 7).

numpy and pyarrow take a third of a second to import and load only in the commands that use them.
"""

from __future__ import annotations

import csv
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson
import sqlalchemy as sa

from hie.cli.opening import Opened, opened
from hie.cli.review import review
from hie.core.clock import system_clock
from hie.core.errors import BadRequest, NotFound
from hie.core.ids import new_id
from hie.gateway.stewardship import record_seen
from hie.mpi import training
from hie.mpi.comparison import compare, hard_conflict
from hie.mpi.demographics import Traits, row_of, traits_of_row
from hie.mpi.model import CERTAINTY_OF_FILES, DEFAULT_PATH, Model, Score
from hie.mpi.reindexing import Reindexing
from hie.mpi.tables_match import match_traits

if TYPE_CHECKING:
    from hie.mpi.batch import Scoring

CSV_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def mpi() -> None:
    """The master patient index: who is who."""


mpi.add_command(review)


@mpi.command()
@click.argument("records", type=CSV_FILE, required=False)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where the model goes.")
@click.option(
    "--base", type=CSV_FILE, default=DEFAULT_PATH, help="The model to start from; the shipped one if not given."
)
@click.option(
    "--population",
    type=click.IntRange(min=1),
    help="People a stranger may be one of; learned from the records if not given.",
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Where an HTML report goes.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary for machines.")
def train(
    records: Path | None, output: Path, base: Path, population: int | None, report: Path | None, as_json: bool
) -> None:
    """Fit the model to RECORDS (a CSV as for `hie mpi link`), or to the exchange's own records. Needs no labels."""
    traits = list(_from_csv(records).values()) if records else _from_exchange()
    provenance = {
        "made by": "hie mpi train",
        "method": "expectation-maximisation without labels, from the base model",
        "base": Model.load(base).version,
        "data": f"{len(traits)} records of {'a file' if records else 'the exchange'}",
        "at": datetime.now(UTC).date().isoformat(),
    }
    if population:
        provenance["population"] = f"{population} people, as told"
    trained = training.estimate(traits, Model.load(base), provenance, population=population)
    trained.model.save(output)
    if report:
        from hie.mpi import report as reporting
        from hie.mpi.batch_read import read, table_of

        table = read(records) if records else table_of([row_of(str(k), t) for k, t in enumerate(traits)])
        reporting.write(report, trained.model, reporting.scores_of(table, trained.model))
    found = training.summary(trained)
    if as_json:
        click.echo(orjson.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' '):<20} {value}")


@mpi.command()
@click.argument("records", type=CSV_FILE, metavar="INPUT")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where the links go.")
@click.option("--model", "model_path", type=CSV_FILE, help="The model; learned from the file itself if not given.")
@click.option(
    "--certainty",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=CERTAINTY_OF_FILES,
    help="Probability from which records are one person, two in three if not given; members' feeds link from 0.999.",
)
@click.option(
    "--engine", type=click.Choice(["local", "spark"]), default="local", help="This process, or PySpark (extra spark)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary for machines.")
def link(records: Path, output: Path, model_path: Path | None, certainty: float, engine: str, as_json: bool) -> None:
    """Say which records of INPUT (CSV or Parquet) are one person: record_id, person_id, match_probability."""
    started = time.monotonic()
    model = Model.load(model_path) if model_path else None
    from hie.mpi.batch import link_file
    from hie.mpi.batch_score import score_all

    with _on_spark() if engine == "spark" else nullcontext(score_all) as scoring:
        made = link_file(records, output, model, _progress, certainty, scoring)
    found = {
        "records": len(made.record_ids),
        "people": made.people,
        "pairs_compared": made.pairs,
        "placeholders_emptied": made.emptied,
        "model": made.model.version,
        "seconds": round(time.monotonic() - started, 2),
    }
    if as_json:
        click.echo(orjson.dumps(found))
        return
    click.echo(f"{found['records']:,} records are {found['people']:,} people ({found['seconds']} s, {output}).")
    for trait, count in made.emptied.items():
        click.echo(f"{count:,} values of {trait} are shared by too many people to count.")


def _on_spark() -> AbstractContextManager[Scoring]:
    from hie.mpi.spark import scoring

    return scoring()


def _progress(step: str) -> None:
    """One line on a terminal that says what is being done; nothing in a pipe."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{step} ..." if step else "\r\x1b[K", nl=False, err=True)


@mpi.command()
def reindex() -> None:
    """Make the match and search indexes anew from the exchange's records, which may go on serving meanwhile."""
    with opened() as exchange:
        run = Reindexing(exchange.database, exchange.index, system_clock).run
        records = run(lambda done, total: _progress(f"{done:,} of {total:,} people"))
    _progress("")
    click.echo(f"{records:,} records indexed.")


@mpi.command()
@click.argument("links", type=CSV_FILE)
@click.option("--truth", type=CSV_FILE, required=True, help="CSV with record_id and the true person_id.")
@click.option(
    "--at", type=click.FloatRange(0, 1), default=0.0, help="Records below this match_probability stand alone."
)
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
def evaluate(links: Path, truth: Path, at: float, as_json: bool) -> None:
    """Hold LINKS (from `hie mpi link`) to the truth: over pairs of records, and over people found exactly."""
    from hie.mpi import evaluation

    found = evaluation.evaluate(evaluation.links(links, at), evaluation.truth(truth)).to_json()
    if as_json:
        click.echo(orjson.dumps(found))
        return
    for name, value in found.items():
        click.echo(
            f"{name.replace('_', ' '):<18} {value:.5f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' '):<18} {value:,}"
        )


@mpi.command()
@click.argument("a")
@click.argument("b")
@click.option("--file", "records", type=CSV_FILE, help="Look both ids up in this CSV instead of the exchange.")
@click.option("--model", "model_path", type=CSV_FILE, help="The model; if not given, the exchange's own.")
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
def explain(a: str, b: str, records: Path | None, model_path: Path | None, as_json: bool) -> None:
    """Say what makes the records A and B (record ids) one person or two, trait by trait in bits."""
    if records:
        left, right = (_one_of_csv(records, record_id) for record_id in (a, b))
        model = Model.load(model_path)
    else:
        with opened() as exchange:
            left, right = _of_exchange(exchange, a, b)
            model = Model.load(model_path or exchange.settings.match_model)
    score = model.score(compare(left, right))
    conflict = hard_conflict(left, right)
    if as_json:
        click.echo(orjson.dumps(_explained(model, score, conflict)))
        return
    for trait, level, bits in score.contributions:
        click.echo(f"{trait:<12} {level:<12} {bits:+7.1f}")
    prior = score.weight - sum(bits for _, _, bits in score.contributions)
    click.echo(f"{'before any':<12} {'':<12} {prior:+7.1f}")
    click.echo(f"{'together':<12} {'':<12} {score.weight:+7.1f}  probability {score.probability:.6f}")
    click.echo(f"compared as {score.match_class} against {score.other_class}; model {model.version}")
    if conflict:
        click.echo(f"never linked by itself: {conflict}")


def _explained(model: Model, score: Score, conflict: str | None) -> dict[str, object]:
    return {
        "probability": score.probability,
        "weight": score.weight,
        "compared_as": [score.match_class, score.other_class],
        "conflict": conflict,
        "traits": [{"trait": t, "level": level, "weight": round(bits, 3)} for t, level, bits in score.contributions],
        "model": model.version,
    }


def _from_csv(path: Path) -> dict[str, Traits]:
    """record id -> traits."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if "record_id" not in (rows.fieldnames or ()):
            raise BadRequest(f"{path} has no column record_id.")
        return {row["record_id"]: traits_of_row(row) for row in rows}


def _one_of_csv(path: Path, record_id: str) -> Traits:
    found = _from_csv(path).get(record_id)
    if found is None:
        raise NotFound(f"{path} has no record {record_id}.")
    return found


def _from_exchange() -> list[Traits]:
    with opened() as exchange, exchange.database.read() as connection:
        rows = connection.execute(sa.select(match_traits.c.traits).order_by(match_traits.c.record_id))
        return [Traits.from_json(row.traits) for row in rows]


def _of_exchange(exchange: Opened, *record_ids: str) -> list[Traits]:
    """Records of the exchange, once the log has that somebody looked at their people. Raises NotFound."""
    with exchange.database.read() as connection:
        query = sa.select(match_traits).where(match_traits.c.record_id.in_(record_ids))
        held = {row.record_id: row for row in connection.execute(query)}
    missing = next((record_id for record_id in record_ids if record_id not in held), None)
    if missing is not None:
        raise NotFound(f"The exchange has no record {missing}.")
    people = [held[record_id].person_id for record_id in record_ids]
    record_seen(exchange.audit, None, people, "hie mpi explain", new_id())
    return [Traits.from_json(held[record_id].traits) for record_id in record_ids]
