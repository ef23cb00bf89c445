"""No member can make the exchange slower than its deadline or larger than its limits (law L6)."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.journeys.world import Exchange, issues, matches, source_codes

DEADLINE = 1.5

FAULTS = {
    "hang": "timeout",
    "drip": "timeout",
    "reset": "unreachable",
    "html": "invalid",
    "garbage": "invalid",
    "error": "error",
    "huge": "truncated",
    "ignores_patient": "invalid",
}


def _rss(exchange: Exchange) -> int:
    """Kilobytes of memory of all processes of the exchange."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
            group = int((status.parent / "stat").read_text().rsplit(") ", 1)[1].split()[2])
        except (OSError, ValueError):
            continue
        if (
            exchange.process is not None
            and group == exchange.process.pid
            and (match := re.search(r"VmRSS:\s+(\d+)", text))
        ):
            total += int(match[1])
    return total


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_member_is_named_in_time_and_the_others_answer(calm_world: Exchange, fault: str) -> None:
    world = calm_world
    world.members["summit"].resources = {"AllergyIntolerance": world.members["meadow"].resources["AllergyIntolerance"]}
    world.members["summit"].mode = fault
    token = world.token("harbor")
    before = _rss(world)
    started = time.perf_counter()
    answer = world.records("harbor", "AllergyIntolerance", "h-1", token=token)
    took = time.perf_counter() - started
    assert took < DEADLINE * 1.1
    assert answer.status_code == 200
    assert [allergy["code"]["text"] for allergy in matches(answer.json())] == ["Penicillin"]
    codes = source_codes(answer.json())
    assert set(codes) == {FAULTS[fault]}
    assert "summit" in codes[FAULTS[fault]]
    assert "SECRET" not in answer.text
    assert "stranger" not in answer.text
    assert _rss(world) - before < 60_000


def test_when_nobody_answers_the_answer_is_an_error_and_never_an_empty_list(calm_world: Exchange) -> None:
    for member in calm_world.members.values():
        member.mode = "hang"
    answer = calm_world.records("harbor", "AllergyIntolerance", "h-1")
    assert answer.status_code == 504
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert len(source_codes(answer.json())["timeout"]) > 0
    assert len(issues(answer.json())) == 4
    calm_world.members["meadow"].mode = "html"
    mixed = calm_world.records("harbor", "Condition", "h-1")
    assert mixed.status_code == 502


def test_a_member_that_keeps_failing_is_not_waited_for(calm_world: Exchange) -> None:
    calm_world.members["summit"].mode = "hang"
    token = calm_world.token("harbor")
    for _ in range(30):
        started = time.perf_counter()
        codes = source_codes(calm_world.records("harbor", "Procedure", "h-1", token=token).json())
        took = time.perf_counter() - started
        if set(codes) == {"open-circuit"}:
            break
    assert set(codes) == {"open-circuit"}
    assert took < DEADLINE / 2
