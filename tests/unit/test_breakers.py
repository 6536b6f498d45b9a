"""Circuit breakers: what counts, when they open, and who may try whether they can close."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from support.cells import until
from understudy.actors.errors import BulkheadFull, CircuitOpen, DeclarationError
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import CircuitBreaker
from understudy.runtime.breakers import breaker as breaker_module
from understudy.runtime.breakers import guard as guard_module
from understudy.runtime.breakers.breaker import Breaker
from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.breakers.bulkhead import Bulkhead
from understudy.runtime.breakers.guard import Guard


class Caller:
    """A handler's context, as far as a breaker knows it."""

    def __init__(self) -> None:
        self.failed_trial: CircuitOpen | None = None


class Clock:
    """The breakers' time, moved by the test."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stop the breakers' time."""
    clock = Clock()
    monkeypatch.setattr(breaker_module, "time", clock)
    return clock


def make(fail_max: int = 2, **settings: Any) -> tuple[Breaker, list[str]]:
    """Return a breaker and the list of its counts."""
    counted: list[str] = []
    return Breaker(CircuitBreaker("mail", fail_max=fail_max, **settings), count=counted.append), counted


def guard(breaker: Breaker, caller: Caller | None = None) -> Guard:
    """Return a guard of a breaker."""
    return Guard(breaker, None, caller or Caller(), None)


async def call(breaker: Breaker, error: BaseException | None = None) -> Caller:
    """Make a guarded call that succeeds or raises, and swallow what it raises."""
    caller = Caller()
    with contextlib.suppress(*([type(error)] if error is not None else [])):
        async with guard(breaker, caller):
            if error is not None:
                raise error
    return caller


def closed(breaker: Breaker) -> bool:
    """Return whether every call goes through; a function, since a type checker takes an attribute to stay."""
    return breaker.is_closed


async def open_up(breaker: Breaker, failures: int = 2) -> None:
    """Fail until it opens."""
    for _ in range(failures):
        await call(breaker, ConnectionError("down"))
    assert not closed(breaker)


async def test_opens_after_fail_max_failures_in_a_row(clock: Clock) -> None:
    """A success between failures begins the count anew; while it is open nothing goes through."""
    breaker, opened = make(fail_max=3)
    for error in (ConnectionError(), ConnectionError(), None, ConnectionError(), ConnectionError()):
        await call(breaker, error)
        assert closed(breaker)
    await call(breaker, ConnectionError())
    assert not closed(breaker)
    assert opened.count("breaker_openings") == 1
    clock.now += 10
    with pytest.raises(CircuitOpen) as raised:
        async with guard(breaker):
            raise AssertionError
    assert str(raised.value) == "circuit breaker 'mail' is open; next trial in 20.0 s"
    assert (raised.value.breaker, raised.value.retry_after_seconds) == ("mail", 20.0)


async def test_a_failure_passes_on_as_it_is(clock: Clock) -> None:
    """The handler sees its own error, also the one that opens the breaker."""
    breaker, _ = make(fail_max=1)
    error = ConnectionError("down")
    with pytest.raises(ConnectionError) as raised:
        async with guard(breaker):
            raise error
    assert raised.value is error


async def test_one_trial_at_a_time_decides(clock: Clock) -> None:
    """After the reset timeout a single call goes through; its success closes the breaker for all."""
    breaker, opened = make()
    await open_up(breaker)
    clock.now += 30
    async with guard(breaker):
        assert not closed(breaker)
        with pytest.raises(CircuitOpen) as raised:
            async with guard(breaker):
                raise AssertionError
        assert raised.value.retry_after_seconds == 30.0
    assert closed(breaker)
    await call(breaker, ConnectionError())
    assert closed(breaker)
    assert opened.count("breaker_openings") == 1


async def test_a_failed_trial_opens_it_again_and_is_no_attempt(clock: Clock) -> None:
    """The caller learns that its call was a trial; the next one waits a whole reset timeout."""
    breaker, opened = make()
    await open_up(breaker)
    clock.now += 30
    caller = await call(breaker, ConnectionError("still down"))
    assert caller.failed_trial is not None
    assert (caller.failed_trial.breaker, caller.failed_trial.retry_after_seconds) == ("mail", 30.0)
    assert opened.count("breaker_openings") == 2
    clock.now += 29.9
    with pytest.raises(CircuitOpen):
        await breaker.claim()
    clock.now += 0.1
    assert await breaker.claim()


