"""An app whose cells call an HTTP service, behind a breaker that all of them share.

SERVICE is the service's port on loopback, RESET_SECONDS the breaker's reset timeout.
"""

from __future__ import annotations

import asyncio
import os
import time

from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import CircuitBreaker, Mailbox, RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.breakers.guard import Guard
from understudy.runtime.stream import Stream

FAIL_MAX = 5
CELLS = 2
CONCURRENCY = 4


class Asked(Event, subject="calls.asked"):
    """Has the service called."""

    number: int


class ServiceDown(Exception):
    """The service answered that it is down."""


async def call(number: int, trial: bool) -> None:
    """Make one HTTP request, which says when it began, by CLOCK_MONOTONIC.

    Args:
        number: the event's.
        trial: whether the breaker was open and tries the service by it.

    Raises:
        ServiceDown: it was answered so.
        OSError: it wasn't answered.
    """
    path = f"/{number}/{os.getpid()}/{time.monotonic()}/{trial:d}".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["SERVICE"]))
    try:
        writer.write(b"GET %b HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n" % path)
        status = (await reader.read()).split(b" ", 2)[1]
    finally:
        writer.close()
    if status != b"200":
        raise ServiceDown(status.decode())


class Caller(
    Actor,
    replicas=CELLS,
    concurrency=CONCURRENCY,
    mailbox=Mailbox(capacity=64),
    retry=RetryPolicy(max_attempts=5, min_delay_seconds=0.1, max_delay_seconds=1),
):
    """Calls the service once for each event."""

    @handles(breakers=["service"])
    async def asked(self, event: Asked, ctx: Context) -> None:
        """Call."""
        guard = ctx.breaker("service")
        assert isinstance(guard, Guard)
        async with guard:
            await call(event.number, guard._trial)


app = App(
    "calling",
    streams=[Stream("CALLS", subjects=["calls.>"])],
    breakers=[
        CircuitBreaker(
            "service",
            fail_max=FAIL_MAX,
            reset_timeout_seconds=float(os.environ.get("RESET_SECONDS", "1")),
            # The service always answers, if a busy machine lets it.
            timeout_seconds=20,
        )
    ],
    children=[Caller],
)
