"""Tables of `hie.consent`."""

from __future__ import annotations

import sqlalchemy as sa

from hie.core.database import Instant, metadata

consent_versions = sa.Table(
    "consent_versions",
    metadata,
    sa.Column("consent_id", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("person_id", sa.String(64), nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("resource", sa.Text, nullable=False),
    sa.Column("updated", Instant, nullable=False),
    sa.Column("author_organization", sa.String(64), nullable=False),
    sa.Index(None, "person_id", "consent_id", "version"),
)
"""Every version of every consent; rows are added and never changed. The current version is the highest."""
