"""Circuit breakers in cells, against a real broker."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from support.cells import Bench, CellRun, app_of, bench, until
from support.nats import NatsServer
from support.proxy import Proxy
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import CircuitBreaker, Mailbox, RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.breakers.record import Record, decode
from understudy.runtime.cell.status import boottime
from understudy.runtime.jetstream.api import stream_info
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stores.breaker_store import BreakerStore

FAST = RetryPolicy(max_attempts=20, min_delay_seconds=0.01, max_delay_seconds=0.02)


class Paid(Event, subject="orders.paid"):
    number: int


class Noted(Event, subject="orders.noted"):
    number: int


@pytest.fixture
async def orders(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker for the orders app."""
    # Tracebacks take longer to show than the breakers' times are here, and all cells share one event loop.
    with capture_logs():
        async with bench(nats_server.url, tmp_path) as made:
            yield made


async def publish(orders: Bench, *events: Event) -> None:
    """Publish some events, in this order."""
    for event in events:
        await orders.publisher.publish(event)


class Desk:
    """What an actor has done, half of it with a service that a test switches on."""

    def __init__(self) -> None:
        self.is_down = True
        self.paid: list[int] = []
        self.noted: list[int] = []
        self.all: list[int] = []

    def actor(self, reset_timeout_seconds: float, **options: Any) -> type[Actor]:
        """Return the actor."""
        desk = self
        payments = CircuitBreaker("payments", fail_max=1, reset_timeout_seconds=reset_timeout_seconds)

        class Billing(Actor, retry=FAST, breakers=[payments], **options):
            @handles(breakers=["payments"])
            async def paid(self, event: Paid, ctx: Context) -> None:
                async with ctx.breaker("payments"):
                    if desk.is_down:
                        raise ConnectionError("down")
                desk.paid.append(event.number)
                desk.all.append(event.number)

            @handles
            async def noted(self, event: Noted) -> None:
                desk.noted.append(event.number)
                desk.all.append(event.number)

        return Billing


async def test_what_declares_no_breaker_goes_on_within_half_the_mailbox(orders: Bench) -> None:
    """Then the actor pauses and says so; when the service is back all of it is handled."""
    desk = Desk()
    app = app_of(desk.actor(0.3, mailbox=Mailbox(capacity=20), concurrency=2))
    cell = await orders.cell(app)
    await publish(orders, Paid(number=0))
    await until(lambda: cell.status.counters["breaker_openings"] > 0)
    for number in range(1, 10):
        await publish(orders, Paid(number=number), Noted(number=number))
    await until(lambda: len(desk.noted) == 9)
    assert cell.status.state == "up"
    await publish(orders, *(Paid(number=number) for number in range(10, 25)))
    await until(lambda: cell.status.state == "paused")
    assert cell.status.reason.endswith("deliveries wait for an open circuit breaker")
    await publish(orders, Noted(number=10))
    desk.is_down = False
    await orders.settled(app)
    await until(lambda: (len(desk.paid), len(desk.noted)) == (25, 10))
    assert (sorted(desk.paid), sorted(desk.noted)) == (list(range(25)), list(range(1, 11)))
    assert cell.status.state == "up"
    assert await orders.dead_letters(app) == []


