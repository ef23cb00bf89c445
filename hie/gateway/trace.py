"""The decision trace of an audit entry: what decided, under which version of which consent, how often (pure).

A consent stands with its SHA-256, so that the entry proves which text decided, whatever becomes of the consent store:
it is the digest of what `GET /fhir/Consent/<id>/_history/<version>` answers. A member that was not asked, since nothing
that it holds could be released, is there with every consent that governs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from hie.audit.event import Released
from hie.consent.policy import Decision, PersonPolicy, Request, could_release
from hie.consent.service import StoredConsent

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


def consent_shown(stored: StoredConsent) -> Released:
    """A version of a consent that was filed, or given out, for the manifest."""
    return Released("Consent", f"{stored.id}/_history/{stored.version}", stored.sha256, ())


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
