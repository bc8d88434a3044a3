"""Adopts a batch that was made elsewhere, by its id."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping

from batchwise.api.faults import LaneFault
from batchwise.api.types import BatchInfo
from batchwise.errors import InvalidValueError, RequestFailedError, printable, shown
from batchwise.models import Lane, Reason
from batchwise.planning.custom_ids import new_nonce
from batchwise.planning.state import BatchState, BatchView, Terms
from batchwise.request import check_job, check_key

from .core import Engine
from .effects import store
from .ports import api
from .reconciliation import too_old

__all__ = ["adopt"]

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
_UNNAMED = {BatchState.POSTING, BatchState.IN_DOUBT, BatchState.WATCHED}


async def adopt(engine: Engine, batch_id: str, keys: Mapping[str, str] | None, job: str | None) -> str:
    """Adopt a batch that was made elsewhere; returns its job's name. To adopt it again changes nothing.

    Raises:
        InvalidValueError: The batch cannot be adopted, or an argument is invalid.
        RequestFailedError: The API does not know it, or did not answer.
        WrongWorkspaceError: The client's workspace is not the ledger's.
    """
    given = _checked(batch_id, keys, job)
    known = await store(engine.ledger.adoption.adopted, batch_id, job=job)
    if known is not None:
        return known
    await engine.workspace.check()
    try:
        info = await api.retrieve(batch_id)
    except LaneFault as error:
        fault = error.fault
        why = (
            "this workspace has no such batch; is it the right id, and the right API key?"
            if fault.status == 404
            else f"the API answered {fault.type}: {shown(fault.message, 500)}; try again"
        )
        raise RequestFailedError(f"batch {shown(batch_id)} cannot be adopted: {why}", error_type=fault.type) from None
    await store(engine.workspace.note_from, info)
    return await store(_take_in, engine, info, given, job)


def _checked(batch_id: object, keys: Mapping[str, str] | None, job: object) -> dict[str, str]:
    """Return the keys by custom_id, checked."""
    if not isinstance(batch_id, str) or not batch_id or not batch_id.isprintable():
        raise InvalidValueError(f"batch_id={shown(batch_id)} is no batch's id; use the id that create returned")
    if job is not None:
        check_job(job)
    if keys is not None and not isinstance(keys, Mapping):
        raise InvalidValueError(f"keys is a {type(keys).__name__}; give a mapping of custom_id to key")
    given = dict(keys or {})
    for custom_id, key in given.items():
        if not isinstance(custom_id, str) or not _CUSTOM_ID.match(custom_id):
            raise InvalidValueError(f"keys: {shown(custom_id)} is no custom_id; give a mapping of custom_id to key")
        check_key(key)
    twice = next((key for key, times in Counter(given.values()).items() if times > 1), None)
    if twice is not None:
        raise InvalidValueError(f"keys: {shown(twice)} stands for several custom_ids; give each a key of its own")
    return given


def _take_in(engine: Engine, info: BatchInfo, keys: Mapping[str, str], job: str | None) -> str:
    _refuse(info, engine.ledger.snapshot().batches)
    engine.suspensions.resume_on_first_use()
    terms = Terms(
        lane=Lane.BATCH,
        reason=Reason.LATENCY_TOLERANT,
        explanation=f"It was sent in the batch {printable(info.id)}, which was made elsewhere and adopted.",
        model="",
        max_tokens=0,
        output_tokens=0,
        batch_only=True,
        adopted=True,
    )
    return engine.ledger.adoption.adopt(
        info.id,
        job=job,
        keys=keys,
        requests=info.counts.total,
        terms=terms,
        nonce=new_nonce(os.urandom(16)),
        created_at=info.created_at,
        expires_at=info.expires_at,
        now=engine.now(),
    )


def _refuse(info: BatchInfo, batches: tuple[BatchView, ...]) -> None:
    """Refuse a batch that has no results, and one that may be this ledger's own."""
    name = printable(info.id)
    if info.archived_at is not None:
        raise InvalidValueError(
            f"batch {name} cannot be adopted: its results were archived on {info.archived_at:%Y-%m-%d}, and the "
            "API gives them out no more; dispatch its requests anew"
        )
    if not info.counts.total:
        raise InvalidValueError(f"batch {name} cannot be adopted: the API counts no requests in it")
    for batch in batches:
        alike = batch.state in _UNNAMED and batch.requests == info.counts.total and info.id not in batch.struck
        if alike and not too_old(batch, info):
            raise InvalidValueError(
                f"batch {name} may be one of this ledger's own, whose create was not answered (yet); its requests "
                "are found under their own keys. If it is not, adopt it once that has been cleared up"
            )
