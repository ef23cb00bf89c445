"""A person's consents for the privacy officer: read in plain words, previewed, filed and revoked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from hie.consent.choices import CATEGORIES, SHARE_ALL, Choice
from hie.consent.plain import CLASSES
from hie.console import choices, people, wording
from hie.core.caller import Role
from hie.core.errors import NotFound
from hie.core.fhir import CLINICAL_TYPES
from hie.core.purposes import DISPLAY
from hie.gateway.api.context import request_id
from hie.gateway.preview import Preview, Somebody, somebody
from hie.gateway.replay import Replay
from hie.gateway.services import current
from hie.mpi.identity import Person

_MOST_ITEMS = 100
PURPOSES = ("TREAT", "ETREAT", "HPAYMT", "HOPERAT", "PUBHLTH", "BTG")


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/privacy/consents", endpoint="consents")(find)
    blueprint.get("/privacy/consents/without-effect", endpoint="consents_without_effect")(without_effect)
    blueprint.get("/privacy/consents/<person_id>", endpoint="person_consents")(show)
    blueprint.post("/privacy/consents/<person_id>/preview", endpoint="consent_preview")(preview)
    blueprint.post("/privacy/consents/<person_id>", endpoint="file_consent")(file)
    blueprint.post("/privacy/consents/<person_id>/<consent_id>/revoke", endpoint="revoke_consent")(revoke)


def find() -> ResponseReturnValue:
    people.require_role(Role.PRIVACY_OFFICER)
    return redirect(url_for("console.find_patient", to="consents"), 303)


def without_effect() -> ResponseReturnValue:
    """The work items: consents that somebody filed and that decide nothing."""
    people.require_role(Role.PRIVACY_OFFICER)
    held = current().consents.without_effect(_MOST_ITEMS)
    found = [(stored, current().identity.person(stored.person_id)) for stored in held]
    for stored, person in found:
        if person is not None:
            choices.record_consents(person.id, (stored,))
    return render_template(
        "console/privacy/without_effect.html",
        items=[
            (stored, wording.name(person.resource) if person else "Unnamed patient", person, stored.warnings)
            for stored, person in found
        ],
        filed_by=choices.organization_name,
    )


def show(person_id: str) -> ResponseReturnValue:
    return _page(_person(person_id))


def preview(person_id: str) -> ResponseReturnValue:
    """What a caller would be given, and why: numbers and reasons, no contents."""
    person = _person(person_id)
    supposed = _supposed()
    if supposed is None:
        return _page(person, mistakes={"organization": "Choose who asks, and what for."}), 400
    found = current().release.preview(
        people.caller(),
        person.id,
        supposed,
        CLINICAL_TYPES,
        query="console consent preview",
        request_id=request_id(),
    )
    return _page(person, preview=found, asked=request.form)


def file(person_id: str) -> ResponseReturnValue:
    person = _person(person_id)
    choice, mistakes = choices.form_choice(request.form)
    if mistakes:
        return _page(person, choice=choice, mistakes=mistakes), 400
    if request.form.get("act") == "replay":
        return _page(person, choice=choice, replay=_replayed(person, choice))
    stored = choices.file(choice, person.id, {"reference": f"Patient/{person.id}"})
    flash(f"Filed as version {stored.version}. It counts from now on.")
    return redirect(url_for("console.person_consents", person_id=person.id), 303)


def revoke(person_id: str, consent_id: str) -> ResponseReturnValue:
    person = _person(person_id)
    stored = current().consents.read(consent_id)
    if stored is None or stored.person_id not in current().identity.person_ids(person.id):
        raise NotFound("There is no such consent.")
    choices.revoke(stored)
    flash("Revoked. It does not count any more; every version of it is kept.")
    return redirect(url_for("console.person_consents", person_id=person.id), 303)


def _replayed(person: Person, choice: Choice) -> Replay:
    """What the last year's disclosures would be under a choice."""
    return current().release.replay(
        people.caller(),
        person.id,
        choices.with_choice(choice, person.id),
        current().clock() - timedelta(days=365),
        query="console consent what-if",
        request_id=request_id(),
    )


def _person(person_id: str) -> Person:
    people.require_role(Role.PRIVACY_OFFICER)
    person = current().identity.person(person_id)
    if person is None:
        raise NotFound("The exchange knows no such person.")
    return person


def _supposed() -> Somebody | None:
    organization, purpose = request.form.get("organization", ""), request.form.get("purpose", "")
    if current().directory.member(organization) is None or purpose not in PURPOSES:
        return None
    broken = purpose == "BTG"
    return somebody(
        current().directory,
        organization,
        ["TREAT" if broken else purpose],
        break_glass=broken,
    )


def _page(
    person: Person,
    *,
    choice: Choice | None = None,
    mistakes: dict[str, str] | None = None,
    preview: Preview | None = None,
    asked: Any = None,
    replay: Replay | None = None,
) -> str:
    shown = choices.shown_consents(person.id)
    choices.record_shown(person.id, shown)
    return render_template(
        "console/privacy/consents.html",
        person=person,
        name=wording.name(person.resource),
        consents=shown,
        choice=choice or Choice(SHARE_ALL),
        mistakes=mistakes or {},
        preview=preview,
        asked=asked or {},
        replay=replay,
        kinds=choices.KINDS,
        categories=CATEGORIES,
        rules=choices.RULES,
        kinds_of_record=CLASSES,
        members=[(m.id, m.name) for m in current().directory.members()],
        purposes=[(code, DISPLAY.get(code, code).capitalize()) for code in PURPOSES],
        now=current().clock(),
    )
