"""`hie audit report` and what else the privacy officer does at the command line: suspend, hold, archive, review."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from hie.audit.accounting import Accounting, Asked, ReportKind, read_event
from hie.audit.cases import Case, Item
from hie.audit.proved import proofs_for
from hie.audit.report_formats import Format, render
from hie.audit.retention import Retention
from hie.audit.review import Review
from hie.audit.suspensions import Suspension
from hie.audit.thresholds import Thresholds
from hie.audit.words import count
from hie.cli.opening import Opened, opened
from hie.core.clock import instant, system_clock
from hie.core.errors import NotFound
from hie.core.ids import new_id
from hie.gateway.community import ExchangeCommunity
from hie.gateway.subjects import subject

MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"])


@click.command()
@click.option("--patient", "patients", required=True, multiple=True, help="Person id or system|value; may be repeated.")
@click.option("--kind", type=click.Choice([k.value for k in ReportKind]), default="accounting", show_default=True)
@click.option("--format", "form", type=click.Choice([f.value for f in Format]), default="csv", show_default=True)
@click.option("--from", "start", type=MOMENT, help="Not before this day (UTC); by default as far as the law reaches.")
@click.option("--until", "end", type=MOMENT, help="Before this day (UTC); by default up to now.")
@click.option("--required-only", is_flag=True, help="Leave out what 45 CFR 164.528 does not require.")
@click.option("--with-suspended", is_flag=True, help="List suspended recipients too. Not for the patient.")
@click.option("--sort", help="Sort by this field; by default oldest first.")
@click.option("--descending", is_flag=True, help="Sort the other way round.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
def report(
    patients: tuple[str, ...],
    kind: str,
    form: str,
    start: datetime | None,
    end: datetime | None,
    required_only: bool,
    with_suspended: bool,
    sort: str | None,
    descending: bool,
    output: Path | None,
) -> None:
    """Say what of a patient's data went to whom, when and why.

    Kinds: accounting (45 CFR 164.528), part2 (42 CFR 2.24), access (every access in plain words), onc (45 CFR 170.315
    (d)(3)). The report checks itself against the whole log; exit 1 when it is not complete. Making one is an entry of
    the log.
    """
    with opened() as exchange:
        made = _accounting(exchange).report(
            Asked(
                kind=ReportKind(kind),
                subjects=tuple(subject(exchange.identity, patient) for patient in dict.fromkeys(patients)),
                start=start.replace(tzinfo=UTC) if start else None,
                end=end.replace(tzinfo=UTC) if end else None,
                required_only=required_only,
                whole=with_suspended,
                sort=sort,
                descending=descending,
                every_body=True,
            )
        )
        evidence = exchange.audit.evidence
        content = render(made, Format(form), proofs=partial(proofs_for, exchange.database, evidence))
        exchange.audit.record(*read_event(made, form, None, new_id()))
        exchange.audit.close()
    if output:
        output.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)
    click.echo(str(made.completeness), err=True)
    if not made.completeness.complete:
        sys.exit(1)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Only hold the archive FILE against the log.")
def archive(file: Path, check: bool) -> None:
    """Move entries that are past their retention (HIE_RETENTION_YEARS, six years) to FILE, as NDJSON.

    The file is written, read again and held against the log first; only then are the bodies emptied. Leaves stay, so
    the log verifies as ever and proves the archive. Entries under a legal hold or in an open case stay.
    """
    with opened() as exchange:
        retention = _retention(exchange)
        if check:
            click.echo(f"{count(retention.check(file), 'entry', 'entries')} of {file}: as the log commits to")
            return
        done = retention.archive(file, None, new_id())
        exchange.audit.close()
    kept = f"; {done.held:,} stay under a hold or an open case" if done.held else ""
    if not done.entries:
        click.echo(f"nothing to archive{kept}")
    else:
        number = count(done.entries, "entry", "entries")
        click.echo(f"{number} archived to {file}{kept}; SHA-256 {done.sha256}")


@click.command()
@click.argument("patient", required=False)
@click.option("--reason", help="The matter that the hold is for; places a hold on PATIENT.")
@click.option("--lift", is_flag=True, help="End the holds on PATIENT.")
def hold(patient: str | None, reason: str | None, lift: bool) -> None:
    """Place, lift or list legal holds. While one stands, no entry about PATIENT is archived."""
    with opened() as exchange:
        retention = _retention(exchange)
        if patient is None:
            for one in retention.holds():
                click.echo(f"{one.person_id}  {one.placed:%Y-%m-%d}  {one.placed_by}  {one.reason}")
        elif lift:
            retention.lift(subject(exchange.identity, patient).person_id, None, new_id())
            click.echo("the hold is lifted")
        elif reason:
            retention.hold(subject(exchange.identity, patient).person_id, reason, None, new_id())
            click.echo("the hold is placed")
        else:
            raise click.UsageError("Give --reason to place a hold, or --lift to end it.")
        exchange.audit.close()


@click.command()
@click.argument("patient")
@click.option("--recipient", required=True, help="The member that the disclosures went to.")
@click.option("--agency", required=True, help="Who asked for it: agency and official.")
@click.option("--until", "ends", type=MOMENT, required=True, help="When it ends (UTC).")
@click.option("--written", is_flag=True, help="There is a written statement; without one, 30 days at most.")
def suspend(patient: str, recipient: str, agency: str, ends: datetime, written: bool) -> None:
    """Leave disclosures to law enforcement or oversight out of PATIENT's accounting (45 CFR 164.528 (a)(2))."""
    with opened() as exchange:
        if exchange.directory.member(recipient) is None:
            raise NotFound(f"There is no member {recipient}.")
        person_id = subject(exchange.identity, patient).person_id
        wanted = Suspension(person_id, recipient, system_clock(), ends.replace(tzinfo=UTC), agency, written)
        _retention(exchange).suspend(wanted, None, new_id())
        exchange.audit.close()
    click.echo(f"suspended until {ends:%Y-%m-%d}")


