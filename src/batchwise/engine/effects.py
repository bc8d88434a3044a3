"""The two effects that a procedure may await, and how each colour carries them out.

A procedure is an `async def` that is written once for threads and for tasks. Awaiting an effect hands it to `drive`
(which calls), to `drive_async` (which awaits), or to a test (which can let each effect fail in turn).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import anyio
import attrs

from batchwise.api.colours import synchronous

if TYPE_CHECKING:
    from .ports import AsyncPorts, Ports, SyncPorts

__all__ = [
    "Ask",
    "Effect",
    "Procedure",
    "Store",
    "drive",
    "drive_async",
    "pause",
    "persist",
    "store",
    "store_surely",
    "store_together",
]

T = TypeVar("T")
P = ParamSpec("P")


class _Effect(Generic[T]):
    """An effect. Awaiting it yields it to the driver, which sends back its value or throws its error."""

    def __await__(self) -> Generator[Any, Any, T]:
        value: T = yield self
        return value


@attrs.frozen(eq=False)
class Store(_Effect[T]):
    """Call a function that works on the ledger. It blocks for a moment."""

    call: Callable[[], Any]
    sure: bool = False
    """Whether the function is called even if the task was cancelled just before."""
    together: bool = False
    """Whether `call` only begins the work and returns the function that ends it, to share a thread and a commit."""


@attrs.frozen(eq=False)
class Ask(_Effect[T]):
    """Ask the API, or wait."""

    call: Callable[[Ports], T]


Effect = Store[Any] | Ask[Any]
Procedure = Coroutine[Effect, Any, T]
"""The coroutine of an `async def` that awaits only effects and other procedures. It needs no event loop."""


def store(call: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> Store[T]:
    """Call a function that works on the ledger; awaiting it gives the function's value."""
    return Store(partial(call, *args, **keywords))


def store_surely(call: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> Store[T]:
    """As `store`, for an answer that the API would not give again: it runs even if the task is being cancelled."""
    return Store(partial(call, *args, **keywords), sure=True)


def store_together(begin: Callable[[], Callable[[], T]], *, sure: bool = False) -> Store[T]:
    """As `store`, for work in two steps: `begin` returns the function that ends it. Many share a thread and commit."""
    return Store(begin, sure, together=True)


def pause(wait: Callable[P, Any], *args: P.args, **keywords: P.kwargs) -> Ask[None]:
    """Wait by calling this function, which returns an awaitable where tasks are driven."""
    return Ask(lambda _ports: wait(*args, **keywords))


async def run_procedure(procedure: Procedure[T], perform: Callable[[Effect], Awaitable[Any]]) -> T:
    """Carry a procedure out: perform each effect that it awaits, and send it the value or the error."""
    try:
        effect = procedure.send(None)
        while True:
            try:
                value = await perform(effect)
            except Exception as error:  # noqa: BLE001  # the procedure decides what it means
                effect = procedure.throw(error)
            else:
                effect = procedure.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        procedure.close()  # Ctrl-C, or a cancelled task, leaves nothing half done


async def persist(procedure: Procedure[T], retry: Callable[[Effect, Exception], Procedure[bool]]) -> T:
    """Carry a procedure out. Where an effect fails, `retry` pauses and returns whether the effect is tried again."""

    async def perform(effect: Effect) -> Any:
        while True:
            try:
                return await effect
            except Exception as error:
                if not await retry(effect, error):
                    raise

    return await run_procedure(procedure, perform)


def drive(procedure: Procedure[T], ports: SyncPorts) -> T:
    """Carry a procedure out by calling."""

    async def perform(effect: Effect) -> Any:
        if isinstance(effect, Ask):
            return effect.call(ports)
        return effect.call()() if effect.together else effect.call()

    return synchronous(run_procedure)(procedure, perform)


async def drive_async(procedure: Procedure[T], ports: AsyncPorts) -> T:
    """Carry a procedure out by awaiting; the ledger is reached through a worker thread."""

    async def perform(effect: Effect) -> Any:
        if isinstance(effect, Ask):
            asked: Awaitable[Any] = effect.call(ports)  # type: ignore[arg-type]  # the awaiting twin of Ports
            return await asked
        run = ports.threads.together if effect.together else ports.threads.run
        with anyio.CancelScope(shield=effect.sure):
            return await run(effect.call)

    return await run_procedure(procedure, perform)
