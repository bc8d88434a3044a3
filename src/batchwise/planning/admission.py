"""Admission: work with a deadline is accepted only while every rescue that could become necessary still fits.

In the worst case every batch expires at the end of its window. If the rescue of new work does not fit then, the work is
submitted earlier. Work that still does not fit goes to the sync lane now. If it does not fit there either, it is
refused with the figures. Where the policy hedges, a batch may be cancelled at any time, so its rows count as available
once a cancel has settled.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter

import attrs

from batchwise.basics.times import ZERO
from batchwise.errors import AdmissionError, shown
from batchwise.models import Lane, Policy

from .cache_priming import Caching
from .capacity import Capacity
from .rescue import capacity_of, cohort_of, is_hedged
from .reserve import longest_batch_of, margin_of
from .state import BatchState, Group, Snapshot, Terms
from .sync_schedule import Cohort, Shortfall, fits, servable, work

__all__ = ["Admission", "Promises", "admit", "may_wait", "priming_ends", "promises_of"]


@attrs.frozen
class Promised:
    """The promises of one class of models, with a quick sufficient test: all their work fits into the shortest span.

    Each single dispatch asks; `fits` takes 6 ms for 1,000 cohorts (measured on 2 cores).
    """

    cohorts: tuple[Cohort, ...] = ()
    work: timedelta = ZERO
    shortest: timedelta = timedelta.max

    @property
    def surely_fits(self) -> bool:
        """Whether it fits, as far as the quick test can tell."""
        return self.work <= self.shortest


@attrs.frozen
class Promises:
    """All promises, by class of models: each class has a sync lane to itself.

    Attributes:
        capacity: What the sync lane can do.
        margin: How long before its deadline the last call has to be sent.
        priming: As `priming_ends` returns it: requests that share these prefixes wait.
        by_class: The promises of each class.
    """

    capacity: Capacity
    margin: timedelta
    priming: Mapping[str, datetime] = attrs.field(factory=dict)
    by_class: Mapping[str, Promised] = attrs.field(factory=dict)

    @classmethod
    def of(
        cls,
        cohorts: Sequence[Cohort],
        capacity: Capacity,
        now: datetime,
        margin: timedelta,
        priming: Mapping[str, datetime] | None = None,
    ) -> Promises:
        """Return the promises that these cohorts need."""
        found = capacity.by_class(cohorts, attrgetter("model"))
        return cls(capacity, margin, priming or {}).with_classes(found, now)

    def with_classes(self, found: Mapping[str, Sequence[Cohort]], now: datetime) -> Promises:
        """Return these promises and more, which are given by the class of their models."""
        by_class = dict(self.by_class)
        for name, cohorts in found.items():
            known, pace = by_class.get(name, Promised()), self.capacity.pace(name)
            spans = (each.deadline - self.margin - max(now, each.release or now) for each in cohorts)
            by_class[name] = Promised(
                (*known.cohorts, *cohorts),
                sum((work(each, pace) for each in cohorts), known.work),
                min((*spans, known.shortest)),
            )
        return attrs.evolve(self, by_class=by_class)

    @property
    def cohorts(self) -> tuple[Cohort, ...]:
        """All promised cohorts."""
        return tuple(cohort for promised in self.by_class.values() for cohort in promised.cohorts)

    def with_one(self, cohort: Cohort, now: datetime) -> Promises:
        """Return these promises and one more."""
        capacity = self.capacity.joined(cohort.model)
        if capacity is not self.capacity:  # the classes share the calls of a process: each may have fewer now
            return Promises.of((*self.cohorts, cohort), capacity, now, self.margin, self.priming)
        return self.with_classes({capacity.class_of(cohort.model): (cohort,)}, now)

    def kept(self, now: datetime) -> Shortfall | None:
        """Return None if every deadline can be kept in the worst case; else what lacks."""
        for name, promised in self.by_class.items():
            if not promised.surely_fits:
                shortfall = fits(promised.cohorts, self.capacity.pace(name), now=now, tail=self.margin)
                if shortfall is not None:
                    return shortfall
        return None


def _release(terms: Terms, submitted: datetime, now: datetime, policy: Policy) -> datetime:
    """Return when rows of these terms that are submitted at a moment reach the sync lane in the worst case."""
    if is_hedged(terms, policy):
        return max(now, submitted) + policy.cancel_settle
    return submitted + longest_batch_of(policy)


def priming_ends(snapshot: Snapshot, policy: Policy) -> dict[str, datetime]:
    """Return the prefixes that a batch is writing to the prompt cache, and by when that batch is over."""
    longest = longest_batch_of(policy)
    primers = (batch for batch in snapshot.batches if batch.caching is Caching.PRIMER)
    return {group.terms.prefix: batch.sealed_at + longest for batch in primers for group in batch.groups}


def _sent_by(
    terms: Terms, since: datetime, priming: Mapping[str, datetime], now: datetime, policy: Policy, *, flush: bool
) -> datetime:
    """Return by when requests queued since a moment are sent: after their interval, and once their prefix is cached."""
    sent = now if flush else since + terms.interval
    primed = priming.get(terms.prefix)
    if primed is not None and not is_hedged(terms, policy):
        sent = max(sent, primed if terms.submit_by is None else min(primed, terms.submit_by))
    return max(now, sent)


def promises_of(snapshot: Snapshot, now: datetime, policy: Policy) -> Promises:
    """Return the promises to the ledger's unsettled work whose deadlines can still be kept."""
    capacity, margin = capacity_of(snapshot, now, policy), margin_of(policy)
    found: list[Cohort] = []

    def add(group: Group, release: datetime | None) -> None:
        due = group.terms.due
        if due is not None and due > now:
            found.append(cohort_of(group, due, release))

    for group in (*snapshot.sync_running, *snapshot.sync_queue):
        add(group, None)
    priming = priming_ends(snapshot, policy)
    for group in snapshot.batch_queue:
        sent = _sent_by(group.terms, group.since, priming, now, policy, flush=group.flush)
        add(group, _release(group.terms, sent, now, policy))
    for batch in snapshot.batches:
        for group in batch.groups:
            if batch.state in {BatchState.CANCELING, BatchState.ENDED}:
                add(group, now)
            else:
                add(group, _release(group.terms, batch.began(snapshot.clock_offset), now, policy))
    promises = Promises.of(found, capacity, now, margin, priming)
    if promises.kept(now) is None:
        return promises
    # Some deadlines are lost already, or batches have to be cancelled early: lost deadlines bind no more.
    kept: list[Cohort] = []
    for name, promised in promises.by_class.items():
        at_once = [attrs.evolve(cohort, release=None) for cohort in promised.cohorts]
        counts = servable(at_once, capacity.pace(name), now=now, tail=margin)
        kept += (_part_of(cohort, count) for cohort, count in zip(at_once, counts, strict=True) if count)
    return Promises.of(kept, capacity, now, margin, priming)


