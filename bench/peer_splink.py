"""Splink 5 on DuckDB with an expert's set-up, for `bench_mpi.py`; runs in an environment of its own.

Comparisons with levels and term frequencies for names, dates, numbers, e-mail and address; u from random pairs, m by
expectation-maximisation on three training blocks; several blocking rules; clusters at several thresholds, and the best
of them is reported, which is kind to Splink since the truth chose it.

    build/splink/bin/python bench/peer_splink.py RECORDS.csv TRUTH.csv [lean]

`lean` is a faster set-up: fewer levels and five narrow block rules, trained like the other.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
STARTED = time.perf_counter()

import duckdb
import splink.comparison_level_library as cll
import splink.comparison_library as cl
from splink import DuckDBAPI, Linker, SettingsCreator, block_on

COLUMNS = ("given", "middle", "family", "birth_date", "sex", "ssn", "phone", "email", "street", "city", "state", "zip")


def load(connection: duckdb.DuckDBPyConnection, path: str) -> list[str]:
    """The records with empty texts as NULL; returns the columns that hold anything."""
    header = connection.execute("DESCRIBE SELECT * FROM read_csv(?, all_varchar=true)", [path]).fetchall()
    have = [name for name in COLUMNS if name in {row[0] for row in header}]
    cleaned = ", ".join(f"nullif(lower(trim({name})), '') AS {name}" for name in have)
    connection.execute(
        f"CREATE TABLE raw AS SELECT record_id AS unique_id, {cleaned} FROM read_csv('{path}', all_varchar=true)"
    )
    filled = connection.execute("SELECT " + ", ".join(f"count({name})" for name in have) + " FROM raw").fetchall()[0]
    have = [name for name, n in zip(have, filled, strict=True) if n]
    dashed = "birth_date[1:4] || '-' || birth_date[5:6] || '-' || birth_date[7:8]"
    born = f"CASE WHEN length(birth_date) = 8 THEN {dashed} ELSE birth_date END"
    digits = "regexp_replace(ssn, '[^0-9]', '', 'g')"
    ssn = f"CASE WHEN ssn IN ('999-99-9999', '999999999') OR length(ssn) < 6 THEN NULL ELSE {digits} END"
    parts = {
        "birth_date": f"CASE WHEN ({born}) IN ('1900-01-01') THEN NULL ELSE {born} END",
        "ssn": ssn,
        "phone": "nullif(regexp_replace(phone, '[^0-9]', '', 'g'), '')",
        "given": "CASE WHEN given IN ('unknown', 'baby boy', 'test') THEN NULL ELSE given END",
    }
    chosen = ", ".join(f"{parts.get(name, name)} AS {name}" for name in have)
    connection.execute(f"CREATE TABLE records AS SELECT unique_id, {chosen} FROM raw")
    return have


LEAN_RULES = (("ssn",), ("email",), ("given", "family", "birth_date"), ("phone", "given"), ("family", "birth_date"))


def lean(have: list[str]) -> SettingsCreator:
    """What is quick: one fuzzy level per name, none elsewhere but in dates."""
    comparisons = [
        cl.JaroWinklerAtThresholds(name, [0.9]).configure(term_frequency_adjustments=True)
        for name in ("given", "family")
        if name in have
    ]
    comparisons += [cl.DamerauLevenshteinAtThresholds("birth_date", [1])] if "birth_date" in have else []
    comparisons += [cl.ExactMatch(name) for name in ("sex", "ssn", "phone", "email", "street", "zip") if name in have]
    return SettingsCreator(
        link_type="dedupe_only",
        comparisons=comparisons,
        blocking_rules_to_generate_predictions=[block_on(*r) for r in LEAN_RULES if set(r) <= set(have)],
        retain_matching_columns=False,
        retain_intermediate_calculation_columns=False,
    )


def settings(have: list[str]) -> SettingsCreator:
    comparisons = []
    for name in ("given", "family"):
        if name in have:
            comparisons.append(cl.NameComparison(name).configure(term_frequency_adjustments=True))
    if "middle" in have:
        comparisons.append(cl.JaroWinklerAtThresholds("middle", [0.9]))
    if "birth_date" in have:
        comparisons.append(cl.DateOfBirthComparison("birth_date", input_is_string=True))
    if "sex" in have:
        comparisons.append(cl.ExactMatch("sex"))
    for name in ("ssn", "phone"):
        if name in have:
            comparisons.append(cl.DamerauLevenshteinAtThresholds(name, [1]))
    if "email" in have:
        comparisons.append(cl.EmailComparison("email"))
    if "street" in have:
        comparisons.append(
            cl.CustomComparison(
                output_column_name="address",
                comparison_levels=[
                    cll.NullLevel("street"),
                    cll.ExactMatchLevel("street"),
                    cll.JaroWinklerLevel("street", 0.9),
                    *([cll.ExactMatchLevel("zip")] if "zip" in have else []),
                    *([cll.ExactMatchLevel("city")] if "city" in have else []),
                    cll.ElseLevel(),
                ],
            )
        )
    else:
        comparisons += [
            cl.ExactMatch(n).configure(term_frequency_adjustments=True) for n in ("zip", "city") if n in have
        ]
    wanted = (
        ("ssn",), ("phone", "substr(given, 1, 1)"), ("email",), ("given", "birth_date"), ("family", "birth_date"),
        ("given", "family", "zip"), ("birth_date", "zip"), ("given", "family", "substr(birth_date, 1, 4)"),
    )  # fmt: skip
    blocks = [
        block_on(*rule) for rule in wanted if all(part.removeprefix("substr(").split(",")[0] in have for part in rule)
    ]
    return SettingsCreator(
        link_type="dedupe_only",
        comparisons=comparisons,
        blocking_rules_to_generate_predictions=blocks,
        retain_matching_columns=False,
        retain_intermediate_calculation_columns=False,
    )


def train(linker: Linker, have: list[str]) -> None:
    deterministic = [
        block_on(*rule)
        for rule in (("ssn", "birth_date"), ("given", "family", "birth_date"), ("email", "birth_date"))
        if all(part in have for part in rule)
    ]
    linker.training.estimate_probability_two_random_records_match(deterministic, recall=0.8)
    linker.training.estimate_u_using_random_sampling(max_pairs=1e6)
    for rule in (("given", "family"), ("birth_date",), ("zip", "family")):
        if all(part in have for part in rule):
            try:
                linker.training.estimate_parameters_using_expectation_maximisation(block_on(*rule))
            except Exception as error:  # noqa: BLE001  (a block that cannot be trained on is left out, and said)
                print(f"training on {rule} failed: {type(error).__name__}", file=sys.stderr)


def main() -> None:
    path, truth = sys.argv[1:3]
    is_lean = sys.argv[3:] == ["lean"]
    connection = duckdb.connect()
    connection.execute("SET threads=2")
    have = load(connection, path)
    api = DuckDBAPI(connection=connection)
    chosen = lean(have) if is_lean else settings(have)
    linker = Linker(api.register("records"), chosen, log_level=logging.ERROR)
    train(linker, have)
    predictions = linker.inference.predict(threshold_match_probability=0.5)
    first = linker.clustering.cluster_pairwise_predictions_at_threshold(predictions, 0.95)
    connection.execute(f"COPY (SELECT unique_id, cluster_id FROM {first.physical_name}) TO '/dev/null' (FORMAT csv)")
    seconds = time.perf_counter() - STARTED
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
    connection.execute(f"CREATE TABLE truth AS SELECT record_id, person_id FROM read_csv('{truth}', all_varchar=true)")
    best: dict[str, float] = {}
    for threshold in (0.5, 0.8, 0.9, 0.95, 0.99, 0.999):
        found = linker.clustering.cluster_pairwise_predictions_at_threshold(predictions, threshold)
        figures = {"threshold": threshold, **judge(connection, found.physical_name)}
        if threshold == 0.95:
            standard = figures
        if figures["people_f1"] > best.get("people_f1", -1):
            best = figures
    total = connection.execute(
        "SELECT sum(n * (n - 1) / 2) FROM (SELECT count(*) n FROM truth GROUP BY person_id)"
    ).fetchall()[0][0]
    linked, right = connection.execute(
        f"""SELECT count(*), count(*) FILTER (a.person_id = b.person_id) FROM {predictions.physical_name} p
        JOIN truth a ON a.record_id = p.unique_id_l JOIN truth b ON b.record_id = p.unique_id_r
        WHERE match_probability >= 0.95"""
    ).fetchall()[0]
    f1 = 2 * right / (linked + total)
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "pairs_at_0.95_f1": f1, "at_0.95": standard, "best": best}))


def judge(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, float]:
    connection.execute(
        f"CREATE OR REPLACE TABLE crossed AS SELECT cluster_id c, person_id p, count(*) n FROM {table} "
        "JOIN truth ON record_id = unique_id GROUP BY ALL"
    )
    row = connection.execute(
        """WITH c AS (SELECT c, sum(n) s FROM crossed GROUP BY c), p AS (SELECT p, sum(n) s FROM crossed GROUP BY p)
        SELECT (SELECT sum(s * (s - 1) / 2) FROM c), (SELECT sum(s * (s - 1) / 2) FROM p),
        (SELECT sum(n * (n - 1) / 2) FROM crossed),
        (SELECT count(*) FROM crossed JOIN c USING (c) JOIN p USING (p) WHERE n = c.s AND n = p.s),
        (SELECT count(*) FROM c), (SELECT count(*) FROM p)"""
    ).fetchall()[0]
    linked, true, right, exact, clusters, people = (float(value or 0) for value in row)
    return {
        "precision": right / linked if linked else 1.0,
        "recall": right / true,
        "f1": 2 * right / (linked + true),
        "people_f1": 2 * exact / (clusters + people),
    }


if __name__ == "__main__":
    main()
