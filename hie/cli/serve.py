"""`hie serve`: gunicorn with threads on `wsgi:app`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from hie.audit.cosigning import parse_witnesses
from hie.audit.log import AuditLog
from hie.audit.seal import Seal
from hie.core import schema
from hie.core.clock import system_clock
from hie.core.config import Settings
from hie.core.database import Database
from hie.core.errors import HieError, LogDamaged


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64), help="Processes.")
@click.option("--threads", default=32, show_default=True, type=click.IntRange(1, 512), help="Threads of each process.")
def serve(host: str, port: int, workers: int, threads: int) -> None:
    """Serve the exchange until stopped."""
    settings = Settings.load()
    database = Database(settings.effective_database_url)
    schema.require_current(database)
    _require_sound_log(database, settings)
    database.close()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_empty_folder(settings.home.absolute() / "metrics"))
    command = [
        *(sys.executable, "-m", "gunicorn", "wsgi:app"),
        *("--bind", f"{host}:{port}", "--workers", str(workers)),
        *("--worker-class", "gthread", "--threads", str(threads)),
        *("--config", "python:hie.gunicorn", "--no-control-socket"),
    ]
    os.execv(sys.executable, command)  # noqa: S606


def _require_sound_log(database: Database, settings: Settings) -> None:
    """An exchange whose log is not the one that was signed does not start."""
    parse_witnesses(settings.witnesses)
    try:
        AuditLog(database, system_clock, settings.fhir_base, Seal.of(settings)).check()
    except LogDamaged as damaged:
        raise HieError(f"The disclosure log is not the one that was signed: {damaged}. Nothing is served.") from None


def _empty_folder(path: Path) -> Path:
    """Metrics of workers of an earlier run would be counted again."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
