"""Reports about whose data went where: for patients, regulators and certification.

| kind | what | time |
|---|---|---|
| accounting | 45 CFR 164.528 (b): date, recipient, address, what, why; repeats as first, number, last | 6 years |
| part2 | list of disclosures of an intermediary, 42 CFR 2.24: entity, date, brief description | 3 years |
| access | every access in plain words | 6 years |
| onc | audit report, 45 CFR 170.315 (d)(3): sorts by each of its data | all |

164.528 lets most of an exchange's disclosures be left out (treatment, payment, operations, the patient's own requests).
The accounting lists them all the same and says of each whether the rule requires it; `required_only` leaves them out.
A law-enforcement or oversight suspension (164.528 (a)(2)) leaves a recipient out of what a patient gets while it lasts.

A report is complete by check (`completeness.py`), and whoever hands one out records that (`read_event`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from hie.audit import words
from hie.audit.access import Access, read
from hie.audit.completeness import Completeness, entries_about
from hie.audit.entry import Entry
from hie.audit.event import Event, Kind, Outcome
from hie.audit.query import AuditQuery, Cursor, search
from hie.audit.suspensions import Suspension, standing
from hie.core.caller import COMMAND_LINE, EXCHANGE, Caller
from hie.core.clock import Clock, instant
from hie.core.database import Database
from hie.core.errors import BadRequest

Value = str | int | bool


class ReportKind(StrEnum):
    """What is asked for."""

    ACCOUNTING = "accounting"
    PART2 = "part2"
    ACCESS = "access"
    ONC = "onc"


TITLES = {
    ReportKind.ACCOUNTING: "Accounting of disclosures",
    ReportKind.PART2: "List of disclosures by an intermediary",
    ReportKind.ACCESS: "Who looked at your records",
    ReportKind.ONC: "Audit report",
}
LAWS = {
    ReportKind.ACCOUNTING: "45 CFR 164.528",
    ReportKind.PART2: "42 CFR 2.24",
    ReportKind.ACCESS: "Every access in plain words",
    ReportKind.ONC: "45 CFR 170.315 (d)(3)",
}
LOOKS = ("disclosure", "denial", "failure", "search")
"""Kinds of entry in which somebody saw the person's records, or tried to."""
_YEARS = {ReportKind.ACCOUNTING: 6, ReportKind.PART2: 3, ReportKind.ACCESS: 6}

_EXEMPT = {
    "TREAT": "treatment, 164.528 (a)(1)(i)",
    "ETREAT": "treatment, 164.528 (a)(1)(i)",
    "BTG": "treatment, 164.528 (a)(1)(i)",
    "HPAYMT": "payment, 164.528 (a)(1)(i)",
    "HOPERAT": "operations, 164.528 (a)(1)(i)",
    "PATRQT": "to the patient, 164.528 (a)(1)(ii)",
}
_ACTIONS = {"C": "addition", "R": "view", "U": "change", "D": "deletion", "E": "query"}
_OUTCOMES = {"0": "success", "4": "refused or incomplete", "8": "failed", "12": "failed"}


@dataclass(frozen=True)
class Subject:
    """One person of a report: the id that was asked for, all ids that are the same person, and how to call her."""

    person_id: str
    person_ids: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True)
class Field:
    """A column: its machine name and its heading."""

    name: str
    title: str


def _fields(**titles: str) -> tuple[Field, ...]:
    return tuple(Field(name, title) for name, title in titles.items())


FIELDS: Mapping[ReportKind, tuple[Field, ...]] = {
    ReportKind.ACCOUNTING: _fields(
        patient="Patient",
        first_date="First date",
        last_date="Last date",
        count="Number",
        recipient="Recipient",
        recipient_person="Person",
        recipient_address="Address",
        what="What was disclosed",
        why="Why",
        required="Required by 164.528",
        entries="Log entries",
    ),
    ReportKind.PART2: _fields(
        patient="Patient",
        first_date="First date",
        last_date="Last date",
        count="Number",
        recipient="Recipient",
        recipient_address="Address",
        what="Brief description",
        why="Why",
        consents="Under consent",
        entries="Log entries",
    ),
    ReportKind.ACCESS: _fields(
        patient="Patient",
        when="When",
        sentence="What happened",
        who="Who",
        organization="Organization",
        what="What",
        why="Why",
        break_glass="Break-glass",
        entry="Log entry",
    ),
    ReportKind.ONC: _fields(
        when="Date and time",
        patient="Patient",
        user_id="User id",
        user_name="User name",
        role="Role",
        organization="Organization",
        system="System",
        network="Network address",
        action="Action",
        event="Event",
        data="Data accessed",
        purpose="Purpose",
        outcome="Outcome",
        sources="Sources",
        decisions="Decided by",
        request="Request",
        request_id="Request id",
        session="Session",
        entry="Log entry",
    ),
}


