"""For the operator: `/healthz` (the process lives), `/readyz` (it can serve), `/metrics` (Prometheus text format)."""

from __future__ import annotations

import logging
import os
import time

import sqlalchemy as sa
from flask import Blueprint, Flask, Response, g, request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    multiprocess,
)

from hie.core import fhir, schema
from hie.core.errors import ConfigurationError, LogDamaged
from hie.gateway.services import current

blueprint = Blueprint("health", __name__)
log = logging.getLogger("hie")

_REQUESTS = Counter("hie_requests_total", "Requests answered", ["method", "route", "status"])
_SECONDS = Histogram(
    "hie_request_seconds",
    "Seconds until the answer was ready",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def install(app: Flask) -> None:
    """Measure every request; the route's pattern is the label, never the address."""

    @app.before_request
    def _start() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def _count(response: Response) -> Response:
        route = str(request.url_rule or "none")
        method = request.method if request.url_rule else "any"
        _REQUESTS.labels(method, route, response.status_code).inc()
        if "started" in g:
            _SECONDS.labels(route).observe(time.perf_counter() - g.started)
        return response


@blueprint.get("/healthz")
def healthz() -> Response:
    """200 while the process runs."""
    return _json({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """200 when the database answers, its schema is current and the log sound; else 503 with the reason."""
    reason = _reason_not_to_serve()
    return _json({"status": "not ready", "reason": reason}, 503) if reason else _json({"status": "ready"})


def _reason_not_to_serve() -> str | None:
    try:
        if not schema.is_current(current().database):
            return "the schema is behind: run `hie db upgrade`"
        current().audit.check()
    except sa.exc.SQLAlchemyError:
        return "the database does not answer"
    except LogDamaged as damaged:
        log.error("log damaged", extra={"reason": damaged.reason})
        return "the disclosure log is not the one that was signed: see the server's log"
    except ConfigurationError as missing:
        log.error("log key", extra={"reason": missing.message})
        return "the disclosure log's key cannot be used: see the server's log"
    return None


@blueprint.get("/metrics")
def metrics() -> Response:
    """Over all workers where `hie serve` runs several."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _json(body: dict[str, str], status: int = 200) -> Response:
    return Response(fhir.to_bytes(body), status, content_type="application/json")
