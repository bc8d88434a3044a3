"""The rules for queued work: when it is sealed into a batch, run on the sync lane, moved to the other lane, failed.

`planner` lists the rules by their numbers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from itertools import accumulate
from operator import attrgetter, itemgetter

from batchwise.basics.times import ZERO
from batchwise.models import Lane

from .admission import may_wait, priming_ends
from .agenda import Agenda, FailLate, Move, Run, Seal
from .batch_size import best_size, expected_ends
from .cache_priming import Caching, Primed, Step, next_step
from .capacity import queue_limit
from .packing import MAX_BYTES, MAX_REQUESTS, may_share
from .rescue import is_hedged
from .reserve import longest_batch_of
from .state import BatchState, Group

__all__ = ["divert", "tend_batch_queue", "tend_sync_queue"]

_NEAR = timedelta(minutes=1)
"""Deadlines this near each other always share a batch."""
_NEVER = datetime.max.replace(tzinfo=timezone.utc)
_MOST_PRIMERS = 100
"""The most prefixes that are primed at the same time, each by a batch of its own: our choice."""
_AHEAD = timedelta(minutes=1)
"""How far beyond the next pass the sync lane's time is claimed, so that the lane does not run dry."""


class _Urgency(IntEnum):
    """In which order the sync lane takes queued work."""

    RESCUE = 0
    """Work that has to start before the next pass to be in time."""
    BLOCKING = 1
    DEADLINE = 2
    ANY_TIME = 3
    LATE = 4


# -- for a batch ------------------------------------------------------------------------------------------------------


def tend_batch_queue(agenda: Agenda) -> None:
    """Apply rules 1, 4, 5, 7, 8 and 11 to work that waits for a batch."""
    snapshot, most = agenda.snapshot, queue_limit(agenda.policy.limits)
    waiting = sum(batch.requests for batch in snapshot.batches if batch.state is not BatchState.ENDED)
    room = MAX_REQUESTS if most is None else most - waiting  # a batch that ends makes room, and asks again
    sendable = agenda.batch_works and room > 0 and not _paused(agenda)
    ready = [group for group in snapshot.batch_queue if not divert(agenda, group, sendable=sendable)]
    if not sendable:
        return
    priming = priming_ends(snapshot, agenda.policy)
    for bundle in sorted(_bundles(ready), key=_soonest):
        largest = _largest_batch(agenda, bundle)
        if room <= 0 or not _bundle_due(agenda, bundle, largest):
            continue
        for caching, groups in _by_caching(agenda, bundle, priming, largest):
            most_now = 1 if caching is Caching.PRIMER else min(largest, room)
            if room > 0:
                agenda.add(Seal(tuple(group.terms.id for group in groups), bundle[0].terms.betas, most_now, caching))
            room -= min(most_now, sum(group.requests for group in groups)) if most is not None else 0


def _by_caching(
    agenda: Agenda, bundle: list[Group], priming: dict[str, datetime], largest: int
) -> Iterator[tuple[Caching, list[Group]]]:
    """Yield a due bundle by how its batches treat the prompt cache, without requests that wait for a primer.

    Requests with the same prefix go into the same batches. Prefixes that get a primer are added to `priming`.
    """
    if agenda.policy.cache != "prime":
        yield Caching.AS_IS, bundle
        return
    shares: dict[str, list[Group]] = {}
    for group in bundle:
        shares.setdefault(group.terms.prefix, []).append(group)
    sent: dict[Caching, list[list[Group]]] = {Caching.AS_IS: [shares.pop("", [])]}
    for prefix, groups in shares.items():
        step, until = _step(agenda, groups, priming.get(prefix))
        if step.waits:
            agenda.note(until)
        elif step.caching is Caching.PRIMER and len(priming) < _MOST_PRIMERS and _may_wait(agenda, prefix):
            priming[prefix] = until
            yield Caching.PRIMER, groups[:1]
        else:
            way = Caching.AS_IS if step.caching is Caching.PRIMER else step.caching
            sent.setdefault(way, []).append(groups)
    for caching, found in sent.items():
        yield from ((caching, groups) for groups in _filled(found, largest) if groups)


