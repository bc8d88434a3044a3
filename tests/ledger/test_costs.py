"""What looking at a ledger costs: rows and pages that its database goes through, not time.

None of it may grow with what has settled, or a dispatcher would slow down with the days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

from batchwise.ledger import postgres_database
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.postgres_database import PostgresDatabase, Transaction
from batchwise.ledger.sqlite_database import SqliteDatabase
from batchwise.ledger.values import Which
from batchwise.planning.state import BatchState

from .model import NIGHTLY, NOW, World, entry, row_of, settlement

FEW, MANY = 120, 1_200
SHORT, LONG = 256, 1_536
PAGE = 40
LATER = attrs.evolve(NIGHTLY, max_tokens=7)


class Counted(Transaction):
    """Has each SELECT explained, which tells how many rows it went through."""

    rows = 0

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Any:
        if sql.lstrip().startswith("SELECT"):
            explained = super().execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {sql}", values)
            Counted.rows += _rows(explained.fetchone()[0][0]["Plan"])
        return super().execute(sql, values)


def _rows(plan: Mapping[str, Any]) -> int:
    """Rows that come out of its nodes, and those that they leave out."""
    each = sum(plan.get(name, 0) for name in ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"))
    return round(each * plan["Actual Loops"]) + sum(map(_rows, plan.get("Plans", ())))


@contextmanager
def counting(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Yields a function that returns how much the database has done since."""
    if isinstance(ledger.database, PostgresDatabase):
        with monkeypatch.context() as patch:
            patch.setattr(postgres_database, "Transaction", Counted)
            Counted.rows = 0
            yield lambda: Counted.rows
        return
    assert isinstance(ledger.database, SqliteDatabase)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    connection = ledger.database.connection
    connection.set_progress_handler(step, 1)  # called for each instruction of SQLite's machine
    yield lambda: steps
    connection.set_progress_handler(None, 0)


def settle(world: World, count: int, prefix: str) -> None:
    """Add `count` settled requests, in batches of 60, of which ten settle together."""
    for begin in range(0, count, 60):
        numbers = world.bulk([entry(f"{prefix}{begin + n}", NIGHTLY) for n in range(60)], chunk=60)
        row = row_of(world.ledger, numbers[0])
        assert row is not None
        batch = world.opened(terms=[row.terms.id])
        for start in range(0, 60, 10):
            world.ledger.settle([settlement(each) for each in numbers[start : start + 10]], now=NOW, batch=batch.id)
        ended = attrs.evolve(world.view(batch.id), state=BatchState.CLOSED, ended_at=NOW)
        assert world.ledger.batches.update(ended)


def looks(world: World, batch: int) -> dict[str, Callable[[], object]]:
    """What planning passes, waiting callers and reports read."""
    ledger = world.ledger
    job = ledger.jobs.number("job")
    last = ledger.results(job=job, after=0, limit=10_000).cursor
    return {
        "snapshot": ledger.snapshot,
        "history": lambda: ledger.statistics.history(limit=1),
        "counts": lambda: ledger.statistics.counts(job=None),
        "counts of the job": lambda: ledger.statistics.counts(job=job),
        "flush": lambda: ledger.flush(Which(job=job)),
        "cancel": lambda: ledger.cancel(Which(job=99), now=NOW),
        "report": lambda: ledger.statistics.report(job=job),
        "jobs": ledger.jobs.all,
        "missing": lambda: ledger.numbers(Which(batch=batch)),
        "open_rows": lambda: ledger.batches.open_rows(batch),
        "entries": lambda: list(ledger.batches.entries(batch)),
        "members": lambda: ledger.rows(Which(requests=range(1, PAGE), batch=batch)),
        "a page of numbers": lambda: ledger.numbers(Which(job=job), after=FEW, limit=PAGE),
        "find": lambda: ledger.rows(Which(key="q0", job=job)),
        "jobs with": lambda: ledger.rows(Which(key="q0"), limit=3),
        "a page of results": lambda: ledger.results(job=job, after=last - PAGE, limit=PAGE),
        "a page of all results": lambda: ledger.results(job=None, after=last - PAGE, limit=PAGE),
        "the first page": lambda: ledger.results(job=job, after=0, limit=PAGE),
        "behind the last": lambda: ledger.results(job=job, after=last, limit=PAGE),
    }


def costs(world: World, batch: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    found = {}
    for name, look in looks(world, batch).items():
        look()  # what is remembered is asked for once
        with counting(world.ledger, monkeypatch) as count:
            look()
            found[name] = count()
    return found


def test_no_look_costs_more_after_ten_times_as_much_has_settled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(world, FEW, "few")
    world.bulk([entry(f"w{n}", NIGHTLY) for n in range(300)], chunk=300)
    batch = world.opened().id
    world.bulk([entry(f"q{n}", LATER) for n in range(300)], chunk=300)
    before = costs(world, batch, monkeypatch)
    assert sum(before.values())

    def grown() -> dict[str, tuple[int, int]]:
        after = costs(world, batch, monkeypatch)
        # A step deeper into an index, or into a page, may be one more here and there; a scan is many.
        return {name: (before[name], cost) for name, cost in after.items() if cost > 1.1 * before[name] + 10}

    settle(world, MANY - FEW, "many")
    assert not grown()
    with world.ledger.database.write("analyze") as db:
        db.execute("ANALYZE")
    assert not grown(), "with statistics"


def test_what_is_read_page_by_page_costs_as_much_a_row_however_many_there_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = []
    for count in (SHORT, LONG):
        numbers = world.bulk([entry(f"{count}-{n}", NIGHTLY) for n in range(count)], f"job {count}", chunk=500)
        batch = world.opened().id
        with counting(world.ledger, monkeypatch) as cost:
            assert len(list(world.ledger.batches.entries(batch))) == count
            sent = cost()
        world.ledger.settle([settlement(each) for each in numbers], now=NOW, batch=batch)
        job = world.ledger.jobs.number(f"job {count}")
        with counting(world.ledger, monkeypatch) as cost:
            after, read = 0, 0
            while page := world.ledger.results(job=job, after=after, limit=PAGE):
                after, read = page.cursor, read + len(page)
            assert read == count
            costs.append((sent, cost()))
    (sent, read), (all_sent, all_read) = costs
    assert all_sent <= 1.2 * sent * LONG / SHORT
    assert all_read <= 1.2 * read * LONG / SHORT
