"""The golden record: what survives of several source records, and what never leaves one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hie.core import fhir
from hie.core.fhir import Resource
from hie.mpi.golden import DATA_ABSENT_REASON, MOTHERS_MAIDEN_NAME, golden, replaced
from hie.mpi.people import Identifier, SourceRecord
from tests.mpi.identity.conftest import HARBOR, LAKESIDE, MEADOW, marta

START = datetime(2026, 1, 1, tzinfo=UTC)
SSN = "http://hl7.org/fhir/sid/us-ssn"


def merged(*bodies: Resource) -> Resource:
    """The golden record of one record per body, oldest first."""
    systems = (LAKESIDE, HARBOR, MEADOW)
    records = [
        SourceRecord(
            id=f"r{n}",
            member_id=f"m{n}",
            identifier=Identifier(systems[n], str(n)),
            person_id="p",
            version=1,
            active=True,
            resource={"resourceType": "Patient", **body},
            updated=START + timedelta(days=n),
        )
        for n, body in enumerate(bodies)
    ]
    patient = golden(records)
    fhir.validate({"id": "p", **patient}, "Patient")
    return patient


def test_it_carries_every_records_id_and_other_identifiers_once() -> None:
    ssn = {"system": SSN, "value": "219-09-9999"}
    patient = merged({"identifier": [ssn]}, {"identifier": [{"system": HARBOR, "value": "1", "use": "usual"}, ssn]})
    assert patient["identifier"] == [
        {"system": LAKESIDE, "value": "0"},
        {"use": "usual", "system": HARBOR, "value": "1"},
        ssn,
    ]


def test_a_body_cannot_claim_another_id_of_a_members_system() -> None:
    stolen = {"system": LAKESIDE, "value": "somebody-else"}
    patient = merged({"identifier": [stolen]}, {"identifier": [stolen]})
    assert [i["value"] for i in patient["identifier"]] == ["0", "1"]


def test_an_identifier_without_system_or_value_is_left_out() -> None:
    patient = merged({"identifier": [{"value": "x"}, {"system": "urn:oid:2.999.7"}]})
    assert [i["value"] for i in patient["identifier"]] == ["0"]


def test_the_fullest_official_name_comes_first_and_lesser_forms_go() -> None:
    patient = merged(
        {"name": [{"family": "Lindqvist", "given": ["M"]}]},
        {"name": [{"use": "official", "family": "LINDQVIST", "given": ["Marta", "Ingrid"]}]},
        {
            "name": [
                {"family": "Lindqvist", "given": ["Marta"]},
                {"use": "maiden", "family": "Dahl", "given": ["Marta"]},
            ]
        },
    )
    assert patient["name"] == [
        {"use": "official", "family": "LINDQVIST", "given": ["Marta", "Ingrid"]},
        {"use": "maiden", "family": "Dahl", "given": ["Marta"]},
    ]


def test_every_name_says_its_use() -> None:
    patient = merged({"name": [{"family": "Lindqvist", "given": ["Marta"]}]}, {"name": [{"text": "Mormor Marta"}]})
    assert [name["use"] for name in patient["name"]] == ["official", "usual"]


def test_without_a_name_it_says_that_the_name_is_not_known() -> None:
    absent = {"extension": [{"url": DATA_ABSENT_REASON, "valueCode": "masked"}]}
    patient = merged({"name": [absent]}, {"name": [{"family": " . "}]})
    assert patient["name"] == [{"extension": [{"url": DATA_ABSENT_REASON, "valueCode": "unknown"}]}]


def test_a_full_birth_date_beats_a_newer_year_and_the_majority_beats_one() -> None:
    assert merged({"birthDate": "1949-11-02"}, {"birthDate": "1949"})["birthDate"] == "1949-11-02"
    three = ({"birthDate": "1949-11-02"}, {"birthDate": "1949-11-02"}, {"birthDate": "1949-02-11"})
    assert merged(*three)["birthDate"] == "1949-11-02"


def test_a_known_gender_beats_unknown() -> None:
    assert merged({"gender": "female"}, {"gender": "unknown"})["gender"] == "female"
    assert merged({"gender": "unknown"})["gender"] == "unknown"
    assert "gender" not in merged({"gender": "F"})


def test_a_stated_death_outweighs_a_default_of_life() -> None:
    died = {"deceasedDateTime": "2025-12-24"}
    assert merged(died, {"deceasedBoolean": False})["deceasedDateTime"] == "2025-12-24"
    assert merged({"deceasedBoolean": True}, {"deceasedBoolean": False})["deceasedBoolean"] is True
    assert "deceasedBoolean" not in merged({})


def test_the_order_of_a_multiple_birth_is_kept() -> None:
    patient = merged({"multipleBirthInteger": 2}, {"multipleBirthBoolean": True})
    assert patient["multipleBirthInteger"] == 2
    assert "multipleBirthBoolean" not in patient


def test_telecoms_and_addresses_are_each_shown_once_newest_first_and_past_ones_last() -> None:
    old = {"use": "old", "line": ["1 Elm St"], "city": "Salem"}
    patient = merged(
        {
            "telecom": [{"system": "phone", "value": "(617) 555-0107"}],
            "address": [{"line": ["4 Quay Rd."], "city": "Boston"}],
        },
        {
            "telecom": [{"system": "phone", "value": "+1 617 555 0107"}],
            "address": [{"line": ["4 quay rd"], "city": "BOSTON"}],
        },
        {"telecom": [{"system": "email", "value": "m@mail.example"}], "address": [old, {"city": "Lowell"}]},
    )
    assert [t["value"] for t in patient["telecom"]] == ["m@mail.example", "+1 617 555 0107"]
    assert [a["city"] for a in patient["address"]] == ["Lowell", "BOSTON", "Salem"]


def test_notes_contacts_and_unknown_extensions_stay_with_their_member() -> None:
    secret = "only Lakeside may know"
    body = marta(
        contact=[{"name": {"text": secret}}],
        text={"status": "additional", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{secret}</div>'},
        extension=[
            {"url": "urn:x-note", "valueString": secret},
            {"url": MOTHERS_MAIDEN_NAME, "valueString": "Dahl"},
        ],
        generalPractitioner=[{"display": secret}],
        managingOrganization={"display": secret},
        maritalStatus={"text": secret},
        contained=[{"resourceType": "Organization", "id": "o", "name": secret}],
        link=[{"type": "seealso", "other": {"display": secret}}],
        identifier=[{"system": SSN, "value": "219-09-9999", "assigner": {"display": secret}}],
        telecom=[{"system": "phone", "value": "617-555-0107", "extension": [{"url": "urn:n", "valueString": secret}]}],
        name=[{"family": "Lindqvist", "extension": [{"url": "urn:n", "valueString": secret}]}],
        communication=[{"language": {"text": "Swedish"}, "extension": [{"url": "urn:n", "valueString": secret}]}],
    )
    patient = merged(body)
    assert secret not in str(patient)
    assert patient["extension"] == [{"url": MOTHERS_MAIDEN_NAME, "valueString": "Dahl"}]
    assert patient["communication"] == [{"language": {"text": "Swedish"}}]


@pytest.mark.parametrize(
    ("element", "bad"),
    [
        ("name", {"use": "NICK", "family": "Lindqvist"}),
        ("telecom", {"system": "carrier-pigeon", "value": "617-555-0107"}),
        ("address", {"use": "castle", "city": "Boston"}),
    ],
)
def test_codes_outside_their_value_set_do_not_leave(element: str, bad: Resource) -> None:
    kept = merged({element: [bad]})[element][0]
    assert set(bad.values()) & {"NICK", "carrier-pigeon", "castle"}
    assert not set(kept.values()) & {"NICK", "carrier-pigeon", "castle"}


def test_nulls_that_only_extensions_explain_do_not_leave() -> None:
    name = {
        "family": "Lindqvist",
        "given": [None, "Marta"],
        "_given": [{"extension": [{"url": "urn:x", "valueCode": "u"}]}, None],
    }
    assert merged({"name": [name]})["name"][0]["given"] == ["Marta"]


def test_the_order_in_which_records_are_read_does_not_matter() -> None:
    bodies = (marta(), marta(gender="other", birthDate="1949"), marta(name=[{"family": "Dahl", "given": ["Marta"]}]))
    records = [
        SourceRecord(f"r{n}", "m", Identifier(f"urn:oid:2.999.{n}", "1"), "p", 1, True, body, START)
        for n, body in enumerate(bodies)
    ]
    assert golden(records) == golden(records[::-1])


def test_a_merged_id_is_shown_inactive_with_its_survivor() -> None:
    survivor = {"id": "new", **merged(marta())}
    shown = replaced(survivor, "old")
    assert (shown["id"], shown["active"]) == ("old", False)
    assert shown["link"] == [{"other": {"reference": "Patient/new"}, "type": "replaced-by"}]
    assert survivor["active"] is True
