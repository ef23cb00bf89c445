"""`/fhir/Consent` (PCF ITI-108) as a privacy office, a member's system and a stranger see it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.consent import Consent
from flask import Flask

from hie.consent.service import ConsentService
from hie.core.caller import Caller, Role
from hie.core.errors import AuditUnavailable, Unauthorized
from hie.core.scopes import Scopes
from hie.gateway.api import consents, context, problems
from hie.mpi.identity import Identifier
from tests.consent.strategies import concept
from tests.consent.test_service import START

BASE = "https://hie.example/fhir"
LAKESIDE, MEADOW = "urn:oid:2.999.1.1", "urn:oid:2.999.1.2"


def caller(organization="lakeside", role=Role.MEMBER, scopes="system/*.cruds", client="client"):
    return Caller(organization, organization, role, frozenset({"TREAT"}), Scopes.parse(scopes), "s", client)


CALLERS = {
    "lakeside": caller(),
    "meadow": caller("meadow"),
    "office": caller("exchange", Role.PRIVACY_OFFICER, "system/Consent.cruds"),
    "portal": caller("exchange", Role.PATIENT, "system/Consent.cruds", "portal"),
    "officer-of-lakeside": caller(role=Role.PRIVACY_OFFICER),
    "reader": caller(scopes="system/Consent.rs"),
    "narrow": caller(scopes="system/AllergyIntolerance.rs"),
    "payer": caller("insurer", Role.PAYER),
    "patient": caller("exchange", Role.PATIENT, client=None),
    "marta": replace(caller("exchange", Role.PATIENT, "system/Consent.cruds", "portal"), user_id="marta@mail.example"),
}


class Authority:
    def caller(self, authorization, *, address):
        name = authorization.removeprefix("Bearer ")
        if name not in CALLERS:
            raise Unauthorized("A token is needed.")
        return CALLERS[name]


PEOPLE = {"p1": ("lakeside", "meadow"), "p2": ("meadow",)}
NUMBERS = {(LAKESIDE, "l-1"): "p1", (MEADOW, "m-1"): "p1", (MEADOW, "m-2"): "p2"}
SYSTEMS = {"lakeside": LAKESIDE, "meadow": MEADOW, "clinic": "urn:oid:2.999.1.3"}


class Identity:
    """p1 (once p-old) is known to both members, p2 to Meadow only."""

    def person(self, person_id):
        known = {"p-old": "p1"}.get(person_id, person_id)
        if known not in PEOPLE:
            return None
        return SimpleNamespace(id=known, records=tuple(self._record(m, known) for m in PEOPLE[known]))

    def _record(self, member_id, person_id):
        system = SYSTEMS[member_id]
        value = next(v for (s, v), held_by in NUMBERS.items() if (s, held_by) == (system, person_id))
        return SimpleNamespace(member_id=member_id, identifier=Identifier(system, value))

    def person_ids(self, person_id):
        return {"p1": ("p1", "p-old"), "p-old": ("p1", "p-old"), "p2": ("p2",)}.get(person_id, ())

    def source_record(self, identifier: Identifier):
        person = NUMBERS.get((identifier.system, identifier.value))
        return SimpleNamespace(person_id=person) if person else None


class Directory:
    def member(self, member_id):
        system = SYSTEMS.get(member_id)
        named = f"{member_id.title()} Hospital"
        return SimpleNamespace(id=member_id, name=named, patient_id_system=system) if system else None


class Audit:
    def __init__(self):
        self.events = []
        self.broken = False

    def record(self, *events):
        if self.broken:
            raise AuditUnavailable
        self.events.extend(events)

    def append(self, connection, *events):
        assert connection.in_transaction()
        self.record(*events)


@pytest.fixture
def audit():
    return Audit()


@pytest.fixture
def client(sqlite_database, audit):
    app = Flask("test")
    app.extensions["hie"] = SimpleNamespace(
        settings=SimpleNamespace(fhir_base=BASE),
        authority=Authority(),
        identity=Identity(),
        directory=Directory(),
        portal=SimpleNamespace(people_of={"marta@mail.example": frozenset({"p1"})}.get),
        consents=ConsentService(sqlite_database, lambda: START, "permit", dict, frozenset),
        audit=audit,
        clock=lambda: START,
    )
    context.install(app)
    problems.install(app)
    app.register_blueprint(consents.blueprint)
    return app.test_client()


def consent(patient="Patient/p1", **elements):
    who = {"reference": patient} if isinstance(patient, str) else {"identifier": dict(patient)}
    return {
        "resourceType": "Consent",
        "status": "active",
        "scope": concept("patient-privacy"),
        "category": [concept("59284-0")],
        "patient": who,
        "dateTime": "2026-01-01",
        "policyRule": concept("OPTOUT"),
        "provision": {"type": "deny"},
        **elements,
    }


def send(client, method, path, body=None, who="office", **headers):
    data = json.dumps(body) if body is not None else None
    return client.open(
        path,
        method=method,
        data=data,
        headers={"Authorization": f"Bearer {who}", "Content-Type": "application/fhir+json", **headers},
    )


def file(client, who="office", **elements):
    answer = send(client, "POST", "/fhir/Consent", consent(**elements), who)
    assert answer.status_code == 201, answer.json
    return answer.json["id"]


def found(client, query, who="office"):
    answer = send(client, "GET", f"/fhir/Consent?{query}", who=who)
    assert answer.status_code == 200, answer.json
    return [entry["resource"]["id"] for entry in answer.json.get("entry", [])]


def custodian(*members):
    return [{"reference": f"Organization/{member}"} for member in members]


# -- filing


def test_a_consent_is_filed_with_location_and_version(client, audit):
    answer = send(client, "POST", "/fhir/Consent", consent())
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{BASE}/Consent/{answer.json['id']}/_history/1"
    assert answer.headers["ETag"] == 'W/"1"'
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json["meta"]["versionId"] == "1"
    Consent.model_validate(answer.json)
    (event,) = audit.events
    assert (event.kind, event.action, event.person_id) == ("consent", "C", "p1")
    assert event.entities == (f"Consent/{answer.json['id']}/_history/1",)
    there = send(client, "GET", answer.headers["Location"].removeprefix("https://hie.example"))
    assert there.json == answer.json


@pytest.mark.parametrize(
    "patient",
    ["Patient/p1", f"{BASE}/Patient/p1", "Patient/p-old", {"system": LAKESIDE, "value": "l-1"}],
)
def test_the_patient_is_kept_as_the_exchanges_person(client, patient):
    answer = send(client, "POST", "/fhir/Consent", consent(patient), "lakeside")
    assert answer.status_code == 201
    assert answer.json["patient"] == {"reference": "Patient/p1"}


@pytest.mark.parametrize(
    "patient",
    ["Patient/p2", "Patient/nobody", {"system": MEADOW, "value": "m-1"}, {"system": LAKESIDE, "value": "l-404"}],
)
def test_a_member_files_for_its_own_patients_only_and_learns_nothing_of_others(client, patient):
    answer = send(client, "POST", "/fhir/Consent", consent(patient), "lakeside")
    assert answer.status_code == 403
    stranger = send(client, "POST", "/fhir/Consent", consent("Patient/nobody"), "lakeside")
    assert answer.data == stranger.data
    assert found(client, "") == []


def test_the_office_files_for_everybody_by_any_identifier(client):
    assert send(client, "POST", "/fhir/Consent", consent({"system": MEADOW, "value": "m-2"})).status_code == 201
    assert send(client, "POST", "/fhir/Consent", consent("Patient/p2"), "portal").status_code == 201
    unknown = send(client, "POST", "/fhir/Consent", consent("Patient/nobody"))
    assert unknown.status_code == 422


def test_an_app_that_names_its_patient_reads_and_files_for_her_alone(client):
    """Also where the same app could do so for everybody without naming anybody (law L8)."""
    others = send(client, "POST", "/fhir/Consent", consent("Patient/p2")).json["id"]
    by_number = {"system": MEADOW, "value": "m-1"}
    hers = send(client, "POST", "/fhir/Consent", consent(by_number), "marta")
    assert hers.status_code == 201
    own = hers.json["id"]
    for path in (f"/fhir/Consent/{own}", f"/fhir/Consent/{own}/_history", "/fhir/Consent?patient=Patient/p1"):
        assert send(client, "GET", path, who="marta").status_code == 200
    assert send(client, "PUT", f"/fhir/Consent/{own}", {**consent(), "id": own}, "marta").status_code == 200
    refused = [
        send(client, "GET", path, who="marta")
        for path in (f"/fhir/Consent/{others}", f"/fhir/Consent/{others}/_history", "/fhir/Consent?patient=Patient/p2")
    ]
    refused += [send(client, "POST", "/fhir/Consent", consent(p), "marta") for p in ("Patient/p2", "Patient/nobody")]
    refused.append(send(client, "PUT", f"/fhir/Consent/{others}", {**consent("Patient/p2"), "id": others}, "marta"))
    assert [answer.status_code for answer in refused] == [403] * 6
    assert send(client, "GET", "/fhir/Consent", who="marta").status_code == 400
    assert send(client, "GET", f"/fhir/Consent/{others}", who="portal").status_code == 200


@pytest.mark.parametrize(
    ("who", "status"),
    [("nobody", 401), ("narrow", 403), ("reader", 403), ("payer", 403), ("patient", 403)],
)
def test_who_may_not_file(client, who, status):
    assert send(client, "POST", "/fhir/Consent", consent(), who).status_code == status
    assert found(client, "") == []


def test_a_members_privacy_officer_acts_for_the_members_patients_only(client):
    assert send(client, "POST", "/fhir/Consent", consent(), "officer-of-lakeside").status_code == 201
    assert send(client, "POST", "/fhir/Consent", consent("Patient/p2"), "officer-of-lakeside").status_code == 403


@pytest.mark.parametrize("reference", ["Organization/meadow", f"{BASE}/Organization/meadow", "Organization/exchange"])
def test_custodians_are_members_of_the_exchange(client, reference):
    answer = send(client, "POST", "/fhir/Consent", consent(organization=[{"reference": reference}]))
    assert answer.status_code == 201
    assert answer.json["organization"][0]["reference"] in ("Organization/meadow", "Organization/exchange")


@pytest.mark.parametrize(
    "organization",
    [{"reference": "Organization/nowhere"}, {"display": "the one by the lake"}, {"reference": "Patient/p1"}],
)
def test_an_unknown_custodian_is_refused_with_a_sentence(client, organization):
    answer = send(client, "POST", "/fhir/Consent", consent(organization=[organization]))
    assert answer.status_code == 422
    assert "Consent.organization" in answer.json["issue"][0]["diagnostics"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", 400),
        (b'{"resourceType": "Patient"}', 400),
        (b'{"resourceType": "Consent"}', 422),
        (json.dumps(consent(dateTime=None)).encode(), 422),
        (json.dumps(consent(dateTime="2026-02-30")).encode(), 422),
        (json.dumps(consent(patient={"value": "l-1"})).encode(), 422),
        (json.dumps(consent(provision={"type": "deny", "mood": "sad"})).encode(), 422),
        (json.dumps(consent(provision={"type": "deny", "provision": [{"type": "permit"}] * 600})).encode(), 422),
        (b'{"resourceType": "Consent", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    ],
)
def test_bad_consents_are_refused_in_plain_words(client, body, status):
    answer = client.post(
        "/fhir/Consent", data=body, headers={"Authorization": "Bearer office", "Content-Type": "application/fhir+json"}
    )
    assert answer.status_code == status, answer.json
    assert answer.json["resourceType"] == "OperationOutcome"
    assert found(client, "") == []


def test_a_body_of_another_kind_is_refused(client):
    assert send(client, "POST", "/fhir/Consent", consent(), **{"Content-Type": "text/plain"}).status_code == 415


def test_what_cannot_be_honoured_is_said_when_filing(client):
    vague = consent(
        provision={"type": "permit", "actor": [{"role": concept("IRCP"), "reference": {"display": "aunt"}}]}
    )
    answer = send(client, "POST", "/fhir/Consent", vague)
    assert any("actor[0] cannot be resolved" in warning for warning in answer.headers.getlist("Warning"))
    told = send(client, "POST", "/fhir/Consent", vague, Prefer="return=OperationOutcome")
    assert told.status_code == 201
    assert [issue["severity"] for issue in told.json["issue"]] == ["information", "warning"]
    assert send(client, "POST", "/fhir/Consent", vague, Prefer="return=minimal").data == b""


def test_what_it_permits_and_denies_is_said_in_plain_words_when_filing(client):
    body = consent(
        organization=custodian("lakeside"),
        provision={"type": "permit", "provision": [{"type": "deny", "securityLabel": [{"code": "HIV"}]}]},
    )
    told = send(client, "POST", "/fhir/Consent", body, Prefer="return=OperationOutcome").json
    assert [issue["diagnostics"] for issue in told["issue"]] == [
        "About the records of Lakeside Hospital alone. Shares everything. "
        "Except: Does not share records about HIV. It is in force."
    ]


PUBLISHED = sorted((Path(__file__).parent / "cases" / "pcf" / "resources").glob("Consent-*.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem.removeprefix("Consent-ex-"))
def test_every_published_consent_of_the_three_pcf_profiles_is_taken(client, path):
    """Basic, intermediate and advanced; the example's patient and organization become the exchange's own."""
    body = json.loads(path.read_text())
    body["patient"] = {"reference": "Patient/p1"}
    if "organization" in body:
        body["organization"] = custodian("lakeside")
    told = send(client, "POST", "/fhir/Consent", body, Prefer="return=OperationOutcome")
    assert told.status_code == 201, told.json
    assert told.json["issue"][0]["diagnostics"].startswith("About the records of ")
    consent_id = told.headers["Location"].split("/")[-3]
    assert send(client, "GET", f"/fhir/Consent/{consent_id}").json["meta"]["versionId"] == "1"


def test_the_history_has_every_version_the_newest_first(client, audit):
    consent_id = file(client, "lakeside", patient="Patient/p1", organization=custodian("lakeside"))
    change(client, consent_id)
    history = send(client, "GET", f"/fhir/Consent/{consent_id}/_history").json
    assert (history["type"], history["total"]) == ("history", 2)
    assert [entry["resource"]["meta"]["versionId"] for entry in history["entry"]] == ["2", "1"]
    assert [entry["request"]["method"] for entry in history["entry"]] == ["PUT", "POST"]
    assert history["entry"][0]["response"]["etag"] == 'W/"2"'
    assert audit.events[-1].action == "R"
    assert send(client, "GET", "/fhir/Consent/nosuch/_history").status_code == 404


def test_without_an_audit_entry_nothing_is_filed_or_shown(client, audit):
    consent_id = file(client)
    audit.broken = True
    assert send(client, "POST", "/fhir/Consent", consent("Patient/p2")).status_code == 503
    changed = {**consent(), "id": consent_id, "status": "inactive"}
    assert send(client, "PUT", f"/fhir/Consent/{consent_id}", changed).status_code == 503
    refused = send(client, "GET", f"/fhir/Consent/{consent_id}")
    assert refused.status_code == 503
    assert b"p1" not in refused.data
    assert send(client, "GET", "/fhir/Consent").status_code == 503
    audit.broken = False
    assert found(client, "") == [consent_id]
    assert send(client, "GET", f"/fhir/Consent/{consent_id}").json["status"] == "active"


# -- changing


def change(client, consent_id, who="office", body_id=None, patient="Patient/p1", **headers):
    body = {**consent(patient, status="inactive"), "id": body_id or consent_id}
    return send(client, "PUT", f"/fhir/Consent/{consent_id}", body, who, **headers)


def test_a_change_makes_the_next_version(client, audit):
    consent_id = file(client)
    answer = change(client, consent_id, **{"If-Match": 'W/"1"'})
    assert answer.status_code == 200
    assert answer.headers["ETag"] == 'W/"2"'
    assert audit.events[-1].action == "U"
    assert send(client, "GET", f"/fhir/Consent/{consent_id}").json["status"] == "inactive"
    assert send(client, "GET", f"/fhir/Consent/{consent_id}/_history/1").json["status"] == "active"
    assert send(client, "GET", f"/fhir/Consent/{consent_id}/_history/9").status_code == 404
    assert send(client, "GET", f"/fhir/Consent/{consent_id}/_history/99999999999").status_code == 404


def test_a_change_that_was_overtaken_or_is_malformed_is_refused(client):
    consent_id = file(client)
    assert change(client, consent_id).status_code == 200
    assert change(client, consent_id, **{"If-Match": 'W/"1"'}).status_code == 412
    assert change(client, consent_id, **{"If-Match": "one"}).status_code == 400
    assert change(client, consent_id, body_id="another").status_code == 400
    assert change(client, "never-was").status_code == 404


def test_a_consent_stays_with_its_person(client):
    consent_id = file(client)
    assert change(client, consent_id, patient="Patient/p2").status_code == 422
    assert change(client, consent_id, patient="Patient/p-old").status_code == 200


def test_only_who_filed_a_consent_or_the_office_changes_it(client):
    consent_id = file(client, "lakeside")
    assert change(client, consent_id, "meadow").status_code == 403
    assert change(client, consent_id, "lakeside").status_code == 200
    assert change(client, consent_id, "office").status_code == 200
    assert change(client, consent_id, "lakeside").status_code == 403


# -- seeing


def test_a_member_sees_what_governs_it_and_what_it_filed(client):
    general = file(client)
    mine = file(client, organization=custodian("lakeside"))
    filed = file(client, "lakeside", organization=custodian("meadow"))
    elsewhere = file(client, organization=custodian("clinic"))
    both = file(client, organization=custodian("lakeside", "clinic"))
    assert set(found(client, "patient=Patient/p1", "lakeside")) == {general, mine, filed}
    assert set(found(client, "patient=Patient/p1")) == {general, mine, filed, elsewhere, both}
    hidden = send(client, "GET", f"/fhir/Consent/{elsewhere}", who="lakeside")
    never = send(client, "GET", "/fhir/Consent/never-was", who="lakeside")
    assert hidden.status_code == never.status_code == 404
    assert hidden.data == never.data


def test_a_member_sees_nothing_of_anothers_patient(client):
    consent_id = file(client, patient="Patient/p2")
    assert send(client, "GET", f"/fhir/Consent/{consent_id}", who="lakeside").status_code == 403
    assert send(client, "GET", "/fhir/Consent?patient=Patient/p2", who="lakeside").status_code == 403
    assert send(client, "GET", "/fhir/Consent?patient=Patient/nobody", who="lakeside").status_code == 403
    assert send(client, "GET", "/fhir/Consent", who="lakeside").status_code == 400
    assert found(client, "patient=Patient/p2", "meadow") == [consent_id]


def test_searching_by_patient_identifier_and_status(client):
    active, ended = file(client), file(client, status="inactive")
    for query in (
        "patient=p1",
        "patient=Patient/p-old",
        f"patient={BASE}/Patient/p1",
        f"patient.identifier={LAKESIDE}|l-1",
        f"patient:identifier={MEADOW}|m-1",
        "patient=p1&status=active,inactive",
    ):
        assert set(found(client, query)) == {active, ended}
    assert found(client, "patient=p1&status=inactive") == [ended]
    assert found(client, "patient=Patient/nobody") == []
    assert found(client, f"patient.identifier={LAKESIDE}|l-1&status=active", "lakeside") == [active]


def test_searching_by_form(client):
    consent_id = file(client)
    answer = client.post(
        "/fhir/Consent/_search",
        data={"patient.identifier": f"{LAKESIDE}|l-1"},
        headers={"Authorization": "Bearer lakeside"},
    )
    assert [entry["resource"]["id"] for entry in answer.json["entry"]] == [consent_id]
    assert send(client, "POST", "/fhir/Consent/_search", {}).status_code == 415


@pytest.mark.parametrize(
    "query",
    [
        "patient=Patient/p1&patient=Patient/p2",
        f"patient=Patient/p1&patient.identifier={MEADOW}|m-2",
        "patient.identifier=m-1",
        "patient=Patient/p1&status=lively",
        "patient=Patient/p1&_count=many",
        "patient=Patient/p1&_cursor=%21%21",
        "patient=Patient/p1&colour=blue",
        "patient=Patient/p1&_include=Consent:patient",
    ],
)
def test_what_a_search_does_not_understand_it_refuses(client, query):
    answer = send(client, "GET", f"/fhir/Consent?{query}")
    assert answer.status_code == 400
    assert answer.json["resourceType"] == "OperationOutcome"


def test_pages_follow_absolute_links_and_have_no_gaps(client):
    visible = set()
    for number in range(7):
        file(client, organization=custodian("clinic"))
        visible.add(file(client, status="active" if number % 2 else "inactive"))
    seen, url, pages = [], f"{BASE}/Consent?patient=Patient/p1&_count=3", 0
    while url:
        assert url.startswith(f"{BASE}/Consent?")
        answer = send(client, "GET", url.removeprefix("https://hie.example"), who="lakeside")
        Bundle.model_validate(answer.json)
        page = [entry["resource"]["id"] for entry in answer.json["entry"]]
        links = {link["relation"]: link["url"] for link in answer.json["link"]}
        url = links.get("next")
        assert len(page) == (3 if url else 1)
        seen += page
        pages += 1
    assert pages == 3
    assert len(seen) == len(set(seen)) == 7
    assert set(seen) == visible


def test_each_search_is_in_the_log_with_what_it_showed(client, audit):
    first, second = file(client), file(client)
    audit.events.clear()
    found(client, "patient=Patient/p1")
    (event,) = audit.events
    assert (event.action, event.person_id, event.query) == ("E", "p1", "Consent?patient=Patient%2Fp1")
    assert set(event.entities) == {f"Consent/{i}/_history/1" for i in (first, second)}
    audit.events.clear()
    found(client, "patient=Patient/p2")
    (event,) = audit.events
    assert (event.person_id, event.entities) == ("p2", ())
