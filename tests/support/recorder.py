"""The app that fault tests run: its actor writes down what it handles.

RECORD_FILE takes one line a run; RECORD_SECONDS is how long a handler takes; RECORD_KEYED gives the actor a
key; with RECORD_START=hang its start never ends. A number in RECORD_DEADLY makes its handler kill the process
with a segmentation fault.
"""

from __future__ import annotations

import asyncio
import ctypes
import os

from understudy.actors.actor import Actor
from understudy.actors.context import Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Mailbox
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

SECONDS = float(os.environ.get("RECORD_SECONDS", "0"))
DEADLY = {int(number) for number in os.environ.get("RECORD_DEADLY", "").split()}


class Noted(Event, subject="notes.noted"):
    """Something to write down."""

    number: int
    customer: str = "c"


class Recorder(Actor, mailbox=Mailbox(capacity=64), ack_wait_seconds=5, hang_timeout_seconds=3):
    """Appends `pid number attempt sequence customer` to the record."""

    async def on_start(self, ctx: StartContext) -> None:
        ctx.log.info("starting the actor")
        if os.environ.get("RECORD_START") == "hang":
            await asyncio.Event().wait()
        self._record = os.open(os.environ["RECORD_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @handles
    async def noted(self, event: Noted, ctx: Context) -> None:
        if event.number in DEADLY:
            ctypes.string_at(0)
        if SECONDS:
            await asyncio.sleep(SECONDS)
        line = (
            f"{os.getpid()} {event.number} {ctx.delivery.attempt} {ctx.delivery.sequence} {event.customer}\n"
        )
        os.write(self._record, line.encode())


options = {"key": "customer"} if os.environ.get("RECORD_KEYED") else {}
recorder = Child(Recorder, **options) if options else Child(Recorder)  # type: ignore[arg-type]
app = App(
    "recorder",
    streams=[Stream("NOTES", subjects=["notes.>"])],
    children=[Supervisor("ops", children=[recorder])],
)
