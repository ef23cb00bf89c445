"""The member directory: members, their endpoints, clients and users.

Every read comes from a snapshot in memory, reloaded when the version row in the database differs: one tiny SELECT per
request, so all workers, and `hie apply` in a process of its own, see a change at once. Every write holds the version
row's lock, checks the rules against what then stands, and hands the changes to `also` for the audit trail.

Secrets: an endpoint's credentials are kept as they are, since the transport has to send them, and never printed;
passwords are kept as Argon2id hashes only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from flask import g, has_request_context
from sqlalchemy.dialects import postgresql, sqlite

from hie.audit.event import Event, Kind, Outcome
from hie.core.caller import COMMAND_LINE, EXCHANGE, Caller, Role
from hie.core.clock import Clock
from hie.core.config import Settings
from hie.core.database import Database
from hie.core.errors import BadRequest, ConfigurationError, Conflict, NotFound
from hie.core.scopes import Scopes
from hie.gateway import keysets
from hie.gateway.guard import check_url
from hie.gateway.tables_directory import clients, directory_version, endpoints, members, users

if TYPE_CHECKING:
    from hie.gateway.manifest import Manifest, UserEntry

T = TypeVar("T")
Also = Callable[[sa.Connection, T], None] | None

EXCHANGE_NAME = "Health information exchange"


@dataclass(frozen=True)
class Auth:
    """How the exchange signs in at a member's server. `oauth2` is private_key_jwt with the exchange's key."""

    type: str = "none"
    """none | basic | bearer | oauth2"""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    client_id: str | None = None
    token_url: str | None = None
    scope: str | None = None


@dataclass(frozen=True)
class Endpoint:
    """A member's FHIR server: its base URL, as `guard.check_url` normalises it."""

    url: str
    auth: Auth = Auth()


@dataclass(frozen=True)
class Member:
    """A member organization."""

    id: str
    name: str
    patient_id_system: str
    """Assigning authority of its local patient ids."""
    endpoint: Endpoint | None
    consent_default: str | None
    """Overrides the exchange's, where given."""
    kind: str
    """provider | payer | lab | pharmacy | public-health"""
    purposes: frozenset[str]
    part2: bool
    """Holds records under 42 CFR Part 2."""
    address: str | None = None
    """Postal address on one line, for accountings of disclosures."""


@dataclass(frozen=True)
class Client:
    """A system that asks for tokens; `member_id` is None for the exchange's own."""

    id: str
    member_id: str | None
    role: Role
    jwks: dict[str, Any] | None
    jwks_uri: str | None
    scopes: Scopes

    @property
    def organization(self) -> str:
        return self.member_id or EXCHANGE


@dataclass(frozen=True)
class User:
    """A person who signs in at the console."""

    email: str
    name: str
    role: Role
    member_id: str | None


@dataclass(frozen=True)
class Change:
    """What one member, client or user went through, in names of fields: never their values."""

    action: str
    """added | changed | removed"""
    what: str
    """member | client | user"""
    id: str
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`+ member lakeside`, `~ client lakeside-ehr: jwks, scopes`, `- client old`."""
        sign = {"added": "+", "changed": "~", "removed": "-"}[self.action]
        return f"{sign} {self.what} {self.id}" + (f": {', '.join(self.fields)}" if self.fields else "")


def change_event(change: Change, caller: Caller | None, request_id: str) -> Event:
    """The audit entry of one change; caller None is the operator at the command line."""
    described = f"{change.what} {change.id}"
    if change.action != "changed":
        described += f" {change.action}"
    elif change.fields:
        described += f": {', '.join(change.fields)}"
    return Event(
        kind=Kind.DIRECTORY,
        outcome=Outcome.SUCCESS,
        action={"added": "C", "changed": "U", "removed": "D"}[change.action],
        caller=caller,
        person_id=None,
        query="",
        request_id=request_id,
        description=described,
        client_id=None if caller else COMMAND_LINE,
        entities=(f"Organization/{change.id}",) if change.what == "member" else (),
    )


def address_key(url: str) -> str:
    """What two spellings of one server's address have in common: a digest with case, port and slashes evened out."""
    parts = urlsplit(unquote(url).lower())
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = "/".join(segment for segment in parts.path.split("/") if segment)
    return hashlib.sha256(f"{parts.scheme}://{(parts.hostname or '').rstrip('.')}:{port}/{path}".encode()).hexdigest()


@dataclass(frozen=True)
class _Snapshot:
    version: int
    members: Mapping[str, Member]
    clients: Mapping[str, Client]
    users: Mapping[str, User]

    @cached_property
    def by_system(self) -> Mapping[str, Member]:
        return {member.patient_id_system: member for member in self.members.values()}


