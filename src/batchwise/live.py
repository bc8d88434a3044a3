"""`track`: waits for a job and shows its progress live, in a terminal, in a notebook, or line by line in a log.

Needs rich (the extra `cli`). It is imported on first use, so that `batchwise.track` can be imported without it.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, overload

import anyio

from .async_tickets import AsyncJob
from .basics.wording import dollars, human
from .engine.handles import JobView
from .errors import BatchwiseError, InvalidValueError, printable
from .models import Progress, Report, RunningBatch
from .models.progress import warnings_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.panel import Panel
    from rich.table import Table

    from .tickets import Job

__all__ = ["showing", "track", "view"]

_EVERY = 0.5
"""Seconds between two looks."""
_LINE_EVERY = 30.0
"""Seconds between two lines of a log if nothing has settled in between."""
_MOST_BATCHES = 8
"""The most batches that have a row of their own."""


def _when(moment: datetime, now: datetime) -> str:
    """Write a moment in this machine's time zone; with the weekday if it is not today."""
    local, today = moment.astimezone(), now.astimezone().date()
    return local.strftime("%H:%M:%S" if local.date() == today else "%a %H:%M")


def _settled(progress: Progress) -> str:
    outcomes = ", ".join(f"{number:,} {outcome.value}" for outcome, number in progress.by_outcome.items() if number)
    return f"{progress.settled:,} of {progress.total:,} settled{f' ({outcomes})' if outcomes else ''}"


def _left(progress: Progress) -> str:
    return ", ".join(
        f"{number:,} {status.value.replace('_', ' ')}"
        for status, number in progress.by_status.items()
        if number and status.value != "settled"
    )


def _money(report: Report) -> str:
    unknown = f"; {report.unpriced:,} of unknown price" if report.unpriced else ""
    return f"{dollars(report.cost)} so far, {dollars(report.saved)} saved{unknown}"


def _rescue(progress: Progress, now: datetime) -> str | None:
    first = min((batch.rescue_at for batch in progress.batches if batch.rescue_at is not None), default=None)
    if first is None:
        return None
    return f"{_when(first, now)} (in {human(first - now)})" if first > now else f"{_when(first, now)} (now)"


