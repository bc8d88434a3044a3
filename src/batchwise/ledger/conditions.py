"""What is known of the lanes and of the API: suspensions, pauses, clock, failures in a row; and whose ledger it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

import attrs
import orjson

from batchwise.errors import InvalidValueError, WrongWorkspaceError, printable
from batchwise.models import Lane, Policy
from batchwise.planning.capacity import Measured
from batchwise.planning.packing import Sizes
from batchwise.planning.state import Setback, Snapshot

from . import meta
from .database import Database
from .rows import encode_measured, encode_setback, from_micros, micros
from .values import Streak, Suspension

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

    def suspend(self, lane: Lane, reason: str, *, resumes: int | None = None) -> Suspension:
        """No more work for this lane until `resume`.

        `resumes`: how often `resume` had been called when that began which failed. It says nothing of the time after
        another `resume`, and suspends nothing then.
        """
        # It may hold a server's words, and among them what no database keeps.
        reason = reason.encode("utf-8", "backslashreplace").decode().replace("\0", r"\x00")
        with self._database.write("suspend") as db:
            before = meta.get(db, f"suspended:{lane.value}")
            known = meta.resumes(db)
            timely = resumes is None or resumes == known
            if timely:
                meta.put(db, f"suspended:{lane.value}", reason)
        return Suspension(timely, timely and before != reason, known)

    def resume(self, *, afresh: bool = True) -> tuple[Lane, ...]:
        """Both lanes take work again; returns those that were suspended. `afresh`: failures are counted anew."""
        with self._database.write("resume") as db:
            if afresh:
                meta.forget_failures(db)
            suspended = tuple(lane for lane in Lane if meta.get(db, f"suspended:{lane.value}"))
            for lane in Lane:
                meta.put(db, f"suspended:{lane.value}", None)
            meta.put(db, "resumes", f"{meta.resumes(db) + 1}")
        return suspended

    def note_failure(self, name: str, *, now: datetime) -> Streak:
        """Count a failure of the batch lane; returns how often it has been noted since a batch was created."""
        with self._database.write("note_failure") as db:
            times, since = map(int, (meta.get(db, f"{meta.FAILURES}{name}") or f"0 {micros(now)}").split())
            since = min(since, micros(now))
            meta.put(db, f"{meta.FAILURES}{name}", f"{times + 1} {since}")
        return Streak(times + 1, from_micros(since))

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

    def note_setback(self, setback: Setback | None) -> None:
        """Remember what failed last and is tried again, for other processes to see; None: nothing does any more."""
        with self._database.write("note_setback", quiet=True) as db:
            meta.put(db, meta.SETBACK, None if setback is None else encode_setback(setback))

    def set_right(self, right: Snapshot, *, now: datetime, latest: datetime) -> None:
        """Store what is corrected (`planning.clock_skew.corrected`) of the lanes and queues, batches aside.

        No request has come to its place after `now`; a pause that ends after `latest` is over.
        """
        with self._database.write("set_right") as db:
            for name, moment, last in (
                ("batch_paused_until", right.batch_paused_until, latest),
                ("sync_answered_at", right.sync_answered_at, now),
                ("sync_failed_at", right.sync_failed_at, now),
            ):
                if int(meta.get(db, name) or 0) > micros(last):
                    meta.put(db, name, None if moment is None else str(micros(moment)))
            db.execute("UPDATE cohort SET since = ? WHERE since > ?", (micros(now), micros(now)))

    def note(
        self,
        *,
        clock_offset: timedelta | None = None,
        batch_paused_until: datetime | None = None,
        sync_answered_at: datetime | None = None,
        sync_failed_at: datetime | None = None,
        measured: Mapping[str, Measured] = MappingProxyType({}),
    ) -> None:
        """Remember what was learnt of the API and the lanes, under the names that a snapshot has for it.

        What is None, or not among `measured`, stays as it was.
        """
        moments = {
            "batch_paused_until": batch_paused_until,
            "sync_answered_at": sync_answered_at,
            "sync_failed_at": sync_failed_at,
        }
        with self._database.write("note", quiet=batch_paused_until is None) as db:
            if clock_offset is not None:
                meta.put(db, "clock_offset", str(clock_offset // timedelta(microseconds=1)))
            for name, moment in moments.items():
                if moment is not None:
                    meta.put(db, name, str(micros(moment)))
            for name, pace in measured.items():
                meta.put(db, f"{meta.MEASURED}{name}", encode_measured(pace))

    def resize(self, because: Callable[[Sizes], Sizes]) -> None:
        """Remember how many requests a batch may have from now on; `because` makes that of what it was before."""
        with self._database.write("resize") as db:
            sizes = because(meta.sizes_of(meta.get(db, "sizes")))
            meta.put(db, "sizes", orjson.dumps(attrs.asdict(sizes)).decode())