@pytest.mark.parametrize("error", [None, ConnectionError("still down")])
async def test_what_is_guarded_twice_by_one_breaker_is_one_trial(
    clock: Clock, error: Exception | None
) -> None:
    """As where a guarded function is called within a guarded block: it could never close otherwise."""
    breaker, counted = make()
    await open_up(breaker)
    clock.now += 30
    caller = Caller()
    with contextlib.suppress(ConnectionError):
        async with guard(breaker, caller), guard(breaker, caller):
            if error is not None:
                raise error
    assert closed(breaker) is (error is None)
    assert counted.count("breaker_trials") == 1
    assert counted.count("breaker_openings") == (1 if error is None else 2)
    assert (caller.failed_trial is None) is (error is None)


async def test_what_was_begun_within_a_trial_and_goes_on_after_it_is_no_part_of_it(clock: Clock) -> None:
    """A task has the context in which it was made."""
    breaker, counted = make()
    await open_up(breaker)
    clock.now += 30
    caller, ended = Caller(), asyncio.Event()

    async def later() -> None:
        await ended.wait()
        await guard(breaker, caller).__aenter__()

    trial = guard(breaker, caller)
    await trial.__aenter__()
    task = asyncio.create_task(later())
    await trial.__aexit__(ConnectionError, ConnectionError(), None)
    ended.set()
    with pytest.raises(CircuitOpen):
        await task
    assert counted.count("breaker_trials") == 1


async def test_a_failure_while_closed_is_an_attempt(clock: Clock) -> None:
    """Only trials are excused, not the failure that opens the breaker."""
    breaker, _ = make(fail_max=1)
    assert (await call(breaker, ConnectionError())).failed_trial is None
    assert not closed(breaker)


async def test_a_cancellation_never_counts(clock: Clock) -> None:
    """A stopped cell says nothing about the downstream."""
    breaker, opened = make(fail_max=1)
    entered = asyncio.Event()

    async def guarded() -> None:
        async with guard(breaker):
            entered.set()
            await asyncio.Event().wait()

    for _ in range(3):
        task = asyncio.create_task(guarded())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        entered.clear()
    assert closed(breaker)
    assert opened == []


@pytest.mark.parametrize("error", [asyncio.CancelledError(), Retry(), Reject("not ours"), SystemExit()])
async def test_a_trial_that_says_nothing_leaves_its_place_to_the_next(
    clock: Clock, error: BaseException
) -> None:
    """It neither closes nor opens the breaker, and another trial may follow at once."""
    breaker, opened = make()
    await open_up(breaker)
    clock.now += 30
    assert (await call(breaker, error)).failed_trial is None
    assert not closed(breaker)
    assert opened.count("breaker_openings") == 1
    await call(breaker)
    assert closed(breaker)


@pytest.mark.parametrize("error", [Retry(1.0), Reject("not ours"), CircuitOpen("other", 1.0)])
async def test_a_handler_s_own_words_never_count(clock: Clock, error: Exception) -> None:
    """Retry, Reject and another breaker's refusal are no failure, and don't forgive one either."""
    breaker, _ = make(fail_max=2)
    for _ in range(5):
        await call(breaker, error)
    await call(breaker, ConnectionError())
    await call(breaker, error)
    assert closed(breaker)
    await call(breaker, ConnectionError())
    assert not closed(breaker)


async def test_a_call_past_its_timeout_fails() -> None:
    """The block is cancelled, raises TimeoutError, and counts."""
    breaker, _ = make(fail_max=1, timeout_seconds=0.01)
    with pytest.raises(TimeoutError):
        async with guard(breaker):
            await asyncio.Event().wait()
    assert not closed(breaker)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_trial_past_its_timeout_has_failed() -> None:
    """A downstream that hangs is as good as down."""
    breaker, opened = make(fail_max=1, reset_timeout_seconds=0.01, timeout_seconds=0.01)
    await open_up(breaker, 1)
    await until(lambda: breaker.wait_seconds() == 0.0)
    caller = Caller()
    with pytest.raises(TimeoutError):
        async with guard(breaker, caller):
            await asyncio.Event().wait()
    assert caller.failed_trial is not None
    assert opened.count("breaker_openings") == 2


