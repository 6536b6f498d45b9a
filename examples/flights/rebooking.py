"""The saga that rebooks the passengers of a very late flight, and the actor that charges for it."""

import asyncio

from understudy import (
    NO_COMPENSATION,
    Actor,
    CircuitBreaker,
    Context,
    Reject,
    RetryPolicy,
    Saga,
    SagaContext,
    State,
    Step,
    handles,
    starts,
)
from understudy.examples.flights.client import Refused, cancel, order
from understudy.examples.flights.events import Charge, Charged, Declined, Delayed

VERY_LATE_MINUTES = 180
FARE_DIFFERENCE = 80

# The saga's cell and the cashier's share it. What the service refuses says nothing of its health.
BOOKINGS = CircuitBreaker(
    "bookings", fail_max=5, reset_timeout_seconds=0.5, timeout_seconds=2, excluded=[Refused]
)
RETRY = RetryPolicy(max_attempts=10, min_delay_seconds=0.1, max_delay_seconds=1)


class Trip(State):
    """What a rebooking has come to: the numbers of its seat and its charge in the service's ledger."""

    seat: int = 0
    receipt: int = 0


class Rebooking(Saga, key="booking", state=Trip, retry=RETRY):
    """Reserves a seat, charges the difference and tells the passenger; else gives back what it had.

    The service may fail, keep silent, or do its work and then keep silent. Each step is tried again under
    the same key until it has an answer, so that its effect is there once. If the answer is no, the steps
    before it are undone, the last first.
    """

    def __init__(self, service_url: str) -> None:
        self.service_url = service_url

    @starts
    async def delayed(self, event: Delayed) -> Trip | None:
        """Begin if the flight is more than three hours late."""
        return Trip() if event.delay_minutes > VERY_LATE_MINUTES else None

    async def reserve(self, ctx: SagaContext[Trip]) -> None:
        """Reserve a seat in a later flight."""
        ctx.state.seat = await self._order(ctx, "seats")

    async def release(self, ctx: SagaContext[Trip]) -> None:
        """Give the seat back."""
        await self._cancel(ctx, "seats")

    async def charge(self, ctx: SagaContext[Trip]) -> Charge:
        """Have the cashier charge the difference; the saga waits for what becomes of it."""
        return Charge(booking=ctx.saga_id, amount=FARE_DIFFERENCE)

    @handles
    async def charged(self, event: Charged, ctx: SagaContext[Trip]) -> None:
        """Keep the receipt."""
        ctx.state.receipt = event.receipt

    @handles
    async def declined(self, event: Declined) -> None:
        """Give up: nothing was charged, and the seat is given back."""
        raise Reject(event.reason)

    async def refund(self, ctx: SagaContext[Trip]) -> None:
        """Give the money back. A charge that is still on its way is refused by the service from now on."""
        await self._cancel(ctx, "charges")

    async def notify(self, ctx: SagaContext[Trip]) -> None:
        """Tell the passenger. Who can't be reached keeps the old seat."""
        await self._order(ctx, "messages")

    steps = (
        Step(reserve, compensation=release),
        Step(charge, compensation=refund, replies=[charged, declined], reply_timeout_seconds=600),
        # Nothing takes a message back, and nothing has to: it goes out when all else is done.
        Step(notify, compensation=NO_COMPENSATION),
    )

    async def _order(self, ctx: SagaContext[Trip], account: str) -> int:
        try:
            async with ctx.breaker(BOOKINGS.name):
                return await asyncio.to_thread(
                    order, self.service_url, account, ctx.idempotency_key, booking=ctx.saga_id
                )
        except Refused as refusal:
            raise Reject(str(refusal)) from refusal

    async def _cancel(self, ctx: SagaContext[Trip], account: str) -> None:
        async with ctx.breaker(BOOKINGS.name):
            await asyncio.to_thread(
                cancel, self.service_url, account, ctx.idempotency_key, booking=ctx.saga_id
            )


class Cashier(Actor, key="booking", retry=RETRY):
    """Charges what it is told to, and says what became of it.

    The delivery of a saga's command has the key of the saga's step, so that the service knows it when it is
    charged again, by a replacement say.
    """

    def __init__(self, service_url: str) -> None:
        self.service_url = service_url

    @handles
    async def charge(self, event: Charge, ctx: Context) -> Charged | Declined:
        """Charge, and reply."""
        key = ctx.delivery.idempotency_key
        try:
            async with ctx.breaker(BOOKINGS.name):
                receipt = await asyncio.to_thread(
                    order, self.service_url, "charges", key, booking=event.booking, amount=event.amount
                )
        except Refused as refusal:
            return Declined(booking=event.booking, reason=str(refusal))
        return Charged(booking=event.booking, receipt=receipt)
