"""The pull subscription: demand, expiry, pauses, and what happens to it when broker or connection go."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from typing import Any

import pytest
from structlog.testing import capture_logs

from support.cells import Bench, CellRun, in_both_lanes, reconnected, until
from support.nats import NatsServer
from support.proxy import proxy
from support.pulling import Room, pulling
from understudy.actors.actor import Actor
from understudy.actors.errors import BrokerError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Mailbox
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.jetstream import pull_request, subscription
from understudy.runtime.jetstream.connection import confirm
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stream import Stream

GONE = (
    "consumer shop-billing is gone from the server; 'understudy run' makes it again, "
    "and a new one starts where the actor's 'start' says"
)
MADE_ANEW = (
    "consumer shop-billing was deleted and made again; "
    "what this cell holds is not the new one's, and the restarted cell begins with that"
)

pytestmark = in_both_lanes


class Placed(Event, subject="orders.placed"):
    number: int
    customer: str = "c"


class Handled:
    """What an actor has handled."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.by_customer: dict[str, list[int]] = defaultdict(list)
        self.release = asyncio.Event()
        self.release.set()

    def app(self, **options: Any) -> App:
        """Return an app whose actor notes what it handles here."""
        handled = self

        class Billing(Actor):
            @handles
            async def placed(self, event: Placed) -> None:
                await handled.release.wait()
                handled.numbers.append(event.number)
                handled.by_customer[event.customer].append(event.number)

        return App(
            "shop",
            streams=[Stream("ORDERS", subjects=["orders.>"])],
            children=[Child(Billing, **options)],
        )

    def first_runs(self, customer: str) -> list[int]:
        """Return a customer's numbers in the order of their first handling."""
        return list(dict.fromkeys(self.by_customer[customer]))


async def place(orders: Bench, numbers: range, customers: int = 1) -> None:
    """Publish numbered orders, in order for each customer."""
    await asyncio.gather(
        *(
            orders.publisher.publish(Placed(number=number, customer=f"c{number % customers}"))
            for number in numbers
        )
    )


async def failure(cell: CellRun) -> BaseException | None:
    """Wait until a cell has failed and return why."""
    assert cell.task is not None
    await asyncio.wait({cell.task}, timeout=60)
    return cell.task.exception()


@pytest.fixture
async def app(orders: Bench) -> App:
    """The app, its stream and consumer made."""
    app = Handled().app()
    await ensure_topology(orders.client, app.spec(), apply=True)
    return app


async def test_never_more_is_asked_for_than_there_is_room(orders: Bench, app: App) -> None:
    """And everything comes, in order, as room is made."""
    pull = await pulling(orders, Room(8))
    await place(orders, range(100))
    pull.start()
    seen: list[int] = []
    while len(seen) < 100:
        await until(lambda: bool(pull.room.held))
        seen += await pull.settle(3)
        await confirm(pull.client)
        assert (await orders.backlog(app)).ack_pending <= 8 + 3
    assert seen == list(range(1, 101))
    assert pull.room.most <= 8
    await pull.subscription.stop()


async def test_bytes_bound_what_is_held_too(orders: Bench, app: App) -> None:
    """And one that is larger than the bound comes alone."""
    pull = await pulling(orders, Room(64, max_bytes=10_000))
    sizes = [3000, 3000, 3000, 3000, 30_000, 3000, 10, 10]
    for size in sizes:
        await orders.publisher.publish_raw("orders.placed", b"x" * size)
    pull.start()
    seen: list[int] = []
    while len(seen) < len(sizes):
        await until(lambda: bool(pull.room.held))
        held = [len(body) for _, body in pull.room.held]
        assert sum(held) <= 10_000 or held == [30_000]
        seen += held[:1]
        await pull.settle(1)
    assert seen == sizes
    await pull.subscription.stop()


