"""Real connections that break: before, inside and after a body, and inside an answer."""

from __future__ import annotations

import socket
import struct
import threading

import orjson
import pytest

from batchwise.api.faults import LaneFault
from batchwise.planning.outcomes import CreateOutcome, rule_create
from tests.api.harness import KEY, ScriptedServer
from tests.api.test_faults import caught
from tests.api.test_requests import BATCH

MEGABYTE = b"x" * 1_000_000


class FenceError(Exception):
    """Stands for the owner's lock having been lost."""


def reset(peer) -> None:
    peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_whole_upload_arrives_whole(make_lanes):
    def script(peer):
        seen = peer.body(64 * 1_000_000)
        peer.answer(200, orjson.dumps(BATCH))
        return seen

    with ScriptedServer(script) as server:
        lanes = make_lanes(base_url=server.url)
        assert lanes.create(iter([MEGABYTE] * 64), 64_000_000).id == "msgbatch_1"
        server.handled.acquire(timeout=10)
        assert server.told == [64_000_000]
        assert b"content-length: 64000000" in server.heads[0].lower()
        assert b"transfer-encoding" not in server.heads[0].lower()


@pytest.mark.parametrize("how", [lambda peer: None, reset], ids=["closed", "reset"])
def test_a_connection_lost_before_the_bodys_end_proves_that_nothing_was_created(how, make_lanes):
    def script(peer):
        peer.body(2_000_000)
        how(peer)

    with ScriptedServer(script) as server:
        fault = caught(make_lanes(base_url=server.url).create, iter([MEGABYTE] * 64), 64_000_000).fault
    assert (fault.status, fault.type, fault.request_sent) == (None, "connection_error", False)
    assert rule_create(fault).outcome is CreateOutcome.NOT_CREATED


@pytest.mark.parametrize("how", [lambda peer: None, reset], ids=["closed", "reset"])
def test_a_connection_lost_after_the_bodys_end_proves_nothing(how, make_lanes):
    def script(peer):
        peer.body(3_000_000)
        how(peer)

    with ScriptedServer(script) as server:
        fault = caught(make_lanes(base_url=server.url).create, iter([MEGABYTE] * 3), 3_000_000).fault
        assert len(server.heads) == 1
    assert (fault.status, fault.type, fault.request_sent) == (None, "connection_error", True)
    assert rule_create(fault).outcome is CreateOutcome.UNKNOWN


def test_a_hang_after_the_bodys_end_proves_nothing(make_lanes):
    done = threading.Event()

    def script(peer):
        peer.body(3_000_000)
        done.wait(10)

    with ScriptedServer(script) as server:
        fault = caught(make_lanes(base_url=server.url, timeout=0.3).create, iter([MEGABYTE] * 3), 3_000_000).fault
        done.set()
    assert (fault.status, fault.type, fault.request_sent) == (None, "timeout", True)
    assert rule_create(fault).outcome is CreateOutcome.UNKNOWN


def test_a_refused_connection_proves_that_nothing_was_created(make_lanes):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    fault = caught(make_lanes(base_url=url).create, [b"{}"], 2).fault
    assert (fault.type, fault.request_sent) == ("connection_error", False)
    assert rule_create(fault).outcome is CreateOutcome.NOT_CREATED


@pytest.mark.parametrize("reads_on", [True, False])
def test_an_early_413_is_reported_as_such(reads_on, make_lanes):
    def script(peer):
        peer.body(1_000_000)
        peer.answer(413, b'{"error":{"type":"request_too_large","message":"over 256 MB"}}', b"Connection: close")
        peer.connection.shutdown(socket.SHUT_WR)
        return peer.body() if reads_on else peer.body(8_000_000)

    with ScriptedServer(script) as server:
        failure = caught(make_lanes(base_url=server.url).create, iter([MEGABYTE] * 64), 64_000_000)
    if reads_on or failure.fault.status is not None:
        assert (failure.fault.status, failure.fault.type) == (413, "request_too_large")
        assert rule_create(failure.fault).outcome is CreateOutcome.TOO_LARGE
    else:  # the reset threw the answer away before it could be read
        assert not failure.fault.request_sent


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_exception_of_the_last_check_is_raised_as_it_is_and_leaves_the_body_unfinished(after, make_lanes):
    broken = FenceError("the lock is lost")

    def chunks():
        for _ in range(after):
            yield MEGABYTE
        raise broken

    with ScriptedServer(lambda peer: peer.body()) as server:
        with pytest.raises(FenceError) as info:
            make_lanes(base_url=server.url).create(chunks(), 4_000_000)
        server.handled.acquire(timeout=10)
        assert server.told == [after * 1_000_000]
    assert info.value is broken


@pytest.mark.parametrize("length", [1_999_999, 2_000_001])
def test_a_wrong_length_is_the_callers_bug(length, make_lanes):
    with ScriptedServer(lambda peer: peer.body()) as server:
        with pytest.raises(ValueError, match=f"length={length}"):
            make_lanes(base_url=server.url).create([MEGABYTE, MEGABYTE], length)
        server.handled.acquire(timeout=10)
        assert server.told[0] < length


def test_an_error_of_the_bodys_source_is_raised_as_it_is(make_lanes):
    def chunks():
        yield b"{"
        raise OSError("the ledger's disk")

    with ScriptedServer(lambda peer: peer.body()) as server, pytest.raises(OSError, match="the ledger's disk"):
        make_lanes(base_url=server.url).create(chunks(), 100)


