"""The search columns and side rows of an entry, derived from its body and from nothing else (pure).

Verification recomputes them: a Merkle proof covers the body, so a column that was edited in the database shows as a
difference between the two.
"""

from __future__ import annotations

from typing import NamedTuple

from hie.audit import codes
from hie.core.fhir import Resource

WIDTH = 128
"""Characters of a column; an id that the exchange did not make may be longer and is cut, in search as in the row."""

_PROVIDER = codes.PROVIDER.code
_PATIENT = codes.PATIENT_ROLE.code
_REPOSITORY = codes.DATA_REPOSITORY.code
_REQUEST_ID = codes.REQUEST_ID.code
_OAUTH_USER = codes.OAUTH_USER.code
_NOTHING: Resource = {}


class EntityKey(NamedTuple):
    """A reference among the entities, its version left out."""

    resource_type: str
    resource_id: str


class Columns(NamedTuple):
    """What an entry can be found by. `failures` are (member id, status) of the sources that fell short."""

    type: str
    action: str
    outcome: str
    person_id: str | None
    organization: str | None
    client_id: str | None
    user_id: str | None
    session: str | None
    request_id: str | None
    subtypes: frozenset[str]
    purposes: frozenset[str]
    entities: frozenset[EntityKey]
    failures: frozenset[tuple[str, str]]


def columns(body: Resource) -> Columns:
    """The columns of one AuditEvent of this log; each scalar is the first that is found. One pass, since verifying
    a log does this for every entry."""
    organization = client_id = user_id = None
    for agent in body["agent"]:
        who = agent["who"]
        if "identifier" in who:
            system, value = who["identifier"].get("system", ""), who["identifier"]["value"]
            client_id = client_id or (value if system.endswith(codes.CLIENT_ID) else None)
            user_id = user_id or (value if system.endswith(codes.USER_ID) else None)
        if not organization and any(coding["code"] == _PROVIDER for coding in agent["type"]["coding"]):
            organization = _reference_id(who)
    person_id = session = request_id = None
    entities, failures = set(), set()
    for entity in body.get("entity", ()):
        what, kind = entity.get("what", _NOTHING), entity["type"]["code"]
        role = entity["role"]["code"] if "role" in entity else None
        if "reference" in what:
            key = entity_key(what["reference"])
            if key:
                entities.add(key)
                if role == _PATIENT:
                    person_id = person_id or key.resource_id
                elif role == _REPOSITORY and (status := _status(entity)) != "ok":
                    failures.add((key.resource_id, status))
        elif "identifier" in what:
            identifier = what["identifier"]
            if kind == _REQUEST_ID:
                request_id = request_id or identifier["value"]
            elif kind == _OAUTH_USER:
                session = session or identifier["value"].removeprefix(codes.JTI)
            elif identifier.get("system", "").endswith(codes.SESSION_ID):
                session = session or identifier["value"]
    return Columns(
        type=body["type"]["code"],
        action=body["action"],
        outcome=body["outcome"],
        person_id=_clipped(person_id),
        organization=_clipped(organization),
        client_id=_clipped(client_id),
        user_id=_clipped(user_id),
        session=_clipped(session),
        request_id=_clipped(request_id),
        subtypes=frozenset([subtype["code"] for subtype in body.get("subtype", ())]),
        purposes=frozenset([concept["coding"][0]["code"] for concept in body.get("purposeOfEvent", ())]),
        entities=frozenset(entities),
        failures=frozenset(failures),
    )


def entity_key(reference: str) -> EntityKey | None:
    """The key of `Type/id` or `Type/id/_history/version`; None for anything else."""
    kind, _, rest = reference.partition("/")
    name, slash, version = rest.partition("/")
    if not (kind and name) or (slash and not version.startswith("_history/")):
        return None
    return EntityKey(kind, clip(name))


def clip(value: str) -> str:
    """As wide as a column."""
    return value[:WIDTH]


def _clipped(value: str | None) -> str | None:
    return clip(value) if value else None


def _status(entity: Resource) -> str:
    return str(next(detail["valueString"] for detail in entity["detail"] if detail["type"] == "status"))


def _reference_id(who: Resource) -> str | None:
    key = entity_key(who.get("reference", ""))
    return key.resource_id if key else None
