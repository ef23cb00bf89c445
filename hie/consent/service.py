"""Consents: filed, versioned, found, and compiled into the policy that governs a person.

Every version is kept and none is changed. A version is compiled once per process and remembered, so that reading a
person's policy costs one small query.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa

from hie.consent.fhir import check_consent, compile_consent
from hie.consent.policy import Compiled, Default, PersonPolicy
from hie.consent.rules import Rules
from hie.consent.tables import consent_versions
from hie.core.caller import Caller
from hie.core.clock import Clock, instant
from hie.core.database import Database
from hie.core.errors import Conflict, NotFound, PreconditionFailed
from hie.core.fhir import Resource
from hie.core.ids import new_id

_REMEMBERED = 20_000

_newer = consent_versions.alias("newer")
_CURRENT = ~sa.exists().where(
    _newer.c.consent_id == consent_versions.c.consent_id, _newer.c.version > consent_versions.c.version
)


RecordId = tuple[str, str]
"""System and value of a patient id that a member assigned."""


@dataclass(frozen=True)
class StoredConsent:
    """One version of a consent; `resource` carries its id, `meta.versionId` and `meta.lastUpdated`."""

    id: str
    version: int
    person_id: str
    resource: Resource
    updated: datetime
    author_organization: str
    warnings: tuple[str, ...]
    """Sentences on what of it the evaluator cannot honour."""
    filed_for: RecordId | None = None
    """The member's patient id that it was filed for; None for the person as such."""

    @property
    def reference(self) -> str:
        return f"Consent/{self.id}/_history/{self.version}"

    @property
    def sha256(self) -> str:
        """Of its JSON, as it is stored and as it is given out."""
        return _sha256(orjson.dumps(self.resource))


@dataclass(frozen=True)
class Subject:
    """What the gateway knows of a person that bears on what may be released.

    `birth_date` (as written) and `state` are what the law of minors goes by. `records`: every patient id that members
    feed of the person, also those that were deleted or replaced; None where that is not known. A consent filed for one
    of them is the person's, whoever the person was when it was filed; one filed for a record that is now another's is
    not. `halves`: the ids of people that the person was one with until an unlink, and when that was. What had been
    filed for the joined person as such is treated as both halves' until it is filed again: the stricter counts.
    """

    birth_date: str | None = None
    state: str | None = None
    records: frozenset[RecordId] | None = None
    halves: tuple[tuple[tuple[str, ...], datetime], ...] = ()


Also = Callable[[sa.Connection, StoredConsent], None] | None


