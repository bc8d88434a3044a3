"""Labels: who or what requests are billed to, kept with their results and summed in reports."""

from __future__ import annotations

import pickle
from collections import Counter
from decimal import Decimal

import pytest

from batchwise import Dispatcher, InvalidRequestError, InvalidValueError, KeyConflictError, Latency, Request, tags
from batchwise.sandbox import Sandbox
from tests.strategies import params

from .world import HOURS_30, World

SEARCH, ADS = {"team": "search", "env": "prod"}, {"team": "ads"}


def labeled(count: int, labels: dict[str, str] | None, prefix: str) -> list[Request]:
    return [Request(params(f"{prefix}-{n}"), key=f"{prefix}-{n}", labels=labels) for n in range(count)]


def sums(results: list) -> dict[tuple[str, str], Decimal]:
    found: Counter[tuple[str, str]] = Counter()
    for result in results:
        for label in result.labels.items():
            found[label] += result.cost
    return dict(sorted(found.items()))


async def test_what_was_spent_is_summed_by_label_on_both_lanes_and_across_processes(world: World):
    bulk = [*labeled(30, SEARCH, "s"), *labeled(20, None, "n"), *labeled(10, ADS, "a")]
    async with world.open() as d:
        job = await d.dispatch_all(bulk, job="j", latency=Latency.FLEXIBLE)
        assert (await (await d.dispatch(params("x"), key="x", labels=ADS)).result()).labels == ADS
        async for _ in job.results():
            pass
    async with world.open() as d:
        results = [result async for result in d.results()]
        assert len(results) == 61
        assert {result.key: result.labels for result in results if result.labels} == {
            **{request.key: request.labels for request in bulk if request.labels},
            "x": ADS,
        }
        report = await d.report()
        assert report.by_label == sums(results)
        assert report.by_label.keys() == {("env", "prod"), ("team", "ads"), ("team", "search")}
        of_job = await d.report("j")
        assert of_job.by_label == sums([result for result in results if result.job == "j"])
        assert of_job.by_label["team", "ads"] < report.by_label["team", "ads"]


async def test_labels_are_no_content_and_the_first_ones_stand(world: World):
    async with world.open() as d:
        one = Request(params("x"), key="k", labels=SEARCH, latency=HOURS_30)
        first = await d.dispatch(one)
        again = await d.dispatch(params("x"), key="k", labels=ADS)  # and sooner: it takes on new terms
        assert again.custom_id == first.custom_id
        assert (await again.result()).labels == SEARCH
        with pytest.raises(KeyConflictError):
            await d.dispatch(params("y"), key="k", labels=SEARCH)


def test_the_calls_of_a_client_are_labeled_by_the_block_around_them(tmp_path):
    with Sandbox() as sandbox, Dispatcher(sandbox.client(), ledger=tmp_path / "l.db") as d:
        client = d.client()
        for labels in (SEARCH, None):
            with tags(labels=labels), tags(key=str(labels)):
                client.messages.create(**params(str(labels)))
        assert d.ticket(str(SEARCH)).result().labels == SEARCH
        assert d.report().by_label.keys() == {("env", "prod"), ("team", "search")}


def test_a_request_with_labels():
    request = Request(params(), key="k", labels=SEARCH)
    assert request.labels == SEARCH
    assert request.digest == Request(params()).digest
    assert request != Request(params(), key="k")
    for same in (pickle.loads(pickle.dumps(request)), request.keyed("k")):  # noqa: S301
        assert (same, same.labels) == (request, SEARCH)
    assert Request(params(), labels={}).labels == Request(params()).labels == {}
    assert Request(params()) == Request(params(), labels=None)


@pytest.mark.parametrize(
    "labels",
    ["team", {"team": 3}, {3: "x"}, {"": "x"}, {"team": ""}, {"team": "a\nb"}, {"team": "\ud800"}, {"t": "x" * 129},
     {str(n): "x" for n in range(17)}, ["team"]],
)  # fmt: skip
def test_what_cannot_be_labels_is_refused_with_the_request(labels):
    with pytest.raises(InvalidRequestError, match=r"request 'k': .*(give e.g. labels|more than 16)"):
        Request(params(), key="k", labels=labels)
    with pytest.raises(InvalidValueError), tags(labels=labels):
        pass
