"""`hie apply FILE`: make members, endpoints, clients and users match a manifest (contract section 4)."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
import sqlalchemy as sa

from hie.cli.opening import opened
from hie.core.config import Settings
from hie.core.ids import new_id
from hie.gateway import manifest
from hie.gateway.directory import Change, change_event


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as JSON.")
def apply(file: Path, dry_run: bool, as_json: bool) -> None:
    """Make members, endpoints, clients and users match the YAML or JSON manifest FILE.

    Prints one line a change: + added, ~ changed (with the fields), - removed. Applying it again changes nothing.

    What the manifest does not name stays: members, the exchange's own clients and users are never removed. A member's
    `clients`, where given, are all of its clients: others of that member are removed (an empty list removes all). A
    member without `endpoint`, and a user without `password`, keep what they have; `endpoint: null` takes it away.
    """
    try:
        wanted = manifest.load(file, development=Settings.load().development)
    except manifest.ManifestError as wrong:
        for mistake in wrong.mistakes:
            click.echo(f"hie: {mistake}", err=True)
        sys.exit(2)
    request_id = new_id()
    with opened() as exchange:

        def record(connection: sa.Connection, changes: list[Change]) -> None:
            exchange.audit.append(connection, *(change_event(change, None, request_id) for change in changes))

        changes = exchange.directory.apply(wanted, dry_run=dry_run, also=record)
    _print(changes, as_json)


def _print(changes: list[Change], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(change) for change in changes], indent=2))
    elif not changes:
        click.echo("nothing to change")
    for change in changes if not as_json else ():
        click.echo(str(change))
