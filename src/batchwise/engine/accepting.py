"""Accepts requests, and settled ones anew: routes them, admits them beside what is promised already, stores them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

import attrs

from batchwise import events
from batchwise.errors import BatchwiseError
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.values import Accepted, Claim, Entry, Offer, RequestRow, Which
from batchwise.models import Decision, Lane, LatencyTag, Outcome, ToolUse
from batchwise.planning.state import Group, Terms
from batchwise.request import Request, check_job

from .admissions import Admissions
from .event_emitter import EventEmitter
from .kept_policy import KeptPolicy
from .queue import CallQueue
from .routes import Router, check_size, decision_of
from .spend_limit import SpendLimit
from .suspensions import Suspensions
from .sync_lane import SyncLane
from .waits import Waits

__all__ = ["Accepting"]

_PAGE = 500
"""Results that `reopen` reads at a time."""


class Accepting:
    """Accepts requests for one run of a dispatcher. Thread-safe.

    Args:
        ledger: Where they are stored.
        run: The ledger's number of this run.
        router: Finds the lane of each.
        admissions: Says whether the deadline of a request can be promised.
        spend_limit: The limit on spending.
        suspensions: The lanes that take no work.
        queue: The calls of this process.
        sync_lane: Takes up what the sync lane gets.
        waits: Learns of each request that may go into the same batch as requests that somebody waits for.
        kept_policy: Has the ledger keep the policy.
        emitter: Passes events on to the log and to listeners.
        now: The wall clock.
    """

    def __init__(
        self,
        ledger: Ledger,
        run: int,
        *,
        router: Router,
        admissions: Admissions,
        spend_limit: SpendLimit,
        suspensions: Suspensions,
        queue: CallQueue,
        sync_lane: SyncLane,
        waits: Waits,
        kept_policy: KeptPolicy,
        emitter: EventEmitter,
        now: Callable[[], datetime],
    ) -> None:
        self._ledger, self._run, self._now = ledger, run, now
        self._router, self._admissions, self._spend_limit = router, admissions, spend_limit
        self._suspensions, self._queue, self._sync_lane = suspensions, queue, sync_lane
        self._waits, self._kept_policy, self._emitter = waits, kept_policy, emitter

    # -- one request ------------------------------------------------------------------------------------------------

    def accept(self, request: Request, job: str | None) -> tuple[Accepted, Decision]:
        """Accept one request; once it is durable, a new one for the sync lane is queued there.

        Raises:
            BatchwiseError: The request cannot be accepted; nothing was stored or sent.
        """
        offer, decision = self._offer(request, job)
        return self._accepted(offer, decision, partial(self._ledger.accept, offer))

    def begin(self, request: Request, job: str | None) -> Callable[[], tuple[Accepted, Decision]]:
        """Begin to accept one request; the function that this returns waits for the commit, and has to be called."""
        offer, decision = self._offer(request, job)
        return partial(self._accepted, offer, decision, self._ledger.begin_accept(offer))

    def _offer(self, request: Request, job: str | None) -> tuple[Offer, Decision]:
        """Return the request as it is offered to the ledger, and the decision about it."""
        if job is not None:
            check_job(job)
        now = self._now()
        decision, terms = self._router.recall(request, now)
        check_size(request, terms)
        if terms.due is not None:
            admitted = self._admissions.one(terms, len(request.body), now)
            if admitted is not terms:
                decision, terms = decision_of(admitted), admitted
        self._suspensions.resume_on_first_use()
        claims: list[Claim] | None = None
        if terms.lane is Lane.SYNC and Lane.SYNC not in self._suspensions.lanes:
            claims = []
        entry = Entry(request.key, request.body, terms)
        return Offer(entry, job, self._run, now, claims, self._spend_limit.max_spend()), decision

    def _accepted(self, offer: Offer, decision: Decision, store: Callable[[], Accepted]) -> tuple[Accepted, Decision]:
        try:
            accepted = store()
        except BaseException:
            self._take_up_stored(offer.claims or [])
            raise
        for claim in offer.claims or ():
            self._sync_lane.push(claim)
        self._kept_policy.keep()
        row, job, now = accepted.row, offer.job, offer.now
        if row.lane is Lane.BATCH:
            self._waits.joined(now)
        if not accepted.created:
            return accepted, _decided_before(decision, row.terms)
        if self._emitter.wanted:
            batch = row.lane is Lane.BATCH
            self._emitter.emit(events.Accepted(at=now, job=job, batch=int(batch), sync=int(not batch), request=row.id))
        return accepted, decision

    def _take_up_stored(self, claims: Iterable[Claim]) -> None:
        """Queue requests that are stored although `accept` raised: Ctrl-C may interrupt the wait for the disk."""
        for claim in claims:
            with suppress(BatchwiseError):
                row = self._ledger.rows(Which(requests=[claim.id])).get(claim.id)
                if row is None or row.key != claim.key or self._queue.holds(claim.id):
                    continue  # its number was given again
                if self._ledger.note_attempt(
                    claim.id, run=self._run, costs_attempt=False, maybe_billed=False, now=self._now()
                ):
                    self._sync_lane.push(claim)

    def due(self, row: RequestRow) -> datetime | None:
        """Return by when the pump has to look at a request just accepted; None: at once."""
        if row.lane is Lane.SYNC:
            return None
        waits = self._now() + row.terms.interval
        return waits if row.terms.submit_by is None else min(waits, row.terms.submit_by)

    # -- many requests ----------------------------------------------------------------------------------------------

    def accept_all(
        self,
        requests: Iterable[Request],
        job: str | None,
        latency: LatencyTag | None,
        tool_use: ToolUse | None,
        check_models: Callable[[Iterable[str]], None] | None = None,
    ) -> int:
        """Accept all requests or none, in bounded memory; returns the number of their job.

        If `check_models` raises for the models that the requests ask for, nothing is accepted.
        """
        if job is not None:
            check_job(job)
        self._suspensions.resume_on_first_use()
        now = self._now()
        with self._ledger.intake(job=job, run=self._run) as intake:
            intake.stage(self._router.entries(requests, now, latency, tool_use))
            groups = [Group(terms=terms, requests=count, size=size, since=now) for terms, count, size in intake.fresh]
            if check_models is not None:
                check_models(group.terms.model for group in groups)
            moves = self._admissions.all(groups, now)
            intake.accept(now=now, max_spend=self._spend_limit.max_spend(), flush=True, sync=moves)
        self._kept_policy.keep()
        self._admissions.forget()
        self._emit_accepted(groups, moves, job, now)
        return intake.job

    def _emit_accepted(
        self, groups: Sequence[Group], moves: Mapping[Terms, tuple[int, Terms]], job: str | None, now: datetime
    ) -> None:
        if not self._emitter.wanted:
            return
        count = sum(group.requests for group in groups)
        sync = sum(group.requests for group in groups if group.terms.lane is Lane.SYNC)
        sync += sum(moved for moved, _ in moves.values())
        self._emitter.emit(events.Accepted(at=now, job=job, batch=count - sync, sync=sync))

    # -- settled requests, anew -------------------------------------------------------------------------------------

    def reopen(self, job: int, outcomes: Sequence[Outcome], latency: LatencyTag | None) -> int:
        """Queue settled requests of a job anew, to be sent now; returns how many.

        With a latency, which counts from now, they are routed again.

        Raises:
            AdmissionError: No lane can keep their new deadline; none of them is queued.
            SpendLimitError: They could pass the spend limit; none of them is queued.
            UnknownPriceError: There is a spend limit, and the price of a model is unknown.
        """
        self._suspensions.resume_on_first_use()
        max_spend, now = self._spend_limit.max_spend(), self._now()
        count = self._ledger.reopen(
            job=job,
            outcomes=outcomes,
            now=now,
            max_spend=max_spend,
            with_max_cost=None if max_spend is None else partial(self._router.with_max_cost, now=now),
            routed=None if latency is None else self._routed(job, outcomes, latency, now),
        )
        self._ledger.flush(Which(job=job))
        return count

    def _routed(self, job: int, outcomes: Sequence[Outcome], latency: LatencyTag, now: datetime) -> dict[int, Terms]:
        """Return new terms for settled requests by their numbers, as a bulk dispatch would give them."""
        routed, sizes, after = {}, Counter[Terms](), 0
        while rows := self._ledger.results(job=job, after=after, limit=_PAGE):
            after = rows[-1].cursor
            ended = [row.request for row in rows if row.how.outcome in outcomes]
            for number, known in self._ledger.rows(Which(requests=ended)).items():
                routed[number] = terms = known.terms
                if not terms.adopted:  # else there is no body, and the ledger refuses
                    body = self._ledger.body(number)
                    routed[number] = terms = self._router.reroute(terms, body, latency, now)
                    sizes[terms] += len(body)
        counts = Counter(routed.values())
        groups = [Group(terms=terms, requests=counts[terms], size=size, since=now) for terms, size in sizes.items()]
        left = self._admissions.all(groups, now)
        for number, terms in routed.items():
            count, diverted = left.get(terms, (0, terms))
            if count:
                left[terms] = count - 1, diverted
                routed[number] = diverted
        self._admissions.forget()
        return routed


def _decided_before(now: Decision, terms: Terms) -> Decision:
    """Return the first decision on a request whose key was dispatched before; it says if its deadline differs now."""
    before = decision_of(terms)
    if now.deadline == before.deadline:
        return before
    words = f"{before.explanation}. It was dispatched before under its key, and that deadline stands"
    return attrs.evolve(before, explanation=words)
