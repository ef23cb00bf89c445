"""Who may see what, for the patient: the choice in force, what another would hide, and making it."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from hie.consent.choices import CATEGORIES, EMERGENCIES_ONLY, SHARE_ALL, Choice, choice_of
from hie.consent.plain import CLASSES
from hie.consent.policy import Default, default_of
from hie.console import choices, people, wording
from hie.console.members import noted_binding
from hie.console.protection import limiter
from hie.core.caller import Role
from hie.core.errors import BadRequest, NotFound
from hie.core.fhir import CLINICAL_TYPES, Resource
from hie.gateway.api.context import request_id
from hie.gateway.portal import Relation
from hie.gateway.preview import Preview, may_ask
from hie.gateway.services import current
from hie.mpi.identity import Person

_RULES = {
    Default.NORMAL: "organizations may see these records for treatment, payment and their own operations",
    Default.TREATMENT: "organizations may see these records for treatment alone",
    Default.BREAK_GLASS_ONLY: "nobody sees these records but a clinician in an emergency, with a reason",
    Default.DENY: "nobody sees these records unless the patient says so, but for a clinician in an emergency",
}
"""What holds where the patient has made no choice, as the end of a sentence."""


@dataclass(frozen=True)
class Mine:
    """A person that the user is, or acts for."""

    person: Person
    relation: Relation

    @property
    def name(self) -> str:
        return wording.name(self.person.resource)

    @property
    def performer(self) -> Resource:
        """Who made the choice, as the consent names it."""
        if self.relation is Relation.SELF:
            return {"reference": f"Patient/{self.person.id}"}
        return {"display": people.the_user().name}


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/my-record/choices", endpoint="my_choices")(show)
    limited = limiter.limit("20/minute")
    blueprint.post("/my-record/choices", endpoint="make_choice")(limited(choose))
    blueprint.post("/my-record/codes", endpoint="redeem_code")(limited(redeem))


def show() -> ResponseReturnValue:
    people.require_role(Role.PATIENT)
    everybody = _everybody()
    mine = _chosen(everybody, request.args.get("person"))
    return _page(everybody, mine)


def choose() -> ResponseReturnValue:
    """Show what a choice hides, or make it."""
    people.require_role(Role.PATIENT)
    everybody = _everybody()
    mine = _chosen(everybody, request.form.get("person"))
    if mine is None:
        raise NotFound("Your account is not bound to this patient.")
    choice, mistakes = choices.form_choice(request.form)
    if mistakes:
        return _page(everybody, mine, choice=choice, mistakes=mistakes), 400
    if request.form.get("act") != "save":
        return _page(everybody, mine, choice=choice, preview=_preview(mine, choice))
    choices.file(choice, mine.person.id, mine.performer)
    flash("Your choice is saved. It counts from now on, and you can change it at any time.")
    return redirect(url_for("console.my_choices", person=mine.person.id), 303)


def redeem() -> ResponseReturnValue:
    """One more code: another organization's, or that of somebody the user acts for."""
    user = people.require_role(Role.PATIENT)
    try:
        current().portal.redeem(
            request.form.get("code", ""), user.email, also=noted_binding("Patient's account bound by a code")
        )
    except BadRequest as refused:
        return _page(_everybody(), None, mistakes={"code": refused.message}), 400
    flash("The code is accepted.")
    return redirect(url_for("console.my_choices"), 303)


def _everybody() -> list[Mine]:
    """Everybody the user is or acts for, each once, herself first."""
    found: dict[str, Mine] = {}
    for binding in current().portal.bindings(people.the_user().email):
        person_id = current().portal.person_of(binding)
        person = current().identity.person(person_id) if person_id else None
        if person is not None and (person.id not in found or binding.relation is Relation.SELF):
            found[person.id] = Mine(person, binding.relation)
    return sorted(found.values(), key=lambda mine: (mine.relation is not Relation.SELF, mine.name))


def _chosen(everybody: list[Mine], person_id: str | None) -> Mine | None:
    if person_id:
        return next((mine for mine in everybody if mine.person.id == person_id), None)
    return everybody[0] if everybody else None


def _preview(mine: Mine, choice: Choice) -> Preview:
    caller = people.caller()
    entitled = may_ask(caller, {mine.person.id}, current().identity.person_ids(mine.person.id))
    if not entitled:
        raise NotFound("Your account is not bound to this patient.")
    return current().release.preview(
        caller,
        mine.person.id,
        choices.anybody(),
        CLINICAL_TYPES,
        change=choices.with_choice(choice, mine.person.id),
        query="console choice preview",
        request_id=request_id(),
    )


def _page(
    everybody: list[Mine],
    mine: Mine | None,
    *,
    choice: Choice | None = None,
    mistakes: dict[str, str] | None = None,
    preview: Preview | None = None,
) -> str:
    shown = choices.shown_consents(mine.person.id) if mine else []
    held = choices.own_choice(mine.person.id) if mine else None
    in_force = choice_of(held.resource) if held else None
    if mine is not None:
        choices.record_shown(mine.person.id, shown)
    return render_template(
        "console/my_choices.html",
        everybody=everybody,
        mine=mine,
        consents=shown,
        in_force=in_force,
        choice=choice or in_force or Choice(SHARE_ALL),
        mistakes=mistakes or {},
        preview=preview,
        hidden=choices.hidden(preview) if preview else None,
        emergencies_only=EMERGENCIES_ONLY,
        kinds=choices.KINDS,
        categories=CATEGORIES,
        rules=choices.RULES,
        kinds_of_record=CLASSES,
        members=[(m.id, m.name) for m in current().directory.members()],
        rule=_RULES[default_of(current().settings.consent_default.value)],
        other_rules=_other_rules(),
    )


def _other_rules() -> list[tuple[str, str]]:
    """Names of the organizations whose own rule is another than the exchange's, and that rule in words."""
    exchange = default_of(current().settings.consent_default.value)
    own = [(m.name, default_of(m.consent_default)) for m in current().directory.members() if m.consent_default]
    return [(name, _RULES[default]) for name, default in own if default is not exchange]
