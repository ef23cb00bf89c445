"""JSON and XML on the identity routes (FHIR R4 3.1.0.1.11; PIXm and PDQm require both).

Views speak JSON. `install` turns what a view or error handler answered into XML where the request asks for it, and
refuses formats that cannot be produced before the view runs. XML from outside is parsed without DTD, entities or
network, and becomes the same dict that JSON would have.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from flask import Blueprint, Request, Response, request
from lxml import etree  # type: ignore[import-untyped]
from pydantic import ValidationError
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_options_header

from hie.core import fhir
from hie.core.errors import BadRequest, NotAcceptable, TooLarge, Unprocessable, UnsupportedMediaType
from hie.core.fhir import Resource

JSON = "json"
XML = "xml"
FHIR_XML = "application/fhir+xml"
FORM = "application/x-www-form-urlencoded"

_FORMATS = {
    "json": JSON,
    "application/json": JSON,
    "application/fhir+json": JSON,
    "text/json": JSON,
    "xml": XML,
    "application/xml": XML,
    "application/fhir+xml": XML,
    "text/xml": XML,
}
_ANY = {"*/*": JSON, "application/*": JSON, "text/*": XML}
_NAMESPACE = "http://hl7.org/fhir"
_XHTML = "http://www.w3.org/1999/xhtml"
_ELEMENT = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INT64 = 2**63


def install(blueprint: Blueprint) -> None:
    """Negotiate the answer's format for every view of `blueprint`."""

    @blueprint.before_request
    def _refuse_unknown() -> None:
        wanted_format(request)

    @blueprint.after_request
    def _translate(response: Response) -> Response:
        if response.mimetype == fhir.FHIR_JSON:
            response.headers.add("Vary", "Accept")
            if _wants_xml():
                response.set_data(to_xml(json.loads(response.get_data())))
                response.content_type = f"{FHIR_XML}; charset=utf-8"
        return response


def _wants_xml() -> bool:
    try:
        return wanted_format(request) == XML
    except NotAcceptable:
        return False


def wanted_format(asked: Request) -> str:
    """`json` or `xml`; the parameter `_format` outweighs the Accept header. Raises NotAcceptable."""
    posted = asked.form.getlist("_format") if asked.mimetype == FORM else []
    given = asked.args.getlist("_format") or posted
    if given:
        name = given[0].split(";")[0].strip().lower().replace(" ", "+")  # an unescaped plus arrives as a space
        if name not in _FORMATS or len(given) > 1:
            raise NotAcceptable("The exchange answers in JSON (application/fhir+json) or XML (application/fhir+xml).")
        return _FORMATS[name]
    return _accepted(asked.accept_mimetypes)


def _accepted(accept: MIMEAccept) -> str:
    if not accept:
        return JSON
    for media_type, quality in accept:
        name, options = parse_options_header(media_type)
        version = options.get("fhirversion", options.get("fhirVersion", "4.0"))
        known = _FORMATS.get(name.lower()) or _ANY.get(name)
        if known and quality > 0 and version.startswith("4.0"):
            return known
    raise NotAcceptable("The exchange answers in FHIR R4 JSON (application/fhir+json) or XML (application/fhir+xml).")


