"""The rules for batches: when one is unsealed, looked for, polled, cancelled or collected, or its rows are rescued."""

from __future__ import annotations

from datetime import datetime, timedelta

from batchwise.basics.times import ZERO

from .agenda import Action, Agenda, Cancel, Collect, GiveUp, MoveFromBatch, Poll, Probe, Reconcile, Unseal
from .capacity import tail_of
from .clock_skew import sent_at
from .reserve import reading_of
from .retries import pause_after_failures
from .state import BatchState, BatchView

__all__ = ["tend", "tend_stranded"]

_DATE = timedelta(seconds=1)
"""The resolution of the server's clock, as its `Date` header shows it."""
_LATELY = timedelta(minutes=10)
"""For so long after an answer the sync lane counts as working, and after a failure as down: our choice."""


def tend(agenda: Agenda, batch: BatchView) -> None:
    """Apply rules 1, 3, 6 and 7 to one batch."""
    match batch.state:
        case BatchState.OPEN:
            _tend_open(agenda, batch)
        case BatchState.SEALED:
            if not _move_due(agenda, batch):
                agenda.add(Unseal(batch.id))
        case BatchState.POSTING:
            _move_due(agenda, batch)
        case BatchState.IN_DOUBT:
            if not _move_due(agenda, batch, Reconcile(batch.id)):
                if _grace_over(agenda, batch):
                    agenda.add(GiveUp(batch.id))
                else:
                    _look(agenda, batch, Reconcile(batch.id))
        case BatchState.WATCHED:
            _look(agenda, batch, Reconcile(batch.id))
        case BatchState.CANCELING:
            if not _move_due(agenda, batch, Poll(batch.id)):
                _look(agenda, batch, Poll(batch.id))
        case BatchState.ENDED:  # its rows are paid for: they are bought again only if they cannot be read
            _move_unread(agenda, batch)
            _look(agenda, batch, Collect(batch.id))
        case BatchState.CLOSED | BatchState.VOID:
            pass


def tend_stranded(agenda: Agenda, batch: BatchView) -> None:
    """Apply rule 10 to a batch that the lease's holder has left until its last safe moment."""
    if batch.state is BatchState.ENDED:
        _move_unread(agenda, batch)
    else:
        _move_due(agenda, batch)


# -- the rescue -------------------------------------------------------------------------------------------------------


def _tend_open(agenda: Agenda, batch: BatchView) -> None:
    if not batch.groups and (_answers(agenda, agenda.now) or not _waits(agenda)):
        # Its requests have gone elsewhere: every row that it finishes now is paid for nothing.
        agenda.add(Cancel(batch.id))
    elif batch.cancel_at is not None and _move_due(agenda, batch):
        pass  # the cancel had no effect
    elif not _rescue(agenda, batch):
        _look(agenda, batch, Poll(batch.id))


def _rescue(agenda: Agenda, batch: BatchView) -> bool:
    """Apply rule 3; returns whether the cancel, or the look or probe before it, is due."""
    moments = agenda.rescues.cancel_moments(batch)
    if not agenda.sync_works or not moments:
        return False
    due, first, tail = agenda.any_due(moments), min(moments), tail_of(agenda.policy.limits)
    if _answers(agenda, agenda.now if due else first):
        return due and _after_a_look(agenda, batch, first, Cancel(batch.id))
    if not due and first - tail > agenda.now:  # a probe so early that its answer comes before the cancel
        agenda.note(first - tail)
        return False
    failed, waits = _failed_at(agenda), _waits(agenda)
    proceeds = due and failed is None  # a slow or throttled lane is no reason to lose deadlines
    if waits and (proceeds or max(waits) > agenda.now - tail):  # a call older than that says nothing by then
        late = proceeds and agenda.due(min(min(waits) + tail, first + agenda.policy.cancel_settle))
        return late and _after_a_look(agenda, batch, first, Cancel(batch.id))
    retry_at = agenda.now if failed is None else failed + agenda.policy.poll_every[1]
    if retry_at > agenda.now:
        agenda.note(retry_at)
        return False
    if any(isinstance(action, Probe) for action in agenda.actions):
        return False
    urgent = min((at, group.terms.id) for group in batch.groups if (at := agenda.rescues.cancel_at(group)) is not None)
    return _after_a_look(agenda, batch, first if due else first - tail, Probe(batch.id, urgent[1]))


def _after_a_look(agenda: Agenda, batch: BatchView, moment: datetime, action: Action) -> bool:
    """Add an action that was due at `moment`, or first a look whether the batch has ended meanwhile."""
    agenda.add(action if _fresh(agenda, batch, moment) else Poll(batch.id))
    return True


