"""Feeds at the same moment, from several threads, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from hie.core.errors import Unprocessable
from hie.core.fhir import Resource
from hie.mpi.identity import FeedResult, Identifier, IdentityService
from tests.mpi.identity.conftest import LAKESIDE, Feed, marta, otto

T = TypeVar("T")


def together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run all calls from one starting gun."""
    gun = Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        gun.wait(timeout=30)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def test_twenty_feeds_of_one_new_id_create_it_once(service: IdentityService, feed: Feed) -> None:
    results = together([lambda: feed("lakeside", "L-1", marta()) for _ in range(20)])
    assert sorted(r.created for r in results) == [False] * 19 + [True]
    assert len({r.record.person_id for r in results}) == 1
    assert {r.record.version for r in results} == {1}


STRANGERS = (
    ("Ana", "Castellanos", "1931-04-17", "Boston"),
    ("Bo", "Eriksen", "1978-12-03", "Salem"),
    ("Chidi", "Nwosu", "2001-07-29", "Quincy"),
    ("Dov", "Halpern", "1955-02-11", "Lowell"),
    ("Esi", "Quartey", "1990-10-08", "Newton"),
    ("Farid", "Zamani", "1966-06-24", "Lynn"),
)


def test_two_members_feeding_one_new_person_make_one_person(service: IdentityService, feed: Feed) -> None:
    calls: list[Callable[[], FeedResult]] = []
    for n, (given, family, born, city) in enumerate(STRANGERS):
        name, address = [{"family": family, "given": [given]}], [{"line": [f"{n}7 {family} Way"], "city": city}]
        phone = [{"system": "phone", "value": f"617-555-{n}{n}0{n}"}]
        body = otto(name=name, birthDate=born, address=address, telecom=phone)
        calls += [lambda b=body, v=f"L-{n}": feed("lakeside", v, b), lambda b=body, v=f"H-{n}": feed("harbor", v, b)]
    results = together(calls)
    pairs = {(results[i].record.person_id, results[i + 1].record.person_id) for i in range(0, len(results), 2)}
    assert all(one == other for one, other in pairs)
    assert len(pairs) == len(STRANGERS)


def test_updates_of_two_records_of_one_person_both_reach_the_golden_record(
    service: IdentityService, feed: Feed
) -> None:
    person_id = feed("lakeside", "L-1", marta()).record.person_id
    assert feed("harbor", "H-1", marta()).record.person_id == person_id

    def language(code: str) -> Resource:
        return marta(communication=[{"language": {"coding": [{"code": code}]}}])

    for n in range(5):
        together(
            [
                lambda n=n: feed("lakeside", "L-1", language(f"a{n}")),
                lambda n=n: feed("harbor", "H-1", language(f"b{n}")),
            ]
        )
        person = service.person(person_id)
        assert person is not None
        spoken = {c["language"]["coding"][0]["code"] for c in person.resource["communication"]}
        assert spoken == {f"a{n}", f"b{n}"}


def test_merges_against_each_other_leave_one_survivor(service: IdentityService, feed: Feed) -> None:
    one, two = Identifier(LAKESIDE, "L-1"), Identifier(LAKESIDE, "L-2")
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())

    def attempt(subsumed: Identifier, survivor: Identifier) -> str:
        try:
            service.merge("lakeside", subsumed, survivor)
        except Unprocessable:
            return "refused"
        return "merged"

    outcomes = together([lambda: attempt(one, two), lambda: attempt(two, one)])
    assert sorted(outcomes) == ["merged", "refused"]


def test_feeds_merges_and_deletes_at_once_keep_every_record_with_a_living_person(
    service: IdentityService, feed: Feed
) -> None:
    for n in range(3):
        for m in range(4):
            feed("lakeside", f"L-{n}-{m}", marta() if m % 2 else otto())
        calls: list[Callable[[], object]] = [
            lambda n=n: service.merge("lakeside", Identifier(LAKESIDE, f"L-{n}-0"), Identifier(LAKESIDE, f"L-{n}-1")),
            lambda n=n: service.delete("lakeside", Identifier(LAKESIDE, f"L-{n}-2")),
            lambda n=n: feed("lakeside", f"L-{n}-3", otto()),
            lambda n=n: feed("harbor", f"H-{n}-0", marta()),
            lambda n=n: feed("meadow", f"M-{n}-0", otto()),
            lambda n=n: feed("meadow", f"M-{n}-1", marta(gender="other")),
        ]
        together(calls)
        for member, value in (("lakeside", f"L-{n}-1"), ("lakeside", f"L-{n}-3"), ("harbor", f"H-{n}-0")):
            record = service.source_record(Identifier({"lakeside": LAKESIDE}.get(member, "urn:oid:2.999.1.2"), value))
            assert record is not None
            person = service.person(record.person_id)
            assert person is not None
            assert person.id == record.person_id
            assert record.id in {r.id for r in person.records}
