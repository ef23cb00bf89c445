"""Rules that look at behaviour: who opened whose records without a reason, and how that differs from the usual.

A `Watch` is fed day by day and keeps what it needs of the last weeks in memory: pure but for asking the `Community`.
Only accesses for treatment are judged (others have no relation to an encounter). Unexplained is who has no relation to
the organization at that time (`relations.explain`) and whom no few colleagues opened in the same week: care is work of
several, and a registration that came late or never leaves them all without one. Each alert is one sentence with the
figures behind it; `Thresholds` are settings. `bench/bench_review.py` measures precision and recall on a made-up year.

| rule | fires for |
|---|---|
| same-address | somebody of the user's own address, or the user, whatever the organization knows |
| same-name | somebody of the user's own, rare family name, unless explained |
| colleague | somebody who works at the user's organization, unless explained or seen by others too |
| vip | somebody with a VIP flag, unless explained |
| volume | a day with far more people than the own median and than the colleagues' highest days, many unexplained |
| off-hours | several unexplained people in the night, by somebody who does not work at night |
| search-only | many searches in a day that opened next to nothing |
| sequence | many unexplained people within minutes |
| repeated | one unexplained person on several days |
| unrelated | a far larger share of people without encounter or registration in a month than colleagues have |
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from statistics import median
from zoneinfo import ZoneInfo

from hie.audit.relations import Community, Contact, Explanation, PersonFacts, UserFacts, explain
from hie.audit.thresholds import Thresholds
from hie.audit.words import count

Actor = tuple[str, str]
"""Organization and user."""
_LOOSE = "without an encounter, a registration or a colleague on the same patient"


class Rule(StrEnum):
    """What an item of the review queue is about."""

    BREAK_GLASS = "break-glass"
    SAME_ADDRESS = "same-address"
    SAME_NAME = "same-name"
    COLLEAGUE = "colleague"
    VIP = "vip"
    VOLUME = "volume"
    OFF_HOURS = "off-hours"
    SEARCH_ONLY = "search-only"
    SEQUENCE = "sequence"
    REPEATED = "repeated"
    UNRELATED = "unrelated"


@dataclass(frozen=True, slots=True)
class Touch:
    """One access for treatment, as the search columns have it: records opened, or demographics shown in a search."""

    index: int
    at: datetime
    opened: bool
    organization: str
    actor: str
    person_id: str
    request_id: str


@dataclass(frozen=True)
class Alert:
    """Something to look at. `key` is the same when the same thing is found again."""

    rule: Rule
    key: str
    organization: str
    actor: str
    at: datetime
    person_ids: tuple[str, ...]
    entries: tuple[int, ...]
    sentence: str


@dataclass
class _Tally:
    """One day of one actor."""

    day: date
    people: int = 0
    night: int = 0
    searches: int = 0
    loose: dict[str, list[Touch]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Day:
    """One actor's day with everything that the rules ask for."""

    actor: Actor
    day: date
    opened: Mapping[str, list[Touch]]
    searches: Mapping[str, list[Touch]]
    explained: Mapping[str, Explanation | None]
    history: Sequence[_Tally]
    user: UserFacts | None
    facts: Mapping[str, PersonFacts]
    shared: Collection[str]
    """People whom a few colleagues opened in these days too: care is work of several, a private interest is not."""

    @property
    def loose(self) -> dict[str, list[Touch]]:
        """People without a strong explanation, and of interest to nobody else at the organization."""
        return {p: touches for p, touches in self.opened.items() if not self._strong(p) and p not in self.shared}

    def _strong(self, person_id: str) -> bool:
        explanation = self.explained.get(person_id)
        return explanation is not None and explanation.strong


