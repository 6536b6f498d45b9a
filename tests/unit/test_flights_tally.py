"""A count that differs from the file is named, and one that doesn't is not."""

from collections import Counter
from dataclasses import replace

import pytest

from understudy.examples.flights.app import CarrierStatistics
from understudy.examples.flights.departures import Departure
from understudy.examples.flights.tally import CarrierTally, Notice, Tally, counted, differences, expected

DEPARTURES = [
    Departure("UA", 1, "EWR", "IAH", "2013-01-01T05:15", 2.0),
    Departure("UA", 2, "EWR", "IAH", "2013-01-01T05:20", 61.0),
    Departure("UA", 3, "EWR", "IAH", "2013-01-01T05:25", None),
    Departure("AA", 4, "JFK", "MIA", "2013-01-01T05:40", 60.0),
]
LATE = ("UA", 2, "EWR", "2013-01-01T05:20", 61.0)


OTHER = ("AA", 4, "JFK", "2013-01-01T05:40", 60.0)


def run_of(
    *,
    ua: tuple[int, int, float] = (3, 1, 63.0),
    announced: int = 1,
    notices: tuple[Notice, ...] = (LATE,),
    conflicts: int = 0,
    out_of_order: int = 0,
) -> Tally:
    flights, cancelled, delay = ua
    return Tally(
        carriers={
            "UA": CarrierTally(flights=flights, cancelled=cancelled, total_delay_minutes=delay),
            "AA": CarrierTally(flights=1, cancelled=0, total_delay_minutes=60.0),
        },
        announced=announced,
        notices=Counter(notices),
        conflicts=conflicts,
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
        (run_of(ua=(2, 1, 63.0)), ["UA: flights: 2 counted, 3 in the file"]),
        (run_of(ua=(3, 0, 63.0)), ["UA: cancelled flights: 0 counted, 1 in the file"]),
        (run_of(ua=(3, 1, 62.0)), ["UA: minutes of delay: 62.0 counted, 63.0 in the file"]),
        (run_of(announced=2), ["late flights: 2 announced in the stream, 1 in the file"]),
        (run_of(notices=()), ["notices: never sent for a late flight of the file: 1"]),
        (run_of(notices=(LATE, LATE)), ["notices: sent again: 1"]),
        (run_of(notices=(LATE, OTHER)), ["notices: sent for no late flight: 1"]),
        (run_of(conflicts=3), ["notices: asked for under the key of another one: 3"]),
        (run_of(out_of_order=4), ["order: counted after a later one of their carrier: 4"]),
    ],
)
def test_each_wrong_count_is_named(run: Tally, lines: list[str]) -> None:
    assert differences(expected(DEPARTURES), run) == lines


def test_a_carrier_that_was_never_counted_is_named() -> None:
    run = replace(run_of(), carriers={"UA": run_of().carriers["UA"]})
    assert differences(expected(DEPARTURES), run) == [
        "AA: flights: 0 counted, 1 in the file",
        "AA: minutes of delay: 0.0 counted, 60.0 in the file",
    ]


def test_a_carrier_that_is_not_in_the_file_is_named() -> None:
    carriers = {**run_of().carriers, "ZZ": CarrierTally(flights=1, cancelled=1, total_delay_minutes=0.0)}
    assert differences(expected(DEPARTURES), replace(run_of(), carriers=carriers)) == [
        "ZZ: flights: 1 counted, 0 in the file",
        "ZZ: cancelled flights: 1 counted, 0 in the file",
    ]


def test_what_was_counted_is_read_from_the_states_and_the_ledger() -> None:
    states = {
        "UA": CarrierStatistics(flights=3, cancelled=1, delay_minutes=63.0, out_of_order=2),
        "AA": CarrierStatistics(flights=1, delay_minutes=60.0, out_of_order=1),
    }
    carrier, flight, origin, scheduled, delay = LATE
    notice = {
        "carrier": carrier, "flight": flight, "origin": origin, "scheduled": scheduled, "delay_minutes": delay
    }  # fmt: skip
    ledger = {"notices": {"one": notice, "two": notice}, "conflicts": 5}
    assert counted(states, 7, ledger) == run_of(
        announced=7, notices=(LATE, LATE), conflicts=5, out_of_order=3
    )
