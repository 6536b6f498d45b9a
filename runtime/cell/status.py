"""The status area of a cell file: what a cell says of itself, readable while it hangs and after its death."""

from __future__ import annotations

import enum
import mmap
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from understudy.runtime.cell.counts import Counts

MAGIC = b"USTDYCEL"
PAGE = 4096
STATUS_OFFSET = PAGE
HEARTBEAT_SECONDS = 0.5
# The same while nothing happens; a little more than the time after which an idle cell asks its stream again,
# and is awake anyway.
IDLE_HEARTBEAT_SECONDS = 2.25
STATUS_LENGTH = 2 * PAGE
_REASON_OFFSET = STATUS_OFFSET + PAGE
# The breakers, as text in the second half of the words' page; the last word there is another one's.
_BREAKERS_OFFSET = STATUS_OFFSET + PAGE // 2
_BREAKERS_LENGTH = PAGE // 2 - 8


class CellState(enum.IntEnum):
    """What a cell is doing, as its status area says."""

    STARTING = 1
    UP = 2
    PAUSED = 3
    DRAINING = 4
    STOPPED = 5
    FAILED = 6
    HALTED = 7
    STALLED = 8
    STANDBY = 9


class Pause(enum.IntEnum):
    """How far the operator's pause of a cell has come."""

    NONE = 0
    PAUSING = 1
    PAUSED = 2


class BreakerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A circuit breaker as its cell knows it.

    Args:
        name: its name.
        state: `closed`, `open` or `half-open`.
        since: when it was last closed, in seconds of CLOCK_BOOTTIME; 0 if it is.
        of_app: whether the app declares it, so that all cells share it; else it is their actor's.
        holds_up: whether something in the cell waits for it.
    """

    name: str
    state: str
    since: float = 0.0
    of_app: bool = False
    holds_up: bool = False


class CellStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's status area at one moment.

    Args:
        pid: the cell's process.
        state: `starting`, `up`, `paused` (on purpose, and goes on by itself), `draining`, `stopped`,
            `failed`, `halted` (until it is started anew), `stalled` (against its will), `standby` (another
            cell is active).
        reason: why it is in that state, where there is a reason to give.
        heartbeat: when the data thread last ran, in seconds of CLOCK_BOOTTIME.
        control_heartbeat: when the main thread, which hears the supervisor, last ran.
        connected: whether the broker connection stands.
        pause: how far a pause by the operator has come: `none`, `pausing` (what was begun goes on, and what
            was asked for may arrive), `paused`.
        held, capacity: deliveries in the mailbox and its bound.
        held_bytes: of their bodies.
        credit: what the server may still send without being asked again.
        publish_window: publishes that no stream has confirmed yet.
        counters: totals of this generation.
        breakers: those that the cell has; if they are too many, those that are closed may be missing.
    """

    pid: int
    state: str
    reason: str
    heartbeat: float
    control_heartbeat: float
    connected: bool
    pause: str
    held: int
    capacity: int
    counters: dict[str, int]
    breakers: tuple[BreakerStatus, ...] = ()
    held_bytes: int = 0
    credit: int = 0
    publish_window: int = 0


_GAUGES = ("pid", "state", "connected", "held", "capacity")
_FIRST_COUNTERS = (
    "received",
    "redelivered",
    "handled",
    "acked",
    "failed",
    "retried",
    "dead_lettered",
    "taken_over",
    "published",
    "breaker_openings",
    "skipped",
)
_LATER_COUNTERS = (
    "committed",
    "conflicts",
    "already_applied",
    "published_again",
    "duplicates",
    "mark_conflicts",
    "breaker_trials",
    "breaker_closings",
)
COUNTERS = (*_FIRST_COUNTERS, *_LATER_COUNTERS)
_LATER_GAUGES = ("held_bytes", "credit", "publish_window")
# Those that are counted over all generations too, by their names there.
_OF_ALL_GENERATIONS = {
    "redelivered": "redelivered",
    "failed": "failed",
    "taken_over": "taken_over",
    "skipped": "skipped",
    "duplicates": "duplicate",
    "committed": "committed",
    "conflicts": "conflicts",
}
# The heartbeat is the first word; gauges and counters follow in order. New ones are only ever appended.
_INDEX = {
    name: index
    for index, name in enumerate(
        (*_GAUGES, *_FIRST_COUNTERS, "pause", *_LATER_COUNTERS, *_LATER_GAUGES), start=1
    )
}
# In the last word of the page, whatever else is appended.
_CONTROL_HEARTBEAT_OFFSET = _REASON_OFFSET - 8
_decode_breakers = msgspec.json.Decoder(tuple[BreakerStatus, ...]).decode
_PAUSE_NAMES = {int(pause): pause.name.lower() for pause in Pause}
_STATE_NAMES = {int(state): state.name.lower() for state in CellState}