class Watch:
    """Looks at one day after another, in order."""

    def __init__(self, community: Community, thresholds: Thresholds | None = None) -> None:
        self._community = community
        self._limits = thresholds or Thresholds()
        self._zone = ZoneInfo(self._limits.time_zone)
        self._history: defaultdict[Actor, deque[_Tally]] = defaultdict(deque)
        self._openers: defaultdict[tuple[str, str], dict[str, date]] = defaultdict(dict)
        """By person and organization, who opened the records and when last."""

    def day_of(self, at: datetime) -> date:
        """The day of an instant, in the time zone of the settings."""
        return at.astimezone(self._zone).date()

    def start_of(self, at: datetime) -> datetime:
        """The instant at which the day of an instant begins."""
        return datetime.combine(self.day_of(at), time(), self._zone)

    def days(self, touches: Iterable[Touch]) -> Iterator[list[Alert]]:
        """The alerts of each day of `touches`, which must be in order of time."""
        today: list[Touch] = []
        for touch in touches:
            if today and self.day_of(touch.at) != self.day_of(today[0].at):
                yield self.day(today)
                today = []
            today.append(touch)
        if today:
            yield self.day(today)

    def day(self, touches: Sequence[Touch]) -> list[Alert]:
        """The alerts of one day, which must be later than those before."""
        days = self._prepared(touches)
        self._forget(self.day_of(touches[0].at))
        high = self._high_days()
        found: list[Alert] = []
        for day in days:
            found += _about_people(day, self._limits, self._community)
            found += [alert for alert in self._about_behaviour(day, high) if alert]
        for day in days:
            self._history[day.actor].append(self._tally(day))
        for day in days:
            found += self._repeated(day)
            if alert := self._unrelated(day):
                found.append(alert)
        return found

    # -- the day

    def _prepared(self, touches: Sequence[Touch]) -> list[_Day]:
        by_actor: defaultdict[Actor, list[Touch]] = defaultdict(list)
        for touch in touches:
            by_actor[touch.organization, touch.actor].append(touch)
        contacts: defaultdict[tuple[str, str], list[Contact]] = defaultdict(list)
        for contact in self._community.contacts({(t.person_id, t.organization) for t in touches if t.opened}):
            contacts[contact.person_id, contact.organization].append(contact)
        people = self._community.people({t.person_id for t in touches if t.opened})
        users = self._community.users(list(by_actor))
        self._note_openers(touches)
        return [self._one(actor, own, contacts, users.get(actor), people) for actor, own in sorted(by_actor.items())]

    def _one(
        self,
        actor: Actor,
        touches: Sequence[Touch],
        contacts: Mapping[tuple[str, str], list[Contact]],
        user: UserFacts | None,
        people: Mapping[str, PersonFacts],
    ) -> _Day:
        opened, searches = _grouped(touches)
        explained = {
            person_id: explain(
                own[0].at,
                actor[1],
                contacts.get((person_id, actor[0]), ()),
                contact_days=self._limits.contact_days,
                registration_days=self._limits.registration_days,
            )
            for person_id, own in opened.items()
        }
        history = self._history.get(actor, ())
        shared = frozenset(person_id for person_id in opened if self._is_shared(person_id, actor[0]))
        return _Day(actor, self.day_of(touches[0].at), opened, searches, explained, history, user, people, shared)

    def _note_openers(self, touches: Sequence[Touch]) -> None:
        today = self.day_of(touches[0].at)
        oldest = today - timedelta(days=self._limits.team_days)
        for pair, openers in list(self._openers.items()):
            kept = {actor: day for actor, day in openers.items() if day >= oldest}
            if kept:
                self._openers[pair] = kept
            else:
                del self._openers[pair]
        for touch in touches:
            if touch.opened:
                self._openers[touch.person_id, touch.organization][touch.actor] = today

    def _is_shared(self, person_id: str, organization: str) -> bool:
        """By a few, for what everybody opens without a reason is the talk of the house."""
        return 1 < len(self._openers.get((person_id, organization), ())) <= self._limits.team_most

    def _tally(self, day: _Day) -> _Tally:
        night = sum(any(self._at_night(t) for t in touches) for touches in day.opened.values())
        return _Tally(day.day, len(day.opened), night, len(day.searches), day.loose)

    def _at_night(self, touch: Touch) -> bool:
        hour, start, end = touch.at.astimezone(self._zone).hour, self._limits.night_start, self._limits.night_end
        return hour >= start or hour < end if start > end else start <= hour < end

    def _forget(self, today: date) -> None:
        oldest = today - timedelta(days=self._limits.history_days)
        for actor, tallies in list(self._history.items()):
            while tallies and tallies[0].day < oldest:
                tallies.popleft()
            if not tallies:
                del self._history[actor]

    def _high_days(self) -> dict[str, int]:
        """Of each organization, the number of people that all but one in a hundred of its users' days stay within."""
        counts: defaultdict[str, list[int]] = defaultdict(list)
        for (organization, _), tallies in self._history.items():
            counts[organization] += [tally.people for tally in tallies]
        return {organization: sorted(days)[int(0.99 * (len(days) - 1))] for organization, days in counts.items()}

    # -- behaviour

    def _about_behaviour(self, day: _Day, high: Mapping[str, int]) -> Iterator[Alert | None]:
        yield self._volume(day, high.get(day.actor[0], 0))
        yield self._off_hours(day)
        yield self._search_only(day)
        yield self._sequence(day)

    def _known(self, day: _Day) -> bool:
        return sum(tally.people + tally.searches > 0 for tally in day.history) >= self._limits.history_min_days

    def _volume(self, day: _Day, peers: int) -> Alert | None:
        number, loose = len(day.opened), day.loose
        usual = median([t.people for t in day.history if t.people] or [0])
        beyond = number >= self._limits.volume_min and number > peers and peers > 0
        if self._known(day):
            beyond = beyond and number > self._limits.volume_factor * usual
        if not beyond or len(loose) < self._limits.volume_loose_share * number:
            return None
        return _alert(
            Rule.VOLUME,
            day,
            day.opened,
            f"Opened the records of {count(number, 'person', 'people')} on {_date(day.day)}, {len(loose)} of them "
            f"{_LOOSE}; the own median is {usual:g} a day, and 99 of 100 days of "
            f"colleagues stay within {peers}.",
        )

    def _off_hours(self, day: _Day) -> Alert | None:
        tonight = self._nightly(day.loose)
        if not tonight:
            return None
        night = self._evening_before(day) | tonight
        people = sum(tally.people for tally in day.history)
        share = sum(tally.night for tally in day.history) / people if people else 0.0
        if len(night) < self._limits.off_hours_min or not self._known(day) or share > self._limits.off_hours_share:
            return None
        return _alert(
            Rule.OFF_HOURS,
            day,
            night,
            f"Opened the records of {count(len(night), 'person', 'people')} {_LOOSE} "
            f"between {self._limits.night_start:02}:00 and {self._limits.night_end:02}:00 on {_date(day.day)}; "
            f"{share:.0%} of the own accesses in the last {self._limits.history_days} days fell in those hours.",
        )

    def _nightly(self, loose: Mapping[str, list[Touch]]) -> dict[str, list[Touch]]:
        kept = {person_id: [t for t in touches if self._at_night(t)] for person_id, touches in loose.items()}
        return {person_id: touches for person_id, touches in kept.items() if touches}

    def _evening_before(self, day: _Day) -> dict[str, list[Touch]]:
        """One night has two dates: what yesterday's evening had, where today is the morning after."""
        yesterday = day.history[-1] if day.history else None
        if yesterday is None or yesterday.day != day.day - timedelta(days=1):
            return {}
        first = min(touch.at for touches in day.opened.values() for touch in touches)
        if first.astimezone(self._zone).hour >= self._limits.night_end:
            return {}
        evening = {
            person_id: [t for t in touches if t.at.astimezone(self._zone).hour >= self._limits.night_start]
            for person_id, touches in yesterday.loose.items()
        }
        return {person_id: touches for person_id, touches in evening.items() if touches}

    def _search_only(self, day: _Day) -> Alert | None:
        searches, opened = len(day.searches), len(day.opened)
        days = [tally for tally in day.history if tally.searches]
        if len(days) < self._limits.history_min_days or searches < self._limits.search_min:
            return None
        usual = min(sum(tally.people for tally in days) / sum(tally.searches for tally in days), 1.0)
        if opened > self._limits.search_opened_share * searches or usual < 2 * self._limits.search_opened_share:
            return None  # not today, or always so: a clerk's work is searching
        shown: defaultdict[str, list[Touch]] = defaultdict(list)
        for touches in day.searches.values():
            for touch in touches:
                shown[touch.person_id].append(touch)
        return _alert(
            Rule.SEARCH_ONLY,
            day,
            shown,
            f"Searched {searches} times on {_date(day.day)}, which showed {count(len(shown), 'person', 'people')}, "
            f"and opened the records of {opened}; usually {usual:.0%} of the own searches lead to a record.",
        )

    def _sequence(self, day: _Day) -> Alert | None:
        firsts = sorted((touches[0] for touches in day.loose.values()), key=lambda touch: touch.at)
        times = [touch.at for touch in firsts]
        window = timedelta(minutes=self._limits.sequence_minutes)
        best: Sequence[Touch] = ()
        for last, touch in enumerate(firsts):
            run = firsts[bisect_left(times, touch.at - window) : last + 1]
            best = run if len(run) > len(best) else best
        if len(best) < self._limits.sequence_min:
            return None
        minutes = (best[-1].at - best[0].at) / timedelta(minutes=1)
        return _alert(
            Rule.SEQUENCE,
            day,
            {touch.person_id: [touch] for touch in best},
            f"Opened the records of {count(len(best), 'person', 'people')} {_LOOSE} "
            f"within {minutes:.0f} minutes on {_date(day.day)}.",
        )

    def _repeated(self, day: _Day) -> Iterator[Alert]:
        """After the day is in the history: one person on several days, never with a reason."""
        for person_id in day.loose:
            before = [t.loose[person_id] for t in self._history[day.actor] if person_id in t.loose]
            if len(before) >= self._limits.repeated_days:
                touches = [touch for own in before for touch in own]
                yield _alert(
                    Rule.REPEATED,
                    day,
                    {person_id: touches},
                    f"Opened the records of one person on {len(before)} days since {_date(touches[0].at.date())}, each "
                    f"time {_LOOSE}.",
                    f"{person_id}:{day.day:%Y-%m}",
                )

    def _loose_share(self, actor: Actor, since: date) -> float:
        """Of the people whom the colleagues opened, those without a reason."""
        tallies = [
            tally
            for other, tallies in self._history.items()
            if other[0] == actor[0] and other != actor
            for tally in tallies
            if tally.day > since
        ]
        opened = sum(tally.people for tally in tallies)
        return sum(len(tally.loose) for tally in tallies) / opened if opened else 0.0

    def _unrelated(self, day: _Day) -> Alert | None:
        """After the day is in the history: the last weeks together, once a calendar month."""
        since = day.day - timedelta(days=self._limits.unrelated_days)
        own = _loose_since(self._history[day.actor], since)
        if len(own) < self._limits.unrelated_min or not day.loose:
            return None
        share = self._loose_share(day.actor, since)
        opened = sum(tally.people for tally in self._history[day.actor] if tally.day > since)
        if len(own) <= self._limits.unrelated_factor * share * opened:
            return None
        return _alert(
            Rule.UNRELATED,
            day,
            own,
            f"Opened the records of {count(len(own), 'person', 'people')} {_LOOSE} in "
            f"{self._limits.unrelated_days} days, of {opened} in all; for colleagues at the same organization it would "
            f"be {share * opened:.1f}.",
            f"{day.day:%Y-%m}",
        )


