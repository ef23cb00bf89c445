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
_BY_FORM_TOO = frozenset({"Condition", "Encounter", "DocumentReference"})
"""Types of which every parameter is tried by GET and by form; of the others, by GET."""
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
        yield from self._matches()
        yield from self._others()
        yield from self._roads_that_are_none()
        yield from self._decision_services()

    def _get(self, path: str, **params: Any) -> tuple[str, requests.Response]:
        return self._named(f"GET {path} {params}", "GET", path, params=params)

    def _with(self, headers: dict[str, str], name: str, path: str) -> tuple[str, requests.Response]:
        given = {"X-Request-Id": "the-same-each-time", **headers}
        return name, self.world.call("GET", path, self.token, headers=given)

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
                if kind in _BY_FORM_TOO:
                    form = {**whom, name: value}
                    yield self._named(f"POST {path}/_search {form}", "POST", f"{path}/_search", data=form)
            for resource_id in self.known[kind]:
                yield self._get(path, **whom, _id=resource_id)
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
            ("_has:Provenance:target:agent", word),
            ("_summary", "data"),
            ("_elements", "id"),
            ("_sort", "code"),
            ("_lastUpdated", "lt2025-01-01"),
            ("_filter", f"code eq {word}"),
            ("code:text", word),
            ("code:not", word),
            ("_security", "HIV"),
            ("_profile", f"http://{word}.example/profile"),
            ("_source", word),
            ("date", "gt2000-01-01"),
            ("performer.identifier", word),
            ("_include:iterate", f"{kind}:subject"),
            ("_revinclude", "*"),
            ("_contained", "true"),
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
                for more in ("/_history", "/_history/1", "/$validate", "?_elements=id", "?_summary=text"):
                    yield self._get(f"/fhir/{kind}/{resource_id}{more}")
                yield self._named(f"HEAD {kind} {resource_id}", "HEAD", f"/fhir/{kind}/{resource_id}")
                known = {"If-None-Match": 'W/"1"', "If-Modified-Since": "Wed, 25 Nov 2026 00:00:00 GMT"}
                yield self._with(known, f"GET {kind} {resource_id} if changed", f"/fhir/{kind}/{resource_id}")
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

    def _matches(self) -> Iterator[tuple[str, requests.Response]]:
        described = {"resourceType": "Patient", "name": [{"family": "Lindqvist", "given": ["Marta"]}]}
        for name, more in (
            ("birth date", {"birthDate": "1949-11-02"}),
            ("hidden phone", {"telecom": [{"system": "phone", "value": "781-555-0199"}]}),
            ("hidden name", {"name": [{"family": f"{MARK}family", "given": [f"{MARK}given"]}]}),
            ("hidden number", {"identifier": [{"system": "urn:oid:2.999.3.3", "value": f"{MARK}77"}]}),
        ):
            for operation in ("$match", "$idi-match"):
                path = f"/fhir/Patient/{operation}"
                patient = {**described, **more}
                body = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": patient}]}
                yield self._named(f"{operation} by {name}", "POST", path, resource=body)
        yield self._get("/fhir/Patient/$link-changes")

    def _others(self) -> Iterator[tuple[str, requests.Response]]:
        yield self._get("/log/checkpoint")
        yield self._get("/fhir/Consent", patient=self.person)
        yield self._get("/fhir/AuditEvent", patient=f"Patient/{self.person}")
        yield self._get("/fhir/metadata")
        yield self._get("/metrics")
        yield self._get("/healthz")
        yield self._get("/fhir/Provenance/x")
        yield self._get("/fhir/Condition", patient=self.person, subject="somebody-else")

    def _roads_that_are_none(self) -> Iterator[tuple[str, requests.Response]]:
        """What a FHIR server may offer and this one does not."""
        condition = self.known["Condition"][0]
        for path in (
            f"/fhir/Patient/{self.person}/Condition",
            f"/fhir/Patient/{self.person}/$summary",
            f"/fhir/Condition/_history?patient={self.person}",
            f"/fhir/_history?patient={self.person}",
            f"/fhir?_type=Condition&patient={self.person}",
            "/fhir/$graphql?query={ConditionList{id}}",
            f"/fhir/Binary/{condition}",
            f"/fhir/List/$find?patient={self.person}",
        ):
            yield self._get(path)
        entry = {"request": {"method": "GET", "url": f"Condition/{condition}"}}
        batch = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
        yield self._named("POST batch", "POST", "/fhir", resource=batch)
        for method in ("DELETE", "PUT", "PATCH"):
            yield self._named(f"{method} Condition", method, f"/fhir/Condition/{condition}", resource={})
        for resource_id in self.known["Condition"]:
            yield self._get("/fhir/Observation", patient=self.person, encounter=f"Encounter/{resource_id}")
            yield self._get(f"/fhir/Condition/{resource_id}/$everything")

    def _decision_services(self) -> Iterator[tuple[str, requests.Response]]:
        """Consent services and cards, which are the privacy office's."""
        context = {"patientId": [{"system": "urn:oid:2.999.3.1", "value": "h-1"}], "purposeOfUse": "TREAT"}
        hook = {"hook": "patient-consent-consult", "hookInstance": "1", "context": context}
        body = {"resourceType": "Parameters", "parameter": [{"name": "patient", "valueReference": {"reference": "x"}}]}
        yield self._get("/cds-services")
        for service in ("patient-consent-consult", "patient-view", "hie-patient-view"):
            yield self._named(f"POST {service}", "POST", f"/cds-services/{service}", json=hook)
        yield self._named("POST $decide", "POST", "/fhir/Consent/$decide", resource=body)


