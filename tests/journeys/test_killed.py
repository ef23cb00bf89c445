"""kill -9 while many are asking, round after round: what a caller received is in the log, and the log verifies.

`HIE_KILL_ROUNDS=20 pytest tests/journeys/test_killed.py` for more rounds than everybody's test run has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from tests.journeys.conftest import running
from tests.journeys.world import Exchange

ROUNDS = int(os.environ.get("HIE_KILL_ROUNDS", "5"))
CALLERS = 8
ANSWERS = 40
"""Answers of a round before the exchange is killed under the callers' hands."""
VERIFIER = Path(__file__).parents[2] / "tools" / "verify_log.py"


@pytest.fixture(params=["sqlite", "postgresql"])
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Exchange]:
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("new_postgres_database")()
    with running(tmp_path, database_url=url) as exchange:
        yield exchange


@dataclass
class Received:
    """What callers have in their hands: request ids, and the receipts that were named."""

    names: list[str] = field(default_factory=list)
    receipts: list[str] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, receipt: str) -> None:
        self.names.append(name)
        self.receipts.append(receipt)
        if len(self.names) >= ANSWERS:
            self.enough.set()


def ask_until_it_is_gone(road: Exchange, number: int, received: Received) -> None:
    """CALLERS at once, until the exchange is killed in the middle of what they ask."""
    token, person = road.token("harbor"), road.person("harbor", "h-1")

    def ask(caller: int) -> None:
        for n in range(10_000):
            name = f"round-{number}-{caller}-{n}"
            headers, params = {"X-Request-Id": name}, {"patient": person}
            try:
                answer = road.call("GET", "/fhir/Condition", token, params=params, headers=headers)
            except requests.RequestException:
                return
            if answer.status_code == 200:
                received.add(name, answer.headers["HIE-Receipt"])

    callers = [threading.Thread(target=ask, args=(caller,)) for caller in range(CALLERS)]
    for caller in callers:
        caller.start()
    assert received.enough.wait(60)
    road.stop(signal.SIGKILL)
    for caller in callers:
        caller.join()


def test_kill_9_under_load_loses_no_answer_and_the_log_verifies(road: Exchange, tmp_path: Path) -> None:
    names: list[str] = []
    for number in range(ROUNDS):
        kept = tmp_path / f"before-{number}.checkpoint"
        kept.write_bytes(road.call("GET", "/log/checkpoint").content)
        received = Received()
        ask_until_it_is_gone(road, number, received)
        names += received.names
        said = json.loads(road.run("audit", "verify", "--json", "--checkpoint", str(kept)).stdout)
        assert said["ok"], said
        road.serve()
        recipient_keeps_a_receipt(road, received.receipts[-1], tmp_path)
    logged = road.run("audit", "export").stdout
    assert [name for name in names if f'\\"{name}\\"' not in logged] == []
    assert len(names) >= ROUNDS * ANSWERS


def recipient_keeps_a_receipt(road: Exchange, address: str, tmp_path: Path) -> None:
    """The last thing that was answered before the kill can be proved, by somebody who has only the key."""
    receipt, key = tmp_path / "answer.tlog-proof", tmp_path / "log.vkey"
    receipt.write_bytes(requests.get(address, timeout=20).content)
    key.write_bytes(road.call("GET", "/log/key").content)
    command = [sys.executable, "-I", str(VERIFIER), str(receipt), "--key", str(key)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    assert '"kind":"disclosure"' in done.stdout
