"""One cell against a real broker: what becomes of a delivery."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import ClassVar

import pytest
from structlog.testing import capture_logs

from support.cells import Bench, app_of, in_both_lanes, until
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.errors import CircuitOpen
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import CircuitBreaker, Mailbox, RetryPolicy
from understudy.runtime.cell import heartbeat as heartbeat_module
from understudy.runtime.cell import takeover
from understudy.runtime.jetstream import subscription

FAST = RetryPolicy(max_attempts=3, min_delay_seconds=0.01, max_delay_seconds=0.05)

pytestmark = in_both_lanes


class Placed(Event, subject="orders.placed"):
    number: int
    customer: str = "c"


class Billed(Event, subject="orders.billed"):
    number: int


async def place(orders: Bench, numbers: range, customer: str = "c") -> None:
    """Publish some orders."""
    await asyncio.gather(*(orders.publisher.publish(Placed(number=n, customer=customer)) for n in numbers))


async def test_handles_each_event_once_and_publishes_what_the_handler_returns(orders: Bench) -> None:
    """A returned event is in the stream before the input is acked."""
    seen: list[int] = []

    class Billing(Actor):
        @handles
        async def placed(self, event: Placed) -> Billed:
            seen.append(event.number)
            return Billed(number=event.number)

    app = app_of(Billing)
    cell = await orders.cell(app)
    await place(orders, range(200))
    await until(lambda: len(seen) == 200)
    await orders.settled(app)
    assert sorted(seen) == list(range(200))
    info = await orders.client.jetstream().stream_info("ORDERS", subjects_filter="orders.billed")
    assert info.state.subjects == {"orders.billed": 200}
    assert cell.status.counters["handled"] == 200
    assert cell.status.held == 0


async def test_the_input_is_acked_only_when_its_outputs_are_confirmed(orders: Bench) -> None:
    """While no stream takes the output the input stays unacknowledged; then both are settled, once."""
    attempts: list[int] = []

    class Shipped(Event, subject="parcels.shipped"):
        number: int

    class Shipping(
        Actor, retry=RetryPolicy(max_attempts=1000, min_delay_seconds=0.02, max_delay_seconds=0.05)
    ):
        @handles
        async def placed(self, event: Placed, ctx: Context) -> Shipped:
            attempts.append(ctx.delivery.attempt)
            return Shipped(number=event.number)

    app = app_of(Shipping)
    await orders.cell(app)
    await place(orders, range(1))
    await until(lambda: len(attempts) >= 3)
    assert (await orders.backlog(app)).ack_pending == 1
    await orders.client.jetstream().add_stream(name="PARCELS", subjects=["parcels.>"])
    await orders.settled(app)
    assert (await orders.client.jetstream().stream_info("PARCELS")).state.messages == 1
    assert await orders.dead_letters(app) == []


async def test_demand_is_the_mailbox_s_free_room(orders: Bench) -> None:
    """With a blocked handler the server has handed over exactly the capacity."""
    release = asyncio.Event()

    class Slow(Actor, mailbox=Mailbox(capacity=8)):
        @handles
        async def placed(self, event: Placed) -> None:
            await release.wait()

    app = app_of(Slow)
    cell = await orders.cell(app)
    await place(orders, range(100))

    async def full() -> bool:
        return (await orders.backlog(app)).ack_pending == 8

    await until(full)
    # Longer than a pull request lives.
    await asyncio.sleep(1.5 * subscription.EXPIRES_SECONDS)
    assert (await orders.backlog(app)).ack_pending == 8
    await until(lambda: cell.status.held == 8)
    release.set()
    await orders.settled(app)


async def test_an_idle_cell_shows_at_once_what_comes_and_beats_when_it_asks_again(
    orders: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with its next heartbeat, which may be far."""
    monkeypatch.setattr(heartbeat_module, "IDLE_HEARTBEAT_SECONDS", 3600.0)
    release = asyncio.Event()

    class Slow(Actor, mailbox=Mailbox(capacity=1), ack_wait_seconds=7200, hang_timeout_seconds=4000):
        @handles
        async def placed(self, event: Placed) -> None:
            await release.wait()

    app = app_of(Slow)
    cell = await orders.cell(app)
    # More than what it has while it starts.
    for _ in range(3):
        heartbeat = cell.status.heartbeat
        await until(lambda: cell.status.heartbeat > heartbeat)  # noqa: B023
    monkeypatch.setattr(subscription, "EXPIRES_SECONDS", 3600.0)
    heartbeat = cell.status.heartbeat
    # The request that asks for so long.
    await until(lambda: cell.status.heartbeat > heartbeat)
    heartbeat = cell.status.heartbeat
    await place(orders, range(1))
    await until(lambda: cell.status.held == 1)
    assert cell.status.heartbeat > heartbeat
    release.set()
    await orders.settled(app)