@pytest.mark.parametrize("error", [ConnectionError(), None])
async def test_what_began_before_it_opened_no_longer_counts(clock: Clock, error: Exception | None) -> None:
    """A late failure doesn't prolong the opening, a late success doesn't end it."""
    breaker, opened = make()
    caller = Caller()
    late = guard(breaker, caller)
    await late.__aenter__()
    await open_up(breaker)
    clock.now += 15
    await late.__aexit__(type(error) if error else None, error, None)
    assert not closed(breaker)
    assert opened.count("breaker_openings") == 1
    assert caller.failed_trial is None
    with pytest.raises(CircuitOpen) as raised:
        await breaker.claim()
    assert raised.value.retry_after_seconds == 15.0


async def test_a_late_result_doesn_t_take_the_trial_s_place(clock: Clock) -> None:
    """While the trial runs, what began earlier ends without a say."""
    breaker, opened = make()
    late = guard(breaker)
    await late.__aenter__()
    await open_up(breaker)
    clock.now += 30
    async with guard(breaker):
        await late.__aexit__(ConnectionError, ConnectionError(), None)
        with pytest.raises(CircuitOpen):
            await breaker.claim()
    assert closed(breaker)
    assert opened.count("breaker_openings") == 1


def test_an_unknown_name_is_an_error_that_says_what_to_declare() -> None:
    """The names that are declared are in the text."""
    breakers = Breakers({name: CircuitBreaker(name) for name in ("mail", "bank")})
    with pytest.raises(DeclarationError) as raised:
        breakers.get("maul")
    assert str(raised.value) == (
        "no circuit breaker named 'maul' (declared: bank, mail); "
        "add CircuitBreaker('maul') to the actor's or the app's breakers"
    )
    with pytest.raises(DeclarationError) as raised:
        Breakers({}).get("mail")
    assert str(raised.value) == (
        "no circuit breaker named 'mail' (declared: none); "
        "add CircuitBreaker('mail') to the actor's or the app's breakers"
    )


async def test_each_breaker_says_how_long_it_lets_no_trial_through(clock: Clock) -> None:
    """Nothing if it is closed, or if there is none."""
    breakers = Breakers({name: CircuitBreaker(name, fail_max=1) for name in ("mail", "bank")})
    await call(breakers.get("bank"), ConnectionError())
    assert [breakers.wait_seconds(name) for name in ("mail", "bank", "other")] == [None, 30.0, None]
    clock.now += 30
    assert breakers.wait_seconds("bank") == 0.0
    await call(breakers.get("bank"))
    assert breakers.wait_seconds("bank") is None


class NotFound(Exception):
    """What a service answers on purpose."""

    status = 404


def is_client_error(error: Exception) -> bool:
    """Return whether an error is the caller's own fault."""
    return getattr(error, "code", 0) == 400


async def test_what_is_excluded_is_neither_failure_nor_success(clock: Clock) -> None:
    """Failures before it and after it are in a row; pybreaker by itself would begin anew."""
    breaker, _ = make(fail_max=2, excluded=[NotFound, is_client_error])
    of_predicate = OSError()
    of_predicate.code = 400  # type: ignore[attr-defined]
    for error in (NotFound(), of_predicate) * 3:
        await call(breaker, error)
    await call(breaker, ConnectionError())
    await call(breaker, NotFound())
    await call(breaker, of_predicate)
    assert closed(breaker)
    await call(breaker, ConnectionError())
    assert not closed(breaker)


async def test_a_function_of_the_user_s_that_raises_excludes_nothing(clock: Clock) -> None:
    """The call's own error passes on, and counts."""
    breaker, _ = make(fail_max=1, excluded=[lambda error: error.status == 404])
    await call(breaker, ConnectionError("down"))
    assert not closed(breaker)


async def test_an_excluded_trial_leaves_its_place_to_the_next(clock: Clock) -> None:
    """It says nothing, so that another may follow at once."""
    breaker, counted = make(excluded=[NotFound])
    await open_up(breaker)
    clock.now += 30
    assert (await call(breaker, NotFound())).failed_trial is None
    assert not closed(breaker)
    assert counted.count("breaker_openings") == 1
    assert breaker.wait_seconds() == 0.0
    await call(breaker)
    assert closed(breaker)