@dataclass(frozen=True)
class Asked:
    """A report that is asked for. Without `start`, as far back as the law of its kind reaches.

    `whole`: a suspended recipient is listed all the same (for the officer, never for the patient).
    `sort` names a field; without it, oldest first. `every_body`: search all bodies of the log too, which takes as long
    as the log is large (`completeness.py`): for the command line, not for a page.
    """

    kind: ReportKind
    subjects: tuple[Subject, ...]
    start: datetime | None = None
    end: datetime | None = None
    required_only: bool = False
    whole: bool = False
    sort: str | None = None
    descending: bool = False
    every_body: bool = False


@dataclass(frozen=True)
class Report:
    """What was found, ready to be written in any format (`report_formats.py`)."""

    kind: ReportKind
    subjects: tuple[Subject, ...]
    start: datetime | None
    end: datetime
    generated: datetime
    fields: tuple[Field, ...]
    rows: tuple[Mapping[str, Value], ...]
    entries: tuple[Entry, ...] = field(repr=False)
    """The log entries that the rows speak of."""
    notes: tuple[str, ...]
    completeness: Completeness

    @property
    def title(self) -> str:
        return TITLES[self.kind]

    @property
    def law(self) -> str:
        """Which rule asks for it."""
        return LAWS[self.kind]


@dataclass(frozen=True)
class AccessPage:
    """One page of the accesses to a person's records, newest first."""

    accesses: tuple[Access, ...]
    next: Cursor | None


AddressOf = Callable[[str], str]
"""Member id -> its postal address, empty where none is known."""


