"""What the log gives to anybody: checkpoints, tiles, leaves and proofs. Hashes, times and kinds, no patient data."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import sqlalchemy as sa

from hie.audit.checkpoint import Proof, SignedCheckpoint
from hie.audit.export import export_lines
from hie.audit.merkle import TILE_WIDTH, Tile, inclusion_proof
from hie.audit.note import VerifierKey
from hie.audit.seal import Seal
from hie.audit.tables import cosignatures, entries
from hie.audit.tree import StoredTree, newest_size, signed_note
from hie.core.database import Database


class Evidence:
    """The stored tree as others read it."""

    def __init__(self, database: Database, seal: Seal) -> None:
        self._database = database
        self._seal = seal

    def public_keys(self) -> tuple[VerifierKey, ...]:
        """The log's public keys, the one that signs now first."""
        return tuple(dated.key for dated in reversed(self._seal.ring().keys))

    def checkpoint(self) -> bytes | None:
        """The newest checkpoint, with the cosignatures that it has; None while the log is empty."""
        with self._database.read() as connection:
            return signed_note(connection, newest_size(connection))

    def tile(self, tile: Tile) -> bytes | None:
        """The hashes of a tile (c2sp.org/tlog-tiles); None if the tree does not have it."""
        with self._database.read() as connection:
            return StoredTree(connection, newest_size(connection)).tile(tile)

    def bundle(self, tile: Tile) -> bytes | None:
        """The leaves under a tile of level 0, each after its length as two bytes."""
        with self._database.read() as connection:
            if tile.level or not tile.within(newest_size(connection)):
                return None
            first = tile.index * TILE_WIDTH
            index = entries.c.entry_index
            wanted = sa.select(entries.c.leaf).where(index >= first, index < first + tile.width).order_by(index)
            return b"".join(struct.pack(">H", len(leaf)) + leaf for leaf in connection.scalars(wanted))

    def leaf(self, index: int) -> bytes | None:
        """The exact bytes that the tree is built on."""
        with self._database.read() as connection:
            return connection.scalar(sa.select(entries.c.leaf).where(entries.c.entry_index == index))

    def export(self, first: int = 0) -> Iterator[bytes]:
        """The log from entry `first` on as lines of NDJSON (`export.py`), bodies included: not for everybody."""
        with self._database.read() as connection:
            yield from export_lines(connection, self.public_keys(), first)

    def proof(self, entry_id: str) -> Proof | None:
        """That an entry is in the log, under the newest checkpoint that a witness cosigned, else the newest of all."""
        with self._database.read() as connection:
            wanted = sa.select(entries.c.entry_index, entries.c.leaf).where(entries.c.entry_id == entry_id)
            found = connection.execute(wanted).first()
            return proof_of(connection, *found) if found else None


def proof_of(connection: sa.Connection, index: int, leaf: bytes) -> Proof | None:
    """The proof of an entry that is committed."""
    cosigned = sa.select(sa.func.max(cosignatures.c.tree_size)).where(cosignatures.c.tree_size > index)
    size = connection.scalar(cosigned) or newest_size(connection)
    note = signed_note(connection, size)
    if note is None:
        return None
    path = inclusion_proof(index, size, StoredTree(connection, size))
    return Proof(index, leaf, tuple(path), SignedCheckpoint.parse(note))
