"""An app that logs in every way that there is, each time as its event says."""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings

import structlog

from understudy.actors.actor import Actor
from understudy.actors.context import BatchContext, Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Batch, RetryPolicy
from understudy.actors.state import State
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

_log = structlog.get_logger("shop")


class Told(Event, subject="logs.told"):
    """Says what to do."""

    deed: str


class InThread(Event, subject="logs.in_thread"):
    """For a handler in a thread."""


class Counted(Event, subject="logs.counted"):
    """For an actor with state."""


class Gathered(Event, subject="logs.gathered"):
    """For a batch handler."""


class Teller(Actor, retry=RetryPolicy(max_attempts=2, min_delay_seconds=0.01, max_delay_seconds=0.01)):
    """Does what it is told."""

    def on_start(self, ctx: StartContext) -> None:
        ctx.log.info("opening the shop")

    @handles
    async def told(self, event: Told, ctx: Context) -> None:
        match event.deed:
            case "log":
                ctx.log.info("by the context")
                _log.info("by structlog")
                logging.getLogger("shop").info("by the standard library")
                ctx.log.info("headers", headers=ctx.delivery.headers)
            case "fail":
                raise ConnectionError("cannot reach https://clerk:hunter2@shop.example/")
            case "flood":
                for _ in range(1000):
                    ctx.log.error("no answer", order=ctx.delivery.sequence)
            case "warn":
                warnings.warn("this is odd", UserWarning, stacklevel=1)
                thread = threading.Thread(target=int, args=("x",), name="helper")
                thread.start()
                thread.join()
            case "cannot be shown":
                ctx.log.error("odd", value=Unshowable())
                ctx.log.error("%d pieces", "many")
                ctx.log.error("lone", text="\ud800")
                logging.getLogger("shop").error("%d pieces", "many")
                ctx.log.info("by the end")
            case "crash":
                ctypes.string_at(0)

    @handles
    def in_thread(self, _event: InThread, ctx: Context) -> None:
        ctx.log.info("in a thread", thread=threading.current_thread().name)


class Gatherer(Actor):
    """Takes several at once."""

    @handles(batch=Batch(size=3, timeout_seconds=5))
    async def gathered(self, _events: list[Gathered], ctx: BatchContext) -> None:
        ctx.log.info("in a batch")


class Total(State):
    """How many there were."""

    count: int = 0


class Counter(Actor, state=Total):
    """Counts."""

    @handles
    async def counted(self, _event: Counted, ctx: Context) -> None:
        ctx.state.count += 1
        ctx.log.info("counted", count=ctx.state.count)


class Unshowable:
    """A value whose text can't be had."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


app = App(
    "logs",
    streams=[Stream("LOGS", subjects=["logs.>"])],
    children=[Teller, Child(Gatherer), Counter],
)
