"""Writing: durable, gap-free over threads and processes, and never a receipt on doubt."""

import hashlib
import json
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import rfc8785
import sqlalchemy as sa

from hie.audit.event import Kind, Outcome, SourceOutcome
from hie.audit.log import AuditLog, _Committer, _Request
from hie.audit.query import AuditQuery
from hie.audit.tables import entries
from hie.core.clock import instant
from hie.core.database import Database
from hie.core.errors import AuditUnavailable
from tests.audit.samples import BASE, START, Clock, disclosure, event, seal
from tests.audit.writer import write


def indexes(database):
    with database.read() as connection:
        return connection.scalars(sa.select(entries.c.entry_index).order_by(entries.c.entry_index)).all()


def test_a_recorded_event_can_be_read_by_its_receipt(log):
    (receipt,) = log.record(disclosure())
    entry = log.entry(receipt.index)
    assert (receipt.index, entry.entry_id, entry.leaf_hash) == (0, receipt.entry_id, receipt.leaf_hash)
    assert entry.kind == "disclosure"
    assert entry.recorded == START
    assert entry.resource["id"] == receipt.entry_id
    assert log.search(AuditQuery(ids=((receipt.entry_id,),))).entries == (entry,)
    assert log.entry(1) is None


def test_the_leaf_recomputes_from_salt_and_body_and_holds_no_patient_data(log):
    (receipt,) = log.record(disclosure("person-1"))
    entry = log.entry(receipt.index)
    leaf = {
        "v": 1,
        "id": entry.entry_id,
        "time": instant(START),
        "kind": "disclosure",
        "commit": hashlib.sha256(entry.salt + entry.body).hexdigest(),
    }
    assert len(entry.salt) == 16
    assert entry.leaf == rfc8785.dumps(leaf)
    assert entry.leaf_hash == hashlib.sha256(b"\x00" + entry.leaf).digest()
    assert entry.body == rfc8785.dumps(json.loads(entry.body))
    assert b"person-1" in entry.body
    assert b"person-1" not in entry.leaf


def test_equal_events_have_different_commitments(log):
    first, second = log.record(disclosure(), disclosure())
    assert first.leaf_hash != second.leaf_hash


def test_events_of_one_call_stand_together_in_order(log):
    log.record(disclosure())
    receipts = log.record(*(disclosure(f"p{number}") for number in range(5)))
    assert [receipt.index for receipt in receipts] == [1, 2, 3, 4, 5]
    assert [log.entry(receipt.index).person_id for receipt in receipts] == ["p0", "p1", "p2", "p3", "p4"]


def test_nothing_to_record_is_no_entry(log, database):
    assert log.record() == ()
    with database.write() as connection:
        assert log.append(connection) == ()
    assert indexes(database) == []


def test_many_threads_give_a_sequence_without_gaps(log, database):
    with ThreadPoolExecutor(24) as pool:
        receipts = [r for rs in pool.map(lambda n: log.record(disclosure(f"p{n}")), range(240)) for r in rs]
    assert sorted(receipt.index for receipt in receipts) == list(range(240))
    assert indexes(database) == list(range(240))
    assert {log.entry(r.index).entry_id for r in receipts} == {r.entry_id for r in receipts}


def test_waiters_share_a_transaction(log, monkeypatch):
    """Group commit: what queues up behind one transaction is written in the next, all of it at once."""
    entered, release, sizes = threading.Event(), threading.Event(), []
    commit = log._commit

    def held(requests):
        entered.set()
        release.wait(30)
        sizes.append(len(requests))
        commit(requests)

    monkeypatch.setattr(log, "_commit", held)
    requests = [_Request((disclosure(),)) for _ in range(31)]
    log._committer().submit(requests[0])
    assert entered.wait(30)
    for request in requests[1:]:
        log._committer().submit(request)
    release.set()
    assert [request.receipts.result(30)[0].index for request in requests] == list(range(31))
    assert sizes == [1, 30]


