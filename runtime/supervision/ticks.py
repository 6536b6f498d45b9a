"""When a supervisor looks at its children: more often while one of them has a deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from understudy.runtime.cell.status import boottime
from understudy.runtime.supervision.child import Child

TICK_SECONDS = 0.5
# The same while all children are up.
IDLE_TICK_SECONDS = 2.0
MIN_TICK_SECONDS = 0.05


class Ticks:
    """Plans ticks, of which one at most is to come.

    Args:
        after: calls a function after so many seconds, and can't be told not to.
        tick: what to do at each, given by how many seconds it comes late; it plans the next.
    """

    def __init__(
        self, after: Callable[[float, Callable[[], None]], None], tick: Callable[[float], None]
    ) -> None:
        self._after = after
        self._tick = tick
        self._at = 0.0
        self._number = 0

    def plan(self, seconds: float) -> None:
        """Have the next come after so many seconds, in place of one that is planned."""
        self._at = boottime() + seconds
        self._number += 1
        self._after(seconds, partial(self._come, self._number))

    def soon(self) -> None:
        """Have the next come within TICK_SECONDS: a child has a deadline from now on."""
        if self._at - boottime() > TICK_SECONDS:
            self.plan(TICK_SECONDS)

    def _come(self, number: int) -> None:
        if number == self._number:
            self._tick(boottime() - self._at)


def seconds_to_tick(running: Sequence[Child], now: float) -> float:
    """Return when to look again at children that are all up, or are not.

    Args:
        running: those that have a process.
        now: in seconds of CLOCK_BOOTTIME.
    """
    if not running or any(child.state != "up" for child in running):
        return TICK_SECONDS
    # A tick that was planned for much later would not be late enough after a suspension to forgive it.
    seconds = max(TICK_SECONDS, min(child.hang_timeout_seconds for child in running) / 4)
    # In time for what hangs, if it does: an event that it holds is redelivered soon after that.
    hangs_at = min(child.hangs_at for child in running)
    return max(MIN_TICK_SECONDS, min(IDLE_TICK_SECONDS, seconds, hangs_at - now))
