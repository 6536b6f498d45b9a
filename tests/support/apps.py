"""Apps for tests that run the whole command."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

from understudy.actors.actor import Actor
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

STREAM = Stream("TESTS", subjects=["tests.>"], storage="memory")


class Number(Event, subject="tests.numbers"):
    """A number; what some actors do with it is told by `deed`."""

    value: int
    deed: str = ""


class Recorder(Actor, key="value"):
    """Writes each number into the file that HANDLED names, one write each."""

    @handles
    async def number(self, event: Number) -> None:
        """Do the deed and record the number."""
        if event.deed == "segfault":
            ctypes.string_at(0)
        if event.deed == "block":
            time.sleep(3600)
        if event.deed == "fork":
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,)).start()
        if event.deed == "spawn":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        with Path(os.environ["HANDLED"]).open("a") as handled:
            handled.write(f"{event.value} {os.getpid()} {time.time()}\n")


class Bystander(Actor):
    """Does nothing, on the same numbers."""

    @handles
    async def number(self, event: Number) -> None:
        """Do nothing."""


app = App(
    "tests",
    streams=[STREAM],
    children=[Child(Recorder, hang_timeout_seconds=2.0), Supervisor("inner", children=[Bystander])],
)
forking = App("forking", streams=[STREAM], children=[Supervisor("inner", children=[Recorder])])
# Bears one restart, and so would not bear two.
narrow = App("narrow", streams=[STREAM], children=[Recorder], max_restarts=1, max_seconds=60.0)
strict = App("strict", streams=[STREAM], children=[Recorder, Bystander], max_restarts=0)


class NeverStarts(Actor):
    """Its on_start raises."""

    async def on_start(self, ctx: object) -> None:
        """Fail."""
        raise RuntimeError("no database")

    @handles
    async def number(self, event: Number) -> None:
        """Do nothing."""


half_up = App("half", streams=[STREAM], children=[NeverStarts, Bystander])


class Stubborn(Actor):
    """Its on_stop never ends."""

    async def on_stop(self) -> None:
        """Block the event loop."""
        time.sleep(3600)

    @handles
    async def number(self, event: Number) -> None:
        """Do nothing."""


stubborn = App("stubborn", streams=[STREAM], children=[Stubborn])