def may_wait(snapshot: Snapshot, prefix: str, until: datetime, now: datetime, policy: Policy) -> bool:
    """Whether every deadline can be kept in the worst case if all requests of a prefix wait `until` it is primed."""
    others = tuple(group for group in snapshot.batch_queue if group.terms.prefix != prefix)
    promises = promises_of(attrs.evolve(snapshot, batch_queue=others), now, policy)
    for group in snapshot.batch_queue:
        due = group.terms.due
        if group.terms.prefix == prefix and due is not None and due > now:
            sent = _sent_by(group.terms, group.since, {prefix: until}, now, policy, flush=group.flush)
            release = _release(group.terms, sent, now, policy)
            promises = promises.with_one(cohort_of(group, due, release), now)
    return promises.kept(now) is None


def _part_of(cohort: Cohort, requests: int) -> Cohort:
    return attrs.evolve(
        cohort,
        requests=requests,
        input_tokens=cohort.input_tokens * requests // cohort.requests,
        output_tokens=cohort.output_tokens * requests // cohort.requests,
    )


@attrs.frozen
class Admission:
    """The decision where new work goes.

    Attributes:
        terms: The terms as promised: with a shorter interval if they have to be submitted earlier.
        sync: How many of the group go to the sync lane now, of those that were routed to a batch.
        promises: All promises, the new ones included.
        words: What was changed, and why; empty if nothing was.
    """

    terms: Terms
    sync: int
    promises: Promises
    words: str = ""


