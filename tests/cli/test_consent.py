"""`hie consent without-effect`: what it shows of a person is in the log before it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from hie.app import build_services
from hie.audit.tables import entries
from hie.cli.main import hie
from hie.cli.officer import officer
from hie.core import schema
from hie.core.config import Settings


def test_consents_without_effect_are_shown_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIE_HOME", str(tmp_path))
    monkeypatch.delenv("HIE_DATABASE_URL", raising=False)
    services = build_services(Settings.load())
    schema.upgrade(services.database)
    says_nothing = {
        "resourceType": "Consent",
        "status": "active",
        "scope": {"coding": [{"code": "patient-privacy"}]},
        "dateTime": "2026-01-01",
    }
    stored = services.consents.create(says_nothing, "p1", officer())
    shown = CliRunner().invoke(hie, ["consent", "without-effect"])
    assert shown.exit_code == 0
    assert shown.output.startswith(f"{stored.reference} Patient/p1, filed by exchange\n")
    with services.database.read() as connection:
        logged = [(row.person_id, row.kind) for row in connection.execute(sa.select(entries))]
    services.database.close()
    assert logged == [("p1", "consent")]
