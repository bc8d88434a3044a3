"""How requests come in: one at a time, or in bulk, accepted whole or not at all."""

# An intake is a part of its ledger; statements are made of constants and question marks.
# ruff: noqa: SLF001, S608

from __future__ import annotations

import sqlite3
import threading
import time
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import NamedTuple
from uuid import uuid4

import attrs

from batchwise.errors import BatchwiseError, KeyConflictError, LedgerError, SpendLimitError, shown
from batchwise.models import Lane
from batchwise.planning.state import Terms

from .base import Accepted, Cap, Entry, Intake
from .batches import Lanes
from .rows import BATCH, IN_FLIGHT, LANE_CODES, QUEUED, SETTLED, SYNC, decode_key, encode_key, merged
from .store import CHUNK, Moves, Place, Row, place_of

__all__ = ["Acceptance", "SqliteIntake"]

_PAUSE = 0.02
_GROUP = 256
_PICO = 10**12
_INSERT_REQUEST = (
    "INSERT OR IGNORE INTO request (id, job, key, digest, terms, size, lane, run) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_BODY = "INSERT INTO body VALUES (?, ?)"


# job, key, digest, terms, size, lane, run, body
_StagedRow = tuple[int, bytes, bytes, int, int, int, int, bytes]


class _StagedError(Exception):
    """The key belongs to a bulk that has not been accepted yet."""

    def __init__(self, intake: int) -> None:
        super().__init__()
        self.intake = intake


class _Found(NamedTuple):
    id: int
    digest: bytes
    staged: int
    intake_terms: int


@attrs.define(eq=False)
class _Pending:
    """One call of `accept` that waits for a transaction to share."""

    entry: Entry
    job: str | None
    run: int
    now: datetime
    claim: bool
    cap: Cap | None
    accepted: Accepted | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.accepted is not None or self.error is not None


@attrs.define
class _Positions:
    """Which positions of a job this process has used: those below `next`, and `ahead`."""

    next: int = 0
    ahead: set[int] = attrs.field(factory=set)

    def use(self, position: int) -> None:
        self.ahead.add(position)
        while self.next in self.ahead:
            self.ahead.remove(self.next)
            self.next += 1


class Acceptance(Lanes):
    """The accepting half of the protocol."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._pending: deque[_Pending] = deque()
        self._positions: dict[int, _Positions] = {}
        self._intakes: dict[int, int] = {}

    # -- one --------------------------------------------------------------------------------------------------------

    def accept(
        self, entry: Entry, *, job: str | None, run: int, now: datetime, claim: bool = False, cap: Cap | None = None
    ) -> Accepted:
        """Accept one request (`claim`: the run starts it on the sync lane at once, without a queue in between).

        Threads that accept at the same time share a commit: whoever gets the ledger first takes along what the others
        have asked for meanwhile. An existing request is never claimed by this; `claim_one` does.

        Raises:
            KeyConflictError: The key is taken by other content.
            SpendLimitError: It could pass the cap.
        """
        while True:
            call = _Pending(entry, job, run, now, claim, cap)
            self._pending.append(call)
            with self._lock:
                if not call.done:
                    self._accept_pending()
            if call.accepted is not None:
                return call.accepted
            if not isinstance(call.error, _StagedError):
                raise call.error or LedgerError("the request was not accepted")
            self._await_intake(call.error.intake)

    def _accept_pending(self) -> None:
        calls: list[_Pending] = []
        try:
            with self._transaction("accept") as db:
                # Collected only now: waiting for another process's transaction lets more come together.
                while self._pending and len(calls) < _GROUP:
                    calls.append(self._pending.popleft())
                answers: list[tuple[_Pending, Accepted | None, BaseException | None]] = []
                for call in calls:
                    # `_accept` writes nothing before its last refusal, so a refused call leaves no trace.
                    try:
                        answers.append((call, self._accept(db, call), None))
                    except (BatchwiseError, _StagedError) as error:
                        answers.append((call, None, error))
            for call, accepted, refusal in answers:
                call.accepted, call.error = accepted, refusal
        except BaseException as error:
            for call in calls:
                call.error = error
            if not calls:
                # The transaction did not even begin; nobody else can answer those who wait.
                while self._pending:
                    self._pending.popleft().error = error
            self._positions.clear()
            if not isinstance(error, Exception):
                raise

    def _accept(self, db: sqlite3.Connection, call: _Pending) -> Accepted:
        entry, cap = call.entry, call.cap
        name = None if call.job is None else encode_key(call.job)
        found_job = db.execute("SELECT id FROM job WHERE name IS ?", (name,)).fetchone()
        job: int | None = None if found_job is None else found_job[0]
        position = None
        if entry.key is not None:
            key = encode_key(entry.key)
        elif name is None:
            key = b"~" + uuid4().hex.encode()
        else:
            position = self._position(db, job, entry.digest)
            key = b"#%d" % position
        found = None if job is None else _find(db, job, key)
        if found is None:
            self._check_cap(db, cap, entry.terms.reserve_each + len(entry.body) * entry.terms.reserve_per_byte)
            if job is None:
                job = _add_job(db, name)
            db.execute("UPDATE job SET visible = 1 WHERE id = ? AND NOT visible", (job,))
            number = self._insert(db, call, job, key)
        else:
            if found.staged:
                raise _StagedError(found.staged)
            if found.digest != entry.digest:
                raise _conflict(decode_key(key), call.job)
            number = found.id
        created = found is None
        if not created:
            created = self._again(db, number, entry.terms, call)
        if position is not None and job is not None:
            self._positions.setdefault(job, _Positions()).use(position)
            db.execute("UPDATE job SET positions = ? WHERE id = ? AND positions < ?", (position + 1, job, position + 1))
        row = self._row(db, number)
        if row is None:
            raise LedgerError(f"request {number} was stored and is not there")
        return Accepted(row, created)

    def _insert(self, db: sqlite3.Connection, call: _Pending, job: int, key: bytes) -> int:
        entry = call.entry
        terms = self._store_terms(db, entry.terms, job)
        number = self._take(db, "request", 1)
        lane = SYNC if call.claim else LANE_CODES[entry.terms.lane]
        status = IN_FLIGHT if call.claim else QUEUED
        size = len(entry.body)
        db.execute(
            "INSERT INTO request (id, job, key, digest, terms, size, lane, run, status) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, job, key, entry.digest, terms, size, lane, call.run, status),
        )
        db.execute(_INSERT_BODY, (number, entry.body))
        moves = Moves(self, db, call.now)
        moves.add(Place(terms, lane, status, 0, 0), 1, size)
        moves.book()
        return number

    def _position(self, db: sqlite3.Connection, job: int | None, digest: bytes) -> int:
        """The position of the next request without a key: where it was in an earlier run, else the job's end."""
        if job is None:
            return 0
        used = self._positions.setdefault(job, _Positions())
        while True:
            found = _find(db, job, b"#%d" % used.next)
            if found is None or found.digest == digest:
                return used.next
            same = db.execute(
                "SELECT key FROM request WHERE job = ? AND key >= X'23' AND key < X'24' AND digest = ?", (job, digest)
            ).fetchall()
            known = sorted(int(key[1:]) for (key,) in same if _is_position(key))
            again = next((each for each in known if each >= used.next and each not in used.ahead), None)
            if again is not None:
                return again
            (end,) = db.execute("SELECT positions FROM job WHERE id = ?", (job,)).fetchone()
            while _find(db, job, b"#%d" % end) is not None:
                end += 1
            return int(end)

    def _again(self, db: sqlite3.Connection, number: int, new: Terms, call: _Pending) -> bool:
        """The same request once more: tightened, or begun anew if it was abandoned; returns whether it was."""
        row = self._rows(db, [number])[number]
        moves = Moves(self, db, call.now)
        anew = self._join(db, moves, row, new, run=call.run, now=call.now, cap=call.cap)
        moves.book()
        if anew and call.claim:
            self._hand_over(db, [self._rows(db, [number])[number]], call.run, call.now)
        return anew

    def _join(
        self,
        db: sqlite3.Connection,
        moves: Moves,
        row: Row,
        new: Terms,
        *,
        run: int,
        now: datetime,
        cap: Cap | None = None,
        flush: bool = False,
    ) -> bool:
        if row.status == SETTLED:
            if not row.abandoned:
                return False
            self._check_cap(db, cap, new.reserve_each + row.size * new.reserve_per_byte)
            self._renew(db, moves, row, new, now=now, run=run, flush=flush)
            return True
        queued = row.status == QUEUED
        terms = merged(self._terms(db, row.terms), new, queued=queued)
        if terms is not None:
            number = self._store_terms(db, terms, row.job)
            lane = LANE_CODES[terms.lane] if queued else row.lane
            place = place_of(row)
            # Who waits for its old group waits for it in the new one.
            flush = flush or bool(
                db.execute(
                    "SELECT flush FROM cohort WHERE terms = ? AND lane = ? AND status = ? AND batch = ? "
                    "AND not_before = ?",
                    place,
                ).fetchone()[0]
            )
            moves.add(place, -1, -row.size)
            moves.add(place._replace(terms=number, lane=lane), 1, row.size, flush=flush)
            db.execute("UPDATE request SET terms = ?, lane = ? WHERE id = ?", (number, lane, row.id))
        if queued and row.run != run:
            # Whoever asked last is the one who waits: the row is not abandoned with those before.
            db.execute("UPDATE request SET run = ? WHERE id = ?", (run, row.id))
        return False

    def _check_cap(self, db: sqlite3.Connection, cap: Cap | None, more: int) -> None:
        if cap is None:
            return
        spent, reserved = self._spent(db, cap.since), self._reserved(db)
        if spent + reserved + more > cap.limit:
            raise SpendLimitError(
                f"accepting this could cost {more / _PICO:.6f} USD beside {spent / _PICO:.6f} spent and "
                f"{reserved / _PICO:.6f} reserved for unsettled work, over max_spend={cap.limit / _PICO:.6f}; "
                "raise the limit, or wait until reserved work has settled. Nothing was stored or sent"
            )

    # -- many -------------------------------------------------------------------------------------------------------

    def intake(self, *, job: str | None, run: int, now: datetime) -> Intake:  # noqa: ARG002 (the protocol's)
        """Begin a bulk dispatch. One at a time for each job; a second waits for the first to end.

        Raises:
            LedgerError: This thread is already within a bulk dispatch into this job.
        """
        name = None if job is None else encode_key(job)
        while True:
            with self._transaction("intake") as db:
                found = db.execute("SELECT id FROM job WHERE name IS ?", (name,)).fetchone()
                number = _add_job(db, name) if found is None else found[0]
                other = db.execute("SELECT id FROM intake WHERE job = ?", (number,)).fetchone()
                if other is None:
                    mine = db.execute("INSERT INTO intake (job, run) VALUES (?, ?)", (number, run)).lastrowid or 0
                    self._intakes[mine] = threading.get_ident()
                    return SqliteIntake(self, mine, job=job, job_id=number, run=run)
            self._await_intake(other[0])

    def _await_intake(self, intake: int) -> None:
        """Wait for a bulk dispatch to end; end it, if its process is dead.

        Raises:
            LedgerError: It is this thread's own, and would never end.
        """
        if self._intakes.get(intake) == threading.get_ident():
            raise LedgerError(
                "this thread is within a bulk dispatch that holds this job or key; end it before dispatching into it"
            )
        with self._using():
            found = self._db.execute("SELECT run FROM intake WHERE id = ?", (intake,)).fetchone()
        if found is None:
            return
        if not self._alive(found[0]):
            self._abort(intake)
            return
        time.sleep(_PAUSE)

    def _alive(self, run: int) -> bool:
        raise NotImplementedError

    def _abort(self, intake: int) -> None:
        """Remove what a bulk dispatch has staged, some rows at a time."""
        gone = CHUNK
        while gone == CHUNK:
            with self._transaction("abort") as db:
                found = db.execute(
                    "SELECT id FROM request WHERE status = 0 AND terms IN (SELECT id FROM terms WHERE staged = ?) "
                    f"LIMIT {CHUNK}",
                    (intake,),
                ).fetchall()
                gone = len(found)
                db.executemany("DELETE FROM request WHERE id = ?", found)
                if gone < CHUNK:
                    db.execute("DELETE FROM intake WHERE id = ?", (intake,))
                    db.execute("DELETE FROM terms WHERE staged = ?", (intake,))
        self._intakes.pop(intake, None)


class SqliteIntake:
    """One bulk dispatch; see `base.Intake`."""

    def __init__(self, ledger: Acceptance, number: int, *, job: str | None, job_id: int, run: int) -> None:
        self._ledger, self._id, self._run = ledger, number, run
        self._job, self._job_id = job, job_id
        self._numbers = array("q")
        self._prefix = b"~" + uuid4().hex.encode()
        # By identity first: hashing terms costs more than the rest of a row.
        self._known: dict[int, tuple[Terms, int]] = {}
        self._numbered: dict[Terms, int] = {}
        self._stored: set[int] = set()
        self._counts: dict[int, list[int]] = {}
        self._flush: set[int] = set()
        self._reserve = 0
        self._collided = False
        self._open = True

    def __enter__(self) -> SqliteIntake:  # noqa: PYI034 (typing.Self is younger than Python 3.10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._open = False
            self._ledger._abort(self._id)

    def stage(self, entries: Sequence[Entry]) -> None:
        """Stage some more, in one transaction.

        Raises:
            KeyConflictError: A key is taken by other content (in the ledger or earlier in this intake).
        """
        self._check_open()
        ledger = self._ledger
        while True:
            try:
                with ledger._transaction("stage") as db:
                    numbers, counts, reserve = self._stage(db, entries)
            except BaseException as error:
                # Terms that were stored with this chunk went with it.
                self._known.clear()
                self._numbered = {terms: number for terms, number in self._numbered.items() if number in self._stored}
                if not isinstance(error, _StagedError):
                    raise
                ledger._await_intake(error.intake)
                continue
            self._stored.update(self._numbered.values())
            break
        # Only now: a chunk that failed leaves no trace here either.
        self._numbers.extend(numbers)
        self._reserve += reserve
        for terms, (count, size) in counts.items():
            sums = self._counts.setdefault(terms, [0, 0])
            sums[0] += count
            sums[1] += size

    def _check_open(self) -> None:
        if not self._open:
            raise LedgerError("this bulk dispatch has ended; begin another")

    def _stage(self, db: sqlite3.Connection, entries: Sequence[Entry]) -> tuple[array[int], dict[int, list[int]], int]:
        rows = self._prepare(db, entries)
        if not self._collided:
            first = self._ledger._take(db, "request", 0)
            db.execute("SAVEPOINT chunk")
            inserted = db.executemany(
                _INSERT_REQUEST, [(first + index, *row[:-1]) for index, row in enumerate(rows)]
            ).rowcount
            if inserted == len(rows):
                db.execute("RELEASE chunk")
                db.executemany(_INSERT_BODY, [(first + index, row[-1]) for index, row in enumerate(rows)])
                self._ledger._take(db, "request", len(rows))
                return self._sum(rows, array("q", range(first, first + len(rows))), None)
            db.execute("ROLLBACK TO chunk")
            db.execute("RELEASE chunk")
            # Some exist. A second run of a script meets them all, so the next chunks look first.
            self._collided = True
        return self._stage_slowly(db, rows)

    def _prepare(self, db: sqlite3.Connection, entries: Sequence[Entry]) -> list[_StagedRow]:
        job, run, known, start = self._job_id, self._run, self._known, len(self._numbers)
        rows = []
        for index, (key, digest, body, terms) in enumerate(entries, start):
            if key is not None:
                encoded = key.encode("utf-8", "surrogatepass")
            elif self._job is None:
                encoded = b"%b-%d" % (self._prefix, index)
            else:
                encoded = b"#%d" % index
            remembered = known.get(id(terms))
            if remembered is None:
                stored = self._numbered.get(terms)
                if stored is None:
                    stored = self._numbered[terms] = self._ledger._store_terms(db, terms, job, staged=self._id)
                remembered = known[id(terms)] = (terms, stored)
            rows.append((job, encoded, digest, remembered[1], len(body), LANE_CODES[terms.lane], run, body))
        return rows

    def _sum(
        self,
        rows: Sequence[_StagedRow],
        numbers: array[int],
        fresh: Sequence[bool] | None,
    ) -> tuple[array[int], dict[int, list[int]], int]:
        counts: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if fresh is None or fresh[index]:
                sums = counts.get(row[3])
                if sums is None:
                    sums = counts[row[3]] = [0, 0]
                sums[0] += 1
                sums[1] += row[4]
        each = {stored: terms for terms, stored in self._known.values()}
        reserve = sum(
            count * each[terms].reserve_each + size * each[terms].reserve_per_byte
            for terms, (count, size) in counts.items()
        )
        return numbers, counts, reserve

    def _stage_slowly(
        self,
        db: sqlite3.Connection,
        rows: Sequence[_StagedRow],
    ) -> tuple[array[int], dict[int, list[int]], int]:
        ledger = self._ledger
        numbers, fresh = array("q"), []
        flush = set()
        next_number = first = ledger._take(db, "request", 0)
        for row in rows:
            found = _find(db, self._job_id, row[1])
            if found is None:
                db.execute(_INSERT_REQUEST, (next_number, *row[:-1]))
                db.execute(_INSERT_BODY, (next_number, row[-1]))
                numbers.append(next_number)
                fresh.append(True)
                next_number += 1
                continue
            if found.staged not in {0, self._id}:
                raise _StagedError(found.staged)
            if found.digest != row[2]:
                raise _conflict(decode_key(row[1]), self._job)
            numbers.append(found.id)
            fresh.append(False)
            flush.add(found.intake_terms)
            if found.intake_terms != row[3]:
                # What to do with it is decided when the bulk is accepted: until then nothing of it counts.
                db.execute("INSERT INTO again (intake, request, terms) VALUES (?, ?, ?)", (self._id, found.id, row[3]))
        ledger._take(db, "request", next_number - first)
        self._flush |= flush
        return self._sum(rows, numbers, fresh)

    def accept(
        self,
        *,
        now: datetime,
        cap: Cap | None = None,
        flush: bool = True,
        sync: Mapping[Terms, tuple[int, Terms]] | None = None,
    ) -> Sequence[int]:
        """Accept all of it in one transaction; returns the numbers of its requests (existing ones included), in order.

        `sync`: of these terms (as staged) the last so many are queued for the sync lane instead.

        Raises:
            SpendLimitError: It could pass the cap; all of it stays out.
        """
        self._check_open()
        ledger = self._ledger
        with ledger._transaction("intake accept") as db:
            ledger._check_cap(db, cap, self._reserve)
            db.execute("UPDATE terms SET staged = 0 WHERE staged = ?", (self._id,))
            moves = Moves(ledger, db, now)
            for number, (count, size) in self._counts.items():
                lane = LANE_CODES[ledger._terms(db, number).lane]
                moves.add(Place(number, lane, QUEUED, 0, 0), count, size, flush=flush)
            for terms, (count, others) in (sync or {}).items():
                self._divert(db, moves, terms, count, others, flush=flush)
            # Booked before rows that were there are joined: those of this bulk may be among them.
            moves.book()
            self._join_again(db, now, cap, flush=flush)
            if flush:
                db.executemany(
                    "UPDATE cohort SET flush = 1 WHERE terms = ? AND status = 0",
                    [(number,) for number in sorted(self._flush)],
                )
            db.execute(
                "UPDATE job SET visible = 1, positions = max(positions, ?) WHERE id = ?",
                (len(self._numbers) if self._job is not None else 0, self._job_id),
            )
            db.execute("DELETE FROM intake WHERE id = ?", (self._id,))
        self._open = False
        ledger._intakes.pop(self._id, None)
        if self._job is not None:
            ledger._positions[self._job_id] = _Positions(len(self._numbers))
        return self._numbers

    def _divert(
        self, db: sqlite3.Connection, moves: Moves, terms: Terms, count: int, others: Terms, *, flush: bool
    ) -> None:
        """The last `count` requests staged with these terms go to the sync lane's queue, on others."""
        number = self._numbered.get(terms)
        if number is None or terms.lane is Lane.SYNC:
            return
        new = self._ledger._store_terms(db, others, self._job_id)
        last = "SELECT id FROM request WHERE terms = ? AND status = 0 AND lane = 1 ORDER BY id DESC LIMIT ?"
        requests, size = db.execute(
            f"SELECT count(*), total(size) FROM request WHERE id IN ({last})", (number, count)
        ).fetchone()
        db.execute(f"UPDATE request SET lane = 0, terms = ? WHERE id IN ({last})", (new, number, count))
        moves.add(Place(number, BATCH, QUEUED, 0, 0), -requests, -int(size))
        moves.add(Place(new, SYNC, QUEUED, 0, 0), requests, int(size), flush=flush)

    def _join_again(self, db: sqlite3.Connection, now: datetime, cap: Cap | None, *, flush: bool) -> None:
        """Requests that were there already: tightened, or begun anew."""
        ledger, after = self._ledger, 0
        while found := db.execute(
            "SELECT id, request, terms FROM again WHERE intake = ? AND id > ? ORDER BY id LIMIT ?",
            (self._id, after, CHUNK),
        ).fetchall():
            for _, request, terms in found:
                row = ledger._rows(db, [request]).get(request)
                if row is not None:
                    moves = Moves(ledger, db, now)
                    new = ledger._terms(db, terms)
                    ledger._join(db, moves, row, new, run=self._run, now=now, cap=cap, flush=flush)
                    moves.book()
            after = found[-1][0]


def _add_job(db: sqlite3.Connection, name: bytes | None) -> int:
    return db.execute("INSERT INTO job (name) VALUES (?)", (name,)).lastrowid or 0


def _find(db: sqlite3.Connection, job: int, key: bytes) -> _Found | None:
    found = db.execute(
        "SELECT q.id, q.digest, t.staged, q.terms FROM request q JOIN terms t ON t.id = q.terms "
        "WHERE q.job = ? AND q.key = ?",
        (job, key),
    ).fetchone()
    return None if found is None else _Found._make(found)


def _is_position(key: bytes) -> bool:
    digits = key[1:]
    return digits.isdigit() and (digits == b"0" or digits[:1] != b"0")


def _conflict(key: str, job: str | None) -> KeyConflictError:
    where = "without a job" if job is None else f"in the job {shown(job)}"
    return KeyConflictError(
        f"the key {shown(key)} {where} belongs to a request with other content; "
        "give this one another key, or dispatch it under another job name"
    )
