"""What every ledger does, whatever its database."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from decimal import Decimal
from typing import Any

import attrs
import orjson
import pytest

from batchwise.errors import BatchwiseError, KeyConflictError, LedgerError, SpendLimitError, WrongWorkspaceError
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.open_rows import Answer, OpenRows
from batchwise.ledger.values import Claim, MaxSpend, Offer, ResultGroup, Turn, Which
from batchwise.models import Lane, Outcome, Policy
from batchwise.planning.cache_priming import Caching, Hits, Primed
from batchwise.planning.capacity import Measured
from batchwise.planning.clock_skew import corrected, longest_pause
from batchwise.planning.custom_ids import new_nonce, sealer
from batchwise.planning.packing import Sizes, body_chunks
from batchwise.planning.prompt_prefix import BREAKPOINT
from batchwise.planning.prompt_prefix import HOUR as HOUR_BLOCK
from batchwise.planning.state import BatchState, BatchView, Setback, Terms

from .conftest import Backend
from .model import (
    BATCH,
    BLOCKING,
    FLEXIBLE,
    HOUR,
    IN_FLIGHT,
    NIGHTLY,
    NOW,
    PATIENT,
    QUEUED,
    SETTLED,
    SYNC,
    World,
    counted,
    entry,
    find,
    line,
    marks,
    missing,
    move,
    posted,
    requeue,
    result_of,
    row_of,
    settlement,
    total,
    unseal,
)

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
KEYS = [
    "'; DROP TABLE request; --",
    "a\0b",
    "a\0c",
    "new\nline",
    "\ud800",
    "\udfff\ud800",
    "\x1b[31m",
    "../../etc",
    "é" * 1_024,
]


# -- accepting one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_any_key_comes_back_as_it_was(world: World, key: str) -> None:
    one = world.accept(key, job=key)
    assert one.row.key == key
    assert find(world.ledger, key, job=key) == one.row
    assert world.ledger.jobs.number(key) == one.row.job
    batch = world.sealed()
    assert [each[1] for each in world.ledger.batches.entries(batch.id)] == [key]
    world.ledger.settle([settlement(one.row.id)], now=NOW, batch=batch.id)
    assert world.ledger.results(job=one.row.job, after=0, limit=9)[0].key == key


def test_different_odd_keys_are_different(world: World) -> None:
    assert len({world.accept(key, body=key.encode("utf-8", "surrogatepass")).row.id for key in KEYS}) == len(KEYS)


def test_what_was_accepted_is_there_as_it_was(world: World) -> None:
    row = world.accept("k", NIGHTLY, b'{"x":[1]}', job="j").row
    assert (row.lane, row.status, row.attempts, row.nonce, row.result) == (BATCH, QUEUED, 0, None, None)
    assert attrs.evolve(row.terms, id=0, job=0) == NIGHTLY
    assert row.terms.job == row.job > 0
    assert row.terms.id > 0
    assert row_of(world.ledger, row.id) == row
    assert world.ledger.body(row.id) == b'{"x":[1]}'
    assert marks(world.ledger) == (row.id, 0)


def test_nothing_is_found_that_is_not_there(world: World) -> None:
    ledger = world.ledger
    assert find(ledger, "k", job=None) is None
    assert find(ledger, "k", job="no") is None
    assert row_of(ledger, 77) is None
    assert result_of(ledger, 77) is None
    assert ledger.jobs.number("no") is None
    assert ledger.results(job=None, after=0, limit=9) == []
    assert ledger.statistics.counts(job=None) == {}
    assert marks(ledger) == (0, 0)
    assert world.seal() is None
    assert not ledger.snapshot().batch_queue


def test_same_key_same_content_is_one_request(world: World) -> None:
    first, second = world.accept("k"), world.accept("k")
    assert first.created
    assert not second.created
    assert second.row == first.row
    assert total(world.ledger)[QUEUED] == 1


def test_requests_that_share_a_commit_know_of_each_other(world: World) -> None:
    world.accept("old")

    def begin(key: str | None, body: str = '{"a":1}', job: str | None = None, terms: Terms = FLEXIBLE) -> Any:
        return world.ledger.begin_accept(Offer(entry(key, terms, body), job, world.run, NOW, None))

    wanted = [begin("a"), begin("b", terms=NIGHTLY), begin("a"), begin("old"), begin("a", "{}"), begin(None)]
    wanted += [begin("a", job="j"), begin(None, job="j"), begin("c", terms=NIGHTLY), begin("a", job="j")]
    found: list[tuple[int, bool] | None] = []
    for each in wanted:
        try:
            accepted = each()
        except KeyConflictError:
            found.append(None)
        else:
            found.append((accepted.row.id, accepted.created))
    new = [(2, True), (3, True), (2, False), (1, False), None, (4, True), (5, True), (6, True), (7, True), (5, False)]
    assert found == new
    assert [row.key for row in world.ledger.rows(Which(requests=[2, 3, 7])).values()] == ["a", "b", "c"]
    assert world.ledger.rows(Which(requests=[7]))[7].terms == world.ledger.rows(Which(requests=[3]))[3].terms


def test_same_key_other_content_is_refused_and_leaves_no_trace(world: World) -> None:
    world.accept("k\n'", job="j")
    before = world.ledger.snapshot()
    with pytest.raises(KeyConflictError, match=r'"k\\n\'"'):
        world.accept("k\n'", body=b"{}", job="j")
    assert world.ledger.snapshot() == before
    assert world.accept("k\n'", body=b"{}").created, "another scope"


def test_keys_are_generated_without_a_job(world: World) -> None:
    one, two = world.accept(), world.accept()
    assert one.created
    assert two.created
    assert one.row.key != two.row.key


def test_positions_in_a_job(world: World) -> None:
    keys = [world.accept(body=body, job="j").row.key for body in ('"a"', '"b"', '"b"')]
    assert keys == ["#0", "#1", "#2"]


def test_content_is_what_params_betas_and_stream_say(world: World) -> None:
    one = world.accept("a", body='{"x":1,"y":{"p":2,"q":3}}').row
    assert world.accept("a", body='{"y":{"q":3,"p":2},"x":1}').row.id == one.id
    assert world.bulk([entry("a", body='{"y":{"q":3,"p":2},"x":1}')], job=None) == [one.id]
    for body in ('{"x":1,"y":{"p":3,"q":2}}', '{"x":1}'):
        with pytest.raises(KeyConflictError):
            world.accept("a", body=body)
        with pytest.raises(KeyConflictError):
            world.bulk([entry("a", body=body)], job=None)
    for terms in (attrs.evolve(FLEXIBLE, betas=("one",)), attrs.evolve(FLEXIBLE, stream=True)):
        with pytest.raises(KeyConflictError):
            world.accept("a", terms, body='{"x":1,"y":{"p":2,"q":3}}')
    batch = world.opened()
    requeue(
        world.ledger,
        [one.id],
        lane=BATCH,
        costs_attempt=False,
        now=NOW,
        turn=b"one",
        body=b'{"longer":1}',
        batch=batch.id,
    )
    assert world.accept("a", body='{"y":{"q":3,"p":2},"x":1}').row.id == one.id, "by what was dispatched first"
    with pytest.raises(KeyConflictError):
        world.accept("a", body='{"longer":1}')


def test_terms_of_a_bulk_that_failed_are_not_taken_for_others(world: World) -> None:
    dear = attrs.evolve(FLEXIBLE, max_cost_each=7)
    with pytest.raises(KeyConflictError):
        world.bulk([entry("a", dear, '{"n":1}'), entry("a", dear, '{"n":2}')])
    world.accept("b", FLEXIBLE, max_spend=world.max_spend(0))
    assert world.ledger.snapshot().batch_queue[0].terms.max_cost_each == 0


def test_a_second_run_finds_its_positions_again(backend: Backend) -> None:
    if not backend.shared:
        pytest.skip("one process only")
    first = World(backend.open())
    for body in ('"a"', '"b"', '"b"'):
        first.accept(body=body, job="j")
    second = World(backend.open())
    # Another order, and something new: content finds its place, the new one goes to the end.
    got = [second.accept(body=body, job="j") for body in ('"b"', '"new"', '"a"', '"b"')]
    assert [(each.row.key, each.created) for each in got] == [("#1", False), ("#3", True), ("#0", False), ("#2", False)]


def test_positions_go_on_behind_a_bulk(world: World) -> None:
    world.bulk([entry(None, body='"a"'), entry("named", body='"b"'), entry(None, body='"c"')])
    assert [find(world.ledger, key, job="job") is not None for key in ("#0", "#1", "#2")] == [True, False, True]
    assert world.accept(body="d", job="job").row.key == "#3"


def test_a_position_taken_by_hand_is_passed_over(world: World) -> None:
    world.accept("#0", body="hand", job="j")
    world.accept("#1x", body="x", job="j")
    assert world.accept(body='"a"', job="j").row.key == "#1"


def test_an_earlier_deadline_tightens(world: World) -> None:
    number = world.accept("k").row.id
    assert world.accept("k", NIGHTLY).row.terms.deadline == NIGHTLY.deadline
    later = attrs.evolve(NIGHTLY, deadline=NOW + 50 * HOUR)
    assert world.accept("k", later).row.terms.deadline == NIGHTLY.deadline
    sooner = attrs.evolve(PATIENT, deadline=NOW + HOUR)
    row = world.accept("k", sooner).row
    assert (row.id, row.lane, row.terms.deadline) == (number, SYNC, NOW + HOUR)
    assert world.accept("k", NIGHTLY).row.lane is SYNC, "never back"
    (group,) = world.ledger.snapshot().sync_queue
    assert group.requests == 1
    assert not world.ledger.snapshot().batch_queue


def test_blocking_on_a_queued_request_brings_it_to_the_sync_lane(world: World) -> None:
    world.accept("k", NIGHTLY)
    row = world.accept("k", BLOCKING).row
    assert (row.lane, row.terms.lane, row.terms.deadline) == (SYNC, SYNC, NIGHTLY.deadline)
    assert not row.terms.blocking, "the first dispatch could wait: its promise does not end with this process"


def test_in_flight_requests_keep_their_lane(world: World) -> None:
    world.accept("k", FLEXIBLE)
    world.opened()
    assert world.accept("k", BLOCKING).row.terms == world.accept("k", FLEXIBLE).row.terms
    row = world.accept("k", PATIENT).row
    assert (row.lane, row.status, row.terms.deadline) == (BATCH, IN_FLIGHT, PATIENT.deadline)
    assert [group.terms.deadline for group in world.ledger.snapshot().batches[0].groups] == [PATIENT.deadline]


def test_claiming_at_once(world: World) -> None:
    row = world.accept("k", BLOCKING, claim=True).row
    assert (row.lane, row.status) == (SYNC, IN_FLIGHT)
    assert world.ledger.snapshot().sync_running[0].requests == 1
    assert (row.key, row.attempts, world.ledger.body(row.id)) == ("k", 0, b'{"a":1}')
    assert world.ledger.claim(row.terms.id, 9, run=world.run, now=NOW) == [], "nobody gets it again"
    (claim,) = world.claims
    assert claim[:6] == (row.id, "k", row.terms, b'{"a":1}', 0, ())
    assert not world.accept("k", BLOCKING, claim=True).created
    with pytest.raises(KeyConflictError):
        world.accept("k", BLOCKING, "other", claim=True)
    assert len(world.claims) == 1, "only what is new begins"


# -- accepting many -----------------------------------------------------------------------------------------------


def test_a_bulk_is_invisible_until_it_is_accepted(world: World) -> None:
    ledger = world.ledger
    with ledger.intake(job="job", run=world.run) as intake:
        intake.stage([entry("a", NIGHTLY), entry("b", BLOCKING)])
        assert ledger.jobs.number("job") is None
        assert find(ledger, "a", job="job") is None
        assert row_of(ledger, 1) is None
        assert total(ledger) == {QUEUED: 0, IN_FLIGHT: 0, SETTLED: 0}
        assert not ledger.snapshot().batch_queue
        assert world.seal(terms=range(10)) is None
        assert ledger.claim(2, 9, run=world.run, now=NOW) == []
        assert ledger.cancel(now=NOW) == (0, ())
        ledger.flush()
        move(ledger, [1, 2], lane=SYNC)
        numbers = list(intake.accept(now=NOW))
    assert find(ledger, "a", job="job") is not None
    assert len(numbers) == 2
    assert total(ledger)[QUEUED] == 2
    assert [(g.terms.deadline, g.requests, g.flush) for g in ledger.snapshot().batch_queue] == [
        (NIGHTLY.deadline, 1, True)
    ]


def test_a_bulk_that_is_left_is_gone(world: World) -> None:
    with world.ledger.intake(job="job", run=world.run) as bulk:
        bulk.stage([entry(str(number)) for number in range(20)])
    assert world.ledger.jobs.number("job") is None
    assert world.bulk([entry("3", body="other content")])
    assert total(world.ledger)[QUEUED] == 1


def test_a_conflict_in_a_bulk_leaves_nothing(world: World) -> None:
    world.accept("5", body="other", job="job")
    with pytest.raises(KeyConflictError, match="'5'"):
        world.bulk([entry(str(number)) for number in range(9)])
    with pytest.raises(KeyConflictError, match="'x'"):
        world.bulk([entry("x"), entry("x", body="different")])
    assert total(world.ledger)[QUEUED] == 1


def test_a_bulk_run_twice_is_there_once(world: World) -> None:
    entries = [entry(None, NIGHTLY, str(number)) for number in range(10)]
    first = world.bulk(entries)
    assert world.bulk(entries, chunk=4) == first
    assert world.bulk([*entries, entry(None, NIGHTLY, "more")])[:10] == first
    assert total(world.ledger)[QUEUED] == 11
    assert sum(group.requests for group in world.ledger.snapshot().batch_queue) == 11


def test_twice_in_one_bulk_is_once(world: World) -> None:
    numbers = world.bulk([entry("a"), entry("b"), entry("a"), entry("b", NIGHTLY)], chunk=10)
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[3]
    assert total(world.ledger)[QUEUED] == 2
    row = row_of(world.ledger, numbers[1])
    assert row is not None
    assert row.terms.deadline == NIGHTLY.deadline


@pytest.mark.parametrize("which", ["aaaaaa", "aaabbb", "ababab", "abbbba", "abccab"])
def test_requests_of_one_bulk_keep_their_own_terms(world: World, which: str) -> None:
    terms = {"a": FLEXIBLE, "b": NIGHTLY, "c": PATIENT}
    entries = [entry(None, terms[each], "1" * (2**place)) for place, each in enumerate(which)]
    numbers = world.bulk(entries, chunk=10)
    rows = [row_of(world.ledger, number) for number in numbers]
    assert [(row.lane, row.terms.deadline) for row in rows if row is not None] == [
        (terms[each].lane, terms[each].deadline) for each in which
    ]
    snapshot = world.ledger.snapshot()
    groups = (*snapshot.batch_queue, *snapshot.sync_queue)
    assert {group.terms.deadline: (group.requests, group.size) for group in groups} == {
        terms[name].deadline: (which.count(name), sum(2**place for place, each in enumerate(which) if each == name))
        for name in set(which)
    }


def test_a_bulk_tightens_only_when_it_is_accepted(world: World) -> None:
    number = world.accept("a", job="job").row.id
    with world.ledger.intake(job="job", run=world.run) as intake:
        intake.stage([entry("a", NIGHTLY)])
    row = row_of(world.ledger, number)
    assert row is not None
    assert row.terms.deadline is None
    world.bulk([entry("a", NIGHTLY)])
    row = row_of(world.ledger, number)
    assert row is not None
    assert row.terms.deadline == NIGHTLY.deadline
    (group,) = world.ledger.snapshot().batch_queue
    assert group.flush


def test_a_bulk_flushes_what_was_there(world: World) -> None:
    world.accept("a", job="job")
    world.bulk([entry("a")])
    assert [group.flush for group in world.ledger.snapshot().batch_queue] == [True]


def test_bulk_without_flush_and_with_a_part_for_the_sync_lane(world: World) -> None:
    now = attrs.evolve(NIGHTLY, lane=Lane.SYNC, explanation="no room for its rescue")
    numbers = world.bulk(
        [entry(str(n), NIGHTLY) for n in range(10)], flush=False, sync={NIGHTLY: (4, now), FLEXIBLE: (3, now)}
    )
    snapshot = world.ledger.snapshot()
    assert [(g.requests, g.size, g.flush) for g in snapshot.batch_queue] == [(6, 42, False)]
    assert [(g.requests, g.size, g.flush) for g in snapshot.sync_queue] == [(4, 28, False)]
    assert [group.terms.explanation for group in snapshot.sync_queue] == ["no room for its rescue"]
    batch = world.sealed()
    assert missing(world.ledger, batch.id) == numbers[:6]


def test_bulks_of_one_job_wait_for_each_other(world: World) -> None:
    order = []

    def second() -> None:
        with world.ledger.intake(job="job", run=world.run) as intake:
            order.append("second")
            intake.accept(now=NOW)

    with world.ledger.intake(job="job", run=world.run) as intake:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
        with pytest.raises(LedgerError, match="this thread"):
            world.ledger.intake(job="job", run=world.run)
        intake.accept(now=NOW)
    thread.join(10)
    assert order == ["first", "second"]


def test_one_request_waits_for_the_bulk_that_holds_its_key(world: World) -> None:
    got = []
    with world.ledger.intake(job="job", run=world.run) as intake:
        intake.stage([entry("a")])
        with pytest.raises(LedgerError, match="this thread"):
            world.accept("a", job="job")
        thread = threading.Thread(target=lambda: got.append(world.accept("a", job="job")))
        thread.start()
        time.sleep(0.1)
        assert not got
        (number,) = intake.accept(now=NOW)
    thread.join(10)
    assert [(each.row.id, each.created) for each in got] == [(number, False)]


def test_an_ended_bulk_takes_no_more(world: World) -> None:
    with world.ledger.intake(job="job", run=world.run) as intake:
        intake.accept(now=NOW)
        with pytest.raises(LedgerError):
            intake.stage([entry("a")])
        with pytest.raises(LedgerError):
            intake.accept(now=NOW)
    assert world.ledger.jobs.number("job") is not None, "an empty job is a job"


# -- money --------------------------------------------------------------------------------------------------------

PRICED = attrs.evolve(FLEXIBLE, max_cost_each=100, max_cost_per_byte=10)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_transaction_inside_another_is_refused_and_harms_nothing(world: World, kind: str) -> None:
    """A signal's handler may ask for one."""
    database = world.ledger.database
    with database.write("outer") as db:
        db.execute("INSERT INTO meta VALUES ('a', '1')")
        inner = database.read() if kind == "read" else database.write("inner")
        with pytest.raises(LedgerError, match="in this thread"), inner as inside:
            inside.execute("INSERT INTO meta VALUES ('c', '3')")
        db.execute("INSERT INTO meta VALUES ('b', '2')")
    with database.read() as db:
        found = db.execute("SELECT name FROM meta WHERE name IN ('a', 'b', 'c') ORDER BY name").fetchall()
    assert found == [("a",), ("b",)]


