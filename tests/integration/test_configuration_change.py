"""A changed app beside its older revision: what cells of both see while one takes the other's place."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from support.cells import Bench, CellRun, bench, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.errors import BrokerError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import RetryPolicy
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.cell import pipeline
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.topology import backlog, ensure_topology
from understudy.runtime.stream import Stream

STREAM, DURABLE = "ORDERS", "shop-billing"
EVENTS = 300


class Placed(Event, subject="orders.placed"):
    """What every revision handles."""

    number: int


class Paid(Event, subject="orders.paid"):
    """What only the newer revision handles."""

    number: int


class Deploy:
    """Nodes of several revisions on one stream.

    Attributes:
        handled: revision and number of each handler run, `-number` of a Paid.
    """

    def __init__(self, made: Bench) -> None:
        self.bench = made
        self.handled: list[tuple[int, int]] = []

    def app(self, revision: int, **options: Any) -> App:
        """Return the app as a revision declares it; Paid is handled from revision 2 on."""
        deploy = self

        class Billing(Actor):
            @handles
            async def placed(self, event: Placed) -> None:
                deploy.handled.append((revision, event.number))

        class BillingAndPaying(Billing):
            @handles
            async def paid(self, event: Paid, ctx: Context) -> None:
                assert ctx.delivery.attempt == 1
                deploy.handled.append((revision, -event.number))

        actor = Child(Billing if revision < 2 else BillingAndPaying, name="billing", **options)
        stream = Stream(STREAM, subjects=["orders.>"])
        return App("shop", streams=[stream], children=[actor], revision=revision)

    async def node(self, name: str, app: App) -> CellRun:
        """Start a node as `run` does: first what the app declares, then its cell."""
        await ensure_topology(self.bench.client, app.spec(), apply=True)
        directory = self.bench.directory / name
        directory.mkdir(exist_ok=True)
        run = CellRun(app, self.bench.url, directory)
        self.bench.cells.append(run)
        await run.start()
        return run

    def counts(self) -> Counter[int]:
        """Return how often each was handled."""
        return Counter(number for _, number in self.handled)

    async def all_handled(self, *numbers: range) -> None:
        """Wait until all of them were handled and acked, and check that each was handled once."""
        wanted = {number for one in numbers for number in one}
        await until(lambda: set(self.counts()) >= wanted)

        async def is_settled() -> bool:
            left = await backlog(self.bench.client, STREAM, DURABLE)
            return left.pending == left.ack_pending == 0

        await until(is_settled)
        assert self.counts() == Counter(wanted)


@pytest.fixture
async def deploy(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Deploy]:
    """A broker for the nodes of a test."""
    monkeypatch.setattr(pipeline, "NO_HANDLER_DELAY_SECONDS", 0.1)
    async with bench(nats_server.url, tmp_path) as made:
        yield Deploy(made)


@pytest.mark.parametrize("options", [{}, {"ordered": True}], ids=["shared", "sole owner"])
async def test_nodes_are_replaced_one_by_one_by_a_newer_revision(
    deploy: Deploy, options: dict[str, Any]
) -> None:
    """Under load: a new handler, other attempts, another ack_wait; an old node that restarts runs again."""
    old = deploy.app(1, **options)
    new = deploy.app(2, retry=RetryPolicy(max_attempts=2), ack_wait_seconds=20, **options)
    nodes = [await deploy.node("one", old), await deploy.node("two", old)]
    reached = asyncio.Event()

    async def publish() -> None:
        for number in range(1, EVENTS + 1):
            await deploy.bench.publisher.publish(Placed(number=number))
            if number == EVENTS // 3:
                reached.set()

    publishing = asyncio.create_task(publish())
    await reached.wait()
    first = await deploy.node("three", new)
    # What the newer has made is left to it.
    await nodes[1].stop()
    nodes[1] = await deploy.node("two", old)
    info = await api.consumer_info(deploy.bench.client, STREAM, DURABLE)
    assert info is not None
    assert info["config"]["ack_wait"] == 20 * 10**9
    assert info["config"]["metadata"]["understudy.revision"] == "2"
    await nodes[0].stop()
    second = await deploy.node("four", new)
    await nodes[1].stop()
    await publishing
    for number in range(1, 11):
        await deploy.bench.publisher.publish(Paid(number=number))
    await deploy.all_handled(range(1, EVENTS + 1), range(-10, 0))
    assert {revision for revision, _ in deploy.handled} == {1, 2}
    if options:
        placed = [number for _, number in deploy.handled if number > 0]
        assert placed == sorted(placed)
    assert first.status.counters["failed"] + second.status.counters["failed"] == 0


async def test_an_older_node_leaves_what_it_has_no_handler_for_to_the_newer(deploy: Deploy) -> None:
    """Given back until the newer one gets it, and not counted as an attempt."""
    older = await deploy.node("one", deploy.app(1))
    new = deploy.app(2)
    await ensure_topology(deploy.bench.client, new.spec(), apply=True)
    for number in range(1, 6):
        await deploy.bench.publisher.publish(Paid(number=number))
    await until(lambda: older.status.counters["retried"] >= 5)
    assert deploy.handled == []
    await deploy.node("two", new)
    await older.stop()
    await deploy.all_handled(range(-5, 0))


async def test_an_older_node_extends_as_often_as_the_newer_revision_needs(deploy: Deploy) -> None:
    """Its own ack_wait is longer than what the consumer now has."""
    gate = asyncio.Event()
    began = asyncio.Event()
    handled: list[int] = []

    class Slow(Actor, ack_wait_seconds=60):
        @handles
        async def placed(self, event: Placed) -> None:
            handled.append(event.number)
            began.set()
            await gate.wait()

    stream = Stream(STREAM, subjects=["orders.>"])

    def app(revision: int, **options: Any) -> App:
        child = Child(Slow, name="billing", **options)
        return App("shop", streams=[stream], children=[child], revision=revision)

    extensions = 0

    async def count(message: Msg) -> None:
        nonlocal extensions
        extensions += message.data == b"+WPI"

    await deploy.bench.client.subscribe(f"$JS.ACK.{STREAM}.{DURABLE}.>", cb=count)
    # A machine that stands still for longer than two thirds of it extends too late.
    for ack_wait in (1.5, 6.0, 9.0):
        newer = app(2, ack_wait_seconds=ack_wait, hang_timeout_seconds=0.6 * ack_wait)
        await ensure_topology(deploy.bench.client, newer.spec(), apply=True)
        older = await deploy.node("one", app(1))
        for event in (began, gate):
            event.clear()
        handled.clear()
        await deploy.bench.publisher.publish(Placed(number=1))
        await began.wait()
        # Held for longer than the server waits.
        enough = extensions + 8
        await until(lambda: extensions >= enough)  # noqa: B023
        gate.set()
        await deploy.bench.settled(older.app)
        assert handled == [1]
        redelivered = older.status.counters["redelivered"]
        if not redelivered:
            break
        await older.stop()
    assert redelivered == 0


@pytest.mark.parametrize("keeps_order", [False, True])
async def test_a_cell_stops_where_its_consumer_was_made_another_kind(
    deploy: Deploy, keeps_order: bool
) -> None:
    """Shared by one revision, one owner's by the other: the older one's cells say so and take nothing."""
    older = await deploy.node("one", deploy.app(1, ordered=keeps_order))
    await deploy.bench.publisher.publish(Placed(number=0))
    await until(lambda: len(deploy.handled) == 1)
    newer = await deploy.node("two", deploy.app(2, ordered=not keeps_order))
    assert older.task is not None
    with pytest.raises(BrokerError):
        await asyncio.wait_for(older.task, 60)
    await older.vanish()
    has, needs = (
        ("is shared", "keeps an order or state") if keeps_order else ("serves one owner", "shares it")
    )
    with pytest.raises(BrokerError) as raised:
        await older.start()
    assert str(raised.value) == (
        f"consumer shop-billing {has} by now, as another revision of the app has it, and this one "
        f"{needs}; run that revision here"
    )
    await older.vanish()
    for number in range(1, 11):
        await deploy.bench.publisher.publish(Placed(number=number))
    await deploy.all_handled(range(11))
    assert {revision for revision, number in deploy.handled if number} == {2}
    assert newer.task is not None
    assert not newer.task.done()