class Directory:
    """Who is a member, who may sign in. Safe to share between threads."""

    def __init__(self, database: Database, clock: Clock, settings: Settings) -> None:
        """`clock` as every service takes it; the directory keeps no times."""
        self._database = database
        self._settings = settings
        self._held: _Snapshot | None = None
        self._hasher = PasswordHasher()

    # -- reading

    def member(self, id: str) -> Member | None:
        return self._snapshot().members.get(id)

    def members(self) -> list[Member]:
        """All, by id."""
        return list(self._snapshot().members.values())

    def member_of_system(self, system: str) -> Member | None:
        """The member that assigns patient ids of this system."""
        return self._snapshot().by_system.get(system)

    def client(self, id: str) -> Client | None:
        return self._snapshot().clients.get(id)

    def clients(self, member_id: str | None) -> list[Client]:
        """A member's, by id; the exchange's own for None."""
        return [client for client in self._snapshot().clients.values() if client.member_id == member_id]

    def user(self, email: str) -> User | None:
        return self._snapshot().users.get(email.strip().lower())

    def users(self) -> list[User]:
        """Everybody who may sign in, by e-mail."""
        return list(self._snapshot().users.values())

    def authenticate(self, email: str, password: str) -> User | None:
        """The user whose password it is. An unknown email takes as long as a wrong password."""
        unknown = self._hash_of_nobody
        user = self.user(email)
        with self._database.read() as connection:
            stored = connection.scalar(
                sa.select(users.c.password_hash).where(users.c.email == email.strip().lower()[:254])
            )
        fits = self._verify(stored or unknown, password)
        return user if fits and stored else None

    def hash_password(self, password: str) -> str:
        """What is kept of a password. Takes a tenth of a second: make it before a transaction opens."""
        return self._hasher.hash(password)

    # -- writing

    def add_patient(self, connection: sa.Connection, user: User, password_hash: str) -> None:
        """Add a patient's account inside the caller's transaction; raises Conflict where the e-mail has one."""
        self._lock(connection)
        if user.email in _load(connection).users:
            raise Conflict("There is an account with this e-mail. Sign in, and enter the code on your page.")
        row = {"email": user.email, "name": user.name, "role": Role.PATIENT.value, "member_id": None}
        connection.execute(sa.insert(users).values(**row, password_hash=password_hash))
        self._bump(connection)
        self._forget()

    def apply(self, manifest: Manifest, *, dry_run: bool = False, also: Also[list[Change]] = None) -> list[Change]:
        """Make the directory match the manifest; applying it again changes nothing.

        Members, exchange clients and users that the manifest does not name stay. A member's `clients`, where given,
        are all of its clients: others are removed. A member's `endpoint` and a user's `password` stay when not given.
        Raises ConfigurationError when what stands forbids it (an address or system that another member has).
        """
        passwords = self._passwords(manifest)
        if dry_run:
            with self._database.read() as connection:
                return [step.change for step in self._plan(connection, manifest, passwords)]
        with self._database.write() as connection:
            self._lock(connection)
            steps = list(self._plan(connection, manifest, passwords))
            changes = [step.change for step in steps]
            self._execute(connection, steps)
            if changes:
                self._bump(connection)
            if also is not None:
                also(connection, changes)
        self._forget()
        return changes

    def update_endpoint(self, member_id: str, endpoint: Endpoint, *, also: Also[Member] = None) -> Member:
        """Set a member's server. Raises NotFound, BadRequest (an address that is not allowed), Conflict (another's)."""
        url = check_url(endpoint.url, development=self._settings.development)
        with self._database.write() as connection:
            self._lock(connection)
            standing = _load(connection)
            if member_id not in standing.members:
                raise NotFound("There is no such member.")
            member = replace(standing.members[member_id], endpoint=replace(endpoint, url=url))
            if _owners(standing.members.values()).get(address_key(url), member_id) != member_id:
                raise Conflict("This address belongs to another member.")
            self._execute(connection, [_Step(Change("changed", "member", member_id, ("endpoint",)), member)])
            self._bump(connection)
            if also is not None:
                also(connection, member)
        self._forget()
        return member

    def set_client_keys(self, client_id: str, jwks: dict[str, Any], *, also: Also[Client] = None) -> Client:
        """Replace a client's public keys (and its `jwks_uri`, if it had one). Raises NotFound, BadRequest."""
        for place, sentence in keysets.mistakes(jwks):
            raise BadRequest(f"jwks{place}: {sentence}.")
        with self._database.write() as connection:
            self._lock(connection)
            standing = _load(connection).clients.get(client_id)
            if standing is None:
                raise NotFound("There is no such client.")
            client = replace(standing, jwks=keysets.registered(jwks), jwks_uri=None)
            self._execute(connection, [_Step(Change("changed", "client", client_id, ("jwks",)), client)])
            self._bump(connection)
            if also is not None:
                also(connection, client)
        self._forget()
        return client

    # -- the snapshot

    def _snapshot(self) -> _Snapshot:
        """The directory as it stands; within one request the version is asked for once."""
        mine = f"hie_directory_{id(self)}"
        if has_request_context() and mine in g:
            seen: _Snapshot = g.get(mine)
            return seen
        current = self._current()
        if has_request_context():
            setattr(g, mine, current)
        return current

    def _current(self) -> _Snapshot:
        held = self._held
        with self._database.read() as connection:
            if held is None or _version(connection) != held.version:
                self._held = held = _load(connection)
        return held

    def _forget(self) -> None:
        """After a write of our own: this request, too, sees what it wrote."""
        self._held = None
        if has_request_context():
            g.pop(f"hie_directory_{id(self)}", None)

    # -- the plan of an apply

    def _plan(self, connection: sa.Connection, manifest: Manifest, passwords: _Passwords) -> Iterator[_Step]:
        """Every change, in an order in which they can be made."""
        standing, hashes = _load(connection), _hashes(connection)
        wanted = {e.member.id: _wanted_member(e.member, e.endpoint_given, standing) for e in manifest.members}
        _refuse_conflicts(standing, wanted)
        for member in wanted.values():
            yield from _step("member", member.id, standing.members.get(member.id), member)
        yield from _client_steps(standing, manifest)
        for entry in manifest.users:
            yield from self._user_step(entry, standing.users.get(entry.user.email), hashes, passwords)

    def _user_step(
        self, entry: UserEntry, before: User | None, hashes: Mapping[str, str | None], passwords: _Passwords
    ) -> Iterator[_Step]:
        stored = new = hashes.get(entry.user.email)
        if entry.password is not None:
            examined, made = passwords[entry.user.email]
            new = made if examined == stored else self._hash(stored, entry.password)
        more = ("password",) if new != stored else ()
        for step in _step("user", entry.user.email, before, entry.user, more):
            yield replace(step, password_hash=new)

    def _passwords(self, manifest: Manifest) -> _Passwords:
        """Hashes take a tenth of a second each, so they are made before the write lock is held."""
        given = {e.user.email: e.password for e in manifest.users if e.password is not None}
        with self._database.read() as connection:
            stored = _hashes(connection)
        return {
            email: (stored.get(email), self._hash(stored.get(email), password)) for email, password in given.items()
        }

    def _hash(self, stored: str | None, password: str) -> str:
        """The stored hash where it is of this password, else a new one."""
        return stored if stored and self._verify(stored, password) else self._hasher.hash(password)

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    @cached_property
    def _hash_of_nobody(self) -> str:
        return self._hasher.hash("the password of nobody")

    # -- effects

    def _execute(self, connection: sa.Connection, steps: list[_Step]) -> None:
        moved = [s.change.id for s in steps if s.change.what == "member" and "endpoint" in s.change.fields]
        if moved:  # first, so that two members can exchange addresses in one go
            connection.execute(sa.delete(endpoints).where(endpoints.c.member_id.in_(moved)))
        for step in steps:
            for statement in _statements(step):
                connection.execute(statement)

    def _lock(self, connection: sa.Connection) -> None:
        """One writer at a time (SQLite has its lock already)."""
        insert = sqlite.insert if self._database.is_sqlite else postgresql.insert
        connection.execute(insert(directory_version).values(id=1, version=0).on_conflict_do_nothing())
        connection.execute(sa.select(directory_version.c.version).with_for_update())

    def _bump(self, connection: sa.Connection) -> None:
        connection.execute(sa.update(directory_version).values(version=directory_version.c.version + 1))


