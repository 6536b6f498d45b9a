"""A count that differs from the file is named, and one that doesn't is not."""

from collections import Counter

import pytest

from understudy.examples.flights.departures import Departure
from understudy.examples.flights.tally import CarrierTally, Tally, differences, expected

DEPARTURES = [
    Departure("UA", 1, "EWR", "IAH", "2013-01-01T05:15", 2.0),
    Departure("UA", 2, "EWR", "IAH", "2013-01-01T05:20", 61.0),
    Departure("UA", 3, "EWR", "IAH", "2013-01-01T05:25", None),
    Departure("AA", 4, "JFK", "MIA", "2013-01-01T05:40", 60.0),
]
LATE = ("UA", 2, "EWR", "2013-01-01T05:20", 61.0)


def run_of(*, ua: tuple[int, int, float] = (3, 1, 63.0), notices: int = 1, out_of_order: int = 0) -> Tally:
    flights, cancelled, delay = ua
    return Tally(
        carriers={
            "UA": CarrierTally(flights=flights, cancelled=cancelled, total_delay_minutes=delay),
            "AA": CarrierTally(flights=1, cancelled=0, total_delay_minutes=60.0),
        },
        notices=Counter({LATE: notices}),
        out_of_order=out_of_order,
    )


def test_the_expectation_is_computed_from_the_rows() -> None:
    assert expected(DEPARTURES) == run_of()


def test_the_mean_is_over_the_flights_that_departed() -> None:
    carriers = expected(DEPARTURES).carriers
    assert carriers["UA"].mean_delay_minutes == 31.5
    assert CarrierTally(flights=1, cancelled=1, total_delay_minutes=0.0).mean_delay_minutes is None


def test_a_right_run_has_no_differences() -> None:
    assert differences(expected(DEPARTURES), run_of()) == []


@pytest.mark.parametrize(
    ("run", "lines"),
    [
        (run_of(ua=(2, 1, 63.0)), ["UA: 2 flights counted, 3 in the file"]),
        (run_of(ua=(3, 0, 63.0)), ["UA: 0 cancelled flights counted, 1 in the file"]),
        (run_of(ua=(3, 1, 62.0)), ["UA: 62.0 minutes of delay counted, 63.0 in the file"]),
        (run_of(notices=0), ["notices: 1 late flights of the file are not in the service's ledger"]),
        (run_of(notices=2), ["notices: 1 in the service's ledger are of no late flight, or there twice"]),
        (run_of(out_of_order=4), ["order: 4 departures counted after a later one of their carrier"]),
    ],
)
def test_each_wrong_count_is_named(run: Tally, lines: list[str]) -> None:
    assert differences(expected(DEPARTURES), run) == lines


def test_a_carrier_that_was_never_counted_is_named() -> None:
    run = Tally(carriers={"UA": run_of().carriers["UA"]}, notices=run_of().notices)
    assert differences(expected(DEPARTURES), run) == [
        "AA: 0 flights counted, 1 in the file",
        "AA: 0.0 minutes of delay counted, 60.0 in the file",
    ]
