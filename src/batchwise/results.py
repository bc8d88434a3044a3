"""`Result`: the recorded outcome of one request. The stored line is decoded only when a field of it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from .basics.jsontext import decode, one_line
from .errors import RequestFailedError, printable, request_named, shown
from .ledger.values import ResultRow
from .models import Lane, Outcome, ResultError
from .planning.continuation import usage_of
from .planning.custom_ids import UNSEALED, custom_id
from .planning.outcomes import CUTS, MALFORMED, rule_row
from .planning.pricing import to_usd

if TYPE_CHECKING:
    from anthropic.types import Message, Usage
    from anthropic.types.beta import BetaMessage

    from .ledger.ledger import Ledger

__all__ = ["Result", "ToolCall", "as_settled"]

T = TypeVar("T")


@attrs.frozen
class ToolCall:
    """One call of a client tool that the model asks for.

    Attributes:
        id: The id of the `tool_use` block.
        name: The name of the tool.
        input: The arguments of the call.
    """

    id: str
    name: str
    input: Mapping[str, Any]


class Result:
    """How one request ended. batchwise makes it; you never do.

    `text`, `message`, `tool_calls`, `parse` and `unwrap` raise `RequestFailedError` if the request did not succeed, so
    that a check never passes because of an empty answer. `repr` shows no content.
    """

    __slots__ = ("_memo", "_row")

    def __init__(self, row: ResultRow) -> None:
        self._row = row
        self._memo: tuple[Mapping[str, Any], Message | BetaMessage | None] | None = None

    @property
    def key(self) -> str:
        """The key of the request: the caller's, or a generated one."""
        return self._row.key

    @property
    def job(self) -> str | None:
        """The name of the job. None: the request belongs to no job."""
        return self._row.how.job

    @property
    def index(self) -> int | None:
        """The place of the request in its job, from 0, in the order of acceptance. None: it belongs to no job."""
        return self._row.ordinal

    @property
    def custom_id(self) -> str:
        """The custom_id of the last attempt. For a row of an adopted batch, the custom_id that it was made with."""
        if self._row.how.adopted:
            return str(decode(self._row.line)["custom_id"])
        return custom_id(self._row.key, self._row.how.nonce or UNSEALED, self._row.request)

    @property
    def outcome(self) -> Outcome:
        """How the request ended."""
        return self._row.how.outcome

    @property
    def ok(self) -> bool:
        """Whether the request succeeded, so that there is an answer."""
        return self._row.how.outcome is Outcome.SUCCEEDED

    @property
    def lane(self) -> Lane:
        """The lane on which the request ended."""
        return self._row.how.lane

    @property
    def attempts(self) -> int:
        """How many attempts were made, on both lanes together."""
        return self._row.how.attempts

    @property
    def deadline(self) -> datetime | None:
        """When the request was due (UTC). None: it had no deadline."""
        return self._row.how.deadline

    @property
    def settled_at(self) -> datetime:
        """When the outcome was recorded (UTC)."""
        return self._row.how.settled_at

    @property
    def met_deadline(self) -> bool | None:
        """Whether an answer came in time. None: the request had no deadline, or was cancelled."""
        return self._row.how.met

    @property
    def cursor(self) -> int:
        """The place of the result in the order of settling, for `Dispatcher.results(after=...)`."""
        return self._row.cursor

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the request: who or what it is billed to."""
        return dict(self._row.how.labels)

    @property
    def raw(self) -> bytes:
        """The result as one line of JSON, in the shape of a line of a batch's results, whichever lane it came from."""
        return one_line(self._row.line)

    @property
    def cost(self) -> Decimal | None:
        """What all attempts cost, in USD. None: the price of the model is unknown."""
        return None if self._row.cost is None else to_usd(self._row.cost)

    @property
    def saved(self) -> Decimal | None:
        """How much more the sync lane would have cost, in USD. None: the price of the model is unknown."""
        return None if self._row.saved is None else to_usd(self._row.saved)

    @property
    def cache_saved(self) -> Decimal | None:
        """What the prompt cache saved, in USD, compared with the same input uncached. None: the price is unknown.

        It is negative if more was spent on writing to the cache than reading from it saved.
        """
        return None if self._row.cost is None else to_usd(self._row.cache_saved)

    @property
    def cache_read_tokens(self) -> int:
        """Input tokens that were read from the prompt cache. 0 also if no message came."""
        return self._counted("cache_read_input_tokens")

    @property
    def cache_written_tokens(self) -> int:
        """Input tokens that were written to the prompt cache. 0 also if no message came."""
        return self._counted("cache_creation_input_tokens")

    def _counted(self, name: str) -> int:
        return _plain(usage_of(self._message).get(name), int) or 0

    @property
    def _decoded(self) -> Mapping[str, Any]:
        if self._memo is None:
            self._memo = decode(self._row.line)["result"], None
        return self._memo[0]

    @property
    def _message(self) -> Mapping[str, Any]:
        """The API's message, whatever the outcome. Empty: none came."""
        message = self._decoded.get("message")
        return message if isinstance(message, dict) else {}

    def _answer(self) -> dict[str, Any]:
        if not self.ok:
            raise self._failure()
        message = self._decoded.get("message")
        if not isinstance(message, dict):
            raise self._unreadable("no message")
        return message

    def _failure(self) -> RequestFailedError:
        error = self.error
        if error is None:
            raise AssertionError(self.outcome)
        return RequestFailedError(
            f"{request_named(self.key)} has no answer: {self.outcome.value}, {error.type}: {shown(error.message, 500)}",
            error_type=error.type,
        )

    @property
    def error(self) -> ResultError | None:
        """Why there is no answer. None: there is one."""
        if self.ok:
            return None
        own, canceled = self._decoded.get("error"), self._decoded.get("type") == "canceled"
        if isinstance(own, dict) and (canceled or isinstance(own.get("retryable"), bool)):  # batchwise's own error
            return ResultError(str(own.get("type")), str(own.get("message")), bool(own.get("retryable", True)))
        # A message of a failed request that is not a refusal: it was cut off, and a JSON schema was asked for.
        error = rule_row(self._decoded, structured=True).error
        return error or ResultError("unknown_error", "the API gave no reason", retryable=True)

    def _content(self) -> Sequence[Any]:
        content = self._answer().get("content")
        return content if isinstance(content, list) else ()

    def _blocks(self, kind: str) -> list[Mapping[str, Any]]:
        """The answer's content blocks of one type; everything else in the content is skipped."""
        return [block for block in self._content() if isinstance(block, dict) and block.get("type") == kind]

    def _unreadable(self, what: str) -> RequestFailedError:
        return RequestFailedError(
            f"the answer to {request_named(self.key)} has {what}; Result.raw holds it as it came",
            error_type=MALFORMED,
        )

    @property
    def text(self) -> str:
        """The text of the answer: its text blocks, joined.

        Raises:
            RequestFailedError: There is no answer, or one of its text blocks has no text.
        """
        try:
            return "".join([block["text"] for block in self._blocks("text")])
        except (KeyError, TypeError):
            raise self._unreadable("a text block without text") from None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of client tools that the answer asks for.

        Raises:
            RequestFailedError: There is no answer, or one of the calls has no id, no name, or no input.
        """
        calls = [(block.get("id"), block.get("name"), block.get("input")) for block in self._blocks("tool_use")]
        if not all(all(map(isinstance, call, (str, str, dict))) for call in calls):
            raise self._unreadable("a tool_use block without an id, a name, or an input")
        return tuple(ToolCall(*call) for call in calls)  # type: ignore[arg-type]  # checked just now

    @property
    def message(self) -> Message:
        """The answer as the SDK's `Message`. It is made on first access.

        If the request asked for betas, it is a `BetaMessage`, which has all fields of a `Message` and more. As in the
        SDK, the answer's fields are not checked against their types.

        Raises:
            RequestFailedError: There is no answer, or the SDK cannot make a message of it.
        """
        answer = self._answer()
        if self._memo is None or self._memo[1] is None:
            if self._row.how.betas:
                from anthropic.types.beta import BetaMessage as Type
            else:
                from anthropic.types import Message as Type  # type: ignore[assignment]
            self._memo = self._decoded, self._made(Type, answer)
        made: Message = self._memo[1]  # type: ignore[assignment]  # made just now
        return made

    @property
    def stop_reason(self) -> str | None:
        """Why the API's message stopped (`end_turn`, `refusal`, ...). None: no message came, or it does not say."""
        stop = self._message.get("stop_reason")
        return stop if isinstance(stop, str) else None

    @property
    def truncated(self) -> bool:
        """Whether the API's message was cut off, at `max_tokens` or because the model's context was full."""
        return self.stop_reason in CUTS

    @property
    def usage(self) -> Usage | None:
        """The tokens that the API's message used, over all parts of its turn. None: no message came.

        Raises:
            RequestFailedError: The SDK cannot make a `Usage` of what the API sent.
        """
        if not rule_row(self._decoded).billed:
            return None
        from anthropic.types import Usage

        return self._made(Usage, usage_of(self._decoded["message"]))

    def _made(self, type_: type[T], values: Mapping[str, Any]) -> T:
        """Make a value of an SDK type as the SDK does."""
        try:
            made: T = type_.construct(**values)  # type: ignore[attr-defined]  # all models of the SDK have it
        except Exception:  # noqa: BLE001  # whatever the SDK raises over a shape that it does not know
            raise self._unreadable(f"a shape of which the SDK cannot make a {type_.__name__}") from None
        return made

    def parse(self, type_: type[T]) -> T:
        """Read the answer to a request with `output_format=` as a value of that type.

        It reads the last text of the answer, because with server tools the model may write text before its answer.

        Args:
            type_: A pydantic model, or any type that pydantic's `TypeAdapter` takes.

        Raises:
            RequestFailedError: There is no answer, or it is not a value of this type.
            InvalidValueError: pydantic does not take this type.
        """
        from .basics.output_format import UnfitError, read

        try:
            return read(self._last_text(), type_)
        except UnfitError as error:
            name = printable(getattr(type_, "__name__", "value of this type"))
            raise self._unreadable(f"a text that is not a {name} ({error})") from None

    def _last_text(self) -> str:
        texts: list[str] = []
        for block in reversed(self._content()):
            text = block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None
            if isinstance(text, str):
                texts.append(text)
            elif texts:
                break
        return "".join(reversed(texts))

    def unwrap(self) -> Message:
        """Return the message, or raise why there is none.

        Raises:
            RequestFailedError: There is no answer.
        """
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """Return a flat dict of plain values: a row of a data frame, or a line of JSON.

        It never raises. Without an answer, `text` is None, and `error_type` and `error_message` say why.

        Returns:
            `key`, `job`, `index`, `custom_id`, `outcome`, `ok`, `text`, `stop_reason`, `truncated`, `error_type`,
            `error_message`, `model`, `lane`, `attempts`, `input_tokens`, `output_tokens`, `cache_read_tokens`,
            `cache_written_tokens`, `cost` and `saved` (USD as floats; None: unknown price), `deadline` and `settled_at`
            (ISO 8601, UTC), `met_deadline`, `cursor`, and `label_<name>` for each label. `outcome` and `lane` are the
            string values of their enums.
        """
        error, tokens = self.error, usage_of(self._message)
        try:
            text = self.text if self.ok else None
        except RequestFailedError as unreadable:
            text, error = None, ResultError(unreadable.error_type, str(unreadable), retryable=False)
        return {
            "key": self.key,
            "job": self.job,
            "index": self.index,
            "custom_id": self.custom_id,
            "outcome": self.outcome.value,
            "ok": self.ok,
            "text": text,
            "stop_reason": self.stop_reason,
            "truncated": self.truncated,
            "error_type": None if error is None else error.type,
            "error_message": None if error is None else error.message,
            "model": _plain(self._message.get("model"), str),
            "lane": self.lane.value,
            "attempts": self.attempts,
            "input_tokens": _plain(tokens.get("input_tokens"), int),
            "output_tokens": _plain(tokens.get("output_tokens"), int),
            "cache_read_tokens": _plain(tokens.get("cache_read_input_tokens"), int),
            "cache_written_tokens": _plain(tokens.get("cache_creation_input_tokens"), int),
            "cost": None if self.cost is None else float(self.cost),
            "saved": None if self.saved is None else float(self.saved),
            "deadline": None if self.deadline is None else self.deadline.isoformat(),
            "settled_at": self.settled_at.isoformat(),
            "met_deadline": self.met_deadline,
            "cursor": self.cursor,
            **{f"label_{name}": value for name, value in self.labels.items()},
        }

    def __reduce__(self) -> tuple[type[Result], tuple[ResultRow]]:
        return type(self), (self._row,)

    def __repr__(self) -> str:
        return f"Result(key={shown(self.key)}, outcome={self.outcome.value}, lane={self.lane.value})"


def as_settled(ledger: Ledger, job: int | None, after: int) -> Iterator[Result]:
    """Iterate over the results after a cursor, in the order of settling, in bounded memory."""
    while rows := ledger.results(job=job, after=after, limit=1_000):
        for row in rows:
            yield Result(row)
        after = rows[-1].cursor


def _plain(value: object, kind: type[T]) -> T | None:
    """Return what the API sent if it is of this type, else None."""
    return value if isinstance(value, kind) and not isinstance(value, bool) else None
