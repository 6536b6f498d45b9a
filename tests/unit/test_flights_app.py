"""The example's actors, made and called as plain objects."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from understudy.examples.flights import app as flights
from understudy.examples.flights.events import Delayed, Departed
from understudy.runtime.specs import SupervisorSpec


def departed(carrier: str = "UA", delay_minutes: float | None = 0.0) -> Departed:
    return Departed(
        carrier=carrier,
        flight=1,
        origin="EWR",
        dest="IAH",
        scheduled="2013-01-01T05:15",
        delay_minutes=delay_minutes,
    )


def context(**parts: Any) -> Any:
    @asynccontextmanager
    async def breaker(name: str) -> AsyncIterator[None]:
        yield

    delivery = SimpleNamespace(sequence=parts.get("sequence"), idempotency_key=parts.get("key"))
    return SimpleNamespace(delivery=delivery, state=parts.get("state"), breaker=breaker)


async def test_statistics_count_into_the_state_that_they_are_given() -> None:
    state = flights.CarrierStatistics(flights=10, cancelled=1, delay_minutes=5.0, last_sequence=20)
    for sequence, delay in ((21, 10.0), (22, None), (25, -4.0)):
        await flights.Statistics().departed(
            departed(delay_minutes=delay), context(state=state, sequence=sequence)
        )
    assert state == flights.CarrierStatistics(
        flights=13, cancelled=2, delay_minutes=11.0, last_sequence=25, out_of_order=0
    )


async def test_statistics_notice_a_departure_that_comes_after_a_later_one() -> None:
    state = flights.CarrierStatistics()
    for sequence in (2, 5, 4, 4, 6):
        await flights.Statistics().departed(departed(), context(state=state, sequence=sequence))
    assert (state.out_of_order, state.last_sequence) == (2, 6)


def test_statistics_have_a_state_of_each_carrier() -> None:
    options = flights.Statistics.__understudy__.options
    assert (options.key, options.state) == ("carrier", flights.CarrierStatistics)


@pytest.mark.parametrize(("delay", "late"), [(None, False), (-5.0, False), (60.0, False), (61.0, True)])
async def test_more_than_an_hour_is_late(delay: float | None, late: bool) -> None:
    event = await flights.DelayMonitor().departed(departed(delay_minutes=delay))
    assert (event is not None) is late


async def test_the_notifier_hands_on_the_deliverys_key(monkeypatch: pytest.MonkeyPatch) -> None:
    posted = []
    monkeypatch.setattr(flights, "post_notice", lambda *arguments: posted.append(arguments))
    event = Delayed(carrier="UA", flight=1, origin="EWR", scheduled="2013-01-01T05:15", delay_minutes=61.0)
    notifier = flights.Notifier("http://127.0.0.1:1")
    for key in ("seven", "seven", "eight"):
        await notifier.delayed(event, context(key=key))
    assert posted == [("http://127.0.0.1:1", key, event) for key in ("seven", "seven", "eight")]


def test_the_tree_has_two_levels() -> None:
    root = flights.app.spec().root
    names = [getattr(child, "name", "") for child in root.children]
    assert names == ["statistics/0", "delay-monitor/0", "ops"]
    ops = root.children[-1]
    assert isinstance(ops, SupervisorSpec)
    below = [getattr(child, "name", "") for child in ops.children]
    assert below == ["notifier/0", "notifier/1", "rebooking/0", "cashier/0"]
