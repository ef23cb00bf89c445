"""What the review of accesses may know of people (`hie.audit.relations.Community`), out of index and directory.

A registration at the caller's organization is a version of a source record that it fed; an older record is a weak
relation. Encounters, admissions, referrals and panels are those that the organization has told (`hie.gateway.care`),
with the practitioners that it named. A user is taken for a patient, and a patient for somebody's colleague, where the
e-mail is the same and nobody else's: enough for a question, never for a link.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from hie.audit.relations import Contact, PersonFacts, Relation, UserFacts
from hie.core.database import Database
from hie.core.fhir import Resource
from hie.gateway import care
from hie.gateway.directory import Directory
from hie.mpi.demographics import Address, Traits
from hie.mpi.registrations import Known, by_email, family_name_share, known, registrations
from hie.mpi.text import normalised

_IMPORTANCE = "http://hl7.org/fhir/StructureDefinition/patient-importance"
_VIP_LABELS = frozenset({"CEL", "VIP"})
_NO_NAME = frozenset({"jr", "sr", "ii", "iii", "iv", "md", "do", "rn", "np", "pa", "phd", "pharmd"})


class ExchangeCommunity:
    """The people and users of this exchange."""

    def __init__(self, database: Database, directory: Directory) -> None:
        self._database = database
        self._directory = directory

    def contacts(self, pairs: Collection[tuple[str, str]]) -> list[Contact]:
        """What was told; registrations as they came, and from the first one on the record that is there."""
        wanted = frozenset(pairs)
        found: list[Contact] = []
        first: dict[tuple[str, str], Contact] = {}
        with self._database.read() as connection:
            found += care.contacts(connection, wanted)
            for registered in registrations(connection, {person_id for person_id, _ in wanted}):
                pair = (registered.person_id, registered.member_id)
                if pair in wanted:
                    found.append(Contact(*pair, Relation.REGISTRATION, registered.at, registered.at))
                    earlier = first.get(pair)
                    if earlier is None or earlier.starts is None or registered.at < earlier.starts:
                        first[pair] = Contact(*pair, Relation.SOURCE_RECORD, registered.at)
        return [*found, *first.values()]

    def people(self, person_ids: Collection[str]) -> Mapping[str, PersonFacts]:
        employers = {u.email: u.member_id for u in self._directory.users() if u.member_id}
        with self._database.read() as connection:
            return {
                person_id: PersonFacts(
                    family_names=frozenset(map(normalised, one.traits.family)),
                    addresses=_addresses(one.traits),
                    vip=any(map(_is_vip, (record.resource for record in one.records))),
                    employers=frozenset(employers[e] for e in one.traits.emails if e in employers),
                )
                for person_id, one in known(connection, person_ids).items()
            }

    def users(self, actors: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], UserFacts]:
        found = {actor: user for actor in actors if (user := self._directory.user(actor[1])) is not None}
        with self._database.read() as connection:
            as_patients = by_email(connection, {user.email for user in found.values()})
            people = known(connection, set(as_patients.values()))
        return {
            actor: _user(self.family_name(user.name), as_patients.get(user.email), people)
            for actor, user in found.items()
        }

    def family_name(self, name: str) -> str:
        words = [word for word in normalised(name.partition(",")[0]).split() if word not in _NO_NAME]
        return words[-1] if len(words) > 1 else ""

    def name_share(self, family_name: str) -> float:
        with self._database.read() as connection:
            return family_name_share(connection, family_name)


def _user(family_name: str, person_id: str | None, people: Mapping[str, Known]) -> UserFacts:
    if person_id is None or person_id not in people:
        return UserFacts(family_name)
    return UserFacts(family_name, _addresses(people[person_id].traits), person_id)


def _addresses(traits: Traits) -> frozenset[str]:
    """Whole addresses alone: a city or a ZIP code is shared by thousands."""
    return frozenset(_key(address) for address in traits.addresses if address.number and address.street)


def _key(address: Address) -> str:
    return "|".join((address.number, address.street, address.unit, address.zip or address.city))


def _is_vip(patient: Resource) -> bool:
    return not _VIP_LABELS.isdisjoint(_codes(patient))


def _codes(patient: Resource) -> Iterator[str]:
    """Security labels, and the importance that a source gives its patient."""
    meta, extensions = patient.get("meta"), patient.get("extension")
    labels = meta.get("security") if isinstance(meta, dict) else None
    importance = [e.get("valueCodeableConcept") for e in extensions or () if e.get("url") == _IMPORTANCE]
    codings = [*(labels or ()), *(c for concept in importance if concept for c in concept.get("coding", ()))]
    yield from (str(coding.get("code")) for coding in codings)
