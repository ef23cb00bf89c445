"""The console over the real exchange: real linking, consent, transport and audit; members' EHRs answer over HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from joserfc.jwk import ECKey
from playwright.sync_api import Browser, Page, expect

from fixtures.consents import Choice, consent
from fixtures.ehr import Records, serve
from hie.app import create_app
from hie.audit.query import AuditQuery
from hie.core import schema
from hie.core.caller import EXCHANGE, Caller, Role
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
SYSTEMS = {"harbor": "urn:oid:2.999.1.1", "lakeside": "urn:oid:2.999.1.2", "willow": "urn:oid:2.999.1.4"}
NAMES = {"harbor": "Harbor Emergency Hospital", "lakeside": "Lakeside Family Practice", "willow": "Willow Nursing Home"}
PHYSICIAN, ADMINISTRATOR = "r.ortiz@harbor.example", "h.amsel@lakeside.example"


def patient(local_id: str, family: str, given: list[str], birth_date: str, **more: Any) -> Resource:
    return {
        "resourceType": "Patient",
        "id": local_id,
        "name": [{"family": family, "given": given}],
        "gender": "female",
        "birthDate": birth_date,
        "address": [{"line": ["4 Quay Road"], "city": "Boston", "state": "MA", "postalCode": "02110"}],
        **more,
    }


def of(local_id: str, resource: Resource, number: int) -> Resource:
    """The resource as an EHR holds it."""
    element = "patient" if resource["resourceType"] in ("AllergyIntolerance", "Immunization") else "subject"
    return {"id": f"{local_id}-{number}", element: {"reference": f"Patient/{local_id}"}, **resource}


def condition(text: str, code: str) -> Resource:
    clinical = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}]}
    return {"resourceType": "Condition", "clinicalStatus": clinical, "code": coded(text, code, ICD10)}


CHARTS: dict[str, list[Resource]] = {
    "harbor": [],
    "lakeside": [
        patient("L-1", "Lindqvist", ["Marta", "Elisabet"], "1949-11-02"),
        of("L-1", allergy("Penicillin", "7980", criticality="high", recordedDate="2011-03-08T10:20:00-05:00"), 1),
        of("L-1", condition("Hypothyroidism", "E03.9"), 2),
        of("L-1", condition("Major depressive disorder", "F32.9"), 3),
        patient("L-2", "Okonkwo", ["Ada"], "1990-07-14"),
    ],
    "willow": [patient("W-1", "Lindqvist", ["Marta"], "1949-11-02"), of("W-1", allergy("Codeine", "2670"), 1)],
}


@dataclass
class Community:
    """The exchange with its members, and a browser before it."""

    app: Flask
    address: str
    browser: Browser

    @property
    def services(self) -> Services:
        services: Services = self.app.extensions["hie"]
        return services

    def enter(self, email: str, viewport: dict[str, int] = DESK) -> Page:
        context = self.browser.new_context(viewport=viewport, base_url=self.address)  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        page = context.new_page()
        sign_in(page, self.address, email, PASSWORD)
        return page

    def person_of(self, member_id: str, local_id: str) -> str:
        record = self.services.identity.source_record(Identifier(SYSTEMS[member_id], local_id))
        assert record is not None
        return record.person_id


@contextmanager
def ehr(member_id: str) -> Iterator[str]:
    server = serve(NAMES[member_id], Records(CHARTS[member_id]), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}/fhir"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def community(tmp_path: Path) -> Iterator[Community]:
    with ExitStack() as stack:
        urls = {member_id: stack.enter_context(ehr(member_id)) for member_id in SYSTEMS if member_id != "willow"}
        down = stack.enter_context(socket.socket())
        down.bind(("127.0.0.1", 0))  # the port is taken, and nobody answers there
        urls["willow"] = f"http://127.0.0.1:{down.getsockname()[1]}/fhir"
        settings = Settings(home=tmp_path, env=Environment.DEVELOPMENT, query_deadline_ms=3000)
        app = create_app(settings)
        services: Services = app.extensions["hie"]
        stack.callback(services.audit.close)
        schema.upgrade(services.database)
        services.directory.apply(manifest.parse(_manifest(urls), development=True))
        for member_id, system in SYSTEMS.items():
            for resource in CHARTS[member_id]:
                if resource["resourceType"] == "Patient":
                    identifier = {"system": system, "value": resource["id"]}
                    fed = {**resource, "identifier": [identifier]}
                    services.identity.record(member_id, Identifier(**identifier), fed)
        address = stack.enter_context(served(app))
        browser = stack.enter_context(chromium())
        yield Community(app, address, browser)


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
            {
                "email": PHYSICIAN,
                "name": "Dr. Rosa Ortiz",
                "role": "clinician",
                "member": "harbor",
                "password": PASSWORD,
            },
            {
                "email": ADMINISTRATOR,
                "name": "Dr. Helen Amsel",
                "role": "member-admin",
                "member": "lakeside",
                "password": PASSWORD,
            },
        ],
    }


def withhold_psychiatry(community: Community) -> None:
    person_id = community.person_of("lakeside", "L-1")
    office = Caller(
        EXCHANGE,
        "The exchange",
        Role.PRIVACY_OFFICER,
        frozenset({"HOPERAT"}),
        Scopes.parse("system/Consent.cruds"),
        "s",
    )
    choice = consent(Choice.NO_PSYCHIATRY, person_id, EXCHANGE, date(2025, 1, 1))
    community.services.consents.create(choice, person_id, office)


def look_up(page: Page) -> None:
    """The misspelt name, as understood at the door of the emergency room."""
    page.goto("/emergency")
    page.get_by_label("Last name").fill("Lindquist")
    page.get_by_label("First name").fill("Marta")
    for part, value in (("Month", "11"), ("Day", "2"), ("Year", "1949")):
        page.get_by_label(part).fill(value)
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="Marta Elisabet Lindqvist").first.click()


def test_the_er_sees_the_penicillin_allergy_and_who_did_not_answer(community: Community) -> None:
    page = community.enter(PHYSICIAN, PHONE)
    look_up(page)
    expect(page.get_by_role("heading", name="Penicillin")).to_be_visible()
    expect(page.get_by_text("Lakeside Family Practice, recorded 8 Mar 2011, 10:20 UTC−05:00")).to_be_visible()
    expect(page.get_by_role("heading", name="This record is not complete")).to_be_visible()
    expect(page.get_by_text("Willow Nursing Home could not be reached.")).to_be_visible()
    expect(page.get_by_text("1 of 2 organizations answered in full")).to_be_visible()
    assert faults(page) == []
    person_id = community.person_of("lakeside", "L-1")
    assert community.person_of("willow", "W-1") == person_id
    seen = community.services.audit.search(AuditQuery(persons=((person_id,),)))
    assert {entry.kind for entry in seen.entries} == {"search", "disclosure"}


def test_the_glass_opens_what_the_patient_withheld(community: Community) -> None:
    withhold_psychiatry(community)
    page = community.enter(PHYSICIAN)
    look_up(page)
    expect(page.get_by_role("heading", name="Hypothyroidism")).to_be_visible()
    expect(page.get_by_role("heading", name="Records may be withheld")).to_be_visible()
    expect(page.get_by_text("Major depressive disorder")).to_have_count(0)
    page.get_by_text("Break the glass in an emergency").click()
    page.get_by_label("Why is this needed now?").fill("unconscious, on unknown medication")
    page.get_by_role("button", name="Break the glass").click()
    expect(page.get_by_role("heading", name="The glass is broken for this patient")).to_be_visible()
    expect(page.get_by_role("heading", name="Major depressive disorder")).to_be_visible()
    expect(page.get_by_text("Shown because the glass was broken")).to_be_visible()
    assert faults(page) == []
    page.get_by_role("button", name="Give this access back").click()
    expect(page.get_by_text("Major depressive disorder")).to_have_count(0)


def test_an_administrator_checks_breaks_and_mends_the_endpoint(community: Community) -> None:
    page = community.enter(ADMINISTRATOR)
    page.get_by_role("link", name="My organization").first.click()
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_text("The endpoint works.")).to_be_visible()
    address = page.get_by_label("FHIR R4 base address")
    working = address.input_value()
    address.fill("http://127.0.0.1:9/fhir")
    page.get_by_role("button", name="Save the endpoint").click()
    expect(page.get_by_text("The endpoint is saved")).to_be_visible()
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_text("The endpoint does not work yet.")).to_be_visible()

    look_up_failing(community)
    page.goto("/members")
    expect(page.get_by_text("No connection could be made.").first).to_be_visible()
    address.fill(working)
    page.get_by_role("button", name="Save the endpoint").click()
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_text("The endpoint works.")).to_be_visible()
    assert faults(page) == []
    changes = [e for e in community.services.audit.search(AuditQuery()).entries if e.kind == "directory"]
    assert len(changes) == 2


def look_up_failing(community: Community) -> None:
    """Both organizations that know the patient are down: an error, and no empty record."""
    page = community.enter(PHYSICIAN)
    look_up(page)
    expect(page.get_by_role("heading", name="No organization answered")).to_be_visible()
    expect(page.get_by_text("This is not an empty record.")).to_be_visible()
    expect(page.get_by_text("Lakeside Family Practice (lakeside) could not be reached.")).to_be_visible()
    assert faults(page) == []


def officers(community: Community) -> tuple[Page, Page]:
    """Two privacy officers, signed in."""
    emails = ("p.okafor@exchange.example", "t.lund@exchange.example")
    users = [{"email": e, "name": e.split("@")[0], "role": "privacy-officer", "password": PASSWORD} for e in emails]
    community.services.directory.apply(manifest.parse({"users": users}, development=True))
    return community.enter(emails[0]), community.enter(emails[1])


def test_a_broken_glass_is_reviewed_by_two_officers_and_told_in_the_accounting(community: Community) -> None:
    withhold_psychiatry(community)
    physician = community.enter(PHYSICIAN)
    look_up(physician)
    physician.get_by_text("Break the glass in an emergency").click()
    physician.get_by_label("Why is this needed now?").fill("unconscious, on unknown medication")
    physician.get_by_role("button", name="Break the glass").click()
    expect(physician.get_by_role("heading", name="Major depressive disorder")).to_be_visible()

    first, second = officers(community)
    first.goto("/privacy/queue")
    first.get_by_role("link", name="Dr. Rosa Ortiz").click()
    expect(first.get_by_text("The reason given: “unconscious, on unknown medication”.")).to_be_visible()
    expect(first.get_by_role("link", name="Marta Elisabet Lindqvist").first).to_be_visible()
    first.get_by_role("button", name="Take this case").click()
    first.get_by_text("Give a verdict").click()
    first.get_by_text("Appropriate: there was a good reason").click()
    first.get_by_label("Your reasons").fill("The ambulance sheet confirms it.")
    first.get_by_role("button", name="Give the verdict").click()
    expect(first.get_by_text("The verdict is yours.")).to_be_visible()
    second.goto("/privacy/queue?tab=confirm")
    second.get_by_role("link", name="Dr. Rosa Ortiz").click()
    second.get_by_role("button", name="Confirm the verdict and close").click()
    expect(second.get_by_role("heading", name="This case is closed")).to_be_visible()

    first.goto("/privacy/find")
    first.get_by_label("Given by").select_option("Lakeside Family Practice")
    first.get_by_label("Patient number").fill("L-1")
    first.get_by_role("button", name="Find").click()
    first.get_by_role("link", name="Make a report about this patient").click()
    first.get_by_label("Format").select_option("JSON")
    with first.expect_download() as download:
        first.get_by_role("button", name="Make the report").click()
    report = json.loads(download.value.path().read_bytes())
    assert report["complete"] is True
    broken = [row for row in report["rows"] if "break-glass" in row["why"]]
    assert [row["recipient"] for row in broken] == ["Harbor Emergency Hospital"]
    kinds = [entry.kind for entry in community.services.audit.search(AuditQuery(limit=200)).entries]
    assert kinds.count("review") == 3


def test_an_unexplained_look_at_a_vip_is_an_alert_and_one_after_a_registration_is_none(community: Community) -> None:
    names = {"n.obi@harbor.example": "Nia Obi", "k.wong@harbor.example": "Kai Wong"}
    users = [
        {"email": e, "name": n, "role": "clinician", "member": "harbor", "password": PASSWORD} for e, n in names.items()
    ]
    community.services.directory.apply(manifest.parse({"users": users}, development=True))
    url = "http://hl7.org/fhir/StructureDefinition/patient-importance"
    flag = {"url": url, "valueCodeableConcept": {"coding": [{"code": "VIP"}]}}
    famous = patient("L-2", "Okonkwo", ["Ada"], "1990-07-14", extension=[flag])

    def register(member_id: str, local_id: str) -> None:
        identifier = {"system": SYSTEMS[member_id], "value": local_id}
        community.services.identity.record(member_id, Identifier(**identifier), {**famous, "identifier": [identifier]})

    def open_chart(email: str) -> None:
        page = community.enter(email)
        page.goto(f"/emergency/people/{community.person_of('lakeside', 'L-2')}")
        expect(page.get_by_role("heading", name="Ada Okonkwo")).to_be_visible()

    register("lakeside", "L-2")
    first, _ = officers(community)
    open_chart("n.obi@harbor.example")
    first.goto("/privacy/queue")
    first.get_by_role("button", name="Look for unusual access now").click()
    first.get_by_role("link", name="Nia Obi").click()
    expect(
        first.get_by_text("somebody with a VIP flag; nothing at the user's organization explains it")
    ).to_be_visible()
    assert faults(first) == []

    register("harbor", "H-7")
    assert community.person_of("harbor", "H-7") == community.person_of("lakeside", "L-2")
    open_chart("k.wong@harbor.example")
    first.goto("/privacy/queue")
    first.get_by_role("button", name="Look for unusual access now").click()
    expect(first.get_by_text("Nothing new was found.")).to_be_visible()
    expect(first.get_by_text("Kai Wong")).to_have_count(0)
