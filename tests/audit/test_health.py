"""What the officer's pages show of the log as a whole: charts and verifications."""

import threading
from datetime import date, timedelta

import pytest

from hie.audit.event import Kind
from hie.audit.health import Found, LogHealth
from hie.audit.query import AuditQuery, Span
from hie.audit.statistics import LogStatistics
from hie.core.errors import Conflict
from tests.audit.samples import START, caller, disclosure, event

GLASS = caller(organization="harbor", purposes=frozenset({"BTG", "TREAT"}), break_glass_reason="unconscious")


def test_counts_per_day_and_kind_by_organization_and_purpose(database, log, clock):
    log.record(disclosure(), disclosure(caller=GLASS), event(Kind.DENIAL, "R"), event(Kind.SIGN_IN, "E", caller=None))
    clock.forward(days=2)
    log.record(disclosure())
    found = LogStatistics(database).of(AuditQuery())
    assert {day: dict(kinds) for day, kinds in found.per_day.items()} == {
        date(2026, 3, 1): {"disclosure": 1, "break-glass": 1, "denial": 1, "sign-in": 1},
        date(2026, 3, 3): {"disclosure": 1},
    }
    assert found.organizations == (("lakeside", 3), ("harbor", 1))
    assert found.purposes == (("TREAT", 4), ("BTG", 1))
    assert found.total == 5
    narrow = LogStatistics(database).of(AuditQuery(dates=(Span(START + timedelta(days=1)),), kinds=(("disclosure",),)))
    assert (narrow.total, narrow.purposes) == (1, (("TREAT", 1),))


def test_the_newest_entry(database, log, clock):
    health = LogHealth(database, clock)
    assert health.newest() is None
    log.record(disclosure(), disclosure())
    assert (health.newest().index, health.newest().at) == (1, START)


def test_a_verification_runs_beside_and_its_progress_and_end_are_seen_by_all(database, log, clock, monkeypatch):
    monkeypatch.setattr("hie.audit.health._SECONDS_BETWEEN_NOTES", 0)
    log.record(disclosure(), disclosure())
    half, go_on = threading.Event(), threading.Event()

    def verify(progress):
        progress(1, 2)
        half.set()
        assert go_on.wait(30)
        return Found(False, 2, "Entry 1 is not what its leaf commits to.")

    thread = LogHealth(database, clock, verify).start("p.okafor")
    assert half.wait(30)
    other_worker = LogHealth(database, clock, verify)
    (running,) = other_worker.history()
    assert (running.running, running.done, running.total, running.ok) == (True, 1, 2, None)
    with pytest.raises(Conflict, match="already"):
        other_worker.start("somebody")
    go_on.set()
    thread.join(30)
    (ended,) = other_worker.history()
    assert (ended.running, ended.ok, ended.done, ended.started_by) == (False, False, 2, "p.okafor")
    assert ended.sentence == "Entry 1 is not what its leaf commits to."


def test_a_verification_that_breaks_off_says_so(database, clock, caplog):
    def broken(_progress):
        raise RuntimeError("patient Marta")

    LogHealth(database, clock, broken).start("p").join(30)
    (ended,) = LogHealth(database, clock).history()
    assert (ended.ok, ended.sentence) == (False, "The verification broke off with an error; see the log.")
    assert "Marta" not in caplog.text


def test_a_verification_whose_process_died_does_not_block_the_next(database, clock, monkeypatch):
    with monkeypatch.context() as died:
        died.setattr(LogHealth, "_run", lambda *_: None)
        LogHealth(database, clock, lambda _progress: Found(True, 0, "")).start("p").join(30)
    assert LogHealth(database, clock).history()[0].running
    clock.forward(minutes=3)
    health = LogHealth(database, clock, lambda _progress: Found(True, 0, "fine"))
    assert not health.history()[0].running
    health.start("p").join(30)
    assert health.history()[0].ok


def test_without_a_verifier_the_command_line_is_named(database, clock):
    assert not LogHealth(database, clock).can_verify
    with pytest.raises(Conflict, match="hie audit verify"):
        LogHealth(database, clock).start("p")
