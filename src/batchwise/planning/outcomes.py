"""The rulings on answers, result rows, API errors and lost connections, in one table.

`rule_answer` decides whether an answer is one. Three functions rule on errors: `rule_row` on a request whose batch row
failed, `rule_call` on a request whose Messages call failed, and `rule_create` on a batch whose create call failed.
Errors have the names of the API's documentation (2026); an error that it does not name has a row of its own, so that
every input gets a ruling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from typing import Any, NamedTuple

import attrs

from batchwise.basics.jsontext import decode
from batchwise.errors import printable
from batchwise.models import Outcome, ResultError

__all__ = [
    "CUTS",
    "MALFORMED",
    "PAUSES",
    "REFUSAL",
    "TRUNCATED",
    "UNAFFORDABLE",
    "CreateOutcome",
    "CreateRuling",
    "Fault",
    "Refusal",
    "Ruling",
    "Verdict",
    "bills_profile",
    "culprits",
    "lane_wide_error",
    "refusal_of",
    "rule_answer",
    "rule_call",
    "rule_create",
    "rule_row",
    "was_cut",
]


MALFORMED = "malformed_response"
"""The error type of an answer that is no message."""
REFUSAL = "refusal"
"""The stop reason, and the error type, of a request that the model declines."""
TRUNCATED = "truncated"
"""The error type of an answer that was cut off although it had to keep to a JSON schema."""
PAUSES = ("pause_turn", "compaction")
"""Stop reasons of a turn that goes on when it is sent back.

`pause_turn`: the API paused a long turn (API documentation, stop reasons). `compaction`: it has summed up the context
before the answer (API documentation, compaction, `pause_after_compaction`; SDK 2.14, `BetaStopReason`).
"""
CUTS = ("max_tokens", "model_context_window_exceeded")
"""Stop reasons of an answer that was cut off (API documentation, stop reasons)."""
_STOP_REASON = b'"stop_reason":'
_CUT_WORDS = tuple(f'{space}"{cut}"'.encode() for cut in CUTS for space in ("", " "))


class Verdict(Enum):
    """What happens to a request."""

    SETTLE = "settle"
    """It settles with the ruling's outcome."""
    RETRY = "retry"
    """It is tried again while attempts are left; else it settles with the ruling's outcome."""
    CONTINUE = "continue"
    """The API paused the turn (`PAUSES`): send it back to continue. If it cannot go on, it settles with the outcome."""
    SUSPEND = "suspend"
    """No work of this lane can succeed now: the lane is suspended, and this request stays queued."""


class CreateOutcome(Enum):
    """The outcome of a create call that did not answer with a batch."""

    NOT_CREATED = "not_created"
    """Proved: nothing was created. The same bytes may be sent again."""
    UNKNOWN = "unknown"
    """Nothing is proved: reconcile before anything is sent again."""
    TOO_LARGE = "too_large"
    """Nothing was created: halve the batch."""
    QUEUE_FULL = "queue_full"
    """Nothing was created: wait until the account's processing queue has room."""
    RATE_LIMITED = "rate_limited"
    """Nothing was created: wait as long as the API says."""
    INVALID = "invalid"
    """Nothing was created: a request makes the call invalid (`culprits`, or one to be found by halving)."""
    SUSPENDED = "suspended"
    """Nothing was created, and nothing will be until a person removes the cause."""


class Refusal(Enum):
    """Why a Messages call was refused for load. Whether it costs an attempt is decided in `retries`."""

    OVERLOADED = "overloaded"
    """The API is overloaded (529, or an `overloaded_error` inside a stream); our rate is not the cause."""
    TOO_FAST = "too_fast"
    """We passed a rate (429)."""
    TOO_MANY_AT_ONCE = "too_many_at_once"
    """Too many of our calls run at once (429)."""


