"""The token endpoint's rules and the check of the tokens it gives: SMART Backend Services (client credentials with
`private_key_jwt`, RFC 7523) with the `hl7-b2b` context. Access tokens follow RFC 9068, signed with a key that all
workers share, and live five minutes; what a client has lost since then is not in the caller that a token yields.

Every token issued and every attempt refused is in the disclosure log before the answer leaves (contract law L1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, NoReturn

import sqlalchemy as sa
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from joserfc.jws import JWSRegistry
from sqlalchemy.dialects import postgresql, sqlite

from hie.audit.event import Event, Kind, Outcome
from hie.audit.log import AuditLog
from hie.core.caller import EXCHANGE, Caller, Role
from hie.core.clock import Clock
from hie.core.config import Settings
from hie.core.database import Database
from hie.core.errors import OAuthError, Unauthorized
from hie.core.ids import new_id
from hie.core.scopes import Scope, Scopes
from hie.gateway import assertion, keysets
from hie.gateway.assertion import Assertion, Context, client_error, grant_error
from hie.gateway.directory import EXCHANGE_NAME, Client, Directory
from hie.gateway.guard import SafeSession
from hie.gateway.keysets import Key, KeySets, KeySetUnavailable
from hie.gateway.tables_directory import client_assertions

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
TOKEN_SECONDS = 300

EXCHANGE_PURPOSES: dict[Role, frozenset[str]] = {
    Role.CLINICIAN: frozenset({"TREAT", "ETREAT"}),
    Role.MEMBER_ADMIN: frozenset({"HOPERAT"}),
    Role.DATA_STEWARD: frozenset({"HOPERAT"}),
    Role.PRIVACY_OFFICER: frozenset({"HOPERAT"}),
    Role.PAYER: frozenset({"HPAYMT"}),
    Role.PATIENT: frozenset({"PATRQT"}),
    Role.OPERATOR: frozenset({"HOPERAT", "PUBHLTH"}),
}
"""What the exchange's own clients hold. None breaks the glass: that takes a member's clinician."""

_ALGORITHM = "HS256"
_TYPE = "at+jwt"
_MAX_SCOPE_CHARS = 1500
_MAX_TOKEN_CHARS = 8000
_PURGE_EVERY = timedelta(minutes=10)
_NOT_VALID = "The access token is not valid here; ask the token endpoint for a new one."


class Authority:
    """Issues access tokens and tells who bears one. Safe to share between threads."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        settings: Settings,
        directory: Directory,
        audit: AuditLog,
        key: Callable[[], bytes],
    ) -> None:
        """`key` gives the 32 bytes that sign access tokens, the same in all workers."""
        self._database = database
        self._clock = clock
        self._issuer = settings.base_url
        self._fhir_base = settings.fhir_base
        self._directory = directory
        self._audit = audit
        self._key = key
        self._key_sets = KeySets(SafeSession(development=settings.development), clock)
        self._purge_at: datetime | None = None

    @property
    def token_url(self) -> str:
        """Address of the token endpoint, which assertions must name as their audience."""
        return f"{self._issuer}/oauth2/token"

    # -- the token endpoint

    def issue(self, form: Mapping[str, str], address: str, request_id: str) -> dict[str, Any]:
        """The token response (RFC 6749 section 5.1). Raises OAuthError, and AuditUnavailable where the log is shut."""
        claimed: Assertion | None = None
        try:
            claimed = assertion.read(_assertion_in(form))
            client = self._authenticate(claimed, form)
            context = assertion.check_context(claimed.claims, self._organization_url(client), self._held(client))
            _refuse_role(client, context)
            caller = self._caller(client, context, _granted(form, client), new_id(), address)
            if client.role is Role.PATIENT and context.subject_id and caller.user_id is None:
                raise grant_error("hl7-b2b.subject_id must be mailto: and the e-mail address of a patient's account.")
        except OAuthError as refused:
            self._record_refusal(refused, claimed, address, request_id)
        token = self._sign(caller)
        self._record_token(caller, request_id)
        return {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": TOKEN_SECONDS,
            "scope": str(caller.scopes),
        }

    def _authenticate(self, claimed: Assertion, form: Mapping[str, str]) -> Client:
        """The client that signed the assertion, which is used up by that."""
        client = self._directory.client(claimed.issuer) if claimed.issuer else None
        if client is None:
            raise client_error("iss of the assertion is not the id of a registered client.")
        if form.get("client_id", client.id) != client.id:
            raise client_error("client_id of the request is not the assertion's.")
        algorithm, kid = assertion.check_header(claimed.header, client.jwks_uri)
        _verify(form["client_assertion"], self._public_key(client, kid, algorithm), algorithm)
        now = self._clock()
        jti, expires = assertion.check_claims(claimed.claims, client.id, self.token_url, now)
        self._use_up(client.id, jti, expires, now)
        return client

    def _public_key(self, client: Client, kid: str, algorithm: str) -> Key:
        try:
            if client.jwks_uri:
                key = self._key_sets.select(client.jwks_uri, kid, algorithm)
            else:
                key = keysets.select(client.jwks or {}, kid, algorithm)
        except KeySetUnavailable as unavailable:
            raise client_error(str(unavailable)) from None
        if key is None:
            raise client_error("No single registered key has the assertion's kid and suits its alg.")
        return key

    def _use_up(self, client_id: str, jti: str, expires: datetime, now: datetime) -> None:
        """The table's key refuses the second use, whichever worker sees it."""
        insert = sqlite.insert if self._database.is_sqlite else postgresql.insert
        row = {"client_id": client_id, "jti": jti, "expires": expires + timedelta(seconds=assertion.LEEWAY_SECONDS)}
        with self._database.write() as connection:
            if self._purge_at is None or now >= self._purge_at:
                connection.execute(sa.delete(client_assertions).where(client_assertions.c.expires <= now))
                self._purge_at = now + _PURGE_EVERY
            once = insert(client_assertions).values(**row).on_conflict_do_nothing().returning(client_assertions.c.jti)
            first_use = connection.execute(once).first() is not None
        if not first_use:
            raise client_error("This assertion was used before (jti); make a new one for every request.")

    # -- the bearer

    def caller(self, authorization: str, *, address: str) -> Caller:
        """Who bears the token of an Authorization header, with no more than the client holds now.

        Raises Unauthorized.
        """
        claims = self._verified(_bearer(authorization))
        client = self._directory.client(claims["sub"])
        if client is None or (client.organization, client.role) != (claims["organization"], claims["role"]):
            raise Unauthorized("The client of this access token is not registered as it was; ask for a new token.")
        purposes = frozenset(claims["purposes"]) & self._held(client)
        if not purposes:
            raise Unauthorized("The client no longer holds the purpose of use of this access token.")
        context = Context(
            purposes=purposes,
            subject_name=claims.get("subject_name"),
            subject_id=claims.get("subject_id"),
            subject_role=claims.get("subject_role"),
            break_glass_reason=claims.get("break_glass_reason") if "BTG" in purposes else None,
        )
        scopes = _within(Scopes.parse(claims["scope"]), client.scopes)
        return self._caller(client, context, scopes, claims["jti"], address)

    def _verified(self, token: str) -> dict[str, Any]:
        try:
            decoded = jwt.decode(token, OctKey.import_key(self._key()), algorithms=[_ALGORITHM])
        except (JoseError, ValueError, TypeError, RecursionError):
            raise Unauthorized(_NOT_VALID) from None
        claims = decoded.claims
        mine = (_TYPE, self._issuer, self._fhir_base)
        if (decoded.header.get("typ"), claims.get("iss"), claims.get("aud")) != mine:
            raise Unauthorized(_NOT_VALID)
        if claims["exp"] <= self._clock().timestamp():
            raise Unauthorized("The access token has expired; ask the token endpoint for a new one.")
        return claims

    def _sign(self, caller: Caller) -> str:
        now = int(self._clock().timestamp())
        claims = {
            "iss": self._issuer,
            "sub": caller.client_id,
            "client_id": caller.client_id,
            "aud": self._fhir_base,
            "exp": now + TOKEN_SECONDS,
            "iat": now,
            "jti": caller.session,
            "scope": str(caller.scopes),
            "organization": caller.organization,
            "role": caller.role.value,
            "purposes": sorted(caller.purposes),
            "subject_name": caller.subject_name,
            "subject_id": caller.subject_id,
            "subject_role": caller.subject_role,
            "break_glass_reason": caller.break_glass_reason,
        }
        given = {name: value for name, value in claims.items() if value is not None}
        key = OctKey.import_key(self._key())
        return jwt.encode({"alg": _ALGORITHM, "typ": _TYPE}, given, key, algorithms=[_ALGORITHM])

    # -- what a client may be

    def _caller(self, client: Client, context: Context, scopes: Scopes, session: str, address: str) -> Caller:
        member = self._directory.member(client.member_id) if client.member_id else None
        return Caller(
            organization=client.organization,
            organization_name=member.name if member else EXCHANGE_NAME,
            role=client.role,
            purposes=context.purposes,
            scopes=scopes,
            session=session,
            client_id=client.id,
            user_id=self._patient_account(client, context),
            subject_name=context.subject_name,
            subject_id=context.subject_id,
            subject_role=context.subject_role,
            break_glass_reason=context.break_glass_reason,
            address=address,
        )

    def _patient_account(self, client: Client, context: Context) -> str | None:
        """Whom a patients' app of the exchange has signed in and acts for. Others' users have no account here."""
        scheme, _, email = (context.subject_id or "").partition(":")
        if client.role is not Role.PATIENT or scheme.lower() != "mailto":
            return None
        user = self._directory.user(email.lower())
        return user.email if user is not None and user.role is Role.PATIENT else None

    def _held(self, client: Client) -> frozenset[str]:
        """Purposes of use that the client's member, or its role at the exchange, holds now."""
        if client.member_id is None:
            return EXCHANGE_PURPOSES.get(client.role, frozenset())
        member = self._directory.member(client.member_id)
        return member.purposes if member else frozenset()

    def _organization_url(self, client: Client) -> str:
        return f"{self._fhir_base}/Organization/{client.member_id or EXCHANGE}"

    # -- the log

    def _record_token(self, caller: Caller, request_id: str) -> None:
        broken = "; break-glass declared" if caller.break_glass else ""
        self._audit.record(
            Event(
                kind=Kind.SIGN_IN,
                outcome=Outcome.SUCCESS,
                action="E",
                caller=caller,
                person_id=None,
                query=f"POST /oauth2/token scope={caller.scopes}",
                request_id=request_id,
                description=f"access token issued{broken}",
                address=caller.address,
            )
        )

    def _record_refusal(
        self, refused: OAuthError, claimed: Assertion | None, address: str, request_id: str
    ) -> NoReturn:
        self._audit.record(
            Event(
                kind=Kind.SIGN_IN,
                outcome=Outcome.MINOR,
                action="E",
                caller=None,
                person_id=None,
                query="POST /oauth2/token",
                request_id=request_id,
                description=f"access token refused, {refused.error}: {refused.message}",
                client_id=claimed.issuer if claimed else None,
                address=address,
            )
        )
        refused.audited = True
        raise refused


