"""Events as AuditEvents: valid R4, and shaped as the BALP pattern of their kind."""

import base64

import pytest
from fhir.resources.R4B.auditevent import AuditEvent

from hie.audit.balp import audit_event
from hie.audit.columns import EntityKey, columns
from hie.audit.event import Kind, Outcome, Released, SourceOutcome
from hie.core.caller import Role
from hie.core.scopes import Scopes
from tests.audit.samples import BASE, START, caller, disclosure, event

DCM = "http://dicom.nema.org/resources/ontology/DCM"
PROFILE = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
CONSENT = {"permit": False, "rule": "consent", "consent": "Consent/c-1/_history/2", "path": [0, 1], "count": 3}


def made(given):
    resource = audit_event(given, "abcdefghijklmnopqrstuvwxyz", START, BASE)
    AuditEvent.model_validate(resource)
    return resource


def codes_of(agent):
    return [coding["code"] for coding in agent["type"]["coding"]]


def agent(resource, code):
    (found,) = [a for a in resource["agent"] if code in codes_of(a)]
    return found


def of_type(resource, code):
    return [e for e in resource["entity"] if e["type"]["code"] == code]


def details(entity):
    return {d["type"]: d["valueString"] for d in entity["detail"]}


def profile(resource):
    return [url.removeprefix(PROFILE) for url in resource["meta"].get("profile", [])]


def subtypes(resource):
    return [s["code"] for s in resource["subtype"]]


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("action", list("CRUDE"))
@pytest.mark.parametrize("who", ["member", "console", "nobody"])
@pytest.mark.parametrize("person_id", ["person-1", None])
def test_every_event_is_a_valid_audit_event_with_one_requestor(kind, action, who, person_id):
    asking = {
        "member": caller(subject_name=None, subject_id=None, subject_role=None),
        "console": caller(client_id=None, user_id="r.ortiz@lakeside.example"),
        "nobody": None,
    }[who]
    resource = made(event(kind, action, caller=asking, person_id=person_id, entities=("Consent/c-1",)))
    assert sum(a["requestor"] for a in resource["agent"]) == 1
    assert resource["recorded"] == "2026-03-01T08:00:00.250000Z"


def test_a_disclosure_is_a_privacy_disclosure_at_its_source():
    resource = made(disclosure())
    assert profile(resource) == ["PrivacyDisclosure.Source"]
    assert (resource["type"]["system"], resource["type"]["code"]) == (DCM, "110106")
    assert subtypes(resource) == ["disclose", "search-type", "AuthZ-Role"]
    assert (resource["action"], resource["outcome"]) == ("R", "0")
    assert agent(resource, "110153")["who"] == resource["source"]["observer"]
    recipient = agent(resource, "110152")
    assert recipient["who"] == {"reference": "Organization/lakeside", "display": "Lakeside Hospital"}
    assert recipient["network"] == {"address": "192.0.2.7", "type": "2"}
    assert agent(resource, "110150")["who"]["identifier"]["value"] == "lakeside-ehr"
    assert agent(resource, "159541003")["who"] == {"reference": "Organization/meadow"}
    (patient,) = of_type(resource, "1")
    assert patient["what"] == {"reference": "Patient/person-1"}
    assert patient["role"]["code"] == "1"
    (query,) = [e for e in resource["entity"] if e.get("role", {}).get("code") == "24"]
    assert base64.b64decode(query["query"]) == b"GET /fhir/AllergyIntolerance?patient=Patient/person-1"
    (request,) = of_type(resource, "XrequestId")
    assert request["what"]["identifier"]["value"] == "request-1"


def test_the_purpose_stands_with_the_event_and_with_its_agents():
    resource = made(disclosure(caller=caller(purposes=frozenset({"TREAT", "ETREAT"}))))
    system = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
    expected = [(system, "ETREAT"), (system, "TREAT")]
    for concepts in (
        resource["purposeOfEvent"],
        agent(resource, "IRCP")["purposeOfUse"],
        agent(resource, "PROV")["purposeOfUse"],
    ):
        assert [(c["coding"][0]["system"], c["coding"][0]["code"]) for c in concepts] == expected


