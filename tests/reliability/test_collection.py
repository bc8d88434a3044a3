"""Whatever a results stream does, no row is settled twice, none is lost, and reading again changes nothing."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchwise as bw
from batchwise.api.types import Counts
from batchwise.engine import reading
from batchwise.errors import LedgerError
from batchwise.ledger.values import Which
from batchwise.planning.custom_ids import custom_id, parse
from tests.ledger.model import total
from tests.reliability.simulation import HOUR, MINUTE, World, commits, message_of, resumed_before_suspending

ROWS = 6
NAMES = [f"prompt {number}" for number in range(ROWS)]


@pytest.fixture
def world() -> Iterator[World]:
    made = ended()
    yield made
    made.close()


def ended(latency: Any = bw.Latency.FLEXIBLE) -> World:
    """A world whose one batch has ended and is about to be collected."""
    world = World()
    world.dispatch_all(NAMES, latency)
    world.run()
    world.true += 2 * HOUR
    world.api.order("retrieve", "stale")
    world.run()
    return world


def serve(world: World, *bodies: bytes, size: int = 1 << 20, fault: str | None = None) -> list[int]:
    """Have the results of the first batch read as these bodies, the last one again and again; returns the reads."""
    reads: list[int] = []
    real = world.api.read

    def read(remote_id: str, feed: Callable[[bytes], bool]) -> None:
        if remote_id != world.api.batches[0].id:
            real(remote_id, feed)
            return
        body = bodies[min(len(reads), len(bodies) - 1)]
        reads.append(len(body))
        for start in range(0, len(body), size):
            if not feed(body[start : start + size]):
                return
        world.api._refuse(fault)

    world.api.read = read  # type: ignore[method-assign]
    return reads


def outcomes(world: World) -> Counter[bw.Outcome]:
    return Counter(outcome for outcome, _ in world.seen.values())


def lines(world: World) -> list[bytes]:
    return world.api.lines(world.api.batches[0])


def finish(world: World) -> None:
    for _ in range(60):
        world.pass_time(10 * MINUTE)
        world.check()
        if len(world.seen) == ROWS:
            break
    assert len(world.seen) == ROWS, world.ledger.snapshot()


def row(custom_id: str, text: str = "somebody else's") -> bytes:
    return orjson.dumps({"custom_id": custom_id, "result": {"type": "succeeded", "message": message_of(text)}}) + b"\n"


GOOD: dict[str, Callable[[World], bytes]] = {
    "as it is": lambda w: b"".join(lines(w)),
    "no newline at the end": lambda w: b"".join(lines(w))[:-1],
    "blank lines": lambda w: b"\n\n".join(lines(w)) + b"\n \n",
    "CRLF": lambda w: b"".join(lines(w)).replace(b"\n", b"\r\n"),
    "garbage between": lambda w: b"<html>\n\xff\xfe{\n[]\nnull\n7\n".join(lines(w)),
    "a row twice": lambda w: b"".join([lines(w)[0], *lines(w), lines(w)[3]]),
    "rows of somebody else": lambda w: row("foreign-1") + b"".join(lines(w)) + row("x" * 200) + b'{"custom_id": 7}\n',
    "rows of another seal": lambda w: row(custom_id("key", "0" * 11 + "1", 1)) + b"".join(lines(w)),
    "an unknown number": lambda w: (
        row(custom_id("key", parse(orjson.loads(lines(w)[0])["custom_id"]).nonce, 999))  # type: ignore[union-attr]
        + b"".join(lines(w))
    ),
}


@pytest.mark.parametrize(("size", "rows"), [(1, 99), (7, 99), (1 << 20, 99), (1, 1), (400, 2)])
@pytest.mark.parametrize("case", GOOD)
def test_a_whole_stream_settles_everything_in_one_reading_however_it_is_cut(
    world: World, monkeypatch: pytest.MonkeyPatch, case: str, size: int, rows: int
) -> None:
    monkeypatch.setattr(reading, "_ROWS", rows)
    reads = serve(world, GOOD[case](world), size=size)
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert len(reads) == 1
    assert len(world.api.batches) == 1
    report = world.ledger.statistics.report(job=None)
    assert (report.possible_doubles, world.ledger.snapshot().batches) == (0, ())


@pytest.mark.parametrize("limit", ["_ROWS", "_BYTES"])
def test_rows_settle_and_are_told_of_as_they_come(world: World, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(reading, limit, 1)
    told = list[int]()

    def read(_: str, feed: Callable[[bytes], bool]) -> None:
        for number, line in enumerate(lines(world), 1):
            assert feed(line)
            assert len(told) == total(world.ledger)[bw.Status.SETTLED] == number

    world.api.read = read  # type: ignore[method-assign]
    world.engine.announcing.listen(told.extend)
    finish(world)
    assert len(told) == ROWS


def test_a_row_that_is_no_request_of_the_batch_is_looked_up_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ROWS", 1)
    real, asked = world.ledger.rows, list[int]()

    def rows(which: Which) -> Any:
        asked.extend((which.requests or ()) if which.batch is not None else ())
        return real(which)

    monkeypatch.setattr(world.ledger, "rows", rows)
    serve(world, GOOD["an unknown number"](world), size=1)
    finish(world)
    assert asked == [999]


@pytest.mark.parametrize("broken", range(ROWS))
def test_a_commit_that_fails_while_rows_are_read_is_not_passed_over(
    world: World, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    monkeypatch.setattr(reading, "_ROWS", 1)
    real, settled = world.ledger.database.commit, list[str]()

    def commit(name: str) -> None:
        if name == "settle":
            settled.append(name)
            if len(settled) == broken + 1:
                raise sqlite3.OperationalError("disk full")
        real(name)

    monkeypatch.setattr(world.ledger.database, "commit", commit)
    reads = serve(world, b"".join(lines(world)), size=1)
    with pytest.raises(LedgerError, match="disk full"):
        finish(world)
    assert total(world.ledger)[bw.Status.SETTLED] == broken
    world.crash(done=False)
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert len(reads) == 2
    assert len(world.api.batches) == 1, "bought again"
    assert world.ledger.statistics.report(job=None).wasted == 0


BROKEN: dict[str, tuple[Callable[[World], bytes], str | None]] = {
    "an early clean end": (lambda w: b"".join(lines(w)[:2]), None),
    "a cut line": (lambda w: b"".join(lines(w))[:-40], None),
    "a dropped stream": (lambda w: b"".join(lines(w)[:3]), "dropped"),
    "a 500": (lambda w: b"", "500"),
    "nothing at all": (lambda w: b"", None),
    "garbage in a row's place": (lambda w: b"".join([b"<html>\n", *lines(w)[1:]]), None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_reading_is_repeated_before_anything_is_bought_again(world: World, case: str) -> None:
    body, fault = BROKEN[case]
    whole = b"".join(lines(world))
    reads = serve(world, body(world), fault=fault)
    while not reads:
        world.pass_time(MINUTE)
    world.check()
    kept = dict(world.seen)
    serve(world, whole)
    finish(world)
    assert kept.items() <= world.seen.items()
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert len(world.api.batches) == 1, "bought again"
    report = world.ledger.statistics.report(job=None)
    assert (report.wasted, report.possible_doubles) == (0, 0)


def test_rows_that_stay_missing_are_tried_again_and_the_books_say_that_they_may_be_doubles(world: World) -> None:
    reads = serve(world, b"".join(lines(world)[1:]))
    finish(world)
    assert len(reads) == 4
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert [len(batch.rows) for batch in world.api.batches] == [ROWS, 1]
    assert world.ledger.statistics.report(job=None).possible_doubles == 1


def _without_result(line: bytes) -> bytes:
    return orjson.dumps({"custom_id": orjson.loads(line)["custom_id"], "result": 7})


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "its end is missing": lambda line: line.rstrip()[:-9],
    "something stands in it": lambda line: line.rstrip().replace(b'"result":', b'"result":<html>\xff'),
    "spaces and no end": lambda line: line.rstrip()[:-1].replace(b'"custom_id":', b'"custom_id" : '),
    "a result that is none": _without_result,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_row_that_is_damaged_in_every_reading_is_kept_as_it_came_and_not_bought_again(
    world: World, case: str
) -> None:
    whole = lines(world)
    damaged = DAMAGED[case](whole[0])
    reads = serve(world, b"".join([damaged, b"\n", *whole[1:]]))
    finish(world)
    assert len(reads) == 4, "it was not read again before"
    assert len(world.api.batches) == 1, "bought again"
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS - 1, bw.Outcome.FAILED: 1}
    ((_, line),) = [end for end in world.seen.values() if end[0] is bw.Outcome.FAILED]
    kept = orjson.loads(line)
    assert kept["custom_id"] == orjson.loads(whole[0])["custom_id"]
    came = kept["result"]["message"]
    assert (came if isinstance(came, str) else orjson.dumps(came).decode()) == damaged.decode(errors="backslashreplace")
    assert world.ledger.statistics.report(job=None).unpriced == 1


def test_a_row_that_is_damaged_in_some_readings_is_read_in_another(world: World) -> None:
    whole = lines(world)
    bad = b"".join([whole[0][:-9], b"\n", *whole[1:]])
    serve(world, bad, bad, bad, b"".join(whole))
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert len(world.api.batches) == 1


@pytest.mark.parametrize("fault", [None, "dropped"])
def test_a_row_that_is_cut_by_the_end_of_the_stream_is_no_answer(world: World, fault: str | None) -> None:
    whole = lines(world)
    serve(world, b"".join([*whole[1:], whole[0][:-9]]), fault=fault)
    for _ in range(12):
        world.pass_time(HOUR)
    assert bw.Outcome.FAILED not in outcomes(world)


def test_rows_that_always_go_missing_fail_with_their_reason(world: World) -> None:
    world.api.order("read", "empty", always=True)
    finish(world)
    assert outcomes(world) == {bw.Outcome.FAILED: ROWS}
    assert all(b"missing_row" in line for _, line in world.seen.values())
    assert len(world.api.batches) == 3, "Policy.max_attempts"


def test_reads_that_fail_for_ever_suspend_the_lane_and_buy_nothing(world: World) -> None:
    world.api.order("read", "500", always=True)
    world.pass_time(12 * HOUR)
    assert bw.Lane.BATCH in world.engine.suspensions.lanes
    assert len(world.api.batches) == 1
    assert world.api.calls["read"] < 200
    world.api.heal()
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}


def test_results_that_cannot_be_read_in_time_go_to_the_sync_lane(request: pytest.FixtureRequest) -> None:
    world = ended(30 * HOUR)
    request.addfinalizer(world.close)
    world.api.order("read", "500", always=True)
    world.pass_time(28 * HOUR, wakes=2_000)
    world.check()
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert world.api.sync.total() == ROWS
    assert world.ledger.statistics.report(job=None).possible_doubles == ROWS


def test_an_unknown_result_type_fails_its_request_unbought(world: World) -> None:
    broken = [orjson.dumps({**orjson.loads(line), "result": {"type": "deferred"}}) for line in lines(world)[:1]]
    serve(world, b"\n".join([*broken, *lines(world)[1:]]))
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS - 1, bw.Outcome.FAILED: 1}
    assert len(world.api.batches) == 1


def test_results_gone_are_bought_again_and_booked(world: World) -> None:
    world.api.batches[0].gone = True
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert len(world.api.batches) == 2
    assert world.ledger.statistics.report(job=None).possible_doubles == ROWS


def no_results(world: World, until: timedelta) -> None:
    """The results answer 404 for so long from now on."""
    real, end = world.api.read, world.true + until

    def read(remote_id: str, feed: Callable[[bytes], bool]) -> None:
        if world.true < end and remote_id == world.api.batches[0].id:
            world.api._refuse("404")
        real(remote_id, feed)

    world.api.read = read  # type: ignore[method-assign]


@pytest.mark.parametrize("minutes", [1, 10, 300])
def test_results_that_come_later_than_the_end_are_not_bought_again(world: World, minutes: int) -> None:
    no_results(world, minutes * MINUTE)
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert len(world.api.batches) == 1
    assert world.ledger.statistics.report(job=None).possible_doubles == 0


@pytest.mark.parametrize("archived", [True, False])
def test_results_that_nobody_read_in_time_are_lost_and_not_bought_again(world: World, archived: bool) -> None:
    no_results(world, timedelta(days=99))
    real = world.api._info

    def info(batch: Any, now: Any = None) -> Any:
        return attrs.evolve(real(batch, now), archived_at=world.true if archived else None)

    world.api._info = info  # type: ignore[method-assign]
    world.true += HOUR if archived else timedelta(days=29)
    finish(world)
    assert outcomes(world) == {bw.Outcome.FAILED: ROWS}
    rows = world.ledger.results(job=None, after=0, limit=99)
    assert {orjson.loads(row.line)["result"]["error"]["type"] for row in rows} == {"results_archived"}
    assert {row.cost for row in rows} == {None}
    assert (len(world.api.batches), world.api.sync.total()) == (1, 0)


def test_a_listing_with_unreadable_entries_proves_no_loss(world: World) -> None:
    world.api.batches[0].gone = True
    real = world.api.list
    world.api.list = lambda **asked: attrs.evolve(real(**asked), unknown=1)  # type: ignore[method-assign]
    for _ in range(20):
        world.pass_time(10 * MINUTE)
    world.check()
    assert not world.seen
    assert len(world.api.batches) == 1


def test_results_that_do_not_come_are_rescued_at_the_last_safe_moment() -> None:
    world = ended(timedelta(hours=30))
    no_results(world, timedelta(days=9))
    for _ in range(30):
        world.pass_time(HOUR)
        world.ledger.conditions.resume()
    world.check()
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert world.api.sync.total() == ROWS
    report = world.ledger.statistics.report(job=None)
    assert (report.met, report.missed, report.possible_doubles) == (ROWS, 0, ROWS)
    world.close()


def test_a_404_just_after_create_does_no_harm() -> None:
    world = World()
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    for _ in range(4):
        world.api.order("retrieve", "404")
    world.pass_time(2 * MINUTE)
    finish(world)
    assert len(world.api.batches) == 1
    world.close()


def test_a_batch_that_only_the_listing_knows_is_read_all_the_same() -> None:
    world = World()
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.run()
    world.true += MINUTE
    for _ in range(5):  # the listing shows three on a page
        world.api.add([("foreign", "foreign")], ours=False)
    world.api.order("retrieve", "404", always=True)
    world.api.order("list", "500")
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert sum(batch.ours for batch in world.api.batches) == 1, "bought again"
    assert world.ledger.statistics.report(job=None).possible_doubles == 0
    assert not world.engine.suspensions.lanes
    world.close()


def test_a_batch_that_others_delete_is_bought_again_and_booked() -> None:
    world = World()
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.run()
    world.api.batches[0].gone = True
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert len(world.api.batches) == 2
    assert world.ledger.statistics.report(job=None).possible_doubles == ROWS
    world.close()


def test_a_cut_reading_does_not_hide_an_error_of_the_whole_lane() -> None:
    world = World()
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.run()
    world.true += 2 * HOUR
    error = {"type": "errored", "error": {"type": "error", "error": {"type": "not_found_error", "message": "model"}}}
    failed = [orjson.dumps({"custom_id": name, "result": error}) + b"\n" for name, _ in world.api.batches[0].rows]
    serve(world, b"".join(failed[:3]), b"".join(failed))
    world.pass_time(HOUR)
    world.check()
    assert not world.seen, "requests failed for what is not their fault"
    assert "all 6 requests of a batch failed alike" in world.engine.suspensions.lanes[bw.Lane.BATCH]
    world.close()


def test_rows_that_failed_alike_before_a_resume_suspend_no_lane_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
    told = {"type": "errored", "error": error}
    failed = [orjson.dumps({"custom_id": name, "result": told}) + b"\n" for name, _ in world.api.batches[0].rows]
    counted(world, errored=ROWS)
    serve(world, b"".join(failed))
    done = resumed_before_suspending(world, monkeypatch)
    world.pass_time(HOUR)
    assert done == [False]
    assert not world.engine.suspensions.lanes
    assert len(world.api.batches) == 2, "they were sent again"


def test_a_batch_of_a_model_that_does_not_exist_fails_and_stops_no_lane(world: World) -> None:
    failed = [
        retyped(line, "errored").replace(b'"api_error"', b'"not_found_error","message":"model: claude-9"')
        for line in lines(world)
    ]
    counted(world, errored=ROWS)
    serve(world, b"".join(failed))
    finish(world)
    assert outcomes(world) == {bw.Outcome.FAILED: ROWS}
    assert not world.engine.suspensions.lanes


def test_a_row_that_comes_twice_does_not_hide_an_error_of_the_whole_lane(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_ROWS", 1)
    names = commits(world, monkeypatch)
    failed = [retyped(line, "errored") for line in lines(world)]
    failed = [line.replace(b"api_error", b"not_found_error") for line in failed]
    counted(world, errored=ROWS)
    serve(world, b"".join([*failed, failed[0]]), size=1)
    world.pass_time(HOUR)
    world.check()
    assert not world.seen, "requests failed for what is not their fault"
    assert bw.Lane.BATCH in world.engine.suspensions.lanes
    assert names.index("suspend") < names.index("requeue"), "or they go out again at once"


def test_an_error_of_the_whole_lane_holds_for_all_rows_or_none_when_the_process_dies(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK", 2)
    failed = [retyped(line, "errored").replace(b"api_error", b"not_found_error") for line in lines(world)]
    counted(world, errored=ROWS)
    serve(world, b"".join(failed))
    requeue, calls = world.ledger.requeue, list[int]()

    def once(*arguments: Any, **keywords: Any) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("it dies")
        return requeue(*arguments, **keywords)

    monkeypatch.setattr(world.ledger, "requeue", once)
    with suppress(RuntimeError):
        world.pass_time(HOUR)
    world.crash(done=False)
    world.engine.plan()  # a new process takes the lanes up again
    world.ledger.conditions.suspend(bw.Lane.BATCH, "lest it send them again")
    world.pass_time(HOUR)
    world.check()
    assert not world.seen, "requests failed for what is not their fault"


def test_a_paid_row_of_a_request_that_left_is_used_if_nothing_else_ended_it(request: pytest.FixtureRequest) -> None:
    world = ended()
    request.addfinalizer(world.close)
    (batch,) = world.ledger.snapshot().batches
    world.ledger.requeue(Which(batch=batch.id), lane=bw.Lane.SYNC, now=world.now(), keep=True, maybe_billed=True)
    world.ledger.conditions.suspend(bw.Lane.SYNC, "as if it could not run now")
    finish(world)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert world.api.sync.total() == 0
    assert world.ledger.statistics.report(job=None).wasted == 0


def test_rows_canceled_for_a_rescue_are_tried_again_and_those_of_a_caller_settle() -> None:
    for by_caller in (True, False):
        world = World()
        world.api.duration = 20 * HOUR
        world.dispatch_all(NAMES, 30 * HOUR)
        world.pass_time(10 * HOUR)
        if by_caller:
            world.cancel()
            world.run()
        else:
            world.api.batches[0].cancel_at = world.api.now()
        finish(world)
        found = outcomes(world)
        assert found[bw.Outcome.SUCCEEDED] == (3 if by_caller else ROWS), found
        assert found[bw.Outcome.CANCELED] == (3 if by_caller else 0), found
        world.close()


def retyped(line: bytes, kind: str) -> bytes:
    return orjson.dumps({**orjson.loads(line), "result": {"type": kind, "error": {"type": "api_error"}}}) + b"\n"


def counted(world: World, **counts: int) -> None:
    """Have the API count the rows of the ended batch so."""
    real = world.api.retrieve

    def retrieve(remote_id: str) -> Any:
        info = real(remote_id)
        wrong = Counts(processing=0, **{kind: counts.get(kind, 0) for kind in info.counts.by_result})
        return attrs.evolve(info, counts=wrong) if info.status == "ended" else info

    world.api.retrieve = retrieve  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["expired", "errored", "canceled"])
@pytest.mark.parametrize("stale", [1, ROWS])
def test_a_row_without_an_answer_that_was_counted_as_answered_is_read_again_before_it_is_believed(
    kind: str, stale: int, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    rows = lines(world)
    reads = serve(world, b"".join([*(retyped(line, kind) for line in rows[:stale]), *rows[stale:]]), b"".join(rows))
    finish(world)
    assert len(reads) == 2
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert (len(world.api.batches), world.api.sync.total()) == (1, 0), "bought again"
    report = world.ledger.statistics.report(job=None)
    assert (report.possible_doubles, report.attempts) == (0, ROWS)
    assert not caplog.records


def test_what_the_counts_say_is_known_to_the_next_process(world: World) -> None:
    rows = lines(world)
    serve(world, b"".join([retyped(rows[0], "expired"), *rows[1:]]), b"".join(rows))
    world.run()
    while not world.ledger.snapshot().batches[0].counts:
        world.true += MINUTE
        world.run(4)
    world.restart()
    finish(world)
    assert len(world.api.batches) == 1, "bought again"


def test_rows_that_stay_without_an_answer_are_tried_again_as_possible_doubles_and_the_log_has_the_figures(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    reads = serve(world, b"".join([*(retyped(line, "expired") for line in lines(world)[:2]), *lines(world)[2:]]))
    finish(world)
    assert len(reads) == 4
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert [len(batch.rows) for batch in world.api.batches] == [ROWS, 2]
    assert world.ledger.statistics.report(job=None).possible_doubles == 2
    (record,) = caplog.records
    assert record.getMessage() == (
        f"batchwise: the results of batch {world.api.batches[0].id} differ from its request_counts (expired: +2); "
        "batchwise goes by the rows"
    )


def test_answers_are_believed_whatever_the_counts_say(world: World, caplog: pytest.LogCaptureFixture) -> None:
    counted(world, succeeded=ROWS - 2, errored=2)
    reads = serve(world, b"".join(lines(world)))
    finish(world)
    assert (len(reads), len(world.api.batches)) == (1, 1)
    assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
    assert "(errored: -2)" in caplog.text


def expire(world: World) -> list[bytes]:
    """Have the first batch's window end before its last two rows; returns its lines, those of the two first."""
    batch = world.api.batches[0]
    batch.duration, batch.window = 3 * HOUR, 2 * HOUR
    assert batch.kinds()[-2:] == ["expired"] * 2
    return lines(world)


