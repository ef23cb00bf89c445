"""The token endpoint's rules: who gets a token, who is refused and why, and what a token is worth later."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from hie.audit.query import AuditQuery
from hie.core.caller import Role
from hie.core.database import Database
from hie.core.errors import AuditUnavailable, Forbidden, OAuthError, Unauthorized
from hie.gateway.assertion import is_clinical
from hie.gateway.keysets import kept_for
from hie.gateway.tables_directory import client_assertions
from tests.gateway.outside import (
    BASE,
    PHYSICIAN,
    PURPOSE,
    REASON,
    SECRET,
    TOKEN_URL,
    Exchange,
    ec_key,
    jwks,
    manifest,
    manifest_dict,
    rsa_key,
)

SUBJECT = {"subject_name": "Dr Rosa Ortiz", "subject_id": "urn:oid:2.16.840.1.113883.4.6#1234567893"}
DOCTOR = {**SUBJECT, "subject_role": PHYSICIAN}
BTG = {"purpose_of_use": [PURPOSE + "BTG"]}
DECLARED = {"hie-break-glass": {"version": "1", "reason": REASON}}


@pytest.fixture
def exchange(database: Database, tmp_path: Path) -> Iterator[Exchange]:
    made = Exchange(database, tmp_path)
    made.directory.apply(manifest())
    yield made
    made.audit.close()


@pytest.fixture
def light(sqlite_database: Database, tmp_path: Path) -> Iterator[Exchange]:
    """For rules in which the kind of database makes no difference."""
    made = Exchange(sqlite_database, tmp_path)
    made.directory.apply(manifest())
    yield made
    made.audit.close()


def refusal(exchange: Exchange, assertion: str | None = None, **asked: str) -> OAuthError:
    with pytest.raises(OAuthError) as refused:
        exchange.issue(assertion, **asked)
    return refused.value


def bearer(issued: dict[str, Any]) -> str:
    return f"Bearer {issued['access_token']}"


def log_of(exchange: Exchange) -> list[dict[str, Any]]:
    """The disclosure log, oldest first."""
    return [entry.resource for entry in exchange.audit.search(AuditQuery()).entries][::-1]


def part(token: str, n: int) -> dict[str, Any]:
    text = token.split(".")[n]
    return dict(json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))))


# -- tokens that are given


def test_a_token_for_a_sound_assertion(exchange: Exchange) -> None:
    issued = exchange.issue(scope="system/AllergyIntolerance.rs system/Patient.read")
    assert issued["token_type"] == "bearer"
    assert issued["expires_in"] == 300
    assert issued["scope"] == "system/AllergyIntolerance.rs system/Patient.rs"
    caller = exchange.authority.caller(bearer(issued), address="192.0.2.7")
    assert (caller.organization, caller.organization_name) == ("lakeside", "Lakeside Hospital")
    assert (caller.role, caller.client_id, caller.address) == (Role.MEMBER, "lakeside-ehr", "192.0.2.7")
    assert caller.purposes == {"TREAT"}
    assert str(caller.scopes) == issued["scope"]
    assert not caller.break_glass
    with pytest.raises(Forbidden):
        caller.require("Condition", "s")


def test_rs384_is_as_good(light: Exchange) -> None:
    assertion = light.assertion("lakeside-rsa", key=rsa_key("rsa"))
    assert light.issue(assertion)["scope"] == "system/Patient.rs"


def test_the_exchanges_own_clients(light: Exchange) -> None:
    assertion = light.assertion("privacy-office", b2b={"purpose_of_use": [PURPOSE + "HOPERAT"]})
    issued = light.issue(assertion, "system/AuditEvent.rs")
    caller = light.authority.caller(bearer(issued), address="")
    assert (caller.organization, caller.role, caller.purposes) == ("exchange", Role.PRIVACY_OFFICER, {"HOPERAT"})


def test_a_patients_app_acts_for_the_account_that_it_names(light: Exchange) -> None:
    given = manifest_dict()
    app = {"id": "portal-app", "role": "patient", "jwks": jwks(ec_key("portal")), "scopes": ["system/AuditEvent.rs"]}
    given["clients"].append(app)
    given["users"].append(
        {"email": "marta@mail.example", "name": "Marta", "role": "patient", "password": "sun-on-lake-7"}
    )
    light.directory.apply(manifest(given))
    asked = {"purpose_of_use": [PURPOSE + "PATRQT"], "organization_id": f"{BASE}/fhir/Organization/exchange"}

    def assertion(subject_id: str | None) -> str:
        return light.assertion("portal-app", b2b={**asked, "subject_id": subject_id})

    caller = light.authority.caller(
        bearer(light.issue(assertion("mailto:Marta@mail.example"), "system/AuditEvent.rs")), address=""
    )
    assert (caller.role, caller.user_id) == (Role.PATIENT, "marta@mail.example")
    nobody = light.authority.caller(bearer(light.issue(assertion(None), "system/AuditEvent.rs")), address="")
    assert nobody.user_id is None
    clinician = next(user["email"] for user in given["users"] if user["role"] == "clinician")
    for other in ("mailto:nobody@mail.example", f"mailto:{clinician}", "marta@mail.example"):
        assert refusal(light, assertion(other), scope="system/AuditEvent.rs").error == "invalid_grant"


def test_several_purposes_that_are_all_held(light: Exchange) -> None:
    assertion = light.assertion(b2b={"purpose_of_use": [PURPOSE + "TREAT", PURPOSE + "HOPERAT"]})
    assert light.authority.caller(bearer(light.issue(assertion)), address="").purposes == {"TREAT", "HOPERAT"}


def test_the_audience_may_be_a_list_of_one(light: Exchange) -> None:
    assert light.issue(light.assertion(aud=[TOKEN_URL]))


def test_a_clock_that_is_a_little_off_is_forgiven(light: Exchange) -> None:
    now = int(light.clock().timestamp())
    assert light.issue(light.assertion(iat=now + 4, exp=now + 240))
    assert light.issue(light.assertion(iat=now - 200, exp=now - 4))


def test_breaking_the_glass(light: Exchange) -> None:
    issued = light.issue(light.assertion(b2b={**BTG, **DOCTOR}, extensions=DECLARED))
    caller = light.authority.caller(bearer(issued), address="")
    assert caller.break_glass
    assert caller.purposes == {"TREAT", "BTG"}
    assert (caller.break_glass_reason, caller.subject_name) == (REASON, "Dr Rosa Ortiz")
    assert caller.clinical


def test_clients_may_keep_their_keys_at_an_address(
    sqlite_database: Database, tmp_path: Path, key_server: KeyServer
) -> None:
    light = Exchange(sqlite_database, tmp_path, development=True)
    content = manifest_dict()
    client = content["members"][0]["clients"][0]
    del client["jwks"]
    client["jwks_uri"] = key_server.url
    light.directory.apply(manifest(content, development=True))
    key_server.document = jwks(ec_key("lakeside"))
    assert light.issue(light.assertion(header={"jku": key_server.url}))
    assert light.issue(light.assertion())
    assert key_server.hits == 1  # kept, since it may be

    key_server.document = jwks(ec_key("rotated"))
    rotated = ec_key("rotated")
    assert refusal(light, light.assertion(key=rotated)).error == "invalid_client"
    light.clock.pass_(seconds=31)
    assert light.issue(light.assertion(key=rotated))  # a kid that is not in the kept set asks again
    assert key_server.hits == 2
    assert refusal(light, light.assertion()).error == "invalid_client"

    light.clock.pass_(seconds=301)
    key_server.status = 302
    assert "jwks_uri answered with status 302" in refusal(light, light.assertion(key=rotated)).message


def test_key_sets_are_kept_as_long_as_their_server_allows_and_five_minutes_at_most() -> None:
    assert kept_for("max-age=20, public") == timedelta(seconds=20)
    assert kept_for("public, max-age=86400") == timedelta(minutes=5)
    assert kept_for("max-age=600, no-store") == timedelta(0)
    assert kept_for("no-cache") == timedelta(0)
    assert kept_for("") == timedelta(minutes=1)


# -- requests that are refused


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"grant_type": "authorization_code"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "invalid_request"),
        ({"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"}, "invalid_request"),
        ({"client_assertion": ""}, "invalid_request"),
        ({"client_id": "meadow-ehr"}, "invalid_client"),
        ({"scope": ""}, "invalid_scope"),
        ({"scope": "   "}, "invalid_scope"),
        ({"scope": "system/Patient.sr"}, "invalid_scope"),
        ({"scope": "user/Patient.rs"}, "invalid_scope"),
        ({"scope": "system/Patient.rs?_id=1"}, "invalid_scope"),
        ({"scope": "system/Patient.rs " * 200}, "invalid_scope"),
    ],
)
def test_forms_that_are_refused(light: Exchange, form: dict[str, str], error: str) -> None:
    with pytest.raises(OAuthError) as refused:
        light.issue(**form)
    assert refused.value.error == error


def test_a_scope_that_is_not_registered_is_refused(light: Exchange) -> None:
    for scope in ("system/*.cruds", "system/Patient.cruds", "system/Patient.rs system/Observation.rs", "system/*.rs"):
        refused = refusal(light, light.assertion("lakeside-rsa", key=rsa_key("rsa")), scope=scope)
        assert (refused.error, refused.status) == ("invalid_scope", 400)


Forge = Callable[[Exchange], str]


def unsigned(exchange: Exchange) -> str:
    _header, claims, _signature = exchange.assertion().split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"lakeside"}').rstrip(b"=").decode()
    return f"{none}.{claims}."


def signed_with_the_public_key(exchange: Exchange) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"lakeside"}').rstrip(b"=").decode()
    signed = f"{head}.{exchange.assertion().split('.')[1]}"
    code = hmac.digest(ec_key("lakeside").as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(code).rstrip(b'=').decode()}"


def signed_by_a_stranger(exchange: Exchange) -> str:
    stranger = ECKey.generate_key("P-384", parameters={"kid": "lakeside"})
    return exchange.assertion(key=stranger)


def with_other_claims(exchange: Exchange) -> str:
    header, _claims, signature = exchange.assertion().split(".")
    return ".".join((header, exchange.assertion(jti="another").split(".")[1], signature))


def es256(exchange: Exchange) -> str:
    key = ECKey.generate_key("P-256", parameters={"kid": "lakeside"})
    return jwt.encode({"alg": "ES256", "kid": "lakeside"}, part(exchange.assertion(), 1), key, algorithms=["ES256"])


def claiming(**claims: Any) -> Forge:
    return lambda exchange: exchange.assertion(**claims)


def at(name: str, seconds: int, **claims: Any) -> Forge:
    return lambda exchange: exchange.assertion(**{name: int(exchange.clock().timestamp()) + seconds, **claims})


@pytest.mark.parametrize(
    ("forge", "hint"),
    [
        pytest.param(unsigned, "must be signed with RS384 or ES384", id="alg none"),
        pytest.param(signed_with_the_public_key, "must be signed with RS384 or ES384", id="HS256 with the public key"),
        pytest.param(es256, "must be signed with RS384 or ES384", id="ES256"),
        pytest.param(signed_by_a_stranger, "signature does not fit", id="another key of that kid"),
        pytest.param(with_other_claims, "signature does not fit", id="claims exchanged"),
        pytest.param(lambda x: x.assertion(key=ec_key("meadow")), "No single registered key", id="unknown kid"),
        pytest.param(lambda x: x.assertion(header={"kid": None}), "must name its key (kid)", id="no kid"),
        pytest.param(
            lambda x: x.assertion(key=rsa_key("rsa"), header={"kid": "lakeside"}), "No single registered", id="kty"
        ),
        pytest.param(
            lambda x: x.assertion(header={"jku": "https://evil.example/jwks"}), "jku", id="jku of an attacker"
        ),
        pytest.param(lambda x: x.assertion("nobody-ehr"), "not the id of a registered client", id="unknown client"),
        pytest.param(claiming(iss=None), "not the id of a registered client", id="no iss"),
        pytest.param(claiming(iss=["lakeside-ehr"]), "not the id of a registered client", id="iss not text"),
        pytest.param(claiming(sub="meadow-ehr"), "iss and sub", id="iss is not sub"),
        pytest.param(claiming(sub=None), "iss and sub", id="no sub"),
        pytest.param(claiming(aud="https://other.example/token"), "aud", id="misdirected"),
        pytest.param(claiming(aud=[TOKEN_URL, "https://other.example/token"]), "aud", id="two audiences"),
        pytest.param(claiming(aud=BASE), "aud", id="aud is the base"),
        pytest.param(claiming(aud=None), "aud", id="no aud"),
        pytest.param(at("exp", -5), "expired", id="expired"),
        pytest.param(at("exp", 301), "at most 5 minutes", id="lives too long"),
        pytest.param(at("iat", -100, exp=None), "needs an expiry", id="no exp"),
        pytest.param(at("iat", -100), "at most 5 minutes", id="made long before"),
        pytest.param(claiming(exp="soon"), "needs an expiry", id="exp not a number"),
        pytest.param(claiming(exp=10**300), "needs an expiry", id="exp beyond time"),
        pytest.param(at("iat", 60), "iat of the assertion", id="issued in the future"),
        pytest.param(at("nbf", 60), "nbf of the assertion", id="not valid yet"),
        pytest.param(claiming(jti=None), "jti", id="no jti"),
        pytest.param(claiming(jti=""), "jti", id="empty jti"),
        pytest.param(claiming(jti="j" * 256), "jti", id="long jti"),
        pytest.param(claiming(jti=7), "jti", id="jti not text"),
        pytest.param(claiming(jti="a\0b"), "jti", id="jti with NUL"),
        pytest.param(lambda _x: "a.b.c", "not a signed JWT", id="no JWT"),
        pytest.param(lambda _x: "é.é.é", "not a signed JWT", id="not ASCII"),
        pytest.param(lambda _x: "A" * 20_000, "too long", id="long"),
        pytest.param(lambda x: x.assertion() + ".e30", "not a signed JWT", id="four parts"),
    ],
)
def test_assertions_that_prove_nothing(light: Exchange, forge: Forge, hint: str) -> None:
    refused = refusal(light, forge(light))
    assert (refused.error, refused.status) == ("invalid_client", 401)
    assert hint in refused.message


def test_a_kid_that_two_keys_have_proves_nothing(light: Exchange) -> None:
    """Registration refuses such a set; the rule holds for one that came otherwise."""
    client = light.directory.client("lakeside-ehr")
    assert client is not None
    twice = {"keys": [*jwks(ec_key("lakeside"))["keys"] * 2]}
    with light.database.write() as connection:
        connection.execute(sa.text("UPDATE clients SET jwks = :j WHERE id = 'lakeside-ehr'"), {"j": json.dumps(twice)})
        connection.execute(sa.text("UPDATE directory_version SET version = version + 1"))
    assert "No single registered key" in refusal(light).message


@pytest.mark.parametrize(
    ("b2b", "extensions", "hint"),
    [
        pytest.param({}, {"hl7-b2b": None}, "needs extensions.hl7-b2b", id="no extension"),
        pytest.param({}, {"hl7-b2b": "TREAT"}, "needs extensions.hl7-b2b", id="extension not an object"),
        pytest.param({"version": "2"}, {}, "needs extensions.hl7-b2b", id="version"),
        pytest.param({"version": 1}, {}, "needs extensions.hl7-b2b", id="version not text"),
        pytest.param(
            {"organization_id": f"{BASE}/fhir/Organization/meadow"}, {}, "client's own organization", id="another's"
        ),
        pytest.param(
            {"organization_id": f"{BASE}/fhir/Organization/exchange"}, {}, "client's own organization", id="exchange's"
        ),
        pytest.param({"organization_id": None}, {}, "client's own organization", id="no organization"),
        pytest.param({"purpose_of_use": None}, {}, "list of at least one", id="no purpose"),
        pytest.param({"purpose_of_use": []}, {}, "list of at least one", id="empty purposes"),
        pytest.param({"purpose_of_use": PURPOSE + "TREAT"}, {}, "list of at least one", id="purpose not a list"),
        pytest.param({"purpose_of_use": [PURPOSE + "HMARKT"]}, {}, "not known here", id="unknown purpose"),
        pytest.param({"purpose_of_use": ["TREAT"]}, {}, "not known here", id="purpose without system"),
        pytest.param({"purpose_of_use": [PURPOSE + "HPAYMT"]}, {}, "does not hold", id="purpose not held"),
        pytest.param(
            {"purpose_of_use": [PURPOSE + "TREAT", PURPOSE + "HPAYMT"]}, {}, "does not hold", id="one of two not held"
        ),
        pytest.param({"subject_name": "x" * 101}, {}, "subject_name", id="long name"),
        pytest.param({"subject_name": "a\nb"}, {}, "subject_name", id="name of two lines"),
        pytest.param({**BTG, **DOCTOR}, {}, "hie-break-glass", id="BTG without declaration"),
        pytest.param(
            {**BTG, **DOCTOR}, {"hie-break-glass": {"reason": REASON}}, "hie-break-glass", id="declaration, no version"
        ),
        pytest.param(
            {**BTG, **DOCTOR}, {"hie-break-glass": {"version": "1"}}, "must say why", id="declaration, no reason"
        ),
        pytest.param(
            {**BTG, **DOCTOR},
            {"hie-break-glass": {"version": "1", "reason": "       x        "}},
            "must say why",
            id="blank reason",
        ),
        pytest.param(
            {**BTG, **DOCTOR},
            {"hie-break-glass": {"version": "1", "reason": "emergency"}},
            "must say why",
            id="nine characters",
        ),
        pytest.param({**BTG, **SUBJECT}, DECLARED, "subject_role", id="BTG without role"),
        pytest.param({**BTG, **DOCTOR, "subject_id": None}, DECLARED, "subject_id", id="BTG without id"),
        pytest.param({**BTG, **DOCTOR, "subject_name": " "}, DECLARED, "subject_name", id="BTG without name"),
        pytest.param(
            {**BTG, **DOCTOR, "subject_role": "clerk"}, DECLARED, "clinical subject_role", id="BTG by a clerk"
        ),
        pytest.param(
            {**DOCTOR, "purpose_of_use": [PURPOSE + "BTG", PURPOSE + "HOPERAT"]},
            DECLARED,
            "for treatment only",
            id="BTG for operations",
        ),
    ],
)
def test_contexts_that_do_not_hold(light: Exchange, b2b: dict[str, Any], extensions: dict[str, Any], hint: str) -> None:
    refused = refusal(light, light.assertion(b2b=b2b, extensions=extensions))
    assert (refused.error, refused.status) == ("invalid_grant", 400)
    assert hint in refused.message


def test_extensions_that_are_no_object(light: Exchange) -> None:
    for extensions in (None, "hl7-b2b", []):
        claims = part(light.assertion(), 1) | {"extensions": extensions}
        head = {"alg": "ES384", "kid": "lakeside"}
        bare = jwt.encode(head, claims, ec_key("lakeside"), algorithms=["ES384"])
        assert refusal(light, bare).error == "invalid_grant"


def test_only_a_care_providers_system_breaks_the_glass(light: Exchange) -> None:
    meadow = light.assertion("meadow-ehr", b2b={**BTG, **DOCTOR}, extensions=DECLARED)
    assert refusal(light, meadow).error == "invalid_grant"  # does not hold it
    payer = light.assertion("harvest-claims", b2b={**BTG, **DOCTOR}, extensions=DECLARED)
    assert refusal(light, payer).error == "unauthorized_client"


def test_the_privacy_office_does_not_treat(light: Exchange) -> None:
    refused = refusal(light, light.assertion("privacy-office"), scope="system/AuditEvent.rs")
    assert (refused.error, "does not hold" in refused.message) == ("invalid_grant", True)


@pytest.mark.parametrize(
    ("role", "clinical"),
    [
        ("urn:oid:2.16.840.1.113883.6.101#207P00000X", True),  # emergency medicine
        ("http://nucc.org/provider-taxonomy#163W00000X", True),  # registered nurse
        ("urn:oid:2.16.840.1.113883.6.101#390200000X", True),  # student, as residents are
        ("urn:oid:2.16.840.1.113883.6.101#282N00000X", False),  # a hospital
        ("urn:oid:2.16.840.1.113883.6.101#171W00000X", False),  # contractor
        ("urn:oid:2.16.840.1.113883.6.96#112247003", True),  # medical doctor
        ("http://snomed.info/sct#224535009", True),  # registered nurse
        ("urn:oid:2.16.840.1.113883.6.96#112247004", False),  # wrong check digit
        ("urn:oid:2.16.840.1.113883.6.96#", False),
        ("112247003", False),
    ],
)
def test_clinical_roles(role: str, clinical: bool) -> None:
    assert is_clinical(role) is clinical


# -- replay


def test_an_assertion_is_good_once_for_all_workers(exchange: Exchange, tmp_path: Path) -> None:
    other_worker = Exchange(exchange.database, tmp_path, exchange.clock)
    assertion = exchange.assertion()
    assert exchange.issue(assertion)
    assert "used before" in refusal(exchange, assertion).message
    assert "used before" in refusal(other_worker, assertion).message
    assert "used before" in refusal(other_worker, other_worker.assertion(jti=part(assertion, 1)["jti"])).message
    other_worker.audit.close()


def test_a_replay_race_has_one_winner(exchange: Exchange, tmp_path: Path) -> None:
    workers = [exchange, Exchange(exchange.database, tmp_path, exchange.clock)]
    assertion = exchange.assertion()

    def attempt(n: int) -> str:
        try:
            return str(workers[n % 2].issue(assertion)["token_type"])
        except OAuthError as refused:
            return refused.error

    with ThreadPoolExecutor(8) as threads:
        results = sorted(threads.map(attempt, range(8)))
    assert results == ["bearer"] + ["invalid_client"] * 7
    workers[1].audit.close()


def test_a_jti_is_one_clients_own(light: Exchange) -> None:
    light.issue(light.assertion(jti="same"))
    assert light.issue(light.assertion("meadow-ehr", jti="same"))


def test_an_assertion_is_used_up_even_where_its_request_is_refused(light: Exchange) -> None:
    assertion = light.assertion()
    assert refusal(light, assertion, scope="system/Patient.sr").error == "invalid_scope"
    assert "used before" in refusal(light, assertion).message


def test_a_replay_inside_the_leeway_is_refused_and_old_ones_are_forgotten(light: Exchange) -> None:
    assertion = light.assertion()
    light.issue(assertion)
    light.clock.pass_(seconds=243)
    assert "used before" in refusal(light, assertion).message
    light.clock.pass_(minutes=11)
    light.issue()
    with light.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(client_assertions)) == 1


# -- what a token is worth


def test_a_token_lives_five_minutes(light: Exchange) -> None:
    authorization = bearer(light.issue())
    light.clock.pass_(seconds=299)
    assert light.authority.caller(authorization, address="")
    light.clock.pass_(seconds=1)
    with pytest.raises(Unauthorized, match="expired"):
        light.authority.caller(authorization, address="")


def forged(exchange: Exchange, *, key: bytes = SECRET, alg: str = "HS256", typ: str = "at+jwt", **claims: Any) -> str:
    real = part(exchange.issue()["access_token"], 1)
    return jwt.encode({"alg": alg, "typ": typ}, {**real, **claims}, OctKey.import_key(key), algorithms=[alg])


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic bGFrZXNpZGU6eA==",
        "Bearer a.b.c",
        "Bearer " + "x" * 9000,
        "Bearer é",
    ],
)
def test_headers_that_are_no_bearer_token(light: Exchange, header: str) -> None:
    with pytest.raises(Unauthorized):
        light.authority.caller(header, address="")


@pytest.mark.parametrize(
    "forgery",
    [
        {"key": bytes(32)},
        {"alg": "HS512"},
        {"typ": "JWT"},
        {"aud": "https://other.example/fhir"},
        {"iss": "https://other.example"},
    ],
)
def test_forged_tokens(light: Exchange, forgery: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized, match="not valid here"):
        light.authority.caller(f"Bearer {forged(light, **forgery)}", address="")


def test_an_assertion_is_no_token(light: Exchange) -> None:
    with pytest.raises(Unauthorized, match="not valid here"):
        light.authority.caller(f"Bearer {light.assertion()}", address="")


def test_the_scheme_is_read_in_any_case(light: Exchange) -> None:
    assert light.authority.caller(f"bearer {light.issue()['access_token']}", address="")


def test_another_worker_knows_the_token(exchange: Exchange, tmp_path: Path) -> None:
    other = Exchange(exchange.database, tmp_path, exchange.clock)
    caller = exchange.authority.caller(bearer(exchange.issue()), address="")
    assert other.authority.caller(bearer(exchange.issue()), address="") != caller  # each token is a session of its own
    assert other.authority.caller(bearer(exchange.issue()), address="").organization == "lakeside"


def test_what_a_client_lost_is_not_in_its_token_any_more(exchange: Exchange) -> None:
    both = {"purpose_of_use": [PURPOSE + "TREAT", PURPOSE + "HOPERAT"]}
    authorization = bearer(exchange.issue(exchange.assertion(b2b=both), "system/*.rs"))
    content = manifest_dict()
    content["members"][0]["purposes"] = ["HOPERAT"]
    content["members"][0]["clients"][0]["scopes"] = ["system/Patient.cruds", "system/Observation.r"]
    exchange.directory.apply(manifest(content))
    caller = exchange.authority.caller(authorization, address="")
    assert caller.purposes == {"HOPERAT"}
    assert str(caller.scopes) == "system/Patient.rs system/Observation.r"

    content["members"][0]["purposes"] = ["PUBHLTH"]
    exchange.directory.apply(manifest(content))
    with pytest.raises(Unauthorized, match="no longer holds the purpose"):
        exchange.authority.caller(authorization, address="")


def test_break_glass_ends_when_the_member_loses_it(light: Exchange) -> None:
    authorization = bearer(light.issue(light.assertion(b2b={**BTG, **DOCTOR}, extensions=DECLARED)))
    content = manifest_dict()
    content["members"][0]["purposes"] = ["TREAT"]
    light.directory.apply(manifest(content))
    caller = light.authority.caller(authorization, address="")
    assert (caller.break_glass, caller.break_glass_reason, caller.purposes) == (False, None, {"TREAT"})


def test_the_token_of_a_removed_or_moved_client_is_worth_nothing(light: Exchange) -> None:
    removed = bearer(light.issue(light.assertion("lakeside-rsa", key=rsa_key("rsa"))))
    moved = bearer(light.issue())
    content = manifest_dict()
    del content["members"][0]["clients"][1]
    content["members"][1]["clients"].append(content["members"][0]["clients"].pop())
    light.directory.apply(manifest(content))
    for authorization in (removed, moved):
        with pytest.raises(Unauthorized, match="not registered as it was"):
            light.authority.caller(authorization, address="")


# -- the log


def test_every_token_and_every_refusal_is_in_the_log(exchange: Exchange) -> None:
    exchange.issue(exchange.assertion(b2b={**BTG, **DOCTOR}, extensions=DECLARED))
    refusal(exchange, signed_by_a_stranger(exchange))
    refusal(exchange, scope="system/Patient.sr")
    refusal(exchange, client_assertion="")
    outcomes = [entry["outcome"] for entry in log_of(exchange)]
    assert outcomes == ["0", "4", "4", "4"]
    text = json.dumps(log_of(exchange))
    assert "access token issued; break-glass declared" in text
    assert "access token refused, invalid_client" in text
    assert "lakeside-ehr" in text
    assert "192.0.2.7" in text


def test_no_token_where_the_log_is_shut(light: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    def shut(*_events: object) -> None:
        raise AuditUnavailable

    monkeypatch.setattr(light.audit, "record", shut)
    with pytest.raises(AuditUnavailable):
        light.issue()


def test_what_the_client_sent_is_not_repeated(light: Exchange) -> None:
    marked = light.assertion(aud="https://tell-tale.example", jti="tell-tale")
    refused = refusal(light, marked)
    assert "tell-tale" not in refused.message
    assert marked.split(".")[2] not in refused.message
    assert "tell-tale" not in json.dumps(log_of(light))


# -- a server of keys


class KeyServer:
    """Answers with a key set, and counts."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {"keys": []}
        self.status = 200
        self.hits = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.hits += 1
                body = json.dumps(outer.document).encode()
                self.send_response(outer.status)
                self.send_header("Cache-Control", "max-age=240")
                self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks.json"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    server = KeyServer()
    yield server
    server.server.shutdown()
    server.server.server_close()
