"""The privacy officer's pages: what they show, whom they let in, what they record."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hie.audit.cases import Status, Step
from hie.audit.event import Kind
from hie.audit.query import AuditQuery
from hie.core.caller import Caller, Role
from hie.gateway.directory import User
from tests.console.conftest import Visitor
from tests.console.fakes import ADMINISTRATOR, CANDIDATES, OFFICER, OPERATOR, PATIENT, PHYSICIAN, SECOND_OFFICER
from tests.console.office import BROKEN, GLASS, NURSE, Office, caller, disclosure, office, other, some_weeks

As = Callable[[User], Visitor]
PAGES = (
    "/privacy/disclosures",
    "/privacy/find",
    "/privacy/queue",
    "/privacy/reports",
    "/privacy/log",
    "/privacy/entries/0",
)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Office]:
    with office(tmp_path) as opened:
        yield opened


@pytest.fixture
def as_(held: Office) -> As:
    def sign_in(user: User) -> Visitor:
        visitor = Visitor(held.console.app.test_client())
        assert visitor.sign_in(user).status_code == 303
        return visitor

    return sign_in


def newest(held: Office) -> dict[str, object]:
    entry = held.log.search(AuditQuery(limit=1)).entries[0]
    return {"kind": entry.kind, "person": entry.person_id, "said": entry.resource.get("outcomeDesc")}


@pytest.mark.parametrize("user", [PHYSICIAN, ADMINISTRATOR, OPERATOR, PATIENT], ids=lambda user: user.role.value)
def test_nobody_but_an_officer_sees_these_pages(held: Office, as_: As, user: User) -> None:
    held.record(disclosure(by=BROKEN))
    held.review.collect()
    visitor = as_(user)
    (case,) = held.review.queue()
    for path in (*PAGES, f"/privacy/cases/{case.id}", "/privacy/log/progress"):
        assert visitor.get(path).status_code == 403, path
    for path in (
        "/privacy/queue/look",
        f"/privacy/cases/{case.id}",
        "/privacy/reports",
        "/privacy/log",
        "/privacy/find",
    ):
        assert visitor.post(path, step="note", version="0", note="x", patients="p-marta").status_code == 403, path
    assert held.review.file(case.id).steps == ()


def test_an_officer_finds_the_pages_in_the_navigation(as_: As) -> None:
    page = as_(OFFICER).get("/").text
    for title in ("Disclosures", "Review", "Reports", "Log"):
        assert f">{title}</a>" in page


# -- disclosures


def test_disclosures_show_who_saw_what_and_why_by_name(held: Office, as_: As) -> None:
    held.record(disclosure(types=("AllergyIntolerance", "Condition")), hours=1)
    page = as_(OFFICER).get("/privacy/disclosures").text
    assert "Dr. Rosa Ortiz (clinician) of Harbor Emergency Hospital" in page
    assert "Marta Elisabet Lindqvist" in page
    assert "1 allergy and 1 condition, for emergency treatment" in page
    assert newest(held) == {"kind": "log-read", "person": None, "said": "1 of 1 entries shown"}


@pytest.mark.parametrize(
    ("filters", "entries"),
    [
        ("", 3),
        ("?organization=lakeside", 1),
        ("?kind=break-glass", 1),
        ("?kind=denial", 1),
        ("?kind=all&user=r.ortiz@harbor.example", 3),
        ("?patient=p-martina", 1),
        ("?patient=p-marta", 2),
        ("?purpose=TREAT&organization=harbor", 2),
        ("?outcome=8", 0),
        ("?since=2020-01-01&until=2020-02-01", 0),
        ("?kind=nonsense", 3),
    ],
)
def test_filters(held: Office, as_: As, filters: str, entries: int) -> None:
    held.record(disclosure(person_id="p-marta-before", by=NURSE), days=2)
    held.record(disclosure(by=BROKEN), disclosure("p-martina"), hours=2)
    held.record(other(Kind.DENIAL, "R"), hours=1)
    visitor = as_(OFFICER)
    page = visitor.get(f"/privacy/disclosures{filters}").text
    assert f'id="found">{entries} entr' in page


def test_a_wrong_time_is_told_and_nothing_breaks(as_: As) -> None:
    visitor = as_(OFFICER)
    for filters in ("since=yesterday", "since=2026-05-04&until=2026-05-01", "until=9999-12-31"):
        answer = visitor.get(f"/privacy/disclosures?{filters}")
        assert answer.status_code == 400
        assert "Give a first and a last day" in answer.text


def test_pages_go_back_in_time(held: Office, as_: As) -> None:
    held.record(*(disclosure() for _ in range(60)), hours=1)
    visitor = as_(OFFICER)
    first = visitor.get("/privacy/disclosures").text
    assert first.count('data-label="When"') == 50
    link = first.split('usa-button--outline" href="')[1].split('"')[0].replace("&amp;", "&")
    second = visitor.get(link).text
    assert second.count('data-label="When"') == 10
    assert "Older entries" not in second
    assert visitor.get("/privacy/disclosures?page=nonsense").status_code == 200


def test_charts_hold_the_figures_as_a_table_too(held: Office, as_: As) -> None:
    some_weeks(held)
    page = as_(OFFICER).get("/privacy/disclosures?kind=all").text
    assert '<rect class="bar--break-glass"' in page
    assert "style=" not in page
    assert '<th scope="col">Break glass</th>' in page
    assert "Harbor Emergency Hospital</a>" in page
    yearly = as_(OFFICER).get("/privacy/disclosures?since=2025-06-01").text
    assert "Each week, most" in yearly


def test_one_entry_in_full(held: Office, as_: As) -> None:
    held.record(disclosure(by=BROKEN, withheld=2), hours=1)
    page = as_(OFFICER).get("/privacy/entries/0").text
    for words in (
        GLASS,
        "c1/_history/2",
        "Lakeside Family Practice</strong> gave 1 record",
        "Willow Nursing Home</strong> could not be reached",
        "ab" * 32,
        "AllergyIntolerance/gw-0",
        "2 records were withheld",
        "&#34;resourceType&#34;: &#34;AuditEvent&#34;",
    ):
        assert words in page, words
    assert newest(held)["person"] == "p-marta"
    assert as_(OFFICER).get("/privacy/entries/999").status_code == 404


def test_what_strangers_typed_is_shown_as_text(held: Office, as_: As) -> None:
    evil = caller(
        subject_name="<script>alert(1)</script>", purposes=frozenset({"BTG"}), break_glass_reason="<img src=x>"
    )
    held.record(disclosure(by=evil), hours=1)
    visitor = as_(OFFICER)
    visitor.get("/privacy/queue")
    (case,) = held.review.queue()
    for path in ("/privacy/disclosures", "/privacy/entries/0", "/privacy/queue", f"/privacy/cases/{case.id}"):
        page = visitor.get(path).text
        assert "<script>alert" not in page
        assert "<img src=x" not in page


# -- finding a patient


def test_a_patient_is_found_by_number_or_name_and_the_search_goes_through_the_door(held: Office, as_: As) -> None:
    held.console.release.people = list(CANDIDATES)
    visitor = as_(OFFICER)
    visitor.get("/privacy/find")
    found = visitor.post("/privacy/find", member="lakeside", number="L-20417")
    assert (found.status_code, found.location) == (303, "/privacy/disclosures?patient=p-marta&kind=all")
    assert visitor.post("/privacy/find", member="lakeside", number="nothing").status_code == 404
    assert "Choose the organization" in visitor.post("/privacy/find", number="L-20417").text
    assert "2 candidates" in visitor.post("/privacy/find", family="Lindqvist").text
    page = visitor.post("/privacy/find", family="Lindqvist", given="Marta").text
    assert "2 candidates" in page
    assert "/privacy/disclosures?patient=p-marta&amp;kind=all" in page
    asked, patient = held.console.release.lookups[0]
    assert (asked.user_id, patient["name"][0]["family"]) == (OFFICER.email, "Lindqvist")


# -- the queue


def test_break_glass_waits_in_the_queue_and_goes_through_two_people(held: Office, as_: As) -> None:
    held.record(disclosure(by=BROKEN), disclosure(by=BROKEN), disclosure("p-martina", by=BROKEN), hours=3)
    first, second, physician = as_(OFFICER), as_(SECOND_OFFICER), as_(PHYSICIAN)
    page = first.get("/privacy/queue").text
    assert "Break-glass × 2" in page  # two requests for one person are one event
    (case,) = held.review.queue()
    address = f"/privacy/cases/{case.id}"
    page = first.get(address).text
    assert f"The reason given: “{GLASS}”." in page
    assert "(2 requests)" in page

    assert first.post(address, step="assign", version="0", assignee=OFFICER.email).status_code == 303
    assert first.post(address, step="ask", version="1", note="Why?").status_code == 303
    assert "Why?" in physician.get("/questions").text
    assert physician.post(f"/questions/{case.id}", note="She could not speak.").status_code == 303
    assert "There is no question for you" in physician.get("/questions").text
    assert "She could not speak." in first.get(address).text
    assert first.post(address, step="judge", version="3", note="Documented.", verdict="appropriate").status_code == 303
    assert "somebody else confirms it" in first.get(address).text
    refused = first.post(address, step="confirm", version="4")
    assert refused.status_code == 403
    assert "closed by two people" in refused.text
    assert "To confirm" in second.get("/privacy/queue?tab=confirm").text
    second.get(address)
    assert second.post(address, step="confirm", version="4").status_code == 303
    assert held.review.file(case.id).case.status is Status.CLOSED
    assert "This case is closed" in second.get(address).text


def test_what_was_typed_is_kept_when_somebody_else_was_faster(held: Office, as_: As) -> None:
    held.record(disclosure(by=BROKEN), hours=3)
    first, second = as_(OFFICER), as_(SECOND_OFFICER)
    first.get("/privacy/queue")
    (case,) = held.review.queue()
    address = f"/privacy/cases/{case.id}"
    first.get(address)
    second.get(address)
    second.post(address, step="note", version="0", note="Mine first")
    answer = first.post(address, step="note", version="0", note="A long thought")
    assert answer.status_code == 409
    assert "in the meantime" in answer.text
    assert "A long thought</textarea>" in answer.text
    assert "Mine first" in answer.text


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"step": "explode", "version": "0"}, 400),
        ({"step": "note", "version": "x"}, 400),
        ({"step": "judge", "version": "0", "verdict": "guilty"}, 400),
        ({"step": "assign", "version": "0", "assignee": "r.ortiz@harbor.example"}, 400),
        ({"step": "note", "version": "0", "note": " "}, 400),
        ({"step": "confirm", "version": "0"}, 403),
    ],
)
def test_forged_forms_change_nothing(held: Office, as_: As, form: dict[str, str], status: int) -> None:
    held.record(disclosure(by=BROKEN), hours=3)
    visitor = as_(OFFICER)
    visitor.get("/privacy/queue")
    (case,) = held.review.queue()
    visitor.get(f"/privacy/cases/{case.id}")
    assert visitor.post(f"/privacy/cases/{case.id}", **form).status_code == status
    assert held.review.file(case.id).steps == ()


def test_a_step_needs_the_form_of_this_session(held: Office, as_: As) -> None:
    held.record(disclosure(by=BROKEN), hours=3)
    visitor = as_(OFFICER)
    visitor.get("/privacy/queue")
    (case,) = held.review.queue()
    visitor.token = "forged"
    assert visitor.post(f"/privacy/cases/{case.id}", step="assign", version="0").status_code == 400
    assert held.review.file(case.id).steps == ()


def test_looking_for_unusual_access_on_demand(held: Office, as_: As) -> None:
    some_weeks(held)
    visitor = as_(OFFICER)
    visitor.get("/privacy/queue")
    visitor.post("/privacy/queue/look")
    page = visitor.get("/privacy/queue").text
    assert "2 new alerts." in page
    assert "Jonas Mills" in page
    assert ">VIP<" in page


def test_the_list_of_mine_and_of_everybody(held: Office, as_: As) -> None:
    held.record(disclosure(by=BROKEN), hours=3)
    visitor = as_(OFFICER)
    visitor.get("/privacy/queue")
    assert "Nothing waits for review" in visitor.get("/privacy/queue?mine=yes").text
    (case,) = held.review.queue()
    held.review.take(case.id, Step.ASSIGN, officer_caller(), version=0)
    assert "Dr. Rosa Ortiz</a>" in visitor.get("/privacy/queue?mine=yes").text


def officer_caller() -> Caller:
    return caller(organization="exchange", role=Role.PRIVACY_OFFICER, user_id=OFFICER.email, subject_name=OFFICER.name)


def test_a_clinician_answers_her_own_questions_only(held: Office, as_: As) -> None:
    held.record(disclosure(by=NURSE), disclosure(by=BROKEN), hours=3)
    held.review.collect()
    (case,) = held.review.queue()
    physician = as_(PHYSICIAN)
    physician.get("/questions")
    assert physician.post(f"/questions/{case.id}", note="Nobody asked yet").status_code == 404
    taken = held.review.take(case.id, Step.ASSIGN, officer_caller(), version=0)
    held.review.take(case.id, Step.ASK, officer_caller(), version=taken.version, note="Why?")
    empty = physician.post(f"/questions/{case.id}", note="  ")
    assert (empty.status_code, "Say it in a few words." in empty.text) == (400, True)
    held.console.directory.users_held[PHYSICIAN.email] = User(PHYSICIAN.email, "x", PHYSICIAN.role, "lakeside")
    assert physician.post(f"/questions/{case.id}", note="from elsewhere").status_code == 404


# -- reports


def test_a_report_is_a_file_without_patient_data_in_its_name_and_an_entry(held: Office, as_: As) -> None:
    held.record(disclosure("p-marta-before"), days=400)
    held.record(disclosure(), hours=3)
    visitor = as_(OFFICER)
    visitor.get("/privacy/reports?patient=p-marta")
    made = visitor.post("/privacy/reports", patients="p-marta", kind="accounting", format="csv")
    assert made.headers["Content-Disposition"] == 'attachment; filename="accounting-2026-05-04.csv"'
    assert made.headers["Cache-Control"] == "no-store"
    (row,) = csv.DictReader(io.StringIO(made.text))
    assert (row["count"], row["recipient_address"]) == ("2", "1 Harbor Way, Boston, MA 02110")
    assert newest(held) == {
        "kind": "log-read",
        "person": "p-marta",
        "said": "Accounting of disclosures: 1 line, as csv",
    }


@pytest.mark.parametrize("form", ["pdf", "json", "jsonl", "bundle", "zip"])
def test_every_format(held: Office, as_: As, form: str) -> None:
    held.record(disclosure(), hours=3)
    visitor = as_(OFFICER)
    visitor.get("/privacy/reports")
    made = visitor.post("/privacy/reports", patients="p-marta", kind="access", format=form)
    assert made.status_code == 200
    if form == "zip":
        assert "manifest.json" in zipfile.ZipFile(io.BytesIO(made.data)).namelist()
    if form in ("json", "bundle"):
        json.loads(made.data)


def test_several_patients_sorted_within_a_time(held: Office, as_: As) -> None:
    held.record(disclosure("p-martina"), days=40)
    held.record(disclosure(), disclosure("p-martina"), hours=3)
    visitor = as_(OFFICER)
    visitor.get("/privacy/reports")
    made = visitor.post(
        "/privacy/reports",
        patients="p-marta\np-martina",
        kind="onc",
        format="json",
        since="2026-05-01",
        until="2026-05-04",
        sort="patient",
        descending="yes",
    )
    rows = json.loads(made.data)["rows"]
    assert [row["patient"] for row in rows if row["event"] == "disclosure"] == ["p-martina", "p-marta"]


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"patients": ""}, "Give at least one patient."),
        ({"patients": "nobody"}, "Nobody is known as nobody."),
        ({"patients": " ".join(["p-marta"] * 60) + " nobody"}, None),
        ({"kind": "everything"}, "Choose a report and a format."),
        ({"format": "docx"}, "Choose a report and a format."),
        ({"since": "tomorrow"}, "Give a day as YYYY-MM-DD"),
        ({"kind": "access", "sort": "network"}, "no such field to sort by"),
    ],
)
def test_mistakes_in_the_form_are_told(held: Office, as_: As, form: dict[str, str], sentence: str | None) -> None:
    visitor = as_(OFFICER)
    visitor.get("/privacy/reports")
    made = visitor.post("/privacy/reports", **{"patients": "p-marta", "kind": "onc", "format": "csv", **form})
    assert made.status_code == (400 if sentence else 200)
    if sentence:
        assert sentence in made.text


# -- the log's health


def test_verify_now(held: Office, as_: As, monkeypatch: pytest.MonkeyPatch) -> None:
    held.record(disclosure(), hours=1)
    visitor = as_(OFFICER)
    page = visitor.get("/privacy/log").text
    assert "Nobody has verified the log from this page yet." in page
    started = []
    real = held.console.app.extensions["hie"].health
    monkeypatch.setattr(real, "_run", lambda *arguments: started.append(arguments))
    visitor.post("/privacy/log")
    assert len(started) == 1
    page = visitor.get("/privacy/log").text
    assert "Verifying now:" in page
    assert 'data-poll="/privacy/log/progress"' in page
    monkeypatch.undo()
    real._run(*started[0])
    page = visitor.get("/privacy/log/progress").text
    assert "data-poll" not in page
    assert "All 2 entries are whole" in page


def test_without_a_verifier_the_page_shows_the_newest_index(tmp_path: Path) -> None:
    with office(tmp_path, verifies=False) as held:
        held.record(disclosure(), disclosure(), hours=1)
        visitor = Visitor(held.console.app.test_client())
        visitor.sign_in(OFFICER)
        page = visitor.get("/privacy/log").text
        assert 'Index <strong class="number">' in page
        assert "hie audit verify" in page
        assert "Verify now" not in page


# -- the patient


def test_the_patient_reads_who_looked_and_why_in_plain_words(held: Office, as_: As) -> None:
    held.record(disclosure("p-marta-before", by=NURSE, withheld=1), days=1)
    held.record(disclosure(by=BROKEN), other(Kind.FEED, "U"), disclosure("p-martina"), hours=2)
    visitor = as_(PATIENT)
    page = visitor.get("/my-record/accesses").text
    assert "Jonas Mills (nurse) of Lakeside Family Practice looked at 1 allergy; 1 record stayed hidden" in page
    assert f"the reason given: “{GLASS}”" in page
    assert "The privacy officer reviews every such access." in page
    assert "sent your registration data again" not in page
    assert page.count('<li class="item') == 2
    assert newest(held)["person"] == "p-marta"
    everything = visitor.get("/my-record/accesses?show=everything").text
    assert "sent your registration data again" in everything
    assert "You read this list of accesses" in everything


def test_the_patient_takes_the_list_along(held: Office, as_: As) -> None:
    held.record(disclosure(), hours=2)
    visitor = as_(PATIENT)
    visitor.get("/my-record/accesses")
    made = visitor.post("/my-record/accesses", kind="access", format="json")
    assert json.loads(made.data)["rows"][0]["sentence"].startswith("Dr. Rosa Ortiz")
    assert visitor.post("/my-record/accesses", kind="accounting", format="pdf").data.startswith(b"%PDF-")
    assert visitor.post("/my-record/accesses", format="zip").status_code == 400


def test_an_account_that_is_bound_to_nobody_sees_nothing(
    held: Office, as_: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.record(disclosure(), hours=2)
    services = held.console.app.extensions["hie"]
    monkeypatch.setattr(services, "own_person", lambda _email: None)
    visitor = as_(PATIENT)
    assert "not bound to a patient yet" in visitor.get("/my-record/accesses").text
    assert visitor.post("/my-record/accesses", format="pdf").status_code == 400


@pytest.mark.parametrize("user", [OFFICER, PHYSICIAN, OPERATOR], ids=lambda user: user.role.value)
def test_nobody_else_reads_the_patients_page(as_: As, user: User) -> None:
    assert as_(user).get("/my-record/accesses").status_code == 403


def test_a_patient_asks_at_her_own_request(held: Office, as_: As) -> None:
    visitor = as_(PATIENT)
    visitor.get("/my-record/accesses")
    entry = held.log.search(AuditQuery(kinds=(("log-read",),))).entries[0]
    assert entry.resource["purposeOfEvent"][0]["coding"][0]["code"] == "PATRQT"
    assert Role.PATIENT.value in json.dumps(entry.resource)
