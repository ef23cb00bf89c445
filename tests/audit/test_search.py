"""Finding entries: ITI-81 parameters, filters, and pages that stay put while the log grows."""

from datetime import UTC, datetime

import pytest

from hie.audit.event import Kind, Outcome, SourceOutcome
from hie.audit.iti81 import PARAMETERS, page_token, parse, span
from hie.audit.query import AuditQuery, Cursor
from hie.core.errors import BadRequest
from tests.audit.samples import BASE, caller, disclosure, event

MERGED = {"person-1": ("person-1", "person-old")}


def asked(*parameters):
    return parse(
        parameters,
        BASE,
        lambda person_id: MERGED.get(person_id, (person_id,)),
        lambda system, value: "person-1" if (system, value) == ("urn:oid:2.999.1.1", "m-1") else None,
    )


@pytest.fixture
def diary(log, clock):
    """One entry a minute, of which the tests find some by name."""
    payer = caller(
        organization="payer",
        client_id="payer-app",
        purposes=frozenset({"HPAYMT"}),
        session="token-2",
        subject_name=None,
        subject_id=None,
        subject_role=None,
    )
    glass = caller(purposes=frozenset({"TREAT", "BTG"}), break_glass_reason="unconscious patient")
    named = {
        "allergies": disclosure("person-1"),
        "before the merge": disclosure("person-old", request_id="request-2"),
        "payer": disclosure("person-2", caller=payer, released=()),
        "denied": event(Kind.DENIAL, "R", outcome=Outcome.SERIOUS, person_id="person-2", caller=payer),
        "glass": disclosure("person-3", caller=glass),
        "late": disclosure("person-3", outcome=Outcome.MINOR, sources=(SourceOutcome("harbor", "timeout", 0),)),
        "consent": event(
            Kind.CONSENT, "C", person_id="person-1", query="POST /fhir/Consent", entities=("Consent/c-1/_history/1",)
        ),
        "sign-in": event(Kind.SIGN_IN, "E", caller=None, person_id=None, client_id="stranger", outcome=Outcome.MINOR),
    }
    names = []
    for name, entry in named.items():
        log.record(entry)
        names.append(name)
        clock.forward(minutes=1)

    def find(*parameters):
        page = log.search(asked(*parameters).query)
        assert page.total == len(page.entries)
        return [names[entry.index] for entry in page.entries]

    return find


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ([("patient", "Patient/person-1")], ["consent", "before the merge", "allergies"]),
        ([("patient", "person-1")], ["consent", "before the merge", "allergies"]),
        ([("patient", f"{BASE}/Patient/person-2")], ["denied", "payer"]),
        ([("patient", "person-2,person-3")], ["late", "glass", "denied", "payer"]),
        ([("patient", "person-2"), ("patient", "person-3")], []),
        ([("patient.identifier", "urn:oid:2.999.1.1|m-1")], ["consent", "before the merge", "allergies"]),
        ([("patient.identifier", "urn:oid:2.999.1.1|nobody")], []),
        ([("agent", "Organization/payer")], ["denied", "payer"]),
        ([("agent", "Device/payer-app")], ["denied", "payer"]),
        ([("agent", "Device/payer")], []),
        ([("agent", "stranger")], ["sign-in"]),
        ([("agent.identifier", f"{BASE}/NamingSystem/client-id|payer-app")], ["denied", "payer"]),
        ([("agent", "Practitioner/1234567893"), ("outcome", "4")], ["late"]),
        ([("type", "110113")], ["denied"]),
        ([("type", "http://dicom.nema.org/resources/ontology/DCM|110113,rest")], ["consent", "denied"]),
        ([("type", "http://other.example|110113")], []),
        ([("type", "http://terminology.hl7.org/CodeSystem/audit-event-type|")], ["consent"]),
        ([("subtype", "create")], ["consent"]),
        ([("subtype", "http://hl7.org/fhir/restful-interaction|create,AuthZ-Role"), ("action", "C")], ["consent"]),
        ([("subtype", "disclose"), ("subtype", "AuthZ-Role"), ("patient", "person-2")], ["payer"]),
        ([("outcome", "8")], ["denied"]),
        ([("outcome", "http://terminology.hl7.org/CodeSystem/audit-event-outcome|4,8")], ["sign-in", "late", "denied"]),
        ([("action", "C")], ["consent"]),
        ([("purpose", "BTG")], ["glass"]),
        ([("purpose", "http://terminology.hl7.org/CodeSystem/v3-ActReason|HPAYMT")], ["denied", "payer"]),
        ([("policy", "urn:oid:2.16.840.1.113883.5.8#BTG")], ["glass"]),
        ([("policy", "urn:ietf:params:oauth:jti:token-2")], ["denied", "payer"]),
        ([("entity", "Consent/c-1")], ["consent"]),
        ([("entity", "Consent/c-1/_history/1")], ["consent"]),
        ([("entity", "c-1")], ["consent"]),
        ([("entity", "Condition/c-1")], []),
        ([("entity", "Patient/person-2")], ["denied", "payer"]),
        ([("entity", "Organization/harbor")], ["late"]),
        ([("entity.identifier", "request-2")], ["before the merge"]),
        ([("request-id", "request-2,request-3")], ["before the merge"]),
        ([("date", "lt2026-03-01T08:02:00Z")], ["before the merge", "allergies"]),
        ([("date", "ge2026-03-01T08:05:00Z"), ("date", "lt2026-03-01T08:07:00Z")], ["consent", "late"]),
        ([("date", "2026-03-01T08:03")], ["denied"]),
        ([("_lastUpdated", "2026-03-01T09:03:00.25+01:00")], ["denied"]),
        ([("date", "gt2026-03-01")], []),
    ],
)
def test_parameters_find_their_entries_newest_first(diary, parameters, found):
    assert diary(*parameters) == found


