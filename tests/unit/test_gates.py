"""Lanes whose handlers declare the breakers that they need: what waits at a gate, and what goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable

import pytest

from support import deliveries
from support.cells import until
from support.deliveries import handler_of
from understudy.actors.handlers import HandlerSpec
from understudy.actors.policies import Batch
from understudy.runtime.cell.batches import HeldBatch
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.lanes import Lanes
from understudy.runtime.cell.outcomes import SETTLED, Again, BatchOutcome, Held, Outcome
from understudy.runtime.cell.trials import Mode


def needs(*breakers: str, batch: Batch | None = None) -> HandlerSpec:
    """Return a handler that declares these breakers."""
    return handler_of(f"needs_{'_'.join(breakers) or 'nothing'}", batch=batch, breakers=breakers)


MAIL = needs("mail")
NOTHING = needs()


def delivery(sequence: int, handler: HandlerSpec, key: Hashable = None) -> HeldDelivery:
    """Return a delivery of a handler, and of a key, None for none."""
    return deliveries.delivery(sequence, key, handler)


class Going:
    """Lanes whose breakers do what the test says, and what went on in them."""

    def __init__(self) -> None:
        self.waits: dict[str, float | None] = {}
        self.outcome: Callable[[HeldDelivery], Outcome] = lambda _: SETTLED
        self.held: asyncio.Event | None = None
        self.began: list[int] = []
        self.settled: list[int] = []
        self.batches: list[list[int]] = []
        self.modes: list[Mode] = []
        self.gated: list[int] = []
        self.lanes = Lanes(
            concurrency=4,
            hang_timeout_seconds=60,
            handle=self._handle,
            wait_seconds=lambda name: self.waits.get(name),
            mode_changed=lambda mode, _: self.modes.append(mode),
            gated_changed=self.gated.append,
            batches=self,
            declared=frozenset({"mail", "bank"}),
        )
        self.lanes.start()

    async def _handle(self, held: HeldDelivery, _deadline: Deadline) -> Outcome:
        self.began.append(held.sequence)
        await asyncio.sleep(0)
        if self.held is not None:
            await self.held.wait()
        outcome = self.outcome(held)
        if outcome is SETTLED:
            self.settled.append(held.sequence)
        return outcome

    async def handle(self, batch: HeldBatch, _deadline: Deadline) -> BatchOutcome:
        """Handle a batch, as the pipeline of batches would."""
        self.batches.append([member.sequence for member in batch.members])
        outcome = self.outcome(batch.members[0])
        return SETTLED if outcome is SETTLED else outcome if isinstance(outcome, Held) else [outcome]

    def is_alone(self, delivery: HeldDelivery) -> bool:
        """Let all be with others."""
        return False

    def breaker(self, name: str, wait_seconds: float | None) -> None:
        """Have a breaker open, close, or let a trial through."""
        self.waits[name] = wait_seconds
        self.lanes.breaker_changed(name)

    async def all_settled(self, count: int) -> None:
        """Wait until so many are."""
        await until(lambda: len(self.settled) == count)


@pytest.fixture
async def going() -> AsyncIterator[Going]:
    """Run lanes for a test."""
    made = Going()
    yield made
    await made.lanes.stop()


async def test_only_what_declares_an_open_breaker_waits(going: Going) -> None:
    """The others go on; when it closes what waited is handled in stream order."""
    going.breaker("mail", 60)
    for sequence in range(1, 11):
        going.lanes.add(delivery(sequence, NOTHING if sequence % 2 else MAIL))
    await going.all_settled(5)
    await going.lanes.quiet()
    assert sorted(going.began) == [1, 3, 5, 7, 9]
    assert going.gated[-1] == 5
    assert going.modes == []
    going.breaker("mail", None)
    await going.all_settled(10)
    assert going.began[5:] == [2, 4, 6, 8, 10]
    assert going.gated[-1] == 0


async def test_a_breaker_that_no_handler_declares_shuts_no_gate(going: Going) -> None:
    """The app may have breakers that this actor has nothing to do with."""
    going.breaker("other", 60)
    going.lanes.add(delivery(1, needs("other")))
    going.lanes.add(delivery(2, NOTHING))
    await going.all_settled(2)
    assert going.gated == []


async def test_one_trial_at_a_time_and_a_different_one_each_time(going: Going) -> None:
    """What has failed as a trial goes to the end; beside it the others go on."""
    going.breaker("mail", 60)
    for sequence in range(1, 5):
        going.lanes.add(delivery(sequence, MAIL))
    going.held = asyncio.Event()
    going.breaker("mail", 0)
    going.lanes.add(delivery(5, NOTHING))
    await until(lambda: len(going.began) == 2)
    assert sorted(going.began) == [1, 5]
    going.outcome = lambda held: Held("mail", 60.0) if held.handler is MAIL else SETTLED
    going.waits["mail"] = 60
    going.held.set()
    await going.all_settled(1)
    await going.lanes.quiet()

    def meet(_: HeldDelivery) -> Outcome:
        going.breaker("mail", 60)
        return Held("mail", 60.0)

    # It meets the breaker, which has opened for all by then.
    going.outcome = meet
    going.breaker("mail", 0)
    await until(lambda: len(going.began) == 3)
    await going.lanes.quiet()
    assert going.began[2] == 2
    assert going.gated[-1] == 4
    going.outcome = lambda _: SETTLED
    going.breaker("mail", 0)
    await going.all_settled(5)
    assert going.began[3:] == [3, 4, 1, 2]


async def test_what_has_failed_as_a_trial_lets_a_new_one_go_first(going: Going) -> None:
    """It may be what the service can't take, and would keep the breaker open for as long again."""
    going.breaker("mail", 60)

    def open_again(held: HeldDelivery) -> Outcome:
        if held.sequence > 1:
            return SETTLED
        going.waits["mail"] = 60
        return Held("mail", 60.0)

    going.outcome = open_again
    going.lanes.add(delivery(1, MAIL))
    going.breaker("mail", 0)
    await until(lambda: going.began == [1])
    await going.lanes.quiet()
    going.lanes.add(delivery(2, MAIL))
    await until(lambda: going.gated[-1] == 2)
    going.breaker("mail", 0)
    await going.all_settled(1)
    assert going.began[:2] == [1, 2]


