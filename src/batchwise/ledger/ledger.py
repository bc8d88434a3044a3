"""The ledger: the durable record, in one colour (synchronous; async drivers reach it through a thread).

This file shows the whole protocol. Operations on requests are methods of the ledger; all others are methods of one of
its parts, which its attributes name. Every method is one transaction, or several where it says so, and safe to call
from several threads and processes. A method that changes something returns after it is durable. A method that takes a
`Connection` is for other parts, within their transaction. Times are aware UTC datetimes, money is whole pico-USD (1e-12
USD).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from .accepting import Accepting
from .adoption import Adoption
from .batches import Batches
from .books import Books
from .bulk import Intakes
from .cancelling import Cancelling, Purging
from .claims import Claims
from .conditions import Conditions
from .database import Database
from .jobs import Jobs
from .keys import Positions
from .lease import Lease
from .records import Records
from .recovery import Recovery
from .reopening import Reopening
from .repeats import Repeats
from .requests import Requests
from .requeuing import Requeuing
from .results import Results
from .runs import Runs
from .settlements import Settlements
from .snapshots import Snapshots
from .statistics import Statistics
from .unnamed import Unnamed

__all__ = ["Ledger"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _by(part: str, method: Callable[Concatenate[Any, _P], _R]) -> Callable[Concatenate[Any, _P], _R]:
    """Return a method of the ledger that calls a part's method."""

    @wraps(method)
    def call(ledger: Ledger, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return method(getattr(ledger, part), *args, **kwargs)

    return call


class Ledger:
    """The parts of the ledger, put together on one database.

    Each part takes what it needs. The part's own method documents what it does.

    Args:
        database: Where everything is stored; `close` closes it.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        records, positions = Records(database), Positions()
        unnamed = Unnamed(database, records)
        self.books = books = Books(database, records)
        """The counts of requests, the reserved and spent money, and the prices."""
        self.lease = Lease(database)
        """The lease of batch actions: the process that holds it does them. It ends with its process, not with time."""
        self.batches = Batches(database, records, books, lease=self.lease)
        """The ledger's own batches: sealing, states and contents. For the holder of the lease.

        `seal`, `get`, `entries`, `still_posting`, `created`, `update`, `known`, `open_rows`.
        """
        self.adoption = Adoption(database, records, books)
        """Batches made elsewhere: `adopt`, `adopted`, `name`."""
        self.conditions = Conditions(database)
        """The workspace, the policy, and what is known of the lanes and of the API.

        `bind`, `keep_policy`, `kept_policy`, `suspend`, `resume`, `note`, `note_failure`, `note_advance`,
        `note_setback`, `resize`, `set_right`.
        """
        self.jobs = Jobs(database, records)
        """The jobs: `all`, `number`, `name`."""
        self.statistics = Statistics(database, records, unnamed)
        """Counts and sums: `counts`, `report`, `batches`, `history`."""

        self._runs = Runs(database)
        self._snapshots = Snapshots(database, books, self.batches, self.lease)
        self._requests = Requests(database, records, unnamed)
        self._results = Results(database, records, unnamed)
        self._claims = Claims(database, records, books)
        self._settlements = Settlements(database, records, books)
        self._requeuing = Requeuing(database, records, books, self._requests, batches=self.batches)
        self._reopening = Reopening(database, records, books, unnamed)
        self._cancelling = Cancelling(database, records, self._settlements, self._requests)
        self._purging = Purging(database, records, unnamed)
        repeats = Repeats(records, books, self._reopening)
        self._intakes = Intakes(database, records, books, repeats, self._runs, positions, unnamed)
        self._accepting = Accepting(
            database,
            records,
            books,
            requests=self._requests,
            claims=self._claims,
            repeats=repeats,
            intakes=self._intakes,
            positions=positions,
        )
        self._recovery = Recovery(
            database,
            records,
            books,
            runs=self._runs,
            intakes=self._intakes,
            cancelling=self._cancelling,
            requeuing=self._requeuing,
        )

    @property
    def name(self) -> str:
        """Its absolute path, or `:memory:`; for messages."""
        return self.database.name

    def version(self) -> int:
        """Return a number that changes with every change of the ledger by any process."""
        return self.database.version()

    @property
    def unsure(self) -> bool:
        """Whether a process seems dead, but not for certain yet: call `recover` soon."""
        return self.database.unsure

    def listen(self, listener: Callable[[], None]) -> bool:
        """Have this method called, in any thread, after changes by others; False: the database cannot do that."""
        return self.database.listen(listener)

    def close(self) -> None:
        """Close it and release its locks; a second call does nothing."""
        self.database.close()

    # -- runs: the dispatchers that use it ----------------------------------------------------------------------------

    start_run = _by("_runs", Runs.start)
    end_run = _by("_recovery", Recovery.end_run)
    recover = _by("_recovery", Recovery.recover)

    # -- requests come ------------------------------------------------------------------------------------------------

    accept = _by("_accepting", Accepting.accept)
    begin_accept = _by("_accepting", Accepting.begin_accept)
    intake = _by("_intakes", Intakes.intake)
    reopen = _by("_reopening", Reopening.reopen)

    # -- they are looked at -------------------------------------------------------------------------------------------

    snapshot = _by("_snapshots", Snapshots.snapshot)
    rows = _by("_requests", Requests.rows)
    numbers = _by("_requests", Requests.numbers)
    body = _by("_requests", Requests.body)
    results = _by("_results", Results.results)
    results_of = _by("_results", Results.results_of)

    # -- they move between queues, calls and batches ------------------------------------------------------------------

    flush = _by("_requeuing", Requeuing.flush)
    requeue = _by("_requeuing", Requeuing.requeue)
    reserve_cost = _by("_requeuing", Requeuing.reserve_cost)
    claim = _by("_claims", Claims.claim)
    note_attempt = _by("_claims", Claims.note_attempt)

    # -- they end -----------------------------------------------------------------------------------------------------

    settle = _by("_settlements", Settlements.settle)
    begin_settle = _by("_settlements", Settlements.begin_settle)
    settle_answers = _by("_settlements", Settlements.settle_answers)
    book_stray = _by("_settlements", Settlements.book_stray)
    take_sums = _by("_settlements", Settlements.take_sums)
    cancel = _by("_cancelling", Cancelling.cancel)
    purge = _by("_purging", Purging.purge)
