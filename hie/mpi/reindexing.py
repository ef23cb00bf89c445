"""The matcher's and the searches' indexes made anew from the records, while the exchange runs.

For the upgrade that changes by which keys a record is found. A few people at a time are locked as a feed locks them, so
that no feed is overtaken and an interrupted run does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import sqlalchemy as sa

from hie.core.clock import Clock
from hie.core.database import Database
from hie.mpi import lookup, registry
from hie.mpi.demographics import traits_of
from hie.mpi.index import MatchIndex
from hie.mpi.moving import PeopleWriter

AT_ONCE = 100
"""People of one transaction: a feed waits for no more than these."""


class Reindexing(PeopleWriter):
    """One run over everybody."""

    def __init__(self, database: Database, index: MatchIndex, clock: Clock) -> None:
        super().__init__(database, index, clock)
        self._names = lookup.NameBook()

    def run(self, progress: Callable[[int, int], None] = lambda _done, _all: None) -> int:
        """Index every active record; `progress` hears of people done and of all. Returns the number of records."""
        with self._database.read() as connection:
            total = registry.count_people(connection, ())
        people, records, last = 0, 0, ""
        while True:
            ids, indexed = self._write(partial(self._some, last))
            if not ids:
                return records
            people, records, last = people + len(ids), records + indexed, ids[-1]
            progress(people, max(people, total))

    def _some(self, after: str, connection: sa.Connection) -> tuple[list[str], int]:
        ids = registry.people_after(connection, after, AT_ONCE)
        rows = registry.lock_people(connection, ids)
        held = registry.active_records(connection, ids)
        for person_id in ids:
            for record in held[person_id]:
                traits = traits_of(record.resource)
                self._index.store(connection, record.id, person_id, traits)
                self._names.learn(connection, traits)
            registry.write_tokens(connection, person_id, rows[person_id].resource if rows[person_id].active else None)
        return ids, sum(map(len, held.values()))
