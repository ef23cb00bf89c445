"""The Merkle tree of the log: hashing, proofs, verification, frontier and tiles (RFC 6962, RFC 9162, C2SP tlog-tiles).

Pure functions over hashes. Proofs are made from perfect subtrees, which a `Nodes` function gives by level (0 = leaves)
and index; so they come as well from a table of nodes as from tiles. What was hashed, signed or stored is not known
here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

HASH_BYTES = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
EMPTY_ROOT = hashlib.sha256().digest()
"""The root of a tree without leaves."""

Nodes = Callable[[int, int], bytes]
"""(level, index) -> hash of the perfect subtree over leaves `index << level` to `(index + 1) << level`."""

_TILE_PATH = re.compile(r"(?P<level>\d|[1-5]\d|6[0-3])/(?P<index>(?:x\d{3}/)*\d{3})(?:\.p/(?P<width>[1-9]\d{0,2}))?")


def leaf_hash(leaf: bytes) -> bytes:
    """RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


# -- proofs


def root(size: int, nodes: Nodes) -> bytes:
    """The root of the first `size` leaves."""
    return _range_hash(0, size, nodes) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """That leaf `index` is in the tree of `size` leaves (RFC 9162 section 2.1.3.1). Raises ValueError out of range."""
    if not 0 <= index < size:
        raise ValueError("the index is not in the tree")
    proof, low, high = [], 0, size
    while high - low > 1:
        middle = low + _left_width(high - low)
        if index < middle:
            proof.append(_range_hash(middle, high, nodes))
            high = middle
        else:
            proof.append(_range_hash(low, middle, nodes))
            low = middle
    return proof[::-1]


