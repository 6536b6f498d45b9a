"""The peers: what others write to consume a stream, each a program in `benchmarks.peers`."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping

import msgspec
from nats.aio.client import Client

from benchmarks import nats_c, streams
from benchmarks.consumers import NOTHING, Consumer, Running
from benchmarks.feeds import RELAYED, Feed
from benchmarks.harness import Stage
from benchmarks.processes import Program


class Peer(Consumer):
    """A program that prints a line when it is subscribed, and after SIGTERM how many it acknowledged."""

    def command(self, stage: Stage) -> list[str]:
        """Return the program; server, stream, durable and subject are added to it."""
        raise NotImplementedError

    @contextlib.contextmanager
    def started(
        self, stage: Stage, feed: Feed, environment: Mapping[str, str] = NOTHING
    ) -> Iterator[Running]:
        """Run the program, until the block ends at the latest."""
        log = stage.directory / "peer.log"
        command = [*self.command(stage), stage.url, feed.stream, self.durable, feed.subject]
        with Program(*command, log=log, environment=environment) as program:
            program.read_line()

            def stop() -> int:
                program.stop()
                return int(program.read_line())

            yield Running((program.process.pid,), program.check_alive, stop)


class FetchLoop(Peer):
    """The loop that people write with nats-py.

    Args:
        loop: whose event loop it runs on: `asyncio` or `uvloop`.
    """

    def __init__(self, loop: str) -> None:
        self.name = "nats-py fetch(256) loop" + ("" if loop == "asyncio" else f", {loop}")
        self.durable = f"bench-fetch-{loop}"
        self._loop = loop

    def command(self, _stage: Stage) -> list[str]:
        """Return the program."""
        return Program.module("benchmarks.peers.fetch_loop", self._loop)


class Careful(Peer):
    """The most that nats-py's public interface gives to who takes care.

    Args:
        what: what its handler does: `nothing`, `latencies` or `times`.
        name: what the table calls it.
    """

    durable = "bench-careful"

    def __init__(self, what: str = "nothing", name: str = "nats-py, careful") -> None:
        self.name = name
        self._what = what

    def command(self, _stage: Stage) -> list[str]:
        """Return the program."""
        return Program.module("benchmarks.peers.careful", self._what)


class FastStream(Peer):
    """FastStream.

    Args:
        mode: `pull`, `push` or `batch`.
    """

    def __init__(self, mode: str) -> None:
        self.name = "FastStream pull, typed" if mode == "pull" else f"FastStream {mode}"
        self.durable = f"bench-faststream-{mode}"
        self._mode = mode

    def missing(self, _stage: Stage) -> str:
        """Say how to get FastStream."""
        if importlib.util.find_spec("faststream") is None:
            return "it needs FastStream: pip install 'faststream[nats]'"
        return ""

    async def make_durable(self, client: Client, feed: Feed) -> None:
        """Make a durable of the mode's kind."""
        make = streams.make_push_consumer if self._mode == "push" else streams.make_pull_consumer
        await make(client, feed, self.durable)

    def command(self, _stage: Stage) -> list[str]:
        """Return the program."""
        return Program.module("benchmarks.peers.faststream_app", self._mode)


class NatsC(Peer):
    """nats.c: what is possible without an interpreter."""

    name = "nats.c, overlapping pulls"
    durable = "bench-nats-c"

    def missing(self, stage: Stage) -> str:
        """Compile it, or say how to get what that needs."""
        return nats_c.compile_peer(stage.directory)

    def command(self, stage: Stage) -> list[str]:
        """Return the program, compiled."""
        return [str(stage.directory / nats_c.PROGRAM)]


class _Relay(Peer):
    # It passes on what it is given, and is told to where instead of what it reads.

    @contextlib.contextmanager
    def started(
        self, stage: Stage, feed: Feed, environment: Mapping[str, str] = NOTHING
    ) -> Iterator[Running]:
        """Run the program, until the block ends at the latest."""
        relayed = msgspec.structs.replace(feed, subject=RELAYED.subject)
        with super().started(stage, relayed, environment) as running:
            yield running


class FetchRelay(_Relay):
    """A fetch loop that waits for each publish to be confirmed."""

    name = "nats-py fetch(256), publish, ack"
    durable = "bench-fetch-relay"

    def command(self, _stage: Stage) -> list[str]:
        """Return the program."""
        return Program.module("benchmarks.peers.fetch_relay")


class CarefulRelay(_Relay):
    """A pull window whose publishes are confirmed later."""

    name = "nats-py, careful relay"
    durable = "bench-careful-relay"

    def command(self, _stage: Stage) -> list[str]:
        """Return the program."""
        return Program.module("benchmarks.peers.careful_relay")
