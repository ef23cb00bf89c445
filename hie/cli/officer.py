"""What commands of the privacy office share: the services of one run, and in whose name it is logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hie.app import build_services
from hie.core import schema
from hie.core.caller import EXCHANGE, Caller, Role
from hie.core.config import Settings
from hie.core.scopes import Scopes
from hie.gateway.services import Services


@contextmanager
def exchange() -> Iterator[Services]:
    """The services of this run, closed at its end."""
    services = build_services(Settings.load())
    try:
        schema.require_current(services.database)
        yield services
    finally:
        services.release.close()
        services.audit.close()
        services.database.close()


def officer() -> Caller:
    """Whoever may run commands on the exchange's host acts for its privacy office."""
    return Caller(
        organization=EXCHANGE,
        organization_name="The exchange",
        role=Role.PRIVACY_OFFICER,
        purposes=frozenset({"HOPERAT"}),
        scopes=Scopes(),
        session="command-line",
        subject_name="Command line",
    )
