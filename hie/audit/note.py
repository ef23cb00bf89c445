"""Signed notes (c2sp.org/signed-note) with Ed25519 keys, and witness cosignatures (c2sp.org/tlog-cosignature), pure.

A note is a text and one or more signature lines. A key is known by its name and a four-byte id, which also says what
kind of signature it makes: 0x01 signs the text itself, 0x04 the text under a header and the time of signing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519 = 0x01
COSIGNATURE = 0x04
MAX_NOTE_BYTES = 1 << 16
MAX_SIGNATURES = 64
_KEY_BYTES = 32
_ID_BYTES = 4
_DASH = "\u2014 "
_PRIVATE = "PRIVATE+KEY+"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_NAME = re.compile(r"[^\s+]+")


class NoteError(Exception):
    """A note, key or signature that is not what it has to be; the text is one line for the reader."""


@dataclass(frozen=True)
class VerifierKey:
    """A public key as others hold it; written `name+id+base64(type || key)`, the "vkey"."""

    name: str
    type: int
    public: bytes
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.public) != _KEY_BYTES:
            raise NoteError("a key needs a name without spaces and plus signs, and 32 bytes")
        if self.type not in (ED25519, COSIGNATURE):
            raise NoteError(f"keys of type {self.type:#04x} are not known here")
        named = f"{self.name}\n".encode() + bytes([self.type]) + self.public
        object.__setattr__(self, "id", hashlib.sha256(named).digest()[:_ID_BYTES])

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """The key of a vkey; raises NoteError unless it is written just as it should be."""
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = decode(encoded)
        key = cls(name, raw[0] if raw else 0, raw[1:])
        if key.id.hex() != key_id:
            raise NoteError("the key's id is not that of its name and bytes")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{encode(bytes([self.type]) + self.public)}"

    def accepts(self, text: str, signature: Signature) -> bool:
        """Whether the signature is this key's over the text. The name and id must be its own already."""
        value = signature.value
        message = text.encode()
        if self.type == COSIGNATURE:
            if len(value) < 8:
                return False
            message, value = _timestamped(text, signature.timestamp), value[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(value, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key; written `PRIVATE+KEY+name+id+base64(type || seed)`."""

    def __init__(self, name: str, seed: bytes, type: int = ED25519) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._seed = seed
        self.verifier = VerifierKey(name, type, self._private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str, type: int = ED25519) -> SigningKey:
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw(), type)

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """Raises NoteError, which never holds anything of the key."""
        name, _, rest = text.removeprefix(_PRIVATE).partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = decode(encoded)
        if not text.startswith(_PRIVATE) or len(raw) != 1 + _KEY_BYTES:
            raise NoteError("this is not a private key of the form PRIVATE+KEY+name+id+…")
        key = cls(name, raw[1:], raw[0])
        if key.verifier.id.hex() != key_id:
            raise NoteError("the private key's id is not that of its name and bytes")
        return key

    def secret(self) -> str:
        """The private key as text."""
        verifier = self.verifier
        return f"{_PRIVATE}{verifier.name}+{verifier.id.hex()}+{encode(bytes([verifier.type]) + self._seed)}"

    def sign(self, text: str) -> Signature:
        """A signature of the text itself."""
        return Signature(self.verifier.name, self.verifier.id, self._private.sign(text.encode()))

    def cosign(self, text: str, timestamp: int) -> Signature:
        """A witness's signature of the text and the time (seconds since 1970) at which it was seen."""
        value = self._private.sign(_timestamped(text, timestamp))
        return Signature(self.verifier.name, self.verifier.id, struct.pack(">Q", timestamp) + value)


@dataclass(frozen=True)
class Signature:
    """One signature line."""

    name: str
    key_id: bytes
    value: bytes

    @classmethod
    def parse(cls, line: str) -> Signature:
        """Of a line without its newline; raises NoteError."""
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        raw = decode(encoded)
        if not line.startswith(_DASH) or not _NAME.fullmatch(name) or len(raw) <= _ID_BYTES:
            raise NoteError("a signature line is malformed")
        return cls(name, raw[:_ID_BYTES], raw[_ID_BYTES:])

    def __str__(self) -> str:
        return f"{_DASH}{self.name} {encode(self.key_id + self.value)}\n"

    @property
    def timestamp(self) -> int:
        """Of a cosignature: seconds since 1970."""
        return int(struct.unpack(">Q", self.value[:8])[0])

    def is_by(self, key: VerifierKey) -> bool:
        """Whether it says that it is; not whether it verifies."""
        return (self.name, self.key_id) == (key.name, key.id)


@dataclass(frozen=True)
class Note:
    """A text, which ends in a newline, and who signed it. Nothing of it is to be believed before `signers`."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, raw: bytes) -> Note:
        """Raises NoteError on anything but a signed note."""
        try:
            whole = raw.decode() if len(raw) <= MAX_NOTE_BYTES else ""
        except UnicodeDecodeError:
            whole = ""
        text, blank, lines = whole.rpartition("\n\n")
        if not blank or not lines.endswith("\n") or _CONTROL.search(whole):
            raise NoteError("this is not a signed note")
        signatures = lines[:-1].split("\n")
        if len(signatures) > MAX_SIGNATURES:
            raise NoteError("the note has too many signatures")
        return cls(text + "\n", tuple(map(Signature.parse, signatures)))

    def __bytes__(self) -> bytes:
        return f"{self.text}\n{''.join(map(str, self.signatures))}".encode()

    def signers(self, known: Iterable[VerifierKey]) -> tuple[VerifierKey, ...]:
        """The known keys that signed it. Raises NoteError where a line in the name of a known key does not verify."""
        keys = {(key.name, key.id): key for key in known}
        found = []
        for signature in self.signatures:
            key = keys.get((signature.name, signature.key_id))
            if key is None:
                continue
            if not key.accepts(self.text, signature):
                raise NoteError(f"the signature by {key.name} is not over this text")
            found.append(key)
        return tuple(found)

    def signed_too(self, *more: Signature) -> Note:
        """With further signatures."""
        return Note(self.text, (*self.signatures, *more))


def encode(raw: bytes) -> str:
    """Standard base 64."""
    return base64.b64encode(raw).decode()


def decode(text: str) -> bytes:
    """Standard base 64, written the one right way; raises NoteError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError("base 64 was expected") from None
    if encode(raw) != text:
        raise NoteError("base 64 was expected")
    return raw


def _timestamped(text: str, timestamp: int) -> bytes:
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()
