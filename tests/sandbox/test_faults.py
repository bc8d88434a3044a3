"""Each fault by name, once and persistently, as the SDK meets it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import anthropic
import httpx2
import orjson
import pytest

from batchwise.sandbox import KNOWN_FAULTS, UnknownFaultError
from tests.waiting import until

from .conftest import params, raw_results, results, rows

STATUS = {
    "create.error_500_before": 500,
    "create.error_500_after": 500,
    "create.overloaded_529": 529,
    "create.rate_limited_429": 429,
    "create.too_large_413": 413,
    "create.invalid_400": 400,
    "create.unauthorized_401": 401,
    "create.billing_402": 402,
    "messages.overloaded_529": 529,
    "messages.rate_limited_429": 429,
    "messages.spend_cap": 429,
    "messages.error_500": 500,
    "messages.unauthorized_401": 401,
    "messages.billing_402": 402,
    "retrieve.not_found_404": 404,
    "retrieve.error_500": 500,
    "list.error_500": 500,
    "cancel.error_500": 500,
    "results.gone": 404,
    "results.error_500": 500,
}


def status_of(ask: Callable[[], object]) -> int:
    try:
        ask()
    except anthropic.APIStatusError as error:
        return error.status_code
    return 200


def call(client: anthropic.Anthropic, operation: str, batch_id: str):
    batches = client.messages.batches
    if operation == "create":
        return batches.create(requests=rows(2, "new"))
    if operation == "messages":
        return client.messages.create(**params("sync"))
    if operation == "list":
        return batches.list()
    if operation == "results":
        return list(batches.results(batch_id))
    return getattr(batches, operation)(batch_id)


@pytest.mark.parametrize("name", STATUS)
def test_status_faults_once_and_persistently(make, name):
    sandbox, client = make()
    operation = name.split(".")[0]
    sandbox.cancel_latency = 60
    sandbox.batch_latency = 60 if operation == "cancel" else 0
    batch = client.messages.batches.create(requests=rows(2))
    before = sandbox.books.running() + sandbox.books.billed()
    sandbox.fault(name)
    with pytest.raises(anthropic.APIStatusError) as caught:
        call(client, operation, batch.id)
    assert caught.value.status_code == STATUS[name]
    assert caught.value.body["type"] == "error"
    assert caught.value.request_id
    bought = sandbox.books.running() + sandbox.books.billed() - before
    assert bought == (2 if name == "create.error_500_after" else 0)
    call(client, operation, batch.id)
    sandbox.fault(name, times=None)
    for _ in range(3):
        with pytest.raises(anthropic.APIStatusError):
            call(client, operation, batch.id)
    assert sandbox.faults_fired == {name: 4}
    sandbox.clear_faults(name)
    call(client, operation, batch.id)


def test_retry_after(make):
    sandbox, client = make()
    for name, operation in (("create.rate_limited_429", "create"), ("messages.rate_limited_429", "messages")):
        for wait in (7, None):
            sandbox.fault(name, retry_after=wait)
            with pytest.raises(anthropic.RateLimitError) as caught:
                call(client, operation, "")
            assert caught.value.response.headers.get("retry-after") == (None if wait is None else "7")


def test_spend_cap(make):
    sandbox, client = make()
    sandbox.fault("messages.spend_cap")
    with pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(**params())
    assert caught.value.body["error"]["details"] == {"error_code": "enforced_spend_limit_reached"}
    assert "retry-after" not in caught.value.response.headers


@pytest.mark.parametrize(("name", "created"), [("create.drop_before", 0), ("create.drop_after", 1)])
def test_create_drops(make, name, created):
    sandbox, client = make(batch_latency=60)
    sandbox.fault(name)
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.batches.create(requests=rows(2))
    assert len(list(client.messages.batches.list())) == created
    assert sandbox.books.running("batch") == 2 * created
    client.messages.batches.create(requests=rows(2))
    assert sandbox.books.bought("r 0") == created + 1
    assert sandbox.books.bought_twice() == ({"r 0": 2, "r 1": 2} if created else {})


def test_the_sdk_itself_buys_twice_after_a_drop(make):
    """Why batchwise turns the SDK's retries off."""
    sandbox, _ = make(batch_latency=60)
    sandbox.fault("create.drop_after", times=2)
    with sandbox.client(max_retries=2) as client:
        client.messages.batches.create(requests=rows(1))
    assert sandbox.books.bought("r 0") == 3


