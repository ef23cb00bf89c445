"""The database: SQLite (WAL) or PostgreSQL through SQLAlchemy Core, the same code on both.

A transaction opens in the service function that a view or command calls, never deeper: `Database.write()` for
anything that changes rows, `Database.read()` otherwise. On SQLite a writing transaction starts with BEGIN IMMEDIATE
(a plain BEGIN that later upgrades its lock fails under two writers) and every commit is durable (`synchronous=FULL`).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.pool import ConnectionPoolEntry

from hie.core.clock import instant
from hie.core.writers import AfterCommit, Writers

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=NAMING)
"""All tables of the exchange; each package declares its own in its `tables.py`."""

BUSY_TIMEOUT_SECONDS = 10
_AFTER_COMMIT = "hie_after_commit"
CHECKPOINT_SECONDS = 0.25
"""How long commits gather in SQLite's write-ahead log before they are copied into the database."""
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "temp_store=MEMORY",
    "wal_autocheckpoint=0",  # the checkpointer does it
    "journal_size_limit=67108864",
)


class Instant(sa.TypeDecorator[datetime]):
    """An aware UTC datetime. Fixed-width text (`2026-01-02T03:04:05.000006Z`) on SQLite, which drops time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(sa.String(27))
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        return instant(value) if dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.astimezone(UTC)


class Database:
    """One engine and its two kinds of transaction."""

    def __init__(self, url: str) -> None:
        """`url` is SQLAlchemy's; a SQLite file's folder must exist."""
        self.url = url
        self.is_sqlite = url.startswith("sqlite:")
        self.engine = _sqlite_engine(url) if self.is_sqlite else _postgres_engine(url)
        self._start()

    def _start(self) -> None:
        """What this process has for itself."""
        self._checkpointer: _Checkpointer | None = None
        self._writers: Writers | None = None
        if self.is_sqlite:
            path = self.engine.url.database
            self._checkpointer = _Checkpointer(path)
            self._writers = Writers(path, self._writing, self._checkpointer.written, BUSY_TIMEOUT_SECONDS)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for reading: one consistent snapshot on SQLite, read committed on PostgreSQL."""
        with self.engine.connect() as connection:
            try:
                yield connection
            finally:
                connection.rollback()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that is durable when the block has ended, and undone on any error.

        On SQLite, where one writes at a time, blocks that wait for each other share a commit (`hie.core.writers`).
        """
        if self._writers is not None:
            with self._writers.transaction() as connection:
                yield connection
            return
        connection, waiting = self._writing()
        with connection:
            with connection.begin():
                yield connection
            for call in waiting.values():
                call()

    def _writing(self) -> tuple[sa.Connection, AfterCommit]:
        """A connection to write on, and what is to be called once that is durable."""
        connection = self.engine.connect()
        if self.is_sqlite:
            connection = connection.execution_options(hie_immediate=True)
        waiting: AfterCommit = {}
        connection.info[_AFTER_COMMIT] = waiting
        return connection, waiting

    def dispose_inherited(self) -> None:
        """Forget connections opened before a fork, without closing the parent's sockets."""
        self.engine.dispose(close=False)
        self._start()

    def close(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.stop()
        if self._writers is not None:
            self._writers.close()
        self.engine.dispose()


def after_commit(connection: sa.Connection, key: object, call: Callable[[], None]) -> None:
    """Call once the transaction of `Database.write()` that this connection is in is durable; never if it is undone.

    A second call under the same key takes the place of the first.
    """
    connection.info[_AFTER_COMMIT][key] = call


def awaiting_commit(connection: sa.Connection, key: object) -> Callable[[], None] | None:
    """What this transaction will call under a key, if anything."""
    waiting: AfterCommit = connection.info[_AFTER_COMMIT]
    return waiting.get(key)


class _Checkpointer:
    """Copies SQLite's write-ahead log into the database from a thread of its own, so that no request waits for it.

    The thread starts with the first commit of the process and looks every `CHECKPOINT_SECONDS` while there are more.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._written = threading.Event()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def written(self) -> None:
        """A transaction has committed."""
        self._written.set()
        if self._thread is None and self._path and self._path != ":memory:":
            with self._lock:
                if self._thread is None and not self._stopped.is_set():
                    self._thread = threading.Thread(target=self._run, name="wal-checkpointer", daemon=True)
                    self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._written.set()
        if self._thread is not None:
            self._thread.join(BUSY_TIMEOUT_SECONDS)

    def _run(self) -> None:
        while not self._stopped.wait(CHECKPOINT_SECONDS):
            self._written.wait()
            if self._stopped.is_set():
                return
            self._written.clear()
            try:
                self._copy()
            except sqlite3.Error:
                self._written.set()  # busy, or the disk is full, which writers will hear of themselves; try again

    def _copy(self) -> None:
        with closing(
            sqlite3.connect(str(self._path), timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
        ) as connection:
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _sqlite_engine(url: str) -> sa.Engine:
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        pool_size=8,
        max_overflow=64,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        immediate = connection.get_execution_options().get("hie_immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _postgres_engine(url: str) -> sa.Engine:
    return sa.create_engine(url, pool_size=16, max_overflow=32, pool_pre_ping=True)


def ensure_parent(url: str) -> None:
    """Make the folder of a SQLite file."""
    path = sa.make_url(url).database
    if url.startswith("sqlite:") and path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
