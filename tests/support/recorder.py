"""The app that fault tests run: its actor writes down what it handles.

RECORD_FILE takes one line a run; RECORD_SECONDS is how long a handler takes; from the number RECORD_STUCK on,
handlers of the cell's first process don't end, or not before there is the file that RECORD_GO names.
RECORD_KEYED gives the actor a key; with RECORD_START=hang its start never ends. A number in RECORD_DEADLY
makes its handler kill the process with a segmentation fault. RECORD_ATTEMPTS is how many a delivery has, and
RECORD_ACK_WAIT for how many seconds the server waits for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
from pathlib import Path

from understudy.actors.actor import Actor
from understudy.actors.context import Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Mailbox, RetryPolicy
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

SECONDS = float(os.environ.get("RECORD_SECONDS", "0"))
STUCK = float(os.environ.get("RECORD_STUCK") or math.inf)
GO = os.environ.get("RECORD_GO")
ACK_WAIT_SECONDS = float(os.environ.get("RECORD_ACK_WAIT", "5"))
ATTEMPTS = int(os.environ.get("RECORD_ATTEMPTS", "5"))
DEADLY = {int(number) for number in os.environ.get("RECORD_DEADLY", "").split()}


class Noted(Event, subject="notes.noted"):
    """Something to write down."""

    number: int
    customer: str = "c"


class Recorder(
    Actor,
    mailbox=Mailbox(capacity=64),
    ack_wait_seconds=ACK_WAIT_SECONDS,
    hang_timeout_seconds=3,
    retry=RetryPolicy(max_attempts=ATTEMPTS),
):
    """Appends `pid number attempt sequence customer` to the record."""

    async def on_start(self, ctx: StartContext) -> None:
        ctx.log.info("starting the actor")
        if os.environ.get("RECORD_START") == "hang":
            await asyncio.Event().wait()
        self._stuck = STUCK if ctx.generation == 1 else math.inf
        self._record = os.open(os.environ["RECORD_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @handles
    async def noted(self, event: Noted, ctx: Context) -> None:
        if event.number in DEADLY:
            ctypes.string_at(0)
        if event.number >= self._stuck:
            await (asyncio.Event().wait() if GO is None else self._go(Path(GO)))
        if SECONDS:
            await asyncio.sleep(SECONDS)
        line = (
            f"{os.getpid()} {event.number} {ctx.delivery.attempt} {ctx.delivery.sequence} {event.customer}\n"
        )
        os.write(self._record, line.encode())

    async def _go(self, file: Path) -> None:
        while not file.exists():  # noqa: ASYNC110 # it is another process that makes it
            await asyncio.sleep(0.02)


options = {"key": "customer"} if os.environ.get("RECORD_KEYED") else {}
recorder = Child(Recorder, **options) if options else Child(Recorder)  # type: ignore[arg-type]
app = App(
    "recorder",
    streams=[Stream("NOTES", subjects=["notes.>"])],
    children=[Supervisor("ops", children=[recorder])],
)
