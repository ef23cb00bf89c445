"""Online identity: `$match` in process against many records, and feeds over HTTP by eight callers at once.

`.venv/bin/python bench/bench_online.py` (1,000,000 records on SQLite; `--records` for fewer, `--database URL` for an
empty PostgreSQL). Prints the machine's load beside the figures: on a busy machine they say little.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import requests
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent.parent))

from fixtures.populations import generate, patient
from hie.core.database import Database
from hie.mpi.blocking import keys, lookup_keys
from hie.mpi.demographics import Traits, birth_date_of, traits_of_row
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model
from hie.mpi.tables_match import match_keys, match_traits
from tests.journeys.conftest import running

QUESTIONS = 2000
CHUNK_PEOPLE = 20_000
CALLERS = 8


def population(records: int, seed: int) -> Iterator[tuple[str, Traits]]:
    """(person id, traits), chunk by chunk."""
    made = 0
    while made < records:
        chunk = generate(min(CHUNK_PEOPLE, records - made + 20), seed)
        for record, truth in zip(chunk.records, chunk.truth, strict=True):
            if made == records:
                return
            yield f"{seed}.{truth.person_id}"[:26], traits_of_row(asdict(record))
            made += 1
        seed += 1


def fill(database: Database, records: int) -> tuple[list[Traits], float]:
    """Loads the index in bulk; returns some of what is known, and the seconds it took."""
    started = time.perf_counter()
    known: list[Traits] = []
    rows: list[dict[str, object]] = []
    traits_rows: list[dict[str, object]] = []
    for number, (person, traits) in enumerate(population(records, 1000)):
        record = f"r{number:08}"
        both = (*keys(traits), *lookup_keys(traits))
        rows += [{"key": key, "record_id": record, "person_id": person} for key in both]
        traits_rows.append({"record_id": record, "person_id": person, "traits": traits.to_json()})
        if number % max(1, records // QUESTIONS) == 0:
            known.append(traits)
        if len(traits_rows) == 5000:
            _write(database, rows, traits_rows)
            rows, traits_rows = [], []
    _write(database, rows, traits_rows)
    if not database.is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")
    return known, time.perf_counter() - started


def _write(database: Database, rows: list[dict[str, object]], traits_rows: list[dict[str, object]]) -> None:
    with database.write() as connection:
        for table, values in ((match_keys, rows), (match_traits, traits_rows)):
            if values:
                connection.execute(sa.insert(table), values)


def matches(database: Database, known: list[Traits], strangers: list[Traits]) -> None:
    index = MatchIndex(Model.load(), database.is_sqlite)
    for name, questions in (("people it knows", known), ("strangers", strangers)):
        asked = questions[:QUESTIONS]
        random.Random(3).shuffle(asked)
        for traits in asked[:200]:
            with database.read() as connection:
                index.decide(connection, traits)
        elapsed, worked = [], []
        for traits in asked:
            started, cpu = time.perf_counter(), time.thread_time()
            with database.read() as connection:
                index.decide(connection, traits)
            worked.append((time.thread_time() - cpu) * 1000)
            elapsed.append((time.perf_counter() - started) * 1000)
        for what, took in (("elapsed", elapsed), ("this thread's CPU", worked)):
            p = statistics.quantiles(took, n=1000)
            shown = f"{name}, {what}"
            print(f"  match, {shown:<38}{p[499]:>8.2f}{p[949]:>8.2f}{p[989]:>8.2f}{max(took):>8.1f} ms")


def feeds(seconds: float) -> None:
    """Feeds of new records by eight callers; the callers are this process's threads on the same cores."""
    made = [patient(record) for record in generate(4000, 4711).records]
    bodies = [{k: v for k, v in b.items() if k != "birthDate" or birth_date_of(v)} for b in made]
    with tempfile.TemporaryDirectory() as home, running(Path(home)) as world:
        member = world.members["harbor"]
        token, numbers, stop = (
            world.token("harbor", "system/Patient.cruds"),
            iter(range(10**9)),
            time.monotonic() + seconds,
        )
        lock, took = threading.Lock(), []

        def caller(_: int) -> None:
            session = requests.Session()
            session.headers["Authorization"] = f"Bearer {token}"
            while time.monotonic() < stop:
                with lock:
                    number = next(numbers)
                own = {"system": member.system, "value": f"b-{number}"}
                body = bodies[number % len(bodies)]
                sent = {**body, "identifier": [own, *body.get("identifier", [])]}
                started = time.perf_counter()
                reply = session.put(
                    f"{world.base}/fhir/Patient", params={"identifier": f"{own['system']}|{own['value']}"}, json=sent
                )
                assert reply.status_code in (200, 201), reply.text
                took.append((time.perf_counter() - started) * 1000)

        assert world.process is not None
        before = server_cpu(world.process.pid)
        with ThreadPoolExecutor(CALLERS) as threads:
            list(threads.map(caller, range(CALLERS)))
        cpu = (server_cpu(world.process.pid) - before) * 1000 / len(took)
    p = statistics.quantiles(took, n=100)
    print(f"feeds over HTTP, {CALLERS} callers: {len(took) / seconds:.0f}/s, p50 {p[49]:.0f} ms, p99 {p[98]:.0f} ms;")
    print(f"  the server's CPU {cpu:.1f} ms a feed, so at most {1000 / cpu * (os.cpu_count() or 1):.0f}/s on all cores")


def server_cpu(group: int) -> float:
    """CPU seconds of a process group so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the online index.")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--database", help="URL of an empty database; a new SQLite file if not given.")
    parser.add_argument("--seconds", type=float, default=10, help="How long to feed over HTTP; 0 leaves it out.")
    chosen = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        database = Database(chosen.database or f"sqlite:///{folder}/index.sqlite")
        for table in (match_keys, match_traits):
            table.create(database.engine)
        known, seconds = fill(database, chosen.records)
        print(f"{chosen.records:,} records, loaded in {seconds:.0f} s; load {os.getloadavg()[0]:.1f}")
        print(f"  {'':<49}{'p50':>4}{'p95':>8}{'p99':>8}{'max':>8}")
        matches(database, known, [traits for _, traits in population(QUESTIONS, 99_000)])
        database.close()
    if chosen.seconds:
        feeds(chosen.seconds)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
