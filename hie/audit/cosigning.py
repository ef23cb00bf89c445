"""The exchange asks witnesses (c2sp.org/tlog-witness) to cosign its newest checkpoint, and keeps what they say.

After a commit, but not more often than every so many seconds, whichever process comes first. Nothing waits for a
witness: an answer is released on the log's own signature, and a witness that does not answer is asked again later.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from urllib.parse import urlsplit

import sqlalchemy as sa

from hie.audit.checkpoint import SignedCheckpoint, number
from hie.audit.merkle import consistency_proof
from hie.audit.note import COSIGNATURE, NoteError, Signature, VerifierKey
from hie.audit.tables import cosignatures
from hie.audit.tree import StoredTree, newest_size, signed_note
from hie.audit.witness import AddCheckpoint
from hie.core.database import Database
from hie.core.errors import ConfigurationError

log = logging.getLogger("hie.audit")

_TIMEOUT_SECONDS = (3.05, 10)
_PIECE_BYTES, _MAX_PIECES = 4096, 16


@dataclass(frozen=True)
class WitnessAt:
    """A witness: where it is asked, and the key that it cosigns with."""

    url: str
    key: VerifierKey

    @property
    def id(self) -> str:
        """As cosignatures are filed."""
        return f"{self.key.name}+{self.key.id.hex()}"


def parse_witnesses(text: str) -> tuple[WitnessAt, ...]:
    """Of HIE_WITNESSES: an address and a vkey for each witness, all separated by spaces or commas."""
    words = text.replace(",", " ").split()
    found = []
    for url, vkey in zip(words[::2], [*words[1::2], ""][: len(words[::2])], strict=True):
        try:
            key = VerifierKey.parse(vkey)
        except NoteError as error:
            raise ConfigurationError(f"HIE_WITNESSES must be addresses each with a vkey: {error}.") from None
        if urlsplit(url).scheme not in ("http", "https") or key.type != COSIGNATURE:
            raise ConfigurationError("HIE_WITNESSES must be http or https addresses, each with a witness's vkey.")
        found.append(WitnessAt(url.rstrip("/"), key))
    return tuple(found)


class Cosigning:
    """The witnesses of one exchange, asked from a thread of each process that writes the log."""

    def __init__(self, database: Database, witnesses: Sequence[WitnessAt], *, seconds: float) -> None:
        """`seconds` between two times that a witness is asked. Nothing is started before the first `wake`."""
        self._database = database
        self._witnesses = tuple(witnesses)
        self._seconds = seconds
        self._threads: dict[int, _Waiting] = {}

    def wake(self) -> None:
        """Say that the log has grown. Returns at once."""
        if not self._witnesses:
            return
        process = os.getpid()
        waiting = self._threads.get(process)
        if waiting is None:
            waiting = self._threads.setdefault(process, _Waiting(self.ask_all, self._seconds))
        waiting.wake()

    def ask_all(self) -> None:
        """Ask every witness that has not cosigned the newest checkpoint and was not asked just now."""
        for witness in self._witnesses:
            if self._due(witness):
                self.ask(witness)

    def ask(self, witness: WitnessAt) -> bool:
        """Whether the witness has cosigned the newest checkpoint; what went wrong is logged."""
        try:
            asked = self._request(witness)
            status, answer = _post(witness, asked) if asked else (200, "")
            if status == 409 and asked:
                asked = self._request(witness, number(answer.strip()))
                status, answer = _post(witness, asked) if asked else (200, "")
            if asked and status == 200:
                self._keep(witness, asked, answer)
        except (NoteError, ValueError, OSError, sa.exc.SQLAlchemyError) as error:
            log.warning("witness %s did not cosign: %s", witness.key.name, _said(error))
            return False
        if status != 200:
            log.warning("witness %s did not cosign: it answered %s", witness.key.name, status)
        return status == 200

    def _due(self, witness: WitnessAt) -> bool:
        with self._database.read() as connection:
            newest = (
                sa.select(cosignatures.c.line)
                .where(cosignatures.c.witness == witness.id)
                .order_by(cosignatures.c.tree_size.desc())
                .limit(1)
            )
            line = connection.scalar(newest)
        # Another process of this exchange may have asked; the witness's own time stands in the line.
        return line is None or Signature.parse(line.decode().strip()).timestamp + self._seconds <= time.time()

    def _request(self, witness: WitnessAt, old: int | None = None) -> AddCheckpoint | None:
        """For the newest checkpoint, from what the witness has cosigned; None if that is the same one.

        Raises NoteError where the witness has seen more than there is.
        """
        with self._database.read() as connection:
            size = newest_size(connection)
            mine = sa.select(sa.func.max(cosignatures.c.tree_size)).where(cosignatures.c.witness == witness.id)
            kept = connection.scalar(mine) or 0
            note = signed_note(connection, size, cosigned=False)
            if note is None or kept == size:
                return None
            last = kept if old is None else old
            if last > size:
                raise NoteError(f"it has seen {last} entries and the log has {size}: the log was cut or rolled back")
            proof = consistency_proof(last, size, StoredTree(connection, size))
        return AddCheckpoint(last, tuple(proof), note)

    def _keep(self, witness: WitnessAt, asked: AddCheckpoint, answer: str) -> None:
        """Store the witness's own line of its answer, if it is over what was asked; raises NoteError."""
        signed = SignedCheckpoint.parse(asked.note)
        lines = [Signature.parse(line) for line in answer.rstrip("\n").split("\n")]
        own = next((line for line in lines if line.is_by(witness.key)), None)
        if own is None or not witness.key.accepts(signed.note.text, own):
            raise NoteError("its answer is not its cosignature")
        row = {"tree_size": signed.size, "witness": witness.id, "line": str(own).encode()}
        with self._database.write() as connection:
            there = sa.select(cosignatures.c.tree_size).where(
                cosignatures.c.tree_size == signed.size, cosignatures.c.witness == witness.id
            )
            if connection.scalar(there) is None:
                connection.execute(cosignatures.insert().values(row))


class _Waiting:
    """The thread of one process: asks after it was woken, and then not again for a while."""

    def __init__(self, ask: Callable[[], None], seconds: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._grown = threading.Event()
        threading.Thread(target=self._run, name="audit-cosigning", daemon=True).start()

    def wake(self) -> None:
        self._grown.set()

    def _run(self) -> None:
        while self._grown.wait():
            self._grown.clear()
            try:
                self._ask()
            except Exception as error:  # noqa: BLE001  one defect must not stop the asking for good
                log.error("witnesses could not be asked: %s", type(error).__name__)
            time.sleep(self._seconds)


def _post(witness: WitnessAt, asked: AddCheckpoint) -> tuple[int, str]:
    """Status and body; raises OSError (of which the errors of `requests` are some)."""
    # Imported here: an exchange without witnesses starts without it.
    import requests

    with requests.post(
        f"{witness.url}/add-checkpoint",
        data=bytes(asked),
        headers={"Content-Type": "text/plain; charset=utf-8"},
        timeout=_TIMEOUT_SECONDS,
        allow_redirects=False,
        stream=True,
    ) as reply:
        body = b"".join(islice(reply.iter_content(_PIECE_BYTES), _MAX_PIECES))
    return reply.status_code, body.decode(errors="replace")


def _said(error: Exception) -> str:
    """A sentence of ours, or the type: another system's text stays out of the log."""
    return str(error) if isinstance(error, NoteError) else type(error).__name__
