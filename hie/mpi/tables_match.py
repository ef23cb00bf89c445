"""Tables of the match index: blocking keys, and the traits that candidates are scored on."""

from __future__ import annotations

import sqlalchemy as sa

from hie.core.database import metadata

match_keys = sa.Table(
    "match_keys",
    metadata,
    sa.Column("key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("record_id", sa.String(64), primary_key=True, index=True),
    sa.Column("person_id", sa.String(64), nullable=False),
    sqlite_with_rowid=False,
)
"""One row per blocking key of a record, in key order, so that a block is read in one run."""

match_traits = sa.Table(
    "match_traits",
    metadata,
    sa.Column("record_id", sa.String(64), primary_key=True),
    sa.Column("person_id", sa.String(64), nullable=False, index=True),
    sa.Column("traits", sa.Text, nullable=False),
)
"""`Traits.to_json` of each record."""
