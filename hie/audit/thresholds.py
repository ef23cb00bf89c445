"""The settings of the alerts: defaults, and `HIE_REVIEW_<NAME>` in the environment where they are to differ."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from hie.core.errors import ConfigurationError

PREFIX = "HIE_REVIEW_"


@dataclass(frozen=True)
class Thresholds:
    """When behaviour is worth a look. Days are days of `time_zone`; shares are fractions of one."""

    time_zone: str = "UTC"
    contact_days: int = 30
    """How long an encounter, admission, referral or panel explains accesses after its end."""
    registration_days: int = 14
    """How far around a registration accesses are explained by it."""
    history_days: int = 90
    history_min_days: int = 10
    """Days with accesses before a user is held to the own history."""
    team_days: int = 7
    """Days in which several users of an organization who open one person are taken for a team."""
    team_most: int = 6
    """More users than this are a crowd, whom nothing explains."""
    rare_name_share: float = 0.002
    """A family name that more people than this share says nothing."""
    volume_min: int = 12
    volume_factor: float = 2.0
    """Times the own median day."""
    volume_loose_share: float = 0.25
    """Of that day's people, those whom nothing explains."""
    night_start: int = 22
    night_end: int = 6
    off_hours_min: int = 2
    off_hours_share: float = 0.05
    """Of the own accesses, those that usually fall in the night."""
    search_min: int = 8
    search_opened_share: float = 0.25
    sequence_min: int = 6
    sequence_minutes: int = 20
    repeated_days: int = 3
    unrelated_min: int = 8
    unrelated_days: int = 30
    unrelated_factor: float = 3.0
    """Times what would fit the share of the colleagues at the same organization."""

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ) -> Thresholds:
        """The thresholds of this process; raises ConfigurationError with one line."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            text = environment.get(PREFIX + field.name.upper())
            if text is not None:
                given[field.name] = _value(PREFIX + field.name.upper(), text, type(getattr(cls, field.name)))
        return replace(cls(), **given)


def _value(name: str, text: str, kind: type) -> object:
    try:
        value = kind(text)
        if kind is str:
            ZoneInfo(text)
    except (ValueError, ZoneInfoNotFoundError):
        wanted = {int: "a whole number", float: "a number", str: "a time zone such as America/New_York"}[kind]
        raise ConfigurationError(f"{name} must be {wanted}.") from None
    if not isinstance(value, str) and value < 0:
        raise ConfigurationError(f"{name} must not be negative.")
    return value
