"""Watches SQLite's own writes and syncs: the default VFS is wrapped in place, through the library that `sqlite3` uses.

The layouts are SQLite's stable C interface (sqlite3_vfs, sqlite3_file, sqlite3_io_methods; sqlite.org/c3ref/vfs.html).
"""

from __future__ import annotations

import _sqlite3
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["supported", "watched"]

_P, _I = ctypes.c_void_p, ctypes.c_int
_OPEN = ctypes.CFUNCTYPE(_I, _P, _P, _P, _I, _P)  # the name as it is: SQLite keeps the pointer
_WRITE = ctypes.CFUNCTYPE(_I, _P, _P, _I, ctypes.c_longlong)
_SYNC = ctypes.CFUNCTYPE(_I, _P, _I)
_METHODS = 19  # pointers in version 3: iVersion (padded), then 18 functions
_X_WRITE, _X_SYNC = 3, 5
_keep: list[object] = []  # what SQLite may call for as long as a file is open


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", _I),
        ("size_of_file", _I),
        ("longest_path", _I),
        ("next", _P),
        ("name", ctypes.c_char_p),
        ("data", _P),
        ("open", _P),
    )


def _library() -> Any:
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
    return library


def supported() -> bool:
    """Whether the interpreter's SQLite shows its C interface."""
    try:
        return bool(_library().sqlite3_vfs_find(None))
    except (AttributeError, OSError):
        return False


@contextmanager
def watched(tell: Callable[[str, str], None]) -> Iterator[None]:
    """Call `tell(what, path)` after each write and each sync (`write`, `sync`) of files that are opened from now on."""
    vfs = _library().sqlite3_vfs_find(None).contents
    original = vfs.open
    real_open = _OPEN(original)
    tables: dict[int, ctypes.Array[_P]] = {}
    paths: dict[int, str] = {}

    def table_for(methods: int) -> ctypes.Array[_P]:
        if methods in tables:
            return tables[methods]
        table = (_P * _METHODS).from_buffer_copy((_P * _METHODS).from_address(methods))
        real_write, real_sync = _WRITE(table[_X_WRITE]), _SYNC(table[_X_SYNC])

        def write(file: int, data: int, size: int, offset: int) -> int:
            code: int = real_write(file, data, size, offset)
            tell("write", paths.get(file, ""))
            return code

        def sync(file: int, flags: int) -> int:
            code: int = real_sync(file, flags)
            tell("sync", paths.get(file, ""))
            return code

        made = _WRITE(write), _SYNC(sync)
        table[_X_WRITE], table[_X_SYNC] = (ctypes.cast(function, _P).value for function in made)
        tables[methods] = table
        _keep.extend((table, made, real_write, real_sync))
        return table

    def open_(this: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        code: int = real_open(this, name, file, flags, out)
        slot = _P.from_address(file)
        if code == 0 and slot.value:
            paths[file] = ctypes.string_at(name).decode(errors="replace") if name else ""
            slot.value = ctypes.addressof(table_for(slot.value))
        return code

    wrapper = _OPEN(open_)
    _keep.extend((wrapper, real_open, tables, paths))
    vfs.open = ctypes.cast(wrapper, _P).value
    try:
        yield
    finally:
        vfs.open = original