def answer(body: Resource, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The resource as FHIR JSON."""
    return Response(fhir.to_bytes(body), status, headers, content_type=f"{fhir.FHIR_JSON}; charset=utf-8")


def read_resource(asked: Request, *resource_types: str) -> Resource:
    """The validated body, of one of the types, JSON or XML by its content type; raises errors with a sentence."""
    body_format = _FORMATS.get(asked.mimetype)
    if body_format is None:
        raise UnsupportedMediaType("Send the body as application/fhir+json or application/fhir+xml.")
    if asked.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("Send the body in UTF-8.")
    if asked.content_length is not None and asked.content_length > fhir.MAX_BODY_BYTES:
        raise TooLarge(f"The body is larger than {fhir.MAX_BODY_BYTES} bytes.")
    raw = asked.stream.read(fhir.MAX_BODY_BYTES + 1)
    resource_type = _named_type(raw, resource_types)
    try:
        if body_format == XML:
            return parse_xml(raw, resource_type)
        return parse_json(raw, resource_type)
    except Unprocessable as error:
        if error.message.startswith(f"{resource_type}.birthDate"):
            raise Unprocessable(
                f"{resource_type}.birthDate must be YYYY, YYYY-MM or YYYY-MM-DD, and a date in the calendar.",
                code="value",
            ) from None
        raise


def _named_type(raw: bytes, allowed: Sequence[str]) -> str:
    """Which of the types the body seems to be; the first when it is not plain, for the parser to say what is wrong."""
    named = re.search(rb'"resourceType"\s*:\s*"([A-Za-z]{1,64})"|<([A-Z][A-Za-z]{1,63})[\s>]', raw[:4096])
    given = (named[1] or named[2]).decode() if named else ""
    return given if given in allowed else allowed[0]


def parse_json(raw: bytes, resource_type: str) -> Resource:
    """As `fhir.parse_resource`; numbers that no database or JSON writer keeps are refused too."""
    body = fhir.parse_resource(raw, resource_type)
    for node in fhir.walk(body):
        for key, value in node.items():
            values: Sequence[Any] = value if isinstance(value, list) else [value]
            if any(isinstance(v, int | float) and not _storable(v) for v in values):
                raise Unprocessable(f"The element {key[:64]} holds a number out of range.", code="value")
    return body


def _storable(number: float) -> bool:
    return -_INT64 <= number < _INT64 if isinstance(number, int) else math.isfinite(number)


def parse_xml(raw: bytes, resource_type: str) -> Resource:
    """FHIR XML of one `resource_type` as a dict; no DTD, entities, processing instructions or foreign elements."""
    if len(raw) > fhir.MAX_BODY_BYTES:
        raise TooLarge(f"The body is larger than {fhir.MAX_BODY_BYTES} bytes.")
    root = _parse_tree(raw)
    if root.tag != f"{{{_NAMESPACE}}}{resource_type}":
        raise BadRequest(f"The body must be a {resource_type} in the namespace {_NAMESPACE}.", code="structure")
    _check_tree(root)
    model = getattr(import_module(f"fhir.resources.R4B.{resource_type.lower()}"), resource_type)
    try:
        parsed = model.model_validate_xml(etree.tostring(root), xmlparser=_parser())
        kept = etree.fromstring(parsed.model_dump_xml(), parser=_parser())
        body: Resource = json.loads(parsed.model_dump_json())
    except ValidationError as error:
        raise Unprocessable(f"{resource_type}.{_path(error)} is not allowed here.", code="structure") from None
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, NotImplementedError, RecursionError):
        raise Unprocessable(f"The {resource_type} has an element that is not allowed here.", code="structure") from None
    if _elements(root) != _elements(kept):
        raise Unprocessable(f"The {resource_type} repeats an element that may be there once.", code="structure")
    fhir.validate(body, resource_type)
    return body


def _elements(root: Any) -> Counter[str]:
    """How often each element name occurs; narrative and element ids (attributes in XML) aside."""
    names = (etree.QName(node) for node in root.iter(etree.Element))
    return Counter(n.localname for n in names if n.namespace == _NAMESPACE and n.localname != "id")


def _path(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors()[0]["loc"] if not str(part).startswith("function-"))


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
    )


def _parse_tree(raw: bytes) -> Any:
    if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:  # before the parser sees it; UTF-16 cannot hide it, see below
        raise BadRequest("The body holds a document type declaration, which is not read.", code="structure")
    if b"\x00" in raw:
        raise BadRequest("The body is not UTF-8.", code="structure")
    try:
        raw.decode("utf-8")
        root = etree.fromstring(raw, parser=_parser())
    except (UnicodeDecodeError, etree.XMLSyntaxError, ValueError):
        raise BadRequest("The body is not well-formed XML in UTF-8.", code="structure") from None
    if root.getroottree().docinfo.doctype or root.getroottree().docinfo.encoding not in (None, "UTF-8", "utf-8"):
        raise BadRequest("The body is not plain XML in UTF-8.", code="structure")
    return root


def _check_tree(root: Any) -> None:
    """Depth, and names that the model's reader can be trusted with."""
    pending = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        if depth > fhir.MAX_DEPTH:
            raise BadRequest(f"The body is nested deeper than {fhir.MAX_DEPTH} levels.", code="structure")
        if not isinstance(node.tag, str):
            raise BadRequest("The body holds a processing instruction or an entity.", code="structure")
        name = etree.QName(node)
        if node.prefix or any(":" in str(attribute) and "}" not in str(attribute) for attribute in node.attrib):
            raise BadRequest("Write the body without namespace prefixes.", code="structure")
        if name.namespace == _XHTML:
            continue
        if name.namespace != _NAMESPACE or not _ELEMENT.fullmatch(name.localname):
            raise BadRequest("The body holds an element that is not FHIR's.", code="structure")
        for foreign in [attribute for attribute in node.attrib if attribute.startswith("{")]:
            del node.attrib[foreign]  # such as xsi:schemaLocation
        if (node.text or "").strip() or any((child.tail or "").strip() for child in node):
            raise BadRequest("The body holds text between its elements.", code="structure")
        _check_once(node)
        pending.extend((child, depth + 1) for child in node)


def _check_once(node: Any) -> None:
    """Repeats of an element must follow each other: the model's reader would keep only some of scattered ones."""
    names: list[Any] = [child.tag for child in node]
    runs = [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    if len(runs) != len(set(runs)):
        raise BadRequest("The body repeats an element out of order.", code="structure")


def to_xml(resource: Resource) -> bytes:
    """FHIR XML of a resource that holds no narrative (which need not be well-formed where JSON came in).

    Characters that XML 1.0 cannot carry become U+FFFD.
    """
    kind = resource["resourceType"]
    model = getattr(import_module(f"fhir.resources.R4B.{kind.lower()}"), kind)
    xml: bytes = model.model_validate(_carried(resource)).model_dump_xml()
    return xml


def _carried(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _carried(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_carried(item) for item in node]
    return _NOT_XML.sub("\ufffd", node) if isinstance(node, str) else node
