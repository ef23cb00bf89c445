"""The review queue: break-glass first, then alerts, grouped by who did it; every step is an entry of the log.

Every entry whose body declares break-glass waits in the queue from the instant that it is durable: the queue asks the
log (by the purpose BTG) for entries that no case has yet, so nothing that writes the log can forget to fill it.
Alerts come from `alerts.Watch`, which `look` runs over what has happened since the last time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from hie.audit import words
from hie.audit.access import Access, read
from hie.audit.alerts import Actor, Alert, Rule, Touch, Watch
from hie.audit.cases import Case, Item, Status, Step, Taken, Verdict, after, check
from hie.audit.event import Event, Kind, Outcome
from hie.audit.log import AuditLog
from hie.audit.query import ENTRY, entry_of
from hie.audit.relations import Community, Contact, PersonFacts, UserFacts
from hie.audit.tables import entries, purposes
from hie.audit.tables_officer import actions, cases, items, looks
from hie.audit.thresholds import Thresholds
from hie.core.caller import Caller, Role
from hie.core.clock import Clock
from hie.core.database import Database
from hie.core.errors import NotFound
from hie.core.ids import new_id

T = TypeVar("T")

BREAK_GLASS_KINDS = ("disclosure", "denial", "failure")
TREATMENT = ("TREAT", "ETREAT", "BTG")
_GROWING = (Status.OPEN, Status.ASSIGNED, Status.ASKED, Status.EXPLAINED)
"""States in which a case takes in what else its actor does."""
_MANY = 500
_POSTGRESQL_LOCK = 0x6869652D726576  # "hie-rev"


@dataclass(frozen=True)
class CaseFile:
    """A case with everything about it. `before` are closed cases of the same actor, newest first."""

    case: Case
    items: tuple[Item, ...]
    steps: tuple[Taken, ...]
    accesses: tuple[Access, ...]
    before: tuple[Case, ...]


@dataclass(frozen=True)
class Counts:
    """What waits."""

    break_glass: int
    alerts: int
    to_confirm: int


class Review:
    """The queue and what is done about it."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        audit: AuditLog,
        community: Community,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._community = community
        self._thresholds = thresholds or Thresholds()

    # -- filling the queue

    def collect(self) -> int:
        """Put every break-glass entry that has no case into one; the number of those found."""
        with self._database.write() as connection:
            _one_at_a_time(connection)
            waiting = [read(entry_of(row)) for row in connection.execute(_uncollected())]
            for access in waiting:
                item = _break_glass_item(access)
                _file(connection, item, _Actor.of(access), break_glass=True, now=self._clock())
            return len(waiting)

    def look(self) -> list[Alert]:
        """Judge what has happened since the last look; the alerts that are new."""
        watch = Watch(_WithNames(self._community, self._names), self._thresholds)
        now = self._clock()
        today = watch.start_of(now)
        with self._database.read() as connection:
            since = connection.scalar(sa.select(looks.c.through))
            history = timedelta(days=self._thresholds.history_days + 1)
            touches = _touches(connection, since - history if since else None)
        found = [alert for day in watch.days(touches) for alert in day if since is None or alert.at >= since]
        with self._database.write() as connection:
            _one_at_a_time(connection)
            new = [alert for alert in found if self._keep(connection, alert, now)]
            _set_look(connection, today)
        return new

    def _keep(self, connection: sa.Connection, alert: Alert, now: datetime) -> bool:
        known = connection.scalar(sa.select(sa.func.count()).where(items.c.key == alert.key))
        if known:
            return False
        person_id = alert.person_ids[0] if len(alert.person_ids) == 1 else None
        item = Item(alert.key, alert.rule, alert.at, person_id, alert.sentence, alert.entries)
        newest = connection.execute(sa.select(*ENTRY).where(entries.c.entry_index == alert.entries[-1])).one()
        _file(connection, item, _Actor.of(read(entry_of(newest))), break_glass=False, now=now)
        return True

    def _names(self, wanted: Collection[Actor]) -> dict[Actor, str]:
        """What the log calls these actors."""
        with self._database.read() as connection:
            newest = (
                sa.select(sa.func.max(entries.c.entry_index))
                .where(
                    entries.c.user_id.in_([actor for _, actor in wanted]),
                    entries.c.organization.in_({organization for organization, _ in wanted}),
                )
                .group_by(entries.c.organization, entries.c.user_id)
            )
            rows = connection.execute(sa.select(*ENTRY).where(entries.c.entry_index.in_(newest)))
            accesses = [read(entry_of(row)) for row in rows]
        return {access.actor: access.user_name for access in accesses if access.user_name}

    # -- reading it

    def queue(self, statuses: Collection[Status] = _GROWING, assignee: str | None = None) -> list[Case]:
        """Cases in these states, break-glass first, then the oldest."""
        found = sa.select(cases).where(cases.c.status.in_([status.value for status in statuses]))
        if assignee is not None:
            found = found.where(cases.c.assignee == assignee)
        with self._database.read() as connection:
            rows = connection.execute(found.order_by(cases.c.break_glass.desc(), cases.c.opened, cases.c.id))
            return [_case(row) for row in rows]

    def counts(self) -> Counts:
        """How many cases wait, by what they are about."""
        waiting = self.queue()
        glass = sum(case.break_glass for case in waiting)
        return Counts(glass, len(waiting) - glass, len(self.queue([Status.JUDGED])))

    def summaries(self, case_ids: Collection[str]) -> dict[str, list[Item]]:
        """The items of each case, oldest first."""
        found: dict[str, list[Item]] = {case_id: [] for case_id in case_ids}
        with self._database.read() as connection:
            for row in connection.execute(
                sa.select(items).where(items.c.case_id.in_(case_ids)).order_by(items.c.at, items.c.key)
            ):
                found[row.case_id].append(_item(row))
        return found

    def file(self, case_id: str) -> CaseFile:
        """A case with everything about it; raises NotFound."""
        with self._database.read() as connection:
            case = _case_of(connection, case_id)
            about = connection.execute(
                sa.select(items).where(items.c.case_id == case_id).order_by(items.c.at, items.c.key)
            )
            held = tuple(_item(row) for row in about)
            taken = connection.execute(
                sa.select(actions).where(actions.c.case_id == case_id).order_by(actions.c.number)
            )
            steps = tuple(Taken(r.number, r.at, r.by, r.by_name, Step(r.action), r.note, r.entry_index) for r in taken)
            indexes = sorted({index for item in held for index in item.entries})[-_MANY:]
            rows = connection.execute(
                sa.select(*ENTRY).where(entries.c.entry_index.in_(indexes)).order_by(entries.c.entry_index)
            )
            accesses = tuple(read(entry_of(row)) for row in rows)
            earlier = connection.execute(
                sa.select(cases)
                .where(cases.c.organization == case.organization, cases.c.actor == case.actor, cases.c.id != case_id)
                .order_by(cases.c.opened.desc())
            )
            before = tuple(_case(row) for row in earlier)
        return CaseFile(case, held, steps, accesses, before)

    def asked_of(self, user_id: str, organization: str) -> list[Case]:
        """The cases in which this user is asked for an explanation."""
        found = sa.select(cases).where(
            cases.c.organization == organization, cases.c.actor == user_id, cases.c.status == Status.ASKED.value
        )
        with self._database.read() as connection:
            return [_case(row) for row in connection.execute(found.order_by(cases.c.opened))]

    # -- working on it

    def take(
        self,
        case_id: str,
        step: Step,
        caller: Caller,
        *,
        version: int,
        note: str = "",
        assignee: str | None = None,
        verdict: Verdict | None = None,
        request_id: str = "",
    ) -> Case:
        """Take one step, with its entry in the same transaction; raises NotFound, Conflict, Forbidden, BadRequest."""
        by, officer = caller.user_id or caller.subject_id or "", caller.role is Role.PRIVACY_OFFICER
        now = self._clock()
        with self._database.write() as connection:
            case = _case_of(connection, case_id, lock=True)
            check(case, step, by, note, officer=officer, version=version, verdict=verdict)
            changed = replace(after(case, step, by, assignee=assignee, verdict=verdict), updated=now)
            connection.execute(sa.update(cases).where(cases.c.id == case_id).values(_row(changed)))
            event = _event(changed, step, note, caller, _persons(connection, case_id), request_id)
            (receipt,) = self._audit.append(connection, event)
            row = {
                "id": new_id(),
                "case_id": case_id,
                "number": changed.version,
                "at": now,
                "by": by,
                "by_name": caller.subject_name or by,
                "action": step.value,
                "note": _said(step, note, changed),
                "entry_index": receipt.index,
            }
            connection.execute(sa.insert(actions), row)
        return changed


