"""The exchange's master key: 32 random bytes in `HIE_HOME/master.key` (0600), shared by all workers of a host.

Keys for single uses (access tokens, gateway ids, paging cursors, console sessions) are derived from it with HKDF
(RFC 5869), so that none of them tells anything of another. Several hosts that serve one database need the same file:
with another key, gateway ids that were given out before no longer read.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hie.core.errors import ConfigurationError
from hie.core.files import create_once

FILE = "master.key"


class MasterKey:
    """Derives the keys of single uses."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def load(cls, home: Path) -> MasterKey:
        """Read the key in `home`, or make it; two processes at once end with the same one."""
        path = home / FILE
        if not path.exists():
            create_once(path, secrets.token_hex(32).encode())
        try:
            secret = bytes.fromhex(path.read_text().strip())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read as a key: {type(error).__name__}.") from None
        if len(secret) != 32:
            raise ConfigurationError(f"{path} must hold 64 hexadecimal digits.")
        return cls(secret)

    def derive(self, use: str) -> bytes:
        """The 32-byte key of one use."""
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=use.encode()).derive(self._secret)
