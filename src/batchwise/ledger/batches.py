"""A batch: sealed, moved from state to state, and read row by row."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any

import orjson

from batchwise.errors import LedgerError, printable
from batchwise.planning.cache_priming import Caching
from batchwise.planning.packing import MAX_REQUESTS
from batchwise.planning.prompt_prefix import GROWTH, under_an_hour
from batchwise.planning.state import BatchState, BatchView, Group

from . import meta, transitions
from .books import Books, Place
from .database import Connection, Database
from .lease import Lease
from .open_rows import OpenRows
from .records import CHUNK, IN_BATCH, SENT_IN, Records
from .rows import BATCH, BATCH_COLUMNS, IN_FLIGHT, QUEUED, decode_key, micros, view_of, view_values
from .seal_selection import Selection, first_fitting

__all__ = ["Batches"]

_MOST_BREAKPOINTS = 4
"""The most breakpoints in one request that the API takes (API documentation, prompt caching, 2026)."""
_ENTRIES = 128
_ENTRY_BYTES = 4_000_000
_ACCEPTED_TERMS = "SELECT id FROM terms WHERE staged = 0 AND id"
_LIVE = f"SELECT {BATCH_COLUMNS} FROM batch WHERE live = 1"
_WHOLE = "requests = (SELECT coalesce(sum(requests), 0) FROM cohort c WHERE c.batch = b.id)"
"""Whether no request of a batch b has settled or left it."""
_ALIKE = "SELECT count(*), min(id), max(id), min(terms), max(terms), min(attempts), max(attempts)"


def _runs(
    database: Database, db: Connection, batch: int, first: int, last: int, which: str
) -> Iterator[tuple[int, Sequence[int], int, int]]:
    """Yield requests of a batch as `OpenRows.of` takes them: neighbours that are alike come together."""
    rows = f"SELECT id, size, terms, attempts FROM request WHERE {which} ORDER BY id"
    for start in range(first, last + 1, CHUNK):
        values = start, min(start + CHUNK - 1, last), batch
        count, low, high, *bounds, sizes = db.execute(
            f"{_ALIKE}, {database.json_array('size')} FROM ({rows}) AS found", values
        ).fetchone()
        if not count:
            continue
        terms, attempts = bounds[::2]
        if count == high - low + 1 and [terms, attempts] == bounds[1::2]:
            yield low, orjson.loads(sizes), terms, attempts
        else:
            yield from ((number, [size], *kind) for number, size, *kind in db.execute(rows, values))


class Batches:
    """Seals batches, and keeps their states."""

    def __init__(self, database: Database, records: Records, books: Books, *, lease: Lease) -> None:
        self._database, self._records, self._books = database, records, books
        self._lease = lease

    def seal(
        self,
        terms: Sequence[int],
        *,
        nonce: str,
        taken: frozenset[int],
        now: datetime,
        max_requests: int,
        max_bytes: int,
        caching: Caching = Caching.AS_IS,
    ) -> BatchView | None:
        """Seal queued requests of these terms, in order, into one batch whose count is not in `taken`.

        None: there is nothing to seal, or another process has the lease.

        If every possible count is taken, all requests are sealed: no rows are added as padding, and the nonce shows
        whose the batch is once it has ended.
        """
        if caching is not Caching.AS_IS:
            max_bytes -= min(max_requests, MAX_REQUESTS) * _MOST_BREAKPOINTS * GROWTH
        with self._database.write("seal") as db:
            if not self._lease.leads(db):
                return None
            accepted = [number for (number,) in self._records.select(db, _ACCEPTED_TERMS, terms)]
            which, values = self._of_terms(accepted)
            alone = len(accepted) == 1
            chosen = first_fitting(
                db, f"status = 0 AND {which}", values, taken, max_requests, max_bytes, sort=not alone
            )
            if not chosen.count:
                return None
            batch = self._insert_sealed(db, chosen, nonce=nonce, caching=caching, now=now)
            self._put_in(db, batch, chosen, which, values, now)
            return self._batch(db, batch)

    def _of_terms(self, terms: Sequence[int]) -> tuple[str, tuple[Any, ...]]:
        """The condition that a request of the batch lane is on these terms, and its values."""
        which, value = ("= ?", terms[0]) if len(terms) == 1 else (self._database.among, self._database.list_of(terms))
        return f"terms {which} AND lane = 1", (value,)

    def _insert_sealed(self, db: Connection, chosen: Selection, *, nonce: str, caching: Caching, now: datetime) -> int:
        """Store a batch of these requests, which is sealed; returns its number."""
        sealed = [self._records.terms(db, number) for number in chosen.by_terms]
        about, jobs = sealed[0], {terms.job for terms in sealed}
        length = chosen.length
        if caching is not Caching.AS_IS:
            counts = (requests for requests, _ in chosen.by_terms.values())
            length += sum(terms.grows * count for terms, count in zip(sealed, counts, strict=True))
        if caching is Caching.PRIMER:
            self._books.note_primer(db, about.prefix, now)
        return self._database.insert(
            db,
            "INSERT INTO batch (nonce, state, requests, size, betas, caching, sealed_at, job, model, first, last, "
            "epoch) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                nonce,
                transitions.beginning(BatchState.SEALED),
                chosen.count,
                length,
                orjson.dumps(about.betas).decode(),
                caching.value,
                micros(now),
                jobs.pop() if len(jobs) == 1 else 0,
                about.model,
                chosen.first,
                chosen.last,
                self._lease.epoch(db),
            ),
        )

    def _put_in(
        self, db: Connection, batch: int, chosen: Selection, which: str, values: Sequence[Any], now: datetime
    ) -> None:
        """Move these requests, which are queued, into a batch."""
        # The sum keeps the database from the index of queued requests: those that lie close together are found by
        # their numbers. If the update changed the index that it reads, all found rows would be held in memory first.
        status = "status + 0" if chosen.close else "status"
        db.execute(
            f"{self._database.update_many} request SET status = 1, batch = ? "
            f"WHERE id BETWEEN ? AND ? AND {status} = 0 AND {which}",
            (batch, chosen.first, chosen.last, *values),
        )
        moves = self._books.moves(db, now)
        for number, (requests, size) in chosen.by_terms.items():
            queue = Place(number, BATCH, QUEUED, 0)
            moves.move(queue, Place(number, BATCH, IN_FLIGHT, batch), requests, size)
        moves.book()

    def get(self, batch: int) -> BatchView | None:
        """Return a live batch, as the snapshot shows it; else None."""
        with self._database.read() as db:
            row = db.execute(f"{_LIVE} AND id = ?", (batch,)).fetchone()
            return None if row is None else self._view(db, row)

    def still_posting(self, batch: int) -> bool:
        """Whether a batch is `posting` with all its rows, and no other epoch of the lease has begun.

        Then no process has taken its requests for lost and sent them otherwise.
        """
        with self._database.read() as db:
            state, whole = db.execute(f"SELECT state, {_WHOLE} FROM batch b WHERE id = ?", (batch,)).fetchone()
            return state == BatchState.POSTING.value and bool(whole) and self._in_its_epoch(db, batch)

    def _in_its_epoch(self, db: Connection, batch: int) -> bool:
        (epoch,) = db.execute("SELECT epoch FROM batch WHERE id = ?", (batch,)).fetchone()
        return bool(epoch == self._lease.epoch(db))

    def views(self, db: Connection, groups: Callable[[int], Sequence[Group]]) -> tuple[BatchView, ...]:
        """Return all live batches; `groups` gives the groups of a batch."""
        return tuple(view_of(row, tuple(groups(row[0]))) for row in db.execute(f"{_LIVE} ORDER BY id"))

    def _view(self, db: Connection, row: Sequence[Any]) -> BatchView:
        return view_of(row, tuple(group for _, group in self._books.groups(db, "batch = ?", (row[0],))))

    def _batch(self, db: Connection, batch: int) -> BatchView:
        return self._view(db, db.execute(f"SELECT {BATCH_COLUMNS} FROM batch WHERE id = ?", (batch,)).fetchone())

    def move(self, db: Connection, batch: int, to: BatchState, **fields: object) -> None:
        """Move a batch to a state, and store values of columns with it.

        Raises:
            LedgerError: The state may not follow the present one.
        """
        (was,) = db.execute("SELECT state FROM batch WHERE id = ?", (batch,)).fetchone()
        transitions.check(batch, BatchState(was), to)
        more = "".join(f", {name} = ?" for name in fields)
        db.execute(
            f"UPDATE batch SET state = ?, live = ?{more} WHERE id = ?",
            (to.value, to not in transitions.OVER, *fields.values(), batch),
        )

    def entries(self, batch: int) -> Iterator[tuple[int, str, bytes]]:
        """Yield the number, key and body of each row of the batch, in order; rows that share a prefix are neighbours.

        In bounded memory: some rows at a time, in short reads without a lock in between.
        """
        with self._database.read() as db:
            first, last, which = self._sent_in(db, batch)
            (caching,) = db.execute("SELECT caching FROM batch WHERE id = ?", (batch,)).fetchone()
            parts = self._by_prefix(db, batch, which, (first, last, batch))
        for numbers in parts or ():
            with self._database.read() as db:
                chosen = f"{which} AND request.id {self._database.among}"
                values = min(numbers), max(numbers), batch, self._database.list_of(numbers)
                found = {row[0]: row for row in self._bodies(db, chosen, values, caching, most=math.inf)}
            yield from (found[number] for number in numbers if number in found)
        after = first - 1
        while parts is None and after < last:
            with self._database.read() as db:
                part = self._bodies(db, which, (after + 1, last, batch), caching)
            if not part:
                return
            yield from part
            after = part[-1][0]

    def _by_prefix(self, db: Connection, batch: int, which: str, values: Sequence[Any]) -> list[list[int]] | None:
        """Return the numbers of a batch's rows in the order of sending, in parts; None: in the order of numbers.

        Rows that share a prefix follow the first of them.
        """
        kinds = db.execute("SELECT DISTINCT terms FROM cohort WHERE batch = ?", (batch,)).fetchall()
        prefixes = {number: self._records.terms(db, number).prefix for (number,) in kinds}
        if len(set(prefixes.values())) < 2:
            return None
        shares: dict[str, list[tuple[int, int]]] = {}
        for number, size, terms in db.execute(f"SELECT id, size, terms FROM request WHERE {which} ORDER BY id", values):
            shares.setdefault(prefixes[terms], []).append((number, size))
        parts, length = [[]], 0  # type: tuple[list[list[int]], int]
        for number, size in chain.from_iterable(shares.values()):
            if len(parts[-1]) == _ENTRIES or length >= _ENTRY_BYTES:
                parts.append([])
                length = 0
            parts[-1].append(number)
            length += size
        return parts

    def _bodies(
        self, db: Connection, which: str, values: Sequence[Any], caching: str, *, most: float = _ENTRY_BYTES
    ) -> list[tuple[int, str, bytes]]:
        """Return the first of these rows, up to so many bytes, as they are sent in a batch with this caching."""
        part: list[tuple[int, str, bytes]] = []
        size = 0
        # CROSS JOIN keeps SQLite's order of the loops: requests by number, and each one's body.
        found = db.execute(
            "SELECT request.id, key, params, terms FROM request CROSS JOIN body "
            f"WHERE body.id = request.id AND {which} ORDER BY request.id LIMIT {_ENTRIES}",
            values,
        )
        for number, key, body, terms in found:
            if caching != Caching.AS_IS.value:
                body = self._under_an_hour(db, bytes(body), terms)  # noqa: PLW2901
            part.append((number, decode_key(key), body))
            size += len(body)
            if size >= most:
                break
        return part

    def _under_an_hour(self, db: Connection, body: bytes, terms: int) -> bytes:
        about = self._records.terms(db, terms)
        return under_an_hour(body, about.breakpoints) if about.grows else body

    def created(
        self,
        batch: int,
        *,
        remote_id: str,
        created_at: datetime | None,
        expires_at: datetime | None,
        now: datetime,
    ) -> None:
        """Record the API's id of a batch, which is `open` then, and forget what `note_failure` counted.

        It does not matter which process has the lease: the API has named the batch, so it is no longer looked for.
        """
        with self._database.write("created") as db:
            meta.forget_failures(db)
            (known,) = db.execute("SELECT remote_id FROM batch WHERE id = ?", (batch,)).fetchone()
            if known == remote_id:
                return  # another process has found it, and may have gone on
            self.move(
                db,
                batch,
                BatchState.OPEN,
                remote_id=remote_id,
                created_at=None if created_at is None else micros(created_at),
                expires_at=None if expires_at is None else micros(expires_at),
                polled_at=micros(now),
                failures=0,
            )

    def update(self, view: BatchView, *, was: BatchView | None = None) -> bool:
        """Store the fields of a view (not its groups); with `was`, the view as it was read, only those that differ.

        With `was`, nothing is stored if the state has changed since then and this would change it. Nor does a batch
        become `posting` in another epoch of the lease. Returns whether it was stored.

        Raises:
            LedgerError: It would close a batch that still has requests: they would be lost.
        """
        values = view_values(view)
        with self._database.write(view.state.value) as db:
            (state,) = db.execute("SELECT state FROM batch WHERE id = ?", (view.id,)).fetchone()
            if was is not None:
                before = view_values(was)
                values = {name: value for name, value in values.items() if value != before[name]}
                if not values or ("state" in values and state != was.state.value):
                    return not values
            to = BatchState(values.pop("state", state))
            if to is BatchState.POSTING and not self._in_its_epoch(db, view.id):
                return False
            if to in transitions.OVER:
                self._check_empty(db, view)
            self.move(db, view.id, to, **values)
            if to in transitions.OVER and view.adopted:
                db.execute("DELETE FROM adopted WHERE batch = ?", (view.id,))
            return True

    def _check_empty(self, db: Connection, view: BatchView) -> None:
        (left,) = db.execute("SELECT coalesce(sum(requests), 0) FROM cohort WHERE batch = ?", (view.id,)).fetchone()
        if left:
            raise LedgerError(
                f"batch {view.id} ({printable(view.remote_id or '')}) still has {left} unsettled requests; "
                "settle or requeue them before it is closed"
            )

    def known(self, remote_ids: Sequence[str]) -> frozenset[str]:
        """Return those ids that belong to batches of the ledger."""
        with self._database.read() as db:
            known = (
                db.execute("SELECT remote_id FROM batch WHERE remote_id = ?", (each,)).fetchone() for each in remote_ids
            )
            return frozenset(row[0] for row in known if row is not None)

    def open_rows(self, batch: int) -> OpenRows | None:
        """Return the open rows of a batch; None: `OpenRows` cannot hold them.

        It cannot hold rows of very many kinds, numbers that lie far apart, or paused turns.
        """
        with self._database.read() as db:
            first, last, which = self._sent_in(db, batch)
            turns = db.execute("SELECT EXISTS (SELECT 1 FROM turn WHERE request BETWEEN ? AND ?)", (first, last))
            if turns.fetchone()[0]:
                return None
            return OpenRows.of(
                batch,
                first,
                last,
                _runs(self._database, db, batch, first, last, which),
                partial(self._records.terms, db),
            )

    def _sent_in(self, db: Connection, batch: int) -> tuple[int, int, str]:
        """The first and the last number of a batch, and what holds of its requests that are not settled."""
        first, last, whole = db.execute(f"SELECT first, last, {_WHOLE} FROM batch b WHERE id = ?", (batch,)).fetchone()
        # Of a whole batch nothing is settled: no need to look for each row's result.
        return first, last, SENT_IN if whole else IN_BATCH
