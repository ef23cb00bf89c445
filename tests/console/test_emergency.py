"""Emergency lookup: who may, what is asked at the door, and what a physician reads."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from hie.audit.event import Kind
from hie.console.people import BREAK_GLASS_LIMIT
from hie.core.errors import NotFound
from hie.core.purposes import PROVIDER_DEFAULT
from hie.gateway.directory import User
from hie.gateway.release import SourcesFailed
from hie.mpi.index import Agreement
from tests.console.conftest import Visitor
from tests.console.fakes import (
    ADMINISTRATOR,
    CANDIDATES,
    CARDIOLOGY,
    HARBOR,
    LAKESIDE,
    OPERATOR,
    PHYSICIAN,
    STEWARD,
    WILLOW,
    Console,
    allergy,
    answer,
    entry,
    full_answer,
    status,
)

As = Callable[[User], Visitor]
REASON = "unconscious after a fall"


def text_of(page: str) -> str:
    """The words of a page, as read."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture
def physician(as_: As, console: Console) -> Visitor:
    console.release.people = list(CANDIDATES)
    console.release.answer = full_answer()
    return as_(PHYSICIAN)


def search(visitor: Visitor, **form: str) -> str:
    """Search and follow to the results; the words of the page."""
    response = visitor.post("/emergency", **form)
    assert response.status_code == 303
    return text_of(visitor.get(response.location).text)


@pytest.mark.parametrize("user", [ADMINISTRATOR, OPERATOR, STEWARD])
@pytest.mark.parametrize("path", ["/emergency", "/emergency/results/x", "/emergency/people/p-marta"])
def test_only_clinicians_get_in_and_others_are_in_the_audit_log(
    as_: As, console: Console, user: User, path: str
) -> None:
    response = as_(user).get(path)
    assert response.status_code == 403
    assert response.mimetype == "text/html"
    assert console.release.charts == console.release.lookups == []
    denial = console.audit.events[-1]
    assert denial.kind is Kind.DENIAL
    assert denial.caller is not None
    assert denial.caller.user_id == user.email


def test_a_search_asks_the_door_as_this_physician(physician: Visitor, console: Console) -> None:
    search(physician, given="Marta", family="Lindquist", month="11", day="2", year="1949", phone="617 555 0107")
    caller, patient = console.release.lookups[0]
    assert patient == {
        "resourceType": "Patient",
        "name": [{"family": "Lindquist", "given": ["Marta"]}],
        "birthDate": "1949-11-02",
        "telecom": [{"system": "phone", "value": "617 555 0107"}],
    }
    assert (caller.organization, caller.user_id) == ("harbor", PHYSICIAN.email)
    assert caller.purposes == {"ETREAT", "TREAT"}
    assert caller.scopes.allows("AllergyIntolerance", "s")
    assert not caller.scopes.allows("Consent", "c")
    assert not caller.break_glass


def test_a_purpose_that_the_organization_does_not_hold_is_not_asserted(physician: Visitor, console: Console) -> None:
    console.directory.held["harbor"] = type(HARBOR)(**vars(HARBOR) | {"purposes": frozenset({"TREAT"})})
    search(physician, given="Marta", family="Lindquist")
    assert console.release.lookups[0][0].purposes == {"TREAT"}


def test_candidates_show_who_they_are_how_sure_and_why(physician: Visitor) -> None:
    words = search(physician, given="Marta", family="Lindquist", year="1949")
    assert "Searched for Marta Lindquist , born 1949" in words
    assert "Marta Elisabet Lindqvist 2 Nov 1949 (76 years) · Female · Boston, MA" in words
    assert "Almost certain over 99 %" in words
    assert "Agrees: birth date, last name (spelt slightly differently), first name" in words
    assert "Known to: Heartland Cardiology, Lakeside Family Practice, Willow Nursing Home" in words
    assert "Unlikely 4 %" in words
    assert "Differs: birth date" in words


def test_no_name_or_birth_date_is_ever_in_an_address(physician: Visitor) -> None:
    location = physician.post("/emergency", given="Marta", family="Lindquist", year="1949").location
    pages = [physician.get(location).text, physician.get("/emergency/people/p-marta").text]
    addresses = [location, *(a for page in pages for a in re.findall(r'(?:href|action)="([^"]*)"', page))]
    assert not [a for a in addresses if re.search("marta(?!$|[?/#])|lindq|1949", a.replace("p-marta", ""), re.I)]


