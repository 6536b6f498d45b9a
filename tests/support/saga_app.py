"""The app of the tests that kill a saga's cell at every point where it awaits something.

A saga of four steps: three calls of the service, one command to another actor, which calls it and replies.
One whose id begins with "backwards" has its last step refused. SAGA_DIRECTORY has the points that sagas named
"forwards" and "backwards" pass written to its file `points`; a saga whose id goes on with one of them (and
perhaps with "_" and a number) has its cell killed there, once for each. There are several cells, each with
sagas of its own, since the pause before a cell is started again grows with its deaths.
"""

from __future__ import annotations

import asyncio
import os
import signal
import zlib
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

from support.saga_service import Refused, call
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.actors.outcomes import Reject
from understudy.actors.policies import Mailbox, RetryPolicy
from understudy.actors.saga import Saga, SagaContext, Signal, starts
from understudy.actors.saga_step import NO_COMPENSATION, Step
from understudy.actors.state import State
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.cell import state as cell_state
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.state_pipeline import StatePipeline
from understudy.runtime.stream import Stream

APP = "air"
SAGAS = tuple(f"rebooking-{index}" for index in range(int(os.environ.get("SAGA_CELLS", "20"))))
# A point is passed when something is awaited, and when that has come; a cell is killed at either, or a moment
# after the first, when what it has asked for is under way.
MODES = ("suspended", "soon", "resumed")
FORWARDS = ["reserve do", "charge do", "ticket do", "notify do"]
BACKWARDS = [*FORWARDS[:3], "ticket undo", "charge undo", "reserve undo"]
_SOON_SECONDS = 0.002
_PORT = int(os.environ.get("SERVICE_PORT", "0"))
_TIMEOUT_SECONDS = float(os.environ.get("STEP_TIMEOUT_SECONDS", "5"))
_REPLY_SECONDS = float(os.environ.get("REPLY_TIMEOUT_SECONDS", "30"))


class Delayed(Event, subject="flights.delayed"):
    booking: str


class Charge(Event, subject="flights.charge"):
    booking: str


class Charged(Event, subject="flights.charged"):
    booking: str


class Declined(Event, subject="flights.declined"):
    booking: str


class Trip(State):
    steps: int = 0


class Rebooking(Saga, key="booking", state=Trip):
    """Calls the service, forwards and backwards.

    Args:
        index: of those of its name, to tell whose a saga is.
    """

    def __init__(self, index: int) -> None:
        self._index = index

    async def call(self, ctx: SagaContext[Trip]) -> None:
        try:
            await call(_PORT, ctx.idempotency_key)
        except Refused as refusal:
            raise Reject(str(refusal)) from refusal
        ctx.state.steps += 1

    @starts
    async def delayed(self, event: Delayed) -> Trip | None:
        return Trip() if zlib.crc32(event.booking.encode()) % len(SAGAS) == self._index else None

    async def reserve(self, ctx: SagaContext[Trip]) -> None:
        await self.call(ctx)

    async def release(self, ctx: SagaContext[Trip]) -> None:
        await self.call(ctx)

    async def charge(self, ctx: SagaContext[Trip]) -> Charge:
        return Charge(booking=ctx.saga_id)

    @handles
    async def charged(self, event: Charged, ctx: SagaContext[Trip]) -> None:
        ctx.state.steps += 1

    @handles
    async def declined(self, event: Declined) -> None:
        raise Reject("declined")

    async def refund(self, ctx: SagaContext[Trip]) -> None:
        await self.call(ctx)

    async def ticket(self, ctx: SagaContext[Trip]) -> None:
        await self.call(ctx)

    async def cancel(self, ctx: SagaContext[Trip]) -> None:
        await self.call(ctx)

    async def notify(self, ctx: SagaContext[Trip]) -> None:
        if ctx.saga_id.startswith("backwards"):
            raise Reject("no such address")
        await self.call(ctx)

    steps = (
        Step(reserve, compensation=release, timeout_seconds=_TIMEOUT_SECONDS),
        Step(
            charge,
            compensation=refund,
            timeout_seconds=_TIMEOUT_SECONDS,
            replies=[charged, declined],
            reply_timeout_seconds=_REPLY_SECONDS,
        ),
        Step(ticket, compensation=cancel, timeout_seconds=_TIMEOUT_SECONDS),
        Step(notify, compensation=NO_COMPENSATION, timeout_seconds=_TIMEOUT_SECONDS),
    )


