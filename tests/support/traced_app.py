"""Three actors in a row, whose handlers look at OpenTelemetry's current span as a library would.

`desk` is guarded by a breaker, `ledger` has state, and `archive` runs in a thread. Numbers in TRACED_FAILING
fail the archive's first attempt, those in TRACED_REJECTED every one; those in TRACED_WAITING wait there until
the file TRACED_GATE exists. What was seen of the current span is in TRACED_SEEN.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from opentelemetry import trace

from understudy import (
    Actor,
    App,
    Batch,
    BatchContext,
    CircuitBreaker,
    Context,
    Event,
    Reject,
    RetryPolicy,
    State,
    Stream,
    handles,
)

GATE_SECONDS = 60.0


def _numbers(variable: str) -> frozenset[int]:
    return frozenset(int(number) for number in os.environ.get(variable, "").split())


FAILING, REJECTED, WAITING = map(_numbers, ("TRACED_FAILING", "TRACED_REJECTED", "TRACED_WAITING"))


class Entered(Event, subject="traced.{region}.entered"):
    """Comes from outside."""

    region: str
    number: int


class Booked(Event, subject="traced.{region}.booked"):
    """Passed the desk."""

    region: str
    number: int


class Filed(Event, subject="traced.filed"):
    """Passed the ledger."""

    number: int


class Count(State):
    """What the ledger has of a region."""

    events: int = 0


class Desk(Actor, breakers=[CircuitBreaker("bank")]):
    """The first."""

    @handles
    async def entered(self, event: Entered, ctx: Context) -> Booked:
        """Ask the bank."""
        async with ctx.breaker("bank"):
            see(event.number)
            with trace.get_tracer("bank-client").start_as_current_span("GET /balance"):
                ctx.log.warning("asked", number=event.number)
        return Booked(region=event.region, number=event.number)


class Ledger(Actor, key="region", state=Count):
    """The second."""

    @handles
    async def booked(self, event: Booked, ctx: Context) -> None:
        """Count it, and pass it on."""
        state: Count = ctx.state
        state.events += 1
        ctx.publish(Filed(number=event.number))


class Archive(Actor, retry=RetryPolicy(min_delay_seconds=0.01, max_delay_seconds=0.02)):
    """The third."""

    @handles
    def filed(self, event: Filed, ctx: Context) -> None:
        """Fail, wait, or be done."""
        see(event.number)
        trace.get_current_span().set_attribute("app.number", event.number)
        if event.number in REJECTED:
            raise Reject("nobody wants it")
        if event.number in FAILING and ctx.delivery.attempt == 1:
            raise ValueError("the first attempt fails")
        deadline = time.monotonic() + GATE_SECONDS
        while event.number in WAITING and not Path(os.environ["TRACED_GATE"]).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


class Sorter(Actor, durable="traced-sorter"):
    """Takes batches."""

    @handles(batch=Batch(size=3, timeout_seconds=5))
    async def entered(self, events: list[Entered], ctx: BatchContext) -> None:
        """Fail one, and pass the others on, each by itself; and the sum of them."""
        for index, event in enumerate(events):
            if event.number in FAILING and ctx.deliveries[index].attempt == 1:
                ctx.fail(index, ValueError("the first attempt fails"))
            else:
                ctx.publish(Filed(number=event.number), index=index)


def see(number: int) -> None:
    """Write down the current span, as it would be sent with a request."""
    context = trace.get_current_span().get_span_context()
    with Path(os.environ["TRACED_SEEN"]).open("a") as seen:
        line = f"{number} {context.trace_id:032x} {context.span_id:016x} {int(context.trace_flags)}"
        seen.write(f"{line}\n")


_STREAM = Stream("TRACED", subjects=["traced.>"])
app = App("traced", streams=[_STREAM], children=[Desk, Ledger, Archive])
batches = App("traced", streams=[_STREAM], children=[Sorter])
