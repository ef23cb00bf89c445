"""Entries outside of the log, each with its proof: lines of an archive, files of a report's zip.

The first line of such a file names its form and holds the checkpoint that all proofs lead to, and the log's public
keys; every other line is an entry as an export has it (`hie audit export`): index, leaf, salt and body as they were
hashed, and the inclusion proof in base 64. Other than in an export, indexes may be left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from hie.audit.checkpoint import Proof, SignedCheckpoint
from hie.audit.entry import Entry, commitment
from hie.audit.evidence import Evidence
from hie.audit.merkle import inclusion_proof, leaf_hash, verify_inclusion
from hie.audit.note import NoteError, decode, encode
from hie.audit.tree import StoredTree
from hie.core.database import Database

FORMAT = "hie-log-entries@v1"


class NotProved(Exception):
    """What does not hold about a file, in words that go after its name."""


@dataclass(frozen=True)
class ProvedEntry:
    """One line, read back and found to be in the log that the file's checkpoint signs."""

    index: int
    leaf_hash: bytes


class Prover:
    """Writes entries with their proofs under the newest checkpoint, taken when this is made."""

    def __init__(self, evidence: Evidence) -> None:
        """Raises NotProved for an empty log."""
        note = evidence.checkpoint()
        if note is None:
            raise NotProved("cannot be made of a log that has no checkpoint")
        self.checkpoint = note
        self._signed = SignedCheckpoint.parse(note)
        self._keys = [str(key) for key in evidence.public_keys()]

    def head(self) -> bytes:
        return _line({"format": FORMAT, "checkpoint": self.checkpoint.decode(), "keys": self._keys})

    def lines(self, connection: sa.Connection, entries: Iterable[Entry]) -> Iterator[bytes]:
        """A line each; entries that came after the checkpoint have none."""
        tree = StoredTree(connection, self._signed.size)
        for entry in entries:
            if entry.index < self._signed.size:
                yield entry_line(entry, inclusion_proof(entry.index, self._signed.size, tree))

    def receipts(self, connection: sa.Connection, entries: Iterable[Entry]) -> Iterator[tuple[int, bytes]]:
        """(index, c2sp.org/tlog-proof) of each entry."""
        tree = StoredTree(connection, self._signed.size)
        for entry in entries:
            if entry.index < self._signed.size:
                path = tuple(inclusion_proof(entry.index, self._signed.size, tree))
                yield entry.index, bytes(Proof(entry.index, entry.leaf, path, self._signed))


def proofs_for(database: Database, evidence: Evidence, entries: Sequence[Entry]) -> Mapping[str, bytes]:
    """The files that prove a report's entries: one with all of them, and a receipt each."""
    prover = Prover(evidence)
    with database.read() as connection:
        together = prover.head() + b"".join(prover.lines(connection, entries))
        receipts = {f"proofs/{index}.tlog-proof": raw for index, raw in prover.receipts(connection, entries)}
    keys = "".join(f"{key}\n" for key in evidence.public_keys()).encode()
    return {"entries.ndjson": together, "log.vkey": keys, **receipts}


def entry_line(entry: Entry, proof: Sequence[bytes] | None = None) -> bytes:
    """One entry, with its proof where there is one."""
    content: dict[str, Any] = {
        "index": entry.index,
        "leaf": entry.leaf.decode(),
        "salt": entry.salt.hex(),
        "body": entry.body.decode(),
    }
    return _line(content if proof is None else {**content, "proof": [encode(one) for one in proof]})


def proved_entries(lines: Iterable[bytes], evidence: Evidence) -> Iterator[ProvedEntry]:
    """The entries of a file, each held against the checkpoint at its head. Raises NotProved at the first that fails."""
    reader = iter(lines)
    signed = _head(next(reader, b""), evidence)
    for number, raw in enumerate(reader, 2):
        try:
            line = orjson.loads(raw)
            index, leaf = int(line["index"]), line["leaf"].encode()
            salt, body = bytes.fromhex(line["salt"]), line["body"].encode()
            path = [decode(one) for one in line["proof"]]
            committed = orjson.loads(leaf)["commit"]
        except (ValueError, KeyError, TypeError, AttributeError, NoteError):
            raise NotProved(f"has no entry of a log in line {number}") from None
        if commitment(salt, body) != committed:
            raise NotProved(f"has another body for entry {index} than the leaf commits to")
        if not verify_inclusion(leaf_hash(leaf), index, signed.size, path, signed.root):
            raise NotProved(f"has an entry {index} that is not in the log of its checkpoint")
        yield ProvedEntry(index, leaf_hash(leaf))


def _head(raw: bytes, evidence: Evidence) -> SignedCheckpoint:
    """The checkpoint, which this log must have signed."""
    try:
        head = orjson.loads(raw)
        if head["format"] != FORMAT:
            raise NotProved(f"is not of the form {FORMAT}")
        signed = SignedCheckpoint.parse(head["checkpoint"].encode())
        signed.require_signer(evidence.public_keys())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise NotProved("does not begin with a checkpoint") from None
    except NoteError as error:
        raise NotProved(f"begins with a checkpoint that is not this log's: {error}") from None
    return signed


def _line(content: dict[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)