def test_the_results_page_can_be_reloaded_and_the_search_changed(physician: Visitor) -> None:
    location = physician.post("/emergency", given="Marta", family="Lindquist", year="1949").location
    assert physician.get(location).text.count('class="candidate"') == 2
    assert physician.get(location).text.count('class="candidate"') == 2
    form = physician.get(f"/emergency?search={location.rsplit('/', 1)[1]}").text
    assert 'value="Lindquist"' in form
    assert 'value="1949"' in form


def test_two_searches_side_by_side_keep_their_own_results(physician: Visitor) -> None:
    first = physician.post("/emergency", given="Marta", family="Lindquist").location
    second = physician.post("/emergency", given="Ada", family="Okafor").location
    assert "Lindquist" in text_of(physician.get(first).text)
    assert "Okafor" in text_of(physician.get(second).text)


def test_a_search_that_is_forgotten_starts_anew(physician: Visitor) -> None:
    assert physician.get("/emergency/results/unknown").location == "/emergency"


def test_nobody_found_is_no_statement_about_the_patient(physician: Visitor, console: Console) -> None:
    console.release.people = []
    words = search(physician, given="Marta", family="Lindquist")
    assert "Nobody found" in words
    assert "Not being found does not mean that the patient has no record" in words


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({}, "Give a last name (its first two letters are enough)"),
        ({"family": "L"}, "Give a last name (its first two letters are enough)"),
        ({"given": "Marta"}, "or a first name with the year of birth"),
        ({"street": "Quay Road"}, "a house number and street"),
        ({"city": "Boston"}, "a house number and street"),
        ({"year": "1949"}, "or the full birth date"),
        ({"family": "L", "about": "yes", "year": "1949", "month": "5"}, "Give the year alone when it is a guess"),
        ({"family": "L", "day": "30", "month": "2", "year": "2024"}, "There is no such day in that month."),
        ({"family": "L", "month": "5"}, "Give the year of birth in four digits"),
        ({"family": "L", "day": "5", "year": "1961"}, "Give the month as well"),
        ({"family": "L", "month": "13", "year": "1961"}, "Give the month as a number"),
        ({"family": "L", "month": "5", "day": "5", "year": "2026"}, "The birth date lies in the future."),
        ({"family": "L", "year": "٢٠٠١"}, "Give the year of birth in four digits"),
        ({"phone": "12"}, "Give at least seven digits"),
        ({"family": "--"}, "The name holds no letters."),
    ],
)
def test_a_search_that_cannot_be_made_says_what_to_do(
    physician: Visitor, console: Console, form: dict[str, str], sentence: str
) -> None:
    response = physician.post("/emergency", **form)
    assert response.status_code == 400
    assert sentence in html.unescape(response.text)
    assert console.release.lookups == []


@pytest.mark.parametrize(
    "form",
    [
        {"given": "Marta", "family": "Lindquist"},
        {"family": "Lindquist", "month": "11", "day": "2", "year": "1949"},
        {"given": "Marta", "month": "11", "day": "2", "year": "1949"},
        {"phone": "(617) 555-0107"},
        {"family": "Li"},
        {"family": "李"},
        {"given": "Marta", "year": "1949"},
        {"month": "11", "day": "2", "year": "1949"},
        {"street": "4 Quay Road"},
    ],
)
def test_what_is_enough_to_search_by(physician: Visitor, console: Console, form: dict[str, str]) -> None:
    search(physician, **form)
    assert len(console.release.lookups) == 1


@pytest.mark.parametrize(
    ("form", "birth_date"),
    [({"year": "1961"}, "1961"), ({"year": "1961", "month": "3"}, "1961-03"), ({}, None)],
)
def test_a_birth_date_may_be_partial(
    physician: Visitor, console: Console, form: dict[str, str], birth_date: str | None
) -> None:
    search(physician, given="Marta", family="Lindquist", **form)
    assert console.release.lookups[0][1].get("birthDate") == birth_date


def test_a_guessed_year_and_an_address_are_asked_for_as_such(physician: Visitor, console: Console) -> None:
    words = search(physician, given="Marta", year="1950", about="yes", street="4 Quay Rd", city="Boston")
    assert console.release.years == [5]
    assert console.release.lookups[0][1]["address"] == [{"line": ["4 Quay Rd"], "city": "Boston"}]
    assert "born about 1950 , at 4 Quay Rd, Boston" in words


