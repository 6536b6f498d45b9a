"""Cells that share a breaker: what one hears of another, and what becomes of it when the bucket is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from support.cells import until
from understudy.actors.errors import BrokerError, CircuitOpen
from understudy.actors.policies import CircuitBreaker
from understudy.runtime.breakers import breaker as breaker_module
from understudy.runtime.breakers import sharing
from understudy.runtime.breakers.breaker import Breaker
from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.breakers.guard import Guard
from understudy.runtime.breakers.record import CLOSED, HALF_OPEN, OPEN, Record, decode, encode
from understudy.runtime.breakers.storage import SharedStorage

KEY = "mail"


class Caller:
    """A handler's context, as far as a breaker knows it."""

    def __init__(self) -> None:
        self.failed_trial: CircuitOpen | None = None


class Clock:
    """The breakers' time, moved by the test."""

    now = 1000.0

    def __init__(self) -> None:
        self.epoch = time.time() - self.now

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.epoch + self.now


class Bucket:
    """What all cells have in common."""

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.revision = 0
        self.stores: list[MemoryStore] = []
        self.writes = 0

    @property
    def record(self) -> Record:
        """What it holds."""
        return (None if self.value is None else decode(self.value)) or Record()

    def put(self, value: bytes) -> int:
        """Store a value and tell all that can hear."""
        self.value = value
        self.revision += 1
        self.writes += 1
        for store in self.stores:
            if not (store.is_away or store.is_deaf):
                asyncio.get_running_loop().call_soon(store.heard, KEY, value, self.revision)
        return self.revision


class MemoryStore:
    """One cell's way to the bucket."""

    def __init__(self, bucket: Bucket, heard: Callable[[str, bytes, int], None]) -> None:
        self.bucket = bucket
        self.heard = heard
        self.is_away = False
        self.is_slow = False
        self.slow = asyncio.Event()
        # What is written is answered late, and not heard of.
        self.is_mute = False
        self.written = asyncio.Event()
        self.answer = asyncio.Event()
        self.is_deaf = False
        self.is_connected = True
        bucket.stores.append(self)

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.is_slow:
            await self.slow.wait()
        if self.is_away:
            raise BrokerError("away")

    async def read(self, key: str) -> tuple[bytes | None, int]:
        """Return the value."""
        assert key == KEY
        await self._answer()
        return self.bucket.value, self.bucket.revision

    async def write(self, key: str, value: bytes, revision: int) -> int | None:
        """Write by compare-and-set."""
        assert key == KEY
        await self._answer()
        if revision != self.bucket.revision:
            return None
        written = self.bucket.put(value)
        if self.is_mute:
            self.written.set()
            await self.answer.wait()
        return written


class Cell:
    """One cell's breaker."""

    def __init__(self, bucket: Bucket, name: str, policy: CircuitBreaker) -> None:
        self.changes: list[str] = []
        self.counts: list[str] = []
        self.name = name
        self.policy = policy
        self.breakers = Breakers(
            {KEY: policy},
            changed=self.changes.append,
            count=self.counts.append,
            me=name,
            call_bound_seconds=4.0,
        )
        self.store = MemoryStore(bucket, self.breakers.hear)

    @property
    def breaker(self) -> Breaker:
        """Its breaker."""
        return self.breakers.get(KEY)

    @property
    def state(self) -> str:
        """Its state."""
        return self.breaker.record.state

    async def start(self) -> None:
        """Share."""
        self.breakers.run_in(asyncio.get_running_loop())
        await self.breakers.share(self.store, {KEY: KEY})

    def guard(self, caller: Caller | None = None) -> Guard:
        """Return a guard."""
        return self.breakers.guard(KEY, caller or Caller())

    async def call(self, error: Exception | None = None) -> Caller:
        """Make a guarded call that succeeds or raises, and swallow what it raises."""
        caller = Caller()
        with contextlib.suppress(*([type(error)] if error is not None else [])):
            async with self.guard(caller):
                if error is not None:
                    raise error
        return caller


