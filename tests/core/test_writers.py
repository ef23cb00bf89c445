"""Writers of one process share commits on SQLite: what one must still be able to count on."""

import sqlite3
import threading
import time
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from hie.core.database import Database, after_commit, awaiting_commit
from hie.core.writers import MAX_MEMBERS, Queue

numbers = sa.Table("numbers", sa.MetaData(), sa.Column("n", sa.Integer, unique=True))


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'x.sqlite'}")
    numbers.create(database.engine)
    yield database
    database.close()


def held(database):
    with database.read() as connection:
        return sorted(connection.scalars(sa.select(numbers.c.n)))


def together(database, *works, waits=0.05):
    """Runs each work in a transaction of its own thread, all queued behind one that is open; what each one raised."""
    outcomes = [None] * (len(works) + 1)
    ready, go = threading.Event(), threading.Event()

    def first(connection):
        add(-1)(connection)
        ready.set()
        go.wait(10)

    def run(place, work):
        try:
            with database.write() as connection:
                work(connection)
        except BaseException as error:  # noqa: BLE001  the test looks at it
            outcomes[place] = error

    threads = [threading.Thread(target=run, args=(0, first))]
    threads[0].start()
    ready.wait(10)
    for place, work in enumerate(works, 1):
        threads.append(threading.Thread(target=run, args=(place, work)))
        threads[-1].start()
        time.sleep(waits)  # so that they queue in this order
    go.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return outcomes[1:]


def add(n):
    return lambda connection: connection.execute(numbers.insert().values(n=n))


def commits(database):
    """Counts the commits from now on."""
    seen = []
    sa.event.listen(database.engine, "commit", lambda _: seen.append(datetime.now(UTC)))
    return seen


def test_who_waits_shares_a_commit(database, monkeypatch):
    monkeypatch.setattr("hie.core.writers.MAX_AGE_SECONDS", 10)
    seen = commits(database)
    assert together(database, add(1), add(2), add(3)) == [None] * 3
    assert held(database) == [-1, 1, 2, 3]
    assert len(seen) == 1


def test_a_group_takes_in_so_many(database, monkeypatch):
    monkeypatch.setattr("hie.core.writers.MAX_AGE_SECONDS", 10)
    seen = commits(database)
    together(database, *(add(n) for n in range(MAX_MEMBERS + 3)), waits=0.005)
    assert held(database) == list(range(-1, MAX_MEMBERS + 3))
    assert len(seen) == 2


def test_an_old_group_takes_in_nobody(database, monkeypatch):
    monkeypatch.setattr("hie.core.writers.MAX_AGE_SECONDS", 0)
    seen = commits(database)
    together(database, add(1), add(2))
    assert len(seen) == 3


def test_one_that_fails_takes_nobody_along(database, monkeypatch):
    monkeypatch.setattr("hie.core.writers.MAX_AGE_SECONDS", 10)

    def fails(connection):
        add(2)(connection)
        raise ValueError("mine")

    first, second, third, fourth = together(database, add(1), fails, add(1), add(4))
    assert (first, fourth) == (None, None)
    assert str(second) == "mine"
    assert isinstance(third, sa.exc.IntegrityError)
    assert held(database) == [-1, 1, 4]


def test_the_last_one_that_fails_still_commits_the_others(database, monkeypatch):
    monkeypatch.setattr("hie.core.writers.MAX_AGE_SECONDS", 10)
    outcomes = together(database, add(1), add(1))
    assert outcomes[0] is None
    assert isinstance(outcomes[1], sa.exc.IntegrityError)
    assert held(database) == [-1, 1]


