"""What somebody would be given of a person, and why (CONSENT.md section 7): numbers and reasons, never contents.

For privacy officers and the person alone. Nothing is released by it, and no withheld resource is described: per
organization and type, how many would leave, how many would not, and which rule, consent and provision decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from hie.consent.fhir import compile_consent
from hie.consent.policy import Decision, PersonPolicy, Request
from hie.core.caller import Caller, Role
from hie.core.clock import Clock
from hie.core.errors import NotFound
from hie.core.fhir import Resource
from hie.gateway.directory import Directory

Change = Callable[[PersonPolicy], PersonPolicy]
"""The policy as it would be, for "what if"."""


@dataclass(frozen=True)
class Somebody:
    """A caller that is only supposed."""

    organization: str
    role: Role
    purposes: frozenset[str]
    actors: frozenset[str] = frozenset()
    break_glass: bool = False

    def request(self, now: Clock) -> Request:
        """As consents would see that caller."""
        broken = frozenset({"BTG", "TREAT"}) if self.break_glass else frozenset[str]()
        return Request(
            actors=self.actors | {f"Organization/{self.organization}"},
            purposes=self.purposes | broken,
            role=self.role,
            organization=self.organization,
            now=now(),
            break_glass=self.break_glass,
        )


@dataclass(frozen=True)
class Because:
    """One reason, and how many resources it decided."""

    permit: bool
    rule: str
    reason: str
    consent: str | None
    path: tuple[int, ...]
    break_glass: bool
    count: int


@dataclass(frozen=True)
class TypePreview:
    """What one organization holds of one type."""

    type: str
    released: int
    withheld: int
    reasons: tuple[Because, ...]


@dataclass(frozen=True)
class SourcePreview:
    """One organization. `asked` False: nothing that it holds could be released, so it would not be asked."""

    member_id: str
    member_name: str
    asked: bool
    status: str
    types: tuple[TypePreview, ...]

    @property
    def released(self) -> int:
        return sum(one.released for one in self.types)

    @property
    def withheld(self) -> int:
        return sum(one.withheld for one in self.types)


@dataclass(frozen=True)
class Preview:
    """The whole of it."""

    person_id: str
    sources: tuple[SourcePreview, ...]
    restricted: bool

    @property
    def verdict(self) -> str:
        """`permit` all, `deny` all, or `partial`."""
        released = sum(source.released for source in self.sources)
        kept_back = any(source.withheld or not source.asked for source in self.sources)
        if not kept_back:
            return "permit"
        return "partial" if released else "deny"


def by_type(decided: Iterable[tuple[str, Decision]]) -> tuple[TypePreview, ...]:
    """Decisions of (type, decision), counted."""
    held: dict[str, list[Decision]] = {}
    for kind, decision in decided:
        held.setdefault(kind, []).append(decision)
    return tuple(
        TypePreview(
            kind,
            sum(d.permit for d in decisions),
            sum(not d.permit for d in decisions),
            _reasons(decisions),
        )
        for kind, decisions in sorted(held.items())
    )


def _reasons(decisions: Sequence[Decision]) -> tuple[Because, ...]:
    counted = Counter((d.permit, d.rule, d.reason, d.consent, d.path, d.break_glass) for d in decisions)
    return tuple(Because(*key, count) for key, count in counted.most_common())


@dataclass(frozen=True)
class Recoded:
    """What other value sets would change of what one organization holds of one type."""

    member_id: str
    member_name: str
    type: str
    hidden: int
    """Released now, withheld then."""
    revealed: int
    """Withheld now, released then."""


@dataclass(frozen=True)
class Recoding:
    """What other value sets would change for one person. `short`: organizations that did not answer in full."""

    person_id: str
    changes: tuple[Recoded, ...]
    short: tuple[str, ...]


def recoded(member_id: str, member_name: str, pairs: Iterable[tuple[str, Decision, Decision]]) -> list[Recoded]:
    """Pairs of (type, decision now, decision then), counted; types without a change are left out."""
    hidden, revealed = Counter[str](), Counter[str]()
    for kind, now, then in pairs:
        hidden[kind] += now.permit and not then.permit
        revealed[kind] += then.permit and not now.permit
    kinds = sorted((+hidden).keys() | (+revealed).keys())
    return [Recoded(member_id, member_name, kind, hidden[kind], revealed[kind]) for kind in kinds]


def beside(consent: Resource, person_id: str) -> Change:
    """The policy with one more consent, as if it had been filed."""
    made = compile_consent({**consent, "id": "what-if"}, 1, person_id)
    return lambda policy: replace(policy, consents=(*policy.consents, made))


def somebody(
    directory: Directory, named: str, purposes: Iterable[str], *, role: Role | None = None, break_glass: bool = False
) -> Somebody:
    """The supposed caller that a member's id or a user's e-mail names; raises NotFound."""
    if "@" in named:
        user = directory.user(named)
        if user is None:
            raise NotFound(f"There is no user {named[:254]}.")
        organization = user.member_id or "exchange"
        return Somebody(organization, role or user.role, frozenset(purposes), frozenset({user.email}), break_glass)
    member = directory.member(named)
    if member is None:
        raise NotFound(f"There is no member {named[:64]}.")
    default = Role.PAYER if member.kind == "payer" else Role.CLINICIAN if break_glass else Role.MEMBER
    return Somebody(member.id, role or default, frozenset(purposes), frozenset(), break_glass)


def may_ask(caller: Caller, own_people: Iterable[str], person_ids: Iterable[str]) -> bool:
    """Whether a caller may be told what would be released: the exchange's privacy officers, and the person."""
    if caller.role is Role.PRIVACY_OFFICER and caller.organization == "exchange":
        return True
    return caller.role is Role.PATIENT and not set(own_people).isdisjoint(person_ids)
