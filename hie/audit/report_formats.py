"""A report as bytes: CSV, JSON, JSON lines, a Bundle of BALP AuditEvents, PDF, or a zip of all with the entries.

CSV is RFC 4180 (CRLF, quotes doubled). A cell that a spreadsheet would run as a formula gets an apostrophe in front:
names and reasons in it were typed by strangers. JSON has the same rows untouched, with what was asked and whether the
report is complete.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

import orjson

from hie.audit import report_pdf
from hie.audit.accounting import Report, Value
from hie.audit.entry import Entry
from hie.audit.retention import archive_line
from hie.core.clock import instant
from hie.core.fhir import Resource

Proofs = Callable[[Sequence[Entry]], Mapping[str, bytes]]
"""Further files of a zip, by name: what proves that these entries are in the log."""


class Format(StrEnum):
    """How a report may be had."""

    CSV = "csv"
    PDF = "pdf"
    JSON = "json"
    JSONL = "jsonl"
    BUNDLE = "bundle"
    ZIP = "zip"


@dataclass(frozen=True)
class Form:
    """A format's media type and file ending."""

    media_type: str
    ending: str


FORMS: Mapping[Format, Form] = {
    Format.CSV: Form("text/csv; charset=utf-8", "csv"),
    Format.PDF: Form("application/pdf", "pdf"),
    Format.JSON: Form("application/json", "json"),
    Format.JSONL: Form("application/x-ndjson", "jsonl"),
    Format.BUNDLE: Form("application/fhir+json", "fhir.json"),
    Format.ZIP: Form("application/zip", "zip"),
}

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_MEMBER_TIME = (1980, 1, 1, 0, 0, 0)  # the same report gives the same bytes
_READ_ME = """\
What is in this archive

report.pdf, report.csv, report.json   the report
bundle.fhir.json                      its log entries as FHIR R4 AuditEvents (IHE BALP)
entries.ndjson                        the same entries as the log holds them, a line each: index, leaf, salt and body
manifest.json                         SHA-256 of every file, what was asked, and whether the report is complete

Each leaf of entries.ndjson (base64) is canonical JSON whose `commit` is the hexadecimal SHA-256 of salt and body, one
after the other; SHA-256 of a zero byte and the leaf is the leaf's hash in the log's tree (RFC 6962).
"""


def file_name(report: Report, form: Format) -> str:
    """Without patient data: `accounting-2026-05-04.pdf`."""
    return f"{report.kind.value}-{report.generated:%Y-%m-%d}.{FORMS[form].ending}"


def render(report: Report, form: Format, *, proofs: Proofs | None = None) -> bytes:
    """The report's bytes; `proofs` adds files to a zip."""
    if form is Format.ZIP:
        return _zip(report, proofs)
    return _RENDERERS[form](report)


def to_csv(report: Report) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([field.name for field in report.fields])
    writer.writerows([_cell(row[field.name]) for field in report.fields] for row in report.rows)
    return text.getvalue().encode()


def to_json(report: Report) -> bytes:
    return orjson.dumps({**_head(report), "rows": [dict(row) for row in report.rows]}, option=orjson.OPT_INDENT_2)


def to_jsonl(report: Report) -> bytes:
    return b"".join(orjson.dumps(dict(row)) + b"\n" for row in report.rows)


def to_bundle(report: Report) -> bytes:
    """A collection Bundle; an archived entry is there as what the log still says of it."""
    bundle: Resource = {
        "resourceType": "Bundle",
        "type": "collection",
        "timestamp": instant(report.generated),
    }
    if report.entries:
        bundle["entry"] = [
            {"fullUrl": f"urn:hie:AuditEvent:{entry.entry_id}", "resource": entry.resource} for entry in report.entries
        ]
    return orjson.dumps(bundle)


def _head(report: Report) -> dict[str, object]:
    """What was asked, and how complete the answer is."""
    return {
        "report": report.kind.value,
        "title": report.title,
        "law": report.law,
        "generated": instant(report.generated),
        "from": instant(report.start) if report.start else None,
        "until": instant(report.end),
        "patients": [{"id": s.person_id, "ids": list(s.person_ids), "name": s.name} for s in report.subjects],
        "complete": report.completeness.complete,
        "completeness": asdict(report.completeness),
        "notes": list(report.notes),
    }


def _cell(value: Value) -> str:
    """A value as a spreadsheet may have it."""
    if not isinstance(value, str):
        return ("no", "yes")[value] if isinstance(value, bool) else str(value)
    return f"'{value}" if value.lstrip(" \u00a0").startswith(_FORMULA) else value


def _zip(report: Report, proofs: Proofs | None) -> bytes:
    files = {f"report.{FORMS[form].ending}": render(report, form) for form in (Format.PDF, Format.CSV, Format.JSON)}
    files["bundle.fhir.json"] = to_bundle(report)
    files["entries.ndjson"] = b"".join(map(archive_line, report.entries))
    files["README.txt"] = _READ_ME.encode()
    files |= proofs(report.entries) if proofs else {}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    manifest = {**_head(report), "sha256": digests, "proofs": proofs is not None}
    files["manifest.json"] = orjson.dumps(manifest, option=orjson.OPT_INDENT_2)
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _MEMBER_TIME), content, zipfile.ZIP_DEFLATED)
    return raw.getvalue()


_RENDERERS: Mapping[Format, Callable[[Report], bytes]] = {
    Format.CSV: to_csv,
    Format.JSON: to_json,
    Format.JSONL: to_jsonl,
    Format.BUNDLE: to_bundle,
    Format.PDF: report_pdf.render,
}
