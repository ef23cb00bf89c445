"""A report on paper: when, who, what and why in a table of few columns, in words.

Set in Public Sans, which has Latin letters of every kind. A letter that it lacks is printed as ? and a note says so:
the other formats have every name in full. reportlab is imported where it is used, since it takes a quarter of a second.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from hie.audit import words
from hie.core.clock import parse_instant

if TYPE_CHECKING:
    from hie.audit.accounting import Report, Value

_FONT, _BOLD = "PublicSans", "PublicSans-Bold"
_INSTANTS = frozenset({"first_date", "last_date", "when"})
_NAVY, _QUIET, _LINE, _RED = "#162e51", "#565c65", "#c6cace", "#b50909"
_FRAME_PADDING = 6
_COLUMNS: Mapping[str, tuple[tuple[str, float, tuple[str, ...]], ...]] = {
    "accounting": (
        ("When", 0.2, ("first_date", "last_date", "count")),
        ("Who received it", 0.27, ("recipient", "recipient_person", "recipient_address")),
        ("What", 0.25, ("what", "entries")),
        ("Why", 0.28, ("why", "required")),
    ),
    "part2": (
        ("When", 0.2, ("first_date", "last_date", "count")),
        ("Who received it", 0.27, ("recipient", "recipient_address")),
        ("Brief description", 0.25, ("what", "entries")),
        ("Why", 0.28, ("why", "consents")),
    ),
    "access": (("When", 0.24, ("when", "entry")), ("What happened", 0.76, ("sentence", "break_glass"))),
    "onc": (
        ("Date and time", 0.2, ("when", "patient", "entry")),
        ("Who", 0.27, ("user_name", "user_id", "role", "organization", "system", "network", "session")),
        ("Action", 0.15, ("action", "event", "outcome", "purpose")),
        ("Data and request", 0.38, ("data", "sources", "decisions", "request", "request_id")),
    ),
}
"""Columns on paper: heading, share of the width, and the fields that stand in it under one another."""
_TITLED = frozenset(
    {"last_date", "count", "entries", "entry", "required", "consents"}
    | {"network", "system", "session", "sources", "decisions", "request_id", "purpose"}
)
_SMALL = _TITLED | {"recipient_address", "request", "user_id", "role", "organization", "event", "outcome", "patient"}
_BOLD_FIELDS = frozenset({"recipient", "user_name", "break_glass"})
_LONGEST = 800  # characters: a cell must fit on a page
_MISSING = "?"
_PAPER_NOTE = f"{_MISSING} stands for a letter that cannot be printed here; the CSV and JSON forms have it."


def render(report: Report) -> bytes:
    """The PDF's bytes, the same for the same report."""
    from reportlab.lib.pagesizes import letter
    from reportlab.platypus import SimpleDocTemplate

    raw = io.BytesIO()
    document = SimpleDocTemplate(
        raw,
        pagesize=letter,
        leftMargin=54,
        rightMargin=54,
        topMargin=54,
        bottomMargin=60,
        title=report.title,
        author="Health information exchange",
        subject="Disclosure log",
        lang="en-US",
        invariant=1,
    )
    footer = partial(_footer, report.generated)
    document.build(list(_story(report, document.width)), onFirstPage=footer, onLaterPages=footer)
    return raw.getvalue()


def _story(report: Report, width: float) -> Iterator[Any]:
    from reportlab.platypus import Paragraph, Spacer

    styles = _styles()
    yield Paragraph(_safe(report.title), styles["title"])
    yield Paragraph(_safe(report.law), styles["quiet"])
    yield Spacer(1, 6)
    for subject in report.subjects:
        name = f"<b>{_safe(subject.name)}</b>, " if subject.name else ""
        yield Paragraph(f"{name}person {_safe(', '.join(subject.person_ids))}", styles["text"])
    since = f"from {words.day(report.start)}" if report.start else "from the beginning"
    yield Paragraph(
        _safe(f"Time: {since} to {words.moment(report.end)}. Made {words.moment(report.generated)}."), styles["text"]
    )
    style = styles["text" if report.completeness.complete else "alarm"]
    yield Paragraph(_safe(str(report.completeness)), style)
    for note in report.notes:
        yield Paragraph(_safe(note), styles["text"])
    yield Spacer(1, 8)
    if not report.rows:
        yield Paragraph("Nothing of this kind is in the log for this time.", styles["bold"])
    if report.rows:
        yield _table(report, width - 2 * _FRAME_PADDING)
    if _unprintable(report):
        yield Paragraph(_PAPER_NOTE, styles["quiet"])


