"""Lanes that are free before what they have handled is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from support.cells import until
from support.deliveries import delivery
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.lanes import Lanes
from understudy.runtime.cell.outcomes import SETTLED, Again, Finishing, Settled


class Run:
    """One lane whose deliveries need something more when they are handled, until the test ends that."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.unfinished: dict[int, asyncio.Future[Settled | Again]] = {}
        self.idle = 0
        self.lanes = Lanes(
            concurrency=1,
            hang_timeout_seconds=60,
            handle=self._handle,
            wait_seconds=lambda _: None,
            mode_changed=lambda *_: None,
            idle=self._count_idle,
        )
        self.lanes.start()

    async def _handle(self, held: HeldDelivery, _deadline: Deadline) -> Finishing:
        self.started.append(held.sequence)
        settled: asyncio.Future[Settled | Again] = asyncio.get_running_loop().create_future()
        self.unfinished[held.sequence] = settled
        return Finishing(settled)

    def _count_idle(self) -> None:
        self.idle += 1

    def finish(self, sequence: int, outcome: Settled | Again = SETTLED) -> None:
        """End what is left to do of a delivery."""
        self.unfinished.pop(sequence).set_result(outcome)

    async def turn(self) -> None:
        """Let everything happen that can."""
        for _ in range(10):
            await asyncio.sleep(0)

    def add(self, sequence: int, key: Hashable = None) -> HeldDelivery:
        """Have a delivery handled."""
        held = delivery(sequence, key)
        self.lanes.add(held)
        return held


async def test_a_lane_goes_on_while_something_is_left_to_do_of_a_delivery() -> None:
    run = Run()
    for sequence in (1, 2, 3):
        run.add(sequence)
    await until(lambda: run.started == [1, 2, 3])
    for sequence in (3, 1, 2):
        assert not run.lanes.is_at_rest()
        run.finish(sequence)
    await run.lanes.quiet()
    assert run.lanes.is_at_rest()
    await run.lanes.stop()


async def test_a_key_is_shut_until_nothing_is_left_to_do_of_its_delivery() -> None:
    run = Run()
    for sequence, key in ((1, "a"), (2, "a"), (3, "b")):
        run.add(sequence, key)
    await until(lambda: run.started == [1, 3])
    run.finish(3)
    await run.turn()
    assert run.started == [1, 3]
    run.finish(1)
    await until(lambda: run.started == [1, 3, 2])
    run.finish(2)
    await run.lanes.stop()
    assert run.started == [1, 3, 2]


async def test_it_counts_as_running_until_then() -> None:
    """For whoever waits until all is quiet or stopped, or has the rest forgotten; then the lanes are idle."""
    run = Run()
    held = run.add(1)
    await until(lambda: run.started == [1])
    assert not run.lanes.is_at_rest()
    assert run.lanes.clear() == {held}
    quiet = asyncio.create_task(run.lanes.quiet())
    stopped = asyncio.create_task(run.lanes.stop())
    await run.turn()
    assert not quiet.done()
    assert not stopped.done()
    assert run.idle == 0
    run.finish(1)
    await quiet
    await stopped
    assert run.lanes.is_at_rest()


async def test_the_lanes_are_idle_when_the_last_one_is_settled() -> None:
    run = Run()
    run.add(1)
    await until(lambda: run.started == [1])
    await run.turn()
    assert run.idle == 0
    run.finish(1)
    await until(lambda: run.idle > 0)
    assert run.lanes.is_at_rest()
    await run.lanes.stop()


async def test_what_stays_is_handled_again_in_place() -> None:
    run = Run()
    run.add(1, "a")
    run.add(2, "a")
    await until(lambda: run.started == [1])
    run.finish(1, Again(0.01))
    await until(lambda: run.started == [1, 1])
    run.finish(1)
    await until(lambda: run.started == [1, 1, 2])
    run.finish(2)
    await run.lanes.stop()
    assert run.started == [1, 1, 2]