def _failed_at(agenda: Agenda) -> datetime | None:
    """Return when the sync lane failed; None: long ago, or it has answered since."""
    failed, answered = agenda.snapshot.sync_failed_at, agenda.snapshot.sync_answered_at
    lately = failed is not None and failed >= agenda.now - _LATELY and (answered is None or answered < failed)
    return failed if lately else None


def _answers(agenda: Agenda, moment: datetime) -> bool:
    """Whether the sync lane is known to work until `moment`."""
    answered = agenda.snapshot.sync_answered_at
    since = moment - _LATELY - tail_of(agenda.policy.limits)
    return agenda.sync_works and answered is not None and answered >= since and _failed_at(agenda) is None


def _waits(agenda: Agenda) -> list[datetime]:
    """Return since when each group has waited or run on the sync lane."""
    return [group.since for group in (*agenda.snapshot.sync_running, *agenda.snapshot.sync_queue)]


def _rescue_starts(agenda: Agenda, batch: BatchView) -> list[tuple[datetime, int]]:
    """Return when the rows of each of its terms have to be on the sync lane."""
    starts = ((agenda.rescues.start(group), group.terms.id) for group in batch.groups)
    return [(start, terms) for start, terms in starts if start is not None]


def _move_due(agenda: Agenda, batch: BatchView, look: Action | None = None) -> bool:
    """Apply rule 1. While there is time, look at the batch first: it may have ended."""
    if not agenda.sync_works:
        return False
    due = [(start, terms) for start, terms in _rescue_starts(agenda, batch) if agenda.due(start)]
    if not due:
        return False
    if look is not None and min(due)[0] > agenda.now and not _fresh(agenda, batch, min(due)[0]):
        agenda.add(look)
    else:
        agenda.add(MoveFromBatch(batch.id, tuple(terms for _, terms in due)))
    return True


def _move_unread(agenda: Agenda, batch: BatchView) -> None:
    unread = (batch.polled_at or batch.sealed_at) + reading_of(agenda.policy)
    starts = [start for start, _ in _rescue_starts(agenda, batch)]
    if batch.failures or (starts and max(min(starts), unread) <= agenda.now):
        _move_due(agenda, batch)
    elif starts:
        agenda.note(max(min(starts), unread))


# -- looks ------------------------------------------------------------------------------------------------------------


def _fresh(agenda: Agenda, batch: BatchView, moment: datetime) -> bool:
    """Whether the batch was looked at since, or shortly before, `moment`, or cannot be looked at."""
    looked, since = batch.polled_at, moment - (agenda.horizon - agenda.now) - agenda.policy.poll_every[0]
    return batch.failures > 0 or (looked is not None and looked >= since)


def _look(agenda: Agenda, batch: BatchView, action: Action) -> None:
    moment = _next_poll(agenda, batch)
    if not agenda.optional_polls:  # such a poll can wait until the batch is certainly over
        over = batch.expires_at or batch.sealed_at + agenda.policy.window
        moment = max(moment, over - agenda.snapshot.clock_offset)
    if moment <= agenda.now:
        agenda.add(action)
    else:
        agenda.note(moment)


def _next_poll(agenda: Agenda, batch: BatchView) -> datetime:
    """Return when to poll a batch next: less and less often, but at its expiry, and often again after it."""
    shortest: timedelta
    longest: timedelta
    shortest, longest = agenda.policy.poll_every
    begun = batch.posting_at or batch.sealed_at
    if batch.polled_at is None:
        return batch.sealed_at if batch.state is not BatchState.OPEN else begun + shortest
    if batch.failures:
        return batch.polled_at + pause_after_failures(batch.failures, agenda.policy)
    if batch.state is BatchState.ENDED:
        return batch.polled_at
    since = batch.cancel_at or begun if batch.state is BatchState.CANCELING else begun
    expiry = None if batch.expires_at is None else batch.expires_at - agenda.snapshot.clock_offset
    if expiry is not None and expiry <= batch.polled_at:
        since = max(since, expiry)
    moment = batch.polled_at + min(longest, max(shortest, (batch.polled_at - since) / 10))
    return expiry if expiry is not None and batch.polled_at < expiry < moment else moment


def _grace_over(agenda: Agenda, batch: BatchView) -> bool:
    """Apply rule 6: whether no candidate is left, and a listing after the grace (by the server's clock) shows none."""
    if set(batch.candidates) - set(batch.struck):
        return False
    begun = batch.last_byte_at or batch.posting_at or batch.sealed_at
    waited = ZERO if batch.polled_at is None else batch.polled_at - begun
    sent = sent_at(batch)
    if batch.polled_at is not None and sent is not None:
        # Our clock may have been set meanwhile, so the server's has to agree, to its resolution.
        waited = min(waited, batch.polled_at + agenda.snapshot.clock_offset - sent + _DATE)
    return batch.polled_at is not None and not batch.failures and waited >= agenda.policy.create_grace
