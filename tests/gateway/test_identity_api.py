"""The identity routes over HTTP: feed, cross-reference, search and read, in JSON and XML, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any, cast

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from lxml import etree
from werkzeug.test import TestResponse

from hie.audit.event import Event, Kind
from hie.core import fhir
from hie.core.caller import EXCHANGE, Caller, Role
from hie.core.clock import system_clock
from hie.core.config import Settings
from hie.core.database import Database
from hie.core.errors import AuditUnavailable, Unauthorized
from hie.core.scopes import Scopes
from hie.gateway.api import care, context, link_changes, matching, problems
from hie.gateway.api.identity import blueprint
from hie.gateway.care import CareService
from hie.gateway.services import Services
from hie.mpi.identity import IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model
from hie.mpi.stewardship import Stewardship

BASE = "https://hie.example/fhir"
LAKESIDE, HARBOR = "urn:oid:2.999.1.1", "urn:oid:2.999.1.2"
SSN = "http://hl7.org/fhir/sid/us-ssn"


@dataclass(frozen=True)
class Member:
    id: str
    patient_id_system: str
    part2: bool = False


class Directory:
    """Two members."""

    _members = (Member("lakeside", LAKESIDE), Member("harbor", HARBOR))

    def members(self) -> list[Member]:
        return list(self._members)

    def member(self, member_id: str) -> Member | None:
        return next((m for m in self._members if m.id == member_id), None)

    def member_of_system(self, system: str) -> Member | None:
        return next((m for m in self._members if m.patient_id_system == system), None)


class Authority:
    """The token says who is asking: `organization role scope...`."""

    def caller(self, authorization: str, *, address: str) -> Caller:
        words = authorization.removeprefix("Bearer ").split()
        if len(words) < 2:
            raise Unauthorized("Send an access token.")
        return Caller(
            organization=words[0],
            organization_name=words[0].title(),
            role=Role(words[1]),
            purposes=frozenset({"TREAT"}),
            scopes=Scopes.parse(" ".join(words[2:])),
            session="s",
            client_id=f"{words[0]}-ehr",
            address=address,
        )


@dataclass
class Audit:
    """Keeps events; `broken` refuses them as the log does when it cannot write."""

    events: list[Event] = field(default_factory=list)
    broken: bool = False

    def record(self, *events: Event) -> tuple[()]:
        if self.broken:
            raise AuditUnavailable
        self.events.extend(events)
        return ()

    def append(self, _connection: sa.Connection, *events: Event) -> tuple[()]:
        return self.record(*events)


LAKESIDE_TOKEN = "Bearer lakeside member system/*.cruds"
HARBOR_TOKEN = "Bearer harbor member system/*.cruds"
READ_TOKEN = "Bearer harbor member system/Patient.rs"


@dataclass
class Exchange:
    """The application under test and its callers."""

    client: FlaskClient
    audit: Audit
    app: Flask

    def call(
        self, method: str, path: str, body: object = None, token: str = LAKESIDE_TOKEN, **headers: str
    ) -> TestResponse:
        sent = {k.replace("_", "-"): v for k, v in {"Content_Type": fhir.FHIR_JSON, **headers}.items()}
        data = body if isinstance(body, bytes | str) or body is None else json.dumps(body)
        return self.client.open(path, method=method, data=data, headers={"Authorization": token, **sent})

    def feed(self, value: str, patient: dict[str, Any], system: str = LAKESIDE, **options: Any) -> TestResponse:
        body = {**patient, "identifier": [{"system": system, "value": value}, *patient.get("identifier", [])]}
        options.setdefault("token", LAKESIDE_TOKEN if system == LAKESIDE else HARBOR_TOKEN)
        return self.call("PUT", f"/fhir/Patient?identifier={system}|{value}", body, **options)

    def get(self, path: str, token: str = READ_TOKEN, **headers: str) -> TestResponse:
        return self.call("GET", path, token=token, **headers)

    def pix(self, source: str, *targets: str, **headers: str) -> TestResponse:
        more = "".join(f"&targetSystem={target}" for target in targets)
        return self.get(f"/fhir/Patient/$ihe-pix?sourceIdentifier={source}{more}", **headers)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture
def audit() -> Audit:
    return Audit()


def make_exchange(database: Database, model: Model, audit: Audit) -> Exchange:
    app = Flask("identity")
    context.install(app)
    problems.install(app)
    for routes in (blueprint, matching.blueprint, link_changes.blueprint, care.blueprint):
        app.register_blueprint(routes)
    index = MatchIndex(model, database.is_sqlite)
    services: dict[str, Any] = {
        "settings": Settings(base_url="https://hie.example"),
        "database": database,
        "clock": system_clock,
        "directory": Directory(),
        "authority": Authority(),
        "identity": IdentityService(database, index, system_clock),
        "care": CareService(database, system_clock, BASE),
        "stewardship": Stewardship(database, index, system_clock),
        "audit": audit,
        "secret": b"secret",
    }
    unused = {name: cast(Any, None) for name in Services.__dataclass_fields__ if name not in services}
    app.extensions["hie"] = Services(**services, **unused)
    return Exchange(app.test_client(), audit, app)


@pytest.fixture
def hie(sqlite_database: Database, model: Model, audit: Audit) -> Exchange:
    return make_exchange(sqlite_database, model, audit)


@pytest.fixture
def hie_on_both(database: Database, model: Model, audit: Audit) -> Exchange:
    return make_exchange(database, model, audit)


def marta(**changes: Any) -> dict[str, Any]:
    body = {
        "resourceType": "Patient",
        "name": [{"family": "Lindqvist", "given": ["Marta"]}],
        "birthDate": "1949-11-02",
        "gender": "female",
        "telecom": [{"system": "phone", "value": "617-555-0107"}],
        "address": [{"line": ["4 Quay Rd"], "city": "Boston", "state": "MA", "postalCode": "02110"}],
    }
    return {**body, **changes}


def otto(**changes: Any) -> dict[str, Any]:
    name = [{"family": "Brandt", "given": ["Otto"]}]
    return {"resourceType": "Patient", "name": name, "birthDate": "1983-05-19", "gender": "male", **changes}


def issue(response: TestResponse) -> dict[str, Any]:
    body = response.get_json(force=True)
    assert body["resourceType"] == "OperationOutcome"
    first: dict[str, Any] = body["issue"][0]
    assert first["diagnostics"] == first["details"]["text"]
    return first


def person_id(response: TestResponse) -> str:
    return response.headers["Location"].rsplit("/", 1)[-1]


# -- feed


def test_a_new_patient_is_created_and_readable_where_location_says(hie: Exchange) -> None:
    made = hie.feed("1", marta())
    assert made.status_code == 201
    assert made.headers["ETag"] == 'W/"1"'
    assert made.headers["Location"].startswith(f"{BASE}/Patient/")
    assert made.get_json(force=True)["id"] == person_id(made)
    fhir.validate(made.get_json(force=True), "Patient")
    assert hie.get(f"/fhir/Patient/{person_id(made)}").status_code == 200


def test_the_same_and_the_next_message_update(hie: Exchange) -> None:
    hie.feed("1", marta())
    same, changed = hie.feed("1", marta()), hie.feed("1", marta(gender="other"))
    assert (same.status_code, same.headers["ETag"]) == (200, 'W/"1"')
    assert (changed.status_code, changed.headers["ETag"]) == (200, 'W/"2"')


def test_feeds_are_recorded_as_what_they_were(hie: Exchange) -> None:
    hie.feed("1", marta())
    hie.feed("1", marta(gender="other"))
    hie.call("DELETE", f"/fhir/Patient?identifier={LAKESIDE}|1")
    assert [(e.kind, e.action) for e in hie.audit.events] == [(Kind.FEED, a) for a in "CUD"]
    assert len({e.person_id for e in hie.audit.events}) == 1


def test_without_a_record_of_it_nothing_is_stored(hie: Exchange) -> None:
    hie.audit.broken = True
    assert hie.feed("1", marta()).status_code == 503
    hie.audit.broken = False
    assert hie.pix(f"{LAKESIDE}|1").status_code == 404


def test_prefer_decides_what_comes_back(hie: Exchange) -> None:
    minimal = hie.feed("1", marta(), Prefer="return=minimal")
    outcome = hie.feed("1", marta(), Prefer="return=OperationOutcome")
    assert (minimal.status_code, minimal.data) == (201, b"")
    assert issue(outcome)["severity"] == "information"


def test_an_older_message_is_answered_with_the_newer_data(hie: Exchange) -> None:
    hie.feed("1", marta(meta={"lastUpdated": "2026-02-02T00:00:00Z"}))
    late = hie.feed("1", marta(meta={"lastUpdated": "2026-02-01T00:00:00Z"}, gender="male"))
    assert late.status_code == 200
    assert late.get_json(force=True)["gender"] == "female"


def test_if_match_guards_against_lost_updates(hie: Exchange) -> None:
    hie.feed("1", marta())
    assert hie.feed("1", marta(gender="other"), If_Match='W/"9"').status_code == 412
    assert hie.feed("1", marta(gender="other"), If_Match="nine").status_code == 400
    assert hie.feed("1", marta(gender="other"), If_Match='W/"1"').status_code == 200


def test_the_id_in_the_body_must_be_the_patients(hie: Exchange) -> None:
    made = hie.feed("1", marta())
    assert hie.feed("1", marta(id=person_id(made), gender="other")).status_code == 200
    assert hie.feed("1", marta(id="somebody-else")).status_code == 400
    assert hie.feed("2", otto(id="local-2")).status_code == 201
    assert hie.feed("2", otto(id="local-2")).status_code == 200
    assert hie.feed("2", otto(id="local-3")).status_code == 400


def test_an_inactive_patient_is_an_ordinary_update(hie: Exchange) -> None:
    hie.feed("1", marta())
    assert hie.feed("1", marta(active=False)).status_code == 200
    assert hie.pix(f"{LAKESIDE}|1").status_code == 200


def test_a_scope_for_create_does_not_update_and_the_other_way_round(hie: Exchange) -> None:
    create, update = "Bearer lakeside member system/Patient.c", "Bearer lakeside member system/Patient.u"
    assert hie.feed("1", marta(), token=update).status_code == 403
    assert hie.feed("1", marta(), token=create).status_code == 201
    assert hie.feed("1", marta(gender="other"), token=create).status_code == 403
    assert hie.feed("1", marta(gender="other"), token=update).status_code == 200


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("", 401),
        ("Bearer lakeside clinician system/*.cruds", 403),
        ("Bearer exchange privacy-officer system/*.cruds", 403),
        ("Bearer lakeside member system/Patient.rs", 403),
        ("Bearer stranger member system/*.cruds", 403),
        (HARBOR_TOKEN, 403),
    ],
)
def test_only_the_members_own_system_feeds(hie: Exchange, token: str, status: int) -> None:
    refused = hie.feed("1", marta(), token=token)
    deleted = hie.call("DELETE", f"/fhir/Patient?identifier={LAKESIDE}|1", token=token)
    assert (refused.status_code, deleted.status_code) == (status, status)
    assert issue(refused)["severity"] == "error"
    assert hie.pix(f"{LAKESIDE}|1").status_code == 404


def test_a_refused_feed_is_on_record(hie: Exchange) -> None:
    hie.feed("1", marta(), token=HARBOR_TOKEN)
    assert [e.kind for e in hie.audit.events] == [Kind.DENIAL]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("?identifier=", 422),
        ("?identifier=1", 422),
        ("?identifier=|1", 422),
        (f"?identifier={LAKESIDE}|", 422),
        (f"?identifier={LAKESIDE}|1&identifier={LAKESIDE}|2", 400),
        (f"?identifier={LAKESIDE}|1,{LAKESIDE}|2", 400),
        (f"?identifier={LAKESIDE}|1&family=x", 400),
        ("?family=Lindqvist", 400),
        ("?identifier=urn:oid:2.999.99|1", 422),
        (f"?identifier={HARBOR}|1", 403),
        (f"?identifier={LAKESIDE}|1%00", 400),
        (f"?identifier={LAKESIDE}|%0A1", 400),
        (f"?identifier={LAKESIDE}|" + "9" * 300, 422),
    ],
)
def test_the_address_must_name_one_own_patient(hie: Exchange, query: str, status: int) -> None:
    body = marta(identifier=[{"system": LAKESIDE, "value": v} for v in ("1", "9" * 300)])
    assert hie.call("PUT", f"/fhir/Patient{query}", body).status_code == status
    assert issue(hie.call("PUT", f"/fhir/Patient{query}", body))["diagnostics"]
    if "9999" not in query:
        assert hie.call("DELETE", f"/fhir/Patient{query}").status_code == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"identifier": [{"system": LAKESIDE, "value": "2"}]}, 422),
        ({"identifier": []}, 422),
        ({"identifier": [{"value": "1"}]}, 422),
        ({"identifier": [{"system": LAKESIDE, "value": "1"}, {"system": HARBOR, "value": "7"}]}, 403),
        ({"name": []}, 422),
        ({"name": None}, 422),
        ({"name": [{"use": "official"}]}, 422),
        ({"name": [{"family": "  "}]}, 422),
        ({"birthDate": "2024-02-30"}, 422),
        ({"birthDate": "30/02/2024"}, 422),
        ({"birthDate": 19491102}, 422),
        ({"gender": "F"}, 422),
        ({"active": "true"}, 422),
        ({"modifierExtension": [{"url": "urn:x", "valueString": "y"}]}, 422),
        ({"contact": [{"name": {"text": "x"}, "modifierExtension": [{"url": "urn:x", "valueBoolean": True}]}]}, 422),
        ({"implicitRules": "urn:x"}, 422),
        ({"resourceType": "Person"}, 400),
        ({"resourceType": 5}, 400),
        ({"nonsense": True}, 422),
        ({"name": [{"family": "Lind\u0007qvist"}]}, 400),
        ({"name": [{"family": "Lind\u0000qvist"}]}, 400),
        ({"name": [{"family": "Lind\ud800"}]}, 400),
        ({"extension": [{"url": "urn:x", "valueInteger": 10**30}]}, 422),
        ({"link": [{"type": "sibling", "other": {"display": "x"}}]}, 422),
    ],
)
def test_bodies_that_break_the_profile_are_refused_with_a_sentence(
    hie: Exchange, changes: dict[str, Any], status: int
) -> None:
    body = marta(identifier=[{"system": LAKESIDE, "value": "1"}])
    response = hie.call("PUT", f"/fhir/Patient?identifier={LAKESIDE}|1", {**body, **changes})
    assert response.status_code == status
    assert issue(response)["diagnostics"]
    assert hie.pix(f"{LAKESIDE}|1").status_code == 404


def test_a_bad_birth_date_is_told_as_such(hie: Exchange) -> None:
    assert "calendar" in issue(hie.feed("1", marta(birthDate="2024-02-30")))["diagnostics"]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"not json", 400),
        (b"", 400),
        (b"[]", 400),
        (b'"x"', 400),
        (b"\xff\xfe{}", 400),
        (b'{"resourceType":"Patient","resourceType":"Patient"}', 400),
        (b'{"a":' * 200_000, 400),
        (b"[" * 900_000, 400),
        (b'{"resourceType":"Patient","x":"' + b"y" * 1_100_000 + b'"}', 413),
        (b'{"resourceType":"Patient","multipleBirthInteger":1e999}', 422),
    ],
)
def test_bodies_that_are_no_json_resource_are_refused(hie: Exchange, raw: bytes, status: int) -> None:
    response = hie.call("PUT", f"/fhir/Patient?identifier={LAKESIDE}|1", raw)
    assert response.status_code == status
    assert issue(response)["diagnostics"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=utf-16"]
)
def test_only_fhir_bodies_are_read(hie: Exchange, content_type: str) -> None:
    response = hie.feed("1", marta(), Content_Type=content_type)
    assert response.status_code == 415


def test_a_name_that_is_absent_for_a_reason_is_accepted(hie: Exchange) -> None:
    absent = {"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "masked"}
    made = hie.feed("1", marta(name=[{"extension": [absent]}]))
    assert made.status_code == 201
    assert hie.get(f"/fhir/Patient/{person_id(made)}").get_json(force=True)["name"][0]["extension"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/fhir/Patient"),
        ("PUT", "/fhir/Patient/abc"),
        ("PATCH", "/fhir/Patient/abc"),
        ("DELETE", "/fhir/Patient/abc"),
    ],
)
def test_other_ways_to_write_say_how_it_is_done(hie: Exchange, method: str, path: str) -> None:
    response = hie.call(method, path, marta())
    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]
    assert "PUT Patient?identifier" in issue(response)["diagnostics"]


def test_delete_takes_the_patient_out_and_can_be_repeated(hie: Exchange) -> None:
    made = hie.feed("1", marta())
    for _ in range(2):
        assert hie.call("DELETE", f"/fhir/Patient?identifier={LAKESIDE}|1").status_code == 204
    assert hie.pix(f"{LAKESIDE}|1").status_code == 404
    assert hie.get(f"/fhir/Patient/{person_id(made)}").status_code == 404
    assert hie.get("/fhir/Patient?family=Lindqvist").get_json(force=True)["total"] == 0
    assert hie.feed("1", marta()).status_code == 201


def test_twenty_puts_of_one_new_patient_create_it_once(hie_on_both: Exchange) -> None:
    gun = Barrier(20)

    def put(_: int) -> int:
        gun.wait(timeout=30)
        other = Exchange(hie_on_both.app.test_client(), hie_on_both.audit, hie_on_both.app)
        return other.feed("1", marta()).status_code

    with ThreadPoolExecutor(20) as threads:
        statuses = sorted(threads.map(put, range(20)))
    assert statuses == [200] * 19 + [201]


# -- merge


def replaced_by(value: str, system: str = LAKESIDE) -> list[dict[str, Any]]:
    return [{"type": "replaced-by", "other": {"identifier": {"system": system, "value": value}}}]


def test_a_merge_resolves_to_the_survivor_everywhere(hie: Exchange) -> None:
    old, new = hie.feed("1", marta()), hie.feed("2", otto())
    assert hie.feed("1", marta(active=False, link=replaced_by("2"))).status_code == 200
    answer = hie.pix(f"{LAKESIDE}|1").get_json(force=True)["parameter"]
    assert {"name": "targetId", "valueReference": {"reference": f"Patient/{person_id(new)}"}} in answer
    assert {"name": "targetIdentifier", "valueIdentifier": {"system": LAKESIDE, "value": "2"}} in answer
    stale = hie.get(f"/fhir/Patient/{person_id(old)}").get_json(force=True)
    assert (stale["id"], stale["active"]) == (person_id(old), False)
    assert stale["link"] == [{"other": {"reference": f"Patient/{person_id(new)}"}, "type": "replaced-by"}]
    bundle = hie.get(f"/fhir/Patient?_id={person_id(old)}").get_json(force=True)
    modes = {e["resource"]["id"]: (e["search"]["mode"], e["resource"]["active"]) for e in bundle["entry"]}
    assert bundle["total"] == 1
    assert modes == {person_id(old): ("match", False), person_id(new): ("include", True)}


@pytest.mark.parametrize(
    ("link", "status"),
    [
        (replaced_by("1"), 422),
        (replaced_by("9"), 422),
        (replaced_by("2", HARBOR), 403),
        (replaced_by("2", "urn:oid:2.999.99"), 422),
        ([{"type": "replaced-by", "other": {"reference": "Patient/2"}}], 422),
        ([*replaced_by("2"), *replaced_by("3")], 422),
    ],
)
def test_merges_that_mean_nothing_are_refused(hie: Exchange, link: list[dict[str, Any]], status: int) -> None:
    hie.feed("1", marta())
    hie.feed("2", otto())
    response = hie.feed("1", marta(active=False, link=link))
    assert response.status_code == status
    assert issue(response)["diagnostics"]


def test_a_cycle_of_merges_is_refused(hie: Exchange) -> None:
    hie.feed("1", marta())
    hie.feed("2", otto())
    assert hie.feed("1", marta(link=replaced_by("2"))).status_code == 200
    assert hie.feed("2", otto(link=replaced_by("1"))).status_code == 422


# -- cross-reference


def test_pix_answers_every_other_identifier_and_the_person(hie: Exchange) -> None:
    made = hie.feed("1", marta(identifier=[{"system": SSN, "value": "219-09-9999"}]))
    hie.feed("H1", marta(identifier=[{"system": SSN, "value": "219-09-9999"}]), system=HARBOR)
    response = hie.pix(f"{LAKESIDE}|1")
    body = response.get_json(force=True)
    fhir.validate(body, "Parameters")
    assert response.status_code == 200
    assert body["parameter"] == [
        {"name": "targetIdentifier", "valueIdentifier": {"system": HARBOR, "value": "H1"}},
        {"name": "targetIdentifier", "valueIdentifier": {"system": SSN, "value": "219-09-9999"}},
        {"name": "targetId", "valueReference": {"reference": f"Patient/{person_id(made)}"}},
    ]
    assert [(e.kind, e.action, e.person_id) for e in hie.audit.events[2:]] == [(Kind.SEARCH, "E", person_id(made))]


def test_pix_filters_by_target_and_may_be_empty(hie: Exchange) -> None:
    hie.feed("1", marta())
    assert hie.pix(f"{LAKESIDE}|1", HARBOR).get_json(force=True) == {"resourceType": "Parameters"}
    hie.feed("H1", marta(), system=HARBOR)
    answer = hie.pix(f"{LAKESIDE}|1", HARBOR, LAKESIDE).get_json(force=True)["parameter"]
    assert [p["valueIdentifier"]["value"] for p in answer if "valueIdentifier" in p] == ["H1"]


def test_pix_takes_the_exchanges_own_ids(hie: Exchange) -> None:
    made = hie.feed("1", marta())
    answer = hie.pix(f"{BASE}|Patient/{person_id(made)}").get_json(force=True)
    assert answer["parameter"] == [{"name": "targetIdentifier", "valueIdentifier": {"system": LAKESIDE, "value": "1"}}]
    assert hie.pix(f"{BASE}|Patient/nobody").status_code == 404


@pytest.mark.parametrize(
    ("query", "status", "code", "text"),
    [
        (f"sourceIdentifier={LAKESIDE}|9", 404, "not-found", "sourceIdentifier Patient Identifier not found"),
        ("sourceIdentifier=urn:x|1", 400, "code-invalid", "sourceIdentifier Assigning Authority not found"),
        (f"sourceIdentifier={SSN}|219-09-9999", 400, "code-invalid", "sourceIdentifier Assigning Authority not found"),
        (f"sourceIdentifier={LAKESIDE}|1&targetSystem=urn:x", 403, "code-invalid", "targetSystem not found"),
        (
            f"sourceIdentifier={LAKESIDE}|1&targetSystem={HARBOR}&targetSystem=urn:x",
            403,
            "code-invalid",
            "targetSystem not found",
        ),
        ("", 400, "invalid", None),
        ("sourceIdentifier=1", 400, "invalid", None),
        (f"sourceIdentifier={LAKESIDE}|", 400, "invalid", None),
        (f"sourceIdentifier={LAKESIDE}|1&sourceIdentifier={LAKESIDE}|2", 400, "invalid", None),
        (f"sourceIdentifier={LAKESIDE}|%00", 400, "value", None),
    ],
)
def test_pix_errors_are_those_of_the_profile(
    hie: Exchange, query: str, status: int, code: str, text: str | None
) -> None:
    hie.feed("1", marta(identifier=[{"system": SSN, "value": "219-09-9999"}]))
    response = hie.get(f"/fhir/Patient/$ihe-pix?{query}")
    first = issue(response)
    assert (response.status_code, first["severity"], first["code"]) == (status, "error", code)
    assert text is None or first["diagnostics"] == text


# -- search and read


def test_a_search_answers_a_bundle_that_other_systems_can_use(hie: Exchange) -> None:
    made = hie.feed("1", marta())
    response = hie.get("/fhir/Patient?family=lind&birthdate=1949-11-02&nonsense=1")
    bundle = response.get_json(force=True)
    fhir.validate(bundle, "Bundle")
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert bundle["total"] == 1
    assert bundle["link"] == [{"relation": "self", "url": f"{BASE}/Patient?family=lind&birthdate=1949-11-02"}]
    (entry,) = bundle["entry"]
    assert entry["fullUrl"] == f"{BASE}/Patient/{person_id(made)}"
    assert entry["search"] == {"mode": "match"}
    assert entry["resource"]["identifier"] == [{"system": LAKESIDE, "value": "1"}]


def test_an_empty_answer_has_a_total_and_no_entries(hie: Exchange) -> None:
    bundle = hie.get("/fhir/Patient?family=nobody").get_json(force=True)
    assert bundle["total"] == 0
    assert "entry" not in bundle


def test_a_search_by_form_is_the_same_search(hie: Exchange) -> None:
    hie.feed("1", marta())
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    by_form = hie.call("POST", "/fhir/Patient/_search", "family=lind&gender=female", READ_TOKEN, **form)
    by_address = hie.get("/fhir/Patient?family=lind&gender=female")
    assert by_form.get_json(force=True) == by_address.get_json(force=True)
    both = hie.call("POST", "/fhir/Patient/_search?gender=male", "family=lind", READ_TOKEN, **form)
    assert both.get_json(force=True)["total"] == 0
    assert hie.call("POST", "/fhir/Patient/_search", "{}", READ_TOKEN).status_code == 415


def test_next_links_lead_through_all_pages(hie: Exchange) -> None:
    for n, city in enumerate(("Boston", "Salem", "Lynn", "Quincy", "Lowell")):
        name = [{"family": "Brandt", "given": [f"{city}born"]}]
        hie.feed(str(n), otto(name=name, birthDate=f"19{n + 3}0-0{n + 1}-1{n}", address=[{"city": city}]))
    path, seen, total = "/fhir/Patient?family=brandt&_count=2", [], 0
    while path:
        bundle = hie.get(path).get_json(force=True)
        seen += [e["resource"]["id"] for e in bundle["entry"]]
        total = bundle["total"]
        path = next(
            (x["url"].removeprefix("https://hie.example") for x in bundle["link"] if x["relation"] == "next"), ""
        )
    assert len(seen) == len(set(seen)) == total > 2


def test_asked_domains_are_the_only_ones_returned(hie: Exchange) -> None:
    hie.feed("1", marta(identifier=[{"system": SSN, "value": "219-09-9999"}]))
    hie.feed("H1", marta(identifier=[{"system": SSN, "value": "219-09-9999"}]), system=HARBOR)
    (entry,) = hie.get(f"/fhir/Patient?family=lind&identifier={HARBOR}|,{SSN}|").get_json(force=True)["entry"]
    assert {i["system"] for i in entry["resource"]["identifier"]} == {HARBOR, SSN}


def test_an_unknown_domain_is_not_found(hie: Exchange) -> None:
    hie.feed("1", marta())
    response = hie.get(f"/fhir/Patient?family=lind&identifier={HARBOR}|,urn:x|")
    first = issue(response)
    assert response.status_code == 404
    assert (first["severity"], first["code"], first["diagnostics"]) == (
        "warning",
        "not-found",
        "targetSystem not found",
    )


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("nonsense=1", 400),
        ("family=", 400),
        ("family:contains=a", 400),
        ("birthdate=2024-02-30", 400),
        ("family=%00", 400),
        ("family=a%0Db", 400),
        ("%00=a&family=b", 400),
        ("family=a&_format=text/turtle", 406),
        ("family=a&_format=json&_format=xml", 406),
    ],
)
def test_searches_that_mean_nothing_are_refused(hie: Exchange, query: str, status: int) -> None:
    response = hie.get(f"/fhir/Patient?{query}")
    assert response.status_code == status
    assert issue(response)["severity"] == "error"


def test_unknown_parameters_are_refused_when_handling_is_strict(hie: Exchange) -> None:
    assert hie.get("/fhir/Patient?family=a&nonsense=1", Prefer="handling=strict").status_code == 400
    assert hie.get("/fhir/Patient?family=a&_format=json", Prefer="handling=strict").status_code == 200


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("", 401),
        ("Bearer exchange privacy-officer system/*.cruds", 403),
        ("Bearer lakeside payer system/*.cruds", 200),
        ("Bearer lakeside patient system/*.cruds", 403),
        ("Bearer lakeside member system/Patient.cud", 403),
        ("Bearer lakeside member system/Observation.rs", 403),
        ("Bearer lakeside clinician system/Patient.rs", 200),
        (f"Bearer {EXCHANGE} data-steward system/Patient.rs", 200),
        (READ_TOKEN, 200),
    ],
)
def test_who_may_look(hie: Exchange, token: str, status: int) -> None:
    made = hie.feed("1", marta())
    paths = ("Patient?family=lind", f"Patient/{person_id(made)}", f"Patient/$ihe-pix?sourceIdentifier={LAKESIDE}|1")
    assert [hie.get(f"/fhir/{path}", token).status_code for path in paths] == [status] * 3


def test_everybody_shown_is_on_record_and_an_empty_answer_too(hie: Exchange) -> None:
    one, two = person_id(hie.feed("1", marta())), person_id(hie.feed("2", otto()))
    del hie.audit.events[:]
    hie.get("/fhir/Patient?birthdate=lt2000")
    hie.get("/fhir/Patient?family=nobody")
    hie.get(f"/fhir/Patient/{one}")
    hie.get("/fhir/Patient/nobody")
    events = hie.audit.events
    assert all(e.kind is Kind.SEARCH for e in events)
    assert {e.person_id for e in events[:2]} == {one, two}
    assert [(e.action, e.person_id) for e in events[2:]] == [("E", None), ("R", one), ("R", None)]
    assert events[0].query == "Patient?birthdate=lt2000"


def test_nothing_is_shown_that_cannot_be_recorded(hie: Exchange) -> None:
    made = hie.feed("1", marta())
    hie.audit.broken = True
    paths = ("Patient?family=lind", f"Patient/{person_id(made)}", f"Patient/$ihe-pix?sourceIdentifier={LAKESIDE}|1")
    for path in paths:
        response = hie.get(f"/fhir/{path}")
        assert response.status_code == 503
        assert b"Lindqvist" not in response.data


@pytest.mark.parametrize("unknown", ["nobody", "x" * 500, "..%2F..%2Fetc", "%00", "a%20b"])
def test_an_unknown_person_is_not_found(hie: Exchange, unknown: str) -> None:
    response = hie.get(f"/fhir/Patient/{unknown}")
    assert response.status_code in (400, 404)
    assert issue(response)["severity"] == "error"


# -- formats

XML = "application/fhir+xml"
NS = 'xmlns="http://hl7.org/fhir"'


def xml_patient(inner: str) -> str:
    own = f'<identifier><system value="{LAKESIDE}"/><value value="1"/></identifier>'
    return f"<Patient {NS}>{own}{inner}</Patient>"


def xml_feed(hie: Exchange, body: str | bytes, **headers: str) -> TestResponse:
    return hie.call("PUT", f"/fhir/Patient?identifier={LAKESIDE}|1", body, **{"Content_Type": XML, **headers})


NAMED = '<name><family value="Öberg &amp; Söhne"/><given value="Marta"/></name><birthDate value="1949-11-02"/>'


def test_xml_in_is_the_same_patient_as_json_in(hie: Exchange) -> None:
    by_xml = xml_feed(hie, xml_patient(NAMED).encode())
    by_json = hie.feed(
        "1",
        {
            "resourceType": "Patient",
            "name": [{"family": "Öberg & Söhne", "given": ["Marta"]}],
            "birthDate": "1949-11-02",
        },
    )
    assert by_xml.status_code == 201
    assert by_xml.mimetype == fhir.FHIR_JSON
    assert (by_json.status_code, by_json.headers["ETag"]) == (200, 'W/"1"')


@pytest.mark.parametrize("asking", [{"Accept": XML}, {"Accept": "application/xml"}, {"Accept": "text/xml, */*;q=0.1"}])
def test_every_answer_can_be_xml(hie: Exchange, asking: dict[str, str]) -> None:
    made = hie.feed("1", marta(), **asking)
    paths = {
        f"Patient/{person_id(made)}": "Patient",
        "Patient?family=lind": "Bundle",
        "Patient?family=nobody": "Bundle",
        f"Patient/$ihe-pix?sourceIdentifier={LAKESIDE}|1": "Parameters",
        f"Patient/$ihe-pix?sourceIdentifier={LAKESIDE}|9": "OperationOutcome",
        "Patient/nobody": "OperationOutcome",
    }
    assert etree.fromstring(made.data).tag == "{http://hl7.org/fhir}Patient"
    for path, root in paths.items():
        response = hie.get(f"/fhir/{path}", **asking)
        assert response.mimetype == XML
        assert etree.fromstring(response.data).tag == f"{{http://hl7.org/fhir}}{root}"


@pytest.mark.parametrize(
    ("query", "accept", "mimetype"),
    [
        ("", "*/*", fhir.FHIR_JSON),
        ("", "", fhir.FHIR_JSON),
        ("", "application/fhir+json; fhirVersion=4.0", fhir.FHIR_JSON),
        ("", "application/json;q=0.5, application/fhir+xml", XML),
        ("", "text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", XML),
        ("&_format=xml", "application/fhir+json", XML),
        ("&_format=json", XML, fhir.FHIR_JSON),
        ("&_format=application/fhir+xml", "", XML),
        ("&_format=application/fhir%2Bxml", "", XML),
        ("&_format=application/json", "text/html", fhir.FHIR_JSON),
    ],
)
def test_the_format_asked_for_is_the_format_given(hie: Exchange, query: str, accept: str, mimetype: str) -> None:
    assert hie.get(f"/fhir/Patient?family=a{query}", Accept=accept).mimetype == mimetype


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png", "application/fhir+json; fhirVersion=3.0", "application/fhir+json;q=0"]
)
def test_a_format_that_cannot_be_given_is_not_acceptable(hie: Exchange, accept: str) -> None:
    assert hie.get("/fhir/Patient?family=a", Accept=accept).status_code == 406


BOMB = "<!DOCTYPE x [" + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9)) + "]>"


@pytest.mark.parametrize(
    "body",
    [
        '<!DOCTYPE x [<!ENTITY p SYSTEM "file:///etc/passwd">]>' + xml_patient('<name><text value="&p;"/></name>'),
        BOMB + xml_patient('<name><text value="&e8;"/></name>'),
        '<!DOCTYPE Patient SYSTEM "http://127.0.0.1:1/x.dtd">' + xml_patient(NAMED),
        xml_patient(NAMED + "<?run x?>"),
        xml_patient('<extension url="urn:x">' * 300 + "</extension>" * 300),
        xml_patient(NAMED + "text"),
        xml_patient(NAMED + '<etree value="x"/>'),
        xml_patient(NAMED + '<nonsense value="x"/>'),
        xml_patient(NAMED + '<birthDate value="1950-01-01"/>'),
        xml_patient(NAMED + '<gender value="female"/><name><family value="Other"/></name>'),
        xml_patient('<name><family value="A"/></name><birthDate value="2024-02-30"/>'),
        xml_patient(NAMED + '<active value="perhaps"/>'),
        xml_patient('<name><family value="A&#x7f;"/></name>'),
        xml_patient(""),
        xml_patient(NAMED).replace("http://hl7.org/fhir", "urn:x"),
        xml_patient(NAMED).replace("Patient", "Person"),
        '<?xml version="1.0" encoding="ISO-8859-1"?>' + xml_patient('<name><family value="A"/></name>'),
        "<Patient",
        "",
        "{}",
    ],
)
def test_hostile_or_broken_xml_is_refused(hie: Exchange, body: str) -> None:
    response = xml_feed(hie, body.encode())
    assert response.status_code in (400, 422)
    assert issue(response)["diagnostics"]
    assert b"root:" not in response.data
    assert hie.pix(f"{LAKESIDE}|1").status_code == 404


def test_entities_hidden_by_another_encoding_are_refused(hie: Exchange) -> None:
    hidden = '<!DOCTYPE x [<!ENTITY p "q">]>' + xml_patient('<name><text value="&p;"/></name>')
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-7"):
        assert xml_feed(hie, hidden.encode(encoding)).status_code == 400


def test_markup_in_names_stays_text(hie: Exchange) -> None:
    family = "<script>alert(1)</script>&\"'"
    made = hie.feed("1", marta(name=[{"family": family}]))
    shown = etree.fromstring(hie.get(f"/fhir/Patient/{person_id(made)}", Accept=XML).data)
    assert shown.find(".//{http://hl7.org/fhir}family").get("value") == family


def test_what_xml_cannot_carry_does_not_break_it(hie: Exchange) -> None:
    text = {"status": "generated", "div": "<div>not closed &nbsp;"}
    contained = [{"resourceType": "Organization", "id": "o", "text": text}]
    made = hie.feed("1", marta(name=[{"family": "A\uffffB"}], text=text, contained=contained), Accept=XML)
    found = hie.get("/fhir/Patient?family=A", Accept=XML)
    refused = hie.feed("1", marta(**{"no\uffff\u0007sense": 1}), Accept=XML)
    assert (made.status_code, found.status_code, refused.status_code) == (201, 200, 422)
    assert etree.fromstring(found.data).find(".//{http://hl7.org/fhir}family").get("value") == "A\ufffdB"
    assert etree.fromstring(refused.data).tag.endswith("OperationOutcome")


def test_links_keep_the_format_that_was_asked_for(hie: Exchange) -> None:
    bundle = hie.get("/fhir/Patient?_format=json&family=a").get_json(force=True)
    assert bundle["link"][0]["url"] == f"{BASE}/Patient?_format=json&family=a"


def test_errors_hold_nothing_that_was_sent(hie: Exchange) -> None:
    secret = "Zanzibarovna"
    bad: list[Callable[[], TestResponse]] = [
        lambda: hie.feed("1", marta(name=[{"family": secret}], birthDate=secret)),
        lambda: hie.feed("1", marta(gender=secret)),
        lambda: hie.feed("1", marta(name=[{"family": {"x": secret}}])),
        lambda: hie.get(f"/fhir/Patient?birthdate={secret}"),
        lambda: hie.get(f"/fhir/Patient?_lastUpdated={secret}"),
        lambda: hie.get(f"/fhir/Patient/{secret}"),
        lambda: hie.pix(f"{LAKESIDE}|{secret}"),
        lambda: hie.call("DELETE", f"/fhir/Patient?identifier={secret}"),
    ]
    for attempt in bad:
        response = attempt()
        assert response.status_code >= 400
        assert secret.encode() not in response.data
