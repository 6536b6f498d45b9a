"""What is measured; a new scenario is added to `SCENARIOS`."""

from __future__ import annotations

from benchmarks.harness import Scenario
from benchmarks.scenarios.drain import Drain, DrainHeaders, DrainKeys, DrainLarge
from benchmarks.scenarios.publish import PublishEach, PublishWindow

SCENARIOS: tuple[Scenario, ...] = (
    Drain(),
    DrainLarge(),
    DrainHeaders(),
    DrainKeys(),
    PublishWindow(),
    PublishEach(),
)