# -- whose records they were


def _about_people(day: _Day, limits: Thresholds, community: Community) -> Iterator[Alert]:
    for person_id, touches in day.opened.items():
        facts = day.facts.get(person_id, PersonFacts())
        explanation = day.explained[person_id]
        found = _closeness(day.user, person_id, facts, explanation, limits, community)
        if found is None and not (explanation and explanation.strong):
            found = _standing(facts, day.actor[0], shared=person_id in day.shared)
        if found:
            rule, who = found
            week = "{}-{}".format(*day.day.isocalendar()[:2])
            sentence = f"Opened the records of {who}; {_relation(explanation)}."
            yield _alert(rule, day, {person_id: touches}, sentence, f"{person_id}:{week}")


def _closeness(
    user: UserFacts | None,
    person_id: str,
    facts: PersonFacts,
    explanation: Explanation | None,
    limits: Thresholds,
    community: Community,
) -> tuple[Rule, str] | None:
    if user is None or (explanation and explanation.personal):
        return None
    if user.person_id == person_id:
        return Rule.SAME_ADDRESS, "the user's own person"
    if user.addresses & facts.addresses:
        return Rule.SAME_ADDRESS, "somebody who lives at the user's own address"
    if (explanation and explanation.strong) or not user.family_name or user.family_name not in facts.family_names:
        return None
    share = community.name_share(user.family_name)
    if share > limits.rare_name_share:
        return None
    return Rule.SAME_NAME, f"somebody with the user's own family name, which {share:.2%} of all people here bear"


