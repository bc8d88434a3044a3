"""Checks what the API checks, and refuses it in the API's words."""

from __future__ import annotations

import functools
import gc
import re
from collections.abc import Mapping
from typing import Any

import orjson

from . import types
from .cache import misordered
from .errors import invalid

BATCH_BYTES = 256_000_000
MESSAGE_BYTES = 32_000_000
BATCH_ROWS = 100_000
LONG_OUTPUT_BETA = "output-300k-2026-03-24"
LONG_OUTPUT = 300_000

_ROLES = frozenset(("user", "assistant", "system"))
_custom_id = re.compile(r"[a-zA-Z0-9_-]{1,64}").fullmatch

_BETA = {"speed", "store", "previous_thread_event_id", "cache_hint", "context_hint", "research_preview_2026_02"}
REFUSED_IN_BATCH = frozenset(_BETA | {"thread", "fallbacks"})
_UNTYPED = frozenset(_BETA | {"stream", "temperature", "top_p", "top_k"})
"""Parameters that the API takes and the SDK's types do not name, or not in every version."""
_MOST = {"temperature": 1, "top_p": 1, "top_k": 500}
_PLAIN = frozenset(("model", "max_tokens", "messages", "stream"))

# longest matching prefix wins; whatever matches none has the default
_OUTPUT_LIMITS = {
    "claude-3-haiku": 4_096,
    "claude-3-opus": 4_096,
    "claude-3-5": 8_192,
    "claude-3-7": 64_000,
    "claude-opus-4-0": 32_000,
    "claude-opus-4-1": 32_000,
    "claude-opus-4-2025": 32_000,
    "claude-opus-4-5": 64_000,
    "claude-sonnet-4-0": 64_000,
    "claude-sonnet-4-2025": 64_000,
    "claude-sonnet-4-5": 64_000,
    "claude-haiku-4-5": 64_000,
}
DEFAULT_OUTPUT_LIMIT = 128_000


@functools.lru_cache
def output_limit(model: str) -> int:
    """Return the most output tokens that a model gives."""
    fitting = [prefix for prefix in _OUTPUT_LIMITS if model.startswith(prefix)]
    return _OUTPUT_LIMITS[max(fitting, key=len)] if fitting else DEFAULT_OUTPUT_LIMIT


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        ApiError: 400, the body is no JSON object.
    """
    collecting = gc.isenabled()
    gc.disable()  # a big body makes a million containers, none of them garbage; loads holds the GIL throughout
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"The request body is not valid JSON: {error}") from None
    finally:
        if collecting:
            gc.enable()
    if not isinstance(value, dict):
        raise invalid("Input should be an object")
    return value


def check_create(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a batch create. They are checked as far as the API checks them before it accepts a batch.

    Raises:
        ApiError: 400 for the whole create; it names the row that is wrong.
    """
    rows = body.get("requests")
    if rows is None:
        raise invalid("requests: Field required")
    if not isinstance(rows, list):
        raise invalid("requests: Input should be a valid list")
    if not rows:
        raise invalid("requests: List should have at least 1 item after validation, not 0")
    if len(rows) > BATCH_ROWS:
        raise invalid(f"requests: List should have at most {BATCH_ROWS} items after validation, not {len(rows)}")
    seen: set[str] = set()
    for index, row in enumerate(rows):
        _check_row(index, row)
        custom_id = row["custom_id"]
        if custom_id in seen:
            raise invalid(f"requests.{index}.custom_id: custom_id must be unique; {custom_id!r} is used more than once")
        seen.add(custom_id)
    return rows


