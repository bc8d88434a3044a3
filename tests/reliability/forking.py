"""A process that forks while it has a ledger open, in the ways that people fork: `python -m ... CASE LEDGER ROUNDS`.

Whoever accepts a request prints its key, a line in one write, before it ends. The client comes from the environment.
"""

from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import islice

import batchwise as bw
from batchwise.errors import ForkedDispatcherError
from tests.strategies import params

warnings.simplefilter("ignore", DeprecationWarning)
LEDGER, ROUNDS = sys.argv[2], int(sys.argv[3])
PATIENCE = 90
"""Seconds after which a process is taken to hang: on a busy machine its start alone may take 15."""
BULK = 2_500
"""Requests of a bulk dispatch: some chunks."""


def work(d: bw.Dispatcher, name: str) -> None:
    """A request for each lane; the first is answered at once."""
    for key, latency in ((f"{name} now", bw.Latency.BLOCKING), (f"{name} later", bw.Latency.FLEXIBLE)):
        ticket = d.dispatch(params(key), key=key, latency=latency)
        if latency is bw.Latency.BLOCKING:
            assert ticket.result(PATIENCE).text == f"echo: {key}"
        os.write(1, f"{key}\n".encode())


def hurry() -> None:
    """A process that hangs says where, and ends."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)


def own(name: str, ledger: str = LEDGER) -> None:
    """What a child does: with a dispatcher of its own, on the same file."""
    hurry()
    with bw.Dispatcher(ledger=ledger) as d:
        work(d, name)


def fork(name: str, inherited: bw.Dispatcher | None = None, ledger: str = LEDGER) -> int:
    """A child that works with its own dispatcher, and is refused by the one that it has inherited."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if inherited is not None:
            try:
                inherited.dispatch(params("never"))
            except ForkedDispatcherError:
                code = 0
            inherited.close()
        own(name, ledger)
    except BaseException:  # noqa: BLE001  # the child ends with the code
        code = 1
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(children: list[int]) -> None:
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), f"a child failed, or hung: {codes}"


def pool(number: int) -> None:
    """multiprocessing by fork, from a process that has used its dispatcher."""
    with bw.Dispatcher(ledger=LEDGER) as d:
        work(d, f"{number} parent before")
        with multiprocessing.get_context("fork").Pool(2) as workers:
            workers.map(own, [f"{number} worker {each}" for each in range(3)], chunksize=1)
        work(d, f"{number} parent after")


def busy(number: int) -> None:
    """Forks while other threads of the parent are in the middle of transactions and calls."""
    with bw.Dispatcher(ledger=LEDGER) as d:
        threads = [
            threading.Thread(target=lambda each=each: [work(d, f"{number} thread {each} {n}") for n in range(6)])
            for each in range(3)
        ]
        for thread in threads:
            thread.start()
        wait([fork(f"{number} child {each}", d) for each in range(3)])
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def servers(number: int) -> None:
    """A pre-forking server: the parent opens, forks four workers, and ends while they work."""
    d = bw.Dispatcher(ledger=LEDGER)
    work(d, f"{number} parent")
    children = [fork(f"{number} worker {each}", d) for each in range(4)]
    d.close()
    wait(children)


def iterable(number: int) -> None:
    """A bulk dispatch whose iterable forks: before the first request, between two chunks and in one, at the end."""
    children: list[int] = []
    with bw.Dispatcher(ledger=LEDGER) as d:

        def requests() -> Iterator[bw.Request]:
            for n in range(BULK):
                if n in {0, 1_024, 1_100}:
                    children.append(fork(f"{number} child {n}", d))
                yield bw.Request(params(f"{number} bulk {n}"), key=f"{number} bulk {n}")
            children.append(fork(f"{number} child at the end", d))

        d.dispatch_all(requests(), latency=bw.Latency.FLEXIBLE)
        os.write(1, "".join(f"{number} bulk {n}\n" for n in range(BULK)).encode())
        wait(children)
        work(d, f"{number} parent after")


def go_on(children: list[int], work: Callable[[], object], ends: type[BaseException] = ForkedDispatcherError) -> None:
    """Does work in which a child is forked. The child goes on with it until this error comes out of it."""
    code = 1
    try:
        work()
    except BaseException as error:
        if children != [0]:
            raise
        code = int(not isinstance(error, ends))
        if code:
            traceback.print_exc()
    if children == [0]:
        os._exit(code)
    assert children, "it has not forked"
    wait(children)


def child() -> int:
    """What a fork gives; a child that hangs ends."""
    number = os.fork()
    if not number:
        hurry()
    return number


