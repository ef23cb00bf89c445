"""`hie audit report` and what else the privacy officer does at the command line: suspend, hold, archive, review."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from hie.audit.accounting import Accounting, Asked, ReportKind, read_event
from hie.audit.log import AuditLog
from hie.audit.report_formats import Format, render
from hie.audit.seal import Seal
from hie.core import schema
from hie.core.clock import system_clock
from hie.core.config import Settings
from hie.core.database import Database, ensure_parent
from hie.core.ids import new_id
from hie.gateway.directory import Directory
from hie.gateway.subjects import subject
from hie.mpi.identity import IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model

MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"])


@dataclass(frozen=True)
class Opened:
    """What these commands work with."""

    settings: Settings
    database: Database
    audit: AuditLog
    directory: Directory
    identity: IdentityService


@contextmanager
def opened() -> Iterator[Opened]:
    """Raises ConfigurationError, telling `hie db upgrade`, where the schema is behind."""
    settings = Settings.load()
    ensure_parent(settings.effective_database_url)
    database = Database(settings.effective_database_url)
    try:
        schema.require_current(database)
        yield Opened(
            settings,
            database,
            AuditLog(database, system_clock, settings.fhir_base, Seal.of(settings)),
            Directory(database, system_clock, settings),
            IdentityService(database, MatchIndex(Model.load(), database.is_sqlite), system_clock),
        )
    finally:
        database.close()


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
            )
        )
        content = render(made, Format(form))
        exchange.audit.record(*read_event(made, form, None, new_id()))
        exchange.audit.close()
    if output:
        output.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)
    click.echo(str(made.completeness), err=True)
    if not made.completeness.complete:
        sys.exit(1)


def _accounting(exchange: Opened) -> Accounting:
    addresses = {m.id: m.address or "" for m in exchange.directory.members()}
    return Accounting(
        exchange.database,
        system_clock,
        address_of=lambda member_id: addresses.get(member_id, ""),
        part2_members=lambda: frozenset(m.id for m in exchange.directory.members() if m.part2),
    )
