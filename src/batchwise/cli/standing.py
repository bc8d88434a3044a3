"""How the work stands, as an answer: for `advance` and `progress`, which need no extra, and the verbs that end so."""

from __future__ import annotations

from typing import Any

from batchwise.engine.progress import progress_of
from batchwise.models import Progress

from .answers import Answer, code_of, jsonable
from .ledgers import looking, working

__all__ = ["advance", "standing", "status", "then_status"]


def standing(progress: Progress, ledger: str, job: str | None) -> Answer:
    """A progress as an answer; its exit code says whether deadlines are kept."""
    values = {"ledger": ledger, "job": job, "progress": jsonable(progress)}
    return Answer(str(progress), values, code_of(progress))


def status(job: str | None, ledger: str | None, policy: str | None) -> Answer:
    """How far a job is, or all work."""
    with looking(ledger, policy) as engine:
        return standing(progress_of(engine, job), engine.ledger.name, job)


def advance(ledger: str | None, policy: str | None) -> Answer:
    """Do all work that is due, once."""
    with working(ledger, policy) as (dispatcher, name):
        return standing(dispatcher.advance(), name, None)


def then_status(done: str, job: str | None, ledger: str | None, policy: str | None, **values: Any) -> Answer:
    """What was done, and how far the work is after it."""
    after = status(job, ledger, policy)
    return Answer(f"{done}\n{after.text}", {**after.values, **values}, after.code)
