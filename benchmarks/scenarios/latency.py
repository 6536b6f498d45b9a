"""Latency: from the moment of publishing to the handler, by the clock that all processes share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from statistics import quantiles

import msgspec

from benchmarks import streams
from benchmarks.consumers import Consumer, Running
from benchmarks.draining import check_conserved, watch
from benchmarks.errors import BenchmarkFailed, NotConserved
from benchmarks.feeds import PINGS
from benchmarks.harness import CPU, RATE, Contender, Goal, Measure, Sample, Scenario, Stage
from benchmarks.peer_consumers import Careful
from benchmarks.processes import Program, directory_in_memory
from benchmarks.records import VARIABLE, Latencies, make_record, open_record
from benchmarks.running_app import PUBLIC_LANE, RunningApp
from benchmarks.scenarios.publish import Result

P99 = Measure(key="p99_milliseconds", heading="p99 ms", decimals=2)
P50 = Measure(key="p50_milliseconds", heading="p50 ms", decimals=2)
# What is published in the first second isn't counted.
WARM_UP_SECONDS = 1.0


class Arriving(Contender):
    """One consumer of events that are published at a steady rate.

    Args:
        consumer: which; its handler writes latencies down.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.name = consumer.name
        self.rate = 0.0
        self._consumer = consumer

    async def measure(self, stage: Stage) -> Sample:
        """Publish for a while at the rate that was set."""
        return await self.run(stage, messages=round(self.rate * (stage.seconds + WARM_UP_SECONDS)))

    async def run(self, stage: Stage, *, messages: int) -> Sample:
        """Publish so many, and wait until all are handled."""
        client, consumer = stage.client, self._consumer
        await streams.make_stream(client, PINGS)
        await consumer.make_durable(client, PINGS)
        with directory_in_memory(stage.directory) as directory:
            record = directory / "latencies"
            make_record(record, messages + 1)
            with consumer.started(stage, PINGS, {VARIABLE: str(record)}) as running:
                sample = await self._publish(stage, messages, running)
                acked = running.stop()
            latencies = Latencies(open_record(record)).all()
        dead = await consumer.count_dead(client)
        await check_conserved(stage, self.name, PINGS, consumer.durable, messages, acked=acked, dead=dead)
        if len(latencies) != messages:
            raise NotConserved(f"{self.name}: {messages:,} published, {len(latencies):,} handled")
        counted = latencies[round(self.rate * WARM_UP_SECONDS) :]
        percentiles = quantiles(counted, n=100, method="inclusive")
        return {
            P99.key: percentiles[98] / 1e6,
            P50.key: percentiles[49] / 1e6,
            **sample,
        }

    async def _publish(self, stage: Stage, messages: int, running: Running) -> Sample:
        log = stage.directory / "publisher.log"
        command = Program.module(
            "benchmarks.peers.paced_publisher", stage.url, PINGS.subject, str(messages), str(self.rate)
        )
        begin = time.monotonic()
        cpu_before = running.cpu_seconds()
        with Program(*command, log=log) as program:
            while program.process.poll() is None:
                running.check_alive()
                if self.rate:
                    stage.progress.at(f"{time.monotonic() - begin:.0f} of {messages / self.rate:.0f} s")
                await asyncio.sleep(0.05)
            result = msgspec.json.decode(program.read_line(), type=Result)
        if result.confirmed != messages:
            raise BenchmarkFailed(f"{messages:,} published, {result.confirmed:,} confirmed")
        published = time.monotonic()
        await watch(stage, self.name, PINGS, self._consumer.durable, messages, running)
        return {
            RATE.key: messages / result.seconds,
            CPU.key: (running.cpu_seconds() - cpu_before) / messages * 1e6,
            "seconds": result.seconds + time.monotonic() - published,
        }


class Latency(Scenario):
    """The scenario at a rate that keeps nobody busy."""

    name = "latency"
    description = "publish to handler at 100 events a second"
    takes = "16 min"
    share = 0.0
    measures = (P99, P50, RATE, CPU)
    goals: Sequence[Goal] = (
        Goal(measure=P99, ours="understudy run", other="nats-py, careful", at_most=1.2),
        Goal(measure=P50, ours="understudy run", other="nats-py, careful"),
    )
    _rate = 100.0

    def __init__(self) -> None:
        self._contenders = (
            Arriving(RunningApp("probe")),
            Arriving(RunningApp("probe", "understudy run, public API", PUBLIC_LANE)),
            Arriving(Careful("latencies")),
        )

    def contenders(self, _messages: int) -> Sequence[Arriving]:
        """Return ours, and raw nats-py with waiting pull requests."""
        return self._contenders

    async def prepare(self, _stage: Stage) -> None:
        """Set the rate."""
        for contender in self._contenders:
            contender.rate = self._rate


class LatencyHalfLoad(Latency):
    """The scenario at half of what the slowest contender can take."""

    name = "latency-half"
    description = "publish to handler, at half the rate that publisher, broker and slowest contender keep up"
    share = 1.0
    one_size = False

    async def prepare(self, stage: Stage) -> None:
        """Publish to each as fast as it goes, and set half of the lowest rate."""
        rates = []
        for contender in self._contenders:
            stage.progress.begin(f"{self.name}: how much {contender.name} can take: ")
            contender.rate = 0.0
            sample = await contender.run(stage, messages=stage.messages)
            rates.append(stage.messages / sample["seconds"])
        for contender in self._contenders:
            contender.rate = min(rates) / 2
