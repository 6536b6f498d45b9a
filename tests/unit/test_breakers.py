"""Circuit breakers: what counts, when they open, and who may try whether they can close."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from understudy.actors.errors import CircuitOpen, DeclarationError
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import CircuitBreaker
from understudy.runtime import breakers as breakers_module
from understudy.runtime.breakers import Breaker, Breakers


class Caller:
    """A handler's context, as far as a breaker knows it."""

    def __init__(self) -> None:
        self.failed_trial: CircuitOpen | None = None


class Clock:
    """The breakers' time, moved by the test."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stop the breakers' time."""
    clock = Clock()
    monkeypatch.setattr(breakers_module, "time", clock)
    return clock


def make(
    fail_max: int = 2, reset_timeout_seconds: float = 30.0, timeout_seconds: float | None = None
) -> tuple[Breaker, list[str]]:
    """Return a breaker and the list of its openings."""
    opened: list[str] = []
    policy = CircuitBreaker(
        "mail",
        fail_max=fail_max,
        reset_timeout_seconds=reset_timeout_seconds,
        timeout_seconds=timeout_seconds,
    )
    return Breaker(policy, opened.append), opened


async def call(breaker: Breaker, error: BaseException | None = None) -> Caller:
    """Make a guarded call that succeeds or raises, and swallow what it raises."""
    caller = Caller()
    with contextlib.suppress(*([type(error)] if error is not None else [])):
        async with breaker.guard(caller):
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
    assert opened == ["mail"]
    clock.now += 10
    with pytest.raises(CircuitOpen) as raised:
        async with breaker.guard(Caller()):
            raise AssertionError
    assert str(raised.value) == "circuit breaker 'mail' is open; next trial in 20.0 s"
    assert (raised.value.breaker, raised.value.retry_after_seconds) == ("mail", 20.0)


async def test_a_failure_passes_on_as_it_is(clock: Clock) -> None:
    """The handler sees its own error, also the one that opens the breaker."""
    breaker, _ = make(fail_max=1)
    error = ConnectionError("down")
    with pytest.raises(ConnectionError) as raised:
        async with breaker.guard(Caller()):
            raise error
    assert raised.value is error


async def test_one_trial_at_a_time_decides(clock: Clock) -> None:
    """After the reset timeout a single call goes through; its success closes the breaker for all."""
    breaker, opened = make()
    await open_up(breaker)
    clock.now += 30
    async with breaker.guard(Caller()):
        assert not closed(breaker)
        with pytest.raises(CircuitOpen) as raised:
            async with breaker.guard(Caller()):
                raise AssertionError
        assert raised.value.retry_after_seconds == 30.0
    assert closed(breaker)
    await call(breaker, ConnectionError())
    assert closed(breaker)
    assert opened == ["mail"]


async def test_a_failed_trial_opens_it_again_and_is_no_attempt(clock: Clock) -> None:
    """The caller learns that its call was a trial; the next one waits a whole reset timeout."""
    breaker, opened = make()
    await open_up(breaker)
    clock.now += 30
    caller = await call(breaker, ConnectionError("still down"))
    assert caller.failed_trial is not None
    assert (caller.failed_trial.breaker, caller.failed_trial.retry_after_seconds) == ("mail", 30.0)
    assert opened == ["mail", "mail"]
    clock.now += 29.9
    with pytest.raises(CircuitOpen):
        breaker.enter()
    clock.now += 0.1
    assert breaker.enter()


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
        async with breaker.guard(Caller()):
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
    assert opened == ["mail"]
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
        async with breaker.guard(Caller()):
            await asyncio.Event().wait()
    assert not closed(breaker)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_trial_past_its_timeout_has_failed() -> None:
    """A downstream that hangs is as good as down."""
    breaker, opened = make(fail_max=1, reset_timeout_seconds=0.01, timeout_seconds=0.01)
    await open_up(breaker, 1)
    await asyncio.sleep(0.02)
    caller = Caller()
    with pytest.raises(TimeoutError):
        async with breaker.guard(caller):
            await asyncio.Event().wait()
    assert caller.failed_trial is not None
    assert opened == ["mail", "mail"]


@pytest.mark.parametrize("error", [ConnectionError(), None])
async def test_what_began_before_it_opened_no_longer_counts(clock: Clock, error: Exception | None) -> None:
    """A late failure doesn't prolong the opening, a late success doesn't end it."""
    breaker, opened = make()
    caller = Caller()
    late = breaker.guard(caller)
    await late.__aenter__()
    await open_up(breaker)
    clock.now += 15
    await late.__aexit__(type(error) if error else None, error, None)
    assert not closed(breaker)
    assert opened == ["mail"]
    assert caller.failed_trial is None
    with pytest.raises(CircuitOpen) as raised:
        breaker.enter()
    assert raised.value.retry_after_seconds == 15.0


async def test_a_late_result_doesn_t_take_the_trial_s_place(clock: Clock) -> None:
    """While the trial runs, what began earlier ends without a say."""
    breaker, opened = make()
    late = breaker.guard(Caller())
    await late.__aenter__()
    await open_up(breaker)
    clock.now += 30
    async with breaker.guard(Caller()):
        await late.__aexit__(ConnectionError, ConnectionError(), None)
        with pytest.raises(CircuitOpen):
            breaker.enter()
    assert closed(breaker)
    assert opened == ["mail"]


def test_an_unknown_name_is_an_error_that_says_what_to_declare() -> None:
    """The names that are declared are in the text."""
    breakers = Breakers({name: CircuitBreaker(name) for name in ("mail", "bank")}, lambda _: None)
    with pytest.raises(DeclarationError) as raised:
        breakers.get("maul")
    assert str(raised.value) == (
        "no circuit breaker named 'maul' (declared: bank, mail); "
        "add CircuitBreaker('maul') to the actor's or the app's breakers"
    )
    with pytest.raises(DeclarationError) as raised:
        Breakers({}, lambda _: None).get("mail")
    assert str(raised.value) == (
        "no circuit breaker named 'mail' (declared: none); "
        "add CircuitBreaker('mail') to the actor's or the app's breakers"
    )


async def test_each_breaker_says_how_long_it_lets_no_trial_through(clock: Clock) -> None:
    """Nothing if it is closed, or if there is none."""
    breakers = Breakers({name: CircuitBreaker(name, fail_max=1) for name in ("mail", "bank")}, lambda _: None)
    await call(breakers.get("bank"), ConnectionError())
    assert [breakers.wait_seconds(name) for name in ("mail", "bank", "other")] == [None, 30.0, None]
    clock.now += 30
    assert breakers.wait_seconds("bank") == 0.0
    await call(breakers.get("bank"))
    assert breakers.wait_seconds("bank") is None
