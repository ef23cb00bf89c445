"""Makes the pictures of the documentation: `python -m tests.console.pictures`. Invented people, fixed time."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from playwright.sync_api import Page

from hie.audit.log import SourceFailure
from hie.gateway.capability import CapabilityReport, Finding
from hie.gateway.release import ChartAnswer
from tests.console.browser import chromium, served, sign_in
from tests.console.fakes import ADMINISTRATOR, CANDIDATES, NOW, PASSWORD, PHYSICIAN, full_answer, make_console

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SIZE = {"width": 960, "height": 1040}
REPORT = CapabilityReport(
    ok=True,
    findings=(
        Finding("ok", "connection", "The server answers at /metadata."),
        Finding("ok", "version", "It speaks FHIR 4.0.1."),
        Finding(
            "warning",
            "resources",
            "It does not offer a search for: Coverage, ExplanationOfBenefit.",
            "Nothing to do if your organization does not hold these.",
        ),
    ),
)


def main() -> None:
    """Write both pictures."""
    console = make_console()
    console.release.people = list(CANDIDATES)
    console.release.answer = full_answer()
    answered = console.release.chart

    def after_a_moment(*arguments: Any, **more: Any) -> ChartAnswer:
        time.sleep(0.13)  # as the slowest of the organizations in the picture
        return answered(*arguments, **more)

    console.release.chart = after_a_moment  # type: ignore[method-assign]
    console.audit.failures = [
        SourceFailure(NOW - timedelta(hours=3), "timeout", "u5kq3d2m7c"),
        SourceFailure(NOW - timedelta(days=2), "error", "p2xw8n4r6t"),
    ]
    PICTURES.mkdir(parents=True, exist_ok=True)
    with chromium() as browser, served(console.app) as address:
        page = browser.new_context(viewport=SIZE, base_url=address).new_page()  # type: ignore[arg-type]
        sign_in(page, address, PHYSICIAN.email, PASSWORD)
        page.goto("/emergency")
        page.get_by_label("Last name").fill("Lindquist")
        page.get_by_label("First name").fill("Marta")
        page.get_by_label("Year", exact=True).fill("1949")
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name="Marta Elisabet Lindqvist").click()
        _take(page, "emergency")
        page.get_by_role("button", name="Sign out").click()
        sign_in(page, address, ADMINISTRATOR.email, PASSWORD)
        page.goto("/members")
        with patch("hie.console.members.capability.check", lambda *_, **__: REPORT):
            page.get_by_role("button", name="Check now").click()
            page.get_by_text("The endpoint works.").wait_for()
        _take(page, "members")


def _take(page: Page, name: str) -> None:
    page.evaluate("document.fonts.ready.then(() => { document.activeElement.blur(); scrollTo(0, 0); })")
    page.screenshot(path=str(PICTURES / f"{name}.png"))


if __name__ == "__main__":
    main()
