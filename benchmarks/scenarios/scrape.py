"""Scrapes: how long `/metrics` takes of a large app, and with one of its cells stopped."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Sequence
from statistics import median

from benchmarks import streams
from benchmarks.errors import BenchmarkFailed
from benchmarks.feeds import PLAIN
from benchmarks.harness import Contender, Goal, Measure, Sample, Scenario, Stage
from benchmarks.running_app import Run, RunningApp

SCRAPES = 20
TIMEOUT_SECONDS = 10.0
MEDIAN = Measure(key="scrape_milliseconds", heading="median, ms", decimals=1)
WORST = Measure(key="worst_scrape_milliseconds", heading="worst, ms", decimals=1)
SERIES = Measure(key="series", heading="series")
STOPPED = "60 actors, one cell stopped"


class Scraped(Contender):
    """An app that is scraped, and has nothing else to do.

    Args:
        app: its name.
        name: what the table calls it.
        stops: whether one of its cells is stopped meanwhile.
    """

    def __init__(self, app: str, name: str, *, stops: bool = False) -> None:
        self.name = name
        self._app = RunningApp(app, name)
        self._stops = stops

    async def measure(self, stage: Stage) -> Sample:
        """Start it, scrape it again and again, and stop it."""
        await streams.make_stream(stage.client, PLAIN)
        await self._app.make_durable(stage.client, PLAIN)
        with self._app.run(stage) as run:
            stopped = run.cells()[0].pid
            if self._stops:
                os.kill(stopped, signal.SIGSTOP)
            scrapes = [_scrape(run) for _ in range(SCRAPES)]
            if self._stops:
                if run.cells()[0].pid != stopped:
                    raise BenchmarkFailed("the stopped cell was replaced while it was to be scraped")
                os.kill(stopped, signal.SIGCONT)
            run.program.stop()
        seconds = [took for took, _ in scrapes]
        return {
            MEDIAN.key: median(seconds) * 1000,
            WORST.key: max(seconds) * 1000,
            SERIES.key: float(scrapes[-1][1]),
        }


class Scrape(Scenario):
    """The scenario."""

    name = "scrape"
    description = f"/metrics of a large app, {SCRAPES} times one after the other"
    takes = "2 min"
    share = 0.0
    measures = (MEDIAN, WORST, SERIES)
    goals = tuple(Goal(measure=WORST, ours=name, at_most=200.0) for name in ("60 actors", STOPPED))

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return sixty cells in different ways."""
        return [
            Scraped("actors_60", "60 actors"),
            Scraped("actors_60", STOPPED, stops=True),
            Scraped("cells_60", "one actor, 60 replicas"),
        ]

    async def prepare(self, stage: Stage) -> None:
        """Make the stream, empty."""
        await streams.make_stream(stage.client, PLAIN)


def _scrape(run: Run) -> tuple[float, int]:
    """Return how long a scrape took, in seconds, and how many series it has brought."""
    begin = time.monotonic()
    with urllib.request.urlopen(f"{run.url}/metrics", timeout=TIMEOUT_SECONDS) as answer:
        text = answer.read()
    took = time.monotonic() - begin
    return took, sum(not line.startswith(b"#") for line in text.splitlines())
