"""Page links: opaque, signed, good for one question by one caller for a quarter of an hour."""

from __future__ import annotations

from collections.abc import Sequence

from itsdangerous import BadSignature, URLSafeTimedSerializer

from hie.core.caller import Caller
from hie.core.errors import BadRequest
from hie.core.ids import derived_id
from hie.gateway.services import current

_SECONDS = 900

Place = tuple[str, str]
"""Source and id of the last resource of a page."""


def write(question: Sequence[str], asking: Caller, place: Place) -> str:
    """The cursor of what follows `place`."""
    return str(_serializer().dumps([_binding(question, asking), *place]))


def read(question: Sequence[str], asking: Caller, cursor: str | None) -> Place | None:
    """Where a page begins; raises BadRequest for a cursor of another question or caller, or one that is too old."""
    if cursor is None:
        return None
    try:
        binding, source, last_id = _serializer().loads(cursor, max_age=_SECONDS)
    except (BadSignature, ValueError, TypeError):
        raise BadRequest("This page link is not valid any more; start the search again.") from None
    if binding != _binding(question, asking):
        raise BadRequest("This page link belongs to another search or caller; start the search again.")
    return str(source), str(last_id)


def _binding(question: Sequence[str], asking: Caller) -> str:
    """What a page link is good for: this question, by this caller, for these purposes."""
    parts = [*question, asking.organization, asking.client_id or "", asking.user_id or ""]
    return derived_id(current().secret, *parts, *sorted(asking.purposes))


def _serializer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(current().secret, salt="records-page")
