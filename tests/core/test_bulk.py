"""Rows by the drivers' fast roads are the rows that were given, few or many, on both databases."""

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from hie.core.bulk import MANY, insert
from hie.core.database import Database, Instant

kinds = sa.Table(
    "kinds",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("word", sa.String(40), nullable=True),
    sa.Column("raw", sa.LargeBinary, nullable=False),
    sa.Column("number", sa.BigInteger, unique=True),
)
timed = sa.Table("timed", sa.MetaData(), sa.Column("at", Instant))
truths = sa.Table("truths", sa.MetaData(), sa.Column("is_so", sa.Boolean))


@pytest.fixture
def database(database_url):
    made = Database(database_url)
    for table in (kinds, timed, truths):
        table.create(made.engine)
    yield made
    made.close()


@pytest.mark.parametrize("count", [0, 1, MANY - 1, MANY, MANY + 1])
def test_what_is_written_is_read(database, count):
    odd = ("", None, 'a,b{}"\\', "Žofie 漢字 \U0001f469", "'; --")
    rows = [(odd[n % len(odd)], bytes([n % 256, 0]), n - 2**40) for n in range(count)]
    with database.write() as connection:
        insert(connection, kinds, rows)
    with database.read() as connection:
        found = connection.execute(sa.select(kinds.c.word, kinds.c.raw, kinds.c.number).order_by(kinds.c.number)).all()
    assert [tuple(row) for row in found] == rows


@pytest.mark.parametrize("count", [2, MANY + 1])
def test_a_row_that_is_refused_refuses_all(database, count):
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        insert(connection, kinds, [("x", b"x", n) for n in range(count - 1)] + [("x", b"x", 0)])
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(kinds)) == 0


@pytest.mark.parametrize("count", [1, MANY])
def test_instants_go_in_as_the_driver_takes_them(database, count):
    at = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    given = "2026-01-02T03:04:05.000006Z" if database.is_sqlite else at
    with database.write() as connection:
        insert(connection, timed, [(given,)] * count)
    with database.read() as connection:
        assert set(connection.scalars(sa.select(timed.c.at))) == {at}


def test_a_type_that_it_does_not_know_is_refused_and_not_guessed(database):
    if database.is_sqlite:
        pytest.skip("SQLite needs no types")
    with pytest.raises(TypeError, match="is_so"), database.write() as connection:
        insert(connection, truths, [(True,)])