def _filled(shares: Iterable[list[Group]], largest: int) -> Iterator[list[Group]]:
    """Yield shares joined into batches: a share that fits into one batch is not split."""
    together, count = list[Group](), 0
    for groups in shares:
        requests = sum(group.requests for group in groups)
        if together and count + requests > largest:
            yield together
            together, count = [], 0
        together, count = [*together, *groups], count + requests
    yield together


def _may_wait(agenda: Agenda, prefix: str) -> bool:
    """Whether all work of this prefix can wait for a primer, and every deadline is still kept in the worst case."""
    until = agenda.horizon + longest_batch_of(agenda.policy)
    return may_wait(agenda.snapshot, prefix, until, agenda.now, agenda.policy)


def _step(agenda: Agenda, groups: list[Group], primed_by: datetime | None) -> tuple[Step, datetime]:
    """Return the next step for requests that share a prefix, and until when they may wait."""
    terms, snapshot, takes = groups[0].terms, agenda.snapshot, longest_batch_of(agenda.policy)
    lasts = [last for group in groups for last in (group.terms.submit_by, agenda.rescues.last_seal(group))]
    last = min((each for each in lasts if each is not None), default=None)
    hedged = any(is_hedged(group.terms, agenda.policy) for group in groups)
    step = next_step(
        sum(group.requests for group in groups),
        terms.prefix_tokens,
        model=terms.model,
        tariff=snapshot.tariffs.get(terms.model),
        hits=snapshot.hits,
        known=snapshot.prefixes.get(terms.prefix, Primed()),
        primed_by=primed_by,
        now=agenda.now,
        asked_next=agenda.horizon,
        last=agenda.now if hedged else last,
        takes=takes,
    )
    until = agenda.now + takes if primed_by is None else primed_by
    return step, until if last is None else min(until, last)


def _paused(agenda: Agenda) -> bool:
    until = agenda.snapshot.batch_paused_until
    if until is None or until <= agenda.now:
        return False
    agenda.note(until)
    return True


def divert(agenda: Agenda, group: Group, *, sendable: bool) -> bool:
    """Apply rules 1, 5, 7 and 8 to a group; returns whether it leaves the batch queue."""
    terms = group.terms
    if terms.deadline is not None and terms.deadline <= agenda.now and agenda.policy.late == "fail":
        agenda.add(FailLate(terms.id))
        return True
    last_seal = agenda.rescues.last_seal(group)
    if last_seal is None or not agenda.sync_works:
        return False
    cancelled_at = agenda.rescues.cancel_at(group)  # if it went into a batch now
    too_late = last_seal < agenda.now or (cancelled_at is not None and cancelled_at <= agenda.horizon)
    if too_late or (not sendable and agenda.due(last_seal)):
        agenda.add(Move(terms.id, Lane.SYNC))
        return True
    return False


def _bundle_due(agenda: Agenda, bundle: list[Group], largest: int) -> bool:
    if any(group.flush for group in bundle):
        return True
    if sum(g.requests for g in bundle) >= largest or sum(g.size for g in bundle) >= MAX_BYTES:
        return True
    return agenda.any_due(moment for group in bundle for moment in _seal_moments(agenda, group))


def _largest_batch(agenda: Agenda, bundle: list[Group]) -> int:
    """Return the most requests that one batch of these may have."""
    asked = agenda.policy.max_batch_requests
    if asked == "auto":
        return best_size(sum(group.requests for group in bundle), expected_ends(bundle, agenda.snapshot.batch_ends))
    return min(MAX_REQUESTS, asked or MAX_REQUESTS)


def _seal_moments(agenda: Agenda, group: Group) -> Iterator[datetime]:
    yield group.since + group.terms.interval
    if group.terms.submit_by is not None:
        yield group.terms.submit_by
    last = agenda.rescues.last_seal(group)
    if last is not None:
        yield last


