"""What the log gives to anybody: checkpoints, tiles, leaves and proofs. Hashes, times and kinds, no patient data."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from hie.audit.checkpoint import Proof, SignedCheckpoint
from hie.audit.entry import Entry
from hie.audit.export import export_lines
from hie.audit.merkle import TILE_WIDTH, Tile, inclusion_proof
from hie.audit.note import VerifierKey
from hie.audit.seal import Seal
from hie.audit.tables import cosignatures, entries
from hie.audit.tree import StoredTree, newest_size, signed_note
from hie.core.database import Database
from hie.core.errors import LogDamaged


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
            return _Proving(connection).proof(*found) if found else None

    def proofs(self, entries: Sequence[Entry]) -> list[Proof]:
        """The same of many entries of the log, in their order."""
        with self._database.read() as connection:
            proving = _Proving(connection)
            return [proving.proof(entry.index, entry.leaf) for entry in entries]


class _Proving:
    """Proofs of committed entries under the newest checkpoint, or the newest that is cosigned where it covers them."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._cosigned = connection.scalar(sa.select(sa.func.max(cosignatures.c.tree_size))) or 0
        self._newest = newest_size(connection)
        self._under: dict[int, tuple[SignedCheckpoint, StoredTree]] = {}

    def proof(self, index: int, leaf: bytes) -> Proof:
        size = self._cosigned if index < self._cosigned else self._newest
        signed, tree = self._under.get(size) or self._read(size)
        return Proof(index, leaf, tuple(inclusion_proof(index, size, tree)), signed)

    def _read(self, size: int) -> tuple[SignedCheckpoint, StoredTree]:
        note = signed_note(self._connection, size)
        if note is None:
            raise LogDamaged(f"the checkpoint of {size} entries is missing")
        self._under[size] = SignedCheckpoint.parse(note), StoredTree(self._connection, size)
        return self._under[size]
