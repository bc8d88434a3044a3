"""The planner: from what is, and what time it is, to what has to be done. No clock, no I/O.

1. Whatever is unsettled at its last safe moment (unsent, in doubt, canceling, unreadable) goes to the sync lane.
2. The last safe moment is computed over everything that may have to be rescued at the same time.
3. A batch is cancelled only while the sync lane works, only for rows that can still be in time, and only after a
   fresh look at it: it may have ended.
4. Queued work is sealed when its interval is over, its `submit_by` comes, a batch is full, or somebody waits.
5. A batch gets only what still has a window and its rescue before its deadline (hedged work apart), and nothing that
   would have to be cancelled before it is looked at again.
6. A create of unknown outcome is looked for; past the grace, on the server's clock, it is sent again and watched.
7. A suspended lane gets nothing; its work stays queued, or takes the other lane at its last safe moment.
8. Overdue work runs on the cheapest lane, or fails unsent, as the policy says.
9. What would be too late when the planner is asked next is done now.
10. The lease's holder may stand still (stopped, asleep) and hold it all the same: at the last safe moment the others
    take what is unsettled to the sync lane, and leave its batches alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter
from typing import Union

import attrs

from batchwise.models import Lane, Limits, Policy, Reason

from .packing import MAX_BYTES, MAX_REQUESTS, may_share
from .schedule import Cohort, latest_starts, servable, work
from .state import BatchState, BatchView, Group, Snapshot, Terms

__all__ = [
    "Action",
    "Cancel",
    "Collect",
    "FailLate",
    "GiveUp",
    "Move",
    "Poll",
    "Post",
    "Reconcile",
    "Release",
    "Run",
    "Seal",
    "WaitUntil",
    "cohorts_of",
    "is_hedged",
    "margin_of",
    "next_due",
    "plan",
    "reading_of",
    "safe_moments",
    "tail_of",
    "usable",
]

_ZERO = timedelta(0)
_NEAR = timedelta(minutes=1)
"""Deadlines this near each other always share a batch."""
_DATE = timedelta(seconds=1)
"""How exactly a server shows its clock."""
_NEVER = datetime.max.replace(tzinfo=timezone.utc)
_BLOCKING = 1
_AHEAD = timedelta(minutes=1)
"""How much of the sync lane's time is handed out beyond the next look, so that the lane does not run dry."""
_FILLED = 0.95
"""The share of its limits that the sync lane surely keeps filled."""
_CALM = 0.7
"""The share of its limits that hedged work counts on, so that urgent work still to come finds room: our choice."""


@attrs.frozen
class Seal:
    """Seal queued requests of these terms into a batch of at most so many."""

    terms: tuple[int, ...]
    betas: tuple[str, ...]
    max_requests: int


@attrs.frozen
class Post:
    """Send a sealed batch."""

    batch: int


@attrs.frozen
class Reconcile:
    """Look for a create of unknown outcome in the listing."""

    batch: int


@attrs.frozen
class GiveUp:
    """The create was not seen within the grace: queue its requests again and watch for it."""

    batch: int


@attrs.frozen
class Poll:
    """Ask how a batch is doing."""

    batch: int


@attrs.frozen
class Cancel:
    """Cancel a batch: its last safe moment has come."""

    batch: int


@attrs.frozen
class Collect:
    """Read an ended batch's results."""

    batch: int


@attrs.frozen
class Release:
    """Queue a batch's unsettled requests of these terms for the sync lane, whatever becomes of the batch."""

    batch: int
    terms: tuple[int, ...]


@attrs.frozen
class Move:
    """Move queued requests of these terms to the other lane's queue."""

    terms: int
    lane: Lane


@attrs.frozen
class FailLate:
    """Settle queued requests of these terms unsent: their deadline has passed."""

    terms: int


@attrs.frozen
class Run:
    """Run queued requests of these terms on the sync lane; the first `Run` is the most urgent."""

    terms: int
    requests: int
    urgent: bool


@attrs.frozen
class WaitUntil:
    """Nothing is due before; ask again then (or when something changed)."""

    moment: datetime