def test_who_merely_fits_is_not_called_unlikely(physician: Visitor, console: Console) -> None:
    first = console.release.people[0]
    agreements = (Agreement("family", "beginning", 0.1), Agreement("given", "exact", -0.2))
    console.release.people = [replace(first, probability=0.002, agreements=agreements)]
    words = search(physician, family="Li")
    assert "Fits what you gave" in words
    assert "Unlikely" not in words
    assert "Agrees: first name, last name (begins so)" in words
    assert "Differs" not in words


def test_what_is_typed_is_shown_as_text(physician: Visitor) -> None:
    page = physician.get(physician.post("/emergency", given="Marta", family="<script>alert(1)</script>").location).text
    assert "<script>alert" not in page


def test_the_chart_shows_allergies_before_anything_else(physician: Visitor, console: Console) -> None:
    words = text_of(physician.get("/emergency/people/p-marta").text)
    assert console.release.charts[0][1] == "p-marta"
    order = [
        words.index(w) for w in ("This record is not complete", "Allergies", "Penicillin", "Medications", "Warfarin")
    ]
    assert order == sorted(order)
    assert "Penicillin V High criticality Reaction Anaphylaxis (severe) Criticality high" in words
    assert "Lakeside Family Practice , recorded 8 Mar 2011, 10:20 UTC−05:00" in words
    for further in ("Atrial fibrillation", "Influenza, inactivated", "INR High", "Check-up"):
        assert further in words


def test_every_organization_that_fell_short_is_named(physician: Visitor, console: Console) -> None:
    console.release.answer = answer(
        entry(LAKESIDE, allergy("Latex")),
        sources=(status(LAKESIDE), status(WILLOW, "timeout", 0), status(CARDIOLOGY, "truncated", 50)),
    )
    words = text_of(physician.get("/emergency/people/p-marta").text)
    assert "Willow Nursing Home did not answer in time." in words
    assert "Heartland Cardiology gave only a part of what it holds." in words
    assert "There may be more: Willow Nursing Home and Heartland Cardiology did not answer in full." in words
    assert "1 of 3 organizations answered in full" in words


def test_silence_is_never_shown_as_no_allergies(physician: Visitor, console: Console) -> None:
    console.release.answer = answer(sources=(status(LAKESIDE, count=0), status(WILLOW, "unreachable", 0)))
    words = text_of(physician.get("/emergency/people/p-marta").text)
    assert "No allergies were reported by Lakeside Family Practice." in words
    assert "Willow Nursing Home did not answer in full, so there may be more." in words
    assert "This is not the same as “no known allergies”." in words
    assert "None reported by the organizations that answered; Willow Nursing Home did not answer in full." in words


def test_no_count_tells_what_is_withheld(physician: Visitor, console: Console) -> None:
    console.release.answer = answer(entry(LAKESIDE, allergy("Latex")), sources=(status(LAKESIDE, count=7),))
    words = text_of(physician.get("/emergency/people/p-marta").text)
    assert "Lakeside Family Practice L-20417 answered, 1 record shown, 0.08 seconds" in words
    assert "7 record" not in words


def test_an_answer_of_which_all_may_be_withheld_says_so(physician: Visitor, console: Console) -> None:
    console.release.answer = answer(sources=(), restricted=True)
    words = text_of(physician.get("/emergency/people/p-marta").text)
    assert "No organization could be asked: this patient's privacy choices keep all records back." in words
    assert "No allergies were reported" not in words


def test_only_failed_sources_without_records_never_read_as_none(physician: Visitor, console: Console) -> None:
    console.release.answer = answer(sources=(status(WILLOW, "truncated", 3),))
    words = text_of(physician.get("/emergency/people/p-marta").text)
    assert "No allergies were reported by" not in words
    assert "Willow Nursing Home did not answer in full, so there may be more." in words


def test_when_no_source_answered_the_page_says_that_it_is_no_empty_record(physician: Visitor, console: Console) -> None:
    issues = [
        {"code": "timeout", "diagnostics": "Willow Nursing Home (willow) did not answer in time."},
        {"code": "suppressed", "diagnostics": "Records may be withheld under this patient's privacy choices."},
    ]
    console.release.answer = SourcesFailed(issues, all_timed_out=True)
    response = physician.get("/emergency/people/p-marta")
    words = text_of(response.text)
    assert response.status_code == 504
    assert "This is not an empty record." in words
    assert "Willow Nursing Home (willow) did not answer in time." in words
    assert "Records may be withheld" in words
    assert re.search(r'href="/emergency/people/p-marta"[^>]*>Ask again', response.text)


