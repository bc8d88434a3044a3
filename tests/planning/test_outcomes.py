from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import params

from batchwise.models import Outcome, ResultError
from batchwise.planning.outcomes import (
    CreateOutcome,
    Fault,
    Refusal,
    Ruling,
    Verdict,
    bills_profile,
    culprits,
    lane_wide_error,
    refusal_of,
    rule_answer,
    rule_call,
    rule_create,
    rule_row,
    was_cut,
)

SETTLE, RETRY, CONTINUE, SUSPEND = Verdict.SETTLE, Verdict.RETRY, Verdict.CONTINUE, Verdict.SUSPEND
C = CreateOutcome
LOW_CREDIT = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."
WORKSPACE_CAP = "You have reached your specified workspace API usage limits. You will regain access on 2026-12-01."
DISABLED = "This organization has been disabled."
NOT_JSON = "The request body is not valid JSON: unexpected end of data: line 1 column 9 (char 8)"
CAP = "enforced_spend_limit_reached"
MINUTE = timedelta(minutes=1)

# status, type, message, extras -> the call's verdict, costs an attempt, maybe_billed; the create's outcome
FAULTS: dict[str, tuple[Fault, Verdict, bool, bool, CreateOutcome]] = {
    "400": (Fault(400, "invalid_request_error", "messages: too long"), SETTLE, True, False, C.INVALID),
    "400 low credit": (Fault(400, "invalid_request_error", LOW_CREDIT), SUSPEND, False, False, C.SUSPENDED),
    "400 workspace cap": (Fault(400, "invalid_request_error", WORKSPACE_CAP), SUSPEND, False, False, C.SUSPENDED),
    "400 organisation cap": (
        Fault(400, "invalid_request_error", "You have reached your specified API usage limits."),
        SUSPEND, False, False, C.SUSPENDED,
    ),
    "400 on hold": (
        Fault(400, "invalid_request_error", "disabled", error_code="organization_on_hold"),
        SUSPEND, False, False, C.SUSPENDED,
    ),
    "400 own key off": (
        Fault(400, "invalid_request_error", "key", error_code="cmek_key_disabled"), SUSPEND, False, False, C.SUSPENDED
    ),
    "400 disabled": (Fault(400, "invalid_request_error", DISABLED), SUSPEND, False, False, C.SUSPENDED),
    **{
        f"400 {code}": (Fault(400, "invalid_request_error", "x", error_code=code), SUSPEND, False, False, C.SUSPENDED)
        for code in (
            "workspace_human_review_disabled", "claude_code_key_creator_not_member", "cmek_key_network_blocked",
            "workspace_policy_violation",
        )
    },
    "402 linked": (
        Fault(402, "billing_error", "x", error_code="linked_organization_overdue"), SUSPEND, False, False, C.SUSPENDED
    ),
    "400 not valid JSON": (Fault(400, "invalid_request_error", NOT_JSON), RETRY, True, False, C.NOT_CREATED),
    "400 without a type": (Fault(400, "", "<html>"), SETTLE, True, False, C.INVALID),
    "400 of another type": (Fault(400, "request_too_large", "x"), SETTLE, True, False, C.TOO_LARGE),
    "409 without a type": (Fault(409, "", "x"), RETRY, True, False, C.NOT_CREATED),
    "425": (Fault(425, "", "too early"), RETRY, True, False, C.NOT_CREATED),
    "429 of another type": (
        Fault(429, "api_error", "x", retry_after=MINUTE), RETRY, False, False, C.RATE_LIMITED
    ),
    "500 worded like low credit": (Fault(500, "api_error", LOW_CREDIT), RETRY, True, False, C.UNKNOWN),
    "500 of another type": (Fault(500, "invalid_request_error", "x"), RETRY, True, False, C.UNKNOWN),
    "529 of another type": (Fault(529, "authentication_error", "x"), RETRY, True, False, C.UNKNOWN),
    "401": (Fault(401, "authentication_error", "invalid x-api-key"), SUSPEND, False, False, C.SUSPENDED),
    "402": (Fault(402, "billing_error", "payment overdue"), SUSPEND, False, False, C.SUSPENDED),
    "403": (Fault(403, "permission_error", "not yours"), SUSPEND, True, False, C.SUSPENDED),
    "403 by the edge": (Fault(403, "forbidden", "Request not allowed"), SUSPEND, True, False, C.SUSPENDED),
    "404": (Fault(404, "not_found_error", "model: claude-9"), SETTLE, True, False, C.SUSPENDED),
    "408": (Fault(408, "", "Request Timeout"), RETRY, True, False, C.NOT_CREATED),
    "409": (Fault(409, "conflict_error", "conflict"), RETRY, True, False, C.NOT_CREATED),
    "413": (Fault(413, "request_too_large", "too large"), SETTLE, True, False, C.TOO_LARGE),
    "413 by the edge": (Fault(413, "", "<html>"), SETTLE, True, False, C.TOO_LARGE),
    "422": (Fault(422, "", "unprocessable"), SETTLE, True, False, C.INVALID),
    "429 with retry-after": (
        Fault(429, "rate_limit_error", "slow down", retry_after=MINUTE), RETRY, False, False, C.RATE_LIMITED
    ),
    "429 without": (Fault(429, "rate_limit_error", "slow down"), RETRY, False, False, C.QUEUE_FULL),
    "429 queue": (
        Fault(429, "rate_limit_error", "too many batch requests in the processing queue", retry_after=MINUTE),
        RETRY, False, False, C.QUEUE_FULL,
    ),
    "429 ramp": (
        Fault(429, "rate_limit_error", "ramp", retry_after=MINUTE, error_code="ramp_limit_exceeded"),
        RETRY, False, False, C.RATE_LIMITED,
    ),
    "429 monthly cap": (Fault(429, "rate_limit_error", "cap", error_code=CAP), SUSPEND, False, False, C.SUSPENDED),
    "429 contract cap": (
        Fault(429, "rate_limit_error", "cap", error_code="contract_spend_limit_reached"),
        SUSPEND, False, False, C.SUSPENDED,
    ),
    "418": (Fault(418, "", "teapot"), SETTLE, True, False, C.SUSPENDED),
    "405": (Fault(405, "", "Method Not Allowed"), SETTLE, True, False, C.SUSPENDED),
    "500": (Fault(500, "api_error", "Internal server error"), RETRY, True, False, C.UNKNOWN),
    "501": (Fault(501, "", "not implemented"), RETRY, True, False, C.UNKNOWN),
    "502": (Fault(502, "", "<html>"), RETRY, True, True, C.UNKNOWN),
    "503": (Fault(503, "", "unavailable"), RETRY, True, False, C.UNKNOWN),
    "504": (Fault(504, "timeout_error", "timed out"), RETRY, True, True, C.UNKNOWN),
    "524": (Fault(524, "", "origin timed out"), RETRY, True, True, C.UNKNOWN),
    "529": (Fault(529, "overloaded_error", "Overloaded"), RETRY, True, False, C.UNKNOWN),
    "500 while sending": (Fault(500, "api_error", "x", request_sent=False), RETRY, True, False, C.NOT_CREATED),
    "timeout": (Fault(None, "timeout", "no answer in 600 s"), RETRY, True, True, C.UNKNOWN),
    "connection dropped": (Fault(None, "connection_error", "reset by peer"), RETRY, True, True, C.UNKNOWN),
    "connect failed": (
        Fault(None, "connection_error", "refused", request_sent=False), RETRY, True, False, C.NOT_CREATED
    ),
    "body incomplete": (
        Fault(None, "body_incomplete", "broken pipe", request_sent=False), RETRY, True, False, C.NOT_CREATED
    ),
    "no credentials": (
        Fault(None, "authentication_error", "no key", request_sent=False), SUSPEND, False, False, C.SUSPENDED
    ),
    "200 that is no JSON": (Fault(200, "malformed_answer", "<html>"), RETRY, True, True, C.UNKNOWN),
    "200 that is no message": (Fault(200, "malformed_response", "x"), SETTLE, True, True, C.UNKNOWN),
    "a stream that makes no message": (Fault(None, "malformed_response", "x"), SETTLE, True, True, C.UNKNOWN),
    "302": (Fault(302, "", "elsewhere"), RETRY, True, True, C.UNKNOWN),
    "overloaded inside a stream": (Fault(200, "overloaded_error", "Overloaded"), RETRY, True, True, C.UNKNOWN),
    "refused inside a stream": (Fault(200, "invalid_request_error", "no"), SETTLE, True, True, C.UNKNOWN),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_call(name: str) -> None:
    fault, verdict, costs_attempt, maybe_billed, _ = FAULTS[name]
    ruling = rule_call(fault)
    assert (ruling.verdict, ruling.costs_attempt, ruling.maybe_billed) == (verdict, costs_attempt, maybe_billed)
    assert not ruling.caller_decides
    assert ruling.error is not None
    assert (ruling.error.type, ruling.error.message.partition(";")[0]) == (fault.type, fault.message.partition(";")[0])
    assert ruling.error.retryable == (verdict is not SETTLE or fault.type == "malformed_response")
    check_shape(ruling)


def test_a_402_of_a_user_profile_is_its_requests_own_affair() -> None:
    fault = Fault(402, "billing_error", "this profile's balance is too low")
    theirs = params(billing_policy={"type": "billing_policy", "bill_to": "user_profile"})
    assert bills_profile(orjson.dumps(theirs))
    assert not bills_profile(orjson.dumps(params(billing_policy={"bill_to": "self"})))
    assert not bills_profile(orjson.dumps(params("user_profile")))
    assert (rule_call(fault, bills_profile=True).verdict, rule_call(fault).verdict) == (SETTLE, SUSPEND)
    assert rule_call(Fault(401, "authentication_error", "x"), bills_profile=True).verdict is SUSPEND


def test_a_suspended_lane_says_what_has_to_be_mended() -> None:
    for code, words in {
        "workspace_human_review_disabled": "workspace's settings",
        "claude_code_key_creator_not_member": "API key",
        "cmek_key_network_blocked": "encryption key",
        "linked_organization_overdue": "Anthropic",
        CAP: "credit",
    }.items():
        reason = rule_call(Fault(400, "invalid_request_error", "x", error_code=code)).reason or ""
        assert words in reason, code
        assert reason.endswith("then resume()")


def test_what_a_server_says_cannot_move_a_terminals_cursor() -> None:
    nasty = "\x1b[2J\u202eevil\r\n\ud800"
    fault = Fault(401, nasty, nasty)
    for text in (fault.type, fault.message, rule_call(fault).reason, rule_create(fault).reason):
        assert (text or "").isprintable()
        assert "evil" in (text or "")
    error = rule_row(errored(nasty, nasty)).error
    assert error is not None
    assert (error.type + error.message).isprintable()


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_create(name: str) -> None:
    fault, *_, outcome = FAULTS[name]
    ruling = rule_create(fault)
    assert ruling.outcome is outcome
    assert (ruling.reason is not None) == (outcome is C.SUSPENDED)
    assert (ruling.culprits, ruling.everyone) == ((), False)


def errored(kind: str, message: str = "words", **more: Any) -> dict[str, Any]:
    return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": message, **more}}}


ROWS: dict[str, tuple[dict[str, Any], Verdict, Outcome | None, str | None]] = {
    "answer": (
        {"type": "succeeded", "message": {"stop_reason": "end_turn", "content": []}}, SETTLE, Outcome.SUCCEEDED, None
    ),
    "refusal": (
        {"type": "succeeded", "message": {"stop_reason": "refusal", "content": []}}, SETTLE, Outcome.REFUSED, "refusal"
    ),
    "refusal in the middle of an answer": (
        {"type": "succeeded", "message": {"stop_reason": "refusal", "content": [{"type": "text", "text": "First,"}]}},
        SETTLE, Outcome.REFUSED, "refusal",
    ),
    "cut at max_tokens": (
        {"type": "succeeded", "message": {"stop_reason": "max_tokens", "content": []}}, SETTLE, Outcome.SUCCEEDED, None
    ),
    "client tool": (
        {"type": "succeeded", "message": {"stop_reason": "tool_use", "content": []}}, SETTLE, Outcome.SUCCEEDED, None
    ),
    "pause": (
        {"type": "succeeded", "message": {"stop_reason": "pause_turn", "content": [{"type": "text"}]}},
        CONTINUE, Outcome.SUCCEEDED, None,
    ),
    "pause after compaction": (
        {"type": "succeeded", "message": {"stop_reason": "compaction", "content": [{"type": "compaction"}]}},
        CONTINUE, Outcome.SUCCEEDED, None,
    ),
    "pause with nothing to go on from": (
        {"type": "succeeded", "message": {"stop_reason": "pause_turn", "content": []}}, SETTLE, Outcome.SUCCEEDED, None
    ),
    "answer without message": ({"type": "succeeded"}, SETTLE, Outcome.FAILED, "malformed_response"),
    "answer without content": (
        {"type": "succeeded", "message": {"stop_reason": "end_turn"}}, SETTLE, Outcome.FAILED, "malformed_response"
    ),
    "pause without content": (
        {"type": "succeeded", "message": {"stop_reason": "pause_turn", "content": None}},
        SETTLE, Outcome.FAILED, "malformed_response",
    ),
    "organisation disabled": (errored("invalid_request_error", DISABLED), SUSPEND, None, "invalid_request_error"),
    "review disabled": (
        errored("invalid_request_error", details={"error_code": "workspace_human_review_disabled"}),
        SUSPEND, None, "invalid_request_error",
    ),
    "damaged on the way": (
        errored("invalid_request_error", NOT_JSON), RETRY, Outcome.FAILED, "invalid_request_error"
    ),
    "expired": ({"type": "expired"}, RETRY, Outcome.EXPIRED, "expired"),
    "canceled": ({"type": "canceled"}, RETRY, Outcome.CANCELED, "canceled"),
    "unknown type": ({"type": "deferred"}, SETTLE, Outcome.FAILED, "unknown_result_type"),
    "no type": ({}, SETTLE, Outcome.FAILED, "unknown_result_type"),
    "invalid": (errored("invalid_request_error"), SETTLE, Outcome.FAILED, "invalid_request_error"),
    "too large": (errored("request_too_large"), SETTLE, Outcome.FAILED, "request_too_large"),
    "not found": (errored("not_found_error"), SETTLE, Outcome.FAILED, "not_found_error"),
    "forbidden": (errored("permission_error"), SETTLE, Outcome.FAILED, "permission_error"),
    "revoked": (errored("authentication_error"), SUSPEND, None, "authentication_error"),
    "billing": (errored("billing_error"), SUSPEND, None, "billing_error"),
    "low credit": (errored("invalid_request_error", LOW_CREDIT), SUSPEND, None, "invalid_request_error"),
    "monthly cap": (
        errored("rate_limit_error", "cap", details={"error_code": CAP}), SUSPEND, None, "rate_limit_error"
    ),
    "api": (errored("api_error"), RETRY, Outcome.FAILED, "api_error"),
    "overloaded": (errored("overloaded_error"), RETRY, Outcome.FAILED, "overloaded_error"),
    "timed out": (errored("timeout_error"), RETRY, Outcome.FAILED, "timeout_error"),
    "rate limited": (errored("rate_limit_error"), RETRY, Outcome.FAILED, "rate_limit_error"),
    "unheard of": (errored("gremlin_error"), RETRY, Outcome.FAILED, "gremlin_error"),
    "bare error": (
        {"type": "errored", "error": {"type": "invalid_request_error", "message": "m"}},
        SETTLE, Outcome.FAILED, "invalid_request_error",
    ),
    "error that is a list": (
        {"type": "errored", "error": {"error": ["x"]}}, RETRY, Outcome.FAILED, "unknown_error"
    ),
    "error of odd values": (
        {"type": "errored", "error": {"type": ["x"], "message": 3, "details": 4}},
        RETRY, Outcome.FAILED, "unknown_error",
    ),
    "error of an odd code": (
        errored("api_error", details={"error_code": [1]}), RETRY, Outcome.FAILED, "api_error"
    ),
    "error that is a word": ({"type": "errored", "error": "x"}, RETRY, Outcome.FAILED, "unknown_error"),
    "no error": ({"type": "errored"}, RETRY, Outcome.FAILED, "unknown_error"),
}  # fmt: skip
FORGIVEN = {
    "organisation disabled",
    "review disabled",
    "pause",
    "pause after compaction",
    "canceled",
    "revoked",
    "billing",
    "low credit",
    "monthly cap",
}
MAYBE_BILLED = {"answer without message", "answer without content", "pause without content", "unknown type", "no type"}


@pytest.mark.parametrize("name", ROWS)
def test_a_result_row(name: str) -> None:
    row, verdict, outcome, kind = ROWS[name]
    ruling = rule_row(row)
    assert (ruling.verdict, ruling.outcome) == (verdict, outcome)
    assert (ruling.error.type if ruling.error else None) == kind
    assert ruling.costs_attempt == (name not in FORGIVEN)
    assert ruling.maybe_billed == (name in MAYBE_BILLED)
    assert ruling.caller_decides == (name == "canceled")
    if ruling.error is not None and name not in MAYBE_BILLED:
        assert ruling.error.retryable == (verdict is not SETTLE)
    check_shape(ruling)


def told(stop: object, *content: object) -> dict[str, Any]:
    return {"stop_reason": stop, "content": list(content)}


@pytest.mark.parametrize("stop", ["max_tokens", "model_context_window_exceeded", "pause_turn", "compaction"])
@pytest.mark.parametrize("content", [(), ({"type": "text", "text": "{"},)])
def test_half_an_answer_is_none_where_a_schema_is_asked_for(stop: str, content: tuple[object, ...]) -> None:
    plain, structured = (rule_answer(told(stop, *content), structured=asked) for asked in (False, True))
    assert (plain.outcome, plain.error) == (Outcome.SUCCEEDED, None)
    assert structured.outcome is Outcome.FAILED
    assert structured.error is not None
    assert (structured.error.type, structured.error.retryable) == ("truncated", False)
    assert stop in structured.error.message
    assert (plain.billed, structured.billed) == (True, True)
    goes_on = stop in {"pause_turn", "compaction"} and content
    assert plain.verdict is structured.verdict is (CONTINUE if goes_on else SETTLE)


@pytest.mark.parametrize("stop", ["end_turn", "stop_sequence", "tool_use", "refusal", "unheard of", None, [], {}])
def test_whole_answers_and_refusals_are_the_same_with_and_without_a_schema(stop: object) -> None:
    message = told(stop, {"type": "text", "text": "{}"})
    assert rule_answer(message, structured=True) == rule_answer(message)


def test_a_refusal_says_why_as_far_as_the_api_does() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "It asks for malware."}
    ruling = rule_answer({**told("refusal"), "stop_details": details})
    assert ruling.error is not None
    assert "(cyber: It asks for malware.)" in ruling.error.message
    for odd in (None, 3, [], {}, {"category": 3, "explanation": None}):
        ruling = rule_answer({**told("refusal"), "stop_details": odd})
        assert ruling.error is not None
        assert ruling.error.message == "the model declined to answer; it is billed"


