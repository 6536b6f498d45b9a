"""Actors that stop themselves, and failures that mean that the actor itself has failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.cells import Bench, CellRun, until
from understudy.actors.actor import Actor
from understudy.actors.context import BatchContext, Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import Batch, CircuitBreaker, RetryPolicy
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.cell.failures import ActorFailed
from understudy.runtime.jetstream.api import consumer_info, stream_info
from understudy.runtime.jetstream.pinning import pinned_id
from understudy.runtime.stores.attempts import Attempts, AttemptStore
from understudy.runtime.stream import Stream

# Nothing comes again while the test looks.
PATIENT = RetryPolicy(max_attempts=5, min_delay_seconds=60, max_delay_seconds=60)
QUICK = RetryPolicy(max_attempts=50, min_delay_seconds=0.001, max_delay_seconds=0.001)


class PoolGone(Exception):
    """What an actor can't go on after."""


class Placed(Event, subject="orders.placed"):
    number: int = 0


def app_of(actor: type[Actor], **options: Any) -> App:
    """Return the app shop with one actor, called billing."""
    return App(
        "shop",
        streams=[Stream("ORDERS", subjects=["orders.>"])],
        children=[Child(actor, name="billing", **options)],
    )


async def attempts_of(orders: Bench, sequence: int) -> Attempts:
    """Return what is recorded of a delivery."""
    stream = await stream_info(orders.client, "ORDERS")
    assert stream is not None
    store = await AttemptStore.open(orders.client, "shop-attempts", "shop-billing", stream["created"])
    return await store.read(sequence)


async def ended(cell: CellRun) -> str:
    """Return what a cell that ends of itself left undone; raise what it failed with."""
    assert cell.task is not None
    return await asyncio.wait_for(cell.task, 60)


async def failure_of(cell: CellRun) -> str:
    """Return why the actor has failed."""
    with pytest.raises(ActorFailed) as raised:
        await ended(cell)
    assert (cell.status.state, cell.status.reason) == ("failed", str(raised.value))
    return str(raised.value)


# Stopping itself


class UntilThree(Actor):
    """Ends with the third event."""

    @handles
    async def placed(self, event: Placed, ctx: Context) -> None:
        if event.number == 3:
            ctx.stop()
            ctx.stop()


class UntilThreeInAThread(Actor):
    """Ends with the third event, and raises after that."""

    @handles
    def placed(self, event: Placed, ctx: Context) -> None:
        if event.number == 3:
            ctx.stop()
            raise Reject("three is too many")


class UntilABatch(Actor):
    """Ends with its first batch."""

    # A batch of fewer would end it too.
    @handles(batch=Batch(size=3, timeout_seconds=60))
    async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
        ctx.stop()


@pytest.mark.parametrize(
    ("actor", "options", "handled", "dead_lettered"),
    [
        (UntilThree, {"restart": "transient", "ordered": True}, 3, 0),
        (UntilThree, {"restart": "temporary"}, 3, 0),
        (UntilThreeInAThread, {"restart": "transient", "ordered": True}, 2, 1),
        (UntilABatch, {"restart": "transient"}, 3, 0),
    ],
)
async def test_an_actor_may_stop_itself(
    orders: Bench, actor: type[Actor], options: dict[str, Any], handled: int, dead_lettered: int
) -> None:
    """The delivery at hand is settled as usual, the cell drains, and nothing is left held or pinned."""
    app = app_of(actor, **options)
    cell = await orders.cell(app)
    for number in (1, 2, 3):
        await orders.publisher.publish(Placed(number=number))
    assert await ended(cell) == ""
    assert cell.cell is not None
    assert cell.cell.stopped_itself
    assert not cell.path.exists()
    assert len(await orders.dead_letters(app)) == dead_lettered
    info = await consumer_info(orders.client, "ORDERS", "shop-billing")
    assert info is not None
    assert (info["ack_floor"]["stream_seq"], info["num_ack_pending"]) == (3, 0)
    assert not pinned_id(info)


async def test_a_permanent_actor_cannot_stop_itself(orders: Bench) -> None:
    """The error says what to declare, and fails the attempt."""
    app = app_of(UntilThree, retry=RetryPolicy(max_attempts=1))
    cell = await orders.cell(app)
    await orders.publisher.publish(Placed(number=3))
    await until(lambda: cell.status.counters["dead_lettered"] == 1)
    (letter,) = await orders.dead_letters(app)
    assert letter.headers["Understudy-Error"] == (
        "DeclarationError: actor 'billing' is permanent, and would be started again; "
        "to let it stop itself declare it with restart='transient' (or 'temporary')"
    )
    assert cell.task is not None
    assert not cell.task.done()


class StopsAndLingers(Actor, restart="transient"):
    """Its on_stop never ends."""

    async def on_stop(self) -> None:
        await asyncio.Event().wait()

    @handles
    async def placed(self, event: Placed, ctx: Context) -> None:
        ctx.stop()


async def test_a_stop_of_its_own_takes_no_longer_than_one_that_was_asked_for(orders: Bench) -> None:
    """Nobody else keeps the time."""
    cell = await orders.cell(app_of(StopsAndLingers), shutdown_timeout_seconds=0.5)
    await orders.publisher.publish(Placed())
    with pytest.raises(TimeoutError):
        await ended(cell)
    assert cell.status.state == "failed"


# Failing as an actor


