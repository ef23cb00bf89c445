"""What a steward decides, what that changes, and that each decision can be taken back, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from hie.core.database import Database
from hie.core.errors import Conflict, NotFound, Unprocessable
from hie.core.fhir import Resource
from hie.mpi.identity import Identifier, IdentityService
from hie.mpi.index import MatchIndex, Verdict
from hie.mpi.model import Model
from hie.mpi.people import By, EventKind, LinkEvent, TaskKind
from hie.mpi.stewardship import Stewardship
from hie.mpi.tables import people, person_tokens, review_tasks, separations, source_records
from hie.mpi.tables_match import match_keys, match_traits
from tests.mpi.identity.conftest import LAKESIDE, Clock, Feed, marta, otto
from tests.mpi.identity.test_concurrency import together

DANA = By("User/d.stein@exchange.example", "Compared side by side")


@pytest.fixture
def stewards(database: Database, clock: Clock, model: Model) -> Stewardship:
    return Stewardship(database, MatchIndex(model, database.is_sqlite), clock)


def named(suffix: str, **changes: Any) -> Resource:
    """Everything agrees but the generation, which the model never links over."""
    return otto(name=[{"family": "Brandt", "given": ["Otto"], "suffix": [suffix]}], **changes)


def the_task(stewards: Stewardship) -> str:
    (case,) = stewards.queue().cases
    assert case.task is not None
    return case.task.id


def everything(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """What people, searches, cross-references and the matcher see; not the history, versions and times."""
    columns = {
        people: ("id", "active", "merged_into"),
        source_records: ("id", "person_id", "active", "replaced_by"),
        person_tokens: ("person_id", "kind", "value", "exact"),
        match_keys: ("key", "record_id", "person_id"),
        match_traits: ("record_id", "person_id"),
        review_tasks: ("id", "status", "candidate_id"),
    }
    with database.read() as connection:
        found = {
            table.name: sorted(map(tuple, connection.execute(sa.select(*(table.c[name] for name in names)))), key=repr)
            for table, names in columns.items()
        }
        kept = sa.select(separations.c.record_a, separations.c.record_b).where(separations.c.ended.is_(None))
        found["separations"] = sorted(map(tuple, connection.execute(kept)))
        golden = sa.select(people.c.id, people.c.resource).where(people.c.active)
        found["golden"] = sorted(((row.id, row.resource) for row in connection.execute(golden)), key=lambda row: row[0])
    return found


def test_the_queue_shows_both_sides_their_weights_and_counts(stewards: Stewardship, feed: Feed) -> None:
    known = feed("lakeside", "L-1", named("Sr"))
    doubtful = feed("harbor", "H-1", named("Jr"))
    queue = stewards.queue()
    (case,) = queue.cases
    assert queue.counts == {TaskKind.SAME_PERSON: 1, TaskKind.CONTRADICTION: 0, TaskKind.MERGE: 0}
    assert (case.left.person_id, case.right.person_id) == (doubtful.record.person_id, known.record.person_id)
    assert case.left.resource["name"][0]["suffix"] == ["Jr"]
    assert case.compared[0].conflict == "different generational suffixes"
    assert {trait for trait, _, _ in case.compared[0].score.contributions} >= {"given", "family", "birth_date"}


def test_a_suspected_false_link_comes_before_a_possible_missed_one(stewards: Stewardship, feed: Feed) -> None:
    feed("lakeside", "L-1", named("Sr"))
    feed("harbor", "H-1", named("Jr"))
    feed("lakeside", "L-2", marta())
    feed("harbor", "H-2", marta())
    feed("harbor", "H-2", marta(name=[{"family": "Okafor", "given": ["Chidi"]}], birthDate="2001-01-30", telecom=[],
                                address=[], identifier=[], gender="male"))  # fmt: skip
    kinds = [case.task.kind for case in stewards.queue().cases if case.task]
    assert kinds == [TaskKind.CONTRADICTION, TaskKind.SAME_PERSON]
    assert [c.task.kind for c in stewards.queue(limit=1, offset=1).cases if c.task] == [TaskKind.SAME_PERSON]


def test_a_confirmed_pair_is_one_person_under_the_older_id(
    stewards: Stewardship, service: IdentityService, feed: Feed
) -> None:
    older = feed("lakeside", "L-1", named("Sr")).record.person_id
    newer = feed("harbor", "H-1", named("Jr")).record.person_id
    event = stewards.confirm(the_task(stewards), DANA)
    person = service.person(newer)
    assert person is not None
    assert (person.id, len(person.records)) == (older, 2)
    assert service.person_ids(newer) == (older, newer)
    assert (event.kind, event.actor, event.reason) == (EventKind.CONFIRM, DANA.actor, DANA.reason)
    assert event.model_version
    assert stewards.queue().cases == ()
    assert len(person.resource["identifier"]) == 2


def test_a_rejected_pair_is_not_linked_again_and_not_asked_again(
    stewards: Stewardship, service: IdentityService, feed: Feed
) -> None:
    feed("lakeside", "L-1", named("Sr"))
    feed("harbor", "H-1", named("Jr"))
    stewards.reject(the_task(stewards), DANA)
    moved = feed("harbor", "H-1", named("Jr", telecom=[{"system": "phone", "value": "312-555-0101"}]))
    assert moved.decision is not None
    assert moved.decision.verdict is Verdict.NEW
    assert stewards.queue().cases == ()
    other_way = feed("lakeside", "L-1", named("Sr", address=[]))
    assert other_way.record.person_id != moved.record.person_id
    assert stewards.queue().cases == ()


def test_a_rejection_lapses_when_what_identifies_a_record_changes(stewards: Stewardship, feed: Feed) -> None:
    feed("lakeside", "L-1", named("Sr"))
    feed("harbor", "H-1", named("Jr"))
    stewards.reject(the_task(stewards), DANA)
    corrected = feed("harbor", "H-1", named("Sr"))
    assert corrected.decision is not None
    assert corrected.decision.verdict is Verdict.LINK
    assert len(stewards.queue().cases) == 1


def linked_pair(feed: Feed) -> tuple[str, str, str]:
    """(person, record of lakeside, record of harbor), linked by the matcher."""
    one, other = feed("lakeside", "L-1", marta()), feed("harbor", "H-1", marta())
    assert one.record.person_id == other.record.person_id
    return one.record.person_id, one.record.id, other.record.id


def test_an_unlinked_record_has_its_own_person_and_golden_record_at_once(
    stewards: Stewardship, service: IdentityService, feed: Feed
) -> None:
    person_id, lakeside, harbor = linked_pair(feed)
    before = service.person(person_id)
    stewards.unlink(harbor, DANA)
    kept, own = service.person(person_id), service.source_record(Identifier("urn:oid:2.999.1.2", "H-1"))
    assert before is not None
    assert kept is not None
    assert own is not None
    assert [r.id for r in kept.records] == [lakeside]
    assert len(kept.resource["identifier"]) == len(before.resource["identifier"]) - 1
    split = service.person(own.person_id)
    assert split is not None
    assert split.id != person_id
    assert [r.id for r in split.records] == [harbor]


@pytest.mark.parametrize("what", ["the same", "another address", "another narrative"])
def test_a_feed_after_an_unlink_respects_the_steward(stewards: Stewardship, feed: Feed, what: str) -> None:
    changes: dict[str, Any] = {
        "the same": {},
        "another address": {"address": [{"city": "Salem", "state": "MA"}]},
        "another narrative": {"maritalStatus": {"text": "married"}},
    }
    person_id, _, harbor = linked_pair(feed)
    stewards.unlink(harbor, DANA)
    for member, value in (("harbor", "H-1"), ("lakeside", "L-1")):
        feed(member, value, marta(**changes[what]))
    assert feed("harbor", "H-1", marta(**changes[what], language="en")).record.person_id != person_id
    assert stewards.queue().cases == ()


def test_an_unlinked_record_goes_back_to_the_person_it_had_before(stewards: Stewardship, feed: Feed) -> None:
    nobody = feed("harbor", "H-1", {"resourceType": "Patient", "name": [{"family": "Unknown"}]})
    known = feed("lakeside", "L-1", marta())
    joined = feed("harbor", "H-1", marta())
    assert joined.record.person_id == known.record.person_id
    stewards.unlink(joined.record.id, DANA)
    again = feed("harbor", "H-1", marta(language="en"))
    assert again.record.person_id == nobody.record.person_id


Act = Callable[[Stewardship, dict[str, str]], LinkEvent]
ACTS: dict[str, Act] = {
    "confirm": lambda s, _: s.confirm(the_task(s), DANA),
    "reject": lambda s, _: s.reject(the_task(s), DANA),
    "link": lambda s, ids: s.link(ids["jr"], ids["marta"], DANA),
    "link the last one": lambda s, ids: s.link(ids["sr"], ids["marta"], DANA),
    "unlink": lambda s, ids: s.unlink(ids["marta2"], DANA),
    "merge": lambda s, ids: s.merge(ids["of sr"], ids["marta"], DANA),
    "split": lambda s, ids: s.split(ids["marta"], [ids["marta1"]], DANA),
    "undo of a link by the matcher": lambda s, ids: s.undo(
        next(m.id for m in s.timeline(ids["marta"]) if m.undoable), DANA
    ),
}


def world(feed: Feed) -> dict[str, str]:
    """Two of Marta's records, one person; Brandt senior and junior, in question; an id that was merged away."""
    person_id, one, two = linked_pair(feed)
    nobody = feed("meadow", "M-9", {"resourceType": "Patient", "name": [{"family": "Unknown"}]})
    feed("meadow", "M-9", marta())
    senior, junior = feed("lakeside", "L-2", named("Sr")).record, feed("harbor", "H-2", named("Jr")).record
    return {"marta": person_id, "marta1": one, "marta2": two, "sr": senior.id, "jr": junior.id,
            "of sr": senior.person_id, "of jr": junior.person_id, "nobody": nobody.record.person_id}  # fmt: skip


