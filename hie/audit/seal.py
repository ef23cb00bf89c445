"""What stands outside the database: the log's signing keys, and the highest checkpoint that this host has seen.

`HIE_HOME/log-key` (0600), or the setting HIE_LOG_KEY, holds words in pairs: the size from which a key signs, and the
key. Retired keys stand there as vkeys, the last one as a private key:

    0 hie.example/log+1a2b3c4d+AQ… 120034 PRIVATE+KEY+hie.example/log+5e6f7a8b+AQ…

A key signs the checkpoints from its size up to the next one's, that one included: the checkpoint at which they change
carries both signatures, so the old key vouches for the new. A leaked old key is of no use beyond its size.

`HIE_HOME/log-high-water` holds the newest checkpoint, written after each commit. It is what an older copy of the
database is found by at start. Two slots are written in turn and the signature tells which of them is whole, so no
power cut leaves it unreadable.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hie.audit.checkpoint import Checkpoint, SignedCheckpoint, number
from hie.audit.note import Note, NoteError, Signature, SigningKey, VerifierKey
from hie.core.config import Settings
from hie.core.errors import ConfigurationError
from hie.core.files import create_once, replace

KEY_FILE = "log-key"
NEXT_KEY_FILE = "log-key.next"
HIGH_WATER_FILE = "log-high-water"
_SLOT_BYTES = 4096


@dataclass(frozen=True)
class DatedKey:
    """A public key, and the sizes of the first and (if it is retired) the last checkpoint that it may have signed."""

    key: VerifierKey
    first: int = 0
    last: int | None = None

    def valid_at(self, size: int) -> bool:
        return self.first <= size and (self.last is None or size <= self.last)


class KeyRing:
    """The keys of one log, oldest first; the last one may sign, if it is private."""

    def __init__(self, keys: Sequence[DatedKey], signer: SigningKey | None = None) -> None:
        self.keys = tuple(keys)
        self.signer = signer
        if not keys:
            raise NoteError("there is no key")
        if len({dated.key.name for dated in keys}) > 1:
            raise NoteError("all keys of a log have the log's name")

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Of pairs of size and key in order; or of keys alone, as `/log/key` lists them, which then hold throughout."""
        firsts: list[int | None] = []
        keys: list[VerifierKey] = []
        signer: SigningKey | None = None
        words = text.split()
        while words:
            firsts.append(number(words.pop(0)) if words[0].isdigit() and len(words) > 1 else None)
            word = words.pop(0)
            signer = SigningKey.parse(word) if word.startswith("PRIVATE+KEY+") else None
            keys.append(signer.verifier if signer else VerifierKey.parse(word))
        if not keys or None in firsts:
            return cls([DatedKey(key) for key in keys], signer)
        sizes = [first for first in firsts if first is not None]
        if sizes != sorted(set(sizes)):
            raise NoteError("the keys are not in the order of their sizes")
        return cls([DatedKey(*dated) for dated in zip(keys, sizes, [*sizes[1:], None], strict=True)], signer)

    @property
    def origin(self) -> str:
        return self.keys[-1].key.name

    def valid_at(self, size: int) -> tuple[VerifierKey, ...]:
        """The keys that may have signed a checkpoint of this size: two where they change."""
        return tuple(dated.key for dated in self.keys if dated.valid_at(size))

    def checked(self, raw: bytes) -> SignedCheckpoint:
        """A checkpoint of this log by a key that was valid at its size; raises NoteError."""
        signed = SignedCheckpoint.parse(raw)
        if signed.checkpoint.origin != self.origin:
            raise NoteError(f"this is a checkpoint of {signed.checkpoint.origin}, not of {self.origin}")
        signed.require_signer(self.valid_at(signed.size))
        return signed

    def sign(self, size: int, root: bytes) -> bytes:
        """A signed checkpoint. Raises NoteError where this ring cannot sign."""
        if self.signer is None:
            raise NoteError("this key ring has no private key")
        text = str(Checkpoint(self.origin, size, root))
        return bytes(Note(text, (self.signer.sign(text),)))

    def sign_with(self, before: KeyRing) -> Callable[[int, bytes], bytes]:
        """Signs with the new key and, below it, with the one that it takes over from."""

        def sign(size: int, root: bytes) -> bytes:
            own, older = (SignedCheckpoint.parse(ring.sign(size, root)).note for ring in (self, before))
            return bytes(own.signed_too(*older.signatures))

        return sign

    def signs(self, signature: Signature) -> bool:
        """Whether a signature says that it is by the key that signs now."""
        return self.signer is not None and signature.is_by(self.signer.verifier)

    def followed_by(self, signer: SigningKey, size: int) -> KeyRing:
        """The ring with a new key, both it and the present one to sign the checkpoint of `size`."""
        retired = dataclasses.replace(self.keys[-1], last=size)
        return KeyRing((*self.keys[:-1], retired, DatedKey(signer.verifier, size)), signer)

    def secret(self) -> str:
        """The ring as text, the private key included."""
        if self.signer is None:
            raise NoteError("this key ring has no private key")
        written = [*(str(dated.key) for dated in self.keys[:-1]), self.signer.secret()]
        return "".join(f"{dated.first} {key}\n" for dated, key in zip(self.keys, written, strict=True))


