"""Precision and recall of the alerts on made-up years of access with planted snooping.

An alert is true when at least half of the people in it were snooped on; an incident is found when a true alert holds
one of its accesses. A case is what the officer sees: the alerts of one actor, until a month passes without one; it is
true when one of its alerts is. The thresholds are the defaults; they were chosen on seeds 1 to 3 and 101 to 104, and
the seeds here are others. `.venv/bin/python bench/bench_review.py [seed ...]`

A single look at a stranger (`glimpse`) is not found, and the last line says why: of the looks that nothing at all
speaks for, one in a hundred is such a glimpse. The others are consults on the telephone, wrong namesakes and
registrations that never came.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fixtures.access_year import PLANTED, Year, build
from hie.audit.alerts import Alert, Rule, Touch, Watch
from hie.audit.relations import Contact, Explanation, explain
from hie.audit.thresholds import Thresholds

SEEDS = (21, 22, 23)


def main(seeds: tuple[int, ...]) -> None:
    rules: Counter[Rule] = Counter()
    true_rules: Counter[Rule] = Counter()
    found: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    single: Counter[str] = Counter()
    for seed in seeds:
        year = build(seed)
        started = time.perf_counter()
        alerts = [alert for day in Watch(year.community, Thresholds()).days(year.touches) for alert in day]
        seconds = time.perf_counter() - started
        true = [alert for alert in alerts if is_true(year, alert)]
        caught = {index for alert in true for index in alert.entries}
        hits = [incident for incident in year.incidents if incident.touches & caught]
        rules.update(alert.rule for alert in alerts)
        true_rules.update(alert.rule for alert in true)
        planted.update(incident.kind for incident in year.incidents)
        found.update(incident.kind for incident in hits)
        opened = sum(touch.opened for touch in year.touches)
        looks, glimpses = unspoken_for(year)
        single.update(looks=looks, glimpses=glimpses)
        cases = cases_of(alerts)
        true_cases = [case for case in cases if any(alert in true for alert in case)]
        print(f"seed {seed}: {len(year.touches):,} accesses, {opened:,} opened records; judged in {seconds:.1f} s")
        print(f"  explained {explained(year):.1%} of the opened")
        print(f"  alerts    {len(alerts)} ({len(alerts) / 52:.1f} a week), precision {len(true) / len(alerts):.1%}")
        print(f"  cases     {len(cases)} ({len(cases) / 52:.1f} a week), precision {len(true_cases) / len(cases):.1%}")
        print(f"  recall    {len(hits) / len(year.incidents):.1%} of {len(year.incidents)} planted incidents")
    print(f"\n{'rule':<16}{'alerts':>8}{'true':>8}{'precision':>12}")
    for rule in Rule:
        if rules[rule]:
            print(f"{rule:<16}{rules[rule]:>8}{true_rules[rule]:>8}{true_rules[rule] / rules[rule]:>12.1%}")
    total, right = rules.total(), true_rules.total()
    print(f"{'all':<16}{total:>8}{right:>8}{right / total:>12.1%}")
    print(f"\n{'planted':<16}{'incidents':>10}{'found':>8}{'recall':>10}")
    for kind in PLANTED:
        print(f"{kind:<16}{planted[kind]:>10}{found[kind]:>8}{found[kind] / planted[kind]:>10.1%}")
    print(f"{'all':<16}{planted.total():>10}{found.total():>8}{found.total() / planted.total():>10.1%}")
    print(f"\nsingle looks that nothing speaks for: {single['looks']:,}, of which glimpses: {single['glimpses']}")


def unspoken_for(year: Year) -> tuple[int, int]:
    """Single looks that nothing speaks for: no record at the organization, no care anywhere, nobody else for a month.

    How many there are outside of other planted incidents, and how many of them are glimpses.
    """
    limits = Thresholds()
    kinds = {index: incident.kind for incident in year.incidents for index in incident.touches}
    openers: defaultdict[tuple[str, str], list[datetime]] = defaultdict(list)
    care: defaultdict[str, list[Contact]] = defaultdict(list)
    for touch in year.touches:
        if touch.opened:
            openers[touch.person_id, touch.organization].append(touch.at)
    for (person_id, _), contacts in year.community.held.items():
        care[person_id] += contacts

    def known(touch: Touch, contacts: Sequence[Contact]) -> Explanation | None:
        days = {"contact_days": limits.contact_days, "registration_days": limits.registration_days}
        return explain(touch.at, touch.actor, contacts, **days)

    found = glimpses = 0
    for touch in year.touches:
        kind = kinds.get(touch.index, "glimpse")
        if not touch.opened or kind != "glimpse":
            continue
        pair = (touch.person_id, touch.organization)
        elsewhere = known(touch, care[touch.person_id])
        if known(touch, year.community.held.get(pair, ())) or (elsewhere and elsewhere.strong):
            continue
        if sum(abs(at - touch.at) < timedelta(days=30) for at in openers[pair]) == 1:
            found, glimpses = found + 1, glimpses + (touch.index in kinds)
    return found, glimpses


def is_true(year: Year, alert: Alert) -> bool:
    """Whether at least half of the alert's people were snooped on by its actor in it."""
    actor = (alert.organization, alert.actor)
    planted = {index for incident in year.incidents if incident.actor == actor for index in incident.touches}
    people = {year.touches[index].person_id for index in alert.entries if index in planted}
    return len(people) * 2 >= len(alert.person_ids)


def cases_of(alerts: Sequence[Alert]) -> list[list[Alert]]:
    """The alerts of one actor together, until there is none for a month."""
    growing: dict[tuple[str, str], list[Alert]] = {}
    cases: list[list[Alert]] = []
    for alert in sorted(alerts, key=lambda alert: alert.at):
        actor = (alert.organization, alert.actor)
        case = growing.get(actor)
        if case is None or alert.at - case[-1].at > timedelta(days=30):
            case = growing[actor] = []
            cases.append(case)
        case.append(alert)
    return cases


def explained(year: Year) -> float:
    """Share of opened records that a strong relation explains."""
    limits, strong, opened = Thresholds(), 0, 0
    for touch in year.touches:
        if touch.opened:
            opened += 1
            contacts = year.community.held.get((touch.person_id, touch.organization), ())
            reason = explain(
                touch.at,
                touch.actor,
                contacts,
                contact_days=limits.contact_days,
                registration_days=limits.registration_days,
            )
            strong += reason is not None and reason.strong
    return strong / opened


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or SEEDS)