def test_the_spend_limit_counts_reserved_spent_and_wasted(world: World) -> None:
    body = b"1234567890"  # 300 reserved: a call costs 200 at most, a batch half of it
    one = world.accept("a", PRICED, body, max_spend=world.max_spend(300)).row.id
    with pytest.raises(SpendLimitError, match="max_spend"):
        world.accept("b", PRICED, body, max_spend=world.max_spend(599))
    assert find(world.ledger, "b", job=None) is None
    world.accept("b", PRICED, body, max_spend=world.max_spend(600))
    world.accept("a", PRICED, body, max_spend=world.max_spend(0)), "nothing new"
    batch = world.opened()
    world.ledger.settle([settlement(one, cost=50)], now=NOW, batch=batch.id)
    with pytest.raises(SpendLimitError):
        world.accept("c", PRICED, body, max_spend=world.max_spend(649))
    world.accept("c", PRICED, body, max_spend=world.max_spend(650))
    other = world.opened()
    for _ in range(2):
        world.ledger.book_stray(other.id, one, b"a", 7, now=NOW)
        world.ledger.book_stray(batch.id, one, b"a", 7, now=NOW)  # the row that settled it, read again
    with pytest.raises(SpendLimitError):
        world.accept("d", FLEXIBLE, body, max_spend=world.max_spend(656))
    world.accept("d", FLEXIBLE, body, max_spend=world.max_spend(657))
    assert world.ledger.statistics.report(job=None).wasted == Decimal(7).scaleb(-12)


def test_the_spend_limit_over_a_period(world: World) -> None:
    one, two = world.accept("a").row.id, world.accept("b").row.id
    batch = world.opened()
    world.ledger.settle([settlement(one, cost=50)], now=NOW, batch=batch.id)
    world.ledger.settle([settlement(two, cost=20)], now=NOW + HOUR, batch=batch.id)
    with pytest.raises(SpendLimitError):
        world.accept("c", max_spend=world.max_spend(19, NOW + HOUR))
    world.accept("c", max_spend=world.max_spend(20, NOW + HOUR))


def test_a_bulk_over_the_spend_limit_is_refused_whole(world: World) -> None:
    entries = [entry(str(n), PRICED, b"1234567890") for n in range(3)]
    with pytest.raises(SpendLimitError):
        world.bulk(entries, max_spend=world.max_spend(899))
    assert total(world.ledger)[QUEUED] == 0
    world.bulk(entries, max_spend=world.max_spend(900))


def test_the_reserve_follows_cancel_reopen_and_requeue(world: World) -> None:
    world.bulk([entry(str(n), PRICED, b"1234567890") for n in range(3)])
    job = world.ledger.jobs.number("job")
    assert job is not None
    world.ledger.cancel(now=NOW)
    world.accept("x", max_spend=world.max_spend(0))
    world.ledger.reopen(job=job, outcomes=[Outcome.CANCELED], now=NOW)
    with pytest.raises(SpendLimitError):
        world.accept("y", max_spend=world.max_spend(899))
    batch = world.opened(terms=[group.terms.id for group in world.ledger.snapshot().batch_queue])
    (first, *_) = missing(world.ledger, batch.id)
    requeue(world.ledger, [first], lane=BATCH, costs_attempt=True, now=NOW, turn=b"t", body=b"12345678901234567890")
    with pytest.raises(SpendLimitError):
        world.accept("y", max_spend=world.max_spend(1_049))
    world.accept("y", max_spend=world.max_spend(1_050))


def test_an_answer_without_a_price_counts_with_all_that_was_reserved_for_it(world: World) -> None:
    body = b"1234567890"  # a batch costs 100 at most, a call 200
    numbers = world.bulk([entry(str(n), PRICED, body) for n in range(3)])
    batch = world.opened()
    open_rows = world.ledger.batches.open_rows(batch.id)
    assert open_rows is not None
    assert world.ledger.settle_answers(open_rows, [(numbers[0], b"{}", None, None, 0, None)], now=NOW)
    world.ledger.settle([settlement(numbers[1], cost=None)], now=NOW, batch=batch.id)
    requeue(world.ledger, numbers[2:], lane=SYNC, costs_attempt=True, now=NOW)
    world.ledger.settle([settlement(numbers[2], lane=SYNC, cost=None, maybe_billed=True)], now=NOW)
    with pytest.raises(SpendLimitError):
        world.accept("c", max_spend=world.max_spend(399))
    with pytest.raises(SpendLimitError):
        world.accept("c", max_spend=world.max_spend(399, NOW))
    world.accept("c", max_spend=world.max_spend(400, NOW))
    assert world.ledger.statistics.report(job=None).unpriced == 3