async def test_byte_bound_holds_and_a_larger_message_comes_alone(orders: Bench) -> None:
    """Bodies beyond the mailbox's bytes stay in the stream; one that never fits is fetched by itself."""
    sizes: list[int] = []

    class Reader(Actor, mailbox=Mailbox(capacity=64, max_bytes=10_000)):
        @handles("orders.raw")
        async def raw(self, body: bytes) -> None:
            sizes.append(len(body))

    app = app_of(Reader)
    await orders.cell(app)
    for size in (100, 20_000, 4_000, 4_000, 50_000, 10):
        await orders.publisher.publish_raw("orders.raw", b"x" * size)
    await until(lambda: len(sizes) == 6)
    assert sizes == [100, 20_000, 4_000, 4_000, 50_000, 10]
    await orders.settled(app)


async def test_one_key_keeps_its_order_while_others_go_side_by_side(orders: Bench) -> None:
    """Events of one key never overlap, even when one is retried in place."""
    running: set[str] = set()
    side_by_side = asyncio.Event()
    seen: dict[str, list[int]] = {}
    failed: set[int] = set()

    class Keyed(Actor, key="customer", retry=FAST):
        @handles
        async def placed(self, event: Placed) -> None:
            assert event.customer not in running
            running.add(event.customer)
            if len(running) > 1:
                side_by_side.set()
            # The first one waits for one of another key.
            await side_by_side.wait()
            await asyncio.sleep(0.001)
            running.discard(event.customer)
            if event.number % 10 == 3 and event.number not in failed:
                failed.add(event.number)
                raise ValueError("once")
            seen.setdefault(event.customer, []).append(event.number)

    app = app_of(Keyed)
    await orders.cell(app)
    for number in range(200):
        await orders.publisher.publish(Placed(number=number, customer=f"c{number % 8}"))
    await orders.settled(app)
    assert {key: numbers == sorted(numbers) for key, numbers in seen.items()} == {
        f"c{n}": True for n in range(8)
    }
    assert sum(map(len, seen.values())) == 200


async def test_failures_are_retried_and_then_dead_lettered_with_their_reason(orders: Bench) -> None:
    """An exception, Retry and Reject each take their way; the letter carries body, headers and cause."""
    attempts: list[tuple[int, int]] = []

    class Failing(Actor, retry=FAST):
        @handles
        async def placed(self, event: Placed, ctx: Context) -> None:
            attempts.append((event.number, ctx.delivery.attempt))
            if event.number == 1:
                raise ValueError("no\nway")
            if event.number == 2:
                raise Reject("not ours")
            if event.number == 3 and ctx.delivery.attempt < 3:
                raise Retry(delay_seconds=0.01)

    app = app_of(Failing)
    cell = await orders.cell(app)
    await place(orders, range(4))
    await orders.settled(app)
    assert sorted(attempts) == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2), (3, 3)]
    letters = {letter.headers["Understudy-Reason"]: letter for letter in await orders.dead_letters(app)}
    assert sorted(letters) == ["exhausted", "rejected"]
    exhausted = letters["exhausted"].headers
    assert exhausted["Understudy-Error"] == "ValueError: no way"
    assert exhausted["Understudy-Attempts"] == "3"
    assert exhausted["Understudy-Subject"] == "orders.placed"
    assert exhausted["Understudy-Stream"] == "ORDERS"
    assert exhausted["Understudy-Actor"] == "failing"
    assert exhausted["ce-type"] == "Placed"
    assert "Understudy-Original-Nats-Msg-Id" in exhausted
    assert letters["rejected"].headers["Understudy-Error"] == "not ours"
    assert cell.status.counters["dead_lettered"] == 2


