"""The consent store: versions kept, current ones found, policies compiled once per version."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from hie.consent import service as service_module
from hie.consent.policy import Request, ResourceView, decide
from hie.consent.service import ConsentService, Subject, current_keys, keys_of_records
from hie.consent.tables import consent_versions
from hie.core.caller import Caller, Role
from hie.core.errors import Conflict, NotFound, PreconditionFailed, Unprocessable
from hie.core.scopes import Scopes
from tests.consent.strategies import concept

START = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def consents(database, clock):
    return service_of(database, clock)


def service_of(database, clock, default="permit"):
    return ConsentService(database, clock, default, lambda: {"summit": "deny"}, lambda: frozenset({"clinic"}))


def author(organization="lakeside"):
    return Caller(organization, organization.title(), Role.MEMBER, frozenset({"TREAT"}), Scopes(), "s1")


def consent(kind="deny", **elements):
    return {
        "resourceType": "Consent",
        "status": "active",
        "scope": concept("patient-privacy"),
        "category": [concept("59284-0")],
        "patient": {"reference": "Patient/p1"},
        "dateTime": "2026-01-01",
        "provision": {"type": kind},
        **elements,
    }


def released(service, *people):
    request = Request(frozenset({"Organization/lakeside"}), frozenset({"TREAT"}), Role.CLINICIAN, "lakeside", START)
    return decide(service.policy(people or ("p1",)), request, ResourceView("Condition", "x", "meadow")).permit


def test_a_consent_is_stored_with_its_id_version_and_time(consents):
    stored = consents.create(consent(meta={"profile": ["http://example.org/p"], "versionId": "77"}), "p1", author())
    assert stored.version == 1
    assert stored.resource["id"] == stored.id
    assert stored.resource["meta"] == {
        "profile": ["http://example.org/p"],
        "versionId": "1",
        "lastUpdated": "2026-05-01T12:00:00.000000Z",
    }
    assert (stored.person_id, stored.author_organization, stored.updated) == ("p1", "lakeside", START)
    assert consents.read(stored.id) == stored
    assert consents.read("another") is None


def test_every_version_is_kept_as_it_was(consents, clock):
    first = consents.create(consent("deny"), "p1", author())
    clock.now += timedelta(hours=1)
    second = consents.update(first.id, consent("permit"), "p1", author("exchange"))
    assert consents.read(first.id) == second
    assert consents.read(first.id, 1) == first
    assert consents.read(first.id, 2) == second
    assert consents.read(first.id, 3) is None


def test_a_person_without_consents_has_the_defaults(consents):
    found = consents.policy(("p1",))
    assert found.consents == ()
    assert found.default("meadow") == "normal"
    assert found.default("summit") == "deny"
    assert found.part2_members == {"clinic"}
    assert found.as_of == START


def test_the_current_version_governs_and_each_change_is_seen_at_once(consents):
    assert released(consents)
    stored = consents.create(consent("deny"), "p1", author())
    assert not released(consents)
    consents.update(stored.id, consent("deny", status="inactive"), "p1", author())
    assert released(consents)


def test_a_consent_of_an_id_that_the_person_had_before_governs_too(consents):
    consents.create(consent("deny"), "p-old", author())
    assert released(consents, "p1")
    assert not released(consents, "p1", "p-old")


def test_a_change_by_another_process_is_seen_at_once(database, clock, consents):
    other = service_of(database, clock)
    stored = consents.create(consent("deny"), "p1", author())
    assert not released(other)
    consents.update(stored.id, consent("permit"), "p1", author())
    assert released(other)


def test_a_version_is_compiled_once(consents, monkeypatch):
    consents.create(consent(), "p1", author())
    compiled = []

    def counting(resource, version, person_id):
        compiled.append(version)
        return original(resource, version, person_id)

    original = service_module.compile_consent
    monkeypatch.setattr(service_module, "compile_consent", counting)
    for _ in range(5):
        consents.policy(("p1",))
    assert compiled == [1]


def test_what_else_is_written_commits_or_fails_with_the_consent(consents):
    seen = []

    def refuse(connection, stored):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        consents.create(consent(), "p1", author(), also=refuse)
    assert released(consents)
    stored = consents.create(consent(), "p1", author(), also=lambda connection, stored: seen.append(stored.reference))
    with pytest.raises(RuntimeError):
        consents.update(stored.id, consent("permit"), "p1", author(), also=refuse)
    assert not released(consents)
    assert seen == [f"Consent/{stored.id}/_history/1"]


def test_a_version_that_is_not_current_is_not_overwritten(consents):
    stored = consents.create(consent(), "p1", author())
    consents.update(stored.id, consent(), "p1", author(), expected_version=1)
    with pytest.raises(PreconditionFailed):
        consents.update(stored.id, consent("permit"), "p1", author(), expected_version=1)
    with pytest.raises(NotFound):
        consents.update("another", consent(), "p1", author())
    assert consents.read(stored.id).version == 2


def test_changes_at_the_same_moment_lose_nothing(consents):
    stored = consents.create(consent(), "p1", author())
    made, refused = [], []

    def change():
        try:
            made.append(consents.update(stored.id, consent(), "p1", author()).version)
        except Conflict:
            refused.append(1)

    threads = [threading.Thread(target=change) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) + len(refused) == 8
    assert sorted(made) == list(range(2, 2 + len(made)))


def test_only_one_of_two_changes_to_the_version_they_read_is_taken(consents):
    stored = consents.create(consent(), "p1", author())
    outcomes = []

    def change():
        try:
            consents.update(stored.id, consent(), "p1", author(), expected_version=1)
            outcomes.append("taken")
        except (Conflict, PreconditionFailed):
            outcomes.append("refused")

    threads = [threading.Thread(target=change) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 5 + ["taken"]


def test_search_gives_current_versions_by_person_status_and_page(consents):
    ids = sorted(consents.create(consent(), "p1", author()).id for _ in range(5))
    consents.create(consent(), "p2", author())
    consents.update(ids[2], consent(status="inactive"), "p1", author())
    assert [s.id for s in consents.search(("p1",), limit=10)] == ids
    assert [s.id for s in consents.search(("p1",), limit=2, after=ids[1])] == ids[2:4]
    assert [s.id for s in consents.search(("p1",), statuses={"inactive"}, limit=10)] == [ids[2]]
    assert [s.version for s in consents.search(("p1",), statuses={"inactive"}, limit=10)] == [2]
    assert len(consents.search(None, limit=10)) == 6
    assert consents.search((), limit=10) == []


def test_a_consent_without_date_is_not_stored(consents):
    undated = consent()
    del undated["dateTime"]
    with pytest.raises(Unprocessable):
        consents.create(undated, "p1", author())
    assert consents.search(None, limit=1) == []


def test_what_cannot_be_honoured_is_told(consents):
    stored = consents.create(
        consent(provision={"type": "deny", "actor": [{"reference": {"display": "aunt"}}]}), "p1", author()
    )
    assert any("actor" in sentence for sentence in stored.warnings)
    assert consents.read(stored.id).warnings == stored.warnings


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (current_keys(("p1", "p2")), "ix_consent_versions_person_id_consent_id_version"),
        (keys_of_records([("urn:a", "1"), ("urn:b", "2")]), "ix_consent_versions_filed_system_filed_value"),
    ],
    ids=["of people", "of records"],
)
def test_the_queries_of_every_emergency_use_an_index(database, consents, query, index):
    for n in range(40):
        consents.create(consent(), f"p{n}", author(), filed_for=("urn:a", str(n)))
    compiled = query.compile(database.engine, compile_kwargs={"literal_binds": True})
    with database.write() as connection:
        if database.is_sqlite:
            plan = "\n".join(row.detail for row in connection.execute(sa.text(f"EXPLAIN QUERY PLAN {compiled}")))
            assert "SCAN" not in plan, plan
        else:
            connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
            plan = "\n".join(connection.scalars(sa.text(f"EXPLAIN {compiled}")))
        assert index in plan, plan


def test_rows_are_only_ever_added(database, consents):
    stored = consents.create(consent("deny"), "p1", author())
    with database.read() as connection:
        before = connection.execute(sa.select(consent_versions)).all()
    consents.update(stored.id, consent("permit"), "p1", author())
    with database.read() as connection:
        after = connection.execute(sa.select(consent_versions).order_by(consent_versions.c.version)).all()
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1


# -- consents follow the person's records


L1, M1 = ("urn:oid:2.999.1.1", "l-1"), ("urn:oid:2.999.1.2", "m-1")


def released_to(service, person, *records, halves=()):
    request = Request(frozenset({"Organization/lakeside"}), frozenset({"TREAT"}), Role.CLINICIAN, "lakeside", START)
    policy = service.policy((person,), Subject(records=frozenset(records), halves=halves))
    return decide(policy, request, ResourceView("Condition", "x", "meadow"))


def test_a_consent_follows_the_record_that_it_was_filed_for(consents):
    consents.create(consent("deny"), "p1", author(), filed_for=M1)
    assert not released_to(consents, "p1", L1, M1).permit
    # An unlink gave meadow's record to somebody else: so is its consent.
    assert released_to(consents, "p1", L1).permit
    assert not released_to(consents, "p2", M1).permit


def test_the_next_version_is_filed_for_the_same_record(consents):
    stored = consents.create(consent("permit"), "p1", author(), filed_for=M1)
    again = consents.update(stored.id, consent("deny"), "p1", author())
    assert again.filed_for == consents.read(stored.id).filed_for == M1
    assert consents.read(stored.id, 1).filed_for == M1


def test_a_consent_of_the_person_as_such_stays_with_the_person(consents):
    consents.create(consent("deny"), "p1", author())
    assert not released_to(consents, "p1", L1).permit
    assert released_to(consents, "p2", M1).permit


def test_until_an_unlink_is_settled_the_stricter_counts_for_both(consents, clock):
    stored = consents.create(consent("deny"), "p1", author())
    clock.now += timedelta(hours=1)
    halves = ((("p1",), clock.now),)
    unsettled = released_to(consents, "p2", M1, halves=halves)
    assert (unsettled.permit, unsettled.rule) == (False, "unsettled")
    assert unsettled.consent == stored.reference
    # Filed again after the unlink, it is p1's alone.
    consents.update(stored.id, consent("deny"), "p1", author())
    assert released_to(consents, "p2", M1, halves=halves).permit
    assert not released_to(consents, "p1", L1).permit


def test_what_was_filed_for_a_record_is_settled(consents, clock):
    consents.create(consent("deny"), "p1", author(), filed_for=L1)
    clock.now += timedelta(hours=1)
    assert released_to(consents, "p2", M1, halves=((("p1",), clock.now),)).permit


def test_a_permit_of_the_other_half_permits_nothing(consents, clock):
    consents.create(consent("permit"), "p1", author())
    consents.create(consent("deny"), "p2", author())
    clock.now += timedelta(hours=1)
    assert not released_to(consents, "p2", M1, halves=((("p1",), clock.now),)).permit


def test_what_has_no_effect_is_work_until_it_is_filed_again_or_ended(consents):
    says_nothing = {**consent(), "provision": {}}
    about_nothing = {**consent(), "scope": {"coding": [{"code": "adr"}]}, "category": []}
    first = consents.create(says_nothing, "p1", author())
    second = consents.create(about_nothing, "p2", author())
    consents.create(consent(), "p3", author())
    assert {stored.id for stored in consents.without_effect(10)} == {first.id, second.id}
    assert any("neither" in sentence.lower() for sentence in first.warnings)
    consents.update(first.id, consent(), "p1", author())
    consents.update(second.id, {**about_nothing, "status": "inactive"}, "p2", author())
    assert consents.without_effect(10) == []
