"""How long "there is no such resource" takes: as long as if somebody had been asked (CONSENT.md section 6, "time").

An id that never was, and one of which consent says at once that nothing may leave, are answered without asking a
member; one that is withheld after a look is not. So the quick ones wait for about as long as a member took lately; the
id itself picks which member's times are drawn from, so that asking again tells nothing more. Nothing is waited for
before a member has been timed, nor beyond the deadline of the query.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import deque

_KEPT = 64


class Pace:
    """Times of the reads of one process, by member."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._took: dict[str, deque[float]] = {}

    def observe(self, member_id: str, seconds: float) -> None:
        """A member answered a read (the whole of it) in this time."""
        self._took.setdefault(member_id, deque(maxlen=_KEPT)).append(seconds)

    def wait(self, gateway_id: str, started: float, deadline_at: float) -> None:
        """Wait until a read that began at `started` (monotonic seconds) has taken as long as some other."""
        until = min(started + self._seconds(gateway_id), deadline_at)
        left = until - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _seconds(self, gateway_id: str) -> float:
        members = sorted(self._took)
        if not members:
            return 0.0
        digest = hmac.digest(self._key, gateway_id.encode(), "sha256")
        chosen = self._took[members[int.from_bytes(digest[:4], "big") % len(members)]]
        return secrets.choice(tuple(chosen))
