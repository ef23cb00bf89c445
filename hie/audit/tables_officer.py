"""Tables of the privacy officer's work: the review queue, suspensions, legal holds, archives.

Other than the log's own tables these change; but each change is an entry of the log, written in the same transaction.
"""

from __future__ import annotations

import sqlalchemy as sa

from hie.audit.columns import WIDTH
from hie.audit.tables import INDEX
from hie.core.database import Instant, metadata

_ID = sa.String(26)

suspensions = sa.Table(
    "audit_suspensions",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("person_id", sa.String(WIDTH), nullable=False, index=True),
    sa.Column("organization", sa.String(WIDTH), nullable=False),
    sa.Column("starts", Instant, nullable=False),
    sa.Column("ends", Instant, nullable=False),
    sa.Column("agency", sa.String(200), nullable=False),
    sa.Column("written", sa.Boolean, nullable=False),
    sa.Column("filed", Instant, nullable=False),
    sa.Column("filed_by", sa.String(WIDTH), nullable=False),
)
"""45 CFR 164.528 (a)(2): while it lasts, disclosures to `organization` stay out of the person's accounting."""

holds = sa.Table(
    "audit_holds",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("person_id", sa.String(WIDTH), nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("placed", Instant, nullable=False),
    sa.Column("placed_by", sa.String(WIDTH), nullable=False),
    sa.Column("lifted", Instant),
    sa.Column("lifted_by", sa.String(WIDTH)),
)
"""Legal holds: no entry about the person is archived while one stands. The guard of the log reads this table."""

archives = sa.Table(
    "audit_archives",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("first_index", INDEX, nullable=False),
    sa.Column("last_index", INDEX, nullable=False),
    sa.Column("entries", INDEX, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("written", Instant, nullable=False),
)
"""Archive files, by digest. The guard of the log lets a body go only where an archive covers its index."""

cases = sa.Table(
    "review_cases",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("organization", sa.String(WIDTH), nullable=False),
    sa.Column("actor", sa.String(WIDTH), nullable=False),
    sa.Column("actor_name", sa.String(200), nullable=False),
    sa.Column("organization_name", sa.String(200), nullable=False),
    sa.Column("break_glass", sa.Boolean, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("opened", Instant, nullable=False),
    sa.Column("updated", Instant, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("assignee", sa.String(WIDTH)),
    sa.Column("verdict", sa.String(16)),
    sa.Column("verdict_by", sa.String(WIDTH)),
    sa.Index("ix_review_cases_queue", "status", "break_glass", "opened"),
    sa.Index("ix_review_cases_actor", "organization", "actor", "status"),
)
"""One incident: what one actor did that is to be looked at, until two people have closed it."""

items = sa.Table(
    "review_items",
    metadata,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("case_id", _ID, sa.ForeignKey("review_cases.id"), nullable=False, index=True),
    sa.Column("rule", sa.String(32), nullable=False, index=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("person_id", sa.String(WIDTH), index=True),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("entries", sa.JSON, nullable=False),
)
"""What the case is about: one break-glass access (key `break-glass:<index>`) or one alert."""

actions = sa.Table(
    "review_actions",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("case_id", _ID, sa.ForeignKey("review_cases.id"), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("by", sa.String(WIDTH), nullable=False),
    sa.Column("by_name", sa.String(200), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("entry_index", INDEX, nullable=False),
    sa.UniqueConstraint("case_id", "number"),
)
"""What was done about a case, in order, each with its entry in the log."""

verifications = sa.Table(
    "audit_verifications",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("started", Instant, nullable=False, index=True),
    sa.Column("started_by", sa.String(WIDTH), nullable=False),
    sa.Column("updated", Instant, nullable=False),
    sa.Column("done", INDEX, nullable=False),
    sa.Column("total", INDEX, nullable=False),
    sa.Column("ok", sa.Boolean),
    sa.Column("sentence", sa.Text, nullable=False),
)
"""Verifications that somebody started in the console: how far they are, and what they found."""

looks = sa.Table(
    "review_looks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("through", Instant, nullable=False),
)
"""One row: up to when accesses have been judged for alerts."""
