"""What the file says and what the actors counted, in one form, so that the two can be compared.

The file's side is computed from its rows alone: it shares no code with the actors.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from understudy.examples.flights.app import CarrierStatistics
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
    """The counts of a whole run, or of the file.

    Attributes:
        carriers: by their code.
        announced: how many flights were announced as late, in the stream.
        notices: of which the service has sent notices, and how many.
        conflicts: how many requests came with the key of another notice.
        out_of_order: how many departures were counted after a later one of their carrier.
    """

    carriers: Mapping[str, CarrierTally]
    announced: int
    notices: Counter[Notice]
    conflicts: int = 0
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
    return Tally(carriers=carriers, announced=notices.total(), notices=notices)


def counted(states: Mapping[str, CarrierStatistics], announced: int, ledger: Mapping[str, Any]) -> Tally:
    """What a run has left.

    Args:
        states: the statistics actor's, by carrier.
        announced: how many late flights the stream holds.
        ledger: the service's report.
    """
    return Tally(
        carriers={
            carrier: CarrierTally(
                flights=state.flights, cancelled=state.cancelled, total_delay_minutes=state.delay_minutes
            )
            for carrier, state in states.items()
        },
        announced=announced,
        notices=Counter(
            (n["carrier"], n["flight"], n["origin"], n["scheduled"], n["delay_minutes"])
            for n in ledger["notices"].values()
        ),
        conflicts=ledger["conflicts"],
        out_of_order=sum(state.out_of_order for state in states.values()),
    )


def differences(expected: Tally, counted: Tally) -> list[str]:
    """Every count that isn't what the file says, a line each; empty when all are right."""
    found = []
    nothing = CarrierTally(flights=0, cancelled=0, total_delay_minutes=0.0)
    for carrier in sorted({*expected.carriers, *counted.carriers}):
        right = expected.carriers.get(carrier, nothing)
        ours = counted.carriers.get(carrier, nothing)
        found += [
            f"{carrier}: {words}: {getattr(ours, what):,} counted, {getattr(right, what):,} in the file"
            for what, words in (
                ("flights", "flights"),
                ("cancelled", "cancelled flights"),
                ("total_delay_minutes", "minutes of delay"),
            )
            if getattr(ours, what) != getattr(right, what)
        ]
    if counted.announced != expected.announced:
        found.append(
            f"late flights: {counted.announced:,} announced in the stream, {expected.announced:,} in the file"
        )
    surplus = counted.notices - expected.notices
    found += [
        f"notices: {words}: {count:,}"
        for words, count in (
            ("never sent for a late flight of the file", (expected.notices - counted.notices).total()),
            ("sent again", sum(n for notice, n in surplus.items() if notice in expected.notices)),
            ("sent for no late flight", sum(n for one, n in surplus.items() if one not in expected.notices)),
            ("asked for under the key of another one", counted.conflicts),
        )
        if count
    ]
    if counted.out_of_order:
        found.append(f"order: counted after a later one of their carrier: {counted.out_of_order:,}")
    return found
