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
    """One routing rule's verdict.

    Attributes:
        rule: The reason that the rule gives when it decides.
        decided: Whether this rule chose the lane.
        verdict: What the rule saw, in words with figures.
    """

    rule: Reason
    decided: bool
    verdict: str


@attrs.frozen
class Decision:
    """Which lane a request goes to, why, and by when what has to happen. Plain data: it pickles.

    Two are equal if they decide the same, in whatever words.

    Attributes:
        lane: The lane.
        reason: The rule that decided, by its stable name.
        deadline: When the result is due (UTC); None without a deadline.
        submit_by: The last moment at which its batch may be sent (UTC); None on the sync lane or without deadline.
        rescue_at: The last moment at which a rescue of it alone would begin (UTC); None where there is none.
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
        """One sentence a person can act on, with the figures in it. Put into words when read."""
        return self._explanation if isinstance(self._explanation, str) else self._explanation()

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every rule with its verdict, in the order in which they are asked. Put into words when read."""
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
        message: The API's words, or ours; control characters are escaped.
        retryable: Whether the same request may succeed when tried again.
    """

    type: str = attrs.field(converter=printable)
    message: str = attrs.field(converter=printable)
    retryable: bool
