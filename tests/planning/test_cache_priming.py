"""When one request goes ahead to write a shared prefix to the prompt cache: what that costs, and no deadline ever."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.benchmarks.caching import MODELS, REQUESTS, cases, guarantee
from tests.strategies import HOUR, NOW

from batchwise.basics.wording import human
from batchwise.models import Lane, Latency, Limits, Policy, Reason
from batchwise.planning.admission import admit, promises_of
from batchwise.planning.agenda import Move, Seal, WaitUntil
from batchwise.planning.cache_priming import LIFE, Caching, Hits, Primed, cheapest, expected_cost, next_step
from batchwise.planning.planner import plan
from batchwise.planning.pricing import PriceBook
from batchwise.planning.prompt_prefix import (
    GROWTH,
    Prefixes,
    is_never_cached,
    minimum_tokens,
    prefix_of,
    prefix_words,
    under_an_hour,
)
from batchwise.planning.reserve import noticing_of, reserve_for
from batchwise.planning.routing import choose_lane
from batchwise.planning.state import BatchState, BatchView, Group, Snapshot, Terms
from batchwise.request import Request

MODEL = "claude-sonnet-5"
TARIFF = PriceBook().rates(MODEL, Lane.BATCH, at=NOW)
assert TARIFF is not None
POLICY = Policy(cache="prime", limits=Limits(requests_per_minute=1_000))
TAKES = POLICY.window + noticing_of(POLICY)

lives = st.sampled_from([None, {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "5m"}, {"ttl": "1h", "type": "x"}])
texts = st.text(max_size=20) | st.just('"cache_control":{"type":"ephemeral"}')


def block(text: str, control: Any = None) -> dict[str, Any]:
    return {"type": "text", "text": text, **({} if control is None else {"cache_control": control})}


def asked(question: str, *blocks: dict[str, Any], **others: Any) -> Request:
    content = [{"role": "user", "content": question}]
    return Request({"model": MODEL, "max_tokens": 9, "system": list(blocks), "messages": content, **others})


def prefix(request: Request) -> Any:
    return prefix_of(request.model, request.body)


# -- the prefix -------------------------------------------------------------------------------------------------------


def test_requests_share_a_prefix_up_to_the_last_breakpoint_before_their_messages() -> None:
    one, other, tail = block("a" * 4_000, {"type": "ephemeral"}), block("b"), {"type": "ephemeral", "ttl": "1h"}
    first = prefix(asked("q", one, other))
    assert first == prefix(asked("r", one, block("c")))
    assert (first.tokens, first.breakpoints) == (pytest.approx(1_000, abs=15), 1)
    assert first.digest == prefix(asked("q", block("a" * 4_000, tail))).digest, "whatever life it asks for"
    assert first.digest != prefix(asked("q", one, other, model="claude-opus-5")).digest
    assert first.digest != prefix(asked("q", one, block("b", tail))).digest, "a longer one"
    assert prefix(asked("q", one, other, messages=[{"role": "user", "content": [block("x", tail)]}])) == first
    in_messages = [[{"role": "user", "content": [block("doc", tail), block(each, tail)]}] for each in "xy"]
    assert len({prefix(asked("q", messages=messages)).digest for messages in in_messages}) == 1


def test_who_asks_for_five_minutes_has_no_prefix_that_is_kept_for_an_hour() -> None:
    short, unnamed = {"type": "ephemeral", "ttl": "5m"}, {"type": "ephemeral"}
    assert prefix(asked("q", block("a" * 9_000, short))) is None
    assert prefix(asked("q", block("a" * 9_000, short), block("b", unnamed))) is None, "an hour behind it is refused"
    assert prefix(asked("q", block('"ttl":"5m"', unnamed))) is not None, "the words alone say nothing"


def test_without_a_breakpoint_there_is_none() -> None:
    assert prefix(asked("q", block('{"cache_control":{"type":"ephemeral"}}'))) is None
    assert prefix(Request({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})) is None
    assert prefix(asked("q", block("x"), cache_control={"type": "ephemeral"})) is None, "of all, with the question"


@given(st.lists(st.tuples(texts, lives), min_size=1, max_size=4), texts, st.integers(0, 2))
def test_a_body_under_an_hour_says_the_same_and_grows_as_told(blocks: list[Any], question: str, fewer: int) -> None:
    body = asked(question, *(block(*each) for each in blocks)).body
    unnamed = sum(control == {"type": "ephemeral"} for _, control in blocks)
    found = prefix_of(MODEL, body)
    short = any(control is not None and control.get("ttl") == "5m" for _, control in blocks)
    assert (0 if found is None else found.breakpoints) == (0 if short else unnamed)
    made = under_an_hour(body, unnamed + fewer)  # it was continued, and has fewer than when it was accepted
    assert len(made) == len(body) + (unnamed + fewer) * GROWTH
    expected = json.loads(body)
    for each in expected["system"]:
        if each.get("cache_control") == {"type": "ephemeral"}:
            each["cache_control"]["ttl"] = "1h"
    assert json.loads(made) == expected


keys = st.sampled_from(["model system messages tools", "model system tools messages", "messages system tools model"])
MARK = {"type": "ephemeral"}
parts = st.sampled_from([block("a"), block("a", MARK), block('"messages":'), block("b", {"ttl": "1h"})])
tools = st.lists(st.sampled_from([{"name": "t"}, {"name": "u", "cache_control": MARK}]), max_size=2)
bodies = st.builds(
    lambda order, model, system, tools, content, data: json.dumps(
        {name: {"model": model, "system": system, "tools": tools, "metadata": data,
                "messages": [{"role": "user", "content": content}]}[name] for name in order.split()},
        separators=(",", ":"),
    ).encode(),
    keys, st.just(MODEL), st.lists(parts, max_size=2), tools, st.lists(parts, max_size=2),
    st.sampled_from([{}, {"tools": "x"}, {"messages": []}]),
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from([MODEL, "claude-opus-5"]), bodies), min_size=2, max_size=8), st.data())
def test_reading_equal_beginnings_once_changes_nothing(requests: list[tuple[str, bytes]], data: Any) -> None:
    known = Prefixes()
    for model, body in data.draw(st.permutations([*requests, *requests])):
        assert known.of(model, body) == prefix_of(model, body)


def test_equal_beginnings_are_read_once() -> None:
    known, shared = Prefixes(), block("p" * 100, {"type": "ephemeral"})
    found = [known.of(MODEL, asked(question, shared).body) for question in "abc"]
    assert found[1] is found[2] is found[0]
    assert known.of(MODEL, asked("d", block("q")).body) is None
    behind = [asked("e", shared, tools=[{"name": name, "input_schema": {"type": "object"}}]) for name in "tu"]
    first, second = (known.of(MODEL, request.body) for request in behind)
    assert (first, second) == (prefix(behind[0]), prefix(behind[1]))
    assert len({found[0].digest, first.digest, second.digest}) == 3, "tools come before the system prompt"


# -- what is cheapest -------------------------------------------------------------------------------------------------

tokens = st.integers(1_000, 60_000)
counts = st.tuples(st.integers(0, 5_000), st.integers(0, 5_000)).map(lambda pair: (min(pair), max(pair)))
records = st.dictionaries(st.sampled_from([Caching.AS_IS, Caching.HOUR, Caching.PRIMED]), counts).map(Hits)


@given(st.integers(1, 10_000), tokens, records, st.booleans())
def test_the_cheapest_way_is_taken_of_those_that_there_are(n: int, size: int, hits: Hits, primes: bool) -> None:
    way = cheapest(n, size, TARIFF, hits, primes=primes)
    ways = [Caching.AS_IS, Caching.HOUR, *([Caching.PRIMED] if primes and n > 1 else [])]
    assert way in ways
    assert all(expected_cost(way, n, size, TARIFF, hits) <= expected_cost(each, n, size, TARIFF, hits) for each in ways)


def test_ones_own_record_corrects_what_is_assumed() -> None:
    assert cheapest(200, 20_000, TARIFF, Hits()) is Caching.PRIMED
    assert cheapest(2, 20_000, TARIFF, Hits()) is Caching.AS_IS
    assert cheapest(3, 20_000, TARIFF, Hits()) is Caching.PRIMED
    useless = Hits({Caching.PRIMED: (300, 1_000), Caching.AS_IS: (900, 1_000)})
    assert cheapest(200, 20_000, TARIFF, useless) is Caching.AS_IS
    lasting = Hits({Caching.PRIMED: (500, 1_000), Caching.AS_IS: (300, 1_000), Caching.HOUR: (980, 1_000)})
    assert cheapest(200, 20_000, TARIFF, lasting) is Caching.HOUR


def test_one_request_writes_the_prefix_whatever_is_done_unless_it_is_in_the_cache() -> None:
    always = Hits(dict.fromkeys((Caching.AS_IS, Caching.HOUR, Caching.PRIMED), (10**9, 10**9)))
    read, five, hour = (100_000 * rate for rate in (TARIFF.cache_read, TARIFF.cache_write_5m, TARIFF.cache_write_1h))
    for way, write in ((Caching.AS_IS, five), (Caching.HOUR, hour), (Caching.PRIMED, hour)):
        assert expected_cost(way, 10, 100_000, TARIFF, always) == pytest.approx(write + 9 * read)
    assert expected_cost(Caching.PRIMED, 10, 100_000, TARIFF, always, warm=True) == pytest.approx(10 * read)
    assert cheapest(1, 100_000, TARIFF, Hits(), warm=True) is Caching.PRIMED
    assert cheapest(1, 100_000, TARIFF, Hits()) is Caching.AS_IS


def test_with_a_record_of_its_own_the_rule_is_near_the_best() -> None:
    assert max(case.ratio for case in cases(record=100_000)) <= 1.02
    ratios = [case.ratio for case in cases(record=1_000)]
    assert sum(ratios) / len(ratios) < 1.005
    assert sum(ratio <= 1.02 for ratio in ratios) > 0.98 * len(ratios)


def test_without_a_record_no_way_guarantees_more_than_the_one_that_is_taken() -> None:
    found = list(cases())
    for model in MODELS:
        tariff = PriceBook().rates(model, Lane.BATCH)
        assert tariff is not None
        for requests in REQUESTS:
            ratios = [case.ratio for case in found if (case.model, case.requests) == (model, requests)]
            assert max(ratios) == pytest.approx(guarantee(requests, tariff))
            assert sum(ratios) / len(ratios) < 1.1
    assert sum(case.ratio <= 1.02 for case in found) > 0.78 * len(found)


# -- what comes next --------------------------------------------------------------------------------------------------

spans = st.integers(0, 100 * 60).map(lambda minutes: timedelta(minutes=minutes))


@example(
    n=200, size=20_000, left=2 * HOUR, gap=timedelta(0), running=None, tried=None, used=None, kept=False, hits=Hits(),
    unknown=False,
)  # fmt: skip
@given(
    n=st.integers(1, 1_000), size=tokens, left=st.none() | spans, gap=spans, running=st.none() | spans,
    tried=st.none() | spans, used=st.none() | spans, kept=st.booleans(), hits=records, unknown=st.booleans(),
)  # fmt: skip
def test_nothing_waits_or_goes_ahead_at_the_price_of_a_deadline(
    n: int, size: int, left: timedelta | None, gap: timedelta, running: timedelta | None, tried: timedelta | None,
    used: timedelta | None, kept: bool, hits: Hits, unknown: bool,
) -> None:  # fmt: skip
    last, primed_by = (None if each is None else NOW + each for each in (left, running))
    known = Primed(*(None if ago is None else NOW - ago for ago in (tried, used)))
    known = attrs.evolve(known, kept_until=None if used is None or not kept else NOW - used + LIFE)
    step = next_step(
        n, size, model=MODEL, tariff=None if unknown else TARIFF, hits=hits, known=known, primed_by=primed_by,
        now=NOW, asked_next=NOW + gap, last=last, takes=TAKES,
    )  # fmt: skip
    if step.waits:
        assert primed_by is not None
        assert NOW + gap < primed_by
        assert last is None or NOW + gap < last
    if step.caching is Caching.PRIMER:
        assert primed_by is None
        assert not unknown
        assert n > 1
        assert size >= minimum_tokens(MODEL)
        assert gap < LIFE
        assert last is None or NOW + gap + TAKES <= last
        assert not known.warm(NOW)
        assert known.tried_at is None or (known.used_at is not None and known.used_at >= known.tried_at)


def queued(number: int, due: timedelta | None, *, requests: int = 100, share: str = "p", **others: Any) -> Group:
    deadline = None if due is None else NOW + due
    terms = Terms(
        id=number, lane=Lane.BATCH, interval=HOUR, deadline=deadline, model=MODEL, max_tokens=100, output_tokens=100,
        prefix=share, prefix_tokens=20_000,
        **{
            "reason": Reason.LATENCY_TOLERANT,
            "submit_by": None if deadline is None else deadline - 25 * HOUR,
            **others,
        },
    )  # fmt: skip
    return Group(terms=terms, requests=requests, size=1_000, since=NOW, flush=True)


def snapshot(*groups: Group, **others: Any) -> Snapshot:
    return Snapshot(batch_queue=groups, tariffs={MODEL: TARIFF}, **others)


def seals(found: Snapshot, policy: Policy = POLICY, **more: Any) -> list[tuple[tuple[int, ...], int, Caching]]:
    actions = [action for action in plan(found, NOW, policy, **more) if isinstance(action, Seal)]
    return [(action.terms, action.max_requests, action.caching) for action in actions]


def primer(*groups: Group, number: int = 9) -> BatchView:
    inside = tuple(attrs.evolve(group, requests=1, flush=False) for group in groups)
    return BatchView(
        id=number, nonce="n", state=BatchState.OPEN, remote_id="r", requests=1, sealed_at=NOW, posting_at=NOW,
        created_at=NOW, expires_at=NOW + 24 * HOUR, polled_at=NOW, caching=Caching.PRIMER, groups=inside,
    )  # fmt: skip


def test_one_goes_ahead_and_the_others_follow() -> None:
    group, plain = queued(1, 80 * HOUR), queued(2, 80 * HOUR, share="")
    all_now = 100_000
    assert seals(snapshot(group, plain)) == [((1,), 1, Caching.PRIMER), ((2,), all_now, Caching.AS_IS)]
    waiting = snapshot(group, batches=(primer(group),))
    assert seals(waiting) == []
    (wait,) = (action for action in plan(waiting, NOW, POLICY) if isinstance(action, WaitUntil))
    assert wait.moment <= group.terms.submit_by
    used = Primed(tried_at=NOW - HOUR / 2, used_at=NOW - HOUR / 4, kept_until=NOW + HOUR / 4 * 3)
    assert seals(snapshot(group, prefixes={"p": used})) == [((1,), all_now, Caching.PRIMED)]
    useless = Hits({Caching.PRIMED: (300, 1_000), Caching.AS_IS: (900, 1_000)})
    assert seals(snapshot(group, prefixes={"p": used}, hits=useless)) == [((1,), all_now, Caching.AS_IS)]
    gone = attrs.evolve(used, kept_until=NOW)
    assert seals(snapshot(group, prefixes={"p": gone})) == [((1,), 1, Caching.PRIMER)]
    for_minutes = attrs.evolve(used, kept_until=None)
    assert seals(snapshot(group, prefixes={"p": for_minutes})) == [((1,), 1, Caching.PRIMER)]
    in_vain = {"p": Primed(tried_at=NOW - HOUR / 2)}
    assert seals(snapshot(group, prefixes=in_vain)) == [((1,), all_now, Caching.AS_IS)]
    assert seals(snapshot(group), attrs.evolve(POLICY, cache="as_is")) == [((1,), all_now, Caching.AS_IS)]
    assert seals(snapshot(queued(1, None))) == [((1,), 1, Caching.PRIMER)]
    for other in (queued(1, 27 * HOUR), attrs.evolve(group, requests=1), queued(1, 80 * HOUR, refused_by=("m",))):
        kept = other if not other.terms.refused_by else attrs.evolve(other, terms=other.terms.asking(["m", MODEL]))
        assert seals(snapshot(kept)) == [((1,), all_now, Caching.AS_IS)]
    assert seals(snapshot(group), wake_gap=4 * HOUR) == [((1,), all_now, Caching.AS_IS)], "it would be seen too late"


def test_nothing_goes_ahead_where_the_rescues_would_not_fit_beside_each_other() -> None:
    policy = attrs.evolve(POLICY, limits=Limits(requests_per_minute=10))  # 570 rescues an hour
    early = queued(1, 50 * HOUR, requests=500, submit_by=NOW + 25 * HOUR)
    assert seals(snapshot(early), policy) == [((1,), 1, Caching.PRIMER)]
    beside = primer(queued(2, 50 * HOUR, share=""), number=8)
    (lone,) = beside.groups
    full = attrs.evolve(
        beside,
        caching=Caching.AS_IS,
        expires_at=NOW + 48 * HOUR,
        created_at=NOW + 24 * HOUR,
        groups=(attrs.evolve(lone, requests=700),),
    )
    assert seals(snapshot(early, batches=(full,)), policy) == [((1,), 100_000, Caching.AS_IS)]


def test_groups_with_the_same_prefix_share_a_primer_and_a_batch() -> None:
    one, two, other = queued(1, 80 * HOUR), queued(2, 80 * HOUR), queued(3, 80 * HOUR, share="q")
    assert seals(snapshot(one, two, other)) == [((1,), 1, Caching.PRIMER), ((3,), 1, Caching.PRIMER)]
    used = dict.fromkeys("pq", Primed(used_at=NOW, kept_until=NOW + HOUR))
    assert seals(snapshot(one, other, two, prefixes=used)) == [((1, 2, 3), 100_000, Caching.PRIMED)]


def test_a_prefix_is_divided_among_batches_only_where_one_does_not_hold_it() -> None:
    policy = attrs.evolve(POLICY, max_batch_requests=200)
    sizes = {1: ("p", 150), 2: ("q", 40), 3: ("r", 30), 4: ("p", 20), 5: ("s", 500), 6: ("", 7)}
    groups = [queued(number, 27 * HOUR, requests=count, share=share) for number, (share, count) in sizes.items()]
    expected = [(6, 1, 4), (2, 3), (5,)]
    assert seals(snapshot(*groups), policy) == [(numbers, 200, Caching.AS_IS) for numbers in expected]
    assert seals(snapshot(*groups), attrs.evolve(policy, cache="as_is")) == [((1, 2, 3, 4, 5, 6), 200, Caching.AS_IS)]


def test_groups_that_share_a_prefix_and_no_batch_share_a_primer() -> None:
    one, two, other = queued(1, 80 * HOUR), queued(2, 120 * HOUR), queued(3, 120 * HOUR, share="q")
    assert seals(snapshot(one, two, other)) == [((1,), 1, Caching.PRIMER), ((3,), 1, Caching.PRIMER)]
    (wait,) = (action for action in plan(snapshot(one, two), NOW, POLICY) if isinstance(action, WaitUntil))
    assert wait.moment <= NOW + TAKES


def test_nothing_goes_ahead_where_the_rescues_of_another_group_that_would_wait_too_do_not_fit() -> None:
    policy = attrs.evolve(POLICY, limits=Limits(requests_per_minute=10))  # 570 rescues an hour
    early = queued(1, 50 * HOUR, requests=500, submit_by=NOW + 25 * HOUR)
    later = attrs.evolve(queued(2, 52 * HOUR, requests=2_000, submit_by=NOW + 25 * HOUR), flush=False)
    assert seals(snapshot(early, later), policy) == [((1,), 100_000, Caching.AS_IS)]
    alone = attrs.evolve(later, terms=attrs.evolve(later.terms, prefix="q"))
    assert seals(snapshot(early, alone), policy) == [((1,), 1, Caching.PRIMER)]


def test_what_cannot_wait_for_a_primer_is_promised_as_if_there_was_none() -> None:
    group = queued(1, 80 * HOUR)
    at_once = queued(2, 80 * HOUR, submit_by=NOW)
    soon = queued(3, 80 * HOUR, submit_by=NOW + 3 * HOUR)
    hedged = queued(4, 20 * HOUR, reason=Reason.HEDGED)
    found = snapshot(group, at_once, soon, hedged, batches=(primer(queued(5, None)),))
    releases = [cohort.release for cohort in promises_of(found, NOW, POLICY).cohorts]
    assert releases == [NOW + 2 * TAKES, NOW + TAKES, NOW + 3 * HOUR + TAKES, NOW + POLICY.cancel_settle]


@pytest.mark.parametrize("at_once", [False, True])
def test_new_work_is_promised_as_waiting_for_a_primer_that_is_under_way(at_once: bool) -> None:
    policy = attrs.evolve(POLICY, limits=Limits(requests_per_minute=10))  # 570 rescues an hour
    waiting = promises_of(snapshot(batches=(primer(queued(9, None)),)), NOW, policy)
    for requests, promises, release in (
        (500, waiting, NOW + 2 * TAKES),
        (2_000, waiting, NOW + TAKES),  # sent at once, for their rescue would not fit behind the primer
        (2_000, promises_of(snapshot(), NOW, policy), NOW + (0 if at_once else 1) * HOUR + TAKES),
    ):
        new = attrs.evolve(queued(1, 50 * HOUR, requests=requests, submit_by=NOW + 26 * HOUR), flush=False)
        admission = admit(new, promises, NOW, policy, at_once=at_once)
        assert [cohort.release for cohort in admission.promises.cohorts] == [release]
        assert (admission.terms.submit_by == NOW) == bool(admission.words) == (promises is waiting and requests > 500)


@given(st.integers(49, 120), st.integers(0, 72 * 60))
def test_what_waits_is_sent_when_its_deadline_asks_for_it(due: int, later: int) -> None:
    """Whatever becomes of the primer, the others are sealed when its window is over, or by their `submit_by`."""
    group = queued(1, due * HOUR)
    at = NOW + timedelta(minutes=later)
    found = plan(snapshot(group, batches=(primer(group),)), at, POLICY)
    limit = min(group.terms.submit_by, NOW + TAKES)
    gone = any(isinstance(action, (Seal, Move)) for action in found)
    assert gone == (at >= limit)
    if not gone:
        assert min(action.moment for action in found if isinstance(action, WaitUntil)) <= limit


@given(st.integers(1, 10_000), tokens, records, st.booleans())
def test_what_a_way_is_expected_to_cost(n: int, size: int, hits: Hits, warm: bool) -> None:
    rates = TARIFF.at_length(size)
    for way in (Caching.AS_IS, Caching.HOUR, Caching.PRIMED):
        write = rates.cache_write_5m if way is Caching.AS_IS else rates.cache_write_1h
        hit, rows = hits.counts.get(way, (0, 0))
        assert hits.rate(way) == (4 * Hits().rate(way) + hit) / (4 + rows)
        writers = 0 if warm and way is Caching.PRIMED else 1
        others = (n - writers) * (hits.rate(way) * rates.cache_read + (1 - hits.rate(way)) * write)
        assert expected_cost(way, n, size, TARIFF, hits, warm=warm) == size * (writers * write + others)


def test_the_length_of_a_prefix_is_that_of_its_blocks() -> None:
    one = block("a" * 3_000, MARK)
    bare = json.dumps(block("a" * 3_000), separators=(",", ":"), sort_keys=True)
    assert prefix(asked("q", one)).tokens == len(bare) // 4
    for extra in range(4):
        text = "a" * (3_000 + extra)
        assert prefix(asked("q", block(text, MARK))).tokens == (len(bare) + extra) // 4


@pytest.mark.parametrize(
    ("size", "left", "words"),
    [
        (2_047, None, "is under the 2,048 from which on it is cached, so nothing is sent ahead"),
        (2_048, None, "is written to the cache by one request ahead, where enough of them share it"),
        (2_048, 50 * HOUR, "is written to the cache by one request ahead, where enough of them share it"),
        (2_048, 49 * HOUR, "is not primed: that takes a window more, 50 h in all, and the deadline is in 49 h"),
    ],
)
def test_what_a_decision_says_of_a_prefix(size: int, left: timedelta | None, words: str) -> None:
    assert prefix_words(size, MODEL, left, 50 * HOUR) == f"a prefix of about {size:,} tokens {words}"


def test_a_prefix_is_spoken_of_where_the_policy_primes() -> None:
    shared = asked("q", block("a" * 20_000, MARK)).params
    for latency, primed in ((30 * HOUR, False), (80 * HOUR, True), (Latency.FLEXIBLE, True)):
        for policy in (POLICY, attrs.evolve(POLICY, cache="as_is")):
            said = choose_lane(Request(shared, latency=latency), now=NOW, policy=policy).explanation
            assert ("; a prefix of about 5," in said) == (policy is POLICY)
            assert ("is written to the cache by one request ahead" in said) == (policy is POLICY and primed)
    needed = 48 * HOUR + reserve_for(POLICY, 6 * HOUR) + noticing_of(POLICY)
    short = choose_lane(Request(shared, latency=30 * HOUR), now=NOW, policy=POLICY).explanation
    assert f"that takes a window more, {human(needed)} in all, and the deadline is in 30 h" in short


def test_what_waits_for_a_primer_waits_until_its_window_is_over_or_its_last_moment() -> None:
    def until(group: Group) -> list[Any]:
        return [act.moment for act in plan(snapshot(group, batches=(primer(queued(9, None)),)), NOW, POLICY)
                if isinstance(act, WaitUntil)]  # fmt: skip

    polled = NOW + POLICY.poll_every[0]
    assert until(queued(1, None)) == [polled]
    quiet = attrs.evolve(primer(queued(9, None)), state=BatchState.SEALED, polled_at=None)
    assert [
        act for act in plan(snapshot(queued(1, None), batches=(quiet,)), NOW, POLICY) if isinstance(act, WaitUntil)
    ] == [WaitUntil(NOW + TAKES)]
    soon = queued(1, 80 * HOUR, submit_by=NOW + 2 * HOUR)
    assert WaitUntil(NOW + 2 * HOUR) in plan(snapshot(soon, batches=(quiet,)), NOW, POLICY)


def test_a_prefix_is_primed_from_the_fewest_tokens_on_that_are_cached_and_never_for_a_hedge() -> None:
    group = queued(1, 80 * HOUR)
    for size, way in ((2_047, Caching.AS_IS), (2_048, Caching.PRIMER)):
        terms = attrs.evolve(group.terms, prefix_tokens=size)
        assert [caching for _, _, caching in seals(snapshot(attrs.evolve(group, terms=terms)))] == [way]
    bet = attrs.evolve(group, terms=attrs.evolve(group.terms, reason=Reason.HEDGED, rescue_at=NOW + 70 * HOUR))
    assert [caching for _, _, caching in seals(snapshot(bet))] == [Caching.AS_IS]


def test_a_breakpoint_behind_an_equal_beginning_is_counted() -> None:
    known, shared = Prefixes(), block("p" * 100, MARK)
    first = asked("a", shared).body
    marked = asked("q", shared, messages=[{"role": "user", "content": [block("x", MARK)]}]).body
    for body, count in ((first, 1), (marked, 2), (first, 1)):
        found = known.of(MODEL, body)
        assert found is not None
        assert found.breakpoints == count


def test_no_model_caches_less_than_1024_tokens() -> None:
    assert (is_never_cached(1_023), is_never_cached(1_024)) == (True, False)
    assert minimum_tokens("claude-opus-5") == minimum_tokens("claude-haiku-5") == minimum_tokens("other") == 4_096