def _batches(batches: tuple[RunningBatch, ...], now: datetime) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in (("batch", "left"), ("requests", "right"), ("state", "left"), ("since", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # one of the two
    table.add_column("expected to end")
    table.add_column("rescue")
    for batch in batches[:_MOST_BATCHES]:
        first, last = batch.expected_end
        table.add_row(
            printable(batch.remote_id or "(id unknown)"),
            f"{batch.requests:,}",
            batch.status.replace("_", " "),
            human(batch.elapsed - batch.elapsed % timedelta(seconds=1)),
            f"{_when(first, now)} to {_when(last, now)}",
            "" if batch.rescue_at is None else _when(batch.rescue_at, now),
        )
    if len(batches) > _MOST_BATCHES:
        more = batches[_MOST_BATCHES:]
        table.add_row(f"{len(more)} more", f"{sum(batch.requests for batch in more):,}")
    return table


def view(progress: Progress, report: Report | None, *, name: str | None, now: datetime) -> Panel:
    """Make the panel that shows progress. It has no bar in percent, because nobody knows how far a running batch is.

    Args:
        progress: The progress.
        report: What the work has cost. None: the cost of this job alone is not known.
        name: The name of the job.
        now: The present moment.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_row("requests", _settled(progress))
    if left := _left(progress):
        facts.add_row("", left)
    if report is not None:
        facts.add_row("money", _money(report))
    if rescue := _rescue(progress, now):
        facts.add_row("rescue", rescue)
    parts: list[RenderableType] = [facts]
    if progress.batches:
        parts += [Text(), _batches(progress.batches, now)]
    parts += [Text(words, style="bold red") for words in warnings_of(progress)]
    return Panel(Group(*parts), title=printable(name or "batchwise"), title_align="left", expand=False)


def _line(progress: Progress, report: Report | None, now: datetime) -> str:
    parts = [_settled(progress), _left(progress), "" if report is None else _money(report)]
    if rescue := _rescue(progress, now):
        parts.append(f"rescue {rescue}")
    return "; ".join([*filter(None, parts), *warnings_of(progress)])


class _Surface(Protocol):
    """Where the progress is shown."""

    def show(self, progress: Progress, report: Report | None, *, last: bool = False) -> None: ...
    def close(self) -> None: ...


class _Terminal:
    """A terminal: the panel is redrawn in its place."""

    def __init__(self, console: Console, name: str | None) -> None:
        from rich.live import Live

        self._name = name
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()
        console.show_cursor(True)  # a signal that ends or stops the process would leave it hidden

    def show(self, progress: Progress, report: Report | None, *, last: bool = False) -> None:  # noqa: ARG002  # drawn each time
        self._live.update(view(progress, report, name=self._name, now=_utc_now()), refresh=True)

    def close(self) -> None:
        self._live.stop()


class _Notebook:
    """A notebook: the panel is one output of the cell, which is replaced."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._handle: Any = None

    def show(self, progress: Progress, report: Report | None, *, last: bool = False) -> None:  # noqa: ARG002
        from IPython.display import display  # every notebook has it

        shown = view(progress, report, name=self._name, now=_utc_now())
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def close(self) -> None:
        """Stay as it is."""


class _Log:
    """A log: a line when something has settled, and one every half minute."""

    def __init__(self, console: Console, name: str | None) -> None:
        self._console, self._name = console, name
        self._before: tuple[object, ...] = ()
        self._next = 0.0

    def show(self, progress: Progress, report: Report | None, *, last: bool = False) -> None:
        state = progress.settled, progress.total, dict(progress.suspended), progress.overdue
        if state == self._before and not last and monotonic() < self._next:
            return
        line = _line(progress, report, _utc_now())
        if state != self._before or not last:
            self._console.print(f"{self._name or 'batchwise'}: {line}", markup=False, highlight=False, soft_wrap=True)
        self._before, self._next = state, monotonic() + _LINE_EVERY

    def close(self) -> None:
        """Stay as it is."""


def _surface(console: Console | None, name: str | None) -> _Surface:
    """Choose where to show the progress.

    Raises:
        BatchwiseError: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise BatchwiseError("track needs rich; install batchwise-claude[cli]") from error
    console = Console(stderr=True) if console is None else console
    if console.is_jupyter:
        return _Notebook(name)
    return _Terminal(console, name) if console.is_terminal else _Log(console, name)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


@contextmanager
def showing(
    look: Callable[[], tuple[Progress, Report | None]], *, name: str | None = None, console: Console | None = None
) -> Iterator[None]:
    """Show progress while the block runs, from a thread of its own.

    Args:
        look: Returns what to show. If it raises a `BatchwiseError`, what was shown before stays.
        name: The name of the job.
        console: Where rich shows it. None: on stderr, or in the notebook.
    """
    surface, over = _surface(console, name), threading.Event()

    def show(*, last: bool = False) -> None:
        try:
            surface.show(*look(), last=last)
        except BatchwiseError:
            return  # the ledger is busy, for example; the code that waits for the job gets the error if it matters

    def keep_showing() -> None:
        show()
        while not over.wait(_EVERY):
            show()

    thread = threading.Thread(target=keep_showing, name="batchwise-live", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        show(last=True)
        surface.close()


@overload
def track(job: Job, timeout: float | timedelta | None = ..., *, console: Console | None = ...) -> Progress: ...
@overload
def track(
    job: AsyncJob, timeout: float | timedelta | None = ..., *, console: Console | None = ...
) -> Awaitable[Progress]: ...
def track(
    job: Job | AsyncJob, timeout: float | timedelta | None = None, *, console: Console | None = None
) -> Progress | Awaitable[Progress]:
    """Wait until all requests of a job have settled, and show the progress live. For an `AsyncJob`, await it.

    It shows how many requests have settled, each batch with its expected end, the cost so far, and when a rescue
    would start. In a terminal (on stderr) and in a notebook, it redraws this in its place; elsewhere it writes lines.
    Ctrl-C ends the wait, and loses nothing. Needs rich (`batchwise-claude[cli]`).

    Args:
        job: The job. Its queued requests are submitted, as by `job.wait`. For a job without a name, no cost is shown,
            because its report is that of all work without a job.
        timeout: Seconds, or a `timedelta`. None: no limit.
        console: Where rich shows it. None: on stderr, or in the notebook.

    Returns:
        The progress at the end.

    Raises:
        ResultTimeoutError: The requests did not settle in time. Nothing is lost: call it again.
        LaneSuspendedError: A lane is suspended, and none of the job's unsettled requests can go on without it.
        InvalidValueError: `job` is not a job.
        BatchwiseError: rich is not installed.
    """
    if not isinstance(job, JobView):
        raise InvalidValueError(f"track takes a job, as dispatch_all gives one, not a {type(job).__name__}")
    if isinstance(job, AsyncJob):
        return _track_async(job, timeout, console)
    named = job.name is not None
    with showing(lambda: (job.progress(), job.report() if named else None), name=job.name, console=console):
        return job.wait(timeout)


async def _track_async(job: AsyncJob, timeout: float | timedelta | None, console: Console | None) -> Progress:
    surface, named = _surface(console, job.name), job.name is not None

    async def show(*, last: bool = False) -> None:
        try:
            surface.show(await job.progress(), await job.report() if named else None, last=last)
        except BatchwiseError:
            return

    async def keep_showing() -> None:
        while True:
            await show()
            await anyio.sleep(_EVERY)

    failed: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_showing)
            try:
                found = await job.wait(timeout)
            except Exception as error:  # noqa: BLE001  # raised below: a task group would wrap it
                failed = error
            tasks.cancel_scope.cancel()
        await show(last=True)
    finally:
        surface.close()
    if failed is not None:
        raise failed
    return found
