"""Thespian's own two processes, without which no supervisor can be spoken to: its admin and its logger."""

from __future__ import annotations

import asyncio

import structlog

from understudy.runtime.supervision.watched_process import WatchedProcess

# Between the first death seen and the question who died first: one death brings others with it.
DEATHS_SETTLE_SECONDS = 0.05

_log = structlog.get_logger(__name__)


class ControlProcesses:
    """The admin and the logger of one control plane; made in the event loop.

    Args:
        admin_pid, logger_pid: theirs.
    """

    def __init__(self, admin_pid: int, logger_pid: int) -> None:
        self.pids = (admin_pid, logger_pid)
        self._admin = WatchedProcess(admin_pid)
        self._logger = WatchedProcess(logger_pid)
        self._named = False

    async def one_died(self) -> None:
        """Return when one of them has ended, and those that it takes along."""
        await asyncio.wait(
            [asyncio.ensure_future(one.ended.wait()) for one in (self._admin, self._logger)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await asyncio.sleep(DEATHS_SETTLE_SECONDS)

    async def ended(self) -> None:
        """Return when both have ended."""
        await self._admin.ended.wait()
        await self._logger.ended.wait()

    def name_the_dead(self) -> None:
        """Log once which process of the control plane has taken the others along; the root may have too."""
        if self._named:
            return
        self._named = True
        how = self._admin.how()
        if not (self._admin.ended.is_set() or self._logger.ended.is_set()):
            _log.error("control plane died", process="root supervisor")
        elif self._logger.ended.is_set() and "killed" not in how:
            # The admin takes the logger along if it is killed, and ends by itself if its logger died.
            _log.error("control plane died", process="logger", reason="ended")
        else:
            _log.error("control plane died", process="admin", reason=how)
