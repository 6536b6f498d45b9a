"""What a handler writes down for the harness: memory that both map, so that it costs no system call."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "BENCHMARK_RECORD"
_WORD = 8


def make_record(path: Path, words: int) -> None:
    """Make a record, all zeros.

    Args:
        path: where.
        words: how many numbers it holds.
    """
    with path.open("wb") as file:
        file.truncate(words * _WORD)


def open_record(path: Path | None = None) -> memoryview:
    """Map a record, to be read and written.

    Args:
        path: the record; the one that the environment names unless given.
    """
    with (path or Path(os.environ[VARIABLE])).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")


class Latencies:
    """How long each event took from its publisher to its handler, in nanoseconds, in the order of handling.

    Args:
        record: one word more than there are events.
    """

    def __init__(self, record: memoryview) -> None:
        self._record = record

    def add(self, sent_nanoseconds: int) -> None:
        """Write down that an event is being handled.

        Args:
            sent_nanoseconds: when it was published, by the clock that all processes share.
        """
        count = self._record[0] + 1
        self._record[count] = time.monotonic_ns() - sent_nanoseconds
        self._record[0] = count

    def all(self) -> Sequence[int]:
        """Return what was written."""
        return self._record[1 : self._record[0] + 1].tolist()
