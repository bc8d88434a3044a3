"""Whose ledger it is, and what is known of the lanes and the API's clock and queues."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

import attrs
import orjson

from batchwise.errors import InvalidValueError, WrongWorkspaceError, printable
from batchwise.models import Lane, Policy
from batchwise.planning.capacity import Measured
from batchwise.planning.packing import Sizes
from batchwise.planning.state import Snapshot

from . import meta
from .database import Database
from .rows import encode_measured, from_micros, micros
from .values import Streak

__all__ = ["Conditions"]

_log = logging.getLogger("batchwise")


class Conditions:
    """Remembers whose ledger it is and in what condition the lanes are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def bind(self, *, endpoint: str, workspace: str | None) -> bool:
        """Remember, or check, whose ledger this is; returns whether its workspace is known.

        A workspace of None is not checked.

        Raises:
            WrongWorkspaceError: It belongs to another endpoint or workspace.
        """
        with self._database.write("bind") as db:
            for name, value in (("endpoint", endpoint), ("workspace", workspace)):
                known = meta.get(db, name)
                if value is None or known == value:
                    continue
                if known is not None:
                    theirs = printable(value)
                    raise WrongWorkspaceError(
                        f"the ledger {self._database.name} belongs to the {name} {printable(known)}, "
                        f"the client to {theirs}; "
                        "use the client that it was made with, or another ledger. Nothing was polled or sent"
                    )
                meta.put(db, name, value)
            return meta.get(db, "workspace") is not None

    def keep_policy(self, policy: Policy) -> None:
        """Remember the policy under which work was accepted."""
        with self._database.write("keep_policy", quiet=True) as db:
            meta.put(db, meta.POLICY, orjson.dumps(policy.to_dict()).decode())

    def kept_policy(self) -> Policy | None:
        """The policy under which work was last accepted, as far as this version knows its fields; None: not known."""
        with self._database.read() as db:
            kept = meta.get(db, meta.POLICY)
        try:
            return None if kept is None else Policy.from_dict(orjson.loads(kept), lenient=True)
        except InvalidValueError as error:
            _log.warning(
                "batchwise: the policy in %s is a newer version's (%s); defaults hold", self._database.name, error
            )
            return None

    def suspend(self, lane: Lane, reason: str, *, now: datetime) -> None:
        """No more work for this lane until `resume`."""
        with self._database.write("suspend") as db:
            meta.put(db, f"suspended:{lane.value}", reason)
            meta.put(db, f"suspended_at:{lane.value}", str(micros(now)))

    def note_failure(self, name: str, *, now: datetime) -> Streak:
        """Count a failure of the batch lane; returns how often it has been noted since a batch was created."""
        with self._database.write("note_failure") as db:
            times, since = map(int, (meta.get(db, f"{meta.FAILURES}{name}") or f"0 {micros(now)}").split())
            since = min(since, micros(now))
            meta.put(db, f"{meta.FAILURES}{name}", f"{times + 1} {since}")
        return Streak(times + 1, from_micros(since))

    def resume(self, lane: Lane | None = None, *, afresh: bool = True) -> None:
        """The lane (None: both) takes work again; `afresh`: its failures are counted anew."""
        with self._database.write("resume") as db:
            if afresh and lane is not Lane.SYNC:
                meta.forget_failures(db)
            for each in Lane if lane is None else (lane,):
                meta.put(db, f"suspended:{each.value}", None)
                meta.put(db, f"suspended_at:{each.value}", None)

    def note_advance(self, *, now: datetime) -> timedelta | None:
        """Remember that a pass began now; returns the time since the one before.

        Where the clock was set back in between, that is the time between the two passes before; None: not known.
        """
        with self._database.write("note_advance", quiet=True) as db:
            before, gap = (int(meta.get(db, name) or -1) for name in ("advanced_at", "advance_gap"))
            if 0 <= before <= micros(now):
                gap = micros(now) - before
            meta.put(db, "advanced_at", str(micros(now)))
            meta.put(db, "advance_gap", str(gap))
        return None if gap < 0 else timedelta(microseconds=gap)

    def set_right(self, right: Snapshot, *, now: datetime, latest: datetime) -> None:
        """Store what is believed (`planning.moments.believed`) of the lanes and queues, batches aside.

        No request has come to its place after `now`; a pause that ends after `latest` is over.
        """
        with self._database.write("set_right") as db:
            for name, moment, last in (
                ("paused_until", right.batch_paused_until, latest),
                ("sync_answered_at", right.sync_answered_at, now),
                ("sync_failed_at", right.sync_failed_at, now),
            ):
                if int(meta.get(db, name) or 0) > micros(last):
                    meta.put(db, name, None if moment is None else str(micros(moment)))
            db.execute("UPDATE cohort SET since = ? WHERE since > ?", (micros(now), micros(now)))

    def pause_batches(self, until: datetime | None) -> None:
        """The account's queue is full until then."""
        with self._database.write("pause_batches") as db:
            meta.put(db, "paused_until", None if until is None else str(micros(until)))

    def note_sizes(self, sizes: Sizes) -> None:
        """Remember how many requests a batch may have from now on."""
        with self._database.write("note_sizes") as db:
            meta.put(db, "sizes", orjson.dumps(attrs.asdict(sizes)).decode())

    def note_clock(self, offset: timedelta) -> None:
        """Remember the server's clock minus ours."""
        with self._database.write("note_clock", quiet=True) as db:
            meta.put(db, "clock_offset", str(offset // timedelta(microseconds=1)))

    def note_call(self, *, now: datetime, answered: bool) -> None:
        """The sync lane answered a call, or refused it for good or did not answer."""
        with self._database.write("note_call", quiet=True) as db:
            meta.put(db, "sync_answered_at" if answered else "sync_failed_at", str(micros(now)))

    def note_lane(self, name: str, measured: Measured) -> None:
        """Remember how the sync lane does for a class of models."""
        with self._database.write("note_lane", quiet=True) as db:
            meta.put(db, f"{meta.MEASURED}{name}", encode_measured(measured))
