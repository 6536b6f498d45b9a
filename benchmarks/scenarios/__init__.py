"""What is measured, one module per scenario; a new one is added to `SCENARIOS`."""

from __future__ import annotations

from benchmarks.harness import Scenario
from benchmarks.scenarios.drain import Drain
from benchmarks.scenarios.publish import PublishEach, PublishWindow

SCENARIOS: tuple[Scenario, ...] = (Drain(), PublishWindow(), PublishEach())
