"""One timer per lane that bounds its handlers' time, instead of one per delivery."""

from __future__ import annotations

import asyncio
import math
import os
import signal

import structlog

_log = structlog.get_logger("understudy.cell")


class Deadline:
    """Cancels a coroutine handler past its timeout, and kills the cell if a handler still runs then.

    A thread can't be cancelled and a coroutine can ignore its cancellation; both get `hang_timeout_seconds`
    more before the process is killed, so that a replacement takes over what it holds.

    Args:
        task: the lane's task, in which the handler runs.
        hang_timeout_seconds: the time between timeout and kill.

    Attributes:
        task: the same.
        expired: whether the handler's time was over.
        ended: whether the task is to end, so that its cancellation is neither the handler's nor ours.
    """

    def __init__(self, task: asyncio.Task[None], hang_timeout_seconds: float) -> None:
        self.task = task
        self._hang_timeout_seconds = hang_timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = math.inf
        self._at: float | None = None
        self._cancels = False
        self._name = ""
        self.expired = False
        self.ended = False

    def end(self) -> None:
        """Cancel the lane's task for good."""
        self.ended = True
        self.task.cancel()

    def arm(self, seconds: float, *, cancels: bool, name: str) -> None:
        """Begin a handler's time.

        Args:
            seconds: its timeout.
            cancels: whether the task is cancelled then.
            name: the handler's, for the log.
        """
        self.expired = False
        self._cancels = cancels
        self._name = name
        self._at = at = self._loop.time() + seconds
        # A pending timer looks at the deadline when it fires and moves itself; so most handlers set none.
        if at < self._fires_at:
            self._schedule(at)

    def disarm(self) -> None:
        """End a handler's time; the timer stays for the next one."""
        self._at = None

    def _schedule(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = at
        self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._fires_at = math.inf
        if self._at is None:
            return
        if self._loop.time() < self._at:
            self._schedule(self._at)
            return
        if self.expired:
            _log.error("handler still runs after its timeout, killing the cell", handler=self._name)
            # So that its supervisor has where its threads were; handlers may have taken that signal.
            signal.raise_signal(signal.SIGABRT)
            os.kill(os.getpid(), signal.SIGKILL)
        self.expired = True
        # From now, since a blocked loop or a machine that slept may have been late by more than that.
        self._at = self._loop.time() + self._hang_timeout_seconds
        self._schedule(self._at)
        if self._cancels:
            self.task.cancel()
