"""The decision trace of an audit entry: what decided, under which version of which consent, how often (pure).

A consent stands with its SHA-256, so that the entry proves which text decided, whatever becomes of the consent store:
it is the digest of what `GET /fhir/Consent/<id>/_history/<version>` answers. A member that was not asked, since nothing
that it holds could be released, is there with every consent that governs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from hie.audit.event import Event, Kind, Outcome, Released
from hie.consent.policy import Decision, PersonPolicy, Request, could_release
from hie.consent.service import StoredConsent
from hie.core.caller import Caller

Step = dict[str, object]


def decided(decisions: Sequence[Decision], policy: PersonPolicy) -> tuple[Step, ...]:
    """The distinct decisions with how many resources each decided."""
    counted = Counter((d.permit, d.rule, d.consent, d.path, d.break_glass, d.reason, d.obligations) for d in decisions)
    return tuple(
        {
            "permit": permit,
            "rule": rule,
            **_consent(consent, policy),
            "path": list(path),
            "breakGlass": broke,
            "reason": reason,
            **({"obligations": list(obligations)} if obligations else {}),
            "count": count,
        }
        for (permit, rule, consent, path, broke, reason, obligations), count in counted.items()
    )


def not_asked(member_ids: Iterable[str], policy: PersonPolicy, request: Request) -> tuple[Step, ...]:
    """Of these members, those of which nothing could be released."""
    closed = [m for m in dict.fromkeys(member_ids) if not could_release(policy, request, m)]
    return tuple(step for member_id in closed for step in _closed(member_id, policy, request))


def consent_event(
    caller: Caller,
    action: str,
    described: str,
    person_id: str | None,
    consents: Sequence[StoredConsent],
    *,
    query: str,
    request_id: str,
) -> Event:
    """Versions of consents that were filed, changed or shown, each with its digest in the manifest."""
    return Event(
        kind=Kind.CONSENT,
        outcome=Outcome.SUCCESS,
        action=action,
        caller=caller,
        person_id=person_id,
        description=f"Consent {described}",
        released=tuple(Released("Consent", f"{c.id}/_history/{c.version}", c.sha256, ()) for c in consents),
        entities=tuple(stored.reference for stored in consents),
        query=query,
        request_id=request_id,
    )


def _closed(member_id: str, policy: PersonPolicy, request: Request) -> Iterator[Step]:
    governing = {c.reference for p in (policy, *policy.stricter) for c in p.governing(member_id, request.now)}
    references: list[str | None] = [*sorted(governing)] or [None]
    for reference in references:
        yield {
            "permit": False,
            "rule": "not-asked",
            **_consent(reference, policy),
            "custodian": member_id,
            "reason": "nothing that this organization holds could be released",
        }


def _consent(reference: str | None, policy: PersonPolicy) -> Step:
    digest = policy.digests.get(reference) if reference else None
    return {"consent": reference, **({"consentSha256": digest} if digest else {})}
