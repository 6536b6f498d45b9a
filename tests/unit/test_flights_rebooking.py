"""The saga of the example and its cashier, made and called as plain objects against the service itself."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from support.flights_service import serving
from understudy import Reject
from understudy.examples.flights.bookings import Entry
from understudy.examples.flights.events import Charge, Charged, Declined, Delayed
from understudy.examples.flights.rebooking import BOOKINGS, FARE_DIFFERENCE, Cashier, Rebooking, Trip
from understudy.examples.flights.service import Service
from understudy.examples.flights.trouble import Trouble


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(Service(port=0)) as service:
        yield service


def context(step: str, trip: Trip | None = None) -> Any:
    @asynccontextmanager
    async def breaker(name: str) -> AsyncIterator[None]:
        assert name == BOOKINGS.name
        yield

    key = f"flights.rebooking.UA1.{step}"
    return SimpleNamespace(
        saga_id="UA1",
        state=trip,
        idempotency_key=key,
        delivery=SimpleNamespace(idempotency_key=key),
        breaker=breaker,
    )


@pytest.mark.parametrize(("minutes", "begins"), [(61.0, False), (180.0, False), (181.0, True)])
async def test_more_than_three_hours_begin_a_saga(minutes: float, begins: bool) -> None:
    event = Delayed(carrier="UA", flight=1, origin="EWR", scheduled="2013-01-01T05:15", delay_minutes=minutes)
    assert event.booking == "UA1-EWR-2013-01-01T05:15"
    assert (await Rebooking("http://127.0.0.1:1").delayed(event) is not None) is begins


async def test_its_steps_are_there_once_however_often_they_run(service: Service) -> None:
    saga, cashier, trip = Rebooking(service.url), Cashier(service.url), Trip()
    for _ in range(2):
        await saga.reserve(context("reserve.do", trip))
        reply = await cashier.charge(await saga.charge(context("charge.do", trip)), context("charge.do"))
        assert isinstance(reply, Charged)
        await saga.charged(reply, context("charge.do", trip))
        await saga.notify(context("notify.do", trip))
    assert service.bookings.entries() == [
        Entry(1, "seats", "UA1", 1),
        Entry(2, "charges", "UA1", FARE_DIFFERENCE),
        Entry(3, "messages", "UA1", 1),
    ]
    assert trip == Trip(seat=1, receipt=2)


async def test_its_compensations_undo_them_once(service: Service) -> None:
    saga = Rebooking(service.url)
    await saga.reserve(context("reserve.do", Trip()))
    await Cashier(service.url).charge(Charge(booking="UA1", amount=80), context("charge.do"))
    for _ in range(2):
        await saga.refund(context("charge.undo"))
        await saga.release(context("reserve.undo"))
    assert [(entry.account, entry.amount) for entry in service.bookings.entries()] == [
        ("seats", 1), ("charges", 80), ("charges", -80), ("seats", -1)
    ]  # fmt: skip


async def test_what_the_service_refuses_is_rejected_or_declined(service: Service) -> None:
    service.bookings.trouble = Trouble(refuse=1)
    saga = Rebooking(service.url)
    for step, answer in ((saga.reserve, "no seat is left"), (saga.notify, "no such address")):
        with pytest.raises(Reject, match=answer):
            await step(context("any.do", Trip()))
    reply = await Cashier(service.url).charge(Charge(booking="UA1", amount=80), context("charge.do"))
    assert reply == Declined(booking="UA1", reason="the card was declined")
    with pytest.raises(Reject, match="the card was declined"):
        await saga.declined(reply)
    # A compensation is not for the service to refuse.
    await saga.release(context("reserve.undo"))
