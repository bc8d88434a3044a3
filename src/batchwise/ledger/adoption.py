"""Batches made elsewhere: their rows are requests at once, and get their keys when their results are read."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from batchwise.errors import InvalidValueError, shown
from batchwise.planning.state import BatchState, Terms

from . import transitions
from .books import Books, Place
from .database import Connection, Database
from .jobs import add_job, job_of
from .keys import conflict
from .records import Records
from .rows import BATCH, IN_FLIGHT, encode_key, micros

__all__ = ["Adoption"]

_REQUEST = "request (id, job, key, terms, size, lane, status, batch)"
_BODY = "body (id, params)"


class Adoption:
    """Adopts batches that others have made."""

    def __init__(self, database: Database, records: Records, books: Books) -> None:
        self._database, self._records, self._books = database, records, books

    def adopt(
        self,
        remote_id: str,
        *,
        job: str | None,
        keys: Mapping[str, str],
        requests: int,
        terms: Terms,
        nonce: str,
        created_at: datetime,
        expires_at: datetime,
        now: datetime,
    ) -> str:
        """Adopt a batch that others have made, in state `open`; returns its job's name. A repeat changes nothing.

        Its rows are requests at once, without bodies. Each has a placeholder for a key (`<remote id>#<position>`)
        until `name` has seen its row. `keys`: keys by custom_ids; job None: the job is named after the batch.

        Raises:
            InvalidValueError: The batch is one of the ledger's own, or was adopted into another job.
            KeyConflictError: The placeholders are taken.
        """
        opened = transitions.beginning(BatchState.OPEN)
        with self._database.write("adopt") as db:
            there = self._adopted(db, remote_id, job)
            if there is not None:
                return there
            name = remote_id if job is None else job
            number, _ = job_of(db, encode_key(name))
            number = add_job(self._database, db, encode_key(name)) if number is None else number
            db.execute("UPDATE job SET visible = 1 WHERE id = ?", (number,))
            stored = self._records.store_terms(db, terms, number)
            first = self._records.last_request(db) + 1
            numbers = range(first, first + requests)
            times = micros(min(now, created_at)), micros(created_at), micros(expires_at)
            batch = self._database.insert(
                db,
                "INSERT INTO batch (state, nonce, remote_id, job, requests, sealed_at, created_at, expires_at, first, "
                "last, adopted, size, betas, model) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0, '[]', '')",
                (opened, nonce, remote_id, number, requests, *times, first, numbers[-1]),
            )
            self._insert_requests(db, remote_id, name, numbers, Place(stored, BATCH, IN_FLIGHT, batch), now)
            db.executemany(
                "INSERT INTO adopted (batch, custom_id, key) VALUES (?, ?, ?)",
                [(batch, custom_id, encode_key(key)) for custom_id, key in keys.items()],
            )
            return name

    def _insert_requests(
        self, db: Connection, remote_id: str, job: str, numbers: range, place: Place, now: datetime
    ) -> None:
        """Store the requests of an adopted batch, whose rows are not known yet.

        Raises:
            KeyConflictError: The placeholders are taken.
        """
        number = self._records.terms(db, place.terms).job
        placeholders = [encode_key(f"{remote_id}#{index}") for index in range(len(numbers))]
        columns = numbers, number, placeholders, place.terms, 0, place.lane, place.status, place.batch
        if not self._database.insert_rows(db, _REQUEST, columns):
            raise conflict(f"{remote_id}#...", job)
        self._database.insert_rows(db, _BODY, (numbers, [b""] * len(numbers)))
        moves = self._books.moves(db, now)
        moves.begin(place, len(numbers), 0)
        moves.book()

    def adopted(self, remote_id: str, *, job: str | None) -> str | None:
        """Return the name of the job that a batch was adopted into; None: the ledger does not know the batch.

        Raises:
            InvalidValueError: The batch is one of the ledger's own, or was adopted into another job than this.
        """
        with self._database.read() as db:
            return self._adopted(db, remote_id, job)

    def _adopted(self, db: Connection, remote_id: str, job: str | None) -> str | None:
        known = db.execute("SELECT adopted, job FROM batch WHERE remote_id = ?", (remote_id,)).fetchone()
        if known is None:
            return None
        adopted, number = known
        there = self._records.job_name(db, number)
        if not adopted:
            raise InvalidValueError(
                f"batch {shown(remote_id)} is one of this ledger's own: its results are found under the keys and jobs "
                "that its requests were dispatched with"
            )
        if job not in {None, there}:
            raise InvalidValueError(
                f"batch {shown(remote_id)} was adopted into the job {shown(there)} and stays in it; "
                f"leave job={shown(job)} out"
            )
        return there

    def name(self, batch: int, custom_ids: Sequence[str]) -> dict[str, int]:
        """Return the requests of an adopted batch's rows, by their custom_ids.

        A new custom_id takes the next of the batch's requests, and gives it its key: the one in `keys`, else the
        custom_id. Ids beyond the number of the batch's requests are left out, and so are ids with invisible characters,
        which the API does not accept.
        """
        custom_ids = [each for each in custom_ids if each.isprintable()]
        with self._database.write("name_adopted") as db:
            first, last = db.execute("SELECT first, last FROM batch WHERE id = ?", (batch,)).fetchone()
            known = {
                custom_id: (key, request)
                for custom_id, key, request in db.execute(
                    f"SELECT custom_id, key, request FROM adopted WHERE batch = ? AND custom_id {self._database.among}",
                    (batch, self._database.list_of(custom_ids)),
                )
            }
            (free,) = db.execute(
                "SELECT coalesce(max(request), ?) + 1 FROM adopted WHERE request BETWEEN ? AND ?",
                (first - 1, first, last),
            ).fetchone()
            numbers: dict[str, int] = {}
            for custom_id in custom_ids:
                key, request = known.get(custom_id, (encode_key(custom_id), 0))
                if not request:
                    if free > last:
                        continue
                    request, free = free, free + 1
                    # A key that another request of the job has stays with that one; this one keeps its placeholder.
                    db.execute(
                        "UPDATE request SET key = ? WHERE id = ? AND NOT EXISTS "
                        "(SELECT 1 FROM request other WHERE other.job = request.job AND other.key = ?)",
                        (key, request, key),
                    )
                    db.execute(
                        "INSERT INTO adopted VALUES (?, ?, ?, ?) ON CONFLICT (batch, custom_id) "
                        "DO UPDATE SET request = excluded.request",
                        (batch, custom_id, key, request),
                    )
                numbers[custom_id] = request
            return numbers
