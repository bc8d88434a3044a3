"""Whatever is dispatched comes back: each request once, with its own answer."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchwise import Lane, Latency, Request
from tests.strategies import keys, params

from .world import World, listed

LATENCIES = st.sampled_from(
    [None, Latency.BLOCKING, Latency.FLEXIBLE, timedelta(hours=2), timedelta(hours=30), timedelta(days=9)]
)
quick = settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@quick
@given(asked=st.dictionaries(keys, st.tuples(LATENCIES, st.booleans()), min_size=1, max_size=8), bulk=st.booleans())
def test_every_request_comes_back_with_its_own_echo_exactly_once(world: World, asked, bulk):
    job = uuid4().hex
    prompts = {key: f"{job} {n}" for n, key in enumerate(asked)}
    requests = [
        Request(params(prompts[key]), key=key, latency=latency, betas=["files-api-2025-04-14"] * beta)
        for key, (latency, beta) in asked.items()
    ]

    async def example():
        async with world.open() as d:
            if bulk:
                await d.dispatch_all(requests, job=job)
            else:
                for request in requests:
                    await d.dispatch(request, job=job)
            found = await listed((await d.job(job)).results())
            assert sorted(r.key for r in found) == sorted(asked)
            for result in found:
                assert result.text == f"echo: {prompts[result.key]}"
                latency = asked[result.key][0]
                fast = latency in {None, Latency.BLOCKING, timedelta(hours=2)}
                assert result.lane is (Lane.SYNC if fast else Lane.BATCH)
            assert [r.cursor for r in found] == [r.cursor for r in await listed(d.results(job=job))]

    world.run(example)
    bought = world.books.bought_by_prompt()
    assert {prompt: bought[prompt] for prompt in prompts.values()} == dict.fromkeys(prompts.values(), 1)


@quick
@given(
    split=st.lists(st.integers(0, 6), min_size=1, max_size=2),
    faults=st.lists(
        st.sampled_from(
            [
                "messages.overloaded_529",
                "create.drop_after",
                "create.drop_before",
                "results.drop",
                "retrieve.error_500",
            ]
        ),
        max_size=2,
    ),
)
def test_restarts_and_faults_lose_nothing(world: World, split, faults):
    job, total = uuid4().hex, 7
    world.sandbox.clear_faults()
    for fault in faults:
        world.sandbox.fault(fault, times=1)
    requests = [Request(params(f"{job} {n}"), key=str(n), latency=Latency.FLEXIBLE) for n in range(total)]
    seen: list[str] = []
    cursor = 0

    async def example():
        nonlocal cursor
        for most in [*split, total]:  # each run takes some results and leaves
            async with world.open(create_grace=timedelta(milliseconds=150)) as d:
                found = await d.dispatch_all(requests, job=job)
                if most == total:
                    await found.wait()
                async for result in d.results(job=job, after=cursor):
                    if most <= 0:
                        break
                    most -= 1  # noqa: PLW2901
                    seen.append(result.text)
                    cursor = result.cursor

    world.run(example)
    assert sorted(seen) == sorted(f"echo: {job} {n}" for n in range(total))
    assert not [prompt for prompt in world.books.bought_twice() if prompt.startswith(job)]
