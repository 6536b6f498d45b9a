"""Batch handlers in one cell against a real broker: what becomes of each member."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.cells import Bench, CellRun, app_of, bench, in_both_lanes, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import BatchContext, Context
from understudy.actors.errors import BrokerError, CircuitOpen, PublishError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import Batch, CircuitBreaker, Mailbox, RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.cell import cell as cells
from understudy.runtime.cell.failures import Failures
from understudy.runtime.cell.lanes import Lanes
from understudy.runtime.jetstream.api import stream_info
from understudy.runtime.jetstream.subscription import PullSubscription
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stores.attempts import Attempts, AttemptStore
from understudy.runtime.telemetry.trace import current_trace

FAST = RetryPolicy(max_attempts=3, min_delay_seconds=0.01, max_delay_seconds=0.05)
# No test waits for this one to pass.
LONG = 600.0


class Placed(Event, subject="orders.placed"):
    number: int
    customer: str = "c"


class Paid(Event, subject="orders.paid"):
    number: int
    customer: str = "c"


class Billed(Event, subject="orders.billed"):
    number: int


@pytest.fixture
async def orders(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker for the orders app."""
    async with bench(nats_server.url, tmp_path) as made:
        yield made


async def place(orders: Bench, app: App, *events: Event) -> None:
    """Publish events in their order."""
    await ensure_topology(orders.client, app.spec(), apply=True)
    for event in events:
        await orders.publisher.publish(event)


async def hold(orders: Bench, app: App, *events: Event) -> CellRun:
    """Start the cell, and let it begin when it holds all these events.

    Else batches could be due before they are full, where the machine stands still for as long as they wait.
    """
    run = await orders.cell(app)
    assert run.cell is not None
    run.cell._lanes.pause()
    await place(orders, app, *events)
    mailbox = run.cell._mailbox
    await until(lambda: len(mailbox) == len(events))
    run.cell._lanes.resume()
    return run


def numbered(count: int, customers: str = "c") -> list[Placed]:
    """Return orders from 0, of each customer in turn."""
    return [Placed(number=number, customer=customers[number % len(customers)]) for number in range(count)]


def numbers(events: list[Placed]) -> list[int]:
    """Return the orders' numbers."""
    return [event.number for event in events]


async def reasons(orders: Bench, app: App) -> list[tuple[str, ...]]:
    """Return each dead letter's sequence, reason and error."""
    return [
        tuple(letter.headers[f"Understudy-{name}"] for name in ("Sequence", "Reason", "Error"))
        for letter in await orders.dead_letters(app)
    ]


async def ids(orders: Bench, subject: str, header: str = "Nats-Msg-Id") -> list[str]:
    """Return the message ids of what was published to a subject, or another header."""
    js = orders.client.jetstream()
    last = (await js.stream_info("ORDERS")).state.last_seq
    stored = [await js.get_msg("ORDERS", seq=seq) for seq in range(1, last + 1)]
    return [(message.headers or {})[header] for message in stored if message.subject == subject]


@in_both_lanes
async def test_handles_a_stream_in_batches_of_at_most_size(orders: Bench) -> None:
    """Each event once and in stream order, the rest when the first of them has waited."""
    batches: list[list[int]] = []

    class Loading(Actor):
        @handles(batch=Batch(size=32, timeout_seconds=0.1))
        async def placed(self, events: list[Placed]) -> None:
            batches.append(numbers(events))

    app = app_of(Loading)
    cell = await hold(orders, app, *numbered(100))
    await orders.settled(app)
    assert [number for batch in batches for number in batch] == list(range(100))
    assert [len(batch) for batch in batches] == [32, 32, 32, 4]
    await until(lambda: cell.status.counters["handled"] == 100)
    assert cell.status.held == 0


async def test_without_a_timeout_a_batch_is_what_is_there(orders: Bench) -> None:
    """Nothing waits for a full one."""
    batches: list[list[int]] = []

    class Loading(Actor):
        @handles(batch=Batch(size=1000, timeout_seconds=0))
        async def placed(self, events: list[Placed]) -> None:
            batches.append(numbers(events))

    app = app_of(Loading)
    await orders.cell(app)
    for number in range(3):
        await orders.publisher.publish(Placed(number=number))
        await orders.settled(app)
    assert batches == [[0], [1], [2]]


