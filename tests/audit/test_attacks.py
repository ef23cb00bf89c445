"""Every way to falsify the log that we know of, done by somebody who may write the database; and what it is found by.

The table of who notices what is in the design; here each row of it is done. Where the database and a public key do not
suffice, the test shows that too, and then the evidence that does: the host's mark, a receipt or checkpoint that
somebody kept, a witness.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from hie.audit.checkpoint import Proof, SignedCheckpoint
from hie.audit.entry import leaf_bytes
from hie.audit.event import SourceOutcome
from hie.audit.log import AuditLog
from hie.audit.merkle import RightEdge, leaf_hash
from hie.audit.note import COSIGNATURE, Note, SigningKey
from hie.audit.rows import insert_tree
from hie.audit.seal import DatedKey, KeyRing, Seal
from hie.audit.tables import SIDES, checkpoints, cosignatures, entries, tiles
from hie.audit.tables_officer import archives
from hie.audit.verify import Report, Seen, Wrong, verify
from hie.core.clock import instant
from hie.core.database import Database, metadata
from tests.audit.attack import attacking, cut, forged, put, remove, taken
from tests.audit.samples import BASE, START, Clock, disclosure, seal

SIZE, BATCH, TARGET = 300, 10, 123
WITNESS = SigningKey.generate("witness.example/1", COSIGNATURE)


@dataclass
class Attacked:
    """A copy of a log of 300 entries in 30 transactions, and what others hold of it."""

    database: Database
    home: Path
    ring: KeyRing
    public: KeyRing
    receipt: Proof
    """Of entry 200, under the checkpoint of 210."""
    newest: SignedCheckpoint
    cosigned: SignedCheckpoint
    """Of 250 entries, kept by a witness."""

    def sql(self, connection, statement, **values):
        connection.execute(sa.text(statement), values)

    def verify(self, *seen, ring=None):
        kept = [Seen(one, "somebody's checkpoint") for one in seen]
        return verify(self.database.url, ring or self.public, seen=kept, witnesses=[WITNESS.verifier], processes=1)

    def found(self, *seen, ring=None):
        """(index, reason)."""
        with pytest.raises(Wrong) as wrong:
            self.verify(*seen, ring=ring)
        return wrong.value.index, wrong.value.reason


def write_log(url, home):
    database = Database(url)
    metadata.create_all(database.engine)
    log = AuditLog(database, Clock(), BASE, seal(home))
    kept = None
    for batch in range(SIZE // BATCH):
        receipts = log.record(
            *(
                disclosure(
                    f"person-{n}",
                    request_id=f"request-{batch}-{n}",
                    sources=(SourceOutcome("meadow", "ok", 1), SourceOutcome("harbor", "timeout", 0)),
                )
                for n in range(BATCH)
            )
        )
        if receipts[0].index == 200:
            kept = log.evidence.proof(receipts[0].entry_id)
    with database.write() as connection:
        note = connection.scalar(sa.select(checkpoints.c.note).where(checkpoints.c.tree_size == 250))
        line = str(WITNESS.cosign(SignedCheckpoint.parse(note).note.text, 1_800_000_000)).encode()
        name = f"{WITNESS.verifier.name}+{WITNESS.verifier.id.hex()}"
        connection.execute(cosignatures.insert().values(tree_size=250, witness=name, line=line))
    newest = SignedCheckpoint.parse(log.evidence.checkpoint())
    log.close()
    if database.is_sqlite:
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return kept, newest, SignedCheckpoint.parse(note + line)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def original(request, tmp_path_factory):
    """The log that is copied for each attack: how to copy it, and what others hold."""
    home = tmp_path_factory.mktemp("original")
    if request.param == "sqlite":
        url = f"sqlite:///{home}/hie.sqlite"
    else:
        url = request.getfixturevalue("new_postgres_database")()
    held = write_log(url, home)
    number = 0

    def copy(folder):
        nonlocal number
        number += 1
        shutil.copy(home / "log-key", folder)
        shutil.copy(home / "log-high-water", folder)
        if url.startswith("sqlite"):
            shutil.copy(home / "hie.sqlite", folder / "hie.sqlite")
            return f"sqlite:///{folder}/hie.sqlite"
        base, _, name = url.rpartition("/")
        admin = sa.create_engine(f"{base}/postgres", isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE copy{number}_{name} TEMPLATE {name}"))
        admin.dispose()
        return f"{base}/copy{number}_{name}"

    return copy, held


@pytest.fixture
def log(original, tmp_path):
    copy, (receipt, newest, cosigned) = original
    database = Database(copy(tmp_path))
    ring = seal(tmp_path).ring()
    yield Attacked(database, tmp_path, ring, KeyRing(ring.keys), receipt, newest, cosigned)
    database.close()


def test_the_log_verifies_before_it_is_attacked(log):
    report = log.verify(log.receipt.signed, log.newest, log.cosigned)
    assert report == Report(SIZE, log.newest.root, SIZE // BATCH, 1, 0, 0)


# -- what the database and a public key suffice for: single rows


EDITS = {
    "entry_id": "'another'",
    "recorded": None,
    "kind": "'feed'",
    "salt": None,
    "body": None,
    "leaf": None,
    "leaf_hash": None,
    "type": "'rest'",
    "action": "'C'",
    "outcome": "'8'",
    "person_id": "'another'",
    "organization": "'another'",
    "client_id": "NULL",
    "user_id": "'another'",
    "session": "'another'",
    "request_id": "NULL",
}


@pytest.mark.parametrize("index", [TARGET, SIZE - 1])
@pytest.mark.parametrize("column", [c.name for c in entries.columns if c.name != "entry_index"])
def test_an_edited_column_is_found_at_its_entry(log, column, index):
    with attacking(log.database) as connection:
        before = connection.scalar(sa.select(entries.c[column]).where(entries.c.entry_index == index))
        if column == "recorded":
            change = entries.update().values(recorded=START.replace(year=2020))
        elif EDITS[column] is None:
            change = entries.update().values({column: before[:-1] + bytes([before[-1] ^ 1])})  # of the same length
        else:
            change = entries.update().values({column: sa.text(EDITS[column])})
        connection.execute(change.where(entries.c.entry_index == index))
    assert log.found()[0] == index


def test_a_body_that_is_gone_without_an_archive_or_before_its_time(log):
    with attacking(log.database) as connection:
        connection.execute(entries.update().where(entries.c.entry_index == TARGET).values(body=b"", salt=b""))
    assert log.found() == (TARGET, "the body is gone, and no archive holds it")
    with attacking(log.database) as connection:
        made = {"id": "a", "first_index": 0, "last_index": SIZE, "entries": SIZE, "sha256": "0" * 64, "written": START}
        connection.execute(archives.insert().values(made))
    assert log.found() == (TARGET, "the body is gone before its retention has ended")
    with attacking(log.database) as connection:
        row = taken(connection, TARGET)
        leaf = json.loads(row["leaf"])
        old = START.replace(year=2015)
        made = leaf_bytes(leaf["id"], instant(old), leaf["kind"], leaf["commit"])
        change = {"recorded": old, "leaf": made, "leaf_hash": leaf_hash(made)}
        connection.execute(entries.update().where(entries.c.entry_index == TARGET).values(change))
    assert log.found() == (TARGET, "the entries are not those that the checkpoint of 130 has signed")


@pytest.mark.parametrize("table", SIDES, ids=lambda table: table.name)
@pytest.mark.parametrize("change", ["edit", "remove", "add"])
def test_a_side_row_that_was_changed_is_found_at_its_entry(log, table, change):
    name = table.columns[1].name
    with attacking(log.database) as connection:
        where = f"WHERE entry_index = {TARGET}"
        if change == "remove":
            log.sql(connection, f"DELETE FROM {table.name} {where}")
        elif change == "edit":
            log.sql(connection, f"UPDATE {table.name} SET {name} = {name} || 'x' {where}")
        else:
            others = ", ".join(column.name for column in table.columns[2:])
            values = f"entry_index, 'added'{', ' if others else ''}{others}"
            log.sql(connection, f"INSERT INTO {table.name} SELECT DISTINCT {values} FROM {table.name} {where}")
    index, reason = log.found()
    assert (index, table.name in reason) == (TARGET, True)


def test_a_deleted_entry(log):
    with attacking(log.database) as connection:
        remove(connection, TARGET)
    assert log.found() == (TARGET, "the entry is missing")


def test_an_entry_that_was_renumbered(log):
    with attacking(log.database) as connection:
        row = taken(connection, TARGET)
        remove(connection, TARGET)
        put(connection, -1, row)
    assert log.found() == (TARGET, "the entry is missing")


def test_entries_that_were_moved_up_over_a_deleted_one(log):
    with attacking(log.database) as connection:
        rows = [taken(connection, index) for index in range(TARGET, SIZE)]
        cut(connection, entries, TARGET)
        for index, row in enumerate(rows[1:], TARGET):
            put(connection, index, row)
        put(connection, SIZE - 1, forged(rows[0], "last"))
    assert log.found()[0] == TARGET


@pytest.mark.parametrize(("pair", "index"), [((TARGET, 124), TARGET), ((TARGET, 290), TARGET), ((295, 296), 290)])
def test_two_entries_that_were_swapped(log, pair, index):
    with attacking(log.database) as connection:
        first, second = (taken(connection, index) for index in pair)
        for index_ in pair:
            remove(connection, index_)
        put(connection, pair[0], second)
        put(connection, pair[1], first)
    assert log.found()[0] == index


def test_an_entry_without_a_checkpoint_at_the_end(log):
    with attacking(log.database) as connection:
        put(connection, SIZE, forged(taken(connection, TARGET), "forged"))
    assert log.found() == (SIZE, "there are 301 entries, and the newest checkpoint is of 300")


def test_an_entry_under_an_old_checkpoint_with_a_new_size(log):
    with attacking(log.database) as connection:
        put(connection, SIZE, forged(taken(connection, TARGET), "forged"))
        note = connection.scalar(sa.select(checkpoints.c.note).where(checkpoints.c.tree_size == SIZE))
        connection.execute(checkpoints.insert().values(tree_size=SIZE + 1, note=note))
    assert log.found() == (SIZE, "the checkpoint of 301 entries is not good: it says 300")


def test_a_back_dated_entry_that_is_sound_in_itself(log):
    with attacking(log.database) as connection:
        row = taken(connection, TARGET)
        put(connection, TARGET, forged(row, row["entry_id"], START.replace(year=2020)))
    assert log.found() == (TARGET, "the entries are not those that the checkpoint of 130 has signed")


def rebuild(log, connection, sign=None):
    """The tree anew over what the entries are now; checkpoints too, if there is a key to sign them with."""
    leaves = connection.scalars(sa.select(entries.c.leaf_hash).order_by(entries.c.entry_index)).all()
    log.sql(connection, "DELETE FROM audit_tiles")
    edge = RightEdge()
    if sign:
        log.sql(connection, "DELETE FROM audit_cosignatures")
        log.sql(connection, "DELETE FROM audit_checkpoints")
    for start in range(0, len(leaves), BATCH):
        edge.extend(leaves[start : start + BATCH])
        if sign:
            insert_tree(connection, edge.full, edge.size, sign(edge.size, edge.root))
            edge.full.clear()
    for full in edge.full:
        connection.execute(
            tiles.insert().values(level=full.tile.level, tile_index=full.tile.index, root=full.root, hashes=full.hashes)
        )


def rewrite(connection, index):
    """Another entry, sound in itself, in the place of one."""
    put(connection, index, forged(taken(connection, index), "rewritten"))


def test_a_tree_that_was_rebuilt_over_a_rewritten_entry(log):
    with attacking(log.database) as connection:
        rewrite(connection, TARGET)
        rebuild(log, connection)
    assert log.found() == (120, "the entries are not those that the checkpoint of 130 has signed")


def test_a_log_that_was_signed_anew_with_another_key(log):
    stranger = SigningKey.generate("hie.example/log")
    theirs = KeyRing([DatedKey(stranger.verifier)], stranger)
    with attacking(log.database) as connection:
        rewrite(connection, TARGET)
        rebuild(log, connection, theirs.sign)
    index, reason = log.found()
    assert (index, "no known key" in reason) == (0, True)
    assert log.verify(ring=KeyRing(theirs.keys)).entries == SIZE  # so the key must come from elsewhere


def test_a_whole_other_log_in_its_place(log, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with attacking(log.database) as connection:
        for table in (cosignatures, checkpoints, tiles, *SIDES, entries):
            log.sql(connection, f"DELETE FROM {table.name}")
    writer = AuditLog(log.database, Clock(), BASE, Seal(other, "hie.example/log"))
    writer.record(disclosure())
    writer.close()
    index, reason = log.found()
    assert (index, "no known key" in reason) == (0, True)


@pytest.mark.parametrize(
    ("change", "index"),
    [
        ("UPDATE audit_tiles SET root = leaf_hash FROM audit_entries WHERE entry_index = 0", 0),
        ("DELETE FROM audit_tiles", 0),
        ("INSERT INTO audit_tiles SELECT 0, 1, root, hashes FROM audit_tiles", 256),
        ("INSERT INTO audit_tiles SELECT 1, 0, root, hashes FROM audit_tiles", 0),
        ("INSERT INTO audit_purposes VALUES (300, 'BTG')", 300),
        ("INSERT INTO audit_subtypes VALUES (-1, 'read')", -1),
    ],
)
def test_rows_of_the_tree_that_were_changed_or_added(log, change, index):
    with attacking(log.database) as connection:
        log.sql(connection, change)
    assert log.found()[0] == index


def test_a_tile_with_one_hash_changed(log):
    with attacking(log.database) as connection:
        hashes = connection.scalar(sa.select(tiles.c.hashes))
        changed = hashes[: TARGET * 32] + b"x" * 32 + hashes[TARGET * 32 + 32 :]
        connection.execute(tiles.update().values(hashes=changed))
    assert log.found() == (TARGET, "the stored tile 0/000 is not that of the entries")


@pytest.mark.parametrize("size", [130, SIZE])
@pytest.mark.parametrize("part", ["signature", "root", "origin"])
def test_a_changed_checkpoint(log, size, part):
    with attacking(log.database) as connection:
        note = connection.scalar(sa.select(checkpoints.c.note).where(checkpoints.c.tree_size == size))
        parsed = Note.parse(note)
        origin, number, root, _ = parsed.text.split("\n")
        if part == "signature":
            changed = bytes(Note(parsed.text, (log.ring.signer.sign("something else\n"),)))
        elif part == "root":
            changed = bytes(Note("\n".join((origin, number, "A" * 43 + "=", "")), parsed.signatures))
        else:
            changed = bytes(Note("\n".join(("other.example", number, root, "")), parsed.signatures))
        connection.execute(checkpoints.update().where(checkpoints.c.tree_size == size).values(note=changed))
    index, reason = log.found()
    assert (index, f"the checkpoint of {size} entries is not good" in reason) == (size - BATCH, True)


def test_a_checkpoint_taken_away_leaves_entries_without_one(log):
    with attacking(log.database) as connection:
        cut(connection, checkpoints, 290)
    assert log.found() == (290, "there are 300 entries, and the newest checkpoint is of 290")


def test_entries_cut_off_leave_a_checkpoint_without_them(log):
    with attacking(log.database) as connection:
        cut(connection, entries, 270)
    assert log.found() == (270, "there are 270 entries, and the newest checkpoint is of 300")


@pytest.mark.parametrize("change", ["line", "witness", "moved"])
def test_a_cosignature_that_is_not_the_witnesss(log, change):
    stranger = SigningKey.generate("witness.example/1", COSIGNATURE)
    line = str(stranger.cosign(log.cosigned.note.text, 1)).encode()
    own = str(WITNESS.cosign(log.newest.note.text, 1)).encode()
    with attacking(log.database) as connection:
        values = {"line": {"line": line}, "witness": {"witness": "other+00000000"}, "moved": {"line": own}}[change]
        connection.execute(cosignatures.update().values(values))
    index, reason = log.found()
    assert (index, "cosignature" in reason) == (249, True)


# -- what needs evidence from outside the database


def roll_back(log, size):
    with attacking(log.database) as connection:
        cut(connection, cosignatures, size)
        cut(connection, checkpoints, size)
        cut(connection, entries, size)
        if size < 256:
            log.sql(connection, "DELETE FROM audit_tiles")


@pytest.mark.parametrize("size", [280, 150, 0])
def test_the_newest_entries_cut_off_with_their_checkpoints_or_an_older_copy_of_the_database(log, size):
    """Nothing in the database tells; the host's mark does, and any checkpoint, receipt or cosignature that is newer."""
    roll_back(log, size)
    assert log.verify().entries == size
    mark = seal(log.home).high_water.read(log.ring)
    for kept in (mark, log.newest, *([log.receipt.signed, log.cosigned] if size < 200 else [])):
        index, reason = log.found(kept)
        assert (index, f"signed {kept.size} entries" in reason) == (size, True)


