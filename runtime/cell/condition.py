"""What keeps a cell from going on: pauses, open breakers, deliveries that wait in place, and a bad deploy."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from understudy.actors.options import ActorOptions
from understudy.runtime.cell.status import CellState
from understudy.runtime.cell.trials import Mode

_log = structlog.get_logger("understudy.cell")


class Condition:
    """What a cell's parts have said of themselves, and what follows for its state and its subscription.

    Args:
        options: the actor's.
        changed: called when the state may be another.

    Attributes:
        draining: whether the cell drains.
        paused: whether the operator has paused it.
        halted: why it handles nothing more until it is started anew, empty if it does.
        is_clogged: whether these take more of the mailbox than they may.
    """

    def __init__(self, options: ActorOptions, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._ordered = options.ordered
        self._most_waiting = options.mailbox.capacity // 2
        self.draining = False
        self.paused = False
        self.halted = ""
        self.is_clogged = False
        self._marks_away = ""
        self._open_breaker = ""
        self._resting = False
        self._blocked = self._gated = 0

    @property
    def open_breaker(self) -> str:
        """The breaker that the whole actor waits for, empty if it waits for none."""
        return self._open_breaker

    @property
    def room_for_waiting(self) -> int:
        """How many deliveries more may be fetched since others can't go on; none where all keep one order."""
        return 0 if self._ordered else self._blocked + self._gated

    @property
    def asks_for_nothing(self) -> bool:
        """Whether the stream is to be asked for nothing."""
        return bool(self.halted or self._resting or self.is_clogged or self.paused or self._marks_away)

    @property
    def may_stand_still(self) -> bool:
        """Whether it is right that nothing is handled."""
        return bool(
            self.draining
            or self.halted
            or self._open_breaker
            or self.is_clogged
            or self.paused
            or self._marks_away
        )

    def halt(self, reason: str) -> None:
        """Hear why nothing more is to be handled; the first reason counts."""
        if self.halted:
            return
        self.halted = reason
        _log.error("halted", reason=reason)
        self._changed()

    def mode(self, mode: Mode, breaker: str) -> None:
        """Hear what the lanes begin: nothing while the actor's breaker is open, then trials, then all."""
        self._resting = mode is Mode.NONE
        if mode is Mode.NONE:
            # Not after each trial that has failed: it has been paused all the time.
            if breaker != self._open_breaker:
                self._open_breaker = breaker
                _log.info("paused", breaker=breaker)
        elif mode is Mode.ALL:
            self._open_breaker = ""
            _log.info("resumed")
        self._changed()

    def marks_away(self, problem: str) -> None:
        """Hear why the idempotency's marks can't be reached, empty if they can again."""
        self._marks_away = problem
        self._changed()

    def blocked(self, waiting: int) -> None:
        """Hear how many wait behind failed ones that are tried again in place."""
        self._blocked = waiting
        self._look_at_waiting()

    def gated(self, waiting: int) -> None:
        """Hear how many wait for a breaker that their handlers have declared."""
        self._gated = waiting
        self._look_at_waiting()

    def state(self, *, stalled: str, standby: bool) -> tuple[CellState, str]:
        """Return the state of a cell that has started, and why.

        Args:
            stalled: what the watchdog says, empty if nothing.
            standby: whether another cell of the actor is active.
        """
        if self.draining:
            return CellState.DRAINING, ""
        if self.halted:
            return CellState.HALTED, self.halted
        if stalled:
            return CellState.STALLED, stalled
        if self.paused:
            also = ", another cell is active" if standby else ""
            return CellState.PAUSED, f"paused by the operator{also}"
        if standby:
            return CellState.STANDBY, "another cell is active"
        reason = self._pause_reason()
        return (CellState.PAUSED, reason) if reason else (CellState.UP, "")

    def _look_at_waiting(self) -> None:
        waiting = self._blocked + self._gated
        # What keeps one order has nothing else to hold its mailbox free for.
        is_clogged = self._gated > 0 if self._ordered else waiting > self._most_waiting
        if is_clogged is not self.is_clogged:
            _log.warning("blocked" if is_clogged else "no longer blocked", waiting=waiting)
            self.is_clogged = is_clogged
            self._changed()

    def _pause_reason(self) -> str:
        """Return what the cell waits for before it goes on by itself, empty if for nothing."""
        if self._open_breaker:
            return f"circuit breaker {self._open_breaker} is open"
        if self._marks_away:
            return f"the idempotency marks are away: {self._marks_away}"
        if not self.is_clogged:
            return ""
        reasons = []
        if self._blocked:
            reasons.append(
                f"{self._blocked} deliveries wait behind failed ones that are tried again in place"
            )
        if self._gated:
            reasons.append(f"{self._gated} deliveries wait for an open circuit breaker")
        return ", ".join(reasons)
