"""Members: an organization's endpoint, keys, live check and failures; its inbox, and its patients' accounts.

A member's administrator sees and edits the own organization and learns nothing of others; the operator sees all and may
check them, and edits with `hie apply`. Every change is in the audit log, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from hie.audit.event import Event, Kind, Outcome
from hie.console import client_keys, people
from hie.console.endpoint_form import AUTH_TYPES, EndpointForm, read
from hie.console.protection import limiter
from hie.core.caller import Role
from hie.core.errors import BadRequest, Conflict, NotFound
from hie.gateway import capability
from hie.gateway.api.context import request_id
from hie.gateway.directory import Change, Client, Member, change_event
from hie.gateway.keys import signing_key
from hie.gateway.portal import Binding, Relation
from hie.gateway.services import current
from hie.mpi.identity import Identifier

MEND = {
    "timeout": "The server took longer than the exchange waits. See that a search by patient answers in under a "
    "second, and that the server is not overloaded.",
    "unreachable": "No connection could be made. Check that the server runs, that its host name resolves on the "
    "internet, that the firewall lets the exchange in, and that the certificate is valid.",
    "error": "The server answered with an error status. Look in its log for the request id at that time; after 401 or "
    "403, check the sign-in settings below.",
    "invalid": "The answer was not a FHIR R4 searchset Bundle, or held records of another patient. Check that the "
    "address is the FHIR base and that the server obeys the patient search parameter.",
    "truncated": "The answer broke off or was larger than the exchange reads. Answer in pages with next links, and "
    "check for proxies that cut long answers.",
    "open-circuit": "The exchange had stopped asking, after several failures in a row. It tries again by itself within "
    "a minute; mend the failure before this one.",
}
"""What a member's administrator does about each source-status."""

_NOT_FOUND = "There is no such organization, or it is not yours."
_ROLES = (Role.MEMBER_ADMIN, Role.OPERATOR)


def register(blueprint: Blueprint) -> None:
    """Add these routes."""
    blueprint.get("/members", endpoint="members")(show_members)
    blueprint.get("/members/<member_id>", endpoint="member")(show_member)
    blueprint.post("/members/<member_id>/endpoint", endpoint="member_endpoint")(save_endpoint)
    blueprint.post("/members/<member_id>/clients/<client_id>/keys", endpoint="member_keys")(save_keys)
    blueprint.post("/members/<member_id>/notices/<notice_id>", endpoint="member_notice")(mark_notice)
    invited = limiter.limit("30/minute")(invite)
    blueprint.post("/members/<member_id>/invitations", endpoint="member_invitation")(invited)
    blueprint.post("/members/<member_id>/bindings/<binding_id>/end", endpoint="member_binding_end")(end_binding)
    check = limiter.limit("10/minute")(check_now)
    blueprint.post("/members/<member_id>/check", endpoint="member_check")(check)


def show_members() -> ResponseReturnValue:
    user = people.require_role(*_ROLES)
    if user.role is Role.MEMBER_ADMIN:
        if user.member_id is None:
            raise NotFound("Your account names no organization. Ask the operator to set one.")
        return redirect(url_for("console.member", member_id=user.member_id), 303)
    return render_template("console/members.html", members=current().directory.members())


def show_member(member_id: str) -> ResponseReturnValue:
    return _page(_visible(member_id))


def save_endpoint(member_id: str) -> ResponseReturnValue:
    member = _editable(member_id)
    form = EndpointForm.of(request.form)
    endpoint, mistakes = read(form, member.endpoint, development=current().settings.development)
    if endpoint is None:
        return _page(member, form=form, mistakes=mistakes), 400
    try:
        current().directory.update_endpoint(member.id, endpoint, also=_audited("member", member.id, "endpoint"))
    except Conflict as taken:
        return _page(member, form=form, mistakes={"url": taken.message}), 409
    flash("The endpoint is saved and used from now on. Run the check to see that it answers.")
    return redirect(url_for("console.member", member_id=member.id), 303)


def save_keys(member_id: str, client_id: str) -> ResponseReturnValue:
    member = _editable(member_id)
    client = current().directory.client(client_id)
    if client is None or client.member_id != member.id:
        raise NotFound("There is no such client.")
    jwks, sentences = client_keys.read(request.form.get("jwks", ""))
    if jwks is None:
        # What was pasted is not shown again: it may be a private key.
        return _page(member, key_mistakes={client.id: sentences}), 400
    current().directory.set_client_keys(client.id, jwks, also=_audited("client", client.id, "jwks"))
    flash(f"The keys of {client.id} are replaced. Tokens that were issued before stay valid until they lapse.")
    return redirect(url_for("console.member", member_id=member.id) + "#keys", 303)


def check_now(member_id: str) -> ResponseReturnValue:
    member = _visible(member_id)
    settings = current().settings
    report = capability.check(member, development=settings.development, signing_key=lambda: signing_key(settings.home))
    return _page(member, report=report)


