"""The codes in force: the exchange's own files, packs of others, and what the privacy officer added.

Packs lie in one folder (`value-sets` in `HIE_HOME`) as CSV files (`code_files.py`); `officer.csv` among them is the
officer's. A change of the folder counts from the next request on, in every process. A pack that is wrong stops the
start; one that goes wrong while the exchange runs leaves the codes that were in force, and is written to the log.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from hie.consent.code_files import NAMES, SYSTEMS, CodeFile, Row, mistake, packaged, read, write
from hie.consent.labels import ValueSets, build
from hie.consent.vocabulary import sensitivities_and_above
from hie.core.errors import BadRequest, ConfigurationError, NotFound

FOLDER = "value-sets"
OFFICERS = "officer.csv"
MAX_BYTES = 20_000_000

log = logging.getLogger("hie")

_Signature = tuple[tuple[str, int, int, int], ...]
"""Name, time of change, size and inode of each file: a new file of the same size in the same tick is another."""


class CodeSets:
    """The codes of one exchange; processes share them through the folder."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError where a file in the folder is wrong."""
        self._folder = folder
        self._lock = threading.Lock()
        self._signature = self._look()
        self._files = (*packaged(), *self._read())
        self._sets = sets_of(self._files)

    def current(self) -> ValueSets:
        """The value sets in force."""
        self._refresh()
        return self._sets

    def files(self) -> tuple[CodeFile, ...]:
        """The files in force, the exchange's own first."""
        self._refresh()
        return self._files

    def officers(self) -> tuple[Row, ...]:
        """What the privacy officer added."""
        return next((file.rows for file in self.files() if file.name == OFFICERS), ())

    def labels_of(self, system: str, code: str) -> frozenset[str]:
        """What one code, or a name, gives away. Raises KeyError for a system that files do not know."""
        sets = self.current()
        return sets.of_name(code) if system == NAMES else sets.of_code(SYSTEMS[system], code)

    def with_row(self, row: Row) -> ValueSets:
        """The value sets as they would be with one row more. Raises BadRequest for a row that is wrong."""
        return sets_of([*self.files(), _single(self._checked(row))])

    def without_row(self, row: Row) -> ValueSets:
        """The value sets as they would be without a row of the officer's."""
        return sets_of([_less(file, row) if file.name == OFFICERS else file for file in self.files()])

    def add(self, row: Row, made_on: date) -> None:
        """One more row of the officer's. Raises BadRequest for one that is wrong or there already."""
        checked = self._checked(row)
        with self._alone():
            held = self.officers()
            if checked[:4] in {one[:4] for one in held}:
                raise BadRequest("This code was added already.")
            self._write((*held, checked), made_on)

    def take_back(self, row: Row, made_on: date) -> None:
        """Remove a row that the officer added. Raises NotFound."""
        with self._alone():
            held = self.officers()
            kept = tuple(one for one in held if one[:4] != row[:4])
            if len(kept) == len(held):
                raise NotFound("The officer added no such code.")
            self._write(kept, made_on)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two officers at once lose nothing: one process at a time reads and writes the officer's file."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _checked(self, row: Row) -> Row:
        wrong = mistake(row)
        if wrong:
            raise BadRequest(f"The code {wrong}.")
        return row

    def _write(self, rows: Sequence[Row], made_on: date) -> None:
        text = write("the privacy officer of this exchange", made_on, rows)
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=".officer-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, self._folder / OFFICERS)

    def _refresh(self) -> None:
        try:
            if self._look() == self._signature:
                return
            with self._lock:
                seen = self._look()
                if seen == self._signature:
                    return
                self._signature = seen
                self._files = (*packaged(), *self._read())
                self._sets = sets_of(self._files)
        except ConfigurationError as wrong:
            log.error("value sets", extra={"reason": wrong.message})

    def _look(self) -> _Signature:
        try:
            with os.scandir(self._folder) as found:
                stats = [_signed(entry) for entry in found if entry.name.endswith(".csv")]
        except FileNotFoundError:
            return ()
        except OSError:
            raise ConfigurationError(f"{self._folder}: cannot be read as a folder of value sets.") from None
        return tuple(sorted(stats))

    def _read(self) -> list[CodeFile]:
        names = [name for name, *_ in self._look()]
        return [read_pack(self._folder / name) for name in names]


def _signed(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    known = entry.stat()
    return entry.name, known.st_mtime_ns, known.st_size, known.st_ino


def read_pack(path: Path) -> CodeFile:
    """A pack from disk. Raises ConfigurationError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigurationError(f"{path.name}: is larger than {MAX_BYTES} bytes.")
        return read(path.name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{path.name}: cannot be read as UTF-8 text.") from None


def sets_of(files: Iterable[CodeFile]) -> ValueSets:
    """The value sets of files together."""
    return build(row for file in files for row in file.rows)


def difference(before: Iterable[CodeFile], after: Iterable[CodeFile]) -> tuple[list[Row], list[Row]]:
    """Rows that give a label only after, and rows that give one only before."""
    old = {row[:4]: row for file in before for row in file.rows}
    new = {row[:4]: row for file in after for row in file.rows}
    return [row for key, row in new.items() if key not in old], [row for key, row in old.items() if key not in new]


@dataclass(frozen=True)
class Recall:
    """How many codes of one category are found: by the code alone, and with the words that usually come with it."""

    label: str
    system: str
    codes: int
    by_code: int
    with_words: int
    missed: tuple[Row, ...]


def recall(sets: ValueSets, wanted: Iterable[Row]) -> list[Recall]:
    """Recall by category and code system on single codes; `meaning` stands for the display that comes with a code.

    A code counts as found where it gets its label or one below it.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in {row[:4]: row for row in wanted}.values():
        if row.kind == "code" and row.system != NAMES:
            groups.setdefault((row.label, row.system), []).append(row)
    return [_recall(sets, *key, rows) for key, rows in sorted(groups.items())]


def _recall(sets: ValueSets, label: str, system: str, rows: Sequence[Row]) -> Recall:
    found = {row for row in rows if _gives(sets.of_code(SYSTEMS[system], row.code), label)}
    named = {row for row in rows if row in found or _gives(sets.of_name(row.meaning), label)}
    missed = tuple(row for row in rows if row not in named)
    return Recall(label, system, len(rows), len(found), len(named), missed)


def _gives(labels: frozenset[str], wanted: str) -> bool:
    return wanted in sensitivities_and_above(labels)


def _single(row: Row) -> CodeFile:
    return CodeFile(OFFICERS, "", date.min, (row,))


def _less(file: CodeFile, row: Row) -> CodeFile:
    return replace(file, rows=tuple(one for one in file.rows if one[:4] != row[:4]))
