"""A member's server that does exactly the bytes it is told: each connection runs one script on the raw socket."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any

Script = Callable[["Connection"], None]


class Connection:
    """One accepted connection; `stop` is set when the test is over, so that scripts can wait for ever until then."""

    def __init__(self, sock: socket.socket, stop: threading.Event, port: int) -> None:
        self._socket = sock
        self.stop = stop
        self.port = port

    def request(self) -> tuple[str, dict[str, str]]:
        """The request line and headers; empty when the client has gone."""
        raw = b""
        while b"\r\n\r\n" not in raw:
            chunk = self._socket.recv(65536)
            if not chunk:
                return "", {}
            raw += chunk
        head, _, rest = raw.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
        wanted = int(headers.get("content-length", 0))
        while len(rest) < wanted:
            rest += self._socket.recv(65536)
        headers["(body)"] = rest.decode("latin-1")
        return line, headers

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def head(self, status: int = 200, **headers: Any) -> None:
        lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    def reply(self, body: Any, status: int = 200, content_type: str = "application/fhir+json", **headers: Any) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.head(status, Content_Type=content_type, Content_Length=len(raw), **headers)
        self.send(raw)

    def drip(self, byte: bytes) -> None:
        """One byte every 50 ms until the client goes or the test ends."""
        while not self.stop.wait(0.05):
            self.send(byte)

    def reset(self) -> None:
        """Close with RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


class HostileMember:
    """Runs `script` for each connection it accepts, on 127.0.0.1; over TLS where given a context."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self._tls = tls
        self.connections = 0
        self.stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/fhir"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._run, args=(sock,), daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        with sock:
            try:
                spoken = self._tls.wrap_socket(sock, server_side=True) if self._tls else sock
                self.script(Connection(spoken, self.stop, self.port))
            except OSError:
                return  # the client hung up, as it should

    def close(self) -> None:
        self.stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def bundle(*resources: Any, **more: Any) -> dict[str, Any]:
    """A searchset with these matches."""
    entries = [{"resource": resource, "search": {"mode": "match"}} for resource in resources]
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries, **more}


def allergy(number: int | str = 1) -> dict[str, Any]:
    return {"resourceType": "AllergyIntolerance", "id": f"a{number}", "patient": {"reference": "Patient/p1"}}


def answering(body: Any, **reply: Any) -> Script:
    """A server that reads each request of a connection and gives this one reply."""

    def script(connection: Connection) -> None:
        while connection.request()[0]:
            connection.reply(body, **reply)

    return script
