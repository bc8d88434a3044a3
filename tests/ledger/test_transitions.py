"""The lives of requests and batches: a table each, which the ledger enforces and the documentation draws."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from batchwise.errors import LedgerError
from batchwise.ledger import transitions
from batchwise.ledger.books import Place
from batchwise.ledger.transitions import RequestState
from batchwise.planning.state import BatchState

from .model import BATCH, IN_FLIGHT, NOW, PATIENT, World, posted, requeue, unseal

DESIGN = Path(__file__).parents[2] / "docs" / "explanation" / "design.md"


def _drawn(life: str) -> list[str]:
    """The arrows of a diagram in the documentation; what it calls its states besides is left out."""
    (diagram,) = re.findall(rf"## {life}\n+```mermaid\nstateDiagram-v2\n(.*?)```", DESIGN.read_text(), re.DOTALL)
    return [line.strip() for line in diagram.strip().splitlines() if "-->" in line]


def test_the_documentation_draws_the_table_of_requests() -> None:
    begin = [f"[*] --> {state.value}: {why}" for state, why in transitions.REQUEST_BEGINNINGS.items()]
    move = [
        f"{was.value} --> {to.value}: {why}"
        for was, following in transitions.REQUEST_MOVES.items()
        for to, why in following.items()
    ]
    assert _drawn("Life of a request") == [*begin, *move, "settled --> [*]"]


def test_the_documentation_draws_the_table_of_batches() -> None:
    begin = [f"[*] --> {state.value}: {why}" for state, why in transitions.BEGINNINGS.items()]
    move = [
        f"{was.value} --> {to.value}: {why}"
        for was, following in transitions.MOVES.items()
        for to, why in following.items()
    ]
    end = [f"{state.value} --> [*]" for state in transitions.MOVES if state in transitions.OVER]
    assert _drawn("Life of a batch") == [*begin, *move, *end]


def test_every_state_of_a_request_is_reached_and_left() -> None:
    assert set(transitions.REQUEST_MOVES) == set(RequestState)
    reached = set(transitions.REQUEST_BEGINNINGS)
    reached |= {to for following in transitions.REQUEST_MOVES.values() for to in following}
    assert reached == set(RequestState)
    assert all(transitions.REQUEST_MOVES.values()), "a settled one may begin anew"


def test_a_call_goes_to_no_batch_but_by_the_queue_of_the_sync_lane(world: World) -> None:
    """The ledger refuses it: the call of the request would still run, and nobody would wait for its answer."""
    number = world.accept(terms=PATIENT, claim=True).row.id
    with pytest.raises(LedgerError, match="a request that is calling cannot become queued_batch"):
        requeue(world.ledger, [number], lane=BATCH, costs_attempt=False, now=NOW)
    assert world.status(number) is IN_FLIGHT
    assert world.ledger.snapshot().batch_queue == ()


def test_no_request_moves_but_as_the_table_says(world: World) -> None:
    queued, in_flight, sync, batch = 0, 1, 0, 1
    places = {
        RequestState.QUEUED_BATCH: Place(1, batch, queued, 0),
        RequestState.QUEUED_SYNC: Place(1, sync, queued, 0),
        RequestState.IN_BATCH: Place(1, batch, in_flight, 1),
        RequestState.CALLING: Place(1, sync, in_flight, 0),
    }
    with world.ledger.database.read() as db:
        moves = world.ledger.books.moves(db, NOW)
        for was, place in places.items():
            assert place.state is was
            moves.begin(place, 1, 9)
            moves.settle(place, 1, 9)
            for to, other in places.items():
                if to is was or to in transitions.REQUEST_MOVES[was]:
                    moves.move(place, other, 1, 9)
                else:
                    with pytest.raises(LedgerError, match=f"is {was.value} cannot become {to.value}"):
                        moves.move(place, other, 1, 9)
        for to, place in places.items():
            if to in transitions.REQUEST_MOVES[RequestState.SETTLED]:
                moves.reopen(place, 9)
            else:
                with pytest.raises(LedgerError, match=f"is settled cannot become {to.value}"):
                    moves.reopen(place, 9)


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
