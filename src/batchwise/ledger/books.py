"""The books: how many unsettled requests are where, what is reserved for them, what was spent, and the spend limit."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from batchwise.errors import SpendLimitError
from batchwise.planning.cache_priming import LIFE, Caching, Hits, Primed
from batchwise.planning.pricing import PICO
from batchwise.planning.state import Group, Terms

from . import meta
from .database import Connection, Database
from .open_rows import Cached
from .records import IN_BATCH, Records, Row
from .rows import BATCH, IN_FLIGHT, LANE_CODES, QUEUED, SYNC, from_micros, micros
from .transitions import RequestState, check_beginning, check_request
from .values import MaxSpend

__all__ = ["Books", "Moves", "Place", "cost_to_reserve", "most_of", "place_of", "unreserved_cost"]

_MICROSECOND = timedelta(microseconds=1)
_BODIES = 128
_MINUTE = timedelta(minutes=1) // _MICROSECOND
_LATER = ", ".join(
    f"{name} = CASE WHEN prefix.{name} > excluded.{name} OR excluded.{name} IS NULL THEN prefix.{name} "
    f"ELSE excluded.{name} END"
    for name in ("used", "kept")
)


_STATES = {
    (BATCH, QUEUED): RequestState.QUEUED_BATCH,
    (SYNC, QUEUED): RequestState.QUEUED_SYNC,
    (BATCH, IN_FLIGHT): RequestState.IN_BATCH,
    (SYNC, IN_FLIGHT): RequestState.CALLING,
}


class Place(NamedTuple):
    """Where an unsettled request is: a cohort's key."""

    terms: int
    lane: int
    status: int
    batch: int

    @property
    def state(self) -> RequestState:
        """The state of the requests there."""
        return _STATES[self.lane, self.status]


def place_of(row: Row) -> Place:
    """The cohort in which an unsettled row is counted."""
    return Place(*row[3:7])


def most_of(terms: Terms, requests: int, size: int, *, lane: int) -> int:
    """Return the most pico-USD that one try of requests of these terms, of `size` bytes in all, costs on this lane."""
    call = requests * terms.max_cost_each + size * terms.max_cost_per_byte
    return call if lane == SYNC else call // 2  # both figures are even


def cost_to_reserve(terms: Terms, requests: int, size: int, *, lane: int | None = None) -> int:
    """Return the pico-USD reserved for requests of these terms that wait or run on this lane; None: their first lane.

    On the batch lane that is a batch and the call of a rescue: a batch that has to be rescued may be paid twice.
    """
    where = LANE_CODES[terms.lane] if lane is None else lane
    call = most_of(terms, requests, size, lane=SYNC)
    return call if where == SYNC else call + most_of(terms, requests, size, lane=where)


def unreserved_cost(terms: Terms, requests: int, size: int, *, before: int, lane: int) -> int:
    """Pico-USD not reserved yet for requests that may have been billed on the lane `before`, and now go to `lane`."""
    reserved, needed = (cost_to_reserve(terms, requests, size, lane=each) for each in (before, lane))
    return most_of(terms, requests, size, lane=before) + needed - reserved


