"""The stored tree: its nodes from tiles and leaf hashes, and the head that every transaction starts from.

The head is what this process has seen last; what the database says now must follow from it, leaf by leaf, and be signed
by the log's key. The first time, it must follow from what the host's high-water mark and the last cosigned checkpoint
say. Whatever does not is reported and never signed over.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from hie.audit.checkpoint import SignedCheckpoint
from hie.audit.merkle import TILE_HEIGHT, TILE_WIDTH, RightEdge, Tile, node_hash, root
from hie.audit.note import NoteError
from hie.audit.seal import KeyRing, Seal
from hie.audit.tables import checkpoints, cosignatures, entries, tiles
from hie.core.errors import LogDamaged

_KEPT_TILES = 64
Rows = list[list[bytes]]

_HEAD = (
    "SELECT (SELECT max(entry_index) FROM audit_entries), (SELECT max(tree_size) FROM audit_checkpoints), "
    "(SELECT note FROM audit_checkpoints ORDER BY tree_size DESC LIMIT 1)"
)
"""The last index and the newest checkpoint, in one statement: one state of the log, whoever is writing."""


class StoredTree:
    """The nodes (`merkle.Nodes`) of the first `size` leaves of the stored log."""

    def __init__(self, connection: sa.Connection, size: int) -> None:
        self._connection = connection
        self._size = size
        self._known: OrderedDict[tuple[int, int], Rows] = OrderedDict()

    def __call__(self, level: int, index: int) -> bytes:
        tile_level, height = divmod(level, TILE_HEIGHT)
        tile_index, place = divmod(index, TILE_WIDTH >> height)
        return self._pyramid(tile_level, tile_index)[height][place]

    def tile(self, tile: Tile) -> bytes | None:
        """The hashes of a tile; None if the tree does not have it."""
        return b"".join(self._hashes(tile.level, tile.index)[: tile.width]) if tile.within(self._size) else None

    def _pyramid(self, level: int, index: int) -> Rows:
        """All subtrees inside a tile by height. The last ones that were asked for are kept."""
        known = self._known.get((level, index))
        if known is not None:
            self._known.move_to_end((level, index))
            return known
        rows = [self._hashes(level, index)]
        while len(rows) < TILE_HEIGHT:
            below = rows[-1]
            rows.append([node_hash(left, right) for left, right in zip(below[::2], below[1::2], strict=False)])
        self._known[level, index] = rows
        if len(self._known) > _KEPT_TILES:
            self._known.popitem(last=False)
        return rows

    def _hashes(self, level: int, index: int) -> list[bytes]:
        width = min(TILE_WIDTH, (self._size >> TILE_HEIGHT * level) - (index << TILE_HEIGHT))
        if width == TILE_WIDTH:
            stored = sa.select(tiles.c.hashes).where(tiles.c.level == level, tiles.c.tile_index == index)
            raw = self._connection.scalar(stored) or b""
            found = [raw[start : start + 32] for start in range(0, len(raw), 32)]
        else:
            found = partial_row(self._connection, level, index << TILE_HEIGHT, width)
        if len(found) != max(width, 0):
            raise LogDamaged(f"hashes of level {TILE_HEIGHT * level} are missing from the stored tree")
        return found


def partial_row(connection: sa.Connection, level: int, first: int, width: int) -> list[bytes]:
    """`width` hashes of tile level `level` from `first` on, not from their own tile but from what is below it."""
    if level:
        index, wanted = tiles.c.tile_index, sa.select(tiles.c.root).where(tiles.c.level == level - 1)
    else:
        index, wanted = entries.c.entry_index, sa.select(entries.c.leaf_hash)
    return list(connection.scalars(wanted.where(index >= first, index < first + width).order_by(index)))


@dataclass(frozen=True)
class Head:
    """A state of the log: its right edge, which nobody changes any more, and the note that signs it (none if empty)."""

    edge: RightEdge
    note: bytes = b""

    @property
    def size(self) -> int:
        return self.edge.size


class Heads:
    """The newest head that this process knows."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal
        self._known: Head | None = None
        self._lock = threading.Lock()

    def read(self, connection: sa.Connection) -> Head:
        """The log's head by the database, checked. Raises LogDamaged with the reason, ConfigurationError for the keys.

        A writer holds the log's lock when it asks, and so knows that this stays the head.
        """
        known = self._known
        if known is None:
            return self.install(_opened(connection, self._seal))
        size, note = _stored(connection)
        if (size, note) == (known.size, known.note):
            return known
        if size < known.size:
            raise LogDamaged(f"the log has {size} entries and had {known.size}")
        if size == known.size:
            raise LogDamaged(f"the checkpoint of {size} entries is not the one that was signed")
        return self.install(_followed(connection, known, size, note, self._seal))

    def install(self, head: Head) -> Head:
        """Remember a head that is committed, unless a newer one is known."""
        with self._lock:
            if self._known is None or head.size > self._known.size:
                self._known = head
        return head


