"""A cell that the operator pauses: nothing is begun or asked for, and what is held is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.cells import Bench, CellRun, app_of, bench, until
from support.nats import NatsServer
from support.owners import DURABLE, STREAM, Owners
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import CircuitBreaker, Mailbox
from understudy.runtime.cell import heartbeat as heartbeat_module
from understudy.runtime.cell import watchdog
from understudy.runtime.cell.paused import read_paused, write_paused
from understudy.runtime.cell.watchdog import Watchdog
from understudy.runtime.jetstream import api


class Placed(Event, subject="orders.placed"):
    number: int


@pytest.fixture
async def orders(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker for the orders app."""
    async with bench(nats_server.url, tmp_path) as made:
        yield made


async def place(orders: Bench, numbers: range) -> None:
    """Publish some orders, in their order."""
    for number in numbers:
        await orders.publisher.publish(Placed(number=number))


def names(run: CellRun) -> list[str]:
    """Return the names of the app's cells."""
    return [child.name for child in run.app.spec().root.children]


def begin_pause(run: CellRun) -> None:
    """Have a cell paused."""
    write_paused(run.directory, names(run))
    if run.cell is not None:
        run.cell.look_at_pause()


async def pause(run: CellRun) -> None:
    """Have a cell paused, and wait until it is."""
    begin_pause(run)
    await until(lambda: run.status.pause == "paused")


def resume(run: CellRun) -> None:
    """Have a cell go on."""
    write_paused(run.directory, [])
    assert run.cell is not None
    run.cell.look_at_pause()


async def be_patient(made: Bench, stream: str, durable: str) -> None:
    """Have the server wait longer than a consumer's cell, which goes by what it was told at its start.

    So what the cell does in time can be seen, and where all stands still for a while nothing is redelivered.
    """
    info = await api.consumer_info(made.client, stream, durable)
    assert info is not None
    config = info["config"] | {"ack_wait": 600_000_000_000}
    if "priority_timeout" in config:
        config["priority_timeout"] = 600_000_000_000
    body = {"stream_name": stream, "config": config, "action": "update"}
    await api.request(made.client, f"CONSUMER.CREATE.{stream}.{durable}", body)


def test_what_is_paused_is_read_as_it_was_last_written(tmp_path: Path) -> None:
    """Without a file, nothing is."""
    assert read_paused(tmp_path) == frozenset()
    write_paused(tmp_path, ["billing/0", "billing/1"])
    assert read_paused(tmp_path) == {"billing/0", "billing/1"}
    write_paused(tmp_path, [])
    assert read_paused(tmp_path) == frozenset()
    assert [path.name for path in tmp_path.iterdir()] == ["paused.json"]


async def test_what_runs_finishes_and_what_is_held_stays_held_beyond_ack_wait(orders: Bench) -> None:
    """It says `pausing` until nothing runs; after the pause each event was handled once."""
    gate = asyncio.Event()
    seen: list[int] = []

    class Billing(Actor, ack_wait_seconds=1, hang_timeout_seconds=0.6, mailbox=Mailbox(capacity=8)):
        @handles
        async def placed(self, event: Placed) -> None:
            await gate.wait()
            seen.append(event.number)

    app = app_of(Billing)
    run = await orders.cell(app)
    await be_patient(orders, "ORDERS", "shop-billing")
    await place(orders, range(20))
    await until(lambda: run.status.held == 8)
    begin_pause(run)
    assert (run.status.state, run.status.reason) == ("paused", "paused by the operator")
    assert run.status.pause == "pausing"
    gate.set()
    await until(lambda: run.status.pause == "paused")
    assert seen == [0]
    assert run.cell is not None
    held = list(run.cell._mailbox)
    extended_at = [delivery.extended_at for delivery in held]
    assert [delivery.sequence for delivery in held] == list(range(2, 9))
    # All were extended since, the first time and again after what would have been the end of ack_wait.
    await until(
        lambda: all(delivery.extended_at > at + 1.0 for delivery, at in zip(held, extended_at, strict=True))
    )
    assert seen == [0]
    assert (await orders.backlog(app)).ack_pending == 7
    assert (await orders.backlog(app)).pending == 12
    resume(run)
    assert run.status.state == "up"
    await orders.settled(app)
    assert seen == list(range(20))
    assert run.status.counters["redelivered"] == 0
    assert run.status.pause == "none"