class Office:
    """The privacy office, which may know that something is withheld, and of what kind, but not what it says."""

    def __init__(self, world: Exchange, person: str) -> None:
        self.world = world
        self.person = person

    def answers(self) -> Iterator[tuple[str, str]]:
        """Everything the office is told about the person, by name."""
        consents = self.world.token("privacy", "system/Consent.cruds", "HOPERAT")
        context = {"patientId": [{"system": "urn:oid:2.999.3.1", "value": "h-1"}], "purposeOfUse": "TREAT"}
        hook = {"hook": "patient-consent-consult", "hookInstance": "1", "context": context}
        yield "card", self.world.call("POST", "/cds-services/patient-consent-consult", consents, json=hook).text
        parameters = [
            {"name": "patient", "valueReference": {"reference": f"Patient/{self.person}"}},
            {"name": "recipient", "valueReference": {"reference": "Organization/harbor"}},
            {"name": "purpose", "valueCode": "TREAT"},
        ]
        body = {"resourceType": "Parameters", "parameter": parameters}
        yield "$decide", self.world.call("POST", "/fhir/Consent/$decide", consents, resource=body).text
        log = self.world.token("privacy", "system/AuditEvent.rs", "HOPERAT")
        found = self.world.call("GET", "/fhir/AuditEvent", log, params={"patient": self.person, "_count": "500"})
        yield "log", re.sub(r'"query":"[^"]*"', "", found.text)
        caller = ("--caller", "harbor", "--purpose", "TREAT")
        yield "explain", self.world.run("consent", "explain", "--person", self.person, *caller).stdout
        yield "what-if", self.world.run("consent", "what-if", "--person", self.person, "--not-to", "harbor").stdout
        yield "codes", self.world.run("consent", "codes", "report", "--without", "violence.csv").stdout


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
    # A Bundle's own identifier and time.
    body = re.sub(r'"identifier":\{"system":"[^"]+/fhir","value":"[a-z2-7]{26}"|"timestamp":"[^"]+"', "…", body)
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
    if "json" not in reply.headers.get("Content-Type", "") or not reply.content:
        return headers + re.sub(r'value="[^"]*"|Searched for <strong>[^<]*</strong>', "", reply.text)
    body = reply.json()
    if isinstance(body, dict):
        body.pop("link", None)
    return headers + json.dumps(body, ensure_ascii=False)
