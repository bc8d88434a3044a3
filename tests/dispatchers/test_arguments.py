"""Arguments that cannot be right: the error says what to write, and nothing is accepted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import batchwise
from batchwise import InvalidRequestError, InvalidValueError, KeyConflictError, Latency, Policy, Request
from tests.strategies import params

from .world import World

AS_A_DICT = "{'model': 'claude-...', 'max_tokens': 1024, 'messages': [{'role': 'user', 'content': '...'}]}"


async def test_a_string_as_the_request(world: World):
    async with world.open() as d:
        with pytest.raises(InvalidRequestError) as raised:
            await d.dispatch("What is it?")
    assert "params is a str" in str(raised.value)
    assert AS_A_DICT in str(raised.value)
    assert "What is it?" not in str(raised.value)


async def test_a_list_as_the_request(world: World):
    async with world.open() as d:
        with pytest.raises(InvalidRequestError, match="use dispatch_all for several"):
            await d.dispatch([params()])


@pytest.mark.parametrize("name", ["model", "max_tokens", "messages"])
async def test_parameters_as_the_sdk_takes_them(world: World, name: str):
    async with world.open() as d:
        with pytest.raises(InvalidRequestError, match=f"given {name}= by itself; .* as one dict"):
            await d.dispatch(**{name: params()[name]})
        with pytest.raises(TypeError, match="other"):
            await d.dispatch(params(), other=1)


def test_parameters_as_the_sdk_takes_them_in_a_script():
    with pytest.raises(InvalidRequestError, match="as one dict"):
        batchwise.dispatch(**params())


@pytest.mark.parametrize("between", [0, 3, 1_200])
@pytest.mark.parametrize("job", [None, "j"])
async def test_a_key_twice_in_one_bulk_names_both_places(world: World, between: int, job: str | None):
    bulk = [Request(params("first"), key="first"), Request(params("a"), key="twice")]
    bulk += [Request(params("x"), key=str(each)) for each in range(between)]
    bulk += [Request(params("b"), key="twice")]
    async with world.open() as d:
        with pytest.raises(KeyConflictError) as raised:
            await d.dispatch_all(bulk, job=job, latency=Latency.FLEXIBLE)
        assert (await d.progress()).total == 0
    assert f"items #1 and #{between + 2} of dispatch_all have the key 'twice'" in str(raised.value)


async def test_a_key_of_an_earlier_call_names_the_place_in_the_bulk(world: World):
    async with world.open() as d:
        await d.dispatch(params("a"), key="taken", latency=Latency.FLEXIBLE)
        with pytest.raises(KeyConflictError, match="item #1 of dispatch_all: the key 'taken' without a job"):
            await d.dispatch_all([Request(params("x"), key="x"), Request(params("b"), key="taken")])


@pytest.mark.parametrize("good", [0, 2, 1_200])
async def test_what_a_generator_raises_says_how_far_it_came(world: World, good: int):
    error = LookupError("mine")

    def requests() -> Iterator[Request]:
        for number in range(good):
            yield Request(params("x"), key=str(number))
        raise error

    async with world.open() as d:
        with pytest.raises(LookupError, match="mine") as raised:
            await d.dispatch_all(requests(), latency=Latency.FLEXIBLE)
        assert (await d.progress()).total == 0
    assert raised.value is error
    if sys.version_info >= (3, 11):
        assert error.__notes__ == [f"dispatch_all had taken {good} items; nothing of it was accepted"]


HOUR, NOW = timedelta(hours=1), datetime(2026, 11, 23, tzinfo=timezone.utc)
LOAD: Any = {
    "arrivals_per_hour": 1,
    "mean_input_tokens": 1,
    "mean_output_tokens": 1,
    "model": "claude-sonnet-5",
    "request_bytes": 9,
}
OF_A_WRONG_KIND: list[tuple[Callable[[], Any], str]] = [
    (lambda: batchwise.choose_lane(Request(params()), now=NOW, policy=None), "Policy.from_dict"),
    (lambda: batchwise.choose_lane(params(), now=NOW), "request is a dict, not a Request"),
    (lambda: batchwise.sla_cadence(30 * HOUR, policy={}), "policy is a dict, not a Policy"),
    (lambda: batchwise.plan_workload(sla=30 * HOUR, policy={}, **LOAD), "policy is a dict, not a Policy"),
    (lambda: batchwise.compare_slas([30 * HOUR], policy="x.toml", **LOAD), "policy is a str, not a Policy"),
    (lambda: batchwise.track("nightly"), "track takes a job, as dispatch_all gives one, not a str"),
    (lambda: Policy.from_dict([]), "Policy is read from a mapping of its fields, not from a list"),
    (lambda: Policy.from_dict({1: 2}), "Policy has no field 1"),
    (lambda: batchwise.compare_slas(HOUR, arrivals_per_hour=1), "slas is a timedelta; give a list"),
    (lambda: batchwise.compare_slas([HOUR], sla=HOUR, arrivals_per_hour=1), "leave sla= out"),
]


@pytest.mark.parametrize(("call", "said"), OF_A_WRONG_KIND, ids=[said for _, said in OF_A_WRONG_KIND])
def test_what_a_function_cannot_take(call: Callable[[], Any], said: str):
    with pytest.raises(InvalidValueError) as raised:
        call()
    assert said in str(raised.value)


@pytest.mark.parametrize(("policy", "said"), [({"hedge": True}, "from_dict"), ("x.toml", "from_toml")])
async def test_what_is_no_policy(world: World, policy: Any, said: str):
    client = world.client()
    with pytest.raises(InvalidValueError, match=f"policy is a .*Policy.{said}"):
        async with world.colour.dispatcher(getattr(client, "_inner", client), world.path, policy):
            pass


@pytest.mark.parametrize("job", [5, ""])
async def test_what_is_no_job_s_name(world: World, job: Any):
    async with world.open() as d:
        for call in (
            lambda: d.dispatch(params(), job=job),
            lambda: d.dispatch_all([Request(params())], job=job),
            lambda: d.adopt("msgbatch_1", job=job),
            lambda: d.job(job),
            lambda: d.ticket("k", job=job),
            lambda: d.progress(job),
            lambda: d.report(job),
            lambda: d.cancel(job=job),
            lambda: d.cancel("k", job=job),
        ):
            with pytest.raises(InvalidValueError, match=f"job={job!r} is not a name"):
                await call()
        with pytest.raises(InvalidValueError, match=f"job={job!r} is not a name"):
            batchwise.tags(job=job).__enter__()
        assert (await d.progress()).total == 0


@pytest.mark.parametrize("output_format", [None, int])
@pytest.mark.parametrize("given", [Request(params("a")), params("a"), "a", 3], ids=lambda given: type(given).__name__)
async def test_a_single_request_given_as_a_bulk_is_told_to_use_dispatch(world: World, given: Any, output_format: Any):
    async with world.open() as d:
        with pytest.raises(InvalidRequestError, match=f"not a {type(given).__name__}; use dispatch for a single one"):
            await d.dispatch_all(given, output_format=output_format)
        assert (await d.progress()).total == 0


async def test_a_bulk_may_be_a_dataset_that_gives_its_items_by_number(world: World):
    class Dataset:
        def __getitem__(self, number: int) -> Request:
            return [Request(params("one")), Request(params("two"))][number]

    async with world.open() as d:
        await d.dispatch_all(Dataset(), latency=Latency.FLEXIBLE)
        assert (await d.progress()).total == 2
