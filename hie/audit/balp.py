"""An Event as a FHIR R4 AuditEvent, shaped as IHE Basic Audit Log Patterns (BALP 1.1, volume 3 section 5.7), pure.

| kind | pattern |
|---|---|
| disclosure | PrivacyDisclosure.Source (3:5.7.7), with the authorization subtype and the consents that decided |
| denial | authorization decision (3:5.7.6): AuthZ-Consent where a consent decided, else AuthZ-Role |
| search, feed, consent, directory, link, failure | the RESTful pattern of the action (3:5.7.3), with patient or not |
| sign-in, log-read | DICOM User Authentication, Audit Log Used |

`meta.profile` is claimed only where the profile is met: the RESTful ones describe success, and AuthZconsent is closed
to the request id, query and sources that an entry of this log must keep.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from urllib.parse import urlsplit

from hie.audit import codes
from hie.audit.codes import Coding
from hie.audit.event import Event, Kind, Outcome, Released, SourceOutcome
from hie.core.caller import EXCHANGE, Caller
from hie.core.clock import instant
from hie.core.fhir import Resource
from hie.core.purposes import ACT_REASON_URL, DISPLAY

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_MAX_TEXT = 4000
_EXCHANGE_WHO = {"reference": f"Organization/{EXCHANGE}", "display": "Health information exchange"}
_CONFIDENTIALITY_CODES = frozenset("ULMNRV")


@dataclass(frozen=True)
class _Form:
    """What the pattern of one kind of event fixes."""

    type: Coding
    subtypes: tuple[Coding, ...]
    action: str
    client: Coding
    server: Coding
    user: Coding
    profile: str | None = None
    object_first: bool = False
    """The first entity is the object of the action: the slice `data` of Create, Read, Update and Delete."""


_REST_ROLES = {
    "C": ("Create", codes.SOURCE, codes.DESTINATION, codes.AUTHOR),
    "R": ("Read", codes.DESTINATION, codes.SOURCE, codes.RECIPIENT),
    "U": ("Update", codes.SOURCE, codes.DESTINATION, codes.AUTHOR),
    "D": ("Delete", codes.APPLICATION, codes.CUSTODIAN, codes.AUTHOR),
    "E": ("Query", codes.SOURCE, codes.DESTINATION, codes.RECIPIENT),
}


def audit_event(event: Event, entry_id: str, recorded: datetime, fhir_base: str) -> Resource:
    """The AuditEvent of `event`. Raises TypeError or ValueError where a decision cannot be written as JSON."""
    form, time = _form(event), instant(recorded)
    resource: Resource = {
        "resourceType": "AuditEvent",
        "id": entry_id,
        "meta": {"lastUpdated": time},
        "type": form.type.json(),
        "subtype": [subtype.json() for subtype in form.subtypes],
        "action": form.action,
        "recorded": time,
        "outcome": event.outcome.value,
        "agent": list(_agents(event, form, fhir_base)),
        "source": {
            "site": _site(fhir_base),
            "observer": _EXCHANGE_WHO,
            "type": [codes.APPLICATION_SERVER.json()],
        },
        "entity": list(_entities(event, form, fhir_base)),
    }
    if form.profile:
        resource["meta"]["profile"] = [codes.PROFILE + form.profile]
    if event.description:
        resource["outcomeDesc"] = _text(event.description)
    if purposes := _purposes(event.caller):
        resource["purposeOfEvent"] = purposes
    return resource


def redacted(entry_id: str, recorded: datetime) -> Resource:
    """What is left to say of an entry whose body was archived."""
    return {
        "resourceType": "AuditEvent",
        "id": entry_id,
        "meta": {"lastUpdated": instant(recorded), "security": [codes.REDACTED.json()]},
        "type": codes.REST.json(),
        "action": "E",
        "recorded": instant(recorded),
        "outcome": Outcome.SUCCESS.value,
        "outcomeDesc": "Archived after its retention. The archive and the leaf in the log prove each other.",
        "agent": [{"type": codes.APPLICATION.concept(), "who": {"display": "Archived"}, "requestor": False}],
        "source": {"observer": _EXCHANGE_WHO, "type": [codes.APPLICATION_SERVER.json()]},
    }


@cache
def _site(fhir_base: str) -> str:
    return urlsplit(fhir_base).hostname or fhir_base


# -- the pattern


def _form(event: Event) -> _Form:
    if event.kind is Kind.DISCLOSURE:
        return _Form(
            type=codes.EXPORT,
            subtypes=(codes.DISCLOSE, _interaction(event), _authorization(event)),
            action="R",
            client=codes.APPLICATION,
            server=codes.SOURCE,
            user=codes.RECIPIENT,
            profile="PrivacyDisclosure.Source" if event.person_id and event.query else None,
        )
    if event.kind is Kind.DENIAL:
        return _decision_form(codes.SECURITY_ALERT, _authorization(event))
    if event.kind is Kind.SIGN_IN:
        return _decision_form(codes.USER_AUTHENTICATION, codes.LOGIN)
    return _rest_form(event)


def _decision_form(event_type: Coding, subtype: Coding) -> _Form:
    return _Form(
        type=event_type,
        subtypes=(subtype,),
        action="E",
        client=codes.APPLICATION,
        server=codes.AUTHORIZER,
        user=codes.RECIPIENT,
    )


def _rest_form(event: Event) -> _Form:
    name, client, server, user = _REST_ROLES[event.action]
    object_first = event.action != "E" and _object(event) is not None
    complete = object_first if event.action != "E" else bool(event.query)
    met = complete and event.outcome is Outcome.SUCCESS and event.kind is not Kind.LOG_READ
    return _Form(
        type=codes.AUDIT_LOG_USED if event.kind is Kind.LOG_READ else codes.REST,
        subtypes=(_interaction(event),),
        action=event.action,
        client=client,
        server=server,
        user=user,
        profile=("Patient" if event.person_id else "") + name if met else None,
        object_first=object_first,
    )


def _interaction(event: Event) -> Coding:
    """The RESTful interaction, told from the request where the action leaves it open."""
    written = {"C": "create", "U": "update", "D": "delete"}.get(event.action)
    if written:
        return codes.INTERACTIONS[written]
    if "/$" in event.query:
        return codes.INTERACTIONS["operation"]
    searched = event.action == "E" or "?" in event.query or "/_search" in event.query
    return codes.INTERACTIONS["search-type" if searched else "read"]


def _authorization(event: Event) -> Coding:
    """Whether a consent decided, or roles and default policy alone."""
    return codes.AUTHZ_CONSENT if any(d.get("consent") for d in event.decisions) else codes.AUTHZ_ROLE


def _object(event: Event) -> str | None:
    if event.entities:
        return _text(event.entities[0])
    return _text(f"Patient/{event.person_id}") if event.person_id else None


# -- agents


def _agents(event: Event, form: _Form, fhir_base: str) -> Iterator[Resource]:
    caller = event.caller
    user = _user(caller, form, fhir_base) if caller else None
    yield _client(event, form, fhir_base, requestor=user is None)
    yield _server(form, fhir_base)
    if user:
        yield user
    if caller:
        yield _organization(caller)
    if event.kind is Kind.DISCLOSURE:
        yield from _parties(event)


def _client(event: Event, form: _Form, fhir_base: str, *, requestor: bool) -> Resource:
    client_id = event.caller.client_id if event.caller else event.client_id
    display = "Exchange console" if event.caller else "Not identified"
    agent: Resource = {
        "type": form.client.concept(),
        "who": _identified(fhir_base + codes.CLIENT_ID, client_id) if client_id else {"display": display},
        "requestor": requestor,
        "network": _network(event),
    }
    if requestor and event.caller and event.action != "D":
        agent["policy"] = [_token_uri(event.caller, fhir_base)]
    return agent


def _server(form: _Form, fhir_base: str) -> Resource:
    agent: Resource = {"type": form.server.concept(), "who": _EXCHANGE_WHO, "requestor": False}
    if form.server is not codes.AUTHORIZER:
        agent["network"] = {"address": fhir_base, "type": "5"}
    return agent


def _user(caller: Caller, form: _Form, fhir_base: str) -> Resource | None:
    """The person behind the request, if one is named."""
    user_id = caller.user_id or caller.subject_id
    if not (user_id or caller.subject_name):
        return None
    who: Resource = _identified(fhir_base + codes.USER_ID, user_id) if user_id else {}
    who["display"] = _text(caller.subject_name or user_id or "")
    kinds = [form.user, codes.OAUTH_USER] if caller.client_id else [form.user]
    agent: Resource = {
        "type": {"coding": [kind.json() for kind in kinds]},
        "role": [{"coding": [{"system": fhir_base + codes.ROLE, "code": caller.role.value}]}],
        "who": who,
        "requestor": True,
    }
    if caller.subject_role:
        agent["role"].append({"text": _text(caller.subject_role)})
    if caller.subject_name:
        agent["name"] = _text(caller.subject_name)
    if form.action != "D":
        agent["policy"] = [_token_uri(caller, fhir_base)]
    if purposes := _purposes(caller):
        agent["purposeOfUse"] = purposes
    return agent


def _organization(caller: Caller) -> Resource:
    agent: Resource = {
        "type": codes.PROVIDER.concept(),
        "who": _organization_who(caller),
        "requestor": False,
    }
    if purposes := _purposes(caller):
        agent["purposeOfUse"] = purposes
    return agent


def _parties(event: Event) -> Iterator[Resource]:
    """Who received, and who held: the profile has room for one custodian, so several stand among the entities only."""
    yield {
        "type": codes.DESTINATION.concept(),
        "who": _organization_who(event.caller) if event.caller else {"display": "Not identified"},
        "requestor": False,
        "network": _network(event),
    }
    holders = [source.member_id for source in event.sources if source.count]
    if len(holders) == 1:
        yield {
            "type": codes.RECORD_KEEPER.concept(),
            "who": {"reference": f"Organization/{holders[0]}"},
            "requestor": False,
        }


def _organization_who(caller: Caller) -> Resource:
    who = {"reference": f"Organization/{caller.organization}"}
    if caller.organization_name:
        who["display"] = _text(caller.organization_name)
    return who


def _network(event: Event) -> Resource:
    address = event.address or (event.caller.address if event.caller else "")
    return {"address": _text(address), "type": "2"} if address else {"address": "unknown"}


def _purposes(caller: Caller | None) -> list[Resource]:
    asserted = sorted(caller.purposes) if caller else []
    return [Coding(ACT_REASON_URL, code, DISPLAY.get(code, code)).concept() for code in asserted]


def _token_uri(caller: Caller, fhir_base: str) -> str:
    """What identifies the token or console session (its opaque id, not the secret)."""
    return f"{codes.JTI}{caller.session}" if caller.client_id else f"{fhir_base}{codes.SESSION_ID}#{caller.session}"


# -- entities


def _entities(event: Event, form: _Form, fhir_base: str) -> Iterator[Resource]:
    if event.person_id:
        yield _patient(event.person_id, event.withheld)
    others = event.entities
    if form.object_first:
        yield _entity(codes.SYSTEM_OBJECT, codes.DOMAIN_RESOURCE, what={"reference": _object(event)})
        others = others[1:]
    if event.query:
        # System Object is the slice `data` in the patterns that have an object, so the request is Other there.
        yield _request(event.query, codes.OTHER if form.object_first else codes.SYSTEM_OBJECT)
    if event.request_id:
        yield _entity(codes.REQUEST_ID, what={"identifier": {"value": _text(event.request_id)}})
    if event.caller:
        yield from _session(event.caller, fhir_base)
    yield from (_decision(decision) for decision in event.decisions)
    yield from (_source(source) for source in event.sources)
    yield from (_released(released) for released in event.released)
    listed = {f"{released.type}/{released.id}" for released in event.released}
    for reference in others:
        if reference in listed:
            continue  # it stands there with its digest
        yield _entity(codes.resource_type(reference), codes.DOMAIN_RESOURCE, what={"reference": _text(reference)})


def _patient(person_id: str, withheld: int) -> Resource:
    details = {"withheld": withheld} if withheld else {}
    return _entity(codes.PERSON, codes.PATIENT_ROLE, what={"reference": _text(f"Patient/{person_id}")}, details=details)


def _request(query: str, kind: Coding) -> Resource:
    raw = query.encode("utf-8", "backslashreplace")
    return {**_entity(kind, codes.QUERY_ROLE), "query": base64.b64encode(raw).decode()}


def _session(caller: Caller, fhir_base: str) -> Iterator[Resource]:
    """The token or session with the role it was used in; and the declaration, where the glass was broken."""
    identifier = (
        {"value": codes.JTI + caller.session}
        if caller.client_id
        else {"system": fhir_base + codes.SESSION_ID, "value": caller.session}
    )
    kind = codes.OAUTH_USER if caller.client_id else codes.OTHER
    details = {"role": caller.role.value, "scope": str(caller.scopes)}
    yield _entity(kind, codes.SECURITY_RESOURCE, what={"identifier": identifier}, details=details)
    if caller.break_glass:
        details = {"break-glass": "declared", "reason": caller.break_glass_reason or ""}
        yield _entity(codes.OTHER, codes.SECURITY_RESOURCE, name="Break-glass declaration", details=details)


def _decision(decision: dict[str, object]) -> Resource:
    consent = decision.get("consent")
    details = {key: value for key, value in decision.items() if key != "consent"}
    if not consent:
        return _entity(codes.OTHER, codes.SECURITY_RESOURCE, name="Decision by policy", details=details)
    reference = _text(str(consent))
    kind = codes.resource_type(reference)
    return _entity(kind, codes.SECURITY_RESOURCE, what={"reference": reference}, details=details)


def _source(source: SourceOutcome) -> Resource:
    reference = f"Organization/{source.member_id}"
    return _entity(
        codes.resource_type(reference),
        codes.DATA_REPOSITORY,
        what={"reference": reference},
        details={"status": source.status, "count": source.count},
    )


def _released(released: Released) -> Resource:
    reference = f"{released.type}/{released.id}"
    entity = _entity(
        codes.resource_type(reference),
        codes.DOMAIN_RESOURCE,
        what={"reference": reference},
        details={"sha256": released.sha256},
    )
    if released.labels:
        entity["securityLabel"] = [_label(code) for code in released.labels]
    return entity


def _label(code: str) -> Resource:
    return {"system": codes.CONFIDENTIALITY if code in _CONFIDENTIALITY_CODES else codes.ACT_CODE, "code": code}


def _entity(
    kind: Coding,
    role: Coding | None = None,
    *,
    what: Resource | None = None,
    name: str | None = None,
    details: Mapping[str, object] | None = None,
) -> Resource:
    entity: Resource = {"type": kind.json()}
    if what:
        entity["what"] = what
    if role:
        entity["role"] = role.json()
    if name:
        entity["name"] = name
    shown = [(key, _shown(value)) for key, value in (details or {}).items()]
    if listed := [{"type": key, "valueString": value} for key, value in shown if value]:
        entity["detail"] = listed
    return entity


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return _text(json.dumps(value, separators=(",", ":"), sort_keys=True))


def _identified(system: str, value: str) -> Resource:
    return {"identifier": {"system": system, "value": _text(value)}}


def _text(value: str) -> str:
    """A FHIR string of `value`: what JSON or a database cannot hold becomes U+FFFD, and it ends somewhere.

    A claimed client id or a header is the caller's to choose, and must not be able to keep its own attempt out of the
    log.
    """
    if value.isprintable() and len(value) <= _MAX_TEXT:
        return value
    return _UNPRINTABLE.sub("\ufffd", value[:_MAX_TEXT])
