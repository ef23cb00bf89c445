"""The privacy officer's and the patient's pages in a real browser: by keyboard, on a phone, for a screen reader."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from hie.audit.cases import Status
from hie.audit.health import Found, LogHealth, Progress
from hie.gateway.directory import User
from tests.console.browser import DESK, PHONE, chromium, faults, served, sign_in
from tests.console.fakes import CANDIDATES, OFFICER, PASSWORD, PATIENT, PHYSICIAN, SECOND_OFFICER
from tests.console.office import Office, office, some_weeks

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@dataclass
class Site:
    """The officer's console with some weeks of log, and a browser before it."""

    held: Office
    address: str
    browser: Browser

    def enter(self, user: User, viewport: dict[str, int] = DESK, **more: object) -> Page:
        context = self.browser.new_context(viewport=viewport, base_url=self.address, **more)  # type: ignore[arg-type]
        context.set_default_timeout(10_000)
        page = context.new_page()
        sign_in(page, self.address, user.email, PASSWORD)
        return page

    def case(self) -> str:
        """The page of the break-glass case."""
        self.held.review.collect()
        return f"/privacy/cases/{self.held.review.queue()[0].id}"


@pytest.fixture
def site(browser: Browser, tmp_path: Path) -> Iterator[Site]:
    with office(tmp_path) as held:
        some_weeks(held)
        held.console.release.people = list(CANDIDATES)
        with served(held.console.app) as address:
            yield Site(held, address, browser)
            for context in browser.contexts:
                context.close()


PAGES = (
    "/privacy/disclosures?kind=all",
    "/privacy/disclosures?patient=p-marta",
    "/privacy/disclosures?since=2020-01-01&until=2020-01-02",
    "/privacy/disclosures?since=wrong",
    "/privacy/entries/20",
    "/privacy/find",
    "/privacy/queue",
    "/privacy/queue?tab=closed",
    "/privacy/reports?patient=p-marta",
    "/privacy/log",
)


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_no_page_of_the_officer_has_faults(site: Site, viewport: dict[str, int]) -> None:
    page = site.enter(OFFICER, viewport)
    for path in (*PAGES, site.case()):
        page.goto(path)
        assert faults(page) == [], path


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_pages_that_are_folded_out_or_refused_have_no_faults(site: Site, viewport: dict[str, int]) -> None:
    page = site.enter(OFFICER, viewport)
    for path in ("/privacy/disclosures", "/privacy/entries/20", "/privacy/reports", site.case()):
        page.goto(path)
        for folded in page.locator("main summary").all():
            folded.click()
        assert faults(page) == [], path
    page.goto("/privacy/reports")
    page.get_by_label("Patients").fill("nobody")
    page.get_by_role("button", name="Make the report").click()
    expect(page.get_by_text("Nobody is known as nobody.").first).to_be_visible()
    assert faults(page) == []
    page.goto("/privacy/find")
    page.get_by_label("Last name").fill("Lindqvist")
    page.get_by_role("button", name="Find").click()
    assert faults(page) == []
    page.get_by_label("First name").fill("Marta")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("heading", name="2 candidates")).to_be_visible()
    assert faults(page) == []


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_patients_and_the_clinicians_page_have_no_faults(site: Site, viewport: dict[str, int]) -> None:
    page = site.enter(PATIENT, viewport)
    for path in ("/my-record/accesses", "/my-record/accesses?show=everything"):
        page.goto(path)
        assert faults(page) == [], path
    page = site.enter(PHYSICIAN, viewport)
    page.goto("/questions")
    assert faults(page) == []


def test_a_case_goes_from_the_queue_to_its_end_by_two_people(site: Site) -> None:
    first, second, physician = site.enter(OFFICER), site.enter(SECOND_OFFICER), site.enter(PHYSICIAN)
    first.get_by_role("link", name="Review").first.click()
    first.get_by_role("link", name="Dr. Rosa Ortiz").click()
    expect(first.get_by_text("unconscious after a fall, on unknown medication").first).to_be_visible()
    first.get_by_role("button", name="Take this case").click()
    expect(first.get_by_text("In work")).to_be_visible()
    first.get_by_text("Ask for an explanation").click()
    first.get_by_label("Your question").fill("Was nobody there who knew her?")
    first.get_by_role("button", name="Ask", exact=True).click()

    physician.get_by_role("link", name="Questions").first.click()
    expect(physician.get_by_role("heading", name="Was nobody there who knew her?")).to_be_visible()
    assert faults(physician) == []
    physician.get_by_label("Your answer").fill("She came alone by ambulance.")
    physician.get_by_role("button", name="Send the answer").click()
    expect(physician.get_by_text("Your answer is with the privacy officer.")).to_be_visible()

    first.reload()
    expect(first.get_by_text("She came alone by ambulance.")).to_be_visible()
    first.get_by_text("Give a verdict").click()
    first.get_by_text("Appropriate: there was a good reason").click()
    first.get_by_label("Your reasons").fill("The ambulance sheet confirms it.")
    first.get_by_role("button", name="Give the verdict").click()
    expect(first.get_by_text("The verdict is yours.")).to_be_visible()
    expect(first.get_by_role("button", name="Confirm the verdict and close")).to_have_count(0)

    second.goto("/privacy/queue?tab=confirm")
    second.get_by_role("link", name="Dr. Rosa Ortiz").click()
    second.get_by_role("button", name="Confirm the verdict and close").click()
    expect(second.get_by_role("heading", name="This case is closed")).to_be_visible()
    assert faults(second) == []
    (case,) = site.held.review.queue([Status.CLOSED])
    assert (case.verdict, case.verdict_by) == ("appropriate", OFFICER.email)


