"""Retention: what the guard lets through and nothing else, archives that prove themselves, holds that hold."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from hie.audit.access import read
from hie.audit.accounting import Accounting, Asked, ReportKind, Subject
from hie.audit.cases import Step, Verdict
from hie.audit.event import Kind
from hie.audit.merkle import leaf_hash
from hie.audit.query import AuditQuery
from hie.audit.retention import Retention, emptied_without_archive
from hie.audit.review import Review
from hie.audit.suspensions import Suspension
from hie.audit.tables import entries
from hie.audit.verify import Wrong, verify
from hie.core.errors import BadRequest, Conflict, NotFound
from tests.audit.community import FakeCommunity
from tests.audit.samples import Clock, disclosure, seal
from tests.audit.test_review import GLASS, OLU, PATIENCE

LONG_AGO = datetime(2018, 5, 1, 8, tzinfo=UTC)
TODAY = datetime.now(UTC).replace(microsecond=0)
SAME = {"person-1": ("person-1", "person-1-before"), "person-1-before": ("person-1", "person-1-before")}


@pytest.fixture
def clock():
    return Clock(LONG_AGO)


@pytest.fixture
def retention(database, clock, log):
    return Retention(database, clock, log, lambda person_id: SAME.get(person_id, (person_id,)))


@pytest.fixture
def aged(log, clock):
    """Three old entries of person 1, one of person 2, two new ones."""
    log.record(disclosure(), disclosure("person-2"), disclosure("person-1-before"), disclosure())
    clock.now = TODAY
    log.record(disclosure(), disclosure("person-2"))
    return log


def bodies(database):
    with database.read() as connection:
        rows = connection.execute(sa.select(entries.c.entry_index, entries.c.body).order_by(entries.c.entry_index))
        return {index: bool(body) for index, body in rows}


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# -- the guard


def refused(database, **values):
    with pytest.raises(sa.exc.DBAPIError, match="only grows"), database.write() as connection:
        connection.execute(sa.update(entries).where(entries.c.entry_index == 0).values(**values))


def cover(database, first=0, last=3):
    with database.write() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO audit_archives (id, first_index, last_index, entries, sha256, written) "
                "VALUES ('a', :first, :last, 1, 'x', :at)"
            ).bindparams(sa.bindparam("at", TODAY, type_=entries.c.recorded.type)),
            {"first": first, "last": last},
        )


def test_an_old_body_that_an_archive_covers_may_go_with_its_salt(database, aged):
    cover(database)
    with database.write() as connection:
        connection.execute(sa.update(entries).where(entries.c.entry_index == 0).values(body=b"", salt=b""))
    assert bodies(database) == {0: False, 1: True, 2: True, 3: True, 4: True, 5: True}
    assert aged.entry(0).archived


OTHERS = [column.name for column in entries.columns if column.name not in ("body", "salt")]


@pytest.mark.parametrize("column", OTHERS)
def test_no_other_column_may_change_with_it(database, aged, column):
    cover(database)
    now = {"recorded": TODAY, "entry_index": 99, "leaf": b"x", "leaf_hash": b"x" * 32}
    refused(database, body=b"", salt=b"", **{column: now.get(column, "x")})
    if entries.c[column].nullable:
        refused(database, body=b"", salt=b"", **{column: None})


def test_neither_half_of_it_nor_anything_else_may_change(database, aged):
    cover(database)
    body = aged.entry(0).body
    refused(database, body=b"")
    refused(database, salt=b"")
    refused(database, body=b"", salt=b"x")
    refused(database, body=b"{}", salt=b"")
    refused(database, body=body.replace(b"Rosa", b"Nobo"))
    refused(database, outcome="12")
    with database.write() as connection:
        connection.execute(sa.update(entries).where(entries.c.entry_index == 0).values(body=b"", salt=b""))
    refused(database, body=body)


def test_a_body_does_not_go_without_an_archive_or_before_its_time_or_under_a_hold(database, aged, retention):
    refused(database, body=b"", salt=b"")
    cover(database, 1, 5)
    refused(database, body=b"", salt=b"")
    young = sa.update(entries).where(entries.c.entry_index == 4).values(body=b"", salt=b"")
    with pytest.raises(sa.exc.DBAPIError, match="only grows"), database.write() as connection:
        connection.execute(young)
    with database.write() as connection:
        connection.execute(sa.text("UPDATE audit_archives SET first_index = 0"))
    retention.hold("person-1", "Lindqvist v. Harbor", PATIENCE, "r")
    refused(database, body=b"", salt=b"")
    retention.lift("person-1", PATIENCE, "r")
    with database.write() as connection:
        connection.execute(sa.update(entries).where(entries.c.entry_index == 0).values(body=b"", salt=b""))


def test_the_log_verifies_although_bodies_went_to_an_archive_and_not_without_it(database, aged, retention, tmp_path):
    ring = seal(tmp_path).ring()
    assert retention.archive(tmp_path / "a.ndjson", None, "r").entries == 4
    report = verify(database.url, ring, processes=1)
    assert report.entries == aged.search(AuditQuery()).total
    with database.write() as connection:
        connection.execute(sa.text("DELETE FROM audit_archives"))
    with pytest.raises(Wrong) as found:
        verify(database.url, ring, processes=1)
    assert (found.value.index, "archive" in found.value.reason) == (0, True)


def test_deleting_stays_refused_for_what_is_archived(database, aged):
    cover(database)
    with pytest.raises(sa.exc.DBAPIError, match="only grows"), database.write() as connection:
        connection.execute(sa.delete(entries).where(entries.c.entry_index == 0))


# -- archives


def test_old_bodies_go_to_the_file_and_out_of_the_log_and_prove_themselves(database, aged, retention, tmp_path):
    before = {index: aged.entry(index) for index in range(6)}
    path = tmp_path / "log-2018.ndjson"
    done = retention.archive(path, None, "r-1")
    assert (done.entries, done.held) == (4, 0)
    assert bodies(database) == {0: False, 1: False, 2: False, 3: False, 4: True, 5: True, 6: True}
    for index in range(4):
        after = aged.entry(index)
        assert (after.leaf, after.leaf_hash, after.recorded, after.kind) == (
            before[index].leaf,
            before[index].leaf_hash,
            before[index].recorded,
            before[index].kind,
        )
        assert leaf_hash(after.leaf) == after.leaf_hash
    head, *written = lines(path)
    assert head["checkpoint"].startswith("hie.example/log\n6\n")
    assert [line["index"] for line in written] == [0, 1, 2, 3]
    assert retention.check(path) == 4
    assert path.stat().st_mode & 0o777 == 0o600
    aged.check()
    noted = aged.entry(6)
    assert noted.kind == "retention"
    assert done.sha256 in noted.body.decode()
    with database.read() as connection:
        assert emptied_without_archive(connection) == []


def test_a_second_run_finds_nothing_and_no_file_is_overwritten(aged, retention, tmp_path):
    path = tmp_path / "a.ndjson"
    retention.archive(path, None, "r")
    assert retention.archive(tmp_path / "b.ndjson", None, "r").entries == 0
    assert not (tmp_path / "b.ndjson").exists()
    with pytest.raises(Conflict, match="never overwritten"):
        retention.archive(path, None, "r")


def test_a_hold_keeps_every_entry_of_the_person_under_each_id(database, aged, retention, tmp_path):
    retention.hold("person-1-before", "Lindqvist v. Harbor", PATIENCE, "r")
    assert {hold.person_id for hold in retention.holds()} == {"person-1", "person-1-before"}
    done = retention.archive(tmp_path / "a.ndjson", None, "r")
    assert (done.entries, done.held) == (1, 3)
    assert [index for index, kept in bodies(database).items() if not kept] == [1]
    retention.lift("person-1", OLU, "r")
    assert retention.holds() == []
    assert retention.archive(tmp_path / "b.ndjson", None, "r").entries == 3


def test_holds_need_a_reason_and_are_entries_without_the_person(aged, retention):
    with pytest.raises(BadRequest, match="needs a reason"):
        retention.hold("person-1", " ", PATIENCE, "r")
    with pytest.raises(NotFound):
        retention.lift("person-1", PATIENCE, "r")
    retention.hold("person-1", "Lindqvist v. Harbor", PATIENCE, "r")
    (entry,) = aged.search(AuditQuery(kinds=(("retention",),))).entries
    assert entry.person_id is None
    assert "Lindqvist v. Harbor" in entry.body.decode()


def test_a_suspension_is_not_among_the_persons_own_entries(database, aged, retention, clock):
    ends = clock() + timedelta(days=20)
    retention.suspend(Suspension("person-1", "lakeside", clock(), ends, "Sheriff", False), PATIENCE, "r")
    report = Accounting(database, clock).report(Asked(ReportKind.ACCESS, (Subject("person-1", SAME["person-1"]),)))
    assert report.rows == ()
    assert report.completeness.complete
    assert aged.search(AuditQuery(kinds=(("retention",),))).total == 1


def test_what_an_open_case_is_about_stays(database, log, clock, retention, tmp_path):
    review = Review(database, clock, log, FakeCommunity())
    log.record(disclosure("person-3", caller=GLASS), disclosure("person-3"), disclosure("person-4", caller=GLASS))
    clock.now = TODAY
    assert retention.archive(tmp_path / "a.ndjson", None, "r").entries == 1
    assert list(bodies(database).values())[:3] == [True, False, True]  # nobody has opened the queue yet
    review.collect()
    (case,) = review.queue()
    assert retention.archive(tmp_path / "b.ndjson", None, "r").entries == 0
    case = review.take(case.id, Step.ASSIGN, PATIENCE, version=0)
    case = review.take(case.id, Step.JUDGE, PATIENCE, version=1, note="fine", verdict=Verdict.APPROPRIATE)
    review.take(case.id, Step.CONFIRM, OLU, version=2)
    assert retention.archive(tmp_path / "c.ndjson", None, "r").entries == 2
    assert review.file(case.id).accesses[0].archived
    assert review.collect() == 0


def test_a_longer_retention_is_kept_and_a_shorter_one_is_not_possible(database, aged, clock, tmp_path):
    assert Retention(database, clock, aged, lambda p: (p,), years=30).archive(tmp_path / "a", None, "r").entries == 0
    clock.now = LONG_AGO + timedelta(days=5 * 365)
    assert Retention(database, clock, aged, lambda p: (p,), years=1).archive(tmp_path / "b", None, "r").entries == 0


@pytest.mark.parametrize("damage", ["torn", "body", "salt", "swapped", "moved", "proof", "head", "other log", "empty"])
def test_an_archive_that_was_changed_does_not_pass(aged, retention, tmp_path, damage):
    path = tmp_path / "a.ndjson"
    retention.archive(path, None, "r")
    assert retention.check(path) == 4
    written = lines(path)
    head, first, second, *_ = written
    if damage == "body":
        second["body"] = second["body"].replace("Rosa", "Nobo")
    elif damage == "salt":
        del second["salt"]
    elif damage == "swapped":
        first["leaf"], second["leaf"] = second["leaf"], first["leaf"]
    elif damage == "moved":
        second["index"] = 3
    elif damage == "proof":
        second["proof"] = first["proof"]
    elif damage == "head":
        head["checkpoint"] = head["checkpoint"].replace("\n6\n", "\n5\n")
    elif damage == "other log":
        head["format"] = "hie-log-export@v1"
    path.write_text("".join(json.dumps(line) + "\n" for line in written) if damage != "empty" else "")
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Conflict):
        retention.check(path)


def test_a_file_that_does_not_read_as_written_empties_nothing(database, aged, retention, tmp_path, monkeypatch):
    write = Retention._write

    def broken(self, path, due):
        digest = write(self, path, due)
        with path.open("r+b") as file:
            file.seek(60)
            file.write(b"X")
        return digest

    monkeypatch.setattr(Retention, "_write", broken)
    with pytest.raises(Conflict, match="nothing was archived"):
        retention.archive(tmp_path / "a.ndjson", None, "r")
    assert all(bodies(database).values())


def between(monkeypatch, step, act):
    """Have `act` done by somebody else right before a step of an archive run."""
    run = getattr(Retention, step)

    def late(self, *args):
        act()
        return run(self, *args)

    monkeypatch.setattr(Retention, step, late)


def test_a_hold_that_is_placed_while_an_archive_is_written_holds(database, aged, retention, tmp_path, monkeypatch):
    between(monkeypatch, "_empty", lambda: retention.hold("person-1", "Lindqvist v. Harbor", PATIENCE, "r"))
    path = tmp_path / "a.ndjson"
    done = retention.archive(path, None, "r")
    assert (done.entries, done.held) == (1, 3)
    assert [index for index, kept in bodies(database).items() if not kept] == [1]
    assert retention.check(path) == 4
    monkeypatch.undo()
    retention.lift("person-1", PATIENCE, "r")
    assert retention.archive(tmp_path / "b.ndjson", None, "r").entries == 3
    assert verify(database.url, seal(tmp_path).ring(), processes=1).archived == 4


def test_a_hold_on_everything_meanwhile_empties_nothing(database, aged, retention, tmp_path, monkeypatch):
    def everybody():
        for person_id in ("person-1", "person-2"):
            retention.hold(person_id, "Lindqvist v. Harbor", PATIENCE, "r")

    between(monkeypatch, "_empty", everybody)
    done = retention.archive(tmp_path / "a.ndjson", None, "r")
    assert (done.entries, done.held) == (0, 4)
    assert all(bodies(database).values())


def test_a_hold_waits_for_the_page_that_is_being_emptied_and_then_stands(
    database, aged, retention, tmp_path, monkeypatch
):
    """The hold comes after the run has looked for holds and before it empties: the worst moment."""
    holding = ThreadPoolExecutor(1)
    asked, placed = [], threading.Event()
    still_due = Retention._still_due

    def place():
        retention.hold("person-1", "Lindqvist v. Harbor", PATIENCE, "r")
        placed.set()

    def looked(self, connection, indexes):
        due = still_due(self, connection, indexes)
        asked.append(holding.submit(place))
        assert not placed.wait(0.2)
        return due

    monkeypatch.setattr(Retention, "_still_due", looked)
    done = retention.archive(tmp_path / "a.ndjson", None, "r")
    asked[0].result(30)
    assert (done.entries, done.held) == (4, 0)
    assert {hold.person_id for hold in retention.holds()} == {"person-1", "person-1-before"}
    assert verify(database.url, seal(tmp_path).ring(), processes=1).archived == 4


# -- what is left of an archived entry


def test_archived_entries_are_still_counted_searched_and_told(database, aged, retention, clock, tmp_path):
    retention.archive(tmp_path / "a.ndjson", None, "r")
    page = aged.search(AuditQuery(persons=(("person-1",),)))
    assert page.total == 3
    old = page.entries[-1]
    assert old.resource["meta"]["security"][0]["code"] == "REDACTED"
    assert read(old).archived
    marta = Subject("person-1", SAME["person-1"])
    clock.forward(seconds=1)
    whole = Accounting(database, clock).report(Asked(ReportKind.ONC, (marta,)))
    assert (len(whole.rows), whole.completeness.complete, whole.completeness.archived) == (4, True, 3)
    assert "3 of them archived" in str(whole.completeness)
    told = Accounting(database, clock).report(Asked(ReportKind.ACCESS, (marta,), start=LONG_AGO))
    assert told.rows[0]["sentence"].startswith("An entry that was archived")


def test_a_body_that_went_another_way_is_noticed(database, aged):
    with database.write() as connection:
        if database.is_sqlite:
            connection.exec_driver_sql("DROP TRIGGER audit_entries_no_update")
        else:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(sa.update(entries).where(entries.c.entry_index == 2).values(body=b"", salt=b""))
    with database.read() as connection:
        assert emptied_without_archive(connection) == [2]


def test_every_kind_of_this_work_fits_its_column():
    assert all(len(kind.value) <= entries.c.kind.type.length for kind in Kind)