def test_create_accepted_late(make):
    sandbox, client = make(batch_latency=60)
    sandbox.fault("create.accepted_late", delay=0.2)
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.batches.create(requests=rows(2))
    assert list(client.messages.batches.list()) == []
    assert sandbox.books.bought("r 0") == 0
    until(lambda: list(client.messages.batches.list()))
    assert sandbox.books.bought("r 0") == 1


def test_create_slow_is_accepted_before_the_answer(make):
    sandbox, client = make(batch_latency=60)
    sandbox.fault("create.slow", delay=0.3)
    thread = threading.Thread(target=client.messages.batches.create, kwargs={"requests": rows(1)})
    started = time.monotonic()
    thread.start()
    until(lambda: sandbox.books.running("batch") == 1)
    assert thread.is_alive()
    thread.join()
    assert time.monotonic() - started >= 0.3


def test_create_hangs_until_the_client_gives_up(make):
    sandbox, client = make(batch_latency=60)
    sandbox.fault("create.hang")
    with pytest.raises(anthropic.APITimeoutError):
        client.messages.batches.create(requests=rows(1), timeout=0.2)
    assert sandbox.books.bought("r 0") == 1


def test_invalid_400_says_what_was_ordered(make):
    sandbox, client = make()
    sandbox.fault("create.invalid_400", message="requests.1.custom_id: no")
    with pytest.raises(anthropic.BadRequestError, match=r"requests\.1\.custom_id: no"):
        client.messages.batches.create(requests=rows(2))


def test_retrieve_not_found_just_after_create(make):
    sandbox, client = make()
    sandbox.fault("retrieve.not_found_404", times=None, younger_than=1.0)
    batch = client.messages.batches.create(requests=rows(1))
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)
    sandbox.advance(2)
    assert client.messages.batches.retrieve(batch.id)
    assert sandbox.faults_fired["retrieve.not_found_404"] == 1


def test_retrieve_stale(make):
    sandbox, client = make(batch_latency=10)
    batch = client.messages.batches.create(requests=rows(1))
    sandbox.advance(20)
    sandbox.fault("retrieve.stale")
    sandbox.fault("retrieve.stale", ago=15)
    sandbox.fault("retrieve.stale", ago=1)
    seen = [client.messages.batches.retrieve(batch.id).processing_status for _ in range(4)]
    assert seen == ["in_progress", "in_progress", "ended", "ended"]


def test_list_lag(make):
    sandbox, client = make()
    old = client.messages.batches.create(requests=rows(1))
    sandbox.advance(10)
    new = client.messages.batches.create(requests=rows(1))
    sandbox.fault("list.lag", times=None, delay=5)
    assert [batch.id for batch in client.messages.batches.list()] == [old.id]
    sandbox.advance(6)
    assert [batch.id for batch in client.messages.batches.list()] == [new.id, old.id]


def test_foreign_batches(make):
    sandbox, client = make(batch_latency=60)
    running = sandbox.add_foreign_batch(3, created_ago=5, ends_in=10)
    ended = sandbox.add_foreign_batch(3, ended=True, created_ago=100)
    mine = client.messages.batches.create(requests=rows(3))
    listed = list(client.messages.batches.list())
    assert [batch.id for batch in listed] == [mine.id, running, ended]
    assert [batch.processing_status for batch in listed] == ["in_progress", "in_progress", "ended"]
    assert {row.custom_id for row in client.messages.batches.results(ended)} == {"foreign-0", "foreign-1", "foreign-2"}
    sandbox.advance(11)
    assert client.messages.batches.retrieve(running).processing_status == "ended"
    assert [purchase.batch_id for purchase in sandbox.books.purchases] == [mine.id] * 3


# results


@pytest.fixture
def ready(make):
    sandbox, client = make()
    batch = client.messages.batches.create(requests=rows(20))
    return sandbox, client, batch.id


def test_results_dropped_inside_a_line(ready):
    sandbox, client, batch_id = ready
    sandbox.fault("results.drop", after_rows=4)
    rows_read = client.messages.batches.results(batch_id)
    seen = [next(rows_read).custom_id for _ in range(4)]
    assert len(set(seen)) == 4
    with pytest.raises(httpx2.RemoteProtocolError):
        next(rows_read)
    assert len(results(client, batch_id)) == 20


