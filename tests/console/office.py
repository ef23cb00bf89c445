"""The privacy officer's pages over the real log, review queue and reports; people and directory are fakes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from hie.audit.accounting import Accounting
from hie.audit.event import Event, Kind, Outcome, Released, SourceOutcome
from hie.audit.health import Found, LogHealth, Progress
from hie.audit.log import AuditLog
from hie.audit.relations import Contact, PersonFacts, Relation
from hie.audit.review import Review
from hie.audit.seal import Seal
from hie.audit.statistics import LogStatistics
from hie.core.caller import Caller, Role
from hie.core.database import Database, metadata
from hie.core.scopes import Scopes
from hie.mpi.identity import Identifier, Person, SourceRecord
from tests.audit.community import FakeCommunity
from tests.console.fakes import (
    HARBOR,
    LAKESIDE,
    MARTA,
    MARTINA,
    PATIENT,
    PHYSICIAN,
    Clock,
    Console,
    make_console,
)

GLASS = "unconscious after a fall, on unknown medication"


@dataclass
class FakeIdentity:
    people: dict[str, Person] = field(default_factory=lambda: {p.id: p for p in (MARTA, MARTINA)})
    merged: dict[str, str] = field(default_factory=lambda: {"p-marta-before": "p-marta"})

    def person(self, person_id: str) -> Person | None:
        return self.people.get(self.merged.get(person_id, person_id))

    def person_ids(self, person_id: str) -> tuple[str, ...]:
        survivor = self.merged.get(person_id, person_id)
        before = [old for old, new in self.merged.items() if new == survivor]
        return (survivor, *before) if survivor in self.people else ()

    def source_record(self, identifier: Identifier) -> SourceRecord | None:
        records = (record for person in self.people.values() for record in person.records)
        return next((record for record in records if record.identifier == identifier), None)


@dataclass
class Office:
    """The console, the log under it, and what fills both."""

    console: Console
    clock: Clock
    log: AuditLog
    review: Review
    database: Database
    community: FakeCommunity

    def record(self, *events: Event, **ago: float) -> None:
        """Events of some time ago; the log is written in order, so the oldest first."""
        now = self.clock.now
        self.clock.now = now - timedelta(**ago)
        self.log.record(*events)
        self.clock.now = now


def verify(progress: Progress) -> Found:
    progress(1, 2)
    return Found(True, 2, "All 2 entries are whole; the root is 4f2a…")


@contextmanager
def office(folder: Path, *, verifies: bool = True) -> Iterator[Office]:
    database = Database(f"sqlite:///{folder / 'office.sqlite'}")
    metadata.create_all(database.engine)
    clock, community = Clock(), FakeCommunity()
    log = AuditLog(database, clock, "http://127.0.0.1:8080/fhir", Seal(folder, "hie.example/log"))
    review = Review(database, clock, log, community)
    console = make_console(
        clock=clock,
        audit=log,
        identity=FakeIdentity(),
        review=review,
        accounting=Accounting(database, clock, address_of=lambda _: "1 Harbor Way, Boston, MA 02110"),
        statistics=LogStatistics(database),
        health=LogHealth(database, clock, verify if verifies else None),
        own_person={PATIENT.email: "p-marta"}.get,
    )
    yield Office(console, clock, log, review, database, community)
    log.close()
    database.close()


def caller(**changes: object) -> Caller:
    made = Caller(
        organization=HARBOR.id,
        organization_name=HARBOR.name,
        role=Role.CLINICIAN,
        purposes=frozenset({"ETREAT", "TREAT"}),
        scopes=Scopes.parse("system/*.rs"),
        session="s-1",
        user_id=PHYSICIAN.email,
        subject_name=PHYSICIAN.name,
        subject_id=PHYSICIAN.email,
        address="192.0.2.7",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


BROKEN = caller(purposes=frozenset({"BTG", "ETREAT", "TREAT"}), break_glass_reason=GLASS)
NURSE = caller(
    organization=LAKESIDE.id,
    organization_name=LAKESIDE.name,
    role=Role.MEMBER,
    purposes=frozenset({"TREAT"}),
    user_id=None,
    client_id="lakeside-ehr",
    subject_name="Jonas Mills",
    subject_id="1234567893",
    subject_role="163W00000X",
)


def disclosure(
    person_id: str = "p-marta",
    by: Caller | None = None,
    types: tuple[str, ...] = ("AllergyIntolerance",),
    withheld: int = 0,
) -> Event:
    asking = by or caller()
    return Event(
        kind=Kind.DISCLOSURE,
        outcome=Outcome.SUCCESS,
        action="R",
        caller=asking,
        person_id=person_id,
        query="console chart",
        request_id="r-1",
        description=f"{len(types)} resources released, {withheld} withheld",
        sources=(SourceOutcome(LAKESIDE.id, "ok", len(types)), SourceOutcome("willow", "unreachable", 0)),
        released=tuple(Released(name, f"gw-{n}", "ab" * 32, ("N",)) for n, name in enumerate(types)),
        decisions=(
            {"permit": True, "rule": "consent", "consent": "Consent/c1/_history/2", "reason": "permitted by consent"},
        ),
        withheld=withheld,
    )


def other(kind: Kind, action: str = "E", by: Caller | None = None, **changes: object) -> Event:
    made = Event(kind, Outcome.SUCCESS, action, by or caller(), "p-marta", "console", "r-1", "")
    return replace(made, **changes)  # type: ignore[arg-type]


def some_weeks(held: Office) -> None:
    """A log as an officer has it: ordinary days, two broken glasses, a curious nurse."""
    held.community.facts["p-martina"] = PersonFacts(vip=True)
    held.community.known += [Contact("p-marta", member.id, Relation.PANEL) for member in (HARBOR, LAKESIDE)]
    types = ("AllergyIntolerance", "Condition", "Condition", "Observation", "MedicationRequest")
    for day in range(26, 0, -1):
        for number in range(2 + (day * 7) % 5):
            held.record(disclosure(by=NURSE if number % 2 else None, types=types[: 1 + number % 5]), days=day)
        if day % 5 == 0:
            denied = other(Kind.DENIAL, "R", description="A payer asks for payment only.", outcome=Outcome.MINOR)
            held.record(denied, days=day)
    held.record(other(Kind.SEARCH), days=3, minutes=5)
    held.record(disclosure(by=BROKEN, types=types, withheld=1), days=3)
    held.record(disclosure("p-martina", by=NURSE), days=2)
    held.record(disclosure("p-martina", by=replace(BROKEN, break_glass_reason="seizure, alone")), hours=5)