def test_the_officer_takes_a_case_by_keyboard_alone(site: Site) -> None:
    page = site.enter(OFFICER)
    page.goto("/privacy/queue")
    _press_until(page, "Dr. Rosa Ortiz")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="What this is about")).to_be_visible()
    _press_until(page, "Take this case")
    page.keyboard.press("Enter")
    expect(page.get_by_text("In work")).to_be_visible()


def _press_until(page: Page, words: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if words in page.evaluate("document.activeElement.textContent"):
            return
    raise AssertionError(f"no way by keyboard to {words}")


def test_filters_and_charts_lead_to_the_entries(site: Site) -> None:
    page = site.enter(OFFICER)
    page.goto("/privacy/disclosures")
    bars = page.locator(".columns rect")
    assert bars.count() > 20
    page.get_by_label("What").select_option("Break-glass disclosures")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("heading", name="2 entries")).to_be_visible()
    page.get_by_role("link", name="Lakeside Family Practice").or_(
        page.get_by_role("link", name="Harbor Emergency Hospital")
    ).first.click()
    expect(page.get_by_role("heading", name="2 entries")).to_be_visible()
    page.get_by_role("link", name="3 May 2026").click()
    expect(page.get_by_role("heading", name="How it was decided")).to_be_visible()


@pytest.mark.parametrize("javascript", [True, False], ids=["script", "no-script"])
def test_a_report_is_downloaded_and_the_page_can_make_another(site: Site, javascript: bool) -> None:
    page = site.enter(OFFICER, java_script_enabled=javascript)
    page.goto("/privacy/reports?patient=p-marta")
    for ending in ("pdf", "csv"):
        page.get_by_label("Format").select_option(ending)
        with page.expect_download() as download:
            page.get_by_role("button", name="Make the report").click()
        assert download.value.suggested_filename == f"accounting-2026-05-04.{ending}"


def test_verify_now_shows_its_progress_and_its_end_without_a_reload(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hie.audit.health._SECONDS_BETWEEN_NOTES", 0)
    page = site.enter(OFFICER)

    def verify(progress: Progress) -> Found:
        progress(40, 128)
        expected.wait()
        return Found(False, 128, "Entry 77 is not what its leaf commits to.")

    expected = threading.Event()
    held = site.held
    held.console.app.extensions["hie"].health = LogHealth(held.database, held.clock, verify)
    page.goto("/privacy/log")
    page.get_by_role("button", name="Verify now").click()
    expect(page.get_by_text("40 of 128 entries")).to_be_visible()
    assert faults(page) == []
    expected.set()
    expect(page.get_by_text("Entry 77 is not what its leaf commits to.")).to_be_visible()
    expect(page.get_by_text("Not whole")).to_be_visible()
    expect(page.get_by_role("button", name="Verify now")).to_be_enabled()


def test_the_patient_reads_and_takes_the_list_along(site: Site) -> None:
    page = site.enter(PATIENT, PHONE)
    page.get_by_role("link", name="Who looked").first.click()
    expect(page.get_by_text("In an emergency, beyond your choices")).to_be_visible()
    expect(page.get_by_text("Martina")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name="PDF").click()
    assert download.value.suggested_filename == "access-2026-05-04.pdf"


def test_nothing_comes_from_elsewhere_and_no_policy_is_broken(site: Site) -> None:
    page = site.enter(OFFICER)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    for path in ("/privacy/disclosures?kind=all", "/privacy/queue", "/privacy/log", site.case()):
        page.goto(path)
    assert {url.split("/", 3)[2] for url in asked} == {site.address.removeprefix("http://")}
    assert complaints == []
