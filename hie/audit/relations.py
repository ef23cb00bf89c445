"""What explains an access: how the person who was looked at is known at the organization that looked (pure).

Explain first, flag second (AUDIT.md): most accesses follow from an encounter, an admission, a referral, a panel or a
registration at the caller's organization, and need nobody's attention. A source record that is merely there explains
that the organization knows the person, not why somebody looked today: it is weak, and behaviour is judged all the same.

The log does not know people. What it may know of them comes through `Community`, which `hie.gateway` implements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from hie.audit.columns import clip

_SAME_SYSTEM = (("http://hl7.org/fhir/sid/us-npi", "urn:oid:2.16.840.1.113883.4.6"),)
"""Systems of one kind of number with two names: the National Provider Identifier."""


class Relation(StrEnum):
    """Why an organization may look at a person's records, the strongest first."""

    ENCOUNTER = "encounter"
    ADMISSION = "admission"
    REFERRAL = "referral"
    PANEL = "panel"
    REGISTRATION = "registration"
    SOURCE_RECORD = "source record"


WEAK = frozenset({Relation.SOURCE_RECORD})


@dataclass(frozen=True)
class Contact:
    """One relation of a person to an organization, and to one of its users where that is known.

    An open end lasts; a registration starts and ends at the instant of the feed. `user_id` is a practitioner as the
    organization named her: an identifier as `system|value`, or a value alone.
    """

    person_id: str
    organization: str
    relation: Relation
    starts: datetime | None = None
    ends: datetime | None = None
    user_id: str | None = None


@dataclass(frozen=True)
class PersonFacts:
    """What is compared of somebody who was looked at; names and addresses in one spelling."""

    family_names: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    vip: bool = False
    employers: frozenset[str] = frozenset()
    """Organizations that this person works for."""


@dataclass(frozen=True)
class UserFacts:
    """What is compared of a user. `person_id` is the user as a patient, where that is known."""

    family_name: str = ""
    addresses: frozenset[str] = frozenset()
    person_id: str | None = None


class Community(Protocol):
    """What the exchange knows of people, as far as judging accesses needs it."""

    def contacts(self, pairs: Collection[tuple[str, str]]) -> Sequence[Contact]:
        """Relations of (person id, organization)."""
        ...

    def people(self, person_ids: Collection[str]) -> Mapping[str, PersonFacts]: ...

    def users(self, actors: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], UserFacts]:
        """Of (organization, user id), those that are known."""
        ...

    def family_name(self, name: str) -> str:
        """The family name of a name as a caller wrote it, in the spelling of the facts; empty where there is none."""
        ...

    def name_share(self, family_name: str) -> float:
        """Share of all people who bear it: a common name says little."""
        ...


@dataclass(frozen=True)
class Explanation:
    """Why an access needs no attention; `personal` where the relation names the very user."""

    relation: Relation
    personal: bool = False

    @property
    def strong(self) -> bool:
        return self.relation not in WEAK


def explain(
    at: datetime, user_id: str, contacts: Sequence[Contact], *, contact_days: int, registration_days: int
) -> Explanation | None:
    """The best explanation of an access at this instant, given the person's contacts with the caller's organization.

    A contact explains from a day before it begins (who is expected is looked up) to `contact_days` after its end; a
    registration for `registration_days` before and after, since in an emergency treatment comes first.
    """
    found = [c for c in contacts if _holds(c, at, contact_days, registration_days)]
    if not found:
        return None
    best = min(found, key=lambda c: (not is_user(c.user_id, user_id), list(Relation).index(c.relation)))
    return Explanation(best.relation, is_user(best.user_id, user_id))


def is_user(named: str | None, user_id: str) -> bool:
    """Whether a practitioner's identifier is that of a user as the log spells her.

    A console user is an e-mail there; a member's user what its token says, by custom `system#value` (hl7-b2b), but a
    `system|value` or the value alone as well. Where both have a system they must be the same. Letters' case is none.
    """
    if named is None:
        return False
    system, bar, value = named.partition("|")
    spelt = {named}
    if bar:
        systems = next((same for same in _SAME_SYSTEM if system in same), (system,))
        spelt |= {value, *(f"{one}{mark}{value}" for one in systems for mark in "#|")}
    return user_id.casefold() in {clip(text).casefold() for text in spelt}


def _holds(contact: Contact, at: datetime, contact_days: int, registration_days: int) -> bool:
    if contact.relation is Relation.SOURCE_RECORD:
        return contact.starts is None or at >= contact.starts
    before, after = timedelta(days=1), timedelta(days=contact_days)
    if contact.relation is Relation.REGISTRATION:
        before = after = timedelta(days=registration_days)
    begun = contact.starts is None or at >= contact.starts - before
    return begun and (contact.ends is None or at <= contact.ends + after)