async def test_a_trial_that_settles_lets_the_next_one_through_until_it_closes(going: Going) -> None:
    """As a breaker wants that closes after several."""
    going.breaker("mail", 60)
    for sequence in range(1, 7):
        going.lanes.add(delivery(sequence, MAIL))
    most = 0

    def count(_: HeldDelivery) -> Outcome:
        nonlocal most
        if going.waits["mail"] is not None:
            most = max(most, len(going.began) - len(going.settled))
        if len(going.settled) == 2:
            going.waits["mail"] = None
        return SETTLED

    going.outcome = count
    going.breaker("mail", 0)
    await until(lambda: len(going.settled) >= 3)
    assert (going.began[:3], most) == ([1, 2, 3], 1)
    await going.all_settled(6)


async def test_its_key_waits_with_it(going: Going) -> None:
    """Nothing of the key passes, though it may need no breaker; it is counted."""
    going.breaker("mail", 60)
    going.lanes.add(delivery(1, MAIL, "a"))
    going.lanes.add(delivery(2, NOTHING, "a"))
    going.lanes.add(delivery(3, NOTHING, "b"))
    await going.all_settled(1)
    going.lanes.add(delivery(4, NOTHING, "a"))
    assert going.gated[-1] == 3
    going.breaker("mail", None)
    await going.all_settled(4)
    assert going.began == [3, 1, 2, 4]
    assert going.gated[-1] == 0


async def test_what_needs_two_waits_for_both(going: Going) -> None:
    """Also when the second opens while it waits for the first."""
    both = needs("mail", "bank")
    going.breaker("bank", 60)
    going.lanes.add(delivery(1, both))
    going.lanes.add(delivery(2, needs("bank")))
    going.lanes.add(delivery(3, MAIL))
    await going.all_settled(1)
    going.breaker("mail", 60)
    going.breaker("bank", 0)
    await going.all_settled(2)
    assert going.began == [3, 2]
    going.breaker("mail", None)
    await going.all_settled(3)
    going.breaker("bank", None)
    assert going.gated[-1] == 0