def check_shape(ruling: Ruling) -> None:
    assert ruling.billed <= (ruling.outcome is not None and ruling.verdict in {SETTLE, CONTINUE})
    assert (ruling.reason is not None) == (ruling.verdict is SUSPEND)
    assert (ruling.outcome is None) == (ruling.verdict is SUSPEND)
    assert (ruling.error is None) == (ruling.outcome is Outcome.SUCCEEDED)


def test_the_reason_says_what_happened_and_what_to_do() -> None:
    reason = rule_call(Fault(401, "authentication_error", "invalid x-api-key.")).reason
    assert reason == "authentication_error: invalid x-api-key; check the API key and its workspace, then resume()"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
names = st.sampled_from([
    "succeeded", "errored", "expired", "canceled", "error", "invalid_request_error", "api_error", "pause_turn",
    "authentication_error", "timeout", LOW_CREDIT, "requests.1.params: x", CAP,
])  # fmt: skip
fields = st.sampled_from(["type", "error", "message", "details", "error_code", "stop_reason", "content"])
messy = st.recursive(json_values | names, lambda inner: st.dictionaries(fields, inner, max_size=4), max_leaves=12)
rows = st.dictionaries(st.text(max_size=5) | fields, messy, max_size=5)
faults = st.builds(
    Fault,
    st.none() | st.integers(100, 599) | st.sampled_from([400, 401, 403, 404, 413, 429, 500, 529]),
    names | st.text(max_size=10),
    names | st.text(max_size=30),
    st.none() | st.timedeltas(timedelta(0), timedelta(hours=1)),
    st.none() | st.sampled_from([CAP, "else"]),
    st.booleans(),
)


