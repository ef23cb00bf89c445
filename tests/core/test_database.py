import threading
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


def test_instants_keep_their_zone_and_microseconds(with_scratch):
    moment = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
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
