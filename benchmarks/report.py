"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks.environment import Environment
from benchmarks.harness import Goal, Measure, Series

FEWEST_ROUNDS = 5


class ScenarioReport(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario's series, understudy's first.

    Args:
        name, description, measures, goals: the scenario's.
        messages: how many each run moved; 0 where runs differ, or are measured otherwise.
        series: one per contender.
        left_out: who wasn't measured, and what has to be installed for it.
    """

    name: str
    description: str
    measures: Sequence[Measure]
    goals: Sequence[Goal]
    messages: int
    series: list[Series]
    left_out: dict[str, str]

    def ratio(self, other: Series) -> float:
        """Return the first series' median divided by another's, of the first measure."""
        return self.series[0].median(self.measures[0]) / other.median(self.measures[0])

    def reached(self, goal: Goal) -> float | None:
        """Return what a goal's number came to; None if one of its contenders was left out."""
        medians = {series.name: series.median(goal.measure) for series in self.series}
        if goal.ours not in medians or (goal.other and goal.other not in medians):
            return None
        return medians[goal.ours] / medians[goal.other] if goal.other else medians[goal.ours]

    def lines(self) -> list[str]:
        """The report for people."""
        spread = "lowest - highest"
        width = max(len(series.name) for series in self.series) + 2
        columns = [_Column(measure, self.series) for measure in self.measures]
        first = columns[0]
        head = [f"  {'':{width}}{first.head}", f"{spread:>{first.spread_width}}"]
        head += [column.head for column in columns[1:]]
        runs = f"; {self.messages:,} messages a run" if self.messages else ""
        lines = [f"{self.name}: {self.description}{runs}", "".join([*head, "   first ÷ this"])]
        for series in self.series:
            row = [f"  {series.name:{width}}{first.cell(series)}", first.spread(series)]
            row += [column.cell(series) for column in columns[1:]]
            ratio = "" if series is self.series[0] else f"{self.ratio(series):>15.2f}"
            lines.append("".join([*row, ratio]))
        lines += [f"  left out: {name}: {why}" for name, why in self.left_out.items()]
        lines += [self._goal_line(goal) for goal in self.goals]
        return lines

    def plain(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "name": self.name,
            "description": self.description,
            "messages": self.messages,
            "contenders": [
                {
                    "name": series.name,
                    **{measure.key: series.median(measure) for measure in self.measures},
                    "first_divided_by_this": self.ratio(series),
                    "samples": [dict(sample) for sample in series.samples],
                }
                for series in self.series
            ],
            "left_out": self.left_out,
            "goals": [
                {**msgspec.to_builtins(goal), "measure": goal.measure.key, "reached": self.reached(goal)}
                for goal in self.goals
            ],
        }

    def _goal_line(self, goal: Goal) -> str:
        reached = self.reached(goal)
        what = f"{goal.ours} ÷ {goal.other}" if goal.other else goal.ours
        if reached is None:
            value = "not measured"
        else:
            value = f"{reached:.2f}" if goal.other else goal.measure.format(reached)
        bound = ""
        if goal.at_least is not None:
            bound = f" (wanted: at least {goal.at_least:g})"
        elif goal.at_most is not None:
            bound = f" (wanted: at most {goal.at_most:g})"
        return f"  {what}, {goal.measure.heading}: {value}{bound}"


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

    def method(self) -> str:
        """What its numbers are."""
        few = f" (fewer than {FEWEST_ROUNDS} mean little)" if self.rounds < FEWEST_ROUNDS else ""
        return f"medians of {self.rounds} interleaved rounds{few}; every message accounted for"

    def table(self) -> str:
        """The report for people."""
        lines = [*self.environment.lines(), self.method()]
        for scenario in self.scenarios:
            lines += ["", *scenario.lines()]
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """The report for programs, every sample in it."""
        return {
            "environment": msgspec.to_builtins(self.environment),
            "rounds": self.rounds,
            "conserved": True,
            "scenarios": [scenario.plain() for scenario in self.scenarios],
        }


class _Column:
    """How wide a measure's column is, and what is in it."""

    def __init__(self, measure: Measure, all_series: Sequence[Series]) -> None:
        self._measure = measure
        cells = [measure.format(series.median(measure)) for series in all_series]
        self._width = max(len(text) for text in [*cells, measure.heading]) + 3
        self.spread_width = (
            max(len(text) for text in [*map(self._spread, all_series), "lowest - highest"]) + 3
        )

    @property
    def head(self) -> str:
        return f"{self._measure.heading:>{self._width}}"

    def cell(self, series: Series) -> str:
        return f"{self._measure.format(series.median(self._measure)):>{self._width}}"

    def spread(self, series: Series) -> str:
        return f"{self._spread(series):>{self.spread_width}}"

    def _spread(self, series: Series) -> str:
        values = [sample[self._measure.key] for sample in series.samples]
        return f"{self._measure.format(min(values))} - {self._measure.format(max(values))}"
