"""Searching by little: what is found, in what order, with which reasons, and through which indexes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import sqlalchemy as sa

from fixtures.populations import Record, generate, patient
from hie.core.database import Database
from hie.core.fhir import Resource
from hie.mpi.demographics import birth_date_of
from hie.mpi.identity import IdentityService
from tests.mpi.identity.conftest import Feed, marta, otto


def sent(record: Record) -> Resource:
    """The Patient as the feed's edge lets it through: with a birth date of the calendar, or none."""
    made = patient(record)
    return made if birth_date_of(made.get("birthDate", "")) else {k: v for k, v in made.items() if k != "birthDate"}


@pytest.fixture
def crowd(feed: Feed) -> dict[str, str]:
    """Marta and Otto among a hundred others; name -> person id."""
    for number, record in enumerate(generate(60, 77).records):
        feed("meadow", f"M-{number}", sent(record))
    return {
        "marta": feed("lakeside", "L-1", marta()).record.person_id,
        "otto": feed("lakeside", "L-2", otto()).record.person_id,
    }


def wanted(family: str = "", given: str = "", born: str = "", phone: str = "", **address: Any) -> Resource:
    name: Resource = {"family": family} if family else {}
    if given:
        name["given"] = given.split()
    found: Resource = {"resourceType": "Patient", "name": [name] if name else []}
    if born:
        found["birthDate"] = born
    if phone:
        found["telecom"] = [{"system": "phone", "value": phone}]
    if address:
        found["address"] = [address]
    return found


@pytest.mark.parametrize(
    "described",
    [
        pytest.param(wanted("Lindqvist"), id="the last name alone"),
        pytest.param(wanted("Lindquist"), id="the last name alone, misspelt"),
        pytest.param(wanted("Lundkvist", born="1949"), id="a last name that sounds different, and a year"),
        pytest.param(wanted("Lindq"), id="the beginning of the last name"),
        pytest.param(wanted("Lin", "Mar"), id="beginnings of both names"),
        pytest.param(wanted("Lindqvst", "Marta"), id="a letter left out"),
        pytest.param(wanted(given="Marta", born="1949"), id="first name and year"),
        pytest.param(wanted(given="Marthe", born="1949"), id="misspelt first name and year"),
        pytest.param(wanted(born="1949-11-02", given="M"), id="initial and birth date"),
        pytest.param(wanted(phone="617-555-0107"), id="the phone number"),
        pytest.param(wanted(phone="555-0107"), id="the phone number without its area code"),
        pytest.param(wanted(phone="617-555-0108"), id="the phone number with a digit wrong"),
        pytest.param(wanted(line=["4 Quay Road"]), id="the house alone"),
        pytest.param(wanted("Lindqvist", line=["4 Quay"], city="Boston"), id="last name and house"),
    ],
)
def test_she_is_found_first_by(service: IdentityService, crowd: dict[str, str], described: Resource) -> None:
    found = service.candidates(described, 10)
    assert found
    assert found[0].person.id == crowd["marta"]
    assert [c.weight for c in found] == sorted((c.weight for c in found), reverse=True)


@pytest.mark.parametrize(("year", "years", "is_found"), [("1951", 5, True), ("1944", 5, True), ("1960", 5, False)])
def test_the_year_may_be_a_guess(
    service: IdentityService, crowd: dict[str, str], year: str, years: int, is_found: bool
) -> None:
    found = service.candidates(wanted(given="Marta", born=year), 10, years=years)
    assert (crowd["marta"] in [c.person.id for c in found]) is is_found
    if is_found:
        assert ("birth_date", "about") in {(a.trait, a.level) for a in found[0].agreements}


def test_what_agreed_and_what_did_not_is_said(service: IdentityService, crowd: dict[str, str]) -> None:
    best = service.candidates(wanted("Lindq", "Marta", born="1952"), 10)[0]
    said = {a.trait: a.level for a in best.agreements}
    assert (said["family"], said["given"], said["birth_date"]) == ("beginning", "exact", "different")


def test_the_beginning_of_a_name_is_worth_less_than_the_whole(service: IdentityService, crowd: dict[str, str]) -> None:
    begun, whole = (service.candidates(wanted(name, "Marta"), 1)[0] for name in ("Lin", "Lindqvist"))
    assert begun.weight < whole.weight


@pytest.mark.parametrize("described", [wanted(), wanted("Qqqqxz"), wanted("L"), wanted(born="1949")])
def test_nobody_is_guessed_from_nothing(service: IdentityService, crowd: dict[str, str], described: Resource) -> None:
    assert service.candidates(described, 10) == []


def test_a_lookup_never_makes_anybody_link(service: IdentityService, feed: Feed) -> None:
    one = feed("lakeside", "L-1", marta(telecom=[], identifier=[]))
    other = feed("harbor", "H-1", marta(name=[{"family": "Lindqvist", "given": ["Karl"]}], telecom=[], identifier=[],
                                        birthDate="1949-05-30", gender="male", address=[]))  # fmt: skip
    assert one.record.person_id != other.record.person_id


def test_a_record_that_changed_its_name_is_found_by_the_new_one(service: IdentityService, feed: Feed) -> None:
    feed("lakeside", "L-1", marta())
    renamed = feed("lakeside", "L-1", marta(name=[{"family": "Zetterberg", "given": ["Marta"]}]))
    assert [c.person.id for c in service.candidates(wanted("Zeterberg"), 5)] == [renamed.record.person_id]


def test_every_statement_of_a_lookup_goes_through_an_index(
    service: IdentityService, database: Database, crowd: dict[str, str]
) -> None:
    seen: list[tuple[str, Any]] = []

    def keep(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith("SELECT"):
            seen.append((statement, parameters))

    sa.event.listen(database.engine, "before_cursor_execute", keep)
    service.candidates(wanted("Lundkvist", "Mar", "1951", "555-0107", line=["4 Quay Road"]), 10, years=3)
    sa.event.remove(database.engine, "before_cursor_execute", keep)
    assert 4 <= len(seen) <= 14
    with database.read() as connection:
        if not database.is_sqlite:  # small tables would be scanned
            connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        for statement, parameters in seen:
            explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
            plan = "\n".join(map(str, connection.exec_driver_sql(explain + statement, parameters).fetchall()))
            assert "Seq Scan" not in plan, statement
            for table in ("match_keys", "match_traits", "name_variants", "people", "source_records"):
                assert f"SCAN {table}" not in plan, plan


def test_the_populations_own_people_are_found_by_name_and_guessed_year(service: IdentityService, feed: Feed) -> None:
    """Each of sixty people, by what a companion in the ambulance may know."""
    records = generate(60, 78).records
    ids = [feed("meadow", f"M-{n}", sent(record)).record.person_id for n, record in enumerate(records)]
    asked = hits = 0
    for record, person_id in zip(records, ids, strict=True):
        row = asdict(record)
        if not (row["family"] and row["given"] and birth_date_of(row["birth_date"])):
            continue
        asked += 1
        year = str(int(birth_date_of(row["birth_date"])[:4]) + 2)
        described = wanted(row["family"][:-1], row["given"][:3], year)
        hits += person_id in [c.person.id for c in service.candidates(described, 10, years=5)]
    assert asked > 60
    assert hits / asked >= 0.95
