"""What all cells of an app know of one breaker, as it stands in the KV bucket."""

from __future__ import annotations

import msgspec
import pybreaker

CLOSED: str = pybreaker.STATE_CLOSED
OPEN: str = pybreaker.STATE_OPEN
HALF_OPEN: str = pybreaker.STATE_HALF_OPEN
# A breaker goes through these after each opening, and never back.
_PHASES = {OPEN: 0, HALF_OPEN: 1, CLOSED: 2}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One state of a breaker.

    Of two that differ the later one is that whose `age` is higher, whoever wrote it and whenever it is heard;
    so cells that were apart agree as soon as they hear of each other.

    Args:
        state: `closed`, `open` or `half-open`.
        opening: how often it has opened.
        trial: how many trials were claimed since it opened.
        claimed_by: which cell makes a trial; empty while none runs.
        successes: trials in a row that succeeded.
        failures: calls in a row that failed, while it is closed.
        opened_at: when it last opened, in seconds since 1970, by the clock of who wrote that.
        since: when it last left `closed`, likewise; 0 while it is closed.
        by: which cell wrote this.
    """

    state: str = CLOSED
    opening: int = 0
    trial: int = 0
    claimed_by: str = ""
    successes: int = 0
    failures: int = 0
    opened_at: float = 0.0
    since: float = 0.0
    by: str = ""

    @property
    def age(self) -> tuple[int, int, int, bool]:
        """How far the breaker has come."""
        return (self.opening, _PHASES.get(self.state, 0), self.trial, not self.claimed_by)


_decode = msgspec.json.Decoder(Record).decode


def encode(record: Record) -> bytes:
    """Return a record as it is stored: JSON, so that `nats kv get` shows it."""
    return msgspec.json.encode(record)


def decode(value: bytes) -> Record | None:
    """Return what is stored; None if that is no record of ours."""
    try:
        record = _decode(value)
    except msgspec.MsgspecError:
        return None
    return record if record.state in _PHASES else None
