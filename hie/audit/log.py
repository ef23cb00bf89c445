"""The disclosure log: append, durable before return, and read.

Group commit: waiters enqueue events; one committer per process drains the queue, once about as many are there as last
time, and writes each batch in one transaction, which holds the log's only lock (BEGIN IMMEDIATE on SQLite, one advisory
lock on PostgreSQL) from reading the head to COMMIT. So indexes are gap-free over all processes, and a waiter pays for
its share of a commit.

A waiter gets a receipt only for what is known to be durable (law L1). After a time-out or a lost connection the entries
are read again by id; what cannot be found is reported as not recorded. That may leave an entry of a disclosure that was
then refused; it never leaves a disclosure without its entry.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hie.audit import query as finding
from hie.audit.checkpoint import SignedCheckpoint
from hie.audit.entry import Draft, Entry, Receipt, draft
from hie.audit.event import Event
from hie.audit.evidence import Evidence
from hie.audit.keeping import adopted, key_changed, recomputed_leaves
from hie.audit.merkle import RightEdge
from hie.audit.note import NoteError, SigningKey, VerifierKey
from hie.audit.query import AuditPage, AuditQuery
from hie.audit.rows import insert_entries, insert_tree
from hie.audit.seal import Seal
from hie.audit.tables import entries, source_failures
from hie.audit.tree import Head, Heads
from hie.core.clock import Clock
from hie.core.database import Database, after_commit, awaiting_commit
from hie.core.errors import AuditUnavailable, ConfigurationError, LogDamaged

log = logging.getLogger("hie.audit")

WAIT_SECONDS = 10.0
"""How long a waiter waits for its receipt, and PostgreSQL for the log's lock, before the answer is 503."""
MAX_BATCH = 512
"""Requests in one transaction: bounds its size, not its wait."""
LINGER_SECONDS = 0.005
"""Longest that a batch waits for those who were answered with the last one; a single caller never waits."""

_POSTGRESQL_SETTINGS = "SELECT set_config('lock_timeout', %s, true), set_config('synchronous_commit', 'on', true)"
_POSTGRESQL_LOCK = f"SELECT pg_advisory_xact_lock({0x6869652D6C6F67})"  # "hie-log"
_REFUSALS = (sa.exc.SQLAlchemyError, LogDamaged, ConfigurationError, NoteError)


Sign = Callable[[int, bytes], bytes]
"""(size, root) -> signed checkpoint."""


@dataclass(frozen=True)
class SourceFailure:
    """A time that an organization fell short: `status` is a source-status code."""

    at: datetime
    status: str
    request_id: str


@dataclass
class _Request:
    """Events that are recorded together or not at all, and who waits for them; the committer makes the drafts."""

    events: tuple[Event, ...]
    drafts: tuple[Draft, ...] = ()
    receipts: Future[tuple[Receipt, ...]] = field(default_factory=Future)


@dataclass(frozen=True)
class _Growth:
    """A head that becomes the log's with the commit of the transaction."""

    head: Head
    committed: Callable[[Head], None]

    def __call__(self) -> None:
        self.committed(self.head)


