"""The example's actors, made and called as plain objects."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy.examples.flights import app as flights
from understudy.examples.flights.tally import CarrierTally, counted


def departed(carrier: str = "UA", delay_minutes: float | None = 0.0) -> flights.Departed:
    return flights.Departed(
        carrier=carrier,
        flight=1,
        origin="EWR",
        dest="IAH",
        scheduled="2013-01-01T05:15",
        delay_minutes=delay_minutes,
    )


def context(sequence: int) -> Any:
    @asynccontextmanager
    async def breaker(name: str) -> AsyncIterator[None]:
        yield

    return SimpleNamespace(delivery=SimpleNamespace(stream="FLIGHTS", sequence=sequence), breaker=breaker)


@pytest.fixture
async def statistics(tmp_path: Path) -> AsyncIterator[flights.Statistics]:
    statistics = flights.Statistics(str(tmp_path / "flights.sqlite3"))
    await statistics.on_start(context(0))
    yield statistics
    await statistics.on_stop()


async def test_statistics_count_each_sequence_once(statistics: flights.Statistics) -> None:
    for sequence, delay in ((1, 10.0), (2, None), (1, 10.0), (2, None), (3, -4.0)):
        await statistics.departed(departed(delay_minutes=delay), context(sequence))
    tally = counted(Path(statistics.path), {})
    assert tally.carriers == {"UA": CarrierTally(flights=3, cancelled=1, total_delay_minutes=6.0)}
    assert tally.out_of_order == 0


async def test_statistics_go_on_from_what_another_cell_left(statistics: flights.Statistics) -> None:
    await statistics.departed(departed(), context(1))
    successor = flights.Statistics(statistics.path)
    await successor.on_start(context(0))
    await successor.departed(departed(), context(1))
    await successor.departed(departed(), context(2))
    await successor.on_stop()
    assert counted(Path(statistics.path), {}).carriers["UA"].flights == 2


async def test_statistics_notice_a_departure_that_comes_after_a_later_one(
    statistics: flights.Statistics,
) -> None:
    for carrier, sequence in (("UA", 2), ("AA", 1), ("UA", 5), ("UA", 4), ("UA", 6)):
        await statistics.departed(departed(carrier), context(sequence))
    assert counted(Path(statistics.path), {}).out_of_order == 1


@pytest.mark.parametrize(("delay", "late"), [(None, False), (-5.0, False), (60.0, False), (61.0, True)])
async def test_more_than_an_hour_is_late(delay: float | None, late: bool) -> None:
    event = await flights.DelayMonitor().departed(departed(delay_minutes=delay))
    assert (event is not None) is late


async def test_the_notifier_uses_one_key_per_event(monkeypatch: pytest.MonkeyPatch) -> None:
    posted = []
    monkeypatch.setattr(flights, "post_notice", lambda *arguments: posted.append(arguments))
    event = flights.Delayed(
        carrier="UA", flight=1, origin="EWR", scheduled="2013-01-01T05:15", delay_minutes=61.0
    )
    notifier = flights.Notifier("http://127.0.0.1:1")
    for sequence in (7, 7, 8):
        await notifier.delayed(event, context(sequence))
    assert [key for _, key, _ in posted] == ["FLIGHTS-7", "FLIGHTS-7", "FLIGHTS-8"]


def test_the_tree_has_two_levels() -> None:
    root = flights.app.spec().root
    names = [getattr(child, "name", "") for child in root.children]
    assert names == ["statistics/0", "delay-monitor/0", "ops"]
