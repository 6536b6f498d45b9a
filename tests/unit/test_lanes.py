"""Lanes: order per key, a bound on what runs, and what waits for an open breaker."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cells import until
from support.deliveries import delivery, handler_of
from understudy.actors.errors import DecodeError
from understudy.actors.handlers import HandlerSpec
from understudy.actors.policies import Batch
from understudy.runtime.cell.batches import HeldBatch
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.lanes import Lanes
from understudy.runtime.cell.outcomes import BACK, SETTLED, Again, Back, BatchOutcome, Held, Outcome, Settled
from understudy.runtime.cell.trials import Mode
from understudy.runtime.cell.turns import ONE_ORDER
from understudy.runtime.stores.attempts import Attempts

# Its time passes when the test says so, and not in the middle of a turn that takes long.
OPEN = Held("mail", 600)


def takes(size: int, timeout_seconds: float = 60.0) -> HandlerSpec:
    """Return a handler of batches."""
    return handler_of(
        f"takes_{size}_within_{timeout_seconds}", batch=Batch(size=size, timeout_seconds=timeout_seconds)
    )


def ordered(sequence: int, handler: HandlerSpec | None = None) -> HeldDelivery:
    """Return a delivery of an actor that keeps one order."""
    made = delivery(sequence, handler=handler)
    made.key = ONE_ORDER
    return made


class Handling:
    """Lanes whose handler does what the test says, and what happened in them.

    Args:
        outcome: called with each delivery; None waits until the test ends the delivery.
        concurrency: the lanes' bound.
        batch_outcome: called with the members of each batch; None waits until the test ends its first one.
    """

    def __init__(
        self,
        outcome: Callable[[HeldDelivery], Outcome | None] = lambda _: SETTLED,
        concurrency: int = 1,
        batch_outcome: Callable[[list[HeldDelivery]], BatchOutcome | None] = lambda _: SETTLED,
    ) -> None:
        self.outcome = outcome
        self.batch_outcome = batch_outcome
        self.started: list[int] = []
        self.batches: list[list[int]] = []
        self.settled: list[int] = []
        self.running: dict[int, asyncio.Future[BatchOutcome | Outcome]] = {}
        self.modes: list[tuple[Mode, str]] = []
        self.blocked: list[int] = []
        self.closed = True
        self.most = 0
        self.lanes = Lanes(
            concurrency=concurrency,
            hang_timeout_seconds=60,
            handle=self._handle,
            wait_seconds=lambda _: None if self.closed else 0.0,
            mode_changed=lambda mode, breaker: self.modes.append((mode, breaker)),
            blocked_changed=self.blocked.append,
            batches=self,
        )
        self.lanes.start()

    async def _handle(self, held: HeldDelivery, deadline: Deadline) -> Outcome:
        self.started.append(held.sequence)
        ended: asyncio.Future[BatchOutcome | Outcome] = asyncio.get_running_loop().create_future()
        self.running[held.sequence] = ended
        self.most = max(self.most, len(set(self.running.values())))
        outcome = self.outcome(held)
        if outcome is None:
            ending = await ended
            assert isinstance(ending, Settled | Again | Held)
            outcome = ending
        else:
            await asyncio.sleep(0)
        del self.running[held.sequence]
        if outcome is SETTLED:
            self.settled.append(held.sequence)
        return outcome

    async def handle(self, batch: HeldBatch, _deadline: Deadline) -> BatchOutcome:
        """Handle a batch, as the pipeline of batches would."""
        numbers = [member.sequence for member in batch.members]
        self.batches.append(numbers)
        ended: asyncio.Future[BatchOutcome | Outcome] = asyncio.get_running_loop().create_future()
        self.running |= dict.fromkeys(numbers, ended)
        self.most = max(self.most, len(set(self.running.values())))
        outcome = self.batch_outcome(batch.members)
        if outcome is None:
            ending = await ended
            assert not isinstance(ending, Again)
            outcome = ending
        else:
            await asyncio.sleep(0)
        for number in numbers:
            del self.running[number]
        each = [outcome] * len(numbers) if isinstance(outcome, Settled | Held) else outcome
        self.settled += [number for number, one in zip(numbers, each, strict=True) if one is SETTLED]
        return outcome

    def is_alone(self, held: HeldDelivery) -> bool:
        """Return whether the test wants it so."""
        return held.attempts is not None and held.attempts.crashes > 0

    def add(self, *deliveries: HeldDelivery) -> None:
        """Take deliveries in."""
        for one in deliveries:
            self.lanes.add(one)

    async def turn(self) -> None:
        """Let everything happen that can."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def time_passes(self) -> None:
        """Have the time come for all that waits for one."""
        await self.turn()
        assert self.lanes._timers
        for timer in tuple(self.lanes._timers):
            timer._run()
            timer.cancel()
        await self.turn()

    def end(self, sequence: int, outcome: BatchOutcome | Outcome = SETTLED) -> None:
        """End a handler that waits."""
        self.running[sequence].set_result(outcome)