@given(rows)
def test_any_row_gets_a_ruling(row: dict[str, Any]) -> None:
    ruling = rule_row(row)
    check_shape(ruling)
    assert ruling.verdict is not RETRY or ruling.costs_attempt or ruling.caller_decides  # nothing spins


@given(rows)
def test_a_succeeded_row_always_settles_or_goes_on(row: dict[str, Any]) -> None:
    ruling = rule_row({**row, "type": "succeeded"})
    assert ruling.verdict in {SETTLE, CONTINUE}
    assert (ruling.outcome is Outcome.SUCCEEDED) <= isinstance(row.get("message"), dict)


@given(faults)
def test_any_failed_call_gets_a_ruling(fault: Fault) -> None:
    ruling = rule_call(fault)
    check_shape(ruling)
    if not fault.request_sent or (fault.status is not None and 400 <= fault.status < 500):
        assert not ruling.maybe_billed
    elif fault.status is None or fault.status < 400:
        assert ruling.maybe_billed
    assert ruling.verdict is not RETRY or ruling.costs_attempt or fault.status == 429


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (404, "not_found_error", "not_found_error; check the client's base URL"),
        (418, "teapot_error", "teapot_error; check the client's base URL"),
        (403, "permission_error", "permission_error: 'prompt' is quoted; give the API key access"),
    ],
)
def test_a_create_that_suspends_the_lane_has_the_api_s_words_only_about_the_account(
    status: int, kind: str, told: str
) -> None:
    reason = rule_create(Fault(status, kind, "'prompt' is quoted.")).reason
    assert reason is not None
    assert reason.startswith(told)


