"""What the ledger tests share: short ways to make values and to drive a ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any

import attrs
import orjson

from batchwise.ledger.ledger import Ledger
from batchwise.ledger.records import Records
from batchwise.ledger.values import (
    Accepted,
    Claim,
    Entry,
    MaxSpend,
    Offer,
    RequestRow,
    ResultRow,
    Settlement,
    Turn,
    Which,
)
from batchwise.models import Lane, Outcome, Reason, Status
from batchwise.planning.state import BatchState, BatchView, Terms

NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)

FLEXIBLE = Terms(
    lane=Lane.BATCH,
    reason=Reason.LATENCY_TOLERANT,
    model="claude-sonnet-5",
    max_tokens=1_024,
    output_tokens=300,
    betas=("one", "two"),  # of all alike: they belong to the content
)
NIGHTLY = attrs.evolve(FLEXIBLE, deadline=NOW + 30 * HOUR, submit_by=NOW + 4 * HOUR)
BLOCKING = attrs.evolve(FLEXIBLE, lane=Lane.SYNC, reason=Reason.BLOCKING, blocking=True)
PATIENT = attrs.evolve(BLOCKING, blocking=False, deadline=NOW + HOUR)  # sync lane, but nobody blocks

QUEUED, IN_FLIGHT, SETTLED = Status.QUEUED, Status.IN_FLIGHT, Status.SETTLED
SYNC, BATCH = Lane.SYNC, Lane.BATCH


def entry(key: str | None, terms: Terms = FLEXIBLE, body: bytes | str = b'{"a":1}') -> Entry:
    content = body.encode() if isinstance(body, str) else body
    return Entry(key, content, terms)


def line(number: int, kind: str = "succeeded", **more: Any) -> bytes:
    return orjson.dumps({"custom_id": f"r{number}", "result": {"type": kind, **more}})


def settlement(number: int, outcome: Outcome = Outcome.SUCCEEDED, lane: Lane = Lane.BATCH, **more: Any) -> Settlement:
    values: dict[str, Any] = {"line": line(number), "cost": 5, "saved": 5} | more
    return Settlement(number, outcome, lane, **values)


class World:
    """A ledger with a run, and shorthands."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.run = ledger.start_run(pid=1, now=NOW)
        self._nonces = count(1)
        self.claims: list[Claim] = []
        """What was begun at once."""

    def accept(
        self, key: str | None = None, terms: Terms = FLEXIBLE, body: bytes | str = b'{"a":1}', **more: Any
    ) -> Accepted:
        job = more.pop("job", None)
        claims = self.claims if more.pop("claim", False) else None
        now = more.pop("now", NOW)
        return self.ledger.accept(Offer(entry(key, terms, body), job, self.run, now, claims, **more))

    def bulk(self, entries: Sequence[Entry], job: str | None = "job", chunk: int = 3, **more: Any) -> list[int]:
        with self.ledger.intake(job=job, run=self.run) as intake:
            for start in range(0, len(entries), chunk):
                intake.stage(entries[start : start + chunk])
            return list(intake.accept(now=NOW, **more))

    def unnamed(self, entries: Sequence[Entry], chunk: int = 3) -> int:
        """A bulk dispatch without a name; its job."""
        with self.ledger.intake(job=None, run=self.run) as intake:
            for start in range(0, len(entries), chunk):
                intake.stage(entries[start : start + chunk])
            intake.accept(now=NOW, flush=False)
        return intake.job

    def number(self, key: str) -> int:
        """Of a request without a job."""
        row = find(self.ledger, key, job=None)
        assert row is not None
        return row.id

    def seal(self, taken: Iterable[int] = (), terms: Sequence[int] | None = None, **more: Any) -> BatchView | None:
        if terms is None:
            terms = sorted({group.terms.id for group in self.ledger.snapshot().batch_queue})
        options: dict[str, Any] = {"now": NOW, "max_requests": 100_000, "max_bytes": 256_000_000} | more
        return self.ledger.batches.seal(terms, nonce=f"{next(self._nonces):012d}", taken=frozenset(taken), **options)

    def sealed(self, taken: Iterable[int] = (), **more: Any) -> BatchView:
        batch = self.seal(taken, **more)
        assert batch is not None
        return batch

    def opened(self, **more: Any) -> BatchView:
        batch = self.sealed(**more)
        posted(self.ledger, batch, watermark="w", posting_server=NOW)
        self.ledger.batches.created(batch.id, remote_id=f"msgbatch_{batch.id}", created_at=NOW, expires_at=NOW, now=NOW)
        return self.view(batch.id)

    def view(self, batch: int) -> BatchView:
        return next(each for each in self.ledger.snapshot().batches if each.id == batch)

    def status(self, number: int) -> Status:
        row = row_of(self.ledger, number)
        assert row is not None
        return row.status

    def max_spend(self, limit: int, since: datetime | None = None) -> MaxSpend:
        return MaxSpend(limit=limit, since=since)


def posted(ledger: Ledger, batch: BatchView, *, now: datetime = NOW, **posting: Any) -> None:
    """Make durable that its POST may be on its way."""
    view = attrs.evolve(batch, state=BatchState.POSTING, posting_at=now, **posting)
    assert ledger.batches.update(view, was=batch)


def marks(ledger: Ledger) -> tuple[int, int]:
    """The highest numbers of a request and of a result that were ever given."""
    with ledger.database.read() as db:
        records = Records(ledger.database)
        return records.last_request(db), records.last_result(db)


def row_of(ledger: Ledger, request: int) -> RequestRow | None:
    return ledger.rows(Which(requests=[request])).get(request)


def find(ledger: Ledger, key: str, *, job: str | None) -> RequestRow | None:
    number = 0 if job is None else ledger.jobs.number(job)
    return None if number is None else next(iter(ledger.rows(Which(key=key, job=number)).values()), None)


def requeue(
    ledger: Ledger,
    requests: Sequence[int],
    *,
    batch: int | None = None,
    turn: bytes | None = None,
    body: bytes | None = None,
    **more: Any,
) -> int:
    went_on = None if turn is None else Turn(turn, body)
    return ledger.requeue(Which(requests=requests, batch=batch), turn=went_on, **more)


def unseal(
    ledger: Ledger, batch: int, *, terms: Sequence[int] | None = None, lane: Lane = Lane.BATCH, **more: Any
) -> int:
    return ledger.requeue(Which(batch=batch, terms=terms), lane=lane, **more)


def move(ledger: Ledger, terms: Sequence[int], *, lane: Lane) -> int:
    return ledger.requeue(Which(terms=terms), lane=lane, now=NOW)


def missing(ledger: Ledger, batch: int, job: int | None = None) -> list[int]:
    """The requests of a batch that are not settled."""
    return ledger.numbers(Which(batch=batch, job=job))


def result_of(ledger: Ledger, request: int) -> ResultRow | None:
    return next(iter(ledger.results_of([request])), None)


def counted(ledger: Ledger, requests: Iterable[int]) -> dict[tuple[Lane, Status, Outcome | None], int]:
    """How many of these requests are where, looked at one by one."""
    places = []
    for number in requests:
        row, result = row_of(ledger, number), result_of(ledger, number)
        assert row is not None
        places.append((row.lane, row.status, None if result is None else result.how.outcome))
    return dict(Counter(places))


def total(ledger: Ledger, job: int | None = None) -> dict[Status, int]:
    sums = dict.fromkeys(Status, 0)
    for (_, status, _), number in ledger.statistics.counts(job=job).items():
        sums[status] += number
    return sums