async def test_one_key_goes_one_at_a_time_in_stream_order() -> None:
    """Other keys, and deliveries without one, pass by."""
    handling = Handling(lambda _: None, concurrency=4)
    handling.add(delivery(1, "a"), delivery(2, "a"), delivery(3, "b"), delivery(4), delivery(5, "a"))
    await handling.turn()
    assert handling.started == [1, 3, 4]
    handling.end(3)
    handling.end(4)
    await handling.turn()
    assert handling.started == [1, 3, 4]
    handling.end(1)
    await handling.turn()
    assert handling.started == [1, 3, 4, 2]
    handling.end(2)
    await handling.turn()
    assert handling.started == [1, 3, 4, 2, 5]
    handling.end(5)
    await handling.lanes.stop()


async def test_no_more_run_at_once_than_the_concurrency_says() -> None:
    """A free lane takes the next delivery at once, and all wake for what comes at once."""
    handling = Handling(lambda _: None, concurrency=3)
    # They sleep when it comes.
    await handling.turn()
    handling.add(*(delivery(number) for number in range(1, 6)))
    await handling.turn()
    assert handling.started == [1, 2, 3]
    handling.end(2)
    await handling.turn()
    assert handling.started == [1, 2, 3, 4]
    for number in (1, 3, 4):
        handling.end(number)
    await handling.turn()
    handling.end(5)
    await handling.lanes.stop()
    assert handling.most == 3


async def test_handlers_that_never_wait_leave_turns_to_others() -> None:
    """The connection's reader isn't starved by a full mailbox."""
    count = 0

    async def handle(_delivery: HeldDelivery, _deadline: Deadline) -> Outcome:
        nonlocal count
        count += 1
        return SETTLED

    lanes = Lanes(
        concurrency=1,
        hang_timeout_seconds=60,
        handle=handle,
        wait_seconds=lambda _: None,
        mode_changed=lambda *_: None,
    )
    for number in range(1000):
        lanes.add(delivery(number))
    lanes.start()
    seen = []
    while count < 1000:
        await asyncio.sleep(0)
        seen.append(count)
    assert max(b - a for a, b in zip([0, *seen], seen, strict=False)) <= 64
    await lanes.stop()


async def test_again_keeps_only_its_key_shut() -> None:
    """What is retried in place is overtaken by other keys, never by its own."""
    tries: Counter[int] = Counter()

    def outcome(held: HeldDelivery) -> Outcome:
        tries[held.sequence] += 1
        return Again(0.02) if held.sequence == 1 and tries[1] < 3 else SETTLED

    handling = Handling(outcome, concurrency=2)
    handling.add(delivery(1, "a"), delivery(2, "a"), delivery(3, "b"), delivery(4))
    await until(lambda: len(handling.settled) == 4)
    assert handling.settled == [3, 4, 1, 2]
    assert tries[1] == 3
    await handling.lanes.stop()


async def test_what_is_parked_keeps_its_key_shut_for_good() -> None:
    """An infinite delay sets no timer."""
    handling = Handling(lambda held: Again(math.inf) if held.sequence == 1 else SETTLED)
    handling.add(delivery(1, "a"), delivery(2, "a"), delivery(3, "b"))
    await handling.turn()
    assert handling.settled == [3]
    assert handling.started == [1, 3]
    await handling.lanes.stop()


async def test_an_open_breaker_rests_the_lanes_and_each_trial_is_another_delivery() -> None:
    """One at a time after each reset timeout, in turn, also those that hadn't begun.

    So one bad delivery doesn't keep a breaker open.
    """
    handling = Handling(lambda _: None, concurrency=3)
    handling.add(*(delivery(number, number) for number in range(1, 6)))
    await handling.turn()
    handling.closed = False
    for number in (1, 2, 3):
        handling.end(number, OPEN)
    await handling.turn()
    # Resting: the two others don't begin.
    assert handling.started == [1, 2, 3]
    assert handling.modes == [(Mode.NONE, "mail")]
    trials = []
    for _ in range(7):
        await handling.time_passes()
        (trial,) = handling.running
        trials.append(trial)
        handling.end(trial, OPEN)
        await handling.turn()
        assert handling.running == {}
    assert trials == [1, 2, 3, 4, 5, 1, 2]
    assert handling.modes == [(Mode.NONE, "mail"), *[(Mode.TRIAL, ""), (Mode.NONE, "mail")] * 7]
    handling.closed = True
    handling.outcome = lambda _: SETTLED
    await handling.time_passes()
    assert handling.settled == [3, 1, 2, 4, 5]
    await handling.lanes.stop()


