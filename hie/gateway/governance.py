"""Who governs whom: a caller in consent's terms, the policy of a person, and whom a caller may be told of.

42 CFR Part 2 (CONSENT.md section 5 point 4): a Part 2 member whose data is withheld is not named anywhere. So for a
caller to whom nothing of it could be released, a person has no record there: no identifier, no name or address that
only that record gives, no candidate found through it; and whoever is known to Part 2 members alone is not known.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import sqlalchemy as sa

from hie.consent.policy import PersonPolicy, Request, could_release
from hie.consent.service import ConsentService, Subject
from hie.core.caller import EXCHANGE, Caller, Role
from hie.core.clock import Clock, instant
from hie.core.errors import ServiceUnavailable
from hie.gateway.directory import Directory
from hie.gateway.portal import Portal
from hie.mpi.golden import golden
from hie.mpi.identity import IdentityService, Person

log = logging.getLogger("hie")

_OF_THE_EXCHANGE = frozenset({Role.DATA_STEWARD, Role.PRIVACY_OFFICER, Role.OPERATOR})
"""Roles that, at the exchange itself, work with every member's records on the members' behalf."""


class Governance:
    """Consent's questions, asked with what the gateway knows."""

    def __init__(
        self,
        *,
        directory: Directory,
        identity: IdentityService,
        consents: ConsentService,
        portal: Portal,
        clock: Clock,
    ) -> None:
        self._portal = portal
        self._directory = directory
        self._identity = identity
        self._consents = consents
        self._clock = clock

    def request(self, caller: Caller) -> Request:
        """The caller as consents name callers."""
        actors = {f"Organization/{caller.organization}"}
        actors.update(f"Device/{i}" for i in (caller.client_id,) if i)
        actors.update(i for i in (caller.subject_id, caller.user_id) if i)
        if caller.role is Role.PATIENT and caller.user_id:
            actors.update(f"Patient/{person_id}" for person_id in self._portal.own_people(caller.user_id))
        return Request(
            actors=frozenset(actors),
            purposes=caller.purposes,
            role=caller.role,
            organization=caller.organization,
            now=self._clock(),
            break_glass=caller.break_glass and caller.clinical,
        )

    def policy(self, person: Person, request: Request) -> PersonPolicy:
        """What governs a person. Raises ServiceUnavailable where the consents cannot be read and no glass is broken."""
        person_ids = self._identity.person_ids(person.id)
        try:
            subject = self._subject(person)
            policy = self._consents.policy(person_ids, subject)
        except sa.exc.SQLAlchemyError as error:
            log.error("consents", extra={"type": type(error).__name__})
            if not request.break_glass:
                raise ServiceUnavailable(
                    "The consents cannot be read, so nothing was released. Try again shortly."
                ) from None
            return self._consents.policy_unread(person_ids)
        acting = self._portal.representatives(subject.records or ())
        return replace(policy, representatives=policy.representatives | acting) if acting else policy

    def _subject(self, person: Person) -> Subject:
        """What the law of minors goes by, and whose consents are the person's."""
        addresses = [a for a in person.resource.get("address") or [] if isinstance(a, dict)]
        born = person.resource.get("birthDate")
        return Subject(
            birth_date=born if isinstance(born, str) else None,
            state=next((str(a["state"]) for a in addresses if a.get("state")), None),
            records=frozenset((i.system, i.value) for i in self._identity.identifiers(person.id)),
            halves=tuple(self._identity.person_ids(other) for other in self._identity.unsettled_with(person.id)),
        )

    def hidden(self, caller: Caller, person: Person) -> frozenset[str]:
        """Part 2 members that hold a record of the person and must not be named to the caller."""
        part2 = {record.member_id for record in person.records} & self.doubtful(caller)
        if not part2:
            return frozenset()
        request = self.request(caller)
        policy = self.policy(person, request)
        return frozenset(member_id for member_id in part2 if not could_release(policy, request, member_id))

    def shown(self, caller: Caller, person: Person | None) -> Person | None:
        """The person as far as the caller may know; None where that is nothing."""
        if person is None:
            return None
        hidden = self.hidden(caller, person)
        return without(person, hidden) if hidden else person

    def doubtful(self, caller: Caller) -> frozenset[str]:
        """The members whose records of a person the caller may have to do without."""
        if caller.organization == EXCHANGE and caller.role in _OF_THE_EXCHANGE:
            return frozenset()
        return frozenset(m.id for m in self._directory.members() if m.part2 and m.id != caller.organization)


def without(person: Person, members: frozenset[str]) -> Person | None:
    """The person as if these members had never fed a record."""
    records = tuple(record for record in person.records if record.member_id not in members)
    if not records:
        return None
    newest = max(record.updated for record in records)
    meta = {"versionId": str(sum(record.version for record in records)), "lastUpdated": instant(newest)}
    resource = {"resourceType": "Patient", "id": person.id, "meta": meta, **golden(records)}
    return Person(person.id, records, resource)
