"""Random worlds: a user's script on a host that fails and an API that fails, both drawn from one seed.

The script runs in a real process on a real ledger against the sandbox. Something befalls its host while it works.
A second process then runs the same script on a sound host. The sandbox's books say what was bought.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anthropic
import anyio
import attrs
import psycopg

import batchwise as bw
from batchwise.engine.core import Engine
from batchwise.ledger import sqlite_file
from batchwise.ledger.postgres_session import key_of
from batchwise.sandbox import Sandbox
from tests.reliability.crossing import context, run, short_window
from tests.strategies import params

HOSTS = ("sound", "kill", "stop", "fork", "threads", "busy", "full", "ahead", "behind")
"""What may befall the process; `ahead` and `behind`: its clock is set."""
HOSTS_IN_POSTGRES = tuple("cut" if host == "full" else host for host in HOSTS)
"""The same with a ledger in Postgres. No disk of ours can be full there, but connections are cut."""

PASSING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("create.drop_before", {}),
    ("create.drop_after", {}),
    ("create.slow", {"delay": 0.3}),
    ("create.error_500_before", {"times": 2}),
    ("create.error_500_after", {}),
    ("create.overloaded_529", {"times": 2}),
    ("create.rate_limited_429", {"retry_after": 1}),
    ("retrieve.not_found_404", {"times": 2}),
    ("retrieve.error_500", {"times": 3}),
    ("retrieve.miscount", {}),
    ("retrieve.stale", {"times": 2}),
    ("list.error_500", {"times": 3}),
    ("list.lag", {"delay": 0.5, "times": 3}),
    ("results.drop", {"times": 2}),
    ("results.cut_line", {}),
    ("results.garbage_line", {"times": 2}),
    ("results.early_end", {}),
    ("results.duplicate_row", {}),
    ("results.foreign_row", {}),
    ("results.missing_row", {}),
    ("results.gone", {"times": 2}),
    ("results.error_500", {"times": 2}),
    ("cancel.hang", {"delay": 0.5}),
    ("cancel.no_effect", {}),
    ("cancel.error_500", {"times": 2}),
    ("messages.drop_before", {"times": 3, "probability": 0.3}),
    ("messages.drop_after_billing", {"times": 3, "probability": 0.3}),
    ("messages.overloaded_529", {"times": None, "probability": 0.1}),
    ("messages.rate_limited_429", {"times": 1, "retry_after": 1}),
    ("messages.error_500", {"times": 3, "probability": 0.3}),
    ("messages.slow", {"times": 3, "delay": 0.5}),
    ("batch.row_error", {"times": 3, "probability": 0.2}),
    ("batch.row_expired", {"times": 3, "probability": 0.2}),
)
"""Faults of the API that pass by themselves: no deadline need be missed for them."""
LASTING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("create.unauthorized_401", {"times": 2}),
    ("create.billing_402", {"times": 2}),
    ("messages.unauthorized_401", {"times": 2}),
    ("messages.spend_cap", {"times": 2}),
    ("batch.all_rows_error", {"times": 1}),
)
"""Faults that suspend a lane until somebody resumes it: a deadline may be missed meanwhile."""

_RUNS = [f"run-{number}" for number in range(1, 9)]
SLA = 18.0
POLICY = attrs.evolve(short_window(SLA), max_attempts=5)
PATIENCE = 75.0
"""Seconds after which a process that has not ended is said to hang. The machine may be busy."""


@attrs.frozen
class World:
    """One draw."""

    seed: int
    host: str
    fault: str
    options: dict[str, Any]
    colour: str
    requests: int
    duration: float
    """Seconds that a batch takes; beyond the window it expires unless it is rescued."""
    moment: float
    """Seconds after the script's begin at which the host fails."""

    folder: str = ""
    """Where the process leaves word."""

    @classmethod
    def drawn(cls, seed: int, hosts: Sequence[str] = HOSTS) -> World:
        """The world of this seed."""
        chance = random.Random(seed)
        fault, options = chance.choice(PASSING + LASTING)
        return cls(
            seed=seed,
            host=hosts[seed % len(hosts)],  # a few seeds in a row have each of them
            fault=fault,
            options=options,
            colour=chance.choice(("threads", "tasks")),
            requests=chance.randint(1, 40),
            duration=chance.choice((0.05, 0.3, 1.5, 1_000.0)),
            moment=chance.uniform(0.0, 1.5),
        )

    @property
    def keeps_deadlines(self) -> bool:
        """Whether nothing in it excuses a missed deadline."""
        return self.host != "ahead" and all(self.fault != name for name, _ in LASTING)

    @property
    def prompts(self) -> list[str]:
        """What the script asks for."""
        return [
            *(f"patient {number}" for number in range(self.requests)),
            *(f"dated {number}" for number in range(self.requests)),
            *(f"call {number}" for number in range(3)),
            *(["forked"] if self.host == "fork" else []),
        ]


