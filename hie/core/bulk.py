"""Rows into a table as fast as the drivers take them: executemany on SQLite; on PostgreSQL arrays in one statement,
or binary COPY where there are many, which takes more turns and less time per row.

For what is written inside of a transaction that others wait for. Triggers fire on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from hie.core.database import Instant

Row = tuple[Any, ...]
MANY = 100
"""Rows from which COPY is worth its turns."""
_TYPES: dict[type[sa.types.TypeEngine[Any]], str] = {
    sa.String: "text",
    sa.LargeBinary: "bytea",
    sa.BigInteger: "int8",
    sa.SmallInteger: "int2",
    Instant: "timestamptz",
}


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Rows with a value, as the driver takes it, for every column in order, but for one that counts itself.

    Raises SQLAlchemyError, and TypeError for a table with a column of another type than the log and the index have.
    """
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_statement(table), list(rows))
        return
    if len(rows) < MANY:
        connection.exec_driver_sql(_from_arrays(table), tuple(map(list, zip(*rows, strict=True))))
        return
    import psycopg  # only where PostgreSQL is used

    driver: Any = connection.connection.driver_connection
    copying = f"COPY {table.name} ({_names(table)}) FROM STDIN (FORMAT BINARY)"
    try:
        with driver.cursor() as cursor, cursor.copy(copying) as copy:
            copy.set_types(_types(table))
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        told = sa.exc.DBAPIError.instance(f"COPY {table.name}", None, error, psycopg.Error, hide_parameters=True)
        raise told from None


def _columns(table: sa.Table) -> list[sa.Column[Any]]:
    return [column for column in table.columns if column is not table.autoincrement_column]


def _names(table: sa.Table) -> str:
    return ", ".join(column.name for column in _columns(table))


@cache
def _statement(table: sa.Table) -> str:
    return f"INSERT INTO {table.name} ({_names(table)}) VALUES ({', '.join('?' * len(_columns(table)))})"


@cache
def _from_arrays(table: sa.Table) -> str:
    arrays = ", ".join(f"%s::{name}[]" for name in _types(table))
    return f"INSERT INTO {table.name} ({_names(table)}) SELECT * FROM unnest({arrays})"


@cache
def _types(table: sa.Table) -> list[str]:
    """PostgreSQL's names of the columns' types."""
    return [_type(column) for column in _columns(table)]


def _type(column: sa.Column[Any]) -> str:
    named = [name for kind, name in _TYPES.items() if isinstance(column.type, kind)]
    if not named:
        raise TypeError(f"{column}: columns of this type are not written in bulk yet")
    return named[0]