@attrs.frozen
class Fault:
    """One failed API call, as the lanes report it.

    Attributes:
        status: The HTTP status; None: no response came.
        type: The error's type as the API words it, else the lane's word (`connection_error`, `timeout`, ...).
        message: The API's words, or the lane's. Control characters are escaped in both.
        retry_after: What the response asked to wait.
        error_code: The API's `error.details.error_code`.
        request_sent: False where it is proved that the request cannot have arrived whole (connecting failed, or the
            body was not sent to its end).
    """

    status: int | None
    type: str = attrs.field(converter=printable)
    message: str = attrs.field(converter=printable)
    retry_after: timedelta | None = None
    error_code: str | None = None
    request_sent: bool = True

    @property
    def summary(self) -> str:
        """Return what failed, without the API's message: that may quote the request."""
        if self.status is None:  # the lane's words
            return f"{self.type}: {self.message.rstrip('.')}"
        return f"the API answered {self.status} {self.type}"


@attrs.frozen(kw_only=True)
class Ruling:
    """The ruling on the request of a row or a call.

    Attributes:
        verdict: What happens to the request.
        outcome: Its outcome if it settles now: for SETTLE, for CONTINUE when it cannot go on, and for RETRY when no
            attempt is left.
        error: Why there is no answer; None if there is one.
        billed: The API sent a message: its usage gives the cost, and it is kept as it came.
        costs_attempt: Whether this try counts among the request's attempts; False: it is forgiven.
        maybe_billed: The attempt may have been billed although no answer can be used; another one may buy it twice.
        caller_decides: A canceled row: tried again if batchwise canceled to rescue, settled if the caller canceled.
        reason: Why the lane is suspended, and what to do; only for SUSPEND.
    """

    verdict: Verdict
    outcome: Outcome | None = None
    error: ResultError | None = None
    billed: bool = False
    costs_attempt: bool = True
    maybe_billed: bool = False
    caller_decides: bool = False
    reason: str | None = None


@attrs.frozen(kw_only=True)
class CreateRuling:
    """The ruling on a batch whose create failed. A failed create costs its requests no attempt.

    Attributes:
        outcome: What happened to the batch.
        error: The error with which the culprits of an INVALID create settle.
        culprits: Positions in the batch that the API names; empty: it names none.
        everyone: The create is INVALID because of something that all requests share (the betas).
        reason: Why the lane is suspended, and what to do; only for SUSPENDED.
    """

    outcome: CreateOutcome
    error: ResultError
    culprits: tuple[int, ...] = ()
    everyone: bool = False
    reason: str | None = None


class _Rule(NamedTuple):
    row: Verdict
    call: Verdict
    create: CreateOutcome  # once it is proved that nothing was created
    costs_attempt: bool = True  # of a call; a row that is tried again always costs one, so that nothing spins
    fix: str = ""


_SETTLE, _RETRY, _SUSPEND, _CREATE = Verdict.SETTLE, Verdict.RETRY, Verdict.SUSPEND, CreateOutcome
_KEY = "check the API key and its workspace, then resume()"
_MONEY = "fix the account's credit, billing or spend limit in the Console, then resume()"
_ACCESS = "give the API key access, or cancel the request that needs it, then resume()"
_ENDPOINT = "check the client's base URL and its headers, then resume()"
_SHARED = (
    "send one alone on the sync lane to read why, fix what the requests share (model, betas, parameters) or the "
    "account, then resume()"
)
_ORGANISATION = "settle with Anthropic why the organization is refused, then resume()"
_WORKSPACE = "fix the workspace's settings in the Console, or use another workspace's key, then resume()"
_OWN_KEY = "give the API access to the workspace's encryption key again, then resume()"

