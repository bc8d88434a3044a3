"""The simulated ledger and API, and the driver that does what the planner says, as the engine does it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache

import attrs

from batchwise.drivers.passes import action_key, repeats
from batchwise.errors import AdmissionError
from batchwise.models import Lane, Policy, Rates, Reason
from batchwise.planning import admission, agenda, planner, routing
from batchwise.planning.cache_priming import LIFE, Caching, Primed
from batchwise.planning.forecast import Forecast, Sample
from batchwise.planning.pricing import PriceBook
from batchwise.planning.reserve import reserve_for
from batchwise.planning.state import BatchState, BatchView, Group, Snapshot, Terms
from batchwise.request import Request

from .lane import SyncLane
from .traffic import BODY, DAY, HOUR, INPUT_TOKENS, MINUTE, OUTPUT_TOKENS, Arrival, Scenario, at, since

MODEL = "claude-sim"
RATES = Rates(input=3, output=15)
SYNC_PRICE = (INPUT_TOKENS * 3 + OUTPUT_TOKENS * 15) / 1e6
BATCH_PRICE = SYNC_PRICE / 2
BOOK = PriceBook({MODEL: RATES})
TARIFFS = {MODEL: next(filter(None, [BOOK.rates(MODEL, Lane.BATCH)]))}
PREFIX_TOKENS = 20_000
_BACKLOG = 256  # as in engine/actions.py
_MAX_FAILURES = 10  # as in engine/suspensions.py


@attrs.define
class Tally:
    """What became of one SLA's requests."""

    requests: int = 0
    cost: float = 0.0
    wasted: float = 0.0
    missed: int = 0
    refused: int = 0
    moved: int = 0
    batched: int = 0
    settled: int = 0
    worst: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        names = [field.name for field in attrs.fields(Tally) if field.name != "worst"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Tally(**sums, worst=max(self.worst, other.worst))


Tallies = dict[float, Tally]


def total(tallies: Tallies) -> Tally:
    return sum(tallies.values(), Tally())


@lru_cache(maxsize=64)
def _request(sla: float) -> Request:
    content = "x" * (BODY - 120)
    return Request(
        {"model": MODEL, "max_tokens": 1_024, "messages": [{"role": "user", "content": content}]},
        latency=timedelta(seconds=sla),
        expected_output_tokens=OUTPUT_TOKENS,
    )


@attrs.define
class _Queued:
    requests: int
    since: float
    flush: bool


@attrs.define
class _Batch:
    """`view.groups` are those still in it; `released` went elsewhere."""

    view: BatchView
    created: float
    end: float
    done_until: float | None = None  # a cancel froze it then
    released: dict[int, int] = attrs.field(factory=dict)


Plan = Callable[..., tuple[agenda.Action, ...]]


class World:
    """One run of batchwise.

    Args:
        gap: The driver wakes up to so much later than it was asked to, and never more often (seconds); the planner
            is told so.
    """

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        scenario: Scenario,
        policy: Policy,
        *,
        gap: float = 10 * MINUTE,
        plan: Plan = planner.plan,
        seed: int = 3,
    ) -> None:
        assert policy.limits.input_tokens_per_minute is not None
        self.arrivals, self.scenario, self.policy, self.gap, self.plan = arrivals, scenario, policy, gap, plan
        self.rng = random.Random(seed)
        self.lane = SyncLane(policy.limits.input_tokens_per_minute, seed, self._called)
        self.terms: dict[int, Terms] = {}
        self.sla: dict[int, float] = {}
        self.queue: dict[Lane, dict[int, _Queued]] = {Lane.BATCH: {}, Lane.SYNC: {}}
        self.batches: dict[int, _Batch] = {}
        self.tallies: Tallies = defaultdict(Tally)
        self.instants: dict[Arrival, float] = {}
        self.origin: dict[int, Arrival] = {}
        self.samples: list[Sample] = []
        self.now = 0.0
        self.paused_until: datetime | None = None
        self.failed_creates = 0
        self.suspended: dict[Lane, str] = {}
        self.answered_at: datetime | None = None
        self.resume_at = float("inf")
        self.forecast, self._learned_at = Forecast.prior(), -1e9
        self.plans = self.passes = 0
        self._groups: dict[tuple[int, int, float, bool], Group] = {}
        self.prefixes: dict[str, Primed] = {}
        """What is known of the prefix that requests of one SLA share, where the policy primes."""

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> World:
        pending = list(reversed(self.arrivals))
        last = self.arrivals[-1].time + 4 * DAY
        wake: float | None = None
        while True:
            arrival = pending[-1].time if pending else float("inf")
            moment = min(arrival, wake if wake is not None else float("inf"))
            if moment > last:
                break
            self.lane.serve(moment)
            self.now = moment
            if arrival <= moment:
                self._arrive(pending.pop())
                soon = moment + self.rng.uniform(0, self.gap / 10)
                wake = soon if wake is None else min(wake, soon)
                continue
            wake = self._pass()
        self.lane.serve(last)
        return self

    def _pass(self) -> float | None:
        """As `advance` does it: plan and act until nothing is due. Returns when to wake next."""
        self.passes += 1
        if self.now >= self.resume_at:
            self.suspended, self.resume_at = {}, float("inf")
        done: dict[object, int] = defaultdict(int)
        wait: datetime | None = None
        for _ in range(50):
            acted = False
            self.plans += 1
            gap = timedelta(seconds=self.gap)
            actions = self.plan(self._snapshot(), at(self.now), self.policy, wake_gap=gap)
            wait = None
            for action in actions:
                if isinstance(action, agenda.WaitUntil):
                    wait = action.moment
                    continue
                if done[action_key(action)] < repeats(action, only_sending=False) and self._carry_out(action):
                    done[action_key(action)] += 1
                    acted = True
            if not acted:
                break
        moments = [] if wait is None else [since(wait)]
        if self.resume_at < float("inf"):
            moments.append(self.resume_at)
        # The planner was told that it is asked again at most `gap` late.
        wakes = [max(min(moments), self.now + 0.9 * self.gap) + self.rng.uniform(0, 0.1 * self.gap)] if moments else []
        empty = self.lane.empty_at()
        if empty is not None and self.queue[Lane.SYNC]:
            wakes.append(empty)  # a pass hands on calls until none is left
        return min(wakes, default=None)

    def _snapshot(self) -> Snapshot:
        waiting = self.lane.waiting()
        return Snapshot(
            batch_queue=tuple(self._group(n, q.requests, q.since, q.flush) for n, q in self.queue[Lane.BATCH].items()),
            sync_queue=tuple(self._group(n, q.requests, q.since, q.flush) for n, q in self.queue[Lane.SYNC].items()),
            sync_running=tuple(self._group(n, count, 0.0, False) for n, count in waiting.items()),
            batches=tuple(batch.view for batch in self.batches.values()),
            suspended=self.suspended,
            batch_paused_until=self.paused_until,
            sync_answered_at=self.answered_at,
            prefixes=self.prefixes,
            tariffs=TARIFFS,
        )

    def _group(self, number: int, requests: int, moment: float, flush: bool) -> Group:
        key = number, requests, moment, flush
        found = self._groups.get(key)
        if found is None:
            if len(self._groups) > 50_000:
                self._groups.clear()
            found = self._groups[key] = Group(
                terms=self.terms[number], requests=requests, size=requests * BODY, since=at(moment), flush=flush
            )
        return found

    def _forecast(self) -> Forecast:
        if self.now - self._learned_at > 6 * HOUR and self.samples:
            self._learned_at = self.now
            self.forecast = Forecast.from_history(self.samples[-1_000:])
        return self.forecast

    # -- accepting --------------------------------------------------------------------------------------------------

    def _arrive(self, arrival: Arrival) -> None:
        now, tally = at(self.now), self.tallies[arrival.sla]
        request, policy = _request(arrival.sla), self.policy
        case = routing.case_of(request, now=now, policy=policy, forecast=self._forecast(), prices=BOOK)
        decision = routing.decide(case)
        hedged = decision.reason is Reason.HEDGED
        terms = Terms(
            id=len(self.terms) + 1,
            lane=decision.lane,
            reason=decision.reason,
            deadline=decision.deadline,
            submit_by=decision.submit_by,
            rescue_at=decision.rescue_at,
            interval=routing.hedge_wait(case.left) if hedged else case.interval,
            model=MODEL,
            max_tokens=1_024,
            output_tokens=OUTPUT_TOKENS,
            prefix=f"{arrival.sla}" if policy.cache == "prime" else "",
            prefix_tokens=PREFIX_TOKENS,
        )
        group = Group(terms=terms, requests=arrival.requests, size=arrival.requests * BODY, since=now)
        promises = admission.promises_of(self._snapshot(), now, policy)
        tally.requests += arrival.requests
        try:
            admitted = admission.admit(group, promises, now, policy, at_once=arrival.bulk)
        except AdmissionError:
            tally.refused += arrival.requests
            return
        terms = attrs.evolve(admitted.terms, id=terms.id)
        self.terms[terms.id], self.sla[terms.id], self.origin[terms.id] = terms, arrival.sla, arrival
        batched = arrival.requests - admitted.sync if terms.lane is Lane.BATCH else 0
        tally.moved += admitted.sync
        for lane, count in ((Lane.BATCH, batched), (Lane.SYNC, arrival.requests - batched)):
            if count:
                self._put(lane, terms.id, count, flush=arrival.bulk)

    def _put(self, lane: Lane, number: int, count: int, *, flush: bool, moment: float | None = None) -> None:
        there = self.queue[lane].setdefault(number, _Queued(0, self.now if moment is None else moment, flush=flush))
        there.requests += count
        there.flush = there.flush or flush

    # -- the actions ------------------------------------------------------------------------------------------------

    def _carry_out(self, action: agenda.Action) -> bool:
        match action:
            case agenda.Seal():
                return self._seal(action)
            case agenda.Run():
                return self._run_claims(action)
            case agenda.Move():
                other = Lane.SYNC if action.lane is Lane.BATCH else Lane.BATCH
                queued = self.queue[other].pop(action.terms, None)
                if queued is not None:
                    self._put(action.lane, action.terms, queued.requests, flush=queued.flush, moment=queued.since)
                return queued is not None
            case agenda.MoveFromBatch():
                return self._move_from_batch(self.batches[action.batch], action.terms)
            case agenda.Probe():
                return self._move_from_batch(self.batches[action.batch], [action.terms], most=1)
            case agenda.Poll():
                return self._poll(self.batches.get(action.batch))
            case agenda.Cancel():
                return self._cancel(self.batches.get(action.batch))
            case agenda.Collect():
                return self._collect(self.batches.get(action.batch))
            case _:
                raise AssertionError(action)

    def _seal(self, seal: agenda.Seal) -> bool:
        queue = self.queue[Lane.BATCH]
        paused = self.paused_until is not None and self.paused_until > at(self.now)
        if paused or not any(number in queue for number in seal.terms):
            return False
        if self.scenario.down(self.now):
            self.failed_creates += 1
            if self.failed_creates >= _MAX_FAILURES:  # until somebody calls `resume()`
                self.failed_creates, self.suspended = 0, {Lane.BATCH: "10 create calls in a row failed"}
                self.resume_at = self.scenario.up_again(self.now) + self.rng.uniform(0, HOUR)
                return True
            shortest, longest = self.policy.poll_every
            wait = min(longest, shortest * 2 ** (self.failed_creates - 1))
            self.paused_until = at(self.now) + wait
            return True
        self.failed_creates, room, groups = 0, seal.max_requests, []
        for number in seal.terms:
            queued = queue.get(number)
            if queued is None or not room:
                continue
            count = min(room, queued.requests)
            room -= count
            queued.requests -= count
            if not queued.requests:
                del queue[number]
            groups.append(self._group(number, count, self.now, False))
            self.instants.setdefault(self.origin[number], self.now)
            self.tallies[self.sla[number]].batched += count
        number = len(self.instants) + self.plans * 1_000 + len(self.batches)
        while number in self.batches:
            number += 1
        created, requests = self.now, sum(group.requests for group in groups)
        view = BatchView(
            id=number,
            nonce="",
            state=BatchState.OPEN,
            remote_id=f"msgbatch_{number}",
            requests=requests,
            sealed_at=at(created),
            posting_at=at(created),
            created_at=at(created),
            expires_at=at(created + DAY),
            caching=seal.caching,
            groups=tuple(groups),
        )
        if seal.caching is Caching.PRIMER:
            prefix = groups[0].terms.prefix
            known = self.prefixes.get(prefix, Primed())
            self.prefixes = {**self.prefixes, prefix: attrs.evolve(known, tried_at=at(created))}
        self.batches[number] = _Batch(view, created, self.scenario.ends(created))
        return True

    def _poll(self, batch: _Batch | None) -> bool:
        if batch is None:
            return False
        view, now = batch.view, at(self.now)
        if self.scenario.down(self.now):
            batch.view = attrs.evolve(view, polled_at=now, failures=view.failures + 1)
        elif self.now >= batch.end:
            batch.view = attrs.evolve(view, polled_at=now, failures=0, state=BatchState.ENDED, ended_at=at(batch.end))
        else:
            batch.view = attrs.evolve(view, polled_at=now, failures=0)
        return True

    def _cancel(self, batch: _Batch | None) -> bool:
        if batch is None or batch.view.state is not BatchState.OPEN:
            return False
        now = at(self.now)
        batch.view = attrs.evolve(batch.view, state=BatchState.CANCELING, cancel_at=now, polled_at=now)
        if self.scenario.down(self.now) or self.now >= batch.end:
            return True  # the call fails; the next poll tells
        self.samples.append(_sample(batch, self.now, ended=False))
        settle = min(30.0 * MINUTE, self.rng.lognormvariate(0.7, 0.8) * MINUTE)  # median 2 min, 3 % over 9 min
        if self.rng.random() < 0.01:
            settle = DAY  # it hangs
        batch.done_until, batch.end = self.now, min(batch.end, self.now + settle)
        return True

    def _move_from_batch(self, batch: _Batch, numbers: Sequence[int], most: int | None = None) -> bool:
        going = [group for group in batch.view.groups if group.terms.id in numbers]
        staying = [group for group in batch.view.groups if group.terms.id not in numbers]
        for group in going:
            number, count = group.terms.id, group.requests if most is None else most
            batch.released[number] = batch.released.get(number, 0) + count
            self._put(Lane.SYNC, number, count, flush=True)
            if count < group.requests:
                staying.append(self._group(number, group.requests - count, since(group.since), group.flush))
        batch.view = attrs.evolve(batch.view, groups=tuple(staying))
        return bool(going)

    def _collect(self, batch: _Batch | None) -> bool:
        if batch is None or batch.view.state is not BatchState.ENDED:
            return False
        if self.scenario.down(self.now):
            view = batch.view
            batch.view = attrs.evolve(view, polled_at=at(self.now), failures=view.failures + 1)
            return True
        share = self.scenario.share_done(batch.created, batch.end if batch.done_until is None else batch.done_until)
        for group in batch.view.groups:
            done = int(group.requests * share)
            if done and group.terms.prefix:
                known = self.prefixes.get(group.terms.prefix, Primed())
                used = at(min(self.now, batch.end))
                kept = known.kept_until if batch.view.caching is Caching.AS_IS else used + LIFE
                known = attrs.evolve(known, used_at=used, kept_until=kept)
                self.prefixes = {**self.prefixes, group.terms.prefix: known}
            if done:
                self._settle(group.terms.id, done, self.now, self.now, BATCH_PRICE)
            if done < group.requests:
                self._put(self._again(group.terms), group.terms.id, group.requests - done, flush=True)
        for number, count in batch.released.items():
            self.tallies[self.sla[number]].wasted += count * share * BATCH_PRICE
            self.tallies[self.sla[number]].cost += count * share * BATCH_PRICE
        if batch.done_until is None:
            self.samples.append(_sample(batch, batch.end, ended=True))
        elif batch.view.cancel_at is not None:
            took = timedelta(seconds=batch.end) - timedelta(seconds=since(batch.view.cancel_at))
            self.samples.append(
                Sample(duration=max(timedelta(0), took), ended=True, model=MODEL, requests=100, hour=0, kind="cancel")
            )
        del self.batches[batch.view.id]
        return True

    def _again(self, terms: Terms) -> Lane:
        """As in engine/reading.py."""
        if terms.deadline is None:
            return Lane.BATCH
        left = terms.deadline - at(self.now)
        return (
            Lane.BATCH
            if left >= self.policy.window + reserve_for(self.policy, left - self.policy.window)
            else Lane.SYNC
        )

    def _run_claims(self, run: agenda.Run) -> bool:
        queued = self.queue[Lane.SYNC].get(run.terms)
        limit = self.policy.limits.concurrency or _BACKLOG
        room = (_BACKLOG if run.urgent else 0) + limit + _BACKLOG - self.lane.busy
        if queued is None or room <= 0:
            return False
        count = min(room, queued.requests)
        queued.requests -= count
        if not queued.requests:
            del self.queue[Lane.SYNC][run.terms]
        deadline = self.terms[run.terms].deadline
        due = float("inf") if deadline is None else since(deadline)
        self.answered_at = at(self.now)  # the driver ends a pass's calls before it plans again
        self.lane.push(run.terms, count, priority=0 if run.urgent else 2, due=due)
        return True

    # -- ends -------------------------------------------------------------------------------------------------------

    def _called(self, number: int, count: int, first: float, last: float) -> None:
        self._settle(number, count, first, last, SYNC_PRICE)

    def _settle(self, number: int, count: int, first: float, last: float, price: float) -> None:
        tally, deadline = self.tallies[self.sla[number]], self.terms[number].deadline
        assert deadline is not None
        tally.settled += count
        tally.cost += count * price
        settle(tally, count, first, last, since(deadline))


def settle(tally: Tally, count: int, first: float, last: float, due: float) -> None:
    """Book `count` ends spread evenly from `first` to `last` against a deadline."""
    if last > due:
        tally.missed += count if first >= due else max(1, round(count * (last - due) / (last - first)))
        tally.worst = max(tally.worst, last - due)


def _sample(batch: _Batch, end: float, *, ended: bool) -> Sample:
    return Sample(
        duration=timedelta(seconds=max(0.0, end - batch.created)),
        ended=ended,
        model=MODEL,
        requests=batch.view.requests,
        hour=at(batch.created).hour,
    )
