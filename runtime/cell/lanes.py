"""Lanes: which delivery is handled next.

Deliveries of one key go one at a time and in stream order; different keys, and deliveries without a key,
go side by side up to the actor's concurrency. A delivery that is to be tried again in place keeps its key
shut and nothing else. While a circuit breaker is open the lanes rest; then one delivery at a time is let
through as a trial, a different one each time, until the breaker has closed.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable

import msgspec

from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery

# Handlers that never wait would starve the connection's reader; this many may follow each other.
BURST = 64


class Settled(msgspec.Struct, frozen=True):
    """The delivery needs nothing more."""


class Again(msgspec.Struct, frozen=True):
    """The delivery is to be handled again in place, its key shut until then.

    Args:
        delay_seconds: when; infinite parks it.
    """

    delay_seconds: float


class Held(msgspec.Struct, frozen=True):
    """The delivery waits for an open breaker.

    Args:
        breaker: its name.
        retry_after_seconds: when it may let a trial through.
    """

    breaker: str
    retry_after_seconds: float


Outcome = Settled | Again | Held
SETTLED = Settled()


class Mode(enum.Enum):
    """What the breakers let through."""

    ALL = "all"
    TRIAL = "trial"
    NONE = "none"


class Lanes:
    """Runs `handle` on deliveries, in the order that the module describes.

    Args:
        concurrency: how many deliveries may be handled at once.
        hang_timeout_seconds: how long past its timeout a handler may still run, see `Deadline`.
        handle: handles a delivery; must not raise.
        breakers_closed: whether every breaker of the cell lets all calls through.
        mode_changed: called when the breakers' mode changes, with the breaker's name if it is open.
        blocked_changed: called when more or fewer deliveries wait for one that is tried again in place, that
            one included.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        hang_timeout_seconds: float,
        handle: Callable[[HeldDelivery, Deadline], Awaitable[Outcome]],
        breakers_closed: Callable[[], bool],
        mode_changed: Callable[[Mode, str], None],
        blocked_changed: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._concurrency = concurrency
        self._hang_timeout_seconds = hang_timeout_seconds
        self._handle = handle
        self._breakers_closed = breakers_closed
        self._mode_changed = mode_changed
        self._blocked_changed = blocked_changed
        # What is tried again in place, from its first failure to its end, and its keys.
        self._blocked: set[HeldDelivery] = set()
        self._blocked_keys: set[Hashable] = set()
        self._blocked_behind = 0
        self._ready: deque[HeldDelivery] = deque()
        # By key; None as long as nothing waits behind the one that is ready or runs.
        self._behind: dict[Hashable, deque[HeldDelivery] | None] = {}
        self._held: deque[HeldDelivery] = deque()
        self._mode = Mode.ALL
        self._running: set[HeldDelivery] = set()
        self._stopping = False
        self._halted = False
        self._sleepers: deque[asyncio.Future[None]] = deque()
        self._quiet = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    def workers(self) -> list[asyncio.Task[None]]:
        """The workers' tasks; they end only by failing or by `stop`."""
        return self._workers

    def start(self) -> None:
        """Start as many workers as the concurrency says."""
        self._workers = [
            asyncio.create_task(self._work(), name=f"understudy-lane-{number}")
            for number in range(self._concurrency)
        ]

    def add(self, delivery: HeldDelivery) -> None:
        """Take a delivery in; deliveries come in stream order."""
        key = delivery.key
        if key is not None:
            if key in self._behind:
                behind = self._behind[key]
                if behind is None:
                    behind = self._behind[key] = deque()
                behind.append(delivery)
                if key in self._blocked_keys:
                    self._blocked_behind += 1
                    self._say_blocked()
                return
            self._behind[key] = None
        self._ready.append(delivery)
        if self._sleepers:
            self._wake()

    def is_stuck(self) -> bool:
        """Return whether something could be begun and nothing runs, which should never last."""
        return bool(self._ready) and not self._running and self._mode is Mode.ALL and not self._halted

    def halt(self) -> None:
        """Begin nothing more until the cell is started anew; what is held stays held."""
        self._halted = True

    def clear(self) -> set[HeldDelivery]:
        """Forget what isn't handled right now, and return what is."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._ready.clear()
        self._held.clear()
        self._behind = {one.key: None for one in self._running if one.key is not None}
        self._blocked.intersection_update(self._running)
        self._blocked_keys.intersection_update(self._behind)
        self._blocked_behind = 0
        self._say_blocked()
        if self._mode is not Mode.ALL:
            self._mode = Mode.ALL
            self._mode_changed(Mode.ALL, "")
        return set(self._running)

    async def quiet(self) -> None:
        """Wait until nothing runs and nothing may begin; what waits for a time or a breaker doesn't count."""
        while self._running or (self._ready and self._mode is Mode.ALL and not self._halted):
            self._quiet.clear()
            await self._quiet.wait()

    async def stop(self) -> None:
        """Begin nothing more, and return when what runs has finished."""
        self._stopping = True
        for timer in self._timers:
            timer.cancel()
        self._wake_all()
        if self._workers:
            await asyncio.wait(self._workers)

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        deadline = Deadline(task, self._hang_timeout_seconds)
        burst = 0
        while not self._stopping:
            delivery = self._take()
            if delivery is None:
                burst = 0
                if not self._running:
                    self._quiet.set()
                sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._sleepers.append(sleeper)
                await sleeper
                continue
            self._running.add(delivery)
            outcome = await self._handle(delivery, deadline)
            self._running.discard(delivery)
            if outcome is SETTLED and self._mode is Mode.ALL:
                self._done(delivery)
            else:
                self._finish(delivery, outcome)
            burst += 1
            if burst >= BURST:
                burst = 0
                await asyncio.sleep(0)

    def _take(self) -> HeldDelivery | None:
        if self._halted:
            return None
        if self._mode is not Mode.ALL:
            if self._mode is Mode.NONE or self._running:
                return None
            if self._held:
                return self._held.popleft()
        return self._ready.popleft() if self._ready else None

    def _finish(self, delivery: HeldDelivery, outcome: Outcome) -> None:
        if isinstance(outcome, Settled):
            self._done(delivery)
        elif isinstance(outcome, Again):
            self._block(delivery)
            self._later(outcome.delay_seconds, lambda: self._ready.appendleft(delivery))
        else:
            self._held.append(delivery)
            self._shut(outcome)
        if self._mode is Mode.TRIAL:
            if self._breakers_closed():
                self._open()
            else:
                self._wake()

    def _done(self, delivery: HeldDelivery) -> None:
        """Let the next one of its key go on."""
        if self._blocked:
            self._unblock(delivery)
        key = delivery.key
        if key is None:
            return
        behind = self._behind[key]
        if behind:
            self._ready.append(behind.popleft())
            self._wake()
        else:
            del self._behind[key]

    def _block(self, delivery: HeldDelivery) -> None:
        if delivery in self._blocked:
            return
        self._blocked.add(delivery)
        if delivery.key is not None:
            self._blocked_keys.add(delivery.key)
            self._blocked_behind += len(self._behind[delivery.key] or ())
        self._say_blocked()

    def _unblock(self, delivery: HeldDelivery) -> None:
        if delivery not in self._blocked:
            return
        self._blocked.discard(delivery)
        if delivery.key is not None:
            self._blocked_keys.discard(delivery.key)
            self._blocked_behind -= len(self._behind[delivery.key] or ())
        self._say_blocked()

    def _say_blocked(self) -> None:
        self._blocked_changed(len(self._blocked) + self._blocked_behind)

    def _shut(self, outcome: Held) -> None:
        if self._mode is Mode.NONE:
            return
        self._mode = Mode.NONE
        self._mode_changed(Mode.NONE, outcome.breaker)
        self._later(outcome.retry_after_seconds, self._try)

    def _try(self) -> None:
        self._mode = Mode.TRIAL
        self._mode_changed(Mode.TRIAL, "")

    def _open(self) -> None:
        self._mode = Mode.ALL
        self._ready.extendleft(sorted(self._held, key=lambda delivery: delivery.sequence, reverse=True))
        self._held.clear()
        self._mode_changed(Mode.ALL, "")
        self._wake_all()

    def _later(self, delay_seconds: float, action: Callable[[], None]) -> None:
        if math.isinf(delay_seconds) or self._stopping:
            return

        def run() -> None:
            self._timers.discard(timer)
            action()
            self._wake()

        timer = asyncio.get_running_loop().call_later(delay_seconds, run)
        self._timers.add(timer)

    def _wake(self) -> None:
        while self._sleepers:
            sleeper = self._sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._sleepers:
            sleeper = self._sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
