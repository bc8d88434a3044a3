"""Every error that batchwise raises, under one root.

Each says what was wrong, with which request, and what to do about it. None carries the content of a prompt or of
an answer; caller's keys appear escaped and shortened (see `shown`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "AdmissionError",
    "BatchwiseError",
    "ClosedDispatcherError",
    "ForkedDispatcherError",
    "InfeasibleSLAError",
    "InvalidRequestError",
    "InvalidValueError",
    "JobNotFoundError",
    "KeyConflictError",
    "LaneSuspendedError",
    "LedgerError",
    "LedgerNotFoundError",
    "NoCronExpressionError",
    "RequestFailedError",
    "RequestTooLargeError",
    "ResultTimeoutError",
    "SpendLimitError",
    "TicketNotFoundError",
    "UnknownPriceError",
    "WrongLoopError",
    "WrongWorkspaceError",
    "printable",
    "shown",
]


_AUTOMATIC = re.compile("~[0-9a-f]{32}(?:-([0-9]+))?")
"""A key that a request without one was given, outside of a named job; behind the dash its place in a bulk."""


def shown(text: object, limit: int = 80) -> str:
    """A caller's string made safe for a message: escaped to ASCII (no terminal codes), quoted, at most `limit` long."""
    escaped = ascii(text)
    return escaped if len(escaped) <= limit else f"{escaped[: limit - 4]}...{escaped[-1]}"


def request_named(key: str, model: str = "") -> str:
    """A request as messages name it: by its key, or, where it was given none, by its place and its model."""
    automatic = _AUTOMATIC.fullmatch(key)
    if automatic is None:
        return f"request {shown(key)}"
    of = f" ({printable(model)})" if model else ""
    return f"the request without a key{of}" if automatic[1] is None else f"item #{automatic[1]} of dispatch_all{of}"


def printable(text: str) -> str:
    """A server's words made safe for a terminal and a log: what cannot be seen (control codes, bidi) is escaped."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class BatchwiseError(Exception):
    """Something went wrong in batchwise."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])

    def __reduce__(self) -> tuple[object, ...]:
        # Not by `__init__`: it may ask for more than the message, and attributes and notes come with the state.
        return _remade, (type(self), self.args), self.__dict__


def _remade(kind: type[BatchwiseError], args: tuple[object, ...]) -> BatchwiseError:
    """An error out of its pickle, before its attributes are set."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class InvalidValueError(BatchwiseError, ValueError):
    """A value that batchwise cannot work with; the message names the field, the value and the mend."""


class InvalidRequestError(InvalidValueError):
    """A request that no lane takes as it is, or whose tags and parameters contradict each other.

    Nothing was stored or sent.
    """


class RequestTooLargeError(InvalidRequestError):
    """One request alone exceeds what a call that it needs may carry. Nothing was stored or sent."""


class InfeasibleSLAError(InvalidValueError):
    """No cadence keeps this SLA.

    Attributes:
        shortest: The shortest SLA that a dispatcher with the same window and reserve sends to a batch.
    """

    def __init__(self, message: str, *, shortest: timedelta) -> None:
        super().__init__(message)
        self.shortest = shortest


class NoCronExpressionError(InvalidValueError):
    """No cron expression has this period.

    Attributes:
        nearest: The longest interval below it that cron can express.
    """

    def __init__(self, message: str, *, nearest: timedelta) -> None:
        super().__init__(message)
        self.nearest = nearest


class KeyConflictError(BatchwiseError):
    """The key is taken by a request with other content."""


class JobNotFoundError(BatchwiseError, LookupError):
    """The ledger has no job of this name."""


class TicketNotFoundError(BatchwiseError, LookupError):
    """The ledger has no request under this key."""


class AdmissionError(BatchwiseError):
    """No lane can keep this deadline beside what is already promised. Nothing was stored or sent."""


class SpendLimitError(BatchwiseError):
    """Accepting this work could pass `Policy.max_spend`. Nothing was stored or sent."""


class UnknownPriceError(BatchwiseError):
    """The price of this model is unknown, so a spend limit cannot be kept for it. Nothing was stored or sent."""


class LaneSuspendedError(BatchwiseError):
    """A lane is suspended: the API refuses work for a reason that retrying cannot mend. Queued work stays queued."""


class WrongWorkspaceError(BatchwiseError):
    """The ledger belongs to another workspace or endpoint. Nothing was polled or sent."""


class LedgerError(BatchwiseError):
    """The ledger cannot be read or written.

    Attributes:
        passing: Whether this may end by itself: another process holds the database, or the disk is full. Nothing of
            the step was changed; the same call may work later.
    """

    def __init__(self, message: str | None = None, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class LedgerNotFoundError(LedgerError, LookupError):
    """There is no ledger where one has to be. Nothing was made."""


class ClosedDispatcherError(BatchwiseError):
    """The dispatcher is closed (or not yet entered); open a new one."""


class ForkedDispatcherError(BatchwiseError):
    """The dispatcher was made before a fork; make one in the child process."""


class WrongLoopError(BatchwiseError):
    """An AsyncDispatcher belongs to the event loop that opened it, and on trio to the task that did."""


class RequestFailedError(BatchwiseError):
    """The request did not succeed, so it has no answer.

    Attributes:
        error_type: The error's type, as the API words it (`invalid_request_error`, ...) or batchwise's own
            (`expired`, `canceled`, `abandoned`, ...).
    """

    def __init__(self, message: str, *, error_type: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class ResultTimeoutError(BatchwiseError, TimeoutError):
    """The result was not there in time. Nothing is lost: ask again, here or in a later process."""
