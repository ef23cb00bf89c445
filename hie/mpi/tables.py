"""Tables of `hie.mpi`: people, source records with every version, link events and decisions, reviews, search tokens."""

from __future__ import annotations

import sqlalchemy as sa

from hie.core.database import Instant, metadata
from hie.mpi.tables_match import ORDERED  # and so the matcher's tables: the metadata is whole

_ID = sa.String(26)
_SYSTEM = sa.String(255)

people = sa.Table(
    "people",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("created", Instant, nullable=False),
    sa.Column("updated", Instant, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),  # False without an active source record
    sa.Column("resource", sa.JSON, nullable=False),  # the golden Patient, without id and meta
    sa.Column("merged_into", _ID, sa.ForeignKey("people.id"), nullable=True, index=True),
)

source_records = sa.Table(
    "source_records",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("member_id", sa.String(32), nullable=False),
    sa.Column("system", _SYSTEM, nullable=False),
    sa.Column("value", sa.String(255), nullable=False),
    sa.Column("person_id", _ID, sa.ForeignKey("people.id"), nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("replaced_by", _ID, sa.ForeignKey("source_records.id"), nullable=True, index=True),
    sa.Column("source_updated", Instant, nullable=True),  # newest meta.lastUpdated the member has sent (law L7)
    sa.UniqueConstraint("system", "value"),
)

source_record_versions = sa.Table(
    "source_record_versions",
    metadata,
    sa.Column("record_id", _ID, sa.ForeignKey("source_records.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("event", sa.String(16), nullable=False),  # feed | merge | delete
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("content_hash", sa.String(64), nullable=False),
    sa.Column("received", Instant, nullable=False),
)

link_decisions = sa.Table(
    "link_decisions",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("record_id", _ID, sa.ForeignKey("source_records.id"), nullable=False, index=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("event", sa.String(16), nullable=False),  # feed | merge | delete | move
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("verdict", sa.String(16), nullable=True),  # none where a member decided, not the model
    sa.Column("probability", sa.Float, nullable=True),
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("model_version", sa.String(64), nullable=True),
    sa.Column("person_before", _ID, nullable=True, index=True),
    sa.Column("person_after", _ID, nullable=False, index=True),
    sa.Column("event_id", _ID, nullable=True, index=True),  # the link event it was a part of, where there was one
    sa.Index("ix_link_decisions_at", "at"),
)

link_events = sa.Table(
    "link_events",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),  # hie.mpi.people.EventKind
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("model_version", sa.String(64), nullable=False),
    sa.Column("state", sa.JSON, nullable=False),  # what it changed, before and after: enough to reverse it (law L5)
    sa.Column("undone_by", _ID, nullable=True),
)

separations = sa.Table(
    "separations",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("record_a", _ID, sa.ForeignKey("source_records.id"), nullable=False, index=True),
    sa.Column("record_b", _ID, sa.ForeignKey("source_records.id"), nullable=False, index=True),
    sa.Column("traits_a", sa.String(64), nullable=False),  # digest of what identified the record when it was said
    sa.Column("traits_b", sa.String(64), nullable=False),
    sa.Column("event_id", _ID, nullable=False, index=True),
    sa.Column("ended", Instant, nullable=True),
)
"""Two records of which a steward said that they are two people. `record_a` sorts before `record_b`."""

review_tasks = sa.Table(
    "review_tasks",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("record_id", _ID, sa.ForeignKey("source_records.id"), nullable=False),
    sa.Column("candidate_id", _ID, sa.ForeignKey("people.id"), nullable=False, index=True),
    sa.Column("decision_id", _ID, sa.ForeignKey("link_decisions.id"), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),  # same-person | contradiction | merge
    sa.Column("probability", sa.Float, nullable=True),
    sa.Column(
        "value", sa.Float, nullable=False, server_default="0.5"
    ),  # what looking at it is expected to mend; the queue's order
    sa.Column("status", sa.String(16), nullable=False),  # open | superseded | linked | separate
    sa.Column("created", Instant, nullable=False),
    sa.Column("closed", Instant, nullable=True),
    sa.Index("ix_review_tasks_record", "record_id", "status"),
    sa.Index("ix_review_tasks_queue", "status", "value"),
)

person_tokens = sa.Table(
    "person_tokens",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("person_id", _ID, sa.ForeignKey("people.id"), nullable=False, index=True),
    sa.Column("kind", sa.String(24), nullable=False),
    sa.Column("value", ORDERED, nullable=False),  # normalised
    sa.Column("exact", ORDERED, nullable=False),  # as written; for an identifier its system, for a date its last day
    sa.Index("ix_person_tokens_value", "kind", "value", "person_id"),
    sa.Index("ix_person_tokens_exact", "kind", "exact", "person_id"),
)