async def test_as_many_trials_in_a_row_as_it_takes(clock: Clock) -> None:
    """They follow each other at once, one at a time; a failure among them opens it again."""
    breaker, counted = make(success_threshold=3)
    await open_up(breaker)
    clock.now += 30
    await call(breaker)
    await call(breaker)
    assert not closed(breaker)
    await call(breaker, ConnectionError())
    assert breaker.wait_seconds() == 30.0
    clock.now += 30
    for _ in range(2):
        await call(breaker)
        assert not closed(breaker)
    await call(breaker)
    assert closed(breaker)
    assert {name: counted.count(name) for name in set(counted)} == {
        "breaker_openings": 2,
        "breaker_trials": 6,
        "breaker_closings": 1,
    }


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function as a `def` handler is run."""
    return await asyncio.to_thread(function)


def in_this_loop(breaker: Breaker, caller: Caller | None = None, bulkhead: Bulkhead | None = None) -> Guard:
    """Return a guard that threads may use, too."""
    return Guard(breaker, bulkhead, caller or Caller(), asyncio.get_running_loop())


async def test_a_thread_guards_its_calls_as_a_coroutine_does(clock: Clock) -> None:
    """It counts, meets the open breaker, and makes the trial."""
    breaker, counted = make()

    caller = Caller()
    guard = in_this_loop(breaker, caller)

    def fail() -> None:
        with guard:
            raise ConnectionError("down")

    for _ in range(2):
        with pytest.raises(ConnectionError):
            await in_thread(fail)
    with pytest.raises(CircuitOpen):
        await in_thread(fail)
    clock.now += 30
    with pytest.raises(ConnectionError):
        await in_thread(fail)
    assert caller.failed_trial is not None
    clock.now += 30

    def succeed() -> str:
        with guard:
            return "done"

    assert await in_thread(succeed) == "done"
    assert closed(breaker)
    assert counted.count("breaker_trials") == 2


async def test_many_threads_count_every_failure() -> None:
    """None is lost between them, and the breaker opens once."""
    breaker, counted = make(fail_max=8 * 50)
    guards = [in_this_loop(breaker) for _ in range(8)]

    def fail(guard: Guard) -> None:
        for _ in range(50):
            with contextlib.suppress(ConnectionError), guard:
                raise ConnectionError

    await asyncio.gather(*(asyncio.to_thread(fail, guard) for guard in guards))
    assert not closed(breaker)
    assert counted == ["breaker_openings"]


async def test_a_thread_s_call_that_took_too_long_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can cut it short; what it returned stands."""
    monkeypatch.setattr(guard_module, "time", clock := Clock())
    breaker, _ = make(fail_max=1, timeout_seconds=2.0)
    guard = in_this_loop(breaker)

    def slow() -> str:
        with guard:
            clock.now += 2.1
            return "done"

    assert await in_thread(slow) == "done"
    assert not closed(breaker)


async def test_a_coroutine_may_not_wait_as_a_thread_does() -> None:
    """It would hold up the whole cell; the error says what to write."""
    breaker, _ = make()
    guard = in_this_loop(breaker)
    with pytest.raises(DeclarationError) as raised, guard:
        raise AssertionError
    assert str(raised.value) == (
        "circuit breaker 'mail': a coroutine may not wait as a thread does; write 'async with', and guard "
        "coroutine functions"
    )


async def test_decorated_functions_are_guarded_at_each_call(clock: Clock) -> None:
    """A coroutine function stays one, and may run many times at once; a plain one is for threads."""
    breaker, _ = make(fail_max=3)
    both = asyncio.Barrier(2)

    @in_this_loop(breaker)
    async def fetch(number: int) -> int:
        """Return the double."""
        await both.wait()
        if number < 0:
            raise ConnectionError
        return 2 * number

    assert (fetch.__name__, fetch.__doc__) == ("fetch", "Return the double.")
    assert list(await asyncio.gather(fetch(1), fetch(2))) == [2, 4]

    def compute(number: int) -> int:
        return 1 // number

    guarded = in_this_loop(breaker)(compute)
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(guarded, 0)
    await asyncio.gather(fetch(-1), fetch(-2), return_exceptions=True)
    assert not closed(breaker)
    with pytest.raises(CircuitOpen):
        await asyncio.to_thread(guarded, 1)


async def test_one_guard_is_for_one_call_at_a_time(clock: Clock) -> None:
    """One after the other it may guard many."""
    breaker, _ = make()
    guard = in_this_loop(breaker)
    async with guard:
        with pytest.raises(DeclarationError, match=r"write ctx\.breaker\('mail'\) for each"):
            await guard.__aenter__()
    async with guard:
        pass