def test_rows_that_expired_as_counted_are_tried_again_at_once_however_often_they_come(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    rows = expire(world)
    foreign = orjson.dumps({"custom_id": "foreign", "result": {"type": "expired"}}) + b"\n"
    reads = serve(world, b"".join([rows[0], *rows[:2], foreign, *rows[2:], rows[1]]))
    finish(world)
    assert len(reads) == 1
    assert [len(batch.rows) for batch in world.api.batches] == [ROWS, 2]
    assert world.ledger.statistics.report(job=None).possible_doubles == 0
    assert not caplog.records


def test_fewer_rows_without_an_answer_than_counted_are_no_reason_to_doubt_those(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    counted(world, succeeded=ROWS - 3, expired=3)
    reads = serve(world, b"".join(expire(world)))
    finish(world)
    assert len(reads) == 1
    assert world.ledger.statistics.report(job=None).possible_doubles == 0
    assert "(expired: -1)" in caplog.text


@pytest.mark.parametrize(
    "counts", [{}, {"succeeded": ROWS + 1}, {"succeeded": 10**30}, {"succeeded": ROWS + 2, "errored": -2}]
)
def test_counts_that_do_not_add_up_are_not_heeded(
    counts: dict[str, int], world: World, caplog: pytest.LogCaptureFixture
) -> None:
    counted(world, **counts)
    reads = serve(world, b"".join(expire(world)))
    finish(world)
    assert (len(reads), len(world.api.batches)) == (1, 2)
    assert world.ledger.statistics.report(job=None).possible_doubles == 0
    assert not caplog.records


JUNK = st.binary(max_size=40).map(lambda junk: junk.replace(b"\n", b"") + b"\n")
EDITS = st.lists(
    st.tuples(st.sampled_from(["keep", "twice", "drop", "cut", "junk", "foreign", "stale"]), JUNK), max_size=12
)


@given(
    readings=st.lists(st.tuples(st.permutations(range(ROWS)), EDITS, st.integers(1, 400), st.booleans()), max_size=3),
)
def test_any_mix_of_rows_in_any_chunks_settles_each_once(
    readings: list[tuple[list[int], list[tuple[str, bytes]], int, bool]],
) -> None:
    world = ended()
    try:
        rows = lines(world)
        for order, edits, size, dropped in readings:
            parts: list[bytes] = []
            for position, index in enumerate(order):
                kind, junk = edits[position] if position < len(edits) else ("keep", b"")
                line = rows[index]
                parts += {
                    "keep": [line],
                    "twice": [line, line],
                    "drop": [],
                    "cut": [line[:30] + b"\n"],
                    "junk": [junk, line],
                    "foreign": [row("foreign"), line],
                    "stale": [retyped(line, "expired")],
                }[kind]
            serve(world, b"".join(parts), size=size, fault="dropped" if dropped else None)
            world.true += 6 * MINUTE
            world.run()
            world.check()
        serve(world, b"".join(rows))
        finish(world)
        assert outcomes(world) == {bw.Outcome.SUCCEEDED: ROWS}
        assert len(world.api.batches) == 1
        report = world.ledger.statistics.report(job=None)
        assert (report.wasted, report.possible_doubles, report.attempts) == (0, 0, ROWS)
    finally:
        world.close()
