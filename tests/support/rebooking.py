"""A saga that rebooks, who answers it, and a desk from which a test watches both."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from support.cells import Bench, CellRun, until
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import RetryPolicy
from understudy.actors.saga import Saga, SagaContext, SagaRecord, Signal, starts
from understudy.actors.saga_position import Phase
from understudy.actors.saga_step import NO_COMPENSATION, Step
from understudy.actors.state import State
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.cell.state import stored_value
from understudy.runtime.sagas import signal_subject
from understudy.runtime.stream import Stream

SOON = RetryPolicy(max_attempts=3, min_delay_seconds=0, max_delay_seconds=0)
SIGNALS = signal_subject("FLIGHTS", "air-rebooking")


class Delayed(Event, subject="flights.delayed"):
    booking: str
    minutes: int = 200


class Charge(Event, subject="flights.charge"):
    booking: str


class Charged(Event, subject="flights.charged"):
    booking: str
    receipt: str = ""


class Declined(Event, subject="flights.declined"):
    booking: str


class Rebooked(Event, subject="flights.rebooked"):
    booking: str


class Refunded(Event, subject="flights.refunded"):
    booking: str


class Booking(State):
    seat: str = ""
    receipt: str = ""


class Rebooking(Saga, key="booking", state=Booking, retry=SOON):
    """Does as `plan` says, by step and direction, and keeps in `did` what it has done, by its key."""

    did: ClassVar[list[str]]
    plan: ClassVar[dict[str, list[str]]]

    def act(self, ctx: SagaContext[Booking], what: str) -> None:
        planned = self.plan.get(what, [])
        outcome = planned.pop(0) if planned else "works"
        self.did.append(f"{what} {outcome}")
        if outcome == "fails":
            ctx.state.seat = "dropped"
            ctx.publish(Rebooked(booking="never"))
            raise RuntimeError("no seat")
        if outcome == "waits":
            raise Retry(delay_seconds=600)
        if outcome == "rejects":
            raise Reject("not today")
        assert ctx.idempotency_key == f"air.rebooking.{ctx.saga_id}.{what.replace(' ', '.')}"

    @classmethod
    def waits_for_reply(cls, seconds: float) -> None:
        """Have a reply waited for so long."""
        cls.__saga__.steps["charge"].reply_timeout_seconds = seconds

    @starts
    async def delayed(self, event: Delayed) -> Booking | None:
        return Booking() if event.minutes > 120 else None

    async def reserve(self, ctx: SagaContext[Booking]) -> None:
        self.act(ctx, "reserve do")
        ctx.state.seat = "12A"

    async def release(self, ctx: SagaContext[Booking]) -> None:
        self.act(ctx, "reserve undo")

    async def charge(self, ctx: SagaContext[Booking]) -> Charge:
        assert ctx.state.seat == "12A"
        self.act(ctx, "charge do")
        return Charge(booking=ctx.saga_id)

    @handles
    async def charged(self, event: Charged, ctx: SagaContext[Booking]) -> None:
        ctx.state.receipt = event.receipt

    @handles
    async def declined(self, event: Declined) -> None:
        raise Reject("no funds")

    async def refund(self, ctx: SagaContext[Booking]) -> Refunded:
        self.act(ctx, "charge undo")
        return Refunded(booking=ctx.saga_id)

    async def notify(self, ctx: SagaContext[Booking]) -> None:
        self.act(ctx, "notify do")
        ctx.publish(Rebooked(booking=ctx.saga_id))

    steps = (
        Step(reserve, compensation=release),
        Step(charge, compensation=refund, replies=[charged, declined], reply_timeout_seconds=1.0),
        Step(notify, compensation=NO_COMPENSATION, max_attempts=2),
    )


class Payments(Actor):
    """Answers commands as `answers` says, by booking."""

    answers: ClassVar[dict[str, str]]
    keys: ClassVar[list[str]]

    @handles
    async def charge(self, event: Charge, ctx: Context) -> Event | None:
        self.keys.append(ctx.delivery.idempotency_key)
        answer = self.answers.get(event.booking, "charged")
        if answer == "declined":
            return Declined(booking=event.booking)
        return Charged(booking=event.booking, receipt="R1") if answer == "charged" else None


def air(**options: Any) -> App:
    """The saga and who answers it."""
    return App(
        "air",
        streams=[Stream("FLIGHTS", subjects=["flights.>"], timers=True)],
        children=[Child(Rebooking, **options)],
    )


def payments() -> App:
    """Who answers the saga's commands."""
    return App("bank", streams=[Stream("FLIGHTS", subjects=["flights.>"], timers=True)], children=[Payments])


class Desk:
    """The saga's cell, the other actor's, and what the store says of a saga."""

    def __init__(self, made: Bench) -> None:
        self.bench = made
        self.saga: CellRun

    async def open(self, **options: Any) -> None:
        """Start both."""
        self.saga = await self.bench.cell(air(**options))
        await self.bench.cell(payments())

    async def publish(self, event: Event) -> None:
        """Publish an event."""
        await self.bench.publisher.publish(event)

    async def signal(self, booking: str, kind: str, **fields: Any) -> None:
        """Do what an operator's command does."""
        body = msgspec.msgpack.encode(Signal(saga=booking, kind=kind, **fields))
        await self.bench.client.jetstream().publish(SIGNALS, body)

    async def record(self, booking: str) -> SagaRecord | None:
        """What is stored of a saga."""
        kv = await self.bench.client.jetstream().key_value("air-state")
        try:
            entry = await kv.get(f"air-rebooking.{booking}")
        except Exception:
            return None
        assert entry.value is not None
        return msgspec.msgpack.decode(stored_value(entry.value), type=SagaRecord)

    async def reaches(self, booking: str, phase: Phase, *, turn: int = 0) -> SagaRecord:
        """Wait until a saga is in a phase, in this turn or a later one; return it as it was then."""
        record: SagaRecord | None = None

        async def is_there() -> bool:
            nonlocal record
            record = await self.record(booking)
            return record is not None and record.position.phase is phase and record.position.turn >= turn

        await until(is_there)
        assert record is not None
        return record

    async def waits(self, booking: str) -> None:
        """Wait until a saga waits for its reply."""

        async def does() -> bool:
            record = await self.record(booking)
            return record is not None and record.position.waiting

        await until(does)

    async def texts(self, subject: str) -> list[Any]:
        """The bodies that the stream has on a subject."""
        js = self.bench.client.jetstream()
        last = (await js.stream_info("FLIGHTS")).state.last_seq
        found = []
        for sequence in range(1, last + 1):
            try:
                message = await js.get_msg("FLIGHTS", seq=sequence)
            except Exception:
                continue
            if message.subject == subject and message.data:
                found.append(msgspec.msgpack.decode(message.data))
        return found
