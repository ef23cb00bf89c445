"""Members: who sees and edits what, what is refused and how it is said."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from joserfc.jwk import ECKey, RSAKey

from hie.audit.event import Kind
from hie.audit.log import SourceFailure
from hie.console import members
from hie.core.caller import Role
from hie.gateway.capability import CapabilityReport, Finding
from hie.gateway.directory import Auth, Endpoint, Member, User
from tests.console.conftest import Visitor
from tests.console.fakes import ADMINISTRATOR, NOW, OPERATOR, PHYSICIAN, STEWARD, Console

As = Callable[[User], Visitor]


def alerts(page: str) -> list[str]:
    """The sentences at the fields."""
    found = re.findall(r'class="usa-error-message"[^>]*>(.*?)</(?:span|div)>', page, re.S)
    return [html.unescape(re.sub(r"<[^>]+>", "", sentence)).strip() for sentence in found]


@pytest.fixture
def administrator(as_: As) -> Visitor:
    visitor = as_(ADMINISTRATOR)
    visitor.get("/members/harbor")
    return visitor


def public(kid: str = "k1") -> dict[str, object]:
    key = ECKey.generate_key("P-384", {"kid": kid, "alg": "ES384"})
    return dict(key.as_dict(private=False))


# -- who sees what


def test_an_administrator_is_led_to_the_own_organization_and_sees_no_other(administrator: Visitor) -> None:
    assert administrator.get("/members").location == "/members/harbor"
    assert "Harbor Emergency Hospital" in administrator.get("/members/harbor").text
    other, absent = administrator.get("/members/lakeside"), administrator.get("/members/nowhere")
    assert other.status_code == absent.status_code == 404
    assert "Lakeside Family" not in other.text


@pytest.mark.parametrize("path", ["endpoint", "check", "clients/lakeside-ehr/keys"])
def test_an_administrator_changes_no_other_organization(administrator: Visitor, console: Console, path: str) -> None:
    before = dict(console.directory.held), dict(console.directory.systems)
    response = administrator.post(f"/members/lakeside/{path}", url="https://a.example", jwks=json.dumps(public()))
    assert response.status_code == 404
    assert (console.directory.held, console.directory.systems) == before


def test_a_client_of_another_organization_is_not_reached_through_the_own_one(
    administrator: Visitor, console: Console
) -> None:
    response = administrator.post("/members/harbor/clients/lakeside-ehr/keys", jwks=json.dumps({"keys": [public()]}))
    assert response.status_code == 404
    assert console.directory.systems["lakeside-ehr"].jwks is None


def test_an_operator_sees_all_and_edits_none(as_: As, console: Console) -> None:
    visitor = as_(OPERATOR)
    listed = visitor.get("/members").text
    assert "Harbor Emergency Hospital" in listed
    assert "Lakeside Family Practice" in listed
    page = visitor.get("/members/lakeside").text
    assert "https://fhir.lakeside.example/r4" in page
    assert "Save the endpoint" not in page
    response = visitor.post("/members/lakeside/endpoint", url="https://moved.example/fhir", type="none")
    assert response.status_code == 403
    assert console.directory.held["lakeside"].endpoint == Endpoint("https://fhir.lakeside.example/r4")


@pytest.mark.parametrize("user", [PHYSICIAN, STEWARD])
@pytest.mark.parametrize("path", ["/members", "/members/harbor"])
def test_other_roles_are_refused_and_the_attempt_is_in_the_audit_log(
    as_: As, console: Console, user: User, path: str
) -> None:
    assert as_(user).get(path).status_code == 403
    assert console.audit.events[-1].kind is Kind.DENIAL


def test_an_administrator_without_an_organization_is_told_whom_to_ask(visitor: Visitor, console: Console) -> None:
    lost = User("lost@exchange.example", "Lost", Role.MEMBER_ADMIN, None)
    console.directory.users_held[lost.email] = lost
    visitor.sign_in(lost)
    assert "Ask the operator" in visitor.get("/members").text


# -- the endpoint


def test_saving_an_endpoint_changes_it_and_is_audited(administrator: Visitor, console: Console) -> None:
    response = administrator.post(
        "/members/harbor/endpoint",
        url="https://NEW.harbor.example:443/fhir/",
        type="basic",
        username="hie",
        password="p w",
    )
    assert response.location == "/members/harbor"
    auth = Auth("basic", username="hie", password="p w")
    assert console.directory.held["harbor"].endpoint == Endpoint("https://new.harbor.example/fhir", auth)
    event = console.audit.events[-1]
    assert (event.kind, event.action, event.entities) == (Kind.DIRECTORY, "U", ("Organization/harbor",))
    assert event.caller is not None
    assert event.caller.user_id == ADMINISTRATOR.email
    assert "p w" not in repr(event)
    page = administrator.get("/members/harbor").text
    assert "The endpoint is saved" in page
    assert "p w" not in page


def test_secrets_are_write_only(administrator: Visitor) -> None:
    page = administrator.get("/members/harbor").text
    assert "stored-token" not in page
    assert "One is stored. Leave this empty to keep it." in page


def test_an_empty_secret_keeps_the_stored_one_while_the_server_stays(administrator: Visitor, console: Console) -> None:
    administrator.post("/members/harbor/endpoint", url="https://fhir.harbor.example/other", type="bearer", token="")
    endpoint = console.directory.held["harbor"].endpoint
    assert endpoint == Endpoint("https://fhir.harbor.example/other", Auth("bearer", token="stored-token"))


@pytest.mark.parametrize(
    "url", ["https://thief.example/r4", "https://fhir.harbor.example:8443/r4", "http://127.0.0.1/r4"]
)
def test_a_stored_secret_does_not_move_to_another_server(administrator: Visitor, console: Console, url: str) -> None:
    response = administrator.post("/members/harbor/endpoint", url=url, type="bearer", token="")
    assert response.status_code == 400
    assert alerts(response.text) == [
        "Give this. It is needed again whenever the server's host or the way of signing in changes."
    ]
    endpoint = console.directory.held["harbor"].endpoint
    assert endpoint is not None
    assert endpoint.url == "https://fhir.harbor.example/r4"


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"url": ""}, "Give the address, starting with https://."),
        ({"url": "ftp://a.example"}, "The address must start with https://."),
        ({"url": "https://10.0.0.1/fhir"}, "The host of the address is not a public address."),
        ({"url": "https://a.example/fhir?x=1"}, "The address must not have a query (?) or a fragment (#)"),
        ({"type": "basic", "password": "x"}, "Give the user name that the exchange signs in with."),
        ({"type": "oauth2", "token_url": "https://a.example/token"}, "Give the client id that your token server knows"),
        ({"type": "oauth2", "client_id": "hie"}, "Give the address, starting with https://."),
        ({"type": "magic"}, "Choose how the exchange signs in."),
    ],
)
def test_a_mistake_is_said_at_its_field_and_nothing_is_saved(
    administrator: Visitor, console: Console, form: dict[str, str], sentence: str
) -> None:
    before = console.directory.held["harbor"]
    response = administrator.post(
        "/members/harbor/endpoint", **{"url": "https://fhir.harbor.example/r4", "type": "none"} | form
    )
    assert response.status_code == 400
    assert [s for s in alerts(response.text) if s.startswith(sentence)]
    assert console.directory.held["harbor"] == before
    assert console.audit.events[-1].kind is Kind.SIGN_IN


def test_an_address_of_another_member_is_refused_with_a_sentence(administrator: Visitor) -> None:
    response = administrator.post("/members/harbor/endpoint", url="https://taken.example/r4", type="none")
    assert response.status_code == 409
    assert alerts(response.text) == ["This address belongs to another member."]


# -- keys


@pytest.mark.parametrize("wrap", [lambda key: {"keys": [key]}, lambda key: key])
def test_public_keys_are_registered_and_audited(
    administrator: Visitor, console: Console, wrap: Callable[[object], object]
) -> None:
    key = public()
    response = administrator.post("/members/harbor/clients/harbor-ehr/keys", jwks=json.dumps(wrap(key)))
    assert response.status_code == 303
    assert console.directory.systems["harbor-ehr"].jwks == {"keys": [key]}
    assert console.audit.events[-1].kind is Kind.DIRECTORY
    page = administrator.get("/members/harbor").text
    assert "EC P-384, ES384" in page
    assert ECKey.import_key(key).thumbprint() in page


def private_jwk() -> str:
    key = ECKey.generate_key("P-384", {"kid": "k1"})
    return json.dumps({"keys": [key.as_dict(private=True)]})


@pytest.mark.parametrize(
    ("pasted", "sentence"),
    [
        ("", "Paste a JWK Set"),
        (private_jwk(), "Key 1 holds a private or secret key; register the public key only"),
        (RSAKey.generate_key(2048).as_pem(private=True).decode(), "This is a private key"),
        (RSAKey.generate_key(2048).as_pem(private=False).decode(), "This is PEM."),
        ("https://harbor.example/jwks.json", "This is an address."),
        ('{"keys": [', "The text is not JSON at line 1"),
        ('{"keys": []}', "The text must be a JWK Set"),
        ("[]", "The text must be a JWK Set"),
        (json.dumps({"keys": [public("a"), public("a")]}), "Key 2 is the kid of an earlier key too"),
        (json.dumps({"keys": [public() | {"crv": "P-256"}]}), "Key 1 must be on the curve P-384"),
    ],
)
def test_keys_that_cannot_be_registered_are_explained_and_never_shown_again(
    administrator: Visitor, console: Console, pasted: str, sentence: str
) -> None:
    response = administrator.post("/members/harbor/clients/harbor-ehr/keys", jwks=pasted)
    assert response.status_code == 400
    (said,) = alerts(response.text)
    assert said.startswith(sentence)
    assert console.directory.systems["harbor-ehr"].jwks is None
    assert re.findall(r"<textarea[^>]*>([^<]*)", response.text) == [""]
    assert len(pasted) < 60 or pasted[-60:] not in html.unescape(response.text)


# -- the check and the failures


def test_the_live_check_shows_each_finding_and_how_to_mend_it(as_: As, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Member] = []

    def check(member: Member, **_: object) -> CapabilityReport:
        checked.append(member)
        return CapabilityReport(
            False,
            (
                Finding("ok", "connection", "The server answers at /metadata."),
                Finding("error", "search", "A search by patient failed.", "Support the patient parameter."),
            ),
        )

    monkeypatch.setattr(members.capability, "check", check)
    visitor = as_(OPERATOR)
    visitor.get("/members/lakeside")
    page = visitor.post("/members/lakeside/check").text
    assert [m.id for m in checked] == ["lakeside"]
    for words in ("The endpoint does not work yet.", "A search by patient failed.", "Support the patient parameter."):
        assert words in page


@pytest.mark.parametrize("status", ["timeout", "unreachable", "error", "invalid", "truncated", "open-circuit"])
def test_each_recent_failure_says_how_to_mend_it(administrator: Visitor, console: Console, status: str) -> None:
    console.audit.failures = [SourceFailure(NOW - timedelta(hours=2), status, "req-77")]
    page = html.unescape(administrator.get("/members/harbor").text)
    assert "4 May 2026, 01:12:45 UTC" in page
    assert "req-77" in page
    assert members.MEND[status] in page


def test_no_failures_is_said_in_words(administrator: Visitor) -> None:
    assert "No question to this organization has failed lately." in administrator.get("/members/harbor").text
