"""The exchange's signing key: one, kept private, made once however many start together."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from hie.core.errors import ConfigurationError
from hie.gateway.keys import FILE_NAME, public_jwks, signing_key


def test_the_key_is_made_once_and_kept(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = signing_key(home)
    assert first.as_dict(private=True) == signing_key(home).as_dict(private=True)
    assert stat.S_IMODE((home / FILE_NAME).stat().st_mode) == 0o600
    assert os.listdir(home) == [FILE_NAME]


def test_many_that_start_together_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        kids = {key.kid for key in pool.map(signing_key, [tmp_path] * 32)}
    assert len(kids) == 1
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_the_public_set_verifies_and_holds_no_secret(tmp_path: Path) -> None:
    (public,) = public_jwks(tmp_path)["keys"]
    assert "d" not in public
    assert (public["kty"], public["crv"], public["alg"], public["use"]) == ("EC", "P-384", "ES384", "sig")
    key = signing_key(tmp_path)
    assert public["kid"] == key.thumbprint()
    token = jwt.encode({"alg": "ES384"}, {"iss": "x"}, key, algorithms=["ES384"])
    assert jwt.decode(token, ECKey.import_key(public), algorithms=["ES384"]).claims == {"iss": "x"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"kty": "RSA"}', b"7"])
def test_a_damaged_key_stops_with_a_sentence(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(body)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="not a signing key"):
        signing_key(tmp_path)


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    signing_key(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        signing_key(tmp_path)
