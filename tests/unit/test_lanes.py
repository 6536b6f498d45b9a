"""Lanes: order per key, a bound on what runs, and what waits for an open breaker."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable

from hypothesis import given, settings
from hypothesis import strategies as st

from support.cells import until
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.lanes import SETTLED, Again, Held, Lanes, Mode, Outcome

OPEN = Held("mail", 0.01)


def delivery(sequence: int, key: Hashable = None) -> HeldDelivery:
    """Return a delivery of a key, None for none."""
    made = HeldDelivery(
        stream="ORDERS",
        subject="orders.placed",
        reply=b"",
        header_block=b"",
        body=b"",
        sequence=sequence,
        delivery_count=1,
        slot=0,
        extended_at=0.0,
    )
    made.key = None if key is None else (key,)
    return made


class Handling:
    """Lanes whose handler does what the test says, and what happened in them.

    Args:
        outcome: called with each delivery; None waits until the test ends the delivery.
        concurrency: the lanes' bound.
    """

    def __init__(
        self, outcome: Callable[[HeldDelivery], Outcome | None] = lambda _: SETTLED, concurrency: int = 1
    ) -> None:
        self.outcome = outcome
        self.started: list[int] = []
        self.settled: list[int] = []
        self.running: dict[int, asyncio.Future[Outcome]] = {}
        self.modes: list[tuple[Mode, str]] = []
        self.closed = True
        self.most = 0
        self.lanes = Lanes(
            concurrency=concurrency,
            hang_timeout_seconds=60,
            handle=self._handle,
            breakers_closed=lambda: self.closed,
            mode_changed=lambda mode, breaker: self.modes.append((mode, breaker)),
        )
        self.lanes.start()

    async def _handle(self, held: HeldDelivery, deadline: Deadline) -> Outcome:
        self.started.append(held.sequence)
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.running[held.sequence] = ended
        self.most = max(self.most, len(self.running))
        outcome = self.outcome(held)
        if outcome is None:
            outcome = await ended
        else:
            await asyncio.sleep(0)
        del self.running[held.sequence]
        if outcome is SETTLED:
            self.settled.append(held.sequence)
        return outcome

    def add(self, *deliveries: HeldDelivery) -> None:
        """Take deliveries in."""
        for one in deliveries:
            self.lanes.add(one)

    async def turn(self) -> None:
        """Let everything happen that can."""
        for _ in range(20):
            await asyncio.sleep(0)

    def end(self, sequence: int, outcome: Outcome = SETTLED) -> None:
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
    """A free lane takes the next delivery at once."""
    handling = Handling(lambda _: None, concurrency=3)
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
        breakers_closed=lambda: True,
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
    """One at a time after each reset timeout, in turn; one bad delivery doesn't keep a breaker open."""
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
    for _ in range(4):
        await until(lambda: bool(handling.running))
        await handling.turn()
        (trial,) = handling.running
        trials.append(trial)
        handling.end(trial, OPEN)
        await handling.turn()
        assert handling.running == {}
    assert trials == [1, 2, 3, 1]
    assert handling.modes == [(Mode.NONE, "mail"), *[(Mode.TRIAL, ""), (Mode.NONE, "mail")] * 4]
    await handling.lanes.stop()


async def test_all_resume_in_stream_order_when_it_has_closed() -> None:
    """What was held goes before what waits, whatever the order of the trials."""
    handling = Handling(lambda _: None, concurrency=4)
    handling.add(*(delivery(number, number) for number in range(1, 7)))
    await handling.turn()
    handling.closed = False
    for number in (3, 1, 4, 2):
        handling.end(number, OPEN)
    await handling.turn()
    await until(lambda: bool(handling.running))
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
    await until(lambda: (Mode.TRIAL, "") in handling.modes)
    await handling.turn()
    assert list(handling.running) == [2]
    handling.end(2)
    await until(lambda: 1 in handling.running)
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
    await until(lambda: handling.started == [1, 1])
    handling.end(1, Again(60))
    await until(lambda: handling.started == [1, 1, 2])
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
    await until(lambda: handling.started == [1, 1])
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
    await asyncio.wait_for(handling.lanes.quiet(), 1)
    await handling.lanes.stop()


async def test_stop_finishes_what_runs_and_begins_nothing() -> None:
    """A retry in place that was due later doesn't come any more."""
    handling = Handling(lambda held: Again(0.01) if held.sequence == 1 else None, concurrency=2)
    handling.add(delivery(1), delivery(2), delivery(3))
    await handling.turn()
    assert sorted(handling.running) == [2, 3]
    stopping = asyncio.create_task(handling.lanes.stop())
    await handling.turn()
    handling.add(delivery(4))
    assert not stopping.done()
    handling.end(2)
    handling.end(3)
    await stopping
    await asyncio.sleep(0.03)
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
    await asyncio.wait_for(quiet, 1)
    await handling.lanes.stop()


OUTCOMES = st.sampled_from(["settled", "again", "open"])
DELIVERIES = st.lists(
    st.tuples(st.sampled_from([None, "a", "b", "c"]), st.lists(OUTCOMES, max_size=3)), max_size=20
)


@settings(deadline=None, max_examples=60)
@given(DELIVERIES, st.integers(1, 5))
def test_each_delivery_is_handled_to_its_end_once_and_in_its_key_s_order(
    plan: list[tuple[str | None, list[str]]], concurrency: int
) -> None:
    """Whatever the outcomes on the way, for any keys and any concurrency."""

    async def run() -> None:
        left = {number: list(outcomes) for number, (_, outcomes) in enumerate(plan)}
        keys = {number: key for number, (key, _) in enumerate(plan)}

        def outcome(held: HeldDelivery) -> Outcome:
            key = keys[held.sequence]
            assert key is None or sum(keys[one] == key for one in handling.running) == 1
            step = left[held.sequence].pop(0) if left[held.sequence] else "settled"
            if step == "again":
                return Again(0.001)
            handling.closed = step == "settled"
            return SETTLED if step == "settled" else Held("mail", 0.001)

        handling = Handling(outcome, concurrency)
        handling.add(*(delivery(number, key) for number, key in keys.items()))
        await until(lambda: len(handling.settled) >= len(plan), 10)
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
