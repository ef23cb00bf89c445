"""Verification: every entry is read again and everything that follows from it is made again.

For each entry: its place, the commitment of salt and body, the leaf, the leaf's hash, the search columns and the side
rows. From the leaf hashes: every tile, and the root of every checkpoint, whose signatures are checked too. Beyond that:
the host's high-water mark, a checkpoint that somebody kept, and the cosignatures of known witnesses.

A Merkle tree alone does not see an edited search column, nor rows that it does not know of; this does. It reads in
ranges, one process per processor, so a log of any size is verified in the same memory.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

import orjson
import sqlalchemy as sa

from hie.audit.checkpoint import SignedCheckpoint
from hie.audit.columns import Columns, columns
from hie.audit.entry import commitment, leaf_bytes
from hie.audit.merkle import HASH_BYTES, TILE_HEIGHT, TILE_WIDTH, FullTile, RightEdge, leaf_hash
from hie.audit.note import NoteError, Signature, VerifierKey
from hie.audit.seal import KeyRing, Seal
from hie.audit.tables import SIDES, entities, entries, purposes, source_failures, subtypes
from hie.core.clock import instant, system_clock
from hie.core.database import Database

RETENTION = timedelta(days=6 * 365)
"""No body is archived sooner; the guard of the table counts six calendar years, which is longer."""
RANGE = 4 * TILE_WIDTH
"""Entries that are read and checked at once."""

Progress = Callable[[int, int], None]
"""(entries verified, entries in all)."""
Row = tuple[Any, ...]

_SCALARS = ("type", "action", "outcome", "person_id", "organization", "client_id", "user_id", "session", "request_id")
_ENTRIES = ", ".join(("entry_index", "entry_id", "recorded", "kind", "salt", "body", "leaf", "leaf_hash", *_SCALARS))
_WITHIN = "entry_index >= {} AND entry_index < {} ORDER BY entry_index"


class Wrong(Exception):
    """What does not verify: the first index it shows at, and one sentence."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"index {index}: {reason}")
        self.index = index
        self.reason = reason

    def __reduce__(self) -> tuple[type[Wrong], tuple[int, str]]:
        return type(self), (self.index, self.reason)


@dataclass(frozen=True)
class Seen:
    """A checkpoint that somebody has seen, and the words for who that was."""

    signed: SignedCheckpoint
    whose: str


@dataclass(frozen=True)
class Report:
    """A log that verifies."""

    entries: int
    root: bytes
    checkpoints: int
    cosignatures: int
    unknown_cosignatures: int
    """By witnesses whose keys were not given: whether they hold is not known."""
    archived: int
    """Entries whose bodies are in archives; their leaves were verified, their search columns could not be."""


@dataclass(frozen=True)
class _Forged:
    """A stored checkpoint that is not good."""

    size: int
    reason: str


@dataclass(frozen=True)
class _Checked:
    """One range that holds in itself: its leaf hashes one after another, and the checkpoints that end in it."""

    leaves: bytes
    checkpoints: tuple[tuple[int, bytes], ...]
    forged: _Forged | None
    """The first checkpoint that does not hold; the checkpoints then end before it."""
    wrong: Wrong | None
    """The first entry that does not hold; the leaves then end there."""
    archived: int


def verify(
    url: str,
    ring: KeyRing,
    *,
    seen: Sequence[Seen] = (),
    witnesses: Iterable[VerifierKey] = (),
    progress: Progress = lambda _done, _all: None,
    processes: int | None = None,
) -> Report:
    """Verify the log in the database at `url` against the public keys of `ring`. Raises Wrong.

    Where this process has threads of its own, the others begin from nothing: a fork would take along locks that those
    threads hold, and wait for them for ever.
    """
    database = Database(url)
    start: Literal["fork", "spawn"] = "fork" if threading.active_count() == 1 else "spawn"
    readers = _Readers(url, KeyRing(ring.keys), processes or os.cpu_count() or 1, start)
    try:
        return _Verification(database, tuple(seen), tuple(witnesses), progress).run(readers)
    finally:
        database.close()


