"""What a cell has counted in this run, in a file that outlives each of its generations.

One file on tmpfs per cell, mapped by whichever generation runs, one at a time::

    page 0      header: magic, version, and the names of the breakers, a line each
    page 1 …    words of eight bytes: counters, histograms, calls of breakers

A generation goes on where the one before stood, so that nothing has to be carried over: not when a cell is
killed, nor when it drains and is started again, nor when its cell file is discarded. The file is read at a
scrape, whether the cell runs, hangs or is dead. It goes with the run's folder, so that a run begins at zero.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import msgspec

from understudy.actors.saga_position import Phase

MAGIC = b"USTDYCNT"
VERSION = 1
PAGE = 4096
SUFFIX = ".counts"
NAMES_OFFSET = 16
# Upper bounds of the buckets, in seconds, each inclusive; above the last there is one more.
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
# What becomes of a delivery; of dead letters there is a word for each reason.
OUTCOMES = ("handled", "retried", "dead_lettered", "given_back", "skipped", "duplicate", "expired")
DeadLetterReason = Literal["undecodable", "rejected", "exhausted", "crashed"]
DEAD_LETTER_REASONS = get_args(DeadLetterReason)
# What an ask comes to; what is cancelled with its handler comes to nothing.
ASK_OUTCOMES = ("answered", "rejected", "failed", "timeout")
# What becomes of timers.
TIMER_PHASES = ("set", "cancelled", "fired")
# What sagas come to.
SAGA_PHASES = tuple(phase.value for phase in Phase)
HISTOGRAMS = ("handling", "lag", "publish")
CALL_OUTCOMES = ("success", "failure", "rejected", "timeout", "excluded")
MAX_BREAKERS = 32

# Handled, by a run that was no longer than the first bound: also the first bucket of `handling`.
QUICK = 0
RECEIVED = 1
_COUNTERS = (
    *("handled", "retried", "given_back", "skipped", "duplicate", "expired"),
    *(f"dead_lettered_{reason}" for reason in DEAD_LETTER_REASONS),
    *("redelivered", "failed", "taken_over", "committed", "conflicts", "late_replies"),
    "asks",
    *(f"asks_{outcome}" for outcome in ASK_OUTCOMES),
    *(f"timers_{phase}" for phase in TIMER_PHASES),
    *(f"saga_{phase}" for phase in SAGA_PHASES),
)
_INDEX = {"quick": QUICK, "received": RECEIVED} | {
    name: index for index, name in enumerate(_COUNTERS, start=RECEIVED + 1)
}
# Of each histogram its buckets, not cumulative, and the sum.
_BUCKETS = len(BOUNDS) + 1
_HISTOGRAM_INDEX = {name: len(_INDEX) + (_BUCKETS + 1) * number for number, name in enumerate(HISTOGRAMS)}
_PUBLISH_INDEX = _HISTOGRAM_INDEX["publish"]
_CALL_OUTCOME_INDEX = {outcome: index for index, outcome in enumerate(CALL_OUTCOMES)}
_BREAKERS_INDEX = len(_INDEX) + (_BUCKETS + 1) * len(HISTOGRAMS)
_WORDS = _BREAKERS_INDEX + len(CALL_OUTCOMES) * MAX_BREAKERS
LENGTH = PAGE + -(-_WORDS * 8 // PAGE) * PAGE
_HEADER = struct.Struct("<8sHH")


class Counts:
    """The writable counters of one cell: plain memory stores, no system call.

    All are written by the cell's data thread, but the calls of breakers.

    Attributes:
        words: all of them, for what is counted per delivery: `QUICK` and `RECEIVED`.
    """

    def __init__(self, buffer: mmap.mmap) -> None:
        words = memoryview(buffer)[PAGE:]
        self.words = words.cast("Q")
        self._sums = words.cast("d")
        self._buffer = buffer
        self._breakers = list(_read_names(buffer))
        # The first word of each, -1 if it has none.
        self._calls: dict[str, int] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Counts:
        """Map a cell's counters, which its first generation makes.

        Args:
            path: where; no other process may have them mapped for writing.

        Raises:
            OSError: the file can't be made, or its file system is full.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Real blocks now: a full tmpfs is an error here, not a SIGBUS at some later store.
            os.posix_fallocate(descriptor, 0, LENGTH)
            buffer = mmap.mmap(descriptor, LENGTH)
        except OSError as error:
            error.filename = error.filename or str(path)
            raise
        finally:
            os.close(descriptor)
        counts = cls(buffer)
        counts._write_header(counts._breakers)
        return counts

    def count(self, counter: str, by: int = 1) -> None:
        """Add to a counter.

        Args:
            counter: such as `redelivered`, or an outcome but `dead_lettered`, which has one for each reason.
            by: how many, at least 0.
        """
        self.words[_INDEX[counter]] += by

    def handled(self) -> int:
        """Return how many deliveries were handled."""
        return self.words[QUICK] + self.words[_INDEX["handled"]]

    def observe(self, histogram: str, seconds: float, by: int = 1) -> None:
        """Add observations to a histogram.

        Args:
            histogram: `handling` or `lag`.
            seconds: what was measured; less than none, by clocks that differ, counts as none.
            by: how many are alike.
        """
        first = _HISTOGRAM_INDEX[histogram]
        self.words[first + (bisect_left(BOUNDS, seconds) if seconds > BOUNDS[0] else 0)] += by
        if seconds > 0:
            self._sums[first + _BUCKETS] += seconds * by

    def add_seconds(self, histogram: str, seconds: float) -> None:
        """Add to a histogram's sum alone, for observations that are counted elsewhere."""
        self._sums[_HISTOGRAM_INDEX[histogram] + _BUCKETS] += seconds

    def published(self, seconds: float) -> None:
        """Count a message that its stream has confirmed.

        Args:
            seconds: how long after it was written.
        """
        self.words[_PUBLISH_INDEX + (bisect_left(BOUNDS, seconds) if seconds > BOUNDS[0] else 0)] += 1
        self._sums[_PUBLISH_INDEX + _BUCKETS] += seconds

    def declare(self, breakers: Iterable[str]) -> None:
        """Have these breakers' calls counted, and shown while there are none."""
        with self._lock:
            for breaker in breakers:
                self._calls[breaker] = self._breaker(breaker)

    def called(self, breaker: str, outcome: str) -> None:
        """Count a call through a breaker; may be called in any thread.

        Args:
            breaker: its name; after the first `MAX_BREAKERS`, others aren't counted.
            outcome: one of `CALL_OUTCOMES`.
        """
        with self._lock:
            word = self._calls.get(breaker)
            if word is None:
                word = self._calls[breaker] = self._breaker(breaker)
            if word >= 0:
                self.words[word + _CALL_OUTCOME_INDEX[outcome]] += 1

    def _breaker(self, name: str) -> int:
        """Return which word counts a breaker's first outcome; -1 if there is no room for it."""
        if name not in self._breakers:
            names = [*self._breakers, name]
            if len(names) > MAX_BREAKERS or len("\n".join(names).encode()) > PAGE - NAMES_OFFSET:
                return -1
            self._write_header(names)
            self._breakers = names
        return _BREAKERS_INDEX + len(CALL_OUTCOMES) * self._breakers.index(name)

    def _write_header(self, breakers: list[str]) -> None:
        encoded = "\n".join(breakers).encode()
        self._buffer[NAMES_OFFSET : NAMES_OFFSET + len(encoded)] = encoded
        # Names are only appended, so that the length comes last and says how many there are.
        _HEADER.pack_into(self._buffer, 0, MAGIC, VERSION, len(encoded))


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What one cell has counted, or several together.

    Args:
        counters: by name.
        histograms: by name, the buckets, not cumulative, and the sum in seconds.
        calls: by breaker, as many as `CALL_OUTCOMES`.
    """

    counters: dict[str, int]
    histograms: dict[str, tuple[tuple[int, ...], float]]
    calls: dict[str, tuple[int, ...]]

    def outcomes(self) -> dict[str, int]:
        """Return how many deliveries were settled, by outcome."""
        counted = self.counters
        special = {
            "handled": counted["handled"] + counted["quick"],
            "dead_lettered": sum(counted[f"dead_lettered_{reason}"] for reason in DEAD_LETTER_REASONS),
        }
        return {outcome: special.get(outcome, counted.get(outcome, 0)) for outcome in OUTCOMES}

    def __add__(self, other: Counted) -> Counted:
        """Return both together."""
        histograms = {}
        for name, (buckets, seconds) in self.histograms.items():
            others, other_seconds = other.histograms[name]
            histograms[name] = (_sum(buckets, others), seconds + other_seconds)
        return Counted(
            counters={name: value + other.counters[name] for name, value in self.counters.items()},
            histograms=histograms,
            calls={
                name: _sum(self.calls.get(name, _NO_CALLS), other.calls.get(name, _NO_CALLS))
                for name in {**self.calls, **other.calls}
            },
        )


def _sum(numbers: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(one + another for one, another in zip(numbers, others, strict=True))


_NO_CALLS = (0,) * len(CALL_OUTCOMES)
NOTHING = Counted(
    counters=dict.fromkeys(_INDEX, 0),
    histograms=dict.fromkeys(HISTOGRAMS, ((0,) * _BUCKETS, 0.0)),
    calls={},
)


def counts_path(run_directory: Path, cell: str) -> Path:
    """Return where a cell keeps its counters.

    Args:
        run_directory: the run's.
        cell: its name, such as `billing/0`.
    """
    return run_directory / f"{cell.replace('/', '.')}{SUFFIX}"


def read_counts(path: Path) -> Counted:
    """Return what a cell has counted, whether it lives or not; nothing if it has never begun."""
    try:
        with path.open("rb") as file:
            # Mapped, since a copy by the kernel may have half of a word from before a store.
            buffer = mmap.mmap(file.fileno(), LENGTH, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):
        # It isn't there, or not as long as it will be.
        return NOTHING
    with buffer, memoryview(buffer)[PAGE:] as data, data.cast("Q") as words, data.cast("d") as sums:
        histograms = {}
        for name, first in _HISTOGRAM_INDEX.items():
            buckets = words[first : first + _BUCKETS].tolist()
            if name == "handling":
                buckets[0] += words[QUICK]
            histograms[name] = (tuple(buckets), sums[first + _BUCKETS])
        calls = {}
        for number, breaker in enumerate(_read_names(buffer)):
            first = _BREAKERS_INDEX + len(CALL_OUTCOMES) * number
            calls[breaker] = tuple(words[first : first + len(CALL_OUTCOMES)].tolist())
        return Counted(
            counters={name: words[index] for name, index in _INDEX.items()},
            histograms=histograms,
            calls=calls,
        )


def _read_names(buffer: mmap.mmap) -> tuple[str, ...]:
    magic, version, length = _HEADER.unpack_from(buffer, 0)
    if magic != MAGIC or version != VERSION:
        return ()
    text = buffer[NAMES_OFFSET : NAMES_OFFSET + length].decode()
    return tuple(text.split("\n")) if text else ()
