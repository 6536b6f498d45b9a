"""What is measured; a new scenario is added to `SCENARIOS`."""

from __future__ import annotations

from benchmarks.harness import Scenario
from benchmarks.scenarios.ask import Ask
from benchmarks.scenarios.backlog import Backlog
from benchmarks.scenarios.cells import Growth, Idle, StartUp
from benchmarks.scenarios.chain import Chain
from benchmarks.scenarios.drain import (
    Drain,
    DrainBatches,
    DrainHeaders,
    DrainKeys,
    DrainLarge,
    DrainOnce,
    DrainState,
)
from benchmarks.scenarios.guarantees import Guarantees
from benchmarks.scenarios.kill import Kill
from benchmarks.scenarios.latency import Latency, LatencyHalfLoad
from benchmarks.scenarios.memory import SlowHandler
from benchmarks.scenarios.publish import PublishEach, PublishWindow
from benchmarks.scenarios.scrape import Scrape
from benchmarks.scenarios.telemetry import Telemetry

SCENARIOS: tuple[Scenario, ...] = (
    Drain(),
    DrainLarge(),
    DrainBatches(),
    DrainHeaders(),
    DrainKeys(),
    DrainState(),
    DrainOnce(),
    Guarantees(),
    Telemetry(),
    PublishWindow(),
    PublishEach(),
    Latency(),
    LatencyHalfLoad(),
    Ask(),
    Chain(),
    Backlog(),
    SlowHandler(),
    Kill(),
    StartUp(),
    Growth(),
    Idle(),
    Scrape(),
)