_Passwords = Mapping[str, tuple[str | None, str]]
"""Email -> (the stored hash that was examined, the hash to store)."""


@dataclass(frozen=True)
class _Step:
    change: Change
    after: Member | Client | User | None
    password_hash: str | None = None


def _step(
    what: str, id: str, before: Member | Client | User | None, after: Member | Client | User, more: tuple[str, ...] = ()
) -> Iterator[_Step]:
    if before is None:
        yield _Step(Change("added", what, id), after)
        return
    names = tuple(f.name for f in fields(after) if getattr(before, f.name) != getattr(after, f.name))
    if names or more:
        shown = tuple("member" if name == "member_id" else name for name in names)
        yield _Step(Change("changed", what, id, shown + more), after)


def _client_steps(standing: _Snapshot, manifest: Manifest) -> Iterator[_Step]:
    lists = {e.member.id: e.clients for e in manifest.members if e.clients is not None}
    wanted = {c.id: c for listed in (*lists.values(), manifest.clients) for c in listed}
    for client in standing.clients.values():
        if client.member_id in lists and client.id not in wanted:
            yield _Step(Change("removed", "client", client.id), None)
    for client in wanted.values():
        before = standing.clients.get(client.id)
        if before is not None and before.member_id != client.member_id and before.member_id not in lists:
            raise ConfigurationError(f"client {client.id}: belongs to {before.organization}; choose another id.")
        if before is not None and set(before.scopes.items) == set(client.scopes.items):
            client = replace(client, scopes=before.scopes)  # another order is no change
        yield from _step("client", client.id, before, client)