class Books:
    """Counts what is where, and what it costs; every change of a request's place or cost is booked here."""

    def __init__(self, database: Database, records: Records) -> None:
        self._database, self._records = database, records
        self._source: Callable[[], str] | None = None
        self._with_max_cost: Callable[[Terms, bytes], Terms] | None = None
        database.undone.append(self._forget)
        self._forget()

    def _forget(self) -> None:
        self._noted: tuple[str, str] | None = None

    def use_prices(self, source: Callable[[], str], with_max_cost: Callable[[Terms, bytes], Terms]) -> None:
        """Have answers billed by these prices from now on.

        Args:
            source: Returns a description of the prices.
            with_max_cost: Returns terms with the most that their request with this body can cost; the terms as they
                are if that is not known.
        """
        self._source, self._with_max_cost = source, with_max_cost

    def note_prices(self, db: Connection, now: datetime) -> None:
        """Record that answers were billed by these prices today."""
        if self._source is None:
            return
        noted = self._source(), now.date().isoformat()
        if noted != self._noted:
            meta.put(db, f"{meta.PRICES}{noted[0]}", noted[1])
            self._noted = noted

    def moves(self, db: Connection, now: datetime) -> Moves:
        """Begin to collect how requests move."""
        return Moves(self._records, db, now)

    def groups(self, db: Connection, where: str, values: Sequence[Any] = ()) -> list[tuple[Place, Group]]:
        """Return the cohorts that meet a condition, with their keys."""
        columns = "terms, lane, status, batch, requests, size, since, flush"
        return [
            (
                Place(*row[:4]),
                Group(
                    terms=self._records.terms(db, row[0]),
                    requests=row[4],
                    size=row[5],
                    since=from_micros(row[6]),
                    flush=bool(row[7]),
                ),
            )
            for row in db.execute(f"SELECT {columns} FROM cohort WHERE {where} ORDER BY terms", values).fetchall()
        ]

    def spent(self, db: Connection, since: datetime | None) -> int:
        """pico-USD settled, wasted, or perhaps billed unseen, since the minute of `since` (None: ever)."""
        if since is None:
            sums = "SELECT cost FROM tally UNION ALL SELECT wasted FROM waste UNION ALL SELECT unseen FROM waste"
            return sum(int(row[0]) for row in db.execute(sums))
        start = micros(since) // _MINUTE
        return sum(int(row[0]) for row in db.execute("SELECT cost FROM spend WHERE minute >= ?", (start,)))

    def reserved_cost(self, db: Connection) -> int:
        """Pico-USD reserved for unsettled requests."""
        return int(meta.get(db, "reserved_cost") or 0)

    def spend(self, db: Connection, cost: int, now: datetime) -> None:
        """Book pico-USD as spent now."""
        if cost:
            db.execute(
                "INSERT INTO spend VALUES (?, ?) "
                "ON CONFLICT (minute) DO UPDATE SET cost = plus(spend.cost, excluded.cost)",
                (micros(now) // _MINUTE, str(cost)),
            )

    def set_right(self, now: datetime) -> None:
        """Count as of now what was booked as spent or settled later than now, by a clock that was ahead."""
        moment, minute = micros(now), micros(now) // _MINUTE
        soon = moment + _MINUTE  # other processes may settle meanwhile
        with self._database.read() as db:
            spent, settled = db.execute(
                "SELECT (SELECT max(minute) FROM spend), "
                "(SELECT settled_at FROM result_group ORDER BY last DESC LIMIT 1)"
            ).fetchone()
        if (spent or 0) <= soon // _MINUTE and (settled or 0) <= soon:
            return
        with self._database.write("set_books_right") as db:
            ahead = db.execute("SELECT cost FROM spend WHERE minute > ?", (minute,)).fetchall()
            db.execute("DELETE FROM spend WHERE minute > ?", (minute,))
            self.spend(db, sum(int(cost) for (cost,) in ahead), now)
            db.execute("UPDATE result_group SET settled_at = ? WHERE settled_at > ?", (moment, soon))

    def note_primer(self, db: Connection, prefix: str, now: datetime) -> None:
        """Record that a batch was sealed which writes this prefix to the API's cache."""
        db.execute(
            "INSERT INTO prefix (digest, tried) VALUES (?, ?) "
            "ON CONFLICT (digest) DO UPDATE SET tried = excluded.tried",
            (prefix, micros(now)),
        )

    def forget_primer(self, db: Connection, prefix: str) -> None:
        """Record that the batch which should write this prefix was not sent."""
        db.execute("UPDATE prefix SET tried = NULL WHERE digest = ?", (prefix,))

    def note_hits(self, db: Connection, terms: Terms, batch: int, used: Sequence[Cached], now: datetime) -> None:
        """Record how rows of a batch used the API's cache. All of them have these terms, and so the same prefix."""
        caching, ended = db.execute("SELECT caching, ended_at FROM batch WHERE id = ?", (batch,)).fetchone()
        moment = min(micros(now), ended or micros(now))
        for_an_hour = caching != Caching.AS_IS.value or not terms.breakpoints
        db.execute(
            f"INSERT INTO prefix (digest, used, kept) VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE SET {_LATER}",
            (terms.prefix, moment, moment + LIFE // _MICROSECOND if for_an_hour else None),
        )
        db.execute(
            "INSERT INTO hits (caching, hit, requests) VALUES (?, ?, ?) ON CONFLICT (caching) DO UPDATE "
            "SET hit = hits.hit + excluded.hit, requests = hits.requests + excluded.requests",
            (caching, sum(1 for read, _, _ in used if read), len(used)),
        )

    def primed(self, db: Connection, prefixes: Iterable[str]) -> dict[str, Primed]:
        """What is known of these prefixes."""
        found: dict[str, Primed] = {}
        for prefix in prefixes:
            row = db.execute("SELECT tried, used, kept FROM prefix WHERE digest = ?", (prefix,)).fetchone()
            if row is not None:
                found[prefix] = Primed(*(None if each is None else from_micros(each) for each in row))
        return found

    def hits(self, db: Connection) -> Hits:
        """How often rows of batches have hit the API's cache."""
        rows = db.execute("SELECT caching, hit, requests FROM hits").fetchall()
        return Hits({Caching(caching): (hit, requests) for caching, hit, requests in rows})

    def waste(
        self, db: Connection, job: int, now: datetime, *, wasted: int = 0, possible_doubles: int = 0, unseen: int = 0
    ) -> None:
        """Book what requests cost beyond their answers. The spend limit counts the money as spent now.

        Args:
            db: The open transaction.
            job: The number of their job.
            now: The time.
            wasted: Pico-USD paid for nothing.
            possible_doubles: How many requests may have been bought twice.
            unseen: The most pico-USD that may have been billed without a priced answer.
        """
        if wasted or possible_doubles or unseen:
            db.execute(
                "INSERT INTO waste VALUES (?, ?, ?, ?) ON CONFLICT (job) DO UPDATE "
                "SET wasted = plus(waste.wasted, excluded.wasted), "
                "possible_doubles = waste.possible_doubles + excluded.possible_doubles, "
                "unseen = plus(waste.unseen, excluded.unseen)",
                (job, str(wasted), possible_doubles, str(unseen)),
            )
            self.spend(db, wasted + unseen, now)

    def most_unseen(self, db: Connection, terms: Terms, row: Row) -> int:
        """Return the most pico-USD that a call or a batch row may have cost which brought no answer with a price."""
        return self._most(db, terms, 1, row.size, lane=row.lane, which="request.id = ?", values=(row.id,))

    def most_unseen_of(self, db: Connection, group: Group, batch: Sequence[int]) -> int:
        """The same for a group of a batch, which is given by its first request, its last one, and its own number."""
        which, values = f"{IN_BATCH} AND terms = ?", (*batch, group.terms.id)
        return self._most(db, group.terms, group.requests, group.size, lane=BATCH, which=which, values=values)

    def _most(
        self, db: Connection, terms: Terms, requests: int, size: int, *, lane: int, which: str, values: Sequence[int]
    ) -> int:
        known = terms.max_cost_each or terms.max_cost_per_byte
        if known or self._with_max_cost is None or terms.adopted:
            return most_of(terms, requests, size, lane=lane)
        # They were accepted without a spend limit; one that is set later counts them as well.
        most, after = 0, -1
        while True:
            found = db.execute(
                "SELECT request.id, params FROM request CROSS JOIN body "
                f"WHERE body.id = request.id AND {which} AND request.id > ? ORDER BY request.id LIMIT {_BODIES}",
                (*values, after),
            ).fetchall()
            most += sum(most_of(self._with_max_cost(terms, bytes(body)), 1, len(body), lane=lane) for _, body in found)
            if len(found) < _BODIES:
                return most
            after = found[-1][0]

    def room(self, db: Connection, max_spend: MaxSpend) -> int:
        """Pico-USD that a spend limit leaves beside what was spent and what is reserved."""
        return max_spend.limit - self.spent(db, max_spend.since) - self.reserved_cost(db)

    def check_max_spend(self, db: Connection, max_spend: MaxSpend | None, more: int) -> None:
        """Refuse what could pass the spend limit.

        Raises:
            SpendLimitError: It could cost `more` (pico-USD) than is left.
        """
        if max_spend is None:
            return
        spent, reserved = self.spent(db, max_spend.since), self.reserved_cost(db)
        if spent + reserved + more > max_spend.limit:
            raise SpendLimitError(
                f"this could cost {more / PICO:.6f} USD beside {spent / PICO:.6f} spent and "
                f"{reserved / PICO:.6f} reserved for unsettled work, over max_spend={max_spend.limit / PICO:.6f}; "
                "raise the limit, or wait until reserved work has settled. Nothing was stored or sent"
            )

    def check_double(self, db: Connection, max_spend: MaxSpend | None, more: int) -> None:
        """Refuse what may be bought twice. What is reserved already is not refused, whatever has been spent.

        Raises:
            SpendLimitError: It could cost `more` (pico-USD) than is left.
        """
        if more > 0:
            self.check_max_spend(db, max_spend, more)


class Moves:
    """Collects how requests move between places, and books it in the cohorts and in the reserved cost."""

    def __init__(self, records: Records, db: Connection, now: datetime) -> None:
        self._records, self._db, self._since = records, db, micros(now)
        self._delta: dict[Place, list[int]] = {}
        self._flush: set[Place] = set()

    def begin(self, to: Place, requests: int, size: int, *, flush: bool = False) -> None:
        """New requests begin at a place; their bodies have `size` bytes together."""
        check_beginning(to.state)
        self._add(to, requests, size, flush=flush)

    def move(self, was: Place, to: Place, requests: int, size: int, *, grown: int = 0, flush: bool = False) -> None:
        """Requests go from one place to another; `grown`: by how many bytes their bodies grow."""
        check_request(was.state, to.state)
        self._add(was, -requests, -size)
        self._add(to, requests, size + grown, flush=flush)

    def settle(self, was: Place, requests: int, size: int) -> None:
        """Requests settle."""
        check_request(was.state, RequestState.SETTLED)
        self._add(was, -requests, -size)

    def reopen(self, to: Place, size: int, *, flush: bool = False) -> None:
        """A settled request begins anew at a place."""
        check_request(RequestState.SETTLED, to.state)
        self._add(to, 1, size, flush=flush)

    def _add(self, place: Place, requests: int, size: int, *, flush: bool = False) -> None:
        known = self._delta.get(place)
        if known is None:
            self._delta[place] = [requests, size]
        else:
            known[0] += requests
            known[1] += size
        if flush:
            self._flush.add(place)

    def book(self) -> None:
        """Write what was collected."""
        db = self._db
        reserved = 0
        for place, (requests, size) in self._delta.items():
            terms = self._records.terms(db, place.terms)
            reserved += cost_to_reserve(terms, requests, size, lane=place.lane)
            if not requests and not size:
                continue
            if requests >= 0:
                db.execute(
                    "INSERT INTO cohort VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (terms, lane, status, batch) DO UPDATE SET "
                    "requests = cohort.requests + excluded.requests, size = cohort.size + excluded.size, "
                    "since = CASE WHEN excluded.since < cohort.since THEN excluded.since ELSE cohort.since END, "
                    "flush = CASE WHEN excluded.flush > cohort.flush THEN excluded.flush ELSE cohort.flush END",
                    (*place, requests, size, self._since, place in self._flush),
                )
            else:
                key = "terms = ? AND lane = ? AND status = ? AND batch = ?"
                # Mostly all of a cohort leaves it, and its row goes.
                gone = db.execute(f"DELETE FROM cohort WHERE {key} AND requests = ?", (*place, -requests))
                if not gone.rowcount:
                    db.execute(
                        f"UPDATE cohort SET requests = requests + ?, size = size + ? WHERE {key}",
                        (requests, size, *place),
                    )
        if reserved:
            db.execute(
                "INSERT INTO meta VALUES ('reserved_cost', ?) "
                "ON CONFLICT (name) DO UPDATE SET value = plus(meta.value, excluded.value)",
                (str(reserved),),
            )
        self._delta.clear()
