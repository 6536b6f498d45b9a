"""The app of the rolling deploy: two actors on the same events, that write down each run and how late it was.

ROLLED_VERSION is which version of the app it is: each has a handler, an attempt and a revision more than the
one before. A process appends to a file of its own in ROLLED_DIRECTORY, one write a record.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from understudy.actors.actor import Actor
from understudy.actors.context import StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

VERSION = int(os.environ.get("ROLLED_VERSION", "0"))
LAST_VERSION = 3
OWNER, SHARED = ACTORS = ("owner", "shared")
# What a handler takes; with so many at once, so that each stop finds some under way.
HANDLER_SECONDS = 0.001
CONCURRENCY = 16
_RECORD = struct.Struct("<qqII")


class Record(NamedTuple):
    """One run of a handler.

    Args:
        at: when it began, in ns of CLOCK_MONOTONIC, which all processes share.
        published: when its event was.
        number: the event's.
        version: the app's that handled it.
    """

    at: int
    published: int
    number: int
    version: int


class Entered(Event, subject="rolled.entered"):
    """What every version handles."""

    number: int
    key: int
    published: int


class First(Entered, subject="rolled.first"):
    """New in version 1."""


class Second(Entered, subject="rolled.second"):
    """New in version 2."""


class Third(Entered, subject="rolled.third"):
    """New in version 3."""


# By the version that first handles it.
EVENTS = (Entered, First, Second, Third)


class _Recording(Actor, concurrency=CONCURRENCY, retry=RetryPolicy(max_attempts=5 + VERSION)):
    async def on_start(self, ctx: StartContext) -> None:
        path = Path(os.environ["ROLLED_DIRECTORY"], f"{ctx.actor}.{os.getpid()}")
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @handles
    async def entered(self, event: Entered) -> None:
        await self.work(event)

    if VERSION >= 1:

        @handles
        async def first(self, event: First) -> None:
            await self.work(event)

    if VERSION >= 2:

        @handles
        async def second(self, event: Second) -> None:
            await self.work(event)

    if VERSION >= 3:

        @handles
        async def third(self, event: Third) -> None:
            await self.work(event)

    async def work(self, event: Entered) -> None:
        """Record the run, and be busy for a moment."""
        os.write(self._file, _RECORD.pack(time.monotonic_ns(), event.published, event.number, VERSION))
        await asyncio.sleep(HANDLER_SECONDS)


class Owner(_Recording, key="key"):
    """The sole owner of its durable: one node's cell is at work, the others stand by."""


class Shared(_Recording):
    """Every node's cell takes its part."""


app = App(
    "rolled",
    streams=[Stream("ROLLED", subjects=["rolled.>"])],
    children=[Owner, Shared],
    revision=VERSION,
)


def read_records(directory: Path, actor: str) -> Iterator[list[Record]]:
    """Return what the actor's processes have recorded, a list for each in its order."""
    for path in directory.glob(f"{actor}.*"):
        yield [Record._make(fields) for fields in _RECORD.iter_unpack(path.read_bytes())]


def count_records(directory: Path, actor: str) -> int:
    """Return how many runs the actor's processes have recorded, repeats included."""
    return sum(path.stat().st_size for path in directory.glob(f"{actor}.*")) // _RECORD.size
