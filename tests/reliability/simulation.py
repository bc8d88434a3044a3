"""The Message Batches API and the Messages API as plain objects in virtual time, and a driver that may die anywhere.

`Api` implements `engine.ports.Ports`. It keeps its own account of what was bought, and it shares no code with what it
judges. `World` carries procedures out one effect at a time, interleaved by a seeded choice, so that races between
actions, and a death between any two effects, are reached without threads or sleeping.
"""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
import orjson
import pytest

import batchwise as bw
from batchwise.api.faults import LaneFault
from batchwise.api.types import BatchInfo, Counts, Listing, Reply
from batchwise.engine import call_reports, calls, planner_pass, sync_lane
from batchwise.engine.actions import carry_out, withdraw
from batchwise.engine.core import Engine
from batchwise.engine.effects import Ask, Effect, Procedure
from batchwise.engine.queue import Slot
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.values import Which
from batchwise.planning import agenda
from batchwise.planning.outcomes import Fault
from batchwise.planning.pricing import cost
from tests.postgres import opened_without_grace
from tests.strategies import params

START = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
WINDOW = timedelta(hours=24)
RETENTION = timedelta(days=29)
MODEL = "claude-sonnet-5"
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)

REFUSALS = {
    "500": Fault(500, "api_error", "Internal server error"),
    "529": Fault(529, "overloaded_error", "Overloaded"),
    "429": Fault(429, "rate_limit_error", "slow down", retry_after=30 * SECOND),
    "queue": Fault(429, "rate_limit_error", "the batch requests queue is full"),
    "413": Fault(413, "request_too_large", "too large"),
    "400": Fault(400, "invalid_request_error", "something is wrong"),
    "401": Fault(401, "authentication_error", "invalid x-api-key"),
    "404": Fault(404, "not_found_error", "not found"),
    "unconnected": Fault(None, "connection_error", "ConnectError", request_sent=False),
    "dropped": Fault(None, "connection_error", "ReadError"),
}

FAULTS = {
    "create": ("dropped before", "dropped after", "late", "cut", "unconnected", "500", "500 after", "529", "429",
               "queue", "413", "400", "401"),
    "retrieve": ("404", "500", "stale", "miscount", "nonsense", "dropped"),
    "list": ("500", "dropped", "lag"),
    "read": ("half", "cut line", "drop", "garbage", "duplicate", "missing", "500", "empty", "unknown", "stale"),
    "cancel": ("500", "dropped", "dropped after", "no effect"),
    "call": ("dropped after", "500", "529", "429", "400", "401", "unconnected"),
}  # fmt: skip


def usage_of(text: str) -> dict[str, Any]:
    """What an answer bills: for every other prompt all that the API may, in tokens and in their kinds."""
    if zlib.crc32(text.encode()) % 2:
        return {"input_tokens": 10 + len(text), "output_tokens": 7}
    body = params(text)
    size = len(json.dumps(body, separators=(",", ":")))
    return {
        "input_tokens": 0,
        "cache_creation_input_tokens": size,
        "cache_creation": {"ephemeral_1h_input_tokens": size},
        "output_tokens": body["max_tokens"],
        "inference_geo": "us",
    }


def message_of(text: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "usage": usage_of(text),
    }


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


@attrs.define
class Remote:
    """One batch at the API. Times are the server's."""

    id: str
    created_at: datetime
    rows: list[tuple[str, str]]
    """custom_id and prompt."""
    duration: timedelta
    window: timedelta = WINDOW
    ours: bool = True
    cancel_at: datetime | None = None
    no_effect: bool = False
    gone: bool = False

    @property
    def ends_at(self) -> datetime:
        end = self.created_at + min(self.duration, self.window)
        return end if self.cancel_at is None else min(end, self.cancel_at + MINUTE)

    def status(self, now: datetime) -> str:
        if now >= self.ends_at:
            return "ended"
        return "in_progress" if self.cancel_at is None else "canceling"

    def kinds(self) -> list[str]:
        """How each row ends: rows finish evenly over the duration."""
        stop = "expired" if self.cancel_at is None else "canceled"
        run = min(self.window, self.duration if self.cancel_at is None else self.cancel_at - self.created_at)
        done = len(self.rows) if self.no_effect or not self.duration else int(len(self.rows) * (run / self.duration))
        return ["succeeded" if index < done else stop for index in range(len(self.rows))]


