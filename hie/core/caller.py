"""Who is asking: the verified identity, role, purpose and scopes of one token or console session (law L8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hie.core.errors import Forbidden
from hie.core.scopes import Scopes

EXCHANGE = "exchange"
"""The organization id of the exchange itself, for its own clients and users."""
COMMAND_LINE = "command line"
"""Stands as the client of what an operator does with the `hie` command, where there is no caller."""


class Role(StrEnum):
    """What a caller is for. `member` is a member organization's system; the rest are the manifest's roles."""

    MEMBER = "member"
    CLINICIAN = "clinician"
    MEMBER_ADMIN = "member-admin"
    DATA_STEWARD = "data-steward"
    PRIVACY_OFFICER = "privacy-officer"
    PAYER = "payer"
    PATIENT = "patient"
    OPERATOR = "operator"


CHART_ROLES = frozenset({Role.MEMBER, Role.CLINICIAN, Role.PAYER, Role.PATIENT})
"""Roles that may ever read clinical resources."""


@dataclass(frozen=True)
class Caller:
    """One verified caller. `purposes` is what the token or session asserts (BTG carries TREAT with it)."""

    organization: str
    organization_name: str
    role: Role
    purposes: frozenset[str]
    scopes: Scopes
    session: str
    """Opaque id of the token or console session, for the audit trail; not the secret itself."""
    client_id: str | None = None
    user_id: str | None = None
    """Email of the console user."""
    subject_name: str | None = None
    subject_id: str | None = None
    subject_role: str | None = None
    break_glass_reason: str | None = None
    address: str = field(default="", compare=False)
    """Network address the request came from."""

    @property
    def break_glass(self) -> bool:
        return "BTG" in self.purposes and self.break_glass_reason is not None

    @property
    def clinical(self) -> bool:
        """A person in a clinical role is behind the request (break-glass needs one)."""
        return self.role is Role.CLINICIAN or (self.role is Role.MEMBER and self.subject_role is not None)

    def require(self, resource_type: str, action: str) -> None:
        """Raises Forbidden unless the scopes hold `action` (one of c r u d s) on `resource_type`."""
        if not self.scopes.allows(resource_type, action):
            raise Forbidden(f"The token holds no scope for system/{resource_type}.{action}.")

    def require_role(self, *roles: Role) -> None:
        """Raises Forbidden unless the caller has one of `roles`."""
        if self.role not in roles:
            raise Forbidden(f"The role {self.role.value} may not do this.")