def test_an_unknown_parameter_is_ignored_and_not_honoured(diary):
    assert asked(("patient", "person-2"), ("nonsense", "1"), ("type:not", "rest"), ("agent", "")).honoured == (
        ("patient", "person-2"),
    )
    assert len(diary(("nonsense", "1"))) == 8


def test_an_entry_is_found_by_its_id(log):
    (first, _second) = log.record(disclosure(), disclosure())
    assert [e.index for e in log.search(asked(("_id", first.entry_id)).query).entries] == [0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("date", "yesterday"),
        ("date", "2024-02-30"),
        ("date", "ne2024"),
        ("date", "9999"),
        ("date", "2024-01-01T25:00Z"),
        ("_count", "-1"),
        ("_count", "many"),
        ("_page", "1"),
        ("_page", "../1"),
        ("patient.identifier", "m-1"),
        ("patient", "person\x00"),
    ],
)
def test_a_value_without_meaning_is_refused_by_name(name, value):
    with pytest.raises(BadRequest, match=name):
        asked((name, value))


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2026", datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        ("2026-12", datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        ("eq2024-02-29", datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)),
        ("ge2026-03-01T08:00 01:00", datetime(2026, 3, 1, 7, tzinfo=UTC), None),
        ("le2026-03", None, datetime(2026, 4, 1, tzinfo=UTC)),
        ("lt2026-03", None, datetime(2026, 3, 1, tzinfo=UTC)),
        ("gt2026-03-01T08:00:00Z", datetime(2026, 3, 1, 8, 0, 1, tzinfo=UTC), None),
        (
            "2026-03-01T08:00:00.5Z",
            datetime(2026, 3, 1, 8, 0, 0, 500_000, tzinfo=UTC),
            datetime(2026, 3, 1, 8, 0, 0, 600_000, tzinfo=UTC),
        ),
    ],
)
def test_dates_mean_ranges_of_their_precision(text, start, end):
    found = span(text)
    assert (found.start, found.end) == (start, end)


def test_only_a_search_about_one_person_names_the_person():
    assert asked(("patient", "person-1")).person_id == "person-1"
    assert asked(("patient", "person-1,person-2")).person_id is None
    assert asked(("outcome", "8")).person_id is None


@pytest.mark.parametrize("query", [AuditQuery(limit=7), AuditQuery(persons=(("p0", "p1"),), limit=7)])
def test_pages_neither_repeat_nor_skip_while_the_log_grows(log, query):
    log.record(*(disclosure(f"p{number % 2}") for number in range(25)))
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = log.search(AuditQuery(persons=query.persons, limit=query.limit, cursor=cursor))
        assert page.total == 25
        seen += [entry.index for entry in page.entries]
        cursor, pages = page.next, pages + 1
        log.record(disclosure("p0"))  # every look at the log is an entry
    assert seen == list(range(24, -1, -1))
    assert pages == 4


def test_a_page_token_comes_back_as_it_left():
    assert asked(("_page", page_token(Cursor(24, 17)))).query.cursor == Cursor(24, 17)


def test_a_made_up_page_token_shows_nothing_that_is_not_there(log):
    log.record(disclosure(), disclosure())
    page = log.search(AuditQuery(cursor=Cursor(999, 999)))
    assert (page.total, len(page.entries)) == (2, 2)
    assert log.search(AuditQuery(cursor=Cursor(0, 0))).entries == ()


def test_an_empty_log_and_a_mere_count(log):
    assert log.search(AuditQuery()).total == 0
    log.record(disclosure(), disclosure())
    page = log.search(asked(("_count", "0")).query)
    assert (page.total, page.entries, page.next) == (2, (), None)


def test_the_count_has_a_limit():
    assert asked(("_count", "999999")).query.limit == 500
    assert asked().query.limit == 50
    assert set(PARAMETERS) >= {"date", "patient", "agent", "type", "subtype", "outcome", "policy", "entity", "action"}
