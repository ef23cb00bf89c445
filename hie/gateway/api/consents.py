"""Consents: PCF ITI-108 (create, update, read) and search.

Privacy officers and the exchange's own clients act for everybody; a member for its own patients only, on what it filed
itself or what governs it. A member never sees a consent that names other custodians: it would tell where else its
patient has been. A patient may be named by the member's own identifier; what is stored names the exchange's person.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from urllib.parse import urlencode

import sqlalchemy as sa
from flask import Blueprint, Response, request
from werkzeug.http import http_date

from hie.audit.event import Event
from hie.consent.fhir import organizations, relative, target_of
from hie.consent.plain import summary
from hie.consent.service import RecordId, StoredConsent
from hie.core import fhir
from hie.core.caller import EXCHANGE, Caller, Role
from hie.core.clock import instant
from hie.core.errors import BadRequest, Forbidden, NotFound, Unprocessable, UnsupportedMediaType
from hie.core.fhir import Resource
from hie.gateway.api.context import caller, keep_nothing, request_id
from hie.gateway.api.feeding import expected_version
from hie.gateway.api.formats import answer
from hie.gateway.services import current
from hie.gateway.trace import consent_event
from hie.mpi.identity import Identifier, Person

blueprint = Blueprint("consents", __name__)
keep_nothing(blueprint)

_FORM = "application/x-www-form-urlencoded"
_BODIES = (fhir.FHIR_JSON, "application/json")
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_MEMBER_ROLES = (Role.MEMBER, Role.CLINICIAN, Role.MEMBER_ADMIN, Role.PRIVACY_OFFICER)
_STATUSES = frozenset({"draft", "proposed", "active", "rejected", "inactive", "entered-in-error"})
_DEFAULT_COUNT = 50
_MAX_COUNT = 200
_MAX_VERSION = 2**31
_NOT_YOURS = "The consent is not about a patient of your organization."
_NONE_SUCH = "There is no such consent."


@blueprint.post("/fhir/Consent")
def create() -> Response:
    """ITI-108: file a consent; 201 with its address and version."""
    asking = caller()
    _check_role(asking, "c")
    consent = _body()
    person = _person_of(asking, consent)
    accepted = _accepted(consent, person)
    stored = current().consents.create(
        accepted, person.id, asking, filed_for=_filed_for(asking, consent, person), also=_recorded(asking, "C")
    )
    return _filed(stored, 201)


@blueprint.put("/fhir/Consent/<consent_id>")
def update(consent_id: str) -> Response:
    """ITI-108: file the next version, under `If-Match` only if the version named is current."""
    asking = caller()
    _check_role(asking, "u")
    consent = _body()
    if consent.get("id") != consent_id:
        raise BadRequest("The id in the body must be the one in the address.")
    held = _held(asking, consent_id)
    if not _serves_everybody(asking) and held.author_organization != asking.organization:
        raise Forbidden("Only the organization that filed a consent, or the privacy office, may change it.")
    person = _person_of(asking, consent)
    if person.id not in current().identity.person_ids(held.person_id):
        raise Unprocessable("Consent.patient: a consent cannot be moved to another person.", code="business-rule")
    stored = current().consents.update(
        consent_id,
        _accepted(consent, person),
        person.id,
        asking,
        expected_version=expected_version(),
        filed_for=_filed_for(asking, consent, person),
        also=_recorded(asking, "U"),
    )
    return _filed(stored, 200)


@blueprint.get("/fhir/Consent/<consent_id>")
def read(consent_id: str) -> Response:
    """The current version of one consent."""
    asking = caller()
    _check_role(asking, "r")
    return _shown(asking, _held(asking, consent_id))


@blueprint.get("/fhir/Consent/<consent_id>/_history/<int:version>")
def read_version(consent_id: str, version: int) -> Response:
    """One version of a consent, as it stood."""
    asking = caller()
    _check_role(asking, "r")
    return _shown(asking, _held(asking, consent_id, version))


@blueprint.get("/fhir/Consent/<consent_id>/_history")
def history(consent_id: str) -> Response:
    """Every version that the caller may see, the newest first (FHIR R4 3.1.0.10); on one page, since they are few."""
    asking = caller()
    _check_role(asking, "r")
    _held(asking, consent_id)
    versions = [stored for stored in current().consents.history(consent_id) if _may_see(asking, stored)]
    query = f"Consent/{consent_id}/_history"
    current().audit.record(_event(asking, "R", query, versions[0].person_id, versions))
    base = current().settings.fhir_base
    entries = [
        {
            "fullUrl": f"{base}/Consent/{stored.id}",
            "resource": stored.resource,
            "request": {"method": "POST" if stored.version == 1 else "PUT", "url": f"Consent/{stored.id}"},
            "response": {
                "status": "201" if stored.version == 1 else "200",
                "etag": f'W/"{stored.version}"',
                "lastModified": instant(stored.updated),
            },
        }
        for stored in versions
    ]
    link = [{"relation": "self", "url": f"{base}/{query}"}]
    return answer({"resourceType": "Bundle", "type": "history", "total": len(entries), "link": link, "entry": entries})


@blueprint.get("/fhir/Consent")
def search() -> Response:
    """`GET /fhir/Consent?patient=`."""
    return _search(list(request.args.items(multi=True)))


@blueprint.post("/fhir/Consent/_search")
def search_by_form() -> Response:
    """`POST /fhir/Consent/_search`."""
    if request.mimetype != _FORM:
        raise UnsupportedMediaType(f"A search by POST is a form: {_FORM}.")
    return _search([*request.args.items(multi=True), *request.form.items(multi=True)])


# -- who may


def _check_role(asking: Caller, action: str) -> None:
    asking.require("Consent", action)
    if not (_serves_everybody(asking) or _patient(asking)) and asking.role not in _MEMBER_ROLES:
        raise Forbidden(f"The role {asking.role.value} has no part in consents.")


def _serves_everybody(asking: Caller) -> bool:
    """The exchange's privacy officers and its own clients, but for an app that names the patient whom it acts for."""
    at_exchange = asking.organization == EXCHANGE and not _patient(asking)
    return at_exchange and (asking.role is Role.PRIVACY_OFFICER or asking.client_id is not None)


