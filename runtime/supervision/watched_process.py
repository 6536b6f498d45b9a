"""A process whose end the launcher's event loop awaits."""

from __future__ import annotations

import asyncio
import os

from understudy.runtime.supervision.processes import describe_exit


class WatchedProcess:
    """A process whose end sets an event; made in the event loop.

    Args:
        pid: of a process that is there.

    Attributes:
        ended: set when the process has ended, by whomever it is reaped.

    Raises:
        ProcessLookupError: it is gone already.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended = asyncio.Event()
        self._descriptor = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self.ended.set()

    def how(self) -> str:
        """Return how the process ended, if it is a child of ours."""
        try:
            result = os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            result = None
        if result is None:
            return describe_exit(None)
        return describe_exit(result.si_status if result.si_code == os.CLD_EXITED else -result.si_status)