class AuditLog:
    """The log of one process; processes share it through the database."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        fhir_base: str,
        seal: Seal,
        *,
        wait: float = WAIT_SECONDS,
        on_growth: Callable[[], None] = lambda: None,
    ) -> None:
        """`wait` in seconds; `on_growth` is called after each commit and must not take long.

        Nothing is started or read before the first entry, so that it may be made before a fork.
        """
        self._database = database
        self._clock = clock
        self._fhir_base = fhir_base
        self._seal = seal
        self._wait = wait
        self._on_growth = on_growth
        self._heads = Heads(seal)
        self.evidence = Evidence(database, seal)
        self._committers: dict[int, _Committer] = {}

    def record(self, *events: Event) -> tuple[Receipt, ...]:
        """Make `events` durable, all or none, and only then return. Raises AuditUnavailable on any doubt."""
        if not events:
            return ()
        request = _Request(events)
        self._committer().submit(request)
        try:
            return request.receipts.result(timeout=self._wait)
        except TimeoutError:
            request.receipts.cancel()
            log.error("no receipt within %s seconds", self._wait)
            raise AuditUnavailable from None

    def append(self, connection: sa.Connection, *events: Event) -> tuple[Receipt, ...]:
        """Write `events` in the caller's transaction (of `Database.write()`), durable when that commits.

        Call it last before the commit: it takes the log's lock. Raises AuditUnavailable, which must undo the rest.
        """
        if not events:
            return ()
        drafts = self._drafts(events)
        try:
            return self._write(connection, drafts)
        except _REFUSALS as error:
            _tell(error)
            raise AuditUnavailable from None

    def check(self) -> None:
        """Raises LogDamaged unless the log is the one that was signed; ConfigurationError where a key is missing.

        In full the first time: the newest checkpoint covers every entry, the tree gives its root, and it extends the
        host's high-water mark and the last cosigned checkpoint. Later, that it goes on from what was seen last.
        """
        with self._database.read() as connection:
            self._heads.read(connection)

    def search(self, query: AuditQuery) -> AuditPage:
        """One page of matching entries, newest first."""
        with self._database.read() as connection:
            return finding.search(connection, query)

    def entry(self, index: int) -> Entry | None:
        """The entry at an index, counted from 0."""
        with self._database.read() as connection:
            return finding.by_index(connection, index)

    def source_failures(self, member_id: str, limit: int = 20) -> list[SourceFailure]:
        """When and how an organization last fell short, newest first."""
        with self._database.read() as connection:
            return [SourceFailure(*row) for row in connection.execute(source_failures_of(member_id).limit(limit))]

    def adopt(self, connection: sa.Connection) -> int:
        """Sign the entries of a database that had none of the tree's tables yet; their number.

        Only for the migration that makes those tables, in its transaction. An entry says that it was done. Raises
        LogDamaged where an entry is not what its leaf says, or where this host has seen a signed log before.
        """
        self._take_lock(connection)
        if self._seal.high_water.path.exists():
            raise LogDamaged("a log that was signed before cannot be adopted again")
        self._seal.make()
        edge = RightEdge()
        edge.extend(recomputed_leaves(connection))
        count = edge.size
        if count:
            self._grow(connection, edge, self._drafts([adopted(count)]), self._seal.ring().sign)
        return count

    def rotate_key(self, elsewhere: Path | None = None) -> VerifierKey:
        """Sign with a new key from now on; the entry and the checkpoint that say so are signed with both keys.

        The new key is written to HIE_HOME, or `elsewhere` where the present one is a setting. Raises LogDamaged,
        ConfigurationError.
        """
        with self._database.write() as connection:
            self._take_lock(connection)
            head = self._head(connection)
            ring = self._seal.ring()
            following = ring.followed_by(SigningKey.generate(ring.origin), head.size + 1)
            self._seal.prepare_next(following, elsewhere)
            event = key_changed(ring.keys[-1].key, following.keys[-1].key)
            note = self._grow(connection, head.edge.copy(), self._drafts([event]), following.sign_with(ring))
        if elsewhere is None:
            self._seal.catch_up(SignedCheckpoint.parse(note).note.signatures[0])
        return following.keys[-1].key

    def close(self) -> None:
        """Write what is queued, then stop; later entries are refused."""
        self._committer().close()

    # -- writing

    def _drafts(self, events: Iterable[Event]) -> tuple[Draft, ...]:
        try:
            return tuple(draft(event, self._clock(), self._fhir_base) for event in events)
        except (TypeError, ValueError, KeyError) as error:
            _tell(error)
            raise AuditUnavailable from None

    def _committer(self) -> _Committer:
        """This process's own: threads and locks do not survive a fork."""
        process = os.getpid()
        known = self._committers.get(process)
        return known or self._committers.setdefault(process, _Committer(self._commit, self._wait))

    def _commit(self, requests: Sequence[_Request]) -> None:
        """One batch, one transaction; every request's future is settled when this returns."""
        writable = [request for request in requests if self._drafted(request)]
        if not writable:
            return
        try:
            with self._database.write() as connection:
                receipts = iter(self._write(connection, [d for request in writable for d in request.drafts]))
        except _REFUSALS as error:
            _tell(error)
            self._resolve(writable, error)
        else:
            for request in writable:
                request.receipts.set_result(tuple(next(receipts) for _ in request.drafts))

    def _drafted(self, request: _Request) -> bool:
        """Whether its events can be written down. Done here by one thread: waiters would fight over the interpreter."""
        try:
            request.drafts = request.drafts or self._drafts(request.events)
        except AuditUnavailable as error:
            request.receipts.set_exception(error)
            return False
        return True

    def _write(self, connection: sa.Connection, drafts: Sequence[Draft]) -> tuple[Receipt, ...]:
        """The rows of one transaction, from the head on."""
        self._take_lock(connection)
        head = self._head(connection)
        self._grow(connection, head.edge.copy(), drafts, self._seal.ring().sign)
        return tuple(Receipt(index, d.entry_id, d.leaf_hash) for index, d in enumerate(drafts, head.size))

    def _head(self, connection: sa.Connection) -> Head:
        """The head by the database, or what this very transaction has already made of it."""
        written = awaiting_commit(connection, self)
        return written.head if isinstance(written, _Growth) else self._heads.read(connection)

    def _grow(self, connection: sa.Connection, edge: RightEdge, drafts: Sequence[Draft], sign: Sign) -> bytes:
        """Entries, the tree that they make, and the checkpoint that signs it, all in the caller's transaction."""
        first = edge.size
        edge.extend(draft.leaf_hash for draft in drafts)
        note = sign(edge.size, edge.root)
        insert_entries(connection, first, drafts)
        insert_tree(connection, edge.full, edge.size, note)
        edge.full.clear()
        after_commit(connection, self, _Growth(Head(edge, note), self._committed))
        return note

    def _take_lock(self, connection: sa.Connection) -> None:
        """The log's lock, until the end of the transaction. On SQLite `Database.write()` has taken it."""
        if not self._database.is_sqlite:
            connection.exec_driver_sql(_POSTGRESQL_SETTINGS, (f"{int(self._wait * 1000)}ms",))
            connection.exec_driver_sql(_POSTGRESQL_LOCK)

    def _committed(self, head: Head) -> None:
        self._heads.install(head)
        try:
            self._seal.high_water.raise_to(head.note, head.size)
        except OSError as error:
            log.error("the high-water mark of the log could not be written: %s", type(error).__name__)
        self._on_growth()

    def _resolve(self, requests: Sequence[_Request], error: Exception) -> None:
        """After a failed transaction: what is durable all the same is a success, all else is not recorded.

        Where the database refused a row, the other requests of the batch get a transaction each.
        """
        durable = self._durable(requests)
        lost = []
        for request in requests:
            if all(entry.entry_id in durable for entry in request.drafts):
                request.receipts.set_result(tuple(durable[entry.entry_id] for entry in request.drafts))
            else:
                lost.append(request)
        if len(requests) > 1 and _refused_a_row(error):
            for request in lost:
                self._commit([request])
        else:
            for request in lost:
                request.receipts.set_exception(AuditUnavailable())

    def _durable(self, requests: Sequence[_Request]) -> dict[str, Receipt]:
        wanted = {entry.entry_id: entry.leaf_hash for request in requests for entry in request.drafts}
        found = sa.select(entries.c.entry_index, entries.c.entry_id, entries.c.leaf_hash).where(
            entries.c.entry_id.in_(wanted)
        )
        try:
            with self._database.read() as connection:
                receipts = [Receipt(*row) for row in connection.execute(found)]
        except sa.exc.SQLAlchemyError as error:
            _tell(error)
            return {}
        return {r.entry_id: r for r in receipts if r.leaf_hash == wanted[r.entry_id]}


