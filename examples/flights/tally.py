"""What the file says and what the actors counted, in one form, so that the two can be compared.

The file's side is computed from its rows alone: it shares no code with the actors.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from understudy.examples.flights.departures import Departure

Notice: TypeAlias = tuple[str, int, str, str, float]
"""Carrier, flight, origin, scheduled departure and delay of a flight that was announced as late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CarrierTally:
    """One carrier's flights. Its mean delay is over those that departed."""

    flights: int
    cancelled: int
    total_delay_minutes: float

    @property
    def mean_delay_minutes(self) -> float | None:
        """None where every flight was cancelled."""
        departed = self.flights - self.cancelled
        return self.total_delay_minutes / departed if departed else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """The counts of a whole run, or of the file."""

    carriers: Mapping[str, CarrierTally]
    notices: Counter[Notice]
    out_of_order: int = 0


def expected(departures: Iterable[Departure]) -> Tally:
    """What a run over these departures has to arrive at."""
    flights: Counter[str] = Counter()
    cancelled: Counter[str] = Counter()
    total: Counter[str] = Counter()
    notices: Counter[Notice] = Counter()
    for row in departures:
        flights[row.carrier] += 1
        if row.delay_minutes is None:
            cancelled[row.carrier] += 1
            continue
        total[row.carrier] += row.delay_minutes  # type: ignore[assignment]  # a sum of minutes, not of items
        if row.delay_minutes > 60:
            notices[row.carrier, row.flight, row.origin, row.scheduled, row.delay_minutes] += 1
    carriers = {
        carrier: CarrierTally(
            flights=count, cancelled=cancelled[carrier], total_delay_minutes=float(total[carrier])
        )
        for carrier, count in flights.items()
    }
    return Tally(carriers=carriers, notices=notices)


def counted(database: Path, ledger: Mapping[str, Mapping[str, Any]]) -> Tally:
    """What the statistics actor's database and the service's ledger say."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT carrier, flights, cancelled, delay_minutes, out_of_order FROM carriers"
        ).fetchall()
    return Tally(
        carriers={
            carrier: CarrierTally(flights=flights, cancelled=cancelled, total_delay_minutes=delay)
            for carrier, flights, cancelled, delay, _ in rows
        },
        notices=Counter(
            (n["carrier"], n["flight"], n["origin"], n["scheduled"], n["delay_minutes"])
            for n in ledger.values()
        ),
        out_of_order=sum(row[-1] for row in rows),
    )


def differences(expected: Tally, counted: Tally) -> list[str]:
    """Every count that isn't what the file says, a line each; empty when all are right."""
    found = []
    nothing = CarrierTally(flights=0, cancelled=0, total_delay_minutes=0.0)
    for carrier in sorted({*expected.carriers, *counted.carriers}):
        right = expected.carriers.get(carrier, nothing)
        ours = counted.carriers.get(carrier, nothing)
        found += [
            f"{carrier}: {getattr(ours, what):,} {words} counted, {getattr(right, what):,} in the file"
            for what, words in (
                ("flights", "flights"),
                ("cancelled", "cancelled flights"),
                ("total_delay_minutes", "minutes of delay"),
            )
            if getattr(ours, what) != getattr(right, what)
        ]
    missing = (expected.notices - counted.notices).total()
    surplus = (counted.notices - expected.notices).total()
    if missing:
        found.append(f"notices: {missing:,} late flights of the file are not in the service's ledger")
    if surplus:
        found.append(f"notices: {surplus:,} in the service's ledger are of no late flight, or there twice")
    if counted.out_of_order:
        found.append(f"order: {counted.out_of_order:,} departures counted after a later one of their carrier")
    return found
