"""What a process checks before it uses the log, and that it never signs over what is wrong."""

import pytest
import sqlalchemy as sa

from hie.audit.checkpoint import Checkpoint, SignedCheckpoint
from hie.audit.log import AuditLog
from hie.audit.merkle import RightEdge
from hie.audit.note import COSIGNATURE, Note, SigningKey
from hie.audit.seal import Seal
from hie.audit.tables import checkpoints, cosignatures, entries, tiles
from hie.core.database import Database
from hie.core.errors import AuditUnavailable, ConfigurationError, LogDamaged
from tests.audit.attack import attacking, cut
from tests.audit.samples import BASE, Clock, disclosure, seal


@pytest.fixture
def filled(log):
    """300 entries in 30 transactions: one full tile, and a part of the next."""
    for _ in range(30):
        log.record(*(disclosure(f"person-{n}") for n in range(10)))
    return log


@pytest.fixture
def started(database, tmp_path):
    """A process that starts now, in the same home."""
    made = []

    def start(home=tmp_path):
        made.append(AuditLog(database, Clock(), BASE, seal(home)))
        return made[-1]

    yield start
    for log in made:
        log.close()


def refusal(log):
    """Why a log refuses; it refuses to check, to record and to append alike, and writes nothing."""
    with pytest.raises(LogDamaged) as checked:
        log.check()
    with pytest.raises(AuditUnavailable):
        log.record(disclosure())
    with pytest.raises(AuditUnavailable), log._database.write() as connection:
        log.append(connection, disclosure())
    return checked.value.reason


def sizes(database):
    with database.read() as connection:
        return connection.execute(
            sa.select(sa.func.max(checkpoints.c.tree_size), sa.func.count(checkpoints.c.tree_size))
        ).one()


def test_every_transaction_has_a_checkpoint_that_signs_the_tree(database, filled, tmp_path):
    ring = seal(tmp_path).ring()
    with database.read() as connection:
        leaves = connection.scalars(sa.select(entries.c.leaf_hash).order_by(entries.c.entry_index)).all()
        notes = dict(connection.execute(sa.select(checkpoints)).all())
        (tile,) = connection.execute(sa.select(tiles)).all()
    assert sorted(notes) == list(range(10, 301, 10))
    for size, note in notes.items():
        edge = RightEdge()
        edge.extend(leaves[:size])
        assert ring.checked(note).checkpoint == Checkpoint("hie.example/log", size, edge.root)
    assert (tile.level, tile.tile_index, tile.hashes) == (0, 0, b"".join(leaves[:256]))
    assert filled.evidence.checkpoint() == notes[300]


def test_a_process_goes_on_where_others_have_stopped(filled, started):
    other = started()
    other.check()
    for index in range(300, 310):
        assert (other if index % 2 else filled).record(disclosure())[0].index == index
    for log in (filled, other, started()):
        log.check()


def test_the_mark_is_raised_with_every_commit_and_not_before(database, filled, tmp_path):
    mark = seal(tmp_path)
    assert mark.high_water.read(mark.ring()).size == 300
    with database.write() as connection:
        filled.append(connection, disclosure())
        assert mark.high_water.read(mark.ring()).size == 300
    assert mark.high_water.read(mark.ring()).size == 301
    with pytest.raises(RuntimeError), database.write() as connection:
        filled.append(connection, disclosure())
        raise RuntimeError
    assert mark.high_water.read(mark.ring()).size == 301
    filled.check()
    assert filled.record(disclosure())[0].index == 301


def test_two_appends_in_one_transaction_are_forgotten_together(database, filled):
    with pytest.raises(RuntimeError), database.write() as connection:
        filled.append(connection, disclosure())
        filled.append(connection, disclosure())
        raise RuntimeError
    filled.check()
    with database.write() as connection:
        assert filled.append(connection, disclosure())[0].index == 300
        assert filled.append(connection, disclosure())[0].index == 301
    assert filled.record(disclosure())[0].index == 302


def test_an_entry_without_a_checkpoint_stops_every_process(database, filled, started):
    with attacking(database) as connection:
        cut(connection, checkpoints, 290)
    assert refusal(started()) == "there are 300 entries, and the newest checkpoint is of 290"
    assert refusal(filled) == "there are 300 entries, and the newest checkpoint is of 290"
    assert sizes(database) == (290, 29)