@click.command()
@click.option("--look", is_flag=True, help="Judge what happened since the last look first; for a daily job.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def review(look: bool, as_json: bool) -> None:
    """List the cases that wait for review, break-glass first. Patients are named by id."""
    with opened() as exchange:
        community = ExchangeCommunity(exchange.database, exchange.directory)
        queue = Review(exchange.database, system_clock, exchange.audit, community, Thresholds.load())
        queue.collect()
        if look:
            queue.look()
        waiting = queue.queue()
        items = queue.summaries([case.id for case in waiting])
        exchange.audit.close()
    if as_json:
        click.echo(json.dumps([_case(case, items[case.id]) for case in waiting], indent=2))
        return
    for case in waiting:
        click.echo(f"{case.status.value:<10}{case.actor_name}, {case.organization_name} ({case.actor})")
        for item in items[case.id]:
            click.echo(f"{'':<10}{item.at:%Y-%m-%d %H:%M}  {item.rule.value}: {item.sentence}")
    if not waiting:
        click.echo("nothing waits for review")


def _case(case: Case, items: list[Item]) -> dict[str, object]:
    return {
        "id": case.id,
        "status": case.status.value,
        "break_glass": case.break_glass,
        "organization": case.organization,
        "actor": case.actor,
        "name": case.actor_name,
        "assignee": case.assignee,
        "items": [
            {
                "rule": item.rule.value,
                "at": instant(item.at),
                "person": item.person_id,
                "entries": list(item.entries),
                "why": item.sentence,
            }
            for item in items
        ],
    }


def _retention(exchange: Opened) -> Retention:
    years = exchange.settings.retention_years
    return Retention(exchange.database, system_clock, exchange.audit, exchange.identity.person_ids, years)


def _accounting(exchange: Opened) -> Accounting:
    addresses = {m.id: m.address or "" for m in exchange.directory.members()}
    return Accounting(
        exchange.database,
        system_clock,
        address_of=lambda member_id: addresses.get(member_id, ""),
        part2_members=lambda: frozenset(m.id for m in exchange.directory.members() if m.part2),
    )


COMMANDS = (report, review, hold, suspend, archive)
"""What the group `audit` has of this module."""
