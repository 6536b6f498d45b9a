"""What consumes: how its durable is made, how its processes are started, and what they say of themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import msgspec
from nats.aio.client import Client

from benchmarks import streams
from benchmarks.feeds import Feed
from benchmarks.harness import Stage
from benchmarks.processes import cpu_seconds

NOTHING: Mapping[str, str] = {}


class Running(msgspec.Struct, frozen=True):
    """A consumer that is subscribed and waits.

    Args:
        pids: the processes whose CPU time is counted.
        check_alive: raises if one has ended.
        stop: ends them in good order and returns how many messages they acknowledged by their own count.
    """

    pids: tuple[int, ...]
    check_alive: Callable[[], None]
    stop: Callable[[], int]

    def cpu_seconds(self) -> float:
        """Return the CPU time that they have used."""
        return sum(cpu_seconds(pid) for pid in self.pids)


class Consumer(ABC):
    """One way to consume a stream.

    Attributes:
        name: what the table calls it.
        durable: its durable consumer.
    """

    name: str
    durable: str

    def missing(self, stage: Stage) -> str:  # noqa: ARG002
        """Return what has to be installed before it can run; empty if nothing."""
        return ""

    async def make_durable(self, client: Client, feed: Feed) -> None:
        """Make the durable with nats-py's defaults."""
        await streams.make_pull_consumer(client, feed, self.durable)

    async def count_dead(self, client: Client) -> int:  # noqa: ARG002
        """Return how many messages were given up: none, unless it has dead letters."""
        return 0

    @abstractmethod
    def started(
        self, stage: Stage, feed: Feed, environment: Mapping[str, str] = NOTHING
    ) -> AbstractContextManager[Running]:
        """Run it, until the block ends at the latest.

        Args:
            stage: where.
            feed: what it consumes.
            environment: given to its processes.
        """
