"""The codes that give a sensitivity away, for the exchange's privacy officer: looked up, added after seeing what that
changes, taken back; and the files they come from.
"""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import MultiDict

from hie.audit.event import Event, Kind, Outcome
from hie.consent.code_files import KINDS, NAMES, SYSTEMS, Row, mistake
from hie.consent.plain import SENSITIVITIES
from hie.consent.vocabulary import sensitivities_and_above
from hie.console import people
from hie.core.caller import Role
from hie.core.errors import BadRequest
from hie.gateway.api.context import request_id
from hie.gateway.recoding import Recoder, Report
from hie.gateway.services import current

MOST_PEOPLE = 50
MOST_SECONDS = 15.0
"""How many people, for how long, a report on the page looks at; `hie consent codes report` looks at more."""

SYSTEM_NAMES = {
    "icd10cm": "ICD-10-CM",
    "icd9cm": "ICD-9-CM",
    "snomed": "SNOMED CT",
    "loinc": "LOINC",
    "rxnorm": "RxNorm",
    "cpt": "CPT",
    "hcpcs": "HCPCS",
    NAMES: "Words (a drug, a condition)",
}
KIND_NAMES = {
    "code": "Exactly this",
    "prefix": "All that begin with this",
    "range": "From .. to",
    "pattern": "Begins like this (? is any character)",
}

_BY_WORDS = sorted(SENSITIVITIES.items(), key=lambda one: one[1].lower())


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/privacy/codes", endpoint="codes")(show)
    blueprint.post("/privacy/codes", endpoint="change_codes")(change)
    blueprint.post("/privacy/codes/take-back", endpoint="take_code_back")(take_back)


def show() -> ResponseReturnValue:
    """The page, with what a code gives away where one is asked about."""
    _require_officer()
    return _page(_row(request.args) if request.args.get("code") else None, looked_up=True)


def change() -> ResponseReturnValue:
    """Show what a new code would change, or add it."""
    _require_officer()
    row = _row(request.form)
    wrong = mistake(row)
    if wrong:
        return _page(row, mistakes={"code": f"The code {wrong}."}), 400
    if request.form.get("act") != "add":
        report = Recoder(current().release, current().consents, current().identity).report(
            people.caller(), current().codes.with_row(row), request_id(), most=MOST_PEOPLE, seconds=MOST_SECONDS
        )
        return _page(row, report=report)
    if row[:4] in {one[:4] for one in current().codes.officers()}:
        return _page(row, mistakes={"code": "This code was added already."}), 400
    _record(f"Sensitivity code added: {' '.join(row[:4])}")
    current().codes.add(row, current().clock().date())
    flash("Added. It counts from now on.")
    return redirect(url_for("console.codes"), 303)


def take_back() -> ResponseReturnValue:
    _require_officer()
    row = _row(request.form)
    if row[:4] not in {one[:4] for one in current().codes.officers()}:
        raise BadRequest("The officer added no such code.")
    _record(f"Sensitivity code taken back: {' '.join(row[:4])}")
    current().codes.take_back(row, current().clock().date())
    flash("Taken back. It does not count any more.")
    return redirect(url_for("console.codes"), 303)


def _require_officer() -> None:
    if people.require_role(Role.PRIVACY_OFFICER).member_id is not None:
        people.refuse("Codes are the exchange's: only its own privacy officers may change them.")


def _row(given: MultiDict[str, str]) -> Row:
    names = ("system", "kind", "code", "label", "meaning")
    system, kind, code, label, meaning = (" ".join(given.get(name, "").split())[:200] for name in names)
    return Row(system, "code" if system == NAMES else kind or "code", code, label, meaning)


def _given_away(row: Row) -> list[str] | None:
    """What a single code gives away, in words; None where nothing was asked."""
    if row.system not in (*SYSTEMS, NAMES) or not row.code:
        return None
    found = sensitivities_and_above(current().codes.labels_of(row.system, row.code))
    return sorted(SENSITIVITIES.get(label, label) for label in found)


def _record(description: str) -> None:
    current().audit.record(
        Event(
            kind=Kind.CONSENT,
            outcome=Outcome.SUCCESS,
            action="U",
            caller=people.caller(),
            person_id=None,
            query="console codes",
            request_id=request_id(),
            description=description,
            entities=("Basic/value-sets",),
        )
    )


def _page(
    row: Row | None,
    *,
    mistakes: dict[str, str] | None = None,
    report: Report | None = None,
    looked_up: bool = False,
) -> str:
    return render_template(
        "console/privacy/codes.html",
        row=row or Row("icd10cm", "code", "", ""),
        gives=_given_away(row) if row and looked_up else None,
        mistakes=mistakes or {},
        report=report,
        files=current().codes.files(),
        own=current().codes.officers(),
        systems=list(SYSTEM_NAMES.items()),
        system_names=SYSTEM_NAMES,
        kinds=[(kind, KIND_NAMES[kind]) for kind in KINDS],
        kind_names=KIND_NAMES,
        labels=[(code, f"{words[0].upper()}{words[1:]} ({code})") for code, words in _BY_WORDS],
        label_words=SENSITIVITIES,
    )
