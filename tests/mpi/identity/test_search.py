"""ITI-78 search over people: what each parameter matches, how they combine, pages, merged ids, and the indexes used."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from hie.core.database import Database
from hie.core.errors import BadRequest
from hie.mpi.golden import MOTHERS_MAIDEN_NAME
from hie.mpi.identity import Identifier, IdentityService, PatientPage
from hie.mpi.patient_search import conditions, instant_range, parse_query, split_or, split_token
from hie.mpi.tables import people
from tests.mpi.identity.conftest import HARBOR, LAKESIDE, Clock, Feed, marta, otto


def ask(service: IdentityService, *pairs: tuple[str, str]) -> PatientPage:
    return service.search(parse_query(pairs))


def found(service: IdentityService, *pairs: tuple[str, str]) -> set[str]:
    """First given names of everybody found."""
    page = ask(service, *pairs)
    assert page.total == len(page.people)
    return {person.resource["name"][0]["given"][0] for person in page.people}


@pytest.fixture
def community(feed: Feed) -> None:
    maiden = {"url": MOTHERS_MAIDEN_NAME, "valueString": "Dahl Öberg"}
    feed("lakeside", "L-1", marta(extension=[maiden]))
    feed("harbor", "H-1", marta())
    feed("lakeside", "L-2", otto(name=[{"family": "García López", "given": ["José", "Otto"]}]))
    feed(
        "meadow",
        "M-3",
        otto(
            name=[{"family": "O'Brien-Smith", "given": ["Niamh"]}],
            birthDate="2001-02",
            gender="female",
            address=[{"line": ["Flat 2", "17 Canal Walk"], "city": "Cork", "country": "IE", "postalCode": "T12"}],
            telecom=[{"system": "email", "value": "Niamh@Mail.example"}],
        ),
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("family", "lindqvist", {"Marta"}),
        ("family", "LIND", {"Marta"}),
        ("family", "qvist", set()),
        ("family", "garcia", {"José"}),
        ("family", "Lopez", {"José"}),
        ("family", "obrien", {"Niamh"}),
        ("family", "O’Brien Smith", {"Niamh"}),
        ("family", "smith", {"Niamh"}),
        ("family:exact", "García López", {"José"}),
        ("family:exact", "Garcia Lopez", set()),
        ("family:exact", "López", set()),
        ("family", "lindqvist,obrien", {"Marta", "Niamh"}),
        ("family", "---", set()),
        ("given", "jose", {"José"}),
        ("given", "otto", {"José"}),
        ("given", "ingrid", {"Marta"}),
        ("given:exact", "Marta", {"Marta"}),
        ("given:exact", "marta", set()),
        ("mothersMaidenName", "oberg", {"Marta"}),
        ("mothersMaidenName:exact", "Dahl Öberg", {"Marta"}),
        ("gender", "female", {"Marta", "Niamh"}),
        ("gender", "http://hl7.org/fhir/administrative-gender|male", {"José"}),
        ("gender", "male,female", {"Marta", "Niamh", "José"}),
        ("telecom", "6175550107", {"Marta"}),
        ("telecom", "+1 (617) 555-0107", {"Marta"}),
        ("telecom", "phone|617-555-0107", {"Marta"}),
        ("telecom", "email|617-555-0107", set()),
        ("telecom", "niamh@mail.EXAMPLE", {"Niamh"}),
        ("address", "boston", {"Marta"}),
        ("address", "canal walk", {"Niamh"}),
        ("address", "17 canal", {"Niamh"}),
        ("address", "ie", {"Niamh"}),
        ("address:exact", "4 Quay Rd", {"Marta"}),
        ("address-city", "bos", {"Marta"}),
        ("address-city:exact", "Boston", {"Marta"}),
        ("address-city", "quay", set()),
        ("address-state", "MA", {"Marta"}),
        ("address-postalcode", "021", {"Marta"}),
        ("address-country", "IE", {"Niamh"}),
        ("identifier", f"{LAKESIDE}|L-1", {"Marta"}),
        ("identifier", "H-1", {"Marta"}),
        ("identifier", "h-1", set()),
        ("identifier", f"{HARBOR}|L-1", set()),
        ("identifier", "|L-1", set()),
        ("identifier", "http://hl7.org/fhir/sid/us-ssn|219-09-9999", {"Marta"}),
        ("identifier", f"{LAKESIDE}|L-1,{LAKESIDE}|L-2", {"Marta", "José"}),
        ("identifier", f"{LAKESIDE}|", {"Marta", "José"}),
        ("birthdate", "1949-11-02", {"Marta"}),
        ("birthdate", "1949-11", {"Marta"}),
        ("birthdate", "1949", {"Marta"}),
        ("birthdate", "eq2001-02", {"Niamh"}),
        ("birthdate", "2001-02-03", set()),
        ("birthdate", "ap2001-02-03", {"Niamh"}),
        ("birthdate", "ne1949", {"José", "Niamh"}),
        ("birthdate", "lt1983-05-19", {"Marta"}),
        ("birthdate", "le1983-05-19", {"Marta", "José"}),
        ("birthdate", "gt2001-02-10", {"Niamh"}),
        ("birthdate", "sa2001-02-10", set()),
        ("birthdate", "ge1983-05-19", {"José", "Niamh"}),
        ("birthdate", "eb2001", {"Marta", "José"}),
        ("active", "true", {"Marta", "José", "Niamh"}),
        ("active", "false", set()),
    ],
)
@pytest.mark.usefixtures("community")
def test_each_parameter_alone(service: IdentityService, name: str, value: str, expected: set[str]) -> None:
    assert found(service, (name, value)) == expected


@pytest.mark.usefixtures("community")
def test_parameters_combine_as_and(service: IdentityService) -> None:
    assert found(service, ("family", "smith"), ("gender", "female")) == {"Niamh"}
    assert found(service, ("family", "smith"), ("gender", "male")) == set()
    assert found(service, ("family", "lind"), ("birthdate", "1949-11-02")) == {"Marta"}
    assert found(service, ("birthdate", "gt1980"), ("birthdate", "lt1990")) == {"José"}
    assert found(service, ("given", "jose"), ("given", "otto")) == {"José"}
    assert found(service, ("identifier", f"{LAKESIDE}|L-1"), ("identifier", f"{HARBOR}|H-1")) == {"Marta"}


@pytest.mark.usefixtures("community")
def test_a_person_shows_every_active_source(service: IdentityService) -> None:
    (person,) = ask(service, ("family", "lindqvist")).people
    assert {r.identifier for r in person.records} == {Identifier(LAKESIDE, "L-1"), Identifier(HARBOR, "H-1")}


def test_search_follows_what_is_fed(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    feed("lakeside", "L-1", marta(name=[{"family": "Dahl", "given": ["Marta"]}]))
    assert found(service, ("family", "lindqvist")) == set()
    assert found(service, ("family", "dahl")) == {"Marta"}
    service.delete("lakeside", Identifier(LAKESIDE, "L-1"))
    assert found(service, ("family", "dahl")) == set()


def test_last_updated_moves_with_the_golden_record_only(service: IdentityService, feed: Feed, clock: Clock) -> None:
    feed("lakeside", "L-1", marta())
    clock.now += timedelta(days=1)
    middle = clock.now.isoformat()
    feed("harbor", "H-9", otto())
    feed("lakeside", "L-1", marta(contact=[{"name": {"text": "nobody's business"}}]))
    assert found(service, ("_lastUpdated", f"lt{middle}")) == {"Marta"}
    assert found(service, ("_lastUpdated", f"ge{middle}")) == {"Otto"}
    assert found(service, ("_lastUpdated", "2026-03-01")) == {"Marta"}
    assert found(service, ("_lastUpdated", "gt2026-03-01")) == {"Otto"}
    assert found(service, ("_lastUpdated", "ne2026"), ("family", "l")) == set()


# -- pages


def test_pages_hold_everybody_once_while_people_arrive(service: IdentityService, feed: Feed) -> None:
    letters = "abcdefghijk"
    for n, letter in enumerate(letters):
        feed(
            "lakeside",
            f"L-{n}",
            otto(name=[{"family": "Brandt" + letter * 4}], birthDate=f"19{30 + n * 5}-0{n % 9 + 1}-11", telecom=[]),
        )
    seen: list[str] = []
    cursor: str | None = None
    while True:
        pairs = [("family", "brandt"), ("_count", "4"), *([("_cursor", cursor)] if cursor else [])]
        page = ask(service, *pairs)
        seen += [person.id for person in page.people]
        assert len(page.people) <= 4
        cursor = page.cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == page.total > 4


@pytest.mark.usefixtures("community")
def test_a_count_of_zero_only_counts(service: IdentityService) -> None:
    page = ask(service, ("gender", "female"), ("_count", "0"))
    assert (page.total, page.people, page.cursor) == (2, (), None)


# -- ids


def test_people_are_found_by_id_and_any_of_several(service: IdentityService, feed: Feed) -> None:
    one, two = feed("lakeside", "L-1", marta()), feed("lakeside", "L-2", otto())
    ids = f"{one.record.person_id},{two.record.person_id},nobody"
    assert found(service, ("_id", ids)) == {"Marta", "Otto"}
    assert found(service, ("_id", ids), ("gender", "male")) == {"Otto"}
    assert found(service, ("_id", ids), ("_id", two.record.person_id)) == {"Otto"}
    assert found(service, ("_id:exact", one.record.person_id.upper())) == set()


def test_a_merged_id_brings_its_survivor(service: IdentityService, feed: Feed) -> None:
    old, new = feed("lakeside", "L-1", marta()), feed("lakeside", "L-2", otto())
    service.merge("lakeside", Identifier(LAKESIDE, "L-1"), Identifier(LAKESIDE, "L-2"))
    page = ask(service, ("_id", old.record.person_id))
    survivor = new.record.person_id
    assert page.total == 1
    assert [(i, p.id) for i, p in page.replaced] == [(old.record.person_id, survivor)]
    assert [p.id for p in page.people] == [survivor]
    assert page.included == {survivor}
    both = ask(service, ("_id", f"{old.record.person_id},{survivor}"))
    assert (both.total, both.included) == (2, frozenset())
    assert ask(service, ("_id", old.record.person_id), ("active", "true")).total == 0
    assert ask(service, ("_id", old.record.person_id), ("active", "false")).total == 1
    assert ask(service, ("_id", old.record.person_id), ("family", "lindqvist")).total == 0


# -- candidates


def test_candidates_come_best_first_with_reasons(service: IdentityService, feed: Feed) -> None:
    known = feed("lakeside", "L-1", marta())
    feed("lakeside", "L-2", otto())
    best = service.candidates({"resourceType": "Patient", "name": marta()["name"], "birthDate": "1949-11-02"}, 5)
    assert [c.person.id for c in best] == [known.record.person_id]
    assert best[0].probability > 0.5
    assert {a.trait for a in best[0].agreements} >= {"family", "given", "birth_date"}
    assert service.candidates({"resourceType": "Patient"}, 5) == []


# -- parameters


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("family", "")],
        [("family", "  ")],
        [("_count", "5")],
        [("_count", "5"), ("nonsense", "x")],
        [("_cursor", "MTphYmM")],
        [("family:contains", "a")],
        [("family:missing", "true")],
        [("gender:not", "male")],
        [("birthdate:exact", "1950")],
        [("gender", "f")],
        [("active", "maybe")],
        [("birthdate", "2024-02-30")],
        [("birthdate", "1950-1-1")],
        [("birthdate", "xx1950")],
        [("birthdate", "eq")],
        [("birthdate", "0000-01-01")],
        [("_lastUpdated", "yesterday")],
        [("_lastUpdated", "2026-01-01T10:00:00")],
        [("_lastUpdated", "9999-12-31")],
        [("identifier", "|")],
        [("telecom", "|")],
        [("family", "a"), ("_count", "-1")],
        [("family", "a"), ("_count", "many")],
        [("family", "a"), ("_count", "1" * 30)],
        [("family", "a"), ("_cursor", "not-a-cursor")],
        [("family", "a"), ("_cursor", "é")],
        [("family", ",".join("a" * 101))],
    ],
)
def test_queries_that_mean_nothing_are_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(BadRequest):
        parse_query(pairs)


def test_unknown_parameters_are_left_out_or_refused_as_asked() -> None:
    pairs = [("family", "a"), ("nonsense", "x"), ("_has:Observation:patient:code", "1"), ("_count", "5")]
    assert parse_query(pairs).honoured == (("family", "a"), ("_count", "5"))
    with pytest.raises(BadRequest):
        parse_query(pairs, strict=True)


def test_only_pure_domain_parameters_filter_identifiers() -> None:
    assert parse_query([("identifier", "urn:a|,urn:b|")]).domains == {"urn:a", "urn:b"}
    assert parse_query([("identifier", "urn:a|,urn:b|1")]).domains == frozenset()
    assert parse_query([("identifier", "urn:a|1"), ("identifier", "urn:b|")]).domains == {"urn:b"}


def test_the_count_is_capped() -> None:
    assert parse_query([("family", "a"), ("_count", "5000")]).limit == 100


def test_escapes_are_understood() -> None:
    assert split_or(r"a\,b,c") == [r"a\,b", "c"]
    assert split_or("a\\\\,b") == ["a\\\\", "b"]
    assert split_token(r"urn:a|x\|y\,z\\") == ("urn:a", "x|y,z\\")
    assert split_token("plain") == (None, "plain")
    assert split_token("|bare") == ("", "bare")


def test_instants_compare_at_the_precision_given() -> None:
    start = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert instant_range("2026-01-02T03:04:05Z") == (start, start + timedelta(seconds=1))
    assert instant_range("2026-01-02T04:04:05.000+01:00")[0] == start
    assert instant_range("2026-01-02T04:04:05 01:00")[0] == start


def test_identifiers_with_special_characters_are_found(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "a,b|c\\%_", marta())
    assert found(service, ("identifier", LAKESIDE + r"|a\,b\|c\\%_")) == {"Marta"}
    assert found(service, ("identifier", LAKESIDE + "|a%")) == set()


# -- indexes


@pytest.mark.parametrize(
    "pair",
    [
        ("family", "lindqvist"),
        ("family:exact", "Lindqvist"),
        ("identifier", f"{LAKESIDE}|L-1"),
        ("birthdate", "1949-11-02"),
        ("address", "boston"),
        ("telecom", "617-555-0107"),
    ],
)
def test_searches_use_an_index(sqlite_database: Database, pair: tuple[str, str]) -> None:
    query = sa.select(people.c.id).where(people.c.active, *conditions(parse_query([pair])))
    compiled = query.compile(sqlite_database.engine, compile_kwargs={"literal_binds": True})
    with sqlite_database.read() as connection:
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]
    assert any("person_tokens" in step and "INDEX ix_person_tokens" in step and "SEARCH" in step for step in plan), plan
    assert not any(step.startswith("SCAN person_tokens") for step in plan), plan
