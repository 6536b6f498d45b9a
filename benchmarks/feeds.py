"""What is in the streams that scenarios read: which messages, and how many different keys."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Mapping

import msgspec

from benchmarks.readings import BODY_BYTES, STATION, Reading, reading

KEYS = 1_000

TWO_HEADERS = {
    "Content-Type": "application/msgpack",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
}


def one_station(number: int) -> str:  # noqa: ARG001
    """Every reading is from the same station."""
    return STATION


def uniform_station(number: int) -> str:
    """A thousand stations, all equally often."""
    return _name(random.Random(number).randrange(KEYS))


def zipf_station(number: int) -> str:
    """A thousand stations, the n-th of them with a share in proportion to 1/n: Zipf's law with s = 1."""
    return _name(bisect.bisect(_ZIPF, random.Random(number).random() * _ZIPF[-1]))


def _name(index: int) -> str:
    return f"K{index:03}"


_ZIPF = list(itertools.accumulate(1 / rank for rank in range(1, KEYS + 1)))


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """A stream and what it is filled with: every scenario's messages differ from another's in one thing.

    Args:
        stream, subject: where the messages are.
        body_bytes: each body's size.
        headers: each message's.
        station: the key of the message of a number.
    """

    stream: str
    subject: str
    body_bytes: int = BODY_BYTES
    headers: Mapping[str, str] = {}
    station: Callable[[int], str] = one_station

    def event(self, number: int) -> Reading:
        """Return the message of that number, from 0."""
        return reading(number, station=self.station(number), body_bytes=self.body_bytes)


PLAIN = Feed(stream="READINGS", subject="bench.readings")
LARGE = Feed(stream="READINGS_1K", subject="bench.large", body_bytes=1024)
HEADED = Feed(stream="READINGS_HEADED", subject="bench.headed", headers=TWO_HEADERS)
UNIFORM = Feed(stream="READINGS_UNIFORM", subject="bench.uniform", station=uniform_station)
PINGS = Feed(stream="PINGS", subject="bench.pings")
RELAYED = Feed(stream="READINGS_RELAYED", subject="bench.relayed")
# Ten thousand messages to two million, by default.
BACKLOGS = tuple(Feed(stream=f"BACKLOG_{number}", subject=f"bench.backlog.{number}") for number in range(4))
ZIPF = Feed(stream="READINGS_ZIPF", subject="bench.zipf", station=zipf_station)
