"""A witness (c2sp.org/tlog-witness) that somebody else runs, and the exchange that asks it."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests
import sqlalchemy as sa

from hie.audit.checkpoint import Checkpoint, SignedCheckpoint
from hie.audit.cosigning import Cosigning, WitnessAt, parse_witnesses
from hie.audit.log import AuditLog
from hie.audit.merkle import EMPTY_ROOT, consistency_proof
from hie.audit.note import COSIGNATURE, Note, Signature, SigningKey
from hie.audit.tables import cosignatures
from hie.audit.witness import AddCheckpoint, Witness
from hie.core.errors import ConfigurationError
from tests.audit.samples import BASE, Clock, disclosure, seal
from tests.audit.test_merkle import grown, mth

LEAVES = [str(number).encode() for number in range(40)]
LOG = SigningKey.generate("hie.example/log")
NOW = 1_800_000_000.0


def note(size, key=LOG, leaves=LEAVES, origin=None):
    text = str(Checkpoint(origin or key.verifier.name, size, mth(leaves[:size])))
    return bytes(Note(text, (key.sign(text),)))


def proof(old, new, leaves=LEAVES):
    return tuple(consistency_proof(old, new, grown(leaves[:new])[1])) if old else ()


def asked(old, new, **changes):
    return bytes(AddCheckpoint(old, proof(old, new), note(new, **changes)))


@pytest.fixture
def witness(tmp_path):
    return Witness(tmp_path / "witness", "meadow.example/witness", [LOG.verifier], lambda: NOW)


def test_checkpoints_that_extend_each_other_are_cosigned(witness):
    for old, new in ((0, 5), (5, 5), (5, 32), (32, 40)):
        answer = witness.add_checkpoint(asked(old, new))
        assert answer.status == 200
        line = Signature.parse(answer.body.removesuffix("\n"))
        assert witness.verifier.accepts(Note.parse(note(new)).text, line)
        assert line.timestamp == NOW
        kept = SignedCheckpoint.parse(witness.latest("hie.example/log"))
        assert kept.size == new
        assert set(kept.note.signers([LOG.verifier, witness.verifier])) == {LOG.verifier, witness.verifier}


@pytest.mark.parametrize(("old", "new"), [(0, 40), (5, 40), (31, 40), (33, 40)])
def test_a_stale_size_is_told_the_last_one(witness, old, new):
    witness.add_checkpoint(asked(0, 32))
    answer = witness.add_checkpoint(asked(old, new))
    assert (answer.status, answer.body, answer.content_type) == (409, "32\n", "text/x.tlog.size")


def test_another_history_is_never_cosigned(witness):
    witness.add_checkpoint(asked(0, 32))
    forked = [*LEAVES[:7], b"another", *LEAVES[8:]]
    fork = note(40, leaves=forked)
    for given in (proof(32, 40), proof(32, 40, forked), (), proof(32, 39)):
        assert witness.add_checkpoint(bytes(AddCheckpoint(32, given, fork))).status == 422
    same_size = bytes(AddCheckpoint(32, (), note(32, leaves=forked)))
    answer = witness.add_checkpoint(same_size)
    assert (answer.status, answer.body) == (409, "32\n")
    assert SignedCheckpoint.parse(witness.latest("hie.example/log")).root == mth(LEAVES[:32])


def test_going_back_is_never_cosigned(witness):
    witness.add_checkpoint(asked(0, 32))
    assert witness.add_checkpoint(bytes(AddCheckpoint(32, (), note(20)))).status == 400
    assert witness.add_checkpoint(asked(0, 20)).status == 409
    assert witness.add_checkpoint(bytes(AddCheckpoint(0, (), note(0)))).status == 409


def test_the_first_proof_is_empty_and_an_empty_log_has_the_empty_root(witness):
    assert witness.add_checkpoint(bytes(AddCheckpoint(0, proof(5, 32), note(32)))).status == 422
    text = str(Checkpoint("hie.example/log", 0, b"x" * 32))
    assert witness.add_checkpoint(bytes(AddCheckpoint(0, (), bytes(Note(text, (LOG.sign(text),)))))).status == 409
    assert Checkpoint.parse(Note.parse(note(0)).text).root == EMPTY_ROOT
    assert witness.add_checkpoint(bytes(AddCheckpoint(0, (), note(0)))).status == 200


def test_who_signed_matters(witness):
    stranger = SigningKey.generate("hie.example/log")
    assert witness.add_checkpoint(asked(0, 5, key=stranger)).status == 403
    forged = note(5).replace(b"\n5\n", b"\n6\n")
    assert witness.add_checkpoint(bytes(AddCheckpoint(0, (), forged))).status == 403
    assert witness.add_checkpoint(asked(0, 5, key=SigningKey.generate("other.example/log"))).status == 404
    assert witness.latest("hie.example/log") is None


def test_several_keys_of_one_log_are_known_after_a_change(tmp_path):
    second = SigningKey.generate("hie.example/log")
    witness = Witness(tmp_path, "w.example", [LOG.verifier, second.verifier], lambda: NOW)
    assert witness.add_checkpoint(asked(0, 5)).status == 200
    assert witness.add_checkpoint(asked(5, 9, key=second)).status == 200


GOOD = asked(0, 5)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n\n",
        GOOD.replace(b"old 0", b"old 00"),
        GOOD.replace(b"old 0", b"old"),
        GOOD.replace(b"old 0", b"old 0 "),
        GOOD.replace(b"old 0\n", b"old 0\nnot base 64\n"),
        GOOD.replace(b"old 0\n", b"old 0\nAAAA\n"),
        GOOD.replace(b"old 0\n", b"old 0\n" + (b"A" * 43 + b"=\n") * 64),
        GOOD.replace(b"old 0\n\n", b"old 0\n"),
        GOOD.replace(b"old 0", b"\xff"),
        b"old 0\n\nnonsense",
    ],
)
def test_other_bodies_are_malformed(witness, raw):
    assert witness.add_checkpoint(raw).status == 400


def test_a_witness_that_starts_again_goes_on_from_what_it_kept(witness, tmp_path):
    witness.add_checkpoint(asked(0, 32))
    again = Witness(tmp_path / "witness", "meadow.example/witness", [LOG.verifier], lambda: NOW)
    assert again.verifier == witness.verifier
    assert again.add_checkpoint(asked(5, 40)).status == 409
    assert again.add_checkpoint(asked(32, 40)).status == 200
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "witness").iterdir()} == {0}
    with pytest.raises(ConfigurationError, match="not of other"):
        Witness(tmp_path / "witness", "other.example", [LOG.verifier], lambda: NOW)


def test_what_cannot_be_kept_is_not_cosigned(witness, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("hie.audit.witness.replace", full)
    with pytest.raises(OSError, match="No space"):
        witness.add_checkpoint(asked(0, 32))
    monkeypatch.undo()
    assert witness.add_checkpoint(asked(0, 5)).status == 200


def test_many_at_once_give_one_line_of_sizes(witness):
    """Each offers the step from 0 to another size: one is first, and all others are told which."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda size: (size, witness.add_checkpoint(asked(0, size))), range(1, 33)))
    (first,) = [size for size, answer in answers if answer.status == 200]
    assert {answer.body for _, answer in answers if answer.status == 409} == {f"{first}\n"}
    assert SignedCheckpoint.parse(witness.latest("hie.example/log")).size == first


