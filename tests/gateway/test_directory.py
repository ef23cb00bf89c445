"""The directory: applied, read, changed, seen by other processes; on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hie.core.caller import Role
from hie.core.database import Database
from hie.core.errors import AuditUnavailable, BadRequest, ConfigurationError, Conflict, NotFound
from hie.core.scopes import Scopes
from hie.gateway.directory import Auth, Change, Directory, Endpoint, Member, change_event
from hie.gateway.tables_directory import users
from tests.gateway.outside import Clock, ec_key, jwks, manifest, manifest_dict, settings

LAKESIDE_URL = "https://fhir.lakeside.example/r4"


@pytest.fixture
def directory(database: Database, tmp_path: Path) -> Directory:
    return Directory(database, Clock(), settings(tmp_path))


@pytest.fixture
def applied(directory: Directory) -> Directory:
    directory.apply(manifest())
    return directory


def other_process(applied: Directory, tmp_path: Path) -> Directory:
    return Directory(applied._database, Clock(), settings(tmp_path))


def changes_of(directory: Directory, content: dict[str, Any]) -> list[str]:
    return [str(change) for change in directory.apply(manifest(content))]


def test_apply_says_what_it_added_and_then_changes_nothing(directory: Directory) -> None:
    assert changes_of(directory, manifest_dict()) == [
        "+ member lakeside",
        "+ member meadow",
        "+ member harvest",
        "+ client lakeside-ehr",
        "+ client lakeside-rsa",
        "+ client meadow-ehr",
        "+ client harvest-claims",
        "+ client privacy-office",
        "+ user r.ortiz@lakeside.example",
        "+ user steward@exchange.example",
    ]
    assert changes_of(directory, manifest_dict()) == []


def test_what_was_applied_is_what_is_read(applied: Directory) -> None:
    wanted = manifest()
    assert applied.members() == sorted((e.member for e in wanted.members), key=lambda m: m.id)
    assert applied.member("meadow") == wanted.members[1].member
    assert applied.member("nobody") is None
    assert applied.member_of_system("urn:oid:2.999.1.3") == wanted.members[2].member
    assert applied.member_of_system("urn:oid:2.999.9") is None
    assert tuple(applied.clients("lakeside")) == wanted.members[0].clients
    assert tuple(applied.clients(None)) == wanted.clients
    assert applied.client("harvest-claims") == (wanted.members[2].clients or ())[0]
    assert applied.user("R.Ortiz@Lakeside.example") == wanted.users[0].user


def test_dry_run_says_the_same_and_changes_nothing(directory: Directory) -> None:
    said = [str(change) for change in directory.apply(manifest(), dry_run=True)]
    assert directory.members() == []
    assert said == changes_of(directory, manifest_dict())


@pytest.mark.parametrize(
    ("path", "value", "change"),
    [
        (("members", 0, "name"), "Lakeside Medical Center", "~ member lakeside: name"),
        (("members", 0, "endpoint", "url"), "https://new.lakeside.example", "~ member lakeside: endpoint"),
        (("members", 1, "endpoint", "auth", "password"), "another", "~ member meadow: endpoint"),
        (("members", 2, "endpoint"), {"url": "https://harvest.example"}, "~ member harvest: endpoint"),
        (("members", 0, "endpoint"), None, "~ member lakeside: endpoint"),
        (("members", 0, "patient_id_system"), "urn:oid:2.999.1.9", "~ member lakeside: patient_id_system"),
        (("members", 0, "kind"), "pharmacy", "~ member lakeside: kind"),
        (("members", 1, "purposes"), ["TREAT", "HOPERAT"], "~ member meadow: purposes"),
        (("members", 1, "part2"), False, "~ member meadow: part2"),
        (("members", 0, "address"), "1 Lake Road, Springfield, MA 01101", "~ member lakeside: address"),
        (("members", 0, "consent_default"), "deny", "~ member lakeside: consent_default"),
        (("members", 0, "clients", 0, "scopes"), ["system/Patient.rs"], "~ client lakeside-ehr: scopes"),
        (("clients", 0, "jwks"), jwks(ec_key("next")), "~ client privacy-office: jwks"),
        (("clients", 0, "role"), "data-steward", "~ client privacy-office: role"),
        (("users", 0, "password"), "another horse battery", "~ user r.ortiz@lakeside.example: password"),
        (("users", 1, "password"), "the first password", "~ user steward@exchange.example: password"),
        (("users", 0, "name"), "Rosa M. Ortiz", "~ user r.ortiz@lakeside.example: name"),
        (("users", 0, "member"), "meadow", "~ user r.ortiz@lakeside.example: member"),
    ],
)
def test_a_changed_field_is_named_and_takes_effect(
    applied: Directory, path: tuple[str | int, ...], value: Any, change: str
) -> None:
    content: Any = manifest_dict()
    node = content
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    assert changes_of(applied, content) == [change]
    assert [entry.member for entry in manifest(content).members] == [
        applied.member(m) for m in ("lakeside", "meadow", "harvest")
    ]
    assert [c for e in manifest(content).members for c in e.clients or ()] == [
        *applied.clients("lakeside"),
        *applied.clients("meadow"),
        *applied.clients("harvest"),
    ]
    assert changes_of(applied, content) == []


def test_the_order_of_scopes_is_no_change(applied: Directory) -> None:
    content = manifest_dict()
    content["clients"][0]["scopes"].reverse()
    assert changes_of(applied, content) == []


def test_what_the_manifest_does_not_name_stays(applied: Directory) -> None:
    before = applied.members()
    assert changes_of(applied, {"members": [], "clients": [], "users": []}) == []
    assert applied.members() == before
    assert applied.client("privacy-office") is not None


def test_a_client_that_left_its_members_list_is_removed(applied: Directory) -> None:
    content = manifest_dict()
    del content["members"][0]["clients"][1]
    del content["members"][1]["clients"]
    assert changes_of(applied, content) == ["- client lakeside-rsa"]
    assert applied.client("lakeside-rsa") is None
    assert applied.client("meadow-ehr") is not None


def test_an_endpoint_or_password_that_is_not_given_stays(applied: Directory) -> None:
    content = manifest_dict()
    del content["members"][0]["endpoint"]
    del content["users"][0]["password"]
    assert changes_of(applied, content) == []
    lakeside = applied.member("lakeside")
    assert lakeside is not None
    assert lakeside.endpoint == Endpoint(LAKESIDE_URL)
    assert applied.authenticate("r.ortiz@lakeside.example", "correct horse battery")


def test_members_can_exchange_addresses_in_one_go(applied: Directory) -> None:
    content = manifest_dict()
    one, other = content["members"][0]["endpoint"], content["members"][1]["endpoint"]
    one["url"], other["url"] = other["url"], one["url"]
    assert changes_of(applied, content) == ["~ member lakeside: endpoint", "~ member meadow: endpoint"]


def test_a_client_can_move_when_both_lists_say_so(applied: Directory) -> None:
    content = manifest_dict()
    moved = content["members"][0]["clients"].pop()
    content["members"][1]["clients"].append(moved)
    assert changes_of(applied, content) == ["~ client lakeside-rsa: member"]


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (
            {"endpoint": {"url": "https://FHIR.lakeside.example:443/r4/"}},
            "member rival: the endpoint's address belongs to member lakeside.",
        ),
        ({"patient_id_system": "urn:oid:2.999.1.1"}, "member rival: patient_id_system belongs to member lakeside."),
        (
            {"clients": [{"id": "lakeside-ehr", "jwks": jwks(ec_key("rival")), "scopes": ["system/*.rs"]}]},
            "client lakeside-ehr: belongs to lakeside; choose another id.",
        ),
        (
            {"clients": [{"id": "privacy-office", "jwks": jwks(ec_key("rival")), "scopes": ["system/*.rs"]}]},
            "client privacy-office: belongs to exchange; choose another id.",
        ),
    ],
)
def test_nothing_of_another_member_can_be_taken(applied: Directory, member: dict[str, Any], sentence: str) -> None:
    rival = {"id": "rival", "name": "Rival", "patient_id_system": "urn:oid:2.999.66", **member}
    with pytest.raises(ConfigurationError) as refused:
        applied.apply(manifest({"members": [rival]}))
    assert refused.value.message == sentence
    assert applied.member("rival") is None


def test_another_process_sees_a_change_at_once(applied: Directory, tmp_path: Path) -> None:
    elsewhere = other_process(applied, tmp_path)
    assert len(elsewhere.members()) == 3
    content = manifest_dict()
    content["members"][0]["name"] = "Lakeside Medical Center"
    changes_of(applied, content)
    lakeside = elsewhere.member("lakeside")
    assert lakeside is not None
    assert lakeside.name == "Lakeside Medical Center"


def test_reading_asks_the_database_one_small_question(applied: Directory) -> None:
    applied.members()
    asked: list[str] = []
    sa.event.listen(applied._database.engine, "before_cursor_execute", lambda *a: asked.append(a[2]))
    applied.member("lakeside")
    (question,) = (statement for statement in asked if statement != "BEGIN")
    assert "directory_version" in question


def test_two_operators_at_once_make_one_directory(directory: Directory, tmp_path: Path) -> None:
    other = other_process(directory, tmp_path)
    with ThreadPoolExecutor(2) as threads:
        said = list(threads.map(lambda d: len(d.apply(manifest())), (directory, other)))
    assert sorted(said) == [0, 10]
    assert directory.members() == other.members()


def test_passwords(applied: Directory) -> None:
    rosa = applied.user("r.ortiz@lakeside.example")
    assert rosa is not None
    assert rosa.role is Role.CLINICIAN
    assert applied.authenticate(" R.Ortiz@lakeside.example ", "correct horse battery") == rosa
    assert applied.authenticate("r.ortiz@lakeside.example", "wrong horse battery") is None
    assert applied.authenticate("nobody@lakeside.example", "the password of nobody") is None
    assert applied.authenticate("steward@exchange.example", "the password of nobody") is None
    with applied._database.read() as connection:
        stored = connection.scalar(sa.select(users.c.password_hash).where(users.c.email == "r.ortiz@lakeside.example"))
    assert stored.startswith("$argon2id$")


def test_changes_are_handed_over_before_the_commit(directory: Directory) -> None:
    seen: list[list[Change]] = []

    def fail(_connection: sa.Connection, changes: list[Change]) -> None:
        seen.append(changes)
        raise AuditUnavailable

    with pytest.raises(AuditUnavailable):
        directory.apply(manifest(), also=fail)
    assert [len(changes) for changes in seen] == [10]
    assert directory.members() == []


def test_audit_entries_of_changes_hold_names_of_fields_only(applied: Directory) -> None:
    content = manifest_dict()
    content["members"][1]["endpoint"]["auth"]["password"] = "another-secret"
    (change,) = applied.apply(manifest(content))
    event = change_event(change, None, "r1")
    assert (event.description, event.action, event.entities) == (
        "member meadow: endpoint",
        "U",
        ("Organization/meadow",),
    )
    assert "another-secret" not in repr(event)
    assert change_event(Change("removed", "client", "x"), None, "r1").description == "client x removed"


def test_a_members_endpoint_can_be_changed(applied: Directory, tmp_path: Path) -> None:
    elsewhere = other_process(applied, tmp_path)
    elsewhere.members()
    told: list[Member] = []
    endpoint = Endpoint("HTTPS://New.Meadow.example:443/fhir/", Auth("bearer", token="t"))
    changed = applied.update_endpoint("meadow", endpoint, also=lambda _c, member: told.append(member))
    assert changed.endpoint == replace(endpoint, url="https://new.meadow.example/fhir")
    assert elsewhere.member("meadow") == changed == told[0]


def test_endpoint_changes_that_are_refused(applied: Directory) -> None:
    with pytest.raises(Conflict):
        applied.update_endpoint("meadow", Endpoint("https://fhir.lakeside.example/R4/"))
    with pytest.raises(BadRequest):
        applied.update_endpoint("meadow", Endpoint("https://127.1/fhir"))
    with pytest.raises(NotFound):
        applied.update_endpoint("nobody", Endpoint("https://nobody.example"))
    assert applied.member("meadow") == manifest().members[1].member


def test_a_clients_keys_can_be_changed(applied: Directory, tmp_path: Path) -> None:
    elsewhere = other_process(applied, tmp_path)
    elsewhere.members()
    client = applied.set_client_keys("meadow-ehr", jwks(ec_key("next")))
    assert client.jwks == jwks(ec_key("next"))
    assert client.scopes == Scopes.parse("system/*.rs")
    assert elsewhere.client("meadow-ehr") == client
    with pytest.raises(BadRequest, match=r"^jwks.keys\[0\]: holds a private or secret key"):
        applied.set_client_keys("meadow-ehr", {"keys": [ec_key("next").as_dict(private=True)]})
    with pytest.raises(NotFound):
        applied.set_client_keys("nobody", jwks(ec_key("next")))