def test_what_may_be_bought_again_is_reserved_under_the_spend_limit(world: World) -> None:
    body = b"1234567890"  # a batch costs 100 at most, a call 200
    numbers = world.bulk([entry(str(n), PRICED, body) for n in range(3)], max_spend=world.max_spend(900))
    batch = world.opened()

    def bought_again(room: int, number: int, lane: Lane) -> bool:
        before = world.ledger.snapshot(), world.ledger.statistics.report(job=None)
        try:
            options = {"costs_attempt": True, "now": NOW, "maybe_billed": True}
            requeue(world.ledger, [number], lane=lane, max_spend=world.max_spend(900 + room), **options)
        except SpendLimitError:
            assert (world.ledger.snapshot(), world.ledger.statistics.report(job=None)) == before
            return False
        return True

    with pytest.raises(SpendLimitError):
        unseal(world.ledger, batch.id, now=NOW, keep=True, maybe_billed=True, max_spend=world.max_spend(1_199))
    assert not bought_again(99, numbers[0], BATCH)
    assert bought_again(0, numbers[0], SYNC), "the call of a rescue is kept for from the beginning"
    assert bought_again(100, numbers[1], BATCH)
    terms = find(world.ledger, "0", job="job").terms.id  # type: ignore[union-attr]
    (claim,) = world.ledger.claim(terms, 1, run=world.run, now=NOW)
    with pytest.raises(SpendLimitError):
        world.ledger.note_attempt(
            claim.id, run=world.run, costs_attempt=True, maybe_billed=True, now=NOW, max_spend=world.max_spend(1_199)
        )
    assert world.ledger.note_attempt(
        claim.id, run=world.run, costs_attempt=True, maybe_billed=True, now=NOW, max_spend=world.max_spend(1_200)
    )
    assert world.ledger.statistics.report(job=None).possible_doubles == 3


def test_books_of_large_amounts(world: World) -> None:
    large = 10**12 * 5_000_000  # five million USD in pico-USD: two of them pass 2**63
    numbers = [world.accept(str(n)).row.id for n in range(4)]
    world.ledger.settle([settlement(numbers[0], cost=large)], now=NOW)
    world.ledger.settle([settlement(numbers[1], lane=SYNC, cost=large)], now=NOW + HOUR)
    assert world.ledger.statistics.report(job=None).cost == 10_000_000
    odd = 10**12 * 9_000_000 + 1
    world.ledger.settle([settlement(number, cost=odd) for number in numbers[2:]], now=NOW + HOUR)
    batch = world.opened(terms=[world.accept("z").row.terms.id])
    for number in numbers[:3]:
        world.ledger.book_stray(batch.id, number, b"a", 2 * large, now=NOW)
    report = world.ledger.statistics.report(job=None)
    assert report.cost == 28_000_000 + Decimal(2).scaleb(-12), "exact, in one lane and outcome too"
    dear = attrs.evolve(PRICED, max_cost_each=large)
    world.bulk([entry(f"dear {n}", dear) for n in range(9)], job="dear")
    unsealed = world.opened(terms=[find(world.ledger, "dear 0", job="dear").terms.id])  # type: ignore[union-attr]
    unseal(world.ledger, unsealed.id, now=NOW, keep=True, maybe_billed=True)
    with pytest.raises(SpendLimitError, match=r"beside 80500000\.0"):
        world.accept("c", max_spend=world.max_spend(50_000_000 * 10**12, NOW))
    with pytest.raises(SpendLimitError):
        world.accept("c", max_spend=world.max_spend(2 * large - 1))
    with pytest.raises(SpendLimitError):
        world.accept("c", max_spend=world.max_spend(2 * large - 1, NOW))


# -- sealing ------------------------------------------------------------------------------------------------------


def test_a_seal_takes_rows_in_order_and_a_count_that_no_other_batch_has(world: World) -> None:
    numbers = world.bulk([entry(f"k{n}", body=str(n)) for n in range(10)])
    batch = world.sealed(taken={10, 9})
    assert batch.requests == 8
    assert (batch.state, batch.groups[0].requests, batch.betas) == (BatchState.SEALED, 8, FLEXIBLE.betas)
    assert [each[0] for each in world.ledger.batches.entries(batch.id)] == numbers[:8]
    assert world.sealed(taken={2, 1}).requests == 2, "no telling count is left: all of it, never padded"
    assert total(world.ledger)[IN_FLIGHT] == 10


def test_a_seal_respects_the_count_limit_and_merges_terms_by_number(world: World) -> None:
    one, two, three = (
        world.accept(key, terms).row.id for key, terms in (("a", FLEXIBLE), ("b", NIGHTLY), ("c", FLEXIBLE))
    )
    batch = world.sealed(max_requests=2)
    assert missing(world.ledger, batch.id) == [one, two]
    assert len(batch.groups) == 2
    assert missing(world.ledger, world.sealed().id) == [three]


def test_a_seal_of_very_many_terms(backend: Backend, world: World) -> None:
    many = backend.many_terms
    deadlines = (NOW + HOUR + timedelta(microseconds=number) for number in range(many))
    entries = [entry(str(at), attrs.evolve(NIGHTLY, deadline=at)) for at in deadlines]
    world.bulk(entries, chunk=10_000)
    batch = world.sealed()
    assert batch.requests == len(batch.groups) == many
    assert unseal(world.ledger, batch.id, now=NOW, terms=[group.terms.id for group in batch.groups[1:]]) == many - 1


@pytest.mark.parametrize("slack", [-1, 0, 1])
def test_the_size_of_a_seal_is_exact(world: World, slack: int) -> None:
    for number in range(40):
        world.accept("é" * (number + 30), body="x" * number)
    ids = sealer("1" * 12)
    rows = [(number, "é" * (number + 29), b"x" * (number - 1)) for number in range(1, 21)]
    limit = len(b"".join(body_chunks((ids(key, number), body) for number, key, body in rows)))
    batch = world.sealed(max_bytes=limit + slack)
    assert batch.requests == (19 if slack < 0 else 20)
    seal = sealer(batch.nonce)
    written = b"".join(
        body_chunks((seal(key, number), body) for number, key, body in world.ledger.batches.entries(batch.id))
    )
    assert len(written) == batch.size <= limit + slack


def test_the_life_of_a_batch_is_kept(world: World) -> None:
    world.accept("a", NIGHTLY)
    ledger, batch = world.ledger, world.sealed()
    posted(ledger, batch, watermark="msgbatch_0", posting_server=NOW - HOUR)
    view = world.view(batch.id)
    assert (view.state, view.watermark, view.posting_server, view.posting_at) == (
        BatchState.POSTING,
        "msgbatch_0",
        NOW - HOUR,
        NOW,
    )
    assert view.betas == ("one", "two")
    changed = attrs.evolve(
        view,
        state=BatchState.IN_DOUBT,
        candidates=("a", "b"),
        struck=("c",),
        last_byte_at=NOW,
        failures=3,
        canceled=True,
        cancel_at=NOW,
        polled_at=NOW + timedelta(microseconds=1),
    )
    ledger.batches.update(changed)
    assert world.view(batch.id) == changed
    ledger.batches.created(batch.id, remote_id="msgbatch_1", created_at=NOW, expires_at=NOW + 24 * HOUR, now=NOW)
    view = world.view(batch.id)
    assert (view.state, view.remote_id, view.expires_at) == (BatchState.OPEN, "msgbatch_1", NOW + 24 * HOUR)
    assert ledger.batches.known(["msgbatch_1", "msgbatch_2"]) == {"msgbatch_1"}
    with pytest.raises(LedgerError, match="still has 1"):
        ledger.batches.update(attrs.evolve(view, state=BatchState.CLOSED))
    ledger.settle([settlement(1)], now=NOW, batch=batch.id)
    ledger.batches.update(attrs.evolve(view, state=BatchState.CLOSED, ended_at=NOW + HOUR))
    assert ledger.snapshot().batches == ()


def test_an_ended_batch_is_a_sample_for_the_forecast(world: World) -> None:
    world.accept("a")
    batch = world.opened()
    assert world.ledger.statistics.history() == []
    world.ledger.settle([settlement(1)], now=NOW, batch=batch.id)
    world.ledger.batches.update(attrs.evolve(batch, state=BatchState.CLOSED, ended_at=NOW + HOUR))
    (sample,) = world.ledger.statistics.history()
    assert (sample.kind, sample.duration, sample.ended, sample.model) == ("batch", HOUR, True, FLEXIBLE.model)
    assert (sample.requests, sample.hour) == (1, 12)


def test_a_cancelled_batch_is_a_sample_for_the_forecast(world: World) -> None:
    world.accept("a")
    batch = world.opened()
    world.ledger.settle([settlement(1)], now=NOW, batch=batch.id)
    world.ledger.conditions.note(clock_offset=timedelta(minutes=5))
    cancel_at = NOW + HOUR - timedelta(minutes=5)
    world.ledger.batches.update(
        attrs.evolve(batch, state=BatchState.CLOSED, cancel_at=cancel_at, ended_at=NOW + 2 * HOUR)
    )
    whole, cancel = world.ledger.statistics.history()
    assert (whole.kind, whole.duration, whole.ended) == ("batch", HOUR, False)
    assert (cancel.kind, cancel.duration, cancel.ended) == ("cancel", HOUR, True)
    assert world.ledger.snapshot().clock_offset == timedelta(minutes=5)


def test_the_check_before_the_last_chunk_sees_a_lost_row(world: World) -> None:
    numbers = [world.accept(str(n)).row.id for n in range(2)]
    batch = world.sealed()
    posted(world.ledger, batch)
    assert world.ledger.batches.still_posting(batch.id)
    world.ledger.settle([settlement(numbers[0], lane=SYNC)], now=NOW)
    assert not world.ledger.batches.still_posting(batch.id)


def test_a_batch_is_posted_once(world: World) -> None:
    world.accept("a")
    batch = world.sealed()
    posted(world.ledger, batch)
    assert not world.ledger.batches.update(
        attrs.evolve(batch, state=BatchState.POSTING, posting_at=NOW + HOUR), was=batch
    )
    assert world.view(batch.id).posting_at == NOW


def test_unseal_queues_again_and_voids(world: World) -> None:
    numbers = world.bulk([entry(str(n), NIGHTLY if n % 2 else FLEXIBLE) for n in range(4)])
    batch = world.sealed()
    assert unseal(world.ledger, batch.id, lane=SYNC, now=NOW + HOUR) == 4
    snapshot = world.ledger.snapshot()
    assert snapshot.batches == ()
    assert sum(group.requests for group in snapshot.sync_queue) == 4
    assert {group.since for group in snapshot.sync_queue} == {NOW + HOUR}
    assert all(group.flush for group in snapshot.sync_queue), "they have waited their interval already"
    row = row_of(world.ledger, numbers[0])
    assert row is not None
    assert (row.nonce, row.attempts, row.lane) == (batch.nonce, 0, SYNC)
    assert unseal(world.ledger, batch.id, now=NOW) == 0


def test_unseal_of_some_terms_leaves_the_rest(world: World) -> None:
    one, two = world.accept("a", NIGHTLY).row, world.accept("b").row
    batch = world.opened()
    assert unseal(world.ledger, batch.id, terms=[one.terms.id], lane=SYNC, now=NOW) == 1
    assert world.view(batch.id).groups[0].requests == 1
    assert missing(world.ledger, batch.id) == [two.id]


