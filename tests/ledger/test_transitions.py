"""The life of a batch: one table, which the ledger enforces and the documentation draws."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from batchwise.errors import LedgerError
from batchwise.ledger import transitions
from batchwise.planning.state import BatchState

from .model import NOW, World, posted, unseal

DESIGN = Path(__file__).parents[2] / "docs" / "explanation" / "design.md"


def test_the_documentation_draws_the_table() -> None:
    (diagram,) = re.findall(
        r"## Life of a batch\n+```mermaid\nstateDiagram-v2\n(.*?)```", DESIGN.read_text(), re.DOTALL
    )
    begin = [f"[*] --> {state.value}: {why}" for state, why in transitions.BEGINNINGS.items()]
    move = [
        f"{was.value} --> {to.value}: {why}"
        for was, following in transitions.MOVES.items()
        for to, why in following.items()
    ]
    end = [f"{state.value} --> [*]" for state in transitions.MOVES if state in transitions.OVER]
    assert [line.strip() for line in diagram.strip().splitlines()] == [*begin, *move, *end]


def test_every_state_is_reached_and_has_an_end() -> None:
    assert set(transitions.MOVES) == set(BatchState)
    reached = set(transitions.BEGINNINGS)
    for _ in BatchState:
        reached |= {to for was in reached for to in transitions.MOVES[was]}
    assert reached == set(BatchState)
    ending = set(transitions.OVER)
    for _ in BatchState:
        ending |= {was for was, following in transitions.MOVES.items() if ending & set(following)}
    assert ending == set(BatchState)


def test_a_create_that_is_answered_late_is_not_lost(world: World) -> None:
    """Its process hung, and another one gave the batch up: what comes of it is still collected."""
    world.accept()
    batch = world.sealed()
    posted(world.ledger, batch)
    unseal(world.ledger, batch.id, now=NOW)
    assert world.ledger.snapshot().batches == ()
    world.ledger.batches.created(batch.id, remote_id="late", created_at=NOW, expires_at=NOW, now=NOW)
    assert world.view(batch.id).state is BatchState.OPEN


def test_a_create_that_is_answered_late_does_not_bring_a_batch_back(world: World) -> None:
    """Its process hung, and another one found the batch in the listing and is done with it."""
    world.accept()
    batch = world.opened()
    ended = attrs.evolve(batch, state=BatchState.ENDED)
    assert world.ledger.batches.update(ended, was=batch)
    assert batch.remote_id is not None
    world.ledger.batches.created(batch.id, remote_id=batch.remote_id, created_at=NOW, expires_at=NOW, now=NOW)
    assert world.view(batch.id).state is BatchState.ENDED


def test_a_batch_that_is_open_is_not_sealed_again(world: World) -> None:
    world.accept()
    batch = world.opened()
    with pytest.raises(LedgerError, match=f"batch {batch.id} is open, not sealed, and cannot become posting"):
        world.ledger.batches.update(attrs.evolve(batch, state=BatchState.POSTING), was=batch)