def _stored(connection: sa.Connection) -> tuple[int, bytes]:
    """The newest checkpoint; raises LogDamaged unless it covers all entries."""
    last, size, note = connection.exec_driver_sql(_HEAD).one()
    rows = 0 if last is None else last + 1
    if rows != (size or 0):
        raise LogDamaged(f"there are {rows} entries, and the newest checkpoint is of {size or 0}")
    return rows, note or b""


def _opened(connection: sa.Connection, seal: Seal) -> Head:
    """The head when nothing is known yet: it must give the signed root and extend whatever was seen of it before."""
    if not seal.is_made:
        return _first(connection, seal)
    ring = seal.ring()
    try:
        before = seal.high_water.read(ring)
    except NoteError as error:
        raise LogDamaged(str(error)) from None
    size, note = _stored(connection)
    if size == 0:
        if before is not None and before.size:
            raise LogDamaged(f"the log is empty and had {before.size} entries")
        return Head(RightEdge())
    signed = _checked(ring, note, size, seal)
    edge = right_edge(connection, size)
    if edge.root != signed.root:
        raise LogDamaged(f"the entries do not give the root that the checkpoint of {size} entries has")
    stored = StoredTree(connection, size)
    for older in (before, _last_cosigned(connection)):
        if older is not None:
            require_extension(stored, size, older)
    return Head(edge, note)


def _first(connection: sa.Connection, seal: Seal) -> Head:
    """A log that has no key yet: it is new, or the key is lost, and then none must be made."""
    size, _ = _stored(connection)
    if size == 0 and not seal.high_water.path.exists():
        seal.make()
        return Head(RightEdge())
    seal.ring()  # says what is missing
    raise LogDamaged("the log has entries and this host no key of it")


def _followed(connection: sa.Connection, known: Head, size: int, note: bytes, seal: Seal) -> Head:
    """The head after other processes have appended: every new leaf goes through the tree that is known here."""
    signed = _checked(seal.ring(), note, size, seal)
    edge = known.edge.copy()
    new = sa.select(entries.c.leaf_hash).where(entries.c.entry_index >= known.size).order_by(entries.c.entry_index)
    edge.extend(connection.scalars(new))
    if (edge.size, edge.root) != (size, signed.root):
        raise LogDamaged(f"the checkpoint of {size} entries does not extend the one of {known.size}")
    edge.full.clear()
    return Head(edge, note)


def _checked(ring: KeyRing, note: bytes, size: int, seal: Seal) -> SignedCheckpoint:
    """The newest checkpoint, signed by the key that signs now; if by another, the keys are read again first."""
    try:
        newest = SignedCheckpoint.parse(note).note.signatures[0]
        if not ring.signs(newest):
            ring = seal.catch_up(newest)
        if not ring.signs(newest):
            raise NoteError("it is not signed with the log key of this host")
        signed = ring.checked(note)
    except NoteError as error:
        raise LogDamaged(f"the checkpoint of {size} entries is not good: {error}") from None
    if signed.size != size:
        raise LogDamaged(f"the checkpoint of {size} entries says {signed.size}")
    return signed


def _last_cosigned(connection: sa.Connection) -> SignedCheckpoint | None:
    newest = (
        sa.select(checkpoints.c.note)
        .join(cosignatures, cosignatures.c.tree_size == checkpoints.c.tree_size)
        .order_by(checkpoints.c.tree_size.desc())
        .limit(1)
    )
    note = connection.scalar(newest)
    try:
        return SignedCheckpoint.parse(note) if note else None
    except NoteError as error:
        raise LogDamaged(f"the last cosigned checkpoint is not good: {error}") from None


def require_extension(stored: StoredTree, size: int, older: SignedCheckpoint) -> None:
    """Raises LogDamaged unless the stored tree of `size` leaves begins with that of an older checkpoint."""
    if older.size > size:
        raise LogDamaged(f"the log has {size} entries and had {older.size}")
    if root(older.size, stored) != older.root:
        raise LogDamaged(f"the log does not extend the checkpoint of {older.size} entries that was seen before")


def right_edge(connection: sa.Connection, size: int) -> RightEdge:
    """What appending to the stored tree of `size` leaves starts from."""
    rows: list[Sequence[bytes]] = []
    while size >> TILE_HEIGHT * len(rows):
        hashes = size >> TILE_HEIGHT * len(rows)
        width = hashes % TILE_WIDTH
        rows.append(partial_row(connection, len(rows), hashes - width, width) if width else [])
    try:
        return RightEdge(size, rows)
    except ValueError:
        raise LogDamaged("hashes at the right edge are missing from the stored tree") from None


def newest_size(connection: sa.Connection) -> int:
    """The number of entries that the newest checkpoint signs."""
    return connection.scalar(sa.select(sa.func.max(checkpoints.c.tree_size))) or 0


def signed_note(connection: sa.Connection, size: int, *, cosigned: bool = True) -> bytes | None:
    """The checkpoint of a size, with its cosignatures below the log's own signature."""
    note = connection.scalar(sa.select(checkpoints.c.note).where(checkpoints.c.tree_size == size))
    lines = sa.select(cosignatures.c.line).where(cosignatures.c.tree_size == size).order_by(cosignatures.c.witness)
    return b"".join([note, *(connection.scalars(lines) if cosigned else ())]) if note else None
