"""SMART App Launch 2 system scopes: `system/AllergyIntolerance.rs`, `system/*.cruds`, and the v1 `.read/.write/.*`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SCOPE = re.compile(r"system/(\*|[A-Z][A-Za-z]{1,63})\.(c?r?u?d?s?|read|write|\*)")
_V1 = {"read": "rs", "write": "cud", "*": "cruds"}


@dataclass(frozen=True)
class Scope:
    """One permission: a resource type (or `*`) and an in-order subset of `cruds`."""

    type: str
    actions: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Scope | None:
        """None when `text` is no scope this exchange understands (out of order, empty, another context)."""
        match = _SCOPE.fullmatch(text)
        if not match or not match[2]:
            return None
        return cls(match[1], frozenset(_V1.get(match[2], match[2])))

    def __str__(self) -> str:
        return f"system/{self.type}." + "".join(a for a in "cruds" if a in self.actions)


@dataclass(frozen=True)
class Scopes:
    """A set of scopes, as registered for a client or granted to a token."""

    items: tuple[Scope, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Scopes:
        """Raises ValueError naming the first scope that is not understood."""
        items = []
        for word in text.split():
            scope = Scope.parse(word)
            if scope is None:
                raise ValueError(f"scope not understood: {word[:80]}")
            items.append(scope)
        return cls(tuple(items))

    def allows(self, resource_type: str, action: str) -> bool:
        """Whether `action` (one of c r u d s) on `resource_type` is held."""
        return any(s.type in ("*", resource_type) and action in s.actions for s in self.items)

    def covers(self, asked: Scope) -> bool:
        """Whether every action of `asked` is held for its type (for `*`: held for `*`)."""
        held = {a for s in self.items if s.type in ("*", asked.type) for a in s.actions}
        return asked.actions <= held

    def __str__(self) -> str:
        return " ".join(str(s) for s in self.items)
