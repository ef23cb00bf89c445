"""`hie witness`: a witness of logs (c2sp.org/tlog-witness), for a member to run on a machine of its own.

It needs a folder and the logs' public keys, and nothing of an exchange: no database, no settings.
"""

from __future__ import annotations

import logging
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import click

from hie.audit.note import NoteError, VerifierKey
from hie.audit.witness import MAX_REQUEST_BYTES, Answer, Witness
from hie.core.errors import ConfigurationError, HieError

log = logging.getLogger("hie.witness")

_TIMEOUT_SECONDS = 10


@click.command()
@click.option("--name", required=True, help="The witness's name, an address without scheme: meadow.example/witness.")
@click.option("--folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="Its key and memory.")
@click.option("--log", "logs", required=True, multiple=True, help="A log's vkey, or a file with some. From /log/key.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8090, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free port.")
def witness(name: str, folder: Path, logs: tuple[str, ...], host: str, port: int) -> None:
    """Cosign checkpoints of logs, each only if it extends the last one that was seen.

    Prints the vkey that others verify its cosignatures with, then serves until stopped: POST /add-checkpoint for logs,
    GET /checkpoint?origin=… for whoever wants to compare, GET /key.
    """
    try:
        keys = [VerifierKey.parse(word) for given in logs for word in _words(given)]
        one = Witness(folder, name, keys, time.time)
    except NoteError as error:
        raise ConfigurationError(f"--log or --name: {error}.") from None
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    try:
        server = _Server((host, port), one)
    except OSError as error:
        raise HieError(f"Cannot listen at {host}:{port}: {error.strerror}.") from None
    click.echo(f"{one.verifier}\nhttp://{host}:{server.server_address[1]}")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


def _words(given: str) -> list[str]:
    path = Path(given)
    return path.read_text().split() if path.is_file() else given.split()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], one: Witness) -> None:
        self.witness = one
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_SECONDS

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MAX_REQUEST_BYTES:
            self.close_connection = True
            self._send(Answer(413, "the body is too large, or its length is not said\n"))
            return
        raw = self.rfile.read(int(length))
        if urlsplit(self.path).path != "/add-checkpoint":
            self._send(Answer(404, "there is nothing here\n"))
            return
        try:
            answer = self.server.witness.add_checkpoint(raw)
        except OSError as error:
            log.error("the checkpoint could not be kept: %s", error.strerror)
            answer = Answer(500, "the checkpoint could not be kept, and so was not cosigned\n")
        log.info("add-checkpoint %s", answer.status)
        self._send(answer)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path == "/key":
            self._send(Answer(200, f"{self.server.witness.verifier}\n"))
            return
        origin = parse_qs(asked.query).get("origin", [""])[0]
        latest = self.server.witness.latest(origin) if asked.path == "/checkpoint" else None
        self._send(Answer(200, latest.decode()) if latest else Answer(404, "there is nothing here\n"))

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not the request lines of strangers."""
