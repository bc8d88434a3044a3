"""Converts values to the ledger's columns, and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from hashlib import blake2b
from operator import attrgetter
from typing import Any

import attrs
import orjson

from batchwise.models import Lane, Outcome, Reason, Status, ToolUse
from batchwise.planning.cache_priming import Caching
from batchwise.planning.capacity import Measured
from batchwise.planning.custom_ids import UNSEALED, custom_id
from batchwise.planning.state import BatchState, BatchView, Group, Setback, Terms

__all__ = [
    "BATCH",
    "BATCH_COLUMNS",
    "IN_FLIGHT",
    "LANES",
    "LANE_CODES",
    "OUTCOMES",
    "OUTCOME_CODES",
    "QUEUED",
    "SETTLED",
    "STATUSES",
    "SYNC",
    "canceled_line",
    "decode_key",
    "decode_measured",
    "decode_setback",
    "decode_terms",
    "digest_of",
    "encode_key",
    "encode_measured",
    "encode_setback",
    "encode_terms",
    "from_micros",
    "merged",
    "micros",
    "view_of",
    "view_values",
]

LANES = (Lane.SYNC, Lane.BATCH)
STATUSES = (Status.QUEUED, Status.IN_FLIGHT, Status.SETTLED)
OUTCOMES = (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELED, Outcome.REFUSED)
LANE_CODES = {lane: code for code, lane in enumerate(LANES)}
OUTCOME_CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}
SYNC, BATCH = 0, 1
QUEUED, IN_FLIGHT, SETTLED = 0, 1, 2

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Whole microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(count: int) -> datetime:
    """The moment that `micros` counted."""
    return _EPOCH + timedelta(microseconds=count)


def encode_key(key: str) -> bytes:
    """A key as bytes: any string has some, NULs and lone surrogates included, and equal bytes mean equal keys."""
    return key.encode("utf-8", "surrogatepass")


def decode_key(key: bytes) -> str:
    """The key that `encode_key` encoded."""
    return key.decode("utf-8", "surrogatepass")


def _optional(moment: datetime | None) -> int | None:
    return None if moment is None else micros(moment)


def _moment(count: int | None) -> datetime | None:
    return None if count is None else from_micros(count)


_TERMS = tuple(field.name for field in attrs.fields(Terms) if field.name not in {"id", "job"})
_values_of = attrgetter(*_TERMS)


def encode_terms(terms: Terms) -> bytes:
    """Encode terms, without their number and their job."""
    values = dict(zip(_TERMS, _values_of(terms), strict=True))
    for name in ("deadline", "submit_by", "rescue_at"):
        values[name] = _optional(values[name])
    values["interval"] = terms.interval // _MICROSECOND
    return orjson.dumps(values)


def decode_terms(number: int, job: int, data: bytes) -> Terms:
    """The terms that `encode_terms` encoded."""
    values = orjson.loads(data)
    values |= {
        "id": number,
        "job": job,
        "lane": Lane(values["lane"]),
        "reason": Reason(values["reason"]),
        "deadline": _moment(values["deadline"]),
        "submit_by": _moment(values["submit_by"]),
        "rescue_at": _moment(values["rescue_at"]),
        "interval": timedelta(microseconds=values["interval"]),
        "refused_by": tuple(values["refused_by"]),
        "betas": tuple(values["betas"]),
        "tool_use": ToolUse(values["tool_use"]),
        "labels": tuple((name, value) for name, value in values["labels"]),
    }
    return Terms(**values)


def encode_measured(measured: Measured) -> str:
    """Encode it as a value of the table `meta`."""
    return orjson.dumps({**attrs.asdict(measured), "at": micros(measured.at)}).decode()


def decode_measured(value: str) -> Measured:
    """What `encode_measured` encoded."""
    values = orjson.loads(value)
    return Measured(**{**values, "at": from_micros(values["at"])})


def encode_setback(setback: Setback) -> str:
    """Encode it as a value of the table `meta`."""
    return f"{setback.run} {micros(setback.next_try)} {setback.words}"


def decode_setback(value: str) -> Setback:
    """What `encode_setback` encoded."""
    run, next_try, words = value.split(" ", 2)
    return Setback(int(run), from_micros(int(next_try)), words)


def digest_of(job: int, data: bytes) -> bytes:
    """Return a digest, which is the same for equal terms of one job."""
    return blake2b(b"%d:%b" % (job, data), digest_size=16).digest()


def merged(old: Terms, new: Terms, *, queued: bool) -> Terms | None:
    """The terms of an unsettled request that is dispatched again with the same content; None: the old ones stand.

    The stricter call for speed wins, and no promise is taken back: the earlier deadline stays, a request that could
    wait is not abandoned with a process that blocked on it later, and none goes back from the sync lane to a batch.
    """
    deadline = min((each.deadline for each in (old, new) if each.deadline is not None), default=None)
    blocking = old.blocking and new.blocking
    earlier = new.deadline is not None and (old.deadline is None or new.deadline < old.deadline)
    if old.lane is Lane.BATCH and (earlier or (new.blocking and queued)):
        reached = new.asking(old.asked)
        reached = attrs.evolve(reached, id=old.id, job=old.job, labels=old.labels)
        result = attrs.evolve(reached, deadline=deadline, blocking=blocking)
    elif old.lane is Lane.SYNC and (earlier or blocking != old.blocking):
        result = attrs.evolve(old, deadline=deadline, blocking=blocking)
    else:
        return None
    return None if result == old else result


def canceled_line(key: str, nonce: str | None, number: int, kind: str, message: str) -> bytes:
    """A result line for a request that ends here, in the shape of a batch's."""
    return orjson.dumps(
        {
            "custom_id": custom_id(key, nonce or UNSEALED, number),
            "result": {"type": "canceled", "error": {"type": kind, "message": message}},
        }
    )


_TIMES = (
    "sealed_at",
    "posting_at",
    "posting_server",
    "last_byte_at",
    "created_at",
    "expires_at",
    "ended_at",
    "cancel_at",
    "polled_at",
)
_STORED = ("state", "remote_id", "watermark", "candidates", "struck", *_TIMES, "counts", "failures", "canceled")
BATCH_COLUMNS = ", ".join(("id", "nonce", "requests", "size", "betas", "adopted", "caching", *_STORED))


def view_of(row: Sequence[Any], groups: tuple[Group, ...]) -> BatchView:
    """A batch's view from its `BATCH_COLUMNS`."""
    values = dict(zip(BATCH_COLUMNS.split(", "), row, strict=True))
    for name in ("betas", "candidates", "struck"):
        values[name] = tuple(orjson.loads(values[name]))
    for name in _TIMES:
        values[name] = _moment(values[name])
    values["counts"] = None if values["counts"] is None else orjson.loads(values["counts"])
    values["state"], values["caching"] = BatchState(values["state"]), Caching(values["caching"])
    values["canceled"], values["adopted"] = bool(values["canceled"]), bool(values["adopted"])
    return BatchView(**values, groups=groups)


def view_values(view: BatchView) -> dict[str, Any]:
    """The columns of a view that may change."""
    values = {name: getattr(view, name) for name in _STORED}
    for name in ("candidates", "struck"):
        values[name] = orjson.dumps(values[name]).decode()
    for name in _TIMES:
        values[name] = _optional(values[name])
    values["counts"] = None if view.counts is None else orjson.dumps(view.counts).decode()
    values["state"] = view.state.value
    return values
