"""An app that does as it is told by files: five sole owners under one supervisor, and an actor beside them.

All of them handle all events and record each run. FAULTS_DIRECTORY holds `records/`; `armed/`, where
`<actor>.<moment>` names a deed that the actor's next process or handler does, once; and `done/`, where
`<actor>.<pid>` says when it did which. The settings are low, so that what waits for a timeout doesn't wait
for long.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Literal, get_args

from support.account import Recorded
from support.records import RecordFile
from understudy.actors.actor import Actor
from understudy.actors.context import Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Mailbox, RetryPolicy
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

KEYS = 20
CONCURRENCY = 8
CAPACITY = 256
HANG_TIMEOUT_SECONDS = 2.0
START_TIMEOUT_SECONDS = 5.0
ACK_WAIT_SECONDS = 8.0
# More than any number of faults comes to: what is shown is one restart after the other, not the end of them.
MAX_RESTARTS = 1000
MAX_SECONDS = 60.0
MAX_CRASHES = 100
# So that a log shows what handlers log too, secrets and all.
LOGGED_EACH = 100
VICTIMS = tuple(f"victim-{number}" for number in range(5))
BYSTANDER = "bystander"
OPS = "ops"
RECORDED = tuple(
    Recorded(
        actor=actor,
        keys=KEYS,
        concurrency=1 if actor == BYSTANDER else CONCURRENCY,
        held=CAPACITY,
        ack_wait_seconds=ACK_WAIT_SECONDS,
        is_sole_owner=actor != BYSTANDER,
    )
    for actor in (*VICTIMS, BYSTANDER)
)
# So that two events or so are in a victim's handlers at any time, and the bystander's one keeps up: where
# each sleep takes a busy machine five milliseconds, it would not.
VICTIM_SECONDS = 0.01
BYSTANDER_SECONDS = 0.0

EXIT_STATUS = 3
FOR_EVER_SECONDS = 3600
# Less than the handler then asks for, and enough for everything else to go on.
MEMORY_LEFT_BYTES = 128 * 1024 * 1024

Moment = Literal["init", "start", "handler"]


def directory(kind: Literal["records", "armed", "done"]) -> Path:
    """Return one of the folders of FAULTS_DIRECTORY."""
    return Path(os.environ["FAULTS_DIRECTORY"], kind)


def put(path: Path, text: str) -> None:
    """Make a file that is there at once with all of its text."""
    new = path.with_name(f".{path.name}")
    new.write_text(text)
    new.rename(path)


def _get_stuck(number: int, frame: FrameType | None) -> None:
    time.sleep(FOR_EVER_SECONDS)


if "FAULTS_DIRECTORY" in os.environ:
    # Python runs handlers of signals in the main thread: so one gets at it from the thread of the actor.
    signal.signal(signal.SIGUSR1, _get_stuck)


def _hold_the_gil() -> None:
    # Unlike CDLL, PyDLL keeps the lock over the call.
    ctypes.PyDLL(None).sleep(FOR_EVER_SECONDS)


def _want_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LEFT_BYTES, resource.RLIM_INFINITY))
    bytearray(2 * MEMORY_LEFT_BYTES)


class _Recording(
    Actor,
    mailbox=Mailbox(capacity=CAPACITY),
    ack_wait_seconds=ACK_WAIT_SECONDS,
    hang_timeout_seconds=HANG_TIMEOUT_SECONDS,
    start_timeout_seconds=START_TIMEOUT_SECONDS,
    retry=RetryPolicy(min_delay_seconds=0.05, max_delay_seconds=0.5, max_crashes=MAX_CRASHES),
):
    def __init__(self, name: str) -> None:
        self._name = name
        # Once: pathlib interns its parts, and to do so for each event grows the interpreter's own table.
        self._armed: dict[Moment, Path] = {
            moment: directory("armed") / f"{name}.{moment}" for moment in get_args(Moment)
        }
        if self._deed("init"):
            os._exit(EXIT_STATUS)

    async def on_start(self, ctx: StartContext) -> None:
        match self._deed("start"):
            case "raise":
                raise RuntimeError("no database")
            case "never end":
                await asyncio.sleep(FOR_EVER_SECONDS)
        self._records = RecordFile(directory("records"), self._name)

    def _deed(self, moment: Moment) -> str:
        """What to do now; it is done once."""
        path = self._armed[moment]
        try:
            deed = path.read_text()
        except FileNotFoundError:
            return ""
        path.unlink()
        put(directory("done") / f"{self._name}.{os.getpid()}", f"{time.monotonic_ns()} {deed}")
        return deed

    async def handle(self, event: Happened, ctx: Context, seconds: float) -> None:
        """Record the run, do what is to be done, and take so long."""
        self._records.note(event.number, ctx.delivery)
        if event.number % LOGGED_EACH == 0:
            headers = dict(ctx.delivery.headers)
            ctx.log.info("handling", headers=headers, text=f"an event with {headers}")
        match self._deed("handler"):
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os._exit(EXIT_STATUS)
            case "want memory":
                _want_memory()
            case "block":
                time.sleep(FOR_EVER_SECONDS)
            case "hold the GIL":
                threading.Thread(target=_hold_the_gil).start()
            case "stick":
                os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(seconds)


class Happened(Event, subject="faults.happened"):
    """A number."""

    number: int
    key: int


class Victim(_Recording, key="key", concurrency=CONCURRENCY):
    """A sole owner."""

    @handles
    async def happened(self, event: Happened, ctx: Context) -> None:
        await self.handle(event, ctx, VICTIM_SECONDS)


class Bystander(_Recording):
    """Shares its durable; nothing is done to it."""

    @handles
    async def happened(self, event: Happened, ctx: Context) -> None:
        await self.handle(event, ctx, BYSTANDER_SECONDS)


app = App(
    "faults",
    streams=[Stream("FAULTS", subjects=["faults.>"])],
    children=[
        Supervisor(
            OPS,
            max_restarts=MAX_RESTARTS,
            max_seconds=MAX_SECONDS,
            children=[Child(Victim, name=name, args={"name": name}) for name in VICTIMS],
        ),
        Child(Bystander, name=BYSTANDER, args={"name": BYSTANDER}),
    ],
    max_restarts=MAX_RESTARTS,
    max_seconds=MAX_SECONDS,
)


def make_event(number: int) -> Happened:
    """Return the event of a number."""
    return Happened(number=number, key=number % KEYS)