def requests_of(world: World, kind: str) -> list[bw.Request]:
    """The requests of one job."""
    return [bw.Request(params(f"{kind} {number}"), key=f"{kind} {number}") for number in range(world.requests)]


def persistently(act: Callable[[], Any], resume: Callable[[], Any], end: float) -> Any:
    """Do what a patient user does: try again while the ledger is busy or full, and resume a suspended lane."""
    while True:
        try:
            return act()
        except (bw.LedgerError, bw.LaneSuspendedError) as error:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
            if isinstance(error, bw.LaneSuspendedError):
                resume()


def script(world: World, base_url: str, ledger: str) -> None:
    """A user's script with threads."""
    end = time.monotonic() + PATIENCE
    client = anthropic.Anthropic(base_url=base_url, api_key="sandbox", timeout=5.0)
    dispatcher = persistently(lambda: bw.Dispatcher(client, ledger=ledger, policy=POLICY), lambda: None, end)
    with dispatcher as d:

        def patiently(act: Callable[[], Any]) -> Any:
            return persistently(act, lambda: persistently(d.resume, lambda: None, end), end)

        sla = timedelta(seconds=SLA)
        dated = patiently(lambda: d.dispatch_all(requests_of(world, "dated"), job="dated", latency=sla))
        patient = patiently(
            lambda: d.dispatch_all(requests_of(world, "patient"), job="patient", latency=bw.Latency.FLEXIBLE)
        )
        for number in range(3):
            ticket = patiently(lambda number=number: d.dispatch(params(f"call {number}"), key=f"call {number}"))
            patiently(lambda ticket=ticket: ticket.result(timeout=end - time.monotonic()))
        for job in (dated, patient):
            patiently(lambda job=job: job.wait(timeout=end - time.monotonic()))


async def script_of_tasks(world: World, base_url: str, ledger: str) -> None:
    """The same script with tasks."""
    end = time.monotonic() + PATIENCE
    client = anthropic.AsyncAnthropic(base_url=base_url, api_key="sandbox", timeout=5.0)

    async def patiently(act: Callable[[], Any], resume: Callable[[], Any] | None = None) -> Any:
        while True:
            try:
                return await act()
            except (bw.LedgerError, bw.LaneSuspendedError) as error:
                if time.monotonic() > end:
                    raise
                await anyio.sleep(0.2)
                if isinstance(error, bw.LaneSuspendedError) and resume is not None:
                    await patiently(resume)

    async def opened() -> bw.AsyncDispatcher:
        return await bw.AsyncDispatcher(client, ledger=ledger, policy=POLICY).__aenter__()

    d = await patiently(opened)
    try:
        sla = timedelta(seconds=SLA)
        dated = await patiently(lambda: d.dispatch_all(requests_of(world, "dated"), job="dated", latency=sla), d.resume)
        patient = await patiently(
            lambda: d.dispatch_all(requests_of(world, "patient"), job="patient", latency=bw.Latency.FLEXIBLE), d.resume
        )
        for number in range(3):
            ticket = await patiently(
                lambda number=number: d.dispatch(params(f"call {number}"), key=f"call {number}"), d.resume
            )
            await patiently(lambda ticket=ticket: ticket.result(timeout=end - time.monotonic()), d.resume)
        for job in (dated, patient):
            await patiently(lambda job=job: job.wait(timeout=end - time.monotonic()), d.resume)
    finally:
        await d.__aexit__(None, None, None)