def _wanted_member(member: Member, endpoint_given: bool, standing: _Snapshot) -> Member:
    before = standing.members.get(member.id)
    return member if endpoint_given or before is None else replace(member, endpoint=before.endpoint)


def _refuse_conflicts(standing: _Snapshot, wanted: Mapping[str, Member]) -> None:
    """A system belongs to its member until an apply has moved it off; an address only in the end."""
    owners = _owners(m for m in standing.members.values() if m.id not in wanted)
    for member in wanted.values():
        owner = standing.by_system.get(member.patient_id_system)
        if owner is not None and owner.id != member.id:
            raise ConfigurationError(f"member {member.id}: patient_id_system belongs to member {owner.id}.")
        key = address_key(member.endpoint.url) if member.endpoint else ""
        if key in owners:
            raise ConfigurationError(f"member {member.id}: the endpoint's address belongs to member {owners[key]}.")
        owners |= _owners([member])


def _owners(among: Iterable[Member]) -> dict[str, str]:
    """Key of each address -> the member that has it."""
    return {address_key(member.endpoint.url): member.id for member in among if member.endpoint}


def _statements(step: _Step) -> Iterator[sa.Executable]:
    after, change = step.after, step.change
    if isinstance(after, Member):
        yield from _member_statements(after, change)
    elif isinstance(after, Client):
        yield _upsert(clients, change, _client_row(after))
    elif isinstance(after, User):
        row = {"email": after.email, "name": after.name, "role": after.role.value, "member_id": after.member_id}
        yield _upsert(users, change, {**row, "password_hash": step.password_hash})
    else:
        yield sa.delete(clients).where(clients.c.id == change.id)


def _member_statements(member: Member, change: Change) -> Iterator[sa.Executable]:
    row = {
        "id": member.id,
        "name": member.name,
        "patient_id_system": member.patient_id_system,
        "consent_default": member.consent_default,
        "kind": member.kind,
        "purposes": " ".join(sorted(member.purposes)),
        "part2": member.part2,
        "address": member.address,
    }
    yield _upsert(members, change, row)
    if member.endpoint and (change.action == "added" or "endpoint" in change.fields):
        url, auth = member.endpoint.url, asdict(member.endpoint.auth)
        yield sa.insert(endpoints).values(member_id=member.id, url=url, url_key=address_key(url), auth=auth)


def _client_row(client: Client) -> dict[str, Any]:
    return {
        "id": client.id,
        "member_id": client.member_id,
        "role": client.role.value,
        "jwks": client.jwks,
        "jwks_uri": client.jwks_uri,
        "scopes": str(client.scopes),
    }


def _upsert(table: sa.Table, change: Change, row: dict[str, Any]) -> sa.Executable:
    if change.action == "added":
        return sa.insert(table).values(**row)
    key = next(iter(table.primary_key.columns))
    return sa.update(table).where(key == change.id).values(**row)


def _version(connection: sa.Connection) -> int:
    return connection.scalar(sa.select(directory_version.c.version)) or 0


def _load(connection: sa.Connection) -> _Snapshot:
    """The version is read first: a change that commits in between makes the next look reload, never the last."""
    version = _version(connection)
    servers = {row.member_id: Endpoint(row.url, Auth(**row.auth)) for row in connection.execute(sa.select(endpoints))}
    return _Snapshot(
        version,
        {
            row.id: _member(row, servers.get(row.id))
            for row in connection.execute(sa.select(members).order_by(members.c.id))
        },
        {row.id: _client(row) for row in connection.execute(sa.select(clients).order_by(clients.c.id))},
        {
            row.email: User(row.email, row.name, Role(row.role), row.member_id)
            for row in connection.execute(sa.select(users).order_by(users.c.email))
        },
    )


def _hashes(connection: sa.Connection) -> dict[str, str | None]:
    return {row.email: row.password_hash for row in connection.execute(sa.select(users.c.email, users.c.password_hash))}


def _member(row: sa.Row[Any], endpoint: Endpoint | None) -> Member:
    return Member(
        id=row.id,
        name=row.name,
        patient_id_system=row.patient_id_system,
        endpoint=endpoint,
        consent_default=row.consent_default,
        kind=row.kind,
        purposes=frozenset(row.purposes.split()),
        part2=bool(row.part2),
        address=row.address,
    )


def _client(row: sa.Row[Any]) -> Client:
    scopes = Scopes.parse(row.scopes)
    return Client(row.id, row.member_id, Role(row.role), row.jwks, row.jwks_uri, scopes)
