"""The report of a training run: one HTML file that needs nothing from outside, for a data steward to read.

Weights per trait and level, the histogram of match weights with the thresholds, what precision and recall to expect at
each threshold, calibration as far as it can be told without labels, and the quality of every source's data. It holds
counts and weights only, never a value of a patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import log2
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hie.mpi.batch_blocks import candidates
from hie.mpi.batch_compare import Comparer
from hie.mpi.batch_read import Table
from hie.mpi.batch_score import Scorer, score_all
from hie.mpi.batch_traits import Columns, columns_of
from hie.mpi.comparison import LEVELS, TRAITS
from hie.mpi.model import Model, log_odds

BANDS = (0.0, 0.1, 0.2, 0.5, 0.8, 0.9, 0.99, 0.999, 1.0)
LOWEST, HIGHEST, STEP = -12, 40, 2
"""Bits of the histogram's bars."""


@dataclass(frozen=True)
class Scores:
    """What the model says of the candidate pairs of the records it was trained on."""

    weights: npt.NDArray[np.float64]
    columns: Columns
    sources: Sequence[str]


def scores_of(table: Table, model: Model) -> Scores:
    """Scores every candidate pair of a file."""
    columns = columns_of(table)
    pairs = candidates(columns)
    weights, _, _ = score_all(Comparer(columns), Scorer(model, columns.names), pairs.i, pairs.j)
    source = columns.source
    return Scores(weights.astype(float), columns, source.values.to_pylist() if source else ())


def write(path: Path, model: Model, scores: Scores) -> None:
    """The report as one file."""
    probability = 1 / (1 + np.exp2(-scores.weights))
    body = (
        f"<h1>Match model {escape(model.version)}</h1>",
        _table(("", ""), ((escape(k), escape(v)) for k, v in model.provenance.items())),
        "<h2>Weights</h2><p>Bits for (+) or against (&minus;) one person, unchanged, against a stranger.</p>",
        _weights(model),
        "<h2>Match weights</h2>" + _histogram(scores.weights, model),
        "<h2>Expected precision and recall</h2>"
        "<p>As the model expects them of itself among the pairs compared, if every pair from a threshold on links.</p>",
        _expected(probability),
        "<h2>Calibration</h2><p>How many pairs the model is how sure of; labels from the review queue would fill the "
        "last word on it: <code>hie mpi evaluate</code>.</p>",
        _bands(probability),
        "<h2>Data quality</h2><p>Share of each source's records with a usable value.</p>",
        _quality(scores),
        _emptied(scores.columns),
    )
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Match model</title><style>{_STYLE}</style>"
    path.write_text(page + "\n".join(body) + "</html>\n", encoding="utf-8")


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.2rem .8rem;border-bottom:1px solid #dfe1e2;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}.plus{fill:#00687d}.minus{fill:#b50909}"
)


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        number = text[:1] in "-+0123456789" and text.rstrip("%")[-1:].isdigit()
        return f"<td class=n>{text}</td>" if number else f"<td>{text}</td>"

    lines = "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<table><tr>{titles}</tr>{lines}</table>"


def _weights(model: Model) -> str:
    rows = []
    for trait in TRAITS:
        for level in LEVELS[trait]:
            shares = model.levels[trait][level]
            bits = log2(shares["stable"] / shares["random"])
            color, start, width = "plus" if bits > 0 else "minus", 100 + min(0, bits) * 4, abs(bits) * 4
            bar = f'<rect class={color} x="{start:.0f}" width="{width:.0f}" height="12"/>'
            picture = f'<svg width=200 height=12 role=img aria-label="{bits:+.1f} bits">{bar}</svg>'
            rows.append((trait.replace("_", " "), level, f"{bits:+.1f}", f"{shares['stable']:.2%}", picture))
    return _table(("trait", "level", "bits", "among one person's records", ""), rows)


def _histogram(weights: npt.NDArray[np.float64], model: Model) -> str:
    edges = np.arange(LOWEST, HIGHEST + STEP, STEP)
    counts, _ = np.histogram(np.clip(weights, LOWEST, HIGHEST - 1), edges)
    top = max(1.0, float(np.log1p(counts).max()))
    bars = "".join(
        f'<rect class={"plus" if low >= 0 else "minus"} x="{k * 24}" width="22" y="{150 - h:.0f}" height="{h:.0f}">'
        f"<title>{low} to {low + STEP} bits: {n:,} pairs</title></rect>"
        for k, (low, n) in enumerate(zip(edges.tolist(), counts.tolist(), strict=False))
        for h in (140 * float(np.log1p(n)) / top,)
    )
    limits = "".join(
        f'<line x1="{x:.0f}" x2="{x:.0f}" y1="0" y2="150" stroke="#1b1b1b" stroke-dasharray="4"/>'
        f'<text x="{x + 4:.0f}" y="12" font-size="12">{name}</text>'
        for name, value in (("review", model.thresholds.review), ("link", model.thresholds.link))
        for x in ((log_odds(value) - LOWEST) / STEP * 24,)
    )
    width = 24 * (len(edges) - 1)
    return (
        f'<svg viewBox="0 0 {width} 170" role=img aria-label="Histogram of match weights">{bars}{limits}'
        f"<text x=0 y=166 font-size=12>{LOWEST} bits or less</text><text x={width - 90} y=166 font-size=12>"
        f"{HIGHEST} or more</text></svg><p>Height is the logarithm of the number of pairs.</p>"
    )


def _expected(probability: npt.NDArray[np.float64]) -> str:
    total = max(float(probability.sum()), 1e-9)
    rows = []
    for at in (0.2, 0.5, 0.9, 0.95, 0.99, 0.999):
        above = probability[probability >= at]
        precision = float(above.mean()) if len(above) else 1.0
        rows.append((f"{at}", f"{len(above):,}", f"{precision:.4f}", f"{float(above.sum()) / total:.4f}"))
    return _table(("from probability", "pairs", "precision", "recall"), rows)


def _bands(probability: npt.NDArray[np.float64]) -> str:
    rows = []
    for low, high in pairwise(BANDS):
        inside = probability[(probability >= low) & ((probability < high) | (high == 1.0))]
        if len(inside):
            expected = f"{float(inside.sum()):,.0f}"
            rows.append((f"{low} to {high}", f"{len(inside):,}", f"{float(inside.mean()):.4f}", expected))
    return _table(("stated probability", "pairs", "mean", "expected to be one person"), rows)


def _quality(scores: Scores) -> str:
    c = scores.columns
    known = {
        "given": c.given >= 0,
        "family": c.family >= 0,
        "birth date": c.day > 0,
        "sex": c.sex > 0,
        "ssn": c.ssn.known,
        "phone": c.phone.known,
        "email": c.email.known,
        "street": c.street.known,
        "zip": c.zip.known,
    }
    rows = []
    for code, name in enumerate(scores.sources):
        here = c.source.codes == code if c.source else np.zeros(len(c), bool)
        if here.any():
            shares = (f"{float(has[here].mean()):.0%}" for has in known.values())
            rows.append((escape(name or "(no source)"), f"{int(here.sum()):,}", *shares))
    rows.append(("all", f"{len(c):,}", *(f"{float(has.mean()):.0%}" for has in known.values())))
    return _table(("source", "records", *known), rows)


def _emptied(columns: Columns) -> str:
    if not columns.emptied:
        return ""
    rows = ((escape(trait), f"{count:,}") for trait, count in columns.emptied.items())
    return "<p>Values that too many different people share count as missing:</p>" + _table(("trait", "records"), rows)
