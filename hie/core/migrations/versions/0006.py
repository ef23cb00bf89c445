"""No guard against replacing a row of the log's side tables: all of their columns are their key"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    for table in ("audit_entities", "audit_purposes", "audit_subtypes", "audit_source_failures"):
        op.execute(f"DROP TRIGGER {table}_no_replace")