async def test_pulls_end_and_begin_again(orders: Bench) -> None:
    """Nobody waits at the consumer while paused, so that another node's cells are served."""
    seen: list[int] = []

    class Billing(Actor):
        @handles
        async def placed(self, event: Placed) -> None:
            seen.append(event.number)

    app = app_of(Billing)
    run = await orders.cell(app)
    assert run.cell is not None
    subscription = run.cell._subscription
    await until(lambda: not subscription.is_unasked())
    begin_pause(run)
    assert run.status.pause == "pausing"
    await until(lambda: run.status.pause == "paused")
    assert subscription.is_unasked()
    await place(orders, range(5))

    async def all_wait() -> bool:
        # The server counts what is stored a moment after it has confirmed it.
        return (await orders.backlog(app)).pending == 5

    await until(all_wait)
    resume(run)
    await orders.settled(app)
    assert seen == list(range(5))


async def test_a_cell_started_while_paused_takes_over_and_handles_nothing(orders: Bench) -> None:
    """Suspects too wait for the end of the pause, and are then still handled alone."""
    gate = asyncio.Event()
    seen: list[int] = []
    running = 0
    company: list[int] = []

    class Billing(Actor, concurrency=4, mailbox=Mailbox(capacity=8)):
        @handles
        async def placed(self, event: Placed) -> None:
            nonlocal running
            running += 1
            await gate.wait()
            await asyncio.sleep(0)
            if event.number < 4:
                company.append(running)
            running -= 1
            seen.append(event.number)

    app = app_of(Billing)
    run = await orders.cell(app)
    await place(orders, range(20))
    await until(lambda: running == 4 and run.status.held == 8)
    begin_pause(run)
    await run.die()
    running = 0
    gate.set()
    await run.start(reason="killed by SIGKILL", crashed=True)
    await until(lambda: run.status.pause == "paused" and run.status.held == 8)
    assert (run.status.state, run.status.reason) == ("paused", "paused by the operator")
    assert seen == []
    resume(run)
    await orders.settled(app)
    assert sorted(seen) == list(range(20))
    assert company == [1, 1, 1, 1]


async def test_an_open_breaker_tries_nothing_while_paused(orders: Bench) -> None:
    """Its time runs on; the trial comes after the pause."""
    down = True
    calls = 0
    seen: list[int] = []

    class Calling(
        Actor,
        mailbox=Mailbox(capacity=8),
        breakers=[CircuitBreaker("service", fail_max=1, reset_timeout_seconds=0.2)],
    ):
        @handles
        async def placed(self, event: Placed, ctx: Context) -> None:
            nonlocal calls
            async with ctx.breaker("service"):
                calls += 1
                if down:
                    raise ConnectionError("down")
            seen.append(event.number)

    app = app_of(Calling)
    run = await orders.cell(app)
    await place(orders, range(10))
    await until(lambda: run.status.reason == "circuit breaker service is open")
    await pause(run)
    assert run.status.reason == "paused by the operator"
    called = calls
    assert run.cell is not None
    lanes = run.cell._lanes
    await until(lambda: lanes._mode.value == "trial")
    await until(lambda: not lanes._timers)
    assert calls == called
    down = False
    resume(run)
    await orders.settled(app)
    assert sorted(seen) == list(range(10))
    assert run.status.state == "up"


