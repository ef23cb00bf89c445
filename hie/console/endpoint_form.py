"""The endpoint form of a member: what was typed -> an `Endpoint`, or a sentence at the field. Pure.

Secrets are write-only: the page never shows one, and an empty field keeps the stored one, but only while the server
stays where it is. Whoever moves the endpoint to another host must give the secret anew, or a stolen session could have
the exchange send a stored secret to a server of the thief's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from hie.core.errors import BadRequest
from hie.gateway.directory import Auth, Endpoint
from hie.gateway.guard import check_link, check_url

AUTH_TYPES = {
    "none": "None: the server is open to the exchange",
    "basic": "Basic: user name and password",
    "bearer": "Bearer: a fixed token",
    "oauth2": "OAuth 2: SMART Backend Services, signed with the exchange's own key",
}
_LONGEST = 2048
_GIVE_ANEW = "Give this. It is needed again whenever the server's host or the way of signing in changes."


@dataclass(frozen=True)
class EndpointForm:
    """The form as typed."""

    url: str = ""
    type: str = "none"
    username: str = ""
    password: str = ""
    token: str = ""
    client_id: str = ""
    token_url: str = ""
    scope: str = ""

    @classmethod
    def of(cls, form: Mapping[str, str]) -> EndpointForm:
        def field(name: str) -> str:
            return form.get(name, "").strip()[: _LONGEST + 1]

        return cls(
            url=field("url"),
            type=field("type") or "none",
            username=field("username"),
            password=form.get("password", "")[: _LONGEST + 1],
            token=field("token"),
            client_id=field("client_id"),
            token_url=field("token_url"),
            scope=field("scope"),
        )

    @classmethod
    def showing(cls, endpoint: Endpoint | None) -> EndpointForm:
        """What stands now, without its secrets."""
        if endpoint is None:
            return cls()
        auth = endpoint.auth
        return cls(
            url=endpoint.url,
            type=auth.type,
            username=auth.username or "",
            client_id=auth.client_id or "",
            token_url=auth.token_url or "",
            scope=auth.scope or "",
        )


def read(form: EndpointForm, standing: Endpoint | None, *, development: bool) -> tuple[Endpoint | None, dict[str, str]]:
    """(endpoint, {}) or (None, field -> sentence that says what to do)."""
    found: dict[str, str] = {}
    url = _address(form.url, lambda text: check_url(text, development=development), "url", found)
    stays = standing is not None and ("url" in found or urlsplit(url)[:2] == urlsplit(standing.url)[:2])
    kept = standing.auth if standing is not None and stays else None
    auth = _auth(form, kept, development, found)
    if any(len(value) > _LONGEST for value in vars(form).values()):
        found["url"] = f"A field is longer than {_LONGEST} characters."
    return (None, found) if found or auth is None else (Endpoint(url, auth), {})


def _auth(form: EndpointForm, kept: Auth | None, development: bool, found: dict[str, str]) -> Auth | None:
    if form.type == "none":
        return Auth("none")
    if form.type == "basic":
        if not form.username:
            found["username"] = "Give the user name that the exchange signs in with."
        password = form.password or (kept.password if kept and kept.type == "basic" else None)
        if not password:
            found["password"] = _GIVE_ANEW
        return Auth("basic", username=form.username, password=password)
    if form.type == "bearer":
        token = form.token or (kept.token if kept and kept.type == "bearer" else None)
        if not token:
            found["token"] = _GIVE_ANEW
        return Auth("bearer", token=token)
    if form.type == "oauth2":
        if not form.client_id:
            found["client_id"] = "Give the client id that your token server knows the exchange by."
        token_url = _address(form.token_url, lambda text: check_link(text, development=development), "token_url", found)
        return Auth("oauth2", client_id=form.client_id, token_url=token_url, scope=form.scope or None)
    found["type"] = "Choose how the exchange signs in."
    return None


def _address(text: str, check: Callable[[str], str], field: str, found: dict[str, str]) -> str:
    if not text:
        found[field] = "Give the address, starting with https://."
        return ""
    try:
        return check(text)
    except BadRequest as refused:
        found[field] = refused.message
        return ""
