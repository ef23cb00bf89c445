"""An application of the console alone: its real pages over services that hold what a test puts there.

The dataclasses are the real ones; only what would need a database or another server is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from flask import Flask

from hie.audit.event import Event
from hie.audit.log import SourceFailure
from hie.consent.policy import Decision
from hie.console import console
from hie.core.caller import Caller, Role
from hie.core.config import Environment, Settings
from hie.core.errors import Conflict
from hie.core.purposes import PROVIDER_DEFAULT
from hie.core.scopes import Scopes
from hie.gateway.api import context, problems
from hie.gateway.directory import Auth, Client, Endpoint, Member, User
from hie.gateway.notices import Notice
from hie.gateway.portal import Binding
from hie.gateway.release import ChartAnswer, ChartEntry, SourcesFailed, SourceStatus
from hie.gateway.services import Services
from hie.mpi.identity import Candidate, Identifier, Person, SourceRecord
from hie.mpi.index import Agreement

NOW = datetime(2026, 5, 4, 3, 12, 45, tzinfo=UTC)
PASSWORD = "correct horse battery staple"

HARBOR = Member(
    id="harbor",
    name="Harbor Emergency Hospital",
    patient_id_system="urn:oid:2.999.1.1",
    endpoint=Endpoint("https://fhir.harbor.example/r4", Auth("bearer", token="stored-token")),
    consent_default=None,
    kind="provider",
    purposes=PROVIDER_DEFAULT,
    part2=False,
)
LAKESIDE = replace(
    HARBOR,
    id="lakeside",
    name="Lakeside Family Practice",
    patient_id_system="urn:oid:2.999.1.2",
    endpoint=Endpoint("https://fhir.lakeside.example/r4"),
)
CARDIOLOGY = replace(
    HARBOR, id="cardiology", name="Heartland Cardiology", patient_id_system="urn:oid:2.999.1.3", endpoint=None
)
WILLOW = replace(HARBOR, id="willow", name="Willow Nursing Home", patient_id_system="urn:oid:2.999.1.4", endpoint=None)

PHYSICIAN = User("r.ortiz@harbor.example", "Dr. Rosa Ortiz", Role.CLINICIAN, "harbor")
ADMINISTRATOR = User("j.mills@harbor.example", "Jonas Mills", Role.MEMBER_ADMIN, "harbor")
OPERATOR = User("ops@exchange.example", "Olu Adeyemi", Role.OPERATOR, None)
STEWARD = User("d.stein@exchange.example", "Dana Stein", Role.DATA_STEWARD, None)
OFFICER = User("p.okafor@exchange.example", "Patience Okafor", Role.PRIVACY_OFFICER, None)
SECOND_OFFICER = User("t.lund@exchange.example", "Tove Lund", Role.PRIVACY_OFFICER, None)
PATIENT = User("marta.lindqvist@mail.example", "Marta Lindqvist", Role.PATIENT, None)
USERS = (PHYSICIAN, ADMINISTRATOR, OPERATOR, STEWARD, OFFICER, SECOND_OFFICER, PATIENT)


class Clock:
    """The time, which a test may set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **time: float) -> None:
        self.now += timedelta(**time)


