"""Files of codes that give a sensitivity away: their form, and reading and writing them (CONSENT.md section 2; pure).

A file is CSV with the columns system, kind, code, label, meaning, below two lines that say where its codes come from
and when it was made: `# sources: …` and `# date: YYYY-MM-DD`. `valuesets/` holds the exchange's own; packs that others
compiled have the same form.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from hie.consent.vocabulary import (
    CPT,
    HCPCS,
    ICD9CM,
    ICD10CM,
    LOINC,
    RXNORM,
    SENSITIVITIES,
    SNOMED,
)
from hie.core.errors import ConfigurationError

SYSTEMS = {
    "icd10cm": ICD10CM,
    "icd9cm": ICD9CM,
    "snomed": SNOMED,
    "loinc": LOINC,
    "rxnorm": RXNORM,
    "cpt": CPT,
    "hcpcs": HCPCS,
}
NAMES = "name"
"""The system of rows that are names of drugs."""
KINDS = ("code", "prefix", "range", "pattern")
MAX_ROWS = 200_000

_COLUMNS = ["system", "kind", "code", "label", "meaning"]
_HEADER = re.compile(r"# (sources|date): (.+)")


class Row(NamedTuple):
    """One code, or a prefix, range (`low..high`) or pattern (`?` is any character) of codes, and its sensitivity."""

    system: str
    kind: str
    code: str
    label: str
    meaning: str = ""


@dataclass(frozen=True)
class CodeFile:
    """One file, read and found right."""

    name: str
    sources: str
    date: date
    rows: tuple[Row, ...]


@cache
def packaged() -> tuple[CodeFile, ...]:
    """The exchange's own files; one that cannot be read stops the process that first needs it."""
    folder = files("hie.consent") / "valuesets"
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".csv")), key=lambda file: file.name)
    return tuple(read(file.name, file.read_text(encoding="utf-8")) for file in found)


def read(name: str, text: str) -> CodeFile:
    """A file's rows. Raises ConfigurationError with the first mistake and its line."""
    head, body = _split(text)
    made = head.get("date", "")
    if not head.get("sources") or not made:
        raise ConfigurationError(f"{name}: begins with `# sources: …` and `# date: YYYY-MM-DD`.")
    try:
        made_on = date.fromisoformat(made)
    except ValueError:
        raise ConfigurationError(f"{name}: the date must be a day, as 2026-11-25.") from None
    reader = csv.reader(body)
    if next(reader, []) != _COLUMNS:
        raise ConfigurationError(f"{name}: the columns must be {','.join(_COLUMNS)}.")
    skipped = text.count("\n", 0, text.find(",".join(_COLUMNS)))
    rows: list[Row] = []
    for cells in reader:
        if not cells:
            continue
        row = Row(*(cell.strip() for cell in cells)) if len(cells) == len(_COLUMNS) else None
        wrong = mistake(row) if row is not None else "needs five columns"
        if wrong or row is None or len(rows) == MAX_ROWS:
            place = f"{name}: line {skipped + reader.line_num}"
            raise ConfigurationError(f"{place} {wrong}." if wrong else f"{place}: more than {MAX_ROWS} rows.")
        rows.append(row)
    return CodeFile(name, head["sources"], made_on, tuple(rows))


def mistake(row: Row) -> str | None:
    """What is wrong with a row, as the end of a sentence; None where nothing is."""
    if row.system != NAMES and row.system not in SYSTEMS:
        return f"has a system that is none of {', '.join((*SYSTEMS, NAMES))}"
    if row.kind not in KINDS or (row.system == NAMES and row.kind != "code"):
        return f"has a kind that is none of {', '.join(KINDS)} (a name is a code)"
    if row.label not in SENSITIVITIES:
        return f"has the label {row.label[:32]}, which is no sensitivity code that the exchange knows"
    if not re.fullmatch(r"[\w .?/()+-]{2,100}", row.code):
        return "has no code of 2 to 100 letters, digits, spaces, dots and hyphens"
    if row.kind == "range" and not _is_range(row.code):
        return "has no range low..high of two codes of one length"
    if row.kind == "pattern" and not row.code.replace(".", "")[:2].isalnum():
        return "has a pattern that does not begin with two letters or digits"
    return None


def write(sources: str, made_on: date, rows: Iterable[Row]) -> str:
    """The text of a file."""
    out = io.StringIO()
    out.write(f"# sources: {' '.join(sources.split())}\n# date: {made_on.isoformat()}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(rows)
    return out.getvalue()


def _is_range(code: str) -> bool:
    low, dots, high = code.partition("..")
    return bool(dots) and 0 < len(low) == len(high) and low <= high


def _split(text: str) -> tuple[dict[str, str], list[str]]:
    """What the lines above the columns say, and all lines that are no comment."""
    lines = text.splitlines()
    said = [match.groups() for line in lines if (match := _HEADER.fullmatch(line.strip()))]
    return {key: value.strip() for key, value in said}, [line for line in lines if not line.startswith("#")]
