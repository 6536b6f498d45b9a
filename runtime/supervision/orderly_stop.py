"""Stopping children in the reverse order of their start, in the time that there is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from understudy.runtime.cell.status import boottime
from understudy.runtime.supervision.child import Child

# A little more than a cell's pull requests live.
LEAST_SHARE_SECONDS = 2.5


class OrderlyStop:
    """Stops children one after the other; a new stop takes the place of one that isn't through yet.

    Args:
        ask: asks one child to stop; called with it and with how many seconds are left for all.
        after: calls a function after so many seconds.

    Attributes:
        deadline: until when all are to have stopped, in seconds of CLOCK_BOOTTIME.
    """

    def __init__(
        self, ask: Callable[[Child, float], None], after: Callable[[float, Callable[[], None]], None]
    ) -> None:
        self.deadline = 0.0
        self._ask = ask
        self._after = after
        self._children: Sequence[Child] = ()
        self._done: Callable[[], None]
        self._waiting: deque[Child] = deque()
        # Whose stop the others wait for; None when all were asked.
        self._turn: Child | None = None

    def begin(self, children: Sequence[Child], timeout_seconds: float, done: Callable[[], None]) -> None:
        """Stop those of these children that run, those that come last first.

        Args:
            children: in start order.
            timeout_seconds: how long all of it may take.
            done: called when none of them has a process, which may be at once.
        """
        self.deadline = boottime() + timeout_seconds
        self._children, self._done = children, done
        self._waiting = deque(child for child in reversed(children) if child.process is not None)
        self._next()

    def ended(self, child: Child) -> None:
        """Hear that one of the children has no process any more."""
        if child is self._turn or self._turn is None:
            self._next()

    def _next(self) -> None:
        """Stop the last child that runs, and the one before it when that is gone or has had its share."""
        while self._waiting:
            child = self._turn = self._waiting.popleft()
            if child.process is None:
                continue
            remaining = max(0.0, self.deadline - boottime())
            if child.state != "stopping":
                self._ask(child, remaining)
            # Strictly one after the other, many children would not fit into the time: none may take
            # more than half of its even share before the next is asked too. But while there is time, the
            # first must be able to wait for its requests' end, which is that of all the others' too.
            share = max(remaining / (2 * (len(self._waiting) + 1)), min(LEAST_SHARE_SECONDS, remaining / 4))
            self._after(share, partial(self._next_after, child))
            return
        self._turn = None
        if all(child.process is None for child in self._children):
            self._done()

    def _next_after(self, child: Child) -> None:
        # Unless that has ended since.
        if child is self._turn:
            self._next()
