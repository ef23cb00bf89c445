"""What a change of the codes would newly hide or reveal, over the people whose consents could feel it.

People without a consent in force are left out: where no consent goes by labels, no code decides. Nothing is released;
each look at a person is an entry of the log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hie.consent.labels import ValueSets
from hie.consent.service import ConsentService
from hie.core.caller import Caller, Role
from hie.core.errors import NotFound
from hie.core.fhir import CLINICAL_TYPES
from hie.gateway.preview import Recoding, Somebody
from hie.gateway.release import Release
from hie.mpi.identity import IdentityService

MOST_PEOPLE = 200
_PAGE = 500
ANYBODY = Somebody("anybody", Role.MEMBER, frozenset({"TREAT"}))
"""Some organization that treats the patient, and that no consent names."""


@dataclass(frozen=True)
class Report:
    """Of how many people the records were looked at, and whose would change."""

    people: int
    changed: tuple[Recoding, ...]
    short: tuple[str, ...]
    """Organizations that did not answer in full, so that there may be more."""
    left_out: int
    """People with consents that were not looked at: beyond the most, or the time, of one report."""

    @property
    def hidden(self) -> int:
        return sum(change.hidden for one in self.changed for change in one.changes)

    @property
    def revealed(self) -> int:
        return sum(change.revealed for one in self.changed for change in one.changes)


class Recoder:
    """Asks the door about many people."""

    def __init__(self, release: Release, consents: ConsentService, identity: IdentityService) -> None:
        self._release = release
        self._consents = consents
        self._identity = identity

    def report(
        self,
        caller: Caller,
        sets: ValueSets,
        request_id: str,
        *,
        somebody: Somebody = ANYBODY,
        person_ids: Iterable[str] = (),
        most: int = MOST_PEOPLE,
        seconds: float = math.inf,
    ) -> Report:
        """What `sets` in place of those in force would change; without `person_ids`, for all with consents.

        Nobody more is looked at after so many `seconds`.
        """
        stop_at = time.monotonic() + seconds
        people = list(dict.fromkeys(self._people(person_ids)))
        found: list[Recoding] = []
        for person_id in people[:most]:
            if time.monotonic() > stop_at:
                break
            found.append(
                self._release.recode(
                    caller,
                    person_id,
                    somebody,
                    CLINICAL_TYPES,
                    sets,
                    query="code change report",
                    request_id=request_id,
                )
            )
        short = sorted({name for one in found for name in one.short})
        changed = tuple(one for one in found if one.changes)
        return Report(len(found), changed, tuple(short), len(people) - len(found))

    def _people(self, person_ids: Iterable[str]) -> Iterator[str]:
        named = tuple(person_ids)
        for person_id in named or self._with_consents():
            person = self._identity.person(person_id)
            if person is not None:
                yield person.id
            elif named:
                raise NotFound(f"The exchange knows no person {person_id[:64]}.")

    def _with_consents(self) -> Iterator[str]:
        after: str | None = None
        while page := self._consents.search(None, statuses=["active"], limit=_PAGE, after=after):
            yield from (stored.person_id for stored in page)
            after = page[-1].id