async def test_each_failed_member_ends_as_a_single_delivery_would(orders: Bench) -> None:
    """Retry, Reject, attempts that are used up; the others are acked when the handler returns."""
    runs: Counter[int] = Counter()
    attempts: list[tuple[int, int]] = []

    class Loading(Actor, retry=FAST):
        @handles(batch=Batch(size=6, timeout_seconds=0.05))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            for index, event in enumerate(events):
                runs[event.number] += 1
                attempts.append((event.number, ctx.deliveries[index].attempt))
                if event.number == 1:
                    ctx.fail(index, ValueError("no such order"))
                if event.number == 2:
                    ctx.fail(index, ValueError("no\nsuch order"))
                    ctx.fail(index, Reject("not ours"))
                if event.number == 4 and runs[4] < 3:
                    ctx.fail(index, Retry(delay_seconds=0.01))

    app = app_of(Loading)
    await place(orders, app, *numbered(6))
    cell = await orders.cell(app)
    await orders.settled(app)
    assert runs == {0: 1, 1: 3, 2: 1, 3: 1, 4: 3, 5: 1}
    assert sorted(attempts)[1:4] == [(1, 1), (1, 2), (1, 3)]
    assert sorted(await reasons(orders, app)) == [
        ("2", "exhausted", "ValueError: no such order"),
        ("3", "rejected", "not ours"),
    ]
    await until(lambda: cell.status.counters["handled"] == 4)
    assert cell.status.counters["failed"] == 5


async def test_a_failed_member_keeps_its_key_and_no_other(orders: Bench) -> None:
    """Later ones of its key aren't acked, and come again after it, in stream order."""
    batches: list[list[int]] = []

    class Loading(Actor, key="customer", retry=FAST):
        @handles(batch=Batch(size=8, timeout_seconds=0.05))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            batches.append(numbers(events))
            for index, event in enumerate(events):
                ctx.publish(Billed(number=event.number), index=index)
                if event.number == 2 and ctx.deliveries[index].attempt < 3:
                    ctx.fail(index, ValueError("not yet"))
                if event.number == 4 and len(batches) == 1:
                    # What is held back hasn't failed, nor is it given up.
                    ctx.fail(index, Reject("out of order"))

    app = app_of(Loading)
    cell = await hold(orders, app, *numbered(8, "ab"))
    await orders.settled(app)
    assert batches == [list(range(8)), [2], [2], [4, 6]]
    assert await reasons(orders, app) == []
    assert cell.status.counters["failed"] == 2
    published = [int(one.split(".")[-3]) for one in await ids(orders, "orders.billed")]
    assert sorted(published[:5]) == [1, 2, 4, 6, 8]
    assert published[5] == 3
    assert sorted(published[6:]) == [5, 7]


async def test_with_redeliver_only_the_failed_one_comes_again(orders: Bench) -> None:
    """Though it has a key: the actor has said that its order is less than its progress."""
    batches: list[list[int]] = []

    class Loading(Actor, key="customer", on_failure="redeliver", retry=FAST):
        @handles(batch=Batch(size=4, timeout_seconds=0.05))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            batches.append(numbers(events))
            if len(batches) == 1:
                ctx.fail(1, ValueError("not yet"))

    app = app_of(Loading)
    await hold(orders, app, *numbered(4))
    await orders.settled(app)
    assert batches == [[0, 1, 2, 3], [1]]


async def test_one_order_holds_back_all_that_follows_a_failed_member(orders: Bench) -> None:
    """An event of another handler too; batches and single ones follow each other in stream order."""
    handled: list[list[int]] = []
    settled: list[int] = []
    failed = False

    class Loading(Actor, ordered=True, retry=FAST):
        @handles(batch=Batch(size=5, timeout_seconds=LONG))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            nonlocal failed
            # Not the single one's before.
            assert current_trace.get() is None
            handled.append(numbers(events))
            if not failed:
                failed = True
                ctx.fail(2, ValueError("not yet"))
                settled.extend(numbers(events)[:2])
            else:
                settled.extend(numbers(events))

        @handles
        async def paid(self, event: Paid) -> None:
            settled.append(event.number)

    app = app_of(Loading)
    events = [*numbered(7), Paid(number=7), Placed(number=8), Paid(number=9)]
    await place(orders, app, *events)
    await orders.cell(app)
    await orders.settled(app)
    assert settled == list(range(10))
    assert handled == [[0, 1, 2, 3, 4], [2], [3, 4, 5, 6], [8]]


