"""How many restarts a supervisor bears before it gives up, as OTP counts them."""

from __future__ import annotations

from collections import deque


class Intensity:
    """The restarts of all children of one supervisor within a sliding window.

    Args:
        max_restarts: restarts that are borne within the window; 0 gives up at the first.
        max_seconds: length of the window.
    """

    def __init__(self, max_restarts: int, max_seconds: float) -> None:
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self._restarts: deque[float] = deque()

    def record(self, now: float) -> bool:
        """Count one restart and return whether it is still borne.

        Args:
            now: seconds on any clock that doesn't go back.
        """
        self._restarts.append(now)
        while now - self._restarts[0] > self.max_seconds:
            self._restarts.popleft()
        return len(self._restarts) <= self.max_restarts