async def test_who_has_just_failed_as_a_trial_lets_a_new_one_go_first() -> None:
    """It may be what the service can't take, and would keep the breaker open for as long again."""
    handling = Handling(lambda held: OPEN if held.sequence == 1 else None)
    handling.closed = False
    handling.add(delivery(1))
    await handling.time_passes()
    assert handling.started == [1, 1]
    handling.add(delivery(2))
    await handling.time_passes()
    assert handling.started == [1, 1, 2]
    handling.end(2)
    # It never came to the breaker, so that it decided nothing.
    await handling.turn()
    assert handling.started == [1, 1, 2, 1]
    await handling.lanes.stop()


async def test_all_resume_in_stream_order_when_it_has_closed() -> None:
    """What was held goes before what waits, whatever the order of the trials."""
    handling = Handling(lambda _: None, concurrency=4)
    handling.add(*(delivery(number, number) for number in range(1, 7)))
    await handling.turn()
    handling.closed = False
    for number in (3, 1, 4, 2):
        handling.end(number, OPEN)
    await handling.time_passes()
    assert list(handling.running) == [3]
    handling.closed = True
    handling.outcome = lambda _: SETTLED
    handling.end(3)
    await until(lambda: len(handling.settled) == 6)
    assert handling.started == [1, 2, 3, 4, 3, 1, 2, 4, 5, 6]
    assert handling.modes == [(Mode.NONE, "mail"), (Mode.TRIAL, ""), (Mode.ALL, "")]
    await handling.lanes.stop()


async def test_a_trial_waits_for_what_still_runs() -> None:
    """What began before the breaker opened ends first, so that there is one call at a time."""
    handling = Handling(lambda _: None, concurrency=2)
    handling.add(delivery(1), delivery(2))
    await handling.turn()
    handling.closed = False
    handling.end(1, OPEN)
    await handling.time_passes()
    assert (Mode.TRIAL, "") in handling.modes
    assert list(handling.running) == [2]
    handling.end(2)
    await handling.turn()
    handling.closed = True
    handling.end(1)
    await handling.lanes.stop()
    assert handling.settled == [2, 1]


async def test_a_trial_that_fails_in_its_own_way_is_followed_by_another() -> None:
    """A delivery that never came to the breaker decides nothing."""
    handling = Handling(lambda _: None)
    handling.add(delivery(1), delivery(2))
    await handling.turn()
    handling.closed = False
    handling.end(1, OPEN)
    await handling.time_passes()
    assert handling.started == [1, 1]
    handling.end(1, Again(60))
    await handling.turn()
    assert handling.started == [1, 1, 2]
    handling.closed = True
    handling.end(2)
    await handling.turn()
    assert handling.modes[-1] == (Mode.ALL, "")
    await handling.lanes.stop()


async def test_a_delivery_that_comes_during_trials_is_handled() -> None:
    """An idle half-open cell takes what arrives as its trial."""
    handling = Handling(lambda _: None)
    handling.add(delivery(1))
    await handling.turn()
    handling.closed = False
    handling.end(1, OPEN)
    await handling.time_passes()
    assert handling.started == [1, 1]
    handling.end(1)
    await handling.turn()
    handling.add(delivery(2))
    await handling.turn()
    assert handling.started == [1, 1, 2]
    handling.end(2)
    await handling.lanes.stop()


async def test_clear_forgets_all_but_what_runs() -> None:
    """Keys of what runs stay shut, and all others are open for what comes next."""
    handling = Handling(lambda held: Again(60) if held.sequence == 3 else None, concurrency=2)
    handling.add(delivery(1, "a"), delivery(2, "a"), delivery(3, "b"), delivery(4, "b"), delivery(5, "c"))
    await handling.turn()
    assert list(handling.running) == [1, 5]
    assert {held.sequence for held in handling.lanes.clear()} == {1, 5}
    handling.outcome = lambda _: SETTLED
    handling.add(delivery(2, "a"), delivery(3, "b"))
    handling.end(5)
    await handling.turn()
    assert handling.settled == [5, 3]
    handling.end(1)
    await handling.turn()
    assert handling.settled == [5, 3, 1, 2]
    await handling.lanes.stop()


async def test_halt_begins_nothing_more() -> None:
    """What is held stays held until the cell is started anew."""
    handling = Handling(lambda _: None)
    handling.add(delivery(1), delivery(2))
    await handling.turn()
    handling.lanes.halt()
    handling.end(1)
    await handling.turn()
    handling.add(delivery(3))
    await handling.turn()
    assert handling.started == [1]
    await asyncio.wait_for(handling.lanes.quiet(), 30)
    await handling.lanes.stop()


