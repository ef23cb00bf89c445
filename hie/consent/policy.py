"""What may be released: the evaluator of CONSENT.md, a pure function over frozen dataclasses.

Sections 3 (one consent), 4 (all consents together) and 5 (order of things) stand here as they do there; consents come
compiled (`hie.consent.fhir`), resources indexed (`hie.consent.labels`). A decision depends on little of a resource: its
type, holder and labels, and what the person's consents happen to look at. Resources alike in that are decided once.

Where the rule book says "no in a permit, yes in a deny" of something that cannot be known (an actor that cannot be
resolved, a value that is not understood, a resource without a time), the permit or deny meant is the node that is being
applied, also when the criterion is inherited: what is not known never releases. Confidentiality is compared by the node
that states it, since there the two directions are the meaning of the criterion.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import StrEnum
from functools import cached_property

from hie.consent.vocabulary import (
    ACT_CODE,
    CONFIDENTIALITY,
    RANK,
    SENSITIVITIES,
    label_key,
    purpose_and_above,
    sensitivities_and_above,
)
from hie.core.caller import Role

EVERYTHING = ""
"""The governed custodian of a consent that names no organization, or the exchange."""

PART2_LABEL = "42CFRPart2"
PART2_NAMES = frozenset({PART2_LABEL, "ETH", "ETHUD", "OPIOIDUD", "SUD"})
"""A permit that names one of these describes substance use information explicitly (42 CFR 2.31(a)(3))."""

PSYCHOTHERAPY_NOTES = "PSYTHPN"
MINOR_ALONE = "ADOL"
SELF_PAY = "self-pay-restricted"
"""Code of the security label or tag that marks what a payer never gets (45 CFR 164.522), under any system."""

PAYER_TYPES = frozenset({"Coverage", "ExplanationOfBenefit"})

Tri = bool | None
"""Whether a criterion matches; None when it cannot be known."""


class Effect(StrEnum):
    """What a provision does."""

    PERMIT = "permit"
    DENY = "deny"


class Default(StrEnum):
    """What holds where no consent says anything (section 5 point 6)."""

    NORMAL = "normal"
    TREATMENT = "treatment"
    BREAK_GLASS_ONLY = "break-glass-only"
    DENY = "deny"


_DEFAULTS = {"permit": Default.NORMAL, **{default.value: default for default in Default}}
_DEFAULT_PURPOSES = {
    Default.NORMAL: frozenset({"TREAT", "HPAYMT", "HOPERAT"}),
    Default.TREATMENT: frozenset({"TREAT"}),
    Default.BREAK_GLASS_ONLY: frozenset[str](),
    Default.DENY: frozenset[str](),
}
_EMERGENCY = frozenset({"BTG", "ETREAT"})
_CHART_ROLES = frozenset({Role.MEMBER, Role.CLINICIAN, Role.PAYER, Role.PATIENT})
_BREAK_GLASS_ROLES = frozenset({Role.MEMBER, Role.CLINICIAN})


@dataclass(frozen=True, slots=True)
class Span:
    """A range of time, both ends inclusive, open where None."""

    start: datetime | None
    end: datetime | None

    def overlaps(self, other: Span) -> bool:
        return (self.start is None or other.end is None or self.start <= other.end) and (
            other.start is None or self.end is None or other.start <= self.end
        )

    def covers(self, moment: datetime) -> bool:
        return (self.start is None or self.start <= moment) and (self.end is None or moment <= self.end)


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one criterion: those understood, and whether there was one that was not."""

    known: frozenset[str] = frozenset()
    unknown: bool = False

    def match(self, present: Collection[str]) -> Tri:
        if not self.known.isdisjoint(present):
            return True
        return None if self.unknown else False


@dataclass(frozen=True, slots=True)
class Actors:
    """A provision's actors by what they must be: recipient, holding member (`CST`) or author (`AUT`)."""

    recipients: frozenset[str] = frozenset()
    holders: frozenset[str] = frozenset()
    authors: frozenset[str] = frozenset()
    unknown: bool = False

    def match(self, request: Request, view: ResourceView) -> Tri:
        if not (
            self.recipients.isdisjoint(request.known_actors)
            and self.holders.isdisjoint(view.holder)
            and self.authors.isdisjoint(view.authors)
        ):
            return True
        return None if self.unknown else False


