"""What was measured, as a picture: a panel per scenario, and in it a bar per contender."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import Series
from benchmarks.report import Report, ScenarioReport

OURS, OTHERS = "#2a6f97", "#b8b8b8"
WIDTH_INCHES = 10.0
BAR_INCHES = 0.32
PANEL_INCHES = 1.1


def draw(report: Report, path: Path) -> None:
    """Draw a report.

    Args:
        report: what was measured.
        path: where to, by its suffix an SVG or a PNG file.
    """
    # No display is needed, and the text of an SVG stays text.
    mpl.use("agg")
    mpl.rcParams["svg.fonttype"] = "none"
    heights = [PANEL_INCHES + BAR_INCHES * len(scenario.series) for scenario in report.scenarios]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + PANEL_INCHES), layout="constrained")
    panels = figure.subplots(len(heights), squeeze=False, gridspec_kw={"height_ratios": heights})
    for scenario, (axes,) in zip(report.scenarios, panels, strict=True):
        _draw_panel(axes, scenario)
    figure.suptitle("\n".join([*report.environment.lines(), report.method()]), fontsize=7)
    figure.savefig(path, dpi=150)


def _draw_panel(axes: Axes, scenario: ScenarioReport) -> None:
    measure = scenario.measures[0]
    names = [series.name for series in scenario.series]
    medians = [series.median(measure) for series in scenario.series]
    lows = [min(sample[measure.key] for sample in series.samples) for series in scenario.series]
    highs = [max(sample[measure.key] for sample in series.samples) for series in scenario.series]
    errors = [
        [median - low for median, low in zip(medians, lows, strict=True)],
        [high - median for median, high in zip(medians, highs, strict=True)],
    ]
    colours = [OURS if _is_ours(scenario, series) else OTHERS for series in scenario.series]
    axes.barh(names, medians, xerr=errors, color=colours, error_kw={"lw": 0.8, "capsize": 2})
    for row, (series, high) in enumerate(zip(scenario.series, highs, strict=True)):
        numbers = [f"{m.format(series.median(m))} {m.heading}" for m in scenario.measures]
        axes.annotate(
            ", ".join(numbers), (high, row), (4, 0), textcoords="offset points", va="center", fontsize=7
        )
    # Room for the numbers.
    axes.set_xlim(0, max(highs) * 1.6)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_title(f"{scenario.name}: {scenario.description}", fontsize=8, loc="left")
    axes.set_xlabel(measure.heading, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _is_ours(scenario: ScenarioReport, series: Series) -> bool:
    # Where nobody is named, understudy is compared with itself.
    named = [other for other in scenario.series if other.name.startswith("understudy")]
    return not named or series in named