def test_a_kept_batch_may_still_deliver(world: World) -> None:
    numbers = world.bulk([entry(str(n)) for n in range(3)])
    batch = world.opened()
    assert unseal(world.ledger, batch.id, lane=SYNC, now=NOW, keep=True, maybe_billed=True) == 3
    assert world.view(batch.id).groups == ()
    report = world.ledger.statistics.report(job=None)
    assert report.possible_doubles == 3
    (claim,) = world.ledger.claim(world.ledger.snapshot().sync_queue[0].terms.id, 1, run=world.run, now=NOW)
    # The sync lane is first for one row, the batch for the others, of which one is running.
    world.ledger.settle([settlement(claim.id, lane=SYNC, cost=10, line=b"sync")], now=NOW, run=world.run)
    assert [each.id for each in world.ledger.claim(claim.terms.id, 1, run=world.run, now=NOW)] == numbers[1:2]
    delivered = [settlement(number, cost=5) for number in numbers]
    assert world.ledger.settle(delivered, now=NOW, batch=batch.id) == 2
    assert world.ledger.settle(delivered, now=NOW, batch=batch.id) == 0
    assert world.ledger.settle([settlement(numbers[1], lane=SYNC, cost=10, line=b"late")], now=NOW, run=world.run) == 0
    report = world.ledger.statistics.report(job=None)
    assert report.cost == Decimal(20).scaleb(-12)
    assert report.wasted == Decimal(15).scaleb(-12), "5 for the batch's row of the first, 10 for the second's call"
    assert total(world.ledger) == {QUEUED: 0, IN_FLIGHT: 0, SETTLED: 3}
    assert not world.ledger.snapshot().sync_running


def test_a_failure_counts_only_where_the_request_is(world: World) -> None:
    row = world.accept("a").row
    batch = world.opened()
    unseal(world.ledger, batch.id, lane=SYNC, now=NOW, keep=True)
    failed = settlement(row.id, Outcome.FAILED, cost=0)
    assert world.ledger.settle([failed], now=NOW, batch=batch.id) == 0
    assert len(world.ledger.claim(row.terms.id, 1, run=world.run, now=NOW)) == 1
    assert world.ledger.settle([failed], now=NOW, batch=batch.id) == 0
    assert world.ledger.settle([failed], now=NOW, run=world.run + 1) == 0
    assert world.ledger.settle([failed], now=NOW, run=world.run) == 1


def test_a_paid_end_of_a_request_that_has_left_is_wasted_once(world: World) -> None:
    row = world.accept("a").row
    batch = world.opened()
    unseal(world.ledger, batch.id, lane=SYNC, now=NOW, keep=True)
    refused = settlement(row.id, Outcome.REFUSED, cost=5, line=b"refused")
    for _ in range(2):
        assert world.ledger.settle([refused], now=NOW, batch=batch.id) == 0
    (claim,) = world.ledger.claim(row.terms.id, 1, run=world.run, now=NOW)
    elsewhere = settlement(claim.id, Outcome.REFUSED, SYNC, cost=7, line=b"of another run")
    assert world.ledger.settle([elsewhere], now=NOW, run=world.run + 1) == 0
    assert world.ledger.statistics.report(job=None).wasted == Decimal(12).scaleb(-12)


def test_a_turn_after_which_a_request_went_on_is_not_wasted(world: World) -> None:
    row = world.accept("a").row
    batch = world.opened()
    requeue(world.ledger, [row.id], lane=SYNC, costs_attempt=True, now=NOW, turn=b"went on")
    refused = settlement(row.id, Outcome.REFUSED, cost=9, line=b"went on")
    assert world.ledger.settle([refused], now=NOW, batch=batch.id) == 0
    assert world.ledger.statistics.report(job=None).wasted == 0


def test_move_between_the_lanes(world: World) -> None:
    row = world.accept("a").row
    world.accept("b")
    world.ledger.flush(Which(terms=[row.terms.id]))
    assert move(world.ledger, [row.terms.id], lane=SYNC) == 2
    assert move(world.ledger, [row.terms.id], lane=SYNC) == 0
    (group,) = world.ledger.snapshot().sync_queue
    assert (group.requests, group.flush, group.since) == (2, True, NOW)
    assert world.seal() is None
    assert move(world.ledger, [row.terms.id], lane=BATCH) == 2
    assert world.sealed().requests == 2


def test_waiting_goes_along_to_the_other_lane(world: World) -> None:
    row = world.accept("a").row
    move(world.ledger, [row.terms.id], lane=SYNC)
    world.accept("b")
    world.ledger.flush(Which(requests=[world.accept("b").row.id]))
    move(world.ledger, [row.terms.id], lane=BATCH)
    world.accept("c")
    move(world.ledger, [row.terms.id], lane=SYNC)
    assert [(group.requests, group.flush) for group in world.ledger.snapshot().sync_queue] == [(3, True)]


def test_a_flushed_group_that_joins_another_flushes_it(world: World) -> None:
    row = world.accept("a").row
    world.ledger.flush()
    move(world.ledger, [row.terms.id], lane=SYNC)
    world.accept("b")
    move(world.ledger, [row.terms.id], lane=BATCH)
    assert [(group.requests, group.flush) for group in world.ledger.snapshot().batch_queue] == [(2, True)]


def test_one_batch_is_as_the_snapshot_shows_it_until_it_is_over(world: World) -> None:
    for key in "abc":
        world.accept(key)
        world.sealed()
    batches = world.ledger.snapshot().batches
    assert [world.ledger.batches.get(batch.id) for batch in batches] == list(batches)
    unseal(world.ledger, batches[1].id, now=NOW)
    assert world.ledger.batches.get(batches[1].id) is None
    assert world.ledger.batches.get(99) is None


def test_flush_marks_what_it_names(world: World) -> None:
    def flushed() -> list[bool]:
        return [group.flush for group in world.ledger.snapshot().batch_queue]

    one, two, three = (
        world.accept(str(n), attrs.evolve(FLEXIBLE, max_tokens=n), job=job).row
        for n, job in ((1, None), (2, "j"), (3, "j"))
    )
    assert flushed() == [False] * 3
    world.ledger.flush(Which(terms=[one.terms.id]))
    assert flushed() == [True, False, False]
    world.ledger.flush(Which(requests=[three.id]))
    assert flushed() == [True, False, True]
    world.ledger.flush(Which(job=two.job))
    assert flushed() == [True] * 3
    world.sealed()
    world.accept("new", attrs.evolve(FLEXIBLE, max_tokens=1))
    assert flushed() == [False], "who came after the flush has nobody waiting"
    world.ledger.flush()
    assert flushed() == [True]


# -- the sync lane ------------------------------------------------------------------------------------------------


def test_claims_are_handed_out_once(world: World) -> None:
    numbers = world.bulk([entry(f"{n:02}", PATIENT) for n in range(5)])
    (group,) = world.ledger.snapshot().sync_queue
    claims = world.ledger.claim(group.terms.id, 3, run=world.run, now=NOW)
    assert [(claim.id, claim.key) for claim in claims] == [(numbers[n], f"{n:02}") for n in range(3)]
    assert len(world.ledger.claim(group.terms.id, 9, run=world.run, now=NOW)) == 2
    assert world.ledger.claim(group.terms.id, 9, run=world.run, now=NOW) == []


def test_claims_leave_the_batch_queue_alone_unless_told(world: World) -> None:
    row = world.accept("a").row
    assert world.ledger.claim(row.terms.id, 9, run=world.run, now=NOW) == []
    assert len(world.ledger.claim(row.terms.id, 9, run=world.run, now=NOW, any_lane=True)) == 1
    assert world.ledger.snapshot().sync_running[0].requests == 1
    assert not world.ledger.snapshot().batch_queue


def test_failed_tries_are_noted(world: World) -> None:
    row = world.accept("a", BLOCKING, claim=True).row
    assert world.ledger.note_attempt(row.id, run=world.run, costs_attempt=True, maybe_billed=True, now=NOW)
    assert world.ledger.note_attempt(row.id, run=world.run, costs_attempt=False, maybe_billed=False, now=NOW)
    assert not world.ledger.note_attempt(row.id, run=99, costs_attempt=True, maybe_billed=True, now=NOW)
    after = row_of(world.ledger, row.id)
    assert after is not None
    assert after.attempts == 1
    assert world.ledger.statistics.report(job=0).possible_doubles == 1


def test_attempts_of_calls_and_of_batches_are_counted_apart(world: World) -> None:
    row = world.accept("a", NIGHTLY).row

    def claim() -> Claim:
        (claimed,) = world.ledger.claim(row.terms.id, 1, run=world.run, now=NOW)
        return claimed

    for lane in (BATCH, SYNC):
        requeue(world.ledger, [row.id], lane=lane, costs_attempt=True, now=NOW, batch=world.opened().id)
    first = claim()
    assert (first.attempts, first.calls) == (2, 0)
    world.ledger.note_attempt(row.id, run=world.run, costs_attempt=True, maybe_billed=False, now=NOW)
    requeue(world.ledger, [row.id], lane=SYNC, costs_attempt=True, now=NOW)
    again = claim()
    assert (again.attempts, again.calls) == (4, 2)
    world.ledger.settle([settlement(row.id, Outcome.FAILED, lane=SYNC)], now=NOW)
    world.ledger.reopen(job=0, outcomes=[Outcome.FAILED], now=NOW)
    (group,) = world.ledger.snapshot().batch_queue
    (renewed,) = world.ledger.claim(group.terms.id, 1, run=world.run, now=NOW, any_lane=True)
    assert (renewed.attempts, renewed.calls) == (0, 0)


def test_a_refusal_is_kept_with_the_body_that_goes_on_after_it(world: World) -> None:
    row = world.accept("a", PATIENT, claim=True, body="first").row
    noted = world.ledger.note_attempt(
        row.id, run=world.run, costs_attempt=True, maybe_billed=False, now=NOW, turn=Turn(b"refused", b"another model")
    )
    assert noted
    assert [group.size for group in world.ledger.snapshot().sync_running] == [len(b"another model")]
    requeue(world.ledger, [row.id], lane=SYNC, costs_attempt=False, now=NOW)
    (claim,) = world.ledger.claim(row.terms.id, 1, run=world.run, now=NOW)
    assert (claim.body, claim.turns, claim.attempts) == (b"another model", (b"refused",), 1)
    assert world.ledger.statistics.report(job=0).possible_doubles == 0


def test_turns_in_other_batches_do_not_slow_a_batch_down(world: World) -> None:
    numbers = world.bulk([entry("a"), entry("b")])
    batch = world.opened()
    requeue(
        world.ledger, [numbers[0]], lane=SYNC, costs_attempt=False, now=NOW, turn=b"one", body=b"longer", batch=batch.id
    )
    assert world.ledger.batches.open_rows(batch.id) is None
    world.bulk([entry("c"), entry("d")])
    assert world.ledger.batches.open_rows(world.opened().id) is not None


def test_a_paused_turn_is_continued_and_forgotten_by_beginning_anew(world: World) -> None:
    numbers = world.bulk([entry("a", body="first"), entry("b", body="other")])
    for turn in (b"one", b"two"):
        batch = world.opened()
        queued = requeue(
            world.ledger,
            [numbers[0]],
            lane=BATCH,
            costs_attempt=False,
            now=NOW,
            turn=turn,
            body=b"longer " + turn,
            batch=batch.id,
        )
        assert queued == 1
        assert requeue(world.ledger, [numbers[0]], lane=BATCH, costs_attempt=False, now=NOW, batch=batch.id) == 0
    assert [world.ledger.body(each) for each in numbers] == [b"longer two", b"other"]
    batch = world.opened()
    assert world.ledger.batches.open_rows(batch.id) is None
    members = world.ledger.rows(Which(requests=[*numbers, 99], batch=batch.id))
    assert {number: (member.key, member.turns) for number, member in members.items()} == {
        numbers[0]: ("a", (b"one", b"two"))
    }
    assert batch.groups[0].size == len(b"longer two")
    world.ledger.settle([settlement(numbers[0], Outcome.FAILED)], now=NOW, batch=batch.id)
    row = row_of(world.ledger, numbers[0])
    assert row is not None
    world.ledger.reopen(job=row.job, outcomes=[Outcome.FAILED], now=NOW)
    assert world.ledger.body(numbers[0]) == b"first"
    assert world.ledger.snapshot().batch_queue[0].size == len(b"first")
    batch = world.opened()
    assert world.ledger.rows(Which(requests=numbers, batch=batch.id))[numbers[0]].turns == ()


