"""Finds jobs and requests in a ledger by the names that callers gave them."""

from __future__ import annotations

from batchwise.errors import JobNotFoundError, TicketNotFoundError, shown
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.values import RequestRow, Which
from batchwise.request import check_job

__all__ = ["find_request", "job_number"]

_NAMED = 3
"""The most jobs that an error names when a key is not in the one that was asked for."""


def job_number(ledger: Ledger, name: str) -> int:
    """Return the ledger's number of a job.

    Raises:
        JobNotFoundError: There is none of this name.
    """
    check_job(name)
    number = ledger.jobs.number(name)
    if number is None:
        raise JobNotFoundError(f"no job {shown(name)} in the ledger {ledger.name}; is it the right ledger?")
    return number


def find_request(ledger: Ledger, key: str, job: str | None) -> RequestRow:
    """Return a request by its key.

    Raises:
        TicketNotFoundError: There is none.
    """
    if job is not None:
        check_job(job)
    number = 0 if job is None else ledger.jobs.number(job)
    rows = {} if number is None else ledger.rows(Which(key=key, job=number))
    if not rows:
        where = "" if job is None else f" in job {shown(job)}"
        elsewhere = _elsewhere(ledger, key)
        raise TicketNotFoundError(f"no request {shown(key)}{where} in the ledger {ledger.name}{elsewhere}")
    (row,) = rows.values()
    return row


def _elsewhere(ledger: Ledger, key: str) -> str:
    """Return the end of an error's message: the jobs that have a request of this key."""
    names = (ledger.jobs.name(row.job) for row in ledger.rows(Which(key=key), limit=_NAMED).values())
    places = ["without a job" if name is None else f"in job {shown(name)}" for name in names]
    return f"; there is one {' and one '.join(places)}" if places else ""
