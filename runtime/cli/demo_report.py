"""The result of a demonstration: checked against the file, and printed."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from understudy.examples.flights.bookings import ACCOUNTS, Entry
from understudy.examples.flights.departures import CARRIERS
from understudy.examples.flights.settlement import disagreements
from understudy.examples.flights.tally import Tally, counted, differences
from understudy.examples.flights.trouble import Fate
from understudy.runtime.cli.demo_evidence import Evidence
from understudy.runtime.cli.demo_scenario import Observed, describe_phases
from understudy.runtime.cli.words import plural


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is known at the end.

    Attributes:
        right: what the file says.
        due: the bookings that it has a rebooking for.
        evidence: what the run has left.
        observed: what was seen on the way.
        exit_code: the runtime's after SIGTERM; None if it had to be killed.
        stop_seconds: how long it took to stop.
    """

    right: Tally
    due: frozenset[str]
    evidence: Evidence
    observed: Observed
    exit_code: int | None
    stop_seconds: float

    @property
    def counted(self) -> Tally:
        """What the run has arrived at."""
        return counted(self.evidence.states, self.evidence.announced, self.evidence.ledger)

    @property
    def phases(self) -> Counter[str]:
        """How many rebookings are in which phase."""
        return Counter(saga.phase for saga in self.evidence.rebookings.values())

    @property
    def wrong(self) -> list[str]:
        """Everything that isn't as it has to be, a line each."""
        found = differences(self.right, self.counted)
        found += disagreements(self.due, self.evidence.rebookings, self.evidence.entries)
        if self.evidence.dead_letters:
            found.append(f"dead letters: {self.evidence.dead_letters:,}, where none belongs")
        found += [
            f"{durable}: pending or unacknowledged after the stop: {count:,}"
            for durable, count in self.evidence.unsettled.items()
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
            f"[green]All counts are right[/]: {flights:,} flights of {len(report.right.carriers)} carriers, "
            f"each counted once; {report.right.announced:,} of them late, and one notice sent of each; "
            f"{plural(len(report.due), 'rebooking')}, {describe_phases(report.phases)}, and the service's "
            "ledger agrees.",
            soft_wrap=True,
        )


def print_json(report: Report) -> None:
    """Print everything as one JSON object on standard output."""
    evidence = report.evidence
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
        "announced": evidence.announced,
        "notices": len(evidence.ledger["notices"]),
        "notices_requests": evidence.ledger["requests"],
        "notices_repeated": evidence.ledger["repeated"],
        "notices_refused": evidence.ledger["refused"],
        "rebookings": report.phases,
        "rebookings_requests": evidence.fates,
        **asdict(report.observed),
        "redelivered": evidence.redelivered,
        "unsettled": evidence.unsettled,
        "dead_letters": evidence.dead_letters,
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
    seen, evidence, counters = report.observed, report.evidence, report.observed.counters
    ledger = evidence.ledger
    flights = sum(tally.flights for tally in report.right.carriers.values())
    redelivered = ", ".join(f"{durable} {count}" for durable, count in evidence.redelivered.items() if count)
    table = Table(show_header=False, box=None)
    for name, value in (
        (
            "published",
            f"{flights:,} in {seen.publish_seconds:.1f} s, {flights / seen.publish_seconds:,.0f}/s",
        ),
        ("handled", f"{seen.handled_seconds:.1f} s after the first, {flights / seen.handled_seconds:,.0f}/s"),
        *(
            ("killed", f"{kill.cell} after {kill.published:,}; up again in {kill.recovery_seconds:.2f} s")
            for kill in seen.kills
        ),
        ("restarts", f"{seen.restarts}"),
        ("taken over", f"{plural(counters.get('taken_over', 0), 'event')} by replacements"),
        ("redelivered", redelivered or "none"),
        (
            "breaker openings",
            f"{counters.get('breaker_openings', 0)}; "
            f"{plural(seen.most_waiting, 'late flight')} waited at most",
        ),
        (
            "states",
            f"{plural(len(evidence.states), 'carrier')} in {plural(counters.get('committed', 0), 'commit')}",
        ),
        (
            "not counted again",
            f"{plural(counters.get('already_applied', 0), 'departure')} that came twice",
        ),
        ("notices sent", f"{len(ledger['notices']):,}"),
        (
            "requests for them",
            f"{ledger['requests']:,}: {plural(ledger['repeated'], 'repeat')} recognised by key, "
            f"{ledger['refused']:,} refused while down",
        ),
        ("rebookings", describe_phases(report.phases)),
        ("requests for them", _fates(evidence.fates)),
        ("seats, money", _balance(evidence.entries)),
        ("dead letters", f"{evidence.dead_letters:,}"),
        ("stopped", f"in {report.stop_seconds:.1f} s, exit code {report.exit_code}"),
    ):
        table.add_row(name, value)
    return table


def _fates(fates: Mapping[Fate, int]) -> str:
    words = {
        Fate.WORKS: "done",
        Fate.REPEATED: "recognised by key",
        Fate.REFUSED: "refused for good",
        Fate.FAILS: "failed",
        Fate.HANGS: "hung",
        Fate.LIES: "hung when done",
        Fate.DOWN: "refused while down",
    }
    parts = ", ".join(f"{fates[fate]:,} {word}" for fate, word in words.items())
    return f"{sum(fates.values()):,}: {parts}"


def _balance(entries: Sequence[Entry]) -> str:
    held = {account: sum(one.amount for one in entries if one.account == account) for account in ACCOUNTS}
    back = Counter(one.account for one in entries if one.amount < 0)
    return (
        f"{plural(held['seats'], 'seat')} held, {back['seats']:,} given back; ${held['charges']:,} charged, "
        f"{back['charges']:,} refunded"
    )
