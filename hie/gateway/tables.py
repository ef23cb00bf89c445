"""Tables of `hie.gateway`: the directory's stand in `tables_directory.py`, the portal's in `tables_portal.py`, what
members tell of whom they treat in `tables_care.py`."""

from __future__ import annotations

import sqlalchemy as sa

from hie.core.database import metadata
from hie.gateway import tables_care, tables_directory, tables_portal

__all__ = ["gateway_ids", "tables_care", "tables_directory", "tables_portal"]

gateway_ids = sa.Table(
    "gateway_ids",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("member_id", sa.String(32), nullable=False),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("local_id", sa.String(128), nullable=False),
    sa.Column("patient", sa.String(255), nullable=True),  # the member's own id of whose chart it was met in
)