# error                    a batch's row  a call    a create that made nothing  costs  the fix of a suspended lane
_TABLE: Mapping[str, _Rule] = {
    "invalid_request_error": _Rule(_SETTLE, _SETTLE, _CREATE.INVALID),
    "request_too_large": _Rule(_SETTLE, _SETTLE, _CREATE.TOO_LARGE),
    "not_found_error": _Rule(_SETTLE, _SETTLE, _CREATE.SUSPENDED, fix=_ENDPOINT),
    "authentication_error": _Rule(_SUSPEND, _SUSPEND, _CREATE.SUSPENDED, costs_attempt=False, fix=_KEY),
    # May be the request's own (a file, a model): it costs an attempt, lest one request stop the lane for ever.
    "permission_error": _Rule(_SETTLE, _SUSPEND, _CREATE.SUSPENDED, fix=_ACCESS),
    "billing_error": _Rule(_SUSPEND, _SUSPEND, _CREATE.SUSPENDED, costs_attempt=False, fix=_MONEY),
    "rate_limit_error": _Rule(_RETRY, _RETRY, _CREATE.RATE_LIMITED, costs_attempt=False),
    "conflict_error": _Rule(_RETRY, _RETRY, _CREATE.NOT_CREATED),
    "request_timeout": _Rule(_RETRY, _RETRY, _CREATE.NOT_CREATED),
    "api_error": _Rule(_RETRY, _RETRY, _CREATE.NOT_CREATED),  # and every other 5xx
    "timeout_error": _Rule(_RETRY, _RETRY, _CREATE.NOT_CREATED),
    "overloaded_error": _Rule(_RETRY, _RETRY, _CREATE.NOT_CREATED),  # a call that is refused so: see `call_costs`
    "unknown_4xx": _Rule(_SETTLE, _SETTLE, _CREATE.SUSPENDED, fix=_ENDPOINT),
    "unknown_error": _Rule(_RETRY, _RETRY, _CREATE.NOT_CREATED),  # a connection lost, too
    MALFORMED: _Rule(_SETTLE, _SETTLE, _CREATE.NOT_CREATED),  # an answer, and paid: not bought again
    "damaged_on_the_way": _Rule(_RETRY, _RETRY, _CREATE.NOT_CREATED),
    # Not the request's fault, whatever the type says: `_ACCOUNT_ERRORS` tells them by their codes and words.
    "no_credit": _Rule(_SUSPEND, _SUSPEND, _CREATE.SUSPENDED, costs_attempt=False, fix=_MONEY),
    "organisation_refused": _Rule(_SUSPEND, _SUSPEND, _CREATE.SUSPENDED, costs_attempt=False, fix=_ORGANISATION),
    "workspace_refused": _Rule(_SUSPEND, _SUSPEND, _CREATE.SUSPENDED, costs_attempt=False, fix=_WORKSPACE),
    "key_refused": _Rule(_SUSPEND, _SUSPEND, _CREATE.SUSPENDED, costs_attempt=False, fix=_KEY),
    "own_key_refused": _Rule(_SUSPEND, _SUSPEND, _CREATE.SUSPENDED, costs_attempt=False, fix=_OWN_KEY),
}
_PROFILE = _Rule(_SETTLE, _SETTLE, _CREATE.SUSPENDED)
_BY_STATUS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "request_timeout",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    425: "request_timeout",
    429: "rate_limit_error",
}
_NO_WORDS = "(?!)"
_ACCOUNT_ERRORS: Mapping[str, tuple[str, str]] = {
    # API documentation, errors: the monthly cap of the tier or of a contract. A limit that the user set, and low
    # credit, are told in words alone, as an `invalid_request_error`.
    "no_credit": (
        "enforced_spend_limit_reached|contract_spend_limit_reached",
        "credit balance is too low|reached your specified (?:workspace )?api usage limits",
    ),
    # The code is documented; the words come without a code as a 400 (reported by users).
    "organisation_refused": ("organization_on_hold|linked_organization_.*", "organization has been disabled"),
    # API documentation, error codes: from batches.create, and from every call.
    "workspace_refused": ("workspace_human_review_disabled|workspace_policy_violation", _NO_WORDS),
    # API documentation, error codes: the key's creator has left the organisation's Claude Code members.
    "key_refused": ("claude_code_key_creator_not_member", _NO_WORDS),
    # API documentation, error codes: customer-managed encryption keys.
    "own_key_refused": ("cmek_key_disabled|cmek_key_network_blocked", _NO_WORDS),
}
"""The organisation, its workspace or its key is refused, and no request is to blame: by name the pattern of a whole
`error.details.error_code`, and the pattern of words in the message of one of `_WORDED`."""
_WORDED = frozenset({"invalid_request_error", "rate_limit_error", "permission_error", "billing_error"})
_DAMAGE = re.compile(r"request body is not valid json|could not parse (?:the )?(?:request )?body", re.IGNORECASE)
"""Errors about a body that was valid JSON when it was sent: batchwise encodes every body."""
_QUEUE_WORDS = re.compile(r"\bqueue\b|batch requests", re.IGNORECASE)
_CROWD_WORDS = re.compile(r"\bconcurren", re.IGNORECASE)  # "Number of concurrent connections has exceeded ..."
_NO_MODEL = re.compile(r"model:")  # "model: claude-9"
_BETA_WORDS = re.compile(r"anthropic-beta", re.IGNORECASE)
_CULPRIT = re.compile(r"(?:^|[\s,;])requests(?:\.|\[)([0-9]{1,6})(?=[\].:\s]|$)")
# No answer that could be used, though the request may have been done: gateways time out or lose the origin's answer.
_ANSWERED = frozenset({500, 501, 503, 505, 529})

