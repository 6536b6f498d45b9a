"""The table of what each guarantee costs, in the page that describes them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks.harness import BROKER_CPU, CPU, RATE, Measure, Series
from benchmarks.report import Report, ScenarioReport
from benchmarks.scenarios.guarantees import GUARANTEES, Guarantees

BEGIN = "<!-- made by `make guarantees` -->\n"
END = "<!-- end of what it made -->\n"
# Of lines in documents.
_WIDTH = 110


def find_table(page: Path) -> tuple[str, str]:
    """Return what is before and after the table in a page.

    Raises:
        OSError: the page can't be read.
        ValueError: there is no place for a table in it.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN.strip()} … {END.strip()} in it")
    return before, after


def write_table(report: Report, page: Path, arguments: str) -> None:
    """Put the table into the page, in the place of the last one.

    Args:
        report: has the scenario.
        page: the Markdown file.
        arguments: with which it was measured, beside the scenario.
    """
    before, after = find_table(page)
    table = "".join(f"{line}\n" for line in _lines(report, arguments))
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def _lines(report: Report, arguments: str) -> Iterator[str]:
    (measured,) = (one for one in report.scenarios if one.name == Guarantees.name)
    yield from textwrap.wrap(
        f"{datetime.now(UTC):%Y-%m-%d}; {measured.messages:,} messages a run; {report.method()}. "
        f"Made by `python -m benchmarks --scenario {Guarantees.name} --page PAGE {arguments}`.",
        _WIDTH,
        break_on_hyphens=False,
    )
    yield ""
    for line in report.environment.lines():
        yield from textwrap.wrap(f"- {line}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    yield ""
    yield "| Guarantee | Written as | Rate | of the rounds | CPU of the cell | of the broker |"
    yield "|---|---|--:|--:|--:|--:|"
    yield from _rows(measured)


def _rows(measured: ScenarioReport) -> Iterator[str]:
    plain = measured.series[0]
    written = {guarantee.name: guarantee.written for guarantee in GUARANTEES}
    for series in measured.series:
        rates = _ratios(series, plain, RATE)
        cells = (
            f"{median(rates):.2f}",
            f"{min(rates):.2f} to {max(rates):.2f}",
            _cost(series, plain, CPU),
            _cost(series, plain, BROKER_CPU),
        )
        yield f"| {series.name} | {written[series.name]} | {' | '.join(cells)} |"


def _cost(series: Series, plain: Series, measure: Measure) -> str:
    return f"{median(_ratios(series, plain, measure)):.1f} ({measure.format(series.median(measure))} µs)"


def _ratios(series: Series, plain: Series, measure: Measure) -> list[float]:
    """Return a number ÷ the plain actor's of the same round, whose disturbances both have met."""
    return [
        # The kernel counts CPU time in ticks, and few messages may need none.
        sample[measure.key] / (reference[measure.key] or math.nan)
        for sample, reference in zip(series.samples, plain.samples, strict=True)
    ]
