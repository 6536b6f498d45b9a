"""Flights from New York, worked through by five actors in a tree of two levels.

    flights
    ├─ statistics        counts per carrier, in order, in a state that outlives its cell
    ├─ delay-monitor     turns a departure more than an hour late into an event of its own
    └─ ops
       ├─ notifier       two cells that tell a service about late flights, behind a circuit breaker
       ├─ rebooking      a saga for each flight more than three hours late: seat, charge, message
       └─ cashier        charges for the saga, and replies

`understudy demo` shows all of it at work, with an outage of the service and cells that are killed. To run it
by hand: `understudy run understudy.examples.flights.app:app --embedded`, and for the notices and the
rebookings `python -m understudy.examples.flights.service`.
"""

import asyncio
import os

from understudy import (
    Actor,
    App,
    Child,
    CircuitBreaker,
    Context,
    Idempotency,
    Mailbox,
    State,
    Stream,
    Supervisor,
    handles,
)
from understudy.examples.flights.client import post_notice
from understudy.examples.flights.events import Delayed, Departed
from understudy.examples.flights.rebooking import BOOKINGS, Cashier, Rebooking

SERVICE_URL = os.environ.get("FLIGHTS_SERVICE_URL", "http://127.0.0.1:8470")

LATE_MINUTES = 60


class CarrierStatistics(State):
    """What has been counted of one carrier.

    `last_sequence` and `out_of_order` are there to be checked: the second has to stay zero.
    """

    flights: int = 0
    cancelled: int = 0
    delay_minutes: float = 0.0
    last_sequence: int = 0
    out_of_order: int = 0


class Statistics(Actor, key="carrier", state=CarrierStatistics):
    """Counts flights, cancellations and delays of each carrier.

    With `key` the deliveries of one carrier come one at a time, in the order of the stream. What the handler
    changes in `ctx.state` is stored, together with the sequence of its delivery, before that is acknowledged.
    So a departure that comes again, because a cell died, isn't counted again, and nothing here sees to that.
    """

    @handles
    async def departed(self, event: Departed, ctx: Context) -> None:
        """Count a departure."""
        carrier: CarrierStatistics = ctx.state
        carrier.flights += 1
        carrier.cancelled += event.delay_minutes is None
        carrier.delay_minutes += event.delay_minutes or 0.0
        carrier.out_of_order += ctx.delivery.sequence < carrier.last_sequence
        carrier.last_sequence = max(ctx.delivery.sequence, carrier.last_sequence)


class DelayMonitor(Actor, key="carrier"):
    """Announces late departures. What a handler returns is published before its delivery is acknowledged."""

    @handles
    async def departed(self, event: Departed) -> Delayed | None:
        """Return an event of its own for a departure more than an hour late."""
        if event.delay_minutes is None or event.delay_minutes <= LATE_MINUTES:
            return None
        return Delayed(
            carrier=event.carrier,
            flight=event.flight,
            origin=event.origin,
            scheduled=event.scheduled,
            delay_minutes=event.delay_minutes,
        )


# With a timeout, so that a trial whose cell was killed stands in the way for no longer.
NOTICES = CircuitBreaker("notices", fail_max=3, reset_timeout_seconds=0.5, timeout_seconds=2)


class Notifier(
    Actor,
    replicas=2,
    concurrency=4,
    mailbox=Mailbox(capacity=16),
    idempotency=Idempotency(window_seconds=3600),
    breakers=(NOTICES,),
):
    """Tells the service about late flights, each once.

    While the service is down the breaker is open: a cell holds what is in its small mailbox, pulls nothing
    more, and the rest waits in the stream. The order of notices doesn't matter, so two cells share the work.

    What has been handled is marked, and skipped when it comes again. A cell that is killed while it waits for
    the service's answer leaves no mark, and nobody here can know whether the notice was taken: it is posted
    again, and by its key the service knows it.
    """

    def __init__(self, service_url: str) -> None:
        self.service_url = service_url

    @handles
    async def delayed(self, event: Delayed, ctx: Context) -> None:
        """Post a notice under a key that is the same however often the event is handled."""
        async with ctx.breaker(NOTICES.name):
            await asyncio.to_thread(post_notice, self.service_url, ctx.delivery.idempotency_key, event)


OPS = [Child(actor, args={"service_url": SERVICE_URL}) for actor in (Notifier, Rebooking, Cashier)]

app = App(
    "flights",
    # With timers: a saga sets one while it waits for a reply.
    streams=[Stream("FLIGHTS", subjects=["flights.>"], timers=True)],
    children=[Statistics, DelayMonitor, Supervisor("ops", children=OPS)],
    breakers=[BOOKINGS],
)
