"""`hie apply` and `hie member`, as an operator types them; on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from hie.audit.log import AuditLog
from hie.audit.query import AuditQuery
from hie.audit.seal import Seal
from hie.cli import main as command_line
from hie.core.clock import system_clock
from hie.core.database import Database
from tests.gateway.outside import ec_key, manifest_dict


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Hie = Callable[..., Said]


@pytest.fixture
def bare_hie(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Hie:
    """The `hie` command with a database that is empty."""
    monkeypatch.setenv("HIE_HOME", str(tmp_path / "var"))
    monkeypatch.setenv("HIE_DATABASE_URL", database_url)
    monkeypatch.delenv("HIE_ENV", raising=False)

    def run(*words: object) -> Said:
        monkeypatch.setattr("sys.argv", ["hie", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            command_line.main()
        printed = capsys.readouterr()
        return Said(int(left.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def hie(bare_hie: Hie) -> Hie:
    assert bare_hie("db", "upgrade").code == 0
    return bare_hie


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "exchange.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


Write = Callable[[Any], Path]


def test_apply_prints_what_it_changed_and_then_nothing(hie: Hie, write: Write) -> None:
    first = hie("apply", write(manifest_dict()))
    assert (first.code, first.err) == (0, "")
    assert first.out.splitlines()[:4] == [
        "+ member lakeside",
        "+ member meadow",
        "+ member harvest",
        "+ client lakeside-ehr",
    ]
    assert hie("apply", write(manifest_dict())) == Said(0, "nothing to change\n", "")
    content = manifest_dict()
    content["members"][0]["clients"][0]["scopes"] = ["system/Patient.rs"]
    del content["members"][0]["clients"][1]
    assert hie("apply", write(content)).out == "- client lakeside-rsa\n~ client lakeside-ehr: scopes\n"


def test_dry_run_changes_nothing(hie: Hie, write: Write) -> None:
    dry = hie("apply", write(manifest_dict()), "--dry-run")
    assert (dry.code, dry.out.splitlines()[0]) == (0, "+ member lakeside")
    assert json.loads(hie("member", "list", "--json").out) == []
    assert hie("apply", write(manifest_dict())).out == dry.out


def test_changes_as_json(hie: Hie, write: Write) -> None:
    changes = json.loads(hie("apply", write(manifest_dict()), "--json").out)
    assert changes[0] == {"action": "added", "what": "member", "id": "lakeside", "fields": []}
    assert json.loads(hie("apply", write(manifest_dict()), "--json").out) == []


def test_every_mistake_is_a_line_and_the_exit_code_is_2(hie: Hie, write: Write) -> None:
    content = manifest_dict()
    content["members"][0]["endpoint"]["url"] = "https://127.0.0.1/fhir"
    content["users"][0]["rôle"] = "x"
    said = hie("apply", write(content))
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        "hie: members[0].endpoint.url: The host of the address is not a public address.",
        "hie: users[0].rôle: is not a known key; did you mean role?",
    ]
    assert json.loads(hie("member", "list", "--json").out) == []


def test_a_conflict_with_what_stands_is_a_line_and_the_exit_code_is_2(hie: Hie, write: Write) -> None:
    hie("apply", write(manifest_dict()))
    rival = {"id": "rival", "name": "Rival", "patient_id_system": "urn:oid:2.999.1.1"}
    said = hie("apply", write({"members": [rival]}))
    assert said == Said(2, "", "hie: member rival: patient_id_system belongs to member lakeside.\n")


def test_a_file_that_is_not_there(hie: Hie, tmp_path: Path) -> None:
    said = hie("apply", tmp_path / "nothing.yaml")
    assert said.code == 2
    assert "does not exist" in said.err


def test_an_old_schema_says_what_to_run(bare_hie: Hie, write: Write) -> None:
    for said in (bare_hie("apply", write(manifest_dict())), bare_hie("member", "list")):
        assert said.code == 2
        assert "hie db upgrade" in said.err
        assert said.err.count("\n") == 1


def test_the_log_knows_what_was_applied_without_secrets(
    hie: Hie, write: Write, database_url: str, tmp_path: Path
) -> None:
    content = manifest_dict()
    hie("apply", write(content))
    content["members"][1]["endpoint"]["auth"]["password"] = "another-secret"
    content["users"][0]["password"] = "another horse battery"
    hie("apply", write(content))
    hie("apply", write(content), "--dry-run")
    database = Database(database_url)
    log = AuditLog(database, system_clock, "https://exchange.example/fhir", Seal(tmp_path, ""))
    entries = [json.dumps(entry.resource) for entry in log.search(AuditQuery()).entries]
    database.close()
    assert len(entries) == 12
    assert "user r.ortiz@lakeside.example: password" in entries[0]
    assert "member meadow: endpoint" in entries[1]
    for secret in ("meadow-secret", "another-secret", "horse battery", "$argon2id"):
        assert not any(secret in entry for entry in entries)


def test_members_are_listed_and_shown_without_secrets(hie: Hie, write: Write) -> None:
    assert "hie apply" in hie("member", "list").out
    hie("apply", write(manifest_dict()))
    lines = hie("member", "list").out.splitlines()
    assert lines[0].split() == ["id", "name", "kind", "patient", "id", "system", "endpoint"]
    assert lines[2].split() == [
        "lakeside",
        "Lakeside",
        "Hospital",
        "provider",
        "urn:oid:2.999.1.1",
        "https://fhir.lakeside.example/r4",
    ]
    shown = hie("member", "show", "meadow").out
    assert "auth: type basic, username hie, password ********" in shown
    assert "client meadow-ehr: member, keys meadow, system/*.rs" in shown
    assert "purposes: TREAT" in shown
    as_json = hie("member", "show", "meadow", "--json").out
    assert json.loads(as_json)["auth"] == {"type": "basic", "username": "hie", "password": "********"}
    assert "meadow-secret" not in shown + as_json


def test_a_member_that_is_not_there(hie: Hie, write: Write) -> None:
    hie("apply", write(manifest_dict()))
    for command in ("show", "check"):
        said = hie("member", command, "nobody")
        assert said == Said(1, "", "hie: there is no member nobody; known: harvest, lakeside, meadow\n")


class Server(BaseHTTPRequestHandler):
    """A member's FHIR server: `/fhir` is fit for use, anything else is not FHIR."""

    def do_GET(self) -> None:
        body: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset", "total": 0}
        if self.path.endswith("/metadata"):
            types = ("Patient", "AllergyIntolerance")
            body = {
                "resourceType": "CapabilityStatement",
                "status": "active",
                "date": "2026-01-01",
                "kind": "instance",
                "fhirVersion": "4.0.1",
                "format": ["json"],
                "rest": [{"mode": "server", "resource": [self.resource(t) for t in types]}],
            }
        raw = json.dumps(body).encode() if self.path.startswith("/fhir") else b"<html>SECRET-LOGIN</html>"
        self.send_response(200)
        self.send_header("Content-Type", "application/fhir+json" if self.path.startswith("/fhir") else "text/html")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    @staticmethod
    def resource(kind: str) -> dict[str, Any]:
        search = [{"name": "patient", "type": "reference"}]
        return {"type": kind, "interaction": [{"code": "read"}, {"code": "search-type"}], "searchParam": search}

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()
    listening.server_close()