@dataclass
class FakeDirectory:
    held: dict[str, Member] = field(default_factory=lambda: {m.id: m for m in (HARBOR, LAKESIDE, CARDIOLOGY, WILLOW)})
    users_held: dict[str, User] = field(default_factory=lambda: {u.email: u for u in USERS})
    systems: dict[str, Client] = field(
        default_factory=lambda: {
            i: Client(i, member, Role.MEMBER, None, None, Scopes.parse("system/*.cruds"))
            for i, member in (("harbor-ehr", "harbor"), ("lakeside-ehr", "lakeside"))
        }
    )

    def member(self, id: str) -> Member | None:
        return self.held.get(id)

    def members(self) -> list[Member]:
        return list(self.held.values())

    def user(self, email: str) -> User | None:
        return self.users_held.get(email.strip().lower())

    def users(self) -> list[User]:
        return list(self.users_held.values())

    def authenticate(self, email: str, password: str) -> User | None:
        return self.user(email) if password == PASSWORD else None

    def client(self, id: str) -> Client | None:
        return self.systems.get(id)

    def clients(self, member_id: str | None) -> list[Client]:
        return [c for c in self.systems.values() if c.member_id == member_id]

    def update_endpoint(self, member_id: str, endpoint: Endpoint, *, also: Callable[[Any, Any], None]) -> Member:
        if "taken" in endpoint.url:
            raise Conflict("This address belongs to another member.")
        self.held[member_id] = replace(self.held[member_id], endpoint=endpoint)
        also(None, self.held[member_id])
        return self.held[member_id]

    def set_client_keys(self, client_id: str, jwks: dict[str, Any], *, also: Callable[[Any, Any], None]) -> Client:
        self.systems[client_id] = replace(self.systems[client_id], jwks=jwks)
        also(None, self.systems[client_id])
        return self.systems[client_id]


@dataclass
class FakeAudit:
    events: list[Event] = field(default_factory=list)
    failures: list[SourceFailure] = field(default_factory=list)

    def record(self, *events: Event) -> tuple[()]:
        self.events.extend(events)
        return ()

    def append(self, _connection: object, *events: Event) -> tuple[()]:
        return self.record(*events)

    def source_failures(self, member_id: str, limit: int = 20) -> list[SourceFailure]:
        return self.failures[:limit] if member_id == "harbor" else []


@dataclass
class FakeNotices:
    """The inboxes: `held` is harbor's."""

    held: list[Notice] = field(default_factory=list)

    def inbox(self, member_id: str, limit: int = 50) -> list[Notice]:
        return self.held[:limit] if member_id == "harbor" else []


@dataclass
class FakePortal:
    """Patients' accounts: none."""

    held: list[Binding] = field(default_factory=list)

    def of_member(self, system: str) -> list[Binding]:
        return self.held

    def bindings(self, email: str) -> list[Binding]:
        return self.held


@dataclass
class FakeRelease:
    """The door: answers what `people` and `answer` hold, and keeps who asked for what."""

    people: list[Candidate] = field(default_factory=list)
    answer: ChartAnswer | SourcesFailed | None = None
    lookups: list[tuple[Caller, dict[str, Any]]] = field(default_factory=list)
    charts: list[tuple[Caller, str]] = field(default_factory=list)

    years: list[int] = field(default_factory=list)

    def lookup(
        self, caller: Caller, patient: dict[str, Any], limit: int, *, request_id: str, years: int = 0
    ) -> list[Candidate]:
        self.lookups.append((caller, patient))
        self.years.append(years)
        return self.people[:limit]

    def chart(self, caller: Caller, person_id: str, types: Any, *, query: str, request_id: str) -> ChartAnswer:
        self.charts.append((caller, person_id))
        assert self.answer is not None
        if isinstance(self.answer, SourcesFailed):
            raise self.answer
        return self.answer


@dataclass
class Console:
    """The application and everything under it that a test looks at."""

    app: Flask
    clock: Clock
    directory: FakeDirectory
    audit: FakeAudit
    release: FakeRelease


def make_console(base_url: str = "http://127.0.0.1:8080", **more: Any) -> Console:
    """`more` are services that a test brings along, in place of the fakes."""
    clock, directory, audit, release = Clock(), FakeDirectory(), FakeAudit(), FakeRelease()
    services = SimpleNamespace(
        settings=Settings(home=Path("/nonexistent"), base_url=base_url, env=Environment.DEVELOPMENT),
        clock=clock,
        directory=directory,
        audit=audit,
        release=release,
        notices=FakeNotices(),
        portal=FakePortal(),
        secret=b"s" * 32,
    )
    vars(services).update(more)
    app = Flask("hie", static_folder=None)
    app.extensions["hie"] = cast(Services, services)
    context.install(app)
    console.install(app)
    problems.install(app, console.problem_page)
    return Console(app, services.clock, directory, audit, release)


# -- a patient and what is known of her


