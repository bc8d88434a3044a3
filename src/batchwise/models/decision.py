"""`Decision`: the lane of a request, and why; `ResultError`: why a request has no answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import attrs

from batchwise.errors import printable

from .tags import Lane, Reason

__all__ = ["Check", "Decision", "ResultError"]


@attrs.frozen
class Check:
    """What one routing rule found.

    Attributes:
        rule: The reason that the rule stands for.
        decided: Whether this rule chose the lane.
        verdict: What the rule found, in words with figures.
    """

    rule: Reason
    decided: bool
    verdict: str


@attrs.frozen
class Decision:
    """Which lane a request goes to, and why. Plain data: it pickles.

    Two decisions are equal if all attributes but the words are.

    Attributes:
        lane: The lane.
        reason: The rule that decided, by its stable name.
        deadline: When the result is due (UTC). None: there is no deadline.
        submit_by: The last moment at which the batch may be sent (UTC). None: the sync lane, or no deadline.
        rescue_at: The last moment at which a rescue of this request alone would begin (UTC). None: it needs none.
    """

    lane: Lane
    reason: Reason
    _explanation: str | Callable[[], str] = attrs.field(default="", repr=False, eq=False)
    deadline: datetime | None = None
    submit_by: datetime | None = None
    rescue_at: datetime | None = None
    _checks: tuple[Check, ...] | Callable[[], tuple[Check, ...]] = attrs.field(default=(), repr=False, eq=False)

    @property
    def explanation(self) -> str:
        """Why, in one sentence with figures. The sentence is made when it is read."""
        return self._explanation if isinstance(self._explanation, str) else self._explanation()

    @property
    def checks(self) -> tuple[Check, ...]:
        """What each routing rule found, in the order in which they are asked. The words are made when they are read."""
        return self._checks if isinstance(self._checks, tuple) else self._checks()

    def __reduce__(self) -> tuple[type[Decision], tuple[object, ...]]:
        when = self.deadline, self.submit_by, self.rescue_at
        return type(self), (self.lane, self.reason, self.explanation, *when, self.checks)


@attrs.frozen
class ResultError:
    """Why a request has no answer.

    Attributes:
        type: The API's error type (`invalid_request_error`, `overloaded_error`, ...) or batchwise's own
            (`refusal`, `truncated`, `expired`, `canceled`, `abandoned`, `missing_row`, `late`, ...).
        message: The words of the API, or of batchwise; control characters are escaped.
        retryable: Whether the same request may succeed if it is tried again.
    """

    type: str = attrs.field(converter=printable)
    message: str = attrs.field(converter=printable)
    retryable: bool
