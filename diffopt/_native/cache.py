"""A folder of compiled code on disk, for the processes of one user.

The folder is the first of $DIFFOPT_CACHE, $XDG_CACHE_HOME/diffopt and ~/.cache/diffopt
(%LOCALAPPDATA%/diffopt on Windows). It may be deleted at any time. Where it cannot be made, read or
written there is no cache, and nothing else changes: nothing is raised here.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

CHECKSUM = hashlib.sha256().digest_size  # bytes before the code in a file


def read(name: str) -> bytes | None:
    """What was last written under `name`; None if there is nothing that may be trusted.

    The code will run, so a file counts only if this user owns it and no other may write to it. A
    file that was damaged, cut off, or written under another name counts as absent.
    """
    folder = _folder()
    if folder is None:
        return None
    try:
        with open(folder / name, "rb") as file:
            if not _is_ours(os.fstat(file.fileno())):  # of what is open: it cannot be exchanged
                return None
            content = file.read()
    except OSError:
        return None
    data = content[CHECKSUM:]
    return data if content[:CHECKSUM] == _checksum(name, data) else None


def write(name: str, data: bytes) -> None:
    """Keep `data` under `name`, for this user alone.

    The file appears whole or not at all, whoever else writes or reads it at the time.
    """
    folder = _folder()
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".", dir=folder)  # which has mode 0600
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_checksum(name, data) + data)
        os.replace(draft, folder / name)
    except OSError:  # the disk is full, or the name belongs to somebody else
        with suppress(OSError):
            os.unlink(draft)


def _folder() -> Path | None:
    """Where the files are; None for a user without a home. An empty variable is an absent one."""
    if chosen := os.environ.get("DIFFOPT_CACHE"):
        return Path(chosen)
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification has a relative one ignored
        return Path(base, "diffopt")
    try:
        return Path.home() / ".cache" / "diffopt"
    except RuntimeError:
        return None


def _is_ours(status: os.stat_result) -> bool:
    """Whether this user, and nobody else, can have written a file. Windows: its folder says so."""
    return not hasattr(os, "geteuid") or (
        status.st_uid == os.geteuid() and not status.st_mode & 0o022
    )


def _checksum(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + data).digest()
