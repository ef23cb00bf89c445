"""Checkpoints of the log (c2sp.org/tlog-checkpoint) and proofs that an entry is in one (c2sp.org/tlog-proof), pure.

A checkpoint says: this log, at this size, has this root. It is a signed note, so whoever keeps one can later hold the
log to it. A proof is a leaf, its path to the root and a checkpoint: a receipt that is good without asking anybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hie.audit.merkle import HASH_BYTES, leaf_hash, verify_inclusion
from hie.audit.note import Note, NoteError, VerifierKey, decode, encode

PROOF_HEADER = "c2sp.org/tlog-proof@v1"
MAX_PROOF_HASHES = 63
_SIZE = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a log: `origin` names it, `size` counts its entries."""

    origin: str
    size: int
    root: bytes

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Of a note's text; extension lines are allowed and mean nothing here. Raises NoteError."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] != "" or not all(lines[:-1]):
            raise NoteError("this is not a checkpoint")
        origin, size, root = lines[:3]
        return cls(origin, number(size), hash_of(root))

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{encode(self.root)}\n"


@dataclass(frozen=True)
class SignedCheckpoint:
    """A checkpoint with the note that carried it."""

    checkpoint: Checkpoint
    note: Note

    @classmethod
    def parse(cls, raw: bytes) -> SignedCheckpoint:
        """Raises NoteError. The signatures are not looked at."""
        note = Note.parse(raw)
        return cls(Checkpoint.parse(note.text), note)

    @property
    def size(self) -> int:
        return self.checkpoint.size

    @property
    def root(self) -> bytes:
        return self.checkpoint.root

    def require_signer(self, known: Iterable[VerifierKey]) -> None:
        """Raises NoteError unless one of the known keys signed it in the name of its log."""
        own = [key for key in known if key.name == self.checkpoint.origin]
        if not self.note.signers(own):
            raise NoteError(f"no known key of {self.checkpoint.origin} signed this checkpoint")


@dataclass(frozen=True)
class Proof:
    """That a leaf is entry `index` of the log. `leaf` travels as the proof's extra data."""

    index: int
    leaf: bytes
    proof: tuple[bytes, ...]
    signed: SignedCheckpoint

    @classmethod
    def parse(cls, raw: bytes) -> Proof:
        """Raises NoteError on anything but a tlog-proof with extra data."""
        head, blank, note = raw.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            lines = []
        if not blank or len(lines) < 3 or lines[0] != PROOF_HEADER or len(lines) > 3 + MAX_PROOF_HASHES:
            raise NoteError(f"this is not a proof of the form {PROOF_HEADER}")
        extra, index = (_after(name, line) for name, line in zip(("extra ", "index "), lines[1:3], strict=True))
        hashes = tuple(map(hash_of, lines[3:]))
        return cls(number(index), decode(extra), hashes, SignedCheckpoint.parse(note))

    def __bytes__(self) -> bytes:
        lines = [PROOF_HEADER, f"extra {encode(self.leaf)}", f"index {self.index}", *map(encode, self.proof), "", ""]
        return "\n".join(lines).encode() + bytes(self.signed.note)

    def require_included(self) -> None:
        """Raises NoteError unless the proof leads from the leaf to the checkpoint's root."""
        leaf = leaf_hash(self.leaf)
        if not verify_inclusion(leaf, self.index, self.signed.size, self.proof, self.signed.root):
            raise NoteError("the proof does not lead from the entry to the checkpoint")


def number(text: str) -> int:
    """A decimal number without leading zeros; raises NoteError."""
    if not _SIZE.fullmatch(text):
        raise NoteError("a number was expected")
    return int(text)


def hash_of(text: str) -> bytes:
    """A hash in base 64; raises NoteError."""
    raw = decode(text)
    if len(raw) != HASH_BYTES:
        raise NoteError("a hash of 32 bytes was expected")
    return raw


def _after(name: str, line: str) -> str:
    if not line.startswith(name):
        raise NoteError(f"a line starting with {name.strip()} was expected")
    return line.removeprefix(name)
