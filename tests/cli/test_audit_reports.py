"""`hie audit report` and its neighbours, as the privacy officer types them; on both databases."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hie.audit.log import AuditLog
from hie.audit.query import AuditQuery
from hie.audit.seal import Seal
from hie.cli import audit_reports
from hie.core import schema
from hie.core.clock import system_clock
from hie.core.config import Settings
from hie.core.database import Database
from hie.core.errors import BadRequest, ConfigurationError, NotFound
from hie.gateway import manifest
from hie.gateway.directory import Directory
from hie.mpi.identity import Identifier, IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model
from tests.audit.samples import BASE, caller, disclosure

SYSTEM = "urn:oid:2.999.1.2"


@dataclass
class Office:
    """An exchange with one person and some entries, and the commands about them."""

    database: Database
    identity: IdentityService
    log: AuditLog
    person_id: str

    def add_member(self, slug: str) -> None:
        content = {"members": [{"id": slug, "name": "Lakeside Hospital", "patient_id_system": SYSTEM}]}
        settings = Settings(home=Path("/nonexistent"))
        Directory(self.database, system_clock, settings).apply(manifest.parse(content, development=True))

    def run(self, command: str, *words: str) -> Result:
        return CliRunner().invoke(getattr(audit_reports, command), list(words))

    def report(self, *words: str) -> Result:
        return self.run("report", "--patient", self.person_id, *words)


def patient(family: str, **more: Any) -> dict[str, Any]:
    born = {"gender": "female", "birthDate": "1949-11-02"}
    return {"resourceType": "Patient", "name": [{"family": family, "given": ["Marta"]}], **born, **more}


@pytest.fixture
def office(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setenv("HIE_HOME", str(tmp_path / "var"))
    monkeypatch.setenv("HIE_DATABASE_URL", database_url)
    database = Database(database_url)
    schema.upgrade(database)
    identity = IdentityService(database, MatchIndex(Model.load(), database.is_sqlite), system_clock)
    fed = identity.record("lakeside", Identifier(SYSTEM, "L-1"), patient("Lindqvist"))
    log = AuditLog(database, system_clock, BASE, Seal.of(Settings.load()))
    log.record(disclosure(fed.record.person_id), disclosure("somebody-else"))
    yield Office(database, identity, log, fed.record.person_id)
    log.close()
    database.close()


def test_the_accounting_is_csv_on_stdout_and_its_completeness_on_stderr(office: Office) -> None:
    said = office.report()
    assert said.exit_code == 0
    (row,) = csv.DictReader(io.StringIO(said.stdout_bytes.decode(), newline=""))
    assert (row["patient"], row["recipient"], row["what"]) == ("Marta Lindqvist", "Lakeside Hospital", "1 allergy")
    assert said.stderr.startswith("Complete: the bodies of all 2 entries of the log were searched")


def test_making_a_report_is_an_entry_about_the_patient(office: Office) -> None:
    office.report("--format", "json")
    newest = office.log.search(AuditQuery(persons=((office.person_id,),))).entries[0]
    assert newest.kind == "log-read"
    assert newest.resource["outcomeDesc"] == "Accounting of disclosures: 1 line, as json"
    assert office.log.search(AuditQuery(agents=(("Device/command line",),))).total == 1


def test_a_person_may_be_named_by_a_patient_number_and_as_a_reference(office: Office) -> None:
    for named in (f"{SYSTEM}|L-1", f"Patient/{office.person_id}"):
        said = office.run("report", "--patient", named, "--format", "json")
        assert json.loads(said.stdout_bytes)["patients"][0]["id"] == office.person_id


def test_the_entries_of_a_merged_identity_are_in_the_report(office: Office) -> None:
    other = office.identity.record(
        "lakeside", Identifier(SYSTEM, "L-2"), patient("Nowak", birthDate="1980-01-01", gender="male")
    ).record.person_id
    assert other != office.person_id
    office.log.record(disclosure(other))
    office.identity.merge("lakeside", Identifier(SYSTEM, "L-2"), Identifier(SYSTEM, "L-1"))
    for person_id in (other, office.person_id):
        found = json.loads(office.run("report", "--patient", person_id, "--format", "json").stdout_bytes)
        assert set(found["patients"][0]["ids"]) == {office.person_id, other}
        assert found["rows"][0]["entries"] == "0 2"


def test_every_format_and_kind_can_be_had(office: Office, tmp_path: Path) -> None:
    starts = {"pdf": b"%PDF-", "csv": b"patient,", "json": b"{", "jsonl": b"{", "bundle": b'{"resourceType":"Bundle"'}
    for form, start in starts.items():
        assert office.report("--format", form).stdout_bytes.startswith(start)
    for kind in ("part2", "access", "onc"):
        assert office.report("--kind", kind).exit_code == 0
    target = tmp_path / "report.zip"
    assert office.report("--format", "zip", "--output", str(target)).stdout_bytes == b""
    assert "entries.ndjson" in zipfile.ZipFile(target).namelist()


def test_an_onc_report_sorts_by_any_field_within_a_time(office: Office) -> None:
    said = office.report("--kind", "onc", "--sort", "user_name", "--descending", "--from", "2020-01-01")
    assert said.exit_code == 0
    assert len(list(csv.DictReader(io.StringIO(said.stdout_bytes.decode())))) == 1
    assert office.report("--kind", "onc", "--until", "2020-01-01", "--format", "jsonl").stdout_bytes == b""


def test_an_incomplete_report_is_printed_and_exits_1(office: Office) -> None:
    with office.database.write() as connection:
        if office.database.is_sqlite:
            connection.exec_driver_sql("DROP TRIGGER audit_entries_no_update")
        else:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("UPDATE audit_entries SET person_id = 'x' WHERE entry_index = 0")
    said = office.report()
    assert said.exit_code == 1
    assert b"Lakeside Hospital" in said.stdout_bytes
    assert said.stderr.startswith("NOT complete: Entry 0 is about this report's people")


def test_nobody_and_a_schema_behind_are_told_in_one_line(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = office.run("report", "--patient", "nobody")
    assert isinstance(said.exception, NotFound)
    assert "Give a person id" in said.exception.message
    monkeypatch.setenv("HIE_DATABASE_URL", f"sqlite:///{tmp_path / 'new.sqlite'}")
    assert isinstance(office.report().exception, ConfigurationError)


# -- review, holds, archives


GLASS = caller(
    purposes=frozenset({"BTG", "ETREAT", "TREAT"}), break_glass_reason="unconscious", client_id=None, user_id="rosa"
)


def test_the_queue_is_listed_break_glass_first(office: Office) -> None:
    assert office.run("review").output == "nothing waits for review\n"
    office.log.record(disclosure(office.person_id, caller=GLASS))
    said = office.run("review").output.splitlines()
    assert said[0] == "open      Rosa Ortiz, Lakeside Hospital (rosa)"
    assert said[1].endswith("break-glass: Broke the glass and was shown 1 allergy. The reason given: “unconscious”.")
    (case,) = json.loads(office.run("review", "--look", "--json").output)
    assert (case["break_glass"], case["items"][0]["person"]) == (True, office.person_id)


def test_a_hold_is_placed_listed_and_lifted(office: Office) -> None:
    assert office.run("hold").output == ""
    assert office.run("hold", office.person_id, "--reason", "Lindqvist v. Harbor").output == "the hold is placed\n"
    assert "command line  Lindqvist v. Harbor" in office.run("hold").output
    assert office.run("hold", f"{SYSTEM}|L-1", "--lift").output == "the hold is lifted\n"
    assert isinstance(office.run("hold", office.person_id, "--lift").exception, NotFound)
    assert office.run("hold", office.person_id).exit_code == 2
    assert office.log.search(AuditQuery(kinds=(("retention",),))).total == 2


def test_what_is_old_is_archived_and_the_archive_checked(office: Office, tmp_path: Path) -> None:
    path = tmp_path / "old.ndjson"
    assert office.run("archive", str(path)).output == "nothing to archive\n"
    aged = AuditLog(office.database, lambda: datetime(2015, 1, 1, tzinfo=UTC), BASE, Seal.of(Settings.load()))
    aged.record(disclosure(office.person_id), disclosure("somebody-else"))
    aged.close()
    office.run("hold", office.person_id, "--reason", "Lindqvist v. Harbor")
    said = office.run("archive", str(path)).output
    assert said.startswith(f"1 entry archived to {path}; 1 stay under a hold or an open case; SHA-256 ")
    assert office.run("archive", str(path), "--check").output == f"1 entry of {path}: as the log commits to\n"
    assert office.report().exit_code == 0


def test_a_suspension_leaves_a_recipient_out(office: Office) -> None:
    words = (office.person_id, "--recipient", "lakeside", "--agency", "Sheriff Doe", "--until", "2099-01-01")
    assert isinstance(office.run("suspend", *words).exception, NotFound)
    office.add_member("lakeside")
    assert isinstance(office.run("suspend", *words).exception, BadRequest)
    assert office.run("suspend", *words, "--written").output == "suspended until 2099-01-01\n"
    assert "Lakeside Hospital" not in office.report().output
    assert b"FOR THE PRIVACY OFFICER ONLY" in office.report("--with-suspended", "--format", "json").stdout_bytes