@dataclass(frozen=True)
class _Actor:
    organization: str
    organization_name: str
    id: str
    name: str

    @classmethod
    def of(cls, access: Access) -> _Actor:
        organization, actor = access.actor
        return cls(organization, access.organization_name[:200], actor, access.actor_name[:200])


class _WithNames:
    """A community in which a user whom the directory does not know is called as the log calls her."""

    def __init__(self, community: Community, names: Any) -> None:
        self._community = community
        self._names = names

    def contacts(self, pairs: Collection[tuple[str, str]]) -> Sequence[Contact]:
        return self._community.contacts(pairs)

    def people(self, person_ids: Collection[str]) -> Mapping[str, PersonFacts]:
        return self._community.people(person_ids)

    def users(self, actors: Collection[Actor]) -> Mapping[Actor, UserFacts]:
        known = dict(self._community.users(actors))
        unknown = [actor for actor in actors if actor not in known]
        names: dict[Actor, str] = self._names(unknown) if unknown else {}
        return known | {actor: UserFacts(self._community.family_name(name)) for actor, name in names.items()}

    def name_share(self, family_name: str) -> float:
        return self._community.name_share(family_name)

    def family_name(self, name: str) -> str:
        return self._community.family_name(name)


# -- rows


def _one_at_a_time(connection: sa.Connection) -> None:
    """Two officers open the queue at once: each item is filed by one of them. SQLite has one writer anyway."""
    if connection.dialect.name != "sqlite":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRESQL_LOCK)))


