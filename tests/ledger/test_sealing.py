"""Which requests a seal takes, and how long it says that their body becomes, whatever their keys and sizes."""

from __future__ import annotations

from contextlib import closing

from hypothesis import example, given
from hypothesis import strategies as st

from batchwise.ledger.sqlite import SqliteLedger
from batchwise.planning.custom_ids import sealer
from batchwise.planning.packing import body_chunks, telling_count
from tests.ledger.model import FLEXIBLE, NIGHTLY, NOW, entry
from tests.strategies import keys

NONCE = "1" * 12
SIZES = (1, 7, 300)
plain_keys = st.text("abc-#~ \0é", min_size=1, max_size=70)


def body_size(rows: list[tuple[int, str, bytes]]) -> int:
    seal = sealer(NONCE)
    return len(b"".join(body_chunks((seal(key, number), body) for number, key, body in rows)))


@given(
    names=st.lists(st.one_of(plain_keys, keys), min_size=1, max_size=20, unique=True),
    others=st.sets(st.integers(0, 19), max_size=3),
    start=st.sampled_from([1, 14, 250]),
    most=st.integers(1, 30),
    cut=st.integers(1, 20),
    slack=st.sampled_from([-1, 0, 5, 10_000]),
    taken=st.frozensets(st.integers(1, 20), max_size=5),
)
@example(["a" * length for length in range(1, 65)], set(), 250, 99, 99, 10_000, frozenset())
@example(["a", "é"], set(), 1, 9, 9, 10_000, frozenset())
@example(["a", "b\0c"], set(), 1, 9, 9, 10_000, frozenset())
@example(["a", "b", "c"], set(), 1, 9, 9, 10_000, frozenset({3}))
@example(["a", "b", "c"], set(), 1, 2, 9, 0, frozenset())
@example(["a", "b", "c"], {1}, 1, 9, 9, 10_000, frozenset())
@example(["a", "b", "c"], set(), 1, 9, 3, -1, frozenset())
def test_a_seal_takes_the_first_that_fit_and_knows_their_body_s_length(
    names: list[str], others: set[int], start: int, most: int, cut: int, slack: int, taken: frozenset[int]
) -> None:
    with closing(SqliteLedger(":memory:")) as ledger:
        run = ledger.start_run(pid=1, now=NOW)
        ledger.database.connection.execute("UPDATE deleted SET last = ? WHERE name = 'request'", (start - 1,))
        with ledger.intake(job="job", run=run) as intake:
            intake.stage(
                entry(key, NIGHTLY if place in others else FLEXIBLE, body=b"x" * SIZES[place % 3])
                for place, key in enumerate(names)
            )
            numbers = intake.accept(now=NOW)
        rows = [
            (number, key, b"x" * SIZES[place % 3])
            for place, (number, key) in enumerate(zip(numbers, names, strict=True))
            if place not in others
        ]
        limit = body_size(rows[:cut]) + slack
        fitting = [count for count in range(1, len(rows) + 1) if count <= most and body_size(rows[:count]) <= limit]
        wanted = (telling_count(len(fitting), taken) or len(fitting)) if fitting else 0
        groups = ledger.snapshot().batch_queue
        terms = [group.terms.id for group in groups if group.terms.deadline is None]
        batch = ledger.batches.seal(terms, nonce=NONCE, taken=taken, now=NOW, max_requests=most, max_bytes=limit)
        if not wanted:
            assert batch is None
            return
        assert batch is not None
        assert list(ledger.batches.entries(batch.id)) == rows[:wanted]
        assert (batch.requests, batch.size) == (wanted, body_size(rows[:wanted]))
        sealed = ledger.snapshot().batches[0].groups
        assert [(group.requests, group.size) for group in sealed] == [
            (wanted, sum(len(row[2]) for row in rows[:wanted]))
        ]