def boottime() -> float:
    """Return seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Status:
    """The writable status area: plain memory stores, no system call.

    All but the control heartbeat is written by the cell's data thread alone.

    Attributes:
        counts: what the cell has counted over all its generations.
    """

    def __init__(self, buffer: mmap.mmap, counts: Counts) -> None:
        self.counts = counts
        words = memoryview(buffer)[STATUS_OFFSET:_REASON_OFFSET]
        self._words = words.cast("Q")
        self._heartbeat = words[:8].cast("d")
        self._control_heartbeat = words[-8:].cast("d")
        self._buffer = buffer

    def beat(self) -> None:
        """Say that the data thread runs."""
        self._heartbeat[0] = boottime()

    def beat_control(self) -> None:
        """Say that the main thread runs."""
        self._control_heartbeat[0] = boottime()

    def counted(self, counter: str) -> int:
        """Return how much a counter has come to.

        Args:
            counter: one of `COUNTERS`.
        """
        return self._words[_INDEX[counter]]

    def count(self, counter: str, by: int = 1) -> None:
        """Add to a counter.

        Args:
            counter: one of `COUNTERS`.
            by: how many, at least 0.
        """
        self._words[_INDEX[counter]] += by
        if counter in _OF_ALL_GENERATIONS:
            self.counts.count(_OF_ALL_GENERATIONS[counter], by)

    def gauge(self, name: str, value: int) -> None:
        """Set a gauge.

        Args:
            name: `pid`, `connected`, `held`, `capacity`, `pause`, `held_bytes`, `credit` or `publish_window`.
            value: at least 0.
        """
        self._words[_INDEX[name]] = value

    def state(self, state: CellState, reason: str = "") -> None:
        """Say what the cell is doing, and why."""
        # An exception's text may hold lone surrogates, from a file's name for example.
        text = reason.encode(errors="backslashreplace")[: PAGE - 2]
        self._buffer[_REASON_OFFSET : _REASON_OFFSET + 2 + len(text)] = struct.pack("<H", len(text)) + text
        self._words[_INDEX["state"]] = state

    def breakers(self, breakers: Sequence[BreakerStatus]) -> None:
        """Say what each breaker does."""
        # What doesn't fit is left out, what is closed first.
        shown = sorted(breakers, key=lambda breaker: breaker.state == "closed")
        text = _encode_breakers(shown)
        while len(text) > _BREAKERS_LENGTH - 2:
            shown.pop()
            text = _encode_breakers(shown)
        start = _BREAKERS_OFFSET
        # Without a length meanwhile: who reads half of it would find none.
        self._buffer[start : start + 2] = b"\0\0"
        self._buffer[start + 2 : start + 2 + len(text)] = text
        self._buffer[start : start + 2] = struct.pack("<H", len(text))


def _encode_breakers(breakers: Sequence[BreakerStatus]) -> bytes:
    # Without what is the default: there is not much room.
    said = (msgspec.structs.asdict(one).items() for one in breakers)
    return msgspec.json.encode([{name: value for name, value in one if value} for one in said])


def read_heartbeat(data: bytes) -> float:
    """Return when the owner last ran, in seconds of CLOCK_BOOTTIME.

    Args:
        data: a cell file, up to the end of its status area at least.
    """
    (heartbeat,) = struct.unpack_from("<d", data, STATUS_OFFSET)
    return float(heartbeat)


def read_status(path: Path) -> CellStatus | None:
    """Return a cell's status area, whether its owner lives or not.

    Returns:
        The status, or None if there is no such file or it isn't complete yet.
    """
    try:
        with path.open("rb") as file:
            data = file.read(STATUS_OFFSET + STATUS_LENGTH)
    except FileNotFoundError:
        return None
    if len(data) < STATUS_OFFSET + STATUS_LENGTH or not data.startswith(MAGIC):
        return None
    words = memoryview(data)[STATUS_OFFSET:_REASON_OFFSET].cast("Q")
    (reason_length,) = struct.unpack_from("<H", data, _REASON_OFFSET)
    reason = data[_REASON_OFFSET + 2 : _REASON_OFFSET + 2 + reason_length].decode(errors="replace")
    return CellStatus(
        pid=words[_INDEX["pid"]],
        state=_STATE_NAMES.get(words[_INDEX["state"]], "starting"),
        reason=reason,
        heartbeat=read_heartbeat(data),
        control_heartbeat=struct.unpack_from("<d", data, _CONTROL_HEARTBEAT_OFFSET)[0],
        connected=bool(words[_INDEX["connected"]]),
        pause=_PAUSE_NAMES.get(words[_INDEX["pause"]], "none"),
        held=words[_INDEX["held"]],
        capacity=words[_INDEX["capacity"]],
        counters={name: words[_INDEX[name]] for name in COUNTERS},
        breakers=_read_breakers(data),
        held_bytes=words[_INDEX["held_bytes"]],
        credit=words[_INDEX["credit"]],
        publish_window=words[_INDEX["publish_window"]],
    )


def _read_breakers(data: bytes) -> tuple[BreakerStatus, ...]:
    (length,) = struct.unpack_from("<H", data, _BREAKERS_OFFSET)
    start = _BREAKERS_OFFSET + 2
    try:
        return _decode_breakers(data[start : start + length]) if length else ()
    except msgspec.MsgspecError:
        # It is being written.
        return ()