def own_mark(seal: Seal, ring: KeyRing) -> list[Seen]:
    """This host's high-water mark, where there is one. Raises NoteError where it does not hold."""
    mark = seal.high_water.read(ring)
    return [Seen(mark, "this host's high-water mark")] if mark else []


class _Verification:
    """What is known so far of one log."""

    def __init__(
        self,
        database: Database,
        seen: tuple[Seen, ...],
        witnesses: tuple[VerifierKey, ...],
        progress: Progress,
    ) -> None:
        self._database = database
        self._seen = sorted(seen, key=lambda one: one.signed.size)
        self._witnesses = {f"{key.name}+{key.id.hex()}": key for key in witnesses}
        self._progress = progress
        self._edge = RightEdge()
        self._good = self._seen_good = 0
        """Entries under the last checkpoint, and under the last one that somebody has seen, with the right root."""
        self._checkpoints = self._archived = 0

    def run(self, readers: _Readers) -> Report:
        with self._database.read() as connection:
            size = _signed_size(connection)
            self._take(connection, _Checked(b"", (), None, None, 0))
            for checked in readers.ranges(size):
                self._take(connection, checked)
                self._progress(self._edge.size, size)
        # A reading transaction of its own: what was written meanwhile must be in order as well.
        with self._database.read() as connection:
            self._require_seen_to_the_end(size)
            known, unknown = self._require_cosignatures(connection)
            _require_nothing_else(connection)
        return Report(size, self._edge.root, self._checkpoints, known, unknown, self._archived)

    def _take(self, connection: sa.Connection, checked: _Checked) -> None:
        """Grow the tree by a range, through every checkpoint that ends in it."""
        first = self._edge.size
        leaves = [checked.leaves[at : at + HASH_BYTES] for at in range(0, len(checked.leaves), HASH_BYTES)]
        end = first + len(leaves)
        for size, root, whose in self._claims(checked, end):
            self._edge.extend(leaves[self._edge.size - first : size - first])
            if self._edge.root == root:
                self._good, self._seen_good = (self._good, size) if whose else (size, self._seen_good)
            elif whose:
                raise Wrong(self._seen_good, f"the first {size} entries are not those that {whose} has signed")
            else:
                at = self._first_difference(connection, first, leaves, size)
                raise Wrong(at, f"the entries are not those that the checkpoint of {size} has signed")
        if checked.forged and (checked.wrong is None or checked.wrong.index >= checked.forged.size):
            raise Wrong(self._good, checked.forged.reason)
        self._edge.extend(leaves[self._edge.size - first :])
        self._require_tiles(connection)
        if checked.wrong:
            raise checked.wrong
        self._checkpoints += len(checked.checkpoints)
        self._archived += checked.archived

    def _claims(self, checked: _Checked, end: int) -> list[tuple[int, bytes, str]]:
        """(size, root, whose) of everything that says what the roots of this range are, by size; "" is the log."""
        claims = [(size, root, "") for size, root in checked.checkpoints]
        while self._seen and self._seen[0].signed.size <= end:
            one = self._seen.pop(0)
            claims.append((one.signed.size, one.signed.root, one.whose))
        return sorted((claim for claim in claims if claim[0] <= end), key=lambda claim: claim[0])

    def _first_difference(self, connection: sa.Connection, first: int, leaves: list[bytes], size: int) -> int:
        """Where the leaves begin to differ from the stored tile, if that still tells; else where they may."""
        tile_first = self._good - self._good % TILE_WIDTH
        for start in range(tile_first, size, TILE_WIDTH):
            stored = _stored_tile(connection, 0, start >> TILE_HEIGHT)
            hashes = stored[1] if stored else b""
            for index in range(max(start, first, self._good), min(start + len(hashes) // HASH_BYTES, size)):
                at = (index - start) * HASH_BYTES
                if hashes[at : at + HASH_BYTES] != leaves[index - first]:
                    return index
        return self._good

    def _require_tiles(self, connection: sa.Connection) -> None:
        for full in self._edge.full:
            stored = _stored_tile(connection, full.tile.level, full.tile.index)
            if stored != (full.root, full.hashes):
                raise Wrong(_first_of(full, stored), f"the stored tile {full.tile.path} is not that of the entries")
        self._edge.full.clear()

    def _require_seen_to_the_end(self, size: int) -> None:
        if self._seen:
            one = self._seen[-1]
            raise Wrong(size, f"the log ends here, and {one.whose} has signed {one.signed.size} entries")

    def _require_cosignatures(self, connection: sa.Connection) -> tuple[int, int]:
        """How many hold, and how many are by witnesses that are not known here."""
        known = unknown = 0
        wanted = sa.text(
            "SELECT s.tree_size, s.witness, s.line, c.note FROM audit_cosignatures s "
            "LEFT JOIN audit_checkpoints c ON c.tree_size = s.tree_size ORDER BY s.tree_size"
        )
        for size, witness, line, note in connection.execute(wanted):
            key = self._witnesses.get(witness)
            try:
                signature = Signature.parse(bytes(line).decode().removesuffix("\n"))
                if note is None or f"{signature.name}+{signature.key_id.hex()}" != witness:
                    raise NoteError("it does not belong to a checkpoint")
                if key and not key.accepts(SignedCheckpoint.parse(note).note.text, signature):
                    raise NoteError("it is not over this checkpoint")
            except (NoteError, UnicodeDecodeError) as error:
                raise Wrong(size - 1, f"the cosignature by {witness} of {size} entries is not good: {error}") from None
            known, unknown = known + (key is not None), unknown + (key is None)
        return known, unknown


# -- ranges, in processes of their own


@dataclass(frozen=True)
class _Readers:
    """Who reads and checks the ranges of one log."""

    url: str
    ring: KeyRing
    count: int
    start: Literal["fork", "spawn"]

    def ranges(self, size: int) -> Iterator[_Checked]:
        """The ranges of the first `size` entries in order."""
        cut = [(first, min(first + RANGE, size)) for first in range(0, size, RANGE)]
        return self._here(cut) if self.count == 1 else self._in_parallel(cut)

    def _here(self, cut: Iterable[tuple[int, int]]) -> Iterator[_Checked]:
        reader = _Ranges(self.url, self.ring)
        try:
            for first, last in cut:
                yield reader.check(first, last)
        finally:
            reader.close()

    def _in_parallel(self, cut: Iterable[tuple[int, int]]) -> Iterator[_Checked]:
        """A few at work, so that memory does not grow with the log."""
        # Imported here: a server starts without it.
        from concurrent.futures.process import ProcessPoolExecutor

        context = multiprocessing.get_context(self.start)
        with ProcessPoolExecutor(self.count, context, initializer=_begin, initargs=(self.url, self.ring)) as pool:
            under_way: deque[Future[_Checked]] = deque()
            try:
                for first, last in cut:
                    under_way.append(pool.submit(_check_range, first, last))
                    if len(under_way) > 2 * self.count:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:
                for waiting in under_way:
                    waiting.cancel()


class _Ranges:
    """Reads ranges of one log, past SQLAlchemy: this is where verification spends its time."""

    def __init__(self, url: str, ring: KeyRing) -> None:
        self._ring = ring
        database = Database(url)
        self._sqlite = database.is_sqlite
        self._held = database.engine.raw_connection()
        self._driver = cast(Any, self._held.driver_connection)
        if not self._sqlite:
            self._driver.autocommit = True

    def close(self) -> None:
        self._held.close()

    def check(self, first: int, last: int) -> _Checked:
        leaves: list[bytes] = []
        sides: dict[sa.Table, set[Row]] = {table: set() for table in SIDES}
        archived: set[int] = set()
        wrong: Wrong | None = None
        try:
            for index, row in enumerate(self._rows(_ENTRIES, entries.name, first, last), first):
                if not row[4] and not row[5]:
                    leaves.append(self._check_archived(index, row))
                    archived.add(index)
                else:
                    leaves.append(_check_entry(index, row, sides))
            if first + len(leaves) < last:
                raise Wrong(first + len(leaves), "the entry is missing")
            self._check_sides(first, last, sides, archived)
        except Wrong as found:
            wrong = found
        return _Checked(b"".join(leaves), *self._checkpoints(first, last), wrong=wrong, archived=len(archived))

    def _rows(self, names: str, table: str, first: int, last: int) -> list[Row]:
        return self._select(f"SELECT {names} FROM {table} WHERE {_WITHIN.format('?', '?')}", first, last)

    def _select(self, sql: str, *values: int) -> list[Row]:
        if self._sqlite:
            return list(self._driver.execute(sql, values))
        with self._driver.cursor(binary=True) as cursor:
            return list(cursor.execute(sql.replace("?", "%s"), values))

    def _check_archived(self, index: int, row: Row) -> bytes:
        """The leaf hash of an entry whose body and salt went to an archive: all but they must hold. Raises Wrong."""
        at, entry_id, recorded, kind, _salt, _body, leaf, stored_hash = row[:8]
        if at != index:
            raise Wrong(index, "the entry is missing")
        if not self._select("SELECT 1 FROM audit_archives WHERE ? BETWEEN first_index AND last_index", index):
            raise Wrong(index, "the body is gone, and no archive holds it")
        time = recorded if isinstance(recorded, str) else instant(recorded)
        if leaf_bytes(entry_id, time, kind, _commit_of(leaf)) != leaf:
            raise Wrong(index, "the leaf is not that of id, time and kind")
        made = leaf_hash(leaf)
        if made != stored_hash:
            raise Wrong(index, "the stored hash is not that of the leaf")
        if time > instant(system_clock() - RETENTION):
            raise Wrong(index, "the body is gone before its retention has ended")
        return made

    def _check_sides(
        self, first: int, last: int, expected: dict[sa.Table, set[Row]], archived: Collection[int]
    ) -> None:
        for table, wanted in expected.items():
            names = ", ".join(column.name for column in table.columns)
            stored = [row for row in self._rows(names, table.name, first, last) if row[0] not in archived]
            different = wanted.symmetric_difference(stored)
            if different:
                raise Wrong(min(row[0] for row in different), f"{table.name} does not have what the entry says")

    def _checkpoints(self, first: int, last: int) -> tuple[tuple[tuple[int, bytes], ...], _Forged | None]:
        """The good checkpoints of sizes in a range up to the first that is not, and what is wrong with that."""
        found: list[tuple[int, bytes]] = []
        sql = "SELECT tree_size, note FROM audit_checkpoints WHERE tree_size > ? AND tree_size <= ? ORDER BY tree_size"
        for size, note in self._select(sql, first, last):
            try:
                signed = self._ring.checked(note)
                if signed.size != size:
                    raise NoteError(f"it says {signed.size}")
            except NoteError as error:
                return tuple(found), _Forged(size, f"the checkpoint of {size} entries is not good: {error}")
            found.append((size, signed.root))
        return tuple(found), None


_ranges: _Ranges | None = None


def _begin(url: str, ring: KeyRing) -> None:
    global _ranges
    _ranges = _Ranges(url, ring)


def _check_range(first: int, last: int) -> _Checked:
    assert _ranges is not None  # noqa: S101  (the pool's initializer has set it)
    return _ranges.check(first, last)


def _check_entry(index: int, row: Row, sides: dict[sa.Table, set[Row]]) -> bytes:
    """The leaf hash of an entry that holds in itself; what it is found by goes to `sides`. Raises Wrong."""
    at, entry_id, recorded, kind, salt, body, leaf, stored_hash = row[:8]
    if at != index:
        raise Wrong(index, "the entry is missing")
    time = recorded if isinstance(recorded, str) else instant(recorded)
    if leaf_bytes(entry_id, time, kind, commitment(salt, body)) != leaf:
        raise Wrong(index, "the leaf is not that of id, time, kind, salt and body")
    made = leaf_hash(leaf)
    if made != stored_hash:
        raise Wrong(index, "the stored hash is not that of the leaf")
    found = _columns(index, body, entry_id, time)
    if found[: len(_SCALARS)] != row[8:]:
        name = next(n for n, value, stored in zip(_SCALARS, found, row[8:], strict=False) if value != stored)
        raise Wrong(index, f"the column {name} is not what the entry says")
    sides[entities].update([(index, key.resource_id, key.resource_type) for key in found.entities])
    sides[purposes].update([(index, code) for code in found.purposes])
    sides[subtypes].update([(index, code) for code in found.subtypes])
    sides[source_failures].update([(index, member_id, status) for member_id, status in found.failures])
    return made


def _commit_of(leaf: bytes) -> str:
    """What a leaf commits to; nothing where it is none."""
    try:
        return str(orjson.loads(leaf)["commit"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def _columns(index: int, body: bytes, entry_id: str, time: str) -> Columns:
    try:
        resource = orjson.loads(body)
        if (resource["id"], resource["recorded"]) != (entry_id, time):
            raise Wrong(index, "the body is of another entry")
        return columns(resource)
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError, StopIteration):
        raise Wrong(index, "the body is no AuditEvent of this log") from None


# -- what the tables hold as a whole


def _signed_size(connection: sa.Connection) -> int:
    """How many entries the newest checkpoint covers; raises Wrong unless those are all."""
    sql = "SELECT (SELECT max(entry_index) FROM audit_entries), (SELECT max(tree_size) FROM audit_checkpoints)"
    last, signed = connection.execute(sa.text(sql)).one()
    rows, size = (0 if last is None else int(last) + 1), int(signed or 0)
    if rows != size:
        raise Wrong(min(rows, size), f"there are {rows} entries, and the newest checkpoint is of {size}")
    return size


def _require_nothing_else(connection: sa.Connection) -> None:
    """No rows outside the log. It may have grown meanwhile, so where it ends is read last."""
    tiles = connection.execute(sa.text("SELECT level, max(tile_index), count(*) FROM audit_tiles GROUP BY level")).all()
    ends = [
        connection.execute(sa.text(f"SELECT min({column}) - {least}, max({column}) - {least} FROM {table}")).one()
        for table, column, least in (
            (entries.name, "entry_index", 0),
            ("audit_checkpoints", "tree_size", 1),
            *((side.name, "entry_index", 0) for side in SIDES),
        )
    ]
    size = _signed_size(connection)
    for first, last in ends:
        if first is not None and (first < 0 or last >= size):
            raise Wrong(first if first < 0 else size, "there are rows outside the log")
    for level, last, count in tiles:
        if level < 0 or last >= size >> TILE_HEIGHT * (level + 1) or count != last + 1:
            raise Wrong(min(size, last << TILE_HEIGHT), "there are tiles outside the tree")


def _stored_tile(connection: sa.Connection, level: int, index: int) -> tuple[bytes, bytes] | None:
    """Root and hashes."""
    sql = sa.text("SELECT root, hashes FROM audit_tiles WHERE level = :level AND tile_index = :index")
    row = connection.execute(sql, {"level": level, "index": index}).first()
    return (bytes(row[0]), bytes(row[1])) if row else None


def _first_of(full: FullTile, stored: tuple[bytes, bytes] | None) -> int:
    """The first entry under a tile whose stored hash is another."""
    hashes = stored[1] if stored else b""
    places = range(0, len(full.hashes), HASH_BYTES)
    different = (at for at in places if hashes[at : at + HASH_BYTES] != full.hashes[at : at + HASH_BYTES])
    place = next(different, 0) // HASH_BYTES
    return ((full.tile.index << TILE_HEIGHT) + place) << TILE_HEIGHT * full.tile.level
