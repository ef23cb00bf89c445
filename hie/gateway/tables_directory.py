"""Tables of the member directory and of the token endpoint's replay store."""

from __future__ import annotations

import sqlalchemy as sa

from hie.core.database import Instant, metadata

directory_version = sa.Table(
    "directory_version",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
)
"""One row, bumped by every transaction that changes the directory; readers reload when it differs from theirs."""

members = sa.Table(
    "members",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("patient_id_system", sa.String(255), nullable=False, unique=True),
    sa.Column("consent_default", sa.String(20)),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("purposes", sa.String(200), nullable=False),
    sa.Column("part2", sa.Boolean, nullable=False),
    sa.Column("address", sa.String(300)),
)

endpoints = sa.Table(
    "endpoints",
    metadata,
    sa.Column("member_id", sa.String(32), sa.ForeignKey("members.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("url", sa.String(2048), nullable=False),
    sa.Column("url_key", sa.String(64), nullable=False, unique=True),
    sa.Column("auth", sa.JSON, nullable=False),
)
"""`url_key` is the digest of the address with case, port and slashes evened out: two members never share a server.
`auth` holds the secrets that the transport sends; nothing prints it."""

clients = sa.Table(
    "clients",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("member_id", sa.String(32), sa.ForeignKey("members.id", ondelete="CASCADE"), index=True),
    sa.Column("role", sa.String(20), nullable=False),
    sa.Column("jwks", sa.JSON(none_as_null=True)),
    sa.Column("jwks_uri", sa.String(2048)),
    sa.Column("scopes", sa.Text, nullable=False),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("email", sa.String(254), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("role", sa.String(20), nullable=False),
    sa.Column("member_id", sa.String(32), sa.ForeignKey("members.id", ondelete="CASCADE"), index=True),
    sa.Column("password_hash", sa.String(255)),
)

client_assertions = sa.Table(
    "client_assertions",
    metadata,
    sa.Column("client_id", sa.String(64), primary_key=True),
    sa.Column("jti", sa.String(255), primary_key=True),
    sa.Column("expires", Instant, nullable=False, index=True),
)
"""Assertions that were used, until they expire: the second use of one is a replay, whichever worker sees it."""