def consistency_proof(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """That the tree of `new` leaves extends that of `old` (RFC 9162 section 2.1.4.1).

    Empty where nothing is to be proved: from no leaves, and from a size to itself. Raises ValueError if `old` > `new`.
    """
    if not 0 <= old <= new:
        raise ValueError("a tree does not shrink")
    if old in (0, new):
        return []
    proof, low, high = [], 0, new
    while high != old:
        middle = low + _left_width(high - low)
        if old <= middle:
            proof.append(_range_hash(middle, high, nodes))
            high = middle
        else:
            proof.append(_range_hash(low, middle, nodes))
            low = middle
    if low:
        proof.append(_range_hash(low, high, nodes))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes) -> bool:
    """RFC 9162 section 2.1.3.2; `leaf` is the leaf's hash."""
    if not 0 <= index < size:
        return False
    position, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = node_hash(sibling, found)
            position, last = _up_to_right_child(position, last)
        else:
            found = node_hash(found, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and found == expected_root


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """RFC 9162 section 2.1.4.2, and the two cases without a proof that it leaves out."""
    if old == new:
        return not proof and old_root == new_root and (old > 0 or old_root == EMPTY_ROOT)
    if old == 0:
        return new > 0 and not proof and old_root == EMPTY_ROOT
    if not 0 < old < new or not proof:
        return False
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_found = new_found = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_found, new_found = node_hash(sibling, old_found), node_hash(sibling, new_found)
            position, last = _up_to_right_child(position, last)
        else:
            new_found = node_hash(new_found, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and old_found == old_root and new_found == new_root


def _up_to_right_child(position: int, last: int) -> tuple[int, int]:
    while position and not position & 1:
        position, last = position >> 1, last >> 1
    return position, last


def _left_width(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << ((width - 1).bit_length() - 1)


def _range_hash(low: int, high: int, nodes: Nodes) -> bytes:
    """The subtree over leaves `low` to `high`, which RFC 6962's splitting has made."""
    return _fold([nodes(level, index) for level, index in _perfect(low, high)])


def _perfect(low: int, high: int) -> Iterator[tuple[int, int]]:
    """The perfect subtrees, largest first, that a range starting at a multiple of the first one's width is made of."""
    while low < high:
        level = (high - low).bit_length() - 1
        yield level, low >> level
        low += 1 << level


def _fold(hashes: Sequence[bytes]) -> bytes:
    """One hash of perfect subtrees that shrink from left to right."""
    found = hashes[-1]
    for left in reversed(hashes[:-1]):
        found = node_hash(left, found)
    return found


# -- growing


@dataclass(frozen=True)
class Node:
    """A perfect subtree that has become complete."""

    level: int
    index: int
    hash: bytes


@dataclass(frozen=True)
class Frontier:
    """A tree as its perfect subtrees, largest first: all that appending and the root need."""

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.size.bit_count() != len(self.hashes):
            raise ValueError("a frontier has one hash for each bit of its size")

    @classmethod
    def of(cls, size: int, nodes: Nodes) -> Frontier:
        """The frontier of the first `size` leaves."""
        return cls(size, tuple(nodes(level, index) for level, index in _perfect(0, size)))

    def append(self, leaf: bytes) -> tuple[Frontier, tuple[Node, ...]]:
        """With one more leaf hash, and the subtrees that this completes, the leaf first."""
        hashes, made = list(self.hashes), [Node(0, self.size, leaf)]
        while (self.size >> made[-1].level) & 1:
            below = made[-1]
            made.append(Node(below.level + 1, below.index >> 1, node_hash(hashes.pop(), below.hash)))
        return Frontier(self.size + 1, (*hashes, made[-1].hash)), tuple(made)

    @property
    def root(self) -> bytes:
        return _fold(self.hashes) if self.hashes else EMPTY_ROOT


@dataclass(frozen=True)
class FullTile:
    """A tile that has become complete: its hashes one after another, and the root over them."""

    tile: Tile
    hashes: bytes
    root: bytes


class RightEdge:
    """A growing tree as what is kept of it: the frontier, and the hashes of the tiles that are not full yet.

    Mutable, for speed: about two hashes are computed for a leaf, whatever the size. `full` collects the tiles that
    appending completes.
    """

    __slots__ = ("_frontier", "full", "rows", "size")

    def __init__(self, size: int = 0, rows: Sequence[Sequence[bytes]] = ()) -> None:
        """`rows` are the hashes of the partial tiles of a tree of `size` leaves by level, empty ones included."""
        self.size = size
        self.rows = [list(row) for row in rows]
        self.full: list[FullTile] = []
        if [len(row) for row in rows] != [(size >> TILE_HEIGHT * level) % TILE_WIDTH for level in range(len(rows))]:
            raise ValueError("a right edge has the hashes of the partial tiles of its size")
        if size >> TILE_HEIGHT * len(rows):
            raise ValueError("a right edge has a row for each level of its tiles")
        self._frontier = list(Frontier.of(size, self._node).hashes)

    def copy(self) -> RightEdge:
        """An independent one, `full` left out."""
        other = object.__new__(RightEdge)
        other.size = self.size
        other.rows = [row.copy() for row in self.rows]
        other.full = []
        other._frontier = self._frontier.copy()
        return other

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Append leaf hashes."""
        sha256, frontier, size = hashlib.sha256, self._frontier, self.size
        if not self.rows:
            self.rows.append([])
        for leaf in leaves:
            self.rows[0].append(leaf)
            found, rest, level = leaf, size, 0
            while rest & 1:
                found = sha256(b"\x01" + frontier.pop() + found).digest()
                rest >>= 1
                level += 1
                if not level & (TILE_HEIGHT - 1):
                    self._fill(level // TILE_HEIGHT, size, found)
            frontier.append(found)
            size += 1
        self.size = size

    @property
    def root(self) -> bytes:
        return _fold(self._frontier) if self._frontier else EMPTY_ROOT

    def _fill(self, level: int, index: int, root: bytes) -> None:
        """The tile below tile level `level` is full: leaf `index` was its last."""
        below = Tile(level - 1, index >> TILE_HEIGHT * level)
        self.full.append(FullTile(below, b"".join(self.rows[level - 1]), root))
        self.rows[level - 1] = []
        if level == len(self.rows):
            self.rows.append([])
        self.rows[level].append(root)

    def _node(self, level: int, index: int) -> bytes:
        tile_level, height = divmod(level, TILE_HEIGHT)
        offset = (index << height) % TILE_WIDTH
        return _perfect_root(self.rows[tile_level][offset : offset + (1 << height)])


# -- tiles


@dataclass(frozen=True)
class Tile:
    """Up to 256 neighbouring hashes of level `8 * level`; `width` under 256 is a partial tile."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """`<level>/<index>[.p/<width>]` below `/tile/`, the index in groups of three digits."""
        digits = str(self.index)
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
        index = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        partial = f".p/{self.width}" if self.width < TILE_WIDTH else ""
        return f"{self.level}/{index}{partial}"

    @classmethod
    def parse(cls, path: str) -> Tile | None:
        """The tile of a path; None unless it is written just as `path` would."""
        match = _TILE_PATH.fullmatch(path)
        if match is None:
            return None
        index = int(match["index"].replace("x", "").replace("/", ""))
        tile = cls(int(match["level"]), index, int(match["width"] or TILE_WIDTH))
        return tile if tile.path == path else None

    def within(self, size: int) -> bool:
        """Whether a tree of `size` leaves has this tile, in full or with more hashes than asked for."""
        return 0 < self.width <= TILE_WIDTH and (self.index << TILE_HEIGHT) + self.width <= size >> (
            TILE_HEIGHT * self.level
        )

    def content(self, nodes: Nodes) -> bytes:
        """Its hashes, one after another."""
        first = self.index << TILE_HEIGHT
        return b"".join(nodes(TILE_HEIGHT * self.level, first + offset) for offset in range(self.width))


def tiles(size: int) -> Iterator[Tile]:
    """All tiles of a tree, by level and index, the partial one of each level last."""
    level, hashes = 0, size
    while hashes:
        yield from (Tile(level, index) for index in range(hashes >> TILE_HEIGHT))
        if hashes % TILE_WIDTH:
            yield Tile(level, hashes >> TILE_HEIGHT, hashes % TILE_WIDTH)
        level, hashes = level + 1, hashes >> TILE_HEIGHT


def nodes_of_tiles(size: int, content: Callable[[Tile], bytes]) -> Nodes:
    """The perfect subtrees of a tree of `size` leaves from its tiles, as a client has them."""

    def node(level: int, index: int) -> bytes:
        tile_level, height = divmod(level, TILE_HEIGHT)
        first = index << height
        tile_index, offset = first >> TILE_HEIGHT, first % TILE_WIDTH
        width = min(TILE_WIDTH, (size >> (TILE_HEIGHT * tile_level)) - (tile_index << TILE_HEIGHT))
        raw = content(Tile(tile_level, tile_index, width))
        hashes = [raw[start : start + HASH_BYTES] for start in range(0, len(raw), HASH_BYTES)]
        return _perfect_root(hashes[offset : offset + (1 << height)])

    return node


def _perfect_root(hashes: Sequence[bytes]) -> bytes:
    """The hash over a power of two of neighbours."""
    while len(hashes) > 1:
        hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]
