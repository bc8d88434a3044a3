"""Statements over one connection to Postgres: prepared once, sent together, answered in one trip.

psycopg's cursors and its pipeline do the same, but there each statement costs 50 microseconds of Python, which was most
of what a dispatch cost its process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.waiting import Ready, Wait

if TYPE_CHECKING:
    from psycopg import abc
    from psycopg.pq.abc import PGconn, PGresult

__all__ = ["Rows", "Statement", "Wire"]

_MOST_PREPARED = 500
"""Statements that the server keeps for one connection, at most. Their texts are constants, so they are far fewer."""
_AT_ONCE = 500
"""Rows that are made in one go while somebody iterates."""


class Statement(NamedTuple):
    """A statement as Postgres reads it, and whether it is prepared: else it is planned anew each time."""

    sql: bytes
    prepare: bool = True


class _Kind(NamedTuple):
    """What is prepared: a statement for values of these types."""

    sql: bytes
    types: tuple[int, ...]


class _Bound(NamedTuple):
    """Values as they are sent."""

    values: Sequence[Any]
    types: tuple[int, ...]
    formats: Sequence[Format]


class Rows:
    """The result of a statement. See `database.Cursor`."""

    def __init__(self, rowcount: int, loader: abc.Transformer | None = None, count: int = 0) -> None:
        self.rowcount = rowcount
        self._loader, self._next, self._end = loader, 0, count

    @classmethod
    def of(cls, connection: psycopg.Connection[Any], result: PGresult) -> Rows:
        """Return what the server answered."""
        if not result.ntuples:
            return cls(result.command_tuples or 0)
        loader = Transformer(connection)
        loader.set_pgresult(result)
        return cls(result.command_tuples or 0, loader, result.ntuples)

    def __iter__(self) -> Iterator[Any]:
        while self._loader is not None and self._next < self._end:
            first, self._next = self._next, min(self._next + _AT_ONCE, self._end)
            yield from self._loader.load_rows(first, self._next, tuple)

    def fetchone(self) -> Any:
        """The next row; None: there is none."""
        if self._loader is None or self._next == self._end:
            return None
        self._next += 1
        return self._loader.load_row(self._next - 1, tuple)

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        first, self._next = self._next, self._end
        return [] if self._loader is None else self._loader.load_rows(first, self._end, tuple)


class Wire:
    """Sends statements and waits for what they give, for one thread at a time."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self._dumper = Transformer(connection)
        self._prepared: dict[_Kind, bytes] = {}
        """The names of prepared statements."""

    def run(self, statements: Sequence[tuple[Statement, Sequence[Any]]]) -> list[Rows]:
        """Run statements, up to the first that fails; returns the result of each.

        An exception that interrupts the wait closes the connection: nobody knows which answers are still to come.

        Raises:
            psycopg.Error: The first that failed, or why the server cannot be reached.
        """
        bound = [(statement, self._bind(values)) for statement, values in statements]
        pgconn = self.connection.pgconn
        try:
            pgconn.enter_pipeline_mode()
            prepared = [kind for each in bound for kind in self._send(pgconn, *each)]
            pgconn.pipeline_sync()
            answers = self.connection.wait(_answers(pgconn))
            pgconn.exit_pipeline_mode()
        except BaseException:
            self.connection.close()
            raise
        for kind, answer in zip(prepared, answers, strict=True):
            if kind is not None and answer.status != ExecStatus.COMMAND_OK:
                del self._prepared[kind]
        for answer in answers:
            if answer.status == ExecStatus.FATAL_ERROR:
                raise error_from_result(answer)
        return [
            Rows.of(self.connection, answer) for kind, answer in zip(prepared, answers, strict=True) if kind is None
        ]

    def _bind(self, values: Sequence[Any]) -> _Bound:
        dumper = self._dumper
        sent = dumper.dump_sequence(values, [PyFormat.AUTO] * len(values))
        return _Bound(sent, dumper.types or (), dumper.formats or [])  # psycopg 3.2 takes lists alone

    def _send(self, pgconn: PGconn, statement: Statement, bound: _Bound) -> Iterator[_Kind | None]:
        """Send one statement. Yields for each answer that will come what the answer confirms as prepared, or None."""
        sql, prepare = statement
        values, types, formats = bound
        name = self._prepared.get(kind := _Kind(sql, types))
        if name is None and prepare and len(self._prepared) < _MOST_PREPARED:
            name = self._prepared[kind] = b"batchwise_%d" % len(self._prepared)
            pgconn.send_prepare(name, sql, types)
            yield kind
        if name is None:
            pgconn.send_query_params(sql, values, types, formats, Format.BINARY)
        else:
            pgconn.send_query_prepared(name, values, formats, Format.BINARY)
        yield None


def _answers(pgconn: PGconn) -> abc.PQGen[list[PGresult]]:
    """The answers to all that was sent."""
    answers: list[PGresult] = []
    while True:
        ready = yield Wait.RW if pgconn.flush() else Wait.R
        if not ready & Ready.R:
            continue
        pgconn.consume_input()
        while not pgconn.is_busy():
            answer = pgconn.get_result()
            if answer is None:  # the end of one statement's
                if pgconn.status == ConnStatus.BAD:
                    raise psycopg.OperationalError("the connection was lost")
            elif answer.status == ExecStatus.PIPELINE_SYNC:
                return answers
            else:
                answers.append(answer)
