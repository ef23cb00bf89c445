"""Reports about patients for the privacy officer: chosen here, checked against the whole log, handed out as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from flask import Blueprint, Response, render_template, request
from flask.typing import ResponseReturnValue

from hie.audit.accounting import FIELDS, Asked, Report, ReportKind, Subject, read_event
from hie.audit.report_formats import FORMS, Format, file_name, render
from hie.console import people
from hie.console.protection import limiter
from hie.core.caller import Role
from hie.core.errors import NotFound
from hie.gateway.api.context import request_id
from hie.gateway.services import current
from hie.gateway.subjects import subject

KINDS = {
    ReportKind.ACCOUNTING: "Accounting of disclosures (45 CFR 164.528), six years",
    ReportKind.PART2: "Substance use records, list of disclosures (42 CFR 2.24), three years",
    ReportKind.ACCESS: "Every access in plain words, six years",
    ReportKind.ONC: "Audit report (45 CFR 170.315 (d)(3)), everything, sortable",
}
FORMATS = {
    Format.PDF: "PDF, for paper",
    Format.CSV: "CSV, for a spreadsheet",
    Format.JSON: "JSON",
    Format.JSONL: "JSON lines",
    Format.BUNDLE: "FHIR Bundle of AuditEvents",
    Format.ZIP: "Zip with everything and the log entries",
}
_MOST_PATIENTS = 50


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/privacy/reports", endpoint="reports")(show)
    blueprint.post("/privacy/reports", endpoint="report")(limiter.limit("30/minute")(make))


@dataclass(frozen=True)
class Form:
    """What was chosen, as typed."""

    patients: str = ""
    kind: str = ReportKind.ACCOUNTING.value
    format: str = Format.PDF.value
    since: str = ""
    until: str = ""
    sort: str = ""
    descending: bool = False
    required_only: bool = False
    suspended: bool = False

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Form:
        return cls(
            patients=given.get("patients", "").strip(),
            kind=given.get("kind", cls.kind),
            format=given.get("format", cls.format),
            since=given.get("since", "").strip(),
            until=given.get("until", "").strip(),
            sort=given.get("sort", ""),
            descending=given.get("descending") == "yes",
            required_only=given.get("required_only") == "yes",
            suspended=given.get("suspended") == "yes",
        )


def show() -> ResponseReturnValue:
    people.require_role(Role.PRIVACY_OFFICER)
    return _page(Form.of({"patients": request.args.get("patient", "")}))


def make() -> ResponseReturnValue:
    people.require_role(Role.PRIVACY_OFFICER)
    form = Form.of(request.form)
    asked, mistakes = _asked(form)
    if asked is None:
        return _page(form, mistakes), 400
    return hand_out(current().accounting.report(asked), Format(form.format))


def hand_out(report: Report, form: Format) -> Response:
    """The report as a file, once the log has it that it was handed out."""
    content = render(report, form)
    current().audit.record(*read_event(report, form.value, people.caller(), request_id()))
    response = Response(content, mimetype=FORMS[form].media_type)
    response.headers["Content-Disposition"] = f'attachment; filename="{file_name(report, form)}"'
    return response


def _asked(form: Form) -> tuple[Asked | None, dict[str, str]]:
    """What the form asks for, or a sentence for each mistake."""
    mistakes: dict[str, str] = {}
    subjects = _subjects(form.patients, mistakes)
    since, until = (_day(form, name, mistakes) for name in ("since", "until"))
    if form.kind not in list(ReportKind) or form.format not in list(Format):
        mistakes["kind"] = "Choose a report and a format."
    elif form.sort and form.sort not in {field.name for field in FIELDS[ReportKind(form.kind)]}:
        mistakes["sort"] = "This report has no such field to sort by."
    if mistakes:
        return None, mistakes
    return (
        Asked(
            kind=ReportKind(form.kind),
            subjects=tuple(subjects),
            start=since,
            end=until + timedelta(days=1) if until else None,
            required_only=form.required_only,
            whole=form.suspended,
            sort=form.sort or None,
            descending=form.descending,
        ),
        {},
    )


def _subjects(text: str, mistakes: dict[str, str]) -> list[Subject]:
    found: dict[str, Subject] = {}
    for named in text.split()[: _MOST_PATIENTS + 1]:
        try:
            one = subject(current().identity, named)
        except NotFound:
            mistakes["patients"] = f"Nobody is known as {named[:80]}. Find the patient first."
        else:
            found[one.person_id] = one
    if not found and not mistakes:
        mistakes["patients"] = "Give at least one patient."
    if len(found) > _MOST_PATIENTS:
        mistakes["patients"] = f"Give at most {_MOST_PATIENTS} patients."
    return list(found.values())


def _day(form: Form, name: str, mistakes: dict[str, str]) -> datetime | None:
    text: str = getattr(form, name)
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC) if text else None
    except ValueError:
        mistakes[name] = "Give a day as YYYY-MM-DD, or leave it empty."
        return None


def _page(form: Form, mistakes: Mapping[str, str] | None = None) -> str:
    sorts = {kind.value: FIELDS[kind] for kind in ReportKind}
    return render_template(
        "console/privacy/reports.html",
        form=form,
        mistakes=mistakes or {},
        kinds=KINDS,
        format_pairs=[(form.value, text) for form, text in FORMATS.items()],
        sorts=sorts,
    )
