"""What the routes by which members tell something have in common: conditional updates by a member's own identifier."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlencode

from flask import request

from hie.core.caller import Caller, Role
from hie.core.errors import BadRequest, Forbidden, Unprocessable
from hie.gateway.directory import Member
from hie.gateway.services import current
from hie.mpi.identity import Identifier
from hie.mpi.patient_search import split_or, split_token

FEEDERS = (Role.MEMBER, Role.PAYER)
_PARAMETERS = frozenset({"identifier", "_format", "_pretty"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_IF_MATCH = re.compile(r'(?:W/)?"([1-9][0-9]{0,8})"')


def own_member(asking: Caller, resource_type: str, *actions: str) -> Member:
    """The caller's organization; raises Forbidden for who is no member's system or lacks the scope."""
    asking.require_role(*FEEDERS)
    require_any(asking, resource_type, actions)
    member = current().directory.member(asking.organization)
    if member is None:
        raise Forbidden("The caller's organization is not a member of the exchange.")
    return member


def require_any(asking: Caller, resource_type: str, actions: Sequence[str]) -> None:
    """Raises Forbidden unless the scopes hold one of `actions` on the type."""
    if not any(asking.scopes.allows(resource_type, action) for action in actions):
        asking.require(resource_type, actions[0])


def conditional_identifier() -> Identifier:
    """The one `identifier=system|value` of a conditional update or delete."""
    refuse_control_characters(request.args.items(multi=True))
    unknown = sorted(name for name in request.args if name not in _PARAMETERS)
    given = request.args.getlist("identifier")
    if unknown or len(given) != 1:
        raise BadRequest("Give exactly one parameter, identifier=system|value.")
    if len(split_or(given[0])) != 1:
        raise BadRequest("Give exactly one identifier; write a comma inside it as \\,.")
    system, value = split_token(given[0])
    if not system or not value:
        raise Unprocessable("The identifier needs a system and a value: identifier=system|value.")
    return Identifier(system, value)


def expected_version() -> int | None:
    """The version that `If-Match` names; raises BadRequest."""
    given = request.headers.get("If-Match")
    if given is None:
        return None
    match = _IF_MATCH.fullmatch(given.strip())
    if match is None:
        raise BadRequest('If-Match must name one version, as in W/"3".', code="value")
    return int(match[1])


def refuse_control_characters(parameters: Iterable[tuple[str, str]]) -> None:
    """Raises BadRequest where a parameter of the address holds one."""
    if any(_CONTROL.search(text) for pair in parameters for text in pair):
        raise BadRequest("A parameter holds a control character.", code="value")


def asked_query(path: str) -> str:
    """The request as it came: the path and the parameters of its address."""
    return f"{path}?{urlencode(list(request.args.items(multi=True)))}" if request.args else path
