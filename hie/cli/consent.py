"""`hie consent explain`: what a caller would be given of a person, and why (CONSENT.md section 7)."""

from __future__ import annotations

import click
import orjson

from hie.cli.consent_codes import codes
from hie.cli.consent_replay import what_if
from hie.cli.officer import exchange, officer
from hie.core.errors import BadRequest
from hie.core.fhir import CLINICAL_TYPES
from hie.core.ids import new_id
from hie.core.purposes import KNOWN
from hie.gateway.api.decide import answer_of, provision_of
from hie.gateway.preview import Because, Preview, SourcePreview, somebody
from hie.gateway.trace import consent_event


@click.group()
def consent() -> None:
    """What may be released, and why."""


consent.add_command(codes)
consent.add_command(what_if)


@consent.command()
@click.option("--person", required=True, help="The exchange's id of the person.")
@click.option("--caller", "named", required=True, help="A member's id, or a user's e-mail.")
@click.option("--purpose", "purposes", required=True, multiple=True, help="TREAT, HPAYMT …; BTG breaks the glass.")
@click.option("--type", "types", multiple=True, help="Resource types; all where none is given.")
@click.option("--json", "as_json", is_flag=True, help="Print as FHIR Parameters, as $decide answers.")
def explain(person: str, named: str, purposes: tuple[str, ...], types: tuple[str, ...], as_json: bool) -> None:
    """Ask the members, decide, and say what would be released to CALLER, what not, and by which rule.

    For privacy officers. Nothing is released by it, and the question is written to the disclosure log.
    """
    _check(purposes, types)
    with exchange() as services:
        preview = services.release.preview(
            officer(),
            person,
            somebody(
                services.directory,
                named,
                [p for p in purposes if p != "BTG"] or ["TREAT"],
                break_glass="BTG" in purposes,
            ),
            types or CLINICAL_TYPES,
            query=f"hie consent explain --caller {named}",
            request_id=new_id(),
        )
    click.echo(orjson.dumps(answer_of(preview), option=orjson.OPT_INDENT_2) if as_json else "\n".join(_told(preview)))


@consent.command("without-effect")
@click.option("--most", default=100, show_default=True)
def without_effect(most: int) -> None:
    """Active consents that say neither permit nor deny, or about what: each is work for the privacy officer."""
    with exchange() as services:
        for stored in services.consents.without_effect(most):
            services.audit.record(
                consent_event(
                    officer(),
                    "E",
                    "shown",
                    stored.person_id,
                    [stored],
                    query="hie consent without-effect",
                    request_id=new_id(),
                )
            )
            click.echo(f"{stored.reference} Patient/{stored.person_id}, filed by {stored.author_organization}")
            for sentence in stored.warnings:
                click.echo(f"  {sentence}")


def _check(purposes: tuple[str, ...], types: tuple[str, ...]) -> None:
    for purpose in purposes:
        if purpose not in KNOWN:
            raise BadRequest(f"--purpose must be one of {', '.join(sorted(KNOWN))}.")
    for kind in types:
        if kind not in CLINICAL_TYPES:
            raise BadRequest(f"--type must be one of {', '.join(CLINICAL_TYPES)}.")


def _told(preview: Preview) -> list[str]:
    verdict = {"permit": "everything", "deny": "nothing", "partial": "a part"}[preview.verdict]
    lines = [f"Patient/{preview.person_id}: {verdict} would be released"]
    for source in preview.sources:
        lines += _source(source)
    return lines


def _source(source: SourcePreview) -> list[str]:
    name = f"{source.member_name} ({source.member_id})"
    if not source.asked:
        return [f"{name}: would not be asked; nothing that it holds could be released"]
    status = "" if source.status == "ok" else f"; it did not answer in full ({source.status})"
    lines = [f"{name}: {source.released} released, {source.withheld} withheld{status}"]
    for one in source.types:
        lines.append(f"  {one.type}: {one.released} released, {one.withheld} withheld")
        lines += [f"    {_because(reason)}" for reason in one.reasons]
    return lines


def _because(reason: Because) -> str:
    what = "released" if reason.permit else "withheld"
    by = f", {reason.consent} {provision_of(reason.path)}" if reason.consent else ""
    return f"{reason.count} {what} by {reason.rule}: {reason.reason}{by}"
