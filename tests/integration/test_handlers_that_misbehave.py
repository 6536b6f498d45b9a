"""What users' code may do to a cell, and what becomes of the delivery and of the cell."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from support.cells import Bench, in_both_lanes, until
from understudy.actors.actor import Actor
from understudy.actors.context import Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject
from understudy.actors.policies import CircuitBreaker, RetryPolicy
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.jetstream.api import stream_info
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stores.attempts import Attempts, AttemptStore
from understudy.runtime.stream import Stream

LEAKED = "exhausted: RuntimeError: placed let a cancellation of its own escape"
NO_SUBJECT = (
    "exhausted: EncodeError: {} has no subject to be published to; "
    "make it an Event, or publish it with subject="
)
FAST = RetryPolicy(max_attempts=2, min_delay_seconds=0.01, max_delay_seconds=0.05)


class Placed(Event, subject="orders.placed"):
    number: int = 0


class Billed(Event, subject="orders.billed"):
    number: int = 0


class Unwritable:
    """A value that no body can hold."""


def app_of(actor: type[Actor], **options: Any) -> App:
    """Return the app shop with one actor, called billing."""
    return App(
        "shop",
        streams=[Stream("ORDERS", subjects=["orders.>"])],
        children=[Child(actor, name="billing", **options)],
    )


async def errors_of(orders: Bench, app: App) -> list[str]:
    """Return reason and error of each dead letter."""
    return [
        f"{letter.headers['Understudy-Reason']}: {letter.headers['Understudy-Error']}"
        for letter in await orders.dead_letters(app)
    ]


async def leak_a_cancellation() -> None:
    """Await a task that somebody else cancelled."""
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def cancel_itself_and_wait() -> None:
    cancel_itself()
    await asyncio.sleep(60)


async def raise_(error: BaseException) -> Any:
    raise error


class BrokenText(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (lambda: raise_(SystemExit(3)), "exhausted: SystemExit: 3"),
        (lambda: raise_(KeyboardInterrupt()), "exhausted: KeyboardInterrupt"),
        (lambda: raise_(GeneratorExit()), "exhausted: GeneratorExit"),
        (leak_a_cancellation, LEAKED),
        (cancel_itself_and_wait, LEAKED),
        (lambda: raise_(asyncio.CancelledError()), LEAKED),
        (lambda: asyncio.sleep(0, 7), NO_SUBJECT.format("int")),
        (lambda: asyncio.sleep(0, [Billed(), None]), NO_SUBJECT.format("NoneType")),
        (lambda: raise_(ValueError()), "exhausted: ValueError"),
        (lambda: raise_(BrokenText()), "exhausted: BrokenText: its text can't be made"),
        (lambda: raise_(OSError("no \udcff")), "exhausted: OSError: no \\udcff"),
        (lambda: raise_(Reject("no \udcff\n")), "rejected: no \\udcff"),
        (
            lambda: raise_(ExceptionGroup("two", [ValueError(1), KeyError(2)])),
            "exhausted: ExceptionGroup: two (2 sub-exceptions)",
        ),
    ],
    ids=[
        "exit",
        "interrupt",
        "generator-exit",
        "leak",
        "cancel itself",
        "cancel",
        "number",
        "None",
        "no text",
        "broken text",
        "surrogate",
        "reject",
        "group",
    ],
)
async def test_whatever_a_coroutine_does_is_a_failed_attempt(
    orders: Bench, handler: Callable[[], Any], error: str
) -> None:
    """It is counted and in the end a dead letter with its text; the cell goes on with the next."""
    seen: list[int] = []

    class Billing(Actor, retry=FAST):
        @handles
        async def placed(self, event: Placed) -> Any:
            if event.number == 1:
                return await handler()
            seen.append(event.number)
            return None

    app = app_of(Billing)
    cell = await orders.cell(app)
    for number in (1, 2):
        await orders.publisher.publish(Placed(number=number))
    await orders.settled(app)
    assert seen == [2]
    assert await errors_of(orders, app) == [error]
    assert cell.status.state == "up"


async def test_a_cancellation_that_a_handler_never_meets_hits_nothing_else(orders: Bench) -> None:
    """A handler that cancels its own task, and returns before anything is waited for, has returned."""

    class Billing(Actor, retry=FAST):
        @handles
        async def placed(self, event: Placed) -> Billed:
            cancel_itself()
            return Billed(number=event.number)

    app = app_of(Billing)
    cell = await orders.cell(app)
    for number in (1, 2):
        await orders.publisher.publish(Placed(number=number))
    await orders.settled(app)
    assert await errors_of(orders, app) == []
    assert cell.status.counters["handled"] == 2
    assert cell.status.state == "up"


def raise_in_thread(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (lambda: sys.exit("enough"), "exhausted: SystemExit: enough"),
        (lambda: next(iter([])), "exhausted: RuntimeError: the handler raised StopIteration"),
        (lambda: raise_in_thread(ValueError("no")), "exhausted: ValueError: no"),
        (lambda: raise_in_thread(asyncio.CancelledError()), LEAKED),
        (lambda: Unwritable(), NO_SUBJECT.format("Unwritable")),
    ],
    ids=["exits", "stop iteration", "raises", "cancels", "unpublishable"],
)
async def test_whatever_a_thread_does_is_a_failed_attempt(
    orders: Bench, handler: Callable[[], Any], error: str
) -> None:
    """As with a coroutine."""
    threads: set[str] = set()

    class Billing(Actor, retry=FAST):
        @handles
        def placed(self, event: Placed) -> Any:
            threads.add(threading.current_thread().name.rpartition("_")[0])
            return handler() if event.number == 1 else Billed()

    app = app_of(Billing)
    cell = await orders.cell(app)
    for number in (1, 2):
        await orders.publisher.publish(Placed(number=number))
    await orders.settled(app)
    assert threads == {"handler"}
    assert await errors_of(orders, app) == [error]
    billed = await orders.client.jetstream().get_last_msg("ORDERS", "orders.billed")
    assert billed.headers is not None
    assert billed.headers["ce-type"] == "Billed"
    assert cell.status.state == "up"


@in_both_lanes
async def test_collected_events_of_a_failed_run_are_dropped_and_those_sent_now_are_not(
    orders: Bench,
) -> None:
    """Both go under ids that the next run makes again, so that each is stored once."""

    class Billing(Actor, retry=FAST):
        @handles
        async def placed(self, event: Placed, ctx: Context) -> None:
            await ctx.publish(Billed(number=1), now=True)
            await ctx.publish({"plain": True}, subject="orders.plain")
            if ctx.delivery.attempt == 1:
                raise ValueError

    app = app_of(Billing)
    await orders.cell(app)
    await orders.publisher.publish(Placed())
    await orders.settled(app)
    info = await orders.client.jetstream().stream_info("ORDERS", subjects_filter=">")
    assert info.state.subjects == {"orders.placed": 1, "orders.billed": 1, "orders.plain": 1}
    plain = await orders.client.jetstream().get_last_msg("ORDERS", "orders.plain")
    assert plain.data == b"\x81\xa5plain\xc3"


async def test_a_subject_from_data_that_nothing_can_be_published_to_fails_the_attempt(orders: Bench) -> None:
    """A line break in it would be a command to the server."""

    class Billing(Actor, retry=FAST):
        @handles
        async def placed(self, event: Placed, ctx: Context) -> None:
            ctx.publish(Billed(), subject="orders.billed\r\nPUB x 0\r\n\r\n")

    app = app_of(Billing)
    await orders.cell(app)
    await orders.publisher.publish(Placed())
    await orders.settled(app)
    assert await errors_of(orders, app) == [
        "exhausted: EncodeError: nothing can be published to the subject "
        "'orders.billed\\r\\nPUB x 0\\r\\n\\r\\n': "
        "its tokens must not be empty nor hold '*', '>', white space or control characters"
    ]


async def test_a_coroutine_that_swallows_its_cancellation_and_returns_is_done(orders: Bench) -> None:
    """Its return settles the delivery, and the lane isn't left half cancelled for the next one."""
    cancelling: list[int] = []

    class Billing(Actor, retry=FAST, handler_timeout_seconds=0.1):
        @handles
        async def placed(self, event: Placed) -> None:
            task = asyncio.current_task()
            assert task is not None
            cancelling.append(task.cancelling())
            if event.number == 1:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
            elif event.number == 2:
                await leak_a_cancellation()

    app = app_of(Billing)
    await orders.cell(app)
    for number in (1, 2, 3):
        await orders.publisher.publish(Placed(number=number))
    await orders.settled(app)
    assert set(cancelling) == {0}
    assert await errors_of(orders, app) == [LEAKED]


