"""The composition root: settings -> database -> services -> blueprints. Nothing else wires things together."""

from __future__ import annotations

import logging

from flask import Flask

from hie.audit.accounting import Accounting
from hie.audit.cosigning import Cosigning, parse_witnesses
from hie.audit.health import Found, LogHealth, Progress
from hie.audit.log import AuditLog
from hie.audit.note import NoteError, encode
from hie.audit.review import Review
from hie.audit.seal import Seal
from hie.audit.statistics import LogStatistics
from hie.audit.thresholds import Thresholds
from hie.audit.verify import Wrong, own_mark, verify
from hie.consent import rules
from hie.consent.codes import FOLDER, CodeSets
from hie.consent.service import ConsentService
from hie.console import console
from hie.core.clock import Clock, system_clock
from hie.core.config import Settings
from hie.core.database import Database, ensure_parent
from hie.core.errors import LogDamaged
from hie.core.fhir import MAX_BODY_BYTES
from hie.core.master_key import MasterKey
from hie.gateway.api import (
    audit,
    care,
    consents,
    context,
    decide,
    directory,
    everything,
    health,
    identity,
    link_changes,
    log,
    matching,
    metadata,
    oauth,
    problems,
    records,
)
from hie.gateway.authority import Authority
from hie.gateway.care import CareService
from hie.gateway.community import ExchangeCommunity
from hie.gateway.directory import Directory
from hie.gateway.gateway_ids import GatewayIds
from hie.gateway.keys import signing_key
from hie.gateway.notices import Notices
from hie.gateway.portal import Portal
from hie.gateway.release import Release
from hie.gateway.services import Services
from hie.gateway.transport import Transport
from hie.mpi.identity import IdentityService
from hie.mpi.index import MatchIndex
from hie.mpi.model import Model
from hie.mpi.stewardship import Stewardship

BLUEPRINTS = (
    health.blueprint,
    metadata.blueprint,
    oauth.blueprint,
    directory.blueprint,
    identity.blueprint,
    matching.blueprint,
    link_changes.blueprint,
    care.blueprint,
    records.blueprint,
    everything.blueprint,
    consents.blueprint,
    decide.blueprint,
    audit.blueprint,
    log.blueprint,
)


def create_app(settings: Settings | None = None, clock: Clock = system_clock) -> Flask:
    """The WSGI application of one process."""
    settings = settings or Settings.load()
    _configure_log()
    app = Flask("hie", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES + 4096
    app.extensions["hie"] = build_services(settings, clock)
    context.install(app)
    health.install(app)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    console.install(app)
    problems.install(app, console.problem_page)
    return app


def build_services(settings: Settings, clock: Clock = system_clock) -> Services:
    """The services of one process; they open no connection and start no thread before they are used."""
    ensure_parent(settings.effective_database_url)
    database = Database(settings.effective_database_url)
    master_key = MasterKey.load(settings.home)
    witnesses = Cosigning(database, parse_witnesses(settings.witnesses), seconds=settings.witness_seconds)
    audit_log = AuditLog(database, clock, settings.fhir_base, Seal.of(settings), on_growth=witnesses.wake)
    members = Directory(database, clock, settings)
    index = MatchIndex(Model.load(settings.match_model), database.is_sqlite)
    identities = IdentityService(database, index, clock)
    consent_service = ConsentService(
        database,
        clock,
        settings.consent_default.value,
        lambda: {m.id: m.consent_default for m in members.members() if m.consent_default},
        lambda: frozenset(m.id for m in members.members() if m.part2),
        rules=rules.load(settings.consent_rules, settings.home),
    )
    codes = CodeSets(settings.value_sets or settings.home / FOLDER)
    key = signing_key(settings.home)  # read now: a damaged key file stops the start with a sentence
    transport = Transport(development=settings.development, signing_key=lambda: key)
    portal = Portal(database, clock, identities)
    notices = Notices(database, clock)
    release = Release(
        fhir_base=settings.fhir_base,
        query_deadline=settings.query_deadline,
        clock=clock,
        directory=members,
        identity=identities,
        consents=consent_service,
        portal=portal,
        notices=notices,
        audit=audit_log,
        transport=transport,
        gateway_ids=GatewayIds(database, master_key.derive("gateway-ids")),
        codes=codes.current,
    )
    return Services(
        settings=settings,
        database=database,
        clock=clock,
        directory=members,
        authority=Authority(database, clock, settings, members, audit_log, lambda: master_key.derive("access-tokens")),
        identity=identities,
        stewardship=Stewardship(database, index, clock),
        consents=consent_service,
        codes=codes,
        audit=audit_log,
        release=release,
        care=CareService(database, clock, settings.fhir_base),
        portal=portal,
        notices=notices,
        accounting=Accounting(
            database,
            clock,
            address_of=lambda member_id: (m.address or "") if (m := members.member(member_id)) else "",
            part2_members=lambda: frozenset(m.id for m in members.members() if m.part2),
        ),
        review=Review(database, clock, audit_log, ExchangeCommunity(database, members), Thresholds.load()),
        statistics=LogStatistics(database),
        health=LogHealth(database, clock, verify=lambda progress: _verify(settings, progress)),
        own_person=lambda email: next(iter(sorted(portal.own_people(email))), None),
        secret=master_key.derive("sessions"),
    )


def _verify(settings: Settings, progress: Progress) -> Found:
    """The whole log, read again for the console's page, in processes beside this one, which goes on serving."""
    try:
        seal = Seal.of(settings)
        ring = seal.ring()
        witnesses = [witness.key for witness in parse_witnesses(settings.witnesses)]
        seen = own_mark(seal, ring)
        url = settings.effective_database_url
        report = verify(url, ring, seen=seen, witnesses=witnesses, progress=progress)
    except Wrong as wrong:
        return Found(False, 0, f"The log does not verify: index {wrong.index}: {wrong.reason}.")
    except (LogDamaged, NoteError) as damage:
        return Found(False, 0, f"The log does not verify: {getattr(damage, 'reason', damage)}.")
    return Found(True, report.entries, f"All {report.entries:,} entries are whole; the root is {encode(report.root)}.")


def _configure_log() -> None:
    """One JSON line an event on stderr. Nothing that is logged holds patient data, addresses or tokens (law L10)."""
    import structlog  # a tenth of a second that only a server needs

    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[structlog.types.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]
    handler = logging.StreamHandler()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=render))
    root = logging.getLogger("hie")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
