"""Law L7 as a property: whatever is replayed, doubled or late, the newest message of a record stands."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hie.core.database import Database, metadata
from hie.core.fhir import Resource
from hie.mpi.identity import Identifier, IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model
from tests.mpi.identity.conftest import LAKESIDE, Clock, marta

_records = count()


@pytest.fixture(scope="module")
def one_service(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[IdentityService]:
    folder: Path = tmp_path_factory.mktemp("order")
    database = Database(f"sqlite:///{folder / 'hie.sqlite'}")
    metadata.create_all(database.engine)
    yield IdentityService(database, MatchIndex(model, True), Clock())
    database.close()


def message(hour: int) -> Resource:
    """What the member held at that hour: each hour another street."""
    return marta(meta={"lastUpdated": f"2026-01-01T{hour:02}:00:00Z"}, address=[{"line": [f"{hour} Quay Rd"]}])


@given(sent=st.lists(st.integers(min_value=0, max_value=9), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_the_newest_message_stands_whatever_the_order(one_service: IdentityService, sent: list[int]) -> None:
    identifier = Identifier(LAKESIDE, f"order-{next(_records)}")
    results = [one_service.record("lakeside", identifier, message(hour)) for hour in sent]
    held = one_service.source_record(identifier)
    climbs = sum(hour > max(sent[:i], default=-1) for i, hour in enumerate(sent))
    assert held is not None
    assert held.resource == message(max(sent))
    assert held.version == climbs
    assert [r.created for r in results] == [True] + [False] * (len(sent) - 1)