def _uncollected() -> sa.Select[Any]:
    """Break-glass entries that no case has."""
    taken = sa.select(items.c.key).where(
        items.c.key == sa.literal(f"{Rule.BREAK_GLASS.value}:") + sa.cast(entries.c.entry_index, sa.String)
    )
    return (
        sa.select(*ENTRY)
        .join(purposes, purposes.c.entry_index == entries.c.entry_index)
        .where(
            purposes.c.code == "BTG",
            entries.c.kind.in_(BREAK_GLASS_KINDS),
            sa.func.length(entries.c.body) > 0,
            ~taken.exists(),
        )
        .order_by(entries.c.entry_index)
    )


def _touches(connection: sa.Connection, since: datetime | None) -> Iterable[Touch]:
    """Accesses for treatment in order of time, from the columns alone."""
    treatment = sa.select(purposes.c.entry_index).where(purposes.c.code.in_(TREATMENT))
    found = sa.select(
        entries.c.entry_index,
        entries.c.recorded,
        entries.c.kind == "disclosure",
        entries.c.organization,
        sa.func.coalesce(entries.c.user_id, entries.c.client_id),
        entries.c.person_id,
        sa.func.coalesce(entries.c.request_id, ""),
    ).where(
        entries.c.kind.in_(("disclosure", "search")),
        entries.c.person_id.is_not(None),
        entries.c.organization.is_not(None),
        sa.func.coalesce(entries.c.user_id, entries.c.client_id).is_not(None),
        entries.c.entry_index.in_(treatment),
    )
    if since is not None:
        found = found.where(entries.c.recorded >= since)
    rows = connection.execute(found.order_by(entries.c.recorded, entries.c.entry_index))
    return [Touch(row[0], row[1], bool(row[2]), *row[3:]) for row in rows]


