"""Memory: what a cell holds while its handler is slow and a long backlog waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from statistics import linear_regression

from benchmarks import streams
from benchmarks.errors import NotConserved
from benchmarks.feeds import LARGE
from benchmarks.harness import Contender, Goal, Measure, Sample, Scenario, Stage
from benchmarks.processes import pss_bytes
from benchmarks.running_app import PUBLIC_LANE, RunningApp
from benchmarks.streams import ConsumerView

MEGABYTE = 1_000_000
PSS = Measure(key="pss_megabytes", heading="highest PSS, MB", decimals=1)
SLOPE = Measure(key="megabytes_per_minute", heading="MB/min", decimals=2)
SAMPLE_SECONDS = 0.5


class Holding(Contender):
    """An app whose handler takes its time.

    Args:
        app: the app.
    """

    def __init__(self, app: RunningApp) -> None:
        self.name = app.name
        self._app = app

    async def measure(self, stage: Stage) -> Sample:
        """Look at the cell's memory for a while, its mailbox full."""
        client, app = stage.client, self._app
        await streams.delete_consumer(client, LARGE.stream, app.durable)
        await app.make_durable(client, LARGE)
        with app.run(stage) as run:
            (cell,) = run.cells()
            full = min(stage.messages, cell.capacity)

            def has_been_full() -> bool:
                (now,) = run.cells()
                # Where there is no more than it holds, it is full for as long as the first one takes.
                return now.held + now.counters["acked"] >= full - 1

            run.wait_for(has_been_full, "full")
            sample = await self._look(stage, cell.pid)
            run.program.check_alive()
            (cell,) = run.cells()
            run.program.stop()
        view = await ConsumerView.read(client, LARGE.stream, app.durable)
        dead = await app.count_dead(client)
        acked = view.last - view.ack_pending
        # What the drain still handles isn't in the last look at the cell.
        if acked < cell.counters["acked"] or acked + view.ack_pending + view.pending + dead != stage.messages:
            raise NotConserved(
                f"{self.name}: {stage.messages:,} published; {acked:,} acked, {cell.counters['acked']:,} of "
                f"them as the cell says; {dead:,} dead letters; {view.ack_pending + view.pending:,} pending"
            )
        return sample

    async def _look(self, stage: Stage, pid: int) -> Sample:
        begin = time.monotonic()
        times: list[float] = []
        sizes: list[float] = []
        while not times or times[-1] < stage.seconds:
            times.append(time.monotonic() - begin)
            sizes.append(pss_bytes(pid) / MEGABYTE)
            stage.progress.at(f"{sizes[-1]:.1f} MB after {times[-1]:.0f} of {stage.seconds:.0f} s")
            await asyncio.sleep(SAMPLE_SECONDS)
        slope, _ = linear_regression(times, sizes)
        return {PSS.key: max(sizes), SLOPE.key: slope * 60}


class SlowHandler(Scenario):
    """The scenario."""

    name = "slow-handler"
    description = "memory of a cell with a slow handler, its mailbox full, messages of 1 KiB waiting"
    takes = "12 min"
    share = 10.0
    measures = (PSS, SLOPE)
    goals = (
        Goal(measure=PSS, ours="understudy run", at_most=64.0),
        Goal(measure=SLOPE, ours="understudy run", at_most=1.0),
    )

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return both lanes."""
        return [
            Holding(RunningApp("slow")),
            Holding(RunningApp("slow", "understudy run, public API", PUBLIC_LANE)),
        ]

    async def prepare(self, stage: Stage) -> None:
        """Fill the stream once."""
        await streams.fill_stream(stage, LARGE, stage.messages)
