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
    # The member's patient id that it was filed for, where it was filed for one: it follows that record through unlinks.
    sa.Column("filed_system", sa.String(255), nullable=True),
    sa.Column("filed_value", sa.String(255), nullable=True),
    sa.Index(None, "person_id", "consent_id", "version"),
    sa.Index(None, "filed_system", "filed_value"),
)
"""Every version of every consent; rows are added and never changed. The current version is the highest."""
