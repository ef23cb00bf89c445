"""The log for anybody who wants to check it: `/log/…` (c2sp.org/tlog-tiles, signed-note, tlog-proof).

Public, since a leaf is a commitment with a time and a kind: no patient data. What an entry says is for privacy officers
alone, at `/log/entry/{i}/body`, and that is an entry itself. The prefix of the log is `<base>/log`.
"""

from __future__ import annotations

from flask import Blueprint, Response, request

from hie.audit.event import Event, Kind, Outcome
from hie.audit.merkle import Tile
from hie.core import fhir
from hie.core.caller import Caller, Role
from hie.core.errors import NotFound
from hie.gateway.api.context import caller, request_id
from hie.gateway.api.receipts import give
from hie.gateway.services import current

blueprint = Blueprint("log", __name__)

_TEXT = "text/plain; charset=utf-8"
_BYTES = "application/octet-stream"
_FOR_EVER = "public, max-age=31536000, immutable"
_FOR_SECONDS = "public, max-age=2"
_ENTRIES = "entries/"
_LARGEST_INDEX = (1 << 63) - 1


@blueprint.get("/log/key")
def key() -> Response:
    """The vkeys of the log, a line each; the one that signs now comes first."""
    lines = [f"{vkey}\n" for vkey in current().audit.evidence.public_keys()]
    return _answer("".join(lines).encode(), _TEXT, _FOR_SECONDS)


@blueprint.get("/log/checkpoint")
def checkpoint() -> Response:
    """The newest signed checkpoint."""
    return _answer(current().audit.evidence.checkpoint(), _TEXT, _FOR_SECONDS)


@blueprint.get("/log/tile/<path:path>")
def tile(path: str) -> Response:
    """`{level}/{index}[.p/{width}]`, or `entries/{index}[.p/{width}]` for the leaves themselves."""
    evidence = current().audit.evidence
    of_entries = path.startswith(_ENTRIES)
    asked = Tile.parse(f"0/{path.removeprefix(_ENTRIES)}" if of_entries else path)
    if asked is None:
        return _answer(None, _BYTES, _FOR_EVER)
    return _answer(evidence.bundle(asked) if of_entries else evidence.tile(asked), _BYTES, _FOR_EVER)


@blueprint.get("/log/entry/<int:index>")
def entry(index: int) -> Response:
    """The leaf, byte for byte as it was hashed."""
    found = current().audit.evidence.leaf(index) if index <= _LARGEST_INDEX else None
    return _answer(found, "application/json", _FOR_EVER)


@blueprint.get("/log/receipt/<entry_id>")
def receipt(entry_id: str) -> Response:
    """The tlog-proof of an entry, with its leaf as extra data; what `HIE-Receipt` names."""
    proof = current().audit.evidence.proof(entry_id) if entry_id.isalnum() else None
    return _answer(bytes(proof) if proof else None, _TEXT, "no-cache")


@blueprint.get("/log/entry/<int:index>/body")
def body(index: int) -> Response:
    """Salt and body of an entry: SHA-256(salt || body) is what its leaf commits to."""
    asking = caller()
    asking.require_role(Role.PRIVACY_OFFICER)
    asking.require("AuditEvent", "r")
    found = current().audit.entry(index) if index <= _LARGEST_INDEX else None
    if found is None:
        _record(asking, Outcome.MINOR, None, "no such entry")
        raise NotFound("There is no such entry.")
    _record(asking, Outcome.SUCCESS, found.person_id, "1 entry shown", f"AuditEvent/{found.entry_id}")
    shown = {"index": found.index, "id": found.entry_id, "salt": found.salt.hex(), "body": found.body.decode()}
    return _answer(fhir.to_bytes(shown), "application/json", "no-store")


def _answer(content: bytes | None, content_type: str, caching: str) -> Response:
    if content is None:
        raise NotFound("The log has nothing at this address.")
    response = Response(content, content_type=content_type)
    response.headers["Cache-Control"] = caching
    return response


def _record(asking: Caller, outcome: Outcome, person_id: str | None, description: str, *entities: str) -> None:
    event = Event(
        kind=Kind.LOG_READ,
        outcome=outcome,
        action="R",
        caller=asking,
        person_id=person_id,
        query=f"{request.method} {request.path}",
        request_id=request_id(),
        description=description,
        entities=entities,
    )
    give(current().audit.record(event))