@pytest.mark.parametrize("name", ACTS)
def test_undoing_restores_exactly_what_was(stewards: Stewardship, feed: Feed, database: Database, name: str) -> None:
    ids = world(feed)
    before = everything(database)
    event = ACTS[name](stewards, ids)
    between = everything(database)
    assert between != before
    undone = stewards.undo(event.id, DANA)
    made = {row for row in between["people"] if row[0] not in {r[0] for r in before["people"]}}
    after = everything(database)
    after["people"] = [row for row in after["people"] if row[0] not in {r[0] for r in made}]
    assert after == before
    with pytest.raises(Conflict, match="undone already"):
        stewards.undo(event.id, DANA)
    stewards.undo(undone.id, DANA)
    assert everything(database) == between


@pytest.mark.parametrize("name", ["confirm", "merge", "unlink"])
def test_undoing_keeps_what_was_fed_in_between(
    stewards: Stewardship, service: IdentityService, feed: Feed, name: str
) -> None:
    ids = world(feed)
    event = ACTS[name](stewards, ids)
    feed("harbor", "H-2", named("Jr", telecom=[{"system": "phone", "value": "312-555-0199"}]))
    late = feed("meadow", "M-3", marta(language="en"))
    stewards.undo(event.id, DANA)
    record = service.source_record(Identifier("urn:oid:2.999.1.2", "H-2"))
    assert record is not None
    assert record.resource["telecom"][0]["value"] == "312-555-0199"
    person = service.person(late.record.person_id)
    assert person is not None
    assert late.record.id in {r.id for r in person.records}


