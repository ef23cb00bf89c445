"""What evidence costs, beside a log without it on the same database in the same run; the tree; proofs; verification.

    bench/bench_audit.py [--entries 1000000] [--postgresql URL] [--only append|tree|large] [--disk-ms 3]

`append`: 64 callers wait for each entry. "bare" is the same group commit, the same rows with the same indexes and
guards, and neither leaves hashed into a tree nor tiles, checkpoints, signatures or a high-water mark. "ready" means
that the rows' bytes exist already; otherwise each caller builds its AuditEvent as the exchange does. "singly" is the
log with one caller, so that each entry has a transaction and a signature of its own; "single" commits each ready entry
by itself, without evidence. How far apart they are from a group hangs on the disk, whose latency is printed too;
`--disk-ms` adds to each durable write what a slower disk takes (a library before libc's, made with gcc). Rounds of all
of them alternate, and the median counts.

`tree`: leaves a second of the tree alone, in memory, beside pymerkle's (in a throw-away environment under build/).

`large`: a log of a million entries on SQLite, a proof and a receipt out of it, and `hie audit verify` over it.

PostgreSQL: a throw-away server (Debian's package) with its own settings, fsync on; or --postgresql.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import queue
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent.parent))

from hie.audit.entry import Draft, draft
from hie.audit.event import Event
from hie.audit.log import MAX_BATCH, AuditLog, _Request
from hie.audit.merkle import RightEdge, leaf_hash
from hie.audit.rows import insert_entries
from hie.core.clock import system_clock
from hie.core.database import Database, metadata
from tests.audit.samples import BASE, disclosure, seal

CALLERS = 64
ENTRIES = 6400
SINGLE = 300
ROUNDS = 5
ROOT = Path(__file__).parent.parent
PEER = ROOT / "build/pymerkle"
PG_BIN = Path("/usr/lib/postgresql/15/bin")
Work = Callable[[int], None]


# -- append


class Bare:
    """Group commit and rows, and nothing that proves them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: queue.SimpleQueue[tuple[Draft, Future[int]] | None] = queue.SimpleQueue()
        self._size = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def record(self, entry: Draft) -> int:
        done: Future[int] = Future()
        self._queue.put((entry, done))
        return done.result(60)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while first := self._queue.get():
            batch = [first]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    self._queue.put(None)
                    break
                batch.append(following)
            with self._database.write() as connection:
                insert_entries(connection, self._size, [entry for entry, _ in batch])
            self._size += len(batch)
            for place, (_, done) in enumerate(batch):
                done.set_result(place)


def with_evidence(log: AuditLog, events: Sequence[Event]) -> Work:
    return lambda number: log.record(events[number]) and None


def with_evidence_ready(log: AuditLog, drafts: Sequence[Draft]) -> Work:
    def work(number: int) -> None:
        request = _Request((), (drafts[number],))
        log._committer().submit(request)
        request.receipts.result(60)

    return work


def bare(plain: Bare, events: Sequence[Event]) -> Work:
    return lambda number: plain.record(draft(events[number], system_clock(), BASE)) and None


def bare_ready(plain: Bare, drafts: Sequence[Draft]) -> Work:
    return lambda number: plain.record(drafts[number]) and None


