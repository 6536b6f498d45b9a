"""A sole owner on several nodes: one is active, the others stand by, and a handover keeps the order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.cells import bench, until
from support.nats import NatsServer
from support.owners import DURABLE, PIN_SECONDS, SHORT, STREAM, Owners, Run
from support.proxy import proxy
from understudy.actors.outcomes import Retry
from understudy.actors.policies import CircuitBreaker, Mailbox
from understudy.runtime.cell.ownership import SoleOwner
from understudy.runtime.jetstream import api, subscription

MakeOwners = Callable[..., Owners]
Fetch = Callable[[int], Awaitable[None]]

pytestmark = pytest.mark.usefixtures("long_requests")


@pytest.fixture
async def make(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[MakeOwners]:
    """A broker, and what makes nodes with options."""
    async with bench(nats_server.url, tmp_path) as made:
        yield lambda **options: Owners(made, **options)


@pytest.fixture
def owners(make: MakeOwners) -> Owners:
    """A broker for nodes with a key and no other option."""
    return make()


class Gate:
    """A handler that waits until it is let through, on some nodes."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = nodes
        self.opened = asyncio.Event()

    async def __call__(self, run: Run) -> None:
        """Wait, on a node that has to."""
        if run.node in self.nodes:
            await self.opened.wait()


class Load:
    """Publishes until it is enough, so that there is always more than was handled, however fast that is."""

    AHEAD = 1000

    def __init__(self, owners: Owners, customers: int) -> None:
        self._owners = owners
        self._customers = customers
        self._enough = asyncio.Event()
        self._published = 0
        self._task = asyncio.create_task(self._publish())

    async def stop(self) -> int:
        """Publish no more, and return how many it were."""
        self._enough.set()
        await self._task
        return self._published

    async def _publish(self) -> None:
        while not self._enough.is_set():
            numbers = range(self._published, self._published + self.AHEAD)
            await self._owners.note(numbers, self._customers)
            self._published = numbers.stop
            await until(self._is_due)

    def _is_due(self) -> bool:
        return self._enough.is_set() or len(self._owners.counts) > self._published - self.AHEAD


async def pair(owners: Owners) -> None:
    """Start node a, which becomes the owner, and b, its standby."""
    await owners.start("a")
    await owners.note(range(1), prefix="first")
    await owners.all_handled(1)
    owners.forget()
    await owners.start("b")
    await owners.stood_by("b")


async def pair_that_holds(
    owners: Owners, count: int, publish: int, customers: int, shutdown_timeout_seconds: float = 10
) -> None:
    """Start node a with so many events, and b as its standby when a holds so many of them."""
    await owners.start("a", shutdown_timeout_seconds=shutdown_timeout_seconds)
    await owners.note(range(publish), customers)
    await until(lambda: owners.nodes["a"].status.held >= count)
    await owners.start("b")
    await owners.stood_by("b")


# Handover


async def test_one_node_is_active_and_the_other_stands_by(owners: Owners) -> None:
    """The first to be served is pinned; the other handles nothing and says so."""
    await pair(owners)
    await owners.note(range(500), 3)
    await owners.all_handled(500)
    assert owners.state("a") == "up"
    assert owners.nodes["b"].status.reason == "another cell is active"
    assert owners.by("b") == []
    assert owners.repeats() == 0


async def test_a_drained_owner_hands_over_at_once_and_in_order(owners: Owners) -> None:
    """Under load the standby goes on where the owner has stopped: nothing is lost, nothing comes twice."""
    await pair(owners)
    load = Load(owners, 10)
    await until(lambda: len(owners.runs) > 500)
    await owners.nodes["a"].stop()
    # Long before the pin would time out.
    await until(lambda: len(owners.by("b")) > 500, 10.0)
    await owners.all_handled(await load.stop())
    assert owners.repeats() == 0
    assert owners.in_order()


async def test_what_a_drained_owner_holds_is_handed_over_in_order(owners: Owners) -> None:
    """What a slow handler hasn't begun goes to the standby, which handles it in stream order, once."""

    async def slow(run: Run) -> None:
        await asyncio.sleep(0.2 if run.node == "a" else 0)

    owners.handler = slow
    # For all of them a would take half a minute.
    await pair_that_holds(owners, 100, 800, 5)
    await owners.nodes["a"].stop()
    await owners.all_handled(800)
    assert len(owners.by("b")) > 150
    assert owners.repeats() == 0
    assert owners.overlaps == 0
    assert owners.in_order()
    await owners.settled()


async def test_unpinned_again_and_again_nothing_is_lost_and_the_order_kept(make: MakeOwners) -> None:
    """What the unpinned node was handling, or had not heard of yet, may run twice; nothing else does."""
    owners = make(mailbox=Mailbox(capacity=64))

    async def slow(_: Run) -> None:
        await asyncio.sleep(0.002)

    owners.handler = slow
    await owners.start("a")
    await owners.start("b")
    load = Load(owners, 50)
    for _ in range(17):
        enough = len(owners.counts) + 300
        await until(lambda: len(owners.counts) > enough)  # noqa: B023
        await owners.unpin()
    await owners.all_handled(await load.stop())
    assert len(owners.by("a")) > 500
    assert len(owners.by("b")) > 500
    assert owners.in_order()
    assert owners.repeats() <= 17 * 64


