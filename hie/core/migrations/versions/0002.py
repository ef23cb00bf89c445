"""Tiles, checkpoints and cosignatures: the log becomes provable"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = depends_on = None

# hie/audit/tables.py says what each guard stops.
SQLITE_GUARDS = (
    "CREATE TRIGGER audit_tiles_no_update BEFORE UPDATE ON audit_tiles BEGIN SELECT RAISE(ABORT, 'audit_tiles only grows'); END",
    "CREATE TRIGGER audit_tiles_no_delete BEFORE DELETE ON audit_tiles BEGIN SELECT RAISE(ABORT, 'audit_tiles only grows'); END",
    "CREATE TRIGGER audit_tiles_no_replace BEFORE INSERT ON audit_tiles WHEN EXISTS (SELECT 1 FROM audit_tiles WHERE level = NEW.level AND tile_index = NEW.tile_index) BEGIN SELECT RAISE(ABORT, 'audit_tiles only grows, one after another'); END",
    "CREATE TRIGGER audit_checkpoints_no_update BEFORE UPDATE ON audit_checkpoints BEGIN SELECT RAISE(ABORT, 'audit_checkpoints only grows'); END",
    "CREATE TRIGGER audit_checkpoints_no_delete BEFORE DELETE ON audit_checkpoints BEGIN SELECT RAISE(ABORT, 'audit_checkpoints only grows'); END",
    "CREATE TRIGGER audit_checkpoints_no_replace BEFORE INSERT ON audit_checkpoints WHEN NEW.tree_size <= (SELECT max(tree_size) FROM audit_checkpoints) BEGIN SELECT RAISE(ABORT, 'audit_checkpoints only grows, one after another'); END",
    "CREATE TRIGGER audit_cosignatures_no_update BEFORE UPDATE ON audit_cosignatures BEGIN SELECT RAISE(ABORT, 'audit_cosignatures only grows'); END",
    "CREATE TRIGGER audit_cosignatures_no_delete BEFORE DELETE ON audit_cosignatures BEGIN SELECT RAISE(ABORT, 'audit_cosignatures only grows'); END",
    "CREATE TRIGGER audit_cosignatures_no_replace BEFORE INSERT ON audit_cosignatures WHEN EXISTS (SELECT 1 FROM audit_cosignatures WHERE tree_size = NEW.tree_size AND witness = NEW.witness) BEGIN SELECT RAISE(ABORT, 'audit_cosignatures only grows, one after another'); END",
)
POSTGRESQL_GUARDS = (
    "DROP TRIGGER audit_entries_next ON audit_entries",
    "DROP FUNCTION audit_next_entry()",
    "CREATE OR REPLACE FUNCTION audit_next_entries() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE low bigint; high bigint; many bigint; BEGIN SELECT min(entry_index), max(entry_index), count(*) INTO low, high, many FROM new_entries; IF many > 0 AND (high - low + 1 <> many OR high <> (SELECT max(entry_index) FROM audit_entries) OR low <> (SELECT coalesce(max(entry_index) + 1, 0) FROM audit_entries WHERE entry_index < low)) THEN RAISE EXCEPTION USING MESSAGE = 'audit_entries only grows, one after another', ERRCODE = 'restrict_violation'; END IF; RETURN NULL; END $$",
    "CREATE TRIGGER audit_entries_next AFTER INSERT ON audit_entries REFERENCING NEW TABLE AS new_entries FOR EACH STATEMENT EXECUTE FUNCTION audit_next_entries()",
    "CREATE TRIGGER audit_tiles_no_change BEFORE UPDATE OR DELETE ON audit_tiles FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_tiles_no_truncate BEFORE TRUNCATE ON audit_tiles FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
    "CREATE OR REPLACE FUNCTION audit_next_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.tree_size <= (SELECT max(tree_size) FROM audit_checkpoints) THEN RAISE EXCEPTION USING MESSAGE = 'audit_checkpoints only grows', ERRCODE = 'restrict_violation'; END IF; RETURN NEW; END $$",
    "CREATE TRIGGER audit_checkpoints_no_change BEFORE UPDATE OR DELETE ON audit_checkpoints FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_checkpoints_no_truncate BEFORE TRUNCATE ON audit_checkpoints FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_checkpoints_next BEFORE INSERT ON audit_checkpoints FOR EACH ROW EXECUTE FUNCTION audit_next_checkpoint()",
    "CREATE TRIGGER audit_cosignatures_no_change BEFORE UPDATE OR DELETE ON audit_cosignatures FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_cosignatures_no_truncate BEFORE TRUNCATE ON audit_cosignatures FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
)


def upgrade() -> None:
    op.create_table(
        "audit_checkpoints",
        sa.Column(
            "tree_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tree_size", name=op.f("pk_audit_checkpoints")),
    )
    op.create_table(
        "audit_tiles",
        sa.Column("level", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("tile_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.LargeBinary(length=32), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "tile_index", name=op.f("pk_audit_tiles")),
    )
    op.create_table(
        "audit_cosignatures",
        sa.Column(
            "tree_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("witness", sa.String(length=300), nullable=False),
        sa.Column("line", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tree_size"], ["audit_checkpoints.tree_size"], name=op.f("fk_audit_cosignatures_tree_size")
        ),
        sa.PrimaryKeyConstraint("tree_size", "witness", name=op.f("pk_audit_cosignatures")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_audit_cosignatures_witness_tree_size"), "audit_cosignatures", ["witness", "tree_size"], unique=False
    )
    connection = op.get_bind()
    for statement in SQLITE_GUARDS if connection.dialect.name == "sqlite" else POSTGRESQL_GUARDS:
        connection.exec_driver_sql(statement)
