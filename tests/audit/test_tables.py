"""The schema refuses what a log must not do, whoever asks."""

import pytest
import sqlalchemy as sa

from hie.audit.columns import columns
from hie.audit.event import Kind, SourceOutcome
from hie.audit.log import AuditLog, source_failures_of
from hie.audit.query import AuditQuery, statement
from hie.audit.tables import ALL, POSTGRESQL_GUARDS, SEARCH_COLUMNS, SIDES, SQLITE_GUARDS, cosignatures
from hie.core.database import Database, metadata
from tests.audit.samples import BASE, caller, disclosure, event, seal

FAILED = SourceOutcome("harbor", "timeout", 0)


def fill(database, log):
    """Rows in every table: a failed source, a full tile, a cosigned checkpoint."""
    log.record(disclosure(sources=(FAILED,)), *(disclosure(f"person-{n}") for n in range(255)))
    with database.write() as connection:
        connection.execute(cosignatures.insert().values(tree_size=256, witness="w.example+01234567", line=b"x"))


@pytest.fixture
def written(database, log):
    fill(database, log)
    return database


def refused(database, sql):
    with pytest.raises(sa.exc.DBAPIError, match=r"only grows|already exists"), database.write() as connection:
        connection.exec_driver_sql(sql)


@pytest.mark.parametrize("table", [table.name for table in ALL])
def test_update_and_delete_are_refused_on_every_table(written, table):
    key = next(iter(metadata.tables[table].primary_key)).name
    refused(written, f"UPDATE {table} SET {key} = {key} + 100")
    refused(written, f"UPDATE {table} SET {key} = {key}")
    refused(written, f"DELETE FROM {table}")
    refused(written, f"DELETE FROM {table} WHERE {key} >= 0")


def columns_of(table):
    return ", ".join(column.name for column in table.columns)


def selected(table, **changes):
    return ", ".join(changes.get(column.name, column.name) for column in table.columns)


def test_an_entry_must_be_the_next_one(written):
    entries = ALL[0]
    for index in ("0", "1", "255", "257", "-1"):
        new = selected(entries, entry_index=index, entry_id="'new'")
        refused(written, f"INSERT INTO audit_entries ({columns_of(entries)}) SELECT {new} FROM audit_entries LIMIT 1")


def test_several_entries_must_follow_on_each_other(written):
    entries = ALL[0]
    for offset in ("257", "100", "2 * entry_index"):
        new = selected(entries, entry_index=f"entry_index + {offset}", entry_id="'new-' || entry_index")
        refused(written, f"INSERT INTO audit_entries ({columns_of(entries)}) SELECT {new} FROM audit_entries")


def test_a_checkpoint_must_be_larger_than_the_last(written):
    for size in ("256", "1", "0"):
        refused(written, f"INSERT INTO audit_checkpoints (tree_size, note) SELECT {size}, note FROM audit_checkpoints")


def test_replace_is_refused_on_sqlite(sqlite_database, clock, tmp_path):
    log = AuditLog(sqlite_database, clock, BASE, seal(tmp_path))
    fill(sqlite_database, log)
    log.close()
    entries = ALL[0]
    for changes in ({"entry_index": "0"}, {"entry_index": "256"}):  # the same index, or the next with a known id
        new = selected(entries, outcome="'12'", **changes)
        refused(
            sqlite_database,
            f"INSERT OR REPLACE INTO audit_entries ({columns_of(entries)}) SELECT {new} FROM audit_entries LIMIT 1",
        )
    for table in ALL[1:]:
        replace = f"INSERT OR REPLACE INTO {table.name} SELECT * FROM {table.name}"
        if table not in SIDES:
            refused(sqlite_database, f"{replace} LIMIT 1")
            continue
        with sqlite_database.write() as connection:  # a row of these is its key, so it can only be put in its own place
            before = set(connection.execute(sa.select(table)).all())
            connection.exec_driver_sql(replace)
            assert set(connection.execute(sa.select(table)).all()) == before
    with sqlite_database.write() as connection:
        connection.exec_driver_sql("PRAGMA recursive_triggers = ON")
    refused(sqlite_database, "UPDATE OR REPLACE audit_entries SET entry_index = 1 WHERE entry_index = 0")