def rate(work: Work, count: int, callers: int = CALLERS) -> float:
    """Entries a second of threads that each wait for theirs."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def call() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            work(number)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda _: None, range(callers)))  # the threads are there
        started = time.perf_counter()
        list(pool.map(lambda _: call(), range(callers)))
        return count / (time.perf_counter() - started)


def disk_latency(count: int = 200) -> float:
    """Milliseconds that one durable write of a page takes: what a single commit pays, and a group shares."""
    with tempfile.NamedTemporaryFile() as file:
        started = time.perf_counter()
        for _ in range(count):
            os.write(file.fileno(), b"x" * 4096)
            os.fdatasync(file.fileno())
        return (time.perf_counter() - started) / count * 1000


def events(count: int) -> list[Event]:
    return [disclosure(f"person-{number % 500}", request_id=f"request-{number}") for number in range(count)]


def append(name: str, new_database: Callable[[], Database]) -> None:
    given = events(ENTRIES)
    body = len(draft(given[0], system_clock(), BASE).body)
    print(f"{name}: {CALLERS} callers, {ENTRIES:,} entries a round, body {body:,} bytes")
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        ready = [draft(event, system_clock(), BASE) for event in given]
        for kind in ("log", "bare", "log, ready", "bare, ready"):
            rates.setdefault(kind, []).append(one_round(kind, new_database(), given, ready))
        rates.setdefault("single, ready", []).append(single_round(new_database(), ready))
        rates.setdefault("log, singly", []).append(one_round("log, singly", new_database(), given[:SINGLE], ready))
    middle = {kind: statistics.median(found) for kind, found in rates.items()}
    for kind, found in middle.items():
        print(f"  {kind:<16}{found:>9,.0f} a second   ({min(rates[kind]):,.0f} to {max(rates[kind]):,.0f})")
    for pair in (("log", "bare"), ("log, ready", "bare, ready")):
        each = [a / b for a, b in zip(rates[pair[0]], rates[pair[1]], strict=True)]
        print(f"  {pair[0]} / {pair[1]}: {statistics.median(each):.0%} (bar: 80 %)")
    print(f"  log / log, singly: {middle['log'] / middle['log, singly']:.1f} times (bar: 10)")
    for kind in ("log, ready", "bare, ready"):
        print(f"  {kind} / single, ready: {middle[kind] / middle['single, ready']:.1f} times", flush=True)


def one_round(kind: str, database: Database, given: Sequence[Event], ready: Sequence[Draft]) -> float:
    with tempfile.TemporaryDirectory() as home:
        log = AuditLog(database, system_clock, BASE, seal(Path(home)))
        plain = Bare(database)
        work = {
            "log": with_evidence(log, given),
            "log, singly": with_evidence(log, given),
            "bare": bare(plain, given),
            "log, ready": with_evidence_ready(log, ready),
            "bare, ready": bare_ready(plain, ready),
        }[kind]
        try:
            return rate(work, len(given), 1 if kind == "log, singly" else CALLERS)
        finally:
            log.close()
            plain.close()
            database.close()


def single_round(database: Database, ready: Sequence[Draft]) -> float:
    lock = threading.Lock()
    size = iter(range(len(ready)))

    def work(number: int) -> None:
        with lock, database.write() as connection:
            insert_entries(connection, next(size), [ready[number]])

    try:
        return rate(work, SINGLE)
    finally:
        database.close()


@contextmanager
def sqlite_databases() -> Iterator[Callable[[], Database]]:
    with tempfile.TemporaryDirectory() as folder:

        def new() -> Database:
            database = Database(f"sqlite:///{folder}/{uuid.uuid4().hex}.sqlite")
            metadata.create_all(database.engine)
            return database

        yield new


@contextmanager
def postgresql_databases(url: str | None) -> Iterator[Callable[[], Database] | None]:
    if url is None and not PG_BIN.exists():
        yield None
        return
    with _server() if url is None else _given(url) as server:
        admin = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")

        def new() -> Database:
            name = "b" + uuid.uuid4().hex
            with admin.connect() as connection:
                connection.execute(sa.text(f"CREATE DATABASE {name}"))
            database = Database(f"{server}/{name}")
            metadata.create_all(database.engine)
            return database

        yield new
        admin.dispose()


@contextmanager
def _given(url: str) -> Iterator[str]:
    yield url.rpartition("/")[0]


@contextmanager
def _server() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="hie-bench-"))
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_postgres:
        folder.chmod(0o755)
        shutil.chown(folder, pwd.getpwnam("postgres").pw_uid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run([*as_postgres, *command], check=True, capture_output=True, cwd="/", timeout=120)

    run(str(PG_BIN / "initdb"), "-D", f"{folder}/data", "-A", "trust", "-U", "postgres")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c max_connections=200"
    run(str(PG_BIN / "pg_ctl"), "-D", f"{folder}/data", "-l", f"{folder}/log", "-w", "-o", options, "start")
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}"
    finally:
        run(str(PG_BIN / "pg_ctl"), "-D", f"{folder}/data", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


# -- the tree


def tree(count: int = 200_000) -> None:
    print(f"tree, in memory: {count:,} leaves of 170 bytes, leaf hashing included")
    leaves = [b"%0170d" % number for number in range(count)]

    def ours() -> None:
        edge = RightEdge()
        for start in range(0, count, CALLERS):
            edge.extend(map(leaf_hash, leaves[start : start + CALLERS]))
        _ = edge.root

    rates = {"hie": _leaves_a_second(ours, count)}
    if (PEER / "bin/python").exists() or _prepare_peer():
        command = [str(PEER / "bin/python"), str(ROOT / "bench/peer_pymerkle.py"), str(count)]
        rates["pymerkle 7"] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    else:
        print("  pymerkle cannot be installed here; its line is left out")
    for name, found in rates.items():
        print(f"  {name:<16}{found:>11,.0f} a second")
    if len(rates) > 1:
        print(f"  hie / pymerkle: {rates['hie'] / rates['pymerkle 7']:.1f} times (bar: 3)", flush=True)


def _prepare_peer() -> bool:
    subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
    wanted = [str(PEER / "bin/pip"), "install", "-q", "pymerkle==7.0.0"]
    return subprocess.run(wanted, check=False, capture_output=True).returncode == 0


def _leaves_a_second(work: Callable[[], None], count: int) -> float:
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        work()
        best = max(best, count / (time.perf_counter() - started))
    return best


# -- a large log


def large(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="hie-bench-") as folder:
        home = Path(folder)
        hie = str(Path(sys.executable).with_name("hie"))
        subprocess.run([hie, "db", "upgrade"], env=_environment(home), check=True, capture_output=True)
        database = Database(f"sqlite:///{home}/hie.sqlite")
        # Filling it takes minutes as it is; nobody waits for these commits.
        sa.event.listen(database.engine, "connect", lambda opened, _: opened.execute("PRAGMA synchronous = OFF"))
        log = AuditLog(database, system_clock, BASE, seal(home))
        started = time.perf_counter()
        fill(log, database, count)
        size = (home / "hie.sqlite").stat().st_size / 1e9
        print(f"a log of {count:,} entries on SQLite, {size:.1f} GB, made in {time.perf_counter() - started:,.0f} s")
        proofs(log, database, count)
        log.close()
        database.close()
        verified(home, count)


def fill(log: AuditLog, database: Database, count: int) -> None:
    """In transactions of CALLERS entries each, as callers that wait would make them."""
    for first in range(0, count, CALLERS):
        made = [
            draft(disclosure(f"person-{number % 20_000}", request_id=f"request-{number}"), system_clock(), BASE)
            for number in range(first, min(first + CALLERS, count))
        ]
        with database.write() as connection:
            log._write(connection, made)
        if sys.stderr.isatty() and first % 64_000 == 0:
            print(f"\r{first:,} of {count:,}", end="", file=sys.stderr, flush=True)


def proofs(log: AuditLog, database: Database, count: int) -> None:
    chosen = random.Random(5).sample(range(count), 500)
    with database.read() as connection:
        ids = [
            connection.scalar(sa.text("SELECT entry_id FROM audit_entries WHERE entry_index = :i"), {"i": index})
            for index in chosen
        ]
    took = []
    for entry_id in ids:
        started = time.perf_counter()
        proof = log.evidence.proof(entry_id)
        took.append((time.perf_counter() - started) * 1000)
        assert proof is not None
        proof.require_included()
    at = statistics.quantiles(took, n=100)
    print(f"  a receipt with its proof: p50 {at[49]:.2f} ms, p95 {at[94]:.2f} ms, p99 {at[98]:.2f} ms (bar: 5 ms)")


def verified(home: Path, count: int) -> None:
    """`hie audit verify` as an operator runs it, and the most memory that each of its processes ever held."""
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("hie")), "audit", "verify", "--json"]
    peaks: dict[int, float] = {}
    together = 0.0
    with subprocess.Popen(command, env=_environment(home), stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            running = (process.pid, *_children(process.pid))
            peaks |= {pid: max(peaks.get(pid, 0.0), _memory(pid, "status", "VmHWM")) for pid in running}
            together = max(together, sum(_memory(pid, "smaps_rollup", "Pss") for pid in running))
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        report = json.loads(process.stdout.read() if process.stdout else "{}")
    assert report["entries"] == count, report
    own, *workers = (peaks[pid] for pid in sorted(peaks))
    print(
        f"  verified: {report['checkpoints']:,} checkpoints, {seconds:.1f} s, {count / seconds:,.0f} entries a second "
        f"with {os.cpu_count()} processors (bar: 60 s for 1,000,000)"
    )
    print(
        f"  memory: VmHWM {own:.0f} MB, and {', '.join(f'{peak:.0f}' for peak in workers)} MB in the workers; together "
        f"at most {together:.0f} MB with what they share counted once (Pss; bar: 200 MB)",
        flush=True,
    )


def _environment(home: Path) -> dict[str, str]:
    own = {"HIE_HOME": str(home), "HIE_DATABASE_URL": "", "HIE_BASE_URL": BASE.removesuffix("/fhir")}
    return {**os.environ, "PYTHONPATH": str(ROOT), **own}


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _memory(pid: int, file: str, name: str) -> float:
    """In MB; nothing for a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


