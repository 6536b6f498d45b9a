"""The departures that ship with the example are those of the source."""

import gzip
import hashlib
from importlib.resources import files

from understudy.examples.flights.departures import CARRIERS, TOTAL, read_departures
from understudy.examples.flights.tally import expected


def test_january_2013_has_27004_departures_and_521_of_them_were_cancelled() -> None:
    departures = list(read_departures())
    assert len(departures) == TOTAL == 27_004
    assert sum(row.delay_minutes is None for row in departures) == 521
    assert sum(row.delay_minutes is not None and row.delay_minutes > 60 for row in departures) == 1_821


def test_the_table_is_the_one_that_its_description_names() -> None:
    folder = files("understudy.examples.flights")
    table = gzip.decompress(folder.joinpath("departures-2013-01.csv.gz").read_bytes())
    assert hashlib.sha256(table).hexdigest() in folder.joinpath("DATA.md").read_text()


def test_the_order_of_the_source_is_kept() -> None:
    departures = list(read_departures())
    assert departures[0] == ("UA", 1545, "EWR", "IAH", "2013-01-01T05:15", 2.0)
    days = [row.scheduled[:10] for row in departures]
    assert days == sorted(days)


def test_a_limit_takes_the_first_rows() -> None:
    assert list(read_departures(3)) == list(read_departures())[:3]


def test_every_carrier_has_a_name() -> None:
    assert {row.carrier for row in read_departures()} == set(CARRIERS)


def test_the_counts_per_carrier_are_those_of_the_source() -> None:
    carriers = expected(read_departures()).carriers
    assert {carrier: tally.flights for carrier, tally in carriers.items()} == {
        "UA": 4637, "B6": 4427, "EV": 4171, "DL": 3690, "AA": 2794, "MQ": 2271, "US": 1602, "9E": 1573,
        "WN": 996, "FL": 328, "VX": 316, "AS": 62, "F9": 59, "YV": 46, "HA": 31, "OO": 1,
    }  # fmt: skip
