"""A bulk dispatch: staged in chunks, accepted whole or not at all."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, islice
from types import TracebackType
from uuid import uuid4

import attrs

from batchwise.errors import LedgerError
from batchwise.models import Lane
from batchwise.planning.state import Terms

from .books import Books, Moves, Place, cost_to_reserve
from .database import Connection, Database
from .forks import check_own
from .jobs import add_job, job_of
from .keys import Positions, StagedError, find
from .ranges import Ranges
from .records import CHUNK, Records
from .repeats import Repeats
from .rows import BATCH, LANE_CODES, QUEUED, SYNC, encode_key
from .runs import Runs
from .unnamed import Unnamed
from .values import Entry, MaxSpend

__all__ = ["Intake", "Intakes"]

_ROWS, _BYTES = 1_000, 1_000_000
"""Requests, and bytes of their bodies, staged in one transaction, and held in memory meanwhile."""
_PAUSE = 0.02
"""Seconds between two looks at a bulk dispatch that is waited for."""
_REQUEST = "request (id, job, key, terms, size, lane, run)"
_BODY = "body (id, params)"


class _CollidedError(Exception):
    """Some keys of a chunk are taken: the transaction is rolled back, and each request is looked up by itself."""


class _Bodies:
    """Bodies in one buffer, cut out of it when they are stored: thousands of small objects would fragment the heap.

    Without this a bulk job's peak of memory is 1.13 times as high (20,000 requests of 1 KB), its CPU 1.03 times.
    """

    def __init__(self, whole: bytearray, sizes: list[int]) -> None:
        self.sizes = sizes
        self._whole, self._ends = whole, list(accumulate(sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, part: slice) -> list[bytearray]:
        return [self._whole[end - size : end] for size, end in zip(self.sizes[part], self._ends[part], strict=True)]


@attrs.frozen
class _Chunk:
    """Requests to stage, column by column: of plain values the garbage collector has nothing to follow."""

    keys: list[bytes]
    bodies: _Bodies
    changes: list[tuple[int, int]]
    """Where the terms change: the index of a request, and of its terms in the intake. Mostly all are on the same."""

    def alike(self) -> Iterator[tuple[int, range]]:
        """Yield runs of requests on the same terms: the index of the terms in the intake, and those of the requests."""
        ends = [*(start for start, _ in self.changes[1:]), len(self.keys)]
        for (start, terms), end in zip(self.changes, ends, strict=True):
            yield terms, range(start, end)

    @property
    def terms(self) -> Iterator[int]:
        """The index of each request's terms in the intake."""
        return (terms for terms, places in self.alike() for _ in places)


@attrs.frozen
class _Staged:
    """Requests that were staged."""

    numbers: Ranges = attrs.field(factory=Ranges)
    counts: dict[int, list[int]] = attrs.field(factory=dict)
    """How many of them are new, and the bytes of their bodies, by the index of their terms."""
    flush: set[int] = attrs.field(factory=set)
    """The terms of those that the ledger had before: somebody waits for these, too."""

    def add(self, terms: int, size: int, requests: int = 1) -> None:
        """Count new requests, whose bodies have `size` bytes together."""
        sums = self.counts.get(terms)
        if sums is None:
            sums = self.counts[terms] = [0, 0]
        sums[0] += requests
        sums[1] += size


