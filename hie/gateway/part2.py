"""The notice that travels with records under 42 CFR Part 2, resource by resource (42 CFR 2.32; pure).

A released Part 2 resource carries, in its `meta`:

- `security`: `42CFRPart2`, and the refrain policy `NORDSCLCD` (no redisclosure without consent directive);
- an extension `<base>/StructureDefinition/redisclosure-notice` with `notice` (the statement of 2.32(a)(2)), `consent`
  (a reference to the version that permitted it) and `scope` (what that consent permits this recipient, in plain
  words), as 2.32(b) wants the consent or a clear explanation of its scope beside the data.

So it stays with the resource wherever that goes next, by search, read, `$everything` or an export alike.
"""

from __future__ import annotations

from hie.core.fhir import Resource

NOTICE = "42-cfr-2.32"
STATEMENT = "42 CFR part 2 prohibits unauthorized use or disclosure of these records."
EXTENSION = "/StructureDefinition/redisclosure-notice"

_ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_LABELS = ("42CFRPart2", "NORDSCLCD")


def add_notice(leaving: Resource, fhir_base: str, consent: str | None, scope: str) -> None:
    """Put the notice on a released resource, in place."""
    meta = leaving["meta"]
    given = [coding for coding in meta.get("security") or [] if isinstance(coding, dict)]
    have = {(coding.get("system"), coding.get("code")) for coding in given}
    added = [{"system": _ACT_CODE, "code": code} for code in _LABELS if (_ACT_CODE, code) not in have]
    meta["security"] = given + added
    parts: list[Resource] = [{"url": "notice", "valueString": STATEMENT}]
    if consent is not None:
        parts.append({"url": "consent", "valueReference": {"reference": consent}})
    parts.append({"url": "scope", "valueString": scope})
    kept = [extension for extension in meta.get("extension") or [] if isinstance(extension, dict)]
    meta["extension"] = [*kept, {"url": fhir_base + EXTENSION, "extension": parts}]
