"""Guarantees: what each of them costs an actor that does nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import streams
from benchmarks.batches import BATCH, whole_batches
from benchmarks.draining import Draining
from benchmarks.errors import NotConserved
from benchmarks.feeds import PLAIN, RELAYED, UNIFORM, ZIPF, Feed
from benchmarks.harness import Contender, Sample, Scenario, Stage
from benchmarks.running_app import RunningApp


class Guarantee(Draining):
    """An actor with a guarantee.

    Args:
        name: of the guarantee.
        written: how the actor asks for it, as its code has it.
        app: the app.
        feed: what it drains.
    """

    def __init__(self, name: str, written: str, app: str, feed: Feed = PLAIN) -> None:
        super().__init__(RunningApp(app, name), feed)
        self.written = written


class _Publishing(Guarantee):
    """An actor that publishes an event for each."""

    async def measure(self, stage: Stage) -> Sample:
        """Drain the stream once, and see that everything was published."""
        # Anew, since a run's messages have the same ids as the last one's.
        await streams.make_stream(stage.client, RELAYED)
        sample = await super().measure(stage)
        published = await streams.count_messages(stage.client, RELAYED.stream)
        if published != stage.messages:
            raise NotConserved(f"{self.name}: {stage.messages:,} handled, {published:,} published")
        return sample


GUARANTEES: Sequence[Guarantee] = (
    Guarantee("plain actor", "`Actor`", "plain"),
    Guarantee("plain actor, once more", "`Actor`", "unkeyed", UNIFORM),
    Guarantee("order per key", '`key=…, on_failure="redeliver"`', "redelivered", UNIFORM),
    Guarantee("order per key, over failures", "`key=…`", "uniform", UNIFORM),
    Guarantee("order per key, over failures, Zipf", "`key=…`", "zipf", ZIPF),
    Guarantee("order of all", "`ordered=True`", "ordered"),
    Guarantee("double ack", "`double_ack=True`", "double_acked"),
    Guarantee("double ack, side by side", "`double_ack=True, concurrency=256`", "double_acked_wide"),
    Guarantee("idempotency in memory", '`idempotency=Idempotency(…, store="memory")`', "remembered"),
    Guarantee("idempotency on the server", "`idempotency=Idempotency(…)`", "marked"),
    Guarantee("batches", f"`Batch(size={BATCH})`", "batches"),
    Guarantee(
        "batches, idempotency on the server",
        f"`Batch(size={BATCH})`, `idempotency=Idempotency(…)`",
        "marked_batches",
    ),
    Guarantee("state per key", "`key=…, state=…`", "state_uniform", UNIFORM),
    Guarantee("state per key, Zipf", "`key=…, state=…`", "state_zipf", ZIPF),
    Guarantee("state, one for all", "`state=…`", "state_whole", UNIFORM),
    _Publishing("outputs before the ack", "`return` an event", "relay"),
    _Publishing("outputs before the ack, side by side", "`return` an event, `concurrency=256`", "relay_wide"),
    Guarantee("breaker, closed", "`@handles(breakers=[…])`", "gated"),
    Guarantee("call through a closed breaker", "`async with ctx.breaker(…)`", "guarded"),
)


class Guarantees(Scenario):
    """The scenario."""

    name = "guarantees"
    description = "what each guarantee costs: drain with a no-op handler, with it and without"
    takes = "15 min"
    share = 0.5

    def size(self, messages: int) -> int:
        """Round down, so that no message waits for a batch to fill up."""
        return whole_batches(super().size(messages))

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return all of them, the plain actor first and, to show how much chance there is, once more."""
        return GUARANTEES

    async def prepare(self, stage: Stage) -> None:
        """Fill the streams once."""
        for feed in (PLAIN, UNIFORM, ZIPF):
            await streams.fill_stream(stage, feed, stage.messages)