def test_a_person_behind_the_client_is_the_requestor_and_named_with_the_token():
    user = agent(made(disclosure()), "IRCP")
    assert user["requestor"] is True
    assert "UserOauthAgent" in codes_of(user)
    assert user["who"]["display"] == user["name"] == "Rosa Ortiz"
    assert user["policy"] == ["urn:ietf:params:oauth:jti:token-1"]
    assert user["role"][0]["coding"][0]["code"] == "member"
    assert user["role"][1]["text"] == "207P00000X"


def test_a_console_user_has_a_session_and_no_token():
    console = caller(
        client_id=None, user_id="r.ortiz@lakeside.example", role=Role.CLINICIAN, scopes=Scopes(), session="session-1"
    )
    resource = made(disclosure(caller=console))
    user = agent(resource, "IRCP")
    assert "UserOauthAgent" not in codes_of(user)
    assert user["who"]["identifier"]["value"] == "r.ortiz@lakeside.example"
    found = columns(resource)
    assert (found.user_id, found.client_id, found.session) == ("r.ortiz@lakeside.example", None, "session-1")


def test_the_manifest_names_what_left_with_its_hash_and_labels():
    given = disclosure(released=(Released("Condition", "gw-1", "cd" * 32, ("R", "HIV")),))
    (released,) = of_type(made(given), "Condition")
    assert released["what"] == {"reference": "Condition/gw-1"}
    assert details(released) == {"sha256": "cd" * 32}
    assert [(label["system"].rsplit("/", 1)[1], label["code"]) for label in released["securityLabel"]] == [
        ("v3-Confidentiality", "R"),
        ("v3-ActCode", "HIV"),
    ]


def test_every_source_stands_with_what_it_gave_or_failed_to_give():
    sources = (SourceOutcome("meadow", "ok", 2), SourceOutcome("harbor", "timeout", 0), SourceOutcome("lab", "ok", 1))
    resource = made(disclosure(sources=sources, outcome=Outcome.MINOR))
    found = {e["what"]["reference"]: details(e) for e in of_type(resource, "Organization")}
    assert found == {
        "Organization/meadow": {"status": "ok", "count": "2"},
        "Organization/harbor": {"status": "timeout", "count": "0"},
        "Organization/lab": {"status": "ok", "count": "1"},
    }
    assert not [a for a in resource["agent"] if "159541003" in codes_of(a)]  # the profile has room for one custodian
    assert columns(resource).failures == {("harbor", "timeout")}


def test_a_consent_that_decided_makes_it_an_authorization_by_consent():
    resource = made(disclosure(decisions=(CONSENT,), withheld=3))
    assert "AuthZ-Consent" in subtypes(resource)
    (consent,) = of_type(resource, "Consent")
    assert consent["what"] == {"reference": "Consent/c-1/_history/2"}
    assert details(consent) == {"permit": "false", "rule": "consent", "path": "[0,1]", "count": "3"}
    assert details(of_type(resource, "1")[0]) == {"withheld": "3"}


@pytest.mark.parametrize(("decisions", "subtype"), [((CONSENT,), "AuthZ-Consent"), ((), "AuthZ-Role")])
def test_a_denial_is_an_authorization_decision(decisions, subtype):
    given = event(
        Kind.DENIAL, "R", outcome=Outcome.SERIOUS, decisions=decisions, query="GET /fhir/x", description="No."
    )
    resource = made(given)
    assert (resource["type"]["code"], subtypes(resource), resource["action"]) == ("110113", [subtype], "E")
    assert resource["outcomeDesc"] == "No."
    assert agent(resource, "authserver")["who"] == resource["source"]["observer"]
    assert "network" not in agent(resource, "authserver")
    assert {"110150", "IRCP", "PROV", "authserver"} <= {code for a in resource["agent"] for code in codes_of(a)}
    assert profile(resource) == []


