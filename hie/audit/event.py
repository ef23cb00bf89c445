"""What happened, in the exchange's own terms, before it becomes an AuditEvent (`balp.py`) and a row (`log.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hie.core.caller import Caller


class Kind(StrEnum):
    """What sort of event an entry records; part of the leaf, so that it can be counted without reading any body."""

    DISCLOSURE = "disclosure"
    DENIAL = "denial"
    FAILURE = "failure"
    SEARCH = "search"
    FEED = "feed"
    CONSENT = "consent"
    SIGN_IN = "sign-in"
    DIRECTORY = "directory"
    LOG_READ = "log-read"
    LINK = "link"
    REVIEW = "review"
    RETENTION = "retention"


class Outcome(StrEnum):
    """FHIR R4 code system audit-event-outcome."""

    SUCCESS = "0"
    MINOR = "4"
    SERIOUS = "8"
    MAJOR = "12"


@dataclass(frozen=True)
class Released:
    """One resource that left: its gateway id, the SHA-256 (hex) of the JSON that left, and the labels it carried."""

    type: str
    id: str
    sha256: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class SourceOutcome:
    """How one asked organization did: `ok` or a source-status code, and how many resources it gave."""

    member_id: str
    status: str
    count: int


@dataclass(frozen=True)
class Event:
    """One thing to be recorded, about at most one person.

    `action` is a FHIR audit-event-action (C R U D E); `query` the request as it came; `decisions` the decision trace,
    each with its `consent` (a versioned reference) where a consent decided; `withheld` how many resources were not
    released; `entities` further references ("Consent/abc"), of which the first is the object of a C, R, U or D;
    `client_id` the client that was claimed where there is no verified caller; `address` where the request came from,
    if not the caller's own.
    """

    kind: Kind
    outcome: Outcome
    action: str
    caller: Caller | None
    person_id: str | None
    query: str
    request_id: str
    description: str
    sources: tuple[SourceOutcome, ...] = ()
    released: tuple[Released, ...] = ()
    decisions: tuple[dict[str, object], ...] = ()
    withheld: int = 0
    entities: tuple[str, ...] = ()
    client_id: str | None = None
    address: str = ""
