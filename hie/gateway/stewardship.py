"""The audit entries of stewardship: who saw whose records, and each decision in the decision's own transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import sqlalchemy as sa

from hie.audit.event import Event, Kind, Outcome
from hie.audit.log import AuditLog
from hie.core.caller import COMMAND_LINE, Caller
from hie.mpi.people import LinkEvent


def record_seen(audit: AuditLog, caller: Caller | None, person_ids: Iterable[str], page: str, request_id: str) -> None:
    """One durable entry per person whose demographics are about to be shown; one without a person when nobody is."""
    audit.record(
        *(
            Event(
                kind=Kind.SEARCH,
                outcome=Outcome.SUCCESS,
                action="R" if person_id else "E",
                caller=caller,
                person_id=person_id,
                query=page,
                request_id=request_id,
                description="Demographics shown for review" if person_id else "Nobody shown",
                client_id=None if caller else COMMAND_LINE,
            )
            for person_id in (tuple(dict.fromkeys(person_ids)) or (None,))
        )
    )


def audited(audit: AuditLog, caller: Caller | None, request_id: str) -> Callable[[sa.Connection, LinkEvent], None]:
    """The `also` of a steward's act: an entry per person concerned. Caller None is the operator at the command line."""

    def also(connection: sa.Connection, event: LinkEvent) -> None:
        entries = (
            Event(
                kind=Kind.LINK,
                outcome=Outcome.SUCCESS,
                action="U",
                caller=caller,
                person_id=person_id,
                query="",
                request_id=request_id,
                description=f"Link decision {event.kind.value}, event {event.id}: {event.reason}",
                client_id=None if caller else COMMAND_LINE,
            )
            for person_id in event.people
        )
        audit.append(connection, *entries)

    return also
