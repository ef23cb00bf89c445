"""A chart in which everything withheld carries a marker in every field, and every road by which it might come out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import requests

from hie.core.fhir import CLINICAL_TYPES
from tests.journeys.world import Exchange

MARK = "zqmark"
"""Begins every planted word; no word of any language or id of the exchange holds it."""

ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
SECRET_LABEL = {"security": [{"system": ACT_CODE, "code": "HIV"}]}
_PATIENT = {"Coverage": "beneficiary", "AllergyIntolerance": "patient", "Immunization": "patient"}
_PATIENT["ExplanationOfBenefit"] = "patient"
_CODE = {
    "MedicationRequest": "medicationCodeableConcept",
    "MedicationStatement": "medicationCodeableConcept",
    "Immunization": "vaccineCode",
    "Encounter": "reasonCode",
    "DocumentReference": "type",
    "CarePlan": "category",
    "Coverage": "type",
    "ExplanationOfBenefit": "type",
}
_LISTED = frozenset({"reasonCode", "category"})
_ATTACHED = {
    "DocumentReference": lambda attachment: {"content": [{"attachment": attachment}]},
    "DiagnosticReport": lambda attachment: {"presentedForm": [attachment]},
}


def secret(kind: str, patient: str, n: int = 1) -> dict[str, Any]:
    """A withheld resource: the marker in every field that can hold a word, and a label that the consent denies."""
    word = f"{MARK}{kind}{n}".lower()
    concept = {"text": word, "coding": [{"system": f"http://{word}.example", "code": word, "display": word}]}
    return {
        "resourceType": kind,
        "id": f"s-{word}",
        "meta": {**SECRET_LABEL, "source": word, "profile": [f"http://{word}.example/profile"]},
        "text": {"status": "generated", "div": f"<div>{word}</div>"},
        "identifier": [{"system": f"http://{word}.example", "value": word}],
        "extension": [{"url": f"http://{word}.example", "valueString": word}],
        "contained": [{"resourceType": "Observation", "id": word, "code": concept, "valueString": word}],
        _PATIENT.get(kind, "subject"): {"reference": f"Patient/{patient}", "display": word},
        _CODE.get(kind, "code"): [concept] if _CODE.get(kind) in _LISTED else concept,
        "note": [{"text": word}],
        "status": word,
        "performer": [{"reference": f"Practitioner/{word}", "display": word}],
        **(_ATTACHED.get(kind, lambda _a: {})({"contentType": "text/plain", "data": word, "title": word})),
    }


def open_one(kind: str, patient: str) -> dict[str, Any]:
    """A released resource that speaks of the withheld ones wherever a resource may speak of others."""
    quoted = f"{MARK}quoted{kind}".lower()
    condition = f"s-{MARK}condition1"
    attachment = {"contentType": "text/plain", "data": quoted, "title": quoted, "url": f"data:{quoted}"}
    concept = {"text": f"plain {kind}"}
    return {
        "resourceType": kind,
        "id": f"o-{kind.lower()}",
        "meta": {"lastUpdated": "2026-01-01T00:00:00Z"},
        "text": {"status": "additional", "div": f"<div>{quoted}</div>"},
        _PATIENT.get(kind, "subject"): {"reference": f"Patient/{patient}"},
        _CODE.get(kind, "code"): [concept] if _CODE.get(kind) in _LISTED else concept,
        "supportingInfo": [{"display": quoted, "identifier": {"value": quoted}}],
        "extension": [{"url": "http://example.org/about", "valueReference": {"reference": "#c", "display": quoted}}],
        "contained": [
            {
                "resourceType": "Condition",
                "id": "c",
                "meta": SECRET_LABEL,
                "code": {"text": quoted},
                "text": {"status": "generated", "div": quoted},
            }
        ],
        **(_ATTACHED.get(kind, lambda _a: {})(attachment)),
        "reasonReference": [{"reference": f"Provenance/{condition}", "display": quoted}],
    }


def chart(patient: str) -> dict[str, list[dict[str, Any]]]:
    """Two withheld and one released resource of each type."""
    return {kind: [secret(kind, patient), open_one(kind, patient), secret(kind, patient, 2)] for kind in CLINICAL_TYPES}


def drop_secrets(resources: dict[str, list[dict[str, Any]]]) -> None:
    """Remove at the source what is withheld."""
    for kind, held in resources.items():
        resources[kind] = [r for r in held if not r["id"].startswith("s-")]


class Roads:
    """Every question a caller may put about one person; each answer with its status and headers, by name."""

    def __init__(self, world: Exchange, caller: str, person: str, known: dict[str, list[str]]) -> None:
        """`known`: ids that the caller was given when everything was still released, by type."""
        self.world = world
        self.caller = caller
        self.person = person
        self.known = known
        self.token = world.token(caller, "system/*.rs")

    def answers(self) -> Iterator[tuple[str, requests.Response]]:
        yield from self._searches()
        yield from self._reads()
        yield from self._everything()
        yield from self._identity()
        yield from self._others()

    def _get(self, path: str, **params: Any) -> tuple[str, requests.Response]:
        return self._named(f"GET {path} {params}", "GET", path, params=params)

    def _named(self, name: str, method: str, path: str, **options: Any) -> tuple[str, requests.Response]:
        reply = self.world.call(method, path, self.token, headers={"X-Request-Id": "the-same-each-time"}, **options)
        return name, reply

    def _searches(self) -> Iterator[tuple[str, requests.Response]]:
        for kind in CLINICAL_TYPES:
            path, whom = f"/fhir/{kind}", {"patient": f"Patient/{self.person}"}
            word = f"{MARK}{kind}1".lower()
            yield self._get(path, **whom)
            yield self._named(f"POST {kind}", "POST", f"{path}/_search", data=whom)
            for name, value in self._parameters(kind, word):
                yield self._get(path, **whom, **{name: value})
            yield from self._pages(path, whom)

    def _parameters(self, kind: str, word: str) -> Iterator[tuple[str, str]]:
        for name in ("code", "identifier", "status", "type", "category", "vaccine-code", "_tag", "_text", "_content"):
            yield name, word
        yield "_id", ",".join(self.known[kind])
        yield from (
            ("_summary", "count"),
            ("_summary", "text"),
            ("_elements", "text,contained,note"),
            ("_sort", "-_lastUpdated"),
            ("_lastUpdated", "gt2025-01-01"),
            ("_has:Observation:encounter:code", word),
            ("subject:Patient.name", word),
            ("encounter.type", word),
            ("_include", f"{kind}:encounter"),
            ("_revinclude", "Provenance:target"),
            ("_include", "*"),
            ("_count", "0"),
            ("_total", "accurate"),
        )

    def _pages(self, path: str, params: dict[str, str]) -> Iterator[tuple[str, requests.Response]]:
        name, reply = self._get(path, **params, _count="1")
        yield name, reply
        for page in range(6):
            links = {link["relation"]: link["url"] for link in reply.json().get("link", [])}
            if "next" not in links:
                return
            name, reply = self._named(f"{name} page {page}", "GET", links["next"].removeprefix(self.world.base))
            yield name, reply

    def _reads(self) -> Iterator[tuple[str, requests.Response]]:
        for kind, ids in self.known.items():
            for resource_id in [*ids, "neverwas" + kind.lower()]:
                yield self._get(f"/fhir/{kind}/{resource_id}")
            yield self._get(f"/fhir/Encounter/{ids[0]}")

    def _everything(self) -> Iterator[tuple[str, requests.Response]]:
        path = f"/fhir/Patient/{self.person}/$everything"
        yield self._get(path)
        yield self._get(path, _type="Condition,Encounter,DocumentReference")
        yield self._get(path, start="2020-01-01", _since="2020-01-01")
        body = {"resourceType": "Parameters", "parameter": [{"name": "_type", "valueString": "Observation"}]}
        yield self._named("POST $everything", "POST", path, resource=body)
        yield from self._pages(path, {})

    def _identity(self) -> Iterator[tuple[str, requests.Response]]:
        yield self._get(f"/fhir/Patient/{self.person}")
        for name, value in (
            ("_id", self.person),
            ("family", "Lindqvist"),
            ("family", MARK),
            ("address", MARK),
            ("telecom", "phone|781-555-0199"),
            ("identifier", f"urn:oid:2.999.3.3|{MARK}77"),
            ("identifier", "urn:oid:2.999.3.3|"),
        ):
            yield self._get("/fhir/Patient", **{name: value})
            yield self._named(f"POST Patient {name} {value}", "POST", "/fhir/Patient/_search", data={name: value})
        for source in (f"urn:oid:2.999.3.3|{MARK}77", "urn:oid:2.999.3.1|h-1", f"{self.world.base}/fhir|{self.person}"):
            yield self._get("/fhir/Patient/$ihe-pix", sourceIdentifier=source)
            yield self._get("/fhir/Patient/$ihe-pix", sourceIdentifier=source, targetSystem="urn:oid:2.999.3.3")
        yield self._get("/fhir/Condition", **{"patient.identifier": f"urn:oid:2.999.3.3|{MARK}77"})

    def _others(self) -> Iterator[tuple[str, requests.Response]]:
        yield self._get("/fhir/Consent", patient=self.person)
        yield self._get("/fhir/AuditEvent", patient=f"Patient/{self.person}")
        yield self._get("/fhir/metadata")
        yield self._get("/metrics")
        yield self._get("/healthz")
        yield self._get("/fhir/Provenance/x")
        yield self._get("/fhir/Condition", patient=self.person, subject="somebody-else")


class Desk:
    """A clinician at the console, as a browser without JavaScript would have it."""

    def __init__(self, world: Exchange, email: str, password: str) -> None:
        self.base = world.base
        self.session = requests.Session()
        self.session.headers["X-Request-Id"] = "the-same-each-time"
        self._token = ""
        self.get("/sign-in")
        self.post("/sign-in", email=email, password=password)

    def get(self, path: str) -> requests.Response:
        return self._kept(self.session.get(self.base + path, timeout=30))

    def post(self, path: str, **form: str) -> requests.Response:
        return self._kept(self.session.post(self.base + path, data={"csrf_token": self._token, **form}, timeout=30))

    def _kept(self, reply: requests.Response) -> requests.Response:
        found = re.search(r'name="csrf_token" value="([^"]+)"', reply.text)
        self._token = found[1] if found else self._token
        return reply

    def answers(self, person: str) -> Iterator[tuple[str, requests.Response]]:
        yield (
            "console search",
            self.post("/emergency", family="Lindqvist", given="Marta", year="1949", month="11", day="2"),
        )
        yield (
            "console search by a marker",
            self.post("/emergency", family=MARK, given="Marta", year="1949", month="11", day="2"),
        )
        yield "console chart", self.get(f"/emergency/people/{person}")


_SAME_FOR_NOBODY = ("date", "hie-receipt", "set-cookie", "content-length")


def seen(reply: requests.Response) -> str:
    """All of an answer that its caller sees, but what no two answers share: date, cookies, signatures, durations."""
    headers = sorted((k, v) for k, v in reply.headers.items() if k.lower() not in _SAME_FOR_NOBODY)
    body = re.sub(r"_cursor=[\w%.=-]+", "_cursor=…", reply.text)
    if "text/html" in reply.headers.get("Content-Type", ""):
        body = re.sub(
            r"""value="[\w.-]{40,}"|(?:under )?[0-9]+\.[0-9]{2} seconds?|[0-9:]{8} UTC|results/\w+|search=\w+""",
            "…",
            body,
        )
    return f"{reply.status_code} {headers} {body}"


def told(reply: requests.Response) -> str:
    """Headers and body without the caller's own words, which the links of a searchset repeat."""
    headers = str(sorted(reply.headers.items()))
    if "json" not in reply.headers.get("Content-Type", ""):
        return headers + re.sub(r'value="[^"]*"|Searched for <strong>[^<]*</strong>', "", reply.text)
    body = reply.json()
    if isinstance(body, dict):
        body.pop("link", None)
    return headers + json.dumps(body, ensure_ascii=False)
