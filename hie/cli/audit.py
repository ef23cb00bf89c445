"""`hie audit`: verify the disclosure log, export it with proofs, print its newest checkpoint, change its key."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hie.audit.checkpoint import PROOF_HEADER, Proof, SignedCheckpoint
from hie.audit.cosigning import Cosigning, parse_witnesses
from hie.audit.event import Event, Kind, Outcome
from hie.audit.note import NoteError, VerifierKey, encode
from hie.audit.seal import KeyRing, Seal
from hie.audit.verify import Report, Seen, Wrong, own_mark
from hie.audit.verify import verify as verified
from hie.cli import audit_reports
from hie.cli.opening import Opened, opened
from hie.core.caller import COMMAND_LINE
from hie.core.config import Settings
from hie.core.errors import ConfigurationError, HieError, LogDamaged
from hie.core.ids import new_id

Shown = Callable[[int, int], None]
_REDRAW_SECONDS = 0.2
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def audit() -> None:
    """The disclosure log."""


for _command in audit_reports.COMMANDS:
    audit.add_command(_command)


@audit.command()
@click.option("--checkpoint", "kept", type=_FILE, multiple=True, help="A checkpoint or receipt that somebody kept.")
@click.option("--public-key", "keys", type=_FILE, help="The log's vkeys, from /log/key; else this host's own.")
@click.option("--witness-key", "witness_keys", type=_FILE, help="Witnesses' vkeys, a line each; else HIE_WITNESSES.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(kept: tuple[Path, ...], keys: Path | None, witness_keys: Path | None, as_json: bool) -> None:
    """Read every entry again, rebuild the tree, and check all that was signed; exit 1 at the first thing wrong.

    Checked are each entry's place, commitment and leaf, the columns and side tables that it is found by, every tile and
    every checkpoint; that the log extends this host's high-water mark and whatever is given with --checkpoint; and the
    cosignatures of known witnesses.

    What was cut off at the end cannot be seen from within: give a checkpoint or a receipt that is newer.
    """
    with _opened() as exchange:
        settings, seal = exchange.settings, Seal.of(exchange.settings)
        ring = _public_ring(keys) if keys else seal.ring()
        try:
            mark = [] if keys else own_mark(seal, ring)
        except NoteError as error:
            raise HieError(f"the log does not verify: {error}") from None
        seen = [_seen(path, ring) for path in kept] + mark
        known = _vkeys(witness_keys) if witness_keys else [w.key for w in parse_witnesses(settings.witnesses)]
        exchange.audit.close()
        with _progress() as progress:
            url = settings.effective_database_url
            try:
                report = verified(url, ring, seen=seen, witnesses=known, progress=progress)
            except Wrong as wrong:
                if as_json:
                    click.echo(json.dumps({"ok": False, "index": wrong.index, "reason": wrong.reason}))
                raise HieError(f"the log does not verify: index {wrong.index}: {wrong.reason}") from None
        _print(report, ring, seen, as_json)


@audit.command()
@click.option("--from", "first", default=0, show_default=True, type=click.IntRange(0), help="Index of the first entry.")
def export(first: int) -> None:
    """Write the log to standard output as NDJSON, each entry with its body, leaf and inclusion proof.

    The export is itself an entry, and in it. `tools/verify_log.py` checks the file anywhere.
    """
    with _opened() as exchange:
        log = exchange.audit
        log.check()
        log.record(_exported(first))
        for line in log.evidence.export(first):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


@audit.command()
def checkpoint() -> None:
    """Print the newest signed checkpoint. Whoever keeps it can hold the log to it: `hie audit verify --checkpoint`."""
    with _opened() as exchange:
        note = exchange.audit.evidence.checkpoint()
        if note is None:
            raise HieError("The log is empty, so there is no checkpoint.")
        click.echo(note.decode(), nl=False)


@audit.command()
@click.option("--write", "elsewhere", type=click.Path(path_type=Path), help="Where to write the keys, not to HIE_HOME.")
def rotate_key(elsewhere: Path | None) -> None:
    """Sign with a new key from now on; older checkpoints stay good. Prints the new vkey.

    Running workers take it over by themselves. Where the key is the setting HIE_LOG_KEY, --write names the file whose
    content is its new value; until the exchange has been started again with it, nothing is released.
    """
    with _opened() as exchange:
        if Seal.of(exchange.settings).from_environment and elsewhere is None:
            raise click.UsageError("The key is the setting HIE_LOG_KEY: say with --write where its new value shall go.")
        click.echo(str(exchange.audit.rotate_key(elsewhere)))


@audit.command()
def cosign() -> None:
    """Ask the witnesses of HIE_WITNESSES now; exit 1 if one of them does not cosign the newest checkpoint.

    The exchange does this by itself after it has written, every HIE_WITNESS_SECONDS.
    """
    witnesses = parse_witnesses(Settings.load().witnesses)
    if not witnesses:
        raise ConfigurationError("HIE_WITNESSES names no witness.")
    with _opened() as exchange:
        exchange.audit.check()
        asking = Cosigning(exchange.database, witnesses, seconds=0)
        refused = [witness.key.name for witness in witnesses if not asking.ask(witness)]
    if refused:
        raise HieError(f"Not cosigned by {', '.join(refused)}.")
    click.echo(f"cosigned by {', '.join(witness.key.name for witness in witnesses)}")


@contextmanager
def _opened() -> Iterator[Opened]:
    """The exchange; raises HieError where its log is damaged."""
    try:
        with opened() as exchange:
            yield exchange
    except LogDamaged as damaged:
        raise HieError(f"The disclosure log is not the one that was signed: {damaged}.") from None


def _exported(first: int) -> Event:
    return Event(
        kind=Kind.LOG_READ,
        outcome=Outcome.SUCCESS,
        action="E",
        caller=None,
        person_id=None,
        query="hie audit export",
        request_id=new_id(),
        description=f"The log was exported from the command line, from entry {first} on",
        client_id=COMMAND_LINE,
    )


def _public_ring(path: Path) -> KeyRing:
    try:
        return KeyRing.parse(path.read_text())
    except (NoteError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} holds no public key of a log: {error}.") from None


def _vkeys(path: Path) -> list[VerifierKey]:
    try:
        return [VerifierKey.parse(line) for line in path.read_text().split()]
    except (NoteError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} holds no public keys: {error}.") from None


def _seen(path: Path, ring: KeyRing) -> Seen:
    """A kept checkpoint, or the one in a kept receipt; the log's own signature must be on it."""
    raw = path.read_bytes()
    try:
        if raw.startswith(PROOF_HEADER.encode()):
            proof = Proof.parse(raw)
            proof.require_included()
            raw = bytes(proof.signed.note)
        signed = SignedCheckpoint.parse(raw)
        return Seen(ring.checked(raw), f"{path.name} of {signed.size} entries")
    except NoteError as error:
        raise ConfigurationError(f"{path} is no checkpoint of this log: {error}.") from None


