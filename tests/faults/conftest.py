"""Hostile members, and a transport to ask them with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from hie.gateway.transport import Transport
from tests.faults.hostile import HostileMember, Script


@pytest.fixture
def hostile() -> Iterator[Callable[[Script], HostileMember]]:
    """Starts servers that run a script per connection."""
    started: list[HostileMember] = []

    def start(script: Script) -> HostileMember:
        started.append(HostileMember(script))
        return started[-1]

    yield start
    for member in started:
        member.close()


@pytest.fixture
def transport() -> Iterator[Transport]:
    opened = Transport(development=True)
    yield opened
    opened.close()