def record(member: Member, number: str, person_id: str = "p-marta") -> SourceRecord:
    return SourceRecord(
        id=f"{member.id}-{number}",
        member_id=member.id,
        identifier=Identifier(member.patient_id_system, number),
        person_id=person_id,
        version=1,
        active=True,
        resource={},
        updated=NOW,
    )


MARTA = Person(
    id="p-marta",
    records=(record(LAKESIDE, "L-20417"), record(CARDIOLOGY, "55810"), record(WILLOW, "W-0093")),
    resource={
        "resourceType": "Patient",
        "id": "p-marta",
        "name": [
            {"use": "official", "family": "Lindqvist", "given": ["Marta", "Elisabet"]},
            {"use": "old", "family": "Bergström", "given": ["Marta"]},
        ],
        "gender": "female",
        "birthDate": "1949-11-02",
        "address": [{"line": ["4 Quay Road"], "city": "Boston", "state": "MA"}],
        "telecom": [{"system": "phone", "value": "617-555-0107"}],
    },
)
MARTINA = Person(
    id="p-martina",
    records=(record(LAKESIDE, "L-88123", "p-martina"),),
    resource={
        "resourceType": "Patient",
        "id": "p-martina",
        "name": [{"family": "Lindquist", "given": ["Martina"]}],
        "gender": "female",
        "birthDate": "1984-06-23",
        "address": [{"city": "Quincy", "state": "MA"}],
    },
)
CANDIDATES = [
    Candidate(
        MARTA,
        0.9994,
        11.2,
        (
            Agreement("given", "exact", 6.1),
            Agreement("family", "typo", 7.9),
            Agreement("birth_date", "exact", 9.3),
        ),
    ),
    Candidate(
        MARTINA,
        0.04,
        -4.1,
        (
            Agreement("given", "similar", 1.2),
            Agreement("family", "exact", 8.4),
            Agreement("birth_date", "different", -6.0),
        ),
    ),
]

RELEASED = Decision(permit=True, rule="exchange-default")


def entry(member: Member, resource: dict[str, Any], labels: tuple[str, ...] = ("N",), **decided: Any) -> ChartEntry:
    return ChartEntry(
        resource={"id": "r1", **resource},
        member_id=member.id,
        member_name=member.name,
        sha256="0" * 64,
        labels=labels,
        decision=replace(RELEASED, **decided),
    )


def status(member: Member, code: str = "ok", count: int = 1, elapsed_ms: float = 84.0) -> SourceStatus:
    return SourceStatus(member.id, member.name, code, elapsed_ms, count)


def answer(
    *entries: ChartEntry,
    sources: tuple[SourceStatus, ...] = (status(LAKESIDE),),
    restricted: bool = False,
    break_glass_open: bool = False,
) -> ChartAnswer:
    return ChartAnswer(
        person=MARTA,
        entries=entries,
        sources=sources,
        restricted=restricted,
        break_glass_open=break_glass_open,
        issues=(),
        receipts=(),
    )


def coded(text: str, code: str = "", system: str = "http://snomed.info/sct") -> dict[str, Any]:
    return {"text": text, **({"coding": [{"system": system, "code": code}]} if code else {})}


def allergy(text: str, code: str = "", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "AllergyIntolerance",
        "clinicalStatus": {"coding": [{"code": "active"}]},
        "verificationStatus": {"coding": [{"code": "confirmed"}]},
        "code": coded(text, code),
        **more,
    }


