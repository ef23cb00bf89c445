"""Table of what members tell of whom they treat."""

from __future__ import annotations

import sqlalchemy as sa

from hie.core.database import Instant, metadata

care_relations = sa.Table(
    "care_relations",
    metadata,
    sa.Column("member_id", sa.String(32), primary_key=True),
    sa.Column("type", sa.String(32), primary_key=True),  # Encounter | ServiceRequest | CareTeam
    sa.Column("system", sa.String(255), primary_key=True),
    sa.Column("value", sa.String(255), primary_key=True),
    sa.Column("record_id", sa.String(26), sa.ForeignKey("source_records.id"), nullable=False, index=True),
    sa.Column("relation", sa.String(16), nullable=False),  # hie.audit.relations.Relation
    sa.Column("standing", sa.String(16), nullable=False),  # hie.gateway.care_messages.Standing
    sa.Column("starts", Instant, nullable=False),
    sa.Column("ends", Instant, nullable=True),
    sa.Column("practitioners", sa.JSON, nullable=False),  # `system|value` of each, sorted
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("received", Instant, nullable=False),
    sa.Column("source_updated", Instant, nullable=True),  # newest meta.lastUpdated the member has sent (law L7)
)
"""Of an encounter, referral or care team just that it is one, when, and with whom: nothing clinical. It names the
member's record of the patient, so that it follows that record. What was taken back stays, against older messages."""
