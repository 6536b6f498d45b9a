"""Delayed events: they come when they are due, once, whatever happens until then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.cells import Bench, CellRun, bench, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.errors import DeclarationError, TopologyError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import RetryPolicy
from understudy.actors.state import State
from understudy.runtime.app import App
from understudy.runtime.cell.context import CellContext
from understudy.runtime.cell.counts import TIMER_PHASES, counts_path, read_counts
from understudy.runtime.jetstream import topology
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stream import Stream


class Set(Event, subject="alarms.set"):
    """Has the actor do something with a timer; what it did last is in `said`."""

    name: str = "alarm"
    delay_seconds: float = 0.3
    text: str = ""
    cancel: str = ""
    fails: bool = False


class Rang(Event, subject="alarms.rang"):
    text: str


class Count(State):
    rung: int = 0


class Clock(Actor, retry=RetryPolicy(max_attempts=3, min_delay_seconds=0, max_delay_seconds=0)):
    """Sets timers and hears them."""

    rung: list[tuple[str, float, str]]
    said: list[bool]

    @handles
    async def set(self, event: Set, ctx: Context) -> None:
        if event.text:
            await ctx.publish(
                Rang(text=event.text), delay_seconds=event.delay_seconds, timer=event.name, now=event.fails
            )
        if event.cancel:
            self.said.append(await ctx.cancel(event.cancel))
        if event.fails and ctx.delivery.attempt == 1:
            raise RuntimeError("once more")

    @handles
    async def rang(self, event: Rang, ctx: Context) -> None:
        self.rung.append((event.text, time.time(), ctx.delivery.idempotency_key))


class Keeper(Clock, state=Count):
    """Sets its timers with a commit."""

    @handles
    async def set(self, event: Set, ctx: Context) -> None:
        ctx.state.rung += 1
        ctx.publish(Rang(text=event.text), delay_seconds=event.delay_seconds)


def app(actor: type[Actor] = Clock, **options: Any) -> App:
    """One actor that sets timers in the stream that it reads."""
    stream = Stream("ALARMS", subjects=["alarms.>"], **({"timers": True} | options))
    return App("shop", streams=[stream], children=[actor])


@pytest.fixture
async def shop(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker, and what a test needs around it."""
    Clock.rung, Clock.said = [], []
    async with bench(nats_server.url, tmp_path) as made:
        yield made


def timers(run: CellRun, actor: str = "clock") -> dict[str, int]:
    """What a cell has counted of its timers."""
    counted = read_counts(counts_path(run.directory, f"{actor}/0")).counters
    return {phase: counted[f"timers_{phase}"] for phase in TIMER_PHASES}


def texts() -> list[str]:
    """What has rung so far."""
    return [text for text, _, _ in Clock.rung]


async def holds(shop: Bench, count: int) -> None:
    """Wait until the stream has so many messages, schedules included."""

    async def does() -> bool:
        return (await shop.client.jetstream().stream_info("ALARMS")).state.messages == count

    await until(does)


async def test_it_comes_once_and_not_before_it_is_due(shop: Bench) -> None:
    await shop.cell(app())
    begun = time.time()
    await shop.publisher.publish(Set(text="one", delay_seconds=0.5))
    await until(lambda: texts() == ["one"])
    assert Clock.rung[0][1] >= begun + 0.5
    # The server drops the message id of what it publishes, so that another header keeps it.
    key = Clock.rung[0][2]
    assert key.startswith("shop-clock.")
    assert key.endswith(".1.Rang.1")
    # The schedule is gone.
    await holds(shop, 2)


@pytest.mark.parametrize("actor", [Clock, Keeper])
async def test_it_comes_in_the_order_of_what_is_due(shop: Bench, actor: type[Actor]) -> None:
    await shop.cell(app(actor))
    for text, delay in (("late", 3.0), ("early", 0.3)):
        await shop.publisher.publish(Set(name=text, text=text, delay_seconds=delay))
    await until(lambda: texts() == ["early", "late"])


async def test_a_timer_that_is_set_again_takes_the_place_of_the_one_before(shop: Bench) -> None:
    await shop.cell(app())
    await shop.publisher.publish(Set(text="first", delay_seconds=600.0))
    await shop.publisher.publish(Set(text="second", delay_seconds=0.3))
    await until(lambda: texts() == ["second"])
    # The first one's schedule is gone too.
    await holds(shop, 3)


