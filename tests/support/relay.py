"""Apps whose actors write a fixed-size record of every run, cheap enough for millions of events.

`app` is a chain: every event passes through two sole owners and then through an actor of two replicas.
`archive` is the last of them alone. Each cell's process appends to a file of its own in RELAY_DIRECTORY, one
write a record, so that what a killed process has recorded is there. Numbers in RELAY_DEADLY end their process
with a segmentation fault, after their record; those in RELAY_SLOW take the last actor RELAY_SECONDS.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from understudy.actors.actor import Actor
from understudy.actors.context import Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Mailbox
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

CONCURRENCY = 32
CAPACITY = 512
ACK_WAIT_SECONDS = 4.0
ACTORS = ("intake", "tally", "archive")
_RECORD = struct.Struct("<QqqII")


def _numbers(variable: str) -> frozenset[int]:
    return frozenset(int(number) for number in os.environ.get(variable, "").split())


DEADLY = _numbers("RELAY_DEADLY")
SLOW = _numbers("RELAY_SLOW")
SLOW_SECONDS = float(os.environ.get("RELAY_SECONDS", "0"))
REPLICAS = int(os.environ.get("RELAY_REPLICAS", "2"))


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


class Entered(Event, subject="relay.entered"):
    """Comes from outside."""

    number: int
    key: int


class Taken(Event, subject="relay.taken"):
    """Passed the first actor."""

    number: int
    key: int


class Told(Event, subject="relay.told"):
    """Passed the second actor."""

    number: int
    key: int


class _Recording(
    Actor, mailbox=Mailbox(capacity=CAPACITY), ack_wait_seconds=ACK_WAIT_SECONDS, hang_timeout_seconds=2.5
):
    async def on_start(self, ctx: StartContext) -> None:
        path = Path(os.environ["RELAY_DIRECTORY"], f"{ctx.actor}.{os.getpid()}")
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, number: int, ctx: Context) -> None:
        """Record a run; of a deadly number it is the last."""
        delivery = ctx.delivery
        record = _RECORD.pack(
            delivery.sequence, time.monotonic_ns(), time.time_ns(), number, delivery.attempt
        )
        os.write(self._file, record)
        if number in DEADLY:
            ctypes.string_at(0)


class Intake(_Recording, key="key", concurrency=CONCURRENCY):
    """The first sole owner."""

    @handles
    async def entered(self, event: Entered, ctx: Context) -> Taken:
        self.note(event.number, ctx)
        return Taken(number=event.number, key=event.key)


class Tally(_Recording, key="key", concurrency=CONCURRENCY):
    """The second sole owner: what it sees of a key comes in the order in which the first passed it on."""

    @handles
    async def taken(self, event: Taken, ctx: Context) -> Told:
        self.note(event.number, ctx)
        return Told(number=event.number, key=event.key)


class Archive(_Recording):
    """Shared by its replicas, in no order."""

    @handles
    async def told(self, event: Told, ctx: Context) -> None:
        self.note(event.number, ctx)
        if event.number in SLOW:
            await asyncio.sleep(SLOW_SECONDS)


app = App(
    "relay",
    streams=[Stream("RELAY", subjects=["relay.>"])],
    children=[
        # Killed on purpose more often than anything falls by itself.
        Supervisor(
            "ops", max_restarts=1000, max_seconds=60, children=[Intake, Tally, Child(Archive, replicas=2)]
        )
    ],
)
archive = App(
    "archive",
    streams=[Stream("RELAY", subjects=["relay.>"])],
    children=[Supervisor("ops", children=[Child(Archive, replicas=REPLICAS)])],
)


class Process(NamedTuple):
    """What one process of an actor has recorded, in the order in which it did."""

    pid: int
    records: list[Record]


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
