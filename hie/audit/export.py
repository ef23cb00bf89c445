"""The log as NDJSON, each entry with its proof, to be kept or checked elsewhere (`tools/verify_log.py` does).

The first line holds the checkpoint that all proofs lead to, and the public keys; every other line an entry: its index,
the leaf, the salt and the body as they were hashed (as text, so that no reader's JSON writer can change them), and the
inclusion proof in base 64. An entry whose body was archived has neither salt nor body any more. It streams: memory does
not grow with the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import sqlalchemy as sa

from hie.audit.merkle import inclusion_proof
from hie.audit.note import VerifierKey, encode
from hie.audit.tables import entries
from hie.audit.tree import StoredTree, newest_size, signed_note

FORMAT = "hie-log-export@v1"
_AT_ONCE = 500


def export_lines(connection: sa.Connection, keys: tuple[VerifierKey, ...], first: int = 0) -> Iterator[bytes]:
    """The lines of the log from entry `first` on, up to the newest checkpoint; each ends in a newline."""
    size = newest_size(connection)
    note = signed_note(connection, size)
    if note is None:
        return
    head = {"format": FORMAT, "checkpoint": note.decode(), "keys": [str(key) for key in keys], "first": first}
    yield _line(head)
    stored = StoredTree(connection, size)
    for index, leaf, salt, body in _rows(connection, first, size):
        proof = [encode(hash_) for hash_ in inclusion_proof(index, size, stored)]
        entry = {"index": index, "leaf": leaf.decode(), "salt": salt.hex(), "body": body.decode(), "proof": proof}
        yield _line(entry)


def _rows(connection: sa.Connection, first: int, size: int) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """A few hundred at a time, so that the connection is free for the tree in between."""
    columns = entries.c
    wanted = sa.select(columns.entry_index, columns.leaf, columns.salt, columns.body).order_by(columns.entry_index)
    for start in range(first, size, _AT_ONCE):
        within = wanted.where(columns.entry_index >= start, columns.entry_index < min(start + _AT_ONCE, size))
        yield from ((index, leaf, salt, body) for index, leaf, salt, body in connection.execute(within).all())


def _line(content: dict[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)