class ConsentService:
    """The consent store and the policies read from it."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        exchange_default: str,
        member_defaults: Callable[[], Mapping[str, str]],
        part2_members: Callable[[], frozenset[str]],
        *,
        rules: Rules | None = None,
        strict_break_glass: bool = False,
    ) -> None:
        """Defaults in the words of `policy.Default`, or the environment's `permit` and `deny`."""
        self._database = database
        self._clock = clock
        self._exchange_default = exchange_default
        self._member_defaults = member_defaults
        self._part2_members = part2_members
        self._rules = rules or Rules()
        self._strict_break_glass = strict_break_glass or self._rules.strict_break_glass
        self._compiled: OrderedDict[tuple[str, int], Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def policy(self, person_ids: Sequence[str], subject: Subject | None = None) -> PersonPolicy:
        """What governs a person, given every id the person has had."""
        about = subject or Subject()
        with self._database.read() as connection:
            own = self._compiled_of(connection, self._current_keys(connection, person_ids, about.records))
            others = [
                self._compiled_of(connection, _keys_before(connection, ids, parted)) for ids, parted in about.halves
            ]
        stricter = tuple(self._policy(person_ids, consents, about) for consents in others if consents)
        return replace(self._policy(person_ids, own, about), stricter=stricter)

    def _compiled_of(self, connection: sa.Connection, keys: Sequence[tuple[str, int]]) -> tuple[Compiled, ...]:
        found = self._recall(keys)
        found |= self._compile(connection, [key for key in keys if key not in found])
        return tuple(found[key] for key in keys)

    def policy_unread(self, person_ids: Sequence[str]) -> PersonPolicy:
        """What governs a person whose consents cannot be read: nothing leaves but what break-glass opens."""
        return replace(self._policy(person_ids, (), Subject()), exchange_default=Default.DENY, unreadable=True)

    def _policy(self, person_ids: Sequence[str], consents: tuple[Compiled, ...], subject: Subject) -> PersonPolicy:
        now = self._clock()
        ids = frozenset(person_ids)
        return PersonPolicy(
            consents=consents,
            exchange_default=self._exchange_default,
            member_defaults=self._member_defaults(),
            part2_members=self._part2_members(),
            person_ids=ids,
            as_of=now,
            representatives=self._rules.acting_for(ids, now.date()),
            legal_bases=self._rules.legal_bases,
            payer_types=self._rules.payer_types,
            strict_break_glass=self._strict_break_glass,
            minor=self._rules.minor(subject.birth_date, subject.state, now.date()),
        )

    def create(
        self,
        consent: Resource,
        person_id: str,
        author: Caller,
        *,
        filed_for: RecordId | None = None,
        also: Also = None,
    ) -> StoredConsent:
        """File a new consent of a person, or of the person as whom a member knows `filed_for`.

        `consent` is valid FHIR in the exchange's terms; raises Unprocessable.
        """
        check_consent(consent)
        with self._database.write() as connection:
            return self._store(connection, _Filing(new_id(), 1, person_id, author, filed_for), consent, also)

    def update(
        self,
        consent_id: str,
        consent: Resource,
        person_id: str,
        author: Caller,
        *,
        expected_version: int | None = None,
        filed_for: RecordId | None = None,
        also: Also = None,
    ) -> StoredConsent:
        """File the next version, for the same record as before where none is named.

        Raises NotFound, PreconditionFailed where `expected_version` is not current, Conflict where another version was
        filed at the same moment, Unprocessable.
        """
        check_consent(consent)
        with self._database.write() as connection:
            newest = sa.select(consent_versions).where(consent_versions.c.consent_id == consent_id, _CURRENT)
            current = connection.execute(newest).one_or_none()
            if current is None:
                raise NotFound("There is no such consent.")
            if expected_version is not None and expected_version != current.version:
                raise PreconditionFailed("The consent has been changed since; read it again.")
            record = filed_for or _filed_for(current)
            filing = _Filing(consent_id, current.version + 1, person_id, author, record)
            return self._store(connection, filing, consent, also)

    def read(self, consent_id: str, version: int | None = None) -> StoredConsent | None:
        """One version, the current one where none is named."""
        which = _CURRENT if version is None else consent_versions.c.version == version
        query = sa.select(consent_versions).where(consent_versions.c.consent_id == consent_id, which)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return _stored(row) if row else None

    def history(self, consent_id: str) -> list[StoredConsent]:
        """Every version of a consent, the newest first; none where it never was."""
        columns = consent_versions.c
        query = sa.select(consent_versions).where(columns.consent_id == consent_id).order_by(columns.version.desc())
        with self._database.read() as connection:
            return [_stored(row) for row in connection.execute(query)]

    def search(
        self,
        person_ids: Sequence[str] | None,
        *,
        statuses: Collection[str] = (),
        limit: int,
        after: str | None = None,
    ) -> list[StoredConsent]:
        """Current versions by id, from the one following `after`.

        `person_ids` None: of everybody; no `statuses`: all.
        """
        query = sa.select(consent_versions).where(_CURRENT).order_by(consent_versions.c.consent_id).limit(limit)
        if person_ids is not None:
            query = query.where(consent_versions.c.person_id.in_(person_ids))
        if statuses:
            query = query.where(consent_versions.c.status.in_(statuses))
        if after is not None:
            query = query.where(consent_versions.c.consent_id > after)
        with self._database.read() as connection:
            return [_stored(row) for row in connection.execute(query)]

    def without_effect(self, limit: int) -> list[StoredConsent]:
        """Active consents that say nothing the evaluator can go by, at most `limit`: each is work for the officer.

        Neither their provision nor their policy rule says permit or deny, or they are about neither privacy nor
        research (CONSENT.md section 3). Filed again or ended, they are gone from here.
        """
        found: list[StoredConsent] = []
        after: str | None = None
        while len(found) < limit and (page := self.search(None, statuses=["active"], limit=500, after=after)):
            found += [stored for stored in page if _says_nothing(stored)]
            after = page[-1].id
        return found[:limit]

    def _store(self, connection: sa.Connection, filing: _Filing, consent: Resource, also: Also) -> StoredConsent:
        now = self._clock()
        meta = consent["meta"] if isinstance(consent.get("meta"), dict) else {}
        meta = {**meta, "versionId": str(filing.version), "lastUpdated": instant(now)}
        resource = {**consent, "id": filing.id, "meta": meta}
        system, value = filing.record or (None, None)
        row = {
            "consent_id": filing.id,
            "version": filing.version,
            "person_id": filing.person_id,
            "status": consent["status"],
            "resource": orjson.dumps(resource).decode(),
            "updated": now,
            "author_organization": filing.author.organization,
            "filed_system": system,
            "filed_value": value,
        }
        try:
            connection.execute(consent_versions.insert(), row)
        except sa.exc.IntegrityError:
            raise Conflict("The consent was changed at the same moment; read it again.") from None
        stored = StoredConsent(
            filing.id,
            filing.version,
            filing.person_id,
            resource,
            now,
            filing.author.organization,
            compile_consent(resource, filing.version, filing.person_id).warnings,
            filing.record,
        )
        if also is not None:
            also(connection, stored)
        return stored

    def _current_keys(
        self, connection: sa.Connection, person_ids: Sequence[str], records: frozenset[RecordId] | None
    ) -> list[tuple[str, int]]:
        """Those filed for the person, less those whose record is now another's, and those filed for its records."""
        rows = list(connection.execute(current_keys(person_ids)))
        if records is None:
            return [(row.consent_id, row.version) for row in rows]
        keys = {(row.consent_id, row.version) for row in rows if _filed_for(row) in (None, *records)}
        if records:
            keys |= {(row.consent_id, row.version) for row in connection.execute(keys_of_records(sorted(records)))}
        return sorted(keys)

    def _recall(self, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Compiled]:
        found = {}
        with self._lock:
            for key in keys:
                compiled = self._compiled.get(key)
                if compiled is not None:
                    self._compiled.move_to_end(key)
                    found[key] = compiled
        return found

    def _compile(self, connection: sa.Connection, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Compiled]:
        if not keys:
            return {}
        columns = consent_versions.c
        query = sa.select(consent_versions).where(sa.tuple_(columns.consent_id, columns.version).in_(keys))
        made = {}
        for row in connection.execute(query):
            resource = orjson.loads(row.resource)
            compiled = compile_consent(resource, row.version, row.person_id)
            made[row.consent_id, row.version] = replace(compiled, sha256=_sha256(row.resource.encode()))
        with self._lock:
            self._compiled.update(made)
            while len(self._compiled) > _REMEMBERED:
                self._compiled.popitem(last=False)
        return made


@dataclass(frozen=True)
class _Filing:
    """One version that is being filed: by whom, of whom, for which record."""

    id: str
    version: int
    person_id: str
    author: Caller
    record: RecordId | None


_KEY = (
    consent_versions.c.consent_id,
    consent_versions.c.version,
    consent_versions.c.filed_system,
    consent_versions.c.filed_value,
)


def _says_nothing(stored: StoredConsent) -> bool:
    compiled = compile_consent(stored.resource, stored.version, stored.person_id)
    return compiled.root is None or compiled.scope is None


def _sha256(stored: bytes) -> str:
    return hashlib.sha256(stored).hexdigest()


def _filed_for(row: sa.Row[Any]) -> RecordId | None:
    return (row.filed_system, row.filed_value) if row.filed_system is not None else None


def _keys_before(connection: sa.Connection, person_ids: Sequence[str], parted: datetime) -> list[tuple[str, int]]:
    """What was last filed for people as such before they were parted."""
    where = sa.and_(consent_versions.c.filed_system.is_(None), consent_versions.c.updated < parted)
    return [(row.consent_id, row.version) for row in connection.execute(current_keys(person_ids).where(where))]


def keys_of_records(records: Sequence[RecordId]) -> sa.Select[Any]:
    """Ids and versions of the current consents that were filed for these records."""
    # Alternatives, not a tuple IN a list: SQLite uses no index for that.
    columns = consent_versions.c
    filed = (sa.and_(columns.filed_system == system, columns.filed_value == value) for system, value in records)
    return sa.select(*_KEY).where(sa.or_(*filed), _CURRENT)


def current_keys(person_ids: Sequence[str]) -> sa.Select[Any]:
    """The query of every emergency: ids and versions of the current consents of people."""
    return (
        sa.select(*_KEY)
        .where(consent_versions.c.person_id.in_(person_ids), _CURRENT)
        .order_by(consent_versions.c.consent_id)
    )


def _stored(row: sa.Row[Any]) -> StoredConsent:
    resource = orjson.loads(row.resource)
    warnings = compile_consent(resource, row.version, row.person_id).warnings
    return StoredConsent(
        row.consent_id,
        row.version,
        row.person_id,
        resource,
        row.updated,
        row.author_organization,
        warnings,
        _filed_for(row),
    )