def _assertion_in(form: Mapping[str, str]) -> str:
    """The client assertion of a well-formed request (RFC 6749 section 4.4.2, RFC 7523 section 2.2)."""
    grant = form.get("grant_type")
    if not grant:
        raise OAuthError("invalid_request", "grant_type is missing; it must be client_credentials.")
    if grant != "client_credentials":
        raise OAuthError("unsupported_grant_type", "grant_type must be client_credentials.")
    if form.get("client_assertion_type") != ASSERTION_TYPE:
        raise OAuthError("invalid_request", f"client_assertion_type must be {ASSERTION_TYPE}.")
    if not form.get("client_assertion"):
        raise OAuthError("invalid_request", "client_assertion is missing; it must be a signed JWT.")
    return form["client_assertion"]


def _verify(text: str, key: Key, algorithm: str) -> None:
    try:
        # The header was checked already; parameters that JWS does not know are ignored (RFC 7515 section 4).
        jwt.decode(text, key, registry=_LenientHeader(algorithms=[algorithm], strict_check_header=False))
    except (JoseError, ValueError, TypeError):
        raise client_error("The assertion's signature does not fit the registered key.") from None


class _LenientHeader(JWSRegistry):
    max_header_length = 8192
    """Some clients send their certificates along (x5c); they are not looked at."""


