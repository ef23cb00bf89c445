"""One ER query through the whole exchange: HTTP in, three members at 50 ms each, consent, durable audit, HTTP out.

Beside it, from the same run, the peer: a script that holds the three addresses and local ids already and asks the same
members in parallel with `requests`, without identity, consent or log. `.venv/bin/python bench/bench_query.py`
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.journeys.conftest import running
from tests.journeys.world import matches

LATENCY = 0.05
QUERIES = 200


def measure(ask: Callable[[], None]) -> list[float]:
    """Milliseconds of each of QUERIES calls, one caller, after ten to warm up."""
    for _ in range(10):
        ask()
    took = []
    for _ in range(QUERIES):
        started = time.perf_counter()
        ask()
        took.append((time.perf_counter() - started) * 1000)
    return took


def report(name: str, took: list[float]) -> None:
    percentiles = statistics.quantiles(took, n=100)
    print(f"{name:<58}{percentiles[49]:>8.1f}{percentiles[94]:>8.1f}{percentiles[98]:>8.1f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as home, running(Path(home)) as world:
        for member in world.members.values():
            member.latency = LATENCY
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {world.token('harbor')}"
        question = {"patient.identifier": f"{world.members['harbor'].system}|h-1"}

        def through_the_exchange() -> None:
            answer = session.get(f"{world.base}/fhir/AllergyIntolerance", params=question, timeout=10)
            assert len(matches(answer.json())) == 1

        addresses = [
            f"{world.members[slug].url}/AllergyIntolerance?patient=Patient/{local_id}"
            for slug, local_id in (("harbor", "h-1"), ("meadow", "m-77"), ("summit", "s-5"))
        ]
        sessions = [requests.Session() for _ in addresses]
        with ThreadPoolExecutor(3) as pool:

            def by_hand() -> None:
                replies = pool.map(
                    lambda pair: pair[0].get(pair[1], timeout=10).json(), zip(sessions, addresses, strict=True)
                )
                assert sum(len(reply["entry"]) for reply in replies) == 1

            print(f"{'ms, one caller, 3 members at 50 ms':<58}{'p50':>8}{'p95':>8}{'p99':>8}")
            report("hie: identity, consent, labels, durable audit, bundle", measure(through_the_exchange))
            report("peer: requests + threads, addresses and ids known", measure(by_hand))
    print(f"{'import hie.app':<58}{import_seconds():>7.2f}s")


def import_seconds() -> float:
    """Seconds to import the application, best of three fresh processes."""
    code = "import time; t = time.perf_counter(); import hie.app; print(time.perf_counter() - t)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))


if __name__ == "__main__":
    main()
