"""Reports: what an accounting lists, leaves out, and notices about the log it is made from."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from hie.audit.accounting import Accounting, Asked, ReportKind, Subject, read_event, years_before
from hie.audit.event import Kind, Outcome, Released, SourceOutcome
from hie.audit.health import Found, LogHealth
from hie.audit.query import AuditQuery
from hie.audit.suspensions import Suspension, suspend
from hie.core.caller import EXCHANGE, Role
from hie.core.errors import BadRequest
from tests.audit.samples import START, caller, disclosure, event

MARTA = Subject("person-1", ("person-1", "person-1-before"), "Marta Lindqvist")
HEALTH_DEPARTMENT = caller(
    organization="county",
    organization_name="County Health Department",
    client_id="county-feed",
    purposes=frozenset({"PUBHLTH"}),
    subject_name=None,
    subject_id=None,
    subject_role=None,
)


@pytest.fixture
def accounting(database, clock):
    return Accounting(
        database,
        clock,
        address_of=lambda member_id: {"lakeside": "1 Lake Road, Springfield"}.get(member_id, ""),
        part2_members=lambda: frozenset({"recovery"}),
    )


def ask(accounting, kind=ReportKind.ACCOUNTING, **more):
    return accounting.report(Asked(kind, **({"subjects": (MARTA,)} | more)))


def released(*types, labels=("N",)):
    return tuple(Released(name, f"gw-{n}", "ab" * 32, labels) for n, name in enumerate(types))


def test_an_accounting_says_when_who_where_what_and_why(accounting, log, clock):
    log.record(disclosure(released=released("AllergyIntolerance", "AllergyIntolerance", "Condition")))
    clock.forward(minutes=1)
    (row,) = ask(accounting).rows
    assert row == {
        "patient": "Marta Lindqvist",
        "first_date": "2026-03-01T08:00:00.250000Z",
        "last_date": "2026-03-01T08:00:00.250000Z",
        "count": 1,
        "recipient": "Lakeside Hospital",
        "recipient_person": "Rosa Ortiz",
        "recipient_address": "1 Lake Road, Springfield",
        "what": "2 allergies and 1 condition",
        "why": "treatment",
        "required": "no: treatment, 164.528 (a)(1)(i)",
        "entries": "0",
    }


def test_repeats_are_one_line_with_first_number_and_last(accounting, log, clock):
    for _ in range(3):
        log.record(disclosure(caller=HEALTH_DEPARTMENT, released=released("Immunization")))
        clock.forward(days=30)
    log.record(disclosure(caller=HEALTH_DEPARTMENT, person_id="person-1-before", released=released("Condition")))
    clock.forward(days=1)
    (row,) = ask(accounting).rows
    assert (row["first_date"][:10], row["last_date"][:10], row["count"]) == ("2026-03-01", "2026-05-30", 4)
    assert (row["what"], row["why"]) == ("1 condition and 1 vaccination", "public health")
    assert (row["required"], row["entries"]) == ("yes", "0-3")


def test_different_purposes_people_and_reasons_are_lines_of_their_own(accounting, log, clock):
    broken = caller(purposes=frozenset({"BTG", "ETREAT", "TREAT"}), break_glass_reason="unconscious after a fall")
    log.record(
        disclosure(),
        disclosure(caller=caller(purposes=frozenset({"ETREAT", "TREAT"}))),
        disclosure(caller=caller(subject_id="n-2", subject_name="Jonas Mills")),
        disclosure(caller=broken),
    )
    clock.forward(days=1)
    report = ask(accounting)
    assert [(row["recipient_person"], row["why"]) for row in report.rows] == [
        ("Rosa Ortiz", "treatment"),
        ("Rosa Ortiz", "emergency treatment"),
        ("Jonas Mills", "treatment"),
        (
            "Rosa Ortiz",
            "an emergency, beyond the privacy choices (break-glass); the reason given: “unconscious after a fall”",
        ),
    ]
    assert any("break-glass" in note for note in report.notes)


def test_a_search_discloses_demographics_and_the_exchanges_own_staff_is_no_recipient(accounting, log, clock):
    steward = caller(organization=EXCHANGE, organization_name="The exchange", role=Role.DATA_STEWARD)
    log.record(event(Kind.SEARCH, "E"), event(Kind.SEARCH, "E", caller=steward))
    log.record(event(Kind.SEARCH, "E", outcome=Outcome.MINOR), event(Kind.FEED, "C"), event(Kind.DENIAL, "R"))
    clock.forward(days=1)
    (row,) = ask(accounting).rows
    assert row["what"] == "name, birth date, sex, address, telephone and patient numbers"


def test_six_years_count_back_from_today(accounting, log, clock):
    log.record(disclosure())
    clock.now = datetime(2032, 3, 1, 8, 0, tzinfo=UTC)
    assert len(ask(accounting).rows) == 1
    clock.now = datetime(2032, 3, 2, 8, 0, tzinfo=UTC)
    assert ask(accounting).rows == ()
    assert len(ask(accounting, start=START).rows) == 1
    assert years_before(datetime(2028, 2, 29, tzinfo=UTC), 3) == datetime(2025, 3, 1, tzinfo=UTC)


def test_what_the_rule_exempts_can_be_left_out(accounting, log, clock):
    log.record(
        disclosure(),
        disclosure(caller=HEALTH_DEPARTMENT),
        disclosure(caller=caller(purposes=frozenset({"TREAT", "PUBHLTH"}))),
    )
    clock.forward(days=1)
    rows = ask(accounting, required_only=True).rows
    assert [row["recipient"] for row in rows] == ["County Health Department", "Lakeside Hospital"]


def test_a_suspended_recipient_is_left_out_of_what_the_patient_gets_until_it_ends(accounting, database, log, clock):
    log.record(disclosure(), disclosure(caller=HEALTH_DEPARTMENT, person_id="person-1-before"))
    clock.forward(days=1)
    suspension = Suspension("person-1", "county", clock(), clock() + timedelta(days=20), "Sheriff", written=False)
    with database.write() as connection:
        suspend(connection, suspension, "p.okafor", clock())
    hidden = ask(accounting)
    assert [row["recipient"] for row in hidden.rows] == ["Lakeside Hospital"]
    assert [entry.index for entry in hidden.entries] == [0]
    assert "suspension" not in str((hidden.notes, hidden.completeness))
    assert len(ask(accounting, ReportKind.ACCESS).rows) == 1
    whole = ask(accounting, whole=True)
    assert len(whole.rows) == 2
    assert "FOR THE PRIVACY OFFICER ONLY: log entries 1 are under a suspension until 22 March 2026" in whole.notes[-1]
    clock.forward(days=21)
    assert len(ask(accounting).rows) == 2


def test_an_oral_request_suspends_for_thirty_days_at_most(database, clock):
    asked = Suspension("p", "county", clock(), clock() + timedelta(days=31), "Sheriff", written=False)
    with database.write() as connection:
        with pytest.raises(BadRequest, match="30 days"):
            suspend(connection, asked, "officer", clock())
        with pytest.raises(BadRequest, match="names the agency"):
            suspend(connection, Suspension("p", "county", clock(), asked.ends, " ", True), "officer", clock())
        with pytest.raises(BadRequest, match="end after it starts"):
            suspend(connection, Suspension("p", "county", clock(), clock(), "Sheriff", True), "officer", clock())
        suspend(connection, Suspension("p", "county", clock(), asked.ends, "Sheriff", True), "officer", clock())


def test_the_list_of_an_intermediary_has_what_was_marked_as_part_2(accounting, log, clock):
    notice = {"permit": True, "rule": "consent", "consent": "Consent/c1/_history/2", "obligations": ["42-cfr-2.32"]}
    notice |= {"consentSha256": "ab" * 32, "count": 3}
    log.record(
        disclosure(),
        disclosure(released=released("Condition", labels=("42CFRPart2", "R"))),
        disclosure(caller=HEALTH_DEPARTMENT, decisions=(notice,)),
        disclosure(caller=caller(subject_id="n-2"), sources=(SourceOutcome("recovery", "ok", 2),)),
        disclosure(caller=caller(subject_id="n-3"), sources=(SourceOutcome("recovery", "timeout", 0),)),
    )
    clock.forward(days=1)
    rows = ask(accounting, ReportKind.PART2).rows
    assert [(row["entries"], row["consents"]) for row in rows] == [
        ("1 3", "by policy"),
        ("2", f"Consent/c1/_history/2 (SHA-256 {'ab' * 32})"),
    ]
    clock.forward(days=3 * 366)
    assert ask(accounting, ReportKind.PART2).rows == ()


def test_the_audit_report_says_what_decided_and_by_which_text(accounting, log, clock):
    by = {"consent": "Consent/c1/_history/2", "consentSha256": "ab" * 32}
    log.record(
        disclosure(),
        disclosure(
            decisions=(
                {"permit": False, "rule": "consent", **by, "path": [0], "count": 2},
                {"permit": False, "rule": "not-asked", "consent": "Consent/c2/_history/1", "custodian": "harbor"},
            )
        ),
        event(Kind.FEED, "C", decisions=({"rule": "matching", "verdict": "link"},)),
    )
    clock.forward(days=1)
    assert [row["decisions"] for row in ask(accounting, ReportKind.ONC).rows] == [
        "permitted 1 by default",
        f"withheld 2 by consent, Consent/c1/_history/2 (SHA-256 {'ab' * 32}); "
        "withheld all of harbor by not-asked, Consent/c2/_history/1",
        "",
    ]


def test_every_access_is_told_in_plain_words(accounting, log, clock):
    glass = caller(purposes=frozenset({"BTG", "TREAT"}), break_glass_reason="unconscious")
    log.record(
        disclosure(released=released("AllergyIntolerance"), withheld=2),
        disclosure(caller=glass, released=()),
        event(Kind.SEARCH, "E"),
        event(Kind.DENIAL, "R", description="A payer asks for payment only."),
        event(Kind.FAILURE, "R", outcome=Outcome.SERIOUS),
        event(Kind.FEED, "C"),
        event(Kind.CONSENT, "U", entities=("Consent/c1",)),
        event(Kind.LOG_READ, "R", description="3 lines", caller=None, client_id="command line"),
    )
    clock.forward(days=1)
    told = [row["sentence"] for row in ask(accounting, ReportKind.ACCESS).rows]
    ortiz = "Rosa Ortiz (physician) of Lakeside Hospital"
    assert told == [
        f"{ortiz} looked at 1 allergy; 2 records stayed hidden, for treatment.",
        f"{ortiz} asked for your records and was shown none, for an emergency, beyond the privacy choices "
        "(break-glass); the reason given: “unconscious”.",
        f"{ortiz} found you in a patient search and saw your name, birth date, sex, address, telephone and patient "
        "numbers, for treatment.",
        f"{ortiz} asked for your records and was refused (A payer asks for payment only).",
        f"{ortiz} asked for your records and got none, because no organization answered.",
        f"{ortiz} registered you.",
        f"{ortiz} changed a privacy choice of yours.",
        "An unidentified caller (command line) read this list of accesses (3 lines).",
    ]


def test_several_patients_stand_in_one_report_each_under_her_name(accounting, log, clock):
    ada = Subject("person-2", ("person-2",), "Ada Bell")
    log.record(disclosure(), disclosure("person-2"), disclosure("person-3"))
    clock.forward(days=1)
    report = ask(accounting, subjects=(MARTA, ada))
    assert [(row["patient"], row["entries"]) for row in report.rows] == [("Marta Lindqvist", "0"), ("Ada Bell", "1")]


@pytest.mark.parametrize("kind", list(ReportKind))
def test_a_report_sorts_by_each_of_its_fields(accounting, log, clock, kind):
    for number, name in enumerate(("Zoe", "adam", "Mia")):
        asking = caller(subject_name=name, subject_id=name, organization=name.lower(), client_id=f"{name}-ehr")
        marked = released(*["Condition"] * (number + 1), labels=("42CFRPart2",))
        log.record(disclosure(caller=asking, released=marked, request_id=f"r-{name}"))
        clock.forward(hours=1)
    report = ask(accounting, kind)
    assert len(report.rows) == 3
    for field in report.fields:
        rising = [r[field.name] for r in ask(accounting, kind, sort=field.name).rows]
        falling = [r[field.name] for r in ask(accounting, kind, sort=field.name, descending=True).rows]
        plain = [value.casefold() if isinstance(value, str) else value for value in rising]
        assert plain == sorted(plain)
        assert sorted(map(str, falling)) == sorted(map(str, rising))
        assert [v.casefold() if isinstance(v, str) else v for v in falling] == plain[::-1]


def test_an_unknown_field_and_nobody_are_refused(accounting):
    with pytest.raises(BadRequest, match="sorts by one of patient, first_date"):
        ask(accounting, sort="entry")
    with pytest.raises(BadRequest, match="at least one patient"):
        ask(accounting, subjects=())


def test_handing_a_report_out_is_an_entry_about_each_patient(accounting, log, clock):
    ada = Subject("person-2", ("person-2",))
    report = ask(accounting, subjects=(MARTA, ada))
    log.record(*read_event(report, "pdf", caller(role=Role.PRIVACY_OFFICER), "r-1"))
    for person_id in ("person-1", "person-2"):
        (entry,) = log.search(AuditQuery(persons=((person_id,),))).entries
        assert entry.kind == "log-read"
        assert entry.resource["outcomeDesc"] == "Accounting of disclosures: 0 lines, as pdf"


# -- complete by check


def tamper(database, sql, **values):
    """As somebody who owns the database: without the guards."""
    with database.write() as connection:
        if database.is_sqlite:
            for name in connection.scalars(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                connection.execute(sa.text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        connection.execute(sa.text(sql), values)


@pytest.fixture
def three(log, clock):
    log.record(disclosure(), disclosure("person-2"), disclosure())
    clock.forward(days=1)


def test_an_untouched_log_makes_a_complete_report(accounting, three):
    completeness = ask(accounting, every_body=True).completeness
    assert completeness.complete
    assert (completeness.entries, completeness.by_body, completeness.by_column) == (3, 2, 2)
    assert str(completeness).startswith("Complete: the bodies of all 3 entries of the log were searched, and the 2 ")


def test_a_page_says_what_its_report_was_held_against(accounting, database, clock, three):
    completeness = ask(accounting).completeness
    assert completeness.complete
    assert (completeness.entries, completeness.by_body, completeness.by_column) == (3, 2, 2)
    assert str(completeness) == (
        "Complete by two indexes of the log, which agree on 2 entries about this report's people; each was held "
        "against its leaf. The log of 3 entries as a whole has not been verified from the console yet."
    )
    LogHealth(database, clock, lambda progress: Found(True, 3, "it holds")).start("officer").join()
    assert str(ask(accounting).completeness).endswith(
        "The log as a whole was last verified on 2 March 2026, up to 3 of 3 entries."
    )


def plans(database, act):
    """How the database would carry out each statement that `act` reads with, small tables notwithstanding."""
    asked = []

    def note(_connection, _cursor, statement, parameters, *_):
        asked.append((statement, parameters))

    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        act()
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)
    with database.read() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL enable_indexonlyscan = off")
        explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
        return [
            " / ".join(str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters))
            for statement, parameters in asked
            if statement.lstrip().startswith(("SELECT", "WITH")) and "audit_" in statement
        ]


@pytest.mark.parametrize("kind", list(ReportKind))
def test_a_report_for_a_page_reads_what_its_indexes_give_and_never_the_whole_log(
    accounting, database, log, clock, kind
):
    log.record(*(disclosure(f"person-{n % 50}") for n in range(500)))
    clock.forward(days=1)
    found = plans(database, lambda: ask(accounting, kind))
    assert found
    whole = "SCAN audit_entries" if database.is_sqlite else "Seq Scan on audit_entries"
    assert [plan for plan in found if whole in plan or whole.replace("entries", "entities") in plan] == []
    searched = plans(database, lambda: ask(accounting, kind, every_body=True))
    assert any(whole in plan or "Filter: (POSITION" in plan for plan in searched)


def test_the_patients_page_reads_by_the_index(accounting, database, log):
    log.record(*(disclosure(f"person-{n % 50}") for n in range(500)))
    whole = "SCAN audit_entries" if database.is_sqlite else "Seq Scan on audit_entries"
    assert [plan for plan in plans(database, lambda: accounting.accesses(MARTA)) if whole in plan] == []


def test_what_one_index_hides_the_other_gives(accounting, database, three):
    tamper(database, "UPDATE audit_entries SET person_id = 'person-9' WHERE entry_index = 2")
    report = ask(accounting)
    assert report.rows[0]["entries"] == "0 2"
    assert report.completeness.problems == ("Entry 2 is about this report's people, and the index does not say so.",)
    tamper(database, "DELETE FROM audit_entities WHERE entry_index = 2")
    assert ask(accounting).completeness.complete  # both are gone: the command line and `hie audit verify` see it
    assert not ask(accounting, every_body=True).completeness.complete


def test_an_entry_hidden_from_the_index_is_found_and_listed(accounting, database, three):
    tamper(database, "UPDATE audit_entries SET person_id = 'person-9' WHERE entry_index = 2")
    report = ask(accounting, every_body=True)
    assert report.rows[0]["entries"] == "0 2"
    assert report.completeness.problems == ("Entry 2 is about this report's people, and the index does not say so.",)
    assert str(report.completeness).startswith("NOT complete: Entry 2")


def test_an_entry_put_under_the_wrong_person_is_noticed(accounting, database, three):
    tamper(database, "UPDATE audit_entries SET person_id = 'person-1' WHERE entry_index = 1")
    assert "Entry 1 stands in the index" in str(ask(accounting, every_body=True).completeness)


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("UPDATE audit_entries SET salt = :raw WHERE entry_index = 0", "Entry 0 is not what its leaf commits to."),
        ("UPDATE audit_entries SET leaf = :raw WHERE entry_index = 2", "The leaf of entry 2 was changed."),
        ("UPDATE audit_entries SET kind = 'feed' WHERE entry_index = 2", "Entry 2 is not what its leaf commits to."),
    ],
)
def test_an_edited_entry_is_noticed(accounting, database, three, sql, problem):
    tamper(database, sql, **({"raw": b"{}"} if ":raw" in sql else {}))
    assert problem in ask(accounting, every_body=True).completeness.problems


def test_an_edited_time_is_noticed_even_outside_of_the_reports_own(accounting, database, three, clock):
    early = "1999-01-01T00:00:00.000000Z" if database.is_sqlite else datetime(1999, 1, 1, tzinfo=UTC)
    tamper(database, "UPDATE audit_entries SET recorded = :at WHERE entry_index = 0", at=early)
    assert "Entry 0 is not what its leaf commits to." in ask(accounting, every_body=True).completeness.problems


def test_a_missing_entry_is_noticed(accounting, database, three):
    for table in ("audit_entities", "audit_purposes", "audit_subtypes", "audit_source_failures", "audit_entries"):
        tamper(database, f"DELETE FROM {table} WHERE entry_index = 1")
    assert ask(accounting, every_body=True).completeness.problems == ("1 entry missing from the log.",)


def test_many_problems_are_cut_short(accounting, database, log, clock):
    log.record(*(disclosure() for _ in range(30)))
    clock.forward(days=1)
    tamper(database, "UPDATE audit_entries SET salt = :raw", raw=b"")
    problems = ask(accounting, every_body=True).completeness.problems
    assert len(problems) == 21
    assert problems[-1] == "There are 10 more such entries."
