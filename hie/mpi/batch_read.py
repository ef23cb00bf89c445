"""A linkage file (contract section 7) as columns of integer codes over distinct values; CSV and Parquet, by pyarrow.

Reading never guesses: a file that is not UTF-8, has no `record_id`, or has one twice is refused in one line. Columns
that the contract does not name are left alone.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from hie.core.errors import BadRequest

Codes = npt.NDArray[np.int32]

COLUMNS = (
    "source", "given", "middle", "family", "suffix", "birth_date", "sex", "ssn", "phone", "email", "street", "city",
    "state", "zip", "former_family", "birth_order",
)  # fmt: skip
"""What is read beside `record_id`; `mrn` is a local number and no evidence. The last two are extras."""
MAX_FIELD = 1 << 20
"""Longest row in bytes; a longer one is a broken quote, not a patient."""


@dataclass(frozen=True)
class Column:
    """One column: `values[codes[i]]` is the text of row i; the empty text has a code like any other."""

    codes: Codes
    values: pa.Array


@dataclass(frozen=True)
class Table:
    """The file: its record ids in order and the columns that it has."""

    record_ids: pa.Array
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.record_ids)


def read(path: Path) -> Table:
    """The file at `path`; raises BadRequest with one line."""
    try:
        found = _parquet(path) if path.suffix in (".parquet", ".pq") else _csv(path)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise BadRequest(f"{path} cannot be read: {_reason(error)}.") from None
    record_ids = found["record_id"].combine_chunks()
    record_ids = record_ids.fill_null("") if record_ids.null_count else record_ids
    _refuse_bad_ids(path, record_ids)
    columns = {}
    for name in list(found):
        if name != "record_id":
            columns[name] = _column(found.pop(name))
    return Table(record_ids, columns)


def table_of(rows: Sequence[dict[str, str]]) -> Table:
    """The same from rows in memory."""
    columns = {}
    for name in COLUMNS:
        column = pa.chunked_array([pa.array([row.get(name) or "" for row in rows], pa.string()).dictionary_encode()])
        columns[name] = _column(column)
    return Table(pa.array([row["record_id"] for row in rows], pa.string()), columns)


def _csv(path: Path) -> dict[str, pa.ChunkedArray]:
    header = _header(path)
    if "record_id" not in header:
        raise BadRequest(f"{path} has no column record_id.")
    wanted = ["record_id", *(name for name in COLUMNS if name in header)]
    if twice := next((name for name in wanted if header.count(name) > 1), ""):
        raise BadRequest(f"{path} has the column {twice} twice.")
    coded = pa.dictionary(pa.int32(), pa.string())
    return _columns(
        pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(block_size=8 * MAX_FIELD),
            parse_options=pa_csv.ParseOptions(newlines_in_values=_has_quotes(path)),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() if name == "record_id" else coded for name in wanted},
                include_columns=wanted,
                strings_can_be_null=False,
            ),
        )
    )


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        first = file.readline(MAX_FIELD).removeprefix(b"\xef\xbb\xbf")
    if not first.strip():
        raise BadRequest(f"{path} is empty.")
    try:
        text = first.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"{path} is not UTF-8.") from None
    return [name.strip() for name in next(csv.reader([text]))]


def _has_quotes(path: Path) -> bool:
    """Only quoted fields can hold line breaks, and looking for them costs the parser its second core."""
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            if b'"' in block:
                return True
    return False


def _parquet(path: Path) -> dict[str, pa.ChunkedArray]:
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    if "record_id" not in names:
        raise BadRequest(f"{path} has no column record_id.")
    table = pq.read_table(path, columns=["record_id", *(name for name in COLUMNS if name in names)])
    made = {name: column.cast(pa.string()).fill_null("") for name, column in _columns(table).items()}
    return {name: c if name == "record_id" else c.dictionary_encode() for name, c in made.items()}


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _column(column: pa.ChunkedArray) -> Column:
    unified = column.unify_dictionaries()
    if unified.num_chunks == 0:
        return Column(np.zeros(0, np.int32), pa.array([], pa.string()))
    codes = np.concatenate([np.asarray(chunk.indices) for chunk in unified.chunks]).astype(np.int32, copy=False)
    return Column(codes, unified.chunk(unified.num_chunks - 1).dictionary)


def _refuse_bad_ids(path: Path, record_ids: pa.Array) -> None:
    if not len(record_ids):
        raise BadRequest(f"{path} has no records.")
    if pc.min(pc.binary_length(record_ids)).as_py() == 0:
        raise BadRequest(f"{path} has a record without a record_id.")
    ordered = record_ids.take(pc.sort_indices(record_ids))
    again = pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()
    if again >= 0:
        raise BadRequest(f"{path} has the record_id {ordered[again].as_py()[:80]!r} more than once.")


def _reason(error: Exception) -> str:
    text = str(error)
    if "UTF8" in text or "UTF-8" in text:
        return "it is not UTF-8"
    if "straddling" in text:
        return f"a row is longer than {MAX_FIELD >> 20} MB (is a quote left open?)"
    if "Expected" in text and "columns" in text:
        return "a row has more or fewer fields than the header (" + text.split(": ")[1][:60] + ")"
    return text.splitlines()[0][:120]


def _write_csv(table: pa.Table, path: Path) -> None:
    """Quotes only where an id needs them; pyarrow alone would quote every text."""
    odd = pc.any(pc.match_substring_regex(table["record_id"], '[",\r\n]')).as_py()
    options = pa_csv.WriteOptions(include_header=False, quoting_style="needed" if odd else "none")
    with path.open("wb") as file:
        file.write((",".join(table.column_names) + "\n").encode())
        pa_csv.write_csv(table, file, options)


def write_links(path: Path, record_ids: pa.Array, person_ids: Any, probabilities: npt.NDArray[np.float64]) -> None:
    """record_id, person_id, match_probability; Parquet where the name says so."""
    table = pa.table(
        {"record_id": record_ids, "person_id": person_ids, "match_probability": np.round(probabilities, 6)}
    )
    try:
        if path.suffix in (".parquet", ".pq"):
            import pyarrow.parquet as pq

            pq.write_table(table, path)
        else:
            _write_csv(table, path)
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {_reason(error)}.") from None