def test_results_cut_line(ready):
    sandbox, client, batch_id = ready
    sandbox.fault("results.cut_line", after_rows=4)
    lines = raw_results(client, batch_id).split(b"\n")
    assert len(lines) == 5
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(lines[-1])


def test_results_early_end(ready):
    sandbox, client, batch_id = ready
    sandbox.fault("results.early_end")
    assert len(results(client, batch_id)) == 10  # the SDK does not notice
    assert len(results(client, batch_id)) == 20


@pytest.mark.parametrize(("replace", "whole"), [(False, 20), (True, 19)])
def test_results_garbage_line(ready, replace, whole):
    sandbox, client, batch_id = ready
    sandbox.fault("results.garbage_line", at=3, replace=replace)
    lines = raw_results(client, batch_id).splitlines()
    (garbage,) = [line for line in lines if b"502" in line]
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(garbage)
    assert len(lines) == whole + 1


def test_results_blank_line(ready):
    sandbox, client, batch_id = ready
    sandbox.fault("results.blank_line", at=0)
    raw = raw_results(client, batch_id)
    assert raw.startswith(b"\n{")
    assert raw.count(b"\n") == 21


def test_results_crlf_split_between_chunks(ready):
    sandbox, client, batch_id = ready
    sandbox.fault("results.crlf", times=None)
    raw = raw_results(client, batch_id)
    assert raw.count(b"\r\n") == raw.count(b"\n") == 20
    with client.messages.batches.with_streaming_response.results(batch_id) as response:
        pieces = list(response.http_response.iter_raw())
    assert any(piece.endswith(b"\r") for piece in pieces)
    assert any(piece.startswith(b"\n") for piece in pieces)


def test_results_rows_twice_foreign_missing_unknown(ready):
    sandbox, client, batch_id = ready
    sandbox.fault("results.duplicate_row")
    names = [row.custom_id for row in client.messages.batches.results(batch_id)]
    assert (len(names), len(set(names))) == (21, 20)
    sandbox.fault("results.foreign_row", custom_id="not-yours")
    assert "not-yours" in results(client, batch_id)
    sandbox.fault("results.missing_row", every=5, first=1, times=2)
    for _ in range(2):
        missing = {f"r-{i}" for i in range(20)} - set(results(client, batch_id))
        assert missing == {"r-1", "r-6", "r-11", "r-16"}
    sandbox.fault("results.unknown_type", every=10, type="postponed")
    kinds = {name: result.type for name, result in results(client, batch_id).items()}
    assert {name for name, kind in kinds.items() if kind == "postponed"} == {"r-0", "r-10"}
    sandbox.fault("results.unknown_type")
    sandbox.fault("results.missing_row")
    assert len(results(client, batch_id)) == 18  # together


def test_results_stale_rows(ready):
    sandbox, client, batch_id = ready
    sandbox.fault("results.stale_row", every=10)
    kinds = {name: result.type for name, result in results(client, batch_id).items()}
    assert {name for name, kind in kinds.items() if kind == "expired"} == {"r-0", "r-10"}
    assert {result.type for result in results(client, batch_id).values()} == {"succeeded"}


def test_retrieve_miscount(ready):
    sandbox, client, batch_id = ready
    sandbox.fault("retrieve.miscount")
    sandbox.fault("retrieve.miscount", zero=True)
    seen = [client.messages.batches.retrieve(batch_id).request_counts for _ in range(3)]
    assert [(counts.succeeded, counts.expired) for counts in seen] == [(19, 1), (0, 0), (20, 0)]


# cancel, messages, rows


def test_cancel_hangs(make):
    sandbox, client = make(batch_latency=100)
    batch = client.messages.batches.create(requests=rows(4))
    sandbox.advance(50)
    sandbox.fault("cancel.hang", delay=500)
    client.messages.batches.cancel(batch.id)
    sandbox.advance(499)
    assert client.messages.batches.retrieve(batch.id).processing_status == "canceling"
    assert sandbox.books.bought("r 0") == 1
    sandbox.advance(2)
    assert client.messages.batches.retrieve(batch.id).request_counts.canceled == 2


