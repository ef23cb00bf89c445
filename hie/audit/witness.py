"""A witness of logs (c2sp.org/tlog-witness), run by somebody else than the log on a machine of its own.

It cosigns a checkpoint only if that extends the last one it cosigned, and keeps it before it answers. So a log cannot
show two histories, nor go back, without whoever asks the witness finding out. It holds no entries and needs no trust in
the log; what it keeps is one file per log.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hie.audit.checkpoint import MAX_PROOF_HASHES, SignedCheckpoint, hash_of, number
from hie.audit.merkle import EMPTY_ROOT, verify_consistency
from hie.audit.note import COSIGNATURE, MAX_NOTE_BYTES, NoteError, SigningKey, VerifierKey, encode
from hie.core.errors import ConfigurationError
from hie.core.files import create_once, replace

KEY_FILE = "witness-key"
LOCK_FILE = "lock"
SIZE_TYPE = "text/x.tlog.size"
MAX_REQUEST_BYTES = MAX_NOTE_BYTES + 64 * 64
_OLD = re.compile(r"old (\S+)")


@dataclass(frozen=True)
class AddCheckpoint:
    """A request: the checkpoint, and the proof that it extends the one of `old` entries."""

    old: int
    proof: tuple[bytes, ...]
    note: bytes

    @classmethod
    def parse(cls, raw: bytes) -> AddCheckpoint:
        """Raises NoteError."""
        head, blank, note = raw.partition(b"\n\n")
        try:
            old, *proof = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise NoteError("the request is not ASCII before the checkpoint") from None
        match = _OLD.fullmatch(old)
        if not blank or match is None or len(proof) > MAX_PROOF_HASHES:
            raise NoteError("the request is not `old`, a size, at most 63 hashes, an empty line and a checkpoint")
        return cls(number(match[1]), tuple(map(hash_of, proof)), note)

    def __bytes__(self) -> bytes:
        lines = [f"old {self.old}", *map(encode, self.proof), "", ""]
        return "\n".join(lines).encode() + self.note


@dataclass(frozen=True)
class Answer:
    """What goes back, as HTTP has it."""

    status: int
    body: str
    content_type: str = "text/plain; charset=utf-8"


class Witness:
    """One witness with its key and what it has seen, in a folder of its own."""

    def __init__(self, folder: Path, name: str, logs: Sequence[VerifierKey], clock: Callable[[], float]) -> None:
        """`logs` are the keys of the logs that it knows, several of one name after a change; `clock` gives seconds
        since 1970. Raises ConfigurationError where the folder has the key of a witness of another name."""
        self._folder = folder
        self._logs = tuple(logs)
        self._clock = clock
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = _load_key(folder / KEY_FILE, name)

    @property
    def verifier(self) -> VerifierKey:
        """What others verify its cosignatures with."""
        return self._key.verifier

    def latest(self, origin: str) -> bytes | None:
        """The last checkpoint of a log that it cosigned, with its cosignature."""
        try:
            return self._path(origin).read_bytes()
        except FileNotFoundError:
            return None

    def add_checkpoint(self, raw: bytes) -> Answer:
        """Cosign a checkpoint, or say why not."""
        try:
            asked = AddCheckpoint.parse(raw)
            signed = SignedCheckpoint.parse(asked.note)
        except NoteError as error:
            return Answer(400, f"{error}\n")
        keys = [key for key in self._logs if key.name == signed.checkpoint.origin]
        if not keys:
            return Answer(404, "this log is not known here\n")
        try:
            signed.require_signer(keys)
        except NoteError as error:
            return Answer(403, f"{error}\n")
        if asked.old > signed.size:
            return Answer(400, "the old size is larger than the checkpoint's\n")
        with self._alone():
            return self._extend(asked, signed)

    def _extend(self, asked: AddCheckpoint, signed: SignedCheckpoint) -> Answer:
        """Under the lock: what is compared is what will be replaced."""
        last = self._last(signed.checkpoint.origin)
        size, root = (last.size, last.root) if last else (0, EMPTY_ROOT)
        if asked.old != size or (signed.size == size and signed.root != root):
            return Answer(409, f"{size}\n", SIZE_TYPE)
        if not verify_consistency(size, signed.size, asked.proof, root, signed.root):
            return Answer(422, "the proof does not show that the checkpoint extends the last one\n")
        line = self._key.cosign(signed.note.text, int(self._clock()))
        replace(self._path(signed.checkpoint.origin), bytes(signed.note.signed_too(line)))
        return Answer(200, str(line))

    def _last(self, origin: str) -> SignedCheckpoint | None:
        raw = self.latest(origin)
        try:
            return SignedCheckpoint.parse(raw) if raw else None
        except NoteError as error:
            raise ConfigurationError(f"{self._path(origin)} is damaged: {error}.") from None

    def _path(self, origin: str) -> Path:
        return self._folder / f"{hashlib.sha256(origin.encode()).hexdigest()}.checkpoint"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Among the threads of this process and all processes on this folder."""
        with self._lock:
            descriptor = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def _load_key(path: Path, name: str) -> SigningKey:
    if not path.exists():
        create_once(path, SigningKey.generate(name, COSIGNATURE).secret().encode())
    try:
        key = SigningKey.parse(path.read_text("ascii").strip())
    except (OSError, UnicodeDecodeError, NoteError) as error:
        raise ConfigurationError(f"{path} cannot be read as a witness key: {error}.") from None
    if key.verifier.name != name:
        raise ConfigurationError(f"{path} is the key of {key.verifier.name}, not of {name}.")
    return key
