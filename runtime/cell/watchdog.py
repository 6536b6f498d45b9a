"""The watchdog: a cell that stands idle although its stream has work for it raises an alarm.

The first alarm rebuilds the subscription, the second restarts the cell, and a cell that was restarted for
that says that it has stalled, which fails readiness. No alarm: pauses and open breakers, blocked keys, timed
waits, a standby, a paused consumer, a broker that is away, and a stream with nothing to deliver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from understudy.actors.errors import BrokerError
from understudy.runtime.cell.heartbeat import Heartbeat

CHECK_SECONDS = 5.0
# So many looks in a row must find work and no progress.
PATIENCE = 2
_log = structlog.get_logger("understudy.watchdog")


class Stalled(BrokerError):
    """The stream has work, and a new subscription didn't bring it."""


class Watchdog:
    """Looks at one cell now and then.

    Args:
        durable: the consumer's name, for the log.
        progress: returns a number that changes whenever something is received or settled.
        excused: returns whether standing still is right, as far as the cell itself can tell.
        waiting: asks the server how many messages it has for this consumer and could deliver.
        rebuild: makes a new subscription.
        restarted_for_this: whether the cell's last generation was ended by a watchdog.

    Attributes:
        stalled: what is wrong that a restart has not helped with; empty if nothing is.
    """

    def __init__(
        self,
        *,
        durable: str,
        progress: Callable[[], int],
        excused: Callable[[], bool],
        waiting: Callable[[], Awaitable[int]],
        rebuild: Callable[[], None],
        restarted_for_this: bool,
    ) -> None:
        self._durable = durable
        self._progress = progress
        self._excused = excused
        self._waiting = waiting
        self._rebuild = rebuild
        self._restarted_for_this = restarted_for_this
        self._seen = -1
        self._looks = 0
        self._alarms = 0
        self.stalled = ""

    async def run(self, heartbeat: Heartbeat, changed: Callable[[], None]) -> None:
        """Look every CHECK_SECONDS until cancelled.

        Args:
            heartbeat: with which it looks, for which the thread is awake anyway.
            changed: called when `stalled` has changed.

        Raises:
            Stalled: the cell is to be restarted.
        """
        while True:
            await heartbeat.after(CHECK_SECONDS)
            stalled = self.stalled
            try:
                await self.look()
            except Stalled:
                raise
            except BrokerError as error:
                _log.debug("the watchdog has no answer", error=str(error))
            if stalled != self.stalled:
                changed()

    async def look(self) -> None:
        """Look once.

        Raises:
            Stalled: the cell is to be restarted.
            BrokerError: the server didn't say what it has.
        """
        progress = self._progress()
        if progress != self._seen or self._excused():
            self._calm(progress)
            return
        waiting = await self._waiting()
        if waiting == 0 or self._progress() != progress:
            self._calm(self._progress())
            return
        self._looks += 1
        if self._looks < PATIENCE:
            return
        self._looks = 0
        self._alarms += 1
        _log.error("no progress", durable=self._durable, waiting=waiting, alarm=self._alarms)
        if self._alarms > 1:
            if not self._restarted_for_this:
                raise Stalled(f"{waiting} messages wait in the stream, and a new subscription brought none")
            self.stalled = (
                f"{waiting} messages wait in the stream, and neither a new subscription nor a restart helped"
            )
        self._rebuild()

    def _calm(self, progress: int) -> None:
        if progress != self._seen:
            self._alarms = 0
            self.stalled = ""
        self._seen = progress
        self._looks = 0
