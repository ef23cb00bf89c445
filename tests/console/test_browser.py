"""The pages in a real browser: by keyboard, on a phone, for a screen reader, on paper, without JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, Page, expect

from hie.audit.log import SourceFailure
from hie.gateway.capability import CapabilityReport, Finding
from hie.gateway.directory import User
from hie.gateway.release import ChartAnswer, SourcesFailed
from tests.console.browser import DESK, PHONE, chromium, faults, served, sign_in
from tests.console.fakes import (
    ADMINISTRATOR,
    CANDIDATES,
    LAKESIDE,
    NOW,
    OPERATOR,
    PASSWORD,
    PHYSICIAN,
    WILLOW,
    Console,
    answer,
    full_answer,
    make_console,
    status,
)

pytestmark = pytest.mark.browser
CHART = "/emergency/people/p-marta"
SILENT = answer(sources=(status(LAKESIDE, count=0), status(WILLOW, "unreachable", 0)), restricted=True)
FAILED = SourcesFailed([{"code": "timeout", "diagnostics": "Willow Nursing Home did not answer."}], all_timed_out=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@dataclass
class Site:
    """A served console, and pages of a browser that go to it."""

    console: Console
    address: str
    browser: Browser

    def open(self, viewport: dict[str, int], **more: object) -> Page:
        context = self.browser.new_context(viewport=viewport, base_url=self.address, **more)  # type: ignore[arg-type]
        context.set_default_timeout(10_000)
        return context.new_page()

    def enter(self, user: User, viewport: dict[str, int] = DESK, **more: object) -> Page:
        page = self.open(viewport, **more)
        sign_in(page, self.address, user.email, PASSWORD)
        return page


@pytest.fixture
def site(browser: Browser) -> Iterator[Site]:
    console = make_console()
    console.release.people = list(CANDIDATES)
    console.release.answer = full_answer()
    console.audit.failures = [SourceFailure(NOW, "timeout", "request-1"), SourceFailure(NOW, "open-circuit", "r2")]
    with served(console.app) as address:
        yield Site(console, address, browser)
        for context in browser.contexts:
            context.close()


def test_a_physician_finds_the_allergies_by_keyboard_alone(site: Site) -> None:
    page = site.open(DESK)
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("E-mail")).to_be_focused()
    page.keyboard.type(PHYSICIAN.email)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Last name")).to_be_focused()
    page.keyboard.type("Lindquist")
    page.keyboard.press("Tab")
    page.keyboard.type("Marta")
    for part in ("11", "2", "1949"):
        page.keyboard.press("Tab")
        page.keyboard.type(part)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("2 candidates")
    press_until_focused(page, "Marta Elisabet Lindqvist")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Penicillin V")).to_be_visible()
    patient = site.console.release.lookups[0][1]
    assert (patient["name"][0]["family"], patient["birthDate"]) == ("Lindquist", "1949-11-02")


def press_until_focused(page: Page, words: str) -> None:
    """Tab to the link or button that holds these words; fails after going round once."""
    for _ in range(30):
        page.keyboard.press("Tab")
        if words in page.evaluate("document.activeElement.textContent"):
            return
    raise AssertionError(f"no way by keyboard to {words}")


def test_the_glass_is_broken_by_keyboard(site: Site) -> None:
    page = site.enter(PHYSICIAN)
    page.goto(CHART)
    press_until_focused(page, "Break the glass in an emergency")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("unconscious after a fall")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="The glass is broken for this patient")).to_be_visible()
    assert site.console.release.charts[-1][0].break_glass


def test_on_a_phone_the_first_screen_shows_the_most_dangerous_allergy(site: Site) -> None:
    page = site.enter(PHYSICIAN, PHONE)
    page.goto(CHART)
    for heading in ("This record is not complete", "Allergies 2", "Penicillin V"):
        expect(page.get_by_role("heading", name=heading)).to_be_in_viewport()
    expect(page.get_by_text("Anaphylaxis (severe)")).to_be_in_viewport()


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_pages_before_signing_in_have_no_faults(site: Site, viewport: dict[str, int]) -> None:
    page = site.open(viewport)
    page.goto("/")
    assert faults(page) == []
    page.get_by_label("E-mail").fill(PHYSICIAN.email)
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_be_focused()
    assert faults(page) == []


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_emergency_pages_have_no_faults(site: Site, viewport: dict[str, int]) -> None:
    page = site.enter(PHYSICIAN, viewport)
    assert faults(page) == []
    page.goto("/emergency")
    assert faults(page) == []
    page.get_by_label("Month").fill("13")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("alert")).to_be_focused()
    assert faults(page) == []
    page.get_by_label("Last name").fill("Lindquist")
    page.get_by_label("First name").fill("Marta")
    page.get_by_label("Month").fill("")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 candidates")
    assert faults(page) == []
    site.console.release.people = []
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Nobody found")
    assert faults(page) == []


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("given", [full_answer(), SILENT, FAILED], ids=["full", "silent", "failed"])
def test_the_chart_has_no_faults_whatever_was_answered(
    site: Site, viewport: dict[str, int], given: ChartAnswer | SourcesFailed
) -> None:
    page = site.enter(PHYSICIAN, viewport)
    site.console.release.answer = given
    page.goto(CHART)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert faults(page) == []


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_members_pages_have_no_faults(
    site: Site, viewport: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = (Finding("ok", "connection", "It answers."), Finding("error", "search", "No.", "Mend it."))
    monkeypatch.setattr("hie.console.members.capability.check", lambda *_, **__: CapabilityReport(False, findings))
    page = site.enter(ADMINISTRATOR, viewport)
    page.goto("/members")
    assert faults(page) == []
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_text("The endpoint does not work yet.")).to_be_visible()
    assert faults(page) == []
    page.get_by_label("FHIR R4 base address").fill("nowhere")
    page.get_by_role("button", name="Save the endpoint").click()
    expect(page.get_by_role("alert")).to_be_focused()
    assert faults(page) == []
    page.get_by_text("Replace the keys of harbor-ehr").click()
    page.get_by_label("JWK Set with public keys").fill("{}")
    page.get_by_role("button", name="Replace the keys").click()
    expect(page.get_by_text("The text must be a JWK Set")).to_be_visible()
    assert faults(page) == []


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize(
    ("user", "path"),
    [
        (OPERATOR, "/members"),
        (OPERATOR, "/members/lakeside"),
        (ADMINISTRATOR, "/"),
        (ADMINISTRATOR, "/emergency"),
        (ADMINISTRATOR, "/no"),
    ],
    ids=["list", "read-only", "home", "refused", "not-found"],
)
def test_the_other_pages_have_no_faults(site: Site, viewport: dict[str, int], user: User, path: str) -> None:
    page = site.enter(user, viewport)
    page.goto(path)
    assert faults(page) == []


def test_while_the_organizations_are_asked_the_page_says_so(site: Site) -> None:
    page = site.enter(PHYSICIAN)
    # Playwright waits for a navigation before it looks at a page, so the page itself notes what it says meanwhile.
    page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
             const progress = document.getElementById("progress");
             const note = () => progress.textContent && sessionStorage.setItem("said", progress.textContent);
             new MutationObserver(note).observe(progress, {childList: true});
           });"""
    )
    page.goto("/emergency")
    page.get_by_label("Last name").fill("Lindquist")
    page.get_by_label("First name").fill("Marta")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="Marta Elisabet Lindqvist").click()
    expect(page.get_by_role("heading", name="Penicillin V")).to_be_visible()
    asking = "Asking Heartland Cardiology, Lakeside Family Practice and Willow Nursing Home…"
    assert page.evaluate("sessionStorage.getItem('said')") == asking
    page.go_back()
    expect(page.locator("#progress")).to_have_text("")