@given(faults)
def test_a_create_is_unknown_exactly_when_nothing_is_proved(fault: Fault) -> None:
    proved = not fault.request_sent or (fault.status is not None and 400 <= fault.status < 500)
    ruling = rule_create(fault)
    assert (ruling.outcome is C.UNKNOWN) == (not proved)
    assert (ruling.reason is not None) == (ruling.outcome is C.SUSPENDED)
    assert ruling.outcome is C.INVALID or not (ruling.culprits or ruling.everyone)


@pytest.mark.parametrize(
    ("message", "positions"),
    [
        ("requests.3.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'", (3,)),
        ("requests.0.custom_id: String should have at most 64 characters", (0,)),
        ("requests.12.params.max_tokens: Field required", (12,)),
        ("requests[7].params: no", (7,)),
        ("requests.4: Input should be an object", (4,)),
        ("requests.9", (9,)),
        ("requests.5.params: a; requests.2.custom_id: b, requests.5.custom_id: c", (2, 5)),
        ("requests.8.params: a, requests.1.params: b", (1, 8)),
        ("1 error: requests.99999.params.model: Field required", (99_999,)),
        ("requests: List should have at least 1 item", ()),
        ("requests.1234567.custom_id: no", ()),
        ("requests.3x: no", ()),
        ("params.requests.3.custom_id: no", ()),
        ("custom_id 'requests.3.custom_id' is taken", ()),
        ("", ()),
    ],
)
def test_the_culprits_of_a_refused_create(message: str, positions: tuple[int, ...]) -> None:
    assert culprits(message) == positions
    ruling = rule_create(Fault(400, "invalid_request_error", message))
    assert (ruling.outcome, ruling.culprits, ruling.everyone) == (C.INVALID, positions, False)
    assert not ruling.error.retryable