@dataclass(frozen=True, slots=True)
class Data:
    """What a provision says of the resource; each criterion None where it does not state it.

    `confidentiality` is the rank that `securityLabel` names: the highest in a permit (`permits`), the lowest in a deny.
    """

    permits: bool = True
    labels: Values | None = None
    confidentiality: int | None = None
    classes: Values | None = None
    codes: Values | None = None
    states_period: bool = False
    period: Span | None = None
    states_targets: bool = False
    instances: frozenset[str] = frozenset()
    related: frozenset[str] = frozenset()
    authored_by: frozenset[str] = frozenset()
    unknown_target: bool = False

    def match(self, view: ResourceView) -> Tri:
        """All it states must match: one no is no, else one unknown is unknown."""
        result: Tri = True
        for part in self._parts(view):
            if part is False:
                return False
            if part is None:
                result = None
        return result

    def _parts(self, view: ResourceView) -> Iterator[Tri]:
        if self.labels is not None:
            yield self._label(self.labels, view)
        if self.classes is not None:
            yield self.classes.match(view.classes)
        if self.codes is not None:
            yield self.codes.match(view.code_keys)
        if self.states_period:
            yield None if self.period is None or view.time is None else self.period.overlaps(view.time)
        if self.states_targets:
            yield self._target(view)

    def _label(self, labels: Values, view: ResourceView) -> Tri:
        named = self.confidentiality
        if named is not None:
            reaches = named >= view.confidentiality if self.permits else named <= view.confidentiality
            if reaches:
                return True
        matches = labels.match(view.sensitivities)
        # What may refer to it could not be read: it may carry any of the sensitivities that are named here.
        return None if matches is False and labels.known and not view.labels_known else matches

    def _target(self, view: ResourceView) -> Tri:
        if (
            view.reference in self.instances
            or view.reference in self.related
            or not self.related.isdisjoint(view.references)
            or not self.authored_by.isdisjoint(view.authors)
        ):
            return True
        return None if self.unknown_target else False


@dataclass(frozen=True, slots=True)
class Node:
    """A provision, with every criterion resolved to the nearest node from here up that states it.

    `opaque`: here or above stands something the evaluator does not know, so that no permit applies.
    `purposes_here`: the purposes this very node names, which is what closes it to break-glass.
    """

    effect: Effect
    path: tuple[int, ...] = ()
    opaque: bool = False
    actors: Actors | None = None
    purposes: Values | None = None
    purposes_here: frozenset[str] = frozenset()
    states_action: bool = False
    action: Tri = True
    states_period: bool = False
    period: Span | None = None
    data: Data | None = None
    children: tuple[Node, ...] = ()

    @property
    def names_emergency(self) -> bool:
        return not self.purposes_here.isdisjoint(_EMERGENCY)


@dataclass(frozen=True)
class Compiled:
    """One version of a consent, ready to be evaluated."""

    id: str
    version: int
    person_id: str
    active: bool
    scope: str | None
    """`patient-privacy`, `research`, or None when it is neither and does not count."""
    custodians: frozenset[str]
    """Member ids whose holdings it governs; `EVERYTHING` among them for all."""
    dated: Span | None
    root: Node | None
    """None when neither its provision nor its policy rule says permit or deny: not applicable."""
    verified: bool = True
    covers_part2: bool = False
    warnings: tuple[str, ...] = ()
    sha256: str = ""
    """Of the consent's JSON as it is stored; empty where it is not stored (a "what if")."""

    @cached_property
    def reference(self) -> str:
        return f"Consent/{self.id}/_history/{self.version}"


@dataclass(frozen=True)
class PurposeGroup:
    """Purposes that are judged together: one, or a treatment purpose with `BTG`."""

    purposes: frozenset[str]
    up: frozenset[str]
    """The purposes and all that subsume them."""

    @property
    def broken(self) -> bool:
        return "BTG" in self.purposes


@dataclass(frozen=True)
class Request:
    """Who asks, what for, and when. `break_glass`: declared, with a reason, by someone in a clinical role."""

    actors: frozenset[str]
    purposes: frozenset[str]
    role: Role
    organization: str
    now: datetime
    break_glass: bool = False

    @cached_property
    def known_actors(self) -> frozenset[str]:
        return frozenset(actor_key(actor) for actor in self.actors)

    @cached_property
    def groups(self) -> tuple[PurposeGroup, ...]:
        """Each purpose by itself; under break-glass each treatment purpose carries `BTG` (section 1)."""
        broken = "BTG" in self.purposes
        plain = self.purposes - {"BTG"}
        if broken and not any("TREAT" in purpose_and_above(p) for p in plain):
            plain = plain | {"TREAT"}
        return tuple(_group(purpose, broken) for purpose in sorted(plain))


@dataclass(frozen=True)
class ResourceView:
    """What the evaluator sees of a resource, all in the exchange's terms."""

    type: str
    id: str
    member_id: str
    labels: frozenset[tuple[str, str]] = frozenset()
    """(system, code) in the spelling of `vocabulary`."""
    codes: frozenset[tuple[str, str]] = frozenset()
    profiles: frozenset[str] = frozenset()
    time: Span | None = None
    references: frozenset[str] = frozenset()
    """`Type/id` of what it refers to."""
    authors: frozenset[str] = frozenset()
    """`Type/id` and identifier values of its authors."""
    reached: frozenset[tuple[str, str]] = frozenset()
    """Those of `labels` that came along references alone, and so tell of another resource."""
    labels_known: bool = True
    """False where what refers to it could not be read, so that it may carry more labels than these."""
    part_of: str = ""
    """`Type/id` of the resource that contains it, where it is a contained one."""

    @cached_property
    def reference(self) -> str:
        return self.part_of or f"{self.type}/{self.id}"

    @cached_property
    def holder(self) -> frozenset[str]:
        return frozenset({self.member_id, f"Organization/{self.member_id}"})

    @cached_property
    def sensitivities(self) -> frozenset[str]:
        """Label keys that it carries, and every sensitivity above one of them."""
        carried = frozenset(label_key(label) for label in self.labels if label[0] != CONFIDENTIALITY)
        return carried | sensitivities_and_above(carried & SENSITIVITIES)

    @cached_property
    def own_sensitivities(self) -> frozenset[str]:
        """As `sensitivities`, of what the source and the codes say of this very resource: what section 5 goes by."""
        if not self.reached:
            return self.sensitivities
        own = self.labels - self.reached
        carried = frozenset(label_key(label) for label in own if label[0] != CONFIDENTIALITY)
        return carried | sensitivities_and_above(carried & SENSITIVITIES)

    @cached_property
    def confidentiality(self) -> int:
        """Rank of the highest confidentiality given; without one `R` (`V` for psychotherapy notes) or `N`."""
        given = [RANK[code] for system, code in self.labels if system == CONFIDENTIALITY and code in RANK]
        known = max(given) if given else RANK[default_confidentiality(self.labels)]
        return known if self.labels_known else max(known, RANK["R"])

    @cached_property
    def classes(self) -> frozenset[str]:
        return self.profiles | {self.type}

    @cached_property
    def code_keys(self) -> frozenset[str]:
        """`system|code`, and `|code` for criteria that name no system."""
        return frozenset(key for system, code in self.codes for key in (f"{system}|{code}", f"|{code}"))

    @cached_property
    def self_pay(self) -> bool:
        return any(code == SELF_PAY for _, code in self.labels - self.reached)


