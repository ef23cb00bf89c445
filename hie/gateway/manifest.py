"""The manifest of `hie apply` (contract section 4): a YAML or JSON file becomes frozen dataclasses, once.

Every mistake is reported, each in one sentence that names its place (`members[0].endpoint.url: ...`). Values are not
repeated, because they may be secrets. Nothing is fetched or looked up here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hie.core.caller import EXCHANGE, Role
from hie.core.errors import BadRequest, ConfigurationError
from hie.core.purposes import KNOWN, PROVIDER_DEFAULT
from hie.core.scopes import Scope, Scopes
from hie.gateway import keysets
from hie.gateway.directory import Auth, Client, Endpoint, Member, User, address_key
from hie.gateway.guard import check_link, check_url

KINDS = ("provider", "payer", "lab", "pharmacy", "public-health")
CONSENT_DEFAULTS = ("permit", "deny", "normal", "treatment", "break-glass-only")
ROLES = tuple(role.value for role in Role if role is not Role.MEMBER)
ROLES_OF_A_MEMBER = (Role.CLINICIAN, Role.MEMBER_ADMIN, Role.PAYER)
"""Users with these roles act for a member, so one must be named."""

_AUTH_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "none": ((), ()),
    "basic": (("username", "password"), ()),
    "bearer": (("token",), ()),
    "oauth2": (("client_id", "token_url"), ("scope",)),
}
"""Type -> (required, optional) settings."""

_SLUG = re.compile(r"[a-z0-9-]{1,32}")
_SYSTEM = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s|]+")
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,188}\.[^@\s]{1,60}|[^@\s]{1,64}@localhost")
_MAX_FILE_BYTES = 20_000_000
_MAX_DEPTH = 32
_MIN_PASSWORD, _MAX_PASSWORD = 8, 1000


@dataclass(frozen=True)
class MemberEntry:
    """A member as the manifest has it."""

    member: Member
    endpoint_given: bool
    """False: the manifest says nothing about the endpoint, so the one that stands stays."""
    clients: tuple[Client, ...] | None
    """All of its clients; None when the manifest says nothing about them."""


@dataclass(frozen=True)
class UserEntry:
    """A user as the manifest has it; without a password, the one that stands stays."""

    user: User
    password: str | None = field(repr=False)


@dataclass(frozen=True)
class Manifest:
    """Everything a manifest lists."""

    members: tuple[MemberEntry, ...]
    clients: tuple[Client, ...]
    """The exchange's own."""
    users: tuple[UserEntry, ...]


class ManifestError(ConfigurationError):
    """The manifest has mistakes, each a sentence."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


def load(path: Path, *, development: bool) -> Manifest:
    """The manifest in a file; raises ManifestError. `development` allows plain-http and loopback addresses."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ManifestError([f"{path}: cannot be read ({error.strerror})."]) from None
    return parse(document(raw), development=development)


def document(raw: bytes) -> Any:
    """What the YAML or JSON text says; raises ManifestError with the line of the mistake."""
    if len(raw) > _MAX_FILE_BYTES:
        raise ManifestError([f"the manifest is larger than {_MAX_FILE_BYTES} bytes."])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ManifestError(["the manifest is not UTF-8 text."]) from None
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError:
            pass  # a YAML flow mapping also starts so; its reader names the line of the mistake
        except RecursionError:
            raise ManifestError(["the manifest is nested too deeply."]) from None
    return _yaml(text)


def parse(content: Any, *, development: bool) -> Manifest:
    """The manifest that a parsed document describes; raises ManifestError with every mistake."""
    reader = _Reader(development)
    manifest = reader.manifest(content)
    if reader.mistakes:
        raise ManifestError(reader.mistakes)
    return manifest