def test_betas_are_everyones_fault() -> None:
    fault = Fault(400, "invalid_request_error", "Unexpected value(s) `x-2026` for the `anthropic-beta` header.")
    assert rule_create(fault).everyone
    assert not rule_create(Fault(401, "authentication_error", fault.message)).everyone


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("invalid_request_error", LOW_CREDIT),
        ("invalid_request_error", "tools.0: Extra inputs are not permitted"),
        ("authentication_error", "invalid x-api-key"),
        ("billing_error", "overdue"),
        ("permission_error", "no access to this model"),
        ("not_found_error", "File not found: SECRET"),
    ],
)
def test_one_lasting_error_on_all_rows_is_a_stop_sign(kind: str, message: str) -> None:
    reason = lane_wide_error(Counter({(kind, message): 500}), 500)
    assert reason is not None
    assert f"all 500 requests of a batch failed alike: {kind}" in reason
    assert reason.endswith("then resume()")
    assert "base URL" not in reason, "the create got through"
    about_the_account = rule_row(errored(kind, message)).verdict is Verdict.SUSPEND
    assert (message.rstrip(".") in reason) == about_the_account, "other words may quote the request"


@pytest.mark.parametrize(
    ("errors", "total"),
    [
        ({("invalid_request_error", "bad"): 1}, 1),
        ({("invalid_request_error", "bad"): 499}, 500),
        ({("invalid_request_error", "bad"): 499, ("invalid_request_error", "worse"): 1}, 500),
        ({("not_found_error", "model: claude-9"): 500}, 500),  # as a Messages call: each request fails by itself
        ({("overloaded_error", "Overloaded"): 500}, 500),
        ({("api_error", "oops"): 500}, 500),
        ({("rate_limit_error", "slow"): 500}, 500),
        ({("gremlin_error", "?"): 500}, 500),
        ({("expired", "x"): 500}, 500),
        ({("canceled", "x"): 500}, 500),
        ({}, 500),
        ({}, 0),
    ],
)
def test_other_ends_of_a_batch_are_none(errors: dict[tuple[str, str], int], total: int) -> None:
    assert lane_wide_error(errors, total) is None


