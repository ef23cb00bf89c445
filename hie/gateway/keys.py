"""The exchange's own signing key, with which it authenticates to members (SMART Backend Services, RFC 7523).

One P-384 key for ES384 in `HIE_HOME`, made on first use and readable by its owner alone. Members register the public
half (`public_jwks`). The key id is the RFC 7638 thumbprint.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import orjson
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from hie.core.errors import ConfigurationError
from hie.core.files import create_once

FILE_NAME = "exchange-signing-key.json"
ALGORITHM = "ES384"


def signing_key(home: Path) -> ECKey:
    """The private key; made atomically when absent, so that processes that start together agree on one."""
    path = home / FILE_NAME
    if not path.exists():
        _make(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"{path} can be read by others; run: chmod 600 {path}")
    try:
        return ECKey.import_key(orjson.loads(path.read_bytes()))
    except (orjson.JSONDecodeError, JoseError, ValueError, TypeError, KeyError):
        raise ConfigurationError(f"{path} is not a signing key; restore it from a backup") from None


def public_jwks(home: Path) -> dict[str, Any]:
    """The key set (RFC 7517) to publish and to register with members."""
    return {"keys": [signing_key(home).as_dict(private=False)]}


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ECKey.generate_key("P-384", parameters={"use": "sig", "alg": ALGORITHM})
    create_once(path, orjson.dumps({**key.as_dict(private=True), "kid": key.thumbprint()}))
