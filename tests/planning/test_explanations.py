"""Every rule's sentence is one that this module lists, and its figures are those of the decision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.planning.test_forecast import forecasts
from tests.strategies import HOUR, NOW, params

import batchwise as bw
from batchwise.basics.wording import dollars, dollars_apart, human, human_apart
from batchwise.models import Check, Lane, Latency, Policy, Reason, ToolUse
from batchwise.planning.forecast import Forecast
from batchwise.planning.pricing import PriceBook
from batchwise.planning.routing import BATCH_ONLY_BETA, Case, case_of, hedge_wait

ZERO = timedelta(0)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
BOOK = PriceBook()
UNITS = {"d": timedelta(days=1), "h": HOUR, "min": MINUTE, "s": SECOND, "ms": SECOND / 1_000}

AN_HOUR = r"{cost$} an hour \(Policy\.delay_cost_per_hour\)"
RESERVE = (
    r"deadline in {left} leaves {buffer} past the {window} window, (?P<verdict>too little|enough) for the reserve of "
    r"{reserve}"
)
WINDOW = (
    r"deadline in {left} is inside the {window} window of a batch",
    RESERVE,
)
BET = rf"a batch ends within {{run}} with a chance of {{chance%}}(?: and costs {{bet$}} of waiting at {AN_HOUR})?"
DEAR = (
    rf"even a batch that is sent at once takes {{wait}} on average, which costs {{waiting$}} at {AN_HOUR}; it saves "
    r"{saving$}"
)
DELAY = (
    DEAR,
    rf"waiting {{wait}} on average costs {{waiting$}} at {AN_HOUR}; a batch saves {{saving$}}",
    (
        rf"waiting costs {AN_HOUR}, and the price of 'nobody-knows-1' is unknown, so no saving can be set against it; "
        r"give it, in USD per million tokens: Policy\(prices=\{'nobody-knows-1': Rates\(input=3, output=15\)\}\)"
    ),
    rf"waiting costs {AN_HOUR}, but no other lane takes it",
    r"waiting costs nothing \(Policy\.delay_cost_per_hour is 0\)",
)
SENT = (
    rf"(?:within {{interval}}|at once)(?: \(a longer wait at {AN_HOUR} would cost more than it saves\))?, at half price"
)
ONLY = rf"beta {BATCH_ONLY_BETA} is accepted in a batch only, so there is no rescue on the sync lane"
SENTENCES: dict[Reason, tuple[str, ...]] = {
    Reason.ITERATIVE_TOOL_USE: (
        r"the caller runs tools and goes on, and a batch cannot return tool results .*",
        r"the caller runs tools and goes on, and says that each turn may wait",
        r"tool use is (?:none|single|server): one answer ends it",
    ),
    Reason.BLOCKING: (
        r"somebody is waiting for the answer, and a batch may take {window}",
        r"nobody is waiting for the answer",
    ),
    Reason.STREAMING: (r"the caller wants streaming, which a batch has not", r"no streaming asked for"),
    Reason.SYNC_ONLY_PARAMETER: (r"parameter 'speed' is refused in a batch", r"a batch takes all parameters"),
    Reason.BATCH_ONLY_PARAMETER: (
        r"nothing in it is for batches only",
        ONLY,
        rf"{ONLY}; the deadline in {{left}} leaves time for two windows \({{two}}\)",
        rf"{ONLY}; its deadline in {{left}} is not guaranteed, since two windows \({{two}}\) do not fit",
    ),
    Reason.ZERO_DATA_RETENTION: (
        r"zero data retention does not cover batches",
        r"no zero data retention asked for",
    ),
    Reason.HEDGED: (
        r"hedging is off \(Policy\.hedge\)",
        r"nothing to hedge: the window and the reserve fit",
        r"nothing to hedge: no deadline",
        r"nothing to hedge: there is no rescue on the sync lane",
        r"no hedge: a deadline in {left} leaves no time for a batch before a rescue had to begin",
        rf"no hedge: {BET}, which is not expected to pay",
        *(rf"no hedge: {BET}, but with more time {delay}" for delay in DELAY),
        *(rf"no hedge: {delay}" for delay in DELAY),
        *(rf"{words}, but {BET}; what is not done {{rescued}} before the deadline is rescued" for words in WINDOW),
    ),
    Reason.DEADLINE_INSIDE_WINDOW: ("no deadline", *WINDOW),
    Reason.DELAY_COSTS_MORE: DELAY,
    Reason.LATENCY_TOLERANT: (
        "not asked: a rule before it decides",
        rf"no deadline: goes with a batch {SENT}",
        *(
            rf"{words}: goes with a batch {SENT}, and (?:{{kept}} are|nothing is) kept to redo what fails"
            for words in WINDOW
        ),
    ),
}
SHAPES = {
    "": r"-?[0-9.]+ (?:ms|min|s|h|d)(?: [0-9.]+ (?:min|s|h))*",
    "$": r"\$[0-9.,]*[0-9]",
    "%": r"[0-9.]+%",
}


def _compiled(sentence: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)([$%]?)\}", lambda found: f"(?P<{found[1]}>{SHAPES[found[2]]})", _once(sentence)))


def _once(sentence: str) -> str:
    """Where a figure comes twice its second name gets a suffix."""
    seen: dict[str, int] = {}

    def renamed(found: re.Match[str]) -> str:
        seen[found[1]] = seen.get(found[1], 0) + 1
        return f"{{{found[1]}{'' if seen[found[1]] == 1 else f'__{seen[found[1]]}'}{found[2]}}}"

    return re.sub(r"\{(\w+)([$%]?)\}", renamed, sentence)


PATTERNS = {rule: tuple(map(_compiled, sentences)) for rule, sentences in SENTENCES.items()}


def to_timedelta(words: str) -> timedelta:
    sign = -1 if words.startswith("-") else 1
    return sign * sum((float(n) * UNITS[unit] for n, unit in re.findall(r"([0-9.]+) (ms|min|s|h|d)", words)), ZERO)


def to_usd(words: str) -> Decimal:
    return Decimal(words.replace("$", "").replace(",", ""))


def read(check: Check) -> Iterator[tuple[str, str]]:
    """The figures of a verdict, by name; it must be one of the sentences above."""
    for pattern in PATTERNS[check.rule]:
        found = pattern.fullmatch(check.verdict)
        if found:
            for name, words in found.groupdict().items():
                if words is not None:
                    yield name.partition("__")[0], words
            return
    raise AssertionError(f"{check.rule.value} says something new: {check.verdict}")


def figures(case: Case, decision: bw.Decision) -> dict[str, Any]:
    """What the sentences may name, from the question and the decision."""
    saving = case.saving()
    cost = case.policy.delay_cost_per_hour
    wait = case.interval / 2 + case.forecast.expected(case.policy.window)
    found: dict[str, Any] = {
        "left": case.left,
        "window": case.policy.window,
        "two": 2 * case.policy.window,
        "buffer": case.left - case.policy.window,
        "reserve": case.reserve,
        "kept": case.reserve,
        "interval": case.interval,
        "wait": wait,
        "waiting": Decimal(wait / HOUR) * cost,
        "saving": saving,
        "cost": cost,
    }
    if decision.reason is Reason.HEDGED:
        assert decision.submit_by is not None
        assert decision.rescue_at is not None
        assert decision.deadline is not None
        assert decision.submit_by == NOW + hedge_wait(case.left)
        run = decision.rescue_at - decision.submit_by
        found |= {"run": run, "rescued": decision.deadline - decision.rescue_at}
        found |= {"chance": case.forecast.p_end_within(run), "bet": Decimal(case.forecast.expected(run) / HOUR) * cost}
    return found


def agrees(words: str, figure: Any) -> bool:
    if isinstance(figure, timedelta):
        size = abs(figure)
        step = HOUR if size >= 3 * 24 * HOUR - MINUTE else MINUTE if size >= HOUR - SECOND else SECOND
        step = step if size >= MINUTE - SECOND else size / 100
        return abs(to_timedelta(words) - figure) <= step / 2 + timedelta(microseconds=1)
    if isinstance(figure, Decimal):
        return abs(to_usd(words) - figure) <= max(figure / 190, Decimal("0.005") if figure >= Decimal("0.99") else 0)
    return abs(float(words.rstrip("%")) / 100 - figure) <= 0.0005 + 1e-9


policies = st.builds(
    Policy,
    window=st.sampled_from([24 * HOUR, 6 * HOUR]) | st.timedeltas(MINUTE, 48 * HOUR),
    reserve=st.none() | st.timedeltas(ZERO, 6 * HOUR),
    min_reserve=st.timedeltas(ZERO, HOUR),
    interval=st.none() | st.timedeltas(MINUTE, 6 * HOUR),
    flexible_interval=st.timedeltas(SECOND, 3 * HOUR),
    hedge=st.booleans(),
    delay_cost_per_hour=st.sampled_from(["0", "0.0001", "0.001", "0.002"]) | st.decimals("0.0000001", "0.02", places=7),
    zero_data_retention=st.sampled_from([False, False, False, True]),
)
tags = st.fixed_dictionaries(
    {
        "latency": st.sampled_from(Latency)
        | st.timedeltas(MINUTE, timedelta(days=5))
        | st.integers(1, 120).map(lambda hours: hours * HOUR),
        "tool_use": st.sampled_from([ToolUse.NONE, *ToolUse]),
        "stream": st.sampled_from([False, False, False, True]),
        "betas": st.sampled_from([(), (), (), (BATCH_ONLY_BETA,)]),
    }
)
bodies = st.builds(
    params,
    st.sampled_from(["x", "x" * 10_000]),
    model=st.sampled_from(["claude-sonnet-5", "claude-haiku-4-5", "nobody-knows-1"]),
    max_tokens=st.integers(1, 5_000),
)


def asked(latency: Any, **others: Any) -> dict[str, Any]:
    return {"latency": latency, "tool_use": ToolUse.NONE, "stream": False, "betas": (), **others}


HEDGE = Policy(hedge=True)
LONG = {"betas": (BATCH_ONLY_BETA,)}


@example(params(), asked(Latency.BLOCKING, tool_use=ToolUse.ITERATIVE), Policy(zero_data_retention=True), None)
@example({**params(), "speed": "fast"}, asked(30 * HOUR, stream=True, tool_use=ToolUse.PATIENT), Policy(), None)
@example(params(), asked(Latency.FLEXIBLE), HEDGE, None)
@example(params(), asked(30 * HOUR), HEDGE, None)
@example(params(), asked(12 * HOUR), HEDGE, None)
@example(params(), asked(10 * MINUTE), HEDGE, None)
@example(params(), asked(12 * HOUR), Policy(hedge=True, delay_cost_per_hour="0.001"), None)
@example(params(), asked(12 * HOUR), Policy(hedge=True, delay_cost_per_hour="0.0015"), None)
@example(params(), asked(12 * HOUR), Policy(hedge=True, delay_cost_per_hour=1), None)
@example(params(model="nobody-knows-1"), asked(12 * HOUR), Policy(hedge=True, delay_cost_per_hour=1), None)
@example(params(), asked(30 * HOUR), Policy(delay_cost_per_hour="0.001"), None)
@example(params(), asked(30 * HOUR), Policy(delay_cost_per_hour=1), None)
@example(params(), asked(24 * HOUR + 15 * MINUTE), Policy(), None)
@example(params(), asked(24 * HOUR + 14 * MINUTE, **LONG), HEDGE, None)
@example(params(), asked(48 * HOUR, **LONG), Policy(delay_cost_per_hour=1), None)
@example(params(), asked(Latency.FLEXIBLE, **LONG), Policy(), None)
@given(bodies | bodies.map(lambda body: {**body, "speed": "fast"}), tags, policies, st.none() | forecasts)
def test_the_figures_are_those_of_the_decision(
    body: dict[str, Any], given_tags: dict[str, Any], policy: Policy, forecast: Forecast | None
) -> None:
    request = bw.Request(body, **given_tags)
    try:
        decision = bw.choose_lane(request, now=NOW, policy=policy, forecast=forecast)
    except bw.InvalidRequestError:
        assert request.betas == (BATCH_ONLY_BETA,)
        return
    case = case_of(request, now=NOW, policy=policy, forecast=forecast, prices=BOOK)
    known = figures(case, decision)
    assert [check.rule for check in decision.checks if check.decided] == [decision.reason]
    for check in decision.checks:
        shown = dict(read(check))
        for name, words in read(check):
            if name == "verdict":
                fits = case.left >= policy.window + case.reserve
                assert (words == "enough") == fits
                assert (to_timedelta(shown["buffer"]) >= to_timedelta(shown["reserve"])) == fits
            elif name in known:
                assert agrees(words, known[name]), (name, words, known[name], check.verdict)
            else:
                assert check.rule is Reason.HEDGED
                assert not check.decided
        if check.decided:
            assert check.verdict == decision.explanation
        if "waiting" in shown and check.rule is Reason.DELAY_COSTS_MORE:
            dear = check.verdict.startswith("even")
            assert (to_usd(shown["waiting"]) > to_usd(shown["saving"])) == dear
        assert not re.search(r"\$0(?![.0-9])(?!\.)", check.verdict.replace("per_hour is 0", ""))
        assert "within 0 ms" not in check.verdict
    says_batch = "goes with a batch" in decision.explanation or "is rescued" in decision.explanation
    assert not says_batch or decision.lane is Lane.BATCH


def verdict(rule: Reason, policy: Policy, latency: Any, model: str = "claude-sonnet-5") -> str:
    request = bw.Request(params(model=model), latency=latency)
    (found,) = (c.verdict for c in bw.choose_lane(request, now=NOW, policy=policy).checks if c.rule is rule)
    return found


def test_a_declined_hedge_does_not_read_as_if_it_was_taken() -> None:
    dear = verdict(Reason.HEDGED, Policy(hedge=True, delay_cost_per_hour=1), 12 * HOUR)
    assert dear.startswith("no hedge: a batch ends within ")
    assert dear.endswith("at $1.00 an hour (Policy.delay_cost_per_hour), which is not expected to pay")
    assert verdict(Reason.HEDGED, Policy(hedge=True), 20 * MINUTE).startswith("no hedge: a deadline in 20 min leaves")
    later = verdict(Reason.HEDGED, Policy(hedge=True, delay_cost_per_hour="0.004"), 3 * HOUR)
    assert "but with more time even a batch that is sent at once takes 3 h 30 min on average" in later
    unknown = verdict(Reason.HEDGED, Policy(hedge=True, delay_cost_per_hour=1), 12 * HOUR, "nobody-knows-1")
    assert unknown.startswith("no hedge: waiting costs $1.00 an hour")
    assert "'nobody-knows-1' is unknown" in unknown


@pytest.mark.parametrize(
    ("latency", "betas", "words"),
    [
        (Latency.FLEXIBLE, (), "nothing to hedge: no deadline"),
        (30 * HOUR, (), "nothing to hedge: the window and the reserve fit"),
        (24 * HOUR + 14 * MINUTE, (BATCH_ONLY_BETA,), "nothing to hedge: there is no rescue on the sync lane"),
    ],
)
def test_where_there_is_nothing_to_hedge_the_reason_is_said(latency: Any, betas: tuple[str, ...], words: str) -> None:
    decision = bw.choose_lane(bw.Request(params(), latency=latency, betas=betas), now=NOW, policy=HEDGE)
    assert [check.verdict for check in decision.checks if check.rule is Reason.HEDGED] == [words]


def test_the_last_rule_is_not_asked_where_one_before_it_decides() -> None:
    for latency, decides in ((12 * HOUR, True), (30 * HOUR, False)):
        said = verdict(Reason.LATENCY_TOLERANT, Policy(), latency)
        assert (said == "not asked: a rule before it decides") == decides


def test_small_amounts_are_shown_as_they_are() -> None:
    request = bw.Request(params(max_tokens=1, model="claude-haiku-4-5"), latency=30 * HOUR)
    tiny = bw.choose_lane(request, now=NOW, policy=Policy(delay_cost_per_hour="0.001")).explanation
    assert re.search(r"costs \$0\.0034\d? at \$0\.001 an hour .*; it saves \$0\.0000\d+$", tiny)


def test_a_batch_that_is_sent_at_once_says_so() -> None:
    decided = verdict(Reason.LATENCY_TOLERANT, Policy(), 24 * HOUR + 15 * MINUTE)
    assert ": goes with a batch at once, at half price, and 15 min are kept to redo what fails" in decided


def test_under_another_window_a_batch_takes_another_time() -> None:
    assert verdict(Reason.BLOCKING, Policy(window=6 * HOUR), Latency.BLOCKING).endswith("a batch may take 6 h")


def test_two_figures_that_differ_look_different() -> None:
    short = verdict(Reason.DEADLINE_INSIDE_WINDOW, Policy(), 24 * HOUR + 15 * MINUTE - timedelta(microseconds=1))
    assert "leaves 14 min 59.999999 s past the 24 h window, too little for the reserve of 15 min" in short


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (timedelta(hours=1, minutes=59, seconds=59), "2 h"),
        (timedelta(hours=1, minutes=59, seconds=29), "1 h 59 min"),
        (timedelta(seconds=59.96), "1 min"),
        (timedelta(seconds=60.4), "1 min"),
        (timedelta(seconds=59.94), "59.9 s"),
        (timedelta(microseconds=999_999), "1 s"),
        (timedelta(microseconds=1), "0.001 ms"),
        (timedelta(seconds=1.234567), "1.23 s"),
        (timedelta(days=2, hours=23, minutes=59, seconds=30), "3 d"),
        (timedelta(days=2, hours=23), "71 h"),
        (timedelta(days=3, minutes=29), "3 d"),
        (timedelta(days=3, minutes=30), "3 d 1 h"),
    ],
)
def test_durations_are_rounded_to_the_nearest(duration: timedelta, words: str) -> None:
    assert human(duration) == words


def _reads_back(one: Any, other: Any, word: Any, apart: Any, back: Any) -> None:
    assert agrees(word(one), one)
    assert word(-one) == (f"-{word(one)}" if one else word(one))
    words = apart(one, other)
    assert (words[0] == words[1]) == (one == other)
    assert (back(words[0]) < back(words[1])) == (one < other)


@given(st.timedeltas(ZERO, timedelta(days=400)), st.timedeltas(ZERO, timedelta(days=400)))
def test_durations_read_back(one: timedelta, other: timedelta) -> None:
    _reads_back(one, other, human, human_apart, to_timedelta)


@given(st.decimals(0, 10**6, places=9), st.decimals(0, 10**6, places=9))
def test_amounts_read_back(one: Decimal, other: Decimal) -> None:
    _reads_back(one, other, dollars, dollars_apart, to_usd)


@pytest.mark.parametrize(
    ("amount", "words"),
    [("0", "$0"), ("3186", "$3,186.00"), ("0.00001234", "$0.0000123"), ("0.9999", "$1"), ("1.005", "$1.00")],
)
def test_amounts_in_words(amount: str, words: str) -> None:
    assert dollars(Decimal(amount)) == words