CALLS = {
    "create": lambda lanes: lanes.create([b"{}"], 2),
    "retrieve": lambda lanes: lanes.batch("retrieve", "b"),
    "cancel": lambda lanes: lanes.batch("cancel", "b"),
    "list": lambda lanes: lanes.batch("list", limit=100),
    "results": lambda lanes: lanes.results("b"),
    "message": lambda lanes: lanes.call(b"{}", model="m", max_tokens=1),
    "long message": lambda lanes: lanes.call(b"{}", model="m", max_tokens=64_000),
}


@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize("name", CALLS)
def test_no_redirect_is_followed_and_no_credentials_leave(name, status, make_lanes):
    with ScriptedServer(lambda peer: peer.answer(200, b"{}")) as thief:
        there = b"Location: http://localhost:%d/steal" % thief.port

        def script(peer):
            peer.answer(status, b"", there, b"Connection: close")

        with ScriptedServer(script) as server:
            failure = caught(CALLS[name], make_lanes(base_url=server.url))
            assert KEY.encode() in server.heads[0]
            assert len(server.heads) == 1
        assert (failure.fault.status, failure.fault.type) == (status, "redirect")
        assert thief.heads == []


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-jsonl\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_small_chunks_come_joined(make_lanes):
    lines = [b'{"custom_id":"%05d"}\n' % i for i in range(20_000)]

    def script(peer):
        peer.send(CHUNKED + b"".join(map(chunk, lines)) + b"0\r\n\r\n")

    with ScriptedServer(script) as server:
        chunks, error = make_lanes(base_url=server.url).results("b")
    assert error is None
    assert b"".join(chunks) == b"".join(lines)
    assert all(len(one) >= 48 * 1024 for one in chunks[:-1])
    assert len(chunks) < 12


@pytest.mark.parametrize(
    ("head", "pieces"),
    [
        (CHUNKED, [chunk(b"one\n"), chunk(b"two\nthr")]),
        (CHUNKED, [chunk(b"one\n"), b"100\r\ntwo\nthr"]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", [b"one\ntwo\nthr"]),
    ],
    ids=["between chunks", "inside a chunk", "short of its length"],
)
@pytest.mark.parametrize("how", [lambda peer: None, reset], ids=["closed", "reset"])
def test_a_cut_stream_gives_what_came_and_then_a_fault(how, head, pieces, make_lanes):
    go = threading.Event()

    def script(peer):
        peer.send(head, *pieces)
        go.wait(0.3)
        how(peer)

    with ScriptedServer(script) as server:
        chunks, error = make_lanes(base_url=server.url).results("b")
        assert len(server.heads) == 1
    assert b"".join(chunks) == b"one\ntwo\nthr"
    assert isinstance(error, LaneFault)
    assert error.fault.type == "connection_error"
    assert error.__context__ is None


def test_a_stalled_stream_is_a_timeout(make_lanes):
    done = threading.Event()

    def script(peer):
        peer.send(CHUNKED, chunk(b"one\n"))
        done.wait(10)

    with ScriptedServer(script) as server:
        chunks, error = make_lanes(base_url=server.url, timeout=0.3).results("b")
        done.set()
    assert chunks == [b"one\n"]
    assert error.fault.type == "timeout"


def test_a_clean_early_end_is_no_fault_here_since_rows_are_counted_later(make_lanes):
    def script(peer):
        peer.send(CHUNKED, chunk(b"one\ntw"), b"0\r\n\r\n")

    with ScriptedServer(script) as server:
        assert make_lanes(base_url=server.url).results("b") == ([b"one\ntw"], None)


def test_a_reader_may_stop_early(make_lanes):
    def script(peer):
        peer.send(CHUNKED)
        for _ in range(10_000):
            peer.send(chunk(b"x" * 65_536))

    with ScriptedServer(script) as server:
        chunks, error = make_lanes(base_url=server.url).results("b", limit=2)
    assert (len(chunks), error) == (2, None)


def test_an_exception_of_the_reader_passes_through(make_lanes):
    class ReaderError(Exception):
        pass

    def script(peer):
        peer.send(CHUNKED, chunk(b"one\n"), b"0\r\n\r\n")

    class Exploding(list):
        def append(self, item):
            raise ReaderError

    with ScriptedServer(script) as server, pytest.raises(ReaderError):
        make_lanes(base_url=server.url).results("b", into=Exploding())


def test_a_dropped_poll_is_tried_again_on_a_new_connection(make_lanes):
    answers = iter([None, None, orjson.dumps(BATCH)])

    def script(peer):
        body = next(answers)
        if body is not None:
            peer.answer(200, body)

    with ScriptedServer(script) as server:
        lanes = make_lanes(base_url=server.url)
        assert lanes.batch("retrieve", "b").id == "msgbatch_1"
        assert len(server.heads) == 3
    assert len(lanes.slept) == 2


def test_a_stream_of_a_long_message_that_drops(make_lanes):
    from tests.api.test_streams import BODY, LONG, MESSAGE, events_of

    def script(peer):
        peer.body(len(BODY) + 14)
        peer.send(CHUNKED, *map(chunk, events_of(MESSAGE)[:5]))

    with ScriptedServer(script) as server:
        fault = caught(make_lanes(base_url=server.url).call, BODY, **LONG).fault
    assert (fault.status, fault.type, fault.request_sent) == (None, "connection_error", True)
