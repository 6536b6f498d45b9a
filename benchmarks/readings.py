"""The message that every scenario moves: a typed event whose body is 128 bytes of MessagePack."""

from __future__ import annotations

import msgspec

from understudy import Event

STREAM = "READINGS"
SUBJECT = "bench.readings"
BODY_BYTES = 128


class Reading(Event, subject=SUBJECT):
    """What a sensor says, and text that fills the body up."""

    number: int
    station: str
    celsius: float
    note: str


def reading(number: int) -> Reading:
    """Return the reading of that number.

    Args:
        number: at least 0; numbers of 32 bits have bodies of the same size.
    """
    # An offset of 2^31 makes every number take five bytes on the wire.
    return Reading(number=2**31 + number, station="EWR", celsius=21.5, note=_NOTE)


_NOTE = ""
# One less than what is missing: a text of over 31 bytes has one byte more before it.
_NOTE = "n" * (BODY_BYTES - len(msgspec.msgpack.encode(reading(0))) - 1)