async def test_a_key_s_order_holds_between_batch_and_single_handlers(orders: Bench) -> None:
    """Whatever fails on the way."""
    seen: dict[str, list[int]] = {}
    failing = {13, 14, 50, 77, 78}

    def note(event: Placed | Paid) -> None:
        seen.setdefault(event.customer, []).append(event.number)

    class Loading(Actor, key="customer", retry=FAST):
        @handles(batch=Batch(size=16, timeout_seconds=0.01))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            await asyncio.sleep(0)
            shut = set()
            for index, event in enumerate(events):
                if event.number in failing:
                    failing.discard(event.number)
                    shut.add(event.customer)
                    ctx.fail(index, ValueError("once"))
                elif event.customer not in shut:
                    note(event)

        @handles
        async def paid(self, event: Paid) -> None:
            await asyncio.sleep(0)
            if event.number in failing:
                failing.discard(event.number)
                raise ValueError("once")
            note(event)

    app = app_of(Loading)
    events = [
        (Paid if number % 7 == 0 else Placed)(number=number, customer=f"c{number % 5}")
        for number in range(300)
    ]
    await place(orders, app, *events)
    await orders.cell(app)
    await orders.settled(app)
    assert seen == {f"c{n}": list(range(n, 300, 5)) for n in range(5)}


async def test_a_raising_handler_fails_all_and_the_last_attempt_is_each_one_s_own(orders: Bench) -> None:
    """What was in bad company isn't given up with it."""
    batches: list[list[int]] = []
    raised: list[int] = []

    class Failing(Actor, retry=FAST):
        @handles(batch=Batch(size=5, timeout_seconds=0.1))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            batches.append(numbers(events))
            if 3 in numbers(events) or len(batches) <= 2:
                raised.append(len(events))
                ctx.publish(Billed(number=0), index=0)
                await ctx.publish(Billed(number=0), now=True)
                ctx.fail(0, Reject("said before it raised"))
                raise ValueError("no way")

    app = app_of(Failing)
    cell = await hold(orders, app, *numbered(5))
    await orders.settled(app)
    assert batches[0] == [0, 1, 2, 3, 4]
    assert await reasons(orders, app) == [("4", "exhausted", "ValueError: no way")]
    assert [3] in batches
    assert Counter(number for batch in batches for number in batch)[3] == 3
    assert cell.status.counters["published"] == len(raised)
    assert cell.status.counters["handled"] == 4


async def test_past_the_timeout_all_have_failed(orders: Bench) -> None:
    """The time is the whole batch's."""
    batches: list[list[int]] = []

    class Loading(Actor, key="customer", retry=FAST, handler_timeout_seconds=0.1):
        @handles(batch=Batch(size=3, timeout_seconds=0.1))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            batches.append([delivery.attempt for delivery in ctx.deliveries])
            if len(batches) == 1:
                await asyncio.Event().wait()

    app = app_of(Loading)
    with capture_logs() as entries:
        await hold(orders, app, *numbered(3, "aab"))
        await orders.settled(app)
    assert sorted(attempt for batch in batches for attempt in batch) == [1, 1, 1, 2, 2, 2]
    (failed,) = (entry for entry in entries if entry["event"] == "batch failed")
    assert failed["error"] == "TimeoutError: placed ran longer than handler_timeout_seconds (0.1 s)"
    assert failed["deliveries"] == 3


async def test_a_def_handler_takes_its_batch_in_a_thread(orders: Bench) -> None:
    """With a context like any other."""
    threads: list[str] = []
    runs: Counter[int] = Counter()

    class Loading(Actor, retry=FAST):
        @handles(batch=Batch(size=4, timeout_seconds=0.05))
        def placed(self, events: list[Placed], ctx: BatchContext) -> list[Billed]:
            threads.append(threading.current_thread().name)
            runs.update(numbers(events))
            for index, event in enumerate(events):
                ctx.publish(Billed(number=event.number), index=index)
                if event.number == 2 and runs[2] == 1:
                    ctx.fail(index, ValueError("once"))
            return [Billed(number=100)]

    app = app_of(Loading)
    cell = await hold(orders, app, *numbered(4))
    await orders.settled(app)
    assert runs == {0: 1, 1: 1, 2: 2, 3: 1}
    assert all(name.startswith("handler") for name in threads)
    assert cell.status.counters["published"] == 4 + 2