async def test_paused_it_asks_for_nothing_and_resumed_it_goes_on(
    orders: Bench, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for before may still arrive, and nothing more."""
    # It goes on because it is resumed, not because it looks again.
    monkeypatch.setattr(pull_request, "LOST_AFTER_SECONDS", 600.0)
    pull = await pulling(orders, Room(4))
    pull.start()
    await place(orders, range(4))
    await until(lambda: len(pull.room.held) == 4)
    pull.subscription.pause()
    await pull.settle(4)
    await place(orders, range(4, 8))
    # Longer than a request lives.
    await asyncio.sleep(1.5 * subscription.EXPIRES_SECONDS)
    assert pull.room.held == []
    pull.subscription.resume()
    await until(lambda: len(pull.room.held) == 4)
    await pull.subscription.stop()


async def test_after_idling_it_is_at_full_speed_at_once(
    orders: Bench, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests expire and their credit comes back: demand is neither lost nor doubled."""
    # What is lost stays lost: no later look finds it.
    monkeypatch.setattr(pull_request, "LOST_AFTER_SECONDS", 600.0)
    pull = await pulling(orders, Room(512))
    with capture_logs() as logs:
        pull.start()
        await asyncio.sleep(4 * subscription.EXPIRES_SECONDS)
        # So long that it can be told what has to wait for the next one, and that the room is filled by one.
        idle_seconds = 2 * subscription.IDLE_EXPIRES_SECONDS
        monkeypatch.setattr(subscription, "EXPIRES_SECONDS", 60.0)
        monkeypatch.setattr(subscription, "IDLE_EXPIRES_SECONDS", 60.0)
        await asyncio.sleep(idle_seconds)
        started = time.monotonic()
        await orders.publisher.publish(Placed(number=0))
        await until(lambda: len(pull.room.held) == 1)
        # A request was waiting for it; the next would come when that has expired.
        assert time.monotonic() - started < 30
        await place(orders, range(1, 2000))
        await until(lambda: len(pull.room.held) == 512)
        await confirm(pull.client)
        assert pull.room.most == 512
        assert (await orders.backlog(app)).ack_pending == 512
        started = time.monotonic()
        seen = 0
        while seen < 2000:
            await until(lambda: bool(pull.room.held))
            seen += len(await pull.settle(512))
        assert time.monotonic() - started < 30
    assert logs == []
    assert pull.room.most == 512


async def test_stopping_waits_for_what_is_on_its_way(orders: Bench, app: App) -> None:
    """Nothing is left with the server as delivered that isn't in the mailbox."""
    pull = await pulling(orders, Room(256))
    # Of the ways to strand one, each round meets few.
    for _ in range(15):
        pull = await pulling(orders, pull.room)
        publishing = asyncio.create_task(place(orders, range(500)))
        pull.start()
        await until(lambda room=pull.room: bool(room.held))  # type: ignore[misc]
        await pull.subscription.stop()
        held = len(pull.room.held)
        await publishing
        assert (await orders.backlog(app)).ack_pending == held
        await pull.settle(held)
        await confirm(pull.client)
    assert pull.failures == []


async def test_a_consumer_deleted_while_pulling_fails_the_cell(orders: Bench) -> None:
    """Its error says what happens next; the supervisor decides."""
    handled = Handled()
    cell = await orders.cell(handled.app())
    await place(orders, range(10))
    await until(lambda: len(handled.numbers) == 10)
    await orders.client.jetstream().delete_consumer("ORDERS", "shop-billing")
    error = await failure(cell)
    assert isinstance(error, BrokerError)
    assert str(error) == GONE
    assert (cell.status.state, cell.status.reason) == ("failed", f"BrokerError: {GONE}")


async def test_a_consumer_deleted_while_nothing_is_asked_for_fails_the_cell(orders: Bench) -> None:
    """The next request finds nobody."""
    handled = Handled()
    handled.release.clear()
    app = handled.app(mailbox=Mailbox(capacity=4))
    cell = await orders.cell(app)
    await place(orders, range(10))
    await until(lambda: cell.status.held == 4)
    await orders.client.jetstream().delete_consumer("ORDERS", "shop-billing")
    await asyncio.sleep(0.1)
    assert cell.status.state == "up"
    handled.release.set()
    assert str(await failure(cell)) == GONE


async def test_a_deleted_stream_fails_the_cell(orders: Bench) -> None:
    """As its consumers go with it."""
    cell = await orders.cell(Handled().app())
    await orders.client.jetstream().delete_stream("ORDERS")
    assert str(await failure(cell)) == GONE


@pytest.mark.parametrize("key", [None, "customer"])
@pytest.mark.parametrize("away", [False, True], ids=["connected", "disconnected"])
async def test_a_stream_made_anew_is_not_settled_by_the_old_one_s_sequences(
    orders: Bench, key: str | None, away: bool
) -> None:
    """Its first messages have the sequences of what is held: the cell fails, and the next handles them."""
    handled = Handled()
    handled.release.clear()
    app = handled.app(key=key, mailbox=Mailbox(capacity=4))
    await ensure_topology(orders.client, app.spec(), apply=True)
    async with proxy(orders.url) as between:
        cell = orders.cell_run(app, between.url)
        await cell.start()
        await place(orders, range(4))
        await until(lambda: cell.status.held == 4)
        if away:
            between.refusing = True
            between.cut()
            await until(lambda: not cell.status.connected)
        await orders.client.jetstream().delete_stream("ORDERS")
        await ensure_topology(orders.client, app.spec(), apply=True)
        await place(orders, range(100, 104))
        if away:
            between.refusing = False
        else:
            await asyncio.sleep(2 * subscription.UNHEARD_SECONDS)
            handled.release.set()
        assert str(await failure(cell)) == MADE_ANEW
        await cell.vanish()
        handled.release.set()
        await cell.start(reason="failed")
        await orders.settled(app)
        assert sorted(number for number in handled.numbers if number >= 100) == [100, 101, 102, 103]
        assert cell.status.counters["taken_over"] == 0
        await cell.stop()


async def test_a_consumer_without_a_leader_for_a_moment_is_not_gone(orders: Bench) -> None:
    """Nobody answers a request then, and the cell waits instead of failing."""
    handled = Handled()
    app = handled.app()
    await ensure_topology(orders.client, app.spec(), apply=True)
    async with proxy(orders.url) as between:
        cell = orders.cell_run(app, between.url)
        with capture_logs() as logs:
            # Requests for a consumer that nobody serves are what the server sees.
            between.rewrite = (b"MSG.NEXT.ORDERS.shop-billing", b"MSG.NEXT.ORDERS.shop-elected")
            await cell.start()
            await place(orders, range(10))
            await until(lambda: sum(entry.get("status") == "503" for entry in logs) >= 2)
            assert cell.status.state == "up"
            between.rewrite = None
            await until(lambda: len(handled.numbers) == 10)
        assert [entry["log_level"] for entry in logs if entry.get("status") == "503"][:2] == [
            "warning",
            "debug",
        ]
        await orders.settled(app)
        await cell.stop()


@pytest.mark.parametrize("key", [None, "customer"])
@pytest.mark.parametrize("graceful", [False, True], ids=["killed", "stopped"])
async def test_a_broker_that_ends_under_load_strands_nothing(
    orders: Bench, nats_server: NatsServer, key: str | None, graceful: bool
) -> None:
    """A new inbox after the reconnect; each event is handled, and at the end nothing is pending."""
    handled = Handled()
    app = handled.app(key=key, ack_wait_seconds=2, hang_timeout_seconds=1, mailbox=Mailbox(capacity=256))
    cell = await orders.cell(app)
    await place(orders, range(4000), 20)
    for threshold in (500, 1500):
        await until(lambda: len(set(handled.numbers)) > threshold)  # noqa: B023
        await asyncio.to_thread(nats_server.stop if graceful else nats_server.kill)
        await until(lambda: not cell.status.connected)
        nats_server.start()
        await until(lambda: cell.status.connected)
    await until(lambda: len(set(handled.numbers)) == 4000)
    await orders.settled(app)
    state = await orders.backlog(app)
    assert (state.pending, state.ack_pending) == (0, 0)
    repeats = len(handled.numbers) - 4000
    # What had been handled and whose ack died with the broker, or was not on its disk yet.
    assert repeats == cell.status.counters["handled"] - 4000
    assert cell.status.held == 0
    if key is not None:
        for customer in list(handled.by_customer):
            assert handled.first_runs(customer) == sorted(handled.first_runs(customer))


@pytest.mark.parametrize("key", [None, "customer"])
async def test_cut_connections_under_load_lose_nothing(orders: Bench, key: str | None) -> None:
    """Each event is handled at least once and in its key's order; only what was on its way comes again."""
    handled = Handled()
    count, cuts = 6000, 5
    app = handled.app(key=key, ack_wait_seconds=2, hang_timeout_seconds=1, mailbox=Mailbox(capacity=256))
    await ensure_topology(orders.client, app.spec(), apply=True)
    async with proxy(orders.url) as between:
        cell = orders.cell_run(app, between.url)
        await cell.start()
        publishing = asyncio.create_task(place(orders, range(count), 20))
        for cut in range(1, cuts + 1):
            await until(lambda: len(set(handled.numbers)) > cut * count // 10)  # noqa: B023
            between.cut()
            await until(lambda: between.connections == cut + 1)  # noqa: B023
            await until(lambda: cell.status.connected)
        await publishing
        await until(lambda: len(set(handled.numbers)) == count)
        await orders.settled(app)
        state = await orders.backlog(app)
        assert (state.pending, state.ack_pending) == (0, 0)
        repeats = Counter(handled.numbers)
        assert sum(repeats.values()) - count <= cuts * 256
        if key is not None:
            for customer in list(handled.by_customer):
                assert handled.first_runs(customer) == sorted(handled.first_runs(customer))
        await cell.stop()


@pytest.mark.parametrize("finished", [True, False])
async def test_a_drain_without_a_broker_leaves_its_file_to_the_next_start(
    orders: Bench, nats_server: NatsServer, finished: bool
) -> None:
    """It ends all the same; what is held is taken over, what is done is acked again, nothing runs twice."""
    handled = Handled()
    handled.release.clear()
    app = handled.app(mailbox=Mailbox(capacity=8), concurrency=1 if finished else 2)
    cell = await orders.cell(app)
    await place(orders, range(50))
    await until(lambda: cell.status.held == 8)
    nats_server.stop()
    await until(lambda: not cell.status.connected)
    assert cell.cell is not None
    assert cell.task is not None
    if finished:
        handled.release.set()
        await until(lambda: cell.status.held == 0)
    cell.cell.stop()
    if not finished:
        await until(lambda: cell.status.state == "draining")
        # Until the drain's patience with what waits has ended, so that it stays.
        await asyncio.sleep(1.2)
        handled.release.set()
    await asyncio.wait_for(cell.task, 60)
    assert len(handled.numbers) == (8 if finished else 2)
    assert cell.path.exists()
    nats_server.start()
    await reconnected(orders.client)
    await cell.start()
    await orders.settled(app)
    assert sorted(handled.numbers) == list(range(50))
    assert cell.status.counters["redelivered"] == 0
    assert cell.status.counters["taken_over"] == (0 if finished else 6)
    assert len(list(orders.directory.glob("*.cell"))) == 1
