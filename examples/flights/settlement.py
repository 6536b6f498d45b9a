"""Whether the sagas, and the service's account of what they had done, agree with the file and each other."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from understudy.examples.flights.bookings import ACCOUNTS, Entry
from understudy.examples.flights.departures import Departure
from understudy.examples.flights.rebooking import FARE_DIFFERENCE, Trip

FULL = {"seats": 1, "charges": FARE_DIFFERENCE, "messages": 1}
# What the entries of an account may come to if the saga is compensated: nothing was done, or it was undone;
# or the cancellation came though nothing was done, and keeps away an order that is on its way. A message that
# was sent stays sent, if the saga never heard so.
UNDONE = {
    "seats": ([], [FULL["seats"], -FULL["seats"]], [0]),
    "charges": ([], [FULL["charges"], -FULL["charges"]], [0]),
    "messages": ([], [FULL["messages"]]),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebooked:
    """Where a saga is in the end.

    Attributes:
        phase: `completed` or `compensated`, if all is well.
        why: it was compensated, or is stuck.
        trip: what it has kept.
    """

    phase: str
    why: str
    trip: Trip


def very_late(departures: Iterable[Departure]) -> frozenset[str]:
    """Return the bookings that the file has a saga for."""
    return frozenset(
        f"{row.carrier}{row.flight}-{row.origin}-{row.scheduled}"
        for row in departures
        if row.delay_minutes is not None and row.delay_minutes > 180
    )


def disagreements(
    expected: Collection[str], sagas: Mapping[str, Rebooked], entries: Sequence[Entry]
) -> list[str]:
    """Return everything that isn't as it has to be, a line for each kind of it.

    Args:
        expected: the bookings that must have a saga.
        sagas: those that there are, by booking.
        entries: the service's, in order.
    """
    of_booking: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        of_booking[entry.booking].append(entry)
    found: dict[str, list[str]] = defaultdict(list)
    for booking in sorted({*expected, *sagas, *of_booking}):
        had = of_booking[booking]
        saga = sagas.get(booking)
        if booking not in expected:
            problem = "of no flight more than three hours late"
        elif saga is None:
            problem = "never begun for a flight more than three hours late"
        elif saga.phase not in {"completed", "compensated"}:
            problem = f"neither completed nor compensated, but {saga.phase}"
        elif not (_is_complete(saga, had) if saga.phase == "completed" else _is_undone(had)):
            problem = f"{saga.phase}, but not so in the service's ledger"
        else:
            continue
        accounts = "; ".join(f"{name} {_amounts(had, name) or 'none'}" for name in ACCOUNTS)
        why = f"{saga.why}; " if saga is not None and saga.why else ""
        found[problem].append(f"{booking} ({why}{accounts})")
    return [f"rebookings: {problem}: {len(those):,}, such as {those[0]}" for problem, those in found.items()]


def _is_complete(saga: Rebooked, entries: Sequence[Entry]) -> bool:
    """Each thing is there once, under the number that the saga knows."""
    numbers = {entry.account: entry.number for entry in entries}
    return (
        all(_amounts(entries, account) == [amount] for account, amount in FULL.items())
        and (saga.trip.seat, saga.trip.receipt) == (numbers["seats"], numbers["charges"])
    )  # fmt: skip


def _is_undone(entries: Sequence[Entry]) -> bool:
    """What was done is undone, once, and the last first."""
    cancelled = [entry.account for entry in entries if entry.amount <= 0]
    return (
        all(_amounts(entries, account) in UNDONE[account] for account in ACCOUNTS)
        and cancelled == sorted(cancelled, key=list(ACCOUNTS).index, reverse=True)
    )  # fmt: skip


def _amounts(entries: Sequence[Entry], account: str) -> list[int]:
    return [entry.amount for entry in entries if entry.account == account]