# -- what befalls the process, from within ----------------------------------------------------------------------------


def _at(moment: float, act: Callable[[], None]) -> threading.Thread:
    """Do something in a thread of its own after a while."""

    def later() -> None:
        time.sleep(moment)
        act()

    thread = threading.Thread(target=later, name="world", daemon=True)
    thread.start()
    return thread


def _few_threads(world: World) -> None:
    real, end = threading.Thread.start, time.monotonic() + world.moment + 1.5
    chance = random.Random(world.seed)

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("batchwise") and time.monotonic() < end and chance.random() < 0.7:
            raise RuntimeError("can't start new thread")
        real(thread)

    threading.Thread.start = start  # type: ignore[method-assign]


def _full_disk(ledger: str) -> None:
    """No file may grow for two seconds: writes fail as on a full disk."""
    size = max((each.stat().st_size for each in Path(ledger).parent.iterdir() if each.is_file()), default=0)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4_096, most))
    time.sleep(2.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _busy_database(ledger: str) -> None:
    """Somebody else writes for longer than is waited for."""
    db = sqlite3.connect(ledger, timeout=10.0, isolation_level=None)
    try:
        db.execute("BEGIN IMMEDIATE")
        time.sleep(2.0)
        db.execute("ROLLBACK")
    finally:
        db.close()


def hold_the_ledger(ledger: str, moment: float) -> None:
    """In a process of its own: SQLite's locks do not exclude a process from itself in the same way."""
    time.sleep(moment)
    if "://" in ledger:
        with psycopg.connect(ledger.rpartition("&")[0]) as db:
            db.execute("SELECT pg_advisory_xact_lock(%s)", (key_of(ledger.rpartition("=")[2], "write"),))
            time.sleep(2.0)
    elif Path(ledger).exists():
        _busy_database(ledger)


def cut_the_sessions(ledger: str, moment: float) -> None:
    """End all sessions of a ledger in Postgres, three times."""
    with psycopg.connect(ledger.rpartition("&")[0], autocommit=True) as db:
        for _ in range(3):
            time.sleep(moment)
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks "
                "WHERE locktype = 'advisory' AND pid <> pg_backend_pid() "
                "AND (classid::bigint << 32) | objid::bigint = ANY(%s)",
                ([key_of(ledger.rpartition("=")[2], name) for name in ("lease", "write", *_RUNS)],),
            )


def _load_clients(base_url: str) -> None:
    """Have imported what the SDK imports when its first client is made: a child inherits a half imported module."""
    anthropic.Anthropic(base_url=base_url, api_key="sandbox").close()
    anthropic.AsyncAnthropic(base_url=base_url, api_key="sandbox")


def _forked(world: World, base_url: str, ledger: str) -> None:
    """The process forks, and its child opens a dispatcher of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            client = anthropic.Anthropic(base_url=base_url, api_key="sandbox")
            with bw.Dispatcher(client, ledger=ledger, policy=POLICY) as d:
                code = 0 if d.dispatch(params("forked"), key="forked", latency=timedelta(hours=1)).key else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    Path(world.folder, "fork").write_text(str(os.waitstatus_to_exitcode(status)), encoding="ascii")


@contextmanager
def befallen(world: World, base_url: str, ledger: str) -> Iterator[None]:
    """What happens to this process's host while the block runs."""
    running: threading.Thread | None = None
    match world.host:
        case "threads":
            _few_threads(world)
        case "full":
            running = _at(world.moment, lambda: _full_disk(ledger))
        case "busy":
            sqlite_file.BUSY_SECONDS = 0.5
        case "ahead" | "behind":
            step = random.Random(world.seed).choice([timedelta(hours=1), timedelta(days=1), timedelta(days=365)])
            set_at = time.monotonic() + world.moment

            def now() -> datetime:
                shift = step if world.host == "ahead" else -step
                return datetime.now(timezone.utc) + (shift if time.monotonic() > set_at else timedelta(0))

            Engine.__init__.__kwdefaults__["now"] = now
        case "fork":
            _load_clients(base_url)
            running = _at(world.moment, lambda: _forked(world, base_url, ledger))
    yield
    if running is not None:
        running.join(PATIENCE)


