"""What each failure is reported as, and which are tried again."""

from __future__ import annotations

from datetime import timedelta

import anthropic
import httpx  # respx speaks httpx on its side of the mock
import httpx2
import orjson
import pytest

from batchwise.api.faults import LaneFault, is_transient, retry_after, server_time, translate
from batchwise.planning.outcomes import CreateOutcome, Fault, rule_create
from tests.api.harness import URL
from tests.api.test_requests import BATCH, ok

BATCHES = f"{URL}/v1/messages/batches"


def error(status, kind, message="no", details=None, **headers):
    inner = {"type": kind, "message": message}
    if details is not None:
        inner["details"] = details
    body = orjson.dumps({"type": "error", "error": inner, "request_id": "req_9"})
    return httpx.Response(status, content=body, headers={"content-type": "application/json", **headers})


def caught(call, *args, **kwargs) -> LaneFault:
    with pytest.raises(LaneFault) as info:
        call(*args, **kwargs)
    return info.value


STATUSES = [
    (400, "invalid_request_error"),
    (401, "authentication_error"),
    (402, "billing_error"),
    (403, "permission_error"),
    (404, "not_found_error"),
    (409, "conflict_error"),
    (413, "request_too_large"),
    (418, "teapot_error"),
    (429, "rate_limit_error"),
    (500, "api_error"),
    (503, "api_error"),
    (504, "timeout_error"),
    (529, "overloaded_error"),
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_an_api_error_keeps_its_status_type_message_and_code(status, kind, lanes, httpx2_mock):
    answer = error(status, kind, "in the API's words", {"error_code": "why"}, **{"retry-after": "7", "X-Mark": "1"})
    route = httpx2_mock.post(BATCHES).mock(return_value=answer)
    failure = caught(lanes.create, [b"{}"], 2)
    assert failure.fault == Fault(status, kind, "in the API's words", timedelta(seconds=7), "why", request_sent=True)
    assert failure.headers["x-mark"] == "1"
    assert str(failure) == f"{status} {kind}: in the API's words"
    assert route.call_count == 1
    assert lanes.slept == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (413, "request_too_large"),
        (418, "invalid_request_error"),
        (429, "rate_limit_error"),
        (502, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
        (302, "redirect"),
    ],
)
@pytest.mark.parametrize(
    "body", [b"<html>nginx</html>", b"", b"[1]", b'{"error":"text"}', b'{"error":{"type":7}}', b"\xff"]
)
def test_a_body_that_is_no_api_error_gets_its_type_from_the_status(status, kind, body, lanes, httpx2_mock):
    httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=httpx.Response(status, content=body))
    fault = caught(lanes.call, b"{}", model="m", max_tokens=1).fault
    assert (fault.status, fault.type) == (status, kind)
    assert fault.message == f"HTTP {status} without an error message"
    assert (fault.retry_after, fault.error_code) == (None, None)


def test_long_messages_are_cut(lanes, httpx2_mock):
    httpx2_mock.post(BATCHES).mock(return_value=error(400, "invalid_request_error", "x" * 5_000))
    message = caught(lanes.create, [b"{}"], 2).fault.message
    assert len(message) == 500
    assert message.endswith("...")


def test_no_fault_leads_back_to_the_request(lanes, httpx2_mock):
    httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=error(500, "api_error"))
    failure = caught(lanes.call, b'{"prompt":"secret prompt"}', model="m", max_tokens=1)
    assert failure.__cause__ is None
    assert failure.__context__ is None
    assert "secret" not in repr(failure) + str(failure)


REQUEST = httpx2.Request("POST", URL)


def wrapped(cause):
    failure = anthropic.APITimeoutError(REQUEST) if isinstance(cause, httpx2.TimeoutException) else None
    failure = failure or anthropic.APIConnectionError(request=REQUEST)
    failure.__cause__ = cause
    return failure


@pytest.mark.parametrize("wrap", [wrapped, lambda cause: cause], ids=["by the SDK", "raw"])
@pytest.mark.parametrize(
    ("cause", "kind", "sent"),
    [
        (httpx2.ConnectError("refused"), "connection_error", False),
        (httpx2.ConnectTimeout("slow"), "timeout", False),
        (httpx2.PoolTimeout("busy"), "timeout", False),
        (httpx2.ProxyError("403 Forbidden"), "connection_error", False),
        (httpx2.UnsupportedProtocol("ftp"), "connection_error", False),
        (httpx2.ReadTimeout("hung"), "timeout", True),
        (httpx2.WriteTimeout("stuck"), "timeout", True),
        (httpx2.ReadError("reset"), "connection_error", True),
        (httpx2.WriteError("pipe"), "connection_error", True),
        (httpx2.RemoteProtocolError("closed"), "connection_error", True),
        (httpx2.DecodingError("gzip"), "connection_error", True),
        (httpx2.StreamClosed(), "connection_error", True),
    ],
)
def test_transport_errors(wrap, cause, kind, sent):
    failure = translate(wrap(cause))
    assert (failure.fault.status, failure.fault.type, failure.fault.request_sent) == (None, kind, sent)
    assert failure.fault.message.startswith(type(cause).__name__)
    assert not translate(wrap(cause), sent_whole=False).fault.request_sent
    assert is_transient(failure)


