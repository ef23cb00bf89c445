"""Tables of `hie.gateway`; the directory's stand in `tables_directory.py`."""

from __future__ import annotations

import sqlalchemy as sa

from hie.core.database import metadata
from hie.gateway import tables_directory

__all__ = ["gateway_ids", "tables_directory"]

gateway_ids = sa.Table(
    "gateway_ids",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("member_id", sa.String(32), nullable=False),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("local_id", sa.String(128), nullable=False),
)
