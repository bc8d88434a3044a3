"""A policy as text: TOML, the ledger's JSON, and that a dispatcher without one takes the ledger's."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from decimal import Decimal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchwise import Dispatcher, InvalidValueError, Limits, Policy, Rates, Request
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.sandbox import Sandbox
from tests.strategies import durations, limits, params

spans = st.just(timedelta(0)) | durations
usd = st.decimals(0, 10**6, places=6)
rate = st.decimals(0, 10**3, places=4)
DRAWN = {
    "window": durations,
    "reserve": st.none() | spans,
    "min_reserve": spans,
    "interval": st.none() | durations,
    "flexible_interval": durations,
    "hedge": st.booleans(),
    "delay_cost_per_hour": usd,
    "zero_data_retention": st.booleans(),
    "max_attempts": st.integers(1, 9),
    "max_spend": usd,
    "max_spend_period": st.none() | durations,
    "late": st.sampled_from(["run", "fail"]),
    "limits": st.none() | limits | st.dictionaries(st.sampled_from(["claude", "latency", "é"]), limits, min_size=1),
    "poll_every": st.tuples(durations, durations).map(sorted),
    "create_grace": spans,
    "cancel_settle": spans,
    "max_batch_requests": st.none() | st.just("auto") | st.integers(1, 10**5),
    "exclusive_workspace": st.booleans(),
    "linger": spans,
    "cache": st.sampled_from(["as_is", "prime"]),
    "prices": st.dictionaries(
        st.sampled_from(["my-model", "claude.5", "é"]),
        st.builds(Rates, input=rate, output=rate, cache_write=st.none() | rate, cache_read=st.none() | rate),
    ),
    "fallback_models": st.lists(st.text(min_size=1).filter(str.isprintable), max_size=3),
}
policies = st.builds(Policy, **DRAWN)


@given(policies)
def test_a_policy_goes_through_json(policy):
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_each_field_goes_through_json():
    """A new field of `Policy` has to be drawn above, too."""
    assert set(DRAWN) == {field.name for field in attrs.fields(Policy)}


def test_a_file_says_what_is_not_as_usual(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(
        'window = "20h"\nmax_spend = 12.5\nhedge = true\npoll_every = ["0.5s", "1m30s"]\nlimits = "build"\n'
    )
    assert Policy.from_toml(path) == Policy(
        window=timedelta(hours=20),
        max_spend=Decimal("12.5"),
        hedge=True,
        poll_every=(timedelta(seconds=0.5), timedelta(seconds=90)),
        limits=Limits.for_tier("build"),
    )


def test_limits_by_model_in_a_file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('[limits]\nclaude-haiku = "scale"\n[limits.claude-opus]\nconcurrency = 7\nlatency = "20s"\n')
    opus = Limits(concurrency=7, latency=timedelta(seconds=20))
    assert Policy.from_toml(path).limits == {"claude-haiku": Limits.for_tier("scale"), "claude-opus": opus}


def test_prices_in_a_file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text("[prices.my-model]\ninput = 3\noutput = 15.5\n")
    assert Policy.from_toml(path).prices == {"my-model": Rates(input=3, output="15.5")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("windw = '24h'", "did you mean window"),
        ("window = 24", "window=24 has no unit"),
        ("window = '24'", "window='24' is not a duration"),
        ("window = '0s'", "window"),
        ("limits = 'mega'", "mega"),
        ("limits = 7", "limits=7"),
        ("[limits]\nconcurency = 3", "concurrency"),
        ("[prices.my-model]\ninput = 3\noutput = 15\nouput = 15", "output"),
        ("[prices.my-model]\ninput = 3", "Rates lacks output"),
        ("[prices]\nmy-model = 3", "my-model"),
        ("hedge = 'yes'", "hedge"),
        ("max_spend = 'much'", "much"),
        ("max_spend =", "TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path, text, words):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(InvalidValueError, match=words) as caught:
        Policy.from_toml(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidValueError, match=r"none\.toml") as caught:
        Policy.from_toml(tmp_path / "none.toml")
    assert str(caught.value).count("none.toml") == 1, "its name is said once"


@pytest.fixture
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


def policy_of(dispatcher: Dispatcher) -> Policy:
    return dispatcher._engine.policy


def test_the_ledger_keeps_the_policy_that_work_was_accepted_under(sandbox, tmp_path, caplog):
    path, mine = tmp_path / "ledger.db", Policy(window=timedelta(hours=20), linger=timedelta(0), limits=Limits())

    def opened(policy: Policy | None = None) -> Dispatcher:
        return Dispatcher(sandbox.client(), ledger=path, policy=policy)

    with opened() as none, opened(mine) as one:
        assert policy_of(none) == Policy()
        one.progress()
        with opened() as before:
            assert policy_of(before) == Policy()  # nothing was accepted under it yet
        one.dispatch_all([Request(params(), key="a")], job="j", latency=timedelta(hours=30))
    with opened() as later:
        assert policy_of(later) == mine
        later.dispatch(params(), key="x", latency=timedelta(hours=30))
    caplog.set_level(logging.INFO, "batchwise")
    with opened(mine):
        assert "other policy" not in caplog.text
    other = attrs.evolve(mine, hedge=True, window=timedelta(hours=22))
    with opened(other) as one:
        assert "window=22h (not 20h), hedge=True (not False)" in caplog.text
        one.dispatch(params(), key="b", latency=timedelta(hours=30))
    with opened() as last:
        assert policy_of(last) == other


def test_a_newer_version_s_policy(tmp_path, caplog):
    ledger = SqliteLedger(tmp_path / "ledger.db")
    table = {**Policy(hedge=True).to_dict(), "telepathy": True}
    assert Policy.from_dict(table, lenient=True) == Policy(hedge=True)
    with pytest.raises(InvalidValueError, match="telepathy"):
        Policy.from_dict(table)
    with ledger.database.write("test") as db:
        db.execute("INSERT INTO meta VALUES ('policy', ?)", (json.dumps({**table, "late": "maybe"}),))
    assert ledger.conditions.kept_policy() is None
    assert "newer version" in caplog.text
    ledger.close()