def going_on(number: int) -> None:
    """A child that goes on with a bulk in whose iterable it was forked is refused; one that leaves it just leaves."""
    keys = iter([f"{number} bulk {n}" for n in range(BULK)])
    with bw.Dispatcher(ledger=LEDGER) as d:
        # Before the first chunk, in a later one, in the only one; at the end of a whole chunk, and of less than one.
        for size, place, leaves in (
            (600, 0, False),
            (550, 520, False),
            (550, 520, True),
            (200, 100, False),
            (500, 500, False),
            (100, 100, False),
        ):
            children: list[int] = []
            mine = list(islice(keys, size))

            def requests(
                mine: list[str] = mine, children: list[int] = children, place: int = place, leaves: bool = leaves
            ) -> Iterator[bw.Request]:
                for key in (*mine[:place], None, *mine[place:]):
                    if key is not None:
                        yield bw.Request(params(key), key=key)
                        continue
                    children.append(child())
                    if leaves and children == [0]:
                        sys.exit()

            ends = SystemExit if leaves else ForkedDispatcherError
            go_on(children, partial(d.dispatch_all, requests(), latency=bw.Latency.FLEXIBLE), ends)
            os.write(1, "".join(f"{key}\n" for key in mine).encode())


def reading(number: int) -> None:
    """A child that goes on reading results, or waiting for one, is refused."""
    keys = [f"{number} read {n}" for n in range(3)]
    with bw.Dispatcher(ledger=LEDGER) as d:
        job = d.dispatch_all([bw.Request(params(key), key=key) for key in keys], latency=bw.Latency.BLOCKING)
        for results in (job.results, d.results):
            children: list[int] = []

            def read(results: Callable[[], Iterator[bw.Result]] = results, children: list[int] = children) -> None:
                for place, _ in enumerate(results()):
                    if place == 0:
                        children.append(child())

            go_on(children, read)
        children = []
        later = d.dispatch(params(f"{number} later"), key=f"{number} later", latency=bw.Latency.FLEXIBLE)
        os.write(1, "".join(f"{key}\n" for key in (*keys, later.key)).encode())
        signal.signal(signal.SIGALRM, lambda *_: children.append(child()))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        go_on(children, partial(later.result, PATIENCE))


def loops(number: int) -> None:
    """A child that goes on in the midst of the parent's event loop, or with one of its own, is refused."""

    async def refused(d: bw.AsyncDispatcher, ticket: bw.AsyncTicket) -> None:
        asks: list[Callable[[], Awaitable[object]]] = [
            lambda: d.dispatch(params("never")),
            lambda: d.dispatch_all([bw.Request(params("never"))]),
            lambda: ticket.result(PATIENCE),
            ticket.cancel,
            d.advance,
            d.flush,
        ]
        for ask in asks:
            try:
                await ask()
            except ForkedDispatcherError:
                continue
            raise AssertionError("the child was not refused")

    async def own(name: str) -> None:
        async with bw.AsyncDispatcher(ledger=LEDGER) as d:
            ticket = await d.dispatch(params(name), key=name)
            assert (await ticket.result(PATIENCE)).text == f"echo: {name}"
        os.write(1, f"{name}\n".encode())

    async def use(name: str) -> tuple[bw.AsyncDispatcher, bw.AsyncTicket]:
        d = await bw.AsyncDispatcher.open(ledger=LEDGER)
        ticket = await d.dispatch(params(name), key=name, latency=bw.Latency.FLEXIBLE)
        os.write(1, f"{name}\n".encode())
        forked = child()
        if not forked:
            await refused(d, ticket)
            os._exit(0)
        wait([forked])
        return d, ticket

    async def elsewhere() -> None:
        await refused(d, ticket)
        await d.aclose()
        await own(f"{number} child")

    loop = asyncio.new_event_loop()
    d, ticket = loop.run_until_complete(use(f"{number} parent"))
    children: list[int] = []

    def go_elsewhere() -> None:
        children.append(child())
        if children == [0]:
            asyncio.run(elsewhere())
            raise ForkedDispatcherError("it was refused")

    go_on(children, go_elsewhere)
    loop.run_until_complete(d.aclose())
    loop.close()


def memory(number: int) -> None:
    """A ledger in memory: the child has none of it, and may have one of its own."""
    with bw.Dispatcher(ledger=":memory:") as d:
        work(d, f"{number} before")
        wait([fork(f"{number} child {each}", d, ":memory:") for each in range(2)])
        work(d, f"{number} after")
        assert d.progress().total == 4


def daemon(number: int) -> None:
    """A process that uses the default dispatcher, forks, and ends; its child goes on with its own default."""
    os.environ["BATCHWISE_LEDGER"] = LEDGER
    key = f"{number} before"
    assert bw.dispatch(params(key), key=key).result(PATIENCE).ok
    os.write(1, f"{key}\n".encode())
    if os.fork():
        return  # by way of the exit handlers
    os.setsid()
    hurry()
    for key, latency in ((f"{number} daemon now", None), (f"{number} daemon later", bw.Latency.FLEXIBLE)):
        ticket = bw.dispatch(params(key), key=key, latency=latency)
        assert latency or ticket.result(PATIENCE).ok
        os.write(1, f"{key}\n".encode())


if __name__ == "__main__":
    for each in range(ROUNDS):
        {
            "pool": pool,
            "busy": busy,
            "servers": servers,
            "iterable": iterable,
            "going_on": going_on,
            "reading": reading,
            "loops": loops,
            "memory": memory,
            "daemon": daemon,
        }[sys.argv[1]](each)
