"""Drain: a full stream, a durable pull consumer with explicit acks, a handler that does nothing.

The consumer is made first and paused; who is measured starts, subscribes and waits; then the consumer is
resumed, and its own numbers, looked at every few milliseconds, say how many messages are acknowledged.
The clock runs from the first look that sees any to the look that sees all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from benchmarks import streams
from benchmarks.consumers import FetchLoop, RunningApp
from benchmarks.errors import BenchmarkFailed, NotConserved
from benchmarks.harness import Sample, Stage
from benchmarks.processes import cpu_seconds
from benchmarks.readings import STREAM
from benchmarks.streams import ConsumerView

LOOK_EVERY_SECONDS = 0.005
STALL_SECONDS = 30.0


class Draining:
    """One consuming process, measured from outside.

    Args:
        process: which.
    """

    def __init__(self, consumer: RunningApp | FetchLoop) -> None:
        self._consumer = consumer

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self._consumer.name

    async def measure(self, stage: Stage) -> Sample:
        """Drain the stream once."""
        client, consumer = stage.client, self._consumer
        await streams.delete_consumer(client, consumer.durable)
        await consumer.make_durable(client)
        await streams.pause(client, consumer.durable)
        with consumer.started(stage) as running:
            await streams.resume(client, consumer.durable)
            sample = await _watch(stage, consumer.durable, running.pid, running.check_alive)
            acked = running.stop()
        await self._check(stage, acked)
        return sample

    async def _check(self, stage: Stage, acked: int) -> None:
        stored = await streams.count_messages(stage.client, STREAM)
        dead = await self._consumer.count_dead(stage.client)
        view = await ConsumerView.read(stage.client, self._consumer.durable)
        pending = view.pending + view.ack_pending
        if not stored == stage.messages == acked + dead + pending or view.ack_floor != stage.messages:
            raise NotConserved(
                f"{self.name}: {stage.messages:,} published, {stored:,} in the stream; {acked:,} acked as "
                f"the process says, {dead:,} dead letters, {pending:,} pending; after {view.delivered:,} "
                f"deliveries the consumer's ack floor is {view.ack_floor:,}"
            )


class Drain:
    """The scenario."""

    name = "drain"
    description = "consume a full stream: typed decode, no-op async handler, explicit ack of each"
    share = 1.0
    contenders = (
        Draining(RunningApp()),
        Draining(FetchLoop(loop="asyncio")),
        Draining(FetchLoop(loop="uvloop")),
    )

    async def prepare(self, stage: Stage) -> None:
        """Fill the stream once: each run reads it through a new consumer."""
        await streams.make_stream(stage.client)
        await streams.fill_stream(stage.client, stage.messages)


async def _watch(stage: Stage, durable: str, pid: int, check_alive: Callable[[], None]) -> Sample:
    begin = last = (time.monotonic(), 0, cpu_seconds(pid))
    while last[1] < stage.messages:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        check_alive()
        view = await ConsumerView.read(stage.client, durable)
        acked = stage.messages - view.pending - view.ack_pending
        now = (time.monotonic(), acked, cpu_seconds(pid))
        if acked > last[1]:
            if begin[1] == 0 and acked < stage.messages:
                begin = now
            last = now
        elif now[0] > last[0] + STALL_SECONDS:
            raise BenchmarkFailed(
                f"consumer {durable}: nothing was acknowledged for {STALL_SECONDS:g} s, at {acked:,} of "
                f"{stage.messages:,}"
            )
    return Sample(messages=last[1] - begin[1], seconds=last[0] - begin[0], cpu_seconds=last[2] - begin[2])