async def test_a_pause_begins_nothing_and_then_all_goes_on_in_order() -> None:
    """What runs finishes; a retry in place that comes due waits, and so does what is behind it."""
    handling = Handling(lambda _: None, concurrency=2)
    handling.add(*(delivery(number, key) for number, key in enumerate("aab", start=1)))
    await handling.turn()
    handling.lanes.pause()
    assert not handling.lanes.is_at_rest()
    handling.end(1, Again(0.0))
    handling.end(3)
    handling.add(delivery(4), delivery(5, "a"))
    await until(lambda: not handling.lanes._timers)
    await handling.turn()
    assert handling.started == [1, 3]
    assert handling.lanes.is_at_rest()
    assert not handling.lanes.is_stuck()
    await asyncio.wait_for(handling.lanes.quiet(), 30)
    handling.outcome = lambda _: SETTLED
    handling.lanes.resume()
    await until(lambda: len(handling.settled) == 5)
    assert [number for number in handling.settled if number in (1, 2, 5)] == [1, 2, 5]
    await handling.lanes.stop()


async def test_no_trial_begins_while_paused() -> None:
    """The breaker's time runs on, and the trial comes with the end of the pause."""
    handling = Handling(lambda _: None)
    handling.add(delivery(1), delivery(2))
    await handling.turn()
    handling.closed = False
    handling.end(1, OPEN)
    await handling.turn()
    handling.lanes.pause()
    await handling.time_passes()
    assert handling.modes == [(Mode.NONE, "mail"), (Mode.TRIAL, "")]
    assert handling.started == [1]
    handling.lanes.resume()
    await handling.turn()
    assert handling.started == [1, 1]
    handling.closed = True
    handling.end(1)
    await handling.turn()
    handling.end(2)
    await until(lambda: handling.settled == [1, 2])
    await handling.lanes.stop()


async def test_what_waits_for_quiet_and_no_pause_waits_for_both() -> None:
    """Also if the pause comes while it waits, and a further one after that."""
    handling = Handling(lambda _: None)
    handling.add(delivery(1), delivery(2))
    await handling.turn()
    waiting = asyncio.create_task(handling.lanes.quiet_and_unpaused())
    for number in (1, 2):
        handling.lanes.pause()
        handling.end(number)
        await handling.turn()
        assert not waiting.done()
        handling.lanes.resume()
        await handling.turn()
    await asyncio.wait_for(waiting, 30)
    assert handling.settled == [1, 2]
    await handling.lanes.stop()


async def test_a_paused_lane_stops() -> None:
    """With what it holds left to whoever stops it."""
    handling = Handling(lambda _: None)
    handling.lanes.pause()
    handling.add(delivery(1))
    await handling.turn()
    await asyncio.wait_for(handling.lanes.stop(), 30)
    assert handling.started == []


async def test_stop_finishes_what_runs_and_begins_nothing() -> None:
    """A retry in place that was due later doesn't come any more."""
    handling = Handling(lambda held: Again(60) if held.sequence == 1 else None, concurrency=2)
    handling.add(delivery(1), delivery(2), delivery(3))
    await handling.turn()
    assert sorted(handling.running) == [2, 3]
    (retry,) = handling.lanes._timers
    stopping = asyncio.create_task(handling.lanes.stop())
    await handling.turn()
    handling.add(delivery(4))
    assert not stopping.done()
    handling.end(2)
    handling.end(3)
    await stopping
    assert retry.cancelled()
    assert handling.started == [1, 2, 3]
    assert handling.settled == [2, 3]


async def test_quiet_waits_for_what_runs_and_may_begin() -> None:
    """What waits for a time doesn't count."""
    handling = Handling(lambda held: Again(60) if held.sequence == 1 else None)
    handling.add(delivery(1), delivery(2), delivery(3))
    quiet = asyncio.create_task(handling.lanes.quiet())
    await handling.turn()
    handling.end(2)
    await handling.turn()
    assert not quiet.done()
    handling.end(3)
    await asyncio.wait_for(quiet, 30)
    await handling.lanes.stop()


OUTCOMES = st.sampled_from(["settled", "again", "open", "paused"])
DELIVERIES = st.lists(
    st.tuples(st.sampled_from([None, "a", "b", "c"]), st.lists(OUTCOMES, max_size=3)), max_size=20
)


@settings(max_examples=60)
@given(DELIVERIES, st.integers(1, 5))
def test_each_delivery_is_handled_to_its_end_once_and_in_its_key_s_order(
    plan: list[tuple[str | None, list[str]]], concurrency: int
) -> None:
    """Whatever the outcomes on the way, for any keys and any concurrency; nothing begins in a pause."""

    async def run() -> None:
        paused = False

        def pause() -> None:
            nonlocal paused
            paused = True
            handling.lanes.pause()
            asyncio.get_running_loop().call_later(0.001, resume)

        def resume() -> None:
            nonlocal paused
            paused = False
            handling.lanes.resume()

        left = {number: list(outcomes) for number, (_, outcomes) in enumerate(plan)}
        keys = {number: key for number, (key, _) in enumerate(plan)}

        def outcome(held: HeldDelivery) -> Outcome:
            key = keys[held.sequence]
            assert key is None or sum(keys[one] == key for one in handling.running) == 1
            assert not paused
            step = left[held.sequence].pop(0) if left[held.sequence] else "settled"
            if step == "paused":
                pause()
                step = "settled"
            if step == "again":
                return Again(0.001)
            handling.closed = step == "settled"
            return SETTLED if step == "settled" else Held("mail", 0.001)

        handling = Handling(outcome, concurrency)
        handling.add(*(delivery(number, key) for number, key in keys.items()))
        await until(lambda: len(handling.settled) >= len(plan))
        await handling.lanes.stop()
        assert sorted(handling.settled) == list(range(len(plan)))
        by_key: dict[str, list[int]] = defaultdict(list)
        for number in handling.settled:
            key = keys[number]
            if key is not None:
                by_key[key].append(number)
        assert all(numbers == sorted(numbers) for numbers in by_key.values())
        assert handling.most <= concurrency

    asyncio.run(run())


