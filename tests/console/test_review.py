"""Review: the steward's queue, questions, histories, and what they leave in the audit log. Real people and linking."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from hie.audit.event import Kind
from hie.core.database import Database
from hie.mpi.identity import Identifier, IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model
from hie.mpi.stewardship import Stewardship
from tests.console.browser import DESK, PHONE, chromium, faults, served, sign_in
from tests.console.conftest import Visitor
from tests.console.fakes import ADMINISTRATOR, OPERATOR, PASSWORD, PHYSICIAN, STEWARD, Console
from tests.console.test_browser import press_until_focused
from tests.console.test_emergency import As, text_of

SYSTEMS = {"harbor": "urn:oid:2.999.1.1", "lakeside": "urn:oid:2.999.1.2", "willow": "urn:oid:2.999.1.4"}


def otto(suffix: str, **changes: Any) -> dict[str, Any]:
    """Everything agrees but the generation."""
    return {
        "resourceType": "Patient",
        "name": [{"family": "Brandt", "given": ["Otto"], "suffix": [suffix]}],
        "birthDate": "1983-05-19",
        "gender": "male",
        "telecom": [{"system": "phone", "value": "312-555-0188"}],
        "address": [{"line": ["900 Prairie Ave"], "city": "Chicago", "state": "IL", "postalCode": "60616"}],
        **changes,
    }


def marta(**changes: Any) -> dict[str, Any]:
    """Marta, with a social security number."""
    body = otto(
        "",
        name=[{"family": "Lindqvist", "given": ["Marta"]}],
        birthDate="1949-11-02",
        gender="female",
        telecom=[{"system": "phone", "value": "617-555-0107"}],
        identifier=[{"system": "http://hl7.org/fhir/sid/us-ssn", "value": "219-09-5821"}],
    )
    return {**body, **changes}


@dataclass
class Exchange:
    """People of two members, one open question and one pair that the matcher linked."""

    identity: IdentityService
    stewardship: Stewardship
    senior: str
    junior: str
    marta: str

    def feed(self, member: str, value: str, body: dict[str, Any]) -> str:
        system = SYSTEMS[member]
        body = {**body, "identifier": [{"system": system, "value": value}, *body.get("identifier", [])]}
        return self.identity.record(member, Identifier(system, value), body).record.person_id

    @property
    def task(self) -> str:
        case = self.stewardship.queue().cases[0]
        assert case.task is not None
        return case.task.id


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture
def exchange(console: Console, sqlite_database: Database, model: Model) -> Exchange:
    index = MatchIndex(model, is_sqlite=True)
    identity = IdentityService(sqlite_database, index, console.clock)
    stewardship = Stewardship(sqlite_database, index, console.clock)
    services: Any = console.app.extensions["hie"]
    services.identity, services.stewardship = identity, stewardship
    made = Exchange(identity, stewardship, "", "", "")
    made.senior = made.feed("harbor", "H-1", otto("Sr"))
    console.clock.pass_(hours=1)
    made.junior = made.feed("lakeside", "L-1", otto("Jr"))
    console.clock.pass_(hours=1)
    made.marta = made.feed("harbor", "H-2", marta())
    console.clock.pass_(hours=1)
    assert made.feed("lakeside", "L-2", marta()) == made.marta
    console.clock.pass_(hours=1)
    return made


@pytest.fixture
def steward(as_: As, exchange: Exchange) -> Visitor:
    return as_(STEWARD)


@pytest.mark.parametrize("user", [PHYSICIAN, ADMINISTRATOR, OPERATOR])
def test_only_data_stewards_get_in(as_: As, console: Console, exchange: Exchange, user: Any) -> None:
    visitor = as_(user)
    paths = ("/review", f"/review/questions/{exchange.task}", f"/review/people/{exchange.marta}")
    assert {visitor.get(path).status_code for path in paths} == {403}
    visitor.get("/")
    assert visitor.post(f"/review/questions/{exchange.task}", answer="confirm", reason="no business").status_code == 403
    assert len(exchange.stewardship.queue().cases) == 1
    assert console.audit.events[-1].kind is Kind.DENIAL


def test_the_queue_says_what_is_asked_and_the_log_holds_who_was_shown(
    steward: Visitor, console: Console, exchange: Exchange
) -> None:
    console.audit.events.clear()
    words = text_of(steward.get("/review").text)
    assert "1 open question, what matters most first. 1 maybe one person." in words
    assert "Otto Brandt Sr" in words
    assert "In the way: different generational suffixes" in words
    assert "Harbor Emergency Hospital, Lakeside Family Practice" in words
    assert {(e.kind, e.person_id) for e in console.audit.events} == {
        (Kind.SEARCH, exchange.senior),
        (Kind.SEARCH, exchange.junior),
    }


def test_a_question_shows_both_sides_and_what_each_trait_is_worth(steward: Visitor, exchange: Exchange) -> None:
    page = steward.get(f"/review/questions/{exchange.task}").text
    words = text_of(page)
    assert "One person or two?" in words
    assert "Birth date 19 May 1983 19 May 1983" in words
    assert "900 Prairie Ave, Chicago IL 60616" in words
    assert "(312) 555-0188" in words
    assert "Name suffix conflict Jr Sr" in words
    assert "Satisfies CMS matching rules 01, 02, 11 and 30" in words
    assert page.count("<svg") >= 5
    assert re.search(r"[+−]\d+\.\d", words)


def test_a_social_security_number_is_never_shown_whole(steward: Visitor, exchange: Exchange) -> None:
    exchange.feed("willow", "W-1", marta(name=[{"family": "Lindqvist", "given": ["Karl"]}]))
    pages = [steward.get(f"/review/questions/{c.task.id}").text for c in exchange.stewardship.queue().cases if c.task]
    pages += [steward.get(f"/review/people/{exchange.marta}").text, steward.get("/review").text]
    assert not [page for page in pages if "219-09-5821" in page or "219095821" in page]


@pytest.mark.parametrize(("given", "people", "said"), [("confirm", 1, "one person now"), ("reject", 2, "kept apart")])
def test_an_answer_is_carried_out_and_audited(
    steward: Visitor, console: Console, exchange: Exchange, given: str, people: int, said: str
) -> None:
    task = exchange.task
    steward.get(f"/review/questions/{task}")
    console.audit.events.clear()
    response = steward.post(f"/review/questions/{task}", answer=given, reason="Father and son, says the registry")
    assert response.status_code == 303
    links = [e for e in console.audit.events if e.kind is Kind.LINK]
    assert {e.person_id for e in links} == {exchange.senior, exchange.junior}
    assert all("Father and son" in e.description and e.caller.user_id == STEWARD.email for e in links if e.caller)
    assert said in text_of(steward.get(response.location).text)
    found = [exchange.identity.person(i) for i in (exchange.senior, exchange.junior)]
    assert len({p.id for p in found if p}) == people


def test_the_last_decision_is_undone_from_the_next_page(steward: Visitor, exchange: Exchange) -> None:
    task = exchange.task
    steward.get(f"/review/questions/{task}")
    after = steward.post(f"/review/questions/{task}", answer="confirm", reason="Same passport").location
    page = steward.get(after).text
    action = re.search(r'action="(/review/undo/[^"]+)"', page)
    assert action
    steward.post(action[1])
    assert exchange.task == task
    junior = exchange.identity.person(exchange.junior)
    assert junior is not None
    assert junior.id == exchange.junior


@pytest.mark.parametrize(
    ("form", "status"), [({"answer": "confirm", "reason": "x"}, 400), ({"reason": "because"}, 400)]
)
def test_an_answer_without_a_reason_changes_nothing(
    steward: Visitor, exchange: Exchange, form: dict[str, str], status: int
) -> None:
    steward.get(f"/review/questions/{exchange.task}")
    assert steward.post(f"/review/questions/{exchange.task}", **form).status_code == status
    assert len(exchange.stewardship.queue().cases) == 1


def test_a_question_that_somebody_else_settled_says_so(steward: Visitor, exchange: Exchange) -> None:
    task = exchange.task
    steward.get(f"/review/questions/{task}")
    steward.post(f"/review/questions/{task}", answer="confirm", reason="Same passport")
    steward.get("/review")
    again = steward.post(f"/review/questions/{task}", answer="reject", reason="Not at all")
    assert "settled already" in text_of(steward.get(again.location).text)


def test_a_history_tells_undoes_and_splits(steward: Visitor, exchange: Exchange) -> None:
    words = text_of(steward.get(f"/review/people/{exchange.marta}").text)
    assert "Record received 4 May 2026" in words
    assert "by harbor" in words
    record = exchange.identity.source_record(Identifier(SYSTEMS["lakeside"], "L-2"))
    assert record is not None
    response = steward.post(f"/review/people/{exchange.marta}/split", record=record.id, reason="Her cousin")
    assert "Split off" in text_of(steward.get(response.location).text)
    moved = exchange.identity.source_record(Identifier(SYSTEMS["lakeside"], "L-2"))
    assert moved is not None
    assert moved.person_id != exchange.marta
    page = steward.get(f"/review/people/{exchange.marta}").text
    undo = re.search(r'action="(/review/undo/[^"]+)"', page)
    assert undo
    steward.post(undo[1], person=exchange.marta)
    back = exchange.identity.source_record(Identifier(SYSTEMS["lakeside"], "L-2"))
    assert back is not None
    assert back.person_id == exchange.marta


def test_two_people_are_merged_by_id_and_mistakes_say_what_to_do(steward: Visitor, exchange: Exchange) -> None:
    steward.get(f"/review/people/{exchange.marta}")
    assert (
        "knows no such person"
        in steward.post(f"/review/people/{exchange.marta}/merge", other="nobody", reason="Same passport").text
    )
    assert "leave at least one" in steward.post(f"/review/people/{exchange.marta}/split", reason="All of it").text
    steward.post(f"/review/people/{exchange.senior}/merge", other=exchange.junior, reason="Same passport")
    merged = exchange.identity.person(exchange.junior)
    assert merged is not None
    assert merged.id == exchange.senior


def test_a_person_as_of_a_day(steward: Visitor, exchange: Exchange) -> None:
    words = text_of(steward.get(f"/review/people/{exchange.marta}?at=2026-05-03").text)
    assert "the exchange knew no record of this person" in words
    words = text_of(steward.get(f"/review/people/{exchange.marta}?at=2026-05-04").text)
    assert "2 records" in words


def test_no_name_is_ever_in_an_address(steward: Visitor, exchange: Exchange) -> None:
    paths = ("/review", f"/review/questions/{exchange.task}", f"/review/people/{exchange.marta}")
    pages = [steward.get(path).text for path in paths]
    addresses = [a for page in pages for a in re.findall(r'(?:href|action)="([^"]*)"', page)]
    assert not [a for a in addresses if re.search("otto|brandt|lindq|1983|1949", a, re.IGNORECASE)]


# -- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, console: Console, exchange: Exchange) -> Iterator[Page]:
    with served(console.app) as address:
        context = browser.new_context(viewport=DESK, base_url=address)  # type: ignore[arg-type]
        context.set_default_timeout(20_000)
        page = context.new_page()
        sign_in(page, address, STEWARD.email, PASSWORD)
        yield page
        context.close()


@pytest.mark.browser
def test_a_steward_settles_a_question_by_keyboard_alone(page: Page, exchange: Exchange) -> None:
    page.goto("/")
    press_until_focused(page, "Review")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Review", exact=True)).to_be_visible()
    press_until_focused(page, "Otto Brandt")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reason, which is kept with your name")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("The registry says father and son")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="They are kept apart.")).to_be_visible()
    assert exchange.stewardship.queue().cases == ()
    press_until_focused(page, "Undo the last decision")
    page.keyboard.press("Enter")
    expect(page.get_by_text("everything is as it was before")).to_be_visible()
    assert len(exchange.stewardship.queue().cases) == 1


@pytest.mark.browser
def test_a_record_is_split_off_by_keyboard_alone(page: Page, exchange: Exchange) -> None:
    page.goto(f"/review/people/{exchange.marta}")
    page.get_by_role("checkbox").nth(1).focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.type("Her cousin of the same name")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Done. The history below shows it")).to_be_visible()
    expect(page.get_by_role("checkbox")).to_have_count(0)


@pytest.mark.browser
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_pages_have_no_faults(page: Page, exchange: Exchange, viewport: dict[str, int]) -> None:
    page.set_viewport_size(viewport)  # type: ignore[arg-type]
    found = {}
    history = f"/review/people/{exchange.marta}?at=2026-05-04"
    for path in ("/", "/review", f"/review/questions/{exchange.task}", history):
        page.goto(path)
        found[path] = faults(page)
    assert found == {path: [] for path in found}