@dataclass(frozen=True)
class LegalBasis:
    """A disclosure required by law: for `purpose`, the listed types (section 5 point 1)."""

    id: str
    purpose: str
    types: frozenset[str]


@dataclass(frozen=True)
class Minor:
    """What a minor's representative does not see, by the law of the minor's state (section 5 point 2).

    `ages`: sensitivity -> the age in whole years from which a minor is treated for it on the minor's own consent.
    """

    birth_date: date
    majority: int
    ages: Mapping[str, int]

    def consented_alone(self, view: ResourceView) -> bool:
        """Whether the minor may have been treated for this alone; a resource without a time counts as now."""
        youngest = [self.ages[code] for code in view.own_sensitivities if code in self.ages]
        if not youngest:
            return False
        end = view.time.end if view.time is not None else None
        return end is None or min(youngest) <= _years(self.birth_date, end.date())


def _years(born: date, day: date) -> int:
    return day.year - born.year - ((day.month, day.day) < (born.month, born.day))


@dataclass(frozen=True)
class Decision:
    """What was decided of one resource, and by what.

    `consent` is the deciding version (`Consent/<id>/_history/<version>`), `path` the provision in it (child indexes
    from the root), `obligations` what must travel with a permit.
    """

    permit: bool
    rule: str
    consent: str | None = None
    path: tuple[int, ...] = ()
    break_glass: bool = False
    reason: str = ""
    obligations: tuple[str, ...] = ()


