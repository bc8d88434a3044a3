"""How queued requests are cancelled, and settled ones purged."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from batchwise.models import Outcome
from batchwise.planning.continuation import failed
from batchwise.planning.custom_ids import UNSEALED, custom_id
from batchwise.planning.outcomes import UNAFFORDABLE

from .database import Connection, Database
from .records import CHUNK, GROUP_RESULTS, UNSETTLED_IN_BATCH, Records, Row
from .requests import Requests
from .rows import IN_FLIGHT, LANES, canceled_line, decode_key, micros
from .settlements import Settlements
from .unnamed import Unnamed
from .values import EVERYTHING, Settlement, Which

__all__ = ["Cancelling", "Purging"]

_CANCELED = "it was cancelled before it was sent"


class Cancelling:
    """Settles requests that were never sent, or that nobody may send again."""

    def __init__(self, database: Database, records: Records, settlements: Settlements, requests: Requests) -> None:
        self._database, self._records, self._settlements, self._requests = database, records, settlements, requests

    def cancel_rows(self, db: Connection, ids: Iterable[int], kind: str, message: str, now: datetime) -> int:
        """Settle these as CANCELED. Those that were sent to the sync lane may have been billed."""
        settlements = []
        for number in ids:
            key, lane, batch, status = db.execute(
                "SELECT key, lane, batch, status FROM request WHERE id = ?", (number,)
            ).fetchone()
            line = canceled_line(decode_key(key), self._records.nonce(db, batch), number, kind, message)
            settlements.append(
                Settlement(
                    number, Outcome.CANCELED, LANES[lane], line, 0, 0, attempted=False, maybe_billed=status == IN_FLIGHT
                )
            )
        return self._settlements.settle_within(db, settlements, now=now)

    def fail_unaffordable(self, db: Connection, row: Row, now: datetime) -> None:
        """Settle a call that may have been billed, and that the spend limit leaves no room to buy again."""
        (key,) = db.execute("SELECT key FROM request WHERE id = ?", (row.id,)).fetchone()
        line = failed(custom_id(decode_key(key), UNSEALED, row.id), Outcome.FAILED, UNAFFORDABLE)
        end = Settlement(row.id, Outcome.FAILED, LANES[row.lane], line, 0, 0, maybe_billed=True)
        self._settlements.settle_within(db, [end], now=now)

    def cancel(self, which: Which = EVERYTHING, *, now: datetime) -> tuple[int, tuple[int, ...]]:
        """Settle as CANCELED what is queued of these: by their numbers, of a job, or all.

        Returns how many, and the batches in which others of them still are.
        """
        with self._database.read() as db:
            listed, (cohorts, values) = self._requests.listed(db, which), self._requests.cohorts(db, which)
        queued = f"SELECT id FROM request WHERE status = 0 AND terms IN (SELECT terms FROM cohort WHERE {cohorts})"
        sent = f"SELECT DISTINCT batch FROM cohort WHERE batch > 0 AND {cohorts}"
        if listed is not None:
            source, values = listed
            queued = f"SELECT q.id {source} AND q.status = 0"
            sent = f"SELECT DISTINCT q.batch {source} AND {UNSETTLED_IN_BATCH}"
        canceled, found = 0, CHUNK
        while found == CHUNK:
            with self._database.write("cancel") as db:
                ids = [number for (number,) in db.execute(f"{queued} LIMIT {CHUNK}", values)]
                found = len(ids)
                canceled += self.cancel_rows(db, ids, "canceled", _CANCELED, now)
        with self._database.read() as db:
            return canceled, tuple(sorted(batch for (batch,) in db.execute(sent, values)))


class Purging:
    """Deletes what has settled."""

    def __init__(self, database: Database, records: Records, unnamed: Unnamed) -> None:
        self._database, self._records, self._unnamed = database, records, unnamed

    def purge(self, *, before: datetime) -> int:
        """Delete what settled before then, results included; returns how many requests. The books keep their sums."""
        purged, after, found = 0, 0, CHUNK
        while found == CHUNK:
            with self._database.write("purge") as db:
                which, values = self._unnamed.results_after(db, None, after)
                settled = db.execute(
                    f"SELECT r.seq, r.request, g.job, g.lane, g.outcome FROM {GROUP_RESULTS} "
                    f"WHERE {which} AND g.settled_at < ? ORDER BY g.last, r.seq LIMIT {CHUNK}",
                    (*values, micros(before)),
                ).fetchall()
                found = len(settled)
                gone = [(each[1],) for each in settled]
                db.executemany("DELETE FROM result WHERE seq = ?", [(each[0],) for each in settled])
                db.executemany("DELETE FROM late WHERE request = ?", gone)
                self._records.delete(db, [each[1] for each in settled])
                db.executemany(
                    "UPDATE tally SET purged = purged + 1 WHERE job = ? AND lane = ? AND outcome = ?",
                    [each[2:] for each in settled],
                )
                if found < CHUNK:
                    self._unnamed.purge(db)
                    last = self._records.last_result(db)
                    db.execute("DELETE FROM result_group WHERE settled_at < ?", (micros(before),))
                    db.execute("UPDATE deleted SET last = ? WHERE name = 'result'", (last,))
            purged += found
            after = settled[-1][0] if settled else after
        if purged:
            with self._database.write("purge terms") as db:
                db.execute(
                    "DELETE FROM terms WHERE staged = 0 AND id NOT IN (SELECT terms FROM request) "
                    "AND id NOT IN (SELECT terms FROM repeated)"
                )
            self._database.wipe()
        return purged
