"""Cells: how long trees of them take to start and to drain, their memory, and what they take while idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks import streams
from benchmarks.feeds import PLAIN, UNIFORM, Feed
from benchmarks.harness import Contender, Goal, Measure, Sample, Scenario, Stage
from benchmarks.processes import cpu_seconds, pss_bytes
from benchmarks.running_app import Run, RunningApp
from understudy.runtime.supervision.processes import descendants

MEGABYTE = 1_000_000
# After which requests live longer, and heartbeats are rarer.
SETTLE_SECONDS = 6.0
READY = Measure(key="ready_seconds", heading="ready, s", decimals=2)
ADDED_TIME = Measure(key="ready_milliseconds_added", heading="ms per cell more")
# Of the processes that run then, which other work on the machine makes little difference to.
ADDED_CPU = Measure(key="cpu_milliseconds_added", heading="CPU ms per cell more")
EACH = Measure(key="pss_megabytes_each", heading="PSS per cell, MB", decimals=1)
ALL = Measure(key="pss_megabytes_all", heading="PSS of all processes, MB", decimals=1)
ADDED_MEMORY = Measure(key="pss_megabytes_added", heading="MB per cell more", decimals=1)
DRAINED = Measure(key="drained_seconds", heading="drained, s", decimals=2)
SHARE = Measure(key="cpu_percent", heading="% of a core", decimals=2)
CELLS_SHARE = Measure(key="cells_cpu_percent", heading="cells'", decimals=2)
BROKER_SHARE = Measure(key="broker_cpu_percent", heading="broker's", decimals=2)


class Starting(Contender):
    """An app with that many cells, and nothing to do.

    Args:
        cells: how many.
        app: its name.
        smaller: what it is compared with, its last run, which the first round has before.
        where: what tells it from a flat tree.
    """

    def __init__(self, cells: int, app: str, smaller: Starting | None = None, where: str = "") -> None:
        self.name = f"{cells} cell" + "s" * (cells > 1) + where
        self._app = RunningApp(app, self.name)
        self._cells = cells
        self._smaller = smaller
        self._ready = self._cpu = self._megabytes = 0.0

    async def measure(self, stage: Stage) -> Sample:
        """Start it, look at it when every cell is up, and stop it."""
        # Anew, without the consumers of a tree with other actors.
        await streams.make_stream(stage.client, PLAIN)
        await self._app.make_durable(stage.client, PLAIN)
        begin = time.monotonic()
        with self._app.run(stage) as run:
            self._ready = time.monotonic() - begin
            pids, others = _pids(run)
            cells = [pss_bytes(pid) / MEGABYTE for pid in pids]
            self._megabytes = sum(cells) + sum(pss_bytes(pid) / MEGABYTE for pid in others)
            (self._cpu,) = _cpu([*pids, *others])
            begin = time.monotonic()
            run.program.stop()
            drained = time.monotonic() - begin
        return {
            READY.key: self._ready,
            EACH.key: sum(cells) / len(cells),
            ALL.key: self._megabytes,
            DRAINED.key: drained,
        } | self._added()

    def _added(self) -> dict[str, float]:
        """Return what each cell costs that the smaller tree hasn't; of the smallest, what all of it costs."""
        smaller = self._smaller or Starting(0, "cells_1")
        more = self._cells - smaller._cells
        return {
            ADDED_TIME.key: (self._ready - smaller._ready) / more * 1000,
            ADDED_CPU.key: (self._cpu - smaller._cpu) / more * 1000,
            ADDED_MEMORY.key: (self._megabytes - smaller._megabytes) / more,
        }


class StartUp(Scenario):
    """The scenario."""

    name = "start-up"
    description = "from the command to every cell being up, and their memory; no messages"
    takes = "1 min"
    share = 0.0
    measures = (READY, ADDED_TIME, ADDED_CPU, EACH, ALL, ADDED_MEMORY, DRAINED)

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return trees of different sizes."""
        return self._flat(1, 5, 20)

    @staticmethod
    def _flat(*sizes: int) -> list[Starting]:
        trees: list[Starting] = []
        for size in sizes:
            trees.append(Starting(size, f"cells_{size}", trees[-1] if trees else None))
        return trees

    async def prepare(self, stage: Stage) -> None:
        """Make the stream, empty."""
        await streams.make_stream(stage.client, PLAIN)


class Growth(StartUp):
    """The same with as many cells as a large app has."""

    name = "growth"
    description = "the same up to 60 cells, and 60 on three levels"
    takes = "4 min"

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return trees of different sizes."""
        trees = self._flat(1, 5, 20, 60)
        return [*trees, Starting(60, "levels_60", trees[2], ", three levels")]


class Idling(Contender):
    """An app of twenty cells that gets nothing.

    Args:
        app: its name.
        name: what the table calls it.
        feed: of which every actor has had one message, and so owns its consumer; None if they are no owners.
    """

    def __init__(self, app: str, name: str, feed: Feed | None = None) -> None:
        self.name = name
        self._app = RunningApp(app, name)
        self._feed = feed

    async def measure(self, stage: Stage) -> Sample:
        """Let it stand for a while, and see what CPU time that took."""
        if self._feed is None:
            await streams.make_stream(stage.client, PLAIN)
        else:
            await streams.fill_stream(stage, self._feed, 1)
        await self._app.make_durable(stage.client, self._feed or PLAIN)
        with self._app.run(stage) as run:
            pids, others = _pids(run)
            if self._feed is not None:
                run.wait_for(lambda: all(cell.counters["acked"] for cell in run.cells()), "done")
            await asyncio.sleep(SETTLE_SECONDS)
            begin, before = time.monotonic(), _cpu(pids, others, [stage.broker_pid])
            await asyncio.sleep(stage.seconds)
            after, seconds = _cpu(pids, others, [stage.broker_pid]), time.monotonic() - begin
            run.program.stop()
        cells, rest, broker = (100 * (now - then) / seconds for now, then in zip(after, before, strict=True))
        return {SHARE.key: cells + rest, CELLS_SHARE.key: cells, BROKER_SHARE.key: broker}


class Idle(Scenario):
    """The scenario."""

    name = "idle"
    description = "CPU time of all processes of a tree of 20 cells that gets nothing"
    takes = "20 min"
    share = 0.0
    measures = (SHARE, CELLS_SHARE, BROKER_SHARE)
    goals = tuple(
        Goal(measure=SHARE, ours=name, at_most=2.0)
        for name in ("20 cells", "20 cells, three levels", "20 sole owners")
    )

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return twenty cells in different ways."""
        return [
            Idling("cells_20", "20 cells"),
            Idling("levels_20", "20 cells, three levels"),
            Idling("owners_20", "20 sole owners", UNIFORM),
        ]

    async def prepare(self, stage: Stage) -> None:
        """Make the streams, empty."""
        await streams.make_stream(stage.client, PLAIN)


def _pids(run: Run) -> tuple[list[int], list[int]]:
    """Return the pids of the cells, and of the other processes of the tree."""
    cells = [cell.pid for cell in run.cells()]
    launcher = run.program.process.pid
    others = [process.pid for process in descendants(launcher) if process.pid not in cells]
    return cells, [launcher, *others]


def _cpu(*groups: Sequence[int]) -> list[float]:
    return [sum(map(cpu_seconds, pids)) for pids in groups]