def test_a_log_that_was_cut_with_its_checkpoints_is_found_by_the_mark(database, filled, started, tmp_path):
    with attacking(database) as connection:
        cut(connection, checkpoints, 270)
        cut(connection, entries, 270)
    assert refusal(started()) == "the log has 270 entries and had 300"
    assert refusal(filled) == "the log has 270 entries and had 300"
    (tmp_path / "log-high-water").unlink()
    started().check()  # without the mark a host cannot know; whoever holds a newer checkpoint does


def test_an_emptied_log_is_found_by_the_mark(database, filled, started):
    with attacking(database) as connection:
        cut(connection, checkpoints, 0)
        cut(connection, entries, 0)
    assert refusal(started()) == "the log is empty and had 300 entries"


def test_a_lost_mark_does_not_stop_a_sound_log(filled, started, tmp_path):
    (tmp_path / "log-high-water").unlink()
    started().check()
    filled.record(disclosure())
    assert seal(tmp_path).high_water.read(seal(tmp_path).ring()).size == 301


def test_a_changed_leaf_at_the_edge_and_a_changed_tile_are_found_at_the_start(database, filled, started):
    for table, column, key in ((entries, "leaf_hash", "entry_index = 299"), (tiles, "root", "tile_index = 0")):
        with attacking(database) as connection:
            before = connection.scalar(sa.text(f"SELECT {column} FROM {table.name} WHERE {key}"))
            change = sa.text(f"UPDATE {table.name} SET {column} = :value WHERE {key}")
            connection.execute(change, {"value": b"x" * 32})
        assert "do not give the root" in refusal(started())
        with attacking(database) as connection:
            connection.execute(change, {"value": before})
        started().check()


def test_missing_hashes_are_found_at_the_start(database, filled, started):
    with attacking(database) as connection:
        connection.execute(sa.text("DELETE FROM audit_tiles"))
    assert "hashes at the right edge are missing" in refusal(started())


def test_a_checkpoint_by_another_key_is_not_signed_over(database, filled, started):
    stranger = SigningKey.generate("hie.example/log")
    with attacking(database) as connection:
        note = connection.scalar(sa.select(checkpoints.c.note).where(checkpoints.c.tree_size == 300))
        text = Note.parse(note).text
        forged = bytes(Note(text, (stranger.sign(text),)))
        connection.execute(sa.text("UPDATE audit_checkpoints SET note = :n WHERE tree_size = 300"), {"n": forged})
    assert "not signed with the log key of this host" in refusal(started())
    assert "is not the one that was signed" in refusal(filled)


def test_a_fork_that_the_key_signed_is_found_by_the_mark(database, filled, started, tmp_path):
    """Whoever holds the key can sign another history; a host that has seen the first does not go on with it."""
    with attacking(database) as connection:
        leaves = connection.scalars(sa.select(entries.c.leaf_hash).order_by(entries.c.entry_index)).all()
        leaves = [*leaves[:299], b"f" * 32, b"g" * 32]
        connection.execute(
            sa.text("UPDATE audit_entries SET leaf_hash = :h WHERE entry_index = 299"), {"h": leaves[299]}
        )
        columns = [c.name for c in entries.columns]
        shown = [{"entry_index": "300", "entry_id": "'forged'", "leaf_hash": ":h"}.get(c, c) for c in columns]
        sql = f"INSERT INTO audit_entries SELECT {', '.join(shown)} FROM audit_entries WHERE entry_index = 0"
        connection.execute(sa.text(sql), {"h": leaves[300]})
        edge = RightEdge()
        edge.extend(leaves)
        note = seal(tmp_path).ring().sign(301, edge.root)
        connection.execute(checkpoints.insert().values(tree_size=301, note=note))
    assert refusal(started()) == "the log does not extend the checkpoint of 300 entries that was seen before"
    assert refusal(filled) == "the checkpoint of 301 entries does not extend the one of 300"


def test_a_log_that_does_not_extend_its_last_cosigned_checkpoint_is_refused(database, filled, started, tmp_path):
    ring = seal(tmp_path).ring()
    other = ring.sign(20, b"o" * 32)
    text = SignedCheckpoint.parse(other).note.text
    line = str(SigningKey.generate("w.example", COSIGNATURE).cosign(text, 1)).encode()
    with database.write() as connection:
        connection.execute(cosignatures.insert().values(tree_size=20, witness="w.example+00", line=line))
    started().check()
    with attacking(database) as connection:
        connection.execute(sa.text("UPDATE audit_checkpoints SET note = :n WHERE tree_size = 20"), {"n": other})
    assert "does not extend the checkpoint of 20 entries" in refusal(started())