def _table(report: Report, width: float) -> Any:
    """All lines under one heading, which every page repeats."""
    from reportlab.platypus import Paragraph, Table, TableStyle

    styles = _styles()
    columns = _COLUMNS[report.kind.value]
    heading: list[Any] = [Paragraph(_safe(title), styles["head"]) for title, _share, _names in columns]
    lines: list[list[Any]] = [
        [[Paragraph(text, style) for text, style in _cell(report, row, names)] for _title, _share, names in columns]
        for row in report.rows
    ]
    widths = [width * share for _title, share, _names in columns]
    table = Table([heading, *lines], colWidths=widths, repeatRows=1, hAlign="LEFT")
    table.setStyle(
        TableStyle(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LEFTPADDING", (0, 0), (0, -1), 0),
                ("RIGHTPADDING", (-1, 0), (-1, -1), 0),
                ("LINEBELOW", (0, 0), (-1, 0), 1.5, _NAVY),
                ("LINEBELOW", (0, 1), (-1, -1), 0.5, _LINE),
            ]
        )
    )
    return table


def _cell(report: Report, row: Mapping[str, Value], names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The paragraphs of one cell: fields under one another, with their title where the value does not speak."""
    styles = _styles()
    titles = {field.name: field.title for field in report.fields}
    if names[0] in _INSTANTS and len(report.subjects) > 1:
        yield _safe(str(row["patient"])), styles["bold"]
    for place, name in enumerate(names):
        text = _text(name, row[name])
        if text and not (name in ("last_date", "count") and row["count"] == 1):
            text = text if len(text) <= _LONGEST else text[:_LONGEST] + "… (cut; the CSV and JSON forms have all of it)"
            shown = f"{titles[name]}: {text}" if name in _TITLED else text
            yield (
                _safe(shown),
                styles["bold" if name in _BOLD_FIELDS else "quiet" if place and name in _SMALL else "text"],
            )


def _text(name: str, value: Value) -> str:
    """A value in words; empty where there is nothing to say."""
    if isinstance(value, bool):
        return "Break-glass" if value else ""
    if isinstance(value, int):
        return str(value)
    return words.moment(parse_instant(value)) if name in _INSTANTS and value else value


def _footer(generated: datetime, canvas: Any, document: Any) -> None:
    canvas.saveState()
    canvas.setFont(_FONT, 8)
    canvas.setFillColor(_QUIET)
    canvas.drawString(54, 36, f"Confidential. Health information exchange, {words.moment(generated)}")
    canvas.drawRightString(document.pagesize[0] - 54, 36, f"Page {document.page}")
    canvas.restoreState()


@cache
def _styles() -> dict[str, Any]:
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.pdfbase import pdfmetrics

    for name in (_FONT, _BOLD):
        pdfmetrics.registerFont(_fonts()[name])
    pdfmetrics.registerFontFamily(_FONT, normal=_FONT, bold=_BOLD, italic=_FONT, boldItalic=_BOLD)
    text = ParagraphStyle("text", fontName=_FONT, fontSize=9.5, leading=12, spaceAfter=2)
    return {
        "text": text,
        "bold": ParagraphStyle("bold", text, fontName=_BOLD),
        "quiet": ParagraphStyle("quiet", text, textColor=_QUIET, fontSize=8.5, leading=11),
        "alarm": ParagraphStyle("alarm", text, fontName=_BOLD, textColor=_RED),
        "head": ParagraphStyle("head", text, fontName=_BOLD, textColor=_NAVY),
        "title": ParagraphStyle("title", text, fontName=_BOLD, fontSize=18, leading=22, textColor=_NAVY),
    }


@cache
def _fonts() -> dict[str, Any]:
    from reportlab.pdfbase.ttfonts import TTFont

    folder = files("hie.audit") / "fonts"
    names = {_FONT: "PublicSans-Regular.ttf", _BOLD: "PublicSans-Bold.ttf"}
    return {name: TTFont(name, io.BytesIO((folder / file).read_bytes())) for name, file in names.items()}


def _safe(text: str) -> str:
    """Text for a Paragraph: no markup of its own, and only letters that the font has."""
    return escape("".join(letter if _printable(letter) else _MISSING for letter in text))


@cache
def _printable(letter: str) -> bool:
    return letter.isspace() or ord(letter) in _fonts()[_FONT].face.charToGlyph


def _unprintable(report: Report) -> bool:
    texts = [str(value) for row in report.rows for value in row.values()] + [s.name for s in report.subjects]
    return any(not _printable(letter) for text in texts for letter in text)
