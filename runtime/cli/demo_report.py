"""The result of a demonstration: checked against the file, and printed."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from understudy.examples.flights.departures import CARRIERS
from understudy.examples.flights.tally import Tally, differences
from understudy.runtime.cli.demo_scenario import Observed


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is known at the end.

    Attributes:
        right, counted: what the file says, and what the actors counted.
        ledger: the notices service's account of its requests.
        observed: what was seen on the way.
        exit_code: the runtime's after SIGTERM; None if it had to be killed.
        stop_seconds: how long it took to stop.
    """

    right: Tally
    counted: Tally
    ledger: Mapping[str, Any]
    observed: Observed
    exit_code: int | None
    stop_seconds: float

    @property
    def wrong(self) -> list[str]:
        """Everything that isn't as it has to be, a line each."""
        found = differences(self.right, self.counted)
        if self.observed.dead_letters:
            found.append(f"dead letters: {self.observed.dead_letters:,}, where none belongs")
        found += [
            f"{durable}: {count:,} deliveries pending or unacknowledged after the stop"
            for durable, count in self.observed.unsettled.items()
            if count
        ]
        if self.exit_code != 0:
            ended = "had to be killed" if self.exit_code is None else f"ended with {self.exit_code}"
            found.append(f"the runtime {ended} after {signal.SIGTERM.name}")
        return found


def print_tables(report: Report) -> None:
    """Print the carriers, the figures of the run, and the verdict on standard output."""
    console = Console(highlight=False)
    console.print(_carriers(report))
    console.print(_figures(report))
    for line in report.wrong:
        console.print(f"[red]wrong[/]: {line}", soft_wrap=True)
    if not report.wrong:
        flights = sum(tally.flights for tally in report.right.carriers.values())
        console.print(
            f"[green]All counts are right[/]: {flights:,} flights, {len(report.right.carriers)} carriers."
        )


def print_json(report: Report) -> None:
    """Print everything as one JSON object on standard output."""
    summary = {
        "ok": not report.wrong,
        "wrong": report.wrong,
        "carriers": {
            carrier: {
                "flights": tally.flights,
                "cancelled": tally.cancelled,
                "mean_delay_minutes": tally.mean_delay_minutes,
            }
            for carrier, tally in sorted(report.counted.carriers.items())
        },
        "notices": len(report.ledger["notices"]),
        "notices_repeated": report.ledger["repeated"],
        "notices_refused": report.ledger["refused"],
        **asdict(report.observed),
        "exit_code": report.exit_code,
        "stop_seconds": report.stop_seconds,
    }
    sys.stdout.write(f"{json.dumps(summary, indent=2)}\n")


def _carriers(report: Report) -> Table:
    table = Table(title="Departures from New York, January 2013")
    table.add_column("carrier")
    for column in ("flights", "cancelled", "mean delay", ""):
        table.add_column(column, justify="right")
    for carrier, tally in sorted(report.counted.carriers.items(), key=lambda pair: -pair[1].flights):
        mean = tally.mean_delay_minutes
        table.add_row(
            f"{carrier}  {CARRIERS.get(carrier, '')}",
            f"{tally.flights:,}",
            f"{tally.cancelled:,}",
            "" if mean is None else f"{mean:.2f} min",
            "✓" if tally == report.right.carriers.get(carrier) else "[red]✗[/]",
        )
    table.add_section()
    tallies = report.counted.carriers.values()
    table.add_row(
        "all", f"{sum(one.flights for one in tallies):,}", f"{sum(one.cancelled for one in tallies):,}"
    )
    return table


def _figures(report: Report) -> Table:
    seen, counters = report.observed, report.observed.counters
    flights = sum(tally.flights for tally in report.right.carriers.values())
    redelivered = ", ".join(f"{durable} {count}" for durable, count in seen.redelivered.items() if count)
    table = Table(show_header=False, box=None)
    for name, value in (
        (
            "published",
            f"{flights:,} in {seen.publish_seconds:.1f} s, {flights / seen.publish_seconds:,.0f}/s",
        ),
        ("handled", f"{seen.handled_seconds:.1f} s after the first, {flights / seen.handled_seconds:,.0f}/s"),
        ("killed", f"{seen.killed} after {seen.killed_at:,}; up again in {seen.recovery_seconds:.2f} s"),
        ("restarts", f"{seen.restarts}"),
        ("taken over", f"{counters.get('taken_over', 0):,} deliveries by the killed cell's replacement"),
        ("redelivered", redelivered or "none"),
        (
            "breaker openings",
            f"{counters.get('breaker_openings', 0)}; {seen.most_waiting:,} late flights waited at most",
        ),
        (
            "notices",
            f"{len(report.ledger['notices']):,}; {report.ledger['repeated']:,} repeats recognised, "
            f"{report.ledger['refused']:,} requests refused while down",
        ),
        ("dead letters", f"{seen.dead_letters:,}"),
        ("stopped", f"in {report.stop_seconds:.1f} s, exit code {report.exit_code}"),
    ):
        table.add_row(name, value)
    return table