@pytest.mark.parametrize(
    ("action", "query", "name", "subtype", "client", "server", "user"),
    [
        ("E", "GET /fhir/Patient?family=X", "PatientQuery", "search-type", "110153", "110152", "IRCP"),
        ("R", "GET /fhir/Consent/c-1", "PatientRead", "read", "110152", "110153", "IRCP"),
        ("C", "POST /fhir/Consent", "PatientCreate", "create", "110153", "110152", "AUT"),
        ("U", "PUT /fhir/Consent/c-1", "PatientUpdate", "update", "110153", "110152", "AUT"),
        ("D", "DELETE /fhir/Patient?identifier=x", "PatientDelete", "delete", "110150", "custodian", "AUT"),
    ],
)
def test_the_restful_patterns(action, query, name, subtype, client, server, user):
    resource = made(event(Kind.CONSENT, action, query=query, entities=("Consent/c-1", "Organization/lakeside")))
    assert profile(resource) == [name]
    assert (resource["type"]["code"], subtypes(resource), resource["action"]) == ("rest", [subtype], action)
    assert agent(resource, client)["who"]["identifier"]["value"] == "lakeside-ehr"
    assert agent(resource, server)["network"] == {"address": BASE, "type": "5"}
    assert "network" not in agent(resource, user)
    (system_object,) = of_type(resource, "2")  # the slice `query` of a query, `data` of the others
    assert system_object["role"]["code"] == ("24" if action == "E" else "4")
    assert ("what" in system_object) == (action != "E")
    assert "Organization/lakeside" in [e["what"]["reference"] for e in of_type(resource, "Organization")]
    if action == "D":  # the profile forbids these
        assert not any("policy" in a for a in resource["agent"])


def test_a_pattern_is_claimed_only_where_it_is_met():
    assert profile(made(event(Kind.FAILURE, "R", outcome=Outcome.SERIOUS, query="GET /fhir/X?patient=p"))) == []
    assert profile(made(event(Kind.DIRECTORY, "U", person_id=None))) == []  # no object
    assert profile(made(event(Kind.DIRECTORY, "U", person_id=None, entities=("Organization/x",)))) == ["Update"]
    assert profile(made(event(Kind.SEARCH, "E", person_id=None, query="GET /fhir/Patient?family=X"))) == ["Query"]
    assert profile(made(event(Kind.SEARCH, "E", query=""))) == []
    assert profile(made(disclosure(person_id=None))) == []


def test_an_operation_is_told_from_its_request():
    given = disclosure(query="GET /fhir/Patient/person-1/$everything?_count=5")
    assert "operation" in subtypes(made(given))
    assert "search-type" in subtypes(made(disclosure(query="POST /fhir/Condition/_search\n\npatient=1")))
    assert "read" in subtypes(made(disclosure(query="GET /fhir/Condition/gw-1")))


def test_break_glass_is_flagged_with_its_reason():
    asking = caller(purposes=frozenset({"TREAT", "BTG"}), break_glass_reason="unconscious, no next of kin")
    resource = made(disclosure(caller=asking))
    (declared,) = [e for e in resource["entity"] if e.get("name") == "Break-glass declaration"]
    assert details(declared) == {"break-glass": "declared", "reason": "unconscious, no next of kin"}
    assert "BTG" in columns(resource).purposes
    assert not [e for e in made(disclosure())["entity"] if e.get("name") == "Break-glass declaration"]


def test_sign_in_and_log_reading_have_types_of_their_own():
    sign_in = made(event(Kind.SIGN_IN, "E", caller=None, person_id=None, client_id="unknown-app", address="192.0.2.9"))
    assert (sign_in["type"]["code"], subtypes(sign_in)) == ("110114", ["110122"])
    assert agent(sign_in, "110150")["who"]["identifier"]["value"] == "unknown-app"
    assert agent(sign_in, "110150")["network"]["address"] == "192.0.2.9"
    assert columns(sign_in).client_id == "unknown-app"
    reading = made(event(Kind.LOG_READ, "E", query="GET /fhir/AuditEvent?patient=person-1"))
    assert (reading["type"]["code"], subtypes(reading), profile(reading)) == ("110101", ["search-type"], [])


def test_columns_are_derived_from_the_body_alone():
    found = columns(made(disclosure(entities=("Consent/c-1/_history/4",))))
    assert found.person_id == "person-1"
    assert (found.organization, found.client_id, found.user_id) == ("lakeside", "lakeside-ehr", "1234567893")
    assert (found.session, found.request_id) == ("token-1", "request-1")
    assert (found.type, found.action, found.outcome) == ("110106", "R", "0")
    assert found.purposes == {"TREAT"}
    assert found.entities == {
        EntityKey("Patient", "person-1"),
        EntityKey("Organization", "meadow"),
        EntityKey("AllergyIntolerance", "gw-allergy-1"),
        EntityKey("Consent", "c-1"),
    }
