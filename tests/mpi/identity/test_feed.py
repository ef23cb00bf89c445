"""Feeding: what a member sends, in what order, and which person it ends up with."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from hie.core.database import Database
from hie.core.errors import Conflict, Forbidden, PreconditionFailed, Unprocessable
from hie.core.fhir import Resource
from hie.mpi.identity import FeedResult, Identifier, IdentityService
from hie.mpi.index import Verdict
from hie.mpi.tables import link_decisions, review_tasks, source_record_versions, source_records
from tests.mpi.identity.conftest import HARBOR, LAKESIDE, Feed, marta, otto


def stamped(moment: str, **changes: object) -> Resource:
    return marta(meta={"lastUpdated": moment}, **changes)


def open_tasks(database: Database) -> list[tuple[str, str, str]]:
    query = sa.select(review_tasks.c.record_id, review_tasks.c.candidate_id, review_tasks.c.kind)
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(query.where(review_tasks.c.status == "open"))]


def count(database: Database, table: sa.Table) -> int:
    with database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def family_of(service: IdentityService, result: FeedResult) -> str:
    person = service.person(result.record.person_id)
    assert person is not None
    return str(person.resource["name"][0]["family"])


def test_first_sight_creates_a_person_with_the_record(service: IdentityService, feed: Feed) -> None:
    result = feed("lakeside", "L-1", marta())
    person = service.person(result.record.person_id)
    assert (result.created, result.changed, result.record.version) == (True, True, 1)
    assert person is not None
    assert [r.identifier for r in person.records] == [Identifier(LAKESIDE, "L-1")]
    assert person.resource["id"] == person.id


def test_the_same_content_again_changes_nothing(service: IdentityService, feed: Feed, database: Database) -> None:
    first = feed("lakeside", "L-1", marta())
    before = service.person(first.record.person_id)
    again = feed("lakeside", "L-1", marta())
    assert (again.created, again.changed, again.record.version) == (False, False, 1)
    assert service.person(first.record.person_id) == before
    assert count(database, source_record_versions) == 1


def test_new_content_is_a_new_version_and_the_old_one_stays(feed: Feed, database: Database) -> None:
    feed("lakeside", "L-1", marta())
    moved = feed("lakeside", "L-1", marta(address=[{"line": ["9 Elm St"], "city": "Salem", "state": "MA"}]))
    query = sa.select(source_record_versions.c.body).order_by(source_record_versions.c.version)
    with database.read() as connection:
        bodies = list(connection.scalars(query))
    assert (moved.created, moved.changed, moved.record.version) == (False, True, 2)
    assert [body["address"][0]["city"] for body in bodies] == ["Boston", "Salem"]


def test_a_message_older_than_what_is_held_changes_nothing(service: IdentityService, feed: Feed) -> None:
    old = stamped("2026-01-01T10:00:00+01:00", address=[{"city": "Boston"}])
    new = stamped("2026-02-01T10:00:00Z", address=[{"city": "Salem"}])
    feed("lakeside", "L-1", old)
    feed("lakeside", "L-1", new)
    replayed = feed("lakeside", "L-1", old)
    person = service.person(replayed.record.person_id)
    assert (replayed.changed, replayed.stale, replayed.record.version) == (False, True, 2)
    assert person is not None
    assert person.resource["address"][0]["city"] == "Salem"


def test_yesterdays_message_sent_again_without_any_stamp_does_not_roll_back(
    service: IdentityService, feed: Feed
) -> None:
    feed("lakeside", "L-1", marta(address=[{"city": "Boston"}]))
    feed("lakeside", "L-1", marta(address=[{"city": "Salem"}]))
    replayed = feed("lakeside", "L-1", marta(address=[{"city": "Boston"}]))
    assert (replayed.changed, replayed.stale, replayed.record.version) == (False, True, 2)
    # Who means it names the version, or stamps the message.
    back = feed("lakeside", "L-1", marta(address=[{"city": "Boston"}]), expected_version=2)
    assert (back.changed, back.record.version) == (True, 3)
    stamped_back = feed("lakeside", "L-1", stamped("2026-02-01T00:00:00Z", address=[{"city": "Salem"}]))
    assert (stamped_back.changed, stamped_back.record.version) == (True, 4)


def test_a_replay_is_known_as_old_even_after_the_same_content_was_stamped_later(feed: Feed) -> None:
    feed("lakeside", "L-1", stamped("2026-01-01T00:00:00Z"))
    feed("lakeside", "L-1", stamped("2026-01-03T00:00:00Z"))
    late = feed("lakeside", "L-1", stamped("2026-01-02T00:00:00Z", gender="male"))
    assert (late.changed, late.stale) == (False, True)


def test_a_clock_far_ahead_does_not_shut_out_later_messages(feed: Feed, clock: object) -> None:
    feed("lakeside", "L-1", stamped("2999-01-01T00:00:00Z"))
    later = feed("lakeside", "L-1", stamped("2026-03-02T00:00:00Z", gender="other"))
    assert later.changed


def test_a_version_that_is_not_current_is_refused(feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    with pytest.raises(PreconditionFailed):
        feed("lakeside", "L-1", marta(gender="other"), expected_version=7)
    with pytest.raises(PreconditionFailed):
        feed("lakeside", "L-2", otto(), expected_version=1)
    assert feed("lakeside", "L-1", marta(gender="other"), expected_version=1).record.version == 2


@pytest.mark.parametrize("value", ["", " ", "x" * 256, "a\x00b", "a\nb", "\ud800"])
def test_an_identifier_that_cannot_be_kept_is_refused(service: IdentityService, value: str) -> None:
    with pytest.raises(Unprocessable):
        service.record("lakeside", Identifier(LAKESIDE, value), marta())
    assert service.source_record(Identifier(LAKESIDE, value)) is None
    assert service.person(value) is None


def test_another_member_cannot_write_a_record(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    with pytest.raises(Forbidden):
        service.record("harbor", Identifier(LAKESIDE, "L-1"), otto())
    with pytest.raises(Forbidden):
        service.delete("harbor", Identifier(LAKESIDE, "L-1"))


def test_a_failure_in_also_undoes_everything(feed: Feed, database: Database) -> None:
    def refuse(connection: sa.Connection, result: FeedResult) -> None:
        raise Conflict("no")

    with pytest.raises(Conflict):
        feed("lakeside", "L-1", marta(), also=refuse)
    assert count(database, source_records) == 0


# -- linking


def test_an_obvious_duplicate_links_and_the_reasons_are_kept(feed: Feed, database: Database) -> None:
    first = feed("lakeside", "L-1", marta())
    second = feed("harbor", "H-1", marta(name=[{"family": "Lindqvist", "given": ["Marta"]}]))
    with database.read() as connection:
        rows = connection.execute(sa.select(link_decisions).order_by(link_decisions.c.at)).all()
    assert second.record.person_id == first.record.person_id
    assert [row.verdict for row in rows] == ["new", "link"]
    assert rows[1].actor == "Organization/harbor"
    assert rows[1].person_before is None
    assert rows[1].person_after == first.record.person_id
    assert rows[1].probability > 0.99
    assert rows[1].model_version
    reasons = rows[1].reasons["candidates"][0]
    assert reasons["record"] == first.record.id
    assert {"birth_date", "family"} & {a["trait"] for a in reasons["agreements"]}


def test_a_stranger_is_a_person_of_her_own(feed: Feed, database: Database) -> None:
    one, other = feed("lakeside", "L-1", marta()), feed("harbor", "H-1", otto())
    assert one.record.person_id != other.record.person_id
    assert open_tasks(database) == []


def test_twins_stay_two_people(feed: Feed) -> None:
    def twin(given: str, order: int) -> Resource:
        name = [{"family": "Okafor", "given": [given]}]
        address = [{"line": ["12 Birch Ln"], "city": "Boston", "state": "MA", "postalCode": "02118"}]
        return otto(name=name, birthDate="2015-06-01", multipleBirthInteger=order, address=address)

    one, other = feed("lakeside", "L-1", twin("Ada", 1)), feed("harbor", "H-1", twin("Ida", 2))
    assert one.record.person_id != other.record.person_id


def named(suffix: str) -> Resource:
    """Everything agrees but the generation, which the model never links over."""
    return otto(name=[{"family": "Brandt", "given": ["Otto"], "suffix": [suffix]}])


def test_what_is_unsure_is_stored_and_goes_to_a_steward(feed: Feed, database: Database) -> None:
    known = feed("lakeside", "L-1", named("Sr"))
    doubtful = feed("harbor", "H-1", named("Jr"))
    assert doubtful.decision is not None
    assert doubtful.decision.verdict is Verdict.REVIEW
    assert doubtful.created
    assert doubtful.record.person_id != known.record.person_id
    assert open_tasks(database) == [(doubtful.record.id, known.record.person_id, "same-person")]


def test_new_content_that_leaves_no_doubt_closes_the_question(feed: Feed, database: Database) -> None:
    feed("lakeside", "L-1", named("Sr"))
    feed("harbor", "H-1", named("Jr"))
    feed("harbor", "H-1", marta())
    assert open_tasks(database) == []


def test_a_record_alone_moves_to_the_person_it_turns_out_to_be(
    service: IdentityService, feed: Feed, database: Database
) -> None:
    known = feed("lakeside", "L-1", marta())
    bare = {"resourceType": "Patient", "name": [{"family": "Unknown"}]}
    nobody = feed("harbor", "H-1", bare)
    left = nobody.record.person_id
    identified = feed("harbor", "H-1", marta())
    assert left != known.record.person_id
    assert identified.record.person_id == known.record.person_id
    person = service.person(left)
    assert person is not None
    assert person.id == known.record.person_id
    assert service.person_ids(left) == (known.record.person_id, left)
    with database.read() as connection:
        last = connection.execute(
            sa.select(link_decisions)
            .where(link_decisions.c.record_id == identified.record.id)
            .order_by(link_decisions.c.at.desc())
        ).first()
    assert last is not None
    assert (last.person_before, last.person_after) == (left, known.record.person_id)


def test_a_record_overwritten_with_another_patient_is_not_linked_away(feed: Feed, database: Database) -> None:
    brandt = feed("lakeside", "L-1", otto())
    lindqvist = feed("harbor", "H-1", marta())
    overwritten = feed("harbor", "H-1", otto())
    assert overwritten.record.person_id == lindqvist.record.person_id
    assert open_tasks(database) == [(overwritten.record.id, brandt.record.person_id, "same-person")]


def test_a_record_that_contradicts_its_person_stays_and_a_steward_is_asked(feed: Feed, database: Database) -> None:
    feed("lakeside", "L-1", marta())
    shared = feed("harbor", "H-1", marta())
    changed = feed("harbor", "H-1", otto())
    assert changed.record.person_id == shared.record.person_id
    assert open_tasks(database) == [(changed.record.id, shared.record.person_id, "contradiction")]


def test_a_shared_record_never_leaves_for_another_person(feed: Feed, database: Database) -> None:
    feed("lakeside", "L-1", marta())
    brandt = feed("lakeside", "L-2", otto())
    shared = feed("harbor", "H-1", marta())
    changed = feed("harbor", "H-1", otto())
    assert changed.record.person_id == shared.record.person_id
    asked = {(candidate, kind) for _, candidate, kind in open_tasks(database)}
    assert asked == {
        (brandt.record.person_id, "same-person"),
        (shared.record.person_id, "contradiction"),
    }


def test_moving_house_keeps_the_person_without_a_question(feed: Feed, database: Database) -> None:
    feed("lakeside", "L-1", marta())
    shared = feed("harbor", "H-1", marta())
    address = [{"line": ["77 Hill St"], "city": "Denver", "state": "CO", "postalCode": "80202"}]
    moved = feed("harbor", "H-1", marta(address=address, telecom=[{"system": "phone", "value": "303-555-0144"}]))
    assert moved.record.person_id == shared.record.person_id
    assert open_tasks(database) == []


def test_content_beside_the_traits_needs_no_decision(service: IdentityService, feed: Feed) -> None:
    first = feed("lakeside", "L-1", marta())
    changed = feed("lakeside", "L-1", marta(communication=[{"language": {"coding": [{"code": "sv"}]}}]))
    person = service.person(first.record.person_id)
    assert changed.changed
    assert changed.decision is None
    assert person is not None
    assert person.resource["communication"][0]["language"]["coding"] == [{"code": "sv"}]


# -- deleting


def test_a_deleted_record_is_gone_and_its_history_stays(
    service: IdentityService, feed: Feed, database: Database
) -> None:
    first = feed("lakeside", "L-1", marta())
    identifier = Identifier(LAKESIDE, "L-1")
    assert service.delete("lakeside", identifier) is True
    assert service.delete("lakeside", identifier) is False
    assert service.source_record(identifier) is None
    assert service.person(first.record.person_id) is None
    assert service.candidates(marta(), 10) == []
    assert count(database, source_record_versions) == 2


def test_deleting_one_record_leaves_the_person_to_the_others(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    kept = feed("harbor", "H-1", marta())
    service.delete("lakeside", Identifier(LAKESIDE, "L-1"))
    person = service.person(kept.record.person_id)
    assert person is not None
    assert [r.identifier for r in person.records] == [Identifier(HARBOR, "H-1")]
    assert {i["value"] for i in person.resource["identifier"]} == {"H-1", "219-09-9999"}


def test_feeding_a_deleted_record_again_revives_it(service: IdentityService, feed: Feed) -> None:
    first = feed("lakeside", "L-1", marta())
    service.delete("lakeside", Identifier(LAKESIDE, "L-1"))
    again = feed("lakeside", "L-1", marta())
    assert again.created
    assert again.record.version == 3
    assert again.record.person_id == first.record.person_id
    assert service.person(first.record.person_id) is not None


def test_a_reused_id_does_not_inherit_the_person(service: IdentityService, feed: Feed) -> None:
    first = feed("lakeside", "L-1", marta())
    service.delete("lakeside", Identifier(LAKESIDE, "L-1"))
    reused = feed("lakeside", "L-1", otto())
    assert reused.created
    assert reused.record.person_id != first.record.person_id
    assert family_of(service, reused) == "Brandt"


def test_an_old_message_does_not_revive_a_deleted_record(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", stamped("2026-01-01T00:00:00Z"))
    feed("lakeside", "L-1", stamped("2026-01-02T00:00:00Z", gender="other"))
    service.delete("lakeside", Identifier(LAKESIDE, "L-1"))
    late = feed("lakeside", "L-1", stamped("2026-01-01T00:00:00Z"))
    assert (late.created, late.stale) == (False, True)
    assert service.source_record(Identifier(LAKESIDE, "L-1")) is None
