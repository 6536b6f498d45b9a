"""What cells count against a real broker: every delivery once, whichever way it is handled and settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.cells import Bench, CellRun, until
from understudy.actors.actor import Actor
from understudy.actors.context import BatchContext, Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.actors.outcomes import Reject
from understudy.actors.policies import Batch, CircuitBreaker, Mailbox, RetryPolicy
from understudy.actors.state import State
from understudy.actors.supervision import Child
from understudy.runtime.admin.pending import Pending
from understudy.runtime.app import App
from understudy.runtime.cell.counts import BOUNDS, Counted, counts_path, read_counts
from understudy.runtime.stream import Stream

ONCE = RetryPolicy(max_attempts=1)
TWICE = RetryPolicy(max_attempts=2, min_delay_seconds=0.01, max_delay_seconds=0.01)


class Placed(Event, subject="orders.placed"):
    number: int = 0


class Billed(Event, subject="orders.billed"):
    number: int = 0


def app_of(actor: type[Actor], **options: Any) -> App:
    """Return the app shop with one actor, called billing."""
    return App(
        "shop",
        streams=[Stream("ORDERS", subjects=["orders.>"])],
        children=[Child(actor, name="billing", **options)],
    )


def counted(cell: CellRun) -> Counted:
    """Return what all generations of a cell have counted."""
    return read_counts(counts_path(cell.directory, "billing/0"))


def outcomes(cell: CellRun) -> dict[str, int]:
    """Return how many deliveries were settled, by outcome, where there were any."""
    return {outcome: number for outcome, number in counted(cell).outcomes().items() if number}


def runs(cell: CellRun) -> int:
    """Return how many runs of handlers were measured."""
    return sum(counted(cell).histograms["handling"][0])


async def publish(orders: Bench, *numbers: int) -> None:
    """Publish numbered events, in this order."""
    for number in numbers:
        await orders.publisher.publish(Placed(number=number))


class Total(State):
    """How many."""

    number: int = 0


class Quick(Actor):
    """Does nothing."""

    @handles
    async def placed(self, event: Placed) -> None: ...


class Slow(Actor, concurrency=10):
    """Takes longer than a quick run may."""

    @handles
    async def placed(self, event: Placed) -> None:
        await asyncio.sleep(0.002)


class InThreads(Actor, concurrency=4):
    """Handles in threads."""

    @handles
    def placed(self, event: Placed) -> None: ...


class Answering(Actor):
    """Publishes one event, and returns another."""

    @handles
    async def placed(self, event: Placed, ctx: Context) -> Billed:
        await ctx.publish(Billed(number=1))
        return Billed(number=2)


class InBatches(Actor):
    """Takes ten at a time."""

    @handles(batch=Batch(size=10, timeout_seconds=0.01))
    async def placed(self, events: list[Placed]) -> None: ...


class Counting(Actor, state=Total):
    """Has a state."""

    @handles
    async def placed(self, event: Placed, ctx: Context) -> None:
        ctx.state.number += 1


@pytest.mark.parametrize(
    ("actor", "options"),
    [
        (Quick, {}),
        (Slow, {}),
        (InThreads, {}),
        (Answering, {}),
        (InBatches, {}),
        (InBatches, {"double_ack": True}),
        (Counting, {}),
        (Quick, {"double_ack": True}),
        (Quick, {"key": "number"}),
        (Quick, {"idempotency": Idempotency(window_seconds=60)}),
        (InBatches, {"idempotency": Idempotency(window_seconds=60)}),
    ],
)
async def test_each_delivery_is_counted_once_whichever_way_it_is_handled(
    orders: Bench, actor: type[Actor], options: dict[str, Any]
) -> None:
    """As received, as handled and in the lag; runs too, of which a batch is one."""
    app = app_of(actor, **options)
    cell = await orders.cell(app)
    await publish(orders, *range(150))
    await until(lambda: outcomes(cell) == {"handled": 150})
    await orders.settled(app)
    await until(lambda: sum(counted(cell).histograms["lag"][0]) == 150)
    assert counted(cell).counters["received"] == 150
    assert cell.status.counters["handled"] == 150
    assert (runs(cell) == 150) is (actor is not InBatches)
    assert 15 <= runs(cell) <= 150
    buckets, seconds = counted(cell).histograms["handling"]
    assert seconds > 0
    if actor is Slow:
        assert sum(buckets[: BOUNDS.index(0.001) + 1]) == 0
    published = sum(counted(cell).histograms["publish"][0])
    assert (published >= 300) is (actor is Answering)
    assert outcomes(cell) == {"handled": 150}


class Picky(Actor, retry=TWICE):
    """Rejects the first, fails at the second, and publishes nothing."""

    @handles
    async def placed(self, event: Placed) -> None:
        if event.number == 1:
            raise Reject("one is too many")
        if event.number == 2:
            raise ValueError("two")


async def test_what_fails_is_counted_by_what_becomes_of_it(orders: Bench) -> None:
    """Given back after each attempt but the last; dead letters by reason, their publishes as any other."""
    cell = await orders.cell(app_of(Picky))
    await orders.client.publish("orders.placed", b"\xc1")
    await publish(orders, 0, 1, 2)
    await until(lambda: outcomes(cell) == {"handled": 1, "retried": 1, "dead_lettered": 3})
    counters = counted(cell).counters
    assert counters["dead_lettered_undecodable"] == 1
    assert counters["dead_lettered_rejected"] == 1
    assert counters["dead_lettered_exhausted"] == 1
    assert (counters["received"], counters["redelivered"], counters["failed"]) == (5, 1, 2)
    # Of the four runs all are measured, and of what can't be read there is none.
    assert runs(cell) == 4
    assert sum(counted(cell).histograms["publish"][0]) >= 3


async def test_what_is_tried_again_in_place_is_settled_once(orders: Bench) -> None:
    """Its failed attempts show as such."""
    cell = await orders.cell(app_of(Picky, on_failure="block"))
    await publish(orders, 2)
    await until(lambda: outcomes(cell) == {"dead_lettered": 1})
    assert (counted(cell).counters["failed"], runs(cell)) == (2, 2)


class Holding(Actor, mailbox=Mailbox(capacity=8)):
    """Waits until the test lets it go on."""

    go: asyncio.Event

    @handles
    async def placed(self, event: Placed) -> None:
        await self.go.wait()


@pytest.fixture
async def go(orders: Bench) -> AsyncIterator[asyncio.Event]:
    """What lets `Holding` go on; at the end it does, before the bench drains its cell."""
    Holding.go = asyncio.Event()
    yield Holding.go
    Holding.go.set()


async def test_what_a_drain_gives_back_is_counted_and_the_next_generation_goes_on(
    orders: Bench, go: asyncio.Event
) -> None:
    """What the drained one has counted stays, though its file is gone."""
    cell = await orders.cell(app_of(Holding))
    await publish(orders, *range(8))
    await until(lambda: cell.status.held == 8)
    stopping = asyncio.create_task(cell.stop())
    # Not before the drain gives up waiting for what is quickly handled.
    await until(lambda: cell.cell is not None and cell.cell._lanes._stopping)
    go.set()
    await stopping
    assert not cell.path.exists()
    assert outcomes(cell) == {"handled": 1, "given_back": 7}
    await cell.start()
    await until(lambda: outcomes(cell) == {"handled": 8, "given_back": 7})
    assert cell.status.counters["handled"] == 7
    assert counted(cell).counters["received"] == 15


async def test_an_event_that_was_handled_is_a_duplicate(orders: Bench) -> None:
    """Known by its key."""
    idempotency = Idempotency(window_seconds=60, key="number")
    cell = await orders.cell(app_of(Quick, idempotency=idempotency))
    await publish(orders, 1, 1, 2, 1)
    await until(lambda: outcomes(cell) == {"handled": 2, "duplicate": 2})
    assert runs(cell) == 2


class Calling(Actor, retry=ONCE):
    """Calls a service that does what the event's number says."""

    @handles
    async def placed(self, event: Placed, ctx: Context) -> None:
        async with ctx.breaker("bank"):
            match event.number:
                case 1:
                    raise ConnectionError("no answer")
                case 2:
                    raise ValueError("what was asked for is wrong")
                case 3:
                    await asyncio.Event().wait()