async def test_a_full_batch_goes_at_once_in_stream_order() -> None:
    """What came out of order, as a redelivery does, is sorted."""
    handling = Handling()
    many = takes(3)
    handling.add(*(delivery(number, handler=many) for number in (2, 3, 1, 5, 4, 6, 7)))
    await handling.turn()
    assert handling.batches == [[1, 2, 3], [4, 5, 6]]
    await handling.lanes.stop()


async def test_a_batch_that_is_not_full_goes_when_its_first_has_waited() -> None:
    """However few they are."""
    handling = Handling()
    handling.add(*(delivery(number, handler=takes(100, 0.5)) for number in (1, 2)))
    await handling.turn()
    assert handling.batches == []
    await until(lambda: handling.settled == [1, 2])
    assert handling.batches == [[1, 2]]
    await handling.lanes.stop()


async def test_without_a_timeout_what_is_there_goes() -> None:
    """Until a lane takes a batch it grows, to its size at most."""
    handling = Handling(lambda _: None)
    many = takes(3, 0)
    handling.add(delivery(1))
    await handling.turn()
    handling.add(*(delivery(number, handler=many) for number in range(2, 7)))
    await handling.turn()
    handling.end(1)
    await until(lambda: len(handling.settled) == 6)
    assert handling.batches == [[2, 3, 4], [5, 6]]
    await handling.lanes.stop()


async def test_a_batch_that_fills_keeps_no_lane() -> None:
    """With one lane a delivery of another handler goes by."""
    handling = Handling()
    handling.add(delivery(1, handler=takes(3)), delivery(2), delivery(3, handler=takes(2)))
    await handling.turn()
    assert (handling.settled, handling.batches) == ([2], [])
    handling.add(delivery(4, handler=takes(2)), delivery(5))
    await handling.turn()
    assert (sorted(handling.settled), handling.batches) == ([2, 3, 4, 5], [[3, 4]])
    await handling.lanes.stop()


async def test_a_batch_takes_those_of_a_key_that_follow_each_other() -> None:
    """A key waits while it is in a batch, and goes on after it with all that has come meanwhile."""
    handling = Handling(lambda _: None, 4, lambda _: None)
    many = takes(3)
    handling.add(*(delivery(number, "a", many) for number in (1, 2)), delivery(3, "b", many))
    handling.add(*(delivery(number, "a", many) for number in (4, 5, 6, 7)), delivery(8, "c"))
    await handling.turn()
    assert (handling.batches, handling.started) == ([[1, 2, 3]], [8])
    handling.end(1)
    await handling.turn()
    assert handling.batches == [[1, 2, 3], [4, 5, 6]]
    handling.add(*(delivery(number, "b", many) for number in (9, 10)))
    handling.end(4)
    await handling.turn()
    assert handling.batches == [[1, 2, 3], [4, 5, 6], [7, 9, 10]]
    handling.end(7)
    handling.end(8)
    await handling.lanes.stop()


async def test_a_key_s_order_holds_between_a_batch_and_single_ones() -> None:
    """What follows a single one doesn't join the batch before it."""
    handling = Handling(lambda _: None, 4, lambda _: None)
    many = takes(2)
    handling.add(delivery(1, "a", many), delivery(2, "a"), delivery(3, "a", many), delivery(4, "a", many))
    await handling.turn()
    assert (handling.batches, handling.started) == ([], [])
    handling.add(delivery(5, "b", many))
    await handling.turn()
    assert (handling.batches, handling.started) == ([[1, 5]], [])
    handling.end(1)
    await handling.turn()
    assert handling.started == [2]
    assert len(handling.batches) == 1
    handling.end(2)
    await handling.turn()
    assert handling.batches == [[1, 5], [3, 4]]
    handling.end(3)
    await handling.lanes.stop()