class Intake:
    """A bulk dispatch: staged in chunks, visible and durable as a whole by one `accept`, or not at all.

    As a context manager it aborts what was not accepted. Staged rows of a process that died are removed by
    `Ledger.recover`. It belongs to its process: a forked child that uses it gets an error, and aborts nothing.
    """

    def __init__(self, intakes: Intakes, number: int, *, job: str | None, job_id: int, run: int) -> None:
        self._intakes, self._id, self._run = intakes, number, run
        self._database, self._records, self._books = intakes.database, intakes.records, intakes.books
        self._job, self._job_id = job, job_id
        self.job = job_id
        """The number of its job; without a name it is the shared scope until it is accepted, then one of its own."""
        self._prefix = b"~" + uuid4().hex.encode()
        self._terms: list[Terms] = []
        self._stored: list[int] = []
        """Their numbers in the ledger, as far as they are stored."""
        self._index: dict[Terms, int] = {}
        self._sum = _Staged()
        self._taken = 0
        """How many requests were taken in so far, staged or not yet."""
        self._collided = False
        self._open, self._pid = True, os.getpid()

    def __enter__(self) -> Intake:  # noqa: PYI034 (typing.Self is younger than Python 3.10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._open = False
            if self._pid == os.getpid():
                self._intakes.abort(self._id)

    def stage(self, entries: Iterable[Entry]) -> int:
        """Stage entries, some in each transaction; returns how many.

        Code of the caller that the iterable runs is run outside of transactions.

        Raises:
            KeyConflictError: A key is taken by other content (in the ledger or earlier in this intake).
            ForkedDispatcherError: This is a child of the process that began it.
        """
        self._check_open()
        source, before = iter(entries), len(self._sum.numbers)
        try:
            while (chunk := self._take_in(source)).keys:
                self._stage_chunk(chunk)
        finally:
            self._taken = len(self._sum.numbers)  # what failed is not counted
        return self._taken - before

    def _stage_chunk(self, chunk: _Chunk) -> None:
        """Stage these, in one transaction."""
        staged = self._store_chunk(chunk)
        # Only now: a chunk that failed leaves no trace here either.
        for numbers in staged.numbers.ranges:
            self._sum.numbers.add(numbers)
        self._sum.flush.update(staged.flush)
        for terms, (requests, size) in staged.counts.items():
            self._sum.add(terms, size, requests)

    def _store_chunk(self, chunk: _Chunk) -> _Staged:
        before = len(self._stored)
        while True:
            try:
                with self._database.write("stage", durable=False) as db:
                    staged = self._stage(db, chunk)
            except BaseException as error:
                del self._stored[before:]  # terms that were stored with this chunk went with it
                if isinstance(error, StagedError):
                    self._intakes.wait_for(error.intake)
                elif isinstance(error, _CollidedError):
                    # A second run of a script meets them all, so this chunk and the next ones look first.
                    self._collided = True
                else:
                    raise
                continue
            return staged

    @property
    def fresh(self) -> list[tuple[Terms, int, int]]:
        """The staged requests that are new, by terms: the terms, how many, and the bytes of their bodies."""
        return [(self._terms[index], requests, size) for index, (requests, size) in self._sum.counts.items()]

    def _check_open(self) -> None:
        check_own("this bulk dispatch was begun", self._pid)
        if not self._open:
            raise LedgerError("this bulk dispatch has ended; begin another")

    def _take_in(self, source: Iterator[Entry]) -> _Chunk:
        """Return the next entries, as many as one transaction should hold."""
        keys, whole, sizes, changes = list[bytes](), bytearray(), list[int](), list[tuple[int, int]]()
        last = None
        for position, (key, body, terms) in enumerate(islice(source, _ROWS), self._taken):
            if key is not None:
                keys.append(key.encode("utf-8", "surrogatepass"))
            elif self._job is None:
                keys.append(b"%b-%d" % (self._prefix, position))
            else:
                keys.append(b"#%d" % position)
            if terms is not last:
                changes.append((len(sizes), self._number(terms)))
                last = terms
            whole += body
            sizes.append(len(body))
            if len(whole) >= _BYTES:
                break
        self._check_open()  # the caller's iterable may have forked
        self._taken += len(keys)
        return _Chunk(keys, _Bodies(whole, sizes), changes)

    def _number(self, terms: Terms) -> int:
        index = self._index.setdefault(terms, len(self._terms))
        if index == len(self._terms):
            self._terms.append(terms)
        return index

    def _stage(self, db: Connection, chunk: _Chunk) -> _Staged:
        for terms in self._terms[len(self._stored) :]:
            self._stored.append(self._records.store_terms(db, terms, self._job_id, staged=self._id))
        if not self._collided:
            first = self._records.last_request(db) + 1
            numbers = range(first, first + len(chunk.keys))
            if not self._insert(db, chunk, numbers):
                raise _CollidedError  # no savepoint: it would keep a copy of each page that is changed
            staged = _Staged(Ranges(numbers))
            for index, places in chunk.alike():
                staged.add(index, sum(chunk.bodies.sizes[places.start : places.stop]), len(places))
            return staged
        return self._stage_slowly(db, chunk)

    def _insert(self, db: Connection, chunk: _Chunk, numbers: Sequence[int]) -> bool:
        """Insert requests with their bodies; False: a key is taken, and some of them are missing."""
        terms: list[int] | int
        lanes: list[int] | int
        if len(chunk.changes) == 1:
            ((_, index),) = chunk.changes
            terms, lanes = self._stored[index], LANE_CODES[self._terms[index].lane]
        else:
            terms = [self._stored[index] for index in chunk.terms]
            lanes = [LANE_CODES[self._terms[index].lane] for index in chunk.terms]
        columns = numbers, self._job_id, chunk.keys, terms, chunk.bodies.sizes, lanes, self._run
        if not self._database.insert_rows(db, _REQUEST, columns):
            return False
        self._database.insert_rows(db, _BODY, (numbers, chunk.bodies))
        return True

    def _stage_slowly(self, db: Connection, chunk: _Chunk) -> _Staged:
        staged = _Staged()
        number = self._records.last_request(db)
        for place, (key, index) in enumerate(zip(chunk.keys, chunk.terms, strict=True)):
            body = bytes(chunk.bodies[place : place + 1][0])
            found = find(db, self._job_id, key)
            if found is None:
                number += 1
                numbers = range(number, number + 1)
                self._insert(db, _Chunk([key], _Bodies(bytearray(body), [len(body)]), [(0, index)]), numbers)
                staged.numbers.add(numbers)
                staged.add(index, len(body))
                continue
            if found.staged not in {0, self._id}:
                raise StagedError(found.staged)
            if not self._intakes.repeats.same(db, found.id, found.terms, body, self._terms[index]):
                before, here = self._sum.numbers.all(), staged.numbers.all()
                raise self._intakes.repeats.conflict(
                    db,
                    found,
                    body,
                    self._terms[index],
                    key=key,
                    job=self._job,
                    item=len(before) + place,
                    earlier=[*before, *here].index(found.id) if found.staged == self._id else None,
                )
            staged.numbers.add(range(found.id, found.id + 1))
            staged.flush.add(found.terms)
            terms = self._stored[index]
            if found.terms != terms:
                # What to do with it is decided when the bulk is accepted: until then nothing of it counts.
                db.execute(
                    "INSERT INTO repeated (intake, request, terms) VALUES (?, ?, ?)", (self._id, found.id, terms)
                )
        return staged

    def accept(
        self,
        *,
        now: datetime,
        max_spend: MaxSpend | None = None,
        flush: bool = True,
        sync: Mapping[Terms, tuple[int, Terms]] | None = None,
    ) -> Sequence[int]:
        """Accept all of it in one transaction; returns the numbers of its requests (existing ones included), in order.

        `sync`: how many of the last requests on these terms are queued for the sync lane instead, and on which terms.

        Raises:
            SpendLimitError: It could pass the spend limit; all of it stays out.
        """
        self._check_open()
        numbers = self._sum.numbers.all()
        more = sum(cost_to_reserve(*each) for each in self.fresh)
        with self._database.write("intake accept") as db:
            self._books.check_max_spend(db, max_spend, more)
            db.execute("UPDATE terms SET staged = 0 WHERE staged = ?", (self._id,))
            moves = self._books.moves(db, now)
            for index, (requests, size) in self._sum.counts.items():
                lane = LANE_CODES[self._terms[index].lane]
                moves.begin(Place(self._stored[index], lane, QUEUED, 0), requests, size, flush=flush)
            for terms, (requests, others) in (sync or {}).items():
                self._divert(db, moves, terms, requests, others, flush=flush)
            # Booked before repeated requests are joined: some of them may be of this bulk.
            moves.book()
            self._join_repeated(db, now, max_spend, flush=flush)
            if flush:
                db.executemany(
                    "UPDATE cohort SET flush = 1 WHERE terms = ? AND status = 0",
                    [(number,) for number in sorted(self._sum.flush)],
                )
            positions = len(numbers) if self._job is not None else 0
            db.execute(
                "UPDATE job SET visible = 1, positions = CASE WHEN positions < ? THEN ? ELSE positions END "
                "WHERE id = ?",
                (positions, positions, self._job_id),
            )
            db.execute("DELETE FROM intake WHERE id = ?", (self._id,))
            job = self._job_id if self._job is not None else self._intakes.unnamed.add(db, self._sum.numbers.ranges)
        self.job, self._open = job, False
        self._intakes.accepted(self._id, self._job_id if self._job is not None else None, len(numbers))
        return numbers

    def _divert(self, db: Connection, moves: Moves, terms: Terms, count: int, others: Terms, *, flush: bool) -> None:
        """Queue the last `count` requests that were staged on `terms` for the sync lane, on the terms `others`."""
        index = self._index.get(terms)
        if index is None or terms.lane is Lane.SYNC:
            return
        number = self._stored[index]
        new = self._records.store_terms(db, others, self._job_id)
        last = "SELECT id FROM request WHERE terms = ? AND status = 0 AND lane = 1 ORDER BY id DESC LIMIT ?"
        requests, size = db.execute(
            f"SELECT count(*), coalesce(sum(size), 0) FROM request WHERE id IN ({last})", (number, count)
        ).fetchone()
        db.execute(f"UPDATE request SET lane = 0, terms = ? WHERE id IN ({last})", (new, number, count))
        there = Place(new, SYNC, QUEUED, 0)
        moves.move(Place(number, BATCH, QUEUED, 0), there, requests, size, flush=flush)

    def _join_repeated(self, db: Connection, now: datetime, max_spend: MaxSpend | None, *, flush: bool) -> None:
        """Join the requests that the ledger had before (see `Repeats.join`)."""
        after = 0
        while found := db.execute(
            "SELECT id, request, terms FROM repeated WHERE intake = ? AND id > ? ORDER BY id LIMIT ?",
            (self._id, after, CHUNK),
        ).fetchall():
            for _, request, terms in found:
                row = self._records.rows(db, [request]).get(request)
                if row is not None:
                    moves = self._books.moves(db, now)
                    new = self._records.terms(db, terms)
                    self._intakes.repeats.join(
                        db, moves, row, new, run=self._run, now=now, max_spend=max_spend, flush=flush
                    )
                    moves.book()
            after = found[-1][0]


