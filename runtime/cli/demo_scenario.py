"""What happens in a demonstration: publishing, an outage, a kill, and a wait until everything is handled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from understudy.config.connection import ConnectionSpec
from understudy.examples.flights.app import Departed
from understudy.examples.flights.departures import Departure
from understudy.runtime.cli.demo_processes import Cell, DemoFailed, Stage, call
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.connection import close, connect
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.jetstream.topology import Backlog, backlog, dead_letter_stream

STREAM = "FLIGHTS"
STATISTICS, MONITOR, NOTIFIER = DURABLES = ("flights-statistics", "flights-delay-monitor", "flights-notifier")

# Slow enough to watch.
RATE_PER_SECOND = 1_800
BATCH = 36
OUTAGE_AT = 0.25
OUTAGE_SECONDS = 3.0
RECOVERY_TIMEOUT_SECONDS = 60.0
# What a killed cell had in its socket comes again after `ack_wait`: nobody should stare at a still screen.
SAY_EVERY_SECONDS = 4.0
# Nothing has moved for so long: something is wrong.
STALL_SECONDS = 60.0


class Audience(Protocol):
    """Who is shown what happens."""

    def say(self, text: str) -> None:
        """Show one thing that happened."""

    def advance(self, *, published: int, counted: int) -> None:
        """Show how far it is."""


@dataclass(kw_only=True)
class Observed:
    """What was seen of a run, beside the counts that are checked.

    Attributes:
        publish_seconds, handled_seconds: from the first publish until all were confirmed, and handled.
        killed, killed_at, recovery_seconds: which cell, after how many departures, and how long until its
            next generation was up.
        most_waiting: the largest number of late flights seen waiting in the stream for the notifier.
        restarts: how often cells were started anew.
        counters: the cells' counters, over all their generations.
        redelivered: by consumer, how many of the server's deliveries were not the first of their message.
        unsettled: by consumer, what was pending or unacknowledged after the stop.
        dead_letters: how many there are.
    """

    publish_seconds: float = 0.0
    handled_seconds: float = 0.0
    killed: str = ""
    killed_at: int = 0
    recovery_seconds: float = 0.0
    most_waiting: int = 0
    restarts: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    redelivered: dict[str, int] = field(default_factory=dict)
    unsettled: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0


class Scenario:
    """One run of the story over a stage that is ready.

    Args:
        stage: the running processes.
        departures: what is published, in this order.
        kill_at: after which part of them a cell is killed, from 0 to 1.
        audience: is shown what happens.
    """

    def __init__(
        self, stage: Stage, departures: Sequence[Departure], *, kill_at: float, audience: Audience
    ) -> None:
        self.observed = Observed()
        self._stage = stage
        self._audience = audience
        self._departures = departures
        self._outage_at = round(OUTAGE_AT * len(departures))
        self._kill_at = round(kill_at * len(departures))
        self._outage_due = asyncio.Event()
        self._kill_due = asyncio.Event()
        self._victim: Cell | None = None
        self._struck = asyncio.Event()
        self._published = 0
        self._service_is_down = False
        self._cells: dict[str, Cell] = {}
        self._counters: dict[tuple[str, int], Counter[str]] = {}

    async def run(self) -> None:
        """Publish everything, break what is to be broken, and return when everything is handled.

        Raises:
            DemoFailed: the runtime ended, a killed cell didn't come back, or nothing moves any more.
        """
        self._client = await connect(_connection(self._stage), name="understudy demo")
        tasks = asyncio.create_task(self._watch()), asyncio.create_task(self._play())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await self._look()
        finally:
            for task in tasks:
                task.cancel()
            await close(self._client)
        self.observed.counters = dict(sum(self._counters.values(), Counter[str]()))
        self.observed.restarts = sum(cell.restarts for cell in self._cells.values())

    async def _play(self) -> None:
        started = time.monotonic()
        await asyncio.gather(self._publish(), self._break_service(), self._kill_cell())
        await self._wait_until_handled()
        self.observed.handled_seconds = time.monotonic() - started

    async def _publish(self) -> None:
        started = time.monotonic()
        async with Publisher.connect(_connection(self._stage), source="understudy demo") as publisher:
            for first in range(0, len(self._departures), BATCH):
                # Tasks run in the order in which they are made, so the stream has the order of the file.
                batch = self._departures[first : first + BATCH]
                await asyncio.gather(*(publisher.publish(Departed(**row._asdict())) for row in batch))
                self._published += len(batch)
                self._strike()
                if self._published >= self._outage_at:
                    self._outage_due.set()
                if self._published >= self._kill_at:
                    self._kill_due.set()
                due = started + self._published / RATE_PER_SECOND
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        self.observed.publish_seconds = time.monotonic() - started
        self._audience.say(f"all {self._published:,} departures are published and confirmed")

    async def _break_service(self) -> None:
        await self._outage_due.wait()
        await asyncio.to_thread(call, "POST", f"{self._stage.service_url}/down", {"seconds": OUTAGE_SECONDS})
        self._audience.say(f"the notices service goes down for {OUTAGE_SECONDS:g} s")
        self._service_is_down = True
        for _ in range(round(OUTAGE_SECONDS)):
            await asyncio.sleep(1)
            waiting = (await self._backlog(NOTIFIER)).pending
            self.observed.most_waiting = max(self.observed.most_waiting, waiting)
            self._audience.say(f"{waiting:,} late flights wait in the stream for the notifier")
        self._audience.say("the notices service is back")
        self._service_is_down = False

    async def _kill_cell(self) -> None:
        await self._kill_due.wait()
        cells = await self._look()
        victim = random.choice([cell for cell in cells.values() if cell.is_running])
        self._victim = victim
        if self._published < len(self._departures):
            await self._struck.wait()
        else:
            self._strike()
        killed = time.monotonic()
        self.observed.killed, self.observed.killed_at = victim.name, self._published
        self._audience.say(f"kill -9 of {victim.name} (process {victim.pid}), {self._published:,} published")
        while time.monotonic() < killed + RECOVERY_TIMEOUT_SECONDS:
            cell = (await self._look()).get(victim.name)
            if cell is not None and cell.generation > victim.generation and cell.is_running:
                self.observed.recovery_seconds = seconds = time.monotonic() - killed
                self._audience.say(f"{cell.name} is up again after {seconds:.2f} s as process {cell.pid}")
                return
            await asyncio.sleep(0.01)
        raise DemoFailed(f"{victim.name} did not come back within {RECOVERY_TIMEOUT_SECONDS:g} s of its kill")

    def _strike(self) -> None:
        """Kill the chosen cell, right after a batch was confirmed: then it most likely has its hands full."""
        if self._victim is not None and not self._struck.is_set():
            os.kill(self._victim.pid, signal.SIGKILL)
            self._struck.set()

    async def _watch(self) -> None:
        """Show what changes in the tree, until cancelled; fails when the runtime ends by itself."""
        paused: set[str] = set()
        while True:
            self._stage.check_runtime()
            for cell in (await self._look()).values():
                if cell.state == "paused" and cell.name not in paused:
                    paused.add(cell.name)
                    self._audience.say(f"{cell.name} pauses: {cell.reason}")
                # A half-open breaker lets one delivery through, which isn't the end of the pause.
                elif cell.state == "up" and cell.name in paused and not self._service_is_down:
                    paused.remove(cell.name)
                    self._audience.say(f"{cell.name} goes on")
            left = await self._backlog(STATISTICS)
            counted = self._published - left.pending - left.ack_pending
            self._audience.advance(published=self._published, counted=max(0, counted))
            await asyncio.sleep(0.1)

    async def _look(self) -> dict[str, Cell]:
        """Read the tree, and keep the counters of each generation: its successor starts from zero."""
        self._cells = await asyncio.to_thread(self._stage.cells)
        for cell in self._cells.values():
            self._counters[cell.name, cell.generation] = Counter(cell.counters)
        return self._cells

    async def _wait_until_handled(self) -> None:
        before: list[Backlog] = []
        moved = said = time.monotonic()
        while True:
            # In this order: what the monitor has settled is in the stream by the time the notifier is asked.
            backlogs = [await self._backlog(durable) for durable in DURABLES]
            if not any(left.pending or left.ack_pending for left in backlogs):
                self._audience.advance(published=self._published, counted=self._published)
                self._audience.say("everything is handled: nothing waits, nothing is unacknowledged")
                return
            now = time.monotonic()
            if backlogs != before:
                before, moved = backlogs, now
            elif now > moved + STALL_SECONDS:
                raise DemoFailed(f"nothing has moved for {STALL_SECONDS:g} s; left are {_describe(backlogs)}")
            if now > said + SAY_EVERY_SECONDS:
                said = now
                self._audience.say(f"left are {_describe(backlogs)}")
            await asyncio.sleep(0.05)

    async def _backlog(self, durable: str) -> Backlog:
        return await backlog(self._client, STREAM, durable)


async def read_broker(stage: Stage, departures: int, observed: Observed) -> None:
    """Add what the broker says after the runtime has stopped."""
    client = await connect(_connection(stage), name="understudy demo")
    try:
        stream = await api.stream_info(client, STREAM) or {}
        late = stream["state"]["messages"] - departures
        for durable, messages in zip(DURABLES, (departures, departures, late), strict=True):
            info = await api.consumer_info(client, STREAM, durable) or {}
            # Each delivery has a consumer sequence of its own; what is taken over isn't delivered again.
            observed.redelivered[durable] = max(0, info["delivered"]["consumer_seq"] - messages)
            observed.unsettled[durable] = info["num_pending"] + info["num_ack_pending"]
        letters = await api.stream_info(client, dead_letter_stream("flights")) or {}
        observed.dead_letters = letters["state"]["messages"]
    finally:
        await close(client)


def _describe(backlogs: Sequence[Backlog]) -> str:
    return "; ".join(
        f"{durable}: {left.pending:,} waiting, {left.ack_pending:,} unacknowledged"
        for durable, left in zip(DURABLES, backlogs, strict=True)
        if left.pending or left.ack_pending
    )


def _connection(stage: Stage) -> ConnectionSpec:
    return ConnectionSpec(servers=(stage.nats_url,))