async def test_one_order_is_cut_where_the_handler_changes() -> None:
    """Nothing more can join then, so that it doesn't wait."""
    handling = Handling()
    many, few = takes(10), takes(5)
    handling.add(*(ordered(number, many) for number in (1, 2, 3)))
    await handling.turn()
    assert handling.batches == []
    handling.add(ordered(4))
    await handling.turn()
    assert (handling.settled, handling.batches) == ([1, 2, 3, 4], [[1, 2, 3]])
    handling.add(ordered(5, many), ordered(6, few), ordered(7, few), ordered(8))
    await handling.turn()
    assert handling.batches[1:] == [[5], [6, 7]]
    assert handling.settled == list(range(1, 9))
    await handling.lanes.stop()


async def test_what_can_t_be_read_is_handled_by_itself() -> None:
    """It is no member."""
    handling = Handling()
    many = takes(2)
    unreadable = delivery(2, handler=many)
    unreadable.decode_error = DecodeError("no")
    handling.add(delivery(1, handler=many), unreadable, delivery(3, handler=many))
    await handling.turn()
    assert (handling.started, handling.batches) == ([2], [[1, 3]])
    await handling.lanes.stop()


async def test_what_is_to_be_alone_is_alone() -> None:
    """Neither does it join others, nor they it, though they have its key."""
    handling = Handling(concurrency=4)
    many = takes(2)
    deliveries = [delivery(number, "a", many) for number in (1, 2, 3, 4)]
    deliveries[1].attempts = Attempts(crashes=1)
    deliveries[2].attempts = Attempts(failed=1)
    handling.add(*deliveries)
    await handling.turn()
    # The first waits for a second one that may join it.
    assert handling.batches == []
    handling.add(delivery(5, "b", many))
    await handling.turn()
    assert handling.batches == [[1, 5], [2], [3, 4]]
    await handling.lanes.stop()


async def test_a_failed_member_blocks_its_key_and_those_behind_it_come_after_it() -> None:
    """By itself first; then what was held back, before what has come meanwhile."""
    outcomes: list[BatchOutcome] = [[SETTLED, Again(0.5), BACK, SETTLED, BACK]]
    handling = Handling(concurrency=4, batch_outcome=lambda _: outcomes.pop() if outcomes else SETTLED)
    many = takes(5, 0.01)
    keys = "aaaba"
    handling.add(*(delivery(number, key, many) for number, key in enumerate(keys, start=1)))
    await handling.turn()
    assert handling.batches == [[1, 2, 3, 4, 5]]
    assert handling.settled == [1, 4]
    assert handling.blocked == [3]
    handling.add(delivery(6, "a", many), delivery(7, "b", many))
    assert handling.blocked[-1] == 4
    await until(lambda: len(handling.settled) == 7)
    of_a = [[number for number in batch if number not in (4, 7)] for batch in handling.batches[1:]]
    assert [batch for batch in of_a if batch] == [[2], [3, 5, 6]]
    assert handling.blocked[-1] == 0
    await handling.lanes.stop()


async def test_one_order_goes_on_with_the_failed_one_alone() -> None:
    """It doesn't wait for more, since nothing may join it."""
    outcomes: list[BatchOutcome] = [[SETTLED, Again(0.01), BACK]]
    handling = Handling(batch_outcome=lambda _: outcomes.pop() if outcomes else SETTLED)
    many = takes(3)
    handling.add(*(ordered(number, many) for number in range(1, 6)))
    await until(lambda: len(handling.batches) == 3)
    assert handling.batches == [[1, 2, 3], [2], [3, 4, 5]]
    await handling.lanes.stop()


async def test_one_order_s_last_one_is_tried_again_without_waiting_for_more() -> None:
    """Though nothing follows it."""
    outcomes: list[BatchOutcome] = [[Again(0.01)]]
    handling = Handling(batch_outcome=lambda _: outcomes.pop() if outcomes else SETTLED)
    handling.add(ordered(1, takes(3)))
    await handling.lanes.quiet()
    await until(lambda: handling.settled == [1])
    assert handling.batches == [[1], [1]]
    await handling.lanes.stop()


async def test_batches_that_never_wait_leave_turns_to_others() -> None:
    """Their members count as single deliveries do."""
    handled: list[int] = []

    class Quick(Handling):
        async def handle(self, batch: HeldBatch, _deadline: Deadline) -> BatchOutcome:
            handled.extend(member.sequence for member in batch.members)
            return SETTLED

    handling = Quick()
    handling.add(*(delivery(number, handler=takes(10)) for number in range(1000)))
    seen = []
    while len(handled) < 1000:
        await asyncio.sleep(0)
        seen.append(len(handled))
    assert max(b - a for a, b in zip([0, *seen], seen, strict=False)) == 70
    await handling.lanes.stop()


