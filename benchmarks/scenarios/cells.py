"""Cells: how long a tree of them takes to start, and the memory of each."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks import streams
from benchmarks.feeds import PLAIN
from benchmarks.harness import Contender, Measure, Sample, Scenario, Stage
from benchmarks.processes import pss_bytes
from benchmarks.running_app import RunningApp
from understudy.runtime.supervision.processes import descendants

MEGABYTE = 1_000_000
READY = Measure(key="ready_seconds", heading="ready, s", decimals=2)
EACH = Measure(key="pss_megabytes_each", heading="PSS per cell, MB", decimals=1)
ALL = Measure(key="pss_megabytes_all", heading="PSS of all processes, MB", decimals=1)


class Starting(Contender):
    """An app with that many cells, and nothing to do.

    Args:
        cells: how many.
    """

    def __init__(self, cells: int) -> None:
        self.name = f"{cells} cell" + "s" * (cells > 1)
        self._app = RunningApp(f"cells_{cells}", self.name)

    async def measure(self, stage: Stage) -> Sample:
        """Start it, look at it when every cell is up, and stop it."""
        await self._app.make_durable(stage.client, PLAIN)
        begin = time.monotonic()
        with self._app.run(stage) as run:
            ready = time.monotonic() - begin
            pids = [cell.pid for cell in run.cells()]
            cells = [pss_bytes(pid) / MEGABYTE for pid in pids]
            launcher = run.program.process.pid
            others = [process.pid for process in descendants(launcher) if process.pid not in pids]
            everything = sum(cells) + sum(pss_bytes(pid) / MEGABYTE for pid in [launcher, *others])
            run.program.stop()
        return {READY.key: ready, EACH.key: sum(cells) / len(cells), ALL.key: everything}


class StartUp(Scenario):
    """The scenario."""

    name = "start-up"
    description = "from the command to every cell being up, and their memory; no messages"
    takes = "1 min"
    share = 0.0
    measures = (READY, EACH, ALL)

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return trees of different sizes."""
        return [Starting(1), Starting(5), Starting(20)]

    async def prepare(self, stage: Stage) -> None:
        """Make the stream, empty."""
        await streams.make_stream(stage.client, PLAIN)
