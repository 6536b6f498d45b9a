"""Apps whose actors record every run of their handlers.

`app` is a chain: every event passes through two sole owners and then through an actor of two replicas.
`archive` is the last of them alone. They record in RELAY_DIRECTORY. Numbers in RELAY_DEADLY end their process
with a segmentation fault, after their record; those in RELAY_SLOW take the last actor RELAY_SECONDS. From the
number RELAY_STUCK on, handlers of the first actor's first process don't end.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
from pathlib import Path

from support.records import RecordFile
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
# Who takes over from the dead has so long to come up, and what was in a dead cell's socket waits for it.
ACK_WAIT_SECONDS = 8.0
ACTORS = ("intake", "tally", "archive")


def _numbers(variable: str) -> frozenset[int]:
    return frozenset(int(number) for number in os.environ.get(variable, "").split())


DEADLY = _numbers("RELAY_DEADLY")
SLOW = _numbers("RELAY_SLOW")
SLOW_SECONDS = float(os.environ.get("RELAY_SECONDS", "0"))
STUCK = float(os.environ.get("RELAY_STUCK", "inf"))
REPLICAS = int(os.environ.get("RELAY_REPLICAS", "2"))


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
    Actor, mailbox=Mailbox(capacity=CAPACITY), ack_wait_seconds=ACK_WAIT_SECONDS, hang_timeout_seconds=5
):
    async def on_start(self, ctx: StartContext) -> None:
        self._records = RecordFile(Path(os.environ["RELAY_DIRECTORY"]), ctx.actor)

    def note(self, number: int, ctx: Context) -> None:
        """Record a run; of a deadly number it is the last."""
        self._records.note(number, ctx.delivery)
        if number in DEADLY:
            ctypes.string_at(0)


class Intake(_Recording, key="key", concurrency=CONCURRENCY):
    """The first sole owner."""

    async def on_start(self, ctx: StartContext) -> None:
        await super().on_start(ctx)
        self._stuck = STUCK if ctx.generation == 1 else math.inf

    @handles
    async def entered(self, event: Entered, ctx: Context) -> Taken:
        self.note(event.number, ctx)
        if event.number >= self._stuck:
            await asyncio.Event().wait()
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