async def test_members_that_failed_without_a_key_come_again_each_for_itself() -> None:
    """The others are done."""
    outcomes: list[BatchOutcome] = [[Again(0.01), SETTLED, Again(60)]]
    handling = Handling(batch_outcome=lambda _: outcomes.pop() if outcomes else SETTLED)
    many = takes(3, 0)
    handling.add(*(delivery(number, handler=many) for number in (1, 2, 3)))
    await until(lambda: len(handling.settled) == 2)
    await handling.time_passes()
    assert handling.batches == [[1, 2, 3], [1], [3]]
    assert handling.blocked == [1, 2, 1, 0]
    await handling.lanes.stop()


async def test_a_batch_that_is_given_back_is_cut_anew() -> None:
    """As when one of them turns out to be a suspect."""

    def outcome(members: list[HeldDelivery]) -> BatchOutcome:
        if len(members) == 4:
            members[1].attempts = Attempts(crashes=1)
            return [BACK] * 4
        return SETTLED

    handling = Handling(concurrency=4, batch_outcome=outcome)
    many = takes(4)
    handling.add(*(delivery(number, key, many) for number, key in enumerate("aaab", start=1)))
    await handling.turn()
    assert handling.batches == [[1, 2, 3, 4]]
    handling.lanes.hurry()
    await handling.turn()
    assert handling.batches == [[1, 2, 3, 4], [1, 4], [2], [3]]
    await handling.lanes.stop()


async def test_an_open_breaker_holds_a_batch_as_a_whole() -> None:
    """It is a trial as it is, its keys shut meanwhile."""
    handling = Handling(lambda _: None, 2, lambda _: None)
    many = takes(2)
    handling.add(delivery(1, "a", many), delivery(2, "b", many), delivery(3, "a"), delivery(4, "c"))
    await handling.turn()
    handling.closed = False
    handling.end(1, OPEN)
    handling.end(4, OPEN)
    await handling.time_passes()
    assert handling.batches == [[1, 2], [1, 2]]
    handling.add(delivery(5, "b", many))
    handling.end(1, OPEN)
    await handling.time_passes()
    assert handling.started == [4, 4]
    handling.closed = True
    handling.end(4)
    await handling.turn()
    assert handling.batches == [[1, 2]] * 3
    assert handling.settled == [4]
    handling.end(1)
    await handling.turn()
    handling.end(3)
    await handling.lanes.stop()
    assert handling.settled == [4, 1, 2, 3]
    assert [mode for mode, _ in handling.modes] == [Mode.NONE, Mode.TRIAL, Mode.NONE, Mode.TRIAL, Mode.ALL]


async def test_members_may_be_held_for_themselves() -> None:
    """They wait together, and the others are done."""
    outcomes: list[BatchOutcome] = [[OPEN, SETTLED, OPEN, BACK]]
    handling = Handling(concurrency=2, batch_outcome=lambda _: outcomes.pop() if outcomes else SETTLED)
    handling.closed = False
    many = takes(4)
    handling.add(*(delivery(number, key, many) for number, key in enumerate("abcc", start=1)))
    await handling.turn()
    assert handling.modes == [(Mode.NONE, "mail")]
    handling.closed = True
    await handling.time_passes()
    assert handling.batches[:2] == [[1, 2, 3, 4], [1, 3]]
    await handling.lanes.quiet()
    assert handling.batches[2:] == [[4]]
    await handling.lanes.stop()


async def test_quiet_waits_for_nothing_more() -> None:
    """A batch that fills is handled as it is; afterwards batches fill again."""
    handling = Handling(concurrency=2)
    many = takes(3)
    handling.add(delivery(1, "a", many), delivery(2, "a", many))
    await handling.lanes.quiet()
    assert handling.batches == [[1, 2]]
    handling.add(delivery(3, "a", many))
    await handling.turn()
    assert handling.batches == [[1, 2]]
    await handling.lanes.stop()
    assert handling.batches == [[1, 2]]


async def test_hurry_waits_for_nothing_more_for_good() -> None:
    """What comes later goes at once too."""
    handling = Handling()
    many = takes(3)
    handling.add(delivery(1, handler=many))
    handling.lanes.hurry()
    await handling.turn()
    handling.add(delivery(2, handler=many), delivery(3, handler=many))
    await handling.turn()
    assert handling.batches == [[1], [2, 3]]
    await handling.lanes.stop()


async def test_halt_begins_no_batch() -> None:
    """A full one stays where it is."""
    handling = Handling()
    handling.lanes.halt()
    handling.add(*(delivery(number, handler=takes(2)) for number in (1, 2)))
    await handling.turn()
    assert handling.batches == []
    await handling.lanes.stop()


async def test_clear_forgets_the_batches_that_have_not_begun() -> None:
    """The members of the one that runs are what is left, and still keep their keys shut."""
    handling = Handling(concurrency=1, batch_outcome=lambda _: None)
    many = takes(2)
    running = [delivery(1, "a", many), delivery(2, "b", many)]
    handling.add(*running, delivery(3, "a", many), delivery(4, "c", many), delivery(5, "d", many))
    await handling.turn()
    handling.add(delivery(6, "e", many))
    assert handling.lanes.clear() == set(running)
    handling.add(delivery(7, "a", many), delivery(8, "f", many))
    await handling.turn()
    assert handling.batches == [[1, 2]]
    handling.end(1)
    await handling.turn()
    assert handling.batches == [[1, 2], [7, 8]]
    handling.end(7)
    await handling.lanes.stop()


