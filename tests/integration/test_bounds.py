"""What a cell holds back: blocked keys, work for too long, unconfirmed acks; and when its watchdog barks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.cells import Bench, app_of, bench, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Retry
from understudy.actors.policies import Mailbox, RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.cell import heartbeat as heartbeat_module
from understudy.runtime.cell import watchdog
from understudy.runtime.cell.watchdog import PATIENCE, Watchdog
from understudy.runtime.jetstream.api import consumer_info
from understudy.runtime.jetstream.pull_request import Demand
from understudy.runtime.jetstream.topology import ensure_topology


class Placed(Event, subject="orders.placed"):
    number: int
    customer: str = "c"


@pytest.fixture
async def orders(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker for the orders app."""
    async with bench(nats_server.url, tmp_path) as made:
        yield made


async def info_of(orders: Bench, app: App) -> dict[str, Any]:
    """Return what the server says of the consumer of an app's actor."""
    consumer = app.spec().consumers[0]
    info = await consumer_info(orders.client, consumer.stream, consumer.durable)
    assert info is not None
    return info


async def place(orders: Bench, numbers: range, customer: str = "c") -> None:
    """Publish some orders, in their order."""
    for number in numbers:
        await orders.publisher.publish(Placed(number=number, customer=customer))


async def test_blocked_keys_hold_half_of_the_mailbox_and_no_more(orders: Bench) -> None:
    """Then the actor pauses and says so; what else it holds is handled, and it goes on when the key opens."""
    down = True
    seen: list[tuple[str, int]] = []

    class Billing(
        Actor,
        key="customer",
        mailbox=Mailbox(capacity=32),
        retry=RetryPolicy(max_attempts=1000),
    ):
        @handles
        async def placed(self, event: Placed) -> None:
            if down and event.customer == "bad":
                raise Retry(delay_seconds=0.02)
            seen.append((event.customer, event.number))

    app = app_of(Billing)
    cell = await orders.cell(app)
    await place(orders, range(12), "bad")
    await place(orders, range(100), "good")
    # Twelve are less than half: the others go by.
    await until(lambda: len(seen) == 100)
    assert cell.status.state == "up"
    await place(orders, range(12, 60), "bad")
    await until(lambda: cell.status.state == "paused")
    assert cell.status.reason.endswith(" deliveries wait behind failed ones that are tried again in place")

    async def asks_for_nothing() -> bool:
        return bool((await info_of(orders, app))["num_waiting"] == 0)

    await until(asks_for_nothing)
    await place(orders, range(100, 120), "good")
    assert (await orders.backlog(app)).pending >= 20
    down = False
    await orders.settled(app)
    assert [number for customer, number in seen if customer == "bad"] == list(range(60))
    assert [number for customer, number in seen if customer == "good"] == list(range(120))
    await until(lambda: cell.status.state == "up")


async def test_an_ordered_actor_that_retries_stays_up(orders: Bench) -> None:
    """Its whole mailbox waits for its head, and nothing else could be done with it."""
    tries = 0
    down = True
    seen: list[int] = []

    class Ledger(Actor, ordered=True, mailbox=Mailbox(capacity=8), retry=RetryPolicy(max_attempts=1000)):
        @handles
        async def placed(self, event: Placed) -> None:
            nonlocal tries
            if down:
                tries += 1
                raise Retry(delay_seconds=0.05)
            seen.append(event.number)

    cell = await orders.cell(app_of(Ledger))
    await place(orders, range(50))
    await until(lambda: tries >= 3)
    assert cell.status.state == "up"
    down = False
    await until(lambda: len(seen) == 50)
    assert seen == list(range(50))


async def test_a_slow_handler_fetches_half_an_ack_wait_of_work(orders: Bench) -> None:
    """What it would only come to later stays in the stream."""

    # Without that bound it would begin with twice as many, and take as much longer to have few.
    class Slow(Actor, ack_wait_seconds=3.0, hang_timeout_seconds=1.0, mailbox=Mailbox(capacity=64)):
        @handles
        async def placed(self, event: Placed) -> None:
            await asyncio.sleep(0.1)

    app = app_of(Slow)
    await ensure_topology(orders.client, app.spec(), apply=True)
    await place(orders, range(400))
    cell = await orders.cell(app)

    async def handle(count: int) -> None:
        enough = cell.status.counters["handled"] + count
        await until(lambda: cell.status.counters["handled"] >= enough)

    # Ten in a second, and half of three seconds: fifteen, though there are many more.
    async def goes_on_so() -> bool:
        for _ in range(5):
            await handle(1)
            backlog = await orders.backlog(app)
            if not (5 <= backlog.ack_pending <= 25 and backlog.pending > 64):
                return False
        return True

    # What it was given before it was known to be slow.
    await handle(64)
    # A machine that stands still makes a handler look slower than it is, and less is fetched for a while.
    await until(goes_on_so)


