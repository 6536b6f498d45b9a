"""A fixed-size record of every run of a handler, cheap enough for millions of events.

Each process appends to a file of its own, one write a record, so that what a killed process has recorded is
there.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from understudy.actors.context import Delivery

_RECORD = struct.Struct("<QqqII")


class Record(NamedTuple):
    """One run of a handler.

    Args:
        sequence: the event's in its stream.
        at: when the run began, in ns of CLOCK_MONOTONIC, which all processes share.
        clock: what the process took for the time of day then, in ns since 1970.
        number: the event's.
        attempt: as the context tells it.
    """

    sequence: int
    at: int
    clock: int
    number: int
    attempt: int


class Process(NamedTuple):
    """What one process of an actor has recorded, in the order in which it did."""

    pid: int
    records: list[Record]


class RecordFile:
    """Where this process records the runs of its actor."""

    def __init__(self, directory: Path, actor: str) -> None:
        path = directory / f"{actor}.{os.getpid()}"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, number: int, delivery: Delivery) -> None:
        """Record a run that begins."""
        record = _RECORD.pack(
            delivery.sequence, time.monotonic_ns(), time.time_ns(), number, delivery.attempt
        )
        os.write(self._file, record)


def read_records(directory: Path, actor: str) -> Iterator[Process]:
    """Return what the actor's processes have recorded, by the time of each one's first record."""
    paths = [path for path in directory.glob(f"{actor}.*") if path.stat().st_size >= _RECORD.size]

    def first(path: Path) -> int:
        with path.open("rb") as file:
            return Record._make(_RECORD.unpack(file.read(_RECORD.size))).at

    for path in sorted(paths, key=first):
        data = path.read_bytes()
        # A process that is killed in a write leaves a part of a record.
        whole = len(data) // _RECORD.size * _RECORD.size
        records = [Record._make(fields) for fields in _RECORD.iter_unpack(data[:whole])]
        yield Process(int(path.name.rpartition(".")[2]), records)


def count_records(directory: Path, actor: str) -> int:
    """Return how many runs the actor's processes have recorded, repeats included."""
    return sum(path.stat().st_size for path in directory.glob(f"{actor}.*")) // _RECORD.size
