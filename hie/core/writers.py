"""SQLite's one writer: who waits for it, and how several of one process share a commit.

A durable commit costs more than what most transactions do in it. So whoever finishes while others of this process wait
hands them the open transaction instead of committing, and the last one commits for all (group commit, as databases do
it inside; each one's work stands in a savepoint of its own, so one that fails takes nobody along). Nobody's block ends
before its work is durable.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

AfterCommit = dict[object, Callable[[], None]]
"""What is called once a transaction is durable, by key."""
MAX_MEMBERS, MAX_AGE_SECONDS = 16, 0.02
"""A group takes nobody in when it is as large or as old as that, so that the first of it does not wait long."""
_POLL_SECONDS = 0.001
_SAVE, _KEEP, _UNDO = "SAVEPOINT member", "RELEASE member", "ROLLBACK TO member"


class Queue:
    """First come, first served, between the threads of one process."""

    def __init__(self) -> None:
        self._state = threading.Lock()
        self._busy = False
        self._waiting: deque[threading.Event] = deque()

    def enter(self, timeout: float) -> bool:
        """Wait for the turn; False when it did not come within `timeout` seconds."""
        with self._state:
            if not self._busy:
                self._busy = True
                return True
            called = threading.Event()
            self._waiting.append(called)
        try:
            called.wait(timeout)
        finally:
            with self._state:
                mine = called.is_set()
                if not mine:
                    self._waiting.remove(called)
        return mine

    def pass_on(self) -> bool:
        """Give the turn to the next one who waits; False, and it is kept, when nobody does."""
        with self._state:
            if not self._waiting:
                return False
            self._waiting.popleft().set()
            return True

    def leave(self) -> None:
        """Give the turn to the next one, or back."""
        with self._state:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._busy = False


class _FileLock:
    """The queue between processes.

    Who waits inside SQLite sleeps up to a tenth of a second at a time while others step in front; who waits here wakes
    within milliseconds. For speed alone: SQLite keeps writers apart by itself, and tells whoever waits too long.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._file: int | None = None

    def take(self, timeout: float) -> None:
        if self._path and self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + timeout
        while self._file is not None and time.monotonic() < until:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)

    def free(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class _Group:
    """An open transaction and those whose work is in it."""

    def __init__(self, connection: sa.Connection, waiting: AfterCommit) -> None:
        self.connection = connection
        self._transaction = self._begun()
        self.waiting = waiting
        self.members = 0
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self._opened = time.monotonic()

    def _begun(self) -> sa.RootTransaction:
        try:
            return self.connection.begin()
        except BaseException:
            self.connection.close()
            raise

    @property
    def is_full(self) -> bool:
        return self.members >= MAX_MEMBERS or time.monotonic() - self._opened > MAX_AGE_SECONDS

    @contextmanager
    def member(self) -> Iterator[None]:
        """One's work. The first one needs no savepoint: there is nobody else's to keep."""
        before = dict(self.waiting)
        if self.members:
            self.connection.exec_driver_sql(_SAVE)
        try:
            yield
            if self.members:
                self.connection.exec_driver_sql(_KEEP)
        except BaseException:
            self.waiting.clear()
            self.waiting.update(before)
            self._take_back()
            raise
        self.members += 1

    def _take_back(self) -> None:
        """What one did is undone. Where that cannot be (SQLite itself gave up the transaction), all of it is lost."""
        if not self.members:
            return
        try:
            self.connection.exec_driver_sql(_UNDO)
            self.connection.exec_driver_sql(_KEEP)
        except BaseException as error:  # noqa: BLE001  half of somebody's work must not be committed
            self.error = error

    def end(self) -> None:
        """Commit, or roll back where there is nothing to keep. What goes wrong is everybody's, in `error`."""
        try:
            if self.members and self.error is None:
                with self._transaction:
                    pass  # leaving commits, and rolls back where that fails
                for call in self.waiting.values():
                    call()
        except BaseException as error:  # noqa: BLE001  each member raises it
            self.error = error
        finally:
            self.connection.close()  # rolls back what is not committed
            self.ended.set()


class Writers:
    """The writers of one process on one SQLite database."""

    def __init__(
        self,
        path: str | None,
        connect: Callable[[], tuple[sa.Connection, AfterCommit]],
        committed: Callable[[], None],
        patience: float,
    ) -> None:
        """`connect` gives a connection that begins with BEGIN IMMEDIATE, and what it will call after the commit.

        `committed` is called after each commit; `patience` in seconds.
        """
        self._queue = Queue()
        self._file = _FileLock(f"{path}-writer" if path and path != ":memory:" else None)
        self._connect = connect
        self._committed = committed
        self._patience = patience
        self._open: _Group | None = None

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Work that is durable once the block has ended. Raises OperationalError where the writer never gets free."""
        if not self._queue.enter(self._patience):
            raise sa.exc.OperationalError("BEGIN IMMEDIATE", None, sqlite3.OperationalError("database is locked"))
        try:
            group = self._open = self._open or self._begin()
            with group.member():
                yield group.connection
        finally:
            self._leave()
        group.ended.wait()
        if group.error is not None:
            raise group.error

    def close(self) -> None:
        self._file.close()

    def _begin(self) -> _Group:
        self._file.take(self._patience)
        try:
            return _Group(*self._connect())
        except BaseException:
            self._file.free()
            raise

    def _leave(self) -> None:
        """Hand the open transaction on to the next one who waits, or end it."""
        group = self._open
        if group is not None:
            goes_on = group.members and group.error is None and not group.is_full
            if goes_on and self._queue.pass_on():
                return
            self._open = None
            group.end()
            self._file.free()
            self._committed()
        self._queue.leave()
