"""Fan-out to three members that each take 50 ms: `hie.gateway.transport` beside a plain `requests` thread pool.

    .venv/bin/python bench/bench_federation.py

Three stub members in one process beside this one, four record types each, so twelve questions a query; one caller, then
sixteen at once. The peer does the least it can: pooled sessions, a pool of threads, a time-out per read, no limits, no
breaker.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter

sys.path.insert(0, str(Path(__file__).parent.parent))

from hie.gateway.directory import Auth
from hie.gateway.transport import MemberQuery, Transport

LATENCY_SECONDS = 0.05
MEMBERS = 3
TYPES = ("AllergyIntolerance", "MedicationRequest", "Condition", "Immunization")
DEADLINE_SECONDS = 5.0
Query = Callable[[], int]


def start_members() -> list[str]:
    """Base URLs of the members; they run in a process of their own, so that they do not share our interpreter lock."""
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(serve(theirs)), daemon=True).start()
    urls: list[str] = ours.recv()
    return urls


async def serve(pipe: Connection) -> None:
    servers = [await asyncio.start_server(answer, "127.0.0.1", 0) for _ in range(MEMBERS)]
    pipe.send([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/fhir" for server in servers])
    await asyncio.Event().wait()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ten resources of about a kilobyte for every search."""
    try:
        while True:
            line = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1]
            kind = line.split("/")[2].split("?")[0]
            await asyncio.sleep(LATENCY_SECONDS)
            body = BODIES[kind]
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _body(kind: str) -> bytes:
    entries = [
        {
            "fullUrl": f"http://127.0.0.1/fhir/{kind}/r{n}",
            "search": {"mode": "match"},
            "resource": {
                "resourceType": kind,
                "id": f"r{n}",
                "patient": {"reference": "Patient/p1"},
                "code": {"coding": [{"system": "http://snomed.info/sct", "code": str(n), "display": "x" * 40}]},
                "note": [{"text": "y" * 600}],
            },
        }
        for n in range(10)
    ]
    return json.dumps({"resourceType": "Bundle", "type": "searchset", "total": 10, "entry": entries}).encode()


BODIES = {kind: _body(kind) for kind in TYPES}


def by_transport(urls: list[str], transport: Transport) -> Query:
    queries = [
        MemberQuery(f"m{n}", url, Auth(), kind, (("patient", "Patient/p1"),), "bench")
        for n, url in enumerate(urls)
        for kind in TYPES
    ]

    def query() -> int:
        answers = transport.ask(queries, time.monotonic() + DEADLINE_SECONDS)
        return sum(len(answer.resources) for answer in answers)

    return query


def by_requests(urls: list[str]) -> Query:
    pool = ThreadPoolExecutor(256)
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_connections=MEMBERS, pool_maxsize=256))

    def fetch(url: str) -> int:
        found = session.get(url, params={"patient": "Patient/p1"}, timeout=DEADLINE_SECONDS).json()
        return len(found["entry"])

    def query() -> int:
        return sum(pool.map(fetch, [f"{url}/{kind}" for url in urls for kind in TYPES]))

    return query


def measure(query: Query, callers: int, seconds: float) -> tuple[float, float, float]:
    """Queries a second, and the median and 99th percentile in ms."""
    for _ in range(3):
        assert query() == MEMBERS * len(TYPES) * 10
    took: list[float] = []
    until = time.monotonic() + seconds

    def call() -> None:
        while time.monotonic() < until:
            started = time.perf_counter()
            query()
            took.append(time.perf_counter() - started)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - started
    took.sort()
    return len(took) / elapsed, took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000


def main() -> None:
    urls = start_members()
    transport = Transport(development=True)
    ways = {
        "hie transport (asyncio, all limits)": by_transport(urls, transport),
        "requests, thread pool": by_requests(urls),
    }
    print(f"{MEMBERS} members, {len(TYPES)} types each, {LATENCY_SECONDS * 1000:.0f} ms a member\n")
    print(f"{'':36}{'callers':>8}{'queries/s':>11}{'p50 ms':>9}{'p99 ms':>9}")
    for callers in (1, 16):
        for name, query in ways.items():
            rate, median, worst = measure(query, callers, 3.0)
            print(f"{name:36}{callers:>8}{rate:>11.1f}{median:>9.1f}{worst:>9.1f}")
    transport.close()


if __name__ == "__main__":
    main()
