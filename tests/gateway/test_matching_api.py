"""`$match`, `$idi-match` and `$link-changes` over HTTP: what they answer, refuse and record."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from lxml import etree

from hie.audit.event import Kind
from hie.core.database import Database
from hie.mpi import stewardship
from hie.mpi.model import Model
from hie.mpi.people import By
from tests.gateway.test_identity_api import (
    BASE,
    HARBOR,
    READ_TOKEN,
    Audit,
    Exchange,
    hie,
    issue,
    make_exchange,
    marta,
    model,
    otto,
    person_id,
)

__all__ = ["hie", "model"]
GRADE = "http://hl7.org/fhir/StructureDefinition/match-grade"


@pytest.fixture
def audit() -> Audit:
    return Audit()


@pytest.fixture
def hie_on_both(database: Database, model: Model, audit: Audit) -> Exchange:
    return make_exchange(database, model, audit)


def asking(patient: dict[str, Any], name: str = "resource", **values: Any) -> dict[str, Any]:
    given: list[dict[str, Any]] = [{"name": name, "resource": patient}]
    for key, value in values.items():
        kind = "valueBoolean" if isinstance(value, bool) else "valueInteger"
        given.append({"name": key, kind: value})
    return {"resourceType": "Parameters", "parameter": given}


def match(hie: Exchange, body: object, operation: str = "$match", **options: Any) -> Any:
    options.setdefault("token", READ_TOKEN)
    return hie.call("POST", f"/fhir/Patient/{operation}", body, **options)


def shown(response: Any) -> list[tuple[str, str]]:
    """(id, grade) of each Patient."""
    assert response.status_code == 200
    entries = response.get_json(force=True).get("entry", [])
    return [
        (e["resource"]["id"], e["search"]["extension"][0]["valueCode"])
        for e in entries
        if e["resource"]["resourceType"] == "Patient"
    ]


def test_one_match_is_certain_with_its_score(hie_on_both: Exchange) -> None:
    known = person_id(hie_on_both.feed("1", marta()))
    hie_on_both.feed("2", otto())
    response = match(hie_on_both, asking(marta()))
    body = response.get_json(force=True)
    (entry,) = body["entry"]
    assert (body["type"], body["total"], "identifier" in body) == ("searchset", 1, False)
    assert entry["fullUrl"] == f"{BASE}/Patient/{known}"
    assert entry["search"]["mode"] == "match"
    assert 0.999 <= entry["search"]["score"] < 1
    assert entry["search"]["extension"] == [{"url": GRADE, "valueCode": "certain"}]
    assert entry["resource"]["identifier"]
    Bundle.model_validate(body)


def test_a_bare_patient_is_the_question_too(hie: Exchange) -> None:
    known = person_id(hie.feed("1", marta()))
    assert shown(match(hie, marta())) == [(known, "certain")]


def test_xml_in_and_out(hie: Exchange) -> None:
    known = person_id(hie.feed("1", marta()))
    body = (
        '<Parameters xmlns="http://hl7.org/fhir"><parameter><name value="resource"/><resource><Patient>'
        '<name><family value="Lindqvist"/><given value="Marta"/></name><telecom><system value="phone"/>'
        '<value value="617-555-0107"/></telecom><birthDate value="1949-11-02"/></Patient></resource></parameter>'
        '<parameter><name value="count"/><valueInteger value="3"/></parameter></Parameters>'
    )
    response = match(hie, body, Content_Type="application/fhir+xml", Accept="application/fhir+xml")
    assert response.status_code == 200
    names = {"f": "http://hl7.org/fhir"}
    tree = etree.fromstring(response.get_data())
    assert tree.xpath("//f:Patient/f:id/@value", namespaces=names) == [known]
    assert tree.xpath("//f:search/f:extension/f:valueCode/@value", namespaces=names) == ["certain"]


def two_suspects(hie: Exchange) -> list[str]:
    """Junior and senior, who both resemble an Otto without suffix."""
    suffixes = ("Sr", "Jr")
    return [
        person_id(hie.feed(s, otto(name=[{"family": "Brandt", "given": ["Otto"], "suffix": [s]}]))) for s in suffixes
    ]


def test_several_come_ordered_and_none_of_them_is_certain(hie: Exchange) -> None:
    suspects = two_suspects(hie)
    response = match(hie, asking(otto()))
    found = shown(response)
    scores = [e["search"]["score"] for e in response.get_json(force=True)["entry"]]
    assert {i for i, _ in found} == set(suspects)
    assert scores == sorted(scores, reverse=True)
    assert all(grade in ("probable", "possible") for _, grade in found)
    assert shown(match(hie, asking(otto(), count=1))) == found[:1]


def test_only_certain_matches_means_one_or_nobody(hie: Exchange) -> None:
    two_suspects(hie)
    known = person_id(hie.feed("1", marta()))
    assert shown(match(hie, asking(marta(), onlyCertainMatches=True))) == [(known, "certain")]
    response = match(hie, asking(otto(), onlyCertainMatches=True))
    assert shown(response) == []
    assert response.get_json(force=True)["total"] == 0


def test_nobody_is_an_empty_searchset(hie: Exchange) -> None:
    hie.feed("1", marta())
    response = match(hie, asking(otto()))
    assert shown(response) == []
    assert "entry" not in response.get_json(force=True)


def test_an_identifier_that_is_known_is_certain_unless_the_rest_speaks_against_it(hie: Exchange) -> None:
    known = person_id(hie.feed("1", marta(), system=HARBOR))
    own = [{"system": HARBOR, "value": "1"}]
    bare = {"resourceType": "Patient", "identifier": own, "name": [{"family": "Lindqvist"}]}
    assert shown(match(hie, asking(bare))) == [(known, "certain")]
    assert (known, "certain") not in shown(match(hie, asking({**otto(), "identifier": own})))


def test_matching_saves_nothing(hie_on_both: Exchange) -> None:
    known = person_id(hie_on_both.feed("1", marta()))
    before = hie_on_both.get(f"/fhir/Patient/{known}").get_json()
    for _ in range(3):
        match(hie_on_both, asking(marta(telecom=[{"system": "phone", "value": "303-555-0199"}])))
    assert hie_on_both.get(f"/fhir/Patient/{known}").get_json() == before
    assert hie_on_both.get("/fhir/Patient?family=Lindqvist").get_json()["total"] == 1


@pytest.mark.parametrize(
    "patient",
    [
        {},
        {"name": [{"family": "Lindqvist"}]},
        {"name": [{"family": "Lindqvist", "given": ["Marta"]}]},
        {"name": [{"family": "Lindqvist", "given": ["Marta"]}], "gender": "female"},
        {"name": [{"family": "Lindqvist", "given": ["Marta"]}], "birthDate": "1949"},
        {"name": [{"family": "Lindqvist"}], "birthDate": "1949-11-02"},
        {"birthDate": "1949-11-02", "gender": "female"},
        {"telecom": [{"system": "phone", "value": "617-555-0107"}]},
    ],
)
def test_a_thin_description_shows_nobody_and_says_what_is_wanted(
    hie: Exchange,
    audit: Audit,
    patient: dict[str, Any],
) -> None:
    hie.feed("1", marta())
    response = match(hie, asking({"resourceType": "Patient", **patient}))
    assert response.status_code == 400
    assert "birth date" in issue(response)["diagnostics"]
    assert (audit.events[-1].kind, audit.events[-1].person_id) == (Kind.SEARCH, None)


@pytest.mark.parametrize(
    "body",
    [
        {**asking(marta()), "parameter": [*asking(marta())["parameter"], {"name": "extra", "valueBoolean": True}]},
        asking({**marta(), "modifierExtension": [{"url": "http://x.example/y", "valueBoolean": True}]}),
        asking({**marta(), "name": [{**marta()["name"][0], "modifierExtension": [{"url": "u", "valueCode": "a"}]}]}),
        {**asking(marta()), "parameter": asking(marta())["parameter"] * 2},
        {"resourceType": "Parameters"},
        {"resourceType": "Parameters", "parameter": [{"name": "count", "valueInteger": 3}]},
        {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": {"resourceType": "Basic"}}]},
        asking(marta(), count=0),
        {**asking(marta()), "parameter": [*asking(marta())["parameter"], {"name": "count", "valueString": "3"}]},
        asking(marta(), onlyCertainMatches=1),
        asking(marta(), onlySingleMatch=True),
    ],
)
def test_what_is_not_understood_is_refused_and_shows_nobody(
    hie: Exchange,
    audit: Audit,
    body: dict[str, Any],
) -> None:
    hie.feed("1", marta())
    audit.events.clear()
    response = match(hie, body)
    assert response.status_code in (400, 422)
    assert issue(response)["severity"] == "error"
    assert "Lindqvist" not in response.text
    assert [event.person_id for event in audit.events] in ([], [None])


def test_an_unknown_plain_extension_does_no_harm(hie: Exchange) -> None:
    known = person_id(hie.feed("1", marta()))
    extended = {**marta(), "extension": [{"url": "http://x.example/y", "valueBoolean": True}]}
    assert shown(match(hie, asking(extended))) == [(known, "certain")]


def test_each_person_shown_is_in_the_log_first(hie: Exchange, audit: Audit) -> None:
    suspects = two_suspects(hie)
    audit.events.clear()
    match(hie, asking(otto()))
    assert {(e.kind, e.person_id) for e in audit.events} == {(Kind.SEARCH, i) for i in suspects}
    assert all("Brandt" in e.query and e.query.startswith("Patient/$match ") for e in audit.events)
    audit.broken = True
    response = match(hie, asking(otto()))
    assert response.status_code == 503
    assert "Brandt" not in response.text


@pytest.mark.parametrize(
    ("token", "status"),
    [("", 401), ("Bearer harbor patient system/Patient.rs", 403), ("Bearer harbor member system/Consent.rs", 403)],
)
def test_who_may_not_ask(hie: Exchange, token: str, status: int) -> None:
    assert match(hie, asking(marta()), token=token).status_code == status


# -- $idi-match


def idi(hie: Exchange, patient: dict[str, Any], **values: Any) -> Any:
    return match(hie, asking(patient, "IDIPatient", **values), "$idi-match")


def bundle_of(response: Any) -> dict[str, Any]:
    (parameter,) = response.get_json(force=True)["parameter"]
    assert parameter["name"] == "IDIMatchBundle"
    found: dict[str, Any] = parameter["resource"]
    Bundle.model_validate(found)
    return found


def test_idi_match_names_the_responder_and_how_to_reach_it(hie: Exchange) -> None:
    known = person_id(hie.feed("1", marta()))
    bundle = bundle_of(idi(hie, marta()))
    organization, patient = (e["resource"] for e in bundle["entry"])
    assert (organization["resourceType"], patient["id"]) == ("Organization", known)
    assert organization["contact"][0]["telecom"]
    assert bundle["identifier"]["assigner"]["reference"] == f"{BASE}/Organization/exchange"
    assert bundle["entry"][1]["search"]["extension"][0]["valueCode"] == "certain"


def test_only_single_match_shows_none_of_several_and_says_so(hie: Exchange) -> None:
    two_suspects(hie)
    described = otto(telecom=[{"system": "phone", "value": "312-555-0188"}])
    kinds = [e["resource"]["resourceType"] for e in bundle_of(idi(hie, described, onlySingleMatch=True))["entry"]]
    assert kinds == ["Organization", "OperationOutcome"]
    kinds = [e["resource"]["resourceType"] for e in bundle_of(idi(hie, described))["entry"]]
    assert kinds == ["Organization", "Patient", "Patient"]


def test_idi_match_wants_more_of_a_description(hie: Exchange) -> None:
    hie.feed("1", otto())
    assert shown(match(hie, asking(otto())))
    assert idi(hie, otto()).status_code == 400


# -- $link-changes


def test_a_member_hears_of_its_own_patients_only(
    hie: Exchange,
    audit: Audit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stewardship, "SETTLING", timedelta(0))
    one, two = person_id(hie.feed("1", marta())), person_id(hie.feed("2", otto()))
    first = hie.get("/fhir/Patient/$link-changes", token="Bearer lakeside member system/Patient.rs").get_json()
    assert (first["type"], {e["resource"]["id"] for e in first["entry"]}) == ("history", {one, two})
    Bundle.model_validate(first)
    after = first["link"][1]["url"].removeprefix("https://hie.example")
    nothing = hie.get(after, token="Bearer lakeside member system/Patient.rs").get_json()
    assert (nothing["total"], "entry" in nothing) == (0, False)
    assert hie.get("/fhir/Patient/$link-changes").get_json()["total"] == 0
    hie.app.extensions["hie"].stewardship.merge(one, two, By("User/dana", "the same passport"))
    audit.events.clear()
    changed = hie.get(after, token="Bearer lakeside member system/Patient.rs").get_json()
    gone = next(e["resource"] for e in changed["entry"] if e["resource"]["id"] == two)
    assert (gone["active"], gone["link"][0]["other"]["reference"]) == (False, f"Patient/{one}")
    assert len(next(e["resource"] for e in changed["entry"] if e["resource"]["id"] == one)["identifier"]) == 2
    assert {(e.kind, e.person_id) for e in audit.events} == {(Kind.SEARCH, one)}


@pytest.mark.parametrize("question", ["_since=yesterday", "_since=2026-01-01T00:00:00", "since=x", "_since=a&_since=b"])
def test_a_question_that_is_not_understood_is_refused(hie: Exchange, question: str) -> None:
    assert hie.get(f"/fhir/Patient/$link-changes?{question}").status_code == 400


def test_link_changes_are_for_members(hie: Exchange) -> None:
    response = hie.get("/fhir/Patient/$link-changes", token="Bearer harbor clinician system/Patient.rs")
    assert response.status_code == 403
