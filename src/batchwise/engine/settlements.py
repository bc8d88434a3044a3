"""Makes settlements: of requests with an answer, and of requests without."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from batchwise.ledger.values import Settlement
from batchwise.models import Lane, Outcome, ResultError
from batchwise.planning.continuation import failed, merged
from batchwise.planning.custom_ids import UNSEALED, custom_id

from .money import UNKNOWN, Biller

__all__ = ["settlement_of", "settlement_without_answer"]

_log = logging.getLogger("batchwise")


def settlement_of(
    biller: Biller,
    request: int,
    lane: Lane,
    asked: Sequence[str],
    line: bytes,
    message: Mapping[str, Any],
    turns: Sequence[bytes],
    outcome: Outcome = Outcome.SUCCEEDED,
) -> Settlement:
    """Return the settlement of a request that ends with a message of the API, even a malformed one."""
    try:
        bill, whole = biller.bill(asked, lane, message, turns), merged(turns, line)
    except Exception as error:  # noqa: BLE001  # it is paid for: keep it as it came; its cost is unknown
        _log.warning("batchwise: an answer is kept as it came, without its price (%s)", type(error).__name__)
        bill, whole = UNKNOWN, line
    return Settlement(request, outcome, lane, whole, bill.cost, bill.saved, bill.input_tokens, bill.cached)


def settlement_without_answer(
    request: int,
    key: str,
    outcome: Outcome,
    error: ResultError,
    *,
    lane: Lane,
    nonce: str | None = None,
    attempted: bool = True,
    maybe_billed: bool = False,
    unseen: bool = False,
    status: int | None = None,
    request_id: str | None = None,
) -> Settlement:
    """Return the settlement of a request that has no answer; see `Settlement` for what may have been billed."""
    name = custom_id(key, nonce or UNSEALED, request)
    line = failed(name, outcome, error, status=status, request_id=request_id)
    return Settlement(request, outcome, lane, line, 0, 0, attempted=attempted, maybe_billed=maybe_billed, unseen=unseen)
