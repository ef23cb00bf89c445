"""People of whom somebody may know only a part: found, counted and paged by that part alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from hie.core.database import Database
from hie.core.errors import BadRequest
from hie.core.ids import new_id
from hie.mpi import identity as identity_module
from hie.mpi.golden import golden
from hie.mpi.identity import IdentityService, PatientPage, Person
from hie.mpi.patient_search import matches, parse_query
from hie.mpi.tables import link_decisions, review_tasks
from tests.mpi.identity.conftest import HARBOR, LAKESIDE, MEADOW, Feed, marta, otto

SECRET = "meadow"


def shown(person: Person) -> Person | None:
    """Without what meadow fed."""
    records = tuple(record for record in person.records if record.member_id != SECRET)
    if not records:
        return None
    meta = person.resource["meta"]
    resource = {"resourceType": "Patient", "id": person.id, "meta": meta, **golden(records)}
    return replace(person, records=records, resource=resource)


def search(service: IdentityService, *parameters: tuple[str, str], veiled: bool = True) -> PatientPage:
    query = parse_query(parameters)
    return service.search(query, shown=shown, doubtful={SECRET}) if veiled else service.search(query)


def found(page: PatientPage) -> tuple[int, int]:
    return len(page.people), page.total


@pytest.fixture
def community(service: IdentityService, feed: Feed) -> IdentityService:
    """Marta at lakeside and, with another telephone and name, at meadow; Otto at meadow alone; Ada at harbor."""
    feed("lakeside", "l-1", marta())
    alias = [*marta()["name"], {"use": "old", "family": "Berg", "given": ["Marta"]}]
    feed("meadow", "m-1", marta(name=alias, telecom=[{"system": "phone", "value": "781-555-0199"}]))
    feed("meadow", "m-2", otto())
    feed("harbor", "h-1", otto(name=[{"family": "Okafor", "given": ["Ada"]}], birthDate="1990-07-14", telecom=[]))
    return service


@pytest.mark.parametrize(
    ("parameters", "by_all", "by_what_may_be_known"),
    [
        ((("family", "Lindqvist"),), 1, 1),
        ((("family", "Berg"),), 1, 0),
        ((("telecom", "781-555-0199"),), 1, 0),
        ((("identifier", f"{MEADOW}|m-1"),), 1, 0),
        ((("identifier", f"{MEADOW}|"),), 2, 0),
        ((("identifier", f"{LAKESIDE}|l-1"),), 1, 1),
        ((("family", "Brandt"), ("birthdate", "1983-05-19")), 1, 0),
        ((("gender", "male"),), 2, 1),
        ((("gender", "male,female"),), 3, 2),
    ],
)
def test_nobody_is_found_or_counted_by_what_may_not_be_known(
    community: IdentityService,
    parameters: tuple[tuple[str, str], ...],
    by_all: int,
    by_what_may_be_known: int,
) -> None:
    assert found(search(community, *parameters, veiled=False)) == (by_all, by_all)
    page = search(community, *parameters)
    assert found(page) == (by_what_may_be_known, by_what_may_be_known)
    assert MEADOW not in str([person.resource for person in page.people])


def test_pages_have_no_gaps(community: IdentityService, feed: Feed) -> None:
    for n, given in enumerate(("Ann", "Boris", "Chiara", "Dmitri", "Edda", "Farouk")):
        born = f"19{40 + 9 * n}-0{n + 1}-1{n}"
        person = {"resourceType": "Patient", "name": [{"family": "Falk", "given": [given]}], "birthDate": born}
        feed("meadow" if n % 2 else "harbor", f"x-{n}", person)
    ids: list[str] = []
    cursor: tuple[tuple[str, str], ...] = ()
    while True:
        page = search(community, ("family", "Falk"), ("_count", "2"), *cursor)
        assert page.total == 3
        ids += [person.id for person in page.people]
        if page.cursor is None:
            break
        assert len(page.people) == 2
        cursor = (("_cursor", page.cursor),)
    assert len(set(ids)) == len(ids) == 3


def test_an_id_of_somebody_unknown_is_not_found(community: IdentityService) -> None:
    (brandt,) = search(community, ("family", "Brandt"), veiled=False).people
    assert found(search(community, ("_id", brandt.id), veiled=False)) == (1, 1)
    assert found(search(community, ("_id", brandt.id))) == (0, 0)


def test_a_search_that_would_look_at_too_many_is_refused(
    community: IdentityService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_module, "MAX_DOUBTFUL", 1)
    with pytest.raises(BadRequest):
        search(community, ("gender", "male,female"))


def test_candidates_are_weighed_by_what_may_be_known(community: IdentityService) -> None:
    described = marta(telecom=[{"system": "phone", "value": "781-555-0199"}])
    (by_all,) = community.candidates(described, 5)
    (by_part,) = community.candidates(described, 5, shown=shown)
    assert by_part.weight < by_all.weight
    assert {record.member_id for record in by_part.person.records} == {"lakeside"}
    by_his_own = community.candidates(otto(), 5)
    assert any("Brandt" in str(c.person.resource["name"]) for c in by_his_own)
    assert not any("Brandt" in str(c.person.resource["name"]) for c in community.candidates(otto(), 5, shown=shown))


@pytest.mark.parametrize(
    "parameters",
    [
        (("family", "lind"),),
        (("family", "qvist"),),
        (("family:exact", "Lindqvist"),),
        (("family:exact", "lindqvist"),),
        (("given", "ingrid"),),
        (("address", "quay"),),
        (("address-city", "Bos"),),
        (("telecom", "phone|617-555-0107"),),
        (("telecom", "email|617-555-0107"),),
        (("birthdate", "1949"),),
        (("birthdate", "gt1949-11-02"),),
        (("birthdate", "le1949-11"),),
        (("birthdate", "ne1949-11-02"),),
        (("gender", "female,other"),),
        (("identifier", "l-1"),),
        (("identifier", f"{HARBOR}|l-1"),),
        (("_lastUpdated", "ge2026-03-01"),),
        (("_lastUpdated", "lt2026-03-01"),),
        (("mothersMaidenName", "berg"),),
    ],
)
def test_the_search_in_memory_agrees_with_the_database(
    service: IdentityService, feed: Feed, parameters: tuple[tuple[str, str], ...]
) -> None:
    feed("lakeside", "l-1", marta())
    query = parse_query(parameters)
    (person,) = service.search(parse_query((("family", "Lindqvist"),))).people
    assert matches(query, person.resource) is bool(service.search(query).people)


# -- unlinks


@pytest.fixture
def unlinked(service: IdentityService, feed: Feed, database: Database) -> Callable[[str], dict[str, Any]]:
    """Two people, as an unlink leaves them, with its task in a given state."""

    def make(status: str) -> dict[str, Any]:
        first, second = feed("lakeside", "l-1", marta()).record, feed("harbor", "h-9", otto()).record
        decision = {
            "id": new_id(),
            "record_id": second.id,
            "at": second.updated,
            "event": "split",
            "actor": "steward",
            "reasons": {},
            "person_before": first.person_id,
            "person_after": second.person_id,
        }
        task = {
            "id": new_id(),
            "record_id": second.id,
            "candidate_id": first.person_id,
            "decision_id": decision["id"],
            "kind": "same-person",
            "status": status,
            "created": second.updated,
        }
        with database.write() as connection:
            connection.execute(sa.insert(link_decisions), decision)
            connection.execute(sa.insert(review_tasks), task)
        return {"first": first.person_id, "second": second.person_id}

    return make


def test_after_an_unlink_the_halves_are_unsettled_until_a_steward_decides(
    service: IdentityService, unlinked: Callable[[str], dict[str, Any]]
) -> None:
    half = unlinked("open")
    assert service.unsettled_with(half["first"]) == (half["second"],)
    assert service.unsettled_with(half["second"]) == (half["first"],)


def test_a_settled_unlink_leaves_two_people(
    service: IdentityService, unlinked: Callable[[str], dict[str, Any]]
) -> None:
    half = unlinked("separate")
    assert service.unsettled_with(half["first"]) == ()