async def test_malformed_bodies_are_dead_lettered_and_the_rest_is_handled(orders: Bench) -> None:
    """Of 10,000 bodies of a plain client, with and without headers, 1,000 can't be read: each is kept."""
    seen: list[int] = []

    class Reader(Actor):
        @handles
        async def placed(self, event: Placed) -> None:
            seen.append(event.number)

    app = app_of(Reader)
    await orders.cell(app)
    js = orders.client.jetstream(publish_async_max_pending=1000)
    malformed = {number for number in range(10_000) if number % 10 == 0}
    bodies = [b"{broken", b'{"number": "one"}', b"\xff\xfe", b"[]", b""]
    for number in range(10_000):
        body = bodies[number // 10 % 5] if number in malformed else json.dumps({"number": number}).encode()
        headers = {"Content-Type": "application/json"} if number % 2 else None
        await js.publish_async("orders.placed", body, headers=headers)
    await js.publish_async_completed()
    await orders.settled(app)
    assert seen == [number for number in range(10_000) if number not in malformed]
    info = await orders.client.jetstream().stream_info("SHOP_DEAD_LETTERS")
    assert info.state.messages == 1000
    letters = await orders.dead_letters(app, 20)
    assert [letter.headers["Understudy-Reason"] for letter in letters] == ["undecodable"] * 20
    assert [letter.data or b"" for letter in letters[:5]] == bodies
    assert all(letter.headers["Understudy-Error"] for letter in letters)


async def test_a_hundred_unreadable_in_a_row_pause_the_actor(orders: Bench) -> None:
    """A bad deploy doesn't empty the backlog into the dead letters."""

    class Reader(Actor):
        @handles
        async def placed(self, event: Placed) -> None:
            raise AssertionError

    app = app_of(Reader)
    cell = await orders.cell(app)
    for _ in range(300):
        await orders.client.publish("orders.placed", b"{}")
    await until(lambda: cell.status.state == "halted")
    assert len(await orders.dead_letters(app)) == 99
    assert "too many deliveries in a row can't be read" in cell.status.reason
    await cell.stop()
    state = await orders.backlog(app)
    assert state.pending + state.ack_pending == 201


async def test_an_open_breaker_holds_and_pauses_without_counting_attempts(orders: Bench) -> None:
    """While the downstream is dead the backlog waits in the stream; then all of it is handled."""
    down = True
    calls = 0
    seen: list[int] = []

    class Calling(
        Actor,
        mailbox=Mailbox(capacity=8),
        concurrency=4,
        retry=RetryPolicy(max_attempts=20, min_delay_seconds=0.01, max_delay_seconds=0.02),
        breakers=[CircuitBreaker("service", fail_max=3, reset_timeout_seconds=0.3)],
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
    cell = await orders.cell(app)
    await place(orders, range(50))
    await until(lambda: cell.status.counters["breaker_openings"] >= 3)
    # Three failures opened it, those in flight came with them, then one trial at a time.
    assert calls <= 3 + 4 + cell.status.counters["breaker_trials"]
    assert (await orders.backlog(app)).ack_pending <= 8 + 3
    down = False
    await orders.settled(app)
    assert sorted(set(seen)) == list(range(50))
    assert cell.status.state == "up"
    assert await orders.dead_letters(app) == []
    assert cell.status.counters["failed"] <= 3 + 4


async def test_a_handler_may_catch_an_open_breaker(orders: Bench) -> None:
    """Its return settles the delivery, and nothing pauses."""
    fallback: list[int] = []

    class Calling(
        Actor, retry=FAST, breakers=[CircuitBreaker("service", fail_max=1, reset_timeout_seconds=60)]
    ):
        @handles
        async def placed(self, event: Placed, ctx: Context) -> None:
            try:
                async with ctx.breaker("service"):
                    raise ConnectionError("down")
            except CircuitOpen:
                fallback.append(event.number)

    app = app_of(Calling)
    cell = await orders.cell(app)
    await place(orders, range(10))
    await orders.settled(app)
    assert sorted(fallback) == list(range(10))
    assert cell.status.state == "up"


async def test_a_breaker_that_the_actor_does_not_have_is_an_error_as_any_other(orders: Bench) -> None:
    """No trial would ever end a pause for it."""

    class Relaying(Actor, retry=FAST):
        @handles
        async def placed(self, event: Placed) -> None:
            raise CircuitOpen("elsewhere", 0.01)

    app = app_of(Relaying)
    cell = await orders.cell(app)
    await place(orders, range(1))
    await orders.settled(app)
    assert len(await orders.dead_letters(app)) == 1
    assert cell.status.counters["failed"] == FAST.max_attempts
    assert cell.status.state == "up"


async def test_a_coroutine_past_its_timeout_is_cancelled_and_counts_as_failed(orders: Bench) -> None:
    """The next attempt may succeed."""
    attempts: list[int] = []

    class Slow(Actor, retry=FAST, handler_timeout_seconds=0.1):
        @handles
        async def placed(self, event: Placed, ctx: Context) -> None:
            attempts.append(ctx.delivery.attempt)
            if ctx.delivery.attempt == 1:
                await asyncio.sleep(60)

    app = app_of(Slow)
    await orders.cell(app)
    await place(orders, range(1))
    await orders.settled(app)
    assert attempts == [1, 2]


async def test_held_deliveries_are_extended_past_ack_wait(orders: Bench) -> None:
    """What waits or is handled long isn't redelivered."""
    runs: list[int] = []
    # A machine that stands still for longer than two thirds of it extends too late.
    for ack_wait in (1.0, 4.0, 8.0):

        class Slow(
            Actor,
            ack_wait_seconds=ack_wait,
            hang_timeout_seconds=ack_wait / 2,
            mailbox=Mailbox(capacity=8),
        ):
            seconds: ClassVar[float] = 0.6 * ack_wait

            @handles
            def placed(self, event: Placed) -> None:
                runs.append(event.number)
                time.sleep(self.seconds)

        app = app_of(Slow)
        cell = await orders.cell(app)
        runs.clear()
        await place(orders, range(5))
        await orders.settled(app)
        assert sorted(runs) == [0, 1, 2, 3, 4]
        redelivered = cell.status.counters["redelivered"]
        if not redelivered:
            break
        await cell.stop()
    assert redelivered == 0


async def test_a_graceful_stop_gives_back_and_the_next_start_goes_on(orders: Bench) -> None:
    """What a drain has no time for comes again at once, not after `ack_wait`, and counts no attempt."""
    seen: list[int] = []

    class Slow(Actor, mailbox=Mailbox(capacity=32), retry=RetryPolicy(max_attempts=2), ack_wait_seconds=600):
        @handles
        async def placed(self, event: Placed) -> None:
            await asyncio.sleep(0.1)
            seen.append(event.number)

    app = app_of(Slow)
    cell = await orders.cell(app)
    await place(orders, range(40))
    await until(lambda: cell.status.held >= 20)
    before = len(seen)
    await cell.stop()
    assert list(orders.directory.glob("*.cell")) == []
    # What was handled within the drain's second.
    assert before < len(seen) <= before + 20
    await cell.start(reason="drained")
    await orders.settled(app)
    assert sorted(seen) == list(range(40))
    assert await orders.dead_letters(app) == []


async def test_what_a_replica_does_not_have_yet_is_taken_over_all_the_same(
    orders: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any replica may answer a direct get (ADR-31); only what the stream's leader doesn't have is gone."""
    gate = asyncio.Event()
    seen: list[int] = []

    class Billing(Actor, key="customer"):
        @handles
        async def placed(self, event: Placed) -> None:
            await gate.wait()
            seen.append(event.number)

    async def lagging(*_: object, **__: object) -> AsyncGenerator[None]:
        while True:
            yield None

    app = app_of(Billing)
    cell = await orders.cell(app)
    await place(orders, range(5))
    await until(lambda: cell.status.held == 5)
    js = orders.client.jetstream()
    stream = (await js.stream_info("ORDERS")).config
    stream.allow_direct = True
    await js.update_stream(stream)
    await js.delete_msg("ORDERS", 5)
    await cell.die()
    monkeypatch.setattr(takeover, "read_messages", lagging)
    gate.set()
    with capture_logs() as logged:
        await cell.start(reason="killed by SIGKILL", crashed=True)
        await orders.settled(app)
    assert seen == [0, 1, 2, 3]
    gone = [entry for entry in logged if entry["event"] == "held message is no longer in the stream"]
    assert [entry["sequence"] for entry in gone] == [5]