def admit(group: Group, promises: Promises, now: datetime, policy: Policy, *, at_once: bool) -> Admission:
    """Promise a group of new requests its deadline: all in a batch, some of them, or all on the sync lane.

    Their terms are as routed. A bulk dispatch is submitted `at_once`, a single request after its interval.

    Raises:
        AdmissionError: Not even the sync lane can finish them in time; the message has the figures.
    """
    terms, deadline = group.terms, group.terms.due
    if deadline is None:
        return Admission(terms, 0, promises)
    if terms.lane is not Lane.BATCH:
        return Admission(terms, 0, _on_sync(group, deadline, promises, now))
    last = _sent_by(terms, now, promises.priming, now, policy, flush=at_once)
    waits = (now,) if last == now else (last, now)
    shortfall: Shortfall | None = None
    for submitted in waits:
        cohort = cohort_of(group, deadline, _release(terms, submitted, now, policy))
        tried = promises.with_one(cohort, now)
        shortfall = tried.kept(now)
        if shortfall is None:
            if submitted == waits[0]:
                return Admission(terms, 0, tried)
            sooner = attrs.evolve(terms, interval=ZERO, submit_by=now)
            return Admission(sooner, 0, tried, "submitted at once, so that its rescue fits beside what is promised")
    return _split(group, deadline, promises, now, policy, shortfall)


def _on_sync(group: Group, deadline: datetime, promises: Promises, now: datetime) -> Promises:
    name = promises.capacity.class_of(group.terms.model)
    if deadline - promises.margin <= now + promises.capacity.limits(name).latency:
        return promises  # too near to be promised: it runs at once, and may be in time
    tried = promises.with_one(cohort_of(group, deadline), now)
    shortfall = tried.kept(now)
    if shortfall is not None:
        raise _refusal(group, deadline, shortfall)
    return tried


def _refusal(group: Group, deadline: datetime, shortfall: Shortfall | None) -> AdmissionError:
    return AdmissionError(
        f"{group.requests:,} requests for {shown(group.terms.model)} cannot be kept to their deadline "
        f"{deadline.isoformat(timespec='seconds')} beside what is promised: {shortfall}; give them a later "
        "deadline, raise Policy.limits if the account allows more, or pass a smaller expected_output_tokens"
    )


def _split(
    group: Group, deadline: datetime, promises: Promises, now: datetime, policy: Policy, shortfall: Shortfall | None
) -> Admission:
    """Put as many as possible into a batch, and the others on the sync lane now."""
    terms = group.terms

    def tried(batched: int) -> Promises:
        found = promises
        for requests, release in ((batched, _release(terms, now, now, policy)), (group.requests - batched, now)):
            if requests:
                found = found.with_one(_part_of(cohort_of(group, deadline, release), requests), now)
        return found

    # Fewer in the batch never need more of the sync lane later.
    counts = range(group.requests + 1)
    batched = bisect_left(counts, True, key=lambda count: tried(count).kept(now) is not None) - 1
    if batched < 0:
        raise _refusal(group, deadline, shortfall)
    sync = group.requests - batched
    words = f"{sync:,} of {group.requests:,} run on the sync lane now, since a rescue of all would not fit: {shortfall}"
    return Admission(attrs.evolve(terms, interval=ZERO, submit_by=now), sync, tried(batched), words)
