"""The composition root: settings -> database -> services -> blueprints. Nothing else wires things together."""

from __future__ import annotations

from flask import Flask

from hie.core.config import Settings
from hie.core.database import Database, ensure_parent


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application of one process."""
    settings = settings or Settings.load()
    ensure_parent(settings.effective_database_url)
    database = Database(settings.effective_database_url)
    app = Flask("hie")
    app.extensions["hie_database"] = database

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app
