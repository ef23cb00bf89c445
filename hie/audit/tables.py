"""Tables of `hie.audit`: the entries of the disclosure log, what they are found by, and what proves them.

`audit_entries` holds the log itself; its columns after `leaf_hash`, and the side tables, are derived from the body
(`columns.py`). `audit_tiles` holds the full tiles of the tree, `audit_checkpoints` a signed note for each transaction
and `audit_cosignatures` what witnesses said of them.

All of them only grow: triggers refuse UPDATE, DELETE and TRUNCATE, an index that is not the next one, and SQLite's
INSERT OR REPLACE, which passes UPDATE and DELETE triggers by. One change is let through: a body and its salt may become
empty, and nothing else with them, once the entry is six years old, an archive holds it, and no legal hold stands
(`retention.py`; the two tables are in `tables_officer.py`). They stop mistakes and injected SQL; an attacker who owns
the database is found by the tree, not stopped here. `SQLITE_GUARDS` and `POSTGRESQL_GUARDS` are the same statements for
the migrations.
"""

from __future__ import annotations

import sqlalchemy as sa

from hie.audit.columns import WIDTH
from hie.core.database import Instant, metadata

WITNESS_WIDTH = 300
"""Characters of a witness's name with its key id."""

# INTEGER on SQLite makes the index the rowid itself.
INDEX = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