async def test_a_member_s_outputs_have_its_id_and_a_batch_s_outputs_that_of_all(orders: Bench) -> None:
    """So what a differently cut batch publishes is no repeat; the same goes for the traces."""
    traces: list[str] = []

    class Loading(Actor):
        @handles(batch=Batch(size=2, timeout_seconds=0.05))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> Billed:
            assert current_trace.get() is None
            traces.extend(delivery.trace_id for delivery in ctx.deliveries)
            await ctx.publish(Billed(number=1), index=1, now=True)
            await ctx.publish(Billed(number=1), index=1)
            await ctx.publish({"sum": 2}, subject="orders.sums")
            return Billed(number=2)

    app = app_of(Loading)
    await hold(orders, app, *numbered(2))
    await orders.settled(app)
    stream = await stream_info(orders.client, "ORDERS")
    assert stream is not None
    prefix = f"shop-loading.{stream['created']}"
    billed = await ids(orders, "orders.billed")
    assert [one for one in billed if f"{prefix}.1-2-" not in one] == [
        f"{prefix}.2.Billed.1",
        f"{prefix}.2.Billed.2",
    ]
    (whole,) = (one for one in billed if f"{prefix}.1-2-" in one)
    assert whole.endswith(".Billed.1")
    (sums,) = await ids(orders, "orders.sums")
    assert sums.split(".")[:-2] == whole.split(".")[:-2]
    parents = await ids(orders, "orders.billed", "traceparent")
    assert {parent.split("-")[1] for parent in parents} & set(traces) == {traces[1]}
    assert len({parent.split("-")[1] for parent in parents}) == 2


@in_both_lanes
async def test_outputs_are_confirmed_before_any_ack(orders: Bench) -> None:
    """While no stream takes what belongs to all, none is acked; what fails a member's own fails it alone."""
    runs: Counter[int] = Counter()

    class Shipping(
        Actor, retry=RetryPolicy(max_attempts=1000, min_delay_seconds=0.02, max_delay_seconds=0.05)
    ):
        @handles(batch=Batch(size=3, timeout_seconds=0.05))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            runs.update(numbers(events))
            for index, event in enumerate(events):
                subject = "parcels.shipped" if event.number == 1 else "orders.shipped"
                ctx.publish({"number": event.number}, index=index, subject=subject)
            ctx.publish({"count": len(events)}, subject="counts.all")

    app = app_of(Shipping)
    await place(orders, app, *numbered(3))
    await orders.cell(app)
    await until(lambda: min(runs.values(), default=0) >= 3 and len(runs) == 3)
    assert (await orders.backlog(app)).ack_pending == 3
    await orders.client.jetstream().add_stream(name="COUNTS", subjects=["counts.>"])

    async def one_is_left() -> bool:
        return (await orders.backlog(app)).ack_pending == 1

    await until(one_is_left)
    before = runs[1]
    await until(lambda: runs[1] > before + 2)
    assert await one_is_left()
    await orders.client.jetstream().add_stream(name="PARCELS", subjects=["parcels.>"])
    await orders.settled(app)
    assert len(await ids(orders, "orders.shipped")) == 2
    assert (await orders.client.jetstream().stream_info("PARCELS")).state.messages == 1


async def test_what_does_not_decode_never_gets_into_a_batch(orders: Bench) -> None:
    """It is dead-lettered, and the batch is filled with what can be read."""
    batches: list[list[int]] = []

    class Loading(Actor, ordered=True):
        @handles(batch=Batch(size=3, timeout_seconds=LONG))
        async def placed(self, events: list[Placed]) -> None:
            batches.append(numbers(events))

    app = app_of(Loading)
    await place(orders, app, *numbered(2))
    await orders.publisher.publish_raw("orders.placed", b"{broken")
    await place(orders, app, *numbered(3))
    await orders.cell(app)
    await orders.settled(app)
    assert batches == [[0, 1], [0, 1, 2]]
    assert [reason[:2] for reason in await reasons(orders, app)] == [("3", "undecodable")]


