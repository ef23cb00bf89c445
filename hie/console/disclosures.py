"""Disclosures for the privacy officer: the log with filters and charts, one entry in full, finding a patient."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from hie.audit.access import read
from hie.audit.iti81 import page_token
from hie.audit.query import AuditQuery, Cursor, Span
from hie.console import charts, people
from hie.console.log_reading import names_of, record
from hie.console.patient_search import Search, mistakes
from hie.core.caller import EXCHANGE, Role
from hie.core.errors import NotFound
from hie.core.purposes import DISPLAY
from hie.gateway.api.context import request_id
from hie.gateway.services import current
from hie.mpi.identity import Identifier

KINDS = {
    "disclosure": "Disclosures",
    "break-glass": "Break-glass disclosures",
    "denial": "Refusals",
    "failure": "No answer from any source",
    "search": "Patient searches",
    "feed": "Registrations",
    "consent": "Privacy choices",
    "link": "Link decisions",
    "sign-in": "Sign-ins",
    "directory": "Directory changes",
    "review": "Reviews",
    "log-read": "Looks at the log",
    "retention": "Holds and archives",
    "all": "Everything",
}
OUTCOMES = {"0": "Success", "4": "Refused or incomplete", "8": "Failed"}
_SERIES = ("disclosure", "break-glass", "denial", "failure")
_DEFAULT_DAYS = 30
_PAGE = 50
_MOST_FOUND = 20
_READERS = (Role.PRIVACY_OFFICER,)


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/privacy/disclosures", endpoint="disclosures")(show)
    blueprint.get("/privacy/entries/<int:index>", endpoint="entry")(show_entry)
    blueprint.get("/privacy/find", endpoint="find_patient")(show_find)
    blueprint.post("/privacy/find", endpoint="find_patient_post")(find)


@dataclass(frozen=True)
class Filters:
    """What is asked for, as the form has it."""

    since: str
    until: str
    organization: str = ""
    user: str = ""
    patient: str = ""
    kind: str = "disclosure"
    purpose: str = ""
    outcome: str = ""

    @classmethod
    def of(cls, given: Mapping[str, str], today: date) -> Filters:
        """The filters of an address; without dates, the last thirty days."""
        named = {field.name: given[field.name].strip()[:128] for field in fields(cls) if given.get(field.name)}
        made = cls(
            **{"since": (today - timedelta(days=_DEFAULT_DAYS)).isoformat(), "until": today.isoformat(), **named}
        )
        return made if made.kind in KINDS else replace(made, kind="disclosure")

    @property
    def days(self) -> tuple[date, date] | None:
        """First and last day; None where they make no sense."""
        try:
            first, last = date.fromisoformat(self.since), date.fromisoformat(self.until)
        except ValueError:
            return None
        return (first, last) if first <= last and last.year < 9999 else None

    def query(self, days: tuple[date, date]) -> AuditQuery:
        return AuditQuery(
            dates=(Span(_start(days[0]), _start(days[1] + timedelta(days=1))),),
            persons=(current().identity.person_ids(self.patient) or (self.patient,),) if self.patient else (),
            agents=tuple((agent,) for agent in self._agents()),
            kinds=() if self.kind == "all" else (("disclosure" if self.kind == "break-glass" else self.kind,),),
            purposes=tuple((code,) for code in self._purposes()),
            outcomes=((self.outcome,),) if self.outcome else (),
            limit=_PAGE,
        )

    def _agents(self) -> list[str]:
        organization = [f"Organization/{self.organization}"] if self.organization else []
        return [*organization, *([self.user] if self.user else [])]

    def _purposes(self) -> list[str]:
        return [*(["BTG"] if self.kind == "break-glass" else []), *([self.purpose] if self.purpose else [])]

    def address(self, **changes: str) -> str:
        """The page with these filters."""
        values = {name: value for name, value in asdict(self).items() if value}
        return url_for("console.disclosures", **{**values, **changes})


def show() -> ResponseReturnValue:
    people.require_role(*_READERS)
    filters = Filters.of(request.args, current().clock().date())
    days = filters.days
    if days is None:
        return _page(filters, mistake="Give a first and a last day, the first not after the last."), 400
    query = replace(filters.query(days), cursor=_cursor(request.args.get("page", "")))
    page = current().audit.search(query)
    counted = current().statistics.of(replace(query, cursor=None))
    accesses = [read(entry) for entry in page.entries]
    person_id = filters.patient or None
    record("disclosures", f"{len(accesses)} of {page.total} entries shown", person_id)
    return _page(
        filters,
        accesses=accesses,
        total=page.total,
        names=names_of([a.person_id for a in accesses] + [person_id]),
        chart=charts.over_time(counted.per_day, *days, _SERIES),
        by_organization=[(organization_name(i), i, number) for i, number in counted.organizations],
        by_purpose=[(DISPLAY.get(code, code), code, number) for code, number in counted.purposes],
        next=filters.address(page=page_token(page.next)) if page.next else None,
    )


def _page(filters: Filters, **more: Any) -> str:
    members = current().directory.members()
    return render_template(
        "console/privacy/disclosures.html",
        filters=filters,
        kinds=KINDS,
        outcomes=OUTCOMES,
        purposes=DISPLAY,
        organizations=[*((m.id, m.name) for m in members), (EXCHANGE, "The exchange")],
        share=charts.share,
        **more,
    )


def show_entry(index: int) -> ResponseReturnValue:
    people.require_role(*_READERS)
    entry = current().audit.entry(index)
    if entry is None:
        raise NotFound("There is no such entry in the log.")
    access = read(entry)
    record("entry", "1 entry shown", access.person_id, (f"AuditEvent/{entry.entry_id}",))
    return render_template(
        "console/privacy/entry.html",
        access=access,
        entry=entry,
        names=names_of([access.person_id]),
        organization=organization_name,
        decisions=_decisions(entry.resource),
        body=json.dumps(entry.resource, indent=2, ensure_ascii=False),
        leaf=entry.leaf.decode(),
        outcomes=OUTCOMES,
    )


def _decisions(resource: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The decision trace as the entry has it: a title and the details of each decision."""
    shown = []
    for entity in resource.get("entity", []):
        name = entity.get("name") or entity.get("what", {}).get("reference", "")
        if entity.get("role", {}).get("code") == "13" and (name.startswith("Consent/") or entity.get("name")):
            shown.append((name, [(d["type"], d["valueString"]) for d in entity.get("detail", [])]))
    return shown


