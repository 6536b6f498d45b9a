"""What `ctx.breaker(name)` returns: a context manager, for coroutines and for threads, and a decorator."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from understudy.actors.errors import BulkheadFull, CircuitOpen, DeclarationError
from understudy.runtime.breakers.breaker import Breaker
from understudy.runtime.breakers.bulkhead import Bulkhead
from understudy.runtime.telemetry.trace import current_span

if TYPE_CHECKING:
    from understudy.runtime.telemetry.spans import CallSpan

_Answer = TypeVar("_Answer")
_Function = TypeVar("_Function", bound=Callable[..., Any])
# The trials within which this is called.
_trials: ContextVar[tuple[Guard, ...]] = ContextVar("trials", default=())
# How long a thread waits for what has timeouts of its own, in the cell's event loop.
CLAIM_SECONDS = 10.0


class Caller(Protocol):
    """Who makes a guarded call: it learns when its call was a failed trial, since that is no attempt."""

    failed_trial: CircuitOpen | None


class Guard:
    """Guards one call after the other; made anew for calls that run at once.

    Args:
        breaker: which.
        bulkhead: its bound, if it has one.
        caller: who makes the calls.
        loop: the cell's event loop, where trials are claimed; None if the guard isn't used in threads.
    """

    __slots__ = (
        *("_breaker", "_bulkhead", "_caller", "_loop"),
        *("_began", "_is_entered", "_opening", "_span", "_timeout", "_trial"),
    )

    def __init__(
        self,
        breaker: Breaker,
        bulkhead: Bulkhead | None,
        caller: Caller,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self._breaker = breaker
        self._bulkhead = bulkhead
        self._caller = caller
        self._loop = loop
        self._is_entered = False
        self._trial = False
        self._opening = 0
        self._began = 0.0
        self._timeout: asyncio.Timeout | None = None
        self._span: CallSpan | None = None

    async def __aenter__(self) -> None:
        """Begin a call; raises CircuitOpen while the breaker is open, and BulkheadFull."""
        self._enter()
        breaker = self._breaker
        try:
            # Before it waits for a place, and again when it has one.
            if not breaker.is_closed and not self._is_in_trial():
                breaker.check()
            if self._bulkhead is not None:
                try:
                    await self._bulkhead.enter(breaker.policy.timeout_seconds)
                except TimeoutError as error:
                    raise self._full() from error
            try:
                if not breaker.is_closed and not self._is_in_trial() and await self._in_loop(breaker.claim()):
                    self._begin_trial()
                self._opening = breaker.record.opening
                seconds = breaker.policy.timeout_seconds
                if seconds is not None:
                    self._timeout = asyncio.timeout(seconds)
                    await self._timeout.__aenter__()
            except BaseException:
                # Turned away or cancelled, or whatever else: who isn't in must not keep a place.
                self._leave_bulkhead()
                raise
        except BaseException as error:
            # Likewise: nobody would end a call that hasn't begun.
            self._not_made(error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the call, and record what it says of the service."""
        if self._timeout is not None:
            try:
                await self._timeout.__aexit__(kind, error, traceback)
            except TimeoutError as late:
                self._leave(late, late=True)
                await self._in_loop(self._breaker.told())
                raise
        self._leave(error)
        if isinstance(error, Exception):
            await self._in_loop(self._breaker.told())

    def __enter__(self) -> None:
        """Begin a call in a thread, as `__aenter__` does."""
        breaker = self._breaker
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not None and running is self._loop:
            raise DeclarationError(
                f"circuit breaker {breaker.policy.name!r}: a coroutine may not wait as a thread does; write "
                f"'async with', and guard coroutine functions"
            )
        self._enter()
        try:
            if not breaker.is_closed and not self._is_in_trial():
                breaker.check()
            if self._bulkhead is not None:
                try:
                    # Nobody cancels a thread, so that its wait always has an end.
                    self._bulkhead.enter_thread(breaker.call_bound_seconds)
                except TimeoutError as error:
                    raise self._full() from error
            try:
                if not breaker.is_closed and not self._is_in_trial() and self._claim_from_thread():
                    self._begin_trial()
            except BaseException:
                # Turned away or cancelled, or whatever else: who isn't in must not keep a place.
                self._leave_bulkhead()
                raise
        except BaseException as error:
            # Likewise: nobody would end a call that hasn't begun.
            self._not_made(error)
            raise
        self._opening = breaker.record.opening
        self._began = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the call, and record what it says of the service."""
        seconds = self._breaker.policy.timeout_seconds
        late = error is None and seconds is not None and time.monotonic() - self._began > seconds
        if late:
            # What it has done stands; but a service that is as slow is as good as down.
            error = TimeoutError(f"the call took longer than timeout_seconds ({seconds:g} s)")
        self._leave(error, late=late)
        if error is not None and self._loop is not None and not self._breaker.is_told():
            telling = asyncio.run_coroutine_threadsafe(self._breaker.told(), self._loop)
            with contextlib.suppress(TimeoutError):
                telling.result(CLAIM_SECONDS)

    def __call__(self, function: _Function) -> _Function:
        """Return the function guarded: each of its calls is a call."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded(*args: Any, **keywords: Any) -> Any:
                async with self._another():
                    return await function(*args, **keywords)

            return cast("_Function", guarded)

        @functools.wraps(function)
        def guarded_in_thread(*args: Any, **keywords: Any) -> Any:
            with self._another():
                return function(*args, **keywords)

        return cast("_Function", guarded_in_thread)

    def _another(self) -> Guard:
        return Guard(self._breaker, self._bulkhead, self._caller, self._loop)

    def _enter(self) -> None:
        if self._is_entered:
            name = self._breaker.policy.name
            raise DeclarationError(
                f"one guard of circuit breaker {name!r} is used for two calls at once; "
                f"write ctx.breaker({name!r}) for each"
            )
        self._is_entered = True
        delivery = current_span()
        if delivery is not None:
            self._span = delivery.calling(self._breaker.policy.name)

    def _is_in_trial(self) -> bool:
        """Return whether this call is within a trial of the same handler run: then it has no say itself."""
        return any(map(self._is_within, _trials.get()))

    def _is_within(self, other: Guard) -> bool:
        return other._trial and other._breaker is self._breaker and other._caller is self._caller

    def _begin_trial(self) -> None:
        self._trial = True
        _trials.set((*_trials.get(), self))

    def _end_span(self, error: BaseException | None) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end(error)

    async def _in_loop(self, asking: Coroutine[Any, Any, _Answer]) -> _Answer:
        if self._loop is None or asyncio.get_running_loop() is self._loop:
            return await asking
        # In a loop of a handler's own, in a thread.
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asking, self._loop))

    def _claim_from_thread(self) -> bool:
        if self._loop is None:
            raise RuntimeError("there is no event loop to claim a trial in")
        claiming = asyncio.run_coroutine_threadsafe(self._breaker.claim(), self._loop)
        try:
            return claiming.result(CLAIM_SECONDS)
        except TimeoutError:
            claiming.cancel()
            raise CircuitOpen(self._breaker.policy.name, self._breaker.policy.reset_timeout_seconds) from None

    def _not_made(self, error: BaseException) -> None:
        self._is_entered = False
        self._end_span(error)
        if isinstance(error, CircuitOpen | BulkheadFull):
            self._breaker.refused()

    def _leave(self, error: BaseException | None, *, late: bool = False) -> None:
        self._is_entered = False
        self._end_span(error)
        trial, self._trial, self._timeout = self._trial, False, None
        if trial:
            _trials.set(tuple(one for one in _trials.get() if one is not self))
        try:
            failed_trial = self._breaker.leave(trial, self._opening, error, late=late)
        finally:
            self._leave_bulkhead()
        if failed_trial is not None:
            self._caller.failed_trial = failed_trial

    def _leave_bulkhead(self) -> None:
        if self._bulkhead is not None:
            self._bulkhead.leave()

    def _full(self) -> BulkheadFull:
        policy = self._breaker.policy
        return BulkheadFull(policy.name, policy.max_concurrent or 0)