def _bundles(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Yield groups that may share a create call: the same headers, and deadlines so near that one rescue fits."""

    def order(group: Group) -> tuple[object, ...]:
        deadline = group.terms.deadline
        return group.terms.betas, group.terms.hedged, deadline is not None, deadline or group.since, group.terms.id

    bundle: list[Group] = []
    for group in sorted(groups, key=order):
        if bundle and not _may_share(bundle[0], group):
            yield bundle
            bundle = []
        bundle.append(group)
    if bundle:
        yield bundle


def _soonest(bundle: list[Group]) -> tuple[bool, datetime]:
    """Return the sort key by which bundles are sent: the nearest deadline first, as not all of them may find room."""
    first = bundle[0]
    return first.terms.deadline is None, first.terms.deadline or first.since


def _may_share(first: Group, other: Group) -> bool:
    one, two = first.terms, other.terms
    return (
        one.betas == two.betas
        and one.hedged == two.hedged
        and may_share(one.deadline, two.deadline, tolerance=max(one.interval, _NEAR))
    )


# -- for the sync lane ------------------------------------------------------------------------------------------------


def tend_sync_queue(agenda: Agenda) -> None:
    """Apply rules 7 and 8 to work that waits for the sync lane, in the order in which it runs."""
    ready = []
    for group in agenda.snapshot.sync_queue:
        terms = group.terms
        late = terms.deadline is not None and terms.deadline <= agenda.now
        if late and agenda.policy.late == "fail":
            agenda.add(FailLate(terms.id))
        elif late and terms.lane is Lane.BATCH and agenda.batch_works and not terms.max_cost_each:
            # Under a spend limit only the cost of one call is reserved for it.
            agenda.add(Move(terms.id, Lane.BATCH))
        elif agenda.sync_works:
            ready.append((_urgency(agenda, group), group))
    _hand_out(agenda, sorted(ready, key=itemgetter(0)))


def _hand_out(agenda: Agenda, ready: Iterable[tuple[tuple[_Urgency, datetime], Group]]) -> None:
    """Claim no more than the lane can do before the next pass, so that later urgent work is not stuck behind it.

    So urgent work waits only for claimed work whose deadline is no later.
    """
    by_class = agenda.rescues.capacity.by_class
    lanes = by_class(ready, lambda entry: entry[1].terms.model)
    held = by_class(agenda.snapshot.sync_running, attrgetter("terms.model"))
    given = [run for name, entries in lanes.items() for run in _share_out(agenda, entries, held.get(name, ()))]
    for _, run in sorted(given, key=itemgetter(0)):  # the most urgent of all classes first
        agenda.add(run)


def _share_out(
    agenda: Agenda, ready: Iterable[tuple[tuple[_Urgency, datetime], Group]], running: Iterable[Group]
) -> Iterator[tuple[tuple[_Urgency, datetime], Run]]:
    """Yield the claims for the work of one class of models."""
    lane_time = agenda.rescues.lane_time
    held = sorted((_due(agenda, group), lane_time(group)) for group in running)
    sums = list(accumulate((time for _, time in held), initial=ZERO))
    budget, given = agenda.horizon - agenda.now + _AHEAD, ZERO
    for (urgency, since), group in ready:
        rescue = urgency is _Urgency.RESCUE  # it waits only for what is due no later
        ahead = bisect_right(held, _due(agenda, group), key=itemgetter(0)) if rescue else len(held)
        free, needed = budget - given - sums[ahead], lane_time(group)
        if urgency is _Urgency.BLOCKING or needed <= free:
            requests = group.requests
        else:
            requests = max(0, -(-group.requests * free // needed))  # rounded up
            agenda.note(agenda.now + _AHEAD / 2)
        if requests:
            given += needed * requests / group.requests
            yield (urgency, since), Run(group.terms.id, requests, urgent=rescue, model=group.terms.model)


def _due(agenda: Agenda, group: Group) -> datetime:
    """Return the deadline if it can be kept; late work and work without a deadline come last."""
    kept = agenda.rescues.start(group) is not None
    return group.terms.deadline if kept and group.terms.deadline is not None else _NEVER


def _urgency(agenda: Agenda, group: Group) -> tuple[_Urgency, datetime]:
    """Return the sort key of a group in the sync queue."""
    start = agenda.rescues.start(group)
    if start is not None:
        soon = start <= agenda.horizon + agenda.rescues.margin
        return (_Urgency.RESCUE if soon else _Urgency.DEADLINE), start
    if group.terms.blocking:
        return _Urgency.BLOCKING, group.since
    return (_Urgency.ANY_TIME if group.terms.deadline is None else _Urgency.LATE), group.since