async def test_a_cell_says_which_breakers_hold_it_up(orders: Bench) -> None:
    """What a handler declares and what the whole actor waits for, while something waits; and whose it is."""
    down = {"own", "bank"}

    class Billing(Actor, retry=FAST, breakers=[CircuitBreaker("own", fail_max=1, reset_timeout_seconds=0.2)]):
        @handles(breakers=["own"])
        async def paid(self, event: Paid, ctx: Context) -> None:
            async with ctx.breaker("own"):
                if "own" in down:
                    raise ConnectionError("down")

        @handles
        async def noted(self, event: Noted, ctx: Context) -> None:
            async with ctx.breaker("bank"):
                if "bank" in down:
                    raise ConnectionError("down")

    shared = [CircuitBreaker(name, fail_max=1, reset_timeout_seconds=0.2) for name in ("bank", "post")]
    cell = await orders.cell(app_of(Billing, breakers=shared))

    def shown() -> dict[str, tuple[bool, bool]]:
        return {one.name: (one.of_app, one.holds_up) for one in cell.status.breakers}

    await publish(orders, Paid(number=0))
    await until(lambda: shown() == {"own": (False, True), "bank": (True, False), "post": (True, False)})
    await publish(orders, Noted(number=0))
    await until(lambda: shown() == {"own": (False, True), "bank": (True, True), "post": (True, False)})
    down.clear()
    await until(lambda: shown() == {"own": (False, False), "bank": (True, False), "post": (True, False)})


async def test_an_ordered_actor_waits_as_a_whole(orders: Bench) -> None:
    """Nothing may pass what waits, so it asks for no more, and keeps its order."""
    desk = Desk()
    app = app_of(desk.actor(0.2, mailbox=Mailbox(capacity=8), ordered=True))
    cell = await orders.cell(app)
    await publish(orders, Paid(number=0))
    await until(lambda: cell.status.state == "paused")
    await publish(orders, *(Noted(number=number) for number in range(1, 30)))
    desk.is_down = False
    await orders.settled(app)
    await until(lambda: len(desk.all) == 30)
    assert desk.all == list(range(30))


async def test_a_poison_request_among_good_ones_doesn_t_keep_it_open(orders: Bench) -> None:
    """Another delivery is the next trial; the poison uses up its attempts while the breaker is closed."""
    seen: set[int] = set()

    class Billing(
        Actor,
        mailbox=Mailbox(capacity=16),
        concurrency=2,
        retry=RetryPolicy(max_attempts=3, min_delay_seconds=0.01, max_delay_seconds=0.02),
        breakers=[CircuitBreaker("payments", fail_max=1, reset_timeout_seconds=0.05)],
    ):
        @handles(breakers=["payments"])
        async def paid(self, event: Paid, ctx: Context) -> None:
            async with ctx.breaker("payments"):
                if event.number == 3:
                    raise ValueError("poison")
            seen.add(event.number)

    app = app_of(Billing)
    await orders.cell(app)
    numbers = itertools.count()
    await publish(orders, *(Paid(number=number) for number in itertools.islice(numbers, 50)))

    async def is_given_up() -> bool:
        # When it is the only one left to try, nobody can tell it from a service that is down.
        await publish(orders, Paid(number=next(numbers)))
        return bool(await orders.dead_letters(app))

    await until(is_given_up)
    await orders.settled(app)
    assert seen == set(range(next(numbers))) - {3}
    (letter,) = await orders.dead_letters(app)
    assert letter.headers["Understudy-Attempts"] == "3"


class Service:
    """A downstream that a test switches on and off."""

    def __init__(self) -> None:
        self.is_down = True
        self.calls: list[tuple[float, int]] = []
        self.answered: list[int] = []

    async def call(self, number: int) -> None:
        """Answer, or fail."""
        self.calls.append((time.monotonic(), number))
        await asyncio.sleep(0.005)
        if self.is_down:
            raise ConnectionError("down")
        self.answered.append(number)


def paying(service: Service, **settings: Any) -> App:
    """Return an app whose actor calls a service, behind a breaker that all its cells share."""

    class Billing(Actor, mailbox=Mailbox(capacity=8), concurrency=2, retry=FAST):
        @handles(breakers=["payments"])
        async def paid(self, event: Paid, ctx: Context) -> None:
            async with ctx.breaker("payments"):
                await service.call(event.number)

    breaker = CircuitBreaker("payments", **{"fail_max": 3, "reset_timeout_seconds": 0.4, **settings})
    return app_of(Billing, breakers=[breaker])