@contextmanager
def _progress() -> Iterator[Shown]:
    """A bar on a terminal, and nothing in a pipe. Drawn by the caller: a thread would not survive the workers' fork."""
    columns = (TextColumn("Verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=quiet) as bar:
        task = bar.add_task("entries", total=None)
        shown = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal shown
            bar.update(task, completed=done, total=total)
            if time.monotonic() - shown > _REDRAW_SECONDS:
                bar.refresh()
                shown = time.monotonic()

        yield show


def _print(report: Report, ring: KeyRing, seen: list[Seen], as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps(
                {
                    "ok": True,
                    "origin": ring.origin,
                    "entries": report.entries,
                    "root": encode(report.root),
                    "checkpoints": report.checkpoints,
                    "cosignatures": report.cosignatures,
                    "unknown_cosignatures": report.unknown_cosignatures,
                    "archived": report.archived,
                }
            )
        )
        return
    click.echo(f"{report.entries:,} entries, root {encode(report.root)}")
    click.echo(f"{report.checkpoints:,} checkpoints signed by {ring.origin}")
    for one in seen:
        click.echo(f"extends {one.whose}")
    if report.archived:
        click.echo(f"{report.archived:,} bodies are in archives, where alone their search columns can be checked")
    if report.cosignatures or report.unknown_cosignatures:
        click.echo(f"{report.cosignatures:,} cosignatures, {report.unknown_cosignatures:,} more by unknown witnesses")
