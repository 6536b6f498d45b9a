"""Chain: what one actor publishes for each event, another handles."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence

from benchmarks import streams
from benchmarks.consumers import Consumer, Running
from benchmarks.draining import check_conserved, watch
from benchmarks.feeds import PLAIN, RELAYED
from benchmarks.harness import RATE, Contender, Goal, Sample, Scenario, Stage
from benchmarks.peer_consumers import Careful, CarefulRelay, FetchLoop, FetchRelay
from benchmarks.running_app import PUBLIC_LANE, RunningApp

OURS_WIDE = "understudy run, concurrency 256"


class Chained(Contender):
    """Two consumers, the second of which drains what the first publishes."""

    @abstractmethod
    def durables(self) -> tuple[str, str]:
        """Return the durable of the first and of the second."""

    @abstractmethod
    async def make_durables(self, stage: Stage) -> None:
        """Make both."""

    @abstractmethod
    async def count_dead(self, stage: Stage) -> int:
        """Return how many messages were given up."""

    @abstractmethod
    def started(self, stage: Stage) -> contextlib.AbstractContextManager[Running]:
        """Run both, until the block ends at the latest; `stop` returns the acks of both together."""

    async def measure(self, stage: Stage) -> Sample:
        """Have the first drain its stream, until the second has drained the other."""
        client, messages = stage.client, stage.messages
        first, second = self.durables()
        # Anew, since a run's messages have the same ids as the last one's.
        await streams.make_stream(client, RELAYED)
        await streams.delete_consumer(client, PLAIN.stream, first)
        await self.make_durables(stage)
        await streams.pause(client, PLAIN.stream, first)
        with self.started(stage) as running:
            await streams.resume(client, PLAIN.stream, first)
            sample = await watch(stage, self.name, RELAYED, second, messages, running)
            # What the second has acked already may not have been confirmed to the first.
            await watch(stage, self.name, PLAIN, first, messages, running)
            acked = running.stop()
        dead = await self.count_dead(stage)
        for feed, durable in ((PLAIN, first), (RELAYED, second)):
            # Together they acknowledge every message twice.
            await check_conserved(
                stage, self.name, feed, durable, messages, acked=acked - messages, dead=dead
            )
        return sample


class ChainedActors(Chained):
    """Two actors of an app.

    Args:
        app: the app.
    """

    def __init__(self, app: RunningApp) -> None:
        self.name = app.name
        self._app = app

    def durables(self) -> tuple[str, str]:
        """Return the durables of the app's actors."""
        first, second = self._app.durables
        return first, second

    async def make_durables(self, stage: Stage) -> None:
        """Make them as the app does."""
        await self._app.make_durable(stage.client, PLAIN)

    async def count_dead(self, stage: Stage) -> int:
        """Count the app's dead letters."""
        return await self._app.count_dead(stage.client)

    def started(self, stage: Stage) -> contextlib.AbstractContextManager[Running]:
        """Run the app."""
        return self._app.started(stage, PLAIN)


class ChainedPair(Chained):
    """Two programs.

    Args:
        name: what the table calls them.
        first: publishes what follows from each event.
        second: drains that.
    """

    def __init__(self, name: str, first: Consumer, second: Consumer) -> None:
        self.name = name
        self._first = first
        self._second = second

    def durables(self) -> tuple[str, str]:
        """Return the durables of the two."""
        return self._first.durable, self._second.durable

    async def make_durables(self, stage: Stage) -> None:
        """Make both."""
        await self._first.make_durable(stage.client, PLAIN)
        await self._second.make_durable(stage.client, RELAYED)

    async def count_dead(self, _stage: Stage) -> int:
        """Return 0: they give nothing up."""
        return 0

    @contextlib.contextmanager
    def started(self, stage: Stage) -> Iterator[Running]:
        """Run both."""
        with self._second.started(stage, RELAYED) as second, self._first.started(stage, PLAIN) as first:

            def check_alive() -> None:
                first.check_alive()
                second.check_alive()

            yield Running(first.pids + second.pids, check_alive, lambda: first.stop() + second.stop())


class Chain(Scenario):
    """The scenario."""

    name = "chain"
    description = (
        "an actor publishes an event for each it handles, confirmed before the ack; another takes it"
    )
    takes = "4 min"
    goals = (
        Goal(measure=RATE, ours="understudy run", other="nats-py pair, fetch and publish"),
        Goal(measure=RATE, ours="understudy run", other="nats-py pair, careful"),
        Goal(measure=RATE, ours=OURS_WIDE, other="nats-py pair, careful"),
    )
    share = 0.5

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return ours, and what two hand-written programs do."""
        return [
            ChainedActors(RunningApp("chain")),
            ChainedActors(RunningApp("chain", "understudy run, public API", PUBLIC_LANE)),
            ChainedActors(RunningApp("chain_wide", OURS_WIDE)),
            ChainedPair("nats-py pair, fetch and publish", FetchRelay(), FetchLoop("asyncio")),
            ChainedPair("nats-py pair, careful", CarefulRelay(), Careful()),
        ]

    async def prepare(self, stage: Stage) -> None:
        """Fill the first stream once."""
        await streams.fill_stream(stage, PLAIN, stage.messages)
