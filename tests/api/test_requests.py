"""What goes over the wire, endpoint by endpoint."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone

import httpx  # respx speaks httpx on its side of the mock
import orjson
import pytest

from batchwise.api.faults import LaneFault
from batchwise.api.types import Counts
from batchwise.errors import InvalidValueError
from tests.api.harness import KEY, URL

UTC = timezone.utc
BATCH = {
    "id": "msgbatch_1",
    "type": "message_batch",
    "processing_status": "ended",
    "request_counts": {"processing": 0, "succeeded": 5, "errored": 1, "canceled": 2, "expired": 3, "paused": 9},
    "created_at": "2026-11-22T18:37:24.1004352Z",
    "expires_at": "2026-11-23T20:37:24+02:00",
    "ended_at": "2026-11-22T19:00:00.5Z",
    "cancel_initiated_at": None,
    "archived_at": None,
    "results_url": "https://evil.test/steal",
    "a_field_of_tomorrow": {"x": 1},
}
HEADERS = {
    "date": "Sun, 22 Nov 2026 19:00:01 GMT",
    "anthropic-workspace-id": "wrkspc_1",
    "request-id": "req_1",
    "content-type": "application/json",
}


def ok(body, **headers):
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return httpx.Response(200, content=content, headers={**HEADERS, **headers})


def only(route):
    assert route.call_count == 1
    return route.calls.last.request


def check_common(request):
    key = request.headers.get("x-api-key") or request.headers["authorization"].removeprefix("Bearer ")  # 1.x, 2.x
    assert key == KEY
    assert request.headers["anthropic-version"]
    assert request.headers["x-stainless-retry-count"] == "0"


def test_create_is_one_post_of_the_bytes_as_they_are(lanes, httpx2_mock):
    route = httpx2_mock.post(f"{URL}/v1/messages/batches").mock(return_value=ok(BATCH))
    chunks = [b'{"requests":[', b"", b'{"x": 1.50}', b"]}"]
    length = sum(map(len, chunks))
    created = lanes.create(chunks, length, ("beta-a", "beta-b"))
    request = only(route)
    check_common(request)
    assert request.content == b'{"requests":[{"x": 1.50}]}'
    assert request.headers["content-length"] == str(length)
    assert "transfer-encoding" not in request.headers
    assert request.headers["content-type"] == "application/json"
    assert request.headers["anthropic-beta"] == "beta-a,beta-b"
    assert request.url.query == b""
    assert created.id == "msgbatch_1"


def test_without_betas_no_beta_header_is_sent(lanes, httpx2_mock):
    route = httpx2_mock.post(f"{URL}/v1/messages/batches").mock(return_value=ok(BATCH))
    lanes.create([b"{}"], 2)
    assert "anthropic-beta" not in only(route).headers


def test_uploads_may_stall_for_long_and_polls_may_not(make_lanes, httpx2_mock):
    create = httpx2_mock.post(f"{URL}/v1/messages/batches").mock(return_value=ok(BATCH))
    retrieve = httpx2_mock.get(f"{URL}/v1/messages/batches/b").mock(return_value=ok(BATCH))
    make_lanes(timeout=20).create([b"{}"], 2)
    make_lanes().batch("retrieve", "b")
    timeouts = only(create).extensions["timeout"]
    assert (timeouts["write"], timeouts["read"], timeouts["connect"]) == (600, 20, 20)
    assert only(retrieve).extensions["timeout"]["read"] == 60


def test_a_client_without_timeouts_works(make_lanes, httpx2_mock):
    create = httpx2_mock.post(f"{URL}/v1/messages/batches").mock(return_value=ok(BATCH))
    retrieve = httpx2_mock.get(f"{URL}/v1/messages/batches/b").mock(return_value=ok(BATCH))
    lanes = make_lanes(timeout=None)
    lanes.create([b"{}"], 2)
    lanes.batch("retrieve", "b")
    assert only(create).extensions["timeout"]["write"] is None
    assert only(retrieve).extensions["timeout"]["read"] == 60


def test_retrieve(lanes, httpx2_mock):
    route = httpx2_mock.get(f"{URL}/v1/messages/batches/msgbatch_1").mock(return_value=ok(BATCH))
    info = lanes.batch("retrieve", "msgbatch_1")
    check_common(only(route))
    assert info.id == "msgbatch_1"
    assert info.status == "ended"
    assert info.counts == Counts(processing=0, succeeded=5, errored=1, canceled=2, expired=3)
    assert info.counts.total == 11
    assert info.created_at == datetime(2026, 11, 22, 18, 37, 24, 100435, UTC)
    assert info.expires_at == datetime(2026, 11, 23, 18, 37, 24, tzinfo=UTC)
    assert info.expires_at.utcoffset() == timedelta(0)
    assert info.ended_at == datetime(2026, 11, 22, 19, 0, 0, 500_000, UTC)
    assert info.archived_at is None
    assert info.server_time == datetime(2026, 11, 22, 19, 0, 1, tzinfo=UTC)
    assert info.workspace == "wrkspc_1"


def test_cancel(lanes, httpx2_mock):
    answer = {**BATCH, "processing_status": "canceling", "cancel_initiated_at": "2026-11-22T19:00:00Z"}
    route = httpx2_mock.post(f"{URL}/v1/messages/batches/msgbatch_1/cancel").mock(return_value=ok(answer))
    info = lanes.batch("cancel", "msgbatch_1")
    request = only(route)
    check_common(request)
    assert request.content == b""
    assert info.status == "canceling"


def test_list_with_and_without_cursors(lanes, httpx2_mock):
    page = {"data": [BATCH, {**BATCH, "id": "two"}], "has_more": True, "first_id": "msgbatch_1", "last_id": "two"}
    route = httpx2_mock.get(f"{URL}/v1/messages/batches").mock(return_value=ok(page))
    listing = lanes.batch("list", limit=100)
    assert dict(only(route).url.params) == {"limit": "100"}
    assert [batch.id for batch in listing.batches] == ["msgbatch_1", "two"]
    assert (listing.has_more, listing.last_id, listing.workspace) == (True, "two", "wrkspc_1")
    assert listing.server_time == listing.batches[0].server_time == datetime(2026, 11, 22, 19, 0, 1, tzinfo=UTC)
    lanes.batch("list", limit=1000, after_id="a&b")
    assert dict(route.calls.last.request.url.params) == {"limit": "1000", "after_id": "a&b"}


def test_an_empty_list(lanes, httpx2_mock):
    page = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    httpx2_mock.get(f"{URL}/v1/messages/batches").mock(return_value=ok(page))
    listing = lanes.batch("list", limit=100)
    assert (listing.batches, listing.has_more, listing.last_id) == ((), False, None)


def test_results_come_from_our_own_path(lanes, httpx2_mock):
    route = httpx2_mock.get(f"{URL}/v1/messages/batches/msgbatch_1/results").mock(return_value=ok(b"one\ntwo\n"))
    chunks, error = lanes.results("msgbatch_1")
    request = only(route)
    check_common(request)
    assert request.headers["accept-encoding"] == "identity"
    assert (b"".join(chunks), error) == (b"one\ntwo\n", None)


def test_results_that_come_compressed_all_the_same_are_decoded(lanes, httpx2_mock):
    import gzip

    answer = ok(gzip.compress(b"one\ntwo\n"), **{"content-encoding": "gzip"})
    httpx2_mock.get(f"{URL}/v1/messages/batches/b/results").mock(return_value=answer)
    assert lanes.results("b") == ([b"one\ntwo\n"], None)


def test_an_id_cannot_leave_its_place_in_the_path(lanes, httpx2_mock):
    route = httpx2_mock.get(url__startswith=URL).mock(return_value=ok(BATCH))
    lanes.batch("retrieve", "../../v1/files?x=1#y")
    assert only(route).url.raw_path == b"/v1/messages/batches/..%2F..%2Fv1%2Ffiles%3Fx%3D1%23y"
    for bad in ("", ".", ".."):
        with pytest.raises(InvalidValueError, match="no batch's id"):
            lanes.batch("retrieve", bad)
    assert route.call_count == 1


def test_a_base_url_with_a_path_is_kept(make_lanes, httpx2_mock):
    route = httpx2_mock.get("http://proxy.test/anthropic/v1/messages/batches/b").mock(return_value=ok(BATCH))
    make_lanes(base_url="http://proxy.test/anthropic/").batch("retrieve", "b")
    assert route.call_count == 1


def test_debug_logging_of_the_sdk_does_not_eat_the_body(lanes, httpx2_mock, caplog):
    caplog.set_level(logging.DEBUG)
    route = httpx2_mock.post(f"{URL}/v1/messages/batches").mock(return_value=ok(BATCH))
    lanes.create([b'{"a":', b'"secret prompt"}'], 21)
    assert only(route).content == b'{"a":"secret prompt"}'
    assert "secret prompt" not in caplog.text


MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}]}


def test_a_messages_call(lanes, httpx2_mock):
    answer = ok(MESSAGE, **{"anthropic-ratelimit-requests-remaining": "9"})
    route = httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=answer)
    body = b'{"model":"m","max_tokens":5,"temperature":1.0,"messages":[]}'
    reply = lanes.call(body, model="m", max_tokens=5, betas=("x-1",))
    request = only(route)
    check_common(request)
    assert request.content == body
    assert request.headers["content-length"] == str(len(body))
    assert request.headers["content-type"] == "application/json"
    assert request.headers["anthropic-beta"] == "x-1"
    assert request.extensions["timeout"]["read"] == 600
    assert reply.body == orjson.dumps(MESSAGE)
    assert reply.headers["anthropic-ratelimit-requests-remaining"] == "9"
    assert reply.headers["request-id"] == "req_1"
    assert reply.workspace == "wrkspc_1"
    assert timedelta(0) < reply.latency < timedelta(seconds=30)


def test_a_clients_middleware_is_passed_through(make_lanes, httpx2_mock, request):
    httpx2_mock.post(f"{URL}/v1/messages/batches").mock(return_value=ok(BATCH))
    httpx2_mock.get(f"{URL}/v1/messages/batches/b/results").mock(return_value=ok(b"one\n"))
    seen = []
    if "sync" in request.node.callspec.id and "asyncio" not in request.node.callspec.id:

        def middleware(call, call_next):
            seen.append(call)
            return call_next(call)
    else:

        async def middleware(call, call_next):
            seen.append(call)
            return await call_next(call)

    lanes = make_lanes(middleware=[middleware])
    assert lanes.create([b"{}"], 2).id == "msgbatch_1"
    assert lanes.results("b") == ([b"one\n"], None)
    assert len(seen) == 2


def without(key):
    return {name: value for name, value in BATCH.items() if name != key}


@pytest.mark.parametrize(
    "body",
    [
        b"<html>gateway</html>",
        b"",
        b"[]",
        b"{}",
        without("id"),
        {**BATCH, "id": 7},
        {**BATCH, "id": ""},
        {**BATCH, "id": "a\u0000b"},
        {**BATCH, "processing_status": "paused"},
        {**BATCH, "processing_status": []},
        {**BATCH, "created_at": "yesterday"},
        {**BATCH, "created_at": None},
        {**BATCH, "ended_at": 7},
        {**BATCH, "request_counts": None},
        {**BATCH, "request_counts": {"processing": "many"}},
        {**BATCH, "created_at": "2026-13-45T18:37:24Z"},
    ],
)
def test_a_malformed_batch_is_a_fault(body, lanes, httpx2_mock):
    route = httpx2_mock.post(f"{URL}/v1/messages/batches").mock(return_value=ok(body))
    with pytest.raises(LaneFault) as caught:
        lanes.create([b"{}"], 2)
    assert (caught.value.fault.type, caught.value.fault.status) == ("malformed_response", 200)
    assert caught.value.fault.request_sent
    assert route.call_count == 1


def test_a_malformed_list_is_a_fault(lanes, httpx2_mock):
    httpx2_mock.get(f"{URL}/v1/messages/batches").mock(return_value=ok({"data": None, "has_more": False}))
    with pytest.raises(LaneFault, match="no list of batches"):
        lanes.batch("list", limit=100)


@pytest.mark.parametrize("body", [b'{"type":"error"}', b"<html>", b"", b"\xef\xbb\xbf{}"], ids=repr)
def test_what_comes_with_a_200_is_handed_on_as_it_came(body, lanes, httpx2_mock):
    httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=ok(body))
    assert lanes.call(b"{}", model="m", max_tokens=5).body == body


@pytest.mark.parametrize(
    "entry",
    [
        {**BATCH, "processing_status": "paused"},
        {**BATCH, "created_at": "soon"},
        {**BATCH, "request_counts": {"processing": "many"}},
        without("id"),
        None,
        7,
        [],
    ],
)
def test_a_batch_in_a_listing_that_cannot_be_read_is_passed_over(entry, lanes, httpx2_mock):
    httpx2_mock.get(f"{URL}/v1/messages/batches").mock(
        return_value=ok({"data": [entry, BATCH, entry], "has_more": True, "last_id": "msgbatch_9"})
    )
    listing = lanes.batch("list", limit=100)
    assert ([info.id for info in listing.batches], listing.unknown) == ([BATCH["id"]], 2)
    assert (listing.has_more, listing.last_id) == (True, "msgbatch_9")
