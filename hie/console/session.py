"""Console sessions: one cookie, encrypted, that lapses when idle.

Flask's own cookie is signed but readable. This one holds what a physician searched for and why the glass was broken, so
it is sealed (Fernet: AES-128-CBC and HMAC-SHA256) and a browser's disk holds no patient data in the clear. Every worker
derives the same key from `Services.secret`. There is no server-side state: signing out drops the cookie, and removing a
user from the directory ends that user's sessions at the next request.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography.fernet import Fernet, InvalidToken
from flask import Flask, Request, Response, request
from flask.sessions import SecureCookieSession, SessionInterface

from hie.console.problems import STATIC_PATH, is_machine_path

IDLE_LIMIT = timedelta(minutes=30)
ABSOLUTE_LIMIT = timedelta(hours=12)


class SealedSessions(SessionInterface):
    """Opens and saves the session of the console's pages; every other route has an empty one and sets no cookie."""

    def __init__(self, secret: bytes, clock: Callable[[], datetime]) -> None:
        key = hmac.digest(secret, b"hie console session", hashlib.sha256)
        self._fernet = Fernet(base64.urlsafe_b64encode(key))
        self._clock = clock

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession:
        sealed = request.cookies.get(self.get_cookie_name(app))
        if not sealed or not _has_session(request):
            return SecureCookieSession()
        return SecureCookieSession(self._unseal(sealed))

    def save_session(self, app: Flask, session: object, response: Response) -> None:
        if not isinstance(session, SecureCookieSession) or not _has_session(request):
            return
        response.vary.add("Cookie")
        name, path = self.get_cookie_name(app), self.get_cookie_path(app)
        secure = self.get_cookie_secure(app)
        if session:  # written anew with each answer, which is what makes the limit one of idleness
            response.set_cookie(
                name, self._seal(dict(session)), path=path, secure=secure, httponly=True, samesite="Lax"
            )
        elif session.modified:
            response.delete_cookie(name, path=path, secure=secure, httponly=True, samesite="Lax")

    def _seal(self, content: dict[str, object]) -> str:
        raw = zlib.compress(json.dumps(content, ensure_ascii=False).encode())
        return self._fernet.encrypt_at_time(raw, self._now()).decode()

    def _unseal(self, sealed: str) -> dict[str, object]:
        """Empty when the cookie is not ours, was changed, or is older than the idle limit."""
        try:
            raw = self._fernet.decrypt_at_time(sealed.encode(), int(IDLE_LIMIT.total_seconds()), self._now())
        except InvalidToken:
            return {}
        content: dict[str, object] = json.loads(zlib.decompress(raw))
        return content

    def _now(self) -> int:
        return int(self._clock().timestamp())


def _has_session(request: Request) -> bool:
    return not is_machine_path(request.path) and not request.path.startswith(STATIC_PATH)
