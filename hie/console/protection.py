"""Limits on guessing, and tokens against forged forms. Made once; bound to the application by `site.install`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_wtf.csrf import CSRFProtect

from hie.core.errors import ServiceUnavailable

csrf = CSRFProtect()

# Counted in the memory of each worker: with N workers somebody may try up to N times as often. That is still few beside
# what argon2 costs to verify, and no shared store is needed.
limiter = Limiter(get_remote_address, storage_uri="memory://")

# One argon2 verification takes 64 MB and some 140 ms: at most so many at once in a worker, whatever arrives.
_VERIFICATIONS = threading.BoundedSemaphore(4)
_PATIENCE_SECONDS = 3.0


@contextmanager
def one_verification() -> Iterator[None]:
    """A turn at checking a password; raises ServiceUnavailable when too many wait."""
    if not _VERIFICATIONS.acquire(timeout=_PATIENCE_SECONDS):
        raise ServiceUnavailable("Too many people are signing in at once. Try again in a minute.")
    try:
        yield
    finally:
        _VERIFICATIONS.release()