async def start_cells(orders: Bench, app: App, number: int) -> list[CellRun]:
    """Start so many cells of an app's actor, as on so many nodes."""
    await ensure_topology(orders.client, app.spec(), apply=True)
    cells = []
    for index in range(number):
        directory = orders.directory / str(index)
        directory.mkdir()
        cells.append(CellRun(app, orders.url, directory))
    orders.cells += cells
    await asyncio.gather(*(cell.start() for cell in cells))
    return cells


def state_of(cell: CellRun) -> str:
    """Return what a cell says of its breaker."""
    (breaker,) = cell.status.breakers
    return breaker.state


async def test_all_cells_open_try_and_close_as_one(orders: Bench) -> None:
    """While the service is down one call is made in each reset timeout, by any cell; nothing is lost."""
    service = Service()
    app = paying(service)
    cells = await start_cells(orders, app, 4)
    await publish(orders, *(Paid(number=number) for number in range(60)))
    await until(lambda: all(state_of(cell) == "open" for cell in cells))

    def trials() -> int:
        return sum(cell.status.counters["breaker_trials"] for cell in cells)

    await until(lambda: trials() > 4)
    # What counted, and what was under way in the cells' lanes.
    assert len(service.calls) - trials() <= 3 + 4 * 2
    # The last trial's call may not have been made yet.
    moments = [moment for moment, _ in service.calls[-4:]]
    assert min(later - earlier for earlier, later in itertools.pairwise(moments)) > 0.39
    service.is_down = False
    await orders.settled(app)
    assert sorted(service.answered) == list(range(60))
    await until(lambda: all(state_of(cell) == "closed" for cell in cells))
    assert sum(cell.status.counters["failed"] for cell in cells) <= 3 + 4 * 2
    assert sum(cell.status.counters["breaker_closings"] for cell in cells) == 1
    assert sum(cell.status.counters["breaker_openings"] for cell in cells) >= 4


async def test_an_app_without_breakers_makes_no_bucket(orders: Bench) -> None:
    """And one with breakers makes it once."""

    class Plain(Actor):
        @handles
        async def paid(self, event: Paid) -> None: ...

    await ensure_topology(orders.client, app_of(Plain).spec(), apply=True)
    assert await stream_info(orders.client, "KV_shop-breakers") is None
    app = paying(Service())
    await ensure_topology(orders.client, app_of(Plain, breakers=[CircuitBreaker("x")]).spec(), apply=True)
    assert await stream_info(orders.client, "KV_shop-breakers") is not None
    again = await ensure_topology(
        orders.client, app_of(Plain, breakers=[CircuitBreaker("x")]).spec(), apply=False
    )
    assert again.changes == ()
    assert app.spec().has_breakers


async def test_a_bucket_that_is_deleted_is_no_error(orders: Bench) -> None:
    """Each cell goes by what it sees; when the bucket is back they are as one again."""
    service = Service()
    app = paying(service)
    first, second = await start_cells(orders, app, 2)
    await orders.client.jetstream().delete_key_value("shop-breakers")
    await publish(orders, *(Paid(number=number) for number in range(20)))
    await until(lambda: state_of(first) == "open" or state_of(second) == "open")
    service.is_down = False
    await orders.settled(app)
    assert sorted(service.answered) == list(range(20))
    assert await orders.dead_letters(app) == []
    await ensure_topology(orders.client, app.spec(), apply=True)
    service.is_down = True
    await publish(orders, *(Paid(number=number) for number in range(20, 40)))
    await until(lambda: state_of(first) == "open" and state_of(second) == "open")
    service.is_down = False
    await orders.settled(app)
    await until(lambda: state_of(first) == state_of(second) == "closed")


