"""Circuit breakers in cells, against a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.cells import Bench, bench, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import CircuitBreaker, Mailbox, RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

FAST = RetryPolicy(max_attempts=20, min_delay_seconds=0.01, max_delay_seconds=0.02)


class Paid(Event, subject="orders.paid"):
    number: int


class Noted(Event, subject="orders.noted"):
    number: int


@pytest.fixture
async def orders(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker for the orders app."""
    async with bench(nats_server.url, tmp_path) as made:
        yield made


def app_of(actor: type[Actor], **options: Any) -> App:
    """Return an app with one actor."""
    return App("shop", streams=[Stream("ORDERS", subjects=["orders.>"])], children=[actor], **options)


async def publish(orders: Bench, *events: Event) -> None:
    """Publish some events, in this order."""
    for event in events:
        await orders.publisher.publish(event)


async def test_what_declares_no_breaker_goes_on_within_half_the_mailbox(orders: Bench) -> None:
    """Then the actor pauses and says so; when the service is back all of it is handled."""
    down = True
    paid: list[int] = []
    noted: list[int] = []

    class Billing(
        Actor,
        mailbox=Mailbox(capacity=20),
        concurrency=2,
        retry=FAST,
        breakers=[CircuitBreaker("payments", fail_max=1, reset_timeout_seconds=0.3)],
    ):
        @handles(breakers=["payments"])
        async def paid(self, event: Paid, ctx: Context) -> None:
            async with ctx.breaker("payments"):
                if down:
                    raise ConnectionError("down")
            paid.append(event.number)

        @handles
        async def noted(self, event: Noted) -> None:
            noted.append(event.number)

    app = app_of(Billing)
    cell = await orders.cell(app)
    await publish(orders, Paid(number=0))
    await until(lambda: cell.status.counters["breaker_openings"] > 0)
    for number in range(1, 10):
        await publish(orders, Paid(number=number), Noted(number=number))
    await until(lambda: len(noted) == 9)
    assert cell.status.state == "up"
    await publish(orders, *(Paid(number=number) for number in range(10, 25)))
    await until(lambda: cell.status.state == "paused")
    assert cell.status.reason.endswith("deliveries wait for an open circuit breaker")
    await publish(orders, Noted(number=10))
    down = False
    await orders.settled(app)
    await until(lambda: (len(paid), len(noted)) == (25, 10))
    assert (sorted(paid), sorted(noted)) == (list(range(25)), list(range(1, 11)))
    assert cell.status.state == "up"
    assert await orders.dead_letters(app) == []


async def test_an_ordered_actor_waits_as_a_whole(orders: Bench) -> None:
    """Nothing may pass what waits, so it asks for no more, and keeps its order."""
    down = True
    seen: list[int] = []

    class Billing(
        Actor,
        ordered=True,
        mailbox=Mailbox(capacity=8),
        retry=FAST,
        breakers=[CircuitBreaker("payments", fail_max=1, reset_timeout_seconds=0.2)],
    ):
        @handles(breakers=["payments"])
        async def paid(self, event: Paid, ctx: Context) -> None:
            async with ctx.breaker("payments"):
                if down:
                    raise ConnectionError("down")
            seen.append(event.number)

        @handles
        async def noted(self, event: Noted) -> None:
            seen.append(event.number)

    app = app_of(Billing)
    cell = await orders.cell(app)
    await publish(orders, Paid(number=0))
    await until(lambda: cell.status.state == "paused")
    await publish(orders, *(Noted(number=number) for number in range(1, 30)))
    down = False
    await orders.settled(app)
    await until(lambda: len(seen) == 30)
    assert seen == list(range(30))


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
    await publish(orders, *(Paid(number=number) for number in range(50)))
    await orders.settled(app)
    assert seen == set(range(50)) - {3}
    (letter,) = await orders.dead_letters(app)
    assert letter.headers["Understudy-Attempts"] == "3"