async def test_a_paused_cell_that_drains_gives_all_back(orders: Bench) -> None:
    """Without handling any of it, since that is what the operator wanted."""
    gate = asyncio.Event()
    seen: list[int] = []

    class Billing(Actor, mailbox=Mailbox(capacity=8)):
        @handles
        async def placed(self, event: Placed) -> None:
            await gate.wait()
            seen.append(event.number)

    app = app_of(Billing)
    run = await orders.cell(app)
    await place(orders, range(8))
    await until(lambda: run.status.held == 8)
    begin_pause(run)
    gate.set()
    await until(lambda: run.status.pause == "paused")
    await run.stop()
    assert seen == [0]
    backlog = await orders.backlog(app)
    assert backlog.pending + backlog.ack_pending == 7
    write_paused(run.directory, [])
    await run.start()
    await orders.settled(app)
    assert seen == list(range(8))


async def test_a_pause_during_the_drain_changes_nothing_but_what_is_begun(orders: Bench) -> None:
    """The cell goes on draining and says so."""
    gate = asyncio.Event()
    seen: list[int] = []

    class Billing(Actor, mailbox=Mailbox(capacity=4)):
        @handles
        async def placed(self, event: Placed) -> None:
            await gate.wait()
            seen.append(event.number)

    app = app_of(Billing)
    run = await orders.cell(app)
    await place(orders, range(4))
    await until(lambda: run.status.held == 4)
    assert run.cell is not None
    run.cell.stop()
    await until(lambda: run.status.state == "draining")
    begin_pause(run)
    assert run.status.state == "draining"
    gate.set()
    await run.stop()
    assert seen == [0]


async def test_the_watchdog_raises_no_alarm(orders: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the stream has work, and what is held could be begun."""
    monkeypatch.setattr(watchdog, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(heartbeat_module, "IDLE_HEARTBEAT_SECONDS", 0.05)
    looks = 0
    look = Watchdog.look

    async def counted(watchdog: Watchdog) -> None:
        nonlocal looks
        await look(watchdog)
        looks += 1

    monkeypatch.setattr(Watchdog, "look", counted)

    class Billing(Actor, mailbox=Mailbox(capacity=4)):
        @handles
        async def placed(self, event: Placed) -> None: ...

    app = app_of(Billing)
    with capture_logs() as logs:
        run = orders.cell_run(app)
        write_paused(run.directory, names(run))
        await orders.cell(app)
        await place(orders, range(10))
        seen = looks
        await until(lambda: looks > seen + 6)
    assert [entry for entry in logs if entry["event"] == "no progress"] == []


# Sole owners


async def test_a_paused_owner_keeps_its_pin_and_a_paused_standby_takes_nothing(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The actor is paused on every node, so nobody goes on instead; order and counts stay right."""
    async with bench(nats_server.url, tmp_path) as made:
        owners = Owners(made, ack_wait_seconds=1.0, hang_timeout_seconds=0.6)
        await owners.start("a")
        await owners.note(range(1))
        await owners.all_handled(1)
        await owners.start("b")
        await owners.stood_by("b")
        await be_patient(made, STREAM, DURABLE)
        pin = await owners.pin()
        for node in ("a", "b"):
            await pause(owners.nodes[node])
        assert owners.nodes["a"].status.reason == "paused by the operator"
        assert owners.nodes["b"].status.reason == "paused by the operator, another cell is active"
        await owners.note(range(1, 50), 3)
        cell = owners.nodes["a"].cell
        assert cell is not None
        assert cell._pin is not None
        # What keeps a pin is a request now and then; two of them span more than the 2 s that it was given.
        for _ in range(4):
            asked_at = cell._pin._asked_at
            await until(lambda: cell._pin._asked_at > asked_at)  # type: ignore[union-attr] # noqa: B023
        assert await owners.pin() == pin
        assert len(owners.runs) == 1
        await owners.nodes["a"].stop()
        # The drained owner handed over, and the paused standby doesn't take it up.
        await until(lambda: owners.nodes["b"].status.reason == "paused by the operator")
        assert len(owners.runs) == 1
        resume(owners.nodes["b"])
        await owners.all_handled(50)
        assert owners.repeats() == 0
        assert owners.in_order()
