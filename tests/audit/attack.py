"""What somebody does who may write the database and knows its schema."""

from contextlib import contextmanager

import sqlalchemy as sa

from hie.audit.tables import SIDES, entries


@contextmanager
def attacking(database):
    """A transaction in which nothing stands guard."""
    with database.write() as connection:
        if database.is_sqlite:
            triggers = connection.execute(
                sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name LIKE 'audit_%'")
            ).all()
            for name, _ in triggers:
                connection.execute(sa.text(f"DROP TRIGGER {name}"))
            yield connection
            for _, sql in triggers:
                connection.exec_driver_sql(sql)
        else:
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            yield connection


def cut(connection, table, size):
    """Take away what a table holds beyond the first `size` entries."""
    for side in SIDES if table is entries else ():
        cut(connection, side, size)
    key = next(iter(table.primary_key)).name
    bound = size + 1 if key == "tree_size" else size
    connection.execute(sa.text(f"DELETE FROM {table.name} WHERE {key} >= {bound}"))