async def test_a_hundred_unreadable_in_a_row_halt_an_actor_with_batches_too(orders: Bench) -> None:
    """A batch in between says that it can read."""

    class Loading(Actor, ordered=True):
        @handles(batch=Batch(size=3, timeout_seconds=LONG))
        async def placed(self, events: list[Placed]) -> None:
            assert events

    app = app_of(Loading)
    await place(orders, app)
    for number in range(300):
        body = b'{"number": 1}' if number == 90 else b"{}"
        await orders.publisher.publish_raw("orders.placed", body)
    cell = await orders.cell(app)
    await until(lambda: cell.status.state == "halted")
    assert len(await orders.dead_letters(app)) == 90 + 99


async def test_an_open_breaker_holds_a_whole_batch_and_counts_nothing(orders: Bench) -> None:
    """Whether it passes through the handler, or the handler's trial fails; then all goes on."""
    down = True
    attempts: set[int] = set()
    batches: list[list[int]] = []

    class Calling(
        Actor,
        retry=RetryPolicy(max_attempts=3, min_delay_seconds=0.01, max_delay_seconds=0.02),
        breakers=[CircuitBreaker("service", fail_max=1, reset_timeout_seconds=0.1)],
    ):
        @handles(batch=Batch(size=4, timeout_seconds=0.1))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            attempts.update(delivery.attempt for delivery in ctx.deliveries)
            batches.append(numbers(events))
            async with ctx.breaker("service"):
                if down:
                    raise ConnectionError("down")

    app = app_of(Calling)
    cell = await hold(orders, app, *numbered(4))
    await until(lambda: len(batches) >= 4 and cell.status.state == "paused")
    down = False
    await orders.settled(app)
    # The call that opened it was an attempt; no trial was.
    assert attempts <= {1, 2}
    assert await orders.dead_letters(app) == []
    assert cell.status.counters["failed"] == 4


async def test_a_held_batch_of_one_key_is_held_as_it_is(orders: Bench) -> None:
    """Nothing of it is counted, neither what comes first nor what comes later."""
    batches: list[list[int]] = []
    attempts: set[int] = set()

    class Calling(Actor, key="customer", breakers=[CircuitBreaker("service")]):
        @handles(batch=Batch(size=4, timeout_seconds=LONG))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            batches.append(numbers(events))
            attempts.update(delivery.attempt for delivery in ctx.deliveries)
            if len(batches) < 3:
                raise CircuitOpen("service", 0.01)

    app = app_of(Calling)
    await place(orders, app, *numbered(4))
    cell = await orders.cell(app)
    await orders.settled(app)
    assert batches == [[0, 1, 2, 3]] * 3
    assert attempts == {1}
    assert cell.status.counters["failed"] == 0


async def test_a_breaker_that_the_actor_does_not_have_fails_the_batch(orders: Bench) -> None:
    """As any other error does."""

    class Calling(Actor, ordered=True, retry=FAST):
        @handles(batch=Batch(size=2, timeout_seconds=0.01))
        async def placed(self, events: list[Placed]) -> None:
            raise CircuitOpen("elsewhere", 0.01)

    app = app_of(Calling)
    await place(orders, app, *numbered(2))
    cell = await orders.cell(app)
    await orders.settled(app)
    assert len(await orders.dead_letters(app)) == 2
    assert cell.status.state == "up"


async def test_a_rerun_sees_the_events_as_they_were(orders: Bench) -> None:
    """A handler may have changed untyped ones."""
    seen: list[list[object]] = []

    class Loading(Actor, ordered=True, retry=FAST):
        @handles("orders.raw", batch=Batch(size=2, timeout_seconds=LONG))
        async def raw(self, events: list[dict[str, int]], ctx: BatchContext) -> None:
            seen.append([event.pop("number", None) for event in events])
            if len(seen) == 1:
                ctx.fail(0, ValueError("once"))

    app = app_of(Loading)
    await place(orders, app)
    for number in (0, 1):
        await orders.publisher.publish({"number": number}, subject="orders.raw")
    cell = await orders.cell(app)
    await until(lambda: len(seen) == 2)
    await cell.stop()
    assert seen == [[0, 1], [0], [1]]


