"""Emergency lookup: search, candidates, one person's chart with allergies first. For clinicians.

Everything about a patient comes through the one door (`hie.gateway.release`). Addresses hold opaque ids only: what was
searched for is posted, kept in the encrypted session under a random id, and looked up again when the page is reloaded.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from flask import Blueprint, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from hie.console import people, wording
from hie.console.chart import TYPES, chart_of
from hie.console.patient_search import Search, mistakes
from hie.core.caller import Role
from hie.core.ids import new_id
from hie.gateway.api.context import request_id
from hie.gateway.api.receipts import give
from hie.gateway.release import ChartAnswer, SourcesFailed
from hie.gateway.services import current
from hie.mpi.identity import Candidate, Person

CANDIDATES_SHOWN = 10
SHORTEST_REASON, LONGEST_REASON = 10, 200
_KEPT_SEARCHES = 3
_QUERY = "console emergency lookup"


@dataclass(frozen=True)
class Asked:
    """One organization that was asked: the numbers it knows the patient by, and how it did."""

    organization: str
    numbers: tuple[str, ...]
    status: str
    shown: int
    """Records on the page. Never what the organization sent: a count would tell what is withheld (law L2)."""
    seconds: float


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/emergency", endpoint="emergency")(show_search)
    blueprint.post("/emergency", endpoint="emergency_search")(search)
    blueprint.get("/emergency/results/<search_id>", endpoint="results")(results)
    blueprint.get("/emergency/people/<person_id>", endpoint="chart")(chart)
    blueprint.post("/emergency/people/<person_id>/break-glass", endpoint="break_glass")(break_glass)
    blueprint.post("/emergency/people/<person_id>/close-glass", endpoint="close_glass")(close_glass)


def show_search() -> ResponseReturnValue:
    people.require_role(Role.CLINICIAN)
    kept = _kept_search(request.args.get("search"))
    return render_template("console/emergency.html", search=kept or Search(), mistakes={})


def search() -> ResponseReturnValue:
    people.require_role(Role.CLINICIAN)
    wanted = Search.of(request.form)
    found = mistakes(wanted, current().clock().date())
    if found:
        return render_template("console/emergency.html", search=wanted, mistakes=found), 400
    search_id = new_id()[:10]
    kept = dict(list(session.get("searches", {}).items())[1 - _KEPT_SEARCHES :])
    session["searches"] = kept | {search_id: asdict(wanted)}
    return redirect(url_for("console.results", search_id=search_id), 303)


def results(search_id: str) -> ResponseReturnValue:
    people.require_role(Role.CLINICIAN)
    wanted = _kept_search(search_id)
    if wanted is None:
        return redirect(url_for("console.emergency"), 303)
    started = time.monotonic()
    candidates = current().release.lookup(
        people.caller(), wanted.patient(), limit=CANDIDATES_SHOWN, request_id=request_id(), years=wanted.years
    )
    return render_template(
        "console/results.html",
        search=wanted,
        search_id=search_id,
        rows=[(candidate, _known(candidate.person), *_traits(candidate)) for candidate in candidates],
        seconds=time.monotonic() - started,
        today=current().clock().date(),
    )


def chart(person_id: str) -> ResponseReturnValue:
    people.require_role(Role.CLINICIAN)
    back = request.args.get("search") if _kept_search(request.args.get("search")) else None
    started = time.monotonic()
    try:
        answer = current().release.chart(
            people.caller(person_id), person_id, TYPES, query=_QUERY, request_id=request_id()
        )
    except SourcesFailed as failed:
        return _sources_failed(failed, person_id, back)
    give(answer.receipts)
    return _chart_page(answer, person_id, back, time.monotonic() - started)


def break_glass(person_id: str) -> ResponseReturnValue:
    people.require_role(Role.CLINICIAN)
    back = request.args.get("search")
    reason = " ".join(request.form.get("reason", "").split())[:LONGEST_REASON]
    if len(reason) < SHORTEST_REASON:
        return redirect(url_for("console.chart", person_id=person_id, search=back, reason="short") + "#glass", 303)
    people.break_glass(person_id, reason)
    return redirect(url_for("console.chart", person_id=person_id, search=back), 303)


def close_glass(person_id: str) -> ResponseReturnValue:
    people.require_role(Role.CLINICIAN)
    people.close_glass(person_id)
    return redirect(url_for("console.chart", person_id=person_id, search=request.args.get("search")), 303)


def _chart_page(answer: ChartAnswer, person_id: str, back: str | None, seconds: float) -> str:
    now = current().clock()
    answered = [s.member_name for s in answer.sources if s.status == "ok"]
    fell_short = [s for s in answer.sources if s.status != "ok"]
    return render_template(
        "console/chart.html",
        answer=answer,
        chart=chart_of(answer),
        asked=_asked(answer),
        answered=answered,
        fell_short=fell_short,
        none_reported=_none_reported(answer, answered, [s.member_name for s in fell_short]),
        grant=people.grant_for(person_id),
        person_id=person_id,
        back=back,
        reason_too_short=request.args.get("reason") == "short",
        seconds=seconds,
        now=now,
        today=now.date(),
        deadline=current().settings.query_deadline,
    )


def _none_reported(answer: ChartAnswer, answered: Sequence[str], missing: Sequence[str]) -> tuple[str, ...]:
    """What may be said where nothing is listed (law L3): `… were reported` follows a section's name."""
    if not answer.sources and answer.restricted:
        return ("No organization could be asked: this patient's privacy choices keep all records back.",)
    if not answer.sources:
        return ("No organization was asked: none that takes part holds a record that may be released to you.",)
    sentences = [f"{{}} reported by {wording.listing(list(answered))}."] if answered else []
    if missing:
        sentences.append(f"{wording.listing(list(missing))} did not answer in full, so there may be more.")
    if answer.restricted:
        sentences.append("Records may also be withheld under this patient's privacy choices.")
    return tuple(sentences)