# -- ends ---------------------------------------------------------------------------------------------------------


def mixed(world: World) -> tuple[list[int], BatchView]:
    """A batch of several kinds: two terms, in two jobs, and one that has had an attempt."""
    numbers = world.bulk([entry(f"{n}", FLEXIBLE if n % 3 else DATED, body="x" * (n + 1)) for n in range(7)])
    numbers += world.bulk([entry("elsewhere", DATED)], job="other")
    first = world.opened()
    requeue(world.ledger, [numbers[0]], lane=BATCH, costs_attempt=True, now=NOW, batch=first.id)
    unseal(world.ledger, first.id, now=NOW)
    return numbers, world.opened()


DATED = attrs.evolve(NIGHTLY, max_cost_each=6, max_cost_per_byte=2)


@pytest.mark.parametrize("chunks", [[[0, 1, 2, 3, 4, 5, 6, 7]], [[5, 2], [7, 0, 1], [6], [4, 3]]])
def test_answers_of_open_rows_settle_as_other_settlements_do(
    world: World, twin: World, chunks: list[list[int]]
) -> None:
    numbers, batch = mixed(world)
    assert mixed(twin) == (numbers, batch)
    open_rows = world.ledger.batches.open_rows(batch.id)
    assert open_rows is not None
    assert sum(open_rows.left.values()) == 8
    late = NOW + 31 * HOUR
    for chunk in chunks:
        part = [numbers[index] for index in chunk]
        answers = [
            (n, line(n), None if n == 3 else n, None if n == 3 else 2 * n, 10 * n, (n, 1, -n) if n % 2 else None)
            for n in part
        ]
        assert world.ledger.settle_answers(open_rows, list(answers), now=late)
        rows = [
            settlement(n, line=text, cost=cost, saved=saved, input_tokens=tokens, cached=cached)
            for n, text, cost, saved, tokens, cached in answers
        ]
        twin.ledger.settle(rows, now=late, batch=batch.id)
    assert not open_rows.left
    assert missing(world.ledger, batch.id) == []
    for each in (world, twin):
        each.ledger.batches.update(attrs.evolve(batch, state=BatchState.CLOSED, groups=()))
    assert world.ledger.snapshot() == twin.ledger.snapshot()
    assert world.ledger.statistics.report(job=None) == twin.ledger.statistics.report(job=None)
    assert world.ledger.statistics.counts(job=None) == twin.ledger.statistics.counts(job=None)
    by_request = [
        sorted(each._replace(cursor=0) for each in side.ledger.results(job=None, after=0, limit=99))
        for side in (world, twin)
    ]
    assert by_request[0] == by_request[1]


def test_what_has_settled_is_told_once_it_is_durable_and_once(world: World) -> None:
    numbers = world.bulk([entry(str(n)) for n in range(3)])
    batch = world.opened()
    world.ledger.settle([settlement(numbers[0])], now=NOW, batch=batch.id)
    with pytest.raises(KeyConflictError):
        world.bulk([entry("0", body="other")])
    assert [each.requests for each in world.ledger.take_sums()] == [1], "another transaction was given up since"

    early: list[object] = []

    def look() -> str:
        early.extend(world.ledger.take_sums())
        return "prices"

    def look_and_fail() -> str:
        look()
        raise KeyboardInterrupt

    open_rows = world.ledger.batches.open_rows(batch.id)
    assert open_rows is not None
    answers: list[Answer] = [(number, line(number), 5, 5, 1, None) for number in numbers[1:]]
    world.ledger.books.use_prices(look_and_fail, lambda terms, _body: terms)  # asked within the transaction
    with pytest.raises(KeyboardInterrupt):
        world.ledger.settle_answers(open_rows, answers, now=NOW)
    assert early == world.ledger.take_sums() == []
    world.ledger.books.use_prices(look, lambda terms, _body: terms)
    assert world.ledger.settle_answers(open_rows, answers, now=NOW)
    assert not early, "it is not durable yet"
    assert [each.requests for each in world.ledger.take_sums()] == [2]


def test_open_rows_that_are_out_of_date_settle_nothing(world: World) -> None:
    numbers = world.bulk([entry(str(n), NIGHTLY) for n in range(4)])
    batch = world.opened()

    def answer(number: int) -> Answer:
        return number, line(number), 5, 5, 1, None

    def refused(open_rows: OpenRows | None) -> bool:
        assert open_rows is not None
        before = world.ledger.snapshot(), world.ledger.statistics.report(job=None), marks(world.ledger)
        answers = [answer(n) for n in numbers]
        assert not world.ledger.settle_answers(open_rows, answers, now=NOW)
        assert answers == [answer(n) for n in numbers], "they can be settled otherwise"
        return before == (world.ledger.snapshot(), world.ledger.statistics.report(job=None), marks(world.ledger))

    open_rows = world.ledger.batches.open_rows(batch.id)
    assert open_rows is not None
    assert not world.ledger.settle_answers(open_rows, [answer(numbers[0])] * 2, now=NOW), "it came twice"
    assert not world.ledger.results(job=None, after=0, limit=9)
    earlier = attrs.evolve(NIGHTLY, deadline=NOW + 25 * HOUR)
    world.ledger.accept(Offer(entry("0", earlier), "job", world.run, NOW))
    assert refused(open_rows), "a request has other terms now"
    open_rows = world.ledger.batches.open_rows(batch.id)
    requeue(world.ledger, [numbers[1]], lane=SYNC, costs_attempt=False, now=NOW, batch=batch.id)
    assert refused(open_rows), "a request has left"
    open_rows = world.ledger.batches.open_rows(batch.id)
    assert open_rows is not None
    assert open_rows.kind(numbers[1]) is None
    assert refused(open_rows), "one of these is not on it"
    assert world.ledger.settle_answers(open_rows, [answer(numbers[2])], now=NOW)
    assert open_rows.kind(numbers[2]) is None
    stale = world.ledger.batches.open_rows(batch.id)
    world.ledger.settle([settlement(numbers[3])], now=NOW, batch=batch.id)
    assert refused(stale), "one has settled"
    open_rows.tick([numbers[3], 99])
    assert world.ledger.settle_answers(open_rows, [answer(numbers[0])], now=NOW), "told of it, it holds"


def test_a_batch_of_too_many_kinds_has_no_open_rows(world: World) -> None:
    world.bulk([entry(str(n), attrs.evolve(FLEXIBLE, output_tokens=n + 1)) for n in range(255)], chunk=99)
    batch = world.opened()
    open_rows = world.ledger.batches.open_rows(batch.id)
    assert open_rows is not None
    assert len(open_rows.kinds) == 255
    unseal(world.ledger, batch.id, now=NOW)
    world.accept("one kind too many", attrs.evolve(FLEXIBLE, output_tokens=999))
    assert world.ledger.batches.open_rows(world.opened().id) is None


def test_open_rows_know_the_sizes_of_small_and_large_bodies(world: World) -> None:
    bodies = ["x" * size for size in (10, 20_000, 65_535, 100_000, 7)]
    numbers = world.bulk([entry(str(n), FLEXIBLE if n < 2 else DATED, body=body) for n, body in enumerate(bodies)])
    batch = world.opened()
    open_rows = world.ledger.batches.open_rows(batch.id)
    assert open_rows is not None
    sizes = [len(world.ledger.body(number)) for number in numbers]
    assert [open_rows.size([number]) for number in numbers] == sizes
    assert [size >> 16 > 0 for size in sizes] == [False, False, False, True, False]


def test_results_come_in_the_order_of_settling(world: World) -> None:
    numbers = world.bulk([entry(str(n), NIGHTLY) for n in range(5)])
    alone = world.accept("alone").row.id
    batch = world.opened()
    order = [numbers[3], numbers[0], alone, numbers[4]]
    for number in order:
        raw = line(number, text="\u2028\U0001f600")
        assert world.ledger.settle([settlement(number, line=raw)], now=NOW, batch=batch.id) == 1
    job = world.ledger.jobs.number("job")
    everything = world.ledger.results(job=None, after=0, limit=9)
    assert [each.request for each in everything] == order
    assert [each.request for each in world.ledger.results(job=job, after=0, limit=9)] == [
        numbers[3],
        numbers[0],
        numbers[4],
    ]
    assert [each.request for each in world.ledger.results(job=0, after=0, limit=9)] == [alone]
    assert [each.request for each in world.ledger.results(job=job, after=everything[0].cursor, limit=1)] == [numbers[0]]
    first = everything[0]
    assert first == result_of(world.ledger, numbers[3])
    assert (first.key, first.line, first.cost, first.saved) == ("3", line(numbers[3], text="\u2028\U0001f600"), 5, 5)
    assert first.how == ResultGroup(
        job="job",
        outcome=Outcome.SUCCEEDED,
        lane=BATCH,
        attempts=1,
        nonce=batch.nonce,
        deadline=NIGHTLY.deadline,
        settled_at=NOW,
        met=True,
        betas=("one", "two"),
    )
    row = row_of(world.ledger, numbers[3])
    assert row is not None
    assert (row.status, row.result) == (SETTLED, first.cursor)
    assert missing(world.ledger, batch.id) == [numbers[1], numbers[2]]
    assert marks(world.ledger) == (alone, everything[-1].cursor)


def test_settling_twice_is_settling_once(world: World) -> None:
    numbers = [world.accept(str(n)).row.id for n in range(3)]
    batch = world.opened()
    rows = [settlement(number) for number in numbers]
    assert world.ledger.settle([*rows, *rows], now=NOW, batch=batch.id) == 3
    assert world.ledger.settle(rows, now=NOW + HOUR, batch=batch.id) == 0
    other = [settlement(numbers[0], Outcome.FAILED, line=b"other")]
    assert world.ledger.settle(other, now=NOW + HOUR, batch=batch.id) == 0
    report = world.ledger.statistics.report(job=None)
    assert (report.requests, report.cost, report.wasted) == (3, Decimal(15).scaleb(-12), 0)
    assert world.ledger.settle([settlement(99)], now=NOW) == 0, "never heard of it"


def test_the_report(world: World) -> None:
    a, b, c, d = (world.accept(key, NIGHTLY, job="j").row for key in "abcd")
    world.accept("else", FLEXIBLE)
    world.opened()
    rows = [
        settlement(a.id, cost=10, saved=10, input_tokens=100, cached=(60, 20, 5)),
        settlement(b.id, cost=4, saved=4),
        settlement(c.id, lane=SYNC, cost=20, saved=0),
        settlement(d.id, Outcome.FAILED, cost=None, saved=None, attempted=False),
    ]
    for row, hours in zip(rows, (30, 31, 32, 1), strict=True):
        world.ledger.settle([row], now=NOW + hours * HOUR)
    report = world.ledger.statistics.report(job=a.job)
    pico = Decimal(1).scaleb(-12)
    assert (report.requests, report.cost, report.saved, report.unpriced) == (4, 34 * pico, 14 * pico, 1)
    assert report.cost_by_lane == {SYNC: 20 * pico, BATCH: 14 * pico}
    assert (report.met, report.missed, report.worst_lateness) == (1, 3, 2 * HOUR)
    assert (report.attempts, report.input_tokens, report.cache_read_tokens) == (3, 100, 60)
    assert (report.cache_written_tokens, report.cache_saved) == (20, Decimal(5).scaleb(-12))
    assert report.cache_hit_rate == 0.75
    assert world.ledger.statistics.report(job=None) == report
    assert world.ledger.statistics.report(job=0).requests == 0
    assert world.ledger.statistics.counts(job=a.job) == {
        (BATCH, SETTLED, Outcome.SUCCEEDED): 2,
        (SYNC, SETTLED, Outcome.SUCCEEDED): 1,
        (BATCH, SETTLED, Outcome.FAILED): 1,
    }
    assert counted(world.ledger, [a.id, b.id, c.id]) == {
        (BATCH, SETTLED, Outcome.SUCCEEDED): 2,
        (SYNC, SETTLED, Outcome.SUCCEEDED): 1,
    }


