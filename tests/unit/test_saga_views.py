"""What `understudy sagas` prints of a saga, whichever of its commands does."""

from __future__ import annotations

import msgspec
import pytest

from understudy.actors.saga import SagaRecord
from understudy.actors.saga_position import Phase, Position
from understudy.runtime.cli.saga_actions import StoredSaga, describe, summary, whole
from understudy.runtime.jetstream.saga_log import SagaConsumer


def saga(position: Position) -> StoredSaga:
    """Return a saga of air's that is there."""
    consumer = SagaConsumer(app="air", saga="rebooking", stream="FLIGHTS", durable="air-rebooking")
    record = SagaRecord(id="B-7", position=position, state=msgspec.msgpack.encode({"seat": "12A"}))
    return StoredSaga(consumer=consumer, record=record)


@pytest.mark.parametrize("phase", Phase)
def test_what_is_left_to_undo_is_said_unless_it_has_ended_well(phase: Phase) -> None:
    """Of an abandoned one, too: a seat may still be held."""
    one = saga(Position(phase=phase, undo=("reserve", "charge")))
    ended_well = phase in (Phase.COMPLETED, Phase.COMPENSATED)
    expected = [] if ended_well else ["charge", "reserve"]
    assert (summary(one)["to_undo"], whole(one)["to_undo"]) == (expected, expected)
    assert ("  to undo  charge, reserve" in describe(one).splitlines()) == (not ended_well)
