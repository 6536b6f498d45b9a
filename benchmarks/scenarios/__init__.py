"""What is measured; a new scenario is added to `SCENARIOS`."""

from __future__ import annotations

from benchmarks.harness import Scenario
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
from benchmarks.scenarios.kill import Kill
from benchmarks.scenarios.latency import Latency, LatencyHalfLoad
from benchmarks.scenarios.memory import SlowHandler
from benchmarks.scenarios.publish import PublishEach, PublishWindow

SCENARIOS: tuple[Scenario, ...] = (
    Drain(),
    DrainLarge(),
    DrainBatches(),
    DrainHeaders(),
    DrainKeys(),
    DrainState(),
    DrainOnce(),
    PublishWindow(),
    PublishEach(),
    Latency(),
    LatencyHalfLoad(),
    Chain(),
    Backlog(),
    SlowHandler(),
    Kill(),
    StartUp(),
    Growth(),
    Idle(),
)