class Payments(Actor):
    """Charges by the saga's key, and replies."""

    @handles
    async def charge(self, event: Charge, ctx: Context) -> Charged | Declined:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await call(_PORT, ctx.delivery.idempotency_key)
        except Refused:
            return Declined(booking=event.booking)
        return Charged(booking=event.booking)


class _Watched:
    """Awaits a coroutine, and dies at the point where it is to."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], delivery: HeldDelivery, part: str) -> None:
        self._coroutine = coroutine
        event = delivery.event
        kind = f"{event.kind}{event.turn}" if isinstance(event, Signal) else type(event).__name__
        self._saga = delivery.key[0] if isinstance(delivery.key, tuple) else ""
        self._point = f"{kind}-{part}"

    def __await__(self) -> Generator[Any, Any, Any]:
        number = 0
        error: BaseException | None = None
        while True:
            try:
                awaited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as end:
                return end.value
            number += 1
            self._pass(number, "suspended")
            self._pass(number, "soon")
            error = None
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown
            self._pass(number, "resumed")

    def _pass(self, number: int, mode: str) -> None:
        point = f"{self._point}-{number}-{mode}"
        directory = Path(os.environ["SAGA_DIRECTORY"])
        way, _, wanted = self._saga.partition("_")[0].partition("-")
        if not wanted:
            with (directory / "points").open("a") as points:
                points.write(f"{way}-{point}\n")
        elif wanted == point:
            try:
                (directory / f"{way}-{wanted}.done").touch(exist_ok=False)
            except FileExistsError:
                return
            if mode == "soon":
                asyncio.get_running_loop().call_later(_SOON_SECONDS, os.kill, os.getpid(), signal.SIGKILL)
            else:
                os.kill(os.getpid(), signal.SIGKILL)


def _patch() -> None:
    handle, finish = StatePipeline.handle, StatePipeline._finish

    async def watched_handle(self: StatePipeline, line: Any, deadline: Any) -> None:
        await _Watched(handle(self, line, deadline), line.members[0], "handle")

    async def watched_finish(self: StatePipeline, work: Any) -> None:
        await _Watched(finish(self, work), work.line.members[0], "finish")

    StatePipeline.handle = watched_handle  # type: ignore[method-assign]
    StatePipeline._finish = watched_finish  # type: ignore[method-assign]
    # So that each delivery reads what is stored, as after a death.
    cell_state.CACHE_ENTRIES = 0


# Not in the test's own process, which imports this for its names.
if "SAGA_DIRECTORY" in os.environ:
    _patch()
common: dict[str, Any] = {"mailbox": Mailbox(capacity=256), "ack_wait_seconds": 6, "hang_timeout_seconds": 3}
# A death counts for all that its cell was handling.
retry = RetryPolicy(max_attempts=5, min_delay_seconds=0.02, max_delay_seconds=0.1, max_crashes=1_000_000)
app = App(
    APP,
    # So short that what is published twice is stored twice.
    streams=[Stream("FLIGHTS", subjects=["flights.>"], timers=True, duplicate_window_seconds=0.1)],
    children=[
        Supervisor(
            "ops",
            max_restarts=1_000_000,
            children=[
                *(
                    Child(Rebooking, name=name, args={"index": index}, retry=retry, concurrency=64, **common)
                    for index, name in enumerate(SAGAS)
                ),
                Child(
                    Payments,
                    retry=RetryPolicy(max_attempts=20, min_delay_seconds=0.02, max_delay_seconds=0.1),
                    concurrency=64,
                    idempotency=Idempotency(window_seconds=3600),
                    **common,
                ),
            ],
        )
    ],
)
