"""Which schema of which Postgres database a URL names, how it is connected to, and what its errors mean."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import attrs

from batchwise.errors import InvalidValueError, LedgerError, printable

from .database import BUSY_SECONDS, busy

if TYPE_CHECKING:
    import psycopg

__all__ = ["Target", "check_installed", "ledger_error", "target"]

_SCHEMA = "batchwise"
_SEARCH_PATH = re.compile(r"(?:^|\s)(?:-c\s*|--)search_path\s*=\s*((?:\\.|\S)*)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
_DEFAULTS = {
    "connect_timeout": "10",
    "fallback_application_name": "batchwise",
    # A connection that is cut off silently is noticed within a minute.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""Parameters of libpq (seconds; `tcp_user_timeout` in ms), unless the URL has others."""
_SETTINGS = {
    "jit": "off",
    # Every statement has indices to go by, which give its rows in its order, one by one as they are wanted. A bulk that
    # has just come has no statistics, and would be scanned, or all of it sorted for each page that is read.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_mergejoin": "off",
    "enable_hashjoin": "off",
    # A session that holds the ledger's lock and stands still, or is cut off, is ended, so that others go on.
    "lock_timeout": f"{BUSY_SECONDS}s",
    # A limit that is meant for the pages of a web site would end a large bulk, at each new try.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": f"{BUSY_SECONDS}s",
    "tcp_keepalives_idle": "30s",
    "tcp_keepalives_interval": "10s",
    "tcp_keepalives_count": "3",
    "client_min_messages": "warning",
    "client_encoding": "UTF8",
    # A writer waits for the lock, and then has to see what the one before it wrote.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
}
"""Settings of each session, whatever the server, the role, the URL or the environment says."""
_LATER_SETTINGS = {
    # A session that is idle for long may be the one whose locks show that this process lives.
    "idle_session_timeout": 140_000,
    "transaction_timeout": 170_000,
}
"""Limits that are switched off, and the first version of a server that has them."""


@attrs.frozen(repr=False)
class Target:
    """A schema in a database. Its repr, and all messages, leave the password out.

    Attributes:
        name: Where it is; for messages.
        schema: The schema that holds the ledger.
    """

    name: str
    schema: str
    _conninfo: str

    def __repr__(self) -> str:
        return f"Target({self.name!r})"

    def connect(self) -> psycopg.Connection[Any]:
        """Open a connection that commits each statement, with the settings above.

        Raises:
            psycopg.Error: It cannot be opened now.
        """
        import psycopg

        connection = psycopg.connect(self._conninfo, autocommit=True, cursor_factory=psycopg.RawCursor)
        try:
            found = connection.execute("SHOW synchronous_commit").fetchone()
            # With `off`, a seal could be lost after its POST: a batch bought twice.
            durable = {"synchronous_commit": "on"} if found == ("off",) else {}
            version = connection.info.server_version
            lasting = {name: "0" for name, since in _LATER_SETTINGS.items() if version >= since}
            settings = {**_SETTINGS, **durable, **lasting, "search_path": self.schema}
            _adapt(connection.adapters)
            connection.execute("; ".join(f"SET {name} TO '{value}'" for name, value in settings.items()))
        except BaseException:
            connection.close()
            raise
        return connection


def _adapt(adapters: Any) -> None:
    """Send and read every number as an integer of 64 bits, as the columns have it; booleans and sums, too."""
    from psycopg.adapt import Buffer, Dumper
    from psycopg.pq import Format
    from psycopg.types.numeric import Int8BinaryDumper, NumericBinaryLoader, NumericLoader

    class BoolDumper(Dumper):
        format = Format.BINARY
        oid = Int8BinaryDumper.oid

        def dump(self, obj: bool) -> Buffer:
            return int(obj).to_bytes(8, "big")

    class SumLoader(NumericLoader):
        def load(self, data: Buffer) -> Any:
            return int(super().load(data))

    class SumBinaryLoader(NumericBinaryLoader):
        def load(self, data: Buffer) -> Any:
            return int(super().load(data))

    adapters.register_dumper(int, Int8BinaryDumper)
    adapters.register_dumper(bool, BoolDumper)
    adapters.register_loader("numeric", SumLoader)
    adapters.register_loader("numeric", SumBinaryLoader)


def ledger_error(name: str, error: psycopg.Error) -> LedgerError:
    """Return the ledger's error for an error of psycopg.

    The text of that may hold keys and prompts, so only its first line is repeated.

    Args:
        name: The name of the ledger.
        error: The error of psycopg.
    """
    from psycopg import InterfaceError, OperationalError, errors

    said = printable(error.diag.message_primary or str(error).partition("\n")[0])
    if isinstance(error, errors.LockNotAvailable):
        return busy(name)
    if isinstance(error, errors.InsufficientPrivilege):
        return LedgerError(
            f"the ledger {name} refused its user ({said}); grant it USAGE on the schema, and SELECT, INSERT, UPDATE "
            "and DELETE on its tables"
        )
    away = isinstance(error, (OperationalError, InterfaceError, errors.ReadOnlySqlTransaction))
    return LedgerError(
        f"the ledger {name} failed ({said}); nothing of this step was changed. "
        "Check that its server runs and can be reached, and its disk's space, then go on",
        passing=away,
    )


def check_installed() -> None:
    """Check that psycopg is installed.

    Raises:
        LedgerError: It is not; the message says how to install it.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise LedgerError(
            "a ledger in Postgres needs psycopg; install it: pip install 'batchwise-claude[postgres]'"
        ) from error


def target(url: str) -> Target:
    """Return what a URL names.

    Args:
        url: As libpq takes it. `?schema=NAME`, or a `search_path` in `?options=`, names the schema; else `batchwise`.

    Raises:
        InvalidValueError: It cannot be read.
    """
    from psycopg import ProgrammingError, conninfo

    plain, _, query = url.partition("?")
    parts = [each.partition("=") for each in query.split("&") if each]
    named = next((unquote(value) for name, _, value in parts if name == "schema"), None)
    rest = "&".join("".join(part) for part in parts if part[0] != "schema")
    try:
        values = conninfo.conninfo_to_dict(f"{plain}?{rest}")
    except ProgrammingError:
        # What libpq says repeats parts of the URL, and with them perhaps its password.
        raise InvalidValueError(
            "the ledger's URL cannot be read; it is like postgresql://user@host:5432/database?schema=batchwise"
        ) from None
    found = _SEARCH_PATH.search(str(values.get("options") or ""))
    searched = "" if found is None else found[1].replace("\\", "").split(",")[0].strip('" ')
    schema = named or searched or _SCHEMA
    if not _NAME.fullmatch(schema):
        raise InvalidValueError(
            f"the schema {printable(schema)} of the ledger's URL is no plain name; "
            "give it letters, digits and underscores, up to 63"
        )
    host, port = values.get("host") or values.get("hostaddr") or "", values.get("port")
    where = f"{host}:{port}" if port and "," not in str(port) and not str(host).startswith("/") else str(host)
    database = values.get("dbname") or values.get("user") or ""
    name = printable(f"postgresql://{where}/{database}?schema={schema}")
    return Target(name, schema, conninfo.make_conninfo("", **{**_DEFAULTS, **values}))
