"""The services of one process, made by `hie.app` and found by views through `current()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flask import current_app

from hie.audit.accounting import Accounting
from hie.audit.health import LogHealth
from hie.audit.log import AuditLog
from hie.audit.review import Review
from hie.audit.statistics import LogStatistics
from hie.consent.codes import CodeSets
from hie.consent.service import ConsentService
from hie.core.clock import Clock
from hie.core.config import Settings
from hie.core.database import Database
from hie.gateway.authority import Authority
from hie.gateway.care import CareService
from hie.gateway.directory import Directory
from hie.gateway.governance import Governance
from hie.gateway.notices import Notices
from hie.gateway.portal import Portal
from hie.gateway.release import Release
from hie.mpi.identity import IdentityService
from hie.mpi.stewardship import Stewardship


@dataclass(frozen=True)
class Services:
    """Everything a view may call. The views hold no rules of their own."""

    settings: Settings
    database: Database
    clock: Clock
    directory: Directory
    authority: Authority
    identity: IdentityService
    stewardship: Stewardship
    consents: ConsentService
    codes: CodeSets
    audit: AuditLog
    release: Release
    care: CareService
    portal: Portal
    notices: Notices
    accounting: Accounting
    review: Review
    statistics: LogStatistics
    health: LogHealth
    own_person: Callable[[str], str | None]
    """E-mail of a patient's account -> her person id, where the account is bound to one."""
    secret: bytes = field(repr=False)
    """Signs console sessions and paging cursors; the same in all workers."""

    @property
    def governance(self) -> Governance:
        """Consent's questions about a caller and a person."""
        return Governance(
            directory=self.directory,
            identity=self.identity,
            consents=self.consents,
            portal=self.portal,
            clock=self.clock,
        )


def current() -> Services:
    """The services of the application that handles this request."""
    services: Services = current_app.extensions["hie"]
    return services
