"""Small files that are there whole or not at all, whatever dies when: keys and other state beside the database."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def create_once(path: Path, content: bytes) -> None:
    """Make a file (0600, durable) if there is none; where another process was first, its file stays."""
    draft = _draft(path, content)
    try:
        os.link(draft, path)  # unlike rename, this never replaces
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    _sync_folder(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Put `content` in the place of what is there (0600, durable): a reader sees the old or the new, whole."""
    _draft(path, content).rename(path)
    _sync_folder(path.parent)


def _draft(path: Path, content: bytes) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return draft


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
