"""Merging two local ids of one member (ITI-104 resolve duplicate), and what that does to people."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from hie.core.database import Database
from hie.core.errors import Conflict, Forbidden, NotFound, PreconditionFailed, Unprocessable
from hie.mpi.identity import FeedResult, Identifier, IdentityService
from hie.mpi.tables import link_decisions, review_tasks
from tests.mpi.identity.conftest import HARBOR, LAKESIDE, Feed, marta, otto

ONE, TWO, THREE = (Identifier(LAKESIDE, f"L-{n}") for n in (1, 2, 3))


def resolved(service: IdentityService, identifier: Identifier) -> str | None:
    record = service.source_record(identifier)
    return record.identifier.value if record else None


def test_the_subsumed_id_resolves_to_the_survivor_whose_person_stays(service: IdentityService, feed: Feed) -> None:
    subsumed, survivor = feed("lakeside", "L-1", marta()), feed("lakeside", "L-2", otto())
    result = service.merge("lakeside", ONE, TWO)
    person = service.person(subsumed.record.person_id)
    assert (result.created, result.changed) == (False, True)
    assert resolved(service, ONE) == "L-2"
    assert person is not None
    assert person.id == survivor.record.person_id
    assert [r.identifier for r in person.records] == [TWO]
    assert person.resource["name"][0]["family"] == "Brandt"
    assert service.person_ids(person.id) == (person.id, subsumed.record.person_id)


def test_a_merged_record_no_longer_attracts_others(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    survivor = feed("lakeside", "L-2", otto())
    service.merge("lakeside", ONE, TWO)
    assert feed("harbor", "H-1", marta()).record.person_id != survivor.record.person_id


def test_the_same_merge_again_changes_nothing(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    service.merge("lakeside", ONE, TWO)
    again = service.merge("lakeside", ONE, TWO)
    assert (again.created, again.changed) == (False, False)


def test_chains_resolve_to_their_end(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", marta(gender="other"))
    end = feed("lakeside", "L-3", otto())
    service.merge("lakeside", ONE, TWO)
    service.merge("lakeside", TWO, THREE)
    assert [resolved(service, i) for i in (ONE, TWO, THREE)] == ["L-3", "L-3", "L-3"]
    record = service.source_record(ONE)
    assert record is not None
    assert record.person_id == end.record.person_id


def test_merging_into_an_id_that_was_itself_merged_finds_the_end(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    feed("lakeside", "L-3", otto(gender="other"))
    service.merge("lakeside", TWO, THREE)
    service.merge("lakeside", ONE, TWO)
    assert resolved(service, ONE) == "L-3"


def test_merges_that_mean_nothing_are_refused(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    with pytest.raises(Unprocessable, match="itself"):
        service.merge("lakeside", ONE, ONE)
    with pytest.raises(Unprocessable, match="not known"):
        service.merge("lakeside", ONE, THREE)
    with pytest.raises(NotFound):
        service.merge("lakeside", THREE, ONE)
    service.merge("lakeside", ONE, TWO)
    with pytest.raises(Unprocessable, match="replaced by this one"):
        service.merge("lakeside", TWO, ONE)
    assert resolved(service, ONE) == "L-2"


def test_a_long_cycle_is_refused(service: IdentityService, feed: Feed) -> None:
    for n in (1, 2, 3):
        feed("lakeside", f"L-{n}", marta())
    service.merge("lakeside", ONE, TWO)
    service.merge("lakeside", TWO, THREE)
    with pytest.raises(Unprocessable):
        service.merge("lakeside", THREE, ONE)


def test_a_deleted_survivor_is_refused(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    service.delete("lakeside", TWO)
    with pytest.raises(Unprocessable, match="not known"):
        service.merge("lakeside", ONE, TWO)


def test_only_the_member_that_feeds_both_may_merge(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("harbor", "H-1", otto())
    for member_id in ("lakeside", "harbor"):
        with pytest.raises(Forbidden):
            service.merge(member_id, ONE, Identifier(HARBOR, "H-1"))


def test_a_subsumed_id_never_fed_becomes_an_alias_when_the_message_says_who_it_was(
    service: IdentityService, feed: Feed
) -> None:
    survivor = feed("lakeside", "L-2", marta())
    result = service.merge("lakeside", ONE, TWO, patient=marta())
    assert result.created
    assert resolved(service, ONE) == "L-2"
    assert service.merge("lakeside", ONE, TWO, patient=marta()).changed is False
    person = service.person(survivor.record.person_id)
    assert person is not None
    assert len(person.records) == 1


def test_an_old_feed_of_the_subsumed_id_does_not_undo_the_merge(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    service.merge("lakeside", ONE, TWO)
    replayed = feed("lakeside", "L-1", marta())
    assert (replayed.created, replayed.changed) == (False, False)
    assert resolved(service, ONE) == "L-2"
    with pytest.raises(Conflict):
        feed("lakeside", "L-1", marta(gender="other"))


def test_an_old_merge_message_does_not_undo_what_came_after(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    message = marta(meta={"lastUpdated": "2026-01-02T00:00:00Z"})
    service.merge("lakeside", ONE, TWO, patient=message)
    service.delete("lakeside", ONE)
    feed("lakeside", "L-1", marta(meta={"lastUpdated": "2026-01-03T00:00:00Z"}))
    replayed = service.merge("lakeside", ONE, TWO, patient=message)
    assert (replayed.changed, replayed.stale) == (False, True)
    assert resolved(service, ONE) == "L-1"


def test_a_merge_of_a_version_that_is_not_current_is_refused(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    with pytest.raises(PreconditionFailed):
        service.merge("lakeside", ONE, TWO, expected_version=2)
    assert service.merge("lakeside", ONE, TWO, expected_version=1).changed


def test_a_subsumed_id_can_be_taken_up_again_after_it_was_deleted(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    survivor = feed("lakeside", "L-2", otto())
    service.merge("lakeside", ONE, TWO)
    assert service.delete("lakeside", ONE)
    assert resolved(service, ONE) is None
    again = feed("lakeside", "L-1", marta())
    assert again.created
    assert again.record.person_id != survivor.record.person_id


def test_others_of_the_left_person_stay_and_a_steward_is_asked(
    service: IdentityService, feed: Feed, database: Database
) -> None:
    left = feed("harbor", "H-1", marta())
    linked = feed("lakeside", "L-1", marta())
    survivor = feed("lakeside", "L-2", otto())
    assert linked.record.person_id == left.record.person_id
    service.merge("lakeside", ONE, TWO)
    person = service.person(left.record.person_id)
    assert person is not None
    assert [r.identifier.value for r in person.records] == ["H-1"]
    with database.read() as connection:
        tasks = connection.execute(sa.select(review_tasks)).all()
    assert [(t.record_id, t.candidate_id, t.kind, t.status) for t in tasks] == [
        (survivor.record.id, left.record.person_id, "merge", "open")
    ]


def test_a_merge_inside_one_person_asks_nobody(service: IdentityService, feed: Feed, database: Database) -> None:
    one, two = feed("lakeside", "L-1", marta()), feed("lakeside", "L-2", marta(gender="unknown"))
    assert one.record.person_id == two.record.person_id
    service.merge("lakeside", ONE, TWO)
    with database.read() as connection:
        assert connection.execute(sa.select(review_tasks)).all() == []


def test_a_merge_can_be_traced(service: IdentityService, feed: Feed, database: Database) -> None:
    before, after = feed("lakeside", "L-1", marta()), feed("lakeside", "L-2", otto())
    service.merge("lakeside", ONE, TWO)
    with database.read() as connection:
        row = connection.execute(sa.select(link_decisions).where(link_decisions.c.event == "merge")).one()
    assert (row.record_id, row.actor) == (before.record.id, "Organization/lakeside")
    assert (row.person_before, row.person_after) == (before.record.person_id, after.record.person_id)
    assert row.reasons == {"replaced_by": after.record.id}


def test_redirects_of_redirects_resolve_in_one_step(service: IdentityService, feed: Feed) -> None:
    people = [feed("lakeside", f"L-{n}", body).record.person_id for n, body in enumerate((marta(), otto()), 1)]
    third = feed("lakeside", "L-3", {"resourceType": "Patient", "name": [{"family": "Third", "given": ["Tea"]}]})
    service.merge("lakeside", ONE, TWO)
    service.merge("lakeside", TWO, THREE)
    end = third.record.person_id
    assert {person.id for i in people if (person := service.person(i))} == {end}
    assert set(service.person_ids(people[0])) == {*people, end}
    assert service.person_ids(people[0])[0] == end


def test_also_sees_the_merge(service: IdentityService, feed: Feed) -> None:
    seen: list[FeedResult] = []
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    result = service.merge("lakeside", ONE, TWO, also=lambda _connection, merged: seen.append(merged))
    assert seen == [result]
