"""`Result`: one request's recorded outcome. The stored line is decoded when somebody looks, not before."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import orjson

from .errors import RequestFailedError, shown
from .ledger.values import ResultRow
from .models import Lane, Outcome, ResultError
from .planning.custom_ids import UNSEALED, custom_id
from .planning.outcomes import rule_row
from .planning.pricing import to_usd
from .planning.turns import usage_of

if TYPE_CHECKING:
    from anthropic.types import Message, Usage
    from anthropic.types.beta import BetaMessage

__all__ = ["Result", "ToolCall"]


@attrs.frozen
class ToolCall:
    """One client tool that the model asked for.

    Attributes:
        id: The `tool_use` block's id.
        name: The tool.
        input: Its arguments.
    """

    id: str
    name: str
    input: Mapping[str, Any]


class Result:
    """How one request ended. Made by batchwise, never by hand.

    `text`, `message` and `tool_calls` of a request that did not succeed raise `RequestFailedError`: a gate never
    passes on an empty answer. `repr` shows no content.
    """

    __slots__ = ("_memo", "_row")

    def __init__(self, row: ResultRow) -> None:
        self._row = row
        self._memo: tuple[Mapping[str, Any], Message | BetaMessage | None] | None = None

    @property
    def key(self) -> str:
        """The caller's key."""
        return self._row.key

    @property
    def job(self) -> str | None:
        """The job's name; None in the shared scope."""
        return self._row.how.job

    @property
    def custom_id(self) -> str:
        """The id under which its last attempt went; of an adopted batch's row the one that its maker gave it."""
        if self._row.how.adopted:
            return str(orjson.loads(self._row.line)["custom_id"])
        return custom_id(self._row.key, self._row.how.nonce or UNSEALED, self._row.request)

    @property
    def outcome(self) -> Outcome:
        """How it ended."""
        return self._row.how.outcome

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self._row.how.outcome is Outcome.SUCCEEDED

    @property
    def lane(self) -> Lane:
        """The lane on which it ended."""
        return self._row.how.lane

    @property
    def attempts(self) -> int:
        """How many attempts it took, over both lanes."""
        return self._row.how.attempts

    @property
    def deadline(self) -> datetime | None:
        """When it was due (UTC)."""
        return self._row.how.deadline

    @property
    def settled_at(self) -> datetime:
        """When its outcome was recorded (UTC)."""
        return self._row.how.settled_at

    @property
    def met_deadline(self) -> bool | None:
        """Whether an answer came in time; None without a deadline, and where it was cancelled."""
        return self._row.how.met

    @property
    def cursor(self) -> int:
        """Its place in the order of settling, for `results(after=...)`."""
        return self._row.cursor

    @property
    def raw(self) -> bytes:
        """The result as a JSON line in the shape of a batch result, whatever the lane."""
        return self._row.line

    @property
    def cost(self) -> Decimal | None:
        """USD that all its attempts cost; None: the model's price is unknown."""
        return None if self._row.cost is None else to_usd(self._row.cost)

    @property
    def saved(self) -> Decimal | None:
        """USD that the sync lane would have cost beyond that; None: the model's price is unknown."""
        return None if self._row.saved is None else to_usd(self._row.saved)

    @property
    def _decoded(self) -> Mapping[str, Any]:
        if self._memo is None:
            self._memo = orjson.loads(self._row.line)["result"], None
        return self._memo[0]

    def _answer(self) -> dict[str, Any]:
        if not self.ok:
            raise self._failure()
        message: dict[str, Any] = self._decoded["message"]
        return message

    def _failure(self) -> RequestFailedError:
        error = self.error
        if error is None:
            raise AssertionError(self.outcome)
        return RequestFailedError(
            f"request {shown(self.key)} has no answer: {self.outcome.value}, {error.type}: {shown(error.message, 500)}",
            error_type=error.type,
        )

    @property
    def error(self) -> ResultError | None:
        """Why there is no answer; None when there is one."""
        if self.ok:
            return None
        own = self._decoded.get("error")
        if isinstance(own, Mapping) and ("retryable" in own or self._decoded["type"] == "canceled"):  # our own words
            return ResultError(str(own["type"]), str(own["message"]), bool(own.get("retryable", True)))
        error = rule_row(self._decoded).error
        return error or ResultError("unknown_error", "the API gave no reason", retryable=True)

    @property
    def text(self) -> str:
        """The answer's text blocks, joined.

        Raises:
            RequestFailedError: There is no answer.
        """
        content = self._answer().get("content") or ()
        return "".join([block["text"] for block in content if block.get("type") == "text"])

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The client tools that the answer asks for.

        Raises:
            RequestFailedError: There is no answer.
        """
        return tuple(
            ToolCall(block["id"], block["name"], block["input"])
            for block in self._answer()["content"]
            if block.get("type") == "tool_use"
        )

    @property
    def message(self) -> Message | BetaMessage:
        """The answer as the SDK's type; the beta one where betas were asked for. Built on first access.

        Raises:
            RequestFailedError: There is no answer.
        """
        answer = self._answer()
        if self._memo is not None and self._memo[1] is not None:
            return self._memo[1]
        made: Message | BetaMessage
        if self._row.how.betas:
            from anthropic.types.beta import BetaMessage

            made = BetaMessage.construct(**answer)
        else:
            from anthropic.types import Message

            made = Message.construct(**answer)
        self._memo = self._decoded, made
        return made

    @property
    def usage(self) -> Usage | None:
        """The tokens that the answer took, over all parts of its turn; None when there is no answer."""
        if not self.ok:
            return None
        from anthropic.types import Usage

        return Usage.construct(**usage_of(self._answer()))

    def unwrap(self) -> Message | BetaMessage:
        """The message, or the failure raised.

        Raises:
            RequestFailedError: There is no answer.
        """
        return self.message

    def __reduce__(self) -> tuple[type[Result], tuple[ResultRow]]:
        return type(self), (self._row,)

    def __repr__(self) -> str:
        return f"Result(key={shown(self.key)}, outcome={self.outcome.value}, lane={self.lane.value})"
