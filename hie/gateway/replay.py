"""What past disclosures would be under another consent: "what if" (CONSENT.md section 7; pure but for the log's words).

Each past disclosure of the log is asked again as if today, by the same caller for the same purposes, and decided by the
same function under the changed policy. What the resources are, the members say; one that no member gives any more is
judged by what the log kept of it (type, holder, labels), with more labels thought possible. What had been withheld then
is not in the log resource by resource, so a replay tells what would be kept back, not what would be given in addition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from hie.audit.access import Access
from hie.audit.event import Released
from hie.consent.policy import Decision, PersonPolicy, Request, ResourceView, decide
from hie.consent.vocabulary import label_of
from hie.core.caller import Role

MOST_DISCLOSURES = 1000
"""The newest that one replay looks at."""


@dataclass(frozen=True)
class Replayed:
    """One past disclosure, and what would be different."""

    index: int
    """Of its entry in the log."""
    at: datetime
    organization: str
    organization_name: str
    who: str
    purposes: tuple[str, ...]
    released: int
    kept_back: int
    """Of `released`, what would not be given now."""
    by_log: int
    """Of `released`, what was judged by the log alone."""
    reasons: tuple[tuple[str, str | None, tuple[int, ...], int], ...]
    """(rule, consent version, provision, how many) of what would be kept back."""


@dataclass(frozen=True)
class Replay:
    """Past disclosures, newest first. `short`: organizations that did not answer in full."""

    person_id: str
    disclosures: tuple[Replayed, ...]
    short: tuple[str, ...]
    older: int
    """Disclosures beyond the most that one replay looks at."""

    @property
    def released(self) -> int:
        return sum(one.released for one in self.disclosures)

    @property
    def kept_back(self) -> int:
        return sum(one.kept_back for one in self.disclosures)

    @property
    def different(self) -> tuple[Replayed, ...]:
        """Those of which something would be kept back."""
        return tuple(one for one in self.disclosures if one.kept_back)


Views = Mapping[tuple[str, str], ResourceView]
"""(type, gateway id) -> what members hold now."""
Holder = Callable[[Released], str | None]
"""The member that holds a resource of the log; None where that is not known any more."""


def replay(
    access: Access, policy: PersonPolicy, views: Views, holder: Holder, own_people: Sequence[str], now: datetime
) -> Replayed:
    """One disclosure again. `own_people`: ids of the people who its user is."""
    request = request_of(access, own_people, now)
    given = [released for released in access.released if released.type != "Patient"]
    decided = [decide(policy, request, _view(released, views, holder)) for released in given]
    refused = [decision for decision in decided if not decision.permit]
    return Replayed(
        index=access.index,
        at=access.at,
        organization=access.organization or "",
        organization_name=access.organization_name,
        who=access.actor_name,
        purposes=access.purposes,
        released=len(given),
        kept_back=len(refused),
        by_log=sum((released.type, released.id) not in views for released in given),
        reasons=_reasons(refused),
    )


def request_of(access: Access, own_people: Sequence[str], now: datetime) -> Request:
    """The caller of a past disclosure as consents name callers."""
    role = Role(access.role) if access.role in {role.value for role in Role} else Role.MEMBER
    actors = {f"Organization/{access.organization or ''}", *(f"Patient/{person_id}" for person_id in own_people)}
    actors.update({f"Device/{access.client_id}"} if access.client_id else ())
    actors.update({access.user_id} if access.user_id else ())
    return Request(
        actors=frozenset(actors),
        purposes=frozenset(access.purposes),
        role=role,
        organization=access.organization or "",
        now=now,
        break_glass=access.break_glass is not None,
    )


def _view(released: Released, views: Views, holder: Holder) -> ResourceView:
    held = views.get((released.type, released.id))
    if held is not None:
        return held
    labels = frozenset(label_of(None, code) for code in released.labels)
    return ResourceView(released.type, released.id, holder(released) or "", labels=labels, labels_known=False)


def _reasons(refused: Sequence[Decision]) -> tuple[tuple[str, str | None, tuple[int, ...], int], ...]:
    counted = Counter((decision.rule, decision.consent, decision.path) for decision in refused)
    return tuple((*key, count) for key, count in counted.most_common())