@dataclass(frozen=True)
class PersonPolicy:
    """Everything that governs what may be released of one person."""

    consents: tuple[Compiled, ...] = ()
    exchange_default: str = Default.DENY
    member_defaults: Mapping[str, str] = field(default_factory=dict)
    part2_members: frozenset[str] = frozenset()
    person_ids: frozenset[str] = frozenset()
    as_of: datetime | None = None
    """When it was read; `restricts` leaves out what is over or not yet begun by then."""
    representatives: frozenset[str] = frozenset()
    """Actors recorded as the person's representatives."""
    legal_bases: tuple[LegalBasis, ...] = ()
    payer_types: frozenset[str] = PAYER_TYPES
    """Types a payer may get: Coverage, ExplanationOfBenefit and the clinical types listed for it."""
    strict_break_glass: bool = False
    """`break_glass: consent-only`: the glass opens only where a consent permits `BTG`."""
    minor: Minor | None = None
    """Where the person is a minor in a state whose ages are configured."""
    unreadable: bool = False
    """The consents could not be read: everything is denied but what break-glass opens."""
    stricter: tuple[PersonPolicy, ...] = ()
    """The same under consents of somebody the person was one with, until it is settled whose they are: all permit."""
    _governing: dict[tuple[str, datetime], tuple[Compiled, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _decided: dict[int, _Decided] = field(default_factory=dict, init=False, repr=False, compare=False)

    def default(self, member_id: str) -> Default:
        """The holding member's default, else the exchange's; one that is not understood denies."""
        return default_of(self.member_defaults.get(member_id, self.exchange_default))

    def governing(self, member_id: str, now: datetime) -> tuple[Compiled, ...]:
        """The consents that count for what a member holds (section 4), remembered for the next resource."""
        key = (member_id, now)
        found = self._governing.get(key)
        if found is None:
            if len(self._governing) > 256:
                self._governing.clear()
            found = self._governing[key] = _governing(self.consents, (EVERYTHING, member_id), now)
        return found

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of the consents that were read, by reference: what a decision was made by."""
        own = {consent.reference: consent.sha256 for policy in self.stricter for consent in policy.consents}
        return own | {consent.reference: consent.sha256 for consent in self.consents}

    @cached_property
    def interest(self) -> Interest:
        """What of a resource, beside its type, holder and labels, may bear on a decision."""
        return _interest(self)

    def decided(self, request: Request) -> dict[_Signature, Decision]:
        """The decisions of one request so far."""
        held = self._decided.get(id(request))
        if held is None or held.request is not request:
            if len(self._decided) > 16:
                self._decided.clear()
            held = self._decided[id(request)] = _Decided(request)
        return held.decisions


@dataclass(frozen=True)
class Interest:
    """The values that a person's policy looks for in resources."""

    codes: frozenset[str] = frozenset()
    profiles: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()
    authors: frozenset[str] = frozenset()
    periods: tuple[Span, ...] = ()
    time: bool = False
    """Whether the very time counts: for a minor's age."""

    @cached_property
    def nothing(self) -> bool:
        return not (self.codes or self.profiles or self.targets or self.authors or self.periods or self.time)

    def of(self, view: ResourceView) -> _Signature:
        """What of the resource bears on a decision: two resources alike in it are decided alike."""
        common = (view.type, view.member_id, view.labels, view.reached, view.labels_known)
        if self.nothing:
            return common
        return (
            common,
            self.codes and self.codes & view.code_keys,
            self.profiles and self.profiles & view.profiles,
            self.targets and (self.targets & view.references, view.reference in self.targets and view.reference),
            self.authors and self.authors & view.authors,
            view.time and tuple([held.overlaps(view.time) for held in self.periods]),
            self.time and view.time,
        )


_Signature = tuple[object, ...]


@dataclass(slots=True)
class _Decided:
    """What was decided of one request's resources."""

    request: Request
    decisions: dict[_Signature, Decision] = field(default_factory=dict)


def _interest(policy: PersonPolicy) -> Interest:
    consents = [consent for one in (policy, *policy.stricter) for consent in one.consents]
    nodes = [node for consent in consents if consent.root is not None for node in _nodes(consent.root)]
    data = [node.data for node in nodes if node.data is not None]
    empty = frozenset[str]()
    return Interest(
        codes=empty.union(*(d.codes.known for d in data if d.codes)),
        profiles=empty.union(*(d.classes.known for d in data if d.classes)),
        targets=empty.union(*(d.instances | d.related for d in data)),
        authors=empty.union(*(d.authored_by for d in data), *(n.actors.authors for n in nodes if n.actors)),
        periods=tuple({d.period: None for d in data if d.period is not None}),
        time=policy.minor is not None,
    )


def actor_key(actor: str) -> str:
    """How an actor is compared: emails without regard to case, all else as it is."""
    return actor.lower() if "@" in actor else actor


def default_of(text: str) -> Default:
    """The default that a setting names; anything not understood is `deny`."""
    return _DEFAULTS.get(text, Default.DENY)


def default_confidentiality(labels: Iterable[tuple[str, str]]) -> str:
    """The confidentiality of a resource whose source gave none (section 2)."""
    carried = {code for system, code in labels if system == ACT_CODE and code in SENSITIVITIES}
    if PSYCHOTHERAPY_NOTES in carried:
        return "V"
    return "R" if carried else "N"


def decide(policy: PersonPolicy, request: Request, view: ResourceView) -> Decision:
    """Whether a resource may be released: every purpose asked for must be permitted by itself."""
    decided = policy.decided(request)
    signature = policy.interest.of(view)
    found = decided.get(signature)
    if found is None:
        found = decided[signature] = _strictest(policy, request, view)
    return found


def _strictest(policy: PersonPolicy, request: Request, view: ResourceView) -> Decision:
    own = _decide_anew(policy, request, view)
    for other in policy.stricter if own.permit else ():
        decision = _decide_anew(other, request, view)
        if not decision.permit:
            return replace(decision, rule="unsettled", reason=f"whose consent it is, is not settled: {decision.reason}")
    return own


def _decide_anew(policy: PersonPolicy, request: Request, view: ResourceView) -> Decision:
    permits = []
    for group in request.groups:
        decision = _decide(policy, request, group, view)
        if not decision.permit:
            return decision
        permits.append(decision)
    if not permits:
        return Decision(False, "purpose", reason="no purpose of use")
    return next((d for d in permits if d.break_glass), permits[0])


def could_release(policy: PersonPolicy, request: Request, member_id: str) -> bool:
    """Whether anything that a member holds might be released: False only when `decide` would deny whatever it is."""
    return bool(request.groups) and all(
        _could(one, request, group, member_id) for one in (policy, *policy.stricter) for group in request.groups
    )


def restricts(policy: PersonPolicy, members: Collection[str] | None = None) -> bool:
    """Whether a restricting consent or an opt-in default governs this person, whatever is asked.

    `members`: those whose defaults count; None for every member of the exchange, which tells nothing of where the
    person has been.
    """
    defaults = [policy.exchange_default]
    defaults += [v for member, v in policy.member_defaults.items() if members is None or member in members]
    if any(default_of(d) in (Default.DENY, Default.BREAK_GLASS_ONLY) for d in defaults):
        return True
    return any(
        _may_deny(consent, policy.as_of) for one in (policy, *policy.stricter) for consent in _all_governing(one)
    )


def could_withhold(policy: PersonPolicy, request: Request, member_id: str) -> bool:
    """Whether anything that a member holds might be denied by consent, default or role.

    False only when what stands in one resource may tell of all the others: then narrative, attachments and names of
    other resources may leave with it. What always needs a permit by name is told by the source itself, resource by
    resource, and does not count here (psychotherapy notes are kept apart from the record by law, 45 CFR 164.501).
    """
    return not request.groups or any(
        _could_withhold(one, request, group, member_id)
        for one in (policy, *policy.stricter)
        for group in request.groups
    )


def reads_labels(policy: PersonPolicy, request: Request, member_id: str) -> bool:
    """Whether a consent that governs what the member holds goes by labels, for this request.

    Then a label that another resource passes on may decide, and the member's whole chart has to be read.
    """
    return any(
        _reads_labels(consent.root, request, group, ResourceView(_ANY_RESOURCE, _ANY_RESOURCE, member_id))
        for one in (policy, *policy.stricter)
        for consent in one.governing(member_id, request.now)
        if consent.root is not None
        for group in request.groups
    )


def labels_denied(policy: PersonPolicy, request: Request, member_id: str) -> frozenset[str]:
    """The sensitivities that denials name which may apply to this request: what an answer would be short of."""
    unknown = ResourceView(_ANY_RESOURCE, _ANY_RESOURCE, member_id)
    found: set[str] = set()
    for consent in policy.governing(member_id, request.now):
        for node in _nodes(consent.root) if consent.root is not None else ():
            denies = node.effect is Effect.DENY and node.data is not None and node.data.labels is not None
            if denies and any(
                _possible_context(node, request, group, unknown) is not False for group in request.groups
            ):
                found |= node.data.labels.known if node.data and node.data.labels else frozenset()
    return frozenset(found)


# -- section 3: one consent


@dataclass(frozen=True, slots=True)
class Result:
    """What one consent says of one resource. `effect` None: not applicable.

    `emergency`: of a denial, that a node which decided it names `BTG` or `ETREAT`; of a permit, that all do.
    `named`: the label keys named by the permitting nodes.
    """

    effect: Effect | None = None
    path: tuple[int, ...] = ()
    emergency: bool = False
    named: frozenset[str] = frozenset()


NOT_APPLICABLE = Result()


def evaluate(consent: Compiled, request: Request, group: PurposeGroup, view: ResourceView) -> Result:
    """Section 3 for one consent, which has been found to count (section 4)."""
    root = consent.root
    if root is None or (consent.scope == "research" and "HRESCH" not in group.up):
        return NOT_APPLICABLE
    if root.period is not None and not root.period.covers(request.now):
        return NOT_APPLICABLE
    result = _result(_deepest(root, request, group, view)) or _at_root(root, request, group, view)
    if result.effect is Effect.PERMIT and not consent.verified:
        return NOT_APPLICABLE
    return result


def _at_root(root: Node, request: Request, group: PurposeGroup, view: ResourceView) -> Result:
    if not _context(root, request, group, view):
        return NOT_APPLICABLE
    if _data(root, view):
        return _of(root)
    if root.effect is Effect.PERMIT:  # nothing but this
        return Result(Effect.DENY, root.path, root.names_emergency)
    return NOT_APPLICABLE


def _deepest(node: Node, request: Request, group: PurposeGroup, view: ResourceView) -> list[Node]:
    """The deepest nodes that apply below `node`. Only children that apply are entered: `apply` asks it of the path."""
    deciding: list[Node] = []
    for child in node.children:
        if _context(child, request, group, view) and _data(child, view):
            deciding.extend(_deepest(child, request, group, view) or [child])
    return deciding


def _result(deciding: list[Node]) -> Result | None:
    """Any deny denies, else any permit permits."""
    denying = [node for node in deciding if node.effect is Effect.DENY]
    if denying:
        return Result(Effect.DENY, denying[0].path, any(node.names_emergency for node in denying))
    if not deciding:
        return None
    named = frozenset(name for node in deciding for name in _named(node))
    return Result(Effect.PERMIT, deciding[0].path, all(node.names_emergency for node in deciding), named)


def _of(node: Node) -> Result:
    named = _named(node) if node.effect is Effect.PERMIT else frozenset()
    return Result(node.effect, node.path, node.names_emergency, named)


def _named(node: Node) -> frozenset[str]:
    return node.data.labels.known if node.data is not None and node.data.labels is not None else frozenset()


def _context(node: Node, request: Request, group: PurposeGroup, view: ResourceView) -> bool:
    denies = node.effect is Effect.DENY
    if node.opaque and not denies:
        return False
    if node.purposes is not None and not _or(node.purposes.match(group.up), denies):
        return False
    if node.states_action and not _or(node.action, denies):
        return False
    if node.states_period and not _or(_now(node.period, request), denies):
        return False
    return node.actors is None or _or(node.actors.match(request, view), denies)


def _now(period: Span | None, request: Request) -> Tri:
    return None if period is None else period.covers(request.now)


def _data(node: Node, view: ResourceView) -> bool:
    return node.data is None or _or(node.data.match(view), node.effect is Effect.DENY)


def _or(match: Tri, unknown: bool) -> bool:
    return unknown if match is None else match


# -- section 4: all consents together


def _governing(consents: Iterable[Compiled], custodians: Collection[str], now: datetime) -> tuple[Compiled, ...]:
    """The newest of each group. One that only unverified consents are newer than counts as unverified itself.

    Its denials still count, since to take them back would be to permit, and its permits do not, since it is not the
    newest: whichever way the two sentences of section 4 are read together, nothing is released that one withholds.
    """
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for consent in consents:
        if consent.active and consent.scope is not None and not _in_future(consent, now):
            for custodian in consent.custodians.intersection(custodians):
                groups.setdefault((custodian, consent.scope), []).append(consent)
    counting: dict[str, Compiled] = {}
    for group in groups.values():
        for consent in group:
            newer = [other for other in group if _certainly_newer(other, consent)]
            if any(other.verified for other in newer):
                continue
            if not newer:
                counting[consent.reference] = consent
            else:
                counting.setdefault(consent.reference, replace(consent, verified=False))
    return tuple(counting.values())


def _in_future(consent: Compiled, now: datetime) -> bool:
    start = consent.dated.start if consent.dated else None
    return start is not None and start > now


def _certainly_newer(other: Compiled, consent: Compiled) -> bool:
    """Dates may be partial: a consent gives way only to one that is certainly newer, else both count."""
    start = other.dated.start if other.dated else None
    end = consent.dated.end if consent.dated else None
    return start is not None and (consent.dated is None or (end is not None and start > end))


def _all_governing(policy: PersonPolicy) -> tuple[Compiled, ...]:
    if policy.as_of is None:
        return tuple(consent for consent in policy.consents if consent.active and consent.scope is not None)
    custodians = {custodian for consent in policy.consents for custodian in consent.custodians}
    return _governing(policy.consents, custodians, policy.as_of)


def _may_deny(consent: Compiled, as_of: datetime | None) -> bool:
    root = consent.root
    if root is None or (as_of is not None and root.period and root.period.end and root.period.end < as_of):
        return False
    nothing_but_this = root.effect is Effect.PERMIT and root.data is not None and not root.opaque
    return nothing_but_this or any(node.effect is Effect.DENY for node in _nodes(root))


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _nodes(child)


# -- section 5: order of things, first that decides


def _decide(policy: PersonPolicy, request: Request, group: PurposeGroup, view: ResourceView) -> Decision:
    return (
        _required_by_law(policy, group, view)
        or _patient(policy, request, group, view)
        or _gate(policy, request, group)
        or _payer(policy, request, group, view)
        or _by_consent(policy, request, group, view)
    )


def _required_by_law(policy: PersonPolicy, group: PurposeGroup, view: ResourceView) -> Decision | None:
    for basis in policy.legal_bases:
        if basis.purpose in group.up and view.type in basis.types:
            return Decision(True, "legal-basis", reason=f"required by law: {basis.id}")
    return None


def _patient(policy: PersonPolicy, request: Request, group: PurposeGroup, view: ResourceView) -> Decision | None:
    """The person, or a recorded representative; psychotherapy notes go on to the rule that asks for a permit."""
    if not _asks_for_own(policy, request, group):
        return None
    if not _is_patient(policy, request) and (
        MINOR_ALONE in view.own_sensitivities or (policy.minor is not None and policy.minor.consented_alone(view))
    ):
        return Decision(False, "representative", reason="treatment a minor was lawfully given alone")
    if PSYCHOTHERAPY_NOTES in view.own_sensitivities:
        return None
    return Decision(True, "patient", reason="asked for by the patient or a recorded representative")


def _asks_for_own(policy: PersonPolicy, request: Request, group: PurposeGroup) -> bool:
    return "PATRQT" in group.up and (
        _is_patient(policy, request) or not policy.representatives.isdisjoint(request.known_actors)
    )


def _is_patient(policy: PersonPolicy, request: Request) -> bool:
    return any(f"Patient/{person_id}" in request.known_actors for person_id in policy.person_ids)


def _gate(policy: PersonPolicy, request: Request, group: PurposeGroup) -> Decision | None:
    """Denials that depend on the request alone."""
    if request.role not in _CHART_ROLES:
        return Decision(False, "role", reason=f"the role {request.role.value} reads no charts")
    if request.role is Role.PAYER and "HPAYMT" not in group.up:
        return Decision(False, "role", reason="a payer asks for payment only")
    if request.role is Role.PATIENT and not _asks_for_own(policy, request, group):
        return Decision(False, "role", reason="not this person, nor a recorded representative")
    return None


def _payer(policy: PersonPolicy, request: Request, group: PurposeGroup, view: ResourceView) -> Decision | None:
    if view.self_pay and ("HPAYMT" in group.up or request.role is Role.PAYER):
        return Decision(False, "self-pay", reason="paid for by the patient and restricted (45 CFR 164.522)")
    if request.role is Role.PAYER and view.type not in policy.payer_types:
        return Decision(False, "payer", reason=f"a payer gets no {view.type}")
    return None


def _by_consent(policy: PersonPolicy, request: Request, group: PurposeGroup, view: ResourceView) -> Decision:
    """Points 4 to 7: explicit consent, consents, defaults, and what break-glass opens of their denials."""
    if policy.unreadable:
        return _without_consents(policy, request, group, view)
    results = [(c, evaluate(c, request, group, view)) for c in policy.governing(view.member_id, request.now)]
    denials = [(c, r) for c, r in results if r.effect is Effect.DENY]
    permits = [(c, r) for c, r in results if r.effect is Effect.PERMIT]
    notes = PSYCHOTHERAPY_NOTES in view.own_sensitivities
    if notes and not any(PSYCHOTHERAPY_NOTES in result.named for _, result in permits):
        return Decision(False, "psychotherapy-notes", reason="no consent permits psychotherapy notes by name")
    part2 = _under_part2(policy, view)
    permits.sort(key=lambda permit: notes and PSYCHOTHERAPY_NOTES not in permit[1].named)
    covering = [(c, r) for c, r in permits if not part2 or _covers_part2(policy, c, r, view)]
    closed = notes or any(result.emergency for _, result in denials)
    if not covering and part2:
        denial = Decision(False, "part2", reason="no consent covers 42 CFR Part 2 records")
    elif denials:
        consent, result = denials[0]
        denial = Decision(False, "consent", consent.reference, result.path, reason="denied by consent")
    elif covering:
        return _permitted(covering, part2, group, request)
    else:
        return _by_default(policy, request, group, view)
    return denial if closed else _break_glass(policy, request, group, denial, part2)


def _without_consents(policy: PersonPolicy, request: Request, group: PurposeGroup, view: ResourceView) -> Decision:
    """Section 1: the consent store cannot be reached."""
    denial = Decision(False, "consent-store", reason="the consents could not be read")
    if PSYCHOTHERAPY_NOTES in view.own_sensitivities:
        return denial
    return _break_glass(policy, request, group, denial, _under_part2(policy, view))


def _under_part2(policy: PersonPolicy, view: ResourceView) -> bool:
    """42 CFR Part 2 follows provenance: the member, or the source's own label."""
    return view.member_id in policy.part2_members or PART2_LABEL in view.own_sensitivities


def _covers_part2(policy: PersonPolicy, consent: Compiled, result: Result, view: ResourceView) -> bool:
    """It says so, its permit names substance use, or it governs by name the Part 2 member that holds the resource."""
    return (
        consent.covers_part2
        or not PART2_NAMES.isdisjoint(result.named)
        or (view.member_id in policy.part2_members and view.member_id in consent.custodians)
    )


def _permitted(covering: list[tuple[Compiled, Result]], part2: bool, group: PurposeGroup, request: Request) -> Decision:
    consent, result = covering[0]
    opened = request.break_glass and group.broken and all(r.emergency for _, r in covering)
    obligations = ("42-cfr-2.32",) if part2 else ()
    return Decision(True, "consent", consent.reference, result.path, opened, "permitted by consent", obligations)


def _by_default(policy: PersonPolicy, request: Request, group: PurposeGroup, view: ResourceView) -> Decision:
    default = policy.default(view.member_id)
    whose = "member" if view.member_id in policy.member_defaults else "exchange"
    reason = f"{whose} default: {default.value}"
    if not _DEFAULT_PURPOSES[default].isdisjoint(group.up):
        return Decision(True, "default", reason=reason)
    if default is Default.BREAK_GLASS_ONLY and _glass_is_broken(request, group):
        return Decision(True, "default", break_glass=True, reason=reason)
    return _break_glass(policy, request, group, Decision(False, "default", reason=reason), part2=False)


def _glass_is_broken(request: Request, group: PurposeGroup) -> bool:
    return request.break_glass and group.broken and request.role in _BREAK_GLASS_ROLES


def _break_glass(
    policy: PersonPolicy, request: Request, group: PurposeGroup, denial: Decision, part2: bool
) -> Decision:
    """Point 7: a denial of points 4 (Part 2), 5 or 6 gives way; the caller has ruled out what never does."""
    if policy.strict_break_glass or not _glass_is_broken(request, group):
        return denial
    obligations = ("42-cfr-2.32", "42-cfr-2.51") if part2 else ()
    reason = f"break-glass over: {denial.reason}"
    return Decision(True, "break-glass", denial.consent, denial.path, True, reason, obligations)


def _group(purpose: str, broken: bool) -> PurposeGroup:
    up = purpose_and_above(purpose)
    if broken and "TREAT" in up:
        return PurposeGroup(frozenset({purpose, "BTG"}), up | {"BTG"})
    return PurposeGroup(frozenset({purpose}), up)


# -- before anything is asked: what could come of a member's holdings, whatever they are

_PERMIT, _DENY, _CLOSED, _NONE = "permit", "deny", "closed", "none"
_Possible = frozenset[str]
_ANY_RESOURCE = "\0"


def _could(policy: PersonPolicy, request: Request, group: PurposeGroup, member_id: str) -> bool:
    if any(basis.purpose in group.up for basis in policy.legal_bases) or _asks_for_own(policy, request, group):
        return True
    if _gate(policy, request, group) is not None:
        return False
    possible = [_possible(c, request, group, member_id) for c in policy.governing(member_id, request.now)]
    if _glass_is_broken(request, group) and not policy.strict_break_glass:
        return all(outcomes - {_CLOSED} for outcomes in possible)
    if policy.unreadable:
        return False
    if not all(outcomes & {_PERMIT, _NONE} for outcomes in possible):
        return False
    if member_id in policy.part2_members:
        consents = policy.governing(member_id, request.now)
        return any(_PERMIT in p and _may_cover_part2(c, member_id) for c, p in zip(consents, possible, strict=True))
    if any(_PERMIT in outcomes for outcomes in possible):
        return True
    default = policy.default(member_id)
    return not _DEFAULT_PURPOSES[default].isdisjoint(group.up) or (
        default is Default.BREAK_GLASS_ONLY and _glass_is_broken(request, group)
    )


def _may_cover_part2(consent: Compiled, member_id: str) -> bool:
    """Whether a permit of this consent may cover what a Part 2 member holds (`_covers_part2`)."""
    nodes = _nodes(consent.root) if consent.root is not None else ()
    return (
        consent.covers_part2
        or member_id in consent.custodians
        or any(not PART2_NAMES.isdisjoint(_named(node)) for node in nodes)
    )


def _could_withhold(policy: PersonPolicy, request: Request, group: PurposeGroup, member_id: str) -> bool:
    if _asks_for_own(policy, request, group):
        # Psychotherapy notes go on to the gates, which may refuse a patient in another role.
        return not _is_patient(policy, request) or _gate(policy, request, group) is not None
    if policy.unreadable or request.role is Role.PAYER or _gate(policy, request, group) is not None:
        return True
    possible = [_possible(c, request, group, member_id) for c in policy.governing(member_id, request.now)]
    if _glass_is_broken(request, group) and not policy.strict_break_glass:
        return any(_CLOSED in outcomes for outcomes in possible)
    if any(outcomes & {_DENY, _CLOSED} for outcomes in possible):
        return True
    if member_id in policy.part2_members:
        consents = policy.governing(member_id, request.now)
        return not any(
            outcomes == {_PERMIT} and (consent.covers_part2 or member_id in consent.custodians)
            for consent, outcomes in zip(consents, possible, strict=True)
        )
    if any(outcomes == {_PERMIT} for outcomes in possible):
        return False
    return _DEFAULT_PURPOSES[policy.default(member_id)].isdisjoint(group.up)


def _reads_labels(node: Node, request: Request, group: PurposeGroup, view: ResourceView) -> bool:
    """Whether a node that may be reached states a label. Children are entered whatever their parent's data say."""
    if (
        node.data is not None
        and node.data.labels is not None
        and _possible_context(node, request, group, view) is not False
    ):
        return True
    return any(
        _reads_labels(child, request, group, view)
        for child in node.children
        if _possible_context(child, request, group, view) is not False
    )


def _possible(consent: Compiled, request: Request, group: PurposeGroup, member_id: str) -> _Possible:
    """Every outcome that `evaluate` may have for a resource of this member, and perhaps more."""
    root = consent.root
    if root is None or (consent.scope == "research" and "HRESCH" not in group.up):
        return frozenset({_NONE})
    if root.period is not None and not root.period.covers(request.now):
        return frozenset({_NONE})
    unknown = ResourceView(_ANY_RESOURCE, _ANY_RESOURCE, member_id)
    outcomes = _possibly_deepest(root, request, group, unknown)
    if _NONE in outcomes:
        outcomes = (outcomes - {_NONE}) | _possibly_at_root(root, request, group, unknown)
    if not consent.verified and _PERMIT in outcomes:
        outcomes = (outcomes - {_PERMIT}) | {_NONE}
    return outcomes


def _possibly_at_root(root: Node, request: Request, group: PurposeGroup, view: ResourceView) -> _Possible:
    context = _possible_context(root, request, group, view)
    outcomes: set[str] = set()
    if context is not True:
        outcomes.add(_NONE)
    if context is not False:
        outcomes.add(_kind(root, root.effect))
        if root.data is not None:
            outcomes.add(_kind(root, Effect.DENY) if root.effect is Effect.PERMIT else _NONE)
    return frozenset(outcomes)


def _possibly_deepest(node: Node, request: Request, group: PurposeGroup, view: ResourceView) -> _Possible:
    found = [_possibly_of(child, request, group, view) for child in node.children]
    outcomes = {kind for kind in (_DENY, _CLOSED) if any(kind in outcome for outcome in found)}
    if all(outcome & {_PERMIT, _NONE} for outcome in found):
        outcomes.update({_PERMIT} if any(_PERMIT in outcome for outcome in found) else ())
    if all(_NONE in outcome for outcome in found):
        outcomes.add(_NONE)
    return frozenset(outcomes)


def _possibly_of(child: Node, request: Request, group: PurposeGroup, view: ResourceView) -> _Possible:
    context = _possible_context(child, request, group, view)
    if context is False:
        return frozenset({_NONE})
    below = _possibly_deepest(child, request, group, view)
    outcomes = set(below - {_NONE})
    if _NONE in below:
        outcomes.add(_kind(child, child.effect))
    if context is None or child.data is not None:
        outcomes.add(_NONE)
    return frozenset(outcomes)


def _possible_context(node: Node, request: Request, group: PurposeGroup, view: ResourceView) -> Tri:
    """`_context` for a resource of which only the holder is known: None where its authors would tell."""
    if _context(node, request, group, view):
        return True
    return None if node.actors is not None and node.actors.authors else False


def _kind(node: Node, effect: Effect) -> str:
    if effect is Effect.PERMIT:
        return _PERMIT
    return _CLOSED if node.names_emergency else _DENY
