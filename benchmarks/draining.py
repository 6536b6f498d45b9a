"""A consumer that drains a full stream, measured from outside.

Its durable is made first and paused; who is measured starts, subscribes and waits; then the durable is
resumed, and its own numbers, looked at every few milliseconds, say how many messages are acknowledged: those
up to the last delivered one that aren't waiting for their ack. The clock runs from the first look that sees
any to the look that sees all.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks import streams
from benchmarks.consumers import Consumer, Running
from benchmarks.errors import BenchmarkFailed, NotConserved
from benchmarks.feeds import Feed
from benchmarks.harness import Contender, Sample, Stage, rate_sample
from benchmarks.processes import cpu_seconds
from benchmarks.streams import ConsumerView

LOOK_EVERY_SECONDS = 0.005
# Of few messages, the last look may come late by no more than it takes to drain a few of them.
FEW = 20_000
LOOK_OFTEN_SECONDS = 0.001
STALL_SECONDS = 30.0


class Draining(Contender):
    """One consumer of one feed.

    Args:
        consumer: which.
        feed: what it drains, filled before.
        messages: how many there are; what the stage says unless given.
        times_a_round: how often each round does it.
    """

    def __init__(
        self, consumer: Consumer, feed: Feed, *, messages: int | None = None, times_a_round: int = 1
    ) -> None:
        self.name = consumer.name
        self.times_a_round = times_a_round
        self._consumer = consumer
        self._feed = feed
        self._messages = messages

    def missing(self, stage: Stage) -> str:
        """Ask the consumer."""
        return self._consumer.missing(stage)

    async def measure(self, stage: Stage) -> Sample:
        """Drain the stream once."""
        client, consumer, stream = stage.client, self._consumer, self._feed.stream
        messages = self._messages or stage.messages
        await streams.delete_consumer(client, stream, consumer.durable)
        await consumer.make_durable(client, self._feed)
        await streams.pause(client, stream, consumer.durable)
        with consumer.started(stage, self._feed) as running:
            await streams.resume(client, stream, consumer.durable)
            sample = await watch(stage, self.name, self._feed, consumer.durable, messages, running)
            acked = running.stop()
        dead = await consumer.count_dead(client)
        await check_conserved(
            stage, self.name, self._feed, consumer.durable, messages, acked=acked, dead=dead
        )
        return sample


async def watch(stage: Stage, name: str, feed: Feed, durable: str, messages: int, running: Running) -> Sample:
    """Look at a durable until everything is acknowledged.

    Args:
        stage: where.
        name: who is watched, for an error.
        feed: what is drained.
        durable: by which consumer.
        messages: how many there are.
        running: whose CPU time counts.
    """
    pause = LOOK_OFTEN_SECONDS if messages <= FEW else LOOK_EVERY_SECONDS
    begin = last = _Look(0, running, stage)
    while last.acked < messages:
        await asyncio.sleep(pause)
        running.check_alive()
        view = await ConsumerView.read(stage.client, feed.stream, durable)
        acked = view.last - view.ack_pending
        now = _Look(acked, running, stage)
        if acked > last.acked:
            if begin.acked == 0 and acked < messages:
                begin = now
            last = now
            stage.progress.at(f"{acked:,} of {messages:,}")
        elif now.time > last.time + STALL_SECONDS:
            raise BenchmarkFailed(
                f"{name}: nothing was acknowledged for {STALL_SECONDS:g} s, at {acked:,} of {messages:,}"
            )
    return rate_sample(
        messages=last.acked - begin.acked,
        seconds=last.time - begin.time,
        cpu_seconds=last.cpu_seconds - begin.cpu_seconds,
        broker_seconds=last.broker_seconds - begin.broker_seconds,
    )


class _Look:
    """What there is to see at one moment."""

    def __init__(self, acked: int, running: Running, stage: Stage) -> None:
        self.acked = acked
        self.time = time.monotonic()
        self.cpu_seconds = running.cpu_seconds()
        self.broker_seconds = cpu_seconds(stage.broker_pid)


async def check_conserved(
    stage: Stage, name: str, feed: Feed, durable: str, messages: int, *, acked: int, dead: int
) -> None:
    """Raise NotConserved unless in = acked + dead + pending, and BenchmarkFailed if anything is dead.

    Args:
        stage: where.
        name: who is checked.
        feed: what was drained.
        durable: by which consumer.
        messages: how many were published.
        acked: how many the process says it acknowledged.
        dead: how many dead letters there are.
    """
    stored = await streams.count_messages(stage.client, feed.stream)
    view = await ConsumerView.read(stage.client, feed.stream, durable)
    pending = view.pending + view.ack_pending
    if not stored == messages == acked + dead + pending or view.ack_floor != messages:
        raise NotConserved(
            f"{name}: {messages:,} published, {stored:,} in the stream; {acked:,} acked as "
            f"the process says, {dead:,} dead letters, {pending:,} pending; after {view.delivered:,} "
            f"deliveries the consumer's ack floor is {view.ack_floor:,}"
        )
    if dead:
        # No handler here has a reason to fail.
        raise BenchmarkFailed(f"{name}: {dead:,} of {messages:,} messages became dead letters")
