"""The apps whose cells are measured; whatever time they take beyond what is written here is the runtime's."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.batches import BATCH
from benchmarks.feeds import BACKLOGS, HEADED, LARGE, PINGS, PLAIN, RELAYED, UNIFORM, ZIPF, Feed
from benchmarks.readings import Ping, Reading, Relayed
from benchmarks.records import VARIABLE, Latencies, open_record
from understudy import (
    Actor,
    App,
    Batch,
    Child,
    CircuitBreaker,
    Context,
    Idempotency,
    StartContext,
    State,
    Stream,
    Supervisor,
    handles,
)

APP = "bench"
# One durable of a feed for all who drain it, as it is of those whose name this is.
SINK = f"{APP}-sink"
ACK_WAIT_SECONDS = 10.0
# Slow, and not so slow that less than a mailbox is fetched ahead.
SLOW_SECONDS = 0.005


def _sink(feed: Feed, **options: Any) -> type[Actor]:
    class Sink(Actor, **options):
        """Does nothing with what it is given."""

        @handles(feed.subject)
        async def reading(self, event: Reading) -> None:
            """Do nothing."""

    return Sink


def _stream(feed: Feed) -> Stream:
    return Stream(feed.stream, subjects=[feed.subject], storage="file")


def _alone(feed: Feed, *actors: type[Actor] | Child) -> App:
    return App(APP, streams=[_stream(feed)], children=actors)


class Probe(Actor):
    """Writes down how long each event was on its way."""

    def __init__(self) -> None:
        self._latencies = Latencies(open_record())

    @handles
    async def ping(self, event: Ping) -> None:
        """Look at the clock."""
        self._latencies.add(event.sent_nanoseconds)


class Owner(Actor, key="station", ack_wait_seconds=ACK_WAIT_SECONDS, hang_timeout_seconds=6.0):
    """Writes down when it handled each event; each generation of its cell has a record of its own."""

    async def on_start(self, ctx: StartContext) -> None:
        """Open the record."""
        self._times = open_record(Path(f"{os.environ[VARIABLE]}.{ctx.generation}"))

    @handles(UNIFORM.subject)
    async def reading(self, event: Reading) -> None:
        """Look at the clock."""
        self._times[event.index] = time.monotonic_ns()


class Tally(State):
    """What is counted of a station."""

    readings: int = 0
    celsius: float = 0.0


def _tally(feed: Feed, **options: Any) -> type[Actor]:
    class Sink(Actor, state=Tally, **options):
        """Counts in its state."""

        @handles(feed.subject)
        async def reading(self, event: Reading, ctx: Context) -> None:
            """Add one."""
            state: Tally = ctx.state
            state.readings += 1
            state.celsius += event.celsius

    return Sink


# On a busy machine, too, it then handles a full mailbox in half of that, and so fetches one.
class Slow(Actor, ack_wait_seconds=60):
    """Takes its time."""

    @handles(LARGE.subject)
    async def reading(self, event: Reading) -> None:  # noqa: ARG002
        """Wait."""
        await asyncio.sleep(SLOW_SECONDS)


def _batches(**options: Any) -> type[Actor]:
    class Batches(Actor, **options):
        """Counts, many at once."""

        handled = 0

        @handles(PLAIN.subject, batch=Batch(size=BATCH))
        async def readings(self, events: list[Reading]) -> None:
            """Count, so that one event instead of a list is an error."""
            self.handled += len(events)

    return Batches


class Relay(Actor):
    """Passes on what it is given."""

    @handles(PLAIN.subject)
    async def reading(self, event: Reading) -> Relayed:
        """Return the same under another subject."""
        return Relayed(number=event.number, station=event.station, celsius=event.celsius, note=event.note)


SERVICE = CircuitBreaker("service")


class Gated(Actor, breakers=[SERVICE]):
    """Says that it needs a service, which is up, and doesn't call it."""

    @handles(PLAIN.subject, breakers=[SERVICE.name])
    async def reading(self, event: Reading) -> None:
        """Do nothing."""