def test_an_id_that_came_back_by_an_undo_is_its_own_again(
    stewards: Stewardship, service: IdentityService, feed: Feed
) -> None:
    ids = world(feed)
    first = stewards.merge(ids["of jr"], ids["of sr"], DANA)
    second = stewards.merge(ids["of sr"], ids["marta"], DANA)
    assert set(service.person_ids(ids["of jr"])) >= {ids["marta"], ids["of sr"], ids["of jr"]}
    with pytest.raises(Conflict, match="undo those first"):
        stewards.undo(first.id, DANA)
    stewards.undo(second.id, DANA)
    assert service.person_ids(ids["of jr"]) == (ids["of sr"], ids["of jr"])
    stewards.undo(first.id, DANA)
    assert service.person_ids(ids["of jr"]) == (ids["of jr"],)
    assert service.person_ids(ids["nobody"]) == (ids["marta"], ids["nobody"])


def test_a_link_that_the_matcher_made_when_data_changed_can_be_undone_and_stays_so(
    stewards: Stewardship, service: IdentityService, feed: Feed
) -> None:
    ids = world(feed)
    moment = next(m for m in stewards.timeline(ids["nobody"]) if m.kind == "feed" and m.came_from)
    stewards.undo(moment.id, DANA)
    assert service.person_ids(ids["nobody"]) == (ids["nobody"],)
    assert feed("meadow", "M-9", marta(language="en", address=[])).record.person_id == ids["nobody"]