UNAFFORDABLE = ResultError(
    "spend_limit",
    "an answer to it may have been billed and was not seen, and Policy.max_spend leaves no room to buy it again; raise "
    "max_spend, then job.retry(), or dispatch it anew",
    retryable=True,
)
"""The error of a request that could pass the spend limit if it were tried again."""


def rule_row(result: Mapping[str, Any], *, structured: bool = False) -> Ruling:
    """Return the ruling on a batch's result object (`{"type": "succeeded", "message": ...}`, ...). Never raises.

    Only succeeded rows are billed (API documentation). `structured`: the answer has to keep to a JSON schema.
    """
    match result.get("type"):
        case "succeeded":
            return rule_answer(result.get("message"), structured=structured)
        case "errored":
            fault = _row_fault(result.get("error"))
            rule = _TABLE[_kind(fault)]
            return _ruling(fault, rule.row, rule.fix, costs_attempt=rule.row is not Verdict.SUSPEND)
        case "expired":
            error = ResultError("expired", "the batch's window ended before this request's turn", retryable=True)
            return Ruling(verdict=Verdict.RETRY, outcome=Outcome.EXPIRED, error=error)
        case "canceled":
            error = ResultError("canceled", "the batch was canceled before this request's turn", retryable=True)
            return Ruling(
                verdict=Verdict.RETRY, outcome=Outcome.CANCELED, error=error, costs_attempt=False, caller_decides=True
            )
        case other:
            return _unusable("unknown_result_type", f"the API answered with a result of type {ascii(other)[:80]}")


def rule_call(fault: Fault, *, bills_profile: bool = False) -> Ruling:
    """Return the ruling on the request of a failed Messages call. Never raises.

    Args:
        fault: The failure.
        bills_profile: The request bills a user profile (`billing_policy.bill_to: "user_profile"`): a 402 is that
            profile's affair, and fails this request alone.
    """
    kind, status = _kind(fault), fault.status
    if kind == MALFORMED:
        return _unusable(kind, fault.message)
    rule = _PROFILE if bills_profile and status == 402 else _TABLE[kind]
    lost = status is None or status < 400 or (status >= 500 and status not in _ANSWERED)
    maybe_billed = fault.request_sent and lost
    return _ruling(fault, rule.call, rule.fix, costs_attempt=rule.costs_attempt, maybe_billed=maybe_billed)


def refusal_of(fault: Fault) -> Refusal | None:
    """Return why the API refused a Messages call for load; None: it did not, or a later call would fail, too."""
    kind = _kind(fault)
    if fault.status == 529 or fault.type == "overloaded_error":
        return Refusal.OVERLOADED if _TABLE[kind].call is Verdict.RETRY else None
    if kind != "rate_limit_error":
        return None
    return Refusal.TOO_MANY_AT_ONCE if _CROWD_WORDS.search(fault.message) else Refusal.TOO_FAST


