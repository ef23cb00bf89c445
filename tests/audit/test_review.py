"""The queue: nothing that breaks the glass escapes it, two people close, and every step is in the log."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from hie.audit.alerts import Rule
from hie.audit.cases import Status, Step, Verdict, possible
from hie.audit.event import Kind
from hie.audit.query import AuditQuery
from hie.audit.relations import Contact, Relation
from hie.audit.review import Review
from hie.audit.thresholds import Thresholds
from hie.core.caller import EXCHANGE, Role
from hie.core.errors import BadRequest, Conflict, Forbidden, NotFound
from tests.audit.community import FakeCommunity, person
from tests.audit.samples import caller, disclosure, event

GLASS = caller(
    client_id=None,
    user_id="r.ortiz@lakeside.example",
    subject_id="r.ortiz@lakeside.example",
    role=Role.CLINICIAN,
    purposes=frozenset({"BTG", "ETREAT", "TREAT"}),
    break_glass_reason="unconscious after a fall",
)


def officer(name):
    return caller(
        organization=EXCHANGE,
        organization_name="The exchange",
        role=Role.PRIVACY_OFFICER,
        client_id=None,
        user_id=f"{name}@exchange.example",
        subject_id=f"{name}@exchange.example",
        subject_name=name.capitalize(),
        purposes=frozenset({"HOPERAT"}),
    )


PATIENCE, OLU = officer("patience"), officer("olu")


@pytest.fixture
def community():
    return FakeCommunity()


@pytest.fixture
def review(database, clock, log, community):
    return Review(database, clock, log, community, Thresholds())


@pytest.fixture
def case(review, log):
    log.record(disclosure(caller=GLASS))
    review.collect()
    (case,) = review.queue()
    return case


def take(review, case, step, by=PATIENCE, note="a few words", **more):
    return review.take(case.id, step, by, version=case.version, note=note, **more)


def judged(review, case, by=PATIENCE):
    taken = take(review, case, Step.ASSIGN, by)
    return take(review, taken, Step.JUDGE, by, verdict=Verdict.APPROPRIATE)


# -- how cases come to be


def test_every_entry_that_declares_break_glass_is_in_the_queue(review, log):
    log.record(
        disclosure(caller=GLASS),
        disclosure(),
        disclosure("person-2", caller=GLASS),
        event(Kind.DENIAL, "R", caller=GLASS),
        event(Kind.FAILURE, "R", caller=GLASS, person_id=None),
        event(Kind.SIGN_IN, "E", caller=GLASS),
        event(Kind.SEARCH, "E", caller=GLASS),
    )
    assert review.collect() == 4
    assert review.collect() == 0
    (case,) = review.queue()
    assert (case.break_glass, case.status, case.actor_name) == (True, Status.OPEN, "Rosa Ortiz")
    found = review.file(case.id)
    assert [item.entries for item in found.items] == [(0,), (2,), (3,), (4,)]
    assert found.items[0].sentence == (
        "Broke the glass and was shown 1 allergy. The reason given: “unconscious after a fall”."
    )
    assert "the answer was no" in found.items[2].sentence
    assert [access.index for access in found.accesses] == [0, 2, 3, 4]


def test_incidents_are_grouped_by_actor_until_they_are_judged(review, log, clock):
    jonas = replace(GLASS, user_id="jonas", subject_id="jonas", subject_name="Jonas Mills")
    log.record(disclosure(caller=GLASS), disclosure(caller=jonas), disclosure("person-2", caller=GLASS))
    review.collect()
    rosa, other = sorted(review.queue(), key=lambda c: c.actor_name, reverse=True)
    assert [len(items) for items in review.summaries([rosa.id, other.id]).values()] == [2, 1]
    judged(review, rosa)
    clock.forward(days=1)
    log.record(disclosure(caller=GLASS))
    review.collect()
    later = next(case for case in review.queue() if case.actor == GLASS.user_id)
    assert later.id != rosa.id
    assert [before.id for before in review.file(later.id).before] == [rosa.id]


def test_two_officers_at_once_file_each_entry_once(review, log):
    log.record(*(disclosure(f"p-{n}", caller=GLASS) for n in range(20)))
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda _: review.collect(), range(4))) == [0, 0, 0, 20]
    (case,) = review.queue()
    assert len(review.file(case.id).items) == 20


def test_break_glass_stands_before_alerts_and_the_oldest_first(review, log, clock, community):
    community.facts["person-9"] = person(vip=True)
    plain = replace(GLASS, purposes=frozenset({"TREAT"}), break_glass_reason=None, user_id="curious", subject_id="c")
    log.record(disclosure("person-9", caller=plain))
    clock.forward(days=1)
    assert [alert.rule for alert in review.look()] == [Rule.VIP]
    clock.forward(days=1)
    log.record(disclosure(caller=GLASS))
    review.collect()
    assert [(case.actor, case.break_glass) for case in review.queue()] == [(GLASS.user_id, True), ("curious", False)]
    counts = review.counts()
    assert (counts.break_glass, counts.alerts, counts.to_confirm) == (1, 1, 0)


# -- alerts out of the log


def test_a_look_judges_what_is_new_and_keeps_each_alert_once(review, log, clock, community):
    community.facts["person-1"] = person(vip=True)
    log.record(disclosure(caller=caller(purposes=frozenset({"HPAYMT"}))), disclosure())
    (alert,) = review.look()
    assert alert.entries == (1,)
    assert review.look() == []
    clock.forward(days=9)
    log.record(disclosure())
    assert [alert.entries for alert in review.look()] == [(2,)]
    (case,) = review.queue()
    assert [item.rule for item in review.file(case.id).items] == [Rule.VIP, Rule.VIP]
    assert case.actor == "1234567893"


def test_what_the_community_explains_raises_nothing(review, log, clock, community):
    community.facts["person-1"] = person(vip=True)
    community.known.append(Contact("person-1", "lakeside", Relation.ADMISSION, clock(), clock()))
    log.record(disclosure())
    assert review.look() == []


def test_a_user_whom_the_directory_does_not_know_is_called_as_the_log_does(review, log, community):
    community.facts["person-1"] = person("ortiz")
    log.record(disclosure())
    (alert,) = review.look()
    assert alert.rule is Rule.SAME_NAME


def test_a_system_without_a_user_is_judged_as_itself(review, log, clock):
    system = caller(subject_name=None, subject_id=None, subject_role=None)
    log.record(*(disclosure(f"p-{n}", caller=system) for n in range(7)))
    assert Rule.SEQUENCE in {alert.rule for alert in review.look()}
    assert review.queue()[0].actor == "lakeside-ehr"


# -- working on a case


def test_from_the_queue_to_the_end_by_two_people(review, case, log):
    case = take(review, case, Step.ASSIGN, note="")
    assert (case.status, case.assignee) == (Status.ASSIGNED, "patience@exchange.example")
    case = take(review, case, Step.ASK, note="Why was this needed?")
    assert case.status is Status.ASKED
    assert [asked.id for asked in review.asked_of(GLASS.user_id, "lakeside")] == [case.id]
    case = take(review, case, Step.EXPLAIN, by=GLASS, note="She could not speak and had no papers.")
    assert review.asked_of(GLASS.user_id, "lakeside") == []
    case = take(review, case, Step.JUDGE, note="An emergency, documented.", verdict=Verdict.APPROPRIATE)
    assert (case.status, case.verdict) == (Status.JUDGED, Verdict.APPROPRIATE)
    assert review.queue() == []
    assert review.counts().to_confirm == 1
    case = take(review, case, Step.CONFIRM, by=OLU, note="")
    assert case.status is Status.CLOSED
    steps = review.file(case.id).steps
    assert [(taken.step, taken.by_name) for taken in steps] == [
        (Step.ASSIGN, "Patience"),
        (Step.ASK, "Patience"),
        (Step.EXPLAIN, "Rosa Ortiz"),
        (Step.JUDGE, "Patience"),
        (Step.CONFIRM, "Olu"),
    ]
    assert steps[3].note == "Appropriate: An emergency, documented."
    for taken in steps:
        entry = log.entry(taken.entry_index)
        assert entry.kind == "review"
        assert taken.note in entry.body.decode()
    assert log.search(AuditQuery(entities=((f"Task/{case.id}",),))).total == 5
    assert log.search(AuditQuery(persons=(("person-1",),))).total == 6


def test_the_patient_reads_that_it_was_reviewed_and_not_the_words(review, case, log):
    judged(review, case)
    shown = log.search(AuditQuery(entities=((f"Task/{case.id}",),))).entries[0].resource
    assert shown["outcomeDesc"] == "the verdict is appropriate"


def test_whoever_gave_the_verdict_cannot_close(review, case):
    case = judged(review, case)
    with pytest.raises(Forbidden, match="closed by two people"):
        take(review, case, Step.CONFIRM)
    assert review.file(case.id).case.status is Status.JUDGED


def test_a_second_officer_may_return_the_verdict(review, case):
    case = take(review, judged(review, case), Step.RETURN, by=OLU, note="Nobody asked her.")
    assert (case.status, case.verdict, case.verdict_by) == (Status.ASSIGNED, None, None)
    case = take(review, case, Step.JUDGE, by=OLU, verdict=Verdict.INAPPROPRIATE)
    assert take(review, case, Step.CONFIRM).status is Status.CLOSED


def test_nobody_judges_what_she_did_herself(review, log):
    log.record(disclosure(caller=replace(GLASS, user_id=PATIENCE.user_id, subject_id=PATIENCE.user_id)))
    review.collect()
    (case,) = review.queue()
    for step in (Step.ASSIGN, Step.NOTE):
        with pytest.raises(Forbidden, match="what you did yourself"):
            take(review, case, step)
    assert take(review, case, Step.ASSIGN, by=OLU).status is Status.ASSIGNED


def test_nobody_but_officers_works_on_cases_and_the_actor_only_explains(review, case):
    steward = replace(PATIENCE, role=Role.DATA_STEWARD)
    for by in (steward, GLASS, replace(GLASS, user_id="other@lakeside.example")):
        for step in (Step.ASSIGN, Step.JUDGE, Step.CONFIRM, Step.EXPLAIN):
            with pytest.raises(Forbidden):
                take(review, case, step, by=by, verdict=Verdict.APPROPRIATE)


def test_an_officer_may_write_down_an_explanation_that_came_another_way(review, case):
    case = take(review, take(review, case, Step.ASSIGN), Step.ASK)
    case = take(review, case, Step.EXPLAIN, by=OLU, note="By telephone: the patient was unconscious.")
    assert case.status is Status.EXPLAINED


def test_a_step_on_an_older_version_is_a_conflict(review, case):
    take(review, case, Step.ASSIGN)
    with pytest.raises(Conflict, match="in the meantime"):
        take(review, case, Step.ASSIGN, by=OLU)


def test_steps_need_words_a_verdict_and_a_case(review, case):
    case = take(review, case, Step.ASSIGN)
    with pytest.raises(BadRequest, match="few words"):
        take(review, case, Step.ASK, note="  ")
    with pytest.raises(BadRequest, match="Choose a verdict"):
        take(review, case, Step.JUDGE)
    with pytest.raises(BadRequest, match="2,000 characters"):
        take(review, case, Step.NOTE, note="x" * 2001)
    with pytest.raises(NotFound):
        take(review, replace(case, id="nothing"), Step.NOTE)


def test_a_refused_step_leaves_no_trace_in_the_case(review, case, log):
    before = log.search(AuditQuery()).total
    with pytest.raises(Forbidden):
        take(review, case, Step.CONFIRM)
    assert review.file(case.id).steps == ()
    assert log.search(AuditQuery()).total == before


def test_a_closed_case_is_closed_for_good(review, case):
    case = take(review, judged(review, case), Step.CONFIRM, by=OLU)
    assert possible(case, PATIENCE.user_id, officer=True) == frozenset()


def test_what_is_read_is_what_was_written_after_a_month(review, case, clock):
    case = take(review, case, Step.ASSIGN, note="for Olu", assignee="olu@exchange.example")
    clock.forward(days=30)
    assert review.queue(assignee="olu@exchange.example") == [case]
    assert review.queue(assignee="patience@exchange.example") == []
    assert review.file(case.id).case.updated == clock() - timedelta(days=30)