_SLOWER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int fsync(int f) { usleep(MICROSECONDS); return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(f); }
int fdatasync(int f) { usleep(MICROSECONDS); return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(f); }
"""


def on_a_slower_disk(milliseconds: float) -> int:
    """This bench again, in a process in which each durable write takes so much longer; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "slower.so"
        compiler = ["gcc", "-shared", "-fPIC", f"-DMICROSECONDS={int(milliseconds * 1000)}", "-x", "c", "-"]
        subprocess.run([*compiler, "-o", str(library), "-ldl"], input=_SLOWER.encode(), check=True)
        library.chmod(0o755)
        Path(folder).chmod(0o755)  # PostgreSQL's user reads it, too
        slower = {**os.environ, "LD_PRELOAD": str(library)}
        return subprocess.run([sys.executable, *sys.argv], env=slower, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--postgresql", help="SQLAlchemy URL of a server to make databases on")
    parser.add_argument("--only", choices=("append", "tree", "large"))
    parser.add_argument("--disk-ms", type=float, default=0, help="milliseconds that each durable write takes longer")
    arguments = parser.parse_args()
    if arguments.disk_ms and "LD_PRELOAD" not in os.environ:
        sys.exit(on_a_slower_disk(arguments.disk_ms))
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    if arguments.only in (None, "append"):
        print(f"a durable write of 4 kB takes {disk_latency():.2f} ms on this disk")
        with sqlite_databases() as new_sqlite:
            append("SQLite", new_sqlite)
        with postgresql_databases(arguments.postgresql) as new_postgresql:
            if new_postgresql is None:
                print("PostgreSQL is not installed; left out")
            else:
                append("PostgreSQL", new_postgresql)
    if arguments.only in (None, "tree"):
        tree()
    if arguments.only in (None, "large"):
        large(arguments.entries)
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