class Died(BaseException):
    """The process ended in the middle of an effect."""


class Api:
    """The API. `order` a fault to have it happen at the next chance; `cancel` of another tool's batch is an error."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.batches: list[Remote] = []
        self.sync: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.duration = HOUR
        self.faults: dict[str, list[str]] = {}
        self.lasting: set[tuple[str, str]] = set()
        self.deadly: tuple[str, bool] | None = None
        """The operation that the process does not survive; True: it is done first."""

    def order(self, operation: str, name: str, *, always: bool = False) -> None:
        assert name in FAULTS[operation], name
        if always:
            self.lasting.add((operation, name))
        else:
            self.faults.setdefault(operation, []).append(name)

    def heal(self) -> None:
        self.faults.clear()
        self.lasting.clear()

    def _fault(self, operation: str) -> str | None:
        self.calls[operation] += 1
        if self.deadly == (operation, False):
            raise Died
        queued = self.faults.get(operation)
        if queued:
            return queued.pop(0)
        return next((name for about, name in sorted(self.lasting) if about == operation), None)

    @staticmethod
    def _refuse(name: str | None) -> None:
        if name in REFUSALS:
            raise LaneFault(REFUSALS[name])

    def add(self, rows: list[tuple[str, str]], *, ours: bool = True, ago: timedelta = timedelta(0)) -> Remote:
        number = len(self.batches) + 1
        made = Remote(f"msgbatch_{number:04d}", self.now() - ago, rows, self.duration, ours=ours)
        self.batches.append(made)
        return made

    def bought(self, lane: str | None = None) -> Counter[str]:
        """How often each prompt of ours was bought: billed, or running and perhaps billed later."""
        found: Counter[str] = Counter() if lane == "batch" else Counter(self.sync)
        if lane != "sync":
            for batch in self.batches:
                if batch.ours and batch.created_at <= self.now():
                    runs = self.now() < batch.ends_at and batch.cancel_at is None
                    kinds = batch.kinds()
                    found.update(
                        prompt
                        for (_, prompt), kind in zip(batch.rows, kinds, strict=True)
                        if runs or kind == "succeeded"
                    )
        return found

    def billed(self) -> list[tuple[str, str]]:
        """(lane, prompt) of all that is paid by now."""
        paid = [("sync", prompt) for prompt in self.sync.elements()]
        for batch in self.batches:
            if batch.ours and self.now() >= batch.ends_at:
                pairs = zip(batch.rows, batch.kinds(), strict=True)
                paid += [("batch", prompt) for (_, prompt), kind in pairs if kind == "succeeded"]
        return paid

    # -- Ports ------------------------------------------------------------------------------------------------------

    def _info(self, batch: Remote, now: datetime | None = None) -> BatchInfo:
        now = now or self.now()
        status, kinds = batch.status(now), Counter[str]()
        if status == "ended":
            kinds.update(batch.kinds())
        else:
            kinds["processing"] = len(batch.rows)
        return BatchInfo(
            id=batch.id,
            status=status,  # type: ignore[arg-type]
            counts=Counts(
                **{
                    name: kinds[name if name != "errored" else "errored"]
                    for name in ("processing", "succeeded", "errored", "canceled", "expired")
                }
            ),
            created_at=batch.created_at,
            expires_at=batch.created_at + batch.window,
            ended_at=batch.ends_at if status == "ended" else None,
            server_time=self.now().replace(microsecond=0),
        )

    def create(self, chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> BatchInfo:
        fault = self._fault("create")
        if fault in {"unconnected", "429", "queue", "413", "400", "401"}:
            self._refuse(fault)
        if fault == "cut":
            next(chunks)
            raise LaneFault(Fault(None, "connection_error", "WriteError", request_sent=False))
        body = b"".join(chunks)
        assert len(body) == length, "the Content-Length was wrong"
        rows = [(row["custom_id"], prompt_of(row["params"])) for row in json.loads(body)["requests"]]
        assert len({name for name, _ in rows}) == len(rows) > 0
        if fault in {"500", "529"}:
            self._refuse(fault)
        if fault == "dropped before":
            self._refuse("dropped")
        made = self.add(rows)
        if fault == "late":
            made.created_at += 5 * MINUTE
        if fault in {"dropped after", "late"}:
            self._refuse("dropped")
        if fault == "500 after":
            self._refuse("500")
        return self._info(made)

    def _known(self, remote_id: str) -> Remote:
        found = [batch for batch in self.batches if batch.id == remote_id and not batch.gone]
        if not found or found[0].created_at > self.now():
            raise LaneFault(REFUSALS["404"])
        return found[0]

    def retrieve(self, remote_id: str) -> BatchInfo:
        fault = self._fault("retrieve")
        self._refuse(fault)
        batch = self._known(remote_id)
        if fault != "stale":
            info = self._info(batch)
            counts = info.counts
            if fault == "miscount" and counts.succeeded:
                counts = attrs.evolve(counts, succeeded=counts.succeeded - 1, expired=counts.expired + 1)
            elif fault == "nonsense" and info.status == "ended":
                counts = Counts(processing=0, succeeded=0, errored=0, canceled=0, expired=0)
            return attrs.evolve(info, counts=counts)
        info = self._info(batch, batch.created_at)
        return attrs.evolve(info, status="in_progress")

    def cancel(self, remote_id: str) -> BatchInfo:
        fault = self._fault("cancel")
        batch = self._known(remote_id)
        assert batch.ours, "another tool's batch was cancelled"
        if fault in {"500", "dropped"}:
            self._refuse(fault)
        if batch.status(self.now()) == "ended":
            raise LaneFault(REFUSALS["400"])
        if batch.cancel_at is None:
            batch.cancel_at, batch.no_effect = self.now(), fault == "no effect"
        if fault == "dropped after":
            self._refuse("dropped")
        return self._info(batch)

    def list(self, *, limit: int, after_id: str | None = None) -> Listing:
        fault = self._fault("list")
        self._refuse(fault)
        newest = self.now() - (2 * MINUTE if fault == "lag" else timedelta(0))
        shown = [batch for batch in self.batches if batch.created_at <= newest and not batch.gone]
        shown.sort(key=lambda batch: (batch.created_at, batch.id), reverse=True)
        if after_id is not None:
            shown = shown[[batch.id for batch in shown].index(after_id) + 1 :]
        page = shown[: min(limit, 3)]  # small pages, so that paging is used
        return Listing(
            batches=tuple(map(self._info, page)),
            has_more=len(shown) > len(page),
            last_id=page[-1].id if page else None,
            server_time=self.now().replace(microsecond=0),
            workspace="workspace",
        )

    def lines(self, batch: Remote) -> list[bytes]:
        """The result lines, in no particular order."""
        made = []
        for (custom_id, prompt), kind in zip(batch.rows, batch.kinds(), strict=True):
            result: dict[str, Any] = {"type": kind}
            if kind == "succeeded":
                result["message"] = message_of(prompt)
            made.append(orjson.dumps({"custom_id": custom_id, "result": result}) + b"\n")
        return made[::-1]

    def read(self, remote_id: str, feed: Callable[[bytes], bool]) -> None:
        fault = self._fault("read")
        self._refuse(fault)
        batch = self._known(remote_id)
        if batch.status(self.now()) != "ended" or self.now() > batch.created_at + RETENTION:
            raise LaneFault(REFUSALS["404"])
        lines = self.lines(batch)
        half = len(lines) // 2
        match fault:
            case "half":
                lines = lines[:half]
            case "drop" | "cut line":
                lines = [*lines[:half], lines[half][: len(lines[half]) // 2]]
            case "garbage":
                lines.insert(half, b'{"custom_id": "gar\xff<html>\n')
            case "duplicate":
                lines.append(lines[0])
            case "missing":
                del lines[half]
            case "empty":
                lines = []
            case "unknown" | "stale":
                kind = "deferred" if fault == "unknown" else "expired"
                lines[half] = orjson.dumps({**orjson.loads(lines[half]), "result": {"type": kind}}) + b"\n"
        for line in lines:
            if not feed(line):
                return
        if fault == "drop":
            self._refuse("dropped")

    def call(self, body: bytes, *, model: str, max_tokens: int, betas: tuple[str, ...]) -> Reply:
        fault = self._fault("call")
        if fault not in {None, "dropped after"}:
            self._refuse(fault)
        prompt = prompt_of(json.loads(body))
        self.sync[prompt] += 1
        if fault == "dropped after":
            self._refuse("dropped")
        return Reply(body=orjson.dumps(message_of(prompt)), headers={}, latency=SECOND, workspace=None)


ORDER = ("sealed", "posting", "doubt", "watched", "void", "open", "canceling", "ended", "closed")
"""States of a batch: from one to an earlier one it never goes, but from `canceling` to `open`."""


class Task:
    """A procedure under way, standing before its next effect."""

    def __init__(self, procedure: Procedure[Any], done: Callable[[], None]) -> None:
        self._procedure, self.done = procedure, done
        self.value: Any = None
        self._effect: Effect | None
        self._go_on(procedure.send, None)

    @property
    def over(self) -> bool:
        return self._effect is None

    def step(self, api: Api) -> None:
        """Have the effect, and go on to the next one."""
        effect = self._effect
        assert effect is not None
        try:
            if isinstance(effect, Ask):
                before = dict(api.calls)
                value = effect.call(api)
                if api.deadly is not None and api.calls[api.deadly[0]] > before.get(api.deadly[0], 0):
                    raise Died  # noqa: TRY301  # the effect is done, and nobody hears of it
            else:
                value = effect.call()() if effect.together else effect.call()
        except Exception as error:  # noqa: BLE001  # the procedure decides
            self._go_on(self._procedure.throw, error)
        else:
            self._go_on(self._procedure.send, value)

    def _go_on(self, resume: Callable[[Any], Effect], said: Any) -> None:
        try:
            self._effect = resume(said)
        except StopIteration as stop:
            self._effect, self.value = None, stop.value

    def do_and_die(self, api: Api) -> None:
        """Carry the effect out, and end before its outcome is seen."""
        effect = self._effect
        try:
            if isinstance(effect, Ask):
                effect.call(api)
            elif effect is not None:
                done = effect.call()
                if effect.together:
                    done()
        except Exception:  # noqa: BLE001, S110  # nobody hears of it
            pass


class World:
    """One ledger, one API, and a process that drives them in virtual time.

    Our clock is the true time plus `skew`; the server's plus `server_skew`.
    """

    def __init__(
        self,
        policy: bw.Policy | None = None,
        *,
        server_skew: timedelta = timedelta(0),
        path: str = ":memory:",
        beside: World | None = None,
    ) -> None:
        """`beside`: another process's world, whose API and time this one shares; its ledger lies under `path`, too."""
        self._beside = beside
        self._true = START
        self.skew, self.server_skew = timedelta(0), server_skew
        self.policy = policy or bw.Policy()
        self.api = beside.api if beside is not None else Api(lambda: self.true + self.server_skew)
        self.ledger = opened_without_grace(path) if "://" in path else SqliteLedger(path)
        self.tasks: list[Task] = []
        self.random = random.Random(0)
        self.next_due: datetime | None = None
        self.accepted: dict[int, str] = {}
        """Request number to prompt."""
        self.seen: dict[int, tuple[bw.Outcome, bytes]] = {}
        self._facts: dict[int, tuple[str, Any, Any, Any]] = {}
        timed = (call_reports, calls, planner_pass, sync_lane)
        self._clocks = [(module, module.monotonic) for module in timed]
        for module, _ in self._clocks:
            module.monotonic = self._monotonic  # type: ignore[attr-defined]
        self.engine = self._start()

    @property
    def true(self) -> datetime:
        """The true time."""
        return self._true if self._beside is None else self._beside.true

    @true.setter
    def true(self, moment: datetime) -> None:
        if self._beside is None:
            self._true = moment
        else:
            self._beside.true = moment

    def _monotonic(self) -> float:
        return (self.true - START) / SECOND + 1_000_000.0

    def close(self) -> None:
        for module, clock in self._clocks:
            module.monotonic = clock  # type: ignore[attr-defined]
        self.ledger.close()

    def now(self) -> datetime:
        return self.true + self.skew

    def _start(self) -> Engine:
        return Engine(self.ledger, self.policy, endpoint="http://api", now=self.now)

    # -- what a user does -------------------------------------------------------------------------------------------

    def dispatch(self, text: str, latency: Any, job: str | None = None) -> int:
        accepted, _ = self.engine.accepting.accept(bw.Request(params(text), key=text, latency=latency), job)
        self.accepted[accepted.row.id] = text
        return accepted.row.id

    def dispatch_all(self, texts: list[str], latency: Any, job: str | None = None) -> None:
        requests = [bw.Request(params(text), key=text[:100]) for text in texts]
        number = self.engine.accepting.accept_all(requests, job, bw.models.to_latency(latency), None)
        self.accepted.update(zip(self.ledger.numbers(Which(job=number)), texts, strict=True))

    def cancel(self, **which: Any) -> None:
        self.tasks.append(Task(withdraw(self.engine, **which), lambda: None))

    # -- the process ------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        self.next_due = None
        for action in self.engine.plan():
            if isinstance(action, agenda.WaitUntil):
                self.next_due = action.moment - self.skew
                continue
            token = self.engine.under_way.try_begin(action)
            if token is not None:
                engine = self.engine
                self.tasks.append(
                    Task(carry_out(engine, action), lambda token=token, engine=engine: engine.under_way.end(token))  # type: ignore[misc]
                )
        while isinstance(slot := self.engine.sync_lane.next_call(), Slot):
            self.tasks.append(Task(calls.call(self.engine, slot), lambda: None))

    def run(self, steps: int = 3_000, *, unfinished: int = 0) -> None:
        """Carry out what is due, effects interleaved; `steps` effects at most, the last `unfinished` tasks left."""
        before = sum(self.api.calls.values())
        self._plan()
        for _ in range(steps):
            if len(self.tasks) <= unfinished:
                return
            task = self.random.choice(self.tasks)
            try:
                if not task.over:
                    task.step(self.api)
            except Died:
                self.api.deadly = None
                self.crash(done=False)
                self._plan()
                continue
            self._look_back()
            if task.over:
                self.tasks.remove(task)
                task.done()
                self._plan()
        assert steps < 3_000, f"it spins: {self.tasks} {self.engine.plan()}"
        assert sum(self.api.calls.values()) - before < 1_000, f"it spins: {self.api.calls}"

    def pass_time(self, duration: timedelta, wakes: int = 40) -> None:
        """Let time pass; the process wakes when it asked to, so many times at most, and at the end."""
        end = self.true + duration
        for _ in range(wakes):
            self.run()
            if self.next_due is None or self.next_due >= end:
                break
            self.true = max(self.true + timedelta(milliseconds=1), self.next_due)
        self.true = end
        self.run()

    def crash(self, *, done: bool) -> None:
        """The process dies; of one task the pending effect still happens (`done`). Another process begins."""
        if done and self.tasks:
            self.random.choice(self.tasks).do_and_die(self.api)
        self.tasks.clear()
        while self.ledger._runs.held:
            self.ledger._runs.held.popitem()[1].release()
        self.ledger.lease.release()
        self.engine = self._start()

    def restart(self) -> None:
        """An orderly end and a new beginning."""
        self.engine.close()
        self.tasks.clear()
        self.engine = self._start()

    # -- what must hold ---------------------------------------------------------------------------------------------

    def _look_back(self) -> None:
        """Nothing that is known of a batch is forgotten, as when an old view of it is written over a newer one."""
        with self.ledger.database.read() as db:
            # When the cancel was asked for may be set right, but not forgotten.
            rows = db.execute(
                "SELECT id, state, remote_id, cancel_at IS NOT NULL, canceled, nonce, struck FROM batch"
            ).fetchall()
        for number, *fact, nonce, struck in rows:
            state, *rest = fact
            was, *before = self._facts.get(number, fact)
            back = ORDER.index(state) < ORDER.index(was)
            assert not back or (was, state) == ("canceling", "open"), f"a batch went from {was} to {state}"
            assert all(old in {new, None, 0} for old, new in zip(before, rest, strict=True)), (before, rest)
            self._facts[number] = (state, *rest)
            for each in self.api.batches:
                ours = any(nonce in name for name, _ in each.rows)
                assert not ours or each.id not in orjson.loads(struck), "our own batch was struck off"

    def check(self) -> None:
        counts = self.ledger.statistics.counts(job=None)
        assert sum(counts.values()) == len(self.accepted), (counts, len(self.accepted))
        results = self.ledger.results(job=None, after=0, limit=100_000)
        assert len({row.request for row in results}) == len(results), "a request has two outcomes"
        for row in results:
            known = self.seen.setdefault(row.request, (row.how.outcome, row.line))
            assert known == (row.how.outcome, row.line), "an outcome changed"
            if row.how.outcome is bw.Outcome.SUCCEEDED:
                text = orjson.loads(row.line)["result"]["message"]["content"][0]["text"]
                assert text == self.accepted[row.request], "an answer went to another request"
        assert self.seen.keys() == {row.request for row in results}, "an outcome was lost"
        bought, report = self.api.bought(), self.ledger.statistics.report(job=None)
        twice = {prompt: times for prompt, times in bought.items() if times > 1}
        excess = sum(times - 1 for times in twice.values())
        assert excess <= report.possible_doubles, f"bought twice unbooked: {twice}, books {report.possible_doubles}"
        paid = self.paid()
        booked = int((report.cost + report.wasted).scaleb(12))
        cap = self.policy.max_spend
        assert cap is None or paid <= cap.scaleb(12), f"{paid} paid, over the spend limit of {cap}"
        assert booked <= paid, f"the books have more than the bill: {report} {paid}"

    def paid(self) -> int:
        """pico-USD that the API has billed."""
        return sum(self._bill(lane, usage_of(prompt)) for lane, prompt in self.api.billed())

    def cost_on_the_books(self) -> int:
        """pico-USD that count against a spend limit, those among them that may have been billed at most."""
        with self.ledger.database.read() as db:
            return self.ledger.books.spent(db, None)

    def _bill(self, lane: str, usage: dict[str, Any]) -> int:
        geo = usage.get("inference_geo")
        rates = self.engine.prices.rates(MODEL, bw.Lane(lane), geo=geo, at=self.now())
        assert rates is not None
        return cost(usage, rates)

    def settle_all(self) -> None:
        """Heal everything and let time pass: all must settle."""
        self.api.heal()
        self.ledger.conditions.resume()
        for _ in range(200):
            self.pass_time(HOUR)
            if self.engine.suspensions.lanes:
                self.ledger.conditions.resume()
            self.check()
            if len(self.seen) == len(self.accepted):
                break
        left = {number: text for number, text in self.accepted.items() if number not in self.seen}
        assert not left, f"never settled: {left}, {self.ledger.snapshot()}"


def commits(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ledger's commits, as they come."""
    real, names = world.ledger.database.commit, list[str]()

    def commit(name: str) -> None:
        real(name)
        names.append(name)

    monkeypatch.setattr(world.ledger.database, "commit", commit)
    return names


__all__ = ["FAULTS", "HOUR", "MINUTE", "SECOND", "Api", "Remote", "Task", "World", "commits", "message_of"]


def resumed_before_suspending(world: World, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Resume the lanes, as another process does, just before each suspension; gives whether each took effect."""
    suspend, done = world.ledger.conditions.suspend, list[bool]()

    def resumed_first(*arguments: Any, **keywords: Any) -> Any:
        world.ledger.conditions.resume()
        found = suspend(*arguments, **keywords)
        done.append(found.done)
        return found

    monkeypatch.setattr(world.ledger.conditions, "suspend", resumed_first)
    return done