def test_a_damaged_mark_stops_the_start(filled, started, tmp_path):
    path = tmp_path / "log-high-water"
    path.write_bytes(path.read_bytes().replace(b"hie.example", b"hie.exampel"))
    assert "holds no checkpoint of this log" in refusal(started())


def test_a_lost_key_is_said_and_no_new_one_made(filled, started, tmp_path):
    (tmp_path / "log-key").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="restore it from a backup"):
        started().check()
    with pytest.raises(AuditUnavailable):
        started().record(disclosure())
    assert not (tmp_path / "log-key").exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigurationError, match="log-key is missing"):
        started(tmp_path / "other").check()


def test_no_reason_reaches_the_caller(database, filled):
    with attacking(database) as connection:
        cut(connection, checkpoints, 290)
    with pytest.raises(AuditUnavailable) as refused:
        filled.record(disclosure())
    assert "290" not in refused.value.message
    with pytest.raises(AuditUnavailable) as refused, database.write() as connection:
        filled.append(connection, disclosure())
    assert "290" not in refused.value.message


# -- the key changes


def test_a_new_key_signs_from_then_on_in_every_process(database, filled, started, tmp_path):
    other = started()
    other.record(disclosure())
    old = seal(tmp_path).ring()
    made = filled.rotate_key()
    assert seal(tmp_path).ring().keys[1].key == made
    for log in (other, filled, started()):
        log.record(disclosure())
    with database.read() as connection:
        notes = dict(connection.execute(sa.select(checkpoints)).all())
    new = seal(tmp_path).ring()
    assert old.checked(notes[302]).checkpoint == new.checked(notes[302]).checkpoint
    assert [new.checked(notes[size]).size for size in (301, 303, 304, 305)] == [301, 303, 304, 305]
    assert SignedCheckpoint.parse(notes[303]).note.signers([old.keys[0].key]) == ()
    told = filled.entry(301).resource["outcomeDesc"]
    assert str(old.keys[0].key) in told
    assert str(made) in told
    assert [str(key) for key in filled.evidence.public_keys()] == [str(made), str(old.keys[0].key)]


def test_a_change_of_keys_that_died_half_way_is_finished_or_forgotten(database, filled, started, tmp_path, monkeypatch):
    """Between writing the key and the commit nothing has changed; between the commit and the rename it has."""
    monkeypatch.setattr(filled, "_grow", None)
    with pytest.raises(TypeError):
        filled.rotate_key()
    assert (tmp_path / "log-key.next").exists()
    started().check()
    monkeypatch.undo()
    monkeypatch.setattr(Seal, "catch_up", lambda *_: None)
    made = filled.rotate_key()
    monkeypatch.undo()
    assert seal(tmp_path).ring().keys[-1].key != made
    other = started()
    other.record(disclosure())
    assert seal(tmp_path).ring().keys[-1].key == made
    assert not (tmp_path / "log-key.next").exists()


def test_a_key_from_a_setting_is_rotated_into_a_file_of_choice(database, tmp_path):
    (tmp_path / "home").mkdir()
    key = SigningKey.generate("hie.example/log")
    log = AuditLog(database, Clock(), BASE, Seal(tmp_path / "home", "", key.secret()))
    log.record(disclosure())
    made = log.rotate_key(tmp_path / "next")
    stale = AuditLog(database, Clock(), BASE, Seal(tmp_path / "home", "", key.secret()))
    assert "not signed with the log key of this host" in refusal(stale)
    fresh = AuditLog(database, Clock(), BASE, Seal(tmp_path / "home", "", (tmp_path / "next").read_text()))
    fresh.record(disclosure())
    assert fresh.evidence.public_keys() == (made, key.verifier)
    for opened in (log, stale, fresh):
        opened.close()


def test_the_key_and_mark_are_not_touched_before_the_first_use(database_url, tmp_path):
    AuditLog(Database(database_url), Clock(), BASE, seal(tmp_path))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("log-")]
