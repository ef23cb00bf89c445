"""`hie member list`, `show`, `check`: the members of the exchange, without their secrets."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from hie.cli.opening import Opened, opened
from hie.core.errors import NotFound
from hie.gateway import capability
from hie.gateway.directory import Auth, Client, Member
from hie.gateway.keys import signing_key

_MASK = "********"
_COLUMNS = ("id", "name", "kind", "patient_id_system", "endpoint")


@click.group()
def member() -> None:
    """The member organizations."""


@member.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_members(as_json: bool) -> None:
    """List the members."""
    with opened() as exchange:
        rows = [_row(m) for m in exchange.directory.members()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("no members yet; add some with: hie apply FILE")
    else:
        _print_table(rows)


@member.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(id: str, as_json: bool) -> None:
    """Show the member ID with its endpoint and clients; secrets are masked."""
    with opened() as exchange:
        shown = _details(_member(exchange, id), exchange.directory.clients(id))
    if as_json:
        click.echo(json.dumps(shown, indent=2))
    else:
        _print_details(shown)


@member.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def check(id: str, as_json: bool) -> None:
    """Call the endpoint of the member ID and say what it supports or what is wrong; exit 1 unless it is fit for use."""
    with opened() as exchange:
        checked, settings = _member(exchange, id), exchange.settings
    report = capability.check(checked, development=settings.development, signing_key=lambda: signing_key(settings.home))
    findings = [{"level": f.level, "subject": f.subject, "text": f.text, "mend": f.mend} for f in report.findings]
    if as_json:
        click.echo(json.dumps({"ok": report.ok, "findings": findings}, indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding['level']:<8}{finding['subject']}: {finding['text']}")
            if finding["mend"]:
                click.echo(f"{'':<8}-> {finding['mend']}")
        click.echo(f"{id} is fit for use" if report.ok else f"{id} is not fit for use yet")
    if not report.ok:
        sys.exit(1)


def _member(exchange: Opened, id: str) -> Member:
    found = exchange.directory.member(id)
    if found is None:
        known = ", ".join(m.id for m in exchange.directory.members()) or "none yet"
        raise NotFound(f"there is no member {id}; known: {known}")
    return found


def _row(shown: Member) -> dict[str, str]:
    return {
        "id": shown.id,
        "name": shown.name,
        "kind": shown.kind,
        "patient_id_system": shown.patient_id_system,
        "endpoint": shown.endpoint.url if shown.endpoint else "",
    }


def _details(shown: Member, clients: list[Client]) -> dict[str, Any]:
    return {
        **_row(shown),
        "auth": _auth(shown.endpoint.auth) if shown.endpoint else {},
        "consent_default": shown.consent_default or "",
        "purposes": sorted(shown.purposes),
        "part2": shown.part2,
        "address": shown.address or "",
        "clients": [_client(client) for client in clients],
    }


def _auth(auth: Auth) -> dict[str, str]:
    settings = {
        "type": auth.type,
        "username": auth.username,
        "password": _MASK if auth.password else None,
        "token": _MASK if auth.token else None,
        "client_id": auth.client_id,
        "token_url": auth.token_url,
        "scope": auth.scope,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _client(client: Client) -> dict[str, Any]:
    where = client.jwks_uri or ", ".join(key["kid"] for key in (client.jwks or {}).get("keys", []))
    return {"id": client.id, "role": client.role.value, "keys": where, "scopes": str(client.scopes)}


def _print_table(rows: list[dict[str, str]]) -> None:
    header = {column: column.replace("_", " ") for column in _COLUMNS}
    widths = [max(len(row[column]) for row in (header, *rows)) for column in _COLUMNS]
    for row in (header, *rows):
        line = "  ".join(row[column].ljust(width) for column, width in zip(_COLUMNS, widths, strict=True))
        click.echo(line.rstrip())


def _print_details(shown: dict[str, Any]) -> None:
    for name, value in shown.items():
        if name == "clients":
            for client in value:
                click.echo(f"client {client['id']}: {client['role']}, keys {client['keys']}, {client['scopes']}")
        elif name == "auth":
            click.echo("auth: " + (", ".join(f"{key} {text}" for key, text in value.items()) or "none"))
        else:
            click.echo(f"{name.replace('_', ' ')}: {_plain(value)}")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value or "-")