def _patient(asking: Caller) -> str | None:
    """The account of the patient whom an app of the exchange names in its token."""
    return asking.user_id if asking.role is Role.PATIENT and asking.client_id is not None else None


def _check_theirs(asking: Caller, person: Person | None) -> Person:
    """A member learns the same of a stranger's patient as of nobody's, and so does a patient of others."""
    account = _patient(asking)
    if account:
        if person is None or person.id not in current().portal.people_of(account):
            raise Forbidden("The consent is not about the patient whom the token names.")
    elif person is None or not any(record.member_id == asking.organization for record in person.records):
        raise Forbidden(_NOT_YOURS)
    return person


def _may_see(asking: Caller, stored: StoredConsent) -> bool:
    if _serves_everybody(asking) or _patient(asking) or stored.author_organization == asking.organization:
        return True
    named = {name for name in organizations(stored.resource) if name != EXCHANGE}
    return named <= {asking.organization}


def _held(asking: Caller, consent_id: str, version: int | None = None) -> StoredConsent:
    known = _ID.fullmatch(consent_id) and (version is None or version < _MAX_VERSION)
    stored = current().consents.read(consent_id, version) if known else None
    if stored is None:
        raise NotFound(_NONE_SUCH)
    if not _serves_everybody(asking):
        _check_theirs(asking, current().identity.person(stored.person_id))
        if not _may_see(asking, stored):
            raise NotFound(_NONE_SUCH)
    return stored


# -- what is filed


def _body() -> Resource:
    if request.mimetype not in _BODIES:
        raise UnsupportedMediaType(f"Send the consent as {fhir.FHIR_JSON}.")
    return relative(fhir.parse_resource(request.get_data(), "Consent"), current().settings.fhir_base)


def _person_of(asking: Caller, consent: Resource) -> Person:
    """Whom the consent is about; raises Forbidden for a member's stranger, Unprocessable for the exchange's."""
    patient = consent.get("patient")
    reference = patient if isinstance(patient, dict) else {}
    person = _referred(asking, reference)
    if not _serves_everybody(asking):
        return _check_theirs(asking, person)
    if person is None:
        raise Unprocessable("Consent.patient: names nobody that the exchange knows.", code="not-found")
    return person


def _referred(asking: Caller, reference: Resource) -> Person | None:
    target = target_of(reference.get("reference"))
    if target is not None:
        kind, _, person_id = target.partition("/")
        return current().identity.person(person_id) if kind == "Patient" else None
    given = reference.get("identifier")
    identifier = given if isinstance(given, dict) and "reference" not in reference else {}
    system, value = identifier.get("system"), identifier.get("value")
    if not isinstance(system, str) or not isinstance(value, str):
        raise Unprocessable(
            "Consent.patient: must be Patient/<id> of the exchange, or an identifier with system and value.",
            code="value",
        )
    return _identified(asking, Identifier(system, value))