class Cells:
    """The cells of a test."""

    def __init__(self) -> None:
        self.bucket = Bucket()
        self.made: list[Cell] = []

    async def start(self, number: int = 1, **settings: object) -> list[Cell]:
        """Start so many more."""
        policy = CircuitBreaker(KEY, **{"fail_max": 3, "reset_timeout_seconds": 30.0, **settings})  # type: ignore[arg-type]
        cells = [Cell(self.bucket, f"cell-{len(self.made) + index}.1", policy) for index in range(number)]
        self.made += cells
        for cell in cells:
            await cell.start()
        return cells

    async def replace(self, dead: Cell) -> Cell:
        """Start what replaces a cell, which says nothing more and hears nothing."""
        dead.store.is_away = dead.store.is_deaf = True
        self.made.remove(dead)
        replacement = Cell(self.bucket, f"{dead.name.partition('.')[0]}.2", dead.policy)
        self.made.append(replacement)
        await replacement.start()
        return replacement

    async def all_are(self, state: str) -> None:
        """Wait until all cells and the bucket have a state."""
        await until(lambda: {cell.state for cell in self.made} | {self.bucket.record.state} == {state})

    async def all_have(self, *, successes: int) -> None:
        """Wait until all cells have heard of so many trials that succeeded."""
        await until(lambda: {cell.breaker.record.successes for cell in self.made} == {successes})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stop the breakers' time."""
    clock = Clock()
    monkeypatch.setattr(breaker_module, "time", clock)
    return clock