@given(st.dictionaries(st.tuples(names, names | st.text(max_size=5)), st.integers(1, 5), max_size=3), st.integers(0, 9))
def test_any_batch_gets_an_answer(errors: dict[tuple[str, str], int], total: int) -> None:
    assert (lane_wide_error(errors, total) is None) or list(errors.values()) == [total]


@pytest.mark.parametrize(
    ("fault", "refusal"),
    [
        (Fault(529, "overloaded_error", "Overloaded"), Refusal.OVERLOADED),
        (Fault(529, "api_error", ""), Refusal.OVERLOADED),
        (Fault(200, "overloaded_error", "Overloaded"), Refusal.OVERLOADED),  # an event inside a stream
        (Fault(429, "rate_limit_error", "This request would exceed your rate limit of 50 requests"), Refusal.TOO_FAST),
        (
            Fault(429, "rate_limit_error", "Number of concurrent connections has exceeded your rate limit"),
            Refusal.TOO_MANY_AT_ONCE,
        ),
        (Fault(429, "rate_limit_error", "spent", error_code="enforced_spend_limit_reached"), None),
        (Fault(500, "api_error", "Internal server error"), None),
        (Fault(None, "connection_error", "Overloaded"), None),
        (Fault(400, "invalid_request_error", "concurrent"), None),
    ],
)
def test_refusals_for_load_are_told_apart(fault, refusal):
    assert refusal_of(fault) is refusal