def full_answer() -> ChartAnswer:
    """An answer as an emergency room sees it: two allergies, much else, one organization that is down."""
    lab = {"resourceType": "Observation", "status": "final", "category": [coded("", "laboratory")]}
    entries = (
        entry(
            LAKESIDE,
            allergy(
                "Penicillin V",
                "764146007",
                criticality="high",
                recordedDate="2011-03-08T10:20:00-05:00",
                reaction=[{"manifestation": [coded("Anaphylaxis")], "severity": "severe"}],
            ),
        ),
        entry(
            CARDIOLOGY,
            allergy(
                "Penicillin",
                "764146007",
                recordedDate="2019-09-17",
                reaction=[{"manifestation": [coded("Hives"), coded("Wheezing")], "severity": "moderate"}],
            ),
        ),
        entry(
            CARDIOLOGY,
            allergy(
                "Latex",
                "111088007",
                criticality="low",
                recordedDate="2019-09-17",
                reaction=[{"manifestation": [coded("Contact dermatitis")]}],
            ),
        ),
        entry(
            LAKESIDE,
            allergy(
                "Sulfonamide",
                "387406002",
                recordedDate="2004-02-01",
                verificationStatus={"coding": [{"code": "refuted"}]},
            ),
        ),
        entry(
            CARDIOLOGY,
            {
                "resourceType": "MedicationRequest",
                "status": "active",
                "intent": "order",
                "medicationCodeableConcept": coded("Warfarin 5 mg oral tablet", "855332"),
                "authoredOn": "2026-02-11T15:05:00-05:00",
                "dosageInstruction": [{"text": "1 tablet in the evening; INR target 2 to 3"}],
                "reasonCode": [coded("Atrial fibrillation")],
            },
        ),
        entry(
            LAKESIDE,
            {
                "resourceType": "MedicationStatement",
                "status": "active",
                "medicationCodeableConcept": coded("Levothyroxine 75 mcg oral tablet", "966222"),
                "dateAsserted": "2026-01-20",
                "dosage": [{"text": "1 tablet before breakfast"}],
            },
        ),
        entry(
            LAKESIDE,
            {
                "resourceType": "MedicationRequest",
                "status": "stopped",
                "medicationCodeableConcept": coded("Ibuprofen 400 mg oral tablet", "197805"),
                "authoredOn": "2023-05-02",
            },
        ),
        entry(
            CARDIOLOGY,
            {
                "resourceType": "Condition",
                "clinicalStatus": {"coding": [{"code": "active"}]},
                "code": coded("Atrial fibrillation", "49436004"),
                "onsetDateTime": "2019-09",
                "recordedDate": "2019-09-17",
            },
        ),
        entry(
            LAKESIDE,
            {
                "resourceType": "Condition",
                "clinicalStatus": {"coding": [{"code": "active"}]},
                "code": coded("Hypothyroidism", "40930008"),
                "recordedDate": "2008-04-11",
            },
        ),
        entry(
            LAKESIDE,
            {
                "resourceType": "Immunization",
                "status": "completed",
                "vaccineCode": coded("Influenza, inactivated"),
                "occurrenceDateTime": "2025-10-14",
                "recorded": "2025-10-14",
            },
        ),
        entry(
            CARDIOLOGY,
            lab
            | {
                "code": coded("INR"),
                "effectiveDateTime": "2026-04-27T08:40:00-04:00",
                "issued": "2026-04-27T11:02:00-04:00",
                "valueQuantity": {"value": 3.8, "unit": ""},
                "referenceRange": [{"low": {"value": 2.0}, "high": {"value": 3.0}}],
                "interpretation": [{"coding": [{"code": "H"}]}],
            },
        ),
        entry(
            LAKESIDE,
            lab
            | {
                "code": coded("Creatinine"),
                "effectiveDateTime": "2026-01-20T09:10:00-05:00",
                "issued": "2026-01-20T16:30:00-05:00",
                "valueQuantity": {"value": 1.1, "unit": "mg/dL"},
                "referenceRange": [{"text": "0.5 to 1.1 mg/dL"}],
            },
        ),
        entry(
            LAKESIDE,
            {
                "resourceType": "Encounter",
                "status": "finished",
                "class": {"code": "AMB"},
                "type": [coded("Check-up")],
                "period": {"start": "2026-01-20T09:00:00-05:00", "end": "2026-01-20T09:25:00-05:00"},
            },
        ),
    )
    return answer(
        *entries,
        sources=(
            status(CARDIOLOGY, count=6),
            status(LAKESIDE, count=8, elapsed_ms=131),
            status(WILLOW, "unreachable", 0, 3),
        ),
        restricted=True,
        break_glass_open=True,
    )
