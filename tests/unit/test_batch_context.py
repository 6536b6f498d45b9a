"""What a batch handler is given: single events are failed by their index."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from support.deliveries import delivery
from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.cell.context import CellBatchContext


def context() -> CellBatchContext:
    """Return the context of a batch of two."""

    async def send(index: int | None, event: object, subject: str | None) -> None:
        sent.append((index, event, subject))

    sent: list[tuple[int | None, object, str | None]] = []
    members = [delivery(7), delivery(8)]
    return CellBatchContext(members, Breakers({}), structlog.get_logger(), send, lambda: None)


def test_its_deliveries_are_in_the_order_of_the_list() -> None:
    """Whatever becomes of the list itself."""
    assert [delivery.sequence for delivery in context().deliveries] == [7, 8]


def test_of_two_errors_for_one_event_the_later_counts() -> None:
    """So a handler may change its mind."""
    made, last = context(), ValueError("last")
    made.fail(1, ValueError("first"))
    made.fail(1, last)
    assert made.failures == {1: last}


@pytest.mark.parametrize("index", [2, -1])
def test_an_event_that_the_batch_does_not_have_is_an_error(index: int) -> None:
    """A negative index is none: it would ack what has failed if the count is wrong."""
    made = context()
    expected = f"the batch has 2 events, counted from 0, and none at {index}"
    with pytest.raises(IndexError, match=expected):
        made.fail(index, ValueError())
    with pytest.raises(IndexError, match=expected):
        made.publish({}, index=index, subject="orders.x")
    assert (made.failures, made.collected) == ({}, {})


@pytest.mark.parametrize("error", [None, "why", ValueError, BaseException()])
def test_only_an_exception_fails_an_event(error: Any) -> None:
    """What would have acked it in silence is said."""
    made = context()
    with pytest.raises(TypeError, match="give an exception, such as ValueError"):
        made.fail(0, error)
    assert made.failures == {}


async def test_what_is_published_is_collected_by_event() -> None:
    """Awaiting it is optional."""
    made = context()
    await made.publish(1, index=0, subject="a")
    made.publish(2, subject="b")
    made.publish(3, index=0, subject="c")
    assert made.collected == {0: [(1, "a"), (3, "c")], None: [(2, "b")]}