class Accounting:
    """Makes reports out of the log."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        address_of: AddressOf = lambda _member_id: "",
        part2_members: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """`part2_members` hold records under 42 CFR Part 2: what came from them is, labelled or not."""
        self._database = database
        self._clock = clock
        self._address_of = address_of
        self._part2_members = part2_members

    def report(self, asked: Asked) -> Report:
        """Raises BadRequest for a field that does not exist, or nobody to report about."""
        fields = FIELDS[asked.kind]
        if asked.sort is not None and asked.sort not in {f.name for f in fields}:
            raise BadRequest(f"A report sorts by one of {', '.join(f.name for f in fields)}.")
        if not asked.subjects:
            raise BadRequest("A report needs at least one patient.")
        now = self._clock()
        end = asked.end or now
        start = asked.start or (years_before(now, _YEARS[asked.kind]) if asked.kind in _YEARS else None)
        person_ids = {same for subject in asked.subjects for same in subject.person_ids}
        with self._database.read() as connection:
            found, completeness = entries_about(connection, person_ids, every_body=asked.every_body)
            suspensions = [s for subject in asked.subjects for s in standing(connection, subject.person_ids, now)]
        within = [e for e in found if (start is None or e.recorded >= start) and e.recorded < end]
        accesses = [access for access in map(read, within) if self._belongs(access, asked)]
        hidden = {a.index for a in accesses if any(s.covers(a.person_id, a.organization) for s in suspensions)}
        shown = [access for access in accesses if asked.whole or access.index not in hidden]
        rows = _sorted(self._rows(asked, shown), asked)
        kept = {access.index for access in shown}
        return Report(
            kind=asked.kind,
            subjects=asked.subjects,
            start=start,
            end=end,
            generated=now,
            fields=fields,
            rows=tuple(rows),
            entries=tuple(entry for entry in within if entry.index in kept),
            notes=tuple(_notes(asked, shown, hidden, suspensions)),
            completeness=completeness,
        )

    def accesses(
        self, subject: Subject, *, everything: bool = False, cursor: Cursor | None = None, limit: int = 50
    ) -> AccessPage:
        """What the patient may see of who looked; with `everything`, also registrations, choices and looks at the log.

        For a page: by the search columns alone, without the check that a report makes.
        """
        query = AuditQuery(limit=limit, cursor=cursor)
        query = self.seen_by(subject, query) if everything else self.looks_at(subject, query)
        with self._database.read() as connection:
            page = search(connection, query)
        return AccessPage(tuple(map(read, page.entries)), page.next)

    def looks_at(self, subject: Subject, query: AuditQuery) -> AuditQuery:
        """A search narrowed to who looked or tried to, as far as the patient herself may see it."""
        return replace(self.seen_by(subject, query), kinds=(*query.kinds, LOOKS))

    def seen_by(self, subject: Subject, query: AuditQuery) -> AuditQuery:
        """A search narrowed to her entries, but for disclosures that are kept out of her accounting for now."""
        with self._database.read() as connection:
            suspensions = standing(connection, subject.person_ids, self._clock())
        hidden = tuple(sorted({suspension.organization for suspension in suspensions}))
        return replace(query, persons=(*query.persons, subject.person_ids), not_organizations=hidden)

    def _belongs(self, access: Access, asked: Asked) -> bool:
        if access.archived:
            return asked.kind in (ReportKind.ACCESS, ReportKind.ONC)
        if asked.kind is ReportKind.ACCOUNTING:
            return access.left and not (asked.required_only and exemption(access))
        if asked.kind is ReportKind.PART2:
            return access.opened and access.organization != EXCHANGE and self._part2(access)
        return True

    def _part2(self, access: Access) -> bool:
        members = self._part2_members()
        return access.under_part2 or any(s.count and s.member_id in members for s in access.sources)

    def _rows(self, asked: Asked, accesses: Sequence[Access]) -> Iterator[Mapping[str, Value]]:
        names = {same: s.name or s.person_id for s in asked.subjects for same in s.person_ids}
        if asked.kind in (ReportKind.ACCOUNTING, ReportKind.PART2):
            for group in _groups(accesses, asked):
                yield self._disclosure(asked.kind, group, names)
        elif asked.kind is ReportKind.ACCESS:
            yield from (_access(access, names) for access in accesses)
        else:
            yield from (_onc(access) for access in accesses)

    def _disclosure(self, kind: ReportKind, group: Sequence[Access], names: Mapping[str, str]) -> dict[str, Value]:
        """One line of an accounting: a disclosure, or its repeats (164.528 (b)(3))."""
        first, last = group[0], group[-1]
        row: dict[str, Value] = {
            "patient": names.get(first.person_id or "", ""),
            "first_date": instant(first.at),
            "last_date": instant(last.at),
            "count": len(group),
            "recipient": first.organization_name,
            "recipient_person": first.user_name or first.user_id or "",
            "recipient_address": self._address_of(first.organization or ""),
            "what": _what(group),
            "why": words.why(first),
            "required": "no: " + exemption(first) if exemption(first) else "yes",
            "consents": ", ".join(dict.fromkeys(str(c) for access in group for c in access.consents)) or "by policy",
            "entries": _ranges([access.index for access in group]),
        }
        return {f.name: row[f.name] for f in FIELDS[kind]}


def exemption(access: Access) -> str:
    """Why 164.528 does not require this disclosure to be listed; empty where it does."""
    grounds = [_EXEMPT.get(code, "") for code in access.purposes]
    return grounds[0] if grounds and all(grounds) else ""


def years_before(moment: datetime, years: int) -> datetime:
    """The same day so many years earlier; 29 February becomes 1 March."""
    try:
        return moment.replace(year=moment.year - years)
    except ValueError:
        return moment.replace(year=moment.year - years, month=3, day=1)


def read_event(report: Report, form: str, caller: Caller | None, request_id: str) -> tuple[Event, ...]:
    """The log entries of handing a report out, one per person; caller None is the operator at the command line."""
    return tuple(
        Event(
            kind=Kind.LOG_READ,
            outcome=Outcome.SUCCESS,
            action="R",
            caller=caller,
            person_id=subject.person_id,
            query=f"report {report.kind.value} as {form}",
            request_id=request_id,
            description=f"{TITLES[report.kind]}: {words.count(len(report.rows), 'line')}, as {form}",
            client_id=None if caller else COMMAND_LINE,
        )
        for subject in report.subjects
    )


def _sorted(rows: Iterable[Mapping[str, Value]], asked: Asked) -> list[Mapping[str, Value]]:
    """Stable, text without regard to case, numbers as numbers."""
    listed, by = list(rows), asked.sort
    if by is not None:
        listed.sort(key=lambda row: _sort_key(row[by]), reverse=asked.descending)
    return listed


def _sort_key(value: Value) -> tuple[int, int, str]:
    return (1, 0, value.casefold()) if isinstance(value, str) else (0, value, "")


def _groups(accesses: Sequence[Access], asked: Asked) -> list[list[Access]]:
    """Disclosures to one recipient for one purpose, of demographics and of records apart, in order of the first.

    42 CFR 2.24 asks for entities; an accounting tells the people apart as well.
    """
    owner = {same: subject.person_id for subject in asked.subjects for same in subject.person_ids}
    groups: dict[tuple[object, ...], list[Access]] = {}
    for access in accesses:
        recipient = access.organization if asked.kind is ReportKind.PART2 else access.actor
        key = (owner.get(access.person_id or ""), recipient, access.purposes, access.break_glass, access.opened)
        groups.setdefault(key, []).append(access)
    return list(groups.values())


def _what(group: Sequence[Access]) -> str:
    """Of repeats, the most of each type that one answer held: the same records again are not more records."""
    if not group[0].opened:
        return words.DEMOGRAPHICS
    most: dict[str, int] = {}
    for access in group:
        for name, number in access.types.items():
            most[name] = max(most.get(name, 0), number)
    return words.what_of(most)


def _ranges(indexes: Sequence[int]) -> str:
    """`3-5 9`."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _access(access: Access, names: Mapping[str, str]) -> dict[str, Value]:
    return {
        "patient": names.get(access.person_id or "", ""),
        "when": instant(access.at),
        "sentence": words.capitalised(words.sentence(access)),
        "who": "" if access.archived else words.who(access),
        "organization": access.organization_name,
        "what": words.what(access) if access.left else "",
        "why": words.why(access) if access.left else "",
        "break_glass": access.break_glass is not None,
        "entry": access.index,
    }


