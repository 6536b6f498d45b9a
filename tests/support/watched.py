"""An app in which, as the test wants it, much goes wrong that dashboards and alerts are about.

The booker keeps state, publishes, and does what an event's `deed` says. The payer's breaker opens with its
first call and stays so. The absentee never starts. Each customer's first booking begins a saga, whose step
can't be undone.
"""

from __future__ import annotations

import os

from understudy.actors.actor import Actor
from understudy.actors.context import Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import CircuitBreaker, Mailbox
from understudy.actors.saga import Saga, SagaContext, starts
from understudy.actors.saga_step import Step
from understudy.actors.state import State
from understudy.actors.supervision import Supervisor
from understudy.runtime.app import App
from understudy.runtime.stream import Stream


class Ordered(Event, subject="watched.ordered"):
    """An order, and what is to go wrong with it."""

    customer: str
    deed: str = ""


class Booked(Event, subject="watched.booked"):
    """A customer's order was booked, as the so-many-th."""

    customer: str
    count: int


class Account(State):
    """What is known of a customer."""

    orders: int = 0


class Booker(Actor, key="customer", state=Account):
    """Counts orders."""

    def on_start(self, ctx: StartContext) -> None:
        """Note whether anybody died before."""
        self._is_first = ctx.generation == 1

    @handles
    async def ordered(self, event: Ordered, ctx: Context) -> Booked:
        """Do the deed, and count."""
        if event.deed == "reject":
            raise Reject("not for sale")
        if event.deed == "retry" and ctx.delivery.attempt == 1:
            raise Retry(delay_seconds=0.1)
        if event.deed == "die" and self._is_first:
            os._exit(3)
        account: Account = ctx.state
        account.orders += 1
        return Booked(customer=event.customer, count=account.orders)


class Payer(
    Actor,
    mailbox=Mailbox(capacity=4),
    breakers=[CircuitBreaker("bank", fail_max=1, reset_timeout_seconds=3600)],
):
    """Can't reach the bank."""

    @handles
    async def booked(self, event: Booked, ctx: Context) -> None:
        """Fail."""
        async with ctx.breaker("bank"):
            raise ConnectionError("the bank is closed")


class Sent(State):
    """What is known of a ticket: nothing."""


class Ticket(Saga, key="customer", state=Sent):
    """Gets stuck."""

    @starts
    async def booked(self, _event: Booked) -> Sent:
        """Begin."""
        return Sent()

    async def send(self, _ctx: SagaContext[Sent]) -> None:
        """Send it."""
        raise ConnectionError("the mail doesn't answer")

    async def fetch(self, _ctx: SagaContext[Sent]) -> None:
        """Fetch it back."""
        raise Reject("it is gone")

    steps = (Step(send, compensation=fetch, max_attempts=1),)


class Absentee(Actor):
    """Its on_start raises."""

    async def on_start(self, ctx: object) -> None:
        """Fail."""
        raise RuntimeError("not today")

    @handles
    async def ordered(self, event: Ordered) -> None:
        """Do nothing."""


app = App(
    "watched",
    streams=[Stream("WATCHED", subjects=["watched.>"], timers=True)],
    children=[Booker, Ticket, Supervisor("ops", children=[Payer]), Supervisor("away", children=[Absentee])],
)
