"""Tables of the match index: blocking keys, and the traits that candidates are scored on."""

from __future__ import annotations

import sqlalchemy as sa

from hie.core.database import metadata

ORDERED = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")
"""Compared by code point on both databases, so that a prefix is a range of the index."""

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

name_variants = sa.Table(
    "name_variants",
    metadata,
    sa.Column("kind", sa.String(8), primary_key=True),  # given | family
    sa.Column("variant", ORDERED, primary_key=True),  # of `hie.mpi.lookup.variants`
    sa.Column("name", ORDERED, primary_key=True),
    sqlite_with_rowid=False,
)
"""Each name that a record bears, by the ways it may be misspelt; for lookups."""