def test_two_rows_that_failed_alike_are_a_stop_sign():
    assert (lane_wide_error({("authentication_error", "invalid x-api-key"): 2}, 2) or "").startswith(
        "all 2 requests of a batch"
    )


def test_a_structured_answer_of_a_batch_that_was_cut_off_fails_and_is_billed():
    row = {"type": "succeeded", "message": {"type": "message", "content": [], "stop_reason": "max_tokens"}}
    assert rule_row(row).outcome is Outcome.SUCCEEDED
    failed = rule_row(row, structured=True)
    assert (failed.outcome, failed.billed) == (Outcome.FAILED, True)
    refused = rule_row({**row, "message": {**row["message"], "stop_reason": "refusal"}})
    assert (refused.outcome, refused.billed) == (Outcome.REFUSED, True)


@pytest.mark.parametrize(
    ("stop", "cut"), [("max_tokens", True), ("model_context_window_exceeded", True), ("end_turn", False)]
)
def test_a_line_tells_whether_its_answer_was_cut_off(stop, cut):
    message = {"content": [{"type": "text", "text": '"stop_reason":"max_tokens"'}], "stop_reason": stop}
    assert was_cut(orjson.dumps({"custom_id": "a", "result": {"type": "succeeded", "message": message}})) is cut
    assert not was_cut(b'{"stop_reason":"max_tokens"}')
    assert not was_cut(b'"stop_reason":"max_tokens"')


