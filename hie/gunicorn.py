"""gunicorn's settings beyond what `hie serve` passes: quiet logs without addresses, metrics of dead workers."""

from __future__ import annotations

from typing import Any

from prometheus_client import multiprocess

loglevel = "warning"
accesslog = None
"""None: an access log would hold patients' identifiers in addresses (contract law L10)."""
graceful_timeout = 20
timeout = 60
keepalive = 30
worker_tmp_dir = "/dev/shm"  # noqa: S108  (the heartbeat file must not wait for a slow disk)


def child_exit(_server: Any, worker: Any) -> None:
    """Forget the live gauges of a worker that ended."""
    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