class Raises(Actor):
    """Raises what the event's number says."""

    @handles
    async def placed(self, event: Placed, ctx: Context) -> None:
        match event.number:
            case 1:
                raise ValueError("one")
            case 2:
                raise PoolGone("the pool is closed")
            case 3:
                raise Retry(60)
            case 4:
                raise Reject("four")
            case 5:
                async with ctx.breaker("mail"):
                    raise ConnectionError("no answer")


@pytest.mark.parametrize("on_failure", ["redeliver", "block"])
async def test_what_restart_on_names_fails_the_actor(orders: Bench, on_failure: str) -> None:
    """The attempt is counted and the delivery given back or kept, as after any failure; a child class too."""
    app = app_of(Raises, restart_on=[ZeroDivisionError, PoolGone], retry=PATIENT, on_failure=on_failure)
    cell = await orders.cell(app)
    await orders.publisher.publish(Placed(number=1))
    await until(lambda: cell.status.counters["failed"] == 1)
    await orders.publisher.publish(Placed(number=2))
    assert await failure_of(cell) == "PoolGone: the pool is closed"
    attempts = await attempts_of(orders, 2)
    assert (attempts.failed, attempts.error) == (1, "PoolGone: the pool is closed")
    # Of what is given back the server keeps the time.
    assert bool(attempts.retry_at) == (on_failure == "block")
    assert cell.status.counters["retried"] == (2 if on_failure == "redeliver" else 0)
    await cell.vanish()
    await cell.start(reason="PoolGone: the pool is closed")
    assert cell.status.counters["taken_over"] == (0 if on_failure == "redeliver" else 2)


class SometimesRaises(Actor, retry=QUICK):
    """Raises on every even number, until it has seen each three times."""

    def __init__(self) -> None:
        self.runs: dict[int, int] = {}

    @handles
    async def placed(self, event: Placed) -> None:
        self.runs[event.number] = self.runs.get(event.number, 0) + 1
        if event.number % 2 == 0 and self.runs[event.number] < 4:
            raise ValueError(f"run {self.runs[event.number]} of {event.number}")


@pytest.mark.parametrize(("limit", "fails"), [(3, True), (4, False)])
async def test_so_many_failures_in_a_row_fail_the_actor(orders: Bench, limit: int, fails: bool) -> None:
    """A success between begins anew."""
    app = app_of(SometimesRaises, max_consecutive_failures=limit, on_failure="block", ordered=True)
    cell = await orders.cell(app)
    for number in (2, 1, 4):
        await orders.publisher.publish(Placed(number=number))
    if fails:
        assert await failure_of(cell) == (
            "3 handler runs in a row failed, the last with ValueError: run 3 of 2"
        )
        assert cell.status.counters["failed"] == 3
    else:
        await until(lambda: cell.status.counters["handled"] == 3)
        assert cell.status.counters["failed"] == 6
        assert cell.status.state == "up"


async def test_what_a_handler_means_and_what_a_breaker_holds_is_no_failure_of_the_actor(
    orders: Bench,
) -> None:
    """Retry, Reject, and calls that an open breaker turns away."""
    app = app_of(
        Raises,
        max_consecutive_failures=2,
        restart_on=[OSError],
        retry=PATIENT,
        breakers=[CircuitBreaker("mail", fail_max=1, reset_timeout_seconds=60)],
        concurrency=8,
    )
    cell = await orders.cell(app)
    for number in (3, 3, 4, 4):
        await orders.publisher.publish(Placed(number=number))
    await until(lambda: cell.status.counters["failed"] + cell.status.counters["dead_lettered"] == 4)
    await orders.publisher.publish(Placed(number=1))
    await until(lambda: cell.status.counters["failed"] == 3)
    assert cell.status.state == "up"
    # The failure that opens the breaker is one, though.
    await orders.publisher.publish(Placed(number=5))
    assert await failure_of(cell) == "ConnectionError: no answer"


class FailsBatches(Actor, retry=PATIENT):
    """Fails whole batches of odd numbers, and the even members of others."""

    # A batch of fewer would be another run.
    @handles(batch=Batch(size=4, timeout_seconds=30))
    async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
        if all(event.number % 2 for event in events):
            raise ValueError("odd")
        for index, event in enumerate(events):
            if event.number == 8:
                ctx.fail(index, PoolGone("eight"))
            elif event.number % 2 == 0:
                ctx.fail(index, ValueError("even"))


async def publish_batch(orders: Bench, *numbers: int) -> None:
    """Publish the events of one batch."""
    await asyncio.gather(*(orders.publisher.publish(Placed(number=number)) for number in numbers))


async def test_a_batch_counts_as_one_run(orders: Bench) -> None:
    """However many fail in it; one in which some are handled is no failed run, but what is named still is."""
    cell = await orders.cell(app_of(FailsBatches, max_consecutive_failures=2, restart_on=[PoolGone]))
    await publish_batch(orders, 1, 1, 1, 1)
    await until(lambda: cell.status.counters["failed"] == 4)
    await publish_batch(orders, 1, 2, 2, 2)
    await until(lambda: cell.status.counters["failed"] == 7)
    await publish_batch(orders, 1, 1, 1, 1)
    await until(lambda: cell.status.counters["failed"] == 11)
    assert cell.status.state == "up"
    await publish_batch(orders, 1, 1, 1, 8)
    assert await failure_of(cell) == "PoolGone: eight"