def _file(connection: sa.Connection, item: Item, actor: _Actor, *, break_glass: bool, now: datetime) -> None:
    """Put an item into the growing case of its actor, or into a new one."""
    found = connection.execute(
        sa.select(cases)
        .where(
            cases.c.organization == actor.organization,
            cases.c.actor == actor.id,
            cases.c.status.in_([status.value for status in _GROWING]),
        )
        .order_by(cases.c.opened)
    ).first()
    if found is None:
        case_id = new_id()
        case = Case(
            case_id,
            actor.organization,
            actor.organization_name,
            actor.id,
            actor.name,
            break_glass,
            Status.OPEN,
            now,
            now,
            0,
        )
        connection.execute(sa.insert(cases), {"id": case_id, **_row(case)})
    else:
        case_id = found.id
        changed = {"updated": now, "break_glass": bool(found.break_glass) or break_glass}
        connection.execute(sa.update(cases).where(cases.c.id == case_id).values(changed))
    row = {**vars(item), "rule": item.rule.value, "entries": list(item.entries), "case_id": case_id}
    connection.execute(sa.insert(items), row)


def _set_look(connection: sa.Connection, through: datetime) -> None:
    changed = connection.execute(sa.update(looks).where(looks.c.id == 1).values(through=through))
    if not changed.rowcount:
        connection.execute(sa.insert(looks), {"id": 1, "through": through})


def _case_of(connection: sa.Connection, case_id: str, *, lock: bool = False) -> Case:
    found = sa.select(cases).where(cases.c.id == case_id)
    row = connection.execute(found.with_for_update() if lock else found).one_or_none()
    if row is None:
        raise NotFound("There is no such case.")
    return _case(row)


def _case(row: Any) -> Case:
    values = {name: getattr(row, name) for name in cases.columns.keys()}  # noqa: SIM118  (a column collection)
    values |= {"status": Status(row.status), "break_glass": bool(row.break_glass)}
    return Case(**{**values, "verdict": Verdict(row.verdict) if row.verdict else None})


def _row(case: Case) -> dict[str, Any]:
    values = {**vars(case), "status": case.status.value, "verdict": case.verdict.value if case.verdict else None}
    return {name: value for name, value in values.items() if name != "id"}


def _item(row: Any) -> Item:
    return Item(row.key, Rule(row.rule), row.at, row.person_id, row.sentence, tuple(row.entries))


def _persons(connection: sa.Connection, case_id: str) -> list[str]:
    found = sa.select(items.c.person_id).where(items.c.case_id == case_id).distinct()
    return [person_id for person_id in connection.scalars(found) if person_id]


# -- words


def _break_glass_item(access: Access) -> Item:
    did = words.what(access) if access.opened else "nothing; the answer was no"
    return Item(
        key=f"{Rule.BREAK_GLASS.value}:{access.index}",
        rule=Rule.BREAK_GLASS,
        at=access.at,
        person_id=access.person_id,
        sentence=f"Broke the glass and was shown {did}. The reason given: “{access.break_glass or 'none'}”.",
        entries=(access.index,),
    )


def _said(step: Step, note: str, case: Case) -> str:
    if step is Step.ASSIGN:
        return f"Assigned to {case.assignee}. {note}".strip()
    if step is Step.JUDGE and case.verdict:
        return f"{words.capitalised(case.verdict.value)}: {note}"
    return note


def _event(case: Case, step: Step, note: str, caller: Caller, persons: Sequence[str], request_id: str) -> Event:
    """The entry: what was done in the description, which the patient may read; the words themselves beside it."""
    done = {
        Step.ASSIGN: "took it on",
        Step.ASK: "asked for an explanation",
        Step.EXPLAIN: "an explanation was given",
        Step.NOTE: "a note was made",
        Step.JUDGE: f"the verdict is {case.verdict.value if case.verdict else ''}",
        Step.CONFIRM: f"closed by a second person as {case.verdict.value if case.verdict else ''}",
        Step.RETURN: "the verdict was returned by a second person",
    }[step]
    return Event(
        kind=Kind.REVIEW,
        outcome=Outcome.SUCCESS,
        action="U",
        caller=caller,
        person_id=persons[0] if len(persons) == 1 else None,
        query=f"review {step.value}",
        request_id=request_id,
        description=done,
        entities=(f"Task/{case.id}",),
        decisions=({"step": step.value, "note": _said(step, note, case), "version": case.version},),
    )
