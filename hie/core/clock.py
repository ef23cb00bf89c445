"""Time. Instants are aware datetimes in UTC; rules and services take a clock, so that tests set it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """The current instant, UTC."""
    return datetime.now(UTC)


def instant(moment: datetime) -> str:
    """FHIR `instant` of an aware datetime: UTC, microseconds, trailing `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_instant(text: str) -> datetime:
    """The datetime of a FHIR `instant`; raises ValueError without an offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("an instant needs an offset")
    return moment.astimezone(UTC)
