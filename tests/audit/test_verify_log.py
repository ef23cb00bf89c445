"""`tools/verify_log.py` as a patient's lawyer runs it: a file, a key, and nothing of the exchange."""

import ast
import json
import subprocess
import sys
import threading
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from hie.audit.note import COSIGNATURE, Note, SigningKey
from hie.audit.tables import cosignatures
from tests.audit.samples import disclosure
from tests.audit.test_api import client

__all__ = ["client"]

TOOL = Path(__file__).parents[2] / "tools" / "verify_log.py"


@pytest.fixture(params=["sqlite"])
def database_url(tmp_path):
    """The tool never sees a database."""
    return f"sqlite:///{tmp_path / 'hie.sqlite'}"


@pytest.fixture
def filled(log):
    for _ in range(6):
        log.record(*(disclosure(f"person-{n}") for n in range(50)))
    return log


@pytest.fixture
def key(filled, tmp_path):
    path = tmp_path / "log.vkey"
    path.write_text("".join(f"{key}\n" for key in filled.evidence.public_keys()))
    return path


@pytest.fixture
def exported(filled, tmp_path):
    path = tmp_path / "log.ndjson"
    path.write_bytes(b"".join(filled.evidence.export()))
    return path


def run(*words):
    """In an interpreter that sees neither this project nor its environment."""
    done = subprocess.run(
        [sys.executable, "-I", str(TOOL), *map(str, words)], capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1 or done.returncode == 2
    return done


def test_it_imports_the_standard_library_and_cryptography_alone():
    tree = ast.parse(TOOL.read_text())
    found = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    strangers = {name.split(".")[0] for name in found} - sys.stdlib_module_names
    assert strangers == {"cryptography"}


def test_an_export_verifies_with_the_key_and_what_was_kept(exported, key, filled, tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_bytes(filled.evidence.checkpoint())
    receipt = tmp_path / "answer.tlog-proof"
    receipt.write_bytes(bytes(filled.evidence.proof(filled.entry(7).entry_id)))
    done = run(exported, "--key", key, "--checkpoint", kept, "--checkpoint", receipt)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "verified: 300 entries from 0 on, under the checkpoint of 300\n"
    part = tmp_path / "part.ndjson"
    part.write_bytes(b"".join(filled.evidence.export(290)))
    assert run(part, "--key", key.read_text().strip()).stdout.startswith("verified: 10 entries from 290 on")


def changed_line(path, number, change):
    lines = path.read_text().splitlines()
    content = json.loads(lines[number])
    change(content)
    lines[number] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda e: e.update(body=e["body"].replace("lakeside", "meadow00")),
            "index 123: the body is not what the leaf",
        ),
        (lambda e: e.update(salt="00" * 16), "index 123: the body is not what the leaf commits to"),
        (lambda e: e.update(leaf=e["leaf"].replace("disclosure", "feed")), "index 123: the proof does not lead"),
        (lambda e: e.update(leaf=e["leaf"].replace(",", ", ", 1)), "index 123: the leaf is not written as version 1"),
        (lambda e: e["proof"].reverse(), "index 123: the proof does not lead"),
        (lambda e: e["proof"].pop(), "index 123: the proof does not lead"),
        (lambda e: e["proof"].append(e["proof"][0]), "index 123: the proof is too long"),
        (lambda e: e.update(index=124), "index 123: the entry is missing"),
    ],
)
def test_a_changed_entry_is_named(exported, key, change, said):
    changed_line(exported, 124, change)
    done = run(exported, "--key", key)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_entries_left_out_are_named(exported, key):
    lines = exported.read_text().splitlines(keepends=True)
    for kept, said in (
        (lines[:124] + lines[125:], "index 123: the entry is missing"),
        (lines[:-1], "the log ends at 299 entries, and a checkpoint has signed 300"),
        (lines[:1], "the log ends at 0 entries"),
        ([], "not an export"),
    ):
        exported.write_text("".join(kept))
        done = run(exported, "--key", key)
        assert done.returncode == 1
        assert said in done.stderr


def test_a_log_that_does_not_extend_what_was_kept(exported, key, filled, tmp_path):
    kept = tmp_path / "kept.txt"
    filled.record(disclosure())
    kept.write_bytes(filled.evidence.checkpoint())
    done = run(exported, "--key", key, "--checkpoint", kept)
    assert done.returncode == 1
    assert "ends at 300 entries, and a checkpoint has signed 301" in done.stderr


