"""Accepts requests one at a time; `bulk` accepts many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import uuid4

import attrs

from batchwise.errors import BatchwiseError, LedgerError

from .books import Books, Place, cost_to_reserve
from .bulk import Intakes
from .claims import Claims
from .database import Connection, Database
from .jobs import add_job, job_of
from .keys import Positions, StagedError, find, is_position
from .records import LookedUp, Records
from .repeats import Repeats
from .requests import Requests
from .rows import IN_FLIGHT, LANE_CODES, LANES, QUEUED, STATUSES, SYNC, decode_key, encode_key
from .sharing import Call, SharedCommit
from .values import Accepted, Claim, Entry, Offer, RequestRow

__all__ = ["Accepting"]


@attrs.define(eq=False)
class _Pending(Call):
    """One call of `accept`."""

    offer: Offer
    accepted: Accepted | None = None
    """Its outcome, once the transaction is durable."""
    key: bytes | None = attrs.field(init=False)
    """None: it is given a position in its job."""
    looked_up: Callable[[], LookedUp] | None = None
    """What was asked for before the work began."""

    def __attrs_post_init__(self) -> None:
        if self.offer.entry.key is not None:
            self.key = encode_key(self.offer.entry.key)
        else:
            self.key = b"~" + uuid4().hex.encode() if self.offer.job is None else None


@attrs.define
class _Added:
    """The rows that a transaction has added so far."""

    requests: int = 0
    keys: set[tuple[int, bytes]] = attrs.field(factory=set)


class Accepting:
    """Accepts requests, one at a time."""

    def __init__(
        self,
        database: Database,
        records: Records,
        books: Books,
        *,
        requests: Requests,
        claims: Claims,
        repeats: Repeats,
        intakes: Intakes,
        positions: Positions,
    ) -> None:
        self._database, self._records, self._books = database, records, books
        self._requests, self._claims, self._repeats = requests, claims, repeats
        self._intakes, self._positions = intakes, positions
        self._shared: SharedCommit[_Pending] = SharedCommit(
            database, "accept", self._accept_all, positions.forget, self._look_up
        )

    def accept(self, offer: Offer) -> Accepted:
        """Accept one request. If this raises, a claim that was added counts only if the ledger has its request.

        The same key with the same content gives the existing row; an earlier deadline tightens it (new terms, and
        their lane if it is still queued). An abandoned row is accepted anew. In a named job an entry without a key
        gets the first free or equal `#<position>`.

        Threads that accept at the same time share a commit: the first one that gets the ledger takes the calls of the
        others along. An existing request is not claimed by this, unless it was abandoned.

        Raises:
            KeyConflictError: The key is taken by other content.
            SpendLimitError: It could pass the spend limit.
        """
        while True:
            try:
                return self._accepted(_Pending(offer))
            except StagedError as error:
                self._intakes.wait_for(error.intake)

    def begin_accept(self, offer: Offer) -> Callable[[], Accepted]:
        """Begin to accept one request; returns a function that waits for the commit, and has to be called.

        A thread that asks for many before it waits for the first needs one commit for all. As `accept`, but a key that
        a bulk dispatch is about to store raises StagedError.
        """
        call = _Pending(offer)
        self._shared.ask(call)
        return partial(self._accepted, call)

    def _accepted(self, call: _Pending) -> Accepted:
        self._shared.carry_out(call)
        if call.error is not None or call.accepted is None:
            raise call.error or LedgerError("the request was not accepted")
        return call.accepted

    def _look_up(self, db: Connection, calls: list[_Pending]) -> None:
        """Ask for what the usual case needs, a request without a job; others ask step by step."""
        for call in calls:
            if call.offer.job is None and call.key is not None:
                call.looked_up = self._records.look_up(db, call.offer.entry.terms, 0, call.key)

    def _accept_all(self, db: Connection, calls: list[_Pending]) -> None:
        added = _Added()
        for call in calls:
            # `_accept` writes nothing before its last refusal, so a refused call leaves no trace.
            try:
                call.accepted = self._accept(db, call, added)
            except (BatchwiseError, StagedError) as error:
                call.error = error

    def _accept(self, db: Connection, call: _Pending, added: _Added) -> Accepted:
        offer, key, position = call.offer, call.key, None
        entry = offer.entry
        name = None if offer.job is None else encode_key(offer.job)
        job, visible = job_of(db, name)
        if key is None:
            position = self._position(db, job, entry)
            key = b"#%d" % position
        known = None if call.looked_up is None else call.looked_up()
        free = known is not None and not known.taken and (job, key) not in added.keys
        found = None if job is None or free else find(db, job, key)
        if found is None:
            self._books.check_max_spend(db, offer.max_spend, cost_to_reserve(entry.terms, 1, len(entry.body)))
            if job is None:
                job = add_job(self._database, db, name)
            if not visible:
                db.execute("UPDATE job SET visible = 1 WHERE id = ?", (job,))
            accepted = Accepted(self._insert(db, offer, job, key, known, added), True)
        else:
            if found.staged:
                raise StagedError(found.staged)
            if not self._repeats.same(db, found.id, found.terms, entry.body, entry.terms):
                raise self._repeats.conflict(db, found, entry.body, entry.terms, key=key, job=offer.job)
            anew = self._join(db, found.id, offer)
            row = self._requests.find_row(db, found.id)
            if row is None:
                raise LedgerError(f"request {found.id} was stored and is not there")
            accepted = Accepted(row, anew)
        if position is not None and job is not None:
            self._positions.used(job).use(position)
            db.execute("UPDATE job SET positions = ? WHERE id = ? AND positions < ?", (position + 1, job, position + 1))
        return accepted

    def _insert(
        self, db: Connection, offer: Offer, job: int, key: bytes, known: LookedUp | None, added: _Added
    ) -> RequestRow:
        entry = offer.entry
        terms = None if known is None else known.terms
        if terms is None:
            terms = self._records.store_terms(db, entry.terms, job)
        number = (self._records.last_request(db) if known is None else known.last + added.requests) + 1
        added.requests += 1
        added.keys.add((job, key))
        lane = LANE_CODES[entry.terms.lane] if offer.claims is None else SYNC
        status = QUEUED if offer.claims is None else IN_FLIGHT
        size = len(entry.body)
        db.execute(
            "INSERT INTO request (id, job, key, terms, size, lane, run, status) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (number, job, key, terms, size, lane, offer.run, status),
        )
        db.execute("INSERT INTO body VALUES (?, ?)", (number, entry.body))
        moves = self._books.moves(db, offer.now)
        moves.begin(Place(terms, lane, status, 0), 1, size)
        moves.book()
        row = RequestRow(
            number, decode_key(key), job, self._records.terms(db, terms), LANES[lane], STATUSES[status], 0, None, None
        )
        if offer.claims is not None:
            offer.claims.append(Claim(number, row.key, row.terms, entry.body, 0, ()))
        return row

    def _position(self, db: Connection, job: int | None, entry: Entry) -> int:
        """Return the position of the next request without a key: the one of an earlier run, else the job's end."""
        if job is None:
            return 0
        used = self._positions.used(job)
        while True:
            found = find(db, job, b"#%d" % used.next)
            if found is None or self._repeats.same(db, found.id, found.terms, entry.body, entry.terms):
                return used.next
            alike = db.execute(
                "SELECT q.id, q.key, q.terms FROM request q JOIN body b ON b.id = q.id "
                "WHERE q.job = ? AND q.key >= ? AND q.key < ? AND (length(b.params) = ? "
                "OR EXISTS (SELECT 1 FROM turn t WHERE t.request = q.id))",
                (job, b"#", b"$", len(entry.body)),
            ).fetchall()
            known = sorted(
                int(key[1:])
                for number, key, terms in alike
                if is_position(key) and self._repeats.same(db, number, terms, entry.body, entry.terms)
            )
            repeated = next((each for each in known if each >= used.next and each not in used.ahead), None)
            if repeated is not None:
                return repeated
            (end,) = db.execute("SELECT positions FROM job WHERE id = ?", (job,)).fetchone()
            while find(db, job, b"#%d" % end) is not None:
                end += 1
            return int(end)

    def _join(self, db: Connection, number: int, offer: Offer) -> bool:
        """Handle a request that exists: tighten it, or begin it anew if it was abandoned; returns whether it was."""
        row = self._records.rows(db, [number])[number]
        moves, terms = self._books.moves(db, offer.now), offer.entry.terms
        anew = self._repeats.join(db, moves, row, terms, run=offer.run, now=offer.now, max_spend=offer.max_spend)
        moves.book()
        if anew and offer.claims is not None:
            row = self._records.rows(db, [number])[number]
            offer.claims.extend(self._claims.hand_over(db, [row], offer.run, offer.now))
        return anew
