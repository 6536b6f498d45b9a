"""A bound on how many calls run at once, for coroutines and threads alike."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future


class Bulkhead:
    """So many places; who finds none waits in line.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._lock = threading.Lock()
        self._waiting: deque[Future[None]] = deque()

    async def enter(self, timeout_seconds: float | None) -> None:
        """Take a place.

        Raises:
            TimeoutError: there was none in time.
        """
        place = self._take()
        if place is None:
            return
        try:
            await asyncio.wait_for(asyncio.wrap_future(place), timeout_seconds)
        except (TimeoutError, asyncio.CancelledError):
            self._give_up(place)
            raise

    def enter_thread(self, timeout_seconds: float | None) -> None:
        """Take a place, in a thread that may wait.

        Raises:
            TimeoutError: there was none in time.
        """
        place = self._take()
        if place is None:
            return
        try:
            place.result(timeout_seconds)
        except TimeoutError:
            self._give_up(place)
            raise

    def leave(self) -> None:
        """Give a place back, to the first in line."""
        with self._lock:
            while self._waiting:
                place = self._waiting.popleft()
                # One that was given up isn't there any more.
                if place.set_running_or_notify_cancel():
                    place.set_result(None)
                    return
            self._free += 1

    def _take(self) -> Future[None] | None:
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return None
            place: Future[None] = Future()
            self._waiting.append(place)
            return place

    def _give_up(self, place: Future[None]) -> None:
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
        # Cancelling fails if it was given to us just now.
        if not place.cancel():
            self.leave()