def _standing(facts: PersonFacts, organization: str, *, shared: bool) -> tuple[Rule, str] | None:
    if organization in facts.employers and not shared:
        return Rule.COLLEAGUE, "somebody who works at the same organization"
    return (Rule.VIP, "somebody with a VIP flag") if facts.vip else None


def _relation(explanation: Explanation | None) -> str:
    if explanation is None:
        return "nothing at the user's organization explains it"
    if explanation.strong:
        return f"the organization has a relation to that person ({explanation.relation}), the user none that is known"
    return "the organization holds an old record, and no encounter or registration in that time"


# -- shapes


def _date(day: date) -> str:
    return f"{day.day} {day:%B %Y}"


def _grouped(touches: Sequence[Touch]) -> tuple[dict[str, list[Touch]], dict[str, list[Touch]]]:
    """Opened records by person, and searches by request."""
    opened: dict[str, list[Touch]] = {}
    searches: dict[str, list[Touch]] = {}
    for touch in touches:
        if touch.opened:
            opened.setdefault(touch.person_id, []).append(touch)
        else:
            searches.setdefault(touch.request_id, []).append(touch)
    return opened, searches


def _loose_since(tallies: Iterable[_Tally], since: date) -> dict[str, list[Touch]]:
    together: dict[str, list[Touch]] = {}
    for tally in tallies:
        if tally.day > since:
            for person_id, touches in tally.loose.items():
                together.setdefault(person_id, []).extend(touches)
    return together


def _alert(rule: Rule, day: _Day, people: Mapping[str, list[Touch]], sentence: str, again: str = "") -> Alert:
    """`again` says what is the same thing when it is found once more; by default the day."""
    touches = sorted((t for own in people.values() for t in own), key=lambda touch: touch.index)
    parts = "\x00".join((*day.actor, again or day.day.isoformat()))
    return Alert(
        rule=rule,
        key=f"{rule}:{hashlib.sha256(parts.encode()).hexdigest()[:40]}",
        organization=day.actor[0],
        actor=day.actor[1],
        at=max(touch.at for touch in touches),
        person_ids=tuple(people),
        entries=tuple(touch.index for touch in touches),
        sentence=sentence,
    )