def test_a_check_says_what_is_wrong_and_how_to_mend_it(
    hie: Hie, write: Write, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIE_ENV", "development")
    member = {"id": "harbor", "name": "Harbor", "patient_id_system": "urn:oid:2.999.5"}
    hie("apply", write({"members": [member | {"endpoint": {"url": f"{server}/fhir"}}]}))
    fit = hie("member", "check", "harbor")
    assert (fit.code, fit.out.splitlines()[-1]) == (0, "harbor is fit for use")

    hie("apply", write({"members": [member | {"endpoint": {"url": f"{server}/portal"}}]}))
    unfit = hie("member", "check", "harbor")
    assert unfit.code == 1
    assert "error " in unfit.out
    assert "\n        -> " in unfit.out
    assert "SECRET-LOGIN" not in unfit.out
    report = json.loads(hie("member", "check", "harbor", "--json").out)
    assert report["ok"] is False
    assert any(finding["mend"] for finding in report["findings"])


def test_a_private_key_in_the_manifest_is_not_printed(hie: Hie, write: Write) -> None:
    content = manifest_dict()
    private = ec_key("privacy").as_dict(private=True)
    content["clients"][0]["jwks"] = {"keys": [private]}
    said = hie("apply", write(content))
    assert said.code == 2
    assert private["d"] not in said.err + said.out
