"""Publish: typed events into a stream, each confirmed, by a process that measures itself.

The clock and the CPU clock run from before the first publish until the last confirmation is in.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks import streams
from benchmarks.errors import NotConserved
from benchmarks.feeds import PLAIN
from benchmarks.harness import RATE, Contender, Goal, Sample, Scenario, Stage, rate_sample
from benchmarks.processes import Program, cpu_seconds


class Result(msgspec.Struct, frozen=True):
    """What a publishing process prints."""

    confirmed: int
    seconds: float
    cpu_seconds: float


class Publishing(Contender):
    """One publishing process.

    Args:
        name: what the table calls it.
        module: the program in `benchmarks.peers`.
        how: its last argument.
    """

    def __init__(self, name: str, module: str, how: str) -> None:
        self.name = name
        self._module = f"benchmarks.peers.{module}"
        self._how = how

    async def measure(self, stage: Stage) -> Sample:
        """Publish into an empty stream once."""
        await streams.make_stream(stage.client, PLAIN)
        log = stage.directory / "publisher.log"
        command = Program.module(self._module, stage.url, str(stage.messages), self._how)
        before = cpu_seconds(stage.broker_pid)
        with Program(*command, log=log) as program:
            result = msgspec.json.decode(program.read_line(), type=Result)
        broker_seconds = cpu_seconds(stage.broker_pid) - before
        stored = await streams.count_messages(stage.client, PLAIN.stream)
        if not stored == result.confirmed == stage.messages:
            raise NotConserved(
                f"{self.name}: {stage.messages:,} published, {result.confirmed:,} confirmed, "
                f"{stored:,} in the stream"
            )
        return rate_sample(
            messages=stage.messages,
            seconds=result.seconds,
            cpu_seconds=result.cpu_seconds,
            broker_seconds=broker_seconds,
        )


class PublishWindow(Scenario):
    """The scenario in which many publishes are unconfirmed at once."""

    name = "publish"
    description = "publish confirmed events, many at once"
    takes = "1 min"
    is_quick = True
    goals = (
        Goal(
            measure=RATE,
            ours="understudy publish_async",
            other="nats-py publish_async with ids",
            at_least=1.5,
        ),
    )

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return all."""
        return [
            Publishing("understudy publish_async", "understudy_publish", "async"),
            Publishing("understudy publish, 1,024 tasks", "understudy_publish", "1024"),
            Publishing("nats-py publish_async", "nats_publish", "async"),
            Publishing("nats-py publish_async with ids", "nats_publish", "async-ids"),
        ]

    async def prepare(self, stage: Stage) -> None:
        """Nothing to do: each run has a stream of its own."""


class PublishEach(Scenario):
    """The scenario in which the next publish waits for the confirmation of the last."""

    name = "publish-each"
    description = "publish confirmed events one by one"
    takes = "1 min"
    is_quick = True
    share = 0.1

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return the three."""
        return [
            Publishing("understudy publish, one by one", "understudy_publish", "1"),
            Publishing("nats-py js.publish", "nats_publish", "each"),
            Publishing("nats-py js.publish with ids", "nats_publish", "each-ids"),
        ]

    async def prepare(self, stage: Stage) -> None:
        """Nothing to do: each run has a stream of its own."""