def test_a_bulk_without_a_name_is_a_job_that_is_nowhere_shown(world: World) -> None:
    """Its requests stay in the shared scope, and may be in several such bulks."""
    ledger = world.ledger
    other = world.accept("other").row.id
    first = world.unnamed([entry(key) for key in ("b", "x", "c")])
    ledger.settle([settlement(world.number("b")), settlement(other)], now=NOW)
    second = world.unnamed([entry(key) for key in ("a", "b", "c", "b", "d")])
    places = {"a": 0, "b": 1, "c": 2, "d": 4}
    numbers = [world.number(key) for key in places]

    assert [job.name for job in ledger.jobs.all()] == [None]
    assert ledger.statistics.counts(job=second) == {(BATCH, QUEUED, None): 3, (BATCH, SETTLED, Outcome.SUCCEEDED): 1}
    assert sum(ledger.statistics.counts(job=first).values()) == 3
    assert ledger.numbers(Which(job=second)) == numbers
    pages = [ledger.numbers(Which(job=second), after=after, limit=1) for after in (0, *numbers)]
    assert pages == [*([number] for number in numbers), []]

    found = ledger.results(job=second, after=0, limit=9)
    assert [(each.key, each.ordinal) for each in found] == [("b", 1)], "from before it was dispatched again"
    assert not ledger.results(job=second, after=found.cursor, limit=9)
    ledger.settle([settlement(world.number(key)) for key in ("x", "d", "c")], now=NOW)
    more = ledger.results(job=second, after=found.cursor, limit=9)
    assert {each.key: each.ordinal for each in more} == {"c": 2, "d": 4}
    assert {each.key: each.ordinal for each in ledger.results(job=first, after=0, limit=9)} == {"b": 0, "x": 1, "c": 2}
    one = ledger.results_of([world.number(key) for key in ("d", "a", "b")], job=second)
    assert [(each.key, each.ordinal) for each in one] == [("d", 4), ("b", 1)]

    left = Which(job=first, unsettled=True)
    assert (ledger.numbers(left), ledger.numbers(Which(job=second, unsettled=True))) == ([], [world.number("a")])
    assert ledger.reopen(job=first, outcomes=[Outcome.SUCCEEDED], now=NOW) == 3
    assert ledger.numbers(left) == [world.number(key) for key in ("b", "x", "c")]
    assert ledger.numbers(left, after=world.number("b"), limit=1) == [world.number("x")]
    assert ledger.numbers(left, after=world.number("c")) == []
    assert result_of(ledger, other) is not None
    ledger.flush(Which(job=first))
    assert sorted((group.requests, group.flush) for group in ledger.snapshot().batch_queue) == [(1, False), (3, True)]


def test_cancelling_a_bulk_without_a_name_leaves_others(world: World) -> None:
    ledger = world.ledger
    job = world.unnamed([entry(key) for key in "abc"])
    other = world.accept("other").row.id
    batch = world.sealed(max_requests=2)
    assert missing(ledger, batch.id, job=job) == [world.number("a"), world.number("b")]
    assert missing(ledger, batch.id, job=world.unnamed([entry("b")])) == [world.number("b")]
    assert missing(ledger, batch.id, job=world.unnamed([entry("new")])) == []
    assert ledger.cancel(Which(job=job), now=NOW) == (1, (batch.id,))
    assert world.status(world.number("c")) is SETTLED
    assert (world.status(world.number("a")), world.status(other)) == (IN_FLIGHT, QUEUED)
    assert ledger.cancel(Which(job=world.unnamed([entry("other")])), now=NOW) == (1, ())


def test_a_bulk_without_a_name_goes_with_its_requests(world: World) -> None:
    ledger = world.ledger
    job, empty = world.unnamed([entry(key) for key in "ab"]), world.unnamed([])
    ledger.settle([settlement(world.number("a"))], now=NOW)
    again = world.unnamed([entry("a")])
    assert ledger.purge(before=NOW + HOUR) == 1
    assert sum(ledger.statistics.counts(job=job).values()) == 1
    for gone in (again, empty):
        assert not ledger.statistics.counts(job=gone)
        assert not ledger.results(job=gone, after=0, limit=9)
    with ledger.database.read() as db:
        assert db.execute("SELECT id FROM job WHERE results_after IS NOT NULL").fetchall() == [(job,)]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 99])
def test_pages_of_results(world: World, limit: int) -> None:
    """Pages begin and end anywhere in groups of results, which have holes, and other jobs between them."""
    numbers = [number for job in ("j", "k") for number in world.bulk([entry(str(n)) for n in range(6)], job=job)]
    alone = world.accept("alone").row.id
    requeue(world.ledger, [numbers[1]], lane=BATCH, costs_attempt=True, now=NOW, batch=world.opened().id)
    batch = world.ledger.snapshot().batches[0]
    open_rows = world.ledger.batches.open_rows(batch.id)
    assert open_rows is not None
    some = [numbers[n] for n in (0, 2, 3, 6, 9, 11)]
    assert world.ledger.settle_answers(open_rows, [(n, line(n), 5, 5, 1, None) for n in some], now=NOW)
    rest = [*numbers[4:6], *numbers[7:9], numbers[10], alone]
    outcomes = [Outcome.FAILED, Outcome.SUCCEEDED]
    world.ledger.settle([settlement(n, outcomes[n % 2]) for n in rest], now=NOW, batch=batch.id)
    named = {world.ledger.jobs.number(name) or 0: name for name in ("j", "k")}
    jobs = [None, 0, *named]
    assert len(jobs) == 4
    assert world.ledger.reopen(job=jobs[2] or 0, outcomes=[Outcome.FAILED], now=NOW)
    whole = world.ledger.results(job=None, after=0, limit=99)
    assert [each.cursor for each in whole] == sorted(each.cursor for each in whole)
    assert {each.request for each in whole} == {n for n in (*some, *rest) if world.status(n) is SETTLED}
    for job in jobs:
        after, found = 0, []
        while page := world.ledger.results(job=job, after=after, limit=limit):
            assert len(page) <= limit
            found += page
            after = page[-1].cursor
        assert found == [each for each in whole if job is None or each.how.job == named.get(job)]
        assert [result_of(world.ledger, each.request) for each in found] == found


def test_cancel_settles_what_is_queued_and_names_the_batches(world: World) -> None:
    inside = world.accept("in", job="j").row
    batch = world.opened()
    queued = world.accept("out", NIGHTLY, job="j").row
    other = world.accept("other").row
    assert world.ledger.cancel(Which(requests=[inside.id]), now=NOW) == (0, (batch.id,))
    assert world.ledger.cancel(Which(job=inside.job), now=NOW) == (1, (batch.id,))
    result = result_of(world.ledger, queued.id)
    assert result is not None
    assert (result.how.outcome, result.cost, result.how.met, result.how.attempts) == (Outcome.CANCELED, 0, None, 0)
    decoded = orjson.loads(result.line)
    assert decoded["result"]["type"] == "canceled"
    assert decoded["result"]["error"]["type"] == "canceled"
    assert decoded["custom_id"].startswith("out_bw000000000000-")
    assert world.status(other.id) is QUEUED
    assert world.ledger.cancel(now=NOW) == (1, (batch.id,))
    assert world.ledger.cancel(Which(requests=[other.id]), now=NOW) == (0, ())
    assert not world.accept("out", NIGHTLY, job="j").created, "cancelled on purpose: retry() is the way back"


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("hours", [1, 30, 31])
def test_only_an_answer_meets_a_deadline_and_a_cancelled_request_has_none(
    world: World, outcome: Outcome, hours: int
) -> None:
    number = world.accept("k", NIGHTLY).row.id
    world.ledger.settle([settlement(number, outcome)], now=NOW + hours * HOUR)
    expected = None if outcome is Outcome.CANCELED else outcome is Outcome.SUCCEEDED and hours <= 30
    assert met_of(world, number) is expected


@pytest.mark.parametrize("hours", [1, 31])
def test_however_it_is_cancelled_no_deadline_is_met_or_missed(world: World, hours: int) -> None:
    now = NOW + hours * HOUR
    abandoned = world.accept("abandoned", attrs.evolve(BLOCKING, deadline=NIGHTLY.deadline), claim=True).row.id
    world.ledger.end_run(world.run)
    assert world.ledger.recover(now=now) == 1
    in_batch = world.accept("in a batch", NIGHTLY).row.id
    batch = world.opened()
    world.ledger.settle([settlement(in_batch, Outcome.CANCELED)], now=now, batch=batch.id)
    queued = world.accept("queued", NIGHTLY).row.id
    assert world.ledger.cancel(now=now) == (1, ())
    assert [met_of(world, each) for each in (abandoned, in_batch, queued)] == [None] * 3
    report = world.ledger.statistics.report(job=None)
    assert (report.requests, report.met, report.missed, report.worst_lateness) == (3, 0, 0, timedelta(0))


def met_of(world: World, number: int) -> bool | None:
    result = result_of(world.ledger, number)
    assert result is not None
    return result.how.met


def test_cancel_of_many(world: World) -> None:
    world.bulk([entry(str(n)) for n in range(4_500)], chunk=1_000)
    assert world.ledger.cancel(Which(job=world.ledger.jobs.number("job")), now=NOW) == (4_500, ())
    assert total(world.ledger) == {QUEUED: 0, IN_FLIGHT: 0, SETTLED: 4_500}


def test_reopen_queues_anew(world: World) -> None:
    numbers = world.bulk([entry(str(n), NIGHTLY) for n in range(3)])
    job = world.ledger.jobs.number("job")
    assert job is not None
    batch = world.opened()
    outcomes = [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.EXPIRED]
    world.ledger.settle(
        [settlement(n, outcome) for n, outcome in zip(numbers, outcomes, strict=True)],
        now=NOW,
        batch=batch.id,
    )
    last = world.ledger.results(job=job, after=0, limit=9)[-1].cursor
    later = NOW + 31 * HOUR
    assert world.ledger.reopen(job=job, outcomes=[Outcome.FAILED, Outcome.EXPIRED], now=later) == 2
    assert [each.request for each in world.ledger.results(job=job, after=0, limit=9)] == numbers[:1]
    row = row_of(world.ledger, numbers[1])
    assert row is not None
    assert (row.status, row.attempts, row.result, row.terms.deadline) == (QUEUED, 0, None, None)
    assert (world.ledger.statistics.report(job=job).requests, world.ledger.statistics.report(job=job).met) == (1, 1)
    assert world.ledger.statistics.report(job=job).cost == Decimal(15).scaleb(-12), "spent is spent"
    batch = world.opened()
    world.ledger.settle([settlement(number) for number in numbers], now=later, batch=batch.id)
    again = world.ledger.results(job=job, after=last, limit=9)
    assert [each.request for each in again] == numbers[1:], "behind the cursor of those who read before"


