"""Members tell whom they treat, over HTTP: what it explains from when until when, what is refused and what not kept."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any, cast
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from werkzeug.test import TestResponse

from hie.audit.event import Kind
from hie.audit.relations import Contact, Relation, explain
from hie.core.database import Database
from hie.gateway.community import ExchangeCommunity
from hie.gateway.services import Services
from hie.gateway.tables_care import care_relations
from hie.mpi.model import Model
from hie.mpi.people import By
from tests.gateway.test_identity_api import (
    HARBOR,
    HARBOR_TOKEN,
    LAKESIDE,
    LAKESIDE_TOKEN,
    Audit,
    Exchange,
    issue,
    make_exchange,
    marta,
    model,
    otto,
    person_id,
)

__all__ = ["model"]
VISITS = "urn:lakeside:visits"
NPI = "http://hl7.org/fhir/sid/us-npi"
ROSA = {"identifier": {"system": NPI, "value": "1234567893"}}
START, DAY_AFTER = datetime(2026, 3, 1, 10, tzinfo=UTC), datetime(2026, 3, 4, tzinfo=UTC)
END = DAY_AFTER - timedelta(microseconds=1)
"""Of the third of March."""


@dataclass
class Hospital:
    """Lakeside, whose patient l-1 is Marta, as a caller of the exchange under test."""

    exchange: Exchange
    database: Database
    marta: str
    """Her person id."""

    @property
    def services(self) -> Services:
        return cast(Services, self.exchange.app.extensions["hie"])

    def put(self, resource: dict[str, Any], number: str = "v-1", **options: Any) -> TestResponse:
        identified = {"identifier": [{"system": VISITS, "value": number}], **resource}
        address = options.pop("address", f"{VISITS}|{number}")
        path = f"/fhir/{resource['resourceType']}?identifier={quote(address, safe='|')}"
        return self.exchange.call("PUT", path, options.pop("raw", identified), **options)

    def delete(self, kind: str = "Encounter", number: str = "v-1", **options: Any) -> TestResponse:
        return self.exchange.call("DELETE", f"/fhir/{kind}?identifier={VISITS}|{number}", **options)

    def told(self, person: str | None = None, member: str = "lakeside") -> list[Contact]:
        """What explains accesses, registrations aside."""
        community = ExchangeCommunity(self.database, cast(Any, None))
        known = community.contacts([(person or self.marta, member)])
        return [c for c in known if c.relation not in (Relation.REGISTRATION, Relation.SOURCE_RECORD)]

    def rows(self) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(care_relations)))


@pytest.fixture
def audit() -> Audit:
    return Audit()


@pytest.fixture
def hospital(database: Database, model: Model, audit: Audit) -> Hospital:
    exchange = make_exchange(database, model, audit)
    known = exchange.feed("l-1", marta())
    audit.events.clear()
    return Hospital(exchange, database, person_id(known))


@pytest.fixture
def on_sqlite(sqlite_database: Database, model: Model, audit: Audit) -> Hospital:
    exchange = make_exchange(sqlite_database, model, audit)
    return Hospital(exchange, sqlite_database, person_id(exchange.feed("l-1", marta())))


def subject(value: str = "l-1", system: str = LAKESIDE) -> dict[str, Any]:
    return {"identifier": {"system": system, "value": value}}


def given(**elements: Any) -> dict[str, Any]:
    return {name: value for name, value in elements.items() if value is not None}


def encounter(code: str = "AMB", status: str = "in-progress", **more: Any) -> dict[str, Any]:
    body = {"resourceType": "Encounter", "status": status, "class": {"code": code}, "subject": subject()}
    return given(**body | {"period": {"start": "2026-03-01T11:00:00+01:00"}} | more)


def referral(status: str = "active", **more: Any) -> dict[str, Any]:
    when = {} if "occurrencePeriod" in more else {"occurrenceDateTime": "2026-03-01T10:00:00Z"}
    body = {"resourceType": "ServiceRequest", "status": status, "intent": "order", "subject": subject()}
    return given(**body | when | more)


def team(status: str = "active", **more: Any) -> dict[str, Any]:
    body = {"resourceType": "CareTeam", "status": status, "subject": subject()}
    return given(**body | {"period": {"start": "2026-03-01T10:00:00Z"}} | more)


def stamped(at: str) -> dict[str, Any]:
    return {"meta": {"lastUpdated": f"2026-03-{at}T00:00:00Z"}}


# -- what becomes of it


def test_an_encounter_is_a_contact_with_each_practitioner(hospital: Hospital, audit: Audit) -> None:
    taking_part = [
        {"individual": ROSA},
        {"individual": {"identifier": {"value": "r.ortiz@lakeside.example"}, "type": "Practitioner"}},
        {"individual": {"identifier": {"value": "sister"}, "type": "RelatedPerson"}},
        {"individual": {"identifier": {"value": "brother"}, "reference": "RelatedPerson/7"}},
        {"individual": {"reference": "Practitioner/7", "display": "Dr. Who"}},
    ]
    body = encounter(participant=taking_part, period={"start": "2026-03-01T11:00:00+01:00", "end": "2026-03-03"})
    first = hospital.put(body)
    assert (first.status_code, first.headers["ETag"], issue(first)["diagnostics"]) == (
        201,
        'W/"1"',
        "The relation was added.",
    )
    assert "Location" not in first.headers
    assert hospital.told() == [
        Contact(hospital.marta, "lakeside", Relation.ENCOUNTER, START, END, named)
        for named in (f"{NPI}|1234567893", "r.ortiz@lakeside.example")
    ]
    (event,) = audit.events
    assert (event.kind, event.action, event.person_id) == (Kind.FEED, "C", hospital.marta)
    assert event.description == "Encounter feed: created"
    assert event.query.startswith("PUT Encounter?identifier=urn")


def test_without_a_practitioner_there_is_one_contact_of_the_organization(hospital: Hospital) -> None:
    hospital.put(encounter())
    assert hospital.told() == [Contact(hospital.marta, "lakeside", Relation.ENCOUNTER, START)]
    assert hospital.told(member="harbor") == []


@pytest.mark.parametrize("code", ["IMP", "ACUTE", "NONAC", "OBSENC", "EMER", "SS"])
def test_the_class_of_a_stay_makes_an_admission(on_sqlite: Hospital, code: str) -> None:
    on_sqlite.put(encounter(code))
    assert [contact.relation for contact in on_sqlite.told()] == [Relation.ADMISSION]


@pytest.mark.parametrize(
    ("body", "explains"),
    [
        *((encounter(status=status), True) for status in ("planned", "arrived", "triaged", "onleave", "finished")),
        *((encounter(status=status), False) for status in ("cancelled", "entered-in-error", "unknown")),
        (encounter(status="planned", period=None), False),
        *((referral(status), True) for status in ("active", "on-hold", "completed")),
        *((referral(status), False) for status in ("draft", "revoked", "entered-in-error", "unknown")),
        (referral(intent="proposal"), False),
        (referral(doNotPerform=True), False),
        *((team(status), True) for status in ("active", "suspended", "inactive")),
        *((team(status), False) for status in ("proposed", "entered-in-error")),
    ],
)
def test_the_status_says_whether_it_explains(on_sqlite: Hospital, body: dict[str, Any], explains: bool) -> None:
    assert on_sqlite.put(body).status_code == 201
    assert bool(on_sqlite.told()) is explains


@pytest.mark.parametrize(
    ("body", "starts", "ends"),
    [
        (encounter(period={"start": "2026-03", "end": "2026-03-03"}), datetime(2026, 3, 1, tzinfo=UTC), END),
        (encounter(status="finished", **stamped("04")), START, DAY_AFTER),
        (encounter(status="finished", period={"start": "2026-03-01T10:00:00Z", "end": "2026-03-03"}), START, END),
        (encounter(period={"end": "2026-03-03"}), END, END),
        (encounter(status="planned"), START, START),
        (encounter(status="planned", period={"start": "2026-03-01T10:00:00Z", "end": "2026-03-03"}), START, END),
        (encounter(status="finished", **stamped("01")), START, START),
        (referral("completed", authoredOn="2026-03-04", occurrencePeriod={"end": "2026-03-03"}), DAY_AFTER, DAY_AFTER),
        (referral(), START, None),
        (referral("on-hold", occurrencePeriod={"start": "2026-03-01T10:00:00Z", "end": "2026-03-03"}), START, None),
        (referral("completed", occurrencePeriod={"start": "2026-03-01T10:00:00Z", "end": "2026-03-03"}), START, END),
        (referral("completed", **stamped("04")), START, DAY_AFTER),
        (referral(occurrenceDateTime=None, authoredOn="2026-03-01T10:00:00Z"), START, None),
        (team(), START, None),
        (team(period={"start": "2026-03-01T10:00:00Z", "end": "2026-03-03"}), START, END),
        (team("inactive", period={"start": "2026-03-01T10:00:00Z", "end": "2026-03-03"}), START, END),
    ],
)
def test_from_when_until_when(
    on_sqlite: Hospital, body: dict[str, Any], starts: datetime, ends: datetime | None
) -> None:
    assert on_sqlite.put(body).status_code == 201
    (contact,) = on_sqlite.told()
    assert (contact.starts, contact.ends) == (starts, ends)


def test_what_a_message_leaves_open_is_the_time_of_receipt_and_stays(hospital: Hospital) -> None:
    before = datetime.now(UTC)
    for body in (encounter(period=None), team("inactive", period=None), referral("completed")):
        assert hospital.put(body).status_code == 201
        held = hospital.rows()
        again = hospital.put(body)
        assert (again.status_code, issue(again)["diagnostics"]) == (200, "The exchange holds these data already.")
        assert hospital.rows() == held
    by_relation = {contact.relation: contact for contact in hospital.told()}
    visit = by_relation[Relation.ENCOUNTER]
    assert visit.starts is not None
    assert visit.starts >= before  # no access of the past is explained by what does not say when
    assert visit.ends is None
    for over in (by_relation[Relation.PANEL], by_relation[Relation.REFERRAL]):
        assert over.ends is not None
        assert over.ends >= before


def test_referrals_and_panels_name_practitioners(hospital: Hospital) -> None:
    hospital.put(referral(requester=ROSA, performer=[{"identifier": {"value": "jonas"}}, {"display": "Radiology"}]))
    hospital.put(team(participant=[{"member": ROSA}, {"member": {"identifier": {"value": "o"}, "type": "CareTeam"}}]))
    found = {(contact.relation, contact.user_id) for contact in hospital.told()}
    npi = f"{NPI}|1234567893"
    assert found == {(Relation.REFERRAL, npi), (Relation.REFERRAL, "jonas"), (Relation.PANEL, npi)}


@pytest.mark.parametrize(
    ("named", "user_id", "personal"),
    [
        ({"system": NPI, "value": "1234567893"}, "urn:oid:2.16.840.1.113883.4.6#1234567893", True),
        ({"system": NPI, "value": "1234567893"}, f"{NPI}|1234567893", True),
        ({"system": NPI, "value": "1234567893"}, "1234567893", True),
        ({"system": NPI, "value": "1234567893"}, "urn:oid:2.999.7#1234567893", False),
        ({"system": "urn:oid:2.999.7", "value": "s-7"}, "urn:oid:2.999.7#s-7", True),
        ({"value": "R.Ortiz@lakeside.example"}, "r.ortiz@lakeside.example", True),
        ({"value": "1234567893"}, "1234567894", False),
        ({"value": "u" * 255}, "u" * 128, True),  # as wide as the log's column
    ],
)
def test_a_practitioner_is_the_user_however_the_log_spells_her(
    on_sqlite: Hospital, named: dict[str, str], user_id: str, personal: bool
) -> None:
    on_sqlite.put(encounter(participant=[{"individual": {"identifier": named}}]))
    found = explain(START + timedelta(hours=1), user_id, on_sqlite.told(), contact_days=30, registration_days=14)
    assert found is not None
    assert (found.relation, found.personal, found.strong) == (Relation.ENCOUNTER, personal, True)


# -- who the patient is


def test_a_patient_by_person_id(hospital: Hospital) -> None:
    for address in (f"Patient/{hospital.marta}", f"https://hie.example/fhir/Patient/{hospital.marta}"):
        assert hospital.put(encounter(subject={"reference": address}), address).status_code == 201
    assert len(hospital.told()) == 2
    own = {"reference": "Patient/on-my-own-server", **subject()}
    assert hospital.put(encounter(subject=own), "v-3").status_code == 201  # the identifier decides


def test_a_patient_whom_the_member_does_not_feed_is_the_same_whoever_knows_her(
    hospital: Hospital, audit: Audit
) -> None:
    others = person_id(hospital.exchange.feed("h-9", otto(), HARBOR))
    hospital.exchange.feed("l-2", otto(birthDate="1950-05-05"))
    gone = person_id(hospital.exchange.feed("l-2", otto(birthDate="1950-05-05")))
    hospital.exchange.call("DELETE", f"/fhir/Patient?identifier={LAKESIDE}|l-2")
    audit.events.clear()
    subjects: list[dict[str, Any] | None] = [
        subject("nobody"),
        subject("l-2"),
        subject("h-9", HARBOR),
        subject("h-9"),
        {"reference": f"Patient/{others}"},
        {"reference": f"Patient/{gone}"},
        {"reference": "Patient/nobody"},
        {"reference": f"https://elsewhere.example/fhir/Patient/{hospital.marta}"},
        {"reference": f"Group/{hospital.marta}"},
        {"reference": "#p", "identifier": {"value": "l-1"}},
        {"display": "Marta"},
        {},
        None,
    ]
    answers = []
    for number, named in enumerate(subjects):
        answers.append(hospital.put(encounter(subject=named), f"v-{number}"))
    assert {answer.status_code for answer in answers} == {422}
    (said,) = {answer.get_data() for answer in answers}
    assert b"Name the patient in subject.identifier by your own patient id" in said
    assert hospital.rows() == []
    assert audit.events == []


def test_an_id_that_was_merged_away_stands_for_its_survivor(hospital: Hospital) -> None:
    hospital.exchange.feed("l-0", marta(telecom=[]))
    link = {"type": "replaced-by", "other": subject("l-1")}
    assert hospital.exchange.feed("l-0", marta(active=False, link=[link])).status_code == 200
    assert hospital.put(encounter(subject=subject("l-0"))).status_code == 201
    assert len(hospital.told()) == 1


def test_the_relation_follows_the_record_through_links_and_unlinks(hospital: Hospital) -> None:
    other = person_id(hospital.exchange.feed("h-1", marta(), HARBOR))
    assert other == hospital.marta
    hospital.put(encounter())
    stewardship, by = hospital.services.stewardship, By("User/steward@exchange.example", "not the same")
    (record,) = (
        r
        for r in hospital.services.identity.person(other).records
        if r.member_id == "lakeside"  # type: ignore[union-attr]
    )
    event = stewardship.split(other, [record.id], by)
    moved = hospital.services.identity.source_record(record.identifier)
    assert moved is not None
    assert moved.person_id != other
    assert [c.person_id for c in hospital.told(moved.person_id)] == [moved.person_id]
    assert hospital.told(other) == []
    stewardship.undo(event.id, by)
    assert [c.person_id for c in hospital.told(other)] == [other]
    assert [c.person_id for c in hospital.told(moved.person_id)] == [moved.person_id]  # an id that stands for her now


# -- again, older, and taken back


def test_the_same_again_changes_nothing(hospital: Hospital, audit: Audit) -> None:
    body = encounter(participant=[{"individual": ROSA}], **stamped("02"))
    hospital.put(body)
    held = hospital.rows()
    again = hospital.put({**body, "reasonCode": [{"text": "told in more words"}]})
    assert (again.status_code, again.headers["ETag"]) == (200, 'W/"1"')
    assert issue(again)["diagnostics"] == "The exchange holds these data already."
    assert hospital.rows() == held
    assert [event.description for event in audit.events] == ["Encounter feed: created", "Encounter feed: unchanged"]


def test_a_revision_counts_and_an_older_message_does_not(hospital: Hospital, audit: Audit) -> None:
    hospital.put(encounter(**stamped("02")))
    ended = {"start": "2026-03-01T10:00:00Z", "end": "2026-03-03"}
    newer = hospital.put(encounter("IMP", "finished", period=ended, **stamped("05")))
    assert (newer.status_code, newer.headers["ETag"]) == (200, 'W/"2"')
    assert issue(newer)["diagnostics"] == "The relation was updated."
    older = hospital.put(encounter(**stamped("04")))
    assert older.status_code == 200
    assert "holds newer data of this relation" in issue(older)["diagnostics"]
    assert hospital.told() == [Contact(hospital.marta, "lakeside", Relation.ADMISSION, START, END)]
    assert [e.description.split()[-1] for e in audit.events] == ["created", "updated", "unchanged"]


def test_a_cancelled_encounter_does_not_come_back_by_an_older_message(hospital: Hospital) -> None:
    hospital.put(encounter(**stamped("02")))
    assert hospital.put(encounter(status="cancelled", **stamped("05"))).status_code == 200
    for older in (encounter(**stamped("02")), encounter()):
        answer = hospital.put(older)
        assert "stamp meta.lastUpdated" in issue(answer)["diagnostics"]
        assert hospital.told() == []
    hospital.put(encounter(**stamped("06")))
    assert len(hospital.told()) == 1


def test_a_draft_becomes_an_order_without_a_stamp(hospital: Hospital) -> None:
    assert hospital.put(referral("draft")).status_code == 201
    assert hospital.told() == []
    assert hospital.put(referral()).status_code == 200
    assert [contact.relation for contact in hospital.told()] == [Relation.REFERRAL]


def test_a_clock_at_its_beginning_shuts_out_nothing(hospital: Hospital) -> None:
    ancient = {"meta": {"lastUpdated": "0001-01-01T00:00:00Z"}}
    assert hospital.put(encounter(**ancient)).status_code == 201
    assert hospital.put(encounter(**ancient)).status_code == 200
    assert hospital.put(encounter("IMP", **stamped("02"))).headers["ETag"] == 'W/"2"'


def test_a_clock_far_ahead_does_not_shut_out_what_comes_later(hospital: Hospital) -> None:
    hospital.put(encounter(meta={"lastUpdated": "2999-01-01T00:00:00Z"}))
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    hospital.put(encounter("IMP", meta={"lastUpdated": tomorrow}))
    assert [contact.relation for contact in hospital.told()] == [Relation.ADMISSION]


def test_delete_ends_it_and_is_never_an_error(hospital: Hospital, audit: Audit) -> None:
    hospital.put(encounter(**stamped("02")))
    assert [hospital.delete().status_code for _ in range(2)] == [204, 204]
    assert hospital.told() == []
    described = [(event.action, event.description, event.person_id) for event in audit.events[1:]]
    assert described == [
        ("D", "Encounter feed: deleted", hospital.marta),
        ("D", "Encounter feed: nothing to delete", None),
    ]
    assert "holds newer data" in issue(hospital.put(encounter(**stamped("01"))))["diagnostics"]
    assert hospital.told() == []
    assert hospital.put(encounter(**stamped("03"))).status_code == 201
    assert len(hospital.told()) == 1


def test_each_member_and_each_type_has_identifiers_of_its_own(hospital: Hospital) -> None:
    hospital.exchange.feed("h-1", marta(), HARBOR)
    hospital.put(encounter())
    for body, token in ((encounter("IMP", subject=subject("h-1", HARBOR)), HARBOR_TOKEN), (team(), LAKESIDE_TOKEN)):
        assert hospital.put(body, token=token).status_code == 201
    assert hospital.delete("CareTeam").status_code == 204
    assert hospital.delete(token=HARBOR_TOKEN).status_code == 204
    assert [contact.relation for contact in hospital.told()] == [Relation.ENCOUNTER]
    assert hospital.told(member="harbor") == []


def test_if_match_names_the_version(hospital: Hospital) -> None:
    assert hospital.put(encounter(), If_Match='W/"1"').status_code == 412
    hospital.put(encounter())
    assert hospital.put(encounter("IMP"), If_Match='W/"1"').headers["ETag"] == 'W/"2"'
    assert hospital.put(encounter(), If_Match='W/"1"').status_code == 412


def test_twenty_at_once_make_one(hospital: Hospital) -> None:
    barrier = Barrier(20)

    def put(_: int) -> int:
        client = Exchange(hospital.exchange.app.test_client(), hospital.exchange.audit, hospital.exchange.app)
        barrier.wait()
        return Hospital(client, hospital.database, hospital.marta).put(encounter()).status_code

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(put, range(20)))
    assert (answers.count(201), answers.count(200)) == (1, 19)
    assert len(hospital.rows()) == 1


def test_nothing_is_kept_where_the_log_is_shut(hospital: Hospital, audit: Audit) -> None:
    audit.broken = True
    assert hospital.put(encounter()).status_code == 503
    audit.broken = False
    assert hospital.rows() == []


def test_nothing_clinical_is_kept(hospital: Hospital) -> None:
    secret = {"coding": [{"system": "http://snomed.info/sct", "code": "SECRET-86406008"}], "text": "SECRET HIV visit"}
    hidden = {"text": {"status": "generated", "div": "<div xmlns='http://www.w3.org/1999/xhtml'>SECRET</div>"}}
    place = [{"location": {"display": "SECRET ward"}}]
    hospital.put(encounter(type=[secret], reasonCode=[secret], serviceType=secret, location=place, **hidden))
    hospital.put(referral(code=secret, reasonCode=[secret], note=[{"text": "SECRET"}], **hidden))
    hospital.put(team(name="SECRET team", category=[secret], reasonCode=[secret], note=[{"text": "SECRET"}], **hidden))
    assert len(hospital.told()) == 3
    assert "SECRET" not in repr(hospital.rows())
    with hospital.database.read() as connection:
        tables = sa.inspect(connection).get_table_names()
        everything = repr([list(connection.execute(sa.text(f'SELECT * FROM "{table}"'))) for table in tables])
    assert "v-1" in everything
    assert "SECRET" not in everything


# -- who may, and what is refused


@pytest.mark.parametrize(
    ("token", "method", "status"),
    [
        ("Bearer lakeside member system/Encounter.cud", "PUT", 201),
        ("Bearer lakeside payer system/Encounter.cu", "PUT", 201),
        ("Bearer lakeside member system/Encounter.u", "PUT", 403),
        ("Bearer lakeside member system/Encounter.rs", "PUT", 403),
        ("Bearer lakeside member system/Patient.cruds", "PUT", 403),
        ("Bearer lakeside clinician system/*.cruds", "PUT", 403),
        ("Bearer exchange privacy-officer system/*.cruds", "PUT", 403),
        ("Bearer exchange member system/*.cruds", "PUT", 403),
        ("Bearer", "PUT", 401),
        ("Bearer lakeside member system/Encounter.d", "DELETE", 204),
        ("Bearer lakeside member system/Encounter.cu", "DELETE", 403),
    ],
)
def test_role_and_scope(on_sqlite: Hospital, token: str, method: str, status: int) -> None:
    answer = on_sqlite.put(encounter(), token=token) if method == "PUT" else on_sqlite.delete(token=token)
    assert answer.status_code == status
    assert len(on_sqlite.rows()) == (status == 201)


def test_a_refusal_of_who_is_in_the_log(on_sqlite: Hospital, audit: Audit) -> None:
    audit.events.clear()
    on_sqlite.put(encounter(), token="Bearer lakeside member system/Encounter.rs")
    assert [event.kind for event in audit.events] == [Kind.DENIAL]


def test_an_update_needs_its_scope(on_sqlite: Hospital) -> None:
    creating = "Bearer lakeside member system/Encounter.c"
    assert on_sqlite.put(encounter(), token=creating).status_code == 201
    assert on_sqlite.put(encounter("IMP"), token=creating).status_code == 403
    assert [contact.relation for contact in on_sqlite.told()] == [Relation.ENCOUNTER]


def identified(**more: Any) -> dict[str, Any]:
    return {"identifier": [{"system": VISITS, "value": "v-1"}], **encounter(**more)}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"status": "here"}, 422),
        ({"status": None}, 422),
        ({"class": "IMP"}, 422),
        ({"class": {"code": 7}}, 422),
        ({"period": {"start": "2026-03-02", "end": "2026-03-01"}}, 422),
        ({"period": {"start": "2026-02-30"}}, 422),
        ({"period": {"start": "2026-03-01T10:00:00"}}, 422),
        ({"period": {"start": "0001-01-01"}}, 422),
        ({"period": {"end": "9999-12-31T23:59:59-14:00"}}, 422),
        ({"period": {"end": "9999"}}, 422),
        ({"period": [{"start": "2026"}]}, 422),
        ({"participant": [{"individual": {"identifier": {"value": "x" * 256}}}]}, 422),
        ({"participant": [{"individual": {"identifier": {"value": str(n)}}} for n in range(101)]}, 422),
        ({"participant": [{"individual": {"identifier": "x"}}]}, 422),
        ({"subject": [subject()]}, 422),
        ({"subject": {"identifier": {"system": LAKESIDE, "value": 1}}}, 422),
        ({"identifier": [{"system": VISITS, "value": "another"}]}, 422),
        ({"identifier": {"system": VISITS, "value": "v-1"}}, 422),
        ({"identifier": []}, 422),
        ({"modifierExtension": [{"url": "urn:not", "valueBoolean": True}]}, 422),
        ({"resourceType": "CareTeam"}, 400),
        ({"resourceType": ["Encounter"]}, 400),
        ({"subject": {"identifier": {"system": LAKESIDE, "value": "l-1\x00"}}}, 400),
        ({"subject": {"identifier": {"system": LAKESIDE, "value": "\ud800"}}}, 400),
    ],
)
def test_a_body_that_is_not_so_is_refused(on_sqlite: Hospital, changes: dict[str, Any], status: int) -> None:
    answer = on_sqlite.put(encounter(), raw=json.dumps(given(**identified() | changes)))
    assert answer.status_code == status
    assert issue(answer)["diagnostics"]
    assert on_sqlite.rows() == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (referral(intent="wish"), "ServiceRequest.intent"),
        (referral(doNotPerform="true"), "ServiceRequest.doNotPerform"),
        (referral(occurrencePeriod={"start": "2026-03-02", "end": "2026-03-01"}), "ends before it starts"),
        (referral(occurrenceDateTime="1066-10-14"), "dates of the calendar from 1900"),
        (given(**team() | {"status": None}), "CareTeam.status is required"),
    ],
)
def test_referrals_and_panels_that_are_not_so(on_sqlite: Hospital, body: dict[str, Any], said: str) -> None:
    answer = on_sqlite.put(body)
    assert answer.status_code == 422
    assert said in issue(answer)["diagnostics"]


def test_nesting_without_end(on_sqlite: Hospital) -> None:
    body = json.dumps(identified())[:-1] + ', "extension": ' + '[{"extension": ' * 5000 + "[]" + "}]" * 5000 + "}"
    assert on_sqlite.put(encounter(), raw=body).status_code == 400


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        (f"identifier={VISITS}|v-1&identifier={VISITS}|v-2", 400),
        (f"identifier={VISITS}|v-1,{VISITS}|v-2", 400),
        (f"identifier={VISITS}|v-1&patient=x", 400),
        (f"identifier={VISITS}|v%00", 400),
        (f"identifier={VISITS}|", 422),
        ("identifier=v-1", 422),
        (f"identifier={VISITS}|{'v' * 300}", 422),
        (f"identifier={HARBOR}|v-1", 403),
    ],
)
def test_an_address_that_is_not_so_is_refused(on_sqlite: Hospital, query: str, status: int) -> None:
    body = identified()
    body["identifier"] += [{"system": VISITS, "value": "v" * 300}, {"system": HARBOR, "value": "v-1"}]
    answer = on_sqlite.exchange.call("PUT", f"/fhir/Encounter?{query}", body)
    assert answer.status_code == status
    assert issue(answer)["diagnostics"].endswith(".")
    assert on_sqlite.rows() == []


def test_the_own_patient_numbers_may_number_encounters_too(on_sqlite: Hospital) -> None:
    body = encounter(identifier=[{"system": LAKESIDE, "value": "v-1"}])
    assert on_sqlite.put(body, address=f"{LAKESIDE}|v-1").status_code == 201


def test_xml_in_and_out(on_sqlite: Hospital) -> None:
    xml = f"""<Encounter xmlns="http://hl7.org/fhir"><identifier><system value="{VISITS}"/><value value="v-1"/>
      </identifier><status value="in-progress"/><class><code value="IMP"/></class><subject><identifier>
      <system value="{LAKESIDE}"/><value value="l-1"/></identifier></subject></Encounter>"""
    answer = on_sqlite.put(encounter(), raw=xml, Content_Type="application/fhir+xml", Accept="application/fhir+xml")
    assert (answer.status_code, answer.mimetype) == (201, "application/fhir+xml")
    assert on_sqlite.put(encounter("IMP", period={}), Prefer="return=minimal").get_data() == b""
    assert [contact.relation for contact in on_sqlite.told()] == [Relation.ADMISSION]
