"""The first schema"""

import sqlalchemy as sa
from alembic import op

import hie.core.database

revision = "0001"
down_revision = None
branch_labels = depends_on = None

# The disclosure log only grows; hie/audit/tables.py says what each guard stops.
SQLITE_GUARDS = (
    "CREATE TRIGGER audit_entries_no_update BEFORE UPDATE ON audit_entries BEGIN SELECT RAISE(ABORT, 'audit_entries only grows'); END",
    "CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries BEGIN SELECT RAISE(ABORT, 'audit_entries only grows'); END",
    "CREATE TRIGGER audit_entries_no_replace BEFORE INSERT ON audit_entries WHEN NEW.entry_index IS NOT (SELECT coalesce(max(entry_index) + 1, 0) FROM audit_entries) OR EXISTS (SELECT 1 FROM audit_entries WHERE entry_id = NEW.entry_id) BEGIN SELECT RAISE(ABORT, 'audit_entries only grows, one after another'); END",
    "CREATE TRIGGER audit_entities_no_update BEFORE UPDATE ON audit_entities BEGIN SELECT RAISE(ABORT, 'audit_entities only grows'); END",
    "CREATE TRIGGER audit_entities_no_delete BEFORE DELETE ON audit_entities BEGIN SELECT RAISE(ABORT, 'audit_entities only grows'); END",
    "CREATE TRIGGER audit_entities_no_replace BEFORE INSERT ON audit_entities WHEN EXISTS (SELECT 1 FROM audit_entities WHERE entry_index = NEW.entry_index AND resource_id = NEW.resource_id AND resource_type = NEW.resource_type) BEGIN SELECT RAISE(ABORT, 'audit_entities only grows, one after another'); END",
    "CREATE TRIGGER audit_purposes_no_update BEFORE UPDATE ON audit_purposes BEGIN SELECT RAISE(ABORT, 'audit_purposes only grows'); END",
    "CREATE TRIGGER audit_purposes_no_delete BEFORE DELETE ON audit_purposes BEGIN SELECT RAISE(ABORT, 'audit_purposes only grows'); END",
    "CREATE TRIGGER audit_purposes_no_replace BEFORE INSERT ON audit_purposes WHEN EXISTS (SELECT 1 FROM audit_purposes WHERE entry_index = NEW.entry_index AND code = NEW.code) BEGIN SELECT RAISE(ABORT, 'audit_purposes only grows, one after another'); END",
    "CREATE TRIGGER audit_subtypes_no_update BEFORE UPDATE ON audit_subtypes BEGIN SELECT RAISE(ABORT, 'audit_subtypes only grows'); END",
    "CREATE TRIGGER audit_subtypes_no_delete BEFORE DELETE ON audit_subtypes BEGIN SELECT RAISE(ABORT, 'audit_subtypes only grows'); END",
    "CREATE TRIGGER audit_subtypes_no_replace BEFORE INSERT ON audit_subtypes WHEN EXISTS (SELECT 1 FROM audit_subtypes WHERE entry_index = NEW.entry_index AND code = NEW.code) BEGIN SELECT RAISE(ABORT, 'audit_subtypes only grows, one after another'); END",
    "CREATE TRIGGER audit_source_failures_no_update BEFORE UPDATE ON audit_source_failures BEGIN SELECT RAISE(ABORT, 'audit_source_failures only grows'); END",
    "CREATE TRIGGER audit_source_failures_no_delete BEFORE DELETE ON audit_source_failures BEGIN SELECT RAISE(ABORT, 'audit_source_failures only grows'); END",
    "CREATE TRIGGER audit_source_failures_no_replace BEFORE INSERT ON audit_source_failures WHEN EXISTS (SELECT 1 FROM audit_source_failures WHERE entry_index = NEW.entry_index AND member_id = NEW.member_id AND status = NEW.status) BEGIN SELECT RAISE(ABORT, 'audit_source_failures only grows, one after another'); END",
)
POSTGRESQL_GUARDS = (
    "CREATE OR REPLACE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' only grows', ERRCODE = 'restrict_violation'; END $$",
    "CREATE OR REPLACE FUNCTION audit_next_entry() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.entry_index <> (SELECT coalesce(max(entry_index) + 1, 0) FROM audit_entries) THEN RAISE EXCEPTION USING MESSAGE = 'audit_entries only grows, one after another', ERRCODE = 'restrict_violation'; END IF; RETURN NEW; END $$",
    "CREATE TRIGGER audit_entries_no_change BEFORE UPDATE OR DELETE ON audit_entries FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_entries_no_truncate BEFORE TRUNCATE ON audit_entries FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_entries_next BEFORE INSERT ON audit_entries FOR EACH ROW EXECUTE FUNCTION audit_next_entry()",
    "CREATE TRIGGER audit_entities_no_change BEFORE UPDATE OR DELETE ON audit_entities FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_entities_no_truncate BEFORE TRUNCATE ON audit_entities FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_purposes_no_change BEFORE UPDATE OR DELETE ON audit_purposes FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_purposes_no_truncate BEFORE TRUNCATE ON audit_purposes FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_subtypes_no_change BEFORE UPDATE OR DELETE ON audit_subtypes FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_subtypes_no_truncate BEFORE TRUNCATE ON audit_subtypes FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_source_failures_no_change BEFORE UPDATE OR DELETE ON audit_source_failures FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_source_failures_no_truncate BEFORE TRUNCATE ON audit_source_failures FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
)


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column(
            "entry_index", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("entry_id", sa.String(length=32), nullable=False),
        sa.Column("recorded", hie.core.database.Instant(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("action", sa.String(length=1), nullable=False),
        sa.Column("outcome", sa.String(length=2), nullable=False),
        sa.Column("person_id", sa.String(length=128), nullable=True),
        sa.Column("organization", sa.String(length=128), nullable=True),
        sa.Column("client_id", sa.String(length=128), nullable=True),
        sa.Column("user_id", sa.String(length=128), nullable=True),
        sa.Column("session", sa.String(length=128), nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.PrimaryKeyConstraint("entry_index", name=op.f("pk_audit_entries")),
        sa.UniqueConstraint("entry_id", name=op.f("uq_audit_entries_entry_id")),
    )
    op.create_index(
        op.f("ix_audit_entries_action_entry_index"), "audit_entries", ["action", "entry_index"], unique=False
    )
    op.create_index(
        op.f("ix_audit_entries_client_id_entry_index"), "audit_entries", ["client_id", "entry_index"], unique=False
    )
    op.create_index(
        op.f("ix_audit_entries_organization_entry_index"),
        "audit_entries",
        ["organization", "entry_index"],
        unique=False,
    )
    op.create_index(
        op.f("ix_audit_entries_outcome_entry_index"), "audit_entries", ["outcome", "entry_index"], unique=False
    )
    op.create_index(
        op.f("ix_audit_entries_person_id_entry_index"), "audit_entries", ["person_id", "entry_index"], unique=False
    )
    op.create_index(
        op.f("ix_audit_entries_recorded_entry_index"), "audit_entries", ["recorded", "entry_index"], unique=False
    )
    op.create_index(
        op.f("ix_audit_entries_request_id_entry_index"), "audit_entries", ["request_id", "entry_index"], unique=False
    )
    op.create_index(
        op.f("ix_audit_entries_session_entry_index"), "audit_entries", ["session", "entry_index"], unique=False
    )
    op.create_index(op.f("ix_audit_entries_type_entry_index"), "audit_entries", ["type", "entry_index"], unique=False)
    op.create_index(
        op.f("ix_audit_entries_user_id_entry_index"), "audit_entries", ["user_id", "entry_index"], unique=False
    )
    op.create_table(
        "client_assertions",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("jti", sa.String(length=255), nullable=False),
        sa.Column("expires", hie.core.database.Instant(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("client_id", "jti", name=op.f("pk_client_assertions")),
    )
    op.create_index(op.f("ix_client_assertions_expires"), "client_assertions", ["expires"], unique=False)
    op.create_table(
        "consent_versions",
        sa.Column("consent_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("person_id", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("updated", hie.core.database.Instant(timezone=True), nullable=False),
        sa.Column("author_organization", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("consent_id", "version", name=op.f("pk_consent_versions")),
    )
    op.create_index(
        op.f("ix_consent_versions_person_id_consent_id_version"),
        "consent_versions",
        ["person_id", "consent_id", "version"],
        unique=False,
    )
    op.create_table(
        "directory_version",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_directory_version")),
    )
    op.create_table(
        "gateway_ids",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("member_id", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("local_id", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateway_ids")),
    )
    op.create_table(
        "match_keys",
        sa.Column("key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("record_id", sa.String(length=64), nullable=False),
        sa.Column("person_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("key", "record_id", name=op.f("pk_match_keys")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_match_keys_record_id"), "match_keys", ["record_id"], unique=False)
    op.create_table(
        "match_traits",
        sa.Column("record_id", sa.String(length=64), nullable=False),
        sa.Column("person_id", sa.String(length=64), nullable=False),
        sa.Column("traits", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("record_id", name=op.f("pk_match_traits")),
    )
    op.create_index(op.f("ix_match_traits_person_id"), "match_traits", ["person_id"], unique=False)
    op.create_table(
        "members",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("patient_id_system", sa.String(length=255), nullable=False),
        sa.Column("consent_default", sa.String(length=20), nullable=True),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("purposes", sa.String(length=200), nullable=False),
        sa.Column("part2", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_members")),
        sa.UniqueConstraint("patient_id_system", name=op.f("uq_members_patient_id_system")),
    )
    op.create_table(
        "people",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("created", hie.core.database.Instant(timezone=True), nullable=False),
        sa.Column("updated", hie.core.database.Instant(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("resource", sa.JSON(), nullable=False),
        sa.Column("merged_into", sa.String(length=26), nullable=True),
        sa.ForeignKeyConstraint(["merged_into"], ["people.id"], name=op.f("fk_people_merged_into")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people")),
    )
    op.create_index(op.f("ix_people_merged_into"), "people", ["merged_into"], unique=False)
    op.create_table(
        "audit_entities",
        sa.Column("entry_index", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("resource_id", sa.String(length=128), nullable=False),
        sa.Column("resource_type", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_index"], ["audit_entries.entry_index"], name=op.f("fk_audit_entities_entry_index")
        ),
        sa.PrimaryKeyConstraint("entry_index", "resource_id", "resource_type", name=op.f("pk_audit_entities")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_audit_entities_resource_id_resource_type_entry_index"),
        "audit_entities",
        ["resource_id", "resource_type", "entry_index"],
        unique=False,
    )
    op.create_table(
        "audit_purposes",
        sa.Column("entry_index", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("code", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_index"], ["audit_entries.entry_index"], name=op.f("fk_audit_purposes_entry_index")
        ),
        sa.PrimaryKeyConstraint("entry_index", "code", name=op.f("pk_audit_purposes")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_audit_purposes_code_entry_index"), "audit_purposes", ["code", "entry_index"], unique=False)
    op.create_table(
        "audit_source_failures",
        sa.Column("entry_index", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("member_id", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_index"], ["audit_entries.entry_index"], name=op.f("fk_audit_source_failures_entry_index")
        ),
        sa.PrimaryKeyConstraint("entry_index", "member_id", "status", name=op.f("pk_audit_source_failures")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_audit_source_failures_member_id_status_entry_index"),
        "audit_source_failures",
        ["member_id", "status", "entry_index"],
        unique=False,
    )
    op.create_table(
        "audit_subtypes",
        sa.Column("entry_index", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("code", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_index"], ["audit_entries.entry_index"], name=op.f("fk_audit_subtypes_entry_index")
        ),
        sa.PrimaryKeyConstraint("entry_index", "code", name=op.f("pk_audit_subtypes")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_audit_subtypes_code_entry_index"), "audit_subtypes", ["code", "entry_index"], unique=False)
    op.create_table(
        "clients",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("member_id", sa.String(length=32), nullable=True),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("jwks", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("jwks_uri", sa.String(length=2048), nullable=True),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_clients_member_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clients")),
    )
    op.create_index(op.f("ix_clients_member_id"), "clients", ["member_id"], unique=False)
    op.create_table(
        "endpoints",
        sa.Column("member_id", sa.String(length=32), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("url_key", sa.String(length=64), nullable=False),
        sa.Column("auth", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_endpoints_member_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("member_id", name=op.f("pk_endpoints")),
        sa.UniqueConstraint("url_key", name=op.f("uq_endpoints_url_key")),
    )
    op.create_table(
        "person_tokens",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("person_id", sa.String(length=26), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column(
            "value",
            sa.String(length=255).with_variant(sa.String(length=255, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "exact",
            sa.String(length=255).with_variant(sa.String(length=255, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_person_tokens_person_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_person_tokens")),
    )
    op.create_index("ix_person_tokens_exact", "person_tokens", ["kind", "exact", "person_id"], unique=False)
    op.create_index(op.f("ix_person_tokens_person_id"), "person_tokens", ["person_id"], unique=False)
    op.create_index("ix_person_tokens_value", "person_tokens", ["kind", "value", "person_id"], unique=False)
    op.create_table(
        "source_records",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("member_id", sa.String(length=32), nullable=False),
        sa.Column("system", sa.String(length=255), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=False),
        sa.Column("person_id", sa.String(length=26), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("replaced_by", sa.String(length=26), nullable=True),
        sa.Column("source_updated", hie.core.database.Instant(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_source_records_person_id")),
        sa.ForeignKeyConstraint(["replaced_by"], ["source_records.id"], name=op.f("fk_source_records_replaced_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_source_records")),
        sa.UniqueConstraint("system", "value", name=op.f("uq_source_records_system_value")),
    )
    op.create_index(op.f("ix_source_records_person_id"), "source_records", ["person_id"], unique=False)
    op.create_index(op.f("ix_source_records_replaced_by"), "source_records", ["replaced_by"], unique=False)
    op.create_table(
        "users",
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("member_id", sa.String(length=32), nullable=True),
        sa.Column("password_hash", sa.String(length=255), nullable=True),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_users_member_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("email", name=op.f("pk_users")),
    )
    op.create_index(op.f("ix_users_member_id"), "users", ["member_id"], unique=False)
    op.create_table(
        "link_decisions",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("record_id", sa.String(length=26), nullable=False),
        sa.Column("at", hie.core.database.Instant(timezone=True), nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("probability", sa.Float(), nullable=True),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("model_version", sa.String(length=64), nullable=True),
        sa.Column("person_before", sa.String(length=26), nullable=True),
        sa.Column("person_after", sa.String(length=26), nullable=False),
        sa.ForeignKeyConstraint(["record_id"], ["source_records.id"], name=op.f("fk_link_decisions_record_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_link_decisions")),
    )
    op.create_index(op.f("ix_link_decisions_person_after"), "link_decisions", ["person_after"], unique=False)
    op.create_index(op.f("ix_link_decisions_person_before"), "link_decisions", ["person_before"], unique=False)
    op.create_index(op.f("ix_link_decisions_record_id"), "link_decisions", ["record_id"], unique=False)
    op.create_table(
        "source_record_versions",
        sa.Column("record_id", sa.String(length=26), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("received", hie.core.database.Instant(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["record_id"], ["source_records.id"], name=op.f("fk_source_record_versions_record_id")),
        sa.PrimaryKeyConstraint("record_id", "version", name=op.f("pk_source_record_versions")),
    )
    op.create_table(
        "review_tasks",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("record_id", sa.String(length=26), nullable=False),
        sa.Column("candidate_id", sa.String(length=26), nullable=False),
        sa.Column("decision_id", sa.String(length=26), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("probability", sa.Float(), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created", hie.core.database.Instant(timezone=True), nullable=False),
        sa.Column("closed", hie.core.database.Instant(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["candidate_id"], ["people.id"], name=op.f("fk_review_tasks_candidate_id")),
        sa.ForeignKeyConstraint(["decision_id"], ["link_decisions.id"], name=op.f("fk_review_tasks_decision_id")),
        sa.ForeignKeyConstraint(["record_id"], ["source_records.id"], name=op.f("fk_review_tasks_record_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review_tasks")),
    )
    op.create_index(op.f("ix_review_tasks_candidate_id"), "review_tasks", ["candidate_id"], unique=False)
    op.create_index("ix_review_tasks_queue", "review_tasks", ["status", "created"], unique=False)
    op.create_index("ix_review_tasks_record", "review_tasks", ["record_id", "status"], unique=False)
    connection = op.get_bind()
    for statement in SQLITE_GUARDS if connection.dialect.name == "sqlite" else POSTGRESQL_GUARDS:
        connection.exec_driver_sql(statement)
