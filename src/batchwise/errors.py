"""Every error that batchwise raises, under one root.

Each says what was wrong, with which request, and what to do about it. None holds the content of a prompt or of an
answer. Keys appear escaped and shortened (see `shown`).
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
"""The key that batchwise gives to a request without one, outside of a named job. The digits after the dash are its
place in a bulk dispatch."""


def shown(text: object, limit: int = 80) -> str:
    """A caller's string made safe for a message: escaped to ASCII (no terminal codes), quoted, at most `limit` long."""
    escaped = ascii(text)
    return escaped if len(escaped) <= limit else f"{escaped[: limit - 4]}...{escaped[-1]}"


def request_named(key: str, model: str = "") -> str:
    """Name a request in a message: by its key, or, if the caller gave none, by its place and its model."""
    automatic = _AUTOMATIC.fullmatch(key)
    if automatic is None:
        return f"request {shown(key)}"
    of = f" ({printable(model)})" if model else ""
    return f"the request without a key{of}" if automatic[1] is None else f"item #{automatic[1]} of dispatch_all{of}"


def printable(text: str) -> str:
    """Make a server's text safe for a terminal and a log: invisible characters (control codes, bidi) are escaped."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class BatchwiseError(Exception):
    """Something went wrong in batchwise."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])

    def __reduce__(self) -> tuple[object, ...]:
        # Not through `__init__`, which may need more arguments than the message. Attributes and notes are in the state.
        return _remade, (type(self), self.args), self.__dict__


def _remade(kind: type[BatchwiseError], args: tuple[object, ...]) -> BatchwiseError:
    """Make an error from its pickle; its attributes are set afterwards."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class InvalidValueError(BatchwiseError, ValueError):
    """A value that batchwise cannot work with. The message names the field and the value, and says what to write."""


class InvalidRequestError(InvalidValueError):
    """A request that no lane takes as it is, or whose arguments contradict each other. Nothing was stored or sent."""


class RequestTooLargeError(InvalidRequestError):
    """A single request is larger than the API's limit for one call. Nothing was stored or sent."""


class InfeasibleSLAError(InvalidValueError):
    """This SLA is too short: no cadence can keep it.

    Attributes:
        shortest: The shortest SLA that a dispatcher with the same window and reserve sends to a batch.
    """

    def __init__(self, message: str, *, shortest: timedelta) -> None:
        super().__init__(message)
        self.shortest = shortest


class NoCronExpressionError(InvalidValueError):
    """No cron expression repeats at exactly this interval.

    Attributes:
        nearest: The longest shorter interval for which there is a cron expression.
    """

    def __init__(self, message: str, *, nearest: timedelta) -> None:
        super().__init__(message)
        self.nearest = nearest


class KeyConflictError(BatchwiseError):
    """The key belongs to a request with other content."""


class JobNotFoundError(BatchwiseError, LookupError):
    """The ledger has no job of this name."""


class TicketNotFoundError(BatchwiseError, LookupError):
    """The ledger has no request under this key."""


class AdmissionError(BatchwiseError):
    """No lane can keep this deadline, given the work that is accepted already. Nothing was stored or sent."""


class SpendLimitError(BatchwiseError):
    """This work could bring the cost above `Policy.max_spend`. Nothing was stored or sent."""


class UnknownPriceError(BatchwiseError):
    """`Policy.max_spend` cannot be kept, because the price of this model is unknown. Nothing was stored or sent."""


class LaneSuspendedError(BatchwiseError):
    """A lane is suspended: the API refuses work for a reason that a retry cannot fix. Queued work stays queued."""


class WrongWorkspaceError(BatchwiseError):
    """The ledger belongs to another workspace or endpoint than the client's. Nothing was polled or sent."""


class LedgerError(BatchwiseError):
    """The ledger cannot be read or written.

    Attributes:
        passing: Whether the cause may end by itself: another process has locked the database, or the disk is full.
            Then the step changed nothing, and the same call may work later.
    """

    def __init__(self, message: str | None = None, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class LedgerNotFoundError(LedgerError, LookupError):
    """There is no ledger at this place. None was created."""


class ClosedDispatcherError(BatchwiseError):
    """The dispatcher is closed, or not opened yet."""


class ForkedDispatcherError(BatchwiseError):
    """The dispatcher was made before a fork; make one in the child process."""


class WrongLoopError(BatchwiseError):
    """An AsyncDispatcher was used outside the event loop that opened it, or closed on trio by another task."""


class RequestFailedError(BatchwiseError):
    """The request did not succeed, so it has no answer.

    Attributes:
        error_type: The type of the error: the API's (`invalid_request_error`, ...), or one of batchwise's own
            (`expired`, `canceled`, `abandoned`, ...).
    """

    def __init__(self, message: str, *, error_type: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class ResultTimeoutError(BatchwiseError, TimeoutError):
    """The result did not come before the timeout. Nothing is lost: ask again, here or in a later process."""
