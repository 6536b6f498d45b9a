"""Apps for tests that run the whole command."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from understudy.actors.actor import Actor
from understudy.actors.context import Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import RetryPolicy
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

# What a recorder may use beyond what it has at its start.
MEMORY_BYTES = 1024 * 1024 * 1024
STREAM = Stream("TESTS", subjects=["tests.>"], storage="memory")


class Number(Event, subject="tests.numbers"):
    """A number; what some actors do with it is told by `deed`."""

    value: int
    deed: str = ""


class PoolGone(Exception):
    """What no recorder goes on after."""


def get_stuck(number: int, frame: FrameType | None) -> None:
    """Stand still in the main thread, where Python runs handlers of signals."""
    time.sleep(3600)


class Recorder(Actor, key="value", restart_on=[PoolGone]):
    """Writes each number into the file that HANDLED names, one write each."""

    async def on_start(self, ctx: StartContext) -> None:
        """Set a bound to memory."""
        self.generation = ctx.generation
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))

    @handles
    async def number(self, event: Number) -> None:
        """Do the deed and record the number."""
        if event.deed == "segfault":
            ctypes.string_at(0)
        if event.deed == "exit":
            os._exit(0)
        if event.deed == "block":
            time.sleep(3600)
        if event.deed == "hold the GIL":
            # Unlike CDLL, PyDLL keeps the lock over the call.
            threading.Thread(target=ctypes.PyDLL(None).sleep, args=(3600,)).start()
        if event.deed == "stick":
            os.kill(os.getpid(), signal.SIGUSR1)
        if event.deed == "want memory":
            bytearray(MEMORY_BYTES * 2)
        if event.deed == "fail" and self.generation == 1:
            raise PoolGone("the pool is closed")
        if event.deed == "fork":
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,)).start()
        if event.deed == "fork and return" and os.fork() == 0:
            return
        if event.deed == "close output":
            sys.stdout.close()
            sys.stderr.close()
        if event.deed in ("spawn", "spawn apart"):
            apart = event.deed == "spawn apart"
            command = [sys.executable, "-c", "import time; time.sleep(3600)"]
            subprocess.Popen(command, start_new_session=apart)
        with Path(os.environ["HANDLED"]).open("a") as handled:
            handled.write(f"{event.value} {os.getpid()} {time.time()}\n")


class Bystander(Actor):
    """Does nothing, on the same numbers."""

    @handles
    async def number(self, event: Number) -> None:
        """Do nothing."""


# In the main thread, where this is imported.
signal.signal(signal.SIGUSR1, get_stuck)
TREE: list[type[Actor] | Child | Supervisor] = [
    Child(Recorder, hang_timeout_seconds=2.0),
    Supervisor("inner", children=[Bystander]),
]
app = App(
    "tests",
    streams=[STREAM],
    children=TREE,
)
# What it has not handled outlives its broker.
stored = App("tests", streams=[Stream("TESTS", subjects=["tests.>"])], children=TREE)
forking = App("forking", streams=[STREAM], children=[Supervisor("inner", children=[Recorder])])
together = App(
    "together",
    streams=[STREAM],
    children=[Supervisor("inner", strategy="one_for_all", children=[Recorder, Bystander])],
)
# Bears one restart, and so would not bear two.
narrow = App("narrow", streams=[STREAM], children=[Recorder], max_restarts=1, max_seconds=60.0)
# Bears one restart after the other, each for an event of its own.
enduring = App(
    "enduring",
    streams=[STREAM],
    children=[Child(Recorder, hang_timeout_seconds=2.0, retry=RetryPolicy(max_crashes=1)), Bystander],
    max_restarts=100,
)
strict = App("strict", streams=[STREAM], children=[Recorder, Bystander], max_restarts=0)


class NeverStarts(Actor):
    """Its on_start raises."""

    async def on_start(self, ctx: object) -> None:
        """Fail."""
        raise RuntimeError("no database")

    @handles
    async def number(self, event: Number) -> None:
        """Do nothing."""


class StartsOnce(Actor):
    """Its first start is its only one, and what it handles never ends."""

    async def on_start(self, ctx: StartContext) -> None:
        """Fail unless it is the first."""
        if ctx.generation > 1:
            raise RuntimeError("no database")

    @handles
    async def number(self, event: Number) -> None:
        """Say that it has begun, and wait."""
        Path(os.environ["HANDLED"]).touch()
        await asyncio.Event().wait()


once = App("once", streams=[STREAM], children=[StartsOnce, Bystander])
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


class Unborn(Actor):
    """Its process ends when it is made."""

    def __init__(self) -> None:
        os._exit(3)

    @handles
    async def number(self, event: Number) -> None:
        """Do nothing."""


class Endless(Actor, start_timeout_seconds=1):
    """Its on_start never ends."""

    async def on_start(self, ctx: object) -> None:
        """Wait for nothing."""
        await asyncio.Event().wait()

    @handles
    async def number(self, event: Number) -> None:
        """Do nothing."""


unborn = App("unborn", streams=[STREAM], children=[Unborn, Bystander])
endless = App("endless", streams=[STREAM], children=[Endless, Bystander])


class Brief(Actor, ordered=True, restart="transient"):
    """Stops itself when it is told so."""

    @handles
    async def number(self, event: Number, ctx: Context) -> None:
        """Stop."""
        if event.deed == "stop":
            ctx.stop()


brief = App("brief", streams=[STREAM], children=[Brief, Bystander], strategy="one_for_all")
