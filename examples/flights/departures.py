"""The departures that ship with the example: New York, January 2013, by day; a day's cancelled ones last."""

import csv
import gzip
from collections.abc import Iterator
from importlib.resources import files
from itertools import islice
from typing import NamedTuple

TOTAL = 27_004

CARRIERS = {
    "9E": "Endeavor Air",
    "AA": "American Airlines",
    "AS": "Alaska Airlines",
    "B6": "JetBlue Airways",
    "DL": "Delta Air Lines",
    "EV": "ExpressJet Airlines",
    "F9": "Frontier Airlines",
    "FL": "AirTran Airways",
    "HA": "Hawaiian Airlines",
    "MQ": "Envoy Air",
    "OO": "SkyWest Airlines",
    "UA": "United Air Lines",
    "US": "US Airways",
    "VX": "Virgin America",
    "WN": "Southwest Airlines",
    "YV": "Mesa Airlines",
}


class Departure(NamedTuple):
    """One row of the file. A flight without a delay was cancelled."""

    carrier: str
    flight: int
    origin: str
    dest: str
    scheduled: str
    delay_minutes: float | None


def read_departures(limit: int | None = None) -> Iterator[Departure]:
    """The rows of the file in its order, or the first so many of them."""
    with (
        files("understudy.examples.flights").joinpath("departures-2013-01.csv.gz").open("rb") as compressed,
        gzip.open(compressed, "rt", encoding="ascii", newline="") as table,
    ):
        for row in islice(csv.DictReader(table), limit):
            delay = row["delay_minutes"]
            yield Departure(
                carrier=row["carrier"],
                flight=int(row["flight"]),
                origin=row["origin"],
                dest=row["dest"],
                scheduled=row["scheduled"],
                delay_minutes=float(delay) if delay else None,
            )
