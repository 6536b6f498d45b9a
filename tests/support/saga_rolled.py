"""The app of the rolling deploy of sagas that wait: the second version has a step more, before the last.

ROLLED_VERSION is which version of the app it is. Each effect is a line of the file RECORD_FILE: version,
saga, step and direction. Sagas called `patient-…` wait for their reply for as long as it takes, those called
`hasty-…` for no more than HASTY_SECONDS. One whose id ends with "deadly" kills its cell.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.saga import Saga, SagaContext, starts
from understudy.actors.saga_step import NO_COMPENSATION, Step
from understudy.actors.state import State
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

APP = "air"
VERSION = int(os.environ.get("ROLLED_VERSION", "0"))
HASTY_SECONDS = 1.0
PATIENT, HASTY = "patient", "hasty"
DEADLY = "deadly"


class Delayed(Event, subject="flights.delayed"):
    booking: str


class Charge(Event, subject="flights.charge"):
    booking: str


class Charged(Event, subject="flights.charged"):
    booking: str


class Trip(State):
    steps: int = 0


def rebooking(name: str, reply_timeout_seconds: float) -> type[Saga]:
    """Return a saga that waits so long for its reply, and takes those whose ids begin with a name."""

    class Rebooking(Saga, key="booking", state=Trip):
        def act(self, ctx: SagaContext[Trip], what: str) -> None:
            ctx.state.steps += 1
            with Path(os.environ["RECORD_FILE"]).open("a") as record:
                record.write(f"{VERSION} {ctx.saga_id} {what}\n")

        @starts
        async def delayed(self, event: Delayed) -> Trip | None:
            return Trip() if event.booking.startswith(name) else None

        async def reserve(self, ctx: SagaContext[Trip]) -> None:
            self.act(ctx, "reserve do")
            if ctx.saga_id.endswith(DEADLY):
                os.kill(os.getpid(), signal.SIGKILL)

        async def release(self, ctx: SagaContext[Trip]) -> None:
            self.act(ctx, "reserve undo")

        async def charge(self, ctx: SagaContext[Trip]) -> Charge:
            self.act(ctx, "charge do")
            return Charge(booking=ctx.saga_id)

        @handles
        async def charged(self, event: Charged) -> None: ...

        async def refund(self, ctx: SagaContext[Trip]) -> None:
            self.act(ctx, "charge undo")

        async def ticket(self, ctx: SagaContext[Trip]) -> None:
            self.act(ctx, "ticket do")

        async def notify(self, ctx: SagaContext[Trip]) -> None:
            self.act(ctx, "notify do")

        steps = (
            Step(reserve, compensation=release),
            Step(
                charge,
                compensation=refund,
                replies=[charged],
                reply_timeout_seconds=reply_timeout_seconds,
            ),
            *([Step(ticket, compensation=NO_COMPENSATION)] if VERSION else []),
            Step(notify, compensation=NO_COMPENSATION),
        )

    return Rebooking


app = App(
    APP,
    streams=[Stream("FLIGHTS", subjects=["flights.>"], timers=True)],
    children=[
        Child(rebooking(PATIENT, 600.0), name=PATIENT),
        Child(rebooking(HASTY, HASTY_SECONDS), name=HASTY),
    ],
    revision=VERSION,
)