def test_a_member_s_own_merge_is_not_the_steward_s_to_undo(
    stewards: Stewardship, service: IdentityService, feed: Feed
) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    result = service.merge("lakeside", Identifier(LAKESIDE, "L-2"), Identifier(LAKESIDE, "L-1"))
    moments = [m for m in stewards.timeline(result.record.person_id) if m.kind in ("subsume", "merge")]
    assert moments
    assert not any(m.undoable for m in moments)
    with pytest.raises(Conflict):
        stewards.undo(moments[0].id, DANA)


def test_the_person_as_of_any_date(stewards: Stewardship, feed: Feed, clock: Clock) -> None:
    start = clock()
    one = feed("lakeside", "L-1", marta())
    alone = clock()
    two = feed("harbor", "H-1", marta())
    feed("harbor", "H-1", marta(name=[{"family": "Lindqvist-Okafor", "given": ["Marta"]}]))
    both = clock()
    stewards.unlink(two.record.id, DANA)
    split = clock()
    person_id = one.record.person_id

    def records(at: Any) -> list[tuple[str, int]]:
        person = stewards.person_as_of(person_id, at)
        return sorted((r.identifier.value, r.version) for r in person.records) if person else []

    assert stewards.person_as_of(person_id, start) is None
    assert records(alone) == [("L-1", 1)]
    assert records(both) == [("H-1", 2), ("L-1", 1)]
    assert records(split) == [("L-1", 1)]
    then = stewards.person_as_of(person_id, both)
    assert then is not None
    assert {n["family"] for n in then.resource["name"]} >= {"Lindqvist-Okafor", "Lindqvist"}


def test_an_id_as_of_the_time_it_stood_for_another_person(stewards: Stewardship, feed: Feed, clock: Clock) -> None:
    ids = world(feed)
    before = clock()
    event = stewards.merge(ids["of sr"], ids["marta"], DANA)
    during = clock()
    stewards.undo(event.id, DANA)
    after = clock()
    found = [stewards.person_as_of(ids["of sr"], at) for at in (before, during, after)]
    assert [p.id for p in found if p] == [ids["of sr"], ids["marta"], ids["of sr"]]


def test_the_timeline_names_who_decided_what_and_why(stewards: Stewardship, feed: Feed) -> None:
    ids = world(feed)
    stewards.reject(the_task(stewards), DANA)
    stewards.merge(ids["of sr"], ids["marta"], By("User/x", "Same passport"))
    moments = stewards.timeline(ids["of sr"])
    assert (moments[0].kind, moments[0].actor, moments[0].reason) == ("merge", "User/x", "Same passport")
    assert moments[0].undoable
    assert "reject" in [m.kind for m in moments]
    linked = next(m for m in moments if m.kind == "feed" and m.undoable and not m.came_from)
    assert linked.probability is not None
    assert linked.probability > 0.999
    assert linked.model_version


@pytest.mark.parametrize("reason", ["", "    ", "x", "y" * 501])
def test_a_decision_needs_a_reason(stewards: Stewardship, feed: Feed, reason: str) -> None:
    _, _, harbor = linked_pair(feed)
    with pytest.raises(Unprocessable, match="reason"):
        stewards.unlink(harbor, By("User/x", reason))


