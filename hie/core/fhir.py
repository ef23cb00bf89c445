"""The JSON edge: bytes become a checked FHIR R4 resource once, and turn back once.

`fhir.resources` (R4B models) validates what the exchange accepts or authors. It crashes on unknown types, non-string
types and deep nesting, and its dump is lossy, so: the type is allow-listed and depth capped first, and the caller's own
dict is what is stored and forwarded, never the model's dump. Clinical resources that pass through stay plain dicts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from importlib import import_module
from typing import Any

import orjson
from pydantic import ValidationError

from hie.core.errors import BadRequest, TooLarge, Unprocessable

Resource = dict[str, Any]

MAX_BODY_BYTES = 1_000_000
MAX_DEPTH = 64
FHIR_JSON = "application/fhir+json"

CLINICAL_TYPES = (
    "AllergyIntolerance",
    "Condition",
    "MedicationRequest",
    "MedicationStatement",
    "Immunization",
    "Observation",
    "DiagnosticReport",
    "Procedure",
    "Encounter",
    "DocumentReference",
    "CarePlan",
    "Coverage",
    "ExplanationOfBenefit",
)
"""Resource types that are federated (contract section 3)."""


def parse_json(raw: bytes) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no control characters in strings, at most MAX_DEPTH deep.

    Raises BadRequest or TooLarge with a sentence that says where to look.
    """
    if len(raw) > MAX_BODY_BYTES:
        raise TooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")
    if _too_deep(raw):
        raise BadRequest(f"The body is nested deeper than {MAX_DEPTH} levels.", code="structure")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.", code="structure") from None
    except _Duplicate as duplicate:
        raise BadRequest(f"The property {duplicate} is given twice.", code="structure") from None
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"The body is not JSON{where}.", code="structure") from None


def parse_resource(raw: bytes, resource_type: str) -> Resource:
    """The validated resource of exactly `resource_type`, as the caller sent it."""
    body = parse_json(raw)
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.", code="structure")
    given = body.get("resourceType")
    if given != resource_type:
        shown = given[:64] if isinstance(given, str) else "nothing"
        raise BadRequest(f"Expected a {resource_type}, but resourceType says {shown}.", code="structure")
    validate(body, resource_type)
    return body


def validate(body: Resource, resource_type: str) -> None:
    """Check `body` against the R4B model of an allow-listed type; raises Unprocessable naming the first element."""
    _refuse_control_characters(body)
    model = getattr(import_module(f"fhir.resources.R4B.{resource_type.lower()}"), resource_type)
    try:
        model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
        raise Unprocessable(f"{resource_type}.{path}: {_plain(first['type'])}", code="structure") from None
    except (RecursionError, KeyError, TypeError, AttributeError, AssertionError):
        raise Unprocessable(f"The {resource_type} has an element of the wrong type.", code="structure") from None


def parse_exact(raw: bytes) -> Any:
    """JSON of another system, numbers as written: `1.10` stays `1.10` (FHIR R4 2.24.0.1, decimal precision).

    Raises ValueError. The body must be bounded already.
    """
    value = orjson.loads(raw)  # strict about UTF-8 and surrogates, which the standard library is not
    if _EXACT_NUMBER.search(raw) is None:
        return value
    return json.loads(raw, parse_float=Decimal, parse_int=_integer)


def to_bytes(resource: Any) -> bytes:
    """Compact JSON; Decimals as they were written."""
    return orjson.dumps(resource, default=_written)


def outcome(*issues: Mapping[str, Any]) -> Resource:
    """An OperationOutcome of one or more issues."""
    return {"resourceType": "OperationOutcome", "issue": [dict(issue) for issue in issues]}


def issue(severity: str, code: str, diagnostics: str) -> Resource:
    """One issue; the sentence stands in `details.text` too, since clients disagree on where to look."""
    return {
        "severity": severity,
        "code": code,
        "details": {"text": diagnostics},
        "diagnostics": diagnostics,
    }


def walk(node: Any) -> Iterator[Resource]:
    """Every object inside `node`, itself included, outermost first; iterative, so depth is no limit."""
    stack = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            yield current
            stack.extend(reversed(list(current.values())))
        elif isinstance(current, list):
            stack.extend(reversed(current))


def local_reference(reference: object) -> tuple[str, str] | None:
    """(type, id) of a relative or absolute literal reference, versioned or not; None for anything else."""
    if not isinstance(reference, str) or reference.startswith(("#", "urn:")):
        return None
    parts = reference.split("/_history/")[0].split("/")
    if len(parts) < 2 or not parts[-2] or not parts[-1] or not parts[-2][0].isupper():
        return None
    return parts[-2], parts[-1]


_EXACT_NUMBER = re.compile(rb"[:,\[]\s*-?[0-9]+(?:[.eE]|[0-9]{17})")
"""A number, outside strings or maybe inside one, that a float or a 64-bit integer might not hold."""


def _integer(text: str) -> int | Decimal:
    return int(text) if len(text) < 19 else Decimal(text)


def _written(value: Any) -> orjson.Fragment:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    raise TypeError(type(value).__name__)


class _Duplicate(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> Resource:
    result: Resource = {}
    for key, value in pairs:
        if key in result:
            raise _Duplicate(repr(key[:64]))
        result[key] = value
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _too_deep(raw: bytes) -> bool:
    """A linear scan that counts brackets outside strings, before any recursive parser sees the bytes."""
    if raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return False
    depth = 0
    in_string = escaped = False
    for byte in raw:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif byte in b"]}":
            depth -= 1
    return False


def _refuse_control_characters(body: Resource) -> None:
    for node in walk(body):
        for key, value in node.items():
            values = value if isinstance(value, list) else [value]
            for text in values:
                if isinstance(text, str) and any(_is_control(character) for character in text):
                    raise BadRequest(f"The element {key[:64]} holds a control character.", code="value")


def _is_control(character: str) -> bool:
    """C0 and C1 controls but tab and line ends, and lone surrogates, which no database stores."""
    point = ord(character)
    return (point < 32 and character not in "\t\n\r") or 127 <= point < 160 or 0xD800 <= point < 0xE000


def _plain(kind: str) -> str:
    return {
        "missing": "is required",
        "extra_forbidden": "is not an element of this type",
        "value_error": "has a value that is not allowed",
    }.get(kind, "has a value that is not allowed here (" + kind.replace("_", " ") + ")")
