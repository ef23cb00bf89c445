"""Tables of the patients' portal, and of what members are told."""

from __future__ import annotations

import sqlalchemy as sa

from hie.core.database import Instant, metadata

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("code_hash", sa.String(64), primary_key=True),
    sa.Column("member_id", sa.String(32), sa.ForeignKey("members.id", ondelete="CASCADE"), nullable=False),
    sa.Column("system", sa.String(255), nullable=False),
    sa.Column("value", sa.String(255), nullable=False),
    sa.Column("relation", sa.String(20), nullable=False),  # self | representative
    sa.Column("until", Instant, nullable=True),  # the end of a representative's right to act
    sa.Column("invited_by", sa.String(254), nullable=False),
    sa.Column("created", Instant, nullable=False),
    sa.Column("expires", Instant, nullable=False),
    sa.Column("redeemed", Instant, nullable=True),
    sa.Column("redeemed_by", sa.String(254), nullable=True),
)
"""Codes that a member gives to its patient in person; only the hash of a code is kept."""

portal_bindings = sa.Table(
    "portal_bindings",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("user_email", sa.String(254), nullable=False, index=True),
    sa.Column("system", sa.String(255), nullable=False),
    sa.Column("value", sa.String(255), nullable=False),
    sa.Column("relation", sa.String(20), nullable=False),
    sa.Column("since", Instant, nullable=False),
    sa.Column("until", Instant, nullable=True),
    sa.Column("ended", Instant, nullable=True),
    sa.Index(None, "system", "value"),
)
"""Who may act as which patient. It names the member's record that vouched for it, so that it follows that record."""

member_notices = sa.Table(
    "member_notices",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("member_id", sa.String(32), sa.ForeignKey("members.id", ondelete="CASCADE"), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),  # break-glass
    sa.Column("at", Instant, nullable=False),
    sa.Column("last", Instant, nullable=False),
    sa.Column("patient", sa.String(255), nullable=False),  # the member's own id of the patient
    sa.Column("organization", sa.String(200), nullable=False),
    sa.Column("who", sa.String(254), nullable=False),
    sa.Column("reason", sa.String(400), nullable=False),
    sa.Column("resources", sa.Integer, nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("seen", Instant, nullable=True),
    sa.Column("seen_by", sa.String(254), nullable=True),
    sa.Index(None, "member_id", "at"),
)
"""A member's inbox: what was done with its records that it should know of at once."""