async def test_a_full_bulkhead_is_waited_for_and_then_an_error_that_doesn_t_count() -> None:
    """It says nothing of the service; for coroutines and threads alike."""
    breaker, _ = make(fail_max=1, timeout_seconds=0.05, max_concurrent=2)
    bulkhead = Bulkhead(2)
    guard = in_this_loop(breaker, bulkhead=bulkhead)
    for _ in range(2):
        await bulkhead.enter(None)
    with pytest.raises(BulkheadFull) as raised:
        await guard.__aenter__()
    assert str(raised.value) == (
        "circuit breaker 'mail': 2 calls are running, which is its max_concurrent, and none has ended in time"
    )
    with pytest.raises(BulkheadFull):
        await asyncio.to_thread(guard.__enter__)
    assert closed(breaker)
    bulkhead.leave()
    async with guard:
        pass


async def test_who_waits_for_a_place_gets_it_in_the_order_of_coming() -> None:
    """Coroutines and threads alike; no place is lost with who gives up, or is given one while it does."""
    bulkhead = Bulkhead(1)
    await bulkhead.enter(None)
    order: list[str] = []

    async def come(name: str) -> None:
        await bulkhead.enter(None)
        order.append(name)
        bulkhead.leave()

    def come_in_thread() -> None:
        bulkhead.enter_thread(60)
        order.append("thread")
        bulkhead.leave()

    coming = []
    for name in ("first", "gives up", "last"):
        coming.append(asyncio.create_task(come(name)))
        await asyncio.sleep(0)
        if name == "first":
            coming.append(asyncio.ensure_future(asyncio.to_thread(come_in_thread)))
            await until(lambda: len(bulkhead._waiting) == 2)
    coming[2].cancel()
    bulkhead.leave()
    await asyncio.gather(*coming, return_exceptions=True)
    assert order == ["first", "thread", "last"]
    await bulkhead.enter(None)
    late = asyncio.create_task(come("late"))
    await asyncio.sleep(0)
    bulkhead.leave()
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    await asyncio.wait_for(bulkhead.enter(None), 30)


async def test_an_open_breaker_is_met_without_waiting_for_a_place(clock: Clock) -> None:
    """And who gets a place meets the breaker that has opened meanwhile, and gives it back."""
    breaker, _ = make(fail_max=1, timeout_seconds=60, max_concurrent=1)
    bulkhead = Bulkhead(1)
    first, second = in_this_loop(breaker, bulkhead=bulkhead), in_this_loop(breaker, bulkhead=bulkhead)
    await first.__aenter__()
    waiting = asyncio.create_task(second.__aenter__())
    await asyncio.sleep(0)
    error = ConnectionError()
    await first.__aexit__(ConnectionError, error, None)
    with pytest.raises(CircuitOpen):
        await waiting
    clock.now += 30
    async with second:
        with pytest.raises(CircuitOpen):
            await in_this_loop(breaker, bulkhead=bulkhead).__aenter__()
    assert closed(breaker)


async def test_an_outage_is_logged_once_however_many_trials_it_has(clock: Clock) -> None:
    """Its beginning with why, its end with how long it was; each trial is for who looks for something."""
    breaker, counted = make(reset_timeout_seconds=30)
    # pybreaker says when it opened, by a clock of its own.
    clock.now = time.time()
    with capture_logs() as logs:
        for _ in range(2):
            await call(breaker, ConnectionError("gone"))
        for _ in range(3):
            clock.now += 31
            await call(breaker, ConnectionError("still gone"))
        clock.now += 31
        await call(breaker)
    told = [entry for entry in logs if entry["log_level"] != "debug"]
    assert told == [
        {
            "event": "breaker open",
            "log_level": "warning",
            "breaker": "mail",
            "error": "gone",
            "retry_after_seconds": 30,
        },
        {
            "event": "breaker closed",
            "log_level": "info",
            "breaker": "mail",
            "after_seconds": pytest.approx(124, abs=30),
        },
    ]
    trials = [entry["event"] for entry in logs if entry["log_level"] == "debug"]
    assert trials == ["breaker half-open", "breaker trial failed"] * 3 + ["breaker half-open"]
    assert counted.count("breaker_openings") == 4
