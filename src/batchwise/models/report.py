"""`Report`: money and deadlines of what has settled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import attrs

from batchwise.basics.pictures import BatchRecord, report_page
from batchwise.basics.rendering import to_html
from batchwise.basics.wording import dollars, human, in_requests
from batchwise.errors import printable

from .tags import Lane

__all__ = ["BatchRecord", "Report"]


@attrs.frozen(kw_only=True)
class Report:
    """Money and deadlines of what has settled. Amounts are USD.

    Attributes:
        requests: Settled requests.
        cost: What they cost.
        cost_by_lane: The same by lane.
        saved: What the sync lane would have cost beyond that.
        wasted: Paid for rows that were not used (rescued twice, arrived late, cancelled in a batch with others).
        unpriced: Settled requests whose model's price is unknown; they are in none of the amounts.
        met: Deadlines met: an answer came in time.
        missed: Deadlines missed: the answer came late, or none did. Cancelled requests are in neither.
        refused: Settled requests that the model declined to answer. They are billed.
        truncated: Settled requests whose message was cut off (`Result.truncated`), whatever their outcome.
        worst_lateness: By how much the worst was missed.
        attempts: Attempts made for these requests.
        possible_doubles: Purchases that may have happened twice because an acceptance could not be seen.
        cache_read_tokens: Input tokens read from the prompt cache.
        cache_written_tokens: Input tokens written to it.
        cache_saved: What the prompt cache saved, against the same input uncached; negative: writing cost more.
        input_tokens: All input tokens, cached ones included.
        prices: By which prices the ledger's answers were reckoned, each with the last day (UTC) on which it was: a
            release of genai-prices, the day on which its data were fetched, or Policy.prices before it.
        by_label: What the requests with a label cost, by its name and value: `{("team", "search"): Decimal("1.20")}`.
            One with several labels counts under each of them.
        batches: The last batches (200 at most), the oldest first: for `to_html`.
    """

    requests: int
    cost: Decimal
    cost_by_lane: Mapping[Lane, Decimal]
    saved: Decimal
    wasted: Decimal
    unpriced: int
    met: int
    missed: int
    refused: int
    truncated: int
    worst_lateness: timedelta
    attempts: int
    possible_doubles: int
    cache_read_tokens: int
    cache_written_tokens: int
    cache_saved: Decimal
    input_tokens: int
    prices: Mapping[str, date] = attrs.field(factory=dict)
    by_label: Mapping[tuple[str, str], Decimal] = attrs.field(factory=dict)
    batches: tuple[BatchRecord, ...] = attrs.field(default=(), eq=False, repr=False)

    @property
    def cache_hit_rate(self) -> float | None:
        """Of the tokens that the prompt cache was asked for, the share that was read from it; None: of none."""
        asked = self.cache_read_tokens + self.cache_written_tokens
        return self.cache_read_tokens / asked if asked else None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        lanes = ", ".join(
            f"{dollars(cost)} on the {lane.value} lane" for lane, cost in self.cost_by_lane.items() if cost
        )
        odd = "".join(f", {number} of them {word}" for word, number in self._odd if number)
        yield f"{in_requests(self.requests)} settled{odd}; {self.attempts:,} attempt{'s' * (self.attempts != 1)}"
        yield f"cost: {dollars(self.cost)}{f' ({lanes})' if lanes else ''}; saved: {dollars(self.saved)}"
        worst = f", the worst by {human(self.worst_lateness)}" if self.worst_lateness else ""
        yield f"deadlines: {self.met:,} met, {self.missed:,} missed{worst}"
        if self.cache_hit_rate is not None:
            asked = self.cache_read_tokens + self.cache_written_tokens
            rate = f"{self.cache_hit_rate:.1%} of {asked:,} tokens read"
            yield f"prompt cache: {rate}, the rest written; saved: {dollars(self.cache_saved)}"
        for (name, value), cost in sorted(self.by_label.items()):
            yield f"label {printable(name)}={printable(value)}: {dollars(cost)}"
        for source, day in self.prices.items():
            yield f"by the prices of {source}, last on {day.isoformat()}"
        if self.wasted:
            yield f"paid for rows that were not used: {dollars(self.wasted)}"
        if self.unpriced:
            yield f"of unknown price, and in none of the amounts: {in_requests(self.unpriced)}"
        if self.possible_doubles:
            yield f"possibly bought twice: {self.possible_doubles}"

    @property
    def _odd(self) -> tuple[tuple[str, int], ...]:
        return ("refused", self.refused), ("truncated", self.truncated)

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        rows = [
            ("requests settled", f"{self.requests:,}"),
            *((word, f"{number:,}") for word, number in self._odd),
            ("deadlines met", f"{self.met:,}"),
            ("deadlines missed", f"{self.missed:,}"),
            ("worst lateness", human(self.worst_lateness)),
            *((f"cost on the {lane.value} lane", dollars(cost)) for lane, cost in self.cost_by_lane.items()),
            ("cost", dollars(self.cost)),
            ("saved", dollars(self.saved)),
            ("wasted", dollars(self.wasted)),
            *((f"{name}: {value}", dollars(cost)) for (name, value), cost in sorted(self.by_label.items())),
            ("of unknown price", f"{self.unpriced:,}"),
            ("attempts", f"{self.attempts:,}"),
            ("possible doubles", f"{self.possible_doubles:,}"),
            ("input tokens", f"{self.input_tokens:,}"),
            ("read from the cache", f"{self.cache_read_tokens:,}"),
            ("written to the cache", f"{self.cache_written_tokens:,}"),
            ("saved by the cache", dollars(self.cache_saved)),
        ]
        return to_html(rows, "Money and deadlines")

    def to_html(self, title: str = "batchwise report") -> str:
        """One page that holds all it shows: batches against deadlines with rescues, money, forecasts against facts.

        Of a report of `Dispatcher.report` or `Job.report`; one made otherwise has no batches to show. It needs no
        network, and matplotlib, which the extra `batchwise-claude[report]` brings.

        Args:
            title: The page's heading.

        Raises:
            BatchwiseError: matplotlib is not installed.
        """
        money = [*((f"{lane.value} lane", cost) for lane, cost in self.cost_by_lane.items())]
        money += [("saved", self.saved), ("wasted", self.wasted)]
        return report_page(title, self._repr_html_(), money, self.batches, datetime.now(timezone.utc))