async def test_calls_through_a_breaker_are_counted_by_what_became_of_them(orders: Bench) -> None:
    """A call that the breaker lets nobody make is rejected, each time that it is tried."""
    breaker = CircuitBreaker(
        "bank", fail_max=3, timeout_seconds=0.05, excluded=[ValueError], reset_timeout_seconds=60
    )
    cell = await orders.cell(app_of(Calling, breakers=[breaker]))

    def calls() -> tuple[int, ...]:
        return counted(cell).calls.get("bank", ())

    # So that the first of each is an increase.
    assert calls() == (0, 0, 0, 0, 0)
    for number, expected in (
        (0, (1, 0, 0, 0, 0)),
        (1, (1, 1, 0, 0, 0)),
        (2, (1, 1, 0, 0, 1)),
        (3, (1, 1, 0, 1, 1)),
        (1, (1, 2, 0, 1, 1)),
    ):
        await publish(orders, number)
        await until(lambda expected=expected: calls() == expected)  # type: ignore[misc]
    await publish(orders, 0)
    await until(lambda: calls() == (1, 2, 1, 1, 1))


@pytest.mark.usefixtures("go")
async def test_gauges_say_what_is_held_asked_for_and_unconfirmed(orders: Bench) -> None:
    """What is held and what is asked for are together no more than fits."""
    cell = await orders.cell(app_of(Holding))
    await publish(orders, *range(12))
    await until(lambda: cell.status.held == 8)
    await until(lambda: cell.status.held_bytes > 0 and cell.status.credit == 0)
    assert cell.status.capacity == 8
    assert cell.cell is not None
    assert cell.status.held_bytes == sum(delivery.size for delivery in cell.cell._mailbox)
    assert cell.status.publish_window == 0


@pytest.mark.usefixtures("go")
async def test_what_waits_in_the_stream_is_asked_for_while_somebody_scrapes(orders: Bench) -> None:
    """Before the first scrape nobody asks, and the first knows nothing."""
    app = app_of(Holding)
    await orders.cell(app)
    await publish(orders, *range(15))
    pending = Pending(app.spec().consumers)
    assert pending.scraped() == {}
    orders.tasks.append(asyncio.create_task(pending.keep_asking(orders.client)))
    await until(lambda: pending.scraped() == {"billing": 7})


class Failing(Actor):
    """Handles nothing of the second subject in its batches."""

    @handles(batch=Batch(size=4, timeout_seconds=60))
    async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
        ctx.fail(1, Reject("not this one"))


async def test_of_a_batch_those_that_failed_are_not_handled(orders: Bench) -> None:
    """Each member counts by itself."""
    cell = await orders.cell(app_of(Failing))
    await publish(orders, *range(4))
    await until(lambda: outcomes(cell) == {"handled": 3, "dead_lettered": 1})
    assert runs(cell) == 1
