"""Checks of the ledger's file: whether it is a ledger, and whether it is still the one that was opened.

None of these functions opens the file with SQLite, which would make files beside it.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from batchwise.errors import InvalidValueError, LedgerError, shown

__all__ = ["APPLICATION_ID", "FileId", "create", "file_id", "make_private", "path_of", "refused", "scheme_of", "still"]

APPLICATION_ID = int.from_bytes(b"bwLG", "big")
"""The application id in the header of each ledger, which other SQLite databases do not have."""

_HEADER = struct.Struct(">16s52xI28x")
"""The first 100 bytes of a SQLite database: its magic, and its application id. https://sqlite.org/fileformat.html"""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MAGIC = b"SQLite format 3\0"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class FileId(NamedTuple):
    """The identity of a file, whatever its name."""

    device: int
    inode: int


def scheme_of(spec: str) -> str | None:
    """Return the scheme of a URL; None: it is no URL."""
    found = _URL.match(spec)
    return None if found is None else found[1].lower()


def path_of(spec: object) -> str:
    """Return a ledger's path as text, `~` expanded, or `:memory:`.

    Raises:
        InvalidValueError: It is no path: bytes, a number, empty, with a NUL in it, or a URL.
    """
    found = os.fspath(spec) if isinstance(spec, os.PathLike) else spec
    if not isinstance(found, str):
        raise InvalidValueError(
            f"ledger={shown(spec)} is a {type(spec).__name__}; give a path as text or pathlib.Path, or ':memory:'"
        )
    if not found or "\0" in found:
        raise InvalidValueError(f"ledger={shown(spec)} is no path; give a file's, or ':memory:'")
    scheme = scheme_of(found)
    if scheme is not None:
        raise InvalidValueError(
            f"a ledger at a {shown(scheme)} URL is not known; give the path of a file, ':memory:', or the "
            "postgresql:// URL of a database"
        )
    return os.path.expanduser(found)  # noqa: PTH111  # `:memory:` is no Path


def file_id(path: str) -> FileId | None:
    """Return the identity of the ledger's file at this path (an empty file may become one); None: there is no file.

    Raises:
        LedgerError: The file is no ledger.
        OSError: The file cannot be read.
    """
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    for is_kind, kind in _KINDS:
        if is_kind(found.st_mode):
            raise LedgerError(f"{path} is {kind}, and no ledger; name another file. Nothing was changed")
    if found.st_size:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            header = os.read(descriptor, _HEADER.size)
        finally:
            os.close(descriptor)
        magic, application = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
        if magic != _MAGIC:
            raise LedgerError(f"{path} is no ledger; name another file. Nothing was changed")
        if application != APPLICATION_ID:
            raise LedgerError(f"{path} is a SQLite database, but no ledger; name another file. Nothing was changed")
    return FileId(found.st_dev, found.st_ino)


def create(path: str) -> None:
    """Create the file as private: SQLite gives -wal and -shm the mode of the main file."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))


def make_private(path: str) -> None:
    """Take all rights on a file from other users."""
    found = Path(path).stat()
    if found.st_mode & 0o077 and found.st_uid == os.geteuid():
        with suppress(PermissionError):
            Path(path).chmod(0o600)


def still(path: str, known: FileId) -> bool:
    """Whether the file at this path is the known one."""
    try:
        found = os.stat(path)  # noqa: PTH116  # each transaction looks: a Path would cost six times as much
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == known


def refused(path: str, found: FileId | None) -> LedgerError:
    """Return the error for a file that is gone, or was replaced."""
    what = "was deleted or moved" if found is None else "was replaced by another file"
    return LedgerError(
        f"the ledger {path} {what} while it was open; nothing more is sent. Put it back, or end this process: "
        "work that it has accepted is in the file that was there"
    )