async def test_with_double_ack_a_delivery_is_held_until_the_server_has_its_ack(orders: Bench) -> None:
    """What isn't held any more is acked for certain."""

    class Billing(Actor, double_ack=True, concurrency=4):
        @handles
        async def placed(self, event: Placed) -> None: ...

    app = app_of(Billing)
    cell = await orders.cell(app)
    await place(orders, range(500))
    while (handled := cell.status.counters["handled"]) < 500:
        info = await info_of(orders, app)
        settled = 500 - info["num_pending"] - info["num_ack_pending"]
        assert settled >= handled
    await orders.settled(app)


async def test_the_room_of_a_confirmed_ack_is_asked_for_at_once(orders: Bench) -> None:
    """No ack is written then that would say so; a mailbox a look, every two seconds, would take a minute."""

    class Billing(Actor, double_ack=True, mailbox=Mailbox(capacity=16)):
        @handles
        async def placed(self, event: Placed) -> None: ...

    app = app_of(Billing)
    cell = await orders.cell(app)
    await place(orders, range(500))
    await orders.settled(app)
    await until(lambda: cell.status.counters["handled"] == 500)
    assert cell.status.held == 0


class Looks:
    """Counts how often watchdogs have looked."""

    def __init__(self) -> None:
        self.count = 0

    async def more(self) -> None:
        """Wait until one has looked twice as often again as it takes to be alarmed."""
        enough = self.count + 2 * PATIENCE
        await until(lambda: self.count >= enough)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Have watchdogs look often, and count that."""
    monkeypatch.setattr(watchdog, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(heartbeat_module, "IDLE_HEARTBEAT_SECONDS", 0.1)
    looks, look = Looks(), Watchdog.look

    async def look_and_count(watchdog: Watchdog) -> None:
        await look(watchdog)
        looks.count += 1

    monkeypatch.setattr(Watchdog, "look", look_and_count)
    return looks


@pytest.mark.usefixtures("impatient")
async def test_a_subscription_that_asks_for_nothing_is_rebuilt_then_its_cell_fails(
    orders: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor restarts it; if that doesn't help, it says that it has stalled."""
    seen: list[int] = []

    class Billing(Actor):
        @handles
        async def placed(self, event: Placed) -> None:
            seen.append(event.number)

    app = app_of(Billing)
    with monkeypatch.context() as broken:
        broken.setattr(Demand, "of_many", lambda _: None)
        cell = await orders.cell(app)
        await place(orders, range(10))
        assert cell.task is not None
        await asyncio.wait({cell.task}, timeout=60)
        assert type(cell.task.exception()).__name__ == "Stalled"
        assert cell.status.state == "failed"
        await cell.start(reason="Stalled: 10 messages wait", crashed=False)
        await until(lambda: cell.status.state == "stalled")
        assert cell.status.reason.startswith("10 messages wait in the stream")
        assert seen == []
    # Each further alarm makes a new subscription.
    await until(lambda: len(seen) == 10)
    await until(lambda: cell.status.state == "up")


async def test_standing_still_for_a_reason_is_no_alarm(orders: Bench, impatient: Looks) -> None:
    """A handler that waits, a delayed retry, a consumer that is paused, an empty stream."""
    release = asyncio.Event()
    tries = 0

    class Billing(Actor, mailbox=Mailbox(capacity=2)):
        @handles
        async def placed(self, event: Placed) -> None:
            nonlocal tries
            tries += 1
            if event.number == 99:
                raise Retry(delay_seconds=60)
            await release.wait()

    app = app_of(Billing)
    cell = await orders.cell(app)
    await impatient.more()
    await place(orders, range(10))
    await impatient.more()
    assert cell.status.state == "up"
    release.set()
    await orders.settled(app)
    await place(orders, range(99, 100))
    await until(lambda: tries == 11)
    await impatient.more()
    await orders.client.jetstream().pause_consumer("ORDERS", "shop-billing", "2099-01-01T00:00:00Z")
    await place(orders, range(100, 110))
    await impatient.more()
    assert cell.status.state == "up"
    assert cell.task is not None
    assert not cell.task.done()
