"""The pause before an event is tried again in place: it outlives the cell that has begun it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.cells import Bench, CellRun, bench, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Batch, RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.cell import failures
from understudy.runtime.cell.failures import ActorFailed
from understudy.runtime.stream import Stream

DELAY_SECONDS = 600.0


class Placed(Event, subject="orders.placed"):
    number: int
    customer: str


class PoolGone(Exception):
    pass


class Time:
    """What the cells take for the time, and for chance."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    def random(self) -> float:
        return 1.0


class Handled:
    """What ran and what was handled, over all generations of the cell."""

    def __init__(self) -> None:
        self.fails = True
        self.runs: list[int] = []
        self.numbers: list[int] = []

    def run(self, event: Placed) -> None:
        """Note a run, and fail over the first event while it is to."""
        self.runs.append(event.number)
        if self.fails and event.number == 1:
            raise PoolGone("the pool is closed")
        self.numbers.append(event.number)

    def app(self, kind: str, delay_seconds: float = DELAY_SECONDS) -> App:
        """Return an app whose actor takes single events or batches."""
        handled = self
        retry = RetryPolicy(min_delay_seconds=delay_seconds, max_delay_seconds=delay_seconds)

        class Billing(Actor, key="customer", restart_on=[PoolGone], retry=retry):
            @handles
            async def placed(self, event: Placed) -> None:
                handled.run(event)

        class Bills(Actor, key="customer", restart_on=[PoolGone], retry=retry):
            @handles(batch=Batch(size=4, timeout_seconds=0.05))
            async def placed(self, events: list[Placed]) -> None:
                for event in events:
                    handled.run(event)

        return App(
            "shop",
            streams=[Stream("ORDERS", subjects=["orders.>"])],
            children=[Billing if kind == "single" else Bills],
        )


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """A clock that goes by the test's word only, and the longest pause each time."""
    made = Time()
    monkeypatch.setattr(failures, "time", made)
    monkeypatch.setattr(failures, "random", made)
    return made


@pytest.fixture
async def orders(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker for the orders app."""
    async with bench(nats_server.url, tmp_path) as made:
        yield made


async def failed(orders: Bench, cell: CellRun, *numbers: int) -> None:
    """Publish orders of customer a, of which the first fails the actor."""
    for number in numbers:
        await orders.publisher.publish(Placed(number=number, customer="a"))
    assert cell.task is not None
    await asyncio.wait({cell.task}, timeout=60)
    assert isinstance(cell.task.exception(), ActorFailed)
    await cell.vanish()


async def other_customers_go_on(orders: Bench, handled: Handled, number: int) -> None:
    """Publish an order of customer b, and return when it is handled."""
    await orders.publisher.publish(Placed(number=number, customer="b"))
    await until(lambda: number in handled.numbers)


@pytest.mark.parametrize("kind", ["single", "batch"])
@pytest.mark.parametrize("end", ["drained", "killed"])
async def test_a_failed_event_waits_for_its_time_over_restarts(
    orders: Bench, time: Time, kind: str, end: str
) -> None:
    """Its key stays shut, and the others go on; taken over and delivered again alike."""
    handled = Handled()
    app = handled.app(kind)
    cell = await orders.cell(app)
    await failed(orders, cell, 1)
    await cell.start(reason="PoolGone: the pool is closed")
    assert cell.status.counters["taken_over"] == 1
    await orders.publisher.publish(Placed(number=2, customer="a"))
    await other_customers_go_on(orders, handled, 3)
    if end == "drained":
        await cell.stop()
    else:
        assert cell.task is not None
        cell.task.cancel()
        await cell.vanish()
    await cell.start(reason="killed by SIGKILL")
    await other_customers_go_on(orders, handled, 4)
    await until(lambda: cell.status.held == 2)
    assert handled.runs == [1, 3, 4]
    handled.fails = False
    await cell.stop()
    time.now += DELAY_SECONDS + 1
    await cell.start()
    await orders.settled(app)
    assert handled.numbers == [3, 4, 1, 2]


@pytest.mark.parametrize(("delay_seconds", "step_seconds"), [(0.2, -86_400.0), (DELAY_SECONDS, 86_400.0)])
async def test_no_clock_makes_the_pause_longer_than_it_was(
    orders: Bench, time: Time, delay_seconds: float, step_seconds: float
) -> None:
    """After one that was set back the event waits once for all of it, after one set forward not at all."""
    handled = Handled()
    app = handled.app("single", delay_seconds)
    cell = await orders.cell(app)
    await failed(orders, cell, 1)
    handled.fails = False
    time.now += step_seconds
    await cell.start(reason="PoolGone: the pool is closed")
    await orders.settled(app)
    assert handled.runs == [1, 1]


async def test_all_attempts_are_used_up_over_restarts(orders: Bench, time: Time) -> None:
    """Each replacement waits, tries once more and fails, until the event is a dead letter."""
    handled = Handled()
    app = handled.app("single")
    cell = await orders.cell(app)
    await failed(orders, cell, 1)
    for attempt in range(2, 6):
        await cell.start(reason="PoolGone: the pool is closed")
        await other_customers_go_on(orders, handled, attempt)
        assert handled.runs.count(1) == attempt - 1
        assert cell.task is not None
        cell.task.cancel()
        await cell.vanish()
        time.now += DELAY_SECONDS
        await cell.start(reason="killed by SIGKILL")
        await asyncio.wait({cell.task}, timeout=60)
        assert isinstance(cell.task.exception(), ActorFailed)
        await cell.vanish()
    assert handled.runs.count(1) == 5
    (letter,) = await orders.dead_letters(app)
    assert (letter.headers["Understudy-Reason"], letter.headers["Understudy-Attempts"]) == ("exhausted", "5")
