"""Verification over several ranges and processes, while the log grows, and started from a page."""

import threading

import pytest
import sqlalchemy as sa

from hie.audit import verify as verifying
from hie.audit.verify import Seen, Wrong, verify
from tests.audit.attack import attacking
from tests.audit.samples import disclosure, seal


@pytest.fixture
def filled(log, monkeypatch):
    """1,100 entries, which are read in five ranges."""
    monkeypatch.setattr(verifying, "RANGE", 256)
    for _ in range(11):
        log.record(*(disclosure(f"person-{n}") for n in range(100)))
    return log


def test_ranges_of_several_processes_give_one_tree_and_their_progress(database, filled, tmp_path):
    told = []
    report = verify(
        database.url, seal(tmp_path).ring(), processes=2, progress=lambda done, total: told.append((done, total))
    )
    assert (report.entries, report.checkpoints) == (1100, 11)
    assert told == [(256, 1100), (512, 1100), (768, 1100), (1024, 1100), (1100, 1100)]


@pytest.mark.parametrize("index", [0, 255, 256, 700, 1099])
def test_the_first_of_several_bad_entries_is_named_wherever_the_ranges_are_cut(database, filled, tmp_path, index):
    with attacking(database) as connection:
        change = sa.text("UPDATE audit_entries SET outcome = '12' WHERE entry_index IN (:index, 1099)")
        connection.execute(change, {"index": index})
    with pytest.raises(Wrong) as wrong:
        verify(database.url, seal(tmp_path).ring(), processes=2)
    assert wrong.value.index == index


def test_a_log_that_grows_meanwhile_verifies_as_it_was(database, filled, tmp_path):
    grown = threading.Event()

    def grow_once(done, total):
        if not grown.is_set():
            grown.set()
            filled.record(*(disclosure() for _ in range(300)))

    report = verify(database.url, seal(tmp_path).ring(), processes=1, progress=grow_once)
    assert report.entries == 1100
    assert verify(database.url, seal(tmp_path).ring(), processes=1).entries == 1400


def test_a_checkpoint_between_two_of_the_logs_own_is_held_against_it(database, filled, tmp_path):
    """Somebody may keep any size that a rotation, a merge or another host has signed."""
    ring = seal(tmp_path).ring()
    with database.read() as connection:
        leaves = connection.scalars(sa.text("SELECT leaf_hash FROM audit_entries ORDER BY entry_index")).all()
    edge = verifying.RightEdge()
    edge.extend(bytes(leaf) for leaf in leaves[:333])
    good, bad = ring.checked(ring.sign(333, edge.root)), ring.checked(ring.sign(333, b"x" * 32))
    assert verify(database.url, ring, seen=[Seen(good, "a friend")], processes=1).entries == 1100
    with pytest.raises(Wrong, match="the first 333 entries are not those that a friend has signed"):
        verify(database.url, ring, seen=[Seen(bad, "a friend")], processes=1)


def test_an_empty_log_verifies_and_is_not_the_start_of_another(database, log, tmp_path):
    log.check()
    ring = seal(tmp_path).ring()
    assert verify(database.url, ring, processes=1).entries == 0
    empty = ring.checked(ring.sign(0, verifying.RightEdge().root))
    assert verify(database.url, ring, seen=[Seen(empty, "a friend")], processes=1).entries == 0
    other = ring.checked(ring.sign(0, b"x" * 32))
    with pytest.raises(Wrong, match="index 0"):
        verify(database.url, ring, seen=[Seen(other, "a friend")], processes=1)


def test_beside_a_server_of_many_threads(database, filled, tmp_path):
    """A fork would take along whatever locks they hold."""
    assert threading.active_count() > 1
    ring = seal(tmp_path).ring()
    assert verify(database.url, ring, processes=2).entries == 1100
    with attacking(database) as connection:
        connection.execute(sa.text("UPDATE audit_entries SET outcome = '12' WHERE entry_index = 700"))
    with pytest.raises(Wrong, match="index 700: the column outcome is not what the entry says"):
        verify(database.url, ring, processes=2)
