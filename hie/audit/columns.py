"""The search columns and side rows of an entry, derived from its body and from nothing else (pure).

Verification recomputes them: a Merkle proof covers the body, so a column that was edited in the database shows as a
difference between the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hie.audit import codes
from hie.core.fhir import Resource

WIDTH = 128
"""Characters of a column; an id that the exchange did not make may be longer and is cut, in search as in the row."""


@dataclass(frozen=True)
class EntityKey:
    """A reference among the entities, its version left out."""

    resource_type: str
    resource_id: str


@dataclass(frozen=True)
class Columns:
    """What an entry can be found by. `failures` are (member id, status) of the sources that fell short."""

    type: str
    subtypes: frozenset[str]
    action: str
    outcome: str
    person_id: str | None
    organization: str | None
    client_id: str | None
    user_id: str | None
    session: str | None
    request_id: str | None
    purposes: frozenset[str]
    entities: frozenset[EntityKey]
    failures: frozenset[tuple[str, str]]


def columns(body: Resource) -> Columns:
    """The columns of one AuditEvent of this log."""
    agents, entities = body["agent"], body.get("entity", [])
    return Columns(
        type=body["type"]["code"],
        subtypes=frozenset(subtype["code"] for subtype in body.get("subtype", [])),
        action=body["action"],
        outcome=body["outcome"],
        person_id=_first(_reference_id(entity) for entity in entities if _role(entity) == codes.PATIENT_ROLE.code),
        organization=_first(_reference_id(agent) for agent in agents if _is(agent, codes.PROVIDER.code)),
        client_id=_first(_identifier(agent, codes.CLIENT_ID) for agent in agents),
        user_id=_first(_identifier(agent, codes.USER_ID) for agent in agents),
        session=_first(_session(entity) for entity in entities),
        request_id=_first(_value(entity) for entity in entities if _type(entity) == codes.REQUEST_ID.code),
        purposes=frozenset(c["coding"][0]["code"] for c in body.get("purposeOfEvent", [])),
        entities=frozenset(key for entity in entities if (key := entity_key(_reference(entity)))),
        failures=frozenset(_failures(entities)),
    )


def entity_key(reference: str) -> EntityKey | None:
    """The key of `Type/id` or `Type/id/_history/version`; None for anything else."""
    parts = reference.split("/_history/")[0].split("/")
    return EntityKey(parts[0], clip(parts[1])) if len(parts) == 2 and all(parts) else None


def clip(value: str) -> str:
    """As wide as a column."""
    return value[:WIDTH]


def _first(found: Iterator[str | None]) -> str | None:
    value = next((value for value in found if value), None)
    return clip(value) if value else None


def _failures(entities: list[Resource]) -> Iterator[tuple[str, str]]:
    for entity in entities:
        if _role(entity) == codes.DATA_REPOSITORY.code:
            status = next(d["valueString"] for d in entity["detail"] if d["type"] == "status")
            member_id = _reference_id(entity)
            if member_id and status != "ok":
                yield member_id, status


def _is(agent: Resource, code: str) -> bool:
    return any(coding["code"] == code for coding in agent["type"]["coding"])


def _type(entity: Resource) -> str:
    return str(entity["type"]["code"])


def _role(entity: Resource) -> str | None:
    return entity["role"]["code"] if "role" in entity else None


def _named(holder: Resource) -> Resource:
    """The Reference of an agent or entity."""
    reference: Resource = holder.get("who") or holder.get("what") or {}
    return reference


def _reference(holder: Resource) -> str:
    return str(_named(holder).get("reference", ""))


def _reference_id(holder: Resource) -> str | None:
    key = entity_key(_reference(holder))
    return key.resource_id if key else None


def _value(holder: Resource) -> str | None:
    value = _named(holder).get("identifier", {}).get("value")
    return value if isinstance(value, str) else None


def _identifier(holder: Resource, system: str) -> str | None:
    given = _named(holder).get("identifier", {}).get("system", "")
    return _value(holder) if given.endswith(system) else None


def _session(entity: Resource) -> str | None:
    """The id of the token or console session."""
    if _type(entity) == codes.OAUTH_USER.code:
        return (_value(entity) or "").removeprefix(codes.JTI)
    return _identifier(entity, codes.SESSION_ID)