def test_purge_takes_what_is_old_and_keeps_the_books(world: World) -> None:
    numbers = world.bulk([entry(str(n)) for n in range(4)])
    world.accept("k")
    batch = world.opened()
    world.ledger.settle([settlement(number) for number in numbers[:2]], now=NOW, batch=batch.id)
    world.ledger.settle([settlement(numbers[2])], now=NOW + HOUR, batch=batch.id)
    report = world.ledger.statistics.report(job=None)
    assert world.ledger.purge(before=NOW + HOUR) == 2
    assert row_of(world.ledger, numbers[0]) is None
    assert [each.request for each in world.ledger.results(job=None, after=0, limit=9)] == [numbers[2]]
    assert total(world.ledger) == {QUEUED: 0, IN_FLIGHT: 2, SETTLED: 1}
    assert world.ledger.statistics.report(job=None) == report
    assert missing(world.ledger, batch.id) == [numbers[3], find(world.ledger, "k", job=None).id]  # type: ignore[union-attr]
    assert world.ledger.settle([settlement(numbers[0])], now=NOW, batch=batch.id) == 0
    assert world.accept("0", job="job").created
    assert world.accept("new").row.id > numbers[3], "numbers are never given twice"


def test_numbers_of_what_was_purged_are_not_given_again(world: World) -> None:
    numbers = world.bulk([entry(str(n)) for n in range(3)])
    world.ledger.settle([settlement(number) for number in numbers], now=NOW)
    last = marks(world.ledger)
    assert last == (numbers[-1], result_of(world.ledger, numbers[-1]).cursor)  # type: ignore[union-attr]
    assert world.ledger.purge(before=NOW + HOUR) == 3
    assert marks(world.ledger) == last
    again = world.accept("again").row.id
    world.ledger.settle([settlement(again)], now=NOW)
    assert marks(world.ledger) == (numbers[-1] + 1, last[1] + 1)
    assert [each.request for each in world.ledger.results(job=None, after=last[1], limit=9)] == [again]


# -- lanes, clock, owner ------------------------------------------------------------------------------------------


def test_lanes_are_suspended_and_resumed(world: World) -> None:
    world.ledger.conditions.suspend(SYNC, "monthly cap\n")
    world.ledger.conditions.suspend(BATCH, "key revoked")
    assert world.ledger.snapshot().suspended == {SYNC: "monthly cap\n", BATCH: "key revoked"}
    world.ledger.conditions.resume()
    assert world.ledger.snapshot().suspended == {}


def test_what_began_before_a_resume_suspends_nothing_after_it(world: World) -> None:
    before = world.ledger.snapshot().resumes
    assert world.ledger.conditions.suspend(SYNC, "key revoked", resumes=before) == (True, True, before)
    assert world.ledger.conditions.suspend(SYNC, "key revoked", resumes=before) == (True, False, before)
    assert world.ledger.conditions.resume() == (SYNC,)
    assert world.ledger.conditions.suspend(SYNC, "key revoked", resumes=before) == (False, False, before + 1)
    assert (world.ledger.snapshot().suspended, world.ledger.snapshot().resumes) == ({}, before + 1)
    assert world.ledger.conditions.suspend(SYNC, "key revoked", resumes=before + 1) == (True, True, before + 1)


def test_failures_are_counted_until_a_batch_is_created_or_the_lane_is_resumed_afresh(world: World) -> None:
    note = world.ledger.conditions.note_failure
    assert note("create", now=NOW) == (1, NOW)
    assert note("create", now=NOW + HOUR) == (2, NOW)
    assert note("full", now=NOW + HOUR) == (1, NOW + HOUR)
    world.ledger.conditions.resume(afresh=False)
    assert note("create", now=NOW + HOUR) == (3, NOW)
    world.ledger.conditions.resume()
    assert note("create", now=NOW + HOUR) == (1, NOW + HOUR)
    world.accept()
    batch = world.seal()
    assert note("create", now=NOW + HOUR) == (2, NOW + HOUR)
    posted(world.ledger, batch)
    world.ledger.batches.created(batch.id, remote_id="b", created_at=NOW, expires_at=NOW, now=NOW)
    assert note("create", now=NOW) == (1, NOW)
    assert note("full", now=NOW) == (1, NOW)


def test_what_a_process_told_that_failed(world: World) -> None:
    told = Setback(3, NOW + HOUR, "polling failed 2 times in a row: a reason with spaces")
    assert world.ledger.snapshot().setback is None
    world.ledger.conditions.note_setback(told)
    assert world.ledger.snapshot().setback == told
    world.ledger.conditions.note_setback(None)
    assert world.ledger.snapshot().setback is None


def test_pause_and_pass(world: World) -> None:
    world.ledger.conditions.note(batch_paused_until=NOW + HOUR)
    world.ledger.conditions.note()
    assert world.ledger.snapshot().batch_paused_until == NOW + HOUR
    assert world.ledger.snapshot().sizes == Sizes()
    for sizes in (Sizes(largest=7, room=50_000), Sizes(portion=1), Sizes()):
        world.ledger.conditions.resize(lambda _before, after=sizes: after)
        assert world.ledger.snapshot().sizes == sizes
    world.ledger.conditions.resize(lambda before: before.full(10))
    assert world.ledger.snapshot().sizes == Sizes(room=5)
    world.ledger.conditions.note(clock_offset=timedelta(seconds=-30))
    assert world.ledger.snapshot().clock_offset == timedelta(seconds=-30)
    assert (world.ledger.snapshot().sync_answered_at, world.ledger.snapshot().sync_failed_at) == (None, None)
    world.ledger.conditions.note(sync_answered_at=NOW)
    world.ledger.conditions.note(sync_failed_at=NOW + HOUR)
    assert (world.ledger.snapshot().sync_answered_at, world.ledger.snapshot().sync_failed_at) == (NOW, NOW + HOUR)
    assert world.ledger.conditions.note_advance(now=NOW) is None
    assert world.ledger.conditions.note_advance(now=NOW + HOUR) == HOUR


def test_how_the_sync_lane_does_is_known_by_class_of_models(world: World) -> None:
    assert world.ledger.snapshot().measured == {}
    slow = Measured(at=NOW, share=0.25, requests_per_minute=50, output_tokens_per_minute=8_000)
    unlimited = Measured(at=NOW + MINUTE)
    world.ledger.conditions.note(measured=dict.fromkeys(("claude-haiku-4-5", "*"), unlimited))
    world.ledger.conditions.note(measured={"claude-haiku-4-5": slow})
    assert world.ledger.snapshot().measured == {"claude-haiku-4-5": slow, "*": unlimited}
    assert world.ledger.snapshot().sync_answered_at is None


def test_a_clock_that_is_set_back_makes_no_gap_between_passes(world: World) -> None:
    assert world.ledger.conditions.note_advance(now=NOW + DAY) is None
    assert world.ledger.conditions.note_advance(now=NOW) is None, "not known yet"
    assert world.ledger.conditions.note_advance(now=NOW + HOUR) == HOUR
    assert world.ledger.conditions.note_advance(now=NOW - DAY) == HOUR, "as long as the time before"


def test_a_series_of_failures_does_not_begin_in_the_future(world: World) -> None:
    assert world.ledger.conditions.note_failure("full", now=NOW + DAY).since == NOW + DAY
    assert world.ledger.conditions.note_failure("full", now=NOW).since == NOW
    assert world.ledger.conditions.note_failure("full", now=NOW + HOUR) == (3, NOW)


def test_what_is_believed_is_stored(world: World) -> None:
    """Requests were queued, and the lane was paused, by a clock that was a day ahead."""
    ledger, policy = world.ledger, Policy()
    numbers = world.bulk([entry(str(n)) for n in range(3)])
    batch = world.opened()
    requeue(ledger, numbers[:1], lane=Lane.BATCH, costs_attempt=False, now=NOW + DAY)
    ledger.batches.update(attrs.evolve(batch, sealed_at=NOW + DAY, polled_at=NOW + DAY, groups=()))
    ledger.conditions.note(batch_paused_until=NOW + DAY, sync_answered_at=NOW + DAY, sync_failed_at=NOW + DAY + MINUTE)
    known = ledger.snapshot()
    right = corrected(known, NOW, policy)
    for view, was in zip(right.batches, known.batches, strict=True):
        ledger.batches.update(view, was=was)
    ledger.conditions.set_right(right, now=NOW, latest=NOW + longest_pause(policy))
    assert ledger.snapshot() == right
    assert corrected(right, NOW, policy) is right
    assert (right.sync_answered_at, right.sync_failed_at) == (NOW - MINUTE, NOW), "in their order"
    assert [group.since for group in right.batch_queue] == [NOW]
    nonce, most = new_nonce(b"9" * 16), 9
    sealed = ledger.batches.seal(
        [right.batch_queue[0].terms.id],
        nonce=nonce,
        taken=frozenset(),
        now=NOW,
        max_requests=most,
        max_bytes=10**6,
    )
    assert sealed is not None
    assert sealed.requests == 1, "the planner takes its pause for over, and so does the ledger"


def test_what_a_clock_that_was_ahead_spent_and_settled_counts_as_of_now(world: World) -> None:
    first = world.accept("a").row.id
    world.ledger.settle([settlement(first)._replace(cost=7)], now=NOW + DAY)
    world.ledger.recover(now=NOW)
    world.ledger.recover(now=NOW + HOUR)
    found = result_of(world.ledger, first)
    assert found is not None
    assert found.how.settled_at == NOW
    max_spend = MaxSpend(limit=6, since=NOW + HOUR)
    assert world.ledger.accept(Offer(entry("b"), None, world.run, NOW + 2 * HOUR, max_spend=max_spend)).created
    assert world.ledger.purge(before=NOW + MINUTE) == 1


def test_a_ledger_belongs_to_one_workspace(world: World) -> None:
    bind = world.ledger.conditions.bind
    bind(endpoint="https://a", workspace=None)
    bind(endpoint="https://a", workspace="w")
    bind(endpoint="https://a", workspace=None)
    with pytest.raises(WrongWorkspaceError, match="workspace w"):
        bind(endpoint="https://a", workspace="v")
    with pytest.raises(WrongWorkspaceError, match="https://a"):
        bind(endpoint="https://b", workspace="w")


def test_the_version_shows_changes_and_only_those(world: World) -> None:
    before = world.ledger.version()
    world.ledger.snapshot()
    world.ledger.flush()
    assert world.ledger.version() == before
    world.accept("a")
    changed = world.ledger.version()
    assert changed != before
    world.accept("a")
    assert world.ledger.version() == changed
    world.ledger.conditions.suspend(SYNC, "key revoked")
    suspended = world.ledger.version()
    assert suspended != changed
    world.ledger.conditions.suspend(SYNC, "key revoked")
    assert world.ledger.version() == suspended


def test_a_closed_ledger_says_so(world: World) -> None:
    world.ledger.close()
    world.ledger.close()
    with pytest.raises(BatchwiseError, match="closed"):
        world.accept("a")


def test_texts_with_what_no_database_may_take_harm_nothing(world: World) -> None:
    world.ledger.conditions.suspend(SYNC, "a server said \0 and \ud800")
    assert world.ledger.snapshot().suspended == {SYNC: r"a server said \x00 and \ud800"}
    number = world.accept("a\0b\ud800", body=b'{"a":"\\u0000"}', job="j\0").row.id
    found = find(world.ledger, "a\0b\ud800", job="j\0")
    assert found is not None
    assert found.id == number
    theirs = attrs.evolve(FLEXIBLE, adopted=True)
    named = {"keys": {}, "requests": 3, "terms": theirs, "nonce": "n", "created_at": NOW, "expires_at": NOW, "now": NOW}
    world.ledger.adoption.adopt("msgbatch_1", job=None, **named)
    (batch,) = world.ledger.snapshot().batches
    assert list(world.ledger.adoption.name(batch.id, ["x\0", "good", "\ud800"])) == ["good"]


# -- the lease ------------------------------------------------------------------------------------------------------