def _identified(asking: Caller, identifier: Identifier) -> Person | None:
    if not _serves_everybody(asking) and not _patient(asking):
        member = current().directory.member(asking.organization)
        if member is None or member.patient_id_system != identifier.system:
            raise Forbidden(_NOT_YOURS)
    record = current().identity.source_record(identifier)
    return current().identity.person(record.person_id) if record else None


def _filed_for(asking: Caller, consent: Resource, person: Person) -> RecordId | None:
    """The record that the consent was given for: the one it names, else the one that the filing member has."""
    patient = consent.get("patient")
    identifier = (patient or {}).get("identifier") if isinstance(patient, dict) else None
    if isinstance(identifier, dict) and "reference" not in (patient or {}):
        return str(identifier["system"]), str(identifier["value"])
    own = [r.identifier for r in person.records if r.member_id == asking.organization]
    return (own[0].system, own[0].value) if len(own) == 1 else None


def _accepted(consent: Resource, person: Person) -> Resource:
    """The consent as it is kept: about the exchange's person, its custodians known."""
    for name in organizations(consent):
        if name is None:
            raise Unprocessable(
                "Consent.organization: must be a reference to Organization/<member id> of this exchange.", code="value"
            )
        if name != EXCHANGE and current().directory.member(name) is None:
            raise Unprocessable(
                f"Consent.organization: Organization/{name[:64]} is no member of this exchange.", code="not-found"
            )
    return {**consent, "patient": {"reference": f"Patient/{person.id}"}}


# -- search


def _search(params: list[tuple[str, str]]) -> Response:
    asking = caller()
    _check_role(asking, "s")
    asked = _Asked(params)
    person_ids = _people(asking, asked)
    found = _visible(asking, asked, person_ids)
    page = list(islice(found, asked.count))
    more = next(found, None) is not None
    events = [_found(asking, asked, person_id, stored) for person_id, stored in _by_person(page).items()]
    if not events:
        events = [_found(asking, asked, person_ids[0] if person_ids else None, [])]
    current().audit.record(*events)
    return answer(_bundle(asked, page, more))


def _by_person(page: Iterable[StoredConsent]) -> dict[str, list[StoredConsent]]:
    people: dict[str, list[StoredConsent]] = {}
    for stored in page:
        people.setdefault(stored.person_id, []).append(stored)
    return people


class _Asked:
    """The parameters of one search; raises BadRequest for what is not supported, given twice or malformed."""

    def __init__(self, params: list[tuple[str, str]]) -> None:
        self.honoured = [(name, value) for name, value in params if name not in ("_format", "_cursor")]
        self.query = f"Consent?{urlencode(self.honoured)}"
        given = dict(params)
        if len(given) != len(params):
            raise BadRequest("Each search parameter may be given once.")
        self.patient = given.pop("patient", None)
        self.identifier = given.pop("patient.identifier", given.pop("patient:identifier", None))
        if self.patient is not None and self.identifier is not None:
            raise BadRequest("Name the patient either by patient or by patient.identifier.")
        self.statuses = frozenset(filter(None, given.pop("status", "").split(",")))
        if not self.statuses <= _STATUSES:
            raise BadRequest("status must be a consent state code.", code="value")
        self.count = _count(given.pop("_count", str(_DEFAULT_COUNT)))
        self.after = _after(given.pop("_cursor", None))
        given.pop("_format", None)
        if given:
            raise BadRequest(f"Consent has no search parameter {sorted(given)[0][:64]} here.", code="not-supported")


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise BadRequest("_count must be a whole number.", code="value")
    return max(1, min(int(text), _MAX_COUNT))


def _after(cursor: str | None) -> str | None:
    if cursor is None:
        return None
    try:
        after = base64.urlsafe_b64decode(cursor).decode("ascii")
    except ValueError:
        after = ""
    if not _ID.fullmatch(after):
        raise BadRequest("This page link is not valid; start the search again.")
    return after