def show_find() -> ResponseReturnValue:
    people.require_role(*_READERS)
    return _find_page(Search())


def find() -> ResponseReturnValue:
    """By the number that an organization gave, or by name and birth date. Every person shown is in the log."""
    people.require_role(*_READERS)
    number, member = request.form.get("number", "").strip(), current().directory.member(request.form.get("member", ""))
    if number and member:
        held = current().identity.source_record(Identifier(member.patient_id_system, number))
        if held is None:
            return _find_page(Search(), {"number": f"{member.name} has given no patient this number."}), 404
        return redirect(_about(held.person_id), 303)
    search = Search.of(request.form)
    wrong = (
        {"number": "Choose the organization that gave the number."}
        if number
        else mistakes(search, current().clock().date())
    )
    if wrong:
        return _find_page(search, wrong), 400
    found = current().release.lookup(people.caller(), search.patient(), _MOST_FOUND, request_id=request_id())
    return _find_page(search, found=found)


def _about(person_id: str) -> str:
    """The page about a person that the search was made for."""
    if request.values.get("to") == "consents":
        return url_for("console.person_consents", person_id=person_id)
    return url_for("console.disclosures", patient=person_id, kind="all")


def _find_page(search: Search, wrong: Mapping[str, str] | None = None, **more: Any) -> str:
    return render_template(
        "console/privacy/find.html",
        search=search,
        mistakes=wrong or {},
        members=[(m.id, m.name) for m in current().directory.members()],
        number=request.form.get("number", ""),
        member=request.form.get("member", ""),
        to="consents" if request.values.get("to") == "consents" else "",
        about=_about,
        **more,
    )


def organization_name(organization: str | None) -> str:
    """A member's name, or its id where the directory has it no more."""
    if organization == EXCHANGE:
        return "The exchange"
    member = current().directory.member(organization) if organization else None
    return member.name if member else organization or "not identified"


def _start(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _cursor(text: str) -> Cursor | None:
    through, _, before = text.partition(".")
    return Cursor(int(through), int(before)) if through.isdecimal() and before.isdecimal() and len(text) < 32 else None
