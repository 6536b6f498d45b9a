"""The message that every scenario moves: a typed event whose MessagePack body is filled up to a size."""

from __future__ import annotations

import functools

import msgspec

from understudy import Event

SUBJECT = "bench.readings"
BODY_BYTES = 128
# Stations have names of one length, so that bodies have one size.
STATION = "K000"
# It makes every number take five bytes on the wire.
_OFFSET = 2**31


class Reading(Event, subject=SUBJECT):
    """What a sensor says, and text that fills the body up."""

    number: int
    station: str
    celsius: float
    note: str

    @property
    def index(self) -> int:
        """The number that it was made with."""
        return self.number - _OFFSET


class Relayed(Reading, subject="bench.relayed"):
    """A reading that was passed on."""


class Ping(Event, subject="bench.pings"):
    """An event that knows when it was published, by the clock that all processes share."""

    sent_nanoseconds: int
    note: str


def reading(number: int, *, station: str = STATION, body_bytes: int = BODY_BYTES) -> Reading:
    """Return the reading of that number.

    Args:
        number: at least 0; numbers of 32 bits have bodies of the same size.
        station: four characters.
        body_bytes: at least 100.
    """
    return _reading(number, station, _note(body_bytes))


def ping(sent_nanoseconds: int) -> Ping:
    """Return an event that is published at that time."""
    return Ping(sent_nanoseconds=sent_nanoseconds, note=_PING_NOTE)


def _reading(number: int, station: str, note: str) -> Reading:
    return Reading(number=_OFFSET + number, station=station, celsius=21.5, note=note)


@functools.cache
def _note(body_bytes: int) -> str:
    note = ""
    # Twice, since a text's length takes more bytes where it is longer.
    for _ in range(2):
        size = len(msgspec.msgpack.encode(_reading(0, STATION, note)))
        note = "n" * (len(note) + body_bytes - size)
    return note


_PING_NOTE = ""
# One less than what is missing: a text of over 31 bytes has one byte more before it.
_PING_NOTE = "n" * (BODY_BYTES - len(msgspec.msgpack.encode(ping(2**40))) - 1)
