"""What the pages about consents share: the choice form, consents in words, previews in words, filing with its audit.

A choice is one of four (`hie.consent.choices`); a consent that says anything else is shown in plain words and may be
revoked here, but is edited where it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from werkzeug.datastructures import MultiDict

from hie.audit.event import Event
from hie.consent.choices import CATEGORIES, EMERGENCIES_ONLY, SHARE_ALL, SHARE_SOME, Choice, choice_of, consent_of
from hie.consent.plain import Summary, summary
from hie.consent.service import StoredConsent
from hie.console import people
from hie.core.caller import EXCHANGE, Role
from hie.core.fhir import Resource
from hie.gateway.api.context import request_id
from hie.gateway.preview import Change, Preview, Somebody, beside
from hie.gateway.services import current
from hie.gateway.trace import consent_event

KINDS: Mapping[str, tuple[str, str]] = {
    SHARE_ALL: ("Share everything", "Every organization that treats you may see your records from every other."),
    EMERGENCIES_ONLY: (
        "Emergencies only",
        "Nothing is shared. When you need emergency care, a clinician may open your records with a reason.",
    ),
    SHARE_SOME: (
        "Share, but keep some back",
        "Choose kinds of record that stay private, or organizations that get nothing.",
    ),
}
RULES: Mapping[str, str] = {
    "consent": "a consent says so",
    "default": "no consent says anything, so the default holds",
    "part2": "substance use treatment (42 CFR Part 2) needs a consent that names it",
    "psychotherapy-notes": "psychotherapy notes need a consent that names them",
    "patient": "it is the patient who asks, or a representative",
    "representative": "a minor was treated for it alone",
    "legal-basis": "a law requires it",
    "break-glass": "the glass was broken",
    "role": "the role may not ask for this purpose",
    "payer": "a payer gets no such records",
    "self-pay": "the patient paid for it and asked that the payer is not told (45 CFR 164.522)",
    "unsettled": "an unlink is not settled yet, so the stricter of two people's consents holds",
    "consent-store": "the consents could not be read",
    "purpose": "no purpose was given",
}
_ANYBODY = "anybody"


@dataclass(frozen=True)
class Shown:
    """One consent of a person, as a page shows it."""

    stored: StoredConsent
    words: Summary
    choice: Choice | None
    filed_by: str


def form_choice(form: MultiDict[str, str]) -> tuple[Choice, dict[str, str]]:
    """The choice that a form holds, and field -> sentence for what is wrong with it."""
    kind = form.get("kind", "")
    some = kind == SHARE_SOME
    choice = Choice(
        kind,
        frozenset(c for c in form.getlist("category") if c in CATEGORIES) if some else frozenset(),
        frozenset(m for m in form.getlist("organization") if current().directory.member(m)) if some else frozenset(),
        form.get("part2") == "yes" and kind != EMERGENCIES_ONLY,
    )
    if choice.valid:
        return choice, {}
    if some:
        return choice, {"some": "Choose at least one kind of record or one organization to keep back."}
    return choice, {"kind": "Choose one of the three."}


def shown_consents(person_id: str) -> list[Shown]:
    """A person's consents, those in force first, the newest first."""
    now = current().clock()
    held = current().consents.search(current().identity.person_ids(person_id), limit=200)
    found = [
        Shown(s, summary(s.resource, now, name_of), choice_of(s.resource), organization_name(s.author_organization))
        for s in held
    ]
    return sorted(found, key=lambda one: (not one.words.in_force, -one.stored.updated.timestamp()))


def name_of(reference: str) -> str | None:
    """What `Organization/<member id>` is called; None for anything else."""
    kind, _, id = reference.partition("/")
    return organization_name(id) if kind == "Organization" else None


def organization_name(id: str) -> str:
    """A member's name, or its id where the directory has it no more."""
    if id == EXCHANGE:
        return "the exchange"
    member = current().directory.member(id)
    return member.name if member else id


def own_choice(person_id: str) -> StoredConsent | None:
    """The newest consent in force that says a choice for all organizations, made at the exchange."""
    for one in shown_consents(person_id):
        everywhere = not one.stored.resource.get("organization")
        if one.choice and one.words.in_force and everywhere and one.stored.author_organization == EXCHANGE:
            return one.stored
    return None


def file(choice: Choice, person_id: str, performer: Resource) -> StoredConsent:
    """File a choice, as the next version of the one in force where there is one."""
    asking = people.caller()
    consent = consent_of(choice, person_id, current().clock()) | {"performer": [performer]}
    held = own_choice(person_id)
    if held is None:
        return current().consents.create(consent, person_id, asking, also=_recorded("C", "filed"))
    return current().consents.update(held.id, consent, person_id, asking, also=_recorded("U", "changed"))


def revoke(stored: StoredConsent) -> StoredConsent:
    """End a consent: its next version is inactive."""
    resource = {key: value for key, value in stored.resource.items() if key != "id"} | {"status": "inactive"}
    return current().consents.update(
        stored.id, resource, stored.person_id, people.caller(), also=_recorded("U", "revoked")
    )


def record_shown(person_id: str, shown: list[Shown]) -> None:
    """Reading consents is in the log too, before they are shown."""
    record_consents(person_id, tuple(one.stored for one in shown))


def record_consents(person_id: str, consents: tuple[StoredConsent, ...]) -> None:
    """Consents of a person that a page shows, in the log before it shows them."""
    current().audit.record(_event("E", "shown", person_id, consents))


def with_choice(choice: Choice, person_id: str) -> Change:
    """The policy as it would be with this choice."""
    return beside(consent_of(choice, person_id, current().clock()), person_id)


def anybody(*purposes: str) -> Somebody:
    """Some organization that treats the patient, and that nobody has named."""
    return Somebody(_ANYBODY, Role.MEMBER, frozenset(purposes or ("TREAT",)))


def hidden(preview: Preview) -> tuple[int, int]:
    """How many records a preview keeps back, of how many that it could look at."""
    kept = sum(source.withheld for source in preview.sources)
    return kept, kept + sum(source.released for source in preview.sources)


def _recorded(action: str, described: str) -> Callable[[sa.Connection, StoredConsent], None]:
    def also(connection: sa.Connection, stored: StoredConsent) -> None:
        current().audit.append(connection, _event(action, described, stored.person_id, (stored,)))

    return also


def _event(action: str, described: str, person_id: str, consents: tuple[StoredConsent, ...]) -> Event:
    asking = people.caller()
    return consent_event(
        asking, action, described, person_id, consents, query="console consents", request_id=request_id()
    )