def _sources_failed(failed: SourcesFailed, person_id: str, back: str | None) -> ResponseReturnValue:
    page = render_template(
        "console/sources_failed.html",
        sentence=failed.message,
        organizations=[str(i["diagnostics"]) for i in failed.issues if i["code"] != "suppressed"],
        notices=[str(i["diagnostics"]) for i in failed.issues if i["code"] == "suppressed"],
        person_id=person_id,
        back=back,
        now=current().clock(),
        request_id=request_id(),
    )
    return page, failed.status


def _kept_search(search_id: str | None) -> Search | None:
    kept = session.get("searches", {}).get(search_id) if search_id else None
    return Search(**kept) if kept else None


def _known(person: Person) -> list[str]:
    """Names of the organizations that hold a record of the person."""
    names = {member.id: member.name for member in current().directory.members()}
    return sorted({names.get(r.member_id, r.member_id) for r in person.records if r.active})


def _asked(answer: ChartAnswer) -> list[Asked]:
    """The organizations that were asked, by name."""
    shown = Counter(entry.member_id for entry in answer.entries)
    asked = [
        Asked(
            organization=source.member_name,
            numbers=tuple(r.identifier.value for r in answer.person.records if r.member_id == source.member_id),
            status=source.status,
            shown=shown[source.member_id],
            seconds=source.elapsed_ms / 1000,
        )
        for source in answer.sources
    ]
    return sorted(asked, key=lambda one: one.organization)


def _traits(candidate: Candidate) -> tuple[list[str], list[str]]:
    """What agrees and what differs, in words, weightiest first."""
    ordered = sorted(candidate.agreements, key=lambda a: -abs(a.weight))
    agree = [wording.agreement(a.trait, a.level) for a in ordered if a.level not in wording.DIFFERS]
    differ = [wording.trait(a.trait) for a in ordered if a.level in wording.DIFFERS]
    return agree, differ