Action = Union[Seal, Post, Reconcile, GiveUp, Poll, Cancel, Collect, Release, Move, FailLate, Run, WaitUntil]


def tail_of(limits: Limits) -> timedelta:
    """What the slowest sync call is allowed for: three times the mean."""
    return 3 * limits.latency


def reading_of(policy: Policy) -> timedelta:
    """What reading an ended batch's rows may take: a tenth of what its cancel may take."""
    return policy.cancel_settle / 10


def margin_of(policy: Policy) -> timedelta:
    """Before its deadline by how much the last call has to be sent: its tail, and a batch read at the last moment."""
    return tail_of(policy.limits) + reading_of(policy)


@lru_cache(maxsize=64)
def usable(limits: Limits, share: float = _FILLED) -> Limits:
    """The limits that rescues are planned with: what the lane surely keeps filled."""

    def part(limit: int | None) -> int | None:
        return None if limit is None else max(1, int(limit * share))

    return attrs.evolve(
        limits,
        requests_per_minute=part(limits.requests_per_minute),
        input_tokens_per_minute=part(limits.input_tokens_per_minute),
        output_tokens_per_minute=part(limits.output_tokens_per_minute),
        latency=limits.latency / share,  # concurrency / latency is a rate, too
    )


def is_hedged(terms: Terms, policy: Policy) -> bool:
    """Whether its batch may be broken off before its window is over."""
    return policy.hedge or terms.reason is Reason.HEDGED


def _rescuable(group: Group) -> bool:
    return group.terms.deadline is not None and not group.terms.batch_only


def _places(snapshot: Snapshot) -> Iterator[tuple[Group, BatchView | None]]:
    """Every group that may need the sync lane, with the batch that it is in."""
    for group in (*snapshot.sync_running, *snapshot.sync_queue, *snapshot.batch_queue):
        yield group, None
    for batch in snapshot.batches:
        for group in batch.groups:
            yield group, batch


def _cohort(group: Group, deadline: datetime, release: datetime | None) -> Cohort:
    return Cohort(
        deadline=deadline,
        requests=group.requests,
        input_tokens=group.input_tokens,
        output_tokens=group.output_tokens,
        release=release,
    )


def cohorts_of(snapshot: Snapshot, now: datetime) -> list[tuple[Cohort, Group, BatchView | None]]:
    """What may have to be on the sync lane before a deadline that is still to come."""
    return [
        (_cohort(group, group.terms.deadline, _release(group, batch, now)), group, batch)
        for group, batch in _places(snapshot)
        if group.terms.deadline is not None and _rescuable(group) and group.terms.deadline > now
    ]


def _release(group: Group, batch: BatchView | None, now: datetime) -> datetime | None:
    """The moment at which it could be on the sync lane without paying twice, should its batch expire."""
    if batch is not None and batch.expires_at is not None:
        return max(now, batch.expires_at)
    return group.not_before


