"""`hie demo`: the main job with nothing to install, told as one story.

An exchange on SQLite with six member EHRs beside it, about two thousand invented people, and one question from an
emergency room: what is this woman allergic to? Everything on the road is real (processes, HTTP, signed tokens,
probabilistic linking, consent, the durable log); only the people are not. What is printed comes from the answers.
"""

from __future__ import annotations

import errno
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import date
from types import FrameType
from typing import Any
from urllib.parse import urlencode

import click
import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fixtures.client import Answer, Refused, System
from fixtures.community import EMERGENCY_ROOM, NURSING_HOME, Community, Filing, Registration, build
from fixtures.consents import Choice, consent
from fixtures.stage import Stage, StageError
from hie.core.database import Database
from hie.core.errors import ConfigurationError, HieError
from hie.mpi.tables import link_decisions, source_records

FEEDERS = 8
DOWN = NURSING_HOME
"""The member whose EHR is stopped before the question is asked; it knows the patient."""
PENICILLIN = "7980"
_WIDTH = 80
_FEED = {"scope": "system/Patient.cruds", "purpose": "HOPERAT"}
_CONSENT = {"scope": "system/Consent.cruds", "purpose": "HOPERAT"}
_EMERGENCY = {"scope": "system/*.rs", "purpose": "ETREAT"}
_AUDIT = {"scope": "system/AuditEvent.rs", "purpose": "HOPERAT"}


class DemoFailed(HieError):
    """The demo could not be shown; the message is one line that says why."""


@click.command()
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free port.")
@click.option("--once", is_flag=True, help="Answer the question and exit.")
def demo(port: int, once: bool) -> None:
    """Show the main job: an exchange, six members, and an emergency room's question."""
    port = _usable(port)
    with _ended_by_signals():
        try:
            community = build(today=date.today())  # noqa: DTZ011  (the community lives in local time, like the reader)
            with Stage(community, port) as stage:
                _show(stage)
                if not once:
                    _keep_serving(stage)
        except (StageError, Refused) as error:
            raise DemoFailed(str(error)) from None
        except KeyboardInterrupt:
            click.echo("\nStopped.")


def _show(stage: Stage) -> None:
    """The whole story, up to the point where the exchange could go on serving."""
    _introduce(stage.community)
    _start(stage)
    found = _Emergency(stage).tell()
    _accounts(stage)
    if not found:
        raise DemoFailed("The penicillin allergy that Lakeside Family Practice holds was not found.")


# -- before: everybody comes on stage


def _introduce(community: Community) -> None:
    entries = sum(len(held) for held in community.charts.values())
    _heading("The demo community")
    _text(
        f"{len(community.humans):,} invented people, {len(community.registrations):,} patient records at "
        f"{len(community.organizations)} organizations, {entries:,} chart entries, "
        f"{len(community.filings)} privacy choices."
    )


def _start(stage: Stage) -> None:
    _heading("Starting")
    with _timed(f"{len(stage.community.organizations)} member EHRs, each a process"):
        stage.start_ehrs()
    with _timed("Database, members, keys and accounts"):
        stage.prepare_exchange()
    with _timed(f"Exchange at {stage.base_url}"):
        stage.start_exchange()
    systems = {o.id: stage.member_system(o.id) for o in stage.community.organizations}
    count = len(stage.community.registrations)
    started = time.perf_counter()
    _feed_all(stage.community, systems)
    seconds = time.perf_counter() - started
    _step(f"{count:,} patient records fed, {count / seconds:,.0f} a second", seconds * 1000)
    with _timed(f"{len(stage.community.filings)} privacy choices filed"):
        _file_all(stage.community.filings, systems, stage.community)
    with _timed(f"{_name(stage, DOWN)}: its EHR is stopped, on purpose"):
        stage.stop_ehr(DOWN)