# The pin is kept


async def test_the_pin_is_kept_while_a_full_mailbox_asks_for_nothing_and_through_a_long_drain(
    make: MakeOwners,
) -> None:
    """A handler that takes longer than the pin lives is never overtaken by a standby."""
    gate = Gate("a")
    owners = make(mailbox=Mailbox(capacity=8), **SHORT)
    owners.handler = gate
    await pair_that_holds(owners, 8, 40, 4, shutdown_timeout_seconds=30)
    pin = await owners.pin()
    await asyncio.sleep(PIN_SECONDS + 0.5)
    assert await owners.pin() == pin
    stopping = asyncio.create_task(owners.nodes["a"].stop())
    await until(lambda: owners.state("a") == "draining")
    await asyncio.sleep(PIN_SECONDS + 0.5)
    assert await owners.pin() == pin
    assert owners.by("b") == []
    gate.opened.set()
    await stopping
    await owners.all_handled(40)
    assert owners.repeats() == 0
    assert owners.in_order()


async def test_the_pin_is_kept_while_a_breaker_is_open(make: MakeOwners) -> None:
    """A pause that is longer than the pin lives hands nothing over."""
    breaker = CircuitBreaker("ledger", fail_max=1, reset_timeout_seconds=PIN_SECONDS + 1)
    owners = make(breakers=[breaker], **SHORT)
    refused = asyncio.Event()

    async def call(run: Run) -> None:
        async with run.breaker("ledger"):
            if not refused.is_set():
                refused.set()
                raise ConnectionError

    owners.handler = call
    await owners.start("a")
    await owners.note(range(10))
    await until(lambda: owners.state("a") == "paused")
    await owners.start("b")
    await owners.stood_by("b")
    await owners.all_handled(10)
    assert owners.by("b") == []
    assert owners.in_order()


async def test_an_owner_that_asks_for_nothing_hears_that_it_was_unpinned(make: MakeOwners) -> None:
    """It drops what it hasn't begun, so that only what it was handling runs twice."""
    gate = Gate("a")
    owners = make(mailbox=Mailbox(capacity=8), concurrency=2)
    owners.handler = gate
    await pair_that_holds(owners, 8, 40, 4)
    await owners.unpin()
    await owners.all_handled(40)
    await owners.stood_by("a")
    await until(lambda: owners.nodes["a"].status.held == 2)
    gate.opened.set()
    await until(lambda: owners.nodes["a"].status.held == 0)
    assert len(owners.by("a")) == 2
    assert owners.repeats() == 2
    assert owners.in_order()


async def test_what_fails_after_an_owner_was_unpinned_is_left_to_the_next(owners: Owners) -> None:
    """Retries in place belong to the owner."""
    gate = Gate("a")

    async def fail(run: Run) -> None:
        await gate(run)
        if run.node == "a":
            raise Retry(delay_seconds=1.0)

    owners.handler = fail
    await pair_that_holds(owners, 10, 10, 10)
    await owners.unpin()
    await owners.note(range(10, 11), 10)
    await owners.all_handled(11)
    await owners.stood_by("a")
    gate.opened.set()
    await until(lambda: owners.nodes["a"].status.held == 0)
    assert len(owners.by("a")) == 10
    assert owners.in_order("b")


