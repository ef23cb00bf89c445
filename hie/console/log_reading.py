"""Looking at the log is itself an entry of it: what every page about the log records before it shows anything."""

from __future__ import annotations

from collections.abc import Iterable

from hie.audit.event import Event, Kind, Outcome
from hie.console import people
from hie.gateway.api.context import request_id
from hie.gateway.services import current
from hie.gateway.subjects import name_of


def record(page: str, description: str, person_id: str | None = None, entities: tuple[str, ...] = ()) -> None:
    """Make durable that the signed-in user is about to see this."""
    current().audit.record(
        Event(
            kind=Kind.LOG_READ,
            outcome=Outcome.SUCCESS,
            action="R" if entities else "E",
            caller=people.caller(),
            person_id=person_id,
            query=f"console {page}",
            request_id=request_id(),
            description=description,
            entities=entities,
        )
    )


def names_of(person_ids: Iterable[str | None]) -> dict[str, str]:
    """Person id -> name, for those that have one; also for ids that were merged into another."""
    found: dict[str, str] = {}
    for person_id in dict.fromkeys(person_ids):
        person = current().identity.person(person_id) if person_id else None
        if person_id and person:
            found[person_id] = name_of(person.resource)
    return found