def bills_profile(body: bytes) -> bool:
    """Whether a request bills a user profile, not the organisation; `body` is its encoded params."""
    if b"user_profile" not in body:
        return False
    policy = decode(body).get("billing_policy")
    return isinstance(policy, Mapping) and policy.get("bill_to") == "user_profile"


def rule_create(fault: Fault) -> CreateRuling:
    """Return the ruling on the batch of a failed create. Never raises.

    A 4xx and a body that was not sent whole prove that nothing was created. A timeout, a 5xx, a dropped connection
    and an answer that cannot be read prove nothing.
    """
    rule = _TABLE[_kind(fault)]
    proved = not fault.request_sent or (fault.status is not None and 400 <= fault.status < 500)
    outcome = rule.create if proved else CreateOutcome.UNKNOWN
    if outcome is CreateOutcome.RATE_LIMITED and (fault.retry_after is None or _QUEUE_WORDS.search(fault.message)):
        outcome = CreateOutcome.QUEUE_FULL  # a rate limit always names a time to wait
    invalid = outcome is CreateOutcome.INVALID
    error = ResultError(fault.type, fault.message, retryable=rule.row is not Verdict.SETTLE)
    return CreateRuling(
        outcome=outcome,
        error=error,
        culprits=culprits(fault.message) if invalid else (),
        everyone=invalid and _BETA_WORDS.search(fault.message) is not None,
        reason=_reason(error, rule.fix, rule.call) if outcome is CreateOutcome.SUSPENDED else None,
    )


def lane_wide_error(errors: Mapping[tuple[str, str], int], rows: int) -> str | None:
    """Return why the lane must be suspended after a batch: all its rows have the same lasting error; else None.

    A model that does not exist is a fault of each request, as it is of a Messages call, and no such error.

    Args:
        errors: Rows without an answer by (error type, message).
        rows: All rows of the batch.

    Returns:
        The reason, and what to do; None for a batch of one row, mixed outcomes, and transient errors.
    """
    if rows < 2 or len(errors) != 1:
        return None
    (((kind, message), count),) = errors.items()
    known = _kind(Fault(None, kind, message))
    rule = _TABLE[known]
    if count != rows or rule.row is Verdict.RETRY or (known == "not_found_error" and _NO_MODEL.match(message)):
        return None
    error = ResultError(kind, message, retryable=True)
    fix = _SHARED if rule.fix in ("", _ENDPOINT) else rule.fix  # the create got through: the endpoint is right
    return f"all {rows} requests of a batch failed alike: {_reason(error, fix, rule.row)}"


def culprits(message: str) -> tuple[int, ...]:
    """Return the positions that a refused create names (`requests.3.custom_id: ...`), ascending; empty: none."""
    return tuple(sorted({int(position) for position in _CULPRIT.findall(message)}))


def rule_answer(message: object, *, structured: bool = False) -> Ruling:
    """Return the ruling on the body of a 200, or on the message of a succeeded row. Never raises.

    A message is an object with a list of `content`. A refusal is billed, and is no answer. An answer that was cut off
    counts, unless it had to keep to a JSON schema (`structured`): half of that is of no use. Any other body is kept as
    it came, and is not bought again unless the caller asks.
    """
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(content, list):
        return _unusable(MALFORMED, "the API's answer is no message")
    stop = message.get("stop_reason")
    if stop == REFUSAL:
        return Ruling(verdict=Verdict.SETTLE, outcome=Outcome.REFUSED, error=_refused(message), billed=True)
    paused = stop in PAUSES and content
    verdict = Verdict.CONTINUE if paused else Verdict.SETTLE
    if structured and (stop in PAUSES or stop in CUTS):
        error = ResultError(TRUNCATED, _CUT.format(stop), retryable=False)
        return Ruling(verdict=verdict, outcome=Outcome.FAILED, error=error, billed=True, costs_attempt=not paused)
    return Ruling(verdict=verdict, outcome=Outcome.SUCCEEDED, billed=True, costs_attempt=not paused)


