"""Drain: a full stream, a durable consumer with explicit acks, a handler that does nothing."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import streams
from benchmarks.batches import BATCH, whole_batches
from benchmarks.consumers import Consumer
from benchmarks.draining import Draining
from benchmarks.feeds import HEADED, LARGE, PLAIN, UNIFORM, ZIPF, Feed
from benchmarks.harness import CPU, RATE, Contender, Goal, Scenario, Stage
from benchmarks.peer_consumers import Careful, FastStream, FetchLoop, NatsC
from benchmarks.running_app import PUBLIC_LANE, RunningApp

OURS = "understudy run"
OURS_PUBLIC = "understudy run, public API"


class Drain(Scenario):
    """The scenario with every peer."""

    name = "drain"
    description = "consume a full stream: typed decode, no-op async handler, explicit ack of each"
    takes = "5 min"
    is_quick = True
    goals: Sequence[Goal] = (
        Goal(measure=RATE, ours=OURS, other="nats-py fetch(256) loop", at_least=4.0),
        Goal(measure=RATE, ours=OURS, other="nats-py, careful", at_least=1.0),
        Goal(measure=RATE, ours=OURS, other="FastStream pull, typed", at_least=12.0),
        Goal(measure=RATE, ours=OURS, other="FastStream push", at_least=5.0),
        Goal(measure=RATE, ours=OURS, other="nats.c, overlapping pulls", at_least=0.6),
        Goal(measure=CPU, ours=OURS, at_most=8.0),
    )
    _app = "plain"
    _feed = PLAIN

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return everyone."""
        consumers: tuple[Consumer, ...] = (
            RunningApp(self._app, OURS),
            RunningApp(self._app, OURS_PUBLIC, PUBLIC_LANE),
            Careful(),
            FetchLoop("asyncio"),
            FetchLoop("uvloop"),
            FastStream("pull"),
            FastStream("push"),
            NatsC(),
        )
        return [Draining(consumer, self._feed) for consumer in consumers]

    async def prepare(self, stage: Stage) -> None:
        """Fill the stream once: each run reads it through a new consumer."""
        await streams.fill_stream(stage, self._feed, stage.messages)


class DrainLarge(Drain):
    """The same with larger messages."""

    name = "drain-1k"
    description = "drain messages with bodies of 1 KiB"
    is_quick = False
    goals = ()
    _app = "large"
    _feed = LARGE


class _OfOurs(Scenario):
    """A scenario in which only understudy's own ways are compared."""

    takes = "1 min"
    _feeds: Sequence[Feed]

    async def prepare(self, stage: Stage) -> None:
        """Fill the streams once."""
        for feed in self._feeds:
            await streams.fill_stream(stage, feed, stage.messages)


class DrainBatches(Scenario):
    """Handlers that take many messages at once."""

    name = "batches"
    description = f"drain by a handler of batches of {BATCH}"
    takes = "2 min"
    goals = (Goal(measure=RATE, ours="understudy run, batches", other="FastStream batch", at_least=4.0),)

    def size(self, messages: int) -> int:
        """Round down, so that no message waits for a batch to fill up."""
        return whole_batches(messages)

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return ours, and FastStream's."""
        return [
            Draining(consumer, PLAIN)
            for consumer in (
                RunningApp("batches", "understudy run, batches"),
                RunningApp("batches", "understudy run, batches, public API", PUBLIC_LANE),
                FastStream("batch"),
            )
        ]

    async def prepare(self, stage: Stage) -> None:
        """Fill the stream once."""
        await streams.fill_stream(stage, PLAIN, stage.messages)


class DrainHeaders(_OfOurs):
    """With headers and without."""

    name = "headers"
    description = "drain messages with two headers (content type and trace), and without"
    goals = (
        Goal(measure=RATE, ours="two headers", other="no headers", at_least=0.9),
        Goal(measure=RATE, ours="two headers, public API", other="no headers, public API"),
    )
    _feeds = (HEADED, PLAIN)

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return both on both lanes."""
        return [
            Draining(RunningApp("headed", "two headers"), HEADED),
            Draining(RunningApp("plain", "no headers"), PLAIN),
            Draining(RunningApp("headed", "two headers, public API", PUBLIC_LANE), HEADED),
            Draining(RunningApp("plain", "no headers, public API", PUBLIC_LANE), PLAIN),
        ]


class DrainKeys(_OfOurs):
    """In order per key, and without order."""

    name = "keys"
    description = "drain in order per key, 1,000 keys: all alike, and by Zipf's law (s = 1); and without key"
    goals = (
        Goal(measure=RATE, ours="1,000 keys", other="no key", at_least=0.8),
        Goal(measure=RATE, ours="1,000 keys, Zipf", other="no key"),
    )
    _feeds = (UNIFORM, ZIPF)

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return the three."""
        return [
            Draining(RunningApp("uniform", "1,000 keys"), UNIFORM),
            Draining(RunningApp("zipf", "1,000 keys, Zipf"), ZIPF),
            Draining(RunningApp("unkeyed", "no key"), UNIFORM),
        ]


class DrainState(_OfOurs):
    """With state and without."""

    name = "state"
    description = (
        "drain with a state per key, 1,000 keys: all alike, and by Zipf's law (s = 1); one state; and none"
    )
    goals = (
        Goal(measure=RATE, ours="state, 1,000 keys", other="no state, 1,000 keys", at_least=0.25),
        Goal(measure=RATE, ours="state, 1,000 keys, Zipf", other="no state, 1,000 keys", at_least=0.25),
        Goal(measure=RATE, ours="state, no key", other="no state, 1,000 keys"),
    )
    _feeds = (UNIFORM, ZIPF)

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return them all."""
        return [
            Draining(RunningApp("state_uniform", "state, 1,000 keys"), UNIFORM),
            Draining(RunningApp("state_zipf", "state, 1,000 keys, Zipf"), ZIPF),
            Draining(RunningApp("state_whole", "state, no key"), UNIFORM),
            Draining(RunningApp("uniform", "no state, 1,000 keys"), UNIFORM),
        ]


class DrainOnce(_OfOurs):
    """With idempotency and without, no message coming twice."""

    name = "idempotency"
    description = f"drain with a mark per message on the server, in memory, and without; batches of {BATCH}"
    is_quick = False
    goals = (
        Goal(measure=RATE, ours="marks in memory", other="no marks"),
        Goal(measure=RATE, ours="marks on the server", other="no marks"),
        Goal(measure=RATE, ours="marks on the server, batches", other="batches"),
    )
    _feeds = (PLAIN,)

    def size(self, messages: int) -> int:
        """Round down, so that no message waits for a batch to fill up."""
        return whole_batches(messages)

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return them all."""
        return [
            Draining(RunningApp("plain", "no marks"), PLAIN),
            Draining(RunningApp("remembered", "marks in memory"), PLAIN),
            Draining(RunningApp("marked", "marks on the server"), PLAIN),
            Draining(RunningApp("batches", "batches"), PLAIN),
            Draining(RunningApp("marked_batches", "marks on the server, batches"), PLAIN),
        ]