async def test_a_cell_that_starts_finds_it_open(orders: Bench) -> None:
    """It makes no call of its own before a trial is due."""
    service = Service()
    app = paying(service, reset_timeout_seconds=60.0)
    (first,) = await start_cells(orders, app, 1)
    await publish(orders, *(Paid(number=number) for number in range(3)))
    await until(lambda: state_of(first) == "open")
    await first.stop()
    calls = len(service.calls)
    await first.start(reason="killed by SIGKILL")
    assert state_of(first) == "open"
    await until(lambda: first.status.held > 0)
    assert len(service.calls) == calls
    (breaker,) = first.status.breakers
    assert 0 < boottime() - breaker.since < 60


async def test_a_lost_connection_is_no_error_and_what_was_missed_is_made_up(orders: Bench) -> None:
    """A cell behind a network of its own hears of the opening when it is back."""
    service = Service()
    app = paying(service, reset_timeout_seconds=60.0)
    await ensure_topology(orders.client, app.spec(), apply=True)
    proxy = Proxy(int(orders.url.rpartition(":")[2]))
    await proxy.start()
    away = CellRun(app, proxy.url, orders.directory)
    orders.cells.append(away)
    await away.start()
    assert state_of(away) == "closed"
    proxy.refusing = True
    proxy.cut()
    await until(lambda: not away.status.connected)
    (here,) = await start_cells(orders, app, 1)
    await publish(orders, *(Paid(number=number) for number in range(6)))
    await until(lambda: state_of(here) == "open")
    assert state_of(away) == "closed"
    proxy.refusing = False
    await until(lambda: state_of(away) == "open")
    await away.stop()
    await proxy.stop()


async def test_a_drain_while_it_is_half_open_neither_opens_nor_closes_it(orders: Bench) -> None:
    """What a drain cuts short says nothing of the service, and leaves the trial to others."""
    service = Service()
    hangs = asyncio.Event()
    time_is_up = asyncio.Event()

    class Billing(Actor, retry=FAST, handler_timeout_seconds=1):
        @handles(breakers=["payments"])
        async def paid(self, event: Paid, ctx: Context) -> None:
            async with ctx.breaker("payments"):
                if hangs.is_set():
                    try:
                        await asyncio.Event().wait()
                    finally:
                        time_is_up.set()
                await service.call(event.number)

    app = app_of(Billing, breakers=[CircuitBreaker("payments", fail_max=1, reset_timeout_seconds=0.3)])
    cells = await start_cells(orders, app, 2)
    bucket = await orders.client.jetstream().key_value("shop-breakers")

    async def record() -> Record:
        found = decode((await bucket.get("payments")).value or b"")
        assert found is not None
        return found

    await publish(orders, Paid(number=1), Paid(number=2))
    await until(lambda: all(state_of(cell) == "open" for cell in cells))
    hangs.set()
    await until(lambda: all(state_of(cell) == "half-open" for cell in cells))
    claimed = await record()
    trying, waiting = sorted(cells, key=lambda cell: cell.status.counters["breaker_trials"], reverse=True)
    await waiting.stop()
    # Unless that took longer than the trial may.
    assert await record() == claimed or time_is_up.is_set()
    counted = trying.status.counters
    await trying.stop()
    left = await record()
    assert (left.state, left.opening, left.claimed_by) == ("half-open", claimed.opening, "")
    assert left.trial >= claimed.trial
    assert counted["breaker_closings"] == 0
    assert await orders.dead_letters(app) == []


async def test_a_bucket_of_many_replicas_says_in_its_own_way_that_another_was_first(orders: Bench) -> None:
    """A leader that has a write under way for the key says so; that is no bucket which can't be written."""

    async def answer(message: Msg) -> None:
        error = {"code": 400, "err_code": 10164, "description": "wrong last sequence"}
        await message.respond(json.dumps({"error": error}).encode())

    await orders.client.subscribe("$KV.shop-breakers.payments", cb=answer)
    store = BreakerStore(orders.client, "shop-breakers", "news", lambda *_: None)
    assert await store.write("payments", b"{}", 7) is None
