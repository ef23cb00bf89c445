"""The keys and the high-water mark: made once, read by their owner alone, never going back."""

import multiprocessing
import os

import pytest

from hie.audit.note import NoteError, SigningKey
from hie.audit.seal import DatedKey, HighWater, KeyRing, Seal
from hie.core.errors import ConfigurationError

ROOT = b"r" * 32


def ring(name="hie.example/log"):
    key = SigningKey.generate(name)
    return KeyRing([DatedKey(key.verifier)], key)


def test_the_first_key_is_made_once_and_for_its_owner_alone(tmp_path):
    seal = Seal(tmp_path, "hie.example/log")
    assert not seal.is_made
    with pytest.raises(ConfigurationError, match="log-key is missing"):
        seal.ring()
    seal.make()
    assert (tmp_path / "log-key").stat().st_mode & 0o777 == 0o600
    Seal(tmp_path, "other.example/log").make()
    assert seal.ring().origin == "hie.example/log"
    assert Seal(tmp_path, "other.example/log").ring().secret() == seal.ring().secret()


def test_a_key_that_others_can_read_or_that_is_none_is_refused_without_being_shown(tmp_path):
    seal = Seal(tmp_path, "hie.example/log")
    seal.make()
    path = tmp_path / "log-key"
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        seal.ring()
    path.chmod(0o600)
    secret = path.read_text().split("+", 4)[-1].strip()  # base 64, which has + as well
    assert len(secret) > 40
    path.write_text(path.read_text().replace("log+", "log+1"))
    with pytest.raises(ConfigurationError) as refused:
        seal.ring()
    assert secret not in refused.value.message
    path.write_text(str(ring().keys[0].key))
    with pytest.raises(ConfigurationError, match="no private key"):
        seal.ring()


def test_the_setting_takes_the_place_of_the_file(tmp_path):
    given = ring("set.example/log")
    seal = Seal(tmp_path, "hie.example/log", given.signer.secret())
    assert seal.is_made
    assert seal.ring().origin == "set.example/log"
    seal.make()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match="HIE_LOG_KEY"):
        Seal(tmp_path, "", "nonsense").ring()


def test_a_key_signs_from_its_size_to_the_next_ones_and_both_sign_where_they_change():
    old = ring()
    new = old.followed_by(SigningKey.generate(old.origin), 100)
    again = KeyRing.parse(new.secret())
    assert again.secret() == new.secret()
    assert [again.valid_at(size) for size in (0, 99)] == [(old.keys[0].key,)] * 2
    assert again.valid_at(100) == (old.keys[0].key, new.keys[1].key)
    assert again.valid_at(101) == (new.keys[1].key,)
    assert new.checked(old.sign(100, ROOT)).size == 100
    with pytest.raises(NoteError, match="no known key"):
        new.checked(old.sign(101, ROOT))
    with pytest.raises(NoteError, match="no known key"):
        new.checked(new.sign(99, ROOT))
    changing = new.sign_with(old)(100, ROOT)
    assert old.checked(changing).checkpoint == new.checked(changing).checkpoint
    public = KeyRing.parse("\n".join(str(dated.key) for dated in reversed(new.keys)))
    assert public.signer is None
    for size, signing in ((99, old), (101, new)):
        assert public.checked(signing.sign(size, ROOT)).size == size


@pytest.mark.parametrize("order", [(100, 50), (100, 100)])
def test_keys_out_of_order_are_refused(order):
    keys = [ring().keys[0].key, ring().keys[0].key]
    with pytest.raises(NoteError, match="order"):
        KeyRing.parse("\n".join(f"{size} {key}" for size, key in zip(order, keys, strict=True)))


def test_keys_of_two_logs_are_no_ring():
    with pytest.raises(NoteError, match="name"):
        KeyRing.parse(f"{ring().keys[0].key}\n{ring('other.example/log').keys[0].key}")
    with pytest.raises(NoteError, match="no key"):
        KeyRing.parse(" \n")


def test_a_checkpoint_of_another_log_is_not_ours():
    with pytest.raises(NoteError, match=r"other\.example"):
        ring().checked(ring("other.example/log").sign(1, ROOT))


# -- the high-water mark


def test_the_mark_only_rises(tmp_path):
    mark, keys = HighWater(tmp_path / "mark"), ring()
    assert mark.read(keys) is None
    for size in (5, 3, 9, 8, 9, 10):
        mark.raise_to(keys.sign(size, ROOT), size)
    assert mark.read(keys).size == 10
    assert mark.path.stat().st_mode & 0o777 == 0o600


def test_a_torn_write_leaves_the_mark_before_it(tmp_path):
    mark, keys = HighWater(tmp_path / "mark"), ring()
    for size in (5, 6, 7):
        mark.raise_to(keys.sign(size, ROOT), size)
    whole = mark.path.read_bytes()
    place = whole.index(b"\n7\n")
    mark.path.write_bytes(whole[: place + 20] + b"\0" * 100 + whole[place + 120 :])
    assert mark.read(keys).size == 6
    mark.raise_to(keys.sign(8, ROOT), 8)
    assert mark.read(keys).size == 8


def test_a_mark_of_another_log_is_damage_and_an_empty_file_is_none(tmp_path):
    mark, keys = HighWater(tmp_path / "mark"), ring()
    mark.path.write_bytes(b"")
    assert mark.read(keys) is None
    mark.raise_to(ring("other.example/log").sign(5, ROOT), 5)
    with pytest.raises(NoteError, match="no checkpoint of this log"):
        mark.read(keys)


def raise_all(path, notes):
    for size, note in notes:
        HighWater(path).raise_to(note, size)


def test_several_processes_leave_the_highest(tmp_path):
    keys = ring()
    notes = [(size, keys.sign(size, ROOT)) for size in range(1, 301)]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=raise_all, args=(tmp_path / "mark", notes[n::3])) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert HighWater(tmp_path / "mark").read(keys).size == 300
    assert os.path.getsize(tmp_path / "mark") == 8192