def test_a_person_whom_the_exchange_does_not_know_is_a_page_of_its_own(
    physician: Visitor, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise NotFound("The exchange knows no such person.")

    monkeypatch.setattr(console.release, "chart", unknown)
    response = physician.get("/emergency/people/nobody")
    assert response.status_code == 404
    assert "The exchange knows no such person." in response.text


# -- break-glass


def break_glass(visitor: Visitor, reason: str, person: str = "p-marta") -> str:
    visitor.get(f"/emergency/people/{person}")
    location: str = visitor.post(f"/emergency/people/{person}/break-glass", reason=reason).location
    return location


def test_the_glass_is_offered_only_when_the_door_says_it_is_open(physician: Visitor, console: Console) -> None:
    assert "Break the glass in an emergency" in physician.get("/emergency/people/p-marta").text
    console.release.answer = answer(restricted=True, break_glass_open=False)
    page = physician.get("/emergency/people/p-marta").text
    assert "Records may be withheld" in page
    assert "Break the glass in an emergency" not in page


def test_breaking_the_glass_wants_a_reason_of_ten_characters(physician: Visitor, console: Console) -> None:
    location = break_glass(physician, "  urgent   ")
    assert "Give a reason of at least 10 characters." in physician.get(location.split("#")[0]).text
    assert not console.release.charts[-1][0].break_glass


def test_a_broken_glass_opens_this_persons_chart_with_its_reason(physician: Visitor, console: Console) -> None:
    page = physician.get(break_glass(physician, REASON)).text
    caller = console.release.charts[-1][0]
    assert caller.break_glass
    assert caller.break_glass_reason == REASON
    assert {"BTG", "TREAT", "ETREAT"} <= caller.purposes
    assert "The glass is broken for this patient" in page
    assert REASON in page


def test_a_broken_glass_opens_nobody_elses_chart(physician: Visitor, console: Console) -> None:
    physician.get(break_glass(physician, REASON))
    physician.get("/emergency/people/p-martina")
    assert not console.release.charts[-1][0].break_glass


def test_a_broken_glass_lasts_four_hours_at_most(physician: Visitor, console: Console) -> None:
    physician.get(break_glass(physician, REASON))
    for _ in range(int(BREAK_GLASS_LIMIT.total_seconds() / 60 / 20) - 1):
        console.clock.pass_(minutes=20)
        physician.get("/emergency")
    physician.get("/emergency/people/p-marta")
    assert console.release.charts[-1][0].break_glass
    console.clock.pass_(minutes=20)
    physician.get("/emergency/people/p-marta")
    assert not console.release.charts[-1][0].break_glass


def test_a_broken_glass_ends_with_the_session_and_when_given_back(physician: Visitor, console: Console) -> None:
    physician.get(break_glass(physician, REASON))
    physician.post("/emergency/people/p-marta/close-glass")
    physician.get("/emergency/people/p-marta")
    assert not console.release.charts[-1][0].break_glass
    physician.get(break_glass(physician, REASON))
    physician.post("/sign-out")
    physician.sign_in(PHYSICIAN)
    physician.get("/emergency/people/p-marta")
    assert not console.release.charts[-1][0].break_glass


def test_an_organization_without_the_purpose_cannot_break_the_glass(physician: Visitor, console: Console) -> None:
    console.directory.held["harbor"] = type(HARBOR)(**vars(HARBOR) | {"purposes": PROVIDER_DEFAULT - {"BTG"}})
    physician.get("/emergency/people/p-marta")
    response = physician.post("/emergency/people/p-marta/break-glass", reason=REASON)
    assert response.status_code == 403
    assert console.audit.events[-1].kind is Kind.DENIAL
    physician.get("/emergency/people/p-marta")
    assert not console.release.charts[-1][0].break_glass


def test_the_session_stays_small_enough_for_a_cookie(physician: Visitor) -> None:
    for n in range(8):
        physician.get("/emergency")
        physician.post("/emergency", given=f"{n}Ж" * 40, family="Щ𝒳" * 40, phone="1" * 40)
        break_glass(physician, f"{n} " + "пациент без сознания " * 20, f"person-{n}-" + "abcdefgh" * 3)
    cookie = physician.client.get_cookie("hie_console")
    assert cookie is not None
    assert len(cookie.value) < 4000
