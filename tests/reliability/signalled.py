"""A process whose signal handler closes the dispatcher that it interrupts: `python -m ... LEDGER ROUNDS`.

A timer of the system sends a real signal, at another moment in each round. Nothing may hang: a process that does is
ended by its alarm, with the stacks of all threads. The client comes from the environment.
"""

from __future__ import annotations

import faulthandler
import random
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import anthropic

import batchwise as bw
from tests.reliability.crossing import POLICY
from tests.strategies import params

LEDGER, ROUNDS = sys.argv[1], int(sys.argv[2])
LATER = timedelta(hours=30)


def accept(d: bw.Dispatcher, name: str) -> None:
    """Work on until the dispatcher is closed, and print the keys of what was accepted, as all cases do."""
    for each in range(1_000_000):
        key = f"{name} {each}"
        d.dispatch(params(key), key=key, latency=LATER)
        print(key)
        d.progress()


def bulk(d: bw.Dispatcher, name: str) -> None:
    """The signal comes while batchwise reads an iterable, most of the time."""

    def requests(keys: list[str]) -> Iterator[bw.Request]:
        for key in keys:
            yield bw.Request(params(key), key=key, latency=LATER)

    for each in range(1_000_000):
        keys = [f"{name} {each} {n}" for n in range(200)]
        d.dispatch_all(requests(keys))
        print("\n".join(keys))


def wait(d: bw.Dispatcher, name: str) -> None:
    """The signal comes in the middle of a wait: the call that is waited for is finished, and its answer handed over."""
    for each in range(1_000_000):
        key = f"{name} {each}"
        ticket = d.dispatch(params(key), key=key)
        print(key)
        assert ticket.result().ok


def end(d: bw.Dispatcher, name: str) -> None:
    """The signal comes while the dispatcher is being closed."""
    d.dispatch(params(name), key=name, latency=LATER)
    print(name)
    d.close()


def run(case: Callable[[bw.Dispatcher, str], None], name: str, after: float) -> None:
    """Work, and be interrupted after so many seconds."""
    faulthandler.dump_traceback_later(40, exit=True)
    dispatcher = bw.Dispatcher(CLIENT, ledger=LEDGER, policy=POLICY)
    signal.signal(signal.SIGALRM, lambda *_: dispatcher.close())
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        with dispatcher:
            case(dispatcher, name)
    except bw.ClosedDispatcherError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert dispatcher.closed


if __name__ == "__main__":
    CLIENT, moments = anthropic.Anthropic(), random.Random(0)
    for number in range(ROUNDS):
        for each in (accept, bulk, wait, end):
            run(each, f"{each.__name__} {number}", moments.uniform(0.001, 0.1))
