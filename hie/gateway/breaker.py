"""A circuit breaker: a member that keeps failing is left alone for a while, so that it costs callers no waiting.

Closed: everybody passes. After `threshold` failures in a row it opens, and nobody passes for `cool_down` seconds. Then
it is half-open: one passes to try, the others still do not; success closes it, failure opens it again. Pure: the
caller passes the time in and calls from one thread.
"""

from __future__ import annotations

THRESHOLD = 5
COOL_DOWN_SECONDS = 10.0


class Breaker:
    """The state for one member."""

    def __init__(self, threshold: int = THRESHOLD, cool_down: float = COOL_DOWN_SECONDS) -> None:
        self._threshold = threshold
        self._cool_down = cool_down
        self._failures = 0
        self._open_until: float | None = None
        self._trying = False

    def allow(self, now: float) -> bool:
        """Whether the member may be asked; who gets True must report `succeeded` or `failed` afterwards."""
        if self._open_until is None:
            return True
        if now < self._open_until or self._trying:
            return False
        self._trying = True
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._open_until = None
        self._trying = False

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._trying or (self._open_until is None and self._failures >= self._threshold):
            self._open_until = now + self._cool_down
        self._trying = False