def test_cancel_without_effect(make):
    sandbox, client = make(batch_latency=100, cancel_latency=1)
    batch = client.messages.batches.create(requests=rows(4))
    sandbox.fault("cancel.no_effect")
    client.messages.batches.cancel(batch.id)
    sandbox.advance(2)
    assert client.messages.batches.retrieve(batch.id).request_counts.succeeded == 4


@pytest.mark.parametrize(("name", "billed"), [("messages.drop_before", 0), ("messages.drop_after_billing", 1)])
def test_messages_drops(make, name, billed):
    sandbox, client = make()
    sandbox.fault(name)
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.create(**params("p"))
    assert sandbox.books.billed("sync") == billed
    assert [purchase.delivered for purchase in sandbox.books.purchases] == [False] * billed
    client.messages.create(**params("p"))
    assert sandbox.books.bought("p") == billed + 1


def test_messages_slow(make):
    sandbox, client = make()
    sandbox.fault("messages.slow", delay=0.15)
    started = time.monotonic()
    client.messages.create(**params())
    assert time.monotonic() - started >= 0.15


def test_all_rows_error(make):
    sandbox, client = make()
    sandbox.fault("batch.all_rows_error")
    batch = client.messages.batches.create(requests=rows(5))
    errors = [result.error.error for result in results(client, batch.id).values()]
    assert {error.type for error in errors} == {"invalid_request_error"}
    assert "credit balance" in errors[0].message
    sandbox.fault("batch.all_rows_error", type="permission_error", message="no")
    batch = client.messages.batches.create(requests=rows(1))
    assert results(client, batch.id)["r-0"].error.error.type == "permission_error"
    assert sandbox.books.billed() == 0


def test_row_faults_by_probability(make):
    sandbox, client = make(seed=5)
    sandbox.fault("batch.row_error", probability=0.3, type="overloaded_error", message="busy")
    sandbox.fault("batch.row_expired", probability=0.3)
    batch = client.messages.batches.create(requests=rows(200))
    counts = client.messages.batches.retrieve(batch.id).request_counts
    assert 30 < counts.errored < 90
    assert 20 < counts.expired < 80
    assert counts.succeeded == 200 - counts.errored - counts.expired
    found = [result for result in results(client, batch.id).values() if result.type == "errored"]
    assert {result.error.error.type for result in found} == {"overloaded_error"}


# ordering


def test_unknown_names_are_refused():
    from batchwise.sandbox.world import World

    world = World()
    with pytest.raises(UnknownFaultError, match=r"create\.drop_before, create\.drop_after"):
        world.fault("create.dropp")
    with pytest.raises(TypeError, match="its parameters: delay"):
        world.fault("create.slow", dela=1)
    with pytest.raises(ValueError, match="times"):
        world.fault("create.slow", times=0)
    with pytest.raises(ValueError, match="probability"):
        world.fault("create.slow", probability=2)


def test_probability_times_and_skip(make):
    sandbox, client = make(seed=1)
    fault = sandbox.fault("messages.error_500", times=2, skip=1)
    outcomes = [status_of(lambda: client.messages.create(**params())) for _ in range(4)]
    assert outcomes == [200, 500, 500, 200]
    assert (fault.fired, fault.spent) == (2, True)
    often = sandbox.fault("list.error_500", times=None, probability=0.5)
    assert {status_of(client.messages.batches.list) for _ in range(40)} == {200, 500}
    assert 10 < often.fired < 30


def test_every_fault_is_tested_here():
    from pathlib import Path

    text = Path(__file__).read_text()
    assert [name for name in KNOWN_FAULTS if f'"{name}"' not in text] == []


def test_restart(make):
    sandbox, client = make(batch_latency=60)
    batch = client.messages.batches.create(requests=rows(1))
    url = sandbox.base_url
    sandbox.restart(downtime=0.15)
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.batches.retrieve(batch.id)

    def back():
        try:
            return client.messages.batches.retrieve(batch.id)
        except anthropic.APIConnectionError:
            return None

    assert until(back).id == batch.id
    assert sandbox.base_url == url
    sandbox.restart(0.05, wait=True)
    assert client.messages.batches.retrieve(batch.id)


def test_restart_cuts_a_running_call(make):
    sandbox, client = make(sync_latency=5)
    failed = []

    def ask():
        try:
            client.messages.create(**params("cut"))
        except anthropic.APIConnectionError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: sandbox.books.running() == 1)
    sandbox.restart()
    thread.join(3)
    assert failed