def _onc(access: Access) -> dict[str, Value]:
    return {
        "when": instant(access.at),
        "patient": access.person_id or "",
        "user_id": access.user_id or "",
        "user_name": access.user_name or "",
        "role": access.subject_role or access.role or "",
        "organization": access.organization or "",
        "system": access.client_id or "",
        "network": access.network,
        "action": _ACTIONS.get(access.action, access.action),
        "event": access.kind,
        "data": words.what(access) if access.left else "",
        "purpose": " ".join(access.purposes),
        "outcome": _OUTCOMES.get(access.outcome, access.outcome),
        "sources": " ".join(source.member_id for source in access.sources),
        "decisions": "; ".join(access.decisions),
        "request": access.request,
        "request_id": access.request_id or "",
        "session": access.session or "",
        "entry": access.index,
    }


def _notes(asked: Asked, shown: Sequence[Access], hidden: set[int], suspensions: Sequence[Suspension]) -> Iterator[str]:
    if asked.kind is ReportKind.ACCOUNTING and not asked.required_only:
        yield (
            "45 CFR 164.528 does not require disclosures for treatment, payment, operations or to the patient to be "
            "listed. They are listed here all the same, and marked."
        )
    if asked.kind in (ReportKind.ACCOUNTING, ReportKind.PART2) and any(a.break_glass is not None for a in shown):
        yield (
            "Some disclosures went beyond the patient's privacy choices in an emergency (break-glass). Each of them is "
            "reviewed."
        )
    if asked.whole and hidden:
        until = max(s.ends for s in suspensions)
        yield (
            f"FOR THE PRIVACY OFFICER ONLY: log entries {_ranges(sorted(hidden))} are under a suspension until "
            f"{words.day(until)} and must not be shown to the patient (45 CFR 164.528 (a)(2))."
        )
