"""Models that go away are warned of, once each, on behalf of the caller's own line."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pytest
from anthropic.resources.messages import messages

from batchwise import Dispatcher, Request
from batchwise.sandbox import Sandbox
from tests.strategies import params

from .world import HOURS_30, World

HERE = Path(__file__).parent
OLD, OLDER = "claude-old-1", "claude-old-0"


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "DEPRECATED_MODELS", {OLD: "January 1st, 2031", OLDER: "July 1st, 2030"})


def asked(model: str, text: str = "x") -> Request:
    return Request(params(text, model=model), key=f"{model}-{text}")


def blamed(caught: Iterable[warnings.WarningMessage]) -> list[Path]:
    """Where the lines are that the warnings name; a synchronous dispatcher is called by `world`, beside this file."""
    return [Path(one.filename).parent for one in caught]


@pytest.mark.parametrize("latency", [None, HOURS_30])
async def test_each_model_is_warned_of_once_on_either_lane(world: World, latency: timedelta | None) -> None:
    async with world.open() as d:
        with pytest.warns(DeprecationWarning, match=f"'{OLD}' will go away on January 1st, 2031") as caught:
            await d.dispatch(asked(OLD), latency=latency)
        assert blamed(caught) == [HERE]
        await d.dispatch(asked(OLD, "y"), latency=latency)  # a warning would be an error
        await d.dispatch(asked("claude-haiku-4-5"), latency=latency)


async def test_many_at_once_warn_of_each_of_their_models(world: World) -> None:
    wanted = [asked(model, str(n)) for n in range(3) for model in (OLD, OLDER, "claude-haiku-4-5")]
    async with world.open() as d:
        with pytest.warns(DeprecationWarning, match="will go away") as caught:
            await d.dispatch_all((one for one in wanted), job="j", latency=HOURS_30)
        assert sorted(str(one.message)[:24] for one in caught) == [f"the model '{name}'" for name in (OLDER, OLD)]
        assert blamed(caught) == [HERE, HERE]
        await d.dispatch_all(wanted, job="again", latency=HOURS_30)


async def test_a_warning_that_is_an_error_accepts_nothing(world: World) -> None:
    async with world.open() as d:
        with pytest.raises(DeprecationWarning):
            await d.dispatch(asked(OLD))
        with pytest.raises(DeprecationWarning):
            await d.dispatch_all([asked(OLDER)], latency=HOURS_30)
        assert (await d.progress()).total == 0


def test_calls_through_the_client_are_warned_of_by_the_sdk_alone() -> None:
    with Sandbox(models=[OLD]) as sandbox, sandbox.client() as inner, Dispatcher(inner, ledger=":memory:") as d:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            d.client().messages.create(**params("x", model=OLD))
        (one,) = caught
        assert str(one.message).startswith(f"The model '{OLD}' is ")
