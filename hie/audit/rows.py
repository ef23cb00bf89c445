"""Rows into the log's tables.

One transaction holds the log's lock while it inserts, so what this takes is what limits the log.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from hie.audit.entry import Draft
from hie.audit.merkle import FullTile
from hie.audit.tables import SIDES, checkpoints, entities, entries, purposes, source_failures, subtypes, tiles
from hie.core.bulk import Row, insert


def insert_entries(connection: sa.Connection, first: int, drafts: Sequence[Draft]) -> None:
    """Entries from index `first` on, with everything that they are found by."""
    as_text = connection.dialect.name == "sqlite"
    insert(connection, entries, [_entry(index, draft, as_text) for index, draft in enumerate(drafts, first)])
    sides: dict[sa.Table, list[Row]] = {table: [] for table in SIDES}
    for index, draft in enumerate(drafts, first):
        found = draft.columns
        sides[entities] += [(index, key.resource_id, key.resource_type) for key in found.entities]
        sides[purposes] += [(index, code) for code in found.purposes]
        sides[subtypes] += [(index, code) for code in found.subtypes]
        sides[source_failures] += [(index, member_id, status) for member_id, status in found.failures]
    for table, rows in sides.items():
        insert(connection, table, rows)


def insert_tree(connection: sa.Connection, full: Sequence[FullTile], size: int, note: bytes) -> None:
    """What signs the entries: tiles that they completed, and the checkpoint."""
    insert(connection, tiles, [(done.tile.level, done.tile.index, done.root, done.hashes) for done in full])
    place = "?, ?" if connection.dialect.name == "sqlite" else "%s, %s"
    connection.exec_driver_sql(f"INSERT INTO {checkpoints.name} VALUES ({place})", (size, note))


def _entry(index: int, draft: Draft, as_text: bool) -> Row:
    found = draft.columns
    return (
        index,
        draft.entry_id,
        draft.time if as_text else draft.recorded,
        draft.kind,
        draft.salt,
        draft.body,
        draft.leaf,
        draft.leaf_hash,
        found.type,
        found.action,
        found.outcome,
        found.person_id,
        found.organization,
        found.client_id,
        found.user_id,
        found.session,
        found.request_id,
    )