async def test_a_cancelled_timer_never_comes(shop: Bench) -> None:
    run = await shop.cell(app())
    await shop.publisher.publish(Set(text="never", delay_seconds=600.0))
    await shop.publisher.publish(Set(cancel="alarm"))
    await shop.publisher.publish(Set(cancel="alarm"))
    # Set and cancelled in one run.
    await shop.publisher.publish(Set(text="never", delay_seconds=600.0, name="b.c", cancel="b.c"))
    await shop.publisher.publish(Set(name="last", text="last", delay_seconds=0.3))
    await until(lambda: texts() == ["last"])
    assert Clock.said == [True, False, True]
    # What has set them and what has rung is there, and no schedule.
    await holds(shop, 6)
    # Of the four, one was cancelled before it went out.
    await until(lambda: timers(run) == {"set": 2, "cancelled": 1, "fired": 1})


async def test_a_run_that_is_repeated_sets_it_once(shop: Bench) -> None:
    await shop.cell(app())
    await shop.publisher.publish(Set(text="once", fails=True))
    await shop.publisher.publish(Set(name="last", text="last", delay_seconds=1.0))
    await until(lambda: {"once", "last"} <= set(texts()))
    assert sorted(texts()) == ["last", "once"]


async def test_it_survives_the_death_of_the_broker(shop: Bench, nats_server: NatsServer) -> None:
    """One that falls due meanwhile comes when the broker is back, one that doesn't when it is due."""
    await shop.cell(app())
    begun = time.time()
    await shop.publisher.publish(Set(name="a", text="meanwhile", delay_seconds=0.2))
    await shop.publisher.publish(Set(name="b", text="after", delay_seconds=4.0))

    async def are_set() -> bool:
        return (await shop.client.jetstream().stream_info("ALARMS")).state.last_seq >= 4

    await until(are_set)
    nats_server.kill()
    await asyncio.sleep(max(0.0, begun + 0.5 - time.time()))
    nats_server.start()
    await until(lambda: "after" in texts())
    assert texts() == ["meanwhile", "after"]
    assert Clock.rung[1][1] >= begun + 4.0


async def test_what_no_stream_with_timers_holds_is_a_dead_letter_that_says_so(shop: Bench) -> None:
    clock = app(timers=False)
    await shop.cell(clock)
    await shop.publisher.publish(Set(text="one"))

    async def is_given_up() -> bool:
        return bool(await shop.dead_letters(clock))

    await until(is_given_up)
    letter = (await shop.dead_letters(clock))[0]
    assert str(letter.headers["Understudy-Error"]).startswith(
        "EncodeError: an event for 'alarms.rang' can't be delayed: no stream of the app"
    )


async def test_a_server_without_schedules_is_refused_before_anything_is_made(
    shop: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the stream's configuration and deliver at once."""
    monkeypatch.setattr(topology, "too_old", lambda _: "2.11.9")
    with pytest.raises(TopologyError) as caught:
        await ensure_topology(shop.client, app().spec(), apply=True)
    assert str(caught.value) == (
        "the server is nats-server 2.11.9, and timers (stream ALARMS) need 2.12 or later; update it, or "
        "declare the stream without timers=True"
    )
    await ensure_topology(shop.client, app(timers=False).spec(), apply=True)


async def test_a_stream_that_is_there_gets_timers_on_request(shop: Bench) -> None:
    await ensure_topology(shop.client, app(timers=False).spec(), apply=True)
    with pytest.raises(TopologyError, match="allow_msg_schedules"):
        await ensure_topology(shop.client, app().spec(), apply=True)
    await ensure_topology(shop.client, app().spec(), apply=True, force=True)
    await shop.cell(app())
    await shop.publisher.publish(Set(text="one"))
    await until(lambda: texts() == ["one"])


async def test_a_name_without_a_time_is_an_error() -> None:
    nothing: Any = None
    context = CellContext(nothing, nothing, None, nothing, nothing, nothing, nothing)
    with pytest.raises(DeclarationError) as caught:
        context.publish(Rang(text=""), timer="alarm")
    assert str(caught.value) == "ctx.publish: timer 'alarm' has no time; give delay_seconds= too"
    with pytest.raises(DeclarationError, match="delay_seconds is -1"):
        context.publish(Rang(text=""), delay_seconds=-1)
    with pytest.raises(DeclarationError, match="give the name"):
        await context.cancel("")