@attrs.frozen
class Intakes:
    """Begins bulk dispatches, and waits for them or ends them."""

    database: Database
    records: Records
    books: Books
    repeats: Repeats
    runs: Runs
    positions: Positions
    unnamed: Unnamed
    threads: dict[int, int] = attrs.field(factory=dict)
    """The threads that run bulk dispatches, by the number of the dispatch."""
    left: set[int] = attrs.field(factory=set)
    """Bulk dispatches that have ended, and whose rows are perhaps not deleted yet: the database was busy."""

    def intake(self, *, job: str | None, run: int) -> Intake:
        """Begin a bulk dispatch. One at a time for each job; a second waits for the first to end.

        Raises:
            LedgerError: This thread is already within a bulk dispatch into this job.
        """
        name = None if job is None else encode_key(job)
        while True:
            with self.database.write("intake") as db:
                known, _ = job_of(db, name)
                number = add_job(self.database, db, name) if known is None else known
                other = db.execute("SELECT id FROM intake WHERE job = ?", (number,)).fetchone()
                if other is None:
                    mine = self.database.insert(db, "INSERT INTO intake (job, run) VALUES (?, ?)", (number, run))
                    self.threads[mine] = threading.get_ident()
                    return Intake(self, mine, job=job, job_id=number, run=run)
            self.wait_for(other[0])

    def wait_for(self, intake: int) -> None:
        """Wait a moment for a bulk dispatch to end; abort it if its process is dead.

        Raises:
            LedgerError: It is this thread's own, and would never end.
        """
        if intake in self.left:
            self.abort(intake)
            return
        if self.threads.get(intake) == threading.get_ident():
            raise LedgerError(
                "this thread is inside a bulk dispatch that holds this job or key; let that end before this dispatch"
            )
        with self.database.read() as db:
            found = db.execute("SELECT run FROM intake WHERE id = ?", (intake,)).fetchone()
        if found is None:
            return
        if not self.runs.alive(found[0]):
            self.abort(intake)
            return
        time.sleep(_PAUSE)

    def abort(self, intake: int) -> None:
        """Delete what a bulk dispatch has staged, some rows at a time. If that fails, a later call does it."""
        self.left.add(intake)
        self.threads.pop(intake, None)
        gone = CHUNK
        while gone == CHUNK:
            with self.database.write("abort") as db:
                found = db.execute(
                    "SELECT id FROM request WHERE status = 0 AND terms IN (SELECT id FROM terms WHERE staged = ?) "
                    f"LIMIT {CHUNK}",
                    (intake,),
                ).fetchall()
                gone = len(found)
                self.records.delete(db, [number for (number,) in found])
                if gone < CHUNK:
                    db.execute("DELETE FROM intake WHERE id = ?", (intake,))
                    db.execute("DELETE FROM terms WHERE staged = ?", (intake,))
        self.left.discard(intake)

    def abort_of(self, run: int) -> None:
        """Abort the bulk dispatches of a run."""
        with self.database.read() as db:
            found = db.execute("SELECT id FROM intake WHERE run = ?", (run,)).fetchall()
        for (intake,) in found:
            self.abort(intake)

    def accepted(self, intake: int, job: int | None, positions: int) -> None:
        """A bulk dispatch was accepted; in a named job it took so many positions."""
        self.threads.pop(intake, None)
        if job is not None:
            self.positions.take_all(job, positions)