@pytest.fixture
async def cells(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cells]:
    """Make cells that look for a lost bucket often."""
    monkeypatch.setattr(sharing, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(sharing, "CLAIM_SECONDS", 30.0)
    monkeypatch.setattr(sharing, "CLOSE_SECONDS", 30.0)
    made = Cells()
    yield made
    for cell in made.made:
        cell.store.slow.set()
        cell.store.answer.set()
        await cell.breakers.close()


@pytest.fixture
def short_claims(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims that wait for no answer for long: the others' is there at once, however long that takes."""
    monkeypatch.setattr(sharing, "CLAIM_SECONDS", 0.05)


def failure() -> ConnectionError:
    """Return what a dead service raises."""
    return ConnectionError("down")


async def open_up(cells: Cells) -> None:
    """Have the first cell open it for all."""
    for _ in range(3):
        await cells.made[0].call(failure())
    await cells.all_are(OPEN)


async def test_an_opening_is_told_to_all_at_once(cells: Cells) -> None:
    """Each hears it once, and lets no call through."""
    first, second, third = await cells.start(3)
    await open_up(cells)
    assert first.counts == ["breaker_openings"]
    assert (second.counts, third.counts) == ([], [])
    assert (second.changes, third.changes) == ([KEY], [KEY])
    with pytest.raises(CircuitOpen) as raised:
        await second.call()
    assert raised.value.retry_after_seconds == 30.0
    assert cells.bucket.record.by == "cell-0.1"


async def test_failures_of_all_cells_are_counted_together(cells: Cells) -> None:
    """Also those that were counted at the same moment; a success of any of them begins anew."""
    first, second, third = await cells.start(3)
    await first.call(failure())
    await until(lambda: third.breaker.record.failures == 1)
    await second.call(failure())
    await until(lambda: third.breaker.record.failures == 2)
    await third.call()
    await until(lambda: first.breaker.record.failures == second.breaker.record.failures == 0)
    await asyncio.gather(*(cell.call(failure()) for cell in cells.made))
    await cells.all_are(OPEN)
    assert cells.bucket.record.opening == 1


async def test_a_service_that_answers_costs_no_write(cells: Cells) -> None:
    """Only what changes the count is told, and many successes in a row forgive once."""
    (cell,) = await cells.start()
    for _ in range(100):
        await cell.call()
    assert cells.bucket.writes == 0
    await cell.call(failure())
    for _ in range(100):
        await cell.call()
    await until(lambda: cells.bucket.record == Record())
    assert cells.bucket.writes <= 2


async def test_one_cell_makes_the_trial_and_its_success_closes_it_for_all(cells: Cells, clock: Clock) -> None:
    """Of those that ask at the same moment one gets it, before it calls."""
    await cells.start(4)
    await open_up(cells)
    clock.now += 31
    trials = 0

    async def ask(cell: Cell) -> None:
        nonlocal trials
        with contextlib.suppress(CircuitOpen):
            async with cell.guard():
                trials += 1
                assert cells.bucket.record.claimed_by
                await asyncio.sleep(0.01)

    await asyncio.gather(*map(ask, cells.made))
    assert trials == 1
    await cells.all_are(CLOSED)
    assert cells.bucket.record.since == 0.0


async def test_after_a_failed_trial_all_wait_again_and_its_cell_is_last_in_line(
    cells: Cells, clock: Clock
) -> None:
    """It may have nothing but poison to try with."""
    first, second = await cells.start(2)
    await open_up(cells)
    clock.now += 31
    caller = await first.call(failure())
    assert caller.failed_trial is not None
    await until(lambda: second.breaker.record.opening == 2)
    clock.now += 29
    assert second.breaker.wait_seconds() == pytest.approx(1.0)
    clock.now += 1.0
    assert second.breaker.wait_seconds() == 0.0
    with pytest.raises(CircuitOpen):
        await first.call()
    await second.call()
    await cells.all_are(CLOSED)


async def test_trials_in_a_row_may_be_those_of_several_cells(cells: Cells, clock: Clock) -> None:
    """Each success is told, and the last one closes it for all."""
    first, second, third = await cells.start(3, success_threshold=3)
    await open_up(cells)
    clock.now += 31
    for number, cell in enumerate((second, third), start=1):
        await cell.call()
        await cells.all_have(successes=number)
        assert cells.bucket.record.state == HALF_OPEN
    await first.call()
    await cells.all_are(CLOSED)


async def test_a_dead_claimer_s_trial_is_made_by_another_after_a_time(cells: Cells, clock: Clock) -> None:
    """Until then nobody else calls; the late result of one that wasn't dead counts no more."""
    dead, other = await cells.start(2)
    await open_up(cells)
    clock.now += 31
    caller = Caller()
    guard = dead.guard(caller)
    await guard.__aenter__()
    await until(lambda: other.state == HALF_OPEN)
    clock.now += 29
    with pytest.raises(CircuitOpen):
        await other.call()
    clock.now += 1.5
    async with other.guard():
        await until(lambda: dead.breaker.record.trial == 2)
        error = failure()
        await guard.__aexit__(type(error), error, None)
        assert caller.failed_trial is not None
    await cells.all_are(CLOSED)
    assert cells.bucket.record.opening == 1


async def test_a_dead_cell_s_trial_has_failed_when_its_replacement_knows_of_it(
    cells: Cells, clock: Clock
) -> None:
    """The service has had its call; nobody waits for the claim's end, nor calls before the reset timeout."""
    dead, other = await cells.start(2)
    await open_up(cells)
    clock.now += 31
    await dead.guard().__aenter__()
    await until(lambda: other.state == HALF_OPEN)
    clock.now += 1
    with capture_logs() as logs:
        replacement = await cells.replace(dead)
        await cells.all_are(OPEN)
    told = [entry for entry in logs if entry["event"] == "breaker open"]
    assert [entry.get("error") for entry in told] == ["the cell that tried it has died"]
    assert cells.bucket.record.opening == 2
    clock.now += 29.5
    with pytest.raises(CircuitOpen):
        await other.call()
    clock.now += 0.5
    # Whose trial has failed lets the others go first.
    assert replacement.breaker.wait_seconds() == pytest.approx(0.25)
    await other.call()
    await cells.all_are(CLOSED)


async def test_the_claim_of_a_cell_of_another_name_is_left_alone(cells: Cells, clock: Clock) -> None:
    """Whoever starts while another tries waits for that."""
    await cells.start(2)
    await open_up(cells)
    clock.now += 31
    async with cells.made[0].guard():
        (later,) = await cells.start()
        assert later.state == HALF_OPEN
        with pytest.raises(CircuitOpen):
            await later.call()
    await cells.all_are(CLOSED)
    assert cells.bucket.record.opening == 1


async def give_up_a_claim(cell: Cell) -> None:
    """Have a cell claim a trial, and give up waiting for the answer when the claim is written."""
    cell.store.is_mute = True
    claiming = asyncio.create_task(cell.guard().__aenter__())
    await cell.store.written.wait()
    claiming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claiming
    cell.store.is_mute = False


@pytest.mark.usefixtures("short_claims")
async def test_a_claim_that_is_given_up_is_given_back(cells: Cells, clock: Clock) -> None:
    """Though it is written after all: a drain, or a handler's timeout, leaves nothing half-open."""
    first, second = await cells.start(2)
    await open_up(cells)
    clock.now += 31
    await give_up_a_claim(first)
    await until(lambda: cells.bucket.record.state == HALF_OPEN and not cells.bucket.record.claimed_by)
    await until(lambda: second.breaker.wait_seconds() == 0.0)
    await second.call()
    await cells.all_are(CLOSED)


async def test_the_next_trial_has_the_claim_that_was_given_up(cells: Cells, clock: Clock) -> None:
    """It was written already, so that there is nothing to wait for: least of all for its own lease."""
    first, _ = await cells.start(2)
    await open_up(cells)
    clock.now += 31
    for cell in cells.made:
        # Nobody hears of what is written but by its answer.
        cell.store.is_deaf = True
    await give_up_a_claim(first)
    calling = asyncio.create_task(first.call())
    asyncio.get_running_loop().call_soon(first.store.answer.set)
    await calling
    assert first.state == CLOSED
    await until(lambda: cells.bucket.record.state == CLOSED)


async def test_a_drain_leaves_no_claim_behind(cells: Cells, clock: Clock) -> None:
    """Its answer is waited for, and it is given back; else the others would wait for a dead cell's trial."""
    first, second = await cells.start(2)
    await open_up(cells)
    clock.now += 31
    first.store.is_deaf = True
    await give_up_a_claim(first)
    assert cells.bucket.record.claimed_by == "cell-0.1"
    closing = asyncio.create_task(first.breakers.close())
    for _ in range(5):
        await asyncio.sleep(0)
    first.store.answer.set()
    await closing
    assert cells.bucket.record.claimed_by == ""
    await until(lambda: second.breaker.wait_seconds() == 0.0)


@pytest.mark.usefixtures("short_claims")
async def test_a_drain_looks_for_a_claim_that_was_not_answered_in_time(
    cells: Cells, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been written, and nobody else would give it back."""
    monkeypatch.setattr(sharing, "LOOK_SECONDS", 60.0)
    (cell,) = await cells.start()
    await open_up(cells)
    clock.now += 31
    cell.store.is_deaf = True
    with capture_logs() as logs:
        await give_up_a_claim(cell)
        await until(lambda: bool(logs))
    assert [entry["event"] for entry in logs] == ["breaker is local for now"]
    assert cells.bucket.record.claimed_by == "cell-0.1"
    await cell.breakers.close()
    assert cells.bucket.record.claimed_by == ""


@pytest.mark.usefixtures("short_claims")
async def test_a_drain_tells_the_result_of_a_trial_whose_claim_was_not_answered_in_time(
    cells: Cells, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket isn't looked for again before that, though it answers."""
    monkeypatch.setattr(sharing, "LOOK_SECONDS", 60.0)
    first, second = await cells.start(2)
    await open_up(cells)
    clock.now += 31
    first.store.is_mute = True
    await first.call()
    assert (first.state, second.state) == (CLOSED, HALF_OPEN)
    first.store.is_mute = False
    first.store.answer.set()
    await first.breakers.close()
    await cells.all_are(CLOSED)


async def test_a_late_echo_costs_no_trial(cells: Cells, clock: Clock) -> None:
    """It takes the revision back to an old one, with which the claim is refused; nobody else was first."""
    (cell,) = await cells.start()
    await cell.call(failure())
    await until(lambda: cells.bucket.record.failures == 1)
    old = cells.bucket.value
    assert old is not None
    for _ in range(2):
        await cell.call(failure())
    await cells.all_are(OPEN)
    clock.now += 31
    cell.breakers.hear(KEY, old, 1)
    await cell.call()
    assert cell.state == CLOSED


async def test_who_comes_later_finds_it_open_and_waits_for_the_rest_of_the_time(
    cells: Cells, clock: Clock
) -> None:
    """By the opener's clock, within reason."""
    await cells.start()
    await open_up(cells)
    clock.now += 10
    (later,) = await cells.start()
    assert later.breaker.wait_seconds() == pytest.approx(20.0, abs=1.0)
    clock.now -= 500
    (confused,) = await cells.start()
    assert confused.breaker.wait_seconds() == 30.0


async def test_a_lost_bucket_makes_it_local_and_what_was_missed_is_made_up(
    cells: Cells, clock: Clock
) -> None:
    """No call fails for it; the cell opens, tries and closes by itself."""
    alone, other = await cells.start(2)
    alone.store.is_away = True
    for _ in range(3):
        await alone.call(failure())
    assert (alone.state, other.state) == (OPEN, CLOSED)
    clock.now += 31
    await alone.call(failure())
    assert alone.breaker.record.opening == 2
    alone.store.is_away = False
    await cells.all_are(OPEN)
    assert other.breaker.record.opening == 2
    alone.store.is_away = True
    clock.now += 31
    await alone.call()
    assert (alone.state, other.state) == (CLOSED, OPEN)
    alone.store.is_away = False
    await cells.all_are(CLOSED)


async def test_of_two_that_were_apart_the_one_that_came_further_counts(cells: Cells, clock: Clock) -> None:
    """Here the others' second opening, which the cell that was away hadn't heard of."""
    alone, other = await cells.start(2)
    await open_up(cells)
    alone.store.is_away = True
    clock.now += 31
    await other.call(failure())
    await alone.call()
    assert (alone.state, other.state) == (CLOSED, OPEN)
    alone.store.is_away = False
    await cells.all_are(OPEN)
    assert alone.breaker.record.opening == 2


async def test_who_is_back_asks_before_it_tries(cells: Cells, clock: Clock) -> None:
    """Though it had gone by what it saw itself: the others may have tried just now."""
    alone, other = await cells.start(2)
    await open_up(cells)
    alone.store.is_away = True
    clock.now += 31
    await alone.call(ConnectionError())
    clock.now += 31
    await other.call(failure())
    await other.breaker.told()
    clock.now += 31
    await other.call(failure())
    await until(lambda: cells.bucket.record.opening == 3)
    # No look at the bucket comes before its call.
    alone.store.is_away = False
    with pytest.raises(CircuitOpen):
        async with alone.guard():
            raise AssertionError
    await cells.all_are(OPEN)
    assert alone.breaker.record.opening == 3


@pytest.mark.usefixtures("short_claims")
async def test_a_bucket_that_doesn_t_answer_holds_up_a_trial_no_longer_than_its_bound(
    cells: Cells, clock: Clock
) -> None:
    """Then it is made all the same."""
    (cell,) = await cells.start()
    await open_up(cells)
    clock.now += 31
    cell.store.is_slow = True
    await cell.call()
    assert cell.state == CLOSED


async def test_a_bucket_that_answers_but_takes_nothing_is_asked_now_and_then(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose disk is full; not in a busy loop, and the log has it once."""
    (cell,) = await cells.start()
    asked = 0

    async def refuse(key: str, value: bytes, revision: int) -> int | None:
        nonlocal asked
        asked += 1
        raise BrokerError("insufficient storage")

    write = cell.store.write
    cell.store.write = refuse  # type: ignore[method-assign]
    with capture_logs() as logs:
        await cell.call(failure())
        await until(lambda: asked >= 3)
    assert [entry["event"] for entry in logs] == ["breaker is local for now"]
    monkeypatch.setattr(sharing, "LOOK_SECONDS", 60.0)
    before = asked
    for _ in range(100):
        await asyncio.sleep(0)
    assert asked <= before + 1
    cell.store.write = write  # type: ignore[method-assign]
    cell.breakers.look()
    await until(lambda: cells.bucket.record.failures == 1)


async def test_who_is_disconnected_claims_for_itself_at_once(cells: Cells, clock: Clock) -> None:
    """Nobody would answer."""
    (cell,) = await cells.start()
    await open_up(cells)
    clock.now += 31
    cell.store.is_connected = False
    cell.store.is_slow = True
    await cell.call()
    assert cell.state == CLOSED


async def test_a_bucket_made_anew_is_brought_up_to_date(cells: Cells) -> None:
    """Its revisions begin anew; what all cells know isn't forgotten with it."""
    first, second = await cells.start(2)
    await open_up(cells)
    cells.bucket.value, cells.bucket.revision = None, 0
    first.breakers.look()
    await cells.all_are(OPEN)
    assert cells.bucket.record.opening == 1
    assert second.state == OPEN


async def test_what_the_bucket_says_is_no_error_whatever_it_is(cells: Cells) -> None:
    """It is overwritten as soon as there is something to say."""
    cells.bucket.put(b"nonsense")
    (cell,) = await cells.start()
    cells.bucket.put(b'{"state": "ajar"}')
    await asyncio.sleep(0)
    assert cell.state == CLOSED
    for _ in range(3):
        await cell.call(failure())
    await until(lambda: cells.bucket.record.state == OPEN)


async def test_closing_tells_what_is_untold(cells: Cells) -> None:
    """The last failure before a drain may be the one that opens it."""
    first, second = await cells.start(2)
    for _ in range(3):
        await first.call(failure())
    await first.breakers.close()
    assert cells.bucket.record.state == OPEN
    await until(lambda: second.state == OPEN)


_moves = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["open", "trial", "close", "release", "hear"])), max_size=30
)


@given(_moves)
def test_cells_that_hear_of_each_other_agree(moves: list[tuple[int, str]]) -> None:
    """Whatever each did alone, and in whatever order they hear of it."""
    storages = [SharedStorage(f"cell-{number}") for number in range(3)]
    for number, move in moves:
        storage = storages[number]
        record = storage.record
        if move == "open":
            storage.state = OPEN
        elif move == "trial" and record.state != CLOSED:
            storage.move(
                msgspec.structs.replace(record, state=HALF_OPEN, trial=record.trial + 1, claimed_by="someone")
            )
        elif move == "release" and record.claimed_by:
            storage.increment_success_counter()
        elif move == "close" and record.state == HALF_OPEN:
            storage.state = CLOSED
        else:
            storage.adopt(storages[(number + 1) % 3].record)
    forth, back = [msgspec.structs.replace(storage.record) for storage in storages], []
    for first, second, third in ((0, 1, 2), (2, 1, 0)):
        heard = SharedStorage("listener")
        for number in (first, second, third):
            heard.adopt(forth[number])
        back.append(heard.record.age)
    assert back[0] == back[1] == max(record.age for record in [*forth, Record()])
    assert all(decode(encode(record)) == record for record in forth)