def _feed_all(community: Community, systems: dict[str, System]) -> None:
    columns = (TextColumn("  Feeding"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with progress, _pool() as pool:
        task = progress.add_task("feed", total=len(community.registrations))
        feeding = pool.map(lambda r: _feed(systems[r.member_id], community, r), community.registrations)
        for _ in feeding:
            progress.advance(task)


def _feed(system: System, community: Community, registration: Registration) -> Answer:
    """IHE PIXm ITI-104: conditional PUT under the member's own identifier."""
    identifier = f"{community.organization(registration.member_id).patient_id_system}|{registration.local_id}"
    path = f"/fhir/Patient?{urlencode({'identifier': identifier})}"
    return system.request("PUT", path, registration.patient, **_FEED).accepted(200, 201)


def _file_all(filings: Sequence[Filing], systems: dict[str, System], community: Community) -> None:
    def file(filing: Filing) -> None:
        system = systems[filing.member_id]
        known = _cross_reference(system, community.organization(filing.member_id).patient_id_system, filing.local_id)
        body = consent(filing.choice, _person_id(known), filing.governs, filing.signed)
        system.request("POST", "/fhir/Consent", body, **_CONSENT).accepted(201)

    with _pool() as pool:
        list(pool.map(file, filings))


# -- the question


class _Emergency:
    """What the emergency room asks, and what the exchange answers."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._community = stage.community
        self._physician = stage.member_system(EMERGENCY_ROOM)
        self._system = stage.community.organization(EMERGENCY_ROOM).patient_id_system
        self._local_id = stage.community.arrival.local_id

    def tell(self) -> bool:
        """The story from arrival to the log; whether the penicillin allergy was found."""
        person_id = self._who()
        answer = self._allergies()
        self._silent(answer)
        self._log(person_id)
        return any(PENICILLIN in _codes(allergy) for allergy in answer.resources("AllergyIntolerance"))

    def _who(self) -> str:
        arrival = self._community.arrival
        name = arrival.patient["name"][0]
        _heading(f"A patient arrives at {_name(self._stage, EMERGENCY_ROOM)}, which has never seen her")
        written = f'"{" ".join(name["given"])} {name["family"]}, {arrival.patient["birthDate"]}"'
        registered = _feed(self._physician, self._community, arrival)
        _step(f"Registered as {written}", registered.milliseconds)
        crossed = _cross_reference(self._physician, self._system, self._local_id)
        _step("Who is she elsewhere ($ihe-pix)", crossed.milliseconds)
        found = self._physician.get(
            "/fhir/Patient", [("identifier", f"{self._system}|{self._local_id}")], **_EMERGENCY
        ).accepted(200)
        _step("Her record at the exchange (PDQm search)", found.milliseconds)
        person_id = _person_id(crossed)
        self._print_person(person_id, found.resources("Patient"))
        self._print_match()
        return person_id

    def _print_person(self, person_id: str, found: list[dict[str, Any]]) -> None:
        if not found:
            raise DemoFailed("The patient search did not find the patient who has just been registered.")
        person = found[0]
        name = person["name"][0]
        full = " ".join([*name.get("given", []), name.get("family", "")])
        click.echo(f"\n  {full}, {person.get('gender')}, born {person.get('birthDate')}")
        click.echo(f"  Person {person_id}, known as")
        known_as = {identifier["system"]: identifier["value"] for identifier in person["identifier"]}
        for organization in self._community.organizations:
            if organization.patient_id_system in known_as:
                click.echo(f"    {known_as[organization.patient_id_system]:<14} at {organization.name}")

    def _print_match(self) -> None:
        decision = _decision(self._stage, self._system, self._local_id)
        best = next(iter((decision or {}).get("candidates", [])), None)
        if best is None:
            _text("Not linked to anybody: the exchange knew nobody like her.")
            return
        evidence = sorted(best["agreements"], key=lambda agreement: -abs(agreement["weight"]))
        facts = [f"{a['trait'].replace('_', ' ')} {a['level']} ({a['weight']:+.1f})" for a in evidence]
        probability = best["probability"]
        shown = "above 99.99 %" if probability > 0.9999 else f"{probability:.2%}".replace("%", " %")
        _text(f"Linked with probability {shown}. Evidence in bits: {', '.join(facts)}.")

    def _allergies(self) -> Answer:
        answer = self._physician.get(
            "/fhir/AllergyIntolerance", [("patient.identifier", f"{self._system}|{self._local_id}")], **_EMERGENCY
        ).accepted(200)
        _heading("Her allergies")
        _step("Asked every organization that knows her", answer.milliseconds)
        click.echo()
        allergies = answer.resources("AllergyIntolerance")
        for allergy in sorted(allergies, key=lambda a: a.get("criticality") != "high"):
            self._print_allergy(allergy)
        if not allergies:
            _text("None was found.")
        return answer

    def _print_allergy(self, allergy: dict[str, Any]) -> None:
        reaction: dict[str, Any] = next(iter(allergy.get("reaction", [])), {})
        manifestation = reaction.get("manifestation", [{}])[0].get("text", "")
        what = allergy.get("code", {}).get("text", "")
        how = ", ".join(part for part in (reaction.get("severity", ""), manifestation.lower()) if part)
        mark = "HIGH" if allergy.get("criticality") == "high" else "    "
        source = allergy["meta"]["source"].rpartition("/")[2]
        click.echo(f"  {mark}  {what}{': ' if how else ''}{how}")
        click.echo(f"        source: {_name(self._stage, source)}, recorded {allergy.get('recordedDate', 'undated')}")

    def _silent(self, answer: Answer) -> None:
        _heading("What is missing")
        issues = [issue for outcome in answer.resources("OperationOutcome") for issue in outcome["issue"]]
        for issue in issues:
            _text(issue["diagnostics"])
        _text("She may have more allergies than these." if issues else "Nothing: every organization answered.")

    def _log(self, person_id: str) -> None:
        _heading("What the log holds of it")
        found = self._stage.privacy_office().get("/fhir/AuditEvent", [("patient", f"Patient/{person_id}")], **_AUDIT)
        found.accepted(200)
        entries = found.body.get("total", len(found.resources("AuditEvent")))
        _step(f"{entries} entries about her, read by the privacy office", found.milliseconds)


def _cross_reference(system: System, id_system: str, local_id: str) -> Answer:
    """IHE PIXm ITI-83."""
    question = [("sourceIdentifier", f"{id_system}|{local_id}")]
    return system.get("/fhir/Patient/$ihe-pix", question, scope="system/*.rs", purpose="TREAT").accepted(200)


def _person_id(cross_reference: Answer) -> str:
    for parameter in cross_reference.body.get("parameter", []):
        if parameter["name"] == "targetId":
            return str(parameter["valueReference"]["reference"]).rpartition("/")[2]
    raise DemoFailed("The exchange does not say which person a fed patient is.")


def _decision(stage: Stage, system: str, value: str) -> dict[str, Any] | None:
    """The reasons that the exchange keeps for where this source record is linked."""
    database = Database(f"sqlite:///{stage.home / 'hie.sqlite'}")
    query = (
        sa.select(link_decisions.c.reasons)
        .join(source_records, source_records.c.id == link_decisions.c.record_id)
        .where(source_records.c.system == system, source_records.c.value == value)
        .order_by(link_decisions.c.at.desc())
    )
    with closing(database), database.read() as connection:
        reasons: dict[str, Any] | None = connection.execute(query).scalars().first()
    return reasons


def _codes(resource: dict[str, Any]) -> set[str]:
    return {coding.get("code", "") for coding in resource.get("code", {}).get("coding", [])}


# -- after: the reader's turn


def _accounts(stage: Stage) -> None:
    _heading(f"Sign in at {stage.base_url}/")
    for account in stage.accounts:
        where = _name(stage, account.member_id) if account.member_id else "the exchange"
        click.echo(f"  {account.email:<25} {account.password:<12} {account.role}, {where}")


def _keep_serving(stage: Stage) -> None:
    click.echo("\n  Look up as the clinician, for instance:")
    for name, born, why in _suggestions(stage.community):
        click.echo(f"    {name}, born {born}: {why}")
    click.echo("\nServing until Ctrl-C.")
    stage.wait()


def _suggestions(community: Community) -> Iterator[tuple[str, str, str]]:
    """The story patient, and one person for each kind of choice that covers everything."""
    arrival = community.arrival.patient
    yield f"{arrival['name'][0]['given'][0]} {arrival['name'][0]['family']}", arrival["birthDate"], "the story above"
    patients = {(r.member_id, r.local_id): r.patient for r in community.registrations}
    for choice in (Choice.BREAK_GLASS_ONLY, Choice.NO_PSYCHIATRY):
        filing = next((f for f in community.filings if f.choice is choice and f.governs == "exchange"), None)
        if filing is not None:
            patient = patients[filing.member_id, filing.local_id]
            name = patient["name"][0]
            yield f"{name['given'][0]} {name['family']}", patient["birthDate"], f"chose to {choice.value}"


def _usable(port: int) -> int:
    """The port, or a free one for 0; raises ConfigurationError when somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = "needs more rights" if error.errno == errno.EACCES else "is in use"
            raise ConfigurationError(f"Port {port} {reason}. Choose another with --port.") from None
        return int(probe.getsockname()[1])


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP unwind like an exit, so that every child is ended."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that drop what is not begun when the block is left by an error."""
    pool = ThreadPoolExecutor(FEEDERS)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# -- printing, 80 columns wide


def _name(stage: Stage, member_id: str) -> str:
    return stage.community.organization(member_id).name


def _heading(text: str) -> None:
    click.echo(f"\n{text}")


def _text(text: str) -> None:
    click.echo(click.wrap_text(text, _WIDTH, initial_indent="  ", subsequent_indent="  "))


def _step(label: str, milliseconds: float) -> None:
    click.echo(f"  {label:<64}{milliseconds:>10,.0f} ms")


@contextmanager
def _timed(label: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    _step(label, (time.perf_counter() - started) * 1000)