def test_truncate_and_upsert_are_refused_on_postgresql(written):
    if written.is_sqlite:
        pytest.skip("statements of PostgreSQL")
    for table in ALL:
        refused(written, f"TRUNCATE {table.name} CASCADE")
    refused(
        written,
        "INSERT INTO audit_purposes SELECT * FROM audit_purposes ON CONFLICT (entry_index, code) "
        "DO UPDATE SET code = 'HPAYMT'",
    )


def test_the_guards_for_the_migration_are_those_of_the_tables(database_url):
    """Tables made bare, as a migration makes them, refuse the same once the exported statements have run."""
    database = Database(database_url)
    bare = sa.MetaData()
    for table in ALL:
        table.to_metadata(bare)
    bare.create_all(database.engine)
    with database.write() as connection:
        for guard in SQLITE_GUARDS if database.is_sqlite else POSTGRESQL_GUARDS:
            connection.execute(sa.text(guard))
        assert triggers(connection, database) != set()
        by_migration = triggers(connection, database)
    bare.drop_all(database.engine)
    metadata.create_all(database.engine)
    with database.read() as connection:
        assert by_migration == triggers(connection, database)
    database.close()


def triggers(connection, database):
    if database.is_sqlite:
        sql = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name LIKE 'audit%'"
    else:
        sql = "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE 'audit%'"
    return {tuple(row) for row in connection.exec_driver_sql(sql.replace("%", "%%") if not database.is_sqlite else sql)}


def test_search_columns_are_those_of_the_body(written, log):
    with written.read() as connection:
        for row in connection.execute(sa.select(ALL[0])).mappings():
            found = columns(log.entry(row["entry_index"]).resource)
            names = [name for name in SEARCH_COLUMNS if name != "recorded"]
            assert {name: row[name] for name in names} == {name: getattr(found, name) for name in names}


def plan(database, select):
    """The database's plan of a statement, as one text."""
    with database.read() as connection:
        sql = str(select.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}))
        prefix = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
        return "\n".join(str(row) for row in connection.execute(sa.text(prefix + sql.replace(":", "\\:"))))


def one_of_many(number):
    """An event whose person, organization and failed source are shared with few others."""
    member = f"member-{number % 60}"
    asking = caller(organization=member, client_id=f"{member}-ehr", subject_id=f"user-{number % 60}")
    failed = (SourceOutcome(member, "timeout", 0),)
    return disclosure(f"person-{number}", caller=asking, request_id=f"request-{number}", sources=failed)


@pytest.fixture
def crowded(database, log):
    """Many people, each with a few entries."""
    for _ in range(4):
        log.record(*map(one_of_many, range(300)))
    with database.write() as connection:
        connection.exec_driver_sql("ANALYZE")
    return database


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (AuditQuery(persons=(("person-7",),)), "ix_audit_entries_person_id_entry_index"),
        (AuditQuery(persons=(("person-7", "person-8"),)), "ix_audit_entries_person_id_entry_index"),
        (AuditQuery(request_ids=(("request-7",),)), "ix_audit_entries_request_id_entry_index"),
        (AuditQuery(agents=(("Organization/member-7",),)), "ix_audit_entries_organization_entry_index"),
        (AuditQuery(agents=(("user-7",),)), "ix_audit_entries_user_id_entry_index"),
        (AuditQuery(entities=(("Patient/person-7",),)), "ix_audit_entities_resource_id_resource_type_entry_index"),
        (AuditQuery(purposes=(("BTG",),)), "ix_audit_purposes_code_entry_index"),
    ],
)
def test_searches_use_their_index(crowded, query, index):
    assert index in plan(crowded, statement(query, 1_000_000).limit(51))


def test_source_failures_use_their_index(crowded):
    assert "ix_audit_source_failures_member_id_status_entry_index" in plan(crowded, source_failures_of("member-7"))


def test_every_kind_of_event_fits_the_columns(log):
    for kind in Kind:
        for action in "CRUDE":
            log.record(event(kind, action))
