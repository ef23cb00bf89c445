"""Rare events in the life of the log itself: rows from before the tree are adopted, the signing key changes."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from hie.audit.entry import commitment, leaf_bytes
from hie.audit.event import Event, Kind, Outcome
from hie.audit.merkle import leaf_hash
from hie.audit.note import VerifierKey
from hie.audit.tables import entries
from hie.core.caller import COMMAND_LINE
from hie.core.clock import instant
from hie.core.errors import LogDamaged

_AT_ONCE = 1000


def recomputed_leaves(connection: sa.Connection) -> Iterator[bytes]:
    """The leaf hash of every stored entry, from its salt and body; raises LogDamaged at the first that differs."""
    columns = entries.c
    wanted = sa.select(
        columns.entry_index, columns.entry_id, columns.recorded, columns.kind, columns.salt, columns.body, columns.leaf
    ).order_by(columns.entry_index)
    rows = connection.execute(wanted.execution_options(yield_per=_AT_ONCE))
    for position, (index, entry_id, recorded, kind, salt, body, stored) in enumerate(rows):
        leaf = leaf_bytes(entry_id, instant(recorded), kind, commitment(salt, body))
        if index != position or leaf != stored:
            raise LogDamaged(f"entry {position} is not what its leaf says")
        yield leaf_hash(leaf)


def adopted(count: int) -> Event:
    """That entries from before the tree are signed as they stand."""
    return _about_the_log(f"{count} entries from before the log was signed were adopted as they stood")


def key_changed(before: VerifierKey, after: VerifierKey) -> Event:
    """That checkpoints are signed with another key from now on. Both vkeys are in the body, signed by both keys."""
    return _about_the_log(f"The log's key was changed from {before} to {after}")


def _about_the_log(description: str) -> Event:
    return Event(
        kind=Kind.DIRECTORY,
        outcome=Outcome.SUCCESS,
        action="U",
        caller=None,
        person_id=None,
        query="",
        request_id="",
        description=description,
        client_id=COMMAND_LINE,
    )