async def test_past_its_timeout_the_error_says_the_option(orders: Bench) -> None:
    """So that a reader of the dead letter knows what to change."""

    class Billing(Actor, retry=FAST, handler_timeout_seconds=0.05):
        @handles
        async def placed(self, event: Placed) -> None:
            await asyncio.sleep(60)

    app = app_of(Billing)
    await orders.cell(app)
    await orders.publisher.publish(Placed())
    await orders.settled(app)
    assert await errors_of(orders, app) == [
        "exhausted: TimeoutError: placed ran longer than handler_timeout_seconds (0.05 s)"
    ]


async def test_a_handler_s_rejection_stands_though_its_trial_failed(orders: Bench) -> None:
    """A failed trial isn't counted as an attempt, but a Reject is the handler's last word."""
    calls: list[int] = []

    class Billing(
        Actor, retry=FAST, breakers=[CircuitBreaker("bank", fail_max=1, reset_timeout_seconds=0.05)]
    ):
        @handles
        async def placed(self, event: Placed, ctx: Context) -> None:
            try:
                async with ctx.breaker("bank"):
                    # The retry may come before the trial's time, and meets the open breaker then.
                    calls.append(event.number)
                    raise ConnectionError
            except ConnectionError:
                if len(calls) > 1:
                    raise Reject("unheard of") from None
                raise

    app = app_of(Billing)
    await orders.cell(app)
    await orders.publisher.publish(Placed())
    await orders.settled(app)
    assert await errors_of(orders, app) == ["rejected: unheard of"]
    assert len(calls) == 2