STEPS = ["settled", "again", "back", "open", "alone", "all open"]
BATCHED = st.lists(
    st.tuples(
        st.sampled_from([None, "a", "a", "b", "c"]),
        st.sampled_from([None, takes(3, 0.001), takes(3, 0.001), takes(2, 0)]),
        st.lists(st.sampled_from(STEPS), max_size=3),
    ),
    max_size=24,
)


class Planned:
    """Handles deliveries as a plan says, and checks how they come.

    Args:
        deliveries: all of them, by their sequences from 0.
        steps: what is to become of each, run by run; then it is settled.
        concurrency: the lanes' bound.
    """

    def __init__(self, deliveries: list[HeldDelivery], steps: list[list[str]], concurrency: int) -> None:
        self.deliveries = deliveries
        self.left = steps
        self.handling = Handling(self.outcome, concurrency, self.batch_outcome)

    def step(self, held: HeldDelivery) -> str:
        """Return what is to become of a delivery now."""
        left = self.left[held.sequence]
        return left.pop(0) if left else "settled"

    def check(self, members: Sequence[HeldDelivery]) -> None:
        """Fail if one of them is done, or if something of its key runs."""
        mine = [member.sequence for member in members]
        assert mine == sorted(set(mine))
        assert not set(mine) & set(self.handling.settled)
        others = {self.deliveries[number].key for number in self.handling.running if number not in mine}
        assert not ({member.key for member in members} - {None}) & others

    def outcome(self, held: HeldDelivery) -> Outcome:
        """Handle a single delivery."""
        assert held.handler is None
        self.check([held])
        step = self.step(held)
        self.handling.closed = "open" not in step
        if "open" in step:
            return Held("mail", 0.001)
        return Again(0.001) if step in ("again", "back") else SETTLED

    def batch_outcome(self, members: list[HeldDelivery]) -> BatchOutcome:
        """Handle a batch; what has a key and stays keeps the later ones of its key."""
        self.check(members)
        ((policy, _),) = {
            (member.handler.batch, member.handler.method) for member in members if member.handler is not None
        }
        assert policy is not None
        assert len(members) <= policy.size
        assert len(members) == 1 or not any(map(self.handling.is_alone, members))
        steps = [self.step(member) for member in members]
        self.handling.closed = not {"open", "all open"} & set(steps)
        if "all open" in steps:
            return Held("mail", 0.001)
        staying: dict[str, Outcome | Back] = {"again": Again(0.001), "open": Held("mail", 0.001)}
        outcomes: list[Outcome | Back] = []
        shut: set[Hashable] = set()
        for member, step in zip(members, steps, strict=True):
            if step == "alone":
                member.attempts = Attempts(crashes=1)
            if member.key in shut:
                outcomes.append(BACK)
            else:
                outcomes.append(SETTLED if step == "settled" else staying.get(step, BACK))
                if step != "settled" and member.key is not None:
                    shut.add(member.key)
        return outcomes


@pytest.mark.parametrize("keeps_one_order", [False, True])
@settings(max_examples=80)
@given(BATCHED, st.integers(1, 5))
def test_with_batches_too_each_is_handled_to_its_end_once_and_in_its_key_s_order(
    keeps_one_order: bool, plan: list[tuple[str | None, HandlerSpec | None, list[str]]], concurrency: int
) -> None:
    """Whatever becomes of single members, or of whole batches; none is ever in two at once."""

    async def run() -> None:
        planned = Planned(
            [
                ordered(number, handler) if keeps_one_order else delivery(number, key, handler)
                for number, (key, handler, _) in enumerate(plan)
            ],
            [list(steps) for _, _, steps in plan],
            1 if keeps_one_order else concurrency,
        )
        handling = planned.handling
        for one in planned.deliveries:
            handling.add(one)
            if one.sequence % 5 == 4:
                await asyncio.sleep(0)
        workers = handling.lanes.workers
        await until(lambda: len(handling.settled) >= len(plan) or any(one.done() for one in workers))
        await handling.lanes.stop()
        for worker in workers:
            worker.result()
        assert sorted(handling.settled) == list(range(len(plan)))
        by_key: dict[Hashable, list[int]] = defaultdict(list)
        for number in handling.settled:
            by_key[planned.deliveries[number].key].append(number)
        assert all(numbers == sorted(numbers) for key, numbers in by_key.items() if key is not None)
        assert handling.most <= concurrency
        assert not handling.blocked or handling.blocked[-1] == 0

    asyncio.run(run())
