"""`hie consent what-if`: what a person's past disclosures would be under another consent."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from hie.cli.officer import exchange, officer
from hie.consent.choices import CATEGORIES, EMERGENCIES_ONLY, SHARE_ALL, SHARE_SOME, Choice, consent_of
from hie.consent.fhir import check_consent, relative
from hie.core.errors import BadRequest
from hie.core.fhir import Resource, parse_resource
from hie.core.ids import new_id
from hie.gateway.api.decide import provision_of
from hie.gateway.preview import beside
from hie.gateway.replay import Replay, Replayed

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("what-if")
@click.option("--person", required=True, help="The exchange's id of the person.")
@click.option("--consent", "file", type=_FILE, help="A FHIR Consent, as it might be filed.")
@click.option("--emergencies-only", is_flag=True, help="The choice of that name instead of a file.")
@click.option("--keep-back", multiple=True, help=f"A category instead of a file: {', '.join(CATEGORIES)}.")
@click.option("--not-to", multiple=True, help="A member that gets nothing, instead of a file.")
@click.option("--since", help="The first day, as 2026-01-31; all that the log holds without it.")
def what_if(
    person: str,
    file: Path | None,
    emergencies_only: bool,
    keep_back: tuple[str, ...],
    not_to: tuple[str, ...],
    since: str | None,
) -> None:
    """Ask the person's past disclosures again, as if today and under another consent beside those in force.

    Prints what would be kept back. For privacy officers; nothing is released, and the question is logged.
    """
    kind = EMERGENCIES_ONLY if emergencies_only else SHARE_SOME if keep_back or not_to else SHARE_ALL
    choice = Choice(kind, frozenset(keep_back), frozenset(not_to))
    if file is not None and choice != Choice(SHARE_ALL):
        raise BadRequest("Give a file or a choice, not both.")
    if not choice.valid:
        raise BadRequest(f"--keep-back takes {', '.join(CATEGORIES)}; --emergencies-only goes with nothing else.")
    start = _day(since) if since else None
    with exchange() as services:
        now = services.clock()
        body = _read(file, services.settings.fhir_base) if file else consent_of(choice, person, now)
        found = services.release.replay(
            officer(), person, beside(body, person), start, query="hie consent what-if", request_id=new_id()
        )
    click.echo("\n".join(told(found)))


def told(found: Replay) -> list[str]:
    """A replay in lines."""
    lines = [
        f"{len(found.disclosures)} past disclosures, {found.released} records; "
        f"{found.kept_back} records of {len(found.different)} disclosures would be kept back"
    ]
    lines += [line for one in found.different for line in _disclosure(one)]
    if found.short:
        lines.append(f"not sure of all of it: {', '.join(found.short)} did not answer in full")
    if found.older:
        lines.append(f"not all of it: {found.older} older disclosures were not looked at")
    return lines


def _disclosure(one: Replayed) -> list[str]:
    by_log = f", {one.by_log} of them judged by the log alone" if one.by_log else ""
    head = (
        f"  {one.at:%Y-%m-%d %H:%M} {one.organization_name} ({one.organization}), {one.who}, {' '.join(one.purposes)}: "
        f"{one.kept_back} of {one.released} kept back{by_log}; log entry {one.index}"
    )
    because = [
        f"    {count} by {rule}" + (f", {consent} {provision_of(path)}" if consent else "")
        for rule, consent, path, count in one.reasons
    ]
    return [head, *because]


def _read(file: Path, fhir_base: str) -> Resource:
    body = relative(parse_resource(file.read_bytes(), "Consent"), fhir_base)
    check_consent(body)
    return body


def _day(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise BadRequest("--since must be a day, as 2026-01-31.") from None