def _check_row(index: int, row: Any) -> None:
    try:
        if len(row) == 2 and _custom_id(row["custom_id"]) and type(row["params"]) is dict:
            return
    except (KeyError, TypeError):
        pass
    where = f"requests.{index}"
    if not isinstance(row, dict):
        raise invalid(f"{where}: Input should be an object")
    for name in ("custom_id", "params"):
        if name not in row:
            raise invalid(f"{where}.{name}: Field required")
    custom_id = row["custom_id"]
    if not isinstance(custom_id, str):
        raise invalid(f"{where}.custom_id: Input should be a valid string")
    if len(custom_id) > 64:
        raise invalid(f"{where}.custom_id: String should have at most 64 characters")
    if not _custom_id(custom_id):
        raise invalid(f"{where}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
    if not isinstance(row["params"], dict):
        raise invalid(f"{where}.params: Input should be an object")
    extra = next(name for name in row if name not in ("custom_id", "params"))
    raise invalid(f"{where}.{extra}: Extra inputs are not permitted")


def check_params(params: Mapping[str, Any], *, batch: bool = False, limit: int | None, betas: frozenset[str]) -> None:
    """Refuse a request whose params are wrong.

    Args:
        params: the body of a Messages call, or a row's params.
        batch: whether it is a row of a batch, where some parameters are refused.
        limit: the output limit that overrides the model's own, or None.
        betas: the `anthropic-beta` values of the call.

    Raises:
        ApiError: 400 `invalid_request_error`.
    """
    if wrong := _params_error(params, batch=batch, limit=limit, betas=betas):
        raise invalid(wrong)


def _params_error(params: Mapping[str, Any], *, batch: bool, limit: int | None, betas: frozenset[str]) -> str | None:
    """Return what is wrong with the params of one request; None: nothing."""
    model = params.get("model")
    if not isinstance(model, str) or not model:
        return "model: Field required" if model is None else "model: Input should be a valid string"
    max_tokens = params.get("max_tokens")
    if type(max_tokens) is not int:
        return "max_tokens: Field required" if max_tokens is None else "max_tokens: Input should be a valid integer"
    messages = params.get("messages")
    if not isinstance(messages, list):
        return "messages: Field required" if messages is None else "messages: Input should be a valid list"
    if not messages:
        return "messages: at least one message is required"
    plain = params.keys() <= _PLAIN
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            return f"messages.{index}.role: Input should be 'user' or 'assistant'"
        content = message.get("content")
        if not isinstance(content, (str, list)):
            return f"messages.{index}.content: Field required"
        plain = plain and type(content) is str
    if batch and (refused := _refused_in_batch(params)):
        return refused
    if not plain and (wrong := _parameter_error(params, beta=bool(betas))):
        return wrong
    if not plain and misordered(params):
        return "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block"
    return _output_error(model, max_tokens, batch=batch, limit=limit, betas=betas)


def _parameter_error(params: Mapping[str, Any], *, beta: bool) -> str | None:
    """Return what is wrong with parameters beside the plain ones: unknown, out of range, or of a wrong type."""
    known = types.names(beta=beta)
    for name in params:
        if name not in known and name not in _UNTYPED:
            return f"{name}: Extra inputs are not permitted"
    for name, most in _MOST.items():
        value = params.get(name)
        if value is None:
            continue
        if type(value) not in {int, float}:
            return f"{name}: Input should be a valid number"
        if not 0 <= value <= most:
            return f"{name}: range: 0..{most}"
    return types.type_error(params, beta=beta)


def _refused_in_batch(params: Mapping[str, Any]) -> str | None:
    if params.get("stream"):
        return "stream: streaming is not supported in batches"
    if not REFUSED_IN_BATCH.isdisjoint(params):
        name = next(name for name in params if name in REFUSED_IN_BATCH)
        return f"{name}: not supported in batches"
    billing = params.get("billing_policy")
    if isinstance(billing, dict) and billing.get("bill_to") == "user_profile":
        return "billing_policy.bill_to: user_profile is not supported in batches"
    if params["max_tokens"] == 0:
        return "max_tokens: 0 is not supported in batches"
    return None


def _output_error(model: str, max_tokens: int, *, batch: bool, limit: int | None, betas: frozenset[str]) -> str | None:
    if max_tokens < 0:
        return "max_tokens: Input should be greater than or equal to 0"
    most = output_limit(model) if limit is None else limit
    if batch and LONG_OUTPUT_BETA in betas:
        most = max(most, LONG_OUTPUT)
    if max_tokens > most:
        return f"max_tokens: {max_tokens} > {most}, which is the maximum allowed number of output tokens for {model}"
    return None