def _refuse_role(client: Client, context: Context) -> None:
    if "BTG" in context.purposes and client.role is not Role.MEMBER:
        raise OAuthError("unauthorized_client", "Only a care provider's system may break the glass.")


def _granted(form: Mapping[str, str], client: Client) -> Scopes:
    """What is asked for, all of which the client must hold (RFC 6749 section 5.2 invalid_scope)."""
    asked = form.get("scope", "")
    if not asked.strip() or len(asked) > _MAX_SCOPE_CHARS:
        raise OAuthError("invalid_scope", f"scope is missing, or longer than {_MAX_SCOPE_CHARS} characters.")
    try:
        scopes = Scopes.parse(asked)
    except ValueError:
        raise OAuthError(
            "invalid_scope", "A scope is not understood: use system/<type>.<actions>, the actions in the order cruds."
        ) from None
    for scope in scopes.items:
        if not client.scopes.covers(scope):
            raise OAuthError("invalid_scope", f"The client does not hold {scope}; it holds: {client.scopes}.")
    return Scopes(tuple(dict.fromkeys(scopes.items)))


def _within(granted: Scopes, held: Scopes) -> Scopes:
    """The part of granted scopes that is held."""
    narrowed = (
        Scope(g.type if h.type == "*" else h.type, g.actions & h.actions)
        for g in granted.items
        for h in held.items
        if g.type == h.type or "*" in (g.type, h.type)
    )
    return Scopes(tuple(dict.fromkeys(scope for scope in narrowed if scope.actions)))


def _bearer(authorization: str) -> str:
    """The token of an Authorization header (RFC 6750 section 2.1)."""
    if not authorization:
        raise Unauthorized("An access token is needed: Authorization: Bearer <token>.")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip() or len(token) > _MAX_TOKEN_CHARS:
        raise Unauthorized("The Authorization header must be: Bearer <token>.")
    return token.strip()
