"""What the ledger tells the planner, as values."""

from __future__ import annotations

import attrs
from tests.strategies import NOW

from batchwise.models import Lane, Reason
from batchwise.planning.prompt_prefix import GROWTH
from batchwise.planning.state import Group, Terms

TERMS = Terms(
    lane=Lane.BATCH, reason=Reason.LATENCY_TOLERANT, model="a", max_tokens=9, output_tokens=7, prefix="p", breakpoints=2
)


def test_a_fallback_model_keeps_the_terms_but_for_the_prefix() -> None:
    assert TERMS.asking(["b"]) == attrs.evolve(TERMS, model="b")
    assert TERMS.asking(["a", "b", "c"]) == attrs.evolve(TERMS, model="c", refused_by=("a", "b"), prefix="")
    assert TERMS.asking(["a", "b"]).asked == ("a", "b")
    assert TERMS.asked == ("a",)


def test_a_request_grows_where_its_breakpoints_ask_for_an_hour() -> None:
    assert TERMS.grows == 2 * GROWTH
    assert attrs.evolve(TERMS, prefix="").grows == 0


def test_a_group_adds_up_its_tokens() -> None:
    group = Group(terms=TERMS, requests=3, size=43, since=NOW)
    assert (group.input_tokens, group.output_tokens) == (10, 21)
