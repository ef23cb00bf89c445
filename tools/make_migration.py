"""Writes the next Alembic revision, from what the tables say beyond the newest one.

Usage: `.venv/bin/python tools/make_migration.py "why"`.
Read what comes out before you commit it: renames look like a drop and an add.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.runtime.migration import MigrationContext

import hie.tables  # noqa: F401
from hie.core import schema
from hie.core.database import Database, metadata

TEMPLATE = '''"""{why}"""

import sqlalchemy as sa
from alembic import op

import hie.core.database

revision = "{revision}"
down_revision = {parent}
branch_labels = depends_on = None


def upgrade() -> None:
    {body}
'''


def main(why: str) -> None:
    versions = Path(schema.__file__).parent / "migrations" / "versions"
    parents = sorted(path.stem for path in versions.glob("[0-9]*.py"))
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/empty.sqlite")
        if parents:
            schema.upgrade(database)
        with database.read() as connection:
            context = MigrationContext.configure(connection)
            script = produce_migrations(context, metadata)
        database.close()
    body = render_python_code(script.upgrade_ops)
    revision = f"{len(parents) + 1:04}"
    target = versions / f"{revision}.py"
    parent = repr(parents[-1]) if parents else None
    target.write_text(TEMPLATE.format(why=why, revision=revision, parent=parent, body=body))
    print(target)


if __name__ == "__main__":
    main(sys.argv[1])
