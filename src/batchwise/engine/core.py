"""The core that both drivers share: routing and accepting, the planner's pass, money, and who is told what."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from time import monotonic
from typing import NoReturn

import attrs
import tenacity

from batchwise import events
from batchwise.basics.wording import in_requests
from batchwise.errors import (
    BatchwiseError,
    InvalidRequestError,
    JobNotFoundError,
    LedgerError,
    TicketNotFoundError,
    shown,
)
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.values import Accepted, Cap, Claim, Entry, Offer, RequestRow, Settlement, Which
from batchwise.models import (
    Decision,
    Lane,
    LatencyTag,
    Outcome,
    Policy,
    ResultError,
    Status,
    ToolUse,
    check_policy,
)
from batchwise.planning import agenda, planner
from batchwise.planning.capacity import tail_of
from batchwise.planning.clock_skew import believed, longest_pause
from batchwise.planning.continuation import failed
from batchwise.planning.custom_ids import UNSEALED, custom_id
from batchwise.planning.deadline_risk import SAFE, Risk, risks
from batchwise.planning.outcomes import Fault
from batchwise.planning.packing import MAX_CALL_BYTES
from batchwise.planning.pricing import PICO, Tariff, book_of
from batchwise.planning.state import BatchState, Group, Snapshot, Terms
from batchwise.request import Request, check_job

from .admissions import Admissions
from .forecasts import Forecasts
from .health import Health
from .queue import BACKGROUND, BLOCKING, URGENT, CallQueue, Slot
from .routes import Router, check_size, decision_of
from .setbacks import Setbacks
from .suspensions import Suspensions
from .telemetry import observe
from .telling import Hook, Telling
from .uncapped import bounded, kept_for, most_under_way, withheld
from .under_way import UnderWay
from .waits import Waits

__all__ = ["Engine"]

_log = logging.getLogger("batchwise")
_SOON = timedelta(seconds=1)
_RENEWED = timedelta(minutes=1)
"""After its next try a process has so long to tell again what still fails."""
_WATCH = 2.0
"""Seconds between two looks whether deadlines are in danger, at least."""
_NAMED = 3
"""Jobs that are named to whoever looks for a key in the wrong one, at most."""
_PAGE = 500
"""Results that are looked through at a time."""
_UNKEPT = "unkept"
"""Under which name it is noted that work waits for room under the spend limit."""
_NO_ROOM = (
    "the limit has no room for what {} of these requests can cost, or nothing bounds that; they wait. Raise the limit, "
    "cancel them, or run them without one"
)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Engine:
    """One dispatcher's core. Thread-safe; blocks for ledger calls only.

    Args:
        ledger: The durable record.
        policy: The rules' figures; None: those under which the ledger's work was last accepted, else the defaults.
        endpoint: The client's base URL, which the ledger is bound to; None: it is only looked at, and not changed.
        now: The clock; injected by tests that run in virtual time.
        on_event: Is told what happens.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: Policy | None,
        *,
        endpoint: str | None,
        now: Callable[[], datetime] = _utc_now,
        on_event: Hook | None = None,
    ) -> None:
        if policy is not None:
            check_policy(policy)
        self.ledger, self.endpoint, self.now = ledger, endpoint or "", now
        self.telling = Telling(on_event, lambda: self.now())  # noqa: PLW0108  # the clock may be set anew
        self.suspensions = Suspensions(ledger, self.telling)
        kept = ledger.kept_policy()
        self._unstored_policy = None if policy == kept else policy
        """The policy that the ledger has to be told once work is accepted under it."""
        self.policy = policy = policy or kept or Policy()
        if kept is not None and self._unstored_policy is not None:
            words = policy.differs_from(kept)
            _log.info("batchwise: other policy than the work in %s was accepted under: %s", ledger.name, words)
        self.prices = book_of(policy.prices)
        self.forecasts = Forecasts(ledger, policy)
        self.router = Router(policy, self.prices, self.forecasts.of)
        ledger.reckon_by(lambda: self.prices.source, lambda terms, body: bounded(terms, body, self.router, self.now()))
        self.admissions = Admissions(ledger, policy)
        self.queue = CallQueue(policy.limits)
        self.health = Health(self.queue, lambda: self.now())  # noqa: PLW0108  # the clock may be set anew
        self.waits = Waits(policy.linger)
        self.setbacks = Setbacks(now)
        self.on_settled: Callable[[Sequence[int]], None] = lambda _requests: None
        self._sent_uncapped = 0
        """pico-USD that may be spent on what was sent without a spend limit, where there is one now."""
        if policy.max_spend is not None:
            self._sent_uncapped = most_under_way(ledger.snapshot(), self.router, self.now())
        self.claimed, self.run = False, 0
        if endpoint is not None:
            self.claimed = ledger.bind(endpoint=endpoint, workspace=None)
            self.run = ledger.start_run(pid=os.getpid(), now=self.now())
            ledger.recover(now=self.now(), cap=self.cap())
        self.unpaid: Counter[int] = Counter()
        """How often a request's calls were refused for load, or not even sent, by its number."""
        self.workspace_known = False
        """Whether the client's workspace is known to be the ledger's."""
        self.stalled: frozenset[int] = frozenset()
        """Jobs none of whose batches could be read the last time."""
        self.backlog = False
        """Whether the ledger held calls to hand out, the last time."""
        self.under_way = UnderWay()
        self._watched = -1e9
        """When it was last looked whether deadlines are in danger, by the monotonic clock."""
        observe(self)

    # -- whose it is ------------------------------------------------------------------------------------------------

    def bind(self, workspace: str | None) -> None:
        """Learn whose workspace the client's is; None: the API did not say.

        Raises:
            WrongWorkspaceError: It is not the ledger's.
        """
        self.ledger.bind(endpoint=self.endpoint, workspace=workspace)
        self.workspace_known = True

    # -- accepting --------------------------------------------------------------------------------------------------

    def cap(self) -> Cap | None:
        """The spend limit as of now; None: there is none."""
        if self.policy.max_spend is None:
            return None
        period = self.policy.max_spend_period
        limit = int(self.policy.max_spend * PICO) - self._sent_uncapped
        return Cap(limit=limit, since=None if period is None else self.now() - period)

    def accept(self, request: Request, job: str | None) -> tuple[Accepted, Decision]:
        """Accept one request; once it is durable, a new one for the sync lane is queued there.

        Raises:
            BatchwiseError: Whatever was wrong with it; nothing was stored or sent.
        """
        offer, decision = self._offer(request, job)
        return self._accepted(offer, decision, partial(self.ledger.accept, offer))

    def accepting(self, request: Request, job: str | None) -> Callable[[], tuple[Accepted, Decision]]:
        """The same in two steps: what this gives waits for the commit. See `Accepting.accepting`."""
        offer, decision = self._offer(request, job)
        return partial(self._accepted, offer, decision, self.ledger.accepting(offer))

    def _offer(self, request: Request, job: str | None) -> tuple[Offer, Decision]:
        """The request as the ledger is asked to accept it, and what was decided about it."""
        if job is not None:
            check_job(job)
        now = self.now()
        decision, terms = self.router.recall(request, now)
        check_size(request, terms)
        if terms.due is not None:
            admitted = self.admissions.one(terms, len(request.body), now)
            if admitted is not terms:
                decision, terms = decision_of(admitted), admitted
        self.suspensions.resume_on_first_use()
        claims: list[Claim] | None = None
        if terms.lane is Lane.SYNC and Lane.SYNC not in self.suspensions.lanes:
            claims = []
        return Offer(Entry(request.key, request.body, terms), job, self.run, now, claims, self.cap()), decision

    def _accepted(self, offer: Offer, decision: Decision, store: Callable[[], Accepted]) -> tuple[Accepted, Decision]:
        job, now = offer.job, offer.now
        try:
            accepted = store()
        except BaseException:
            self._take_up_stored(offer.claims or [])
            raise
        for claim in offer.claims or ():
            self.push(claim)
        self._keep_policy()
        if accepted.row.lane is Lane.BATCH:
            self.waits.joined(now)
        if accepted.created and self.telling.wanted:
            batch, number = accepted.row.lane is Lane.BATCH, accepted.row.id
            self.telling.tell(events.Accepted(at=now, job=job, batch=int(batch), sync=int(not batch), request=number))
        return accepted, decision if accepted.created else _decided_before(decision, accepted.row.terms)

    def _take_up_stored(self, claims: Iterable[Claim]) -> None:
        """Queue what was accepted though its acceptance failed: a thread that waits for the disk may be interrupted."""
        for claim in claims:
            with suppress(BatchwiseError):
                row = self.ledger.rows(Which(requests=[claim.id])).get(claim.id)
                if row is None or row.key != claim.key or self.queue.holds(claim.id):
                    continue  # its number was given again
                if self.ledger.note_attempt(
                    claim.id, run=self.run, costs_attempt=False, maybe_billed=False, now=self.now()
                ):
                    self.push(claim)

    def due(self, row: RequestRow) -> datetime | None:
        """By when the pump has to look at a request just accepted; None: at once."""
        if row.lane is Lane.SYNC:
            return None
        waits = self.now() + row.terms.interval
        return waits if row.terms.submit_by is None else min(waits, row.terms.submit_by)

    def accept_all(
        self,
        requests: Iterable[Request],
        job: str | None,
        latency: LatencyTag | None,
        tool_use: ToolUse | None,
        check_models: Callable[[Iterable[str]], None] | None = None,
    ) -> int:
        """Accept many, whole or not at all, in bounded memory; returns the number of their job.

        Where `check_models` raises over the models asked for, nothing is accepted.
        """
        if job is not None:
            check_job(job)
        self.suspensions.resume_on_first_use()
        now = self.now()
        with self.ledger.intake(job=job, run=self.run) as intake:
            intake.stage(self.entries(requests, now, latency, tool_use))
            groups = [Group(terms=terms, requests=count, size=size, since=now) for terms, count, size in intake.fresh]
            if check_models is not None:
                check_models(group.terms.model for group in groups)
            moves = self.admissions.all(groups, now)
            intake.accept(now=now, cap=self.cap(), flush=True, sync=moves)
        self._keep_policy()
        self.admissions.forget()
        if self.telling.wanted:
            count = sum(group.requests for group in groups)
            sync = sum(group.requests for group in groups if group.terms.lane is Lane.SYNC)
            sync += sum(moved for moved, _ in moves.values())
            self.telling.tell(events.Accepted(at=now, job=job, batch=count - sync, sync=sync))
        return intake.job

    def _keep_policy(self) -> None:
        """Have the ledger keep the policy that work was accepted under, once for each dispatcher that was given one."""
        if self._unstored_policy is None:
            return
        try:
            self.ledger.keep_policy(self._unstored_policy)
        except LedgerError:  # the work is accepted; the next one tells it
            _log.debug("batchwise: the policy could not be stored yet", exc_info=True)
        else:
            self._unstored_policy = None

    def reopen(
        self,
        job: int,
        outcomes: Sequence[Outcome],
        latency: LatencyTag | None = None,
    ) -> int:
        """Queue settled requests anew; returns how many. With a latency, which counts from now, they are routed anew.

        Raises:
            AdmissionError: No lane can keep their new deadline; none of them is queued.
            SpendLimitError: They could pass the cap; none of them is queued.
            UnknownPriceError: There is a cap, and the price of one's model is unknown.
        """
        cap = self.cap()
        with_max_cost = None if cap is None else partial(self.router.with_max_cost, now=self.now())
        routed = None if latency is None else self._routed(job, outcomes, latency)
        return self.ledger.reopen(
            job=job, outcomes=outcomes, now=self.now(), cap=cap, with_max_cost=with_max_cost, routed=routed
        )

    def _routed(self, job: int, outcomes: Sequence[Outcome], latency: LatencyTag) -> dict[int, Terms]:
        """New terms for settled requests that are tried again, by their numbers, as a bulk dispatch would have them."""
        now, after = self.now(), 0
        routed, sums = {}, Counter[Terms]()
        while rows := self.ledger.results(job=job, after=after, limit=_PAGE):
            after = rows[-1].cursor
            ended = [row.request for row in rows if row.how.outcome in outcomes]
            for number, known in self.ledger.rows(Which(requests=ended)).items():
                routed[number] = terms = known.terms
                if not terms.adopted:  # else there is no body, and the ledger refuses
                    (body,) = self.ledger.bodies([number])
                    routed[number] = terms = self.router.reroute(terms, body, latency, now)
                    sums[terms] += len(body)
        counts = Counter(routed.values())
        groups = [Group(terms=terms, requests=counts[terms], size=size, since=now) for terms, size in sums.items()]
        left = self.admissions.all(groups, now)
        for number, terms in routed.items():
            count, diverted = left.get(terms, (0, terms))
            if count:
                left[terms] = count - 1, diverted
                routed[number] = diverted
        self.admissions.forget()
        return routed

    def entries(
        self, requests: Iterable[Request], now: datetime, latency: LatencyTag | None, tool_use: ToolUse | None
    ) -> Iterator[Entry]:
        """What to store of each, one at a time; those alike are routed once."""
        routes: dict[object, Terms] = {}
        last: object = None
        position = -1
        try:
            for position, request in enumerate(requests):
                if not isinstance(request, Request):
                    _refuse_item(request, position)
                signature = self.router.signature(request, now)
                if signature != last:  # mostly they are alike, and comparing two costs less than a hash
                    found = routes.get(signature)
                    if found is None:
                        found = routes[signature] = self._route_named(request, position, now, latency, tool_use)
                    last, terms = signature, found
                if len(request.body) > MAX_CALL_BYTES:
                    _check_size(request, terms, position)
                yield Entry(request.key, request.body, terms)
        except Exception as error:
            # Most come out of the caller's own iterable, which does not know what has become of the items before.
            if add_note := getattr(error, "add_note", None):  # Python 3.11
                add_note(f"dispatch_all had taken {position + 1} items; nothing of it was accepted")
            raise

    def _route_named(
        self, request: Request, position: int, now: datetime, latency: LatencyTag | None, tool_use: ToolUse | None
    ) -> Terms:
        try:
            return self.router.route(request, now, latency, tool_use)[1]
        except InvalidRequestError as error:
            raise type(error)(f"item #{position} of dispatch_all: {error}") from None

    # -- the planner's pass -----------------------------------------------------------------------------------------

    def _tariffs(self, known: Snapshot) -> dict[str, Tariff]:
        """What the batch lane charges for the models of queued requests with a prefix."""
        models = {group.terms.model for group in known.batch_queue if group.terms.prefix}
        found = {model: self.prices.rates(model, Lane.BATCH, at=self.now()) for model in models}
        return {model: tariff for model, tariff in found.items() if tariff is not None}

    def snapshot(self) -> Snapshot:
        """The ledger's snapshot with what only this process knows."""
        known = self.suspensions.read()
        snapshot = attrs.evolve(
            self.health.seen_with(known),
            forecast=self.forecasts.of(),
            batch_ends=self.forecasts.ends(group.terms.model for group in known.batch_queue),
            tariffs=self._tariffs(known),
            leased=self.ledger.lease.held,
        )
        self.queue.told = known.measured
        self.backlog = bool(snapshot.sync_queue)
        self.stalled = frozenset(
            group.terms.job for batch in snapshot.batches if batch.failures for group in batch.groups
        ) - {group.terms.job for batch in snapshot.batches if not batch.failures for group in batch.groups}
        return snapshot

    @property
    def problems(self) -> tuple[Mapping[Lane, str], frozenset[int]]:
        """What callers who wait may have to be told: suspended lanes, and jobs whose batches cannot be read."""
        return self.suspensions.lanes, self.stalled

    def plan(self, wake_gap: timedelta = timedelta(0)) -> tuple[agenda.Action, ...]:
        """Take the lease if it is free, and ask the planner."""
        self._lead()
        snapshot = self.snapshot()
        if snapshot.leased and self._put_orphans_in_doubt(snapshot):
            snapshot = self.snapshot()
        now = self.now()
        right = self._set_right(snapshot, now)
        self._watch(right, now)
        right, look_at = self._within_limit(right, now)
        return (*planner.plan(right, now, self.policy, wake_gap=wake_gap), *look_at)

    def _within_limit(self, known: Snapshot, now: datetime) -> tuple[Snapshot, tuple[agenda.WaitUntil, ...]]:
        """What may be sent under the spend limit; if work waits for room, when to look again, as a period moves on."""
        if self.policy.max_spend is None:
            return known, ()
        self._sent_uncapped = most_under_way(known, self.router, now)
        cap = self.cap()
        if cap is not None and kept_for(known, self.ledger, self.router, cap, now):
            known = self._set_right(self.snapshot(), now)
        right, held = withheld(known, self.router, now)
        if not held:
            self.setbacks.mended(_UNKEPT)
            return right, ()
        self.backlog = bool(right.sync_queue)
        pause = self.policy.poll_every[1]
        fault = Fault(None, "spend_limit", _NO_ROOM.format(held))
        self.setbacks.refused(_UNKEPT, "sending what was accepted without Policy.max_spend", fault, pause)
        return right, (agenda.WaitUntil(now + pause),)

    def _set_right(self, known: Snapshot, now: datetime) -> Snapshot:
        """What is believed of a snapshot. Where the clock was ahead, that is stored: the ledger has to agree to it."""
        right = believed(known, now, self.policy)
        if right is not known:
            self.health.set_right(right)
            for batch, was in zip(right.batches, known.batches, strict=True):
                if batch is not was:
                    self.ledger.update_batch(batch, was=was)
            self.ledger.set_right(right, now=now, latest=now + longest_pause(self.policy))
        return right

    def take_over(self) -> bool:
        """Go on with what a process that has ended left: its calls, and the lease. Returns whether there was any.

        A process that ends need not write anything, so this has to be looked for again and again.
        """
        recovered = self.clear_up()
        return self._lead() or recovered

    def clear_up(self) -> bool:
        """Go on with the calls of a process that has ended; returns whether there were any."""
        return self.ledger.recover(now=self.now(), cap=self.cap()) > 0

    def _lead(self) -> bool:
        """Take the lease if it is free; returns whether it was taken now."""
        lease = self.ledger.lease
        return not lease.held and lease.acquire()

    def flush(self) -> None:
        """Have all that is queued for a batch sent now."""
        self.suspensions.resume_on_first_use()
        self.ledger.flush()

    def submit_waited(self) -> None:
        """Have what is waited for sent, unless something joined it within the last `Policy.linger`."""
        waited = self.waits.take(self.now())
        if waited is None:
            return
        try:
            if waited.requests:
                self.ledger.flush(requests=waited.requests)
            for job in waited.jobs:
                self.ledger.flush(job=job)
        except BaseException:
            self.waits.put_back(waited, self.now())
            raise

    def _put_orphans_in_doubt(self, snapshot: Snapshot) -> bool:
        """Put creates that nobody sends any more into doubt: their process has ended, or broke the sending off.

        The last byte may have been sent just now, so the grace begins now.
        """
        changed = False
        for batch in snapshot.batches:
            if batch.state is BatchState.POSTING and not self.under_way.sends(batch.id):
                doubt = attrs.evolve(batch, state=BatchState.IN_DOUBT, last_byte_at=self.now(), polled_at=None)
                changed = self.ledger.update_batch(doubt, was=batch) or changed
        return changed

    def push(self, claim: Claim, *, urgent: bool = False, wait: float = 0.0) -> None:
        """Hand a claim to this process's sync lane."""
        priority = URGENT if urgent else BLOCKING if claim.terms.blocking else BACKGROUND
        due = claim.terms.deadline
        self.queue.push(
            claim, priority=priority, due=math.inf if due is None else due.timestamp(), now=monotonic(), wait=wait
        )

    def next_call(self) -> Slot | float | None:
        """The call to begin now, seconds to wait for it, or None when nothing is queued; what is late comes last."""
        return self.queue.next(monotonic(), self.now().timestamp())

    def backoff(self, failures: int) -> timedelta:
        """Exponential with jitter, from the shortest to the longest poll gap."""
        shortest, longest = (gap / timedelta(seconds=1) for gap in self.policy.poll_every)
        return _drawn(
            tenacity.wait_exponential(multiplier=shortest, max=longest) + tenacity.wait_random(0, shortest), failures
        )

    def overload_pause(self, refusals: int) -> timedelta:
        """How long a call waits that the API was too busy for so often: full jitter, up to 1 s, 2 s, 4 s, ... 16 s."""
        return _drawn(tenacity.wait_random_exponential(multiplier=1, max=16), refusals)

    # -- ends -------------------------------------------------------------------------------------------------------

    def settled(self, requests: Sequence[int]) -> None:
        """Tell whoever waits. What goes wrong in that harms none of the work."""
        self._tell_news()
        if not requests:
            return
        try:
            self.on_settled(requests)
        except Exception:  # noqa: BLE001  # logged
            _log.exception("batchwise: telling what settled failed; whoever waits notices it a moment later")

    def _tell_news(self) -> None:
        """What was noted inside of transactions and locks since the last time."""
        for each in self.ledger.take_sums():
            self.telling.settled(each)
        for name, limit, waiting in self.queue.take_news():
            self.telling.tell(events.Paced(at=self.now(), models=name, limit=limit, waiting=waiting))

    # -- deadlines in danger ----------------------------------------------------------------------------------------

    def risk(self) -> Risk:
        """How many requests are in danger, all jobs together."""
        now = self.now()
        known = believed(self.ledger.snapshot(), now, self.policy)
        return sum(risks(known, now, self.policy).values(), SAFE)

    def watch(self, known: Snapshot, now: datetime) -> None:
        """Tell of deadlines in danger. A rescue that begins in the next moment is none."""
        leeway = tail_of(self.policy.limits) + _SOON
        self.telling.risk(sum(risks(known, now, self.policy, leeway=leeway).values(), SAFE))

    def _watch(self, known: Snapshot, now: datetime) -> None:
        """Do that, and tell what fails, now and then: it takes a small share of the time, however much is queued."""
        begun = monotonic()
        if begun >= self._watched:
            self.watch(known, now)
            self._tell_setback(known)
            self._watched = begun + max(_WATCH, 20 * (monotonic() - begun))

    def failure(
        self,
        request: int,
        key: str,
        outcome: Outcome,
        error: ResultError,
        *,
        lane: Lane,
        nonce: str | None,
        attempted: bool = True,
        status: int | None = None,
        request_id: str | None = None,
    ) -> Settlement:
        """The settlement of a request that has no answer; its attempts were not billed."""
        name = custom_id(key, nonce or UNSEALED, request)
        line = failed(name, outcome, error, status=status, request_id=request_id)
        return Settlement(request, outcome, lane, line, 0, 0, attempted=attempted)

    # -- finding ----------------------------------------------------------------------------------------------------

    def job_number(self, name: str) -> int:
        """The ledger's number of a job.

        Raises:
            JobNotFoundError: There is none of this name.
        """
        check_job(name)
        number = self.ledger.job_id(name)
        if number is None:
            raise JobNotFoundError(f"no job {shown(name)} in the ledger {self.ledger.name}; is it the right ledger?")
        return number

    def find(self, key: str, job: str | None) -> RequestRow:
        """A request by its key.

        Raises:
            TicketNotFoundError: There is none.
        """
        if job is not None:
            check_job(job)
        number = 0 if job is None else self.ledger.job_id(job)
        rows = {} if number is None else self.ledger.rows(Which(key=key, job=number))
        if not rows:
            where = "" if job is None else f" in job {shown(job)}"
            others = self.ledger.rows(Which(key=key), limit=_NAMED).values()
            names = (self.ledger.job_name(row.job) for row in others)
            places = ["without a job" if name is None else f"in job {shown(name)}" for name in names]
            there = f"; there is one {' and one '.join(places)}" if places else ""
            raise TicketNotFoundError(f"no request {shown(key)}{where} in the ledger {self.ledger.name}{there}")
        (row,) = rows.values()
        return row

    def wake_gap(self) -> timedelta:
        """How long it may take until `advance` is called again: as long as it took this time, a day at most."""
        gap = self.ledger.note_advance(now=self.now()) or timedelta(0)
        return min(gap, timedelta(days=1))

    # -- the end ----------------------------------------------------------------------------------------------------

    def put_back(self) -> None:
        """Queue anew, in the ledger, the claims whose calls have not begun."""
        claims = self.queue.drain()
        try:
            self.give_back(claims)
        except BaseException:
            for claim in claims:  # else nobody would have them
                self.push(claim, urgent=claim.terms.deadline is not None)
            raise

    def give_back(self, claims: Iterable[Claim], *, costs_attempt: bool = False) -> None:
        """Queue claims anew, in the ledger."""
        numbers = [claim.id for claim in claims]
        if numbers:
            self.ledger.requeue(Which(requests=numbers), lane=Lane.SYNC, costs_attempt=costs_attempt, now=self.now())

    def warn_of_rest(self) -> None:
        """Say what stays queued because its lane is suspended: nobody may be there to be told otherwise."""
        for lane, reason in self.snapshot().suspended.items():
            left = sum(
                number
                for (where, status, _), number in self.ledger.counts(job=None).by.items()
                if where is lane and status is Status.QUEUED
            )
            if left:
                _log.warning(
                    "batchwise: %s %s queued in %s: the %s lane is suspended (%s)",
                    in_requests(left),
                    "stays" if left == 1 else "stay",
                    self.ledger.name,
                    lane.value,
                    reason,
                )

    def close(self) -> None:
        """End the run: give claims and the lease back, and let go of the ledger's liveness lock."""
        with ExitStack() as steps:  # each is taken, in the other order, whatever fails: others wait for the locks
            steps.callback(self.ledger.end_run, self.run)
            steps.callback(self._resign)
            steps.callback(self.warn_of_rest)
            steps.callback(self.put_back)
            steps.callback(self._tell_setback)

    def _tell_setback(self, known: Snapshot | None = None) -> None:
        """Have the ledger know what fails here, for other processes to see. What has not been renewed in time is over.

        Args:
            known: The ledger's snapshot; None: it is read.
        """
        try:
            kept = (self.ledger.snapshot() if known is None else known).setback
            ours = self.setbacks.told(self.run)
            over = kept is not None and (kept.run == self.run or self.now() > kept.next_try + _RENEWED)
            if ours != kept and (ours is not None or over):
                self.ledger.note_setback(ours)
        except LedgerError:  # that is what fails; this process knows it
            _log.debug("batchwise: what fails could not be stored yet", exc_info=True)

    def _resign(self) -> None:
        if self.ledger.lease.held:
            self.ledger.lease.release()


def _decided_before(now: Decision, terms: Terms) -> Decision:
    """The decision on a request that was dispatched before under its key, and what of this dispatch does not hold."""
    before = decision_of(terms)
    if now.deadline == before.deadline:
        return before
    words = f"{before.explanation}. It was dispatched before under its key, and that deadline stands"
    return attrs.evolve(before, explanation=words)


def _refuse_item(item: object, position: int) -> NoReturn:
    raise InvalidRequestError(
        f"item #{position} of dispatch_all is a {type(item).__name__}; wrap params in Request(...)"
    )


def _check_size(request: Request, terms: Terms, position: int) -> None:
    try:
        check_size(request, terms)
    except InvalidRequestError as error:
        raise type(error)(f"item #{position} of dispatch_all: {error}") from None


def _drawn(strategy: tenacity.wait.wait_base, attempt: int) -> timedelta:
    state = tenacity.RetryCallState(retry_object=tenacity.Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = max(1, attempt)
    return timedelta(seconds=float(strategy(state)))