@pytest.mark.parametrize("answer", [None, 5, [], {}, {"content": "text"}, {"content": None}])
def test_what_is_no_message_says_so_and_is_not_bought_again(answer: object) -> None:
    error = rule_answer(answer).error
    assert error is not None
    assert (error.type, error.message, error.retryable) == (
        "malformed_response",
        "the API's answer is no message; it may have been billed, so it is not tried again unasked",
        True,
    )


@pytest.mark.parametrize(
    ("status", "kind", "mend"),
    [
        (401, "authentication_error", "check the API key and its workspace, then resume()"),
        (402, "billing_error", "fix the account's credit, billing or spend limit in the Console, then resume()"),
    ],
)
def test_a_suspended_create_says_what_happened_and_what_to_do(status: int, kind: str, mend: str) -> None:
    ruling = rule_create(Fault(status, kind, "some words."))
    assert (ruling.outcome, ruling.reason) == (CreateOutcome.SUSPENDED, f"{kind}: some words; {mend}")
    assert rule_create(Fault(400, "invalid_request_error", "some words.")).reason is None


@pytest.mark.parametrize("words", ["Your Credit Balance Is Too Low", "This ORGANIZATION HAS BEEN DISABLED."])
def test_words_about_the_account_hold_the_lane_however_they_are_written(words: str) -> None:
    assert rule_call(Fault(400, "invalid_request_error", words)).verdict is SUSPEND
    assert rule_call(Fault(400, "invalid_request_error", "unlike them")).verdict is not SUSPEND


def test_an_answer_that_was_cut_off_is_one_unless_a_schema_is_asked_for() -> None:
    cut = {"content": [{"type": "text", "text": "x"}], "stop_reason": "max_tokens"}
    assert rule_answer(cut).outcome is Outcome.SUCCEEDED
    assert rule_answer(cut, structured=True).outcome is Outcome.FAILED


def test_an_expired_row_says_why() -> None:
    error = rule_row({"type": "expired"}).error
    assert error == ResultError("expired", "the batch's window ended before this request's turn", retryable=True)


@pytest.mark.parametrize(
    ("status", "lost"),
    [
        (None, True), (200, True), (399, True), (400, False), (429, False), (499, False), (500, False), (501, False),
        (502, True), (503, False), (504, True), (505, False), (524, True), (529, False), (599, True),
    ],
)  # fmt: skip
def test_a_call_whose_answer_may_be_lost_may_have_been_billed(status: int | None, lost: bool) -> None:
    for sent in (True, False):
        assert rule_call(Fault(status, "api_error", "words", request_sent=sent)).maybe_billed == (lost and sent)