def test_everything_works_without_javascript(site: Site) -> None:
    page = site.enter(PHYSICIAN, java_script_enabled=False)
    page.get_by_role("link", name="Emergency lookup").first.click()
    page.get_by_label("Last name").fill("Lindquist")
    page.get_by_label("First name").fill("Marta")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="Marta Elisabet Lindqvist").click()
    expect(page.get_by_role("heading", name="Penicillin V")).to_be_visible()
    page.get_by_text("Break the glass in an emergency").click()
    page.get_by_label("Why is this needed now?").fill("unconscious after a fall")
    page.get_by_role("button", name="Break the glass").click()
    expect(page.get_by_role("heading", name="The glass is broken for this patient")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()

    page = site.enter(ADMINISTRATOR, java_script_enabled=False)
    page.goto("/members")
    page.get_by_text("Basic: user name and password").click()
    page.get_by_label("User name", exact=True).fill("hie")
    page.get_by_label("Password", exact=True).fill("secret")
    page.get_by_role("button", name="Save the endpoint").click()
    expect(page.get_by_text("The endpoint is saved")).to_be_visible()


def test_the_endpoint_form_shows_the_fields_of_the_chosen_kind(site: Site) -> None:
    page = site.enter(ADMINISTRATOR)
    page.goto("/members")
    expect(page.get_by_label("Token", exact=True)).to_be_visible()
    expect(page.get_by_label("User name", exact=True)).to_be_hidden()
    page.get_by_text("OAuth 2: SMART Backend Services").click()
    expect(page.get_by_label("Token address")).to_be_visible()
    expect(page.get_by_label("Token", exact=True)).to_be_hidden()


def test_nothing_is_loaded_from_elsewhere_and_the_browser_complains_of_nothing(site: Site) -> None:
    page = site.open(DESK)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    sign_in(page, site.address, PHYSICIAN.email, PASSWORD)
    page.goto(CHART)
    page.get_by_text("Refuted or no longer active").click()
    assert complaints == []
    assert [url for url in asked if not url.startswith(site.address)] == []


def test_on_paper_there_is_the_record_without_the_controls(site: Site) -> None:
    page = site.enter(PHYSICIAN)
    page.goto(CHART)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    for shown in ("Penicillin V", "Sulfonamide", "This record is not complete"):
        expect(page.get_by_role("heading", name=shown)).to_be_visible()
    for hidden in ("Sign out", "Print"):
        expect(page.get_by_role("button", name=hidden)).to_be_hidden()
    expect(page.get_by_text("Break the glass in an emergency")).to_be_hidden()
