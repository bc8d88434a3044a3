"""`Result`: one request's recorded outcome. The stored line is decoded when somebody looks, not before."""

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
    def index(self) -> int | None:
        """Its place in its job, from 0, in the order in which the job's requests were accepted; None without a job."""
        return self._row.ordinal

    @property
    def custom_id(self) -> str:
        """The id under which its last attempt went; of an adopted batch's row the one that its maker gave it."""
        if self._row.how.adopted:
            return str(decode(self._row.line)["custom_id"])
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
    def labels(self) -> dict[str, str]:
        """The request's labels: who or what it is billed to."""
        return dict(self._row.how.labels)

    @property
    def raw(self) -> bytes:
        """The result as one line of JSON in the shape of a batch result, whatever the lane."""
        return one_line(self._row.line)

    @property
    def cost(self) -> Decimal | None:
        """USD that all its attempts cost; None: the model's price is unknown."""
        return None if self._row.cost is None else to_usd(self._row.cost)

    @property
    def saved(self) -> Decimal | None:
        """USD that the sync lane would have cost beyond that; None: the model's price is unknown."""
        return None if self._row.saved is None else to_usd(self._row.saved)

    @property
    def cache_saved(self) -> Decimal | None:
        """USD that the prompt cache saved, against the same input uncached; None: the model's price is unknown.

        It is negative where the prompt was written to the cache: that costs more than input that is not cached.
        """
        return None if self._row.cost is None else to_usd(self._row.cache_saved)

    @property
    def cache_read_tokens(self) -> int:
        """Input tokens that the API's message read from the prompt cache; 0 where none came."""
        return self._counted("cache_read_input_tokens")

    @property
    def cache_written_tokens(self) -> int:
        """Input tokens that it wrote to the prompt cache; 0 where none came."""
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
        """The API's message, whatever the outcome; empty where none came."""
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
        """Why there is no answer; None when there is one."""
        if self.ok:
            return None
        own, canceled = self._decoded.get("error"), self._decoded.get("type") == "canceled"
        if isinstance(own, dict) and (canceled or isinstance(own.get("retryable"), bool)):  # our own words
            return ResultError(str(own.get("type")), str(own.get("message")), bool(own.get("retryable", True)))
        # Of what did not succeed: a message that is no refusal was cut off where a JSON schema was asked for.
        error = rule_row(self._decoded, structured=True).error
        return error or ResultError("unknown_error", "the API gave no reason", retryable=True)

    def _content(self) -> Sequence[Any]:
        content = self._answer().get("content")
        return content if isinstance(content, list) else ()

    def _blocks(self, kind: str) -> Iterator[Mapping[str, Any]]:
        """The answer's blocks of one kind; others, and what is no block at all, are passed over."""
        return (block for block in self._content() if isinstance(block, dict) and block.get("type") == kind)

    def _unreadable(self, what: str) -> RequestFailedError:
        return RequestFailedError(
            f"the answer to {request_named(self.key)} has {what}; `raw` has it as it came",
            error_type=MALFORMED,
        )

    @property
    def text(self) -> str:
        """The answer's text blocks, joined.

        Raises:
            RequestFailedError: There is no answer, or one of its text blocks has no text.
        """
        try:
            return "".join([block["text"] for block in self._blocks("text")])
        except (KeyError, TypeError):
            raise self._unreadable("a text block without text") from None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The client tools that the answer asks for.

        Raises:
            RequestFailedError: There is no answer, or one of the calls has no id, name, or input.
        """
        calls = [(block.get("id"), block.get("name"), block.get("input")) for block in self._blocks("tool_use")]
        if not all(all(map(isinstance, call, (str, str, dict))) for call in calls):
            raise self._unreadable("a tool_use block without an id, a name, or an input")
        return tuple(ToolCall(*call) for call in calls)  # type: ignore[arg-type]  # looked at just now

    @property
    def message(self) -> Message:
        """The answer as the SDK's type. Built on first access.

        Where betas were asked for it is a `BetaMessage`, which has all that a `Message` has and more.

        As the SDK does, it takes an answer that is not of this shape as it is, unchecked.

        Raises:
            RequestFailedError: There is no answer, or the SDK's type cannot be made of it.
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
        """Why the API's message stopped (`end_turn`, `refusal`, ...); None where none came, or it does not say."""
        stop = self._message.get("stop_reason")
        return stop if isinstance(stop, str) else None

    @property
    def truncated(self) -> bool:
        """Whether the API's message was cut off: at `max_tokens`, or where the model's context was full."""
        return self.stop_reason in CUTS

    @property
    def usage(self) -> Usage | None:
        """The tokens that the API's message took, over all parts of its turn; None when none came.

        Raises:
            RequestFailedError: The SDK's type cannot be made of it.
        """
        if not rule_row(self._decoded).billed:
            return None
        from anthropic.types import Usage

        return self._made(Usage, usage_of(self._decoded["message"]))

    def _made(self, type_: type[T], values: Mapping[str, Any]) -> T:
        """The SDK's type, made as the SDK makes it."""
        try:
            made: T = type_.construct(**values)  # type: ignore[attr-defined]  # its models have it
        except Exception:  # noqa: BLE001  # whatever the SDK raises over a shape that it does not know
            raise self._unreadable(f"a shape of which the SDK makes no {type_.__name__}") from None
        return made

    def parse(self, type_: type[T]) -> T:
        """The answer as a value of a type: what a request with `output_format=` asks for.

        It reads the last text of the answer: with server tools, the model may speak before it answers.

        Args:
            type_: A pydantic model, or any type that pydantic's `TypeAdapter` takes.

        Raises:
            RequestFailedError: There is no answer, or it is no such value.
            InvalidValueError: pydantic takes no such type.
        """
        from .basics.output_format import UnfitError, read

        try:
            return read(self._last_text(), type_)
        except UnfitError as error:
            name = printable(getattr(type_, "__name__", "such value"))
            raise self._unreadable(f"a text that is no {name} ({error})") from None

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
        """The message, or the failure raised.

        Raises:
            RequestFailedError: There is no answer.
        """
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """It as a flat dict of plain values: a list of them makes a data frame, and each a line of JSON.

        Never raises: without an answer `text` is None, and `error_type` and `error_message` say why.

        Returns:
            `key`, `job`, `index`, `custom_id`, `outcome`, `ok`, `text`, `stop_reason`, `truncated`, `error_type`,
            `error_message`, `model`, `lane`, `attempts`, `input_tokens`, `output_tokens`, `cache_read_tokens`,
            `cache_written_tokens`, `cost` and `saved` (USD as floats; None: unknown price), `deadline` and `settled_at`
            (ISO 8601, UTC), `met_deadline`, `cursor`, and `label_<name>` for each label. Outcome and lane are their
            stable strings.
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
    """What has settled behind a cursor, in the order of settling, in bounded memory."""
    while rows := ledger.results(job=job, after=after, limit=1_000):
        for row in rows:
            yield Result(row)
        after = rows[-1].cursor


def _plain(value: object, kind: type[T]) -> T | None:
    """What the API sent, if it is of the kind that it ought to be."""
    return value if isinstance(value, kind) and not isinstance(value, bool) else None
