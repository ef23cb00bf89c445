"""What the review of accesses learns of people and users, out of the real index and directory; on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hie.audit.alerts import Rule
from hie.audit.log import AuditLog
from hie.audit.relations import Contact, Relation
from hie.audit.review import Review
from hie.audit.seal import Seal
from hie.core.database import Database
from hie.gateway.care import CareService
from hie.gateway.community import ExchangeCommunity
from hie.gateway.directory import Directory
from hie.mpi.identity import Identifier, IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model
from tests.audit.samples import BASE, Clock, caller, disclosure
from tests.gateway.outside import manifest, settings

LAKESIDE, MEADOW = "urn:oid:2.999.1.1", "urn:oid:2.999.1.2"
ROSA = "r.ortiz@lakeside.example"


class Exchange:
    """Index, directory and log over one database."""

    def __init__(self, database: Database, home: Path) -> None:
        self.clock = Clock(datetime(2026, 3, 1, 9, 0, tzinfo=UTC))
        self.directory = Directory(database, self.clock, settings(home))
        self.directory.apply(manifest())
        self.identity = IdentityService(database, MatchIndex(Model.load(), database.is_sqlite), self.clock)
        self.community = ExchangeCommunity(database, self.directory)
        self.care = CareService(database, self.clock, "https://exchange.example/fhir")
        self.log = AuditLog(database, self.clock, BASE, Seal.of(settings(home)))
        self.review = Review(database, self.clock, self.log, self.community)

    def feed(self, value: str, family: str, given: str, system: str = LAKESIDE, **more: Any) -> str:
        member = "lakeside" if system == LAKESIDE else "meadow"
        patient = {"resourceType": "Patient", "name": [{"family": family, "given": [given]}], "birthDate": "1980-01-02"}
        return self.identity.record(member, Identifier(system, value), {**patient, **more}).record.person_id


@pytest.fixture
def exchange(database: Database, tmp_path: Path) -> Iterator[Exchange]:
    made = Exchange(database, tmp_path)
    yield made
    made.log.close()


def home(street: str) -> list[dict[str, Any]]:
    return [{"line": [street], "city": "Boston", "state": "MA", "postalCode": "02110"}]


def test_registrations_are_contacts_and_an_old_one_is_a_record_that_is_there(exchange: Exchange) -> None:
    person_id = exchange.feed("1", "Nowak", "Eva")
    first = exchange.clock()
    exchange.clock.forward(days=100)
    exchange.feed("1", "Nowak", "Eva", gender="female")
    exchange.feed("1", "Nowak", "Eva", gender="female")  # nothing new: no registration
    exchange.feed("9", "Nowak", "Eva", MEADOW, gender="female")
    found = exchange.community.contacts([(person_id, "lakeside"), (person_id, "harvest"), ("nobody", "lakeside")])
    assert sorted(found, key=lambda c: (c.relation, c.starts)) == [
        Contact(person_id, "lakeside", Relation.REGISTRATION, first, first),
        Contact(person_id, "lakeside", Relation.REGISTRATION, exchange.clock(), exchange.clock()),
        Contact(person_id, "lakeside", Relation.SOURCE_RECORD, first),
    ]


def test_an_id_from_before_a_merge_stands_for_the_same_person(exchange: Exchange) -> None:
    old, new = exchange.feed("1", "Nowak", "Eva"), exchange.feed("2", "Bell", "Ada", birthDate="1950-05-05")
    exchange.identity.merge("lakeside", Identifier(LAKESIDE, "1"), Identifier(LAKESIDE, "2"))
    assert {c.person_id for c in exchange.community.contacts([(old, "lakeside")])} == {old}
    assert exchange.community.people([old])[old] == exchange.community.people([new])[new]


def test_names_addresses_employers_and_vip_flags_of_people(exchange: Exchange) -> None:
    rosa = exchange.feed(
        "1",
        "Ortiz",
        "Rosa",
        address=home("4 Quay Road"),
        telecom=[{"system": "email", "value": ROSA.upper()}],
        meta={"security": [{"code": "N"}, {"code": "CEL"}]},
    )
    eva = exchange.feed("2", "Nowak", "Eva", address=[{"city": "Boston", "postalCode": "02110"}])
    facts = exchange.community.people([rosa, eva, "nobody"])
    assert set(facts) == {rosa, eva}
    assert (facts[rosa].family_names, facts[rosa].vip, facts[rosa].employers) == ({"ortiz"}, True, {"lakeside"})
    assert (facts[eva].addresses, facts[eva].vip, facts[eva].employers) == (frozenset(), False, frozenset())
    user = exchange.community.users([("lakeside", ROSA), ("lakeside", "nobody@lakeside.example")])
    assert list(user) == [("lakeside", ROSA)]
    assert (user["lakeside", ROSA].family_name, user["lakeside", ROSA].person_id) == ("ortiz", rosa)
    assert user["lakeside", ROSA].addresses == facts[rosa].addresses != frozenset()


def test_importance_is_a_vip_flag_too(exchange: Exchange) -> None:
    url = "http://hl7.org/fhir/StructureDefinition/patient-importance"
    flag = {"url": url, "valueCodeableConcept": {"coding": [{"code": "VIP"}]}}
    person_id = exchange.feed("1", "Star", "Pop", extension=[flag])
    assert exchange.community.people([person_id])[person_id].vip


def test_an_email_that_two_people_have_is_nobodys(exchange: Exchange) -> None:
    shared = [{"system": "email", "value": ROSA}]
    exchange.feed("1", "Ortiz", "Rosa", telecom=shared)
    exchange.feed("2", "Bell", "Ada", telecom=shared, birthDate="1950-05-05", gender="female")
    assert exchange.community.users([("lakeside", ROSA)])["lakeside", ROSA].person_id is None


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Dr. Rosa Ortiz", "ortiz"),
        ("Rosa Ortíz-Peña, MD", "pena"),
        ("John King Jr.", "king"),
        ("Rosa", ""),
        ("", ""),
        ("Rosa Ortiz RN", "ortiz"),
    ],
)
def test_the_family_name_of_a_user(exchange: Exchange, name: str, family: str) -> None:
    assert exchange.community.family_name(name) == family


def test_how_common_a_family_name_is(exchange: Exchange) -> None:
    assert exchange.community.name_share("ortiz") == 1.0  # nobody is known yet: no name is rare
    for number, family in enumerate(("Ortíz", "Nowak", "Bell", "Diaz")):
        exchange.feed(str(number), family, f"Given{family}", birthDate=f"19{number}0-01-02")
    assert exchange.community.name_share("ortiz") == 0.25
    assert exchange.community.name_share("unheard") == 0.0


def test_curiosity_about_the_own_household_is_found_in_the_real_exchange(exchange: Exchange) -> None:
    exchange.feed("1", "Ortiz", "Rosa", address=home("4 Quay Road"), telecom=[{"system": "email", "value": ROSA}])
    child = exchange.feed("2", "Vega", "Luz", MEADOW, address=home("4 Quay Rd."), birthDate="2015-01-02")
    exchange.clock.forward(days=40)
    exchange.log.record(disclosure(child, caller=caller(client_id=None, user_id=ROSA)))
    (alert,) = exchange.review.look()
    assert alert.rule is Rule.SAME_ADDRESS
    exchange.clock.forward(days=1)
    stranger = exchange.feed("3", "Bell", "Ada", birthDate="1950-05-05")
    exchange.clock.forward(days=timedelta(days=2).days)
    exchange.log.record(disclosure(stranger, caller=caller(client_id=None, user_id=ROSA)))
    assert exchange.review.look() == []


def test_an_encounter_that_was_told_stands_in_the_review_and_excuses_whom_it_names(exchange: Exchange) -> None:
    exchange.feed("1", "Ortiz", "Rosa", address=home("4 Quay Road"), telecom=[{"system": "email", "value": ROSA}])
    child = exchange.feed("2", "Vega", "Luz", address=home("4 Quay Rd."), birthDate="2015-01-02")
    exchange.clock.forward(days=40)
    lakeside = exchange.directory.member("lakeside")
    assert lakeside is not None
    visit = {
        "resourceType": "Encounter",
        "status": "in-progress",
        "class": {"code": "AMB"},
        "subject": {"identifier": {"system": LAKESIDE, "value": "2"}},
    }
    exchange.care.tell(lakeside, Identifier("urn:visits", "1"), visit)
    exchange.log.record(disclosure(child, caller=caller(client_id=None, user_id=ROSA)))
    (alert,) = exchange.review.look()
    assert alert.sentence == (
        "Opened the records of somebody who lives at the user's own address; the organization has a relation to that "
        "person (encounter), the user none that is known."
    )
    exchange.clock.forward(days=14)
    exchange.log.record(disclosure(child, caller=caller(client_id=None, user_id=ROSA)))
    exchange.care.tell(
        lakeside,
        Identifier("urn:visits", "1"),
        visit | {"participant": [{"individual": {"identifier": {"value": ROSA}}}]},
    )
    assert exchange.review.look() == []
