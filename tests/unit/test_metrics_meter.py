"""How a cell counts what it handles: quick runs by the burst, slow ones each."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from understudy.runtime.cell.cellfile import CellFile, Identity
from understudy.runtime.cell.counts import BOUNDS, QUICK, Counted, counts_path, read_counts
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.meter import Meter
from understudy.runtime.cell.status import read_status

NANOSECONDS = 1_000_000_000


class Cell:
    """A generation of the cell billing/0 that counts."""

    def __init__(self, directory: Path, generation: int = 1) -> None:
        self.directory = directory
        self.path = directory / f"billing.0.{generation}.cell"
        identity = Identity(
            app="shop",
            actor="billing",
            cell="billing/0",
            durable="shop-billing",
            stream="ORDERS",
            boot_id="boot",
            run_id="run",
            generation=generation,
        )
        self.meter = Meter(CellFile.create(self.path, identity, 8).status)

    def handle_quickly(self, delivery: HeldDelivery, seconds: float) -> None:
        """Count as the pipeline does."""
        self.meter.words[QUICK] += 1
        self.meter.quick_seconds += seconds
        self.meter.last = delivery

    @property
    def counted(self) -> Counted:
        """What all generations have counted."""
        return read_counts(counts_path(self.directory, "billing/0"))

    @property
    def handled(self) -> int:
        """How many this generation says that it has handled."""
        status = read_status(self.path)
        assert status is not None
        assert status.counters["acked"] == status.counters["handled"]
        return status.counters["handled"]


def delivery(*, seconds_ago: float, taken_over: bool = False) -> HeldDelivery:
    """Return a delivery of an event that was stored so long ago."""
    stored_at = time.time_ns() - round(seconds_ago * NANOSECONDS)
    reply = b"$JS.ACK.ORDERS.shop-billing.1.7.7.%d.0" % (0 if taken_over else stored_at)
    made = HeldDelivery("ORDERS", "orders.placed", reply, b"", b"", 7, 1, 0, 0.0)
    # Of what is taken over the stream says it.
    made.stored_at = stored_at if taken_over else 0
    return made


def lags(cell: Cell) -> dict[float, int]:
    """Return how many were measured, by their bucket's bound."""
    buckets, _ = cell.counted.histograms["lag"]
    return {bound: number for bound, number in zip((*BOUNDS, float("inf")), buckets, strict=True) if number}


def test_quick_runs_are_counted_at_once_and_measured_with_the_last_of_their_burst(tmp_path: Path) -> None:
    """A kill before the report takes away their seconds and their lag, and no count."""
    cell = Cell(tmp_path)
    cell.handle_quickly(delivery(seconds_ago=40), 0.00002)
    cell.handle_quickly(delivery(seconds_ago=90), 0.00003)
    assert cell.counted.outcomes()["handled"] == cell.meter.handled == 2
    assert cell.counted.histograms["handling"] == ((2, *[0] * len(BOUNDS)), 0.0)
    assert (lags(cell), cell.handled) == ({}, 0)
    for _ in range(2):
        # A second one has nothing to add.
        cell.meter.report()
        assert (lags(cell), cell.handled) == ({120.0: 2}, 2)
        assert cell.counted.histograms["handling"][1] == pytest.approx(0.00005)


def test_slow_runs_are_measured_each(tmp_path: Path) -> None:
    """Their lag too, whatever is handled beside them."""
    cell = Cell(tmp_path)
    cell.meter.ran_and_handled(delivery(seconds_ago=0.3), 0.2)
    cell.handle_quickly(delivery(seconds_ago=90), 0.00002)
    cell.meter.ran_and_handled(delivery(seconds_ago=20, taken_over=True), 0.0002)
    cell.meter.report()
    assert lags(cell) == {0.5: 1, 30.0: 1, 120.0: 1}
    buckets, _ = cell.counted.histograms["handling"]
    assert [BOUNDS[index] for index, number in enumerate(buckets) if number] == [0.0001, 0.00025, 0.25]
    assert cell.handled == cell.counted.outcomes()["handled"] == 3


def test_what_is_settled_together_is_measured_together(tmp_path: Path) -> None:
    """Its runs are measured by themselves; a run that failed has handled nothing."""
    cell = Cell(tmp_path)
    cell.meter.ran(0.002)
    cell.meter.ran(0.002)
    cell.meter.handled_together([delivery(seconds_ago=1), delivery(seconds_ago=3)])
    cell.meter.handled_together([])
    cell.meter.report()
    assert lags(cell) == {5.0: 2}
    assert sum(cell.counted.histograms["handling"][0]) == 2
    assert cell.handled == 2


def test_an_event_from_a_clock_that_is_ahead_has_no_lag(tmp_path: Path) -> None:
    """And takes nothing from the sum."""
    cell = Cell(tmp_path)
    cell.meter.ran_and_handled(delivery(seconds_ago=-3600), 0.2)
    assert cell.counted.histograms["lag"] == ((1, *[0] * len(BOUNDS)), 0.0)


def test_a_new_generation_says_what_it_has_handled_itself(tmp_path: Path) -> None:
    """Its first report doesn't measure again what was counted before it."""
    first = Cell(tmp_path)
    first.handle_quickly(delivery(seconds_ago=90), 0.00002)
    second = Cell(tmp_path, generation=2)
    second.handle_quickly(delivery(seconds_ago=3), 0.00002)
    second.meter.report()
    assert second.handled == 1
    assert lags(second) == {5.0: 1}
    assert second.counted.outcomes()["handled"] == second.meter.handled == 2


def test_a_cell_that_cannot_count_cannot_start_and_leaves_no_cell_file(tmp_path: Path) -> None:
    """As where its own file can't be made: the next start finds nothing in its way."""
    counts_path(tmp_path, "billing/0").mkdir()
    with pytest.raises(IsADirectoryError):
        Cell(tmp_path)
    assert list(tmp_path.glob("*.cell")) == []