async def test_an_undeclared_breaker_fails_the_attempt_with_its_remedy(orders: Bench) -> None:
    """It is a mistake in the program, and is said in the dead letter."""

    class Billing(Actor, retry=FAST, breakers=[CircuitBreaker("bank")]):
        @handles
        async def placed(self, event: Placed, ctx: Context) -> None:
            async with ctx.breaker("bnak"):
                raise AssertionError

    app = app_of(Billing)
    await orders.cell(app)
    await orders.publisher.publish(Placed())
    await orders.settled(app)
    assert await errors_of(orders, app) == [
        "exhausted: DeclarationError: no circuit breaker named 'bnak' (declared: bank); "
        "add CircuitBreaker('bnak') to the actor's or the app's breakers"
    ]


async def test_what_can_t_be_read_says_why(orders: Bench) -> None:
    """The body, its content type, or the key that it doesn't hold."""

    class Billing(Actor, retry=FAST, key=lambda event: event["customer"]):
        @handles("orders.placed")
        async def placed(self, event: dict[str, Any]) -> None: ...

    app = app_of(Billing)
    await orders.cell(app)
    for body, headers in (
        (b'{"customer": 1}', {"Content-Type": "text/plain"}),
        (b'{"customer": 1', {"Content-Type": "application/json"}),
        (b'{"customer": 1}', {"Content-Type": "application/msgpack"}),
        (b"", None),
        (b'{"client": 1}', None),
        (b'{"customer": [1]}', None),
        (b'{"customer": null}', {"Content-Type": "application/json; charset=utf-8"}),
    ):
        await orders.client.jetstream().publish("orders.placed", body, headers=headers)
    await orders.settled(app)
    assert sorted(await errors_of(orders, app)) == [
        "undecodable: dict: Expected `object`, got `int`",
        "undecodable: dict: Input data was truncated",
        "undecodable: dict: content type 'text/plain' is not read; "
        "send application/msgpack or application/json",
        "undecodable: dict: the body is empty",
        "undecodable: the key can't be computed: KeyError: 'customer'",
        "undecodable: the key can't be computed: TypeError: unhashable type: 'list'",
    ]


async def test_a_field_that_is_no_key_makes_a_delivery_unreadable(orders: Bench) -> None:
    """Without its key it can't be kept in order, so the handler doesn't see it."""
    seen: list[dict[str, Any]] = []

    class Billing(Actor, retry=FAST, key="customer"):
        @handles("orders.placed")
        async def placed(self, event: dict[str, Any]) -> None:
            seen.append(event)

    app = app_of(Billing)
    await orders.cell(app)
    await orders.client.jetstream().publish("orders.placed", b'{"client": 1}')
    await orders.settled(app)
    assert await errors_of(orders, app) == [
        "undecodable: dict: 'customer' can't be read as the actor's key: 'customer'"
    ]
    assert seen == []


