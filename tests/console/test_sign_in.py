"""Signing in: who gets in, what is kept, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from hie.audit.event import Kind, Outcome
from hie.core.errors import AuditUnavailable
from hie.gateway.directory import User
from tests.console.conftest import Visitor
from tests.console.fakes import (
    ADMINISTRATOR,
    OFFICER,
    OPERATOR,
    PASSWORD,
    PATIENT,
    PHYSICIAN,
    STEWARD,
    Console,
    make_console,
)

As = Callable[[User], Visitor]


def test_the_first_page_is_the_sign_in_form_and_then_the_one_page_of_the_role(visitor: Visitor) -> None:
    assert "Password" in visitor.get("/").text
    response = visitor.sign_in(PHYSICIAN)
    assert (response.status_code, response.location) == (303, "/emergency")
    assert "Dr. Rosa Ortiz" in visitor.get("/").text


@pytest.mark.parametrize("email", [PHYSICIAN.email, "nobody@harbor.example"])
def test_a_refused_sign_in_does_not_tell_which_part_was_wrong(visitor: Visitor, email: str) -> None:
    visitor.get("/sign-in")
    response = visitor.post("/sign-in", email=email, password="guess")
    assert response.status_code == 401
    assert "The e-mail or the password is wrong." in response.text
    assert "guess" not in response.text
    assert visitor.get("/emergency").status_code == 303


def test_sign_ins_and_failures_are_in_the_audit_log(visitor: Visitor, console: Console) -> None:
    visitor.sign_in(PHYSICIAN, password="wrong")
    visitor.sign_in(PHYSICIAN)
    visitor.post("/sign-out")
    refused, entered, left = console.audit.events
    assert {e.kind for e in console.audit.events} == {Kind.SIGN_IN}
    assert (refused.outcome, refused.client_id, refused.caller) == (Outcome.MINOR, PHYSICIAN.email, None)
    assert entered.outcome is Outcome.SUCCESS
    assert entered.caller is not None
    assert (entered.caller.user_id, entered.caller.organization) == (PHYSICIAN.email, "harbor")
    assert left.description == "Signed out"
    assert entered.request_id


def test_without_an_audit_entry_nobody_is_in_and_everybody_gets_out(
    visitor: Visitor, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> None:
        raise AuditUnavailable

    visitor.sign_in(ADMINISTRATOR)
    monkeypatch.setattr(console.audit, "record", unavailable)
    assert visitor.post("/sign-out").status_code == 503
    assert visitor.get("/members").status_code == 303
    response = visitor.sign_in(PHYSICIAN)
    assert response.status_code == 503
    assert "Not available just now" in response.text
    assert visitor.get("/emergency").status_code == 303


def test_what_is_typed_as_email_is_kept_only_if_it_names_a_user(visitor: Visitor, console: Console) -> None:
    visitor.get("/sign-in")
    visitor.post("/sign-in", email="my secret password", password="x")
    assert console.audit.events[0].client_id is None
    assert "secret" not in repr(console.audit.events)


def test_a_form_without_its_token_is_refused(visitor: Visitor, console: Console) -> None:
    visitor.get("/sign-in")
    visitor.token = ""
    response = visitor.post("/sign-in", email=PHYSICIAN.email, password=PASSWORD)
    assert response.status_code == 400
    assert "This form had expired" in response.text
    assert console.audit.events == []


def test_every_form_of_a_signed_in_user_wants_its_token(as_: As, console: Console) -> None:
    visitor = as_(PHYSICIAN)
    visitor.token = "forged"
    forms = [rule for rule in console.app.url_map.iter_rules() if "POST" in (rule.methods or ())]
    assert len(forms) >= 7
    for rule in forms:
        path = re.sub(r"<[^>]+>", "1", rule.rule)
        assert visitor.client.post(path, data={"csrf_token": "forged"}).status_code == 400, path


def test_every_page_but_the_first_wants_a_signed_in_user(visitor: Visitor, console: Console) -> None:
    pages = [r for r in console.app.url_map.iter_rules() if r.endpoint not in ("console.home", "console.static")]
    for rule in pages:
        if rule.endpoint.startswith(("console.sign_in", "console.join")):
            continue
        path = re.sub(r"<[^>]+>", "1", rule.rule)
        method = "GET" if "GET" in (rule.methods or ()) else "POST"
        response = visitor.client.open(path, method=method)
        assert response.status_code == 303, path
        assert response.location.startswith("/sign-in"), path


def test_the_wanted_page_opens_after_signing_in(visitor: Visitor) -> None:
    assert visitor.get("/emergency?search=abc").location == "/sign-in?next=/emergency"
    visitor.get("/sign-in?next=/emergency")
    response = visitor.post("/sign-in", email=PHYSICIAN.email, password=PASSWORD, next="/emergency")
    assert response.location == "/emergency"


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example",
        "///evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        "/fhir/Patient",
        "evil.example",
        "",
    ],
)
def test_no_redirect_leaves_the_console(visitor: Visitor, elsewhere: str) -> None:
    assert visitor.sign_in(PHYSICIAN, next=elsewhere).location == "/emergency"
    assert visitor.get("/sign-in", query_string={"next": elsewhere}).location == "/"


def test_signing_out_ends_the_session(as_: As) -> None:
    visitor = as_(PHYSICIAN)
    assert visitor.post("/sign-out").status_code == 303
    assert visitor.get("/emergency").location == "/sign-in?next=/emergency"


def test_an_idle_session_ends_after_half_an_hour(as_: As, console: Console) -> None:
    visitor = as_(PHYSICIAN)
    for _ in range(3):
        console.clock.pass_(minutes=29)
        assert visitor.get("/emergency").status_code == 200
    console.clock.pass_(minutes=31)
    assert visitor.get("/emergency").status_code == 303


def test_no_session_outlives_twelve_hours(as_: As, console: Console) -> None:
    visitor = as_(PHYSICIAN)
    for _ in range(26):
        console.clock.pass_(minutes=28)
        visitor.get("/emergency")
    assert visitor.get("/emergency").status_code == 303


def test_a_user_who_is_removed_is_out_at_the_next_request(as_: As, console: Console) -> None:
    visitor = as_(PHYSICIAN)
    del console.directory.users_held[PHYSICIAN.email]
    assert visitor.get("/emergency").status_code == 303


def test_the_cookie_cannot_be_read_by_scripts_or_sent_by_other_sites(visitor: Visitor) -> None:
    visitor.get("/sign-in")
    cookie = visitor.post("/sign-in", email=PHYSICIAN.email, password=PASSWORD).headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie


def test_over_https_the_cookie_is_secure_and_bound_to_the_host() -> None:
    console = make_console("https://exchange.example")
    with console.app.test_client() as client:
        response = client.get("/", base_url="https://exchange.example")
        assert response.headers["Set-Cookie"].startswith("__Host-hie_console=")
        assert "Secure" in response.headers["Set-Cookie"].split("; ")
        assert response.headers["Strict-Transport-Security"]


def test_the_cookie_shows_nothing_of_what_it_holds(as_: As, console: Console) -> None:
    visitor = as_(PHYSICIAN)
    visitor.get("/emergency")
    visitor.post("/emergency", given="Marta", family="Lindqvist")
    cookie = visitor.client.get_cookie("hie_console")
    assert cookie is not None
    assert cookie.value.startswith("gAAAA")  # a Fernet token


def test_a_cookie_that_was_changed_is_worth_nothing(as_: As) -> None:
    visitor = as_(PHYSICIAN)
    cookie = visitor.client.get_cookie("hie_console")
    assert cookie is not None
    visitor.client.set_cookie("hie_console", cookie.value[:-6] + "AAAAA=")
    assert visitor.get("/emergency").status_code == 303


@pytest.mark.parametrize("path", ["/", "/sign-in", "/nothing", "/members/other", "/emergency"])
def test_pages_carry_strict_headers(as_: As, path: str) -> None:
    response = as_(PHYSICIAN).get(path, headers={"Accept": "text/html"})
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_on_a_page_is_inline(as_: As) -> None:
    text = as_(PHYSICIAN).get("/emergency").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_static_files_are_cached_and_carry_no_cookie(as_: As) -> None:
    response = as_(PHYSICIAN).get("/console/static/console.css")
    assert response.headers["Cache-Control"] == "public, max-age=86400"
    assert "Set-Cookie" not in response.headers


def test_guessing_is_slowed_down(visitor: Visitor) -> None:
    for _ in range(8):
        assert visitor.sign_in(PHYSICIAN, password="guess").status_code == 401
    response = visitor.sign_in(PHYSICIAN)
    assert response.status_code == 429
    assert "Wait a few minutes" in response.text
    assert visitor.sign_in(ADMINISTRATOR).status_code == 303


@pytest.mark.parametrize(
    ("user", "pages"),
    [
        (PHYSICIAN, ["/emergency", "/questions"]),
        (ADMINISTRATOR, ["/members"]),
        (OPERATOR, ["/members"]),
        (OFFICER, [f"/privacy/{name}" for name in ("disclosures", "queue", "consents", "codes", "reports", "log")]),
        (PATIENT, ["/my-record/choices", "/my-record/accesses"]),
        (STEWARD, ["/review"]),
    ],
)
def test_home_lists_only_the_pages_of_the_role(as_: As, user: User, pages: list[str]) -> None:
    text = as_(user).get("/").text
    assert re.findall(r'class="tile" href="([^"]+)"', text) == pages
    if not pages:
        assert "There is nothing for the role “data steward” here yet." in text


def test_a_mistyped_address_is_a_page_for_people_and_an_outcome_for_machines(visitor: Visitor) -> None:
    page = visitor.get("/nothing", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (page.status_code, page.mimetype) == (404, "text/html")
    for path, accept in (("/nothing", "*/*"), ("/fhir/Nothing", "text/html")):
        answer = visitor.get(path, headers={"Accept": accept})
        assert (answer.status_code, answer.mimetype) == (404, "application/fhir+json")
