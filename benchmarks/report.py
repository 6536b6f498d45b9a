"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from benchmarks.environment import Environment
from benchmarks.harness import Series

FEWEST_ROUNDS = 5


class ScenarioReport(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario's series, understudy's first.

    Args:
        name, description: the scenario's.
        messages: how many each run moved.
        series: one per contender.
    """

    name: str
    description: str
    messages: int
    series: list[Series]

    def ratio(self, other: Series) -> float:
        """How many times understudy is faster than another: the ratio of the medians."""
        return self.series[0].rate / other.rate


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the benchmarks.

    Args:
        environment: what the numbers depend on.
        rounds: how many samples each series has.
        scenarios: in the order in which they were measured.
    """

    environment: Environment
    rounds: int
    scenarios: Sequence[ScenarioReport]

    def table(self) -> str:
        """The report for people."""
        lines = self.environment.lines()
        few = f" (fewer than {FEWEST_ROUNDS} mean little)" if self.rounds < FEWEST_ROUNDS else ""
        lines.append(f"medians of {self.rounds} interleaved rounds{few}; every message accounted for")
        for scenario in self.scenarios:
            lines += ["", f"{scenario.name}: {scenario.description}; {scenario.messages:,} messages a run"]
            lines.append(
                f"  {'':36}{'msgs/s':>10}{'lowest - highest':>22}{'CPU µs/msg':>12}{'understudy is':>15}"
            )
            lines += [_row(scenario, series) for series in scenario.series]
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """The report for programs, every sample in it."""
        return {
            "environment": msgspec.to_builtins(self.environment),
            "rounds": self.rounds,
            "conserved": True,
            "scenarios": [
                {
                    "name": scenario.name,
                    "description": scenario.description,
                    "messages": scenario.messages,
                    "contenders": [_plain(scenario, series) for series in scenario.series],
                }
                for scenario in self.scenarios
            ],
        }


def _row(scenario: ScenarioReport, series: Series) -> str:
    rates = [sample.rate for sample in series.samples]
    spread = f"{min(rates):,.0f} - {max(rates):,.0f}"
    ratio = "" if series is scenario.series[0] else f"{scenario.ratio(series):.2f} x"
    return f"  {series.name:36}{series.rate:>10,.0f}{spread:>22}{series.cpu_microseconds:>12.1f}{ratio:>15}"


def _plain(scenario: ScenarioReport, series: Series) -> dict[str, Any]:
    return {
        "name": series.name,
        "rate": series.rate,
        "cpu_microseconds": series.cpu_microseconds,
        "seconds": median(sample.seconds for sample in series.samples),
        "understudy_is_times_faster": scenario.ratio(series),
        "samples": msgspec.to_builtins(series.samples),
    }