def not_those(size):
    return f"the first {size} entries are not those that somebody's checkpoint has signed"


def test_cut_off_and_grown_again_by_whoever_holds_the_key(log):
    """The exchange itself would refuse, by the mark; an attacker with the key would not. Older evidence tells."""
    roll_back(log, 150)
    (log.home / "log-high-water").unlink()
    writer = AuditLog(log.database, Clock(), BASE, seal(log.home))
    for _ in range(20):
        writer.record(*(disclosure() for _ in range(BATCH)))
    writer.close()
    assert log.verify().entries == 350
    for kept in (log.receipt.signed, log.cosigned, log.newest):
        assert log.found(kept)[1] == not_those(kept.size)


def test_a_history_rewritten_with_the_key_before_a_receipt_was_kept_is_found_by_it(log):
    with attacking(log.database) as connection:
        rewrite(connection, TARGET)
        rebuild(log, connection, log.ring.sign)
    assert log.verify().entries == SIZE  # the holder of the key can do that, and only others can tell
    for kept in (log.receipt.signed, log.cosigned, log.newest):
        assert log.found(kept)[1] == not_those(kept.size)


def test_a_history_rewritten_with_the_key_after_a_receipt_is_found_by_the_witness_alone(log):
    with attacking(log.database) as connection:
        rewrite(connection, 240)
        rebuild(log, connection, log.ring.sign)
    assert log.verify(log.receipt.signed).entries == SIZE
    assert log.found(log.receipt.signed, log.cosigned)[0] == 210


def test_two_views_for_two_readers_are_found_when_they_compare(log, original, tmp_path):
    copy, _ = original
    (tmp_path / "other").mkdir()
    other = Database(copy(tmp_path / "other"))
    for number, database in enumerate((log.database, other)):
        writer = AuditLog(database, Clock(), BASE, seal(tmp_path / ("" if number == 0 else "other")))
        writer.record(disclosure(f"view-{number}"))
        writer.close()
    theirs = AuditLog(other, Clock(), BASE, seal(tmp_path / "other")).evidence.checkpoint()
    other.close()
    assert log.verify().entries == 301
    assert log.found(SignedCheckpoint.parse(theirs))[0] == 0
