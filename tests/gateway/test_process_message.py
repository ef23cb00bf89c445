"""Notifications of admission, discharge and transfer, shaped as the examples of the Da Vinci guide."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from werkzeug.test import TestResponse

from hie.audit.event import Kind
from hie.audit.relations import Contact, Relation
from tests.gateway.test_care_api import DAY_AFTER, NPI, START, VISITS, Hospital, audit, hospital, model, on_sqlite
from tests.gateway.test_identity_api import HARBOR, LAKESIDE, Audit, issue

__all__ = ["audit", "hospital", "model", "on_sqlite"]
EVENTS = "http://hl7.org/fhir/us/davinci-alerts/CodeSystem/notification-event"
HEADER, VISIT, PATIENT, DOCTOR, ROLE = (f"urn:uuid:5fe62cd5-bfcf-4d3b-a1e9-80d6f75d6f8{n}" for n in range(5))


def message(event: str = "notification-admit", **changes: Any) -> dict[str, Any]:
    """`changes` of the entries, by the name of each; None takes an entry away."""
    entries: dict[str, dict[str, Any] | None] = {
        "header": {
            "resourceType": "MessageHeader",
            "eventCoding": {"system": EVENTS, "code": event},
            "focus": [{"reference": VISIT}],
            "source": {"endpoint": "https://lakeside.example/notify"},
        },
        "encounter": {
            "resourceType": "Encounter",
            "identifier": [{"system": VISITS, "value": "v-1"}],
            "status": "in-progress",
            "class": {"code": "IMP"},
            "subject": {"reference": PATIENT},
            "participant": [{"individual": {"reference": DOCTOR}}],
            "period": {"start": "2026-03-01T10:00:00Z"},
            "reasonCode": [{"text": "SECRET"}],
        },
        "patient": {
            "resourceType": "Patient",
            "identifier": [{"system": "urn:other", "value": "9"}, {"system": LAKESIDE, "value": "l-1"}],
            "name": [{"family": "Whoever"}],
        },
        "doctor": {"resourceType": "Practitioner", "identifier": [{"system": NPI, "value": "1234567893"}]},
        "role": {"resourceType": "PractitionerRole", "practitioner": {"reference": DOCTOR}},
    }
    addresses = dict(zip(entries, (HEADER, VISIT, PATIENT, DOCTOR, ROLE), strict=True))
    timestamp = changes.pop("timestamp", "2026-03-01T10:05:00Z")
    for name, changed in changes.items():
        entries[name] = None if changed is None else {**(entries[name] or {}), **changed}
    listed = [{"fullUrl": addresses[name], "resource": e} for name, e in entries.items() if e is not None]
    return {"resourceType": "Bundle", "type": "message", "timestamp": timestamp, "entry": listed}


def send(hospital: Hospital, body: object, path: str = "/fhir/$process-message", **options: Any) -> TestResponse:
    return hospital.exchange.call("POST", path, body, **options)


def test_an_admission_and_its_discharge(hospital: Hospital, audit: Audit) -> None:
    admitted = send(hospital, message())
    assert (admitted.status_code, issue(admitted)["diagnostics"]) == (200, "The relation was added.")
    contact = Contact(hospital.marta, "lakeside", Relation.ADMISSION, START, None, f"{NPI}|1234567893")
    assert hospital.told() == [contact]
    ended = {"status": "finished", "period": {"start": "2026-03-01T10:00:00Z", "end": "2026-03-04T00:00:00Z"}}
    discharge = message("notification-discharge", encounter=ended, timestamp="2026-03-04T00:05:00Z")
    assert issue(send(hospital, discharge))["diagnostics"] == "The relation was updated."
    assert [contact.ends for contact in hospital.told()] == [DAY_AFTER]
    assert "holds newer data" in issue(send(hospital, message()))["diagnostics"]  # a queue that is sent again
    assert [contact.ends for contact in hospital.told()] == [DAY_AFTER]
    assert [(event.kind, event.person_id, event.description) for event in audit.events] == [
        (Kind.FEED, hospital.marta, "Encounter feed: created (notification-admit)"),
        (Kind.FEED, hospital.marta, "Encounter feed: updated (notification-discharge)"),
        (Kind.FEED, hospital.marta, "Encounter feed: unchanged (notification-admit)"),
    ]
    assert "SECRET" not in repr(hospital.rows())


def test_it_is_the_encounter_that_a_put_tells_of(hospital: Hospital) -> None:
    send(hospital, message())
    assert hospital.delete().status_code == 204
    assert hospital.told() == []


def test_the_stamp_of_the_encounter_goes_before_that_of_the_bundle(on_sqlite: Hospital) -> None:
    send(on_sqlite, message(encounter={"meta": {"lastUpdated": "2026-03-02T00:00:00Z"}}))
    assert [row.source_updated for row in on_sqlite.rows()] == [DAY_AFTER - timedelta(days=2)]


@pytest.mark.parametrize(
    "individual",
    [{"reference": ROLE}, {"reference": DOCTOR}, {"identifier": {"system": NPI, "value": "1234567893"}}],
)
def test_practitioners_by_reference_by_role_and_by_identifier(on_sqlite: Hospital, individual: dict[str, Any]) -> None:
    assert send(on_sqlite, message(encounter={"participant": [{"individual": individual}]})).status_code == 200
    assert [contact.user_id for contact in on_sqlite.told()] == [f"{NPI}|1234567893"]


def test_of_several_identifiers_the_official_one_counts(on_sqlite: Hospital) -> None:
    several = [{"system": VISITS, "value": "v-1", "use": "official"}, {"system": "urn:billing", "value": "7"}]
    assert send(on_sqlite, message(encounter={"identifier": several})).status_code == 200
    assert [(row.system, row.value) for row in on_sqlite.rows()] == [(VISITS, "v-1")]


def test_entries_may_be_named_by_type_and_id(on_sqlite: Hospital) -> None:
    body = message(
        header={"focus": [{"reference": "Encounter/e"}]},
        encounter={"id": "e", "subject": {"reference": "Patient/p"}},
        patient={"id": "p"},
    )
    assert send(on_sqlite, body).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (message("notification-birth"), 422, "MessageHeader.eventCoding must be one of notification-admit"),
        (message(header=None), 422, "first entry is its MessageHeader"),
        ({**message(), "type": "collection"}, 422, "a Bundle of type message"),
        ({"resourceType": "Bundle", "type": "message"}, 422, "a Bundle of type message"),
        (message(encounter=None), 422, "MessageHeader.focus"),
        (message(header={"focus": [{"reference": PATIENT}]}), 422, "MessageHeader.focus"),
        (message(encounter={"identifier": []}), 422, "Encounter.identifier needs one"),
        (
            message(encounter={"identifier": [{"system": "a", "value": v} for v in "ab"]}),
            422,
            "with use official",
        ),
        (message(encounter={"identifier": [{"system": HARBOR, "value": "1"}]}), 403, "another member's"),
        (message(encounter={"status": "here"}), 422, "Encounter.status"),
        (message(encounter={"class": "IMP"}), 422, "class"),
        (message(encounter={"period": {"start": "2026-03-02", "end": "2026-03-01"}}), 422, "ends before it starts"),
        (message(patient={"identifier": [{"system": LAKESIDE, "value": "nobody"}]}), 422, "Name the patient"),
        (message(patient={"identifier": [{"system": HARBOR, "value": "l-1"}]}), 422, "Name the patient"),
        (message(patient={"identifier": [{"system": LAKESIDE, "value": v} for v in ("l-1", "x")]}), 422, "Name the"),
        (message(patient={"identifier": [{"system": LAKESIDE}]}), 422, "Name the patient"),
        (message(patient=None), 422, "Name the patient"),
        (message(patient={"identifier": "l-1"}), 422, ""),
        (message(doctor={"identifier": [{"value": "a\x00"}]}), 400, "control character"),
        ({**message(), "entry": [None]}, 422, ""),
        ({**message(), "entry": [{"resource": {"resourceType": "Nothing"}}]}, 422, ""),
        ({**message(), "entry": [{"resource": 7}]}, 422, ""),
        ({**message(), "entry": [*message()["entry"], message()["entry"][1]]}, 422, "Two entries"),
        ({"resourceType": "Parameters"}, 400, "Expected a Bundle"),
    ],
)
def test_a_message_that_is_not_so_is_refused(on_sqlite: Hospital, body: object, status: int, said: str) -> None:
    answer = send(on_sqlite, json.dumps(body))
    assert (answer.status_code, said in issue(answer)["diagnostics"]) == (status, True)
    assert on_sqlite.rows() == []


def test_who_may_send_and_how(on_sqlite: Hospital) -> None:
    assert send(on_sqlite, message(), token="Bearer lakeside member system/Encounter.rs").status_code == 403
    assert send(on_sqlite, message(), token="Bearer lakeside clinician system/*.cruds").status_code == 403
    assert send(on_sqlite, message(), path="/fhir/$process-message?async=true").status_code == 400
    creating = "Bearer lakeside member system/Encounter.c"
    assert send(on_sqlite, message(), token=creating).status_code == 200
    assert send(on_sqlite, message(encounter={"class": {"code": "AMB"}}), token=creating).status_code == 403


def test_a_message_in_xml(on_sqlite: Hospital) -> None:
    xml = Bundle.model_validate(message()).model_dump_xml()
    answer = send(on_sqlite, xml, Content_Type="application/fhir+xml", Accept="application/fhir+xml")
    assert (answer.status_code, answer.mimetype) == (200, "application/fhir+xml")
    assert [contact.user_id for contact in on_sqlite.told()] == [f"{NPI}|1234567893"]
