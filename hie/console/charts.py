"""Charts drawn on the server: bars as SVG rectangles, words as HTML beside them, so that each scales by itself (pure).

No style attribute and no script, which the pages' policy forbids; colours come from classes of `console.css`. Each
chart has a table of the same figures for whoever cannot see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from markupsafe import Markup, escape

_HEIGHT = 100
_GAP = 0.15
_LONGEST_BY_DAY = 92


@dataclass(frozen=True)
class Column:
    """One day or week: its first day and what was counted, in the order in which the parts are stacked."""

    start: date
    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(number for _, number in self.parts)

    def of(self, name: str) -> int:
        """What was counted of one series."""
        return dict(self.parts).get(name, 0)


@dataclass(frozen=True)
class Columns:
    """A column chart over time."""

    columns: tuple[Column, ...]
    weekly: bool
    series: tuple[str, ...]

    @property
    def highest(self) -> int:
        return max((column.total for column in self.columns), default=0)

    @property
    def svg(self) -> Markup:
        """The bars; the class of each part names its series."""
        width, top = max(len(self.columns), 1), max(self.highest, 1)
        bars = Markup("").join(_bar(place, column, top) for place, column in enumerate(self.columns) if column.total)
        return Markup('<svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>').format(
            width, _HEIGHT, bars
        )


def over_time(per_day: Mapping[date, Mapping[str, int]], first: date, last: date, series: Sequence[str]) -> Columns:
    """Every day from `first` to `last`; by week where that is more than three months. Other series are one, `other`."""
    weekly = (last - first).days > _LONGEST_BY_DAY
    start = first - timedelta(days=first.weekday()) if weekly else first
    step = timedelta(days=7 if weekly else 1)
    counted: dict[date, dict[str, int]] = {}
    while start <= last:
        counted[start] = {}
        start += step
    for day, kinds in per_day.items():
        slot = day - timedelta(days=day.weekday()) if weekly else day
        for kind, number in kinds.items():
            name = kind if kind in series else "other"
            if slot in counted:
                counted[slot][name] = counted[slot].get(name, 0) + number
    shown = tuple(name for name in (*series, "other") if any(parts.get(name) for parts in counted.values()))
    columns = (Column(day, tuple((n, parts[n]) for n in shown if n in parts)) for day, parts in counted.items())
    return Columns(tuple(columns), weekly, shown)


def share(number: int, highest: int) -> Markup:
    """A horizontal bar, as long as its share of the highest."""
    width = 100 * number / max(highest, 1)
    return Markup(
        '<svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="bar--plain" width="{}" height="1"></rect></svg>'
    ).format(f"{width:.2f}")


def _bar(place: int, column: Column, top: int) -> Markup:
    bottom, rects = float(_HEIGHT), []
    for name, number in column.parts:
        height = _HEIGHT * number / top
        bottom -= height
        rects.append(
            Markup('<rect class="bar--{}" x="{}" y="{}" width="{}" height="{}"></rect>').format(
                name, f"{place + _GAP:.2f}", f"{bottom:.2f}", f"{1 - 2 * _GAP:.2f}", f"{height:.2f}"
            )
        )
    told = ", ".join(f"{number:,} {name.replace('-', ' ')}" for name, number in column.parts)
    return Markup("<g><title>{}: {}</title>{}</g>").format(
        f"{column.start.day} {column.start:%b %Y}", escape(told), Markup("").join(rects)
    )