def mark_notice(member_id: str, notice_id: str) -> ResponseReturnValue:
    """Somebody at the member has read a notice."""
    member = _editable(member_id)
    current().notices.mark_seen(member.id, notice_id, people.the_user().email)
    return redirect(url_for("console.member", member_id=member.id) + "#inbox", 303)


def invite(member_id: str) -> ResponseReturnValue:
    """A code for one of the member's patients, shown once, to be handed over in person."""
    member = _editable(member_id)
    number = " ".join(request.form.get("number", "").split())[:255]
    relation = Relation.REPRESENTATIVE if request.form.get("relation") == "representative" else Relation.SELF
    last = request.form.get("until", "").strip() if relation is Relation.REPRESENTATIVE else ""
    until = _end_of(last)
    if last and until is None:
        return _page(member, invitation={"until": "Give the last day as YYYY-MM-DD, or leave it empty."}), 400
    identifier = Identifier(member.patient_id_system, number)
    try:
        code = current().portal.invite(
            member.id,
            identifier,
            relation,
            people.the_user().email,
            until=until,
            also=_noted(member, identifier, f"Patient invited ({relation.value})"),
        )
    except BadRequest as refused:
        return _page(member, invitation={"number": refused.message}), 400
    return _page(member, invitation={"code": code})


def end_binding(member_id: str, binding_id: str) -> ResponseReturnValue:
    """Take back that an account is a patient, or acts for one."""
    member = _editable(member_id)
    current().portal.end(binding_id, member.patient_id_system, also=noted_binding("Patient's account unbound"))
    flash("The account is not bound to the patient any more.")
    return redirect(url_for("console.member", member_id=member.id) + "#patients", 303)


def _noted(member: Member, identifier: Identifier, described: str) -> Callable[[sa.Connection], None]:
    record = current().identity.source_record(identifier)
    event = _note(record.person_id if record else None, described)

    def also(connection: sa.Connection) -> None:
        current().audit.append(connection, event)

    return also


def noted_binding(described: str) -> Callable[[sa.Connection, Binding], None]:
    """The `also` of a binding that is made or ended: its audit entry, in the same transaction."""

    def also(connection: sa.Connection, binding: Binding) -> None:
        event = _note(current().portal.person_of(binding), f"{described} ({binding.relation.value})")
        current().audit.append(connection, event)

    return also


def _note(person_id: str | None, described: str) -> Event:
    return Event(
        kind=Kind.DIRECTORY,
        outcome=Outcome.SUCCESS,
        action="U",
        caller=people.caller(),
        person_id=person_id,
        query="",
        request_id=request_id(),
        description=described,
    )


def _end_of(day: str) -> datetime | None:
    """The end of a day; None for none, and for what is no day."""
    try:
        return datetime.combine(date.fromisoformat(day), time.max, UTC)
    except ValueError:
        return None


def _visible(member_id: str) -> Member:
    """The member, if this user may see it; what is not open and what is not there are the same NotFound."""
    user = people.require_role(*_ROLES)
    member: Member | None = current().directory.member(member_id)
    if member is None or (user.role is Role.MEMBER_ADMIN and user.member_id != member.id):
        raise NotFound(_NOT_FOUND)
    return member


def _editable(member_id: str) -> Member:
    people.require_role(Role.MEMBER_ADMIN)
    return _visible(member_id)


def _audited(what: str, changed_id: str, field: str) -> Any:
    """The `also` of a directory change: its audit entry, in the same transaction."""
    event = change_event(Change("changed", what, changed_id, (field,)), people.caller(), request_id())

    def also(connection: sa.Connection, _changed: Member | Client) -> None:
        current().audit.append(connection, event)

    return also


def _page(
    member: Member,
    *,
    form: EndpointForm | None = None,
    mistakes: Mapping[str, str] | None = None,
    key_mistakes: Mapping[str, list[str]] | None = None,
    report: Any = None,
    invitation: Mapping[str, str] | None = None,
) -> str:
    services = current()
    own = people.the_user().role is Role.MEMBER_ADMIN
    clients = [(client, client_keys.shown(client.jwks)) for client in services.directory.clients(member.id)]
    return render_template(
        "console/member.html",
        member=member,
        may_edit=own,
        notices=services.notices.inbox(member.id) if own else [],
        bindings=services.portal.of_member(member.patient_id_system) if own else [],
        invitation=invitation or {},
        number=request.form.get("number", "") if invitation and "code" not in invitation else "",
        form=form or EndpointForm.showing(member.endpoint),
        mistakes=mistakes or {},
        auth_types=AUTH_TYPES,
        clients=clients,
        key_mistakes=key_mistakes or {},
        failures=services.audit.source_failures(member.id, limit=10),
        mend=MEND,
        report=report,
        now=services.clock(),
    )