class _Reader:
    """Reads the document and collects mistakes. Where a value is wrong, a harmless one stands in until the end."""

    def __init__(self, development: bool) -> None:
        self._development = development
        self.mistakes: list[str] = []

    # -- the document's parts

    def manifest(self, content: Any) -> Manifest:
        if not isinstance(content, dict):
            self._wrong("", "the manifest must be a mapping with members, clients and users.")
            return Manifest((), (), ())
        top = self._mapping(content, "", ("members", "clients", "users"))
        members = tuple(self._member(*item) for item in self._items(top, "members"))
        clients = tuple(self._client(*item, None) for item in self._items(top, "clients"))
        users = tuple(self._user(*item) for item in self._items(top, "users"))
        self._refuse_twins(members, clients, users)
        return Manifest(members, clients, users)

    def _member(self, node: Any, path: str) -> MemberEntry:
        known = (
            "id",
            "name",
            "patient_id_system",
            "endpoint",
            "consent_default",
            "kind",
            "purposes",
            "part2",
            "address",
            "clients",
        )
        entry = self._mapping(node, path, known)
        id = self._slug(entry, path)
        if id == EXCHANGE:
            self._wrong(f"{path}.id", f"{EXCHANGE} is the exchange itself; choose another id.")
        kind = self._choice(entry, path, "kind", KINDS) or "provider"
        member = Member(
            id=id,
            name=self._text(entry, path, "name", limit=200) or "",
            patient_id_system=self._system(entry, path),
            endpoint=self._endpoint(entry.get("endpoint"), f"{path}.endpoint"),
            consent_default=self._choice(entry, path, "consent_default", CONSENT_DEFAULTS),
            kind=kind,
            purposes=self._purposes(entry, path),
            part2=self._flag(entry, path, "part2"),
            address=self._text(entry, path, "address", limit=300, required=False),
        )
        role = Role.PAYER if kind == "payer" else Role.MEMBER
        clients = tuple(self._client(n, p, (id, role)) for n, p in self._items(entry, "clients", path))
        return MemberEntry(member, "endpoint" in entry, clients if "clients" in entry else None)

    def _endpoint(self, node: Any, path: str) -> Endpoint | None:
        if node is None or not self._is_mapping(node, path):
            return None
        entry = self._mapping(node, path, ("url", "auth"))
        url = self._address(entry, path, "url", check_url)
        return Endpoint(url, self._auth(entry.get("auth", {"type": "none"}), f"{path}.auth"))

    def _auth(self, node: Any, path: str) -> Auth:
        if not self._is_mapping(node, path):
            return Auth()
        kind = self._choice(node, path, "type", tuple(_AUTH_FIELDS), required=True)
        if kind is None:
            return Auth()
        required, optional = _AUTH_FIELDS[kind]
        entry = self._mapping(node, path, ("type", *required, *optional))
        settings = {name: self._text(entry, path, name, limit=4000) for name in required}
        settings |= {name: self._text(entry, path, name, limit=1000, required=False) for name in optional}
        if "token_url" in settings:
            settings["token_url"] = (
                self._address(entry, path, "token_url", check_link) if settings["token_url"] else None
            )
        return Auth(type=kind, **settings)

    def _client(self, node: Any, path: str, owner: tuple[str, Role] | None) -> Client:
        known = ("id", "jwks", "jwks_uri", "scopes") if owner else ("id", "role", "jwks", "jwks_uri", "scopes")
        entry = self._mapping(node, path, known)
        role = owner[1] if owner else self._role(entry, path)
        if ("jwks" in entry) == ("jwks_uri" in entry):
            self._wrong(path, "needs either jwks (public keys) or jwks_uri (where they are).")
        return Client(
            id=self._slug(entry, path),
            member_id=owner[0] if owner else None,
            role=role,
            jwks=self._jwks(entry["jwks"], f"{path}.jwks") if "jwks" in entry else None,
            jwks_uri=self._address(entry, path, "jwks_uri", check_link) if "jwks_uri" in entry else None,
            scopes=self._scopes(entry, path),
        )

    def _user(self, node: Any, path: str) -> UserEntry:
        entry = self._mapping(node, path, ("email", "name", "role", "member", "password"))
        email = (self._text(entry, path, "email", limit=254) or "").strip().lower()
        if email and not _EMAIL.fullmatch(email):
            self._wrong(f"{path}.email", "must be an email address.")
        role = self._role(entry, path)
        member = self._slug(entry, path, "member") if entry.get("member") is not None else None
        if member is None and role in ROLES_OF_A_MEMBER:
            self._wrong(f"{path}.member", f"is required: a {role.value} acts for a member.")
        if member is not None and role is Role.PATIENT:
            self._wrong(f"{path}.member", "must be absent: a patient acts for nobody's organization.")
        password = self._password(entry, path)
        return UserEntry(User(email, self._text(entry, path, "name", limit=200) or "", role, member), password)

    # -- rules that look at several entries

    def _refuse_twins(
        self, members: tuple[MemberEntry, ...], clients: tuple[Client, ...], users: tuple[UserEntry, ...]
    ) -> None:
        at = [(e.member, f"members[{n}]") for n, e in enumerate(members)]
        self._unique(((m.id, f"{p}.id") for m, p in at), "the same id as")
        self._unique(((m.patient_id_system, f"{p}.patient_id_system") for m, p in at), "the same system as")
        addresses = ((address_key(m.endpoint.url), f"{p}.endpoint.url") for m, p in at if m.endpoint and m.endpoint.url)
        self._unique(addresses, "the same address as")
        of_members = (
            (client.id, f"members[{n}].clients[{k}].id")
            for n, entry in enumerate(members)
            for k, client in enumerate(entry.clients or ())
        )
        own = ((client.id, f"clients[{n}].id") for n, client in enumerate(clients))
        self._unique((*of_members, *own), "the same id as")
        self._unique(((e.user.email, f"users[{n}].email") for n, e in enumerate(users)), "the same email as")

    def _unique(self, values: Iterable[tuple[str, str]], sentence: str) -> None:
        first: dict[str, str] = {}
        for value, path in values:
            if value and value in first:
                self._wrong(path, f"is {sentence} {first[value]}.")
            first.setdefault(value, path)

    # -- single values

    def _slug(self, entry: Mapping[str, Any], path: str, key: str = "id") -> str:
        value = self._text(entry, path, key, limit=200)
        if value and not _SLUG.fullmatch(value):
            self._wrong(f"{path}.{key}", "must be 1 to 32 lower-case letters, digits or hyphens.")
        return value or ""

    def _system(self, entry: Mapping[str, Any], path: str) -> str:
        value = self._text(entry, path, "patient_id_system", limit=255)
        if value and not _SYSTEM.fullmatch(value):
            self._wrong(f"{path}.patient_id_system", "must be an absolute URI, such as urn:oid:2.999.1.1.")
        return value or ""

    def _address(self, entry: Mapping[str, Any], path: str, key: str, check: Callable[..., str]) -> str:
        value = self._text(entry, path, key, limit=2048)
        if not value:
            return ""
        try:
            return check(value, development=self._development)
        except BadRequest as refused:
            self._wrong(f"{path}.{key}", refused.message)
            return ""

    def _purposes(self, entry: Mapping[str, Any], path: str) -> frozenset[str]:
        if "purposes" not in entry:
            return PROVIDER_DEFAULT
        held = self._words(entry, path, "purposes")
        for n, word in enumerate(held):
            if word not in KNOWN:
                self._wrong(f"{path}.purposes[{n}]", f"must be one of {', '.join(sorted(KNOWN))}.")
        return frozenset(held)

    def _scopes(self, entry: Mapping[str, Any], path: str) -> Scopes:
        scopes = []
        for n, word in enumerate(self._words(entry, path, "scopes")):
            scope = Scope.parse(word)
            if scope is None:
                self._wrong(
                    f"{path}.scopes[{n}]",
                    "must be a SMART v2 system scope, such as system/Patient.rs (in the order cruds).",
                )
            elif scope not in scopes:
                scopes.append(scope)
        return Scopes(tuple(scopes))

    def _words(self, entry: Mapping[str, Any], path: str, key: str) -> list[str]:
        value = entry.get(key)
        if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
            return value
        self._wrong(f"{path}.{key}", "is required: a list of at least one text.")
        return []

    def _jwks(self, node: Any, path: str) -> dict[str, Any]:
        found = keysets.mistakes(node)
        for place, sentence in found:
            self._wrong(path + place, sentence + ".")
        return keysets.registered(node) if not found else {}

    def _role(self, entry: Mapping[str, Any], path: str) -> Role:
        return Role(self._choice(entry, path, "role", ROLES, required=True) or Role.OPERATOR)

    def _password(self, entry: Mapping[str, Any], path: str) -> str | None:
        value = self._text(entry, path, "password", limit=_MAX_PASSWORD, required=False)
        if value is not None and len(value) < _MIN_PASSWORD:
            self._wrong(f"{path}.password", f"must have at least {_MIN_PASSWORD} characters.")
        return value

    def _flag(self, entry: Mapping[str, Any], path: str, key: str) -> bool:
        value = entry.get(key, False)
        if not isinstance(value, bool):
            self._wrong(f"{path}.{key}", "must be true or false.")
        return value is True

    def _choice(
        self, entry: Mapping[str, Any], path: str, key: str, among: tuple[str, ...], *, required: bool = False
    ) -> str | None:
        value = entry.get(key)
        if value is None and not required:
            return None
        if isinstance(value, str) and value in among:
            return value
        start = "is required: one of" if value is None else "must be one of"
        self._wrong(f"{path}.{key}", f"{start} {', '.join(among)}.")
        return None

    def _text(self, entry: Mapping[str, Any], path: str, key: str, *, limit: int, required: bool = True) -> str | None:
        value = entry.get(key)
        if value is None or value == "":
            if required or value == "":
                self._wrong(f"{path}.{key}", "is required." if required else "must not be empty.")
            return None
        if not isinstance(value, str):
            self._wrong(f"{path}.{key}", "must be text; put it in quotes.")
            return None
        if len(value) > limit or not value.isprintable():
            self._wrong(f"{path}.{key}", f"must be at most {limit} printable characters on one line.")
            return None
        return value

    # -- shapes

    def _mapping(self, node: dict[Any, Any], path: str, known: tuple[str, ...]) -> dict[str, Any]:
        """The mapping's entries; unknown keys are refused with the nearest known one."""
        for key in node:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}."
                self._wrong(_join(path, str(key)[:64]), f"is not a known key; {hint}")
        return {key: value for key, value in node.items() if isinstance(key, str)}

    def _items(self, entry: Mapping[str, Any], key: str, path: str = "") -> Iterator[tuple[Any, str]]:
        value = entry.get(key)
        if value is None:
            return
        if not isinstance(value, list):
            self._wrong(_join(path, key), "must be a list.")
            return
        for n, item in enumerate(value):
            if self._is_mapping(item, f"{_join(path, key)}[{n}]"):
                yield item, f"{_join(path, key)}[{n}]"

    def _is_mapping(self, node: Any, path: str) -> bool:
        if not isinstance(node, dict):
            self._wrong(path, "must be a mapping (key: value).")
        return isinstance(node, dict)

    def _wrong(self, path: str, sentence: str) -> None:
        self.mistakes.append(f"{path}: {sentence}" if path else sentence)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ManifestError([f"the key {key[:64]!r} is given twice in one mapping."])
        result[key] = value
    return result


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys (YAML 1.2 section 3.2.1.1); aliases never get this far."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ManifestError([f"line {key.start_mark.line + 1}: a key must be text."])
            if key.value in seen:
                raise ManifestError([f"line {key.start_mark.line + 1}: the key {key.value[:64]!r} is given twice."])
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> Any:
    try:
        _refuse_tricks(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ManifestError([f"{where}the manifest is not valid YAML or JSON."]) from None
    except (ValueError, RecursionError):
        raise ManifestError(["the manifest holds a value that YAML cannot read."]) from None


def _refuse_tricks(text: str) -> None:
    """Refuse aliases (nested ones grow without bound) and deep nesting before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise ManifestError([f"line {line}: aliases (*name) are not read; write the value out."])
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ManifestError([f"line {line}: the manifest is nested too deeply."])