_CUT = (
    "the answer was cut off (stop_reason {}), so it does not keep to its JSON schema; allow more max_tokens, or ask "
    "for less. It is billed"
)


def _refused(message: Mapping[str, Any]) -> ResultError:
    """Return the error of a refusal, with the API's reason if it names one (`stop_details`)."""
    details = message.get("stop_details")
    told = [details.get(name) for name in ("category", "explanation")] if isinstance(details, Mapping) else []
    words = ": ".join(each for each in told if isinstance(each, str) and each)
    return ResultError(REFUSAL, f"the model declined to answer{words and f' ({words})'}; it is billed", retryable=False)


def _unusable(kind: str, message: str) -> Ruling:
    error = ResultError(kind, f"{message}; it may have been billed, so it is not tried again unasked", retryable=True)
    return Ruling(verdict=Verdict.SETTLE, outcome=Outcome.FAILED, error=error, maybe_billed=True)


def _row_fault(error: object) -> Fault:
    """Return an errored row's error, which lies inside an error response, or is bare."""
    inner = error.get("error", error) if isinstance(error, Mapping) else None
    inner = inner if isinstance(inner, Mapping) else {}
    details = inner.get("details")
    code = details.get("error_code") if isinstance(details, Mapping) else None
    kind, message = inner.get("type"), inner.get("message")
    return Fault(
        None,
        kind if isinstance(kind, str) and kind else "unknown_error",
        message if isinstance(message, str) else "the API gave no reason",
        error_code=code if isinstance(code, str) else None,
    )


def _kind(fault: Fault) -> str:
    """Return the fault's name in the table."""
    status = fault.status
    if status is None or status < 400:  # a row, a lost connection, or an error event inside a stream
        kind = fault.type if fault.type in _TABLE else "unknown_error"
    elif status >= 500:
        kind = "api_error"
    elif status in _BY_STATUS and not (status == 400 and fault.type in _TABLE):
        kind = _BY_STATUS[status]
    else:
        kind = fault.type if fault.type in _TABLE else "unknown_4xx"
    for name, (codes, words) in _ACCOUNT_ERRORS.items():
        if (fault.error_code is not None and re.fullmatch(codes, fault.error_code)) or (
            kind in _WORDED and re.search(words, fault.message, re.IGNORECASE)
        ):
            return name
    return "damaged_on_the_way" if kind == "invalid_request_error" and _DAMAGE.search(fault.message) else kind


def _ruling(fault: Fault, verdict: Verdict, fix: str, *, costs_attempt: bool, maybe_billed: bool = False) -> Ruling:
    error = ResultError(fault.type, fault.message, retryable=verdict is not Verdict.SETTLE)
    suspended = verdict is Verdict.SUSPEND
    return Ruling(
        verdict=verdict,
        outcome=None if suspended else Outcome.FAILED,
        error=error,
        costs_attempt=costs_attempt,
        maybe_billed=maybe_billed,
        reason=_reason(error, fix, verdict) if suspended else None,
    )


def _reason(error: ResultError, fix: str, verdict: Verdict) -> str:
    """Return why a lane is suspended, and what to do.

    It quotes the API only for errors of the account: the API checks key, access and credit before it reads the request.
    The messages of other errors may quote the request.
    """
    words = f": {error.message.rstrip('.')}" if verdict is Verdict.SUSPEND else ""
    return f"{error.type}{words}; {fix}"


def was_cut(line: bytes) -> bool:
    """Whether a result line has a message that was cut off, whatever its request's outcome.

    The API writes the stop reason after the content, so this looks at the last one. Quick, for each line of a batch.
    """
    if not line.startswith(_CUT_WORDS, line.rfind(_STOP_REASON) + len(_STOP_REASON)):
        return False
    try:
        return decode(line)["result"]["message"]["stop_reason"] in CUTS
    except (ValueError, KeyError, TypeError):
        return False