def test_nobody_is_answered_before_it_is_durable(database):
    """Another connection sees a row as soon as its writer has returned."""
    missed = []

    def write(start):
        for n in range(start, start + 40):
            with database.write() as connection:
                add(n)(connection)
            with database.read() as connection:
                if connection.scalar(sa.select(numbers.c.n).where(numbers.c.n == n)) is None:
                    missed.append(n)

    threads = [threading.Thread(target=write, args=(start,)) for start in range(0, 800, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert missed == []
    assert len(held(database)) == 320


def test_what_is_called_after_the_commit_is_called_once_and_not_for_who_failed(database, monkeypatch):
    monkeypatch.setattr("hie.core.writers.MAX_AGE_SECONDS", 10)
    called = []

    def notes(key, word, *, fails=False):
        def work(connection):
            before = awaiting_commit(connection, key)
            after_commit(connection, key, lambda: called.append((key, word, before is not None)))
            if fails:
                raise ValueError

        return work

    together(
        database, notes("a", 1), notes("a", 2), notes("a", 3, fails=True), notes("b", 4), notes("c", 5, fails=True)
    )
    assert called == [("a", 2, True), ("b", 4, False)]


def test_a_commit_that_fails_is_everybodys_failure(database, monkeypatch):
    monkeypatch.setattr("hie.core.writers.MAX_AGE_SECONDS", 10)
    called = []

    @sa.event.listens_for(database.engine, "commit")
    def _fail(_):
        raise sa.exc.OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))

    def notes(connection):
        add(1)(connection)
        after_commit(connection, "x", lambda: called.append(1))

    outcomes = together(database, notes, add(2))
    assert [type(outcome) for outcome in outcomes] == [sa.exc.OperationalError] * 2
    sa.event.remove(database.engine, "commit", _fail)
    assert held(database) == []
    assert called == []
    with database.write() as connection:
        add(9)(connection)
    assert held(database) == [9]


def test_where_sqlite_gives_up_the_transaction_all_hear_of_it(database, monkeypatch):
    """A full disk can undo the whole transaction; nobody in it may be told that it was kept."""
    monkeypatch.setattr("hie.core.writers.MAX_AGE_SECONDS", 10)

    def gives_up(connection):
        add(2)(connection)
        connection.exec_driver_sql("INSERT OR ROLLBACK INTO numbers VALUES (2)")

    first, second, third = together(database, add(1), gives_up, add(3))
    assert isinstance(first, sa.exc.DBAPIError)
    assert isinstance(second, sa.exc.IntegrityError)
    assert third is None
    assert held(database) == [3]


def test_half_of_somebodys_work_is_not_committed_where_it_cannot_be_undone(database, monkeypatch):
    monkeypatch.setattr("hie.core.writers.MAX_AGE_SECONDS", 10)
    monkeypatch.setattr("hie.core.writers._UNDO", "ROLLBACK TO nothing")

    def fails(connection):
        add(2)(connection)
        raise ValueError("mine")

    first, second, third = together(database, add(1), fails, add(3))
    assert isinstance(first, sa.exc.OperationalError)
    assert str(second) == "mine"
    assert third is None
    assert held(database) == [3]


def test_who_waits_too_long_is_told_and_holds_nothing_up(database, monkeypatch):
    impatient = Database(database.url)
    monkeypatch.setattr(impatient._writers, "_patience", 0.05)
    inside, go = threading.Event(), threading.Event()

    def slow():
        with impatient.write() as connection:
            add(1)(connection)
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=slow)
    thread.start()
    inside.wait(10)
    with pytest.raises(sa.exc.OperationalError, match="locked"), impatient.write():
        pass
    go.set()
    thread.join(10)
    with impatient.write() as connection:
        add(2)(connection)
    assert held(database) == [1, 2]
    impatient.close()


def test_the_queue_is_first_come_first_served():
    queue, order, threads = Queue(), [], []
    assert queue.enter(1)
    assert not queue.pass_on()

    def wait(place):
        assert queue.enter(10)
        order.append(place)
        queue.leave()

    for place in range(5):
        threads.append(threading.Thread(target=wait, args=(place,)))
        threads[-1].start()
        time.sleep(0.02)
    queue.leave()
    for thread in threads:
        thread.join(10)
    assert order == list(range(5))
    assert queue.enter(0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=4), min_size=1, max_size=6))
def test_any_mix_of_writers_leaves_what_those_wrote_who_returned(tmp_path_factory, works):
    """The reference: the rows of every block that ended without an error, and no others."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('writers') / 'x.sqlite'}")
    numbers.create(database.engine)
    kept, lock = [], threading.Lock()

    def run(work):
        for n, fails in work:
            try:
                with database.write() as connection:
                    add(n)(connection)
                    if fails:
                        raise ValueError
            except (ValueError, sa.exc.IntegrityError):
                continue
            with lock:
                kept.append(n)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert held(database) == sorted(kept)
    database.close()
