import threading
import time
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from hie.core.database import Database, Instant

scratch = sa.Table("scratch", sa.MetaData(), sa.Column("n", sa.Integer), sa.Column("at", Instant))


@pytest.fixture
def with_scratch(database_url):
    database = Database(database_url)
    scratch.create(database.engine)
    yield database
    database.close()


@pytest.mark.parametrize("year", [2026, 999, 1])
def test_instants_keep_their_zone_and_microseconds(with_scratch, year):
    moment = datetime(year, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    with with_scratch.write() as connection:
        connection.execute(scratch.insert().values(n=1, at=moment))
    with with_scratch.read() as connection:
        assert connection.scalar(sa.select(scratch.c.at)) == moment
        assert connection.scalar(sa.select(scratch.c.n).where(scratch.c.at <= moment)) == 1


def test_a_failed_transaction_leaves_nothing(with_scratch):
    with pytest.raises(RuntimeError), with_scratch.write() as connection:
        connection.execute(scratch.insert().values(n=1, at=datetime.now(UTC)))
        raise RuntimeError
    with with_scratch.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(scratch)) == 0


def test_many_writers_that_read_first_all_succeed(with_scratch):
    """Read-then-write under a deferred BEGIN fails on SQLite with `database is locked`; ours must not."""
    if not with_scratch.is_sqlite:
        pytest.skip("a property of SQLite's locks")
    failures = []

    def work():
        try:
            for _ in range(10):
                with with_scratch.write() as connection:
                    count = connection.scalar(sa.select(sa.func.count()).select_from(scratch))
                    connection.execute(scratch.insert().values(n=count, at=datetime.now(UTC)))
        except sa.exc.SQLAlchemyError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with with_scratch.read() as connection:
        numbers = connection.scalars(sa.select(scratch.c.n).order_by(scratch.c.n)).all()
    assert numbers == list(range(60))


def test_the_write_ahead_log_is_copied_by_a_thread_of_its_own(tmp_path):
    others = _checkpointers()
    path = tmp_path / "x.sqlite"
    database = Database(f"sqlite:///{path}")
    table = sa.Table("t", sa.MetaData(), sa.Column("a", sa.Text))
    with database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar_one() == 0
        table.create(connection)
        connection.execute(table.insert(), [{"a": "x" * 1000}] * 500)
    deadline = time.monotonic() + 30
    while path.stat().st_size < 500_000:
        assert time.monotonic() < deadline, "the log was not copied into the database"
        threading.Event().wait(0.05)
    assert len(_checkpointers() - others) == 1
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 500
    database.close()
    assert _checkpointers() <= others


def _checkpointers():
    """Threads of this process that copy a write-ahead log; other tests' databases may have some."""
    return {thread for thread in threading.enumerate() if thread.name == "wal-checkpointer"}


def test_reading_starts_no_thread(tmp_path):
    others = _checkpointers()
    database = Database(f"sqlite:///{tmp_path / 'x.sqlite'}")
    with database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    assert _checkpointers() <= others
    database.close()


def test_two_processes_worth_of_writers_take_turns(tmp_path):
    """Two databases on one file, as two workers have."""
    first, second = (Database(f"sqlite:///{tmp_path / 'x.sqlite'}") for _ in range(2))
    scratch.create(first.engine)

    def write(database):
        for n in range(30):
            with database.write() as connection:
                connection.execute(scratch.insert().values(n=n, at=datetime.now(UTC)))

    threads = [threading.Thread(target=write, args=(d,)) for d in (first, second) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with first.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(scratch)) == 180
    first.close()
    second.close()