class Guarded(Actor, breakers=[SERVICE]):
    """Calls a service that does nothing, through its breaker."""

    @handles(PLAIN.subject, breakers=[SERVICE.name])
    async def reading(self, event: Reading, ctx: Context) -> None:  # noqa: ARG002
        """Do nothing, guarded."""
        async with ctx.breaker(SERVICE.name):
            pass


class Answering(Actor):
    """Answers who asks."""

    @handles(PLAIN.subject, reply=Reading)
    async def reading(self, event: Reading) -> Reading:
        """Return the same."""
        return event


class End(Actor):
    """Does nothing with what was passed on."""

    @handles
    async def relayed(self, event: Relayed) -> None:
        """Do nothing."""


def _relay(**options: Any) -> App:
    relay = Child(Relay, durable=SINK, **options)
    return App(APP, streams=[_stream(PLAIN), _stream(RELAYED)], children=[relay])


_HOUR = Idempotency(window_seconds=3600)
plain = _alone(PLAIN, _sink(PLAIN))
large = _alone(LARGE, _sink(LARGE))
headed = _alone(HEADED, _sink(HEADED))
unkeyed = _alone(UNIFORM, _sink(UNIFORM))
uniform = _alone(UNIFORM, _sink(UNIFORM, key="station"))
zipf = _alone(ZIPF, _sink(ZIPF, key="station"))
state_uniform = _alone(UNIFORM, _tally(UNIFORM, key="station"))
state_zipf = _alone(ZIPF, _tally(ZIPF, key="station"))
state_whole = _alone(UNIFORM, _tally(UNIFORM))
probe = _alone(PINGS, Probe)
owner = _alone(UNIFORM, Owner)
slow = _alone(LARGE, Slow)
batches = _alone(PLAIN, _batches(durable=SINK))
marked = _alone(PLAIN, _sink(PLAIN, idempotency=_HOUR))
marked_batches = _alone(PLAIN, _batches(durable=SINK, idempotency=_HOUR))
remembered = _alone(PLAIN, _sink(PLAIN, idempotency=Idempotency(window_seconds=3600, store="memory")))
redelivered = _alone(UNIFORM, _sink(UNIFORM, key="station", on_failure="redeliver"))
ordered = _alone(PLAIN, _sink(PLAIN, ordered=True))
double_acked = _alone(PLAIN, _sink(PLAIN, double_ack=True))
double_acked_wide = _alone(PLAIN, _sink(PLAIN, double_ack=True, concurrency=256))
gated = _alone(PLAIN, Child(Gated, durable=SINK))
guarded = _alone(PLAIN, Child(Guarded, durable=SINK))
answering = _alone(PLAIN, Child(Answering, durable=SINK))
relay = _relay()
relay_wide = _relay(concurrency=256)
chain = App(APP, streams=[_stream(PLAIN), _stream(RELAYED)], children=[Relay, End])
chain_wide = App(
    APP, streams=[_stream(PLAIN), _stream(RELAYED)], children=[Child(Relay, concurrency=256), End]
)
backlog_0, backlog_1, backlog_2, backlog_3 = (_alone(feed, _sink(feed)) for feed in BACKLOGS)
cells_1, cells_5, cells_20, cells_60 = (
    _alone(PLAIN, Child(_sink(PLAIN), replicas=replicas)) for replicas in (1, 5, 20, 60)
)


actors_60 = _alone(PLAIN, *(Child(_sink(PLAIN), name=f"sink-{number}") for number in range(60)))


def _on_three_levels(replicas: int) -> App:
    """Below the root two supervisors, below each of these two more, and below each of these an actor."""

    def lower(name: str) -> Supervisor:
        actor = Child(_sink(PLAIN), name=f"sink-{name}", replicas=replicas)
        return Supervisor(f"lower-{name}", children=[actor])

    children = [
        Supervisor(f"upper-{upper}", children=[lower(f"{upper}-{number}") for number in range(2)])
        for upper in range(2)
    ]
    return App(APP, streams=[_stream(PLAIN)], children=children)


levels_20, levels_60 = _on_three_levels(5), _on_three_levels(15)
owners_20 = App(
    APP,
    streams=[_stream(UNIFORM)],
    children=[Child(_sink(UNIFORM, key="station"), name=f"owner-{number}") for number in range(20)],
)
