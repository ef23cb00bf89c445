"""Patients at the door: who is which patient, and what each may see; and custodians told of broken glass."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hie.core.caller import EXCHANGE, Role
from hie.core.database import Database
from hie.core.errors import BadRequest
from hie.gateway.notices import Notices
from hie.gateway.portal import CODE_LIFE, Portal, Relation
from hie.gateway.release import ChartAnswer, Release
from hie.gateway.services import Services
from hie.gateway.tables_directory import members as members_table
from hie.mpi.identity import Identifier
from tests.gateway.door import (
    LAKESIDE,
    MEADOW,
    NOW,
    PATIENT,
    Members,
    allergy,
    caller,
    consent,
    labelled,
    of_lakeside,
)

EMAIL = "marta@mail.example"
Make = Callable[..., Release]


def patient(email: str = EMAIL) -> Any:
    return caller(
        organization=EXCHANGE,
        organization_name="The exchange",
        role=Role.PATIENT,
        purposes=frozenset({"PATRQT"}),
        client_id=None,
        user_id=email,
        subject_id=email,
    )


def person(services: Services) -> str:
    record = services.identity.source_record(LAKESIDE)
    assert record is not None
    return record.person_id


def bind(services: Services, relation: Relation = Relation.SELF, email: str = EMAIL, **more: Any) -> None:
    code = services.portal.invite("lakeside", LAKESIDE, relation, "admin@lakeside.example", **more)
    services.portal.redeem(code, email)


def ask(release: Release, asking: Any, person_id: str, *types: str) -> ChartAnswer:
    return release.chart(asking, person_id, types or ("AllergyIntolerance",), query="GET", request_id="r-1")


# -- codes


def test_a_code_binds_once(services: Services) -> None:
    code = services.portal.invite("lakeside", LAKESIDE, Relation.SELF, "admin@lakeside.example")
    binding = services.portal.redeem(code.upper().replace("-", " "), EMAIL)
    assert (binding.identifier, binding.relation) == (LAKESIDE, Relation.SELF)
    assert services.portal.own_people(EMAIL) == {person(services)}
    with pytest.raises(BadRequest):
        services.portal.redeem(code, "another@mail.example")
    assert services.portal.own_people("another@mail.example") == frozenset()


def test_a_code_is_kept_by_its_hash_alone(services: Services) -> None:
    code = services.portal.invite("lakeside", LAKESIDE, Relation.SELF, "admin@lakeside.example")
    with services.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM invitations").all()
    assert code not in str(rows)
    assert code.replace("-", "") not in str(rows)


def test_bad_codes_are_told_apart_by_nobody(services: Services) -> None:
    now = [NOW]
    portal = Portal(services.database, lambda: now[0], services.identity)
    code = portal.invite("lakeside", LAKESIDE, Relation.SELF, "admin@lakeside.example")
    now[0] += CODE_LIFE
    said = set()
    for bad in (code, "abcd-efgh-jkmn", "", "x" * 10_000):
        with pytest.raises(BadRequest) as refused:
            portal.redeem(bad, EMAIL)
        said.add(refused.value.message)
    assert len(said) == 1


@pytest.mark.parametrize("identifier", [MEADOW, Identifier(LAKESIDE.system, "nobody")])
def test_a_member_invites_its_own_patients_only(services: Services, identifier: Identifier) -> None:
    with pytest.raises(BadRequest):
        services.portal.invite("lakeside", identifier, Relation.SELF, "admin@lakeside.example")


def test_a_binding_follows_its_record_through_a_merge(services: Services) -> None:
    bind(services)
    survivor = Identifier(LAKESIDE.system, "l-2")
    body = PATIENT | {"birthDate": "1980-01-01", "identifier": [{"system": survivor.system, "value": "l-2"}]}
    services.identity.record("lakeside", survivor, body)
    services.identity.merge("lakeside", LAKESIDE, survivor)
    record = services.identity.source_record(survivor)
    assert record is not None
    assert services.portal.own_people(EMAIL) == {record.person_id}


def test_a_member_takes_a_binding_back(services: Services) -> None:
    bind(services)
    (binding,) = services.portal.of_member(LAKESIDE.system)
    services.portal.end(binding.id, MEADOW.system)
    assert services.portal.bindings(EMAIL) == [binding]
    services.portal.end(binding.id, LAKESIDE.system)
    assert services.portal.bindings(EMAIL) == []


# -- at the door


def test_a_patient_sees_her_own_record_whatever_consents_say(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("a1")]
    her = person(services)
    services.consents.create(consent(her, {"type": "deny"}), her, caller())
    release = make()
    assert ask(release, patient(), her).entries == ()
    bind(services)
    (entry,) = ask(release, patient(), her).entries
    assert entry.decision.rule == "patient"


def test_nobody_else_does(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("a1")]
    bind(services)
    answer = ask(make(), patient("neighbour@mail.example"), person(services))
    assert answer.entries == ()
    assert members.asked == []


def test_psychotherapy_notes_stay_the_therapists(services: Services, members: Members, make: Make) -> None:
    notes = {"security": labelled("PSYTHPN")}
    members.held["lakeside", "DocumentReference"] = [of_lakeside("DocumentReference", "d1", meta=notes)]
    bind(services)
    assert ask(make(), patient(), person(services), "DocumentReference").entries == ()


def test_a_representative_sees_it_without_what_a_minor_was_treated_for_alone(
    services: Services, members: Members, make: Make
) -> None:
    alone = of_lakeside("Condition", "c2", meta={"security": labelled("ADOL")})
    members.held["lakeside", "Condition"] = [of_lakeside("Condition", "c1"), alone]
    bind(services, Relation.REPRESENTATIVE, "mother@mail.example")
    bind(services)
    her = person(services)
    release = make()
    assert len(ask(release, patient("mother@mail.example"), her, "Condition").entries) == 1
    assert len(ask(release, patient(), her, "Condition").entries) == 2


def test_a_representation_ends(services: Services, members: Members, make: Make) -> None:
    members.held["lakeside", "AllergyIntolerance"] = [allergy("a1")]
    bind(services, Relation.REPRESENTATIVE, "mother@mail.example", until=NOW + timedelta(days=1))
    assert services.portal.bindings("mother@mail.example") != []
    later = Portal(services.database, lambda: NOW + timedelta(days=2), services.identity)
    assert later.bindings("mother@mail.example") == []
    release = make(portal=later)
    assert ask(release, patient("mother@mail.example"), person(services)).entries == ()


# -- custodians are told


def glass(**more: Any) -> Any:
    return caller(
        purposes=frozenset({"TREAT", "BTG"}),
        break_glass_reason="unconscious after a fall",
        subject_name="Dr. Rosa Ortiz",
        subject_role="physician",
        **more,
    )


@pytest.fixture
def denied(services: Services, members: Members) -> str:
    """She denies all; both members hold something."""
    her = person(services)
    services.consents.create(consent(her, {"type": "deny"}), her, caller())
    members.held["lakeside", "AllergyIntolerance"] = [allergy("a1")]
    members.held["meadow", "AllergyIntolerance"] = [allergy("m1", "m-1"), allergy("m2", "m-1")]
    return her


def test_each_custodian_is_told_who_broke_the_glass_and_why(services: Services, make: Make, denied: str) -> None:
    answer = ask(make(), glass(), denied)
    assert len(answer.entries) == 3
    (notice,) = services.notices.inbox("meadow")
    assert (notice.patient, notice.resources) == ("m-1", 2)
    assert (notice.who, notice.organization) == ("Dr. Rosa Ortiz", "Lakeside Hospital")
    assert notice.reason == "unconscious after a fall"
    assert [n.patient for n in services.notices.inbox("lakeside")] == ["l-1"]


def test_the_same_token_is_one_notice_and_another_a_second(services: Services, make: Make, denied: str) -> None:
    release = make()
    for session in ("s-1", "s-1", "s-2"):
        ask(release, glass(session=session), denied)
    assert len(services.notices.inbox("meadow")) == 2


def test_without_broken_glass_nobody_is_told(services: Services, members: Members, make: Make) -> None:
    members.held["meadow", "AllergyIntolerance"] = [allergy("m1", "m-1")]
    release = make()
    assert len(ask(release, caller(), person(services)).entries) == 1
    assert len(ask(release, glass(), person(services)).entries) == 1  # it would have left anyway
    assert services.notices.inbox("meadow") == []


def test_a_notice_is_marked_by_its_member_and_once(services: Services, make: Make, denied: str) -> None:
    ask(make(), glass(), denied)
    (notice,) = services.notices.inbox("meadow")
    services.notices.mark_seen("lakeside", notice.id, "admin@lakeside.example")
    assert services.notices.inbox("meadow")[0].seen is None
    for who in ("first@meadow.example", "second@meadow.example"):
        services.notices.mark_seen("meadow", notice.id, who)
    assert services.notices.inbox("meadow")[0].seen_by == "first@meadow.example"


def test_notices_are_kept_on_both_databases(database: Database) -> None:
    row = {"id": "meadow", "name": "Meadow", "patient_id_system": "urn:x", "kind": "provider", "purposes": "TREAT"}
    with database.write() as connection:
        connection.execute(members_table.insert(), row | {"part2": False})
    notices = Notices(database, lambda: datetime(2026, 3, 1, tzinfo=UTC))
    for count in (3, 1):
        notices.glass_broken(glass(), {("meadow", "m-1"): count}, "r-1")
    (kept,) = notices.inbox("meadow")
    assert kept.resources == 3