class Seal:
    """The keys and the high-water mark of this host's log."""

    def __init__(self, home: Path, origin: str, secret: str = "") -> None:
        """`origin` names the log when its first key is made; `secret` is HIE_LOG_KEY, in place of the file."""
        self._path = home / KEY_FILE
        self._next_path = home / NEXT_KEY_FILE
        self._origin = origin
        self._secret = secret
        self._ring: KeyRing | None = None
        self._lock = threading.Lock()
        self.high_water = HighWater(home / HIGH_WATER_FILE)

    @classmethod
    def of(cls, settings: Settings) -> Seal:
        """Of the exchange with these settings."""
        return cls(settings.home, settings.log_origin, settings.log_key.get_secret_value())

    @property
    def from_environment(self) -> bool:
        """Whether the key is a setting, which this process cannot change."""
        return bool(self._secret)

    @property
    def is_made(self) -> bool:
        """Whether there is a key already."""
        return self.from_environment or self._path.exists()

    def ring(self) -> KeyRing:
        """The keys, read once. Raises ConfigurationError where there are none, or none that may be used."""
        with self._lock:
            if self._ring is None:
                self._ring = self._read()
            return self._ring

    def make(self) -> None:
        """The first key of a new log, if there is none; processes that start together agree on one."""
        if not self.is_made:
            create_once(self._path, _first_ring(self._origin).secret().encode())

    def catch_up(self, signature: Signature) -> KeyRing:
        """The keys, read again, after another process has signed with a new one.

        The next key takes the place of the present one when it is seen to have signed, and not before: the process
        that rotates may die between writing it and committing what it signed.
        """
        with self._lock:
            if not self.from_environment and self._next_path.exists():
                following = KeyRing.parse(self._next_path.read_text("ascii"))
                if following.signer and signature.is_by(following.signer.verifier):
                    self._next_path.rename(self._path)
            self._ring = self._read()
            return self._ring

    def prepare_next(self, ring: KeyRing, elsewhere: Path | None) -> None:
        """Write the next ring beside the one in use, or to a file of the operator's choice."""
        replace(elsewhere or self._next_path, ring.secret().encode())

    def _read(self) -> KeyRing:
        try:
            ring = KeyRing.parse(self._secret or self._text())
            if ring.signer is None:
                raise NoteError("it has no private key")
        except NoteError as error:
            where = "HIE_LOG_KEY" if self.from_environment else str(self._path)
            raise ConfigurationError(f"{where} is not a log key ({error}); restore it from a backup.") from None
        return ring

    def _text(self) -> str:
        try:
            if self._path.stat().st_mode & 0o077:
                raise ConfigurationError(f"{self._path} can be read by others; run: chmod 600 {self._path}")
            return self._path.read_text("ascii")
        except FileNotFoundError:
            raise ConfigurationError(
                f"{self._path} is missing, with which this log was signed; restore it from a backup."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self._path} cannot be read: {type(error).__name__}.") from None


class HighWater:
    """The newest checkpoint that any process of this host has committed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, ring: KeyRing) -> SignedCheckpoint | None:
        """The higher of the slots that verify; None where nothing was ever written. Raises NoteError on damage."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        if not content.strip(b"\n\0"):
            return None  # made, and lost in a power cut before anything of it was on the disk
        found = []
        for slot in _slots(content):
            try:
                found.append(ring.checked(slot))
            except NoteError:
                continue  # the write that a power cut tore; the other slot is whole
        if not found:
            raise NoteError(f"{self.path} holds no checkpoint of this log")
        return max(found, key=lambda signed: signed.size)

    def raise_to(self, note: bytes, size: int) -> None:
        """Keep a committed checkpoint unless a higher one is kept. Raises OSError."""
        with self._locked() as descriptor:
            sizes = [_size(slot) for slot in _slots(os.pread(descriptor, 2 * _SLOT_BYTES, 0))]
            if size <= max(sizes):
                return
            slot = sizes.index(min(sizes))
            os.pwrite(descriptor, note.ljust(_SLOT_BYTES, b"\n"), slot * _SLOT_BYTES)
            if max(sizes) < 0:
                os.fsync(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _first_ring(origin: str) -> KeyRing:
    key = SigningKey.generate(origin)
    return KeyRing([DatedKey(key.verifier)], key)


def _slots(content: bytes) -> list[bytes]:
    return [content[start : start + _SLOT_BYTES].rstrip(b"\n") + b"\n" for start in (0, _SLOT_BYTES)]


def _size(slot: bytes) -> int:
    """What a slot claims; -1 where it holds no checkpoint."""
    try:
        return SignedCheckpoint.parse(slot).size
    except NoteError:
        return -1
