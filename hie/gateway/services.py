"""The services of one process, made by `hie.app` and found by views through `current()`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask import current_app

from hie.core.clock import Clock
from hie.core.config import Settings
from hie.core.database import Database


@dataclass(frozen=True)
class Services:
    """Everything a view may call. The views hold no rules of their own."""

    settings: Settings
    database: Database
    clock: Clock
    directory: Any
    authority: Any
    identity: Any
    consents: Any
    audit: Any
    transport: Any
    release: Any


def current() -> Services:
    """The services of the application that handles this request."""
    services: Services = current_app.extensions["hie"]
    return services
