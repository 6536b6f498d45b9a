"""A cell's heartbeat: how it shows that its data thread runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from understudy.runtime.cell.status import HEARTBEAT_SECONDS, IDLE_HEARTBEAT_SECONDS, Status, boottime


class Heartbeat:
    """Beats while the event loop runs, and while idle mostly when that is awake anyway.

    To wake a thread costs several times what it then does here.

    Args:
        status: where it is written.
        hang_timeout_seconds: without one for so long the cell counts as hung.
        beat: called at each; returns whether nothing has happened since the last one.

    Attributes:
        is_idle: whether nothing had happened before the last one, so that the next one is far.
        now: when the last one was, in seconds of CLOCK_BOOTTIME.
    """

    def __init__(self, status: Status, hang_timeout_seconds: float, beat: Callable[[], bool]) -> None:
        self._status = status
        self._seconds = min(HEARTBEAT_SECONDS, hang_timeout_seconds / 4)
        self._idle_seconds = min(IDLE_HEARTBEAT_SECONDS, hang_timeout_seconds / 3)
        self._beat = beat
        # Set to have the next one now, and at each for a moment.
        self._awake = asyncio.Event()
        self._beaten = asyncio.Event()
        self.is_idle = False
        self.now = boottime()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self._awake.clear()
            self._status.beat()
            # The time that new ledger entries carry: a heartbeat's age makes no difference to an ack_wait.
            self.now = boottime()
            self.is_idle = self._beat()
            self._beaten.set()
            self._beaten.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_seconds if self.is_idle else self._seconds):
                    await self._awake.wait()

    def wake(self) -> None:
        """Have the next one now."""
        self.is_idle = False
        self.now = boottime()
        self._awake.set()

    async def after(self, seconds: float) -> None:
        """Return with the first one after so long, for which the thread is awake anyway.

        Args:
            seconds: at least.
        """
        since = boottime()
        while boottime() - since < seconds:
            await self._beaten.wait()