def live(world: World, base_url: str, ledger: str, *, sound: bool) -> None:
    """The process: the script, on a host as the world has it or on a sound one."""
    with befallen(attrs.evolve(world, host="sound") if sound else world, base_url, ledger):
        if world.colour == "threads":
            script(world, base_url, ledger)
        else:
            anyio.run(script_of_tasks, world, base_url, ledger)


def live_sound(world: World, base_url: str, ledger: str) -> None:
    """The script on a sound host."""
    live(world, base_url, ledger, sound=True)


def live_befallen(world: World, base_url: str, ledger: str) -> None:
    """The script on a host that fails."""
    live(world, base_url, ledger, sound=False)


# -- from outside -----------------------------------------------------------------------------------------------------


@attrs.define
class Verdict:
    """What went wrong in a world; all empty: nothing did."""

    lost: list[str] = attrs.field(factory=list)
    mixed_up: list[str] = attrs.field(factory=list)
    doubles: dict[str, int] = attrs.field(factory=dict)
    hung: list[str] = attrs.field(factory=list)
    missed: int = 0

    @property
    def well(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.mixed_up or self.doubles or self.hung or self.missed)


def _first_life(world: World, base_url: str, ledger: str) -> str | None:
    """Run the first process, to which something happens; return what is wrong with its end."""
    process = context().Process(target=live_befallen, args=(world, base_url, ledger))
    beside = {"busy": hold_the_ledger, "cut": cut_the_sessions}.get(world.host)
    holder = None if beside is None else context().Process(target=beside, args=(ledger, world.moment))
    process.start()
    if holder is not None:
        holder.start()
    assert process.pid is not None
    if world.host in {"kill", "stop"}:
        process.join(world.moment + 0.3)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL if world.host == "kill" else signal.SIGSTOP)
            if world.host == "stop":
                time.sleep(1.5)
                os.kill(process.pid, signal.SIGCONT)
    process.join(PATIENCE + 15)
    hung = process.is_alive()
    if hung:
        process.kill()
        process.join()
    if holder is not None:
        holder.join()
    if hung:
        return "the first process"
    if process.exitcode not in {0, -signal.SIGKILL if world.host == "kill" else 0}:
        return f"the first process ended with {process.exitcode}"
    return None


def judged(world: World, folder: Path, ledger: str | None = None) -> Verdict:
    """Live through a world, and look at what became of it; the ledger is a file in the folder, or this one."""
    folder.mkdir()
    world, verdict = attrs.evolve(world, folder=str(folder)), Verdict()
    ledger = ledger or str(folder / "ledger.db")
    with Sandbox(
        batch_latency=world.duration, sync_latency=0.02, cancel_latency=0.05, window=POLICY.window, seed=world.seed
    ) as sandbox:
        sandbox.fault(world.fault, **world.options)
        wrong = _first_life(world, sandbox.base_url, ledger)
        if wrong is not None:
            verdict.hung.append(wrong)
        try:
            code = run(live_sound, world, sandbox.base_url, ledger, timeout=PATIENCE + 15)
            if code != 0:
                verdict.hung.append(f"the second process ended with {code}")
        except TimeoutError:
            verdict.hung.append("the second process")
        sandbox.fault_box.clear()
        with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=POLICY) as d:
            answers = Counter[str]()
            for result in d.results():
                answers[result.key] += 1
                if result.ok and result.text != f"echo: {result.key}":
                    verdict.mixed_up.append(result.key)
            report = d.report()
        verdict.lost = [prompt for prompt in world.prompts if answers[prompt] != 1 and prompt != "forked"]
        if world.host == "fork":
            told = folder / "fork"
            if not told.exists() or told.read_text(encoding="ascii") != "0":
                verdict.hung.append("the forked process")
            elif answers["forked"] > 1:
                verdict.lost.append("forked")
        twice = sandbox.books.bought_twice()
        if sum(twice.values()) - len(twice) > report.possible_doubles:
            verdict.doubles = twice
        if world.keeps_deadlines:
            verdict.missed = report.missed
    return verdict