def _people(asking: Caller, asked: _Asked) -> tuple[str, ...] | None:
    """Every id of the person asked for; None where the privacy office asks for everybody."""
    if asked.patient is not None:
        person_id = asked.patient.removeprefix(f"{current().settings.fhir_base}/").removeprefix("Patient/")
        person = current().identity.person(person_id) if _ID.fullmatch(person_id) else None
    elif asked.identifier is not None:
        system, bar, value = asked.identifier.partition("|")
        if not (system and bar and value):
            raise BadRequest("patient.identifier must be one <system>|<value>.", code="value")
        person = _identified(asking, Identifier(system, value))
    elif _serves_everybody(asking):
        return None
    else:
        raise BadRequest(
            "Name the patient: patient=Patient/<id> or patient.identifier=<system>|<value>.", code="required"
        )
    if not _serves_everybody(asking):
        person = _check_theirs(asking, person)
    return current().identity.person_ids(person.id) if person else ()


def _visible(asking: Caller, asked: _Asked, person_ids: tuple[str, ...] | None) -> Iterator[StoredConsent]:
    """What the caller may see, in order, read on in batches so that a page has no gaps."""
    after = asked.after
    while True:
        batch = current().consents.search(person_ids, statuses=asked.statuses, limit=_MAX_COUNT + 1, after=after)
        yield from (stored for stored in batch if _may_see(asking, stored))
        if len(batch) <= _MAX_COUNT:
            return
        after = batch[-1].id


def _bundle(asked: _Asked, page: list[StoredConsent], more: bool) -> Resource:
    base = current().settings.fhir_base
    address = f"{base}/{asked.query}"
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset"}
    if asked.after is None and not more:
        bundle["total"] = len(page)
    bundle["link"] = [{"relation": "self", "url": address}]
    if more:
        cursor = base64.urlsafe_b64encode(page[-1].id.encode()).decode()
        joined = urlencode([*asked.honoured, ("_cursor", cursor)])
        bundle["link"].append({"relation": "next", "url": f"{base}/Consent?{joined}"})
    if page:
        bundle["entry"] = [
            {"fullUrl": f"{base}/Consent/{s.id}", "resource": s.resource, "search": {"mode": "match"}} for s in page
        ]
    return bundle


# -- answers and their audit


def _filed(stored: StoredConsent, status: int) -> Response:
    """The stored consent, or what `Prefer` asks for: as an OperationOutcome, what it permits and denies in plain words.

    What cannot be honoured is said in `Warning` headers too.
    """
    base = current().settings.fhir_base
    headers = {**_version_headers(stored), "Location": f"{base}/{stored.reference}"}
    prefer = request.headers.get("Prefer", "")
    if "return=minimal" in prefer:
        response = Response(status=status, headers=headers)
    elif "return=OperationOutcome" in prefer:
        said = summary(stored.resource, current().clock(), _name_of).text
        issues = [fhir.issue("warning", "not-supported", sentence) for sentence in stored.warnings]
        response = answer(fhir.outcome(fhir.issue("information", "informational", said), *issues), status, headers)
    else:
        response = answer(stored.resource, status, headers)
    for sentence in stored.warnings[:10]:
        plain = re.sub(r'[^ -~]|["\\]', "?", sentence)
        response.headers.add("Warning", f'299 hie "{plain}"')
    return response


def _name_of(reference: str) -> str | None:
    kind, _, member_id = reference.partition("/")
    member = current().directory.member(member_id) if kind == "Organization" else None
    return member.name if member else None


def _version_headers(stored: StoredConsent) -> dict[str, str]:
    return {"ETag": f'W/"{stored.version}"', "Last-Modified": http_date(stored.updated)}


def _recorded(asking: Caller, action: str) -> Callable[[sa.Connection, StoredConsent], None]:
    """Appends the audit entry in the transaction that files the consent."""

    def also(connection: sa.Connection, stored: StoredConsent) -> None:
        current().audit.append(connection, _event(asking, action, "Consent", stored.person_id, [stored]))

    return also


def _shown(asking: Caller, stored: StoredConsent) -> Response:
    current().audit.record(_event(asking, "R", stored.reference, stored.person_id, [stored]))
    return answer(stored.resource, 200, _version_headers(stored))


def _found(asking: Caller, asked: _Asked, person_id: str | None, stored: Sequence[StoredConsent]) -> Event:
    return _event(asking, "E", asked.query, person_id, stored)


def _event(asking: Caller, action: str, query: str, person_id: str | None, consents: Sequence[StoredConsent]) -> Event:
    described = {"C": "filed", "U": "changed", "R": "read", "E": "searched"}[action]
    return consent_event(asking, action, described, person_id, consents, query=query, request_id=request_id())