async def test_a_member_may_be_failed_by_an_open_breaker(orders: Bench) -> None:
    """It is held, the others are acked, and what its key has behind it waits."""
    down = True
    done: list[int] = []
    attempts: set[int] = set()

    class Calling(
        Actor,
        key="customer",
        retry=FAST,
        # Longer than one run takes: what fails as a trial later in it would make a trial of all of it.
        breakers=[CircuitBreaker("service", fail_max=1, reset_timeout_seconds=0.75)],
    ):
        @handles(batch=Batch(size=6, timeout_seconds=0.1))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            shut = set()
            for index, event in enumerate(events):
                if event.customer != "a":
                    done.append(event.number)
                    continue
                attempts.add(ctx.deliveries[index].attempt)
                try:
                    async with ctx.breaker("service"):
                        if down:
                            raise ConnectionError("down")
                except (CircuitOpen, ConnectionError) as error:
                    ctx.fail(index, error)
                    shut.add(event.customer)
                else:
                    if event.customer not in shut:
                        done.append(event.number)

    app = app_of(Calling)
    await place(orders, app, *numbered(6, "ab"))
    cell = await orders.cell(app)
    await until(lambda: sorted(done) == [1, 3, 5] and cell.status.counters["breaker_openings"] > 1)
    assert cell.status.counters["failed"] == 1
    down = False
    await orders.settled(app)
    assert [number for number in done if number % 2 == 0] == [0, 2, 4]
    assert attempts == {1, 2}
    assert await orders.dead_letters(app) == []


