"""Trials: what waits for an open circuit breaker, and who tries whether it may close.

While a breaker is open that no handler declares the lanes rest; then one delivery at a time is let through as
a trial, a different one each time, until the breaker has closed. A delivery whose handler declares the
breaker waits at its gate instead, and the others go on.
"""

from __future__ import annotations

import abc
import asyncio
import enum
import functools
import math
from collections import deque
from collections.abc import Callable

from understudy.runtime.cell.batches import HeldBatch
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.gates import Gate
from understudy.runtime.cell.outcomes import Held
from understudy.runtime.cell.turns import Turns

# When to try again what met a breaker that has closed since.
SOON_SECONDS = 0.05


class Mode(enum.Enum):
    """What the breakers let through."""

    ALL = "all"
    TRIAL = "trial"
    NONE = "none"


class Trials(Turns):
    """What the breakers let through, and when; the part of `Lanes` that knows them, and timers.

    Args:
        is_alone: as of `Turns`.
        wait_seconds: how long the breaker of that name lets no trial through; 0 if one may be made now, None
            if it is closed.
        mode_changed: called when the breakers' mode changes, with the breaker's name if it is open.
        blocked_changed, gated_changed: as of `Turns`.
        declared: the breakers that handlers declare.
    """

    def __init__(
        self,
        is_alone: Callable[[HeldDelivery], bool] | None,
        wait_seconds: Callable[[str], float | None],
        mode_changed: Callable[[Mode, str], None],
        blocked_changed: Callable[[int], None],
        gated_changed: Callable[[int], None],
        declared: frozenset[str],
    ) -> None:
        super().__init__(is_alone, blocked_changed, gated_changed)
        self._wait_seconds = wait_seconds
        self._mode_changed = mode_changed
        self._declared = declared
        # What met the breaker that the lanes rest for, and the trial that failed last, which stands in line
        # with what is ready.
        self._held: deque[HeldDelivery | HeldBatch] = deque()
        self._failed_trial: HeldDelivery | HeldBatch | None = None
        self._mode = Mode.ALL
        # The breaker that the lanes rest for, and the timer of its next trial.
        self._rests_for = ""
        self._next_trial: asyncio.TimerHandle | None = None
        self._gate_timers: dict[str, asyncio.TimerHandle] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._stopping = False

    @abc.abstractmethod
    def _wake_all(self) -> None:
        """Have all workers look at what is ready."""

    def waits_for(self, breaker: str) -> bool:
        """Return whether something waits for a breaker that its handler has declared."""
        gate = self._shut_gates.get(breaker)
        return gate is not None and bool(gate.held or gate.tried or gate.trial is not None)

    def breaker_changed(self, breaker: str) -> None:
        """Hear that a breaker has opened, closed, or lets its next trial through at another time.

        Args:
            breaker: its name; an actor's handler declares it, or has met it, or has nothing to do with it.
        """
        gate = self._shut_gates.get(breaker)
        wait = self._wait_seconds(breaker)
        if gate is None and wait is not None and breaker in self._declared:
            gate = self._gates.shut_for(breaker)
        if gate is not None:
            self._look_at(gate)
        if self._mode is Mode.ALL or self._rests_for != breaker:
            return
        if wait is None:
            self._open()
        elif self._mode is Mode.NONE:
            self._rest(wait)

    def _decide(self) -> None:
        """See whether a trial has closed the breaker."""
        if self._mode is Mode.TRIAL:
            if self._wait_seconds(self._rests_for) is None:
                self._open()
            else:
                self._wake()

    def _hold(self, item: HeldDelivery | HeldBatch, outcome: Held) -> None:
        """Have an item wait that met an open breaker."""
        handler = item.handler
        if handler is not None and outcome.breaker in handler.breakers:
            gate = self._gates.shut_for(outcome.breaker)
            self._gates.hold(gate, item)
            self._look_at(gate, met=True)
            return
        if self._shut_gates:
            # It was the trial of another breaker.
            self._gates.left(item)
        if self._mode is Mode.TRIAL:
            self._failed_trial = item
            self._ready.append(item)
        else:
            self._held.append(item)
        self._shut(outcome)

    def _look_at(self, gate: Gate, *, met: bool = False) -> None:
        """Open a gate whose breaker has closed, or let the next trial through when its time has come.

        Args:
            gate: which.
            met: whether a handler has just met the breaker; if it is open no more the next one tries soon,
                but not at once, since a handler may go on saying so.
        """
        timer = self._gate_timers.pop(gate.breaker, None)
        if timer is not None:
            self._forget(timer)
        wait = self._wait_seconds(gate.breaker)
        if met and not wait:
            wait = SOON_SECONDS
        if wait is None:
            self._ready.extendleft(reversed(self._gates.open(gate)))
            self._wake_all()
            return
        gate.may_try = wait <= 0
        if gate.may_try:
            self._wake()
            return
        due = self._later(wait, functools.partial(self._look_at, gate))
        if due is not None:
            self._gate_timers[gate.breaker] = due

    def _take_past_gates(self) -> HeldDelivery | HeldBatch | None:
        item = self._gates.take()
        while item is None and self._ready:
            item = self._ready.popleft()
            gate = self._gates.find(item)
            if gate is not None:
                if isinstance(item, HeldBatch) and self._batches is not None:
                    self._batches.close(item)
                self._gates.hold(gate, item)
                item = self._gates.take()
        return item

    def _shut(self, outcome: Held) -> None:
        if self._mode is Mode.NONE:
            return
        self._mode = Mode.NONE
        self._rests_for = outcome.breaker
        self._mode_changed(Mode.NONE, outcome.breaker)
        seconds = outcome.retry_after_seconds
        if self._wait_seconds(outcome.breaker) is None:
            # It has closed since, and nobody tells us of it a second time.
            seconds = min(seconds, SOON_SECONDS)
        self._rest(seconds)

    def _rest(self, seconds: float) -> None:
        """Let the next trial through after so long."""
        if self._next_trial is not None:
            self._forget(self._next_trial)
        self._next_trial = self._later(seconds, self._try)

    def _try(self) -> None:
        self._mode = Mode.TRIAL
        self._mode_changed(Mode.TRIAL, "")

    def _open(self) -> None:
        self._mode = Mode.ALL
        self._ready = deque(sorted((*self._held, *self._ready), key=lambda item: item.sequence))
        self._held.clear()
        self._failed_trial = None
        self._mode_changed(Mode.ALL, "")
        self._wake_all()

    def _keep(self, running: set[HeldDelivery]) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._held.clear()
        self._failed_trial = None
        super()._keep(running)
        if self._mode is not Mode.ALL:
            self._mode = Mode.ALL
            self._mode_changed(Mode.ALL, "")
        # Their timers are gone too.
        for gate in tuple(self._shut_gates.values()):
            self._look_at(gate)

    def _later(self, delay_seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle | None:
        if math.isinf(delay_seconds) or self._stopping:
            return None

        def run() -> None:
            self._timers.discard(timer)
            action()
            self._wake()

        timer = asyncio.get_running_loop().call_later(delay_seconds, run)
        self._timers.add(timer)
        return timer

    def _forget(self, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        self._timers.discard(timer)
