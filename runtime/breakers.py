"""Circuit breakers for downstream calls, on pybreaker, local to the cell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

import pybreaker
import structlog

from understudy.actors.errors import CircuitOpen, DeclarationError
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import CircuitBreaker

_log = structlog.get_logger("understudy.breaker")


class Caller(Protocol):
    """Who makes a guarded call: it learns when its call was a failed trial, since that is no attempt."""

    failed_trial: CircuitOpen | None


class Breaker:
    """One named breaker.

    Closed lets every call through and counts failures in a row; open lets none through; after
    `reset_timeout_seconds` one trial goes through, and decides. pybreaker by itself lets any number of
    calls through half-open, and counts a cancellation as a failure; here neither happens.

    Args:
        policy: its settings.
        opened: called whenever it opens.
    """

    def __init__(self, policy: CircuitBreaker, opened: Callable[[str], None]) -> None:
        self._policy = policy
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=policy.fail_max, reset_timeout=policy.reset_timeout_seconds, name=policy.name
        )
        self._opened = opened
        self._open_until = 0.0
        self._trial = False

    @property
    def is_closed(self) -> bool:
        """Whether every call goes through."""
        return self._breaker.current_state == pybreaker.STATE_CLOSED

    def wait_seconds(self) -> float | None:
        """Return how long until a trial may be made; None if the breaker is closed."""
        if self.is_closed:
            return None
        if self._trial:
            return self._policy.reset_timeout_seconds
        return max(0.0, self._open_until - time.monotonic())

    def guard(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        """Return a context manager around one downstream call; entering it raises CircuitOpen while open."""
        return _Guard(self, caller, self._policy.timeout_seconds)

    def enter(self) -> bool:
        """Ask to make a call, and return whether it is the trial.

        Raises:
            CircuitOpen: it may not be made.
        """
        if self.is_closed:
            return False
        remaining = self._open_until - time.monotonic()
        if remaining > 0:
            raise CircuitOpen(self._policy.name, remaining)
        if self._trial:
            raise CircuitOpen(self._policy.name, self._policy.reset_timeout_seconds)
        self._trial = True
        self._breaker.half_open()
        _log.info("breaker half-open", breaker=self._policy.name)
        return True

    def leave(self, trial: bool, error: BaseException | None) -> CircuitOpen | None:
        """Record how a call ended, and return the open breaker's error if it was a failed trial.

        Args:
            trial: what `enter` returned.
            error: what the call raised. A cancellation says nothing about the downstream, nor do Retry and
                Reject, which are the handler's own words.
        """
        if trial:
            self._trial = False
        if isinstance(error, CircuitOpen | Retry | Reject) or (
            error is not None and not isinstance(error, Exception)
        ):
            return None
        if not trial and not self.is_closed:
            # It began before the breaker opened: only the trial decides now.
            return None
        try:
            with self._breaker.calling():
                if error is not None:
                    raise error
        except Exception as recorded:
            # pybreaker raises the error again, or its own in its place; the caller has the original.
            if error is None:
                raise
            del recorded
        if self.is_closed:
            if trial:
                _log.info("breaker closed", breaker=self._policy.name)
            return None
        self._open_until = time.monotonic() + self._policy.reset_timeout_seconds
        self._opened(self._policy.name)
        _log.warning(
            "breaker open",
            breaker=self._policy.name,
            error=str(error) or type(error).__name__,
            retry_after_seconds=self._policy.reset_timeout_seconds,
        )
        return CircuitOpen(self._policy.name, self._policy.reset_timeout_seconds) if trial else None


class _Guard(AbstractAsyncContextManager[None]):
    def __init__(self, breaker: Breaker, caller: Caller, timeout_seconds: float | None) -> None:
        self._breaker = breaker
        self._caller = caller
        self._timeout = None if timeout_seconds is None else asyncio.timeout(timeout_seconds)
        self._trial = False

    async def __aenter__(self) -> None:
        self._trial = self._breaker.enter()
        if self._timeout is not None:
            await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._timeout is not None:
                await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as timeout:
            self._caller.failed_trial = self._breaker.leave(self._trial, timeout) or self._caller.failed_trial
            raise
        self._caller.failed_trial = self._breaker.leave(self._trial, error) or self._caller.failed_trial


class Breakers:
    """The breakers of one cell.

    Args:
        policies: by name.
        opened: called with the name whenever one opens.
    """

    def __init__(self, policies: Mapping[str, CircuitBreaker], opened: Callable[[str], None]) -> None:
        self._breakers = {name: Breaker(policy, opened) for name, policy in policies.items()}

    def get(self, name: str) -> Breaker:
        """Return a breaker.

        Raises:
            DeclarationError: none of that name is declared.
        """
        try:
            return self._breakers[name]
        except KeyError:
            declared = ", ".join(sorted(self._breakers)) or "none"
            raise DeclarationError(
                f"no circuit breaker named {name!r} (declared: {declared}); "
                f"add CircuitBreaker({name!r}) to the actor's or the app's breakers"
            ) from None

    def wait_seconds(self, name: str) -> float | None:
        """Return how long a breaker lets no trial through: 0 if one may be made now, None if it is closed."""
        breaker = self._breakers.get(name)
        return None if breaker is None else breaker.wait_seconds()
