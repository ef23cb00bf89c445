"""Every error the exchange tells a caller about.

Each carries the HTTP status, the FHIR issue code (R4 value set issue-type) and a sentence for its reader. Raised where
known, rendered in one place (`hie.gateway.api.problems` for machines, `hie.console` for people). The sentence never
holds patient data, secrets or another system's error text (contract law L10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class HieError(Exception):
    """Base of all errors with a sentence for the reader."""

    status = 500
    code = "exception"
    audited = False
    """Whether the refusal is in the disclosure log already."""
    issues: Sequence[Mapping[str, Any]] = ()
    """Further OperationOutcome issues that go with the first."""

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status


class BadRequest(HieError):
    """The request is malformed or asks for something that has no meaning."""

    status = 400
    code = "invalid"


class Unauthorized(HieError):
    """No token, or one that is not valid (RFC 6750: 401 with `WWW-Authenticate`)."""

    status = 401
    code = "login"


class Forbidden(HieError):
    """The caller is known and may not do this."""

    status = 403
    code = "forbidden"


class NotFound(HieError):
    """Nothing is here that this caller may know of."""

    status = 404
    code = "not-found"


class NotAcceptable(HieError):
    """The format asked for cannot be produced."""

    status = 406
    code = "not-supported"


class Conflict(HieError):
    """The state of the resource does not allow it."""

    status = 409
    code = "conflict"


class PreconditionFailed(HieError):
    """A conditional request matched more than one resource, or a version that is not current."""

    status = 412
    code = "conflict"


class TooLarge(HieError):
    """The body is larger than the exchange reads."""

    status = 413
    code = "too-long"


class UnsupportedMediaType(HieError):
    """The body's content type is not one the route reads."""

    status = 415
    code = "not-supported"


class Unprocessable(HieError):
    """The body is well-formed and breaks a rule of its profile."""

    status = 422
    code = "invariant"


class ServiceUnavailable(HieError):
    """The exchange cannot answer safely now; a later try may succeed."""

    status = 503
    code = "transient"


class AuditUnavailable(ServiceUnavailable):
    """The audit entry could not be made durable, so nothing may be released (law L1)."""

    def __init__(self) -> None:
        super().__init__("The disclosure could not be recorded, so nothing was released. Try again shortly.")


class LogDamaged(AuditUnavailable):
    """The stored log is not the one that was signed: nothing is released, and nothing signed over it.

    `reason` is for the operator; a caller gets the sentence of AuditUnavailable.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class ConfigurationError(HieError):
    """A setting stops start-up; the message is one line that says what to change."""


class OAuthError(HieError):
    """An error of the token endpoint (RFC 6749 section 5.2): `error` is the registered code."""

    def __init__(self, error: str, message: str, *, status: int = 400) -> None:
        super().__init__(message, status=status)
        self.error = error