@in_both_lanes
async def test_a_subject_without_a_handler_is_given_back_uncounted_and_warned_of_once(
    orders: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of the app may have one, so that it isn't lost."""
    from understudy.runtime.cell import pipeline

    monkeypatch.setattr(pipeline, "NO_HANDLER_DELAY_SECONDS", 0.1)
    seen: list[int] = []

    class Old(Actor, retry=FAST):
        @handles
        async def placed(self, event: Placed) -> None:
            seen.append(event.number)

    class New(Old):
        @handles
        async def billed(self, event: Billed, ctx: Context) -> None:
            seen.append(-event.number)
            assert ctx.delivery.attempt == 1

    newer, older = app_of(New), app_of(Old)
    with capture_logs() as logs:
        first = await orders.cell(newer)
        await first.stop()
        first.app = older
        await first.start()
        await orders.publisher.publish(Billed(number=7))
        await orders.publisher.publish(Billed(number=8))
        await orders.publisher.publish(Placed(number=1))
        await until(lambda: seen == [1] and first.status.counters["retried"] >= 6)
        assert first.status.counters["failed"] == 0
        assert first.status.counters["dead_lettered"] == 0
    warned = [entry for entry in logs if entry["event"] == "no handler for this subject"]
    assert [(entry["subject"], entry["log_level"]) for entry in warned] == [("orders.billed", "warning")]
    await first.stop()
    first.app = newer
    await first.start()
    await orders.settled(newer)
    assert sorted(seen) == [-8, -7, 1]


async def test_what_was_to_be_given_up_as_deadly_never_runs_again(orders: Bench) -> None:
    """Though its dead letter could not be written when its last process had died."""
    seen: list[int] = []

    class Billing(Actor, retry=FAST):
        @handles
        async def placed(self, event: Placed) -> None:
            seen.append(event.number)

    app = app_of(Billing)
    await ensure_topology(orders.client, app.spec(), apply=True)
    for number in (1, 2):
        await orders.publisher.publish(Placed(number=number))
    js = orders.client.jetstream()
    pulling = await js.pull_subscribe_bind("shop-billing", "ORDERS")
    for message in await pulling.fetch(2):
        await message.nak()
    await orders.client.flush()
    stream = await stream_info(orders.client, "ORDERS")
    assert stream is not None
    store = await AttemptStore.open(orders.client, "shop-attempts", "shop-billing", stream["created"])
    await store.write(1, Attempts(crashes=3, error="killed by SIGSEGV"))
    await store.write(2, Attempts(crashes=2, error="killed by SIGSEGV"))
    await orders.cell(app)
    await orders.settled(app)
    assert seen == [2]
    assert await errors_of(orders, app) == ["crashed: its process died 3 times: killed by SIGSEGV"]


class Hooked(Actor):
    """Says which hooks ran, and fails where it is told to."""

    def __init__(self, calls: list[str], failing: str = "", error: BaseException | None = None) -> None:
        self.calls = calls
        self.failing = failing
        self.error = error or ValueError("broken")

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise self.error

    async def on_start(self, ctx: StartContext) -> None:
        self.call(f"start {ctx.app} {ctx.actor} {ctx.cell} {ctx.generation}")

    def on_stop(self) -> None:
        self.call("stop")

    async def on_restart(self, reason: str) -> None:
        self.call(f"restart {reason}")

    @handles
    async def placed(self, event: Placed) -> None:
        self.call(f"placed {event.number}")


def hooked(calls: list[str], failing: str = "", error: BaseException | None = None) -> App:
    """Return an app whose actor notes its hooks."""

    class Noting(Hooked):
        def __init__(self) -> None:
            super().__init__(calls, failing, error)

    return app_of(Noting)


async def test_hooks_run_in_order(orders: Bench) -> None:
    """A first start has no on_restart; a replacement has it before on_start, with the reason."""
    calls: list[str] = []
    app = hooked(calls)
    cell = await orders.cell(app)
    await orders.publisher.publish(Placed(number=1))
    await orders.settled(app)
    await cell.stop()
    await cell.start(reason="killed by SIGKILL")
    await cell.stop()
    assert calls == [
        "start shop billing billing/0 1",
        "placed 1",
        "stop",
        "restart killed by SIGKILL",
        "start shop billing billing/0 2",
        "stop",
    ]


@pytest.mark.parametrize(
    "failing", ["start shop billing billing/0 2", "restart killed by SIGKILL"], ids=["on_start", "on_restart"]
)
async def test_a_hook_that_raises_fails_the_start_and_takes_no_event(orders: Bench, failing: str) -> None:
    """Not a single delivery is taken, and the status says why; the next start goes on."""
    calls: list[str] = []
    app = hooked(calls, failing)
    cell = await orders.cell(app)
    await cell.stop()
    await orders.publisher.publish(Placed(number=1))
    with pytest.raises(ValueError, match="broken"):
        await cell.start(reason="killed by SIGKILL")
    assert (cell.status.state, cell.status.reason) == ("failed", "ValueError: broken")
    assert "stop" not in calls[2:]
    assert (await orders.backlog(app)).ack_pending == 0
    await cell.start()
    await orders.settled(app)
    assert calls[-2:] == ["start shop billing billing/0 3", "placed 1"]
    assert list(orders.directory.glob("*.cell")) == [cell.path]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)])
async def test_an_on_stop_that_raises_is_logged_and_the_stop_goes_on(
    orders: Bench, error: BaseException
) -> None:
    """Everything was given back by then, and no file is left."""
    calls: list[str] = []
    app = hooked(calls, "stop", error)
    cell = await orders.cell(app)
    with capture_logs() as logs:
        await cell.stop()
    assert calls[-1] == "stop"
    assert [entry["event"] for entry in logs] == ["on_stop failed", "drained"]
    assert list(orders.directory.glob("*.cell")) == []