def test_another_key_and_a_forged_signature(exported, key, filled):
    stranger = SigningKey.generate("hie.example/log")
    done = run(exported, "--key", stranger.verifier)
    assert done.returncode == 1
    assert "is not signed by a key of its log that was given" in done.stderr
    other = SigningKey.generate("other.example/log")
    assert run(exported, "--key", other.verifier).returncode == 1

    def forge(head):
        note = Note.parse(head["checkpoint"].encode())
        head["checkpoint"] = bytes(Note(note.text.replace("300", "299"), note.signatures)).decode()

    changed_line(exported, 0, forge)
    done = run(exported, "--key", key)
    assert done.returncode == 1
    assert "is false" in done.stderr
    assert run(exported).returncode == 2
    assert run(exported, "--key", "nonsense").returncode == 1


def test_a_witness_is_required_where_one_is_named(database, filled, key, tmp_path):
    witness = SigningKey.generate("w.example/1", COSIGNATURE)
    receipt = tmp_path / "answer.tlog-proof"
    receipt.write_bytes(bytes(filled.evidence.proof(filled.entry(7).entry_id)))
    done = run(receipt, "--key", key, "--witness", witness.verifier)
    assert done.returncode == 1
    assert "not signed by the witness w.example/1" in done.stderr
    text = Note.parse(filled.evidence.checkpoint()).text
    with database.write() as connection:
        line = str(witness.cosign(text, 1_800_000_000)).encode()
        connection.execute(cosignatures.insert().values(tree_size=300, witness="w.example/1+00000000", line=line))
    receipt.write_bytes(bytes(filled.evidence.proof(filled.entry(7).entry_id)))
    done = run(receipt, "--key", key, "--witness", witness.verifier)
    assert done.returncode == 0
    assert done.stdout.startswith("verified: entry 7, {")


def test_a_changed_receipt(filled, key, tmp_path):
    receipt = tmp_path / "answer.tlog-proof"
    raw = bytes(filled.evidence.proof(filled.entry(7).entry_id))
    receipt.write_bytes(raw.replace(b"index 7", b"index 8"))
    done = run(receipt, "--key", key)
    assert done.returncode == 1
    assert "index 8: the proof does not lead" in done.stderr


@pytest.fixture
def events(client, filled, tmp_path):
    """An answer of `/fhir/AuditEvent`, as an officer kept it."""
    path = tmp_path / "events.json"
    headers = {"Authorization": "Bearer officer"}
    path.write_bytes(client.get("/fhir/AuditEvent?patient=person-7", headers=headers).data)
    return path


def test_the_events_of_an_answer_verify_by_what_they_carry(events, key, filled, tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_bytes(filled.evidence.checkpoint())
    done = run(events, "--key", key, "--checkpoint", kept)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "verified: 6 AuditEvents, each the body of its entry: 257 207 157 107 57 7\n"
    one = json.loads(events.read_text())["entry"][0]["resource"]
    events.write_text(json.dumps(dict(reversed(one.items())), indent=2))
    assert run(events, "--key", key).stdout == "verified: 1 AuditEvents, each the body of its entry: 257\n"
    events.write_text("{}")
    assert "this is not an export" in run(events, "--key", key).stderr


def changed_part(event, name, value):
    part = next(part for part in event["extension"][0]["extension"] if part["url"] == name)
    part[next(key for key in part if key != "url")] = value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: e.update(outcome="4"), "index 257: the body is not what the leaf commits to"),
        (lambda e: changed_part(e, "salt", "AA=="), "index 257: the body is not what the leaf commits to"),
        (lambda e: changed_part(e, "index", 256), "index 256: the proof is of entry 257"),
        (lambda e: changed_part(e, "proof", "AAAA"), "is not a proof of the form"),
        (lambda e: e.pop("extension"), "no AuditEvent with a proof"),
        (lambda e: e["extension"].append(e["extension"][0]), "no AuditEvent with a proof and nothing else"),
    ],
)
def test_a_changed_event_is_named(events, key, change, said):
    bundle = json.loads(events.read_text())
    change(bundle["entry"][0]["resource"])
    events.write_text(json.dumps(bundle))
    done = run(events, "--key", key)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(client):
    server = make_server("127.0.0.1", 0, client.application, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/log"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_log_verifies_over_http_with_nothing_but_its_address_and_key(address, key, filled, tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_bytes(filled.evidence.checkpoint())
    filled.record(disclosure())
    done = run(address, "--key", key, "--checkpoint", kept)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"verified: 301 entries, served at {address}\n"


def test_the_privacy_office_checks_the_bodies_too(address, key, filled, database):
    assert run(address, "--key", key, "--bodies").returncode == 2
    done = run(address, "--key", key, "--bodies", "--token", "member")
    assert "answered 403" in done.stderr
    done = run(address, "--key", key, "--bodies", "--token", "officer")
    assert done.returncode == 0, done.stderr
    assert filled.evidence.checkpoint().split(b"\n")[1] == b"602"  # 300, a refusal, and a look at each of those 301


def test_a_log_that_cannot_be_reached(key, free_port):
    done = run(f"http://127.0.0.1:{free_port()}/log", "--key", key)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