def test_errors_of_the_sdk_without_a_cause():
    assert translate(anthropic.APITimeoutError(REQUEST)).fault.type == "timeout"
    assert translate(anthropic.APIConnectionError(request=REQUEST)).fault.type == "connection_error"
    invalid = anthropic.APIResponseValidationError(httpx2.Response(200, request=REQUEST), None)
    assert (translate(invalid).fault.type, translate(invalid).fault.status) == ("malformed_response", 200)


def test_an_error_that_came_before_the_bodys_end_proves_that_nothing_was_created():
    response = httpx2.Response(503, request=REQUEST)
    early = anthropic.InternalServerError("no", response=response, body=None)
    assert translate(early, sent_whole=True).fault.request_sent
    assert rule_create(translate(early, sent_whole=True).fault).outcome is CreateOutcome.UNKNOWN
    assert rule_create(translate(early, sent_whole=False).fault).outcome is CreateOutcome.NOT_CREATED


def test_missing_credentials_are_a_fault_that_sent_nothing(make_lanes, monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    fault = caught(make_lanes(api_key=None).create, [b"{}"], 2).fault
    assert (fault.status, fault.type, fault.request_sent) == (None, "authentication_error", False)
    assert "set ANTHROPIC_API_KEY" in fault.message
    assert "Dispatcher(client=" in fault.message
    assert rule_create(fault).outcome is CreateOutcome.SUSPENDED


def test_other_exceptions_are_not_translated():
    for bug in (KeyError("x"), TypeError("y"), ValueError("z")):
        with pytest.raises(type(bug)):
            translate(bug)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e300"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": "Sun, 22 Nov 2026 19:00:30 GMT"}, None),
        ({"retry-after": "Sun, 22 Nov 2026 19:00:30 GMT", "date": "Sun, 22 Nov 2026 19:00:00 GMT"}, 30),
        ({"retry-after": "Sun, 22 Nov 2026 18:00:30 GMT", "date": "Sun, 22 Nov 2026 19:00:00 GMT"}, 0),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers) == (None if seconds is None else timedelta(seconds=seconds))


def test_server_time_of_odd_dates():
    assert server_time({"date": "yesterday"}) is None
    assert server_time({}) is None
    assert server_time({"date": "Sun, 22 Nov 2026 19:00:00 -0000"}).utcoffset() == timedelta(0)


# tries


def methods(lanes):
    return [
        ("get", f"{BATCHES}/b", ok(BATCH), lambda: lanes.batch("retrieve", "b").id),
        ("post", f"{BATCHES}/b/cancel", ok(BATCH), lambda: lanes.batch("cancel", "b").id),
        ("get", BATCHES, ok({"data": [], "has_more": False}), lambda: lanes.batch("list", limit=100).has_more),
        ("get", f"{BATCHES}/b/results", ok(b"one\n"), lambda: lanes.results("b")[0]),
    ]


@pytest.mark.parametrize("which", range(4))
def test_idempotent_calls_get_a_few_quick_tries(which, lanes, httpx2_mock):
    verb, url, answer, call = methods(lanes)[which]
    route = getattr(httpx2_mock, verb)(url)
    route.side_effect = [error(529, "overloaded_error"), httpx.Response(502, content=b"<html>"), answer]
    call()
    assert route.call_count == 3
    assert all(0 < pause < 5 for pause in lanes.slept)
    assert len(lanes.slept) == 2


@pytest.mark.parametrize("which", range(4))
def test_they_end_after_four_tries(which, lanes, httpx2_mock):
    verb, url, _, call = methods(lanes)[which]
    route = getattr(httpx2_mock, verb)(url).mock(return_value=error(500, "api_error", "again"))
    assert caught(call).fault.message == "again"
    assert route.call_count == 4
    assert lanes.slept == sorted(lanes.slept)
    assert sum(lanes.slept) < 10


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    "answer",
    [
        error(404, "not_found_error"),
        error(401, "authentication_error"),
        error(429, "rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}),
        error(429, "rate_limit_error", **{"retry-after": "60"}),
        httpx.Response(307, headers={"location": "https://evil.test/"}),
    ],
    ids=["404", "401", "cap", "429 for a minute", "redirect"],
)
def test_what_a_quick_try_cannot_mend_is_tried_once(which, answer, lanes, httpx2_mock):
    verb, url, _, call = methods(lanes)[which]
    route = getattr(httpx2_mock, verb)(url).mock(return_value=answer)
    caught(call)
    assert route.call_count == 1
    assert lanes.slept == []


def test_a_short_retry_after_is_honoured(lanes, httpx2_mock):
    route = httpx2_mock.get(f"{BATCHES}/b")
    route.side_effect = [error(429, "rate_limit_error", **{"retry-after": "3"}), ok(BATCH)]
    lanes.batch("retrieve", "b")
    assert lanes.slept == [3.0]


def test_a_malformed_answer_is_asked_for_again(lanes, httpx2_mock):
    route = httpx2_mock.get(f"{BATCHES}/b")
    route.side_effect = [ok(b"<html>"), ok(BATCH)]
    assert lanes.batch("retrieve", "b").id == "msgbatch_1"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 529])
def test_creates_and_messages_are_never_tried_again_here(status, lanes, httpx2_mock):
    create = httpx2_mock.post(BATCHES).mock(return_value=error(status, "x"))
    message = httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=error(status, "x"))
    caught(lanes.create, [b"{}"], 2)
    caught(lanes.call, b"{}", model="m", max_tokens=1)
    caught(lanes.call, b"{}", model="m", max_tokens=64_000)
    assert (create.call_count, message.call_count) == (1, 2)
    assert lanes.slept == []
