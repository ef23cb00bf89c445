"""`hie mpi review`: lists the open questions, answers them, and leaves both in the audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from hie.audit.tables import entries
from hie.cli.main import hie
from hie.core import schema
from hie.core.clock import system_clock
from hie.core.database import Database
from hie.core.errors import Conflict, NotFound
from hie.mpi.identity import Identifier, IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Database, list[str]]:
    """An exchange in `HIE_HOME` with one open question, about these two people."""
    monkeypatch.setenv("HIE_HOME", str(tmp_path))
    monkeypatch.delenv("HIE_DATABASE_URL", raising=False)
    database = Database(f"sqlite:///{tmp_path / 'hie.sqlite'}")
    schema.upgrade(database)
    service = IdentityService(database, MatchIndex(Model.load(), is_sqlite=True), system_clock)
    ids = []
    for value, suffix in (("1", "Sr"), ("2", "Jr")):
        body: dict[str, Any] = {
            "resourceType": "Patient",
            "name": [{"family": "Brandt", "given": ["Otto"], "suffix": [suffix]}],
            "birthDate": "1983-05-19",
            "telecom": [{"system": "phone", "value": "312-555-0188"}],
        }
        ids.append(service.record("harbor", Identifier("urn:oid:2.999.1.1", value), body).record.person_id)
    return database, ids


def run(*words: str) -> Result:
    return CliRunner().invoke(hie, ["mpi", "review", *words], standalone_mode=False)


def kinds(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(sa.select(entries.c.kind).order_by(entries.c.entry_index)))


def test_the_list_says_who_and_why(people: tuple[Database, list[str]]) -> None:
    database, _ = people
    shown = run().output
    assert "same-person   Otto Brandt Jr 1983-05-19 / Otto Brandt Sr 1983-05-19" in shown
    assert "but different generational suffixes" in shown
    assert "1 same-person, 0 contradiction, 0 merge" in shown
    assert kinds(database) == ["search", "search"]


@pytest.mark.parametrize(("answer", "kind", "left"), [("accept", "confirm", 1), ("reject", "reject", 2)])
def test_an_answer_settles_the_question(people: tuple[Database, list[str]], answer: str, kind: str, left: int) -> None:
    database, ids = people
    listed = json.loads(run("--json").output)
    (question,) = listed["questions"]
    assert {side["person"] for side in question["people"]} == set(ids)
    assert {trait["trait"] for trait in question["traits"]} >= {"given", "family"}
    done = json.loads(run(answer, question["question"], "--reason", "The registry says so", "--json").output)
    assert (done["kind"], set(done["people"])) == (kind, set(ids))
    assert json.loads(run("--json").output)["counts"]["same-person"] == 0
    assert kinds(database)[2:4] == ["link", "link"]
    service = IdentityService(database, MatchIndex(Model.load(), is_sqlite=True), system_clock)
    assert len({person.id for i in ids if (person := service.person(i))}) == left


def test_what_cannot_be_answered_says_so(people: tuple[Database, list[str]]) -> None:
    question = json.loads(run("--json").output)["questions"][0]["question"]
    assert isinstance(run("accept", "nosuch", "--reason", "because").exception, NotFound)
    run("accept", question, "--reason", "The registry says so")
    assert isinstance(run("reject", question, "--reason", "The registry says so").exception, Conflict)