def test_two_processes_at_once_give_neither_gaps_nor_duplicates(database, log, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    writers = [
        context.Process(target=write, args=(database.url, tmp_path, barrier, name, 4, 25))
        for name in ("first", "second")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert indexes(database) == list(range(200))
    for name in ("first", "second"):
        for number in range(4):
            assert log.search(AuditQuery(persons=((f"{name}-{number}",),))).total == 25


def test_a_forked_process_writes_with_a_committer_of_its_own(database, log):
    log.record(disclosure("parent"))

    def child():
        database.dispose_inherited()
        log.record(disclosure("child"))
        log.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    log.record(disclosure("parent again"))
    assert [log.entry(index).person_id for index in range(3)] == ["parent", "child", "parent again"]


def test_append_commits_and_fails_with_the_callers_transaction(database, log):
    with pytest.raises(RuntimeError), database.write() as connection:
        log.append(connection, disclosure())
        raise RuntimeError
    assert indexes(database) == []
    with database.write() as connection:
        (receipt,) = log.append(connection, disclosure("appended"))
        assert log.append(connection, disclosure("again"))[0].index == 1
    assert receipt.index == 0
    assert log.entry(0).person_id == "appended"


def test_a_failing_database_gives_no_receipt(database, log):
    with database.write() as connection:
        connection.execute(sa.text("ALTER TABLE audit_entities RENAME TO audit_entities_gone"))
    with pytest.raises(AuditUnavailable) as refused:
        log.record(disclosure())
    assert refused.value.status == 503
    assert indexes(database) == []
    with pytest.raises(AuditUnavailable), database.write() as connection:
        log.append(connection, disclosure())
    with database.write() as connection:
        connection.execute(sa.text("ALTER TABLE audit_entities_gone RENAME TO audit_entities"))
    assert log.record(disclosure())[0].index == 0


def test_a_database_that_cannot_be_reached_gives_no_receipt(tmp_path, free_port):
    for url in (f"sqlite:///{tmp_path}/missing/hie.sqlite", f"postgresql+psycopg://u@127.0.0.1:{free_port()}/hie"):
        log = AuditLog(Database(url), Clock(), BASE, seal(tmp_path))
        with pytest.raises(AuditUnavailable):
            log.record(disclosure())
        log.close()


def test_a_lock_that_is_held_too_long_gives_no_receipt(database, clock, tmp_path):
    log = AuditLog(database, clock, BASE, seal(tmp_path), wait=0.2)
    other = AuditLog(database, clock, BASE, seal(tmp_path))
    with database.write() as connection:
        other.append(connection, disclosure("other"))
        with pytest.raises(AuditUnavailable):
            log.record(disclosure())
    log.close()
    other.close()


def test_an_error_in_commit_is_a_success_only_if_the_rows_are_there(database, log, monkeypatch):
    lost = sa.exc.OperationalError("COMMIT", {}, ConnectionError())
    write_as_usual = database.write

    @contextmanager
    def answer_lost_after_commit():
        with write_as_usual() as connection:
            yield connection
        raise lost

    @contextmanager
    def lost_before_commit():
        with write_as_usual() as connection:
            yield connection
            raise lost

    monkeypatch.setattr(database, "write", answer_lost_after_commit)
    (receipt,) = log.record(disclosure("durable"))
    assert log.entry(receipt.index).person_id == "durable"
    monkeypatch.setattr(database, "write", lost_before_commit)
    with pytest.raises(AuditUnavailable):
        log.record(disclosure("gone"))
    assert indexes(database) == [0]


def test_an_error_in_commit_without_a_second_look_is_no_success(database, log, monkeypatch):
    write_as_usual = database.write

    @contextmanager
    def lost():
        with write_as_usual() as connection:
            yield connection
        raise sa.exc.OperationalError("COMMIT", {}, ConnectionError())

    @contextmanager
    def unreadable():
        raise sa.exc.OperationalError("SELECT", {}, ConnectionError())
        yield

    monkeypatch.setattr(database, "write", lost)
    monkeypatch.setattr(database, "read", unreadable)
    with pytest.raises(AuditUnavailable):
        log.record(disclosure())


def test_an_event_that_cannot_be_written_down_fails_alone(database, log):
    unwritable = disclosure(decisions=({"rule": {1, 2}},))
    with ThreadPoolExecutor(8) as pool:
        bad = [pool.submit(log.record, unwritable) for _ in range(4)]
        good = [pool.submit(log.record, disclosure()) for _ in range(4)]
    assert all(isinstance(future.exception(), AuditUnavailable) for future in bad)
    assert sorted(future.result()[0].index for future in good) == [0, 1, 2, 3]


def test_a_row_that_the_database_refuses_fails_alone(database, log):
    """Two waiters in one batch, of which one has an entry that is already there."""
    (known,) = log._drafts([disclosure("known")])
    (fresh,) = log._drafts([disclosure("fresh")])
    requests = [_Request((), drafts) for drafts in ((known,), (fresh,), (known,))]
    log._commit(requests[:1])
    log._commit(requests[1:])
    assert [requests[n].receipts.result()[0].index for n in (0, 1, 2)] == [0, 1, 0]
    assert indexes(database) == [0, 1]


def test_a_caller_cannot_keep_an_attempt_out_of_the_log_by_what_it_sends(log):
    (receipt,) = log.record(
        event(
            Kind.SIGN_IN,
            "E",
            outcome=Outcome.SERIOUS,
            caller=None,
            person_id=None,
            client_id="evil\x00\ud800" + "x" * 10_000,
            query="POST /oauth2/token\ud800",
            description="unknown client\x1b[2J",
            address="198.51.100.9",
        )
    )
    entry = log.entry(receipt.index)
    assert entry.resource["outcomeDesc"] == "unknown client\ufffd[2J"
    assert log.search(AuditQuery(agents=(("Device/evil\ufffd\ufffd" + "x" * 10_000,),))).total == 1


def test_an_entry_holds_no_secret_and_errors_no_patient_data(database, log, caplog):
    with database.write() as connection:
        connection.execute(sa.text("ALTER TABLE audit_entries RENAME TO gone"))
    with pytest.raises(AuditUnavailable) as refused:
        log.record(disclosure("Very Private"))
    assert "Private" not in caplog.text
    assert "could not be recorded" in caplog.text
    assert refused.value.__cause__ is None
    with database.write() as connection:
        connection.execute(sa.text("ALTER TABLE gone RENAME TO audit_entries"))


def test_closing_writes_what_is_queued_and_refuses_the_rest(database, clock, tmp_path):
    log = AuditLog(database, clock, BASE, seal(tmp_path))
    started = threading.Barrier(9)

    def work():
        started.wait(30)
        try:
            return log.record(disclosure())[0].index
        except AuditUnavailable:
            return None

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(work) for _ in range(8)]
        started.wait(30)
        log.close()
    written = sorted(index for future in futures if (index := future.result()) is not None)
    assert written == indexes(database)
    with pytest.raises(AuditUnavailable):
        log.record(disclosure())
    log.close()


def test_source_failures_are_found_by_organization_newest_first(log, clock):
    log.record(disclosure(sources=(SourceOutcome("meadow", "ok", 1), SourceOutcome("harbor", "timeout", 0))))
    clock.forward(minutes=1)
    log.record(disclosure(request_id="request-2", sources=(SourceOutcome("harbor", "unreachable", 0),)))
    failures = log.source_failures("harbor")
    assert [(f.status, f.request_id) for f in failures] == [("unreachable", "request-2"), ("timeout", "request-1")]
    assert failures[1].at == START
    assert len(log.source_failures("harbor", limit=1)) == 1
    assert log.source_failures("meadow") == []


def committer_of(sizes, patience=5):
    """A committer whose batches only leave their sizes."""

    def commit(requests):
        sizes.append(len(requests))
        for request in requests:
            request.receipts.set_result(())

    return _Committer(commit, patience)


def test_a_single_caller_never_waits_for_company(monkeypatch):
    def asleep(_seconds):
        raise AssertionError("it waited")

    monkeypatch.setattr("hie.audit.log.time.sleep", asleep)
    sizes = []
    committer = committer_of(sizes)
    for _ in range(5):
        request = _Request(())
        committer.submit(request)
        assert request.receipts.result(5) == ()
    committer.close()
    assert sizes == [1] * 5


def test_those_who_were_answered_together_are_waited_for(monkeypatch):
    """Two more come while the committer waits: without the wait the first would have a commit to itself."""
    sizes, late = [], [_Request(()), _Request(())]
    committer = committer_of(sizes)
    committer._took, committer._size = 1.0, 3
    monkeypatch.setattr("hie.audit.log.time.sleep", lambda _: committer.submit(late.pop()) if late else None)
    monkeypatch.setattr("hie.audit.log.LINGER_SECONDS", 10)
    first = _Request(())
    committer.submit(first)
    first.receipts.result(5)
    committer.close()
    assert sizes == [3]


def test_nobody_is_waited_for_longer_than_a_moment():
    """The last batch was of many, and nobody else comes."""
    sizes = []
    committer = committer_of(sizes)
    committer._took, committer._size = 1000.0, 64
    request = _Request(())
    committer.submit(request)
    assert request.receipts.result(5) == ()
    committer.close()
    assert sizes == [1]
