"""Decisions a second: `hie.consent.policy` beside cedarpy evaluating an equivalent policy.

    .venv/bin/python bench/bench_consent.py

One person's consent (share for treatment; keep HIV and mental health from everybody but one hospital in emergencies;
keep documents of before 2020 and one laboratory code), a chart of 100 resources, one caller. The peer gets the same
policy in Cedar and the same resources as entities, already parsed; it has neither provenance nor explanation to give.
cedarpy is no dependency of hie: it is installed from PyPI into a throw-away venv, pinned, where it is not importable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from hie.consent.fhir import compile_consent
from hie.consent.labels import views
from hie.consent.policy import PersonPolicy, Request, ResourceView, decide
from hie.core.caller import Role

CEDARPY = "cedarpy==4.12.2"
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
LOINC, ICD10 = "http://loinc.org", "http://hl7.org/fhir/sid/icd-10-cm"
TYPES = "http://hl7.org/fhir/resource-types"
KINDS = ("Observation", "Condition", "Encounter", "DocumentReference", "MedicationRequest")
CODES = ((LOINC, "718-7"), (ICD10, "B20"), (ICD10, "I10"), (LOINC, "1-8"), (ICD10, "F32.9"))
CONSENT = {
    "resourceType": "Consent",
    "id": "c1",
    "status": "active",
    "scope": {"coding": [{"code": "patient-privacy"}]},
    "dateTime": "2026-01-01",
    "provision": {
        "type": "permit",
        "purpose": [{"system": ACT_REASON, "code": "TREAT"}],
        "provision": [
            {
                "type": "deny",
                "securityLabel": [{"system": ACT_CODE, "code": code} for code in ("HIV", "PSY")],
                "provision": [
                    {
                        "type": "permit",
                        "actor": [{"reference": {"reference": "Organization/lakeside"}}],
                        "purpose": [{"system": ACT_REASON, "code": "ETREAT"}],
                    }
                ],
            },
            {
                "type": "deny",
                "class": [{"system": TYPES, "code": "DocumentReference"}],
                "dataPeriod": {"end": "2019-12-31"},
            },
            {"type": "deny", "code": [{"coding": [{"system": LOINC, "code": "1-8"}]}]},
        ],
    },
}
CEDAR = """
permit(principal, action == Action::"read", resource) when { context.purposes.contains("TREAT") };
forbid(principal, action == Action::"read", resource)
  when { resource.labels.containsAny(["HIV", "PSY"]) }
  unless { principal == Organization::"lakeside" && context.purposes.contains("ETREAT") };
forbid(principal, action == Action::"read", resource)
  when { resource.kind == "DocumentReference" && resource.year < 2020 };
forbid(principal, action == Action::"read", resource) when { resource.codes.contains("http://loinc.org|1-8") };
"""
PEER = """
import json, sys, time, cedarpy
asked = json.load(open(sys.argv[1]))
def ask(resource):
    question = {"principal": 'Organization::"lakeside"', "action": 'Action::"read"', "context": {"purposes": ["TREAT"]},
                "resource": 'Resource::"%s"' % resource["uid"]["id"]}
    return cedarpy.is_authorized(question, asked["policy"], [resource]).decision == cedarpy.Decision.Allow
permitted = sum(ask(resource) for resource in asked["resources"])
best = 1e9
for _ in range(7):
    started = time.perf_counter()
    for resource in asked["resources"]:
        ask(resource)
    best = min(best, time.perf_counter() - started)
print(json.dumps({"permitted": permitted, "seconds": best / len(asked["resources"])}))
"""


def chart() -> list[dict[str, Any]]:
    """100 resources of five types, five codes and sixteen years."""
    return [
        {
            "resourceType": KINDS[n % 5],
            "id": f"r{n}",
            "subject": {"reference": "Patient/p"},
            "code": {
                "coding": [{"system": CODES[n // 5 % 5][0], "code": CODES[n // 5 % 5][1], "display": "a display"}]
            },
            "effectiveDateTime": f"20{10 + n % 16}-03-01T10:00:00Z",
            "performer": [{"reference": "Practitioner/p1"}],
            "category": [{"coding": [{"system": "http://example.org/category", "code": "laboratory"}]}],
            "valueQuantity": {"value": 1, "unit": "g"},
        }
        for n in range(100)
    ]


def policy() -> PersonPolicy:
    return PersonPolicy(consents=(compile_consent(CONSENT, 1, "p"),), exchange_default="permit", as_of=NOW)


def request() -> Request:
    actors = frozenset({"Organization/lakeside", "Device/lakeside-ehr", "r.ortiz@lakeside.example"})
    return Request(actors, frozenset({"TREAT"}), Role.CLINICIAN, "lakeside", NOW)


def best(work: Callable[[], object], rounds: int = 7, times: int = 20) -> float:
    """Seconds of one call, the best of some rounds: what it takes when nothing else is in the way."""
    found = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(times):
            work()
        found = min(found, (time.perf_counter() - started) / times)
    return found


def peer(resources: list[ResourceView]) -> dict[str, Any] | None:
    """The same by cedarpy, in a process of its own; None where it cannot be had."""
    entities = [
        {
            "uid": {"type": "Resource", "id": view.id},
            "parents": [],
            "attrs": {
                "kind": view.type,
                "labels": sorted(view.sensitivities),
                "codes": sorted(f"{system}|{code}" for system, code in view.codes),
                "year": view.time.start.year if view.time and view.time.start else 0,
            },
        }
        for view in resources
    ]
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.json"
        asked.write_text(json.dumps({"policy": CEDAR, "resources": entities}))
        try:
            venv.create(Path(folder) / "venv", with_pip=True)
            python = Path(folder) / "venv" / "bin" / "python"
            subprocess.run([python, "-m", "pip", "install", "-q", CEDARPY], check=True, capture_output=True)
            done = subprocess.run([python, "-c", PEER, asked], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError):
            return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(name: str, seconds: float) -> None:
    print(f"{name:<66}{seconds * 1e6:>10.2f}{1 / seconds:>14,.0f}")


def main() -> None:
    resources, asking, governed = chart(), request(), policy()
    seen = views(resources, "meadow")
    permitted = sum(decide(governed, asking, view).permit for view in seen)

    def cold() -> None:
        fresh, again = policy_of(governed), request()
        for view in views(resources, "meadow"):
            decide(fresh, again, view)

    def unseen() -> None:
        fresh, again = policy_of(governed), request()
        for view in seen:
            decide(fresh, again, view)

    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    print(f"one consent, 100 resources, {permitted} permitted; load {load}\n")
    print(f"{'':<66}{'µs each':>10}{'a second':>14}")
    row("hie: a decision, request seen before", best(lambda: [decide(governed, asking, v) for v in seen]) / 100)
    row("hie: a decision, new request (some are like others)", best(unseen) / 100)
    row("hie: indexing a resource (labels, codes, references)", best(lambda: views(resources, "meadow")) / 100)
    row("hie: indexing and deciding, new request", best(cold) / 100)
    print(f"{'hie: 100 resources, from plain JSON to decisions':<66}{best(cold) * 1e3:>10.2f} ms")
    found = peer(seen)
    if found is None:
        print(f"peer: {CEDARPY} could not be installed here")
        return
    row(f"peer: {CEDARPY}, entities given", found["seconds"])
    print(f"{'':<66}{found['permitted']} permitted")


def policy_of(compiled: PersonPolicy) -> PersonPolicy:
    """The policy as a request gets it: consents compiled already, nothing decided yet."""
    return PersonPolicy(consents=compiled.consents, exchange_default="permit", as_of=NOW)


if __name__ == "__main__":
    main()