async def test_a_stop_hands_over_what_a_batch_has(orders: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, while the subscription still ends; nothing is given back that could be handled."""
    batches: list[list[int]] = []
    handled = asyncio.Event()
    stop = PullSubscription.stop

    class Loading(Actor):
        @handles(batch=Batch(size=100, timeout_seconds=LONG))
        async def placed(self, events: list[Placed]) -> None:
            batches.append(numbers(events))
            handled.set()

    async def stop_after(subscription: PullSubscription) -> None:
        await asyncio.wait_for(handled.wait(), 20)
        await stop(subscription)

    monkeypatch.setattr(PullSubscription, "stop", stop_after)
    app = app_of(Loading)
    await place(orders, app, *numbered(30))
    cell = await orders.cell(app)
    await until(lambda: cell.status.held == 30)
    assert batches == []
    await cell.stop()
    assert batches == [list(range(30))]
    backlog = await orders.backlog(app)
    assert (backlog.pending, backlog.ack_pending) == (0, 0)


async def test_what_a_drain_has_no_time_for_is_given_back(
    orders: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches that haven't begun come again at the next start, uncounted."""
    seen: list[int] = []
    attempts: set[int] = set()
    time_is_up = asyncio.Event()

    class Slow(Actor, retry=RetryPolicy(max_attempts=2), mailbox=Mailbox(capacity=64)):
        @handles(batch=Batch(size=8, timeout_seconds=LONG))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            await time_is_up.wait()
            seen.extend(numbers(events))
            attempts.update(delivery.attempt for delivery in ctx.deliveries)

    stop = Lanes.stop

    async def stop_when_time_is_up(lanes: Lanes) -> None:
        asyncio.get_running_loop().call_soon(time_is_up.set)
        await stop(lanes)

    app = app_of(Slow)
    await place(orders, app, *numbered(60))
    cell = await orders.cell(app)
    assert cell.cell is not None
    mailbox = cell.cell._mailbox
    await until(lambda: len(mailbox) == 60)
    with monkeypatch.context() as hasty:
        hasty.setattr(cells, "DRAIN_SECONDS", 0.05)
        hasty.setattr(Lanes, "stop", stop_when_time_is_up)
        await cell.stop()
    assert seen == list(range(8))
    await cell.start(reason="drained")
    await until(lambda: len(seen) >= 56)
    await cell.stop()
    assert seen == list(range(60))
    assert attempts == {1}


async def test_a_batch_that_fills_holds_up_no_other_handler(orders: Bench) -> None:
    """Although the actor has one lane."""
    paid: list[int] = []

    class Loading(Actor):
        @handles(batch=Batch(size=100, timeout_seconds=LONG))
        async def placed(self, events: list[Placed]) -> None: ...

        @handles
        async def paid(self, event: Paid, ctx: Context) -> None:
            assert ctx.delivery.attempt == 1
            paid.append(event.number)

    app = app_of(Loading)
    await place(orders, app, *numbered(3), Paid(number=3))
    await orders.cell(app)
    await until(lambda: paid == [3])


@in_both_lanes
@pytest.mark.parametrize("double_ack", [False, True])
async def test_acks_of_a_batch_may_be_confirmed(orders: Bench, double_ack: bool) -> None:
    """Each of them, all at once: when the next batch runs the server has them."""
    floors: list[int] = []

    async def note() -> None:
        backlog = await orders.backlog(app)
        floors.append(backlog.pending + backlog.ack_pending)

    class Loading(Actor, double_ack=double_ack):
        @handles(batch=Batch(size=50, timeout_seconds=LONG))
        async def placed(self, events: list[Placed]) -> None:
            await note()

    app = app_of(Loading)
    await place(orders, app, *numbered(200))
    await orders.cell(app)
    await orders.settled(app)
    assert len(floors) == 4
    if double_ack:
        assert floors == [200, 150, 100, 50]


async def test_a_suspect_is_handled_alone_though_it_is_delivered_among_others(orders: Bench) -> None:
    """What is recorded is read before the run; what took its process often enough is given up."""
    batches: list[list[int]] = []

    class Loading(Actor):
        # As many as are left of them: no batch is smaller, whatever comes together.
        @handles(batch=Batch(size=3, timeout_seconds=LONG))
        async def placed(self, events: list[Placed]) -> None:
            batches.append(numbers(events))

    app = app_of(Loading)
    await place(orders, app, *numbered(5))
    pulling = await orders.client.jetstream().pull_subscribe_bind("shop-loading", "ORDERS")
    for message in await pulling.fetch(5):
        await message.nak()
    await orders.client.flush()
    stream = await stream_info(orders.client, "ORDERS")
    assert stream is not None
    store = await AttemptStore.open(orders.client, "shop-attempts", "shop-loading", stream["created"])
    await store.write(2, Attempts(crashes=2, error="killed by SIGSEGV"))
    await store.write(4, Attempts(crashes=3, error="killed by SIGSEGV"))
    await orders.cell(app)
    await orders.settled(app)
    assert sorted(batches) == [[0, 2, 4], [1]]
    error = "its process died 3 times: killed by SIGSEGV"
    assert await reasons(orders, app) == [("4", "crashed", error)]


async def test_a_batch_waits_for_the_store_of_attempts(
    orders: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is counted and nothing is lost while it doesn't answer."""
    monkeypatch.setattr("understudy.runtime.cell.failures.BROKER_RETRY_SECONDS", 0.05)
    batches: list[list[int]] = []
    attempts: list[int] = []
    reads = 0
    read = AttemptStore.read

    async def read_later(store: AttemptStore, sequence: int) -> Attempts:
        nonlocal reads
        reads += 1
        if reads < 4:
            raise BrokerError("not now")
        return await read(store, sequence)

    monkeypatch.setattr(AttemptStore, "read", read_later)

    class Loading(Actor, key="customer", on_failure="redeliver", retry=FAST):
        @handles(batch=Batch(size=4, timeout_seconds=0.05))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            batches.append(numbers(events))
            attempts.extend(delivery.attempt for delivery in ctx.deliveries)
            if len(batches) == 1:
                raise Retry(delay_seconds=0)

    app = app_of(Loading)
    await hold(orders, app, *numbered(4, "ab"))
    await orders.settled(app)
    assert reads >= 4
    assert Counter(attempts) == {1: 4, 2: 4}
    seen = [number for batch in batches[1:] for number in batch]
    assert [number for number in seen if number % 2 == 0] == [0, 2]
    assert [number for number in seen if number % 2 == 1] == [1, 3]


async def test_a_batch_whose_outputs_find_no_broker_waits_for_it(
    orders: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run is no attempt."""
    monkeypatch.setattr("understudy.runtime.cell.failures.BROKER_RETRY_SECONDS", 0.05)
    # As if the connection were lost, which a test can't time.
    monkeypatch.setattr(Failures, "is_postponed", lambda _, error: isinstance(error, PublishError))
    attempts: list[int] = []

    class Shipping(Actor, key="customer", retry=RetryPolicy(max_attempts=1)):
        @handles(batch=Batch(size=4, timeout_seconds=0.05))
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
            attempts.extend(delivery.attempt for delivery in ctx.deliveries)
            await ctx.publish({"count": len(events)}, subject="counts.all", now=len(attempts) > 4)

    app = app_of(Shipping)
    await place(orders, app, *numbered(4, "ab"))
    cell = await orders.cell(app)
    await until(lambda: len(attempts) > 12)
    assert cell.status.held == 4
    await orders.client.jetstream().add_stream(name="COUNTS", subjects=["counts.>"])
    await orders.settled(app)
    assert set(attempts) == {1}
    assert cell.status.counters["failed"] == 0