class _Committer:
    """The one thread of a process that writes the log; started by the first entry."""

    def __init__(self, commit: Callable[[Sequence[_Request]], None], patience: float) -> None:
        self._commit = commit
        self._patience = patience
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._took, self._size = 0.0, 1

    def submit(self, request: _Request) -> None:
        with self._lock:
            if self._closed:
                raise AuditUnavailable
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit-committer", daemon=True)
                self._thread.start()
            self._queue.put(request)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._queue.put(None)
            thread = self._thread
        if thread is not None:
            thread.join(self._patience)

    def _run(self) -> None:
        while batch := self._next_batch():
            waiting = [request for request in batch if request.receipts.set_running_or_notify_cancel()]
            if waiting:
                started = time.monotonic()
                self._commit_safely(waiting)
                self._took, self._size = time.monotonic() - started, len(waiting)

    def _commit_safely(self, requests: Sequence[_Request]) -> None:
        try:
            self._commit(requests)
        except Exception as error:  # noqa: BLE001  one defect must not stop the log for good
            _tell(error)
            for request in requests:
                if not request.receipts.done():
                    request.receipts.set_exception(AuditUnavailable())

    def _linger(self) -> None:
        """Those who have just been answered ask again together: wait for as many, a fraction of what a commit takes."""
        until = time.monotonic() + min(self._took / 4, LINGER_SECONDS)
        while self._queue.qsize() + 1 < self._size and time.monotonic() < until:
            time.sleep(0.0002)

    def _next_batch(self) -> list[_Request]:
        """Everything that is queued, at least one; empty when closed."""
        first = self._queue.get()
        if first is None:
            return []
        self._linger()
        batch = [first]
        while len(batch) < MAX_BATCH and not self._queue.empty():
            following = self._queue.get()
            if following is None:
                self._queue.put(None)
                break
            batch.append(following)
        return batch


def source_failures_of(member_id: str) -> sa.Select[*tuple[Any, ...]]:
    """(recorded, status, request id) of an organization's failures, newest first."""
    return (
        sa.select(
            entries.c.recorded,
            source_failures.c.status,
            sa.func.coalesce(entries.c.request_id, "", type_=sa.String()),
        )
        .join_from(source_failures, entries)
        .where(source_failures.c.member_id == member_id)
        .order_by(source_failures.c.entry_index.desc())
    )


def _refused_a_row(error: Exception) -> bool:
    """The database works and would not have a value, so that other entries may still be written."""
    if isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, sa.exc.DataError | sa.exc.IntegrityError)
    return isinstance(error, sa.exc.StatementError)


def _tell(error: Exception) -> None:
    """The type alone, for a message may hold the values of the row; what is wrong with the log is said."""
    cause = getattr(error, "orig", None) or error
    reason = f"LogDamaged: {error}" if isinstance(error, LogDamaged) else type(cause).__name__
    log.error("an entry could not be recorded: %s", reason)
