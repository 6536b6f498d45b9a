"""What handlers publish: in order, under ids that a rerun makes again, confirmed before the ack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.cells import Bench, bench, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

AGAIN = RetryPolicy(max_attempts=1000, min_delay_seconds=0.02, max_delay_seconds=0.05)


class Ordered(Event, subject="orders.placed"):
    parts: int


class Packed(Event, subject="parcels.packed"):
    number: int


class Labelled(Event, subject="parcels.labelled"):
    number: object


@pytest.fixture
async def orders(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker, and what a test needs around it."""
    async with bench(nats_server.url, tmp_path) as made:
        yield made


def app_of(actor: type[Actor]) -> App:
    """Return an app with one actor, and a stream for what it publishes."""
    streams = [Stream("ORDERS", subjects=["orders.>"]), Stream("PARCELS", subjects=["parcels.*"])]
    return App("shop", streams=streams, children=[actor])


async def stored(orders: Bench, stream: str = "PARCELS") -> list[tuple[str, Any]]:
    """Return the subjects and numbers that a stream holds, in its order."""
    js = orders.client.jetstream()
    last = (await js.stream_info(stream)).state.last_seq
    messages = [await js.get_msg(stream, seq=seq) for seq in range(1, last + 1)]
    return [(m.subject or "", msgspec.msgpack.decode(m.data or b"")["number"]) for m in messages]


async def test_many_events_of_one_handler_are_stored_in_its_order(orders: Bench) -> None:
    """First what it collects, then what it returns; more than the window holds."""

    class Packing(Actor):
        @handles
        async def placed(self, event: Ordered, ctx: Context) -> list[Packed]:
            for number in range(3):
                ctx.publish(Labelled(number=number))
            return [Packed(number=number) for number in range(event.parts)]

    app = app_of(Packing)
    cell = await orders.cell(app)
    await orders.publisher.publish(Ordered(parts=1500))
    await orders.settled(app)
    labels = [("parcels.labelled", number) for number in range(3)]
    assert await stored(orders) == labels + [("parcels.packed", number) for number in range(1500)]
    await until(lambda: cell.status.counters["published"] == 1503)
    last = await orders.client.jetstream().get_msg("PARCELS", seq=1503)
    assert last.headers is not None
    assert last.headers["Nats-Msg-Id"].startswith("shop-packing.")
    assert last.headers["Nats-Msg-Id"].endswith(".1.Packed.1500")


async def test_a_refused_event_fails_the_handler_and_the_others_are_stored_once(orders: Bench) -> None:
    """The input stays unacknowledged until a rerun had all of them confirmed."""
    attempts: list[int] = []

    class Packing(Actor, retry=AGAIN):
        @handles
        async def placed(self, event: Ordered, ctx: Context) -> list[Packed]:
            attempts.append(ctx.delivery.attempt)
            ctx.publish(Packed(number=-1), subject="parcels.not.yet")
            return [Packed(number=number) for number in range(event.parts)]

    app = app_of(Packing)
    await orders.cell(app)
    await orders.publisher.publish(Ordered(parts=5))
    await until(lambda: len(attempts) >= 2)
    packed = [("parcels.packed", number) for number in range(5)]
    assert await stored(orders) == packed
    assert (await orders.backlog(app)).ack_pending == 1
    await orders.client.jetstream().add_stream(name="LATE", subjects=["parcels.not.yet"])
    await orders.settled(app)
    assert await stored(orders) == packed
    assert await stored(orders, "LATE") == [("parcels.not.yet", -1)]


async def test_an_event_that_can_t_be_encoded_keeps_all_of_them_back(orders: Bench) -> None:
    """Nothing is published of what is known to fail."""
    attempts: list[int] = []
    second: list[object] = [object()]

    class Packing(Actor, retry=AGAIN):
        @handles
        async def placed(self, event: Ordered, ctx: Context) -> list[Labelled]:
            attempts.append(ctx.delivery.attempt)
            return [Labelled(number=1), Labelled(number=second[0])]

    app = app_of(Packing)
    await orders.cell(app)
    await orders.publisher.publish(Ordered(parts=0))
    await until(lambda: len(attempts) >= 2)
    assert await stored(orders) == []
    second[0] = 2
    await orders.settled(app)
    assert await stored(orders) == [("parcels.labelled", 1), ("parcels.labelled", 2)]