def test_what_cannot_be_done_says_why(stewards: Stewardship, feed: Feed) -> None:
    person_id, lakeside, harbor = linked_pair(feed)
    with pytest.raises(Unprocessable, match="leave at least one"):
        stewards.split(person_id, [lakeside, harbor], DANA)
    with pytest.raises(Conflict, match="one person already"):
        stewards.merge(person_id, person_id, DANA)
    with pytest.raises(Conflict, match="that person's already"):
        stewards.link(harbor, person_id, DANA)
    with pytest.raises(NotFound):
        stewards.confirm("nosuchtask", DANA)
    with pytest.raises(NotFound):
        stewards.undo("nosuchevent", DANA)
    with pytest.raises(NotFound):
        stewards.timeline("nobody")


def test_a_contradiction_is_answered_by_keeping_or_splitting(
    stewards: Stewardship, service: IdentityService, feed: Feed
) -> None:
    person_id, _, _ = linked_pair(feed)
    changed = feed("harbor", "H-1", otto())
    event = stewards.confirm(the_task(stewards), DANA)
    assert stewards.queue().cases == ()
    stewards.undo(event.id, DANA)
    (case,) = stewards.queue().cases
    assert [r.id for r in case.left.records] == [changed.record.id]
    stewards.reject(the_task(stewards), DANA)
    record = service.source_record(Identifier("urn:oid:2.999.1.2", "H-1"))
    assert record is not None
    assert record.person_id != person_id
    assert stewards.queue().cases == ()


def test_the_audit_entry_shares_the_transaction(stewards: Stewardship, feed: Feed, database: Database) -> None:
    ids = world(feed)
    before = everything(database)

    def fails(_connection: sa.Connection, _event: LinkEvent) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stewards.merge(ids["of sr"], ids["marta"], DANA, also=fails)
    assert everything(database) == before
    seen: list[LinkEvent] = []
    stewards.merge(ids["of sr"], ids["marta"], DANA, also=lambda _, event: seen.append(event))
    assert set(seen[0].people) == {ids["of sr"], ids["marta"]}


def test_members_are_told_whose_records_changed(stewards: Stewardship, feed: Feed, clock: Clock) -> None:
    ids = world(feed)
    clock.now += timedelta(seconds=30)
    _, since, _ = stewards.changes_since("lakeside", clock.now.replace(year=2020))
    event = stewards.merge(ids["of jr"], ids["marta"], DANA)
    assert stewards.changes_since("lakeside", since)[0] == ()
    clock.now += timedelta(seconds=30)
    changes, after, more = stewards.changes_since("lakeside", since)
    assert {(c.person_id, c.person.id) for c in changes} == {(ids["of jr"], ids["marta"]), (ids["marta"], ids["marta"])}
    assert (after, more) == (event.at, False)
    assert stewards.changes_since("nobody", since)[0] == ()
    assert stewards.changes_since("lakeside", after)[0] == ()


def test_what_happened_to_records_of_a_hidden_member_is_no_change(
    stewards: Stewardship, feed: Feed, clock: Clock
) -> None:
    feed("lakeside", "L-1", marta())
    clock.now += timedelta(seconds=30)
    _, since, _ = stewards.changes_since("lakeside", clock.now.replace(year=2020))
    feed("meadow", "M-1", marta())
    clock.now += timedelta(seconds=30)
    assert len(stewards.changes_since("lakeside", since)[0]) == 1
    assert stewards.changes_since("lakeside", since, hidden=lambda _person: {"meadow"})[0] == ()


# -- people whom a record shows to be one


def two_of_marta(feed: Feed) -> tuple[str, str]:
    """Two people of the same data: the second record came as somebody else's and was corrected while she was shared."""
    one = feed("lakeside", "L-1", marta()).record.person_id
    feed("harbor", "H-1", otto())
    shared = feed("meadow", "M-1", otto()).record.person_id
    feed("harbor", "H-1", marta())
    feed("meadow", "M-1", marta())
    assert shared != one
    return one, shared


