"""Consents in the console, over the real exchange: a patient from a code to a choice, and the officer's pages."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from joserfc.jwk import ECKey
from playwright.sync_api import Browser, Page, expect

from fixtures.ehr import Records, serve
from hie.app import create_app
from hie.audit.entry import Entry
from hie.audit.query import AuditQuery
from hie.core import schema
from hie.core.caller import Caller, Role
from hie.core.config import Environment, Settings
from hie.core.scopes import Scopes
from hie.gateway import manifest
from hie.gateway.services import Services
from hie.mpi.identity import Identifier
from tests.console.browser import DESK, PHONE, chromium, faults, served, sign_in
from tests.console.fakes import PASSWORD, allergy, coded

pytestmark = pytest.mark.browser

Resource = dict[str, Any]
ICD10 = "http://hl7.org/fhir/sid/icd-10-cm"
SYSTEMS = {"harbor": "urn:oid:2.999.1.1", "lakeside": "urn:oid:2.999.1.2"}
NAMES = {"harbor": "Harbor Emergency Hospital", "lakeside": "Lakeside Family Practice"}
PHYSICIAN, ADMINISTRATOR = "r.ortiz@harbor.example", "h.amsel@lakeside.example"
OFFICER, MARTA = "p.okafor@exchange.example", "marta@mail.example"
USERS = (
    (PHYSICIAN, "Dr. Rosa Ortiz", "clinician", "harbor"),
    (ADMINISTRATOR, "Dr. Helen Amsel", "member-admin", "lakeside"),
    (OFFICER, "Patience Okafor", "privacy-officer", None),
)
PATIENT = {
    "resourceType": "Patient",
    "name": [{"family": "Lindqvist", "given": ["Marta"]}],
    "gender": "female",
    "birthDate": "1949-11-02",
    "address": [{"line": ["4 Quay Road"], "city": "Boston", "state": "MA"}],
}
SUBJECT = {"reference": "Patient/L-1"}


def condition(number: int, text: str, code: str) -> Resource:
    clinical = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}]}
    described = {"clinicalStatus": clinical, "code": coded(text, code, ICD10)}
    return {"resourceType": "Condition", "id": f"c{number}", "subject": SUBJECT, **described}


CHARTS: dict[str, list[Resource]] = {
    "harbor": [],
    "lakeside": [
        allergy("Penicillin", "7980", criticality="high") | {"id": "a1", "patient": SUBJECT},
        condition(1, "Hypothyroidism", "E03.9"),
        condition(2, "Major depressive disorder", "F32.9"),
    ],
}
PICTURES = os.environ.get("HIE_TEST_PICTURES")
"""A folder: each page that is looked at is kept there as a picture."""


@dataclass
class Town:
    """The exchange with two members, and a browser before it."""

    app: Flask
    address: str
    browser: Browser

    @property
    def services(self) -> Services:
        services: Services = self.app.extensions["hie"]
        return services

    @property
    def person(self) -> str:
        record = self.services.identity.source_record(Identifier(SYSTEMS["lakeside"], "L-1"))
        assert record is not None
        return record.person_id

    def open(self, viewport: dict[str, int] = DESK) -> Page:
        context = self.browser.new_context(viewport=viewport, base_url=self.address)  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        return context.new_page()

    def enter(self, email: str, viewport: dict[str, int] = DESK) -> Page:
        page = self.open(viewport)
        sign_in(page, self.address, email, PASSWORD)
        return page

    def entries(self) -> Sequence[Entry]:
        """What the log has about the patient."""
        return self.services.audit.search(AuditQuery(persons=((self.person,),), limit=200)).entries

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.entries()]


@contextmanager
def ehr(member_id: str) -> Iterator[str]:
    server = serve(NAMES[member_id], Records(CHARTS[member_id]), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}/fhir"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def town(tmp_path: Path, browser: Browser) -> Iterator[Town]:
    with ExitStack() as stack:
        urls = {member_id: stack.enter_context(ehr(member_id)) for member_id in SYSTEMS}
        app = create_app(Settings(home=tmp_path, env=Environment.DEVELOPMENT, query_deadline_ms=4000))
        services: Services = app.extensions["hie"]
        stack.callback(services.audit.close)
        schema.upgrade(services.database)
        services.directory.apply(manifest.parse(_manifest(urls), development=True))
        for member_id, local_id in (("lakeside", "L-1"), ("harbor", "H-1")):
            identifier = {"system": SYSTEMS[member_id], "value": local_id}
            services.identity.record(member_id, Identifier(**identifier), {**PATIENT, "identifier": [identifier]})
        yield Town(app, stack.enter_context(served(app)), browser)


def _manifest(urls: dict[str, str]) -> Resource:
    key = ECKey.generate_key("P-384", {"kid": "k1"}).as_dict(private=False)
    return {
        "members": [
            {
                "id": member_id,
                "name": NAMES[member_id],
                "patient_id_system": system,
                "endpoint": {"url": urls[member_id], "auth": {"type": "none"}},
                "clients": [{"id": f"{member_id}-ehr", "jwks": {"keys": [key]}, "scopes": ["system/*.cruds"]}],
            }
            for member_id, system in SYSTEMS.items()
        ],
        "users": [
            {"email": email, "name": name, "role": role, "password": PASSWORD, **({"member": member} if member else {})}
            for email, name, role, member in USERS
        ],
    }


def looks_right(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)
    assert faults(page) == []


def code_from(town: Town) -> str:
    page = town.enter(ADMINISTRATOR)
    page.goto("/members")
    page.get_by_label("Your number of the patient").fill("L-1")
    page.get_by_role("button", name="Make a code").click()
    heading = page.get_by_role("heading", name=re.compile("The code is"))
    expect(heading).to_be_visible()
    looks_right(page, "member-code")
    return heading.inner_text().removeprefix("The code is ").strip()


def joined(town: Town, viewport: dict[str, int] = DESK) -> Page:
    code = code_from(town)
    page = town.open(viewport)
    page.goto("/")
    page.get_by_role("link", name="I am a patient and have a code").click()
    looks_right(page, "join")
    page.get_by_label("Code").fill(code)
    page.get_by_label("Your name").fill("Marta Lindqvist")
    page.get_by_label("E-mail").fill(MARTA)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_role("heading", name="Who may see what")).to_be_visible()
    return page


def conditions_at_the_er(town: Town, reason: str = "") -> list[str]:
    page = town.enter(PHYSICIAN)
    page.goto(f"/emergency/people/{town.person}")
    page.get_by_role("heading", name="Allergies").first.wait_for()
    if reason:
        page.get_by_text("Break the glass in an emergency").click()
        page.get_by_label("Why is this needed now?").fill(reason)
        page.get_by_role("button", name="Break the glass").click()
        page.get_by_role("heading", name="The glass is broken for this patient").wait_for()
    return [name for name in ("Hypothyroidism", "Major depressive disorder") if page.get_by_text(name).count()]


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_a_patient_chooses_after_seeing_what_it_hides(town: Town, viewport: dict[str, int]) -> None:
    page = joined(town, viewport)
    expect(page.get_by_text("You are known as Marta Lindqvist")).to_be_visible()
    expect(page.get_by_text("You have made no choice.")).to_contain_text("may see these records for treatment, payment")
    looks_right(page, f"choices-before-{viewport['width']}")
    page.get_by_text("Share, but keep some back").click()
    page.get_by_text("Mental health and substance use").click()
    page.get_by_role("button", name="Show what this hides").click()
    expect(page.get_by_text("1 record of 3 would be hidden")).to_be_visible()
    looks_right(page, f"choices-preview-{viewport['width']}")
    assert conditions_at_the_er(town) == ["Hypothyroidism", "Major depressive disorder"]
    page.get_by_role("button", name="Save this choice").click()
    expect(page.get_by_text("Your choice is saved.")).to_be_visible()
    expect(page.get_by_text("Does not share records about behavioral health.")).to_be_visible()
    looks_right(page, f"choices-saved-{viewport['width']}")
    assert conditions_at_the_er(town) == ["Hypothyroidism"]


def test_a_choice_without_an_organization_and_one_for_emergencies(town: Town) -> None:
    page = joined(town)
    page.get_by_text("Share, but keep some back").click()
    page.get_by_label("Harbor Emergency Hospital").check()
    page.get_by_role("button", name="Save this choice").click()
    expect(page.get_by_text("Shares nothing with Harbor Emergency Hospital.")).to_be_visible()
    assert conditions_at_the_er(town) == []
    page.get_by_text("Emergencies only").first.click()
    page.get_by_role("button", name="Save this choice").click()
    expect(page.get_by_role("heading", name="Emergencies only")).to_be_visible()
    assert conditions_at_the_er(town) == []
    assert conditions_at_the_er(town, "unconscious after a fall") == ["Hypothyroidism", "Major depressive disorder"]


def test_a_choice_that_keeps_nothing_back_is_asked_again(town: Town) -> None:
    page = joined(town)
    page.get_by_text("Share, but keep some back").click()
    page.get_by_role("button", name="Save this choice").click()
    expect(page.get_by_role("alert")).to_contain_text("Choose at least one kind of record")
    looks_right(page, "choices-mistake")


def test_the_page_works_without_javascript(town: Town) -> None:
    code = code_from(town)
    context = town.browser.new_context(base_url=town.address, java_script_enabled=False)
    page = context.new_page()
    page.goto("/join")
    for label, value in (("Code", code), ("Your name", "Marta"), ("E-mail", MARTA), ("Password", PASSWORD)):
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Make the account").click()
    page.get_by_text("Emergencies only").click()
    page.get_by_role("button", name="Save this choice").click()
    expect(page.get_by_text("Your choice is saved.")).to_be_visible()


def test_a_used_code_and_a_taken_email_are_refused(town: Town) -> None:
    code = code_from(town)
    for email, expected in ((MARTA, None), ("other@mail.example", "This code is not valid")):
        page = town.open()
        page.goto("/join")
        for label, value in (("Code", code), ("Your name", "Marta"), ("E-mail", email), ("Password", PASSWORD)):
            page.get_by_label(label).fill(value)
        page.get_by_role("button", name="Make the account").click()
        if expected:
            expect(page.get_by_role("alert")).to_contain_text(expected)
    second = code_from(town)
    page = town.open()
    page.goto("/join")
    for label, value in (("Code", second), ("Your name", "Marta"), ("E-mail", MARTA), ("Password", PASSWORD)):
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_role("alert")).to_contain_text("There is an account with this e-mail.")
    looks_right(page, "join-mistake")


def test_who_is_bound_to_a_patient_by_which_road_is_in_the_log(town: Town) -> None:
    page = joined(town)
    page.get_by_role("textbox", name="Code").fill(code_from(town))
    page.get_by_role("button", name="Use the code").click()
    expect(page.get_by_text("The code is accepted.")).to_be_visible()
    admin = town.enter(ADMINISTRATOR)
    admin.goto("/members")
    admin.get_by_role("button", name="Unbind").first.click()
    expect(admin.get_by_text("The account is not bound to the patient any more.")).to_be_visible()
    said = [entry.resource["outcomeDesc"] for entry in town.entries() if entry.kind == "directory"]
    assert sum("account unbound (self)" in text for text in said) == 1
    assert sum("bound by a code (self)" in text for text in said) == 2


def test_an_account_that_is_bound_to_nobody_sees_nobody(town: Town) -> None:
    page = joined(town)
    (binding,) = town.services.portal.bindings(MARTA)
    town.services.portal.end(binding.id, SYSTEMS["lakeside"])
    page.goto("/my-record/choices")
    expect(page.get_by_text("Your account is not bound to a patient yet.")).to_be_visible()
    page.goto(f"/my-record/choices?person={town.person}")
    expect(page.get_by_text("Your account is not bound to a patient yet.")).to_be_visible()


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_officer_reads_previews_files_and_revokes(town: Town, viewport: dict[str, int]) -> None:
    page = town.enter(OFFICER, viewport)
    page.goto("/privacy/consents")
    page.get_by_label("Last name").fill("Lindqvist")
    page.get_by_label("First name").fill("Marta")
    page.get_by_role("button", name="Find").click()
    page.get_by_role("link", name="Marta Lindqvist").first.click()
    expect(page.get_by_text("No consent is filed: the defaults hold.")).to_be_visible()
    page.get_by_text("Share, but keep some back").click()
    page.get_by_text("Mental health and substance use").click()
    page.get_by_role("button", name="File").click()
    expect(page.get_by_text("Filed as version 1.")).to_be_visible()
    expect(page.get_by_text("Does not share records about behavioral health.")).to_be_visible()
    page.get_by_label("Who asks").select_option(label="Harbor Emergency Hospital")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.get_by_text("A part would be seen.")).to_be_visible()
    expect(page.get_by_text("1 kept back: a consent says so").first).to_be_visible()
    expect(page.get_by_text("Major depressive disorder")).to_have_count(0)
    looks_right(page, f"officer-consents-{viewport['width']}")
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("Revoked. It does not count any more")).to_be_visible()
    expect(page.get_by_text("No effect").first).to_be_visible()
    looks_right(page, f"officer-revoked-{viewport['width']}")
    assert "consent" in town.kinds()


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_officer_sees_what_a_choice_would_have_changed(town: Town, viewport: dict[str, int]) -> None:
    assert conditions_at_the_er(town) == ["Hypothyroidism", "Major depressive disorder"]
    page = town.enter(OFFICER, viewport)
    page.goto(f"/privacy/consents/{town.person}")
    page.get_by_text("Share, but keep some back").click()
    page.get_by_text("Mental health and substance use").click()
    page.get_by_role("button", name="What would it have changed?").click()
    expect(page.get_by_text("1 of 3 records given in the past year would be kept back")).to_be_visible()
    expect(page.get_by_text("Dr. Rosa Ortiz")).to_be_visible()
    expect(page.get_by_text("No consent is filed: the defaults hold.")).to_be_visible()
    looks_right(page, f"officer-what-if-{viewport['width']}")
    page.get_by_role("link", name="Entry").click()
    expect(page.get_by_role("heading", level=1)).to_be_visible()


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_officer_adds_a_code_after_seeing_what_it_hides(town: Town, viewport: dict[str, int]) -> None:
    person = joined(town)
    person.get_by_text("Share, but keep some back").click()
    person.get_by_text("Mental health and substance use").click()
    person.get_by_role("button", name="Save this choice").click()
    person.get_by_text("Your choice is saved.").wait_for()
    page = town.enter(OFFICER, viewport)
    page.get_by_role("link", name="Codes", exact=True).first.click()
    page.get_by_label("Code or words to look up").fill("E03.9")
    page.get_by_role("button", name="Look up").click()
    expect(page.get_by_text("ICD-10-CM E03.9 gives away nothing.")).to_be_visible()
    page.get_by_label("Code", exact=True).fill("E")
    page.get_by_role("button", name="Show what this changes").click()
    expect(page.get_by_role("alert")).to_contain_text("The code has no code of 2 to 100 letters")
    looks_right(page, f"officer-codes-mistake-{viewport['width']}")
    page.get_by_label("Code", exact=True).fill("E03")
    page.get_by_label("What it stands for").select_option(label="All that begin with this")
    page.get_by_label("It tells of").select_option(label="Mental health (MH)")
    page.get_by_label("What it means").fill("for the test")
    page.get_by_role("button", name="Show what this changes").click()
    expect(page.get_by_text("1 record would be newly hidden, 0 newly revealed")).to_be_visible()
    looks_right(page, f"officer-codes-{viewport['width']}")
    assert conditions_at_the_er(town) == ["Hypothyroidism"]
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text("Added. It counts from now on.")).to_be_visible()
    assert conditions_at_the_er(town) == []
    page.get_by_role("button", name="Take back").click()
    expect(page.get_by_text("Taken back.")).to_be_visible()
    assert conditions_at_the_er(town) == ["Hypothyroidism"]


def test_a_consent_that_says_nothing_waits_for_the_officer(town: Town) -> None:
    page = town.enter(OFFICER, PHONE)
    page.goto("/privacy/consents")
    page.get_by_role("link", name="Consents without effect").click()
    expect(page.get_by_text("There is none.")).to_be_visible()
    vague = {
        "resourceType": "Consent",
        "status": "active",
        "scope": {"coding": [{"code": "patient-privacy"}]},
        "category": [{"coding": [{"code": "59284-0"}]}],
        "dateTime": "2026-01-01",
        "provision": {"purpose": [{"code": "TREAT"}]},
    }
    asking = Caller("lakeside", NAMES["lakeside"], Role.MEMBER, frozenset({"TREAT"}), Scopes(), "s")
    town.services.consents.create(vague, town.person, asking)
    page.reload()
    expect(page.get_by_text("Neither provision.type nor policyRule says permit or deny")).to_be_visible()
    looks_right(page, "officer-without-effect")
    page.get_by_role("link", name="Marta Lindqvist").click()
    page.get_by_role("button", name="Revoke").click()
    page.goto("/privacy/consents/without-effect")
    expect(page.get_by_text("There is none.")).to_be_visible()


def test_the_officers_pages_are_for_officers(town: Town) -> None:
    for email in (PHYSICIAN, ADMINISTRATOR):
        page = town.enter(email)
        for path in (
            "/privacy/consents",
            f"/privacy/consents/{town.person}",
            "/privacy/codes",
            "/privacy/consents/without-effect",
            "/my-record/choices",
        ):
            reply = page.goto(path)
            assert reply is not None
            assert reply.status == 403


def test_a_custodian_reads_in_its_inbox_that_the_glass_was_broken(town: Town) -> None:
    page = joined(town)
    page.get_by_text("Share, but keep some back").click()
    page.get_by_text("Mental health and substance use").click()
    page.get_by_role("button", name="Save this choice").click()
    page.get_by_text("Your choice is saved.").wait_for()
    er = town.enter(PHYSICIAN)
    er.goto(f"/emergency/people/{town.person}")
    er.get_by_text("Break the glass in an emergency").click()
    er.get_by_label("Why is this needed now?").fill("unconscious after a fall")
    er.get_by_role("button", name="Break the glass").click()
    expect(er.get_by_text("Major depressive disorder").first).to_be_visible()
    page.goto("/my-record/accesses")
    expect(page.get_by_text("In an emergency, beyond your choices").first).to_be_visible()
    admin = town.enter(ADMINISTRATOR)
    admin.goto("/members")
    expect(admin.get_by_text("Reason given: unconscious after a fall")).to_be_visible()
    expect(admin.get_by_text("Dr. Rosa Ortiz, Harbor Emergency Hospital")).to_be_visible()
    looks_right(admin, "inbox")
    admin.get_by_role("button", name="Mark as seen").click()
    expect(admin.get_by_role("button", name="Mark as seen")).to_have_count(0)