entries = sa.Table(
    "audit_entries",
    metadata,
    sa.Column("entry_index", INDEX, primary_key=True, autoincrement=False),
    sa.Column("entry_id", sa.String(32), nullable=False, unique=True),
    sa.Column("recorded", Instant, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("leaf", sa.LargeBinary, nullable=False),
    sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("action", sa.String(1), nullable=False),
    sa.Column("outcome", sa.String(2), nullable=False),
    sa.Column("person_id", sa.String(WIDTH)),
    sa.Column("organization", sa.String(WIDTH)),
    sa.Column("client_id", sa.String(WIDTH)),
    sa.Column("user_id", sa.String(WIDTH)),
    sa.Column("session", sa.String(WIDTH)),
    sa.Column("request_id", sa.String(WIDTH)),
)

SEARCH_COLUMNS = (
    "recorded",
    "type",
    "action",
    "outcome",
    "person_id",
    "organization",
    "client_id",
    "user_id",
    "session",
    "request_id",
)
"""Each has an index that ends in the entry index, so that the newest matches are read in order."""
for _name in SEARCH_COLUMNS:
    sa.Index(None, entries.c[_name], entries.c.entry_index)


def _side(name: str, *columns: sa.Column[str]) -> sa.Table:
    """Rows that an entry has several of, each found by its own values and then newest first."""
    owner = sa.Column("entry_index", INDEX, sa.ForeignKey(entries.c.entry_index), primary_key=True)
    table = sa.Table(name, metadata, owner, *columns, sqlite_with_rowid=False)
    sa.Index(None, *columns, table.c.entry_index)
    return table


entities = _side(
    "audit_entities",
    sa.Column("resource_id", sa.String(WIDTH), primary_key=True),
    sa.Column("resource_type", sa.String(64), primary_key=True),
)
purposes = _side("audit_purposes", sa.Column("code", sa.String(16), primary_key=True))
subtypes = _side("audit_subtypes", sa.Column("code", sa.String(32), primary_key=True))
source_failures = _side(
    "audit_source_failures",
    sa.Column("member_id", sa.String(WIDTH), primary_key=True),
    sa.Column("status", sa.String(32), primary_key=True),
)

SIDES = (entities, purposes, subtypes, source_failures)

tiles = sa.Table(
    "audit_tiles",
    metadata,
    sa.Column("level", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("tile_index", sa.BigInteger, primary_key=True, autoincrement=False),
    # The root stands first: SQLite reads the roots of many tiles without their hashes.
    sa.Column("root", sa.LargeBinary(32), nullable=False),
    sa.Column("hashes", sa.LargeBinary, nullable=False),
)
"""Full tiles; the partial ones at the right edge are read from `audit_entries.leaf_hash` and from the roots below."""

checkpoints = sa.Table(
    "audit_checkpoints",
    metadata,
    sa.Column("tree_size", INDEX, primary_key=True, autoincrement=False),
    sa.Column("note", sa.LargeBinary, nullable=False),
)
cosignatures = sa.Table(
    "audit_cosignatures",
    metadata,
    sa.Column("tree_size", INDEX, sa.ForeignKey(checkpoints.c.tree_size), primary_key=True, autoincrement=False),
    sa.Column("witness", sa.String(WITNESS_WIDTH), primary_key=True),
    sa.Column("line", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""`witness` is the name and the id of its key, `line` the signature line that goes below the checkpoint's own."""
sa.Index(None, cosignatures.c.witness, cosignatures.c.tree_size)

ALL = (entries, *SIDES, tiles, checkpoints, cosignatures)


_KEPT = tuple(column.name for column in entries.columns if column.name not in ("body", "salt"))
_ARCHIVED = (
    "EXISTS (SELECT 1 FROM audit_archives WHERE OLD.entry_index BETWEEN first_index AND last_index) AND "
    "NOT EXISTS (SELECT 1 FROM audit_holds WHERE audit_holds.person_id = OLD.person_id AND lifted IS NULL)"
)
_SQLITE_PURGE = (
    f"NEW.body IS x'' AND NEW.salt IS x'' AND {' AND '.join(f'NEW.{name} IS OLD.{name}' for name in _KEPT)} AND "
    f"OLD.recorded < date('now', '-6 years') AND {_ARCHIVED}"
)


def _sqlite_guards(table: sa.Table) -> list[str]:
    name = table.name
    # Where the condition is neither true nor false, the change is refused.
    unless = {"update": f" WHEN coalesce({_SQLITE_PURGE}, 0) = 0" if table is entries else "", "delete": ""}
    statements = [
        f"CREATE TRIGGER {name}_no_{verb} BEFORE {verb.upper()} ON {name}{unless[verb]} "
        f"BEGIN SELECT RAISE(ABORT, '{name} only grows'); END"
        for verb in ("update", "delete")
    ]
    same_key = " AND ".join(f"{column.name} = NEW.{column.name}" for column in table.primary_key)
    taken = f"EXISTS (SELECT 1 FROM {name} WHERE {same_key})"
    if table is entries:
        taken = (
            f"NEW.entry_index IS NOT (SELECT coalesce(max(entry_index) + 1, 0) FROM {name}) "
            f"OR EXISTS (SELECT 1 FROM {name} WHERE entry_id = NEW.entry_id)"
        )
    if table is checkpoints:
        taken = f"NEW.tree_size <= (SELECT max(tree_size) FROM {name})"
    if table in SIDES:
        return statements  # all of their columns are their key: what replaces a row is that row
    return [
        *statements,
        f"CREATE TRIGGER {name}_no_replace BEFORE INSERT ON {name} WHEN {taken} "
        f"BEGIN SELECT RAISE(ABORT, '{name} only grows, one after another'); END",
    ]


_POSTGRESQL_REFUSE = (
    "CREATE OR REPLACE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$ "
    "BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' only grows', ERRCODE = 'restrict_violation'; END $$"
)
_POSTGRESQL_NEXT = (
    "CREATE OR REPLACE FUNCTION audit_next_entries() RETURNS trigger LANGUAGE plpgsql AS $$ "
    "DECLARE low bigint; high bigint; many bigint; "
    "BEGIN SELECT min(entry_index), max(entry_index), count(*) INTO low, high, many FROM new_entries; "
    "IF many > 0 AND (high - low + 1 <> many OR high <> (SELECT max(entry_index) FROM audit_entries) "
    "OR low <> (SELECT coalesce(max(entry_index) + 1, 0) FROM audit_entries WHERE entry_index < low)) THEN "
    "RAISE EXCEPTION USING MESSAGE = 'audit_entries only grows, one after another', ERRCODE = 'restrict_violation'; "
    "END IF; RETURN NULL; END $$"
)
"""Once for a statement, however many rows it inserts: they are the ones that follow on those before."""
_POSTGRESQL_LARGER = (
    "CREATE OR REPLACE FUNCTION audit_next_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$ "
    "BEGIN IF NEW.tree_size <= (SELECT max(tree_size) FROM audit_checkpoints) THEN "
    "RAISE EXCEPTION USING MESSAGE = 'audit_checkpoints only grows', ERRCODE = 'restrict_violation'; "
    "END IF; RETURN NEW; END $$"
)


_POSTGRESQL_PURGE = (
    "CREATE OR REPLACE FUNCTION audit_only_archived() RETURNS trigger LANGUAGE plpgsql AS $$ "
    "BEGIN IF NEW.body = ''::bytea AND NEW.salt = ''::bytea AND "
    f"({', '.join(f'NEW.{name}' for name in _KEPT)}) IS NOT DISTINCT FROM "
    f"({', '.join(f'OLD.{name}' for name in _KEPT)}) AND OLD.recorded < now() - interval '6 years' AND {_ARCHIVED} "
    "THEN RETURN NEW; END IF; "
    "RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' only grows', ERRCODE = 'restrict_violation'; END $$"
)


def _postgresql_guards(table: sa.Table) -> list[str]:
    name = table.name
    statements = [
        f"CREATE TRIGGER {name}_no_change BEFORE {'DELETE' if table is entries else 'UPDATE OR DELETE'} ON {name} "
        "FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
        f"CREATE TRIGGER {name}_no_truncate BEFORE TRUNCATE ON {name} "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
    ]
    if table is entries:
        following = (
            f"CREATE TRIGGER {name}_next AFTER INSERT ON {name} REFERENCING NEW TABLE AS new_entries "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_next_entries()"
        )
        archived = (
            f"CREATE TRIGGER {name}_purge BEFORE UPDATE ON {name} FOR EACH ROW EXECUTE FUNCTION audit_only_archived()"
        )
        return [_POSTGRESQL_REFUSE, _POSTGRESQL_NEXT, _POSTGRESQL_PURGE, *statements, following, archived]
    if table is checkpoints:
        larger = (
            f"CREATE TRIGGER {name}_next BEFORE INSERT ON {name} FOR EACH ROW EXECUTE FUNCTION audit_next_checkpoint()"
        )
        return [_POSTGRESQL_LARGER, *statements, larger]
    return statements


SQLITE_GUARDS = tuple(statement for table in ALL for statement in _sqlite_guards(table))
"""Run after all tables of this module exist."""
POSTGRESQL_GUARDS = tuple(statement for table in ALL for statement in _postgresql_guards(table))
"""Run after all tables of this module exist."""

for _table in ALL:
    for _dialect, _guards in (("sqlite", _sqlite_guards), ("postgresql", _postgresql_guards)):
        for _statement in _guards(_table):
            _guard = sa.DDL(_statement)  # type: ignore[no-untyped-call]
            sa.event.listen(_table, "after_create", _guard.execute_if(dialect=_dialect))
