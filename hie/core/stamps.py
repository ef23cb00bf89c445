"""`meta.lastUpdated` of what members feed: what is older than the newest that is held changes nothing (law L7)."""

from __future__ import annotations

from datetime import datetime, timedelta

from hie.core.clock import parse_instant
from hie.core.fhir import Resource

_CLOCK_SKEW = timedelta(hours=1)


def last_updated(resource: Resource) -> datetime | None:
    """The member's own time of the content, where its server stamps one."""
    meta = resource.get("meta")
    stamped = meta.get("lastUpdated") if isinstance(meta, dict) else None
    try:
        return parse_instant(stamped) if isinstance(stamped, str) else None
    except (ValueError, OverflowError):
        return None


def is_older(sent: datetime | None, held: datetime | None) -> bool:
    """Whether a message is older than what is held; one without a stamp is not."""
    return sent is not None and held is not None and sent < held


def newest(sent: datetime | None, held: datetime | None, now: datetime) -> datetime | None:
    """The newest time the member stamped; a clock far ahead must not shut out all later messages."""
    if sent is None:
        return held
    capped = min(sent, now + _CLOCK_SKEW)
    return max(capped, held) if held is not None else capped
