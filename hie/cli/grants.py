"""What the role that the exchange serves with may do on PostgreSQL: in the disclosure log, read and append only.

The tables belong to another role, the one that runs `hie db upgrade`: an owner may do everything whatever is granted.
"""

from __future__ import annotations

import sqlalchemy as sa

import hie.tables  # noqa: F401  (all tables register themselves on the metadata)
from hie.audit.tables import ALL as LOG_TABLES
from hie.core.database import Database, metadata
from hie.core.errors import HieError

_APPEND_ONLY = frozenset(table.name for table in LOG_TABLES)


def statements(role: str) -> list[str]:
    """The grants of a role, each a statement; running them again changes nothing."""
    quoted = '"{}"'.format(role.replace('"', '""'))
    return [
        f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {quoted}",
        f"GRANT USAGE ON SCHEMA public TO {quoted}",
        f"GRANT SELECT ON alembic_version TO {quoted}",
        *(f"GRANT {_rights(table)} ON {table} TO {quoted}" for table in sorted(metadata.tables)),
    ]


def grant(database: Database, role: str) -> None:
    """Raises HieError where grants would not bind the role."""
    with database.write() as connection:
        row = connection.execute(
            sa.text(
                "SELECT rolsuper, pg_has_role(oid, "
                "(SELECT relowner FROM pg_class WHERE oid = 'audit_entries'::regclass), 'MEMBER') "
                "FROM pg_roles WHERE rolname = :role"
            ),
            {"role": role},
        ).first()
        if row is None:
            raise HieError(f"There is no role {role}; make it with CREATE ROLE {role} LOGIN.")
        if any(row):
            raise HieError(f"The role {role} owns the tables or is a superuser, so that no grant binds it.")
        for statement in statements(role):
            connection.execute(sa.text(statement))


def _rights(table: str) -> str:
    return "SELECT, INSERT" if table in _APPEND_ONLY else "SELECT, INSERT, UPDATE, DELETE"