def test_a_record_that_fits_two_people_who_fit_each_other_joins_them(
    stewards: Stewardship, service: IdentityService, feed: Feed, database: Database
) -> None:
    one, other = two_of_marta(feed)
    result = feed("harbor", "H-9", marta(language="en"))
    person = service.person(other)
    assert person is not None
    assert (person.id, result.record.person_id, len(person.records)) == (one, one, 4)
    joined = next(m for m in stewards.timeline(one) if m.kind == "join")
    stewards.undo(joined.id, DANA)
    apart = service.person(other)
    assert apart is not None
    assert apart.id == other
    later = feed("meadow", "M-7", marta(language="de"))
    assert later.record.person_id not in (one, other) or service.person(other) != service.person(one)
    still = service.person(other)
    assert still is not None
    assert still.id == other


def test_a_record_links_to_the_closer_of_two_whom_a_steward_keeps_apart(
    stewards: Stewardship, service: IdentityService, feed: Feed
) -> None:
    moved = {"address": [{"line": ["9 Elm St"], "city": "Salem", "state": "MA"}], "telecom": [], "identifier": []}
    misspelt = [{"family": "Lindqvist", "given": ["Marta", "Ingird"]}]
    one = feed("lakeside", "L-1", marta())
    other = feed("harbor", "H-1", marta(**moved, name=misspelt, birthDate="1949-11-22"))
    assert other.record.person_id == one.record.person_id
    stewards.unlink(other.record.id, DANA)
    result = feed("meadow", "M-1", marta())
    assert result.record.person_id == one.record.person_id
    apart = service.source_record(Identifier("urn:oid:2.999.1.2", "H-1"))
    assert apart is not None
    assert apart.person_id != one.record.person_id
    assert service.person(apart.person_id) is not None


# -- at the same moment


def test_twenty_stewards_settle_a_question_once(stewards: Stewardship, service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", named("Sr"))
    feed("harbor", "H-1", named("Jr"))
    task = the_task(stewards)

    def attempt(act: Callable[..., LinkEvent]) -> str:
        try:
            return act(task, DANA).kind.value
        except Conflict:
            return "settled"

    acts = [stewards.confirm, stewards.reject] * 10
    outcomes = together([lambda a=a: attempt(a) for a in acts])
    assert outcomes.count("settled") == 19


def test_feeds_against_stewards_leave_every_record_with_a_living_person(
    stewards: Stewardship, service: IdentityService, feed: Feed, database: Database
) -> None:
    for round_ in range(3):
        ids = {n: feed("lakeside", f"L-{round_}-{n}", marta(birthDate=f"19{50 + round_ * 7}-03-0{n + 1}", identifier=[],
               name=[{"family": f"Family{'abc'[round_]}{n}", "given": ["Ada"]}])).record for n in range(4)}  # fmt: skip

        def attempt(act: Callable[[], object]) -> None:
            with suppress(Conflict, Unprocessable, NotFound):
                act()

        acts: list[Callable[[], object]] = [
            lambda i=ids: stewards.merge(i[0].person_id, i[1].person_id, DANA),
            lambda i=ids: stewards.merge(i[1].person_id, i[2].person_id, DANA),
            lambda i=ids: stewards.merge(i[2].person_id, i[0].person_id, DANA),
            lambda i=ids: stewards.link(i[3].id, i[0].person_id, DANA),
            lambda r=round_: feed("lakeside", f"L-{r}-0", marta()),
            lambda r=round_: feed("harbor", f"H-{r}-1", marta()),
            lambda r=round_: service.delete("lakeside", Identifier(LAKESIDE, f"L-{r}-2")),
        ]
        together([lambda a=a: attempt(a) for a in acts])
    with database.read() as connection:
        lost = (
            sa.select(source_records.c.id)
            .join(people, people.c.id == source_records.c.person_id)
            .where(source_records.c.active, sa.or_(people.c.merged_into.is_not(None), ~people.c.active))
        )
        assert connection.execute(lost).all() == []
        indexed = sa.select(match_traits.c.record_id).join(
            source_records, source_records.c.id == match_traits.c.record_id
        )
        astray = indexed.where(source_records.c.person_id != match_traits.c.person_id)
        assert connection.execute(astray).all() == []
