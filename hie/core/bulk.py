"""Rows into a table as fast as the drivers take them: executemany on SQLite, binary COPY on PostgreSQL.

For what is written inside of a transaction that others wait for. Triggers fire on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

Row = tuple[Any, ...]
_TYPES = {sa.String: "text", sa.LargeBinary: "bytea", sa.BigInteger: "int8", sa.SmallInteger: "int2"}


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Rows with a value, as the driver takes it, for every column in order, but for one that counts itself.

    Raises SQLAlchemyError.
    """
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_statement(table), list(rows))
        return
    import psycopg  # only where PostgreSQL is used

    driver: Any = connection.connection.driver_connection
    copying = f"COPY {table.name} ({', '.join(c.name for c in _columns(table))}) FROM STDIN (FORMAT BINARY)"
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


@cache
def _statement(table: sa.Table) -> str:
    columns = _columns(table)
    names, places = ", ".join(c.name for c in columns), ", ".join("?" * len(columns))
    return f"INSERT INTO {table.name} ({names}) VALUES ({places})"


@cache
def _types(table: sa.Table) -> list[str]:
    """PostgreSQL's names of the columns' types."""
    return [next((t for kind, t in _TYPES.items() if isinstance(c.type, kind)), "timestamptz") for c in _columns(table)]
