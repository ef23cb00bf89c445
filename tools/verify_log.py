#!/usr/bin/env python3
"""Verify the disclosure log of an exchange from outside: an export, a receipt, AuditEvents, or the log over HTTP.

    verify_log.py log.ndjson            --key log.vkey [--checkpoint kept.txt ...]
    verify_log.py answer.tlog-proof     --key log.vkey [--checkpoint kept.txt ...]
    verify_log.py auditevents.json      --key log.vkey [--checkpoint kept.txt ...]
    verify_log.py https://hie.example/log --key log.vkey [--checkpoint kept.txt ...] [--token TOKEN --bodies]

Needs Python 3.9 and `cryptography`, nothing else; it shares no code with the exchange, so that a mistake there is not
made here again. AuditEvents are an answer of `/fhir/AuditEvent`, one event or a Bundle; each carries its own proof. The
key must come from somewhere else than what is verified: ask the exchange's operator, or keep what `/log/key` said on
the day you joined. `--checkpoint` takes checkpoints and receipts that you kept: the log must extend them. `--witness`
takes a witness's vkey, whose cosignature the newest checkpoint then must have.

Exit 0 if everything holds, 1 and one line if it does not, 2 for wrong usage. Formats: c2sp.org/signed-note,
tlog-checkpoint, tlog-cosignature, tlog-tiles, tlog-proof; RFC 9162 sections 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PROOF_HEADER = "c2sp.org/tlog-proof@v1"
EXPORT_FORMAT = "hie-log-export@v1"
EXTENSION = "/StructureDefinition/log-proof"
ED25519, COSIGNATURE = 1, 4
BUNDLE = 256


class Wrong(Exception):
    """What does not hold, in one line."""


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def unbase64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raise Wrong("base 64 was expected") from None
    if base64.b64encode(raw).decode() != text:
        raise Wrong("base 64 was expected")
    return raw


def decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or (text != "0" and text.startswith("0")):
        raise Wrong("a number was expected")
    return int(text)


# -- signed notes and checkpoints


class Key:
    """A vkey: name+id+base64(type || public key)."""

    def __init__(self, vkey: str) -> None:
        try:
            self.name, key_id, encoded = vkey.split("+", 2)
        except ValueError:
            raise Wrong("a key is written name+id+base64") from None
        raw = unbase64(encoded)
        self.type, self.public = raw[0], raw[1:]
        self.id = sha256(self.name.encode() + b"\n" + raw)[:4]
        if self.id.hex() != key_id or len(self.public) != 32 or self.type not in (ED25519, COSIGNATURE):
            raise Wrong(f"this is not a key that signs checkpoints: {vkey}")

    def signed(self, text: str, value: bytes) -> bool:
        message = text.encode()
        if self.type == COSIGNATURE:
            time, value = int.from_bytes(value[:8], "big"), value[8:]
            message = f"cosignature/v1\ntime {time}\n".encode() + message
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(value, message)
        except InvalidSignature:
            return False
        return True


class Checkpoint:
    """A signed note that says: this log, at this size, has this root."""

    def __init__(self, raw: str) -> None:
        text, blank, lines = raw.rpartition("\n\n")
        self.text = text + "\n"
        parts = self.text.split("\n")
        if not blank or not lines.endswith("\n") or len(parts) < 4 or "" in parts[:-1]:
            raise Wrong("this is not a checkpoint")
        self.origin, self.size, self.root = parts[0], decimal(parts[1]), unbase64(parts[2])
        self.signatures = [self._signature(line) for line in lines[:-1].split("\n")]

    @staticmethod
    def _signature(line: str) -> tuple[str, bytes, bytes]:
        words = line.split(" ")
        if len(words) != 3 or words[0] != "\u2014":
            raise Wrong("a signature line is malformed")
        raw = unbase64(words[2])
        return words[1], raw[:4], raw[4:]

    def require(self, keys: list[Key], what: str) -> None:
        """Signed by one of the keys, and by none of them falsely."""
        verified = 0
        for name, key_id, value in self.signatures:
            for key in keys:
                if (key.name, key.id) == (name, key_id):
                    if not key.signed(self.text, value):
                        raise Wrong(f"the signature by {name} on the checkpoint of {self.size} entries is false")
                    verified += 1
        if not verified:
            raise Wrong(f"the checkpoint of {self.size} entries is not signed by {what}")


# -- the tree


class Tree:
    """A growing Merkle tree (RFC 9162 section 2.1.1) as its perfect subtrees, largest first."""

    def __init__(self) -> None:
        self.size = 0
        self.hashes: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        found, rest = leaf, self.size
        while rest & 1:
            found, rest = sha256(b"\x01" + self.hashes.pop() + found), rest >> 1
        self.hashes.append(found)
        self.size += 1

    def root(self) -> bytes:
        if not self.hashes:
            return sha256(b"")
        found = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            found = sha256(b"\x01" + left + found)
        return found


def require_included(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> None:
    """RFC 9162 section 2.1.3.2."""
    if index >= size:
        raise Wrong(f"index {index}: it is not in a tree of {size} entries")
    fn, sn, found = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            raise Wrong(f"index {index}: the proof is too long")
        if fn & 1 or fn == sn:
            found = sha256(b"\x01" + sibling + found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = sha256(b"\x01" + found + sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn or found != root:
        raise Wrong(f"index {index}: the proof does not lead to the checkpoint's root")


# -- entries


def require_body(index: int, leaf: str, salt: str, body: str) -> None:
    """The leaf is made of these and nothing else. Of an archived entry, which has neither, only its form is checked."""
    said = json.loads(leaf)
    names = ["commit", "id", "kind", "time", "v"]
    canonical = json.dumps({name: said.get(name) for name in names}, separators=(",", ":"), ensure_ascii=False)
    if canonical != leaf or said["v"] != 1:
        raise Wrong(f"index {index}: the leaf is not written as version 1 is")
    if not salt and not body:
        return
    event = json.loads(body)
    if hashlib.sha256(bytes.fromhex(salt) + body.encode()).hexdigest() != said["commit"]:
        raise Wrong(f"index {index}: the body is not what the leaf commits to")
    if (event.get("id"), event.get("recorded")) != (said["id"], said["time"]):
        raise Wrong(f"index {index}: the body is of another entry")


def through_checkpoints(leaves: Iterator[bytes], newest: Checkpoint, kept: list[Checkpoint]) -> int:
    """Grow a tree over leaf hashes, through every checkpoint that somebody kept; the number of leaves."""
    wanted = sorted([*kept, newest], key=lambda one: one.size)
    tree = Tree()

    def compare() -> None:
        while wanted and wanted[0].size == tree.size:
            one = wanted.pop(0)
            if one.root != tree.root():
                raise Wrong(f"the first {one.size} entries are not those that a checkpoint has signed")

    compare()
    for leaf in leaves:
        tree.append(leaf)
        compare()
        progress(tree.size, newest.size)
    if wanted:
        raise Wrong(f"the log ends at {tree.size} entries, and a checkpoint has signed {wanted[-1].size}")
    return tree.size


def progress(done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 1000 == 0 or done == total):
        end = "\n" if done == total else ""
        sys.stderr.write(f"\r{done} of {total} entries{end}")


# -- the three things that are verified


def verify_export(path: str, keys: list[Key], witnesses: list[Key], kept: list[Checkpoint]) -> str:
    with open(path, encoding="utf-8", newline="\n") as lines:
        head = json.loads(next(lines, "{}"))
        if head.get("format") != EXPORT_FORMAT:
            raise Wrong(f"this is not an export of the form {EXPORT_FORMAT}")
        newest = Checkpoint(head["checkpoint"])
        require_signers(newest, keys, witnesses)
        first = head["first"]
        if first:
            count = sum(1 for _ in exported_leaves(lines, newest, first))
            if first + count != newest.size:
                raise Wrong(f"index {first + count}: the export ends here, and the log has {newest.size} entries")
            if kept:
                raise Wrong("an export that does not begin at 0 cannot be compared with older checkpoints")
        else:
            count = through_checkpoints(exported_leaves(lines, newest, 0), newest, kept)
    return f"{count} entries from {first} on, under the checkpoint of {newest.size}"


def exported_leaves(lines: Iterable[str], newest: Checkpoint, first: int) -> Iterator[bytes]:
    for index, line in enumerate(lines, first):
        entry = json.loads(line)
        if entry["index"] != index:
            raise Wrong(f"index {index}: the entry is missing")
        require_body(index, entry["leaf"], entry["salt"], entry["body"])
        leaf = sha256(b"\x00" + entry["leaf"].encode())
        require_included(leaf, index, newest.size, [unbase64(one) for one in entry["proof"]], newest.root)
        yield leaf


def verify_receipt(raw: str, keys: list[Key], witnesses: list[Key], kept: list[Checkpoint]) -> str:
    index, leaf, signed = proved(raw, keys, witnesses, kept)
    return f"entry {index}, {leaf}, under the checkpoint of {signed.size} entries"


def proved(raw: str, keys: list[Key], witnesses: list[Key], kept: list[Checkpoint]) -> tuple[int, str, Checkpoint]:
    head, _, note = raw.partition("\n\n")
    lines = head.split("\n")
    if lines[0] != PROOF_HEADER or len(lines) < 3 or not lines[1].startswith("extra "):
        raise Wrong(f"this is not a proof of the form {PROOF_HEADER}")
    if not lines[2].startswith("index "):
        raise Wrong("the proof has no index")
    leaf, index, signed = unbase64(lines[1][6:]), decimal(lines[2][6:]), Checkpoint(note)
    require_signers(signed, keys, witnesses)
    require_included(sha256(b"\x00" + leaf), index, signed.size, [unbase64(one) for one in lines[3:]], signed.root)
    if any(one.size == signed.size and one.root != signed.root for one in kept):
        raise Wrong(f"another checkpoint of {signed.size} entries was kept: the log has shown two histories")
    return index, leaf.decode(), signed


def verify_events(resource: dict[str, Any], keys: list[Key], witnesses: list[Key], kept: list[Checkpoint]) -> str:
    """One AuditEvent, or all of a Bundle: each must be the body of the entry that its extension proves."""
    bundled = resource["resourceType"] == "Bundle"
    events = [one["resource"] for one in resource.get("entry", [])] if bundled else [resource]
    indexes, archived = [], 0
    for event in events:
        index, leaf, parts = carried(event, keys, witnesses, kept)
        if "salt" in parts:
            body = {name: value for name, value in event.items() if name != "extension"}
            text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            require_body(index, leaf, unbase64(parts["salt"]).hex(), text)
        else:
            said = json.loads(leaf)
            archived += 1
            if (event["id"], event["recorded"]) != (said["id"], said["time"]):
                raise Wrong(f"index {index}: the event is of another entry")
        indexes.append(index)
    without = f", of {archived} archived ones id and time alone" if archived else ""
    return f"{len(events)} AuditEvents, each the body of its entry{without}: {' '.join(map(str, indexes)) or 'none'}"


def carried(
    event: dict[str, Any], keys: list[Key], witnesses: list[Key], kept: list[Checkpoint]
) -> tuple[int, str, dict[str, Any]]:
    """Index and leaf that the extension of an event proves, and its parts by name."""
    extensions = event.get("extension", [])
    if event["resourceType"] != "AuditEvent" or len(extensions) != 1 or not extensions[0]["url"].endswith(EXTENSION):
        raise Wrong("a resource is no AuditEvent with a proof and nothing else as extension")
    parts = {part["url"]: value for part in extensions[0]["extension"] for name, value in part.items() if name != "url"}
    index, leaf, _ = proved(unbase64(parts["proof"]).decode(), keys, witnesses, kept)
    if parts["index"] != index:
        raise Wrong(f"index {parts['index']}: the proof is of entry {index}")
    return index, leaf, parts


def verify_served(prefix: str, keys: list[Key], witnesses: list[Key], kept: list[Checkpoint], token: str | None) -> str:
    prefix = prefix.rstrip("/")
    newest = Checkpoint(fetch(prefix + "/checkpoint").decode())
    require_signers(newest, keys, witnesses)
    count = through_checkpoints(served_leaves(prefix, newest.size, token), newest, kept)
    return f"{count} entries, served at {prefix}"


def served_leaves(prefix: str, size: int, token: str | None) -> Iterator[bytes]:
    for start in range(0, size, BUNDLE):
        width = min(BUNDLE, size - start)
        partial = f".p/{width}" if width < BUNDLE else ""
        raw = fetch(f"{prefix}/tile/entries/{tile_path(start // BUNDLE)}{partial}")
        for index in range(start, start + width):
            length = int.from_bytes(raw[:2], "big")
            leaf, raw = raw[2 : 2 + length], raw[2 + length :]
            if token:
                shown = json.loads(fetch(f"{prefix}/entry/{index}/body", token))
                require_body(index, leaf.decode(), shown["salt"], shown["body"])
            yield sha256(b"\x00" + leaf)


def tile_path(index: int) -> str:
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    return "/".join(["x" + group for group in groups[:-1]] + groups[-1:])


def fetch(address: str, token: str | None = None) -> bytes:
    request = urllib.request.Request(address)  # noqa: S310  (`run` takes http and https only)
    if token:
        request.add_header("Authorization", "Bearer " + token)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            return bytes(reply.read())
    except urllib.error.HTTPError as error:
        raise Wrong(f"{address} answered {error.code}") from None
    except OSError as error:
        raise Wrong(f"{address} cannot be reached: {error}") from None


def require_signers(checkpoint: Checkpoint, keys: list[Key], witnesses: list[Key]) -> None:
    own = [key for key in keys if key.name == checkpoint.origin]
    checkpoint.require(own, "a key of its log that was given")
    for witness in witnesses:
        checkpoint.require([witness], f"the witness {witness.name}")


# -- the command


def read_keys(given: list[str]) -> list[Key]:
    """Vkeys, or files with some; the sizes and comments beside them are left out."""
    words = []
    for one in given:
        try:
            with open(one, encoding="utf-8") as file:
                words += file.read().split()
        except OSError:
            words.append(one)
    return [Key(word) for word in words if not word.isdigit()]


def read_checkpoint(path: str, keys: list[Key]) -> Checkpoint:
    with open(path, encoding="utf-8", newline="\n") as file:
        raw = file.read()
    if raw.startswith(PROOF_HEADER):
        verify_receipt(raw, keys, [], [])
        raw = raw.partition("\n\n")[2]
    checkpoint = Checkpoint(raw)
    require_signers(checkpoint, keys, [])
    return checkpoint


def run(arguments: argparse.Namespace) -> str:
    keys, witnesses = read_keys(arguments.key), read_keys(arguments.witness)
    kept = [read_checkpoint(path, keys) for path in arguments.checkpoint]
    if arguments.what.startswith(("http://", "https://")):
        return verify_served(arguments.what, keys, witnesses, kept, arguments.token if arguments.bodies else None)
    with open(arguments.what, encoding="utf-8", newline="\n") as file:
        begins = file.read(len(PROOF_HEADER))
        if begins == PROOF_HEADER:
            return verify_receipt(begins + file.read(), keys, witnesses, kept)
        begins += file.readline()
        if '"resourceType"' in begins or begins.startswith("{\n"):  # in one line, or indented
            return verify_events(json.loads(begins + file.read()), keys, witnesses, kept)
    return verify_export(arguments.what, keys, witnesses, kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help="an export, a receipt, AuditEvents, or the address of a log")
    parser.add_argument("--key", action="append", required=True, help="the log's vkey, or a file with its vkeys")
    parser.add_argument("--checkpoint", action="append", default=[], help="a checkpoint or receipt that you kept")
    parser.add_argument("--witness", action="append", default=[], help="a witness's vkey, or a file with some")
    parser.add_argument("--token", help="a privacy officer's access token, for --bodies")
    parser.add_argument("--bodies", action="store_true", help="over HTTP: check every body too (each look is recorded)")
    arguments = parser.parse_args()
    if arguments.bodies and not arguments.token:
        parser.error("--bodies needs --token")
    try:
        print("verified: " + run(arguments))
    except Wrong as wrong:
        print(f"verify_log: it does not verify: {wrong}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"verify_log: it cannot be read: {type(error).__name__} {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
