import copy

import pytest

from hie.gateway.rewriting import Origin, finish, local_patient_id, references, rewrite

BASE = "https://lakeside.example/r4"
ORIGIN = Origin("lakeside", BASE, "urn:oid:2.999.1", "p-1", "person1")
ORGANIZATION = "https://hie.example/fhir/Organization/lakeside"


def gateway_id(kind, local_id):
    return f"gw-{kind}-{local_id}"


def condition(**more):
    return {"resourceType": "Condition", "id": "c-1", "subject": {"reference": "Patient/p-1"}, **more}


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ({"reference": "Patient/p-1"}, "p-1"),
        ({"reference": "Patient/p-1/_history/3"}, "p-1"),
        ({"reference": f"{BASE}/Patient/p-1"}, "p-1"),
        ({"identifier": {"system": "urn:oid:2.999.1", "value": "p-1"}}, "p-1"),
        ({"reference": "https://elsewhere.example/r4/Patient/p-1"}, None),
        ({"reference": "Patient/../Patient/p-1"}, None),
        ({"reference": "Group/p-1"}, None),
        ({"reference": ["Patient/p-1"]}, None),
        ({"identifier": {"system": "urn:oid:2.999.2", "value": "p-1"}}, None),
        ("Patient/p-1", None),
    ],
)
def test_whose_resource_it_is(subject, expected):
    assert local_patient_id(condition(subject=subject), BASE, "urn:oid:2.999.1") == expected


def test_a_resource_without_a_patient_is_nobodys():
    assert local_patient_id({"resourceType": "Condition", "id": "c"}, BASE, "urn:oid:2.999.1") is None


def test_ids_references_and_source_are_the_exchanges():
    sent = condition(
        meta={"versionId": "7", "source": "internal", "lastUpdated": "2026-01-01T00:00:00Z"},
        encounter={"reference": f"{BASE}/Encounter/e-9"},
        evidence=[{"detail": [{"reference": "#inside"}, {"reference": "https://stranger.example/Observation/1"}]}],
        recorder={"reference": "Patient/somebody-else", "display": "Hidden Name"},
    )
    before = copy.deepcopy(sent)
    leaving = rewrite(sent, ORIGIN, ORGANIZATION, gateway_id)
    assert sent == before
    assert leaving["id"] == "gw-Condition-c-1"
    assert leaving["meta"] == {"source": ORGANIZATION, "lastUpdated": "2026-01-01T00:00:00Z"}
    assert leaving["subject"] == {"reference": "Patient/person1"}
    assert leaving["encounter"] == {"reference": "Encounter/gw-Encounter-e-9"}
    assert leaving["evidence"][0]["detail"] == [{"reference": "#inside"}, {}]
    assert leaving["recorder"] == {"display": "another patient"}


def test_an_element_that_is_called_reference_is_no_literal():
    plan = {"resourceType": "CarePlan", "id": "x", "subject": {"reference": "Patient/p-1"}}
    plan["activity"] = [{"reference": {"reference": "Procedure/9"}}]
    leaving = rewrite(plan, ORIGIN, ORGANIZATION, gateway_id)
    assert leaving["activity"] == [{"reference": {"reference": "Procedure/gw-Procedure-9"}}]


@pytest.mark.parametrize(
    ("url", "kept"),
    [("data:text/plain;base64,QQ==", True), (f"{BASE}/Binary/1", False), ("http://[", False), ("Binary/1", False)],
)
def test_addresses_at_members_do_not_leave(url, kept):
    document = {"resourceType": "DocumentReference", "id": "d", "subject": {"reference": "Patient/p-1"}}
    document["content"] = [{"attachment": {"contentType": "text/plain", "url": url}}]
    leaving = rewrite(document, ORIGIN, ORGANIZATION, gateway_id)
    assert ("url" in leaving["content"][0]["attachment"]) is kept


def test_displays_of_what_is_not_released_are_dropped_and_labels_added():
    leaving = rewrite(
        condition(
            meta={"security": [{"system": "s", "code": "R"}]},
            encounter={"reference": "Encounter/e-1", "display": "Detox ward"},
            asserter={"reference": "Practitioner/1", "display": "Dr Who"},
            evidence=[{"detail": [{"reference": "Observation/2", "display": "seen"}]}],
        ),
        ORIGIN,
        ORGANIZATION,
        gateway_id,
    )
    finish(leaving, {"Observation/gw-Observation-2"}, {("s", "R"), ("s", "HIV")})
    assert "display" not in leaving["encounter"]
    assert leaving["asserter"]["display"] == "Dr Who"
    assert leaving["evidence"][0]["detail"][0]["display"] == "seen"
    assert leaving["meta"]["security"] == [{"system": "s", "code": "R"}, {"system": "s", "code": "HIV"}]


def test_what_a_resource_refers_to():
    sent = condition(encounter={"reference": "Encounter/e-1"}, recorder={"reference": "not a reference"})
    assert references(sent, BASE) == {("Encounter", "e-1")}