async def test_a_trial_that_meets_the_other_breaker_leaves_its_place(going: Going) -> None:
    """The next one of the first breaker tries."""
    going.breaker("mail", 60)
    going.lanes.add(delivery(1, needs("mail", "bank")))
    going.lanes.add(delivery(2, MAIL))
    await until(lambda: going.gated[-1:] == [2])

    def meet(held: HeldDelivery) -> Outcome:
        if held.sequence == 1:
            going.waits["bank"] = 60
            return Held("bank", 60)
        return SETTLED

    going.outcome = meet
    going.breaker("mail", 0)
    await going.all_settled(1)
    assert (going.began, going.gated[-1]) == ([1, 2], 1)


async def test_what_goes_back_to_the_first_of_its_gates_tries_there_at_once(going: Going) -> None:
    """Its time has come already, so that nothing else would wake the lanes, and all would stand for ever."""
    going.breaker("mail", 60)
    going.lanes.add(delivery(1, needs("mail", "bank")))

    def meet(_: HeldDelivery) -> Outcome:
        going.outcome = lambda _: SETTLED
        going.waits["bank"] = 60
        return Held("bank", 60)

    going.outcome = meet
    going.breaker("mail", 0)
    await until(lambda: going.began == [1])
    await going.lanes.quiet()
    going.breaker("bank", 0)
    await going.all_settled(1)
    assert (going.began, going.gated[-1]) == ([1, 1], 0)


async def test_what_meets_a_breaker_that_it_doesn_t_declare_has_all_wait(going: Going) -> None:
    """Nothing says whom it stands for; when the breaker closes elsewhere all go on at once."""
    going.waits["bank"] = 60
    going.outcome = lambda held: Held("bank", 60) if held.sequence == 1 else SETTLED
    going.lanes.add(delivery(1, MAIL))
    await until(lambda: going.modes == [Mode.NONE])
    going.lanes.add(delivery(2, NOTHING))
    going.outcome = lambda _: SETTLED
    going.breaker("bank", None)
    await going.all_settled(2)
    assert going.began == [1, 1, 2]
    assert going.modes == [Mode.NONE, Mode.ALL]


async def test_what_met_a_breaker_that_has_closed_since_is_not_forgotten(going: Going) -> None:
    """Nobody tells of its closing a second time."""
    met = iter([True, True])
    going.outcome = lambda held: Held(held.handler.breakers[0], 60) if next(met, False) else SETTLED  # type: ignore[union-attr]
    going.lanes.add(delivery(1, MAIL))
    await going.all_settled(1)
    met = iter([True])
    going.outcome = lambda _: Held("bank", 60) if next(met, False) else SETTLED
    going.lanes.add(delivery(2, NOTHING))
    await going.all_settled(2)
    assert going.began == [1, 1, 1, 2, 2]


async def test_a_trial_that_is_tried_again_in_place_leaves_the_gate(going: Going) -> None:
    """It waits as a failed one then, and the gate's next one tries."""
    going.breaker("mail", 60)
    going.lanes.add(delivery(1, MAIL, "a"))
    going.lanes.add(delivery(2, MAIL, "b"))
    await until(lambda: going.gated[-1:] == [2])
    going.outcome = lambda held: Again(float("inf")) if held.sequence == 1 else SETTLED
    going.breaker("mail", 0)
    await going.all_settled(1)
    assert (going.began, going.gated[-1]) == ([1, 2], 0)


async def test_a_batch_waits_as_one(going: Going) -> None:
    """It counts by its members, and takes no more in while it waits."""
    handler = needs("mail", batch=Batch(size=3, timeout_seconds=60))
    going.breaker("mail", 60)
    for sequence in range(1, 6):
        going.lanes.add(delivery(sequence, handler))
    going.lanes.add(delivery(6, NOTHING))
    await going.all_settled(1)
    assert (going.batches, going.gated[-1]) == ([], 3)
    going.lanes.hurry()
    await until(lambda: going.gated[-1] == 5)
    going.breaker("mail", 0)
    await until(lambda: len(going.batches) == 2)
    assert (going.batches, going.gated[-1]) == ([[1, 2, 3], [4, 5]], 0)


async def test_forgetting_what_is_held_leaves_the_gate_shut(going: Going) -> None:
    """What comes anew waits as well, and goes on when its time has come."""
    going.breaker("mail", 0.05)
    going.lanes.add(delivery(1, MAIL, "a"))
    await until(lambda: going.gated[-1:] == [1])
    going.lanes.clear()
    assert going.gated[-1] == 0
    going.waits["mail"] = 0
    going.lanes.add(delivery(2, MAIL, "a"))
    await going.all_settled(1)
    assert going.began == [2]
