"""`hie consent codes`: the codes that give a sensitivity away, what is found by them, and what a change would do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import click

from hie.audit.event import Event, Kind, Outcome
from hie.cli.officer import exchange, officer
from hie.consent.code_files import CodeFile, Row, packaged, read
from hie.consent.codes import CodeSets, Recall, difference, read_pack, recall, sets_of
from hie.consent.vocabulary import sensitivities_and_above
from hie.core.errors import BadRequest, NotFound
from hie.core.ids import new_id
from hie.gateway.preview import somebody
from hie.gateway.recoding import ANYBODY, MOST_PEOPLE, Recoder, Report
from hie.gateway.services import Services

_PACK = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def codes() -> None:
    """The codes that give a sensitivity away."""


@codes.command("list")
def list_files() -> None:
    """The files in force, where their codes come from, and the rows that the officer added."""
    with exchange() as services:
        for file in services.codes.files():
            click.echo(f"{file.name}: {len(file.rows)} rows, {file.date}; {file.sources}")
        for row in services.codes.officers():
            click.echo(f"  {_told(row)}")


@codes.command("look-up")
@click.argument("system")
@click.argument("code")
def look_up(system: str, code: str) -> None:
    """What CODE of SYSTEM (icd10cm, snomed, loinc, rxnorm, cpt, hcpcs, or name) gives away."""
    with exchange() as services:
        labels = labels_of(services.codes, system, code)
    click.echo(", ".join(sorted(labels)) or "nothing")


@codes.command()
@click.option("--system", required=True)
@click.option("--code", required=True)
@click.option("--label", required=True, help="An HL7 sensitivity code: ETH, HIV, PSY …")
@click.option("--kind", default="code", show_default=True, help="code, prefix, range or pattern.")
@click.option("--meaning", default="", help="For the reader.")
def add(system: str, code: str, label: str, kind: str, meaning: str) -> None:
    """Add a code for the privacy officer; it counts from the next request on."""
    row = Row(system, kind, code, label, meaning)
    with exchange() as services:
        services.codes.with_row(row)  # what is wrong with it is said before anything is written
        _record(services, f"Sensitivity code added: {_told(row)}")
        services.codes.add(row, services.clock().date())
    click.echo(f"added {_told(row)}")


@codes.command("take-back")
@click.option("--system", required=True)
@click.option("--code", required=True)
@click.option("--label", required=True)
@click.option("--kind", default="code", show_default=True)
def take_back(system: str, code: str, label: str, kind: str) -> None:
    """Remove a code that the privacy officer added."""
    row = Row(system, kind, code, label)
    with exchange() as services:
        if row[:4] not in {one[:4] for one in services.codes.officers()}:
            raise NotFound("The officer added no such code.")
        _record(services, f"Sensitivity code taken back: {_told(row)}")
        services.codes.take_back(row, services.clock().date())
    click.echo(f"took back {_told(row)}")


@codes.command()
@click.option("--with", "packs", multiple=True, type=_PACK, help="A pack that would be added, or replace its namesake.")
@click.option("--without", multiple=True, help="The name of a file that would go.")
@click.option("--person", "person_ids", multiple=True, help="Only these; without any, all who have a consent in force.")
@click.option("--caller", "named", help="A member's id or a user's e-mail; without it, an organization nobody named.")
@click.option("--most", default=MOST_PEOPLE, show_default=True, help="How many people are looked at.")
def report(
    packs: tuple[Path, ...], without: tuple[str, ...], person_ids: tuple[str, ...], named: str | None, most: int
) -> None:
    """What a change of the codes would newly hide or reveal. Nothing is released, and each look is logged."""
    with exchange() as services:
        before = services.codes.files()
        after = _changed(before, [read_pack(path) for path in packs], without)
        for line in _rows_told(*difference(before, after)):
            click.echo(line)
        asking = somebody(services.directory, named, ["TREAT"]) if named else ANYBODY
        found = Recoder(services.release, services.consents, services.identity).report(
            officer(), sets_of(after), new_id(), somebody=asking, person_ids=person_ids, most=most
        )
    click.echo("\n".join(told(found)))


@codes.command("recall")
@click.argument("lists", nargs=-1, type=_PACK)
@click.option("--missed", is_flag=True, help="Name the codes that are missed.")
def measure(lists: tuple[Path, ...], missed: bool) -> None:
    """How many codes are found of LISTS that others made; without any, of the lists that come with the exchange.

    With the exchange's own files alone: packs and the officer's codes are left out.
    """
    wanted = [read_pack(path) for path in lists] or _held_out()
    sets = sets_of(packaged())
    click.echo(f"{'label':<10}{'system':<10}{'codes':>6}{'by code':>9}{'with words':>12}  list")
    for file in wanted:
        for one in recall(sets, file.rows):
            click.echo(_line(one, file.name))
            for row in one.missed if missed else ():
                click.echo(f"    missed {_told(row)}")


def told(found: Report) -> list[str]:
    """A report in lines."""
    lines = [
        f"looked at {found.people} people with consents in force: "
        f"{found.hidden} records newly hidden, {found.revealed} newly revealed"
    ]
    for one in found.changed:
        for change in one.changes:
            lines.append(
                f"  Patient/{one.person_id} {change.member_name} ({change.member_id}) {change.type}: "
                f"{change.hidden} hidden, {change.revealed} revealed"
            )
    if found.short:
        lines.append(f"not all of it: {', '.join(found.short)} did not answer in full")
    if found.left_out:
        lines.append(f"not all of it: {found.left_out} more people were not looked at")
    return lines


def labels_of(held: CodeSets, system: str, code: str) -> frozenset[str]:
    """What a code or a name gives away, and all above it. Raises BadRequest for an unknown system."""
    try:
        return sensitivities_and_above(held.labels_of(system, code))
    except KeyError:
        raise BadRequest(f"{system[:32]} is no code system that value sets know.") from None


def _changed(before: Sequence[CodeFile], packs: Sequence[CodeFile], without: Iterable[str]) -> list[CodeFile]:
    gone = {*without, *(pack.name for pack in packs)}
    unknown = sorted(set(without) - {file.name for file in before})
    if unknown:
        raise BadRequest(f"There is no file {unknown[0]}; `hie consent codes list` names them.")
    return [*(file for file in before if file.name not in gone), *packs]


def _rows_told(more: Sequence[Row], less: Sequence[Row]) -> Iterable[str]:
    yield f"{len(more)} rows more, {len(less)} rows less"
    shown = [*(f"  + {_told(row)}" for row in more), *(f"  - {_told(row)}" for row in less)]
    yield from shown[:40]
    if len(shown) > 40:
        yield f"  … and {len(shown) - 40} more"


def _held_out() -> list[CodeFile]:
    folder = files("hie.consent") / "heldout"
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".csv")), key=lambda file: file.name)
    return [read(file.name, file.read_text(encoding="utf-8")) for file in found]


def _line(one: Recall, name: str) -> str:
    shares = f"{one.by_code / one.codes:>8.0%} {one.with_words / one.codes:>11.0%}"
    return f"{one.label:<10}{one.system:<10}{one.codes:>6} {shares}  {name}"


def _told(row: Row) -> str:
    return f"{row.system} {row.kind} {row.code} {row.label}" + (f" ({row.meaning})" if row.meaning else "")


def _record(services: Services, description: str) -> None:
    services.audit.record(
        Event(
            kind=Kind.CONSENT,
            outcome=Outcome.SUCCESS,
            action="U",
            caller=officer(),
            person_id=None,
            query="hie consent codes",
            request_id=new_id(),
            description=description,
            entities=("Basic/value-sets",),
        )
    )