# -- as a process, and asked by an exchange


@contextmanager
def running(folder, key_file, port=0, name="meadow.example/witness"):
    """`hie witness` in an environment without any setting of an exchange; its vkey and address."""
    command = [sys.executable, "-m", "hie", "witness", "--name", name, "--folder", str(folder)]
    command += ["--log", str(key_file), "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HIE_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    try:
        vkey, address = (process.stdout.readline().strip() for _ in range(2))
        yield parse_witnesses(f"{address} {vkey}")[0], process
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


@pytest.fixture
def key_file(log, tmp_path):
    log.record(disclosure())
    path = tmp_path / "log.vkey"
    path.write_text("".join(f"{key}\n" for key in log.evidence.public_keys()))
    return path


def cosigned(database):
    with database.read() as connection:
        return connection.execute(sa.select(cosignatures).order_by(cosignatures.c.tree_size)).all()


def test_an_exchange_and_a_witness_over_http(database, log, key_file, tmp_path):
    with running(tmp_path / "witness", key_file) as (at, process):
        asking = Cosigning(database, [at], seconds=0)
        assert asking.ask(at)
        log.record(*(disclosure() for _ in range(300)))
        assert asking.ask(at)
        assert asking.ask(at)  # nothing new, nothing asked
        assert [row.tree_size for row in cosigned(database)] == [1, 301]
        note = Note.parse(log.evidence.checkpoint())
        assert at.key in note.signers([at.key])
        kept = requests.get(f"{at.url}/checkpoint", params={"origin": "hie.example/log"}, timeout=10)
        assert SignedCheckpoint.parse(kept.content).size == 301
        assert requests.get(f"{at.url}/key", timeout=10).text.strip() == str(at.key)
        for method, address, status in (("GET", "/", 404), ("POST", "/other", 404), ("GET", "/checkpoint", 404)):
            assert requests.request(method, at.url + address, data=b"", timeout=10).status_code == status
        assert requests.post(f"{at.url}/add-checkpoint", data=b"x" * 200_000, timeout=10).status_code == 413
        assert requests.post(f"{at.url}/add-checkpoint", data=b"x", timeout=10).status_code == 400
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        log.record(disclosure())
        assert not asking.ask(at)
    with running(tmp_path / "witness", key_file, port=int(at.url.rsplit(":", 1)[1])) as (again, _):
        assert again.key == at.key
        assert asking.ask(at)
    assert [row.tree_size for row in cosigned(database)] == [1, 301, 302]


def test_a_witness_whose_answer_was_lost_is_asked_from_where_it_is(database, log, key_file, tmp_path):
    """It has cosigned 11 entries and the exchange never heard of it: 409, then the proof from there."""
    with running(tmp_path / "witness", key_file) as (at, _):
        log.record(*(disclosure() for _ in range(10)))
        raw = bytes(AddCheckpoint(0, (), log.evidence.checkpoint()))
        assert requests.post(f"{at.url}/add-checkpoint", data=raw, timeout=10).status_code == 200
        log.record(*(disclosure() for _ in range(10)))
        assert Cosigning(database, [at], seconds=0).ask(at)
    assert [row.tree_size for row in cosigned(database)] == [21]


def test_a_log_that_was_rolled_back_is_told_by_its_witness(database, log, key_file, tmp_path, caplog):
    with running(tmp_path / "witness", key_file) as (at, _):
        raw = bytes(AddCheckpoint(0, (), seal(tmp_path).ring().sign(50, b"r" * 32)))
        assert requests.post(f"{at.url}/add-checkpoint", data=raw, timeout=10).status_code == 200
        assert not Cosigning(database, [at], seconds=0).ask(at)
    assert "it has seen 50 entries and the log has 1: the log was cut or rolled back" in caplog.text
    assert cosigned(database) == []


def test_a_running_log_asks_by_itself_but_not_all_the_time(database, key_file, tmp_path, monkeypatch):
    with running(tmp_path / "witness", key_file) as (at, _):
        asking, asked_all = Cosigning(database, [at], seconds=3600), threading.Event()
        ask_all = asking.ask_all
        monkeypatch.setattr(asking, "ask_all", lambda: (ask_all(), asked_all.set()))
        log = AuditLog(database, Clock(), BASE, seal(tmp_path), on_growth=asking.wake)
        log.record(disclosure())
        assert asked_all.wait(30)
        assert len(cosigned(database)) == 1
        log.record(disclosure())
        assert not asking._due(at)
        ask_all()
        assert len(cosigned(database)) == 1
        log.close()


class Odd(BaseHTTPRequestHandler):
    """A witness that answers as a test says."""

    answer = (200, b"")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        with suppress(OSError):  # the exchange does not read all of it
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def odd():
    server = HTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    key = SigningKey.generate("odd.example", COSIGNATURE)
    yield WitnessAt(f"http://127.0.0.1:{server.server_port}", key.verifier), key
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "answer",
    [
        (200, b""),
        (200, b"nonsense"),
        (200, b"\xff\xfe"),
        (200, b"x" * 10_000_000),
        (302, b""),
        (403, b"no"),
        (409, b"many"),
        (409, b"-1"),
        (422, b""),
        (500, b"SECRET"),
    ],
)
def test_no_answer_of_a_witness_but_its_cosignature_is_kept(database, log, key_file, odd, answer, caplog):
    at, _ = odd
    Odd.answer = answer
    assert not Cosigning(database, [at], seconds=0).ask(at)
    assert cosigned(database) == []
    assert "odd.example did not cosign" in caplog.text
    assert "SECRET" not in caplog.text
    log.check()


def test_a_cosignature_of_something_else_or_by_somebody_else_is_not_kept(database, log, key_file, odd):
    at, key = odd
    text = Note.parse(log.evidence.checkpoint()).text
    stranger = SigningKey.generate("odd.example", COSIGNATURE)
    for line in (key.cosign(text + "more\n", 1), stranger.cosign(text, 1)):
        Odd.answer = (200, str(line).encode())
        assert not Cosigning(database, [at], seconds=0).ask(at)
    assert cosigned(database) == []
    Odd.answer = (200, f"{stranger.cosign(text, 1)}{key.cosign(text, 1)}".encode())
    assert Cosigning(database, [at], seconds=0).ask(at)
    assert [row.line for row in cosigned(database)] == [str(key.cosign(text, 1)).encode()]


def test_a_witness_that_does_not_answer_holds_nobody_up(database, log, key_file, free_port):
    at = WitnessAt(f"http://127.0.0.1:{free_port()}", SigningKey.generate("gone.example", COSIGNATURE).verifier)
    assert not Cosigning(database, [at], seconds=0).ask(at)
    log.record(disclosure())
