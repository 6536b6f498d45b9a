"""The app that fault tests of batches run: its actor writes down what it handles, a batch at a time.

RECORD_FILE takes one line an event when its batch is done, and that file's name with `.begun` one when it
begins; RECORD_SECONDS is how long a batch takes, and one with the number RECORD_STUCK or a later one doesn't
end in the cell's first process; RECORD_KEYED gives the actor a key. A number in RECORD_DEADLY makes its
handler kill the process with a segmentation fault. RECORD_ACK_WAIT is for how many seconds the server waits.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
from typing import TYPE_CHECKING

from support.recorder import ACK_WAIT_SECONDS, DEADLY, SECONDS, STUCK, Noted
from understudy.actors.actor import Actor
from understudy.actors.context import BatchContext, StartContext
from understudy.actors.handlers import handles
from understudy.actors.policies import Batch, Mailbox
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

if TYPE_CHECKING:
    from understudy.actors.options import OptionKeywords


class Recorder(
    Actor, mailbox=Mailbox(capacity=64), ack_wait_seconds=ACK_WAIT_SECONDS, hang_timeout_seconds=3
):
    """Appends `pid number attempt sequence customer size` to the record."""

    async def on_start(self, ctx: StartContext) -> None:
        self._stuck = STUCK if ctx.generation == 1 else math.inf
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._record = os.open(os.environ["RECORD_FILE"], flags)
        self._begun = os.open(f"{os.environ['RECORD_FILE']}.begun", flags)

    @handles(batch=Batch(size=16, timeout_seconds=0.2))
    async def noted(self, events: list[Noted], ctx: BatchContext) -> None:
        lines, pid, size = b"", os.getpid(), len(events)
        for event, delivery in zip(events, ctx.deliveries, strict=True):
            line = f"{pid} {event.number} {delivery.attempt} {delivery.sequence} {event.customer} {size}\n"
            lines += line.encode()
        os.write(self._begun, lines)
        if any(event.number in DEADLY for event in events):
            ctypes.string_at(0)
        if any(event.number >= self._stuck for event in events):
            await asyncio.Event().wait()
        if SECONDS:
            await asyncio.sleep(SECONDS)
        os.write(self._record, lines)


options: OptionKeywords = {"key": "customer", "concurrency": 1} if os.environ.get("RECORD_KEYED") else {}
app = App(
    "recorder",
    streams=[Stream("NOTES", subjects=["notes.>"])],
    children=[Supervisor("ops", children=[Child(Recorder, **options)])],
)
