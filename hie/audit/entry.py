"""One row of the log: body, commitment and leaf (pure).

The leaf is canonical JSON (RFC 8785) of `{v, id, time, kind, commit}` with `commit` = hex SHA-256(salt || body); its
hash is RFC 6962's, SHA-256(0x00 || leaf). So the tree holds no patient data, and a body can be purged while the tree
still verifies.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import datetime

import orjson

from hie.audit.balp import audit_event, redacted
from hie.audit.columns import Columns, columns
from hie.audit.event import Event
from hie.audit.merkle import leaf_hash
from hie.core.clock import instant
from hie.core.fhir import Resource
from hie.core.ids import new_id

LEAF_VERSION = 1
SALT_BYTES = 16


@dataclass(frozen=True)
class Receipt:
    """What the recorder gets once an entry is durable: its place in the log and its leaf hash."""

    index: int
    entry_id: str
    leaf_hash: bytes


@dataclass(frozen=True)
class Draft:
    """An entry that has no index yet: the committer gives it one. `time` is `recorded` as the leaf has it."""

    entry_id: str
    recorded: datetime
    time: str
    kind: str
    salt: bytes
    body: bytes
    leaf: bytes
    leaf_hash: bytes
    columns: Columns


@dataclass(frozen=True)
class Entry:
    """A stored entry as it was read."""

    index: int
    entry_id: str
    recorded: datetime
    kind: str
    salt: bytes
    body: bytes
    leaf: bytes
    leaf_hash: bytes

    @property
    def archived(self) -> bool:
        """The body was moved to an archive after its retention; the leaf still commits to it (`retention.py`)."""
        return not self.body

    @property
    def resource(self) -> Resource:
        """The AuditEvent; of an archived entry what the leaf says, marked as redacted."""
        event: Resource = json.loads(self.body) if self.body else redacted(self.entry_id, self.recorded)
        return event

    @property
    def person_id(self) -> str | None:
        """The person that the entry is about, told by the body."""
        return columns(self.resource).person_id


def draft(event: Event, recorded: datetime, fhir_base: str) -> Draft:
    """The entry of `event`. Raises TypeError, KeyError or ValueError where the event cannot be written down."""
    entry_id = new_id()
    resource = audit_event(event, entry_id, recorded, fhir_base)
    body = canonical(resource)
    salt = secrets.token_bytes(SALT_BYTES)
    time = instant(recorded)
    leaf = leaf_bytes(entry_id, time, event.kind.value, commitment(salt, body))
    return Draft(
        entry_id=entry_id,
        recorded=recorded,
        time=time,
        kind=event.kind.value,
        salt=salt,
        body=body,
        leaf=leaf,
        leaf_hash=leaf_hash(leaf),
        columns=columns(resource),
    )


def canonical(value: Resource) -> bytes:
    """RFC 8785 for what entries are made of: objects with ASCII keys, arrays, text, integers, booleans.

    Ten times as fast as the `rfc8785` package, which the tests hold it to. Numbers with a fraction are written
    differently there, so an entry must not hold any. Raises TypeError for what JSON cannot hold.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def commitment(salt: bytes, body: bytes) -> str:
    """Hex SHA-256 of salt and body; the salt keeps a short body from being guessed."""
    return hashlib.sha256(salt + body).hexdigest()


def leaf_bytes(entry_id: str, time: str, kind: str, commit: str) -> bytes:
    """The leaf as it is hashed, proved and published."""
    return canonical({"v": LEAF_VERSION, "id": entry_id, "time": time, "kind": kind, "commit": commit})
