"""What a member's body says: bytes -> one checked page of a search, or one resource. Pure.

A member may send anything (contract law L6), so bodies are bounded before they are parsed, and every entry is judged by
itself: one that cannot be used is dropped and makes the page `flawed`, the rest is kept. Resources stay the dicts that
came. Nothing of a member's text (OperationOutcomes included) leaves this module except in resources.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from hie.core.fhir import MAX_DEPTH, Resource, parse_exact
from hie.gateway.guard import within

MAX_VALUES = 500_000
"""Objects, arrays and commas in one body: 5 MB of `[],[],…` would become hundreds of megabytes of Python objects."""

JSON_TYPES = frozenset({"application/fhir+json", "application/json", "application/json+fhir"})

_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_BOM = b"\xef\xbb\xbf"


class Unusable(Exception):
    """The body is not what was asked for; `status` is a source-status code."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Page:
    """One page of a search."""

    resources: tuple[Resource, ...]
    """Matches that can be used: each has a string `resourceType` and a valid `id`."""
    matches: int
    """Matches that the member sent, usable or not."""
    total: int | None
    next_link: str | None
    """As the member wrote it; see `next_within`."""
    flawed: bool
    """An entry was dropped."""
    troubled: bool
    """The member says in an outcome that something went wrong (severity error or fatal)."""


def parse(raw: bytes) -> Any:
    """The JSON value of a body, or Unusable. Cheap to refuse: what would be costly is counted before it is parsed."""
    raw = raw.removeprefix(_BOM)  # Microsoft's servers send one
    containers = raw.count(b"{") + raw.count(b"[")
    if containers + raw.count(b",") > MAX_VALUES:
        raise Unusable("truncated")
    try:
        value = parse_exact(raw)
    except (ValueError, RecursionError):
        raise Unusable("invalid") from None
    if containers > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise Unusable("invalid")
    return value


def page_of(body: Any) -> Page:
    """The page that a search's body holds; raises Unusable unless it is a searchset Bundle."""
    if not isinstance(body, dict) or body.get("resourceType") != "Bundle" or body.get("type") != "searchset":
        raise Unusable("invalid")
    entries = body.get("entry", [])
    if not isinstance(entries, list):
        raise Unusable("invalid")
    modes = [_mode(entry) for entry in entries]
    matches = [entry for entry, mode in zip(entries, modes, strict=True) if mode == "match"]
    usable = tuple(entry["resource"] for entry in matches if _usable(entry))
    total = body.get("total")
    return Page(
        resources=usable,
        matches=len(matches),
        total=total if isinstance(total, int) and not isinstance(total, bool) else None,
        next_link=_next(body.get("link")),
        flawed=len(usable) < len(matches),
        troubled=any(m == "outcome" and _trouble(e["resource"]) for e, m in zip(entries, modes, strict=True)),
    )


def single(body: Any, resource_type: str, resource_id: str) -> Resource:
    """The resource that a read's body is; raises Unusable unless it is exactly the one asked for."""
    if isinstance(body, dict) and body.get("resourceType") == resource_type and body.get("id") == resource_id:
        return body
    raise Unusable("invalid")


def next_within(link: str, base_url: str) -> str | None:
    """The absolute address of a `next` link, or None when it leads out of the registered base URL."""
    if not link.isascii():
        return None
    try:
        url = urljoin(base_url + "/", link)
    except ValueError:
        return None
    return url if within(url, base_url) else None


def valid_id(value: object) -> bool:
    """FHIR `id`."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None and value.strip(".") != ""


def _mode(entry: Any) -> str:
    """match, include or outcome; an OperationOutcome is an outcome whatever the entry says."""
    if not isinstance(entry, dict):
        return "match"
    resource = entry.get("resource")
    if isinstance(resource, dict) and resource.get("resourceType") == "OperationOutcome":
        return "outcome"
    search = entry.get("search")
    mode = search.get("mode", "match") if isinstance(search, dict) else "match"
    return "include" if mode in ("include", "outcome") else "match"


def _usable(entry: Any) -> bool:
    resource = entry.get("resource") if isinstance(entry, dict) else None
    return isinstance(resource, dict) and isinstance(resource.get("resourceType"), str) and valid_id(resource.get("id"))


def _trouble(outcome: Resource) -> bool:
    issues = outcome.get("issue")
    return isinstance(issues, list) and any(
        isinstance(issue, dict) and issue.get("severity") in ("error", "fatal") for issue in issues
    )


def _next(links: Any) -> str | None:
    for link in links if isinstance(links, list) else []:
        if isinstance(link, dict) and link.get("relation") == "next" and isinstance(link.get("url"), str):
            return str(link["url"])
    return None


def _deeper(value: Any, limit: int) -> bool:
    """Whether `value` is nested deeper than `limit`: level by level, so that depth costs no stack."""
    level: Sequence[Any] = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True
