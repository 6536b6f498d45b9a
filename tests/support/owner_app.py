"""The app of the fault tests for sole owners: its actor writes down what it handles.

RECORD_FILE takes one line a run, of all nodes. OWNER_OPTIONS are the actor's, as JSON; OWNER_SECONDS is how
long a handler takes, and OWNER_RESTART_SECONDS how long a start that isn't the first; with OWNER_BLOCKS it
holds up the event loop. From the number OWNER_STUCK on, handlers don't end before there is the file that
OWNER_GO names. OWNER_MAX_RESTARTS is how many the run bears.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from pathlib import Path

from understudy.actors.actor import Actor
from understudy.actors.context import Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Mailbox
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

SECONDS = float(os.environ.get("OWNER_SECONDS", "0"))
STUCK = float(os.environ.get("OWNER_STUCK", math.inf))
GO = os.environ.get("OWNER_GO")
options = json.loads(os.environ.get("OWNER_OPTIONS", '{"key": "customer"}'))
if "mailbox" in options:
    options["mailbox"] = Mailbox(**options["mailbox"])


class Noted(Event, subject="notes.noted"):
    """Something to write down."""

    number: int
    customer: str = "c"


class Recorder(Actor):
    """Appends `begin end pid number sequence customer` to the record, times in seconds of the same clock."""

    async def on_start(self, ctx: StartContext) -> None:
        self._record = os.open(os.environ["RECORD_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        if ctx.generation > 1:
            seconds = float(os.environ.get("OWNER_RESTART_SECONDS", "0"))
            time.sleep(seconds) if os.environ.get("OWNER_BLOCKS") else await asyncio.sleep(seconds)

    @handles
    async def noted(self, event: Noted, ctx: Context) -> None:
        begin = time.monotonic()
        if SECONDS:
            await asyncio.sleep(SECONDS)
        while event.number >= STUCK and not (GO and Path(GO).exists()):  # noqa: ASYNC110 # another makes it
            await asyncio.sleep(0.02)
        end = time.monotonic()
        line = f"{begin} {end} {os.getpid()} {event.number} {ctx.delivery.sequence} {event.customer}\n"
        os.write(self._record, line.encode())


app = App(
    "owners",
    streams=[Stream("NOTES", subjects=["notes.>"])],
    children=[Child(Recorder, **options)],
    max_restarts=int(os.environ.get("OWNER_MAX_RESTARTS", "3")),
)
