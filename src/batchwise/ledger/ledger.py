"""The ledger: what is durable, in one colour (synchronous; async drivers reach it through a thread).

Every method is one transaction and safe to call from several threads and processes. A method that changes something
returns after it is durable. Times are aware UTC datetimes, money whole pico-USD (1e-12 USD).
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
from .joining import Joining
from .keys import Positions
from .lease import Lease
from .looking import Looking
from .records import Records
from .recovery import Recovery
from .renewing import Renewing
from .requeuing import Requeuing
from .runs import Runs
from .settlements import Settlements
from .unnamed import Unnamed

__all__ = ["Ledger"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _by(part: str, method: Callable[Concatenate[Any, _P], _R]) -> Callable[Concatenate[Any, _P], _R]:
    """A method of the ledger which a part of it does."""

    @wraps(method)
    def call(ledger: Ledger, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return method(getattr(ledger, part), *args, **kwargs)

    return call


class Ledger:
    """The parts of the ledger, put together on one database.

    Each part takes what it needs. What a method does is said where the part defines it.

    Args:
        database: Where everything is stored; `close` closes it.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._lease, positions = Lease(database), Positions()
        records = Records(database)
        self.books = books = Books(database, records)
        unnamed = Unnamed(database, records)
        self._runs = Runs(database)
        self._conditions = Conditions(database)
        self._batches = Batches(database, records, books, unnamed, lease=self._lease)
        self._looking = Looking(database, records, books, unnamed, batches=self._batches, lease=self._lease)
        self._claims = Claims(database, records, books)
        self._settlements = Settlements(database, records, books)
        self._requeuing = Requeuing(database, records, books, self._batches)
        self._renewing = Renewing(database, records, books, unnamed)
        self._cancelling = Cancelling(database, records, self._settlements, unnamed)
        self._purging = Purging(database, records)
        self._adoption = Adoption(database, records, books)
        joining = Joining(records, books, self._renewing)
        self._intakes = Intakes(database, records, books, joining, self._runs, positions, unnamed)
        self._accepting = Accepting(
            database,
            records,
            books,
            looking=self._looking,
            claims=self._claims,
            joining=joining,
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

    @property
    def lease(self) -> Lease:
        """The lease of batch actions: the process that holds it does them. It ends with its process, not with time."""
        return self._lease

    def version(self) -> int:
        """A number that changes when anything in the ledger changed, by whomever."""
        return self.database.version()

    @property
    def unsure(self) -> bool:
        """Whether some process seems to have ended, and is taken for dead if it goes on seeming so: `recover` soon."""
        return self.database.unsure

    def listen(self, listener: Callable[[], None]) -> bool:
        """Have this method called, by some thread, when others changed something; False: nobody tells it."""
        return self.database.listen(listener)

    def close(self) -> None:
        """Close it and give up its locks; again is harmless."""
        self.database.close()

    # -- life -------------------------------------------------------------------------------------------------------

    start_run = _by("_runs", Runs.start)
    end_run = _by("_recovery", Recovery.end_run)
    recover = _by("_recovery", Recovery.recover)
    bind = _by("_conditions", Conditions.bind)
    keep_policy = _by("_conditions", Conditions.keep_policy)
    kept_policy = _by("_conditions", Conditions.kept_policy)
    reckon_by = _by("books", Books.reckon_by)

    # -- intake -----------------------------------------------------------------------------------------------------

    accept = _by("_accepting", Accepting.accept)
    accepting = _by("_accepting", Accepting.accepting)
    intake = _by("_intakes", Intakes.intake)
    job_id = _by("_looking", Looking.job_id)
    job_name = _by("_looking", Looking.job_name)
    jobs = _by("_looking", Looking.jobs)

    # -- looking ----------------------------------------------------------------------------------------------------

    snapshot = _by("_looking", Looking.snapshot)
    batch = _by("_batches", Batches.batch)
    results = _by("_looking", Looking.results)
    results_of = _by("_looking", Looking.results_of)
    rows = _by("_looking", Looking.rows)
    numbers = _by("_looking", Looking.numbers)
    counts = _by("_looking", Looking.counts)
    report = _by("_looking", Looking.report)
    records = _by("_looking", Looking.records)
    history = _by("_looking", Looking.history)

    # -- the sync lane ----------------------------------------------------------------------------------------------

    claim = _by("_claims", Claims.claim)
    note_attempt = _by("_claims", Claims.note_attempt)

    # -- the batch lane (lease holder only) -------------------------------------------------------------------------

    flush = _by("_batches", Batches.flush)
    seal = _by("_batches", Batches.seal)
    entries = _by("_batches", Batches.entries)
    still_posting = _by("_batches", Batches.still_posting)
    created = _by("_batches", Batches.created)
    update_batch = _by("_batches", Batches.update_batch)
    known_remotes = _by("_batches", Batches.known_remotes)
    adopt = _by("_adoption", Adoption.adopt)
    adopted = _by("_adoption", Adoption.adopted)
    name_adopted = _by("_adoption", Adoption.name_adopted)
    roll = _by("_batches", Batches.roll)
    reserve_cost = _by("_requeuing", Requeuing.reserve_cost)

    # -- ends -------------------------------------------------------------------------------------------------------

    settle = _by("_settlements", Settlements.settle)
    settling_call = _by("_settlements", Settlements.settling_call)
    settle_answers = _by("_settlements", Settlements.settle_answers)
    take_sums = _by("_settlements", Settlements.take_sums)
    requeue = _by("_requeuing", Requeuing.requeue)
    bodies = _by("_batches", Batches.bodies)
    book_stray = _by("_settlements", Settlements.book_stray)
    cancel = _by("_cancelling", Cancelling.cancel)
    reopen = _by("_renewing", Renewing.reopen)
    suspend = _by("_conditions", Conditions.suspend)
    resume = _by("_conditions", Conditions.resume)
    note_failure = _by("_conditions", Conditions.note_failure)
    note_advance = _by("_conditions", Conditions.note_advance)
    note_setback = _by("_conditions", Conditions.note_setback)
    note = _by("_conditions", Conditions.note)
    resize = _by("_conditions", Conditions.resize)
    set_right = _by("_conditions", Conditions.set_right)
    purge = _by("_purging", Purging.purge)
