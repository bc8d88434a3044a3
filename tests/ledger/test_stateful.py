"""The ledger against a plain dict, by a rule-based state machine that also crashes, reopens and recovers."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from batchwise.errors import KeyConflictError, LedgerError
from batchwise.ledger import transitions
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.open_rows import OpenRows
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.values import Claim, Offer, Which
from batchwise.models import Lane, Outcome, Status
from batchwise.planning.capacity import Measured
from batchwise.planning.state import BatchState, Group, Terms
from tests.postgres import Schemas, opened_without_grace

from .model import (
    BATCH,
    BLOCKING,
    FLEXIBLE,
    HOUR,
    IN_FLIGHT,
    NIGHTLY,
    NOW,
    PATIENT,
    QUEUED,
    SETTLED,
    SYNC,
    counted,
    entry,
    find,
    missing,
    move,
    posted,
    requeue,
    row_of,
    settlement,
    unseal,
)

TERMS = [
    FLEXIBLE,
    NIGHTLY,
    BLOCKING,
    PATIENT,
    attrs.evolve(NIGHTLY, deadline=NOW + 40 * HOUR, max_cost_each=8, max_cost_per_byte=4),
]
JOBS = [None, "j", "'"]
MOMENTS = ["batch_paused_until", "sync_answered_at", "sync_failed_at"]
paces = st.builds(
    Measured,
    at=st.integers(0, 9).map(lambda hours: NOW + hours * HOUR),
    share=st.none() | st.floats(0, 1),
    requests_per_minute=st.none() | st.integers(1, 9),
    input_tokens_per_minute=st.none() | st.integers(1, 9),
    output_tokens_per_minute=st.none() | st.integers(1, 9),
)
keys = st.sampled_from(["a", "b", "c\0", "\ud800"])
bodies = st.sampled_from([b'{"a":1}', b'{"a":22}'])
specs = st.tuples(st.none() | keys, st.sampled_from(TERMS), bodies)
picks = st.integers(0, 1_000)
some = st.lists(picks, min_size=1, max_size=4)
lanes = st.sampled_from(Lane)
outcomes = st.sampled_from(Outcome)


@attrs.define
class Model:
    """One accepted request, as it has to be."""

    job: str | None
    key: str
    body: bytes
    terms: Terms
    lane: Lane
    run: int
    status: Status = QUEUED
    batch: int = 0
    attempts: int = 0
    outcome: Outcome | None = None
    met: bool | None = None
    settled_by: int | None = None
    line: bytes = b""
    abandoned: bool = False


def most(request: Model) -> int:
    """The most that one try costs on its lane: in a batch half of a call."""
    call = request.terms.max_cost_each + len(request.body) * request.terms.max_cost_per_byte
    return call // 2 if request.lane is BATCH else call


def kept(request: Model) -> int:
    """What is reserved for it: in a batch also the call of a rescue."""
    return 3 * most(request) if request.lane is BATCH else most(request)


def plain(terms: Terms) -> Terms:
    return attrs.evolve(terms, id=0, job=0)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._make_store()
        self.ledger: Ledger = self._open()
        self.requests: dict[int, Model] = {}
        self.order: list[int] = []  # in the order of settling
        self.batches: dict[int, BatchState] = {}
        self.now = NOW
        self.cost = self.wasted = self.doubles = self.unseen = 0
        self.lateness = timedelta(0)
        self.late: set[tuple[int, int]] = set()
        self.open_rows: dict[int, tuple[OpenRows, dict[int, Terms]]] = {}
        self.nonce = 0
        self.noted: dict[str, Any] = {"clock_offset": timedelta(0), **dict.fromkeys(MOMENTS)}
        self.measured: dict[str, Measured] = {}
        self._start()

    def _make_store(self) -> None:
        self.folder = Path(tempfile.mkdtemp())

    def _drop_store(self) -> None:
        shutil.rmtree(self.folder)

    def _open(self) -> Ledger:
        return SqliteLedger(self.folder / "ledger.db")

    def _start(self) -> None:
        self.run = self.ledger.start_run(pid=1, now=self.now)
        self.positions: dict[str, int] = {}

    def teardown(self) -> None:
        self.ledger.close()
        self._drop_store()

    # -- the model's own rules ----------------------------------------------------------------------------------------

    def _find(self, job: str | None, key: str) -> int | None:
        return next((n for n, each in self.requests.items() if (each.job, each.key) == (job, key)), None)

    def _join(self, number: int, new: Terms) -> bool:
        old = self.requests[number]
        if old.status is SETTLED:
            if not old.abandoned:
                return False
            if new.deadline is not None and new.deadline <= self.now:
                new = attrs.evolve(new, deadline=None, submit_by=None, rescue_at=None)
            self.order.remove(number)
            self.requests[number] = Model(old.job, old.key, old.body, new, new.lane, self.run, batch=old.batch)
            return True
        deadlines = [each.deadline for each in (old.terms, new) if each.deadline]
        earlier = new.deadline is not None and (old.terms.deadline is None or new.deadline < old.terms.deadline)
        queued = old.status is QUEUED
        changes = {"deadline": min(deadlines, default=None), "blocking": old.terms.blocking and new.blocking}
        if old.terms.lane is BATCH and (earlier or (new.blocking and queued)):
            old.terms = attrs.evolve(new, **changes)
            if queued:
                old.lane = new.lane
        elif old.terms.lane is SYNC:
            before = old.terms
            old.terms = attrs.evolve(before, **changes)
            if queued and old.terms != before:
                old.lane = SYNC
        if queued:
            old.run = self.run
        return False

    def _settled(self, number: int, outcome: Outcome, lane: Lane, line: bytes, by: int, cost: int) -> None:
        request = self.requests[number]
        request.status, request.outcome, request.lane, request.line = SETTLED, outcome, lane, line
        request.settled_by = by
        due = request.terms.deadline
        if due is not None and outcome is not Outcome.CANCELED:
            request.met = outcome is Outcome.SUCCEEDED and self.now <= due
            self.lateness = max(self.lateness, self.now - due)
        self.order.append(number)
        self.cost += cost

    def _by_kind(self, numbers: Iterable[int]) -> list[int]:
        """The order in which one call settles these: those of the same terms and attempts together."""
        kinds: dict[tuple[int, int], list[int]] = {}
        for number in sorted(numbers):
            row = row_of(self.ledger, number)
            assert row is not None
            kinds.setdefault((row.terms.id, row.attempts), []).append(number)
        return [number for part in kinds.values() for number in part]

    def _requeue(self, number: int, lane: Lane, *, attempt: bool) -> None:
        request = self.requests[number]
        request.status, request.lane = QUEUED, lane
        request.attempts += attempt

    def _doubt(self, numbers: Iterable[int]) -> None:
        """These may have been bought: counted, and what they cost at most counts as spent."""
        for number in numbers:
            self.doubles += 1
            self.unseen += most(self.requests[number])

    def _choose(self, pool: list[int], wanted: list[int]) -> list[int]:
        return sorted({pool[each % len(pool)] for each in wanted}) if pool else []

    def _where(self, **fields: Any) -> list[int]:
        return [n for n, each in self.requests.items() if all(getattr(each, k) == v for k, v in fields.items())]

    def _in_batch(self, batch: int) -> list[int]:
        return self._where(status=IN_FLIGHT, lane=BATCH, batch=batch)

    def _ids(self, terms: Terms) -> list[int]:
        """The ledger's numbers of these terms, of all jobs."""
        groups = [*self._groups()]
        return [group.terms.id for group in groups if plain(group.terms) == terms]

    def _groups(self) -> list[Group]:
        snapshot = self.ledger.snapshot()
        inside = [group for batch in snapshot.batches for group in batch.groups]
        return [*snapshot.batch_queue, *snapshot.sync_queue, *snapshot.sync_running, *inside]

    # -- intake -----------------------------------------------------------------------------------------------------

    @rule(spec=specs, job=st.sampled_from(JOBS), claim=st.booleans())
    def accept(self, spec: tuple[str | None, Terms, bytes], job: str | None, claim: bool) -> None:
        key, terms, body = spec
        found = None if key is None else self._find(job, key)
        begun: list[Claim] = []
        offer = Offer(entry(key, terms, body), job, self.run, self.now, begun if claim else None)
        if found is not None and self.requests[found].body != body:
            try:
                self.ledger.accept(offer)
            except KeyConflictError:
                assert not begun
                return
            raise AssertionError("a taken key was given again")
        got = self.ledger.accept(offer)
        number = got.row.id
        assert [each[:6] for each in begun] == [(number, got.row.key, got.row.terms, body, 0, ())] * (
            claim and got.created
        )
        if key is None and number in self.requests:
            request = self.requests[number]
            assert job is not None
            assert (request.job, request.body) == (job, body)
            assert request.key.startswith("#")
            found = number
        if found is None:
            assert got.created
            lane = SYNC if claim else terms.lane
            self.requests[number] = Model(job, got.row.key, body, terms, lane, self.run)
            if claim:
                self.requests[number].status = IN_FLIGHT
        else:
            assert number == found
            anew = self._join(found, terms)
            assert got.created is anew
            if anew and claim:
                self.requests[found].status, self.requests[found].lane = IN_FLIGHT, SYNC

    @rule(
        specs=st.lists(specs, min_size=1, max_size=6),
        job=st.sampled_from(JOBS),
        chunk=st.integers(1, 4),
        keep=st.booleans(),
        flush=st.booleans(),
    )
    def bulk(
        self, specs: list[tuple[str | None, Terms, bytes]], job: str | None, chunk: int, keep: bool, flush: bool
    ) -> None:
        entries = [entry(key, terms, body) for key, terms, body in specs]
        names = [f"#{index}" if key is None and job is not None else key for index, (key, _, _) in enumerate(specs)]
        seen: dict[str, bytes] = {}
        conflict = False
        for name, (_, _, body) in zip(names, specs, strict=True):
            if name is None:
                continue
            found = self._find(job, name)
            known = seen.get(name) if found is None else self.requests[found].body
            conflict = conflict or (known is not None and known != body)
            seen[name] = body
        try:
            with self.ledger.intake(job=job, run=self.run) as intake:
                for start in range(0, len(entries), chunk):
                    intake.stage(entries[start : start + chunk])
                if not keep:
                    return
                numbers = intake.accept(now=self.now, flush=flush)
        except KeyConflictError:
            assert conflict
            return
        assert not conflict
        for number, (_, terms, body) in zip(numbers, specs, strict=True):
            if number in self.requests:
                self._join(number, terms)
            else:
                row = row_of(self.ledger, number)
                assert row is not None
                self.requests[number] = Model(job, row.key, body, terms, terms.lane, self.run)

    # -- lanes --------------------------------------------------------------------------------------------------------

    @rule(terms=st.sampled_from(TERMS), count=st.integers(1, 3), any_lane=st.booleans())
    def claim(self, terms: Terms, count: int, any_lane: bool) -> None:
        for number in dict.fromkeys(self._ids(terms)):
            for claim in self.ledger.claim(number, count, run=self.run, now=self.now, any_lane=any_lane):
                request = self.requests[claim.id]
                assert request.status is QUEUED
                assert any_lane or request.lane is SYNC
                assert claim.body == request.body
                assert claim.attempts == request.attempts
                request.status, request.lane, request.run = IN_FLIGHT, SYNC, self.run

    @rule(wanted=some, taken=st.frozensets(st.integers(1, 5)), most=st.integers(1, 6))
    def seal(self, wanted: list[int], taken: frozenset[int], most: int) -> None:
        groups = self.ledger.snapshot().batch_queue
        if not groups:
            return
        chosen = sorted({groups[each % len(groups)].terms.id for each in wanted})
        fitting = sorted(
            number for number in self._where(status=QUEUED, lane=BATCH) if self._terms_id(number) in chosen
        )[:most]
        self.nonce += 1
        batch = self.ledger.batches.seal(
            chosen, nonce=f"{self.nonce:012d}", taken=taken, now=self.now, max_requests=most, max_bytes=10**6
        )
        if batch is None:
            assert not fitting
            return
        count = next((n for n in range(len(fitting), 0, -1) if n not in taken), len(fitting))
        assert [row[0] for row in self.ledger.batches.entries(batch.id)] == fitting[:count]
        assert batch.requests == count
        self.batches[batch.id] = BatchState.SEALED
        for number in fitting[:count]:
            request = self.requests[number]
            request.status, request.batch = IN_FLIGHT, batch.id
        self._read_open_rows(batch.id)

    def _terms_id(self, number: int) -> int:
        row = row_of(self.ledger, number)
        assert row is not None
        return row.terms.id

    @precondition(lambda self: self.batches)
    @rule(wanted=picks, reached=st.booleans())
    def post(self, wanted: int, reached: bool) -> None:
        sealed = [batch for batch, state in self.batches.items() if state is BatchState.SEALED]
        for batch in self._choose(sealed, [wanted]):
            view = self.ledger.batches.get(batch)
            assert view is not None
            posted(self.ledger, view, now=self.now)
            self.batches[batch] = BatchState.POSTING
            if reached:
                self.ledger.batches.created(
                    batch, remote_id=f"r{batch}", created_at=self.now, expires_at=None, now=self.now
                )
                self.batches[batch] = BatchState.OPEN

    @rule(wanted=picks, lane=lanes, keep=st.booleans(), maybe_billed=st.booleans())
    def unseal(self, wanted: int, lane: Lane, keep: bool, maybe_billed: bool) -> None:
        for batch in self._choose(self._alive(), [wanted]):
            inside = self._in_batch(batch)
            assert unseal(self.ledger, batch, lane=lane, now=self.now, keep=keep, maybe_billed=maybe_billed) == len(
                inside
            )
            if maybe_billed:
                self._doubt(inside)
            for number in inside:
                self._requeue(number, lane, attempt=False)
            if not keep:
                self.batches[batch] = BatchState.VOID

    @precondition(lambda self: self.batches)
    @rule(wanted=picks, to=st.sampled_from(BatchState))
    def change_state(self, wanted: int, to: BatchState) -> None:
        """A batch goes from a state only to those that may follow it."""
        for view in self._choose(list(self.ledger.snapshot().batches), [wanted]):
            changed = attrs.evolve(view, state=to)
            if to is not view.state and to not in transitions.MOVES[view.state]:
                with pytest.raises(LedgerError, match=f"cannot become {to.value}|still has"):
                    self.ledger.batches.update(changed, was=view)
            elif to not in transitions.OVER:
                assert self.ledger.batches.update(changed, was=view)
                self.batches[view.id] = to

    def _alive(self) -> list[int]:
        return [batch for batch, state in self.batches.items() if state is not BatchState.VOID]

    @rule(terms=st.sampled_from(TERMS), lane=lanes)
    def move(self, terms: Terms, lane: Lane) -> None:
        numbers = set(self._ids(terms))
        moved = [
            n for n in self._where(status=QUEUED) if self._terms_id(n) in numbers and self.requests[n].lane is not lane
        ]
        assert move(self.ledger, sorted(numbers), lane=lane) == len(moved)
        for number in moved:
            self.requests[number].lane = lane

    @rule()
    def flush(self) -> None:
        self.ledger.flush()
        assert all(group.flush for group in self.ledger.snapshot().batch_queue)

    @rule(
        offset=st.none() | st.integers(-5, 5),
        moments=st.dictionaries(st.sampled_from(MOMENTS), st.integers(-9, 0)),
        paces=st.dictionaries(st.sampled_from(["a", "b'%"]), paces, max_size=2),
    )
    def note(self, offset: int | None, moments: dict[str, int], paces: dict[str, Measured]) -> None:
        """What was learnt of the API and the lanes is stored under its name; what was not learnt stays."""
        new: dict[str, Any] = {name: self.now + ago * HOUR for name, ago in moments.items()}
        if offset is not None:
            new["clock_offset"] = offset * HOUR
        self.ledger.conditions.note(**new, measured=paces)
        self.noted |= new
        self.measured |= paces

    # -- ends ---------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.batches)
    @rule(which=picks, wanted=some, outcome=outcomes, cost=st.integers(0, 9), fresh=st.booleans())
    def deliver(self, which: int, wanted: list[int], outcome: Outcome, cost: int, fresh: bool) -> None:
        """A batch delivers rows that are in it, and rows that once were."""
        (batch,) = self._choose(list(self.batches), [which])
        numbers = self._choose(self._where(batch=batch), wanted)
        text = f"{batch} {self.now if fresh else ''}".encode()
        rows = [settlement(n, outcome, line=b"%d %b" % (n, text), cost=cost) for n in numbers]
        inside = set(self._in_batch(batch))
        settles = [
            n
            for n in numbers
            if self.requests[n].status is not SETTLED and (outcome is Outcome.SUCCEEDED or n in inside)
        ]
        for row in rows:
            request = self.requests[row.id]
            if request.status is SETTLED and cost and request.settled_by != batch and request.line != row.line:
                self._waste(row.id, batch, cost)
            if request.status is not SETTLED and cost and row.id not in settles:
                self._waste(row.id, batch, cost)
        order = self._by_kind(settles)
        assert self.ledger.settle(rows, now=self.now, batch=batch) == len(settles)
        for number in order:
            self.requests[number].attempts += 1
            self._settled(number, outcome, BATCH, b"%d %b" % (number, text), batch, cost)

    @precondition(lambda self: self.batches)
    @rule(which=picks)
    def read_open_rows(self, which: int) -> None:
        (batch,) = self._choose(list(self.batches), [which])
        self._read_open_rows(batch)

    def _read_open_rows(self, batch: int) -> None:
        open_rows = self.ledger.batches.open_rows(batch)
        if open_rows is not None:
            self.open_rows[batch] = open_rows, self._open_rows_of(batch)

    def _open_rows_of(self, batch: int) -> dict[int, Terms]:
        return {number: plain(self.requests[number].terms) for number in self._in_batch(batch)}

    @precondition(lambda self: self.open_rows)
    @rule(which=picks, wanted=some, cost=st.integers(0, 9))
    def deliver_to_open_rows(self, which: int, wanted: list[int], cost: int) -> None:
        """Answers by open rows that may have been read long ago."""
        (batch,) = self._choose(list(self.open_rows), [which])
        open_rows, members = self.open_rows[batch]
        numbers = self._choose(list(members) or list(self.requests), wanted)
        answers = [(n, b"%d rolled" % n, cost, 0, 0, None) for n in numbers]
        holds = self._open_rows_of(batch) == members and members.keys() >= set(numbers)
        order = self._by_kind(numbers)
        assert self.ledger.settle_answers(open_rows, answers, now=self.now) == holds
        if not holds:
            return
        for number in order:
            del members[number]
            self.requests[number].attempts += 1
            self._settled(number, Outcome.SUCCEEDED, BATCH, b"%d rolled" % number, batch, cost)

    def _waste(self, number: int, batch: int, cost: int) -> None:
        if (number, batch) not in self.late:
            self.late.add((number, batch))
            self.wasted += cost

    @rule(wanted=some, outcome=outcomes, cost=st.integers(0, 9), maybe_billed=st.booleans())
    def answer(self, wanted: list[int], outcome: Outcome, cost: int, maybe_billed: bool) -> None:
        numbers = self._choose(self._where(status=IN_FLIGHT, lane=SYNC, run=self.run), wanted)
        rows = [
            settlement(n, outcome, SYNC, line=b"sync %d" % n, cost=cost, maybe_billed=maybe_billed) for n in numbers
        ]
        if maybe_billed:
            self._doubt(numbers)
        order = self._by_kind(numbers)
        assert self.ledger.settle(rows, now=self.now, run=self.run) == len(rows)
        assert self.ledger.settle(rows, now=self.now, run=self.run) == 0
        for number in order:
            self.requests[number].attempts += 1
            self._settled(number, outcome, SYNC, b"sync %d" % number, 0, cost)

    @rule(wanted=some, lane=lanes, attempt=st.booleans(), turn=st.none() | st.binary(min_size=1, max_size=3))
    def requeue(self, wanted: list[int], lane: Lane, attempt: bool, turn: bytes | None) -> None:
        numbers = self._choose(self._where(status=IN_FLIGHT), wanted)
        if lane is BATCH and any(self.requests[number].lane is SYNC for number in numbers):
            with pytest.raises(LedgerError, match="calling cannot become queued_batch"):
                requeue(self.ledger, numbers, lane=lane, costs_attempt=attempt, now=self.now)
            return
        assert requeue(self.ledger, numbers, lane=lane, costs_attempt=attempt, now=self.now, turn=turn) == len(numbers)
        for number in numbers:
            self._requeue(number, lane, attempt=attempt)

    @rule(job=st.sampled_from([*JOBS, "all"]))
    def cancel(self, job: str | None) -> None:
        chosen = [n for n in self._where(status=QUEUED) if job == "all" or self.requests[n].job == job]
        inside = [n for n in self._where(status=IN_FLIGHT, lane=BATCH) if job == "all" or self.requests[n].job == job]
        number = None if job == "all" else self.ledger.jobs.number(job) if job is not None else 0
        if number is None and job != "all":
            return
        got, batches = self.ledger.cancel(Which(job=number), now=self.now)
        assert got == len(chosen)
        assert set(batches) == {self.requests[n].batch for n in inside}
        self._ended_here(chosen)

    def _ended_here(self, chosen: list[int]) -> None:
        new = {row.request: row for row in self.ledger.results(job=None, after=0, limit=10_000)}
        for number in sorted(chosen, key=lambda each: new[each].cursor):
            self._settled(number, Outcome.CANCELED, self.requests[number].lane, new[number].line, 0, 0)

    @rule(job=st.sampled_from(JOBS), chosen=st.sets(outcomes, min_size=1))
    def reopen(self, job: str | None, chosen: set[Outcome]) -> None:
        number = 0 if job is None else self.ledger.jobs.number(job)
        if number is None:
            return
        again = [n for n in self.order if self.requests[n].job == job and self.requests[n].outcome in chosen]
        assert self.ledger.reopen(job=number, outcomes=sorted(chosen), now=self.now) == len(again)
        for each in again:
            old = self.requests[each]
            terms = attrs.evolve(old.terms, blocking=False)
            if terms.deadline is not None and terms.deadline <= self.now:
                terms = attrs.evolve(terms, deadline=None, submit_by=None, rescue_at=None)
            self.requests[each] = Model(old.job, old.key, old.body, terms, terms.lane, 0, batch=old.batch)
            self.order.remove(each)

    @rule(hours=st.integers(1, 60))
    def wait(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    # -- crashes ------------------------------------------------------------------------------------------------------

    @rule()
    def reopen_file(self) -> None:
        other = self._open()
        assert other.snapshot() == self.ledger.snapshot()
        assert other.statistics.counts(job=None) == self.ledger.statistics.counts(job=None)
        assert other.recover(now=self.now) == 0, "the run lives"
        other.close()

    @rule(staged=st.lists(specs, max_size=3))
    def crash(self, staged: list[tuple[str | None, Terms, bytes]]) -> None:
        """The process dies, within a bulk; the next one clears up. (Locks die with `close`, as with the process.)"""
        try:
            intake = self.ledger.intake(job="j", run=self.run)
            intake.stage([entry(*spec) for spec in staged])
        except KeyConflictError:
            pass
        dead = self.run
        self.ledger.close()
        self.ledger = self._open()
        running = self._where(status=IN_FLIGHT, lane=SYNC, run=dead)
        waiting = [n for n in self._where(status=QUEUED, lane=SYNC, run=dead) if self.requests[n].terms.blocking]
        abandoned = [n for n in [*running, *waiting] if self.requests[n].terms.blocking]
        again = [n for n in running if not self.requests[n].terms.blocking]
        assert self.ledger.recover(now=self.now) == len(abandoned) + len(again)
        assert self.ledger.recover(now=self.now) == 0
        self._ended_here(abandoned)
        for number in abandoned:
            self.requests[number].abandoned = True
        for number in again:
            self._requeue(number, SYNC, attempt=True)
        self._doubt(running)
        self._start()

    # -- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def rows_agree(self) -> None:
        for number, request in self.requests.items():
            row = row_of(self.ledger, number)
            assert row is not None
            assert (row.key, row.status, row.lane, row.attempts) == (
                request.key,
                request.status,
                request.lane,
                request.attempts,
            )
            assert plain(row.terms) == request.terms
            assert find(self.ledger, request.key, job=request.job) == row
        for batch in self._alive():
            assert missing(self.ledger, batch) == sorted(self._in_batch(batch))

    @invariant()
    def groups_agree(self) -> None:
        expected: Counter[object] = Counter()
        for each in self.requests.values():
            if each.status is not SETTLED:
                batch = each.batch if each.status is IN_FLIGHT and each.lane is BATCH else 0
                expected[each.job, each.terms, each.lane, each.status, batch] += 1
        snapshot = self.ledger.snapshot()
        got: Counter[object] = Counter()
        places = [
            *((group, BATCH, QUEUED, 0) for group in snapshot.batch_queue),
            *((group, SYNC, QUEUED, 0) for group in snapshot.sync_queue),
            *((group, SYNC, IN_FLIGHT, 0) for group in snapshot.sync_running),
            *((group, BATCH, IN_FLIGHT, batch.id) for batch in snapshot.batches for group in batch.groups),
        ]
        numbers = {job: 0 if job is None else self.ledger.jobs.number(job) for job in JOBS}
        names = {number: job for job, number in numbers.items() if number is not None}
        for group, lane, status, batch in places:
            got[names[group.terms.job], plain(group.terms), lane, status, batch] += group.requests
            assert group.since <= self.now
        assert got == expected
        sizes = sum(len(each.body) for each in self.requests.values() if each.status is not SETTLED)
        assert sum(group.size for group, *_ in places) == sizes
        assert {batch.id: batch.state for batch in snapshot.batches} == {n: self.batches[n] for n in self._alive()}

    @invariant()
    def what_was_noted_stands(self) -> None:
        snapshot = self.ledger.snapshot()
        assert {name: getattr(snapshot, name) for name in self.noted} == self.noted
        assert dict(snapshot.measured) == self.measured

    @invariant()
    def counts_agree(self) -> None:
        for job in JOBS:
            number = 0 if job is None else self.ledger.jobs.number(job)
            mine = [each for each in self.requests.values() if each.job == job]
            assert number is not None or not mine
            if number is not None:
                assert self.ledger.statistics.counts(job=number) == Counter(
                    (each.lane, each.status, each.outcome) for each in mine
                )
        assert counted(self.ledger, self.requests) == self.ledger.statistics.counts(job=None)

    @invariant()
    def results_agree(self) -> None:
        results = self.ledger.results(job=None, after=0, limit=10_000)
        assert [row.request for row in results] == self.order
        for row in results:
            request = self.requests[row.request]
            how = row.how
            assert (how.outcome, how.met, how.lane, row.line) == (
                request.outcome,
                request.met,
                request.lane,
                request.line,
            )
        assert {n for n, each in self.requests.items() if each.status is SETTLED} == set(self.order)

    @invariant()
    def books_agree(self) -> None:
        report = self.ledger.statistics.report(job=None)
        assert report.requests == len(self.order)
        assert (report.cost * 10**12, report.wasted * 10**12) == (self.cost, self.wasted)
        assert report.possible_doubles == self.doubles
        met = Counter(each.met for each in self.requests.values())
        assert (report.met, report.missed, report.worst_lateness) == (met[True], met[False], self.lateness)
        reserved = sum(map(kept, (each for each in self.requests.values() if each.status is not SETTLED)))
        with self.ledger.database.read() as db:
            assert self.ledger.books.reserved_cost(db) == reserved
            assert self.ledger.books.spent(db, None) == self.cost + self.wasted + self.unseen


TestLedgerMachine = LedgerMachine.TestCase


def test_the_same_in_postgres(schemas: Schemas) -> None:
    class PostgresMachine(LedgerMachine):
        def _make_store(self) -> None:
            self.url = schemas.url()

        def _drop_store(self) -> None:
            """The fixture does."""

        def _open(self) -> Ledger:
            return opened_without_grace(self.url)

    few = max(5, settings().max_examples // 20)  # after each step the server is asked a hundred times
    run_state_machine_as_test(PostgresMachine, settings=settings(max_examples=few, stateful_step_count=20))
