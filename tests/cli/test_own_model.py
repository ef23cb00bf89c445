"""A model of the exchange's own (`HIE_MATCH_MODEL`) decides its feeds, and a file that is none stops the start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from fixtures import populations
from hie.app import build_services
from hie.cli.main import hie
from hie.core import schema
from hie.core.config import Settings
from hie.core.errors import ConfigurationError
from hie.gateway.services import Services
from hie.mpi.identity import Identifier
from hie.mpi.index import Verdict
from tests.mpi.identity.conftest import marta


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """An exchange with a model that was trained on a file and links from 0.999999999999 only."""
    populations.write(populations.generate(300, 5).records, tmp_path / "people.csv")
    model = tmp_path / "model.json"
    done = CliRunner().invoke(hie, ["mpi", "train", str(tmp_path / "people.csv"), "--output", str(model)])
    assert done.exit_code == 0, done.output
    body = json.loads(model.read_text())
    model.write_text(json.dumps({**body, "thresholds": {**body["thresholds"], "link": 0.999999999999}}))
    monkeypatch.setenv("HIE_HOME", str(tmp_path))
    monkeypatch.delenv("HIE_DATABASE_URL", raising=False)
    monkeypatch.setenv("HIE_MATCH_MODEL", str(model))
    made = build_services(Settings.load())
    schema.upgrade(made.database)
    yield made
    made.database.close()


def test_its_own_model_decides(services: Services) -> None:
    stored = [
        services.identity.record("harbor", Identifier("urn:oid:2.999.1.1", number), patient)
        for number, patient in (("1", marta(identifier=[])), ("2", marta(identifier=[], telecom=[])))
    ]
    decision = stored[1].decision
    assert decision is not None
    assert decision.verdict is Verdict.REVIEW  # the shipped model would link
    own = json.loads((services.settings.home / "model.json").read_text())
    assert decision.model_version == own["version"]


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"format": "hie-match-model/1"})])
def test_a_file_that_is_no_model_stops_the_start(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIE_HOME", str(tmp_path))
    monkeypatch.setenv("HIE_MATCH_MODEL", str(tmp_path / "model.json"))
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        build_services(Settings.load())
    assert "\n" not in str(refused.value)


def test_the_indexes_are_made_anew(services: Services) -> None:
    for record in populations.generate(20, 6).records[:30]:
        row = asdict(record)
        name = {"family": row["family"], "given": [row["given"]]}
        services.identity.record(
            "harbor", Identifier("urn:oid:2.999.1.1", row["record_id"]), {"resourceType": "Patient", "name": [name]}
        )
    done = CliRunner().invoke(hie, ["mpi", "reindex"])
    assert (done.exit_code, done.output) == (0, "30 records indexed.\n")
