"""`GET Patient/$link-changes`: who is who now, polled by members that keep cross-references of their own.

The answer is what PIX update notification (ITI-10) tells, in FHIR's shape of changes: a Bundle of type `history`, one
entry per person whose set of source records changed after `_since`, with her identifiers as they are now. A person who
was merged away is there under her old id, inactive, with the link to her successor. Ask next with the `next` link.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlencode

from flask import Blueprint, Response, request

from hie.core.clock import instant, parse_instant
from hie.core.errors import BadRequest
from hie.core.fhir import Resource
from hie.gateway.api import formats
from hie.gateway.api.context import caller, keep_nothing
from hie.gateway.api.feeding import FEEDERS, require_any
from hie.gateway.api.formats import answer
from hie.gateway.api.identity import record_shown
from hie.gateway.services import current
from hie.mpi.golden import replaced
from hie.mpi.stewardship import LinkChange

blueprint = Blueprint("link-changes", __name__)
keep_nothing(blueprint)
formats.install(blueprint)

DEFINITION = "/OperationDefinition/Patient-link-changes"
_SAID = ("resourceType", "id", "meta", "identifier", "active", "name")
_BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)


@blueprint.get("/fhir/Patient/$link-changes")
def link_changes() -> Response:
    """The caller's own patients alone, oldest change first."""
    asking = caller()
    asking.require_role(*FEEDERS)
    require_any(asking, "Patient", ("r", "s"))
    since = _since()
    governance = current().governance
    happened, through, more = current().stewardship.changes_since(
        asking.organization, since, hidden=lambda person: governance.hidden(asking, person)
    )
    seen = ((change, governance.shown(asking, change.person)) for change in happened)
    changes = [replace(change, person=person) for change, person in seen if person is not None]
    asked = f"Patient/$link-changes?{urlencode(list(request.args.items(multi=True)))}"
    record_shown(asking, asked, sorted({change.person.id for change in changes}))
    address = f"{current().settings.fhir_base}/Patient/$link-changes?"
    links = [{"relation": "self", "url": address + urlencode({"_since": instant(since)})}]
    links.append({"relation": "next", "url": address + urlencode({"_since": instant(through)})})
    bundle: Resource = {"resourceType": "Bundle", "type": "history", "total": len(changes), "link": links}
    if changes:
        bundle["entry"] = [_entry(change) for change in changes]
    return answer(bundle, headers={"Retry-After": "0" if more else "30"})


def _since() -> datetime:
    given = request.args.getlist("_since")
    unknown = sorted(set(request.args) - {"_since", "_format"})
    if unknown or len(given) > 1:
        raise BadRequest("Give at most one parameter, _since.")
    try:
        return parse_instant(given[0].replace(" ", "+")) if given else _BEGINNING
    except ValueError:
        raise BadRequest(
            "_since must be an instant with its offset, as the next link gives it.", code="value"
        ) from None


def _entry(change: LinkChange) -> Resource:
    known = change.person.resource
    said: Resource = {key: known[key] for key in _SAID if key in known}
    merged = change.person_id != change.person.id
    return {
        "fullUrl": f"{current().settings.fhir_base}/Patient/{change.person_id}",
        "resource": replaced(said, change.person_id) if merged else said,
        "request": {"method": "PUT", "url": f"Patient/{change.person_id}"},
        "response": {"status": "200", "lastModified": instant(change.at)},
    }
