"""What isn't as it has to be between the sagas and the service's account is named, and nothing else is."""

import pytest

from understudy.examples.flights.bookings import Entry
from understudy.examples.flights.departures import Departure
from understudy.examples.flights.events import Delayed
from understudy.examples.flights.rebooking import VERY_LATE_MINUTES, Trip
from understudy.examples.flights.settlement import Rebooked, disagreements, very_late

COMPLETED = Rebooked(phase="completed", why="", trip=Trip(seat=1, receipt=2))
COMPENSATED = Rebooked(phase="compensated", why="notify: no", trip=Trip(seat=1, receipt=2))


def account(*lines: tuple[str, int]) -> list[Entry]:
    return [Entry(number, name, "UA1", amount) for number, (name, amount) in enumerate(lines, start=1)]


DONE = (("seats", 1), ("charges", 80), ("messages", 1))


def test_the_file_knows_which_flights_are_rebooked_by_the_names_that_the_sagas_have() -> None:
    rows = [
        Departure("UA", number, "EWR", "IAH", "2013-01-01T05:15", delay)
        for number, delay in enumerate((None, -3.0, VERY_LATE_MINUTES, VERY_LATE_MINUTES + 1.0))
    ]
    late = Delayed(carrier="UA", flight=3, origin="EWR", scheduled="2013-01-01T05:15", delay_minutes=181.0)
    assert very_late(rows) == {late.booking}


@pytest.mark.parametrize(
    ("saga", "lines"),
    [
        (COMPLETED, DONE),
        (COMPENSATED, ()),
        (COMPENSATED, (("seats", 1), ("seats", -1))),
        (COMPENSATED, (("seats", 1), ("charges", 80), ("charges", -80), ("seats", -1))),
        # Cancelled though nothing was ordered: it might have been.
        (COMPENSATED, (("seats", 1), ("charges", 0), ("seats", -1))),
        (COMPENSATED, (*DONE, ("charges", -80), ("seats", -1))),
    ],
)
def test_a_right_account_has_no_disagreements(saga: Rebooked, lines: tuple[tuple[str, int], ...]) -> None:
    assert disagreements({"UA1"}, {"UA1": saga}, account(*lines)) == []


@pytest.mark.parametrize(
    ("saga", "lines"),
    [
        (COMPLETED, ()),
        (COMPLETED, DONE[:2]),
        (COMPLETED, (("seats", 1), ("charges", 80), ("charges", 80), ("messages", 1))),
        (COMPLETED, (("seats", 1), ("charges", 79), ("messages", 1))),
        (COMPLETED, (*DONE, ("seats", -1))),
        # It has the seat of another entry.
        (COMPLETED, (("charges", 80), ("seats", 1), ("messages", 1))),
        (COMPENSATED, (("seats", 1),)),
        (COMPENSATED, (("seats", 1), ("seats", -1), ("seats", -1))),
        (COMPENSATED, (("seats", 1), ("charges", 80), ("seats", -1))),
        # Undone in the order in which it was done.
        (COMPENSATED, (("seats", 1), ("charges", 80), ("seats", -1), ("charges", -80))),
    ],
)
def test_an_account_that_is_not_as_the_saga_says_is_named(
    saga: Rebooked, lines: tuple[tuple[str, int], ...]
) -> None:
    (line,) = disagreements({"UA1"}, {"UA1": saga}, account(*lines))
    assert line.startswith(f"rebookings: {saga.phase}, but not so in the service's ledger: 1, such as UA1 (")


def test_sagas_that_are_missing_or_unasked_for_or_have_not_ended_are_named() -> None:
    sagas = {
        "UA2": Rebooked(phase="running", why="", trip=Trip()),
        "UA3": Rebooked(phase="stuck", why="seats can't be undone: gone", trip=Trip(seat=1)),
        "UA4": Rebooked(phase="running", why="", trip=Trip()),
        "UA5": COMPLETED,
    }
    assert disagreements({"UA1", "UA2", "UA3", "UA4"}, sagas, [Entry(1, "seats", "UA3", 1)]) == [
        "rebookings: never begun for a flight more than three hours late: 1, such as UA1 "
        "(seats none; charges none; messages none)",
        "rebookings: neither completed nor compensated, but running: 2, such as UA2 "
        "(seats none; charges none; messages none)",
        "rebookings: neither completed nor compensated, but stuck: 1, such as UA3 "
        "(seats can't be undone: gone; seats [1]; charges none; messages none)",
        "rebookings: of no flight more than three hours late: 1, such as UA5 "
        "(seats none; charges none; messages none)",
    ]