def test_who_lost_the_lease_sends_nothing_of_what_was_sealed_before(backend: Backend) -> None:
    if not backend.shared:
        pytest.skip("one process only")
    one, two = World(backend.open()), World(backend.open())
    assert one.ledger.lease.acquire()
    one.accept("a")
    batch = one.sealed()
    one.accept("b")
    posted(one.ledger, batch, watermark="w", posting_server=NOW)
    assert one.ledger.batches.still_posting(batch.id)
    later = one.sealed()
    one.accept("c")
    one.ledger.lease.release()  # as if its session had ended, and it did not know yet
    assert one.ledger.batches.still_posting(batch.id), "nobody else has led"
    assert two.ledger.lease.acquire()
    two.ledger.lease.release()
    assert one.seal() is None
    assert one.ledger.lease.acquire()
    assert not one.ledger.batches.still_posting(batch.id), "another one has led in between"
    assert not one.ledger.batches.update(attrs.evolve(later, state=BatchState.POSTING, posting_at=NOW), was=later)
    assert one.view(later.id).state is BatchState.SEALED
    one.ledger.batches.created(batch.id, remote_id="msgbatch_1", created_at=NOW, expires_at=NOW, now=NOW)
    assert one.view(batch.id).remote_id == "msgbatch_1", "what the API said is true all the same"
    assert one.sealed().requests == 1


# -- runs ---------------------------------------------------------------------------------------------------------


def test_nothing_is_recovered_from_the_living(world: World) -> None:
    world.accept("a", BLOCKING, claim=True)
    assert world.ledger.recover(now=NOW) == 0


def _recover(backend: Backend, world: World) -> Ledger:
    """End the run as a crash would, and let another ledger (in memory: the same) clear up."""
    if not backend.shared:
        world.ledger.end_run(world.run)
        return world.ledger
    world.ledger.close()
    return backend.open()


def test_what_a_dead_run_leaves(backend: Backend) -> None:
    world = World(backend.open())
    blocked = world.accept("running", BLOCKING, claim=True).row.id
    waiting = world.accept("waiting", BLOCKING, job="j").row.id
    patient = world.accept("patient", PATIENT, claim=True).row.id
    queued = world.accept("queued", PATIENT).row.id
    world.accept("batched", NIGHTLY)
    batch = world.opened()
    world.ledger.intake(job="bulk", run=world.run).stage([entry(str(n)) for n in range(5)])
    ledger = _recover(backend, world)
    assert ledger.recover(now=NOW) == 3
    assert ledger.recover(now=NOW) == 0
    for number in (blocked, waiting):
        result = result_of(ledger, number)
        assert result is not None
        assert result.how.outcome is Outcome.CANCELED
        assert orjson.loads(result.line)["result"]["error"]["type"] == "abandoned"
    rows = [row_of(ledger, number) for number in (patient, queued)]
    assert [(row.status, row.lane, row.attempts) for row in rows if row] == [(QUEUED, SYNC, 1), (QUEUED, SYNC, 0)]
    assert ledger.statistics.report(job=None).possible_doubles == 2, "both calls that ran may have been billed"
    assert missing(ledger, batch.id)
    assert ledger.jobs.number("bulk") is None
    again = World(ledger)
    assert len(again.bulk([entry("0", body="other")], job="bulk")) == 1


def test_an_abandoned_request_is_accepted_anew(backend: Backend) -> None:
    world = World(backend.open())
    number = world.accept("a", BLOCKING, claim=True).row.id
    other = world.accept("b", BLOCKING, job="bulk").row.id
    again = World(_recover(backend, world))
    again.ledger.recover(now=NOW)
    cursors = [each.cursor for each in again.ledger.results(job=None, after=0, limit=9)]
    one = again.accept("a", BLOCKING, claim=True)
    assert [claim[:6] for claim in again.claims] == [(number, "a", one.row.terms, b'{"a":1}', 0, ())]
    assert (one.created, one.row.id, one.row.status, one.row.attempts, one.row.result) == (
        True,
        number,
        IN_FLIGHT,
        0,
        None,
    )
    assert again.bulk([entry("b", NIGHTLY)], job="bulk") == [other]
    row = row_of(again.ledger, other)
    assert row is not None
    assert (row.status, row.lane, row.terms.deadline) == (QUEUED, BATCH, NIGHTLY.deadline)
    assert again.ledger.results(job=None, after=0, limit=9) == []
    assert again.ledger.statistics.report(job=None).requests == 0
    again.ledger.settle([settlement(number, lane=SYNC)], now=NOW, run=again.run)
    assert again.ledger.results(job=None, after=0, limit=9)[0].cursor > max(cursors)


def test_a_promise_outlives_who_blocks_on_it_later(backend: Backend) -> None:
    world = World(backend.open())
    number = world.accept("a", NIGHTLY).row.id
    again = world.accept("a", BLOCKING).row
    assert len(world.ledger.claim(again.terms.id, 1, run=world.run, now=NOW)) == 1
    ledger = _recover(backend, world)
    assert ledger.recover(now=NOW) == 1
    row = row_of(ledger, number)
    assert row is not None
    assert (row.status, row.terms.deadline) == (QUEUED, NIGHTLY.deadline)


def test_a_bulk_of_a_dead_run_holds_nobody_up(backend: Backend) -> None:
    world = World(backend.open())
    world.ledger.intake(job="job", run=world.run).stage([entry("a"), entry("b")])
    again = World(_recover(backend, world))
    assert again.accept("a", job="job", body="other").created
    assert len(again.bulk([entry("b", body="other")])) == 1


def test_the_lease_is_exclusive(backend: Backend) -> None:
    one = backend.open()
    assert not one.lease.held
    assert not one.snapshot().leased
    assert one.lease.acquire()
    assert one.lease.acquire(), "again is harmless"
    assert one.snapshot().leased
    if backend.shared:
        two = backend.open()
        assert not two.lease.acquire()
        one.lease.release()
        assert two.lease.acquire()
        assert not one.lease.acquire()
        two.close()
        assert one.lease.acquire()
    one.lease.release()
    assert not one.lease.held


def test_many_threads_at_once(world: World) -> None:
    errors: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for index in range(20):
                row = world.accept(f"{name}-{index}", PATIENT, claim=True).row
                assert world.ledger.settle([settlement(row.id, lane=SYNC)], now=NOW, run=world.run) == 1
                with pytest.raises(KeyConflictError):
                    world.accept(f"{name}-{index}", body="other")
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert total(world.ledger) == {QUEUED: 0, IN_FLIGHT: 0, SETTLED: 160}
    assert len(world.ledger.results(job=None, after=0, limit=999)) == 160


# -- the prompt cache ---------------------------------------------------------------------------------------------


def test_a_batch_under_an_hour_says_so_in_its_bodies_and_its_length(world: World) -> None:
    shared = attrs.evolve(FLEXIBLE, prefix="p", prefix_tokens=9_000, breakpoints=2)
    bodies = {f"k{n}": b'{"a":{%b},"b":{%b},"n":%d}' % (BREAKPOINT, BREAKPOINT, n) for n in range(4)}
    world.bulk([entry(key, shared, body=body) for key, body in bodies.items()])
    world.bulk([entry("plain", FLEXIBLE, body=b"{%b}" % BREAKPOINT)], job="other")
    for caching, count in ((Caching.PRIMER, 1), (Caching.AS_IS, 1), (Caching.HOUR, 3)):
        batch = world.seal(max_requests=count, caching=caching)
        assert batch is not None
        assert (batch.caching, batch.requests) == (caching, count)
        rows = list(world.ledger.batches.entries(batch.id))
        name = sealer(batch.nonce)
        length = sum(map(len, body_chunks((name(key, number), body) for number, key, body in rows)))
        assert length == batch.size
        for _, key, body in rows:
            written = BREAKPOINT if caching is Caching.AS_IS or key == "plain" else HOUR_BLOCK
            assert bytes(body) == bodies.get(key, b"{%b}" % BREAKPOINT).replace(BREAKPOINT, written)


@pytest.mark.parametrize("caching", [Caching.AS_IS, Caching.HOUR])
def test_rows_that_share_a_prefix_are_sent_side_by_side(world: World, caching: Caching) -> None:
    kinds = [attrs.evolve(FLEXIBLE, prefix=prefix, breakpoints=len(prefix)) for prefix in ("p", "q", "")]
    shares: dict[str, list[str]] = {}
    entries = []
    for n in range(400):
        kind = kinds[(n * n + n // 7) % 3]
        pad = b" " * (3_000_000 if n == 200 else n)
        entries.append(entry(f"k{n}", kind, body=b"{%b,%b}" % (BREAKPOINT, pad)))
        shares.setdefault(kind.prefix, []).append(f"k{n}")
    world.bulk(entries, chunk=100)
    batch = world.seal(caching=caching)
    assert batch is not None
    rows = list(world.ledger.batches.entries(batch.id))
    assert [key for _, key, _ in rows] == [key for share in shares.values() for key in share]
    name = sealer(batch.nonce)
    assert sum(map(len, body_chunks((name(key, number), body) for number, key, body in rows))) == batch.size


def test_what_is_known_of_a_prefix_and_how_often_it_was_hit(world: World) -> None:
    shared = attrs.evolve(FLEXIBLE, prefix="p", prefix_tokens=9_000)
    numbers = world.bulk([entry(str(n), shared) for n in range(8)])
    assert world.ledger.snapshot().prefixes == {}
    unsent = world.seal(max_requests=1, caching=Caching.PRIMER)
    assert unsent is not None
    assert world.ledger.snapshot().prefixes["p"].in_vain
    unseal(world.ledger, unsent.id, now=NOW)
    assert world.ledger.snapshot().prefixes == {"p": Primed()}, "it was not sent"
    batch = world.seal(max_requests=1, caching=Caching.PRIMER)
    assert batch is not None
    assert world.ledger.snapshot().prefixes == {"p": Primed(tried_at=NOW)}
    assert world.ledger.snapshot().prefixes["p"].in_vain
    assert world.ledger.settle([settlement(numbers[0], cached=(0, 9, -9))], now=NOW + HOUR, batch=batch.id) == 1
    primed = Primed(tried_at=NOW, used_at=NOW + HOUR, kept_until=NOW + 2 * HOUR)
    assert world.ledger.snapshot().prefixes == {"p": primed}
    rest = world.seal(max_requests=4, caching=Caching.PRIMED)
    assert rest is not None
    used = [settlement(n, cached=(9, 0, 9) if n % 2 else (0, 9, -9)) for n in numbers[1:4]]
    world.ledger.settle([*used, settlement(numbers[4])], now=NOW + 2 * HOUR, batch=rest.id)
    known = world.ledger.snapshot()
    assert known.prefixes["p"].used_at == NOW + 2 * HOUR
    hit = sum(1 for n in numbers[1:4] if n % 2)
    assert known.hits == Hits({Caching.PRIMER: (0, 1), Caching.PRIMED: (hit, 3)})


@pytest.mark.parametrize(("breakpoints", "kept"), [(1, False), (0, True)])
def test_a_prefix_that_is_used_as_it_is_lasts_as_long_as_its_caller_asks_for(
    world: World, breakpoints: int, kept: bool
) -> None:
    shared = attrs.evolve(FLEXIBLE, prefix="p", prefix_tokens=9_000, breakpoints=breakpoints)
    numbers = world.bulk([entry(str(n), shared) for n in range(4)])
    for caching, hours, part in ((Caching.PRIMED, 1, numbers[:1]), (Caching.AS_IS, 3, numbers[1:3])):
        batch = world.seal(max_requests=len(part), caching=caching)
        assert batch is not None
        world.ledger.settle([settlement(n, cached=(0, 9, -9)) for n in part], now=NOW + hours * HOUR, batch=batch.id)
    known = world.ledger.snapshot().prefixes["p"]
    assert known == Primed(used_at=NOW + 3 * HOUR, kept_until=NOW + (4 if kept else 2) * HOUR)