# The broker


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standbys that leave a restarted broker's consumer to its owner for longer than that may be delayed."""
    monkeypatch.setattr(subscription, "GRACE_SECONDS", 20.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("more", [0, 100], ids=["with nothing new", "with more"])
async def test_a_restarted_broker_has_forgotten_the_pin_and_the_owner_goes_on(
    owners: Owners, nats_server: NatsServer, how: str, more: int
) -> None:
    """It gives back what it hadn't begun, is pinned by that, and the standby stays one."""
    gate = Gate("a")
    owners.handler = gate
    await pair_that_holds(owners, 100, 100, 10)
    pin = await owners.pin()
    (nats_server.stop if how == "stop" else nats_server.kill)()
    await owners.connected("a", "b", yes=False)
    nats_server.start()
    await owners.connected("a", "b")
    await owners.note(range(100, 100 + more), 10)

    async def pinned_anew() -> bool:
        return await owners.pin() not in ("", pin)

    await until(pinned_anew)
    gate.opened.set()
    await owners.all_handled(100 + more)
    assert owners.by("b") == []
    assert owners.repeats() == 0
    assert owners.overlaps == 0
    assert owners.in_order()


@pytest.mark.usefixtures("patient")
async def test_a_restarted_broker_s_consumer_is_left_to_whoever_owned_it_last(
    owners: Owners, nats_server: NatsServer
) -> None:
    """A former owner is a standby like any other."""
    await pair(owners)
    await owners.unpin()
    await owners.note(range(50), 10)
    await owners.all_handled(50)
    await owners.stood_by("a")
    await owners.settled()
    owners.forget()
    nats_server.stop()
    await owners.connected("a", "b", yes=False)
    nats_server.start()
    await owners.connected("a", "b")
    await owners.note(range(50), 10)
    await owners.all_handled(50)
    assert owners.by("a") == []


async def test_a_standby_takes_over_from_an_owner_that_does_not_come_back_with_the_broker(
    owners: Owners, nats_server: NatsServer
) -> None:
    """It leaves the consumer to the owner for a moment, and no longer."""
    async with proxy(owners.bench.url) as between:
        await owners.start("a", between.url)
        await owners.note(range(10), 10)
        await owners.all_handled(10)
        await owners.start("b")
        await owners.stood_by("b")
        await between.stop()
        nats_server.stop()
        await owners.connected("a", "b", yes=False)
        nats_server.start()
        await owners.connected("b")
        await owners.note(range(10, 20), 10)
        await owners.all_handled(20)
        assert set(owners.by("b")) == set(range(10, 20))


async def test_an_owner_whose_connection_breaks_goes_on_with_what_it_holds(make: MakeOwners) -> None:
    """It keeps pin and mailbox, and what was on its way comes again before anything newer."""
    owners = make(mailbox=Mailbox(capacity=64))

    async def slow(_: Run) -> None:
        await asyncio.sleep(0.001)

    owners.handler = slow
    async with proxy(owners.bench.url) as between:
        await owners.start("a", between.url)
        load = Load(owners, 40)
        await until(lambda: len(owners.runs) > 500)
        await owners.start("b")
        await owners.stood_by("b")
        pin = await owners.pin()
        for _ in range(2):
            handled = len(owners.counts)
            between.cut()
            await until(lambda: len(owners.counts) > handled + 1000)  # noqa: B023
        await owners.all_handled(await load.stop())
        assert await owners.pin() == pin
        assert owners.by("b") == []
        assert owners.repeats() == 0
        assert owners.in_order()
        await owners.nodes["a"].stop()


async def test_what_the_broker_sends_to_a_connection_that_is_gone_comes_again_in_order(
    make: MakeOwners,
) -> None:
    """While it takes the old one for alive, the old requests are served, too."""
    owners = make(ack_wait_seconds=60)
    async with proxy(owners.bench.url) as between:
        await owners.start("a", between.url)
        await owners.note(range(10))
        await owners.all_handled(10)
        await owners.start("b")
        await owners.stood_by("b")
        between.cut(half=True)
        await until(lambda: between.connections >= 2 and owners.nodes["a"].status.connected)
        for number in range(10, 200):
            await owners.note(range(number, number + 1))
        # Before `ack_wait` brings what was lost.
        await owners.all_handled(200, 30)
        assert owners.by("a") == list(range(200))
        await owners.nodes["a"].stop()


async def test_a_consumer_that_is_paused_is_recovered_when_it_goes_on(owners: Owners) -> None:
    """What was on its way to a lost connection isn't given up because it doesn't come now."""
    pause = f"CONSUMER.PAUSE.{STREAM}.{DURABLE}"
    async with proxy(owners.bench.url) as between:
        await owners.start("a", between.url)
        await owners.note(range(1))
        await owners.all_handled(1)
        await owners.start("b")
        await owners.stood_by("b")
        between.refusing = True
        between.cut(half=True)
        await owners.note(range(1, 10))

        async def all_were_sent() -> bool:
            return bool((await owners.info())["num_ack_pending"] == 9)

        await until(all_were_sent)
        await api.request(owners.bench.client, pause, {"pause_until": "2100-01-01T00:00:00Z"})
        between.refusing = False
        await owners.note(range(10, 20))
        with capture_logs() as logs:
            await until(lambda: "the consumer is paused" in [entry.get("error") for entry in logs])
        await api.request(owners.bench.client, pause, {})
        await owners.all_handled(20)
        assert owners.by("a") == list(range(20))
        await owners.nodes["a"].stop()


async def test_acks_that_were_lost_with_a_connection_are_written_again(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handled neither comes again because the broker hasn't heard of it, nor is waited for."""
    asked: list[int] = []
    recover = SoleOwner.recover

    async def listen(owner: SoleOwner, in_hand: Collection[int], fetch: Fetch) -> int:
        async def fetch_and_note(missing: int) -> None:
            asked.append(missing)
            await fetch(missing)

        return await recover(owner, in_hand, fetch_and_note)

    monkeypatch.setattr(SoleOwner, "recover", listen)
    async with proxy(owners.bench.url) as between:
        await owners.start("a", between.url)
        await owners.note(range(1))
        await owners.all_handled(1)
        await owners.settled()
        between.rewrite = (b"PUB $JS.ACK.", b"PUB $XX.ACK.")
        await owners.note(range(1, 50))
        await owners.all_handled(50)
        await until(lambda: owners.nodes["a"].status.held == 0)
        assert (await owners.info())["num_ack_pending"] == 49
        between.rewrite = None
        between.cut()
        await owners.settled()
        await owners.note(range(50, 60))
        await owners.all_handled(60)
        assert owners.repeats() == 0
        assert asked == []
        await owners.nodes["a"].stop()
