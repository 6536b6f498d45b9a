"""What happens in a demonstration: publishing, an outage, kills, and a wait until everything is handled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from understudy.examples.flights.departures import Departure
from understudy.examples.flights.events import Departed
from understudy.examples.flights.trouble import Trouble
from understudy.runtime.cli.demo_processes import Cell, DemoFailed, Stage
from understudy.runtime.cli.demo_states import States
from understudy.runtime.cli.words import plural
from understudy.runtime.jetstream.connection import close, connect
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.jetstream.topology import Backlog, backlog

APP, STREAM = "flights", "FLIGHTS"
ACTORS = ("statistics", "delay-monitor", "notifier", "rebooking", "cashier")
STATISTICS, _, NOTIFIER, REBOOKING, _ = DURABLES = tuple(f"{APP}-{actor}" for actor in ACTORS)
# They call the service: while that is down they have nothing to lose.
CALLERS = frozenset(ACTORS[2:])

# Slow enough to watch.
RATE_PER_SECOND = 1_800
BATCH = 36
OUTAGE_AT = 0.25
OUTAGE_SECONDS = 3.0
# At each step about one rebooking of ten comes to its end, and has to give back what it had.
TROUBLE = Trouble(refuse=0.1, fail=0.1, hang=0.03, lie=0.03)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """A kill -9.

    Attributes:
        cell: which one was killed.
        published: how many departures were, by then.
        recovery_seconds: how long until its next generation was up.
    """

    cell: str
    published: int
    recovery_seconds: float


@dataclass(kw_only=True)
class Observed:
    """What was seen of a run, beside the counts that are checked.

    Attributes:
        publish_seconds, handled_seconds: from the first publish until all were confirmed, and handled.
        kills: one of a cell of each actor, in their order.
        most_waiting: the largest number of late flights seen waiting in the stream for the notifier.
        restarts: how often cells were started anew.
        counters: the cells' counters, over all their generations.
    """

    publish_seconds: float = 0.0
    handled_seconds: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    most_waiting: int = 0
    restarts: int = 0
    counters: dict[str, int] = field(default_factory=dict)


class Scenario:
    """One run of the story over a stage that is ready.

    Args:
        stage: the running processes.
        departures: what is published, in this order.
        kill_at: after which part of them the first cell is killed, from 0 to 1.
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
        self._is_over = False
        self._stuck: set[str] = set()
        self._cells: dict[str, Cell] = {}
        self._counters: dict[tuple[str, int], Counter[str]] = {}

    async def run(self) -> None:
        """Publish everything, break what is to be broken, and return when everything is handled.

        Raises:
            DemoFailed: runtime or service ended, a killed cell didn't come back, or nothing moves any more.
        """
        self._client = await connect(self._stage.connection, name="understudy demo")
        try:
            self._states = States(self._client, APP)
            await self._states.open()
            await _together(self._watch(), self._play())
            await self._look()
        finally:
            await close(self._client)
        self.observed.counters = dict(sum(self._counters.values(), Counter[str]()))
        self.observed.restarts = sum(cell.restarts for cell in self._cells.values())

    async def _play(self) -> None:
        started = time.monotonic()
        # Before all else: then each run meets the same.
        await self._trouble_service()
        await _together(self._publish(), self._break_service(), self._kill_cells())
        await self._wait_until_handled()
        self.observed.handled_seconds = time.monotonic() - started
        self._is_over = True

    async def _publish(self) -> None:
        started = time.monotonic()
        async with Publisher.connect(self._stage.connection, source="understudy demo") as publisher:
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

    async def _trouble_service(self) -> None:
        shares = msgspec.to_builtins(TROUBLE)
        await asyncio.to_thread(self._stage.tell_service, "/trouble", shares)
        words = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        self._audience.say(f"the service is told to give rebookings trouble: {words}")

    async def _break_service(self) -> None:
        await self._outage_due.wait()
        await asyncio.to_thread(self._stage.tell_service, "/down", {"seconds": OUTAGE_SECONDS})
        self._audience.say(f"the service goes down for {OUTAGE_SECONDS:g} s")
        self._service_is_down = True
        for _ in range(round(OUTAGE_SECONDS)):
            await asyncio.sleep(1)
            waiting = (await self._backlog(NOTIFIER)).pending
            self.observed.most_waiting = max(self.observed.most_waiting, waiting)
            self._audience.say(f"waiting in the stream for the notifier: {plural(waiting, 'late flight')}")
        self._audience.say("the service is back")
        self._service_is_down = False

    async def _kill_cells(self) -> None:
        """Kill a cell of each actor, in any order; the next when the last one is up again."""
        await self._kill_due.wait()
        for actor in random.sample(ACTORS, len(ACTORS)):
            self.observed.kills.append(await self._kill(await self._choose(actor)))

    async def _choose(self, actor: str) -> Cell:
        """Return a cell of an actor with something to lose: no caller has, while the service is down.

        One that holds nothing is good enough if none comes to hold anything for a second.
        """
        began = time.monotonic()
        while time.monotonic() < began + RECOVERY_TIMEOUT_SECONDS:
            cells = (await self._look()).values()
            # A half-open breaker lets one delivery through, which shows as up.
            working = [cell for cell in cells if cell.actor == actor and cell.state == "up"]
            if not (self._service_is_down and actor in CALLERS):
                busy = [cell for cell in working if cell.held]
                if busy or (working and time.monotonic() > began + 1):
                    return random.choice(busy or working)
            await asyncio.sleep(0.02)
        raise DemoFailed(f"no cell of {actor} has worked for {RECOVERY_TIMEOUT_SECONDS:g} s")

    async def _kill(self, victim: Cell) -> Kill:
        self._victim = victim
        self._struck.clear()
        # What reads the departures most likely has its hands full right after a batch; the others have now.
        if victim.actor not in CALLERS and self._published < len(self._departures):
            await self._struck.wait()
        else:
            self._strike()
        killed, published = time.monotonic(), self._published
        self._audience.say(f"kill -9 of {victim.name} (process {victim.pid}), {published:,} published")
        while time.monotonic() < killed + RECOVERY_TIMEOUT_SECONDS:
            cell = (await self._look()).get(victim.name)
            if cell is not None and cell.generation > victim.generation and cell.is_running:
                seconds = time.monotonic() - killed
                self._audience.say(f"{cell.name} is up again after {seconds:.2f} s as process {cell.pid}")
                return Kill(cell=victim.name, published=published, recovery_seconds=seconds)
            await asyncio.sleep(0.01)
        raise DemoFailed(f"{victim.name} did not come back within {RECOVERY_TIMEOUT_SECONDS:g} s of its kill")

    def _strike(self) -> None:
        """Kill the chosen cell, if there is one."""
        if self._victim is not None:
            os.kill(self._victim.pid, signal.SIGKILL)
            self._victim = None
            self._struck.set()

    async def _watch(self) -> None:
        """Show what changes in the tree until all is over; fails when runtime or service ends by itself."""
        paused: set[str] = set()
        while not self._is_over:
            self._stage.check_runtime()
            self._stage.check_service()
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
        before: tuple[object, ...] = ()
        moved = said = time.monotonic()
        while True:
            # In this order: what the monitor has settled is in the stream by the time the others are asked,
            # and a saga that was begun is stored by the time all are read.
            backlogs = [await self._backlog(durable) for durable in DURABLES]
            phases = await self._look_at_sagas()
            under_way = phases["running"] + phases["compensating"]
            if not under_way and not any(left.pending or left.ack_pending for left in backlogs):
                self._audience.advance(published=self._published, counted=self._published)
                self._audience.say("everything is handled: nothing waits, nothing is unacknowledged")
                self._audience.say(f"the rebookings have ended: {describe_phases(phases)}")
                return
            now = time.monotonic()
            left = f"{_describe(backlogs)}{plural(under_way, 'rebooking')} under way"
            if (backlogs, phases) != before:
                before, moved = (backlogs, phases), now
            elif now > moved + STALL_SECONDS:
                raise DemoFailed(f"nothing has moved for {STALL_SECONDS:g} s; left are {left}")
            if now > said + SAY_EVERY_SECONDS:
                said = now
                self._audience.say(f"left are {left}")
            await asyncio.sleep(0.05)

    async def _look_at_sagas(self) -> Counter[str]:
        """Return how many sagas are in which phase, and say which are stuck, once."""
        sagas = await self._states.rebookings(REBOOKING)
        for booking, saga in sagas.items():
            if saga.phase == "stuck" and booking not in self._stuck:
                self._stuck.add(booking)
                self._audience.say(f"the rebooking {booking} is stuck: {saga.why}")
        return Counter(saga.phase for saga in sagas.values())

    async def _backlog(self, durable: str) -> Backlog:
        return await backlog(self._client, STREAM, durable)


async def _together(*parts: Coroutine[Any, Any, None]) -> None:
    """Await all of them; when one fails, end the others, and raise what that one has raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for part in parts:
                tasks.create_task(part)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def describe_phases(phases: Mapping[str, int]) -> str:
    """Return how many sagas are in which phase, those that have ended well first."""
    order = [name for name in ("completed", "compensated") if name in phases] or ["completed"]
    order += sorted(phases.keys() - set(order))
    return ", ".join(f"{phases.get(name, 0):,} {name}" for name in order)


def _describe(backlogs: Sequence[Backlog]) -> str:
    return "".join(
        f"{durable}: {left.pending:,} waiting, {left.ack_pending:,} unacknowledged; "
        for durable, left in zip(DURABLES, backlogs, strict=True)
        if left.pending or left.ack_pending
    )