class _Planner:
    """One pass: collects actions and the earliest moment at which something else falls due."""

    def __init__(self, snapshot: Snapshot, now: datetime, policy: Policy, wake_gap: timedelta) -> None:
        self.snapshot, self.now, self.policy = snapshot, now, policy
        self.horizon = now + wake_gap
        self.actions: list[Action] = []
        self.next: datetime | None = None
        self.margin, self.reading, self.limits = margin_of(policy), reading_of(policy), usable(policy.limits)
        self.curious = True
        self.batch_works = Lane.BATCH not in snapshot.suspended
        self.sync_works = Lane.SYNC not in snapshot.suspended
        self.cohorts = [cohort for cohort, _, _ in cohorts_of(snapshot, now)]
        self.starts = self._starts(self.limits)
        self.calm = self._starts(usable(policy.limits, _CALM)) if policy.hedge else self.starts
        self.lost = self._lost()

    def _starts(self, limits: Limits) -> dict[datetime, datetime]:
        """By deadline: when its work has to start on the sync lane at the latest."""
        starts: dict[datetime, datetime] = {}
        for cohort, start in zip(self.cohorts, latest_starts(self.cohorts, limits, tail=self.margin), strict=True):
            starts[cohort.deadline] = min(start, starts.get(cohort.deadline, start))
        return starts

    def _lost(self) -> set[datetime]:
        """Deadlines that cannot be kept for a single request."""
        if min(self.starts.values(), default=self.now) >= self.now:
            return set()
        at_once = [attrs.evolve(cohort, release=None) for cohort in self.cohorts]
        counts = servable(at_once, self.limits, now=self.now, tail=_ZERO)
        return self.starts.keys() - {each.deadline for each, count in zip(at_once, counts, strict=True) if count}

    def start(self, group: Group) -> datetime | None:
        """When it has to be on the sync lane; None: no deadline, or none that can be kept."""
        deadline = group.terms.deadline
        if deadline is None or group.terms.batch_only or deadline in self.lost:
            return None
        return self.starts.get(deadline)

    def cancel_at(self, group: Group) -> datetime | None:
        """When a batch with it has to be cancelled; None: never."""
        start, deadline = self.start(group), group.terms.deadline
        return None if start is None or deadline is None else self.calm[deadline] - self.policy.cancel_settle

    def cancel_moments(self, batch: BatchView) -> list[datetime]:
        """The same for each of its groups."""
        return [moment for group in batch.groups if (moment := self.cancel_at(group)) is not None]

    def due(self, moment: datetime) -> bool:
        """Whether it is time, or would be too late the next time; otherwise the moment is noted."""
        if moment <= self.horizon:
            return True
        self.note(moment)
        return False

    def _any_due(self, moments: Iterable[datetime]) -> bool:
        """Whether one of them is; all that are not are noted."""
        return sum(map(self.due, moments)) > 0

    def note(self, moment: datetime) -> None:
        """Ask again at `moment` (at once if it has come)."""
        moment = max(moment, self.now)
        self.next = moment if self.next is None else min(self.next, moment)

    def walk(self) -> None:
        """Look at everything; without the lease only at what concerns the sync lane."""
        self.queued_for_sync()
        if not self.snapshot.leased:
            self.stranded()
            return
        for batch in self.snapshot.batches:
            self.batch(batch)
        self.queued_for_batch()

    # -- batches ----------------------------------------------------------------------------------------------------

    def batch(self, batch: BatchView) -> None:
        """Rules 1, 3, 6 and 7 for one batch."""
        match batch.state:
            case BatchState.OPEN:
                self._open(batch)
            case BatchState.SEALED:
                if not self._release(batch):
                    self.actions.append(Post(batch.id))
            case BatchState.POSTING:
                self._release(batch)
            case BatchState.DOUBT:
                if not self._release(batch, Reconcile(batch.id)):
                    if self._grace_over(batch):
                        self.actions.append(GiveUp(batch.id))
                    else:
                        self._look(batch, Reconcile(batch.id))
            case BatchState.WATCHED:
                self._look(batch, Reconcile(batch.id))
            case BatchState.CANCELING:
                if not self._release(batch, Poll(batch.id)):
                    self._look(batch, Poll(batch.id))
            case BatchState.ENDED:
                self._ended(batch)
            case BatchState.CLOSED | BatchState.VOID:
                pass

    def _paused(self) -> bool:
        until = self.snapshot.batch_paused_until
        if until is None or until <= self.now:
            return False
        self.note(until)
        return True

    def stake(self, batch: BatchView) -> list[tuple[datetime, int]]:
        """When each of its terms has to be on the sync lane."""
        return [(start, group.terms.id) for group in batch.groups if (start := self.start(group)) is not None]

    def _release(self, batch: BatchView, look: Action | None = None) -> bool:
        """Rule 1. While there is time, a look goes first: the batch may have ended meanwhile."""
        if not self.sync_works:
            return False
        due = [(start, terms) for start, terms in self.stake(batch) if self.due(start)]
        if not due:
            return False
        if look is not None and min(due)[0] > self.now and not self._fresh(batch, min(due)[0]):
            self.actions.append(look)
        else:
            self.actions.append(Release(batch.id, tuple(terms for _, terms in due)))
        return True

    def _fresh(self, batch: BatchView, moment: datetime) -> bool:
        """Whether it was looked at since, or just before, `moment` fell due, or cannot be looked at."""
        looked, since = batch.polled_at, moment - (self.horizon - self.now) - self.policy.poll_every[0]
        return batch.failures > 0 or (looked is not None and looked >= since)

    def _open(self, batch: BatchView) -> None:
        if not batch.groups:  # its requests have gone elsewhere: what it does from now on is paid for nothing
            self.actions.append(Cancel(batch.id))
            return
        if batch.cancel_at is not None and self._release(batch):  # a cancel that came to nothing
            return
        moments = self.cancel_moments(batch)
        if self.sync_works and self._any_due(moments):
            self.actions.append(Cancel(batch.id) if self._fresh(batch, min(moments)) else Poll(batch.id))
        else:
            self._look(batch, Poll(batch.id))

    def _ended(self, batch: BatchView) -> None:
        """Its rows are paid: they are bought again only if they cannot be read."""
        self._release_unread(batch)
        self._look(batch, Collect(batch.id))

    def _release_unread(self, batch: BatchView) -> None:
        looked = batch.polled_at or batch.sealed_at
        unread = looked + self.reading
        starts = [start for start, _ in self.stake(batch)]
        if batch.failures or (starts and max(min(starts), unread) <= self.now):
            self._release(batch)
        elif starts:
            self.note(max(min(starts), unread))

    def stranded(self) -> None:
        """Rule 10: what the lease's holder has left to its last safe moment."""
        for batch in self.snapshot.batches:
            if batch.state is BatchState.ENDED:
                self._release_unread(batch)
            else:
                self._release(batch)
        for group in self.snapshot.batch_queue:
            self._diverted(group, sendable=True)

    def _look(self, batch: BatchView, action: Action) -> None:
        moment = self.next_look(batch)
        if not self.curious:  # a look that nothing hangs on can wait until the batch is over for certain
            over = batch.expires_at or batch.sealed_at + self.policy.window
            moment = max(moment, over - self.snapshot.clock_offset)
        if moment <= self.now:
            self.actions.append(action)
        else:
            self.note(moment)

    def next_look(self, batch: BatchView) -> datetime:
        """When a batch is looked at next: ever more seldom, but at its expiry, and often again from then on."""
        shortest: timedelta
        longest: timedelta
        shortest, longest = self.policy.poll_every
        begun = batch.posting_at or batch.sealed_at
        if batch.polled_at is None:
            return batch.sealed_at if batch.state is not BatchState.OPEN else begun + shortest
        if batch.failures:
            return batch.polled_at + min(longest, shortest * (1 << min(batch.failures, 16)))
        if batch.state is BatchState.ENDED:
            return batch.polled_at
        since = batch.cancel_at or begun if batch.state is BatchState.CANCELING else begun
        expiry = None if batch.expires_at is None else batch.expires_at - self.snapshot.clock_offset
        if expiry is not None and expiry <= batch.polled_at:
            since = max(since, expiry)
        moment = batch.polled_at + min(longest, max(shortest, (batch.polled_at - since) / 10))
        return expiry if expiry is not None and batch.polled_at < expiry < moment else moment

    def _grace_over(self, batch: BatchView) -> bool:
        """Rule 6: no candidate is left, and a listing made after the grace (on the server's clock) shows none."""
        if set(batch.candidates) - set(batch.struck):
            return False
        begun = batch.last_byte_at or batch.posting_at or batch.sealed_at
        waited = _ZERO if batch.polled_at is None else batch.polled_at - begun
        if batch.polled_at is not None and batch.posting_at is not None and batch.posting_server is not None:
            # Our clock may have been set meanwhile: the server's has to say so too, to the second that it shows.
            sent = batch.posting_server + (begun - batch.posting_at)
            waited = min(waited, batch.polled_at + self.snapshot.clock_offset - sent + _DATE)
        return batch.polled_at is not None and not batch.failures and waited >= self.policy.create_grace

    # -- queues -----------------------------------------------------------------------------------------------------

    def queued_for_batch(self) -> None:
        """Rules 4, 5, 7 and 8 for what waits for a batch."""
        waiting = sum(batch.requests for batch in self.snapshot.batches if batch.state is not BatchState.ENDED)
        most = self.policy.limits.batch_requests_in_queue
        room = MAX_REQUESTS if most is None else most - waiting  # a batch that ends makes room, and asks again
        sendable = self.batch_works and room > 0 and not self._paused()
        ready = [group for group in self.snapshot.batch_queue if not self._diverted(group, sendable=sendable)]
        if not sendable:
            return
        ready = [group for group in ready if not self._too_early(group)]
        for bundle in sorted(_bundles(ready), key=_soonest):
            if room > 0 and self._bundle_due(bundle):
                most_now = min(MAX_REQUESTS, room)
                self.actions.append(Seal(tuple(g.terms.id for g in bundle), bundle[0].terms.betas, most_now))
                room -= min(most_now, sum(group.requests for group in bundle)) if most is not None else 0

    def _too_early(self, group: Group) -> bool:
        if group.not_before is None or group.not_before <= self.now:
            return False
        self.note(group.not_before)
        return True

    def _diverted(self, group: Group, *, sendable: bool) -> bool:
        """Rules 1, 5, 7 and 8: whether the group leaves the batch queue."""
        terms = group.terms
        if terms.deadline is not None and terms.deadline <= self.now and self.policy.late == "fail":
            self.actions.append(FailLate(terms.id))
            return True
        last = self._last_seal(group)
        if last is None or not self.sync_works:
            return False
        at_once = self.cancel_at(group)
        too_late = last < self.now or (at_once is not None and at_once <= self.horizon)
        if too_late or (not sendable and self.due(last)):
            self.actions.append(Move(terms.id, Lane.SYNC))
            return True
        return False

    def _last_seal(self, group: Group) -> datetime | None:
        """Rule 5: until when it may go into a batch; None: as long as it likes."""
        last, deadline = self.cancel_at(group), group.terms.deadline
        if last is None or deadline is None:
            return None
        if is_hedged(group.terms, self.policy):
            return last
        rescue = self.margin + self._lane_time(group)
        return min(last, deadline - rescue - self.policy.window)

    def _bundle_due(self, bundle: list[Group]) -> bool:
        if any(group.flush for group in bundle):
            return True
        if sum(g.requests for g in bundle) >= MAX_REQUESTS or sum(g.size for g in bundle) >= MAX_BYTES:
            return True
        return self._any_due(moment for group in bundle for moment in self._seal_moments(group))

    def _seal_moments(self, group: Group) -> Iterator[datetime]:
        yield group.since + group.terms.interval if group.not_before is None else group.not_before
        if group.terms.submit_by is not None:
            yield group.terms.submit_by
        last = self._last_seal(group)
        if last is not None:
            yield last

    def queued_for_sync(self) -> None:
        """Rules 7 and 8 for what waits for the sync lane, in the order in which it runs."""
        ready = []
        for group in self.snapshot.sync_queue:
            terms = group.terms
            late = terms.deadline is not None and terms.deadline <= self.now
            if late and self.policy.late == "fail":
                self.actions.append(FailLate(terms.id))
            elif late and terms.lane is Lane.BATCH and self.batch_works:
                self.actions.append(Move(terms.id, Lane.BATCH))
            elif self.sync_works and (group.not_before is None or self.due(group.not_before)):
                ready.append((self._urgency(group), group))
        self._hand_out(sorted(ready, key=lambda pair: pair[0]))

    def _hand_out(self, ready: Iterable[tuple[tuple[int, datetime], Group]]) -> None:
        """As much as the lane does until the next look: what is claimed early would stand before what comes later.

        Something urgent is held up only by what the lane holds of no later deadline.
        """
        held = sorted((group.terms.deadline or _NEVER, self._lane_time(group)) for group in self.snapshot.sync_running)
        sums = list(accumulate((time for _, time in held), initial=_ZERO))
        budget, given = self.horizon - self.now + _AHEAD, _ZERO
        for (rank, _), group in ready:
            before = bisect_right(held, group.terms.deadline or _NEVER, key=itemgetter(0)) if rank == 0 else len(held)
            free, needed = budget - given - sums[before], self._lane_time(group)
            if rank == _BLOCKING or needed <= free:
                requests = group.requests
            else:
                requests = max(0, -(-group.requests * free // needed))
                self.note(self.now + _AHEAD / 2)
            if requests:
                given += needed * requests / group.requests
                self.actions.append(Run(group.terms.id, requests, urgent=rank == 0))

    def _lane_time(self, group: Group) -> timedelta:
        return work(_cohort(group, self.now, None), self.limits)

    def _urgency(self, group: Group) -> tuple[int, datetime]:
        """Rescues without slack first, then blocking work, then by deadline; what is late anyway comes last."""
        start = self.start(group)
        if start is not None:
            return (0 if start <= self.horizon + self.margin else 2), start
        if group.terms.blocking:
            return _BLOCKING, group.since
        return (3 if group.terms.deadline is None else 4), group.since


def _bundles(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Groups that may share a create call: the same headers, and deadlines so near each other that one rescue fits."""

    def order(group: Group) -> tuple[object, ...]:
        deadline = group.terms.deadline
        hedged = group.terms.reason is Reason.HEDGED
        return group.terms.betas, hedged, deadline is not None, deadline or group.since, group.terms.id

    bundle: list[Group] = []
    for group in sorted(groups, key=order):
        if bundle and not _may_share(bundle[0], group):
            yield bundle
            bundle = []
        bundle.append(group)
    if bundle:
        yield bundle


def _soonest(bundle: list[Group]) -> tuple[bool, datetime]:
    """Where the account's queue has little room, the nearest deadline goes first."""
    first = bundle[0]
    return first.terms.deadline is None, first.terms.deadline or first.since


def _may_share(first: Group, other: Group) -> bool:
    one, two = first.terms, other.terms
    return (
        one.betas == two.betas
        and (one.reason is Reason.HEDGED) == (two.reason is Reason.HEDGED)
        and may_share(one.deadline, two.deadline, tolerance=max(one.interval, _NEAR))
    )


def safe_moments(snapshot: Snapshot, now: datetime, policy: Policy) -> dict[int, datetime]:
    """By batch: its last safe moment, for people to see."""
    planner = _Planner(snapshot, now, policy, _ZERO)
    found = {batch.id: planner.cancel_moments(batch) for batch in snapshot.batches}
    return {number: min(moments) for number, moments in found.items() if moments}


def next_due(snapshot: Snapshot, now: datetime, policy: Policy) -> datetime | None:
    """When some process must run at the latest so that every deadline is kept; None: nothing waits.

    Looks at batches that a pump takes in between, to be early, are not counted.
    """
    planner = _Planner(attrs.evolve(snapshot, leased=True), now, policy, _ZERO)
    planner.curious = False
    planner.walk()
    return now if planner.actions else planner.next


def plan(snapshot: Snapshot, now: datetime, policy: Policy, *, wake_gap: timedelta = _ZERO) -> tuple[Action, ...]:
    """What has to be done now.

    Args:
        snapshot: The unsettled work.
        now: The moment (aware UTC).
        policy: The rules' figures.
        wake_gap: How much later than asked for the planner may be asked again (a cron's period; 0 for a pump).

    Returns:
        Actions in the order in which to begin them; a `WaitUntil` stands last where something falls due later.
        Without the lease only what concerns the sync lane.
    """
    planner = _Planner(snapshot, now, policy, wake_gap)
    planner.walk()
    if planner.next is not None:
        planner.actions.append(WaitUntil(planner.next))
    return tuple(planner.actions)
