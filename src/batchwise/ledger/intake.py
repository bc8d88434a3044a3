"""How requests come in, one at a time; `bulk` for many."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from uuid import uuid4

import attrs

from batchwise.errors import BatchwiseError, LedgerError
from batchwise.planning.state import Terms

from .base import Intake
from .batches import Batches
from .bulk import SqliteIntake
from .database import Connection, Database
from .keys import StagedError, conflict, find, is_position, same_body
from .rows import IN_FLIGHT, LANE_CODES, LANES, QUEUED, SETTLED, STATUSES, SYNC, decode_key, encode_key, merged
from .store import CHUNK, Moves, Place, Row, place_of, reserve
from .values import Accepted, Cap, Claim, Entry, RequestRow

__all__ = ["Acceptance", "add_job", "job_of"]

_PAUSE = 0.02
_GROUP = 256


@attrs.define(eq=False)
class _Pending:
    """One call of `accept` that waits for a transaction to share."""

    entry: Entry
    job: str | None
    run: int
    now: datetime
    claim: Callable[[Claim], None] | None
    cap: Cap | None
    lock: threading.RLock
    """Held until it is answered, by whoever takes it along."""
    begun: Claim | None = None
    accepted: Accepted | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.accepted is not None or self.error is not None

    def begin(self) -> None:
        """Give out the claim, if there is one."""
        if self.claim is not None and self.begun is not None:
            self.claim(self.begun._replace(accepting=self._durable))

    def _durable(self) -> bool:
        with self.lock:
            return self.accepted is not None


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


class Acceptance(Batches):
    """The accepting half of the protocol."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._pending: deque[_Pending] = deque()
        self._positions: dict[int, _Positions] = {}
        self._intakes: dict[int, int] = {}

    # -- one --------------------------------------------------------------------------------------------------------

    def accept(
        self,
        entry: Entry,
        *,
        job: str | None,
        run: int,
        now: datetime,
        claim: Callable[[Claim], None] | None = None,
        cap: Cap | None = None,
    ) -> Accepted:
        """Accept one request; see `base.Ledger.accept`.

        Threads that accept at the same time share a commit: whoever gets the ledger first takes along what the others
        have asked for meanwhile. An existing request is never claimed by this, unless it was abandoned.

        Raises:
            KeyConflictError: The key is taken by other content.
            SpendLimitError: It could pass the cap.
        """
        while True:
            call = _Pending(entry, job, run, now, claim, cap, self.database.lock)
            self._pending.append(call)
            with self.database.lock:
                if not call.done:
                    self._accept_pending()
            if call.accepted is not None:
                return call.accepted
            if not isinstance(call.error, StagedError):
                raise call.error or LedgerError("the request was not accepted")
            self._await_intake(call.error.intake, threading.get_ident())

    def _accept_pending(self) -> None:
        calls: list[_Pending] = []
        try:
            with self.database.write("accept") as db:
                # Collected only now: waiting for another process's transaction lets more come together.
                while self._pending and len(calls) < _GROUP:
                    calls.append(self._pending.popleft())
                answers: list[tuple[_Pending, Accepted | None, BaseException | None]] = []
                for call in calls:
                    # `_accept` writes nothing before its last refusal, so a refused call leaves no trace.
                    try:
                        answers.append((call, self._accept(db, call), None))
                    except (BatchwiseError, StagedError) as error:
                        answers.append((call, None, error))
                for call in calls:
                    call.begin()
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

    def _accept(self, db: Connection, call: _Pending) -> Accepted:
        entry, cap = call.entry, call.cap
        name = None if call.job is None else encode_key(call.job)
        job, visible = job_of(db, name)
        position, unheard = None, False
        if entry.key is not None:
            key = encode_key(entry.key)
        elif name is not None:
            position = self._position(db, job, entry)
            key = b"#%d" % position
        else:
            key, unheard = b"~" + uuid4().hex.encode(), True
        found = None if job is None or unheard else find(db, job, key)
        if found is None:
            self._check_cap(db, cap, reserve(entry.terms, 1, len(entry.body)))
            if job is None:
                job = add_job(self.database, db, name)
            if not visible:
                db.execute("UPDATE job SET visible = 1 WHERE id = ?", (job,))
            accepted = Accepted(self._insert(db, call, job, key), True)
        else:
            if found.staged:
                raise StagedError(found.staged)
            if not self._same(db, found.id, found.terms, entry.body, entry.terms):
                raise conflict(decode_key(key), call.job, adopted=self._terms(db, found.terms).adopted)
            anew = self._again(db, found.id, entry.terms, call)
            row = self._row(db, found.id)
            if row is None:
                raise LedgerError(f"request {found.id} was stored and is not there")
            accepted = Accepted(row, anew)
        if position is not None and job is not None:
            self._positions.setdefault(job, _Positions()).use(position)
            db.execute("UPDATE job SET positions = ? WHERE id = ? AND positions < ?", (position + 1, job, position + 1))
        return accepted

    def _insert(self, db: Connection, call: _Pending, job: int, key: bytes) -> RequestRow:
        entry = call.entry
        terms = self._store_terms(db, entry.terms, job)
        number = self._last_request(db) + 1
        lane = SYNC if call.claim else LANE_CODES[entry.terms.lane]
        status = IN_FLIGHT if call.claim else QUEUED
        size = len(entry.body)
        db.execute(
            "INSERT INTO request (id, job, key, terms, size, lane, run, status) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (number, job, key, terms, size, lane, call.run, status),
        )
        db.execute("INSERT INTO body VALUES (?, ?)", (number, entry.body))
        moves = Moves(self, db, call.now)
        moves.add(Place(terms, lane, status, 0, 0), 1, size)
        moves.book()
        row = RequestRow(
            number, decode_key(key), job, self._terms(db, terms), LANES[lane], STATUSES[status], 0, None, None
        )
        if call.claim is not None:
            call.begun = Claim(number, row.key, row.terms, entry.body, 0, ())
        return row

    def _position(self, db: Connection, job: int | None, entry: Entry) -> int:
        """The position of the next request without a key: where it was in an earlier run, else the job's end."""
        if job is None:
            return 0
        used = self._positions.setdefault(job, _Positions())
        while True:
            found = find(db, job, b"#%d" % used.next)
            if found is None or self._same(db, found.id, found.terms, entry.body, entry.terms):
                return used.next
            alike = db.execute(
                "SELECT q.id, q.key, q.terms FROM request q JOIN body b ON b.id = q.id "
                "WHERE q.job = ? AND q.key >= X'23' AND q.key < X'24' AND (length(b.params) = ? "
                "OR EXISTS (SELECT 1 FROM turn t WHERE t.request = q.id))",
                (job, len(entry.body)),
            ).fetchall()
            known = sorted(
                int(key[1:])
                for number, key, terms in alike
                if is_position(key) and self._same(db, number, terms, entry.body, entry.terms)
            )
            again = next((each for each in known if each >= used.next and each not in used.ahead), None)
            if again is not None:
                return again
            (end,) = db.execute("SELECT positions FROM job WHERE id = ?", (job,)).fetchone()
            while find(db, job, b"#%d" % end) is not None:
                end += 1
            return int(end)

    def _again(self, db: Connection, number: int, new: Terms, call: _Pending) -> bool:
        """The same request once more: tightened, or begun anew if it was abandoned; returns whether it was."""
        row = self._rows(db, [number])[number]
        moves = Moves(self, db, call.now)
        anew = self._join(db, moves, row, new, run=call.run, now=call.now, cap=call.cap)
        moves.book()
        if anew and call.claim is not None:
            (call.begun,) = self._hand_over(db, [self._rows(db, [number])[number]], call.run, call.now)
        return anew

    def _join(
        self,
        db: Connection,
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
            self._check_cap(db, cap, reserve(new, 1, row.size))
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

    def _same(self, db: Connection, request: int, terms: int, body: bytes, new: Terms) -> bool:
        """Whether a request has this content: its canonical params, betas and stream."""
        old = self._terms(db, terms)
        return (old.betas, old.stream) == (new.betas, new.stream) and same_body(db, request, body)

    # -- many -------------------------------------------------------------------------------------------------------

    def intake(self, *, job: str | None, run: int, now: datetime) -> Intake:  # noqa: ARG002 (the protocol's)
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
                    self._intakes[mine] = threading.get_ident()
                    return SqliteIntake(self, mine, job=job, job_id=number, run=run)
            self._await_intake(other[0], threading.get_ident())

    def _await_intake(self, intake: int, thread: int) -> None:
        """Wait, for this thread, until a bulk dispatch has ended; end it, if its process is dead.

        Raises:
            LedgerError: It is the thread's own, and would never end.
        """
        if self._intakes.get(intake) == thread:
            raise LedgerError(
                "this thread is within a bulk dispatch that holds this job or key; end it before dispatching into it"
            )
        with self.database.read() as db:
            found = db.execute("SELECT run FROM intake WHERE id = ?", (intake,)).fetchone()
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
            with self.database.write("abort") as db:
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

    def _intake_ended(self, intake: int, job: int | None, positions: int) -> None:
        """A bulk dispatch was accepted; in a named job it took so many positions."""
        self._intakes.pop(intake, None)
        if job is not None:
            self._positions[job] = _Positions(positions)


def job_of(db: Connection, name: bytes | None) -> tuple[int | None, bool]:
    """The number of a job, and whether it has been accepted; the shared scope has number 0."""
    if name is None:
        return 0, True
    return db.execute("SELECT id, visible FROM job WHERE name = ?", (name,)).fetchone() or (None, False)


def add_job(database: Database, db: Connection, name: bytes | None) -> int:
    """A new job's number; it is visible once something of it is accepted."""
    return database.insert(db, "INSERT INTO job (name) VALUES (?)", (name,))
