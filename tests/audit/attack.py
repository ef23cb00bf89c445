"""What somebody does who may write the database and knows its schema."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hie.audit.columns import columns
from hie.audit.entry import canonical, commitment, leaf_bytes
from hie.audit.merkle import leaf_hash
from hie.audit.tables import SIDES, entries
from hie.core.bulk import insert
from hie.core.clock import instant
from hie.core.database import Database


@contextmanager
def attacking(database: Database) -> Iterator[sa.Connection]:
    """A transaction in which nothing stands guard."""
    with database.engine.connect() as connection:
        if not database.is_sqlite:
            with connection.begin():
                connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
                yield connection
            return
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys = OFF")
        with connection.begin():
            found = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name LIKE 'audit_%'"
            triggers = connection.execute(sa.text(found)).all()
            for name, _ in triggers:
                connection.execute(sa.text(f"DROP TRIGGER {name}"))
            yield connection
            for _, sql in triggers:
                connection.exec_driver_sql(sql)
        driver.execute("PRAGMA foreign_keys = ON")


def cut(connection: sa.Connection, table: sa.Table, size: int) -> None:
    """Take away what a table holds beyond the first `size` entries."""
    for side in SIDES if table is entries else ():
        cut(connection, side, size)
    key = next(iter(table.primary_key)).name
    bound = size + 1 if key == "tree_size" else size
    connection.execute(sa.text(f"DELETE FROM {table.name} WHERE {key} >= {bound}"))


def taken(connection: sa.Connection, index: int) -> dict[str, Any]:
    """An entry's row."""
    return dict(connection.execute(sa.select(entries).where(entries.c.entry_index == index)).one()._mapping)


def remove(connection: sa.Connection, index: int) -> None:
    """An entry, with all that it is found by."""
    for table in (*SIDES, entries):
        connection.execute(table.delete().where(table.c.entry_index == index))


def put(connection: sa.Connection, index: int, row: dict[str, Any]) -> None:
    """An entry's row in the place of whatever is at `index`, with the side rows that its body has."""
    remove(connection, index)
    found = columns(json.loads(row["body"]))
    connection.execute(entries.insert().values(row | {"entry_index": index}))
    entities, purposes, subtypes, failures = SIDES
    insert(connection, entities, [(index, key.resource_id, key.resource_type) for key in found.entities])
    insert(connection, purposes, [(index, code) for code in found.purposes])
    insert(connection, subtypes, [(index, code) for code in found.subtypes])
    insert(connection, failures, [(index, *failure) for failure in found.failures])


def forged(row: dict[str, Any], entry_id: str, recorded: datetime | None = None) -> dict[str, Any]:
    """Another entry like that of `row`, sound in itself: whoever knows the format can make any."""
    recorded = recorded or row["recorded"]
    body = canonical(json.loads(row["body"]) | {"id": entry_id, "recorded": instant(recorded)})
    leaf = leaf_bytes(entry_id, instant(recorded), row["kind"], commitment(row["salt"], body))
    made = {"entry_id": entry_id, "recorded": recorded, "body": body, "leaf": leaf, "leaf_hash": leaf_hash(leaf)}
    return row | made
