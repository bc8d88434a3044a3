"""`Report`: what settled requests cost and saved, and whether their deadlines were met."""

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
    """What settled requests cost and saved, and whether their deadlines were met. Amounts are in USD.

    Attributes:
        requests: How many requests have settled.
        cost: What they cost.
        cost_by_lane: The same for each lane.
        saved: How much more the sync lane would have cost.
        wasted: The cost of answers that were not used: a request was answered twice, or was cancelled while it shared
            a batch with others.
        unpriced: How many have a model whose price is unknown. They are in none of the amounts.
        met: How many got an answer before their deadline.
        missed: How many got an answer after their deadline, or none. Cancelled requests are neither met nor missed.
        refused: How many the model refused to answer. They are billed.
        truncated: How many messages were cut off (`Result.truncated`), whatever the outcome.
        worst_lateness: The longest time by which a deadline was missed.
        attempts: How many attempts were made for these requests.
        possible_doubles: How many requests or batches may have been bought twice, because the API's answer to the
            first attempt was lost.
        cache_read_tokens: Input tokens that were read from the prompt cache.
        cache_written_tokens: Input tokens that were written to the prompt cache.
        cache_saved: What the prompt cache saved, compared with the same input uncached. Negative: writing to the cache
            cost more than reading from it saved.
        input_tokens: All input tokens, cached ones included.
        prices: The price lists by which the costs were computed, each with the last day (UTC) on which it was used: a
            release of genai-prices, its data as fetched on some day, and `Policy.prices` if they came before it.
        by_label: The cost of the requests with a label, by its name and value: `{("team", "search"): Decimal("1.20")}`.
            A request with several labels counts under each of them.
        batches: The last batches, at most 200, the oldest first; for `to_html`.
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
        """The share of cacheable input tokens that were read from the prompt cache, 0 to 1. None: there were none."""
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
        """Return an HTML page with charts: batches and their deadlines, costs, and forecasts beside real durations.

        The page needs no network: it holds its charts as SVG. Making it needs matplotlib, which the extra
        `batchwise-claude[report]` installs.

        Args:
            title: The heading of the page.

        Raises:
            BatchwiseError: matplotlib is not installed.
        """
        money = [*((f"{lane.value} lane", cost) for lane, cost in self.cost_by_lane.items())]
        money += [("saved", self.saved), ("wasted", self.wasted)]
        return report_page(title, self._repr_html_(), money, self.batches, datetime.now(timezone.utc))
